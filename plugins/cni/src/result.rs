//! What a plugin says after ADD, in the words of any version of the specification.
//!
//! One model, that of 1.1; older forms are read into it and written from it. Fields that the specification does not
//! name survive, so that a plugin further down the chain sees what its predecessor said.

use std::net::IpAddr;

use corten_core::json::nullable;
use corten_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Version;

/// A network's result, as of 1.1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NetworkResult {
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub interfaces: Vec<Interface>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ips: Vec<Ip>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub routes: Vec<Route>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Dns::is_empty"
    )]
    pub dns: Dns,
    /// What this version does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An interface that a plugin made or moved.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Interface {
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// 1.1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The namespace that it is in; none for one of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// 1.1.
    #[serde(
        rename = "socketPath",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub socket_path: String,
    /// 1.1.
    #[serde(rename = "pciID", default, skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An address with its prefix length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    pub address: Cidr,
    #[serde(
        default,
        deserialize_with = "no_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
    /// Index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A route of the pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub dst: Cidr,
    #[serde(
        default,
        deserialize_with = "no_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub gw: Option<IpAddr>,
    /// mtu, advmss, priority, table and scope of 1.1, and what else was said.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a resolver should be told.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Dns {
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub search: Vec<String>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub options: Vec<String>,
}

/// `10.1.2.3/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub ip: IpAddr,
    pub prefix: u8,
}

/// The form of 0.1.0 and 0.2.0: at most one address of each family, each with its routes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Old {
    #[serde(rename = "cniVersion", default)]
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<OldIp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<OldIp>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Dns::is_empty"
    )]
    dns: Dns,
}

#[derive(Debug, Serialize, Deserialize)]
struct OldIp {
    ip: Cidr,
    #[serde(
        default,
        deserialize_with = "no_address",
        skip_serializing_if = "Option::is_none"
    )]
    gateway: Option<IpAddr>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    routes: Vec<Route>,
}

// === impl NetworkResult ===

impl NetworkResult {
    /// Reads what a plugin wrote to stdout. One that names no version means that of its configuration, as libcni
    /// has it (containernetworking/cni issue 895).
    ///
    /// # Errors
    /// InvalidArgument: not JSON, not a result, or of a version that is not known.
    pub fn parse(stdout: &[u8], configured: Version) -> Result<Self> {
        let value: Option<Map<String, Value>> = serde_json::from_slice(stdout)
            .map_err(|e| Error::invalid(format!("result of a CNI plugin: {e}")))?;
        Self::from_value(value.unwrap_or_default(), configured)
    }

    /// The same from an object.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_value(mut value: Map<String, Value>, configured: Version) -> Result<Self> {
        let said = value
            .get("cniVersion")
            .and_then(Value::as_str)
            .unwrap_or("");
        let version = if said.is_empty() {
            configured
        } else {
            said.parse()?
        };
        if !version.is_known() {
            return Err(Error::invalid(format!(
                "result of a CNI plugin: unsupported CNI result version {version:?}",
                version = version.to_string()
            )));
        }
        value.insert("cniVersion".into(), version.to_string().into());
        let bad = |e: serde_json::Error| Error::invalid(format!("result of a CNI plugin: {e}"));
        let value = Value::Object(value);
        let result = if version <= Version::V0_2_0 {
            from_old(serde_json::from_value(value).map_err(bad)?)
        } else {
            let mut result: Self = serde_json::from_value(value).map_err(bad)?;
            // Up to 0.4.0 each address said which family it is of; the address says so itself.
            for ip in &mut result.ips {
                ip.extra.remove("version");
            }
            result
        };
        result.validate()?;
        Ok(result)
    }

    /// Its own version.
    pub fn version(&self) -> Version {
        self.version.parse().unwrap_or(Version::V1_1_0)
    }

    /// The same in the words of `version`.
    ///
    /// # Errors
    /// InvalidArgument: an old version needs an address and there is none.
    pub fn to_value(&self, version: Version) -> Result<Value> {
        let bad = |e: serde_json::Error| Error::internal(format!("write a CNI result: {e}"));
        if version <= Version::V0_2_0 {
            return serde_json::to_value(to_old(self, version)?).map_err(bad);
        }
        let mut value = serde_json::to_value(self).map_err(bad)?;
        value["cniVersion"] = version.to_string().into();
        if version <= Version::V0_4_0 {
            for (ip, out) in self.ips.iter().zip(each(&mut value, "ips")) {
                out["version"] = (if ip.address.ip.is_ipv4() { "4" } else { "6" }).into();
            }
        }
        if version < Version::V1_0_0 {
            for out in each(&mut value, "interfaces") {
                drop_keys(out, &["mtu", "socketPath", "pciID"]);
            }
            for out in each(&mut value, "routes") {
                drop_keys(out, &["mtu", "advmss", "priority", "table", "scope"]);
            }
        }
        Ok(value)
    }

    fn validate(&self) -> Result<()> {
        let count = i64::try_from(self.interfaces.len()).unwrap_or(i64::MAX);
        for ip in &self.ips {
            // Negative is not an index, and neither is one past the end.
            if let Some(n) = ip.interface.filter(|n| *n < 0 || *n >= count) {
                return Err(Error::invalid(format!(
                    "result of a CNI plugin: address {} is of interface {n} of {count}",
                    ip.address
                )));
            }
        }
        Ok(())
    }
}

fn each<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

fn drop_keys(value: &mut Value, keys: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        for key in keys {
            object.remove(*key);
        }
    }
}

fn from_old(old: Old) -> NetworkResult {
    let mut result = NetworkResult {
        version: old.version,
        dns: old.dns,
        ..NetworkResult::default()
    };
    for ip in old.ip4.into_iter().chain(old.ip6) {
        result.ips.push(Ip {
            address: ip.ip,
            gateway: ip.gateway,
            interface: None,
            extra: Map::new(),
        });
        result.routes.extend(ip.routes);
    }
    result
}

fn to_old(new: &NetworkResult, version: Version) -> Result<Old> {
    let first = |v4: bool| {
        let ip = new.ips.iter().find(|i| i.address.ip.is_ipv4() == v4)?;
        let routes = new.routes.iter().filter(|r| r.dst.ip.is_ipv4() == v4);
        Some(OldIp {
            ip: ip.address,
            gateway: ip.gateway,
            routes: routes
                .map(|r| Route {
                    extra: Map::new(),
                    ..r.clone()
                })
                .collect(),
        })
    };
    let old = Old {
        version: version.to_string(),
        ip4: first(true),
        ip6: first(false),
        dns: new.dns.clone(),
    };
    if old.ip4.is_none() && old.ip6.is_none() {
        return Err(Error::invalid(format!(
            "CNI result for version {version}: no valid IP addresses"
        )));
    }
    Ok(old)
}

// === impl Dns, Cidr ===

impl Dns {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::str::FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("CIDR address {text:?}"));
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > if ip.is_ipv4() { 32 } else { 128 } {
            return Err(bad());
        }
        Ok(Self { ip, prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Go's marshaller writes `""` for an address that is none.
fn no_address<'de, D>(d: D) -> std::result::Result<Option<IpAddr>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// The result of the in-process loopback in the sandbox at `netns`, as the loopback plugin would give it.
pub fn loopback(netns: &str) -> NetworkResult {
    let address = |text: &str| json!({"address": text, "interface": 0});
    let value = json!({
        "cniVersion": Version::V1_1_0.to_string(),
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": [address("127.0.0.1/8"), address("::1/128")],
    });
    serde_json::from_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value, configured: Version) -> Result<NetworkResult> {
        NetworkResult::parse(value.to_string().as_bytes(), configured)
    }

    #[test]
    fn every_version_goes_into_every_other() {
        let v1 = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": "aa:bb", "sandbox": "/ns"}],
            "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1},
                    {"address": "fd00::3/64", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}, {"dst": "::/0"}],
            "dns": {"nameservers": ["10.0.0.10"], "search": ["a.b"]},
        });
        let result = parse(&v1, Version::V1_0_0).unwrap();
        assert_eq!(result.to_value(Version::V1_0_0).unwrap(), v1);

        let v4 = result.to_value(Version::V0_4_0).unwrap();
        assert_eq!(v4["ips"][0]["version"], "4");
        assert_eq!(v4["ips"][1]["version"], "6");
        let back = parse(&v4, Version::V1_1_0).unwrap();
        assert_eq!(back.to_value(Version::V1_0_0).unwrap(), v1);

        let v2 = result.to_value(Version::V0_2_0).unwrap();
        assert_eq!(v2["ip4"]["ip"], "10.1.2.3/24");
        assert_eq!(
            v2["ip4"]["routes"],
            json!([{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}])
        );
        assert_eq!(v2["ip6"]["ip"], "fd00::3/64");
        let up = parse(&v2, Version::V0_2_0).unwrap();
        assert_eq!(up.ips.len(), 2);
        assert_eq!(up.routes.len(), 2);
        assert!(up.interfaces.is_empty());
    }

    #[test]
    fn new_fields_stay_in_new_versions_only() {
        let v11 = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mtu": 1400, "pciID": "x", "socketPath": "/s", "vendor": 1}],
            "routes": [{"dst": "10.0.0.0/8", "mtu": 9000, "table": 5}],
            "vendor.example": {"a": 1},
        });
        let result = parse(&v11, Version::V1_1_0).unwrap();
        assert_eq!(result.to_value(Version::V1_1_0).unwrap(), v11);
        let old = result.to_value(Version::V0_3_1).unwrap();
        assert_eq!(old["interfaces"], json!([{"name": "eth0", "vendor": 1}]));
        assert_eq!(old["routes"], json!([{"dst": "10.0.0.0/8"}]));
        assert_eq!(old["vendor.example"], json!({"a": 1}));
    }

    #[test]
    fn what_names_no_version_is_of_the_configured_one() {
        let r = parse(
            &json!({"ips": [{"version": "4", "address": "10.0.0.2/16"}]}),
            Version::V0_3_1,
        );
        assert_eq!(r.unwrap().version(), Version::V0_3_1);
        let r = NetworkResult::parse(b"null", Version::V1_0_0).unwrap();
        assert_eq!(r.version(), Version::V1_0_0);
        let r = parse(
            &json!({"cniVersion": "", "ip4": {"ip": "10.0.0.2/16"}}),
            Version::V0_1_0,
        );
        assert_eq!(r.unwrap().ips.len(), 1);
        let go = json!({"interfaces": null, "ips": [{"address": "10.0.0.2/16", "gateway": ""}], "dns": null});
        assert_eq!(parse(&go, Version::V1_0_0).unwrap().ips[0].gateway, None);
    }

    #[test]
    fn nonsense_is_refused() {
        let cases = [
            json!([1]),
            json!({"cniVersion": "2.0.0"}),
            json!({"cniVersion": "x"}),
            json!({"ips": [{"address": "10.0.0.1"}]}),
            json!({"ips": [{"address": "10.0.0.1/33"}]}),
            json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
            json!({"interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.1/8", "interface": -1}]}),
            json!({"ips": {}}),
        ];
        for case in cases {
            parse(&case, Version::V1_0_0).unwrap_err();
        }
        NetworkResult::parse(b"{", Version::V1_0_0).unwrap_err();
        let none = NetworkResult::default().to_value(Version::V0_2_0);
        assert!(
            none.unwrap_err()
                .to_string()
                .contains("no valid IP addresses")
        );
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_plugin_prints_is_judged_without_panic(bytes: Vec<u8>) {
            let _ = NetworkResult::parse(&bytes, Version::V1_1_0);
        }
    }
}
