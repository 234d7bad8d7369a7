//! The kernel: version, system calls, file systems, seccomp, security modules, user namespaces.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, OpenTreeFlags};
use rustix::process::PidfdFlags;

use super::{Line, read};

/// clone3, pidfd_open and the mount API are of 5.2 and 5.3, openat2 of 5.6, mount_setattr of 5.12.
const OLDEST: (u32, u32) = (5, 12);
/// Overlays take id-mapped layers.
const IDMAPPED_OVERLAY: (u32, u32) = (5, 19);

pub(super) fn lines() -> Vec<Line> {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = version(&release);
    let mut lines = vec![
        version_line(&release, version),
        pidfd(),
        openat2(),
        mount_api(),
        idmapped(version),
        overlayfs(),
        erofs(),
        seccomp(
            read("/proc/sys/kernel/seccomp/actions_avail").as_deref(),
            &read("/proc/self/status").unwrap_or_default(),
        ),
        lsm(),
    ];
    lines.extend(namespaces());
    lines
}

/// `6.8.0-49-generic` -> (6, 8).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn version_line(release: &str, version: (u32, u32)) -> Line {
    if version >= OLDEST {
        return Line::ok("kernel", format!("Linux {release}"));
    }
    let (major, minor) = OLDEST;
    Line::fatal(
        "kernel",
        format!("Linux {release}: Corten's shim needs {major}.{minor} or newer"),
    )
}

fn pidfd() -> Line {
    match rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
        Ok(_) => Line::ok(
            "pidfd",
            "processes are held by descriptor, not by a number that is reused",
        ),
        Err(e) => Line::fatal("pidfd", format!("pidfd_open: {e}: exits cannot be awaited")),
    }
}

fn openat2() -> Line {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(_) => Line::ok(
            "openat2",
            "paths are resolved inside a container's root by the kernel",
        ),
        Err(e) => Line::fatal(
            "openat2",
            format!("openat2: {e}: a root cannot be entered safely"),
        ),
    }
}

fn mount_api() -> Line {
    let topic = "mount api";
    match rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Line::ok(topic, "fsopen, open_tree and move_mount work"),
        Err(Errno::PERM) => Line::fatal(
            topic,
            "mounting is not permitted: run as root, with CAP_SYS_ADMIN",
        ),
        Err(e) => Line::fatal(
            topic,
            format!("fsopen: {e}: a container's mounts cannot be made"),
        ),
    }
}

fn idmapped(version: (u32, u32)) -> Line {
    let topic = "idmapped mounts";
    if version < OLDEST {
        return Line::missing(
            topic,
            "need Linux 5.12: user namespaces need a copy of the image",
        );
    }
    // The attribute itself can only be tried on a mount with a namespace; the detached copy is the half that is free.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match rustix::mount::open_tree(CWD, "/proc/self/ns", flags) {
        Err(Errno::PERM) => Line::missing(topic, "detached mounts are not permitted here"),
        Err(Errno::NOSYS) => Line::missing(topic, "the kernel has no open_tree"),
        _ if version < IDMAPPED_OVERLAY => Line::limited(
            topic,
            "overlays take them since Linux 5.19: user namespaces copy the image",
        ),
        _ => Line::ok(
            topic,
            "containers with their own user ids share the image's files, where its file system allows",
        ),
    }
}

fn overlayfs() -> Line {
    let topic = "overlayfs";
    match file_system("overlay") {
        Known::No => {
            return Line::missing(
                topic,
                "not in this kernel: the native snapshotter copies whole images",
            );
        }
        Known::Module => {
            return Line::ok(topic, "as a module, loaded at first use");
        }
        Known::Yes => {}
    }
    // Setting options touches no layer and mounts nothing.
    let fs = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(fs) => fs,
        Err(e) => {
            return Line::missing(
                topic,
                format!("{e}: the native snapshotter copies whole images"),
            );
        }
    };
    let append = rustix::mount::fsconfig_set_string(&fs, "lowerdir+", "/").is_ok();
    let userxattr = rustix::mount::fsconfig_set_flag(&fs, "userxattr").is_ok();
    let has = |yes: bool, name: &str| format!("{} {name}", if yes { "with" } else { "without" });
    let text = format!(
        "{}, {}",
        has(append, "lowerdir+"),
        has(userxattr, "userxattr")
    );
    let nested = corten_sys::userns::running_in_user_ns();
    match (append, userxattr) {
        (_, false) if nested => {
            Line::missing(topic, format!("{text}: not usable in a user namespace"))
        }
        (false, _) => Line::limited(
            topic,
            format!("{text}: images of very many layers are mounted by short names"),
        ),
        _ => Line::ok(topic, text),
    }
}

fn erofs() -> Line {
    match file_system("erofs") {
        Known::Yes => Line::ok("erofs", "layers can be mounted as they are stored"),
        Known::Module => Line::ok("erofs", "as a module, loaded at first use"),
        Known::No => Line::missing("erofs", "not in this kernel: no erofs snapshotter"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    Module,
    No,
}

fn file_system(name: &str) -> Known {
    if has_file_system(&read("/proc/filesystems").unwrap_or_default(), name) {
        return Known::Yes;
    }
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = Path::new("/lib/modules").join(release);
    let listed = ["modules.dep", "modules.builtin"]
        .iter()
        .filter_map(|f| read(folder.join(f)))
        .any(|list| has_module(&list, name));
    if listed { Known::Module } else { Known::No }
}

fn has_file_system(filesystems: &str, name: &str) -> bool {
    filesystems
        .lines()
        .any(|l| l.split_whitespace().last() == Some(name))
}

/// Whether a line like `kernel/fs/overlayfs/overlay.ko.zst: ...` is of this module.
fn has_module(list: &str, name: &str) -> bool {
    list.lines().any(|l| {
        let path = l.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split_once(".ko").is_some_and(|(stem, _)| stem == name)
    })
}

fn seccomp(actions: Option<&str>, status: &str) -> Line {
    let topic = "seccomp";
    let Some(actions) = actions else {
        return Line::missing(
            topic,
            "not in this kernel: containers run without system call filters",
        );
    };
    let lacks: Vec<&str> = ["errno", "kill_process", "log", "user_notif"]
        .into_iter()
        .filter(|a| !actions.split_whitespace().any(|b| b == *a))
        .collect();
    if !lacks.is_empty() {
        let lacks = lacks.join(", ");
        return Line::limited(
            topic,
            format!("without {lacks}: profiles that use them are refused"),
        );
    }
    let filtered = field(status, "Seccomp") == Some("2");
    if filtered {
        return Line::limited(
            topic,
            "this process is filtered itself: system calls that containers are allowed may still fail",
        );
    }
    Line::ok(
        topic,
        format!(
            "filters with {}",
            actions.split_whitespace().collect::<Vec<_>>().join(", ")
        ),
    )
}

/// A field of `/proc/PID/status`.
pub(super) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn lsm() -> Line {
    let topic = "security module";
    let apparmor = read("/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y");
    let selinux = read("/sys/fs/selinux/enforce");
    let others = read("/sys/kernel/security/lsm").unwrap_or_default();
    match (apparmor, selinux.as_deref()) {
        (true, _) => Line::ok(topic, "AppArmor: profiles apply"),
        (_, Some("1")) => Line::ok(topic, "SELinux, enforcing: labels apply"),
        (_, Some(_)) => Line::limited(
            topic,
            "SELinux, permissive: labels are set but nothing is refused",
        ),
        _ if others.is_empty() => Line::missing(
            topic,
            "neither AppArmor nor SELinux: their profiles are ignored",
        ),
        _ => Line::missing(
            topic,
            format!("neither AppArmor nor SELinux (only {others}): their profiles are ignored"),
        ),
    }
}

fn namespaces() -> Vec<Line> {
    let topic = "namespaces";
    let there = |n: &str| Path::new("/proc/self/ns").join(n).exists();
    let zero = |n: &str| read(format!("/proc/sys/user/max_{n}_namespaces")).as_deref() == Some("0");
    let mut lines = Vec::new();
    let needed = [("mnt", "mnt"), ("pid", "pid")];
    let wanted = [
        ("net", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("cgroup", "cgroup"),
    ];
    let lacks = |list: &[(&'static str, &str)]| -> Vec<&'static str> {
        list.iter()
            .filter(|(ns, max)| !there(ns) || zero(max))
            .map(|(ns, _)| *ns)
            .collect()
    };
    let (without, less) = (lacks(&needed), lacks(&wanted));
    lines.push(if !without.is_empty() {
        Line::fatal(
            topic,
            format!("no {} namespaces: no isolation", without.join(", ")),
        )
    } else if !less.is_empty() {
        let less = less.join(", ");
        Line::limited(
            topic,
            format!("no {less} namespaces: containers that ask for them fail"),
        )
    } else {
        Line::ok(topic, "mnt, pid, net, ipc, uts, cgroup")
    });
    lines.push(user_namespaces(
        there("user"),
        read("/proc/sys/user/max_user_namespaces").and_then(|n| n.parse().ok()),
        corten_sys::userns::running_in_user_ns(),
    ));
    lines
}

fn user_namespaces(there: bool, max: Option<u64>, nested: bool) -> Line {
    let topic = "user namespaces";
    match (there, max) {
        (false, _) => Line::missing(topic, "not in this kernel: container root is host root"),
        (_, Some(0)) => Line::missing(
            topic,
            "user.max_user_namespaces is 0: container root is host root",
        ),
        _ if nested => Line::limited(
            topic,
            "this is one already (rootless or nested): devices cannot be made and limits may be refused",
        ),
        (_, Some(n)) => Line::ok(topic, format!("at most {n}")),
        (_, None) => Line::ok(topic, "no limit known"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn versions_and_lists_parse() {
        assert_eq!(version("6.8.0-49-generic"), (6, 8));
        assert_eq!(version("5.12-rc1"), (5, 12));
        assert_eq!(version(""), (0, 0));
        assert_eq!(version_line("4.19.0", (4, 19)).verdict, Verdict::Fatal);
        assert!(has_file_system(
            "nodev\tproc\nnodev\toverlay\n\text4\n",
            "overlay"
        ));
        assert!(has_file_system("\text4\n", "ext4") && !has_file_system("\text4\n", "ext"));
        let dep =
            "kernel/fs/overlayfs/overlay.ko.zst:\nkernel/fs/erofs/erofs.ko: kernel/lib/x.ko\n";
        assert!(has_module(dep, "overlay") && has_module(dep, "erofs") && !has_module(dep, "x"));
    }

    #[test]
    fn seccomp_tells_what_lacks() {
        let all = "kill_process kill_thread trap errno user_notif trace log allow";
        assert_eq!(seccomp(Some(all), "Seccomp:\t0\n").verdict, Verdict::Ok);
        assert_eq!(
            seccomp(Some(all), "Seccomp:\t2\n").verdict,
            Verdict::Limited
        );
        assert_eq!(seccomp(None, "").verdict, Verdict::Missing);
        let old = seccomp(Some("kill trap errno trace allow"), "");
        assert!(
            old.text.contains("kill_process, log, user_notif"),
            "{old:?}"
        );
    }

    #[test]
    fn user_namespaces_have_limits() {
        assert_eq!(
            user_namespaces(true, Some(5), false),
            Line::ok("user namespaces", "at most 5")
        );
        assert_eq!(
            user_namespaces(true, Some(0), false).verdict,
            Verdict::Missing
        );
        assert_eq!(
            user_namespaces(false, None, false).verdict,
            Verdict::Missing
        );
        assert_eq!(
            user_namespaces(true, Some(5), true).verdict,
            Verdict::Limited
        );
    }
}
