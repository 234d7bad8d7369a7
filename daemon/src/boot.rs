//! From a configuration to a serving daemon, and from a signal to its end.
//!
//! Order: log, folders, plugins, sockets, READY; then a signal, STOPPING, drain. Sockets are bound after the plugins
//! started, so that a client that gets through finds everything (the runtime has reconnected its shims by then).
//! Containers are not touched at the end: their shims live on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use corten_core::kinds;
use corten_registry::{BootOptions, Plugins, Properties, Registration};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::builtins::{Shared, all};
use crate::cli::VERSION;
use crate::config::{Config, METRICS_TABLE, Metrics};
use crate::{host, server};

/// How long running calls may go on after the signal to stop.
const PATIENCE: Duration = Duration::from_secs(3);
/// More workers than this only cost memory.
const MAX_WORKERS: usize = 4;

/// Runs the daemon until a signal ends it.
pub(crate) fn run(config: Config, warnings: Vec<String>) -> Result<()> {
    let begun = Instant::now();
    log_to_stderr(&config)?;
    for text in warnings {
        warn!("{text}");
    }
    info!(version = VERSION, root = %config.root.display(), state = %config.state.display(), "starting cortend");
    host::environment(&config)?;
    host::folders(&config)?;
    host::oom_score(config.oom_score);
    host::cgroup(&config.cgroup.path)?;
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        // Idle blocking threads keep their stacks and malloc arenas: give them back soon.
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let outcome = runtime.block_on(serve(config, begun));
    // Parked calls (Wait, Subscribe) never end by themselves; shims and clients cope with a closed connection.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn serve(config: Config, begun: Instant) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let mut dump = signal(SignalKind::user_defined1()).context("listen to SIGUSR1")?;
    let config = config.with_addresses()?;
    let metrics: Metrics = config.table(METRICS_TABLE)?;
    let shared = Shared {
        counted: !metrics.address.is_empty(),
        ..Shared::default()
    };
    let mut registrations = all(&shared);
    add_proxies(&config, &mut registrations);
    for text in remarks(&config, &registrations) {
        warn!("{text}");
    }
    let options = boot_options(&config, &registrations)?;
    let plugins = Plugins::boot(registrations, options).await?;
    shared.plugins.set(plugins.records().to_vec());
    if plugins.all::<kinds::Grpc>().is_empty() {
        bail!("no gRPC service could be started");
    }
    let facts = server::Facts {
        state: config.state.clone(),
        begun,
        log_trace_id: config.debug.log_trace_id,
        table: shared.calls.clone(),
    };
    let servers = server::Servers::start(&plugins, &facts).await?;
    info!(
        seconds = begun.elapsed().as_secs_f64(),
        "containerd successfully booted"
    );
    notify(&[sd_notify::NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = dump.recv() => log_threads(),
        }
    }
    info!("stopping; running containers go on");
    notify(&[sd_notify::NotifyState::Stopping]);
    servers.drain(PATIENCE).await;
    for (_, nri) in plugins.all::<kinds::Nri>() {
        // Its plugins are told, and those that it started end. It takes no longer than each may take to answer.
        nri.stop().await;
    }
    Ok(())
}

/// The plugins of other processes. One that cannot be is left out: it must not keep the others from starting.
fn add_proxies(config: &Config, registrations: &mut Vec<Registration>) {
    for (name, proxy) in &config.proxy_plugins {
        match corten_proxy::registration(name, proxy.clone()) {
            Err(error) => warn!(%error, "ignoring a proxy plugin"),
            Ok(r) if registrations.iter().any(|other| other.uri() == r.uri()) => {
                warn!(plugin = %r.uri(), "ignoring a proxy plugin: there is a built-in one of that name");
            }
            Ok(r) => registrations.push(r),
        }
    }
}

fn boot_options(config: &Config, registrations: &[Registration]) -> Result<BootOptions> {
    let mut tables: BTreeMap<String, toml::Table> = BTreeMap::new();
    for (uri, table) in &config.plugins {
        let Some(r) = registrations.iter().find(|r| r.uri() == *uri) else {
            info!(plugin = %uri, "config for a plugin that this build does not have");
            continue;
        };
        let mut merged = r.default_config().cloned().unwrap_or_default();
        merged.extend(table.clone());
        let disabled = config.disabled_plugins.contains(uri);
        if let Err(fault) = r.check(&merged)
            && !disabled
        {
            return Err(config.wrong(uri, &fault).into());
        }
        tables.insert(uri.clone(), merged);
    }
    Ok(BootOptions {
        properties: Properties {
            root: config.root.clone(),
            state: config.state.clone(),
            grpc_address: config.grpc()?.address,
            ttrpc_address: config.ttrpc()?.address,
            version: VERSION.to_owned(),
            stream_processors: config.stream_processors.clone(),
            timeouts: config.timeouts()?,
        },
        disabled: config.disabled_plugins.iter().cloned().collect(),
        required: config.required_plugins.clone(),
        config: tables,
    })
}

/// What is to be said of the tables of plugins, a line each: keys that nobody reads, and values of the
/// wrong type.
pub(crate) fn remarks(config: &Config, registrations: &[Registration]) -> Vec<String> {
    let mut all = Vec::new();
    for (uri, table) in &config.plugins {
        match registrations
            .iter()
            .find(|r| r.uri() == *uri)
            .map(|r| r.check(table))
        {
            Some(Ok(unknown)) => {
                all.extend(unknown.iter().map(|key| config.sources.unknown(uri, key)));
            }
            Some(Err(fault)) => all.push(config.sources.explain(uri, &fault)),
            None => {}
        }
    }
    all
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "sd_notify failed");
    }
}

/// SIGUSR1: what each thread is doing, as far as the kernel tells.
fn log_threads() {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return;
    };
    for thread in threads.filter_map(Result::ok) {
        let read = |name: &str| {
            std::fs::read_to_string(thread.path().join(name))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        info!(
            thread = %thread.file_name().to_string_lossy(),
            name = %read("comm"),
            waits_in = %read("wchan"),
            syscall = %read("syscall"),
            "thread"
        );
    }
}

fn log_to_stderr(config: &Config) -> Result<()> {
    let level = match config.debug.level.as_str() {
        "" | "info" => "info",
        "trace" => "trace",
        "debug" => "debug",
        "warn" | "warning" => "warn",
        "error" | "fatal" | "panic" => "error",
        other => {
            bail!("log level {other:?} is not one of trace, debug, info, warn, error, fatal, panic")
        }
    };
    // The libraries below us speak at their own volume.
    let filter = match level {
        "trace" => EnvFilter::new("trace"),
        _ => EnvFilter::new(format!(
            "{level},h2=warn,hyper=warn,hyper_util=warn,reqwest=warn,tower=warn,rustls=warn"
        )),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let set = match config.debug.format.as_str() {
        "" | "text" => builder.with_ansi(false).try_init(),
        "json" => builder.json().flatten_event(true).try_init(),
        other => bail!("log format {other:?} is neither text nor json"),
    };
    set.map_err(|e| anyhow::anyhow!("start logging: {e}"))
}
