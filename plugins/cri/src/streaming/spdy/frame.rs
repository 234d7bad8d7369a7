//! Frames as bytes.
//!
//! ```text
//! control  |1| version 3 (15) | type (16) | flags (8) | length (24) | payload
//! data     |0| stream (31)                | flags (8) | length (24) | payload
//! ```
//!
//! A data frame is given out in parts as its bytes arrive, so that its length, which may be 16 MiB, is never held.

use bytes::{Buf, Bytes, BytesMut};

use super::header::{Headers, Inflater, Malformed, Storer};

/// Largest payload of a control frame.
pub const MAX_CONTROL: usize = 64 * 1024;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const HEAD: usize = 8;
const ID: u32 = 0x7fff_ffff;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    Protocol = 1,
    Refused = 3,
    Cancel = 5,
}

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
    },
    Rst {
        id: u32,
    },
    Ping(u32),
    GoAway,
    /// More headers of a stream; nobody uses them.
    Headers {
        id: u32,
        fin: bool,
    },
    /// A part of a data frame; `fin` comes with the last.
    Data {
        id: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// SETTINGS, WINDOW_UPDATE and types that are not known.
    Other,
}

/// Bytes to frames.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// What was read and not yet understood.
    pub(crate) buffer: BytesMut,
    /// The data frame that is under way.
    data: Option<(u32, bool, usize)>,
    inflater: Inflater,
}

/// Frames to bytes.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    storer: Storer,
}

// === impl Decoder ===

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            data: None,
            inflater: Inflater::new(),
        }
    }

    /// The next frame, or none until there are more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        if let Some((id, fin, left)) = self.data {
            return Ok(self.part(id, fin, left));
        }
        let Some(head) = self.buffer.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if first & !ID == 0 {
            if first == 0 {
                return Err(Malformed("data of no stream"));
            }
            self.buffer.advance(HEAD);
            return Ok(self.part(first, flags & FIN != 0, length));
        }
        let [_, _, kind_high, kind_low, ..] = *head;
        let version = (first >> 16) & 0x7fff;
        if version != u32::from(VERSION) {
            return Err(Malformed("not version 3"));
        }
        if length > MAX_CONTROL {
            return Err(Malformed("control frame is too long"));
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let payload = self.buffer.split_to(length).freeze();
        self.control(u16::from_be_bytes([kind_high, kind_low]), flags, &payload)
            .map(Some)
    }

    fn part(&mut self, id: u32, fin: bool, left: usize) -> Option<Frame> {
        let now = left.min(self.buffer.len());
        if now == 0 && left > 0 {
            self.data = Some((id, fin, left));
            return None;
        }
        let bytes = self.buffer.split_to(now).freeze();
        self.data = (now < left).then_some((id, fin, left - now));
        Some(Frame::Data {
            id,
            fin: fin && now == left,
            bytes,
        })
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: &[u8]) -> Result<Frame, Malformed> {
        let fin = flags & FIN != 0;
        let short = Malformed("control frame is too short");
        let mut word = || -> Result<u32, Malformed> {
            let (n, rest) = payload.split_first_chunk().ok_or(short)?;
            payload = rest;
            Ok(u32::from_be_bytes(*n))
        };
        match kind {
            1 => {
                let id = stream(word()?)?;
                // The stream it belongs to, and priority with slot.
                word()?;
                let block = payload.get(2..).ok_or(short)?;
                let headers = Headers::parse(&self.inflater.inflate(block)?)?;
                Ok(Frame::SynStream { id, fin, headers })
            }
            2 | 8 => {
                let id = stream(word()?)?;
                // Even what nobody reads goes through: compression has a memory.
                Headers::parse(&self.inflater.inflate(payload)?)?;
                Ok(if kind == 2 {
                    Frame::SynReply { id, fin }
                } else {
                    Frame::Headers { id, fin }
                })
            }
            3 => {
                let id = stream(word()?)?;
                word()?;
                Ok(Frame::Rst { id })
            }
            6 => Ok(Frame::Ping(word()?)),
            7 => Ok(Frame::GoAway),
            _ => Ok(Frame::Other),
        }
    }
}

fn stream(word: u32) -> Result<u32, Malformed> {
    match word & ID {
        0 => Err(Malformed("stream 0")),
        id => Ok(id),
    }
}

// === impl Encoder ===

impl Encoder {
    /// Data of at most 16 MiB.
    pub(crate) fn data(&mut self, id: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + bytes.len());
        out.extend((id & ID).to_be_bytes());
        tail(&mut out, if fin { FIN } else { 0 }, bytes);
        out
    }

    /// A stream is taken; no headers.
    pub(crate) fn reply(&mut self, id: u32) -> Vec<u8> {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend(self.storer.store(&Headers::default().to_block()));
        control(2, 0, &payload)
    }

    pub(crate) fn reset(&mut self, id: u32, why: Reset) -> Vec<u8> {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend((why as u32).to_be_bytes());
        control(3, 0, &payload)
    }

    pub(crate) fn ping(&mut self, id: u32) -> Vec<u8> {
        control(6, 0, &id.to_be_bytes())
    }

    /// No more streams; `last` was the last that was taken.
    pub(crate) fn go_away(&mut self, last: u32, well: bool) -> Vec<u8> {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend(u32::from(!well).to_be_bytes());
        control(7, 0, &payload)
    }

    #[cfg(test)]
    pub(crate) fn open(&mut self, id: u32, headers: &Headers) -> Vec<u8> {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(self.storer.store(&headers.to_block()));
        control(1, 0, &payload)
    }
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + payload.len());
    out.extend((VERSION | 0x8000).to_be_bytes());
    out.extend(kind.to_be_bytes());
    tail(&mut out, flags, payload);
    out
}

fn tail(out: &mut Vec<u8>, flags: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    out.extend([flags, length[1], length[2], length[3]]);
    out.extend(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `bytes` in pieces and joins the parts of data frames.
    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Malformed> {
        let mut decoder = Decoder::new();
        let mut frames: Vec<Frame> = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            decoder.buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.next()? {
                match (frames.last_mut(), frame) {
                    (
                        Some(Frame::Data { id, fin, bytes }),
                        Frame::Data {
                            id: i,
                            fin: f,
                            bytes: b,
                        },
                    ) if *id == i && !*fin => {
                        *bytes = [bytes.as_ref(), b.as_ref()].concat().into();
                        *fin = f;
                    }
                    (_, frame) => frames.push(frame),
                }
            }
        }
        Ok(frames)
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let mut e = Encoder::default();
        assert_eq!(e.data(5, true, b"ab"), [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b']);
        assert_eq!(e.ping(7), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]);
        assert_eq!(
            e.reset(3, Reset::Refused),
            [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 3]
        );
        assert_eq!(e.go_away(9, true)[8..], [0, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(e.reply(1)[..12], [0x80, 3, 0, 2, 0, 0, 0, 20, 0, 0, 0, 1]);
        let frames = decode(&e.reply(1), 1);
        // The first reply, with the stream's beginning, was not seen by this decoder.
        assert!(frames.is_err());
    }

    #[test]
    fn control_frames_are_bounded() {
        let head = |n: usize| {
            let n = u32::try_from(n).unwrap().to_be_bytes();
            [0x80, 3, 0, 4, 0, n[1], n[2], n[3]]
        };
        let fits = [&head(MAX_CONTROL)[..], &vec![0; MAX_CONTROL]].concat();
        assert_eq!(decode(&fits, 4096), Ok(vec![Frame::Other]));
        assert!(decode(&head(MAX_CONTROL + 1), 8).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &[0, 0, 0, 0, 0, 0, 0, 0][..],            // data of stream 0
            &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], // version 2
            &[0x80, 3, 0, 6, 0, 0, 0, 3, 0, 0, 0],    // a short ping
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1], // reset of stream 0
            &[0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], // no headers
        ] {
            assert!(decode(bad, 100).is_err(), "{bad:?}");
        }
        assert_eq!(
            decode(&[0x80, 3, 0x12, 0x34, 0, 0, 0, 1, 9], 3),
            Ok(vec![Frame::Other])
        );
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            sent in prop::collection::vec((1u32..1000, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            piece in 1usize..700,
        ) {
            let (mut encoder, mut bytes, mut wanted) = (Encoder::default(), Vec::new(), Vec::new());
            for (n, (id, fin, payload)) in sent.into_iter().enumerate() {
                let headers = Headers::new(&[("streamtype", "data"), ("n", &n.to_string())]);
                bytes.extend(encoder.open(id, &headers));
                wanted.push(Frame::SynStream { id, fin: false, headers });
                bytes.extend(encoder.data(id, fin, &payload));
                wanted.push(Frame::Data { id, fin, bytes: payload.into() });
                bytes.extend(encoder.ping(id));
                wanted.push(Frame::Ping(id));
            }
            prop_assert_eq!(decode(&bytes, piece), Ok(wanted));
        }

        #[test]
        fn anything_is_judged_without_panic(bytes: Vec<u8>, piece in 1usize..64) {
            let _ = decode(&bytes, piece);
            let _ = decode(&[&[0x80, 3, 0, 1, 0, 0, 0, 40][..], &bytes].concat(), piece);
        }
    }
}
