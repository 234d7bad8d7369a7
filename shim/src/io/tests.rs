//! The stream rules against real pipes and fifos.

use super::*;
use rustix::fs::{CWD, FileType, mknodat};
use std::io::Read;
use std::path::PathBuf;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("corten-io-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.0.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shim() -> Shim {
    let events = Rc::new(crate::events::Events::new("n", ""));
    Shim::new("n", events, None)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn write(fd: &OwnedFd, bytes: &[u8]) {
    assert_eq!(rustix::io::write(fd, bytes).unwrap(), bytes.len());
}

#[test]
fn output_waits_for_a_client_that_comes_after_the_end() {
    let dir = Dir::new("late");
    let path = dir.fifo("out");
    run(async {
        let io = Io::default();
        let sink = fifo::open_output(&path).unwrap();
        let process = io.pump_from_pipe(sink, (0, 0)).unwrap();
        write(&process, b"hello");
        drop(process);
        io.drain().await;
        let reader = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read_to_string(path).unwrap()
        });
        // The copy is done and kept; the loop must go on for the reader to be noticed.
        while !reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(reader.join().unwrap(), "hello");
    });
}

#[test]
fn a_client_that_opens_after_the_delete_reads_the_end() {
    let dir = Dir::new("silent");
    let path = dir.fifo("out");
    run(async {
        let io = Io::default();
        let sink = fifo::open_output(&path).unwrap();
        drop(io.pump_from_pipe(sink, (0, 0)).unwrap());
        io.drain().await;
        io.close().await;
        let (done, opened) = oneshot::channel();
        // Detached, because it would hang for ever without the shim's end of the fifo.
        std::thread::spawn(move || done.send(std::fs::read(path).unwrap()));
        let read = tokio::time::timeout(Duration::from_secs(5), opened).await;
        assert_eq!(read.expect("an end").unwrap(), b"");
        settle(Duration::from_secs(5)).await;
    });
}

#[test]
fn a_client_may_leave_and_another_come() {
    let dir = Dir::new("leave");
    let path = dir.fifo("out");
    run(async {
        let io = Io::default();
        let process = io
            .pump_from_pipe(fifo::open_output(&path).unwrap(), (0, 0))
            .unwrap();
        let first = std::fs::File::open(&path).unwrap();
        drop(first);
        write(&process, b"still here");
        drop(process);
        let mut second = std::fs::File::open(&path).unwrap();
        io.drain().await;
        tokio::task::yield_now().await;
        let mut text = String::new();
        second.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
    });
}

#[test]
fn stdin_ends_only_after_close_io() {
    let dir = Dir::new("stdin");
    let path = dir.fifo("in");
    run(async {
        let io = Io::default();
        let stdio = Stdio {
            stdin: path.clone(),
            ..Stdio::default()
        };
        let process = io.open_stdin(&shim(), &stdio, (0, 0)).unwrap();
        let process = End::readable(process).unwrap();
        std::fs::write(&path, "one ").unwrap();
        std::fs::write(&path, "two").unwrap();
        let (read, all) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        io.close_stdin();
        pump::copy(&process, &Sink::stream(all).unwrap())
            .await
            .unwrap();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
    });
}

#[test]
fn both_streams_reach_one_file() {
    let dir = Dir::new("file");
    let path = dir.0.join("sub/log");
    run(async {
        let io = Io::default();
        let sink = Sink::file(path.to_str().unwrap()).unwrap();
        let out = io.pump_from_pipe(sink.clone(), (0, 0)).unwrap();
        let err = io.pump_from_pipe(sink, (0, 0)).unwrap();
        write(&out, b"out\n");
        tokio::time::sleep(Duration::from_millis(20)).await;
        write(&err, b"err\n");
        drop((out, err));
        io.drain().await;
    });
    assert_eq!(std::fs::read_to_string(path).unwrap(), "out\nerr\n");
}

#[test]
fn more_than_a_pipe_holds_passes_through() {
    let dir = Dir::new("bulk");
    let path = dir.fifo("out");
    let bytes = vec![7_u8; 3 << 20];
    run(async {
        let io = Io::default();
        let process = io
            .pump_from_pipe(fifo::open_output(&path).unwrap(), (0, 0))
            .unwrap();
        let writer = std::thread::spawn({
            let bytes = bytes.clone();
            move || std::io::Write::write_all(&mut std::fs::File::from(process), &bytes).unwrap()
        });
        let reader = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read(path).unwrap().len()
        });
        io.drain().await;
        while !reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), bytes.len());
    });
}

#[test]
fn schemes_are_told_apart() {
    assert_eq!(Target::parse("/run/x").unwrap(), Target::Fifo);
    assert_eq!(Target::parse("fifo:///run/x").unwrap(), Target::Fifo);
    assert_eq!(
        Target::parse("file:///a%20b").unwrap(),
        Target::File("/a b".into())
    );
    assert_eq!(
        Target::parse("binary-v2:///l?a=b").unwrap(),
        Target::Binary {
            uri: "/l?a=b",
            handshake: true
        }
    );
    let error = Target::parse("gopher://x").unwrap_err();
    assert_eq!(error.to_string(), "unknown STDIO scheme gopher");
}
