//! Who has which pod range and which address, and which claims are not believed.

use ipnet::IpNet;
use palisade_policy::model::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A node, with those of its claims that hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its pod ranges; no other node has a part of them.
    pub ranges: Vec<IpNet>,
    /// Its addresses, internal ones first; no other node has them, and no pod can have them.
    pub addresses: Vec<IpAddr>,
}

/// All nodes, with what can be believed of what their objects say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// This node.
    pub own: Peer,
    /// The others, in the order of their names.
    pub peers: Vec<Peer>,
    /// What is wrong.
    pub faults: BTreeSet<Fault>,
}

/// Something that is wrong with a node's object. The rest of it holds, and other nodes go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Name of the node.
    pub node: String,
    /// What is wrong.
    pub what: Wrong,
}

/// What is wrong with a node's object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// It has no pod range.
    NoRange,
    /// Its pod range has addresses in common with another node's, and that one has them.
    Overlap {
        /// Its range, which leads nowhere.
        range: IpNet,
        /// The other range.
        with: IpNet,
        /// Name of the other node.
        of: String,
    },
    /// Its pod range has an address in it that an older node, or this one, has: all that is for that node would go to pods.
    Covers {
        /// Its range, which leads nowhere.
        range: IpNet,
        /// The address.
        address: IpAddr,
        /// Name of the other node.
        of: String,
    },
    /// Another node has its address.
    Shared {
        /// The address.
        address: IpAddr,
        /// Name of the other node.
        of: String,
    },
    /// Its address is one that a pod may have.
    AmongPods {
        /// The address.
        address: IpAddr,
        /// The pod range in which it lies.
        range: IpNet,
        /// Name of the node whose pod range that is.
        of: String,
    },
    /// Its address is that of a pod that runs on the machine that looks. Not seen in Node objects alone.
    OfPod {
        /// The address.
        address: IpAddr,
    },
    /// Its address is none by which a node is reached.
    Unusable {
        /// The address.
        address: IpAddr,
    },
    /// The machine that looks has something where its pod range is: no route is set there. Not seen in Node objects, but when routes are set.
    InUse {
        /// Its range.
        range: IpNet,
        /// What is there.
        by: Local,
    },
    /// Pods on it have addresses outside of its pod ranges. Seen by the node itself, of its pods that run.
    Strays {
        /// How many.
        pods: usize,
    },
    /// Pods on it claim addresses in another node's pod range, which are no address of theirs. Not seen in Node objects, but in those of pods.
    Misplaced {
        /// How many.
        pods: usize,
    },
}

/// What a machine has where a pod range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Local {
    /// An address on one of its interfaces.
    Address(IpAddr),
    /// A route to the very range that somebody else has made.
    Route,
}

impl Wrong {
    /// The kinds, as the metric names them.
    pub const KINDS: [&str; 10] = [
        "no-pod-range",
        "overlapping-pod-range",
        "covering-pod-range",
        "shared-address",
        "address-among-pods",
        "unusable-address",
        "pod-range-in-use",
        "pods-outside-range",
        "address-of-pod",
        "pods-in-other-range",
    ];

    /// Which of [`KINDS`](Self::KINDS) it is.
    pub fn kind(&self) -> &'static str {
        Self::KINDS[match self {
            Self::NoRange => 0,
            Self::Overlap { .. } => 1,
            Self::Covers { .. } => 2,
            Self::Shared { .. } => 3,
            Self::AmongPods { .. } => 4,
            Self::Unusable { .. } => 5,
            Self::InUse { .. } => 6,
            Self::Strays { .. } => 7,
            Self::OfPod { .. } => 8,
            Self::Misplaced { .. } => 9,
        }]
    }

    /// The address that nobody believes to be the node's.
    pub(crate) fn no_address(&self) -> Option<IpAddr> {
        match self {
            Self::AmongPods { address, .. } | Self::OfPod { address } | Self::Unusable { address } => Some(*address),
            _ => None,
        }
    }

    /// The range that is in use, where that is what is wrong.
    pub fn in_use(&self) -> Option<IpNet> {
        if let Self::InUse { range, .. } = self { Some(*range) } else { None }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRange => write!(f, "it has no pod range (spec.podCIDRs): pods on it are not reached"),
            Self::Overlap { range, with, of } => {
                write!(f, "its pod range {range} overlaps {with} of the older node {of}, which keeps it: pods in it are not reached")
            }
            Self::Covers { range, address, of } => {
                write!(f, "its pod range {range} has {address} of node {of} in it, which keeps it: pods in the range are not reached")
            }
            Self::Shared { address, of } => write!(f, "its address {address} is that of the older node {of}, which keeps it"),
            Self::AmongPods { address, range, of } => {
                write!(f, "its address {address} lies in the pod range {range} of node {of}: it is taken for a pod's")
            }
            Self::OfPod { address } => {
                write!(
                    f,
                    "its address {address} is that of a pod that runs here, which keeps it: give nodes and pods ranges of their own, and make the pod anew"
                )
            }
            Self::Unusable { address } => write!(f, "nobody is reached by its address {address}"),
            Self::Strays { pods } => {
                write!(
                    f,
                    "addresses of {pods} of its pods are outside of its pod ranges: those are reached from this node alone; make them anew"
                )
            }
            Self::Misplaced { pods } => {
                write!(
                    f,
                    "{pods} of its pods claim addresses in pod ranges of other nodes: no rule takes such an address for theirs, and where a pod of that node has it, theirs is closed; make them anew"
                )
            }
            Self::InUse { range, by: Local::Address(address) } => {
                write!(f, "this machine's own address {address} lies in its pod range {range}: no route to the range is set here")
            }
            Self::InUse { range, by: Local::Route } => {
                write!(f, "this machine has a route to its pod range {range} that is not Palisade's: that one stays, and no other is set")
            }
        }
    }
}

impl Survey {
    /// Takes addresses from the nodes that pods of the machine that looks have: rules about nodes would hold for such a pod, and what is for
    /// the pod would go to the node. A pod whose address a node has is not wired, so the claim came later.
    pub(crate) fn leave_to_pods(&mut self, pods: &BTreeSet<IpAddr>) {
        for peer in self.peers.iter_mut().chain([&mut self.own]) {
            for &address in peer.addresses.iter().filter(|address| pods.contains(address)) {
                self.faults.insert(Fault { node: peer.name.clone(), what: Wrong::OfPod { address } });
            }
            peer.addresses.retain(|address| !pods.contains(address));
        }
    }
}

/// What holds of the nodes' claims. This node goes first, then the older before the younger: who comes later takes nothing from anybody.
pub fn survey<'a>(own: &str, nodes: impl IntoIterator<Item = (&'a String, &'a Node)>) -> Survey {
    let mut order: Vec<(&String, &Node)> = nodes.into_iter().collect();
    order.sort_by_key(|(name, node)| (*name != own, node.created, *name));
    let mut faults = BTreeSet::new();
    let mut wrong = |node: &String, what| {
        faults.insert(Fault { node: node.clone(), what });
    };
    let mut peers: BTreeMap<&String, Peer> = BTreeMap::new();
    let mut taken: Ranges<&str> = Ranges::default();
    let mut owners: BTreeMap<IpAddr, &String> = BTreeMap::new();
    for (name, node) in &order {
        let mut peer = Peer { name: (*name).clone(), ..Peer::default() };
        if node.pod_ranges.is_empty() {
            wrong(name, Wrong::NoRange);
        }
        for range in node.pod_ranges.iter().map(IpNet::trunc) {
            let covered = owners.range(range.network()..=range.broadcast()).next();
            if let Some((&address, of)) = covered {
                wrong(name, Wrong::Covers { range, address, of: (*of).clone() });
                continue;
            }
            match taken.take(range, name) {
                Ok(()) => peer.ranges.push(range),
                Err((with, of)) => wrong(name, Wrong::Overlap { range, with, of: of.to_owned() }),
            }
        }
        for &address in &node.addresses {
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                wrong(name, Wrong::Unusable { address });
            } else if let Some((range, of)) = taken.around(address) {
                wrong(name, Wrong::AmongPods { address, range: *range, of: (*of).to_owned() });
            } else if let Some(of) = owners.get(&address).filter(|of| of != &name) {
                wrong(name, Wrong::Shared { address, of: (*of).clone() });
            } else if owners.insert(address, name).is_none() {
                peer.addresses.push(address);
            }
        }
        peers.insert(name, peer);
    }
    let own = peers.remove(&own.to_owned()).unwrap_or_else(|| Peer { name: own.to_owned(), ..Peer::default() });
    Survey { own, peers: peers.into_values().collect(), faults }
}

/// Who has which pod range in the eyes of all nodes: here none goes before others for being the one that looks, so that all of them say the same of
/// an address.
pub(crate) fn holders<'a>(nodes: impl IntoIterator<Item = (&'a String, &'a Node)>) -> Ranges<String> {
    let mut holders = Ranges::default();
    // No node has this name.
    for Peer { name, ranges, .. } in survey("", nodes).peers {
        holders.0.extend(ranges.into_iter().map(|range| (range.network(), (range, name.clone()))));
    }
    holders
}

/// Ranges that have nothing in common, by their first address, and whose each is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges<N>(BTreeMap<IpAddr, (IpNet, N)>);

impl<N> Default for Ranges<N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<N: Clone + PartialEq> Ranges<N> {
    /// Adds a range; the range that it overlaps where there is one.
    fn take(&mut self, range: IpNet, of: N) -> Result<(), (IpNet, N)> {
        let inside = self.0.range(range.network()..=range.broadcast()).next().map(|(_, taken)| taken);
        if let Some(other) = self.around(range.network()).or(inside) {
            return Err(other.clone());
        }
        self.0.insert(range.network(), (range, of));
        Ok(())
    }

    /// The range that an address lies in.
    pub(crate) fn around(&self, address: IpAddr) -> Option<&(IpNet, N)> {
        let before = self.0.range(..=address).next_back().map(|(_, taken)| taken);
        before.filter(|(range, _)| range.contains(&address))
    }

    /// The ranges that only one of both has, or that are another's in the other.
    pub(crate) fn differences(&self, other: &Self) -> Vec<IpNet> {
        let only = |these: &Self, those: &Self| -> Vec<IpNet> {
            these.0.iter().filter(|(first, taken)| those.0.get(*first) != Some(*taken)).map(|(_, (range, _))| *range).collect()
        };
        [only(self, other), only(other, self)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(nodes: &[(&str, i64, &[&str], &[&str])]) -> Survey {
        let nodes: BTreeMap<String, Node> = nodes
            .iter()
            .map(|(name, created, addresses, ranges)| {
                let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
                let pod_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
                ((*name).to_owned(), Node { created: *created, addresses, pod_ranges, ..Node::default() })
            })
            .collect();
        survey("own", &nodes)
    }

    fn faults(survey: &Survey) -> Vec<(&str, &'static str)> {
        survey.faults.iter().map(|fault| (fault.node.as_str(), fault.what.kind())).collect()
    }

    fn ranges(survey: &Survey, name: &str) -> Vec<String> {
        let peer = survey.peers.iter().chain([&survey.own]).find(|peer| peer.name == name).unwrap();
        peer.ranges.iter().map(ToString::to_string).collect()
    }

    fn addresses(survey: &Survey, name: &str) -> Vec<String> {
        let peer = survey.peers.iter().chain([&survey.own]).find(|peer| peer.name == name).unwrap();
        peer.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_without_a_pod_range_is_named_and_the_others_go_on() {
        let survey = claims(&[
            ("own", 1, &["192.0.2.1"], &["10.1.0.0/24"]),
            ("b", 2, &["192.0.2.2"], &[]),
            ("c", 3, &["192.0.2.3"], &["10.3.0.0/24"]),
        ]);
        assert_eq!(faults(&survey), [("b", "no-pod-range")]);
        assert_eq!((ranges(&survey, "b").len(), ranges(&survey, "c")), (0, vec!["10.3.0.0/24".to_owned()]));
    }

    #[test]
    fn of_overlapping_pod_ranges_the_older_node_keeps_its_own_whole() {
        for (older, younger) in [("10.2.0.0/24", "10.2.0.0/24"), ("10.2.0.0/16", "10.2.7.0/24"), ("10.2.7.0/24", "10.2.0.0/16")] {
            // By age, not by name.
            let survey = claims(&[
                ("own", 9, &["192.0.2.1"], &["10.1.0.0/24"]),
                ("b", 8, &["192.0.2.2"], &[younger, "fd00:2::/64"]),
                ("c", 3, &["192.0.2.3"], &[older]),
            ]);
            assert_eq!(faults(&survey), [("b", "overlapping-pod-range")], "{older} {younger}");
            assert_eq!(ranges(&survey, "b"), ["fd00:2::/64"], "the other family goes on");
            assert_eq!(ranges(&survey, "c"), [older]);
        }
    }

    #[test]
    fn no_node_takes_a_pod_range_or_an_address_of_this_one() {
        let survey = claims(&[("own", 9, &["192.0.2.1"], &["10.1.0.0/24"]), ("b", 1, &["192.0.2.1", "192.0.2.2"], &["10.0.0.0/8"])]);
        assert_eq!(faults(&survey), [("b", "overlapping-pod-range"), ("b", "shared-address")]);
        assert_eq!(addresses(&survey, "own"), ["192.0.2.1"]);
        assert_eq!(addresses(&survey, "b"), ["192.0.2.2"]);
    }

    #[test]
    fn a_pod_range_with_an_address_of_an_older_node_or_of_this_one_is_refused_and_the_address_stays_the_nodes() {
        for wide in ["192.0.0.0/8", "192.0.2.0/24", "192.0.2.2/32"] {
            let survey = claims(&[
                ("own", 9, &["192.0.2.1"], &["10.1.0.0/24"]),
                ("b", 3, &["192.0.2.2"], &["10.2.0.0/24"]),
                ("c", 8, &["198.51.100.3"], &[wide, "fd00:3::/64"]),
                ("d", 9, &["192.0.2.4"], &["10.4.0.0/24"]),
            ]);
            assert_eq!(faults(&survey), [("c", "covering-pod-range")], "{wide}: it makes no address a pod's, a younger node's neither");
            assert_eq!(ranges(&survey, "c"), ["fd00:3::/64"], "the other family goes on");
            for (name, address) in [("own", "192.0.2.1"), ("b", "192.0.2.2"), ("d", "192.0.2.4")] {
                assert_eq!(addresses(&survey, name), [address], "{wide}");
            }
        }
        // This one's own, however young it is.
        let survey = claims(&[("own", 9, &["192.0.2.1"], &["10.1.0.0/24"]), ("b", 1, &["198.51.100.2"], &["192.0.2.0/24"])]);
        assert_eq!(faults(&survey), [("b", "covering-pod-range")]);
        assert_eq!((ranges(&survey, "b").len(), addresses(&survey, "own")), (0, vec!["192.0.2.1".to_owned()]));
    }

    #[test]
    fn a_pod_range_that_is_refused_makes_no_address_a_pods() {
        let survey = claims(&[
            ("own", 1, &["192.0.2.1"], &["10.1.0.0/24"]),
            ("b", 2, &["198.51.100.2"], &["10.0.0.0/8"]),
            ("c", 3, &["10.9.0.3"], &["172.16.3.0/24"]),
        ]);
        assert_eq!(faults(&survey), [("b", "overlapping-pod-range")]);
        assert_eq!(addresses(&survey, "c"), ["10.9.0.3"]);
    }

    #[test]
    fn of_two_nodes_with_one_address_the_older_keeps_it() {
        let survey = claims(&[
            ("own", 9, &["192.0.2.1"], &["10.1.0.0/24"]),
            ("b", 8, &["192.0.2.7", "2001:db8::2"], &["10.2.0.0/24"]),
            ("c", 3, &["192.0.2.7"], &["10.3.0.0/24"]),
        ]);
        assert_eq!(faults(&survey), [("b", "shared-address")]);
        assert_eq!(addresses(&survey, "b"), ["2001:db8::2"]);
        assert_eq!(addresses(&survey, "c"), ["192.0.2.7"]);
    }

    #[test]
    fn a_node_address_that_a_pod_may_have_is_a_pods() {
        let survey = claims(&[
            ("own", 9, &["192.0.2.1"], &["10.1.0.0/24"]),
            ("b", 1, &["10.1.0.5"], &["10.2.0.0/24"]),
            ("c", 1, &["10.2.0.1", "0.0.0.0", "127.0.0.1", "ff02::1"], &["10.3.0.0/24"]),
        ]);
        let unusable = ("c", "unusable-address");
        assert_eq!(faults(&survey), [("b", "address-among-pods"), ("c", "address-among-pods"), unusable, unusable, unusable]);
        assert!(addresses(&survey, "b").is_empty() && addresses(&survey, "c").is_empty());
    }
}
