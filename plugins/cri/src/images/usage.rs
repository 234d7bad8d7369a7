//! Bytes and inodes of snapshots: measured every few seconds, because a kubelet asks often and counting is slow. What
//! cannot change (committed layers) is counted once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use corten_core::filter::Filter;
use corten_core::protos::time::{now, unix_nanos};
use corten_core::snapshots::{SnapshotKind, Usage};
use corten_core::{Kind, Result};
use corten_protos::runtime::v1::{
    FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value,
};
use parking_lot::Mutex;

use super::Images;

/// Snapshotter and key.
type Key = (String, String);

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Usages {
    entries: Mutex<HashMap<Key, Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: SnapshotKind,
    usage: Usage,
    /// Nanoseconds since 1970.
    at: i64,
}

/// A sum over snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Total {
    bytes: u64,
    inodes: u64,
    /// Of the oldest measurement.
    at: Option<i64>,
}

impl Total {
    fn add(&mut self, entry: &Entry) {
        self.bytes = self.bytes.saturating_add(unsigned(entry.usage.size));
        self.inodes = self.inodes.saturating_add(unsigned(entry.usage.inodes));
        self.at = Some(self.at.map_or(entry.at, |at| at.min(entry.at)));
    }

    fn of_file_system(self, root: String) -> FilesystemUsage {
        FilesystemUsage {
            timestamp: self.at.unwrap_or_else(|| unix_nanos(&now())),
            fs_id: Some(FilesystemIdentifier { mountpoint: root }),
            used_bytes: Some(UInt64Value { value: self.bytes }),
            inodes_used: Some(UInt64Value { value: self.inodes }),
        }
    }
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

// === impl Usages ===

impl Usages {
    pub(super) fn forget(&self, snapshotter: &str, key: &str) {
        self.entries
            .lock()
            .remove(&(snapshotter.to_owned(), key.to_owned()));
    }

    fn get(&self, snapshotter: &str, key: &str) -> Option<Entry> {
        let entries = self.entries.lock();
        entries
            .get(&(snapshotter.to_owned(), key.to_owned()))
            .copied()
    }

    fn put(&self, snapshotter: &str, key: &str, entry: Entry) {
        let key = (snapshotter.to_owned(), key.to_owned());
        self.entries.lock().insert(key, entry);
    }

    // By snapshotter: all snapshots, and the writable ones among them.
    fn totals(&self) -> BTreeMap<String, (Total, Total)> {
        let mut out: BTreeMap<String, (Total, Total)> = BTreeMap::new();
        for ((snapshotter, _), entry) in &*self.entries.lock() {
            let (all, writable) = out.entry(snapshotter.clone()).or_default();
            all.add(entry);
            if entry.kind == SnapshotKind::Active {
                writable.add(entry);
            }
        }
        out
    }
}

impl Images {
    /// Measures until the daemon ends. At least half of the time is left to others.
    pub(super) async fn measure(&self) {
        let period = Duration::from_secs(self.config.stats_collect_period.max(1));
        loop {
            let began = tokio::time::Instant::now();
            for snapshotter in self.snapshots.names() {
                if let Err(error) = self.measure_all(&snapshotter).await {
                    tracing::warn!(%error, snapshotter, "measure snapshots");
                }
            }
            let rest = period.saturating_sub(began.elapsed());
            tokio::time::sleep(rest.max(period / 2)).await;
        }
    }

    async fn measure_all(&self, snapshotter: &str) -> Result<()> {
        let all = self
            .snapshots
            .list(&self.ns, snapshotter, &Filter::all())
            .await?;
        let keys: HashSet<&str> = all.iter().map(|i| i.name.as_str()).collect();
        self.usages
            .entries
            .lock()
            .retain(|(s, key), _| s != snapshotter || keys.contains(key.as_str()));
        for info in &all {
            let at = unix_nanos(&SystemTime::now().into());
            let known = self.usages.get(snapshotter, &info.name);
            let entry = match known {
                Some(e) if e.kind == info.kind && e.kind != SnapshotKind::Active => {
                    Entry { at, ..e }
                }
                _ => match self
                    .snapshots
                    .usage(&self.ns, snapshotter, &info.name)
                    .await
                {
                    Ok(usage) => Entry {
                        kind: info.kind,
                        usage,
                        at,
                    },
                    Err(e) if e.kind() == Kind::NotFound => continue,
                    Err(error) => {
                        tracing::warn!(%error, snapshot.key = info.name, "measure snapshot");
                        continue;
                    }
                },
            };
            self.usages.put(snapshotter, &info.name, entry);
        }
        Ok(())
    }

    /// The writable layer of a container as it was measured last; measured now if it never was.
    pub async fn writable_layer(&self, snapshotter: &str, key: &str) -> FilesystemUsage {
        let mut total = Total::default();
        let known = match self.usages.get(snapshotter, key) {
            Some(entry) => Some(entry),
            None => {
                let usage = self.snapshots.usage(&self.ns, snapshotter, key).await;
                usage.ok().map(|usage| Entry {
                    kind: SnapshotKind::Active,
                    usage,
                    at: unix_nanos(&now()),
                })
            }
        };
        if let Some(entry) = known {
            self.usages.put(snapshotter, key, entry);
            total.add(&entry);
        }
        total.of_file_system(self.root_of(snapshotter))
    }

    /// The file systems of images, that of the default snapshotter first: the kubelet takes the first. Writable layers
    /// are on the same ones and are told apart.
    pub fn fs_info(&self) -> ImageFsInfoResponse {
        let mut totals = self.usages.totals();
        let default = self.config.snapshotter.clone();
        let first = totals.remove(&default).unwrap_or_default();
        let mut out = ImageFsInfoResponse::default();
        for (snapshotter, (all, writable)) in [(default, first)].into_iter().chain(totals) {
            let root = self.root_of(&snapshotter);
            out.image_filesystems.push(all.of_file_system(root.clone()));
            out.container_filesystems
                .push(writable.of_file_system(root));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_by_snapshotter_and_as_old_as_their_oldest_part() {
        let usages = Usages::default();
        let entry = |kind, size, at| Entry {
            kind,
            usage: Usage { inodes: 1, size },
            at,
        };
        usages.put("a", "layer", entry(SnapshotKind::Committed, 100, 9));
        usages.put("a", "container", entry(SnapshotKind::Active, 10, 5));
        usages.put("b", "layer", entry(SnapshotKind::Committed, -1, 3));
        let totals = usages.totals();
        let total = |bytes, inodes, at| Total { bytes, inodes, at };
        assert_eq!(totals["a"].0, total(110, 2, Some(5)));
        assert_eq!(totals["a"].1, total(10, 1, Some(5)));
        assert_eq!(totals["b"], (total(0, 1, Some(3)), Total::default()));
        usages.forget("a", "container");
        assert_eq!(usages.totals()["a"].1, Total::default());
    }
}
