//! Loop devices: files as block devices, for file systems that the kernel does not mount from a file.
//!
//! A device with `autoclear` lives as long as something has it open or mounted; without it, until it is cleared.

#![expect(
    unsafe_code,
    reason = "the ioctls of loop devices have no safe wrapper"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;

/// Another process may take the free device first; so often we ask again.
const RETRIES: usize = 100;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Info {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// How to attach a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    pub read_only: bool,
    /// Cleared when the last user is gone.
    pub autoclear: bool,
    pub direct_io: bool,
}

/// An attached device, held open.
#[derive(Debug)]
pub struct Loop {
    file: File,
    path: PathBuf,
}

/// Attaches `backing` to a free device.
///
/// # Errors
/// The kernel's; NotFound when the host has no loop devices.
pub fn attach(backing: &Path, options: Options) -> io::Result<Loop> {
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(backing)?;
    let control = open_device(Path::new("/dev/loop-control"), true)?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..RETRIES {
        let number = free_device(&control)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_device(&path, !options.read_only)?;
        match configure(&device, &file, backing, options) {
            Ok(()) => return Ok(Loop { file: device, path }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// Opens an attached device.
///
/// # Errors
/// The file system's.
pub fn open(path: &Path) -> io::Result<Loop> {
    Ok(Loop {
        file: open_device(path, false)?,
        path: path.to_owned(),
    })
}

fn open_device(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn free_device(control: &impl AsFd) -> io::Result<i32> {
    // SAFETY: the request takes no argument; the descriptor is open for as long as it is borrowed.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(number)
}

fn configure(device: &File, backing: &File, name: &Path, options: Options) -> io::Result<()> {
    let mut config = Config {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        info: Info::EMPTY,
        reserved: [0; 8],
    };
    for (set, flag) in [
        (options.read_only, FLAG_READ_ONLY),
        (options.autoclear, FLAG_AUTOCLEAR),
        (options.direct_io, FLAG_DIRECT_IO),
    ] {
        config.info.flags |= if set { flag } else { 0 };
    }
    // Only shown by losetup; the last byte stays zero.
    let name = name.as_os_str().as_bytes();
    let shown = name.len().min(63);
    config.info.file_name[..shown].copy_from_slice(&name[..shown]);
    // SAFETY: `config` has the layout of struct loop_config and lives through the call, which only reads it; both
    // descriptors are open for as long as the files are borrowed.
    let done = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            LOOP_CONFIGURE as _,
            std::ptr::from_ref(&config),
        )
    };
    outcome(done)
}

fn outcome(done: libc::c_int) -> io::Result<()> {
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

// === impl Loop ===

impl Loop {
    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the device goes with its last user, from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_autoclear(&self, on: bool) -> io::Result<()> {
        let mut info = Info::EMPTY;
        // SAFETY: `info` has the layout of struct loop_info64, lives through the call and is borrowed by nobody else;
        // any bytes that the kernel writes into its integers are valid.
        let done = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                LOOP_GET_STATUS64 as _,
                std::ptr::from_mut(&mut info),
            )
        };
        outcome(done)?;
        if on {
            info.flags |= FLAG_AUTOCLEAR;
        } else {
            info.flags &= !FLAG_AUTOCLEAR;
        }
        // SAFETY: `info` has the layout of struct loop_info64 and lives through the call, which only reads it.
        let done = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                LOOP_SET_STATUS64 as _,
                std::ptr::from_ref(&info),
            )
        };
        outcome(done)
    }
}

/// Whether `/dev/loopN` is attached to a file.
pub fn is_attached(path: &Path) -> bool {
    path.file_name().is_some_and(|name| {
        Path::new("/sys/block")
            .join(name)
            .join("loop/backing_file")
            .exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
    }

    #[test]
    fn a_device_goes_with_its_last_user() {
        let image = std::env::temp_dir().join(format!("corten-loop-{}", std::process::id()));
        std::fs::write(&image, vec![0; 4096]).unwrap();
        let attached = match attach(&image, Options::default()) {
            Ok(attached) => attached,
            Err(e) => {
                eprintln!("skipped: no loop devices here: {e}");
                std::fs::remove_file(image).unwrap();
                return;
            }
        };
        let path = attached.path().to_owned();
        drop(attached);
        assert!(is_attached(&path));
        let opened = open(&path).unwrap();
        opened.set_autoclear(true).unwrap();
        drop(opened);
        std::fs::remove_file(image).unwrap();
        // The kernel clears it in a work queue.
        let gone = (0..200).any(|_| {
            std::thread::park_timeout(std::time::Duration::from_millis(10));
            !is_attached(&path)
        });
        assert!(gone);
    }
}
