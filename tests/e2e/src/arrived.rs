//! What arrived at a pod, as its own kernel counts it: an answer that is lost hides nothing. And pods that hammer where the next ones will be.

use crate::cluster::Cluster;
use crate::pod::{self, Pod};
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many of the next addresses of a node are hammered, of each family. A process each: not too many.
const AHEAD: u8 = 40;

/// What arrived at a pod. Where the kernel has no IPv6, nothing has by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    echo_ipv4: u64,
    echo_ipv6: u64,
    udp_ipv4: u64,
    udp_ipv6: u64,
    /// Segments of TCP, of both families.
    pub tcp: u64,
}

impl Arrived {
    /// Of a pod that nobody has reached.
    pub const NOTHING: Self = Self { echo_ipv4: 0, echo_ipv6: 0, udp_ipv4: 0, udp_ipv6: 0, tcp: 0 };

    /// What has arrived at the pod since its network was made.
    pub fn at(cluster: &Cluster, pod: &Pod) -> Result<Self> {
        Self::parse(&pod.shell(cluster, "cat /proc/net/snmp; [ ! -e /proc/net/snmp6 ] || cat /proc/net/snmp6")?)
    }

    /// Reads the counters: `/proc/net/snmp` has a line of names and one of values, `snmp6` a name and a value a line.
    fn parse(text: &str) -> Result<Self> {
        let ipv4 = |protocol: &str, name: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(':'));
            let column = lines.next()?.split_whitespace().position(|found| found == name)?;
            lines.next()?.split_whitespace().nth(column)?.parse::<u64>().ok()
        };
        let has_ipv6 = text.contains("\nIp6");
        let ipv6 = |name: &str| {
            if !has_ipv6 {
                return Some(0);
            }
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let read = || {
            Some(Self {
                echo_ipv4: ipv4("Icmp", "InEchos")?,
                echo_ipv6: ipv6("Icmp6InEchos")?,
                udp_ipv4: ipv4("Udp", "InDatagrams")? + ipv4("Udp", "NoPorts")?,
                udp_ipv6: ipv6("Udp6InDatagrams")? + ipv6("Udp6NoPorts")?,
                tcp: ipv4("Tcp", "InSegs")?,
            })
        };
        read().with_context(|| format!("no counters in:\n{text}"))
    }

    /// Of a family: echoes, and datagrams.
    pub fn of(self, ipv6: bool) -> [u64; 2] {
        if ipv6 { [self.echo_ipv6, self.udp_ipv6] } else { [self.echo_ipv4, self.udp_ipv4] }
    }

    /// Whether echoes came at every address of the pod.
    pub fn has_echoes_of(self, pod: &Pod) -> bool {
        pod.addresses.iter().all(|address| self.of(address.is_ipv6())[0] > 0)
    }
}

/// The addresses that the pod's node may give next: the following ones of each family that pods have; those of IPv4 begin anew
/// at the end of the last octet.
pub fn next_addresses(pod: &Pod) -> Vec<IpAddr> {
    let behind = |address: &IpAddr, step: u8| match *address {
        IpAddr::V4(address) => {
            let [a, b, c, last] = address.octets();
            IpAddr::from(Ipv4Addr::new(a, b, c, last.wrapping_add(step)))
        }
        IpAddr::V6(address) => IpAddr::from(Ipv6Addr::from(u128::from(address).wrapping_add(u128::from(step)))),
    };
    (1..=AHEAD).flat_map(|step| pod.addresses.iter().map(move |address| behind(address, step))).collect()
}

/// A pod that sends ten echoes a second to each of the addresses, whoever has them.
pub fn hammer(name: &str, node: &str, addresses: &[IpAddr]) -> Value {
    let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let script = format!("for a in {}; do ping -q -i 0.1 $a & done; echo hammering; wait", list.join(" "));
    pod::shell(name, node, &[("app", "hammer")], &script)
}
