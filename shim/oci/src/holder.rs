//! Owns the plan of a pod's holder: a process without a program that keeps the pod's namespaces.
//!
//! ```text
//! cgroup, namespaces, session, host name, sysctl | root on an empty read-only tmpfs | no capabilities | HOLD
//! ```
//! It takes from the document what concerns namespaces: `linux.namespaces` and maps, hostname, domainname, sysctl,
//! `cgroupsPath`. Containers may see it (a shared pid namespace has it as pid 1), hence the empty root.

use crate::init::MOUNT;
use crate::mounts::{MS_PRIVATE, MS_REC, RDONLY};
use crate::namespaces::{self, Kinds, NEWCGROUP, NEWNS, NEWUTS};
use crate::spec::Namespace;
use crate::{Cgroup, Error, Result, Spec};
use corten_launch::{Caps, Fd, FsOption, Op, Plan, cstr};

const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;

/// Plan of the holder; without a cgroup it stays in that of this process. It is ready when it holds.
pub fn plan_holder(
    spec: &Spec,
    cgroup: Option<&Cgroup>,
    oom_score_adj: Option<i32>,
) -> Result<Plan> {
    let mut spec = spec.clone();
    // Its mounts are its own; what the document says of them is for containers.
    let own = |ns: &Namespace| !matches!(ns.kind.as_str(), "mount" | "cgroup");
    spec.linux.namespaces.retain(own);
    spec.linux.namespaces.push(Namespace {
        kind: "mount".into(),
        ..Namespace::default()
    });
    let mut plan = Plan {
        oom_score_adj,
        ..Plan::default()
    };
    if let Some(cgroup) = cgroup {
        cgroup.join(&mut plan)?;
    }
    let kinds = namespaces::plan(&spec, &mut plan)?;
    debug_assert!(kinds.has(NEWNS) && !kinds.has(NEWCGROUP));
    plan.push(Op::SetSid, "setsid");
    names(&spec, kinds, &mut plan)?;
    namespaces::sysctl(&spec, kinds, &mut plan)?;
    empty_root(&mut plan);
    plan.push(Op::BoundingSet(0), "drop capabilities");
    plan.push(Op::SetCaps(Caps::default()), "drop capabilities");
    plan.push(Op::NoNewPrivs, "set no_new_privs");
    let arguments = corten_launch::arguments();
    plan.push(Op::Hold { arguments }, "hold");
    Ok(plan)
}

fn names(spec: &Spec, kinds: Kinds, plan: &mut Plan) -> Result<()> {
    if spec.hostname.is_empty() && spec.domainname.is_empty() {
        return Ok(());
    }
    if !kinds.has(NEWUTS) {
        return Err(Error::invalid(
            "unable to set hostname or domainname without a private UTS namespace",
        ));
    }
    if !spec.hostname.is_empty() {
        let name = spec.hostname.clone().into_bytes();
        plan.push(Op::SetHostname(name), "set hostname");
    }
    if !spec.domainname.is_empty() {
        let name = spec.domainname.clone().into_bytes();
        plan.push(Op::SetDomainname(name), "set domainname");
    }
    Ok(())
}

fn empty_root(plan: &mut Plan) {
    let label = "enter an empty root";
    let path = cstr("/");
    plan.push(
        Op::Propagation {
            path,
            flags: MS_PRIVATE | MS_REC,
        },
        label,
    );
    let option = |key: &str, value: &str| FsOption {
        key: cstr(key),
        value: Some(cstr(value)),
    };
    plan.push(
        Op::FsMount {
            fstype: cstr("tmpfs"),
            // Some 5.4 kernels want a second inode.
            options: vec![
                option("source", "holder"),
                option("nr_blocks", "1"),
                option("nr_inodes", "2"),
            ],
            attrs: RDONLY | NOSUID | NODEV | NOEXEC,
            out: MOUNT,
        },
        label,
    );
    let root = Fd::Slot(MOUNT);
    // Any directory that every host has.
    let path = cstr("/dev");
    plan.push(Op::AttachAt { mount: root, path }, label);
    plan.push(Op::PivotRoot { root }, label);
    plan.push(Op::Close(MOUNT), label);
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_launch::{Status, spawn};
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use serde_json::json;

    #[allow(
        clippy::needless_pass_by_value,
        reason = "callers write the document in place"
    )]
    fn spec(linux: serde_json::Value, hostname: &str) -> Spec {
        let text = json!({"ociVersion": "1.3.0", "hostname": hostname, "linux": linux}).to_string();
        Spec::parse(text.as_bytes()).expect("a document")
    }

    #[test]
    fn a_name_needs_a_namespace() {
        let plan = |linux, name| plan_holder(&spec(linux, name), None, None);
        assert!(plan(json!({}), "pod").is_err());
        assert!(plan(json!({"namespaces": [{"type": "uts"}]}), "pod").is_ok());
        assert!(plan(json!({"sysctl": {"kernel.shmmax": "1"}}), "").is_err());
    }

    #[test]
    fn holds_what_it_was_given_in_an_empty_root() {
        let linux = json!({
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "7"},
        });
        let plan = plan_holder(&spec(linux, "pod"), None, None).expect("a plan");
        let mut holder = match spawn(&plan) {
            Ok(holder) => holder,
            Err(e) => return println!("skipped: {e} (needs root)"),
        };
        drop(plan);
        match holder.wait_status().expect("status") {
            Status::Ready => {}
            other => return println!("skipped: {other:?} (needs root)"),
        }
        let proc = format!("/proc/{}", holder.pid());
        let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok();
        let its = |kind: &str| std::fs::read_link(format!("{proc}/ns/{kind}")).ok();
        for kind in ["pid", "ipc", "uts", "net", "mnt"] {
            assert!(its(kind).is_some() && its(kind) != own(kind), "{kind}");
        }
        assert_eq!(its("user"), own("user"));
        let status = std::fs::read_to_string(format!("{proc}/status")).expect("status");
        let has = |line: &str| status.lines().any(|l| l == line);
        assert!(has("CapEff:\t0000000000000000") && has("CapBnd:\t0000000000000000"));
        assert!(has("Seccomp:\t1") && has("NoNewPrivs:\t1"), "{status}");
        assert!(has("Name:\tpod"), "{status}");
        let line = std::fs::read_to_string(format!("{proc}/cmdline")).expect("its command line");
        assert_eq!(line.trim_end_matches('\0'), "pod");
        let root = std::fs::read_dir(format!("{proc}/root")).expect("its root");
        assert_eq!(root.count(), 0);
        // It ends with whoever started it.
        let pidfd = holder.pidfd().try_clone_to_owned().expect("a pidfd");
        drop(holder);
        let ended = waitid(
            WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
            WaitIdOptions::EXITED,
        );
        assert!(ended.expect("an end").is_some());
    }
}
