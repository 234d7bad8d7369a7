//! Owns `linux.namespaces`, id maps, time offsets, and sysctls, which belong to namespaces.
//!
//! The clone makes what is new; what exists is joined by the child, except a pid namespace, which the
//! parent enters for its children. A new user namespace owns all other new ones. With a joined user
//! namespace (or joins beside a new one) the new ones are made by a re-fork after the joins, so that
//! they belong to it. The cgroup namespace is unshared after the cgroup was joined: it remembers where.

use crate::spec::{IdMapping, Linux, Namespace};
use crate::{Error, Result, Spec};
use corten_launch::{Fd, IdMaps, Op, Plan, cstr};
use std::fmt::Write as _;
use std::fs::File;

pub(crate) const NEWNS: u64 = 0x0002_0000;
pub(crate) const NEWCGROUP: u64 = 0x0200_0000;
pub(crate) const NEWUTS: u64 = 0x0400_0000;
pub(crate) const NEWIPC: u64 = 0x0800_0000;
pub(crate) const NEWUSER: u64 = 0x1000_0000;
pub(crate) const NEWPID: u64 = 0x2000_0000;
pub(crate) const NEWNET: u64 = 0x4000_0000;
pub(crate) const NEWTIME: u64 = 0x80;

/// Which kinds a container has to itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds {
    /// Made for it.
    pub(crate) new: u64,
    /// Joined by path.
    pub(crate) joined: u64,
}

// === impl Kinds ===

impl Kinds {
    pub(crate) fn of(linux: &Linux) -> Result<Self> {
        let mut kinds = Self::default();
        for ns in &linux.namespaces {
            let flag = flag(ns)?;
            if (kinds.new | kinds.joined) & flag != 0 {
                return Err(Error::invalid(format!("duplicate namespace {:?}", ns.kind)));
            }
            let set = if ns.path.is_empty() {
                &mut kinds.new
            } else {
                &mut kinds.joined
            };
            *set |= flag;
        }
        Ok(kinds)
    }

    /// New or joined: not the host's.
    pub(crate) fn has(self, flag: u64) -> bool {
        (self.new | self.joined) & flag != 0
    }
}

fn flag(ns: &Namespace) -> Result<u64> {
    Ok(match ns.kind.as_str() {
        "mount" => NEWNS,
        "cgroup" => NEWCGROUP,
        "uts" => NEWUTS,
        "ipc" => NEWIPC,
        "user" => NEWUSER,
        "pid" => NEWPID,
        "network" => NEWNET,
        "time" => NEWTIME,
        other => return Err(Error::invalid(format!("unknown namespace type {other:?}"))),
    })
}

/// Plans everything about namespaces; the cgroup has been joined by the steps so far.
pub(crate) fn plan(spec: &Spec, plan: &mut Plan) -> Result<Kinds> {
    let linux = &spec.linux;
    let kinds = Kinds::of(linux)?;
    if kinds.new & NEWUSER != 0 {
        plan.id_maps = Some(id_maps(&linux.uid_mappings, &linux.gid_mappings)?);
    } else if kinds.joined & NEWUSER == 0
        && !(linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty())
    {
        return Err(Error::invalid(
            "uidMappings or gidMappings without a user namespace",
        ));
    }
    time(linux, kinds, plan)?;
    let joins = join(linux, plan)?;
    // Pid and time are for the parent, see corten_launch::spawn.
    let new = kinds.new & !NEWTIME;
    let refork = kinds.joined & NEWUSER != 0 || (new & NEWUSER != 0 && joins);
    if refork {
        if new & (NEWPID | NEWUSER) != 0 {
            plan.push(Op::Refork { flags: new }, "make namespaces");
        } else if new != 0 {
            plan.push(Op::Unshare(new as u32), "make namespaces");
        }
    } else {
        plan.namespaces = new & !NEWCGROUP;
    }
    if kinds.has(NEWUSER) {
        plan.push(Op::SetGid(0), "become group 0 of the user namespace");
        plan.push(Op::SetUid(0), "become user 0 of the user namespace");
    }
    if new & NEWCGROUP != 0 && !refork {
        plan.push(Op::Unshare(NEWCGROUP as u32), "make cgroup namespace");
    }
    if new & NEWNET != 0 {
        plan.push(Op::LoopbackUp, "bring up loopback");
    }
    Ok(kinds)
}

/// Joins by path: the user namespace last, while the host's privilege lasts. True when there are any.
fn join(linux: &Linux, plan: &mut Plan) -> Result<bool> {
    let mut user = None;
    let mut any = false;
    for ns in linux.namespaces.iter().filter(|ns| !ns.path.is_empty()) {
        let flag = flag(ns)?;
        let file = File::open(&ns.path)
            .map_err(|e| Error::system(format!("open {} namespace {}", ns.kind, ns.path), e))?;
        let fd = plan.give(file);
        match flag {
            NEWPID => plan.pid_namespace = Some(fd),
            NEWUSER => user = Some((fd, ns)),
            _ => {
                any = true;
                join_step(plan, fd, flag, ns);
            }
        }
    }
    if let Some((fd, ns)) = user {
        any = true;
        join_step(plan, fd, NEWUSER, ns);
    }
    Ok(any)
}

fn join_step(plan: &mut Plan, fd: Fd, flag: u64, ns: &Namespace) {
    let label = format!("join {} namespace {}", ns.kind, ns.path);
    plan.push(
        Op::SetNs {
            ns: fd,
            flags: flag as u32,
        },
        label,
    );
}

fn time(linux: &Linux, kinds: Kinds, plan: &mut Plan) -> Result<()> {
    if kinds.new & NEWTIME == 0 {
        if !linux.time_offsets.is_empty() {
            return Err(Error::invalid("timeOffsets without a new time namespace"));
        }
        return Ok(());
    }
    let mut text = String::new();
    for (clock, offset) in &linux.time_offsets {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::invalid(format!(
                "unknown clock {clock:?} in timeOffsets"
            )));
        }
        let _ = writeln!(text, "{clock} {} {}", offset.secs, offset.nanosecs);
    }
    plan.time_offsets = Some(text.into_bytes());
    Ok(())
}

/// Text of uid_map and gid_map.
pub(crate) fn id_maps(uids: &[IdMapping], gids: &[IdMapping]) -> Result<IdMaps> {
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::invalid(
            "ids are mapped by uidMappings and gidMappings together",
        ));
    }
    let text = |maps: &[IdMapping]| {
        let mut text = String::new();
        for m in maps {
            let _ = writeln!(text, "{} {} {}", m.container_id, m.host_id, m.size);
        }
        text.into_bytes()
    };
    Ok(IdMaps {
        uid_map: text(uids),
        gid_map: text(gids),
        deny_setgroups: false,
    })
}

/// The host's number of a container's id.
pub(crate) fn host_id(maps: &[IdMapping], id: u32) -> Option<u32> {
    maps.iter().find_map(|m| {
        let offset = id.checked_sub(m.container_id)?;
        if offset < m.size {
            m.host_id.checked_add(offset)
        } else {
            None
        }
    })
}

/// Sysctls are written through the host's /proc before anything of the container is mounted: no
/// image content can stand between the path and the file.
pub(crate) fn sysctl(spec: &Spec, kinds: Kinds, plan: &mut Plan) -> Result<()> {
    for (key, value) in &spec.linux.sysctl {
        let path = sysctl_path(key, kinds)?;
        let label = format!("write sysctl {key}");
        plan.push(
            Op::WriteProc {
                path: cstr(path),
                data: value.clone().into_bytes(),
            },
            label,
        );
    }
    Ok(())
}

fn sysctl_path(key: &str, kinds: Kinds) -> Result<String> {
    const IPC: [&str; 8] = [
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    ];
    // Either separator may be used; the first one seen decides, as sysctl(8) has it.
    let slash = key
        .find('/')
        .is_some_and(|s| key.find('.').is_none_or(|d| s < d));
    let path = if slash {
        key.to_owned()
    } else {
        key.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    };
    let parts: Vec<&str> = path.split('/').collect();
    if parts
        .iter()
        .any(|p| p.is_empty() || *p == "." || *p == "..")
        || path.contains('\0')
    {
        return Err(Error::invalid(format!("malformed sysctl {key:?}")));
    }
    let separate = match parts.as_slice() {
        ["net", ..] => kinds.has(NEWNET),
        ["fs", "mqueue", ..] => kinds.has(NEWIPC),
        ["kernel", name] if IPC.contains(name) => kinds.has(NEWIPC),
        ["kernel", "domainname"] => kinds.has(NEWUTS),
        ["kernel", "hostname"] => {
            let text = format!("sysctl {key:?}: use the hostname field of the spec instead");
            return Err(Error::invalid(text));
        }
        ["user", ..] => kinds.has(NEWUSER),
        _ => false,
    };
    if !separate {
        return Err(Error::invalid(format!(
            "sysctl {key:?} is not in a separate kernel namespace"
        )));
    }
    Ok(format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names() {
        let all = Kinds {
            new: NEWNET | NEWIPC | NEWUTS,
            joined: 0,
        };
        let ok = |k: &str| sysctl_path(k, all).ok();
        assert_eq!(
            ok("net.ipv4.ip_forward").as_deref(),
            Some("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            ok("net/ipv4/conf/eth0.1/x").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/x")
        );
        assert_eq!(
            ok("net.ipv4.conf.eth0/1.x").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/x")
        );
        assert_eq!(
            ok("kernel.shmmax").as_deref(),
            Some("/proc/sys/kernel/shmmax")
        );
        assert_eq!(ok("kernel.core_pattern"), None);
        assert_eq!(ok("net/../kernel/core_pattern"), None);
        assert_eq!(ok("kernel.hostname"), None);
        assert!(sysctl_path("net.ipv4.ip_forward", Kinds::default()).is_err());
    }

    #[test]
    fn maps_ids() {
        let maps = [IdMapping {
            container_id: 0,
            host_id: 1000,
            size: 10,
        }];
        assert_eq!(host_id(&maps, 9), Some(1009));
        assert_eq!(host_id(&maps, 10), None);
    }
}
