//! One plugin: its connection, what it subscribed for, and calls to it.
//!
//! ```text
//!   connected ── RegisterPlugin ──► registered ── Configure ──► configured ── Synchronize ──► hears events ──► ended
//!       └──────── time-out, bad name, closed ──────────┴────────────────┴─────────────────────────┴──────────────▲
//! ```
//! A plugin that ended stays ended; its process, if it was launched here, is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corten_core::tasks_set::TaskSet;
use corten_core::{Error, Kind, Result, status};
use corten_protos::nri::pkg::api::v1alpha1 as api;
use corten_protos::nri::pkg::api::v1alpha1::Event;
use corten_protos::ttrpc::runtime::{Client, Context, TtrpcContext};
use corten_protos::ttrpc::{PluginClient, Runtime, create_runtime};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};
use ttrpc::Code;
use ttrpc::r#async::transport::{Listener, Socket};

pub(crate) use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::mux::Mux;

/// All events there are.
const ALL_EVENTS: u32 = (1 << (Event::Last as u32 - 1)) - 1;
/// What a synchronization's message may hold: ttrpc's 4 MiB less its envelope.
const SYNC_MAX: usize = (4 << 20) - (16 << 10);
/// By how much our own patience is longer than the deadline that the plugin is told.
const MARGIN: Duration = Duration::from_millis(200);
/// How long a plugin may take to shut down.
const SHUTDOWN: Duration = Duration::from_millis(500);

const NO_ANSWER: &str = "no answer in time";
/// What a newcomer is asked first, in figures.
const SYNCHRONIZE: &str = "Synchronize";

/// An event in figures: `RunPodSandbox`.
fn operation(event: Event) -> String {
    let capital = |word: &str| word[..1].to_owned() + &word[1..].to_lowercase();
    event.as_str_name().split('_').map(capital).collect()
}

/// Where plugins' own requests go.
#[async_trait]
pub(crate) trait Updates: Send + Sync {
    /// Does what can be done.
    ///
    /// # Errors
    /// Something could not be.
    async fn update(&self, plugin: &str, request: api::UpdateContainersRequest) -> Result<()>;
}

/// What all plugins are told of the daemon, and how long they may take.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) version: String,
    pub(crate) registration: Duration,
    pub(crate) request: Duration,
    pub(crate) metrics: Arc<Metrics>,
}

/// A plugin on its way in.
pub(crate) struct Arrival {
    pub(crate) stream: UnixStream,
    /// Of a launched plugin: who it is, its process and its configuration.
    pub(crate) launched: Option<(Identity, Child, String)>,
}

/// A configured plugin.
pub(crate) struct Plugin {
    pub(crate) identity: Identity,
    events: u32,
    client: PluginClient,
    mux: Mux,
    patience: Duration,
    metrics: Arc<Metrics>,
    child: tokio::sync::Mutex<Option<Child>>,
    /// Knows no calls of their own for most events, only StateChange.
    old: AtomicBool,
    /// Events of which it was said that they use StateChange.
    warned: AtomicU32,
    /// Serves the plugin's calls as long as it is held.
    _server: Mutex<ttrpc::r#async::Server>,
}

/// How a call fails.
#[derive(Debug)]
enum CallError {
    /// No answer, or none that makes sense. The plugin is of no more use.
    Fatal(String),
    /// The plugin's own error.
    Refused(Code, String),
}

// === impl CallError ===

impl CallError {
    fn of(e: ttrpc::Error) -> Self {
        match e {
            ttrpc::Error::RpcStatus(s) => match s.code.enum_value_or_default() {
                // Its own clock was faster than ours.
                Code::DEADLINE_EXCEEDED => Self::Fatal(NO_ANSWER.into()),
                code => Self::Refused(code, s.message),
            },
            other => Self::Fatal(other.to_string()),
        }
    }

    /// What it is in figures.
    fn word(&self) -> String {
        match self {
            Self::Fatal(text) if text == NO_ANSWER => "deadline_exceeded".into(),
            Self::Fatal(_) => "other".into(),
            Self::Refused(Code::CANCELLED, _) => "canceled".into(),
            Self::Refused(code, _) => format!("{code:?}").to_lowercase(),
        }
    }

    fn is_unimplemented(&self) -> bool {
        match self {
            Self::Refused(Code::UNIMPLEMENTED, _) => true,
            // The Rust library's word for it.
            Self::Refused(Code::INVALID_ARGUMENT, text) => text.ends_with("does not exist"),
            _ => false,
        }
    }
}

impl From<CallError> for Error {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Fatal(text) => Self::new(Kind::Unavailable, text),
            CallError::Refused(code, text) => {
                let kind = status::kind_of_number(code as i32);
                let name = tonic_name(code);
                Self::new(kind, format!("rpc error: code = {name} desc = {text}"))
            }
        }
    }
}

/// The code as Go prints it.
fn tonic_name(code: Code) -> String {
    if code == Code::CANCELLED {
        return "Canceled".into();
    }
    let words = format!("{code:?}").to_lowercase();
    let capital = |w: &str| w[..1].to_uppercase() + &w[1..];
    words
        .split('_')
        .filter(|w| !w.is_empty())
        .map(capital)
        .collect()
}

// === impl Plugin ===

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({}, events: {:#x})", self.identity, self.events)
    }
}

impl Plugin {
    /// Waits until a plugin has registered and configures it. One that fails is ended.
    pub(crate) async fn welcome(
        arrival: Arrival,
        host: &Host,
        updates: std::sync::Weak<dyn Updates>,
        tasks: &TaskSet,
    ) -> Result<Self> {
        let (given, mut child, config) = match arrival.launched {
            Some((identity, child, config)) => (Some(identity), Some(child), config),
            None => (None, None, String::new()),
        };
        let pid = match &child {
            // The other end of a pair is our own.
            Some(child) => child.id(),
            None => arrival
                .stream
                .peer_cred()
                .ok()
                .and_then(|c| c.pid()?.try_into().ok()),
        };
        let (mux, connections) = Mux::open(arrival.stream, tasks);
        let (registered, registration) = oneshot::channel();
        let service = RuntimeService {
            given,
            registered: Mutex::new(Some(registered)),
            name: Mutex::new(String::new()),
            updates,
            tasks: tasks.clone(),
        };
        let once = stream::once(async { Ok::<_, std::io::Error>(connections.runtime) })
            .chain(stream::pending());
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(Listener::new(once))
            .register_service(create_runtime(Arc::new(service)));
        let client = PluginClient::new(Client::new(Socket::new(connections.plugin)));
        let steps = async {
            let failed = |what: &str| Error::new(Kind::Unavailable, what.to_owned());
            server.start().await.map_err(|e| failed(&e.to_string()))?;
            let identity = tokio::select! {
                r = timeout(host.registration, registration) => match r {
                    Ok(Ok(Ok(identity))) => identity,
                    Ok(Ok(Err(refusal))) => {
                        // It shall read why, before the connection is closed.
                        let _ = timeout(host.request, mux.answered()).await;
                        return Err(refusal);
                    }
                    Ok(Err(_)) => return Err(failed("failed to register plugin, connection closed")),
                    Err(_) => return Err(failed("plugin registration timed out")),
                },
                () = mux.ended() => return Err(failed("failed to register plugin, connection closed")),
            };
            info!(nri.plugin = %identity, nri.pid = pid, nri.launched = child.is_some(), "plugin registered");
            let events = configure(&client, &mux, config, host).await?;
            Ok::<_, Error>((identity, events))
        };
        match steps.await {
            Ok((identity, events)) => Ok(Self {
                identity,
                events,
                client,
                mux,
                patience: host.request,
                metrics: host.metrics.clone(),
                child: tokio::sync::Mutex::new(child),
                old: AtomicBool::new(false),
                warned: AtomicU32::new(0),
                _server: Mutex::new(server),
            }),
            Err(e) => {
                mux.close();
                end_process(&mut child).await;
                Err(e)
            }
        }
    }

    /// Whether it is still there.
    pub(crate) fn is_ended(&self) -> bool {
        self.mux.is_ended()
    }

    /// Waits until it is not.
    pub(crate) async fn ended(&self) {
        self.mux.ended().await;
    }

    /// Closes the connection and ends the process, if it is ours.
    pub(crate) async fn end(&self) {
        self.mux.close();
        end_process(&mut *self.child.lock().await).await;
    }

    /// Says goodbye.
    pub(crate) async fn shut_down(&self) {
        let empty = api::Empty {};
        let goodbye = self.client.shutdown(context(SHUTDOWN), &empty);
        let _ = timeout(SHUTDOWN, goodbye).await;
        self.end().await;
    }

    /// Whether it subscribed for this event.
    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & (1 << (event as u32 - 1)) != 0
    }

    /// Whether it judges what others want.
    pub(crate) fn is_validator(&self) -> bool {
        self.wants(Event::ValidateContainerAdjustment)
    }

    /// Tells it of all pods and containers, in as many parts as it takes. Gives the updates that it wants.
    pub(crate) async fn synchronize(
        &self,
        pods: &[api::PodSandbox],
        containers: &[api::Container],
    ) -> Result<Vec<api::ContainerUpdate>> {
        for request in parts(pods, containers) {
            let answer = self
                .call(SYNCHRONIZE, |cx| self.client.synchronize(cx, &request))
                .await?;
            if !request.more {
                self.wishes(SYNCHRONIZE, answer.update.len(), 0);
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err(Error::not_implemented(
                    "plugin does not handle split sync requests",
                ));
            }
        }
        Ok(Vec::new())
    }

    /// Tells it of an event that has no answer.
    pub(crate) async fn tell(
        &self,
        event: Event,
        pod: &api::PodSandbox,
        container: Option<&api::Container>,
    ) -> Result<()> {
        if !self.wants(event) || self.is_ended() {
            return Ok(());
        }
        if !self.old.load(Ordering::Relaxed) {
            match self.send(event, pod, container).await {
                Err(e) if e.is_unimplemented() => self.old.store(true, Ordering::Relaxed),
                outcome => return self.judge(event, outcome).map(|_| ()),
            }
        }
        let bit = 1 << (event as u32);
        if self.warned.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            warn!(nri.plugin = %self.identity, nri.event = event.as_str_name(),
                "plugin has no call of its own for the event, only StateChange, which is deprecated");
        }
        let request = api::StateChangeEvent {
            event: event as i32,
            pod: Some(pod.clone()),
            container: container.cloned(),
        };
        let outcome = self
            .call(&operation(event), |cx| {
                self.client.state_change(cx, &request)
            })
            .await;
        self.judge(event, outcome).map(|_| ())
    }

    /// Asks what it wants of a new container.
    pub(crate) async fn create_container(
        &self,
        request: &api::CreateContainerRequest,
    ) -> Result<Option<api::CreateContainerResponse>> {
        let event = Event::CreateContainer;
        let call = |cx| self.client.create_container(cx, request);
        let answer = self.ask(event, call).await?;
        if let Some(answer) = &answer {
            self.wishes(&operation(event), answer.update.len(), answer.evict.len());
        }
        Ok(answer)
    }

    /// Asks what it makes of a client's update.
    pub(crate) async fn update_container(
        &self,
        request: &api::UpdateContainerRequest,
    ) -> Result<Option<api::UpdateContainerResponse>> {
        let event = Event::UpdateContainer;
        let call = |cx| self.client.update_container(cx, request);
        let answer = self.ask(event, call).await?;
        if let Some(answer) = &answer {
            self.wishes(&operation(event), answer.update.len(), answer.evict.len());
        }
        Ok(answer)
    }

    /// Asks what it wants of others after a container's end.
    pub(crate) async fn stop_container(
        &self,
        request: &api::StopContainerRequest,
    ) -> Result<Option<api::StopContainerResponse>> {
        let event = Event::StopContainer;
        let call = |cx| self.client.stop_container(cx, request);
        let answer = self.ask(event, call).await?;
        if let Some(answer) = &answer {
            self.wishes(&operation(event), answer.update.len(), 0);
        }
        Ok(answer)
    }

    /// Asks whether a pod's resources may change.
    pub(crate) async fn update_pod_sandbox(
        &self,
        request: &api::UpdatePodSandboxRequest,
    ) -> Result<()> {
        let call = |cx| self.client.update_pod_sandbox(cx, request);
        self.ask(Event::UpdatePodSandbox, call).await.map(|_| ())
    }

    /// Asks whether it agrees. A validator that does not answer does not.
    pub(crate) async fn validate(
        &self,
        request: &api::ValidateContainerAdjustmentRequest,
    ) -> Result<()> {
        let event = Event::ValidateContainerAdjustment;
        let outcome = self
            .call(&operation(event), |cx| {
                self.client.validate_container_adjustment(cx, request)
            })
            .await;
        let failed = |text: &str| {
            let text = format!("validator plugin {} failed: {text}", self.identity);
            Error::new(Kind::Unknown, text)
        };
        match self.judge(event, outcome) {
            Ok(Some(answer)) if answer.reject => {
                Err(rejection(&self.identity.to_string(), &answer.reason))
            }
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(failed("no answer")),
            Err(e) => Err(failed(&e.to_string())),
        }
    }

    async fn ask<T, F>(&self, event: Event, call: impl FnOnce(Context) -> F) -> Result<Option<T>>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        if !self.wants(event) || self.is_ended() {
            return Ok(None);
        }
        let outcome = self.call(&operation(event), call).await;
        self.judge(event, outcome)
    }

    /// A refusal is an error; the loss of the plugin is none.
    fn judge<T>(&self, event: Event, outcome: Result<T, CallError>) -> Result<Option<T>> {
        match outcome {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Fatal(text)) => {
                error!(nri.plugin = %self.identity, nri.event = event.as_str_name(), error = text,
                    "plugin failed to handle an event and is dropped");
                // Whoever watches for its end does the rest.
                self.mux.close();
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn call<T, F>(
        &self,
        operation: &str,
        call: impl FnOnce(Context) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let began = Instant::now();
        let answer = call_within(self.patience, &self.mux, call).await;
        let error = answer.as_ref().err().map(CallError::word);
        let name = self.identity.to_string();
        self.metrics.called(
            &name,
            operation,
            began.elapsed(),
            &error.unwrap_or_default(),
        );
        answer
    }

    fn wishes(&self, operation: &str, updates: usize, evictions: usize) {
        let name = self.identity.to_string();
        self.metrics.wished(&name, operation, updates, evictions);
    }

    async fn send(
        &self,
        event: Event,
        pod: &api::PodSandbox,
        container: Option<&api::Container>,
    ) -> Result<(), CallError> {
        macro_rules! call {
            ($method:ident, $request:ident { $($field:ident),* }) => {{
                let request = api::$request { $($field),* };
                self.call(&operation(event), |cx| self.client.$method(cx, &request))
                    .await
                    .map(|_| ())
            }};
        }
        let pod = Some(pod.clone());
        let container = container.cloned();
        match event {
            Event::RunPodSandbox => call!(run_pod_sandbox, RunPodSandboxRequest { pod }),
            Event::PostUpdatePodSandbox => {
                call!(post_update_pod_sandbox, PostUpdatePodSandboxRequest { pod })
            }
            Event::StopPodSandbox => call!(stop_pod_sandbox, StopPodSandboxRequest { pod }),
            Event::RemovePodSandbox => call!(remove_pod_sandbox, RemovePodSandboxRequest { pod }),
            Event::PostCreateContainer => call!(
                post_create_container,
                PostCreateContainerRequest { pod, container }
            ),
            Event::StartContainer => {
                call!(start_container, StartContainerRequest { pod, container })
            }
            Event::PostStartContainer => call!(
                post_start_container,
                PostStartContainerRequest { pod, container }
            ),
            Event::PostUpdateContainer => call!(
                post_update_container,
                PostUpdateContainerRequest { pod, container }
            ),
            Event::RemoveContainer => {
                call!(remove_container, RemoveContainerRequest { pod, container })
            }
            other => Err(CallError::Fatal(format!(
                "{} has an answer",
                other.as_str_name()
            ))),
        }
    }
}

/// A validator's no.
pub(crate) fn rejection(validator: &str, reason: &str) -> Error {
    let reason = match reason {
        "" => "unknown rejection reason",
        reason => reason,
    };
    Error::new(
        Kind::Unknown,
        format!("validator {validator:?} rejected container adjustment, reason: {reason}"),
    )
}

async fn configure(client: &PluginClient, mux: &Mux, config: String, host: &Host) -> Result<u32> {
    let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    let request = api::ConfigureRequest {
        config,
        // What plugins and their library look for.
        runtime_name: "containerd".into(),
        runtime_version: host.version.clone(),
        registration_timeout: millis(host.registration),
        request_timeout: millis(host.request),
        nri_version: crate::VERSION.into(),
    };
    let answer = call_within(host.request, mux, |cx| client.configure(cx, &request))
        .await
        .map_err(|e| Error::from(e).context("failed to configure plugin"))?;
    match u32::try_from(answer.events) {
        Ok(0) => Ok(ALL_EVENTS),
        Ok(events) if events & !ALL_EVENTS == 0 => Ok(events),
        _ => Err(Error::new(
            Kind::InvalidArgument,
            format!("invalid plugin events: {:#x}", answer.events),
        )),
    }
}

/// Makes one call. There is one at a time on a connection, so their numbers go out in order.
async fn call_within<T, F>(
    patience: Duration,
    mux: &Mux,
    call: impl FnOnce(Context) -> F,
) -> Result<T, CallError>
where
    F: Future<Output = ttrpc::Result<T>>,
{
    let answer = timeout(patience + MARGIN, call(context(patience)));
    tokio::select! {
        biased;
        answer = answer => match answer {
            Ok(answer) => answer.map_err(CallError::of),
            Err(_) => Err(CallError::Fatal(NO_ANSWER.into())),
        },
        // A call that was queued just when the connection went away is never answered by the crate.
        () = mux.ended() => Err(CallError::Fatal("the connection is closed".into())),
    }
}

fn context(patience: Duration) -> Context {
    Context {
        timeout_nano: i64::try_from(patience.as_nanos()).unwrap_or(i64::MAX),
        ..Context::default()
    }
}

/// Deals pods and containers out to messages that ttrpc takes.
fn parts(pods: &[api::PodSandbox], containers: &[api::Container]) -> Vec<api::SynchronizeRequest> {
    let mut out = Vec::new();
    let (mut part, mut size) = (api::SynchronizeRequest::default(), 0);
    let mut room = |part: &mut api::SynchronizeRequest, next: usize| {
        // A tag and a length go before each.
        let next = next + 8;
        if size + next > SYNC_MAX && size > 0 {
            part.more = true;
            out.push(std::mem::take(part));
            size = 0;
        }
        size += next;
    };
    for pod in pods {
        room(&mut part, pod.encoded_len());
        part.pods.push(pod.clone());
    }
    for container in containers {
        room(&mut part, container.encoded_len());
        part.containers.push(container.clone());
    }
    out.push(part);
    out
}

async fn end_process(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        if let Err(e) = child.start_kill() {
            debug!(error = %e, "a plugin's process has ended by itself");
        }
        let _ = child.wait().await;
    }
}

/// What the plugin calls.
struct RuntimeService {
    given: Option<Identity>,
    registered: Mutex<Option<oneshot::Sender<Result<Identity>>>>,
    name: Mutex<String>,
    updates: std::sync::Weak<dyn Updates>,
    tasks: TaskSet,
}

#[async_trait]
impl Runtime for RuntimeService {
    async fn register_plugin(
        &self,
        _cx: &TtrpcContext,
        req: api::RegisterPluginRequest,
    ) -> ttrpc::Result<api::Empty> {
        let Some(registered) = self.registered.lock().take() else {
            return Err(refused(&Error::already_exists(
                "registration of the plugin",
            )));
        };
        debug!(
            nri.plugin = req.plugin_name,
            nri.version = req.nri_version,
            "plugin registers"
        );
        // A launched one is called what its file is called.
        let identity = match &self.given {
            Some(identity) => Ok(identity.clone()),
            None => Identity::new(&req.plugin_idx, &req.plugin_name),
        };
        let answer = match &identity {
            Ok(identity) => {
                *self.name.lock() = identity.to_string();
                Ok(api::Empty {})
            }
            Err(e) => Err(refused(e)),
        };
        let _ = registered.send(identity);
        answer
    }

    async fn update_containers(
        &self,
        _cx: &TtrpcContext,
        req: api::UpdateContainersRequest,
    ) -> ttrpc::Result<api::UpdateContainersResponse> {
        let Some(updates) = self.updates.upgrade() else {
            return Err(refused(&Error::new(
                Kind::Unavailable,
                "the daemon is stopping",
            )));
        };
        let name = self.name.lock().clone();
        if name.is_empty() {
            return Err(refused(&Error::precondition("plugin is not registered")));
        }
        // In a task of its own: the crate drops this future when the plugin goes away.
        let (done, outcome) = oneshot::channel();
        self.tasks.spawn("nri update", async move {
            let _ = done.send(updates.update(&name, req).await);
        });
        match outcome.await {
            Ok(Ok(())) => Ok(api::UpdateContainersResponse::default()),
            Ok(Err(e)) => Err(refused(&e)),
            Err(_) => Err(refused(&Error::internal("the update was given up"))),
        }
    }
}

fn refused(e: &Error) -> ttrpc::Error {
    let code = match e.kind() {
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Internal => Code::INTERNAL,
        _ => Code::UNKNOWN,
    };
    corten_protos::ttrpc::error(code, e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices_are_checked() {
        for (file, good) in [
            ("10-logger", true),
            ("00-a.b_c+d-e", true),
            ("1-a", false),
            ("010-a", false),
            ("1x-a", false),
            ("10-", false),
            ("10-a b", false),
            ("logger", false),
        ] {
            assert_eq!(Identity::parse(file).is_ok(), good, "{file}");
        }
        assert_eq!(Identity::parse("10-a-b").unwrap().name, "a-b");
    }

    #[test]
    fn codes_are_called_what_go_calls_them() {
        for (code, name) in [
            (Code::UNKNOWN, "Unknown"),
            (Code::INVALID_ARGUMENT, "InvalidArgument"),
            (Code::CANCELLED, "Canceled"),
            (Code::NOT_FOUND, "NotFound"),
        ] {
            assert_eq!(tonic_name(code), name);
        }
    }

    #[test]
    fn a_synchronization_is_cut_into_messages_that_fit() {
        let pod = |n: usize| api::PodSandbox {
            id: "p".repeat(n),
            ..Default::default()
        };
        let container = |n: usize| api::Container {
            id: "c".repeat(n),
            ..Default::default()
        };
        let check = |pods: &[usize], containers: &[usize], want: &[(usize, usize)]| {
            let pods: Vec<_> = pods.iter().map(|n| pod(*n)).collect();
            let containers: Vec<_> = containers.iter().map(|n| container(*n)).collect();
            let parts = parts(&pods, &containers);
            let shape: Vec<_> = parts
                .iter()
                .map(|p| (p.pods.len(), p.containers.len()))
                .collect();
            assert_eq!(shape, want);
            for (i, part) in parts.iter().enumerate() {
                assert_eq!(part.more, i + 1 < parts.len());
                assert!(part.encoded_len() <= SYNC_MAX || shape[i].0 + shape[i].1 == 1);
            }
        };
        check(&[], &[], &[(0, 0)]);
        check(&[10, 10], &[10], &[(2, 1)]);
        check(&[3 << 20, 10], &[2 << 20, 1 << 20], &[(2, 0), (0, 2)]);
        check(&[5 << 20], &[1], &[(1, 0), (0, 1)]);
    }
}
