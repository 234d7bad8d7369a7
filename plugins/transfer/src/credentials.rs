//! Credentials that the client of a transfer gives, when a registry asks for them.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::protos::any;
use corten_core::protos::containerd::types::transfer as api;
use corten_core::streaming::Stream;
use corten_core::{Error, Kind, Result};

use crate::registry::{Credential, Credentials};

/// Asks the client, over the stream it opened for that.
pub(crate) struct StreamCredentials {
    reference: String,
    // One question at a time.
    stream: tokio::sync::Mutex<Arc<dyn Stream>>,
}

impl StreamCredentials {
    pub(crate) fn new(reference: String, stream: Arc<dyn Stream>) -> Self {
        Self {
            reference,
            stream: tokio::sync::Mutex::new(stream),
        }
    }
}

#[async_trait]
impl Credentials for StreamCredentials {
    async fn get(&self, host: &str, challenges: &[String]) -> Result<Credential> {
        let stream = self.stream.lock().await;
        let request = api::AuthRequest {
            host: host.to_owned(),
            reference: self.reference.clone(),
            wwwauthenticate: challenges.to_vec(),
        };
        stream.send(any::pack(&request)).await?;
        let Some(answer) = stream.recv().await? else {
            return Err(Error::new(Kind::Canceled, "credential stream closed"));
        };
        let answer: api::AuthResponse = any::unpack(&answer)
            .map_err(|e| Error::invalid(format!("unmarshal credential response: {e}")))?;
        Ok(match api::AuthType::try_from(answer.auth_type) {
            Ok(api::AuthType::Credentials) => Credential {
                username: answer.username,
                secret: answer.secret,
                header: String::new(),
            },
            Ok(api::AuthType::Refresh) => Credential {
                secret: answer.secret,
                ..Credential::default()
            },
            Ok(api::AuthType::Header) => Credential {
                header: answer.secret,
                ..Credential::default()
            },
            _ => Credential::default(),
        })
    }
}
