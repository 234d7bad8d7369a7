//! When collections run, on a clock of the test's own.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{advance, sleep};

use super::*;

#[derive(Default)]
struct Counter {
    runs: AtomicUsize,
    fail: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl Collector for Counter {
    async fn collect(&self) -> Result<Stats> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        if self.fail.load(Ordering::SeqCst) {
            return Err(Error::internal("broken"));
        }
        Ok(Stats {
            elapsed: Duration::from_millis(10),
            removed: 0,
        })
    }
}

impl Counter {
    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn deletions_collect_after_a_pause_and_idleness_does_not() {
    let c = Arc::new(Counter::default());
    let (_scheduler, mutated) = start(c.clone(), Config::default());
    sleep(Duration::from_millis(150)).await;
    assert_eq!(c.runs(), 1, "after the startup delay");
    mutated(true);
    settle().await;
    assert_eq!(c.runs(), 1, "not within the pause of 490 ms");
    sleep(Duration::from_millis(500)).await;
    assert_eq!(c.runs(), 2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(c.runs(), 2, "nothing to do");
    mutated(true);
    advance(Duration::from_millis(1)).await;
    settle().await;
    assert_eq!(c.runs(), 3, "at once when the pause is over");
    sleep(Duration::from_secs(60)).await;
    for _ in 0..99 {
        mutated(false);
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(c.runs(), 3);
    mutated(false);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(c.runs(), 4, "a hundred changes are enough");
}

#[tokio::test(start_paused = true)]
async fn who_asks_waits_for_a_collection_that_begins_later() {
    let c = Arc::new(Counter::default());
    let config = Config {
        startup_delay: Duration::ZERO,
        ..Config::default()
    };
    let (scheduler, _mutated) = start(c.clone(), config);
    settle().await;
    assert_eq!(c.runs(), 0);
    for n in 1..=3 {
        scheduler.schedule_and_wait().await.unwrap();
        assert_eq!(c.runs(), n, "no pause for who waits");
    }
    c.fail.store(true, Ordering::SeqCst);
    let e = scheduler.schedule_and_wait().await.unwrap_err();
    assert_eq!(e.to_string(), "gc failed");
    c.fail.store(false, Ordering::SeqCst);
    scheduler.schedule_and_wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn thresholds_and_delays_are_obeyed() {
    let c = Arc::new(Counter::default());
    let config = Config {
        deletion_threshold: 3,
        schedule_delay: Duration::from_secs(2),
        startup_delay: Duration::ZERO,
        ..Config::default()
    };
    let (_scheduler, mutated) = start(c.clone(), config);
    mutated(true);
    mutated(true);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(c.runs(), 0);
    mutated(true);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(c.runs(), 0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(c.runs(), 1);
}
