//! Debug output of messages that carry credentials: a log line may show that a secret is there, never what it is.
//!
//! `build.rs` leaves these types without a derived `Debug`; a new message with a secret is added to both lists.

use std::fmt;

use crate::containerd::types::transfer::{AuthResponse, RegistryResolver};
use crate::runtime::v1::AuthConfig;

struct Secret(bool);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "<hidden>" } else { "<none>" })
    }
}

fn hide(text: &str) -> Secret {
    Secret(!text.is_empty())
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &hide(&self.username))
            .field("password", &hide(&self.password))
            .field("auth", &hide(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &hide(&self.identity_token))
            .field("registry_token", &hide(&self.registry_token))
            .finish()
    }
}

impl fmt::Debug for AuthResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthResponse")
            .field("auth_type", &self.auth_type())
            .field("secret", &hide(&self.secret))
            .field("username", &hide(&self.username))
            .field("expire_at", &self.expire_at)
            .finish()
    }
}

impl fmt::Debug for RegistryResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold an Authorization line.
        f.debug_struct("RegistryResolver")
            .field("auth_stream", &self.auth_stream)
            .field("headers", &self.headers.keys())
            .field("host_dir", &self.host_dir)
            .field("default_scheme", &self.default_scheme)
            .field("http_debug", &self.http_debug())
            .field("logs_stream", &self.logs_stream)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let auth = AuthConfig {
            password: "hunter2".into(),
            ..Default::default()
        };
        let pull = crate::runtime::v1::PullImageRequest {
            auth: Some(auth),
            ..Default::default()
        };
        let text = format!("{pull:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("password: <hidden>, auth: <none>"), "{text}");

        let answer = AuthResponse {
            secret: "hunter2".into(),
            ..Default::default()
        };
        assert!(!format!("{answer:?}").contains("hunter2"));

        let mut resolver = RegistryResolver::default();
        resolver
            .headers
            .insert("Authorization".into(), "Bearer hunter2".into());
        assert!(!format!("{resolver:?}").contains("hunter2"));
    }
}
