//! Stop signals: the CRI's numbers, the names in images and records, the kernel's numbers.
//!
//! Records of older daemons may name a signal with or without the prefix that the CRI's enum got in 0.37
//! (`SIGNAL_SIGTERM`, `SIGTERM`); images also say `TERM`, `15` or `SIGRTMIN+3`.

use corten_core::{Error, Result};
use corten_protos::runtime::v1::Signal;

/// What a container gets that says nothing.
pub(super) const DEFAULT: &str = "SIGTERM";
/// SIGKILL.
pub(super) const KILL: u32 = 9;
/// SIGTERM.
pub(super) const TERM: u32 = 15;
/// SIGHUP: the terminal is gone.
pub(super) const HANG_UP: u32 = 1;

const RT_MIN: u32 = 34;
const RT_MAX: u32 = 64;

/// By number less one.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// Other names that are in use.
const ALIASES: [(&str, u32); 6] = [
    ("CLD", 17),
    ("IOT", 6),
    ("POLL", 29),
    ("UNUSED", 31),
    ("RTMIN", RT_MIN),
    ("RTMAX", RT_MAX),
];

/// The kernel's number of a signal that an image or a record names.
///
/// # Errors
/// InvalidArgument: it is none.
pub(super) fn number(name: &str) -> Result<u32> {
    let unknown = || {
        Error::invalid(format!(
            "failed to parse stop signal {name:?}: invalid signal"
        ))
    };
    if let Ok(number) = name.parse::<u32>() {
        return Some(number)
            .filter(|n| (1..=RT_MAX).contains(n))
            .ok_or_else(unknown);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIGNAL_").unwrap_or(&upper);
    let bare = bare.strip_prefix("SIG").unwrap_or(bare);
    if let Some(at) = NAMES.iter().position(|n| *n == bare) {
        return u32::try_from(at + 1).map_err(|_| unknown());
    }
    if let Some((_, number)) = ALIASES.iter().find(|(n, _)| *n == bare) {
        return Ok(*number);
    }
    let offset = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=30).contains(n));
    let plus = bare
        .strip_prefix("RTMIN+")
        .or_else(|| bare.strip_prefix("RTMINPLUS"))
        .and_then(offset)
        .map(|n| RT_MIN + n);
    let minus = bare
        .strip_prefix("RTMAX-")
        .or_else(|| bare.strip_prefix("RTMAXMINUS"))
        .and_then(offset)
        .map(|n| RT_MAX - n);
    plus.or(minus)
        .filter(|n| (RT_MIN..=RT_MAX).contains(n))
        .ok_or_else(unknown)
}

/// What a status says of the signal that a record names; its empty name is the default.
pub(super) fn shown(name: &str) -> Signal {
    let name = if name.is_empty() { DEFAULT } else { name };
    let Ok(number) = number(name) else {
        return Signal::RuntimeDefault;
    };
    let middle = RT_MIN + 15;
    let name = match number {
        RT_MIN => "RTMIN".to_owned(),
        RT_MAX => "RTMAX".to_owned(),
        n if n > RT_MIN && n <= middle => format!("RTMINPLUS{}", n - RT_MIN),
        n if n > middle => format!("RTMAXMINUS{}", RT_MAX - n),
        n => usize::try_from(n)
            .ok()
            .and_then(|n| NAMES.get(n.wrapping_sub(1)))
            .map_or_else(String::new, |n| (*n).to_owned()),
    };
    Signal::from_str_name(&format!("SIGNAL_SIG{name}")).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_every_spelling_are_numbers() {
        for (name, want) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGNAL_SIGTERM", 15),
            ("SIGKILL", 9),
            ("SIGPOLL", 29),
            ("RTMIN+3", 37),
            ("SIGRTMIN+3", 37),
            ("SIGNAL_SIGRTMINPLUS3", 37),
            ("SIGRTMAX-1", 63),
            ("SIGRTMAXMINUS14", 50),
            ("RTMAX", 64),
            ("64", 64),
        ] {
            assert_eq!(number(name).unwrap(), want, "{name}");
        }
        for wrong in ["", "0", "65", "-1", "SIGFOO", "SIGRTMIN+31", "RTMIN+0"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_signal_of_the_cri_survives_the_way_through_a_record() {
        for n in 1..=65 {
            let signal = Signal::try_from(n).unwrap();
            let name = crate::spec::signals::of_cri(n).unwrap();
            assert_eq!(
                number(&shown(&name).as_str_name()["SIGNAL_".len()..]).unwrap(),
                number(&name).unwrap(),
                "{signal:?}"
            );
        }
        assert_eq!(shown(""), Signal::Sigterm);
        assert_eq!(shown("nonsense"), Signal::RuntimeDefault);
        assert_eq!(shown("3"), Signal::Sigquit);
    }
}
