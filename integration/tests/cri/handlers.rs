//! Runtime handlers that are configured apart.

use std::fs;

use corten_integration::process::{DEADLINE, eventually};
use corten_protos::runtime::v1;
use serde_json::json;

use crate::cri::Cri;
use crate::runner::Test;
use crate::tests;

const CONF_DIR: &str = "/run/dual-cni";
const DUAL: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dual]\n\
    runtime_type = \"io.containerd.runc.v2\"\ncni_conf_dir = \"/run/dual-cni\"\n";

pub(crate) fn tests() -> Vec<Test> {
    let all = tests![gives_a_handler_its_own_network];
    all.into_iter().map(|t| t.own_daemon(DUAL)).collect()
}

fn network(cri: &Cri, id: &str) -> v1::PodSandboxNetworkStatus {
    let status = cri.pod_status(id).unwrap().status.unwrap();
    status.network.unwrap()
}

fn gives_a_handler_its_own_network(cri: &Cri) {
    let addresses = cri.machine.world.dir.join("addresses");
    let ranges = json!([[{"subnet": "fd78::/64"}], [{"subnet": "10.78.0.0/16"}]]);
    let conf = json!({"cniVersion": "1.0.0", "name": "dual", "plugins": [
        {"type": "bridge", "bridge": "cit1", "isGateway": true,
         "ipam": {"type": "host-local", "dataDir": &addresses, "ranges": ranges}},
    ]});
    fs::create_dir_all(CONF_DIR).unwrap();
    fs::write(format!("{CONF_DIR}/10-dual.conflist"), conf.to_string()).unwrap();
    // The daemon sees the folder a moment later.
    let config = cri.cni_config("dual");
    let own = eventually(DEADLINE, || cri.try_run_with(&config, "dual").ok());
    let own = own.expect("the handler's network is found");
    let default = cri.run(&cri.cni_config("default"));

    let of_own = network(cri, &own.id);
    // Without a preference the address of IPv4 is the pod's, wherever it stands.
    assert!(of_own.ip.starts_with("10.78.0."), "{of_own:?}");
    let others: Vec<_> = of_own.additional_ips.iter().map(|a| &*a.ip).collect();
    assert!(
        matches!(&*others, [ip] if ip.starts_with("fd78::")),
        "{others:?}"
    );
    let of_default = network(cri, &default.id);
    assert!(of_default.ip.starts_with("10.77.0."), "{of_default:?}");
    assert!(of_default.additional_ips.is_empty());

    // Each is taken down where it was set up.
    assert!(addresses.join("dual").join(&of_own.ip).exists());
    for pod in [&own, &default] {
        cri.stop_pod(&pod.id);
    }
    assert!(!addresses.join("dual").join(&of_own.ip).exists());
    assert!(!addresses.join("cit").join(&of_default.ip).exists());
}
