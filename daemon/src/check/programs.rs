//! Programs: shims, runc, CNI plugins and the tools that some features call.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Line;
use crate::config::Config;

const OURS: &str = "containerd-shim-corten-v2";
/// Where distributions and the CNI project put its plugins.
const CNI_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// What the usual pod network configurations call.
const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

pub(super) fn lines(config: &Config) -> Vec<Line> {
    let path: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|p| std::env::split_paths(&p).collect())
        .unwrap_or_default();
    // The runtime manager looks beside the daemon's binary too.
    let beside = std::env::current_exe()
        .ok()
        .and_then(|e| e.parent().map(Path::to_path_buf));
    let shims = shims(&path.iter().cloned().chain(beside).collect::<Vec<_>>());
    let has = |name: &str| path.iter().map(|d| d.join(name)).find(|p| is_program(p));
    let mut lines = vec![shim_line(&shims)];
    if shims.contains("containerd-shim-runc-v2") || has("runc").is_some() {
        lines.push(runc(has("runc"), shims.contains("containerd-shim-runc-v2")));
    }
    lines.push(cni(&cni_dirs(config)));
    for (program, lost) in [
        ("mkfs.erofs", "the erofs differ cannot make layers"),
        ("criu", "containers cannot be checkpointed or restored"),
        ("apparmor_parser", "AppArmor profiles cannot be loaded"),
    ] {
        lines.push(match has(program) {
            Some(found) => Line::ok(program, found.display().to_string()),
            None => Line::missing(program, format!("not on PATH: {lost}")),
        });
    }
    lines
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn shims(folders: &[PathBuf]) -> BTreeSet<String> {
    folders
        .iter()
        .filter_map(|f| std::fs::read_dir(f).ok())
        .flat_map(|entries| entries.filter_map(Result::ok))
        .filter(|e| is_program(&e.path()))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with("containerd-shim-"))
        .collect()
}

fn shim_line(shims: &BTreeSet<String>) -> Line {
    let all = shims
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if shims.contains(OURS) {
        Line::ok("shims", all)
    } else if shims.is_empty() {
        Line::fatal(
            "shims",
            format!("none on PATH or beside cortend: install {OURS}"),
        )
    } else {
        Line::limited(
            "shims",
            format!("{all}, but not {OURS}: its runtime cannot be asked for"),
        )
    }
}

fn runc(runc: Option<PathBuf>, shim: bool) -> Line {
    match (runc, shim) {
        (Some(path), true) => Line::ok("runc", path.display().to_string()),
        (Some(path), false) => Line::ok(
            "runc",
            format!("{}; Corten's own shim does not need it", path.display()),
        ),
        (None, _) => Line::limited(
            "runc",
            format!("not on PATH: io.containerd.runc.v2 fails; {OURS} does not need it"),
        ),
    }
}

/// The configured folders, else the usual ones.
fn cni_dirs(config: &Config) -> Vec<PathBuf> {
    let configured = config
        .plugins
        .get("io.containerd.cri.v1.runtime")
        .and_then(|t| t.get("cni")?.get("bin_dirs")?.as_array())
        .map(|dirs| {
            dirs.iter()
                .filter_map(|d| d.as_str())
                .map(PathBuf::from)
                .collect::<Vec<_>>()
        });
    match configured {
        Some(dirs) if !dirs.is_empty() => dirs,
        _ => CNI_DIRS.iter().map(PathBuf::from).collect(),
    }
}

fn cni(dirs: &[PathBuf]) -> Line {
    let topic = "cni plugins";
    let lost: Vec<&str> = CNI_PLUGINS
        .into_iter()
        .filter(|p| !dirs.iter().any(|d| is_program(&d.join(p))))
        .collect();
    let places = dirs
        .iter()
        .map(|d| d.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if lost.is_empty() {
        Line::ok(topic, format!("{} in {places}", CNI_PLUGINS.join(", ")))
    } else if lost.len() == CNI_PLUGINS.len() {
        Line::missing(
            topic,
            format!("none in {places}: pods get no network; other containers do not care"),
        )
    } else {
        Line::limited(
            topic,
            format!(
                "no {} in {places}: networks that use them fail",
                lost.join(", ")
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn program(dir: &Path, name: &str, mode: u32) {
        let path = dir.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn shims_are_found_by_name_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            shim_line(&shims(&[dir.path().into()])).verdict,
            Verdict::Fatal
        );
        program(dir.path(), OURS, 0o644);
        program(dir.path(), "containerd-shim-runc-v2", 0o755);
        let found = shims(&[dir.path().into(), "/no/such".into()]);
        assert_eq!(shim_line(&found).verdict, Verdict::Limited);
        program(dir.path(), OURS, 0o755);
        let line = shim_line(&shims(&[dir.path().into()]));
        assert_eq!(
            line,
            Line::ok(
                "shims",
                "containerd-shim-corten-v2, containerd-shim-runc-v2"
            )
        );
    }

    #[test]
    fn cni_folders_come_from_the_config() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        assert_eq!(cni_dirs(&config).len(), CNI_DIRS.len());
        let table = format!("[cni]\nbin_dirs = [{:?}]", dir.path().to_str().unwrap());
        config.plugins.insert(
            "io.containerd.cri.v1.runtime".into(),
            table.parse().unwrap(),
        );
        assert_eq!(cni_dirs(&config), [dir.path().to_path_buf()]);
        assert_eq!(cni(&cni_dirs(&config)).verdict, Verdict::Missing);
        program(dir.path(), "bridge", 0o755);
        assert!(
            cni(&cni_dirs(&config))
                .text
                .starts_with("no host-local, loopback, portmap in ")
        );
    }

    #[test]
    fn runc_matters_to_its_shim_only() {
        assert_eq!(runc(None, true).verdict, Verdict::Limited);
        assert_eq!(runc(Some("/bin/runc".into()), false).verdict, Verdict::Ok);
    }
}
