//! Owns the freezer: v1's state file, or `cgroup.freeze`.
//!
//! Nothing here waits. A freeze takes its time where a process sits in the kernel, so it is asked for and asked after:
//! the caller, who has an event loop, decides how often and how long.

use super::{Cgroup, file};
use crate::{Error, Result};
use std::io;

// === impl Cgroup ===

impl Cgroup {
    /// Asks for a standstill of every process in it. `Ok(true)` = they stand; else call again later, or `thaw`. The v1
    /// freezer has no event, and forks that raced with it are caught only by asking again.
    pub fn freeze(&self) -> Result<bool> {
        let (part, v1) = self.freezer()?;
        let (name, value) = if v1 {
            ("freezer.state", "FROZEN")
        } else {
            ("cgroup.freeze", "1")
        };
        write(&part.dir, name, value)?;
        Ok(if v1 {
            file::text(&part.dir, name).is_some_and(|t| t == value)
        } else {
            let events = file::keyed(&part.dir, "cgroup.events");
            events.get("frozen").copied().unwrap_or(0) == 1
        })
    }

    /// Lets them go on. A group that is gone has nothing to thaw.
    pub fn thaw(&self) -> Result<()> {
        let (part, v1) = self.freezer()?;
        let (name, value) = if v1 {
            ("freezer.state", "THAWED")
        } else {
            ("cgroup.freeze", "0")
        };
        match write(&part.dir, name, value) {
            Err(e) if e.kind == crate::Kind::NotFound => Ok(()),
            r => r,
        }
    }

    /// The directory that [`Cgroup::freeze`] writes to; for CRIU.
    pub fn freezer_dir(&self) -> Option<&std::path::Path> {
        self.freezer().ok().map(|(part, _)| part.dir.as_path())
    }

    /// The directory, and whether it is a v1 one.
    fn freezer(&self) -> Result<(&super::Part, bool)> {
        if let Some(part) = self.with("freezer") {
            return Ok((part, true));
        }
        let part = self.v2();
        part.map(|p| (p, false))
            .ok_or_else(|| Error::unsupported("no freezer on this host"))
    }
}

fn write(dir: &std::path::Path, name: &str, value: &str) -> Result<()> {
    file::raw(dir, name, value).map_err(|e: io::Error| {
        Error::system(format!("write {value} to {}", dir.join(name).display()), e)
    })
}
