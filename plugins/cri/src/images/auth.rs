//! Whose images may be pulled: the credentials of a request, given to the registry they are for and to nobody else.
//!
//! The transfer plugin asks for credentials over a stream, as it asks any client. Here both ends are in the daemon: the
//! stream answers itself. Nothing of this module implements `Debug` with a secret in it, and nothing is logged.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_core::protos::any;
use corten_core::protos::containerd::types::transfer::{AuthRequest, AuthResponse, AuthType};
use corten_core::streaming::{Stream, Streams};
use corten_core::{Any, Error, Kind, Namespace, Result};
use corten_protos::runtime::v1::AuthConfig;
use parking_lot::Mutex;

use crate::config::Auth;

/// Longest base64 field that is read.
const MAX_AUTH: usize = 64 << 10;

/// The stream that answers for one pull.
pub(super) struct Answering {
    /// Of the request; wins over the configured ones.
    auth: Option<AuthConfig>,
    /// By host.
    configured: Arc<BTreeMap<String, AuthConfig>>,
    /// The answer that was not fetched yet; a second question replaces it.
    answer: Mutex<Option<Any>>,
}

/// A registered stream; it is gone when this is dropped.
pub(super) struct Registered {
    streams: Arc<dyn Streams>,
    ns: Namespace,
    pub(super) id: String,
    stream: Arc<dyn Stream>,
}

/// Opens the stream for one pull.
///
/// # Errors
/// Those of the streams' registry.
pub(super) fn register(
    streams: &Arc<dyn Streams>,
    ns: &Namespace,
    auth: Option<AuthConfig>,
    configured: Arc<BTreeMap<String, AuthConfig>>,
) -> Result<Registered> {
    let stream: Arc<dyn Stream> = Arc::new(Answering {
        auth,
        configured,
        answer: Mutex::default(),
    });
    // Not guessable: other clients of the namespace could ask it.
    let id = format!("cri-credentials-{}", uuid::Uuid::new_v4());
    streams.register(ns, &id, stream.clone())?;
    Ok(Registered {
        streams: streams.clone(),
        ns: ns.clone(),
        id,
        stream,
    })
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.streams.remove(&self.ns, &self.id, &self.stream);
    }
}

#[async_trait]
impl Stream for Answering {
    async fn recv(&self) -> Result<Option<Any>> {
        Ok(self.answer.lock().take())
    }

    async fn send(&self, message: Any) -> Result<()> {
        let asked: AuthRequest = any::unpack(&message)
            .map_err(|e| Error::invalid(format!("unmarshal credential request: {e}")))?;
        let auth = self
            .auth
            .as_ref()
            .or_else(|| self.configured.get(&asked.host));
        let answer = match auth {
            Some(auth) => answer(auth, &asked.host)?,
            None => AuthResponse::default(),
        };
        *self.answer.lock() = Some(any::pack(&answer));
        Ok(())
    }

    async fn close(&self) {}
}

// What `auth` says for `host`; nothing when it is for another one.
fn answer(auth: &AuthConfig, host: &str) -> Result<AuthResponse> {
    let of = |kind: AuthType, username: &str, secret: String| AuthResponse {
        auth_type: kind.into(),
        username: username.to_owned(),
        secret,
        ..AuthResponse::default()
    };
    if !auth.server_address.is_empty() && server_host(&auth.server_address)? != host {
        return Ok(AuthResponse::default());
    }
    if !auth.username.is_empty() {
        return Ok(of(
            AuthType::Credentials,
            &auth.username,
            auth.password.clone(),
        ));
    }
    if !auth.identity_token.is_empty() {
        return Ok(of(AuthType::Refresh, "", auth.identity_token.clone()));
    }
    if !auth.auth.is_empty() {
        let (user, password) = decoded(&auth.auth)?;
        return Ok(of(AuthType::Credentials, &user, password));
    }
    if !auth.registry_token.is_empty() {
        let header = format!("Bearer {}", auth.registry_token);
        return Ok(of(AuthType::Header, "", header));
    }
    Ok(AuthResponse::default())
}

// `https://host:port/v1/` and, beyond containerd, a bare `host:port`: there its URL has no host, and the credential
// would go to nobody.
fn server_host(address: &str) -> Result<&str> {
    let rest = match address.split_once("://") {
        Some(("", _)) => {
            return Err(Error::invalid(
                "parse server address: missing protocol scheme",
            ));
        }
        Some((_, rest)) => rest,
        None => address,
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    Ok(host.rsplit('@').next().unwrap_or_default())
}

fn decoded(auth: &str) -> Result<(String, String)> {
    // Never the text itself: it is the secret.
    let bad = || Error::new(Kind::InvalidArgument, "invalid decoded auth");
    if auth.len() > MAX_AUTH {
        return Err(bad());
    }
    let bytes = STANDARD.decode(auth).map_err(|_| bad())?;
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    let (user, password) = text.split_once(':').ok_or_else(bad)?;
    Ok((user.to_owned(), password.trim_matches('\0').to_owned()))
}

/// Configured credentials as a request would carry them.
pub(super) fn of_config(auth: &Auth) -> AuthConfig {
    AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        identity_token: auth.identitytoken.clone(),
        ..AuthConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(auth: &AuthConfig, host: &str) -> (AuthType, String, String) {
        let a = answer(auth, host).unwrap();
        (a.auth_type(), a.username, a.secret)
    }

    #[test]
    fn each_form_has_its_answer() {
        let none = (AuthType::None, String::new(), String::new());
        assert_eq!(ask(&AuthConfig::default(), "h"), none);
        let mut auth = AuthConfig {
            registry_token: "t".into(),
            ..AuthConfig::default()
        };
        assert_eq!(
            ask(&auth, "h"),
            (AuthType::Header, "".into(), "Bearer t".into())
        );
        auth.auth = STANDARD.encode("u:p:q\0");
        assert_eq!(
            ask(&auth, "h"),
            (AuthType::Credentials, "u".into(), "p:q".into())
        );
        auth.identity_token = "i".into();
        assert_eq!(ask(&auth, "h"), (AuthType::Refresh, "".into(), "i".into()));
        auth.username = "n".into();
        assert_eq!(ask(&auth, "h").1, "n");
        for bad in [
            "!",
            &STANDARD.encode("nocolon"),
            &STANDARD.encode([0xff, b':']),
        ] {
            let auth = AuthConfig {
                auth: bad.into(),
                ..AuthConfig::default()
            };
            let e = answer(&auth, "h").unwrap_err();
            assert_eq!(e.to_string(), "invalid decoded auth");
        }
    }

    #[test]
    fn an_endless_field_is_not_read() {
        let of = |n: usize| STANDARD.encode(format!("u:{}", "p".repeat(n - 2)));
        let most = MAX_AUTH / 4 * 3;
        assert_eq!(decoded(&of(most)).unwrap().0, "u");
        assert!(decoded(&of(most + 1)).is_err());
    }

    #[test]
    fn a_credential_goes_to_its_host_only() {
        for (server, host, theirs) in [
            ("https://h:5000/v1/", "h:5000", true),
            ("https://h/", "h", true),
            ("h:5000", "h:5000", true),
            ("https://h", "h:5000", false),
            ("https://h.evil.io", "h", false),
            ("https://evil@h/x", "h", true),
        ] {
            let auth = AuthConfig {
                username: "u".into(),
                password: "secret".into(),
                server_address: server.into(),
                ..AuthConfig::default()
            };
            let given = ask(&auth, host).0 == AuthType::Credentials;
            assert_eq!(given, theirs, "{server} {host}");
        }
    }

    #[tokio::test]
    async fn the_stream_answers_itself() {
        let configured = Arc::new(BTreeMap::from([(
            "h".to_owned(),
            AuthConfig {
                username: "c".into(),
                ..AuthConfig::default()
            },
        )]));
        let stream = Answering {
            auth: None,
            configured,
            answer: Mutex::default(),
        };
        for (host, user) in [("h", "c"), ("other", "")] {
            let request = AuthRequest {
                host: host.into(),
                ..AuthRequest::default()
            };
            stream.send(any::pack(&request)).await.unwrap();
            let got: AuthResponse = any::unpack(&stream.recv().await.unwrap().unwrap()).unwrap();
            assert_eq!(got.username, user);
        }
        assert!(stream.recv().await.unwrap().is_none());
    }
}
