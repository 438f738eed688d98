//! Which nodes a lab has, and on which links they are: what Node objects say of it, and what a lab gives where they say nothing.

use super::outside;
use ipnet::IpNet;
use palisade_k8s::convert;
use palisade_k8s::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The annotation of a Node that names the link it is on, by the link's subnet of each family: `192.0.2.0/24,2001:db8:1::/64`.
pub const SUBNET: &str = "lab.palisade.dev/subnet";
/// The annotation of a Node that gives the MTU of its link, in bytes.
pub const MTU: &str = "lab.palisade.dev/mtu";

/// The link of nodes that name none.
const DEFAULT_SUBNETS: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];
const DEFAULT_MTU: u32 = 1500;
/// IPv6 needs that much (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;
const MOST_MTU: u32 = 65_535;
/// Where the routers of a link and the first node without a written address are in its subnets.
const ROUTER: u32 = 1;
const BORDER: u32 = 2;
const FIRST_NODE: u32 = 11;

/// The nodes of a lab, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology(pub BTreeMap<String, NodePlan>);

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// The link that it is on.
    pub link: Link,
    /// Its addresses there, one of each family of the link.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges, at most one per family.
    pub ranges: Vec<IpNet>,
}

/// A link that nodes share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its subnets, at most one per family, IPv4's first.
    pub subnets: Vec<IpNet>,
    /// In bytes.
    pub mtu: u32,
}

/// What is wrong with the Node objects of a lab.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// In a lab of several, `node` means each of them.
    #[error("a Node cannot be called {}: where there are several, that means each of them", outside::NODE)]
    Name,
    /// An annotation cannot be read.
    #[error("Node {node}: annotation {key}: {value:?} is not {wanted}")]
    Annotation {
        /// Of which node.
        node: String,
        /// Its key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What belongs there.
        wanted: &'static str,
    },
    /// One link has one MTU.
    #[error("Nodes {one} and {other} are on one link, and their {MTU} differ: a link has one MTU")]
    TwoMtus {
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// An address is not of the node's link, or somebody else's.
    #[error("Node {node}: its InternalIP {address} {why}")]
    Address {
        /// Of which node.
        node: String,
        /// The address.
        address: IpAddr,
        /// What is wrong with it.
        why: String,
    },
    /// The link has no address left that could be given.
    #[error("Node {node}: {subnet} has no address left for it: give it an InternalIP, or a larger subnet")]
    Full {
        /// Of which node.
        node: String,
        /// The subnet.
        subnet: IpNet,
    },
    /// Nobody could reach the pods.
    #[error("Node {node}: its pod range {range} is of a family of which its link has no subnet")]
    Family {
        /// Of which node.
        node: String,
        /// The range.
        range: IpNet,
    },
    /// Two uses of an address.
    #[error("{one} and {other} overlap")]
    Overlap {
        /// A node that says one of them.
        node: Option<String>,
        /// What.
        one: String,
        /// And what.
        other: String,
    },
}

impl TopologyError {
    /// The node whose object says what is wrong, where one does.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Name => Some(outside::NODE),
            Self::TwoMtus { other: node, .. }
            | Self::Annotation { node, .. }
            | Self::Address { node, .. }
            | Self::Full { node, .. }
            | Self::Family { node, .. } => Some(node),
            Self::Overlap { node, .. } => node.as_deref(),
        }
    }
}

impl Link {
    /// The address that is the `number`th of a subnet.
    fn address(subnet: IpNet, number: u32) -> Option<IpAddr> {
        let address = match subnet.network() {
            IpAddr::V4(network) => Ipv4Addr::from(u32::from(network).checked_add(number)?).into(),
            IpAddr::V6(network) => Ipv6Addr::from(u128::from(network).checked_add(number.into())?).into(),
        };
        (subnet.contains(&address) && address != subnet.broadcast()).then_some(address)
    }

    fn addresses(&self, number: u32) -> Vec<IpNet> {
        let at = |subnet: &IpNet| Some(IpNet::new_assert(Self::address(*subnet, number)?, subnet.prefix_len()));
        self.subnets.iter().filter_map(at).collect()
    }

    /// The addresses of the router that joins it with other links, and by which its nodes reach everybody else.
    pub fn router(&self) -> Vec<IpNet> {
        self.addresses(ROUTER)
    }

    /// The addresses of the router to the outside host.
    pub fn border(&self) -> Vec<IpNet> {
        self.addresses(BORDER)
    }

    fn subnet_of(&self, address: IpAddr) -> Option<IpNet> {
        self.subnets.iter().copied().find(|subnet| subnet.contains(&address))
    }
}

impl NodePlan {
    /// Its address of the family of `other`.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// Its addresses with the lengths of their subnets.
    pub fn joined(&self) -> impl Iterator<Item = IpNet> {
        self.addresses.iter().filter_map(|address| Some(IpNet::new_assert(*address, self.link.subnet_of(*address)?.prefix_len())))
    }
}

impl Topology {
    /// What the Node objects say; `None` where there are none. What a node was given `before` it keeps.
    pub fn read(manifest: &Manifest, before: Option<&Self>) -> Result<Option<Self>, TopologyError> {
        if manifest.nodes.is_empty() {
            return Ok(None);
        }
        let mut nodes = BTreeMap::new();
        for object in &manifest.nodes {
            let name = object.metadata.name.clone().unwrap_or_default();
            if name == outside::NODE {
                return Err(TopologyError::Name);
            }
            let annotation = |key| object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)).map(String::as_str);
            let link = Link { subnets: subnets(&name, annotation(SUBNET))?, mtu: mtu(&name, annotation(MTU))? };
            let written = convert::node(object).unwrap_or_else(|refusal| *refusal.closed);
            let of_link = |address: &IpAddr| link.subnets.iter().any(|subnet| subnet.addr().is_ipv4() == address.is_ipv4());
            // External addresses come after; one per family is what others reach it by.
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in written.addresses.into_iter().filter(of_link) {
                if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
                    addresses.push(address);
                }
            }
            nodes.insert(name, NodePlan { link, addresses, ranges: written.pod_ranges });
        }
        let mut topology = Self(nodes);
        topology.check_links()?;
        topology.check_addresses()?;
        topology.give_addresses(before)?;
        topology.give_ranges(before);
        topology.check_overlaps()?;
        Ok(Some(topology))
    }

    /// The links, each once.
    pub fn links(&self) -> BTreeSet<&Link> {
        self.0.values().map(|node| &node.link).collect()
    }

    fn check_links(&self) -> Result<(), TopologyError> {
        for (one, plan) in &self.0 {
            let same = |(_, other): &(&String, &NodePlan)| other.link.subnets == plan.link.subnets && other.link.mtu != plan.link.mtu;
            if let Some((other, _)) = self.0.iter().find(same) {
                return Err(TopologyError::TwoMtus { one: one.clone(), other: other.clone() });
            }
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), TopologyError> {
        let mut whose: BTreeMap<IpAddr, &String> = BTreeMap::new();
        for (node, plan) in &self.0 {
            for &address in &plan.addresses {
                let routers = plan.link.router().into_iter().chain(plan.link.border());
                let why = match (plan.link.subnet_of(address), whose.insert(address, node)) {
                    (None, _) => format!("is not of its link: that has {}", shown(&plan.link.subnets)),
                    (_, Some(other)) => format!("is Node {other}'s already"),
                    _ if routers.into_iter().any(|router| router.addr() == address) => "is a router's of the lab".to_owned(),
                    _ => continue,
                };
                return Err(TopologyError::Address { node: node.clone(), address, why });
            }
        }
        Ok(())
    }

    /// Gives each node an address of each family of its link, where none is written.
    fn give_addresses(&mut self, before: Option<&Self>) -> Result<(), TopologyError> {
        let mut taken: BTreeSet<IpAddr> = self.0.values().flat_map(|plan| plan.addresses.iter().copied()).collect();
        let lacking: Vec<(String, IpNet)> = self
            .0
            .iter()
            .flat_map(|(name, plan)| {
                let has = |subnet: &IpNet| plan.addresses.iter().any(|address| address.is_ipv4() == subnet.addr().is_ipv4());
                plan.link.subnets.iter().filter(move |subnet| !has(subnet)).map(|subnet| (name.clone(), *subnet))
            })
            .collect();
        let mut waiting = Vec::new();
        for (name, subnet) in lacking {
            let kept = before.and_then(|before| before.0.get(&name)?.address_like(subnet.addr()));
            match kept.filter(|address| subnet.contains(address) && !taken.contains(address)) {
                Some(address) => self.give_address(&name, address, &mut taken),
                None => waiting.push((name, subnet)),
            }
        }
        for (name, subnet) in waiting {
            let mut free = (FIRST_NODE..).map_while(|number| Link::address(subnet, number)).filter(|address| !taken.contains(address));
            match free.next() {
                Some(address) => self.give_address(&name, address, &mut taken),
                None => return Err(TopologyError::Full { node: name, subnet }),
            }
        }
        Ok(())
    }

    fn give_address(&mut self, name: &str, address: IpAddr, taken: &mut BTreeSet<IpAddr>) {
        taken.insert(address);
        if let Some(plan) = self.0.get_mut(name) {
            plan.addresses.push(address);
            plan.addresses.sort();
        }
    }

    /// Gives nodes without pod ranges one of each family of their links.
    fn give_ranges(&mut self, before: Option<&Self>) {
        let mut taken: Vec<IpNet> = self.0.values().flat_map(|plan| plan.ranges.iter().copied()).collect();
        let free = |ranges: &[IpNet], taken: &[IpNet]| !ranges.iter().any(|range| taken.iter().any(|other| overlap(*range, *other)));
        let lacking: Vec<String> = self.0.iter().filter(|(_, plan)| plan.ranges.is_empty()).map(|(name, _)| name.clone()).collect();
        let mut waiting = Vec::new();
        for name in lacking {
            let kept = before.and_then(|before| before.0.get(&name)).map(|plan| plan.ranges.clone()).filter(|ranges| free(ranges, &taken));
            match (kept, self.0.get_mut(&name)) {
                (Some(ranges), Some(plan)) if given(&plan.link).any(|candidate| candidate == ranges) => {
                    taken.extend(&ranges);
                    plan.ranges = ranges;
                }
                _ => waiting.push(name),
            }
        }
        for name in waiting {
            let Some(plan) = self.0.get_mut(&name) else { continue };
            if let Some(ranges) = given(&plan.link).find(|ranges| free(ranges, &taken)) {
                taken.extend(&ranges);
                plan.ranges = ranges;
            }
        }
    }

    fn check_overlaps(&self) -> Result<(), TopologyError> {
        let on = |link: &Link| self.0.iter().find(|(_, plan)| plan.link == *link).map(|(name, _)| name.clone());
        let mut uses: Vec<(String, IpNet, Option<String>)> =
            outside::networks().map(|net| ("the network of the outside host".to_owned(), net, None)).collect();
        uses.extend(outside::service_ranges().into_iter().map(|net| ("the range of services".to_owned(), net, None)));
        let links = self.links();
        let split =
            links.iter().find(|link| links.iter().any(|other| other != *link && link.subnets.iter().any(|it| other.subnets.contains(it))));
        if let Some(link) = split {
            let (one, other) =
                (format!("subnets {}", shown(&link.subnets)), "those of another link: nodes of one link name the same subnets");
            return Err(TopologyError::Overlap { node: on(link), one, other: other.to_owned() });
        }
        uses.extend(links.into_iter().flat_map(|link| link.subnets.iter().map(move |net| ("subnet".to_owned(), *net, on(link)))));
        for (node, plan) in &self.0 {
            for &range in &plan.ranges {
                if !plan.addresses.iter().any(|address| address.is_ipv4() == range.addr().is_ipv4()) {
                    return Err(TopologyError::Family { node: node.clone(), range });
                }
                uses.push((format!("the pod range of Node {node},"), range, Some(node.clone())));
            }
        }
        for (index, (what, net, node)) in uses.iter().enumerate() {
            if let Some((other, second, _)) = uses[..index].iter().find(|(_, other, _)| overlap(*net, *other)) {
                return Err(TopologyError::Overlap {
                    node: node.clone(),
                    one: format!("{other} {second}"),
                    other: format!("{what} {net}"),
                });
            }
        }
        Ok(())
    }
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn shown(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The pod ranges that are given to nodes of a link, in their order.
fn given(link: &Link) -> impl Iterator<Item = Vec<IpNet>> {
    let families: Vec<bool> = link.subnets.iter().map(|subnet| subnet.addr().is_ipv6()).collect();
    (1..=u8::MAX).map(move |number| {
        let range = |ipv6: &bool| match ipv6 {
            false => IpNet::new_assert(Ipv4Addr::new(10, 244, number, 0).into(), 24),
            true => IpNet::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0).into(), 64),
        };
        families.iter().map(range).collect()
    })
}

fn subnets(node: &str, written: Option<&str>) -> Result<Vec<IpNet>, TopologyError> {
    let value = written.map_or_else(|| DEFAULT_SUBNETS.join(","), str::to_owned);
    let read: Option<Vec<IpNet>> = value.split(',').map(|part| part.trim().parse::<IpNet>().ok()).collect();
    let room = |net: &IpNet| Link::address(*net, FIRST_NODE).is_some();
    let sound = |nets: &Vec<IpNet>| {
        let of = |ipv6: bool| nets.iter().filter(|net| net.addr().is_ipv6() == ipv6).count();
        of(false) <= 1 && of(true) <= 1 && nets.iter().all(|net| net.trunc() == *net && room(net))
    };
    let Some(mut nets) = read.filter(sound) else {
        let wanted = "one subnet or one of each family, with room for 10 addresses, such as 192.0.2.0/24,2001:db8:1::/64";
        return Err(TopologyError::Annotation { node: node.to_owned(), key: SUBNET, value, wanted });
    };
    nets.sort();
    Ok(nets)
}

fn mtu(node: &str, written: Option<&str>) -> Result<u32, TopologyError> {
    let Some(value) = written else { return Ok(DEFAULT_MTU) };
    value.parse().ok().filter(|mtu| (LEAST_MTU..=MOST_MTU).contains(mtu)).ok_or_else(|| TopologyError::Annotation {
        node: node.to_owned(),
        key: MTU,
        value: value.to_owned(),
        wanted: "a number of bytes from 1280 to 65535",
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use palisade_k8s::manifest;

    /// The topology of Nodes, each with its name, annotations, spec and addresses in flow style.
    pub(crate) fn read(nodes: &[(&str, &str, &str, &str)], before: Option<&Topology>) -> Result<Topology, TopologyError> {
        let directory = tempfile::tempdir().unwrap();
        let object = |(name, annotations, spec, addresses): &(&str, &str, &str, &str)| {
            let addresses: Vec<String> = addresses.split_whitespace().map(|it| format!("{{type: InternalIP, address: '{it}'}}")).collect();
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\nstatus: {{addresses: [{}]}}\n",
                addresses.join(", ")
            )
        };
        std::fs::write(directory.path().join("nodes.yaml"), nodes.iter().map(object).collect::<String>()).unwrap();
        Ok(Topology::read(&manifest::read(directory.path()).unwrap(), before)?.expect("there are nodes"))
    }

    fn texts(values: &[impl ToString]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    const FAR: &str = "lab.palisade.dev/subnet: '198.18.0.0/24,2001:db8:1::/64', lab.palisade.dev/mtu: '1400'";

    #[test]
    fn a_node_that_says_nothing_gets_a_link_addresses_and_ranges() {
        let topology = read(&[("a", "", "", ""), ("b", "", "podCIDRs: [10.244.1.0/24]", "192.0.2.77"), ("c", FAR, "", "")], None).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| &topology.0[name]);
        assert_eq!(
            (texts(&a.addresses), texts(&a.ranges)),
            (vec!["192.0.2.11".into(), "2001:db8::b".into()], vec!["10.244.2.0/24".into(), "fd00:10:244:2::/64".into()])
        );
        assert_eq!(
            (texts(&b.addresses), texts(&b.ranges)),
            (vec!["192.0.2.77".into(), "2001:db8::c".into()], vec!["10.244.1.0/24".to_owned()])
        );
        assert_eq!((a.link == b.link, c.link.mtu, texts(&c.addresses)), (true, 1400, vec!["198.18.0.11".into(), "2001:db8:1::b".into()]));
        assert_eq!(topology.links().len(), 2);
        assert_eq!(texts(&c.link.router()), ["198.18.0.1/24", "2001:db8:1::1/64"]);
    }

    #[test]
    fn what_a_node_was_given_it_keeps_while_others_come_and_go() {
        let first = read(&[("b", "", "", ""), ("c", "", "", "")], None).unwrap();
        let second = read(&[("a", "", "", ""), ("c", "", "", "")], Some(&first)).unwrap();
        assert_eq!(first.0["c"], second.0["c"]);
        assert_eq!(
            (&second.0["a"].addresses, &second.0["a"].ranges),
            (&first.0["b"].addresses, &first.0["b"].ranges),
            "what is free again"
        );
        let third = read(&[("a", "", "podCIDRs: [10.9.0.0/24]", ""), ("c", "", "", "")], Some(&second)).unwrap();
        assert_eq!((texts(&third.0["a"].ranges), &third.0["a"].addresses), (vec!["10.9.0.0/24".to_owned()], &second.0["a"].addresses));
    }

    #[test]
    fn a_link_of_one_family_has_nodes_and_ranges_of_that_family() {
        let topology = read(&[("a", "lab.palisade.dev/subnet: '2001:db8:7::/64'", "", "")], None).unwrap();
        assert_eq!(
            (texts(&topology.0["a"].addresses), texts(&topology.0["a"].ranges)),
            (vec!["2001:db8:7::b".to_owned()], vec!["fd00:10:244:1::/64".to_owned()])
        );
    }

    #[test]
    fn what_cannot_be_a_network_is_refused_with_the_reason() {
        let subnet = |value: &'static str| vec![("a", value, "", "")];
        for (nodes, reason) in [
            (vec![("node", "", "", "")], "cannot be called node"),
            (subnet("lab.palisade.dev/subnet: nonsense"), "Node a: annotation lab.palisade.dev/subnet: \"nonsense\" is not one subnet"),
            (subnet("lab.palisade.dev/subnet: 192.0.2.1/24"), "is not one subnet"),
            (subnet("lab.palisade.dev/subnet: 192.0.2.0/30"), "with room for"),
            (subnet("lab.palisade.dev/subnet: '192.0.2.0/24,198.18.0.0/24'"), "one of each family"),
            (subnet("lab.palisade.dev/mtu: '1279'"), "a number of bytes from 1280 to 65535"),
            (vec![("a", "lab.palisade.dev/mtu: '1400'", "", ""), ("b", "", "", "")], "Nodes a and b are on one link"),
            (vec![("a", "", "", "198.18.0.5")], "Node a: its InternalIP 198.18.0.5 is not of its link"),
            (vec![("a", "", "", "192.0.2.1")], "is a router's of the lab"),
            (vec![("a", "", "", "192.0.2.9"), ("b", "", "", "192.0.2.9")], "Node b: its InternalIP 192.0.2.9 is Node a's already"),
            (
                vec![("a", "", "podCIDRs: [10.1.0.0/16]", ""), ("b", "", "podCIDRs: [10.1.2.0/24]", "")],
                "the pod range of Node a, 10.1.0.0/16 and the pod range of Node b, 10.1.2.0/24 overlap",
            ),
            (vec![("a", "", "podCIDRs: [10.96.1.0/24]", "")], "the range of services"),
            (subnet("lab.palisade.dev/subnet: 203.0.113.0/24"), "the network of the outside host"),
            (
                vec![("a", "lab.palisade.dev/subnet: 198.18.0.0/24", "podCIDRs: ['fd07::/64']", "")],
                "Node a: its pod range fd07::/64 is of a family",
            ),
            (vec![("a", "", "", ""), ("b", "lab.palisade.dev/subnet: 192.0.2.0/24", "", "")], "nodes of one link name the same subnets"),
        ] {
            let error = read(&nodes, None).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}
