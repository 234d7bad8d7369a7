//! The table that benchmarks print, and how processes are weighed.

use std::fs;

/// What is shown for both sides.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) values: [Option<f64>; 2],
    pub(crate) unit: &'static str,
}

/// The table; a row is printed as soon as it is known, so that a run that is cut short was not in vain.
pub(crate) struct Table;

// === impl Table ===

impl Table {
    pub(crate) fn begin() -> Self {
        println!(
            "{:<42} {:>12} {:>12} {:>8}  unit",
            "", "Corten", "containerd", "ratio"
        );
        Self
    }

    pub(crate) fn push(&mut self, row: &Row) {
        let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
        let ratio = match row.values {
            [Some(ours), Some(theirs)] if theirs > 0.0 => format!("{:.2}", ours / theirs),
            _ => "-".to_owned(),
        };
        let [ours, theirs] = row.values.map(show);
        println!(
            "{:<42} {ours:>12} {theirs:>12} {ratio:>8}  {}",
            row.what, row.unit
        );
    }
}

/// A field of /proc/<pid>/smaps_rollup, in KiB.
pub(crate) fn rollup(pid: u32, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

pub(crate) fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.and_then(|v| v.parse().ok()).unwrap_or(default)
}
