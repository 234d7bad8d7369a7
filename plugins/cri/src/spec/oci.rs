//! Owns the OCI runtime spec as the CRI makes, stores and changes it: every Linux field of runtime-spec 1.3.
//!
//! Own types and not the oci-spec crate's: its enums are closed (one unknown capability and a base_runtime_spec does not
//! parse), it cannot tell `pids.limit` 0 from none, and what it does not know is lost. Here names stay strings, what is
//! not known is kept in `extra`, and empty fields are left out as Go's encoder does, so that a stored spec reads as
//! containerd's.

use std::collections::BTreeMap;

use corten_core::{Context, Error, Result};
use corten_protos::any;
use corten_protos::google::protobuf::Any;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of the runtime spec that documents of ours follow.
pub const VERSION: &str = "1.3.0";

/// Whether Go's `omitempty` leaves a value out.
trait Omit {
    fn omit(&self) -> bool;
}

/// A struct of the document. Fields after `!` are always written, the others unless empty.
macro_rules! document {
    (
        $(#[$meta:meta])*
        $name:ident {
            $(! $(#[$always_meta:meta])* $always:ident: $always_type:ty,)*
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $($(#[$always_meta])* pub $always: $always_type,)*
            $($(#[$field_meta])* #[serde(skip_serializing_if = "Omit::omit")] pub $field: $type,)*
            /// What is not known here.
            #[serde(flatten)]
            pub extra: Map<String, Value>,
        }
    };
}

document! {
    /// config.json.
    Spec {
        ! oci_version: String,
        process: Option<Process>,
        root: Option<Root>,
        hostname: String,
        domainname: String,
        mounts: Vec<Mount>,
        hooks: Option<Hooks>,
        annotations: BTreeMap<String, String>,
        linux: Option<Linux>,
    }
}

document! {
    /// What runs.
    Process {
        ! user: User,
        ! cwd: String,
        terminal: bool,
        console_size: Option<ConsoleSize>,
        args: Vec<String>,
        env: Vec<String>,
        capabilities: Option<Capabilities>,
        rlimits: Vec<Rlimit>,
        no_new_privileges: bool,
        apparmor_profile: String,
        oom_score_adj: Option<i32>,
        scheduler: Option<Scheduler>,
        selinux_label: String,
        io_priority: Option<IoPriority>,
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: Option<CpuAffinity>,
    }
}

document! {
    /// Size of a terminal.
    ConsoleSize {
        ! height: u32,
        ! width: u32,
    }
}

document! {
    /// Who runs.
    User {
        ! uid: u32,
        ! gid: u32,
        umask: Option<u32>,
        additional_gids: Vec<u32>,
        username: String,
    }
}

document! {
    /// Capabilities by set.
    Capabilities {
        bounding: Vec<String>,
        effective: Vec<String>,
        inheritable: Vec<String>,
        permitted: Vec<String>,
        ambient: Vec<String>,
    }
}

document! {
    /// One resource limit.
    Rlimit {
        ! #[serde(rename = "type")] kind: String,
        ! hard: u64,
        ! soft: u64,
    }
}

document! {
    /// sched_setattr(2).
    Scheduler {
        ! policy: String,
        nice: i32,
        priority: i32,
        flags: Vec<String>,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
}

document! {
    /// ioprio_set(2).
    IoPriority {
        ! class: String,
        ! priority: i32,
    }
}

document! {
    /// CPUs of exec'd processes.
    CpuAffinity {
        initial: String,
        #[serde(rename = "final")]
        last: String,
    }
}

document! {
    /// The root file system.
    Root {
        ! path: String,
        readonly: bool,
    }
}

document! {
    /// One mount.
    Mount {
        ! destination: String,
        #[serde(rename = "type")]
        kind: String,
        source: String,
        options: Vec<String>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
    }
}

document! {
    /// Programs at points of a container's life.
    Hooks {
        prestart: Vec<Hook>,
        create_runtime: Vec<Hook>,
        create_container: Vec<Hook>,
        start_container: Vec<Hook>,
        poststart: Vec<Hook>,
        poststop: Vec<Hook>,
    }
}

document! {
    /// One such program.
    Hook {
        ! path: String,
        args: Vec<String>,
        env: Vec<String>,
        timeout: Option<i64>,
    }
}

document! {
    /// What is Linux's own.
    Linux {
        // Also when there is none: our shim takes a document that does not speak of them for one to be made complete.
        ! namespaces: Vec<Namespace>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        sysctl: BTreeMap<String, String>,
        resources: Option<Resources>,
        cgroups_path: String,
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
    }
}

document! {
    /// A range of ids.
    IdMapping {
        ! #[serde(rename = "containerID")] container_id: u32,
        ! #[serde(rename = "hostID")] host_id: u32,
        ! size: u32,
    }
}

document! {
    /// One namespace: a new one without a path.
    Namespace {
        ! #[serde(rename = "type")] kind: String,
        path: String,
    }
}

document! {
    /// A device node.
    Device {
        ! path: String,
        ! #[serde(rename = "type")] kind: String,
        ! major: i64,
        ! minor: i64,
        file_mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    }
}

document! {
    /// A network interface that moves into the container, by its name on the host.
    NetDevice {
        name: String,
    }
}

document! {
    /// Resource control.
    IntelRdt {
        #[serde(rename = "closID")]
        clos_id: String,
        schemata: Vec<String>,
        l3_cache_schema: String,
        mem_bw_schema: String,
        enable_monitoring: bool,
    }
}

document! {
    /// set_mempolicy(2).
    MemoryPolicy {
        ! mode: String,
        nodes: String,
        flags: Vec<String>,
    }
}

document! {
    /// personality(2).
    Personality {
        ! domain: String,
        flags: Vec<String>,
    }
}

document! {
    /// Offset of a clock.
    TimeOffset {
        secs: i64,
        nanosecs: u32,
    }
}

document! {
    /// `linux.resources`: also what an update of a task carries.
    Resources {
        devices: Vec<DeviceRule>,
        memory: Option<Memory>,
        cpu: Option<Cpu>,
        pids: Option<Pids>,
        #[serde(rename = "blockIO")]
        block_io: Option<BlockIo>,
        hugepage_limits: Vec<HugepageLimit>,
        network: Option<Network>,
        rdma: BTreeMap<String, Rdma>,
        unified: BTreeMap<String, String>,
    }
}

document! {
    /// One rule of the device cgroup.
    DeviceRule {
        ! allow: bool,
        #[serde(rename = "type")]
        kind: String,
        major: Option<i64>,
        minor: Option<i64>,
        access: String,
    }
}

document! {
    /// Memory, in bytes.
    Memory {
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
    }
}

document! {
    /// Processor time.
    Cpu {
        shares: Option<u64>,
        quota: Option<i64>,
        burst: Option<u64>,
        period: Option<u64>,
        realtime_runtime: Option<i64>,
        realtime_period: Option<u64>,
        cpus: String,
        mems: String,
        idle: Option<i64>,
    }
}

document! {
    /// Number of processes.
    Pids {
        limit: Option<i64>,
    }
}

document! {
    /// Weights and limits of block devices.
    BlockIo {
        weight: Option<u16>,
        leaf_weight: Option<u16>,
        weight_device: Vec<WeightDevice>,
        throttle_read_bps_device: Vec<ThrottleDevice>,
        throttle_write_bps_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<ThrottleDevice>,
    }
}

document! {
    /// Weight of one device.
    WeightDevice {
        ! major: i64,
        ! minor: i64,
        weight: Option<u16>,
        leaf_weight: Option<u16>,
    }
}

document! {
    /// Limit of one device.
    ThrottleDevice {
        ! major: i64,
        ! minor: i64,
        ! rate: u64,
    }
}

document! {
    /// Limit of huge pages of a size.
    HugepageLimit {
        ! page_size: String,
        ! limit: u64,
    }
}

document! {
    /// Marks of network traffic.
    Network {
        #[serde(rename = "classID")]
        class_id: Option<u32>,
        priorities: Vec<InterfacePriority>,
    }
}

document! {
    /// Priority of an interface.
    InterfacePriority {
        ! name: String,
        ! priority: u32,
    }
}

document! {
    /// Limits of an RDMA device.
    Rdma {
        hca_handles: Option<u32>,
        hca_objects: Option<u32>,
    }
}

document! {
    /// A filter of system calls.
    Seccomp {
        ! default_action: String,
        default_errno_ret: Option<u32>,
        architectures: Vec<String>,
        flags: Vec<String>,
        listener_path: String,
        listener_metadata: String,
        syscalls: Vec<Syscall>,
    }
}

document! {
    /// What becomes of some calls.
    Syscall {
        ! names: Vec<String>,
        ! action: String,
        errno_ret: Option<u32>,
        args: Vec<SyscallArg>,
    }
}

document! {
    /// A condition on an argument.
    SyscallArg {
        ! index: u32,
        ! value: u64,
        ! op: String,
        value_two: u64,
    }
}

// === impl Spec ===

impl Spec {
    /// Reads the record of a container or sandbox.
    ///
    /// # Errors
    /// It is no runtime spec.
    pub fn from_any(any: &Any) -> Result<Self> {
        let text = any::unpack_json(any, any::OCI_SPEC)
            .map_err(|e| Error::invalid(format!("spec: {e}")))?;
        serde_json::from_slice(text)
            .map_err(|e| Error::invalid(format!("parse spec: {e}")))
            .context("read the spec of a record")
    }

    /// What a record stores.
    pub fn to_any(&self) -> Any {
        any::pack_json(any::OCI_SPEC, json(self))
    }

    /// The process; made if there is none.
    pub fn process(&mut self) -> &mut Process {
        self.process.get_or_insert_default()
    }

    /// Linux's part; made if there is none.
    pub fn linux(&mut self) -> &mut Linux {
        self.linux.get_or_insert_default()
    }

    /// The resources; made if there are none.
    pub fn resources(&mut self) -> &mut Resources {
        self.linux().resources.get_or_insert_default()
    }

    /// Joins or makes a namespace: at most one of a kind.
    pub fn set_namespace(&mut self, kind: &str, path: &str) {
        let all = &mut self.linux().namespaces;
        match all.iter_mut().find(|ns| ns.kind == kind) {
            Some(ns) => path.clone_into(&mut ns.path),
            None => all.push(Namespace::new(kind, path)),
        }
    }

    /// Stays in the runtime's namespace of that kind.
    pub fn without_namespace(&mut self, kind: &str) {
        self.linux().namespaces.retain(|ns| ns.kind != kind);
    }

    /// Drops what is mounted at `destination`.
    pub fn without_mount(&mut self, destination: &str) {
        self.mounts
            .retain(|m| super::paths::clean(&m.destination) != destination);
    }
}

/// The document of an update of a task.
pub(super) fn resources_any(resources: &Resources) -> Any {
    any::pack_json(any::OCI_LINUX_RESOURCES, json(resources))
}

fn json<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).expect("maps with string keys and numbers always encode")
}

// === impl Namespace ===

impl Namespace {
    /// A new one with an empty path.
    pub fn new(kind: &str, path: &str) -> Self {
        Self {
            kind: kind.into(),
            path: path.into(),
            ..Self::default()
        }
    }
}

// === impl Mount ===

impl Mount {
    pub fn new(destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        Self {
            destination: destination.into(),
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|&o| o.into()).collect(),
            ..Self::default()
        }
    }
}

// === impl Omit ===

impl Omit for bool {
    fn omit(&self) -> bool {
        !self
    }
}

impl Omit for String {
    fn omit(&self) -> bool {
        self.is_empty()
    }
}

impl<T> Omit for Option<T> {
    fn omit(&self) -> bool {
        self.is_none()
    }
}

impl<T> Omit for Vec<T> {
    fn omit(&self) -> bool {
        self.is_empty()
    }
}

impl<V> Omit for BTreeMap<String, V> {
    fn omit(&self) -> bool {
        self.is_empty()
    }
}

macro_rules! omit_zero {
    ($($number:ty),*) => {$(
        impl Omit for $number {
            fn omit(&self) -> bool {
                *self == 0
            }
        }
    )*};
}
omit_zero!(i32, i64, u32, u64);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_of_a_document_is_lost() {
        let text = json!({
            "ociVersion": "1.3.0",
            "process": {
                "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
                "cwd": "/",
                "capabilities": {"bounding": ["CAP_OF_TOMORROW"]},
                "oomScoreAdj": 0,
                "execCPUAffinity": {"initial": "0", "final": "1"},
            },
            "mounts": [{"destination": "/a", "type": "bind", "uidMappings":
                [{"containerID": 0, "hostID": 1, "size": 2}]}],
            "linux": {
                "namespaces": [],
                "resources": {
                    "pids": {"limit": 0},
                    "memory": {"kernelTCP": 1, "disableOOMKiller": false},
                    "blockIO": {"throttleReadIOPSDevice": [{"major": 0, "minor": 1, "rate": 2}]},
                    "devices": [{"allow": false, "access": "rwm"}],
                    "network": {"classID": 7},
                },
                "intelRdt": {"closID": "a", "l3CacheSchema": "L3:0=f"},
                "devices": [{"path": "/dev/x", "type": "c", "major": 0, "minor": 0, "fileMode": 438}],
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["clone"],
                    "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]},
                "timeOffsets": {"monotonic": {"secs": 1}},
                "futureField": {"a": [1]},
            },
            "windows": {"layerFolders": []},
        });
        let spec: Spec = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), text);
        let any = spec.to_any();
        assert_eq!(Spec::from_any(&any).unwrap(), spec);
        assert!(Spec::from_any(&resources_any(&Resources::default())).is_err());
        assert_eq!(resources_any(&Resources::default()).value, b"{}");
    }

    #[test]
    fn a_namespace_of_a_kind_is_there_once() {
        let mut spec = Spec::default();
        spec.set_namespace("pid", "");
        spec.set_namespace("pid", "/proc/1/ns/pid");
        spec.set_namespace("ipc", "");
        spec.without_namespace("ipc");
        assert_eq!(
            spec.linux().namespaces,
            [Namespace::new("pid", "/proc/1/ns/pid")]
        );
    }
}
