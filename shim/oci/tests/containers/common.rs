//! Fixture: a rootfs, a spec, and a container driven as the shim drives it, but blocking.

use corten_launch::{Failure, Parked, Status, spawn};
use corten_oci::{
    Cgroup, ExecParams, HOOKS, InitParams, InitPlan, Place, Process, Spec, State, Stdio, hooks,
    plan_exec, plan_init,
};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn skip(what: &str, why: &str) {
    println!("  skipped {what}: {why}");
}

/// How many times longer things may take, in a machine without hardware of its own.
pub(crate) fn patience() -> u32 {
    let asked = std::env::var("CORTEN_PATIENCE").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// How often to do something: less often in such a machine.
pub(crate) fn rounds(usual: usize) -> usize {
    match patience() {
        1 => usual,
        _ => usual / 20,
    }
}

/// Descriptors that a process may have been left with: fewer are tried in such a machine.
pub(crate) fn leftovers() -> std::ops::Range<i32> {
    3..if patience() > 1 { 10 } else { 40 }
}

/// A spec like containerd's default one, running a shell script.
pub(crate) fn spec(script: &str) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs"},
        "process": {
            "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    })
}

fn rootfs(root: &Path) {
    for dir in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(dir)).expect("mkdir");
    }
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("chmod");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    // Not by this process: its other threads' children would be writers of it too, and no file runs
    // that is being written.
    let copied = std::process::Command::new("cp")
        .arg(busybox.expect("busybox-static is installed"))
        .arg(root.join("bin/busybox"))
        .status();
    assert!(copied.expect("run cp").success());
    let names = "sh echo cat ls pwd id wc cut sort tr hostname touch stat readlink grep kill sleep true \
                 umask mkdir chmod sync head mknod tty stty test awk uniq find xargs mount";
    for name in names.split_whitespace() {
        symlink("busybox", root.join("bin").join(name)).expect("symlink");
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write");
    std::fs::write(root.join("bin/garbage"), [1u8; 100]).expect("write");
    std::fs::set_permissions(root.join("bin/garbage"), PermissionsExt::from_mode(0o755))
        .expect("chmod");
}

/// What a start led to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ready(Parked, Vec<String>),
    Failed(Failure),
}

/// What a finished container left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) warnings: Vec<String>,
}

pub(crate) struct Container {
    pub(crate) cgroup: Cgroup,
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) bundle: tempfile::TempDir,
    files: [File; 2],
    no_pivot: bool,
}

pub(crate) fn output(spec: Value) -> Output {
    Container::new(spec).finish()
}

impl Container {
    pub(crate) fn new(spec: Value) -> Self {
        Self::prepared(spec, |_| {})
    }

    pub(crate) fn prepared(mut spec: Value, prepare: impl FnOnce(&Path)) -> Self {
        let bundle = tempfile::Builder::new()
            .prefix("corten")
            .tempdir()
            .expect("temp dir");
        std::fs::set_permissions(bundle.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let root = bundle.path().join("rootfs");
        rootfs(&root);
        prepare(&root);
        let id = format!(
            "t{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        spec["linux"]["cgroupsPath"] = json!(format!("/corten-test/{id}"));
        let spec = Spec::parse(spec.to_string().as_bytes()).expect("valid spec");
        let cgroup = Cgroup::create(&spec, &id, &Default::default()).expect("cgroup");
        let files = [
            tempfile::tempfile().expect("file"),
            tempfile::tempfile().expect("file"),
        ];
        Self {
            cgroup,
            id,
            spec,
            bundle,
            files,
            no_pivot: false,
        }
    }

    pub(crate) fn no_pivot(mut self) -> Self {
        self.no_pivot = true;
        self
    }

    fn stdio(&self) -> Stdio {
        let [out, err] = &self.files;
        Stdio::Fds(
            File::open("/dev/null").expect("null").into(),
            out.try_clone().expect("dup").into(),
            err.try_clone().expect("dup").into(),
        )
    }

    fn plan_with(&self, stdio: Stdio) -> corten_oci::Result<InitPlan> {
        plan_init(
            &self.spec,
            InitParams {
                id: &self.id,
                bundle: self.bundle.path(),
                stdio,
                cgroup: &self.cgroup,
                no_pivot_root: self.no_pivot,
                no_new_keyring: false,
                cache: None,
            },
        )
    }

    pub(crate) fn plan(&self) -> corten_oci::Result<InitPlan> {
        self.plan_with(self.stdio())
    }

    pub(crate) fn start(&self) -> Outcome {
        self.start_with(self.stdio())
    }

    fn start_with(&self, stdio: Stdio) -> Outcome {
        let init = self.plan_with(stdio).expect("plan");
        let mut p = spawn(&init.plan).expect("spawn");
        drop(init.plan);
        loop {
            match p.wait_status().expect("status") {
                Status::Ready => {
                    let mut warnings = init.warnings;
                    warnings.extend(p.take_warnings());
                    return Outcome::Ready(p, warnings);
                }
                Status::Rendezvous(HOOKS) => {
                    self.hooks(&p);
                    p.proceed().expect("proceed");
                }
                Status::Listener => self.listener(&mut p),
                Status::Failed(failure) => {
                    check::exit(&mut p);
                    return Outcome::Failed(failure);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn listener(&self, p: &mut Parked) {
        let bundle = self.bundle.path().display().to_string();
        let state = State {
            oci_version: "1.3.0",
            id: &self.id,
            status: "creating",
            pid: p.pid(),
            bundle: &bundle,
            annotations: &self.spec.annotations,
        };
        let fd = p.take_listener().expect("a listener");
        let agent = corten_oci::Agent::of(&self.spec, p.pid(), &state).expect("valid");
        let agent = agent.expect("an agent");
        agent.hand_over(fd.as_fd()).expect("given");
        p.proceed().expect("proceed");
    }

    fn hooks(&self, p: &Parked) {
        corten_oci::netdev::attach(&self.spec, p.pid()).expect("devices");
        let bundle = self.bundle.path().display().to_string();
        let state = State {
            oci_version: "1.3.0",
            id: &self.id,
            status: "created",
            pid: p.pid(),
            bundle: &bundle,
            annotations: &self.spec.annotations,
        };
        let h = &self.spec.hooks;
        let outside = h
            .prestart
            .iter()
            .chain(&h.create_runtime)
            .map(|h| (h, Place::Runtime));
        let inside = h
            .create_container
            .iter()
            .map(|h| (h, Place::Namespaces(p.pidfd())));
        self.run_hooks(state, outside.chain(inside));
    }

    /// What the shim does between Start and the gate.
    pub(crate) fn start_hooks(&self, p: &Parked) {
        let bundle = self.bundle.path().display().to_string();
        let state = State {
            oci_version: "1.3.0",
            id: &self.id,
            status: "created",
            pid: p.pid(),
            bundle: &bundle,
            annotations: &self.spec.annotations,
        };
        let place = Place::Container {
            init: p.pidfd(),
            cgroup: &self.cgroup,
            spec: &self.spec,
        };
        let list = self.spec.hooks.start_container.iter();
        self.run_hooks(state, list.map(|h| (h, place)));
    }

    fn run_hooks<'h>(
        &self,
        mut state: State<'_>,
        list: impl Iterator<Item = (&'h corten_oci::spec::Hook, Place<'h>)>,
    ) {
        for (hook, place) in list {
            if !matches!(place, Place::Runtime) {
                // These are told the container's own number.
                state.pid = 1;
            }
            let run = hooks::prepare(hook, &state, place).expect("prepare");
            let mut child = spawn(&run.plan).expect("spawn hook");
            drop(run.plan);
            assert_eq!(child.wait_status().expect("status"), Status::Ready);
            child.open_gate().expect("gate");
            assert_eq!(child.wait_status().expect("status"), Status::Running);
            assert_eq!(check::exit(&mut child), 0);
        }
    }

    pub(crate) fn running(&mut self) -> Parked {
        match self.start() {
            Outcome::Ready(mut p, _) => {
                p.open_gate().expect("gate");
                assert_eq!(p.wait_status().expect("status"), Status::Running);
                p
            }
            Outcome::Failed(f) => panic!("{f:?}"),
        }
    }

    pub(crate) fn with_hooks(self) -> Output {
        self.finish()
    }

    pub(crate) fn finish(mut self) -> Output {
        match self.start() {
            Outcome::Ready(mut p, warnings) => {
                p.open_gate().expect("gate");
                loop {
                    match p.wait_status().expect("status") {
                        Status::Running => break,
                        Status::Listener => self.listener(&mut p),
                        other => panic!("{other:?}"),
                    }
                }
                let code = check::exit(&mut p);
                let [stdout, stderr] = self.read();
                self.clean();
                Output {
                    code,
                    stdout,
                    stderr,
                    warnings,
                }
            }
            Outcome::Failed(f) => panic!("{f:?}"),
        }
    }

    pub(crate) fn terminal(mut self, stdio: Stdio) -> String {
        let Outcome::Ready(mut p, _) = self.start_with(stdio) else {
            panic!("not ready")
        };
        let mut master = File::from(p.take_console().expect("a console"));
        p.open_gate().expect("gate");
        assert_eq!(p.wait_status().expect("status"), Status::Running);
        let mut bytes = Vec::new();
        // EIO once every slave is closed.
        let _ = master.read_to_end(&mut bytes);
        check::exit(&mut p);
        self.clean();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// cgroup, plan, create, start, exit, delete.
    pub(crate) fn timed(mut self) -> [Duration; 6] {
        self.cgroup.delete().expect("delete");
        let begin = Instant::now();
        self.cgroup = Cgroup::create(&self.spec, &self.id, &Default::default()).expect("cgroup");
        let made = begin.elapsed();
        let init = self.plan_with(Stdio::Null).expect("plan");
        let planned = begin.elapsed();
        let mut p = spawn(&init.plan).expect("spawn");
        drop(init);
        let cloned = begin.elapsed();
        assert_eq!(p.wait_status().expect("status"), Status::Ready);
        let ready = begin.elapsed();
        p.open_gate().expect("gate");
        assert_eq!(p.wait_status().expect("status"), Status::Running);
        assert_eq!(check::exit(&mut p), 0);
        let ended = begin.elapsed();
        assert!(self.cgroup.delete().expect("delete"));
        [made, planned, cloned, ready, ended, begin.elapsed()]
    }

    fn read(&mut self) -> [String; 2] {
        self.files.each_mut().map(|f| {
            let mut text = String::new();
            f.rewind().expect("rewind");
            f.read_to_string(&mut text).expect("utf-8");
            text
        })
    }

    pub(crate) fn clean(&mut self) {
        let until = Instant::now() + Duration::from_secs(5) * patience();
        while !self.cgroup.delete().expect("delete") {
            assert!(
                Instant::now() < until,
                "cgroup stays busy: {:?}",
                self.cgroup.pids()
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        let _ = self.cgroup.delete();
    }
}

fn exec_plan(
    c: &Container,
    p: &Parked,
    script: &str,
    change: impl FnOnce(&mut Value),
    stdio: Stdio,
) -> InitPlan {
    let mut process = spec(script)["process"].clone();
    change(&mut process);
    let process = Process::parse(process.to_string().as_bytes()).expect("valid process");
    let params = ExecParams {
        id: &c.id,
        init_pid: p.pid(),
        init_pidfd: p.pidfd(),
        stdio,
        cgroup: &c.cgroup,
        no_new_keyring: false,
        cache: None,
    };
    plan_exec(&c.spec, &process, params).expect("plan")
}

pub(crate) fn exec_with(
    c: &Container,
    p: &Parked,
    script: &str,
    change: impl FnOnce(&mut Value),
) -> (u32, String, String) {
    let mut files = [
        tempfile::tempfile().expect("file"),
        tempfile::tempfile().expect("file"),
    ];
    let [out, err] = &files;
    let stdio = Stdio::Fds(
        OwnedFd::from(File::open("/dev/null").expect("null")),
        out.try_clone().expect("dup").into(),
        err.try_clone().expect("dup").into(),
    );
    let plan = exec_plan(c, p, script, change, stdio);
    let mut child = spawn(&plan.plan).expect("spawn");
    assert_eq!(child.wait_status().expect("status"), Status::Ready);
    child.open_gate().expect("gate");
    assert_eq!(child.wait_status().expect("status"), Status::Running);
    let code = check::exit(&mut child);
    let [out, err] = files.each_mut().map(|f| {
        let mut text = String::new();
        f.rewind().expect("rewind");
        f.read_to_string(&mut text).expect("utf-8");
        text
    });
    (code, out, err)
}

pub(crate) fn exec_failure(c: &Container, p: &Parked, change: impl FnOnce(&mut Value)) -> Failure {
    let plan = exec_plan(c, p, "true", change, Stdio::Null);
    let mut child = spawn(&plan.plan).expect("spawn");
    let status = child.wait_status().expect("status");
    let Status::Failed(failure) = status else {
        panic!("{status:?}")
    };
    check::exit(&mut child);
    failure
}

pub(crate) mod check {
    use super::*;

    /// Waits for the exit and reaps.
    pub(crate) fn exit(p: &mut Parked) -> u32 {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            p.pidfd(),
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: 20 * i64::from(super::patience()),
            tv_nsec: 0,
        };
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&limit)),
            Ok(1),
            "the process does not end"
        );
        corten_launch::reap(p.pidfd())
            .expect("reap")
            .expect("exited")
            .code
    }
}

/// Mounts and cgroups of this process before and after.
#[derive(Debug, PartialEq)]
pub(crate) struct Leaks {
    mounts: usize,
    fds: usize,
}

impl Leaks {
    pub(crate) fn now() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mounts = mounts.lines().filter(|l| l.contains("/tmp/corten")).count();
        Self {
            mounts,
            fds: std::fs::read_dir("/proc/self/fd").expect("fds").count(),
        }
    }

    pub(crate) fn check(&self) {
        assert_eq!(*self, Self::now(), "mounts or descriptors leak");
        for dir in ["cpu", "memory", "pids", "devices", "unified", ""] {
            let base = Path::new("/sys/fs/cgroup").join(dir).join("corten-test");
            if let Ok(entries) = std::fs::read_dir(&base) {
                let left: Vec<_> = entries.flatten().filter(|e| e.path().is_dir()).collect();
                assert!(left.is_empty(), "{left:?}");
            }
        }
        for dir in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(dir.path().join("corten-test"));
        }
        let _ = std::fs::remove_dir("/sys/fs/cgroup/corten-test");
    }
}

pub(crate) fn report(name: &str, times: &[[Duration; 6]]) {
    let median = |n: usize| {
        let mut list: Vec<Duration> = times.iter().map(|t| t[n]).collect();
        list.sort();
        list[list.len() / 4]
    };
    println!(
        "  {name}, lower quartiles: cgroup {:?}, planned {:?}, cloned {:?}, created {:?}, exited {:?}, deleted {:?}",
        median(0),
        median(1),
        median(2),
        median(3),
        median(4),
        median(5)
    );
}
