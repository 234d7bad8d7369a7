//! Mounts of a container, against this host's file system.

use std::os::unix::fs::symlink;

use corten_protos::runtime::v1::{
    LinuxContainerConfig, LinuxContainerSecurityContext, NamespaceOption,
};

use super::*;

fn mount(host: &Path, container: &str) -> cri::Mount {
    cri::Mount {
        host_path: paths::text(host),
        container_path: container.into(),
        ..cri::Mount::default()
    }
}

fn config(mounts: &[cri::Mount]) -> ContainerConfig {
    ContainerConfig {
        mounts: mounts.to_vec(),
        ..ContainerConfig::default()
    }
}

fn after(config: &ContainerConfig, extra: &[cri::Mount], rro: bool) -> Result<Spec> {
    let mut spec = super::super::defaults::spec("c", &[]);
    let selinux = Selinux::probe(false, 1024)?;
    let around = Surroundings {
        selinux: &selinux,
        label: "",
        rro,
        cgroup_writable: false,
    };
    add(&mut spec, config, extra, &around).map(|()| spec)
}

fn at<'a>(spec: &'a Spec, destination: &str) -> Vec<&'a oci::Mount> {
    let all = spec.mounts.iter();
    all.filter(|m| m.destination == destination).collect()
}

#[test]
fn volumes_follow_links_and_make_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, dir.path().join("link")).unwrap();
    let new = dir.path().join("a/b");
    let config = config(&[mount(&dir.path().join("link"), "/l"), mount(&new, "/n")]);
    let spec = after(&config, &[], false).unwrap();
    assert_eq!(at(&spec, "/l")[0].source, paths::text(&real));
    assert!(new.is_dir());
    assert_eq!(at(&spec, "/n")[0].options, ["rbind", "rprivate", "rw"]);
    for bad in ["", "relative"] {
        let e = after(
            &super::tests::config(&[mount(Path::new(bad), "/x")]),
            &[],
            false,
        );
        assert!(e.unwrap_err().to_string().contains("is not absolute"));
    }
    let below_file = dir.path().join("file/x");
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(
        after(
            &super::tests::config(&[mount(&below_file, "/x")]),
            &[],
            false
        )
        .is_err()
    );
}

#[test]
fn high_places_come_first_and_the_cri_s_mount_wins() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let extra = [mount(other.path(), "/etc/hosts"), mount(other.path(), "/v")];
    let config = config(&[
        mount(dir.path(), "/a/b/c"),
        mount(dir.path(), "/a"),
        mount(dir.path(), "/etc//hosts/"),
        mount(dir.path(), "/dev"),
    ]);
    let spec = after(&config, &extra, false).unwrap();
    let places: Vec<&str> = spec.mounts.iter().map(|m| m.destination.as_str()).collect();
    let want = [
        "/proc",
        "/sys",
        CGROUP,
        "/a",
        "/dev",
        "/v",
        "/etc//hosts/",
        "/a/b/c",
    ];
    assert_eq!(places, want);
    assert_eq!(at(&spec, "/etc//hosts/")[0].source, paths::text(dir.path()));
}

#[test]
fn propagation_needs_a_mount_of_that_kind() {
    let dir = tempfile::tempdir().unwrap();
    let with = |propagation: MountPropagation| {
        let mut m = mount(dir.path(), "/v");
        m.propagation = propagation as i32;
        after(&config(&[m]), &[], false)
    };
    let shared = mount_of(dir.path())
        .unwrap()
        .unwrap()
        .optional
        .contains("shared:");
    for (kind, option) in [
        (MountPropagation::PropagationBidirectional, "rshared"),
        (MountPropagation::PropagationHostToContainer, "rslave"),
    ] {
        match with(kind) {
            Ok(mut spec) => {
                assert!(at(&spec, "/v")[0].options.contains(&option.to_owned()));
                assert_eq!(spec.linux().rootfs_propagation, option);
            }
            Err(e) => {
                assert!(!shared, "{e}");
                assert!(e.to_string().contains("but it is not a shared"), "{e}");
            }
        }
    }
    let mut plain = with(MountPropagation::PropagationPrivate).unwrap();
    assert_eq!(plain.linux().rootfs_propagation, "");
}

#[test]
fn read_only_comes_in_two_depths() {
    let dir = tempfile::tempdir().unwrap();
    let with = |readonly, recursive_read_only, propagation: i32, rro| {
        let m = cri::Mount {
            readonly,
            recursive_read_only,
            propagation,
            ..mount(dir.path(), "/v")
        };
        let spec = after(&config(&[m]), &[], rro);
        spec.map(|spec| at(&spec, "/v")[0].options[2].clone())
            .map_err(|e| e.to_string())
    };
    assert_eq!(with(true, false, 0, false).unwrap(), "ro");
    assert_eq!(with(true, true, 0, true).unwrap(), "rro");
    let e = with(true, true, 0, false).unwrap_err();
    assert!(e.contains("RROUnsupported"), "{e}");
    let e = with(false, true, 0, true).unwrap_err();
    assert!(e.contains("conflicts with RW mount"), "{e}");
    if mount_of(dir.path())
        .unwrap()
        .unwrap()
        .optional
        .contains("shared:")
    {
        let e = with(true, true, 1, true).unwrap_err();
        assert!(e.contains("needs private propagation"), "{e}");
    }
}

#[test]
fn only_bind_options_may_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let with = |options: &[&str]| {
        let m = cri::Mount {
            mount_options: options.iter().map(|&o| o.to_owned()).collect(),
            ..mount(dir.path(), "/v")
        };
        after(&config(&[m]), &[], false)
    };
    let spec = with(&["noexec", "nosuid"]).unwrap();
    let want = ["rbind", "rprivate", "rw", "noexec", "nosuid"];
    assert_eq!(at(&spec, "/v")[0].options, want);
    for bad in ["exec", "rshared", "uid=0", ""] {
        assert!(with(&[bad]).is_err(), "{bad}");
    }
}

#[test]
fn pods_files_are_mounted_where_the_cri_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, "").unwrap();
        Some(path)
    };
    let files = PodFiles {
        hostname: file("hostname"),
        hosts: file("hosts"),
        resolv_conf: Some(dir.path().join("missing")),
        shm: file("shm"),
    };
    let places = |config: &ContainerConfig| {
        let mounts = of_pod(&files, config);
        mounts
            .iter()
            .map(|m| format!("{} {}", m.container_path, m.readonly))
            .collect::<Vec<_>>()
    };
    let mut config = config(&[mount(dir.path(), "/etc/hosts")]);
    assert_eq!(places(&config), ["/etc/hostname false", "/dev/shm false"]);
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            readonly_rootfs: true,
            namespace_options: Some(NamespaceOption {
                ipc: NamespaceMode::Node as i32,
                ..NamespaceOption::default()
            }),
            ..LinuxContainerSecurityContext::default()
        }),
        ..LinuxContainerConfig::default()
    });
    assert_eq!(places(&config), ["/etc/hostname true", "/dev/shm false"]);
    let shm = of_pod(&files, &config).pop().unwrap();
    assert_eq!((shm.host_path.as_str(), shm.selinux_relabel), (SHM, false));
}

#[test]
fn volumes_of_images_have_folders_of_their_own() {
    let image = ImageConfig {
        volumes: vec!["/v".into(), "data".into(), "/taken".into()],
        ..ImageConfig::default()
    };
    let config = config(&[mount(Path::new("/"), "/taken/")]);
    let made = volumes(Path::new("/c"), &config, &image);
    let places: Vec<&str> = made.iter().map(|m| m.container_path.as_str()).collect();
    assert_eq!(places, ["/v", "/data"]);
    assert!(made[0].host_path.starts_with("/c/volumes/"));
    assert_ne!(made[0].host_path, made[1].host_path);
}
