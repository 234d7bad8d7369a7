//! From an HTTP request to a wire: which of SPDY and WebSocket, which subprotocol, and the words of a refusal.

use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::remote::Protocol;
use super::websocket::Codec;

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;
/// An answer that refuses.
pub(crate) type Refusal = Box<Answer>;

const SPDY: &str = "SPDY/3.1";
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What the two sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Remote command or ports over SPDY.
    Spdy(Protocol),
    /// Remote command or ports over channels.
    Channels(Protocol, Codec),
    /// Ports over SPDY in WebSocket.
    Tunnel,
}

/// Agrees on a wire for remote commands, or for ports.
///
/// # Errors
/// The answer that refuses.
pub(crate) fn negotiate(headers: &HeaderMap, ports: bool) -> Result<(Wire, Answer), Refusal> {
    if contains(headers, &CONNECTION, "upgrade") && contains(headers, &UPGRADE, "websocket") {
        websocket(headers, ports)
    } else {
        spdy(headers, ports)
    }
}

fn spdy(headers: &HeaderMap, ports: bool) -> Result<(Wire, Answer), Refusal> {
    let asked = list(headers, &VERSION);
    if asked.is_empty() {
        let text = "unable to upgrade: header X-Stream-Protocol-Version does not exist in request";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let known: &[(&str, u8)] = if ports {
        &[(FORWARD, 1)]
    } else {
        &[
            ("v4.channel.k8s.io", 4),
            ("v3.channel.k8s.io", 3),
            ("v2.channel.k8s.io", 2),
            ("channel.k8s.io", 1),
        ]
    };
    let found = asked
        .iter()
        .find_map(|a| known.iter().find(|(name, _)| a == name));
    let Some((name, number)) = found else {
        let mut answer = refuse(
            StatusCode::FORBIDDEN,
            &format!("unable to upgrade: unable to negotiate protocol: client supports {asked:?}"),
        );
        for (name, _) in known {
            answer
                .headers_mut()
                .append(ACCEPTED, HeaderValue::from_static(name));
        }
        return Err(answer);
    };
    if !contains(headers, &CONNECTION, "upgrade") || !contains(headers, &UPGRADE, "spdy/3.1") {
        let text = "unable to upgrade: missing upgrade headers in request";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let mut answer = switch(SPDY);
    answer
        .headers_mut()
        .insert(VERSION, HeaderValue::from_static(name));
    Ok((Wire::Spdy(Protocol(*number)), answer))
}

fn websocket(headers: &HeaderMap, ports: bool) -> Result<(Wire, Answer), Refusal> {
    let bad = |text: &str| refuse(StatusCode::BAD_REQUEST, text);
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return Err(bad("unable to upgrade: not WebSocket version 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.ok_or_else(|| bad("unable to upgrade: no Sec-WebSocket-Key"))?;
    let asked = list(headers, &SEC_WEBSOCKET_PROTOCOL);
    let (name, wire) = if asked.is_empty() {
        let codec = Codec {
            base64: false,
            close: false,
        };
        ("", Wire::Channels(Protocol(1), codec))
    } else {
        let found = asked
            .iter()
            .find_map(|a| Some((a.as_str(), subprotocol(a, ports)?)));
        found.ok_or_else(|| {
            let text =
                format!("unable to upgrade: requested protocol(s) are not supported: {asked:?}");
            refuse(StatusCode::FORBIDDEN, &text)
        })?
    };
    let mut answer = switch("websocket");
    let headers = answer.headers_mut();
    let accept = HeaderValue::from_str(&derive_accept_key(key));
    headers.insert(
        SEC_WEBSOCKET_ACCEPT,
        accept.map_err(|_| bad("unable to upgrade: bad key"))?,
    );
    if !name.is_empty() {
        let name =
            HeaderValue::from_str(name).map_err(|_| bad("unable to upgrade: bad protocol"))?;
        headers.insert(SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok((wire, answer))
}

/// `[vN.][base64.]channel.k8s.io`; for ports v4 and the tunnel.
fn subprotocol(name: &str, ports: bool) -> Option<Wire> {
    if name == TUNNEL {
        return ports.then_some(Wire::Tunnel);
    }
    let rest = name.strip_suffix("channel.k8s.io")?;
    let (rest, base64) = match rest.strip_suffix("base64.") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let number = match rest {
        "" | "v1." => 1,
        "v2." => 2,
        "v3." => 3,
        "v4." => 4,
        // Its channel 255 has no digit.
        "v5." if !base64 => 5,
        _ => return None,
    };
    if ports && number != 4 {
        return None;
    }
    Some(Wire::Channels(
        Protocol(number),
        Codec {
            base64,
            close: number >= 5,
        },
    ))
}

/// The values of a header that may be given several times or with commas.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    let all = values.flat_map(|v| v.split(',')).map(str::trim);
    all.filter(|v| !v.is_empty()).map(str::to_owned).collect()
}

fn contains(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    list(headers, name)
        .iter()
        .any(|v| v.eq_ignore_ascii_case(word))
}

fn switch(to: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

/// A refusal in plain text.
pub(crate) fn refuse(status: StatusCode, text: &str) -> Refusal {
    let mut answer = Response::new(Full::from(text.to_owned()));
    *answer.status_mut() = status;
    Box::new(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(n, v): &(&'static str, &'static str)| {
            (HeaderName::from_static(n), HeaderValue::from_static(v))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn spdy_is_agreed_on_by_the_clients_order() {
        let with = |version| {
            headers(&[
                ("connection", "Upgrade"),
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", version),
            ])
        };
        let (wire, answer) = negotiate(
            &with("v9.channel.k8s.io, v2.channel.k8s.io,v4.channel.k8s.io"),
            false,
        )
        .unwrap();
        assert_eq!(wire, Wire::Spdy(Protocol(2)));
        assert_eq!(answer.status(), 101);
        assert_eq!(
            answer.headers()["x-stream-protocol-version"],
            "v2.channel.k8s.io"
        );
        assert_eq!(answer.headers()["upgrade"], "SPDY/3.1");
        let e = negotiate(&with("v5.channel.k8s.io"), false).unwrap_err();
        assert_eq!(e.status(), 403);
        assert_eq!(e.headers().get_all(&ACCEPTED).iter().count(), 4);
        assert_eq!(negotiate(&with(FORWARD), false).unwrap_err().status(), 403);
        assert_eq!(
            negotiate(&with(FORWARD), true).unwrap().0,
            Wire::Spdy(Protocol(1))
        );
        assert_eq!(negotiate(&headers(&[]), false).unwrap_err().status(), 400);
        let plain = headers(&[("x-stream-protocol-version", FORWARD)]);
        assert_eq!(negotiate(&plain, true).unwrap_err().status(), 400);
    }

    #[test]
    fn websocket_subprotocols() {
        let raw = |n, close| {
            Some(Wire::Channels(
                Protocol(n),
                Codec {
                    base64: false,
                    close,
                },
            ))
        };
        let text = |n| {
            Some(Wire::Channels(
                Protocol(n),
                Codec {
                    base64: true,
                    close: false,
                },
            ))
        };
        for (name, wanted) in [
            ("channel.k8s.io", raw(1, false)),
            ("base64.channel.k8s.io", text(1)),
            ("v3.channel.k8s.io", raw(3, false)),
            ("v4.channel.k8s.io", raw(4, false)),
            ("v4.base64.channel.k8s.io", text(4)),
            ("v5.channel.k8s.io", raw(5, true)),
            ("v5.base64.channel.k8s.io", None),
            ("v6.channel.k8s.io", None),
            (TUNNEL, None),
        ] {
            assert_eq!(subprotocol(name, false), wanted, "{name}");
        }
        assert_eq!(subprotocol(TUNNEL, true), Some(Wire::Tunnel));
        assert_eq!(subprotocol("v4.channel.k8s.io", true), raw(4, false));
        assert_eq!(subprotocol("v5.channel.k8s.io", true), None);
        let ask = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            // The example of RFC 6455.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        let (wire, answer) = negotiate(&ask, false).unwrap();
        assert_eq!(Some(wire), raw(1, false));
        assert_eq!(
            answer.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(answer.headers().get(SEC_WEBSOCKET_PROTOCOL).is_none());
    }
}
