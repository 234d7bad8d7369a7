//! Where the programs are: the reference ones that `integration/setup.sh` brings, and ours.
//!
//! `CORTEN_PEERS_DIR`, `CORTEN_BIN_DIR` and `CORTEN_UNDER_TEST` override the defaults. Nothing is
//! built or installed here; a missing program is a panic that names the command to run.

use std::env;
use std::path::{Path, PathBuf};

/// Which daemon a test drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Corten,
    /// Stock containerd 2.4.
    Reference,
    /// Debian's containerd 1.6, only ever spoken to by its own ctr.
    Debian,
}

/// The runtime name of our shim.
pub const CORTEN_RUNTIME: &str = "io.containerd.corten.v2";
/// The runtime name of the stock shim.
pub const RUNC_RUNTIME: &str = "io.containerd.runc.v2";

// === impl Kind ===

impl Kind {
    /// The daemon that `CORTEN_UNDER_TEST` names, Corten if it names none.
    #[must_use]
    pub fn under_test() -> Self {
        match env::var("CORTEN_UNDER_TEST").as_deref() {
            Err(_) | Ok("corten" | "") => Self::Corten,
            Ok("reference") => Self::Reference,
            Ok(other) => panic!("CORTEN_UNDER_TEST is {other:?}, not corten or reference"),
        }
    }

    #[must_use]
    pub fn program(self) -> PathBuf {
        match self {
            Self::Corten => ours("cortend"),
            Self::Reference => reference("containerd"),
            Self::Debian => debian("containerd"),
        }
    }

    /// The runtime that `ctr run` asks for when the test does not say: each daemon's own.
    #[must_use]
    pub fn default_runtime(self) -> String {
        env::var("CORTEN_RUNTIME").unwrap_or_else(|_| {
            match self {
                Self::Corten => CORTEN_RUNTIME,
                Self::Reference | Self::Debian => RUNC_RUNTIME,
            }
            .to_owned()
        })
    }

    /// The PATH for a daemon: our shim, then the stock shim of its own version, then runc.
    #[must_use]
    pub fn search_path(self) -> String {
        match self {
            Self::Corten | Self::Reference => search_path(),
            Self::Debian => {
                let own = dir().join("debian/usr/bin");
                search_path().replacen(':', &format!(":{}:", own.display()), 1)
            }
        }
    }
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("integration is a folder")
        .to_owned()
}

/// The directory with the reference programs.
#[must_use]
pub fn dir() -> PathBuf {
    env::var_os("CORTEN_PEERS_DIR").map_or_else(|| top().join("target/peers"), PathBuf::from)
}

fn existing(path: PathBuf, how: &str) -> PathBuf {
    assert!(path.exists(), "{} is missing: run {how}", path.display());
    path
}

/// A program built from the pinned Go modules.
#[must_use]
pub fn reference(name: &str) -> PathBuf {
    existing(dir().join("bin").join(name), "integration/setup.sh")
}

/// A program of an unpacked Debian package.
#[must_use]
pub fn debian(name: &str) -> PathBuf {
    existing(
        dir().join("debian/usr/bin").join(name),
        "integration/setup.sh",
    )
}

/// The directory with cortend and the shim: `CORTEN_BIN_DIR`, else the release build.
#[must_use]
pub fn our_dir() -> PathBuf {
    env::var_os("CORTEN_BIN_DIR").map_or_else(|| top().join("target/release"), PathBuf::from)
}

/// A program of ours.
#[must_use]
pub fn ours(name: &str) -> PathBuf {
    existing(our_dir().join(name), "make build")
}

/// True if our shim has been built.
#[must_use]
pub fn have_our_shim() -> bool {
    our_dir().join("containerd-shim-corten-v2").exists()
}

/// A PATH on which our shim and the reference shim and runc come first.
#[must_use]
pub fn search_path() -> String {
    let rest = env::var("PATH").unwrap_or_default();
    format!(
        "{}:{}:{rest}",
        our_dir().display(),
        dir().join("bin").display()
    )
}
