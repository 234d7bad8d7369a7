//! One test's view: a daemon, a namespace of its own, a ctr, and what must be gone at the end.
//!
//! A test that passes is followed by [`Case::finish`]: the images that the fixture imported are
//! removed, and then nothing may be left in the namespace or on the machine. A test that failed is
//! followed by [`Case::wipe`], which clears away by force and complains about nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::ctr::Client;
use crate::daemon::Daemon;
use crate::images::{self, Image};
use crate::leaks;
use crate::peers::Kind;
use crate::process::{Cmd, Running, eventually, pause};

/// Everything a test needs.
#[derive(Debug)]
pub struct Case {
    pub daemon: Arc<Daemon>,
    pub namespace: String,
    pub client: Client,
    /// The runtime for `ctr run`.
    pub runtime: String,
    /// A directory for the test's own files; gone at the end.
    pub dir: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long shims, mounts and cgroups may take to go after the call that removed them returned.
const SETTLE: Duration = Duration::from_secs(20);

// === impl Case ===

impl Case {
    #[must_use]
    pub fn new(daemon: Arc<Daemon>, client: Client) -> Self {
        // Short, unique on the machine and part of no other: it is looked for in paths, command
        // lines and cgroups.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("cit{}x{number}z", std::process::id());
        let dir = daemon.base.join("n").join(&namespace);
        for part in ["tmp", "fifo", "files"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let runtime = daemon.kind.default_runtime();
        Self {
            daemon,
            namespace,
            client,
            runtime,
            dir,
        }
    }

    #[must_use]
    pub fn runtime(mut self, name: &str) -> Self {
        name.clone_into(&mut self.runtime);
        self
    }

    /// True if the daemon under test is stock containerd.
    #[must_use]
    pub fn is_reference(&self) -> bool {
        self.daemon.kind != Kind::Corten
    }

    /// A path for a file of the test.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join("files").join(name)
    }

    /// ctr with a command line of plain words.
    #[must_use]
    pub fn ctr(&self, words: &str) -> Cmd {
        self.client
            .command(
                &self.daemon.socket(),
                &self.namespace,
                &self.dir.join("tmp"),
            )
            .words(words)
    }

    /// As [`Case::ctr`], whichever client the test runs with: for a flag that 1.6 lacks. A daemon
    /// of 1.6 does not understand the newer client.
    #[must_use]
    pub fn new_ctr(&self, words: &str) -> Cmd {
        let client = match self.daemon.kind {
            Kind::Debian => Client::Old,
            Kind::Corten | Kind::Reference => Client::New,
        };
        client
            .command(
                &self.daemon.socket(),
                &self.namespace,
                &self.dir.join("tmp"),
            )
            .words(words)
    }

    /// Imports an image into the namespace, unless it is there, and gives its name.
    pub fn has(&self, image: &Image) -> String {
        let name = image.name.clone();
        if !self.images().contains(&name) {
            self.new_ctr("images import").arg(image.archive()).ok();
        }
        name
    }

    /// `ctr run` of the busybox image.
    #[must_use]
    pub fn run(&self, flags: &str, id: &str, argv: &[&str]) -> Cmd {
        self.run_image(&images::busybox(), flags, id, argv)
    }

    /// `ctr run` of `image`, which is imported first if need be.
    #[must_use]
    pub fn run_image(&self, image: &Image, flags: &str, id: &str, argv: &[&str]) -> Cmd {
        let name = self.has(image);
        self.run_named(&name, flags, id, argv)
    }

    /// `ctr run` of an image by name.
    #[must_use]
    pub fn run_named(&self, name: &str, flags: &str, id: &str, argv: &[&str]) -> Cmd {
        let mut cmd = self.ctr("run");
        if !flags.contains("--runtime") {
            cmd = cmd.args(["--runtime", &self.runtime]);
        }
        cmd.arg("--fifo-dir")
            .arg(self.dir.join("fifo"))
            .words(flags)
            .args([name, id])
            .args(argv)
    }

    /// Starts a container that sleeps until it is killed.
    pub fn sleeper(&self, id: &str) {
        self.background(id, &["sleep", "1000"]);
    }

    /// Starts a container in the background with its IO to /dev/null.
    pub fn background(&self, id: &str, argv: &[&str]) {
        self.run("-d --null-io", id, argv).ok();
    }

    /// `ctr task exec` in container `id`.
    #[must_use]
    pub fn exec(&self, flags: &str, id: &str, argv: &[&str]) -> Cmd {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.ctr("task exec --exec-id")
            .arg(format!("e{number}"))
            .arg("--fifo-dir")
            .arg(self.dir.join("fifo"))
            .words(flags)
            .arg(id)
            .args(argv)
    }

    /// Kills a container's task, waits for its end, deletes it and the container.
    pub fn remove(&self, id: &str) {
        let _ = self.ctr("task kill -s SIGKILL").arg(id).run();
        self.wait_stopped(id);
        // Exit status 137 or a signal's: only that the task is gone matters here.
        let _ = self.ctr("task delete").arg(id).run();
        self.ctr("containers rm").arg(id).ok();
    }

    /// The status column of `ctr task ls`, None if there is no such task.
    #[must_use]
    pub fn status(&self, id: &str) -> Option<String> {
        self.task_column(id, 2)
    }

    /// The init pid of a task.
    #[must_use]
    pub fn pid(&self, id: &str) -> u32 {
        let pid = self
            .task_column(id, 1)
            .unwrap_or_else(|| panic!("no task {id}"));
        pid.parse().expect("ctr prints a pid")
    }

    fn task_column(&self, id: &str, column: usize) -> Option<String> {
        let table = self.ctr("task ls").ok();
        let row = table
            .lines()
            .skip(1)
            .find(|l| l.split_whitespace().next() == Some(id))?;
        row.split_whitespace().nth(column).map(str::to_owned)
    }

    pub fn wait_stopped(&self, id: &str) {
        let stopped = eventually(Duration::from_secs(15), || {
            (self.status(id).as_deref() == Some("STOPPED")).then_some(())
        });
        assert!(
            stopped.is_some(),
            "task {id} is {:?}, not STOPPED",
            self.status(id)
        );
    }

    /// `ctr events` in the background, ready when this returns.
    #[must_use]
    pub fn events(&self) -> Running {
        let mut events = self.ctr("events").start();
        // The subscription is there once an event of ours comes through it; this one leaves
        // nothing behind.
        let probe = format!("probe{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let seen = eventually(Duration::from_secs(20), || {
            self.new_ctr("namespaces label")
                .arg(&self.namespace)
                .arg(format!("p={probe}"))
                .ok();
            pause(Duration::from_millis(20));
            events.output().contains(&probe).then_some(())
        });
        assert!(
            seen.is_some(),
            "no event came: {:?}",
            events.wait_output_for(|_| true, "any")
        );
        self.new_ctr("namespaces label")
            .arg(&self.namespace)
            .arg("p=")
            .ok();
        events
    }

    fn images(&self) -> Vec<String> {
        self.list("images ls -q")
    }

    /// The lines of a ctr listing.
    #[must_use]
    pub fn list(&self, words: &str) -> Vec<String> {
        self.new_ctr(words)
            .ok()
            .lines()
            .map(|l| l.trim().to_owned())
            .collect()
    }

    /// First column of a ctr table, without its heading.
    #[must_use]
    pub fn column(&self, words: &str) -> Vec<String> {
        let rows = self.list(words).into_iter().skip(1);
        rows.filter_map(|l| l.split_whitespace().next().map(str::to_owned))
            .collect()
    }

    fn left_in_namespace(&self) -> Vec<String> {
        let lists = [
            ("task", self.list("task ls -q")),
            ("container", self.list("containers ls -q")),
            ("snapshot", self.column("snapshots ls")),
            (
                "native snapshot",
                self.column("snapshots --snapshotter native ls"),
            ),
            ("lease", self.list("leases ls -q")),
            ("content", self.list("content ls -q")),
            ("ingest", self.column("content active")),
        ];
        let name = |(what, names): (&str, Vec<String>)| {
            names
                .into_iter()
                .map(move |n| format!("{what} {n}"))
                .collect::<Vec<_>>()
        };
        lists.into_iter().flat_map(name).collect()
    }

    /// Removes the images, then gives a list of everything that is still there.
    #[must_use]
    pub fn finish(&self) -> Vec<String> {
        for image in self.images() {
            self.new_ctr("images rm --sync").arg(image).ok();
        }
        let mut left = leaks::settle(SETTLE, || self.left_in_namespace());
        left.extend(leaks::settle(SETTLE, || {
            leaks::of_namespace(&self.daemon, &self.namespace, &self.dir)
        }));
        if left.is_empty() {
            let done = self.new_ctr("namespaces rm").arg(&self.namespace).run();
            if done.code() != 0 {
                left.push(format!("the namespace itself: {}", done.err().trim_end()));
            }
        }
        leaks::remove_namespace_cgroups(&self.namespace);
        leaks::remove_runc_state(&self.namespace);
        let _ = fs::remove_dir_all(&self.dir);
        left
    }

    /// Clears the namespace away by force.
    pub fn wipe(&self) {
        leaks::clear_namespace(&self.namespace);
        let quiet = |words: &str| {
            let done = self.new_ctr(words).deadline(Duration::from_secs(10)).run();
            done.out()
                .lines()
                .map(|l| l.trim().to_owned())
                .collect::<Vec<_>>()
        };
        for id in quiet("task ls -q") {
            let _ = self.new_ctr("task rm -f").arg(id).run();
        }
        for id in quiet("containers ls -q") {
            let _ = self.new_ctr("containers rm").arg(id).run();
        }
        for id in quiet("leases ls -q") {
            let _ = self.new_ctr("leases rm --sync").arg(id).run();
        }
        for row in quiet("snapshots ls").iter().skip(1).rev() {
            if let Some(key) = row.split_whitespace().next() {
                let _ = self.new_ctr("snapshots rm").arg(key).run();
            }
        }
        for name in quiet("images ls -q") {
            let _ = self.new_ctr("images rm --sync").arg(name).run();
        }
        leaks::clear_namespace(&self.namespace);
        let _ = fs::remove_dir_all(&self.dir);
    }
}
