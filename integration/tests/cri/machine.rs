//! The machine that the tests run on: mount and network namespaces of their own, a registry, a bridge for pods, and the
//! daemon that most tests share.
//!
//! The test program runs itself again below `unshare`. `/run` and `/var/lib` are empty there, nothing of the network is
//! the host's, and whatever a test forgets to take down goes with the last process.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use corten_integration::daemon::{Daemon, Setup};
use corten_integration::images::{self, Image, Layer, Recipe};
use corten_integration::peers::{self, Kind};
use corten_integration::process::{eventually, program};
use corten_integration::registry::Registry;
use corten_integration::tarball::Tarball;
use serde_json::json;

/// Set in the namespaces.
const INSIDE: &str = "CORTEN_CRI_INSIDE";
/// The first address of the pods' network: the bridge's.
pub(crate) const BRIDGE: &str = "10.77.0.1";

/// A daemon, and what it needs.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) daemon: Daemon,
    pub(crate) world: Arc<World>,
}

/// What all daemons of this run share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) registry: Registry,
    /// The reference of busybox in the registry.
    pub(crate) busybox: String,
    /// The cgroup that all pods are made in.
    pub(crate) cgroup: String,
    pushed: Mutex<Vec<String>>,
}

static WORLD: Mutex<Option<Arc<World>>> = Mutex::new(None);
static SHARED: Mutex<Option<Arc<Machine>>> = Mutex::new(None);

fn locked<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs this program again in namespaces of its own, or gives true if this is there already.
///
/// # Panics
/// Without `unshare`.
#[must_use]
pub(crate) fn enter() -> bool {
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        return true;
    }
    let own = std::env::current_exe().expect("this program has a path");
    let error = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "--"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "yes")
        .exec();
    panic!("run unshare: {error}");
}

fn prepare() {
    // As on a machine with systemd: what a test mounts spreads to its containers if they ask for it.
    let script = "mount --make-rshared / && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && \
                  mkdir -p /run/netns /run/lock && ip link set lo up";
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "no machine of our own: {status}");
}

// === impl World ===

impl World {
    /// The one of this run.
    ///
    /// # Panics
    /// Something of it cannot be made.
    pub(crate) fn get() -> Arc<Self> {
        Arc::clone(locked(&WORLD).get_or_insert_with(|| Arc::new(Self::new())))
    }

    /// Gives it up, at the end.
    pub(crate) fn leave() {
        locked(&WORLD).take();
    }

    fn new() -> Self {
        let dir = PathBuf::from(format!("/tmp/cit-{}-w", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::create_dir_all(dir.join("cni")).unwrap();
        fs::write(dir.join("cni/10-cit.conflist"), network(&dir)).unwrap();
        // Without CAP_SYS_RESOURCE runc cannot give what a pod of stock containerd asks for: a negative oom_score_adj.
        if let Ok(runc) = std::panic::catch_unwind(|| peers::reference("runc")) {
            program(&dir.join("bin/runc"), &lenient(&runc));
        }
        let registry = Registry::plain(&dir);
        let _ = registry.hosts_dir();
        let busybox = registry.push(&images::busybox());
        registry.push(&pause());
        Self {
            registry,
            busybox,
            cgroup: format!("/cit{}", std::process::id()),
            pushed: Mutex::default(),
            dir,
        }
    }

    /// Puts an image into the registry, once, and gives its reference.
    pub(crate) fn push(&self, image: &Image) -> String {
        let mut pushed = locked(&self.pushed);
        if !pushed.contains(&image.digest) {
            self.registry.push(image);
            pushed.push(image.digest.clone());
        }
        self.registry.reference(image)
    }

    /// Tells daemons that a registry speaks plain HTTP.
    pub(crate) fn plain(&self, reference: &str) {
        let host = reference.split('/').next().expect("a reference has a host");
        let dir = self.dir.join("registry/hosts").join(host);
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "server = \"http://{host}\"\n[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let cgroup = hierarchy.path().join(&self.cgroup[1..]);
            // The last shims of a daemon may be on their way out.
            let gone = || (fs::remove_dir(&cgroup).is_ok() || !cgroup.exists()).then_some(());
            let _ = eventually(Duration::from_secs(5), gone);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn pause() -> Image {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let binary = busybox.iter().find_map(|p| fs::read(p).ok());
    let tar = Tarball::new().file("sleep", 0o755, binary.expect("busybox-static is installed"));
    Recipe::new("pause")
        .layer(Layer::gzip(tar))
        .config(json!({"Entrypoint": ["/sleep", "1000000"]}))
        .build()
}

fn lenient(runc: &Path) -> String {
    format!(
        "#!/bin/sh\nfor a; do case $previous in --bundle) f=$a/config.json ;; --process) f=$a ;; esac; previous=$a; done\n\
         [ -n \"${{f:-}}\" ] && sed -i 's/\"oomScoreAdj\":-[0-9]*/\"oomScoreAdj\":0/' \"$f\"\nexec {} \"$@\"\n",
        runc.display()
    )
}

fn network(dir: &Path) -> String {
    let network = json!({"cniVersion": "1.0.0", "name": "cit", "plugins": [
        {"type": "bridge", "bridge": "cit0", "isGateway": true, "ipMasq": true, "promiscMode": true,
         "ipam": {"type": "host-local", "dataDir": dir.join("addresses"), "ranges": [[{"subnet": "10.77.0.0/16"}]],
                  "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    network.to_string()
}

// === impl Machine ===

impl Machine {
    /// The daemon that most tests share.
    pub(crate) fn shared() -> Arc<Self> {
        Arc::clone(locked(&SHARED).get_or_insert_with(|| Arc::new(Self::start(""))))
    }

    /// Gives up the shared daemon, if a test has used it.
    pub(crate) fn take_shared() -> Option<Arc<Self>> {
        locked(&SHARED).take()
    }

    /// A daemon with this TOML at the end of its config.
    #[must_use]
    pub(crate) fn start(extra: &str) -> Self {
        Self::start_with_networks(extra, &World::get().dir.join("cni"))
    }

    /// A daemon with the networks of another folder.
    #[must_use]
    pub(crate) fn start_with_networks(extra: &str, networks: &Path) -> Self {
        let world = World::get();
        let kind = Kind::under_test();
        // Keys before the first table are those of [grpc], which comes right before.
        let (keys, extra) = extra.split_at(extra.find('[').unwrap_or(extra.len()));
        let config = format!(
            r#"{keys}[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
drain_exec_sync_io_timeout = "2s"
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{cni}", "{dir}/bin"]
conf_dir = "{networks}"
[plugins.'io.containerd.cri.v1.images']
stats_collect_period = 1
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{registry}/pause:1"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{dir}/registry/hosts"
{extra}"#,
            cni = peers::dir().join("debian/usr/lib/cni").display(),
            dir = world.dir.display(),
            networks = networks.display(),
            registry = world.registry.host(),
        );
        let path = format!("{}:{}", world.dir.join("bin").display(), kind.search_path());
        let daemon = Setup::new(kind)
            .kubernetes()
            .extra(&config)
            .env("PATH", &path)
            .start();
        Self { daemon, world }
    }

    #[must_use]
    pub(crate) fn is_reference(&self) -> bool {
        self.daemon.kind != Kind::Corten
    }
}
