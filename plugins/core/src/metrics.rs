//! What plugins tell to Prometheus.

use std::fmt::Write as _;

use async_trait::async_trait;

/// A plugin with figures of its own. Asked at every scrape, so it answers in bounded time, whatever hangs below it.
#[async_trait]
pub trait Source: Send + Sync {
    /// Whole families in the text format: `# HELP`, `# TYPE`, samples. Empty when there is nothing to tell.
    async fn collect(&self) -> String;
}

/// Writes `# HELP` and `# TYPE` of a family.
pub fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value as it stands between its quotes.
pub fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_prometheus_reads() {
        let mut out = String::new();
        family(&mut out, "a_total", "counter", "All of them.");
        assert_eq!(out, "# HELP a_total All of them.\n# TYPE a_total counter\n");
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
