//! Many things at once.

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        runs_ten_containers_at_once,
        starts_and_stops_ten_detached_containers,
        pulls_one_image_four_times_at_once,
        one_name_goes_to_one_of_many,
        imports_into_many_namespaces_at_once,
    ]
}

fn runs_ten_containers_at_once(c: &Case) {
    c.has(&images::busybox());
    let runs: Vec<_> = (0..10)
        .map(|n| {
            let script = format!("echo {n}; exit {n}");
            c.run("--rm", &format!("a{n}"), &["sh", "-c", &script])
                .start()
        })
        .collect();
    for (n, run) in (0..).zip(runs) {
        let done = run.wait();
        done.expect_code(n);
        assert_eq!(done.out(), format!("{n}\n"));
    }
}

fn starts_and_stops_ten_detached_containers(c: &Case) {
    c.has(&images::busybox());
    let ids: Vec<_> = (0..10).map(|n| format!("a{n}")).collect();
    let starts: Vec<_> = ids
        .iter()
        .map(|id| c.run("-d --null-io", id, &["sleep", "1000"]).start())
        .collect();
    for start in starts {
        start.wait().expect_code(0);
    }
    assert_eq!(c.list("task ls -q").len(), 10);
    let stops: Vec<_> = ids
        .iter()
        .map(|id| c.ctr("task delete -f").arg(id).start())
        .collect();
    for stop in stops {
        let _ = stop.wait();
    }
    assert!(c.list("task ls -q").is_empty());
    c.ctr("containers rm").args(&ids).ok();
}

fn pulls_one_image_four_times_at_once(c: &Case) {
    let registry = corten_integration::registry::Registry::plain(&c.dir);
    let image = images::layered();
    let reference = registry.push(&image);
    let pulls: Vec<_> = (0..4)
        .map(|_| c.ctr("images pull --plain-http").arg(&reference).start())
        .collect();
    for pull in pulls {
        pull.wait().expect_code(0);
    }
    assert_eq!(c.list("images ls -q"), std::slice::from_ref(&reference));
    assert_eq!(c.column("snapshots ls").len(), image.diff_ids.len());
    c.run_named(&reference, "--rm", "a", &["cat", "/t/count"])
        .prints("17");
}

fn one_name_goes_to_one_of_many(c: &Case) {
    c.has(&images::busybox());
    let runs: Vec<_> = (0..5)
        .map(|_| c.run("-d --null-io", "same", &["sleep", "1000"]).start())
        .collect();
    let codes: Vec<_> = runs.into_iter().map(|run| run.wait().code()).collect();
    assert_eq!(
        codes.iter().filter(|code| **code == 0).count(),
        1,
        "{codes:?}"
    );
    c.remove("same");
}

fn imports_into_many_namespaces_at_once(c: &Case) {
    let image = images::layered();
    let names: Vec<_> = (0..4).map(|n| format!("{}-{n}", c.namespace)).collect();
    let imports: Vec<_> = names
        .iter()
        .map(|n| {
            c.ctr("-n")
                .arg(n)
                .words("images import")
                .arg(image.archive())
                .start()
        })
        .collect();
    for import in imports {
        import.wait().expect_code(0);
    }
    for name in &names {
        let there = |words: &str| c.ctr("-n").arg(name).words(words);
        assert_eq!(there("images ls -q").ok().trim(), image.name);
        there("images rm --sync").arg(&image.name).ok();
        assert_eq!(there("content ls -q").ok(), "");
        c.ctr("namespaces rm").arg(name).ok();
    }
}
