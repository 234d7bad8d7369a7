//! How others find a shim.

use std::path::Path;
use std::sync::Arc;

use corten_integration::ctr::Client as Ctr;
use corten_protos::any;
use corten_protos::containerd::types::MountCapabilities;

use crate::host::{Host, is_reference};

/// `ctr shim --id` computes the socket's path from the default directory, the daemon's address and the id.
pub(crate) async fn ctr_finds_a_shim_by_its_id(h: Arc<Host>) {
    let recipe = h.container("c", &["sleep", "1000000"]);
    let c = recipe
        .socket_dir(Path::new("/run/containerd/s"))
        .make()
        .await;
    c.create().await.unwrap();
    c.start().await.unwrap();
    let pid = c.state().await.unwrap().pid;
    let ctr = Ctr::New.command(&h.address(), &h.namespace, &h.base);
    let done = ctr.words("shim --id c state").run();
    done.expect_code(0);
    assert!(done.out().contains(&pid.to_string()), "{}", done.report());
    assert_eq!(c.kill_and_delete().await, 137);
    let socket = c
        .address
        .strip_prefix("unix://")
        .expect("a unix socket")
        .to_owned();
    crate::host::until("the socket is gone", move || !Path::new(&socket).exists()).await;
}

pub(crate) async fn a_start_tells_what_it_mounts(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim leaves that to the daemon's list of exceptions");
        return;
    }
    let c = h.running("c", &["sleep", "1000000"]).await;
    let again = h.start("c", None).await;
    assert_eq!(again.address, c.address);
    let said = again.extensions.iter().filter_map(|e| e.value.as_ref());
    let said: Vec<MountCapabilities> = said.map(|v| any::unpack(v).unwrap()).collect();
    assert_eq!(said, [MountCapabilities::default()]);
    assert_eq!(c.kill_and_delete().await, 137);
}
