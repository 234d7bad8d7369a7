//! Durations as Go and containerd's config write them: `1h30m`, `250ms`, `1.5h`, `0s`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// Reads a duration; never a negative one. Never panics, however large the number is.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |i| digits + i);
        let seconds = match &rest[digits..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += rest[..digits].parse::<f64>().ok()? * seconds;
        rest = &rest[unit_end..];
    }
    (!text.is_empty())
        .then(|| Duration::try_from_secs_f64(total).ok())
        .flatten()
}

/// Writes whole seconds as `2s`, anything else in milliseconds.
pub fn text(d: Duration) -> String {
    if d.subsec_millis() == 0 {
        format!("{}s", d.as_secs())
    } else {
        format!("{}ms", d.as_millis())
    }
}

/// For `#[serde(with)]`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&text(*d))
}

/// For `#[serde(with)]`.
///
/// # Errors
/// Anything that is not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom(format!("invalid duration {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, want) in [
            ("1h30m", Some(5400.0)),
            ("250ms", Some(0.25)),
            ("1.5h", Some(5400.0)),
            ("0s", Some(0.0)),
            ("0", Some(0.0)),
            ("", None),
            ("5", None),
            ("5x", None),
            ("-1s", None),
            (&format!("{}h", "9".repeat(400)), None),
        ] {
            assert_eq!(parse(text).map(|d| d.as_secs_f64()), want, "{text}");
        }
        assert_eq!(text(Duration::from_millis(100)), "100ms");
        assert_eq!(text(Duration::from_secs(2)), "2s");
    }
}
