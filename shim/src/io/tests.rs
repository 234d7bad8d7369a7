//! The stream rules against real pipes and fifos.

use super::*;
use rustix::fs::{CWD, FileType, mknodat};
use std::io::Read;
use std::path::PathBuf;
use std::task::Poll;

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

/// Opens the streams of a process that is these descriptors.
async fn open_all(shim: &Shim, stdio: &Stdio) -> (Rc<Io>, OwnedFd, OwnedFd, OwnedFd) {
    let (child, io) = open(shim, "c", stdio, (0, 0), &(0, 0)).await.unwrap();
    match child {
        ChildStdio::Fds(stdin, stdout, stderr) => (io, stdin, stdout, stderr),
        other => panic!("{other:?}"),
    }
}

fn terminal_of(io: &Io) -> std::fs::File {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    io.attach_console(master).unwrap();
    let slave = OFlags::RDWR | OFlags::NOCTTY;
    std::fs::File::from(rustix::fs::open(name.as_c_str(), slave, Mode::empty()).unwrap())
}

#[test]
fn a_terminal_may_be_logged() {
    let dir = Dir::new("tty");
    for scheme in ["file", "cri-log"] {
        let path = dir.0.join(scheme);
        run(async {
            let stdio = Stdio {
                stdout: format!("{scheme}://{}", path.display()),
                terminal: true,
                ..Stdio::default()
            };
            let (child, io) = open(&shim(), "c", &stdio, (0, 0), &(4, 5)).await.unwrap();
            assert!(matches!(child, ChildStdio::Terminal { rows: 4, cols: 5 }));
            let mut slave = terminal_of(&io);
            std::io::Write::write_all(&mut slave, b"hello\n").unwrap();
            drop(slave);
            io.drain().await;
        });
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.ends_with("hello\r\n") || text.ends_with(" stdout F hello\n"),
            "{text:?}"
        );
    }
}

#[test]
fn a_plain_file_is_copied_to_stdin() {
    let dir = Dir::new("plain");
    let path = dir.0.join("in");
    std::fs::write(&path, "from a file").unwrap();
    run(async {
        let stdio = Stdio {
            stdin: path.to_str().unwrap().to_owned(),
            ..Stdio::default()
        };
        let (_io, stdin, ..) = open_all(&shim(), &stdio).await;
        let stat = rustix::fs::fstat(&stdin).unwrap();
        assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo);
        let (read, all) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stdin = End::readable(stdin).unwrap();
        pump::copy(&stdin, &Sink::stream(all).unwrap())
            .await
            .unwrap();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "from a file");
    });
}

#[test]
fn readers_attach_to_a_log_and_leave() {
    let dir = Dir::new("attach");
    let log = dir.0.join("0.log");
    let (first, second) = (dir.fifo("first"), dir.fifo("second"));
    run(async {
        let shim = shim();
        let stdio = Stdio {
            stdout: format!("cri-log://{}", log.display()),
            ..Stdio::default()
        };
        let (io, _stdin, stdout, stderr) = open_all(&shim, &stdio).await;
        let attach = |place: &str| {
            let sink = open_reader(&shim, place)?;
            io.cri_log().unwrap().attach(0, sink);
            Ok::<_, Error>(())
        };
        assert!(attach(&first).is_err(), "nobody reads there");
        let reader = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            std::fs::File::from(rustix::fs::open(path, flags, Mode::empty()).unwrap())
        };
        let (leaves, mut stays) = (reader(&first), reader(&second));
        attach(&first).unwrap();
        attach(&second).unwrap();
        drop(leaves);
        write(&stdout, b"one\ntw");
        write(&stderr, b"not for them\n");
        drop((stdout, stderr));
        io.drain().await;
        let mut text = String::new();
        stays.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntw");
    });
    let text = std::fs::read_to_string(log).unwrap();
    let has = |line: &str| text.lines().any(|l| l.ends_with(line));
    assert!(
        has(" stdout F one") && has(" stdout P tw") && has(" stderr F not for them"),
        "{text}"
    );
}

#[test]
fn readers_that_left_a_silent_log_are_forgotten() {
    let dir = Dir::new("silent");
    let open = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = all.filter_map(|e| std::fs::read_link(e.path()).ok());
        links.filter(|l| l.starts_with(&dir.0)).count()
    };
    run(async {
        let shim = shim();
        let stdio = Stdio {
            stdout: "cri-log://".into(),
            ..Stdio::default()
        };
        let (io, _stdin, _stdout, _stderr) = open_all(&shim, &stdio).await;
        for name in ["first", "second", "third"] {
            let place = dir.fifo(name);
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let reader = rustix::fs::open(&place, flags, Mode::empty()).unwrap();
            let sink = open_reader(&shim, &place).unwrap();
            io.cri_log().unwrap().attach(0, sink);
            assert_eq!(open(), 2, "the reader's and ours");
            drop(reader);
        }
    });
}

#[test]
fn a_process_waits_for_its_readers() {
    let dir = Dir::new("readers");
    run(async {
        let shim = shim();
        let stdio = Stdio {
            stdout: dir.fifo("out"),
            stderr: dir.fifo("err"),
            ..Stdio::default()
        };
        let mut opening = std::pin::pin!(open_all(&shim, &stdio));
        let is_open = std::future::poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_ready()));
        assert!(!is_open.await, "nobody reads yet");
        let reader = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            std::fs::File::from(rustix::fs::open(path, flags, Mode::empty()).unwrap())
        };
        let mut readers = [reader(&stdio.stdout), reader(&stdio.stderr)];
        let (io, _stdin, stdout, stderr) = opening.await;
        for (end, reader) in [stdout, stderr].into_iter().zip(&mut readers) {
            // Not an end, though the ends that were tried are closed.
            let error = reader.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            write(&end, b"x");
        }
        io.drain().await;
        for reader in &mut readers {
            assert_eq!(reader.read(&mut [0]).unwrap(), 1);
        }
    });
}

#[test]
fn close_io_before_there_is_a_client_still_ends_stdin() {
    let dir = Dir::new("early");
    let path = dir.fifo("in");
    run(async {
        let stdio = Stdio {
            stdin: path.clone(),
            ..Stdio::default()
        };
        let (io, stdin, ..) = open_all(&shim(), &stdio).await;
        io.close_stdin();
        let stdin = End::readable(stdin).unwrap();
        let (_read, all) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let sink = Sink::stream(all).unwrap();
        let end = tokio::time::timeout(Duration::from_secs(5), pump::copy(&stdin, &sink));
        end.await.expect("an end of input").unwrap();
    });
}
