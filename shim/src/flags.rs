//! Owns the command line: Go-style flags (one or two dashes, `-k v` or `-k=v`) in any order, and one action word.

/// The parsed command line. Unset strings are empty, as containerd passes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) namespace: String,
    pub(crate) address: String,
    pub(crate) publish_binary: String,
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) socket: String,
    pub(crate) debug: bool,
    pub(crate) action: Action,
}

/// What this process is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// No action word: be the long-lived server.
    #[default]
    Serve,
    Start,
    Delete,
    /// `-info`
    Info,
    /// `-v`
    Version,
}

// === impl Flags ===

impl Flags {
    /// Parses everything after argv[0].
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut flags = Self::default();
        let mut args = args.into_iter();
        let mut wanted = Vec::new();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                wanted.push(match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "serve" => Action::Serve,
                    other => return Err(format!("unknown action {other:?}")),
                });
                continue;
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let switch = || parse_bool(name, inline.as_deref());
            match name {
                "debug" => flags.debug = switch()?,
                "v" | "version" if switch()? => wanted.push(Action::Version),
                "info" if switch()? => wanted.push(Action::Info),
                "v" | "version" | "info" => {}
                _ => {
                    let slot = flags
                        .text(name)
                        .ok_or_else(|| format!("flag provided but not defined: -{name}"))?;
                    *slot = match inline {
                        Some(value) => value,
                        None => args
                            .next()
                            .ok_or_else(|| format!("flag needs an argument: -{name}"))?,
                    };
                }
            }
        }
        // `-v` and `-info` win over an action word wherever they stand.
        let special = |a: &&Action| matches!(a, Action::Version | Action::Info);
        flags.action = *wanted
            .iter()
            .find(special)
            .or_else(|| wanted.first())
            .unwrap_or(&Action::Serve);
        Ok(flags)
    }

    fn text(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "namespace" => &mut self.namespace,
            "address" => &mut self.address,
            "publish-binary" => &mut self.publish_binary,
            "id" => &mut self.id,
            "bundle" => &mut self.bundle,
            "socket" => &mut self.socket,
            _ => return None,
        })
    }
}

fn parse_bool(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("invalid boolean value {other:?} for -{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_s_own_lines_are_understood() {
        let start = parse(
            "-namespace default -address /run/c.sock -publish-binary /bin/containerd -id a -debug start",
        )
        .unwrap();
        assert_eq!(start.action, Action::Start);
        assert_eq!(
            (start.namespace.as_str(), start.id.as_str(), start.debug),
            ("default", "a", true)
        );
        assert_eq!(start.address, "/run/c.sock");
        assert_eq!(start.publish_binary, "/bin/containerd");
        let delete = parse("-namespace d -id a -bundle /b delete").unwrap();
        assert_eq!(
            (delete.action, delete.bundle.as_str()),
            (Action::Delete, "/b")
        );
    }

    #[test]
    fn order_dashes_and_equals_do_not_matter() {
        for line in [
            "--id=x start --namespace=n",
            "start -id x -namespace n",
            "-id x start -namespace=n",
        ] {
            let flags = parse(line).unwrap();
            assert_eq!(
                (flags.action, flags.id.as_str(), flags.namespace.as_str()),
                (Action::Start, "x", "n")
            );
        }
        assert_eq!(parse("-id x -debug -info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(
            parse("-namespace n -id x").unwrap().action,
            Action::Serve,
            "no action word means serve"
        );
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            parse("-nope").unwrap_err(),
            "flag provided but not defined: -nope"
        );
        assert_eq!(parse("-id").unwrap_err(), "flag needs an argument: -id");
        assert!(parse("-debug=perhaps start").is_err());
        assert!(parse("stop").is_err());
    }
}
