//! Kubernetes' quantities, as far as bandwidth annotations need them: `10M`, `1.5Gi`, `2e6`.

use corten_core::{Error, Result};

/// Decimals that are looked at; more are an error.
const MAX_DECIMALS: usize = 9;

/// The number, rounded up to a whole one, as Kubernetes does it.
///
/// # Errors
/// InvalidArgument: not a quantity, or beyond 64 bits.
pub fn parse(text: &str) -> Result<i64> {
    value(text).ok_or_else(|| {
        Error::invalid(format!(
            "quantity {text:?}: quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        ))
    })
}

fn value(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + decimals.len() == 0 || decimals.contains('.') || decimals.len() > MAX_DECIMALS
    {
        return None;
    }
    let mantissa: i128 = format!("{whole}{decimals}").parse().ok()?;
    let (numerator, mut denominator) = scale(suffix)?;
    denominator = denominator.checked_mul(10i128.checked_pow(decimals.len().try_into().ok()?)?)?;
    let scaled = mantissa.checked_mul(numerator)?;
    let signed = if negative { -scaled } else { scaled };
    // Away from zero for what is left, as Kubernetes rounds.
    let rounded = if signed % denominator == 0 {
        signed / denominator
    } else {
        signed / denominator + signed.signum()
    };
    rounded.try_into().ok()
}

/// What a suffix multiplies by, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| Some((10i128.pow(power), 1));
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, factor) } else { (factor, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, want) in [
            ("10", 10),
            ("10M", 10_000_000),
            ("1.5k", 1500),
            ("1Ki", 1024),
            ("2e6", 2_000_000),
            ("2E3", 2000),
            ("1500m", 2),
            ("-1500m", -2),
            ("0.1", 1),
            ("+1G", 1_000_000_000),
            (".5Mi", 524_288),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for text in [
            "", "M", "1.2.3", "1MM", "1e", "ten", "1 M", "10E", "-", "1ki", "1e999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
