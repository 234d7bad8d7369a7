//! Owns what a spec starts from: containerd's default document for Linux, without what its CRI takes away again.
//!
//! Taken away at once: /run, the limit of open files, and no_new_privs, which the security context decides.

use super::oci::{
    Capabilities, DeviceRule, Linux, Mount, Namespace, Process, Resources, Root, Spec, VERSION,
};

/// containerd's namespace of everything the CRI makes.
pub(super) const NAMESPACE: &str = "k8s.io";
/// The rootfs in a bundle.
pub(super) const ROOTFS: &str = "rootfs";
/// All a device can be used for.
pub(super) const RWM: &str = "rwm";
/// Where programs are looked for.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capabilities of a container that asks for none.
pub(super) const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Paths that show or change the host, whatever the host. The kubelet sends a list of its own.
pub(super) const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];

/// The document of a container or sandbox that has said nothing yet. `masked` is the host's list.
pub(super) fn spec(id: &str, masked: &[String]) -> Spec {
    let caps: Vec<String> = CAPABILITIES.map(String::from).to_vec();
    Spec {
        oci_version: VERSION.into(),
        root: Some(Root {
            path: ROOTFS.into(),
            ..Root::default()
        }),
        process: Some(Process {
            cwd: "/".into(),
            capabilities: Some(Capabilities {
                bounding: caps.clone(),
                permitted: caps.clone(),
                effective: caps,
                ..Capabilities::default()
            }),
            ..Process::default()
        }),
        mounts: mounts(),
        linux: Some(Linux {
            masked_paths: masked.to_vec(),
            readonly_paths: READONLY.map(String::from).to_vec(),
            cgroups_path: cgroups_path(id),
            resources: Some(Resources {
                devices: vec![DeviceRule {
                    allow: false,
                    access: RWM.into(),
                    ..DeviceRule::default()
                }],
                ..Resources::default()
            }),
            namespaces: NAMESPACES.map(|kind| Namespace::new(kind, "")).to_vec(),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// Where a container without a parent cgroup goes.
pub(super) fn cgroups_path(id: &str) -> String {
    format!("/{NAMESPACE}/{id}")
}

fn mounts() -> Vec<Mount> {
    let private = ["nosuid", "noexec", "nodev"];
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    vec![
        Mount::new("/proc", "proc", "proc", &private),
        Mount::new("/dev", "tmpfs", "tmpfs", &dev),
        Mount::new("/dev/pts", "devpts", "devpts", &pts),
        Mount::new("/dev/shm", "tmpfs", "shm", &shm),
        Mount::new("/dev/mqueue", "mqueue", "mqueue", &private),
        Mount::new(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
    ]
}
