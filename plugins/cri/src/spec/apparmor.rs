//! Owns AppArmor: which profile a container gets, and the default profile, loaded into the kernel when it is first needed.
//!
//! The default profile allows what the other fences leave, and denies writing to what is the host's in /proc and /sys,
//! mounts, and tracing and signals across containers. It has containerd's name and effect, so that either daemon's
//! containers go on when the other takes over.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use corten_core::{Context, Error, Kind, Result};
use parking_lot::Mutex;

use super::profile::Profile;

/// Name of the default profile.
pub(super) const DEFAULT: &str = "cri-containerd.apparmor.d";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const FOLDER: &str = "/etc/apparmor.d";
const PARSER: &str = "apparmor_parser";

/// One loader at a time: the parser is slow, and pods come in crowds.
static LOADING: Mutex<()> = Mutex::new(());

/// The profile's name for the document; `None`: none.
pub(super) fn profile(
    asked: Option<Profile>,
    privileged: bool,
    enabled: bool,
) -> Result<Option<String>> {
    if !enabled {
        return match asked {
            None | Some(Profile::Unconfined) => Ok(None),
            Some(_) => Err(Error::precondition("apparmor is not supported")),
        };
    }
    match asked.unwrap_or(Profile::RuntimeDefault) {
        Profile::Unconfined => Ok(None),
        Profile::RuntimeDefault if privileged => Ok(None),
        Profile::RuntimeDefault => load_default().map(|()| Some(DEFAULT.to_owned())),
        Profile::Localhost(name) if name.is_empty() => {
            Err(Error::invalid("nil apparmor profile is not supported"))
        }
        Profile::Localhost(name) => match is_loaded(&name)? {
            true => Ok(Some(name)),
            false => Err(Error::new(
                Kind::NotFound,
                format!("apparmor profile not found {name}"),
            )),
        },
    }
}

fn load_default() -> Result<()> {
    if is_loaded(DEFAULT)? {
        return Ok(());
    }
    let _alone = LOADING.lock();
    if is_loaded(DEFAULT)? {
        return Ok(());
    }
    let what = || format!("load apparmor profile {DEFAULT}");
    let mut child = Command::new(PARSER)
        .arg("-Kr")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(Error::from)
        .context(what())?;
    let text = document(DEFAULT, &Tunables::probe());
    if let Some(mut stdin) = child.stdin.take() {
        // A parser that died before it read all says why on its stderr.
        let _ = stdin.write_all(text.as_bytes());
    }
    let done = child
        .wait_with_output()
        .map_err(Error::from)
        .context(what())?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(Error::new(
        Kind::Unknown,
        format!("{}: parser error: {}", what(), said.trim()),
    ))
}

fn is_loaded(name: &str) -> Result<bool> {
    let text = fs::read_to_string(LOADED).context("read the loaded apparmor profiles")?;
    // `name (mode)`; a name may hold spaces.
    Ok(text.lines().any(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(" ("))
    }))
}

/// What of a distribution's policy the profile can build on.
#[derive(Debug, Default)]
struct Tunables {
    abi: bool,
    global: bool,
    base: bool,
    /// The profile that the daemon itself runs under.
    daemon: String,
}

// === impl Tunables ===

impl Tunables {
    fn probe() -> Self {
        let has = |name: &str| Path::new(FOLDER).join(name).exists();
        let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
        let own = own.split_whitespace().next().filter(|own| !own.is_empty());
        Self {
            abi: has("abi/3.0"),
            global: has("tunables/global"),
            base: has("abstractions/base"),
            daemon: own.unwrap_or("unconfined").to_owned(),
        }
    }
}

/// Text of the default profile.
fn document(name: &str, host: &Tunables) -> String {
    let mut text = String::new();
    let mut line = |l: &str| {
        text.push_str(l);
        text.push('\n');
    };
    if host.abi {
        line("abi <abi/3.0>,");
    }
    line(match host.global {
        true => "#include <tunables/global>",
        false => "@{PROC}=/proc/",
    });
    line(&format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{"
    ));
    if host.base {
        line("  #include <abstractions/base>");
    }
    for allowed in ["network", "capability", "file", "umount"] {
        line(&format!("  {allowed},"));
    }
    // From the host's processes, from engines and from the daemon; among themselves, both ways.
    for peer in ["unconfined", "runc", "crun", &host.daemon] {
        line(&format!("  signal (receive) peer={peer},"));
    }
    line(&format!("  signal (send,receive) peer={name},"));
    line(&format!(
        "  ptrace (trace,tracedby,read,readby) peer={name},"
    ));
    for rule in DENIED {
        line(&format!("  deny {rule},"));
    }
    line("}");
    text
}

/// Paths are denied by what they are not: `[^f]` and so on spell "anything but /sys/fs/cgroup" and "but /proc/<pid>,
/// /proc/sys/kernel/shm*".
const DENIED: [&str; 14] = [
    "@{PROC}/* w",
    "@{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w",
    "@{PROC}/sys/[^k]** w",
    "@{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w",
    "@{PROC}/sysrq-trigger rwklx",
    "@{PROC}/kcore rwklx",
    "mount",
    "/sys/[^f]*/** wklx",
    "/sys/f[^s]*/** wklx",
    "/sys/fs/[^c]*/** wklx",
    "/sys/fs/c[^g]*/** wklx",
    "/sys/fs/cg[^r]*/** wklx",
    "/sys/{firmware,devices/virtual/powercap}/** rwklx",
    "/sys/kernel/security/** rwklx",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_apparmor_only_what_needs_none_is_fine() {
        assert_eq!(profile(None, false, false).unwrap(), None);
        assert_eq!(
            profile(Some(Profile::Unconfined), false, false).unwrap(),
            None
        );
        for asked in [Profile::RuntimeDefault, Profile::Localhost("a".into())] {
            let e = profile(Some(asked), false, false).unwrap_err();
            assert!(e.to_string().contains("apparmor is not supported"), "{e}");
        }
    }

    #[test]
    fn privileged_containers_have_no_default() {
        assert_eq!(profile(None, true, true).unwrap(), None);
        assert_eq!(
            profile(Some(Profile::RuntimeDefault), true, true).unwrap(),
            None
        );
        assert_eq!(
            profile(Some(Profile::Unconfined), false, true).unwrap(),
            None
        );
        assert!(profile(Some(Profile::Localhost(String::new())), true, true).is_err());
    }

    #[test]
    fn the_default_fits_the_distribution() {
        let bare = document("p", &Tunables::default());
        assert!(
            bare.starts_with("@{PROC}=/proc/\nprofile p flags="),
            "{bare}"
        );
        assert!(!bare.contains("include") && !bare.contains("abi <"));
        let host = Tunables {
            abi: true,
            global: true,
            base: true,
            daemon: "cortend".into(),
        };
        let full = document("p", &host);
        for want in [
            "abi <abi/3.0>,\n#include <tunables/global>\nprofile p",
            "  #include <abstractions/base>\n",
            "signal (receive) peer=cortend,",
            "signal (send,receive) peer=p,",
            "deny mount,\n",
            "deny @{PROC}/kcore rwklx,",
        ] {
            assert!(full.contains(want), "{want} in {full}");
        }
        assert!(full.ends_with("}\n"));
    }
}
