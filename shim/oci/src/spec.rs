//! Owns the shape of config.json as this engine reads it (runtime-spec 1.3, Linux).
//!
//! Own structs instead of the `oci-spec` crate: that crate rejects a whole document for one unknown
//! capability, cannot tell `pids.limit` 0 from absent, and brings 43 crates (regex, strum) into a
//! process that exists once per pod. Rules, as in Go: unknown fields are ignored, `null` is absent.

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// `null` counts as absent, as Go's decoder has it.
fn nil<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

macro_rules! record {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$m])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$fm])* #[serde(deserialize_with = "nil")] pub $field: $ty,)* }
    };
}

record!(
    /// The whole document.
    Spec {
        oci_version: String,
        root: Option<Root>,
        process: Option<Process>,
        hostname: String,
        domainname: String,
        mounts: Vec<Mount>,
        hooks: Hooks,
        annotations: BTreeMap<String, String>,
        linux: Linux,
    }
);
record!(Root {
    path: String,
    readonly: bool
});
record!(Process {
    terminal: bool,
    console_size: Option<ConsoleSize>,
    user: User,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: Option<Capabilities>,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
    apparmor_profile: String,
    oom_score_adj: Option<i32>,
    selinux_label: String,
    scheduler: Option<Scheduler>,
    io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<CpuAffinity>,
});
record!(ConsoleSize {
    height: u32,
    width: u32
});
record!(User { uid: u32, gid: u32, umask: Option<u32>, additional_gids: Vec<u32>, username: String });
record!(Capabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    inheritable: Vec<String>,
    permitted: Vec<String>,
    ambient: Vec<String>,
});
record!(Rlimit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
    soft: u64
});
record!(Scheduler {
    policy: String,
    nice: i32,
    priority: i32,
    flags: Vec<String>,
    runtime: u64,
    deadline: u64,
    period: u64,
});
record!(IoPriority {
    class: String,
    priority: i32
});
record!(CpuAffinity {
    initial: String,
    #[serde(rename = "final")]
    last: String
});
record!(Mount {
    destination: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    options: Vec<String>,
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
});
record!(IdMapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
    size: u32,
});
record!(Hooks {
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    create_container: Vec<Hook>,
    start_container: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
});
record!(Hook { path: String, args: Vec<String>, env: Vec<String>, timeout: Option<i64> });
record!(Linux {
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
    sysctl: BTreeMap<String, String>,
    resources: Option<Resources>,
    cgroups_path: String,
    namespaces: Vec<Namespace>,
    devices: Vec<Device>,
    net_devices: BTreeMap<String, NetDevice>,
    seccomp: Option<Seccomp>,
    rootfs_propagation: String,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
    mount_label: String,
    intel_rdt: Option<IntelRdt>,
    memory_policy: Option<MemoryPolicy>,
    personality: Option<Personality>,
    time_offsets: BTreeMap<String, TimeOffset>,
});
record!(Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String
});
record!(Device {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
});
record!(NetDevice { name: String });
record!(IntelRdt {
    #[serde(rename = "closID")]
    clos_id: String,
    schemata: Vec<String>,
    #[serde(rename = "l3CacheSchema")]
    l3_cache_schema: String,
    mem_bw_schema: String,
    enable_monitoring: bool,
});
record!(MemoryPolicy { mode: String, nodes: String, flags: Vec<String> });
record!(Personality { domain: String, flags: Vec<String> });
record!(TimeOffset {
    secs: i64,
    nanosecs: u32
});
record!(Seccomp {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Vec<String>,
    flags: Vec<String>,
    listener_path: String,
    listener_metadata: String,
    syscalls: Vec<Syscall>,
});
record!(Syscall { names: Vec<String>, action: String, errno_ret: Option<u32>, args: Vec<SyscallArg> });
record!(SyscallArg {
    index: u32,
    value: u64,
    value_two: u64,
    op: String
});
record!(
    /// `LinuxResources`: also the payload of an update.
    Resources {
        devices: Vec<DeviceRule>,
        memory: Option<Memory>,
        cpu: Option<Cpu>,
        pids: Option<Pids>,
        #[serde(rename = "blockIO")]
        block_io: Option<BlockIo>,
        hugepage_limits: Vec<Hugepage>,
        network: Option<Network>,
        rdma: BTreeMap<String, Rdma>,
        unified: BTreeMap<String, String>,
    }
);
record!(DeviceRule {
    allow: bool,
    #[serde(rename = "type")]
    kind: String,
    major: Option<i64>,
    minor: Option<i64>,
    access: String,
});
record!(Memory {
    limit: Option<i64>,
    reservation: Option<i64>,
    swap: Option<i64>,
    kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: Option<i64>,
    swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    disable_oom_killer: Option<bool>,
    use_hierarchy: Option<bool>,
    check_before_update: Option<bool>,
});
record!(Cpu {
    shares: Option<u64>,
    quota: Option<i64>,
    burst: Option<u64>,
    period: Option<u64>,
    realtime_runtime: Option<i64>,
    realtime_period: Option<u64>,
    cpus: String,
    mems: String,
    idle: Option<i64>,
});
record!(Pids { limit: Option<i64> });
record!(BlockIo {
    weight: Option<u16>,
    leaf_weight: Option<u16>,
    weight_device: Vec<WeightDevice>,
    throttle_read_bps_device: Vec<ThrottleDevice>,
    throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice")]
    throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    throttle_write_iops_device: Vec<ThrottleDevice>,
});
record!(WeightDevice { major: i64, minor: i64, weight: Option<u16>, leaf_weight: Option<u16> });
record!(ThrottleDevice {
    major: i64,
    minor: i64,
    rate: u64
});
record!(Hugepage {
    page_size: String,
    limit: u64
});
record!(Network { #[serde(rename = "classID")] class_id: Option<u32>, priorities: Vec<Priority> });
record!(Priority {
    name: String,
    priority: u32
});
record!(Rdma { hca_handles: Option<u32>, hca_objects: Option<u32> });

// === impl Spec ===

impl Spec {
    /// Reads a config.json.
    pub fn parse(bytes: &[u8]) -> crate::Result<Self> {
        let spec: Self = serde_json::from_slice(bytes)
            .map_err(|e| crate::Error::invalid(format!("parse config.json: {e}")))?;
        if spec.oci_version.split('.').next() != Some("1") {
            return Err(crate::Error::invalid(format!(
                "unsupported ociVersion {:?}: major version must be 1",
                spec.oci_version
            )));
        }
        Ok(spec)
    }
}

impl Spec {
    /// For an exec beside a restored init: CRIU gives that a time namespace, whatever the document says.
    pub fn join_time_namespace(&mut self) {
        let namespaces = &mut self.linux.namespaces;
        if !namespaces.iter().any(|ns| ns.kind == "time") {
            namespaces.push(Namespace {
                kind: "time".into(),
                path: String::new(),
            });
        }
    }

    /// Hooks between namespaces and root switch.
    pub(crate) fn has_create_hooks(&self) -> bool {
        let h = &self.hooks;
        !(h.prestart.is_empty() && h.create_runtime.is_empty() && h.create_container.is_empty())
    }
}

impl Process {
    /// Reads the process document of an exec request.
    pub fn parse(bytes: &[u8]) -> crate::Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|e| crate::Error::invalid(format!("parse process: {e}")))
    }
}

impl Resources {
    /// Reads the resources document of an update request.
    pub fn parse(bytes: &[u8]) -> crate::Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|e| crate::Error::invalid(format!("parse resources: {e}")))
    }
}
