//! The rows by which the overlay knows the nodes: whose address is whose, and where each range of pods is.

use super::{Kernel, KernelError};
use crate::route::{Hop, IPV6_LEAST, Peer, Reach, Way, cost};
use ipnet::IpNet;
use palisade_datapath_core::abi::{self, NODE_SELF, Tunnel, map, tunnel_way};
use palisade_loader::Overlay;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the rows should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRows {
    /// The addresses of this node.
    own: Vec<IpAddr>,
    /// The other nodes, by name.
    peers: BTreeMap<String, PeerRows>,
    /// The overlay; `None` where there is none to be.
    overlay: Option<Overlay>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PeerRows {
    /// Its addresses, and what is the longest packet between each and pods of this node that goes through the overlay, past the stack; 0 where none
    /// do.
    addresses: BTreeMap<IpAddr, u16>,
    /// Its pod ranges, and what there is to say of each but the node's number.
    tunnels: BTreeMap<IpNet, Tunnel>,
}

/// Which packets of pods go past the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastTheStack {
    /// Whether any do.
    pub allowed: bool,
    /// The interfaces by which they do, since answers to them do so there, beside the overlay.
    pub uplinks: BTreeSet<u32>,
    /// MTU of pods, in bytes: what is longer is left to the stack, which tells the sender.
    pub mtu: u32,
    /// How this machine reaches the addresses of the other nodes.
    pub hops: BTreeMap<IpAddr, Hop>,
}

impl PastTheStack {
    /// Longest packet of a pod in bytes that gets to an address of another node itself, in an outer packet to that address; 0 where none is to go
    /// so: nobody knows a way, or it is too narrow for IPv6 (RFC 8200, section 5), of which no sender would believe an error.
    fn longest_to_node(&self, address: IpAddr) -> u16 {
        let Some(hop) = self.hops.get(&address) else { return 0 };
        let way = hop.path_mtu.map_or(hop.mtu, |told| told.min(hop.mtu)).saturating_sub(cost(address)).min(self.mtu);
        if address.is_ipv6() && way < IPV6_LEAST { 0 } else { u16::try_from(way).unwrap_or(u16::MAX) }
    }
}

impl NodeRows {
    /// The rows about these nodes.
    pub fn of(own: &Peer, peers: &[Peer], reaches: &[Reach], overlay: Option<Overlay>, past_the_stack: &PastTheStack) -> Self {
        let addresses = || peers.iter().chain([own]).flat_map(|peer| &peer.addresses);
        let mut rows: BTreeMap<String, PeerRows> =
            peers.iter().map(|peer| (peer.name.clone(), PeerRows::routed(&peer.addresses))).collect();
        for reach in reaches {
            if let (Some(rows), Some(outer)) = (rows.get_mut(&reach.node), reach.outer) {
                // Packets to the address of a node are routed to that node, whatever range it lies in.
                let has_node = addresses().any(|address| reach.range.contains(address));
                let (way, ifindex, source) = match reach.way {
                    _ if has_node || !past_the_stack.allowed => (tunnel_way::STACK, 0, None),
                    Way::Vxlan(_) => by_overlay(own, reach.hop, outer, past_the_stack),
                    Way::Native { link, .. } if past_the_stack.uplinks.contains(&link) => (tunnel_way::LINK, link, None),
                    Way::Native { .. } | Way::Network | Way::Nowhere(_) => (tunnel_way::STACK, 0, None),
                };
                // The stack knows how to tell whose packets are longer than what an error told of the way lately.
                let told = reach.told().unwrap_or(u32::MAX);
                let mtu = reach.mtu.map_or(0, |mtu| u16::try_from(mtu.min(past_the_stack.mtu).min(told)).unwrap_or(u16::MAX));
                if matches!(way, tunnel_way::OVERLAY | tunnel_way::OVERLAY_LINK) {
                    let of_family = rows.addresses.iter_mut().filter(|(address, _)| address.is_ipv4() == reach.range.addr().is_ipv4());
                    of_family.for_each(|(address, longest)| *longest = past_the_stack.longest_to_node(*address));
                }
                let (version, address) = wide(outer);
                let source = source.map(wide).unwrap_or_default().1;
                rows.tunnels.insert(reach.range, Tunnel { node: 0, address, source, ifindex, mtu, version, way });
            }
        }
        Self { own: own.addresses.clone(), peers: rows, overlay }
    }
}

impl PeerRows {
    fn routed(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.iter().map(|address| (*address, 0)).collect(), tunnels: BTreeMap::new() }
    }
}

/// How packets go through the overlay past the stack, to an address of another node: the way, and where they go past its device, too, by which
/// interface and from which address. That is so where the other node knows this one by the address from which the kernel would send.
fn by_overlay(own: &Peer, hop: Option<Hop>, outer: IpAddr, past_the_stack: &PastTheStack) -> (u8, u32, Option<IpAddr>) {
    let known = |source: &IpAddr| source.is_ipv4() == outer.is_ipv4() && own.addresses.contains(source);
    match hop {
        Some(Hop { link, on_link, source: Some(source), .. }) if past_the_stack.uplinks.contains(&link) && known(&source) => {
            (if on_link { tunnel_way::OVERLAY_LINK } else { tunnel_way::OVERLAY }, link, Some(source))
        }
        _ => (tunnel_way::OVERLAY, 0, None),
    }
}

/// The numbers of the other nodes. A node keeps its number as long as it exists, over restarts of the agent too: while rows change, those
/// that are written already and those that are not yet mean the same node.
#[derive(Debug, Default)]
pub(super) struct NodeNumbers {
    numbers: BTreeMap<String, u32>,
    /// The highest number that was given.
    highest: u32,
}

impl NodeNumbers {
    /// Gives each node its number: the one that it has, else the one that its rows have and those of no other node, else one that nobody has had.
    /// A node that took another's address finds its number there: by that it could speak for the pods of the other one, which has it in rows of its own.
    fn assign(&mut self, rows: &NodeRows, present: &Present) {
        self.numbers.retain(|name, _| rows.peers.contains_key(name));
        let seen = present.nodes.values().map(|node| node.number).chain(present.tunnels.values().map(|tunnel| tunnel.node)).max();
        self.highest = self.highest.max(seen.unwrap_or(0)).max(NODE_SELF);
        let taken: BTreeSet<u32> = self.numbers.values().copied().collect();
        let mut found: BTreeMap<u32, BTreeSet<&String>> = BTreeMap::new();
        for (name, peer) in &rows.peers {
            for number in present.numbers_of(peer) {
                found.entry(number).or_default().insert(name);
            }
        }
        let is_its_own = |number: &u32| *number > NODE_SELF && !taken.contains(number) && found[number].len() == 1;
        for (name, peer) in &rows.peers {
            if self.numbers.contains_key(name) {
                continue;
            }
            let number = present.numbers_of(peer).find(is_its_own).unwrap_or_else(|| {
                self.highest += 1;
                self.highest
            });
            self.numbers.insert(name.clone(), number);
        }
    }

    /// The rows as they stand in the maps.
    fn rows(&self, rows: &NodeRows) -> Present {
        let mut wanted =
            Present { nodes: rows.own.iter().map(|address| (*address, abi::Node::routed(NODE_SELF))).collect(), tunnels: BTreeMap::new() };
        for (name, peer) in &rows.peers {
            let Some(&number) = self.numbers.get(name) else { continue };
            wanted
                .nodes
                .extend(peer.addresses.iter().map(|(address, mtu)| (*address, abi::Node { mtu: *mtu, ..abi::Node::routed(number) })));
            wanted.tunnels.extend(peer.tunnels.iter().map(|(range, tunnel)| (*range, Tunnel { node: number, ..*tunnel })));
        }
        wanted
    }
}

/// The rows of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Present {
    nodes: BTreeMap<IpAddr, abi::Node>,
    tunnels: BTreeMap<IpNet, Tunnel>,
}

impl Present {
    /// The numbers that the rows of a node's addresses and pod ranges have.
    fn numbers_of(&self, peer: &PeerRows) -> impl Iterator<Item = u32> {
        let by_address = peer.addresses.keys().filter_map(|address| self.nodes.get(address)).map(|node| node.number);
        let by_range = peer.tunnels.keys().filter_map(|range| self.tunnels.get(range)).map(|tunnel| tunnel.node);
        by_address.chain(by_range)
    }

    fn counts(&self) -> NodeCounts {
        let nodes_v4 = self.nodes.keys().filter(|address| address.is_ipv4()).count();
        let tunnels_v4 = self.tunnels.keys().filter(|range| range.addr().is_ipv4()).count();
        NodeCounts { nodes_v4, nodes_v6: self.nodes.len() - nodes_v4, tunnels_v4, tunnels_v6: self.tunnels.len() - tunnels_v4 }
    }
}

/// How many rows the maps have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeCounts {
    nodes_v4: usize,
    nodes_v6: usize,
    tunnels_v4: usize,
    tunnels_v6: usize,
}

impl NodeCounts {
    /// The rows of a map, where it is one of nodes.
    pub(super) fn of(self, name: &str) -> Option<usize> {
        Some(match name {
            map::NODES_V4 => self.nodes_v4,
            map::NODES_V6 => self.nodes_v6,
            map::TUNNELS_V4 => self.tunnels_v4,
            map::TUNNELS_V6 => self.tunnels_v6,
            _ => return None,
        })
    }
}

impl Kernel {
    /// Writes the rows of nodes that are missing or different, before anything is sent by them. Rows of what is gone stay. Where the overlay's
    /// device is about to go, nothing is sent by it any more.
    ///
    /// # Errors
    /// The datapath is not open, a map has no room, or a write failed.
    pub fn write_nodes(&mut self, rows: &NodeRows, device_stays: bool) -> Result<(), KernelError> {
        self.mend()?;
        if !device_stays {
            self.set_overlay_device(None)?;
        }
        let present = self.read_nodes()?;
        self.node_numbers.assign(rows, &present);
        let wanted = self.node_numbers.rows(rows);
        // Addresses first: what a node sends from a new one is believed before anything is sent there.
        for (address, node) in wanted.nodes.iter().filter(|(address, node)| present.nodes.get(*address) != Some(node)) {
            self.write_growing(|datapath| datapath.nodes.insert(address, node))?;
        }
        for (range, tunnel) in wanted.tunnels.iter().filter(|(range, tunnel)| present.tunnels.get(*range) != Some(tunnel)) {
            self.write_growing(|datapath| datapath.tunnels.insert(range, tunnel))?;
        }
        if rows.overlay.is_some() {
            self.set_overlay(rows.overlay)?;
        }
        Ok(())
    }

    /// Removes the rows of nodes that are gone, once nothing is sent by them; pods' packets go by the overlay's device, where there is one now.
    ///
    /// # Errors
    /// As [`write_nodes`](Self::write_nodes).
    pub fn prune_nodes(&mut self, rows: &NodeRows, device: Option<u32>) -> Result<(), KernelError> {
        self.set_overlay_device(device)?;
        let present = self.read_nodes()?;
        // Where nothing could be written, they have no numbers yet, and would count as gone.
        self.node_numbers.assign(rows, &present);
        let wanted = self.node_numbers.rows(rows);
        let datapath = self.datapath()?;
        for range in present.tunnels.keys().filter(|range| !wanted.tunnels.contains_key(*range)) {
            datapath.tunnels.remove(range)?;
        }
        for address in present.nodes.keys().filter(|address| !wanted.nodes.contains_key(*address)) {
            datapath.nodes.remove(address)?;
        }
        if rows.overlay.is_none() {
            self.set_overlay(None)?;
        }
        let counts = wanted.counts();
        if self.node_counts != counts {
            self.node_counts = counts;
            self.publish()?;
        }
        Ok(())
    }

    /// What moves when somebody on the way has complained of an outer packet.
    ///
    /// # Errors
    /// The datapath is not open, or the map cannot be read.
    pub fn outer_errors(&mut self) -> Result<u32, KernelError> {
        Ok(self.datapath()?.outer_errors()?)
    }

    fn set_overlay_device(&mut self, device: Option<u32>) -> Result<(), KernelError> {
        let datapath = self.datapath()?;
        if datapath.overlay_device()? != device {
            datapath.set_overlay_device(device)?;
        }
        Ok(())
    }

    fn set_overlay(&mut self, overlay: Option<Overlay>) -> Result<(), KernelError> {
        let datapath = self.datapath()?;
        if datapath.overlay()? != overlay {
            datapath.set_overlay(overlay)?;
            // A flow to what is now the overlay's port is judged again.
            datapath.bump_epoch()?;
        }
        Ok(())
    }

    fn read_nodes(&mut self) -> Result<Present, KernelError> {
        let datapath = self.datapath()?;
        Ok(Present { nodes: datapath.nodes.rows()?, tunnels: datapath.tunnels.rows()? })
    }
}

/// The IP version of an address, and the address as rows have it.
fn wide(address: IpAddr) -> (u8, [u8; 16]) {
    match address {
        IpAddr::V4(address) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&address.octets());
            (4, wide)
        }
        IpAddr::V6(address) => (6, address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct<const N: usize>(uplinks: [u32; N]) -> PastTheStack {
        PastTheStack { allowed: true, uplinks: uplinks.into(), mtu: 1450, hops: BTreeMap::new() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn hop(mtu: u32, path_mtu: Option<u32>) -> Hop {
        Hop { link: 2, on_link: true, mtu, path_mtu, source: Some(ip("192.0.2.1")) }
    }

    /// Name, addresses, and ranges with the address to which packets there go.
    type Other<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)]);

    /// This node at 192.0.2.1, and others.
    fn rows(peers: &[Other<'_>]) -> NodeRows {
        let peer = |name: &str, addresses: &[&str]| Peer {
            name: name.to_owned(),
            ranges: Vec::new(),
            addresses: addresses.iter().map(|address| ip(address)).collect(),
        };
        let others: Vec<Peer> = peers.iter().map(|(name, addresses, _)| peer(name, addresses)).collect();
        let reaches: Vec<Reach> = peers
            .iter()
            .flat_map(|(name, _, ranges)| ranges.iter().map(|(range, outer)| (*name, *range, ip(outer))))
            .map(|(node, range, outer)| Reach {
                node: node.to_owned(),
                range: range.parse().unwrap(),
                way: Way::Vxlan(outer),
                outer: Some(outer),
                hop: None,
                mtu: Some(1450),
            })
            .collect();
        let hops = others.iter().flat_map(|peer| &peer.addresses).map(|address| (*address, hop(1500, None))).collect();
        NodeRows::of(&peer("a", &["192.0.2.1"]), &others, &reaches, Overlay::new(4789, 1), &PastTheStack { hops, ..direct([]) })
    }

    #[test]
    fn each_address_has_its_nodes_number_and_each_range_its_tunnel() {
        let mut numbers = NodeNumbers::default();
        let rows = rows(&[
            ("b", &["192.0.2.2", "2001:db8::2"], &[("10.2.0.0/24", "192.0.2.2"), ("fd00:2::/64", "2001:db8::2")]),
            ("c", &["192.0.2.3"], &[]),
        ]);
        numbers.assign(&rows, &Present::default());
        let present = numbers.rows(&rows);
        let nodes: Vec<_> = present.nodes.iter().map(|(address, node)| (address.to_string(), node.number, node.mtu)).collect();
        let node = |address: &str, number, mtu| (address.to_owned(), number, mtu);
        let expected = [node("192.0.2.1", NODE_SELF, 0), node("192.0.2.2", 2, 1450), node("192.0.2.3", 3, 0), node("2001:db8::2", 2, 1430)];
        assert_eq!(nodes, expected, "the pods of one are reached by the overlay, and so is it itself");
        let address = [192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let v4 = Tunnel { node: 2, version: 4, address, mtu: 1450, way: tunnel_way::OVERLAY, ..Tunnel::default() };
        let v6 = Tunnel { version: 6, address: "2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets(), ..v4 };
        assert_eq!(present.tunnels.into_values().collect::<Vec<_>>(), [v4, v6]);
    }

    #[test]
    fn a_node_keeps_its_number_and_no_other_gets_one_that_was_given() {
        let mut numbers = NodeNumbers::default();
        let both = rows(&[("b", &["192.0.2.2"], &[]), ("c", &["192.0.2.3"], &[])]);
        numbers.assign(&both, &Present::default());
        let only_c = rows(&[("c", &["192.0.2.9"], &[])]);
        numbers.assign(&only_c, &numbers.rows(&both));
        assert_eq!(numbers.rows(&only_c).nodes[&ip("192.0.2.9")].number, 3, "another address, the same node");
        let again = rows(&[("b", &["192.0.2.2"], &[]), ("c", &["192.0.2.9"], &[])]);
        numbers.assign(&again, &numbers.rows(&only_c));
        assert_eq!(numbers.rows(&again).nodes[&ip("192.0.2.2")].number, 4);
    }

    #[test]
    fn the_next_agent_gives_the_numbers_that_the_rows_have() {
        let written = rows(&[("b", &["192.0.2.2"], &[("10.2.0.0/24", "192.0.2.2")]), ("c", &["192.0.2.3"], &[])]);
        let mut numbers = NodeNumbers { highest: 40, ..NodeNumbers::default() };
        numbers.assign(&written, &Present::default());
        let left = numbers.rows(&written);
        // Meanwhile `c` is gone, and `d` is new.
        let now = rows(&[("b", &["192.0.2.2"], &[]), ("d", &["192.0.2.4"], &[])]);
        let mut next = NodeNumbers::default();
        next.assign(&now, &left);
        assert_eq!(next.rows(&now).nodes[&ip("192.0.2.2")].number, 41);
        assert_eq!(next.rows(&now).nodes[&ip("192.0.2.4")].number, 43, "42 was that of `c`");
        let moved = rows(&[("b", &["192.0.2.8"], &[("10.2.0.0/24", "192.0.2.8")])]);
        let mut next = NodeNumbers::default();
        next.assign(&moved, &left);
        assert_eq!(next.rows(&moved).nodes[&ip("192.0.2.8")].number, 41, "by its range");
    }

    /// While no agent ran, a new node has taken the address of one that lives on under another.
    #[test]
    fn a_number_that_the_rows_of_two_nodes_have_is_given_to_neither() {
        let range = |outer| ("10.2.0.0/24", outer);
        let written = rows(&[("b", &["192.0.2.2", "2001:db8::2"], &[range("192.0.2.2")]), ("c", &["192.0.2.3"], &[])]);
        let mut numbers = NodeNumbers::default();
        numbers.assign(&written, &Present::default());
        let left = numbers.rows(&written);
        let b = left.nodes[&ip("192.0.2.2")].number;
        // `b` is known by its range, or by an address that it has kept.
        for (addresses, ranges) in [(vec!["192.0.2.8"], vec![range("192.0.2.8")]), (vec!["192.0.2.8", "2001:db8::2"], vec![])] {
            // In the order of names either comes first.
            for taker in ["a2", "z"] {
                let now = rows(&[("b", &addresses, &ranges), (taker, &["192.0.2.2"], &[]), ("c", &["192.0.2.3"], &[])]);
                let mut next = NodeNumbers::default();
                next.assign(&now, &left);
                let of = |address: &str| next.rows(&now).nodes[&ip(address)].number;
                let [of_b, of_taker, of_c] = ["192.0.2.8", "192.0.2.2", "192.0.2.3"].map(of);
                assert!(of_b != b && of_taker != b && of_b != of_taker, "{taker}: {of_b} {of_taker}");
                assert_eq!(of_c, left.nodes[&ip("192.0.2.3")].number, "what is one node's alone stays");
                assert!(of_b > of_c && of_taker > of_c, "no number is given again");
            }
        }
        // A node with rows of several numbers keeps one that is its own.
        let now = rows(&[("b", &["192.0.2.2"], &[]), ("c", &["2001:db8::2", "192.0.2.3"], &[])]);
        let mut next = NodeNumbers::default();
        next.assign(&now, &left);
        assert_eq!(next.rows(&now).nodes[&ip("192.0.2.3")].number, left.nodes[&ip("192.0.2.3")].number);
        assert_ne!(next.rows(&now).nodes[&ip("192.0.2.2")].number, b);
    }

    #[test]
    fn packets_pass_the_stack_by_where_answers_do_and_no_address_of_a_node_is_taken_for_a_pods() {
        let gateway = ip("192.0.2.2");
        let reach = |range: &str, way| Reach {
            node: "b".to_owned(),
            range: range.parse().unwrap(),
            way,
            outer: Some(gateway),
            hop: None,
            mtu: Some(1500),
        };
        let reaches = [
            reach("10.2.0.0/24", Way::Native { gateway, link: 2 }),
            reach("10.2.1.0/24", Way::Native { gateway, link: 3 }),
            reach("10.2.2.0/24", Way::Network),
            reach("192.0.2.0/28", Way::Vxlan(gateway)),
        ];
        let peer = |name: &str, address: &str| Peer { name: name.to_owned(), addresses: vec![ip(address)], ..Peer::default() };
        let rows = NodeRows::of(&peer("a", "192.0.2.1"), &[peer("b", "192.0.2.2")], &reaches, None, &direct([2]));
        let ways = |rows: &NodeRows| -> Vec<(u8, u32)> {
            assert!(rows.peers["b"].tunnels.values().all(|tunnel| tunnel.mtu == 1450), "pods' own is the smaller");
            rows.peers["b"].tunnels.values().map(|tunnel| (tunnel.way, tunnel.ifindex)).collect()
        };
        assert_eq!(ways(&rows), [(tunnel_way::LINK, 2), (tunnel_way::STACK, 0), (tunnel_way::STACK, 0), (tunnel_way::STACK, 0)]);
        assert_eq!(rows.peers["b"].addresses[&gateway], 0, "it is no pod's way through the overlay");
        let none = PastTheStack { allowed: false, ..direct([2]) };
        let rows = NodeRows::of(&peer("a", "192.0.2.1"), &[peer("b", "192.0.2.2")], &reaches, None, &none);
        assert_eq!(ways(&rows), [(tunnel_way::STACK, 0); 4]);
    }

    #[test]
    fn the_overlays_device_is_passed_where_it_is_known_how_and_the_other_node_knows_who_sends() {
        let own = Peer { name: "a".to_owned(), addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")], ..Peer::default() };
        let way = |outer: &str, hop| by_overlay(&own, hop, ip(outer), &direct([2]));
        let hop = |link, on_link, source: &str| Some(Hop { link, on_link, mtu: 1500, path_mtu: None, source: Some(ip(source)) });
        let by_device = (tunnel_way::OVERLAY, 0, None);
        let v4 = Some(ip("192.0.2.1"));
        assert_eq!(way("192.0.2.2", hop(2, true, "192.0.2.1")), (tunnel_way::OVERLAY_LINK, 2, v4));
        assert_eq!(way("198.51.100.2", hop(2, false, "192.0.2.1")), (tunnel_way::OVERLAY, 2, v4));
        assert_eq!(way("2001:db8::2", hop(2, true, "2001:db8::1")), (tunnel_way::OVERLAY_LINK, 2, Some(ip("2001:db8::1"))));
        assert_eq!(way("192.0.2.2", hop(3, true, "192.0.2.1")), by_device, "no interface of the datapath");
        assert_eq!(way("192.0.2.2", hop(2, true, "192.0.2.7")), by_device, "an address that is not in the node's object");
        assert_eq!(way("192.0.2.2", hop(2, true, "2001:db8::1")), by_device);
        assert_eq!(way("192.0.2.2", Some(Hop { link: 2, on_link: true, mtu: 1500, path_mtu: None, source: None })), by_device);
        assert_eq!(way("192.0.2.2", None), by_device);
    }

    #[test]
    fn what_an_error_told_of_the_way_shortens_what_passes_the_stack() {
        let gateway = ip("192.0.2.2");
        let mtu = |way, mtu, path_mtu| {
            let hop = Some(hop(1500, path_mtu));
            let reach = Reach { node: "b".to_owned(), range: "10.2.0.0/24".parse().unwrap(), way, outer: Some(gateway), hop, mtu };
            let peer = |name: &str, address: &str| Peer { name: name.to_owned(), addresses: vec![ip(address)], ..Peer::default() };
            let rows = NodeRows::of(&peer("a", "192.0.2.1"), &[peer("b", "192.0.2.2")], &[reach], None, &direct([2]));
            rows.peers["b"].tunnels.values().next().unwrap().mtu
        };
        let (native, vxlan) = (|| Way::Native { gateway, link: 2 }, || Way::Vxlan(gateway));
        assert_eq!((mtu(native(), Some(1500), None), mtu(vxlan(), Some(1450), None)), (1450, 1450));
        assert_eq!((mtu(native(), Some(1500), Some(1400)), mtu(vxlan(), Some(1450), Some(1400))), (1400, 1350));
        assert_eq!(mtu(native(), Some(1500), Some(9000)), 1450);
        assert_eq!(mtu(vxlan(), None, Some(1400)), 0, "nobody knows a way: nothing passes the stack");
    }

    /// What a pod sends to a node itself goes to the very address that it asks for.
    #[test]
    fn each_address_of_a_node_has_the_length_of_its_own_way() {
        let hops = [
            ("192.0.2.2", hop(9000, None)),
            ("198.51.100.2", hop(1500, Some(1400))),
            ("2001:db8::2", hop(1350, None)),
            ("2001:db8::3", hop(1349, None)),
        ];
        let past = PastTheStack { mtu: 8000, hops: hops.map(|(address, hop)| (ip(address), hop)).into(), ..direct([]) };
        let lengths = hops.map(|(address, _)| past.longest_to_node(ip(address)));
        assert_eq!(lengths, [8000, 1350, 1280, 0], "IPv6 needs 1280 bytes");
        assert_eq!(past.longest_to_node(ip("203.0.113.2")), 0, "nobody knows the way");
    }

    #[test]
    fn a_range_without_an_outer_address_has_no_tunnel() {
        let reach =
            Reach { node: "b".to_owned(), range: "10.2.0.0/24".parse().unwrap(), way: Way::Network, outer: None, hop: None, mtu: None };
        let peer = |name: &str| Peer { name: name.to_owned(), ..Peer::default() };
        let rows = NodeRows::of(&peer("a"), &[peer("b")], &[reach], None, &direct([]));
        let mut numbers = NodeNumbers::default();
        numbers.assign(&rows, &Present::default());
        assert!(numbers.rows(&rows).tunnels.is_empty());
    }
}
