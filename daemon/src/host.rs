//! What the daemon does to its own process at start: folders, environment, OOM score, cgroup.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use corten_runtime::opt;
use tracing::warn;

use crate::config::Config;

/// Makes root (0700) and state (0711) and tightens looser ones that are there (CVE-2024-25621).
pub(crate) fn folders(config: &Config) -> Result<()> {
    for (dir, mode) in [(&config.root, 0o700), (&config.state, 0o711)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .with_context(|| format!("create {}", dir.display()))?;
        let found = fs::metadata(dir)
            .with_context(|| format!("stat {}", dir.display()))?
            .permissions()
            .mode()
            & 0o7777;
        if found & !mode != 0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode))
                .with_context(|| format!("chmod {}", dir.display()))?;
        }
    }
    temp_mounts(&config.root.join("tmpmounts"))
}

/// Where layers are mounted for a moment: below root, so that they are on the same file system. What an earlier
/// process of ours was killed in the middle of is unmounted, and its empty folders go.
fn temp_mounts(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))?;
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for left in entries.flatten().map(|e| e.path()) {
        // Never recursively: if a mount were left, its data would go.
        let cleared = corten_sys::mount::unmount_recursive(&left, true)
            .map_err(|e| e.to_string())
            .and_then(|()| fs::remove_dir(&left).map_err(|e| e.to_string()));
        if let Err(error) = cleared {
            warn!(path = %left.display(), error, "clear away a temporary mount");
        }
    }
    corten_sys::mount::set_temp_base(dir);
    Ok(())
}

/// Sets what this process and all that it starts find in their environment: the folder for temporary files, and the
/// programs and libraries that `ctr install` put somewhere. Before any thread is started.
pub(crate) fn environment(config: &Config) -> Result<()> {
    if !config.temp.is_empty() {
        let temp = Path::new(&config.temp);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(temp)
            .with_context(|| format!("create {}", temp.display()))?;
        set("TMPDIR", temp.as_os_str())?;
    }
    if config.disabled_plugins.iter().any(|p| p == opt::URI) {
        return Ok(());
    }
    // A table that cannot be read fails its plugin, not the daemon.
    let opt = config.table::<opt::Config>(opt::URI).unwrap_or_default();
    for (name, folder) in [("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")] {
        let old = std::env::var_os(name).filter(|v| !v.is_empty());
        let old = old.as_deref().map(std::env::split_paths);
        let all = std::iter::once(opt.path.join(folder)).chain(old.into_iter().flatten());
        match std::env::join_paths(all) {
            Ok(value) => set(name, &value)?,
            Err(error) => warn!(path = %opt.path.display(), %error, "cannot be on {name}"),
        }
    }
    Ok(())
}

fn set(name: &str, value: &std::ffi::OsStr) -> Result<()> {
    corten_sys::environment::set(name, value).map_err(|e| anyhow!(e.to_string()))
}

/// Sets the daemon's OOM score. A host that refuses to lower it gets a warning: the daemon is still of use.
pub(crate) fn oom_score(score: i64) {
    if score == 0 {
        return;
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(score, %error, "the host refuses the oom score; going on with the present one");
    }
}

/// Puts the daemon into `path` below every cgroup hierarchy of the host.
pub(crate) fn cgroup(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let relative = path.trim_start_matches('/');
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let kind = right.split(' ').next().unwrap_or_default();
        let Some(mount) = left.split(' ').nth(4) else {
            continue;
        };
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let dir = Path::new(mount).join(relative);
        if let Err(error) = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("cgroup.procs"), std::process::id().to_string()))
        {
            warn!(cgroup = %dir.display(), %error, "the daemon cannot enter this cgroup");
        }
    }
    Ok(())
}
