//! Images: pulled, listed, told of, removed; one identity for each.

use corten_integration::images::{self as catalogue, Layer, Recipe};
use corten_integration::process::{DEADLINE, eventually};
use corten_integration::tarball::Tarball;
use corten_protos::runtime::v1;
use serde_json::json;
use tonic::Code;

use crate::cri::{Cri, refused, spec};
use crate::runner::Test;
use crate::{image_rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        pulls_by_tag_and_by_digest,
        knows_an_image_by_every_name,
        gives_one_identity_everywhere,
        removes_an_image_with_all_its_names,
        tells_of_no_image_without_an_error,
        tells_the_user_of_an_image,
        measures_the_file_systems,
        says_what_a_failed_pull_was,
    ]
}

/// A small image that no other test has.
fn own(cri: &Cri, config: serde_json::Value) -> corten_integration::images::Image {
    let tar = Tarball::new().file("name", 0o644, &cri.name);
    Recipe::new(&cri.name)
        .layer(Layer::gzip(tar))
        .config(config)
        .build()
}

fn pulls_by_tag_and_by_digest(cri: &Cri) {
    let image = own(cri, json!({"Cmd": ["/x"]}));
    let name = cri.machine.world.push(&image);
    let id = cri.pull(&name).unwrap();
    assert_eq!(id, image.config());
    let found = cri.image(&name).unwrap();
    let by_digest = format!("{}@{}", name.rsplit_once(':').unwrap().0, image.digest);
    assert_eq!(found.repo_tags, [&*name]);
    assert_eq!(found.repo_digests, [&*by_digest]);
    assert!(found.size > 0 && !found.pinned);
    cri.remove_image(&name);

    assert_eq!(cri.pull(&by_digest).unwrap(), id);
    let found = cri.image(&by_digest).unwrap();
    assert!(found.repo_tags.is_empty());
    assert_eq!(found.repo_digests, [&*by_digest]);
    cri.remove_image(&by_digest);
}

fn knows_an_image_by_every_name(cri: &Cri) {
    let image = own(cri, json!({"Cmd": ["/x"]}));
    let name = cri.machine.world.push(&image);
    let id = cri.pull(&name).unwrap();
    let hex = id.strip_prefix("sha256:").unwrap();
    for word in [&*name, &*id, hex, &hex[..20]] {
        assert_eq!(cri.image(word).map(|i| i.id).as_ref(), Some(&id), "{word}");
        // Stock containerd lists all images whatever it is asked for.
        if cri.is_reference() {
            continue;
        }
        let request = v1::ListImagesRequest {
            filter: Some(v1::ImageFilter {
                image: Some(spec(word)),
            }),
        };
        let list = image_rpc!(cri, list_images(request)).unwrap().images;
        let found: Vec<_> = list.iter().map(|i| &*i.id).collect();
        assert_eq!(found, [&*id], "{word}");
    }
    let list = image_rpc!(cri, list_images(v1::ListImagesRequest::default()))
        .unwrap()
        .images;
    let mut ids: Vec<_> = list.iter().map(|i| &i.id).collect();
    ids.sort();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "an image is listed once");
    let request = v1::ImageStatusRequest {
        image: Some(spec(&name)),
        verbose: true,
    };
    let info = image_rpc!(cri, image_status(request)).unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["imageSpec"]["config"]["Cmd"], json!(["/x"]), "{info}");
    cri.remove_image(&id);
}

fn gives_one_identity_everywhere(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let name = cri.busybox();
    let image = cri.image(&name).unwrap();
    let status = cri.status(&id);
    assert_eq!(status.image_id, image.id);
    assert_eq!(status.image.unwrap().image, name);
    assert_eq!(cri.pull(&name).unwrap(), image.id);
    let request = v1::ListContainersRequest {
        filter: Some(v1::ContainerFilter {
            id: id.clone(),
            ..Default::default()
        }),
    };
    let list = crate::rpc!(cri, list_containers(request))
        .unwrap()
        .containers;
    assert_eq!(list[0].image_id, image.id);
}

fn removes_an_image_with_all_its_names(cri: &Cri) {
    let image = own(cri, json!({"Cmd": ["/x"]}));
    let name = cri.machine.world.push(&image);
    let id = cri.pull(&name).unwrap();
    let mut other = image.clone();
    other.name = image.name.replace(":1", ":2");
    cri.machine.world.registry.push(&other);
    let second = cri.machine.world.registry.reference(&other);
    assert_eq!(cri.pull(&second).unwrap(), id);
    assert_eq!(cri.image(&id).unwrap().repo_tags.len(), 2);
    cri.remove_image(&name);
    // At once, and by whichever name: the kubelet has no other way to make room.
    assert!(cri.image(&id).is_none() && cri.image(&second).is_none());
    cri.remove_image(&name);
}

fn tells_of_no_image_without_an_error(cri: &Cri) {
    assert!(cri.image("test.local/no/such:1").is_none());
    assert!(cri.image(&"0".repeat(64)).is_none());
    cri.remove_image("test.local/no/such:1");
    let request = v1::ImageStatusRequest::default();
    assert!(image_rpc!(cri, image_status(request)).map_or(true, |a| a.image.is_none()));
}

fn tells_the_user_of_an_image(cri: &Cri) {
    for (user, uid, username) in [
        ("1002", Some(1002), ""),
        ("1003:7", Some(1003), ""),
        ("www-data", None, "www-data"),
        ("www-data:100", None, "www-data"),
        ("", None, ""),
    ] {
        let image = own(cri, json!({"Cmd": ["/x"], "User": user}));
        cri.machine.world.registry.push(&image);
        let name = cri.machine.world.registry.reference(&image);
        let id = cri.pull(&name).unwrap();
        let found = cri.image(&id).unwrap();
        assert_eq!(found.uid.map(|u| u.value), uid, "{user}");
        assert_eq!(found.username, username, "{user}");
        cri.remove_image(&id);
    }
}

fn measures_the_file_systems(cri: &Cri) {
    let _ = cri.busybox();
    let measured = eventually(DEADLINE, || {
        let info = image_rpc!(cri, image_fs_info(v1::ImageFsInfoRequest {})).unwrap();
        (!info.image_filesystems.is_empty()).then_some(info)
    });
    let info = measured.expect("the file systems are measured");
    // Stock containerd tells of the containers' only where it is another.
    assert!(cri.is_reference() || !info.container_filesystems.is_empty());
    for usage in info
        .image_filesystems
        .iter()
        .chain(&info.container_filesystems)
    {
        let mountpoint = &usage.fs_id.as_ref().unwrap().mountpoint;
        assert!(
            std::path::Path::new(mountpoint).starts_with(cri.machine.daemon.root()),
            "{mountpoint}"
        );
        assert!(usage.timestamp > 0 && usage.used_bytes.is_some() && usage.inodes_used.is_some());
    }
}

fn says_what_a_failed_pull_was(cri: &Cri) {
    let host = cri.machine.world.registry.host();
    refused(
        cri.pull(&format!("{host}/no/such:1")),
        Code::NotFound,
        "no/such:1",
    );
    let image = catalogue::configured();
    let name = cri.machine.world.push(&image);
    let wrong = format!(
        "{}@sha256:{}",
        name.rsplit_once(':').unwrap().0,
        "0".repeat(64)
    );
    refused(cri.pull(&wrong), Code::NotFound, &"0".repeat(64));
    // Nobody listens there. The kubelet looks for the word that ours begins with.
    let answer = cri.pull("127.0.0.1:1/no/body:1").unwrap_err();
    assert!(answer.message().contains("127.0.0.1:1"), "{answer}");
    if !cri.is_reference() {
        assert!(answer.message().contains("RegistryUnavailable"), "{answer}");
    }
}
