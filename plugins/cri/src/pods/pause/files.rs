//! What the containers of a pod with a pause container have in common: `<root>/sandboxes/ID/{hostname,hosts,resolv.conf}`
//! and `<state>/sandboxes/ID/shm`. Pods of our own shim have their files with their shim.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{DnsConfig, PodSandboxConfig};
use corten_sys::{blocking, mount, mountinfo, netns};

use crate::Cri;
use crate::pods::request;

/// The node's.
const DEV_SHM: &str = "/dev/shm";
/// containerd's size of a pod's /dev/shm.
const SHM_OPTIONS: [&str; 5] = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"];
/// More than any node's hosts file.
const MAX_COPY: u64 = 4 << 20;

/// The pod's folder of files that outlive a reboot.
pub fn dir(root: &Path, id: &str) -> PathBuf {
    root.join("sandboxes").join(id)
}

/// The pod's folder of what does not.
pub fn volatile_dir(state: &Path, id: &str) -> PathBuf {
    state.join("sandboxes").join(id)
}

/// Its /etc/hostname.
pub fn hostname(root: &Path, id: &str) -> PathBuf {
    dir(root, id).join("hostname")
}

/// Its /etc/hosts.
pub fn hosts(root: &Path, id: &str) -> PathBuf {
    dir(root, id).join("hosts")
}

/// Its /etc/resolv.conf.
pub fn resolv_conf(root: &Path, id: &str) -> PathBuf {
    dir(root, id).join("resolv.conf")
}

/// Its /dev/shm.
pub fn shm(state: &Path, id: &str) -> PathBuf {
    volatile_dir(state, id).join("shm")
}

/// Where its user namespace is pinned.
pub fn user_namespace(state: &Path, id: &str) -> PathBuf {
    volatile_dir(state, id).join("pinned-namespaces/user")
}

/// Makes them. Blocks.
///
/// # Errors
/// The system's.
pub fn make(root: &Path, state: &Path, id: &str, config: &PodSandboxConfig) -> Result<()> {
    let made = |dir: PathBuf| {
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("failed to create sandbox directory {}", dir.display()))
    };
    made(dir(root, id))?;
    made(volatile_dir(state, id))?;
    write(&hostname(root, id), request::hostname(config) + "\n")?;
    copy(Path::new("/etc/hosts"), &hosts(root, id))?;
    match &config.dns_config {
        Some(dns) => write(&resolv_conf(root, id), resolv_conf_text(dns))?,
        None => copy(Path::new("/etc/resolv.conf"), &resolv_conf(root, id))?,
    }
    if request::host_ipc(config) {
        if !Path::new(DEV_SHM).exists() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("host {DEV_SHM:?} is not available for host ipc"),
            ));
        }
        return Ok(());
    }
    let shm = shm(state, id);
    made(shm.clone())?;
    let recipe = corten_core::Mount {
        r#type: "tmpfs".into(),
        source: "shm".into(),
        options: SHM_OPTIONS.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    mount::mount_one(&recipe, &shm).context("failed to mount sandbox shm")
}

/// Undoes one mount; none is fine. Blocks.
///
/// # Errors
/// The kernel's.
pub fn unmount(path: &Path) -> Result<()> {
    // The same for any mount, however often it is there.
    if mountinfo::below(path)?.iter().any(|m| m.path == path) {
        mount::unmount(path, true)?;
    }
    Ok(())
}

/// Removes all that is a pod's; nothing is fine.
///
/// # Errors
/// The system's.
pub async fn remove(cri: &Cri, id: &str) -> Result<()> {
    let dirs = [dir(&cri.root, id), volatile_dir(&cri.state, id)];
    let pinned = user_namespace(&cri.state, id);
    blocking(move || {
        netns::remove(&pinned)?;
        dirs.iter().try_for_each(|dir| remove_dir(dir))
    })
    .await
    .with_context(|| format!("failed to remove directories of sandbox {id:?}"))
}

/// Removes a folder with what is mounted in it. Blocks.
///
/// # Errors
/// The system's; none when it is gone.
pub fn remove_dir(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for mount in mountinfo::below(dir)?.iter().rev() {
        mount::unmount(&mount.path, true)?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: String) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// A node without the file gives an empty one.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut text = Vec::new();
    match std::fs::File::open(from) {
        Ok(file) => {
            let read = file.take(MAX_COPY).read_to_end(&mut text);
            read.with_context(|| format!("read {}", from.display()))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("open {}", from.display())),
    }
    std::fs::write(to, text).with_context(|| format!("write {}", to.display()))
}

fn resolv_conf_text(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    };

    use super::*;

    #[test]
    fn files_say_what_the_pod_asks_for() {
        let temp = tempfile::tempdir().unwrap();
        let (root, state) = (temp.path().join("root"), temp.path().join("state"));
        let config = PodSandboxConfig {
            hostname: "web".into(),
            dns_config: Some(DnsConfig {
                servers: vec!["1.1.1.1".into(), "8.8.8.8".into()],
                searches: vec!["a.example".into(), "b.example".into()],
                options: vec!["ndots:5".into()],
            }),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    // No mount: this test needs no privilege.
                    namespace_options: Some(NamespaceOption {
                        ipc: NamespaceMode::Node as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        make(&root, &state, "p", &config).unwrap();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(hostname(&root, "p")), "web\n");
        assert_eq!(
            read(resolv_conf(&root, "p")),
            "search a.example b.example\nnameserver 1.1.1.1\nnameserver 8.8.8.8\noptions ndots:5\n"
        );
        assert!(hosts(&root, "p").exists());
        remove_dir(&dir(&root, "p")).unwrap();
        remove_dir(&dir(&root, "p")).unwrap();
        assert!(!dir(&root, "p").exists());
    }
}
