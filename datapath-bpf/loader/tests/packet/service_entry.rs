//! What the connection table keeps of flows through services, and what becomes of packets of the node itself.

use std::net::IpAddr;

use palisade_datapath_core::abi::{Backend, Direction, Outcome, ServiceEntry, connection_flag as flag};
use palisade_test_support::packet::{self, protocol, sctp_chunk, summed, tcp_flag::*};

use crate::service::{
    ALIVE, CLIENT, FRONTEND, SERVICE, TABLE, TARGET, backend, became, flip, quote, serve, serve_b, table, to_vip, two, vip,
};
use crate::world::{Family, PASS, REDIRECT, World, each_family, node, outside, wide};

#[test]
fn an_answer_of_the_node_itself_comes_from_the_frontend_also_after_a_change_of_policy() {
    each_family(|world, family| {
        serve(world, family, protocol::TCP, (node(family), TARGET));
        let (b, vip) = (world.b.address(family), vip(family));
        let _ = world.b_sends(summed(world.b.to(vip).tcp(CLIENT, FRONTEND, SYN)));
        world.datapath.bump_epoch().unwrap();
        let seen = world.host_sends(summed(world.b.from(node(family)).tcp(TARGET, CLIENT, ACK | PSH)));
        became(&seen, PASS, Outcome::AllowedReply, (vip, FRONTEND), (b, CLIENT));
    });
}

#[test]
fn an_error_that_the_node_itself_makes_quotes_what_the_client_sent() {
    each_family(|world, family| {
        serve(world, family, protocol::UDP, (outside(family), TARGET));
        let (b, vip) = (world.b.address(family), vip(family));
        let _ = world.b_sends(summed(world.b.to(vip).udp(CLIENT, FRONTEND)));
        let quoted = summed(world.b.to(outside(family)).udp(CLIENT, TARGET))[14..].to_vec();
        let seen = world.host_sends(summed(world.b.from(node(family)).unreachable(&quoted)));
        became(&seen, PASS, Outcome::AllowedRelated, (node(family), 0), (b, 0));
        assert_eq!(quote(&seen.packet, family), [(b, CLIENT), (vip, FRONTEND)]);
        // About a flow that goes through no service it passes as it is.
        let quoted = summed(world.b.to(outside(family)).udp(CLIENT + 1, TARGET))[14..].to_vec();
        world.host_sends(summed(world.b.from(node(family)).unreachable(&quoted))).passed(Outcome::AllowedRelated);
    });
}

#[test]
fn fragments_of_an_answer_of_the_node_all_come_from_the_frontend() {
    crate::world::world(|world| {
        let family = Family::V4;
        serve(world, family, protocol::UDP, (node(family), TARGET));
        let _ = world.b_sends(summed(world.b.to(vip(family)).udp(CLIENT, FRONTEND)));
        let way = world.b.from(node(family));
        let datagram = packet::udp(TARGET, CLIENT, &[7; 56]);
        for (at, more, part) in [(0, true, &datagram[..32]), (32, false, &datagram[32..])] {
            let seen = world.host_sends(way.fragment(9, at, more, protocol::UDP, part));
            assert_eq!(seen.packet[26..30], [10, 96, 0, 10], "{at}");
        }
    });
}

#[test]
fn two_clients_that_serve_each_other_from_the_same_ports_each_reach_the_other() {
    each_family(|world, family| {
        const PORT: u16 = 5_060;
        let (a, b) = (world.a.address(family), world.b.address(family));
        serve(world, family, protocol::UDP, (b, PORT));
        let other: IpAddr = if family == Family::V4 { [10, 96, 0, 11].into() } else { "fd96::11".parse().unwrap() };
        backend(world, 2, (a, PORT), ALIVE);
        table(world, TABLE + 1, &[2]);
        let entry = ServiceEntry { service: SERVICE, table: TABLE + 1, bits: 6, ..ServiceEntry::default() };
        world.datapath.services.insert((other, PORT, protocol::UDP), &entry).unwrap();
        for _ in 0..2 {
            let _ = world.a_sends(summed(to_vip(world, family).udp(PORT, FRONTEND)));
            let seen = world.b_sends(summed(world.b.to(other).udp(PORT, PORT)));
            became(&seen, REDIRECT, Outcome::AllowedNew, (b, PORT), (a, PORT));
            let seen = world.a_sends(summed(world.a_to_b(family).udp(PORT, PORT)));
            became(&seen, REDIRECT, Outcome::AllowedReply, (other, PORT), (b, PORT));
        }
    });
}

#[test]
fn a_client_that_goes_to_the_backend_itself_from_the_same_port_gets_its_answers_from_there() {
    each_family(|world, family| {
        serve_b(world, family, protocol::UDP);
        let (a, b) = (world.a.address(family), world.b.address(family));
        let _ = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        let seen = world.a_sends(summed(world.a_to_b(family).udp(CLIENT, TARGET)));
        became(&seen, REDIRECT, Outcome::AllowedNew, (a, CLIENT), (b, TARGET));
        let seen = world.b_sends(summed(world.b_to_a(family).udp(TARGET, CLIENT)));
        became(&seen, REDIRECT, Outcome::AllowedReply, (b, TARGET), (a, CLIENT));
        let seen = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        became(&seen, REDIRECT, Outcome::AllowedNew, (a, CLIENT), (b, TARGET));
        let seen = world.b_sends(summed(world.b_to_a(family).udp(TARGET, CLIENT)));
        became(&seen, REDIRECT, Outcome::AllowedReply, (vip(family), FRONTEND), (a, CLIENT));
    });
}

#[test]
fn what_is_denied_leaves_no_entry_of_its_way_through_a_frontend() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        world.isolate(world.a, Direction::Egress, 42);
        for port in 0..100 {
            let request = summed(to_vip(world, family).tcp(CLIENT + port, FRONTEND, SYN));
            world.a_sends(request).dropped_silently(Outcome::EgressDefaultDenied);
        }
        assert_eq!(world.connections(family).len(), 0);
    });
}

#[test]
fn of_the_two_entries_of_a_flow_either_that_was_evicted_comes_back_with_what_the_client_says_next() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        serve_b(world, family, protocol::TCP);
        world.isolate(world.b, Direction::Egress, 42);
        let way = to_vip(world, family);
        let (next, answer) = (summed(way.tcp(CLIENT, FRONTEND, ACK)), summed(world.b_to_a(family).tcp(TARGET, CLIENT, ACK)));
        let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
        // That of the way to the frontend: of answers the other one speaks.
        world.forget_entries(family, |flags| flags & flag::TO_FRONTEND != 0);
        became(&world.b_sends(answer.clone()), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        became(&world.a_sends(next.clone()), REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), (b, TARGET));
        assert_eq!(world.connections(family).len(), 2);
        // That of the flow itself: nobody knows whom the backend answers.
        world.forget_entries(family, |flags| flags & flag::TO_FRONTEND == 0);
        world.b_sends(answer.clone()).dropped_silently(Outcome::EgressDefaultDenied);
        became(&world.a_sends(next), REDIRECT, Outcome::AllowedNew, (a, CLIENT), (b, TARGET));
        became(&world.b_sends(answer), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
    });
}

#[test]
fn a_flow_whose_entry_to_the_frontend_was_evicted_goes_where_the_table_says_by_now() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        two(world, family, protocol::TCP);
        let way = to_vip(world, family);
        let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
        flip(world, family, protocol::TCP);
        world.forget_entries(family, |flags| flags & flag::TO_FRONTEND != 0);
        let seen = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, ACK)));
        became(&seen, PASS, Outcome::AllowedNew, (a, CLIENT), (outside(family), TARGET));
        // What the first backend has still to say comes from the frontend all the same.
        let seen = world.b_sends(summed(world.b_to_a(family).tcp(TARGET, CLIENT, ACK)));
        became(&seen, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
    });
}

#[test]
fn a_flow_that_is_older_than_its_service_goes_to_a_backend_once_it_is_judged_again() {
    each_family(|world, family| {
        let (a, b) = (world.a.address(family), world.b.address(family));
        world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND))).passed(Outcome::AllowedNew);
        serve_b(world, family, protocol::UDP);
        world.datapath.bump_epoch().unwrap();
        let seen = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        became(&seen, REDIRECT, Outcome::AllowedNew, (a, CLIENT), (b, TARGET));
    });
}

#[test]
fn a_flow_leaves_its_backend_once_its_frontend_is_another_service_s() {
    each_family(|world, family| {
        let (a, b) = (world.a.address(family), world.b.address(family));
        for protocol in [protocol::TCP, protocol::UDP] {
            let next = |world: &World| match protocol {
                protocol::TCP => summed(to_vip(world, family).tcp(CLIENT, FRONTEND, ACK)),
                _ => summed(to_vip(world, family).udp(CLIENT, FRONTEND)),
            };
            serve_b(world, family, protocol);
            let opening = if protocol == protocol::TCP { summed(to_vip(world, family).tcp(CLIENT, FRONTEND, SYN)) } else { next(world) };
            let _ = world.a_sends(opening);
            // Looked at again after any change, it stays.
            for outcome in [Outcome::AllowedNew, Outcome::AllowedEstablished] {
                if outcome == Outcome::AllowedNew {
                    world.datapath.bump_epoch().unwrap();
                }
                let packet = next(world);
                became(&world.a_sends(packet), REDIRECT, outcome, (a, CLIENT), (b, TARGET));
            }
            // The service lives on, at another address.
            let there = outside(family);
            let row = Backend { service: SERVICE + 1, ..world.datapath.backends.get(&1).unwrap().unwrap() };
            world.datapath.backends.insert(&2, &Backend { address: wide(there), ..row }).unwrap();
            table(world, TABLE + 1, &[2]);
            let entry = ServiceEntry { service: SERVICE + 1, table: TABLE + 1, bits: 6, ..ServiceEntry::default() };
            world.datapath.services.insert((vip(family), FRONTEND, protocol), &entry).unwrap();
            world.datapath.bump_epoch().unwrap();
            let packet = next(world);
            became(&world.a_sends(packet), PASS, Outcome::AllowedNew, (a, CLIENT), (there, TARGET));
        }
    });
}

#[test]
fn a_connection_to_a_frontend_that_is_gone_is_reset_and_nobody_else_gets_what_is_in_it() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        serve_b(world, family, protocol::UDP);
        let (a, vip) = (world.a.address(family), vip(family));
        let way = to_vip(world, family);
        let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
        let _ = world.a_sends(summed(way.udp(CLIENT, FRONTEND)));
        for protocol in [protocol::TCP, protocol::UDP] {
            world.datapath.services.remove((vip, FRONTEND, protocol)).unwrap();
        }
        world.datapath.bump_epoch().unwrap();
        let data = summed(way.tcp(CLIENT, FRONTEND, ACK | PSH));
        for _ in 0..2 {
            became(&world.a_sends(data.clone()), REDIRECT, Outcome::ServiceRefused, (vip, FRONTEND), (a, CLIENT));
        }
        // Whoever has the address now may be asked anew.
        world.a_sends(summed(way.udp(CLIENT, FRONTEND))).passed(Outcome::AllowedNew);
        world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN))).passed(Outcome::AllowedNew);
        world.a_sends(summed(way.tcp(CLIENT, FRONTEND, ACK))).passed(Outcome::AllowedEstablished);
    });
}

#[test]
fn a_checksum_of_sctp_that_a_device_has_still_to_make_stays_zero() {
    each_family(|world, family| {
        serve_b(world, family, protocol::SCTP);
        let seen = world.a_sends(to_vip(world, family).sctp(CLIENT, FRONTEND, sctp_chunk::INIT));
        let transport = to_vip(world, family).transport();
        assert_eq!(seen.packet[transport + 2..transport + 4], TARGET.to_be_bytes());
        assert_eq!(seen.packet[transport + 8..transport + 12], [0; 4]);
    });
}
