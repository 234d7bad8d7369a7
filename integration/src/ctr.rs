//! The two ctr clients: 2.4, built from the pinned module, and 1.6, Debian's.

use std::path::{Path, PathBuf};

use crate::peers;
use crate::process::Cmd;

/// Which ctr speaks to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// ctr 2.4: pull, import and export go through the daemon's transfer service.
    New,
    /// ctr 1.6: does everything itself with the content, image and diff services.
    Old,
}

// === impl Client ===

impl Client {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::New => "ctr_2.4",
            Self::Old => "ctr_1.6",
        }
    }

    /// Where the client is.
    #[must_use]
    pub fn program(self) -> PathBuf {
        match self {
            Self::New => peers::reference("ctr"),
            Self::Old => peers::debian("ctr"),
        }
    }

    /// A ctr command for a daemon and a namespace, with no subcommand yet.
    #[must_use]
    pub fn command(self, socket: &Path, namespace: &str, tmp: &Path) -> Cmd {
        Cmd::new(self.program())
            .client(self)
            .arg("-a")
            .arg(socket)
            .args(["-n", namespace])
            .env("TMPDIR", tmp)
            .env("CONTAINERD_SNAPSHOTTER", "")
    }
}
