//! Owns the files that all containers of a CRI pod share: hostname, hosts, resolv.conf and /dev/shm.
//!
//! A daemon whose CRI makes them itself mounts its own; then nothing is added. Otherwise a container that has nothing at
//! such a path gets ours, and the private /dev/shm of the default document becomes the pod's where the IPC namespace is
//! the pod's. They live in `pod` below the sandbox's bundle.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use corten_oci::Spec;
use corten_oci::spec::Mount;
use corten_protos::runtime::v1::{DnsConfig, PodSandboxConfig};
use rustix::mount::{MountFlags, mount};

use crate::error::{Context, Result};
use crate::rootfs;

const DIR: &str = "pod";
const SHM: &str = "shm";
/// containerd's size of a pod's /dev/shm.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=67108864";
/// More than any host's hosts file.
const MAX_COPY: u64 = 4 << 20;

/// Which file is seen where.
const FILES: [(&str, &str); 3] = [
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
];

/// The files of one pod.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
}

// === impl Files ===

impl Files {
    /// Makes them. `shm` is false for a pod in the host's IPC namespace.
    pub(super) fn create(bundle: &Path, pod: &PodSandboxConfig, shm: bool) -> Result<Self> {
        let files = Self {
            dir: bundle.join(DIR),
        };
        let made = files.write(pod, shm).context("write the pod's files");
        if made.is_err() {
            files.remove();
        }
        made.map(|()| files)
    }

    fn write(&self, pod: &PodSandboxConfig, shm: bool) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let hostname = match pod.hostname.as_str() {
            "" => fs::read_to_string("/proc/sys/kernel/hostname")?
                .trim()
                .to_owned(),
            name => name.to_owned(),
        };
        fs::write(self.dir.join("hostname"), hostname + "\n")?;
        self.copy("/etc/hosts", "hosts")?;
        match &pod.dns_config {
            Some(dns) => fs::write(self.dir.join("resolv.conf"), resolv_conf(dns))?,
            None => self.copy("/etc/resolv.conf", "resolv.conf")?,
        }
        if shm {
            let place = self.dir.join(SHM);
            fs::create_dir_all(&place)?;
            let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
            mount(c"shm", &place, c"tmpfs", flags, Some(SHM_OPTIONS))?;
        }
        Ok(())
    }

    /// A host without the file gives an empty one.
    fn copy(&self, from: &str, name: &str) -> io::Result<()> {
        let mut text = Vec::new();
        match fs::File::open(from) {
            Ok(file) => {
                file.take(MAX_COPY).read_to_end(&mut text)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        fs::write(self.dir.join(name), text)
    }

    /// Adds to a container of the pod what it lacks.
    pub(super) fn furnish(&self, spec: &mut Spec) {
        let readonly = spec.root.as_ref().is_some_and(|root| root.readonly);
        for (name, destination) in FILES {
            if spec.mounts.iter().any(|m| m.destination == destination) {
                continue;
            }
            let access = if readonly { "ro" } else { "rw" };
            let mount = self.bind(name, destination, &["rbind", "rprivate", access]);
            spec.mounts.push(mount);
        }
        let joins_ipc = |ns: &corten_oci::spec::Namespace| ns.kind == "ipc" && !ns.path.is_empty();
        let shm = self.dir.join(SHM);
        if !shm.exists() || !spec.linux.namespaces.iter().any(joins_ipc) {
            return;
        }
        let private = |m: &&mut Mount| m.destination == "/dev/shm" && m.kind == "tmpfs";
        if let Some(mount) = spec.mounts.iter_mut().find(private) {
            let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"];
            *mount = self.bind(SHM, "/dev/shm", &options);
        }
    }

    fn bind(&self, name: &str, destination: &str, options: &[&str]) -> Mount {
        Mount {
            destination: destination.to_owned(),
            kind: "bind".to_owned(),
            source: self.dir.join(name).to_string_lossy().into_owned(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
            ..Mount::default()
        }
    }

    pub(super) fn remove(&self) {
        remove_dir(&self.dir);
    }
}

/// Removes the files of the sandbox whose bundle this is, if there are any. The mount must go before the daemon deletes
/// the bundle, or it would delete what containers left in there and fail.
pub(crate) fn remove(bundle: &Path) {
    remove_dir(&bundle.join(DIR));
}

fn remove_dir(dir: &Path) {
    if let Err(e) = rootfs::unmount(&dir.join(SHM)) {
        crate::log::warning!("unmount {}: {e}", dir.join(SHM).display());
        return;
    }
    if let Err(e) = fs::remove_dir_all(dir)
        && e.kind() != io::ErrorKind::NotFound
    {
        crate::log::warning!("remove {}: {e}", dir.display());
    }
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    let mut line = |key: &str, words: &[String]| {
        if !words.is_empty() {
            text.push_str(&format!("{key} {}\n", words.join(" ")));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_what_they_lack() {
        let dir = std::env::temp_dir().join(format!("corten-pod-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let pod = PodSandboxConfig {
            hostname: "web".into(),
            dns_config: Some(DnsConfig {
                servers: vec!["1.1.1.1".into(), "8.8.8.8".into()],
                searches: vec!["a.example".into(), "b.example".into()],
                options: vec![],
            }),
            ..Default::default()
        };
        let files = Files::create(&dir, &pod, false).unwrap();
        let text = fs::read_to_string(dir.join("pod/resolv.conf")).unwrap();
        assert_eq!(
            text,
            "search a.example b.example\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n"
        );
        assert_eq!(
            fs::read_to_string(dir.join("pod/hostname")).unwrap(),
            "web\n"
        );
        let spec = br#"{"ociVersion":"1.1.0","root":{"path":"r","readonly":true},
            "linux":{"namespaces":[{"type":"ipc","path":"/proc/1/ns/ipc"}]},
            "mounts":[{"destination":"/etc/hosts","type":"bind","source":"/x"},
                      {"destination":"/dev/shm","type":"tmpfs","source":"shm"}]}"#;
        let mut spec = Spec::parse(spec).unwrap();
        fs::create_dir(dir.join("pod/shm")).unwrap();
        files.furnish(&mut spec);
        let got: Vec<(&str, &str, bool)> = spec
            .mounts
            .iter()
            .map(|m| {
                let name = m.source.rsplit('/').next().unwrap();
                (
                    m.destination.as_str(),
                    name,
                    m.options.iter().any(|o| o == "ro"),
                )
            })
            .collect();
        let want = [
            ("/etc/hosts", "x", false),
            ("/dev/shm", "shm", false),
            ("/etc/hostname", "hostname", true),
            ("/etc/resolv.conf", "resolv.conf", true),
        ];
        assert_eq!(got, want);
        remove(&dir);
        assert!(!dir.join("pod").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
