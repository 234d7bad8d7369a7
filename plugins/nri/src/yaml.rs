//! The one YAML document that NRI puts into annotations: a list of strings.

/// Reads `[a, "b"]`, `- a` lines, or nothing. None for what is no list of strings.
pub(crate) fn strings(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if matches!(text, "" | "null" | "~") {
        return Some(Vec::new());
    }
    if let Some(inner) = text.strip_prefix('[') {
        return flow(inner.strip_suffix(']')?);
    }
    let lines = text.lines().filter(|l| !l.trim().is_empty());
    lines
        .map(|l| match l.trim_start().strip_prefix('-') {
            Some(rest) if rest.starts_with([' ', '\t']) => scalar(rest),
            _ => None,
        })
        .collect()
}

/// The inside of brackets; a comma may follow the last.
fn flow(text: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => rest[1..].find(quote)? + 2,
            _ => rest.find(',').unwrap_or(rest.len()),
        };
        out.push(scalar(&rest[..end])?);
        rest = rest[end..].trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.is_empty() => {}
            None => return None,
        }
    }
    Some(out)
}

/// One plain or quoted string; escapes are for none of the characters of a plugin's name.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            let inner = inner.strip_suffix(quote)?;
            return (!inner.contains([quote, '\\'])).then(|| inner.to_owned());
        }
    }
    let strange = text.is_empty() || text.contains(['[', ']', '{', '}', '"', '\'', '#', '&', '*']);
    (!strange && !text.contains(": ") && !text.ends_with(':')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_strings_are_read_and_nothing_else() {
        let check = |text: &str, want: Option<&[&str]>| {
            let want = want.map(|w| w.iter().map(|s| (*s).to_owned()).collect());
            assert_eq!(strings(text), want, "{text:?}");
        };
        check("", Some(&[]));
        check("[]", Some(&[]));
        check("[ a, \"10-b\" , 'c',]", Some(&["a", "10-b", "c"]));
        check("- a\n- \"b\"\n", Some(&["a", "b"]));
        check("  - a\n  - b", Some(&["a", "b"]));
        for bad in [
            "a",
            "[a",
            "a: b",
            "- a: b",
            "[[a]]",
            "[\"a]",
            "-a",
            "[\"a\" b]",
            "- ",
        ] {
            check(bad, None);
        }
    }
}
