//! The exchange as publishers and subscribers see it.

use corten_core::Kind;
use corten_core::events::publish;
use corten_core::protos::any;
use corten_core::protos::containerd::events::{
    ContainerCreate, ContentCreate, TaskCreate, TaskExit, TaskIo, container_create,
};
use corten_core::protos::containerd::services::images::v1::ImageCreate;

use super::*;

fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

fn exit(id: &str) -> TaskExit {
    TaskExit {
        container_id: id.into(),
        id: id.into(),
        ..Default::default()
    }
}

fn drain(rx: &mut mpsc::Receiver<Envelope>) -> Vec<String> {
    let mut out = Vec::new();
    while let Ok(e) = rx.try_recv() {
        out.push(format!("{}{}", e.namespace, e.topic));
    }
    out
}

#[tokio::test]
async fn everyone_gets_everything_in_order() {
    let x = Exchange::new();
    let (mut a, mut b) = (x.subscribe(Filter::all()), x.subscribe(Filter::all()));
    for i in 0..100 {
        publish(&x, &ns("one"), "/tasks/exit", &exit(&i.to_string())).await;
    }
    for rx in [&mut a, &mut b] {
        for i in 0..100 {
            let e = rx.try_recv().unwrap();
            assert!(e.timestamp.is_some());
            let m: TaskExit = any::unpack(&e.event.unwrap()).unwrap();
            assert_eq!(m.container_id, i.to_string());
        }
        assert!(rx.try_recv().is_err());
    }
}

#[tokio::test]
async fn filters_select_by_namespace_topic_and_event_fields() {
    let x = Exchange::new();
    let sub = |f: &str| x.subscribe(Filter::parse(&[f]).unwrap());
    let mut by_ns = sub("namespace==two");
    let mut by_topic = sub("topic~=|^/images/|");
    let mut by_label = sub("event.labels.\"a.b/c\"==x");
    let mut by_id = sub("event.container_id==c1,topic==/tasks/exit");
    let mut by_runtime = sub("event.runtime.name==io.containerd.corten.v2");
    let mut by_type = sub("event.mediaType~=manifest");
    let mut by_io = sub("event.io.stdin==/in");
    let image = ImageCreate {
        name: "i".into(),
        labels: [("a.b/c".into(), "x".into())].into(),
    };
    publish(&x, &ns("one"), "/images/create", &image).await;
    publish(&x, &ns("two"), "/tasks/exit", &exit("c1")).await;
    publish(&x, &ns("one"), "/tasks/exit", &exit("c2")).await;
    let runtime = container_create::Runtime {
        name: "io.containerd.corten.v2".into(),
        options: None,
    };
    let create = ContainerCreate {
        runtime: Some(runtime),
        ..Default::default()
    };
    publish(&x, &ns("one"), "/containers/create", &create).await;
    let content = ContentCreate {
        media_type: "x/manifest.v1+json".into(),
        ..Default::default()
    };
    publish(&x, &ns("one"), "/content/create", &content).await;
    let io = TaskIo {
        stdin: "/in".into(),
        ..Default::default()
    };
    publish(
        &x,
        &ns("one"),
        "/tasks/create",
        &TaskCreate {
            io: Some(io),
            ..Default::default()
        },
    )
    .await;
    assert_eq!(drain(&mut by_ns), ["two/tasks/exit"]);
    assert_eq!(drain(&mut by_topic), ["one/images/create"]);
    assert_eq!(drain(&mut by_label), ["one/images/create"]);
    assert_eq!(drain(&mut by_id), ["two/tasks/exit"]);
    assert_eq!(drain(&mut by_runtime), ["one/containers/create"]);
    assert_eq!(drain(&mut by_type), ["one/content/create"]);
    assert_eq!(drain(&mut by_io), ["one/tasks/create"]);
}

#[tokio::test]
async fn malformed_envelopes_are_refused_in_containerds_words() {
    let x = Exchange::new();
    let event = any::pack(&exit("c"));
    for (topic, text) in [
        (
            "",
            "envelope topic \"\": must not be empty: invalid argument",
        ),
        (
            "tasks",
            "envelope topic \"tasks\": must start with '/': invalid argument",
        ),
        (
            "/",
            "envelope topic \"/\": must have at least one component: invalid argument",
        ),
    ] {
        let e = x
            .publish(&ns("one"), topic, event.clone())
            .await
            .unwrap_err();
        assert_eq!(
            (e.kind(), e.to_string().as_str()),
            (Kind::InvalidArgument, text)
        );
    }
    assert!(x.publish(&ns("one"), "/a//b", event.clone()).await.is_err());
    let good = Envelope {
        timestamp: Some(time::now()),
        namespace: "one".into(),
        topic: "/tasks/exit".into(),
        event: Some(event),
    };
    x.forward(good.clone()).await.unwrap();
    for bad in [
        Envelope {
            timestamp: None,
            ..good.clone()
        },
        Envelope {
            namespace: "a/b".into(),
            ..good.clone()
        },
        Envelope {
            topic: "x".into(),
            ..good
        },
    ] {
        assert_eq!(
            x.forward(bad).await.unwrap_err().kind(),
            Kind::InvalidArgument
        );
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_closed_and_nobody_waits() {
    let x = Exchange::new();
    let mut slow = x.subscribe(Filter::all());
    let mut other = x.subscribe(Filter::parse(&["topic==/last"]).unwrap());
    for _ in 0..=QUEUE {
        publish(&x, &ns("one"), "/tasks/exit", &exit("c")).await;
    }
    publish(&x, &ns("one"), "/last", &exit("c")).await;
    assert_eq!(drain(&mut slow).len(), QUEUE);
    assert!(slow.recv().await.is_none(), "the channel has ended");
    assert_eq!(drain(&mut other), ["one/last"]);
    drop(other);
    publish(&x, &ns("one"), "/last", &exit("c")).await;
    assert_eq!(x.subscribers.lock().len(), 0);
}
