//! What may happen in a long life: crowds, many cycles, deaths at any moment, full disks, broken
//! shims, garbage on the sockets.
//!
//! `CORTEN_CYCLES` and `CORTEN_KILLS` make the long tests as long as you like.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use corten_integration::case::Case;
use corten_integration::consistency;
use corten_integration::daemon::Setup;
use corten_integration::images;
use corten_integration::leaks;
use corten_integration::process::{Cmd, DEADLINE, eventually, program};
use corten_integration::registry::{Tiny, Trick};
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        runs_fifty_containers_at_once,
        refuses_an_oversized_manifest,
        survives_a_broken_shim,
    ];
    let own = tests![
        stays_flat_over_many_cycles,
        keeps_what_it_acknowledged_when_killed_at_any_moment,
        goes_on_with_a_pull_after_its_death,
        survives_garbage_on_its_sockets,
        survives_a_full_disk,
        survives_a_broken_proxy_plugin,
    ];
    all.extend(own.into_iter().map(Test::own_daemon));
    all
}

fn number(variable: &str, default: u32) -> u32 {
    let value = std::env::var(variable).ok();
    value.map_or(default, |v| v.parse().expect("a number"))
}

fn runs_fifty_containers_at_once(c: &Case) {
    c.has(&images::busybox());
    let ids: Vec<_> = (0..50).map(|n| format!("a{n}")).collect();
    let starts: Vec<_> = ids
        .iter()
        .map(|id| c.run("-d --null-io", id, &["sleep", "1000"]).start())
        .collect();
    for start in starts {
        start.wait().expect_code(0);
    }
    let table = c.ctr("task ls").ok();
    let running = table.lines().filter(|l| l.ends_with("RUNNING"));
    assert_eq!(running.count(), 50, "{table}");
    for some in ids.chunks(10) {
        let ends: Vec<_> = some
            .iter()
            .map(|id| c.ctr("task delete -f").arg(id).start())
            .collect();
        for end in ends {
            let _ = end.wait();
        }
    }
    c.ctr("containers rm").args(&ids).ok();
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    rss_kib: u64,
}

fn holdings(pid: u32) -> Holdings {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|l| l.split_whitespace().next()?.parse().ok());
    Holdings {
        descriptors: count("fd"),
        threads: count("task"),
        rss_kib: rss.expect("a process has a size"),
    }
}

fn stays_flat_over_many_cycles(c: &Case) {
    let cycles = number("CORTEN_CYCLES", 40);
    c.has(&images::busybox());
    let next = AtomicU32::new(0);
    let turn = |until: u32| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= until {
                            return;
                        }
                        c.run("--rm --null-io", &format!("a{number}"), &["true"])
                            .ok();
                    }
                });
            }
        });
    };
    let pid = c.daemon.pid();
    turn(20);
    let before = holdings(pid);
    next.store(20, Ordering::Relaxed);
    turn(20 + cycles);
    let after = eventually(DEADLINE, || {
        let now = holdings(pid);
        (now.descriptors <= before.descriptors + 2).then_some(now)
    });
    let after = after.unwrap_or_else(|| holdings(pid));
    println!("{cycles} cycles: {before:?}, then {after:?}");
    assert!(
        after.descriptors <= before.descriptors + 2,
        "descriptors stay open"
    );
    let shims = leaks::processes_naming(&c.namespace);
    assert!(shims.is_empty(), "{shims:?}");
    if c.is_reference() {
        println!("Corten only: Go's runtime takes threads and memory as it likes");
        return;
    }
    assert!(after.threads <= before.threads + 4, "threads stay");
    assert!(after.rss_kib <= before.rss_kib + 6 * 1024, "memory stays");
}

/// What was acknowledged, and what was only tried: that may be there or not.
#[derive(Debug, Default)]
struct Journal {
    /// True: it must be there. False: it must be gone. None: it may be either.
    state: BTreeMap<(&'static str, String), Option<bool>>,
    acknowledged: u32,
}

/// Waits for the daemon: a ctr that finds nobody there tries again after a second only.
fn up(c: &Case) {
    let answers = || UnixStream::connect(c.daemon.socket()).ok();
    eventually(Duration::from_secs(20), answers).expect("the daemon comes back");
}

/// Runs `cmd`, after which `what` is there or gone, and writes down what is known.
fn attempt(
    c: &Case,
    journal: &Mutex<Journal>,
    what: (&'static str, String),
    there: bool,
    cmd: Cmd,
) -> bool {
    journal.lock().unwrap().state.insert(what.clone(), None);
    up(c);
    let done = cmd.deadline(Duration::from_secs(30)).run();
    let certain = done.code() == 0;
    if certain {
        let mut journal = journal.lock().unwrap();
        journal.state.insert(what, Some(there));
        journal.acknowledged += 1;
    }
    certain
}

fn keeps_what_it_acknowledged_when_killed_at_any_moment(c: &Case) {
    let kills = number("CORTEN_KILLS", 5);
    let image = c.has(&images::busybox());
    c.sleeper("witness");
    let witness = c.pid("witness");
    let journal = Mutex::new(Journal::default());
    let over = AtomicBool::new(false);
    let ctr = |words: &str| c.ctr("--connect-timeout 10s --timeout 20s").words(words);
    let seed = std::process::id();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                records(c, &journal, &ctr, &image, n);
            }
        });
        scope.spawn(|| {
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                bytes(c, &journal, &ctr, n);
            }
        });
        scope.spawn(|| {
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                lives(c, &journal, &ctr, n);
            }
        });
        let mut random = seed;
        for _ in 0..kills {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let wait = Duration::from_millis(u64::from(100 + (random >> 16) % 800));
            let end = Instant::now() + wait;
            let _ = eventually(wait, || (Instant::now() >= end).then_some(()));
            c.daemon.crash_and_restart();
        }
        over.store(true, Ordering::Relaxed);
    });
    let journal = journal.into_inner().unwrap();
    println!(
        "{kills} kills (seed {seed}), {} writes acknowledged",
        journal.acknowledged
    );
    assert_eq!(c.pid("witness"), witness);
    let lost = lost(c, &journal);
    assert!(lost.is_empty(), "lost:\n  {}", lost.join("\n  "));
    clear(c, &image);
    let faults = leaks::settle(DEADLINE, || consistency::faults(c));
    assert!(faults.is_empty(), "faults:\n  {}", faults.join("\n  "));
    c.exec("", "witness", &["true"]).ok();
    c.remove("witness");
    if c.is_reference() {
        println!(
            "Corten only: runc leaves the cgroup of a create that its daemon's death broke off"
        );
        leaks::remove_namespace_cgroups(&c.namespace);
    }
}

/// Containers without tasks, images and leases: made, and every second one deleted again.
fn records(c: &Case, journal: &Mutex<Journal>, ctr: &dyn Fn(&str) -> Cmd, image: &str, n: u32) {
    let container = ("container", format!("c{n}"));
    let create = ctr("containers create").args([image, &container.1, "true"]);
    let made = attempt(c, journal, container.clone(), true, create);
    if made && n.is_multiple_of(2) {
        let rm = ctr("containers rm").arg(&container.1);
        attempt(c, journal, container, false, rm);
    }
    let name = ("image", format!("test.local/tag:{n}"));
    let tag = ctr("images tag").args([image, &name.1]);
    let made = attempt(c, journal, name.clone(), true, tag);
    if made && n.is_multiple_of(2) {
        attempt(
            c,
            journal,
            name.clone(),
            false,
            ctr("images rm").arg(&name.1),
        );
    }
    let lease = ("lease", format!("l{n}"));
    attempt(
        c,
        journal,
        lease.clone(),
        true,
        ctr("leases create --id").arg(&lease.1),
    );
}

/// Blobs, rooted by a label so that no collection takes them.
fn bytes(c: &Case, journal: &Mutex<Journal>, ctr: &dyn Fn(&str) -> Cmd, n: u32) {
    let bytes = format!("{n} ").repeat(20_000);
    let file = c.file(&format!("bytes{n}"));
    fs::write(&file, &bytes).unwrap();
    let digest = images::digest_of(bytes.as_bytes());
    let ingest = ctr("content ingest --expected-digest").args([&digest, &format!("r{n}")]);
    let done = ingest
        .stdin_file(&file)
        .deadline(Duration::from_secs(30))
        .run();
    if done.code() == 0 {
        let label = ctr("content label").args([&digest, "containerd.io/gc.root=yes"]);
        attempt(c, journal, ("content", digest), true, label);
    }
}

/// Containers that run.
fn lives(c: &Case, journal: &Mutex<Journal>, ctr: &dyn Fn(&str) -> Cmd, n: u32) {
    let what = ("container", format!("t{n}"));
    let image = images::busybox().name;
    let run = c.run_named(&image, "-d --null-io", &what.1, &["sleep", "1000"]);
    if attempt(c, journal, what.clone(), true, run) {
        let _ = ctr("task delete -f").arg(&what.1).run();
        attempt(
            c,
            journal,
            what.clone(),
            false,
            ctr("containers rm").arg(&what.1),
        );
    }
}

/// Acknowledged writes that are not to be seen, and acknowledged removals that are.
fn lost(c: &Case, journal: &Journal) -> Vec<String> {
    let kinds = [
        ("container", c.list("containers ls -q")),
        ("image", c.list("images ls -q")),
        ("lease", c.list("leases ls -q")),
        ("content", c.list("content ls -q")),
    ];
    let mut lost = Vec::new();
    for ((kind, name), known) in &journal.state {
        let (_, list) = kinds.iter().find(|(k, _)| k == kind).expect("all kinds");
        match (known, list.contains(name)) {
            (Some(true), false) => lost.push(format!("{kind} {name} is gone")),
            (Some(false), true) => lost.push(format!("{kind} {name} is back")),
            _ => {}
        }
    }
    lost
}

/// Removes all but the witness and its image, as a user would.
fn clear(c: &Case, image: &str) {
    for id in c.list("task ls -q").iter().filter(|id| *id != "witness") {
        let _ = c.ctr("task delete -f").arg(id).run();
    }
    let containers = c.list("containers ls -q").into_iter();
    for some in containers
        .filter(|id| id != "witness")
        .collect::<Vec<_>>()
        .chunks(50)
    {
        c.ctr("containers rm").args(some).ok();
    }
    // An ingest that was interrupted waits for its end; the client gives it one.
    for name in c.column("content active") {
        let file = c.file(&name.replacen('r', "bytes", 1));
        let digest = images::digest_of(&fs::read(&file).unwrap());
        let ingest = c.ctr("content ingest --expected-digest");
        let _ = ingest.args([&digest, &name]).stdin_file(&file).run();
        let _ = c.ctr("content rm").arg(digest).run();
    }
    for some in c
        .list("content ls -q labels.\"containerd.io/gc.root\"==yes")
        .chunks(50)
    {
        c.ctr("content rm").args(some).ok();
    }
    let names: Vec<_> = c.list("images ls -q");
    let names: Vec<_> = names.iter().filter(|n| *n != image).collect();
    for some in names.chunks(50) {
        c.ctr("images rm").args(some).ok();
    }
    for some in c.list("leases ls -q").chunks(50) {
        c.ctr("leases rm").args(some).ok();
    }
    // What an interrupted client left without a lease goes now.
    for _ in 0..2 {
        for key in c.column("snapshots ls") {
            if key != "witness" && !key.starts_with("sha256:") {
                let _ = c.ctr("snapshots rm").arg(key).run();
            }
        }
    }
    c.ctr("leases create --id last").ok();
    c.ctr("leases rm --sync last").ok();
}

fn goes_on_with_a_pull_after_its_death(c: &Case) {
    let image = images::large();
    let registry = Tiny::serve(image.clone(), Trick::Stall);
    let reference = registry.reference();
    let mut pull = c.ctr("images pull --plain-http").arg(&reference).start();
    let half = || {
        let table = c.ctr("content active").ok();
        let layer = table.lines().find(|l| l.contains("layer"))?;
        let size = layer.split_whitespace().nth(1)?;
        (size != "0" && size != "0B").then_some(())
    };
    let arrives = eventually(DEADLINE, half);
    let seen = || (c.ctr("content active").ok(), registry.requests());
    assert!(arrives.is_some(), "half of the layer: {:?}", seen());
    c.daemon.crash_and_restart();
    pull.kill();
    c.ctr("images pull --plain-http").arg(&reference).ok();
    assert!(c.column("snapshots ls").contains(&image.chain_id()));
    // The lease of the client that died keeps what it had unpacked so far, for a day.
    for lease in c.list("leases ls -q") {
        c.ctr("leases rm").arg(lease).ok();
    }
    let ranges = registry.requests();
    assert!(
        ranges.iter().any(|r| r.contains(" from ")),
        "it began anew: {ranges:?}"
    );
}

fn refuses_an_oversized_manifest(c: &Case) {
    let image = images::oversized(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::None);
    let done = c
        .ctr("images pull --plain-http")
        .arg(registry.reference())
        .run();
    assert_ne!(done.code(), 0, "{}", done.report());
    println!("{}", done.err());
    assert!(c.list("images ls -q").is_empty());
    c.ctr("version").ok();
}

fn survives_a_broken_shim(c: &Case) {
    let scripts = [
        ("silent", "exit 0"),
        ("failing", "echo no luck today >&2; exit 3"),
        ("babbling", "head -c 100000 /dev/urandom; exit 0"),
        ("lying", "echo unix:///no/such/socket; exit 0"),
    ];
    for (name, script) in scripts {
        let path = c.file(&format!("containerd-shim-{name}-v1"));
        program(&path, &format!("#!/bin/sh\n{script}\n"));
        let runtime = format!("--rm --runtime {}", path.display());
        let done = c.run(&runtime, name, &["true"]).run();
        assert_ne!(done.code(), 0, "{}", done.report());
        if name == "failing" {
            assert!(done.err().contains("no luck today"), "{}", done.report());
        }
        assert!(c.list("task ls -q").is_empty(), "{name}");
        let _ = c.ctr("containers rm").arg(name).run();
    }
    c.run("--rm", "a", &["echo", "fine"]).prints("fine\n");
}

fn survives_garbage_on_its_sockets(c: &Case) {
    let huge_frame = {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend([0xff; 64]);
        bytes
    };
    let noise: Vec<u8> = (0..100_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let all: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &huge_frame,
        &noise,
        &[0xff; 10],
        &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
    ];
    let pid = c.daemon.pid();
    let before = holdings(pid).descriptors;
    for name in ["c.sock", "c.sock.ttrpc"] {
        for bytes in all {
            let mut stream = UnixStream::connect(c.daemon.base.join(name)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            let _ = stream.write_all(bytes);
            let _ = stream.read(&mut [0; 4096]);
        }
        // Those who only hang about.
        let idle: Vec<_> = (0..50)
            .map(|_| UnixStream::connect(c.daemon.base.join(name)).unwrap())
            .collect();
        c.ctr("version").ok();
        drop(idle);
    }
    c.run("--rm", "a", &["echo", "fine"]).prints("fine\n");
    assert_eq!(c.daemon.pid(), pid);
    let closed = || (holdings(pid).descriptors <= before + 4).then_some(());
    eventually(DEADLINE, closed).expect("connections are closed");
}

fn survives_a_full_disk(c: &Case) {
    let daemon = Setup::new(c.daemon.kind).prepare();
    Cmd::new("mount")
        .words("-t tmpfs -o size=12m tmpfs")
        .arg(daemon.root())
        .ok();
    daemon.start();
    let ctr = |words: &str| {
        let cmd = c
            .client
            .command(&daemon.socket(), "full", &daemon.base.join("t"));
        cmd.words(words)
    };
    let small = images::busybox();
    ctr("images import").arg(small.archive()).ok();
    let large = images::large();
    let done = ctr("images import").arg(large.archive()).run();
    assert_ne!(done.code(), 0, "{}", done.report());
    assert!(
        done.err().contains("no space left on device"),
        "{}",
        done.report()
    );
    // What was there is there, also for the next daemon.
    let check = || {
        let check = ctr("images check").ok();
        let row = check.lines().find(|l| l.starts_with(&small.name));
        assert!(row.is_some_and(|r| r.contains(" complete ")), "{check}");
    };
    check();
    daemon.crash_and_restart();
    check();
    let _ = ctr("images rm --sync").arg(&large.name).run();
    ctr("images rm --sync").arg(&small.name).ok();
    ctr("images import").arg(small.archive()).ok();
    check();
    assert_eq!(daemon.stop(), 0);
}

fn survives_a_broken_proxy_plugin(c: &Case) {
    let socket = c.file("nobody.sock");
    let extra = format!(
        "[proxy_plugins.broken]\ntype = \"snapshot\"\naddress = \"{}\"\n",
        socket.display()
    );
    let daemon = Setup::new(c.daemon.kind).extra(&extra).start();
    let ctr = |words: &str| {
        let cmd = c
            .client
            .command(&daemon.socket(), "proxy", &daemon.base.join("t"));
        cmd.words(words)
    };
    // First nobody listens, then somebody who talks nonsense, then somebody who says nothing.
    let dead = "--timeout 5s snapshots --snapshotter broken prepare x";
    let fails = || {
        let done = ctr(dead).run();
        assert_ne!(done.code(), 0, "{}", done.report());
    };
    fails();
    let listener = UnixListener::bind(&socket).unwrap();
    let silent = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                if silent.load(Ordering::Relaxed) {
                    kept.push(stream);
                } else {
                    let _ = stream.write_all(&[0xff; 4096]);
                }
                if kept.len() > 1 {
                    return;
                }
            }
        });
        fails();
        silent.store(true, Ordering::Relaxed);
        fails();
        for _ in 0..2 {
            let _ = UnixStream::connect(&socket);
        }
    });
    ctr("snapshots ls").ok();
    ctr("images import").arg(images::busybox().archive()).ok();
    assert_eq!(daemon.stop(), 0);
}
