//! The mount handlers `erofs` and `loop`.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use corten_core::mounts::Handler;
use corten_core::{Context, Error, Mount, Result, kinds};
use corten_protos::containerd::types::ActiveMount;
use corten_registry::{Registration, skip};
use corten_sys::{image, loopdev, mount, mountinfo};

/// Names the dm-verity data of an erofs image.
const DMVERITY: &str = "X-containerd.dmverity=";

/// Mounts erofs images, from the file where the kernel can, else over a loop device.
#[derive(Debug, Clone, Copy)]
pub struct Erofs;

/// Attaches a file to a loop device; the mount point becomes a link to the device.
#[derive(Debug, Clone, Copy)]
pub struct LoopDevice;

/// What was just mounted.
pub(crate) fn active(m: Mount, at: &Path) -> ActiveMount {
    ActiveMount {
        mount: Some(m),
        mounted_at: Some(SystemTime::now().into()),
        mount_point: at.display().to_string(),
        ..Default::default()
    }
}

fn check(m: &Mount, kind: &str) -> Result<()> {
    if m.r#type == kind {
        return Ok(());
    }
    Err(Error::not_implemented(format!(
        "mount of type {:?} by handler {kind}",
        m.r#type
    )))
}

/// Whether something is mounted exactly there.
pub(crate) fn is_mounted(at: &Path) -> bool {
    mountinfo::all().is_ok_and(|all| all.iter().any(|m| m.path == at))
}

impl Handler for Erofs {
    fn mount(&self, m: &Mount, at: &Path, _: &[ActiveMount]) -> Result<ActiveMount> {
        check(m, "erofs")?;
        if let Some(o) = m.options.iter().find(|o| o.starts_with(DMVERITY)) {
            // To mount without the check that somebody asked for would be worse than not to mount.
            return Err(Error::not_implemented(format!("dm-verity ({o})")));
        }
        let mut m = m.clone();
        if !m.options.iter().any(|o| o == "loop") {
            m.options.push("loop".into());
        }
        std::fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
        mount::mount_one(&m, at)?;
        m.options.retain(|o| o != "loop");
        Ok(active(m, at))
    }

    fn unmount(&self, at: &Path) -> Result<()> {
        mount::unmount(at, false)
    }

    fn is_active(&self, at: &Path) -> bool {
        is_mounted(at)
    }
}

impl Handler for LoopDevice {
    fn mount(&self, m: &Mount, at: &Path, _: &[ActiveMount]) -> Result<ActiveMount> {
        check(m, "loop")?;
        let options = loopdev::Options {
            read_only: m.options.iter().any(|o| o == "ro"),
            // Until the link is there: should this fail on the way, the device goes by itself.
            autoclear: true,
            direct_io: false,
        };
        let device = loopdev::attach(Path::new(&m.source), options)
            .with_context(|| format!("attach {} to a loop device", m.source))?;
        std::os::unix::fs::symlink(device.path(), at)
            .with_context(|| format!("link {}", at.display()))?;
        device.set_autoclear(false).context("keep loop device")?;
        Ok(active(m.clone(), at))
    }

    fn unmount(&self, at: &Path) -> Result<()> {
        let path = match std::fs::read_link(at) {
            Ok(path) => path,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("read {}", at.display())),
        };
        if loopdev::is_attached(&path) {
            let device = loopdev::open(&path)?;
            device
                .set_autoclear(true)
                .with_context(|| format!("release {}", path.display()))?;
        }
        std::fs::remove_file(at).with_context(|| format!("remove {}", at.display()))
    }

    fn is_active(&self, at: &Path) -> bool {
        std::fs::read_link(at).is_ok_and(|path| loopdev::is_attached(&path))
    }
}

/// Plugin `erofs`: skipped where the kernel does not know the file system.
pub fn erofs() -> Registration {
    Registration::new::<kinds::MountHandler>("erofs").init_plain(|cx| {
        Box::pin(async move {
            cx.host_platform();
            if !image::kernel_knows("erofs") {
                return Err(skip("EROFS unsupported, please `modprobe erofs`"));
            }
            Ok(Arc::new(Erofs) as Arc<dyn Handler>)
        })
    })
}

/// Plugin `loop`: skipped on hosts without loop devices.
pub fn loop_device() -> Registration {
    Registration::new::<kinds::MountHandler>("loop").init_plain(|cx| {
        Box::pin(async move {
            cx.host_platform();
            if !Path::new("/dev/loop-control").exists() {
                return Err(skip("no loop devices: /dev/loop-control is not there"));
            }
            Ok(Arc::new(LoopDevice) as Arc<dyn Handler>)
        })
    })
}
