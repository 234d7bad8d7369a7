//! Both snapshotters under the suite.

use std::sync::Arc;

use corten_core::snapshots::Snapshotter;
use corten_snapshots::{native, overlayfs};

#[tokio::test]
async fn native_conforms() {
    corten_testsuite::snapshotter::suite(|dir| async move {
        Arc::new(native::Native::open(dir).await.unwrap()) as Arc<dyn Snapshotter>
    })
    .await;
}

#[tokio::test]
async fn overlayfs_conforms() {
    if !corten_testsuite::can_mount("overlayfs") {
        return;
    }
    let probe = tempfile::tempdir().unwrap();
    if let Err(e) = corten_sys::overlay::probe(probe.path()) {
        eprintln!("overlayfs: skipped: {e}");
        return;
    }
    for sync_remove in [false, true] {
        corten_testsuite::snapshotter::suite(|dir| async move {
            let config = overlayfs::Config {
                sync_remove,
                ..Default::default()
            };
            let opened = overlayfs::Overlay::open(dir, &config, true).await.unwrap();
            Arc::new(opened) as Arc<dyn Snapshotter>
        })
        .await;
    }
}
