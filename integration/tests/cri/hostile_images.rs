//! Images that try to get out, each named by what it tries. Numbers in brackets are those of the invariants that the
//! project keeps a list of.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use corten_integration::images::{self, Image, Layer};
use corten_integration::leaks;
use corten_integration::process::Cmd;
use corten_integration::tarball::Tarball;
use corten_protos::runtime::v1;
use serde_json::{Value, json};

use crate::cri::{Cri, Pod, fails, spec};
use crate::runner::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        user_strings_that_overflow_to_root,
        user_of_the_image_that_overflows_to_root,
        groups_that_are_no_numbers,
        passwd_that_is_a_fifo,
        passwd_that_is_a_link_to_a_fifo,
        passwd_that_is_a_device,
        passwd_that_is_a_folder,
        passwd_that_is_a_link_to_itself,
        passwd_that_is_a_link_out,
        passwd_behind_a_link_inside,
        passwd_with_a_line_of_megabytes,
        working_directory_behind_a_link_out,
        volume_behind_a_link_out,
        volumes_with_dots,
        files_of_the_pod_behind_links_out,
        mount_point_behind_a_link_out,
        image_volume_with_links_out,
        labels_of_the_daemons_own,
        environment_that_is_none,
        commands_with_zero_bytes,
        stop_signals_that_are_none,
        programs_that_the_node_has_too,
    ]
}

/// A folder of the host that nobody but the test may touch, with a secret in it.
pub(crate) fn outside(cri: &Cri) -> PathBuf {
    let dir = cri.dir.join("outside");
    fs::create_dir_all(&dir).unwrap();
    let secret = dir.join("secret");
    fs::write(&secret, "of the host").unwrap();
    fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
    dir
}

/// Fails if somebody has touched it.
pub(crate) fn untouched(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(names, ["secret"]);
    let secret = fs::metadata(dir.join("secret")).unwrap();
    let what = (secret.mode() & 0o7777, secret.nlink(), secret.uid());
    assert_eq!(what, (0o600, 1, 0));
    assert_eq!(
        fs::read_to_string(dir.join("secret")).unwrap(),
        "of the host"
    );
}

/// Pulls busybox with this above it.
fn pulled(cri: &Cri, tar: Tarball, mut config: Value) -> String {
    config["Env"] = json!(["PATH=/bin:/usr/bin"]);
    let image = images::busybox_with(&cri.name, vec![Layer::gzip(tar)], config);
    taken(cri, &image)
}

pub(crate) fn taken(cri: &Cri, image: &Image) -> String {
    cri.machine.world.registry.push(image);
    let reference = cri.machine.world.registry.reference(image);
    cri.pull(&reference)
        .unwrap_or_else(|e| panic!("pull {reference}: {e}"));
    reference
}

/// A container of `image` that runs `argv`.
pub(crate) fn container(cri: &Cri, image: &str, name: &str, argv: &[&str]) -> v1::ContainerConfig {
    let mut config = cri.container_config(name, argv);
    config.image = Some(spec(image));
    config
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// What a container prints, or why there is none.
pub(crate) fn attempt(
    cri: &Cri,
    pod: &Pod,
    config: &v1::ContainerConfig,
) -> Result<String, String> {
    let id = cri
        .create(pod, config)
        .map_err(|e| e.message().to_owned())?;
    let started = cri.start(&id).map_err(|e| e.message().to_owned());
    if started.is_ok() {
        cri.ended(&id);
    }
    cri.remove(&id);
    started.map(|()| cri.logged(&config.log_path))
}

/// [S12] None of these is root, and what is no user is an error.
fn user_strings_that_overflow_to_root(cri: &Cri) {
    let pod = cri.pod();
    let users = [
        "4294967296",
        "4294967295",
        "2147483648",
        "18446744073709551616",
        "-1",
        "1000:4294967296",
        "1000:-1",
        "nosuchuser",
        "0x3e8",
        "1e3",
        " 0",
        "root ",
        "1000:1000:1000",
        "\u{0661}\u{0660}",
        "root\n0",
    ];
    let image = pulled(cri, Tarball::new(), json!({"Cmd": ["id"]}));
    for (number, user) in users.into_iter().enumerate() {
        let name = format!("user{number}");
        let mut config = container(cri, &image, &name, &["sh", "-c", "id -u; id -g"]);
        security(&mut config).run_as_username = user.into();
        if let Ok(output) = attempt(cri, &pod, &config) {
            assert!(
                !output.lines().any(|id| id == "0"),
                "{user:?} became {output}"
            );
            assert!(cri.is_reference(), "{user:?} is no user: {output}");
        }
    }
}

/// [S12] The same from the image's config.
fn user_of_the_image_that_overflows_to_root(cri: &Cri) {
    let pod = cri.pod();
    for (number, user) in ["4294967296", "1000:4294967296", "-1:0", "nobody:-1"]
        .into_iter()
        .enumerate()
    {
        let image = pulled(cri, Tarball::new(), json!({"Cmd": ["id"], "User": user}));
        let name = format!("user{number}");
        let config = container(cri, &image, &name, &["sh", "-c", "id -u; id -g"]);
        if let Ok(output) = attempt(cri, &pod, &config) {
            panic!("{user:?} became {output}");
        }
    }
}

/// [S12, S13] Entries whose number is none are no entries.
fn groups_that_are_no_numbers(cri: &Cri) {
    let passwd = "bad:x:zero:zero::/:/bin/sh\nlate:x:99999999999:1::/:/bin/sh\ngood:x:1234:1234::/:/bin/sh\n";
    let group = "evil::none:good\nwheel:x::good\nfine:x:77:good\nlarge:x:4294967296:good\n";
    let tar = Tarball::new()
        .file("etc/passwd", 0o644, passwd)
        .file("etc/group", 0o644, group);
    let image = pulled(cri, tar, json!({"Cmd": ["id"]}));
    let pod = cri.pod();
    for user in ["bad", "late"] {
        let mut config = container(cri, &image, user, &["id", "-u"]);
        security(&mut config).run_as_username = user.into();
        if let Ok(output) = attempt(cri, &pod, &config) {
            // To stock containerd a number that is none is 0.
            assert!(cri.is_reference(), "{user} became {output}");
        }
    }
    let mut config = container(cri, &image, "good", &["sh", "-c", "id -u; id -G"]);
    security(&mut config).run_as_username = "good".into();
    let output = attempt(cri, &pod, &config).unwrap();
    assert!(
        output == "1234\n1234 77\n" || cri.is_reference(),
        "{output}"
    );
}

/// [S14] Whatever passwd is, the answer is prompt, and no user comes of what is no file.
fn refuses_passwd(cri: &Cri, tar: Tarball) {
    let image = pulled(cri, tar, json!({"Cmd": ["id"]}));
    let pod = cri.pod();
    let mut config = container(cri, &image, "one", &["id", "-u"]);
    security(&mut config).run_as_username = "alice".into();
    if let Ok(output) = attempt(cri, &pod, &config) {
        panic!("alice is {output}");
    }
    // A number needs no file, or fails as well.
    let mut config = container(cri, &image, "two", &["id", "-u"]);
    security(&mut config).run_as_user = crate::cri::number(1000);
    if let Ok(output) = attempt(cri, &pod, &config) {
        assert_eq!(output, "1000\n");
    }
}

fn passwd_that_is_a_fifo(cri: &Cri) {
    if waits_for_a_writer(cri) {
        return;
    }
    refuses_passwd(cri, Tarball::new().fifo("etc/passwd").fifo("etc/group"));
}

fn waits_for_a_writer(cri: &Cri) -> bool {
    if cri.is_reference() {
        println!("stock containerd waits for somebody to write into it");
    }
    cri.is_reference()
}

fn passwd_that_is_a_link_to_a_fifo(cri: &Cri) {
    if waits_for_a_writer(cri) {
        return;
    }
    let tar = Tarball::new().fifo("fifo").symlink("etc/passwd", "/fifo");
    refuses_passwd(cri, tar.symlink("etc/group", "../fifo"));
}

fn passwd_that_is_a_device(cri: &Cri) {
    let tar = Tarball::new().char_device("zero", 1, 5);
    refuses_passwd(
        cri,
        tar.symlink("etc/passwd", "/zero")
            .symlink("etc/group", "/zero"),
    );
}

fn passwd_that_is_a_folder(cri: &Cri) {
    refuses_passwd(
        cri,
        Tarball::new()
            .whiteout("etc", "passwd")
            .dir("etc/passwd", 0o755),
    );
}

fn passwd_that_is_a_link_to_itself(cri: &Cri) {
    refuses_passwd(cri, Tarball::new().symlink("etc/passwd", "passwd"));
}

/// [S14] The host's users are nobody in a container.
fn passwd_that_is_a_link_out(cri: &Cri) {
    let dir = outside(cri);
    fs::write(dir.join("passwd"), "alice:x:666:666::/:/bin/sh\n").unwrap();
    let target = format!(
        "{}{}",
        "../".repeat(20),
        &dir.join("passwd").to_string_lossy()[1..]
    );
    let tar = Tarball::new().symlink("etc/passwd", &target);
    let image = pulled(cri, tar, json!({"Cmd": ["id"], "User": "alice"}));
    let config = container(cri, &image, "one", &["id", "-u"]);
    if let Ok(output) = attempt(cri, &cri.pod(), &config) {
        panic!("alice is {output}");
    }
}

/// [S14] A link that stays inside, absolute or not, is followed: images have such.
fn passwd_behind_a_link_inside(cri: &Cri) {
    let pod = cri.pod();
    for (name, target) in [
        ("absolute", "/usr/etc/passwd"),
        ("relative", "../usr/etc/passwd"),
    ] {
        let tar = Tarball::new()
            .dir("usr/etc", 0o755)
            .file("usr/etc/passwd", 0o644, "carol:x:4242:4242::/:/bin/sh\n")
            .symlink("etc/passwd", target);
        let image = pulled(cri, tar, json!({"Cmd": ["id"], "User": "carol"}));
        let config = container(cri, &image, name, &["id", "-u"]);
        assert_eq!(
            attempt(cri, &pod, &config).as_deref(),
            Ok("4242\n"),
            "{name}"
        );
    }
}

/// [S14] Long lines are read in a time that is short.
fn passwd_with_a_line_of_megabytes(cri: &Cri) {
    let passwd = format!("{}\nalice:x:1000:1000::/:/bin/sh\n", "a:".repeat(2 << 20));
    let group = format!("g:x:5:{}\nstaff:x:50:alice\n", "b,".repeat(1 << 20));
    let tar = Tarball::new()
        .file("etc/passwd", 0o644, passwd)
        .file("etc/group", 0o644, group);
    let image = pulled(cri, tar, json!({"Cmd": ["id"], "User": "alice"}));
    let config = container(cri, &image, "one", &["sh", "-c", "id -u; id -G"]);
    // Go's scanner gives up at a line of 64 KiB: stock containerd refuses the image.
    match attempt(cri, &cri.pod(), &config) {
        Ok(output) => assert_eq!(output, "1000\n1000 50\n"),
        Err(error) => assert!(cri.is_reference(), "{error}"),
    }
}

/// [S16] The folder is made inside.
fn working_directory_behind_a_link_out(cri: &Cri) {
    let dir = outside(cri);
    let target = dir.to_string_lossy().into_owned();
    let up = format!("{}{}", "../".repeat(20), &target[1..]);
    let pod = cri.pod();
    for (name, link) in [("absolute", target.as_str()), ("relative", up.as_str())] {
        let tar = Tarball::new().symlink("out", link);
        let config = json!({"Cmd": ["pwd"], "WorkingDir": "/out/made/for/it"});
        let image = pulled(cri, tar, config);
        let config = container(cri, &image, name, &["sh", "-c", "pwd; ls"]);
        if let Ok(output) = attempt(cri, &pod, &config) {
            assert!(!output.contains("secret"), "{output}");
        }
        let config = container(cri, &image, &format!("{name}2"), &["ls", "/out"]);
        if let Ok(output) = attempt(cri, &pod, &config) {
            assert!(!output.contains("secret"), "{output}");
        }
    }
    untouched(&dir);
}

/// [S16] A volume gets what the image has there, and nothing of the host.
fn volume_behind_a_link_out(cri: &Cri) {
    let dir = outside(cri);
    let tar = Tarball::new()
        .symlink("vol", &dir.to_string_lossy())
        .dir("real", 0o755)
        .file("real/kept", 0o600, "kept")
        .symlink("real/out", &dir.join("secret").to_string_lossy());
    let config = json!({"Cmd": ["ls"], "Volumes": {"/vol": {}, "/real": {}}});
    let image = pulled(cri, tar, config);
    let script =
        "ls -a /vol; cat /vol/secret; cat /real/kept; cat /real/out; echo; echo x >/vol/new; true";
    let config = container(cri, &image, "one", &["sh", "-c", script]);
    if let Ok(output) = attempt(cri, &cri.pod(), &config) {
        assert!(
            !output.contains("of the host") && !output.contains("secret"),
            "{output}"
        );
        assert!(output.contains("kept"), "{output}");
    }
    untouched(&dir);
}

/// [S16]
fn volumes_with_dots(cri: &Cri) {
    let dir = outside(cri);
    let up = format!("/a/{}{}", "../".repeat(20), &dir.to_string_lossy()[1..]);
    let volumes = json!({&up: {}, "..": {}, "relative": {}, "/proc/../..": {}});
    let image = pulled(
        cri,
        Tarball::new(),
        json!({"Cmd": ["ls"], "Volumes": volumes}),
    );
    let script = format!("ls {up}; echo x >{up}/new; true", up = dir.display());
    let config = container(cri, &image, "one", &["sh", "-c", &script]);
    if let Ok(output) = attempt(cri, &cri.pod(), &config) {
        assert!(!output.contains("secret"), "{output}");
    }
    untouched(&dir);
}

/// [S16] hosts, hostname and resolv.conf of a pod.
fn files_of_the_pod_behind_links_out(cri: &Cri) {
    let dir = outside(cri);
    let target = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let tar = Tarball::new()
        .symlink("etc/hosts", &target("hosts"))
        .symlink("etc/hostname", &target("secret"))
        .symlink(
            "etc/resolv.conf",
            &format!("{}{}", "../".repeat(20), &target("resolv.conf")[1..]),
        );
    let image = pulled(cri, tar, json!({"Cmd": ["true"]}));
    let mut config = cri.cni_config("pod");
    config.hostname = "victim".into();
    let pod = cri.run(&config);
    let config = container(
        cri,
        &image,
        "one",
        &["sh", "-c", "cat /etc/hostname; echo x >>/etc/hosts; true"],
    );
    if let Ok(output) = attempt(cri, &pod, &config) {
        assert!(!output.contains("of the host"), "{output}");
    }
    untouched(&dir);
}

/// [S05, S16] A mount lands inside, however the image has bent the way.
fn mount_point_behind_a_link_out(cri: &Cri) {
    let dir = outside(cri);
    let volume = cri.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("mounted"), "").unwrap();
    let tar = Tarball::new().symlink("mnt", &dir.to_string_lossy());
    let image = pulled(cri, tar, json!({"Cmd": ["true"]}));
    let pod = cri.pod();
    let up = format!("/{}{}", "../".repeat(20), &dir.to_string_lossy()[1..]);
    for (number, place) in ["/mnt", "/mnt/deeper", &up].into_iter().enumerate() {
        let mut config = container(cri, &image, &format!("c{number}"), &["ls", "/mnt"]);
        config.mounts = vec![v1::Mount {
            host_path: volume.to_string_lossy().into_owned(),
            container_path: place.into(),
            ..Default::default()
        }];
        if let Ok(output) = attempt(cri, &pod, &config) {
            assert!(!output.contains("secret"), "{output}");
        }
        untouched(&dir);
    }
}

/// [S16] A part of an image that is not in the image.
fn image_volume_with_links_out(cri: &Cri) {
    let dir = outside(cri);
    let target = dir.to_string_lossy().into_owned();
    let tar = Tarball::new()
        .symlink("out", &target)
        .symlink("up", &format!("{}{}", "../".repeat(20), &target[1..]))
        .symlink("root", "/")
        .file("file", 0o644, "file");
    let image = pulled(cri, tar, json!({"Cmd": ["true"]}));
    let pod = cri.pod();
    let mut number = 0;
    for part in [
        "..",
        "../../..",
        "out",
        "up",
        "out/../..",
        "no/such",
        &target,
    ] {
        number += 1;
        let mut config = cri.container_config(&format!("c{number}"), &["ls", "/volume"]);
        config.mounts = vec![v1::Mount {
            container_path: "/volume".into(),
            image: Some(spec(&image)),
            image_sub_path: part.into(),
            readonly: true,
            ..Default::default()
        }];
        match attempt(cri, &pod, &config) {
            Ok(output) => panic!("{part} shows {output}"),
            Err(error) => assert!(error.contains("ImageVolumeMountFailed"), "{part}: {error}"),
        }
    }
    untouched(&dir);
}

/// [S18] Labels of an image are words: they make no pod of a container, and wake nobody.
fn labels_of_the_daemons_own(cri: &Cri) {
    let labels = json!({
        "io.cri-containerd.kind": "sandbox",
        "io.cri-containerd.image": "no",
        "containerd.io/restart.status": "running",
        "containerd.io/gc.root": "now",
        "org.example.kept": "yes",
    });
    let image = pulled(
        cri,
        Tarball::new(),
        json!({"Cmd": ["sleep", "1000"], "Labels": labels}),
    );
    let pod = cri.pod();
    let id = cri.started(&pod, &container(cri, &image, "one", &["sleep", "1000"]));
    let peer = corten_integration::peers::reference("ctr");
    let info = Cmd::new(peer)
        .arg("-a")
        .arg(cri.machine.daemon.socket())
        .words("-n k8s.io containers info")
        .arg(&id)
        .ok();
    let info: Value = serde_json::from_str(&info).unwrap();
    let labels = &info["Labels"];
    assert_eq!(labels["io.cri-containerd.kind"], "container", "{labels}");
    assert_eq!(labels["org.example.kept"], "yes", "{labels}");
    for key in ["containerd.io/restart.status", "containerd.io/gc.root"] {
        // Stock containerd passes them on to its own restart monitor and collector.
        assert!(
            labels[key].is_null() || cri.is_reference(),
            "{key}: {labels}"
        );
    }
    assert_eq!(cri.pods().len(), 1);
}

/// [S17, S18] Entries without a name, without a value, with line ends and with zero bytes.
fn environment_that_is_none(cri: &Cri) {
    let pod = cri.pod();
    let image = |entries: Value| {
        let config = json!({"Cmd": ["env"], "Env": entries});
        let image = images::busybox_with(&cri.name, Vec::new(), config);
        taken(cri, &image)
    };
    let name = image(json!(["PATH=/bin", "NOVALUE", "=noname", "", "A=b\nC=d"]));
    let config = container(
        cri,
        &name,
        "lines",
        &[
            "sh",
            "-c",
            "cat /proc/self/environ | tr '\\0\\n' ';|'; echo",
        ],
    );
    if let Ok(output) = attempt(cri, &pod, &config) {
        assert!(
            output.contains("PATH=/bin") && !output.contains(";C=d"),
            "{output}"
        );
    }
    let name = image(json!(["PATH=/bin", "A=b\0LD_PRELOAD=/evil.so"]));
    let config = container(cri, &name, "zero", &["env"]);
    if let Ok(output) = attempt(cri, &pod, &config) {
        assert!(!output.contains("LD_PRELOAD"), "{output}");
    }
}

/// [S17] A word that ends early would be another command.
fn commands_with_zero_bytes(cri: &Cri) {
    let pod = cri.pod();
    let image = pulled(
        cri,
        Tarball::new(),
        json!({"Entrypoint": ["/bin/echo\0x"], "Cmd": ["a\0b"]}),
    );
    let config = container(cri, &image, "one", &[]);
    if let Ok(output) = attempt(cri, &pod, &config) {
        panic!("it ran: {output}");
    }
    let image = pulled(cri, Tarball::new(), json!({"Entrypoint": [], "Cmd": []}));
    fails(
        cri.create(&pod, &container(cri, &image, "two", &[])),
        "no command specified",
    );
    let image = pulled(
        cri,
        Tarball::new(),
        json!({"Entrypoint": [""], "Cmd": ["x"]}),
    );
    assert!(attempt(cri, &pod, &container(cri, &image, "three", &[])).is_err());
}

/// [S18] Whatever an image wants to be stopped with, it can be stopped.
fn stop_signals_that_are_none(cri: &Cri) {
    let pod = cri.pod();
    for (number, signal) in ["SIGNOSUCH", "-9", "0", "99999", "9; reboot"]
        .into_iter()
        .enumerate()
    {
        let config = json!({"Cmd": ["sleep", "1000"], "StopSignal": signal});
        let image = pulled(cri, Tarball::new(), config);
        let config = container(cri, &image, &format!("c{number}"), &["sleep", "1000"]);
        let id = cri.started(&pod, &config);
        // Stock containerd refuses to stop what it cannot signal, but kills it.
        if !cri.is_reference() {
            cri.stop(&id, 1);
            assert_ne!(cri.status(&id).finished_at, 0, "{signal}");
        }
        cri.stop(&id, 0);
        cri.remove(&id);
    }
}

/// [S15] Nothing of an image is run or loaded outside of its container: each of these would leave a mark on the host.
fn programs_that_the_node_has_too(cri: &Cri) {
    let dir = outside(cri);
    let script = format!("#!/bin/busybox sh\necho \"$0\" >>{}/ran\n", dir.display());
    let programs = [
        "runc",
        "criu",
        "mount",
        "umount",
        "newuidmap",
        "newgidmap",
        "nsenter",
        "ldconfig",
        "modprobe",
        "unpigz",
        "igzip",
        "gzip",
        "tar",
        "cp",
        "chown",
        "mkfs.erofs",
        "iptables",
        "containerd-shim-corten-v2",
        "containerd-shim-runc-v2",
    ];
    let mut tar = Tarball::new()
        .file("etc/passwd", 0o644, "carol:x:4242:4242::/:/bin/sh\n")
        .file(
            "etc/nsswitch.conf",
            0o644,
            "passwd: evil files\ngroup: evil files\n",
        )
        .file("etc/ld.so.preload", 0o644, "/lib/evil.so\n")
        .file("volume/kept", 0o644, "kept");
    for place in ["lib", "lib64", "usr/lib"] {
        for name in ["evil.so", "libnss_evil.so.2", "libnss_files.so.2"] {
            tar = tar.file(&format!("{place}/{name}"), 0o755, &script);
        }
    }
    for name in programs {
        tar = tar.file(&format!("evil/{name}"), 0o755, &script);
    }
    let config = json!({
        "Cmd": ["sleep"], "Env": ["PATH=/evil:/bin", "LD_PRELOAD=/lib/evil.so"], "User": "carol",
        "WorkingDir": "/made", "Volumes": {"/volume": {}},
    });
    let image = images::busybox_with(&cri.name, vec![Layer::gzip(tar)], config);
    let image = taken(cri, &image);
    let pod = cri.pod();
    let config = container(cri, &image, "one", &["/bin/sleep", "1000"]);
    let id = cri.started(&pod, &config);
    assert_eq!(cri.shell(&id, "id -u; cat /volume/kept"), "4242\nkept");
    // Daemon and shim have mapped nothing of any container: what is below the daemon's folders is an image's.
    let machine = &cri.machine;
    let mut pids = vec![machine.daemon.pid()];
    let shims = leaks::processes_naming(&pod.id).into_iter();
    pids.extend(shims.map(|(pid, _)| pid));
    assert!(pids.len() > 1, "a shim");
    for pid in pids {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let code = |line: &&str| line.split(' ').nth(1).is_some_and(|p| p.contains('x'));
        let maps = maps.lines().filter(code).collect::<Vec<_>>().join("\n");
        for place in [machine.daemon.root(), machine.daemon.state()] {
            let place = place.to_string_lossy().into_owned();
            assert!(!maps.contains(&place), "{pid}: {maps}");
        }
        assert!(
            !maps.contains("evil") && !maps.contains("libnss_"),
            "{pid}: {maps}"
        );
    }
    cri.stop(&id, 0);
    cri.remove(&id);
    untouched(&dir);
}
