//! `make bench`: Corten beside stock containerd on this machine, in one table.
//!
//! The two take turns, so that whatever else the machine does hits both alike; each time is the
//! median. It measures and never judges: a figure that could not be taken shows as `-`, and the
//! exit code is 0.
//!
//! `CORTEN_BENCH_MB` (880) is the size of the large image, `CORTEN_BENCH_RECORDS` (1000) how many
//! images and containers a full daemon has, `CORTEN_BENCH_PULLS` (100) after how many pulls the
//! daemon is weighed again.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people to read"
)]

mod big;
mod table;

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::daemon::{self, Daemon, Setup};
use corten_integration::images::{self, Image};
use corten_integration::leaks;
use corten_integration::peers::Kind;
use corten_integration::registry::Registry;
use table::{Row, Table, number, rollup};

const ROUNDS: usize = 21;
const PULLS: usize = 5;
/// How often the large image is pulled.
const LARGE: usize = 3;
/// How long the many pulls may take, however many were asked for.
const PULLING: Duration = Duration::from_secs(240);

/// One of the two.
struct Side {
    case: Case,
    daemon: Arc<Daemon>,
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("needs root: use `make bench`");
        return;
    }
    daemon::sweep();
    // What goes wrong shows as a missing figure.
    std::panic::set_hook(Box::new(|info| println!("# {info}")));
    let start = |kind| catch_unwind(|| side(kind)).ok();
    let sides = [start(Kind::Corten), start(Kind::Reference)];
    let mut rows = Table::begin();
    // The stages by name: each takes its time.
    println!("# boots");
    boots(&mut rows, "boot to first answer, empty", 0);
    idle(&sides, &mut rows);
    println!("# containers");
    times(&sides, &mut rows);
    memory(&sides, &mut rows);
    println!("# pulls");
    pulls(&sides, &mut rows);
    println!("# boots of full daemons");
    boots(
        &mut rows,
        "the same with many images and containers",
        number("CORTEN_BENCH_RECORDS", 1000),
    );
    for side in sides.iter().flatten() {
        let _ = catch_unwind(AssertUnwindSafe(|| side.case.wipe()));
    }
}

fn side(kind: Kind) -> Side {
    let daemon = Arc::new(Setup::new(kind).start());
    let case = Case::new(Arc::clone(&daemon), Client::New);
    Side { case, daemon }
}

/// Starts a daemon again and again, with `records` images and as many containers in it.
fn boots(rows: &mut Table, what: &'static str, records: u64) {
    let filled = |kind| {
        let side = side(kind);
        fill(&side.case, records);
        side.daemon.stop();
        side
    };
    let sides = [Kind::Corten, Kind::Reference]
        .map(|kind| catch_unwind(AssertUnwindSafe(|| filled(kind))).ok());
    let values = compare(&sides, PULLS, |side| {
        let time = timed(|| {
            side.daemon.spawn();
            while UnixStream::connect(side.daemon.socket()).is_err() {
                std::thread::yield_now();
            }
            side.case.ctr("version").ok();
        });
        side.daemon.stop();
        time
    });
    rows.push(&Row {
        what,
        values,
        unit: "ms",
    });
}

fn fill(case: &Case, records: u64) {
    if records == 0 {
        return;
    }
    let image = case.has(&images::busybox());
    let tags: Vec<_> = (0..records)
        .map(|n| format!("test.local/tag:{n}"))
        .collect();
    for some in tags.chunks(100) {
        case.ctr("images tag --local").arg(&image).args(some).ok();
    }
    let threads = 4;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let image = &image;
            scope.spawn(move || {
                for n in (thread..records).step_by(threads as usize) {
                    let create = case.ctr("containers create --runtime").arg(&case.runtime);
                    create.args([image, &format!("c{n}"), "true"]).ok();
                }
            });
        }
    });
}

/// The size of daemons that have done nothing yet.
fn idle(sides: &[Option<Side>; 2], rows: &mut Table) {
    let weigh = |side: &Option<Side>| rollup(side.as_ref()?.daemon.pid(), "Rss");
    rows.push(&Row {
        what: "daemon RSS, idle",
        values: [weigh(&sides[0]), weigh(&sides[1])],
        unit: "KiB",
    });
    for side in sides.iter().flatten() {
        let _ = catch_unwind(AssertUnwindSafe(|| side.case.has(&images::busybox())));
    }
}

/// Takes turns `rounds` times and gives both medians, in milliseconds.
fn compare(
    sides: &[Option<Side>; 2],
    rounds: usize,
    mut once: impl FnMut(&Side) -> Duration,
) -> [Option<f64>; 2] {
    let mut taken: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (side, taken) in sides.iter().zip(&mut taken) {
            let Some(side) = side else { continue };
            if let Ok(time) = catch_unwind(AssertUnwindSafe(|| once(side))) {
                taken.push(time);
            }
        }
    }
    taken.map(|mut all| {
        all.sort_unstable();
        all.get(all.len() / 2)
            .map(|time| time.as_secs_f64() * 1000.0)
    })
}

fn timed(action: impl FnOnce()) -> Duration {
    let began = Instant::now();
    action();
    began.elapsed()
}

fn times(sides: &[Option<Side>; 2], rows: &mut Table) {
    let name = images::busybox().name;
    let mut number = 0;
    let run = compare(sides, ROUNDS, |side| {
        number += 1;
        let run = side
            .case
            .run_named(&name, "--rm", &format!("r{number}"), &["true"]);
        timed(|| drop(run.ok()))
    });
    rows.push(&Row {
        what: "ctr run --rm IMAGE true",
        values: run,
        unit: "ms",
    });

    for side in sides.iter().flatten() {
        let _ = catch_unwind(AssertUnwindSafe(|| side.case.sleeper("s")));
    }
    let exec = compare(sides, ROUNDS, |side| {
        let exec = side.case.exec("", "s", &["true"]);
        timed(|| drop(exec.ok()))
    });
    rows.push(&Row {
        what: "ctr task exec true",
        values: exec,
        unit: "ms",
    });

    let list = compare(sides, ROUNDS, |side| {
        let list = side.case.ctr("containers ls");
        timed(|| drop(list.ok()))
    });
    rows.push(&Row {
        what: "ctr containers ls",
        values: list,
        unit: "ms",
    });

    let ten = compare(sides, PULLS, |side| {
        number += 1;
        timed(|| {
            let runs: Vec<_> = (0..10)
                .map(|n| {
                    side.case
                        .run_named(&name, "--rm", &format!("p{number}-{n}"), &["true"])
                        .start()
                })
                .collect();
            for run in runs {
                let _ = run.wait();
            }
        })
    });
    rows.push(&Row {
        what: "ten of them at once",
        values: ten,
        unit: "ms",
    });
}

fn memory(sides: &[Option<Side>; 2], rows: &mut Table) {
    let both = |read: &dyn Fn(&Side) -> Option<f64>| {
        [
            sides[0].as_ref().and_then(read),
            sides[1].as_ref().and_then(read),
        ]
    };
    let shim = |side: &Side, field: &str| {
        let shims = leaks::processes_naming(&side.case.namespace);
        let found = shims
            .iter()
            .find(|(_, line)| line.contains("containerd-shim"))?;
        rollup(found.0, field)
    };
    let daemon: [(&str, &str); 3] = [
        ("daemon RSS, one container", "Rss"),
        ("daemon PSS, one container", "Pss"),
        ("daemon private dirty", "Private_Dirty"),
    ];
    for (what, field) in daemon {
        let values = both(&|side| rollup(side.daemon.pid(), field));
        rows.push(&Row {
            what,
            values,
            unit: "KiB",
        });
    }
    let shims: [(&str, &str); 3] = [
        ("shim RSS", "Rss"),
        ("shim PSS", "Pss"),
        ("shim private dirty", "Private_Dirty"),
    ];
    for (what, field) in shims {
        let values = both(&|side| shim(side, field));
        rows.push(&Row {
            what,
            values,
            unit: "KiB",
        });
    }
    for side in sides.iter().flatten() {
        let _ = catch_unwind(AssertUnwindSafe(|| side.case.remove("s")));
    }
}

fn pulls(sides: &[Option<Side>; 2], rows: &mut Table) {
    let Some(first) = sides.iter().flatten().next() else {
        return;
    };
    let Ok(registry) = catch_unwind(AssertUnwindSafe(|| Registry::plain(&first.case.dir))) else {
        return;
    };
    let all: [(&'static str, Image); 2] = [
        ("pull + unpack, 20 layers", images::layered()),
        ("pull + unpack, 10 000 files", images::many_files()),
    ];
    for (what, image) in all {
        let Ok(reference) = catch_unwind(AssertUnwindSafe(|| registry.push(&image))) else {
            continue;
        };
        let values = compare(sides, PULLS, |side| pull(side, &reference));
        rows.push(&Row {
            what,
            values,
            unit: "ms",
        });
    }
    let many = number("CORTEN_BENCH_PULLS", 100);
    let (begun, mut done) = (Instant::now(), 0);
    if let Ok(reference) = catch_unwind(AssertUnwindSafe(|| registry.push(&images::layered()))) {
        while done < many && begun.elapsed() < PULLING {
            for side in sides.iter().flatten() {
                let _ = catch_unwind(AssertUnwindSafe(|| pull(side, &reference)));
            }
            done += 1;
        }
    }
    let weigh = |side: &Option<Side>| rollup(side.as_ref()?.daemon.pid(), "Rss");
    println!("# {done} pulls");
    rows.push(&Row {
        what: "daemon RSS after many pulls",
        values: [weigh(&sides[0]), weigh(&sides[1])],
        unit: "KiB",
    });
    let (image, megabytes) = big::image(number("CORTEN_BENCH_MB", 880));
    println!(
        "# the large image has {megabytes} MB, {} layers",
        image.diff_ids.len()
    );
    let Ok(reference) = catch_unwind(AssertUnwindSafe(|| registry.push(&image))) else {
        return;
    };
    rows.push(&Row {
        what: "pull + unpack, the large image",
        values: compare(sides, LARGE, |side| pull(side, &reference)),
        unit: "ms",
    });
    rows.push(&Row {
        what: "daemon RSS after that",
        values: [weigh(&sides[0]), weigh(&sides[1])],
        unit: "KiB",
    });
}

/// Pulls, unpacks and removes; the time of the first two.
fn pull(side: &Side, reference: &str) -> Duration {
    let pull = side.case.ctr("images pull --plain-http").arg(reference);
    let pull = pull.deadline(Duration::from_secs(300));
    let time = timed(|| drop(pull.ok()));
    let remove = side.case.ctr("images rm --sync").arg(reference);
    remove.deadline(Duration::from_secs(120)).ok();
    time
}
