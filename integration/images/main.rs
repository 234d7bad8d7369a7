//! `corten-images HOST DIR`: pushes the images of containerd's CRI suite to the plain registry at HOST, under their upstream
//! paths, and writes to DIR what the suite has to be told: `images.toml`, and `ARCHIVE` files as `docker save` makes them.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use corten_integration::images::cri_suite;
use corten_integration::registry::push;

fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    let [host, dir] = args.as_slice() else {
        let _ = writeln!(io::stderr(), "usage: corten-images HOST:PORT DIR");
        return ExitCode::from(2);
    };
    let dir = PathBuf::from(dir);
    fs::create_dir_all(dir.join("archives")).expect("make DIR");
    for image in cri_suite() {
        push(host, &image);
        let (path, tag) = image.repository();
        let _ = writeln!(io::stdout(), "{path}:{tag} {}", image.digest);
        if path == "containerd/busybox" {
            let line = format!("BusyBoxByDigest = \"ghcr.io/{path}@{}\"\n", image.digest);
            fs::write(dir.join("images.toml"), line).expect("write images.toml");
        }
        let archive = image.name.replace('/', "_");
        if path == "containerd/busybox" || path == "pause" {
            fs::write(dir.join("archives").join(archive), image.docker_archive())
                .expect("write an archive");
        }
    }
    ExitCode::SUCCESS
}
