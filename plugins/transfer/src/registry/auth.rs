//! Who we are to a registry: challenges, credentials, tokens.
//!
//! A secret is given to the origin (scheme, host, port) that was asked for and to the token realm that this origin
//! names, never over plain HTTP when the registry itself is HTTPS, and never to where a redirect or a foreign URL
//! leads. What `hosts.toml` says for a host (headers, client certificates) a realm on another host does not see. Nothing here implements `Debug` or `Display` with a secret in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_core::{Error, Kind, Result};
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::USER_AGENT_VALUE;
use super::request::Endpoint;

/// What a client knows for a host. All empty means anonymous.
#[derive(Clone, Default)]
pub struct Credential {
    /// Empty with a secret: the secret is a refresh (identity) token.
    pub username: String,
    pub secret: String,
    /// A whole `Authorization` value; wins over the others.
    pub header: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(..)")
    }
}

/// Where credentials come from: a client's auth stream, a CRI request.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The credential for `host[:port]`; `challenges` are the `WWW-Authenticate` values that ask for it.
    async fn get(&self, host: &str, challenges: &[String]) -> Result<Credential>;
}

/// Longest token answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// One parsed challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lower case.
    pub scheme: String,
    /// Keys in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// Answers challenges and remembers the answers by origin.
pub struct Authorizer {
    credentials: Option<Arc<dyn Credentials>>,
    known: Mutex<HashMap<String, Arc<Answer>>>,
}

enum Answer {
    Fixed(HeaderValue),
    Bearer(Box<Bearer>),
}

struct Bearer {
    realm: Url,
    service: String,
    scopes: Vec<String>,
    credential: Credential,
    tokens: tokio::sync::Mutex<HashMap<String, Token>>,
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    until: Option<Instant>,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authorizer({} origins)", self.known.lock().len())
    }
}

/// The error class and words of a refused authorization; `pull access denied…` is put in front of them.
pub fn denied(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unauthenticated, format!("{why}"))
}

// === impl Authorizer ===

impl Authorizer {
    pub fn new(credentials: Option<Arc<dyn Credentials>>) -> Self {
        Self {
            credentials,
            known: Mutex::default(),
        }
    }

    /// The `Authorization` for a request to `endpoint` with token scopes `scopes`, if one is known to be needed.
    ///
    /// # Errors
    /// The token server's.
    pub(super) async fn header(
        &self,
        endpoint: &Endpoint,
        scopes: &[String],
    ) -> Result<Option<HeaderValue>> {
        let answer = self.known.lock().get(&endpoint.origin()).cloned();
        match answer.as_deref() {
            None => Ok(None),
            Some(Answer::Fixed(value)) => Ok(Some(value.clone())),
            Some(Answer::Bearer(b)) => Ok(Some(b.token(endpoint, scopes).await?)),
        }
    }

    /// Takes in a 401 of `origin`. True: try again. `again` says that the same request was just refused.
    ///
    /// # Errors
    /// Unauthenticated when the registry says that trying again is of no use, or no credential is there for basic.
    pub async fn challenged(
        &self,
        origin: &str,
        host: &str,
        headers: &HeaderMap,
        again: bool,
    ) -> Result<bool> {
        let raw: Vec<String> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| v.to_str().ok().map(str::to_owned))
            .collect();
        let mut challenges: Vec<Challenge> = raw.iter().filter_map(|r| parse(r)).collect();
        // Bearer before basic; others are unknown here.
        challenges.sort_by_key(|c| c.scheme != "bearer");
        for challenge in &challenges {
            match challenge.scheme.as_str() {
                "bearer" => return self.bearer(origin, host, challenge, &raw, again).await,
                "basic" if self.credentials.is_some() => {
                    return self.basic(origin, host, &raw, again).await;
                }
                _ => {}
            }
        }
        Ok(false)
    }

    async fn credential(&self, host: &str, challenges: &[String]) -> Result<Credential> {
        match &self.credentials {
            Some(c) => c.get(host, challenges).await,
            None => Ok(Credential::default()),
        }
    }

    async fn basic(&self, origin: &str, host: &str, raw: &[String], again: bool) -> Result<bool> {
        // Known: another request was challenged meanwhile, or the credential is refused.
        if self.known.lock().contains_key(origin) {
            return Ok(!again);
        }
        let c = self.credential(host, raw).await?;
        let value = if !c.header.is_empty() {
            c.header
        } else if c.username.is_empty() || c.secret.is_empty() {
            return Err(denied("authorization failed: no basic auth credentials"));
        } else {
            format!(
                "Basic {}",
                STANDARD.encode(format!("{}:{}", c.username, c.secret))
            )
        };
        self.remember(origin, Answer::Fixed(secret_value(&value)?));
        Ok(true)
    }

    async fn bearer(
        &self,
        origin: &str,
        host: &str,
        challenge: &Challenge,
        raw: &[String],
        again: bool,
    ) -> Result<bool> {
        if let Some(error) = challenge.parameters.get("error") {
            self.known.lock().remove(origin);
            if again {
                return Err(denied(format!(
                    "server message: {error}: authorization failed"
                )));
            }
        } else if self.known.lock().contains_key(origin) {
            return Ok(!again);
        }
        let credential = self.credential(host, raw).await?;
        if !credential.header.is_empty() {
            self.remember(origin, Answer::Fixed(secret_value(&credential.header)?));
            return Ok(true);
        }
        let parameter = |name: &str| challenge.parameters.get(name).map_or("", String::as_str);
        let realm = match parameter("realm") {
            "" => {
                return Err(Error::invalid(
                    "no realm specified for token auth challenge",
                ));
            }
            realm => Url::parse(realm)
                .map_err(|e| Error::invalid(format!("invalid token auth challenge realm: {e}")))?,
        };
        if !matches!(realm.scheme(), "http" | "https") {
            return Err(Error::invalid(
                "invalid token auth challenge realm: not http",
            ));
        }
        if !credential.secret.is_empty() && origin.starts_with("https") && realm.scheme() == "http"
        {
            return Err(denied(format!(
                "token realm of {host} is plain HTTP: credentials not sent: authorization failed"
            )));
        }
        let bearer = Bearer {
            realm,
            service: parameter("service").to_owned(),
            scopes: parameter("scope")
                .split(' ')
                .filter(|s| !s.is_empty())
                .map(str::to_owned)
                .collect(),
            credential,
            tokens: tokio::sync::Mutex::default(),
        };
        self.remember(origin, Answer::Bearer(Box::new(bearer)));
        Ok(true)
    }

    fn remember(&self, origin: &str, answer: Answer) {
        self.known
            .lock()
            .insert(origin.to_owned(), Arc::new(answer));
    }
}

fn secret_value(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| denied("authorization failed: credential is not a header value"))?;
    value.set_sensitive(true);
    Ok(value)
}

// === impl Bearer ===

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<i64>,
}

enum TokenError {
    Status(StatusCode, Error),
    Other(Error),
}

impl From<TokenError> for Error {
    fn from(e: TokenError) -> Self {
        match e {
            TokenError::Status(_, e) | TokenError::Other(e) => e,
        }
    }
}

impl Bearer {
    // One fetch at a time: the lock is held over it, so that parallel layers share one token.
    async fn token(&self, endpoint: &Endpoint, scopes: &[String]) -> Result<HeaderValue> {
        let mut all: Vec<&str> = self
            .scopes
            .iter()
            .chain(scopes)
            .map(String::as_str)
            .collect();
        all.sort_unstable();
        all.dedup();
        let key = all.join(" ");
        let mut tokens = self.tokens.lock().await;
        if let Some(t) = tokens.get(&key)
            && t.until.is_none_or(|u| u > Instant::now())
        {
            return Ok(t.value.clone());
        }
        let token = self.fetch(endpoint, &all).await?;
        let value = token.value.clone();
        tokens.insert(key, token);
        Ok(value)
    }

    async fn fetch(&self, endpoint: &Endpoint, scopes: &[&str]) -> Result<Token> {
        if self.credential.secret.is_empty() {
            return self
                .get(endpoint, scopes)
                .await
                .map_err(|e| Error::from(e).context("failed to fetch anonymous token"));
        }
        let posted = self.post(endpoint, scopes).await;
        let answer = match posted {
            // Some servers have no POST, others none for passwords: GET is the older way.
            Err(TokenError::Status(status, e)) => {
                let old = matches!(status.as_u16(), 400 | 401 | 404)
                    || (status.as_u16() == 405 && !self.credential.username.is_empty());
                if old {
                    self.get(endpoint, scopes).await
                } else {
                    Err(TokenError::Other(e))
                }
            }
            other => other,
        };
        answer.map_err(|e| Error::from(e).context("failed to fetch oauth token"))
    }

    async fn post(&self, endpoint: &Endpoint, scopes: &[&str]) -> Result<Token, TokenError> {
        let c = &self.credential;
        let mut form = reqwest::Url::parse("form:x")
            .map_err(|e| TokenError::Other(Error::internal(format!("build token form: {e}"))))?;
        {
            let mut pairs = form.query_pairs_mut();
            if !scopes.is_empty() {
                pairs.append_pair("scope", &scopes.join(" "));
            }
            pairs
                .append_pair("service", &self.service)
                .append_pair("client_id", "containerd-client");
            if c.username.is_empty() {
                pairs.append_pair("grant_type", "refresh_token");
                pairs.append_pair("refresh_token", &c.secret);
            } else {
                pairs.append_pair("grant_type", "password");
                pairs.append_pair("username", &c.username);
                pairs.append_pair("password", &c.secret);
            }
        }
        let body = form.query().unwrap_or_default().to_owned();
        let request = endpoint
            .client_for(&self.realm)
            .post(self.realm.clone())
            .headers(endpoint.headers_for(&self.realm))
            .header(
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-8",
            )
            .header(USER_AGENT, USER_AGENT_VALUE)
            .body(body);
        self.answer(endpoint, request, reqwest::Method::POST).await
    }

    async fn get(&self, endpoint: &Endpoint, scopes: &[&str]) -> Result<Token, TokenError> {
        let mut url = self.realm.clone();
        {
            let mut pairs = url.query_pairs_mut();
            if !self.service.is_empty() {
                pairs.append_pair("service", &self.service);
            }
            for scope in scopes {
                pairs.append_pair("scope", scope);
            }
        }
        let mut request = endpoint
            .client_for(&self.realm)
            .get(url)
            .headers(endpoint.headers_for(&self.realm))
            .header(USER_AGENT, USER_AGENT_VALUE);
        let c = &self.credential;
        if !c.secret.is_empty() {
            let basic = STANDARD.encode(format!("{}:{}", c.username, c.secret));
            let value = secret_value(&format!("Basic {basic}")).map_err(TokenError::Other)?;
            request = request.header(AUTHORIZATION, value);
        }
        self.answer(endpoint, request, reqwest::Method::GET).await
    }

    async fn answer(
        &self,
        endpoint: &Endpoint,
        request: reqwest::RequestBuilder,
        method: reqwest::Method,
    ) -> Result<Token, TokenError> {
        let mut shown = self.realm.clone();
        shown.set_query(None);
        let other = |e: &reqwest::Error| {
            let host = shown.host_str().unwrap_or_default().to_owned();
            let port = shown.port_or_known_default().unwrap_or(443);
            TokenError::Other(super::tls::request_error(
                e,
                &method,
                shown.as_str(),
                &format!("{host}:{port}"),
            ))
        };
        let mut response = endpoint.execute(request).await.map_err(|e| other(&e))?;
        let status = response.status();
        if !status.is_success() {
            let error = super::request::unexpected_status(&method, shown.as_str(), status, &[]);
            return Err(TokenError::Status(status, error));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| other(&e))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(TokenError::Other(Error::invalid("token response too long")));
            }
        }
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| TokenError::Other(Error::invalid("unable to decode token response")))?;
        let token = answer
            .access_token
            .filter(|t| !t.is_empty())
            .or(answer.token);
        let Some(token) = token.filter(|t| !t.is_empty()) else {
            return Err(TokenError::Other(denied(
                "authorization server did not include a token in the response",
            )));
        };
        let until = answer
            .expires_in
            .and_then(|s| u64::try_from(s).ok())
            .filter(|s| *s > 0)
            .map(|s| Instant::now() + Duration::from_secs(s.min(86_400)));
        let value = secret_value(&format!("Bearer {token}")).map_err(TokenError::Other)?;
        Ok(Token { value, until })
    }
}

/// Parses one `WWW-Authenticate` value: a scheme and `key=value` or `key="value"` pairs.
pub fn parse(header: &str) -> Option<Challenge> {
    let header = header.trim();
    let (scheme, mut rest) = header.split_once([' ', '\t']).unwrap_or((header, ""));
    if scheme.is_empty() {
        return None;
    }
    let mut parameters = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((key, after)) = rest.split_once('=') else {
            break;
        };
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        parameters.insert(key.trim().to_lowercase(), value);
        rest = after;
    }
    Some(Challenge {
        scheme: scheme.to_lowercase(),
        parameters,
    })
}

fn unquote(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => {
                out.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((out, &text[i + 1..])),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let c = parse(
            r#"Bearer realm="https://auth.example/token",service="reg, one",scope="repository:a/b:pull",error=insufficient_scope"#,
        )
        .unwrap();
        assert_eq!(c.scheme, "bearer");
        assert_eq!(c.parameters["realm"], "https://auth.example/token");
        assert_eq!(c.parameters["service"], "reg, one");
        assert_eq!(c.parameters["error"], "insufficient_scope");
        assert_eq!(
            parse("Basic realm=\"a \\\"b\\\"\"").unwrap().parameters["realm"],
            "a \"b\""
        );
        assert_eq!(parse("Negotiate").unwrap().scheme, "negotiate");
        assert_eq!(parse(""), None);
        assert_eq!(parse("Bearer realm=\"open"), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let c = Credential {
            secret: "hunter2".into(),
            ..Credential::default()
        };
        assert!(!format!("{c:?}").contains("hunter2"));
        assert!(!format!("{:?}", secret_value("Bearer hunter2").unwrap()).contains("hunter2"));
    }
}
