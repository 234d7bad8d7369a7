//! Owns what the shim says of itself: `-v`, and `-info` with the OCI features of the engine.

use std::io::Read;

use corten_protos::any::{OCI_FEATURES, pack, pack_json};
use corten_protos::containerd::runc::v1::Options as RuncOptions;
use corten_protos::containerd::types::{RuntimeInfo, RuntimeVersion};
use corten_protos::google::protobuf::Any;
use prost::Message;

use crate::options::Options;

/// Name of the program, as errors and `-info` show it.
pub(crate) const NAME: &str = "containerd-shim-corten-v2";
/// The runtime's name for clients.
pub(crate) const RUNTIME: &str = "io.containerd.corten.v2";
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn version() -> String {
    format!("{NAME}:\n  Version:  {VERSION}\n  Revision: \n  Runtime:  {RUNTIME}\n")
}

/// Answers `-info`: options on stdin (may be none), a `RuntimeInfo` on stdout.
pub(crate) fn runtime_info() -> Result<Vec<u8>, String> {
    let mut stdin = Vec::new();
    std::io::stdin()
        .read_to_end(&mut stdin)
        .map_err(|e| format!("read runtime options: {e}"))?;
    let given = Any::decode(stdin.as_slice()).map_err(|e| format!("parse runtime options: {e}"))?;
    let options = Options::from_any(Some(&given)).map_err(|e| e.to_string())?;
    let features = match options.binary_name.as_str() {
        "" => Some(pack_json(OCI_FEATURES, features().to_string())),
        binary => binary_features(binary),
    };
    let options = (!given.type_url.is_empty()).then(|| {
        pack(&RuncOptions {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_work_path: options.criu_work_path,
            ..RuncOptions::default()
        })
    });
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: VERSION.to_owned(),
            revision: String::new(),
        }),
        options,
        features,
        annotations: Default::default(),
    };
    Ok(info.encode_to_vec())
}

/// What another runtime says of itself; one that knows no such command says nothing.
fn binary_features(program: &str) -> Option<Any> {
    let answer = std::process::Command::new(program).arg("features").output();
    let text = answer.ok().filter(|a| a.status.success())?.stdout;
    let valid = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
    valid.then(|| pack_json(OCI_FEATURES, text))
}

/// The features document of the specification, as far as the engine goes.
fn features() -> serde_json::Value {
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": corten_oci::known_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": corten_oci::CAPABILITIES.as_slice(),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": SECCOMP_ARCHS,
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": MEMORY_MODES, "flags": MEMORY_FLAGS},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        // runc's key for it: the specification has none, and clients look for this one.
        "annotations": {
            "io.containerd.corten.version": VERSION,
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config", "org.systemd.property."],
    })
}

const SECCOMP_ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const SECCOMP_OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

const SECCOMP_ARCHS: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

const SECCOMP_FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

const MEMORY_MODES: &[&str] = &[
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

const MEMORY_FLAGS: &[&str] = &[
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_finds_what_it_looks_for() {
        let features = features();
        let has = |list: &serde_json::Value, name: &str| {
            list.as_array().is_some_and(|l| l.iter().any(|v| v == name))
        };
        assert!(has(&features["mountOptions"], "rro"));
        assert!(has(&features["linux"]["namespaces"], "user"));
        let annotations = &features["annotations"];
        assert_eq!(
            annotations["org.opencontainers.runc.checkpoint.enabled"],
            "true"
        );
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
    }
}
