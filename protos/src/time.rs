//! `google.protobuf.Timestamp` against the clock and against text.
//!
//! Text is what Go prints for a UTC time (`RFC3339Nano`): as many fraction digits as there are, `Z` at the end. containerd puts
//! Go's zero time where nothing happened yet; it is [`GO_ZERO`] here and prints as year 1.

use std::time::{Duration, SystemTime};

use crate::google::protobuf::Timestamp;

/// Go's zero time, 0001-01-01T00:00:00Z.
pub const GO_ZERO: Timestamp = Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// The time by the system's clock.
pub fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Whether nothing happened at this time: it is absent, the epoch itself or Go's zero time.
pub fn is_unset(time: Option<&Timestamp>) -> bool {
    time.is_none_or(|t| *t == GO_ZERO || *t == Timestamp::default())
}

/// Nanoseconds since the epoch, as CRI counts time. Saturates in the years 1677 and 2262.
pub fn unix_nanos(time: &Timestamp) -> i64 {
    time.seconds
        .saturating_mul(NANOS)
        .saturating_add(time.nanos.into())
}

/// The time this many nanoseconds after the epoch.
pub fn from_unix_nanos(nanos: i64) -> Timestamp {
    let rest = i32::try_from(nanos.rem_euclid(NANOS)).expect("a remainder below 1e9");
    Timestamp {
        seconds: nanos.div_euclid(NANOS),
        nanos: rest,
    }
}

/// The time as Go prints it in UTC.
pub fn rfc3339(time: &Timestamp) -> String {
    let (year, month, day) = civil(time.seconds.div_euclid(DAY));
    let second = time.seconds.rem_euclid(DAY);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}");
    if time.nanos > 0 {
        let fraction = format!(".{:09}", time.nanos);
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Reads an RFC 3339 time with any offset and any number of fraction digits; what is finer than a nanosecond is cut off.
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if !separators.iter().all(|&(at, c)| bytes.get(at) == Some(&c)) {
        return None;
    }
    if !matches!(bytes.get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let (year, month, day) = (
        number(text, 0, 4)?,
        number(text, 5, 2)?,
        number(text, 8, 2)?,
    );
    let (h, m, s) = (
        number(text, 11, 2)?,
        number(text, 14, 2)?,
        number(text, 17, 2)?,
    );
    // A leap second (60) counts as the first second of the next minute.
    if h > 23 || m > 59 || s > 60 || !(1..=12).contains(&month) {
        return None;
    }
    let days = days(year, month, day);
    if civil(days) != (year, month, day) {
        return None;
    }
    let rest = text.get(19..)?;
    let (nanos, rest) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(rest) => {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let digits = rest.get(..end).filter(|d| !d.is_empty())?;
            let nanos = digits.bytes().chain(std::iter::repeat(b'0')).take(9);
            (
                nanos.fold(0, |n, d| n * 10 + i32::from(d - b'0')),
                rest.get(end..)?,
            )
        }
    };
    let seconds = days * DAY + h * 3600 + m * 60 + s - offset(rest)?;
    Some(Timestamp { seconds, nanos })
}

/// Seconds east of UTC: `Z`, `+hh:mm` or `-hh:mm`.
fn offset(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = match text.as_bytes() {
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let (h, m) = (number(text, 1, 2)?, number(text, 4, 2)?);
    (h <= 23 && m <= 59).then_some(sign * (h * 3600 + m * 60))
}

fn number(text: &str, at: usize, len: usize) -> Option<i64> {
    let digits = text.get(at..at + len)?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

/// Days from the epoch to a date of the Gregorian calendar. Years begin in March here, so that the leap day is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date this many days after the epoch: the inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

// === impl Timestamp ===

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let (since, before) = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => (after, false),
            Err(e) => (e.duration(), true),
        };
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let nanos = i32::try_from(since.subsec_nanos()).expect("a fraction below 1e9");
        match (before, nanos) {
            (false, _) => Self { seconds, nanos },
            (true, 0) => Self {
                seconds: -seconds,
                nanos,
            },
            (true, _) => Self {
                seconds: -seconds - 1,
                nanos: 1_000_000_000 - nanos,
            },
        }
    }
}

/// Fails for times that the system's clock cannot hold and for fractions out of range.
impl TryFrom<Timestamp> for SystemTime {
    type Error = Timestamp;

    fn try_from(time: Timestamp) -> Result<Self, Timestamp> {
        let nanos = u32::try_from(time.nanos)
            .ok()
            .filter(|n| *n < 1_000_000_000)
            .ok_or(time)?;
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let base = if time.seconds < 0 {
            Self::UNIX_EPOCH.checked_sub(whole)
        } else {
            Self::UNIX_EPOCH.checked_add(whole)
        };
        base.and_then(|t| t.checked_add(Duration::from_nanos(nanos.into())))
            .ok_or(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, seconds: i64, nanos: i32) {
        let time = Timestamp { seconds, nanos };
        assert_eq!(rfc3339(&time), text);
        assert_eq!(parse_rfc3339(text), Some(time));
        let system = SystemTime::try_from(time).unwrap();
        assert_eq!(Timestamp::from(system), time);
    }

    #[test]
    fn text_and_numbers_agree() {
        check("1970-01-01T00:00:00Z", 0, 0);
        check("1969-12-31T23:59:59.5Z", -1, 500_000_000);
        check("2000-02-29T12:34:56.000000001Z", 951_827_696, 1);
        check("2026-11-21T10:40:00.12Z", 1_795_257_600, 120_000_000);
        check("2100-03-01T00:00:00Z", 4_107_542_400, 0);
        check("0001-01-01T00:00:00Z", GO_ZERO.seconds, 0);
        check(
            "9999-12-31T23:59:59.999999999Z",
            253_402_300_799,
            999_999_999,
        );
    }

    #[test]
    fn offsets_and_long_fractions_are_read() {
        let time = Timestamp {
            seconds: 1_795_257_600,
            nanos: 123_456_789,
        };
        for text in [
            "2026-11-21T10:40:00.1234567891Z",
            "2026-11-21T12:40:00.123456789+02:00",
            "2026-11-20t23:10:00.123456789-11:30",
        ] {
            assert_eq!(parse_rfc3339(text), Some(time), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T10:40:00",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T10:40:00.Z",
            "2026-11-21T10:40:00+0200",
            "+026-11-21T10:40:00Z",
            "2026-11-21T10:40:00Zx",
            "2026-1\u{e9}-21T10:40:00Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_comes_back() {
        for day in -146_097..=146_097 {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
    }

    #[test]
    fn nanos_count_from_the_epoch() {
        for nanos in [0, 1, -1, i64::MAX, i64::MIN, 1_795_257_600_120_000_000] {
            let time = from_unix_nanos(nanos);
            assert!((0..1_000_000_000).contains(&time.nanos));
            if nanos != i64::MIN {
                assert_eq!(unix_nanos(&time), nanos);
            }
        }
        assert!(is_unset(None) && is_unset(Some(&GO_ZERO)) && !is_unset(Some(&now())));
    }
}
