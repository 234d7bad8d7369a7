//! A pod's networks together: what its status and its kubelet want to know.
//!
//! As JSON it has the field names of go-cni's result, which is what `crictl inspectp` shows as `cniResult` and what
//! containerd keeps with a sandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::result::{Dns, NetworkResult, Route};

/// The results of all networks of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// By name; the default interface is always there.
    #[serde(rename = "Interfaces")]
    pub interfaces: BTreeMap<String, Interface>,
    /// One for each network.
    #[serde(rename = "DNS")]
    pub dns: Vec<Dns>,
    #[serde(rename = "Routes")]
    pub routes: Option<Vec<Route>>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    #[serde(rename = "IPConfigs")]
    pub ips: Option<Vec<Ip>>,
    pub mac: String,
    pub sandbox: String,
    #[serde(rename = "PciID", default)]
    pub pci_id: String,
    #[serde(default)]
    pub socket_path: String,
}

/// One address of an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    #[serde(rename = "IP")]
    pub ip: IpAddr,
    #[serde(rename = "Gateway", with = "or_empty")]
    pub gateway: Option<IpAddr>,
}

impl Setup {
    /// Puts the networks' results together. Addresses of no interface are those of `default_interface`.
    pub fn new(default_interface: &str, results: &[NetworkResult]) -> Self {
        let mut setup = Self::default();
        setup
            .interfaces
            .insert(default_interface.to_owned(), Interface::default());
        for result in results {
            for i in &result.interfaces {
                let interface = setup.interfaces.entry(i.name.clone()).or_default();
                interface.mac.clone_from(&i.mac);
                interface.sandbox.clone_from(&i.sandbox);
                interface.pci_id.clone_from(&i.pci_id);
                interface.socket_path.clone_from(&i.socket_path);
            }
            for ip in &result.ips {
                let index = ip.interface.and_then(|i| usize::try_from(i).ok());
                let name = index.and_then(|i| result.interfaces.get(i));
                let name = name.map_or(default_interface, |i| i.name.as_str());
                let interface = setup.interfaces.entry(name.to_owned()).or_default();
                let ip = Ip {
                    ip: ip.address.ip,
                    gateway: ip.gateway,
                };
                interface.ips.get_or_insert_default().push(ip);
            }
            setup.dns.push(result.dns.clone());
            if !result.routes.is_empty() {
                let routes = setup.routes.get_or_insert_default();
                routes.extend(result.routes.iter().cloned());
            }
        }
        setup
    }

    /// The addresses of one interface, in the plugins' order.
    pub fn ips(&self, interface: &str) -> Vec<IpAddr> {
        let found = self
            .interfaces
            .get(interface)
            .and_then(|i| i.ips.as_deref());
        found.unwrap_or_default().iter().map(|ip| ip.ip).collect()
    }
}

/// Go writes no address as `""`.
mod or_empty {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(ip: &Option<IpAddr>, s: S) -> Result<S::Ok, S::Error> {
        match ip {
            Some(ip) => s.collect_str(ip),
            None => s.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
        match String::deserialize(d)?.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Version, result};

    #[test]
    fn it_reads_as_go_writes_it() {
        let eth = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "br0", "mac": "aa"}, {"name": "eth0", "mac": "bb", "sandbox": "/ns"}],
            "ips": [{"address": "10.0.0.2/8", "gateway": "10.0.0.1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let eth = NetworkResult::parse(eth.to_string().as_bytes(), Version::V1_0_0).unwrap();
        let bare = json!({"cniVersion": "0.2.0", "ip6": {"ip": "fd00::2/64"}}).to_string();
        let bare = NetworkResult::parse(bare.as_bytes(), Version::V0_2_0).unwrap();
        let setup = Setup::new("eth0", &[result::loopback("/ns"), eth, bare]);
        let shown = json!({
            "Interfaces": {
                "br0": {"IPConfigs": null, "Mac": "aa", "Sandbox": "", "PciID": "", "SocketPath": ""},
                "eth0": {"IPConfigs": [{"IP": "10.0.0.2", "Gateway": "10.0.0.1"}, {"IP": "fd00::2", "Gateway": ""}],
                         "Mac": "bb", "Sandbox": "/ns", "PciID": "", "SocketPath": ""},
                "lo": {"IPConfigs": [{"IP": "127.0.0.1", "Gateway": ""}, {"IP": "::1", "Gateway": ""}],
                       "Mac": "00:00:00:00:00:00", "Sandbox": "/ns", "PciID": "", "SocketPath": ""},
            },
            "DNS": [{}, {}, {}],
            "Routes": [{"dst": "0.0.0.0/0"}],
        });
        assert_eq!(serde_json::to_value(&setup).unwrap(), shown);
        assert_eq!(serde_json::from_value::<Setup>(shown).unwrap(), setup);
        assert_eq!(setup.ips("eth0").len(), 2);
        assert!(setup.ips("absent").is_empty());
    }
}
