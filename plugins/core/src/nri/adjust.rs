//! What plugins want of a new container, done to its OCI specification.
//!
//! The specification is JSON here, so that nothing in it that we do not know is lost. A key with a leading `-` removes what
//! has that key; all removals of one kind come before what is added.

use std::collections::{BTreeMap, BTreeSet};

use corten_protos::nri::pkg::api::v1alpha1 as api;
use serde_json::{Map, Value, json};

use crate::{Context, Error, Kind, Result};

/// What an adjustment needs to know of the host and of the runtime's configuration.
pub trait Host {
    /// Whether limits of huge pages are to be set at all.
    fn hugetlb(&self) -> bool;

    /// `linux.resources.blockIO` of a class; none leaves the specification as it is.
    ///
    /// # Errors
    /// There is no such class.
    fn block_io(&self, class: &str) -> Result<Option<Value>>;

    /// Adds the devices of these fully qualified CDI names.
    ///
    /// # Errors
    /// One is unknown.
    fn inject_cdi(&self, spec: &mut Value, devices: &[String]) -> Result<()>;

    /// `rshared` or `rslave`, as the mount is on which this path lies; none when it is private.
    ///
    /// # Errors
    /// The mounts cannot be read.
    fn propagation(&self, path: &str) -> Result<Option<&'static str>>;
}

/// Applies `adjust` to `spec`. On an error `spec` is half done and of no use.
///
/// # Errors
/// A name that the host or the specification's format does not know.
pub fn adjust(spec: &mut Value, adjust: &api::ContainerAdjustment, host: &dyn Host) -> Result<()> {
    keyed(spec, &["annotations"], &adjust.annotations, |v| json!(v));
    env(spec, &adjust.env);
    if !adjust.args.is_empty() {
        at(spec, &["process"]).insert("args".into(), json!(adjust.args));
    }
    if let Some(h) = &adjust.hooks {
        hooks(spec, h);
    }
    if !adjust.cdi_devices.is_empty() {
        let names: Vec<String> = adjust.cdi_devices.iter().map(|d| d.name.clone()).collect();
        host.inject_cdi(spec, &names)?;
    }
    if let Some(l) = &adjust.linux {
        linux(spec, l, host)?;
    }
    mounts(spec, &adjust.mounts, host).context("failed to adjust mounts in OCI Spec")?;
    rlimits(spec, &adjust.rlimits);
    Ok(())
}

fn linux(spec: &mut Value, l: &api::LinuxContainerAdjustment, host: &dyn Host) -> Result<()> {
    devices(spec, &l.devices);
    if !l.cgroups_path.is_empty() {
        at(spec, &["linux"]).insert("cgroupsPath".into(), json!(l.cgroups_path));
    }
    if let Some(score) = &l.oom_score_adj {
        at(spec, &["process"]).insert("oomScoreAdj".into(), json!(score.value));
    }
    if let Some(p) = &l.io_priority {
        let class = match p.class() {
            api::IoPrioClass::IoprioClassNone => None,
            class => Some(json!({"class": class.as_str_name(), "priority": p.priority})),
        };
        set(at(spec, &["process"]), "ioPriority", class);
    }
    if let Some(s) = &l.scheduler {
        set(at(spec, &["process"]), "scheduler", scheduler(s));
    }
    if let Some(s) = &l.seccomp_policy {
        at(spec, &["linux"]).insert("seccomp".into(), seccomp(s));
    }
    for n in &l.namespaces {
        namespace(spec, n)?;
    }
    keyed(spec, &["linux", "sysctl"], &l.sysctl, |v| json!(v));
    keyed(spec, &["linux", "netDevices"], &l.net_devices, |d| {
        if d.name.is_empty() {
            json!({})
        } else {
            json!({"name": d.name})
        }
    });
    if let Some(p) = &l.memory_policy {
        let flags: Vec<&str> = p.flags().map(|f| f.as_str_name()).collect();
        let mut policy = json!({"mode": p.mode().as_str_name(), "nodes": p.nodes});
        if !flags.is_empty() {
            policy["flags"] = json!(flags);
        }
        at(spec, &["linux"]).insert("memoryPolicy".into(), policy);
    }
    if let Some(r) = &l.resources {
        resources(spec, r, host);
        classes(spec, r, host)?;
    }
    if let Some(r) = &l.rdt {
        rdt(spec, r);
    }
    Ok(())
}

/// The key without its mark, and whether it was marked for removal.
pub fn removal(key: &str) -> (&str, bool) {
    match key.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (key, false),
    }
}

/// Removes and sets entries of the object at `path`.
fn keyed<T>(
    spec: &mut Value,
    path: &[&str],
    changes: &BTreeMap<String, T>,
    value: impl Fn(&T) -> Value,
) {
    if changes.is_empty() {
        return;
    }
    let object = at(spec, path);
    for key in changes.keys() {
        if let (key, true) = removal(key) {
            object.remove(key);
        }
    }
    for (key, v) in changes {
        if !removal(key).1 {
            object.insert(key.clone(), value(v));
        }
    }
}

fn env(spec: &mut Value, changes: &[api::KeyValue]) {
    if changes.is_empty() {
        return;
    }
    // The last word on a variable counts.
    let wanted: BTreeMap<&str, &api::KeyValue> =
        changes.iter().map(|e| (removal(&e.key).0, e)).collect();
    let mut done = BTreeSet::new();
    let mut out = Vec::new();
    let env = list(at(spec, &["process"]), "env");
    for old in env.iter() {
        let Some((key, _)) = old.as_str().and_then(|e| e.split_once('=')) else {
            continue;
        };
        match wanted.get(key) {
            None => out.push(old.clone()),
            Some(e) if !removal(&e.key).1 && done.insert(key) => {
                out.push(json!(format!("{key}={}", e.value)));
            }
            Some(_) => {}
        }
    }
    for e in changes {
        let (key, removed) = removal(&e.key);
        if !removed && !key.is_empty() && std::ptr::eq(wanted[key], e) && !done.contains(key) {
            out.push(json!(format!("{key}={}", e.value)));
        }
    }
    *env = out;
}

fn hooks(spec: &mut Value, hooks: &api::Hooks) {
    for (name, of) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        if of.is_empty() {
            continue;
        }
        list(at(spec, &["hooks"]), name).extend(of.iter().map(|h| {
            let mut hook = json!({"path": h.path});
            let object = map(&mut hook);
            set(object, "args", filled(&h.args));
            set(object, "env", filled(&h.env));
            set(object, "timeout", h.timeout.map(|t| json!(t.value)));
            hook
        }));
    }
}

fn devices(spec: &mut Value, devices: &[api::LinuxDevice]) {
    for d in devices {
        let (path, removed) = removal(&d.path);
        let all = list(at(spec, &["linux"]), "devices");
        all.retain(|old| old["path"] != path);
        if removed {
            continue;
        }
        let mut device =
            json!({"path": d.path, "type": d.r#type, "major": d.major, "minor": d.minor});
        let object = map(&mut device);
        set(object, "fileMode", d.file_mode.map(|m| json!(m.value)));
        set(object, "uid", d.uid.map(|v| json!(v.value)));
        set(object, "gid", d.gid.map(|v| json!(v.value)));
        all.push(device);
        // nri pkg/api/device.go: the mode takes nothing away, and only block devices may be made anew.
        let access = if d.r#type == "b" { "rwm" } else { "rw" };
        list(at(spec, &["linux", "resources"]), "devices").push(json!({
            "allow": true, "type": d.r#type, "major": d.major, "minor": d.minor, "access": access,
        }));
    }
}

fn namespace(spec: &mut Value, n: &api::LinuxNamespace) -> Result<()> {
    const KNOWN: [&str; 8] = [
        "network", "pid", "mount", "ipc", "uts", "user", "cgroup", "time",
    ];
    let (name, removed) = removal(&n.r#type);
    if !KNOWN.contains(&name) {
        return Err(Error::new(
            Kind::Unknown,
            format!("unrecognized namespace {name:?}"),
        ));
    }
    let all = list(at(spec, &["linux"]), "namespaces");
    if removed {
        all.retain(|old| old["type"] != name);
        return Ok(());
    }
    let mut namespace = json!({"type": name});
    put(map(&mut namespace), "path", text(&n.path));
    match all.iter_mut().find(|old| old["type"] == name) {
        Some(old) => *old = namespace,
        None => all.push(namespace),
    }
    Ok(())
}

fn scheduler(s: &api::LinuxScheduler) -> Option<Value> {
    let policy = s.policy();
    if policy == api::LinuxSchedulerPolicy::SchedNone {
        return None;
    }
    let mut out = json!({"policy": policy.as_str_name()});
    let object = map(&mut out);
    let flags: Vec<&str> = s.flags().map(|f| f.as_str_name()).collect();
    if !flags.is_empty() {
        object.insert("flags".into(), json!(flags));
    }
    for (key, value) in [("nice", s.nice), ("priority", s.priority)] {
        set(object, key, (value != 0).then(|| json!(value)));
    }
    for (key, value) in [
        ("runtime", s.runtime),
        ("deadline", s.deadline),
        ("period", s.period),
    ] {
        set(object, key, (value != 0).then(|| json!(value)));
    }
    Some(out)
}

fn seccomp(s: &api::LinuxSeccomp) -> Value {
    let syscalls = s.syscalls.iter().map(|c| {
        let mut call = json!({"names": c.names, "action": c.action});
        let object = map(&mut call);
        set(object, "errnoRet", c.errno_ret.map(|v| json!(v.value)));
        if !c.args.is_empty() {
            let args = c.args.iter().map(|a| {
                json!({"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op})
            });
            object.insert("args".into(), args.collect());
        }
        call
    });
    let syscalls: Value = syscalls.collect();
    let mut out = json!({"defaultAction": s.default_action, "syscalls": syscalls});
    let object = map(&mut out);
    set(
        object,
        "defaultErrnoRet",
        s.default_errno.map(|v| json!(v.value)),
    );
    set(object, "architectures", filled(&s.architectures));
    set(object, "flags", filled(&s.flags));
    put(object, "listenerPath", text(&s.listener_path));
    put(object, "listenerMetadata", text(&s.listener_metadata));
    out
}

fn resources(spec: &mut Value, r: &api::LinuxResources, host: &dyn Host) {
    if let Some(c) = &r.cpu {
        let cpu = at(spec, &["linux", "resources", "cpu"]);
        put(cpu, "period", c.period.map(|v| v.value));
        put(cpu, "quota", c.quota.map(|v| v.value));
        put(cpu, "shares", c.shares.map(|v| v.value));
        put(cpu, "realtimeRuntime", c.realtime_runtime.map(|v| v.value));
        put(cpu, "realtimePeriod", c.realtime_period.map(|v| v.value));
        put(cpu, "cpus", text(&c.cpus));
        put(cpu, "mems", text(&c.mems));
    }
    if let Some(m) = &r.memory {
        let memory = at(spec, &["linux", "resources", "memory"]);
        if let Some(limit) = m.limit.map(|v| v.value).filter(|v| *v != 0) {
            put(memory, "limit", Some(limit));
            // Without a word on swap there is to be none.
            put(memory, "swap", Some(limit));
        }
        put(memory, "swap", m.swap.map(|v| v.value));
        put(memory, "reservation", m.reservation.map(|v| v.value));
        put(memory, "kernel", m.kernel.map(|v| v.value));
        put(memory, "kernelTCP", m.kernel_tcp.map(|v| v.value));
        put(memory, "swappiness", m.swappiness.map(|v| v.value));
        put(
            memory,
            "disableOOMKiller",
            m.disable_oom_killer.map(|v| v.value),
        );
        put(memory, "useHierarchy", m.use_hierarchy.map(|v| v.value));
    }
    for l in &r.hugepage_limits {
        let all = list(at(spec, &["linux", "resources"]), "hugepageLimits");
        all.retain(|old| old["pageSize"] != l.page_size.as_str());
        all.push(json!({"pageSize": l.page_size, "limit": l.limit}));
    }
    if !host.hugetlb() {
        at(spec, &["linux", "resources"]).remove("hugepageLimits");
    }
    if !r.unified.is_empty() {
        let unified = at(spec, &["linux", "resources", "unified"]);
        unified.extend(r.unified.iter().map(|(k, v)| (k.clone(), json!(v))));
    }
    if let Some(p) = &r.pids {
        let limit = p.limit.max(-1);
        at(spec, &["linux", "resources"]).insert("pids".into(), json!({"limit": limit}));
    }
    for d in &r.devices {
        let mut rule = json!({"allow": d.allow, "access": d.access});
        let object = map(&mut rule);
        put(object, "type", text(&d.r#type));
        put(object, "major", d.major.map(|v| v.value));
        put(object, "minor", d.minor.map(|v| v.value));
        list(at(spec, &["linux", "resources"]), "devices").push(rule);
    }
}

/// Classes of block I/O and of RDT; the empty one takes away what there is.
fn classes(spec: &mut Value, r: &api::LinuxResources, host: &dyn Host) -> Result<()> {
    match r.blockio_class.as_ref().map(|c| c.value.as_str()) {
        None => {}
        Some("") => {
            at(spec, &["linux", "resources"]).remove("blockIO");
        }
        Some(class) => {
            let block_io = host
                .block_io(class)
                .context("failed to adjust BlockIO class in OCI Spec")?;
            if let Some(v) = block_io {
                at(spec, &["linux", "resources"]).insert("blockIO".into(), v);
            }
        }
    }
    match r.rdt_class.as_ref().map(|c| c.value.as_str()) {
        None => {}
        Some("") => {
            at(spec, &["linux"]).remove("intelRdt");
        }
        Some(class) => {
            at(spec, &["linux"]).insert("intelRdt".into(), json!({"closID": class}));
        }
    }
    Ok(())
}

fn rdt(spec: &mut Value, r: &api::LinuxRdt) {
    if r.remove {
        at(spec, &["linux"]).remove("intelRdt");
    }
    if r.clos_id.is_none() && r.schemata.is_none() && r.enable_monitoring.is_none() {
        return;
    }
    let object = at(spec, &["linux", "intelRdt"]);
    put(
        object,
        "closID",
        r.clos_id.as_ref().map(|v| v.value.as_str()),
    );
    let schemata = r.schemata.as_ref().map(|v| json!(v.value));
    put(object, "schemata", schemata);
    put(
        object,
        "enableMonitoring",
        r.enable_monitoring.map(|v| v.value),
    );
}

fn mounts(spec: &mut Value, mounts: &[api::Mount], host: &dyn Host) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    for m in mounts {
        let (destination, removed) = removal(&m.destination);
        list(map(spec), "mounts").retain(|old| old["destination"] != destination);
        if removed {
            continue;
        }
        propagate(spec, m, host)?;
        let mut mount = json!({"destination": m.destination});
        let object = map(&mut mount);
        put(object, "type", text(&m.r#type));
        put(object, "source", text(&m.source));
        set(object, "options", filled(&m.options));
        list(map(spec), "mounts").push(mount);
    }
    // What lies deeper is mounted later.
    list(map(spec), "mounts").sort_by_key(|m| {
        let destination = m["destination"].as_str().unwrap_or_default().to_owned();
        let depth = destination.split('/').filter(|p| !p.is_empty()).count();
        (depth, destination)
    });
    Ok(())
}

/// A mount that is to be shared needs a source that is, and a root that lets it through.
fn propagate(spec: &mut Value, m: &api::Mount, host: &dyn Host) -> Result<()> {
    let wanted = m
        .options
        .iter()
        .rev()
        .find(|o| matches!(o.as_str(), "rprivate" | "rshared" | "rslave"));
    let accepted: &[&str] = match wanted.map(String::as_str) {
        Some("rshared") => &["rshared"],
        Some("rslave") => &["rshared", "rslave"],
        _ => return Ok(()),
    };
    let is = host.propagation(&m.source)?.unwrap_or_default();
    if !accepted.contains(&is) {
        return Err(Error::new(
            Kind::Unknown,
            format!(
                "path {:?} mount propagation is {is:?}, not {:?}",
                m.source,
                accepted.join(" or ")
            ),
        ));
    }
    let linux = at(spec, &["linux"]);
    let root = linux.get("rootfsPropagation").and_then(Value::as_str);
    if accepted.len() == 1 || !matches!(root, Some("rshared" | "rslave")) {
        put(linux, "rootfsPropagation", wanted.map(String::as_str));
    }
    Ok(())
}

fn rlimits(spec: &mut Value, rlimits: &[api::PosixRlimit]) {
    for l in rlimits {
        let all = list(at(spec, &["process"]), "rlimits");
        // The specification forbids two of a type.
        all.retain(|old| old["type"] != l.r#type.as_str());
        all.push(json!({"type": l.r#type, "hard": l.hard, "soft": l.soft}));
    }
}

// === pieces of JSON ===

/// The object at `path`, made where there is none.
fn at<'a>(spec: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut v = spec;
    for key in path {
        v = map(v).entry(*key).or_insert(Value::Null);
    }
    map(v)
}

fn map(v: &mut Value) -> &mut Map<String, Value> {
    if !v.is_object() {
        *v = json!({});
    }
    v.as_object_mut().expect("made one just above")
}

/// The array of this name, made where there is none.
fn list<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let v = object.entry(key).or_insert(Value::Null);
    if !v.is_array() {
        *v = json!([]);
    }
    v.as_array_mut().expect("made one just above")
}

/// Sets a key, or removes it.
fn set(object: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    match value {
        Some(v) => object.insert(key.into(), v),
        None => object.remove(key),
    };
}

/// Sets a key, or leaves it.
fn put(object: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(v) = value {
        object.insert(key.into(), v.into());
    }
}

/// A text that says something.
fn text(t: &str) -> Option<&str> {
    Some(t).filter(|t| !t.is_empty())
}

fn filled(list: &[String]) -> Option<Value> {
    (!list.is_empty()).then(|| json!(list))
}

#[cfg(test)]
mod tests;
