//! Lines of a log in the CRI's format, made of bytes as they come.
//!
//! A line longer than the limit is cut into parts tagged P and a last one tagged F. A carriage return before the
//! newline is dropped. What ends without a newline is tagged P.

use corten_protos::time;

/// One stream on its way into a log.
#[derive(Debug)]
pub struct Lines {
    stream: &'static str,
    /// `usize::MAX`: no limit.
    max: usize,
    /// Of a line that has not ended.
    pending: Vec<u8>,
}

impl Lines {
    /// Of `stdout` or `stderr`; a limit that is not positive is none.
    pub fn new(stream: &'static str, max: i64) -> Self {
        Self {
            stream,
            max: usize::try_from(max)
                .ok()
                .filter(|max| *max > 0)
                .unwrap_or(usize::MAX),
            pending: Vec::new(),
        }
    }

    /// The lines, and parts of lines, that `bytes` complete.
    pub fn cut(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (content, ends) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            self.pending.extend_from_slice(content);
            while self.pending.len() > self.max {
                let rest = self.pending.split_off(self.max);
                let part = std::mem::replace(&mut self.pending, rest);
                self.write(&mut text, b'P', &part);
            }
            if ends {
                let line = std::mem::take(&mut self.pending);
                self.write(&mut text, b'F', line.strip_suffix(b"\r").unwrap_or(&line));
            }
        }
        text
    }

    /// What is left when the stream has ended.
    pub fn finish(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.pending);
        let mut text = Vec::new();
        if !rest.is_empty() {
            self.write(&mut text, b'P', &rest);
        }
        text
    }

    fn write(&self, text: &mut Vec<u8>, tag: u8, content: &[u8]) {
        text.extend_from_slice(time::rfc3339(&time::now()).as_bytes());
        text.push(b' ');
        text.extend_from_slice(self.stream.as_bytes());
        text.extend_from_slice(&[b' ', tag, b' ']);
        text.extend_from_slice(content);
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines without their time.
    fn bare(text: &[u8]) -> Vec<String> {
        let text = String::from_utf8(text.to_vec()).unwrap();
        text.lines()
            .map(|line| {
                let (at, rest) = line.split_once(' ').unwrap();
                assert!(time::parse_rfc3339(at).is_some(), "{at}");
                rest.to_owned()
            })
            .collect()
    }

    fn check(chunks: &[&str], max: i64, want: &[&str]) {
        let mut lines = Lines::new("stderr", max);
        let mut text = Vec::new();
        for chunk in chunks {
            text.extend(lines.cut(chunk.as_bytes()));
        }
        text.extend(lines.finish());
        assert_eq!(bare(&text), want, "{chunks:?} at {max}");
    }

    #[test]
    fn lines_are_cut_as_containerd_cuts_them() {
        check(&["a\nb\n"], 9, &["stderr F a", "stderr F b"]);
        check(&["a", "b", "c\n"], 9, &["stderr F abc"]);
        check(
            &["\n\r\nx\r\n"],
            9,
            &["stderr F ", "stderr F ", "stderr F x"],
        );
        check(&["no end"], 9, &["stderr P no end"]);
        check(&["a\rb\n"], 9, &["stderr F a\rb"]);
        check(&[], 9, &[]);
    }

    #[test]
    fn the_limit_of_a_line_holds_at_plus_minus_one() {
        check(&["abc\n"], 4, &["stderr F abc"]);
        check(&["abcd\n"], 4, &["stderr F abcd"]);
        check(&["abcde\n"], 4, &["stderr P abcd", "stderr F e"]);
        check(
            &["abcdefgh", "i\n"],
            4,
            &["stderr P abcd", "stderr P efgh", "stderr F i"],
        );
        let long = "x".repeat(100_000);
        check(&[&long, "\n"], -1, &[&format!("stderr F {long}")]);
        check(&[&long, "\n"], 0, &[&format!("stderr F {long}")]);
    }
}
