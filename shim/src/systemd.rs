//! Owns the talk with systemd, for containers whose cgroup it is to make (`SystemdCgroup`).
//!
//! The words are corten-oci's (`cgroup::systemd`); here they go over the socket, with this thread free meanwhile. A
//! connection lives for one errand. systemd may be busy, or restart itself and drop every connection: an errand is begun
//! again once, and what it finds done already is done.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use corten_launch::{Op, Plan};
use corten_oci::cgroup::systemd::{self, Call, Incoming, Scope};
use corten_oci::{Cgroup, Resources, Spec, cgroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::log;
use crate::reaper::Reaper;
use crate::task::launch::Child;

/// For a job, as runc has it; an answer alone takes less.
const PATIENCE: Duration = Duration::from_secs(30);
/// For room in the queue of its socket, or for its return.
const QUEUE: Duration = Duration::from_secs(20);

/// The process that keeps a new unit alive until the container's own is there.
#[derive(Debug)]
pub(crate) struct Keeper(Option<(Child, Rc<Reaper>)>);

/// What came of a call.
enum Trouble {
    Refused {
        name: String,
        text: String,
    },
    /// The connection is gone.
    Lost(Error),
    Late,
}

/// A connection.
struct Bus {
    stream: UnixStream,
    serial: u32,
    received: Vec<u8>,
    /// Jobs that were over before anybody asked, and how.
    over: Vec<(String, String)>,
}

/// Makes the cgroup of a new container, by systemd or without it. Let the keeper go once the container's process is in.
pub(crate) async fn create(
    reaper: &Rc<Reaper>,
    spec: &Spec,
    id: &str,
    driver: &cgroup::Options,
) -> Result<(Cgroup, Keeper)> {
    if !driver.systemd {
        return Ok((Cgroup::create(spec, id, driver)?, Keeper(None)));
    }
    if !systemd::is_running() {
        return Err(Error::unknown(
            "systemd not running on this host, cannot use systemd cgroups manager",
        ));
    }
    let scope = Scope::of(spec, id)?;
    let none = Resources::default();
    let resources = spec.linux.resources.as_ref().unwrap_or(&none);
    let (keeper, pid) = Keeper::spawn(reaper).await?;
    let mut bus = Bus::connect().await?;
    let version = bus.version().await?;
    let number = u32::try_from(pid).unwrap_or(0);
    let call = scope.start(resources, number, version)?;
    let started = bus.start(&scope, &call, pid).await;
    started.map_err(|e| e.context(format!("unable to start unit {:?}", scope.name())))?;
    match Cgroup::enter(spec, id) {
        Ok(cgroup) => Ok((cgroup, keeper)),
        Err(e) => {
            drop(keeper);
            if let Err(left) = bus.stop(scope.name()).await {
                log::warning!("{left}");
            }
            Err(e.into())
        }
    }
}

/// Applies new limits.
pub(crate) async fn update(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    let Some(unit) = cgroup.unit() else {
        return Ok(cgroup.update(resources)?);
    };
    let mut bus = Bus::connect().await?;
    let version = bus.version().await?;
    if let Some((call, rest)) = cgroup.set(resources, version)? {
        let answer = bus.insist(&call).await;
        answer.map_err(|t| {
            t.error()
                .context(format!("set properties of unit {unit:?}"))
        })?;
        cgroup.update(&rest)?;
    }
    Ok(())
}

/// Lets systemd take a container's unit away, with whatever still runs in it.
pub(crate) async fn stop(cgroup: &Cgroup) -> Result<()> {
    let Some(unit) = cgroup.unit() else {
        return Ok(());
    };
    // It would ask nicely first, and wait.
    cgroup.kill()?;
    let mut bus = Bus::connect().await?;
    bus.stop(unit).await
}

// === impl Keeper ===

impl Keeper {
    async fn spawn(reaper: &Rc<Reaper>) -> Result<(Self, i32)> {
        let mut plan = Plan::default();
        plan.push(Op::CloseFds, "close descriptors");
        plan.push(Op::Gate, "wait");
        let child = Child::spawn(reaper, &plan).context("start the keeper of a unit")?;
        let pid = child.pidfd.pid();
        let mut keeper = Self(Some((child, reaper.clone())));
        let child = keeper.0.as_mut().map(|(child, _)| child);
        let child = child.ok_or_else(|| Error::unknown("no keeper"))?;
        child.at_gate().await?;
        Ok((keeper, pid))
    }

    /// Ends it, and sets what had to wait for that.
    pub(crate) async fn release(mut self, cgroup: &Cgroup, spec: &Spec) -> Result<()> {
        let Some((child, reaper)) = self.0.take() else {
            return Ok(());
        };
        child.destroy(&reaper).await;
        let resources = spec.linux.resources.as_ref();
        match resources.and_then(systemd::postponed) {
            Some(rest) => update(cgroup, &rest).await,
            None => Ok(()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some((child, reaper)) = self.0.take() {
            // Fails only when it is gone already; the sweep collects it.
            let _ = child.pidfd.signal(crate::task::process::SIGKILL);
            reaper.forget(child.pidfd.pid());
        }
    }
}

// === impl Trouble ===

impl Trouble {
    fn error(self) -> Error {
        match self {
            Self::Refused { name, text } if text.is_empty() => Error::unknown(name),
            Self::Refused { text, .. } => Error::unknown(text),
            Self::Lost(e) => e,
            Self::Late => Error::unknown("timeout waiting for systemd"),
        }
    }
}

// === impl Bus ===

impl Bus {
    async fn connect() -> Result<Self> {
        let mut waited = Duration::ZERO;
        let pause = Duration::from_millis(20);
        let stream = loop {
            match UnixStream::connect(systemd::SOCKET).await {
                Ok(stream) => break stream,
                // Its queue is full, or it starts anew.
                Err(e)
                    if waited < QUEUE
                        && matches!(
                            e.kind(),
                            ErrorKind::WouldBlock
                                | ErrorKind::ConnectionRefused
                                | ErrorKind::NotFound
                        ) =>
                {
                    tokio::time::sleep(pause).await;
                    waited += pause;
                }
                Err(e) => return Err(e).context("connect to systemd"),
            }
        };
        let mut bus = Self {
            stream,
            serial: 0,
            received: Vec::new(),
            over: Vec::new(),
        };
        match timeout(PATIENCE, bus.greet()).await {
            Ok(greeted) => greeted.map(|()| bus),
            Err(_) => Err(Trouble::Late.error()),
        }
    }

    async fn greet(&mut self) -> Result<()> {
        const LONGEST: usize = 1024;
        self.stream.write_all(systemd::GREETING).await?;
        loop {
            let end = self.received.windows(2).position(|w| w == b"\r\n");
            if let Some(end) = end {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                if line.starts_with(b"OK") {
                    return Ok(());
                }
                let line = String::from_utf8_lossy(&line);
                return Err(Error::unknown(format!(
                    "systemd refuses us: {}",
                    line.trim()
                )));
            }
            if self.received.len() > LONGEST {
                return Err(Error::unknown("systemd greets in a strange way"));
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.received).await {
            Ok(0) => Err(Error::unavailable("systemd closed the connection")),
            got => got.map(drop).context("read from systemd"),
        }
    }

    /// The next message.
    async fn next(&mut self) -> Result<Incoming> {
        loop {
            if let Some(message) = Incoming::take(&mut self.received)? {
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    /// A call and its answer.
    async fn call(&mut self, call: &Call) -> Result<String, Trouble> {
        let answer = timeout(PATIENCE, self.exchange(call)).await;
        answer.unwrap_or(Err(Trouble::Late))
    }

    async fn exchange(&mut self, call: &Call) -> Result<String, Trouble> {
        self.serial += 1;
        let bytes = call.encode(self.serial);
        let sent = self.stream.write_all(&bytes).await;
        sent.map_err(|e| Trouble::Lost(e.into()))?;
        loop {
            match self.next().await.map_err(Trouble::Lost)? {
                Incoming::Answer { to, text } if to == self.serial => return Ok(text),
                Incoming::Refusal { to, name, text } if to == self.serial => {
                    return Err(Trouble::Refused { name, text });
                }
                Incoming::JobRemoved { job, result } => self.over.push((job, result)),
                _ => {}
            }
        }
    }

    /// A call that may be made twice.
    async fn insist(&mut self, call: &Call) -> Result<String, Trouble> {
        match self.call(call).await {
            Err(Trouble::Lost(_)) => {
                *self = Self::connect().await.map_err(Trouble::Lost)?;
                self.call(call).await
            }
            outcome => outcome,
        }
    }

    /// A call that begins a job, and how that ended.
    async fn job(&mut self, call: &Call) -> Result<String, Trouble> {
        self.over.clear();
        let job = self.call(call).await?;
        let result = timeout(PATIENCE, async {
            loop {
                if let Some(at) = self.over.iter().position(|(j, _)| *j == job) {
                    return Ok(self.over.swap_remove(at).1);
                }
                if let Incoming::JobRemoved { job, result } =
                    self.next().await.map_err(Trouble::Lost)?
                {
                    self.over.push((job, result));
                }
            }
        });
        result.await.unwrap_or(Err(Trouble::Late))
    }

    async fn version(&mut self) -> Result<u32> {
        let text = self.insist(&Call::version()).await;
        let text = text.map_err(|t| t.error().context("ask systemd for its version"))?;
        systemd::version(&text)
            .ok_or_else(|| Error::unknown(format!("systemd has a strange version: {text:?}")))
    }

    /// Starts a unit around a keeper.
    async fn start(&mut self, scope: &Scope, call: &Call, keeper: i32) -> Result<()> {
        let unit = scope.name();
        let mut again = true;
        loop {
            let trouble = match self.job(call).await {
                Ok(result) if result == "done" => return Ok(()),
                Ok(result) => {
                    self.reset(unit).await;
                    return Err(Error::unknown(format!(
                        "error creating systemd unit `{unit}`: got `{result}`"
                    )));
                }
                Err(trouble) => trouble,
            };
            // A connection that was lost may have brought it about all the same.
            let lost = matches!(trouble, Trouble::Lost(_));
            if lost {
                *self = Self::connect().await?;
            }
            let exists =
                matches!(&trouble, Trouble::Refused { name, .. } if name == systemd::UNIT_EXISTS);
            if (lost || exists) && systemd::holds(unit, keeper) {
                return Ok(());
            }
            if !again || !(lost || exists) {
                if matches!(trouble, Trouble::Late) {
                    self.reset(unit).await;
                }
                return Err(trouble.error());
            }
            again = false;
            if exists {
                // One that failed stays around until somebody has seen it.
                self.reset(unit).await;
            }
        }
    }

    /// Stops a unit; one that is gone is fine.
    async fn stop(&mut self, unit: &str) -> Result<()> {
        let call = Call::stop(unit);
        let mut outcome = self.job(&call).await;
        if matches!(outcome, Err(Trouble::Lost(_))) {
            *self = Self::connect().await?;
            outcome = self.job(&call).await;
        }
        let stopped = match outcome {
            Ok(result) => {
                if result != "done" {
                    log::warning!("remove unit {unit}: got {result}");
                }
                Ok(())
            }
            Err(Trouble::Refused { name, .. }) if name == systemd::NO_SUCH_UNIT => Ok(()),
            Err(trouble) => Err(trouble.error().context(format!("stop unit {unit:?}"))),
        };
        self.reset(unit).await;
        stopped
    }

    /// In case it failed, which keeps its name taken.
    async fn reset(&mut self, unit: &str) {
        // That it is unknown is the usual case.
        let _ = self.call(&Call::reset_failed(unit)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_oci::Kind;

    #[test]
    fn without_systemd_the_driver_says_so() {
        if systemd::is_running() {
            return println!("skipped: this host has systemd");
        }
        let driver = cgroup::Options { systemd: true };
        let spec = Spec::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let made = runtime.block_on(create(&Rc::default(), &spec, "a", &driver));
        let text = made.unwrap_err().to_string();
        assert!(text.contains("systemd not running"), "{text}");
        let made = Cgroup::create(&spec, "a", &driver).unwrap_err();
        assert_eq!(made.kind, Kind::Unsupported);
    }

    /// systemd's side of a conversation, as bytes: header fields 5 (reply to) and 8 (signature).
    fn answer(to: u32, text: &str) -> Vec<u8> {
        let mut body = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        body.extend_from_slice(text.as_bytes());
        body.push(0);
        let mut bytes = b"l\x02\0\x01".to_vec();
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend([1, 0, 0, 0, 15, 0, 0, 0, 5, 1, b'u', 0]);
        bytes.extend(to.to_le_bytes());
        bytes.extend([8, 1, b'g', 0, 1, b'o', 0, 0]);
        bytes.extend(body);
        bytes
    }

    #[tokio::test(flavor = "current_thread")]
    async fn answers_are_matched_to_calls() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut bus = Bus {
            stream: ours,
            serial: 0,
            received: Vec::new(),
            over: Vec::new(),
        };
        let peer = async {
            let mut buffer = vec![0; 4096];
            let n = theirs.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], systemd::GREETING);
            theirs.write_all(b"OK 0123\r\n").await.unwrap();
            let _ = theirs.read(&mut buffer).await.unwrap();
            // Somebody else's answer first.
            theirs.write_all(&answer(9, "/wrong")).await.unwrap();
            theirs.write_all(&answer(1, "/right")).await.unwrap();
            drop(theirs);
        };
        let us = async {
            bus.greet().await.unwrap();
            let text = bus.call(&Call::stop("a.scope")).await;
            assert!(matches!(text.as_deref(), Ok("/right")));
            let lost = bus.call(&Call::stop("a.scope")).await;
            assert!(matches!(lost, Err(Trouble::Lost(_))));
        };
        tokio::join!(peer, us);
    }
}
