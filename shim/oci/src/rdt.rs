//! Owns `linux.intelRdt`: the container's group in the resctrl file system.
//!
//! | closID | schemata given | group |
//! |---|---|---|
//! | none | any | `<id>`, made here and removed with the container |
//! | given | yes | made when missing, and left |
//! | given | no | must exist |
//!
//! `enableMonitoring` makes `mon_groups/<id>` in the group, always removed with the container.

use crate::spec::IntelRdt;
use crate::{Error, Result, Spec};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The groups of one container.
#[derive(Debug, PartialEq, Eq)]
pub struct Rdt {
    group: PathBuf,
    /// It is the container's own: goes with it.
    own: bool,
    monitor: Option<PathBuf>,
}

// === impl Rdt ===

impl Rdt {
    /// The groups of a container by its document; `None` when it asks for none. Nothing is made.
    pub fn open(spec: &Spec, id: &str) -> Result<Option<Self>> {
        let Some(rdt) = &spec.linux.intel_rdt else {
            return Ok(None);
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::system("read /proc/self/mountinfo", e))?;
        let base = mount_point(&mounts).ok_or_else(|| {
            Error::unsupported("linux.intelRdt: this host has no resctrl file system mounted")
        })?;
        Self::below(&base, rdt, id).map(Some)
    }

    /// Makes the groups and writes their schemata; `open` and this undo nothing, `delete` does.
    pub fn create(&self, spec: &Spec) -> Result<()> {
        let Some(rdt) = &spec.linux.intel_rdt else {
            return Ok(());
        };
        let lines = schemata(rdt);
        if !self.group.exists() {
            if !self.own && lines.is_empty() {
                return Err(Error::invalid(format!(
                    "linux.intelRdt: closID {:?} does not exist, and no schemata are given",
                    rdt.clos_id
                )));
            }
            make(&self.group)?;
        }
        for line in lines {
            write(&self.group, "schemata", &format!("{line}\n"))?;
        }
        if let Some(monitor) = &self.monitor {
            make(monitor)?;
        }
        Ok(())
    }

    /// Moves a process in, before it runs its program.
    pub fn join(&self, pid: i32) -> Result<()> {
        write(&self.group, "tasks", &pid.to_string())?;
        match &self.monitor {
            Some(monitor) => write(monitor, "tasks", &pid.to_string()),
            None => Ok(()),
        }
    }

    /// Removes what is the container's own; missing is fine.
    pub fn delete(&self) -> Result<()> {
        let own = Some(&self.group).filter(|_| self.own);
        for dir in self.monitor.iter().chain(own) {
            match fs::remove_dir(dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::system(format!("remove {}", dir.display()), e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn below(base: &Path, rdt: &IntelRdt, id: &str) -> Result<Self> {
        let name = match rdt.clos_id.as_str() {
            "" => id,
            // The group everything starts in.
            "/" => "",
            other => other,
        };
        if name.contains(['/', '\0', '\n']) || matches!(name, "." | "..") {
            return Err(Error::invalid(format!("linux.intelRdt: closID {name:?}")));
        }
        let lines = [&rdt.l3_cache_schema, &rdt.mem_bw_schema];
        if lines
            .into_iter()
            .chain(&rdt.schemata)
            .any(|l| l.contains('\0'))
        {
            return Err(Error::invalid("linux.intelRdt: NUL byte in a schema"));
        }
        let group = base.join(name);
        Ok(Self {
            own: rdt.clos_id.is_empty(),
            monitor: rdt
                .enable_monitoring
                .then(|| group.join("mon_groups").join(id)),
            group,
        })
    }
}

/// The lines to write: the two old fields, then the list, each line on its own.
fn schemata(rdt: &IntelRdt) -> Vec<&str> {
    let old = [rdt.l3_cache_schema.as_str(), rdt.mem_bw_schema.as_str()];
    let all = old
        .into_iter()
        .chain(rdt.schemata.iter().map(String::as_str));
    all.flat_map(str::lines)
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect()
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let found = right.split(' ').next() == Some("resctrl");
        found.then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
    })
}

fn make(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::system(format!("make {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}

fn write(dir: &Path, file: &str, text: &str) -> Result<()> {
    let path = dir.join(file);
    let options = fs::File::options().append(true).open(&path);
    options
        .and_then(|mut f| io::Write::write_all(&mut f, text.as_bytes()))
        .map_err(|e| Error::system(format!("write {text:?} to {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rdt: &serde_json::Value) -> Spec {
        let text = serde_json::json!({"ociVersion": "1.3.0", "linux": {"intelRdt": rdt}});
        Spec::parse(text.to_string().as_bytes()).expect("valid")
    }

    #[test]
    fn groups_by_closid() {
        let base = tempfile::tempdir().expect("temp dir");
        let open = |s: &Spec, id: &str| {
            let rdt = s.linux.intel_rdt.as_ref().expect("given");
            Rdt::below(base.path(), rdt, id)
        };
        let s = spec(&serde_json::json!({"closID": "gold"}));
        assert!(
            open(&s, "c").expect("valid").create(&s).is_err(),
            "must exist"
        );
        let s = spec(&serde_json::json!({"closID": "../x"}));
        assert!(open(&s, "c").is_err());
        // The kernel makes the files of a group; here a test does.
        let s = spec(&serde_json::json!({
            "l3CacheSchema": "L3:0=f\nL3:1=f", "memBwSchema": "MB:0=50", "schemata": ["L2:0=3"]}));
        let group = base.path().join("c");
        fs::create_dir(&group).expect("mkdir");
        for file in ["schemata", "tasks"] {
            fs::write(group.join(file), "").expect("write");
        }
        let rdt = open(&s, "c").expect("valid");
        rdt.create(&s).expect("made");
        rdt.join(42).expect("joined");
        let read = |f: &str| fs::read_to_string(group.join(f)).expect("text");
        assert_eq!(read("schemata"), "L3:0=f\nL3:1=f\nMB:0=50\nL2:0=3\n");
        assert_eq!(read("tasks"), "42");
        for file in ["schemata", "tasks"] {
            fs::remove_file(group.join(file)).expect("remove");
        }
        rdt.delete().expect("gone");
        rdt.delete().expect("gone already");
        assert!(!group.exists());
        let s = spec(&serde_json::json!({"closID": "/", "enableMonitoring": true}));
        let root = open(&s, "c").expect("valid");
        assert_eq!(root.group, base.path().join(""));
        assert_eq!(root.monitor, Some(base.path().join("mon_groups/c")));
        assert!(!root.own);
    }

    #[test]
    fn finds_the_mount() {
        let line = "30 23 0:26 / /sys/fs/resctrl rw,relatime - resctrl resctrl rw\n";
        assert_eq!(mount_point(line), Some("/sys/fs/resctrl".into()));
        assert_eq!(mount_point("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
