//! The overlay's port, which pods cannot send to, and what the programs of its device make of a packet alone. What another node's
//! packet meets there needs a device: `tests/overlay`.

use std::net::IpAddr;

use palisade_datapath_core::abi::{
    Direction, Hook, MARK_MASQUERADE, NODE_SELF, Node, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Outcome, ServiceEntry, Tunnel, service_flag,
};
use palisade_loader::{Overlay, PacketContext, TestRun};
use palisade_test_support::packet::{
    arp, ethernet, protocol, sctp_chunk, set, summed,
    tcp_flag::{self, ACK, SYN},
    udp,
};

use crate::outside::{PORT as NODE_PORT, remote, serve as serve_node_port};
use crate::seen::decisions;
use crate::service::{ALIVE, CLIENT, FRONTEND, SERVICE, TABLE, TARGET, backend, ends, quote, serve, table, to_vip, vip};
use crate::world::{Family, PASS, World, each_family, node, outside, wide, world};

const PORT: u16 = 4789;

fn other_node(family: Family) -> IpAddr {
    match family {
        Family::V4 => [172, 16, 0, 2].into(),
        Family::V6 => "fd16::2".parse().unwrap(),
    }
}

/// A pod of the other node.
fn pod_there(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 2, 0, 5].into(),
        Family::V6 => "fd02::5".parse().unwrap(),
    }
}

/// An address of this node's range that no pod has.
fn nobody(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 1, 0, 99].into(),
        Family::V6 => "fd01::99".parse().unwrap(),
    }
}

/// A packet that leaves by the overlay.
fn leaves(world: &World, packet: &[u8]) -> TestRun {
    let run = world.datapath.test_run(Hook::ToOverlay, packet, &PacketContext::default()).unwrap();
    assert_eq!(run.action, PASS);
    run
}

/// Writes the rows of two nodes with an overlay.
fn overlay(world: &mut World, family: Family) {
    let datapath = &mut world.datapath;
    let there = other_node(family);
    datapath.nodes.insert(&node(family), &Node::routed(NODE_SELF)).unwrap();
    datapath.nodes.insert(&there, &Node::routed(2)).unwrap();
    let tunnel = Tunnel { node: 2, address: wide(there), version: if there.is_ipv4() { 4 } else { 6 }, ..Tunnel::default() };
    let range = if there.is_ipv4() { "10.2.0.0/24" } else { "fd02::/64" };
    datapath.tunnels.insert(&range.parse().unwrap(), &tunnel).unwrap();
    datapath.set_overlay(Overlay::new(PORT, 1)).unwrap();
}

#[test]
fn a_pod_sends_to_pods_alone_at_the_port_of_the_overlay() {
    each_family(|world, family| {
        overlay(world, family);
        let to = |world: &World, address, port| world.a.to(address).udp(CLIENT, port);
        // Nodes have addresses that nobody knows of, so that any that is no pod's may be one.
        for address in [node(family), other_node(family), outside(family), nobody(family)] {
            world.a_sends(to(world, address, PORT)).dropped(Outcome::OverlayPort);
            assert!(world.connections(family).is_empty());
        }
        for address in [node(family), other_node(family), outside(family)] {
            world.a_sends(to(world, address, PORT + 1)).passed(Outcome::AllowedNew);
            world.a_sends(world.a.to(address).tcp(CLIENT, PORT, tcp_flag::SYN)).passed(Outcome::AllowedNew);
        }
        world.a_sends(to(world, world.b.address(family), PORT)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(to(world, pod_there(family), PORT)).passed(Outcome::AllowedNew);
    });
}

#[test]
fn the_port_of_the_overlay_is_closed_before_policy_is_asked() {
    each_family(|world, family| {
        overlay(world, family);
        world.isolate(world.a, Direction::Egress, 42);
        let event = world.a_sends(world.a.to(node(family)).udp(CLIENT, PORT)).dropped(Outcome::OverlayPort);
        assert_eq!(decisions(&event).map(|(_, reason)| reason), [0, 0]);
    });
}

#[test]
fn where_there_is_no_overlay_its_port_is_like_any_other_until_there_is_one() {
    each_family(|world, family| {
        let packet = world.a.to(other_node(family)).udp(CLIENT, PORT);
        world.a_sends(packet.clone()).passed(Outcome::AllowedNew);
        world.a_sends(packet.clone()).passed(Outcome::AllowedEstablished);
        overlay(world, family);
        world.a_sends(packet.clone()).dropped(Outcome::OverlayPort);
        world.datapath.set_overlay(None).unwrap();
        world.a_sends(packet).passed(Outcome::AllowedNew);
    });
}

#[test]
fn a_service_is_no_way_to_the_port_of_the_overlay() {
    each_family(|world, family| {
        overlay(world, family);
        for address in [node(family), other_node(family), outside(family)] {
            serve(world, family, protocol::UDP, (address, PORT));
            world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND))).dropped_silently(Outcome::OverlayPort);
            assert!(world.connections(family).is_empty());
        }
        // A frontend may have the same number: the packet that leaves has another one.
        backend(world, 2, (world.b.address(family), TARGET), ALIVE);
        table(world, TABLE, &[2]);
        let entry = ServiceEntry { service: SERVICE, table: TABLE, bits: 6, ..ServiceEntry::default() };
        world.datapath.services.insert((vip(family), PORT, protocol::UDP), &entry).unwrap();
        let seen = world.a_sends(summed(to_vip(world, family).udp(CLIENT, PORT)));
        assert_eq!(seen.outcome, Outcome::AllowedNew);
        let entry = ServiceEntry { table: 0, flags: service_flag::DROP, ..entry };
        world.datapath.services.insert((vip(family), PORT, protocol::UDP), &entry).unwrap();
        world.a_sends(summed(to_vip(world, family).udp(CLIENT + 1, PORT))).dropped(Outcome::ServiceDropped);
    });
}

#[test]
fn a_client_outside_has_no_way_to_the_port_of_the_overlay_by_a_service() {
    each_family(|world, family| {
        // From before there was an overlay.
        let way = world.arriving(outside(family), node(family));
        serve_node_port(world, family, protocol::UDP, (other_node(family), PORT));
        world.arrives(summed(way.udp(CLIENT, NODE_PORT))).passed(MARK_MASQUERADE);
        overlay(world, family);
        world.arrives(summed(way.udp(CLIENT, NODE_PORT))).dropped(Outcome::OverlayPort);
        // Of a pod of the other node, too, which goes natively to the addresses of nodes.
        let from_pod = world.arriving(pod_there(family), node(family));
        for address in [node(family), other_node(family), outside(family)] {
            serve_node_port(world, family, protocol::UDP, (address, PORT));
            for (from, port) in [(way, CLIENT + 1), (from_pod, CLIENT + 2)] {
                world.arrives(summed(from.udp(port, NODE_PORT))).dropped(Outcome::OverlayPort);
            }
            let whole = udp(CLIENT + 3, NODE_PORT, &[7; 56]);
            world.arrives(way.fragment(9, 0, true, protocol::UDP, &whole[..32])).dropped(Outcome::OverlayPort);
            // Nobody knows where it goes: it stays the node's.
            world.arrives(way.fragment(9, 32, false, protocol::UDP, &whole[32..])).untouched();
        }
        // A pod may have the port.
        for (address, mark) in [(world.b.address(family), 0), (pod_there(family), MARK_MASQUERADE)] {
            serve_node_port(world, family, protocol::UDP, (address, PORT));
            world.arrives(summed(way.udp(CLIENT + 4, NODE_PORT))).passed(mark);
        }
    });
}

#[test]
fn who_complains_of_an_outer_packet_is_counted_and_nobody_else() {
    each_family(|world, family| {
        overlay(world, family);
        let count = |world: &World| world.datapath.outer_errors().unwrap();
        let before = count(world);
        let complaint = |world: &World, port: u16| {
            let quoted = summed(world.leaving(node(family), other_node(family)).udp(50_000, port))[14..].to_vec();
            summed(world.arriving(outside(family), node(family)).unreachable(&quoted))
        };
        let packet = complaint(world, PORT + 1);
        world.arrives(packet).untouched();
        assert_eq!(count(world), before, "of another port");
        let packet = complaint(world, PORT);
        world.arrives(packet).untouched();
        assert_eq!(count(world), before + 1);
    });
}

#[test]
fn fragments_are_no_way_to_the_port_of_the_overlay() {
    each_family(|world, family| {
        overlay(world, family);
        let whole = udp(CLIENT, PORT, &[7; 56]);
        let way = world.a.to(other_node(family));
        world.a_sends(way.fragment(9, 0, true, protocol::UDP, &whole[..32])).dropped(Outcome::OverlayPort);
        world.a_sends(way.fragment(9, 32, false, protocol::UDP, &whole[32..])).dropped(Outcome::FragmentUnknown);

        serve(world, family, protocol::UDP, (other_node(family), PORT));
        let (whole, way) = (udp(CLIENT, FRONTEND, &[7; 56]), to_vip(world, family));
        world.a_sends(way.fragment(9, 0, true, protocol::UDP, &whole[..32])).dropped_silently(Outcome::OverlayPort);
        world.a_sends(way.fragment(9, 32, false, protocol::UDP, &whole[32..])).dropped(Outcome::FragmentUnknown);
    });
}

#[test]
fn later_fragments_of_a_first_that_came_before_the_overlay_do_not_reach_its_port() {
    each_family(|world, family| {
        let whole = udp(CLIENT, PORT, &[7; 56]);
        let way = world.a.to(other_node(family));
        world.a_sends(way.fragment(9, 0, true, protocol::UDP, &whole[..32])).passed(Outcome::AllowedNew);
        overlay(world, family);
        world.a_sends(way.fragment(9, 32, false, protocol::UDP, &whole[32..])).dropped(Outcome::OverlayPort);
    });
}

#[test]
fn what_came_out_of_no_tunnel_is_forged() {
    each_family(|world, family| {
        overlay(world, family);
        let packet = world.a.to(node(family)).from(pod_there(family)).udp(CLIENT, 53);
        world.run(Hook::FromOverlay, 1, 1, packet).dropped(Outcome::OverlayForged);
    });
}

#[test]
fn what_came_out_of_the_overlay_and_cannot_be_read_is_dropped() {
    each_family(|world, family| {
        overlay(world, family);
        let way = world.a.to(node(family)).from(pod_there(family));
        let packet = way.udp(CLIENT, 53);
        // Shorter ones the kernel refuses to run a program over.
        world.run(Hook::FromOverlay, 1, 1, packet[..way.transport() + 4].to_vec()).dropped(Outcome::HeaderInvalid);
        let length = if family == Family::V4 { 16 } else { 18 };
        world.run(Hook::FromOverlay, 1, 1, set(packet, length, &[4, 0])).dropped_silently(Outcome::HeaderInvalid);
    });
}

#[test]
fn nobody_asks_for_neighbours_in_the_overlay() {
    world(|world| {
        overlay(world, Family::V4);
        let question = arp(1, OVERLAY_SOURCE_MAC, [172, 16, 0, 2].into(), [0; 6], [172, 16, 0, 1].into());
        for hook in [Hook::FromOverlay, Hook::ToOverlay] {
            let frame = |ether_type| ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, ether_type, &question);
            world.run(hook, 1, 1, frame(0x0806)).dropped(Outcome::ArpInvalid);
            world.run(hook, 1, 1, frame(0x88cc)).dropped(Outcome::EtherTypeUnknown);
        }
    });
}

#[test]
fn a_packet_for_no_other_nodes_pod_does_not_enter_the_overlay() {
    each_family(|world, family| {
        overlay(world, family);
        let send = |world: &World, to| {
            let packet = world.a.to(to).udp(CLIENT, 53);
            (world.datapath.test_run(Hook::ToOverlay, &packet, &PacketContext::default()).unwrap(), packet)
        };
        let (run, mut packet) = send(world, pod_there(family));
        assert_eq!(run.action, PASS);
        packet[..6].copy_from_slice(&OVERLAY_MAC);
        packet[6..12].copy_from_slice(&OVERLAY_SOURCE_MAC);
        assert_eq!(run.packet, packet, "to the device that every node has");
        for address in [node(family), other_node(family), outside(family), nobody(family)] {
            world.run(Hook::ToOverlay, 1, 0, world.a.to(address).udp(CLIENT, 53)).dropped(Outcome::TunnelMissing);
        }
        world.datapath.set_overlay(None).unwrap();
        assert_ne!(send(world, pod_there(family)).0.action, PASS, "there is no overlay any more");
    });
}

#[test]
fn a_pod_of_another_node_is_answered_by_the_frontend_that_it_asked() {
    each_family(|world, family| {
        overlay(world, family);
        let (there, here) = (pod_there(family), node(family));
        // On this node, and on a third: connection tracking has restored the addresses that the packet had before it was masqueraded.
        for (client, backend) in [(CLIENT, world.b.address(family)), (CLIENT + 1, remote(family))] {
            let (ask, answer) = (world.arriving(there, here), world.leaving(backend, there));
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                serve_node_port(world, family, protocol, (backend, TARGET));
            }
            let exchange = [
                (ask.tcp(client, NODE_PORT, SYN), answer.tcp(TARGET, client, SYN | ACK)),
                (ask.udp(client, NODE_PORT), answer.udp(TARGET, client)),
                (ask.sctp(client, NODE_PORT, sctp_chunk::INIT), answer.sctp(TARGET, client, sctp_chunk::INIT_ACK)),
            ];
            for (question, reply) in exchange {
                let asked = world.arrives(summed(question));
                assert_eq!(ends(&asked.packet), [(there, client), (backend, TARGET)]);
                assert_eq!(ends(&leaves(world, &summed(reply)).packet), [(here, NODE_PORT), (there, client)]);
                // An error about the question is one about what was asked.
                let error = leaves(world, &summed(answer.port_unreachable(&asked.packet[14..])));
                assert_eq!(ends(&error.packet), [(here, 0), (there, 0)]);
                assert_eq!(quote(&error.packet, family), [(there, client), (here, NODE_PORT)]);
            }
            let own = summed(answer.tcp(TARGET, client, SYN));
            assert_eq!(leaves(world, &own).packet[12..], own[12..], "what a backend opens itself comes from itself");
        }
    });
}

#[test]
fn fragments_of_an_answer_leave_by_the_overlay_under_one_address() {
    each_family(|world, family| {
        overlay(world, family);
        let there = pod_there(family);
        serve_node_port(world, family, protocol::UDP, (world.b.address(family), TARGET));
        let _ = world.arrives(summed(world.arriving(there, node(family)).udp(CLIENT, NODE_PORT)));
        let (whole, answer) = (udp(TARGET, CLIENT, &[7; 56]), world.leaving(world.b.address(family), there));
        let (source, length) = if family == Family::V4 { (26, 4) } else { (22, 16) };
        for fragment in
            [answer.fragment(9, 0, true, protocol::UDP, &whole[..32]), answer.fragment(9, 32, false, protocol::UDP, &whole[32..])]
        {
            assert_eq!(leaves(world, &fragment).packet[source..source + length], wide(node(family))[..length]);
        }
    });
}

#[test]
fn what_was_masqueraded_leaves_by_the_overlay_without_the_mark() {
    each_family(|world, family| {
        overlay(world, family);
        let packet = world.leaving(node(family), pod_there(family)).udp(61_000, TARGET);
        let context = PacketContext { mark: MARK_MASQUERADE | 1, ..PacketContext::default() };
        let run = world.datapath.test_run(Hook::ToOverlay, &packet, &context).unwrap();
        assert_eq!((run.action, run.mark), (PASS, 1), "the outer packet inherits it");
    });
}
