//! Owns what CDI devices change in a document.

use std::path::Path;

use corten_core::{Context, Error, Result};

use super::super::defaults::RWM;
use super::super::oci::{self, DeviceRule, Spec};
use super::super::{devices, paths};
use super::format::{Edits, Hook, Mount, NO_ACCESS, Node};

/// Applies all of it.
pub(super) fn apply(spec: &mut Spec, edits: Edits) -> Result<()> {
    for entry in &edits.env {
        set_env(&mut spec.process().env, entry);
    }
    for node in edits.device_nodes {
        add_node(spec, node)?;
    }
    for device in edits.net_devices {
        let interface = oci::NetDevice {
            name: device.name,
            ..oci::NetDevice::default()
        };
        let all = &mut spec.linux().net_devices;
        all.insert(device.host_interface_name, interface);
    }
    let sort = !edits.mounts.is_empty();
    for mount in edits.mounts {
        add_mount(spec, mount);
    }
    if sort {
        spec.mounts.sort_by_key(|m| paths::depth(&m.destination));
    }
    for hook in edits.hooks {
        add_hook(spec, hook)?;
    }
    if let Some(rdt) = edits.intel_rdt {
        spec.linux().intel_rdt = Some(oci::IntelRdt {
            clos_id: rdt.clos_id,
            l3_cache_schema: rdt.l3_cache_schema,
            mem_bw_schema: rdt.mem_bw_schema,
            schemata: rdt.schemata.unwrap_or_default(),
            enable_monitoring: rdt.enable_monitoring,
            ..oci::IntelRdt::default()
        });
    }
    let groups = &mut spec.process().user.additional_gids;
    for gid in edits.additional_gids {
        if gid != 0 && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    Ok(())
}

/// In place of the last entry of that name, or behind all.
fn set_env(env: &mut Vec<String>, entry: &str) {
    let name = |e: &str| e.split('=').next().unwrap_or_default().to_owned();
    let wanted = name(entry);
    match env.iter().rposition(|e| name(e) == wanted) {
        Some(at) => entry.clone_into(&mut env[at]),
        None => env.push(entry.to_owned()),
    }
}

fn add_node(spec: &mut Spec, node: Node) -> Result<()> {
    let access = match node.permissions.as_str() {
        "" => RWM,
        NO_ACCESS => "",
        access => access,
    }
    .to_owned();
    let mut device = complete(node)?;
    let user = &spec.process().user;
    let unless_root = |id: u32| (id > 0).then_some(id);
    device.uid = device.uid.or_else(|| unless_root(user.uid));
    device.gid = device.gid.or_else(|| unless_root(user.gid));
    if ["b", "c"].contains(&device.kind.as_str()) {
        spec.resources().devices.push(DeviceRule {
            allow: true,
            kind: device.kind.clone(),
            major: Some(device.major),
            minor: Some(device.minor),
            access,
            ..DeviceRule::default()
        });
    }
    let all = &mut spec.linux().devices;
    all.retain(|known| known.path != device.path);
    all.push(device);
    Ok(())
}

/// Fills in from the host's node what the description leaves open.
fn complete(node: Node) -> Result<oci::Device> {
    let mut device = oci::Device {
        path: node.path.clone(),
        kind: node.kind,
        major: node.major,
        minor: node.minor,
        file_mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
        ..oci::Device::default()
    };
    let path = match node.host_path.as_str() {
        "" => &node.path,
        host => host,
    };
    let enough = !device.kind.is_empty() && (device.major != 0 || device.kind == "p");
    let what = || format!("failed to stat CDI host device {path:?}");
    let found = match devices::node(Path::new(path)) {
        Ok(Some(found)) => found,
        _ if enough => return Ok(device),
        Ok(None) => return Err(Error::invalid(format!("{}: not a device node", what()))),
        Err(e) => return Err(Error::from(e)).context(what()),
    };
    device.file_mode = device.file_mode.or(found.file_mode);
    if enough {
        return Ok(device);
    }
    if device.kind.is_empty() {
        device.kind.clone_from(&found.kind);
    }
    if device.kind != found.kind {
        return Err(Error::invalid(format!(
            "CDI device ({:?}, {path:?}), host type mismatch ({}, {})",
            device.path, device.kind, found.kind
        )));
    }
    if device.kind != "p" && device.major == 0 {
        (device.major, device.minor) = (found.major, found.minor);
    }
    Ok(device)
}

fn add_mount(spec: &mut Spec, mount: Mount) {
    let linux = spec.linux.as_ref();
    let mapped = linux.is_some_and(|l| l.namespaces.iter().any(|ns| ns.kind == "user"));
    let mut options = mount.options;
    if mapped && !options.iter().any(|o| o == "idmap" || o == "ridmap") {
        // The last word on what is bound decides.
        let bind = options
            .iter()
            .rfind(|o| ["bind", "rbind"].contains(&o.as_str()));
        match (bind.map(String::as_str), mount.kind.as_str()) {
            (Some("rbind"), _) => options.push("ridmap".into()),
            (Some(_), _) | (None, "bind") => options.push("idmap".into()),
            (None, _) => {}
        }
    }
    if let Some(at) = spec
        .mounts
        .iter()
        .position(|m| m.destination == mount.container_path)
    {
        spec.mounts.remove(at);
    }
    spec.mounts.push(oci::Mount {
        destination: mount.container_path,
        source: mount.host_path,
        kind: mount.kind,
        options,
        ..oci::Mount::default()
    });
}

fn add_hook(spec: &mut Spec, hook: Hook) -> Result<()> {
    let all = spec.hooks.get_or_insert_default();
    let list = match hook.hook_name.as_str() {
        "prestart" => &mut all.prestart,
        "createRuntime" => &mut all.create_runtime,
        "createContainer" => &mut all.create_container,
        "startContainer" => &mut all.start_container,
        "poststart" => &mut all.poststart,
        "poststop" => &mut all.poststop,
        name => return Err(Error::invalid(format!("unknown hook name {name:?}"))),
    };
    list.push(oci::Hook {
        path: hook.path,
        args: hook.args,
        env: hook.env,
        timeout: hook.timeout,
        ..oci::Hook::default()
    });
    Ok(())
}
