//! Another node whose object changes, as packets in the overlay see it: where what a pod sends comes out, and whose packets are believed.

use crate::mtu::{NODE, OTHERS, PEER, PORT, Stage, UDP, UPLINK, VXLAN, frame, inner, ip, stage};
use crate::node::wait;
use crate::outside::give;
use crate::ranges::until;
use crate::raw::Raw;
use aya::Pod;
use aya::maps::{HashMap, LpmTrie, Map, MapData};
use nix::sys::socket::SockProtocol;
use palisade_cni::link::Netlink;
use palisade_datapath_core::abi::{ABI_VERSION, Node, Outcome, Tunnel, map, tunnel_way};
use palisade_test_support::Host;
use palisade_test_support::packet::protocol;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Another address of the node that changes.
const MOVED: [&str; 2] = ["192.0.2.12", "2001:db8::12"];
/// Its pod ranges at first, others, and a pod in those.
const FIRST: [(&str, u32); 2] = [("10.78.0.0", 24), ("fd78::", 64)];
const SECOND: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];
const ANOTHER: [&str; 2] = ["10.88.0.5", "fd88::5"];
/// A node whose object stays as it is: its address, its pod ranges and a pod in them.
const THIRD: [&str; 2] = ["192.0.2.3", "2001:db8::3"];
const THIRD_RANGES: [(&str, u32); 2] = [("10.80.0.0", 24), ("fd80::", 64)];
const THIRDS: [&str; 2] = ["10.80.0.5", "fd80::5"];
/// How long a packet is waited for.
const DOUBT: Duration = Duration::from_secs(1);

/// The addresses of the other nodes, all of which one namespace has.
struct Nodes<'s> {
    stage: &'s Stage<'s>,
    ends: Vec<End>,
    /// How many packets were sent.
    sent: Cell<usize>,
}

/// An address of another node.
struct End {
    address: IpAddr,
    /// Sends from the overlay's port, and is why nobody is told that it is closed.
    port: UdpSocket,
    /// Gets what comes, with a UDP checksum or without.
    raw: Raw,
}

/// What becomes of a packet that another node sends through the overlay.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// The pod gets it.
    Heard,
    /// It is dropped, and counted as what no node can have sent.
    Forged,
    /// Neither came to pass in time.
    Unknown,
}

impl<'s> Nodes<'s> {
    fn new(stage: &'s Stage<'s>) -> Self {
        let netlink = Netlink::open_in(&stage.peer).unwrap();
        let end = |text: &str| {
            give(&netlink, text);
            let address = ip(text);
            let port = stage.peer.enter(|| UdpSocket::bind((address, PORT))).unwrap().unwrap();
            End { address, port, raw: Raw::at(&stage.peer, address, SockProtocol::Udp) }
        };
        Self { stage, ends: [PEER, MOVED, THIRD].concat().into_iter().map(end).collect(), sent: Cell::new(0) }
    }

    /// A packet between the pod and another, and its length, which no other has had lately.
    fn packet(&self, from: IpAddr, to: IpAddr) -> (Vec<u8>, usize) {
        let length = 200 + self.sent.get() % 1000;
        self.sent.set(self.sent.get() + 1);
        (frame(from, to, length), length)
    }

    /// The pod's address of the family of another one.
    fn pod(&self, other: IpAddr) -> IpAddr {
        self.stage.pod[usize::from(other.is_ipv6())]
    }

    /// To which node what the pod sends to another comes; `None`: to none.
    fn comes_to(&self, to: IpAddr) -> Option<IpAddr> {
        let (packet, length) = self.packet(self.pod(to), to);
        Raw::open(&self.stage.pod(), to.is_ipv6(), SockProtocol::Raw).send(&packet, to).unwrap();
        // Errors of the pod about what it was sent are in the overlay, too.
        let is_it = |inner: &[u8]| inner.len() == length && inner[if to.is_ipv6() { 6 } else { 9 }] == protocol::UDP;
        let began = Instant::now();
        while began.elapsed() < DOUBT {
            let gets = |end: &&End| end.raw.find(|datagram| is_it(inner(&datagram[UDP..])).then_some(())).is_some();
            if let Some(end) = self.ends.iter().find(gets) {
                return Some(end.address);
            }
        }
        None
    }

    /// What becomes of a packet from a pod elsewhere to the pod, sent by a node.
    fn fate(&self, node: IpAddr, from: IpAddr) -> Fate {
        let end = self.ends.iter().find(|end| end.address == node).unwrap();
        let receiver = Raw::open(&self.stage.pod(), from.is_ipv6(), SockProtocol::Udp);
        let (packet, length) = self.packet(from, self.pod(from));
        let before = self.forged();
        let to = SocketAddr::new(ip(NODE[usize::from(node.is_ipv6())]), PORT);
        end.port.send_to(&[&VXLAN[..], packet.as_slice()].concat(), to).unwrap();
        let began = Instant::now();
        while began.elapsed() < DOUBT {
            if receiver.gets(length) {
                return Fate::Heard;
            }
            if self.forged() > before {
                return Fate::Forged;
            }
        }
        Fate::Unknown
    }

    /// How many packets came that no node can have sent.
    fn forged(&self) -> u64 {
        let status = wait(self.stage.host, "the agent answers", |_| true);
        let count = status.outcomes.iter().find(|count| count.outcome == Outcome::OverlayForged.name());
        count.map_or(0, |count| count.packets)
    }

    /// Packets go both ways between the pod and these of a node, by these addresses of it.
    fn talk(&self, when: &str, node: [&str; 2], pods: [&str; 2]) {
        for (node, pod) in node.into_iter().zip(pods) {
            until(&format!("{when}: what is for {pod} comes to {node}"), || self.comes_to(ip(pod)) == Some(ip(node)));
            until(&format!("{when}: what {pod} sends by {node} is believed"), || self.fate(ip(node), ip(pod)) == Fate::Heard);
        }
    }

    /// What is for these pods comes to no node.
    fn lead_nowhere(&self, when: &str, pods: [&str; 2]) {
        for pod in pods {
            until(&format!("{when}: what is for {pod} comes to nobody"), || self.comes_to(ip(pod)).is_none());
        }
    }

    /// What these pods would send by these addresses is believed no more.
    fn are_forged(&self, when: &str, node: [&str; 2], pods: [&str; 2]) {
        for (node, pod) in node.into_iter().zip(pods) {
            until(&format!("{when}: what {pod} sends by {node} is forged"), || self.fate(ip(node), ip(pod)) == Fate::Forged);
        }
    }
}

/// Pod ranges as objects have them.
fn texts(ranges: [(&str, u32); 2]) -> [String; 2] {
    ranges.map(|(address, length)| format!("{address}/{length}"))
}

/// The rows of the nodes, as bytes: by an address, which is whole, or by a pod range.
type Rows = BTreeMap<(IpAddr, u32), Vec<u8>>;

fn rows(host: &Host) -> Rows {
    let maps = host.bpffs().join(format!("palisade/v{ABI_VERSION}/maps"));
    let open = |name: &str| Map::from_map_data(MapData::from_pin(maps.join(name)).unwrap()).unwrap();
    let mut rows = Rows::new();
    addresses::<[u8; 4]>(open(map::NODES_V4), 32, &mut rows);
    addresses::<[u8; 16]>(open(map::NODES_V6), 128, &mut rows);
    ranges::<[u8; 4]>(open(map::TUNNELS_V4), &mut rows);
    ranges::<[u8; 16]>(open(map::TUNNELS_V6), &mut rows);
    rows
}

fn addresses<A: Pod + Into<IpAddr>>(map: Map, length: u32, rows: &mut Rows) {
    let map: HashMap<MapData, A, [u8; size_of::<Node>()]> = map.try_into().unwrap();
    for row in map.iter() {
        let (address, node) = row.unwrap();
        rows.insert((address.into(), length), node.to_vec());
    }
}

fn ranges<A: Pod + Into<IpAddr>>(map: Map, rows: &mut Rows) {
    let map: LpmTrie<MapData, A, [u8; size_of::<Tunnel>()]> = map.try_into().unwrap();
    for row in map.iter() {
        let (range, tunnel) = row.unwrap();
        rows.insert((range.data().into(), range.prefix_len()), tunnel.to_vec());
    }
}

/// The same but for those of the node that changes.
fn rows_of_others(host: &Host) -> Rows {
    let its = |row: &(IpAddr, u32)| {
        let of_address = [PEER, MOVED].concat().into_iter().any(|address| ip(address) == row.0);
        let of_range = SECOND.into_iter().any(|range| range == format!("{}/{}", row.0, row.1));
        of_address || of_range || FIRST.into_iter().any(|(address, length)| (ip(address), length) == *row)
    };
    rows(host).into_iter().filter(|(row, _)| !its(row)).collect()
}

#[test]
fn a_node_that_changes_goes_and_comes_back_is_reached_and_believed_as_its_object_says_and_other_nodes_notice_nothing() {
    stage("vxlan", |stage| {
        stage.server.change_node("third", true, 8);
        wait(stage.host, "the third node is known, and the link between the nodes is looked at", |status| {
            status.uplinks == [UPLINK] && status.routing.as_ref().is_some_and(|routing| routing.ranges.len() == 4)
        });
        let nodes = Nodes::new(stage);
        nodes.talk("at first", PEER, OTHERS);
        // The last byte of such a row is the way; it is the last thing that is known of it.
        let is_settled = |row: &Vec<u8>| row.last() == Some(&tunnel_way::OVERLAY_LINK);
        until("what is for pods of the third node passes the overlay's device", || {
            let rows = rows(stage.host);
            THIRD_RANGES.into_iter().all(|(address, length)| rows.get(&(ip(address), length)).is_some_and(is_settled))
        });
        let before = rows_of_others(stage.host);
        let others_notice_nothing = |when: &str| {
            nodes.talk(when, THIRD, THIRDS);
            assert_eq!(rows_of_others(stage.host), before, "{when}");
        };
        others_notice_nothing("at first");

        let when = "it has another address";
        stage.server.give_addresses("peer", &MOVED.map(ip), 9);
        nodes.talk(when, MOVED, OTHERS);
        nodes.are_forged(when, PEER, OTHERS);
        for (old, pod) in PEER.into_iter().zip(OTHERS) {
            assert!((0..3).all(|_| nodes.comes_to(ip(pod)) != Some(ip(old))), "{when}: nothing for {pod} comes to {old} any more");
        }
        others_notice_nothing(when);

        let when = "it has another pod range";
        stage.server.give_ranges("peer", &SECOND, 10);
        nodes.talk(when, MOVED, ANOTHER);
        nodes.lead_nowhere(when, OTHERS);
        nodes.are_forged(when, MOVED, OTHERS);
        others_notice_nothing(when);

        let when = "it is gone";
        stage.server.change_node("peer", false, 11);
        nodes.lead_nowhere(when, ANOTHER);
        nodes.are_forged(when, MOVED, ANOTHER);
        others_notice_nothing(when);

        let when = "it is back";
        stage.server.change_node("peer", true, 12);
        nodes.talk(when, MOVED, ANOTHER);
        others_notice_nothing(when);

        let when = "it has no pod range";
        stage.server.give_ranges("peer", &[], 13);
        nodes.lead_nowhere(when, ANOTHER);
        nodes.are_forged(when, MOVED, ANOTHER);
        others_notice_nothing(when);
    });
}

#[test]
fn a_node_that_claims_the_pod_range_or_the_address_of_an_older_one_gets_none_of_its_packets_and_is_not_believed() {
    stage("vxlan", |stage| {
        stage.server.change_node("third", true, 8);
        let nodes = Nodes::new(stage);
        let is_told = |of: &str| {
            wait(stage.host, "what is wrong with the third node is told", |status| {
                let faults = status.routing.iter().flat_map(|routing| &routing.faults);
                faults.filter(|fault| fault.node == "third").filter(|fault| fault.fault.contains(of)).count() == 2
            });
        };
        nodes.talk("at first", PEER, OTHERS);
        nodes.talk("at first", THIRD, THIRDS);

        let when = "the third node claims the other's pod ranges";
        stage.server.give_ranges("third", &texts(FIRST).each_ref().map(String::as_str), 9);
        is_told("of the older node peer, which keeps it");
        nodes.talk(when, PEER, OTHERS);
        nodes.are_forged(when, THIRD, OTHERS);
        nodes.lead_nowhere(when, THIRDS);

        let when = "it claims the other's addresses";
        stage.server.give_ranges("third", &texts(THIRD_RANGES).each_ref().map(String::as_str), 10);
        stage.server.give_addresses("third", &PEER.map(ip), 11);
        is_told("is that of the older node peer, which keeps it");
        nodes.talk(when, PEER, OTHERS);
        nodes.are_forged(when, PEER, THIRDS);
        nodes.are_forged(when, THIRD, THIRDS);
        nodes.lead_nowhere(when, THIRDS);
    });
}
