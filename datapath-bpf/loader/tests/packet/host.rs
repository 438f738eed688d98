//! Packets of the node's own processes, and packets that only look like them.

use std::net::IpAddr;

use palisade_datapath_core::abi::{Address, Direction, Hook, Outcome, V4, V6, connection_flag as flag};
use palisade_test_support::packet::{protocol, tcp, tcp_flag::*, udp};

use crate::world::{Family, UPLINK, each_family, node, outside, world};

#[test]
fn the_node_reaches_an_isolated_pod_and_gets_its_answers() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        world.isolate(world.b, Direction::Egress, 43);
        let (there, back) = (world.b.from(node(family)), world.b.to(node(family)));
        world.host_sends(there.tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 50000, SYN | ACK)).passed(Outcome::AllowedReply);
        world.host_sends(there.tcp(50000, 80, ACK)).passed(Outcome::AllowedEstablished);
        world.host_sends(there.udp(50000, 53)).passed(Outcome::AllowedNew);
        world.b_sends(back.udp(53, 50000)).passed(Outcome::AllowedReply);
        world.host_sends(there.echo_request(7)).passed(Outcome::AllowedNew);
        world.b_sends(back.echo_reply(7)).passed(Outcome::AllowedReply);
        assert!(world.connections(family).iter().all(|entry| entry.flags & flag::FROM_HOST != 0));
    });
}

#[test]
fn what_the_node_opened_outlives_a_change_of_policy() {
    each_family(|world, family| {
        world.host_sends(world.b.from(node(family)).tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.isolate(world.b, Direction::Ingress, 42);
        world.isolate(world.b, Direction::Egress, 43);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b.to(node(family)).tcp(80, 50000, SYN | ACK)).passed(Outcome::AllowedReply);
        world.host_sends(world.b.from(node(family)).tcp(50000, 80, ACK)).passed(Outcome::AllowedEstablished);
    });
}

#[test]
fn a_packet_that_came_in_by_an_interface_is_not_the_node_s_whatever_its_source() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        for source in [node(family), outside(family)] {
            let packet = world.b.from(source).tcp(50000, 80, SYN);
            for interface in [world.a.ifindex, UPLINK, 1] {
                world.run(Hook::ToPod, world.b.ifindex, interface, packet.clone()).dropped_silently(Outcome::IngressDefaultDenied);
            }
        }
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn an_address_of_a_pod_comes_from_no_other_interface_than_that_pod_s() {
    each_family(|world, family| {
        let packet = world.b.from(world.a.address(family)).udp(50000, 53);
        for interface in [UPLINK, world.b.ifindex, 1] {
            world.run(Hook::ToPod, world.b.ifindex, interface, packet.clone()).dropped_silently(Outcome::SourceAddressForeign);
        }
        world.network_sends(world.b.from(world.b.address(family)).udp(50000, 53)).dropped(Outcome::SourceAddressForeign);
        world.run(Hook::ToPod, world.b.ifindex, world.a.ifindex, packet).passed(Outcome::AllowedNew);
    });
}

#[test]
fn a_fragment_of_ipv6_is_judged_though_it_came_in_by_no_interface() {
    world(|world| {
        let family = Family::V6;
        world.isolate(world.b, Direction::Ingress, 42);
        let first = |source| world.b.from(source).fragment(9, 0, true, protocol::TCP, &tcp(50000, 80, SYN));
        let (forged, own) = (first(outside(family)), first(node(family)));
        world.host_sends(forged).dropped(Outcome::IngressDefaultDenied);
        world.host_sends(own).dropped(Outcome::IngressDefaultDenied);
        world.host_sends(world.b.from(outside(family)).fragment(9, 24, false, protocol::TCP, &[7; 8])).dropped(Outcome::FragmentUnknown);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn a_pod_that_opens_towards_its_node_is_judged() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 43);
        let back = world.b.to(node(family));
        world.b_sends(back.tcp(40000, 6443, SYN)).dropped(Outcome::EgressDefaultDenied);
        world.host_sends(world.b.from(node(family)).tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 50000, SYN)).dropped(Outcome::EgressDefaultDenied);
        world.isolate(world.b, Direction::Ingress, 42);
        world.b_sends(back.tcp(81, 50000, ACK)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn the_node_s_answers_do_not_keep_a_flow_of_the_pod_open_that_a_change_denies() {
    each_family(|world, family| {
        let (there, back) = (world.b.to(node(family)), world.b.from(node(family)));
        world.b_sends(there.tcp(40000, 6443, SYN)).passed(Outcome::AllowedNew);
        world.host_sends(back.tcp(6443, 40000, SYN | ACK)).passed(Outcome::AllowedReply);
        world.isolate(world.b, Direction::Egress, 43);
        world.datapath.bump_epoch().unwrap();
        world.host_sends(back.tcp(6443, 40000, ACK)).passed(Outcome::AllowedReply);
        world.b_sends(there.tcp(40000, 6443, ACK)).dropped(Outcome::EgressDefaultDenied);
        world.host_sends(back.tcp(6443, 40000, ACK)).passed(Outcome::AllowedReply);
        world.b_sends(there.tcp(40000, 6443, ACK)).dropped_silently(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn a_flow_that_a_change_denied_stays_denied_as_long_as_the_node_talks() {
    each_family(|world, family| {
        let (there, back) = (world.b.to(node(family)), world.b.from(node(family)));
        world.b_sends(there.udp(40000, 443)).passed(Outcome::AllowedNew);
        world.host_sends(back.udp(443, 40000)).passed(Outcome::AllowedReply);
        world.isolate(world.b, Direction::Egress, 43);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(there.udp(40000, 443)).dropped(Outcome::EgressDefaultDenied);
        // At once, and each time before the entry would be too old.
        for seconds in [0, 150, 150, 150] {
            world.let_pass(family, seconds);
            world.host_sends(back.udp(443, 40000)).passed(Outcome::AllowedReply);
        }
        world.b_sends(there.udp(40000, 443)).dropped_silently(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn what_the_node_opened_to_a_pod_is_not_open_to_the_next_that_has_its_address() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 43);
        let (there, back) = (world.b.to(node(family)), world.b.from(node(family)));
        world.host_sends(back.tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(there.tcp(80, 50000, SYN | ACK)).passed(Outcome::AllowedReply);
        world.host_sends(back.udp(50000, 53)).passed(Outcome::AllowedNew);
        world.b_sends(there.udp(53, 50000)).passed(Outcome::AllowedReply);
        world.replace(world.b);
        world.b_sends(there.tcp(80, 50000, ACK)).dropped(Outcome::EgressDefaultDenied);
        world.b_sends(there.udp(53, 50000)).dropped(Outcome::EgressDefaultDenied);
        world.host_sends(back.udp(50000, 53)).passed(Outcome::AllowedNew);
        world.b_sends(there.udp(53, 50000)).passed(Outcome::AllowedReply);
    });
}

#[test]
fn a_pod_does_not_reach_its_node_by_the_address_of_its_link() {
    each_family(|world, family| {
        let gateway: IpAddr = match family {
            Family::V4 => V4::GATEWAY.into(),
            Family::V6 => V6::GATEWAY.into(),
        };
        for packet in [world.b.to(gateway).tcp(40000, 10250, SYN), world.b.to(gateway).udp(40000, 53), world.b.to(gateway).echo_request(7)]
        {
            world.b_sends(packet).dropped(Outcome::DestinationForeign);
        }
        world.host_sends(world.b.from(gateway).tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(world.b.to(gateway).tcp(80, 50000, SYN | ACK)).passed(Outcome::AllowedReply);
    });
}

#[test]
fn a_pod_does_not_reach_its_node_by_a_loopback_address() {
    each_family(|world, family| {
        let addresses: &[&str] = match family {
            Family::V4 => &["127.0.0.1", "127.255.255.254"],
            Family::V6 => &["::1"],
        };
        for address in addresses {
            world.b_sends(world.b.to(address.parse().unwrap()).tcp(40000, 10250, SYN)).dropped(Outcome::DestinationForeign);
        }
    });
}

#[test]
fn what_opens_no_flow_passes_from_the_node_and_leaves_no_entry() {
    each_family(|world, family| {
        let way = world.b.from(node(family));
        world.host_sends(way.tcp(50000, 80, ACK)).passed(Outcome::AllowedReply);
        world.host_sends(way.tcp(50000, 80, RST)).passed(Outcome::AllowedReply);
        world.host_sends(way.echo_reply(7)).passed(Outcome::AllowedRelated);
        if family == Family::V4 {
            world.host_sends(way.fragment(9, 32, false, protocol::UDP, &[7; 8])).passed(Outcome::AllowedRelated);
        }
        let quoted = world.b.to(outside(family)).ip(protocol::UDP, &udp(1, 2, b""));
        world.host_sends(way.unreachable(&quoted)).passed(Outcome::AllowedRelated);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn the_node_gets_nothing_to_a_pod_that_is_not_realised() {
    each_family(|world, family| {
        assert!(world.datapath.endpoints.remove(&world.b.ifindex).unwrap());
        world.host_sends(world.b.from(node(family)).tcp(50000, 80, SYN)).dropped(Outcome::EndpointMissing);
    });
}
