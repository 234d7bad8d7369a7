//! `cortend oci-hook PROGRAM ARG...`: an OCI hook whose arguments may name facts of the container.
//!
//! The runtime gives the container's state on standard input. Each argument and each environment variable is a
//! template: `{{id}}`, `{{bundle}}`, `{{rootfs}}`, `{{pid}}`, `{{status}}` and `{{annotation "key"}}` are replaced, then
//! the program takes this one's place. That much of Go's template language is understood, with its trim markers and
//! comments; anything else between braces is an error, as is an unknown name there.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

/// A state larger than this is not one.
const LIMIT: u64 = 4 << 20;

/// The OCI state.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    id: String,
    status: String,
    pid: i64,
    bundle: PathBuf,
    annotations: BTreeMap<String, String>,
}

/// What is needed of config.json.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    root: Root,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
}

/// What templates are filled from.
#[derive(Debug)]
struct Facts {
    state: State,
    rootfs: PathBuf,
}

/// Runs `args` with the state from standard input; returns only to say what failed.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut json = Vec::new();
    std::io::stdin()
        .lock()
        .take(LIMIT)
        .read_to_end(&mut json)
        .context("read the container's state")?;
    let state: State = serde_json::from_slice(&json).context("decode the container's state")?;
    let facts = Facts::of(state)?;
    let args: Vec<String> = args.iter().map(|a| facts.fill(a)).collect::<Result<_>>()?;
    let (program, rest) = args.split_first().context("no program to run")?;
    let mut command = std::process::Command::new(program);
    command.args(rest).env_clear();
    for (name, value) in std::env::vars_os() {
        // What is not text cannot be a template.
        match value.to_str() {
            Some(text) => command.env(&name, facts.fill(text)?),
            None => command.env(&name, &value),
        };
    }
    Err(command.exec()).with_context(|| format!("run {program}"))
}

// === impl Facts ===

impl Facts {
    fn of(state: State) -> Result<Self> {
        let path = state.bundle.join("config.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let spec: Spec =
            serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
        // An absolute path stays itself.
        let rootfs = state.bundle.join(spec.root.path);
        Ok(Self { state, rootfs })
    }

    fn fill(&self, template: &str) -> Result<String> {
        let mut out = String::with_capacity(template.len());
        let mut rest = template;
        while let Some((text, inside)) = rest.split_once("{{") {
            let (action, after) = inside
                .split_once("}}")
                .ok_or_else(|| anyhow!("unclosed action in template {template:?}"))?;
            let (action, trims_before) = match action.strip_prefix("- ") {
                Some(action) => (action, true),
                None => (action, false),
            };
            let (action, trims_after) = match action.strip_suffix(" -") {
                Some(action) => (action, true),
                None => (action, false),
            };
            out.push_str(if trims_before { text.trim_end() } else { text });
            let value = self.value(action.trim());
            out.push_str(&value.with_context(|| format!("template {template:?}"))?);
            rest = if trims_after {
                after.trim_start()
            } else {
                after
            };
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, action: &str) -> Result<String> {
        if action.starts_with("/*") && action.ends_with("*/") {
            return Ok(String::new());
        }
        let (name, argument) = match action.split_once([' ', '\t']) {
            Some((name, argument)) => (name, Some(argument.trim())),
            None => (action, None),
        };
        let shown = |p: &Path| p.to_string_lossy().into_owned();
        let state = &self.state;
        match (name, argument) {
            ("id", None) => Ok(state.id.clone()),
            ("bundle", None) => Ok(shown(&state.bundle)),
            ("rootfs", None) => Ok(shown(&self.rootfs)),
            ("pid", None) => Ok(state.pid.to_string()),
            ("status", None) => Ok(state.status.clone()),
            ("annotation", Some(key)) => {
                let key = unquoted(key)?;
                Ok(state.annotations.get(&key).cloned().unwrap_or_default())
            }
            ("annotation", None) => bail!("annotation needs a key in quotes"),
            ("id" | "bundle" | "rootfs" | "pid" | "status", Some(_)) => {
                bail!("{name} takes no argument")
            }
            _ => bail!("function {name:?} not defined"),
        }
    }
}

/// A string of Go: `"with \"escapes\""` or `` `raw` ``.
fn unquoted(text: &str) -> Result<String> {
    let inside = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(raw) = inside('`').filter(|raw| !raw.contains('`')) {
        return Ok(raw.to_owned());
    }
    let quoted = inside('"').filter(|_| text.len() > 1);
    quoted.with_context(|| format!("{text} is not one string"))?;
    // Go's escapes in a key are JSON's, as far as anybody uses them.
    serde_json::from_str(text).with_context(|| format!("{text} is not one string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            state: State {
                id: "c1".into(),
                status: "created".into(),
                pid: 42,
                bundle: "/run/b".into(),
                annotations: [("a.b/c".to_owned(), "v".to_owned())].into(),
            },
            rootfs: "/run/b/rootfs".into(),
        }
    }

    #[test]
    fn templates_are_filled() {
        let f = facts();
        for (template, want) in [
            ("plain", "plain"),
            ("{{id}}", "c1"),
            ("--pid={{ pid }} {{status}}", "--pid=42 created"),
            ("{{bundle}}:{{rootfs}}", "/run/b:/run/b/rootfs"),
            ("{{annotation \"a.b/c\"}}", "v"),
            ("{{ annotation `a.b/c` }}!", "v!"),
            ("{{annotation \"none\"}}", ""),
            ("a {{- id -}} b", "ac1b"),
            ("{{/* nothing */}}", ""),
            ("}} {", "}} {"),
        ] {
            assert_eq!(f.fill(template).unwrap(), want, "{template}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let f = facts();
        for (template, says) in [
            ("{{id", "unclosed"),
            ("{{nope}}", "function \"nope\" not defined"),
            ("{{id \"x\"}}", "takes no argument"),
            ("{{annotation}}", "needs a key"),
            ("{{annotation a}}", "is not one string"),
            ("{{annotation \"a\" \"b\"}}", "is not one string"),
            ("{{if id}}", "not defined"),
        ] {
            let e = format!("{:#}", f.fill(template).unwrap_err());
            assert!(e.contains(says), "{template}: {e}");
        }
    }

    #[test]
    fn the_root_is_below_the_bundle_unless_it_is_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = |root: &str| {
            let json = format!("{{\"root\":{{\"path\":\"{root}\"}}}}");
            std::fs::write(dir.path().join("config.json"), json).unwrap();
            let state = State {
                bundle: dir.path().into(),
                ..State::default()
            };
            Facts::of(state).unwrap().rootfs
        };
        assert_eq!(rootfs("rootfs"), dir.path().join("rootfs"));
        assert_eq!(rootfs("/r"), Path::new("/r"));
    }
}
