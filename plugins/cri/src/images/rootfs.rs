//! The writable layer of a container: a snapshot on top of its image, unpacked for that snapshotter where it is not yet.

use corten_core::protos::any;
use corten_core::protos::containerd::types::Platform as ProtoPlatform;
use corten_core::protos::containerd::types::transfer::{ImageStore, UnpackConfiguration};
use corten_core::transfer::Options;
use corten_core::{Context, Error, Kind, Labels, Mount, Result, Scope};
use corten_protos::runtime::v1::IdMapping;

use super::{ImageRecord, Images};

/// Snapshot labels that say which ids a user namespace has.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// What a root file system is made of.
#[derive(Debug, Clone)]
pub struct Rootfs<'a> {
    /// The snapshot's key: the container's id.
    pub key: &'a str,
    pub image: &'a ImageRecord,
    pub snapshotter: &'a str,
    /// Of the pod's user namespace; empty: none.
    pub uid_mappings: &'a [IdMapping],
    pub gid_mappings: &'a [IdMapping],
    /// Others that the snapshot gets.
    pub labels: Labels,
}

impl Images {
    /// Makes the snapshot and gives its recipe. The scope's lease holds it until a container record does.
    ///
    /// # Errors
    /// AlreadyExists; those of unpacking and of the snapshotter.
    pub async fn prepare_rootfs(&self, scope: &Scope, rootfs: Rootfs<'_>) -> Result<Vec<Mount>> {
        let mut labels = rootfs.labels.clone();
        labels.extend(id_labels(rootfs.uid_mappings, rootfs.gid_mappings));
        let (image, snapshotter) = (rootfs.image, rootfs.snapshotter);
        self.unpacked(scope, image, snapshotter).await?;
        for last in [false, true] {
            let made = self
                .snapshots
                .prepare(
                    scope,
                    snapshotter,
                    rootfs.key,
                    &image.chain_id,
                    labels.clone(),
                )
                .await;
            match made {
                // Collected since we looked.
                Err(e) if e.kind() == Kind::NotFound && !last => {
                    self.unpack(scope, image, snapshotter).await?;
                }
                other => return other.context("failed to create containerd container rootfs"),
            }
        }
        Err(Error::internal("a loop that always returns"))
    }

    /// Removes the snapshot; one that is not there is fine.
    ///
    /// # Errors
    /// The snapshotter's.
    pub async fn remove_rootfs(&self, key: &str, snapshotter: &str) -> Result<()> {
        self.usages.forget(snapshotter, key);
        match self.snapshots.remove(&self.scope(), snapshotter, key).await {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other.with_context(|| format!("remove snapshot {key}")),
        }
    }

    /// Unpacks `image` for `snapshotter`, if it is not.
    ///
    /// # Errors
    /// See `unpack`.
    pub(super) async fn unpacked(
        &self,
        scope: &Scope,
        image: &ImageRecord,
        snapshotter: &str,
    ) -> Result<()> {
        if image.chain_id.is_empty() {
            return Ok(());
        }
        match self
            .snapshots
            .stat(&self.ns, snapshotter, &image.chain_id)
            .await
        {
            Err(e) if e.kind() == Kind::NotFound => self.unpack(scope, image, snapshotter).await,
            other => other.map(|_| ()),
        }
    }

    // The transfer plugin unpacks what it saves: the image under a name that it has already.
    async fn unpack(&self, scope: &Scope, image: &ImageRecord, snapshotter: &str) -> Result<()> {
        let what = || format!("unpack image {} for {snapshotter}", image.id);
        let name = image
            .references
            .first()
            .ok_or_else(|| Error::not_found(format!("image {:?}", image.id)))?;
        let record = self.records.get(&self.ns, name).await.with_context(what)?;
        let host = corten_registry::Platform::host();
        let target = UnpackConfiguration {
            platform: Some(ProtoPlatform {
                os: host.os,
                architecture: host.architecture,
                variant: host.variant,
                ..ProtoPlatform::default()
            }),
            snapshotter: snapshotter.to_owned(),
        };
        let from = ImageStore {
            name: name.clone(),
            ..ImageStore::default()
        };
        let to = ImageStore {
            name: name.clone(),
            labels: record.labels,
            unpacks: vec![target],
            ..ImageStore::default()
        };
        let options = Options {
            annotate: !self.config.disable_snapshot_annotations,
            sync_fs: self.config.image_pull_with_sync_fs,
            ..Options::default()
        };
        self.transfer
            .transfer_with(scope, any::pack(&from), any::pack(&to), options, None)
            .await
            .with_context(what)
    }
}

/// The labels of a snapshot in a user namespace; none without one.
pub(super) fn id_labels(uids: &[IdMapping], gids: &[IdMapping]) -> Labels {
    let text = |maps: &[IdMapping]| {
        let one = |m: &IdMapping| format!("{}:{}:{}", m.container_id, m.host_id, m.length);
        maps.iter().map(one).collect::<Vec<_>>().join(",")
    };
    if uids.is_empty() || gids.is_empty() {
        return Labels::new();
    }
    Labels::from([
        (UID_MAPPING.into(), text(uids)),
        (GID_MAPPING.into(), text(gids)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_become_labels() {
        let map = |container_id, host_id, length| IdMapping {
            host_id,
            container_id,
            length,
        };
        let labels = id_labels(&[map(0, 100_000, 65536)], &[map(0, 7, 1), map(1, 9, 2)]);
        assert_eq!(labels[UID_MAPPING], "0:100000:65536");
        assert_eq!(labels[GID_MAPPING], "0:7:1,1:9:2");
        assert!(id_labels(&[], &[]).is_empty());
    }
}
