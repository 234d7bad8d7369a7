//! Network configuration: `.conflist`, `.conf` and `.json` files, and what is handed to a plugin on its stdin.
//!
//! A file describes one network, a list of plugins. `.conf` and `.json` files are the older form with one plugin.
//! Unless a list says `loadOnlyInlinedPlugins`, the plugins in `<folder>/<network name>/*.conf` are appended to it.
//!
//! The folder is read as containerd reads it: files in the order of their names, the first `max` of them, and one
//! that is wrong makes the whole load fail, so that a broken default network is not silently replaced by another.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Kind, Result};
use serde_json::{Map, Value};

use crate::{Version, names};

/// Largest configuration file.
pub const MAX_FILE: u64 = 1024 * 1024;
/// Most plugins of one network.
pub const MAX_PLUGINS: usize = 64;

/// One network: plugins that run one after the other.
#[derive(Debug, Clone)]
pub struct NetworkList {
    pub name: String,
    /// The versions that it may be run at and that this crate speaks, oldest first; never empty.
    pub versions: Vec<Version>,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
    /// The text it was read from.
    pub source: String,
}

/// One plugin of a network.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The name of its executable.
    pub kind: String,
    /// The capability arguments that it wants.
    pub capabilities: BTreeSet<String>,
    /// Everything that its configuration says.
    pub config: Map<String, Value>,
}

// === impl NetworkList ===

impl NetworkList {
    /// Reads a list. Plugins of the folder are not looked for.
    ///
    /// # Errors
    /// InvalidArgument, with what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let raw: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| bad(format!("parse network list: {e}")))?;
        let name = text(&raw, "name")?.ok_or_else(|| bad("network list has no name"))?;
        names::check("network name", &name)?;
        let inlined_only = flag(&raw, "loadOnlyInlinedPlugins")?;
        let plugins = match raw.get("plugins") {
            None if inlined_only => {
                return Err(bad(
                    "loadOnlyInlinedPlugins is true and there is no \"plugins\"",
                ));
            }
            None => Vec::new(),
            Some(Value::Array(all)) if all.is_empty() => return Err(bad("no plugins in list")),
            Some(Value::Array(all)) => all
                .iter()
                .enumerate()
                .map(|(i, p)| Plugin::from_value(p).with_context(|| format!("plugin {i}")))
                .collect::<Result<_>>()?,
            Some(_) => return Err(bad("\"plugins\" is no list")),
        };
        Ok(Self {
            versions: versions(&raw)?,
            disable_check: flag(&raw, "disableCheck")?,
            disable_gc: flag(&raw, "disableGC")?,
            name,
            plugins,
            source: String::from_utf8_lossy(bytes).into_owned(),
        })
    }

    /// Makes a list of the older form, one plugin.
    ///
    /// # Errors
    /// InvalidArgument, with what is wrong.
    pub fn parse_single(bytes: &[u8]) -> Result<Self> {
        let raw: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| bad(format!("parse plugin: {e}")))?;
        let name = text(&raw, "name")?.ok_or_else(|| bad("network has no name"))?;
        names::check("network name", &name)?;
        Ok(Self {
            name,
            versions: versions(&raw)?,
            disable_check: false,
            disable_gc: false,
            plugins: vec![Plugin::from_value(&Value::Object(raw))?],
            source: String::from_utf8_lossy(bytes).into_owned(),
        })
    }

    /// Reads a file by its extension, with the plugins of the folder.
    ///
    /// # Errors
    /// InvalidArgument for what it says; else of reading it.
    pub fn load(file: &Path) -> Result<Self> {
        let bytes = read_file(file)?;
        if file.extension().is_none_or(|e| e != "conflist") {
            return Self::parse_single(&bytes);
        }
        let mut list = Self::parse(&bytes)?;
        let raw: Map<String, Value> = serde_json::from_slice(&bytes).unwrap_or_default();
        if !flag(&raw, "loadOnlyInlinedPlugins")? {
            // The name was checked: it is one path component.
            let folder = file
                .parent()
                .unwrap_or_else(|| Path::new("/"))
                .join(&list.name);
            for part in files(&folder, &["conf"])? {
                let plugin: Value = serde_json::from_slice(&read_file(&part)?)
                    .map_err(|e| bad(format!("parse {}: {e}", part.display())))?;
                let plugin = Plugin::from_value(&plugin);
                list.plugins
                    .push(plugin.with_context(|| part.display().to_string())?);
            }
        }
        match list.plugins.len() {
            0 => Err(bad("no plugin configs found")),
            n if n > MAX_PLUGINS => Err(bad(format!("{n} plugins, more than {MAX_PLUGINS}"))),
            _ => Ok(list),
        }
    }

    /// The newest version it may be run at.
    pub fn newest(&self) -> Version {
        self.versions.last().copied().unwrap_or(Version::V0_1_0)
    }

    /// All of it as one list without the folder, at one version: what the cache keeps.
    pub fn to_bytes(&self, version: Version) -> Vec<u8> {
        let plugins = self.plugins.iter().map(|p| p.config.clone().into());
        let mut list = Map::new();
        list.insert("name".into(), self.name.clone().into());
        list.insert("cniVersion".into(), version.to_string().into());
        list.insert("disableCheck".into(), self.disable_check.into());
        list.insert("disableGC".into(), self.disable_gc.into());
        list.insert("loadOnlyInlinedPlugins".into(), true.into());
        list.insert("plugins".into(), Value::Array(plugins.collect()));
        Value::Object(list).to_string().into_bytes()
    }
}

// === impl Plugin ===

impl Plugin {
    fn from_value(value: &Value) -> Result<Self> {
        let config = value
            .as_object()
            .ok_or_else(|| bad("plugin is no object"))?;
        let kind = text(config, "type")?.ok_or_else(|| bad("missing 'type'"))?;
        names::check_type(&kind)?;
        let capabilities = match config.get("capabilities") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(v) => serde_json::from_value::<BTreeMap<String, bool>>(v.clone())
                .map_err(|e| bad(format!("capabilities: {e}")))?,
        };
        let wanted = capabilities.into_iter().filter(|(_, on)| *on);
        Ok(Self {
            kind,
            capabilities: wanted.map(|(name, _)| name).collect(),
            config: config.clone(),
        })
    }
}

// === Reading ===

/// The networks of `folder`: at most `max` of them, all for 0.
///
/// # Errors
/// FailedPrecondition when there is none; InvalidArgument for the first file that is wrong. The texts are those that
/// containerd shows in its status.
pub fn load_folder(folder: &Path, max: usize) -> Result<Vec<NetworkList>> {
    let found = files(folder, &["conf", "conflist", "json"])
        .with_context(|| "failed to read config file")?;
    if found.is_empty() {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "no network config found in {}: cni plugin not initialized",
                folder.display()
            ),
        ));
    }
    let wanted = if max == 0 { usize::MAX } else { max };
    let load = |file: &PathBuf| NetworkList::load(file).map_err(|e| invalid_config(file, &e));
    found.iter().take(wanted).map(load).collect()
}

fn invalid_config(file: &Path, cause: &Error) -> Error {
    let list = file.extension().is_some_and(|e| e == "conflist");
    let what = if list {
        "config list file"
    } else {
        "config file"
    };
    bad(format!(
        "failed to load CNI {what} {}: {cause}: invalid cni config",
        file.display()
    ))
}

/// Files of a folder by extension, sorted; none when there is no such folder.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from(e).context(format!("read {}", folder.display()))),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let path = entry.path();
        let wanted = path
            .extension()
            .is_some_and(|e| extensions.iter().any(|x| e == *x));
        if wanted && !entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A regular file's bytes. A FIFO or device of that name must not hang or flood the daemon.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>> {
        use std::os::unix::fs::OpenOptionsExt;
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(nonblocking).unwrap_or(0))
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(bad("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(bad(format!("larger than {MAX_FILE} bytes")));
        }
        Ok(bytes)
    };
    read().with_context(|| format!("read {}", path.display()))
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, what.into())
}

fn text(raw: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => Err(bad(format!("{key:?} is no text"))),
    }
}

/// `true` or `"true"`.
fn flag(raw: &Map<String, Value>, key: &str) -> Result<bool> {
    match raw.get(key) {
        None => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("false") => Ok(false),
        Some(v) => Err(bad(format!("invalid value {v} for {key}"))),
    }
}

/// `cniVersion` and `cniVersions`, without those that are not known; it is an error if that leaves none.
fn versions(raw: &Map<String, Value>) -> Result<Vec<Version>> {
    let mut given: BTreeSet<Version> = BTreeSet::new();
    match raw.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(all)) => {
            for v in all {
                let v = v
                    .as_str()
                    .ok_or_else(|| bad("cniVersions has one that is no text"))?;
                given.insert(v.parse()?);
            }
        }
        Some(_) => return Err(bad("cniVersions is no list")),
    }
    match text(raw, "cniVersion")? {
        Some(v) => _ = given.insert(v.parse()?),
        None if given.is_empty() => _ = given.insert(Version::V0_1_0),
        None => {}
    }
    let known: Vec<_> = given.iter().copied().filter(|v| v.is_known()).collect();
    if known.is_empty() {
        let all: Vec<_> = given.iter().map(ToString::to_string).collect();
        return Err(bad(format!("unsupported CNI version {}", all.join(", "))));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn names(lists: &[NetworkList]) -> Vec<&str> {
        lists.iter().map(|l| l.name.as_str()).collect()
    }

    #[test]
    fn files_are_taken_in_order_and_up_to_the_maximum() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, "30-c.json", r#"{"name":"c","type":"x"}"#);
        write(
            at,
            "10-a.conflist",
            r#"{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
        );
        write(
            at,
            "20-b.conf",
            r#"{"name":"b","cniVersion":"0.3.1","type":"x"}"#,
        );
        write(at, "05-ignored.yaml", "not json");
        std::fs::create_dir(at.join("00-folder.conf")).unwrap();
        assert_eq!(names(&load_folder(at, 1).unwrap()), ["a"]);
        let all = load_folder(at, 0).unwrap();
        assert_eq!(names(&all), ["a", "b", "c"]);
        assert_eq!(all[2].newest(), Version::V0_1_0);
    }

    #[test]
    fn plugins_of_the_folder_are_appended_unless_inlined_only() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(
            at,
            "a.conflist",
            r#"{"name":"net","cniVersion":"1.1.0","plugins":[{"type":"x"}]}"#,
        );
        write(at, "net/20.conf", r#"{"type":"z"}"#);
        write(
            at,
            "net/10.conf",
            r#"{"type":"y","capabilities":{"mac":true,"ips":false}}"#,
        );
        write(at, "net/10.conflist", "ignored");
        let list = &load_folder(at, 0).unwrap()[0];
        let kinds: Vec<_> = list.plugins.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!(kinds, ["x", "y", "z"]);
        assert_eq!(list.plugins[1].capabilities, ["mac".to_owned()].into());

        let again = NetworkList::parse(&list.to_bytes(Version::V1_0_0)).unwrap();
        assert_eq!(again.plugins.len(), 3);
        assert_eq!(again.versions, [Version::V1_0_0]);

        let inlined = r#"{"name":"net","cniVersion":"1.1.0","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#;
        write(at, "a.conflist", inlined);
        assert_eq!(load_folder(at, 0).unwrap()[0].plugins.len(), 1);
        write(at, "a.conflist", r#"{"name":"net","cniVersion":"1.1.0"}"#);
        assert_eq!(load_folder(at, 0).unwrap()[0].plugins.len(), 2);
    }

    #[test]
    fn versions_are_chosen_among_those_we_speak() {
        let parse = |v: &str| {
            let text = format!(r#"{{"name":"n",{v}"plugins":[{{"type":"x"}}]}}"#);
            NetworkList::parse(text.as_bytes()).map(|l| l.versions)
        };
        assert_eq!(parse("").unwrap(), [Version::V0_1_0]);
        let many =
            parse(r#""cniVersion":"0.4.0","cniVersions":["1.1.0","9.0.0","1.0.0"],"#).unwrap();
        assert_eq!(many, [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0]);
        assert!(
            parse(r#""cniVersion":"2.0.0","#)
                .unwrap_err()
                .to_string()
                .contains("2.0.0")
        );
        parse(r#""cniVersion":1,"#).unwrap_err();
        parse(r#""cniVersions":["a"],"#).unwrap_err();
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let none = load_folder(&at.join("absent"), 0).unwrap_err();
        assert_eq!(none.kind(), Kind::FailedPrecondition);
        assert!(
            none.to_string().ends_with("cni plugin not initialized"),
            "{none}"
        );
        let cases = [
            ("a.conflist", "{", "parse network list"),
            ("a.conflist", r#"{"plugins":[{"type":"x"}]}"#, "no name"),
            (
                "a.conflist",
                r#"{"name":"../x","plugins":[{"type":"x"}]}"#,
                "network name",
            ),
            (
                "a.conflist",
                r#"{"name":"a","plugins":[]}"#,
                "no plugins in list",
            ),
            ("a.conflist", r#"{"name":"a"}"#, "no plugin configs found"),
            (
                "a.conflist",
                r#"{"name":"a","loadOnlyInlinedPlugins":true}"#,
                "there is no",
            ),
            (
                "a.conflist",
                r#"{"name":"a","plugins":[{"type":"../sh"}]}"#,
                "plugin type",
            ),
            (
                "a.conflist",
                r#"{"name":"a","disableGC":"maybe","plugins":[{"type":"x"}]}"#,
                "disableGC",
            ),
            (
                "a.conf",
                r#"{"name":"a","plugins":[{"type":"x"}]}"#,
                "missing 'type'",
            ),
        ];
        for (file, text, wanted) in cases {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), file, text);
            let e = load_folder(dir.path(), 0).unwrap_err();
            assert_eq!(e.kind(), Kind::InvalidArgument, "{text}");
            assert!(e.to_string().contains(wanted), "{text}: {e}");
            assert!(e.to_string().ends_with("invalid cni config"), "{text}: {e}");
        }
    }

    #[test]
    fn odd_files_neither_hang_nor_flood() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("a.conf");
        let made = std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap();
        assert!(made.success());
        let e = load_folder(dir.path(), 0).unwrap_err();
        assert!(e.to_string().contains("not a regular file"), "{e}");
        std::fs::remove_file(&fifo).unwrap();
        let blanks = " ".repeat(usize::try_from(MAX_FILE).unwrap() - 23);
        let fits = format!(r#"{{"name":"a","type":"x"}}{blanks}"#);
        assert_eq!(fits.len() as u64, MAX_FILE);
        write(dir.path(), "a.conf", &fits);
        load_folder(dir.path(), 0).unwrap();
        write(dir.path(), "a.conf", &format!("{fits} "));
        let e = load_folder(dir.path(), 0).unwrap_err();
        assert!(e.to_string().contains("larger than"), "{e}");
    }
}
