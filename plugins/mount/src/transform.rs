//! What a recipe may need before it is a mount. The names stand before the mount's type and are taken off it.
//!
//! ```text
//! format/   {{ mount 0 }} {{ source 0 }} {{ target 0 }} {{ overlay 0 2 }} in source, target and options, over the
//!           mounts before this one
//! mkdir/    X-containerd.mkdir.path=DIR[:mode[:uid:gid]]
//! mkfs/     X-containerd.mkfs.{size,fs,uuid}: makes the source, an image file, when it is not there
//! ```
//! Folders and images are made only below the roots that the manager was given.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_core::{Context, Error, Kind, Mount, Result, size};
use corten_protos::containerd::types::ActiveMount;
use corten_sys::root::{Root, magic_path};
use rustix::fs::{Gid, Mode, OFlags, Uid};

const MKDIR: &str = "X-containerd.mkdir.";
const MKFS: &str = "X-containerd.mkfs.";

/// One transformation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    Format,
    Mkdir,
    Mkfs,
}

// === impl Transform ===

impl Transform {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "format" => Some(Self::Format),
            "mkdir" => Some(Self::Mkdir),
            "mkfs" => Some(Self::Mkfs),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Mkdir => "mkdir",
            Self::Mkfs => "mkfs",
        }
    }

    /// Carries it out and takes its name off the type.
    pub(crate) fn apply(
        self,
        mut m: Mount,
        active: &[ActiveMount],
        roots: &[PathBuf],
    ) -> Result<Mount> {
        if let Some((_, inner)) = m.r#type.split_once('/') {
            m.r#type = inner.to_owned();
        }
        match self {
            Self::Format => format(m, active),
            Self::Mkdir => mkdir(m, roots),
            Self::Mkfs => mkfs(m, roots),
        }
    }
}

// === format ===

fn format(mut m: Mount, active: &[ActiveMount]) -> Result<Mount> {
    for text in [&mut m.source, &mut m.target]
        .into_iter()
        .chain(&mut m.options)
    {
        *text = expand(text, active)?;
    }
    Ok(m)
}

fn expand(text: &str, active: &[ActiveMount]) -> Result<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        let (call, tail) = after
            .split_once("}}")
            .ok_or_else(|| Error::invalid(format!("unclosed template in mount option {text:?}")))?;
        out.push_str(before);
        out.push_str(&evaluate(call, active)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn evaluate(call: &str, active: &[ActiveMount]) -> Result<String> {
    let mut words = call.split_whitespace();
    let name = words.next().unwrap_or_default();
    let numbers: Vec<usize> = words
        .map(|w| {
            w.parse()
                .map_err(|_| Error::invalid(format!("mount template {call:?}")))
        })
        .collect::<Result<_>>()?;
    let at = |i: usize| {
        active.get(i).ok_or_else(|| {
            Error::invalid(format!(
                "index out of bounds: {i}, has {} active mounts",
                active.len()
            ))
        })
    };
    let recipe = |i: usize| Ok::<_, Error>(at(i)?.mount.clone().unwrap_or_default());
    match (name, numbers.as_slice()) {
        ("source", [i]) => Ok(recipe(*i)?.source),
        ("target", [i]) => Ok(recipe(*i)?.target),
        ("mount", [i]) => Ok(at(*i)?.mount_point.clone()),
        ("overlay", [from, to]) => {
            let (first, last) = (*from.min(to), *from.max(to));
            at(last)?;
            let mut layers: Vec<&str> = active[first..=last]
                .iter()
                .map(|a| a.mount_point.as_str())
                .collect();
            if from > to {
                layers.reverse();
            }
            Ok(layers.join(":"))
        }
        _ => Err(Error::invalid(format!("mount template {call:?}"))),
    }
}

// === below roots ===

/// The open root that `path` is below, and the rest of the path.
fn within<'a>(path: &'a str, roots: &[PathBuf]) -> Result<(Root, &'a Path)> {
    let path = Path::new(path);
    for root in roots {
        if let Ok(inner) = path.strip_prefix(root) {
            let open = Root::open(root).with_context(|| format!("open {}", root.display()))?;
            return Ok((open, inner));
        }
    }
    Err(Error::not_implemented(format!(
        "no root {:?} configured",
        path.display()
    )))
}

// === mkdir ===

#[derive(Debug, PartialEq, Eq)]
struct Folder<'a> {
    path: &'a str,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl<'a> Folder<'a> {
    fn parse(option: &'a str) -> Result<Self> {
        let invalid = || Error::invalid(format!("invalid mkdir option {MKDIR}{option:?}"));
        let value = option.strip_prefix("path=").ok_or_else(invalid)?;
        let parts: Vec<&str> = value.splitn(4, ':').collect();
        let (path, mode, owner) = match parts.as_slice() {
            [path] => (*path, None, None),
            [path, mode] => (*path, Some(*mode), None),
            [path, mode, uid, gid] => (*path, Some(*mode), Some((*uid, *gid))),
            _ => return Err(invalid()),
        };
        let mode = mode.map_or(Some(0o700), |m| u32::from_str_radix(m, 8).ok());
        let owner = owner
            .map(|(uid, gid)| Ok::<_, Error>((id(uid, invalid)?, id(gid, invalid)?)))
            .transpose()?;
        Ok(Self {
            path,
            mode: mode.filter(|m| *m <= 0o777).ok_or_else(invalid)?,
            owner,
        })
    }

    /// What is there is left as it is: its mode may be what a container made of it.
    fn make(&self, roots: &[PathBuf]) -> Result<()> {
        let what = || format!("failed to create directory {:?}", self.path);
        let (root, inner) = within(self.path, roots)?;
        if root.dir(inner).is_ok() {
            return Ok(());
        }
        let (Some(parent), Some(name)) = (inner.parent(), inner.file_name()) else {
            return Err(Error::invalid(what()));
        };
        let parent = root.dir(parent).with_context(what)?;
        let io = std::io::Error::from;
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))
            .map_err(io)
            .with_context(what)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&parent, name, flags, Mode::empty())
            .map_err(io)
            .with_context(what)?;
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(io)
                .with_context(what)?;
        }
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(self.mode))
            .map_err(io)
            .with_context(what)
    }
}

fn id(text: &str, invalid: impl Fn() -> Error) -> Result<u32> {
    text.parse::<u32>()
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(invalid)
}

fn mkdir(mut m: Mount, roots: &[PathBuf]) -> Result<Mount> {
    for o in m.options.extract_if(.., |o| o.starts_with(MKDIR)) {
        Folder::parse(&o[MKDIR.len()..])?.make(roots)?;
    }
    Ok(m)
}

// === mkfs ===

#[derive(Debug)]
struct Image {
    size: u64,
    fs: String,
    uuid: String,
}

impl Image {
    fn parse<'a>(options: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut image = Self {
            size: 0,
            fs: "ext4".into(),
            uuid: String::new(),
        };
        for o in options {
            match o.split_once('=') {
                Some(("size", value)) => image.size = size::parse(value)?,
                Some(("fs", value)) => image.fs = value.into(),
                Some(("uuid", value)) => image.uuid = value.into(),
                _ => return Err(Error::invalid(format!("unknown mount option {MKFS}{o}"))),
            }
        }
        if image.size == 0 {
            return Err(Error::invalid("mkfs requires mkfs.size option"));
        }
        Ok(image)
    }

    fn command(&self) -> Result<Command> {
        let mut command = match self.fs.as_str() {
            "ext2" | "ext3" | "ext4" | "xfs" => Command::new(format!("mkfs.{}", self.fs)),
            other => return Err(Error::invalid(format!("unsupported filesystem {other:?}"))),
        };
        command.arg("-q");
        if !self.uuid.is_empty() {
            match self.fs.as_str() {
                "xfs" => command.arg("-m").arg(format!("uuid={}", self.uuid)),
                _ => command.arg("-U").arg(&self.uuid),
            };
        }
        Ok(command)
    }

    /// Under another name until it is whole: an image without file system would never be made again.
    fn make(&self, path: &str, roots: &[PathBuf]) -> Result<()> {
        let (root, inner) = within(path, roots)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        match root.open_at(inner, flags) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("failed to stat {path:?}")),
        }
        let (Some(parent), Some(name)) = (inner.parent(), inner.file_name()) else {
            return Err(Error::invalid(format!("image {path:?}")));
        };
        let parent = root
            .dir(parent)
            .with_context(|| format!("failed to create file {path:?}"))?;
        let at = magic_path(&parent);
        let (made, unfinished) = (
            at.join(name),
            at.join(format!(".{}.mkfs", name.to_string_lossy())),
        );
        let done = self
            .format(&unfinished)
            .and_then(|()| Ok(std::fs::rename(&unfinished, &made)?));
        if done.is_err() {
            // Absent when it could not even be created.
            let _ = std::fs::remove_file(&unfinished);
        }
        done.with_context(|| format!("failed format {path:?}"))
    }

    fn format(&self, path: &Path) -> Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(path)
            .context("create image")?;
        file.set_len(self.size).context("set size of image")?;
        // The name below /proc/self is ours, not the program's.
        let real = std::fs::canonicalize(path).context("resolve image")?;
        let mut command = self.command()?;
        let program = command.get_program().to_string_lossy().into_owned();
        let out = command
            .arg(real)
            .output()
            .with_context(|| format!("run {program}"))?;
        if out.status.success() {
            return Ok(());
        }
        let said = [out.stdout, out.stderr].concat();
        Err(Error::new(
            Kind::Unknown,
            format!(
                "{program} failed: {}: {}",
                String::from_utf8_lossy(&said).trim(),
                out.status
            ),
        ))
    }
}

fn mkfs(mut m: Mount, roots: &[PathBuf]) -> Result<Mount> {
    let options: Vec<String> = m.options.extract_if(.., |o| o.starts_with(MKFS)).collect();
    let image = Image::parse(options.iter().map(|o| &o[MKFS.len()..]))?;
    image.make(&m.source, roots)?;
    Ok(m)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active() -> Vec<ActiveMount> {
        (0..3)
            .map(|i| ActiveMount {
                mount_point: format!("/t/{i}"),
                mount: Some(Mount {
                    source: format!("/s/{i}"),
                    target: format!("sub{i}"),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect()
    }

    #[test]
    fn templates_name_earlier_mounts() {
        for (text, want) in [
            ("plain", "plain"),
            ("{{ mount 0 }}/upper", "/t/0/upper"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/t/0:/t/1:/t/2"),
            ("lowerdir={{overlay 2 1}}:/x", "lowerdir=/t/2:/t/1:/x"),
            ("{{ source 1 }}{{ target 2 }}", "/s/1sub2"),
        ] {
            assert_eq!(expand(text, &active()).unwrap(), want, "{text}");
        }
        for bad in [
            "{{ mount 3 }}",
            "{{ overlay 0 3 }}",
            "{{ overlay 3 0 }}",
            "{{ mount -1 }}",
            "{{ mount }}",
            "{{ exec 0 }}",
            "{{ mount 0",
            "{{ overlay 0 18446744073709551615 }}",
        ] {
            assert!(expand(bad, &active()).is_err(), "{bad}");
        }
    }

    #[test]
    fn folders_are_made_only_below_the_roots() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        symlink("/", root.join("out")).unwrap();
        let roots = [root.clone()];
        let make = |path: String| {
            let m = Mount {
                r#type: "mkdir/overlay".into(),
                options: vec![format!("{MKDIR}path={path}"), "x=y".into()],
                ..Default::default()
            };
            Transform::Mkdir.apply(m, &[], &roots)
        };
        let at = |name: &str| root.join(name).display().to_string();
        let m = make(format!("{}:0751", at("a"))).unwrap();
        assert_eq!(
            (m.r#type.as_str(), m.options),
            ("overlay", vec!["x=y".into()])
        );
        let mode = |p: &str| {
            std::fs::metadata(root.join(p))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!(mode("a"), 0o751);
        make(format!("{}:0700", at("a"))).unwrap();
        assert_eq!(mode("a"), 0o751);
        make(at("out/b")).unwrap();
        assert_eq!(mode("b"), 0o700);
        make(at("../../c")).unwrap();
        assert!(root.join("c").is_dir());
        for bad in [
            dir.path().join("elsewhere").display().to_string(),
            format!("{}:9", at("d")),
            format!("{}:1777", at("d")),
            format!("{}:0700:1", at("d")),
            format!("{}:0700:1:4294967295", at("d")),
            at("no/such"),
            String::new(),
        ] {
            assert!(make(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn images_are_made_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let roots = [dir.path().to_owned()];
        let image = dir.path().join("rw.img");
        let with = |options: &[&str]| Mount {
            r#type: "mkfs/ext4".into(),
            source: image.display().to_string(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Default::default()
        };
        for bad in [
            &["rw"][..],
            &["X-containerd.mkfs.size=1M", "X-containerd.mkfs.fs=vfat"],
            &["X-containerd.mkfs.size=1M", "X-containerd.mkfs.color=red"],
            &[
                "X-containerd.mkfs.size=1M",
                "X-containerd.mkfs.uuid=nonsense",
            ],
        ] {
            assert!(
                Transform::Mkfs.apply(with(bad), &[], &roots).is_err(),
                "{bad:?}"
            );
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{bad:?}");
        }
        let good = ["X-containerd.mkfs.size=4MiB", "rw", "loop"];
        if Command::new("mkfs.ext4").arg("-V").output().is_err() {
            eprintln!("skipped: no mkfs.ext4");
            return;
        }
        let m = Transform::Mkfs.apply(with(&good), &[], &roots).unwrap();
        assert_eq!((m.r#type.as_str(), m.options.len()), ("ext4", 2));
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 4 << 20);
        let before = std::fs::metadata(&image).unwrap().modified().unwrap();
        Transform::Mkfs.apply(with(&good), &[], &roots).unwrap();
        assert_eq!(
            std::fs::metadata(&image).unwrap().modified().unwrap(),
            before
        );
    }
}
