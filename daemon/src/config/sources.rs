//! The files that a configuration came from, kept to say where a value stands.

use std::path::{Path, PathBuf};

use corten_registry::Fault;
use toml::de::{DeTable, DeValue};

/// The files, in the order in which they were merged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources(Vec<(PathBuf, String)>);

/// Where a value stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) path: &'a Path,
    pub(crate) line: usize,
    /// The line itself.
    pub(crate) text: &'a str,
}

// === impl Sources ===

impl Sources {
    pub(super) fn push(&mut self, path: &Path, text: String) {
        self.0.push((path.to_owned(), text));
    }

    /// Where `key` of `table` was set last; the table of a plugin has its URI for a name.
    ///
    /// In a file of an older version it may stand in another table: then it is the key of that name, best in a table
    /// whose name says the same.
    pub(crate) fn place(&self, table: &str, key: &str) -> Option<Place<'_>> {
        let exact = match table {
            "" => key.to_owned(),
            _ => format!("plugins.{table}.{key}"),
        };
        let kin = format!(".{}.", table.rsplit('.').next().unwrap_or_default());
        let rank = |path: &str| {
            let same = path == exact;
            let end = path == key || path.ends_with(&format!(".{key}"));
            match (same, end) {
                (true, _) => 3,
                (_, true) if format!(".{path}").contains(&kin) => 2,
                (_, true) => 1,
                _ => 0,
            }
        };
        let mut best = None;
        for (path, text) in self.0.iter().rev() {
            let Ok(root) = DeTable::parse(text) else {
                continue;
            };
            each(root.get_ref(), "", &mut |name, start| {
                let found = rank(name);
                if found > best.as_ref().map_or(0, |(rank, _)| *rank) {
                    best = Some((found, Place::at(path, text, start)));
                }
            });
        }
        best.map(|(_, place)| place)
    }

    /// A fault with the place of its value, as far as there is one.
    pub(crate) fn explain(&self, table: &str, fault: &Fault) -> String {
        match self.place(table, &fault.key) {
            Some(p) => format!("{}: {}", p.path.display(), p.explain(&fault.message)),
            None => format!("{table}: {} in `{}`", fault.message, fault.key),
        }
    }

    /// The warning for a key of `table` that nobody reads.
    pub(crate) fn unknown(&self, table: &str, key: &str) -> String {
        let mut text = "ignoring unknown key in TOML".to_owned();
        if !table.is_empty() {
            text.push_str(&format!(" for plugin {table}"));
        }
        text.push_str(&format!(": {key}"));
        if let Some(p) = self.place(table, key) {
            text.push_str(&format!(" ({}: line {})", p.path.display(), p.line));
        }
        text
    }
}

// === impl Place ===

impl<'a> Place<'a> {
    /// The place of the byte at `start`.
    pub(super) fn at(path: &'a Path, text: &'a str, start: usize) -> Self {
        let before = &text[..start.min(text.len())];
        let begin = before.rfind('\n').map_or(0, |i| i + 1);
        Self {
            path,
            line: before.matches('\n').count() + 1,
            text: text[begin..].lines().next().unwrap_or_default().trim(),
        }
    }

    /// `message` with the line, without the file.
    pub(super) fn explain(&self, message: &str) -> String {
        format!("line {}: {message}: `{}`", self.line, self.text)
    }
}

/// All values below a table, by path.
fn each(table: &DeTable<'_>, above: &str, visit: &mut dyn FnMut(&str, usize)) {
    for (key, value) in table {
        let path = match above {
            "" => key.get_ref().to_string(),
            _ => format!("{above}.{}", key.get_ref()),
        };
        visit(&path, key.span().start);
        if let DeValue::Table(inner) = value.get_ref() {
            each(inner, &path, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[&str]) -> Sources {
        let name = |i: usize| PathBuf::from(format!("/{i}.toml"));
        let files = files.iter().enumerate();
        Sources(files.map(|(i, t)| (name(i), (*t).to_owned())).collect())
    }

    #[test]
    fn the_last_file_that_sets_a_key_is_its_place() {
        let s = sources(&[
            "version = 4\n[plugins.\"a.b\"]\n# x\nkey = 1\n[plugins.\"a.b\".inner]\nflag = 2\n",
            "[plugins.\"a.b\"]\nkey = 'x'  # here\n[plugins.other]\nflag = 1\n",
        ]);
        let at = |table, key| s.place(table, key).map(|p| (p.path.to_owned(), p.line));
        assert_eq!(at("a.b", "key"), Some(("/1.toml".into(), 2)));
        assert_eq!(at("a.b", "inner.flag"), Some(("/0.toml".into(), 6)));
        assert_eq!(at("", "version"), Some(("/0.toml".into(), 1)));
        assert_eq!(at("a.b", "nowhere"), None);
        let fault = Fault {
            key: "key".into(),
            message: "wrong".into(),
        };
        assert_eq!(
            s.explain("a.b", &fault),
            "/1.toml: line 2: wrong: `key = 'x'  # here`"
        );
    }

    #[test]
    fn keys_of_older_versions_are_found_in_their_old_tables() {
        let s = sources(&["version = 2\n[debug]\naddress = 1\n[grpc]\naddress = 2\n"]);
        let place = s.place("io.containerd.server.v1.grpc", "address");
        assert_eq!(place.unwrap().text, "address = 2");
    }
}
