//! Reading config files: main file, imports, unknown keys.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::merge::merge;
use super::migrate::{check_version, migrate};
use super::{Config, ConfigError, DEFAULT_IMPORT, VERSION};

/// Top-level keys of version 4; everything else warns.
const KEYS: [&str; 14] = [
    "version",
    "root",
    "state",
    "temp",
    "plugin_dir",
    "disabled_plugins",
    "required_plugins",
    "oom_score",
    "imports",
    "debug",
    "cgroup",
    "timeouts",
    "proxy_plugins",
    "stream_processors",
];

/// Loads `path` with its imports; a missing file is the default configuration unless `must_exist`.
///
/// Returns the configuration and what is to be logged as warnings once logging is up.
pub(crate) fn load(path: &Path, must_exist: bool) -> Result<(Config, Vec<String>), ConfigError> {
    let mut warnings = Vec::new();
    let mut merged = toml::Table::new();
    let mut seen = BTreeSet::new();
    if must_exist || path.exists() {
        include(path, &mut merged, &mut seen, &mut warnings)?;
    } else {
        import(
            &[DEFAULT_IMPORT.to_owned()],
            Path::new("/"),
            &mut merged,
            &mut seen,
            &mut warnings,
        )?;
    }
    for key in merged
        .keys()
        .filter(|k| *k != "plugins" && !KEYS.contains(&k.as_str()))
    {
        warnings.push(format!("ignoring unknown key in TOML: {key}"));
    }
    merged.insert("version".into(), VERSION.into());
    let config: Config = merged
        .try_into()
        .map_err(|e: toml::de::Error| ConfigError::Invalid {
            path: path.into(),
            message: e.to_string().trim().to_owned(),
        })?;
    check(&config, path)?;
    Ok((config, warnings))
}

/// Keys that plugin `uri` will ignore, for a warning each.
pub(crate) fn unknown_plugin_keys(
    uri: &str,
    table: &toml::Table,
    defaults: &toml::Table,
) -> Vec<String> {
    table
        .keys()
        .filter(|k| !defaults.contains_key(k.as_str()))
        .map(|k| format!("ignoring unknown key in TOML for plugin {uri}: {k}"))
        .collect()
}

fn include(
    path: &Path,
    into: &mut toml::Table,
    seen: &mut BTreeSet<PathBuf>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if !seen.insert(canonical) {
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
            message: located(&text, &e),
        })?;
    typed(path, &text)?;
    let version = check_version(&table, path)?;
    let table = migrate(table, version, warnings);
    let first = into.is_empty();
    let imports = match table.get("imports") {
        Some(v) => v.clone().try_into().unwrap_or_default(),
        None if first => vec![DEFAULT_IMPORT.to_owned()],
        None => Vec::new(),
    };
    merge(into, table);
    let base = path.parent().unwrap_or_else(|| Path::new("/"));
    import(&imports, base, into, seen, warnings)
}

fn import(
    patterns: &[String],
    base: &Path,
    into: &mut toml::Table,
    seen: &mut BTreeSet<PathBuf>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    for pattern in patterns {
        let path = base.join(pattern);
        if !pattern.contains(['*', '?', '[']) {
            include(&path, into, seen, warnings)?;
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
            include(&file, into, seen, warnings)?;
        }
    }
    Ok(())
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
            message: located(text, &e),
        })
}

fn located(text: &str, e: &toml::de::Error) -> String {
    let Some(span) = e.span() else {
        return e.message().to_owned();
    };
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    let whole = text[start..].lines().next().unwrap_or_default().trim();
    format!("line {line}: {}: `{whole}`", e.message().trim())
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
    crate::server::Listeners::of(config)?;
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
