//! The applier on whatever a generator comes up with: it may refuse, but neither panic nor leave its root.

use proptest::prelude::*;

use super::*;

/// A path made of few names, so that entries meet; many of them hostile.
fn any_path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "/",
        "outside",
        "secret",
        ".wh.a",
        ".wh..wh..opq",
        ".wh.",
        ".wh..",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn any_member() -> impl Strategy<Value = Member> {
    let kind = prop::sample::select(vec![b'0', b'0', b'1', b'2', b'2', b'5', b'5', b'6']);
    (any_path(), any_path(), kind, 0u32..0o7777).prop_map(|(path, link, kind, mode)| Member {
        path: path.into(),
        link: format!("{link}/../outside")
            .trim_end_matches(if mode % 2 == 0 { "/../outside" } else { "-" })
            .into(),
        kind,
        mode,
        ..Default::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_entries_escapes(members in prop::collection::vec(any_member(), 1..30), overlay: bool) {
        let p = Place::new();
        let overlay = overlay && rustix::process::geteuid().is_root();
        // One at a time: an entry that is refused must not save us from the next.
        for m in members {
            let members = [(m, &b""[..])];
            let _ = if overlay { p.overlay(&members) } else { p.apply(&members) };
        }
        p.assert_contained();
    }

    #[test]
    fn no_bytes_make_it_panic(
        members in prop::collection::vec(any_member(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        fix: bool,
    ) {
        let members: Vec<_> = members.into_iter().map(|m| (m, &b""[..])).collect();
        let mut bytes = archive(&members);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if fix {
            // Right checksums let the damage through to the fields.
            for block in bytes.chunks_exact_mut(512) {
                if block.iter().any(|b| *b != 0) {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let p = Place::new();
        let _ = p.raw(&bytes);
        p.assert_contained();
    }

    #[test]
    fn random_bytes_are_refused_quietly(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let p = Place::new();
        let _ = p.raw(&bytes);
        p.assert_contained();
    }
}
