//! Every command and flag that the two ctr clients have, as their own `--help` tells, and which
//! tests used them.
//!
//! While a test runs, each ctr command line is noted; if the test passes, it counts. The table in
//! `integration/README.md` is compared with both: a command or flag that the table lacks, and a
//! test that no longer uses what the table says it covers, fail the run.

mod table;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Mutex;

use crate::ctr::Client;

pub use table::{Table, verify};

/// A command or a group of commands.
#[derive(Debug, Default)]
pub struct Node {
    flags: Vec<Flag>,
    children: Vec<Child>,
}

#[derive(Debug)]
struct Child {
    /// The first is the one that the table shows.
    names: Vec<String>,
    node: Node,
}

#[derive(Debug)]
struct Flag {
    names: Vec<String>,
    takes_value: bool,
}

/// `images pull --plain-http`, `images pull`, `--namespace`, by the test that used it.
pub type Uses = BTreeMap<String, BTreeSet<String>>;

#[derive(Clone, Debug)]
struct Line {
    client: Client,
    args: Vec<String>,
}

thread_local! {
    /// What the test on this thread has run so far.
    static NOTED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// What the tests that passed have run.
static KEPT: Mutex<Vec<(String, Line)>> = Mutex::new(Vec::new());

/// Notes a command line of ctr.
pub(crate) fn note(client: Client, args: Vec<String>) {
    NOTED.with(|noted| noted.borrow_mut().push(Line { client, args }));
}

/// Forgets what was noted on this thread.
pub(crate) fn forget() {
    NOTED.with(|noted| noted.borrow_mut().clear());
}

/// Counts what was noted on this thread for `test`, which has passed.
pub(crate) fn keep(test: &str) {
    let lines = NOTED.with(|noted| std::mem::take(&mut *noted.borrow_mut()));
    let mut kept = KEPT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    kept.extend(lines.into_iter().map(|line| (test.to_owned(), line)));
}

/// What the tests that passed have used of `client`.
#[must_use]
pub fn uses(client: Client, tree: &Node) -> Uses {
    let mut uses = Uses::new();
    let kept = KEPT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (test, line) in kept.iter().filter(|(_, line)| line.client == client) {
        for used in tree.parse(&line.args) {
            uses.entry(used).or_default().insert(test.clone());
        }
    }
    uses
}

// === impl Node ===

impl Node {
    /// Asks a client for everything it has.
    #[must_use]
    pub fn of(client: Client) -> Self {
        let mut root = Self::ask(client, &[]);
        // A hundred short processes: each group on a thread of its own.
        std::thread::scope(|scope| {
            for child in &mut root.children {
                scope.spawn(move || child.fill(client, &[]));
            }
        });
        root
    }

    fn ask(client: Client, path: &[String]) -> Self {
        let output = Command::new(client.program())
            .args(path)
            .arg("--help")
            .output()
            .expect("ctr runs");
        let is_root = path.is_empty();
        Self::read(&String::from_utf8_lossy(&output.stdout), is_root)
    }

    /// Reads what `--help` prints. Its last section repeats the root's flags.
    fn read(help: &str, is_root: bool) -> Self {
        let mut node = Self::default();
        let mut section = "";
        for line in help.lines() {
            let Some(entry) = line.strip_prefix("   ") else {
                section = line.trim_end_matches(':');
                continue;
            };
            let entry = entry.split("  ").next().unwrap_or_default().trim_end();
            let first = entry.split([',', ' ']).next().unwrap_or_default();
            let options = section == "OPTIONS" || section == "GLOBAL OPTIONS" && is_root;
            if options && first.starts_with('-') && (is_root || first != "--help") {
                node.flags.push(Flag::read(entry));
            } else if section == "COMMANDS" && !first.is_empty() && first != "help" {
                node.children.push(Child {
                    names: entry.split(", ").map(str::to_owned).collect(),
                    node: Self::default(),
                });
            }
        }
        node
    }

    /// Every row that a table of this client's commands needs: each command, then its flags.
    #[must_use]
    pub fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        self.collect("", &mut rows);
        rows
    }

    fn collect(&self, path: &str, rows: &mut Vec<String>) {
        // A group is no command, but some have flags.
        if self.children.is_empty() {
            rows.push(path.to_owned());
        }
        rows.extend(self.flags.iter().map(|flag| join(path, &flag.names[0])));
        for child in &self.children {
            child.node.collect(&join(path, &child.names[0]), rows);
        }
    }

    /// The rows that a command line uses. Flags end where the first argument begins.
    fn parse(&self, args: &[String]) -> Vec<String> {
        let (mut node, mut path) = (self, String::new());
        let mut used = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            if arg.len() > 1 && arg.starts_with('-') {
                let (name, value) = arg
                    .split_once('=')
                    .map_or((arg.as_str(), None), |(name, value)| (name, Some(value)));
                let own = node.flag(name).map(|flag| (flag, path.as_str()));
                let Some((flag, owner)) = own.or_else(|| Some((self.flag(name)?, ""))) else {
                    break;
                };
                used.push(join(owner, &flag.names[0]));
                if flag.takes_value && value.is_none() {
                    rest.next();
                }
            } else if let Some(child) = node.children.iter().find(|c| c.names.contains(arg)) {
                path = join(&path, &child.names[0]);
                node = &child.node;
            } else {
                break;
            }
        }
        used.push(path);
        used
    }

    fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags
            .iter()
            .find(|flag| flag.names.iter().any(|n| n == name))
    }
}

fn join(path: &str, word: &str) -> String {
    if path.is_empty() {
        word.to_owned()
    } else {
        format!("{path} {word}")
    }
}

// === impl Child ===

impl Child {
    fn fill(&mut self, client: Client, above: &[String]) {
        let mut path = above.to_vec();
        path.push(self.names[0].clone());
        self.node = Node::ask(client, &path);
        for child in &mut self.node.children {
            child.fill(client, &path);
        }
    }
}

// === impl Flag ===

impl Flag {
    /// Reads `--label string, -l string [ --label string ]` or `--quiet, -q`.
    fn read(entry: &str) -> Self {
        let entry = entry.split(" [").next().unwrap_or_default();
        let words = || entry.split([' ', ',']).filter(|w| !w.is_empty());
        Self {
            names: words()
                .filter(|w| w.starts_with('-'))
                .map(str::to_owned)
                .collect(),
            takes_value: words().any(|w| !w.starts_with('-')),
        }
    }
}
