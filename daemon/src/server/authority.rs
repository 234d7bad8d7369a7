//! Makes `:authority` of clients that dial a path readable for h2.
//!
//! Clients in C++, Python, Ruby and PHP, and those in Go that hand gRPC a bare path, put the percent-encoded path of a
//! unix socket there (`%2Frun%2Fcontainerd%2Fcontainerd.sock`), which is no authority of RFC 3986, and h2 refuses each
//! of their calls. The name means nothing to us, so it is overwritten while the bytes come in. Lengths stay, hence
//! frames stay, and HPACK's tables on both sides agree on all but a text that nobody looks at. For that, frames and
//! header fields are only walked, not decoded. A connection whose first call is in order is not looked at any more.
//!
//! Go's value is Huffman-coded. A path begins with `%`, which shows in its first byte, and all of it becomes letters
//! whose code is a whole byte: the text gets no longer by that, so our table never drops an entry before theirs does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Index of [`NAME`] in HPACK's static table.
const AUTHORITY: u8 = 1;
/// The C core spells it out.
const NAME: &[u8] = b":authority";
/// Huffman code of `%`, in six bits (RFC 7541, appendix B).
const HUFFMAN_PERCENT: u8 = 0x15;
/// Huffman code of `X`, in eight.
const HUFFMAN_X: u8 = 0xfc;

/// A connection with its incoming bytes looked at.
#[derive(Debug)]
pub(super) struct Lenient {
    stream: UnixStream,
    walk: Walk,
}

/// Where one is in what a client sends.
#[derive(Debug, Default)]
struct Walk {
    at: At,
    field: Field,
    /// Of the frame: its header, its payload's bytes still to come, and how many of them are padding.
    frame: [u8; FRAME_HEADER],
    left: usize,
    padding: usize,
    /// Whether something was overwritten: then later calls need it too.
    needed: bool,
    /// Whether no call needs it.
    done: bool,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Preface(usize),
    FrameHeader(usize),
    /// Bytes before the header block of a frame.
    PadLength,
    Priority(usize),
    Block,
    /// A payload that is of no interest.
    Skip,
}

impl Default for At {
    fn default() -> Self {
        Self::Preface(0)
    }
}

/// Where one is in a header block (RFC 7541, 6). `authority`: the field's name is that.
#[derive(Debug, Clone, Copy, Default)]
enum Field {
    #[default]
    Start,
    /// The rest of an index that is none of interest; a value follows or not.
    Index {
        value: bool,
    },
    NameLength,
    /// A name of its own; how much of it is [`NAME`] so far, if it can be.
    Name {
        left: usize,
        same: Option<usize>,
    },
    ValueLength {
        authority: bool,
    },
    /// The rest of a string's length.
    Length {
        name: bool,
        authority: bool,
        plain: bool,
        shift: u32,
        length: usize,
    },
    Value {
        left: usize,
        overwrite: Overwrite,
    },
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overwrite {
    Nothing,
    /// Two characters of a text.
    Plain,
    /// The first byte of coded text decides.
    Undecided,
    /// All bytes of coded text.
    Coded,
}

// === impl Lenient ===

impl Lenient {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            walk: Walk::default(),
        }
    }
}

impl AsyncRead for Lenient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.walk.pass(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lenient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Lenient {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

// === impl Walk ===

impl Walk {
    /// Looks at the next bytes, and overwrites what h2 would not read.
    fn pass(&mut self, mut data: &mut [u8]) {
        while !data.is_empty() && !self.done {
            let n = match self.at {
                At::Skip => {
                    let n = self.left.min(data.len());
                    self.left -= n;
                    n
                }
                _ => {
                    self.byte(&mut data[0]);
                    1
                }
            };
            data = &mut data[n..];
            if self.left == 0 && matches!(self.at, At::Skip | At::Block) {
                self.end_of_frame();
            }
        }
    }

    fn byte(&mut self, b: &mut u8) {
        match self.at {
            At::Preface(n) if n + 1 < PREFACE => self.at = At::Preface(n + 1),
            At::Preface(_) => self.at = At::FrameHeader(0),
            At::FrameHeader(n) => {
                self.frame[n] = *b;
                if n + 1 < FRAME_HEADER {
                    self.at = At::FrameHeader(n + 1);
                } else {
                    self.begin_payload();
                }
            }
            At::PadLength => {
                self.left -= 1;
                self.padding = usize::from(*b);
                self.after_pad_length();
            }
            At::Priority(n) => {
                self.left -= 1;
                self.at = if n > 1 {
                    At::Priority(n - 1)
                } else {
                    At::Block
                };
                self.check_room();
            }
            At::Block => {
                self.left -= 1;
                self.field = self.field.step(b, &mut self.needed);
                self.check_room();
            }
            At::Skip => {}
        }
    }

    fn begin_payload(&mut self) {
        let [a, b, c, kind, flags, ..] = self.frame;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.padding = 0;
        match kind {
            HEADERS => {
                self.field = Field::Start;
                if flags & PADDED != 0 {
                    self.at = At::PadLength;
                } else {
                    self.after_pad_length();
                }
            }
            CONTINUATION => self.at = At::Block,
            _ => self.at = At::Skip,
        }
        self.check_room();
    }

    fn after_pad_length(&mut self) {
        let [.., flags, _, _, _, _] = self.frame;
        self.at = if flags & PRIORITY != 0 {
            At::Priority(5)
        } else {
            At::Block
        };
        self.check_room();
    }

    /// What is left of the payload may be padding, or nothing.
    fn check_room(&mut self) {
        if self.left <= self.padding {
            let of_block = matches!(self.at, At::Block);
            self.at = At::Skip;
            if self.left == 0 {
                self.end_of_frame();
            } else if !of_block {
                // Malformed: shorter than its own preamble. h2 says so.
                self.done = true;
            }
        }
    }

    fn end_of_frame(&mut self) {
        self.at = At::FrameHeader(0);
        // A connection's calls are all alike: if the first needs nothing, none does.
        let [_, _, _, kind, flags, ..] = self.frame;
        let of_call = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
        self.done |= of_call && !self.needed;
    }
}

// === impl Field ===

impl Field {
    /// The state after `b`, which is overwritten if it has to be.
    fn step(self, b: &mut u8, needed: &mut bool) -> Self {
        match self {
            Self::Start => Self::first(*b),
            Self::Index { value } if *b & 0x80 != 0 => Self::Index { value },
            Self::Index { value: true } => Self::ValueLength { authority: false },
            Self::Index { value: false } => Self::Start,
            Self::NameLength => Self::length(*b, true, false),
            Self::ValueLength { authority } => Self::length(*b, false, authority),
            Self::Length {
                name,
                authority,
                plain,
                shift,
                length,
            } => {
                // Absurd lengths end with the frame at the latest.
                let more = usize::from(*b & 0x7f).checked_shl(shift).unwrap_or(0);
                let length = length.saturating_add(more);
                if *b & 0x80 != 0 {
                    let shift = shift + 7;
                    Self::Length {
                        name,
                        authority,
                        plain,
                        shift,
                        length,
                    }
                } else {
                    Self::string(length, name, plain, authority)
                }
            }
            Self::Name { left, same } => {
                let same = same.filter(|at| NAME.get(*at) == Some(b)).map(|at| at + 1);
                match left {
                    1 => Self::ValueLength {
                        authority: same == Some(NAME.len()),
                    },
                    _ => Self::Name {
                        left: left - 1,
                        same,
                    },
                }
            }
            Self::Value { left, overwrite } => {
                let overwrite = overwrite.step(b, needed);
                match left {
                    1 => Self::Start,
                    _ => Self::Value {
                        left: left - 1,
                        overwrite,
                    },
                }
            }
        }
    }

    /// The first byte of a field: its kind and the beginning of an index.
    fn first(b: u8) -> Self {
        let (mask, value) = match b {
            0x80.. => (0x7f, false),
            0x40..0x80 => (0x3f, true),
            0x20..0x40 => (0x1f, false),
            _ => (0x0f, true),
        };
        match b & mask {
            index if index == mask => Self::Index { value },
            _ if !value => Self::Start,
            0 => Self::NameLength,
            index => Self::ValueLength {
                authority: index == AUTHORITY,
            },
        }
    }

    /// The first byte of a string: how it is coded and how long it is.
    fn length(b: u8, name: bool, authority: bool) -> Self {
        let plain = b & 0x80 == 0;
        match usize::from(b & 0x7f) {
            length @ 0x7f => Self::Length {
                name,
                authority,
                plain,
                shift: 0,
                length,
            },
            length => Self::string(length, name, plain, authority),
        }
    }

    fn string(left: usize, name: bool, plain: bool, authority: bool) -> Self {
        match (name, left) {
            (true, 0) => Self::ValueLength { authority: false },
            (true, _) => Self::Name {
                left,
                same: plain.then_some(0),
            },
            (false, 0) => Self::Start,
            (false, _) => Self::Value {
                left,
                overwrite: match (authority, plain) {
                    (false, _) => Overwrite::Nothing,
                    (true, true) => Overwrite::Plain,
                    (true, false) => Overwrite::Undecided,
                },
            },
        }
    }
}

// === impl Overwrite ===

impl Overwrite {
    fn step(self, b: &mut u8, needed: &mut bool) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Plain => {
                if matches!(*b, b'%' | b'/') {
                    *b = b'-';
                    *needed = true;
                }
                Self::Plain
            }
            Self::Undecided if *b >> 2 != HUFFMAN_PERCENT => Self::Nothing,
            Self::Undecided | Self::Coded => {
                *b = HUFFMAN_X;
                *needed = true;
                Self::Coded
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1];
        out.extend_from_slice(payload);
        out
    }

    /// Fields around a plain literal `:authority`.
    fn block(authority: &str) -> Vec<u8> {
        let mut out = vec![0x83, 0x86]; // indexed
        out.extend([0x3f, 0xe1, 0x1f]); // a table size
        out.extend([0x40, 3, b'a', b'/', b'%', 2, b'/', b'%']); // a name of its own
        out.extend([0x41, authority.len() as u8]);
        out.extend_from_slice(authority.as_bytes());
        out.extend([0x0f, 0x2f, 1, b'/']); // a long index
        out
    }

    fn check(frames: &[Vec<u8>], changes: &[(&str, &str)]) {
        let mut data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        data.extend(frames.concat());
        let text = |d: &[u8]| String::from_utf8_lossy(d).into_owned();
        let want = changes
            .iter()
            .fold(text(&data), |all, (from, to)| all.replace(from, to));
        for size in [1, 7, data.len()] {
            let mut walk = Walk::default();
            let mut got = data.clone();
            got.chunks_mut(size).for_each(|c| walk.pass(c));
            assert_eq!(text(&got), want, "in chunks of {size}");
        }
    }

    #[test]
    fn only_the_authority_changes_whatever_the_frames_are() {
        let bad = "%2Frun%2Fc.sock";
        let good = [(bad, "-2Frun-2Fc.sock")];
        let settings = frame(4, 0, b"%2F%2F");
        let data = frame(0, 0, b"a%2Frun/b");
        let headers = |flags| frame(HEADERS, flags, &block(bad));
        check(&[settings.clone(), headers(4), data.clone()], &good);
        let mut padded = vec![3, 0, 0, 0, 0, 5];
        padded.extend(block(bad));
        padded.extend(b"%%%");
        let padded = frame(HEADERS, PADDED | PRIORITY | 4, &padded);
        check(&[padded, data.clone(), headers(4)], &good);
        // With a name spelt out, as the C core does; a name that is nearly the same does not count.
        let spelt = |name: &str| {
            let mut out = vec![0x83, 0x40, name.len() as u8];
            out.extend_from_slice(name.as_bytes());
            out.push(bad.len() as u8);
            out.extend_from_slice(bad.as_bytes());
            frame(HEADERS, 4, &out)
        };
        check(&[spelt(":authority"), headers(4)], &good);
        check(&[spelt(":authoritx"), data.clone()], &[]);
        // Cut in the middle of the value.
        let whole = block(bad);
        let (a, b) = whole.split_at(20);
        let cut = [frame(HEADERS, 0, a), frame(CONTINUATION, 4, b)];
        check(&cut, &[("%2Fru", "-2Fru"), ("n%2Fc", "n-2Fc")]);
        check(&[frame(HEADERS, 4, &block("localhost")), data], &[]);
    }

    #[test]
    fn coded_paths_become_letters_and_other_coded_names_stay() {
        let coded = |value: &[u8]| {
            let mut out = vec![0x83, 0x41, 0x80 | value.len() as u8];
            out.extend_from_slice(value);
            frame(HEADERS, 4, &out)
        };
        // As Go codes `%2Frun%2Fc.sock`, and `localhost`.
        let path = [
            0x54, 0x5c, 0x36, 0xc5, 0xaa, 0xa2, 0xe1, 0x91, 0x74, 0x10, 0x7a, 0xff,
        ];
        let host = [0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09];
        let mut walk = Walk::default();
        let mut data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let head = data.len() + FRAME_HEADER + 3;
        data.extend(coded(&path));
        walk.pass(&mut data);
        assert_eq!(&data[head..], [HUFFMAN_X; 12]);
        assert!(!walk.done);
        let mut data = coded(&host);
        walk.pass(&mut data);
        assert_eq!(data, coded(&host));
    }

    #[test]
    fn a_connection_in_order_is_left_alone_and_garbage_does_no_harm() {
        let mut walk = Walk::default();
        walk.pass(&mut b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec());
        walk.pass(&mut frame(HEADERS, 4, &block("localhost")));
        assert!(walk.done);
        for seed in 0..2000_u32 {
            let mut x = seed.wrapping_mul(2_654_435_761) | 1;
            let mut noise = vec![0; 400];
            for b in &mut noise {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                *b = x as u8 & 0x2f;
            }
            Walk::default().pass(&mut noise);
        }
    }
}
