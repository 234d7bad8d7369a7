//! The limits that the docs of `corten-cri` list, as far as a client can reach them: at the limit, and one beyond.

use corten_integration::images::{self, Layer};
use corten_integration::peers;
use corten_integration::process::Cmd;
use corten_integration::registry::{Tiny, Trick};
use corten_integration::tarball::Tarball;
use corten_protos::runtime::v1;
use serde_json::json;
use tonic::Code;

use crate::cri::{Cri, refused};
use crate::runner::Test;
use crate::{rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        a_message,
        the_output_of_a_command,
        the_line_of_a_log,
        the_users_of_an_image,
        a_manifest,
        a_label,
        the_head_of_a_request,
    ];
    all.extend(tests![unused_tokens].into_iter().map(|t| t.own_daemon("")));
    all
}

/// The longest message that daemons and clients of the CRI take.
const MESSAGE: usize = 16 << 20;

fn a_message(cri: &Cri) {
    // A tag, four bytes of length, the text.
    let request = |length: usize| v1::VersionRequest {
        version: "x".repeat(length - 5),
    };
    for length in [MESSAGE - 1, MESSAGE] {
        let request = request(length);
        assert_eq!(prost::Message::encoded_len(&request), length);
        rpc!(cri, version(request)).unwrap();
    }
    let error = rpc!(cri, version(request(MESSAGE + 1))).unwrap_err();
    // gRPC libraries differ in the code for it.
    let expected = if cri.is_reference() {
        Code::ResourceExhausted
    } else {
        Code::OutOfRange
    };
    assert_eq!(error.code(), expected, "{error}");
    rpc!(cri, version(v1::VersionRequest::default())).unwrap();
}

fn the_output_of_a_command(cri: &Cri) {
    /// What Corten answers with at most, so that a client takes the message.
    const ANSWER: usize = MESSAGE - 64;
    let (_, id) = cri.sleeper();
    let output = |length: usize, more: &str| {
        let script = format!("head -c {length} /dev/zero; {more}");
        let request = v1::ExecSyncRequest {
            container_id: id.clone(),
            cmd: vec!["sh".into(), "-c".into(), script],
            timeout: 0,
        };
        // As the kubelet does.
        let mut client = cri.runtime().max_decoding_message_size(MESSAGE);
        cri.wait(client.exec_sync(request))
    };
    for length in [ANSWER - 1, ANSWER] {
        let answer = output(length, "exit 3").unwrap();
        assert_eq!((answer.stdout.len(), answer.exit_code), (length, 3));
    }
    if cri.is_reference() {
        println!("stock containerd's answer to more than that fails as a whole");
        assert!(output(MESSAGE + 1, "").is_err());
        return;
    }
    for length in [ANSWER + 1, MESSAGE, MESSAGE + 1] {
        let answer = output(length, "exit 3").unwrap();
        assert_eq!((answer.stdout.len(), answer.exit_code), (ANSWER, 3));
    }
    let answer = output(MESSAGE + 1, "echo last >&2").unwrap();
    assert_eq!(answer.stderr, b"last\n");
}

fn the_line_of_a_log(cri: &Cri) {
    const LINE: usize = 16_384;
    let pod = cri.pod();
    let script = format!(
        "for n in {} {LINE} {} {}; do head -c $n /dev/zero | tr '\\0' x; echo; done",
        LINE - 1,
        LINE + 1,
        2 * LINE + 1
    );
    let config = cri.container_config("long", &["sh", "-c", &script]);
    let (ended, _) = cri.outcome(&pod, &config);
    assert_eq!(ended.exit_code, 0);
    let log = cri.log(&config.log_path);
    let parts: Vec<_> = log
        .lines()
        .map(|l| {
            let (_, rest) = l.split_once(" stdout ").expect("a stream");
            (&rest[..1], rest.len() - 2)
        })
        .collect();
    let expected = [
        ("F", LINE - 1),
        ("F", LINE),
        ("P", LINE),
        ("F", 1),
        ("P", LINE),
        ("P", LINE),
        ("F", 1),
    ];
    assert_eq!(parts, expected);
}

fn the_users_of_an_image(cri: &Cri) {
    const FILE: usize = 10 << 20;
    let pod = cri.pod();
    for (length, fits) in [(FILE, true), (FILE + 1, false)] {
        let last = "\nlast:x:4321:4321::/:/bin/sh\n";
        // Stock containerd reads no line of more than 64 KiB.
        let mut text = format!("#{}\n", "-".repeat(1022)).repeat(length / 1024);
        text.truncate(length - last.len());
        text += last;
        let layer = Layer::gzip(Tarball::new().file("etc/passwd", 0o644, text));
        let name = format!("users{}", usize::from(fits));
        let image = images::busybox_with(&name, vec![layer], json!({"Cmd": ["id", "-u"]}));
        let reference = cri.machine.world.push(&image);
        cri.pull(&reference).unwrap();
        let mut config = cri.container_config(&name, &["id", "-u"]);
        config.image = Some(crate::cri::spec(&reference));
        let linux = config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().run_as_username = "last".into();
        if fits {
            assert_eq!(cri.outcome(&pod, &config).1, "4321\n");
        } else {
            let error = cri.create(&pod, &config).unwrap_err();
            assert!(error.message().contains("etc/passwd"), "{error}");
        }
    }
}

fn a_manifest(cri: &Cri) {
    const DOCUMENT: usize = 4 << 20;
    if cri.is_reference() {
        println!("stock containerd takes longer ones");
        return;
    }
    for (length, fits) in [
        (DOCUMENT - 1, true),
        (DOCUMENT, true),
        (DOCUMENT + 1, false),
    ] {
        let layer = || Layer::gzip(Tarball::new().file("name", 0o644, &cri.name));
        let of = |padding: usize| {
            images::Recipe::new("manifest")
                .annotation(&"x".repeat(padding))
                .layer(layer())
                .build()
        };
        let bare = of(0);
        let image = of(length - bare.blobs[&bare.digest].bytes.len());
        assert_eq!(image.blobs[&image.digest].bytes.len(), length);
        let registry = Tiny::serve(image, Trick::None);
        let reference = registry.reference();
        cri.machine.world.plain(&reference);
        let answer = cri.pull(&reference);
        if fits {
            cri.remove_image(&answer.unwrap());
        } else {
            let error = answer.unwrap_err();
            assert!(error.message().contains("4194305"), "{error}");
        }
    }
}

fn a_label(cri: &Cri) {
    const LABEL: usize = 4096;
    let pod = cri.pod();
    let create = |name: &str, length: usize| {
        let mut config = cri.container_config(name, &["true"]);
        config.labels.insert("k".into(), "v".repeat(length - 1));
        cri.create(&pod, &config)
    };
    create("one-less", LABEL - 1).unwrap();
    create("fits", LABEL).unwrap();
    refused(create("long", LABEL + 1), Code::InvalidArgument, "4096");
}

fn the_head_of_a_request(cri: &Cri) {
    const HEAD: usize = 64 << 10;
    let (_, id) = cri.sleeper();
    let request = v1::ExecRequest {
        container_id: id,
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let url = || rpc!(cri, exec(request.clone())).unwrap().url;
    // As if each token were used: an upgrade is missed in a head that is read, and nothing in one that is too long.
    let answer = |length: usize| {
        let url = url();
        let host = url.split('/').nth(2).expect("a URL has a host");
        let path = url.splitn(4, '/').nth(3).expect("a URL has a path");
        let bare = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nX-Padding: \r\n\r\n");
        let padding = format!("X-Padding: {}\r\n\r\n", "x".repeat(length - bare.len()));
        crate::streams::raw(&url, &bare.replace("X-Padding: \r\n\r\n", &padding))
    };
    if cri.is_reference() {
        // One of a megabyte and 4 KiB more or less.
        assert!(!answer(1 << 20).contains(" 431"));
        let answer = answer(2 << 20);
        assert!(answer.contains(" 431") || answer.is_empty(), "{answer}");
        return;
    }
    for length in [HEAD - 1, HEAD] {
        assert!(answer(length).contains(" 400"), "{length}");
    }
    for length in [HEAD + 1, 2 << 20] {
        let answer = answer(length);
        // The connection may be reset before the answer is read.
        assert!(answer.contains(" 431") || answer.is_empty(), "{answer}");
    }
}

fn unused_tokens(cri: &Cri) {
    const TOKENS: usize = 1000;
    let (_, id) = cri.sleeper();
    let url = || {
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd: ["echo", "used"].map(str::to_owned).into(),
            stdout: true,
            ..Default::default()
        };
        rpc!(cri, exec(request)).map(|a| a.url)
    };
    let mut last = String::new();
    for number in 0..TOKENS {
        last = url().unwrap_or_else(|e| panic!("token {number}: {e}"));
    }
    // Stock containerd has no code of gRPC for it.
    let code = if cri.is_reference() {
        Code::Unknown
    } else {
        Code::ResourceExhausted
    };
    let error = url().unwrap_err();
    assert!(
        error.code() == code || error.code() == Code::ResourceExhausted,
        "{error}"
    );
    // One that is used makes room for another.
    let client = Cmd::new(peers::reference("streams")).words("run -stderr=false -transport spdy");
    client.arg(&last).prints("used\n");
    url().unwrap();
    assert!(url().is_err());
}
