//! Port-forward.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Spdy, next, rest, say, websocket};
use super::fixture::{forward, serve};
use crate::streaming::Config;
use crate::streaming::spdy::MAX_STREAMS;
use crate::streaming::spdy::frame::Encoder;
use crate::streaming::spdy::header::Headers;

const PROTOCOL: &str = "portforward.k8s.io";

/// Opens a pair: error and data.
async fn pair(c: &mut Spdy, port: &str, id: &str) -> (u32, u32) {
    let headers = |kind| [("streamType", kind), ("port", port), ("requestID", id)];
    (
        c.open(&headers("error")).await,
        c.open(&headers("data")).await,
    )
}

#[tokio::test]
async fn connections_share_a_session_and_fail_alone() {
    let served = serve(Config::default()).await;
    let url = served.urls.port_forward(forward(&[7])).unwrap();
    let mut c = Spdy::connect(&url, PROTOCOL).await;
    let (e1, d1) = pair(&mut c, "7", "0").await;
    let (e2, d2) = pair(&mut c, "8", "1").await;
    let (e3, d3) = pair(&mut c, "81", "2").await;
    c.data(d1, b"ping", false).await;
    c.data(d2, &[0; 1000], true).await;
    assert!(
        c.until(|c| c.got.get(&d1).is_some_and(|b| b == b"ping"))
            .await
    );
    assert_eq!(c.all(d2).await, "pod got 1000");
    assert_eq!(c.all(e2).await, "");
    let said = c.all(e3).await;
    assert_eq!(
        said,
        "error forwarding port 81 to pod pod, uid : listener at 81: not found"
    );
    assert!(
        c.until(|c| c.reset.contains(&d3) && c.reset.contains(&e3))
            .await
    );
    // The first goes on, and half closes.
    c.data(d1, b"pong", true).await;
    assert_eq!(c.all(d1).await, "pingpong");
    assert_eq!(c.all(e1).await, "");
    // Clients of old send no id.
    let error = c.open(&[("streamType", "error"), ("port", "8")]).await;
    let data = c.open(&[("streamType", "data"), ("port", "8")]).await;
    c.data(data, b"x", true).await;
    assert_eq!(c.all(data).await, "pod got 1");
    assert_eq!(c.all(error).await, "");
    served.fake.idle().await;
}

#[tokio::test]
async fn what_is_reset_or_hung_up_on_ends() {
    let served = serve(Config::default()).await;
    let url = served.urls.port_forward(forward(&[])).unwrap();
    let mut c = Spdy::connect(&url, PROTOCOL).await;
    let (_, data) = pair(&mut c, "7", "a").await;
    served.fake.started.notified().await;
    c.reset(data).await;
    served.fake.idle().await;
    pair(&mut c, "9", "b").await;
    served.fake.started.notified().await;
    drop(c);
    served.fake.idle().await;
}

#[tokio::test]
async fn streams_are_checked_and_bounded() {
    let creation = Duration::from_millis(500);
    let served = serve(Config {
        creation,
        ..Config::default()
    })
    .await;
    let url = served.urls.port_forward(forward(&[])).unwrap();
    let mut c = Spdy::connect(&url, PROTOCOL).await;
    for bad in [
        &[("streamType", "data")][..],
        &[("streamType", "data"), ("port", "0")],
        &[("streamType", "data"), ("port", "65536")],
        &[("streamType", "x"), ("port", "1")],
        &[("port", "1")],
    ] {
        let id = c.open(bad).await;
        assert!(c.until(|c| c.reset.contains(&id)).await);
    }
    let lonely = c
        .open(&[("streamType", "error"), ("port", "7"), ("requestID", "x")])
        .await;
    assert_eq!(c.all(lonely).await, "timed out waiting for streams");

    let url = served.urls.port_forward(forward(&[])).unwrap();
    let mut c = Spdy::connect(&url, PROTOCOL).await;
    let mut last = 0;
    for n in 0..=MAX_STREAMS {
        let id = n.to_string();
        last = c
            .open(&[("streamType", "data"), ("port", "7"), ("requestID", &id)])
            .await;
    }
    assert!(c.until(|c| c.reset.contains(&last)).await);
    let kept = c.replied.len();
    assert_eq!(kept, MAX_STREAMS);
}

#[tokio::test]
async fn websocket_channels_begin_with_their_port() {
    let served = serve(Config::default()).await;
    let url = served.urls.port_forward(forward(&[7, 81])).unwrap();
    let (mut ws, agreed) = websocket(&url, "v4.channel.k8s.io").await.unwrap();
    assert_eq!(agreed, "v4.channel.k8s.io");
    let mut first = std::collections::HashMap::new();
    while first.len() < 4 {
        let (channel, bytes) = next(&mut ws).await.unwrap();
        first.entry(channel).or_insert(bytes);
    }
    assert_eq!(
        (&first[&0][..], &first[&1][..], &first[&2][..]),
        (&[7, 0][..], &[7, 0][..], &[81, 0][..])
    );
    assert!(first[&3].starts_with(&[81, 0]));
    say(&mut ws, 0, b"hello").await;
    loop {
        let (channel, bytes) = next(&mut ws).await.unwrap();
        if channel == 0 {
            assert_eq!(bytes, b"hello");
            break;
        }
    }
    drop(ws);
    served.fake.idle().await;
}

#[tokio::test]
async fn spdy_goes_through_websocket() {
    let served = serve(Config::default()).await;
    let url = served.urls.port_forward(forward(&[8])).unwrap();
    let (mut ws, agreed) = websocket(&url, "SPDY/3.1+portforward.k8s.io")
        .await
        .unwrap();
    assert_eq!(agreed, "SPDY/3.1+portforward.k8s.io");
    let mut encoder = Encoder::default();
    let headers = |kind| Headers::new(&[("streamType", kind), ("port", "8"), ("requestID", "0")]);
    let mut bytes = encoder.open(1, &headers("error"));
    bytes.extend(encoder.open(3, &headers("data")));
    bytes.extend(encoder.data(3, true, b"12345"));
    // Cut where no frame ends.
    let (a, b) = bytes.split_at(30);
    ws.send(Message::binary(a.to_vec())).await.unwrap();
    ws.send(Message::binary(b.to_vec())).await.unwrap();
    let mut got = Vec::new();
    while !got.windows(9).any(|w| w == b"pod got 5") {
        match ws.next().await.unwrap().unwrap() {
            Message::Binary(b) => got.extend(b),
            other => panic!("{other:?}"),
        }
    }
    ws.close(None).await.unwrap();
    rest(&mut ws).await;
    served.fake.idle().await;
}
