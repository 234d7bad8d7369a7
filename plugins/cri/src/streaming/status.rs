//! The last word of an exec or attach: a `metav1.Status`, as JSON since protocol v4 and as text before.

use corten_core::Error;
use serde::Serialize;

/// The part of `metav1.Status` that remote commands use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Status {
    pub status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Details {
    pub causes: Vec<Cause>,
}

/// `reason` is the type on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    pub reason: &'static str,
    pub message: String,
}

impl Status {
    /// It ended well.
    pub fn success() -> Self {
        Self {
            status: "Success",
            ..Self::default()
        }
    }

    /// The process of `command` ended with `code`. The words are those that clients of stock containerd see.
    pub fn exited(command: &[String], code: u32) -> Self {
        if code == 0 {
            return Self::success();
        }
        let command = command.join(" ");
        Self {
            status: "Failure",
            reason: "NonZeroExitCode",
            message: format!(
                "command terminated with non-zero exit code: error executing command [{command}], exit code {code}"
            ),
            details: Some(Details {
                causes: vec![Cause {
                    reason: "ExitCode",
                    message: code.to_string(),
                }],
            }),
            code: 0,
        }
    }

    /// `doing` could not be done.
    pub fn failed(doing: &str, error: &Error) -> Self {
        Self {
            status: "Failure",
            reason: "InternalError",
            message: format!("Internal error occurred: error {doing} container: {error}"),
            details: None,
            code: 500,
        }
    }

    /// What goes onto the error stream; before v4 success is silence.
    pub fn bytes(&self, json: bool) -> Vec<u8> {
        if json {
            // Text and numbers only: it cannot fail, and an empty answer would be read as success.
            return serde_json::to_vec(self).unwrap_or_else(|e| e.to_string().into_bytes());
        }
        self.message.clone().into_bytes()
    }
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_what_clients_parse() {
        let value =
            |s: &Status| serde_json::from_slice::<serde_json::Value>(&s.bytes(true)).unwrap();
        assert_eq!(value(&Status::success()), json!({"status": "Success"}));
        assert_eq!(Status::success().bytes(false), b"");
        let command = ["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()];
        let exited = Status::exited(&command, 3);
        let message = "command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3";
        assert_eq!(
            value(&exited),
            json!({"status": "Failure", "reason": "NonZeroExitCode", "message": message,
                   "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}})
        );
        assert_eq!(exited.bytes(false), message.as_bytes());
        assert_eq!(Status::exited(&command, 0), Status::success());
        let failed = Status::failed("executing command in", &Error::not_found("container \"x\""));
        assert_eq!(
            value(&failed),
            json!({"status": "Failure", "reason": "InternalError", "code": 500,
                   "message": "Internal error occurred: error executing command in container: container \"x\": not found"})
        );
    }
}
