//! Owns `mounts`: options, and the steps that make each mount.
//!
//! A mount is made detached, its attributes are set, then it is attached to a handle of its target.
//! With a user namespace, binds are prepared here by the host's privilege and handed over.

use crate::init::{Builder, MOUNT, ROOT, TARGET};
use crate::spec::Mount;
use crate::{Error, Result};
use corten_launch::{Fd, FsOption, Make, Op, cstr, mounts as launch};
use std::os::fd::AsFd;

pub(crate) const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

pub(crate) const MS_REC: u64 = 0x4000;
pub(crate) const MS_UNBINDABLE: u64 = 1 << 17;
pub(crate) const MS_PRIVATE: u64 = 1 << 18;
pub(crate) const MS_SLAVE: u64 = 1 << 19;
pub(crate) const MS_SHARED: u64 = 1 << 20;

/// A mount's options, sorted by what they act on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) rec_set: u64,
    pub(crate) rec_clear: u64,
    pub(crate) bind: bool,
    pub(crate) recursive: bool,
    /// MS_ flag, with MS_REC.
    pub(crate) propagation: Vec<u64>,
    pub(crate) idmap: bool,
    pub(crate) ridmap: bool,
    pub(crate) copy_up: bool,
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// name, attribute bits, whether they are set (else cleared)
const ATTRS: [(&str, u64, bool); 17] = [
    ("ro", RDONLY, true),
    ("rw", RDONLY, false),
    ("nosuid", NOSUID, true),
    ("suid", NOSUID, false),
    ("nodev", NODEV, true),
    ("dev", NODEV, false),
    ("noexec", NOEXEC, true),
    ("exec", NOEXEC, false),
    ("nodiratime", NODIRATIME, true),
    ("diratime", NODIRATIME, false),
    ("noatime", NOATIME, true),
    ("atime", NOATIME, false),
    ("strictatime", STRICTATIME, true),
    ("nostrictatime", STRICTATIME, false),
    ("nosymfollow", NOSYMFOLLOW, true),
    ("symfollow", NOSYMFOLLOW, false),
    ("norelatime", 0, false),
];

/// Every option `Options::parse` gives a meaning, for the `features` document.
pub fn known_options() -> Vec<String> {
    let mut names: Vec<String> = ATTRS.iter().map(|(n, ..)| (*n).to_owned()).collect();
    names.extend(ATTRS.iter().map(|(n, ..)| format!("r{n}")));
    let more = "relatime rrelatime bind rbind defaults private rprivate shared rshared slave rslave \
                unbindable runbindable idmap ridmap sync async dirsync mand nomand lazytime \
                nolazytime iversion noiversion silent loud remount tmpcopyup";
    names.extend(more.split(' ').map(str::to_owned));
    names.sort_unstable();
    names
}

// === impl Options ===

impl Options {
    pub(crate) fn parse(m: &Mount) -> Result<Self> {
        let mut o = Self {
            bind: m.kind == "bind",
            recursive: false,
            ..Self::default()
        };
        for option in &m.options {
            o.option(m, option)?;
        }
        Ok(o)
    }

    fn option(&mut self, m: &Mount, option: &str) -> Result<()> {
        match option {
            "" | "defaults" | "remount" | "loud" | "async" | "nomand" | "noiversion"
            | "nolazytime" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "relatime" => self.clear |= ATIME,
            "rrelatime" => self.rec_clear |= ATIME,
            "private" => self.propagation.push(MS_PRIVATE),
            "rprivate" => self.propagation.push(MS_PRIVATE | MS_REC),
            "shared" => self.propagation.push(MS_SHARED),
            "rshared" => self.propagation.push(MS_SHARED | MS_REC),
            "slave" => self.propagation.push(MS_SLAVE),
            "rslave" => self.propagation.push(MS_SLAVE | MS_REC),
            "unbindable" => self.propagation.push(MS_UNBINDABLE),
            "runbindable" => self.propagation.push(MS_UNBINDABLE | MS_REC),
            "idmap" => self.idmap = true,
            "ridmap" => self.ridmap = true,
            "tmpcopyup" if m.kind == "tmpfs" && !self.bind => self.copy_up = true,
            "tmpcopyup" => {
                return Err(Error::invalid(format!(
                    "mount {:?}: option tmpcopyup is for tmpfs only",
                    m.destination
                )));
            }
            _ => self.attribute_or_data(option),
        }
        Ok(())
    }

    fn attribute_or_data(&mut self, option: &str) {
        let find = |name: &str| ATTRS.iter().find(|(n, ..)| *n == name);
        if let Some((_, bits, on)) = find(option) {
            apply(&mut self.set, &mut self.clear, *bits, *on);
        } else if let Some((_, bits, on)) = option.strip_prefix('r').and_then(find) {
            apply(&mut self.rec_set, &mut self.rec_clear, *bits, *on);
        } else {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (option, None),
            };
            self.data.push((key.to_owned(), value));
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.data.iter().any(|(k, _)| k == key)
    }
}

fn apply(set: &mut u64, clear: &mut u64, bits: u64, on: bool) {
    // The access time settings are one field: setting one replaces the others.
    let field = if bits & ATIME != 0 { ATIME } else { bits };
    if on {
        *set = *set & !field | bits;
        *clear = *clear & !bits | field & ATIME;
    } else {
        *set &= !bits;
        *clear |= field;
    }
}

/// An absolute path without `.`, `..` and double slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// What may be mounted below /proc: files that hide or fake host data, as runc allows.
const BELOW_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Plans every mount, in order.
pub(crate) fn plan(b: &mut Builder<'_>) -> Result<()> {
    for m in &b.spec.mounts {
        let dest = clean(&m.destination);
        let o = Options::parse(m)?;
        check(m, &dest, &o)?;
        let label = format!(
            "error mounting {:?} to rootfs at {:?}",
            if m.source.is_empty() {
                &m.kind
            } else {
                &m.source
            },
            m.destination
        );
        match m.kind.as_str() {
            _ if o.bind => bind(b, m, &dest, &o, &label)?,
            "cgroup" | "cgroup2" => crate::cgroup::mount::plan(b, &dest, &o, &label)?,
            "sysfs" if b.userns && !b.kinds.has(crate::namespaces::NEWNET) => {
                // sysfs shows a network namespace: without an own one only the host's can be bound.
                let m = Mount {
                    source: "/sys".into(),
                    ..m.clone()
                };
                let o = Options {
                    bind: true,
                    recursive: true,
                    data: Vec::new(),
                    ..o
                };
                bind(b, &m, &dest, &o, &label)?;
            }
            _ => filesystem(b, m, &dest, o, &label)?,
        }
    }
    Ok(())
}

fn check(m: &Mount, dest: &str, o: &Options) -> Result<()> {
    if m.destination.is_empty() {
        return Err(Error::invalid("mount without a destination"));
    }
    if dest == "/" {
        return Err(Error::invalid(
            "mount destination / would hide the root file system",
        ));
    }
    let refuse = if let Some(rest) = dest.strip_prefix("/proc/") {
        !BELOW_PROC.contains(&dest) && !rest.is_empty()
    } else {
        let real = if o.bind {
            clean(&m.source) == "/proc"
        } else {
            m.kind == "proc"
        };
        dest == "/proc" && !real
    };
    if refuse {
        return Err(Error::invalid(format!(
            "{dest:?} cannot be mounted because it is inside /proc"
        )));
    }
    if is_mapped(m, o) && !o.bind {
        return Err(Error::unsupported(format!(
            "mount {:?}: id mappings of a mount that is not a bind",
            m.destination
        )));
    }
    if m.destination.contains('\0') || m.source.contains('\0') {
        return Err(Error::invalid("NUL byte in a mount"));
    }
    Ok(())
}

fn is_mapped(m: &Mount, o: &Options) -> bool {
    o.idmap || o.ridmap || !m.uid_mappings.is_empty() || !m.gid_mappings.is_empty()
}

fn bind(b: &mut Builder<'_>, m: &Mount, dest: &str, o: &Options, label: &str) -> Result<()> {
    let source = if m.source.starts_with('/') {
        m.source.clone()
    } else {
        b.bundle.join(&m.source).to_string_lossy().into_owned()
    };
    let mapped = is_mapped(m, o);
    let mount = if b.userns || mapped {
        let tree =
            launch::clone_tree(&cstr(&source), o.recursive).map_err(|e| Error::system(label, e))?;
        // As if copied after the propagation of / was cut; nothing leaves a user namespace at all.
        if b.userns || !o.propagation.iter().any(|f| f & MS_SHARED != 0) {
            launch::enslave(tree.as_fd()).map_err(|e| Error::system(label, e))?;
        }
        if mapped {
            idmap(b, m, o, tree.as_fd(), label)?;
        }
        b.plan.give(tree)
    } else {
        let op = Op::CloneTree {
            path: cstr(&source),
            recursive: o.recursive,
            out: MOUNT,
        };
        b.plan.push(op, label.to_owned());
        Fd::Slot(MOUNT)
    };
    let op = Op::Resolve {
        root: ROOT,
        path: cstr(dest),
        make: Make::Like(mount),
        real: real(dest),
        out: TARGET,
    };
    b.plan.push(op, label.to_owned());
    attach(b, mount, o, label);
    Ok(())
}

fn idmap(
    b: &mut Builder<'_>,
    m: &Mount,
    o: &Options,
    tree: std::os::fd::BorrowedFd<'_>,
    label: &str,
) -> Result<()> {
    let linux = &b.spec.linux;
    let (uids, gids) = if m.uid_mappings.is_empty() && m.gid_mappings.is_empty() {
        (&linux.uid_mappings, &linux.gid_mappings)
    } else {
        (&m.uid_mappings, &m.gid_mappings)
    };
    let maps = crate::namespaces::id_maps(uids, gids)?;
    let known = b.idmaps.iter().position(|(m, _)| *m == maps);
    let at = match known {
        Some(at) => at,
        None => {
            let fd = corten_launch::user_namespace(&maps)
                .map_err(|e| Error::system("make a user namespace for an idmapped mount", e))?;
            b.idmaps.push((maps, fd));
            b.idmaps.len() - 1
        }
    };
    let Some((_, userns)) = b.idmaps.get(at) else {
        return Ok(());
    };
    launch::idmap(tree, userns.as_fd(), o.ridmap)
        .map_err(|e| Error::system(format!("{label}: set idmap"), e))
}

/// Attributes, attachment and propagation of a detached mount whose target is in `TARGET`.
pub(crate) fn attach(b: &mut Builder<'_>, mount: Fd, o: &Options, label: &str) {
    if o.bind && (o.set | o.clear) != 0 {
        let (set, clear) = (o.set, o.clear);
        let op = Op::SetAttr {
            fd: mount,
            set,
            clear,
            propagation: 0,
            recursive: false,
        };
        b.plan.push(op, label.to_owned());
    }
    if o.rec_set | o.rec_clear != 0 {
        let (set, clear) = (o.rec_set, o.rec_clear);
        let op = Op::SetAttr {
            fd: mount,
            set,
            clear,
            propagation: 0,
            recursive: true,
        };
        b.plan.push(op, label.to_owned());
    }
    b.plan.push(
        Op::Attach {
            mount,
            to: Fd::Slot(TARGET),
        },
        label.to_owned(),
    );
    for flag in &o.propagation {
        let op = Op::SetAttr {
            fd: mount,
            set: 0,
            clear: 0,
            propagation: flag & !MS_REC,
            recursive: flag & MS_REC != 0,
        };
        b.plan.push(op, label.to_owned());
    }
}

/// These must be what they seem: a link in their place could lead labels and devices elsewhere.
fn real(dest: &str) -> bool {
    matches!(dest, "/proc" | "/sys" | "/dev")
}

fn filesystem(
    b: &mut Builder<'_>,
    m: &Mount,
    dest: &str,
    mut o: Options,
    label: &str,
) -> Result<()> {
    if m.kind.is_empty() {
        return Err(Error::invalid(format!(
            "mount {:?} has no type",
            m.destination
        )));
    }
    if m.kind == "tmpfs"
        && !o.has("mode")
        && let Some(mode) = b.mode_in_rootfs(dest)
    {
        // An existing directory lends its mode to the tmpfs over it.
        o.data.push(("mode".into(), Some(format!("{mode:04o}"))));
    }
    if let Some(context) = b.mount_context(&m.kind)? {
        o.data.push(("context".into(), Some(context)));
    }
    let resolve = Op::Resolve {
        root: ROOT,
        path: cstr(dest),
        make: Make::Dir,
        real: real(dest),
        out: TARGET,
    };
    let label_of = if real(dest) {
        format!("{label}: {dest:?} must be mounted on ordinary directory")
    } else {
        label.to_owned()
    };
    if m.kind == "tmpfs" && o.set & RDONLY != 0 {
        // What goes into it comes later: nodes of /dev, other mounts' targets.
        o.set &= !RDONLY;
        b.sealed.push(dest.to_owned());
    }
    if o.copy_up && long(&o) {
        return Err(Error::unsupported(format!(
            "mount {dest:?}: option tmpcopyup with long options"
        )));
    }
    if long(&o) {
        b.plan.push(resolve, label_of);
        return long_data(b, m, &o, label);
    }
    let fstype = cstr(&m.kind);
    let options = fs_options(&m.source, &o);
    let attrs = o.set & !o.clear | o.set & ATIME;
    b.plan.push(
        Op::FsMount {
            fstype,
            options,
            attrs,
            out: MOUNT,
        },
        label.to_owned(),
    );
    b.plan.push(resolve, label_of);
    if o.copy_up {
        let (from, to) = (Fd::Slot(TARGET), Fd::Slot(MOUNT));
        b.plan
            .push(Op::CopyUp { from, to }, format!("{label}: copy"));
    }
    attach(b, Fd::Slot(MOUNT), &o, label);
    if m.kind == "mqueue" && !b.spec.linux.mount_label.is_empty() {
        let value = b.spec.linux.mount_label.clone().into_bytes();
        let fd = Fd::Slot(MOUNT);
        b.plan.push(Op::Label { fd, value }, label.to_owned());
    }
    Ok(())
}

pub(crate) fn fs_options(source: &str, o: &Options) -> Vec<FsOption> {
    let mut options = Vec::with_capacity(o.data.len() + 1);
    if !source.is_empty() {
        options.push(FsOption {
            key: c"source".into(),
            value: Some(cstr(source)),
        });
    }
    for (key, value) in &o.data {
        options.push(FsOption {
            key: cstr(key),
            value: value.as_ref().map(cstr),
        });
    }
    options
}

fn long(o: &Options) -> bool {
    let len = |(k, v): &(String, Option<String>)| k.len() + v.as_ref().map_or(0, String::len);
    o.data.iter().any(|option| len(option) > 250)
}

/// fsconfig(2) takes values of 255 bytes at most; mount(2) takes a page.
fn long_data(b: &mut Builder<'_>, m: &Mount, o: &Options, label: &str) -> Result<()> {
    if o.rec_set | o.rec_clear != 0 || !o.propagation.is_empty() {
        return Err(Error::unsupported(format!(
            "mount {:?}: recursive attributes or propagation with long options",
            m.destination
        )));
    }
    let data: Vec<String> = o
        .data
        .iter()
        .map(|(k, v)| v.as_ref().map_or_else(|| k.clone(), |v| format!("{k}={v}")))
        .collect();
    let pairs = [
        (RDONLY, 1),
        (NOSUID, 2),
        (NODEV, 4),
        (NOEXEC, 8),
        (NOATIME, 1024),
        (NODIRATIME, 2048),
        (STRICTATIME, 1 << 24),
        (NOSYMFOLLOW, 256),
    ];
    let flags = pairs
        .iter()
        .filter(|(a, _)| o.set & a != 0)
        .fold(0, |f, (_, m)| f | m);
    let op = Op::MountOn {
        fstype: cstr(&m.kind),
        source: cstr(&m.source),
        to: Fd::Slot(TARGET),
        flags,
        data: cstr(data.join(",")),
    };
    b.plan.push(op, label.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        let options = options.iter().map(|s| (*s).to_owned()).collect();
        Options::parse(&Mount {
            options,
            ..Mount::default()
        })
        .expect("valid options")
    }

    #[test]
    fn options_are_sorted_by_target() {
        let o = parse(&[
            "rbind",
            "ro",
            "rnosuid",
            "rprivate",
            "size=64k",
            "newinstance",
            "noatime",
        ]);
        assert_eq!((o.set, o.clear), (RDONLY | NOATIME, ATIME));
        assert_eq!((o.rec_set, o.bind, o.recursive), (NOSUID, true, true));
        assert_eq!(o.propagation, [MS_PRIVATE | MS_REC]);
        assert_eq!(o.data.len(), 2);
        let o = parse(&["nosuid", "suid", "relatime"]);
        assert_eq!((o.set, o.clear), (0, NOSUID | ATIME));
    }

    #[test]
    fn proc_is_not_shadowed() {
        let at = |dest: &str, kind: &str| {
            let m = Mount {
                destination: dest.into(),
                kind: kind.into(),
                ..Mount::default()
            };
            check(&m, &clean(dest), &Options::default()).is_ok()
        };
        assert!(at("/proc", "proc") && at("/proc/meminfo", "bind") && at("/process", "tmpfs"));
        assert!(!at("/proc", "tmpfs") && !at("/proc/self/attr", "bind") && !at("/x/..", "tmpfs"));
        assert!(!at("/a/../proc/sys", "bind"));
        let bound = |source: &str| {
            let m = Mount {
                destination: "/proc".into(),
                kind: "proc".into(),
                source: source.into(),
                options: vec!["bind".into()],
                ..Mount::default()
            };
            let o = Options::parse(&m).expect("valid");
            check(&m, "/proc", &o).is_ok()
        };
        assert!(bound("/proc") && !bound("/tmp/fake"));
    }
}
