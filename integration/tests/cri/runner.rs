//! Runs the tests side by side on the shared daemon, or each on its own, and looks for what they left.

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use corten_integration::leaks;
use corten_integration::runner::{self, caught, failed, nothing_left};
use corten_protos::runtime::v1;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cri::Cri;
use crate::image_rpc;
use crate::machine::{self, Machine, World};

/// A test to be run.
#[derive(Debug)]
pub(crate) struct Test {
    name: &'static str,
    /// TOML for a daemon of its own.
    own: Option<&'static str>,
    body: fn(&Cri),
}

/// Tests by the names of their functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::runner::Test::new(stringify!($name), $name)),*]
    };
}

// === impl Test ===

impl Test {
    /// A test on the shared daemon.
    #[must_use]
    pub(crate) fn new(name: &'static str, body: fn(&Cri)) -> Self {
        Self {
            name,
            own: None,
            body,
        }
    }

    /// Runs on a daemon that no other test uses, with this TOML at the end of its config.
    #[must_use]
    pub(crate) fn own_daemon(mut self, extra: &'static str) -> Self {
        self.own = Some(extra);
        self
    }

    fn trial(self, module: &str) -> Trial {
        Trial::test(format!("{module}::{}", self.name), move || self.run())
    }

    fn run(&self) -> Result<(), Failed> {
        let machine = match self.own {
            Some(extra) => Arc::new(Machine::start(extra)),
            None => Machine::shared(),
        };
        let cri = Cri::new(Arc::clone(&machine));
        let outcome = caught(|| (self.body)(&cri));
        // Also after a failure: other tests go on with this daemon.
        let left = caught(|| cri.finish());
        outcome
            .and_then(|()| nothing_left(&left?))
            .map_err(|text| failed(&text, &machine.daemon, &cri.name))
    }
}

/// Runs the modules' tests; gives the exit code of the program.
#[must_use]
pub(crate) fn run(modules: Vec<(&str, Vec<Test>)>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !runner::is_root() || (!arguments.list && !machine::enter()) {
        return ExitCode::FAILURE;
    }
    runner::prepare(&mut arguments);
    let trials = runner::trials(modules, |module, test| test.trial(module));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = match Machine::take_shared() {
        Some(machine) => last_look(&machine, conclusion.has_failed()),
        None => Vec::new(),
    };
    World::leave();
    if conclusion.has_failed() || left.is_empty() {
        return conclusion.exit_code();
    }
    runner::failed_at_the_end(&[(runner::LEFT, left)])
}

/// Removes the images, ends the daemon; gives what is left of it.
fn last_look(machine: &Arc<Machine>, failed: bool) -> Vec<String> {
    let mut left = Vec::new();
    if !failed {
        let cri = Cri::new(Arc::clone(machine));
        let list = image_rpc!(cri, list_images(v1::ListImagesRequest::default())).unwrap();
        for image in list.images {
            cri.remove_image(&image.id);
        }
        drop(cri);
        let look = || {
            let mut left = machine.daemon.leaks();
            // Stock containerd loses those of networks that fail half way.
            if !machine.is_reference() {
                left.extend(addresses(machine));
            }
            left
        };
        left.extend(leaks::settle(Duration::from_secs(15), look));
    }
    let code = machine.daemon.stop();
    if code != 0 {
        left.push(format!("the daemon ended with code {code} on SIGTERM"));
    }
    left
}

/// Addresses that pods held.
fn addresses(machine: &Machine) -> Vec<String> {
    let dir = machine.world.dir.join("addresses/cit");
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("10."))
        .map(|name| format!("address {name}"))
        .collect()
}
