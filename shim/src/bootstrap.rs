//! Owns `start`: reads what the daemon sends, finds the group, binds the socket, spawns the server, prints the answer.
//!
//! Three dialects, told apart by stdin (features of containerd 1.6 to 2.4):
//!
//! | stdin | daemon | answer |
//! |---|---|---|
//! | `BootstrapParams` whose instance_id is our `-id` | 2.3 and later | `BootstrapResult`, version 3 |
//! | `Any` or nothing, MAX_SHIM_VERSION set | 1.7 to 2.2 | JSON, version 2 (1.7 refuses 3) |
//! | `Any` or nothing | 1.6 | the bare address |
//!
//! An old `Any` also decodes as `BootstrapParams` (type_url is field 1), hence the comparison with `-id`.
//! Nothing but the answer is printed: the daemon reads stdout and stderr as one text. The server is a re-exec of this
//! program with the listener as its stdin, so that no other descriptor of this helper reaches it.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use corten_protos::containerd::runc::v1::Options as RuncOptions;
use corten_protos::containerd::runtime::bootstrap::v1::{
    BootstrapParams, BootstrapResult, Extension,
};
use corten_protos::containerd::types::MountCapabilities;
use corten_protos::google::protobuf::Any;
use corten_protos::runtimeoptions::v1::Options as GenericOptions;
use prost::Message;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::bundle;
use crate::error::{Context, Error, Result};
use crate::flags::Flags;
use crate::options::Options;
use crate::server;
use crate::socket::{self, Bound};

/// A daemon never sends more than a few KiB here.
const MAX_STDIN: u64 = 4 << 20;

/// Annotations that put containers into one shim, in order of preference.
const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// How the daemon wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Proto,
    Json,
    Plain,
}

/// What stdin said.
#[derive(Debug)]
pub(crate) struct Request {
    dialect: Dialect,
    options: Options,
    ttrpc_address: String,
    grpc_address: String,
    socket_dir: String,
    debug: bool,
}

/// Runs `start`; the bytes belong on stdout.
pub(crate) fn start(flags: &Flags) -> Result<Vec<u8>> {
    if flags.id.is_empty() || flags.namespace.is_empty() {
        return Err(Error::invalid("start: -id and -namespace are required"));
    }
    let mut stdin = Vec::new();
    std::io::stdin()
        .take(MAX_STDIN)
        .read_to_end(&mut stdin)
        .context("read bootstrap parameters")?;
    let request = Request::parse(&stdin, flags)?;

    let bundle = std::env::current_dir().context("find the bundle")?;
    // CreateSandbox brings none of its own; the Create of a task does, and writes them again.
    bundle::write_options(&bundle, &request.options)?;
    let group = group(&bundle, &flags.id)?;
    let path = socket::path(
        &request.socket_dir,
        &request.grpc_address,
        &flags.namespace,
        &group,
    );
    let address = format!("unix://{}", path.display());
    if let Bound::Fresh(listener) = socket::bind(&path)? {
        let spawned = prepare_surroundings(&request.options)
            .and_then(|()| spawn_server(flags, &request, &bundle, listener.into()));
        if let Err(e) = spawned {
            // Nobody will ever accept there.
            let _ = socket::remove(&path);
            return Err(e);
        }
    }
    std::fs::write(bundle.join("address"), &address).context("write the address file")?;
    Ok(answer(request.dialect, &address))
}

/// What the daemon reads from stdout.
fn answer(dialect: Dialect, address: &str) -> Vec<u8> {
    match dialect {
        Dialect::Proto => BootstrapResult {
            version: 3,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            // Nothing beyond what the kernel mounts. Said, so that the daemon need not run `-info` to find out.
            extensions: vec![Extension {
                value: Some(corten_protos::any::pack(&MountCapabilities::default())),
            }],
            ..BootstrapResult::default()
        }
        .encode_to_vec(),
        Dialect::Json => {
            serde_json::json!({ "version": 2, "address": address, "protocol": "ttrpc" })
                .to_string()
                .into_bytes()
        }
        Dialect::Plain => address.as_bytes().to_vec(),
    }
}

/// The group's name: from the spec's annotations, or the id itself. A sandbox without a spec has no config.json.
pub(crate) fn group(bundle: &Path, id: &str) -> Result<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Annotated {
        annotations: Option<std::collections::BTreeMap<String, String>>,
    }
    let text = match std::fs::read(bundle.join("config.json")) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(e) => return Err(e).context("read config.json"),
    };
    let spec: Annotated = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(format!("parse config.json: {e}")))?;
    let mut annotations = spec.annotations.unwrap_or_default();
    Ok(GROUP_ANNOTATIONS
        .iter()
        .find_map(|key| annotations.remove(*key))
        .unwrap_or_else(|| id.to_owned()))
}

/// Sets on this helper what the server is to inherit: core scheduling, cgroup, OOM score.
fn prepare_surroundings(options: &Options) -> Result<()> {
    if std::env::var_os("SCHED_CORE").is_some_and(|v| !v.is_empty()) {
        rustix::thread::create_core_scheduling_cookie(
            rustix::process::getpid(),
            rustix::thread::CoreSchedulingScope::Thread,
        )
        .context("enable sched core support")?;
    }
    if !options.shim_cgroup.is_empty() {
        join_cgroup(Path::new("/sys/fs/cgroup"), &options.shim_cgroup)?;
    }
    // The kernel lets anyone raise the score; where even that is refused the shim lives with the inherited one.
    if let Some(parent) = rustix::process::getppid() {
        let path = format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero());
        let score: i32 = std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        let _ = std::fs::write(
            "/proc/self/oom_score_adj",
            (score + 1).min(1000).to_string(),
        );
    }
    Ok(())
}

/// Moves this process into an existing cgroup of every hierarchy that has it.
fn join_cgroup(mounts: &Path, name: &str) -> Result<()> {
    let name = name.trim_start_matches('/');
    if mounts.join("cgroup.procs").exists() {
        return std::fs::write(mounts.join(name).join("cgroup.procs"), "0")
            .context(format!("failed to join cgroup {name}"));
    }
    let mut joined = 0;
    for hierarchy in std::fs::read_dir(mounts).context("list cgroup hierarchies")? {
        let hierarchy = hierarchy.context("list cgroup hierarchies")?;
        // Named twice when controllers share a mount; the link leads to the same place.
        if hierarchy.path().is_symlink() {
            continue;
        }
        let procs = hierarchy.path().join(name).join("cgroup.procs");
        if procs.exists() {
            std::fs::write(&procs, "0").context(format!("failed to join cgroup {name}"))?;
            joined += 1;
        }
    }
    match joined {
        0 => Err(Error::not_found(format!(
            "failed to load cgroup {name}: cgroup deleted"
        ))),
        _ => Ok(()),
    }
}

/// Starts the long-lived process. It keeps nothing of ours but the listener and the log.
fn spawn_server(flags: &Flags, request: &Request, bundle: &Path, listener: OwnedFd) -> Result<()> {
    let named = std::env::current_exe().context("find this program")?;
    // What a container could reach as /proc/<pid>/exe must not be the file on disk.
    let sealed = corten_launch::exe::sealed(&named, bundle);
    let (program, unsealed) = match &sealed {
        Ok(fd) => (format!("/proc/self/fd/{}", fd.as_raw_fd()), None),
        Err(e) => ("/proc/self/exe".to_owned(), Some(e.to_string())),
    };
    let log = match rustix::fs::open(
        bundle.join("log"),
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fifo) => Stdio::from(fifo),
        Err(_) => Stdio::null(),
    };
    let mut command = Command::new(program);
    command
        .arg0(&named)
        .args(["-namespace", &flags.namespace])
        .args(["-id", &flags.id])
        .args(["-address", &request.grpc_address]);
    if flags.debug || request.debug {
        command.arg("-debug");
    }
    command
        .current_dir("/")
        .env_clear()
        .env("TTRPC_ADDRESS", &request.ttrpc_address)
        .env("GRPC_ADDRESS", &request.grpc_address)
        .env("NAMESPACE", &flags.namespace)
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(unsealed.map(|why| (server::UNSEALED, why)))
        // One thread, a heap of some hundred KiB: give back what a burst took.
        .env(
            "GLIBC_TUNABLES",
            "glibc.malloc.arena_max=1:glibc.malloc.top_pad=16384:glibc.malloc.trim_threshold=32768",
        )
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map(drop)
        .context("start the shim")
}

// === impl Request ===

impl Request {
    pub(crate) fn parse(stdin: &[u8], flags: &Flags) -> Result<Self> {
        let environment = |key| std::env::var(key).unwrap_or_default();
        if let Some(params) = bootstrap_params(stdin, &flags.id) {
            let options = params
                .extensions
                .iter()
                .filter_map(|extension| extension.value.as_ref())
                .find(|any| {
                    corten_protos::any::is::<RuncOptions>(any)
                        || corten_protos::any::is::<GenericOptions>(any)
                });
            return Ok(Self {
                dialect: Dialect::Proto,
                options: Options::from_any(options)?,
                ttrpc_address: params.containerd_ttrpc_address,
                grpc_address: first(params.containerd_grpc_address, &flags.address),
                socket_dir: params.socket_dir.unwrap_or_default(),
                debug: params.log_level <= LOG_LEVEL_DEBUG,
            });
        }
        let any = Any::decode(stdin)
            .map_err(|e| Error::invalid(format!("parse runtime options on stdin: {e}")))?;
        let newer = !environment("MAX_SHIM_VERSION").is_empty();
        Ok(Self {
            dialect: if newer { Dialect::Json } else { Dialect::Plain },
            options: Options::from_any(Some(&any))?,
            ttrpc_address: environment("TTRPC_ADDRESS"),
            grpc_address: first(flags.address.clone(), &environment("GRPC_ADDRESS")),
            socket_dir: String::new(),
            debug: false,
        })
    }
}

/// containerd's slog-like number.
const LOG_LEVEL_DEBUG: i32 = -4;

fn bootstrap_params(stdin: &[u8], id: &str) -> Option<BootstrapParams> {
    BootstrapParams::decode(stdin)
        .ok()
        .filter(|params| params.instance_id == id)
}

fn first(a: String, b: &str) -> String {
    if a.is_empty() { b.to_owned() } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_protos::any::pack;

    fn flags() -> Flags {
        Flags {
            namespace: "n".into(),
            id: "web".into(),
            address: "/run/c.sock".into(),
            ..Flags::default()
        }
    }

    #[test]
    fn params_for_this_id_are_the_new_dialect() {
        let options = RuncOptions {
            systemd_cgroup: true,
            ..RuncOptions::default()
        };
        let params = BootstrapParams {
            instance_id: "web".into(),
            namespace: "n".into(),
            containerd_grpc_address: "/run/d.sock".into(),
            containerd_ttrpc_address: "/run/d.sock.ttrpc".into(),
            socket_dir: Some("/x/s".into()),
            extensions: vec![Extension {
                value: Some(pack(&options)),
            }],
            ..BootstrapParams::default()
        };
        let got = Request::parse(&params.encode_to_vec(), &flags()).unwrap();
        assert_eq!(got.dialect, Dialect::Proto);
        assert!(got.options.systemd_cgroup && !got.debug);
        assert_eq!(
            (got.grpc_address.as_str(), got.socket_dir.as_str()),
            ("/run/d.sock", "/x/s")
        );
        let result = BootstrapResult::decode(answer(got.dialect, "unix:///s").as_slice()).unwrap();
        assert_eq!(
            (
                result.version,
                result.protocol.as_str(),
                result.address.as_str()
            ),
            (3, "ttrpc", "unix:///s")
        );
        let said = result.extensions[0].value.as_ref().unwrap();
        let mounts: MountCapabilities = corten_protos::any::unpack(said).unwrap();
        assert!(mounts.types.is_empty() && mounts.transforms.is_empty());
    }

    #[test]
    fn an_old_any_is_not_mistaken_for_params() {
        let options = RuncOptions {
            no_pivot_root: true,
            ..RuncOptions::default()
        };
        let stdin = pack(&options).encode_to_vec();
        assert!(
            BootstrapParams::decode(stdin.as_slice()).is_ok(),
            "the trap this test is about"
        );
        let got = Request::parse(&stdin, &flags()).unwrap();
        assert_ne!(got.dialect, Dialect::Proto);
        assert!(got.options.no_pivot_root);
        assert_eq!(got.grpc_address, "/run/c.sock");
    }

    #[test]
    fn empty_stdin_is_an_old_daemon_without_options() {
        let got = Request::parse(b"", &flags()).unwrap();
        assert_ne!(got.dialect, Dialect::Proto);
        assert_eq!(got.options, Options::default());
    }

    #[test]
    fn old_answers_are_text() {
        assert_eq!(answer(Dialect::Plain, "unix:///s"), b"unix:///s");
        let json: serde_json::Value =
            serde_json::from_slice(&answer(Dialect::Json, "unix:///s")).unwrap();
        assert_eq!(json["version"], 2);
        assert_eq!(json["address"], "unix:///s");
    }

    #[test]
    fn the_group_comes_from_the_annotations() {
        let dir = std::env::temp_dir().join(format!("corten-group-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let check = |spec: &str, want: &str| {
            std::fs::write(dir.join("config.json"), spec).unwrap();
            assert_eq!(group(&dir, "me").unwrap(), want, "{spec}");
        };
        check("{}", "me");
        check(r#"{"annotations":null}"#, "me");
        check(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
            "pod",
        );
        check(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
            "g",
        );
        std::fs::remove_file(dir.join("config.json")).unwrap();
        assert_eq!(group(&dir, "me").unwrap(), "me");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
