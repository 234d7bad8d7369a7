//! Owns device rules on v2: the list becomes a BPF program attached to the group.
//!
//! Same meaning as v1: everything is denied first, rules are exceptions in order, the last match wins.

use super::v1::{self, DEVICES};
use crate::spec::DeviceRule;
use crate::{Error, Result};
use corten_launch::bpf::{self, Instruction as I};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// One exception; `None` matches any.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// 1 = block, 2 = char.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    /// 1 = mknod, 2 = read, 4 = write.
    access: i32,
}

/// Replaces the group's program.
pub(crate) fn apply(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    let program = compile(&list(rules)?);
    let fail = |e| Error::system(format!("set device rules of {}", dir.display()), e);
    let dir_fd = File::open(dir).map_err(fail)?;
    bpf::attach_device_program(dir_fd.as_fd(), &program).map_err(fail)
}

/// Rules in order, without those that a later one for everything makes void, and with what every container gets.
pub(crate) fn lines(rules: &[DeviceRule]) -> Result<Vec<(bool, String)>> {
    let mut lines: Vec<(bool, String)> = Vec::new();
    for rule in rules {
        lines.push((rule.allow, v1::line(rule)?));
    }
    let all = lines.iter().rposition(|(_, line)| line == "a");
    let lines = lines.split_off(all.unwrap_or(0));
    let open = lines == [(true, "a".to_owned())];
    let defaults = DEVICES
        .iter()
        .filter(|_| !open)
        .map(|d| (true, (*d).to_owned()));
    Ok(lines.into_iter().chain(defaults).collect())
}

fn list(rules: &[DeviceRule]) -> Result<Vec<Rule>> {
    let lines = lines(rules)?;
    lines
        .iter()
        .map(|(allow, line)| parse(*allow, line))
        .collect()
}

fn parse(allow: bool, line: &str) -> Result<Rule> {
    let wrong = || Error::invalid(format!("device rule {line:?}"));
    if line == "a" {
        return Ok(Rule {
            allow,
            kind: None,
            major: None,
            minor: None,
            access: 7,
        });
    }
    let (kind, rest) = line.split_once(' ').ok_or_else(wrong)?;
    let (numbers, access) = rest.split_once(' ').ok_or_else(wrong)?;
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let number = |n: &str| match n {
        "*" => Ok(None),
        n => n.parse().map(Some).map_err(|_| wrong()),
    };
    let bit = |c: char, bit: i32| if access.contains(c) { bit } else { 0 };
    Ok(Rule {
        allow,
        kind: Some(if kind == "b" { 1 } else { 2 }),
        major: number(major)?,
        minor: number(minor)?,
        access: bit('m', 1) | bit('r', 2) | bit('w', 4),
    })
}

/// Last rule first, each right that is asked for decided by the last rule on it, as on v1, where rules on the same
/// device add up: an allowance takes its rights off what is still asked for, and nothing left is a yes; a denial of
/// anything left is a no, and so is the end. The context is { u32 access << 16 | type; u32 major; u32 minor }.
fn compile(rules: &[Rule]) -> Vec<I> {
    let mut program = vec![
        I::load(2, 1, 0),
        I::and(2, 0xffff),
        I::load(3, 1, 0),
        I::shift_right(3, 16),
        I::load(4, 1, 4),
        I::load(5, 1, 8),
    ];
    for rule in rules.iter().rev() {
        let mut tests: Vec<I> = Vec::new();
        for (register, value) in [(2, rule.kind), (4, rule.major), (5, rule.minor)] {
            if let Some(value) = value {
                tests.push(I::skip_unless(register, value));
            }
        }
        let verdict = [I::set(0, i32::from(rule.allow)), I::exit()];
        if rule.access != 7 && rule.allow {
            tests.push(I::and(3, !rule.access));
            tests.push(I::skip_unless(3, 0));
        } else if rule.access != 7 {
            tests.push(I::copy(1, 3));
            tests.push(I::and(1, rule.access));
            tests.push(I::skip_if(1, 0));
        }
        let total = tests.len() + verdict.len();
        for (n, test) in tests.iter_mut().enumerate() {
            test.jump_by((total - n - 1) as i16);
        }
        let always = tests.is_empty();
        program.extend(tests);
        program.extend(verdict);
        if always {
            // The verifier refuses what can never be reached.
            return program;
        }
    }
    program.push(I::set(0, 0));
    program.push(I::exit());
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_before_an_all_rule_is_dropped() {
        let rule = |allow, kind: &str| DeviceRule {
            allow,
            kind: kind.into(),
            ..DeviceRule::default()
        };
        let open = list(&[rule(true, "c"), rule(true, "a")]).expect("valid");
        assert_eq!(open.len(), 1);
        let closed = list(&[rule(true, "c"), rule(false, "a"), rule(true, "b")]).expect("valid");
        assert_eq!(closed.len(), 2 + DEVICES.len());
        assert_eq!(closed.first().map(|r| r.allow), Some(false));
    }

    /// What the program answers, by the same rules in plain words: bit by bit the last rule decides.
    #[test]
    fn rules_on_one_device_add_up() {
        let rule = |allow, access: &str| DeviceRule {
            allow,
            kind: "c".into(),
            major: Some(10),
            minor: Some(200),
            access: access.into(),
        };
        let program = |rules: &[DeviceRule]| compile(&list(rules).expect("valid"));
        let whole = program(&[rule(true, "rw")]);
        let parts = program(&[rule(true, "r"), rule(true, "w")]);
        // Each allowance takes its bits off and asks whether any are left.
        assert!(parts.contains(&I::and(3, !2)) && parts.contains(&I::and(3, !4)));
        assert!(whole.contains(&I::and(3, !6)) && !whole.contains(&I::and(3, !2)));
        assert!(program(&[rule(false, "w")]).contains(&I::and(1, 4)));
    }
}
