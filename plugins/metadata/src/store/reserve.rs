//! Disk space held back for the day the disk is full: what makes room, such as the removal of an image, is itself a
//! commit that needs some.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::warn;

/// Bytes held back: some dozens of commits.
const SIZE: usize = 1 << 20;
/// How often to try to get the space back on a disk that stays full.
const RETRY: Duration = Duration::from_secs(60);

pub(super) struct Reserve {
    path: PathBuf,
    held: bool,
    tried: Option<Instant>,
}

impl Reserve {
    /// Takes the space, unless an earlier process has done so or there is none.
    pub(super) fn open(path: PathBuf) -> Self {
        let held = path
            .metadata()
            .is_ok_and(|m| usize::try_from(m.len()) == Ok(SIZE));
        let mut reserve = Self {
            path,
            held,
            tried: None,
        };
        reserve.fill();
        reserve
    }

    /// Takes the space again after it was given up.
    pub(super) fn fill(&mut self) {
        if self.held || self.tried.is_some_and(|at| at.elapsed() < RETRY) {
            return;
        }
        self.tried = Some(Instant::now());
        // Written rather than allocated: that works on every file system.
        let written = File::create(&self.path).and_then(|mut file| {
            file.write_all(&vec![0; SIZE])?;
            file.sync_all()
        });
        self.held = written.is_ok();
        if !self.held {
            // Nothing to do about it: less than what is wanted helps nobody.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Gives the space up; `false` when there was none.
    pub(super) fn release(&mut self) -> bool {
        if !std::mem::take(&mut self.held) {
            return false;
        }
        self.tried = Some(Instant::now());
        warn!("the disk is full: giving up the space held back for metadata");
        std::fs::remove_file(&self.path).is_ok()
    }
}
