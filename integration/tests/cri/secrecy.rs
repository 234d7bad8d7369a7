//! What users of the host see of pods, and in which order events tell of what passes quickly.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use corten_protos::runtime::v1::{self, ContainerEventType};
use futures::StreamExt;

use crate::cri::Cri;
use crate::runner::Test;
use crate::{rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![closes_what_is_mounted_to_users_of_the_host];
    all.extend(
        tests![tells_of_a_short_life_in_order]
            .into_iter()
            .map(|t| t.own_daemon("")),
    );
    all
}

/// CVE-2024-25621: root file systems and image volumes hold set-user-id programs, /dev/shm what pods share.
fn closes_what_is_mounted_to_users_of_the_host(cri: &Cri) {
    let pod = cri.pod();
    let mut config = cri.container_config("one", &["sleep", "1000"]);
    config.mounts = vec![v1::Mount {
        container_path: "/image".into(),
        image: Some(crate::cri::spec(&cri.busybox())),
        readonly: true,
        ..Default::default()
    }];
    let id = cri.started(&pod, &config);
    let state = cri.machine.daemon.state();
    let pid = cri.machine.daemon.pid();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mounts = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let ours = |path: &PathBuf| {
        let text = path.to_string_lossy();
        path.starts_with(&state) && (text.contains(&pod.id) || text.contains(&id))
    };
    let ours: Vec<PathBuf> = mounts.filter(ours).collect();
    let kinds = ["rootfs", "image-volumes", "shm"];
    for kind in kinds {
        let found = ours.iter().any(|m| m.to_string_lossy().contains(kind));
        assert!(found, "no {kind} among {ours:?}");
    }
    for mount in &ours {
        let above = mount.ancestors().take_while(|dir| *dir != state);
        let mut modes = above.map(|dir| fs::metadata(dir).unwrap().permissions().mode());
        assert!(
            modes.any(|mode| mode & 0o001 == 0),
            "{} is open to everybody",
            mount.display()
        );
    }
}

fn tells_of_a_short_life_in_order(cri: &Cri) {
    if cri.is_reference() {
        println!("Corten only: stock tells of an end beside the start and the removal");
        return;
    }
    let mut events = rpc!(cri, get_container_events(v1::GetEventsRequest {})).unwrap();
    let pod = cri.pod();
    let ids: Vec<String> = (0..6)
        .map(|n| {
            let config = cri.container_config(&format!("c{n}"), &["true"]);
            let id = cri.started(&pod, &config);
            cri.ended(&id);
            cri.remove(&id);
            id
        })
        .collect();
    cri.stop_pod(&pod.id);
    cri.remove_pod(&pod.id);
    let seen = cri.block(async {
        let mut seen: BTreeMap<String, Vec<ContainerEventType>> = BTreeMap::new();
        loop {
            let event = events.next().await.expect("events go on").unwrap();
            let kind = event.container_event_type();
            let last =
                event.container_id == pod.id && kind == ContainerEventType::ContainerDeletedEvent;
            seen.entry(event.container_id).or_default().push(kind);
            if last {
                return seen;
            }
        }
    });
    for id in ids.iter().chain([&pod.id]) {
        let life = [
            ContainerEventType::ContainerCreatedEvent,
            ContainerEventType::ContainerStartedEvent,
            ContainerEventType::ContainerStoppedEvent,
            ContainerEventType::ContainerDeletedEvent,
        ];
        assert_eq!(seen[id], life, "{id}: {seen:?}");
    }
}
