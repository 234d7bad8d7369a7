//! Sizes as people write them: `64MiB`, `10G`, `1.5 gb`; every unit is a power of 1024 (go-units RAMInBytes).

use crate::error::{Error, Result};

/// Bytes of `text`.
///
/// # Errors
/// InvalidArgument.
pub fn parse(text: &str) -> Result<u64> {
    let invalid = || Error::invalid(format!("invalid size: '{text}'"));
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let exponent = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(invalid()),
    };
    let bytes = number * 1024_f64.powi(exponent);
    if bytes >= i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary() {
        for (text, want) in [
            ("0", 0),
            ("32", 32),
            ("32b", 32),
            ("32 KB", 32 << 10),
            ("64MiB", 64 << 20),
            ("10G", 10 << 30),
            ("1.5gb", 3 << 29),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for bad in ["", "x", "-1", "1x", "1.2.3", "99999999P"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
