//! Leases as the API offers them (plugin `io.containerd.lease.v1.manager`): the metadata's, and a synchronous delete
//! waits for the collection that follows.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::filter::Filter;
use corten_core::gc::Scheduler;
use corten_core::leases::Leases;
use corten_core::protos::containerd::services::leases::v1::{Lease, Resource};
use corten_core::{Labels, Namespace, Result, kinds};
use corten_registry::Registration;

struct Manager {
    leases: Arc<dyn Leases>,
    gc: Arc<dyn Scheduler>,
}

#[async_trait]
impl Leases for Manager {
    async fn create(&self, ns: &Namespace, id: &str, labels: Labels) -> Result<Lease> {
        self.leases.create(ns, id, labels).await
    }

    async fn delete(&self, ns: &Namespace, id: &str, sync: bool) -> Result<()> {
        self.leases.delete(ns, id, sync).await?;
        if sync {
            self.gc.schedule_and_wait().await?;
        }
        Ok(())
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Lease>> {
        self.leases.list(ns, filter).await
    }

    async fn add_resource(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<()> {
        self.leases.add_resource(ns, id, resource).await
    }

    async fn delete_resource(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<()> {
        self.leases.delete_resource(ns, id, resource).await
    }

    async fn resources(&self, ns: &Namespace, id: &str) -> Result<Vec<Resource>> {
        self.leases.resources(ns, id).await
    }
}

/// Plugin `manager`.
pub fn registration() -> Registration {
    Registration::new::<kinds::Lease>("manager")
        .requires::<kinds::Metadata>()
        .requires::<kinds::Gc>()
        .init_plain(|cx| {
            Box::pin(async move {
                let leases = cx.single::<kinds::Metadata>()?.leases();
                let gc = cx.single::<kinds::Gc>()?;
                Ok(Arc::new(Manager { leases, gc }) as Arc<dyn Leases>)
            })
        })
}
