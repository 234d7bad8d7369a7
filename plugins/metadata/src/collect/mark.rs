//! Marking: the graph of all that can be collected, its roots, and what they reach.
//!
//! Roots: leases that have not expired and what they hold, images without or before their expiry, containers, what the
//! labels of sandboxes name, everything with `gc.root`, ingests before their expiry, active things of other stores. A lease with `gc.flat` holds only
//! what it names: of a snapshot also its parents, of an image also its target.

use std::collections::{HashMap, HashSet};

use corten_core::gc::Resource;
use corten_core::labels::GC_FLAT;
use corten_core::protos::containerd::services::containers::v1::Container;
use corten_core::protos::containerd::services::content::v1::Info as Blob;
use corten_core::protos::containerd::services::images::v1::Image;
use corten_core::protos::containerd::services::leases::v1::Lease;
use corten_core::protos::containerd::types::Sandbox;
use corten_core::{Labels, Result, Timestamp};

use super::labels::{Age, Meaning, expired, meanings};
use crate::keys::{self, each, parts};
use crate::leases;
use crate::records::{Ingest, Snapshot, system_time};
use crate::store::Read;

/// A thing that refers or is referred to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) ns: String,
    pub(super) name: String,
}

/// Its kind; snapshots with their snapshotter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum What {
    Lease,
    Image,
    Content,
    Ingest,
    Container,
    /// Another store's, by the word for it in labels.
    Other(&'static str),
    Snapshot(String),
}

/// Namespace and id of each lease, and whether it is flat.
type LeaseMap = HashMap<(String, String), bool>;

/// All nodes with their references.
#[derive(Default)]
pub(super) struct Graph {
    /// What can be collected.
    all: Vec<Node>,
    /// With true: reached through a flat lease, so that labels are not followed.
    roots: Vec<(Node, bool)>,
    refs: HashMap<Node, Vec<Node>>,
    /// References that a flat lease follows as well: snapshot to parent, image to target.
    parents: HashMap<Node, Node>,
    /// Holder to held, from the labels of the held.
    back: HashMap<Node, Vec<Node>>,
    conditions: Vec<(Node, Node, Vec<Age>)>,
    used_at: HashMap<Node, Vec<Timestamp>>,
}

// === impl Graph ===

impl Graph {
    /// Reads everything.
    pub(super) fn read(
        from: &dyn Read,
        others: &[(&'static str, Vec<Resource>)],
        now: &Timestamp,
    ) -> Result<Self> {
        let mut graph = Self::default();
        let leases = graph.read_leases(from, now)?;
        for (kind, all) in others {
            graph.read_others(kind, all, &leases);
        }
        graph.read_images(from, now)?;
        graph.read_content(from, now)?;
        graph.read_snapshots(from)?;
        graph.read_containers(from)?;
        graph.judge_conditions(now);
        Ok(graph)
    }

    /// The parent key of a snapshot; empty when it has none.
    pub(super) fn parent(&self, node: &Node) -> &str {
        self.parents.get(node).map_or("", |p| p.name.as_str())
    }

    /// What no root reaches, in a fixed order.
    pub(super) fn garbage(&self) -> Vec<Node> {
        let mut seen: HashSet<(&Node, bool)> = HashSet::new();
        let mut todo: Vec<(&Node, bool)> = self.roots.iter().map(|(n, flat)| (n, *flat)).collect();
        while let Some((node, flat)) = todo.pop() {
            if !seen.insert((node, flat)) {
                continue;
            }
            todo.extend(self.parents.get(node).map(|n| (n, flat)));
            if !flat {
                let labelled = [self.refs.get(node), self.back.get(node)];
                todo.extend(labelled.into_iter().flatten().flatten().map(|n| (n, false)));
            }
        }
        let kept = |n: &Node| seen.contains(&(n, false)) || seen.contains(&(n, true));
        self.all.iter().filter(|n| !kept(n)).cloned().collect()
    }

    fn root(&mut self, node: &Node) {
        self.roots.push((node.clone(), false));
    }

    /// The leases that count, with whether they are flat.
    fn read_leases(&mut self, from: &dyn Read, now: &Timestamp) -> Result<LeaseMap> {
        let mut flat_leases = HashMap::new();
        each(from, &[keys::LEASES], &mut |k, lease: Lease| {
            let node = node(What::Lease, k)?;
            if !expired(&lease.labels, now, &lease.id) {
                self.root(&node);
                let flat = lease.labels.contains_key(GC_FLAT);
                flat_leases.insert((node.ns.clone(), lease.id), flat);
            }
            self.all.push(node);
            Ok(())
        })?;
        from.scan(&[keys::LEASED], &mut |k, _| {
            let mut parts = parts(k)?.into_iter();
            let mut next = || parts.next().unwrap_or_default();
            let (ns, lease, kind, name) = (next(), next(), next(), next());
            let what = match kind.as_str() {
                leases::CONTENT => What::Content,
                leases::INGESTS => What::Ingest,
                leases::IMAGES => What::Image,
                other => match other.split_once('/') {
                    Some((leases::SNAPSHOTS, s)) => What::Snapshot(s.to_owned()),
                    _ => return Ok(true),
                },
            };
            if let Some(flat) = flat_leases.get(&(ns.clone(), lease)) {
                self.roots.push((Node { what, ns, name }, *flat));
            }
            Ok(true)
        })?;
        Ok(flat_leases)
    }

    /// Of their labels only back references count (containerd: mount/manager).
    fn read_others(&mut self, kind: &'static str, others: &[Resource], leases: &LeaseMap) {
        for other in others {
            let node = Node {
                what: What::Other(kind),
                ns: other.namespace.to_string(),
                name: other.name.clone(),
            };
            if other.active {
                self.root(&node);
            }
            let lease = other.lease.as_ref();
            if let Some(flat) = lease.and_then(|l| leases.get(&(node.ns.clone(), l.clone()))) {
                self.roots.push((node.clone(), *flat));
            }
            for meaning in meanings(&node.ns, &other.labels) {
                if let Meaning::BackRef(holder) = meaning {
                    self.back.entry(holder).or_default().push(node.clone());
                }
            }
            self.all.push(node);
        }
    }

    fn read_images(&mut self, from: &dyn Read, now: &Timestamp) -> Result<()> {
        each(from, &[keys::IMAGES], &mut |k, image: Image| {
            let node = node(What::Image, k)?;
            let rooted = !expired(&image.labels, now, &image.name);
            if rooted {
                self.root(&node);
            }
            if let Some(target) = image.target {
                let target = Node {
                    what: What::Content,
                    ns: node.ns.clone(),
                    name: target.digest,
                };
                self.parents.insert(node.clone(), target);
            }
            self.read_labels(&node, &image.labels, false);
            self.all.push(node);
            Ok(())
        })
    }

    fn read_content(&mut self, from: &dyn Read, now: &Timestamp) -> Result<()> {
        each(from, &[keys::BLOBS], &mut |k, blob: Blob| {
            let node = node(What::Content, k)?;
            self.read_labels(&node, &blob.labels, true);
            self.all.push(node);
            Ok(())
        })?;
        each(from, &[keys::INGESTS], &mut |k, ingest: Ingest| {
            let node = node(What::Ingest, k)?;
            let at = ingest.expire_at.map(|t| (t.seconds, t.nanos));
            if at.is_some_and(|at| at >= (now.seconds, now.nanos)) {
                self.root(&node);
            }
            if !ingest.expected.is_empty() {
                let held = Node {
                    what: What::Content,
                    ns: node.ns.clone(),
                    name: ingest.expected,
                };
                self.refs.entry(node.clone()).or_default().push(held);
            }
            self.all.push(node);
            Ok(())
        })
    }

    fn read_snapshots(&mut self, from: &dyn Read) -> Result<()> {
        each(from, &[keys::SNAPSHOTS], &mut |k, snapshot: Snapshot| {
            let mut parts = parts(k)?.into_iter();
            let mut next = || parts.next().unwrap_or_default();
            let (ns, snapshotter, name) = (next(), next(), next());
            let node = Node {
                what: What::Snapshot(snapshotter),
                ns,
                name,
            };
            if !snapshot.parent.is_empty() {
                let parent = Node {
                    name: snapshot.parent,
                    ..node.clone()
                };
                self.parents.insert(node.clone(), parent);
            }
            self.read_labels(&node, &snapshot.labels, true);
            self.all.push(node);
            Ok(())
        })
    }

    fn read_containers(&mut self, from: &dyn Read) -> Result<()> {
        each(from, &[keys::CONTAINERS], &mut |k, container: Container| {
            let node = node(What::Container, k)?;
            self.root(&node);
            if !container.snapshotter.is_empty() {
                let held = Node {
                    what: What::Snapshot(container.snapshotter),
                    ns: node.ns.clone(),
                    name: container.snapshot_key,
                };
                self.refs.entry(node.clone()).or_default().push(held);
            }
            self.read_labels(&node, &container.labels, false);
            Ok(())
        })?;
        each(from, &[keys::SANDBOXES], &mut |k, sandbox: Sandbox| {
            // Sandboxes are never collected; what they name is a root.
            let ns = parts(k)?.into_iter().next().unwrap_or_default();
            for meaning in meanings(&ns, &sandbox.labels) {
                if let Meaning::Ref(held) = meaning {
                    self.root(&held);
                }
            }
            Ok(())
        })
    }

    fn read_labels(&mut self, node: &Node, labels: &Labels, may_root: bool) {
        for meaning in meanings(&node.ns, labels) {
            match meaning {
                Meaning::Root if may_root => self.root(node),
                Meaning::Root => {}
                Meaning::Ref(to) => self.refs.entry(node.clone()).or_default().push(to),
                Meaning::BackRef(holder) => {
                    self.back.entry(holder).or_default().push(node.clone());
                }
                Meaning::Condition(on, ages) => {
                    // Images and content hold under conditions; the value stands on the snapshot.
                    if matches!(node.what, What::Image | What::Content) {
                        self.conditions.push((node.clone(), on, ages));
                    }
                }
                Meaning::UsedAt(at) => {
                    if matches!(node.what, What::Snapshot(_)) {
                        self.used_at.entry(node.clone()).or_default().push(at);
                    }
                }
            }
        }
    }

    /// A condition that is met is a reference to the snapshot.
    fn judge_conditions(&mut self, now: &Timestamp) {
        let now = system_time(Some(*now));
        for (node, on, ages) in std::mem::take(&mut self.conditions) {
            let times = self.used_at.get(&on).into_iter().flatten();
            let met = times.clone().any(|t| {
                let age = now
                    .duration_since(system_time(Some(*t)))
                    .unwrap_or_default();
                ages.iter().any(|a| match a {
                    Age::Below(d) => age < *d,
                    Age::Above(d) => age > *d,
                })
            });
            if met {
                self.refs.entry(node).or_default().push(on);
            }
        }
    }
}

/// The node of a record whose key is `<tag> ns name`.
fn node(what: What, key: &[u8]) -> Result<Node> {
    let mut parts = parts(key)?.into_iter();
    let ns = parts.next().unwrap_or_default();
    Ok(Node {
        what,
        ns,
        name: parts.next().unwrap_or_default(),
    })
}
