//! When a container is to be started again: the labels `containerd.io/restart.*`.

use corten_core::Labels;

/// `running` or `stopped`: the state that is wanted. A container without it is not looked at.
pub(crate) const STATUS: &str = "containerd.io/restart.status";
/// Where the output of a restarted task goes.
pub(crate) const LOG_URI: &str = "containerd.io/restart.loguri";
/// How often it was restarted.
pub(crate) const COUNT: &str = "containerd.io/restart.count";
/// Set by clients that stop a container on purpose.
pub(crate) const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
const POLICY: &str = "containerd.io/restart.policy";

/// The names that the plugin tells as its capabilities.
pub(crate) const NAMES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

/// The label `containerd.io/restart.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    No,
    /// Also what no policy means.
    Always,
    /// At most so many times; 0 = without end.
    OnFailure(u32),
    UnlessStopped,
}

impl Policy {
    /// The policy of a container.
    ///
    /// # Errors
    /// What is wrong with the label.
    pub(crate) fn of(labels: &Labels) -> Result<Self, String> {
        let text = labels.get(POLICY).map_or("", String::as_str);
        let (name, limit) = match text.split_once(':') {
            Some((name, limit)) => (name, Some(limit)),
            None => (text, None),
        };
        let policy = match name {
            "" | "always" => Self::Always,
            "no" => Self::No,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => {
                let limit = limit.unwrap_or("0");
                let limit = limit
                    .parse()
                    .map_err(|_| format!("invalid max retry count: {limit}"))?;
                return Ok(Self::OnFailure(limit));
            }
            _ => return Err(format!("restart policy {text:?} not supported")),
        };
        match limit {
            Some(_) => Err(format!(
                "restart policy {name:?} not support max retry count"
            )),
            None => Ok(policy),
        }
    }

    /// Whether a container that ended with `exit_status` is to run again.
    pub(crate) fn restarts(self, exit_status: u32, labels: &Labels) -> bool {
        if explicitly_stopped(labels) {
            return false;
        }
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(limit) => exit_status != 0 && (limit == 0 || count(labels) < limit),
        }
    }
}

/// Whether a client stopped the container on purpose. Go's booleans.
pub(crate) fn explicitly_stopped(labels: &Labels) -> bool {
    let text = labels.get(EXPLICITLY_STOPPED).map_or("", String::as_str);
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// How often the container was restarted.
pub(crate) fn count(labels: &Labels) -> u32 {
    labels.get(COUNT).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn policies_are_containerds() {
        for (text, want) in [
            ("", Ok(Policy::Always)),
            ("always", Ok(Policy::Always)),
            ("no", Ok(Policy::No)),
            ("unless-stopped", Ok(Policy::UnlessStopped)),
            ("on-failure", Ok(Policy::OnFailure(0))),
            ("on-failure:3", Ok(Policy::OnFailure(3))),
            ("on-failure:x", Err("invalid max retry count: x".into())),
            (
                "always:3",
                Err("restart policy \"always\" not support max retry count".into()),
            ),
            (
                "sometimes",
                Err("restart policy \"sometimes\" not supported".into()),
            ),
        ] {
            assert_eq!(Policy::of(&labels(&[(POLICY, text)])), want, "{text}");
        }
    }

    #[test]
    fn exits_counts_and_stops_decide() {
        let check = |policy, exit, pairs: &[(&str, &str)], want| {
            let labels = labels(pairs);
            assert_eq!(
                policy_restarts(policy, exit, &labels),
                want,
                "{policy} {exit} {pairs:?}"
            );
        };
        fn policy_restarts(policy: &str, exit: u32, labels: &Labels) -> bool {
            let mut labels = labels.clone();
            labels.insert(POLICY.into(), policy.into());
            Policy::of(&labels).unwrap().restarts(exit, &labels)
        }
        check("always", 0, &[], true);
        check("no", 1, &[], false);
        check("unless-stopped", 0, &[], true);
        check("on-failure", 0, &[], false);
        check("on-failure", 1, &[], true);
        check("on-failure:2", 1, &[(COUNT, "1")], true);
        check("on-failure:2", 1, &[(COUNT, "2")], false);
        for policy in ["always", "unless-stopped", "on-failure"] {
            check(policy, 1, &[(EXPLICITLY_STOPPED, "true")], false);
            check(policy, 1, &[(EXPLICITLY_STOPPED, "false")], true);
        }
    }
}
