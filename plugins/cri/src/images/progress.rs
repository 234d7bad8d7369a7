//! When a pull is given up: while something is being downloaded and no byte of it comes for too long. What waits for its
//! turn, is unpacked or is kept busy by another pull is left alone.

use std::collections::HashMap;
use std::time::Duration;

use corten_core::protos::containerd::types::transfer::Progress;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes and stalls of one pull.
#[derive(Debug)]
pub(super) struct Watch {
    /// Zero: never give up.
    patience: Duration,
    /// What is on its way, with the bytes of it that came.
    active: HashMap<String, i64>,
    /// The registry is asked what the name stands for.
    resolving: bool,
    moved_at: Instant,
    pub(super) bytes: u64,
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            active: HashMap::new(),
            resolving: true,
            moved_at: Instant::now(),
            bytes: 0,
        }
    }

    /// Takes all progress; answers only when there was none for too long. Cancel-safe.
    pub(super) async fn stalled(&mut self, progress: &mut mpsc::Receiver<Progress>) {
        loop {
            let deadline = self.moved_at + self.patience;
            tokio::select! {
                event = progress.recv() => match event {
                    Some(event) => self.take(&event),
                    // The transfer is about to answer.
                    None => std::future::pending().await,
                },
                () = tokio::time::sleep_until(deadline), if self.can_stall() => return,
            }
        }
    }

    fn can_stall(&self) -> bool {
        !self.patience.is_zero() && (self.resolving || !self.active.is_empty())
    }

    /// What an event says.
    pub(super) fn take(&mut self, event: &Progress) {
        if event.desc.is_none() {
            // Only the whole transfer: "Resolving from", "Pulling from".
            self.resolving = event.event.starts_with("Resolving");
            self.moved_at = Instant::now();
            return;
        }
        if event.name.is_empty() || event.total == 0 {
            return;
        }
        let idle = !self.can_stall();
        match event.event.as_str() {
            "downloading" => {
                let had = self.active.insert(event.name.clone(), event.progress);
                // From nothing to something the clock starts anew.
                self.moved(idle, event.progress - had.unwrap_or_default());
            }
            "waiting" => {}
            _ => {
                if let Some(had) = self.active.remove(&event.name) {
                    let left = if event.event == "complete" {
                        event.progress - had
                    } else {
                        0
                    };
                    self.moved(true, left);
                }
            }
        }
        if self.active.get(&event.name) == Some(&event.total) {
            // All came; it is being written.
            self.active.remove(&event.name);
        }
    }

    fn moved(&mut self, idle: bool, bytes: i64) {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        self.bytes = self.bytes.saturating_add(bytes);
        if idle || bytes > 0 {
            self.moved_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, name: &str, progress: i64) -> Progress {
        Progress {
            event: event.into(),
            name: name.into(),
            progress,
            total: 100,
            desc: Some(Default::default()),
            ..Progress::default()
        }
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn gives_up(watch: &mut Watch, rx: &mut mpsc::Receiver<Progress>, after: u64) -> bool {
        let wait = Duration::from_secs(after);
        tokio::time::timeout(wait, watch.stalled(rx)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_silence_of_a_download_counts() {
        let (tx, mut rx) = mpsc::channel(8);
        let mut watch = Watch::new(PATIENCE);
        tx.send(Progress {
            event: "Pulling from x".into(),
            ..Progress::default()
        })
        .await
        .unwrap();
        tx.send(event("waiting", "a", 0)).await.unwrap();
        // Waiting for its turn, however long.
        assert!(!gives_up(&mut watch, &mut rx, 600).await);
        // The first bytes start the clock, each further one starts it anew.
        for n in [0, 10, 20] {
            tx.send(event("downloading", "a", n)).await.unwrap();
            assert!(!gives_up(&mut watch, &mut rx, 50).await);
        }
        tx.send(event("downloading", "a", 20)).await.unwrap();
        assert!(gives_up(&mut watch, &mut rx, 11).await);
        assert_eq!(watch.bytes, 20);
        // Unpacked: no download.
        let mut watch = Watch::new(PATIENCE);
        watch.resolving = false;
        watch.take(&event("downloading", "a", 40));
        watch.take(&event("complete", "a", 100));
        watch.take(&event("extracting", "a", 0));
        assert_eq!(watch.bytes, 100);
        assert!(!gives_up(&mut watch, &mut rx, 600).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_never_answers_is_given_up_unless_told_otherwise() {
        let (_tx, mut rx) = mpsc::channel(1);
        assert!(gives_up(&mut Watch::new(PATIENCE), &mut rx, 61).await);
        assert!(!gives_up(&mut Watch::new(Duration::ZERO), &mut rx, 6000).await);
    }
}
