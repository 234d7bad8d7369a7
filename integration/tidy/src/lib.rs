//! The repository's rules as code: what `tests/rules.rs` asks of the tree.
//!
//! A rule that nobody checks is a wish. These are cheap, need no root and run first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// All files below the root that git tracks or would track, with this extension.
pub fn files(extension: &str) -> Vec<PathBuf> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git ls-files runs");
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(PathBuf::from)
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .filter(|p| root().join(p).is_file())
        .collect()
}

/// The text of a file below the root.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// Lines that are neither blank nor comment, up to the unit tests at the end.
pub fn code_lines(text: &str) -> usize {
    text.lines()
        .take_while(|l| !l.starts_with("#[cfg(test)]"))
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with("//"))
        .count()
}

/// Our packages and the packages of ours that each depends on: (normal, development).
pub fn edges() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    let all: serde_json::Value =
        serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON");
    let mut edges = BTreeMap::new();
    for package in all["packages"].as_array().into_iter().flatten() {
        let (mut normal, mut dev) = (BTreeSet::new(), BTreeSet::new());
        for d in package["dependencies"].as_array().into_iter().flatten() {
            if d["path"].is_null() {
                continue;
            }
            let name = d["name"].as_str().unwrap_or_default().to_owned();
            if d["kind"].as_str() == Some("dev") {
                dev.insert(name)
            } else {
                normal.insert(name)
            };
        }
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        edges.insert(name, (normal, dev));
    }
    edges
}

/// The crates that package `name` links, by name.
pub fn linked(name: &str) -> BTreeSet<String> {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "-p",
            name,
            "-e",
            "normal,no-proc-macro",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ])
        .current_dir(root())
        .output()
        .expect("cargo tree runs");
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|l| l.split(' ').next())
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect()
}
