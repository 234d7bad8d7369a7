//! The daemon's event socket: writes down what shims report, in the order it came.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_integration::process::{DEADLINE, patience};
use corten_protos::any;
use corten_protos::containerd::events as message;
use corten_protos::containerd::services::events::ttrpc::v1::ForwardRequest;
use corten_protos::google::protobuf::{Any, Empty};
use corten_protos::ttrpc::runtime::{TtrpcContext, async_trait};
use corten_protos::ttrpc::{Events, create_events};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

/// One event: whose it is, and what it says in a few words (`exit`, `exec-started e1`, `exit e1 0`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) container: String,
    pub(crate) text: String,
}

/// Everything that was reported.
#[derive(Debug, Default)]
pub(crate) struct Log {
    seen: Mutex<Vec<Event>>,
    came: Notify,
}

struct Service(Arc<Log>);

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, r: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = r.envelope.unwrap_or_default();
        let event = read(&envelope.topic, &envelope.event.unwrap_or_default());
        self.0.seen.lock().unwrap().push(event);
        self.0.came.notify_waiters();
        Ok(Empty {})
    }
}

fn read(topic: &str, event: &Any) -> Event {
    macro_rules! of {
        ($kind:ident) => {
            any::unpack::<message::$kind>(event).expect("an event of its topic")
        };
    }
    let of_process = |id: &str, exec: &str, rest: String| match exec {
        "" => rest,
        exec if exec == id => rest,
        exec => format!("{exec} {rest}"),
    };
    let (container, text) = match topic {
        "/tasks/create" => (of!(TaskCreate).container_id, "create".to_owned()),
        "/tasks/start" => (of!(TaskStart).container_id, "start".to_owned()),
        "/tasks/oom" => (of!(TaskOom).container_id, "oom".to_owned()),
        "/tasks/paused" => (of!(TaskPaused).container_id, "paused".to_owned()),
        "/tasks/resumed" => (of!(TaskResumed).container_id, "resumed".to_owned()),
        "/tasks/exit" => {
            let e = of!(TaskExit);
            let text = format!(
                "exit {}",
                of_process(&e.container_id, &e.id, e.exit_status.to_string())
            );
            (e.container_id, text)
        }
        "/tasks/delete" => {
            let e = of!(TaskDelete);
            let text = format!(
                "delete {}",
                of_process(&e.container_id, &e.id, e.exit_status.to_string())
            );
            (e.container_id, text)
        }
        "/tasks/exec-added" => {
            let e = of!(TaskExecAdded);
            (e.container_id, format!("exec-added {}", e.exec_id))
        }
        "/tasks/exec-started" => {
            let e = of!(TaskExecStarted);
            (e.container_id, format!("exec-started {}", e.exec_id))
        }
        other => (String::new(), other.to_owned()),
    };
    Event { container, text }
}

// === impl Log ===

impl Log {
    /// Serves the socket until the server is dropped.
    pub(crate) async fn serve(self: &Arc<Self>, socket: &Path) -> Server {
        let listener = UnixListener::bind(socket).expect("the path is ours and short");
        let connections = futures::stream::unfold(listener, |listener| async {
            let connection = listener.accept().await.map(|(stream, _)| stream);
            Some((connection, listener))
        });
        let mut server = Server::new()
            .add_listener(Listener::new(connections))
            .register_service(create_events(Arc::new(Service(self.clone()))));
        server.start().await.expect("a fresh server starts");
        server
    }

    /// The texts of a container's events so far.
    pub(crate) fn of(&self, container: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let mine = seen.iter().filter(|e| e.container == container);
        mine.map(|e| e.text.clone()).collect()
    }

    /// Waits for an event of a container and gives all of its events so far.
    pub(crate) async fn wait(&self, container: &str, text: &str) -> Vec<String> {
        let came = async {
            loop {
                let more = self.came.notified();
                let seen = self.of(container);
                if seen.iter().any(|t| t == text) {
                    return seen;
                }
                // Bounded, since a notice may come between the look and the wait.
                let _ = tokio::time::timeout(Duration::from_millis(50), more).await;
            }
        };
        let limit = DEADLINE * patience();
        tokio::time::timeout(limit, came).await.unwrap_or_else(|_| {
            panic!(
                "no event {text:?} of {container} in {limit:?}, but {:?}",
                self.of(container)
            )
        })
    }
}
