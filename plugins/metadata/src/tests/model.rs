//! Random operations against a model of maps, with reopens in between.

use std::collections::BTreeMap;

use corten_core::filter::Filter;
use corten_core::{Kind, Labels};
use proptest::prelude::*;

use super::fakes::*;

#[derive(Debug, Clone)]
enum Op {
    Create { ns: u8, name: u8, label: u8 },
    Label { ns: u8, name: u8, label: u8 },
    Delete { ns: u8, name: u8 },
    Container { ns: u8, name: u8 },
    Drop { ns: u8, name: u8 },
    Namespace { ns: u8 },
    Collect,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let (ns, name) = (0..3u8, 0..4u8);
    prop_oneof![
        4 => (ns.clone(), name.clone(), 0..3u8).prop_map(|(ns, name, label)| Op::Create { ns, name, label }),
        3 => (ns.clone(), name.clone(), 0..3u8).prop_map(|(ns, name, label)| Op::Label { ns, name, label }),
        2 => (ns.clone(), name.clone()).prop_map(|(ns, name)| Op::Delete { ns, name }),
        2 => (ns.clone(), name.clone()).prop_map(|(ns, name)| Op::Container { ns, name }),
        1 => (ns.clone(), name).prop_map(|(ns, name)| Op::Drop { ns, name }),
        1 => ns.prop_map(|ns| Op::Namespace { ns }),
        1 => Just(Op::Collect),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    namespaces: BTreeMap<String, ()>,
    images: BTreeMap<(String, String), Labels>,
    containers: BTreeMap<(String, String), ()>,
}

fn labels(n: u8) -> Labels {
    if n == 0 {
        Labels::new()
    } else {
        map(&[("l", &n.to_string())])
    }
}

fn outcome<T>(done: corten_core::Result<T>) -> Option<Kind> {
    done.err().map(|e| e.kind())
}

async fn apply(w: &mut World, m: &mut Model, op: Op) {
    let md = w.md().clone();
    let key = |ns: u8, name: u8| (format!("n{ns}"), format!("i{name}"));
    match op {
        Op::Create { ns, name, label } => {
            let k = key(ns, name);
            let mut record = image(&k.1, b"x", &[]);
            record.labels = labels(label);
            let want = m.images.contains_key(&k).then_some(Kind::AlreadyExists);
            assert_eq!(
                outcome(md.images().create(&scope(&k.0), record).await),
                want
            );
            m.namespaces.insert(k.0.clone(), ());
            m.images.entry(k).or_insert_with(|| labels(label));
        }
        Op::Label { ns, name, label } => {
            let k = key(ns, name);
            let mut record = image(&k.1, b"x", &[]);
            record.labels = labels(label);
            let done = md
                .images()
                .update(&scope(&k.0), record, &["labels".into()])
                .await;
            let want = (!m.images.contains_key(&k)).then_some(Kind::NotFound);
            assert_eq!(outcome(done), want);
            m.images.entry(k).and_modify(|l| *l = labels(label));
        }
        Op::Delete { ns, name } => {
            let k = key(ns, name);
            let want = m.images.remove(&k).is_none().then_some(Kind::NotFound);
            assert_eq!(
                outcome(md.images().delete(&scope(&k.0), &k.1, None).await),
                want
            );
        }
        Op::Container { ns, name } => {
            let k = key(ns, name);
            let want = m.containers.contains_key(&k).then_some(Kind::AlreadyExists);
            let done = md
                .containers()
                .create(&scope(&k.0), container(&k.1, ""))
                .await;
            assert_eq!(outcome(done), want);
            m.namespaces.insert(k.0.clone(), ());
            m.containers.insert(k, ());
        }
        Op::Drop { ns, name } => {
            let k = key(ns, name);
            let want = m.containers.remove(&k).is_none().then_some(Kind::NotFound);
            assert_eq!(
                outcome(md.containers().delete(&scope(&k.0), &k.1).await),
                want
            );
        }
        Op::Namespace { ns: n } => {
            let name = format!("n{n}");
            let used = m
                .images
                .keys()
                .chain(m.containers.keys())
                .any(|k| k.0 == name);
            let want = if used {
                Some(Kind::FailedPrecondition)
            } else {
                m.namespaces
                    .remove(&name)
                    .is_none()
                    .then_some(Kind::NotFound)
            };
            assert_eq!(outcome(md.namespaces().delete(&ns(&name)).await), want);
        }
        Op::Collect => assert_eq!(w.collect().await, 0, "images and containers are roots"),
        Op::Reopen => {
            drop(md);
            w.reopen();
        }
    }
}

async fn compare(w: &World, m: &Model) {
    let names: Vec<_> = w
        .md()
        .namespaces()
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|n| n.0)
        .collect();
    assert_eq!(names, m.namespaces.keys().cloned().collect::<Vec<_>>());
    let (mut images, mut containers) = (BTreeMap::new(), BTreeMap::new());
    for name in names {
        for i in w
            .md()
            .images()
            .list(&ns(&name), &Filter::all())
            .await
            .unwrap()
        {
            images.insert((name.clone(), i.name), i.labels);
        }
        for c in w
            .md()
            .containers()
            .list(&ns(&name), &Filter::all())
            .await
            .unwrap()
        {
            containers.insert((name.clone(), c.id), ());
        }
    }
    assert_eq!(images, m.images);
    assert_eq!(containers, m.containers);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_store_agrees_with_a_model(ops in proptest::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut w, mut m) = (World::new(), Model::default());
            for op in ops {
                apply(&mut w, &mut m, op).await;
            }
            compare(&w, &m).await;
            w.reopen();
            compare(&w, &m).await;
        });
    }
}
