//! The images that tests ask for by name. Each is built once per process, on first use, from
//! Debian's busybox-static and programs of this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::json;

use super::{Image, Layer, Recipe};
use crate::tarball::Tarball;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
                      alice:x:1000:1000:Alice:/home/alice:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nstaff:x:50:alice\naudio:x:29:\n";

static BUSYBOX: LazyLock<Image> =
    LazyLock::new(|| Recipe::new("busybox").layer(Layer::gzip(base())).build());

/// Debian's static busybox.
pub(super) fn busybox_binary() -> Vec<u8> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|p| fs::read(p).ok())
        .expect("busybox-static is installed by integration/setup.sh")
}

/// The tree of a small system around one busybox binary.
fn base() -> Tarball {
    let list = Command::new("busybox")
        .arg("--list")
        .output()
        .expect("busybox runs");
    let mut tar = Tarball::new()
        .dirs(
            0o755,
            &[
                "bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var",
            ],
        )
        .dir("tmp", 0o1777)
        .file("bin/busybox", 0o755, busybox_binary());
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    tar.file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .owner(1000, 1000)
        .dir("home/alice", 0o755)
}

/// One gzip layer: busybox with all applets, users root, nobody and alice.
#[must_use]
pub fn busybox() -> Image {
    BUSYBOX.clone()
}

/// Busybox with more layers above it and a config of its own.
#[must_use]
pub fn busybox_with(name: &str, layers: Vec<Layer>, config: serde_json::Value) -> Image {
    let recipe = Recipe::new(name).layer(Layer::gzip(base())).config(config);
    layers.into_iter().fold(recipe, Recipe::layer).build()
}

/// Busybox with an entrypoint, a user, a working directory, environment and labels.
#[must_use]
pub fn configured() -> Image {
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c", "echo entry $GREETING in $PWD as $(id -u) with $0"],
        "Cmd": ["default"],
        "Env": ["PATH=/bin:/usr/bin", "GREETING=hello", "HOME=/nowhere"],
        "User": "alice", "WorkingDir": "/home/alice",
        "Labels": {"org.example.kind": "configured"}, "StopSignal": "SIGUSR1",
    });
    Recipe::new("configured")
        .layer(Layer::gzip(base()))
        .config(config)
        .build()
}

/// Dynamically linked programs of this machine with their libraries.
#[must_use]
pub fn glibc() -> Image {
    Recipe::new("glibc")
        .layer(Layer::gzip(dynamic(
            Tarball::new(),
            &["env", "ls", "id"],
            0o755,
        )))
        .build()
}

/// Busybox and a dynamically linked `id` that is set-uid root: it shows the effective user.
#[must_use]
pub fn setuid() -> Image {
    Recipe::new("setuid")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(dynamic(Tarball::new(), &["id"], 0o4755)))
        .build()
}

/// Adds programs of this machine and every library that they load.
pub(super) fn dynamic(mut tar: Tarball, programs: &[&str], mode: u32) -> Tarball {
    let mut libraries = BTreeSet::new();
    tar = tar.dirs(0o755, &["usr", "usr/bin"]);
    for program in programs {
        let path = ["bin", "sbin"]
            .map(|dir| format!("/usr/{dir}/{program}"))
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("integration/setup.sh installs them");
        let list = Command::new("ldd").arg(&path).output().expect("ldd runs");
        for word in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            if word.starts_with('/') {
                libraries.insert(word.to_owned());
            }
        }
        tar = tar.file(&path[1..], mode, fs::read(&path).expect("it is there"));
    }
    for library in libraries {
        let bytes = fs::read(Path::new(&library)).expect("ldd named it");
        tar = tar.file(&library[1..], 0o755, bytes);
    }
    tar
}

/// Twenty layers above busybox that add, replace, hide and link, each in its own way.
#[must_use]
pub fn layered() -> Image {
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
    let mut recipe = Recipe::new("layered")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(
            Tarball::new()
                .dirs(
                    0o755,
                    &[
                        "t",
                        "t/gone-dir",
                        "t/opaque",
                        "t/becomes-file",
                        "t/kept",
                        "long",
                    ],
                )
                .dir(&format!("long/{}", "d".repeat(120)), 0o755)
                .file("t/gone", 0o644, "gone")
                .file("t/gone-dir/inside", 0o644, "gone")
                .file("t/opaque/lower", 0o644, "lower")
                .file("t/becomes-file/inside", 0o644, "x")
                .file("t/becomes-dir", 0o644, "x")
                .file("t/replaced", 0o600, "first")
                .file("t/kept/a", 0o640, "kept")
                .hardlink("t/kept/b", "t/kept/a")
                .symlink("t/kept/link", "a")
                .symlink("t/kept/dangling", "/no/such/file")
                .fifo("t/fifo")
                .file(&long, 0o644, "long")
                .file_with_xattr("t/xattr", b"x", "user.corten", b"value")
                .owner(1000, 50)
                .file("t/owned", 0o4755, "owned"),
        ));
    recipe = recipe.layer(Layer::gzip(
        Tarball::new()
            .whiteout("t", "gone")
            .whiteout("t", "gone-dir")
            .opaque("t/opaque")
            .file("t/opaque/upper", 0o644, "upper")
            .whiteout("t", "becomes-file")
            .file("t/becomes-file", 0o644, "file now")
            .dir("t/becomes-dir", 0o700)
            .file("t/becomes-dir/inside", 0o644, "dir now")
            .file("t/replaced", 0o644, "second"),
    ));
    for number in 0..18 {
        // An explicit directory in only one of the layers: the others rely on their parent.
        let tar = Tarball::new().file(&format!("t/n{number}"), 0o644, format!("{number}"));
        recipe = recipe.layer(Layer::gzip(tar.file("t/count", 0o644, format!("{number}"))));
    }
    recipe.build()
}

/// Busybox and ten thousand small files in a hundred directories.
#[must_use]
pub fn many_files() -> Image {
    let mut tar = Tarball::new().dir("many", 0o755);
    for dir in 0..100 {
        tar = tar.dir(&format!("many/{dir}"), 0o755);
        for file in 0..100 {
            tar = tar.file(
                &format!("many/{dir}/{file}"),
                0o644,
                format!("{dir} {file}\n"),
            );
        }
    }
    Recipe::new("many-files")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(tar))
        .build()
}

/// Busybox with Docker's media types.
#[must_use]
pub fn docker() -> Image {
    Recipe::new("docker")
        .docker()
        .layer(Layer::gzip(base()))
        .build()
}

/// Busybox with Docker's media types, in a layer that is not compressed.
#[must_use]
pub fn docker_plain() -> Image {
    Recipe::new("docker-plain")
        .docker()
        .layer(Layer::plain(base()))
        .build()
}

/// An image whose manifest alone has twenty megabytes.
#[must_use]
pub fn oversized(word: &str) -> Image {
    Recipe::new("oversized")
        .annotation(&"x".repeat(20 << 20))
        .layer(Layer::gzip(Tarball::new().file("word", 0o644, word)))
        .build()
}

/// An image of thirty megabytes that no packing makes smaller.
#[must_use]
pub fn large() -> Image {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(30 << 17)
    .flatten()
    .collect();
    Recipe::new("large")
        .layer(Layer::gzip(Tarball::new().file("noise", 0o644, noise)))
        .build()
}

/// Something to be installed on the host: a program and a library.
#[must_use]
pub fn package() -> Image {
    let files = Tarball::new()
        .dirs(0o755, &["bin", "lib"])
        .file("bin/program", 0o755, "#!/bin/sh\n")
        .file("lib/library.so", 0o644, "library");
    Recipe::new("package").layer(Layer::gzip(files)).build()
}

/// Busybox as a zstd layer, and a plain tar layer on it.
#[must_use]
pub fn zstd() -> Image {
    Recipe::new("zstd")
        .layer(Layer::zstd(base()))
        .layer(Layer::plain(Tarball::new().file("plain", 0o644, "plain")))
        .build()
}

/// One name for amd64 and arm64; `arch` in each says which it is.
#[must_use]
pub fn multi() -> Image {
    let member = |architecture: &str| {
        Recipe::new("multi")
            .architecture(architecture)
            .layer(Layer::gzip(base().owner(0, 0).file(
                "arch",
                0o644,
                architecture,
            )))
            .build()
    };
    Image::index(
        "multi",
        &[("amd64", member("amd64")), ("arm64", member("arm64"))],
    )
}

/// Busybox in a layer that no other image shares: `word` is in it. A daemon that has a blob in one
/// namespace need not fetch it for another.
#[must_use]
pub fn unique(word: &str) -> Image {
    Recipe::new("unique")
        .layer(Layer::gzip(base().file("word", 0o644, word)))
        .build()
}

/// An image for another machine only.
#[must_use]
pub fn foreign() -> Image {
    Recipe::new("foreign")
        .architecture("s390x")
        .layer(Layer::gzip(Tarball::new().file("x", 0o644, "x")))
        .build()
}

/// Layers that try to write outside of their root: by `..` and through links to `outside`.
#[must_use]
pub fn hostile(outside: &Path) -> Image {
    let outside = outside.to_str().expect("test paths are text");
    Recipe::new("hostile")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(
            Tarball::new()
                .symlink("escape", outside)
                .symlink("up", "../../../../../../../../../../../../../../..")
                .raw_name("../../dotdot", b"dotdot"),
        ))
        .layer(Layer::gzip(
            Tarball::new().file("escape/owned", 0o644, "owned").file(
                &format!("up{outside}/owned-too"),
                0o644,
                "owned",
            ),
        ))
        .build()
}
