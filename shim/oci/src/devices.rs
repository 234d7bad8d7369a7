//! Owns /dev: default and listed nodes, the usual links, and what a device rule list starts from.

use crate::spec::{Device, Mount, Spec};
use crate::{Error, Result};
use corten_launch::{Fd, Make, Node, Op, Plan, cstr};

/// Nodes every container has: path, major, minor.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];
pub(crate) const NAMES: [&str; 6] = [
    DEFAULT[0].0,
    DEFAULT[1].0,
    DEFAULT[2].0,
    DEFAULT[3].0,
    DEFAULT[4].0,
    DEFAULT[5].0,
];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Plans nodes and links, unless /dev is somebody else's (a bind mount).
pub(crate) fn plan(spec: &Spec, root: Fd, userns: bool, plan: &mut Plan) -> Result<()> {
    let bound = |m: &Mount| {
        crate::mounts::clean(&m.destination) == "/dev"
            && (m.kind == "bind" || m.options.iter().any(|o| o == "bind" || o == "rbind"))
    };
    if spec.mounts.iter().any(bound) {
        return Ok(());
    }
    let listed = &spec.linux.devices;
    for device in listed {
        node(device, root, userns, plan)?;
    }
    for (path, major, minor) in DEFAULT {
        if !listed.iter().any(|d| d.path == path) {
            let device = Device {
                path: path.into(),
                kind: "c".into(),
                major: i64::from(major),
                minor: i64::from(minor),
                ..Device::default()
            };
            node(&device, root, userns, plan)?;
        }
    }
    for (target, path) in LINKS {
        let op = Op::Symlink {
            root,
            target: cstr(target),
            path: cstr(path),
        };
        plan.push(op, format!("symlink {target:?} at {path:?}"));
    }
    Ok(())
}

fn node(device: &Device, root: Fd, userns: bool, plan: &mut Plan) -> Result<()> {
    const MOUNT: u8 = crate::init::MOUNT;
    const TARGET: u8 = crate::init::TARGET;
    let wrong = |what| Error::invalid(format!("device {:?}: {what}", device.path));
    let path = crate::mounts::clean(&device.path);
    if path == "/" || !device.path.starts_with('/') {
        return Err(wrong("path is not absolute"));
    }
    let kind = match device.kind.as_str() {
        "c" | "u" => 0o020_000,
        "b" => 0o060_000,
        "p" => 0o010_000,
        other => return Err(wrong(&format!("unknown type {other:?}"))),
    };
    // The console is bound from the pty, never made: runc has it so, too.
    if path == "/dev/ptmx" {
        return Ok(());
    }
    let number = |n: i64| u32::try_from(n).map_err(|_| wrong("number out of range"));
    let (major, minor) = if kind == 0o010_000 {
        (0, 0)
    } else {
        (number(device.major)?, number(device.minor)?)
    };
    if userns {
        // No mknod in a user namespace: bind the host's node, if it is the one that is meant.
        let label = format!("bind device {path}");
        plan.push(
            Op::CloneTree {
                path: cstr(&path),
                recursive: false,
                out: MOUNT,
            },
            label.clone(),
        );
        if kind == 0o020_000 {
            let fd = Fd::Slot(MOUNT);
            let op = Op::VerifyDevice { fd, major, minor };
            plan.push(op, format!("{label} {major}:{minor}"));
        }
        plan.push(
            Op::Resolve {
                root,
                path: cstr(&path),
                make: Make::File,
                real: false,
                out: TARGET,
            },
            label.clone(),
        );
        plan.push(
            Op::Attach {
                mount: Fd::Slot(MOUNT),
                to: Fd::Slot(TARGET),
            },
            label,
        );
        return Ok(());
    }
    let node = Node {
        path: cstr(&path),
        mode: kind | device.file_mode.unwrap_or(0o666) & 0o7777,
        major,
        minor,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    };
    plan.push(
        Op::Mknod { root, node },
        format!("create device node {path}"),
    );
    Ok(())
}
