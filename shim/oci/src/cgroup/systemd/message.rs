//! Owns messages of D-Bus as systemd's private socket carries them: calls out; answers, errors and signals in.
//!
//! There is no bus on that socket: no names, no Hello, no match rules. systemd sends its signals to every connection.
//! Nothing here reads or writes; [`Incoming::take`] cuts one message off what has been received.

use super::value::{Reader, Value, Writer};
use crate::{Error, Result};

/// What a client says before its first message. The server's answer is one line that begins with `OK`; only root may.
pub const GREETING: &[u8] = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n";

/// No answer of systemd's comes near that; the bus's own bound is 128 MiB.
const MAX_MESSAGE: usize = 4 << 20;

const DESTINATION: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A call of the manager.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    interface: &'static str,
    member: &'static str,
    body: Vec<Value>,
    /// Properties, which come after the other arguments as `a(sv)`, and whether `a(sa(sv))` follows.
    properties: Option<(Vec<(String, Value)>, bool)>,
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// Answer to call number `to`. `text` is its first string or object path, also inside of a variant.
    Answer { to: u32, text: String },
    /// Its refusal.
    Refusal { to: u32, name: String, text: String },
    /// A job is over: its object path and how it ended.
    JobRemoved { job: String, result: String },
    /// Anything else.
    Other,
}

// === impl Call ===

impl Call {
    fn new(member: &'static str, body: Vec<Value>) -> Self {
        Self {
            interface: MANAGER,
            member,
            body,
            properties: None,
        }
    }

    /// Starts a transient unit; the answer is the job.
    pub(super) fn start(unit: &str, properties: Vec<(String, Value)>) -> Self {
        let body = vec![Value::Str(unit.into()), Value::Str("replace".into())];
        Self {
            properties: Some((properties, true)),
            ..Self::new("StartTransientUnit", body)
        }
    }

    /// Stops a unit; the answer is the job.
    pub fn stop(unit: &str) -> Self {
        let body = vec![Value::Str(unit.into()), Value::Str("replace".into())];
        Self::new("StopUnit", body)
    }

    /// Forgets that a unit failed, so that its name is free again.
    pub fn reset_failed(unit: &str) -> Self {
        Self::new("ResetFailedUnit", vec![Value::Str(unit.into())])
    }

    /// Changes properties of a running unit until it ends.
    pub(super) fn set(unit: &str, properties: Vec<(String, Value)>) -> Self {
        let body = vec![Value::Str(unit.into()), Value::Bool(true)];
        Self {
            properties: Some((properties, false)),
            ..Self::new("SetUnitProperties", body)
        }
    }

    /// Asks for systemd's version; see [`version`].
    pub fn version() -> Self {
        Self {
            interface: "org.freedesktop.DBus.Properties",
            ..Self::new(
                "Get",
                vec![Value::Str(MANAGER.into()), Value::Str("Version".into())],
            )
        }
    }

    /// Name of the method, for errors.
    pub fn member(&self) -> &'static str {
        self.member
    }

    /// The message with its number, which is not 0.
    pub fn encode(&self, serial: u32) -> Vec<u8> {
        let mut signature: String = self.body.iter().map(Value::signature).collect();
        let mut body = Writer::default();
        for value in &self.body {
            body.value(value);
        }
        if let Some((properties, auxiliary)) = &self.properties {
            signature.push_str("a(sv)");
            body.array(8, |w| {
                for (name, value) in properties {
                    w.pad(8);
                    w.string(name);
                    w.variant(value);
                }
            });
            if *auxiliary {
                signature.push_str("a(sa(sv))");
                body.array(8, |_| {});
            }
        }
        let mut w = Writer::default();
        // Little-endian, a call, no flags, version 1.
        w.0.extend_from_slice(b"l\x01\0\x01");
        w.u32(u32::try_from(body.0.len()).unwrap_or(u32::MAX));
        w.u32(serial);
        w.array(8, |w| {
            for (code, value) in [
                (1, Value::Path(OBJECT.into())),
                (6, Value::Str(DESTINATION.into())),
                (2, Value::Str(self.interface.into())),
                (3, Value::Str(self.member.into())),
            ] {
                w.pad(8);
                w.0.push(code);
                w.variant(&value);
            }
            w.pad(8);
            w.0.push(8);
            w.signature("g");
            w.signature(&signature);
        });
        w.pad(8);
        w.0.extend_from_slice(&body.0);
        w.0
    }
}

// === impl Incoming ===

impl Incoming {
    /// Cuts the first message off `bytes`; `None` until all of it is there.
    pub fn take(bytes: &mut Vec<u8>) -> Result<Option<Self>> {
        let Some(size) = size(bytes)? else {
            return Ok(None);
        };
        if bytes.len() < size {
            return Ok(None);
        }
        let message: Vec<u8> = bytes.drain(..size).collect();
        Self::decode(&message)
            .map(Some)
            .ok_or_else(|| Error::invalid("a message of systemd's that makes no sense"))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = *bytes.get(1)?;
        let mut header = Reader::new(bytes, 12);
        let length = usize::try_from(header.u32()?).ok()?;
        let end = header.at().checked_add(length)?;
        let (mut to, mut member, mut name, mut signature) = (0, "", "", "");
        while header.at() < end {
            header.pad(8);
            let code = header.byte()?;
            let kind = header.signature()?;
            match (code, kind) {
                (5, "u") => to = header.u32()?,
                (3, "s") => member = header.string()?,
                (4, "s") => name = header.string()?,
                (8, "g") => signature = header.signature()?,
                (_, "u") => drop(header.u32()?),
                (_, "s" | "o") => drop(header.string()?),
                (_, "g") => drop(header.signature()?),
                _ => return None,
            }
        }
        header.pad(8);
        let mut body = Reader::new(bytes, header.at());
        let text = |body: &mut Reader<'_>| {
            let text = match signature.as_bytes().first() {
                Some(b's' | b'o') => body.string(),
                Some(b'v') => match body.signature()? {
                    "s" | "o" => body.string(),
                    _ => None,
                },
                _ => None,
            };
            text.map(str::to_owned)
        };
        Some(match kind {
            2 => Self::Answer {
                to,
                text: text(&mut body).unwrap_or_default(),
            },
            3 => Self::Refusal {
                to,
                name: name.to_owned(),
                text: text(&mut body).unwrap_or_default(),
            },
            4 if member == "JobRemoved" && signature == "uoss" => {
                body.u32()?;
                let job = body.string()?.to_owned();
                body.string()?;
                Self::JobRemoved {
                    job,
                    result: body.string()?.to_owned(),
                }
            }
            _ => Self::Other,
        })
    }
}

/// Size of the message that `bytes` begin with, once that can be told.
fn size(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(fixed) = bytes.get(..16) else {
        return Ok(None);
    };
    let wrong = || Error::invalid("not a message of D-Bus");
    if !matches!(fixed, [b'l', 1..=4, _, 1, ..]) {
        return Err(wrong());
    }
    let number = |at: usize| {
        let four = fixed.get(at..at + 4).and_then(|b| b.try_into().ok());
        four.map(u32::from_le_bytes)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n <= MAX_MESSAGE)
            .ok_or_else(wrong)
    };
    let (body, fields) = (number(4)?, number(12)?);
    Ok(Some((16 + fields).next_multiple_of(8) + body))
}

/// The number of `Version`: `252.38-1~deb12u1`, `v249.11` and `"254"` are 252, 249 and 254.
pub fn version(text: &str) -> Option<u32> {
    let text = text.trim_start_matches(['"', 'v']);
    let end = text.find(|c: char| !c.is_ascii_digit());
    text.get(..end.unwrap_or(text.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as systemd writes it: header fields by code, and a body.
    fn message(kind: u8, fields: &[(u8, Value)], signature: &str, body: &[Value]) -> Vec<u8> {
        let mut content = Writer::default();
        for value in body {
            content.value(value);
        }
        let mut w = Writer::default();
        w.0.extend_from_slice(&[b'l', kind, 0, 1]);
        w.u32(u32::try_from(content.0.len()).expect("small"));
        w.u32(7);
        w.array(8, |w| {
            for (code, value) in fields {
                w.pad(8);
                w.0.push(*code);
                w.variant(value);
            }
            w.pad(8);
            w.0.push(8);
            w.signature("g");
            w.signature(signature);
        });
        w.pad(8);
        w.0.extend_from_slice(&content.0);
        w.0
    }

    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let bytes = Call::reset_failed("a.scope").encode(3);
        // Fixed part, then the array of fields: 4 + 4 + 4 + 4 bytes.
        assert_eq!(bytes[..12], *b"l\x01\0\x01\x0c\0\0\0\x03\0\0\0");
        assert_eq!(bytes[16..24], *b"\x01\x01o\0\x19\0\0\0");
        assert_eq!(bytes[24..50], *b"/org/freedesktop/systemd1\0");
        assert_eq!(bytes[bytes.len() - 12..], *b"\x07\0\0\0a.scope\0");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(size(&bytes).expect("valid"), Some(bytes.len()));
    }

    #[test]
    fn answers_are_told_apart() {
        let job = || Value::Path("/org/freedesktop/systemd1/job/5".into());
        let text = |s: &str| Value::Str(s.into());
        let mut bytes = message(2, &[(5, Value::U32(3))], "o", &[job()]);
        bytes.extend(message(
            3,
            &[(5, Value::U32(4)), (4, text("org.x.Y"))],
            "s",
            &[text("no such thing")],
        ));
        let removed = [Value::U32(5), job(), text("a.scope"), text("done")];
        bytes.extend(message(4, &[(3, text("JobRemoved"))], "uoss", &removed));
        bytes.extend(message(4, &[(3, text("UnitNew"))], "so", &removed[2..]));
        bytes.extend(message(2, &[(5, Value::U32(9))], "", &[]));
        let mut arrived = Vec::new();
        let mut seen = Vec::new();
        // Byte by byte, as a socket may bring them.
        for byte in bytes {
            arrived.push(byte);
            seen.extend(Incoming::take(&mut arrived).expect("valid"));
        }
        let job = "/org/freedesktop/systemd1/job/5".to_owned();
        let (to, empty) = (3, String::new());
        let want = [
            Incoming::Answer {
                to,
                text: job.clone(),
            },
            Incoming::Refusal {
                to: 4,
                name: "org.x.Y".into(),
                text: "no such thing".into(),
            },
            Incoming::JobRemoved {
                job,
                result: "done".into(),
            },
            Incoming::Other,
            Incoming::Answer { to: 9, text: empty },
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn garbage_is_refused() {
        let mut long = b"l\x02\0\x01\xff\xff\xff\x7f\x01\0\0\0\0\0\0\0".to_vec();
        assert!(Incoming::take(&mut long).is_err());
        let mut text = b"ERROR Authentication".to_vec();
        assert!(Incoming::take(&mut text).is_err());
        let mut fields = message(2, &[(5, Value::U32(3))], "", &[]);
        // A length beyond the message.
        fields[12] = 200;
        fields.resize(400, 0xff);
        assert!(Incoming::take(&mut fields).is_err());
    }

    #[test]
    fn versions_have_many_spellings() {
        for (text, number) in [
            ("252.38-1~deb12u1", Some(252)),
            ("v249.11", Some(249)),
            ("\"254\"", Some(254)),
            ("", None),
        ] {
            assert_eq!(version(text), number, "{text}");
        }
    }
}
