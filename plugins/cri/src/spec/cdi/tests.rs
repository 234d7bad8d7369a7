//! CDI files, from hostile to useful.

use crate::spec::file::MAX_FILE;
use serde_json::{Value, json};

use super::*;

fn device(name: &str) -> CdiDevice {
    CdiDevice { name: name.into() }
}

/// Folders with these files; `.yaml` ones are written as they are.
fn registry(folders: &[&[(&str, String)]]) -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (n, files) in folders.iter().enumerate() {
        let folder = dir.path().join(n.to_string());
        fs::create_dir(&folder).unwrap();
        for (name, text) in *files {
            fs::write(folder.join(name), text).unwrap();
        }
        paths.push(folder);
    }
    paths.push(dir.path().join("missing"));
    (dir, Registry::new(&paths))
}

fn gpu(edits: &Value) -> String {
    json!({"cdiVersion": "0.5.0", "kind": "vendor.com/gpu",
        "devices": [{"name": "0", "containerEdits": edits}]})
    .to_string()
}

fn env(text: &str) -> String {
    gpu(&json!({"env": [text]}))
}

fn inject(registry: &Registry, names: &[&str]) -> Result<Spec> {
    let mut spec = Spec::default();
    let asked: Vec<CdiDevice> = names.iter().map(|n| device(n)).collect();
    registry
        .inject(&mut spec, &asked, &BTreeMap::new())
        .map(|()| spec)
}

const GPU: &str = "vendor.com/gpu=0";

#[test]
fn a_device_changes_the_document() {
    let text = json!({
        "cdiVersion": "1.1.0", "kind": "vendor.com/gpu",
        "containerEdits": {"env": ["COMMON=1"]},
        "devices": [{"name": "0", "containerEdits": {
            "env": ["A=2"],
            "deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/null", "permissions": "rw"},
                {"path": "/dev/far", "type": "c", "major": 7, "minor": 8, "permissions": "none", "uid": 5}],
            "netDevices": [{"hostInterfaceName": "eth7", "name": "net0"}],
            "mounts": [{"hostPath": "/lib/x", "containerPath": "/lib/x", "options": ["ro", "rbind"]}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook"], "timeout": 3}],
            "intelRdt": {"closID": "c"},
            "additionalGids": [0, 44, 44],
        }}],
    });
    let (_dir, registry) = registry(&[&[("a.json", text.to_string())]]);
    let mut spec = Spec::default();
    spec.process().env = vec!["A=1".into()];
    spec.process().user.gid = 9;
    spec.set_namespace("user", "");
    let annotations = BTreeMap::from([("cdi.k8s.io/x".to_owned(), GPU.to_owned())]);
    registry
        .inject(&mut spec, &[device(GPU), device(GPU)], &annotations)
        .unwrap();
    let got = serde_json::to_value(&spec).unwrap();
    assert_eq!(got["process"]["env"], json!(["A=2", "COMMON=1"]));
    assert_eq!(got["process"]["user"]["additionalGids"], json!([44]));
    let devices = &got["linux"]["devices"];
    assert_eq!(devices.as_array().unwrap().len(), 2);
    assert_eq!(devices[0]["path"], "/dev/gpu");
    assert_eq!(
        (&devices[0]["major"], &devices[0]["minor"]),
        (&json!(1), &json!(3))
    );
    assert_eq!(
        (&devices[1]["uid"], &devices[1]["gid"]),
        (&json!(5), &json!(9))
    );
    let rules = &got["linux"]["resources"]["devices"];
    assert_eq!(
        (&rules[0]["access"], &rules[1]["access"]),
        (&json!("rw"), &Value::Null)
    );
    assert_eq!(got["linux"]["netDevices"]["eth7"]["name"], "net0");
    assert_eq!(
        got["mounts"][0]["options"],
        json!(["ro", "rbind", "ridmap"])
    );
    assert_eq!(got["hooks"]["createContainer"][0]["timeout"], 3);
    assert_eq!(got["linux"]["intelRdt"]["closID"], "c");
}

#[test]
fn yaml_is_read_too() {
    let text = "---\ncdiVersion: \"0.5.0\"\nkind: vendor.com/gpu\ndevices:\n- name: \"0\"\n  \
        containerEdits:\n    env:\n    - A=1\n    deviceNodes:\n    - path: /dev/x\n      \
        hostPath: /dev/null\n      fileMode: 438\n";
    let (_dir, registry) = registry(&[&[("a.yaml", text.into())]]);
    let spec = inject(&registry, &[GPU]).unwrap();
    let linux = spec.linux.unwrap();
    assert_eq!(linux.devices[0].file_mode, Some(438));
    assert_eq!(spec.process.unwrap().env, ["A=1"]);
}

#[test]
fn later_folders_go_before_and_equals_quarrel() {
    let files = |value: &str| ("a.json", env(value));
    let (_dir, two) = registry(&[&[files("A=low")], &[files("A=high")]]);
    assert_eq!(
        inject(&two, &[GPU]).unwrap().process.unwrap().env,
        ["A=high"]
    );
    let quarrel: &[(&str, String)] = &[("a.json", env("A=1")), ("b.json", env("A=2"))];
    let (_dir, one) = registry(&[quarrel]);
    assert!(inject(&one, &[GPU]).is_err());
    let (_dir, over) = registry(&[quarrel, &[files("A=high")]]);
    assert_eq!(
        inject(&over, &[GPU]).unwrap().process.unwrap().env,
        ["A=high"]
    );
}

#[test]
fn what_nobody_describes_is_an_error() {
    let (_dir, registry) = registry(&[&[("a.json", env("A=1")), ("b.json", "{".into())]]);
    inject(&registry, &[GPU]).unwrap();
    let e = inject(&registry, &[GPU, "vendor.com/gpu=1", "x"])
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("unresolvable CDI devices vendor.com/gpu=1, x"),
        "{e}"
    );
    let annotations = BTreeMap::from([("cdi.k8s.io/x".to_owned(), "nonsense".to_owned())]);
    let e = registry
        .inject(&mut Spec::default(), &[], &annotations)
        .unwrap_err()
        .to_string();
    assert!(e.contains("invalid CDI device name \"nonsense\""), "{e}");
    // Other annotations are not ours.
    let annotations = BTreeMap::from([("x.cdi.k8s.io/x".to_owned(), "nonsense".to_owned())]);
    registry
        .inject(&mut Spec::default(), &[], &annotations)
        .unwrap();
}

#[test]
fn files_that_lie_are_not_used() {
    let whole = |version: &str, kind: &str, name: &str, edits: &Value| {
        let file = json!({"cdiVersion": version, "kind": kind,
            "devices": [{"name": name, "containerEdits": edits}]});
        format::parse(file.to_string().as_bytes(), false)
    };
    let good = json!({"env": ["A=1"]});
    whole("v0.3.0", "v.com/c", "a", &good).unwrap();
    whole(
        "1.1.0",
        "v.com/c",
        "a",
        &json!({"netDevices": [{"hostInterfaceName": "e", "name": "n"}]}),
    )
    .unwrap();
    for (version, kind, name, edits) in [
        ("9.0.0", "v.com/c", "a", good.clone()),
        ("0.3.0", "v.com", "a", good.clone()),
        ("0.3.0", "7.com/c", "a", good.clone()),
        ("0.3.0", "v.com/c", "0", good.clone()),
        ("0.5.0", "v.com/c.d", "a", good.clone()),
        ("1.0.0", "v.com/c", "a-", good.clone()),
        ("1.0.0", "v.com/c", "", good.clone()),
        ("1.0.0", "v.com/c", "a", json!({})),
        ("1.0.0", "v.com/c", "a", json!({"env": ["A"]})),
        ("1.0.0", "v.com/c", "a", json!({"unknown": 1})),
        (
            "0.3.0",
            "v.com/c",
            "a",
            json!({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}),
        ),
        (
            "1.0.0",
            "v.com/c",
            "a",
            json!({"mounts": [{"hostPath": "", "containerPath": "/b"}]}),
        ),
        (
            "0.4.0",
            "v.com/c",
            "a",
            json!({"deviceNodes": [{"path": "/a", "hostPath": "/b"}]}),
        ),
        (
            "1.0.0",
            "v.com/c",
            "a",
            json!({"deviceNodes": [{"path": "/a", "type": "x"}]}),
        ),
        (
            "1.0.0",
            "v.com/c",
            "a",
            json!({"deviceNodes": [{"path": "/a", "permissions": "rx"}]}),
        ),
        ("0.6.0", "v.com/c", "a", json!({"additionalGids": [1]})),
        (
            "1.0.0",
            "v.com/c",
            "a",
            json!({"intelRdt": {"closID": "a", "schemata": []}}),
        ),
        (
            "1.0.0",
            "v.com/c",
            "a",
            json!({"intelRdt": {"closID": "../a"}}),
        ),
        (
            "1.0.0",
            "v.com/c",
            "a",
            json!({"hooks": [{"hookName": "never", "path": "/a"}]}),
        ),
        (
            "1.1.0",
            "v.com/c",
            "a",
            json!({"netDevices": [{"hostInterfaceName": "", "name": "n"}]}),
        ),
    ] {
        assert!(
            whole(version, kind, name, &edits).is_err(),
            "{version} {kind} {name} {edits}"
        );
    }
    let twice = json!({"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [
        {"name": "a", "containerEdits": good}, {"name": "a", "containerEdits": {"env": ["B=1"]}}]});
    assert!(format::parse(twice.to_string().as_bytes(), false).is_err());
}

#[test]
fn files_have_a_limit() {
    let padded = |size: u64| {
        let text = env("A=1");
        let blanks = usize::try_from(size).unwrap() - text.len();
        let (_dir, registry) = registry(&[&[("a.json", text + &" ".repeat(blanks))]]);
        inject(&registry, &[GPU])
    };
    padded(MAX_FILE).unwrap();
    assert!(padded(MAX_FILE + 1).is_err());
}

#[test]
fn names_have_a_grammar() {
    for good in ["v.com/c=0", "v/c=a:b", "v_-.x/c=a"] {
        assert!(format::is_qualified(good), "{good}");
    }
    for bad in [
        "", "v/c", "v=c", "/v/c=a", "v/c=", "v/c=a b", "1/c=a", "v/c/d=a", "v/c=a=",
    ] {
        assert!(!format::is_qualified(bad), "{bad}");
    }
}
