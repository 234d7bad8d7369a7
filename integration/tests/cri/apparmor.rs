//! AppArmor: whose profile a container gets, and that it is confined by it. `make test-vm` has a kernel with AppArmor;
//! elsewhere a profile cannot be asked for.

use std::path::Path;

use corten_integration::process::{Cmd, DEADLINE, eventually};
use corten_protos::runtime::v1::security_profile::ProfileType;
use corten_protos::runtime::v1::{self, SecurityProfile};

use crate::cri::{Cri, Pod, fails};
use crate::runner::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        confines_by_the_default_profile,
        confines_by_a_profile_of_the_host,
        confines_nobody_who_is_not_to_be,
        refuses_a_profile_that_is_not_there,
    ]
}

const CURRENT: &str = "cat /proc/self/attr/apparmor/current";
const DEFAULT: &str = "cri-containerd.apparmor.d (enforce)\n";
/// Capabilities allow it, so that nothing but AppArmor keeps it off.
const MOUNT: &str = "mkdir -p /tmp/m; mount -t tmpfs none /tmp/m 2>&1; echo $?";

fn has_apparmor() -> bool {
    Path::new("/sys/kernel/security/apparmor/profiles").exists()
}

fn is_missing() -> bool {
    if !has_apparmor() {
        println!("not tried: this machine has no AppArmor");
    }
    !has_apparmor()
}

/// A container that may do anything its profile lets it; `change` says which that is.
fn started(
    cri: &Cri,
    pod: &Pod,
    name: &str,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> String {
    let id = cri.started(pod, &config(cri, name, change));
    let log = format!("{name}.log");
    let told = eventually(DEADLINE, || {
        Some(cri.logged(&log)).filter(|l| !l.is_empty())
    });
    // As init, so whoever is run in it later.
    assert_eq!(
        told.expect("init's profile in its log"),
        cri.shell(&id, CURRENT)
    );
    id
}

fn config(
    cri: &Cri,
    name: &str,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> v1::ContainerConfig {
    // Told by init itself, whoever else is in the pod's pid namespace.
    let script = format!("{CURRENT}; exec sleep 1000");
    let mut config = cri.container_config(name, &["sh", "-c", &script]);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.capabilities = Some(v1::Capability {
        add_capabilities: vec!["ALL".to_owned()],
        ..Default::default()
    });
    change(security);
    config
}

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    })
}

/// A loaded profile that denies writing to /tmp/secret; gone when dropped.
struct Loaded(String);

// === impl Loaded ===

impl Loaded {
    fn new(name: &str) -> Self {
        let rules = "file, capability, network, mount, umount, pivot_root, signal, ptrace, unix,";
        let flags = "flags=(attach_disconnected,mediate_deleted)";
        let text = format!("profile {name} {flags} {{ {rules} deny /tmp/secret w, }}\n");
        Self::parser("-rKq", &text);
        Self(text)
    }

    fn parser(flags: &str, text: &str) {
        let parser = Cmd::new("apparmor_parser").arg(flags).stdin(text);
        parser.run().expect_code(0);
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        Self::parser("-Rq", &self.0);
    }
}

#[allow(deprecated, reason = "older kubelets send strings")]
fn confines_by_the_default_profile(cri: &Cri) {
    if is_missing() {
        return;
    }
    let pod = cri.pod();
    // Asked for in each of its ways, and not asked for.
    let ids = [
        started(cri, &pod, "unset", |_| {}),
        started(cri, &pod, "field", |s| {
            s.apparmor = profile(ProfileType::RuntimeDefault, "");
        }),
        started(cri, &pod, "string", |s| {
            s.apparmor_profile = "runtime/default".to_owned();
        }),
    ];
    for id in &ids {
        assert_eq!(cri.shell(id, CURRENT), DEFAULT);
        let said = cri.shell(id, MOUNT);
        assert!(
            said.contains("denied") && !said.ends_with("\n0\n"),
            "{said}"
        );
        // What a profile is not there to forbid.
        assert_eq!(cri.shell(id, "echo x >/tmp/x && cat /tmp/x"), "x\n");
    }
}

#[allow(deprecated, reason = "older kubelets send strings")]
fn confines_by_a_profile_of_the_host(cri: &Cri) {
    if is_missing() {
        return;
    }
    let name = format!("{}-p", cri.name);
    let _profile = Loaded::new(&name);
    let pod = cri.pod();
    let ids = [
        started(cri, &pod, "field", |s| {
            s.apparmor = profile(ProfileType::Localhost, &name);
        }),
        started(cri, &pod, "string", |s| {
            s.apparmor_profile = format!("localhost/{name}");
        }),
    ];
    for id in &ids {
        assert_eq!(cri.shell(id, CURRENT), format!("{name} (enforce)\n"));
        let said = cri.shell(
            id,
            "{ echo x >/tmp/secret; } 2>&1; echo x >/tmp/other; ls /tmp",
        );
        assert!(
            said.contains("denied") && said.ends_with("\nother\n"),
            "{said}"
        );
        assert_eq!(cri.shell(id, MOUNT), "0\n");
    }
}

#[allow(deprecated, reason = "older kubelets send strings")]
fn confines_nobody_who_is_not_to_be(cri: &Cri) {
    if is_missing() {
        return;
    }
    let pod = cri.pod();
    let mut config = cri.pod_config("open");
    cri.security(&mut config).privileged = true;
    let open = cri.run(&config);
    let ids = [
        started(cri, &pod, "field", |s| {
            s.apparmor = profile(ProfileType::Unconfined, "");
        }),
        started(cri, &pod, "string", |s| {
            s.apparmor_profile = "unconfined".to_owned();
        }),
        started(cri, &open, "privileged", |s| s.privileged = true),
    ];
    for id in &ids {
        assert_eq!(cri.shell(id, CURRENT), "unconfined\n");
        assert_eq!(cri.shell(id, MOUNT), "0\n");
    }
}

fn refuses_a_profile_that_is_not_there(cri: &Cri) {
    let pod = cri.pod();
    let asked = profile(ProfileType::Localhost, "no-such-profile");
    let config = config(cri, "a", |s| s.apparmor = asked);
    let words = match has_apparmor() {
        true => "apparmor profile not found no-such-profile",
        false => "apparmor is not supported",
    };
    fails(cri.create(&pod, &config), words);
}
