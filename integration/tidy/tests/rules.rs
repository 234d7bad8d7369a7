//! The rules. Each test prints all offenders, not only the first.

use std::collections::BTreeSet;
use std::path::Path;

use corten_tidy::{code_lines, edges, files, linked, root, text};

/// Longest source file, in lines of code.
const MAX_LINES: usize = 600;
/// The crates that may contain `unsafe`, by folder.
const FENCE: [&str; 2] = ["shim/launch/", "plugins/sys/"];

fn none(offenders: &[String]) {
    assert!(offenders.is_empty(), "\n  {}\n", offenders.join("\n  "));
}

#[test]
fn crates_depend_only_along_the_edges_of_the_house() {
    let mut offenders = Vec::new();
    for (name, (normal, dev)) in edges() {
        let plugin = |n: &str| {
            n.starts_with("corten-")
                && !matches!(
                    n,
                    "corten-protos"
                        | "corten-registry"
                        | "corten-core"
                        | "corten-sys"
                        | "corten-launch"
                        | "corten-oci"
                        | "corten-testsuite"
                        | "corten-integration"
                        | "corten-tidy"
                )
        };
        let allowed = |to: &str| match name.as_str() {
            "corten-protos" | "corten-registry" | "corten-launch" | "corten-tidy" => false,
            "corten-oci" => to == "corten-launch",
            "containerd-shim-corten-v2" => {
                matches!(to, "corten-oci" | "corten-launch" | "corten-protos")
            }
            "corten-core" => matches!(to, "corten-registry" | "corten-protos"),
            "corten-sys" | "corten-testsuite" => {
                matches!(to, "corten-core" | "corten-protos" | "corten-sys")
            }
            "cortend" => {
                plugin(to)
                    || matches!(
                        to,
                        "corten-core" | "corten-sys" | "corten-registry" | "corten-protos"
                    )
            }
            "corten-integration" => to == "corten-protos",
            n if plugin(n) => {
                matches!(
                    to,
                    "corten-core" | "corten-sys" | "corten-registry" | "corten-protos"
                ) || (n == "corten-cri" && to == "corten-cni")
            }
            _ => false,
        };
        for to in normal.iter().filter(|to| !allowed(to)) {
            offenders.push(format!("{name} -> {to}"));
        }
        // Tests may use other plugins as fixtures, but never the daemon or the harness.
        for to in dev
            .iter()
            .filter(|to| matches!(to.as_str(), "cortend" | "corten-integration"))
        {
            offenders.push(format!("{name} -> {to} (dev)"));
        }
    }
    none(&offenders);
}

#[test]
fn the_shim_links_only_what_it_is_known_to_link() {
    let list = text(Path::new("integration/tidy/shim-crates.txt"));
    let known: BTreeSet<&str> = list
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .collect();
    let linked = linked("containerd-shim-corten-v2");
    assert!(linked.len() > 5, "cargo tree gave nothing");
    let new: Vec<String> = linked
        .iter()
        .filter(|n| !known.contains(n.as_str()))
        .cloned()
        .collect();
    none(&new);
    let gone: Vec<String> = known
        .iter()
        .filter(|n| !linked.contains(**n))
        .map(|n| format!("{n} is gone: take it off the list"))
        .collect();
    none(&gone);
}

#[test]
fn every_source_file_opens_with_its_owners_note() {
    let offenders: Vec<String> = files("rs")
        .into_iter()
        .filter(|p| !text(p).trim_start().starts_with("//!"))
        .map(|p| p.display().to_string())
        .collect();
    none(&offenders);
}

#[test]
fn no_source_file_is_longer_than_a_person_reads() {
    let offenders: Vec<String> = files("rs")
        .into_iter()
        .map(|p| (code_lines(&text(&p)), p))
        .filter(|(n, _)| *n > MAX_LINES)
        .map(|(n, p)| format!("{} has {n} lines of code", p.display()))
        .collect();
    none(&offenders);
}

#[test]
fn unsafe_code_stays_behind_the_fence() {
    let offenders: Vec<String> = files("rs")
        .into_iter()
        .filter(|p| !FENCE.iter().any(|f| p.starts_with(f)) && !p.starts_with("integration/tidy"))
        .filter(|p| {
            text(p).lines().map(str::trim).any(|l| {
                !l.starts_with("//")
                    && ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"]
                        .iter()
                        .any(|u| l.contains(u))
            })
        })
        .map(|p| p.display().to_string())
        .collect();
    none(&offenders);
}

#[test]
fn every_path_of_the_code_map_exists() {
    let map = text(Path::new("ARCHITECTURE.md"));
    let paths: Vec<&str> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|p| {
            p.contains('/') && !p.contains([' ', '<', '*', '{', ':', '(']) && !p.starts_with('/')
        })
        .collect();
    assert!(paths.len() > 20, "the code map names {} paths", paths.len());
    let offenders: Vec<String> = paths
        .into_iter()
        .filter(|p| !root().join(p).exists())
        .map(|p| format!("ARCHITECTURE.md names {p}"))
        .collect();
    none(&offenders);
}

#[test]
fn no_licence_binds_what_links_it() {
    let deny = text(Path::new("deny.toml"));
    assert!(!deny.contains("GPL"), "deny.toml allows a GPL licence");
}
