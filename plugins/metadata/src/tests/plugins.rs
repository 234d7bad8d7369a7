//! The four plugins, booted together.

use std::sync::Arc;

use corten_core::content::Backend;
use corten_core::events::Events;
use corten_core::snapshots::Snapshotter;
use corten_core::{Digest, kinds};
use corten_registry::{BootOptions, Plugins, Properties, Registration, Status};

use super::fakes::*;
use crate::{bolt, local, manager, scheduler};

fn fakes(blobs: &Arc<MemContent>) -> Vec<Registration> {
    let blobs = blobs.clone();
    vec![
        Registration::new::<kinds::Content>("content")
            .init_plain(|_| Box::pin(async move { Ok(blobs as Arc<dyn Backend>) })),
        Registration::new::<kinds::Event>("exchange")
            .init_plain(|_| Box::pin(async { Ok(Arc::<Recorder>::default() as Arc<dyn Events>) })),
        Registration::new::<kinds::Snapshotter>("mem").init_plain(|_| {
            Box::pin(async { Ok(Arc::<MemLayers>::default() as Arc<dyn Snapshotter>) })
        }),
    ]
}

fn ours() -> Vec<Registration> {
    vec![
        manager::registration(),
        local::registration(),
        scheduler::registration(),
        bolt::registration(),
    ]
}

async fn boot(root: &std::path::Path, blobs: &Arc<MemContent>, policy: &str) -> Plugins {
    let mut all = ours();
    all.extend(fakes(blobs));
    let mut options = BootOptions {
        properties: Properties {
            root: root.to_owned(),
            ..Default::default()
        },
        ..Default::default()
    };
    let table = [("content_sharing_policy".to_owned(), policy.into())]
        .into_iter()
        .collect();
    options
        .config
        .insert("io.containerd.metadata.v1.bolt".into(), table);
    Plugins::boot(all, options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_lease_delete_frees_before_it_returns() {
    let (root, blobs) = (tempfile::tempdir().unwrap(), Arc::<MemContent>::default());
    let plugins = boot(root.path(), &blobs, "isolated").await;
    assert!(
        plugins.records().iter().all(|r| r.status == Status::Ok),
        "{:?}",
        plugins.records()
    );
    let record = plugins.records().iter().find(|r| r.id == "bolt").unwrap();
    assert_eq!(record.meta.exports["policy"], "isolated");
    assert!(record.meta.exports["path"].ends_with("io.containerd.metadata.v1.bolt/meta.redb"));
    let md = plugins.all::<kinds::Metadata>().remove(0).1;
    let leases = plugins.all::<kinds::Lease>().remove(0).1;
    let s = scope("one").with_lease("l");
    leases.create(&s.namespace, "l", map(&[])).await.unwrap();
    let store = md.content();
    let data = bytes::Bytes::from_static(b"x");
    corten_core::content::write_blob(&*store, &s, "r", &descriptor(b"x"), data, map(&[]))
        .await
        .unwrap();
    plugins
        .all::<kinds::Gc>()
        .remove(0)
        .1
        .schedule_and_wait()
        .await
        .unwrap();
    assert_eq!(blobs.blobs(), [Digest::sha256(b"x")]);
    leases.delete(&s.namespace, "l", true).await.unwrap();
    assert!(blobs.blobs().is_empty());
    assert_eq!(plugins.all::<kinds::SandboxStore>().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_policy_fails_the_plugin() {
    let (root, blobs) = (tempfile::tempdir().unwrap(), Arc::<MemContent>::default());
    let plugins = boot(root.path(), &blobs, "open").await;
    let record = plugins.records().iter().find(|r| r.id == "bolt").unwrap();
    assert_eq!(
        record.status,
        Status::Failed("unknown policy: open: invalid argument".into())
    );
}

#[test]
fn defaults_are_containerds() {
    let text = |r: Registration| r.default_config().unwrap().clone();
    let gc = text(scheduler::registration());
    assert_eq!(gc["pause_threshold"].as_float(), Some(0.02));
    assert_eq!(gc["mutation_threshold"].as_integer(), Some(100));
    assert_eq!(gc["schedule_delay"].as_str(), Some("0s"));
    assert_eq!(gc["startup_delay"].as_str(), Some("100ms"));
    let bolt = text(bolt::registration());
    assert_eq!(bolt["content_sharing_policy"].as_str(), Some("shared"));
    assert_eq!(bolt["no_sync"].as_bool(), Some(false));
}
