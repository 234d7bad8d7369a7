//! Users of hostile and of plain images.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const MERGE: i32 = SupplementalGroupsPolicy::Merge as i32;
const STRICT: i32 = SupplementalGroupsPolicy::Strict as i32;

const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\n\
    web:x:33:34:web:/:/bin/sh\n\
    # comment:x:1:1\n\
    \n\
    99999999999:x:0:0:trap:/:/bin/sh\n\
    7000:x:0:0:trap:/:/bin/sh\n\
    nan:x:zero:0::/:\n\
    huge:x:4294967296:0::/:\n\
    short:x:55\n";
const GROUPS: &str = "root:x:0:root\n\
    web:x:34:web\n\
    disk:x:6:root,web\n\
    tape:x:26:web\n\
    bad:x:x:web\n";

fn rootfs(passwd: &str, group: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
    fs::write(dir.path().join("etc/group"), group).unwrap();
    dir
}

fn image(user: &str) -> Asked<'_> {
    Asked {
        image: user,
        ..Asked::default()
    }
}

fn ids(user: &User) -> (u32, u32, &[u32]) {
    (user.uid, user.gid, &user.additional_gids)
}

/// What each user string means; an error where the text says so.
#[test]
fn every_user_string_is_exact_or_an_error() {
    let dir = rootfs(ACCOUNTS, GROUPS);
    let check = |user: &str, want: Result<(u32, u32), &str>| {
        let got = resolve(&image(user), Some(dir.path()));
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!((got.uid, got.gid), want, "{user:?}"),
            (Err(e), Err(want)) => assert!(e.to_string().contains(want), "{user:?}: {e}"),
            (got, want) => panic!("{user:?}: {got:?}, not {want:?}"),
        }
    };
    for (user, want) in [
        ("", (0, 0)),
        ("0", (0, 0)),
        ("1", (1, 0)),
        ("33", (33, 34)),
        ("+33", (33, 34)),
        ("033", (33, 34)),
        ("7000", (7000, 0)),
        ("2147483647", (2147483647, 0)),
        ("1:2", (1, 2)),
        ("1:", (1, 0)),
        (":2", (0, 2)),
        ("web", (33, 34)),
        ("web:6", (33, 6)),
        ("web:tape", (33, 26)),
        ("1:tape", (1, 26)),
        ("short", (55, 0)),
    ] {
        check(user, Ok(want));
    }
    for user in [
        "-1",
        "2147483648",
        "4294967295",
        "4294967296",
        "99999999999",
        "99999999999999999999999",
        "1:-1",
        "1:2147483648",
        "99999999999:0",
    ] {
        check(user, Err("out of range"));
    }
    for user in [" 1", "1 ", "0x1", "1_0", "nan", "huge", "nobody", "web "] {
        check(user, Err("no users found"));
    }
    for user in ["web:none", "1:bad", "1: 2"] {
        check(user, Err("no groups found"));
    }
    check("1:2:3", Err("invalid USER value"));
}

#[test]
fn the_cri_s_user_comes_first() {
    let dir = rootfs(ACCOUNTS, GROUPS);
    let value = |value| Some(Int64Value { value });
    let of = |asked: Asked<'_>| resolve(&asked, Some(dir.path())).map(|u| (u.uid, u.gid));
    let asked = image("web");
    assert_eq!(
        of(Asked {
            uid: value(5),
            ..asked
        })
        .unwrap(),
        (5, 0)
    );
    let both = Asked {
        uid: value(5),
        gid: value(9),
        ..asked
    };
    assert_eq!(of(both).unwrap(), (5, 9));
    let named = Asked {
        username: "web",
        ..both
    };
    assert_eq!(of(named).unwrap(), (33, 9));
    let e = of(Asked {
        gid: value(9),
        ..asked
    });
    let text = e.unwrap_err().to_string();
    assert!(
        text.contains("user group \"9\" is specified without user"),
        "{text}"
    );
    assert!(
        of(Asked {
            uid: value(-1),
            ..asked
        })
        .is_err()
    );
    assert!(
        of(Asked {
            uid: value(1 << 32),
            ..asked
        })
        .is_err()
    );
}

#[test]
fn groups_are_merged_or_taken_strictly() {
    let dir = rootfs(ACCOUNTS, GROUPS);
    let check = |asked: Asked<'_>, want: &[u32]| {
        let user = resolve(&asked, Some(dir.path())).unwrap();
        assert_eq!(ids(&user).2, want, "{asked:?}");
    };
    let groups = Asked {
        groups: &[1000, 6],
        policy: MERGE,
        ..image("33:40")
    };
    check(groups, &[6, 26, 40, 1000]);
    check(
        Asked {
            policy: STRICT,
            ..groups
        },
        &[6, 40, 1000],
    );
    // root is in its own group by its entry, and in disk by its name.
    check(image(""), &[0, 6]);
    // A user that passwd does not know.
    check(image("12345"), &[0]);
    let wrong = Asked {
        groups: &[-1],
        ..groups
    };
    assert!(resolve(&wrong, Some(dir.path())).is_err());
    assert!(
        resolve(
            &Asked {
                policy: 7,
                ..groups
            },
            Some(dir.path())
        )
        .is_err()
    );
}

#[test]
fn a_rootfs_is_only_needed_for_names() {
    let strict = |image| Asked {
        policy: STRICT,
        image,
        ..Asked::default()
    };
    for (user, want) in [
        ("", false),
        ("1:2", false),
        ("1", true),
        ("a:2", true),
        ("1:a", true),
    ] {
        assert_eq!(needs_rootfs(&strict(user)), want, "{user:?}");
    }
    assert!(needs_rootfs(&image("1:2")));
    assert_eq!(
        ids(&resolve(&strict("1:2"), None).unwrap()),
        (1, 2, &[2][..])
    );
    assert!(resolve(&image("1:2"), None).is_err());
}

#[test]
fn links_are_followed_inside_the_rootfs_only() {
    let dir = rootfs("", GROUPS);
    let at = |path: &str| dir.path().join(path);
    fs::remove_file(at("etc/passwd")).unwrap();
    fs::create_dir_all(at("nix/store")).unwrap();
    fs::write(at("nix/store/passwd"), "web:x:1:1\n").unwrap();
    symlink("/nix/store", at("current")).unwrap();
    symlink("../current/passwd", at("etc/passwd")).unwrap();
    let of = |user| resolve(&image(user), Some(dir.path()));
    assert_eq!(ids(&of("web").unwrap()).0, 1);
    // Absolute and upward links mean the image's own root.
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("passwd"), "spy:x:1:1\n").unwrap();
    for target in [
        secret.path().join("passwd"),
        Path::new("../../../../../..")
            .join(secret.path().strip_prefix("/").unwrap().join("passwd")),
    ] {
        fs::remove_file(at("etc/passwd")).unwrap();
        symlink(target, at("etc/passwd")).unwrap();
        assert!(
            of("spy")
                .unwrap_err()
                .to_string()
                .contains("no users found")
        );
    }
    fs::remove_file(at("etc/passwd")).unwrap();
    symlink("passwd", at("etc/passwd")).unwrap();
    assert!(of("web").is_err());
    // Too many links, and a file where a directory is needed.
    fs::remove_file(at("etc/passwd")).unwrap();
    symlink("/current/passwd/x", at("etc/passwd")).unwrap();
    assert!(of("web").is_err());
}

#[test]
fn only_regular_files_of_bounded_size_are_read() {
    let dir = rootfs("web:x:1:1\n", GROUPS);
    let passwd = dir.path().join("etc/passwd");
    let of = || resolve(&image("web"), Some(dir.path()));
    let refused = |want: &str| {
        let text = of().unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    };
    let file = fs::OpenOptions::new().write(true).open(&passwd).unwrap();
    file.set_len(MAX_FILE).unwrap();
    assert_eq!(of().unwrap().uid, 1);
    file.set_len(MAX_FILE + 1).unwrap();
    refused("exceeds 10485760 bytes");
    fs::remove_file(&passwd).unwrap();
    fs::create_dir(&passwd).unwrap();
    refused("not a regular file");
    fs::remove_dir(&passwd).unwrap();
    // Opening it would block for ever.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    refused("not a regular file");
    fs::remove_file(&passwd).unwrap();
    refused("no users found");
}

#[test]
fn images_say_numbers_or_names() {
    assert_eq!(of_image("7:8"), (Some(7), String::new()));
    assert_eq!(of_image("web:8"), (None, "web".into()));
    assert_eq!(of_image(""), (None, String::new()));
}
