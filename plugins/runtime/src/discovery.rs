//! From a runtime's name to the shim's binary (containerd: core/runtime/v2 resolveRuntimePath).
//!
//! `io.containerd.runc.v2` becomes `containerd-shim-runc-v2`, looked for in the working directory, on PATH, and
//! beside the daemon's own binary. Found ones are remembered; failures are not, so that an installation that comes
//! later is seen.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use corten_core::{Error, Kind, Result};
use parking_lot::Mutex;

/// Where to look, and what was found so far.
#[derive(Debug)]
pub(crate) struct Discovery {
    folders: Vec<PathBuf>,
    found: Mutex<HashMap<String, PathBuf>>,
}

impl Discovery {
    /// Looks in `cwd`, then in the folders of `path`, then beside `own_binary`.
    pub(crate) fn new(cwd: Option<PathBuf>, path: &[PathBuf], own_binary: &Path) -> Self {
        let beside = own_binary.parent().map(Path::to_path_buf);
        let folders = cwd
            .into_iter()
            .chain(path.iter().cloned())
            .chain(beside)
            .collect();
        Self {
            folders,
            found: Mutex::new(HashMap::new()),
        }
    }

    /// The binary of `runtime`: a name like `io.containerd.runc.v2`, or an absolute path.
    pub(crate) fn resolve(&self, runtime: &str) -> Result<PathBuf> {
        if runtime.is_empty() {
            return Err(unresolved("no runtime name"));
        }
        if runtime.starts_with('/') {
            return match std::fs::metadata(runtime) {
                Ok(_) => Ok(runtime.into()),
                Err(e) => Err(unresolved(format!(
                    "invalid custom binary path: stat {runtime}: {}",
                    errno_text(&e)
                ))),
            };
        }
        let name = match binary_name(runtime) {
            Some(name) if !runtime.contains('/') => name,
            _ => {
                return Err(unresolved(format!(
                    "invalid runtime name {runtime}, correct runtime name should be either format like \
                     `io.containerd.runc.v2` or a full path to the binary"
                )));
            }
        };
        if let Some(path) = self.found.lock().get(&name) {
            return Ok(path.clone());
        }
        let path = self
            .folders
            .iter()
            .map(|f| f.join(&name))
            .find(|p| is_program(p))
            .ok_or_else(|| {
                unresolved(format!(
                    "runtime {runtime:?} binary not installed {name:?}: file does not exist"
                ))
            })?;
        self.found.lock().insert(name, path.clone());
        Ok(path)
    }
}

/// `io.containerd.NAME.VERSION` -> `containerd-shim-NAME-VERSION`.
fn binary_name(runtime: &str) -> Option<String> {
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    (!runtime.starts_with('.')).then(|| format!("containerd-shim-{name}-{version}"))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

// containerd 2.4: these errors carry no class, so that clients see Unknown.
fn unresolved(what: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Unknown,
        format!("failed to resolve runtime path: {what}"),
    )
}

fn errno_text(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_name_is_looked_up_in_order_and_remembered() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let d = Discovery::new(None, &[a.path().into()], &b.path().join("cortend"));
        let e = d.resolve("io.containerd.foo.v2").unwrap_err();
        assert_eq!(
            e.to_string(),
            "failed to resolve runtime path: runtime \"io.containerd.foo.v2\" binary not installed \
             \"containerd-shim-foo-v2\": file does not exist"
        );
        let beside = program(b.path(), "containerd-shim-foo-v2");
        assert_eq!(d.resolve("io.containerd.foo.v2").unwrap(), beside);
        program(a.path(), "containerd-shim-foo-v2");
        assert_eq!(d.resolve("io.containerd.foo.v2").unwrap(), beside);
        // Only the last two parts count.
        assert_eq!(d.resolve("any.thing.foo.v2").unwrap(), beside);
    }

    #[test]
    fn a_file_that_cannot_be_run_is_no_shim() {
        let a = tempfile::tempdir().unwrap();
        std::fs::write(a.path().join("containerd-shim-foo-v2"), "").unwrap();
        let d = Discovery::new(None, &[a.path().into()], Path::new("/"));
        d.resolve("io.containerd.foo.v2").unwrap_err();
    }

    #[test]
    fn paths_are_taken_as_they_are_and_bad_names_refused() {
        let a = tempfile::tempdir().unwrap();
        let own = program(a.path(), "my-shim");
        let d = Discovery::new(None, &[], Path::new("/"));
        assert_eq!(d.resolve(own.to_str().unwrap()).unwrap(), own);
        let missing = d.resolve("/no/such/shim").unwrap_err().to_string();
        assert!(
            missing.ends_with(
                "invalid custom binary path: stat /no/such/shim: no such file or directory"
            ),
            "{missing}"
        );
        for bad in ["", "runc", ".v2", "bin/shim.foo.v2"] {
            d.resolve(bad).unwrap_err();
        }
    }
}
