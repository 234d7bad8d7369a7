//! The plugins of Corten beside those of stock containerd: the same ids, with the same needs, platforms, exports and
//! capabilities, but for what is listed here with its reason.

use std::collections::{BTreeMap, BTreeSet};

use corten_integration::case::Case;
use corten_integration::daemon::Setup;
use corten_integration::peers::Kind;
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![are_those_of_stock_containerd, tells_of_deprecations]
        .into_iter()
        .map(Test::own_daemon)
        .collect()
}

/// Neither NRI, whose socket is the machine's, nor the machine's networks.
const CONFIG: &str = "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
                      [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/nonexistent'\n";

/// Plugins of stock containerd that Corten has not.
const ABSENT: &[(&str, &str)] = &[
    ("snapshotter.v1.blockfile", "no such snapshotter"),
    ("snapshotter.v1.btrfs", "no such snapshotter"),
    ("snapshotter.v1.devmapper", "no such snapshotter"),
    ("snapshotter.v1.zfs", "no such snapshotter"),
];

/// Plugins that only Corten has.
const EXTRA: &[(&str, &str)] = &[
    (
        "mount-handler.v1.loop",
        "stock containerd sets loop devices up outside of its plugins",
    ),
    (
        "metrics.v1.cri",
        "stock containerd counts in a registry of the whole process",
    ),
    (
        "metrics.v1.nri",
        "stock containerd counts in a registry of the whole process",
    ),
];

/// Plugin, kinds that only Corten's needs, kinds that only stock's needs, why.
type Needs = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
);

const STORES_PUBLISH: &str = "the store itself publishes what it did";
const NO_CLIENT: &str =
    "asks the stores and the runtime, where stock asks a client of the services";
const OWN_FIELDS: &str = "holds what stock's shim manager holds for it";

const NEEDS: &[Needs] = &[
    (
        "cri.v1.images",
        &["event.v1", "gc.v1", "mount-manager.v1", "streaming.v1"],
        &["lease.v1", "sandbox.store.v1", "service.v1"],
        NO_CLIENT,
    ),
    (
        "cri.v1.runtime",
        &[],
        &["warning.v1"],
        "only the images warn",
    ),
    (
        "podsandbox.controller.v1.podsandbox",
        &[],
        &[
            "event.v1",
            "lease.v1",
            "sandbox.store.v1",
            "service.v1",
            "transfer.v1",
            "warning.v1",
        ],
        "works with what the CRI hands to it",
    ),
    (
        "grpc.v1.cri",
        &["differ.v1", "metadata.v1", "mount-manager.v1", "runtime.v2"],
        &["lease.v1", "sandbox.store.v1", "shim.v1", "transfer.v1"],
        NO_CLIENT,
    ),
    (
        "nri.v1.nri",
        &[],
        &["internal.v1", "warning.v1"],
        "has no plugins of older protocols, and warns of none",
    ),
    (
        "service.v1.containers-service",
        &[],
        &["event.v1"],
        STORES_PUBLISH,
    ),
    (
        "service.v1.namespaces-service",
        &[],
        &["event.v1"],
        STORES_PUBLISH,
    ),
    (
        "service.v1.images-service",
        &[],
        &["warning.v1"],
        "stock's has nothing to warn of since schema 1 is gone",
    ),
    (
        "service.v1.introspection-service",
        &["runtime.v2"],
        &[],
        "tells of a runtime what the task manager knows",
    ),
    (
        "service.v1.tasks-service",
        &[],
        &["event.v1", "monitor.task.v1"],
        "the monitor asks for tasks, and is not told of them",
    ),
    (
        "shim.v1.manager",
        &[],
        &["event.v1", "metadata.v1"],
        "who has shims gives it what it needs of both",
    ),
    (
        "runtime.v2.task",
        &["event.v1", "metadata.v1"],
        &[],
        OWN_FIELDS,
    ),
    (
        "sandbox.controller.v1.shim",
        &["metadata.v1"],
        &[],
        OWN_FIELDS,
    ),
    (
        "monitor.task.v1.cgroups",
        &["metadata.v1", "runtime.v2"],
        &[],
        NO_CLIENT,
    ),
    (
        "monitor.container.v1.restart",
        &["metadata.v1", "runtime.v2"],
        &["event.v1", "service.v1"],
        NO_CLIENT,
    ),
    (
        "differ.v1.erofs",
        &["mount-manager.v1"],
        &[],
        "reads layers that are already mounted",
    ),
    (
        "transfer.v1.local",
        &["streaming.v1"],
        &["lease.v1"],
        "opens the streams that its messages name; leases are the metadata's",
    ),
];

/// What a client is told of one plugin.
#[derive(Debug, Default)]
struct Plugin {
    needs: BTreeSet<String>,
    platforms: BTreeSet<String>,
    /// Only their names: values are paths and numbers.
    exports: BTreeSet<String>,
    capabilities: BTreeSet<String>,
    /// Why it did not start, if it did not.
    error: String,
}

/// Reads `ctr plugins ls -d`, by type and id without what all types begin with.
fn read(text: &str) -> BTreeMap<String, Plugin> {
    let short = |uri: &str| uri.trim_start_matches("io.containerd.").to_owned();
    let mut all = BTreeMap::new();
    for block in text.split("Type:").skip(1) {
        let (mut lines, mut plugin) = (block.lines(), Plugin::default());
        let kind = short(lines.next().unwrap().trim());
        let (mut id, mut section) = (String::new(), "");
        for line in lines {
            let rest = match line.split_once(':') {
                Some((name, rest)) if !line.starts_with(' ') => {
                    section = name;
                    rest.trim()
                }
                _ => line.trim(),
            };
            if rest.is_empty() {
                continue;
            }
            let words = || rest.split([',', ' ']).filter(|w| !w.is_empty());
            match section {
                "ID" => id = rest.to_owned(),
                "Requires" => plugin.needs.insert(short(rest)).then_some(()).unwrap(),
                "Platforms" => plugin.platforms.extend(words().map(str::to_owned)),
                "Exports" => plugin.exports.extend(words().next().map(str::to_owned)),
                "Capabilities" => plugin.capabilities.extend(words().map(str::to_owned)),
                "Error" => plugin.error.push_str(rest),
                _ => {}
            }
        }
        all.insert(format!("{kind}.{id}"), plugin);
    }
    all
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn are_those_of_stock_containerd(c: &Case) {
    let list = |kind: Kind| {
        let daemon = Setup::new(kind).kubernetes().extra(CONFIG).start();
        let ctr = c.client.command(&daemon.socket(), &c.namespace, &c.dir);
        let list = read(&ctr.words("plugins ls -d").ok());
        assert_eq!(daemon.stop(), 0);
        list
    };
    let (ours, stock) = (list(c.daemon.kind), list(Kind::Reference));
    if c.is_reference() {
        println!("    stock containerd beside itself: nothing differs");
    }
    let differs = |names: &[(&str, &str)]| match c.is_reference() {
        true => BTreeSet::new(),
        false => names.iter().map(|(n, _)| (*n).to_owned()).collect(),
    };
    let names = |l: &BTreeMap<String, Plugin>| l.keys().cloned().collect::<BTreeSet<_>>();
    let (our_names, stock_names) = (names(&ours), names(&stock));
    let absent: BTreeSet<_> = stock_names.difference(&our_names).cloned().collect();
    let extra: BTreeSet<_> = our_names.difference(&stock_names).cloned().collect();
    assert_eq!(absent, differs(ABSENT), "plugins of stock alone");
    assert_eq!(extra, differs(EXTRA), "plugins of ours alone");
    let mut wrong = Vec::new();
    for (name, our) in &ours {
        let Some(their) = stock.get(name) else {
            continue;
        };
        let listed = NEEDS.iter().filter(|_| !c.is_reference());
        let listed = listed.into_iter().find(|(n, ..)| n == name);
        let (more, fewer) = match listed {
            Some((_, more, fewer, _)) => (set(more), set(fewer)),
            None => Default::default(),
        };
        let mut tell = |what: &str, ours: &BTreeSet<String>, theirs: &BTreeSet<String>| {
            if ours != theirs {
                wrong.push(format!("{name}: {what}: ours {ours:?}, stock {theirs:?}"));
            }
        };
        let is_more: BTreeSet<_> = our.needs.difference(&their.needs).cloned().collect();
        let is_fewer: BTreeSet<_> = their.needs.difference(&our.needs).cloned().collect();
        tell("needs beside stock's", &is_more, &more);
        tell("needs that only stock has", &is_fewer, &fewer);
        if !our.error.is_empty() || !their.error.is_empty() {
            // It told nothing more of itself: this machine is not for it.
            continue;
        }
        tell("platforms", &our.platforms, &their.platforms);
        tell("exports", &our.exports, &their.exports);
        tell("capabilities", &our.capabilities, &their.capabilities);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn tells_of_deprecations(c: &Case) {
    let told = c.ctr("deprecations list").ok();
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(
        told.contains("io.containerd.deprecation/cgroup-v1"),
        !unified,
        "{told}"
    );
    assert_eq!(
        told.contains("no later than May 2029. Upgrade the host to use cgroup v2."),
        !unified,
        "{told}"
    );
}
