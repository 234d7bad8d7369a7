//! Writes tar streams for image layers and archives: every kind of entry, the odd ones included.

use tar::{Builder, EntryType, Header};

/// A fixed time, so that an image has the same digest in every run.
const MTIME: u64 = 1_700_000_000;

/// A tar stream under construction. Entries belong to the owner set last (root at first).
pub struct Tarball {
    builder: Builder<Vec<u8>>,
    uid: u64,
    gid: u64,
}

impl std::fmt::Debug for Tarball {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tarball")
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .finish()
    }
}

impl Default for Tarball {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Tarball ===

impl Tarball {
    #[must_use]
    pub fn new() -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            uid: 0,
            gid: 0,
        }
    }

    fn header(&self, kind: EntryType, mode: u32, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(MTIME);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header
    }

    /// The owner of the entries that follow.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    #[must_use]
    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        let mut header = self.header(EntryType::Directory, mode, 0);
        self.builder
            .append_data(&mut header, path, std::io::empty())
            .unwrap();
        self
    }

    #[must_use]
    pub fn dirs(self, mode: u32, paths: &[&str]) -> Self {
        paths.iter().fold(self, |tar, path| tar.dir(path, mode))
    }

    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let mut header = self.header(EntryType::Regular, mode, bytes.len());
        self.builder.append_data(&mut header, path, bytes).unwrap();
        self
    }

    /// A file with an extended attribute, as a PAX record.
    #[must_use]
    pub fn file_with_xattr(mut self, path: &str, bytes: &[u8], key: &str, value: &[u8]) -> Self {
        let record = format!("SCHILY.xattr.{key}");
        self.builder
            .append_pax_extensions([(record.as_str(), value)])
            .unwrap();
        self.file(path, 0o644, bytes)
    }

    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = self.header(EntryType::Symlink, 0o777, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.hardlink_as(path, target, 0o640)
    }

    /// A hard link whose mode becomes its target's too.
    #[must_use]
    pub fn hardlink_as(mut self, path: &str, target: &str, mode: u32) -> Self {
        let mut header = self.header(EntryType::Link, mode, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    #[must_use]
    pub fn fifo(mut self, path: &str) -> Self {
        let mut header = self.header(EntryType::Fifo, 0o644, 0);
        self.builder
            .append_data(&mut header, path, std::io::empty())
            .unwrap();
        self
    }

    #[must_use]
    pub fn char_device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = self.header(EntryType::Char, 0o666, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.builder
            .append_data(&mut header, path, std::io::empty())
            .unwrap();
        self
    }

    /// A file whose name is taken as it is, `..` and all: what a hostile image would carry.
    #[must_use]
    pub fn raw_name(mut self, path: &str, bytes: &[u8]) -> Self {
        let mut header = self.header(EntryType::Regular, 0o644, bytes.len());
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.builder.append(&header, bytes).unwrap();
        self
    }

    #[must_use]
    pub fn whiteout(self, directory: &str, name: &str) -> Self {
        self.file(&format!("{directory}/.wh.{name}"), 0o644, "")
    }

    #[must_use]
    pub fn opaque(self, directory: &str) -> Self {
        self.file(&format!("{directory}/.wh..wh..opq"), 0o644, "")
    }

    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().expect("memory takes any write")
    }
}
