//! Owns system call filters: which one a container gets. The default one is in [`default`].

mod default;
mod table;

use std::path::Path;

use corten_core::{Context, Error, Kind, Result};

use super::file;
use super::host::Host;
use super::oci::{Seccomp, Spec};
use super::profile::Profile;

/// Sets the filter of a container. No word leaves what the base document says.
pub(super) fn apply(
    spec: &mut Spec,
    asked: Option<Profile>,
    privileged: bool,
    host: &Host,
) -> Result<()> {
    if privileged {
        return Ok(());
    }
    if !host.seccomp {
        return match asked {
            None | Some(Profile::Unconfined) => Ok(()),
            Some(_) => Err(Error::precondition("seccomp is not supported")),
        };
    }
    let filter = match asked {
        // An unconfined container keeps the filter of a base document, as in containerd.
        None | Some(Profile::Unconfined) => return Ok(()),
        Some(Profile::RuntimeDefault) => {
            let capabilities = spec.process().capabilities.get_or_insert_default();
            default::filter(&capabilities.bounding, std::env::consts::ARCH, host.kernel)
        }
        Some(Profile::Localhost(path)) => read(&path)?,
    };
    spec.linux().seccomp = Some(filter);
    Ok(())
}

/// A profile of the node, in the runtime spec's form.
fn read(path: &str) -> Result<Seccomp> {
    let what = || format!("cannot load seccomp profile {path:?}");
    let text = file::read(Path::new(path))
        .map_err(Error::from)
        .context(what())?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::new(
            Kind::InvalidArgument,
            format!("decoding seccomp profile failed {path:?}: {e}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::file::MAX_FILE;
    use super::*;

    fn host() -> Host {
        Host {
            seccomp: true,
            kernel: (6, 1),
            ..Host::default()
        }
    }

    fn after(asked: Option<Profile>, privileged: bool, host: &Host) -> Result<Option<Seccomp>> {
        let mut spec = super::super::defaults::spec("c", &[]);
        apply(&mut spec, asked, privileged, host)?;
        Ok(spec.linux().seccomp.take())
    }

    #[test]
    fn profiles_become_filters() {
        let filter = |asked| after(asked, false, &host()).unwrap();
        assert_eq!(filter(None), None);
        assert_eq!(filter(Some(Profile::Unconfined)), None);
        let usual = filter(Some(Profile::RuntimeDefault)).unwrap();
        assert_eq!(usual.default_action, "SCMP_ACT_ERRNO");
        assert_eq!(
            after(Some(Profile::RuntimeDefault), true, &host()).unwrap(),
            None
        );
    }

    #[test]
    fn files_of_the_node_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let asked = || Some(Profile::Localhost(path.to_string_lossy().into_owned()));
        let e = after(asked(), false, &host()).unwrap_err().to_string();
        assert!(e.contains("cannot load seccomp profile"), "{e}");
        std::fs::write(&path, b"{").unwrap();
        let e = after(asked(), false, &host()).unwrap_err().to_string();
        assert!(e.contains("decoding seccomp profile failed"), "{e}");
        std::fs::write(&path, br#"{"defaultAction":"SCMP_ACT_LOG","names":1}"#).unwrap();
        let filter = after(asked(), false, &host()).unwrap().unwrap();
        assert_eq!(filter.default_action, "SCMP_ACT_LOG");
        // Blanks up to the limit, and one more.
        let padded = |size: u64| {
            let mut text = br#"{"defaultAction":"SCMP_ACT_LOG"}"#.to_vec();
            text.resize(usize::try_from(size).unwrap(), b' ');
            std::fs::write(&path, text).unwrap();
            after(asked(), false, &host())
        };
        padded(MAX_FILE).unwrap();
        let e = padded(MAX_FILE + 1).unwrap_err().to_string();
        assert!(e.contains("longer than"), "{e}");
    }

    #[test]
    fn a_host_without_filters_says_so() {
        let host = Host::default();
        assert_eq!(after(None, false, &host).unwrap(), None);
        assert_eq!(
            after(Some(Profile::Unconfined), false, &host).unwrap(),
            None
        );
        let e = after(Some(Profile::RuntimeDefault), false, &host).unwrap_err();
        assert!(e.to_string().contains("seccomp is not supported"), "{e}");
    }
}
