//! Blobs in chunks, from registries that know ranges, half know them, or do not.

use std::collections::BTreeSet;

use corten_core::Digest;
use parking_lot::Mutex;

use super::*;
use crate::fakes::Memory;
use crate::oci::DOCKER_LAYER_GZIP;
use crate::registry::tests::{Reply, Seen, fetcher, open, reply, serve};

const CHUNK: u64 = 100_000;

fn blob() -> Vec<u8> {
    (0..1_234_567u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn described(data: &[u8]) -> Desc {
    Desc {
        media_type: DOCKER_LAYER_GZIP.into(),
        digest: Digest::sha256(data).to_string(),
        size: data.len() as i64,
        ..Desc::default()
    }
}

/// First and last byte that a request asks for.
fn asked(r: &Seen, size: usize) -> (usize, usize) {
    let (from, to) = r
        .header("range")
        .strip_prefix("bytes=")
        .and_then(|r| r.split_once('-'))
        .unwrap();
    (
        from.parse().unwrap(),
        to.parse().unwrap_or(size - 1).min(size - 1),
    )
}

fn part(data: &[u8], from: usize, to: usize) -> Reply {
    Reply {
        headers: vec![("content-range", format!("bytes {from}-{to}/{}", data.len()))],
        ..reply(206, &data[from..=to])
    }
}

async fn pulled(host: &str, downloads: &Downloads, data: &[u8], begun: usize) -> Result<()> {
    let store = Memory::default();
    let desc = described(data);
    if begun > 0 {
        store.start_ingest(&desc.ref_key(), &data[..begun]);
    }
    let mut f = fetcher(open(host, |_| {}).await, &store);
    f.downloads = downloads.clone();
    f.blob(&desc).await?;
    assert_eq!(store.bytes(&Digest::sha256(data)).unwrap(), data);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_come_side_by_side_and_end_in_order() {
    let data = blob();
    let served = data.clone();
    let cut = Mutex::new(BTreeSet::new());
    let (host, log) = serve(move |r, _| {
        let (from, to) = asked(r, served.len());
        let mut out = part(&served, from, to);
        // Each third chunk breaks once.
        if (from / 100_000) % 3 == 1 && cut.lock().insert(from) {
            out.cut = Some(40_000);
        }
        out
    })
    .await;
    let downloads = Downloads::new(4, CHUNK);
    // Two at a time share the permits, and none waits for the other for ever.
    let (a, b) = tokio::join!(
        pulled(&host, &downloads, &data, 0),
        pulled(&host, &downloads, &data, 0)
    );
    a.unwrap();
    b.unwrap();
    let limit = downloads.limit.as_ref().unwrap();
    assert_eq!(limit.available_permits(), 4);
    let ranges: BTreeSet<(usize, usize)> =
        log.lock().iter().map(|r| asked(r, data.len())).collect();
    for i in 0..13 {
        let last = (i * 100_000 + 99_999).min(data.len() - 1);
        assert!(
            ranges.contains(&(i * 100_000, last)),
            "chunk {i}: {ranges:?}"
        );
    }
    // What came before a break is not asked for again.
    assert!(ranges.contains(&(140_000, 199_999)), "{ranges:?}");
}

#[tokio::test]
async fn a_resumed_download_is_chunked_from_where_it_was() {
    let data = blob();
    let served = data.clone();
    let (host, log) = serve(move |r, _| {
        let (from, to) = asked(r, served.len());
        part(&served, from, to)
    })
    .await;
    pulled(&host, &Downloads::new(2, CHUNK), &data, 1_000_000)
        .await
        .unwrap();
    let mut starts: Vec<usize> = log.lock().iter().map(|r| asked(r, data.len()).0).collect();
    starts.sort_unstable();
    assert_eq!(starts, [1_000_000, 1_100_000, 1_200_000]);
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_once() {
    let data = blob();
    let served = data.clone();
    let (host, log) = serve(move |_, _| reply(200, served.clone())).await;
    let downloads = Downloads::new(3, CHUNK);
    pulled(&host, &downloads, &data, 0).await.unwrap();
    pulled(&host, &downloads, &data, 500_000).await.unwrap();
    assert_eq!(log.lock().len(), 2);
}

#[tokio::test]
async fn a_registry_may_send_more_than_the_chunk_but_not_more_than_the_blob() {
    let data = blob();
    let served = data.clone();
    let (host, _) = serve(move |r, _| {
        let (from, _) = asked(r, served.len());
        part(&served, from, served.len() - 1)
    })
    .await;
    let downloads = Downloads::new(3, CHUNK);
    pulled(&host, &downloads, &data, 0).await.unwrap();
    let mut longer = data.clone();
    longer.push(0);
    let (host, _) = serve(move |r, _| {
        let (from, _) = asked(r, longer.len());
        part(&longer, from, longer.len() - 1)
    })
    .await;
    let e = pulled(&host, &downloads, &data, 0).await.unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
}

#[tokio::test]
async fn a_failing_chunk_ends_the_download_and_gives_its_permits_back() {
    let data = blob();
    let served = data.clone();
    let (host, _) = serve(move |r, _| match asked(r, served.len()) {
        (500_000, _) => reply(403, ""),
        (from, to) => part(&served, from, to),
    })
    .await;
    let downloads = Downloads::new(3, CHUNK);
    let e = pulled(&host, &downloads, &data, 0).await.unwrap_err();
    assert_eq!(e.kind(), Kind::PermissionDenied, "{e}");
    let limit = downloads.limit.clone().unwrap();
    let all = tokio::time::timeout(Duration::from_secs(10), limit.acquire_many(3)).await;
    assert!(all.is_ok(), "permits are lost");
}
