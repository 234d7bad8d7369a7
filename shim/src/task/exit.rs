//! Owns what happens when a process ends: collect, order, record, tell.
//!
//! An exit is told only after the event of the step before it (the process' `order` lock), and init's only after every
//! exec of its container has been told: first whatever shares its pid namespace is killed, then the execs are awaited.

use std::rc::Rc;

use corten_protos::containerd::events::TaskExit;
use corten_protos::time;

use super::process::Process;
use super::{Container, Shim};
use crate::bundle::{self, Exit};
use crate::log;

/// Status of a process somebody else collected. Cannot happen while the reaper keeps its promise.
const LOST: u32 = 255;

/// Follows init from its creation on.
pub(crate) async fn watch_init(shim: Rc<Shim>, container: Rc<Container>) {
    let init = container.init.clone();
    let Some(exit) = collect(&shim, &container, &init).await else {
        return;
    };
    container.init_gone.set(true);
    if !container.private_pids
        && let Err(e) = container.cgroup.kill()
    {
        log::warning!("container {}: kill init's children: {e}", container.id);
    }
    while container.live_execs.get() > 0 {
        container.exec_ended.notified().await;
    }
    let _order = init.order.lock().await;
    container.oom.look(&container, &shim.events);
    if let Err(e) = bundle::write_exit(&container.bundle, &exit) {
        log::warning!("container {}: {e}", container.id);
    }
    tell(&shim, &container, &init, exit);
}

/// Follows an exec from its start on.
pub(crate) async fn watch_exec(shim: Rc<Shim>, container: Rc<Container>, exec: Rc<Process>) {
    if let Some(exit) = collect(&shim, &container, &exec).await {
        let _order = exec.order.lock().await;
        tell(&shim, &container, &exec, exit);
    }
    container.exec_gone();
}

async fn collect(shim: &Shim, container: &Container, process: &Process) -> Option<Exit> {
    let pidfd = process.pidfd.get()?;
    let status = match shim.reaper.exit(pidfd).await {
        Ok(exit) => exit.code,
        Err(e) => {
            log::failure!(
                "container {}: collect pid {}: {e}",
                container.id,
                pidfd.pid()
            );
            LOST
        }
    };
    Some(Exit {
        pid: process.pid(),
        status,
        at: time::now(),
    })
}

fn tell(shim: &Shim, container: &Container, process: &Process, exit: Exit) {
    process.set_exit(exit);
    let id = match process.exec_id.as_str() {
        "" => &container.id,
        exec => exec,
    };
    shim.events.publish(&TaskExit {
        container_id: container.id.clone(),
        id: id.to_owned(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: Some(exit.at),
    });
}
