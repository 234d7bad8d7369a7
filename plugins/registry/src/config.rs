//! Config tables decoded as the types that plugins gave for them: what is wrong, and what nobody reads.

use serde::de::DeserializeOwned;

/// A table that is not of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The key below the table, a path with dots; empty when that is not known.
    pub key: String,
    pub message: String,
}

/// A table that is.
#[derive(Debug, Clone)]
pub struct Decoded<C> {
    pub config: C,
    /// Keys that the type does not have, as paths with dots.
    pub unknown: Vec<String>,
}

impl Fault {
    fn of(e: &toml::de::Error) -> Self {
        // The crate tells the key only in its text: a last line "in `a.b`".
        let text = e.to_string();
        let key = text
            .lines()
            .find_map(|l| l.strip_prefix("in `")?.strip_suffix('`'));
        Self {
            key: key.unwrap_or_default().to_owned(),
            message: e.message().trim().to_owned(),
        }
    }
}

/// Decodes `table`.
///
/// # Errors
/// A value is not of the type that its key has.
pub fn decode<C: DeserializeOwned>(table: toml::Table) -> Result<Decoded<C>, Fault> {
    let mut unknown = Vec::new();
    let note = |path: serde_ignored::Path<'_>| {
        // An optional value is a step of its own there.
        unknown.push(path.to_string().replace(".?", ""));
    };
    let config = serde_ignored::deserialize(table, note).map_err(|e| Fault::of(&e))?;
    Ok(Decoded { config, unknown })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Outer {
        count: usize,
        inner: Option<Inner>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Inner {
        flag: bool,
    }

    fn of(text: &str) -> Result<Decoded<Outer>, Fault> {
        decode(toml::from_str(text).unwrap())
    }

    #[test]
    fn keys_that_nobody_reads_are_told_wherever_they_are() {
        let d = of("count = 2\nnone = 1\n[inner]\nflag = true\nfalg = true\n").unwrap();
        assert!(d.config.count == 2 && d.config.inner.unwrap().flag);
        assert_eq!(d.unknown, ["inner.falg", "none"]);
    }

    #[test]
    fn faults_name_their_key() {
        for (text, key) in [
            ("count = 'many'", "count"),
            ("count = -1", "count"),
            ("[inner]\nflag = 1", "inner.flag"),
            ("inner = 1", "inner"),
        ] {
            let fault = of(text).unwrap_err();
            assert_eq!(fault.key, key, "{fault}");
            assert!(fault.message.starts_with("invalid "), "{fault}");
        }
    }
}
