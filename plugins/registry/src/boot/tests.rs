//! The boot, with plugins that only exist here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::*;
use crate::registration::skip;

trait Speak: Send + Sync {
    fn word(&self) -> String;
}
struct Word(String);
impl Speak for Word {
    fn word(&self) -> String {
        self.0.clone()
    }
}

struct Low;
impl Kind for Low {
    const URI: &'static str = "io.containerd.low.v1";
    type Interface = dyn Speak;
}
struct High;
impl Kind for High {
    const URI: &'static str = "io.containerd.high.v1";
    type Interface = dyn Speak;
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Config {
    word: String,
}
impl Default for Config {
    fn default() -> Self {
        Self {
            word: "default".into(),
        }
    }
}

fn low(id: &str) -> Registration {
    Registration::new::<Low>(id)
        .config::<Config>()
        .init(|_cx, c| Box::pin(async move { Ok(Arc::new(Word(c.word)) as Arc<dyn Speak>) }))
}

fn high() -> Registration {
    Registration::new::<High>("top")
        .requires::<Low>()
        .init_plain(|cx| {
            Box::pin(async move {
                let low = cx.single::<Low>()?;
                Ok(Arc::new(Word(format!("{}!", low.word()))) as Arc<dyn Speak>)
            })
        })
}

fn run<T>(f: impl Future<Output = T>) -> T {
    futures::executor::block_on(f)
}

#[test]
fn dependencies_start_first_and_config_arrives() {
    let mut options = BootOptions::default();
    let table = toml::from_str("word = \"set\"").unwrap();
    options
        .config
        .insert("io.containerd.low.v1.a".into(), table);
    let plugins = run(Plugins::boot(vec![high(), low("a")], options)).unwrap();
    let uris: Vec<_> = plugins.records().iter().map(Record::uri).collect();
    assert_eq!(
        uris,
        ["io.containerd.low.v1.a", "io.containerd.high.v1.top"]
    );
    assert_eq!(plugins.all::<High>()[0].1.word(), "set!");
}

#[test]
fn a_second_instance_makes_single_fail() {
    let plugins = run(Plugins::boot(
        vec![high(), low("a"), low("b")],
        BootOptions::default(),
    ))
    .unwrap();
    let status = &plugins.records()[2].status;
    assert!(
        matches!(status, Status::Failed(t) if t.contains("multiple")),
        "{status:?}"
    );
}

#[test]
fn skip_and_failure_are_listed_and_only_required_ones_are_fatal() {
    let bad = || {
        Registration::new::<Low>("bad")
            .init_plain(|_| Box::pin(async { Err(skip("not on this host")) }))
    };
    let plugins = run(Plugins::boot(vec![bad()], BootOptions::default())).unwrap();
    assert_eq!(
        plugins.records()[0].status,
        Status::Skipped("not on this host".into())
    );
    let options = BootOptions {
        required: vec!["io.containerd.low.v1.bad".into()],
        ..Default::default()
    };
    let e = run(Plugins::boot(vec![bad()], options)).unwrap_err();
    assert!(e.to_string().contains("not on this host"), "{e}");
}

#[test]
fn an_undeclared_look_up_is_an_error() {
    let sneaky = Registration::new::<High>("sneaky")
        .init_plain(|cx| Box::pin(async move { Ok(cx.single::<Low>()?) }));
    let plugins = run(Plugins::boot(
        vec![low("a"), sneaky],
        BootOptions::default(),
    ))
    .unwrap();
    assert!(matches!(&plugins.records()[1].status, Status::Failed(t) if t.contains("declaring")));
}

#[test]
fn duplicates_and_cycles_have_no_order() {
    assert_eq!(
        order(vec![low("a"), low("a")]).unwrap_err(),
        GraphError::Duplicate("io.containerd.low.v1.a".into())
    );
    let up = Registration::new::<Low>("x")
        .requires::<High>()
        .init_plain(|_| Box::pin(async { Err(skip("never")) }));
    assert!(matches!(order(vec![up, high()]), Err(GraphError::Cycle(_))));
}

#[test]
fn wrong_type_in_config_fails_that_plugin_only() {
    let mut options = BootOptions::default();
    options.config.insert(
        "io.containerd.low.v1.a".into(),
        toml::from_str("word = 7").unwrap(),
    );
    let plugins = run(Plugins::boot(vec![low("a")], options)).unwrap();
    assert!(matches!(&plugins.records()[0].status, Status::Failed(t) if t.contains("config")));
}
