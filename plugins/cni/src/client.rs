//! The networks of pods: what the CRI plugin calls.
//!
//! The configuration in use is a snapshot: an operation goes on with the one it began with, and [`Cni::load`]
//! replaces it for those that come after.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corten_core::keylock::KeyLocks;
use corten_core::{Error, Kind, Result};
use corten_sys::blocking;
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tracing::warn;

use crate::cache::{Attachment, Cache};
use crate::chain::{Chain, Target, Valid};
use crate::config::{self, NetworkList};
use crate::exec::Executor;
use crate::result::{self, NetworkResult};
use crate::{Capabilities, Setup, loopback, names};

/// Where things are and how pods are attached.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folders of the plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder of the configuration.
    pub conf_dir: PathBuf,
    /// Folder of the cache; libcni's.
    pub cache_dir: PathBuf,
    /// How many networks a pod is in; 0 for all of the folder.
    pub max_conf_num: usize,
    /// Interfaces are called this and a number.
    pub prefix: String,
    /// One network after the other instead of all at once.
    pub serial: bool,
    /// Longest run of one plugin.
    pub timeout: Duration,
}

/// The pod of an operation.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// The sandbox id.
    pub id: String,
    /// Path of its network namespace; may be gone or empty in [`Cni::remove`].
    pub netns: String,
    /// CNI_ARGS.
    pub args: Vec<(String, String)>,
    pub capabilities: Capabilities,
}

/// The CNI client.
#[derive(Debug)]
pub struct Cni {
    options: Options,
    executor: Executor,
    cache: Arc<Cache>,
    loaded: RwLock<Arc<Loaded>>,
    locks: KeyLocks,
    /// Pods set up by this process and not removed: no garbage, whatever the caller of gc knows of.
    live: Mutex<HashSet<String>>,
}

/// The result of reading the folder.
#[derive(Debug, Default)]
struct Loaded {
    networks: Vec<NetworkList>,
    error: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bin_dirs: vec!["/opt/cni/bin".into()],
            conf_dir: "/etc/cni/net.d".into(),
            cache_dir: "/var/lib/cni".into(),
            max_conf_num: 1,
            prefix: "eth".into(),
            serial: false,
            timeout: Duration::from_secs(120),
        }
    }
}

// === impl Cni: configuration ===

impl Cni {
    /// A client that has read its folder; one without usable configuration is not ready and becomes so by a later
    /// [`Self::load`].
    ///
    /// # Errors
    /// Of making the cache's folder.
    pub async fn open(options: Options) -> Result<Arc<Self>> {
        let dir = options.cache_dir.clone();
        let cache = Arc::new(blocking(move || Cache::open(&dir)).await?);
        let executor = Executor {
            dirs: options.bin_dirs.clone(),
            timeout: options.timeout,
        };
        let cni = Arc::new(Self {
            options,
            executor,
            cache,
            loaded: RwLock::default(),
            locks: KeyLocks::default(),
            live: Mutex::default(),
        });
        // The error is kept and shown by `load_error`.
        let _ = cni.load().await;
        Ok(cni)
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Reads the folder again. On failure there is no network until the next time, as with containerd.
    ///
    /// # Errors
    /// What is wrong with the folder, in containerd's words.
    pub async fn load(&self) -> Result<()> {
        let (dir, max) = (self.options.conf_dir.clone(), self.options.max_conf_num);
        let read = blocking(move || config::load_folder(&dir, max)).await;
        let (loaded, outcome) = match read {
            Ok(networks) => (
                Loaded {
                    networks,
                    error: None,
                },
                Ok(()),
            ),
            Err(e) => {
                let text = format!("cni config load failed: {e}: failed to load cni config");
                let kind = e.kind();
                let loaded = Loaded {
                    networks: Vec::new(),
                    error: Some(text.clone()),
                };
                (loaded, Err(Error::new(kind, text)))
            }
        };
        *self.loaded.write() = Arc::new(loaded);
        outcome
    }

    /// Why the last [`Self::load`] failed, if it did.
    pub fn load_error(&self) -> Option<String> {
        self.loaded().error.clone()
    }

    /// The folders of the networks' further plugins, for the watch.
    pub(crate) fn plugin_folders(&self) -> Vec<PathBuf> {
        let dir = &self.options.conf_dir;
        self.loaded()
            .networks
            .iter()
            .map(|n| dir.join(&n.name))
            .collect()
    }

    /// Whether pods can be attached now: there is a network, and its plugins say so.
    ///
    /// # Errors
    /// FailedPrecondition `cni plugin not initialized`; what a plugin answers to STATUS.
    pub async fn status(&self) -> Result<()> {
        let loaded = self.ready()?;
        for list in &loaded.networks {
            Chain::negotiate(&self.executor, list)
                .await?
                .status()
                .await?;
        }
        Ok(())
    }

    /// The configuration in the form that `crictl info` shows.
    pub fn describe(&self) -> Value {
        let loaded = self.loaded();
        let network = |(n, list): (usize, &NetworkList)| {
            let plugins: Vec<_> = list
                .plugins
                .iter()
                .map(|p| describe_plugin(&p.config))
                .collect();
            json!({
                "Config": {
                    "Name": list.name,
                    "CNIVersion": list.newest().to_string(),
                    "Plugins": plugins,
                    "Source": list.source,
                },
                "IFName": self.interface(n),
            })
        };
        let lo = json!({
            "Config": {"Name": "cni-loopback", "CNIVersion": "1.1.0", "Plugins": [], "Source": ""},
            "IFName": "lo",
        });
        let networks = loaded.networks.iter().enumerate().map(network);
        json!({
            "PluginDirs": self.options.bin_dirs,
            "PluginConfDir": self.options.conf_dir,
            "PluginMaxConfNum": self.options.max_conf_num,
            "Prefix": self.options.prefix,
            "Networks": std::iter::once(lo).chain(networks).collect::<Vec<_>>(),
        })
    }

    /// The name of the default interface.
    pub fn default_interface(&self) -> String {
        self.interface(0)
    }

    fn interface(&self, n: usize) -> String {
        format!("{}{n}", self.options.prefix)
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().clone()
    }

    fn ready(&self) -> Result<Arc<Loaded>> {
        let loaded = self.loaded();
        if loaded.networks.is_empty() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                "cni plugin not initialized",
            ));
        }
        Ok(loaded)
    }
}

fn describe_plugin(config: &serde_json::Map<String, Value>) -> Value {
    let kept = ["cniVersion", "name", "type", "capabilities", "ipam", "dns"];
    let mut network: serde_json::Map<_, _> = kept
        .iter()
        .filter_map(|k| Some(((*k).to_owned(), config.get(*k)?.clone())))
        .collect();
    let ipam = config.get("ipam").and_then(|i| i.get("type"));
    network.insert(
        "ipam".into(),
        ipam.map_or_else(|| json!({}), |t| json!({"type": t})),
    );
    json!({"Network": network, "Source": Value::Object(config.clone()).to_string()})
}

// === impl Cni: pods ===

impl Cni {
    /// Brings `lo` up and attaches the pod to every network. What was attached is detached again on failure; if even
    /// that fails, or the future is dropped, the record stays and [`Self::remove`] does it.
    ///
    /// # Errors
    /// FailedPrecondition without configuration; those of the first plugin that failed.
    pub async fn setup(&self, pod: &Pod) -> Result<Setup> {
        let loaded = self.ready()?;
        names::check("container id", &pod.id)?;
        let _one = self.locks.lock(pod.id.clone()).await;
        self.live.lock().insert(pod.id.clone());
        let netns = PathBuf::from(&pod.netns);
        blocking(move || loopback::up(&netns)).await?;
        let mut results = vec![result::loopback(&pod.netns)];
        let attach = |(n, list)| self.attach(pod, list, self.interface(n));
        let networks = loaded.networks.iter().enumerate().map(attach);
        let outcomes = if self.options.serial {
            let mut outcomes = Vec::new();
            for network in networks {
                let outcome = network.await;
                let failed = outcome.is_err();
                outcomes.push(outcome);
                if failed {
                    break;
                }
            }
            outcomes
        } else {
            join_all(networks).await
        };
        for outcome in outcomes {
            match outcome {
                Ok(result) => results.push(result),
                Err(e) => {
                    if let Err(error) = self.detach_all(pod).await {
                        warn!(container.id = %pod.id, %error, "undo a failed network setup");
                    }
                    return Err(e);
                }
            }
        }
        Ok(Setup::new(&self.default_interface(), &results))
    }

    /// Detaches the pod from what is recorded; from the networks of the current configuration when nothing is.
    /// Detaching again, and without the namespace, is fine.
    ///
    /// # Errors
    /// Those of the first network that could not be detached, after trying all; its record stays.
    pub async fn remove(&self, pod: &Pod) -> Result<()> {
        names::check("container id", &pod.id)?;
        let _one = self.locks.lock(pod.id.clone()).await;
        self.detach_all(pod).await?;
        self.live.lock().remove(&pod.id);
        Ok(())
    }

    /// Asks the plugins whether the pod's networks are as they were made.
    ///
    /// # Errors
    /// NotFound when nothing is recorded; those of the first plugin that is not content.
    pub async fn check(&self, pod: &Pod) -> Result<()> {
        names::check("container id", &pod.id)?;
        let _one = self.locks.lock(pod.id.clone()).await;
        let attachments = self.attachments(Some(pod.id.clone())).await?;
        if attachments.is_empty() {
            return Err(Error::not_found(format!(
                "network of container {:?}",
                pod.id
            )));
        }
        for a in &attachments {
            let list = a.network_list()?;
            let chain = Chain {
                executor: &self.executor,
                version: list.newest(),
                list: &list,
            };
            chain
                .check(target(a, &pod.netns), a.result.as_ref())
                .await?;
        }
        Ok(())
    }

    /// Takes back what pods hold that are no more: every recorded attachment that is `garbage`, with the configuration
    /// it was made with. Then the plugins of the current networks are told what is left, which includes the attachments
    /// of others in the same folder. Pods that this process set up are never garbage. Not to be called while pods are
    /// being set up: plugins take back what they were not told of.
    ///
    /// # Errors
    /// Those of the first that failed, after trying all.
    pub async fn gc(&self, garbage: impl Fn(&Attachment) -> bool + Send + Sync) -> Result<()> {
        let mut first = None;
        for a in self.attachments(None).await? {
            if self.live.lock().contains(&a.container) || !garbage(&a) {
                continue;
            }
            let _one = self.locks.lock(a.container.clone()).await;
            let netns = usable(&a.netns).await?;
            if let Err(e) = self.detach(&a, &netns).await {
                warn!(container.id = %a.container, error = %e, "detach a pod that is no more");
                first.get_or_insert(e);
            }
        }
        let left = self.attachments(None).await?;
        for list in &self.loaded().networks {
            let of_it: Vec<_> = left
                .iter()
                .filter(|a| a.network == list.name)
                .map(|a| Valid {
                    container: a.container.clone(),
                    interface: a.interface.clone(),
                })
                .collect();
            let run = async {
                Chain::negotiate(&self.executor, list)
                    .await?
                    .gc(&of_it)
                    .await
            };
            if let Err(e) = run.await {
                first.get_or_insert(e);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// What is recorded, of one container or of all.
    ///
    /// # Errors
    /// Of reading the cache's folder.
    pub async fn attachments(&self, container: Option<String>) -> Result<Vec<Attachment>> {
        let cache = self.cache.clone();
        blocking(move || cache.list(container.as_deref())).await
    }

    async fn attach(
        &self,
        pod: &Pod,
        list: &NetworkList,
        interface: String,
    ) -> Result<NetworkResult> {
        names::check_interface(&interface)?;
        let chain = Chain::negotiate(&self.executor, list).await?;
        let mut attachment = Attachment {
            container: pod.id.clone(),
            interface,
            network: list.name.clone(),
            netns: pod.netns.clone(),
            args: pod.args.clone(),
            capabilities: pod.capabilities.clone(),
            config: list.to_bytes(chain.version),
            result: None,
        };
        self.record(attachment.clone()).await?;
        let result = chain.add(target(&attachment, &pod.netns)).await?;
        attachment.result = Some(result.clone());
        self.record(attachment).await?;
        Ok(result)
    }

    async fn record(&self, attachment: Attachment) -> Result<()> {
        let cache = self.cache.clone();
        blocking(move || cache.put(&attachment)).await
    }

    async fn detach_all(&self, pod: &Pod) -> Result<()> {
        let netns = usable(&pod.netns).await?;
        let mut attachments = self.attachments(Some(pod.id.clone())).await?;
        if attachments.is_empty() {
            let loaded = self.loaded();
            attachments = loaded
                .networks
                .iter()
                .enumerate()
                .map(|(n, list)| Attachment {
                    container: pod.id.clone(),
                    interface: self.interface(n),
                    network: list.name.clone(),
                    netns: pod.netns.clone(),
                    args: pod.args.clone(),
                    capabilities: pod.capabilities.clone(),
                    config: list.to_bytes(list.newest()),
                    result: None,
                })
                .collect();
        }
        let mut first = None;
        for a in &attachments {
            if let Err(e) = self.detach(a, &netns).await {
                first.get_or_insert(e);
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn detach(&self, attachment: &Attachment, netns: &str) -> Result<()> {
        let list = attachment.network_list()?;
        let chain = Chain {
            executor: &self.executor,
            version: list.newest(),
            list: &list,
        };
        chain
            .del(target(attachment, netns), attachment.result.as_ref())
            .await?;
        let (cache, attachment) = (self.cache.clone(), attachment.clone());
        blocking(move || cache.remove(&attachment)).await
    }
}

fn target<'a>(a: &'a Attachment, netns: &'a str) -> Target<'a> {
    Target {
        id: &a.container,
        netns,
        interface: &a.interface,
        args: &a.args,
        capabilities: &a.capabilities,
    }
}

/// The path, or nothing when it is no namespace any more: plugins are to be told that, and trip over a plain file.
async fn usable(netns: &str) -> Result<String> {
    if netns.is_empty() {
        return Ok(String::new());
    }
    let path = netns.to_owned();
    blocking(move || {
        let there = loopback::open_namespace(Path::new(&path))?.is_some();
        Ok(if there { path } else { String::new() })
    })
    .await
}
