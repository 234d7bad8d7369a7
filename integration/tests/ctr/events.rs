//! `ctr events`: what is told, in which order, with which fields.

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::peers::CORTEN_RUNTIME;
use corten_integration::process::Running;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        tells_the_life_of_a_container_in_order,
        tells_the_life_of_an_exec_in_order,
    ]);
    all.extend(tests![
        tells_pause_and_resume,
        tells_of_images_and_snapshots,
        tells_of_content_and_namespaces,
        filters_by_topic,
        tells_the_exit_of_the_shortest_life,
        hears_other_namespaces_too,
    ]);
    all
}

/// An event as ctr prints it: topic and JSON.
fn parsed(c: &Case, output: &str) -> Vec<(String, serde_json::Value)> {
    output
        .lines()
        .filter(|l| l.contains(&format!(" {} ", c.namespace)))
        .filter_map(|l| {
            let rest = &l[l.find(" /")? + 1..];
            let (topic, json) = rest.split_once(' ')?;
            Some((topic.to_owned(), serde_json::from_str(json).ok()?))
        })
        .collect()
}

/// Waits for `topic` and gives everything before it and itself.
fn until(c: &Case, events: &mut Running, topic: &str) -> Vec<(String, serde_json::Value)> {
    let has = |seen: &str| parsed(c, seen).iter().any(|(t, _)| t == topic);
    let seen = events.wait_output_for(has, topic);
    parsed(c, &seen)
}

fn tasks_of(all: &[(String, serde_json::Value)]) -> Vec<String> {
    let tasks = all.iter().filter(|(topic, _)| topic.starts_with("/tasks/"));
    tasks.map(|(topic, _)| topic.clone()).collect()
}

/// True if events are told for certain. The stock shim may exit before it has told of what came
/// last.
fn tells_all(c: &Case) -> bool {
    let certain = c.runtime == CORTEN_RUNTIME;
    if !certain {
        println!("Corten only: the stock shim loses its last events now and then");
    }
    certain
}

/// The life of container `id` so far, from create to delete, which the stock shim may not tell.
fn life(c: &Case, events: &mut Running, id: &str) -> Vec<(String, serde_json::Value)> {
    let certain = tells_all(c);
    let last = if certain {
        "/tasks/delete"
    } else {
        "/tasks/exit"
    };
    let of = |seen: &str| {
        let all = parsed(c, seen).into_iter();
        all.filter(|(topic, json)| topic.starts_with("/tasks/") && json["container_id"] == id)
            .collect::<Vec<_>>()
    };
    let seen = events.wait_output_for(|seen| of(seen).iter().any(|(t, _)| t == last), last);
    let mine = of(&seen);
    let mut topics = tasks_of(&mine);
    if !certain {
        topics.retain(|topic| topic != "/tasks/delete");
        topics.push("/tasks/delete".to_owned());
    }
    assert_eq!(
        topics,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
    mine
}

fn find<'a>(all: &'a [(String, serde_json::Value)], topic: &str) -> &'a serde_json::Value {
    &all.iter()
        .find(|(t, _)| t == topic)
        .unwrap_or_else(|| panic!("no {topic}: {all:?}"))
        .1
}

fn tells_the_life_of_a_container_in_order(c: &Case) {
    c.has(&images::busybox());
    let mut events = c.events();
    c.run("-d", "a", &["sh", "-c", "exit 5"]).ok();
    events.wait_output("/tasks/exit");
    c.wait_stopped("a");
    c.remove("a");
    // The shim tells of the tasks, the daemon of the containers: between them there is no order.
    let all = life(c, &mut events, "a");
    let create = find(&all, "/tasks/create");
    assert_eq!(create["container_id"], "a");
    assert!(
        create["bundle"]
            .as_str()
            .unwrap()
            .ends_with(&format!("/{}/a", c.namespace))
    );
    assert_eq!(create["rootfs"][0]["type"], "overlay");
    assert!(create["io"]["stdout"].as_str().unwrap().contains("/fifo/"));
    let pid = &create["pid"];
    assert!(pid.as_u64().unwrap() > 1);
    assert!(all.iter().all(|(_, json)| json["pid"] == *pid), "{all:?}");
    let exit = find(&all, "/tasks/exit");
    assert_eq!(
        (&exit["id"], &exit["exit_status"]),
        (&"a".into(), &5.into())
    );
    if let Some((_, delete)) = all.iter().find(|(topic, _)| topic == "/tasks/delete") {
        assert_eq!(delete["exit_status"], 5);
        assert_eq!(delete["exited_at"], exit["exited_at"]);
    }
    let all = until(c, &mut events, "/containers/delete");
    assert_eq!(find(&all, "/containers/create")["id"], "a");
    assert_eq!(
        find(&all, "/containers/create")["image"],
        images::busybox().name
    );
    assert_eq!(
        find(&all, "/containers/create")["runtime"]["name"],
        c.runtime
    );
}

fn tells_the_life_of_an_exec_in_order(c: &Case) {
    c.sleeper("a");
    let mut events = c.events();
    let exec = c
        .ctr("task exec --exec-id x --fifo-dir")
        .arg(c.dir.join("fifo"));
    exec.words("a sh -c").arg("exit 6").run().expect_code(6);
    let all = until(c, &mut events, "/tasks/exit");
    assert_eq!(
        tasks_of(&all),
        ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    );
    assert_eq!(find(&all, "/tasks/exec-added")["exec_id"], "x");
    let exit = find(&all, "/tasks/exit");
    assert_eq!(
        (&exit["container_id"], &exit["id"]),
        (&"a".into(), &"x".into())
    );
    assert_eq!(exit["exit_status"], 6);
    assert_eq!(exit["pid"], find(&all, "/tasks/exec-started")["pid"]);
    c.remove("a");
}

fn tells_pause_and_resume(c: &Case) {
    c.sleeper("a");
    let mut events = c.events();
    c.ctr("task pause a").ok();
    c.ctr("task resume a").ok();
    let all = until(c, &mut events, "/tasks/resumed");
    assert_eq!(tasks_of(&all), ["/tasks/paused", "/tasks/resumed"]);
    assert_eq!(find(&all, "/tasks/paused")["container_id"], "a");
    c.remove("a");
}

fn tells_of_images_and_snapshots(c: &Case) {
    let mut events = c.events();
    let image = images::busybox();
    c.has(&image);
    c.ctr("images tag")
        .args([&image.name, "test.local/other:1"])
        .ok();
    c.ctr("images label").args([&image.name, "a=b"]).ok();
    c.ctr("images rm --sync test.local/other:1").ok();
    let all = until(c, &mut events, "/images/delete");
    let topics: Vec<_> = all.iter().map(|(t, _)| t.as_str()).collect();
    for topic in ["/images/create", "/images/update", "/images/delete"] {
        assert!(topics.contains(&topic), "no {topic} in {topics:?}");
    }
    assert_eq!(find(&all, "/images/create")["name"], image.name);
    assert_eq!(find(&all, "/images/delete")["name"], "test.local/other:1");
    let commit = find(&all, "/snapshot/commit");
    assert_eq!(commit["name"], image.chain_id());
    assert_eq!(commit["snapshotter"], "overlayfs");
    find(&all, "/snapshot/prepare");
}

fn tells_of_content_and_namespaces(c: &Case) {
    let mut events = c.events();
    let bytes = b"some bytes";
    let digest = images::digest_of(bytes);
    let ingest = c
        .ctr("content ingest --expected-digest")
        .args([&digest, "ref"]);
    let mut ingest = ingest.stdin("").start();
    ingest.send(bytes);
    ingest.wait().expect_code(0);
    let all = until(c, &mut events, "/content/create");
    assert_eq!(find(&all, "/content/create")["digest"], digest);
    assert_eq!(find(&all, "/content/create")["size"], bytes.len());
    let name = format!("{}-new", c.namespace);
    c.ctr("namespaces create").arg(&name).ok();
    c.ctr("namespaces rm").arg(&name).ok();
    let gone = |seen: &str| {
        seen.lines()
            .any(|l| l.contains("/namespaces/delete") && l.contains(&name))
    };
    let seen = events.wait_output_for(gone, "the namespace's end");
    assert!(
        seen.lines()
            .any(|l| l.contains("/namespaces/create") && l.contains(&name)),
        "{seen}"
    );
    c.ctr("content rm").arg(&digest).ok();
}

fn filters_by_topic(c: &Case) {
    let name = c.namespace.clone();
    let mut all = c.events();
    let mut some = c
        .ctr("events")
        .arg(r#"topic=="/containers/create""#)
        .start();
    let image = c.has(&images::busybox());
    // Containers come and go until the filtered stream is there to tell of one.
    let create = |id: &str| {
        let words = [
            "containers create --runtime",
            &c.runtime,
            &image,
            id,
            "true",
        ]
        .join(" ");
        c.ctr(&words).ok();
        c.ctr("containers rm").arg(id).ok();
    };
    let mut number = 0;
    let heard =
        corten_integration::process::eventually(corten_integration::process::DEADLINE, || {
            number += 1;
            create(&format!("a{number}"));
            some.output().contains("/containers/create").then_some(())
        });
    assert!(heard.is_some(), "the filtered stream stays silent");
    all.wait_output("/containers/delete");
    let seen = some.wait_output("/containers/create");
    let mine = seen.lines().filter(|l| l.contains(&name));
    assert!(
        mine.clone().count() > 0 && mine.clone().all(|l| l.contains("/containers/create")),
        "{seen}"
    );
}

fn tells_the_exit_of_the_shortest_life(c: &Case) {
    c.has(&images::busybox());
    let mut events = c.events();
    for n in 0..if tells_all(c) { 5 } else { 0 } {
        let id = format!("a{n}");
        c.run("--rm", &id, &["true"]).ok();
        life(c, &mut events, &id);
    }
}

fn hears_other_namespaces_too(c: &Case) {
    let mut events = c.events();
    let name = format!("{}-loud", c.namespace);
    let there = |words: &str| c.ctr("-n").arg(&name).words(words);
    let mut ingest = there("content ingest ref").stdin("").start();
    ingest.send(b"loud");
    ingest.wait().expect_code(0);
    events.wait_output_for(
        |seen| {
            seen.lines()
                .any(|l| l.contains(&format!(" {name} /content/create")))
        },
        "an event of another namespace",
    );
    there("content rm").arg(images::digest_of(b"loud")).ok();
    c.ctr("namespaces rm").arg(&name).ok();
}
