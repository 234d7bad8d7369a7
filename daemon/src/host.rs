//! What the daemon does to its own process at start: folders, OOM score, cgroup.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
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
    let temp = temp_dir(config);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&temp)
        .with_context(|| format!("create {}", temp.display()))
}

/// Where temporary mounts go: below root, so that they are on the same file system.
pub(crate) fn temp_dir(config: &Config) -> std::path::PathBuf {
    if config.temp.is_empty() {
        config.root.join("tmpmounts")
    } else {
        config.temp.clone().into()
    }
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
