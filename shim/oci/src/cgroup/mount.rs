//! Owns mounts of type `cgroup` inside a container: the v1 tree, or the unified hierarchy.

use super::host::{Hierarchy, Host};
use crate::init::{Builder, EXTRA, MOUNT, ROOT, TARGET};
use crate::mounts::{Options, RDONLY, attach, fs_options};
use crate::namespaces::NEWCGROUP;
use crate::{Cgroup, Result};
use corten_launch::{Fd, FsOption, Make, Op, cstr, mounts as launch};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Plans one mount of type `cgroup` at `dest`.
pub(crate) fn plan(b: &mut Builder<'_>, dest: &str, o: &Options, label: &str) -> Result<()> {
    let host = Host::get()?;
    if host.unified() {
        for h in host.hierarchies.iter().filter(|h| h.v2) {
            hierarchy(b, h, dest, o, label)?;
        }
        return Ok(());
    }
    // A tmpfs holds one directory per hierarchy; it turns read-only once they are there.
    let top = Options {
        set: o.set & !RDONLY,
        data: vec![("mode".into(), Some("755".into()))],
        ..Options::default()
    };
    let options = fs_options("tmpfs", &top);
    let op = Op::FsMount {
        fstype: cstr("tmpfs"),
        options,
        attrs: top.set,
        out: EXTRA,
    };
    b.plan.push(op, label.to_owned());
    let op = Op::Resolve {
        root: ROOT,
        path: cstr(dest),
        make: Make::Dir,
        real: false,
        out: TARGET,
    };
    b.plan.push(op, label.to_owned());
    attach(b, Fd::Slot(EXTRA), &top, label);
    for h in host.hierarchies.iter().filter(|h| !h.v2) {
        let Some(name) = h
            .mount
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
        else {
            continue;
        };
        hierarchy(b, h, &format!("{dest}/{name}"), o, label)?;
        // cpu,cpuacct are looked for under each of their names, too.
        for controller in h
            .controllers
            .iter()
            .filter(|c| **c != name && !c.contains('='))
        {
            let path = cstr(format!("{dest}/{controller}"));
            let op = Op::Symlink {
                root: ROOT,
                target: cstr(&name),
                path,
            };
            b.plan.push(op, label.to_owned());
        }
    }
    if o.set & RDONLY != 0 {
        let fd = Fd::Slot(EXTRA);
        let op = Op::SetAttr {
            fd,
            set: RDONLY,
            clear: 0,
            propagation: 0,
            recursive: false,
        };
        b.plan.push(op, label.to_owned());
    }
    Ok(())
}

fn hierarchy(
    b: &mut Builder<'_>,
    h: &Hierarchy,
    dest: &str,
    o: &Options,
    label: &str,
) -> Result<()> {
    let attrs = o.set;
    let mount = if b.kinds.has(NEWCGROUP) {
        // In a cgroup namespace a new mount shows the container's part only.
        let (fstype, options) = if h.v2 {
            ("cgroup2", Vec::new())
        } else {
            ("cgroup", v1_options(h))
        };
        let op = Op::FsMount {
            fstype: cstr(fstype),
            options,
            attrs,
            out: MOUNT,
        };
        b.plan.push(op, label.to_owned());
        Fd::Slot(MOUNT)
    } else {
        let own = cstr(h.dir(b.cgroup.path()).as_os_str().as_bytes());
        let mount = if b.userns {
            let tree =
                launch::clone_tree(&own, false).map_err(|e| crate::Error::system(label, e))?;
            launch::enslave(tree.as_fd()).map_err(|e| crate::Error::system(label, e))?;
            b.plan.give(tree)
        } else {
            let op = Op::CloneTree {
                path: own,
                recursive: false,
                out: MOUNT,
            };
            b.plan.push(op, label.to_owned());
            Fd::Slot(MOUNT)
        };
        let op = Op::SetAttr {
            fd: mount,
            set: attrs,
            clear: 0,
            propagation: 0,
            recursive: false,
        };
        b.plan.push(op, label.to_owned());
        mount
    };
    let op = Op::Resolve {
        root: ROOT,
        path: cstr(dest),
        make: Make::Dir,
        real: false,
        out: TARGET,
    };
    b.plan.push(op, label.to_owned());
    attach(b, mount, &Options::default(), label);
    Ok(())
}

/// The directories that a mount at `dest` shows by binds, and where; without a cgroup namespace only.
pub(crate) fn binds(cgroup: &Cgroup, dest: &str) -> Result<Vec<(String, PathBuf)>> {
    let host = Host::get()?;
    let path = |h: &Hierarchy| h.dir(cgroup.path());
    if host.unified() {
        let v2 = host.hierarchies.iter().filter(|h| h.v2);
        return Ok(v2.map(|h| (dest.to_owned(), path(h))).collect());
    }
    let v1 = host.hierarchies.iter().filter(|h| !h.v2);
    Ok(v1
        .filter_map(|h| {
            let name = h.mount.file_name()?.to_string_lossy();
            Some((format!("{dest}/{name}"), path(h)))
        })
        .collect())
}

fn v1_options(h: &Hierarchy) -> Vec<FsOption> {
    let mut options = vec![FsOption {
        key: c"source".into(),
        value: Some(c"cgroup".into()),
    }];
    for controller in &h.controllers {
        options.push(match controller.split_once('=') {
            Some((key, value)) => FsOption {
                key: cstr(key),
                value: Some(cstr(value)),
            },
            None => FsOption {
                key: cstr(controller),
                value: None,
            },
        });
    }
    if h.controllers.iter().all(|c| c.contains('=')) {
        options.insert(
            1,
            FsOption {
                key: c"none".into(),
                value: None,
            },
        );
    }
    options
}
