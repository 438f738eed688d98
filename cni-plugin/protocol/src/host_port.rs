//! Ports of the node that lead to a pod.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

/// A port of the node that leads to a port of a pod (`hostPort`). Every value makes sense by itself; of a list, see
/// [`HostPort::first_clash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The port at the node's addresses.
    pub host_port: NonZeroU16,
    /// The pod's own port.
    pub container_port: NonZeroU16,
    /// What they are ports of.
    pub protocol: Transport,
    /// The address of the node at which it is; `0.0.0.0` and `::`: all of that family. `None`: all of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl HostPort {
    /// Whether some packet to the node would be meant for both.
    pub fn clashes_with(&self, other: &Self) -> bool {
        let meet = match (self.host_ip, other.host_ip) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())),
        };
        meet && (self.host_port, self.protocol) == (other.host_port, other.protocol)
    }

    /// The first two of a list that clash.
    pub fn first_clash(list: &[Self]) -> Option<(Self, Self)> {
        list.iter()
            .enumerate()
            .find_map(|(place, one)| list[..place].iter().find(|other| one.clashes_with(other)).map(|other| (*other, *one)))
    }
}

/// `192.0.2.1:8080/TCP to 80`; `8080/TCP to 80` at all addresses.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_port, container_port, protocol, host_ip } = self;
        match host_ip {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{host_port}/{protocol} to {container_port}")
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn port(host_ip: Option<&str>, host_port: u16, protocol: Transport) -> HostPort {
        HostPort {
            host_port: NonZeroU16::new(host_port).unwrap(),
            container_port: NonZeroU16::new(80).unwrap(),
            protocol,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn a_host_port_is_read_back_as_written_and_one_without_number_or_protocol_is_refused() {
        let written = json!({"hostPort": 8080, "containerPort": 80, "protocol": "SCTP", "hostIp": "fd00::1"});
        let read: HostPort = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(read, port(Some("fd00::1"), 8080, Transport::Sctp));
        assert_eq!(serde_json::to_value(read).unwrap(), written);
        assert_eq!(read.to_string(), "[fd00::1]:8080/SCTP to 80");
        for (key, value) in
            [("hostPort", json!(0)), ("containerPort", json!(65536)), ("protocol", json!("ICMP")), ("hostIp", json!("node"))]
        {
            let mut broken = written.clone();
            broken[key] = value;
            assert!(serde_json::from_value::<HostPort>(broken).is_err(), "{key}");
        }
    }

    #[test]
    fn two_clash_where_a_packet_could_be_meant_for_both() {
        use Transport::{Tcp, Udp};
        let clash = |a: (Option<&str>, u16, Transport), b: (Option<&str>, u16, Transport)| {
            let (a, b) = (port(a.0, a.1, a.2), port(b.0, b.1, b.2));
            assert_eq!(a.clashes_with(&b), b.clashes_with(&a));
            assert_eq!(HostPort::first_clash(&[a, b]), a.clashes_with(&b).then_some((a, b)));
            a.clashes_with(&b)
        };
        for (one, other) in [
            (None, None),
            (None, Some("192.0.2.1")),
            (Some("192.0.2.1"), Some("192.0.2.1")),
            (Some("192.0.2.1"), Some("0.0.0.0")),
            (Some("::"), Some("fd00::1")),
        ] {
            assert!(clash((one, 80, Tcp), (other, 80, Tcp)), "{one:?} {other:?}");
            assert!(!clash((one, 80, Tcp), (other, 81, Tcp)));
            assert!(!clash((one, 80, Tcp), (other, 80, Udp)));
        }
        for (one, other) in [("192.0.2.1", "192.0.2.2"), ("0.0.0.0", "::"), ("0.0.0.0", "fd00::1")] {
            assert!(!clash((Some(one), 80, Tcp), (Some(other), 80, Tcp)), "{one} {other}");
        }
    }
}
