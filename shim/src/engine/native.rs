//! Owns what the built-in engine needs an event loop or the shim's files for.

use std::path::Path;
use std::time::Duration;

use corten_oci::{Agent, Cgroup, Rdt, Spec, hooks};

use crate::bundle;
use crate::error::{Context, Error, Result};
use crate::hooks::Subject;
use crate::log;

/// Longest time a freeze may take before it is given up. A process that waits for a disk or a FUSE daemon cannot be
/// stopped before that comes.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Freezes a cgroup; on failure it goes on as it did.
pub(crate) async fn freeze(cgroup: &Cgroup) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    loop {
        match cgroup.freeze() {
            Ok(true) => return Ok(()),
            Ok(false) if waited < FREEZE_LIMIT => {}
            outcome => {
                // What cannot be thawed either was hardly frozen.
                let _ = cgroup.thaw();
                outcome?;
                return Err(Error::unknown(format!(
                    "unable to freeze {} within {FREEZE_LIMIT:?}",
                    cgroup.path()
                )));
            }
        }
        // Neither freezer tells when it is done: v1 has no event at all.
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The agent for the seccomp listener of process `pid`, if its filter notifies.
pub(crate) fn agent(subject: Subject<'_>, pid: i32) -> Result<Option<Agent>> {
    let state = hooks::State {
        oci_version: &subject.spec.oci_version,
        id: subject.id,
        status: subject.status,
        pid: subject.pid,
        bundle: subject
            .bundle
            .to_str()
            .ok_or_else(|| Error::invalid("the bundle's path is not UTF-8"))?,
        annotations: &subject.spec.annotations,
    };
    Ok(Agent::of(subject.spec, pid, &state)?)
}

/// Makes the container's resctrl groups and moves its first process in, which must not run its program yet.
pub(crate) fn join_rdt(spec: &Spec, id: &str, pid: i32) -> Result<()> {
    match Rdt::open(spec, id)? {
        None => Ok(()),
        Some(rdt) => Ok(rdt.create(spec).and_then(|()| rdt.join(pid))?),
    }
}

/// Removes what `join_rdt` made.
pub(crate) fn remove_rdt(bundle: &Path, id: &str) {
    let removed = bundle::read_spec(bundle).and_then(|spec| {
        let rdt = Rdt::open(&spec, id)?;
        rdt.map_or(Ok(()), |rdt| rdt.delete())
            .context("remove resctrl groups")
    });
    if let Err(e) = removed {
        log::warning!("container {id}: {e}");
    }
}
