//! The applier on ordinary and on hostile archives.

mod properties;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use super::*;
use crate::tar::{Member, Writer};

fn file(path: &str, data: &'static str) -> (Member, &'static [u8]) {
    let m = Member {
        path: path.into(),
        kind: b'0',
        mode: 0o644,
        size: data.len() as u64,
        mtime: 1000,
        ..Default::default()
    };
    (m, data.as_bytes())
}

fn dir(path: &str) -> (Member, &'static [u8]) {
    (
        Member {
            path: path.into(),
            kind: b'5',
            mode: 0o755,
            mtime: 2000,
            ..Default::default()
        },
        b"",
    )
}

fn link(kind: u8, path: &str, target: &str) -> (Member, &'static [u8]) {
    (
        Member {
            path: path.into(),
            link: target.into(),
            kind,
            ..Default::default()
        },
        b"",
    )
}

fn archive(members: &[(Member, &[u8])]) -> Vec<u8> {
    let mut w = Writer::new(Vec::new());
    for (m, data) in members {
        w.header(m).unwrap();
        w.data(*data, m.size).unwrap();
    }
    w.finish().unwrap()
}

/// A folder `root` to apply to, and `outside` beside it that nothing may touch.
struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("root")).unwrap();
        fs::create_dir(base.path().join("outside")).unwrap();
        fs::write(base.path().join("outside/secret"), "secret").unwrap();
        fs::set_permissions(
            base.path().join("outside/secret"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        Self { base }
    }

    fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    fn apply(&self, members: &[(Member, &[u8])]) -> io::Result<()> {
        self.raw(&archive(members))
    }

    fn raw(&self, archive: &[u8]) -> io::Result<()> {
        apply(
            &Target {
                root: self.root(),
                overlay: None,
            },
            archive,
        )
        .map(drop)
    }

    fn overlay(&self, members: &[(Member, &[u8])]) -> io::Result<()> {
        let target = Target {
            root: self.root(),
            overlay: Some(Vec::new()),
        };
        apply(&target, &archive(members)[..]).map(drop)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(path)).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_ok()
    }

    fn assert_contained(&self) {
        let mut names: Vec<_> = fs::read_dir(self.base.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
        assert_eq!(
            fs::read_dir(self.base.path().join("outside"))
                .unwrap()
                .count(),
            1
        );
        let secret = fs::metadata(self.base.path().join("outside/secret")).unwrap();
        assert_eq!(
            (secret.mode() & 0o7777, secret.nlink(), secret.len()),
            (0o600, 1, 6)
        );
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: owners and devices need root");
    }
    root
}

#[test]
fn everything_an_entry_says_arrives() {
    if !is_root() {
        return;
    }
    let p = Place::new();
    let mut suid = file("bin/su", "elf");
    suid.0.mode = 0o4755;
    (suid.0.uid, suid.0.gid) = (3, 4_000_000_000);
    // cap_net_raw=ep, as setcap writes it.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    suid.0.xattrs = vec![
        ("security.capability".into(), capability.clone()),
        ("user.a".into(), b"b".to_vec()),
    ];
    let device = |path: &str, kind, device| {
        let m = Member {
            path: path.into(),
            kind,
            mode: 0o620,
            device,
            ..Default::default()
        };
        (m, &b""[..])
    };
    // Some writers repeat the attributes on a hard link, some do not.
    let mut same = link(b'1', "bin/su2", "bin/su");
    same.0 = Member {
        size: 0,
        xattrs: Vec::new(),
        kind: b'1',
        ..suid.0.clone()
    };
    (same.0.path, same.0.link) = ("bin/su2".into(), "bin/su".into());
    p.apply(&[
        dir("bin/"),
        suid,
        same,
        link(b'2', "sh", "/bin/su"),
        device("null", b'3', (1, 3)),
        device("sda", b'4', (8, 1)),
        device("pipe", b'6', (0, 0)),
        dir("./"),
    ])
    .unwrap();
    let su = p.stat("bin/su");
    assert_eq!(
        (su.uid(), su.gid(), su.mtime(), su.nlink()),
        (3, 4_000_000_000, 1000, 2)
    );
    assert_eq!(p.stat("bin").mtime(), 2000);
    assert_eq!(su.mode() & 0o7777, 0o4755);
    assert_eq!(su.ino(), p.stat("bin/su2").ino());
    assert_eq!(
        fs::read_link(p.root().join("sh")).unwrap(),
        Path::new("/bin/su")
    );
    assert_eq!(p.stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(p.stat("null").mode() & 0o7777, 0o620);
    assert!(p.stat("sda").file_type().is_block_device());
    assert!(p.stat("pipe").file_type().is_fifo());
    assert_eq!(
        xattr::get(&p.root().join("bin/su"), "user.a")
            .unwrap()
            .unwrap(),
        b"b"
    );
    let found = xattr::get(&p.root().join("bin/su"), "security.capability").unwrap();
    assert_eq!(found.unwrap(), capability);
}

#[test]
fn set_id_bits_and_capabilities_survive_the_owner() {
    if !is_root() {
        return;
    }
    let p = Place::new();
    let mut suid = file("su", "elf");
    (suid.0.mode, suid.0.uid) = (0o6755, 7);
    p.apply(&[suid]).unwrap();
    assert_eq!(
        (p.stat("su").mode() & 0o7777, p.stat("su").uid()),
        (0o6755, 7)
    );
}

#[test]
fn links_and_dots_lead_nowhere_outside() {
    let outside = "../outside";
    for members in [
        vec![file("../outside/new", "x")],
        vec![file("/../../../outside/new", "x")],
        vec![link(b'2', "l", outside), file("l/new", "x")],
        vec![link(b'2', "l", "../outside/secret"), file("l", "x")],
        vec![
            link(b'2', "a", "/"),
            link(b'2', "b", "a/../.."),
            file("b/outside/new", "x"),
        ],
        vec![link(b'1', "h", "../outside/secret")],
        vec![link(b'2', "l", outside), link(b'1', "h", "l/secret")],
        vec![
            link(b'2', "l", "../outside/secret"),
            link(b'1', "h", "l"),
            file("h", "x"),
        ],
        vec![link(b'2', "l", outside), file("l/.wh.secret", "")],
        vec![link(b'2', "l", outside), file("l/.wh..wh..opq", "")],
        vec![file(".wh...", "")],
        vec![file("d/.wh.", "")],
        // A folder that was resolved before becomes a link.
        vec![
            dir("d/"),
            file("d/a", ""),
            link(b'2', "d", outside),
            file("d/new", "x"),
        ],
        vec![link(b'2', "l", "../outside/secret"), dir("l/")],
        vec![link(b'2', "loop", "loop"), file("loop/x", "")],
    ] {
        for overlay in [false, true] {
            let p = Place::new();
            // Refused or harmless, as the case may be.
            let _ = if overlay && is_root() {
                p.overlay(&members)
            } else {
                p.apply(&members)
            };
            p.assert_contained();
        }
    }
}

#[test]
fn a_mode_never_goes_through_a_link() {
    // CVE-2021-32760, CVE-2026-33056.
    let p = Place::new();
    let secret = p
        .base
        .path()
        .join("outside/secret")
        .to_string_lossy()
        .into_owned();
    let mut open = dir("l/");
    open.0.mode = 0o777;
    p.apply(&[link(b'2', "l", &secret), open]).unwrap();
    p.assert_contained();
    assert!(p.stat("l").is_dir());
}

#[test]
fn folders_behind_dangling_links_are_made_inside() {
    let p = Place::new();
    p.apply(&[link(b'2', "lib", "/usr/lib"), file("lib/libc.so", "x")])
        .unwrap();
    assert_eq!(p.read("usr/lib/libc.so"), "x");
    assert!(p.stat("lib").is_symlink());
    assert_eq!(p.stat("usr").mode() & 0o777, 0o755);
}

#[test]
fn later_entries_replace_earlier_ones_and_folders_merge() {
    let p = Place::new();
    p.apply(&[dir("d/"), file("d/f", "1"), file("f", "old")])
        .unwrap();
    p.apply(&[dir("d/"), file("f", "new"), file("d/g", "2")])
        .unwrap();
    assert_eq!(
        (p.read("f"), p.read("d/f"), p.read("d/g")),
        ("new".into(), "1".into(), "2".into())
    );
    p.apply(&[file("d", "now a file")]).unwrap();
    assert_eq!(p.read("d"), "now a file");
    p.apply(&[dir("d/")]).unwrap();
    assert!(p.stat("d").is_dir());
    assert!(p.apply(&[file("f/x", "below a file")]).is_err());
}

#[test]
fn whiteouts_delete_what_is_older_only() {
    let p = Place::new();
    p.apply(&[
        dir("d/"),
        file("d/old", ""),
        dir("e/"),
        file("e/old", ""),
        file("f", ""),
    ])
    .unwrap();
    p.apply(&[
        file("d/new", "n"),
        file("d/.wh..wh..opq", ""),
        file(".wh.e", ""),
        file(".wh.f", ""),
        file("f", "again"),
        file("g", "mine"),
        file(".wh.g", ""),
        file(".wh.absent", ""),
        file(".wh..wh.plnk", ""),
    ])
    .unwrap();
    assert!(!p.has("d/old") && !p.has("e") && !p.has(".wh..wh.plnk") && !p.has(".wh.f"));
    assert_eq!(
        (p.read("d/new"), p.read("f"), p.read("g")),
        ("n".into(), "again".into(), "mine".into())
    );
}

#[test]
fn an_opaque_mark_spares_new_files_in_old_folders() {
    let p = Place::new();
    p.apply(&[
        dir("d/"),
        dir("d/sub/"),
        file("d/sub/old", ""),
        file("d/old", ""),
    ])
    .unwrap();
    p.apply(&[file("d/sub/new", ""), file("d/.wh..wh..opq", "")])
        .unwrap();
    assert!(p.has("d/sub/new") && !p.has("d/sub/old") && !p.has("d/old"));
}

#[test]
fn overlay_marks_are_made() {
    if !is_root() {
        return;
    }
    let p = Place::new();
    p.overlay(&[
        file(".wh.gone", ""),
        dir("d/"),
        file("d/.wh..wh..opq", ""),
        file(".wh.anew", ""),
        dir("anew/"),
        file("first", "x"),
        file(".wh.first", ""),
        dir("second/"),
        file(".wh.second", ""),
    ])
    .unwrap();
    let opaque = |path: &str| xattr::get(&p.root().join(path), OPAQUE_XATTR).unwrap();
    let gone = p.stat("gone");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(opaque("d").unwrap(), b"y");
    assert_eq!(opaque("anew").unwrap(), b"y");
    assert_eq!(opaque("second").unwrap(), b"y");
    assert_eq!(p.read("first"), "x");
    // Over what an earlier archive put there, too.
    p.overlay(&[file(".wh.first", ""), file(".wh.second", "")])
        .unwrap();
    assert_eq!((p.stat("first").rdev(), p.stat("second").rdev()), (0, 0));
    assert!(p.stat("second").file_type().is_char_device());
}

#[test]
fn missing_folders_look_as_in_the_layers_below() {
    if !is_root() {
        return;
    }
    let p = Place::new();
    let below = p.base.path().join("root/../below");
    fs::create_dir_all(below.join("var/tmp")).unwrap();
    fs::set_permissions(
        below.join("var/tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .unwrap();
    std::os::unix::fs::chown(below.join("var"), Some(8), Some(9)).unwrap();
    symlink("/etc", below.join("link")).unwrap();
    let target = Target {
        root: p.root(),
        overlay: Some(vec![below.clone()]),
    };
    let input = archive(&[file("var/tmp/x/f", ""), file("link/f", "")]);
    apply(&target, &input[..]).unwrap();
    assert_eq!((p.stat("var").uid(), p.stat("var").gid()), (8, 9));
    assert_eq!(p.stat("var/tmp").mode() & 0o7777, 0o1777);
    assert_eq!(p.stat("var/tmp/x").mode() & 0o7777, 0o755);
    fs::remove_dir_all(below).unwrap();
}

#[test]
fn ids_and_device_numbers_out_of_range_are_errors() {
    let p = Place::new();
    let mut b = tar::Builder::new(Vec::new());
    let mut h = tar::Header::new_gnu();
    h.set_path("dev").unwrap();
    h.set_entry_type(tar::EntryType::Char);
    h.set_size(0);
    // 2^33 in base 256.
    h.as_gnu_mut().unwrap().dev_major = [0x80, 0, 0, 2, 0, 0, 0, 0];
    h.set_cksum();
    b.append(&h, &b""[..]).unwrap();
    assert!(p.raw(&b.into_inner().unwrap()).is_err());
    for uid in [1u64 << 32, u64::from(u32::MAX)] {
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(0);
        h.set_uid(uid);
        b.append_data(&mut h, "f", &b""[..]).unwrap();
        assert!(p.raw(&b.into_inner().unwrap()).is_err(), "{uid}");
    }
    assert!(!p.has("f") && !p.has("dev"));
}

#[test]
fn attributes_of_overlayfs_are_not_an_images_to_set() {
    if !is_root() {
        return;
    }
    let p = Place::new();
    let mut d = dir("d/");
    d.0.xattrs = vec![("trusted.overlay.redirect".into(), b"/etc".to_vec())];
    p.overlay(&[d]).unwrap();
    assert_eq!(
        xattr::get(&p.root().join("d"), "trusted.overlay.redirect").unwrap(),
        None
    );
}

#[test]
fn a_flood_of_opaque_marks_is_linear() {
    // CVE-2026-95838: each mark walked the whole folder again.
    let p = Place::new();
    p.apply(&[file("old", "")]).unwrap();
    let mut members = Vec::new();
    let mut path = String::new();
    for i in 0..200 {
        path.push_str("d/");
        members.push(dir(&path));
        members.extend((0..10).map(|j| file(&format!("{path}f{i}-{j}"), "")));
    }
    for depth in (0..200).rev() {
        for _ in 0..20 {
            members.push(file(&format!("{}.wh..wh..opq", "d/".repeat(depth)), ""));
        }
    }
    let start = std::time::Instant::now();
    p.apply(&members).unwrap();
    assert!(
        start.elapsed() < std::time::Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(!p.has("old") && p.has("d/d/f1-1"));
}

#[test]
fn sparse_files_keep_their_holes() {
    let p = Place::new();
    let made = p.base.path().join("root/made");
    let f = fs::File::create(&made).unwrap();
    f.set_len(100 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, b"mid", 50 << 20).unwrap();
    for format in ["gnu", "posix"] {
        let tar = std::process::Command::new("tar")
            .args(["-S", "-H", format, "-C"])
            .arg(p.root())
            .args(["-cf", "-", "made"])
            .output();
        let Ok(tar) = tar else {
            eprintln!("skipped: no tar program");
            return;
        };
        assert!(tar.status.success() && tar.stdout.len() < 1 << 20);
        let other = Place::new();
        other.raw(&tar.stdout).unwrap();
        let got = other.stat("made");
        assert_eq!(
            (got.len(), got.blocks() * 512 < 1 << 20),
            (100 << 20, true),
            "{format}"
        );
        let mut mid = [0; 3];
        let f = fs::File::open(other.root().join("made")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&f, &mut mid, 50 << 20).unwrap();
        assert_eq!(&mid, b"mid", "{format}");
    }
}

#[test]
fn ten_thousand_small_files_are_quick() {
    let mut members = Vec::new();
    for d in 0..100 {
        members.push(dir(&format!("d{d}/")));
        members.extend((0..100).map(|f| file(&format!("d{d}/f{f}"), "small")));
    }
    let input = archive(&members);
    let p = Place::new();
    let start = std::time::Instant::now();
    p.raw(&input).unwrap();
    eprintln!("10,000 files in {:?}", start.elapsed());
    assert_eq!(p.read("d99/f99"), "small");
}
