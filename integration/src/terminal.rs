//! A command on a terminal of its own: we hold the master side, type into it and read the screen.
//!
//! `setsid --ctty` makes the slave side the command's controlling terminal, so that a change of
//! the window's size reaches it as SIGWINCH.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::{Cmd, Collected, DEADLINE, exits_within};

/// A running command and the master side of its terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    screen: Collected,
    reaped: bool,
}

// === impl Terminal ===

impl Terminal {
    /// Starts `cmd` on a new terminal of `rows` by `columns`.
    #[must_use]
    pub fn start(cmd: &Cmd, rows: u16, columns: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let name = name.to_str().expect("pts names are ASCII").to_owned();
        // O_NOCTTY: the terminal is to become the child's, not ours.
        let noctty = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(noctty)
            .open(name)
            .unwrap();
        let master = File::from(master);
        set_size(&master, rows, columns);

        cmd.note();
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .args(cmd.argv())
            .envs(cmd.environment());
        command.stdin(slave.try_clone().unwrap());
        command.stdout(slave.try_clone().unwrap());
        command.stderr(slave);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start setsid: {e}"));
        drop(command);
        let screen = Collected::from(master.try_clone().unwrap());
        Self {
            master,
            child,
            screen,
            reaped: false,
        }
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes input");
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.master, rows, columns);
    }

    /// Waits until the screen has shown `text` and gives all of it so far.
    pub fn wait_for(&mut self, text: &str) -> String {
        // Line ends are up to two terminals and a client between them: they are not compared.
        match self
            .screen
            .wait_for(&|seen| plain(seen).contains(text), DEADLINE)
        {
            Ok(seen) => plain(&seen),
            Err(seen) => panic!("the terminal never showed {text:?}, but {seen:?}"),
        }
    }

    /// True if the screen has shown `text` by then.
    #[must_use]
    pub fn shows_within(&self, text: &str, within: Duration) -> bool {
        self.screen
            .wait_for(&|seen| plain(seen).contains(text), within)
            .is_ok()
    }

    /// Waits for the end and gives the exit code and everything shown.
    #[must_use]
    pub fn wait(mut self) -> (i32, String) {
        assert!(
            exits_within(self.child.id(), DEADLINE),
            "still on its terminal after {DEADLINE:?}, showing {:?}",
            self.screen.text()
        );
        let status = self.child.wait().expect("the child is ours");
        self.reaped = true;
        let _ = self.screen.wait_for(&|_| false, Duration::from_millis(300));
        (status.code().unwrap_or(-1), plain(&self.screen.text()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn plain(screen: &str) -> String {
    screen.replace('\r', "")
}

fn set_size(master: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size).expect("a terminal has a size");
}
