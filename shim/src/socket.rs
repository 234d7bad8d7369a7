//! Owns the shim's socket on disk: its path, binding it for this user only, and telling a live one from a leftover.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// Where shims of daemons before 2.3 keep their sockets.
pub(crate) const DEFAULT_DIR: &str = "/run/containerd/s";

/// sun_path holds 108 bytes with the final NUL.
const MAX_PATH: usize = 107;

/// Result of [`bind`].
#[derive(Debug)]
pub(crate) enum Bound {
    Fresh(UnixListener),
    /// A live shim of the same group listens here already.
    Taken,
}

/// `<dir>/<sha256 of "<daemon address>/<namespace>/<group>">`: one name for all containers of a group.
pub(crate) fn path(dir: &str, address: &str, namespace: &str, group: &str) -> PathBuf {
    // containerd 2.4 pkg/shim/util_unix.go joins with filepath.Join, which drops empty parts.
    let joined = [address.trim_end_matches('/'), namespace, group]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let name: String = Sha256::digest(joined.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dir = if dir.is_empty() { DEFAULT_DIR } else { dir };
    Path::new(dir).join(name)
}

/// Binds 0600 in a 0700 directory, clearing away the socket of a dead shim.
pub(crate) fn bind(path: &Path) -> Result<Bound> {
    let what = format!("create new shim socket {}", path.display());
    if path.as_os_str().len() > MAX_PATH {
        return Err(Error::invalid(format!(
            "{what}: the path is longer than {MAX_PATH} bytes"
        )));
    }
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .context(format!("mkdir {}", dir.display()))?;
    }
    for _ in 0..2 {
        match bind_private(path) {
            Ok(listener) => return Ok(Bound::Fresh(listener)),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                if is_live(path) {
                    return Ok(Bound::Taken);
                }
                remove(path).context("remove pre-existing socket")?;
            }
            Err(e) => return Err(Error::from(e).context(what)),
        }
    }
    Err(Error::unknown(format!("{what}: address in use")))
}

/// Whether somebody accepts connections there.
pub(crate) fn is_live(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Unlinks the socket; a missing one is fine, and nothing but a socket is ever removed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::other("not a socket")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // The mode is right from the first moment on; only this thread exists, so nobody else sees the mask.
    let old = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(old);
    listener
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_name_is_containerd_s() {
        // sha256("/run/containerd/containerd.sock/default/web")
        let got = path("", "/run/containerd/containerd.sock", "default", "web");
        assert_eq!(got.parent(), Some(Path::new("/run/containerd/s")));
        let hex = got.file_name().unwrap().to_str().unwrap();
        let want: String = Sha256::digest(b"/run/containerd/containerd.sock/default/web")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hex, want);
        assert_eq!(
            path("/x/s", "/a", "n", "g").parent(),
            Some(Path::new("/x/s"))
        );
        assert_ne!(path("", "/a", "n", "g"), path("", "/a", "n", "h"));
    }

    #[test]
    fn a_live_socket_is_reused_and_a_dead_one_replaced() {
        let dir = std::env::temp_dir().join(format!("corten-socket-{}", std::process::id()));
        let at = dir.join("s").join("x");
        let Bound::Fresh(first) = bind(&at).unwrap() else {
            panic!("nobody was there")
        };
        let mode = std::fs::metadata(&at).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(matches!(bind(&at).unwrap(), Bound::Taken));
        drop(first);
        assert!(matches!(bind(&at).unwrap(), Bound::Fresh(_)));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
