//! Owns limits as properties of a unit, with runc's conversions; the control files get them as well.
//!
//! systemd writes its own idea of a limit whenever it looks at the unit again (a reload, a change by an administrator),
//! so it has to know them. What it has no property for is in the control files alone.

use super::value::Value;
use crate::cgroup::{devices, v2};
use crate::spec::{Cpu, DeviceRule, Resources};
use crate::{Error, Result};

/// Properties with their values.
pub(super) type Properties = Vec<(String, Value)>;

const INFINITY: u64 = u64::MAX;
/// The kernel's, in microseconds.
const PERIOD: u64 = 100_000;

/// The host, as far as it changes what is said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager {
    pub(super) version: u32,
    pub(super) unified: bool,
}

/// systemd knows whole percents of a CPU only: the quota that it would make of this one, for the control file as well.
pub(super) fn rounded(r: &Resources) -> Resources {
    let mut r = r.clone();
    if let Some(cpu) = &mut r.cpu
        && let Some(quota) = cpu.quota.and_then(|q| u64::try_from(q).ok())
        && quota > 0
    {
        let period = cpu.period.filter(|p| *p != 0).unwrap_or(PERIOD);
        let up = u128::from(per_second(quota, period)) * u128::from(period) / 1_000_000;
        // Only ever up, and by less than a percent.
        cpu.quota = i64::try_from(up.max(u128::from(quota))).ok();
    }
    r
}

/// Microseconds of CPU time in a second, in steps of 10 ms.
fn per_second(quota: u64, period: u64) -> u64 {
    let exact = u128::from(quota) * 1_000_000 / u128::from(period.max(1));
    u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(INFINITY - 1)
}

/// Everything that can be said of `r`. Absent fields stay.
pub(super) fn properties(r: &Resources, m: Manager) -> Result<Properties> {
    let mut list = Properties::new();
    let mut say = |name: &str, value: Value| list.push((name.to_owned(), value));
    memory(r, m, &mut say)?;
    let cpu = r.cpu.clone().unwrap_or_default();
    weights(r, &cpu, m, &mut say);
    quota(cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0), m, &mut say);
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        say("TasksMax", tasks(limit));
    }
    set("AllowedCPUs", &cpu.cpus, m, &mut say)?;
    set("AllowedMemoryNodes", &cpu.mems, m, &mut say)?;
    unified(r, m, &mut say)?;
    Ok(list)
}

/// 0 is not a limit to systemd, and 1 is as good: the first process is one.
fn tasks(limit: i64) -> Value {
    Value::U64(match limit {
        ..0 => INFINITY,
        0 => 1,
        n => n.unsigned_abs(),
    })
}

fn amount(n: i64) -> Value {
    Value::U64(u64::try_from(n).unwrap_or(INFINITY))
}

fn memory(r: &Resources, m: Manager, say: &mut impl FnMut(&str, Value)) -> Result<()> {
    let Some(memory) = &r.memory else {
        return Ok(());
    };
    let limit = memory.limit.filter(|l| *l != 0);
    if let Some(limit) = limit {
        let name = if m.unified {
            "MemoryMax"
        } else {
            "MemoryLimit"
        };
        say(name, amount(limit));
    }
    if !m.unified {
        return Ok(());
    }
    if let Some(low) = memory.reservation.filter(|l| *l != 0) {
        say("MemoryLow", amount(low));
    }
    if let Some(swap) = v2::swap(memory)? {
        say(
            "MemorySwapMax",
            Value::U64(swap.parse().unwrap_or(INFINITY)),
        );
    }
    Ok(())
}

fn weights(r: &Resources, cpu: &Cpu, m: Manager, say: &mut impl FnMut(&str, Value)) {
    let shares = cpu.shares.filter(|s| *s != 0);
    if !m.unified {
        if let Some(shares) = shares {
            say("CPUShares", Value::U64(shares));
        }
        let weight = r.block_io.as_ref().and_then(|io| io.weight);
        if let Some(weight) = weight.filter(|w| *w != 0) {
            say("BlockIOWeight", Value::U64(weight.into()));
        }
    } else if cpu.idle == Some(1) && m.version >= 252 {
        // Its word for idle.
        say("CPUWeight", Value::U64(0));
    } else if let Some(weight) = shares.and_then(v2::weight) {
        say("CPUWeight", Value::U64(weight));
    }
}

fn quota(quota: i64, period: u64, m: Manager, say: &mut impl FnMut(&str, Value)) {
    if period != 0 && m.version >= 242 {
        say("CPUQuotaPeriodUSec", Value::U64(period));
    }
    if quota != 0 || period != 0 {
        let period = if period == 0 { PERIOD } else { period };
        let value = match u64::try_from(quota) {
            Ok(quota) if quota > 0 => per_second(quota, period),
            _ => INFINITY,
        };
        say("CPUQuotaPerSecUSec", Value::U64(value));
    }
}

fn set(name: &str, list: &str, m: Manager, say: &mut impl FnMut(&str, Value)) -> Result<()> {
    if !list.is_empty() {
        let mask = mask(list)?;
        if m.version >= 244 {
            say(name, Value::bytes(mask));
        }
    }
    Ok(())
}

/// `0-2,5` as bits, the lowest in the first byte.
fn mask(list: &str) -> Result<Vec<u8>> {
    /// More than any kernel is built for.
    const MAX: usize = 1 << 16;
    let wrong = || Error::invalid(format!("not a list of CPUs or memory nodes: {list:?}"));
    let mut bits: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| n.trim().parse().ok().filter(|n: &usize| *n < MAX);
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        for n in first..=last {
            if bits.len() <= n / 8 {
                bits.resize(n / 8 + 1, 0);
            }
            if let Some(byte) = bits.get_mut(n / 8) {
                *byte |= 1 << (n % 8);
            }
        }
    }
    if bits.is_empty() {
        return Err(wrong());
    }
    Ok(bits)
}

/// The files of `unified` that are properties.
fn unified(r: &Resources, m: Manager, say: &mut impl FnMut(&str, Value)) -> Result<()> {
    let idle = r.unified.get("cpu.idle").is_some_and(|v| v.trim() == "1") && m.version >= 252;
    for (file, value) in &r.unified {
        let value = value.trim();
        let wrong = || {
            Error::invalid(format!(
                "unified resource {file:?} value invalid: {value:?}"
            ))
        };
        let number = || match value {
            "max" => Ok(INFINITY),
            n => n.parse().map_err(|_| wrong()),
        };
        match file.as_str() {
            "cpu.idle" if idle => say("CPUWeight", Value::U64(0)),
            "cpu.weight" if !idle => say("CPUWeight", Value::U64(number()?)),
            "cpu.max" => {
                let (max, period) = value.split_once(' ').unwrap_or((value, ""));
                let period = match period.trim() {
                    "" => PERIOD,
                    p => p.parse().map_err(|_| wrong())?,
                };
                let max = match max {
                    "max" => -1,
                    n => n.parse().map_err(|_| wrong())?,
                };
                quota(max, period, m, say);
            }
            "cpuset.cpus" => set("AllowedCPUs", value, m, say)?,
            "cpuset.mems" => set("AllowedMemoryNodes", value, m, say)?,
            "memory.high" => say("MemoryHigh", Value::U64(number()?)),
            "memory.low" => say("MemoryLow", Value::U64(number()?)),
            "memory.min" => say("MemoryMin", Value::U64(number()?)),
            "memory.max" => say("MemoryMax", Value::U64(number()?)),
            "memory.swap.max" => say("MemorySwapMax", Value::U64(number()?)),
            "pids.max" => say("TasksMax", Value::U64(number()?.max(1))),
            _ => {}
        }
    }
    Ok(())
}

/// What to do when the container runs out of memory; systemd takes it at the start of a unit only.
pub(super) fn oom_policy(r: &Resources, m: Manager) -> Option<(String, Value)> {
    let policy = match r.unified.get("memory.oom.group")?.trim() {
        "0" => "continue",
        "1" => "kill",
        _ => return None,
    };
    (m.version >= 253).then(|| ("OOMPolicy".into(), Value::Str(policy.into())))
}

/// Device rules, for v1 alone: there systemd resets the group's list when it looks at the unit again. On v2 its filter
/// and ours are programs beside each other, and with no rules of its own it attaches none.
///
/// Denials after an allowance of the same devices have no words here; the group's list has them.
pub(super) fn devices(rules: &[DeviceRule]) -> Result<Properties> {
    let known = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut allowed = Vec::new();
    let mut policy = "strict";
    for (allow, line) in devices::lines(rules)? {
        match (allow, line.as_str()) {
            (true, "a") => policy = "auto",
            (true, line) => allowed.extend(device(line, &known)),
            (false, _) => {}
        }
    }
    if policy == "auto" {
        allowed.clear();
    }
    Ok(vec![
        ("DevicePolicy".into(), Value::Str(policy.into())),
        ("DeviceAllow".into(), Value::Array("(ss)".into(), allowed)),
    ])
}

/// `c 1:3 rwm` in systemd's words; `None` where it has none: all minors of a major that no driver has.
fn device(line: &str, known: &str) -> Option<Value> {
    let mut fields = line.split(' ');
    let (kind, numbers, access) = (fields.next()?, fields.next()?, fields.next()?);
    let (major, minor) = numbers.split_once(':')?;
    let (section, class) = match kind {
        "b" => ("Block devices:", "block"),
        _ => ("Character devices:", "char"),
    };
    let name = match (major, minor) {
        ("*", "*") => format!("{class}-*"),
        ("*", _) => return None,
        (major, "*") => {
            let (_, list) = known.split_once(section)?;
            let list = list.lines().skip(1).take_while(|l| !l.is_empty());
            let mut drivers = list.filter_map(|l| l.trim().split_once(' '));
            let (_, driver) = drivers.find(|(number, _)| *number == major)?;
            format!("{class}-{driver}")
        }
        (major, minor) => format!("/dev/{class}/{major}:{minor}"),
    };
    Some(Value::Struct(vec![
        Value::Str(name),
        Value::Str(access.into()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: Manager = Manager {
        version: 252,
        unified: true,
    };
    const V1: Manager = Manager {
        unified: false,
        ..V2
    };

    fn said(json: &str, m: Manager) -> Vec<(String, Value)> {
        let r = Resources::parse(json.as_bytes()).expect("a document");
        properties(&r, m).expect("valid")
    }

    fn check(json: &str, m: Manager, want: &[(&str, u64)]) {
        let want: Vec<_> = want
            .iter()
            .map(|(n, v)| ((*n).to_owned(), Value::U64(*v)))
            .collect();
        assert_eq!(said(json, m), want, "{json}");
    }

    #[test]
    fn limits_become_properties() {
        let memory = r#"{"memory":{"limit":1000,"reservation":500,"swap":1500}}"#;
        check(
            memory,
            V2,
            &[
                ("MemoryMax", 1000),
                ("MemoryLow", 500),
                ("MemorySwapMax", 500),
            ],
        );
        check(memory, V1, &[("MemoryLimit", 1000)]);
        let endless = r#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#;
        let max = u64::MAX;
        check(
            endless,
            V2,
            &[
                ("MemoryMax", max),
                ("MemorySwapMax", max),
                ("TasksMax", max),
            ],
        );
        check(r#"{"pids":{"limit":0}}"#, V2, &[("TasksMax", 1)]);
        check(r#"{"cpu":{"shares":1024}}"#, V2, &[("CPUWeight", 100)]);
        check(r#"{"cpu":{"shares":1024}}"#, V1, &[("CPUShares", 1024)]);
        let idle = r#"{"cpu":{"shares":1024,"idle":1}}"#;
        check(idle, V2, &[("CPUWeight", 0)]);
        check(idle, Manager { version: 251, ..V2 }, &[("CPUWeight", 100)]);
        check(r#"{"blockIO":{"weight":500}}"#, V2, &[]);
        check(
            r#"{"blockIO":{"weight":500}}"#,
            V1,
            &[("BlockIOWeight", 500)],
        );
    }

    #[test]
    fn quotas_are_whole_percents() {
        let percent = |json| match said(json, V2).pop() {
            Some((name, Value::U64(n))) if name == "CPUQuotaPerSecUSec" => n,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            percent(r#"{"cpu":{"quota":50000,"period":100000}}"#),
            500_000
        );
        assert_eq!(percent(r#"{"cpu":{"quota":12345}}"#), 130_000);
        assert_eq!(percent(r#"{"cpu":{"quota":-1}}"#), u64::MAX);
        assert_eq!(percent(r#"{"cpu":{"period":5000}}"#), u64::MAX);
        let r = Resources::parse(br#"{"cpu":{"quota":12345}}"#).expect("a document");
        assert_eq!(rounded(&r).cpu.and_then(|c| c.quota), Some(13_000));
        let r = Resources::parse(br#"{"cpu":{"quota":-1}}"#).expect("a document");
        assert_eq!(rounded(&r), r);
    }

    #[test]
    fn masks_are_little_endian() {
        assert_eq!(mask("0-2, 9").ok(), Some(vec![7, 2]));
        assert_eq!(mask("3").ok(), Some(vec![8]));
        for wrong in ["", "2-1", "x", "-1", "4294967296", ","] {
            assert!(mask(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_become_properties() {
        check(
            r#"{"unified":{"memory.high":"77","pids.max":"0","hugetlb.2MB.max":"1","cpu.weight":"7"}}"#,
            V2,
            &[("CPUWeight", 7), ("MemoryHigh", 77), ("TasksMax", 1)],
        );
        check(
            r#"{"unified":{"cpu.max":"max 50000","memory.max":"max"}}"#,
            V2,
            &[
                ("CPUQuotaPeriodUSec", 50_000),
                ("CPUQuotaPerSecUSec", u64::MAX),
                ("MemoryMax", u64::MAX),
            ],
        );
        let r = Resources::parse(br#"{"unified":{"memory.max":"much"}}"#).expect("a document");
        assert!(properties(&r, V2).is_err());
        let r = Resources::parse(br#"{"unified":{"memory.oom.group":"1"}}"#).expect("a document");
        assert_eq!(oom_policy(&r, V2), None);
        assert!(oom_policy(&r, Manager { version: 253, ..V2 }).is_some());
    }

    #[test]
    fn devices_have_systemd_s_names() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n136 no\n";
        let pair = |a: &str, b: &str| {
            Some(Value::Struct(vec![
                Value::Str(a.into()),
                Value::Str(b.into()),
            ]))
        };
        assert_eq!(device("c 1:3 rwm", known), pair("/dev/char/1:3", "rwm"));
        assert_eq!(device("c *:* m", known), pair("char-*", "m"));
        assert_eq!(device("c 136:* rw", known), pair("char-pts", "rw"));
        assert_eq!(device("b 8:* r", known), pair("block-sd", "r"));
        assert_eq!(device("b 9:* r", known), None);
        let all = DeviceRule {
            allow: true,
            ..DeviceRule::default()
        };
        let list = devices(std::slice::from_ref(&all)).expect("valid");
        let empty = Value::Array("(ss)".into(), Vec::new());
        assert_eq!(list[0].1, Value::Str("auto".into()));
        assert_eq!(list[1].1, empty);
        let list = devices(&[]).expect("valid");
        assert_eq!(list[0].1, Value::Str("strict".into()));
        assert_ne!(list[1].1, empty);
    }
}
