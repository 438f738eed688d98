//! What is known of the ways to the other nodes, for those who ask.

use super::device::DEVICE;
use super::survey::{Fault, Peer, Wrong};
use super::way::{Reach, Way};
use crate::state::State;
use ipnet::IpNet;
use palisade_protocol::{NodeFault, OverlayStatus, RangeStatus, RoutingStatus, WayName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The ways to the other nodes, as they were put into the kernel last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The MTU of pods in bytes, unless the configuration says another.
    pub mtu: u32,
    /// The MTU of the overlay's device; `None` where there is none.
    pub device: Option<u32>,
    /// The pod ranges of the other nodes.
    pub reaches: Vec<Reach>,
    /// What is wrong with Node objects.
    pub faults: BTreeSet<Fault>,
    /// What is wrong with this node itself.
    pub troubles: BTreeSet<String>,
}

impl Network {
    /// How many pod ranges are reached in each way.
    pub fn counts(&self) -> [(WayName, usize); 4] {
        let count = |way: WayName| self.reaches.iter().filter(|reach| reach.way.name() == way).count();
        [WayName::Native, WayName::Network, WayName::Vxlan, WayName::Nowhere].map(|way| (way, count(way)))
    }

    /// How many nodes have each fault, by the kind's name.
    pub fn fault_counts(&self) -> [(&'static str, usize); Wrong::KINDS.len()] {
        Wrong::KINDS.map(|kind| (kind, self.faults.iter().filter(|fault| fault.what.kind() == kind).count()))
    }
}

impl Way {
    /// Its name, as status and metrics show it.
    pub fn name(&self) -> WayName {
        match self {
            Self::Native { .. } => WayName::Native,
            Self::Network => WayName::Network,
            Self::Vxlan(_) => WayName::Vxlan,
            Self::Nowhere(_) => WayName::Nowhere,
        }
    }
}

/// The ways as `palisade status` shows them; `None` before they were looked at.
pub fn status(state: &State) -> Option<RoutingStatus> {
    let (network, routing) = (state.network()?, &state.config.routing);
    let ranges = network.reaches.iter().map(|reach| RangeStatus {
        node: reach.node.clone(),
        range: reach.range,
        way: reach.way.name(),
        address: match reach.way {
            Way::Native { gateway: address, .. } | Way::Vxlan(address) => Some(address),
            Way::Network | Way::Nowhere(_) => None,
        },
        reason: match &reach.way {
            Way::Nowhere(why) => Some(why.to_string()),
            _ => None,
        },
    });
    let faults = network.faults.iter().map(|fault| NodeFault { node: fault.node.clone(), fault: fault.what.to_string() });
    let troubles = network.troubles.iter().map(|trouble| NodeFault { node: state.config.node.clone(), fault: trouble.clone() });
    Some(RoutingStatus {
        mode: routing.mode.name().to_owned(),
        mtu: state.node_config().map_or(network.mtu, |config| config.mtu),
        overlay: network.device.zip(routing.overlay()).map(|(mtu, overlay)| OverlayStatus {
            device: DEVICE.to_owned(),
            port: overlay.port(),
            network: overlay.network(),
            mtu,
        }),
        ranges: ranges.collect(),
        faults: faults.chain(troubles).collect(),
    })
}

/// What is wrong where pods have addresses outside of the node's ranges, as those have that are older than its range. Without ranges,
/// that is what is wrong.
pub fn strays<'a>(own: &Peer, pods: impl IntoIterator<Item = &'a [IpAddr]>) -> Option<Fault> {
    let outside = |address: &IpAddr| !own.ranges.iter().any(|range| range.contains(address));
    let pods = pods.into_iter().filter(|addresses| addresses.iter().any(outside)).count();
    (pods > 0 && !own.ranges.is_empty()).then(|| Fault { node: own.name.clone(), what: Wrong::Strays { pods } })
}

/// What was said already, so that the log has each thing once.
#[derive(Debug, Default)]
pub struct Seen {
    faults: BTreeSet<Fault>,
    troubles: BTreeSet<String>,
    own: Option<Vec<IpNet>>,
    ways: BTreeMap<(String, IpNet), Way>,
    ipsec: bool,
}

impl Seen {
    /// Logs that packets between pods pass the stack because of IPsec, or no more.
    pub fn tell_of_ipsec(&mut self, ipsec: bool) {
        if ipsec && !self.ipsec {
            tracing::info!("this node has IPsec policies, or does not say: what its pods send to those of other nodes passes its stack");
        } else if !ipsec && self.ipsec {
            tracing::info!("this node has no IPsec policies any more");
        }
        self.ipsec = ipsec;
    }

    /// Logs what is new.
    pub fn tell(&mut self, node: &str, own: &Peer, network: &Network) {
        for Fault { node, what } in network.faults.difference(&self.faults) {
            tracing::warn!(node, wrong = %what, "a Node is not as it should be");
        }
        for Fault { node, what } in self.faults.difference(&network.faults) {
            tracing::info!(node, was = what.kind(), "what was wrong with a Node is over");
        }
        self.faults.clone_from(&network.faults);
        for trouble in network.troubles.difference(&self.troubles) {
            tracing::warn!("{trouble}");
        }
        self.troubles.clone_from(&network.troubles);
        if let Some(before) = self.own.as_ref().filter(|before| **before != own.ranges) {
            let shown = |ranges: &[IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                node,
                before = shown(before),
                now = shown(&own.ranges),
                "the node's pod range is another: pods with addresses of the old one are reached from this node alone; make them anew"
            );
        }
        self.own = Some(own.ranges.clone());
        let ways: BTreeMap<(String, IpNet), Way> =
            network.reaches.iter().map(|reach| ((reach.node.clone(), reach.range), reach.way.clone())).collect();
        for ((node, range), way) in ways.iter().filter(|(key, way)| self.ways.get(*key) != Some(way)) {
            match way {
                Way::Native { gateway, .. } => tracing::info!(node, %range, %gateway, "pods are reached by the node's address"),
                Way::Network => {
                    tracing::info!(node, %range, "the node is on no link of this one: the network between them must route its pod range")
                }
                Way::Vxlan(outer) => tracing::info!(node, %range, %outer, "pods are reached by the overlay"),
                Way::Nowhere(why) => tracing::warn!(node, %range, %why, "pods are not reached"),
            }
        }
        self.ways = ways;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_with_an_address_outside_of_the_nodes_ranges_are_counted() {
        let own = |ranges: &[&str]| Peer {
            name: "a".to_owned(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Peer::default()
        };
        let pods = [["10.1.0.2", "fd00:1::2"], ["10.1.0.3", "fd00:9::3"], ["10.9.0.4", "fd00:9::4"]];
        let pods = pods.map(|addresses| addresses.map(|address| address.parse::<IpAddr>().unwrap()));
        let strays = |ranges: &[&str]| strays(&own(ranges), pods.iter().map(|addresses| &addresses[..])).map(|fault| fault.what);
        assert_eq!(strays(&["10.1.0.0/24", "fd00:1::/64"]), Some(Wrong::Strays { pods: 2 }));
        assert_eq!(strays(&["10.0.0.0/8", "fd00::/16"]), None);
        assert_eq!(strays(&[]), None, "that it has no range is said already");
    }
}
