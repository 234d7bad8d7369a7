//! Handing a child a file as descriptor 3.

#![expect(
    unsafe_code,
    reason = "what runs between fork and exec has no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The descriptor's number in the child.
const NUMBER: libc::c_int = 3;

/// The child of `command` will have `file` open as descriptor 3.
pub fn pass(command: &mut Command, file: OwnedFd) {
    let hand_over = move || {
        let fd = file.as_raw_fd();
        let done = if fd == NUMBER {
            // dup2 onto itself would leave close-on-exec set.
            // SAFETY: `file` owns this descriptor, which is open; the call touches no memory.
            unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }
        } else {
            // SAFETY: `file` owns `fd`; the child is about to exec and nothing in it relies on descriptor 3, whose
            // original stays open in the parent.
            unsafe { libc::dup2(fd, NUMBER) }
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes one async-signal-safe system call, takes no lock and
    // allocates nothing.
    unsafe { command.pre_exec(hand_over) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_child_reads_descriptor_3() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&3"]);
        pass(&mut command, read);
        std::fs::File::from(write).write_all(b"secret").unwrap();
        assert_eq!(command.output().unwrap().stdout, b"secret");
    }
}
