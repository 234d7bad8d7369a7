//! Config files of every version, as found in the wild.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;

fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    let mut f = std::fs::File::create(&path).unwrap();
    f.write_all(text.as_bytes()).unwrap();
    path
}

fn load_text(text: &str) -> (Config, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    load(&file(dir.path(), "config.toml", text), true).unwrap()
}

#[test]
fn version_2_and_3_listeners_move_to_plugins() {
    for version in [2, 3] {
        let (c, _) = load_text(&format!(
            "version = {version}\nimports = []\n[grpc]\naddress = \"/run/x.sock\"\ngid = 5\n[debug]\nlevel = \"debug\"\naddress = \"/run/d.sock\"\n"
        ));
        assert_eq!(c.grpc().unwrap().address, "/run/x.sock");
        assert_eq!(c.grpc().unwrap().gid, 5);
        assert_eq!(c.ttrpc().unwrap().address, "/run/x.sock.ttrpc");
        assert_eq!(c.debug.level, "debug");
        assert_eq!(
            c.plugins[DEBUG_TABLE]["address"].as_str(),
            Some("/run/d.sock")
        );
        assert_eq!(c.version, VERSION);
    }
}

#[test]
fn version_2_cri_table_is_split() {
    let (c, _) = load_text(
        r#"
version = 2
imports = []
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause:3"
  stream_server_port = "10010"
  enable_selinux = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "corten"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/certs.d"
"#,
    );
    let runtime = &c.plugins["io.containerd.cri.v1.runtime"];
    assert_eq!(runtime["enable_selinux"].as_bool(), Some(true));
    assert_eq!(
        runtime["containerd"]["default_runtime_name"].as_str(),
        Some("corten")
    );
    assert_eq!(runtime["cni"]["bin_dirs"][0].as_str(), Some("/usr/lib/cni"));
    let images = &c.plugins["io.containerd.cri.v1.images"];
    assert_eq!(images["snapshotter"].as_str(), Some("native"));
    assert_eq!(images["pinned_images"]["sandbox"].as_str(), Some("pause:3"));
    assert_eq!(
        images["registry"]["config_path"].as_str(),
        Some("/etc/certs.d")
    );
    let grpc = &c.plugins["io.containerd.grpc.v1.cri"];
    assert_eq!(grpc["stream_server_port"].as_str(), Some("10010"));
}

#[test]
fn the_default_configuration_of_containerd_1_starts_the_cri() {
    // What `containerd config default` of 1.6 and 1.7 says, as far as later versions have other names for it.
    let (c, _) = load_text(
        r#"
version = 2
imports = []
[plugins."io.containerd.grpc.v1.cri"]
  stats_collect_period = 10
  image_pull_with_sync_fs = true
  drain_exec_sync_io_timeout = "0s"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_engine = ""
    runtime_type = "io.containerd.runc.v2"
    sandbox_mode = "podsandbox"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      CriuPath = ""
      SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/old"
    bin_dirs = ["/new"]
[plugins."io.containerd.runtime.v2.task"]
  platforms = ["linux/amd64"]
  sched_core = true
[plugins."io.containerd.shim.v1.manager"]
  env = ["A=1"]
"#,
    );
    let runtime: corten_cri::config::Runtime = c.table("io.containerd.cri.v1.runtime").unwrap();
    let runc = &runtime.containerd.runtimes["runc"];
    assert_eq!(runc.sandboxer, "podsandbox");
    assert_eq!(runtime.cni.bin_dirs, [std::path::Path::new("/new")]);
    let images: corten_cri::config::Images = c.table("io.containerd.cri.v1.images").unwrap();
    assert_eq!(images.stats_collect_period, 10);
    assert!(images.image_pull_with_sync_fs);
    let tasks = &c.plugins["io.containerd.runtime.v2.task"];
    assert!(!tasks.contains_key("sched_core") && tasks.contains_key("platforms"));
    let env = c.plugins["io.containerd.shim.v1.manager"]["env"].as_array();
    let env: Vec<_> = env
        .unwrap()
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    assert_eq!(env, ["A=1", "SCHED_CORE=1"]);
}

#[test]
fn version_1_short_names_get_their_uris() {
    let (c, _) = load_text(
        "imports = []\ndisabled_plugins = [\"cri\"]\n[plugins.overlayfs]\nsync_remove = true\n",
    );
    assert_eq!(c.disabled_plugins, ["io.containerd.grpc.v1.cri"]);
    let overlay = &c.plugins["io.containerd.snapshotter.v1.overlayfs"];
    assert_eq!(overlay["sync_remove"].as_bool(), Some(true));
}

#[test]
fn the_order_of_differs_stays_with_its_service() {
    for version in [2, 4] {
        let (c, _) = load_text(&format!(
            "version = {version}\nimports = []\n[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"erofs\", \"walking\"]\n"
        ));
        let diff = &c.plugins["io.containerd.service.v1.diff-service"];
        assert_eq!(diff["default"][0].as_str(), Some("erofs"));
    }
}

#[test]
fn proxy_plugins_have_types() {
    let (c, _) = load_text(
        "version = 3\nimports = []\n[proxy_plugins.soci]\ntype = \"snapshot\"\naddress = \"/run/soci.sock\"\n[proxy_plugins.soci.exports]\nroot = \"/var/lib/soci\"\n",
    );
    assert_eq!(c.proxy_plugins["soci"].kind, "snapshot");
    assert_eq!(c.proxy_plugins["soci"].exports["root"], "/var/lib/soci");
    let dir = tempfile::tempdir().unwrap();
    let text = "version = 4\n[proxy_plugins.a]\ntype = \"snapshot\"\naddress = 7\n";
    let e = load(&file(dir.path(), "p.toml", text), true).unwrap_err();
    for part in ["p.toml", "line 4", "address = 7"] {
        assert!(e.to_string().contains(part), "{e}");
    }
}

#[test]
fn imports_merge_in_order_and_zero_values_do_not_override() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    file(
        d,
        "10-a.toml",
        "version = 3\noom_score = 0\nrequired_plugins = [\"io.containerd.b.v1.b\"]\n",
    );
    file(
        d,
        "20-b.toml",
        "version = 4\n[debug]\nlevel = \"warn\"\n[plugins.\"io.containerd.x.v1.x\"]\nflag = false\n",
    );
    let main = file(
        d,
        "main.toml",
        "version = 3\nimports = [\"*-?.toml\"]\noom_score = -5\nrequired_plugins = [\"io.containerd.a.v1.a\"]\n[debug]\nlevel = \"info\"\n[plugins.\"io.containerd.x.v1.x\"]\nflag = true\n",
    );
    let (c, _) = load(&main, true).unwrap();
    assert_eq!(c.oom_score, -5);
    assert_eq!(
        c.required_plugins,
        ["io.containerd.a.v1.a", "io.containerd.b.v1.b"]
    );
    assert_eq!(c.debug.level, "warn");
    assert_eq!(
        c.plugins["io.containerd.x.v1.x"]["flag"].as_bool(),
        Some(false)
    );
}

#[test]
fn unknown_keys_warn_and_wrong_types_name_file_line_and_key() {
    let (_, warnings) = load_text("version = 3\nimports = []\nno_such_key = 1\n");
    assert!(
        warnings.iter().any(|w| w.contains("no_such_key")),
        "{warnings:?}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "bad.toml", "version = 3\n\nroot = 7\n");
    let e = load(&path, true).unwrap_err().to_string();
    for part in ["bad.toml", "line 3", "root = 7"] {
        assert!(e.contains(part), "{e}");
    }
    let path = file(dir.path(), "new.toml", "version = 5\n");
    assert!(matches!(
        load(&path, true),
        Err(ConfigError::Version { version: 5, .. })
    ));
    let path = file(
        dir.path(),
        "short.toml",
        "version = 3\nrequired_plugins = [\"cri\"]\n",
    );
    assert!(load(&path, true).is_err());
}

#[test]
fn a_missing_file_is_fine_only_when_it_may_be_missing() {
    assert!(load(Path::new("/nonexistent/config.toml"), false).is_ok());
    assert!(load(Path::new("/nonexistent/config.toml"), true).is_err());
}

#[test]
fn what_is_rendered_loads_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = render(
        &Config {
            imports: Vec::new(),
            ..Config::default()
        },
        &[],
    )
    .unwrap();
    let (c, warnings) = load(&file(dir.path(), "c.toml", &text), true).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(c.grpc().unwrap().address, "/run/containerd/containerd.sock");
}
