//! Restore, as far as it goes without CRIU: what is made by Create, refused by Start, and gone after Delete. The rest is
//! in `tests/ctr/checkpoint.rs`, on a machine where CRIU works.

use std::sync::Arc;

use corten_protos::containerd::v1::types::Status;

use crate::container::{Container, Io};
use crate::death::{clean_up, kill};
use crate::host::Host;

/// A container that is to be restored of a folder without images.
async fn created(h: &Arc<Host>) -> Container {
    let c = h.container("c", &["sleep", "1000000"]).make().await;
    let images = h.base.join("images");
    std::fs::create_dir_all(&images).unwrap();
    let pid = c
        .create_from(&Io::default(), images.to_str().unwrap())
        .await;
    assert_eq!(pid.unwrap(), 0, "there is no process yet");
    c
}

pub(crate) async fn a_checkpoint_that_is_none_fails_at_the_start(h: Arc<Host>) {
    let c = created(&h).await;
    let state = c.state().await.unwrap();
    assert_eq!((state.status, state.pid), (Status::Created as i32, 0));
    let refused = c.exec("e", &["true"], &Io::default()).await.unwrap_err();
    let text = "cannot exec in a created state";
    assert!(refused.to_string().contains(text), "{refused}");
    let failed = c.start().await.unwrap_err().to_string();
    assert!(failed.contains("restore failed"), "{failed}");
    assert_eq!(c.state().await.unwrap().pid, 0);
    assert_eq!(c.delete().await, 0);
}

pub(crate) async fn a_dead_shim_leaves_nothing_of_a_restore(h: Arc<Host>) {
    let c = created(&h).await;
    kill(c.connect().await.shim_pid);
    assert_eq!(clean_up(&c).await, 137);
}
