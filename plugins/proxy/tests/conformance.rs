//! The conformance suites through the proxy protocol: our own implementations behind sockets.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corten_core::{Kind, Labels};
use corten_protos::containerd::services::content::v1::content_server::ContentServer;
use corten_protos::containerd::services::diff::v1::diff_server::DiffServer;
use corten_protos::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use tonic::service::Routes;

/// Opens again and again while what was open in the same folder is still closing.
async fn opened<T>(mut open: impl AsyncFnMut() -> corten_core::Result<T>) -> T {
    let patient = async {
        loop {
            match open().await {
                Ok(it) => return it,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), patient)
        .await
        .unwrap()
}

/// Another socket each time.
fn socket(dir: &Path) -> (std::path::PathBuf, String) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = dir.join(format!("{}.sock", COUNT.fetch_add(1, Ordering::Relaxed)));
    let address = format!("unix://{}", path.display());
    (path, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_behind_a_socket() {
    let sockets = tempfile::tempdir().unwrap();
    corten_testsuite::snapshotter::suite(|dir| {
        let (path, address) = socket(sockets.path());
        async move {
            let native = opened(async || corten_snapshots::native::Native::open(dir.clone()).await);
            let routes = Routes::new(SnapshotsServer::new(server::Snapshots(Arc::new(
                native.await,
            ))));
            server::serve(&path, routes);
            corten_proxy::snapshotter(server::NAME, &address).unwrap()
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_store_behind_a_socket() {
    let sockets = tempfile::tempdir().unwrap();
    corten_testsuite::content::suite(|dir| {
        let (path, address) = socket(sockets.path());
        async move {
            let store = opened(async || corten_content::Store::open(&dir)).await;
            let routes = Routes::new(ContentServer::new(server::Content(Arc::new(store))));
            server::serve(&path, routes);
            corten_proxy::content("proxied", &address).unwrap()
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_differ_behind_a_socket() {
    let sockets = tempfile::tempdir().unwrap();
    corten_testsuite::differ::suite(|content| {
        let (path, address) = socket(sockets.path());
        async move {
            let walking = corten_diff::Walking::new(content);
            let routes = Routes::new(DiffServer::new(server::Diff(Arc::new(walking))));
            server::serve(&path, routes);
            corten_proxy::differ("proxied", &address).unwrap()
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_plugin_is_unavailable_and_used_as_soon_as_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (path, address) = socket(dir.path());
    let proxy = corten_proxy::snapshotter(server::NAME, &address).unwrap();
    for _ in 0..2 {
        let e = proxy.stat("x").await.unwrap_err();
        assert_eq!(e.kind(), Kind::Unavailable);
        let text = e.to_string();
        for part in ["\"proxied\"", path.to_str().unwrap(), "No such file"] {
            assert!(text.contains(part), "{text}");
        }
    }
    // Something else listens there: no answer that makes sense.
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let garbage = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let e = proxy.stat("x").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    garbage.await.unwrap();

    let native = corten_snapshots::native::Native::open(dir.path().join("native"));
    let native = server::Snapshots(Arc::new(native.await.unwrap()));
    server::serve(&path, Routes::new(SnapshotsServer::new(native.clone())));
    assert_eq!(proxy.stat("x").await.unwrap_err().kind(), Kind::NotFound);
    proxy.prepare("a", "", Labels::new()).await.unwrap();

    // The other side is restarted: one call may notice, the next ones work.
    drop(proxy);
    let proxy = corten_proxy::snapshotter(server::NAME, &address).unwrap();
    server::serve(&path, Routes::new(SnapshotsServer::new(native)));
    assert_eq!(proxy.stat("a").await.unwrap().name, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_blobs_are_read_in_windows_from_any_offset() {
    let dir = tempfile::tempdir().unwrap();
    let (path, address) = socket(dir.path());
    let store = corten_content::Store::open(dir.path()).unwrap();
    server::serve(
        &path,
        Routes::new(ContentServer::new(server::Content(Arc::new(store)))),
    );
    let proxy = corten_proxy::content("proxied", &address).unwrap();
    let data: Vec<u8> = (0..(3_u32 << 20) + 17).map(|i| (i % 251) as u8).collect();
    let digest = corten_core::Digest::sha256(&data);
    let options = corten_core::content::WriterOptions {
        r#ref: "long".into(),
        ..Default::default()
    };
    let mut w = proxy.writer(options).await.unwrap();
    w.write(data.clone().into()).await.unwrap();
    w.commit(data.len() as u64, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    let reader = proxy.reader_at(&digest).await.unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut tail = [0; 9];
        assert_eq!(reader.read_at(&mut tail, (3 << 20) + 12).unwrap(), 5);
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut corten_core::content::Reader::new(reader), &mut all)
            .unwrap();
        all
    });
    assert_eq!(read.await.unwrap(), data);
}
