use super::{Code, Environment, Error, NetworkConfig};
use crate::link::MacAddress;
use ipnet::IpNet;
use palisade_protocol::{HostPort, Transport};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::num::NonZeroU16;

/// What is asked for beyond the attachment itself: by the runtime in `runtimeConfig`, by whoever made the configuration in
/// `args.cni`, or in `CNI_ARGS` (`IP`, `MAC`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The addresses that the container is to have, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The Ethernet address that its interface is to have.
    pub mac: Option<MacAddress>,
    /// The ports of the node that lead to it, of which no two clash.
    pub host_ports: Vec<HostPort>,
}

/// An entry of `portMappings`. containerd writes Go's names of the fields, as they are.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(alias = "HostPort")]
    host_port: NonZeroU16,
    #[serde(alias = "ContainerPort")]
    container_port: NonZeroU16,
    #[serde(alias = "Protocol", default)]
    protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP", default)]
    host_ip: String,
}

impl Demand {
    /// As [`read`](Self::read), of a container that is to be connected: a limit of its bandwidth is refused. One that was connected before, by a version
    /// that was not told of limits, is none the worse for being checked.
    pub fn of_new(config: &NetworkConfig, environment: &Environment) -> Result<Self, Error> {
        refuse_bandwidth(&Section::of("runtimeConfig", config.runtime_config.as_ref()))?;
        Self::read(config, environment)
    }

    /// Reads and checks what is asked for. What the runtime offers and nobody here has a use for is passed over, as the
    /// conventions have it; what would change how the container is connected is honoured or refused.
    pub fn read(config: &NetworkConfig, environment: &Environment) -> Result<Self, Error> {
        let runtime = Section::of("runtimeConfig", config.runtime_config.as_ref());
        let written = Section::of("args.cni", config.args.as_ref().and_then(|args| args.get("cni")));
        let arguments = environment.arguments()?;
        if let (None, Some(ranges)) = (&config.ipam, runtime.get("ipRanges").filter(|ranges| **ranges != serde_json::json!([]))) {
            let message = format!(
                "\"runtimeConfig.ipRanges\": {ranges} is not supported: the addresses come from the node's pod ranges; take \"ipRanges\" from the capabilities"
            );
            return Err(Error::new(Code::UnsupportedField, message));
        }

        let mut addresses: Vec<(String, String)> = Vec::new();
        for section in [&runtime, &written] {
            addresses.extend(section.list::<String>("ips")?);
        }
        addresses.extend(arguments.get("IP").map(|text| ("IP in CNI_ARGS".to_owned(), (*text).to_owned())));
        let mut macs: Vec<(String, String)> = Vec::new();
        for section in [&runtime, &written] {
            macs.extend(section.text("mac")?);
        }
        macs.extend(arguments.get("MAC").map(|text| ("MAC in CNI_ARGS".to_owned(), (*text).to_owned())));
        Ok(Self { addresses: demanded_addresses(addresses)?, mac: demanded_mac(macs)?, host_ports: host_ports(&runtime)? })
    }
}

/// A part of the configuration, and where it is.
struct Section<'a> {
    name: &'static str,
    keys: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    fn of(name: &'static str, value: Option<&'a Value>) -> Self {
        Self { name, keys: value.and_then(Value::as_object) }
    }

    /// The value of a key. Go writes null for what is empty.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys?.get(key).filter(|value| !value.is_null())
    }

    /// The entries of a list, each with its place.
    fn list<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Vec<(String, T)>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| invalid(format!("\"{}.{key}\" is {value}: it must be a list", self.name)))?;
        let entry = |(place, entry): (usize, &Value)| {
            let place = format!("{}.{key}[{place}]", self.name);
            match T::deserialize(entry) {
                Ok(read) => Ok((place, read)),
                Err(error) => Err(invalid(format!("\"{place}\" is {entry}: {error}"))),
            }
        };
        list.iter().enumerate().map(entry).collect()
    }

    fn text(&self, key: &str) -> Result<Option<(String, String)>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let place = format!("{}.{key}", self.name);
        match value.as_str() {
            Some("") => Ok(None),
            Some(text) => Ok(Some((place, text.to_owned()))),
            None => Err(invalid(format!("\"{place}\" is {value}: it must be a text"))),
        }
    }
}

/// Limits would be promised and not be kept.
fn refuse_bandwidth(runtime: &Section<'_>) -> Result<(), Error> {
    let limits = runtime.get("bandwidth").filter(|limits| limits.as_object().is_none_or(|limits| limits.values().any(|limit| *limit != 0)));
    limits.map_or(Ok(()), |limits| {
        Err(Error::new(
            Code::UnsupportedField,
            format!(
                "\"runtimeConfig.bandwidth\": {limits} is not supported by palisade-cni: take the limits from the pod (its annotations \
                 kubernetes.io/ingress-bandwidth and egress-bandwidth), or \"bandwidth\" from the capabilities of palisade-cni, and put \
                 the plugin bandwidth after it in the list; between pods of two nodes that one limits only where the agents run with \
                 --forwarding stack (routing.forwarding of the chart), and between pods of one node not at all"
            ),
        ))
    })
}

fn demanded_addresses(asked: Vec<(String, String)>) -> Result<Vec<IpAddr>, Error> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (place, text) in asked {
        let read = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse());
        let address: IpAddr =
            read.map_err(|_| invalid(format!("\"{place}\" is '{text}': it must be an address such as 10.0.0.7 or 10.0.0.7/24")))?;
        match addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            Some(other) if *other == address => {}
            Some(other) => {
                return Err(invalid(format!(
                    "\"{place}\" asks for {address}, but {other} is asked for, too: a pod has one address per family"
                )));
            }
            None => addresses.push(address),
        }
    }
    Ok(addresses)
}

fn demanded_mac(asked: Vec<(String, String)>) -> Result<Option<MacAddress>, Error> {
    let mut found: Option<MacAddress> = None;
    for (place, text) in asked {
        let mac: MacAddress = text.parse().map_err(|error| invalid(format!("\"{place}\": {error}")))?;
        if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
            return Err(invalid(format!("\"{place}\" is {mac}: no interface can have it, it is the address of a group or of nobody")));
        }
        if let Some(other) = found.replace(mac).filter(|other| *other != mac) {
            return Err(invalid(format!("\"{place}\" asks for {mac}, but {other} is asked for, too")));
        }
    }
    Ok(found)
}

fn host_ports(runtime: &Section<'_>) -> Result<Vec<HostPort>, Error> {
    let mut ports = Vec::new();
    for (place, Mapping { host_port, container_port, protocol, host_ip }) in runtime.list::<Mapping>("portMappings")? {
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            _ => return Err(invalid(format!("\"{place}.protocol\" is '{protocol}': it must be tcp, udp or sctp"))),
        };
        let address =
            || host_ip.parse().map_err(|_| invalid(format!("\"{place}.hostIP\" is '{host_ip}': it must be an address of the node")));
        let host_ip = if host_ip.is_empty() { None } else { Some(address()?) };
        ports.push(HostPort { host_port, container_port, protocol, host_ip });
    }
    match HostPort::first_clash(&ports) {
        Some((one, other)) => Err(invalid(format!("\"runtimeConfig.portMappings\" gives one port of the node twice: {one}, {other}"))),
        None => Ok(ports),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(keys: Value, arguments: &str) -> Result<Demand, Error> {
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni"});
        config.as_object_mut().unwrap().append(&mut keys.as_object().unwrap().clone());
        let config = NetworkConfig::parse(config.to_string().as_bytes(), "/run/palisade").unwrap();
        Demand::of_new(&config, &Environment::new([("CNI_ARGS".to_owned(), arguments.to_owned())]))
    }

    fn runtime(key: &str, value: Value) -> Result<Demand, Error> {
        read(json!({"runtimeConfig": {key: value}}), "")
    }

    fn shown(demand: &Demand) -> Vec<String> {
        demand.host_ports.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_asked_for_by_default_or_by_what_go_writes_for_nothing() {
        for keys in [
            json!({}),
            json!({"runtimeConfig": null, "args": null}),
            json!({"runtimeConfig": {"portMappings": null, "ips": [], "mac": "", "bandwidth": {}}}),
        ] {
            assert_eq!(read(keys, "K8S_POD_NAME=a").unwrap(), Demand::default());
        }
        let others = json!({"runtimeConfig": {"dns": {"servers": ["192.0.2.53"]}, "aliases": {"net": ["a"]}}, "args": {"labels": []}});
        assert_eq!(read(others, "").unwrap(), Demand::default(), "what nobody here has a use for");
    }

    #[test]
    fn port_mappings_are_read_with_every_protocol_and_address() {
        let demand = runtime(
            "portMappings",
            json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "2001:db8::1"},
                {"hostPort": 8080, "containerPort": 81, "protocol": "sctp", "hostIP": ""},
                {"hostPort": 9, "containerPort": 9},
            ]),
        );
        let expected = ["8080/TCP to 80", "192.0.2.1:53/UDP to 5353", "[2001:db8::1]:53/UDP to 5353", "8080/SCTP to 81", "9/TCP to 9"];
        assert_eq!(shown(&demand.unwrap()), expected);
    }

    #[test]
    fn port_mappings_as_containerd_writes_them_are_read() {
        let mapping = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1"}]);
        assert_eq!(shown(&runtime("portMappings", mapping).unwrap()), ["192.0.2.1:8080/TCP to 80"]);
    }

    #[test]
    fn a_port_mapping_that_makes_no_sense_is_code_7_with_its_place() {
        for (key, value, said) in [
            ("hostPort", json!(0), "portMappings[1]"),
            ("hostPort", json!(65536), "65536"),
            ("containerPort", json!(-1), "-1"),
            ("containerPort", json!(null), "portMappings[1]"),
            ("protocol", json!("icmp"), "icmp"),
            ("hostIP", json!("node-a"), "node-a"),
            ("hostPort", json!(80), "twice"),
        ] {
            let mut mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
            mapping[key] = value;
            let error = runtime("portMappings", json!([{"hostPort": 80, "containerPort": 80}, mapping])).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.message.contains(said), "{}", error.message);
        }
        assert_eq!(runtime("portMappings", json!("all")).unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn addresses_and_mac_are_read_from_every_place_where_they_can_be_asked_for() {
        let expected: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let mac = Some("02:00:5e:10:0a:ff".parse().unwrap());
        for (keys, arguments) in [
            (json!({"runtimeConfig": {"ips": ["10.0.0.7/24", "fd00::7"], "mac": "02:00:5e:10:0a:ff"}}), ""),
            (json!({"args": {"cni": {"ips": ["10.0.0.7", "fd00::7/64"], "mac": "02:00:5e:10:0A:FF"}}}), ""),
            (json!({"args": {"cni": {"ips": ["10.0.0.7", "fd00::7/64"]}}}), "IP=10.0.0.7;MAC=02:00:5e:10:0a:ff"),
        ] {
            let demand = read(keys, arguments).unwrap();
            assert_eq!((demand.addresses, demand.mac), (expected.clone(), mac));
        }
        assert_eq!(read(json!({}), "IP=10.0.0.7").unwrap().addresses, expected[..1]);
    }

    #[test]
    fn an_address_or_mac_that_makes_no_sense_or_contradicts_another_is_code_7() {
        for (keys, arguments, said) in [
            (json!({"runtimeConfig": {"ips": ["10.0.0.300"]}}), "", "10.0.0.300"),
            (json!({"runtimeConfig": {"ips": "10.0.0.3"}}), "", "list"),
            (json!({"runtimeConfig": {"ips": ["10.0.0.3", "10.0.0.4"]}}), "", "one address per family"),
            (json!({"runtimeConfig": {"ips": ["10.0.0.3"]}}), "IP=10.0.0.4", "IP in CNI_ARGS"),
            (json!({"runtimeConfig": {"mac": "02:00"}}), "", "02:00"),
            (json!({"runtimeConfig": {"mac": 7}}), "", "text"),
            (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), "", "group"),
            (json!({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}), "", "nobody"),
            (json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}), "MAC=02:00:00:00:00:02", "too"),
        ] {
            let error = read(keys, arguments).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.message.contains(said), "{}", error.message);
        }
    }

    #[test]
    fn a_bandwidth_limit_and_ranges_for_our_own_addresses_are_code_2_with_key_and_value() {
        let error = runtime("bandwidth", json!({"ingressRate": 1000, "ingressBurst": 0})).unwrap_err();
        assert_eq!(error.code, Code::UnsupportedField);
        assert!(error.message.contains("bandwidth") && error.message.contains("1000"), "{}", error.message);
        assert!(error.message.contains("--forwarding stack"), "where what is recommended works: {}", error.message);
        let limited =
            json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni", "runtimeConfig": {"bandwidth": {"ingressRate": 1000}}});
        let limited = NetworkConfig::parse(limited.to_string().as_bytes(), "/run/palisade").unwrap();
        assert_eq!(Demand::read(&limited, &Environment::new([])).unwrap(), Demand::default(), "of a container that is connected");
        let ranges = json!([[{"subnet": "10.9.0.0/24"}]]);
        assert_eq!(runtime("ipRanges", ranges.clone()).unwrap_err().code, Code::UnsupportedField);
        let delegated = json!({"ipam": {"type": "host-local"}, "runtimeConfig": {"ipRanges": ranges}});
        assert_eq!(read(delegated, "").unwrap(), Demand::default(), "the plugin that it is for is handed it");
        assert_eq!(runtime("bandwidth", json!({"IngressRate": 0, "EgressRate": 0})).unwrap(), Demand::default(), "no limit");
    }
}
