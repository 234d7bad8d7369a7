//! The shapes that containerd's clients and runtimes know.

use super::*;
use corten_core::Labels;

struct Case {
    dir: tempfile::TempDir,
    recipes: Recipes,
}

impl Case {
    /// Snapshots 1 to 3 have layers.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for id in 1..=4 {
            std::fs::create_dir(dir.path().join(id.to_string())).unwrap();
        }
        for id in 1..=3 {
            std::fs::write(dir.path().join(format!("{id}/layer.erofs")), "").unwrap();
        }
        let recipes = Recipes {
            snapshots: dir.path().to_owned(),
            options: vec!["metacopy=off".into()],
            default_size: 0,
            remap_ids: true,
            verity: false,
            dmverity: true,
        };
        Self { dir, recipes }
    }

    /// The recipe of snapshot 4, a line for each mount, with the folder as `$`.
    fn check(&self, kind: SnapshotKind, parents: &[u64], labels: &[(&str, &str)], want: &[&str]) {
        let s = Snapshot {
            id: 4,
            kind,
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<Labels>(),
            parents: parents.to_vec(),
        };
        let got = self.recipes.mounts(&s).unwrap();
        let root = self.dir.path().display().to_string();
        let got: Vec<_> = got
            .iter()
            .map(|m| {
                format!("{} {} {}", m.r#type, m.source, m.options.join(",")).replace(&root, "$")
            })
            .collect();
        assert_eq!(got, want);
    }
}

const ACTIVE: SnapshotKind = SnapshotKind::Active;
const VIEW: SnapshotKind = SnapshotKind::View;

#[test]
fn layers_are_mounted_each_and_stacked_by_templates() {
    let c = Case::new();
    c.check(ACTIVE, &[], &[], &["bind $/4/fs rw,rbind"]);
    c.check(VIEW, &[], &[], &["bind $/4/fs ro,rbind"]);
    c.check(VIEW, &[2], &[], &["erofs $/2/layer.erofs ro,loop"]);
    c.check(
        ACTIVE,
        &[1],
        &[(UID_MAP, "0:1:2"), (GID_MAP, "0:3:4")],
        &[
            "erofs $/1/layer.erofs ro,loop",
            "format/mkdir/overlay overlay workdir=$/4/work,upperdir=$/4/fs,uidmap=0:1:2,gidmap=0:3:4,\
             lowerdir={{ mount 0 }},metacopy=off",
        ],
    );
    let stacked = [
        "erofs $/3/layer.erofs ro,loop",
        "erofs $/2/layer.erofs ro,loop",
        "format/mkdir/overlay overlay lowerdir={{ overlay 0 1 }},metacopy=off",
    ];
    c.check(VIEW, &[3, 2], &[], &stacked);
}

#[test]
fn writable_layers_can_be_images() {
    let mut c = Case::new();
    c.recipes.default_size = 4096;
    let image = "mkfs/ext4 $/4/rwlayer.img X-containerd.mkfs.fs=ext4,X-containerd.mkfs.size=";
    c.check(
        ACTIVE,
        &[],
        &[(MAX_SIZE, "none")],
        &[
            &format!("{image}4096,rw,loop"),
            "format/mkdir/bind {{ mount 0 }}/upper X-containerd.mkdir.path={{ mount 0 }}/upper:0755,rw,rbind",
        ],
    );
    c.check(
        ACTIVE,
        &[2, 1],
        &[(MAX_SIZE, "7")],
        &[
            &format!("{image}7,rw,loop"),
            "erofs $/2/layer.erofs ro,loop",
            "erofs $/1/layer.erofs ro,loop",
            "format/mkdir/overlay overlay X-containerd.mkdir.path={{ mount 0 }}/upper:0755,\
             X-containerd.mkdir.path={{ mount 0 }}/work:0755,workdir={{ mount 0 }}/work,\
             upperdir={{ mount 0 }}/upper,lowerdir={{ overlay 1 2 }},metacopy=off",
        ],
    );
}

#[test]
fn layers_of_a_cache_and_merged_metadata_are_read_only() {
    let c = Case::new();
    let cached = c.dir.path().join("shared");
    std::fs::write(&cached, "").unwrap();
    std::fs::write(c.dir.path().join("4/cached"), cached.display().to_string()).unwrap();
    c.check(ACTIVE, &[], &[], &["erofs $/shared ro,loop"]);
    let merged = [
        "erofs $/shared ro,loop",
        "erofs $/2/fsmeta.erofs ro,loop,device=$/1/layer.erofs,device=$/2/layer.erofs",
        "format/mkdir/overlay overlay ro,lowerdir={{ overlay 0 1 }},metacopy=off",
    ];
    std::fs::write(c.dir.path().join("2/fsmeta.erofs"), "x").unwrap();
    c.check(ACTIVE, &[2, 1], &[], &merged);
    let bound = [merged[1], "format/bind {{ mount 0 }} ro,rbind"];
    c.check(VIEW, &[2, 1], &[], &bound);
    std::fs::write(c.dir.path().join("shared.dmverity"), "").unwrap();
    let verified = "erofs $/shared ro,loop,X-containerd.dmverity=$/shared.dmverity";
    c.check(ACTIVE, &[], &[], &[verified]);
    std::fs::remove_file(&cached).unwrap();
    let gone = Snapshot {
        id: 4,
        kind: ACTIVE,
        labels: Labels::new(),
        parents: vec![1],
    };
    assert!(c.recipes.mounts(&gone).is_err());
}
