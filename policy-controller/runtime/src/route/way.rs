//! By which way each pod range of the other nodes is reached.

use super::mtu;
use super::survey::Peer;
use crate::config::RoutingMode;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// How this machine reaches an address of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the interface.
    pub link: u32,
    /// Whether the address is on the link itself, without a router between.
    pub on_link: bool,
    /// Longest packet in bytes that gets there, as far as this machine knows.
    pub mtu: u32,
    /// Longest packet in bytes that got there lately, as an error has told that came from the way.
    pub path_mtu: Option<u32>,
    /// The address of this machine from which it sends there.
    pub source: Option<IpAddr>,
}

/// The way to a pod range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the node's address, which is on a link of this one.
    Native {
        /// That address.
        gateway: IpAddr,
        /// Index of the interface.
        link: u32,
    },
    /// By no route of ours: the network between the nodes knows where the range is.
    Network,
    /// In packets from node to node, to this address.
    Vxlan(IpAddr),
    /// None.
    Nowhere(Blocked),
}

/// Why a pod range is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The node has no address that could be used.
    NoAddress,
    /// In native mode: none of the range's family.
    NoAddressOfFamily,
    /// This machine has no IPv6.
    NoIpv6,
    /// This machine has a route or an address of its own there.
    InUse,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "the node has no address by which it could be reached",
            Self::NoAddressOfFamily => "the node has no address of this family, and only the overlay could carry it by the other",
            Self::NoIpv6 => "this machine has no IPv6",
            Self::InUse => "this machine has a route to the range that is not Palisade's, or an address in it",
        })
    }
}

/// A pod range of another node and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Name of the node.
    pub node: String,
    /// The range.
    pub range: IpNet,
    /// The way.
    pub way: Way,
    /// The address of the node to which its packets go, or would go in the overlay.
    pub outer: Option<IpAddr>,
    /// How this machine reaches that address, where it does.
    pub hop: Option<Hop>,
    /// Longest packet of a pod in bytes that gets there, where it is known.
    pub mtu: Option<u32>,
}

impl Reach {
    /// Longest packet of a pod in bytes that got there lately, as an error has told that came from the way.
    pub fn told(&self) -> Option<u32> {
        let path = self.hop?.path_mtu?;
        Some(match self.way {
            Way::Vxlan(outer) => path.saturating_sub(mtu::cost(outer)),
            _ => path,
        })
    }
}

/// The ways to the pod ranges of a node, as the mode says. `hops` are those of its addresses that have a route.
pub fn reaches(peer: &Peer, mode: RoutingMode, hops: &BTreeMap<IpAddr, Hop>) -> Vec<Reach> {
    peer.ranges.iter().map(|range| reach(peer, *range, mode, hops)).collect()
}

fn reach(peer: &Peer, range: IpNet, mode: RoutingMode, hops: &BTreeMap<IpAddr, Hop>) -> Reach {
    let of_family = |address: &&IpAddr| address.is_ipv4() == range.addr().is_ipv4();
    let (same, other): (Vec<&IpAddr>, Vec<&IpAddr>) = peer.addresses.iter().partition(|address| of_family(address));
    let on_link = same.iter().find_map(|address| Some((**address, hops.get(*address).filter(|hop| hop.on_link)?)));
    let candidates = || same.iter().chain(&other).map(|address| **address);
    // One without a route may get one: what it is sent until then is lost, as on any path that is down.
    let outer = candidates().find(|address| hops.contains_key(address)).or_else(|| candidates().next());
    let through = |outer: IpAddr| hops.get(&outer).map(|hop| hop.mtu.saturating_sub(mtu::cost(outer)));
    let (way, mtu) = match (mode, on_link, outer) {
        (RoutingMode::Native | RoutingMode::Auto, Some((gateway, hop)), _) => (Way::Native { gateway, link: hop.link }, Some(hop.mtu)),
        (RoutingMode::Native, None, _) => match same.first() {
            Some(address) => (Way::Network, hops.get(*address).map(|hop| hop.mtu)),
            None => (Way::Nowhere(Blocked::NoAddressOfFamily), None),
        },
        (RoutingMode::Vxlan | RoutingMode::Auto, _, Some(outer)) => (Way::Vxlan(outer), through(outer)),
        (RoutingMode::Vxlan | RoutingMode::Auto, _, None) => (Way::Nowhere(Blocked::NoAddress), None),
    };
    let outer = match way {
        Way::Native { gateway, .. } => Some(gateway),
        _ => outer.filter(|_| mode != RoutingMode::Native),
    };
    let hop = outer.and_then(|outer| hops.get(&outer).copied());
    Reach { node: peer.name.clone(), range, way, outer, hop, mtu }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Hop = Hop { link: 2, on_link: true, mtu: 1500, path_mtu: None, source: None };
    const FAR: Hop = Hop { link: 3, on_link: false, mtu: 9000, path_mtu: None, source: None };

    /// What is said of the ranges of a node with these addresses.
    fn ways(mode: RoutingMode, addresses: &[(&str, Option<Hop>)]) -> Vec<(Way, Option<u32>)> {
        let peer = Peer {
            name: "b".to_owned(),
            ranges: vec!["10.2.0.0/24".parse().unwrap(), "fd00:2::/64".parse().unwrap()],
            addresses: addresses.iter().map(|(address, _)| address.parse().unwrap()).collect(),
        };
        let hops = addresses.iter().filter_map(|(address, hop)| Some((address.parse().unwrap(), (*hop)?))).collect();
        reaches(&peer, mode, &hops).into_iter().map(|reach| (reach.way, reach.mtu)).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn native_goes_by_an_address_on_the_link_and_leaves_the_rest_to_the_network() {
        let near = ways(RoutingMode::Native, &[("192.0.2.2", Some(NEAR)), ("2001:db8::2", Some(FAR))]);
        assert_eq!(near, [(Way::Native { gateway: ip("192.0.2.2"), link: 2 }, Some(1500)), (Way::Network, Some(9000))]);
        let one = ways(RoutingMode::Native, &[("192.0.2.2", None)]);
        assert_eq!(one, [(Way::Network, None), (Way::Nowhere(Blocked::NoAddressOfFamily), None)]);
    }

    #[test]
    fn vxlan_goes_by_the_overlay_wherever_the_node_is() {
        let ways = ways(RoutingMode::Vxlan, &[("192.0.2.2", Some(NEAR)), ("2001:db8::2", Some(FAR))]);
        assert_eq!(ways, [(Way::Vxlan(ip("192.0.2.2")), Some(1450)), (Way::Vxlan(ip("2001:db8::2")), Some(8930))]);
    }

    #[test]
    fn auto_decides_for_each_family_of_each_node() {
        let ways = ways(RoutingMode::Auto, &[("192.0.2.2", Some(NEAR)), ("2001:db8::2", Some(FAR))]);
        assert_eq!(ways, [(Way::Native { gateway: ip("192.0.2.2"), link: 2 }, Some(1500)), (Way::Vxlan(ip("2001:db8::2")), Some(8930))]);
    }

    #[test]
    fn a_later_address_that_is_on_the_link_is_taken_before_one_that_is_not() {
        let ways = ways(RoutingMode::Auto, &[("198.51.100.2", Some(FAR)), ("192.0.2.2", Some(NEAR))]);
        assert_eq!(ways[0].0, Way::Native { gateway: ip("192.0.2.2"), link: 2 });
    }

    #[test]
    fn the_overlay_carries_a_family_of_which_the_node_has_no_address_by_the_other() {
        for mode in [RoutingMode::Vxlan, RoutingMode::Auto] {
            let ways = ways(mode, &[("192.0.2.2", Some(FAR))]);
            assert_eq!(ways[1], (Way::Vxlan(ip("192.0.2.2")), Some(8950)), "{mode:?}");
        }
    }

    #[test]
    fn an_address_without_a_route_is_taken_where_there_is_no_other() {
        let none = ways(RoutingMode::Auto, &[("192.0.2.2", None), ("198.51.100.2", Some(FAR))]);
        assert_eq!(none[0].0, Way::Vxlan(ip("198.51.100.2")));
        assert_eq!(ways(RoutingMode::Auto, &[("192.0.2.2", None)])[0], (Way::Vxlan(ip("192.0.2.2")), None));
        assert_eq!(ways(RoutingMode::Auto, &[])[0].0, Way::Nowhere(Blocked::NoAddress));
    }
}
