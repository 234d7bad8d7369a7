//! The images that containerd's own CRI suite asks for, under their upstream names: made of busybox and of programs of
//! this machine, so that they do what the suite expects of the originals without being them.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::catalogue::{busybox_binary, dynamic};
use super::{Image, Layer, Recipe};
use crate::tarball::Tarball;

const PATH: &str = "PATH=/bin:/usr/bin:/sbin:/usr/sbin";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
                      www-data:x:33:33:www-data:/var/www:/bin/false\n\
                      nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n";
/// Sleeps until told to end, and reaps what it is given.
const PAUSE: &str = "#include <signal.h>\n#include <stdlib.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
    static void end(int s){_exit(0);} static void reap(int s){while(waitpid(-1,0,WNOHANG)>0);}\n\
    int main(){signal(SIGINT,end);signal(SIGTERM,end);signal(SIGCHLD,reap);for(;;)pause();}";
/// `stress --vm-bytes MEGABYTES -t SECONDS`: touches that much memory and sleeps.
const STRESS: &str = "#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
    int main(int c,char**v){size_t n=0;int t=0;for(int i=1;i<c-1;i++){\
    if(!strcmp(v[i],\"--vm-bytes\"))n=strtoul(v[i+1],0,10)<<20;if(!strcmp(v[i],\"-t\"))t=atoi(v[i+1]);}\n\
    volatile char*p=malloc(n);for(size_t i=0;i<n;i+=4096)p[i]=1;sleep(t);}";
const NGINX: &str = "worker_processes 1; pid /var/run/nginx.pid; error_log /dev/stderr notice; events {}\n\
    http { access_log /dev/stdout; server { listen 80; root /www; } }\n";

/// All of them.
#[must_use]
pub fn cri_suite() -> Vec<Image> {
    let mut images = vec![
        busybox(),
        recipe("ghcr.io/containerd/alpine:3.14.0")
            .layer(Layer::gzip(base()))
            .layer(Layer::gzip(
                Tarball::new().symlink("bin/sh", "/bin/busybox").file(
                    "etc/os-release",
                    0o644,
                    "NAME=\"Alpine Linux\"\nID=alpine\n",
                ),
            ))
            .build(),
        nginx(),
        consumer(),
        volumes(),
        owned(),
        whiteouts(),
    ];
    let pause = compiled(PAUSE);
    let names = [
        "pause:3.6",
        "pause:3.8",
        "pause:3.9",
        "pause:3.10",
        "pause:3.10.1",
        "pause:3.10.2",
        "pause-amd64:3.2",
    ];
    images.extend(names.map(|name| {
        let tar = Tarball::new()
            .file("pause", 0o755, &pause)
            .file("version", 0o644, name);
        recipe(&format!("registry.k8s.io/{name}"))
            .layer(Layer::gzip(tar))
            .config(json!({"Entrypoint": ["/pause"], "Env": [PATH], "User": "65535:65535"}))
            .build()
    }));
    images
}

fn recipe(reference: &str) -> Recipe {
    Recipe::referenced(reference).config(config(&["sh"], &[]))
}

fn config(command: &[&str], volumes: &[&str]) -> Value {
    let volumes: serde_json::Map<_, _> = volumes
        .iter()
        .map(|v| ((*v).to_owned(), json!({})))
        .collect();
    json!({"Cmd": command, "Env": [PATH], "Volumes": volumes})
}

fn busybox() -> Image {
    recipe("ghcr.io/containerd/busybox:1.36")
        .layer(Layer::gzip(base()))
        .build()
}

/// Busybox under all of its names, as hard links, and what the tests call beside it.
fn base() -> Tarball {
    let mut tar = Tarball::new()
        .dirs(
            0o755,
            &[
                "bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "usr/sbin", "var",
                "var/www",
            ],
        )
        .dir("tmp", 0o1777)
        .file("bin/busybox", 0o755, busybox_binary());
    let list = Command::new("busybox")
        .arg("--list")
        .output()
        .expect("busybox-static is installed");
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox" && *a != "pgrep" && *a != "ipcs")
    {
        tar = tar.hardlink_as(&format!("bin/{applet}"), "bin/busybox", 0o755);
    }
    dynamic(tar, &["pgrep", "ipcs"], 0o755)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
}

/// A web server that says when it opens its log again.
fn nginx() -> Image {
    let files = Tarball::new()
        .dirs(
            0o755,
            &[
                "www",
                "etc/nginx",
                "var/run",
                "var/log",
                "var/log/nginx",
                "var/lib",
                "var/lib/nginx",
                "usr/share",
                "usr/share/nginx",
            ],
        )
        .file(
            "www/index.html",
            0o644,
            "<html><body><h1>Welcome to nginx!</h1></body></html>\n",
        )
        .file("etc/nginx/nginx.conf", 0o644, NGINX);
    let mut settings = config(&["nginx", "-g", "daemon off;"], &[]);
    settings["ExposedPorts"] = json!({"80/tcp": {}});
    recipe("ghcr.io/containerd/nginx:1.27.0")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(dynamic(Tarball::new(), &["nginx"], 0o755)))
        .layer(Layer::gzip(files))
        .config(settings)
        .build()
}

fn consumer() -> Image {
    let programs = Tarball::new()
        .file("bin/stress", 0o755, compiled(STRESS))
        .file("consumer", 0o755, compiled(PAUSE));
    recipe("registry.k8s.io/e2e-test-images/resource-consumer:1.10")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(programs))
        .config(json!({"Entrypoint": ["/consumer"], "Env": [PATH]}))
        .build()
}

/// Volumes with content, under names that are hard to split.
fn volumes() -> Image {
    let content = "test_content\n";
    let files = Tarball::new()
        .dirs(
            0o755,
            &["test_dir", "C:", "C:/weird_test_dir", ":colon_prefixed"],
        )
        .file("test_dir/test_file", 0o644, content)
        .file("C:/weird_test_dir/weird_test_file", 0o644, content)
        .file(":colon_prefixed/colon_prefixed_file", 0o644, content);
    recipe("ghcr.io/containerd/volume-copy-up:2.2")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(files))
        .config(config(
            &["sh"],
            &["/test_dir", "C:/weird_test_dir", "/:colon_prefixed"],
        ))
        .build()
}

/// A volume of another owner, and a layer large enough to be seen on its way.
fn owned() -> Image {
    let mut seed = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // Xorshift: what gzip cannot shrink and every run makes alike.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .take(768 << 10)
    .flatten()
    .collect();
    recipe("ghcr.io/containerd/volume-ownership:2.1")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(Tarball::new().file("noise", 0o644, noise)))
        .layer(Layer::gzip(
            Tarball::new().owner(65534, 65534).dir("test_dir", 0o755),
        ))
        .config(config(&["sh"], &["/test_dir"]))
        .build()
}

fn whiteouts() -> Image {
    recipe("ghcr.io/containerd/whiteout-test:1.0")
        .layer(Layer::gzip(base()))
        .layer(Layer::gzip(
            Tarball::new()
                .dir("a", 0o755)
                .file("a/keep", 0o644, "k")
                .file("a/gone", 0o644, "g"),
        ))
        .layer(Layer::gzip(Tarball::new().file("a/.wh.gone", 0o644, "")))
        .build()
}

/// A static program.
fn compiled(source: &str) -> Vec<u8> {
    let dir = std::env::temp_dir().join(format!("corten-cc-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (input, output) = (dir.join("a.c"), dir.join("a"));
    fs::write(&input, source).unwrap();
    let done = Command::new("gcc")
        .args(["-static", "-Os", "-s", "-w", "-o"])
        .args([&output, &input])
        .status()
        .expect("gcc is installed");
    assert!(done.success(), "gcc: {done}");
    let program = fs::read(&output).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    program
}
