//! The lab's node, seen from its uplink, and the one host outside of the cluster.

use super::flow::Party;
use super::paths;
use ipnet::IpNet;
use palisade_cni::link::{LinkError, MacAddress, Namespace, Netlink, Route, Veth, sysctl};
use palisade_protocol::Family;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's name.
pub const NODE: &str = "node";
/// The outside host's IPv4 address (RFC 5737).
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The outside host's IPv6 address (RFC 3849).
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// The node's IPv4 address.
const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The node's IPv6 address.
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The node's end of the wire to the outside host.
const UPLINK: &str = "uplink";
/// The outside host's end.
const OUTSIDE_LINK: &str = "eth0";
const MTU: u32 = 1500;

/// The outside host's address of one family.
pub const fn address(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(OUTSIDE_V4),
        Family::Ipv6 => IpAddr::V6(OUTSIDE_V6),
    }
}

/// The outside host's addresses.
pub const fn addresses() -> [IpAddr; 2] {
    [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)]
}

/// The node's addresses.
pub const fn node_addresses() -> [IpAddr; 2] {
    [IpAddr::V4(NODE_V4), IpAddr::V6(NODE_V6)]
}

/// The pod ranges of the lab's node.
pub fn pod_ranges() -> Vec<IpNet> {
    let v4 = IpNet::new_assert(Ipv4Addr::new(10, 244, 0, 0).into(), 16);
    let v6 = IpNet::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0).into(), 64);
    vec![v4, v6]
}

/// Where services without a cluster IP get one.
pub fn service_ranges() -> Vec<IpNet> {
    let v4 = IpNet::new_assert(Ipv4Addr::new(10, 96, 0, 0).into(), 16);
    let v6 = IpNet::new_assert(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0).into(), 112);
    vec![v4, v6]
}

/// Makes the calling process's network namespace a node: it forwards, and a wire leads to the outside host.
pub fn create() -> Result<(), LinkError> {
    for (name, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/default/accept_dad", "0")] {
        sysctl::write(name, value)?;
    }
    let node = Netlink::open()?;
    up(&node, "lo")?;
    let host = Namespace::create_at(&paths::namespace(&Party::Outside))?;
    node.create_veth(&Veth {
        name: UPLINK,
        mac: MacAddress([0x02, 0, 0, 0, 0x10, 1]),
        peer_name: OUTSIDE_LINK,
        peer_mac: MacAddress([0x02, 0, 0, 0, 0x10, 2]),
        peer_namespace: Some(&host),
        mtu: MTU,
    })?;
    let outside = Netlink::open_in(&host)?;
    up(&outside, "lo")?;
    join(&outside, OUTSIDE_LINK, addresses())?;
    join(&node, UPLINK, node_addresses())?;
    // Each is the other's way to everywhere else.
    route(&node, UPLINK, addresses())?;
    route(&outside, OUTSIDE_LINK, node_addresses())
}

fn join(link: &Netlink, name: &str, addresses: [IpAddr; 2]) -> Result<(), LinkError> {
    let index = up(link, name)?;
    addresses
        .into_iter()
        .try_for_each(|address| link.add_address(index, IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 64 })))
}

fn route(link: &Netlink, name: &str, gateways: [IpAddr; 2]) -> Result<(), LinkError> {
    let index = index(link, name)?;
    gateways.into_iter().try_for_each(|gateway| link.replace_route(&Route::default_via(gateway, index)))
}

fn up(link: &Netlink, name: &str) -> Result<u32, LinkError> {
    let index = index(link, name)?;
    link.set_up(index)?;
    Ok(index)
}

fn index(link: &Netlink, name: &str) -> Result<u32, LinkError> {
    match link.link(name)? {
        Some(found) => Ok(found.index),
        None => Err(LinkError::Refused { action: format!("find link {name}"), errno: nix::errno::Errno::ENODEV, detail: None }),
    }
}
