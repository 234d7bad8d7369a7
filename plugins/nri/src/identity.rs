//! Who a plugin is: two digits, by which plugins are ordered, and a name.

use corten_core::{Error, Kind, Result};

/// A plugin's index and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) index: String,
    pub(crate) name: String,
}

impl Identity {
    /// Checks a plugin's word on itself.
    pub(crate) fn new(index: &str, name: &str) -> Result<Self> {
        let bad = |what: String| Err(Error::new(Kind::InvalidArgument, what));
        if name.is_empty() {
            return bad("invalid plugin name: name is empty".into());
        }
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_.+".contains(c));
        if let Some(c) = name.chars().find(|c| odd(*c)) {
            return bad(format!(
                "invalid plugin name {name:?}: contains invalid character {c:?}"
            ));
        }
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return bad(format!("invalid plugin index {index:?}, must be 2 digits"));
        }
        Ok(Self {
            index: index.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Reads `IDX-NAME`.
    pub(crate) fn parse(file: &str) -> Result<Self> {
        match file.split_once('-') {
            Some((index, name)) => Self::new(index, name),
            None => Err(Error::new(
                Kind::InvalidArgument,
                format!("invalid plugin name {file:?}, idx-pluginname expected"),
            )),
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}
