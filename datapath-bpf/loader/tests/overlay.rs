//! The overlay between two nodes: network namespaces that a link joins, each with a VXLAN device, and real packets. Only a real device
//! tells a program what was around a packet.

#[path = "overlay/forward.rs"]
mod forward;
#[path = "overlay/outside.rs"]
mod outside;
mod stage;

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::net::if_::if_nametoindex;
use palisade_cni::link::Masquerade;
use palisade_datapath_core::abi::{
    self, Backend, CHUNK, ChunkKey, DatapathEvent, Direction, Endpoint, Hook, IDENTITY_ANY, LocalPod, MARK_MASQUERADE, NODE_SELF,
    OVERLAY_MAC, OVERLAY_SOURCE_MAC, Outcome, PolicyEntry, PolicyKey, RowVerdict, ServiceEntry, Tunnel, backend_flag, service_flag,
};
use palisade_loader::{AttachKind, Datapath, Overlay, PinDir, Role, attach_with, detach, is_attached};
use palisade_test_support::packet::{Way, arp, ethernet, protocol, summed, udp};
use stage::talk::{receive, socket, stream, stream_through, talk, talk_through};
use stage::{Space, allow, alone, answers, carries, kind, kinds, mac, open, run, soon};

const PORT: u16 = 4789;
const NETWORK: u32 = 7;
const DEVICE: &str = "palisade_vxlan";
const NODE_PORT: u16 = 30_080;
const TARGET: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(20);
const DOUBT: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn address(family: Family, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(v4).into(),
        Family::V6 => Ipv6Addr::from(v6).into(),
    }
}

/// The address of a node.
fn node(number: u8, family: Family) -> IpAddr {
    address(family, [192, 0, 2, number], [0xfd16, 0, 0, 0, 0, 0, 0, number.into()])
}

/// An address in the pod range of a node; its pod has the second.
fn of_range(number: u8, last: u8, family: Family) -> IpAddr {
    address(family, [10, number, 0, last], [0xfd00 + u16::from(number), 0, 0, 0, 0, 0, 0, last.into()])
}

fn pod(number: u8, family: Family) -> IpAddr {
    of_range(number, 2, family)
}

/// What no node has a row for, though routes lead to the overlay.
fn nowhere(family: Family) -> IpAddr {
    of_range(99, 2, family)
}

/// The third node is known to both, and nowhere.
const NODES: [u8; 3] = [1, 2, 3];

fn wide(address: IpAddr) -> [u8; 16] {
    let mut wide = [0; 16];
    match address {
        IpAddr::V4(address) => wide[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => wide = address.octets(),
    }
    wide
}

fn set(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(name), value).unwrap();
}

/// The number that a node gives to another one.
fn number(of: u8, at: u8) -> u32 {
    if of == at { NODE_SELF } else { 10 + u32::from(of) }
}

/// A node with a pod.
struct Node {
    number: u8,
    space: Space,
    pod: Space,
    base: PathBuf,
    datapath: Datapath,
    device: u32,
}

impl Node {
    fn new(base: &Path, number: u8, kind: AttachKind, outer: Family) -> Self {
        let (space, pod) = (Space::new(), Space::new());
        let base = base.join(number.to_string());
        let inside = pod.thread;
        let pin_base = base.clone();
        let (datapath, device, host, host_mac) = space.inside(move || {
            for (name, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/all/forwarding", "1"),
            ] {
                set(name, value);
            }
            let mac_text = OVERLAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
            run(&format!("ip link add {DEVICE} address {mac_text} type vxlan external dstport {PORT} nolearning udp6zerocsumrx"));
            run(&format!("ip link set {DEVICE} mtu 1400 arp off multicast off addrgenmode none up"));
            run(&format!("ip link add pod type veth peer name eth0 netns {inside}"));
            // The link to a pod gives the node no address that it could be known by elsewhere.
            run(&format!("ip address add {}/24 dev pod scope link", of_range(number, 1, Family::V4)));
            run("ip address add fe80::1/64 dev pod nodad");
            run("ip link set pod mtu 1400 up");
            run(&format!("ip route add {}/64 dev pod", of_range(number, 0, Family::V6)));
            for other in NODES.into_iter().filter(|other| *other != number).chain([99]) {
                run(&format!("ip route add 10.{other}.0.0/24 dev {DEVICE}"));
                run(&format!("ip route add {}/64 dev {DEVICE}", of_range(other, 0, Family::V6)));
            }
            let datapath = open(&pin_base);
            let (device, host) = (if_nametoindex(DEVICE).unwrap(), if_nametoindex("pod").unwrap());
            attach_with(datapath.pin_dir(), kind, Role::Overlay, DEVICE, device).unwrap();
            attach_with(datapath.pin_dir(), kind, Role::Endpoint, "pod", host).unwrap();
            (datapath, device, host, mac("pod"))
        });
        let pod_mac = pod.inside(move || {
            run(&format!("ip address add {}/24 dev eth0", self::pod(number, Family::V4)));
            run(&format!("ip address add {}/64 dev eth0 nodad", self::pod(number, Family::V6)));
            run("ip link set eth0 mtu 1400 up");
            run(&format!("ip route add default via {}", of_range(number, 1, Family::V4)));
            run("ip route add default via fe80::1 dev eth0");
            mac("eth0")
        });
        space.inside(|| carries("pod"));
        let mut node = Self { number, space, pod, base, datapath, device };
        node.write(outer, host, pod_mac, host_mac);
        node
    }

    /// Writes the rows of the pod and of all nodes.
    fn write(&mut self, outer: Family, host: u32, pod_mac: [u8; 6], host_mac: [u8; 6]) {
        let datapath = &mut self.datapath;
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (pod(self.number, Family::V4), pod(self.number, Family::V6)) else { unreachable!() };
        let endpoint = Endpoint { ifindex: host, subject: 1, audit: 0, ipv4: v4.octets(), ipv6: v6.octets(), pod_mac, host_mac, since: 0 };
        for family in FAMILIES {
            datapath.local.insert(&pod(self.number, family), &LocalPod { ifindex: host, pod_mac, host_mac, since: 0 }).unwrap();
            for of in NODES {
                datapath.nodes.insert(&node(of, family), &abi::Node::routed(number(of, self.number))).unwrap();
                if of != self.number {
                    let version = if outer == Family::V4 { 4 } else { 6 };
                    let tunnel = Tunnel { node: number(of, self.number), address: wide(node(of, outer)), version, ..Tunnel::default() };
                    let length = if family == Family::V4 { 24 } else { 64 };
                    datapath.tunnels.insert(&format!("{}/{length}", of_range(of, 0, family)).parse().unwrap(), &tunnel).unwrap();
                }
            }
        }
        allow(datapath, 1);
        datapath.set_overlay(Overlay::new(PORT, NETWORK)).unwrap();
        datapath.endpoints.insert(&host, &endpoint).unwrap();
    }

    /// Lets a node port of this node lead to a backend, for whoever comes by its link.
    fn serve(&mut self, family: Family, backend: IpAddr) {
        let datapath = &mut self.datapath;
        let (flags, version) = (backend_flag::CHOSEN_OUTSIDE | backend_flag::SERVING, if backend.is_ipv4() { 4 } else { 6 });
        let row = Backend { address: wide(backend), service: 1, port: TARGET.to_be_bytes(), version, flags };
        datapath.backends.insert(&1, &row).unwrap();
        datapath.chunks.insert(&ChunkKey { table: 1, chunk: 0 }, &[1; CHUNK]).unwrap();
        let entry = ServiceEntry { service: 1, outside_table: 1, outside_bits: 6, flags: service_flag::OUTSIDE, ..ServiceEntry::default() };
        for protocol in [protocol::TCP, protocol::UDP] {
            datapath.services.insert((node(self.number, family), NODE_PORT, protocol), &entry).unwrap();
        }
        let by_device = [(DEVICE.to_owned(), node(self.number, family))].into();
        self.space.inside(|| Masquerade { mark: MARK_MASQUERADE, by_device, ..Masquerade::default() }.apply().unwrap());
        self.attach_uplink("wire");
    }

    fn attach_uplink(&self, name: &'static str) {
        let pin = self.datapath.pin_dir().clone();
        self.space.inside(move || attach_with(&pin, kind(), Role::Uplink, name, if_nametoindex(name).unwrap()).unwrap());
    }

    /// Who reaches this node by another interface than the other nodes do, outside the cluster.
    fn client_outside(&self, family: Family) -> (Space, IpAddr) {
        let client = Space::new();
        let ends = [1, 2].map(|end| address(family, [198, 51, 100, end], [0x2001, 0xdb8, 0, 0, 0, 0, 0, end.into()]));
        let length = if family == Family::V4 { "24" } else { "64 nodad" };
        let (thread, [of_node, of_client]) = (client.thread, ends);
        self.space.inside(move || {
            run(&format!("ip link add out type veth peer name eth0 netns {thread}"));
            run(&format!("ip address add {of_node}/{length} dev out"));
            run("ip link set out mtu 1400 up");
        });
        client.inside(move || {
            run(&format!("ip address add {of_client}/{length} dev eth0"));
            // No wider than the pods' links: of IPv6, nobody on the way makes longer fragments shorter.
            run("ip link set eth0 mtu 1400 up");
            run(&format!("ip route add default via {of_node}"));
        });
        self.attach_uplink("out");
        soon("the client reaches the node", || client.inside(move || answers(of_node)));
        (client, of_client)
    }

    /// Gives the node an address that no other node knows it by, and that the kernel would rather take than another for what it masquerades:
    /// the first of all interfaces, or what has most in common with the pods of a node.
    fn take_unknown_address(&self, family: Family, pods_of: u8) {
        let unknown = address(family, [203, 0, 113, 1], [0xfd00 + u16::from(pods_of), 0, 0, 1, 0, 0, 0, 1]);
        self.space.inside(move || run(&format!("ip address add {unknown} dev lo")));
    }

    /// Where others reach it.
    fn node_port(&self, family: Family) -> SocketAddr {
        (node(self.number, family), NODE_PORT).into()
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.datapath.counters().unwrap()[outcome as usize].1.packets
    }

    /// That nothing was dropped that a node or a pod sent. (The kernel reports its multicast groups on every device: `TunnelMissing`.)
    #[track_caller]
    fn assert_nothing_is_dropped(&self) {
        for outcome in [Outcome::OverlayForged, Outcome::OverlayPort, Outcome::DestinationForeign] {
            assert_eq!(self.count(outcome), 0, "{outcome:?} at node {}", self.number);
        }
    }

    /// Waits for the event of the device that tells of a packet.
    fn event(&mut self, outcome: Outcome, source: IpAddr, destination: IpAddr) -> DatapathEvent {
        let mut events = self.datapath.events().unwrap();
        let wanted = (outcome as u8, self.device, wide(source), wide(destination));
        let mut found = None;
        soon("an event tells of it", || {
            found = std::iter::from_fn(|| events.next().unwrap())
                .find(|event| (event.outcome, event.ifindex, event.source, event.destination) == wanted);
            found.is_some()
        });
        found.unwrap()
    }
}

/// Two nodes on one link, which has addresses of the outer packets' family alone.
fn two_nodes(base: &Path, kind: AttachKind, outer: Family) -> [Node; 2] {
    let nodes = [1, 2].map(|number| Node::new(base, number, kind, outer));
    let there = nodes[1].space.thread;
    nodes[0].space.inside(move || drop(run(&format!("ip link add wire type veth peer name wire netns {there}"))));
    for here in &nodes {
        let number = here.number;
        here.space.inside(move || {
            take(node(number, outer));
            run("ip link set wire up");
        });
    }
    nodes.iter().for_each(|node| node.space.inside(|| carries("wire")));
    nodes
}

/// Takes one address more on the link.
fn take(address: IpAddr) {
    let length = if address.is_ipv4() { "24" } else { "64 nodad" };
    run(&format!("ip address add {address}/{length} dev wire"));
}

/// Waits until a client is told so, of datagrams and of connections. What another test starts at that moment holds closed sockets a little longer.
fn is_told_that_nobody_listens(client: &Space, socket: &UdpSocket, frontend: SocketAddr) {
    let told = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    socket.connect(frontend).unwrap();
    socket.set_read_timeout(Some(DOUBT)).unwrap();
    soon("a datagram is refused", || socket.send(b"?").is_err_and(told) || socket.recv(&mut [0; 8]).is_err_and(told));
    soon("a connection is refused", || client.inside(move || TcpStream::connect_timeout(&frontend, PATIENCE).is_err_and(told)));
}

#[test]
fn pods_of_two_nodes_reach_each_other_in_both_families_over_both() {
    for (outer, inner) in FAMILIES.into_iter().flat_map(|outer| FAMILIES.map(|inner| (outer, inner))) {
        alone(|base| {
            let [a, b] = two_nodes(base, kind(), outer);
            let server = socket(&b.pod, (pod(2, inner), 0).into());
            let client = socket(&a.pod, (pod(1, inner), 0).into());
            talk(&client, &server, 5);
            // In fragments.
            talk(&client, &server, 4000);
            stream(&a.pod, &b.pod, pod(2, inner));
            stream(&b.pod, &a.pod, pod(1, inner));
            for node in [a, b] {
                node.assert_nothing_is_dropped();
                assert!(node.count(Outcome::AllowedNew) > 0);
            }
        });
    }
}

#[test]
fn a_node_reaches_the_pods_of_another_and_its_pods_the_node() {
    for family in FAMILIES {
        alone(|base| {
            let [a, b] = two_nodes(base, kind(), family);
            let process = socket(&a.space, (node(1, family), 0).into());
            // The answer takes the link, where the node's address is.
            talk(&process, &socket(&b.pod, (pod(2, family), 0).into()), 5);
            b.assert_nothing_is_dropped();
        });
    }
}

#[test]
fn a_pod_is_answered_by_another_nodes_port_whose_backend_is_there() {
    for family in FAMILIES {
        alone(|base| {
            let [a, mut b] = two_nodes(base, kind(), family);
            b.serve(family, pod(2, family));
            let (frontend, backend) = (b.node_port(family), SocketAddr::from((pod(2, family), TARGET)));
            let client = socket(&a.pod, (pod(1, family), 0).into());
            let server = socket(&b.pod, backend);
            // One packet, and one in fragments.
            for length in [5, 4000] {
                assert_eq!(talk_through(frontend, &client, &server, length), client.local_addr().unwrap(), "{family:?}");
            }
            // The way back is narrower than the backend knows.
            b.space.inside(|| drop(run(&format!("ip link set {DEVICE} mtu 1300"))));
            let listener = b.pod.inside(move || TcpListener::bind(backend).unwrap());
            assert_eq!(stream_through(frontend, &a.pod, &listener), pod(1, family), "{family:?}");
            // Whoever complains of what the client sent says what the client knows.
            drop((server, listener));
            is_told_that_nobody_listens(&a.pod, &client, frontend);
            for node in [a, b] {
                node.assert_nothing_is_dropped();
            }
        });
    }
}

#[test]
fn a_pod_is_answered_by_another_nodes_port_whose_backend_is_reached_by_the_overlay() {
    for family in FAMILIES {
        alone(|base| {
            let [a, mut b] = two_nodes(base, kind(), family);
            // Back to where it came from: to the pod it is the other node that asks.
            b.serve(family, pod(1, family));
            b.take_unknown_address(family, 1);
            let (frontend, backend) = (b.node_port(family), SocketAddr::from((pod(1, family), TARGET)));
            let client = socket(&a.pod, (pod(1, family), 0).into());
            let server = socket(&a.pod, backend);
            for length in [5, 4000] {
                assert_eq!(talk_through(frontend, &client, &server, length).ip(), node(2, family), "{family:?}");
            }
            let listener = a.pod.inside(move || TcpListener::bind(backend).unwrap());
            assert_eq!(stream_through(frontend, &a.pod, &listener), node(2, family), "{family:?}");
            drop((server, listener));
            is_told_that_nobody_listens(&a.pod, &client, frontend);
            for node in [a, b] {
                node.assert_nothing_is_dropped();
            }
        });
    }
}

#[test]
fn a_client_outside_is_answered_wherever_the_backend_is() {
    for family in FAMILIES {
        alone(|base| {
            let [mut a, b] = two_nodes(base, kind(), family);
            let (client, of_client) = a.client_outside(family);
            a.take_unknown_address(family, 2);
            let frontend = a.node_port(family);
            // Here the backend sees the client itself, elsewhere the node: under the address by which the other one knows it.
            for (at, seen) in [(2, node(1, family)), (1, of_client)] {
                a.serve(family, pod(at, family));
                let (backend, behind) = (SocketAddr::from((pod(at, family), TARGET)), if at == 1 { &a.pod } else { &b.pod });
                let server = socket(behind, backend);
                let asking = socket(&client, (of_client, 0).into());
                for length in [5, 4000] {
                    assert_eq!(talk_through(frontend, &asking, &server, length).ip(), seen, "{family:?} {at}");
                }
                let listener = behind.inside(move || TcpListener::bind(backend).unwrap());
                assert_eq!(stream_through(frontend, &client, &listener), seen, "{family:?} {at}");
                drop((server, listener));
                is_told_that_nobody_listens(&client, &asking, frontend);
            }
            for node in [a, b] {
                node.assert_nothing_is_dropped();
            }
        });
    }
}

#[test]
fn the_programs_of_the_device_are_replaced_in_place_and_detached() {
    for kind in kinds() {
        alone(|base| {
            let [a, b] = two_nodes(base, kind, Family::V4);
            let server = socket(&b.pod, (pod(2, Family::V4), 0).into());
            let client = socket(&a.pod, (pod(1, Family::V4), 0).into());
            talk(&client, &server, 5);
            let pin = PinDir::new(&a.base);
            let attached = |space: &Space, device| {
                let pin = pin.clone();
                space.inside(move || is_attached(&pin, Role::Overlay, DEVICE, device).unwrap())
            };
            assert!(attached(&a.space, a.device), "{kind}");
            let Node { space, base, datapath, device, .. } = a;
            drop(datapath);
            let next = space.inside(move || open(&base));
            assert!(attached(&space, device), "{kind}");
            talk(&client, &server, 5);
            assert_eq!(next.overlay().unwrap(), Overlay::new(PORT, NETWORK));
            let of_agent = next.pin_dir().clone();
            space.inside(move || detach(&of_agent, Role::Overlay, device).unwrap());
            assert!(!attached(&space, device), "{kind}");
            soon("a device without programs sends nothing", || {
                client.set_read_timeout(Some(DOUBT)).unwrap();
                client.send_to(b"late", server.local_addr().unwrap()).unwrap();
                server.set_read_timeout(Some(DOUBT)).unwrap();
                server.recv(&mut [0; 8]).is_err()
            });
        });
    }
}

#[test]
fn an_outer_packet_that_does_not_fit_is_not_cut_to_pieces() {
    for outer in FAMILIES {
        alone(|base| {
            let [a, b] = two_nodes(base, kind(), outer);
            let server = socket(&b.pod, (pod(2, Family::V4), 0).into());
            let client = socket(&a.pod, (pod(1, Family::V4), 0).into());
            talk(&client, &server, 1300);
            // Somebody's MTU is wrong: the device's is 1400, and the link takes 1400 too.
            a.space.inside(|| drop(run("ip link set wire mtu 1400")));
            client.send_to(&[1; 1350], server.local_addr().unwrap()).unwrap();
            client.send_to(&[2; 100], server.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 2000];
            assert_eq!(receive(&server, &mut buffer).unwrap().0, 100, "the large one is lost");
        });
    }
}

#[test]
fn what_is_for_no_node_does_not_enter_the_overlay() {
    for inner in FAMILIES {
        alone(|base| {
            let [mut a, _b] = two_nodes(base, kind(), Family::V4);
            let client = socket(&a.pod, (pod(1, inner), 0).into());
            client.send_to(b"hello", (nowhere(inner), 53)).unwrap();
            let event = a.event(Outcome::TunnelMissing, pod(1, inner), nowhere(inner));
            assert_eq!((event.hook, event.destination_port), (Hook::ToOverlay as u8, [0, 53]));
            assert!(a.count(Outcome::TunnelMissing) > 0);
        });
    }
}

/// Who sends outer packets by hand to the first node.
struct Forger<'a> {
    at: &'a Node,
    outer: Family,
}

impl Forger<'_> {
    /// Sends a frame in an outer packet.
    fn send(&self, source: IpAddr, network: u32, frame: &[u8]) {
        let to = SocketAddr::from((node(1, self.outer), PORT));
        let header = [0x0800_0000_u32.to_be_bytes(), (network << 8).to_be_bytes()].concat();
        let packet = [&header, frame].concat();
        self.at.space.inside(move || UdpSocket::bind((source, 0)).unwrap().send_to(&packet, to).unwrap());
    }
}

fn way(source: IpAddr, destination: IpAddr) -> Way {
    Way::new(OVERLAY_SOURCE_MAC, source, OVERLAY_MAC, destination)
}

/// A datagram to port 53.
fn datagram(source: IpAddr, destination: IpAddr, data: &[u8]) -> Vec<u8> {
    summed(way(source, destination).packet(protocol::UDP, &udp(4000, 53, data)))
}

#[test]
fn what_a_node_cannot_have_sent_is_dropped_and_counted() {
    for (outer, inner) in FAMILIES.into_iter().flat_map(|outer| FAMILIES.map(|inner| (outer, inner))) {
        alone(|base| {
            let [mut a, b] = two_nodes(base, kind(), outer);
            let (second, third, stranger) = (node(2, outer), node(3, outer), node(77, outer));
            b.space.inside(move || [third, stranger].map(take));
            let forger = Forger { at: &b, outer };
            let outside = address(inner, [198, 51, 100, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
            let in_pod = socket(&a.pod, (pod(1, inner), 53).into());
            let to_pod = |source| datagram(source, pod(1, inner), b"forged");
            let from_pod = |destination| datagram(pod(2, inner), destination, b"forged");
            let forged = Outcome::OverlayForged;
            let foreign = Outcome::DestinationForeign;
            let solicitation =
                way(node(2, Family::V6), node(1, Family::V6)).hop_limit(255).icmp(135, 0, [0; 4], &wide(node(1, Family::V6)));
            let question = arp(1, OVERLAY_SOURCE_MAC, [192, 0, 2, 2].into(), [0; 6], [192, 0, 2, 1].into());
            let cases = [
                ("an outer source that is no node", stranger, NETWORK, to_pod(pod(2, inner)), forged),
                ("a pod of another node", second, NETWORK, to_pod(pod(3, inner)), forged),
                ("another node's address", second, NETWORK, to_pod(node(3, inner)), forged),
                ("another node that sends it", third, NETWORK, to_pod(pod(2, inner)), forged),
                ("a pod of this node", second, NETWORK, to_pod(of_range(1, 3, inner)), forged),
                ("the receiver itself", second, NETWORK, to_pod(pod(1, inner)), forged),
                ("this node", second, NETWORK, to_pod(node(1, inner)), forged),
                ("the outside", second, NETWORK, to_pod(outside), forged),
                ("another network", second, NETWORK + 1, to_pod(pod(2, inner)), forged),
                ("to nobody of this node", second, NETWORK, from_pod(of_range(1, 99, inner)), foreign),
                ("to another node", second, NETWORK, from_pod(node(3, inner)), foreign),
                ("to a pod of another node", second, NETWORK, from_pod(pod(3, inner)), foreign),
                ("back to where it is from", second, NETWORK, from_pod(of_range(2, 3, inner)), foreign),
                ("to the outside", second, NETWORK, from_pod(outside), foreign),
                ("neighbour discovery", second, NETWORK, summed(solicitation), Outcome::NeighbourDiscoveryInvalid),
                ("ARP", second, NETWORK, ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, 0x0806, &question), Outcome::ArpInvalid),
                ("no IP", second, NETWORK, ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, 0x88cc, &question), Outcome::EtherTypeUnknown),
            ];
            for (what, source, network, frame, outcome) in cases {
                let before = a.count(outcome);
                forger.send(source, network, &frame);
                soon(what, || a.count(outcome) == before + 1);
            }
            assert_eq!(a.event(forged, pod(3, inner), pod(1, inner)).hook, Hook::FromOverlay as u8);
            // The frames are good: what the node can have sent arrives, from its pods and from itself.
            for source in [pod(2, inner), node(2, inner)] {
                forger.send(second, NETWORK, &datagram(source, pod(1, inner), b"true"));
                let mut buffer = [0; 16];
                let (read, from) = receive(&in_pod, &mut buffer).expect("what is not forged arrives");
                assert_eq!((&buffer[..read], from.ip()), (&b"true"[..], source));
            }
            a.datapath.set_overlay(None).unwrap();
            let before = a.count(forged);
            forger.send(second, NETWORK, &datagram(pod(2, inner), pod(1, inner), b"late"));
            soon("there is no overlay any more", || a.count(forged) == before + 1);
        });
    }
}

#[test]
fn what_comes_for_the_node_itself_arrives() {
    for family in FAMILIES {
        alone(|base| {
            let [a, b] = two_nodes(base, kind(), family);
            let process = socket(&a.space, (node(1, family), 53).into());
            Forger { at: &b, outer: family }.send(node(2, family), NETWORK, &datagram(pod(2, family), node(1, family), b"true"));
            let (read, from) = receive(&process, &mut [0; 16]).unwrap();
            assert_eq!((read, from.ip()), (4, pod(2, family)));
        });
    }
}

#[test]
fn the_receivers_policy_judges_what_comes_out_of_the_overlay() {
    for inner in FAMILIES {
        alone(|base| {
            let [a, mut b] = two_nodes(base, kind(), Family::V4);
            let entry = PolicyEntry { verdict: RowVerdict::DefaultDeny as u8, ..PolicyEntry::default() };
            b.datapath.policy.insert(&PolicyKey::new(1, Direction::Ingress, IDENTITY_ANY), &entry).unwrap();
            let client = socket(&a.pod, (pod(1, inner), 0).into());
            client.send_to(b"hello", (pod(2, inner), 53)).unwrap();
            soon("it is denied", || b.count(Outcome::IngressDefaultDenied) == 1);
        });
    }
}
