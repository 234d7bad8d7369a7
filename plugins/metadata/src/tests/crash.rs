//! kill -9 while writing: what was acknowledged is there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::fakes::*;
use crate::{Parts, open};

/// Tells the child which folder to write to.
const ROOT: &str = "CORTEN_TEST_METADATA_ROOT";

fn parts(root: &std::path::Path) -> Parts {
    Parts {
        root: root.to_owned(),
        content: Arc::<MemContent>::default(),
        snapshotters: Default::default(),
        events: Arc::<Recorder>::default(),
        isolated: false,
        no_sync: false,
        patience: None,
    }
}

/// Not a test by itself: the process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let md = open(parts(root.as_ref())).unwrap();
    let begun = md
        .images()
        .list(&ns("one"), &corten_core::filter::Filter::all())
        .await
        .unwrap()
        .len();
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let md = md.clone();
            tokio::spawn(async move {
                for n in 0..100_000 {
                    let name = format!("{begun}-{w}-{n}");
                    md.images()
                        .create(&scope("one"), image(&name, b"x", &[]))
                        .await
                        .unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {name}").unwrap();
                    out.flush().unwrap();
                }
            })
        })
        .collect();
    for w in writers {
        w.await.unwrap();
    }
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let root = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::child", "--nocapture"])
            .env(ROOT, root.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = 0;
        for line in lines {
            let line = line.unwrap();
            // The harness writes its own words on the same line now and then.
            if let Some((_, name)) = line.split_once("ack ") {
                acknowledged.push(name.to_owned());
                count += 1;
                if count == 40 * (round + 1) {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(count > 0, "the child wrote");
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let md = open(parts(root.path())).unwrap();
        for name in &acknowledged {
            md.images().get(&ns("one"), name).await.unwrap();
        }
    });
}
