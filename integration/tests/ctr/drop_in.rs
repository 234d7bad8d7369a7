//! A configuration that was written for containerd, as it is.

use std::fs;

use corten_integration::case::Case;
use corten_integration::peers;
use corten_integration::process::Cmd;
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![takes_the_default_configuration_of_containerd]
}

/// What `containerd config default` says is what most machines have in /etc/containerd/config.toml.
fn takes_the_default_configuration_of_containerd(c: &Case) {
    let old = peers::debian("containerd");
    for author in [peers::reference("containerd"), old] {
        let default = Cmd::new(&author).words("config default").ok();
        let file = c.dir.join("default.toml");
        fs::write(&file, default).unwrap();
        let dumped = Cmd::new(c.daemon.kind.program())
            .arg("-c")
            .arg(&file)
            .words("config dump")
            .run();
        assert_eq!(dumped.code(), 0, "{}", dumped.report());
        // Corten says there what a plugin will refuse.
        let said = dumped.err();
        assert!(!said.contains("invalid"), "{}: {said}", author.display());
        // Seconds here, a duration where containerd 2 has a key of the same name.
        let text = dumped.out();
        assert!(text.contains("stats_collect_period = 10"), "{text}");
    }
}
