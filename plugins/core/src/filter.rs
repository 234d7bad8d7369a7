//! containerd's filters: `labels."a.b/c"==x,id~=^web`.
//!
//! Grammar: a filter is selectors joined by commas (AND); several filters are alternatives (OR); no filter matches
//! all. A selector is a field path, optionally followed by `==`, `!=` or `~=` and a value; alone it asks for
//! presence. White space between tokens means nothing. Path parts are joined by dots; parts and values may be quoted with `"`, and the value of `~=` may be
//! delimited by `/` or `|` as well. What a path means is decided by the [`Fields`] of the record; the parts that
//! follow a map field are joined with dots, so that `labels.a.b` is the label `a.b`.

use regex::Regex;

use crate::error::{Error, Result};
use crate::labels::Labels;

/// A record that can be filtered.
pub trait Fields {
    /// The value at `path`, or `None` when the field is absent or unknown.
    fn field(&self, path: &[String]) -> Option<String>;
}

/// Looks up `labels.<rest>` style paths.
pub fn map_field(map: &Labels, rest: &[String]) -> Option<String> {
    map.get(&rest.join(".")).cloned()
}

/// Alternatives of conjunctions.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    any: Vec<Vec<Selector>>,
}

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filter {
    /// Matches everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Parses alternatives.
    ///
    /// # Errors
    /// InvalidArgument, naming the filter and the place.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self> {
        let any = filters
            .iter()
            .map(AsRef::as_ref)
            .filter(|f| !f.is_empty())
            .map(|f| Parser { text: f, at: 0 }.selectors())
            .collect::<Result<Vec<_>>>()?;
        // containerd: an empty filter string matches everything.
        if filters.iter().any(|f| f.as_ref().is_empty()) {
            return Ok(Self::all());
        }
        Ok(Self { any })
    }

    /// Whether everything matches.
    pub fn is_all(&self) -> bool {
        self.any.is_empty()
    }

    /// Whether `record` matches one of the alternatives.
    pub fn matches(&self, record: &impl Fields) -> bool {
        self.matches_with(|path| record.field(path))
    }

    /// The same for a record given by its look-up.
    pub fn matches_with(&self, field: impl Fn(&[String]) -> Option<String>) -> bool {
        self.any.is_empty()
            || self.any.iter().any(|all| {
                all.iter().all(|s| {
                    let value = field(&s.path);
                    match (&s.test, value) {
                        (Test::Present, v) => v.is_some(),
                        (Test::Equal(want), Some(v)) => v == *want,
                        (Test::NotEqual(want), Some(v)) => v != *want,
                        // containerd: a field that is absent compares as the empty string, and is unequal.
                        (Test::NotEqual(want), None) => !want.is_empty(),
                        (Test::Matches(re), Some(v)) => re.is_match(&v),
                        (Test::Equal(_) | Test::Matches(_), None) => false,
                    }
                })
            })
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>> {
        let mut out = Vec::new();
        loop {
            out.push(self.selector()?);
            self.skip_space();
            match self.peek() {
                None => return Ok(out),
                Some(',') => self.at += 1,
                Some(c) => return Err(self.error(&format!("unexpected input {c:?}"))),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        self.skip_space();
        let rest = &self.text[self.at..];
        let test = if let Some(op) = ["==", "!=", "~="].iter().find(|op| rest.starts_with(**op)) {
            self.at += 2;
            let value = self.value(*op == "~=")?;
            match *op {
                "==" => Test::Equal(value),
                "!=" => Test::NotEqual(value),
                _ => Test::Matches(
                    regex::RegexBuilder::new(&value)
                        .size_limit(1 << 20)
                        .build()
                        .map_err(|e| self.error(&format!("invalid regular expression: {e}")))?,
                ),
            }
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        self.skip_space();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let text = self.take(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '/'));
        if text.is_empty() {
            Err(self.error("expected field or quoted"))
        } else {
            Ok(text)
        }
    }

    fn value(&mut self, pattern: bool) -> Result<String> {
        self.skip_space();
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(d @ ('/' | '|')) if pattern => self.quoted(d),
            _ => {
                let text = self.take(|c| c != ',' && !c.is_whitespace());
                if text.is_empty() {
                    Err(self.error("expected value or quoted"))
                } else {
                    Ok(text)
                }
            }
        }
    }

    /// Text between two `d`; a backslash makes `d`, `\`, and the usual letters literal.
    fn quoted(&mut self, d: char) -> Result<String> {
        let mut out = String::new();
        self.at += d.len_utf8();
        while let Some(c) = self.peek() {
            self.at += c.len_utf8();
            if c == d {
                return Ok(out);
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let Some(escaped) = self.peek() else { break };
            self.at += escaped.len_utf8();
            match escaped {
                'n' if d == '"' => out.push('\n'),
                't' if d == '"' => out.push('\t'),
                'r' if d == '"' => out.push('\r'),
                e if e == d || (d == '"' && e == '\\') => out.push(e),
                // In patterns every other escape belongs to the regular expression.
                e => out.extend(['\\', e]),
            }
        }
        Err(self.error("quoted literal not terminated"))
    }

    /// White space between tokens means nothing.
    fn skip_space(&mut self) {
        self.take(char::is_whitespace);
    }

    fn take(&mut self, ok: impl Fn(char) -> bool) -> String {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !ok(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn error(&self, why: &str) -> Error {
        Error::invalid(format!(
            "filters: parse error: [{} >|{}|< ]: {why}",
            &self.text[..self.at],
            &self.text[self.at..]
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Record;
    impl Fields for Record {
        fn field(&self, path: &[String]) -> Option<String> {
            let labels = Labels::from([("a.b/c".into(), "x".into()), ("one".into(), "1".into())]);
            match path.first().map(String::as_str)? {
                "name" => Some("docker.io/library/busybox:latest".into()),
                "topic" => Some("/tasks/start".into()),
                "labels" => map_field(&labels, &path[1..]),
                _ => None,
            }
        }
    }

    fn check(filters: &[&str], want: bool) {
        assert_eq!(
            Filter::parse(filters).unwrap().matches(&Record),
            want,
            "{filters:?}"
        );
    }

    #[test]
    fn selectors_match_as_in_containerd() {
        check(&[], true);
        check(&[""], true);
        check(&["name==docker.io/library/busybox:latest"], true);
        check(&["name==busybox"], false);
        check(&["name~=busybox"], true);
        check(&["topic~=|^/tasks/|"], true);
        check(&["topic~=/start$/"], true);
        check(&["labels.one"], true);
        check(&["labels.two"], false);
        check(&["labels.\"a.b/c\"==x"], true);
        check(&["labels.a.b/c==x"], true);
        check(&["labels.one==1,name~=busybox"], true);
        check(&["labels.one==2,name~=busybox"], false);
        check(&["labels.one==2", "name~=busybox"], true);
        check(&["labels.one!=2"], true);
        check(&["labels.two!=2"], true);
        check(&["nothing"], false);
        check(&["labels.one == 1, name ~= busybox "], true);
    }

    #[test]
    fn parse_errors_are_invalid_arguments() {
        for bad in ["==", "a=", "a==", "a==\"x", "a,", "a~=(", "a b"] {
            let e = Filter::parse(&[bad]).unwrap_err();
            assert_eq!(e.kind(), crate::Kind::InvalidArgument, "{bad}: {e}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            if let Ok(f) = Filter::parse(&[text]) {
                let _ = f.matches(&Record);
            }
        }
    }
}
