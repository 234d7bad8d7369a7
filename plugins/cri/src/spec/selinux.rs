//! Owns SELinux: labels of processes and files, the categories that keep pods apart, and the relabelling of volumes.
//!
//! A label is `user:role:type:level`. The host's policy names the label of containers (`lxc_contexts`); each pod gets a
//! pair of categories of its own in its level, so that two pods of one type cannot reach each other's files. A level
//! that was asked for is used as it is, and remembered, so that no other pod is given it by chance. Without SELinux
//! every label is empty and every call does nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Result};
use corten_protos::runtime::v1::SeLinuxOption;
use corten_sys::root::magic_path;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use tracing::warn;

const ATTRIBUTE: &str = "security.selinux";
const CONFIG: &str = "/etc/selinux/config";
/// Where policies are.
const POLICIES: &str = "/etc/selinux";
/// Distributions' file of container labels that goes before a policy's.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";

/// Never relabelled, whoever asks: a host whose /etc or /usr has a container's label no longer boots.
const HOSTS_OWN: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// A process's and its files' label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub process: String,
    pub mount: String,
}

/// A label taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

/// SELinux on this host, or its absence.
#[derive(Debug)]
pub(super) struct Selinux {
    /// The policy's labels by name (`process`, `file`, `kvm_process`); `None` without SELinux.
    policy: Option<Vec<(String, String)>>,
    /// Categories are below this.
    range: u32,
    /// Levels in use, and by how many pods and containers.
    taken: Mutex<BTreeMap<String, usize>>,
}

// === impl Selinux ===

impl Selinux {
    /// Asks the kernel, if the configuration wants it at all.
    pub(super) fn probe(enabled: bool, range: u32) -> Result<Self> {
        if !enabled || !is_on() {
            return Ok(Self::new(None, range));
        }
        let policy = fs::read_to_string(CONTEXTS)
            .or_else(|_| fs::read_to_string(policy_root().join("contexts/lxc_contexts")));
        let policy = match policy {
            Ok(policy) => policy,
            // containerd goes on so, too.
            Err(error) => {
                warn!(%error, "the SELinux policy has no labels for containers: they get none");
                return Ok(Self::new(None, range));
            }
        };
        if range < 2 {
            return Err(Error::invalid(format!(
                "selinux_category_range {range} has no pair of categories"
            )));
        }
        Ok(Self::new(Some(contexts(&policy)), range))
    }

    fn new(policy: Option<Vec<(String, String)>>, range: u32) -> Self {
        Self {
            policy,
            range,
            taken: Mutex::default(),
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.policy.is_some()
    }

    /// Labels with a level of their own, or as asked; `pod` is the label of the pod where a container asks for nothing.
    pub(super) fn labels(&self, asked: Option<&SeLinuxOption>, pod: &str) -> Result<Labels> {
        let asked = asked.cloned().unwrap_or_default();
        check_level(&asked.level)?;
        let (Some(process), Some(file)) = (self.context("process"), self.context("file")) else {
            return Ok(Labels::default());
        };
        let mut process = Label::parse(process)?;
        let mut file = Label::parse(file)?;
        let mut wish = asked;
        if wish == SeLinuxOption::default()
            && let Ok(pod) = Label::parse(pod)
        {
            wish = SeLinuxOption {
                user: pod.user,
                role: pod.role,
                r#type: pod.kind,
                level: pod.level,
            };
        }
        let put = |to: &mut String, wish: &str| {
            if !wish.is_empty() {
                wish.clone_into(to);
            }
        };
        put(&mut process.user, &wish.user);
        put(&mut process.role, &wish.role);
        put(&mut process.kind, &wish.r#type);
        put(&mut file.user, &wish.user);
        if !wish.level.is_empty() {
            self.reserve_level(&wish.level);
            process.level.clone_from(&wish.level);
            file.level = wish.level;
        } else if !process.level.is_empty() {
            let level = self.allocate();
            process.level.clone_from(&level);
            file.level = level;
        }
        Ok(Labels {
            process: process.text(),
            mount: file.text(),
        })
    }

    /// The label of a process in a virtual machine, from that of a plain one.
    pub(super) fn for_vm(&self, process: &str) -> Result<String> {
        if process.is_empty() {
            return Ok(String::new());
        }
        let of_vm = self
            .context("kvm_process")
            .or_else(|| self.context("process"));
        let Some(of_vm) = of_vm else {
            return Ok(process.to_owned());
        };
        let kind = Label::parse(of_vm)?.kind;
        Ok(Label {
            kind,
            ..Label::parse(process)?
        }
        .text())
    }

    /// Keeps the level of a label that is in use already.
    pub(super) fn reserve(&self, label: &str) {
        if let (true, Ok(label)) = (self.is_enabled(), Label::parse(label)) {
            self.reserve_level(&label.level);
        }
    }

    /// Gives the level of a label back; the last one to do so frees it.
    pub(super) fn release(&self, label: &str) {
        let Ok(label) = Label::parse(label) else {
            return;
        };
        let mut taken = self.taken.lock();
        if let Some(users) = taken.get_mut(&label.level) {
            *users -= 1;
            if *users == 0 {
                taken.remove(&label.level);
            }
        }
    }

    /// Gives all below `path` the label.
    pub(super) fn relabel(&self, path: &Path, label: &str) -> Result<()> {
        if !self.is_enabled() || label.is_empty() {
            return Ok(());
        }
        let shown = path.display();
        if HOSTS_OWN.iter().any(|own| path == Path::new(own)) {
            return Err(Error::invalid(format!(
                "SELinux relabeling of {shown} is not allowed"
            )));
        }
        match relabel(path, label) {
            Err(Errno::NOTSUP) | Ok(()) => Ok(()),
            Err(e) => Err(Error::from(std::io::Error::from(e)))
                .context(format!("relabel {shown:?} with {label:?} failed")),
        }
    }

    fn context(&self, name: &str) -> Option<&str> {
        let policy = self.policy.as_ref()?;
        let found = policy.iter().find(|(key, _)| key == name);
        found.map(|(_, label)| label.as_str())
    }

    fn reserve_level(&self, level: &str) {
        // A level without categories keeps nobody apart.
        if level.contains(":c") {
            *self.taken.lock().entry(level.to_owned()).or_default() += 1;
        }
    }

    /// A pair of categories that nobody has. With all of them taken, pods share: there are half a million.
    fn allocate(&self) -> String {
        let mut taken = self.taken.lock();
        let random = uuid::Uuid::new_v4().as_u128();
        let pairs = u128::from(self.range) * u128::from(self.range - 1) / 2;
        let level = |n: u128| {
            // The n-th pair (low, high) with low < high, counted by high.
            let (mut high, mut below) = (1_u128, 0_u128);
            while below + high <= n {
                below += high;
                high += 1;
            }
            format!("s0:c{},c{high}", n - below)
        };
        let mut found = level(random % pairs);
        for step in 0..pairs {
            let candidate = level((random + step) % pairs);
            if !taken.contains_key(&candidate) {
                found = candidate;
                break;
            }
        }
        *taken.entry(found.clone()).or_default() += 1;
        found
    }
}

// === impl Label ===

impl Label {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(user), Some(role), Some(kind)) => Ok(Self {
                user,
                role,
                kind,
                level: parts.next().unwrap_or_default(),
            }),
            _ => Err(Error::invalid(format!("SELinux label {text:?}"))),
        }
    }

    fn text(&self) -> String {
        let base = format!("{}:{}:{}", self.user, self.role, self.kind);
        match self.level.as_str() {
            "" => base,
            level => format!("{base}:{level}"),
        }
    }
}

/// Whether a level is `s0`, `s0-s1`, with categories `:c1.c3,c7` behind.
fn check_level(level: &str) -> Result<()> {
    let sensitivity =
        |s: &str| s.len() == 2 && s.starts_with('s') && s.as_bytes()[1].is_ascii_digit();
    let category = |c: &str| {
        c.strip_prefix('c')
            .is_some_and(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let range = |r: &str| match r.split_once('.') {
        Some((a, b)) => category(a) && category(b),
        None => category(r),
    };
    let (low, categories) = match level.split_once(':') {
        Some((low, categories)) => (low, Some(categories)),
        None => (level, None),
    };
    let good = level.is_empty()
        || match low.split_once('-') {
            Some((a, b)) => sensitivity(a) && sensitivity(b),
            None => sensitivity(low),
        } && categories.is_none_or(|list| list.split(',').all(range));
    match good {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "the format of 'level' {level:?} is not correct"
        ))),
    }
}

fn is_on() -> bool {
    let mounted = fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|mounts| mounts.lines().any(|line| line.contains(" - selinuxfs ")));
    mounted
        && fs::read_to_string("/proc/self/attr/current")
            .is_ok_and(|own| own.trim_end_matches('\0').trim() != "kernel")
}

fn policy_root() -> PathBuf {
    let config = fs::read_to_string(CONFIG).unwrap_or_default();
    let kind = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("SELINUXTYPE="))
        .next_back()
        .unwrap_or("targeted");
    Path::new(POLICIES).join(kind.trim_matches('"'))
}

/// `name = "label"` lines.
fn contexts(text: &str) -> Vec<(String, String)> {
    let pairs = text
        .lines()
        .filter(|line| !line.trim_start().starts_with(['#', ';']));
    pairs
        .filter_map(|line| line.split_once('='))
        .map(|(name, label)| {
            let label = label.trim().trim_matches('"');
            (name.trim().to_owned(), label.to_owned())
        })
        .collect()
}

/// Labels a tree, what is in a folder before the folder. Walks by descriptors: a container that shares the volume may
/// put links where folders were.
fn relabel(path: &Path, label: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        relabel_folder(&top, label)?;
    }
    set_label(&magic_path(&top), label, true)
}

fn relabel_folder(folder: &OwnedFd, label: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(folder, c".", flags, Mode::empty())?;
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let done = relabel_entry(&opened, name, label);
        // A tree in use changes under the walk.
        if !matches!(done, Err(Errno::NOENT)) {
            done?;
        }
    }
    Ok(())
}

fn relabel_entry(folder: &OwnedFd, name: &std::ffi::CStr, label: &str) -> Result<(), Errno> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        relabel_folder(
            &rustix::fs::openat(folder, name, flags, Mode::empty())?,
            label,
        )?;
    }
    // The folder is named by descriptor and the entry is not followed.
    let name = OsStr::from_bytes(name.to_bytes());
    set_label(&magic_path(folder).join(name), label, false)
}

fn set_label(path: &Path, label: &str, follow: bool) -> Result<(), Errno> {
    let value = format!("{label}\0");
    match follow {
        true => rustix::fs::setxattr(path, ATTRIBUTE, value.as_bytes(), XattrFlags::empty()),
        false => rustix::fs::lsetxattr(path, ATTRIBUTE, value.as_bytes(), XattrFlags::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "# containers\nprocess = \"system_u:system_r:container_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n\
        kvm_process = \"system_u:system_r:container_kvm_t:s0\"\n";

    fn on(range: u32) -> Selinux {
        Selinux::new(Some(contexts(POLICY)), range)
    }

    fn asked(kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption {
            r#type: kind.into(),
            level: level.into(),
            ..SeLinuxOption::default()
        }
    }

    #[test]
    fn without_selinux_there_are_no_labels() {
        let off = Selinux::new(None, 1024);
        let none = Labels::default();
        assert_eq!(off.labels(None, "").unwrap(), none);
        assert_eq!(off.labels(Some(&asked("t", "s0:c1,c2")), "").unwrap(), none);
        assert!(off.labels(Some(&asked("t", "nonsense")), "").is_err());
        off.relabel(Path::new("/"), "u:r:t").unwrap();
        off.release("");
    }

    #[test]
    fn every_pod_has_a_level_of_its_own() {
        let on = on(3);
        let mut levels = std::collections::BTreeSet::new();
        let mut last = Labels::default();
        for _ in 0..3 {
            last = on.labels(None, "").unwrap();
            let level = last
                .process
                .strip_prefix("system_u:system_r:container_t:")
                .unwrap();
            assert_eq!(
                last.mount,
                format!("system_u:object_r:container_file_t:{level}")
            );
            levels.insert(level.to_owned());
        }
        let all = ["s0:c0,c1", "s0:c0,c2", "s0:c1,c2"].map(String::from);
        assert_eq!(levels, all.into());
        // The one that is given back is the one that is given out, once nobody has it.
        assert_eq!(on.labels(None, &last.process).unwrap(), last);
        on.release(&last.process);
        assert!(on.taken.lock().len() == 3);
        on.release(&last.process);
        assert_eq!(on.labels(None, "").unwrap(), last);
        on.reserve("");
        on.release("");
    }

    #[test]
    fn containers_have_their_pod_s_label_unless_they_ask() {
        let on = on(1024);
        let pod = on.labels(None, "").unwrap();
        assert_eq!(on.labels(None, &pod.process).unwrap(), pod);
        let own = on
            .labels(Some(&asked("spc_t", "s0:c7,c9")), &pod.process)
            .unwrap();
        assert_eq!(own.process, "system_u:system_r:spc_t:s0:c7,c9");
        assert_eq!(own.mount, "system_u:object_r:container_file_t:s0:c7,c9");
        assert_eq!(
            on.for_vm(&own.process).unwrap(),
            "system_u:system_r:container_kvm_t:s0:c7,c9"
        );
    }

    #[test]
    fn levels_have_a_form() {
        for good in [
            "",
            "s0",
            "s0-s1",
            "s0:c1",
            "s0:c1,c2",
            "s0-s0:c0.c1023",
            "s0:c1.c3,c7",
        ] {
            check_level(good).unwrap();
        }
        for bad in [
            "0",
            "s",
            "s10",
            "s0:",
            "s0:c",
            "s0:c12345",
            "s0:c1,",
            "s0:c1.c2.c3",
            "s0 ",
        ] {
            assert!(check_level(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_is_not_relabelled() {
        let e = on(1024).relabel(Path::new("/etc"), "u:r:t:s0").unwrap_err();
        assert!(e.to_string().contains("is not allowed"), "{e}");
    }
}
