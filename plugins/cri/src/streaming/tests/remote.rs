//! Exec and attach.

use std::time::Duration;

use corten_protos::runtime::v1::AttachRequest;
use serde_json::{Value, json};

use super::client::{Spdy, Ws, next, rest, say, websocket};
use super::fixture::{Served, exec, serve};
use crate::streaming::Config;

const KINDS: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

/// A client with the usual streams, in the order of [`KINDS`].
async fn spdy(served: &Served, cmd: &[&str], protocol: &str) -> (Spdy, [u32; 4]) {
    let url = served.urls.exec(exec(cmd, false)).unwrap();
    let mut client = Spdy::connect(&url, protocol).await;
    let mut ids = [0; 4];
    for (id, kind) in ids.iter_mut().zip(KINDS) {
        *id = client.open(&[("streamType", kind)]).await;
    }
    (client, ids)
}

async fn ws(served: &Served, cmd: &[&str], tty: bool, protocol: &str) -> Ws {
    let url = served.urls.exec(exec(cmd, tty)).unwrap();
    let (ws, agreed) = websocket(&url, protocol).await.unwrap();
    assert_eq!(agreed, protocol);
    ws
}

fn status(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[tokio::test]
async fn spdy_carries_stdin_to_its_end_and_a_status() {
    let served = serve(Config::default()).await;
    let (mut c, [error, stdin, stdout, stderr]) =
        spdy(&served, &["cat"], "v4.channel.k8s.io").await;
    c.data(stdin, b"hello ", false).await;
    c.ping(1).await;
    c.data(stdin, b"world", true).await;
    assert_eq!(c.all(stdout).await, "hello world");
    assert_eq!(c.all(stderr).await, "");
    assert_eq!(
        status(c.all(error).await.as_bytes()),
        json!({"status": "Success"})
    );
    assert_eq!(
        (&c.replied[..], &c.pings[..]),
        (&[1, 3, 5, 7][..], &[1][..])
    );
    assert!(c.until(|c| c.gone_away).await);
    served.fake.idle().await;
}

#[tokio::test]
async fn spdy_tells_exit_codes_in_every_version() {
    let served = serve(Config::default()).await;
    let text =
        "command terminated with non-zero exit code: error executing command [exit 3], exit code 3";
    for protocol in [
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
    ] {
        let (mut c, [error, _, stdout, stderr]) = spdy(&served, &["exit", "3"], protocol).await;
        assert_eq!(c.all(stdout).await, "out\n");
        assert_eq!(c.all(stderr).await, "err\n");
        let said = c.all(error).await;
        if protocol.starts_with("v4") {
            assert_eq!(
                status(said.as_bytes())["details"]["causes"],
                json!([{"reason": "ExitCode", "message": "3"}])
            );
        } else {
            assert_eq!(said, text);
        }
    }
    let (mut c, [error, ..]) = spdy(&served, &["absent"], "v4.channel.k8s.io").await;
    let said = status(c.all(error).await.as_bytes());
    assert_eq!(
        (&said["reason"], &said["code"]),
        (&json!("InternalError"), &json!(500))
    );
}

#[tokio::test]
async fn a_terminal_is_resized_on_both_wires() {
    let served = serve(Config::default()).await;
    let url = served.urls.exec(exec(&["sizes", "2"], true)).unwrap();
    let mut c = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let [.., stdout, resize] = {
        let mut ids = [0; 4];
        for (id, kind) in ids.iter_mut().zip(["error", "stdin", "stdout", "resize"]) {
            *id = c.open(&[("streamType", kind)]).await;
        }
        ids
    };
    c.data(resize, b"{\"Width\":80,\"Hei", false).await;
    c.data(resize, b"ght\":24}\n", false).await;
    assert!(c.until(|c| c.got.contains_key(&stdout)).await);
    c.data(resize, b"{\"Width\":100,\"Height\":50}\n", false)
        .await;
    assert_eq!(c.all(stdout).await, "80x24\n100x50\n");

    let mut ws = ws(&served, &["sizes", "1"], true, "v5.channel.k8s.io").await;
    say(&mut ws, 4, b"{\"Width\":1,\"Height\":2}").await;
    let all = rest(&mut ws).await;
    assert_eq!(all[&1], b"1x2\n");
    assert_eq!(status(&all[&3]), json!({"status": "Success"}));
}

#[tokio::test]
async fn websocket_speaks_every_version() {
    let served = serve(Config::default()).await;
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "channel.k8s.io",
        "",
    ] {
        let mut ws = ws(&served, &["exit", "4"], false, protocol).await;
        assert_eq!(next(&mut ws).await, Some((1, Vec::new())), "the greeting");
        let all = rest(&mut ws).await;
        assert_eq!((&all[&1][..], &all[&2][..]), (&b"out\n"[..], &b"err\n"[..]));
        let said = String::from_utf8(all[&3].clone()).unwrap();
        if protocol > "v4" {
            assert_eq!(
                status(said.as_bytes())["details"]["causes"][0]["message"],
                "4"
            );
        } else {
            assert!(said.ends_with("exit code 4"), "{said}");
        }
    }
    let mut ws = ws(&served, &["exit", "0"], false, "v4.base64.channel.k8s.io").await;
    let all = rest(&mut ws).await;
    assert_eq!(all[&b'1'], b"b3V0Cg==");
}

#[tokio::test]
async fn a_v5_client_ends_its_stdin() {
    let served = serve(Config::default()).await;
    let mut ws = ws(&served, &["cat"], false, "v5.channel.k8s.io").await;
    say(&mut ws, 0, b"all of it").await;
    say(&mut ws, 255, &[0]).await;
    let all = rest(&mut ws).await;
    assert_eq!(all[&1], b"all of it");
    assert_eq!(status(&all[&3]), json!({"status": "Success"}));
}

#[tokio::test]
async fn much_output_arrives_whole_and_before_the_status() {
    let served = serve(Config::default()).await;
    let size = 4 * 1024 * 1024;
    let (mut c, [error, _, stdout, _]) =
        spdy(&served, &["flood", &size.to_string()], "v4.channel.k8s.io").await;
    assert!(c.until(|c| c.ended.contains(&error)).await);
    assert_eq!(c.got[&stdout].len(), size);
    let mut ws = ws(
        &served,
        &["flood", &size.to_string()],
        false,
        "v4.channel.k8s.io",
    )
    .await;
    assert_eq!(rest(&mut ws).await[&1].len(), size);
}

#[tokio::test]
async fn a_process_that_does_not_read_still_ends() {
    let served = serve(Config::default()).await;
    let (mut c, [error, stdin, stdout, _]) = spdy(&served, &["deaf"], "v4.channel.k8s.io").await;
    for _ in 0..8 {
        c.data(stdin, &[0; 30_000], false).await;
    }
    assert_eq!(c.all(stdout).await, "done");
    assert_eq!(
        status(c.all(error).await.as_bytes()),
        json!({"status": "Success"})
    );
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_process_along() {
    let served = serve(Config::default()).await;
    let (c, _) = spdy(&served, &["hang"], "v4.channel.k8s.io").await;
    served.fake.started.notified().await;
    drop(c);
    served.fake.idle().await;
    let ws = ws(&served, &["hang"], false, "v5.channel.k8s.io").await;
    served.fake.started.notified().await;
    drop(ws);
    served.fake.idle().await;
}

#[tokio::test]
async fn attach_is_served_like_exec() {
    let served = serve(Config::default()).await;
    let request = |id: &str| AttachRequest {
        container_id: id.into(),
        stdin: true,
        stdout: true,
        ..AttachRequest::default()
    };
    let url = served.urls.attach(request("cat")).unwrap();
    let (mut ws, _) = websocket(&url, "v5.channel.k8s.io").await.unwrap();
    say(&mut ws, 0, b"x").await;
    say(&mut ws, 255, &[0]).await;
    let all = rest(&mut ws).await;
    assert_eq!(
        (&all[&1][..], status(&all[&3])),
        (&b"x"[..], json!({"status": "Success"}))
    );
    let url = served.urls.attach(request("absent")).unwrap();
    let (mut ws, _) = websocket(&url, "v5.channel.k8s.io").await.unwrap();
    let message = status(&rest(&mut ws).await[&3])["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.starts_with("Internal error occurred: error attaching to container: "),
        "{message}"
    );
}

#[tokio::test]
async fn streams_that_are_not_wanted_are_refused_and_missing_ones_waited_for() {
    let creation = Duration::from_millis(300);
    let served = serve(Config {
        creation,
        ..Config::default()
    })
    .await;
    let url = served.urls.exec(exec(&["cat"], false)).unwrap();
    let mut c = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let error = c.open(&[("streamType", "error")]).await;
    for bad in [
        &[("streamType", "error")][..],
        &[("streamType", "resize")],
        &[("streamType", "x")],
        &[],
    ] {
        let id = c.open(bad).await;
        assert!(c.until(|c| c.reset.contains(&id)).await);
    }
    assert!(
        !c.until(|c| c.ended.contains(&error) && c.got.contains_key(&error))
            .await
            || c.got[&error].is_empty()
    );
    assert!(served.fake.running.borrow().eq(&0));
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let idle = Duration::from_millis(300);
    let served = serve(Config {
        idle,
        ..Config::default()
    })
    .await;
    let (mut c, _) = spdy(&served, &["hang"], "v4.channel.k8s.io").await;
    assert!(!c.until(|_| false).await);
    let mut ws = ws(&served, &["hang"], false, "v5.channel.k8s.io").await;
    rest(&mut ws).await;
    served.fake.idle().await;
}

#[tokio::test]
async fn broken_clients_end_themselves_only() {
    let served = serve(Config::default()).await;
    let (mut c, _) = spdy(&served, &["hang"], "v4.channel.k8s.io").await;
    served.fake.started.notified().await;
    c.raw(&[0x80, 9, 0, 1, 0, 0, 0, 0]).await;
    assert!(!c.until(|_| false).await);
    assert!(c.gone_away);
    let mut big = ws(&served, &["hang"], false, "v5.channel.k8s.io").await;
    served.fake.started.notified().await;
    say(
        &mut big,
        0,
        &vec![0; crate::streaming::websocket::MAX_MESSAGE],
    )
    .await;
    rest(&mut big).await;
    let mut wrong = ws(&served, &["hang"], false, "v5.channel.k8s.io").await;
    say(&mut wrong, 255, &[9]).await;
    rest(&mut wrong).await;
    served.fake.idle().await;
    // The largest that fits.
    let mut fits = ws(&served, &["cat"], false, "v5.channel.k8s.io").await;
    say(
        &mut fits,
        0,
        &vec![7; crate::streaming::websocket::MAX_MESSAGE - 1],
    )
    .await;
    say(&mut fits, 255, &[0]).await;
    assert_eq!(
        rest(&mut fits).await[&1].len(),
        crate::streaming::websocket::MAX_MESSAGE - 1
    );
}
