//! fstab-style mount options as containerd's mount recipes carry them.

use corten_core::{Error, Result};
use rustix::mount::{MountAttrFlags, MountFlags};

/// Options sorted by who acts on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Flags of mount(2), without propagation.
    pub flags: MountFlags,
    /// Options of the file system itself.
    pub data: Vec<String>,
    pub uidmap: String,
    pub gidmap: String,
    /// The source is an image file to be attached to a loop device.
    pub loop_device: bool,
}

impl Parsed {
    /// Whether ids are to be mapped: only both maps together are (containerd 2.4 core/mount/mount_linux.go).
    pub fn remaps(&self) -> bool {
        !self.uidmap.is_empty() && !self.gidmap.is_empty()
    }

    /// Whether this is a bind mount.
    pub fn binds(&self) -> bool {
        self.flags.contains(MountFlags::BIND)
    }

    /// The flags as attributes of fsmount(2).
    pub fn attributes(&self) -> MountAttrFlags {
        let table = [
            (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
            (
                MountFlags::STRICTATIME,
                MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            ),
            (
                MountFlags::NODIRATIME,
                MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            ),
        ];
        table
            .into_iter()
            .filter(|(flag, _)| self.flags.contains(*flag))
            .fold(MountAttrFlags::empty(), |all, (_, attr)| all | attr)
    }
}

/// `(name, clears, flag)`.
fn flag(name: &str) -> Option<(bool, MountFlags)> {
    let remount = MountFlags::from_bits_retain(libc::MS_REMOUNT as _);
    Some(match name {
        "async" => (true, MountFlags::SYNCHRONOUS),
        "sync" => (false, MountFlags::SYNCHRONOUS),
        "atime" => (true, MountFlags::NOATIME),
        "noatime" => (false, MountFlags::NOATIME),
        "bind" => (false, MountFlags::BIND),
        "rbind" => (false, MountFlags::BIND | MountFlags::REC),
        "dev" => (true, MountFlags::NODEV),
        "nodev" => (false, MountFlags::NODEV),
        "diratime" => (true, MountFlags::NODIRATIME),
        "nodiratime" => (false, MountFlags::NODIRATIME),
        "dirsync" => (false, MountFlags::DIRSYNC),
        "exec" => (true, MountFlags::NOEXEC),
        "noexec" => (false, MountFlags::NOEXEC),
        "mand" => (false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "nomand" => (true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "relatime" => (false, MountFlags::RELATIME),
        "norelatime" => (true, MountFlags::RELATIME),
        "strictatime" => (false, MountFlags::STRICTATIME),
        "nostrictatime" => (true, MountFlags::STRICTATIME),
        "suid" => (true, MountFlags::NOSUID),
        "nosuid" => (false, MountFlags::NOSUID),
        "ro" => (false, MountFlags::RDONLY),
        "rw" => (true, MountFlags::RDONLY),
        "remount" => (false, remount),
        _ => return None,
    })
}

/// Sorts `options`. Unknown ones are data for the file system.
///
/// # Errors
/// InvalidArgument for `X-containerd.*`, which the mount manager must have consumed.
pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Parsed> {
    let mut out = Parsed {
        flags: MountFlags::empty(),
        data: Vec::new(),
        uidmap: String::new(),
        gidmap: String::new(),
        loop_device: false,
    };
    for o in options.iter().map(AsRef::as_ref) {
        if o.starts_with("X-containerd.") {
            return Err(Error::invalid(format!(
                "internal mount option {o:?} was not consumed by the mount manager"
            )));
        }
        if let Some((clears, flag)) = flag(o) {
            if clears {
                out.flags.remove(flag);
            } else {
                out.flags.insert(flag);
            }
        } else if o == "loop" {
            out.loop_device = true;
        } else if let Some(map) = o.strip_prefix("uidmap=") {
            map.clone_into(&mut out.uidmap);
        } else if let Some(map) = o.strip_prefix("gidmap=") {
            map.clone_into(&mut out.gidmap);
        } else {
            out.data.push(o.to_owned());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_and_the_last_word_wins() {
        let p = parse(&[
            "rbind",
            "ro",
            "rw",
            "nosuid",
            "size=1m",
            "uidmap=0:1:2",
            "index=off",
        ])
        .unwrap();
        assert_eq!(
            p.flags,
            MountFlags::BIND | MountFlags::REC | MountFlags::NOSUID
        );
        assert_eq!(p.data, ["size=1m", "index=off"]);
        assert!(p.binds() && !p.remaps());
        assert_eq!(p.attributes(), MountAttrFlags::MOUNT_ATTR_NOSUID);
        let e = parse(&["X-containerd.mkdir.path=/x"]).unwrap_err();
        assert_eq!(e.kind(), corten_core::Kind::InvalidArgument);
    }
}
