//! Owns logs in the CRI's format, written here so that they go on while the daemon is away; and attached readers.
//!
//! ```text
//! cri-log:///path/of/0.log?max-line=16384&max-size=0
//! 2026-11-21T15:04:05.999999999Z stdout F a whole line
//! 2026-11-21T15:04:06Z stderr P a part of a long line
//! ```
//! A line longer than `max-line` (-1: unlimited) is cut into parts tagged P and a last one tagged F; what ends without a
//! newline is tagged P. `max-size` bounds the file: before it grows beyond, it is renamed to `<name>.1` and begun anew;
//! 0 leaves that to the kubelet, which renames and asks to reopen (`service::pod`). The last component is never followed
//! as a link. An empty path keeps no log but can be attached to.
//!
//! A file that cannot be written costs lines, never the process. A reader that takes nothing for a while is left.

use std::cell::{Cell, RefCell};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use corten_protos::time;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::logger::unescape;
use super::pump::Sink;
use crate::error::{Context, Error, Result};
use crate::log;

/// containerd's default.
const MAX_LINE: usize = 16 << 10;
const MODE: Mode = Mode::from_raw_mode(0o640);
/// How long an attached reader may hold up the process.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a `cri-log://` URI says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// Empty: no file.
    path: PathBuf,
    max_line: usize,
    /// 0: unbounded.
    max_size: u64,
}

/// One log, written by both streams of a process.
#[derive(Debug)]
pub(crate) struct CriLog {
    config: Config,
    file: RefCell<Option<OwnedFd>>,
    size: Cell<u64>,
    /// Said once until it works again.
    failing: Cell<bool>,
    streams: [LogStream; 2],
}

/// stdout or stderr on its way.
#[derive(Debug)]
struct LogStream {
    name: &'static str,
    /// Of a line that has not ended.
    pending: RefCell<Vec<u8>>,
    readers: RefCell<Vec<Sink>>,
    ended: Cell<bool>,
}

/// One stream of a log, for copying.
#[derive(Debug, Clone)]
pub(crate) struct LogSink {
    log: Rc<CriLog>,
    stream: usize,
}

// === impl Config ===

impl Config {
    /// Parses what follows `cri-log://`.
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut config = Self {
            path: PathBuf::from(unescape(path)?),
            max_line: MAX_LINE,
            max_size: 0,
        };
        let wrong = || Error::invalid(format!("unable to parse stdout uri cri-log://{uri}"));
        if !config.path.as_os_str().is_empty() && !config.path.is_absolute() {
            return Err(wrong());
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            match key {
                "max-line" if value == "-1" => config.max_line = usize::MAX,
                "max-line" => {
                    let max: usize = value.parse().map_err(|_| wrong())?;
                    config.max_line = if max == 0 { MAX_LINE } else { max };
                }
                "max-size" => config.max_size = value.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        Ok(config)
    }
}

// === impl CriLog ===

impl CriLog {
    pub(super) fn open(config: Config) -> Result<Rc<Self>> {
        let stream = |name| LogStream {
            name,
            pending: RefCell::default(),
            readers: RefCell::default(),
            ended: Cell::default(),
        };
        let log = Self {
            config,
            file: RefCell::default(),
            size: Cell::default(),
            failing: Cell::default(),
            streams: [stream("stdout"), stream("stderr")],
        };
        log.reopen()?;
        Ok(Rc::new(log))
    }

    /// Opens the file by its name; on failure the old one stays in use.
    pub(crate) fn reopen(&self) -> Result<()> {
        let path = &self.config.path;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let what = || format!("open log file {}", path.display());
        // Non-blocking and checked: a fifo in its place must not hold up every container.
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        let open = || rustix::fs::open(path, flags, MODE);
        let file = match open() {
            Err(Errno::NOENT) => {
                // As containerd does for clients that do not make the pod's folder themselves.
                let dir = path.parent().unwrap_or(path);
                let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
                made.context(what())?;
                open()
            }
            opened => opened,
        };
        let file = file.context(what())?;
        let stat = rustix::fs::fstat(&file).context(what())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::invalid(format!("{}: not a regular file", what())));
        }
        self.size.set(u64::try_from(stat.st_size).unwrap_or(0));
        *self.file.borrow_mut() = Some(file);
        self.failing.set(false);
        Ok(())
    }

    /// Copies a stream from now on to `sink`, too; 0 is stdout. After the end of the stream the sink just ends.
    pub(crate) fn attach(&self, stream: usize, sink: Sink) {
        if let Some(stream) = self.streams.get(stream)
            && !stream.ended.get()
        {
            let mut readers = stream.readers.borrow_mut();
            // A process that prints nothing would keep the descriptors of all who were ever attached.
            readers.retain(|r| !r.is_left());
            readers.push(sink);
        }
    }

    /// Both streams have ended, as far as anybody waits for them.
    pub(super) fn finish(&self) {
        for stream in &self.streams {
            self.finish_stream(stream);
        }
    }

    fn finish_stream(&self, stream: &LogStream) {
        let rest = std::mem::take(&mut *stream.pending.borrow_mut());
        if !rest.is_empty() {
            let mut text = Vec::new();
            stream.line(&mut text, b'P', &rest);
            self.write(&text);
        }
        stream.ended.set(true);
        stream.readers.borrow_mut().clear();
    }

    pub(super) fn sink(self: &Rc<Self>, stream: usize) -> LogSink {
        LogSink {
            log: self.clone(),
            stream,
        }
    }

    fn write(&self, text: &[u8]) {
        let length = text.len() as u64;
        let max = self.config.max_size;
        if max > 0 && self.size.get() > 0 && self.size.get() + length > max {
            self.rotate();
        }
        let file = self.file.borrow();
        let Some(file) = file.as_ref() else {
            return;
        };
        let mut rest = text;
        while !rest.is_empty() {
            match rustix::io::write(file, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    if !self.failing.replace(true) {
                        log::warning!("write log {}: {e}", self.config.path.display());
                    }
                    return;
                }
            }
        }
        self.size.set(self.size.get() + length);
        self.failing.set(false);
    }

    fn rotate(&self) {
        let path = &self.config.path;
        let renamed = std::fs::rename(path, predecessor(path)).map_err(Error::from);
        if let Err(e) = renamed.and_then(|()| self.reopen())
            && !self.failing.replace(true)
        {
            log::warning!("rotate log {}: {e}", path.display());
        }
    }
}

fn predecessor(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

// === impl LogSink ===

impl LogSink {
    fn stream(&self) -> &LogStream {
        &self.log.streams[self.stream]
    }

    /// Logs what came, then hands it to whoever is attached.
    pub(super) async fn write(&self, bytes: &[u8]) {
        let stream = self.stream();
        let text = stream.lines(bytes, self.log.config.max_line);
        self.log.write(&text);
        drop(text);
        let readers = stream.readers.borrow().clone();
        for reader in readers {
            let written = tokio::time::timeout(PATIENCE, reader.write_all(bytes)).await;
            if !matches!(written, Ok(Ok(()))) {
                stream.readers.borrow_mut().retain(|r| !r.is(&reader));
            }
        }
    }

    /// The stream has ended.
    pub(super) fn finish(&self) {
        self.log.finish_stream(self.stream());
    }
}

// === impl LogStream ===

impl LogStream {
    /// The lines, and parts of lines, that `bytes` complete.
    fn lines(&self, bytes: &[u8], max: usize) -> Vec<u8> {
        let mut pending = self.pending.borrow_mut();
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (content, ends) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            pending.extend_from_slice(content);
            while pending.len() > max {
                let rest = pending.split_off(max);
                self.line(&mut text, b'P', &pending);
                *pending = rest;
            }
            if ends {
                let line = pending.strip_suffix(b"\r").unwrap_or(&pending);
                self.line(&mut text, b'F', line);
                pending.clear();
            }
        }
        if pending.is_empty() {
            // A process that prints nothing for days keeps no buffer.
            *pending = Vec::new();
        }
        text
    }

    fn line(&self, text: &mut Vec<u8>, tag: u8, content: &[u8]) {
        text.extend_from_slice(time::rfc3339(&time::now()).as_bytes());
        text.push(b' ');
        text.extend_from_slice(self.name.as_bytes());
        text.extend_from_slice(&[b' ', tag, b' ']);
        text.extend_from_slice(content);
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> LogStream {
        LogStream {
            name: "stdout",
            pending: RefCell::default(),
            readers: RefCell::default(),
            ended: Cell::default(),
        }
    }

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

    #[test]
    fn lines_are_cut_as_containerd_cuts_them() {
        let check = |chunks: &[&str], max: usize, want: &[&str]| {
            let stream = stream();
            let text: Vec<u8> = chunks
                .iter()
                .flat_map(|chunk| stream.lines(chunk.as_bytes(), max))
                .collect();
            assert_eq!(bare(&text), want, "{chunks:?}");
        };
        check(&["a\nb\n"], 9, &["stdout F a", "stdout F b"]);
        check(&["a", "b", "c\n"], 9, &["stdout F abc"]);
        check(
            &["\n\r\nx\r\n"],
            9,
            &["stdout F ", "stdout F ", "stdout F x"],
        );
        check(&["abcd\n"], 4, &["stdout F abcd"]);
        check(&["abcde\n"], 4, &["stdout P abcd", "stdout F e"]);
        check(
            &["abcdefgh", "i\n"],
            4,
            &["stdout P abcd", "stdout P efgh", "stdout F i"],
        );
        check(&["no end"], 9, &[]);
    }

    #[test]
    fn uris_are_read_and_mistakes_refused() {
        let config = Config::parse("/var/log/a%20b/0.log?max-line=-1&max-size=5").unwrap();
        assert_eq!(config.path, Path::new("/var/log/a b/0.log"));
        assert_eq!((config.max_line, config.max_size), (usize::MAX, 5));
        let config = Config::parse("").unwrap();
        assert_eq!((config.max_line, config.max_size), (MAX_LINE, 0));
        for wrong in ["a/b", "/a?max-line=x", "/a?what=1", "/a?max-size"] {
            assert!(Config::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_reopened_bounded_and_never_followed() {
        let dir = std::env::temp_dir().join(format!("corten-crilog-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let config = |size| Config {
            path: path.clone(),
            max_line: MAX_LINE,
            max_size: size,
        };
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let log = CriLog::open(config(0)).unwrap();
        log.write(b"one\n");
        std::fs::rename(&path, dir.join("old")).unwrap();
        log.write(b"two\n");
        log.reopen().unwrap();
        log.write(b"three\n");
        assert_eq!(
            (read("old"), read("0.log")),
            ("one\ntwo\n".into(), "three\n".into())
        );

        let log = CriLog::open(config(10)).unwrap();
        log.write(b"four\n");
        assert_eq!(
            (read("0.log.1"), read("0.log")),
            ("three\n".into(), "four\n".into())
        );

        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.join("old"), &path).unwrap();
        assert!(log.reopen().is_err() && CriLog::open(config(0)).is_err());
        log.write(b"five\n");
        assert_eq!(read("old"), "one\ntwo\n");
        let deep = Config {
            path: dir.join("a/b/0.log"),
            ..config(0)
        };
        CriLog::open(deep).unwrap().write(b"six\n");
        assert_eq!(read("a/b/0.log"), "six\n");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
