//! Owns stop signals: the CRI's enum and the names that records and images write (`SIGRTMIN+3`).

use corten_core::{Error, Result};
use corten_protos::runtime::v1::Signal;

const PREFIX: &str = "SIGNAL_";

/// The name of the CRI's signal; empty for the runtime's default.
///
/// # Errors
/// There is no such signal.
pub fn of_cri(signal: i32) -> Result<String> {
    let known = Signal::try_from(signal)
        .map_err(|_| Error::invalid(format!("unknown CRI stop signal {signal}")))?;
    if known == Signal::RuntimeDefault {
        return Ok(String::new());
    }
    let name = known.as_str_name();
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    Ok(name.replacen("PLUS", "+", 1).replacen("MINUS", "-", 1))
}

/// The CRI's signal of a name, with or without its prefix; the runtime's default for one it does not know.
pub fn to_cri(name: &str) -> Signal {
    let name = name.replacen('+', "PLUS", 1).replacen('-', "MINUS", 1);
    let name = name.strip_prefix(PREFIX).unwrap_or(&name);
    Signal::from_str_name(&format!("{PREFIX}{name}")).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for number in 1..=65 {
            let name = of_cri(number).unwrap();
            assert_eq!(to_cri(&name) as i32, number, "{name}");
            assert_eq!(to_cri(&format!("SIGNAL_{name}")) as i32, number, "{name}");
        }
        assert_eq!(of_cri(0).unwrap(), "");
        assert_eq!(of_cri(38).unwrap(), "SIGRTMIN+3");
        assert_eq!(of_cri(64).unwrap(), "SIGRTMAX-1");
        assert!(of_cri(66).is_err() && of_cri(-1).is_err());
        assert_eq!(to_cri("SIGNONE"), Signal::RuntimeDefault);
        assert_eq!(to_cri(""), Signal::RuntimeDefault);
    }
}
