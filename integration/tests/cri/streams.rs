//! Exec, attach and port-forward, over SPDY and WebSocket, by Kubernetes' own client; tokens by hand.

use std::io::{Read, Write};
use std::net::TcpStream;

use corten_integration::process::{Cmd, DEADLINE, Running, eventually};
use corten_protos::runtime::v1;
use rustix::process::Signal;
use tonic::{Code, Status};

use crate::cri::{Cri, Pod, fails, refused};
use crate::runner::Test;
use crate::{rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        runs_a_command_over_every_protocol,
        feeds_a_command_to_its_end,
        carries_megabytes_both_ways,
        gives_a_command_a_terminal_that_grows,
        says_that_a_command_does_not_run,
        leaves_a_command_without_streams_of_the_client,
        attaches_to_a_container,
        attaches_to_a_terminal,
        attaches_several_clients,
        closes_standard_input_once,
        forwards_ports,
        forwards_ports_of_the_host,
        uses_a_token_once,
        refuses_streams_that_do_not_go_together,
    ];
    all.extend(
        tests![speaks_tls_when_told_to]
            .into_iter()
            .map(|t| t.own_daemon(TLS)),
    );
    all
}

const TLS: &str = "[plugins.'io.containerd.grpc.v1.cri']\nenable_tls_streaming = true\n";

/// The flags for every protocol that kubectl has spoken, and whether the client can end standard input in it.
const PROTOCOLS: [(&str, bool); 6] = [
    ("-transport spdy", true),
    ("-transport spdy -protocols v4.channel.k8s.io", true),
    ("-transport spdy -protocols v3.channel.k8s.io", true),
    ("-transport spdy -protocols v2.channel.k8s.io", true),
    ("-transport websocket -protocols v5.channel.k8s.io", true),
    ("-transport websocket -protocols v4.channel.k8s.io", false),
];

/// The protocols that the daemon under test speaks: stock has no v5 at its own server.
fn protocols(cri: &Cri) -> Vec<(&'static str, bool)> {
    let all = PROTOCOLS.into_iter();
    all.filter(|(flags, _)| !(cri.is_reference() && flags.contains("v5")))
        .collect()
}

fn exec_url(cri: &Cri, id: &str, argv: &[&str], stdin: bool, tty: bool) -> Result<String, Status> {
    let request = v1::ExecRequest {
        container_id: id.into(),
        cmd: argv.iter().map(|&a| a.to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    rpc!(cri, exec(request)).map(|a| a.url)
}

/// A client that runs `argv` in a container.
fn exec(cri: &Cri, flags: &str, id: &str, argv: &[&str]) -> Cmd {
    let has = |flag: &str| flags.split(' ').any(|f| f == flag);
    let url = exec_url(cri, id, argv, has("-stdin"), has("-tty")).unwrap();
    cri.streams("run").words(flags).arg(url)
}

fn attach(cri: &Cri, flags: &str, id: &str, stdin: bool, tty: bool) -> Cmd {
    let request = v1::AttachRequest {
        container_id: id.into(),
        stdin,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let url = rpc!(cri, attach(request)).unwrap().url;
    let mut words = format!("run {flags}");
    if stdin {
        words += " -stdin";
    }
    if tty {
        words += " -tty";
    }
    cri.streams(&words).arg(url)
}

fn runs_a_command_over_every_protocol(cri: &Cri) {
    let (_, id) = cri.sleeper();
    for (flags, _) in protocols(cri) {
        let done = exec(cri, flags, &id, &["sh", "-c", "echo out; echo err >&2"]).run();
        done.expect_code(0);
        assert_eq!((&*done.out(), &*done.err()), ("out\n", "err\n"), "{flags}");
        let done = exec(cri, flags, &id, &["sh", "-c", "exit 42"]).run();
        // Before v4 an exit code was no more than a sentence.
        if flags.contains("v2") || flags.contains("v3") {
            done.expect_code(99);
            assert!(done.err().contains("42"), "{}", done.err());
        } else {
            done.expect_code(42);
        }
    }
}

fn feeds_a_command_to_its_end(cri: &Cri) {
    let (_, id) = cri.sleeper();
    for (flags, ends) in protocols(cri) {
        if ends {
            exec(cri, &format!("{flags} -stdin"), &id, &["cat"])
                .stdin("all of it")
                .prints("all of it");
        }
        // Who reads a part only is not waited for.
        exec(cri, &format!("{flags} -stdin"), &id, &["head", "-c", "3"])
            .stdin("all of it")
            .prints("all");
    }
}

fn carries_megabytes_both_ways(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let all: Vec<u8> = (0..4u32 << 18).flat_map(u32::to_le_bytes).collect();
    for (flags, _) in protocols(cri)
        .into_iter()
        .filter(|(flags, ends)| *ends && !flags.contains("v2") && !flags.contains("v3"))
    {
        let done = exec(cri, &format!("{flags} -stdin"), &id, &["cat"])
            .stdin(all.clone())
            .run();
        done.expect_code(0);
        assert!(
            done.stdout == all,
            "{flags}: {} of {} bytes",
            done.stdout.len(),
            all.len()
        );
    }
}

fn gives_a_command_a_terminal_that_grows(cri: &Cri) {
    let (_, id) = cri.sleeper();
    // The first size comes when the command runs already.
    let script = "until [ \"$(stty size 2>/dev/null)\" = '24 80' ]; do sleep 0.05; done; echo small; \
                  until [ \"$(stty size 2>/dev/null)\" = '30 100' ]; do sleep 0.05; done; echo large; exit 7";
    for (flags, _) in protocols(cri) {
        // Sizes came with v3.
        if flags.contains("v2") {
            continue;
        }
        let flags = format!("{flags} -stdin -tty -sizes 80x24,100x30");
        let mut client = exec(cri, &flags, &id, &["sh", "-c", script])
            .stdin("")
            .start();
        client.wait_output("small");
        client.signal(Signal::USR1);
        client.wait_output("large");
        let done = client.ended();
        let before_v4 = flags.contains("v3");
        done.expect_code(if before_v4 { 99 } else { 7 });
    }
    let done = exec(
        cri,
        "-transport spdy -tty",
        &id,
        &["sh", "-c", "echo $TERM; echo err >&2"],
    )
    .run();
    assert_eq!(done.out(), "xterm\r\nerr\r\n");
}

fn says_that_a_command_does_not_run(cri: &Cri) {
    let (_, id) = cri.sleeper();
    for (flags, _) in protocols(cri) {
        let done = exec(cri, flags, &id, &["/no/such/program"]).run();
        assert_ne!(done.code(), 0, "{flags}");
        assert!(
            done.err().contains("no such file or directory"),
            "{flags}: {}",
            done.report()
        );
    }
}

fn leaves_a_command_without_streams_of_the_client(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let request = v1::ExecRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", "cat; echo err >&2; echo out"]
            .map(str::to_owned)
            .into(),
        stdout: true,
        ..Default::default()
    };
    for transport in ["spdy", "websocket"] {
        let url = rpc!(cri, exec(request.clone())).unwrap().url;
        let protocol = if transport == "websocket" && cri.is_reference() {
            "-protocols v4.channel.k8s.io"
        } else {
            ""
        };
        let words = format!("run -stderr=false -transport {transport} {protocol}");
        cri.streams(&words).arg(url).prints("out\n");
    }
}

/// Waits until a client is attached: what it types comes back.
fn type_until_heard(client: &mut Running, word: &str) {
    client.send(format!("{word}\n").as_bytes());
    client.wait_output(word);
}

fn attaches_to_a_container(cri: &Cri) {
    let pod = cri.pod();
    for (number, (flags, _)) in protocols(cri).into_iter().enumerate() {
        let mut config = cri.container_config(
            &format!("c{number}"),
            &[
                "sh",
                "-c",
                "while read l; do echo got $l; echo err $l >&2; done; exit 5",
            ],
        );
        config.stdin = true;
        let id = cri.started(&pod, &config);
        let mut client = attach(cri, flags, &id, true, false).stdin("").start();
        type_until_heard(&mut client, "one");
        client.wait_output("got one\n");
        // Who goes away leaves the container running.
        client.kill();
        let mut client = attach(cri, flags, &id, true, false).stdin("").start();
        client.send(b"two\n");
        client.wait_output("got two\n");
        cri.stop(&id, 0);
        let _ = client.ended();
        let log = cri.logged(&config.log_path);
        assert_eq!(log, "got one\ngot two\n", "{flags}");
    }
}

fn attaches_to_a_terminal(cri: &Cri) {
    let pod = cri.pod();
    let mut config = cri.container_config("tty", &["sh"]);
    config.stdin = true;
    config.tty = true;
    let id = cri.started(&pod, &config);
    let protocol = if cri.is_reference() { "v4" } else { "v5" };
    for flags in [
        "-transport spdy",
        &format!("-transport websocket -protocols {protocol}.channel.k8s.io"),
    ] {
        let flags = format!("{flags} -sizes 80x24,111x33");
        let mut client = attach(cri, &flags, &id, true, true).stdin("").start();
        client.send(b"echo $((40 + 2)) there\n");
        client.wait_output("42 there");
        client.signal(Signal::USR1);
        let grown = eventually(DEADLINE, || {
            client.send(b"stty size\n");
            client.output().contains("33 111").then_some(())
        });
        assert!(grown.is_some(), "{}", client.output());
        client.kill();
    }
}

fn attaches_several_clients(cri: &Cri) {
    let pod = cri.pod();
    let mut config =
        cri.container_config("one", &["sh", "-c", "while read l; do echo got $l; done"]);
    config.stdin = true;
    let id = cri.started(&pod, &config);
    let mut types = attach(cri, "-transport spdy", &id, true, false)
        .stdin("")
        .start();
    type_until_heard(&mut types, "one");
    let mut listeners: Vec<_> = (0..3)
        .map(|_| attach(cri, "-transport spdy", &id, false, false).start())
        .collect();
    // Nothing tells when a listener is there but what it hears.
    for listener in &mut listeners {
        let heard = eventually(DEADLINE, || {
            types.send(b"two\n");
            listener.output().contains("got two").then_some(())
        });
        assert!(heard.is_some(), "{}", listener.output());
    }
    types.send(b"last\n");
    for listener in &mut listeners {
        listener.wait_output("got last\n");
    }
    cri.stop(&id, 0);
    for listener in &mut listeners {
        let _ = listener.ended();
    }
}

fn closes_standard_input_once(cri: &Cri) {
    let pod = cri.pod();
    let mut config = cri.container_config("once", &["sh", "-c", "cat; echo end; exit 6"]);
    config.stdin = true;
    config.stdin_once = true;
    let id = cri.started(&pod, &config);
    let done = attach(cri, "-transport spdy", &id, true, false)
        .stdin("all of it\n")
        .run();
    assert_eq!(done.out(), "all of it\nend\n");
    assert_eq!(cri.ended(&id).exit_code, 6);
}

/// A pod with a server that sends back what it gets.
fn echoing(cri: &Cri, config: &v1::PodSandboxConfig, port: &str) -> Pod {
    let pod = cri.run(config);
    let server = cri.container_config(
        "server",
        &[
            "sh",
            "-c",
            &format!("echo ready; exec nc -ll -p {port} -e cat"),
        ],
    );
    cri.started(&pod, &server);
    eventually(DEADLINE, || {
        (cri.logged("server.log") == "ready\n").then_some(())
    })
    .expect("it is ready");
    pod
}

fn forward(cri: &Cri, transport: &str, pod: &Pod, ports: &[i32]) -> Running {
    let request = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: ports.to_vec(),
    };
    let url = rpc!(cri, port_forward(request)).unwrap().url;
    let words = format!("forward -transport {transport}");
    let client = cri
        .streams(&words)
        .arg(url)
        .args(ports.iter().map(ToString::to_string));
    let mut client = client.stdin("").start();
    client.wait_output_for(|seen| seen.lines().count() == ports.len(), "of its ports");
    client
}

/// Sends through a port and gives what comes back, until the other side ends.
fn through(port: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(bytes).ok()?;
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).ok()?;
    (!back.is_empty()).then_some(back)
}

/// What forwards in the daemon under test: stock's own server does not take SPDY in a WebSocket.
fn forwarders(cri: &Cri) -> &'static [&'static str] {
    if cri.is_reference() {
        &["spdy"]
    } else {
        &["spdy", "websocket"]
    }
}

fn forwards_ports(cri: &Cri) {
    let pod = echoing(cri, &cri.cni_config("server"), "8080");
    let all: Vec<u8> = (0..1u32 << 16).flat_map(u32::to_le_bytes).collect();
    for transport in forwarders(cri) {
        // Gone at the end of the loop: an error of one port may have ended it before.
        let client = forward(cri, transport, &pod, &[8080, 8081]);
        let seen = client.output();
        let ports: Vec<_> = seen.lines().collect();
        // The server may not listen yet.
        let back = eventually(DEADLINE, || through(ports[0], b"hello"));
        assert_eq!(back.as_deref(), Some(b"hello".as_slice()), "{transport}");
        std::thread::scope(|scope| {
            let many: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| through(ports[0], &all)))
                .collect();
            for one in many {
                assert!(one.join().unwrap().as_ref() == Some(&all), "{transport}");
            }
        });
        assert_eq!(through(ports[1], b"hello"), None, "nobody listens there");
    }
}

fn forwards_ports_of_the_host(cri: &Cri) {
    let pod = echoing(cri, &cri.pod_config("server"), "18082");
    for transport in forwarders(cri) {
        let client = forward(cri, transport, &pod, &[18082]);
        let port = client.output().trim().to_owned();
        let back = eventually(DEADLINE, || through(&port, b"hello"));
        assert_eq!(back.as_deref(), Some(b"hello".as_slice()), "{transport}");
    }
}

/// Sends a request as it is; gives the status line of the answer.
pub(crate) fn raw(url: &str, head: &str) -> String {
    let rest = url.strip_prefix("http://").expect("a plain URL");
    let (host, path) = rest.split_once('/').expect("a URL has a path");
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = head
        .replace("PATH", &format!("/{path}"))
        .replace("HOST", host);
    // A server that has seen enough hangs up.
    let _ = stream.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).trim_end().to_owned()
}

fn uses_a_token_once(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let url = exec_url(cri, &id, &["echo", "once"], false, false).unwrap();
    cri.streams("run -transport spdy")
        .arg(&url)
        .prints("once\n");
    let again = cri.streams("run -transport spdy").arg(&url).run();
    assert_ne!(again.code(), 0);
    assert_eq!(again.out(), "");
    let plain = "GET PATH HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n";
    assert!(raw(&url, plain).contains(" 404"), "{}", raw(&url, plain));
    // Guessed ones, and those of another kind.
    let url = exec_url(cri, &id, &["true"], false, false).unwrap();
    let (base, token) = url.rsplit_once('/').unwrap();
    for wrong in [
        format!("{base}/"),
        format!("{base}/x{token}"),
        format!("{base}/../exec/x"),
    ] {
        assert!(!raw(&wrong, plain).contains(" 101"), "{wrong}");
    }
    let other = url.replace("/exec/", "/attach/");
    let upgrade = "POST PATH HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                   X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n";
    assert!(
        !raw(&other, upgrade).contains(" 101"),
        "{}",
        raw(&other, upgrade)
    );
    let host = url.strip_prefix("http://").unwrap();
    assert!(
        host.starts_with("127.0.0.1:"),
        "{url}: only this machine reaches it"
    );
    // 8 characters of base64 are 48 bits; ours has more than 64.
    if !cri.is_reference() {
        assert!(token.len() >= 22, "{token}");
    }
}

fn refuses_streams_that_do_not_go_together(cri: &Cri) {
    let (pod, id) = cri.sleeper();
    let request = |stdout, stderr, tty| v1::ExecRequest {
        container_id: id.clone(),
        cmd: vec!["true".into()],
        stdout,
        stderr,
        tty,
        ..Default::default()
    };
    refused(
        rpc!(cri, exec(request(false, false, false))),
        Code::InvalidArgument,
        "one of",
    );
    refused(
        rpc!(cri, exec(request(true, true, true))),
        Code::InvalidArgument,
        "tty and stderr",
    );
    let nobody = v1::ExecRequest {
        container_id: "0".repeat(64),
        ..request(true, false, false)
    };
    refused(rpc!(cri, exec(nobody)), Code::NotFound, "");
    let nobody = v1::PortForwardRequest {
        pod_sandbox_id: "0".repeat(64),
        port: vec![80],
    };
    refused(rpc!(cri, port_forward(nobody)), Code::NotFound, "");
    cri.stop(&id, 0);
    fails(
        rpc!(cri, exec(request(true, false, false))),
        "CONTAINER_EXITED",
    );
    cri.stop_pod(&pod.id);
    let stopped = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![80],
    };
    fails(rpc!(cri, port_forward(stopped)), "not running");
}

fn speaks_tls_when_told_to(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let url = exec_url(cri, &id, &["echo", "hidden"], false, false).unwrap();
    assert!(url.starts_with("https://"), "{url}");
    cri.streams("run -insecure -transport spdy")
        .arg(&url)
        .prints("hidden\n");
    // Nobody vouches for a certificate that the daemon made itself.
    let url = exec_url(cri, &id, &["echo", "hidden"], false, false).unwrap();
    let done = cri.streams("run -transport spdy").arg(&url).run();
    assert!(
        done.code() != 0 && done.err().contains("certificate"),
        "{}",
        done.report()
    );
}
