//! Owns what cgroup hierarchies the host has, found once per process.

use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Part of the hierarchy that is mounted; not `/` inside a container.
    pub(crate) root: String,
    /// v1 controllers, or `name=...`; empty on v2.
    pub(crate) controllers: Vec<String>,
    pub(crate) v2: bool,
    /// This process's own cgroup in it.
    pub(crate) own: String,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) hierarchies: Vec<Hierarchy>,
}

// === impl Host ===

impl Host {
    /// The host's layout, read at the first call.
    pub(crate) fn get() -> Result<&'static Self> {
        static HOST: OnceLock<Host> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|e| Error::system(format!("read {path}"), e))
        };
        let host = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        Ok(HOST.get_or_init(|| host))
    }

    pub(crate) fn parse(mountinfo: &str, own: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (left.next(), left.next()) else {
                continue;
            };
            let mut right = right.split(' ');
            let v2 = match right.next() {
                Some("cgroup") => false,
                Some("cgroup2") => true,
                _ => continue,
            };
            let options = right.nth(1).unwrap_or("");
            let controllers: Vec<String> = if v2 {
                Vec::new()
            } else {
                options
                    .split(',')
                    .filter(controller)
                    .map(str::to_owned)
                    .collect()
            };
            let same = |h: &Hierarchy| h.v2 == v2 && h.controllers == controllers;
            if hierarchies.iter().any(same) {
                continue;
            }
            let own = own_path(own, v2, &controllers);
            hierarchies.push(Hierarchy {
                mount: PathBuf::from(mount.replace("\\040", " ")),
                root: root.to_owned(),
                controllers,
                v2,
                own,
            });
        }
        Self { hierarchies }
    }

    /// The controllers are on the unified hierarchy.
    pub(crate) fn unified(&self) -> bool {
        !self
            .hierarchies
            .iter()
            .any(|h| h.controllers.iter().any(|c| !c.starts_with("name=")))
    }
}

// === impl Hierarchy ===

impl Hierarchy {
    /// Directory of a container's cgroup: absolute paths start at the mount, relative at our own.
    pub(crate) fn dir(&self, path: &str) -> PathBuf {
        let below = Path::new(path);
        match below.strip_prefix("/") {
            Ok(below) => self.mount.join(below),
            Err(_) => self.own_dir().join(below),
        }
    }

    /// Directory of the cgroup a process is in, given its /proc/PID/cgroup.
    pub(crate) fn dir_of(&self, text: &str) -> PathBuf {
        let path = own_path(text, self.v2, &self.controllers);
        let below = path
            .strip_prefix(self.root.trim_end_matches('/'))
            .unwrap_or(&path);
        self.mount.join(below.trim_start_matches('/'))
    }

    /// Directory of the cgroup this process is in.
    pub(crate) fn own_dir(&self) -> PathBuf {
        let below = self.own.strip_prefix(self.root.trim_end_matches('/'));
        self.mount
            .join(below.unwrap_or(&self.own).trim_start_matches('/'))
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// Super-block options that are not mount options.
fn controller(option: &&str) -> bool {
    !matches!(
        *option,
        "" | "rw" | "ro" | "clone_children" | "noprefix" | "xattr" | "none" | "seclabel"
    ) && !option.starts_with("release_agent=")
}

fn own_path(text: &str, v2: bool, controllers: &[String]) -> String {
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(list), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let hit = if v2 {
            id == "0" && list.is_empty()
        } else {
            list.split(',')
                .any(|c| controllers.iter().any(|own| own == c))
        };
        if hit {
            return path.to_owned();
        }
    }
    "/".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_hybrid_host() {
        let mountinfo = "\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n";
        let host = Host::parse(mountinfo, "9:name=systemd:/s\n1:cpu,cpuacct:/me\n0::/u\n");
        let seen: Vec<_> = host
            .hierarchies
            .iter()
            .map(|h| (h.own.as_str(), h.v2))
            .collect();
        assert_eq!(seen, [("/me", false), ("/s", false), ("/u", true)]);
        assert!(!host.unified());
        let cpu = host.hierarchies.first().expect("three of them");
        assert_eq!(cpu.controllers, ["cpu", "cpuacct"]);
        assert_eq!(cpu.dir("/a/b"), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(cpu.dir("a"), Path::new("/sys/fs/cgroup/cpu,cpuacct/me/a"));
        let v2 = Host::parse(
            "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "0::/x\n",
        );
        assert!(v2.unified());
    }
}
