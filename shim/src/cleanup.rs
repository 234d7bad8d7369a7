//! Owns `delete`: makes one container go away without its shim, and says how it ended.
//!
//! The daemon runs it when the connection to a shim drops, at boot for shims that do not answer, and after every normal
//! Delete as well, while siblings live in the same shim. So it touches only what carries its own id: the container's
//! cgroup, rootfs mount and hooks, and the socket only when nobody listens there. Each step tolerates that it is done.

use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_oci::{Cgroup, cgroup};
use corten_protos::containerd::task::v3::DeleteResponse;
use corten_protos::time;
use prost::Message;

use crate::bundle::{self, Exit};
use crate::error::{Context, Error, Result};
use crate::flags::Flags;
use crate::{hooks, rootfs, server, socket, task};

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
        let options = cgroup::Options {
            systemd: bundle::read_options(&bundle).systemd_cgroup,
        };
        match Cgroup::open(spec, &flags.id, &options) {
            Ok(cgroup) => {
                let killed = cgroup.kill().context("kill the container's processes");
                problems.extend(killed.err());
                let removed = task::init::remove_cgroup(&cgroup, CGROUP_PATIENCE).await;
                problems.extend(removed.err());
            }
            Err(e) => problems.push(Error::from(e).context("open cgroup")),
        }
    }
    let at = time::now();
    if let Err(e) = rootfs::unmount(&bundle.join("rootfs")) {
        problems.push(Error::from(e).context("cleanup rootfs mount"));
    }
    remove_dead_socket(&bundle);
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

/// The bundle of `-id`: given, or the sibling of the working directory that bears its name.
fn find_bundle(flags: &Flags) -> Result<PathBuf> {
    if !flags.bundle.is_empty() {
        return Ok(PathBuf::from(&flags.bundle));
    }
    let here = std::env::current_dir().context("find the bundle")?;
    Ok(here.parent().unwrap_or(&here).join(&flags.id))
}

/// Removes the socket this bundle names, unless a shim answers there: siblings may live in it.
fn remove_dead_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join("address")) else {
        return;
    };
    if let Some(path) = address.trim().strip_prefix("unix://") {
        let path = Path::new(path);
        if !socket::is_live(path) {
            let _ = socket::remove(path);
        }
    }
}
