//! Reading config files: main file, imports, unknown keys.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use corten_registry::decode;

use super::merge::merge;
use super::migrate::{check_version, migrate};
use super::sources::{Place, Sources};
use super::{
    Config, ConfigError, DEBUG_TABLE, DEFAULT_IMPORT, GRPC_METRICS_TABLE, GRPC_TCP_TABLE,
    GrpcMetrics, LocalSocket, METRICS_TABLE, Metrics, VERSION,
};
use crate::server::TcpSocket;

/// What is read from the files, one after the other.
#[derive(Default)]
struct Reading {
    merged: toml::Table,
    seen: BTreeSet<PathBuf>,
    sources: Sources,
    warnings: Vec<String>,
}

/// Loads `path` with its imports; a missing file is the default configuration unless `must_exist`.
///
/// Returns the configuration and what is to be logged as warnings once logging is up.
pub(crate) fn load(path: &Path, must_exist: bool) -> Result<(Config, Vec<String>), ConfigError> {
    let mut reading = Reading::default();
    if must_exist || path.exists() {
        reading.include(path)?;
    } else {
        reading.import(&[DEFAULT_IMPORT.to_owned()], Path::new("/"))?;
    }
    let Reading {
        mut merged,
        sources,
        mut warnings,
        ..
    } = reading;
    merged.insert("version".into(), VERSION.into());
    // Once the folder of plugins that were shared objects; stock takes it without a word too.
    merged.remove("plugin_dir");
    let decoded = decode::<Config>(merged);
    let decoded = decoded.map_err(|fault| ConfigError::Wrong(sources.explain("", &fault)))?;
    let unknown = decoded.unknown.iter();
    warnings.extend(unknown.map(|key| sources.unknown("", key)));
    let config = Config {
        sources,
        ..decoded.config
    };
    check(&config, path)?;
    Ok((config, warnings))
}

impl Reading {
    fn include(&mut self, path: &Path) -> Result<(), ConfigError> {
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if !self.seen.insert(canonical) {
            return Ok(()); // an import cycle ends here, as in containerd
        }
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| ConfigError::Parse {
                path: path.into(),
                message: located(path, &text, &e),
            })?;
        typed(path, &text)?;
        let version = check_version(&table, path)?;
        let table = migrate(table, version, &mut self.warnings);
        let first = self.merged.is_empty();
        let imports = match table.get("imports") {
            Some(v) => v.clone().try_into().unwrap_or_default(),
            None if first => vec![DEFAULT_IMPORT.to_owned()],
            None => Vec::new(),
        };
        merge(&mut self.merged, table);
        self.sources.push(path, text);
        let base = path.parent().unwrap_or_else(|| Path::new("/"));
        self.import(&imports, base)
    }

    fn import(&mut self, patterns: &[String], base: &Path) -> Result<(), ConfigError> {
        for pattern in patterns {
            let path = base.join(pattern);
            if !pattern.contains(['*', '?', '[']) {
                self.include(&path)?;
                continue;
            }
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            let Ok(entries) = std::fs::read_dir(dir) else {
                continue;
            };
            let mut files: Vec<PathBuf> = entries
                .filter_map(Result::ok)
                .filter(|e| glob(&name, &e.file_name().to_string_lossy()))
                .map(|e| e.path())
                .collect();
            files.sort();
            for file in files {
                self.include(&file)?;
            }
        }
        Ok(())
    }
}

/// `*` and `?` within one path element.
fn glob(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => {
            glob(&pattern[1..], name)
                || name
                    .chars()
                    .next()
                    .is_some_and(|c| glob(pattern, &name[c.len_utf8()..]))
        }
        Some('?') => name
            .chars()
            .next()
            .is_some_and(|c| glob(&pattern[1..], &name[c.len_utf8()..])),
        Some(p) => name.starts_with(p) && glob(&pattern[p.len_utf8()..], &name[p.len_utf8()..]),
    }
}

/// Decodes the file on its own, only to name file, line and key of a value of the wrong type.
fn typed(path: &Path, text: &str) -> Result<(), ConfigError> {
    toml::from_str::<Config>(text)
        .map(drop)
        .map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: located(path, text, &e),
        })
}

fn located(path: &Path, text: &str, e: &toml::de::Error) -> String {
    match e.span() {
        None => e.message().to_owned(),
        Some(span) => Place::at(path, text, span.start).explain(e.message().trim()),
    }
}

fn check(config: &Config, path: &Path) -> Result<(), ConfigError> {
    let invalid = |message: String| {
        Err(ConfigError::Invalid {
            path: path.to_owned(),
            message,
        })
    };
    for (name, dir) in [("root", &config.root), ("state", &config.state)] {
        if dir.as_os_str().is_empty() {
            return invalid(format!("{name} must be specified"));
        }
        if !dir.is_absolute() {
            return invalid(format!(
                "{name} must be an absolute path, not {}",
                dir.display()
            ));
        }
    }
    if config.root == config.state {
        return invalid(format!(
            "root and state must be different paths, both are {}",
            config.root.display()
        ));
    }
    for uri in config
        .required_plugins
        .iter()
        .chain(&config.disabled_plugins)
    {
        if !uri.starts_with("io.containerd.") {
            return invalid(format!(
                "plugin URI should be in the form io.containerd.<type>.<version>.<id>, got {uri:?}"
            ));
        }
    }
    config.timeouts()?;
    config.grpc()?;
    config.ttrpc()?;
    config.table::<TcpSocket>(GRPC_TCP_TABLE)?;
    config.table::<LocalSocket>(DEBUG_TABLE)?;
    config.table::<Metrics>(METRICS_TABLE)?;
    config.table::<GrpcMetrics>(GRPC_METRICS_TABLE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globs_match_one_element() {
        assert!(glob("*.toml", "a.toml"));
        assert!(glob("*.toml", ".toml"));
        assert!(glob("1?-*", "10-x"));
        assert!(!glob("*.toml", "a.tom"));
        assert!(!glob("a?", "a"));
        assert!(glob("*", ""));
    }
}
