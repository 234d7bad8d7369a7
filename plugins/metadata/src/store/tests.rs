//! The store alone: overlay, batches, refusals.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn store(root: &tempfile::TempDir) -> Store {
    Store::open(&root.path().join("meta.redb"), Options::default()).unwrap()
}

fn dump(from: &dyn Read, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut out = Vec::new();
    from.scan(prefix, &mut |k, v| {
        out.push((k.to_vec(), v.to_vec()));
        Ok(true)
    })
    .unwrap();
    out
}

#[tokio::test]
async fn failed_and_panicking_mutations_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    let s = store(&root);
    s.write(|t| t.put(b"a", b"1")).await.unwrap();
    let e = s
        .write(|t| {
            t.put(b"b", b"2")?;
            t.delete(b"a")?;
            Err::<(), _>(Error::precondition("no"))
        })
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    let e = s
        .write(|t| -> Result<()> {
            t.put(b"c", b"3")?;
            panic!("a bug in a mutation")
        })
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::Internal);
    let ((), changed) = s.write(|t| t.put(b"a", b"1")).await.unwrap();
    assert!(!changed, "the same value is no change");
    assert_eq!(
        s.read(|r| Ok(dump(r, b""))).unwrap(),
        [(b"a".to_vec(), b"1".to_vec())]
    );
    let stopped = s
        .read(|r| {
            let mut n = 0;
            r.scan(b"", &mut |_, _| {
                n += 1;
                Ok(false)
            })?;
            Ok(n)
        })
        .unwrap();
    assert_eq!(stopped, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_what_was_when_they_began_and_hold_up_nobody() {
    let root = tempfile::tempdir().unwrap();
    let s = Arc::new(store(&root));
    s.write(|t| t.put(b"a", b"1")).await.unwrap();
    let (begun, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let (begun, go) = (Arc::new((begun, go)), s.clone());
    let gates = begun.clone();
    let reader = tokio::task::spawn_blocking(move || {
        go.read(|r| {
            gates.0.wait();
            gates.1.wait();
            r.get(b"a")
        })
    });
    tokio::task::block_in_place(|| begun.0.wait());
    s.write(|t| t.put(b"a", b"2")).await.unwrap();
    tokio::task::block_in_place(|| begun.1.wait());
    assert_eq!(reader.await.unwrap().unwrap().unwrap(), b"1");
    assert_eq!(s.read(|r| r.get(b"a")).unwrap().unwrap(), b"2");
}

#[tokio::test]
async fn a_later_schema_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("meta.redb");
    drop(store(&root));
    {
        let db = redb::Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(META)
            .unwrap()
            .insert("schema", SCHEMA + 1)
            .unwrap();
        txn.commit().unwrap();
    }
    let e = Store::open(&path, Options::default()).unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    assert!(e.to_string().contains("schema 2"), "{e}");
}

#[tokio::test]
async fn an_open_file_is_waited_for_as_long_as_was_said() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("meta.redb");
    let first = store(&root);
    let soon = Options {
        patience: Some(std::time::Duration::from_millis(1)),
        ..Options::default()
    };
    let e = Store::open(&path, soon).unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable);
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || Store::open(&path, Options::default()).map(drop)
    });
    drop(first);
    waiting.join().unwrap().unwrap();
}

#[tokio::test]
async fn no_sync_is_on_disk_after_a_clean_stop() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("meta.redb");
    let options = Options {
        no_sync: true,
        ..Options::default()
    };
    let s = Store::open(&path, options).unwrap();
    for n in 0..100u8 {
        s.write(move |t| t.put(&[n], b"x")).await.unwrap();
    }
    drop(s);
    assert_eq!(store(&root).read(|r| Ok(dump(r, b"").len())).unwrap(), 100);
}

#[test]
fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    drop(store(&root));
    let mode = std::fs::metadata(root.path().join("meta.redb"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A map as the base of an overlay.
struct Map(BTreeMap<Vec<u8>, Vec<u8>>);

impl Read for Map {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        for (k, v) in self
            .0
            .range(prefix.to_vec()..)
            .take_while(|(k, _)| k.starts_with(prefix))
        {
            if !visit(k, v)? {
                break;
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn an_overlay_reads_like_a_map_with_the_writes_in_it(
        base in proptest::collection::btree_map("[ab]{0,3}", "[xy]", 0..8),
        ops in proptest::collection::vec(("[ab]{0,3}", proptest::option::of("[xy]")), 0..12),
        prefix in "[ab]{0,2}",
    ) {
        let mut want: BTreeMap<Vec<u8>, Vec<u8>> =
            base.into_iter().map(|(k, v)| (k.into_bytes(), v.into_bytes())).collect();
        let under = Map(want.clone());
        let mut txn = Txn::new(&under);
        for (k, v) in ops {
            match v {
                Some(v) => {
                    txn.put(k.as_bytes(), v.as_bytes()).unwrap();
                    want.insert(k.into_bytes(), v.into_bytes());
                }
                None => {
                    let there = txn.delete(k.as_bytes()).unwrap();
                    prop_assert_eq!(there, want.remove(k.as_bytes()).is_some());
                }
            }
        }
        let below: Vec<_> = want
            .iter()
            .filter(|(k, _)| k.starts_with(prefix.as_bytes()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        prop_assert_eq!(dump(&txn, prefix.as_bytes()), below);
    }
}

/// Needs a small file system of its own: set the variable to a folder on a tmpfs of a few MiB.
#[tokio::test]
async fn a_full_disk_fails_writes_and_heals_by_itself() {
    let Some(disk) = std::env::var_os("CORTEN_TEST_SMALL_DISK") else {
        return;
    };
    let disk = PathBuf::from(disk);
    let s = Store::open(&disk.join("meta.redb"), Options::default()).unwrap();
    let ballast = disk.join("ballast");
    s.write(|t| t.put(b"first", b"1")).await.unwrap();
    // Fill the disk to the brim.
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[7; 4096]).is_ok() {}
    drop(file);
    let mut kept = 0;
    let e = loop {
        match s
            .write(move |t| t.put(format!("k{kept}").as_bytes(), &[1; 65536]))
            .await
        {
            Ok(_) => kept += 1,
            Err(e) => break e,
        }
        assert!(kept < 1000);
    };
    assert_eq!(e.kind(), Kind::ResourceExhausted, "{e}");
    assert_eq!(
        s.read(|r| r.get(b"first")).unwrap().unwrap(),
        b"1",
        "reading goes on"
    );
    std::fs::remove_file(&ballast).unwrap();
    s.write(|t| t.put(b"second", b"2")).await.unwrap();
    let all = s.read(|r| Ok(dump(r, b"k").len())).unwrap();
    assert_eq!(all, kept, "what was acknowledged is there, the rest is not");
    drop(s);
    let s = Store::open(&disk.join("meta.redb"), Options::default()).unwrap();
    assert_eq!(s.read(|r| r.get(b"second")).unwrap().unwrap(), b"2");
}

/// A small file system of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|s| s.success()).then_some(Self(dir))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_takes_what_makes_room() {
    let Some(disk) = Disk::new() else {
        println!("skipped: cannot mount a tmpfs");
        return;
    };
    let (filler, reserve) = (disk.0.path().join("f"), disk.0.path().join("meta.reserve"));
    let s = store(&disk.0);
    for n in 0..50_u8 {
        s.write(move |t| t.put(&[n], &[n; 1000])).await.unwrap();
    }
    let full = std::fs::write(&filler, vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    for n in 0..50_u8 {
        s.write(move |t| t.delete(&[n])).await.unwrap();
        s.write(move |t| t.put(b"last", &vec![n; 200_000]))
            .await
            .unwrap();
    }
    assert!(!reserve.exists(), "there was room all the time");
    drop(s);
    std::fs::remove_file(&filler).unwrap();
    let s = store(&disk.0);
    assert!(reserve.exists(), "the space is held back again");
    assert_eq!(
        s.read(|r| Ok(dump(r, b""))).unwrap(),
        [(b"last".to_vec(), vec![49; 200_000])]
    );
}
