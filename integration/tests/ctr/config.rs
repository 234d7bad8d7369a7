//! Mistakes in the config, the keys that change what the daemon does, and clients of other languages.

use std::fs;
use std::process::Stdio;

use corten_integration::case::Case;
use corten_integration::daemon::{Daemon, Setup};
use corten_integration::images;
use corten_integration::process::{Cmd, program};
use corten_integration::runner::Test;
use corten_integration::tests;

use crate::daemon::refuses;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        warns_of_an_unknown_key,
        names_file_line_and_key_of_a_wrong_value,
        takes_no_larger_messages_than_configured,
        finds_programs_that_were_installed,
        runs_a_hook_with_what_it_knows_of_a_container,
        answers_clients_of_python,
    ]
}

fn ctr(c: &Case, daemon: &Daemon, words: &str) -> Cmd {
    let cmd = c
        .client
        .command(&daemon.socket(), "config", &daemon.base.join("t"));
    cmd.words(words)
}

/// The line of the config where `text` stands.
fn line(daemon: &Daemon, text: &str) -> usize {
    let config = fs::read_to_string(daemon.config()).unwrap();
    config.lines().position(|l| l.contains(text)).unwrap() + 1
}

fn warns_of_an_unknown_key(c: &Case) {
    let extra = "no_such_grpc_key = 1\n[no_such_table]\nx = 1\n\
                 [plugins.'io.containerd.gc.v1.scheduler']\nno_such_threshold = 1\n\
                 schedule_delay = \"10ms\"\n";
    let daemon = Setup::new(c.daemon.kind).extra(extra).start();
    ctr(c, &daemon, "images ls").ok();
    let log = daemon.log();
    assert!(log.contains("no_such_table"), "{log}");
    if c.is_reference() {
        println!("Corten only: stock does not look into the tables of plugins");
    } else {
        for key in ["no_such_grpc_key", "no_such_threshold"] {
            let at = format!("c.toml: line {}", line(&daemon, key));
            let told = |l: &str| l.contains("ignoring unknown key") && l.contains(key);
            let told = log.lines().find(|l| told(l));
            assert!(told.is_some_and(|l| l.contains(&at)), "{at}: {told:?}");
        }
    }
    assert_eq!(daemon.stop(), 0);
}

fn names_file_line_and_key_of_a_wrong_value(c: &Case) {
    let config = "version = 3\nroot = \"BASE/r\"\nstate = \"BASE/s\"\n\
                  [grpc]\naddress = \"BASE/c.sock\"\n\
                  [plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_downloads = \"many\"\n";
    let said = refuses(c, config);
    if c.is_reference() {
        println!("Corten only: stock names its own field, not file, line and key");
        assert!(said.contains("MaxConcurrentDownloads"), "{said}");
        return;
    }
    assert!(said.contains("c.toml: line 7: invalid type"), "{said}");
    assert!(
        said.contains("`max_concurrent_downloads = \"many\"`"),
        "{said}"
    );
    let said = refuses(c, &config.replace("\"BASE/c.sock\"", "7"));
    assert!(said.contains("c.toml: line 5: "), "{said}");
}

fn takes_no_larger_messages_than_configured(c: &Case) {
    // A key of the [grpc] table that the fixture ends with.
    let daemon = Setup::new(c.daemon.kind)
        .extra("max_recv_message_size = 20000\nmax_send_message_size = 30000000\n")
        .start();
    let content = |size: usize| {
        let ingest = ctr(c, &daemon, "content ingest").arg(format!("r{size}"));
        ingest.stdin(vec![b'x'; size]).run()
    };
    content(10_000).expect_code(0);
    let label = "x".repeat(4000);
    let labels: Vec<String> = (0..8).map(|n| format!("l{n}={label}")).collect();
    let create = ctr(c, &daemon, "namespaces create many").args(&labels[..2]);
    create.ok();
    let create = ctr(c, &daemon, "namespaces create more").args(&labels);
    let done = create.run();
    assert_ne!(done.code(), 0, "{}", done.report());
    ctr(c, &daemon, "namespaces rm many").ok();
    assert_eq!(daemon.stop(), 0);
}

fn finds_programs_that_were_installed(c: &Case) {
    let opt = c.file("opt");
    let extra = format!(
        "[plugins.'io.containerd.internal.v1.opt']\npath = \"{}\"\n",
        opt.display()
    );
    let daemon = Setup::new(c.daemon.kind).extra(&extra).start();
    let image = images::busybox();
    ctr(c, &daemon, "images import").arg(image.archive()).ok();
    // No --path: the daemon is asked for it.
    ctr(c, &daemon, "install").arg(&image.name).ok();
    assert!(opt.join("bin/busybox").exists(), "installed below {opt:?}");
    let shim = opt.join("bin/containerd-shim-installed-v1");
    program(&shim, "#!/bin/sh\necho found in $PATH >&2; exit 3\n");
    let run = ctr(c, &daemon, "run --runtime io.containerd.installed.v1");
    let done = run.args([&image.name, "a", "true"]).run();
    let found = format!("found in {}", opt.join("bin").display());
    assert!(done.err().contains(&found), "{}", done.report());
    let _ = ctr(c, &daemon, "containers rm a").run();
    assert_eq!(daemon.stop(), 0);
}

fn runs_a_hook_with_what_it_knows_of_a_container(c: &Case) {
    let bundle = c.file("bundle");
    fs::create_dir_all(&bundle).unwrap();
    fs::write(bundle.join("config.json"), r#"{"root":{"path":"rootfs"}}"#).unwrap();
    let state = format!(
        r#"{{"ociVersion":"1.0.2","id":"c1","status":"created","pid":42,"bundle":"{}",
            "annotations":{{"a.b/c":"seen"}}}}"#,
        bundle.display()
    );
    let hook = |args: &[&str]| {
        let program = c.daemon.kind.program();
        let cmd = Cmd::new(program).arg("oci-hook").args(args);
        cmd.env("GREETING", "{{id}}!").stdin(state.clone()).run()
    };
    let template = "{{id}} {{pid}} {{annotation \"a.b/c\"}} {{rootfs}} {{bundle}}";
    let b = bundle.display();
    let done = hook(&["/bin/echo", template]);
    done.expect_code(0);
    assert_eq!(done.out(), format!("c1 42 seen {b}/rootfs {b}\n"));
    // The program's own flags and exit code; the environment is filled in too.
    let done = hook(&["/bin/sh", "-c", "echo $GREETING; exit 5"]);
    assert_eq!(done.out(), "c1!\n", "{}", done.report());
    done.expect_code(5);
    let done = hook(&["/bin/echo", "{{nonsense}}"]);
    assert_ne!(done.code(), 0, "{}", done.report());
    assert!(done.err().contains("nonsense"), "{}", done.report());
}

/// A Python with grpcio: the one of `CORTEN_PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("CORTEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut probe = std::process::Command::new(&python);
    probe.args(["-c", "import grpc"]).stderr(Stdio::null());
    probe.status().is_ok_and(|s| s.success()).then_some(python)
}

const PYTHON: &str = r#"
import grpc, sys
channel = grpc.insecure_channel("unix://" + sys.argv[1])
same = lambda b: b
def call(method, request=b"", metadata=()):
    stub = channel.unary_unary(method, request_serializer=same, response_deserializer=same)
    return stub(request, timeout=10, metadata=metadata)
print(call("/containerd.services.version.v1.Version/Version"))
print(call("/containerd.services.namespaces.v1.Namespaces/List"))
call("/containerd.services.images.v1.Images/List", metadata=(("containerd-namespace", sys.argv[2]),))
try:
    call("/containerd.services.images.v1.Images/List")
except grpc.RpcError as e:
    print(e.code().name, e.details())
"#;

fn answers_clients_of_python(c: &Case) {
    let Some(python) = python() else {
        println!("not run: no Python with grpcio (`pip install grpcio`, CORTEN_PYTHON names it)");
        return;
    };
    let script = c.file("client.py");
    fs::write(&script, PYTHON).unwrap();
    let out = Cmd::new(python)
        .arg(script)
        .arg(c.daemon.socket())
        .arg(&c.namespace)
        .ok();
    assert!(
        out.contains("FAILED_PRECONDITION namespace is required"),
        "{out}"
    );
    assert!(out.starts_with("b'"), "{out}");
}
