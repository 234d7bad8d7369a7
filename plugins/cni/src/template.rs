//! Templates of configuration files, as `conf_template` names them: the part of Go's text/template that such files
//! use.
//!
//! | action | meaning |
//! |---|---|
//! | `{{.PodCIDR}}`, `{{.}}`, `{{$x}}` | a value |
//! | `{{range .Routes}} … {{else}} … {{end}}`, `{{range $x := …}}`, `{{range $i, $x := …}}` | once for each; else for none |
//! | `{{if …}} … {{else if …}} … {{else}} … {{end}}` | empty, 0 and the first index are false |
//! | `{{index .Routes 0}}`, `{{len .Routes}}` | an element, how many |
//! | `{{/* … */}}` | nothing |
//! | `{{- … -}}` | takes the white space beside it |
//!
//! Anything else is an error that names it.

use std::collections::HashMap;

use corten_core::{Error, Result};

/// Deeper nesting is an error.
const MAX_DEPTH: usize = 32;

/// What a template can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    List(Vec<String>),
    Number(usize),
}

/// Fills in the template.
///
/// # Errors
/// InvalidArgument: an action that is not known, an unknown name, a block that does not end.
pub fn render(template: &str, fields: &HashMap<&str, Value>) -> Result<String> {
    let tokens = split(template)?;
    let mut parser = Parser {
        rest: tokens.into_iter().peekable(),
        depth: 0,
    };
    let (nodes, end) = parser.block()?;
    if let Some(end) = end {
        return Err(bad(&format!("unexpected {{{{{end}}}}}")));
    }
    let mut scope = Scope {
        fields,
        variables: Vec::new(),
        dot: None,
    };
    let mut out = String::new();
    scope.run(&nodes, &mut out)?;
    Ok(out)
}

enum Token {
    Text(String),
    Action(String),
}

enum Node {
    Text(String),
    Show(String),
    If(String, Vec<Node>, Vec<Node>),
    Range(Range, Vec<Node>, Vec<Node>),
}

struct Range {
    index: Option<String>,
    item: Option<String>,
    list: String,
}

fn bad(what: &str) -> Error {
    Error::invalid(format!("template: {what}"))
}

fn split(template: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let (mut rest, mut trim) = (template, false);
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = match after
            .strip_prefix("/*")
            .or_else(|| after.strip_prefix("- /*"))
        {
            Some(comment) => {
                let (_, after) = comment
                    .split_once("*/")
                    .ok_or_else(|| bad("comment without end"))?;
                let (end, after) = after
                    .split_once("}}")
                    .ok_or_else(|| bad("action without end"))?;
                (format!("/**/{end}"), after)
            }
            None => {
                let (action, after) = after
                    .split_once("}}")
                    .ok_or_else(|| bad("action without end"))?;
                (action.to_owned(), after)
            }
        };
        let left = action.starts_with("- ");
        let right = action.ends_with(" -");
        let mut text = if trim { text.trim_start() } else { text };
        if left {
            text = text.trim_end();
        }
        tokens.push(Token::Text(text.to_owned()));
        let inner = action.strip_prefix("- ").unwrap_or(&action);
        let inner = inner.strip_suffix(" -").unwrap_or(inner).trim();
        if !inner.starts_with("/**/") {
            tokens.push(Token::Action(inner.to_owned()));
        }
        (rest, trim) = (after, right);
    }
    let text = if trim { rest.trim_start() } else { rest };
    tokens.push(Token::Text(text.to_owned()));
    Ok(tokens)
}

struct Parser {
    rest: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

// === impl Parser ===

impl Parser {
    /// Up to the `end` or `else…` that closes it, which is given back.
    fn block(&mut self) -> Result<(Vec<Node>, Option<String>)> {
        let mut nodes = Vec::new();
        while let Some(token) = self.rest.next() {
            let action = match token {
                Token::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Token::Action(action) => action,
            };
            let (word, arguments) = action.split_once(' ').unwrap_or((&action, ""));
            match word {
                "end" | "else" => return Ok((nodes, Some(action))),
                "if" => nodes.push(self.condition(arguments.trim())?),
                "range" => {
                    let range = Range::parse(arguments)?;
                    let (body, other) = self.branches()?;
                    nodes.push(Node::Range(range, body, other));
                }
                _ => nodes.push(Node::Show(action)),
            }
        }
        Ok((nodes, None))
    }

    fn condition(&mut self, what: &str) -> Result<Node> {
        let (body, other) = self.branches()?;
        Ok(Node::If(what.to_owned(), body, other))
    }

    /// The two sides of an `if` or `range`.
    fn branches(&mut self) -> Result<(Vec<Node>, Vec<Node>)> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(bad("too many blocks in each other"));
        }
        let (body, end) = self.block()?;
        let other = match end.as_deref() {
            Some("end") => Vec::new(),
            Some("else") => match self.block()? {
                (other, Some(end)) if end == "end" => other,
                _ => return Err(bad("{{else}} without {{end}}")),
            },
            Some(chain) => match chain.strip_prefix("else if ") {
                Some(what) => vec![self.condition(what.trim())?],
                None => return Err(bad(&format!("unknown action {{{{{chain}}}}}"))),
            },
            None => return Err(bad("block without {{end}}")),
        };
        self.depth -= 1;
        Ok((body, other))
    }
}

impl Range {
    fn parse(text: &str) -> Result<Self> {
        let Some((names, list)) = text.split_once(":=") else {
            return Ok(Self {
                index: None,
                item: None,
                list: text.trim().to_owned(),
            });
        };
        let names: Vec<String> = names.split(',').map(|n| n.trim().to_owned()).collect();
        if names.iter().any(|n| !n.starts_with('$')) {
            return Err(bad(&format!("{{{{range {text}}}}}")));
        }
        let (index, item) = match names.as_slice() {
            [item] => (None, Some(item.clone())),
            [index, item] => (Some(index.clone()), Some(item.clone())),
            _ => return Err(bad(&format!("{{{{range {text}}}}}"))),
        };
        Ok(Self {
            index,
            item,
            list: list.trim().to_owned(),
        })
    }
}

struct Scope<'a> {
    fields: &'a HashMap<&'a str, Value>,
    variables: Vec<(String, Value)>,
    dot: Option<Value>,
}

// === impl Scope ===

impl Scope<'_> {
    fn run(&mut self, nodes: &[Node], out: &mut String) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Show(what) => match self.value(what)? {
                    Value::Text(text) => out.push_str(&text),
                    Value::Number(n) => out.push_str(&n.to_string()),
                    Value::List(list) => out.push_str(&format!("[{}]", list.join(" "))),
                },
                Node::If(what, body, other) => {
                    let holds = match self.value(what)? {
                        Value::Text(text) => !text.is_empty(),
                        Value::Number(n) => n != 0,
                        Value::List(list) => !list.is_empty(),
                    };
                    self.run(if holds { body } else { other }, out)?;
                }
                Node::Range(range, body, other) => self.repeat(range, body, other, out)?,
            }
        }
        Ok(())
    }

    fn repeat(
        &mut self,
        range: &Range,
        body: &[Node],
        other: &[Node],
        out: &mut String,
    ) -> Result<()> {
        let Value::List(list) = self.value(&range.list)? else {
            return Err(bad(&format!("{} is no list", range.list)));
        };
        if list.is_empty() {
            return self.run(other, out);
        }
        let (known, dot) = (self.variables.len(), self.dot.clone());
        for (n, item) in list.into_iter().enumerate() {
            if let Some(name) = &range.index {
                self.variables.push((name.clone(), Value::Number(n)));
            }
            if let Some(name) = &range.item {
                self.variables
                    .push((name.clone(), Value::Text(item.clone())));
            }
            self.dot = Some(Value::Text(item));
            self.run(body, out)?;
            self.variables.truncate(known);
        }
        self.dot = dot;
        Ok(())
    }

    fn value(&self, what: &str) -> Result<Value> {
        let words: Vec<&str> = what.split_whitespace().collect();
        match words.as_slice() {
            ["len", list] => match self.value(list)? {
                Value::List(list) => Ok(Value::Number(list.len())),
                Value::Text(text) => Ok(Value::Number(text.len())),
                Value::Number(_) => Err(bad(&format!("len of {list}"))),
            },
            ["index", list, at] => {
                let at = match at.parse() {
                    Ok(n) => n,
                    Err(_) => match self.value(at)? {
                        Value::Number(n) => n,
                        _ => return Err(bad(&format!("index {at}"))),
                    },
                };
                match self.value(list)? {
                    Value::List(list) => list.get(at).cloned().map(Value::Text),
                    _ => None,
                }
                .ok_or_else(|| bad(&format!("{what}: out of range")))
            }
            ["."] => self
                .dot
                .clone()
                .ok_or_else(|| bad("{{.}} is not one value")),
            [name] if name.starts_with('$') => {
                // `$` alone is the outermost dot.
                if let Some(field) = name.strip_prefix("$.") {
                    return self.field(field);
                }
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                found
                    .map(|(_, v)| v.clone())
                    .ok_or_else(|| bad(&format!("undefined variable {name}")))
            }
            [name] if name.starts_with('.') => self.field(name.trim_start_matches('.')),
            _ => Err(bad(&format!("unknown action {{{{{what}}}}}"))),
        }
    }

    fn field(&self, name: &str) -> Result<Value> {
        self.fields
            .get(name)
            .cloned()
            .ok_or_else(|| bad(&format!("can't evaluate field {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> HashMap<&'static str, Value> {
        let list = |l: &[&str]| Value::List(l.iter().map(|&s| s.to_owned()).collect());
        HashMap::from([
            ("PodCIDR", Value::Text("10.0.0.0/24".into())),
            ("PodCIDRRanges", list(&["10.0.0.0/24", "fd00::/64"])),
            ("Routes", list(&["0.0.0.0/0", "::/0"])),
            ("None", list(&[])),
        ])
    }

    #[test]
    fn the_documented_template_is_filled_in() {
        let template = r#"{"subnet": "{{.PodCIDR}}",
"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
"routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}"#;
        let want = r#"{"subnet": "10.0.0.0/24",
"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}"#;
        assert_eq!(render(template, &fields()).unwrap(), want);
    }

    #[test]
    fn the_rest_of_the_language_works() {
        let check = |template: &str, want: &str| {
            assert_eq!(render(template, &fields()).unwrap(), want, "{template}");
        };
        check("a {{- .PodCIDR -}} b", "a10.0.0.0/24b");
        check("{{/* {{ .No }} */}}x", "x");
        check("{{range .Routes}}{{.}};{{end}}", "0.0.0.0/0;::/0;");
        check("{{range .None}}x{{else}}none{{end}}", "none");
        check("{{if .None}}a{{else if .Routes}}b{{else}}c{{end}}", "b");
        check("{{len .Routes}} {{index .Routes 1}}", "2 ::/0");
        check(
            "{{range $r := .Routes}}{{$.PodCIDR}} {{end}}",
            "10.0.0.0/24 10.0.0.0/24 ",
        );
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for template in [
            "{{.Nope}}",
            "{{printf \"x\"}}",
            "{{if .Routes}}",
            "{{end}}",
            "{{.PodCIDR",
            "{{index .Routes 7}}",
            "{{range .PodCIDR}}{{end}}",
            "{{$x}}",
            "{{/* x",
            &"{{if .Routes}}".repeat(MAX_DEPTH + 1),
        ] {
            assert!(render(template, &fields()).is_err(), "{template}");
        }
    }
}
