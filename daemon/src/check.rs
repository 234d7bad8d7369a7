//! `cortend check`: what this host can and cannot do for containers, in plain words.
//!
//! Every probe reads procfs and sysfs or makes a call whose only trace is a file descriptor that is closed again:
//! nothing is mounted, written or started, so it may run beside a serving daemon. What a probe cannot know without
//! trying for real, it does not claim.

mod cgroups;
mod kernel;
mod privileges;
mod programs;
mod storage;

use std::fmt::Write as _;

use anyhow::{Result, bail};

use crate::config::Config;

/// How well the host serves a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// All of it works.
    Ok,
    /// Containers run, with the consequence that the line tells.
    Limited,
    /// Not there; the line tells what is lost.
    Missing,
    /// Not there, and no container runs without it.
    Fatal,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    topic: &'static str,
    verdict: Verdict,
    /// What was found, and the consequence if it is less than ok.
    text: String,
}

impl Line {
    fn ok(topic: &'static str, text: impl Into<String>) -> Self {
        Self {
            topic,
            verdict: Verdict::Ok,
            text: text.into(),
        }
    }

    fn limited(topic: &'static str, text: impl Into<String>) -> Self {
        Self {
            topic,
            verdict: Verdict::Limited,
            text: text.into(),
        }
    }

    fn missing(topic: &'static str, text: impl Into<String>) -> Self {
        Self {
            topic,
            verdict: Verdict::Missing,
            text: text.into(),
        }
    }

    fn fatal(topic: &'static str, text: impl Into<String>) -> Self {
        Self {
            topic,
            verdict: Verdict::Fatal,
            text: text.into(),
        }
    }
}

/// Prints the report. An error, and so exit code 1, only when containers cannot run at all.
pub(crate) fn run(config: &Config) -> Result<()> {
    let sections = [
        ("kernel", kernel::lines()),
        ("cgroups", cgroups::lines()),
        ("privileges", privileges::lines()),
        ("storage", storage::lines(config)),
        ("programs", programs::lines(config)),
    ];
    #[expect(clippy::print_stdout, reason = "printing it is the command")]
    {
        print!("{}", report(&sections));
    }
    let fatal: Vec<&str> = sections
        .iter()
        .flat_map(|(_, lines)| lines)
        .filter(|l| l.verdict == Verdict::Fatal)
        .map(|l| l.topic)
        .collect();
    if fatal.is_empty() {
        return Ok(());
    }
    bail!("containers cannot run on this host: {}", fatal.join(", "))
}

fn report(sections: &[(&str, Vec<Line>)]) -> String {
    let mut out = String::new();
    let wide = sections
        .iter()
        .flat_map(|(_, lines)| lines)
        .map(|l| l.topic.len())
        .max()
        .unwrap_or(0);
    let mut counts = [0usize; 3];
    for (name, lines) in sections {
        let _ = writeln!(out, "{name}");
        for l in lines {
            let (word, count) = match l.verdict {
                Verdict::Ok => ("ok", 0),
                Verdict::Limited => ("limited", 1),
                Verdict::Missing | Verdict::Fatal => ("missing", 2),
            };
            counts[count] += 1;
            let _ = writeln!(out, "  {word:<8} {:<wide$}  {}", l.topic, l.text);
        }
    }
    let _ = writeln!(
        out,
        "{} ok, {} limited, {} missing",
        counts[0], counts[1], counts[2]
    );
    out
}

/// A file's text without its last newline; none when it cannot be read.
fn read(path: impl AsRef<std::path::Path>) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|t| t.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_aligns_and_counts() {
        let sections = [
            (
                "a",
                vec![Line::ok("x", "fine"), Line::limited("longer", "slow")],
            ),
            (
                "b",
                vec![Line::missing("y", "none"), Line::fatal("z", "nothing")],
            ),
        ];
        assert_eq!(
            report(&sections),
            "a\n  ok       x       fine\n  limited  longer  slow\n\
             b\n  missing  y       none\n  missing  z       nothing\n\
             1 ok, 1 limited, 2 missing\n"
        );
    }

    #[test]
    fn every_probe_answers_on_this_host() {
        let config = Config::default();
        for lines in [
            kernel::lines(),
            cgroups::lines(),
            privileges::lines(),
            storage::lines(&config),
            programs::lines(&config),
        ] {
            assert!(!lines.is_empty());
            assert!(
                lines
                    .iter()
                    .all(|l| !l.text.is_empty() && !l.text.contains('\n')),
                "{lines:?}"
            );
        }
    }
}
