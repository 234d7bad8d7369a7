//! Layers, manifests and registries that try to get out, each named by what it tries. Numbers in brackets are those of the
//! invariants that the project keeps a list of.

use std::io::Write;

use corten_integration::images::{
    self, Blob, Image, Layer, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Recipe, digest_of,
};
use corten_integration::registry::{Tiny, Trick};
use corten_integration::tarball::Tarball;
use corten_protos::runtime::v1;
use serde_json::{Value, json};

use crate::cri::{Cri, spec};
use crate::hostile_images::{attempt, container, outside, untouched};
use crate::runner::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        layers_with_dots_and_links_out,
        entries_that_follow_links_out,
        entries_that_are_odd,
        layers_in_pieces_and_with_tails,
        layers_that_are_not_what_they_are_called,
        manifests_that_are_two_things,
        manifests_with_false_sizes_and_digests,
        manifests_without_an_end,
        credentials_sent_elsewhere,
        credentials_asked_for_by_a_redirect,
    ]
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

// --- layers

/// [S25] The names of a layer's entries.
fn layers_with_dots_and_links_out(cri: &Cri) {
    let dir = outside(cri);
    let image = images::hostile(&dir);
    cri.machine.world.registry.push(&image);
    let reference = cri.machine.world.registry.reference(&image);
    // Refused, or unpacked inside.
    if cri.pull(&reference).is_ok() {
        let config = container(cri, &reference, "one", &["true"]);
        let _ = attempt(cri, &cri.pod(), &config);
    }
    cri.remove_image(&reference);
    untouched(&dir);
}

/// Pulls an image of these layers above busybox and runs a shell in it; what that prints, or why there is none.
fn tried(cri: &Cri, name: &str, layers: Vec<Tarball>, script: &str) -> Result<String, String> {
    let layers = layers.into_iter().map(Layer::gzip).collect();
    let image = images::busybox_with(
        &format!("{}-{name}", cri.name),
        layers,
        json!({"Cmd": ["sh"]}),
    );
    shown(cri, name, &image, script)
}

fn shown(cri: &Cri, name: &str, image: &Image, script: &str) -> Result<String, String> {
    let registry = Tiny::serve(image.clone(), Trick::None);
    let reference = registry.reference();
    cri.machine.world.plain(&reference);
    let pulled = cri.pull(&reference).map_err(|e| e.message().to_owned())?;
    let config = container(cri, &reference, name, &["sh", "-c", script]);
    let output = attempt(cri, &cri.run(&cri.pod_config(name)), &config);
    cri.remove_image(&pulled);
    output
}

/// [S25] Each is refused, or does what it does inside.
fn entries_that_follow_links_out(cri: &Cri) {
    let dir = outside(cri);
    let place = dir.to_string_lossy().into_owned();
    let secret = format!("{place}/secret");
    let up = format!("{}{}", "../".repeat(20), &secret[1..]);
    let new = Tarball::new;
    let cases = [
        (
            "file",
            vec![new().symlink("l", &secret).file("l", 0o777, "owned")],
        ),
        (
            "dangling",
            vec![
                new()
                    .symlink("l", &format!("{place}/new"))
                    .file("l", 0o777, "owned"),
            ],
        ),
        (
            "folder",
            vec![
                new()
                    .symlink("l", &place)
                    .dir("l", 0o777)
                    .file("l/new", 0o644, "owned"),
            ],
        ),
        (
            "link",
            vec![new().symlink("l", &place).symlink("l/new", "/etc")],
        ),
        ("hard", vec![new().hardlink_as("h", &secret, 0o777)]),
        ("hard-up", vec![new().hardlink_as("h", &up, 0o777)]),
        (
            "hard-link",
            vec![
                new()
                    .symlink("l", &place)
                    .hardlink_as("h", "l/secret", 0o777),
            ],
        ),
        (
            "hard-of-link",
            vec![
                new()
                    .symlink("l", &secret)
                    .hardlink_as("h", "l", 0o777)
                    .file("h", 0o777, "owned"),
            ],
        ),
        (
            "whiteout",
            vec![new().symlink("l", &place), new().whiteout("l", "secret")],
        ),
        (
            "opaque",
            vec![new().symlink("l", &place), new().opaque("l")],
        ),
        (
            "dots",
            vec![
                new()
                    .file(".wh...", 0o644, "")
                    .file(".wh..", 0o644, "")
                    .file("bin/.wh...", 0o644, ""),
            ],
        ),
        (
            "swapped",
            vec![
                new()
                    .dir("d", 0o755)
                    .file("d/a", 0o644, "a")
                    .symlink("d", &place)
                    .file("d/new", 0o644, "owned"),
            ],
        ),
        (
            "swapped-above",
            vec![
                new().dir("d/e", 0o755),
                new().symlink("d", &place).file("d/e/new", 0o644, "owned"),
            ],
        ),
    ];
    for (name, layers) in cases {
        let script = format!("cat /l /h /l/secret {secret}");
        if let Ok(output) = tried(cri, name, layers, &script) {
            assert!(!output.contains("of the host"), "{name}: {output}");
        }
        untouched(&dir);
    }
}

/// [S25] What an entry is, it is in the container, and has no more power there than what is made there.
fn entries_that_are_odd(cri: &Cri) {
    let print = |cases: Vec<Tarball>, name: &str, script: &str| {
        tried(cri, name, cases, script).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    // The kernel's memory, with a name of its own.
    let tar = Tarball::new().char_device("memory", 1, 1);
    let script = "test -c /memory && echo there; head -c 1 /memory || echo refused";
    assert_eq!(print(vec![tar], "device", script), "there\nrefused\n");
    let tar = Tarball::new()
        .file("raise", 0o4755, "")
        .owner(7, 8)
        .file("group", 0o2711, "");
    let script = "stat -c '%a %u %g' /raise /group";
    assert_eq!(print(vec![tar], "modes", script), "4755 0 0\n2711 7 8\n");
    let names = [
        "-rf",
        "a\nb",
        "caf\u{e9}",
        "cafe\u{301}",
        "CAF\u{c9}",
        "\u{202e}txt",
        "a\\b",
        "*",
        "%s%n",
    ];
    let tar = names.iter().fold(Tarball::new(), |tar, name| {
        tar.file(&format!("odd/{name}"), 0o644, "")
    });
    let script = "for f in /odd/*; do echo; done | wc -l";
    assert_eq!(
        print(vec![tar], "names", script).trim(),
        names.len().to_string()
    );
    // Longer than a path may be for the kernel: refused or unpacked, and gone with its image.
    let deep = Tarball::new().file("d/".repeat(2500).trim_end_matches('/'), 0o644, "");
    let _ = tried(cri, "deep", vec![deep], "true");
    // Many of everything.
    let tar = (0..5000).fold(Tarball::new(), |tar, n| {
        tar.file(&format!("many/{n}"), 0o644, "")
    });
    let tar = (0..5000).fold(tar, |tar, n| {
        tar.whiteout("many", &n.to_string()).opaque("many")
    });
    match tried(cri, "many", vec![tar, Tarball::new()], "echo done") {
        Ok(output) => assert_eq!(output, "done\n"),
        // Stock containerd makes a file and its whiteout in one place.
        Err(error) => assert!(cri.is_reference(), "{error}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// [S25] One layer is one stream, in however many members; what comes after its end is not taken for something else.
fn layers_in_pieces_and_with_tails(cri: &Cri) {
    let tar = |text: &str| Tarball::new().file("word", 0o644, text).finish();
    let one = tar(&format!("one {}\n", cri.name));
    let (first, second) = one.split_at(one.len() / 2);
    let pieces = [gzip(first), gzip(b""), gzip(second)].concat();
    let two = [one.clone(), tar("two\n")].concat();
    let tail = [gzip(&one), b"not gzip".to_vec()].concat();
    let cut = gzip(&one)[..40].to_vec();
    for (name, packed, unpacked, good) in [
        ("pieces", pieces, &one, true),
        // A second archive behind the first one's end is no part of it.
        ("two", gzip(&two), &two, true),
        ("tail", tail, &one, false),
        ("cut", cut, &one, false),
    ] {
        let image = of_layer(cri, name, &packed, unpacked);
        match shown(cri, name, &image, "cat /word") {
            Ok(output) => assert_eq!(output, format!("one {}\n", cri.name), "{name}"),
            Err(error) => assert!(!good, "{name}: {error}"),
        }
    }
}

/// Busybox with a layer above it that is made of these bytes.
fn of_layer(cri: &Cri, name: &str, packed: &[u8], unpacked: &[u8]) -> Image {
    let mut image = images::busybox_with(
        &format!("{}-{name}", cri.name),
        Vec::new(),
        json!({"Cmd": ["sh"]}),
    );
    let mut config: Value = serde_json::from_slice(&image.blobs[&image.config()].bytes).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    diff_ids.push(json!(digest_of(unpacked)));
    let mut manifest = image.manifest();
    manifest["config"] = put(&mut image, OCI_CONFIG, config.to_string().as_bytes());
    let layer = put(&mut image, GZIP, packed);
    manifest["layers"].as_array_mut().unwrap().push(layer);
    rooted(image, OCI_MANIFEST, &manifest)
}

/// Adds a blob; gives its descriptor.
fn put(image: &mut Image, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest_of(bytes);
    let blob = Blob {
        media_type: media_type.to_owned(),
        bytes: bytes.to_vec(),
    };
    image.blobs.insert(digest.clone(), blob);
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// The image with another root.
fn rooted(mut image: Image, media_type: &str, document: &Value) -> Image {
    let root = put(&mut image, media_type, document.to_string().as_bytes());
    image.digest = root["digest"].as_str().unwrap().to_owned();
    media_type.clone_into(&mut image.media_type);
    image
}

// --- manifests

/// [S26] Bytes that do not have the digest they were asked for by.
fn layers_that_are_not_what_they_are_called(cri: &Cri) {
    let image = images::unique(&cri.name);
    let registry = Tiny::serve(image.clone(), Trick::WrongBytes);
    let reference = registry.reference();
    cri.machine.world.plain(&reference);
    let error = cri.pull(&reference).unwrap_err();
    assert!(error.message().contains("digest"), "{error}");
    assert!(cri.image(&reference).is_none());
}

/// A pull that must fail, at once and without a trace.
fn is_refused(cri: &Cri, name: &str, image: Image) {
    let registry = Tiny::serve(image, Trick::None);
    let reference = registry.reference();
    cri.machine.world.plain(&reference);
    match cri.pull(&reference) {
        Err(error) => {
            assert!(cri.image(&reference).is_none(), "{name}: {error}");
        }
        Ok(id) => {
            assert!(cri.is_reference(), "{name} became {id}");
            println!("stock containerd takes it: {name}");
            cri.remove_image(&id);
        }
    }
}

/// [S26] Who reads one half and who reads the other must not see different images.
fn manifests_that_are_two_things(cri: &Cri) {
    let image = || images::unique(&cri.name);
    let manifest = image().manifest();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": image().digest, "size": image().blobs[&image().digest].bytes.len(),
    }]});
    let mut both = manifest.clone();
    both["manifests"] = index["manifests"].clone();
    let mut index_with_layers = index.clone();
    index_with_layers["layers"] = manifest["layers"].clone();
    index_with_layers["config"] = manifest["config"].clone();
    let mut lying = manifest.clone();
    lying["mediaType"] = json!(OCI_INDEX);
    for (name, kind, document) in [
        ("a manifest with manifests", OCI_MANIFEST, &both),
        ("an index with layers", OCI_INDEX, &index_with_layers),
        ("a manifest that says it is an index", OCI_MANIFEST, &lying),
        ("a manifest served as an index", OCI_INDEX, &manifest),
        ("an index served as a manifest", OCI_MANIFEST, &index),
        ("a list", OCI_MANIFEST, &json!([])),
        ("nothing", OCI_MANIFEST, &json!({})),
        ("a page", "text/html", &json!("<html>")),
    ] {
        if cri.is_reference() && kind == "text/html" {
            println!("stock containerd keeps a record that it does not show");
            continue;
        }
        is_refused(cri, name, rooted(image(), kind, document));
    }
}

/// [S26] A descriptor is an address: of a form that is known, and of so many bytes.
fn manifests_with_false_sizes_and_digests(cri: &Cri) {
    let image = || images::unique(&cri.name);
    let mut documents = Vec::new();
    for part in ["/config", "/layers/0"] {
        for (key, value) in [
            ("size", json!(-1)),
            ("size", json!(1)),
            ("size", json!(1u64 << 62)),
            ("size", json!("12")),
            ("digest", json!("sha256:../../../../etc/passwd")),
            ("digest", json!("sha256:")),
            ("digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
            ("digest", json!("../../../etc/passwd")),
            ("digest", json!(format!("sha256:{}", "G".repeat(64)))),
            ("digest", json!(7)),
        ] {
            let mut manifest = image().manifest();
            let name = format!("{part} with {key} {value}");
            manifest.pointer_mut(part).unwrap()[key] = value;
            documents.push((name, manifest));
        }
    }
    for (name, manifest) in documents {
        is_refused(cri, &name, rooted(image(), OCI_MANIFEST, &manifest));
    }
    // The configuration is read after the layers: it is hostile as well.
    for text in [
        "",
        "{",
        "[]",
        "{\"rootfs\": 7}",
        "{\"rootfs\": {\"type\": \"layers\", \"diff_ids\": [\"x\"]}}",
    ] {
        let mut image = image();
        let mut manifest = image.manifest();
        manifest["config"] = put(&mut image, OCI_CONFIG, text.as_bytes());
        is_refused(
            cri,
            &format!("config {text:?}"),
            rooted(image, OCI_MANIFEST, &manifest),
        );
    }
}

/// [S26] A small document may name much.
fn manifests_without_an_end(cri: &Cri) {
    let layer = || Layer::gzip(Tarball::new().file("name", 0o644, &cri.name));
    let mut deep = Recipe::new("deep").layer(layer()).build();
    let mut root = json!({"mediaType": OCI_MANIFEST, "digest": deep.digest, "size": deep.blobs[&deep.digest].bytes.len()});
    for _ in 0..100 {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]});
        root = put(&mut deep, OCI_INDEX, index.to_string().as_bytes());
    }
    root["digest"]
        .as_str()
        .unwrap()
        .clone_into(&mut deep.digest);
    OCI_INDEX.clone_into(&mut deep.media_type);
    is_refused(cri, "a hundred indexes in each other", deep);
    let wide = Recipe::new("wide").layer(layer()).build();
    let mut manifest = wide.manifest();
    let one = manifest["layers"][0].clone();
    manifest["layers"] = Value::Array(vec![one; 12_000]);
    is_refused(
        cri,
        "twelve thousand layers",
        rooted(wide, OCI_MANIFEST, &manifest),
    );
}

// --- registries

/// [S31] A name and a password go to the registry that they are for.
fn credentials_sent_elsewhere(cri: &Cri) {
    let registry = Tiny::serve(images::unique(&cri.name), Trick::Basic);
    let reference = registry.reference();
    cri.machine.world.plain(&reference);
    let pull = |server: &str, password: &str| {
        let request = v1::PullImageRequest {
            image: Some(spec(&reference)),
            auth: Some(v1::AuthConfig {
                username: "user".into(),
                password: password.into(),
                server_address: server.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        crate::image_rpc!(cri, pull_image(request))
    };
    let host = reference.split('/').next().unwrap();
    let error = pull("registry.example.com", "secret").unwrap_err();
    assert!(!error.message().contains("secret"), "{error}");
    // Stock containerd wants a URL here.
    let host = &format!("http://{host}");
    let error = pull(host, "wrong-password").unwrap_err();
    assert!(!error.message().contains("wrong-password"), "{error}");
    let id = pull(host, "secret").unwrap().image_ref;
    cri.remove_image(&id);
    let log = cri.machine.daemon.log();
    assert!(!log.contains("wrong-password"), "a password is in the log");
}

/// [S31] Where a registry sends a client to, nobody gets what was meant for the registry.
fn credentials_asked_for_by_a_redirect(cri: &Cri) {
    let image = images::unique(&cri.name);
    let elsewhere = Tiny::serve(image.clone(), Trick::Greedy);
    let registry = Tiny::serve(image, Trick::BasicElsewhere(elsewhere.address()));
    let reference = registry.reference();
    cri.machine.world.plain(&reference);
    let request = v1::PullImageRequest {
        image: Some(spec(&reference)),
        auth: Some(v1::AuthConfig {
            username: "user".into(),
            password: "secret".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let error = crate::image_rpc!(cri, pull_image(request)).unwrap_err();
    assert!(!error.message().contains("secret"), "{error}");
    assert!(
        registry
            .credentials()
            .iter()
            .any(|c| c.starts_with("Basic "))
    );
    let asked = elsewhere.requests();
    assert!(!asked.is_empty(), "{error}");
    if cri.is_reference() {
        println!("to stock containerd another port is the same host");
        return;
    }
    assert_eq!(elsewhere.credentials(), [""; 0], "{asked:?}");
}
