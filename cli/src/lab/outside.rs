//! A lab's only node, seen from its uplink, and the one host outside of the cluster.

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
/// The outside host's addresses where there are several nodes, which may be on the link above (RFC 5737, RFC 3849).
const FAR_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2);
/// Its router there.
pub const BORDER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1))];
/// The ends of the wire between the nodes' router and that one: the latter's is this.
const TRANSIT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const TRANSIT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 2);
/// The same as addresses.
pub const TRANSIT: [IpAddr; 2] = [IpAddr::V4(TRANSIT_V4), IpAddr::V6(TRANSIT_V6)];
/// The node's IPv4 address.
const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The node's IPv6 address.
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The node's end of the wire to the outside host.
pub const UPLINK: &str = "uplink";
/// The outside host's end.
pub const OUTSIDE_LINK: &str = "eth0";
pub const MTU: u32 = 1500;

/// How many nodes a lab has: the outside host is on the link of the only one, and behind routers of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// One.
    One,
    /// As many as there are Node objects.
    Several,
}

/// The outside host's address of one family.
pub const fn address(nodes: Nodes, family: Family) -> IpAddr {
    let [v4, v6] = addresses(nodes);
    match family {
        Family::Ipv4 => v4,
        Family::Ipv6 => v6,
    }
}

/// The outside host's addresses.
pub const fn addresses(nodes: Nodes) -> [IpAddr; 2] {
    match nodes {
        Nodes::One => [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)],
        Nodes::Several => [IpAddr::V4(FAR_V4), IpAddr::V6(FAR_V6)],
    }
}

/// The subnets of the outside host, and of the wire between the routers, where there are several nodes.
pub fn networks() -> impl Iterator<Item = IpNet> {
    [FAR_V4.into(), FAR_V6.into(), TRANSIT_V4.into(), TRANSIT_V6.into()].into_iter().map(|address: IpAddr| joined(address).trunc())
}

/// An address with the length of a subnet.
pub fn joined(address: IpAddr) -> IpNet {
    IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 64 })
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
    forwards()?;
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
    let far = addresses(Nodes::One);
    join(&outside, OUTSIDE_LINK, far)?;
    join(&node, UPLINK, node_addresses())?;
    // Each is the other's way to everywhere else.
    route(&node, UPLINK, far)?;
    route(&outside, OUTSIDE_LINK, node_addresses())
}

/// Makes the calling thread's network namespace one that forwards.
pub fn forwards() -> Result<(), LinkError> {
    [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/default/accept_dad", "0")]
        .into_iter()
        .try_for_each(|(name, value)| sysctl::write(name, value))
}

fn join(link: &Netlink, name: &str, addresses: [IpAddr; 2]) -> Result<(), LinkError> {
    let index = up(link, name)?;
    addresses.into_iter().try_for_each(|address| link.add_address(index, joined(address)))
}

fn route(link: &Netlink, name: &str, gateways: [IpAddr; 2]) -> Result<(), LinkError> {
    let index = index(link, name)?;
    gateways.into_iter().try_for_each(|gateway| link.replace_route(&Route::default_via(gateway, index)))
}

/// Sets a link up, and gives its index.
pub fn up(link: &Netlink, name: &str) -> Result<u32, LinkError> {
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
