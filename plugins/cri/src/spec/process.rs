//! Owns the process: arguments, environment, working directory, from the CRI's config and the image's.
//!
//! Environment, a later word for a name before an earlier one: PATH, TERM of a terminal, HOSTNAME, then the image's, then
//! the CRI's. An entry of the image without `=` takes a name away and never brings the daemon's own value in. The image's
//! and the CRI's entries are all kept, as containerd keeps them: engines take the last of a name.

use corten_core::{Error, Result};
use corten_protos::runtime::v1::{ContainerConfig, KeyValue};
use serde::Deserialize;
use serde_json::Value;

use super::defaults::PATH;
use super::oci::Process;

/// What an image says of the containers made from it: the `config` of its configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageConfig {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    /// Paths that are volumes.
    pub volumes: Vec<String>,
    pub stop_signal: String,
}

/// The same as JSON has it: any of it may be null.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Document {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<std::collections::BTreeMap<String, Value>>,
    stop_signal: Option<String>,
}

// === impl ImageConfig ===

impl ImageConfig {
    /// From an image's configuration, as its blob is.
    ///
    /// # Errors
    /// It is not one.
    pub fn from_json(blob: &[u8]) -> Result<Self> {
        let blob: Value = serde_json::from_slice(blob)
            .map_err(|e| Error::invalid(format!("parse the image's configuration: {e}")))?;
        Self::from_value(&blob["config"])
    }

    /// From the `config` of an image's configuration; null is empty.
    ///
    /// # Errors
    /// It is not one.
    pub fn from_value(config: &Value) -> Result<Self> {
        let read: Option<Document> = Option::deserialize(config)
            .map_err(|e| Error::invalid(format!("read the image's configuration: {e}")))?;
        let read = read.unwrap_or_default();
        Ok(Self {
            user: read.user.unwrap_or_default(),
            env: read.env.unwrap_or_default(),
            entrypoint: read.entrypoint.unwrap_or_default(),
            cmd: read.cmd.unwrap_or_default(),
            working_dir: read.working_dir.unwrap_or_default(),
            volumes: read.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: read.stop_signal.unwrap_or_default(),
        })
    }
}

/// Fills in what a container runs. `hostname` is its pod's.
pub(super) fn of_container(
    process: &mut Process,
    config: &ContainerConfig,
    image: &ImageConfig,
    hostname: &str,
) -> Result<()> {
    process.args = args(config, image)?;
    process.no_new_privileges = false;
    let dirs = [&config.working_dir, &image.working_dir];
    if let Some(dir) = dirs.into_iter().find(|dir| !dir.is_empty()) {
        process.cwd.clone_from(dir);
    }
    override_env(&mut process.env, &[PATH.to_owned()]);
    if config.tty {
        process.terminal = true;
        process.env.push("TERM=xterm".into());
    }
    override_env(&mut process.env, &[format!("HOSTNAME={hostname}")]);
    let own = config.envs.iter().map(entry);
    let both: Vec<String> = image.env.iter().cloned().chain(own).collect();
    override_env(&mut process.env, &both);
    check(process)
}

/// Fills in what a pause container runs.
pub(super) fn of_pause(process: &mut Process, image: &ImageConfig) -> Result<()> {
    process.args = [&image.entrypoint[..], &image.cmd].concat();
    if process.args.is_empty() {
        return Err(Error::invalid(
            "invalid empty entrypoint and cmd in the pause image's config",
        ));
    }
    override_env(&mut process.env, &image.env);
    if !image.working_dir.is_empty() {
        process.cwd.clone_from(&image.working_dir);
    }
    check(process)
}

/// A command takes the place of the image's entrypoint and of its arguments, arguments only that of its arguments.
fn args(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (mut command, mut args) = (&config.command[..], &config.args[..]);
    if command.is_empty() {
        if args.is_empty() {
            args = &image.cmd;
        }
        if image.entrypoint != [""] {
            command = &image.entrypoint;
        }
    }
    if command.is_empty() && args.is_empty() {
        return Err(Error::new(
            corten_core::Kind::Unknown,
            "no command specified",
        ));
    }
    Ok([command, args].concat())
}

fn entry(env: &KeyValue) -> String {
    format!("{}={}", env.key, String::from_utf8_lossy(&env.value))
}

/// Puts `over` into `env`: in place of an entry of that name that was there before, or behind all.
pub(super) fn override_env(env: &mut Vec<String>, over: &[String]) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let known: Vec<String> = env.iter().map(|e| name(e)).collect();
    for entry in over {
        // The last of those that were there before; what this call adds does not count.
        let at = known.iter().rposition(|n| *n == name(entry));
        match (at, entry.contains('=')) {
            (Some(at), true) => env[at].clone_from(entry),
            (Some(at), false) => env[at].clear(),
            (None, true) => env.push(entry.clone()),
            (None, false) => {}
        }
    }
    env.retain(|entry| !entry.is_empty());
}

/// No text that execve cannot take.
fn check(process: &Process) -> Result<()> {
    let all = process
        .args
        .iter()
        .chain(&process.env)
        .chain([&process.cwd]);
    match all.into_iter().any(|text| text.contains('\0')) {
        true => Err(Error::invalid(
            "a NUL in arguments, environment or working directory",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_arguments_override_the_image_s() {
        let check = |command: &str, more: &str, entrypoint: &str, cmd: &str, want: &str| {
            let config = ContainerConfig {
                command: words(command),
                args: words(more),
                ..ContainerConfig::default()
            };
            let image = ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            };
            match args(&config, &image) {
                Ok(got) => assert_eq!(got.join(" "), want),
                Err(e) => assert_eq!(e.to_string(), want),
            }
        };
        check("", "", "ep", "cmd", "ep cmd");
        check("", "a b", "ep", "cmd", "ep a b");
        check("c", "", "ep", "cmd", "c");
        check("c", "a", "ep", "cmd", "c a");
        check("", "", "", "cmd x", "cmd x");
        check("", "", "", "", "no command specified");
        let blank = ImageConfig {
            entrypoint: vec![String::new()],
            cmd: words("cmd"),
            ..ImageConfig::default()
        };
        assert_eq!(args(&ContainerConfig::default(), &blank).unwrap(), ["cmd"]);
    }

    #[test]
    fn later_words_win_and_nothing_of_the_daemon_gets_in() {
        let config = ContainerConfig {
            command: words("c"),
            tty: true,
            envs: vec![
                KeyValue {
                    key: "A".into(),
                    value: b"2".to_vec(),
                },
                KeyValue {
                    key: "HOSTNAME".into(),
                    value: vec![0xff],
                },
            ],
            ..ContainerConfig::default()
        };
        let image = ImageConfig {
            env: words("A=1 HOME TERM *"),
            working_dir: "/w".into(),
            ..ImageConfig::default()
        };
        let mut process = Process::default();
        of_container(&mut process, &config, &image, "pod").unwrap();
        assert_eq!(process.env, [PATH, "HOSTNAME=\u{fffd}", "A=1", "A=2"]);
        assert_eq!((process.cwd.as_str(), process.terminal), ("/w", true));
    }

    #[test]
    fn a_nul_is_refused() {
        let config = ContainerConfig {
            command: vec!["a\0b".into()],
            ..ContainerConfig::default()
        };
        let mut process = Process::default();
        assert!(of_container(&mut process, &config, &ImageConfig::default(), "h").is_err());
    }

    #[test]
    fn images_configurations_may_hold_nulls() {
        let blob =
            br#"{"config":{"User":"u","Env":null,"Cmd":["c"],"Volumes":{"/v":{}},"Labels":null}}"#;
        let config = ImageConfig::from_json(blob).unwrap();
        assert_eq!(
            (config.user.as_str(), config.volumes.as_slice()),
            ("u", &["/v".to_owned()][..])
        );
        assert_eq!(
            ImageConfig::from_json(b"{}").unwrap(),
            ImageConfig::default()
        );
        assert!(ImageConfig::from_json(b"x").is_err());
        assert!(ImageConfig::from_json(br#"{"config":{"Env":"x"}}"#).is_err());
        assert!(of_pause(&mut Process::default(), &ImageConfig::default()).is_err());
    }
}
