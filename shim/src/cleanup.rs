//! Owns `delete`: makes one container go away without its shim, and says how it ended.
//!
//! The daemon runs it when the connection to a shim drops, at boot for shims that do not answer, and after every normal
//! Delete as well, while siblings live in the same shim. So it touches only what carries its own id: the container's
//! cgroup, rootfs mount and hooks, and the socket only when nobody listens there. Each step tolerates that it is done.
//!
//! With one exception: the id that a group is named after takes along the processes and mounts of whoever was served
//! at the same address, if nobody listens there. Daemons before 2.4 run no other `delete` for a pod whose shim died.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use corten_oci::{Cgroup, Spec, cgroup};
use corten_protos::containerd::task::v3::DeleteResponse;
use corten_protos::time;
use prost::Message;

use crate::bundle::{self, Exit};
use crate::engine::{binary::Binary, native};
use crate::error::{Context, Error, Result};
use crate::flags::Flags;
use crate::{bootstrap, criu, hooks, rootfs, sandbox, server, socket, task};

/// Killed, as far as anybody knows.
const SIGKILLED: u32 = 128 + 9;

/// The daemon gives the whole command 5 s.
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// Runs `delete`; the bytes belong on stdout.
pub(crate) fn delete(flags: &Flags) -> Result<Vec<u8>> {
    server::block_on(take_apart(flags))?
}

async fn take_apart(flags: &Flags) -> Result<Vec<u8>> {
    if flags.id.is_empty() || flags.id.contains('/') {
        return Err(Error::invalid("delete: -id is required"));
    }
    let bundle = find_bundle(flags)?;
    let spec = bundle::read_spec(&bundle);
    let mut problems = Vec::new();
    // Without a process there never was a container: a Create that was refused because the cgroup is in use must not
    // cost those who use it their lives.
    let existed = bundle::read_init_pid(&bundle).is_some();
    if let Ok(spec) = &spec
        && existed
    {
        problems.extend(end_processes(spec, &flags.namespace, &flags.id, &bundle).await);
    }
    let at = time::now();
    // Of a restore that was under way.
    if let Err(e) = rootfs::unmount(&criu::root(&bundle)) {
        problems.push(Error::from(e).context("cleanup criu-root mount"));
    }
    if let Err(e) = rootfs::unmount(&bundle.join("rootfs")) {
        problems.push(Error::from(e).context("cleanup rootfs mount"));
    }
    sandbox::remove_files(&bundle);
    if let Some(address) = remove_dead_socket(&bundle)
        && bootstrap::group(&bundle, &flags.id).is_ok_and(|group| group == flags.id)
    {
        end_group(&bundle, &flags.namespace, &flags.id, &address).await;
    }
    // After the kill, as the specification has it; the hooks of a container whose shim died have not run yet.
    if let Ok(spec) = &spec
        && !spec.hooks.poststop.is_empty()
        && existed
        && bundle::claim_poststop(&bundle)
    {
        hooks::poststop(spec, &flags.id, &bundle).await;
    }
    for problem in &problems {
        crate::log::warning!("delete {}: {problem}", flags.id);
    }
    let exit = bundle::read_exit(&bundle).unwrap_or_else(|| Exit {
        pid: bundle::read_init_pid(&bundle).unwrap_or(0),
        status: SIGKILLED,
        at,
    });
    Ok(DeleteResponse {
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: Some(exit.at),
    }
    .encode_to_vec())
}

/// Kills what is in a container's cgroup, and removes that. Says what went wrong.
async fn end_processes(spec: &Spec, namespace: &str, id: &str, bundle: &Path) -> Vec<Error> {
    let kept = bundle::read_options(bundle);
    let reaper = Rc::default();
    if let Some(binary) = Binary::of(&kept, namespace, id, bundle, &reaper) {
        // That runs the poststop hooks, too.
        let _ = bundle::claim_poststop(bundle);
        let deleted = binary.delete(true).await.context("delete the container");
        return deleted.err().into_iter().collect();
    }
    native::remove_rdt(bundle, id);
    let options = cgroup::Options {
        systemd: kept.systemd_cgroup,
    };
    let cgroup = match Cgroup::open(spec, id, &options) {
        Ok(cgroup) => cgroup,
        Err(e) => return vec![Error::from(e).context("open cgroup")],
    };
    let killed = cgroup.kill().context("kill the container's processes");
    let removed = task::init::remove_cgroup(&cgroup, CGROUP_PATIENCE).await;
    killed.err().into_iter().chain(removed.err()).collect()
}

/// The bundle of `-id`: given, or the sibling of the working directory that bears its name.
fn find_bundle(flags: &Flags) -> Result<PathBuf> {
    if !flags.bundle.is_empty() {
        return Ok(PathBuf::from(&flags.bundle));
    }
    let here = std::env::current_dir().context("find the bundle")?;
    Ok(here.parent().unwrap_or(&here).join(&flags.id))
}

/// Removes the socket this bundle names, unless a shim answers there: siblings may live in it. Says the address of one
/// that was left behind: a shim that ends in order removes its own.
fn remove_dead_socket(bundle: &Path) -> Option<String> {
    let address = std::fs::read_to_string(bundle.join("address")).ok()?;
    let path = Path::new(address.trim().strip_prefix("unix://")?);
    if !path.exists() || socket::is_live(path) {
        return None;
    }
    let _ = socket::remove(path);
    Some(address.trim().to_owned())
}

/// Ends what is left of the containers that were served at `address`; the rest of them is left to their own `delete`.
async fn end_group(bundle: &Path, namespace: &str, id: &str, address: &str) {
    for sibling in siblings(bundle) {
        let name = sibling.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| *name != id) else {
            continue;
        };
        if !is_served_at(&sibling, address) {
            continue;
        }
        let Ok(spec) = bundle::read_spec(&sibling) else {
            continue;
        };
        for problem in end_processes(&spec, namespace, name, &sibling).await {
            crate::log::warning!("delete {id}: end {name}: {problem}");
        }
        if let Err(e) = rootfs::unmount(&sibling.join("rootfs")) {
            crate::log::warning!("delete {id}: unmount the rootfs of {name}: {e}");
        }
    }
}

/// The other bundles of the namespace: beside this one, and where a sandbox's containers are.
fn siblings(bundle: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if let Some(here) = bundle.parent() {
        dirs.push(here.to_owned());
        let namespace = here.file_name();
        if let (Some(state), Some(namespace)) = (here.parent().and_then(Path::parent), namespace) {
            let tasks = state.join("io.containerd.runtime.v2.task").join(namespace);
            if tasks != here {
                dirs.push(tasks);
            }
        }
    }
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok());
    entries.flatten().flatten().map(|e| e.path()).collect()
}

/// Whether the daemon reached a container there: it keeps what `start` answered, as JSON or as the bare address.
fn is_served_at(bundle: &Path, address: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        address: String,
    }
    let kept = std::fs::read(bundle.join("bootstrap.json")).ok();
    let kept = kept.and_then(|text| serde_json::from_slice::<Answer>(&text).ok());
    match kept {
        Some(answer) => answer.address == address,
        None => std::fs::read_to_string(bundle.join("address")).is_ok_and(|a| a.trim() == address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn siblings_are_known_by_their_address() {
        let state = std::env::temp_dir().join(format!("corten-siblings-{}", std::process::id()));
        let dir = |plugin: &str, id: &str| state.join(plugin).join("k8s.io").join(id);
        let pod = dir("io.containerd.sandbox.controller.v1.shim", "pod");
        let make = |id: &str, file: &str, text: &str| {
            let bundle = dir("io.containerd.runtime.v2.task", id);
            fs::create_dir_all(&bundle).unwrap();
            fs::write(bundle.join(file), text).unwrap();
        };
        fs::create_dir_all(&pod).unwrap();
        make(
            "a",
            "bootstrap.json",
            r#"{"version":3,"address":"unix:///s/1","protocol":"ttrpc"}"#,
        );
        make("b", "address", "unix:///s/1\n");
        make("c", "address", "unix:///s/2");
        let mut served: Vec<String> = siblings(&pod)
            .iter()
            .filter(|bundle| is_served_at(bundle, "unix:///s/1"))
            .map(|bundle| bundle.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        served.sort();
        assert_eq!(served, ["a", "b"]);
        fs::remove_dir_all(state).unwrap();
    }
}
