//! The shim alone, driven over its own protocol by a host that is a daemon to it and nothing else. So the tests see every
//! event and every byte of an answer, and can make ten thousand containers in minutes.
//!
//! The stock shim passes them, too (`CORTEN_UNDER_TEST=reference`); what holds for ours alone says so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code"
)]

mod apparmor;
mod budget;
mod container;
mod death;
mod events;
mod fields;
mod host;
mod limits;
mod other;
mod pod;
mod protocol;
mod restore;
mod streams;
mod stress;
mod systemd;

use std::any::Any;
use std::fs;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use host::Host;

type Body = fn(Arc<Host>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tests by their modules and names.
macro_rules! trials {
    ($($module:ident: $($name:ident),+;)+) => {
        vec![$($(
            trial(
                concat!(stringify!($module), "::", stringify!($name)),
                |host| Box::pin($module::$name(host)),
            ),
        )+)+]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !rustix::process::geteuid().is_root() {
        eprintln!("these tests make containers and need root: use `make test`");
        return ExitCode::FAILURE;
    }
    // Each of them is many things at once already.
    arguments.test_threads.get_or_insert(2);
    let trials = trials![
        protocol: ctr_finds_a_shim_by_its_id, a_start_tells_what_it_mounts, daemons_of_1_6_are_served,
            daemons_of_1_7_are_served, shutdown_may_come_at_the_end_only, other_users_are_sent_away;
        fields: what_is_supported_takes_effect, what_is_not_supported_is_refused, hooks_run_in_their_order,
            a_hook_that_takes_too_long_fails_the_create, pipes_belong_to_whom_the_options_say;
        limits: an_update_changes_what_it_names, a_burst_falls_and_rises_with_its_quota;
        apparmor: profiles_confine, an_unknown_profile_is_refused;
        systemd: an_update_goes_through_systemd, pods_are_in_their_slice;
        other: runc_is_driven, debians_runc_is_driven, runc_tells_how_containers_end, runc_gives_terminals,
            runc_cleans_up_after_a_dead_shim;
        restore: a_checkpoint_that_is_none_fails_at_the_start, a_dead_shim_leaves_nothing_of_a_restore;
        pod: a_pod_tells_what_all_of_it_uses, a_client_s_sandbox_leaves_others_alone;
        streams: a_terminal_writes_to_a_logger, a_terminal_writes_to_a_logger_that_says_it_is_ready,
            a_terminal_writes_to_a_file, a_terminal_speaks_over_streams, clients_attach_to_a_log;
        stress: true_containers, true_containers_of_one_shim, true_execs, execs_while_init_exits,
            events_outlive_the_daemon;
        death: a_killed_shim_leaves_nothing, exit_codes_outlive_the_shim,
            a_group_ends_with_the_delete_of_its_first, a_slow_create_holds_up_nobody,
            a_container_out_of_memory_goes_alone, a_frozen_container_can_be_killed,
            a_frozen_container_of_a_dead_shim_goes, a_full_disk_costs_nobody_an_exit;
        budget: shims_keep_their_budget, pods_keep_their_budget, times_are_told;
    ];
    if !arguments.list {
        corten_integration::daemon::sweep();
        host::unpack_root();
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let _ = fs::remove_dir_all(host::shared_root());
    conclusion.exit_code()
}

fn trial(name: &str, body: Body) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be made");
        runtime.block_on(async {
            let host = Arc::new(Host::new().await);
            let outcome = tokio::spawn(body(host.clone())).await;
            let left = match outcome {
                Ok(()) => host.finish().await,
                Err(e) => return Err(Failed::from(text(e.into_panic().as_ref()))),
            };
            if left.is_empty() {
                Ok(())
            } else {
                Err(Failed::from(format!(
                    "left behind:\n  {}",
                    left.join("\n  ")
                )))
            }
        })
    })
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic without text".to_owned())
}
