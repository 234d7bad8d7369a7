//! Programs: shims, runc, CNI plugins and the tools that some features call.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use corten_runtime::opt;
use corten_transfer::verifier;

use super::Line;
use crate::config::Config;

const OURS: &str = "containerd-shim-corten-v2";
/// Where distributions and the CNI project put its plugins.
const CNI_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// What the usual pod network configurations call.
const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

pub(super) fn lines(config: &Config) -> Vec<Line> {
    let own = std::env::var_os("PATH");
    let own = own.as_deref().map(std::env::split_paths);
    // What `ctr install` put somewhere comes first for the daemon.
    let path: Vec<PathBuf> = opt_bin(config)
        .into_iter()
        .chain(own.into_iter().flatten())
        .collect();
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
    for (program, used, lost) in [
        ("mkfs.erofs", "", "the erofs differ cannot make layers"),
        (
            "criu",
            "; containers are checkpointed with it; `criu check` tries it",
            "containers cannot be checkpointed or restored",
        ),
        ("apparmor_parser", "", "AppArmor profiles cannot be loaded"),
    ] {
        lines.push(match has(program) {
            Some(found) => Line::ok(program, format!("{}{used}", found.display())),
            None => Line::missing(program, format!("not on PATH: {lost}")),
        });
    }
    lines.extend(verifiers(config));
    lines
}

fn opt_bin(config: &Config) -> Option<PathBuf> {
    let disabled = config.disabled_plugins.iter().any(|p| p == opt::URI);
    let opt: opt::Config = config.table(opt::URI).ok()?;
    (!disabled).then(|| opt.path.join("bin"))
}

/// The programs that judge images; a line only where there are some.
fn verifiers(config: &Config) -> Option<Line> {
    let config: verifier::Config = config.table(verifier::URI).ok()?;
    let mut names: Vec<String> = std::fs::read_dir(&config.bin_dir)
        .ok()?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let (dir, all) = (config.bin_dir.display(), names.join(", "));
    let broken = |name: &&String| !is_program(&config.bin_dir.join(name));
    let broken: Vec<&str> = names.iter().filter(broken).map(String::as_str).collect();
    match (names.is_empty(), broken.is_empty()) {
        (true, _) => None,
        (_, true) => Some(Line::ok(
            "image verifiers",
            format!("{all} in {dir} judge every image before it is pulled"),
        )),
        _ => Some(Line::limited(
            "image verifiers",
            format!(
                "{} in {dir} cannot be run: every pull fails",
                broken.join(", ")
            ),
        )),
    }
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
