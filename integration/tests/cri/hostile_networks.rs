//! Pods and configurations that try to get out through CNI plugins, each named by what it tries. Numbers in brackets are
//! those of the invariants that the project keeps a list of.

use std::fs;
use std::sync::Arc;

use corten_integration::process::program;
use serde_json::json;

use crate::cri::{Cri, fails};
use crate::machine::Machine;
use crate::runner::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        network_arguments_in_the_name_of_a_pod,
        network_plugins_by_path,
        network_plugins_that_never_end_talking,
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
