//! Ways past the stack: between pods of this node and those of another.

use std::net::IpAddr;

use palisade_datapath_core::abi::{Direction, Hook, Outcome, Tunnel, tunnel_way};
use palisade_test_support::packet::{
    protocol,
    tcp_flag::{ACK, SYN},
    udp,
};

use crate::world::{Family, UPLINK, World, each_family, wide};

const CLIENT: u16 = 40_000;
const MTU: u16 = 1400;

/// A pod of the other node.
pub fn there(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 2, 0, 5].into(),
        Family::V6 => "fd02::5".parse().unwrap(),
    }
}

/// Says by which way the other node's pods are reached.
fn reached(world: &mut World, family: Family, way: u8, ifindex: u32) {
    let (range, address): (_, IpAddr) = match family {
        Family::V4 => ("10.2.0.0/24", [172, 16, 0, 2].into()),
        Family::V6 => ("fd02::/64", "fd16::2".parse().unwrap()),
    };
    let version = if address.is_ipv4() { 4 } else { 6 };
    let tunnel = Tunnel { node: 2, address: wide(address), ifindex, mtu: MTU, version, way, ..Tunnel::default() };
    world.datapath.tunnels.insert(&range.parse().unwrap(), &tunnel).unwrap();
}

/// By the interface at which the tests' packets come.
fn reached_by_link(world: &mut World, family: Family) {
    let link = world.uplink();
    reached(world, family, tunnel_way::LINK, link);
}

#[test]
fn packets_between_pods_of_two_nodes_pass_the_stack_by_both_ways() {
    each_family(|world, family| {
        reached_by_link(world, family);
        let (out, back) = (world.a.to(there(family)), world.arriving(there(family), world.a.address(family)));
        world.a_sends(out.tcp(CLIENT, 80, SYN)).left(Outcome::AllowedNew);
        world.comes(back.tcp(80, CLIENT, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.a_sends(out.tcp(CLIENT, 80, ACK)).left(Outcome::AllowedEstablished);
        world.comes(back.tcp(CLIENT, 443, SYN)).redirected_to(world.a, Outcome::AllowedNew);
        world.a_sends(out.tcp(443, CLIENT, SYN | ACK)).left(Outcome::AllowedReply);
        world.comes(back.udp(CLIENT, 53)).redirected_to(world.a, Outcome::AllowedNew);
        world.a_sends(out.udp(53, CLIENT)).left(Outcome::AllowedReply);
    });
}

#[test]
fn what_passes_the_stack_is_judged_all_the_same() {
    each_family(|world, family| {
        reached_by_link(world, family);
        world.isolate(world.a, Direction::Ingress, 42);
        let back = world.arriving(there(family), world.a.address(family));
        let event = world.comes(back.tcp(CLIENT, 80, SYN)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!((event.hook, event.ingress_reason), (Hook::ToPod as u8, 42));
        world.isolate(world.a, Direction::Egress, 43);
        let event = world.a_sends(world.a.to(there(family)).tcp(CLIENT, 80, SYN)).dropped(Outcome::EgressDefaultDenied);
        assert_eq!(event.egress_reason, 43);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn what_came_through_the_stack_is_answered_through_it() {
    each_family(|world, family| {
        reached_by_link(world, family);
        let (by_stack, answer) = (world.b.from(there(family)), world.b.to(there(family)));
        world.network_sends(by_stack.tcp(CLIENT, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(answer.tcp(80, CLIENT, SYN | ACK)).passed(Outcome::AllowedReply);
        // Also where it is the answer that is judged again.
        world.datapath.bump_epoch().unwrap();
        world.b_sends(answer.tcp(80, CLIENT, ACK)).passed(Outcome::AllowedNew);
        world.b_sends(answer.tcp(80, CLIENT, ACK)).passed(Outcome::AllowedReply);
        // What the pod opens itself is another flow.
        world.b_sends(answer.tcp(CLIENT, 80, SYN)).left(Outcome::AllowedNew);
    });
}

#[test]
fn what_does_not_fit_or_is_on_its_last_hop_is_left_to_the_stack() {
    each_family(|world, family| {
        reached_by_link(world, family);
        let out = world.a.to(there(family));
        let headers = out.transport() - 14 + 8;
        let longer = |by: usize| out.packet(protocol::UDP, &udp(CLIENT, 53, &vec![0; usize::from(MTU) - headers + by]));
        world.a_sends(longer(0)).left(Outcome::AllowedNew);
        world.a_sends(longer(1)).passed(Outcome::AllowedEstablished);
        let back = world.arriving(there(family), world.a.address(family));
        world.a_sends(out.hop_limit(1).udp(CLIENT, 53)).passed(Outcome::AllowedEstablished);
        world.arrives(back.hop_limit(1).udp(53, CLIENT)).untouched();
    });
}

#[test]
fn nothing_passes_the_stack_where_answers_would_come_through_it() {
    each_family(|world, family| {
        let link = world.uplink();
        let (out, back) = (world.a.to(there(family)), world.arriving(there(family), world.a.address(family)));
        for (number, (way, ifindex)) in
            [(tunnel_way::STACK, link), (tunnel_way::LINK, UPLINK), (tunnel_way::OVERLAY, link)].into_iter().enumerate()
        {
            reached(world, family, way, ifindex);
            world.arrives(back.udp(CLIENT + number as u16, 53)).untouched();
        }
        // No device is known yet.
        world.a_sends(out.udp(CLIENT, 53)).passed(Outcome::AllowedNew);
        world.datapath.set_overlay_device(Some(link)).unwrap();
        world.a_sends(out.udp(CLIENT, 53)).left(Outcome::AllowedEstablished);
        world.datapath.set_overlay_device(None).unwrap();
        reached(world, family, tunnel_way::STACK, link);
        world.a_sends(out.udp(CLIENT, 53)).passed(Outcome::AllowedEstablished);
    });
}
