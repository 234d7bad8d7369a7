//! Owns the packets from child to parent: 16 bytes each, native byte order, one packet per message.

/// Size of a packet.
pub(crate) const SIZE: usize = 16;

/// Kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// `at` is the number of the rendezvous.
    Rendezvous,
    /// At the gate.
    Ready,
    /// Step `at` failed with `errno`.
    Failed,
    /// A pidfd of the process the child goes on as comes along.
    Forked,
    /// A pty master comes along.
    Console,
    /// Step `at` was clamped; `detail` says how.
    Note,
    /// A filter has a listener, descriptor `detail` of the child.
    Listener,
}

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: Tag,
    pub(crate) at: u32,
    pub(crate) errno: i32,
    pub(crate) detail: i32,
}

// === impl Message ===

impl Message {
    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let [t0, t1, t2, t3] = (self.tag as u32).to_ne_bytes();
        let [a0, a1, a2, a3] = self.at.to_ne_bytes();
        let [e0, e1, e2, e3] = self.errno.to_ne_bytes();
        let [d0, d1, d2, d3] = self.detail.to_ne_bytes();
        [
            t0, t1, t2, t3, a0, a1, a2, a3, e0, e1, e2, e3, d0, d1, d2, d3,
        ]
    }

    pub(crate) fn decode(bytes: [u8; SIZE]) -> Option<Self> {
        let [
            t0,
            t1,
            t2,
            t3,
            a0,
            a1,
            a2,
            a3,
            e0,
            e1,
            e2,
            e3,
            d0,
            d1,
            d2,
            d3,
        ] = bytes;
        let tag = match u32::from_ne_bytes([t0, t1, t2, t3]) {
            0 => Tag::Rendezvous,
            1 => Tag::Ready,
            2 => Tag::Failed,
            3 => Tag::Forked,
            4 => Tag::Console,
            5 => Tag::Note,
            6 => Tag::Listener,
            _ => return None,
        };
        Some(Self {
            tag,
            at: u32::from_ne_bytes([a0, a1, a2, a3]),
            errno: i32::from_ne_bytes([e0, e1, e2, e3]),
            detail: i32::from_ne_bytes([d0, d1, d2, d3]),
        })
    }
}
