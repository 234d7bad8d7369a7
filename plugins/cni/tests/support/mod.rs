//! Network namespaces of a test's own, gone when dropped, also when the test panics.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with namespaces below it.
pub(crate) struct Ground {
    dir: tempfile::TempDir,
    namespaces: Vec<PathBuf>,
}

impl Ground {
    /// None, with the reason printed, where namespaces cannot be made.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("not run: network namespaces need root");
            return None;
        }
        let dir = tempfile::tempdir().expect("temporary folder");
        Some(Self {
            dir,
            namespaces: Vec::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new namespace's path.
    pub(crate) fn namespace(&mut self, name: &str) -> String {
        let file = self.path().join(name);
        std::fs::write(&file, "").expect("mount point");
        self.namespaces.push(file.clone());
        run("unshare", &[&format!("--net={}", file.display()), "true"]);
        file.display().to_string()
    }

    /// Takes a namespace away and leaves its plain file, as a reboot does.
    pub(crate) fn reboot(&self, namespace: &str) {
        run("umount", &[namespace]);
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for file in &self.namespaces {
            // Busy or gone: nothing more can be done, and the next ones are to be tried.
            let _ = Command::new("umount").arg("-l").arg(file).output();
        }
    }
}

/// Runs a command that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let out = output(program, args);
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub(crate) fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .expect("program runs")
}

/// Runs a command in a network namespace.
pub(crate) fn inside(namespace: &str, args: &[&str]) -> String {
    let net = format!("--net={namespace}");
    run("nsenter", &[&[net.as_str()], args].concat())
}

/// Writes an executable.
pub(crate) fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("script");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("mode");
}
