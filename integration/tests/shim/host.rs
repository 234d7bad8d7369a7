//! What a daemon is to its shims: a directory with bundles, an event socket, and the helpers `start` and `delete`.
//!
//! ```text
//! <base>/e.sock             where events are reported       <base>/s          shims' sockets
//! <base>/b/<namespace>/<id> bundles                         <base>/w/<id>     upper layers
//! ```
//! Everything carries the namespace, so that what was left behind is found, and cleared away by force when a test fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use corten_integration::ctr::Client as Ctr;
use corten_integration::peers::{self, Kind};
use corten_integration::process::{DEADLINE, eventually};
use corten_integration::{images, leaks};
use corten_protos::containerd::runtime::bootstrap::v1::{
    BootstrapParams, BootstrapResult, Extension,
};
use corten_protos::google::protobuf::Any;
use prost::Message;
use serde_json::{Value, json};
use ttrpc::asynchronous::Server;

use crate::container::{Container, Recipe};
use crate::events::Log;

/// How long mounts, cgroups and processes may take to go.
const SETTLE: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The document that `ctr` gives a container unless it is told otherwise.
static SPEC: LazyLock<Value> = LazyLock::new(|| {
    let ctr = Ctr::New.command(Path::new("/none"), "none", Path::new("/tmp"));
    serde_json::from_str(&ctr.words("oci spec").ok()).expect("ctr prints JSON")
});

/// How a daemon tells a shim what it needs to know at its start, and what it understands of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// 2.3 and later: messages both ways.
    Bootstrap,
    /// 1.7 to 2.2: options or nothing, and MAX_SHIM_VERSION; the answer is JSON. The task service is that of version 2.
    Json,
    /// 1.6: the same without the variable; the answer is the bare address.
    Plain,
}

/// See the file's note.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) base: PathBuf,
    pub(crate) namespace: String,
    pub(crate) events: Arc<Log>,
    binary: PathBuf,
    server: tokio::sync::Mutex<Option<Quiet>>,
}

/// A server has nothing to show.
struct Quiet(Server);

impl std::fmt::Debug for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

/// True when the stock shim is under test.
pub(crate) fn is_reference() -> bool {
    Kind::under_test() != Kind::Corten
}

/// Where this run keeps the one root file system of all containers.
pub(crate) fn shared_root() -> PathBuf {
    PathBuf::from(format!("/tmp/cit-{}-root", std::process::id()))
}

/// Unpacks the busybox image as that root.
pub(crate) fn unpack_root() {
    let image = images::busybox();
    for layer in image.layers() {
        let tar = flate2::read::GzDecoder::new(image.blobs[&layer].bytes.as_slice());
        tar::Archive::new(tar)
            .unpack(shared_root())
            .expect("unpack our own image");
    }
}

// === impl Host ===

impl Host {
    pub(crate) async fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let base = PathBuf::from(format!("/tmp/cit-{process}-s{number}"));
        let namespace = format!("cit{process}s{number}z");
        for part in ["s", "w", "n"] {
            fs::create_dir_all(base.join(part)).unwrap();
        }
        // What is to be cleared away is looked for by these names.
        fs::create_dir_all(base.join("n").join(&namespace)).unwrap();
        fs::create_dir_all(base.join("b").join(&namespace)).unwrap();
        let events = Arc::new(Log::default());
        let server = events.serve(&base.join("e.sock")).await;
        let binary = match Kind::under_test() {
            Kind::Corten => peers::ours("containerd-shim-corten-v2"),
            Kind::Reference | Kind::Debian => peers::reference("containerd-shim-runc-v2"),
        };
        Self {
            base,
            namespace,
            events,
            binary,
            server: tokio::sync::Mutex::new(Some(Quiet(server))),
        }
    }

    /// A container that runs `args`, to be changed before it is made.
    pub(crate) fn container(self: &Arc<Self>, id: &str, args: &[&str]) -> Recipe {
        let mut spec = SPEC.clone();
        spec["process"]["args"] = args.into();
        spec["process"]["env"] = ["PATH=/bin"].as_slice().into();
        spec["root"]["path"] = "rootfs".into();
        spec["linux"]["cgroupsPath"] = format!("/{}/{id}", self.namespace).into();
        Recipe::new(self.clone(), id, spec)
    }

    /// One that is made and started.
    pub(crate) async fn running(self: &Arc<Self>, id: &str, args: &[&str]) -> Container {
        let container = self.container(id, args).make().await;
        container.create().await.unwrap();
        container.start().await.unwrap();
        container
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.base.join("b").join(&self.namespace).join(id)
    }

    /// The daemon's address, part of the name of every shim's socket.
    pub(crate) fn address(&self) -> PathBuf {
        self.base.join("c.sock")
    }

    /// Runs `start`; gives its answer.
    pub(crate) async fn start(
        &self,
        id: &str,
        options: Option<&Any>,
        socket_dir: Option<&Path>,
    ) -> BootstrapResult {
        let default = self.base.join("s");
        let extensions = options.map(|o| Extension {
            value: Some(o.clone()),
        });
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: self.namespace.clone(),
            containerd_version: "2.4.2".to_owned(),
            containerd_ttrpc_address: self.base.join("e.sock").display().to_string(),
            containerd_grpc_address: self.address().display().to_string(),
            extensions: extensions.into_iter().collect(),
            socket_dir: Some(socket_dir.unwrap_or(&default).display().to_string()),
            ..BootstrapParams::default()
        };
        let stdin = params.encode_to_vec();
        let done = self.helper(Dialect::Bootstrap, id, "start", stdin).await;
        assert!(done.status.success(), "start {id}: {}", shown(&done));
        BootstrapResult::decode(done.stdout.as_slice())
            .unwrap_or_else(|e| panic!("the answer of start {id}: {e}: {}", shown(&done)))
    }

    /// Runs `start` as daemons before 2.3 do; gives the address.
    pub(crate) async fn start_as(
        &self,
        dialect: Dialect,
        id: &str,
        options: Option<&Any>,
    ) -> String {
        let stdin = options.map(Any::encode_to_vec).unwrap_or_default();
        let done = self.helper(dialect, id, "start", stdin).await;
        assert!(done.status.success(), "start {id}: {}", shown(&done));
        let text = String::from_utf8(done.stdout.clone()).unwrap();
        if dialect == Dialect::Plain {
            assert!(text.starts_with("unix:///"), "{}", shown(&done));
            return text;
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&answer["version"], &answer["protocol"]),
            (&json!(2), &json!("ttrpc"))
        );
        answer["address"].as_str().expect("an address").to_owned()
    }

    /// Runs one of the shim's commands in a bundle, as daemons do.
    pub(crate) async fn helper(
        &self,
        dialect: Dialect,
        id: &str,
        action: &str,
        stdin: Vec<u8>,
    ) -> Output {
        let mut command = Command::new(&self.binary);
        command
            .args(["-namespace", &self.namespace, "-id", id])
            .arg("-address")
            .arg(self.address())
            .args(["-publish-binary", ""])
            .env("PATH", peers::search_path())
            .env("TTRPC_ADDRESS", self.base.join("e.sock"))
            .env("GRPC_ADDRESS", self.address())
            .env("NAMESPACE", &self.namespace)
            .env_remove("MAX_SHIM_VERSION")
            .current_dir(self.bundle(id))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if dialect != Dialect::Plain {
            command.env("MAX_SHIM_VERSION", "2");
        }
        if action == "delete" {
            command.arg("-bundle").arg(self.bundle(id));
        }
        command.arg(action);
        let run = move || {
            use std::io::Write;
            let mut child = command.spawn()?;
            if let Some(mut pipe) = child.stdin.take() {
                // One that reads nothing closes it early.
                let _ = pipe.write_all(&stdin);
            }
            child.wait_with_output()
        };
        let done = tokio::task::spawn_blocking(run).await;
        done.expect("it does not panic")
            .expect("the shim is a program")
    }

    /// What is left of all containers; empty when all went well.
    fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (pid, line) in leaks::processes_naming(&self.namespace) {
            found.push(format!("process {pid}: {line}"));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let base = self.base.display().to_string();
        let points = mounts.lines().filter_map(|l| l.split(' ').nth(4));
        found.extend(
            points
                .filter(|p| p.contains(&base))
                .map(|p| format!("mount {p}")),
        );
        for hierarchy in list(Path::new("/sys/fs/cgroup")) {
            for cgroup in list(&hierarchy.join(&self.namespace)) {
                if cgroup.is_dir() {
                    found.push(format!("cgroup {}", cgroup.display()));
                }
            }
        }
        let (what, place) = match is_reference() {
            false => ("socket", self.base.join("s")),
            // That of a stock shim that was killed stays, until another takes its name.
            true => (
                "runc state",
                Path::new("/run/containerd/runc").join(&self.namespace),
            ),
        };
        found.extend(
            list(&place)
                .iter()
                .map(|s| format!("{what} {}", s.display())),
        );
        found
    }

    /// Stops serving and says what was left behind.
    pub(crate) async fn finish(&self) -> Vec<String> {
        let left = leaks::settle(SETTLE, || self.left());
        self.close_events().await;
        left
    }

    /// From now on nobody takes events.
    pub(crate) async fn close_events(&self) {
        if let Some(mut server) = self.server.lock().await.take() {
            let _ = server.0.shutdown().await;
            let _ = fs::remove_file(self.base.join("e.sock"));
        }
    }

    /// Takes events again, as a daemon does that came back.
    pub(crate) async fn open_events(&self) {
        let server = self.events.serve(&self.base.join("e.sock")).await;
        *self.server.lock().await = Some(Quiet(server));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::env::var_os("CORTEN_KEEP").is_some() {
            return;
        }
        leaks::clear_away(&self.base);
        leaks::remove_namespace_cgroups(&self.namespace);
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
    }
}

/// The text of what a helper said.
pub(crate) fn shown(done: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}: {:?} {:?}",
        done.status,
        text(&done.stdout),
        text(&done.stderr)
    )
}

/// What is in a directory, if there is one.
pub(crate) fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).collect()
}

/// Waits until `holds`; for what has no event.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool + Send + 'static) {
    let look = move || eventually(DEADLINE, || holds().then_some(()));
    let found = tokio::task::spawn_blocking(look)
        .await
        .expect("it does not panic");
    assert!(found.is_some(), "not in time: {what}");
}
