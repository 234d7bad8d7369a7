//! Owns the file that says what classes of block I/O mean: `blockio_config_file` of the tasks service.
//!
//! ```yaml
//! Classes:
//!   slow:
//!     - Weight: 80                  # 10 to 1000, for all devices
//!     - Devices: [/dev/disk/by-id/*SSD*, /dev/vda]
//!       ThrottleReadBps: 60M        # Kubernetes' quantities
//!       ThrottleWriteIOPS: 10k
//! ```
//!
//! The language is that of containerd's (goresctrl): names in any case, later parts of a class win over earlier ones. A part
//! that is wrong is left out with a warning, as are devices that are not there; a file that is wrong as a whole is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use corten_core::{Context as _, Error, Result};
use rustix::fs::{major, minor};
use serde_json::Value;
use tracing::warn;

use super::oci::{BlockIo, ThrottleDevice, WeightDevice};

const WEIGHT: (i64, i64) = (10, 1000);
const RATE: (i64, i64) = (0, i64::MAX);

/// What a part of the file says, or what is wrong with it.
type Parsed<T> = std::result::Result<T, String>;

/// A device by its numbers.
type Device = (i64, i64);

/// The names of a part that are read as quantities.
const QUANTITIES: [&str; 5] = [
    "weight",
    "throttlereadbps",
    "throttlewritebps",
    "throttlereadiops",
    "throttlewriteiops",
];

/// Reads what each class means. Blocks.
///
/// # Errors
/// The file is not readable, no YAML, or not of this form.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, BlockIo>> {
    let what = || format!("read blockio classes from {}", path.display());
    let text = fs::read(path).map_err(Error::from).context(what())?;
    parse(&text).map_err(|e| Error::invalid(format!("{}: {e}", what())))
}

fn parse(text: &[u8]) -> Parsed<BTreeMap<String, BlockIo>> {
    let file: Value = serde_saphyr::from_slice(text).map_err(|e| e.to_string())?;
    let mut classes = BTreeMap::new();
    for (name, value) in fields(file)? {
        if name != "classes" {
            return Err(format!("unknown field {name:?}"));
        }
        for (class, parts) in object(value)? {
            classes.insert(class, meaning(parts)?);
        }
    }
    Ok(classes)
}

/// One class of the file.
fn meaning(parts: Value) -> Parsed<BlockIo> {
    let parts = match parts {
        Value::Null => Vec::new(),
        Value::Array(parts) => parts,
        other => return Err(format!("not a list: {other}")),
    };
    let mut all = BlockIo::default();
    for part in parts {
        let mut given = BTreeMap::new();
        let mut devices = None;
        for (name, value) in fields(part)? {
            match QUANTITIES.iter().find(|known| **known == name) {
                Some(known) => {
                    given.insert(*known, scalar(value)?);
                }
                None if name == "devices" => devices = patterns(value)?,
                None => return Err(format!("unknown field {name:?}")),
            }
        }
        add(&mut all, &given, devices.as_deref());
    }
    Ok(all)
}

/// Adds one part of a class to what it means.
fn add(all: &mut BlockIo, given: &BTreeMap<&str, String>, patterns: Option<&[String]>) {
    let value = |name, limits| {
        let text = given.get(name).filter(|text| !text.is_empty())?;
        let value = within(text, limits);
        if value.is_none() {
            warn!(name, value = %text, "ignoring a blockio parameter that is no quantity or out of range");
        }
        value
    };
    let weight = value("weight", WEIGHT).and_then(|w| u16::try_from(w).ok());
    let rate = |name| value(name, RATE).and_then(|r| u64::try_from(r).ok());
    let rates = [
        (rate("throttlereadbps"), &mut all.throttle_read_bps_device),
        (rate("throttlewritebps"), &mut all.throttle_write_bps_device),
        (rate("throttlereadiops"), &mut all.throttle_read_iops_device),
        (
            rate("throttlewriteiops"),
            &mut all.throttle_write_iops_device,
        ),
    ];
    let Some(patterns) = patterns else {
        all.weight = weight.or(all.weight);
        if rates.iter().any(|(rate, _)| rate.is_some()) {
            warn!("ignoring blockio throttling without devices");
        }
        return;
    };
    let devices = devices(patterns);
    if devices.is_empty() {
        warn!(devices = ?patterns, "ignoring blockio parameters of devices that are not there");
    }
    if weight.is_some() {
        for &(major, minor) in &devices {
            let list = &mut all.weight_device;
            list.retain(|d| (d.major, d.minor) != (major, minor));
            list.push(WeightDevice {
                major,
                minor,
                weight,
                ..WeightDevice::default()
            });
        }
    }
    for (rate, list) in rates {
        let Some(rate) = rate else { continue };
        for &(major, minor) in &devices {
            list.retain(|d| (d.major, d.minor) != (major, minor));
            list.push(ThrottleDevice {
                major,
                minor,
                rate,
                ..ThrottleDevice::default()
            });
        }
    }
}

/// The block devices behind patterns, links followed.
fn devices(patterns: &[String]) -> BTreeSet<Device> {
    let mut found = BTreeSet::new();
    for pattern in patterns {
        let paths: Vec<PathBuf> = match glob::glob(pattern) {
            Ok(paths) => paths.flatten().collect(),
            Err(error) => {
                warn!(%pattern, %error, "ignoring a bad pattern of blockio devices");
                continue;
            }
        };
        for path in paths {
            match fs::metadata(&path) {
                Ok(stat) if stat.file_type().is_block_device() => {
                    let number = stat.rdev();
                    found.insert((major(number).into(), minor(number).into()));
                }
                Ok(_) => warn!(path = %path.display(), "not a block device"),
                Err(error) => warn!(path = %path.display(), %error, "ignoring a blockio device"),
            }
        }
    }
    found
}

fn patterns(value: Value) -> Parsed<Option<Vec<String>>> {
    match value {
        Value::Null => Ok(None),
        Value::Array(list) => list
            .into_iter()
            .map(scalar)
            .collect::<Result<_, _>>()
            .map(Some),
        other => Err(format!("not a list of devices: {other}")),
    }
}

/// Text, however it was written: `80` is as good as `"80"`.
fn scalar(value: Value) -> Parsed<String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Number(n) => Ok(n.to_string()),
        other => Err(format!("neither text nor number: {other}")),
    }
}

fn object(value: Value) -> Parsed<serde_json::Map<String, Value>> {
    match value {
        Value::Null => Ok(serde_json::Map::new()),
        Value::Object(map) => Ok(map),
        other => Err(format!("not a mapping: {other}")),
    }
}

/// The members of a mapping by their names in lower case.
fn fields(value: Value) -> Parsed<impl Iterator<Item = (String, Value)>> {
    Ok(object(value)?
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value)))
}

fn within(text: &str, (least, most): (i64, i64)) -> Option<i64> {
    quantity(text).filter(|value| (least..=most).contains(value))
}

/// A quantity of Kubernetes', rounded up: a decimal number, then `n u m k M G T P E`, `Ki Mi Gi Ti Pi Ei` or an exponent.
fn quantity(text: &str) -> Option<i64> {
    let end = text
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (sign, digits) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0 || digits.len() > 20 {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let binary = |power: u32| Some((1_i128 << (10 * power), 0));
    let (factor, exponent) = match suffix {
        "Ki" => binary(1)?,
        "Mi" => binary(2)?,
        "Gi" => binary(3)?,
        "Ti" => binary(4)?,
        "Pi" => binary(5)?,
        "Ei" => binary(6)?,
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        other => (1, other.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
    };
    let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let value = mantissa.checked_mul(factor)?.checked_mul(sign)?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    let value = match exponent < 0 {
        false => value.checked_mul(power)?,
        // Away from zero.
        true => (value + (power - 1) * value.signum()) / power,
    };
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        for (text, want) in [
            ("80", Some(80)),
            ("60M", Some(60_000_000)),
            ("10k", Some(10_000)),
            ("1.5Ki", Some(1536)),
            ("1Gi", Some(1 << 30)),
            ("2e3", Some(2000)),
            ("1500m", Some(2)),
            ("-1.5", Some(-2)),
            ("+7", Some(7)),
            (".5k", Some(500)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("100E", None),
            ("1e400", None),
            ("", None),
            (".", None),
            ("k", None),
            ("1 k", None),
            ("1KB", None),
            ("1-2", None),
            ("999999999999999999999", None),
        ] {
            assert_eq!(quantity(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_class_is_the_sum_of_its_parts() {
        let text = b"
Classes:
  none:
  slow:
    - Weight: 80
      ThrottleReadBps: 1M
    - weight: '5'
    - devices: [/dev/no-such-*, /dev/null]
      ThrottleReadBps: 1M
  fast:
    - Weight: 500
    - Weight: 1k
";
        let classes = parse(text).unwrap();
        assert_eq!(classes["none"], BlockIo::default());
        // Throttling needs devices that are there, and a weight is 10 at least.
        let weight = |w| BlockIo {
            weight: Some(w),
            ..BlockIo::default()
        };
        assert_eq!(classes["slow"], weight(80));
        assert_eq!(classes["fast"], weight(1000));
        assert!(parse(b"").unwrap().is_empty());
        for wrong in [
            "Classes: [a]",
            "Klasses: {}",
            "Classes: {a: {Weight: 80}}",
            "Classes: {a: [{Wait: 80}]}",
            "Classes: {a: [{Devices: /dev/sda}]}",
            "{",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn later_parts_win_device_by_device() {
        let node = fs::read_dir("/dev")
            .unwrap()
            .flatten()
            .find(|e| e.file_type().is_ok_and(|kind| kind.is_block_device()));
        let Some(node) = node else {
            println!("not tried: this machine has no block device");
            return;
        };
        let path = node.path();
        let number = fs::metadata(&path).unwrap().rdev();
        let device = (i64::from(major(number)), i64::from(minor(number)));
        let text = format!(
            "Classes: {{c: [{{Devices: ['{0}'], Weight: 10, ThrottleReadBps: 1k, ThrottleWriteIOPS: 5}},
                           {{Devices: ['{0}*'], Weight: 20, ThrottleReadBps: 2k}}]}}",
            path.display()
        );
        let class = parse(text.as_bytes()).unwrap().remove("c").unwrap();
        let is_it = |major, minor| (major, minor) == device;
        let weights: Vec<_> = class
            .weight_device
            .iter()
            .filter(|d| is_it(d.major, d.minor))
            .collect();
        assert_eq!(weights.len(), 1);
        assert_eq!(weights[0].weight, Some(20));
        let rates = |list: &[ThrottleDevice]| -> Vec<u64> {
            list.iter()
                .filter(|d| is_it(d.major, d.minor))
                .map(|d| d.rate)
                .collect()
        };
        assert_eq!(rates(&class.throttle_read_bps_device), [2000]);
        assert_eq!(rates(&class.throttle_write_iops_device), [5]);
        assert!(class.throttle_write_bps_device.is_empty());
        assert_eq!(class.weight, None);
    }
}
