//! Owns the look-up of a user's home in the container's /etc/passwd, by the process that will live there: the file may
//! lie on a file system that never answers, and then only this child waits. Runs under the same rules as `child.rs`.
//!
//! The file is the image's: opened inside the root only, regular only, at most 10 MiB, never waited for as a fifo.

use crate::child::Child;
use crate::fs::{IN_ROOT, Tmp};
use crate::plan::Fd;
use crate::sys::{self, Errno, Res};
use std::cell::Cell;

/// `HOME=`, a path, and the final NUL.
pub(crate) const ROOM: usize = 5 + 4096 + 1;
const LIMIT: usize = 10 << 20;

/// The environment's entry before anybody was looked up.
pub(crate) fn entry() -> Vec<Cell<u8>> {
    let mut entry = vec![Cell::new(0); ROOM];
    for (to, from) in entry.iter_mut().zip(b"HOME=/") {
        to.set(*from);
    }
    entry
}

/// A line being read.
struct Line {
    field: usize,
    uid: Option<u32>,
    digits: bool,
    home: usize,
}

// === impl Line ===

impl Line {
    const START: Self = Self {
        field: 0,
        uid: Some(0),
        digits: false,
        home: 0,
    };

    /// Only whole fields of digits are ids.
    fn is_of(&self, uid: u32) -> bool {
        self.digits && self.uid == Some(uid)
    }

    fn digit(&mut self, byte: u8) {
        self.digits = true;
        let value = u32::from(byte.wrapping_sub(b'0'));
        self.uid = self
            .uid
            .filter(|_| value < 10)
            .and_then(|n| n.checked_mul(10)?.checked_add(value));
    }
}

// === impl Child ===

impl Child<'_> {
    /// Puts the home of `uid` into the environment; `/` stays when there is none.
    pub(crate) fn find_home(&self, root: Fd, uid: u32) -> Res<()> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let Ok(file) = sys::openat2(self.fd(root), c"etc/passwd", flags, 0, IN_ROOT) else {
            return Ok(());
        };
        let file = Tmp(file);
        let st = sys::stat(file.0, c"", 0)?;
        let regular = st.st_mode & libc::S_IFMT == libc::S_IFREG;
        if !regular || usize::try_from(st.st_size).is_ok_and(|n| n > LIMIT) {
            return Ok(());
        }
        let mut buf = [0u8; 1024];
        let mut line = Line::START;
        let mut total = 0;
        loop {
            let n = match sys::read(file.0, &mut buf) {
                Err(Errno(_)) | Ok(0) => 0,
                Ok(n) => n,
            };
            total += n;
            let end = n == 0 || total > LIMIT;
            for byte in buf.get(..n).unwrap_or(&[]) {
                if self.passwd_byte(&mut line, *byte, uid) {
                    return Ok(());
                }
            }
            if end {
                // A last line without its newline.
                self.passwd_byte(&mut line, b'\n', uid);
                return Ok(());
            }
        }
    }

    /// Takes one byte; true once the user's line has been read.
    fn passwd_byte(&self, line: &mut Line, byte: u8, uid: u32) -> bool {
        const UID: usize = 2;
        const HOME: usize = 5;
        match byte {
            b'\n' | b':' if line.field == HOME && line.is_of(uid) => {
                self.end_home(line.home);
                return true;
            }
            b'\n' if line.is_of(uid) => return true,
            b'\n' => *line = Line::START,
            b':' => line.field += 1,
            byte if line.field == UID => line.digit(byte),
            byte if line.field == HOME && line.is_of(uid) => {
                if let Some(place) = self.home.get(5 + line.home) {
                    place.set(byte);
                }
                line.home += 1;
            }
            _ => {}
        }
        false
    }

    /// Ends the entry, or makes it `/` again when it is empty, too long or no string.
    fn end_home(&self, len: usize) {
        let text = self.home.iter().skip(5).take(len);
        let good = len > 0 && len < ROOM - 5 && text.into_iter().all(|b| b.get() != 0);
        if !good && let Some(first) = self.home.get(5) {
            first.set(b'/');
        }
        if let Some(end) = self.home.get(5 + if good { len } else { 1 }) {
            end.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, SLOTS};
    use std::os::fd::AsRawFd;

    fn home(passwd: &[u8], uid: u32) -> String {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        std::fs::write(dir.path().join("etc/passwd"), passwd).expect("write");
        let root = std::fs::File::open(dir.path()).expect("open");
        let (plan, entry) = (Plan::default(), entry());
        let mut slots = [-1; SLOTS];
        slots[0] = root.as_raw_fd();
        let child = Child {
            plan: &plan,
            channel: -1,
            argv: &[],
            envp: &[],
            home: &entry,
            keep: &[],
            slots,
            pending_cwd: None,
            chosen: 0,
        };
        child.find_home(Fd::Slot(0), uid).expect("found");
        let bytes: Vec<u8> = entry
            .iter()
            .map(Cell::get)
            .take_while(|b| *b != 0)
            .collect();
        String::from_utf8(bytes).expect("utf-8")
    }

    #[test]
    fn homes() {
        let file = b"root:x:0:0:root:/root:/bin/sh\nbad:x:12x:0::/bad:\n#c\nu:x:7:7:U:/home/u:/x\nend:x:9:9::/e";
        assert_eq!(home(file, 0), "HOME=/root");
        assert_eq!(home(file, 7), "HOME=/home/u");
        assert_eq!(home(file, 9), "HOME=/e");
        assert_eq!(home(file, 12), "HOME=/");
        assert_eq!(home(b"u:x:7:7::\0x:/x\n", 7), "HOME=/");
        assert_eq!(home(b"u:x:7:7:::/x\nu:x:7:7::/h:/x\n", 7), "HOME=/");
        assert_eq!(home(b"u:x:7:7\n", 7), "HOME=/");
        assert_eq!(home(b"u:x:4294967303:7::/h:\n", 7), "HOME=/");
        let long = format!("u:x:7:7::/{}:\n", "a".repeat(5000));
        assert_eq!(home(long.as_bytes(), 7), "HOME=/");
    }
}
