//! The registry client and the fetcher against a registry that misbehaves on demand.

mod server;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_core::{Digest, Error, Kind, Result};

pub(crate) use server::{Log, Reply, Seen, reply, serve};

use super::auth::{Credential, Credentials};
use super::{Pushed, Registry, RegistryOptions};
use crate::download::Downloads;
use crate::fakes::{Memory, scope};
use crate::fetch::Fetcher;
use crate::oci::{DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Desc};
use corten_core::keylock::KeyLocks;

struct Known(&'static str, &'static str);

fn me() -> Option<Arc<dyn Credentials>> {
    Some(Arc::new(Known("me", "s3cret")))
}

#[async_trait::async_trait]
impl Credentials for Known {
    async fn get(&self, _host: &str, _challenges: &[String]) -> Result<Credential> {
        Ok(Credential {
            username: self.0.into(),
            secret: self.1.into(),
            header: String::new(),
        })
    }
}

pub(crate) async fn open(host: &str, change: impl FnOnce(&mut RegistryOptions)) -> Arc<Registry> {
    let mut options = RegistryOptions {
        default_scheme: "http".into(),
        ..RegistryOptions::default()
    };
    change(&mut options);
    Arc::new(
        Registry::open(&format!("{host}/lib/app:v1"), options)
            .await
            .unwrap(),
    )
}

pub(crate) fn fetcher(registry: Arc<Registry>, store: &Memory) -> Fetcher {
    Fetcher {
        content: store.content(),
        scope: scope(),
        registry,
        downloads: Downloads::default(),
        locks: KeyLocks::default(),
        tracker: None,
        options: Default::default(),
    }
}

fn layer(data: &[u8]) -> Desc {
    Desc {
        media_type: DOCKER_LAYER_GZIP.into(),
        digest: Digest::sha256(data).to_string(),
        size: data.len() as i64,
        ..Desc::default()
    }
}

fn manifest_reply(data: &[u8]) -> Reply {
    Reply {
        headers: vec![
            ("content-type", DOCKER_MANIFEST.into()),
            ("docker-content-digest", Digest::sha256(data).to_string()),
        ],
        ..reply(200, data)
    }
}

fn blob() -> Vec<u8> {
    (0..2_000_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

#[tokio::test]
async fn tokens_are_asked_for_once_per_scope() {
    let (realm, tokens) = serve(|r, _| {
        assert_eq!(r.method, "POST");
        let form = String::from_utf8_lossy(&r.body).into_owned();
        assert!(
            form.contains("username=me") && form.contains("password=s3cret"),
            "{form}"
        );
        assert!(
            form.contains("scope=repository%3Alib%2Fapp%3Apull"),
            "{form}"
        );
        reply(200, r#"{"access_token":"T","expires_in":300}"#)
    })
    .await;
    let (host, log) = serve(move |r, _| match r.header("authorization") {
        "Bearer T" => manifest_reply(b"{}"),
        _ => Reply {
            headers: vec![(
                "www-authenticate",
                format!("Bearer realm=\"http://{realm}/token\",service=\"s\""),
            )],
            ..reply(401, "")
        },
    })
    .await;
    let registry = open(&host, |o| o.credentials = me()).await;
    let desc = registry.resolve().await.unwrap();
    assert_eq!(desc.digest, Digest::sha256(b"{}").to_string());
    registry.resolve().await.unwrap();
    assert_eq!(tokens.lock().len(), 1);
    let seen: Vec<_> = log
        .lock()
        .iter()
        .map(|r| r.header("authorization").to_owned())
        .collect();
    assert_eq!(seen, ["", "Bearer T", "Bearer T"]);
}

#[tokio::test]
async fn token_by_get_where_post_is_unknown_and_refusal_in_stocks_words() {
    let (realm, _) = serve(|r, _| match r.method.as_str() {
        "POST" => reply(404, ""),
        _ => {
            assert_eq!(r.header("authorization"), "Basic bWU6czNjcmV0");
            reply(200, r#"{"token":"T"}"#)
        }
    })
    .await;
    let (host, log) = serve(move |_, _| Reply {
        headers: vec![(
            "www-authenticate",
            format!("Bearer realm=\"http://{realm}/token\",error=\"insufficient_scope\""),
        )],
        ..reply(401, "")
    })
    .await;
    let registry = open(&host, |o| o.credentials = me()).await;
    let error = registry.resolve().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pull access denied, repository does not exist or may require authorization: \
         server message: insufficient_scope: authorization failed"
    );
    assert_eq!(log.lock().len(), 2);
}

#[tokio::test]
async fn basic_credentials_and_none() {
    let basic = |r: &Seen, _: usize| match r.header("authorization") {
        "Basic bWU6czNjcmV0" => manifest_reply(b"{}"),
        _ => Reply {
            headers: vec![("www-authenticate", "Basic realm=\"x\"".into())],
            ..reply(401, "")
        },
    };
    let (host, _) = serve(basic).await;
    let good = open(&host, |o| o.credentials = me()).await;
    good.resolve().await.unwrap();
    let bad = open(&host, |o| {
        o.credentials = Some(Arc::new(Known("me", "wrong")));
    })
    .await;
    let text = bad.resolve().await.unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "unexpected status from HEAD request to http://{host}/v2/lib/app/manifests/v1: 401 Unauthorized"
        )
    );
    let none = open(&host, |o| o.credentials = Some(Arc::new(Known("", "")))).await;
    let text = none.resolve().await.unwrap_err().to_string();
    assert!(
        text.ends_with("authorization failed: no basic auth credentials"),
        "{text}"
    );
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was() {
    let data = blob();
    let (served, desc) = (data.clone(), layer(&data));
    let (host, log) = serve(move |r, n| {
        let from: usize = r
            .header("range")
            .strip_prefix("bytes=")
            .map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
        let cut = (n < 2).then_some(700_000);
        let status = if from > 0 { 206 } else { 200 };
        let range = format!("bytes {from}-{}/{}", served.len() - 1, served.len());
        Reply {
            status,
            headers: if from > 0 {
                vec![("content-range", range)]
            } else {
                vec![]
            },
            body: served[from..].to_vec(),
            cut,
        }
    })
    .await;
    let store = Memory::default();
    let f = fetcher(open(&host, |_| {}).await, &store);
    f.blob(&desc).await.unwrap();
    let digest = Digest::sha256(&data);
    assert_eq!(store.bytes(&digest).unwrap(), data);
    let labels = store.labels(&digest);
    assert_eq!(
        labels["containerd.io/distribution.source.127.0.0.1"],
        "lib/app"
    );
    assert_eq!(log.lock().len(), 3);
    // Again: nothing is asked, the repository is not listed twice.
    f.blob(&desc).await.unwrap();
    assert_eq!((log.lock().len(), store.labels(&digest)), (3, labels));
}

#[tokio::test]
async fn an_ingest_of_an_earlier_pull_is_resumed_or_thrown_away() {
    let data = blob();
    let desc = layer(&data);
    let served = data.clone();
    // This server knows no ranges: what is there already has to be skipped.
    let (host, log) = serve(move |_, _| reply(200, served.clone())).await;
    let store = Memory::default();
    store.start_ingest(&desc.ref_key(), &data[..1_000_000]);
    fetcher(open(&host, |_| {}).await, &store)
        .blob(&desc)
        .await
        .unwrap();
    assert_eq!(log.lock()[0].header("range"), "bytes=1000000-");
    assert!(store.bytes(&Digest::sha256(&data)).is_some());
    let store = Memory::default();
    store.start_ingest(&desc.ref_key(), b"rubbish");
    fetcher(open(&host, |_| {}).await, &store)
        .blob(&desc)
        .await
        .unwrap();
    assert_eq!(store.bytes(&Digest::sha256(&data)).unwrap(), data);
}

#[tokio::test]
async fn wrong_and_longer_bodies_are_refused_and_leave_nothing() {
    let data = blob();
    let desc = layer(&data);
    for body in [vec![0; data.len()], [data.clone(), vec![1]].concat()] {
        let (host, _) = serve(move |_, _| reply(200, body.clone())).await;
        let store = Memory::default();
        let e = fetcher(open(&host, |_| {}).await, &store)
            .blob(&desc)
            .await
            .unwrap_err();
        assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
        assert!(
            e.to_string().contains("unexpected commit digest")
                || e.to_string().contains("read past expected size 2000000"),
            "{e}"
        );
        assert!(store.ingest(&desc.ref_key()).is_none());
    }
    for size in [0, -1] {
        let (host, log) = serve(|_, _| reply(200, "")).await;
        let store = Memory::default();
        let bad = Desc {
            size,
            ..desc.clone()
        };
        let e = fetcher(open(&host, |_| {}).await, &store)
            .blob(&bad)
            .await
            .unwrap_err();
        assert_eq!((e.kind(), log.lock().len()), (Kind::InvalidArgument, 0));
    }
}

#[tokio::test]
async fn documents_are_checked_before_they_are_stored() {
    let text = br#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
    let (host, _) = serve(move |_, _| reply(200, text.to_vec())).await;
    let good = Desc {
        media_type: DOCKER_MANIFEST.into(),
        ..layer(text)
    };
    let store = Memory::default();
    let f = fetcher(open(&host, |_| {}).await, &store);
    let children = f.document(&good).await.unwrap().into_children();
    assert_eq!(children.len(), 1);
    let labels = store.labels(&Digest::sha256(text));
    assert_eq!(
        labels["containerd.io/gc.ref.content.config"],
        children[0].digest
    );
    let store = Memory::default();
    let f = fetcher(open(&host, |_| {}).await, &store);
    let wrong = Desc {
        digest: Digest::sha256(b"other").to_string(),
        ..good.clone()
    };
    let e = f.document(&wrong).await.unwrap_err();
    assert!(e.to_string().contains("unexpected commit digest"), "{e}");
    let index = Desc {
        media_type: crate::oci::OCI_INDEX.into(),
        ..good
    };
    let e = f.document(&index).await.unwrap_err();
    assert!(
        e.to_string().contains("expected index but found manifest"),
        "{e}"
    );
    assert!(store.bytes(&Digest::sha256(text)).is_none());
}

#[tokio::test]
async fn too_many_requests_is_tried_again() {
    let (host, log) = serve(|_, n| match n {
        0 => Reply {
            headers: vec![("retry-after", "0".into())],
            ..reply(429, "")
        },
        1 => reply(503, ""),
        _ => manifest_reply(b"{}"),
    })
    .await;
    open(&host, |_| {}).await.resolve().await.unwrap();
    assert_eq!(log.lock().len(), 3);
}

#[tokio::test]
async fn nothing_secret_follows_a_redirect_or_a_foreign_url() {
    let data = blob();
    let desc = layer(&data);
    let served = data.clone();
    let (other, stranger) = serve(move |_, n| match n {
        // It also tries to get at the credentials.
        0 => Reply {
            headers: vec![("www-authenticate", "Basic realm=\"x\"".into())],
            ..reply(401, "")
        },
        _ => reply(200, served.clone()),
    })
    .await;
    let to = format!("http://{other}/data");
    let target = to.clone();
    let (host, _) = serve(move |r, _| match r.header("authorization") {
        "" => Reply {
            headers: vec![("www-authenticate", "Basic realm=\"x\"".into())],
            ..reply(401, "")
        },
        _ => Reply {
            headers: vec![("location", target.clone())],
            ..reply(307, "")
        },
    })
    .await;
    let registry = open(&host, |o| {
        o.credentials = Some(Arc::new(Known("me", "s3cret")));
        o.headers.insert("x-secret".into(), "hidden".into());
        o.headers.insert("cookie".into(), "hidden".into());
    })
    .await;
    let store = Memory::default();
    let f = fetcher(registry.clone(), &store);
    let refused = f.blob(&desc).await.unwrap_err();
    assert!(refused.to_string().contains("401"), "{refused}");
    f.blob(&desc).await.unwrap();
    let foreign = Desc {
        urls: vec![to],
        ..layer(&data)
    };
    let store = Memory::default();
    fetcher(registry, &store).blob(&foreign).await.unwrap();
    let seen = stranger.lock();
    assert_eq!(seen.len(), 3);
    for r in seen.iter() {
        for name in ["authorization", "cookie", "x-secret"] {
            assert_eq!(r.header(name), "", "{r:?}");
        }
    }
}

#[tokio::test]
async fn a_token_server_elsewhere_sees_nothing_of_the_hosts_file() {
    for (elsewhere, want) in [(false, "hidden"), (true, "")] {
        let (realm, tokens) = serve(|_, _| reply(200, r#"{"token":"T"}"#)).await;
        let realm = match elsewhere {
            true => realm.replace("127.0.0.1", "localhost"),
            false => realm,
        };
        let (host, _) = serve(move |r, _| match r.header("authorization") {
            "Bearer T" => manifest_reply(b"{}"),
            _ => Reply {
                headers: vec![(
                    "www-authenticate",
                    format!("Bearer realm=\"http://{realm}/token\",service=\"s\""),
                )],
                ..reply(401, "")
            },
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(&host);
        std::fs::create_dir(&folder).unwrap();
        let text = format!("server = \"http://{host}\"\n[header]\nx-secret = \"hidden\"\n");
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        let registry = open(&host, |o| o.host_roots = vec![dir.path().to_owned()]).await;
        registry.resolve().await.unwrap();
        assert_eq!(tokens.lock()[0].header("x-secret"), want);
    }
}

#[tokio::test]
async fn a_client_may_see_what_is_asked_and_answered() {
    let (host, _) = serve(|_, _| manifest_reply(b"{}")).await;
    let (ours, theirs) = crate::streaming::pipe::pipe();
    let registry = open(&host, |o| {
        o.headers.insert("x-secret".into(), "hunter2".into());
        o.debug = Some(Arc::new(super::debug::Debug::new(true, false, Some(ours))));
    })
    .await;
    let mut shown = crate::bytestream::ByteReader::new(theirs);
    let read = async {
        let mut text = String::new();
        while !text.contains("docker-content-digest") {
            let piece = shown.next().await.unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        text
    };
    let (resolved, text) = tokio::join!(registry.resolve(), read);
    resolved.unwrap();
    let start = format!("HEAD /v2/lib/app/manifests/v1 HTTP/1.1\r\nHost: {host}\r\n");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"), "{text}");
    assert!(
        text.contains("x-secret: REDACTED") && !text.contains("hunter2"),
        "{text}"
    );
}

#[tokio::test]
async fn mirrors_come_first_and_the_server_is_the_fallback() {
    let (mirror, asked) = serve(|_, _| reply(404, "")).await;
    let (host, _) = serve(|_, _| manifest_reply(b"{}")).await;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("reg.example");
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        "server = \"http://{host}\"\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{mirror}\".header]\nx-mirror = \"yes\"\n[host.\"http://127.0.0.1:1\"]\n"
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let registry = open("reg.example", |o| {
        o.host_roots = vec![dir.path().to_owned()];
    })
    .await;
    registry.resolve().await.unwrap();
    let seen = asked.lock();
    assert_eq!(seen[0].target, "/v2/lib/app/manifests/v1?ns=reg.example");
    assert_eq!(seen[0].header("x-mirror"), "yes");
}

#[tokio::test]
async fn localhost_falls_back_to_plain_http_and_errors_have_stocks_words() {
    let (host, _) = serve(|_, _| manifest_reply(b"{}")).await;
    let plain = |o: &mut RegistryOptions| o.default_scheme.clear();
    open(&host, plain).await.resolve().await.unwrap();
    let e = open(&host, |o| o.default_scheme = "https".into())
        .await
        .resolve()
        .await
        .unwrap_err();
    let url = format!("\"https://{host}/v2/lib/app/manifests/v1\"");
    assert_eq!(
        e.to_string(),
        format!(
            "failed to do request: Head {url}: http: server gave HTTP response to HTTPS client"
        )
    );
    let e: Error = open("127.0.0.1:1", |_| {})
        .await
        .resolve()
        .await
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to do request: Head \"http://127.0.0.1:1/v2/lib/app/manifests/v1\": \
         dial tcp 127.0.0.1:1: connect: connection refused"
    );
    let (host, _) = serve(|_, _| reply(404, "")).await;
    let e = open(&host, |_| {}).await.resolve().await.unwrap_err();
    assert_eq!(e.to_string(), format!("{host}/lib/app:v1: not found"));
}

#[tokio::test]
async fn references_that_name_nothing_are_refused_in_stocks_words() {
    for (object, want) in [
        ("", "object required"),
        (":", "object required"),
        ("@sha256:12", "invalid checksum digest length"),
        (":t@x", "invalid checksum digest format"),
        ("@md5:12", "unsupported digest algorithm"),
    ] {
        let name = format!("127.0.0.1:1/a{object}");
        let registry = Registry::open(&name, RegistryOptions::default())
            .await
            .unwrap();
        assert_eq!(registry.resolve().await.unwrap_err().to_string(), want);
    }
}

#[tokio::test]
async fn a_forbidden_head_is_asked_again_for_the_reason() {
    let (host, _) = serve(|_, _| {
        reply(
            403,
            r#"{"errors":[{"code":"DENIED","message":"not on this plan"}]}"#,
        )
    })
    .await;
    let e = open(&host, |_| {}).await.resolve().await.unwrap_err();
    let text = e.to_string();
    assert!(
        text.contains("403 Forbidden") && text.ends_with("denied: not on this plan"),
        "{text}"
    );
}

#[tokio::test]
async fn a_registry_without_digest_header_is_asked_for_the_document() {
    let (host, _) = serve(|_, _| Reply {
        headers: vec![("content-type", format!("{DOCKER_MANIFEST}; charset=utf-8"))],
        ..reply(200, "{}")
    })
    .await;
    let desc = open(&host, |_| {}).await.resolve().await.unwrap();
    assert_eq!(desc.digest, Digest::sha256(b"{}").to_string());
    assert_eq!((desc.size, desc.media_type.as_str()), (2, DOCKER_MANIFEST));
}

#[tokio::test]
async fn blobs_are_pushed_mounted_or_left() {
    let data = b"layer bytes".to_vec();
    let desc = layer(&data);
    let (host, log) =
        serve(
            |r, _| match (r.method.as_str(), r.target.split('?').next().unwrap()) {
                ("HEAD", _) => reply(404, ""),
                ("POST", _) if r.target.contains("mount=") => reply(201, ""),
                ("POST", _) => Reply {
                    headers: vec![("location", "/up/1?state=a".into())],
                    ..reply(202, "")
                },
                ("PUT", "/up/1") => reply(201, ""),
                _ => reply(500, ""),
            },
        )
        .await;
    let registry = open(&host, |_| {}).await;
    let body: super::request::BodyFn = Arc::new(move || {
        let data = data.clone();
        Box::pin(async move { Ok(reqwest::Body::from(data)) })
    });
    let none = BTreeMap::new();
    let pushed = registry
        .push(&desc, false, &none, body.clone())
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let put = log
        .lock()
        .iter()
        .find(|r| r.method == "PUT")
        .cloned()
        .unwrap();
    assert!(
        put.target.starts_with("/up/1?state=a&digest=sha256%3A"),
        "{}",
        put.target
    );
    assert_eq!(
        (put.body.as_slice(), put.header("content-length")),
        (&b"layer bytes"[..], "11")
    );
    let sources = BTreeMap::from([(
        "containerd.io/distribution.source.127.0.0.1".to_owned(),
        "far/away,lib/base,lib/app".to_owned(),
    )]);
    assert_eq!(
        registry.push(&desc, false, &sources, body).await.unwrap(),
        Pushed::Exists
    );
    let mount = log
        .lock()
        .iter()
        .rev()
        .find(|r| r.method == "POST")
        .cloned()
        .unwrap();
    assert!(
        mount.target.ends_with("from=lib%2Fbase"),
        "{}",
        mount.target
    );
}
