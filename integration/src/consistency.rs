//! What a daemon says it has against what is on its disk: content, snapshots, containers, tasks.
//!
//! Meant for a daemon that rests: nobody pulls, creates or deletes while this looks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::leaks;

/// Everything that does not fit together.
#[must_use]
pub fn faults(c: &Case) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut digests, mut snapshots) = (BTreeSet::new(), 0);
    for namespace in c.list("namespaces ls -q") {
        let rows = |words: &str| {
            let out = c.new_ctr("-n").arg(&namespace).words(words).ok();
            out.lines()
                .map(|l| l.trim_end().to_owned())
                .collect::<Vec<_>>()
        };
        faults.extend(images(&rows));
        let content = rows("content ls");
        for row in content.iter().skip(1) {
            digests.extend(row.split_whitespace().next().map(str::to_owned));
        }
        let (count, wrong) = trees(&rows);
        snapshots += count;
        faults.extend(wrong);
        faults.extend(containers(c, &namespace, &rows));
    }
    faults.extend(blobs(c, &digests));
    let place = "io.containerd.snapshotter.v1.overlayfs/snapshots";
    let directories = names(&c.daemon.root().join(place)).len();
    if directories != snapshots {
        faults.push(format!(
            "{snapshots} overlayfs snapshots, {directories} directories"
        ));
    }
    faults
}

type Rows<'a> = &'a dyn Fn(&str) -> Vec<String>;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Every image's content is complete.
fn images(rows: Rows<'_>) -> Vec<String> {
    let table = rows("images check");
    let broken = table.iter().skip(1).filter(|r| !r.contains(" complete "));
    broken.map(|row| format!("image {row}")).collect()
}

/// Every blob of the store is a file with the right bytes, and every file is a blob.
fn blobs(c: &Case, digests: &BTreeSet<String>) -> Vec<String> {
    let dir = c
        .daemon
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256");
    let files = names(&dir);
    let mut faults = Vec::new();
    for digest in digests {
        let hex = digest.trim_start_matches("sha256:");
        match fs::read(dir.join(hex)) {
            Err(error) => faults.push(format!("content {digest}: {error}")),
            Ok(bytes) => {
                let sum = Sha256::digest(&bytes);
                let sum: String = sum.iter().map(|b| format!("{b:02x}")).collect();
                if sum != hex {
                    faults.push(format!("content {digest} has other bytes"));
                }
            }
        }
    }
    for file in files {
        if !digests.contains(&format!("sha256:{file}")) {
            faults.push(format!("blob {file} belongs to nobody"));
        }
    }
    faults
}

/// How many snapshots there are, and those whose parent is missing.
fn trees(rows: Rows<'_>) -> (usize, Vec<String>) {
    let table = rows("snapshots ls");
    let fields: Vec<Vec<&str>> = table
        .iter()
        .skip(1)
        .map(|row| row.split_whitespace().collect())
        .collect();
    let keys: BTreeSet<&str> = fields.iter().filter_map(|f| f.first().copied()).collect();
    let orphans = fields
        .iter()
        .filter(|f| f.len() == 3 && f[1].starts_with("sha256:") && !keys.contains(f[1]));
    let wrong = orphans.map(|f| format!("snapshot {} without its parent {}", f[0], f[1]));
    (fields.len(), wrong.collect())
}

/// Tasks have containers, bundles have tasks, shims have tasks.
fn containers(c: &Case, namespace: &str, rows: Rows<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    let set = |words: &str| rows(words).into_iter().collect::<BTreeSet<_>>();
    let (containers, tasks) = (set("containers ls -q"), set("task ls -q"));
    for task in tasks.difference(&containers) {
        faults.push(format!("task {task} has no container"));
    }
    let bundles = c
        .daemon
        .state()
        .join("io.containerd.runtime.v2.task")
        .join(namespace);
    for bundle in names(&bundles).symmetric_difference(&tasks) {
        faults.push(format!("either bundle or task {bundle}, not both"));
    }
    for (pid, line) in leaks::processes_naming(namespace) {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_shim = words.first().is_some_and(|w| w.contains("containerd-shim"));
        let id = words.iter().position(|w| *w == "-id");
        let id = id.and_then(|at| words.get(at + 1));
        if is_shim && id.is_some_and(|id| !tasks.contains(*id)) {
            faults.push(format!("shim {pid} has no task: {line}"));
        }
    }
    faults
}
