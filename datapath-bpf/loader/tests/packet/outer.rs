//! Outer packets of the overlay that `from_pod` makes itself, past the overlay's device.

use std::{collections::BTreeSet, net::IpAddr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use palisade_datapath_core::abi::{Hook, NODE_SELF, Node, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Outcome, Tunnel, tunnel_way};
use palisade_loader::{Overlay, PacketContext};
use palisade_test_support::packet::{
    ETHERNET, checksum, protocol, sctp, sctp_chunk, set, summed, tcp,
    tcp_flag::{ACK, SYN},
    udp,
};

use crate::forward::there;
use crate::outside::{PORT as NODE_PORT, serve as serve_node_port};
use crate::service::{CLIENT, TARGET, backend, ends, quote};
use crate::world::{Family, PASS, REDIRECT, World, each_family, node};

const PORT: u16 = 4789;
const NETWORK: u32 = 0x0012_3456;
const MTU: u16 = 1400;
/// Of what stands around a packet beside the IP header: UDP, VXLAN, and the inner Ethernet header.
const AFTER_IP: usize = 8 + 8 + 14;

fn other_node(outer: Family) -> IpAddr {
    match outer {
        Family::V4 => [172, 16, 0, 2].into(),
        Family::V6 => "fd16::2".parse().unwrap(),
    }
}

/// Says that the other node's pods are reached in outer packets of a family.
fn reached(world: &mut World, outer: Family, way: u8) {
    let (wide, link) = (crate::world::wide, world.uplink());
    let datapath = &mut world.datapath;
    let (here, there) = (node(outer), other_node(outer));
    datapath.nodes.insert(&here, &Node::routed(NODE_SELF)).unwrap();
    datapath.nodes.insert(&there, &Node::routed(2)).unwrap();
    let version = if there.is_ipv4() { 4 } else { 6 };
    let tunnel = Tunnel { node: 2, address: wide(there), source: wide(here), ifindex: link, mtu: MTU, version, way };
    for range in ["10.2.0.0/24", "fd02::/64"] {
        datapath.tunnels.insert(&range.parse().unwrap(), &tunnel).unwrap();
    }
    datapath.set_overlay(Overlay::new(PORT, NETWORK)).unwrap();
    datapath.set_overlay_device(Some(link)).unwrap();
}

/// What is in an outer packet, as the other reader reads it, and the port that it comes from. All that stands around it must be right.
#[track_caller]
fn inner(sent: &[u8], outer_frame: &[u8], outer: Family) -> (Vec<u8>, u16) {
    // Who takes it further writes the outer Ethernet header, all of it.
    let packet = SlicedPacket::from_ip(&outer_frame[14..]).expect("a packet that can be read");
    let ends: [IpAddr; 2] = match packet.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum(), "the checksum of the IP header");
            assert!(header.dont_fragment() && !header.more_fragments());
            assert_eq!((header.ttl(), usize::from(header.total_len())), (64, outer_frame.len() - 14));
            [header.source_addr().into(), header.destination_addr().into()]
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert_eq!((header.hop_limit(), usize::from(header.payload_length())), (64, outer_frame.len() - 14 - 40));
            [header.source_addr().into(), header.destination_addr().into()]
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(ends, [node(outer), other_node(outer)]);
    let Some(TransportSlice::Udp(datagram)) = packet.transport.as_ref() else { panic!("no UDP") };
    assert_eq!((datagram.destination_port(), datagram.checksum()), (PORT, 0));
    assert_eq!(usize::from(datagram.length()), sent.len() + 16);
    let (header, frame) = datagram.payload().split_at(8);
    assert_eq!(header, [8, 0, 0, 0, 0x12, 0x34, 0x56, 0], "VXLAN");
    assert_eq!(frame[..12], [OVERLAY_MAC, OVERLAY_SOURCE_MAC].concat());
    // One hop less, and nothing else.
    let mut expected = sent[12..].to_vec();
    if sent[12..14] == [8, 0] {
        expected[10] -= 1;
        expected[12..14].fill(0);
        let sum = checksum(&expected[2..22]).to_be_bytes();
        expected[12..14].copy_from_slice(&sum);
    } else {
        expected[9] -= 1;
    }
    assert_eq!(frame[12..], expected);
    (frame.to_vec(), datagram.source_port())
}

fn each_outer(test: impl Fn(&mut World, Family, Family) + Send + Copy + 'static) {
    for outer in [Family::V4, Family::V6] {
        each_family(move |world, family| test(world, family, outer));
    }
}

#[test]
fn a_packet_to_a_pod_of_another_node_is_put_in_an_outer_one_past_the_overlays_device() {
    each_outer(|world, family, outer| {
        for way in [tunnel_way::OVERLAY, tunnel_way::OVERLAY_LINK] {
            reached(world, outer, way);
            let out = world.a.to(there(family));
            let longest = udp(CLIENT, 53, &vec![7; usize::from(MTU) - (out.transport() - 14) - 8]);
            let fragment = out.fragment(9, 0, true, protocol::UDP, &udp(CLIENT, 53, &[0; 24]));
            let whole = [out.tcp(CLIENT, 80, SYN), out.udp(CLIENT, 53), out.echo_request(7), out.packet(protocol::UDP, &longest)];
            for (packet, is_whole) in whole.map(|packet| (summed(packet), true)).into_iter().chain([(fragment, false)]) {
                let seen = world.a_sends(packet.clone());
                assert_eq!(seen.action, REDIRECT, "{:?}", seen.outcome);
                let (frame, port) = inner(&packet, &seen.packet, outer);
                assert_eq!(seen.packet.len(), packet.len() + AFTER_IP + if outer == Family::V4 { 20 } else { 40 });
                assert!(port >= 49_152);
                if is_whole {
                    assert_eq!(ends(&frame).map(|(address, _)| address), [world.a.address(family), there(family)]);
                }
            }
            world.forget_connections(family);
        }
    });
}

#[test]
fn packets_of_a_flow_come_from_one_port_and_those_of_others_from_others() {
    each_outer(|world, family, outer| {
        reached(world, outer, tunnel_way::OVERLAY_LINK);
        let out = world.a.to(there(family));
        let mut port = |packet: Vec<u8>| inner(&packet, &world.a_sends(packet.clone()).packet, outer).1;
        let ports: BTreeSet<u16> = (0..16).map(|flow| port(out.udp(CLIENT + flow, 53))).collect();
        assert!(ports.len() > 8, "{ports:?}");
        assert_eq!(port(out.udp(CLIENT, 53)), port(out.udp(CLIENT, 53)));
    });
}

#[test]
fn an_outer_packet_says_of_congestion_what_the_inner_one_does_and_nothing_else() {
    each_outer(|world, family, outer| {
        reached(world, outer, tunnel_way::OVERLAY_LINK);
        let out = world.a.to(there(family));
        for bits in 0..4 {
            // With a class of service, which networks between the nodes are not told.
            let packet = match family {
                Family::V4 => {
                    let packet = set(out.udp(CLIENT, 53), 15, &[0xb8 | bits]);
                    let sum = checksum(&set(packet.clone(), 24, &[0, 0])[14..34]).to_be_bytes();
                    set(packet, 24, &sum)
                }
                Family::V6 => set(out.udp(CLIENT, 53), 14, &[0x6b, 0x80 | bits << 4]),
            };
            let sent = world.a_sends(packet.clone()).packet;
            inner(&packet, &sent, outer);
            let told = match outer {
                Family::V4 => sent[15],
                Family::V6 => (sent[14] & 0x0f) << 4 | sent[15] >> 4,
            };
            assert_eq!(told, bits);
        }
    });
}

#[test]
fn what_may_be_an_answer_to_a_client_outside_goes_by_the_device_that_knows_as_whom() {
    each_outer(|world, family, outer| {
        reached(world, outer, tunnel_way::OVERLAY_LINK);
        // The pod of another node asks this node's port, by a node that has no services.
        let (client, a) = (there(family), world.a.address(family));
        serve_node_port(world, family, protocol::TCP, (a, TARGET));
        backend(world, 1, (a, TARGET), crate::service::ALIVE);
        let asked = world.arrives(summed(world.arriving(client, node(family)).tcp(CLIENT, NODE_PORT, SYN)));
        assert_eq!((asked.action, ends(&asked.packet)), (PASS, [(client, CLIENT), (a, TARGET)]));
        let out = world.a.to(client);
        world.a_sends(out.tcp(TARGET, CLIENT, ACK)).left(Outcome::AllowedNew);
        // Of what it is about, only its inside tells.
        let error = summed(out.port_unreachable(&world.arriving(client, a).ip(protocol::TCP, &[0; 20])));
        let quoted = world.a_sends(error);
        assert_eq!(quoted.packet.len(), quoted.sent.len());
        let other = out.tcp(TARGET, CLIENT + 1, ACK);
        let seen = world.a_sends(other.clone());
        inner(&other, &seen.packet, outer);
    });
}

#[test]
fn what_comes_to_the_port_of_the_overlay_at_this_node_is_its_devices() {
    each_outer(|world, family, outer| {
        reached(world, outer, tunnel_way::OVERLAY_LINK);
        let to = |world: &World, address| world.arriving(crate::world::outside(family), address);
        for protocol in [protocol::UDP, protocol::TCP] {
            serve_node_port(world, family, protocol, (world.b.address(family), TARGET));
        }
        let entry = world.datapath.services.get((node(family), NODE_PORT, protocol::UDP)).unwrap().unwrap();
        for protocol in [protocol::UDP, protocol::TCP] {
            world.datapath.services.insert((node(family), PORT, protocol), &entry).unwrap();
        }
        if family == outer {
            let packet = summed(to(world, node(family)).udp(CLIENT, PORT));
            world.arrives(packet.clone()).untouched();
            // A node that nothing goes by an overlay to or from has none of its ports taken away.
            let device = world.datapath.overlay_device().unwrap();
            world.datapath.set_overlay_device(None).unwrap();
            let taken = world.arrives(packet);
            assert_ne!(taken.packet, taken.sent);
            world.datapath.set_overlay_device(device).unwrap();
        }
        // TCP has ports of its own, and a later fragment none.
        let taken = world.arrives(summed(to(world, node(family)).tcp(CLIENT, PORT, SYN)));
        assert_ne!(taken.packet, taken.sent);
        let data = [[0, 0, PORT.to_be_bytes()[0], PORT.to_be_bytes()[1]]; 8].concat();
        let whole = summed(to(world, node(family)).packet(protocol::UDP, &udp(CLIENT, NODE_PORT, &data)));
        let payload = whole[to(world, node(family)).transport()..].to_vec();
        let first = world.arrives(to(world, node(family)).fragment(5, 0, true, protocol::UDP, &payload[..24]));
        assert_ne!(first.packet, first.sent);
        let later = world.arrives(to(world, node(family)).fragment(5, 24, false, protocol::UDP, &payload[24..]));
        assert_ne!(later.packet, later.sent);
    });
}

#[test]
fn a_pod_is_told_how_long_a_packet_to_another_node_may_be_of_every_protocol() {
    each_family(|world, family| {
        reached(world, family, tunnel_way::OVERLAY_LINK);
        let (node, a) = (other_node(family), world.a.address(family));
        world.datapath.nodes.insert(&node, &Node { mtu: 1300, ..Node::routed(2) }).unwrap();
        let way = world.a.to(node);
        let ip = way.transport() - ETHERNET;
        let of = |protocol: u8, length: usize| {
            let data = |header: usize| vec![7; length - ip - header];
            match protocol {
                protocol::UDP => way.packet(protocol, &udp(CLIENT, TARGET, &data(8))),
                protocol::TCP => way.packet(protocol, &[tcp(CLIENT, TARGET, SYN), data(20)].concat()),
                _ => way.packet(
                    protocol,
                    &[sctp(CLIENT, TARGET, sctp_chunk::INIT), data(sctp(CLIENT, TARGET, sctp_chunk::INIT).len())].concat(),
                ),
            }
        };
        let (head, too_long) = (if family == Family::V4 { [3, 4] } else { [2, 0] }, Outcome::PacketTooLong as usize);
        for protocol in [protocol::UDP, protocol::TCP, protocol::SCTP] {
            let fits = world.a_sends(summed(of(protocol, 1300)));
            assert_eq!((fits.outcome, fits.action, fits.packet.len()), (Outcome::AllowedNew, REDIRECT, 1314), "{protocol}");
            let before = world.datapath.counters().unwrap()[too_long].1;
            // Beside what policy has said of it, which allows it.
            let context = PacketContext { ifindex: world.a.ifindex, ingress_ifindex: world.a.ifindex, mark: 0, repeat: 1 };
            let seen = world.datapath.test_run(Hook::FromPod, &summed(of(protocol, 1301)), &context).unwrap();
            assert_eq!(world.datapath.counters().unwrap()[too_long].1.packets, before.packets + 1, "{protocol}");
            assert_eq!(seen.action, REDIRECT, "{protocol}");
            let event = world.events.next().unwrap().expect("an event tells of it");
            assert_eq!(event.outcome, Outcome::PacketTooLong as u8);
            assert_eq!(ends(&seen.packet), [(node, 0), (a, 0)]);
            let icmp = &seen.packet[ETHERNET + ip..];
            assert_eq!((&icmp[..2], &icmp[4..8]), (&head[..], &[0, 0, 5, 0x14][..]), "1300 bytes");
            assert_eq!(quote(&seen.packet, family), [(a, CLIENT), (node, TARGET)], "{protocol}");
            // Natively, the stack knows.
            world.datapath.nodes.insert(&node, &Node::routed(2)).unwrap();
            assert_eq!(world.a_sends(summed(of(protocol, 1301))).action, PASS, "{protocol}");
            world.datapath.nodes.insert(&node, &Node { mtu: 1300, ..Node::routed(2) }).unwrap();
        }
    });
}
