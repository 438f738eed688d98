//! Clients outside the cluster: to which backend their packets go before the stack sees them, and as whom they are answered.

use std::net::IpAddr;

use palisade_datapath_core::abi::{
    Backend, Direction, MARK_MASQUERADE, Outcome, RowVerdict, ServiceEntry, TABLE_NONE, backend_flag, outside_leg, service_flag,
};
use palisade_test_support::packet::{self, Way, protocol, sctp_chunk, set, summed, tcp_flag::*};

use crate::seen::Crossed;
use crate::service::{ALIVE, CLIENT, SERVICE, TABLE, TARGET, backend, ends, packet_of, packets, table, vip};
use crate::world::{DROP, Family, IDENTITY_OUTSIDE, PASS, REDIRECT, World, each_family, node, outside};

pub const PORT: u16 = 30_080;

/// A pod on another node.
pub fn remote(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 1, 7, 7].into(),
        Family::V6 => "fd01:7::7".parse().unwrap(),
    }
}

/// A node port at the node's address, with what stands behind it for clients outside; pods are refused.
pub fn node_port(world: &mut World, family: Family, protocol: u8, entry: ServiceEntry) {
    let flags = entry.flags | service_flag::OUTSIDE;
    let entry = ServiceEntry { service: SERVICE, bits: 6, outside_bits: 6, flags, ..entry };
    world.datapath.services.insert((node(family), PORT, protocol), &entry).unwrap();
}

/// A node port with one backend.
pub fn serve(world: &mut World, family: Family, protocol: u8, to: (IpAddr, u16)) {
    backend(world, 1, to, ALIVE);
    table(world, TABLE, &[1]);
    node_port(world, family, protocol, ServiceEntry { outside_table: TABLE, ..ServiceEntry::default() });
}

/// The node port of pod B.
pub fn serve_b(world: &mut World, family: Family, protocol: u8) {
    serve(world, family, protocol, (world.b.address(family), TARGET));
}

/// From the client to the node.
pub fn asking(world: &World, family: Family) -> Way {
    world.arriving(outside(family), node(family))
}

/// From a backend to the client.
pub fn answering(world: &World, backend: IpAddr, family: Family) -> Way {
    world.leaving(backend, outside(family))
}

/// That a packet goes on like this, with every checksum right.
#[track_caller]
pub fn became(crossed: &Crossed, mark: u32, source: (IpAddr, u16), destination: (IpAddr, u16)) {
    crossed.passed(mark);
    assert_eq!(ends(&crossed.packet), [source, destination]);
}

#[test]
fn a_client_outside_reaches_a_pod_under_its_own_address_and_is_answered_by_the_frontend() {
    each_family(|world, family| {
        let (client, b, node) = (outside(family), world.b.address(family), node(family));
        for (protocol, request) in packets(asking(world, family), CLIENT, PORT) {
            serve_b(world, family, protocol);
            became(&world.arrives(request.clone()), 0, (client, CLIENT), (b, TARGET));
            // The pod's ingress policy is asked about the client itself.
            let at_pod = world.b.from(client);
            let arrived = |way: Way| packet_of(protocol, way, CLIENT, TARGET);
            world.isolate(world.b, Direction::Ingress, 42);
            world.rule(world.b, Direction::Ingress, IDENTITY_OUTSIDE, RowVerdict::DefaultDeny, 42);
            world.network_sends(arrived(at_pod)).dropped_silently(Outcome::IngressDefaultDenied);
            world.rule(world.b, Direction::Ingress, IDENTITY_OUTSIDE, RowVerdict::Allow, 0);
            world.network_sends(arrived(at_pod)).passed(Outcome::AllowedNew);
            let reply = |way: Way| match protocol {
                protocol::TCP => way.tcp(TARGET, CLIENT, SYN | ACK),
                protocol::UDP => way.udp(TARGET, CLIENT),
                _ => way.sctp(TARGET, CLIENT, sctp_chunk::INIT_ACK),
            };
            world.b_sends(summed(reply(world.b.to(client)))).passed(Outcome::AllowedReply);
            became(&world.leaves(summed(reply(answering(world, b, family)))), 0, (node, PORT), (client, CLIENT));
            if protocol == protocol::TCP {
                let next = world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, ACK)));
                became(&next, 0, (client, CLIENT), (b, TARGET));
            }
        }
    });
}

#[test]
fn a_connection_to_a_backend_itself_is_answered_by_it_though_one_from_that_port_went_by_a_frontend() {
    each_family(|world, family| {
        let (client, b) = (outside(family), world.b.address(family));
        for (protocol, [open, accept, end, goes_on]) in [
            (protocol::TCP, [SYN, SYN | ACK, RST | ACK, ACK]),
            (protocol::SCTP, [sctp_chunk::INIT, sctp_chunk::INIT_ACK, sctp_chunk::ABORT, sctp_chunk::DATA]),
        ] {
            serve_b(world, family, protocol);
            let of = |way: Way, source: u16, destination: u16, kind: u8| {
                summed(if protocol == protocol::TCP { way.tcp(source, destination, kind) } else { way.sctp(source, destination, kind) })
            };
            let by_frontend = |world: &mut World| drop(world.arrives(of(asking(world, family), CLIENT, PORT, open)));
            let to_itself = |world: &mut World| world.arrives(of(world.arriving(client, b), CLIENT, TARGET, open)).untouched();
            let answer = |world: &mut World, kind: u8| world.leaves(of(answering(world, b, family), TARGET, CLIENT, kind));
            // As one that a policy has refused: nobody has answered.
            for is_over in [false, true] {
                by_frontend(world);
                if is_over {
                    let _ = answer(world, accept);
                    let _ = answer(world, end);
                }
                to_itself(world);
                answer(world, accept).untouched();
            }
            // One that goes on stays what it is.
            by_frontend(world);
            became(&answer(world, accept), 0, (node(family), PORT), (client, CLIENT));
            to_itself(world);
            became(&answer(world, goes_on), 0, (node(family), PORT), (client, CLIENT));
        }
    });
}

#[test]
fn what_goes_to_a_backend_elsewhere_is_marked_for_masquerading_each_time() {
    each_family(|world, family| {
        let (client, remote, node) = (outside(family), remote(family), node(family));
        for (protocol, request) in packets(asking(world, family), CLIENT, PORT) {
            serve(world, family, protocol, (remote, TARGET));
            for _ in 0..2 {
                became(&world.arrives(request.clone()), MARK_MASQUERADE, (client, CLIENT), (remote, TARGET));
            }
            // It leaves by the same interface, under the node's own address and another port.
            let masqueraded = packets(world.leaving(node, remote), 61_000, TARGET).map(|(_, frame)| frame);
            for frame in masqueraded {
                world.leaves(frame).untouched();
            }
            // The answer comes to that port; what connection tracking makes of it leaves as the frontend's.
            world.arrives(summed(world.arriving(remote, node).tcp(TARGET, 61_000, SYN | ACK))).untouched();
            let answer = match protocol {
                protocol::TCP => answering(world, remote, family).tcp(TARGET, CLIENT, SYN | ACK),
                protocol::UDP => answering(world, remote, family).udp(TARGET, CLIENT),
                _ => answering(world, remote, family).sctp(TARGET, CLIENT, sctp_chunk::INIT_ACK),
            };
            became(&world.leaves(summed(answer)), 0, (node, PORT), (client, CLIENT));
        }
    });
}

#[test]
fn what_goes_to_no_frontend_that_is_open_to_the_outside_passes_untouched() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        // A cluster IP is not for the outside.
        let inside =
            ServiceEntry { service: SERVICE, table: TABLE, outside_table: TABLE, bits: 6, outside_bits: 6, ..ServiceEntry::default() };
        world.datapath.services.insert((vip(family), PORT, protocol::TCP), &inside).unwrap();
        let way = asking(world, family);
        let syn = summed(way.tcp(CLIENT, PORT, SYN));
        let other_mac = set(syn.clone(), 0, &[2, 9, 9, 9, 9, 9]);
        let broadcast = set(syn.clone(), 0, &[0xff; 6]);
        for frame in [
            summed(world.arriving(outside(family), vip(family)).tcp(CLIENT, PORT, SYN)),
            summed(way.tcp(CLIENT, PORT + 1, SYN)),
            summed(way.udp(CLIENT, PORT)),
            summed(way.echo_request(PORT)),
            way.packet(protocol::GRE, &[0; 16]),
            // For another host, whose frames this one hears; for all.
            other_mac,
            broadcast,
            // Neither IP, nor what it says.
            set(syn.clone(), 12, &[8, 6]),
            set(syn.clone(), 14, &[0xf5]),
            syn[..way.transport() + 12].to_vec(),
            way.fragment(9, 32, false, protocol::TCP, &[7; 8]),
            way.fragment(9, 0, true, protocol::TCP, &packet::tcp(CLIENT, PORT, SYN)[..8]),
            // Nobody opens a connection like that, and nobody knows of one.
            summed(way.tcp(CLIENT, PORT, RST)),
        ] {
            world.arrives(frame).untouched();
        }
        assert_eq!(world.outside_legs(family), 0);
        became(&world.arrives(syn), 0, (outside(family), CLIENT), (world.b.address(family), TARGET));
    });
}

#[test]
fn clients_outside_and_pods_have_their_own_backends() {
    each_family(|world, family| {
        let to_b = (world.b.address(family), TARGET);
        backend(world, 1, to_b, ALIVE);
        backend(world, 2, (remote(family), TARGET), ALIVE);
        table(world, TABLE, &[1]);
        table(world, TABLE + 1, &[2]);
        node_port(world, family, protocol::UDP, ServiceEntry { table: TABLE + 1, outside_table: TABLE, ..ServiceEntry::default() });
        became(&world.arrives(summed(asking(world, family).udp(CLIENT, PORT))), 0, (outside(family), CLIENT), to_b);
        let seen = world.a_sends(summed(world.a.to(node(family)).udp(CLIENT, PORT)));
        crate::service::became(&seen, PASS, Outcome::AllowedNew, (world.a.address(family), CLIENT), (remote(family), TARGET));
    });
}

#[test]
fn a_frontend_without_backends_refuses_out_of_the_same_interface() {
    each_family(|world, family| {
        for (protocol, request) in packets(asking(world, family), CLIENT, PORT) {
            node_port(world, family, protocol, ServiceEntry { table: TABLE, outside_table: TABLE_NONE, ..ServiceEntry::default() });
            let crossed = world.arrives(request.clone());
            assert_eq!((crossed.action, crossed.outcome), (REDIRECT, Some(Outcome::ServiceRefused)));
            let [from, to] = ends(&crossed.packet);
            assert_eq!((from.0, to.0), (node(family), outside(family)));
            assert_eq!((&crossed.packet[..6], &crossed.packet[6..12]), (&request[6..12], &request[..6]), "back to where it came from");
            let transport = asking(world, family).transport();
            if protocol == protocol::TCP {
                assert_eq!((from.1, to.1, crossed.packet[transport + 13]), (PORT, CLIENT, RST | ACK));
                continue;
            }
            let expected = if family == Family::V4 { [3, 3] } else { [1, 4] };
            assert_eq!(crossed.packet[transport..transport + 2], expected, "a port at which nobody listens");
            let quoted = &crossed.packet[transport + 8..];
            assert!(quoted.len() >= transport - 14 + 8 && request[14..].starts_with(quoted), "{quoted:02x?}");
        }
        assert_eq!(world.outside_legs(family), 0);
    });
}

#[test]
fn nobody_is_told_where_the_policy_is_local_or_the_source_is_no_host() {
    each_family(|world, family| {
        let none = ServiceEntry { outside_table: TABLE_NONE, ..ServiceEntry::default() };
        node_port(world, family, protocol::TCP, ServiceEntry { flags: service_flag::OUTSIDE_DROP, ..none });
        world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, SYN))).dropped(Outcome::ServiceDropped);
        node_port(world, family, protocol::UDP, none);
        let sources: [&str; 3] = if family == Family::V4 { ["127.0.0.1", "224.0.0.1", "0.0.0.0"] } else { ["::1", "ff02::1", "::"] };
        for source in sources {
            let way = world.arriving(source.parse().unwrap(), node(family));
            world.arrives(summed(way.udp(CLIENT, PORT))).dropped(Outcome::ServiceRefused);
        }
        // The flag that says so of pods says nothing of these.
        node_port(world, family, protocol::TCP, ServiceEntry { flags: service_flag::DROP, ..none });
        assert_eq!(world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, SYN))).action, REDIRECT);
    });
}

#[test]
fn a_pod_s_address_does_not_come_from_outside() {
    each_family(|world, family| {
        serve(world, family, protocol::UDP, (remote(family), TARGET));
        let forged = world.arriving(world.a.address(family), node(family));
        world.arrives(summed(forged.udp(CLIENT, PORT))).dropped(Outcome::SourceAddressForeign);
        assert_eq!(world.outside_legs(family), 0);
    });
}

#[test]
fn rows_that_are_not_all_there_are_closed() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        world.datapath.backends.remove(&1).unwrap();
        world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, SYN))).dropped(Outcome::ServiceMissing);
    });
}

/// Two backends, pod B and one elsewhere, each with a table of its own; the node port goes to pod B's.
pub fn two(world: &mut World, family: Family, protocol: u8) {
    serve_b(world, family, protocol);
    backend(world, 2, (remote(family), TARGET), ALIVE);
    table(world, TABLE + 1, &[2]);
}

/// The node port goes to the other backend.
pub fn flip(world: &mut World, family: Family, protocol: u8) {
    node_port(world, family, protocol, ServiceEntry { outside_table: TABLE + 1, ..ServiceEntry::default() });
}

#[test]
fn an_established_flow_stays_with_its_backend_and_a_new_one_goes_to_another() {
    each_family(|world, family| {
        let client = outside(family);
        let (to_b, to_remote) = ((world.b.address(family), TARGET), (remote(family), TARGET));
        for protocol in [protocol::TCP, protocol::UDP] {
            two(world, family, protocol);
            let way = asking(world, family);
            let packet = |port: u16, flags: u8| match protocol {
                protocol::TCP => summed(way.tcp(port, PORT, flags)),
                _ => summed(way.udp(port, PORT)),
            };
            became(&world.arrives(packet(CLIENT, SYN)), 0, (client, CLIENT), to_b);
            flip(world, family, protocol);
            backend(world, 1, to_b, backend_flag::SERVING);
            became(&world.arrives(packet(CLIENT, ACK)), 0, (client, CLIENT), to_b);
            became(&world.arrives(packet(CLIENT + 1, SYN)), MARK_MASQUERADE, (client, CLIENT + 1), to_remote);
            // A connection outlives its backend's readiness, datagrams leave it at once.
            backend(world, 1, to_b, 0);
            if protocol == protocol::TCP {
                became(&world.arrives(packet(CLIENT, ACK)), 0, (client, CLIENT), to_b);
                world.datapath.backends.remove(&1).unwrap();
            }
            became(&world.arrives(packet(CLIENT, ACK)), MARK_MASQUERADE, (client, CLIENT), to_remote);
        }
    });
}

#[test]
fn datagrams_leave_a_backend_that_is_removed_at_once() {
    each_family(|world, family| {
        let client = outside(family);
        two(world, family, protocol::UDP);
        let datagram = summed(asking(world, family).udp(CLIENT, PORT));
        became(&world.arrives(datagram.clone()), 0, (client, CLIENT), (world.b.address(family), TARGET));
        flip(world, family, protocol::UDP);
        world.datapath.backends.remove(&1).unwrap();
        for _ in 0..2 {
            became(&world.arrives(datagram.clone()), MARK_MASQUERADE, (client, CLIENT), (remote(family), TARGET));
        }
    });
}

#[test]
fn a_flow_from_outside_leaves_its_backend_once_its_frontend_is_another_service_s() {
    each_family(|world, family| {
        let client = outside(family);
        for protocol in [protocol::TCP, protocol::UDP] {
            two(world, family, protocol);
            let way = asking(world, family);
            let packet = |flags: u8| match protocol {
                protocol::TCP => summed(way.tcp(CLIENT, PORT, flags)),
                _ => summed(way.udp(CLIENT, PORT)),
            };
            for flags in [SYN, ACK] {
                became(&world.arrives(packet(flags)), 0, (client, CLIENT), (world.b.address(family), TARGET));
            }
            // The service lives on, at another address, and so does its backend.
            let others = Backend { service: SERVICE + 1, ..world.datapath.backends.get(&2).unwrap().unwrap() };
            world.datapath.backends.insert(&2, &others).unwrap();
            let entry = ServiceEntry {
                service: SERVICE + 1,
                outside_table: TABLE + 1,
                bits: 6,
                outside_bits: 6,
                flags: service_flag::OUTSIDE,
                ..ServiceEntry::default()
            };
            world.datapath.services.insert((node(family), PORT, protocol), &entry).unwrap();
            became(&world.arrives(packet(ACK)), MARK_MASQUERADE, (client, CLIENT), (remote(family), TARGET));
        }
    });
}

#[test]
fn a_client_with_affinity_stays_with_its_backend_until_its_time_is_over() {
    each_family(|world, family| {
        let (to_b, to_remote) = ((world.b.address(family), TARGET), (remote(family), TARGET));
        let with = |outside_table| ServiceEntry { outside_table, affinity: 100, ..ServiceEntry::default() };
        for (index, protocol) in [protocol::TCP, protocol::UDP, protocol::SCTP].into_iter().enumerate() {
            let goes = |world: &mut World, port: u16| {
                let (_, frame) = packets(asking(world, family), port, PORT)[index].clone();
                ends(&world.arrives(frame).packet)[1]
            };
            two(world, family, protocol);
            node_port(world, family, protocol, with(TABLE));
            assert_eq!(goes(world, 1), to_b);
            node_port(world, family, protocol, with(TABLE + 1));
            world.let_affinity_pass(80);
            assert_eq!(goes(world, 2), to_b);
            world.let_affinity_pass(80);
            assert_eq!(goes(world, 3), to_b);
            world.let_affinity_pass(101);
            assert_eq!(goes(world, 4), to_remote);
            // One that clients outside may not reach any more loses them, though pods still go there.
            world.let_affinity_pass(101);
            node_port(world, family, protocol, with(TABLE));
            assert_eq!(goes(world, 5), to_b);
            backend(world, 1, to_b, backend_flag::CHOSEN | backend_flag::SERVING);
            node_port(world, family, protocol, with(TABLE + 1));
            assert_eq!(goes(world, 6), to_remote);
            // The next protocol's port is the same service's.
            world.let_affinity_pass(101);
        }
    });
}

#[test]
fn checksums_that_are_not_there_stay_away() {
    each_family(|world, family| {
        serve_b(world, family, protocol::SCTP);
        let way = asking(world, family);
        let crossed = world.arrives(way.sctp(CLIENT, PORT, sctp_chunk::INIT));
        crossed.passed(0);
        let at = way.transport();
        assert_eq!((&crossed.packet[at + 2..at + 4], &crossed.packet[at + 8..at + 12]), (&TARGET.to_be_bytes()[..], &[0; 4][..]));
        if family == Family::V4 {
            serve_b(world, family, protocol::UDP);
            let crossed = world.arrives(way.udp(CLIENT, PORT));
            became(&crossed, 0, (outside(family), CLIENT), (world.b.address(family), TARGET));
            assert_eq!(crossed.packet[at + 6..at + 8], [0, 0]);
        }
    });
}

#[test]
fn fragments_of_a_datagram_all_go_to_one_backend_and_back() {
    each_family(|world, family| {
        serve_b(world, family, protocol::UDP);
        let (client, b) = (outside(family), world.b.address(family));
        // The checksum is over the whole datagram.
        let halves = |way: Way, from: u16, to: u16| {
            let whole = summed(way.packet(protocol::UDP, &packet::udp(from, to, &[7; 56])));
            let datagram = &whole[way.transport()..];
            [(0, true, &datagram[..32]), (32, false, &datagram[32..])]
                .map(|(at, more, part)| way.fragment(9, at, more, protocol::UDP, part))
        };
        let rejoined = |way: Way, frames: [Vec<u8>; 2]| {
            let header = if family == Family::V4 { 34 } else { 62 };
            let payload: Vec<u8> = frames.iter().flat_map(|frame| frame[header..].to_vec()).collect();
            ends(&way.packet(protocol::UDP, &payload))
        };
        let addresses = |frame: &[u8]| match family {
            Family::V4 => frame[26..34].to_vec(),
            Family::V6 => frame[22..54].to_vec(),
        };
        let sent = halves(asking(world, family), CLIENT, PORT).map(|frame| world.arrives(frame).packet);
        let way = world.arriving(client, b);
        assert!(sent.iter().all(|frame| addresses(frame) == addresses(&way.udp(1, 1))), "both go to the backend");
        assert_eq!(rejoined(way, sent), [(client, CLIENT), (b, TARGET)]);
        let back = halves(answering(world, b, family), TARGET, CLIENT).map(|frame| world.leaves(frame).packet);
        let way = world.leaving(node(family), client);
        assert!(back.iter().all(|frame| addresses(frame) == addresses(&way.udp(1, 1))), "both come from the frontend");
        assert_eq!(rejoined(way, back), [(node(family), PORT), (client, CLIENT)]);
        // A later fragment without a first.
        world.let_fragments_pass(family, 61);
        let [_, later] = halves(asking(world, family), CLIENT, PORT);
        world.arrives(later).untouched();
    });
}

#[test]
fn a_backend_under_the_node_s_own_address_and_port_of_the_frontend_is_reached_and_answers() {
    each_family(|world, family| {
        serve(world, family, protocol::TCP, (node(family), PORT));
        let syn = summed(asking(world, family).tcp(CLIENT, PORT, SYN));
        // The mark means nothing to what the node takes in itself.
        became(&world.arrives(syn), MARK_MASQUERADE, (outside(family), CLIENT), (node(family), PORT));
        let reply = summed(answering(world, node(family), family).tcp(PORT, CLIENT, SYN | ACK));
        became(&world.leaves(reply), 0, (node(family), PORT), (outside(family), CLIENT));
        assert_eq!(world.outside_legs(family), 2);
    });
}

#[test]
fn a_row_of_one_leg_that_was_evicted_comes_back() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let (client, b) = ((outside(family), CLIENT), (world.b.address(family), TARGET));
        let (ask, answer) = (asking(world, family), answering(world, b.0, family));
        let _ = world.arrives(summed(ask.tcp(CLIENT, PORT, SYN)));
        world.forget_leg(family, outside_leg::FRONTEND);
        became(&world.arrives(summed(ask.tcp(CLIENT, PORT, ACK))), 0, client, b);
        world.forget_leg(family, outside_leg::BACKEND);
        world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))).untouched();
        world.let_outside_pass(family, 1);
        became(&world.arrives(summed(ask.tcp(CLIENT, PORT, ACK))), 0, client, b);
        became(&world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))), 0, (node(family), PORT), client);
    });
}

#[test]
fn a_reset_by_the_service_s_removal_is_left_to_the_node() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let ask = asking(world, family);
        let _ = world.arrives(summed(ask.tcp(CLIENT, PORT, SYN)));
        world.datapath.services.remove((node(family), PORT, protocol::TCP)).unwrap();
        world.arrives(summed(ask.tcp(CLIENT, PORT, ACK))).untouched();
        assert_ne!(world.arrives(summed(ask.tcp(CLIENT, PORT, SYN))).action, DROP);
    });
}
