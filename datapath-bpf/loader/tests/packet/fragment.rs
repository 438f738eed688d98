//! Fragments: the later follow the verdict of the first.

use palisade_datapath_core::abi::{Direction, Outcome, RowVerdict};
use palisade_test_support::packet::{extension, protocol, tcp, tcp_flag, udp};

use crate::world::{Family, IDENTITY_A, each_family, outside, world};

#[test]
fn later_fragments_follow_their_first() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let whole = udp(40000, 53, &[7; 56]);
        // The length in the header is that of the whole datagram.
        world.a_sends(way.fragment(9, 0, true, protocol::UDP, &whole[..32])).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(way.fragment(9, 32, true, protocol::UDP, &whole[32..48])).redirected_to(world.b, Outcome::AllowedEstablished);
        world.a_sends(way.fragment(9, 48, false, protocol::UDP, &whole[48..])).redirected_to(world.b, Outcome::AllowedEstablished);
        assert_eq!(world.connections(family).len(), 1);
    });
}

#[test]
fn fragments_of_a_reply_follow_the_entry() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        world.a_sends(world.a_to_b(family).udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        let way = world.b_to_a(family);
        world.b_sends(way.fragment(9, 0, true, protocol::UDP, &udp(53, 40000, &[7; 24]))).redirected_to(world.a, Outcome::AllowedReply);
        world.b_sends(way.fragment(9, 32, false, protocol::UDP, &[7; 8])).redirected_to(world.a, Outcome::AllowedReply);
    });
}

#[test]
fn a_later_fragment_without_a_first_is_unknown() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        world.a_sends(way.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(way.fragment(9, 32, false, protocol::UDP, &[7; 8])).dropped(Outcome::FragmentUnknown);
        world
            .a_sends(way.fragment(10, 0, true, protocol::UDP, &udp(40000, 53, &[7; 24])))
            .redirected_to(world.b, Outcome::AllowedEstablished);
        world.a_sends(way.fragment(11, 32, false, protocol::UDP, &[7; 8])).dropped_silently(Outcome::FragmentUnknown);
        world.a_sends(way.fragment(10, 32, false, protocol::TCP, &[7; 8])).dropped(Outcome::FragmentUnknown);
    });
}

#[test]
fn later_fragments_of_a_first_that_was_denied_are_unknown() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        let way = world.a_to_b(family);
        world.a_sends(way.fragment(9, 0, true, protocol::UDP, &udp(40000, 53, &[7; 24]))).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(way.fragment(9, 32, false, protocol::UDP, &[7; 8])).dropped(Outcome::FragmentUnknown);
    });
}

#[test]
fn later_fragments_are_judged_again_after_a_change() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        world.a_sends(way.fragment(9, 0, true, protocol::UDP, &udp(40000, 53, &[7; 24]))).redirected_to(world.b, Outcome::AllowedNew);
        world.isolate(world.b, Direction::Ingress, 42);
        world.datapath.bump_epoch().unwrap();
        world.a_sends(way.fragment(9, 32, true, protocol::UDP, &[7; 8])).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(way.fragment(9, 40, false, protocol::UDP, &[7; 8])).dropped_silently(Outcome::IngressDefaultDenied);
    });
}

/// Who reassembles them knows what to make of those that overlap. Ports stand in the first eight bytes, which no later fragment reaches; and
/// another first one is judged by its own.
#[test]
fn fragments_that_overlap_go_on_as_they_are_and_show_no_port_that_was_not_judged() {
    each_family(|world, family| {
        world.row(world.b, Direction::Ingress, IDENTITY_A, 5, RowVerdict::DefaultDeny, 60);
        world.port(5, protocol::UDP, 53, 16, RowVerdict::Allow, 61);
        let way = world.a_to_b(family);
        let first = |port| way.fragment(9, 0, true, protocol::UDP, &udp(40000, port, &[7; 24]));
        world.a_sends(first(53)).redirected_to(world.b, Outcome::AllowedNew);
        for (offset, more) in [(8, true), (8, true), (24, false), (16, false)] {
            world.a_sends(way.fragment(9, offset, more, protocol::UDP, &[1; 16])).redirected_to(world.b, Outcome::AllowedEstablished);
        }
        let event = world.a_sends(first(22)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!((event.destination_port, event.ingress_reason), (22_u16.to_be_bytes(), 60));
        // What was dropped is nobody's first: the others are still of the one that passed.
        world.a_sends(way.fragment(9, 32, false, protocol::UDP, &[1; 8])).redirected_to(world.b, Outcome::AllowedEstablished);
        assert_eq!(world.connections(family).len(), 1);
    });
}

#[test]
fn the_record_of_a_first_fragment_lives_a_minute() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        world.a_sends(way.fragment(9, 0, true, protocol::TCP, &tcp(40000, 80, tcp_flag::SYN))).redirected_to(world.b, Outcome::AllowedNew);
        world.let_fragments_pass(family, 58);
        world.a_sends(way.fragment(9, 24, true, protocol::TCP, &[7; 8])).redirected_to(world.b, Outcome::AllowedEstablished);
        world.let_fragments_pass(family, 3);
        world.a_sends(way.fragment(9, 32, false, protocol::TCP, &[7; 8])).dropped(Outcome::FragmentUnknown);
    });
}

#[test]
fn a_first_fragment_too_short_for_its_header_is_dropped() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let icmp = way.icmp_protocol();
        for (protocol, length) in [(protocol::TCP, 8), (protocol::TCP, 16), (protocol::UDP, 0), (protocol::SCTP, 8), (icmp, 0)] {
            let bytes = &tcp(40000, 80, tcp_flag::SYN)[..length];
            world.a_sends(way.fragment(9, 0, true, protocol, bytes)).dropped_silently(Outcome::FragmentShort);
        }
    });
}

#[test]
fn a_large_echo_passes_in_fragments() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let (kind, icmp) = (if family == Family::V4 { 8 } else { 128 }, way.icmp_protocol());
        let first = [&[kind, 0, 0, 0, 0, 7, 0, 1][..], &[7; 24]].concat();
        world.a_sends(way.fragment(9, 0, true, icmp, &first)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(way.fragment(9, 32, false, icmp, &[7; 8])).redirected_to(world.b, Outcome::AllowedEstablished);
    });
}

#[test]
fn fragments_from_the_network_follow_their_first_too() {
    each_family(|world, family| {
        let way = world.b.from(outside(family));
        world.network_sends(way.fragment(9, 32, false, protocol::UDP, &[7; 8])).dropped(Outcome::FragmentUnknown);
        world.network_sends(way.fragment(9, 0, true, protocol::UDP, &udp(40000, 53, &[7; 24]))).passed(Outcome::AllowedNew);
        world.network_sends(way.fragment(9, 32, false, protocol::UDP, &[7; 8])).passed(Outcome::AllowedEstablished);
    });
}

#[test]
fn a_first_fragment_of_ipv6_may_hide_its_ports_behind_options_and_a_later_still_finds_it() {
    world(|world| {
        let way = world.a_to_b(Family::V6);
        let header = |offset, more| extension::fragment(extension::DESTINATION_OPTIONS, 9, offset, more);
        let first = [&header(0, true)[..], &extension::options(protocol::UDP), &udp(40000, 53, &[7; 24])].concat();
        world.a_sends(way.packet(extension::FRAGMENT, &first)).redirected_to(world.b, Outcome::AllowedNew);
        let later = [&header(40, false)[..], &[7; 8]].concat();
        world.a_sends(way.packet(extension::FRAGMENT, &later)).redirected_to(world.b, Outcome::AllowedEstablished);
    });
}
