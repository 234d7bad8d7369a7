//! ExecSync, and the URLs of Exec, Attach and PortForward.

use std::sync::Arc;
use std::time::Duration;

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse,
    PortForwardRequest, PortForwardResponse,
};
use tokio::sync::oneshot;

use super::fifos::Wanted;
use super::process::{self, Command, Kept, Streams};
use crate::cri::Cri;
use crate::store::pod::State;
use crate::streaming::Resize;
use crate::streaming::server::Urls;

/// Bytes that ExecSync keeps of each stream; the rest is read and lost.
pub const MAX_OUTPUT: usize = 16 << 20;
/// Bytes of both that it answers: what clients take in one message, less what surrounds them.
pub const MAX_ANSWER: usize = MAX_OUTPUT - 64;

impl Cri {
    /// Runs a process and answers with what it wrote.
    ///
    /// # Errors
    /// DeadlineExceeded: it ran longer than it may and was killed. NotFound; of no class: the container does not run.
    pub async fn exec_sync(self: &Arc<Self>, r: ExecSyncRequest) -> Result<ExecSyncResponse> {
        let exec = async {
            let container = self.running(&r.container_id)?;
            let seconds = u64::try_from(r.timeout).unwrap_or(0);
            let command = Command {
                args: r.cmd,
                wanted: Wanted {
                    tty: false,
                    stdin: false,
                    stdout: true,
                    stderr: true,
                },
                limit: (seconds > 0).then(|| Duration::from_secs(seconds)),
                owned: true,
            };
            let streams = Streams {
                stdin: None,
                stdout: Kept::new(MAX_OUTPUT),
                stderr: Kept::new(MAX_OUTPUT),
                resize: Resize::default(),
            };
            let (tell, told) = oneshot::channel();
            let run = process::run(self.clone(), container, command, streams, tell);
            self.background.spawn("exec", run);
            told.await
                .map_err(|_| Error::internal("an exec ended early"))?
        };
        let (code, stdout, stderr) = exec.await.context("failed to exec in container")?;
        let (mut stdout, mut stderr) = (stdout.bytes, stderr.bytes);
        fit(&mut stdout, &mut stderr);
        Ok(ExecSyncResponse {
            stdout,
            stderr,
            exit_code: i32::try_from(code).unwrap_or(super::state::UNKNOWN_CODE),
        })
    }

    /// # Errors
    /// As [`Urls::exec`]; NotFound; of no class: the container does not run.
    pub async fn exec(&self, mut r: ExecRequest) -> Result<ExecResponse> {
        let urls = self.streaming_urls()?;
        if !r.container_id.is_empty() {
            r.container_id
                .clone_from(&self.running(&r.container_id)?.id);
        }
        Ok(ExecResponse { url: urls.exec(r)? })
    }

    /// # Errors
    /// As [`Self::exec`].
    pub async fn attach(&self, mut r: AttachRequest) -> Result<AttachResponse> {
        let urls = self.streaming_urls()?;
        if !r.container_id.is_empty() {
            r.container_id
                .clone_from(&self.running(&r.container_id)?.id);
        }
        Ok(AttachResponse {
            url: urls.attach(r)?,
        })
    }

    /// # Errors
    /// As [`Urls::port_forward`]; NotFound; of no class: the pod is not ready.
    pub async fn port_forward(&self, mut r: PortForwardRequest) -> Result<PortForwardResponse> {
        let urls = self.streaming_urls()?;
        if !r.pod_sandbox_id.is_empty() {
            let pod = self.pods.get(&r.pod_sandbox_id)?;
            if pod.state() != State::Ready {
                return Err(Error::new(
                    Kind::Unknown,
                    "sandbox container is not running",
                ));
            }
            r.pod_sandbox_id.clone_from(&pod.id);
        }
        Ok(PortForwardResponse {
            url: urls.port_forward(r)?,
        })
    }

    fn streaming_urls(&self) -> Result<&Urls> {
        self.urls
            .get()
            .ok_or_else(|| Error::new(Kind::Unavailable, "the streaming server does not listen"))
    }
}

/// Cuts off what clients would not take; the shorter one keeps up to half. containerd's answer fails as a whole.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) {
    if stdout.len() + stderr.len() <= MAX_ANSWER {
        return;
    }
    let (longer, shorter) = if stdout.len() >= stderr.len() {
        (stdout, stderr)
    } else {
        (stderr, stdout)
    };
    shorter.truncate(MAX_ANSWER / 2);
    longer.truncate(MAX_ANSWER - shorter.len());
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn an_answer_fits_into_a_message_at_plus_minus_one() {
        for (out, err, want) in [
            (MAX_ANSWER - 1, 0, MAX_ANSWER - 1),
            (MAX_ANSWER, 0, MAX_ANSWER),
            (MAX_ANSWER + 1, 0, MAX_ANSWER),
            (MAX_ANSWER, 1, MAX_ANSWER),
            (1, MAX_ANSWER, MAX_ANSWER),
            (MAX_OUTPUT, MAX_OUTPUT, MAX_ANSWER),
        ] {
            let (mut stdout, mut stderr) = (vec![b'x'; out], vec![b'y'; err]);
            fit(&mut stdout, &mut stderr);
            assert_eq!(stdout.len() + stderr.len(), want, "{out} {err}");
            assert!(stdout.len().min(stderr.len()) >= out.min(err).min(1));
            let answer = ExecSyncResponse {
                stdout,
                stderr,
                exit_code: -1,
            };
            assert!(answer.encoded_len() <= 16 << 20);
        }
    }
}
