//! Pods and configurations that try to get out through CNI plugins, each named by what it tries. Numbers in brackets are
//! those of the invariants that the project keeps a list of.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use corten_integration::process::{DEADLINE, eventually, program};
use corten_protos::runtime::v1;
use serde_json::json;

use crate::cri::{Cri, fails};
use crate::machine::{BRIDGE, Machine};
use crate::runner::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        network_arguments_in_the_name_of_a_pod,
        network_plugins_by_path,
        network_plugins_that_never_end_talking,
        routers_that_advertise_themselves,
        ports_of_others,
    ]
}

/// A handler's network, of a plugin of ours.
fn plugin(cri: &Cri, script: &str) {
    let dir = &cri.machine.world.dir;
    program(&dir.join("bin/odd"), &format!("#!/bin/sh\n{script}\n"));
}

/// [S39] A name with a semicolon would be another argument.
fn network_arguments_in_the_name_of_a_pod(cri: &Cri) {
    let told = cri.dir.join("told");
    let machine = odd_machine(cri, "odd");
    let inner = Cri::new(Arc::new(machine));
    let script = format!(
        "echo \"$CNI_ARGS\" >>{}\ncat >/dev/null\n\
         [ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"1.0.0\"}}'\nexit 0",
        told.display()
    );
    plugin(cri, &script);
    let mut config = inner.cni_config("pod");
    config.metadata.as_mut().unwrap().name = "a;K8S_POD_NAMESPACE=kube-system".into();
    let answer = inner.try_run(&config);
    let text = fs::read_to_string(&told).unwrap_or_default();
    if !inner.is_reference() {
        assert!(
            answer.is_err() && !text.contains("kube-system"),
            "{answer:?} {text}"
        );
    }
    let left = inner.finish();
    assert!(left.is_empty(), "{left:?}");
}

/// A daemon whose networks have one plugin of this type.
fn odd_machine(cri: &Cri, kind: &str) -> Machine {
    let conf = cri.dir.join("cni");
    fs::create_dir_all(&conf).unwrap();
    let network = json!({"cniVersion": "1.0.0", "name": "odd", "plugins": [{"type": kind}]});
    fs::write(conf.join("10-odd.conflist"), network.to_string()).unwrap();
    Machine::start_with_networks("", &conf)
}

/// [S39] The type of a plugin is a name, and no path to a program.
fn network_plugins_by_path(cri: &Cri) {
    let ran = cri.dir.join("ran");
    program(
        &cri.dir.join("evil"),
        &format!("#!/bin/sh\ntouch {}\n", ran.display()),
    );
    let up = format!(
        "{}{}",
        "../".repeat(20),
        &cri.dir.join("evil").to_string_lossy()[1..]
    );
    let inner = Cri::new(Arc::new(odd_machine(cri, &up)));
    let config = inner.cni_config("pod");
    assert!(inner.try_run(&config).is_err());
    assert!(!ran.exists(), "it ran");
    let left = inner.finish();
    assert!(left.is_empty(), "{left:?}");
}

/// [S39] What a plugin says is bounded.
fn network_plugins_that_never_end_talking(cri: &Cri) {
    if cri.is_reference() {
        println!("stock containerd reads all that a plugin says");
        return;
    }
    let inner = Cri::new(Arc::new(odd_machine(cri, "loud")));
    let dir = &cri.machine.world.dir;
    program(
        &dir.join("bin/loud"),
        "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] && exec cat /dev/zero\nexit 0\n",
    );
    let config = inner.cni_config("pod");
    fails(inner.try_run(&config), "more than");
    let left = inner.finish();
    assert!(left.is_empty(), "{left:?}");
}

/// [S40] A pod that says it is a router is none to the host.
fn routers_that_advertise_themselves(cri: &Cri) {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        println!("this kernel has no IPv6");
        return;
    }
    let _pod = cri.run(&cri.cni_config("pod"));
    let mut seen = 0;
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Those of other tests come and go.
        let accepted = fs::read_to_string(entry.path().join("accept_ra"));
        if let (true, Ok(accepted)) = (name.starts_with("veth"), accepted) {
            assert_eq!(accepted.trim(), "0", "{name}");
            seen += 1;
        }
    }
    assert!(seen > 0, "the pod has no interface on the host");
}

/// [S40] A port of the host that is mapped is the host's, and one of an address is that address'.
fn ports_of_others(cri: &Cri) {
    const ANY: u16 = 18090;
    const ONE: u16 = 18091;
    let mut config = cri.cni_config("mapped");
    let mapping = |host_port: u16, host_ip: &str| v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: 80,
        host_port: host_port.into(),
        host_ip: host_ip.into(),
    };
    config.port_mappings = vec![mapping(ANY, ""), mapping(ONE, BRIDGE)];
    let pod = cri.run(&config);
    let server = ["nc", "-ll", "-p", "80", "-e", "echo", "mapped"];
    cri.started(&pod, &cri.container_config("server", &server));
    let answer = |address: &str, port: u16| {
        let mut stream = TcpStream::connect((address, port)).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    };
    for port in [ANY, ONE] {
        let mapped = eventually(DEADLINE, || answer(BRIDGE, port));
        assert_eq!(mapped.as_deref(), Some("mapped\n"), "{port}");
    }
    assert_eq!(answer("127.0.0.1", ONE), None);
    // What goes to somebody else arrives there, where nobody listens.
    let other = cri.run(&cri.cni_config("other"));
    let client = cri.started(&other, &cri.container_config("client", &["sleep", "1000"]));
    let ip = cri
        .pod_status(&pod.id)
        .unwrap()
        .status
        .unwrap()
        .network
        .unwrap()
        .ip;
    let script = format!("nc -w 5 {ip} 80; nc -w 5 {ip} {ANY} </dev/null || echo refused");
    assert_eq!(cri.shell(&client, &script), "mapped\nrefused\n");
}
