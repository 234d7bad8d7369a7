//! Owns the two ways to name a security profile: the message, and the string of old.

use corten_core::{Error, Result};
use corten_protos::runtime::v1::SecurityProfile;
use corten_protos::runtime::v1::security_profile::ProfileType;

/// Begins the string of a profile of the node.
const LOCALHOST: &str = "localhost/";

/// A profile that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Profile {
    RuntimeDefault,
    Unconfined,
    /// A file, or a loaded profile's name.
    Localhost(String),
}

// === impl Profile ===

impl Profile {
    /// What the CRI asks for; the string only counts without the message. `None`: nothing.
    pub(super) fn asked(
        kind: &str,
        message: Option<&SecurityProfile>,
        string: &str,
    ) -> Result<Option<Self>> {
        match (message, string) {
            (Some(message), _) => Self::from_message(kind, message).map(Some),
            (None, "") => Ok(None),
            (None, string) => Self::from_string(string).map(Some),
        }
    }

    /// `runtime/default`, `docker/default`, `unconfined` or `localhost/<what>`.
    pub(super) fn from_string(text: &str) -> Result<Self> {
        match text {
            "" | "runtime/default" | "docker/default" => Ok(Self::RuntimeDefault),
            "unconfined" => Ok(Self::Unconfined),
            text => text
                .strip_prefix(LOCALHOST)
                .map(|name| Self::Localhost(name.to_owned()))
                .ok_or_else(|| Error::invalid(format!("invalid profile {text:?}"))),
        }
    }

    fn from_message(kind: &str, message: &SecurityProfile) -> Result<Self> {
        let name = &message.localhost_ref;
        match ProfileType::try_from(message.profile_type) {
            Ok(ProfileType::Localhost) => Ok(Self::Localhost(
                name.strip_prefix(LOCALHOST).unwrap_or(name).to_owned(),
            )),
            Ok(_) if !name.is_empty() => Err(Error::invalid(format!(
                "{kind} config invalid LocalhostRef must only be set if ProfileType is Localhost"
            ))),
            Ok(ProfileType::RuntimeDefault) => Ok(Self::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Self::Unconfined),
            Err(_) => Err(Error::invalid(format!("{kind} unknown ProfileType"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: i32, name: &str) -> SecurityProfile {
        SecurityProfile {
            profile_type: kind,
            localhost_ref: name.into(),
        }
    }

    #[test]
    fn strings_and_messages_name_profiles() {
        for (text, want) in [
            ("runtime/default", Profile::RuntimeDefault),
            ("docker/default", Profile::RuntimeDefault),
            ("unconfined", Profile::Unconfined),
            ("localhost/a/b", Profile::Localhost("a/b".into())),
        ] {
            assert_eq!(Profile::asked("x", None, text).unwrap(), Some(want));
        }
        assert_eq!(Profile::asked("x", None, "").unwrap(), None);
        assert!(Profile::asked("x", None, "a").is_err());
        let asked = |kind, name| Profile::asked("x", Some(&message(kind, name)), "localhost/old");
        assert_eq!(asked(0, "").unwrap(), Some(Profile::RuntimeDefault));
        assert_eq!(asked(1, "").unwrap(), Some(Profile::Unconfined));
        assert_eq!(
            asked(2, "localhost/n").unwrap(),
            Some(Profile::Localhost("n".into()))
        );
        assert!(asked(0, "n").is_err() && asked(1, "n").is_err() && asked(9, "").is_err());
    }
}
