//! The registry of open streams: what a client opened, found by namespace and id by who was told the id.
//!
//! A stream that was opened under a lease is closed by the garbage collector after the lease is gone; others last until
//! one of their sides closes them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use corten_core::gc::{Resource, Resources};
use corten_core::kinds;
use corten_core::streaming::{Stream, Streams};
use corten_core::{Any, Error, Labels, Namespace, Result};
use corten_registry::Registration;
use parking_lot::Mutex;

type Key = (Namespace, String);
type Table = Mutex<HashMap<Key, Arc<Managed>>>;

/// The streams of all namespaces.
#[derive(Default)]
pub struct Manager {
    streams: Arc<Table>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Manager({} streams)", self.streams.lock().len())
    }
}

/// A stream that leaves the table when it is closed.
struct Managed {
    inner: Arc<dyn Stream>,
    key: Key,
    lease: Option<String>,
    /// No other stream has it: ids come again.
    number: u64,
    table: Weak<Table>,
}

impl Streams for Manager {
    fn register_leased(
        &self,
        ns: &Namespace,
        lease: Option<&str>,
        id: &str,
        stream: Arc<dyn Stream>,
    ) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = (ns.clone(), id.to_owned());
        let mut streams = self.streams.lock();
        if streams.contains_key(&key) {
            return Err(Error::already_exists(format!("stream {id:?}")));
        }
        let managed = Managed {
            inner: stream,
            key: key.clone(),
            lease: lease.map(str::to_owned),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            table: Arc::downgrade(&self.streams),
        };
        streams.insert(key, Arc::new(managed));
        Ok(())
    }

    fn get(&self, ns: &Namespace, id: &str) -> Result<Arc<dyn Stream>> {
        let found = self
            .streams
            .lock()
            .get(&(ns.clone(), id.to_owned()))
            .cloned();
        match found {
            Some(stream) => Ok(stream),
            None => Err(Error::not_found(format!("stream {id:?}"))),
        }
    }

    fn remove(&self, ns: &Namespace, id: &str, stream: &Arc<dyn Stream>) {
        forget(&self.streams, &(ns.clone(), id.to_owned()), stream);
    }
}

#[async_trait]
impl Resources for Manager {
    fn kind(&self) -> &'static str {
        "stream"
    }

    fn all(&self) -> Vec<Resource> {
        let streams = self.streams.lock();
        let resource = |m: &Arc<Managed>| Resource {
            namespace: m.key.0.clone(),
            name: m.key.1.clone(),
            labels: Labels::new(),
            lease: m.lease.clone(),
            active: m.lease.is_none(),
            version: m.number,
        };
        streams.values().map(resource).collect()
    }

    async fn remove(&self, garbage: Vec<Resource>) -> Result<()> {
        for resource in garbage {
            let key = (resource.namespace, resource.name);
            let found = self.streams.lock().get(&key).cloned();
            if let Some(stream) = found.filter(|s| s.number == resource.version) {
                tracing::debug!(namespace = %key.0, id = key.1, "closing a stream without lease");
                stream.close().await;
            }
        }
        Ok(())
    }
}

fn forget(table: &Table, key: &Key, stream: &Arc<dyn Stream>) {
    let mut streams = table.lock();
    if streams
        .get(key)
        .is_some_and(|m| Arc::ptr_eq(&m.inner, stream))
    {
        streams.remove(key);
    }
}

#[async_trait]
impl Stream for Managed {
    async fn recv(&self) -> Result<Option<Any>> {
        self.inner.recv().await
    }
    async fn send(&self, message: Any) -> Result<()> {
        self.inner.send(message).await
    }
    async fn close(&self) {
        if let Some(table) = self.table.upgrade() {
            forget(&table, &self.key, &self.inner);
        }
        self.inner.close().await;
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Streaming>("manager")
        .requires::<kinds::Metadata>()
        .init_plain(|cx| {
            Box::pin(async move {
                let manager = Arc::new(Manager::default());
                let metadata = cx.single::<kinds::Metadata>()?;
                metadata.collect_also(manager.clone());
                Ok(manager as Arc<dyn Streams>)
            })
        })
}

/// A stream whose two ends are both here, for tests and for callers in the daemon.
#[cfg(test)]
pub(crate) mod pipe {
    use tokio::sync::mpsc;

    use super::*;

    pub(crate) struct Pipe {
        tx: Mutex<Option<mpsc::Sender<Any>>>,
        rx: tokio::sync::Mutex<mpsc::Receiver<Any>>,
    }

    pub(crate) fn pipe() -> (Arc<Pipe>, Arc<Pipe>) {
        let (a, b) = (mpsc::channel(4), mpsc::channel(4));
        let end = |tx, rx| {
            Arc::new(Pipe {
                tx: Mutex::new(Some(tx)),
                rx: tokio::sync::Mutex::new(rx),
            })
        };
        (end(a.0, b.1), end(b.0, a.1))
    }

    #[async_trait]
    impl Stream for Pipe {
        async fn recv(&self) -> Result<Option<Any>> {
            Ok(self.rx.lock().await.recv().await)
        }
        async fn send(&self, message: Any) -> Result<()> {
            let tx = self.tx.lock().clone();
            let gone = || Error::new(corten_core::Kind::Unavailable, "closed");
            tx.ok_or_else(gone)?.send(message).await.map_err(|_| gone())
        }
        async fn close(&self) {
            self.tx.lock().take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ids_are_unique_until_closed_and_namespaced() {
        let m = Manager::default();
        let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
        m.register(&a, "x", pipe::pipe().0).unwrap();
        let again = m.register(&a, "x", pipe::pipe().0).unwrap_err();
        assert_eq!(again.kind(), corten_core::Kind::AlreadyExists);
        assert!(m.get(&b, "x").is_err());
        m.get(&a, "x").unwrap().close().await;
        assert!(m.get(&a, "x").is_err());
    }

    #[tokio::test]
    async fn the_collector_closes_what_it_lists_and_nothing_newer() {
        let m = Manager::default();
        let ns = Namespace::new("a").unwrap();
        m.register_leased(&ns, Some("l"), "x", pipe::pipe().0)
            .unwrap();
        m.register(&ns, "y", pipe::pipe().0).unwrap();
        let mut listed = m.all();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(listed[0].lease.as_deref(), Some("l"));
        assert_eq!(
            listed.iter().map(|r| r.active).collect::<Vec<_>>(),
            [false, true]
        );
        listed.truncate(1);
        m.get(&ns, "x").unwrap().close().await;
        m.register(&ns, "x", pipe::pipe().0).unwrap();
        Resources::remove(&m, listed).await.unwrap();
        assert!(m.get(&ns, "x").is_ok(), "it is another one");
        Resources::remove(&m, m.all()).await.unwrap();
        assert!(m.get(&ns, "x").is_err() && m.get(&ns, "y").is_err());
    }

    #[tokio::test]
    async fn the_end_of_a_stream_leaves_a_newer_one_of_its_id() {
        let m = Manager::default();
        let ns = Namespace::new("a").unwrap();
        let (old, new): (Arc<dyn Stream>, Arc<dyn Stream>) = (pipe::pipe().0, pipe::pipe().0);
        m.register(&ns, "x", old.clone()).unwrap();
        let managed = m.get(&ns, "x").unwrap();
        managed.close().await;
        m.register(&ns, "x", new.clone()).unwrap();
        // The call that carried the first one ends late; and somebody closes it again.
        Streams::remove(&m, &ns, "x", &old);
        managed.close().await;
        assert!(m.get(&ns, "x").is_ok());
        Streams::remove(&m, &ns, "x", &new);
        assert!(m.get(&ns, "x").is_err());
    }
}
