//! The longest packet between pods of two nodes, and one byte more, by each way.

use crate::node::{Agent, add, clear, command_with_kubeconfig, inside, remove, wait};
use crate::raw::Raw;
use crate::server::{Answer, Server};
use crate::service::run;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use palisade_cni::link::{MacAddress, Namespace, Netlink, Route, Veth};
use palisade_protocol::WayName;
use palisade_test_support::packet::{self, ETHERNET, IPV4, IPV6, Way};
use palisade_test_support::{Host, bound, private_host};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const CLIENT: (&str, &str) = ("shop", "client");
/// A pod of the other node, which is an address there: what goes to it and what comes from it is all that counts here.
pub const OTHERS: [&str; 2] = ["10.78.0.5", "fd78::5"];
pub const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const PEER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// Another address of the other node, where it is a router.
const ROUTER: [&str; 2] = ["192.0.2.254", "2001:db8::fe"];
pub const UPLINK: &str = "uplink";
pub const PORT: u16 = 4789;
/// Bytes of a UDP header.
pub const UDP: usize = 8;
/// A VXLAN header with the network 1.
pub const VXLAN: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];
/// What pods are told, less than what any way takes at first.
const POD_MTU: usize = 1400;
const PATIENCE: Duration = Duration::from_secs(5);

/// A node with an agent and a pod, and another node that only this test plays.
pub struct Stage<'a> {
    pub host: &'a Host,
    /// In the place of the API server.
    pub server: &'a Server,
    pub peer: Namespace,
    pub pod: Vec<IpAddr>,
    by_overlay: bool,
}

/// A stage where pods are told [`POD_MTU`].
pub fn stage(mode: &str, test: impl FnOnce(&Stage<'_>) + Send) {
    stage_with(Between::Link, mode, &["--mtu", &POD_MTU.to_string()], test);
}

/// What is between the nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Link,
    /// The other node is its own router, which knows where pods are.
    Network,
}

fn stage_with(between: Between, mode: &str, arguments: &[&str], test: impl FnOnce(&Stage<'_>) + Send) {
    private_host(|host| {
        let (netlink, peer) = (Netlink::open().unwrap(), Namespace::create().unwrap());
        join(&netlink, &peer, between);
        let directory = tempfile::tempdir().unwrap();
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(address, Answer::Two);
        let mut command = command_with_kubeconfig(host, directory.path(), address);
        command.args(["--routing-mode", mode]).args(arguments);
        let agent = Agent::spawn(command);
        wait(host, "the agent is ready, and knows the way", |status| {
            status.ready && status.routing.as_ref().is_some_and(|routing| routing.ranges.len() == 2)
        });
        let pod = add(host, CLIENT.0, CLIENT.1);
        test(&Stage { host, server: &server, peer, pod, by_overlay: mode == "vxlan" });
        remove(host, CLIENT.0, CLIENT.1);
        agent.kill();
        for name in [UPLINK, "palisade_vxlan"] {
            if let Some(link) = netlink.link(name).unwrap() {
                netlink.delete_link(link.index).unwrap();
            }
        }
        clear(host);
    });
}

/// Joins both nodes by a link with an MTU of 1500, and gives the other node its pod.
fn join(netlink: &Netlink, peer: &Namespace, between: Between) {
    let [mac, peer_mac] = [MacAddress::local(1), MacAddress::local(2)];
    let veth = Veth { name: UPLINK, mac, peer_name: UPLINK, peer_mac, peer_namespace: Some(peer), mtu: 1500 };
    netlink.create_veth(&veth).unwrap();
    let inside = Netlink::open_in(peer).unwrap();
    inside.set_up(1).unwrap();
    let lengths = if between == Between::Link { [24, 64] } else { [32, 128] };
    for (netlink, addresses) in [(netlink, NODE), (&inside, PEER)] {
        let link = netlink.link(UPLINK).unwrap().unwrap().index;
        for (address, length) in addresses.into_iter().zip(lengths) {
            netlink.add_address(link, format!("{address}/{length}").parse().unwrap()).unwrap();
        }
        netlink.set_up(link).unwrap();
    }
    if between == Between::Network {
        for (router, node) in ROUTER.into_iter().zip(NODE) {
            for to in [router.to_owned(), format!("default via {router}")] {
                run(&format!("ip route add {to} dev {UPLINK}"));
            }
            let link = inside.link(UPLINK).unwrap().unwrap().index;
            inside.add_address(link, ip(router).into()).unwrap();
            inside.add_route(&Route::direct(ip(node).into(), link)).unwrap();
        }
    }
    let link = inside.link(UPLINK).unwrap().unwrap().index;
    for (other, (range, node)) in OTHERS.into_iter().zip(["10.77.0.0/24", "fd77::/64"].into_iter().zip(NODE)) {
        inside.add_address(1, ip(other).into()).unwrap();
        inside.add_route(&Route::via(range.parse().unwrap(), ip(node), link)).unwrap();
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A frame with a datagram that must not be fragmented, whose IP packet is so long.
pub fn frame(source: IpAddr, destination: IpAddr, length: usize) -> Vec<u8> {
    // Nobody's address: a VXLAN device drops what comes from its own.
    let way = Way::new([2, 0, 0, 0, 0, 9], source, *b"\x02pal01", destination);
    let data = |header: usize| packet::udp(7, 9, &vec![0x5a; length - header - 8]);
    packet::summed(match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => way.frame(&packet::ipv4(source, destination, 64, 17, 0, 0x4000, &[], &data(IPV4))),
        _ => way.frame(&way.ip(17, &data(IPV6))),
    })
}

/// Whether a packet has come, and what its sender was told: the one or the other within [`PATIENCE`], and what else comes soon after.
fn outcome(got: impl Fn() -> bool, told: impl Fn() -> Option<usize>) -> (bool, Option<usize>) {
    const SOON: Duration = Duration::from_millis(500);
    let mut until = Instant::now() + PATIENCE;
    let mut outcome = (false, None);
    while Instant::now() < until {
        let before = outcome;
        outcome = (outcome.0 || got(), outcome.1.or_else(&told));
        if before == (false, None) && outcome != before {
            until = Instant::now() + SOON;
        }
    }
    outcome
}

/// What is in a packet of the overlay, from its IP header on.
pub fn inner(vxlan: &[u8]) -> &[u8] {
    assert_eq!(vxlan[..VXLAN.len()], VXLAN);
    &vxlan[VXLAN.len() + ETHERNET..]
}

/// The MTU that an ICMP error tells, from its first byte.
fn told(icmp: &[u8], ipv6: bool) -> Option<usize> {
    match (ipv6, icmp) {
        (false, [3, 4, _, _, _, _, a, b, ..]) => Some(u16::from_be_bytes([*a, *b]).into()),
        (true, [2, 0, _, _, a, b, c, d, ..]) => Some(u32::from_be_bytes([*a, *b, *c, *d]) as usize),
        _ => None,
    }
}

impl Stage<'_> {
    pub fn pod(&self) -> Namespace {
        inside(self.host, CLIENT.0, CLIENT.1)
    }

    /// Gives the link between the nodes another MTU, at both ends.
    fn set_mtu(&self, mtu: u32) {
        for netlink in [Netlink::open().unwrap(), Netlink::open_in(&self.peer).unwrap()] {
            netlink.set_mtu(netlink.link(UPLINK).unwrap().unwrap().index, mtu).unwrap();
        }
    }

    /// The socket on which the other node gets what is in the overlay.
    fn overlay(&self, ipv6: bool) -> UdpSocket {
        let at = SocketAddr::new(ip(PEER[usize::from(ipv6)]), PORT);
        let socket = self.peer.enter(|| bound(|| UdpSocket::bind(at))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    }

    /// A packet that has come in the overlay and is wanted, from its IP header on.
    fn find_inside<T>(socket: &UdpSocket, wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let mut buffer = [0; 2000];
        while let Ok(length) = socket.recv(&mut buffer) {
            if let Some(found) = wanted(inner(&buffer[..length])) {
                return Some(found);
            }
        }
        None
    }

    /// The pod sends a packet so long; whether the other node gets it, and the MTU that an ICMP error tells the pod.
    fn out(&self, ipv6: bool, length: usize) -> (bool, Option<usize>) {
        let (pod, other) = (self.pod[usize::from(ipv6)], ip(OTHERS[usize::from(ipv6)]));
        let sender = Raw::open(&self.pod(), ipv6, SockProtocol::Raw);
        let errors = Raw::open(&self.pod(), ipv6, if ipv6 { SockProtocol::IcmpV6 } else { SockProtocol::Icmp });
        let packet = frame(pod, other, length);
        // What comes over IPv6 has no UDP checksum, and a socket of UDP does not take it. It is there all the same: its port answers no error.
        let (receiver, _socket) = (Raw::open(&self.peer, ipv6, SockProtocol::Udp), self.by_overlay.then(|| self.overlay(ipv6)));
        sender.send(&packet, other).unwrap();
        let got = || match self.by_overlay {
            true => receiver.find(|datagram| (inner(&datagram[UDP..]).len() == length).then_some(())).is_some(),
            false => receiver.gets(length),
        };
        outcome(got, || errors.find(|icmp| told(icmp, ipv6)))
    }

    /// The other node's pod sends a packet so long; whether the pod gets it, and the MTU that an ICMP error tells the sender.
    fn back(&self, ipv6: bool, length: usize) -> (bool, Option<usize>) {
        let (pod, other) = (self.pod[usize::from(ipv6)], ip(OTHERS[usize::from(ipv6)]));
        let receiver = Raw::open(&self.pod(), ipv6, SockProtocol::Udp);
        let packet = frame(other, pod, length);
        if self.by_overlay {
            let socket = self.overlay(ipv6);
            let outer = [&VXLAN[..], packet.as_slice()].concat();
            socket.send_to(&outer, SocketAddr::new(ip(NODE[usize::from(ipv6)]), PORT)).unwrap();
            let header = if ipv6 { IPV6 } else { IPV4 };
            outcome(|| receiver.gets(length), || Self::find_inside(&socket, |inner| told(&inner[header..], ipv6)))
        } else {
            let errors = Raw::open(&self.peer, ipv6, if ipv6 { SockProtocol::IcmpV6 } else { SockProtocol::Icmp });
            Raw::open(&self.peer, ipv6, SockProtocol::Raw).send(&packet, pod).unwrap();
            outcome(|| receiver.gets(length), || errors.find(|icmp| told(icmp, ipv6)))
        }
    }

    /// Tells the node, as a router on the way would, that a packet of the overlay was longer than what it has to go through.
    fn complain(&self, ipv6: bool, mtu: u16) {
        let [node, peer] = [NODE, PEER].map(|addresses| ip(addresses[usize::from(ipv6)]));
        let there = Way::new([2, 0, 0, 0, 0, 1], node, [2, 0, 0, 0, 0, 2], peer);
        let back = Way::new(there.destination_mac, peer, there.source_mac, node);
        let outer = packet::summed(there.packet(packet::protocol::UDP, &packet::udp(0xc000, PORT, &VXLAN)));
        let [high, low] = mtu.to_be_bytes();
        let (kind, code) = if ipv6 { (2, 0) } else { (3, 4) };
        let error = packet::summed(back.icmp(kind, code, [0, 0, high, low], &outer[ETHERNET..]));
        Raw::open(&self.peer, ipv6, SockProtocol::Raw).send(&error, node).unwrap();
    }

    /// The MTU of the route to the other node's pods, where it has one of its own.
    fn route_mtu(&self, ipv6: bool) -> Option<u32> {
        let range: ipnet::IpNet = ["10.78.0.0/24", "fd78::/64"][usize::from(ipv6)].parse().unwrap();
        let routes = Netlink::open().unwrap().routes().unwrap();
        routes.into_iter().find(|route| route.destination == range).expect("there is a route to the other node's pods").mtu
    }

    fn both_ways(&self) {
        for ipv6 in [false, true] {
            assert_eq!(self.out(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
            let sender = Raw::open(&self.pod(), ipv6, SockProtocol::Raw);
            let other = ip(OTHERS[usize::from(ipv6)]);
            let longer = frame(self.pod[usize::from(ipv6)], other, POD_MTU + 1);
            assert_eq!(sender.send(&longer, other), Err(Errno::EMSGSIZE), "the pod's own kernel knows");
            assert_eq!(self.back(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
            assert_eq!(self.back(ipv6, POD_MTU + 1), (false, Some(POD_MTU)), "IPv6: {ipv6}");
        }
    }
}

#[test]
fn native_takes_the_longest_packet_and_answers_one_byte_more_also_after_the_link_has_shrunk_and_grown() {
    stage("native", |stage| {
        stage.both_ways();
        // The pod runs, and its interface has 1400.
        stage.set_mtu(1300);
        for ipv6 in [false, true] {
            assert_eq!(stage.out(ipv6, 1300), (true, None), "IPv6: {ipv6}");
            // The agent has to see that it did.
            let began = Instant::now();
            while stage.out(ipv6, 1301) != (false, Some(1300)) {
                assert!(began.elapsed() < PATIENCE, "IPv6: {ipv6}");
            }
            assert_eq!(stage.back(ipv6, 1300), (true, None), "IPv6: {ipv6}");
        }
        stage.set_mtu(1500);
        for ipv6 in [false, true] {
            let began = Instant::now();
            while stage.out(ipv6, POD_MTU) != (true, None) {
                assert!(began.elapsed() < PATIENCE, "IPv6: {ipv6}");
            }
            assert_eq!(stage.back(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
        }
    });
}

#[test]
fn by_a_network_that_routes_pods_native_sets_no_route_and_packets_pass() {
    stage_with(Between::Network, "native", &["--mtu", &POD_MTU.to_string()], |stage| {
        wait(stage.host, "the network is the way", |status| {
            status.routing.as_ref().is_some_and(|routing| routing.ranges.iter().all(|range| range.way == WayName::Network))
        });
        let ranges: [ipnet::IpNet; 2] = ["10.78.0.0/24", "fd78::/64"].map(|range| range.parse().unwrap());
        assert!(!Netlink::open().unwrap().routes().unwrap().iter().any(|route| ranges.contains(&route.destination)));
        for ipv6 in [false, true] {
            assert_eq!(stage.out(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
            assert_eq!(stage.back(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
        }
    });
}

#[test]
fn the_overlay_takes_the_longest_packet_and_answers_one_byte_more_also_after_the_link_has_shrunk_and_grown() {
    stage("vxlan", |stage| {
        // The outer packets are of both families: that of IPv6 costs the most.
        let overlay = |mtu: u32| {
            let began = Instant::now();
            wait(stage.host, "the overlay's MTU", |status| {
                status.routing.as_ref().and_then(|routing| routing.overlay.as_ref()).is_some_and(|overlay| overlay.mtu == mtu)
            });
            assert!(began.elapsed() < PATIENCE, "it is found when it changes, not at the next look");
        };
        overlay(1430);
        stage.both_ways();
        stage.set_mtu(1400);
        overlay(1330);
        for ipv6 in [false, true] {
            assert_eq!(stage.out(ipv6, 1330), (true, None), "IPv6: {ipv6}");
            assert_eq!(stage.out(ipv6, 1331), (false, Some(1330)), "IPv6: {ipv6}");
            assert_eq!(stage.back(ipv6, 1330), (true, None), "IPv6: {ipv6}");
        }
        stage.set_mtu(1500);
        overlay(1430);
        for ipv6 in [false, true] {
            assert_eq!(stage.out(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
            assert_eq!(stage.back(ipv6, POD_MTU), (true, None), "IPv6: {ipv6}");
        }
    });
}

#[test]
fn a_way_that_is_narrower_than_the_link_is_found_at_the_first_complaint() {
    stage("vxlan", |stage| {
        wait(stage.host, "the link between the nodes is looked at", |status| status.uplinks == [UPLINK]);
        // What goes by IPv6 has 20 bytes more around it.
        for (ipv6, left) in [(false, 1310), (true, 1290)] {
            assert_eq!((stage.out(ipv6, POD_MTU), stage.route_mtu(ipv6)), ((true, None), None), "IPv6: {ipv6}");
            let began = Instant::now();
            let mut complaints = 0;
            while stage.route_mtu(ipv6) != Some(left as u32) {
                // Once more: the agent may have begun to count with the first.
                if began.elapsed() > 2 * complaints * Duration::from_secs(1) {
                    stage.complain(ipv6, 1360);
                    complaints += 1;
                }
                assert!(began.elapsed() < PATIENCE, "IPv6: {ipv6}: the route has {:?}", stage.route_mtu(ipv6));
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(stage.out(ipv6, left), (true, None), "IPv6: {ipv6}");
            assert_eq!(stage.out(ipv6, left + 1), (false, Some(left)), "IPv6: {ipv6}");
            // Any complaint is followed by no other look for a while.
            std::thread::sleep(Duration::from_secs(5));
        }
    });
}

#[test]
fn a_new_pod_has_the_mtu_of_the_ways_as_they_are_by_then() {
    const LATE: (&str, &str) = ("shop", "web");
    for (mode, at_first, then) in [("native", 1500, 1400), ("vxlan", 1430, 1330)] {
        stage_with(Between::Link, mode, &[], |stage| {
            let mtu = |(namespace, pod): (&str, &str)| {
                Netlink::open_in(&inside(stage.host, namespace, pod)).unwrap().link("eth0").unwrap().unwrap().mtu
            };
            assert_eq!(mtu(CLIENT), at_first, "{mode}");
            // The link shrinks, and grows again.
            for (of_link, of_pods) in [(1400, then), (1500, at_first)] {
                stage.set_mtu(of_link);
                wait(stage.host, "the MTU of pods follows", |status| status.routing.as_ref().is_some_and(|routing| routing.mtu == of_pods));
                add(stage.host, LATE.0, LATE.1);
                assert_eq!((mtu(LATE), mtu(CLIENT)), (of_pods, at_first), "{mode}");
                remove(stage.host, LATE.0, LATE.1);
            }
        });
    }
}
