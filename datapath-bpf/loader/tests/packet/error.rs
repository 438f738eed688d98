//! ICMP errors: those about a flow of ours pass, others do not.

use palisade_datapath_core::abi::{Direction, Outcome};
use palisade_test_support::packet::{ETHERNET, Way, protocol, tcp, tcp_flag, udp};

use crate::world::{Family, World, each_family, outside};

/// The packet of a way as an error quotes it.
fn quote(way: Way, protocol: u8, payload: &[u8]) -> Vec<u8> {
    way.ip(protocol, payload)
}

/// A UDP flow from A to B, and the quote of its packet.
fn flow(world: &mut World, family: Family) -> Vec<u8> {
    world.a_sends(world.a_to_b(family).udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
    quote(world.a_to_b(family), protocol::UDP, &udp(40000, 53, b""))
}

#[test]
fn an_error_about_a_flow_passes_whatever_the_policies_say() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let quoted = flow(world, family);
        world.b_sends(world.b_to_a(family).unreachable(&quoted)).redirected_to(world.a, Outcome::AllowedRelated);
    });
}

#[test]
fn an_error_of_any_router_about_a_flow_passes() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        world.b_sends(world.b.to(outside(family)).tcp(40000, 443, tcp_flag::SYN)).passed(Outcome::AllowedNew);
        let quoted = quote(world.b.to(outside(family)), protocol::TCP, &tcp(40000, 443, tcp_flag::SYN));
        let router = match family {
            Family::V4 => "198.51.100.1",
            Family::V6 => "2001:db8:ffff::1",
        };
        world.network_sends(world.b.from(router.parse().unwrap()).unreachable(&quoted)).passed(Outcome::AllowedRelated);
    });
}

#[test]
fn every_kind_of_error_is_one() {
    each_family(|world, family| {
        let quoted = flow(world, family);
        let kinds: &[u8] = if family == Family::V4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        for kind in kinds {
            let error = world.b_to_a(family).icmp(*kind, 0, [0; 4], &quoted);
            world.b_sends(error).redirected_to(world.a, Outcome::AllowedRelated);
        }
    });
}

#[test]
fn an_error_that_quotes_no_flow_is_unrelated() {
    each_family(|world, family| {
        flow(world, family);
        let way = world.a_to_b(family);
        for (protocol, payload) in [
            (protocol::UDP, udp(40001, 53, b"")),
            (protocol::UDP, udp(40000, 54, b"")),
            (protocol::UDP, udp(53, 40000, b"")),
            (protocol::TCP, tcp(40000, 53, tcp_flag::SYN)),
        ] {
            let error = world.b_to_a(family).unreachable(&quote(way, protocol, &payload));
            world.b_sends(error).dropped_silently(Outcome::IcmpUnrelated);
        }
    });
}

#[test]
fn an_error_about_what_its_sender_sent_itself_is_unrelated() {
    each_family(|world, family| {
        flow(world, family);
        world.b_sends(world.b_to_a(family).udp(53, 40000)).redirected_to(world.a, Outcome::AllowedReply);
        let of_b = quote(world.b_to_a(family), protocol::UDP, &udp(53, 40000, b""));
        world.b_sends(world.b_to_a(family).unreachable(&of_b)).dropped(Outcome::IcmpUnrelated);
        // A true one: A complains of what B sent.
        world.a_sends(world.a_to_b(family).unreachable(&of_b)).redirected_to(world.b, Outcome::AllowedRelated);
    });
}

#[test]
fn an_error_about_a_flow_of_others_is_unrelated() {
    each_family(|world, family| {
        let quoted = flow(world, family);
        world.b_sends(world.b.to(outside(family)).unreachable(&quoted)).dropped(Outcome::IcmpUnrelated);
        world.network_sends(world.b.from(outside(family)).unreachable(&quoted)).dropped(Outcome::IcmpUnrelated);
    });
}

#[test]
fn an_error_about_a_flow_that_a_change_denies_is_unrelated() {
    each_family(|world, family| {
        let quoted = flow(world, family);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b_to_a(family).unreachable(&quoted)).redirected_to(world.a, Outcome::AllowedRelated);
        world.isolate(world.b, Direction::Ingress, 42);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b_to_a(family).unreachable(&quoted)).dropped(Outcome::IcmpUnrelated);
    });
}

#[test]
fn an_error_about_an_expired_flow_is_unrelated() {
    each_family(|world, family| {
        let quoted = flow(world, family);
        world.let_pass(family, 31);
        world.b_sends(world.b_to_a(family).unreachable(&quoted)).dropped(Outcome::IcmpUnrelated);
    });
}

#[test]
fn an_error_about_an_echo_finds_it_by_its_id() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let request = way.echo_request(7);
        world.a_sends(request.clone()).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).unreachable(&request[ETHERNET..])).redirected_to(world.a, Outcome::AllowedRelated);
        let other = way.echo_request(8);
        world.b_sends(world.b_to_a(family).unreachable(&other[ETHERNET..])).dropped(Outcome::IcmpUnrelated);
    });
}

#[test]
fn an_error_whose_quote_is_cut_short_is_truncated() {
    each_family(|world, family| {
        let quoted = flow(world, family);
        let full = quoted.len();
        for length in [0, 4, full - 9, full - 1] {
            let error = world.b_to_a(family).unreachable(&quoted[..length]);
            world.b_sends(error).dropped_silently(Outcome::Truncated);
        }
    });
}

#[test]
fn an_error_about_an_error_or_about_what_is_no_flow_is_unrelated() {
    each_family(|world, family| {
        let quoted = flow(world, family);
        let error = world.a_to_b(family).unreachable(&quoted);
        world.b_sends(world.b_to_a(family).unreachable(&error[ETHERNET..])).dropped(Outcome::IcmpUnrelated);
        let tunnel = quote(world.a_to_b(family), protocol::GRE, &[0; 16]);
        world.b_sends(world.b_to_a(family).unreachable(&tunnel)).dropped_silently(Outcome::IcmpUnrelated);
    });
}

#[test]
fn other_icmp_messages_are_unknown() {
    each_family(|world, family| {
        // Redirect, timestamp, address mask; of IPv6 the types of IPv4 and one that nobody uses.
        let kinds: &[u8] = if family == Family::V4 { &[5, 13, 17, 128] } else { &[0, 8, 5, 200] };
        for kind in kinds {
            let message = world.a_to_b(family).icmp(*kind, 0, [0; 4], &[0; 40]);
            world.a_sends(message).dropped_silently(Outcome::IcmpTypeUnknown);
        }
    });
}
