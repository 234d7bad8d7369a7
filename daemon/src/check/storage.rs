//! The file systems of the daemon's root and state folders.

use std::path::{Path, PathBuf};

use corten_sys::mountinfo::{self, MountPoint};

use super::Line;
use crate::config::Config;

/// Less free space than this will not hold an image and its snapshot.
const LITTLE: u64 = 1 << 30;

pub(super) fn lines(config: &Config) -> Vec<Line> {
    let mounts = mountinfo::all().unwrap_or_default();
    [("root", &config.root), ("state", &config.state)]
        .into_iter()
        .flat_map(|(topic, dir)| {
            let there = existing(dir);
            let free = rustix::fs::statvfs(&there)
                .map(|s| s.f_bavail.saturating_mul(s.f_frsize))
                .ok();
            folder(topic, dir, mount_of(&mounts, &there), free)
        })
        .collect()
}

/// The folder, or its nearest ancestor that is there, without symlinks.
fn existing(dir: &Path) -> PathBuf {
    let there = dir.ancestors().find_map(|d| d.canonicalize().ok());
    there.unwrap_or_else(|| PathBuf::from("/"))
}

/// The mount that a path is on: of the longest mount points the last, which covers the others.
fn mount_of<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    let on = mounts.iter().filter(|m| path.starts_with(&m.path));
    on.max_by_key(|m| m.path.components().count())
}

fn folder(
    topic: &'static str,
    dir: &Path,
    mount: Option<&MountPoint>,
    free: Option<u64>,
) -> Vec<Line> {
    let Some(m) = mount else {
        return vec![Line::limited(
            topic,
            format!("{}: on no mount that is known", dir.display()),
        )];
    };
    let on = format!("{} on {}", dir.display(), m.kind);
    let set = |o: &str| {
        [&m.options, &m.super_options]
            .iter()
            .any(|all| all.split(',').any(|x| x == o))
    };
    let mut lines = Vec::new();
    if set("ro") {
        lines.push(Line::fatal(
            topic,
            format!("{on}, read-only: the daemon cannot write there"),
        ));
        return lines;
    }
    lines.extend(match (topic, m.kind.as_str()) {
        ("root", "overlay") => Some("an overlay cannot be the upper layer of another: use the native snapshotter"),
        ("root", "nfs" | "nfs4" | "cifs" | "smb3" | "9p") => {
            Some("a network file system cannot hold an overlay's upper layer: use the native snapshotter")
        }
        ("root", "tmpfs" | "ramfs") => Some("kept in memory: images are lost at reboot"),
        ("state", k) if !matches!(k, "tmpfs" | "ramfs") => {
            Some("not in memory: bundles of containers from before a reboot stay until they are cleaned up")
        }
        _ => None,
    }
    .map(|consequence| Line::limited(topic, format!("{on}: {consequence}"))));
    for (option, consequence) in [
        ("noexec", "programs of native snapshots do not start"),
        ("nodev", "device files in native snapshots do not work"),
        (
            "nosuid",
            "set-uid programs of native snapshots have no effect",
        ),
    ] {
        if topic == "root" && set(option) {
            lines.push(Line::limited(
                topic,
                format!("{on}, {option}: {consequence}"),
            ));
        }
    }
    if let (true, Some(free)) = (topic == "root", free.filter(|f| *f < LITTLE)) {
        lines.push(Line::limited(
            topic,
            format!("{on}: only {} MiB free", free >> 20),
        ));
    }
    if lines.is_empty() {
        lines.push(match free {
            Some(free) => Line::ok(
                topic,
                format!("{on}, {:.1} GiB free", free as f64 / (1u64 << 30) as f64),
            ),
            None => Line::ok(topic, on),
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn mount(path: &str, kind: &str, options: &str) -> MountPoint {
        MountPoint {
            id: 1,
            parent: 1,
            path: path.into(),
            kind: kind.into(),
            source: "s".into(),
            options: options.into(),
            super_options: "rw".into(),
            optional: String::new(),
        }
    }

    #[test]
    fn the_last_and_longest_mount_holds_a_path() {
        let mounts = [
            mount("/", "ext4", "rw"),
            mount("/var", "xfs", "rw"),
            mount("/var", "btrfs", "rw"),
        ];
        assert_eq!(
            mount_of(&mounts, Path::new("/var/lib")).unwrap().kind,
            "btrfs"
        );
        assert_eq!(
            mount_of(&mounts, Path::new("/variable")).unwrap().kind,
            "ext4"
        );
        assert_eq!(existing(Path::new("/no/such/folder")), Path::new("/"));
    }

    #[test]
    fn each_file_system_has_its_consequence() {
        let dir = Path::new("/r");
        let one = |topic, kind, options| {
            folder(topic, dir, Some(&mount("/", kind, options)), Some(5 << 30))
        };
        assert_eq!(
            one("root", "ext4", "rw"),
            [Line::ok("root", "/r on ext4, 5.0 GiB free")]
        );
        assert_eq!(one("root", "ext4", "ro")[0].verdict, Verdict::Fatal);
        assert!(
            one("root", "overlay", "rw")[0]
                .text
                .contains("native snapshotter")
        );
        assert!(
            one("root", "xfs", "rw,nodev")[0]
                .text
                .contains("nodev: device files")
        );
        assert_eq!(
            one("state", "tmpfs", "rw,nodev,nosuid")[0].verdict,
            Verdict::Ok
        );
        let full = folder("root", dir, Some(&mount("/", "ext4", "rw")), Some(5 << 20));
        assert!(full[0].text.ends_with("only 5 MiB free"), "{full:?}");
    }
}
