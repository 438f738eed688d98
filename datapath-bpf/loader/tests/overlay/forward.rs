//! Pods of two nodes, past the stack of either.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use nix::net::if_::if_nametoindex;
use palisade_datapath_core::abi::{
    self, Backend, CHUNK, ChunkKey, NODE_SELF, Outcome, ServiceEntry, TABLE_NONE, Tunnel, backend_flag, service_flag, tunnel_way,
};
use palisade_test_support::packet::protocol;

use crate::stage::narrow::{comes_in_fragments, forget_ways};
use crate::stage::talk::{receive, socket, stream, stream_through, talk, talk_through};
use crate::stage::{alone, kind, makes_outer_packets, run};
use crate::{
    DEVICE, DOUBT, FAMILIES, Family, NODE_PORT, Node, PATIENCE, TARGET, is_told_that_nobody_listens, node, nowhere, number, pod, two_nodes,
    wide,
};

impl Node {
    /// The stack forwards again.
    pub(super) fn open_the_stack(&self) {
        self.space.inside(|| (0..3).flat_map(|_| ["-4", "-6"]).for_each(|version| drop(run(&format!("ip {version} rule del pref 1")))));
    }

    /// Says that pods of other nodes are reached past the stack, which forwards nothing any more.
    fn pass_the_stack(&mut self, way: Way, outer: Family) {
        let (link, own) = (self.stop_the_stack(), wide(node(self.number, outer)));
        let (number, ifindex, source) = match way {
            Way::Device => (tunnel_way::OVERLAY, 0, [0; 16]),
            Way::Routed => (tunnel_way::OVERLAY, link, own),
            Way::OnLink => (tunnel_way::OVERLAY_LINK, link, own),
            Way::Link => (tunnel_way::LINK, link, [0; 16]),
        };
        for (range, tunnel) in self.datapath.tunnels.rows().unwrap() {
            self.datapath.tunnels.insert(&range, &Tunnel { way: number, ifindex, source, mtu: 1400, ..tunnel }).unwrap();
        }
        self.datapath.set_overlay_device(Some(self.device)).unwrap();
    }

    /// Says of the other nodes themselves that they are reached by the overlay.
    fn reach_nodes_by_the_overlay(&mut self) {
        for (address, node) in self.datapath.nodes.rows().unwrap() {
            if node.number != NODE_SELF {
                self.datapath.nodes.insert(&address, &abi::Node { mtu: 1400, ..node }).unwrap();
            }
        }
    }

    /// A service of pods with one backend.
    fn offer(&mut self, frontend: SocketAddr, backend: SocketAddr) {
        let flags = backend_flag::CHOSEN | backend_flag::SERVING;
        let version = if backend.is_ipv4() { 4 } else { 6 };
        let row = Backend { address: wide(backend.ip()), service: 9, port: backend.port().to_be_bytes(), version, flags };
        self.datapath.backends.insert(&9, &row).unwrap();
        self.datapath.chunks.insert(&ChunkKey { table: 9, chunk: 0 }, &[9; CHUNK]).unwrap();
        let entry = ServiceEntry { service: 9, table: 9, bits: 6, ..ServiceEntry::default() };
        self.datapath.services.insert((frontend.ip(), frontend.port(), protocol::TCP), &entry).unwrap();
    }

    /// How many packets the overlay's device has sent.
    fn sent_by_device(&self) -> u64 {
        let shown = self.space.inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let numbers = shown.lines().find_map(|line| line.trim().strip_prefix(DEVICE)?.strip_prefix(':')).unwrap();
        // After eight of what was received, and the bytes.
        numbers.split_whitespace().nth(9).unwrap().parse().unwrap()
    }

    /// The stack forwards nothing any more. Returns the interface by which other nodes are reached.
    fn stop_the_stack(&self) -> u32 {
        self.attach_uplink("wire");
        self.space.inside(|| {
            // After what is for the node itself, which the first rule is about.
            for (version, interface) in ["-4", "-6"].into_iter().flat_map(|version| ["pod", "wire", DEVICE].map(|name| (version, name))) {
                run(&format!("ip {version} rule add iif {interface} prohibit pref 1"));
            }
            if_nametoindex("wire").unwrap()
        })
    }
}

/// How packets pass the stack.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By the overlay's device.
    Device,
    /// In outer packets that follow the kernel's routes.
    Routed,
    /// In outer packets, to a node on the link.
    OnLink,
    /// As they are, to a node on the link.
    Link,
}

#[test]
fn pods_of_two_nodes_reach_each_other_past_the_stack_of_either() {
    for (way, outer) in [Way::Device, Way::Routed, Way::OnLink, Way::Link].into_iter().flat_map(|way| FAMILIES.map(|outer| (way, outer))) {
        alone(|base| {
            let mut nodes = two_nodes(base, kind(), outer);
            for node in &mut nodes {
                node.pass_the_stack(way, outer);
                if matches!(way, Way::Routed) {
                    // The device takes no large packet whole: the kernel cuts each up, as for one that cannot.
                    node.space.inside(|| drop(run("ip link set wire gso_max_size 3000")));
                }
            }
            // By the overlay pods of both families, by the link those of its own.
            for family in FAMILIES.into_iter().filter(|family| !matches!(way, Way::Link) || *family == outer) {
                let [(first, one), (second, two)] = [1, 2].map(|number| {
                    let node = &nodes[usize::from(number) - 1];
                    (&node.pod, socket(&node.pod, (pod(number, family), 0).into()))
                });
                for length in [1, 1300] {
                    talk(&one, &two, length);
                    talk(&two, &one, length);
                }
                stream(first, second, pod(2, family));
                stream(second, first, pod(1, family));
            }
            for node in &nodes {
                node.assert_nothing_is_dropped();
                let by_device = matches!(way, Way::Device) || (!matches!(way, Way::Link) && !makes_outer_packets());
                assert_eq!(node.sent_by_device() > 0, by_device, "{way:?} {outer:?}: {}", node.sent_by_device());
            }
        });
    }
}

#[test]
fn what_a_node_itself_sends_to_a_pod_of_another_comes_by_the_stack_through_which_the_answer_goes() {
    alone(|base| {
        let mut nodes = two_nodes(base, kind(), Family::V4);
        nodes.iter_mut().for_each(|node| node.pass_the_stack(Way::OnLink, Family::V4));
        let [a, b] = &nodes;
        let server = socket(&a.pod, (pod(1, Family::V4), 0).into());
        let process = socket(&b.space, (node(2, Family::V4), 0).into());
        server.set_read_timeout(Some(DOUBT)).unwrap();
        process.send_to(b"by the stack", server.local_addr().unwrap()).unwrap();
        assert!(receive(&server, &mut [0; 32]).is_err(), "it came past the stack, which does not see it before its answer");
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        a.open_the_stack();
        talk(&process, &server, 100);
    });
}

/// Two nodes that reach each other, and each other's pods, by the overlay alone.
pub(super) fn two_nodes_by_the_overlay(base: &Path, family: Family) -> [Node; 2] {
    let mut nodes = two_nodes(base, kind(), family);
    for node in &mut nodes {
        // What the stack does not forward it does not send to the link either.
        node.pass_the_stack(Way::OnLink, family);
        node.reach_nodes_by_the_overlay();
    }
    nodes
}

/// The stack would send it natively, as the pod's, which a network that knows no pods drops and tells nobody.
#[test]
fn a_pod_is_told_how_long_a_packet_to_another_node_may_be() {
    for family in FAMILIES {
        alone(|base| {
            let [mut a, mut b] = two_nodes_by_the_overlay(base, family);
            b.open_the_stack();
            b.serve(family, pod(2, family));
            // The way there has become narrower than the pods' interfaces, which have 1400. What comes back is as long as before, and by the stack.
            let version = if family == Family::V4 { "-4" } else { "-6" };
            a.space.inside(move || drop(run(&format!("ip {version} rule del iif {DEVICE} prohibit pref 1"))));
            a.datapath.nodes.insert(&node(2, family), &abi::Node { mtu: 1300, ..abi::Node::routed(number(2, 1)) }).unwrap();
            let (in_pod, process) = (socket(&a.pod, (pod(1, family), 0).into()), socket(&b.space, (node(2, family), 0).into()));
            talk(&in_pod, &process, if family == Family::V4 { 1272 } else { 1252 });
            assert_eq!(a.count(Outcome::PacketTooLong), 0);
            // Datagrams go in fragments once the pod knows, bytes in shorter segments: to the node, by a port of it, and by a service here.
            comes_in_fragments(&in_pod, process.local_addr().unwrap(), &process);
            let of_pod = b.pod.inside(move || TcpListener::bind((pod(2, family), TARGET)).unwrap());
            let of_node = b.space.inside(move || TcpListener::bind((node(2, family), 0)).unwrap());
            let [itself, of_service] = [of_node.local_addr().unwrap(), (nowhere(family), 443).into()];
            a.offer(of_service, itself);
            for (frontend, listener) in [(itself, &of_node), (b.node_port(family), &of_pod), (of_service, &of_node)] {
                let before = a.count(Outcome::PacketTooLong);
                a.pod.inside(forget_ways);
                stream_through(frontend, &a.pod, listener);
                assert!(a.count(Outcome::PacketTooLong) > before, "{family:?} {frontend}: nothing was too long");
            }
        });
    }
}

/// A network between nodes that knows no pods takes what comes from one for forged.
#[test]
fn between_pods_and_other_nodes_nothing_goes_as_a_pod_s_by_the_network_of_the_nodes() {
    for family in FAMILIES {
        alone(|base| {
            let [a, mut b] = two_nodes_by_the_overlay(base, family);
            let (in_pod, process) = (socket(&a.pod, (pod(1, family), 0).into()), socket(&b.space, (node(2, family), 0).into()));
            for length in [1, 1300] {
                talk(&in_pod, &process, length);
                talk(&process, &in_pod, length);
            }
            stream(&a.pod, &b.space, node(2, family));
            stream(&b.space, &a.pod, pod(1, family));

            // By a port of the other node, whose stack takes it to a backend: of its own, and back where it comes from.
            b.open_the_stack();
            for at in [2, 1] {
                b.serve(family, pod(at, family));
                let (frontend, backend) = (b.node_port(family), SocketAddr::from((pod(at, family), TARGET)));
                let behind = if at == 1 { &a.pod } else { &b.pod };
                let seen = if at == 1 { node(2, family) } else { pod(1, family) };
                let (client, server) = (socket(&a.pod, (pod(1, family), 0).into()), socket(behind, backend));
                for length in [5, 1300] {
                    assert_eq!(talk_through(frontend, &client, &server, length).ip(), seen, "{family:?} {at}");
                }
                let listener = behind.inside(move || TcpListener::bind(backend).unwrap());
                assert_eq!(stream_through(frontend, &a.pod, &listener), seen, "{family:?} {at}");
            }
            // Nobody is there.
            let entry = ServiceEntry { service: 1, outside_table: TABLE_NONE, flags: service_flag::OUTSIDE, ..ServiceEntry::default() };
            for protocol in [protocol::TCP, protocol::UDP] {
                b.datapath.services.insert((node(2, family), NODE_PORT, protocol), &entry).unwrap();
            }
            is_told_that_nobody_listens(&a.pod, &socket(&a.pod, (pod(1, family), 0).into()), b.node_port(family));
            assert!(b.count(Outcome::ServiceRefused) > 1);
            for node in [&a, &b] {
                node.assert_nothing_is_dropped();
            }
        });
    }
}
