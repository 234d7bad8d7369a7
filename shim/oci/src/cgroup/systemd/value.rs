//! Owns values of D-Bus: their types, their bytes, and the text form that property annotations have.
//!
//! Bytes are little-endian and aligned to the start of the message, which is where a [`Writer`] begins. Only types that
//! systemd's unit properties have are here: no dictionaries, descriptors or variants inside of variants.

use crate::{Error, Result};

/// A value with its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(String),
    Path(String),
    /// Type of the elements, and they.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
}

/// Bytes of a message in the making.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

/// Bytes of a received message, read front to back. Everything but what is asked for is an error.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

// === impl Value ===

impl Value {
    #[cfg(test)]
    fn strings(list: impl IntoIterator<Item = String>) -> Self {
        Self::Array("s".into(), list.into_iter().map(Self::Str).collect())
    }

    pub(super) fn bytes(list: impl IntoIterator<Item = u8>) -> Self {
        Self::Array("y".into(), list.into_iter().map(Self::Byte).collect())
    }

    pub(super) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".into(),
            Self::Bool(_) => "b".into(),
            Self::I16(_) => "n".into(),
            Self::U16(_) => "q".into(),
            Self::I32(_) => "i".into(),
            Self::U32(_) => "u".into(),
            Self::I64(_) => "x".into(),
            Self::U64(_) => "t".into(),
            Self::F64(_) => "d".into(),
            Self::Str(_) => "s".into(),
            Self::Path(_) => "o".into(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => {
                let fields: String = fields.iter().map(Self::signature).collect();
                format!("({fields})")
            }
        }
    }

    /// Seconds as microseconds, which is what the bus takes where unit files have seconds.
    pub(super) fn to_microseconds(&self) -> Option<Self> {
        const SECOND: u64 = 1_000_000;
        let whole = |n: u64| n.checked_mul(SECOND);
        let value = match self {
            Self::Byte(n) => whole((*n).into()),
            Self::U16(n) => whole((*n).into()),
            Self::U32(n) => whole((*n).into()),
            Self::U64(n) => whole(*n),
            Self::I16(n) => u64::try_from(*n).ok().and_then(whole),
            Self::I32(n) => u64::try_from(*n).ok().and_then(whole),
            Self::I64(n) => u64::try_from(*n).ok().and_then(whole),
            Self::F64(n) if *n >= 0.0 && *n < 1e13 => Some((*n * 1e6) as u64),
            _ => None,
        };
        value.map(Self::U64)
    }

    /// Reads the text form: `true`, `-5`, `1.5`, `'text'`, `uint64 5`, `@as []`, `['a', 'b']`, `b'bytes'`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut rest = text.trim();
        let value = parse(&mut rest, None).filter(|_| rest.trim().is_empty());
        value.ok_or_else(|| Error::invalid(format!("not a value of D-Bus: {text:?}")))
    }
}

/// Type of a keyword before a value.
fn keyword(word: &str) -> Option<&'static str> {
    Some(match word {
        "boolean" => "b",
        "byte" => "y",
        "int16" => "n",
        "uint16" => "q",
        "int32" | "handle" => "i",
        "uint32" => "u",
        "int64" => "x",
        "uint64" => "t",
        "double" => "d",
        "string" => "s",
        "objectpath" => "o",
        _ => return None,
    })
}

/// One value, of type `wanted` if that is known; `None` is a mistake in the text.
fn parse(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    *rest = rest.trim_start();
    let first = rest.chars().next()?;
    match first {
        '\'' | '"' => {
            let text = quoted(rest)?;
            match wanted {
                None | Some("s") => Some(Value::Str(text)),
                Some("o") => Some(Value::Path(text)),
                _ => None,
            }
        }
        '[' => array(rest, wanted),
        '@' => {
            let (signature, tail) = rest.get(1..)?.split_once(' ')?;
            *rest = tail;
            // Beside the simple types an array of them: nothing else is a property.
            let simple = |s: &str| s.len() == 1 && "ybnqiuxtdso".contains(s);
            let known = simple(signature) || signature.strip_prefix('a').is_some_and(simple);
            parse(
                rest,
                Some(signature)
                    .filter(|_| known && wanted.is_none())?
                    .into(),
            )
        }
        'b' if rest.get(1..2).is_some_and(|q| q == "'" || q == "\"") => {
            *rest = rest.get(1..)?;
            let mut bytes = quoted(rest)?.into_bytes();
            bytes.push(0);
            matches!(wanted, None | Some("ay")).then(|| Value::bytes(bytes))
        }
        _ => word(rest, wanted),
    }
}

/// A bare word: a number, a truth value, or a keyword and what follows it.
fn word(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    let end = rest.find(|c: char| c.is_whitespace() || ",[]'\"".contains(c));
    let (word, tail) = rest.split_at(end.unwrap_or(rest.len()));
    *rest = tail;
    if let Some(signature) = keyword(word) {
        let fits = wanted.is_none_or(|w| w == signature);
        return parse(rest, Some(signature).filter(|_| fits)?.into());
    }
    let guess = match word {
        "true" | "false" => "b",
        w if w.contains(['.', 'e', 'E']) && !w.contains(['x', 'X']) => "d",
        _ => "i",
    };
    number(word, wanted.unwrap_or(guess))
}

fn number(word: &str, signature: &str) -> Option<Value> {
    let (sign, digits) = match word.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, word.strip_prefix('+').unwrap_or(word)),
    };
    let integer = || -> Option<i128> {
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let (radix, digits) = match digits.as_bytes() {
            [b'0', b'x' | b'X', ..] => (16, digits.get(2..)?),
            [b'0', _, ..] => (8, digits.get(1..)?),
            _ => (10, digits),
        };
        i128::from_str_radix(digits, radix).ok().map(|n| sign * n)
    };
    Some(match signature {
        "b" => Value::Bool(match word {
            "true" => true,
            "false" => false,
            _ => return None,
        }),
        "y" => Value::Byte(integer()?.try_into().ok()?),
        "n" => Value::I16(integer()?.try_into().ok()?),
        "q" => Value::U16(integer()?.try_into().ok()?),
        "i" => Value::I32(integer()?.try_into().ok()?),
        "u" => Value::U32(integer()?.try_into().ok()?),
        "x" => Value::I64(integer()?.try_into().ok()?),
        "t" => Value::U64(integer()?.try_into().ok()?),
        "d" => Value::F64(word.parse().ok().filter(|n: &f64| n.is_finite())?),
        _ => return None,
    })
}

fn array(rest: &mut &str, wanted: Option<&str>) -> Option<Value> {
    let mut element = match wanted {
        None => None,
        Some(signature) => Some(signature.strip_prefix('a')?.to_owned()),
    };
    *rest = rest.strip_prefix('[')?;
    let mut list = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(tail) = rest.strip_prefix(']') {
            *rest = tail;
            // An empty one has the type that was said, or none.
            return Some(Value::Array(element?, list));
        }
        // Arrays of arrays are no property.
        if rest.starts_with('[') {
            return None;
        }
        let value = parse(rest, element.as_deref())?;
        element.get_or_insert_with(|| value.signature());
        list.push(value);
        *rest = rest.trim_start();
        if !rest.starts_with(']') {
            *rest = rest.strip_prefix(',')?;
        }
    }
}

/// A string in quotes, with the usual escapes. A NUL cannot be in a string of D-Bus.
fn quoted(rest: &mut &str) -> Option<String> {
    let quote = rest.chars().next()?;
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        let c = match c {
            c if c == quote => {
                *rest = rest.get(at + 1..)?;
                return (!text.contains('\0')).then_some(text);
            }
            '\\' => match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'a' => '\u{7}',
                'v' => '\u{b}',
                'u' => code(&mut chars, 4)?,
                'U' => code(&mut chars, 8)?,
                c => c,
            },
            c => c,
        };
        text.push(c);
    }
    None
}

fn code(chars: &mut impl Iterator<Item = (usize, char)>, digits: usize) -> Option<char> {
    let text: String = chars.take(digits).map(|(_, c)| c).collect();
    u32::from_str_radix(&text, 16)
        .ok()
        .filter(|_| text.len() == digits)
        .and_then(char::from_u32)
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(') => 8,
        _ => 1,
    }
}

fn padding(at: usize, to: usize) -> usize {
    at.next_multiple_of(to) - at
}

// === impl Writer ===

impl Writer {
    pub(super) fn pad(&mut self, to: usize) {
        let missing = padding(self.0.len(), to);
        self.0.resize(self.0.len() + missing, 0);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.pad(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u32(&mut self, n: u32) {
        self.raw(&n.to_le_bytes());
    }

    /// Lengths of what is built here never reach the 128 MiB that a message may have.
    fn length(&mut self, n: usize) {
        self.u32(u32::try_from(n).unwrap_or(u32::MAX));
    }

    pub(super) fn string(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn variant(&mut self, value: &Value) {
        self.signature(&value.signature());
        self.value(value);
    }

    /// An array whose elements `fill` writes, each aligned to `to`.
    pub(super) fn array(&mut self, to: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.pad(to);
        let begin = self.0.len();
        fill(self);
        let size = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(length..length + 4) {
            place.copy_from_slice(&size.to_le_bytes());
        }
    }

    pub(super) fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(n) => self.0.push(*n),
            Value::Bool(yes) => self.u32((*yes).into()),
            Value::I16(n) => self.raw(&n.to_le_bytes()),
            Value::U16(n) => self.raw(&n.to_le_bytes()),
            Value::I32(n) => self.raw(&n.to_le_bytes()),
            Value::U32(n) => self.u32(*n),
            Value::I64(n) => self.raw(&n.to_le_bytes()),
            Value::U64(n) => self.raw(&n.to_le_bytes()),
            Value::F64(n) => self.raw(&n.to_le_bytes()),
            Value::Str(text) | Value::Path(text) => self.string(text),
            Value::Array(element, list) => self.array(alignment(element), |w| {
                for value in list {
                    w.value(value);
                }
            }),
            Value::Struct(fields) => {
                self.pad(8);
                for field in fields {
                    self.value(field);
                }
            }
        }
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(all: &'a [u8], at: usize) -> Self {
        Self { all, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn pad(&mut self, to: usize) {
        self.at += padding(self.at, to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let bytes = self.all.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.pad(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()?;
        let text = self.take(usize::try_from(length).ok()?)?;
        self.take(1)?;
        std::str::from_utf8(text).ok()
    }

    pub(super) fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?;
        let text = self.take(length.into())?;
        self.take(1)?;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_values() {
        let value = |text: &str| Value::parse(text).ok();
        assert_eq!(value("true"), Some(Value::Bool(true)));
        assert_eq!(value(" -5 "), Some(Value::I32(-5)));
        assert_eq!(value("0x10"), Some(Value::I32(16)));
        assert_eq!(value("1.5"), Some(Value::F64(1.5)));
        assert_eq!(
            value("uint64 18446744073709551615"),
            Some(Value::U64(u64::MAX))
        );
        assert_eq!(value("byte 7"), Some(Value::Byte(7)));
        let text = "'it\\'s \\u00e9'";
        assert_eq!(value(text), Some(Value::Str("it's é".into())));
        assert_eq!(value("\"it's\""), Some(Value::Str("it's".into())));
        assert_eq!(value("objectpath '/a'"), Some(Value::Path("/a".into())));
        let strings = Value::strings(["a".to_owned(), "b".to_owned()]);
        assert_eq!(value("['a', 'b']"), Some(strings));
        assert_eq!(value("@as []"), Some(Value::strings([])));
        assert_eq!(
            value("@at [1, 2]").map(|v| v.signature()).as_deref(),
            Some("at")
        );
        assert_eq!(value("b'hi'"), Some(Value::bytes(*b"hi\0")));
        for wrong in [
            "",
            "yes",
            "5 5",
            "[]",
            "['a', 1]",
            "[[1]]",
            "'a",
            "uint64 -1",
            "byte 256",
            "@a{sv} []",
            "'\\u0000'",
            "@as ['a'",
            "-",
            "1e999",
            "5000000000",
            "\\",
            "@",
            "@x",
            "b",
            "[,]",
        ] {
            assert_eq!(value(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        let usec = |text: &str| Value::parse(text).ok()?.to_microseconds();
        assert_eq!(usec("uint64 3"), Some(Value::U64(3_000_000)));
        assert_eq!(usec("1.5"), Some(Value::U64(1_500_000)));
        assert_eq!(usec("-1"), None);
        assert_eq!(usec("'1s'"), None);
        assert_eq!(usec("uint64 18446744073709551615"), None);
    }

    #[test]
    fn values_are_aligned() {
        let mut w = Writer::default();
        w.value(&Value::Byte(1));
        w.value(&Value::U64(2));
        w.value(&Value::strings(["a".into()]));
        assert_eq!(
            w.0,
            [
                1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
                0, // the number at its own alignment
                6, 0, 0, 0, 1, 0, 0, 0, b'a', 0
            ]
        );
        // The padding before the first element is not counted.
        let mut w = Writer::default();
        w.value(&Value::Array("t".into(), vec![Value::U64(1)]));
        assert_eq!(w.0, [8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
