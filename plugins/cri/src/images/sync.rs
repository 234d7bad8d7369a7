//! How the index follows the records: once all of them, then each that an event names.

use std::sync::Arc;
use std::time::Duration;

use corten_core::filter::Filter;
use corten_core::protos::any;
use corten_core::protos::containerd::services::images::v1::{
    Image, ImageCreate, ImageDelete, ImageUpdate,
};
use corten_core::protos::containerd::types::Envelope;
use corten_core::{Context, Descriptor, Error, Kind, Labels, Result};

use super::Images;
use super::labels::{MANAGED, PINNED};

/// How long nothing is asked after the events broke off.
const PAUSE: Duration = Duration::from_secs(1);

impl Images {
    /// Reads all images, then follows the events and the snapshots' usage until the daemon ends.
    ///
    /// # Errors
    /// The records cannot be listed, or followed.
    pub async fn start(self: &Arc<Self>) -> Result<()> {
        let filter = format!("namespace=={},topic~=\"^/images/\"", self.ns);
        let filter = Filter::parse(&[filter])?;
        let mut events = self.events.subscribe(filter.clone());
        self.load_all().await?;
        let images = self.clone();
        self.tasks.spawn("cri image events", async move {
            loop {
                while let Some(event) = events.recv().await {
                    images.follow(&event).await;
                }
                // Too slow for the exchange: what was missed is read anew.
                tokio::time::sleep(PAUSE).await;
                events = images.events.subscribe(filter.clone());
                if let Err(error) = images.load_all().await {
                    tracing::warn!(%error, "list images");
                }
            }
        });
        let images = self.clone();
        self.tasks
            .spawn("cri snapshot usage", async move { images.measure().await });
        Ok(())
    }

    async fn load_all(&self) -> Result<()> {
        let all = self
            .records
            .list(&self.ns, &Filter::all())
            .await
            .context("list images")?;
        let mut gone = self.known.names();
        gone.retain(|name| !all.iter().any(|i| i.name == *name));
        for name in gone.into_iter().chain(all.into_iter().map(|i| i.name)) {
            self.refresh_or_log(&name).await;
        }
        Ok(())
    }

    async fn follow(&self, event: &Envelope) {
        let Some(event) = &event.event else { return };
        let name = any::unpack::<ImageCreate>(event)
            .map(|e| e.name)
            .or_else(|_| any::unpack::<ImageUpdate>(event).map(|e| e.name))
            .or_else(|_| any::unpack::<ImageDelete>(event).map(|e| e.name));
        if let Ok(name) = name {
            self.refresh_or_log(&name).await;
        }
    }

    async fn refresh_or_log(&self, name: &str) {
        if let Err(error) = self.refresh(name).await {
            // Not for this platform, not whole yet, not an image: nothing for the CRI.
            tracing::debug!(%error, image.name = name, "image is not usable");
        }
    }

    /// Brings what is known of `name` up to its record; makes the record the CRI's, if it is not.
    ///
    /// # Errors
    /// See `Loader::load`; the image is then not known by this name.
    pub(super) async fn refresh(&self, name: &str) -> Result<()> {
        let _turn = self.locks.lock(name.to_owned()).await;
        let image = match self.records.get(&self.ns, name).await {
            Err(e) if e.kind() == Kind::NotFound => {
                self.known.forget(name);
                return Ok(());
            }
            other => other.context("get image by reference")?,
        };
        let wanted = self.labels_for(name);
        let managed = wanted.iter().all(|(k, v)| image.labels.get(k) == Some(v));
        let target = image.target.as_ref().map_or("", |t| t.digest.as_str());
        let pinned = wanted.contains_key(PINNED) || image.labels.contains_key(PINNED);
        if managed && self.known.is_current(name, target, pinned) {
            return Ok(());
        }
        let mut record = match self.loader.load(&image).await {
            Ok(record) => record,
            Err(e) => {
                self.known.forget(name);
                return Err(e);
            }
        };
        if !managed {
            if record.id != name {
                // Its id stands for it as long as any of its names does.
                self.put_name(&record.id, &record.target, &wanted).await?;
            }
            self.put_name(name, &record.target, &wanted).await?;
            record.pinned |= wanted.contains_key(PINNED);
        }
        self.known.put(record);
        Ok(())
    }

    /// Makes `name` stand for `target` with the CRI's labels; other labels stay.
    ///
    /// # Errors
    /// The records'.
    pub(super) async fn put_name(
        &self,
        name: &str,
        target: &Descriptor,
        labels: &Labels,
    ) -> Result<()> {
        let scope = self.scope();
        let image = Image {
            name: name.to_owned(),
            target: Some(target.clone()),
            labels: labels.clone(),
            ..Image::default()
        };
        // It may be removed between the two calls; not for ever.
        for _ in 0..4 {
            match self.records.create(&scope, image.clone()).await {
                Err(e) if e.kind() == Kind::AlreadyExists => {}
                other => return done(other, name),
            }
            let current = match self.records.get(&self.ns, name).await {
                Err(e) if e.kind() == Kind::NotFound => continue,
                other => other?,
            };
            let mut paths: Vec<String> = [MANAGED, PINNED]
                .into_iter()
                .filter(|k| {
                    labels
                        .get(*k)
                        .is_some_and(|v| current.labels.get(*k) != Some(v))
                })
                .map(|k| format!("labels.{k}"))
                .collect();
            if current.target.as_ref().map(|t| &t.digest) != Some(&target.digest) {
                paths.push("target".into());
            }
            if paths.is_empty() {
                return Ok(());
            }
            match self.records.update(&scope, image.clone(), &paths).await {
                Err(e) if e.kind() == Kind::NotFound => {}
                other => return done(other, name),
            }
        }
        Err(Error::new(
            Kind::Aborted,
            format!("image {name:?} changes all the time"),
        ))
    }
}

fn done(written: Result<Image>, name: &str) -> Result<()> {
    written
        .map(|_| ())
        .with_context(|| format!("failed to create image reference {name:?}"))
}
