//! Capability arguments: what the runtime knows about one pod and a plugin may have asked to be told.
//!
//! The names and shapes are those of the CNI conventions document. A plugin gets only what its configuration lists
//! under `capabilities`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Values by capability name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Capabilities(BTreeMap<String, Value>);

/// One forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// All addresses of the host when empty.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// Limits in bits per second and bits; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    pub ingress_rate: u64,
    pub ingress_burst: u64,
    pub egress_rate: u64,
    pub egress_burst: u64,
}

/// A range that the address is to be taken from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    pub subnet: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub range_start: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub range_end: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
}

/// The cluster's resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DnsArgs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Capabilities {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// `portMappings`.
    #[must_use]
    pub fn port_mappings(self, ports: &[PortMapping]) -> Self {
        self.with("portMappings", &ports)
    }

    /// `bandwidth`.
    #[must_use]
    pub fn bandwidth(self, limits: Bandwidth) -> Self {
        self.with("bandwidth", &limits)
    }

    /// `ipRanges`: a list of sets, an address from each.
    #[must_use]
    pub fn ip_ranges(self, sets: &[Vec<IpRange>]) -> Self {
        self.with("ipRanges", &sets)
    }

    /// `dns`.
    #[must_use]
    pub fn dns(self, dns: &DnsArgs) -> Self {
        self.with("dns", dns)
    }

    /// `ips`: the very addresses, `10.1.2.3/24`.
    #[must_use]
    pub fn ips(self, ips: &[String]) -> Self {
        self.with("ips", &ips)
    }

    /// `mac`.
    #[must_use]
    pub fn mac(self, mac: &str) -> Self {
        self.with("mac", &mac)
    }

    /// `infinibandGUID`.
    #[must_use]
    pub fn infiniband_guid(self, guid: &str) -> Self {
        self.with("infinibandGUID", &guid)
    }

    /// `deviceID`.
    #[must_use]
    pub fn device_id(self, id: &str) -> Self {
        self.with("deviceID", &id)
    }

    /// `aliases`.
    #[must_use]
    pub fn aliases(self, names: &[String]) -> Self {
        self.with("aliases", &names)
    }

    /// `cgroupPath`.
    #[must_use]
    pub fn cgroup_path(self, path: &str) -> Self {
        self.with("cgroupPath", &path)
    }

    /// Any other, like `io.kubernetes.cri.pod-annotations`.
    #[must_use]
    pub fn with(mut self, name: &str, value: &impl Serialize) -> Self {
        // Only maps with keys that are no strings cannot be written, and there is none here.
        if let Ok(value) = serde_json::to_value(value) {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// All of them, as the cache keeps them.
    pub fn as_map(&self) -> &BTreeMap<String, Value> {
        &self.0
    }
}

impl From<BTreeMap<String, Value>> for Capabilities {
    fn from(map: BTreeMap<String, Value>) -> Self {
        Self(map)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_words_are_those_of_the_conventions() {
        let all = Capabilities::new()
            .port_mappings(&[PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: String::new(),
            }])
            .bandwidth(Bandwidth {
                ingress_rate: 1,
                ingress_burst: 2,
                egress_rate: 3,
                egress_burst: 4,
            })
            .ip_ranges(&[vec![IpRange {
                subnet: "10.0.0.0/8".into(),
                ..IpRange::default()
            }]])
            .dns(&DnsArgs {
                servers: vec!["1.1.1.1".into()],
                ..DnsArgs::default()
            })
            .ips(&["10.0.0.2/8".into()])
            .mac("aa:bb:cc:dd:ee:ff")
            .infiniband_guid("00:01")
            .device_id("0000:00:1")
            .aliases(&["a".into()])
            .cgroup_path("/kubepods/x")
            .with("io.kubernetes.cri.pod-annotations", &json!({"a": "b"}));
        assert_eq!(
            serde_json::to_value(all.as_map()).unwrap(),
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
                "ipRanges": [[{"subnet": "10.0.0.0/8"}]],
                "dns": {"servers": ["1.1.1.1"]},
                "ips": ["10.0.0.2/8"],
                "mac": "aa:bb:cc:dd:ee:ff",
                "infinibandGUID": "00:01",
                "deviceID": "0000:00:1",
                "aliases": ["a"],
                "cgroupPath": "/kubepods/x",
                "io.kubernetes.cri.pod-annotations": {"a": "b"},
            })
        );
    }
}
