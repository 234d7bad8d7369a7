//! Owns the systemd driver: a container's cgroup is a transient scope that systemd makes and knows.
//!
//! `cgroupsPath` is `slice:prefix:name`, the scope is `prefix-name.scope` in that slice. Order of things, by whoever has
//! an event loop (the shim):
//!
//! ```text
//! Scope::of(spec)  -->  start(pid, version), a job  -->  Cgroup::enter: control files, what systemd has no word for
//!                                                        Cgroup::set: a call before each update
//!                       stop, a job  <--  Cgroup::delete: what is left of the directories
//! ```
//! systemd makes no scope without a process in it, and the container's own is to be born inside, under its limits. So a
//! *keeper* comes first, a process that does nothing, and goes when the container's first process is there.
//!
//! **Own client instead of zbus.** Five calls, one signal, one peer: `value` and `message` are what is needed of D-Bus.
//! Measured: a program that makes these calls by zbus 5.19 links 18 crates that the shim has not, and is 930 kB larger
//! (1290 kB, opt-level z, fat LTO) than one that has tokio alone; the whole shim is 3.0 MB. The peer is `/run/systemd/private`, root's own
//! way to systemd, which works without a message bus (early boot, containers); runc falls back to it.

mod limits;
mod message;
mod value;

use super::{Cgroup, Options};
use crate::spec::Pids;
use crate::{Error, Resources, Result, Spec};
use limits::{Manager, Properties};
pub use message::{Call, GREETING, Incoming, version};
use std::path::Path;
pub use value::Value;

/// Where systemd listens.
pub const SOCKET: &str = "/run/systemd/private";

/// Names of its refusals that callers act on.
pub const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
pub const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Prefix of annotations that are properties of the unit.
const ANNOTATION: &str = "org.systemd.property.";
/// Where containers go that do not say.
const SLICE: &str = "system.slice";
/// A limit up to here is set after the keeper has gone: it counts, too, and so may a process that forks on its way.
const CROWDED: i64 = 3;

/// A container's unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope {
    name: String,
    slice: String,
    description: String,
    extra: Properties,
}

/// systemd runs this machine.
pub fn is_running() -> bool {
    std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|m| m.is_dir())
}

/// Path of a slice: `a-b.slice` is in `a.slice`, and `-.slice` is the root.
pub fn expand_slice(slice: &str) -> Result<String> {
    let wrong = || Error::invalid(format!("invalid slice name: {slice}"));
    let name = slice.strip_suffix(".slice").ok_or_else(wrong)?;
    if name == "-" {
        return Ok("/".into());
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains(['/', '\0']) {
            return Err(wrong());
        }
        prefix.push_str(part);
        path.push_str(&format!("/{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

// === impl Scope ===

impl Scope {
    /// The unit of a container, from `cgroupsPath` and annotations.
    pub fn of(spec: &Spec, id: &str) -> Result<Self> {
        let asked = spec.linux.cgroups_path.as_str();
        let (slice, prefix, name) = match asked {
            "" => ("", "corten", id),
            _ => {
                let parts: Vec<&str> = asked.split(':').collect();
                let [slice, prefix, name] = parts.as_slice() else {
                    return Err(Error::invalid(format!(
                        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {asked:?} instead"
                    )));
                };
                (*slice, *prefix, *name)
            }
        };
        if name.ends_with(".slice") {
            return Err(Error::invalid(format!(
                "cgroupsPath {asked:?}: a slice has no processes of its own"
            )));
        }
        let unit = format!("{prefix}-{name}.scope");
        // What systemd takes as the name of a unit.
        let fits = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if name.is_empty() || unit.len() > 255 || !unit.chars().all(fits) {
            return Err(Error::invalid(format!("invalid name of a unit: {unit:?}")));
        }
        let slice = if slice.is_empty() { SLICE } else { slice };
        expand_slice(slice)?;
        Ok(Self {
            name: unit,
            slice: slice.to_owned(),
            description: format!("container {name}"),
            extra: annotated(spec)?,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path of its cgroup.
    pub(super) fn path(&self) -> Result<String> {
        let slice = expand_slice(&self.slice)?;
        Ok(format!("{}/{}", slice.trim_end_matches('/'), self.name))
    }

    /// The call that makes it around `keeper`, with every limit systemd knows.
    pub fn start(&self, resources: &Resources, keeper: u32, version: u32) -> Result<Call> {
        let manager = manager(version)?;
        let mut list: Properties = Vec::new();
        let mut say = |name: &str, value: Value| list.push((name.to_owned(), value));
        say("Description", Value::Str(self.description.clone()));
        say("Slice", Value::Str(self.slice.clone()));
        say("Delegate", Value::Bool(true));
        let keeper = Value::Array("u".into(), vec![Value::U32(keeper)]);
        say("PIDs", keeper);
        let io = match manager.unified {
            true => "IOAccounting",
            false => "BlockIOAccounting",
        };
        for accounting in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
            say(accounting, Value::Bool(true));
        }
        // It must not wait for others, nor end with the boot's targets.
        say("DefaultDependencies", Value::Bool(false));
        list.extend(limits::properties(&uncrowded(resources), manager)?);
        if !manager.unified {
            list.extend(limits::devices(&resources.devices)?);
        }
        list.extend(limits::oom_policy(resources, manager));
        // Last, so that they win.
        list.extend(self.extra.iter().cloned());
        Ok(Call::start(&self.name, list))
    }
}

// === impl Cgroup ===

impl Cgroup {
    /// The cgroup of a unit that has just been started around a keeper, with the rest of its limits.
    pub fn enter(spec: &Spec, id: &str) -> Result<Self> {
        let cgroup = Self::open(spec, id, &Options { systemd: true })?;
        let none = Resources::default();
        let resources = spec.linux.resources.as_ref().unwrap_or(&none);
        cgroup.settle(&uncrowded(&limits::rounded(resources)))?;
        Ok(cgroup)
    }

    /// Name of its unit, if systemd made it.
    pub fn unit(&self) -> Option<&str> {
        self.unit.as_deref()
    }

    /// The call that precedes an update, and what the control files get afterwards.
    pub fn set(&self, resources: &Resources, version: u32) -> Result<Option<(Call, Resources)>> {
        let Some(unit) = &self.unit else {
            return Ok(None);
        };
        self.check(resources)?;
        let list = limits::properties(resources, manager(version)?)?;
        Ok(Some((Call::set(unit, list), limits::rounded(resources))))
    }
}

/// What could not be set while the keeper was there; `None` if everything was.
pub fn postponed(resources: &Resources) -> Option<Resources> {
    crowded(resources).then(|| Resources {
        pids: resources.pids.clone(),
        ..Resources::default()
    })
}

fn crowded(resources: &Resources) -> bool {
    let limit = resources.pids.as_ref().and_then(|p| p.limit);
    limit.is_some_and(|l| (0..=CROWDED).contains(&l))
}

fn uncrowded(resources: &Resources) -> Resources {
    let mut resources = resources.clone();
    if crowded(&resources) {
        resources.pids = None::<Pids>;
    }
    resources
}

fn manager(version: u32) -> Result<Manager> {
    let unified = super::host::Host::get()?.unified();
    Ok(Manager { version, unified })
}

/// Annotations that are properties. Names in seconds, as in unit files, become the bus's microseconds.
fn annotated(spec: &Spec) -> Result<Properties> {
    let mut list = Properties::new();
    for (key, text) in &spec.annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else {
            continue;
        };
        let wrong = |why: &str| Error::invalid(format!("annotation {key}={text}: {why}"));
        if name.len() < 3 || !name.chars().all(|c| c.is_ascii_alphabetic()) {
            return Err(wrong("not the name of a property"));
        }
        let value = Value::parse(text).map_err(|_| wrong("value parse error"))?;
        let seconds = name.strip_suffix("Sec");
        let property = match seconds.filter(|n| n.ends_with(|c: char| c.is_ascii_lowercase())) {
            Some(stem) => {
                let value = value.to_microseconds();
                let value = value.ok_or_else(|| wrong("not a number of seconds"))?;
                (format!("{stem}USec"), value)
            }
            None => (name.to_owned(), value),
        };
        list.push(property);
    }
    Ok(list)
}

/// Whether a process is in a unit's cgroup, whichever hierarchy systemd tracks it by.
pub fn holds(unit: &str, pid: i32) -> bool {
    let path = Path::new("/proc").join(pid.to_string()).join("cgroup");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .any(|line| line.ends_with(unit) && line.contains(&format!("/{unit}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str, annotations: &[(&str, &str)]) -> Spec {
        let mut spec = Spec::default();
        path.clone_into(&mut spec.linux.cgroups_path);
        for (key, value) in annotations {
            let key = format!("{ANNOTATION}{key}");
            spec.annotations.insert(key, (*value).to_owned());
        }
        spec
    }

    #[test]
    fn slices_are_nested_by_their_names() {
        let path = |slice| expand_slice(slice).ok();
        assert_eq!(path("a.slice").as_deref(), Some("/a.slice"));
        let nested = "/a.slice/a-b.slice/a-b-c.slice";
        assert_eq!(path("a-b-c.slice").as_deref(), Some(nested));
        assert_eq!(path("-.slice").as_deref(), Some("/"));
        for wrong in [
            "",
            ".slice",
            "a",
            "-a.slice",
            "a--b.slice",
            "a/b.slice",
            "a-.slice",
        ] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn units_are_named_by_the_path() {
        let scope = |path: &str| Scope::of(&spec(path, &[]), "web");
        let of = |path: &str| {
            let scope = scope(path).expect("valid");
            (scope.path().expect("valid"), scope.slice)
        };
        assert_eq!(
            of("machine-a.slice:x:web"),
            (
                "/machine.slice/machine-a.slice/x-web.scope".into(),
                "machine-a.slice".into()
            )
        );
        assert_eq!(
            of(":cri-containerd:1"),
            ("/system.slice/cri-containerd-1.scope".into(), SLICE.into())
        );
        assert_eq!(of("").0, "/system.slice/corten-web.scope");
        assert_eq!(of("-.slice:x:1").0, "/x-1.scope");
        for wrong in [
            "/a/b",
            "a:b",
            "a.slice:b:c:d",
            "x:b:c",
            "a.slice:b:",
            "a.slice:b:c/d",
            "a.slice:b:c.slice",
        ] {
            assert!(scope(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn annotations_are_properties() {
        fn list(annotations: &[(&str, &str)]) -> Result<Properties, String> {
            annotated(&spec("", annotations)).map_err(|e| e.to_string())
        }
        let have = list(&[
            ("CollectMode", "'inactive-or-failed'"),
            ("TimeoutStopSec", "uint64 7"),
            ("TimeoutStopUSec", "uint64 7"),
        ]);
        let want = [
            ("CollectMode", Value::Str("inactive-or-failed".into())),
            ("TimeoutStopUSec", Value::U64(7_000_000)),
            ("TimeoutStopUSec", Value::U64(7)),
        ];
        let want: Vec<_> = want.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        assert_eq!(have, Ok(want));
        for wrong in [
            ("Ab", "1"),
            ("A_b", "1"),
            ("Abc", "x y"),
            ("TimeoutStopSec", "'7'"),
        ] {
            assert!(list(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_limit_too_small_for_two_waits() {
        let of = |json: &str| Resources::parse(json.as_bytes()).expect("a document");
        let small = of(r#"{"pids":{"limit":1},"memory":{"limit":9}}"#);
        assert!(uncrowded(&small).pids.is_none() && uncrowded(&small).memory.is_some());
        let later = postponed(&small).expect("something");
        assert!(later.pids == small.pids && later.memory.is_none());
        for large in [r#"{"pids":{"limit":9}}"#, r#"{"pids":{"limit":-1}}"#, "{}"] {
            assert_eq!(postponed(&of(large)), None);
            assert_eq!(uncrowded(&of(large)), of(large));
        }
    }
}
