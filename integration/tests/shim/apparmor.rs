//! AppArmor at the shim's own level, without a client that takes its time: for slow machines that have it.

use std::path::Path;
use std::sync::Arc;

use corten_integration::process::Cmd;
use serde_json::json;

use crate::host::{Host, is_reference};

const CURRENT: &str = "cat /proc/self/attr/apparmor/current; ";

fn is_missing() -> bool {
    let there = Path::new("/sys/kernel/security/apparmor/profiles").exists();
    if !there {
        println!("not tried: this machine has no AppArmor");
    }
    !there
}

/// A loaded profile that denies writing to one file in /tmp; gone when dropped.
struct Profile(String);

// === impl Profile ===

impl Profile {
    fn load(name: &str, file: &str) -> Self {
        let rules = "file, capability, network, mount, umount, pivot_root, signal, ptrace, unix, change_profile,";
        let flags = "flags=(attach_disconnected,mediate_deleted)";
        let text = format!("profile {name} {flags} {{ {rules} deny /tmp/{file} w, }}\n");
        Self::parser(&["-rKq"], &text);
        Self(text)
    }

    fn parser(flags: &[&str], text: &str) {
        let parser = Cmd::new("apparmor_parser").args(flags).stdin(text);
        parser.run().expect_code(0);
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        Self::parser(&["-Rq"], &self.0);
    }
}

/// Init and execs are confined alike; stacked profiles confine together; without one there is none.
pub(crate) async fn profiles_confine(h: Arc<Host>) {
    if is_missing() {
        return;
    }
    let (a, b) = (format!("{}-a", h.namespace), format!("{}-b", h.namespace));
    let _profiles = [Profile::load(&a, "a"), Profile::load(&b, "b")];
    let try_all =
        format!("{CURRENT}for f in a b c; do (echo x >/tmp/$f) 2>/dev/null && echo $f; done");
    let cases = [
        (a.clone(), format!("{a} (enforce)\nb\nc\n")),
        (format!("{a}//&{b}"), format!("{a}//&{b} (enforce)\nc\n")),
        ("unconfined".to_owned(), "unconfined\na\nb\nc\n".to_owned()),
        (String::new(), "unconfined\na\nb\nc\n".to_owned()),
    ];
    for (number, (profile, wanted)) in cases.into_iter().enumerate() {
        if is_reference() && profile.contains("//&") {
            println!("Corten only: runc knows no stacks");
            continue;
        }
        let init = "(echo x >/tmp/a) 2>/dev/null && >/tmp/init; exec sleep 1000000";
        let recipe = h.container(&format!("c{number}"), &["sh", "-c", init]);
        let c = recipe
            .set("/process/apparmorProfile", json!(profile))
            .make()
            .await;
        c.create().await.unwrap();
        c.start().await.unwrap();
        assert_eq!(c.says("e", &try_all).await, wanted, "{profile:?}");
        let free = c.says("i", "cat /proc/1/attr/apparmor/current").await;
        assert!(wanted.starts_with(&free), "init of {profile:?} is {free}");
        assert_eq!(c.kill_and_delete().await, 137);
    }
}

pub(crate) async fn an_unknown_profile_is_refused(h: Arc<Host>) {
    let recipe = h.container("c", &["true"]);
    let c = recipe
        .set("/process/apparmorProfile", json!("none-such"))
        .make()
        .await;
    // Where there is AppArmor the kernel says so, at the very end.
    let said = match c.create().await {
        Ok(_) => c.start().await.unwrap_err().to_string(),
        Err(e) => e.to_string(),
    };
    assert!(said.contains("apparmor"), "{said}");
    let _ = c.kill(9).await;
    let _ = c.delete_exec("").await;
    c.give_up().await;
}
