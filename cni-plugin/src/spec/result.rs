use super::{Code, Error, SpecVersion};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::net::IpAddr;

/// The result of ADD: that of the plugins before, with what this one made added to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniResult {
    /// The interfaces, on the host and in the container.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
    /// The routes in the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// What else there is (`dns`, keys of others), passed on.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of its namespace; empty or missing on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Keys of others.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with the length of its network.
    pub address: IpNet,
    /// The next router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Keys of others.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The addresses that it is for.
    pub dst: IpNet,
    /// The next router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Keys of others.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl CniResult {
    /// Reads a `prevResult`, of any version.
    pub fn parse(value: Value) -> Result<Self, Error> {
        Self::read(value).map_err(|error| Error::new(Code::Decode, format!("prevResult cannot be read: {error}")))
    }

    /// Reads a result, of any version; that of an IPAM plugin too, which has no interfaces.
    pub fn read(value: Value) -> Result<Self, String> {
        let mut result: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        result.unknown.remove("cniVersion");
        for ip in &mut result.ips {
            ip.unknown.remove("version");
        }
        Ok(result)
    }

    /// Adds what another plugin made: its addresses keep pointing at its interfaces.
    pub fn append(&mut self, other: Self) {
        let offset = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        self.ips.extend(other.ips.into_iter().map(|ip| Ip { interface: ip.interface.map(|index| index + offset), ..ip }));
        self.routes.extend(other.routes);
        self.unknown.extend(other.unknown);
    }

    /// The result in the form of a version: without what came later, with what was there then.
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut result = self.clone();
        if version < SpecVersion::V1_1_0 {
            for interface in &mut result.interfaces {
                interface.mtu = None;
                interface.unknown.retain(|key, _| !["socketPath", "pciID"].contains(&key.as_str()));
            }
            for route in &mut result.routes {
                route.unknown.retain(|key, _| !["mtu", "advmss", "priority", "table", "scope"].contains(&key.as_str()));
            }
        }
        if version < SpecVersion::V1_0_0 {
            for ip in &mut result.ips {
                let family = if ip.address.addr().is_ipv6() { "6" } else { "4" };
                ip.unknown.insert("version".into(), family.into());
            }
        }
        result.unknown.insert("cniVersion".into(), version.as_str().into());
        result.unknown.entry("dns").or_insert_with(|| Value::Object(Map::new()));
        // Only maps with keys that are no text fail to be written, and there are none.
        serde_json::to_value(result).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ours() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface { name: "pal0".into(), mac: Some("02:00:00:00:00:01".into()), mtu: Some(1500), ..Interface::default() },
                Interface { name: "eth0".into(), mtu: Some(1500), sandbox: Some("/run/netns/x".into()), ..Interface::default() },
            ],
            ips: vec![
                Ip { address: "10.0.0.7/32".parse().unwrap(), gateway: None, interface: Some(1), unknown: Map::new() },
                Ip { address: "fd00::7/128".parse().unwrap(), gateway: None, interface: Some(1), unknown: Map::new() },
            ],
            routes: vec![Route { dst: "0.0.0.0/0".parse().unwrap(), gw: Some("169.254.1.1".parse().unwrap()), unknown: Map::new() }],
            unknown: Map::new(),
        }
    }

    #[test]
    fn addresses_carry_their_version_up_to_0_4_0_and_not_after() {
        for (version, expected) in [
            (SpecVersion::V0_3_1, json!("4")),
            (SpecVersion::V0_4_0, json!("4")),
            (SpecVersion::V1_0_0, Value::Null),
            (SpecVersion::V1_1_0, Value::Null),
        ] {
            let json = ours().to_json(version);
            assert_eq!(json["ips"][0]["version"], expected, "{version:?}");
            assert_eq!(json["cniVersion"], version.as_str());
        }
        assert_eq!(ours().to_json(SpecVersion::V0_4_0)["ips"][1]["version"], "6");
    }

    #[test]
    fn no_field_of_1_1_0_is_in_an_older_result() {
        let mut result = ours();
        result.routes[0].unknown.insert("table".into(), 100.into());
        result.interfaces[0].unknown.insert("pciID".into(), "0".into());
        let new = result.to_json(SpecVersion::V1_1_0);
        assert_eq!(
            (&new["interfaces"][1]["mtu"], &new["routes"][0]["table"], &new["interfaces"][0]["pciID"]),
            (&json!(1500), &json!(100), &json!("0"))
        );
        for version in [SpecVersion::V0_3_1, SpecVersion::V0_4_0, SpecVersion::V1_0_0] {
            let text = result.to_json(version).to_string();
            assert!(!text.contains("mtu") && !text.contains("table") && !text.contains("pciID"), "{text}");
        }
    }

    #[test]
    fn a_previous_result_is_amended_and_its_unknown_keys_kept() {
        let previous = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "dummy0", "sandbox": "/run/netns/x", "theirs": 1}],
            "ips": [{"version": "4", "address": "192.0.2.1/24", "interface": 0}],
            "routes": [{"dst": "192.0.2.0/24"}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "theirs": true,
        });
        let mut result = CniResult::parse(previous).unwrap();
        result.append(ours());
        let json = result.to_json(SpecVersion::V1_0_0);
        assert_eq!(json["interfaces"][0], json!({"name": "dummy0", "sandbox": "/run/netns/x", "theirs": 1}));
        assert_eq!(json["interfaces"][2]["name"], "eth0");
        assert_eq!(json["ips"][0], json!({"address": "192.0.2.1/24", "interface": 0}));
        assert_eq!(json["ips"][1], json!({"address": "10.0.0.7/32", "interface": 2}));
        assert_eq!((json["dns"]["nameservers"][0].as_str(), json["theirs"].as_bool()), (Some("192.0.2.53"), Some(true)));
        assert_eq!(json["routes"], json!([{"dst": "192.0.2.0/24"}, {"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]));
    }

    #[test]
    fn a_previous_result_that_cannot_be_read_is_code_6() {
        for bad in [json!([]), json!({"ips": [{"address": "10.0.0.300/32"}]}), json!({"interfaces": [{}]})] {
            assert_eq!(CniResult::parse(bad).unwrap_err().code, Code::Decode);
        }
    }
}
