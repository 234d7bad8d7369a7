//! Older config versions brought to version 4.
//!
//! 1 -> 2: plugins get full URIs. 2 -> 3: the CRI's one table becomes the runtime, images and grpc tables.
//! 3 -> 4: the listeners move from top-level tables to `plugins."io.containerd.server.v1.*"`.

use std::path::Path;

use super::{
    ConfigError, DEBUG_TABLE, GRPC_TABLE, GRPC_TCP_TABLE, METRICS_TABLE, TTRPC_TABLE, VERSION,
};

const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const TASKS: &str = "io.containerd.runtime.v2.task";
const SHIMS: &str = "io.containerd.shim.v1.manager";

/// Short plugin names of version 1.
const SHORT_NAMES: [(&str, &str); 16] = [
    ("cri", CRI),
    ("cgroups", "io.containerd.monitor.v1.cgroups"),
    ("linux", "io.containerd.runtime.v1.linux"),
    ("scheduler", "io.containerd.gc.v1.scheduler"),
    ("bolt", "io.containerd.metadata.v1.bolt"),
    ("task", "io.containerd.runtime.v2.task"),
    ("opt", "io.containerd.internal.v1.opt"),
    ("restart", "io.containerd.internal.v1.restart"),
    ("tracing", "io.containerd.internal.v1.tracing"),
    ("aufs", "io.containerd.snapshotter.v1.aufs"),
    ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
    ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
    ("native", "io.containerd.snapshotter.v1.native"),
    ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
    ("zfs", "io.containerd.snapshotter.v1.zfs"),
    ("diff-service", "io.containerd.service.v1.diff-service"),
];

/// Plugins that changed their URI since version 2.
const RENAMED: [(&str, &str); 2] = [
    (
        "io.containerd.monitor.v1.cgroups",
        "io.containerd.monitor.task.v1.cgroups",
    ),
    (
        "io.containerd.internal.v1.restart",
        "io.containerd.monitor.container.v1.restart",
    ),
];

/// The CRI keys of version 2 that belong to the images plugin now.
const CRI_IMAGE_KEYS: [&str; 6] = [
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    // Seconds. The runtime's key of that name is younger, and a duration.
    "stats_collect_period",
];
/// The CRI keys of version 2 that stay with the gRPC façade.
const CRI_GRPC_KEYS: [&str; 6] = [
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
];

/// The version of a file; none means 1 (containerd: config v1 had no version key).
pub(super) fn check_version(table: &toml::Table, path: &Path) -> Result<i64, ConfigError> {
    let version = match table.get("version") {
        None if table.is_empty() => VERSION,
        // A drop-in without version is read as the newest, a file with old top-level tables as version 1.
        None => {
            let old = ["grpc", "ttrpc", "metrics", "plugins"]
                .iter()
                .any(|k| table.contains_key(*k));
            if old { 1 } else { VERSION }
        }
        Some(v) => v.as_integer().unwrap_or(0),
    };
    if !(1..=VERSION).contains(&version) {
        return Err(ConfigError::Version {
            path: path.into(),
            version,
        });
    }
    Ok(version)
}

/// Brings `table` from `version` to version 4; `warnings` gets what has no counterpart.
pub(super) fn migrate(
    mut table: toml::Table,
    version: i64,
    warnings: &mut Vec<String>,
) -> toml::Table {
    if version < 2 {
        full_names(&mut table);
    }
    if version < 3 {
        renamed_plugins(&mut table);
        split_cri(&mut table, warnings);
    }
    if version < 4 {
        move_listeners(&mut table);
        move_sched_core(&mut table);
    }
    table.insert("version".into(), VERSION.into());
    table
}

fn plugins(table: &mut toml::Table) -> Option<&mut toml::Table> {
    table.get_mut("plugins")?.as_table_mut()
}

fn full_names(table: &mut toml::Table) {
    let full = |name: &str| {
        SHORT_NAMES
            .iter()
            .find(|(s, _)| *s == name)
            .map(|(_, f)| *f)
    };
    if let Some(p) = plugins(table) {
        let names: Vec<String> = p.keys().cloned().collect();
        for name in names {
            if let (Some(uri), Some(value)) = (full(&name), p.get(&name).cloned()) {
                p.remove(&name);
                p.insert(uri.into(), value);
            }
        }
    }
    for list in ["disabled_plugins", "required_plugins"] {
        for v in table
            .get_mut(list)
            .and_then(|v| v.as_array_mut())
            .into_iter()
            .flatten()
        {
            if let Some(uri) = v.as_str().and_then(full) {
                *v = uri.into();
            }
        }
    }
}

fn renamed_plugins(table: &mut toml::Table) {
    let Some(p) = plugins(table) else { return };
    for (old, new) in RENAMED {
        if let Some(v) = p.remove(old) {
            p.insert(new.into(), v);
        }
    }
}

fn split_cri(table: &mut toml::Table, warnings: &mut Vec<String>) {
    let Some(p) = plugins(table) else { return };
    let Some(toml::Value::Table(old)) = p.remove(CRI) else {
        return;
    };
    let (mut runtime, mut images, mut grpc) =
        (toml::Table::new(), toml::Table::new(), toml::Table::new());
    for (key, value) in old {
        match key.as_str() {
            "sandbox_image" => {
                let mut pinned = toml::Table::new();
                pinned.insert("sandbox".into(), value);
                images.insert("pinned_images".into(), pinned.into());
            }
            // Gone since 2.x: the driver is an option of each runtime; CDI is always on.
            "systemd_cgroup" | "enable_cdi" | "disable_cgroup" => {
                if key != "enable_cdi" {
                    warnings.push(format!("config key {CRI}.{key} has no effect any more"));
                }
            }
            "containerd" => move_containerd(value, &mut runtime, &mut images),
            "cni" => {
                runtime.insert("cni".into(), move_bin_dir(value));
            }
            k if CRI_IMAGE_KEYS.contains(&k) => {
                images.insert(key, value);
            }
            k if CRI_GRPC_KEYS.contains(&k) => {
                grpc.insert(key, value);
            }
            _ => {
                runtime.insert(key, value);
            }
        }
    }
    for (uri, t) in [(CRI_RUNTIME, runtime), (CRI_IMAGES, images), (CRI, grpc)] {
        if !t.is_empty() {
            p.insert(uri.into(), t.into());
        }
    }
}

fn move_containerd(value: toml::Value, runtime: &mut toml::Table, images: &mut toml::Table) {
    let toml::Value::Table(mut t) = value else {
        return;
    };
    for key in [
        "snapshotter",
        "disable_snapshot_annotations",
        "discard_unpacked_layers",
    ] {
        if let Some(v) = t.remove(key) {
            images.insert(key.into(), v);
        }
    }
    let runtimes = t.get_mut("runtimes").and_then(toml::Value::as_table_mut);
    let runtimes = runtimes.into_iter().flat_map(toml::Table::iter_mut);
    for handler in runtimes.filter_map(|(_, handler)| handler.as_table_mut()) {
        // Its name in containerd 1.7.
        if let Some(mode) = handler.remove("sandbox_mode") {
            handler.entry("sandboxer").or_insert(mode);
        }
    }
    if !t.is_empty() {
        runtime.insert("containerd".into(), t.into());
    }
}

fn move_bin_dir(value: toml::Value) -> toml::Value {
    let toml::Value::Table(mut t) = value else {
        return value;
    };
    if let Some(dir) = t.remove("bin_dir") {
        let given = t.get("bin_dirs").and_then(toml::Value::as_array);
        if given.is_none_or(Vec::is_empty) {
            t.insert("bin_dirs".into(), toml::Value::Array(vec![dir]));
        }
    }
    t.into()
}

/// Core scheduling became an entry of the shims' environment.
fn move_sched_core(table: &mut toml::Table) {
    let Some(p) = plugins(table) else { return };
    let tasks = p.get_mut(TASKS).and_then(toml::Value::as_table_mut);
    let asked = tasks.and_then(|tasks| tasks.remove("sched_core"));
    if asked.and_then(|asked| asked.as_bool()) != Some(true) {
        return;
    }
    let shims = p
        .entry(SHIMS)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let env = shims.as_table_mut().map(|shims| {
        shims
            .entry("env")
            .or_insert_with(|| toml::Value::Array(Vec::new()))
    });
    if let Some(env) = env.and_then(toml::Value::as_array_mut) {
        env.push("SCHED_CORE=1".into());
    }
}

fn move_listeners(table: &mut toml::Table) {
    let mut moved: Vec<(&str, toml::Table)> = Vec::new();
    if let Some(toml::Value::Table(mut grpc)) = table.remove("grpc") {
        let mut tcp = toml::Table::new();
        for (old, new) in [
            ("tcp_address", "address"),
            ("tcp_tls_ca", "tls_ca"),
            ("tcp_tls_cert", "tls_cert"),
            ("tcp_tls_key", "tls_key"),
            ("tcp_tls_common_name", "tls_common_name"),
        ] {
            if let Some(v) = grpc.remove(old).filter(|v| v.as_str() != Some("")) {
                tcp.insert(new.into(), v);
            }
        }
        if !tcp.is_empty() {
            moved.push((GRPC_TCP_TABLE, tcp));
        }
        moved.push((GRPC_TABLE, grpc));
    }
    if let Some(toml::Value::Table(t)) = table.remove("ttrpc") {
        moved.push((TTRPC_TABLE, t));
    }
    if let Some(toml::Value::Table(mut t)) = table.remove("metrics") {
        if let Some(v) = t.remove("grpc_histogram") {
            let mut h = toml::Table::new();
            h.insert("grpc_histogram".into(), v);
            moved.push(("io.containerd.metrics.v1.grpc-prometheus", h));
        }
        moved.push((METRICS_TABLE, t));
    }
    if let Some(toml::Value::Table(debug)) = table.get_mut("debug") {
        let mut t = toml::Table::new();
        for key in ["address", "uid", "gid"] {
            if let Some(v) = debug.remove(key) {
                t.insert(key.into(), v);
            }
        }
        if !t.is_empty() {
            moved.push((DEBUG_TABLE, t));
        }
    }
    if moved.is_empty() {
        return;
    }
    let all = table
        .entry("plugins")
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let Some(all) = all.as_table_mut() {
        for (uri, t) in moved {
            // What a file says in the new place wins over the old one.
            let mut t = t;
            if let Some(toml::Value::Table(own)) = all.remove(uri) {
                t.extend(own);
            }
            all.insert(uri.into(), t.into());
        }
    }
}
