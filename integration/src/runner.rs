//! The main function of a test program: shared daemons, one case per test, leak checks. What other test programs do as
//! well, around a test and around all of them, is public.
//!
//! A test is a plain function over a [`Case`]. A [`Test`] says which client, runtime and daemon it
//! gets; the list of them is explicit, so the compiler warns of a test that nobody lists.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::case::Case;
use crate::commands;
use crate::ctr::Client;
use crate::daemon::{self, Daemon, Setup};
use crate::leaks;
use crate::peers::{self, Kind};

/// A test to be run.
#[derive(Clone, Debug)]
pub struct Test {
    name: String,
    client: Client,
    kind: Kind,
    runtime: Option<String>,
    own: Option<&'static str>,
    body: fn(&Case),
}

/// Tests by the names of their functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::runner::Test::new(stringify!($name), $name)),*]
    };
}

/// Each of the tests twice: with ctr 2.4 and with ctr 1.6.
#[must_use]
pub fn with_both_clients(tests: Vec<Test>) -> Vec<Test> {
    let old: Vec<_> = tests
        .iter()
        .cloned()
        .map(|t| t.client(Client::Old))
        .collect();
    tests.into_iter().chain(old).collect()
}

/// Collects garbage after every write: what is in use must stay, and a test that relies on
/// something to which nothing refers fails at once instead of once in a thousand runs.
const EAGER: &str = "[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 1\n\
                     pause_threshold = 0.5\nstartup_delay = \"1ms\"\n";

type Shared = Arc<Mutex<HashMap<&'static str, Arc<Daemon>>>>;

// === impl Test ===

impl Test {
    /// A test with ctr 2.4 on the shared daemon under test.
    #[must_use]
    pub fn new(name: &str, body: fn(&Case)) -> Self {
        Self {
            name: name.to_owned(),
            client: Client::New,
            kind: Kind::under_test(),
            runtime: None,
            own: None,
            body,
        }
    }

    #[must_use]
    pub fn client(mut self, client: Client) -> Self {
        self.client = client;
        self
    }

    /// Runs on a daemon that no other test uses, so that the test may kill it.
    #[must_use]
    pub fn own_daemon(mut self) -> Self {
        self.own = Some("");
        self
    }

    /// Runs on a daemon of its own that collects garbage only when it is told to, so that a test
    /// may make things which nothing refers to.
    #[must_use]
    pub fn quiet_daemon(mut self) -> Self {
        self.own = Some(
            "[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = \"1h\"\n\
             mutation_threshold = 1000000\n",
        );
        self
    }

    /// Runs on a daemon of its own with this TOML at the end of its config.
    #[must_use]
    pub fn daemon_with(mut self, extra: &'static str) -> Self {
        self.own = Some(extra);
        self
    }

    /// Runs on this daemon with this runtime, whatever is under test.
    #[must_use]
    pub fn on(mut self, kind: Kind, runtime: &str) -> Self {
        self.kind = kind;
        self.runtime = Some(runtime.to_owned());
        self
    }

    fn trial(self, module: &str, shared: &Shared) -> Trial {
        let plain = format!("{module}::{}", self.name);
        let mut name = plain.clone();
        if self.client == Client::Old {
            let _ = write!(name, "::{}", self.client.label());
        }
        let shared = Arc::clone(shared);
        Trial::test(name, move || {
            commands::forget();
            self.run(&shared, &plain)
        })
    }

    fn run(&self, shared: &Shared, plain: &str) -> Result<(), Failed> {
        let daemon = match self.own {
            Some(extra) => Arc::new(Setup::new(self.kind).extra(extra).start()),
            None => shared_daemon(shared, self.kind),
        };
        let mut case = Case::new(Arc::clone(&daemon), self.client);
        if let Some(runtime) = &self.runtime {
            case = case.runtime(runtime);
        }
        let outcome = caught(|| (self.body)(&case)).and_then(|()| {
            // What cleaning up needs says nothing of the test.
            commands::keep(plain);
            nothing_left(&caught(|| case.finish())?)
        });
        outcome.map_err(|text| {
            let failed = failed(&text, &daemon, &case.namespace);
            let _ = caught(|| case.wipe());
            failed
        })
    }
}

thread_local! {
    /// Where this thread panicked last.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `what`; of a panic, its place and its text.
///
/// # Errors
/// It panicked.
pub fn caught<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "a panic without text".to_owned());
        PLACE.with(|place| format!("{}: {text}", place.borrow()))
    })
}

/// # Errors
/// A test left something behind.
pub fn nothing_left(left: &[String]) -> Result<(), String> {
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("left behind:\n  {}", left.join("\n  ")))
    }
}

/// What is told of a test that failed: why, and what the daemon said of the test's `name`.
#[must_use]
pub fn failed(text: &str, daemon: &Daemon, name: &str) -> Failed {
    let log = daemon.log_about(name, 15);
    Failed::from(format!("{text}\n  daemon's log:\n{log}"))
}

/// Whether containers can be made; says so if not.
#[must_use]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("these tests make containers and need root: use `make test`");
    }
    root
}

/// Clears away what killed runs left, decides how many tests run at a time, and tells what is under test.
pub fn prepare(arguments: &mut Arguments) {
    daemon::sweep();
    // Containers wait more than they compute: twice the processors, but no more than eight.
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let threads = (processors * 2).min(8);
    arguments.test_threads.get_or_insert(threads);
    // Panics are reported with the test they belong to.
    std::panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(String::new, ToString::to_string);
        PLACE.with(|last| *last.borrow_mut() = place);
    }));
    if !arguments.list {
        let kind = Kind::under_test();
        let program = kind.program();
        println!(
            "daemon under test: {} ({})",
            program.display(),
            kind.default_runtime()
        );
        println!("reference programs: {}", peers::dir().display());
    }
}

/// The modules' tests, each made a trial of.
pub fn trials<T>(modules: Vec<(&str, Vec<T>)>, trial: impl Fn(&str, T) -> Trial) -> Vec<Trial> {
    let named = |(module, tests): (_, Vec<T>)| tests.into_iter().map(move |t| (module, t));
    let all = modules.into_iter().flat_map(named);
    all.map(|(module, test)| trial(module, test)).collect()
}

/// Fails what no single test failed at, with the reasons.
#[must_use]
pub fn failed_at_the_end(reasons: &[(&str, Vec<String>)]) -> ExitCode {
    for (what, list) in reasons {
        if !list.is_empty() {
            println!("{what}:\n  {}", list.join("\n  "));
        }
    }
    println!("test result: FAILED. 0 passed; 1 failed (at the end)");
    ExitCode::FAILURE
}

/// The heading of what is left when all tests are over.
pub const LEFT: &str = "left behind when all tests were over";

fn shared_daemon(shared: &Shared, kind: Kind) -> Arc<Daemon> {
    let key = match kind {
        Kind::Corten => "corten",
        Kind::Reference => "reference",
        Kind::Debian => "debian",
    };
    let mut daemons = shared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Arc::clone(daemons.entry(key).or_insert_with(|| {
        let eager = std::env::var_os("CORTEN_EAGER_GC").is_some();
        let extra = if eager { EAGER } else { "" };
        Arc::new(Setup::new(kind).extra(extra).start())
    }))
}

/// Runs the modules' tests; gives the exit code of the program.
#[must_use]
pub fn run(modules: Vec<(&str, Vec<Test>)>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !is_root() {
        return ExitCode::FAILURE;
    }
    prepare(&mut arguments);
    let before = leaks::shared_places();
    let shared = Shared::default();
    let trials = trials(modules, |module, test| test.trial(module, &shared));
    let conclusion = libtest_mimic::run(&arguments, trials);

    let mut left = Vec::new();
    for (name, daemon) in shared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .drain()
    {
        if !conclusion.has_failed() {
            left.extend(leaks::settle(Duration::from_secs(15), || daemon.leaks()));
        }
        let code = daemon.stop();
        if code != 0 {
            left.push(format!(
                "the {name} daemon ended with code {code} on SIGTERM"
            ));
        }
    }
    left.extend(leaks::clear_shared_places(&before));
    let writes = std::env::var_os("CORTEN_TABLE").is_some();
    if conclusion.has_failed() && !writes {
        return conclusion.exit_code();
    }
    let everything = Kind::under_test() == Kind::Corten
        && arguments.filter.is_none()
        && arguments.skip.is_empty();
    let lies = if everything && !arguments.list {
        commands::verify()
    } else {
        Vec::new()
    };
    if left.is_empty() && lies.is_empty() {
        return conclusion.exit_code();
    }
    failed_at_the_end(&[
        (LEFT, left),
        ("integration/README.md says what is not so", lies),
    ])
}
