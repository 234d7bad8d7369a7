//! Tokens: a request of the CRI that waits for its client.

use std::collections::HashMap;
use std::time::Duration;

use corten_core::{Error, Kind, Result};
use corten_protos::runtime::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Most tokens that wait at a time.
pub const MAX_TOKENS: usize = 1000;
/// How long a token waits.
pub const LIFE: Duration = Duration::from_secs(60);

/// What a client may do once.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// The tokens that wait.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<String, (Request, Instant)>>);

impl Request {
    /// The first element of its path.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

impl Tokens {
    /// A new token for `request`: a random UUID, 122 bits of the kernel's randomness.
    ///
    /// # Errors
    /// ResourceExhausted when too many wait.
    pub fn insert(&self, request: Request) -> Result<String> {
        let now = Instant::now();
        let mut waiting = self.0.lock();
        if waiting.len() >= MAX_TOKENS {
            waiting.retain(|_, (_, until)| *until > now);
        }
        if waiting.len() >= MAX_TOKENS {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "maximum number of in-flight requests exceeded",
            ));
        }
        let token = uuid::Uuid::new_v4().simple().to_string();
        waiting.insert(token.clone(), (request, now + LIFE));
        Ok(token)
    }

    /// The token's request, once.
    pub fn take(&self, token: &str) -> Option<Request> {
        let (request, until) = self.0.lock().remove(token)?;
        (until > Instant::now()).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(id: &str) -> Request {
        Request::Exec(ExecRequest {
            container_id: id.into(),
            ..ExecRequest::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let (a, b, c) = (exec("a"), exec("b"), exec("c"));
        let ta = tokens.insert(a.clone()).unwrap();
        let tb = tokens.insert(b.clone()).unwrap();
        let tc = tokens.insert(c).unwrap();
        assert_eq!(ta.len(), 32);
        assert_ne!(ta, tb);
        assert_eq!(tokens.take(&ta), Some(a));
        assert_eq!(tokens.take(&ta), None);
        assert_eq!(tokens.take(""), None);
        tokio::time::advance(LIFE - Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&tb), Some(b));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&tc), None);
    }

    #[tokio::test(start_paused = true)]
    async fn their_number_is_bounded() {
        let tokens = Tokens::default();
        let mut last = String::new();
        for _ in 0..MAX_TOKENS {
            last = tokens.insert(exec("a")).unwrap();
        }
        let e = tokens.insert(exec("a")).unwrap_err();
        assert_eq!(e.kind(), Kind::ResourceExhausted);
        tokens.take(&last).unwrap();
        tokens.insert(exec("a")).unwrap();
        tokens.insert(exec("a")).unwrap_err();
        tokio::time::advance(LIFE).await;
        tokens.insert(exec("a")).unwrap();
    }
}
