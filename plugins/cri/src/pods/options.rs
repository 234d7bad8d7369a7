//! The `options` table of a runtime handler as the message that its shim reads.

use corten_core::{Any, Error, Result};
use corten_protos::containerd::runc::v1::Options as Runc;
use corten_protos::{any, runtimeoptions};

use crate::config::Handler;

/// Runtimes whose options are runc's.
const RUNC_LIKE: [&str; 2] = ["io.containerd.runc.v2", "io.containerd.corten.v2"];

/// The runtime as its shim is found: the file where one is named, else the type.
pub fn runtime(handler: &Handler) -> &str {
    if handler.runtime_path.is_empty() {
        &handler.runtime_type
    } else {
        &handler.runtime_path
    }
}

/// The options; none where the handler has no such table.
///
/// # Errors
/// InvalidArgument: a key of the table is of another type than its option.
pub fn of(handler: &Handler) -> Result<Option<Any>> {
    if handler.options.is_empty() {
        return Ok(None);
    }
    if RUNC_LIKE.contains(&handler.runtime_type.as_str()) {
        return Ok(Some(any::pack(&runc(&handler.options)?)));
    }
    let text = |key: &str| {
        let found = handler
            .options
            .iter()
            .find(|(k, _)| k.eq_ignore_ascii_case(key));
        found
            .and_then(|(_, v)| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let mut options = runtimeoptions::v1::Options {
        type_url: text("TypeUrl"),
        config_path: text("ConfigPath"),
        config_body: text("ConfigBody").into_bytes(),
    };
    if options.config_path.is_empty() {
        // The whole table, for runtimes that have keys of their own.
        let table = toml::to_string(&handler.options).map_err(|e| {
            Error::invalid(format!("options of runtime {}: {e}", handler.runtime_type))
        })?;
        options.config_body = table.into_bytes();
    }
    Ok(Some(any::pack(&options)))
}

/// Whether the handler's containers are given to systemd; none where it does not say.
pub fn systemd_cgroup(handler: &Handler) -> Option<bool> {
    if !RUNC_LIKE.contains(&handler.runtime_type.as_str()) || handler.options.is_empty() {
        return None;
    }
    runc(&handler.options).ok().map(|o| o.systemd_cgroup)
}

fn runc(table: &toml::Table) -> Result<Runc> {
    let mut options = Runc::default();
    for (key, value) in table {
        let bad = || Error::invalid(format!("runtime option {key} = {value}"));
        let text = || value.as_str().map(str::to_owned).ok_or_else(bad);
        let flag = || value.as_bool().ok_or_else(bad);
        let number = || {
            let n = value.as_integer().and_then(|n| u32::try_from(n).ok());
            n.ok_or_else(bad)
        };
        match key.to_ascii_lowercase().as_str() {
            "nopivotroot" => options.no_pivot_root = flag()?,
            "nonewkeyring" => options.no_new_keyring = flag()?,
            "shimcgroup" => options.shim_cgroup = text()?,
            "iouid" => options.io_uid = number()?,
            "iogid" => options.io_gid = number()?,
            "binaryname" => options.binary_name = text()?,
            "root" => options.root = text()?,
            "systemdcgroup" => options.systemd_cgroup = flag()?,
            "criuimagepath" => options.criu_image_path = text()?,
            "criuworkpath" => options.criu_work_path = text()?,
            other => tracing::warn!(key = other, "unknown option of a runtime is ignored"),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(kind: &str, options: &str) -> Handler {
        Handler {
            runtime_type: kind.into(),
            options: options.parse().unwrap(),
            ..Handler::default()
        }
    }

    #[test]
    fn tables_become_the_shim_s_options() {
        let runc = handler(
            "io.containerd.runc.v2",
            "SystemdCgroup = true\nBinaryName = \"crun\"\nIoUid = 7",
        );
        let got: Runc = any::unpack(&of(&runc).unwrap().unwrap()).unwrap();
        assert_eq!(
            (got.systemd_cgroup, got.binary_name.as_str(), got.io_uid),
            (true, "crun", 7)
        );
        assert_eq!(systemd_cgroup(&runc), Some(true));
        assert!(of(&handler("io.containerd.runc.v2", "SystemdCgroup = 1")).is_err());
        assert!(of(&handler("io.containerd.runc.v2", "")).unwrap().is_none());
        let other = handler("io.containerd.kata.v2", "X = 1");
        let got: runtimeoptions::v1::Options = any::unpack(&of(&other).unwrap().unwrap()).unwrap();
        assert_eq!(got.config_body, b"X = 1\n");
        let file = handler("io.containerd.kata.v2", "ConfigPath = \"/k.toml\"");
        let got: runtimeoptions::v1::Options = any::unpack(&of(&file).unwrap().unwrap()).unwrap();
        assert_eq!(
            (got.config_path.as_str(), got.config_body.len()),
            ("/k.toml", 0)
        );
        assert_eq!(systemd_cgroup(&other), None);
    }
}
