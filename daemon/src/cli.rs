//! The command line: containerd's flags and sub-commands, so that a symlink named `containerd` works, and ours.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{self, Config, DEFAULT_PATH};
use crate::{boot, builtins, check, demo, hook, manual, publish};

/// `cortend --version` and the Version service.
pub(crate) const VERSION: &str = concat!("2.4.2+corten.", env!("CARGO_PKG_VERSION"));

/// Corten: a container runtime daemon with containerd's API.
#[derive(Debug, Parser)]
#[command(name = "cortend", version = VERSION, about, disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Path to the configuration file
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Logging level: trace, debug, info, warn, error, fatal, panic
    #[arg(short, long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Address for the GRPC server; the ttrpc server gets ADDRESS.ttrpc
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_ADDRESS",
        hide_env = true
    )]
    address: Option<String>,
    /// Root directory for persistent data
    #[arg(long, global = true)]
    root: Option<PathBuf>,
    /// State directory for execution state
    #[arg(long, global = true)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Information on the daemon's configuration
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Publish an event from standard input (a serialised Any) to the daemon
    Publish {
        /// Namespace to publish to
        #[arg(long)]
        namespace: String,
        /// Topic of the event
        #[arg(long)]
        topic: String,
    },
    /// Run an OCI hook, its arguments filled in from the container's state on standard input
    OciHook {
        /// The program and its arguments; {{id}}, {{bundle}}, {{rootfs}}, {{pid}}, {{status}} and
        /// {{annotation "key"}} are replaced
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "PROGRAM"
        )]
        command: Vec<String>,
    },
    /// Tell what this host can and cannot do for containers, in plain words
    Check,
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// Where to
        dir: PathBuf,
    },
    /// Run a container from an image that this program carries, and show how it went
    Demo,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// See the output of the default configuration
    Default,
    /// See the output of the final main configuration with imported configurations
    Dump,
    /// Migrate the configuration file to the newest version
    Migrate,
}

/// Runs what the command line asks for.
pub(crate) fn run() -> Result<()> {
    let args = Args::parse();
    match &args.command {
        None => {
            let (config, warnings) = effective(&args)?;
            boot::run(config, warnings)
        }
        Some(Command::Config {
            what: ConfigCommand::Default,
        }) => print_config(&Config::default()),
        Some(Command::Config { .. }) => {
            let (config, warnings) = effective(&args)?;
            print_config(&config)?;
            let plugins = builtins::all(&builtins::Shared::default());
            let remarks = boot::remarks(&config, &plugins);
            for text in warnings.iter().chain(&remarks) {
                #[expect(clippy::print_stderr, reason = "standard output is the configuration")]
                {
                    eprintln!("cortend: {text}");
                }
            }
            Ok(())
        }
        Some(Command::Publish { namespace, topic }) => {
            let (config, _) = effective(&args)?;
            publish::run(&config.grpc()?.address, namespace, topic)
        }
        Some(Command::OciHook { command }) => hook::run(command),
        Some(Command::Check) => check::run(&effective(&args)?.0),
        Some(Command::Completion { shell }) => manual::completion(Args::command(), *shell),
        Some(Command::Man { dir }) => manual::pages(Args::command(), dir),
        Some(Command::Demo) => demo::run(),
    }
}

/// The configuration file with the command line over it.
fn effective(args: &Args) -> Result<(Config, Vec<String>)> {
    let path = args.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
    let (mut config, warnings) = config::load(&path, args.config.is_some())?;
    if let Some(level) = &args.log_level {
        config.debug.level.clone_from(level);
    }
    if let Some(root) = &args.root {
        config.root.clone_from(root);
    }
    if let Some(state) = &args.state {
        config.state.clone_from(state);
    }
    if let Some(address) = &args.address {
        let address = address
            .strip_prefix("unix://")
            .unwrap_or(address)
            .to_owned();
        let mut set = |table: &str, value: String| {
            config
                .plugins
                .entry(table.to_owned())
                .or_default()
                .insert("address".into(), value.into());
        };
        set(config::TTRPC_TABLE, format!("{address}.ttrpc"));
        set(config::GRPC_TABLE, address);
    }
    Ok((config, warnings))
}

fn print_config(config: &Config) -> Result<()> {
    let text = config::render(config, &builtins::all(&builtins::Shared::default()))
        .context("write the configuration as TOML")?;
    #[expect(clippy::print_stdout, reason = "printing it is the command")]
    {
        print!("{text}");
    }
    Ok(())
}
