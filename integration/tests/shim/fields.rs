//! The table of `shim/README.md`, tried: what config.json asks for can be seen in the container, or is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::google::protobuf::Any;
use corten_protos::runtimeoptions::v1::Options as Generic;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::container::{Io, Recipe};
use crate::host::{Host, is_reference};

/// A field, what it is set to, a script that prints what came of it, and what that prints.
type Row = (String, Value, String, String);

/// A field, what it is set to, and words of which one is in the answer.
type Refused = (String, Value, String);

/// Rows of a name: fields that one container may have together (`root`), those of another user's (`user`), and those that
/// no host can have, or that this one lacks what they need (`refused`).
fn rows(name: &str) -> Value {
    let mut table: Value = serde_json::from_str(include_str!("fields.json")).unwrap();
    table[name].take()
}

async fn try_rows(h: &Arc<Host>, id: &str) {
    let rows: Vec<Row> = serde_json::from_value(rows(id)).unwrap();
    let scripts: Vec<String> = rows
        .iter()
        .map(|(_, _, script, _)| format!("echo $({script})"))
        .collect();
    let script = scripts.join("\n");
    let out = h.base.join(format!("{id}-out"));
    let mut recipe = h.container(id, &["sh", "-c", &script]);
    for (field, value, ..) in &rows {
        recipe = recipe.set(field, value.clone());
    }
    let c = recipe.make().await;
    let io = Io::file(&out);
    c.create_with(&io).await.unwrap();
    c.start().await.unwrap();
    assert_eq!(c.wait().await, 0);
    assert_eq!(c.delete().await, 0);
    let text = fs::read_to_string(&out).unwrap();
    let seen: Vec<&str> = text.lines().collect();
    assert_eq!(seen.len(), rows.len(), "{text}");
    for ((field, value, _, wanted), line) in rows.iter().zip(seen) {
        assert_eq!(line, wanted, "{field} = {value}");
    }
}

pub(crate) async fn what_is_supported_takes_effect(h: Arc<Host>) {
    try_rows(&h, "root").await;
    try_rows(&h, "user").await;
}

/// Whether this host has what most lack.
fn can_have(field: &str) -> bool {
    let needed = match field {
        "/process/selinuxLabel" | "/linux/mountLabel" => "/sys/fs/selinux/enforce",
        "/linux/intelRdt" => "/sys/fs/resctrl/schemata",
        _ => return false,
    };
    Path::new(needed).exists()
}

pub(crate) async fn what_is_not_supported_is_refused(h: Arc<Host>) {
    let keeper = h.running("keeper", &["sleep", "1000000"]).await;
    let rows: Vec<Refused> = serde_json::from_value(rows("refused")).unwrap();
    for (number, (field, value, word)) in rows.iter().enumerate() {
        if is_reference() && field == "/hooks" {
            println!("Corten only: runc finds {value} at the very end");
            continue;
        }
        if can_have(field) {
            println!("not tried: this host has what {field} needs");
            continue;
        }
        let recipe = h
            .container(&format!("c{number}"), &["true"])
            .set(field, value.clone());
        let c = recipe.group("keeper").make().await;
        match c.create().await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                let text = status.message().to_owned();
                if !is_reference() {
                    let small = text.to_lowercase();
                    let known = word.split('|').any(|w| small.contains(&w.to_lowercase()));
                    assert!(known, "{field} = {value}: {text}");
                }
                c.give_up().await;
            }
            Err(other) => panic!("{field} = {value}: {other}"),
            Ok(_) => {
                assert!(is_reference(), "{field} = {value} is ignored");
                println!("the stock shim takes {field} = {value}");
                assert_eq!(c.kill_and_delete().await, 137);
            }
        }
    }
    // None of them cost the others anything.
    assert_eq!(keeper.run("e", &["true"]).await, 0);
    assert_eq!(keeper.kill_and_delete().await, 137);
}

/// Each kind at its time, with the state of then on its stdin.
pub(crate) async fn hooks_run_in_their_order(h: Arc<Host>) {
    let bind =
        json!({"destination": "/host", "type": "bind", "source": h.base, "options": ["bind"]});
    let mut recipe = h
        .container("c", &["sleep", "1000000"])
        .set("/mounts/-", bind);
    let kinds = [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("startContainer", "created"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ];
    for (kind, _) in kinds {
        let base = match kind {
            "startContainer" => "/host".to_owned(),
            _ => h.base.display().to_string(),
        };
        let script = format!("cat >{base}/state-{kind}; echo {kind} >>{base}/order");
        recipe = recipe.hook(kind, &script);
    }
    let c = recipe.make().await;
    let order = || fs::read_to_string(h.base.join("order")).unwrap_or_default();
    c.create().await.unwrap();
    let begun = order();
    c.start().await.unwrap();
    let running = order();
    assert_eq!(c.kill_and_delete().await, 137);
    let create = "prestart\ncreateRuntime\ncreateContainer\n";
    assert!(begun.starts_with(create), "{begun}");
    assert!(order().ends_with("\npoststop\n"), "{}", order());
    if is_reference() {
        println!("Corten only: runc runs poststart before the start");
        return;
    }
    assert_eq!(begun, create);
    assert!(
        running.ends_with("\nstartContainer\npoststart\n"),
        "{running}"
    );
    for (kind, status) in kinds {
        let text = fs::read_to_string(h.base.join(format!("state-{kind}"))).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        let said = (&state["id"], &state["status"], &state["bundle"]);
        let bundle = json!(h.bundle("c"));
        assert_eq!(said, (&json!("c"), &json!(status), &bundle), "{kind}");
    }
}

pub(crate) async fn a_hook_that_takes_too_long_fails_the_create(h: Arc<Host>) {
    // Nobody ever writes there.
    let fifo = h.base.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let script = format!("read x <>{}", fifo.display());
    let recipe = h.container("c", &["true"]).hook("createRuntime", &script);
    let c = recipe
        .set("/hooks/createRuntime/0/timeout", json!(1))
        .make()
        .await;
    assert!(c.create().await.is_err());
    c.give_up().await;
}

/// Options come as runc's, or as a table of the CRI's; the owner of the pipes is one of them. Their user becomes the
/// process's own in any case.
pub(crate) async fn pipes_belong_to_whom_the_options_say(h: Arc<Host>) {
    let user = json!({"uid": 1000, "gid": 1000});
    let of = |id: &str, options: Option<Any>| {
        let recipe = h.container(id, &["sh", "-c", "stat -L -c '%u %g' /proc/self/fd/1"]);
        let recipe = recipe.set("/process/user", user.clone());
        match options {
            Some(options) => recipe.options(options),
            None => recipe,
        }
    };
    let runc = any::pack(&Options {
        io_uid: 7,
        io_gid: 1001,
        ..Options::default()
    });
    assert_eq!(printed(of("runc", Some(runc))).await, "1000 1001\n");
    assert_eq!(printed(of("none", None)).await, "1000 0\n");
    if is_reference() {
        println!("Corten only: the stock shim takes no table");
        return;
    }
    for (id, body) in [
        ("toml", "IoUid = 7\nIoGid = 1001\n"),
        ("json", r#"{"IoUid":7,"IoGid":1001}"#),
    ] {
        let table = any::pack(&Generic {
            config_body: body.as_bytes().to_vec(),
            ..Generic::default()
        });
        assert_eq!(printed(of(id, Some(table))).await, "1000 1001\n", "{id}");
    }
}

/// What a container prints until it ends.
async fn printed(recipe: Recipe) -> String {
    let c = recipe.make().await;
    let file = c.host.base.join(format!("{}-out", c.id));
    let io = Io::file(&file);
    c.create_with(&io).await.unwrap();
    c.start().await.unwrap();
    c.wait().await;
    c.delete().await;
    fs::read_to_string(file).unwrap_or_default()
}
