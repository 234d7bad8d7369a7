//! File systems that lie in files: mounted, and erofs ones made.
//!
//! erofs is mounted from the file itself where the kernel can (6.12); everything else, and erofs on older kernels, goes
//! over a loop device that goes away with the mount.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use corten_core::{Context, Error, Kind, Mount, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::loopdev::{self, Loop};
use crate::options::Parsed;
use crate::root::magic_path;

/// Bytes that mount(2) takes of options, less a reserve.
const PAGE: usize = 4096 - 512;

/// Mounts the image `m.source` at `target`. erofs' `device=` options are images too.
///
/// # Errors
/// The kernel's.
pub fn mount(m: &Mount, options: &Parsed, target: &Path) -> Result<()> {
    let source = Path::new(&m.source);
    if m.r#type == "erofs" {
        match from_files(source, options, target) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOTBLK) => {}
            done => return Ok(done?),
        }
    }
    let read_only = m.r#type == "erofs" || options.flags.contains(MountFlags::RDONLY);
    let attach = |path: &Path| {
        let options = loopdev::Options {
            read_only,
            autoclear: true,
            direct_io: false,
        };
        loopdev::attach(path, options)
            .with_context(|| format!("attach {} to a loop device", path.display()))
    };
    let device = attach(source)?;
    let (mut data, mut more) = (Vec::new(), Vec::<Loop>::new());
    for o in &options.data {
        match o.strip_prefix("device=") {
            Some(path) if m.r#type == "erofs" => {
                let device = attach(Path::new(path))?;
                data.push(format!("device={}", device.path().display()));
                more.push(device);
            }
            _ => data.push(o.clone()),
        }
    }
    let data = text(&data)?;
    let flags = if read_only {
        options.flags | MountFlags::RDONLY
    } else {
        options.flags
    };
    rustix::mount::mount(
        device.path(),
        target,
        m.r#type.as_str(),
        flags,
        Some(data.as_c_str()),
    )
    .map_err(io::Error::from)?;
    Ok(())
}

/// mount(2) takes one page of options: many devices need short names.
fn from_files(source: &Path, options: &Parsed, target: &Path) -> io::Result<()> {
    let mut open: Vec<OwnedFd> = Vec::new();
    let mut short = |path: &Path| -> io::Result<PathBuf> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        open.push(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
        Ok(open.last().map(magic_path).unwrap_or_default())
    };
    let mut data = options.data.clone();
    if data.iter().map(|o| o.len() + 1).sum::<usize>() >= PAGE {
        for o in &mut data {
            if let Some(path) = o.strip_prefix("device=") {
                *o = format!("device={}", short(Path::new(path))?.display());
            }
        }
    }
    let data = text(&data).map_err(io::Error::other)?;
    let flags = options.flags | MountFlags::RDONLY;
    Ok(rustix::mount::mount(
        source,
        target,
        "erofs",
        flags,
        Some(data.as_c_str()),
    )?)
}

fn text(options: &[String]) -> Result<CString> {
    CString::new(options.join(",")).map_err(|_| Error::invalid("mount options with a NUL byte"))
}

/// Whether the kernel knows this file system, by itself or as a module already loaded.
pub fn kernel_knows(kind: &str) -> bool {
    std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|all| all.lines().any(|l| l.split('\t').nth(1) == Some(kind)))
}

/// Makes `to` an erofs image of the folder `from`, under another name until it is whole.
///
/// # Errors
/// What mkfs.erofs says.
pub fn make_erofs(from: &Path, to: &Path, options: &[String]) -> Result<()> {
    let unfinished = to.with_extension("new");
    let mut command = Command::new("mkfs.erofs");
    command
        .args(["--quiet", "-Enoinline_data"])
        .args(options)
        .args([&unfinished, from]);
    let made = command
        .output()
        .context("run mkfs.erofs")
        .and_then(|out| succeeded("mkfs.erofs", &out))
        .and_then(|()| Ok(std::fs::rename(&unfinished, to)?));
    if made.is_err() {
        // Absent when mkfs did not come to make it.
        let _ = std::fs::remove_file(&unfinished);
    }
    made
}

/// An error with what the program said, unless it succeeded.
///
/// # Errors
/// See above.
pub fn succeeded(program: &str, out: &Output) -> Result<()> {
    if out.status.success() {
        return Ok(());
    }
    let said = [out.stdout.as_slice(), &out.stderr].concat();
    Err(Error::new(
        Kind::Unknown,
        format!(
            "{program} failed: {}: {}",
            String::from_utf8_lossy(&said).trim(),
            out.status
        ),
    ))
}

/// What mkfs.erofs says of its options; they differ between releases.
///
/// # Errors
/// NotFound when it is not installed.
pub fn mkfs_erofs_help() -> Result<String> {
    let out = Command::new("mkfs.erofs").arg("--help").output()?;
    Ok(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}
