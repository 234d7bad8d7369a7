//! Owns publishing: events leave in order, one at a time, by ttrpc Forward to the daemon.
//!
//! The queue survives a daemon's absence: while nobody can be reached the first event waits, and nothing is counted
//! against it. An event that a reachable daemon refuses five times is dropped. The queue is bounded; when it is full the
//! oldest event goes, since a daemon that was away that long reads the truth from State and Wait. One that is there loses
//! none: what makes further events waits for `room`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use corten_protos::any;
use corten_protos::containerd::events;
use corten_protos::containerd::services::events::ttrpc::v1::ForwardRequest;
use corten_protos::containerd::types::Envelope;
use corten_protos::google::protobuf::Empty;
use corten_protos::time;
use corten_protos::ttrpc::runtime;
use prost::{Message, Name};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::log;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ATTEMPTS: u32 = 5;
const MAX_QUEUE: usize = 2048;
/// From here on new processes wait for a daemon that takes events.
const CROWD: usize = 256;
/// But not for longer: then it takes none.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// An event's topic.
pub(crate) trait Topic: Message + Name {
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($event:ident => $topic:literal),+ $(,)?) => {
        $(impl Topic for events::$event { const TOPIC: &'static str = $topic; })+
    };
}

topics! {
    TaskCreate => "/tasks/create",
    TaskStart => "/tasks/start",
    TaskOom => "/tasks/oom",
    TaskExit => "/tasks/exit",
    TaskDelete => "/tasks/delete",
    TaskExecAdded => "/tasks/exec-added",
    TaskExecStarted => "/tasks/exec-started",
    TaskPaused => "/tasks/paused",
    TaskResumed => "/tasks/resumed",
}

/// Why a delivery did not happen.
enum Refusal {
    /// Nobody there, or the connection broke.
    Away,
    /// The daemon answered, with an error.
    Answered(String),
}

/// The publisher. `publish` never waits.
#[derive(Debug)]
pub(crate) struct Events {
    namespace: String,
    /// Of the daemon's ttrpc socket; empty when the shim was started without one.
    address: PathBuf,
    queue: RefCell<VecDeque<Envelope>>,
    filled: Notify,
    drained: Notify,
    /// Told after each attempt.
    tried: Notify,
    busy: Cell<bool>,
    /// Nobody could be reached last time.
    away: Cell<bool>,
}

// === impl Events ===

impl Events {
    pub(crate) fn new(namespace: &str, address: &str) -> Self {
        let address = address.strip_prefix("unix://").unwrap_or(address);
        Self {
            namespace: namespace.to_owned(),
            address: PathBuf::from(address),
            queue: RefCell::default(),
            filled: Notify::new(),
            drained: Notify::new(),
            tried: Notify::new(),
            busy: Cell::new(false),
            away: Cell::new(false),
        }
    }

    /// Queues an event behind all earlier ones, stamped with this moment.
    pub(crate) fn publish<E: Topic>(&self, event: &E) {
        if self.address.as_os_str().is_empty() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= MAX_QUEUE {
            log::warning!("the event queue is full: dropped the oldest event");
            queue.pop_front();
        }
        queue.push_back(Envelope {
            timestamp: Some(time::now()),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(any::pack(event)),
        });
        self.filled.notify_one();
    }

    /// Waits while many events wait for a daemon that takes them. Cancel-safe.
    pub(crate) async fn room(&self) {
        let room = async {
            while !self.away.get() && self.queue.borrow().len() > CROWD {
                self.tried.notified().await;
            }
        };
        // Elapsed is no error: events are lost then at worst, processes are not.
        let _ = tokio::time::timeout(PATIENCE, room).await;
    }

    /// Delivers for ever.
    pub(crate) async fn forward(&self) {
        let mut client: Option<Client> = None;
        let mut attempts = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(envelope) = self.next() else {
                self.drained.notify_waiters();
                self.filled.notified().await;
                continue;
            };
            let outcome = self.deliver(&mut client, envelope).await;
            self.away.set(matches!(outcome, Err((_, Refusal::Away))));
            self.tried.notify_waiters();
            match outcome {
                Ok(()) => (attempts, pause) = (0, FIRST_PAUSE),
                Err((envelope, refusal)) => {
                    if let Refusal::Answered(text) = &refusal {
                        attempts += 1;
                        log::warning!("publish {}: {text}", envelope.topic);
                    }
                    if attempts >= MAX_ATTEMPTS {
                        attempts = 0;
                    } else {
                        self.queue.borrow_mut().push_front(envelope);
                    }
                    // Retrying is paced by the daemon's return, which nothing announces.
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
            self.busy.set(false);
        }
    }

    /// Waits until the queue is empty, but no longer than `patience`.
    pub(crate) async fn drain(&self, patience: Duration) {
        let empty = async {
            while self.busy.get() || !self.queue.borrow().is_empty() {
                self.drained.notified().await;
            }
        };
        if tokio::time::timeout(patience, empty).await.is_err() {
            log::warning!("{} events were not delivered", self.queue.borrow().len());
        }
    }

    fn next(&self) -> Option<Envelope> {
        let next = self.queue.borrow_mut().pop_front();
        self.busy.set(next.is_some());
        next
    }

    async fn deliver(
        &self,
        client: &mut Option<Client>,
        envelope: Envelope,
    ) -> Result<(), (Envelope, Refusal)> {
        let connected = match client.take() {
            Some(connected) => connected,
            None => match UnixStream::connect(&self.address).await {
                Ok(stream) => Client::new(Socket::new(stream)),
                Err(_) => return Err((envelope, Refusal::Away)),
            },
        };
        let mut context = ttrpc::context::with_duration(TIMEOUT);
        context.add(NAMESPACE_HEADER.to_owned(), self.namespace.clone());
        let request = ForwardRequest {
            envelope: Some(envelope),
        };
        let call = runtime::call::<_, Empty>(&connected, SERVICE, "Forward", context, &request);
        // The crate's own timeout is the peer's; a silent peer needs ours.
        let outcome = tokio::time::timeout(TIMEOUT, call).await;
        let envelope = request.envelope.unwrap_or_default();
        match outcome {
            Ok(Ok(_)) => {
                *client = Some(connected);
                Ok(())
            }
            Ok(Err(ttrpc::Error::RpcStatus(status))) => {
                *client = Some(connected);
                Err((envelope, Refusal::Answered(status.message)))
            }
            Ok(Err(_)) => Err((envelope, Refusal::Away)),
            Err(_) => Err((envelope, Refusal::Answered("no answer in time".to_owned()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_daemon_that_is_away() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let events = Events::new("n", "/no/such/socket");
            for _ in 0..MAX_QUEUE + 1 {
                events.publish(&corten_protos::containerd::events::TaskPaused::default());
            }
            assert_eq!(events.queue.borrow().len(), MAX_QUEUE);
            let begun = std::time::Instant::now();
            tokio::select! {
                () = events.room() => {}
                () = events.forward() => {}
            }
            assert!(begun.elapsed() < PATIENCE);
        });
    }
}
