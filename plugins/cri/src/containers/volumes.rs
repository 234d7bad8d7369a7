//! Folders that an image declares as volumes: a folder of the container's own for each, begun as a copy of what the
//! image has there.
//!
//! They go with the container. A path that the pod mounts something else on has none.

use std::path::Path;

use corten_core::mounts::ActivateOptions;
use corten_core::{Context, Error, Kind, Mount as Recipe, Result, Scope};
use corten_protos::runtime::v1::Mount;
use corten_sys::root::{Root, path_of};
use corten_sys::{blocking, copy, mount};
use tracing::warn;

use crate::cri::Cri;

/// What the names of activations begin with.
const ACTIVATION: &str = "cri-volume-";
/// Options of a recipe that change who owns files.
const OPTIONS_OF_IDS: [&str; 2] = ["uidmap=", "gidmap="];

impl Cri {
    /// Runs `work` on the blocking pool with the root file system of `recipe` at hand, if that is `needed`.
    ///
    /// # Errors
    /// Those of mounting; of `work`.
    pub(super) async fn with_rootfs<T: Send + 'static>(
        &self,
        scope: &Scope,
        id: &str,
        recipe: &[Recipe],
        needed: bool,
        work: impl FnOnce(Option<&Path>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !needed {
            return blocking(move || work(None)).await;
        }
        let mut plain = plain(recipe);
        let name = format!("{ACTIVATION}{id}");
        let options = ActivateOptions {
            pinned: true,
            ..ActivateOptions::default()
        };
        let activated = match self.mounts.activate(scope, &name, &plain, options).await {
            Ok(info) => {
                plain = info.system;
                true
            }
            Err(e) if e.kind() == Kind::NotImplemented => false,
            Err(e) => return Err(e.context("failed to activate mounts")),
        };
        let done = blocking(move || mount::with_temp_mount(&plain, None, |root| work(Some(root))));
        let done = done.await;
        if activated && let Err(error) = self.mounts.deactivate(&self.ns, &name).await {
            warn!(container.id = %id, %error, "deactivate the mounts of a container being made");
        }
        done
    }
}

/// Makes the folders of `volumes` and copies into them what `root` has there. Blocks.
///
/// # Errors
/// The file system's. What was made is below the container's folder.
pub(super) fn fill(root: &Path, volumes: &[Mount]) -> Result<()> {
    volumes.iter().try_for_each(|m| {
        fill_one(root, Path::new(&m.container_path), Path::new(&m.host_path))
            .with_context(|| format!("taking runtime copy of volume {}", m.container_path))
    })
}

/// The recipe for reading the files as they are, with the owners that the image gave them.
fn plain(recipe: &[Recipe]) -> Vec<Recipe> {
    let mut plain = recipe.to_vec();
    for m in &mut plain {
        m.options
            .retain(|o| !OPTIONS_OF_IDS.iter().any(|p| o.starts_with(p)));
    }
    if let [only] = plain.as_mut_slice()
        && only.r#type == "overlay"
        && !only.options.iter().any(|o| o == "ro")
    {
        // The kernel need not sync the whole file system at the end.
        only.options.push("ro".into());
    }
    plain
}

/// Copies one folder. Where the image has none, the volume is empty.
fn fill_one(root: &Path, inside: &Path, host: &Path) -> Result<()> {
    std::fs::create_dir_all(host)?;
    let resolved = match Root::open(root)?.dir(inside) {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::from(e)),
    };
    // A real path: what it names cannot change, nothing runs in there yet.
    Ok(copy::tree(&path_of(&resolved)?, host)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_begins_as_what_the_image_has_and_never_as_what_the_host_has() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let lab = tempfile::tempdir().unwrap();
        let (root, out) = (lab.path().join("root"), lab.path().join("out"));
        std::fs::create_dir_all(root.join("data/sub")).unwrap();
        std::fs::write(root.join("data/sub/file"), "content").unwrap();
        let mode = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(root.join("data"), mode).unwrap();
        symlink("/data", root.join("link")).unwrap();
        symlink("/etc", root.join("etc-of-host")).unwrap();
        symlink("../../../../../../etc", root.join("up")).unwrap();
        let fill = |inside: &str, name: &str| fill_one(&root, Path::new(inside), &out.join(name));
        fill("/link", "1").unwrap();
        let copied = std::fs::read_to_string(out.join("1/sub/file")).unwrap();
        assert_eq!(copied, "content");
        let mode = std::fs::metadata(out.join("1"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o711);
        for (n, hostile) in ["/absent", "/etc-of-host", "/up"].iter().enumerate() {
            fill(hostile, &format!("h{n}")).unwrap();
            let inside = std::fs::read_dir(out.join(format!("h{n}"))).unwrap();
            assert_eq!(inside.count(), 0, "{hostile}");
        }
        assert!(fill("/data/sub/file", "file").is_err());
    }

    #[test]
    fn files_are_read_without_maps_of_ids() {
        let recipe = [Recipe {
            r#type: "overlay".into(),
            options: ["lowerdir=/l", "uidmap=0:1:2", "gidmap=0:1:2"]
                .map(str::to_owned)
                .into(),
            ..Recipe::default()
        }];
        assert_eq!(plain(&recipe)[0].options, ["lowerdir=/l", "ro"]);
        let bind = [Recipe {
            r#type: "bind".into(),
            options: vec!["rbind".into()],
            ..Recipe::default()
        }];
        assert_eq!(plain(&bind)[0].options, ["rbind"]);
    }
}
