//! Pods' networks: CNI plugins run for them, and undone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use corten_integration::process::{DEADLINE, eventually};
use corten_protos::runtime::v1;

use crate::cri::{Cri, fails};
use crate::machine::BRIDGE;
use crate::runner::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        gives_each_pod_an_address,
        maps_a_port_of_the_host,
        gives_an_address_back_when_stopped,
        writes_the_names_of_servers,
        sets_sysctls_of_the_pods_own,
    ];
    all.extend(
        tests![leaves_nothing_of_a_network_that_fails]
            .into_iter()
            .map(|t| t.own_daemon(NO_PLUGIN)),
    );
    all
}

/// A configuration whose second plugin does not exist.
const NO_PLUGIN: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.broken]\n\
    runtime_type = \"io.containerd.runc.v2\"\ncni_conf_dir = \"/run/broken-cni\"\n";

/// The address of a pod.
fn address(cri: &Cri, id: &str) -> String {
    let status = cri.pod_status(id).unwrap().status.unwrap();
    status.network.unwrap().ip
}

fn reserved(cri: &Cri, address: &str) -> bool {
    cri.machine
        .world
        .dir
        .join("addresses/cit")
        .join(address)
        .exists()
}

fn gives_each_pod_an_address(cri: &Cri) {
    let one = cri.run(&cri.cni_config("one"));
    let two = cri.run(&cri.cni_config("two"));
    let addresses: BTreeSet<_> = [&one, &two].map(|p| address(cri, &p.id)).into();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let id = cri.started(&one, &cri.container_config("one", &["sleep", "1000"]));
    let shown = cri.shell(&id, "ip -4 addr show eth0; ip addr show lo; ip route");
    assert!(
        shown.contains(&format!("inet {}/16", address(cri, &one.id))),
        "{shown}"
    );
    assert!(shown.contains("inet 127.0.0.1/8"), "{shown}");
    assert!(shown.contains(&format!("default via {BRIDGE}")), "{shown}");
    // From pod to pod.
    let server = cri.container_config("server", &["sh", "-c", "echo hello | nc -l -p 8080"]);
    cri.started(&two, &server);
    let script = format!(
        "until nc -w 5 {} 8080; do sleep 0.1; done",
        address(cri, &two.id)
    );
    assert_eq!(cri.shell(&id, &script), "hello\n");
    let info = &cri.pod_status(&one.id).unwrap().info["info"];
    let info: serde_json::Value = serde_json::from_str(info).unwrap();
    assert!(
        info["cniResult"]["Interfaces"]["eth0"].is_object(),
        "{info}"
    );
    // On the host's network there is no address of the pod's own.
    let host = cri.run(&cri.pod_config("host"));
    let status = cri.pod_status(&host.id).unwrap().status.unwrap();
    assert_eq!(status.network.unwrap_or_default().ip, "");
}

fn maps_a_port_of_the_host(cri: &Cri) {
    let mut config = cri.cni_config("mapped");
    config.port_mappings = vec![v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 18080,
        host_ip: String::new(),
    }];
    let pod = cri.run(&config);
    let server = cri.container_config("server", &["nc", "-ll", "-p", "80", "-e", "cat"]);
    cri.started(&pod, &server);
    let echoed = eventually(DEADLINE, || {
        let mut stream = TcpStream::connect((BRIDGE, 18080)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        stream.write_all(b"through the host").ok()?;
        let mut bytes = [0; 16];
        stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    });
    assert_eq!(
        echoed.as_ref().map(<[u8; 16]>::as_slice),
        Some(b"through the host".as_slice())
    );
    cri.stop_pod(&pod.id);
    assert!(
        TcpStream::connect((BRIDGE, 18080)).is_err(),
        "the port is nobody's again"
    );
}

fn gives_an_address_back_when_stopped(cri: &Cri) {
    let pod = cri.run(&cri.cni_config("one"));
    let address = address(cri, &pod.id);
    assert!(reserved(cri, &address));
    cri.stop_pod(&pod.id);
    assert!(!reserved(cri, &address));
    cri.stop_pod(&pod.id);
    cri.remove_pod(&pod.id);
}

fn writes_the_names_of_servers(cri: &Cri) {
    let mut config = cri.cni_config("dns");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.10.10.10".into(), "10.10.10.11".into()],
        searches: vec!["a.test".into(), "b.test".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = cri.run(&config);
    let id = cri.started(&pod, &cri.container_config("one", &["sleep", "1000"]));
    let expected =
        "search a.test b.test\nnameserver 10.10.10.10\nnameserver 10.10.10.11\noptions ndots:5\n";
    assert_eq!(cri.shell(&id, "cat /etc/resolv.conf"), expected);
}

fn sets_sysctls_of_the_pods_own(cri: &Cri) {
    let mut config = cri.cni_config("sysctls");
    config.linux.as_mut().unwrap().sysctls = [
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
    ]
    .into();
    let pod = cri.run(&config);
    let id = cri.started(&pod, &cri.container_config("one", &["sleep", "1000"]));
    let read = |name: &str| cri.shell(&id, &format!("cat /proc/sys/{name}"));
    assert_eq!(read("kernel/shm_rmid_forced"), "1\n");
    assert_eq!(read("net/ipv4/ip_forward"), "1\n");
    // What pods get without asking.
    assert_eq!(read("net/ipv4/ip_unprivileged_port_start"), "0\n");
    assert_eq!(read("net/ipv4/ping_group_range"), "0\t2147483647\n");
}

fn leaves_nothing_of_a_network_that_fails(cri: &Cri) {
    let world = &cri.machine.world;
    let text = fs::read_to_string(world.dir.join("cni/10-cit.conflist")).unwrap();
    fs::create_dir_all("/run/broken-cni").unwrap();
    let broken = text.replace("\"portmap\"", "\"no-such-plugin\"");
    assert_ne!(broken, text);
    fs::write("/run/broken-cni/10-cit.conflist", broken).unwrap();
    let dir = world.dir.join("addresses/cit");
    let config = cri.cni_config("broken");
    // The daemon sees the folder a moment later.
    let answer = eventually(DEADLINE, || {
        let error = cri.try_run_with(&config, "broken").unwrap_err();
        error.message().contains("no-such-plugin").then_some(error)
    });
    let error = answer.expect("the plugin is missed");
    fails::<()>(Err(error), "no-such-plugin");
    // What cannot be undone stays as a pod that is not ready, for the kubelet to remove.
    for pod in cri.pods() {
        assert_eq!(pod.state(), v1::PodSandboxState::SandboxNotready);
        fs::write("/run/broken-cni/10-cit.conflist", &text).unwrap();
        cri.stop_pod(&pod.id);
        cri.remove_pod(&pod.id);
    }
    let own = |name: &str| {
        fs::read_to_string(dir.join(name))
            .is_ok_and(|t| cri.pods().iter().any(|p| t.contains(&p.id)))
    };
    let left: Vec<_> = fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("10.") && own(name))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
