//! Plugin `io.containerd.content.v1.content`: blobs by digest in plain files, laid out as containerd lays them out.
//!
//! ```text
//! <root>/blobs/<algorithm>/<hex>                 0444, renamed into place when complete and synced
//! <root>/ingest/<sha256 of the ref>/ref          the ref
//!                                  /data         bytes so far
//!                                  /total        expected bytes, when known
//!                                  /startedat    RFC 3339
//!                                  /updatedat    RFC 3339, written when the writer closes
//! ```
//!
//! A writer holds its ref exclusively; the lock is in memory, for the daemon is the only writer of its root. An ingest
//! survives restarts: the next writer of the ref hashes what is there and goes on. Labels, namespaces and sharing are
//! the metadata plugin's.

mod hasher;
mod ingest;
mod locks;
mod store;
mod writer;

pub use store::Store;

use std::sync::Arc;

use corten_core::content::Backend;
use corten_core::kinds;
use corten_registry::Registration;

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Content>("content").init_plain(|cx| {
        Box::pin(async move {
            let root = cx.root();
            cx.export("root", root.to_string_lossy());
            let store = corten_sys::blocking(move || Store::open(&root)).await?;
            Ok(Arc::new(store) as Arc<dyn Backend>)
        })
    })
}
