//! Services: to which backend a packet goes, and under which address its replies come back.
//!
//! What the programs write is read, and its checksums are verified, by a reader that is not ours.

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, Ipv6Slice, SlicedPacket, TransportSlice};
use palisade_datapath_core::abi::{
    Backend, CHUNK, ChunkKey, Direction, Outcome, RowVerdict, ServiceEntry, TABLE_NONE, backend_flag, service_flag,
};
use palisade_test_support::packet::{self, Way, protocol, sctp_chunk, set, summed, tcp_flag::*};

use crate::seen::Seen;
use crate::world::{DROP, Family, IDENTITY_B, PASS, REDIRECT, World, each_family, node, outside, wide};

pub const CLIENT: u16 = 40_000;
pub const FRONTEND: u16 = 80;
pub const TARGET: u16 = 8080;
pub const SERVICE: u32 = 500;
pub const TABLE: u32 = 600;
pub const ALIVE: u8 = backend_flag::CHOSEN | backend_flag::CHOSEN_OUTSIDE | backend_flag::SERVING;

pub fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 96, 0, 10].into(),
        Family::V6 => "fd96::10".parse().unwrap(),
    }
}

/// Writes a backend's row.
pub fn backend(world: &mut World, number: u32, (address, port): (IpAddr, u16), flags: u8) {
    let version = if address.is_ipv4() { 4 } else { 6 };
    let row = Backend { address: wide(address), service: SERVICE, port: port.to_be_bytes(), version, flags };
    world.datapath.backends.insert(&number, &row).unwrap();
}

/// Writes a table with these backends in turn.
pub fn table(world: &mut World, table: u32, numbers: &[u32]) {
    let slots: [u32; CHUNK] = std::array::from_fn(|slot| numbers[slot % numbers.len()]);
    world.datapath.chunks.insert(&ChunkKey { table, chunk: 0 }, &slots).unwrap();
}

/// Lets a table, or none, stand behind the frontend.
pub fn frontend(world: &mut World, family: Family, protocol: u8, entry: ServiceEntry) {
    let entry = ServiceEntry { service: SERVICE, bits: 6, ..entry };
    world.datapath.services.insert((vip(family), FRONTEND, protocol), &entry).unwrap();
}

/// A service with one backend.
pub fn serve(world: &mut World, family: Family, protocol: u8, to: (IpAddr, u16)) {
    backend(world, 1, to, ALIVE);
    table(world, TABLE, &[1]);
    frontend(world, family, protocol, ServiceEntry { table: TABLE, ..ServiceEntry::default() });
}

/// The service of pod B.
pub fn serve_b(world: &mut World, family: Family, protocol: u8) {
    serve(world, family, protocol, (world.b.address(family), TARGET));
}

/// The addresses of an IP packet, as the other reader reads them. The checksum of an IPv4 header must be right.
#[track_caller]
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let header = Ipv4HeaderSlice::from_slice(packet).expect("an IPv4 header");
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum(), "the checksum of an IP header");
        (header.source_addr().into(), header.destination_addr().into())
    } else {
        let header = Ipv6HeaderSlice::from_slice(packet).expect("an IPv6 header");
        (header.source_addr().into(), header.destination_addr().into())
    }
}

/// Who a packet is from and to, as the other reader reads it. Every checksum of it must be right.
#[track_caller]
pub fn ends(frame: &[u8]) -> [(IpAddr, u16); 2] {
    let (source, destination) = addresses(&frame[14..]);
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame that can be read");
    let ports = match packet.transport.as_ref() {
        Some(TransportSlice::Tcp(tcp)) => {
            let wanted = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    tcp.to_header().calc_checksum_ipv4_raw(source.octets(), destination.octets(), tcp.payload())
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    tcp.to_header().calc_checksum_ipv6_raw(source.octets(), destination.octets(), tcp.payload())
                }
                _ => unreachable!(),
            };
            assert_eq!(tcp.checksum(), wanted.unwrap(), "the checksum of TCP");
            (tcp.source_port(), tcp.destination_port())
        }
        Some(TransportSlice::Udp(udp)) => {
            let wanted = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    udp.to_header().calc_checksum_ipv4_raw(source.octets(), destination.octets(), udp.payload())
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    udp.to_header().calc_checksum_ipv6_raw(source.octets(), destination.octets(), udp.payload())
                }
                _ => unreachable!(),
            };
            assert!(udp.checksum() == wanted.unwrap() || (udp.checksum() == 0 && source.is_ipv4()), "the checksum of UDP");
            (udp.source_port(), udp.destination_port())
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "the checksum of ICMP");
            (0, 0)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else { unreachable!() };
            assert!(icmp.is_checksum_valid(source.octets(), destination.octets()), "the checksum of ICMP");
            (0, 0)
        }
        None => {
            let payload = packet.ip_payload().expect("a payload").payload;
            let stated = u32::from_le_bytes(payload[8..12].try_into().unwrap());
            // CRC-32C (RFC 9260, appendix A), by a library: what makes the packets is ours.
            let wanted = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&set(payload.to_vec(), 8, &[0; 4]));
            assert_eq!(stated, wanted, "the checksum of SCTP");
            (u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]]))
        }
    };
    [(source, ports.0), (destination, ports.1)]
}

/// That a packet went on like this, with every checksum right.
#[track_caller]
pub fn became(seen: &Seen, action: i32, outcome: Outcome, source: (IpAddr, u16), destination: (IpAddr, u16)) {
    assert_eq!((seen.outcome, seen.action), (outcome, action));
    assert_eq!(ends(&seen.packet), [source, destination]);
}

/// From pod A to the frontend.
pub fn to_vip(world: &World, family: Family) -> Way {
    world.a.to(vip(family))
}

/// The packets of each protocol that a client opens a flow with, and that a backend answers with.
pub fn packets(way: Way, from: u16, to: u16) -> [(u8, Vec<u8>); 3] {
    [(protocol::TCP, way.tcp(from, to, SYN)), (protocol::UDP, way.udp(from, to)), (protocol::SCTP, way.sctp(from, to, sctp_chunk::INIT))]
        .map(|(protocol, frame)| (protocol, summed(frame)))
}

/// That of one protocol.
pub fn packet_of(protocol: u8, way: Way, from: u16, to: u16) -> Vec<u8> {
    packets(way, from, to).into_iter().find(|(of, _)| *of == protocol).map(|(_, frame)| frame).unwrap()
}

#[test]
fn a_packet_for_a_frontend_goes_to_its_backend_and_the_reply_comes_from_the_frontend() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        for (protocol, request) in packets(to_vip(world, family), CLIENT, FRONTEND) {
            serve_b(world, family, protocol);
            let seen = world.a_sends(request.clone());
            became(&seen, REDIRECT, Outcome::AllowedNew, (a, CLIENT), (b, TARGET));
            assert_eq!(seen.packet[..12], [world.b.mac, world.b.host_mac].concat(), "it goes straight to the pod");
            let back = world.b_to_a(family);
            let reply = match protocol {
                protocol::TCP => back.tcp(TARGET, CLIENT, SYN | ACK),
                protocol::UDP => back.udp(TARGET, CLIENT),
                _ => back.sctp(TARGET, CLIENT, sctp_chunk::INIT_ACK),
            };
            let seen = world.b_sends(summed(reply));
            became(&seen, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
            assert_eq!(seen.packet[..12], [world.a.mac, world.a.host_mac].concat());
            let next = if protocol == protocol::TCP { summed(to_vip(world, family).tcp(CLIENT, FRONTEND, ACK)) } else { request };
            let outcome = if protocol == protocol::SCTP { Outcome::AllowedNew } else { Outcome::AllowedEstablished };
            became(&world.a_sends(next), REDIRECT, outcome, (a, CLIENT), (b, TARGET));
        }
    });
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    crate::world::world(|world| {
        serve_b(world, Family::V4, protocol::UDP);
        let seen = world.a_sends(to_vip(world, Family::V4).udp(CLIENT, FRONTEND));
        became(&seen, REDIRECT, Outcome::AllowedNew, (world.a.v4.into(), CLIENT), (world.b.v4.into(), TARGET));
        assert_eq!(seen.packet[40..42], [0, 0]);
    });
}

#[test]
fn policy_is_judged_on_the_backend_and_its_port() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let request = summed(to_vip(world, family).tcp(CLIENT, FRONTEND, SYN));
        world.isolate(world.a, Direction::Egress, 42);
        let event = world.a_sends(request.clone()).dropped(Outcome::EgressDefaultDenied);
        assert_eq!((event.destination, event.destination_port), (wide(world.b.address(family)), TARGET.to_be_bytes()));
        world.port(7, protocol::TCP, FRONTEND, 16, RowVerdict::Allow, 43);
        world.row(world.a, Direction::Egress, IDENTITY_B, 7, RowVerdict::DefaultDeny, 42);
        world.a_sends(request.clone()).dropped_silently(Outcome::EgressDefaultDenied);
        world.port(7, protocol::TCP, TARGET, 16, RowVerdict::Allow, 43);
        became(
            &world.a_sends(request.clone()),
            REDIRECT,
            Outcome::AllowedNew,
            (world.a.address(family), CLIENT),
            (world.b.address(family), TARGET),
        );
        // The receiver's ingress, too: a service is no way round it.
        world.isolate(world.b, Direction::Ingress, 44);
        world.a_sends(request).dropped_silently(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn a_change_of_policy_ends_an_established_flow_and_lets_it_go_on_under_its_frontend() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let (a, vip) = (world.a.address(family), vip(family));
        let _ = world.a_sends(summed(to_vip(world, family).tcp(CLIENT, FRONTEND, SYN)));
        let reply = summed(world.b_to_a(family).tcp(TARGET, CLIENT, ACK));
        world.isolate(world.b, Direction::Ingress, 44);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(reply.clone()).dropped_silently(Outcome::IngressDefaultDenied);
        world.open(world.b, Direction::Ingress);
        world.datapath.bump_epoch().unwrap();
        // Judged again by a packet of the other end, which knows nothing of the frontend.
        became(&world.b_sends(reply.clone()), REDIRECT, Outcome::AllowedNew, (vip, FRONTEND), (a, CLIENT));
        became(&world.b_sends(reply), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
    });
}

#[test]
fn a_backend_beyond_the_node_answers_through_the_stack_as_the_frontend() {
    each_family(|world, family| {
        serve(world, family, protocol::TCP, (outside(family), TARGET));
        let (b, vip) = (world.b.address(family), vip(family));
        world.isolate(world.b, Direction::Ingress, 42);
        let seen = world.b_sends(summed(world.b.to(vip).tcp(CLIENT, FRONTEND, SYN)));
        became(&seen, PASS, Outcome::AllowedNew, (b, CLIENT), (outside(family), TARGET));
        let seen = world.network_sends(summed(world.b.from(outside(family)).tcp(TARGET, CLIENT, SYN | ACK)));
        became(&seen, PASS, Outcome::AllowedReply, (vip, FRONTEND), (b, CLIENT));
    });
}

#[test]
fn a_backend_on_the_node_itself_answers_as_the_frontend() {
    each_family(|world, family| {
        serve(world, family, protocol::TCP, (node(family), TARGET));
        let (b, vip) = (world.b.address(family), vip(family));
        let seen = world.b_sends(summed(world.b.to(vip).tcp(CLIENT, FRONTEND, SYN)));
        became(&seen, PASS, Outcome::AllowedNew, (b, CLIENT), (node(family), TARGET));
        let seen = world.host_sends(summed(world.b.from(node(family)).tcp(TARGET, CLIENT, SYN | ACK)));
        became(&seen, PASS, Outcome::AllowedReply, (vip, FRONTEND), (b, CLIENT));
    });
}

#[test]
fn who_claims_to_be_a_frontend_is_judged_as_anybody() {
    each_family(|world, family| {
        serve(world, family, protocol::UDP, (outside(family), TARGET));
        world.isolate(world.b, Direction::Ingress, 42);
        let _ = world.b_sends(summed(world.b.to(vip(family)).udp(CLIENT, FRONTEND)));
        world.network_sends(world.b.from(vip(family)).udp(FRONTEND, CLIENT)).dropped(Outcome::IngressDefaultDenied);
        let gateway: IpAddr = if family == Family::V4 { [169, 254, 1, 1].into() } else { "fe80::1".parse().unwrap() };
        world.network_sends(world.b.from(gateway).udp(FRONTEND, CLIENT)).dropped(Outcome::SourceAddressForeign);
    });
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        for (protocol, request) in packets(to_vip(world, family), CLIENT, FRONTEND) {
            frontend(world, family, protocol, ServiceEntry { table: TABLE_NONE, ..ServiceEntry::default() });
            let seen = world.a_sends(request.clone());
            assert_eq!((seen.outcome, seen.action), (Outcome::ServiceRefused, REDIRECT));
            assert!(seen.event.is_some(), "an event tells of it");
            let [from, to] = ends(&seen.packet);
            assert_eq!((from.0, to.0), (vip, a));
            assert_eq!(seen.packet[..12], [world.a.mac, world.a.host_mac].concat());
            let transport = to_vip(world, family).transport();
            if protocol == protocol::TCP {
                assert_eq!((from.1, to.1, seen.packet.len()), (FRONTEND, CLIENT, transport + 20));
                // The sender's number, and the SYN, are acknowledged.
                assert_eq!((&seen.packet[transport + 8..transport + 12], seen.packet[transport + 13]), (&[0, 0, 0, 1][..], RST | ACK));
                continue;
            }
            let expected = if family == Family::V4 { [3, 3] } else { [1, 4] };
            assert_eq!(seen.packet[transport..transport + 2], expected, "a port at which nobody listens");
            let quoted = &seen.packet[transport + 8..];
            assert!(quoted.len() >= transport - 14 + 8 && request[14..].starts_with(quoted), "{quoted:02x?}");
        }
    });
}

#[test]
fn a_service_whose_backends_are_elsewhere_only_drops() {
    each_family(|world, family| {
        let entry = ServiceEntry { table: TABLE_NONE, flags: service_flag::DROP, ..ServiceEntry::default() };
        frontend(world, family, protocol::TCP, entry);
        world.a_sends(summed(to_vip(world, family).tcp(CLIENT, FRONTEND, SYN))).dropped(Outcome::ServiceDropped);
    });
}

#[test]
fn rows_that_are_not_all_there_are_closed() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        world.datapath.backends.remove(&1).unwrap();
        let request = summed(to_vip(world, family).tcp(CLIENT, FRONTEND, SYN));
        world.a_sends(request.clone()).dropped(Outcome::ServiceMissing);
        world.datapath.chunks.remove(&ChunkKey { table: TABLE, chunk: 0 }).unwrap();
        world.a_sends(request.clone()).dropped_silently(Outcome::ServiceMissing);
        // A backend of the other family.
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        serve(world, family, protocol::TCP, (world.b.address(other), TARGET));
        world.a_sends(request).dropped_silently(Outcome::ServiceMissing);
    });
}

/// Two backends: pod B, and one outside. A table with either.
pub fn two(world: &mut World, family: Family, protocol: u8) {
    serve_b(world, family, protocol);
    backend(world, 2, (outside(family), TARGET), ALIVE);
    table(world, TABLE + 1, &[2]);
}

/// The frontend goes to the other backend.
pub fn flip(world: &mut World, family: Family, protocol: u8) {
    frontend(world, family, protocol, ServiceEntry { table: TABLE + 1, ..ServiceEntry::default() });
}

#[test]
fn an_established_flow_stays_with_its_backend_and_a_new_one_goes_to_another() {
    each_family(|world, family| {
        let a = world.a.address(family);
        for protocol in [protocol::TCP, protocol::UDP] {
            two(world, family, protocol);
            let way = to_vip(world, family);
            let first = |port: u16, flags: u8| match protocol {
                protocol::TCP => summed(way.tcp(port, FRONTEND, flags)),
                _ => summed(way.udp(port, FRONTEND)),
            };
            let _ = world.a_sends(first(CLIENT, SYN));
            flip(world, family, protocol);
            backend(world, 1, (world.b.address(family), TARGET), backend_flag::SERVING);
            let to_b = (world.b.address(family), TARGET);
            became(&world.a_sends(first(CLIENT, ACK)), REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), to_b);
            let to_outside = (outside(family), TARGET);
            became(&world.a_sends(first(CLIENT + 1, SYN)), PASS, Outcome::AllowedNew, (a, CLIENT + 1), to_outside);
            // A new connection from the same port is a new flow.
            if protocol == protocol::TCP {
                became(&world.a_sends(first(CLIENT, SYN)), PASS, Outcome::AllowedNew, (a, CLIENT), to_outside);
            }
        }
    });
}

#[test]
fn a_connection_outlives_a_backend_s_readiness_and_datagrams_leave_it_at_once() {
    each_family(|world, family| {
        let a = world.a.address(family);
        let (to_b, to_outside) = ((world.b.address(family), TARGET), (outside(family), TARGET));
        two(world, family, protocol::TCP);
        two(world, family, protocol::UDP);
        let way = to_vip(world, family);
        let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
        let _ = world.a_sends(summed(way.udp(CLIENT, FRONTEND)));
        flip(world, family, protocol::TCP);
        flip(world, family, protocol::UDP);
        backend(world, 1, (world.b.address(family), TARGET), 0);
        became(&world.a_sends(summed(way.tcp(CLIENT, FRONTEND, ACK))), REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), to_b);
        became(&world.a_sends(summed(way.udp(CLIENT, FRONTEND))), PASS, Outcome::AllowedNew, (a, CLIENT), to_outside);
        // Where the backend is gone, the connection's next packet finds another, which tells the client that it knows nothing of it.
        world.datapath.backends.remove(&1).unwrap();
        became(&world.a_sends(summed(way.tcp(CLIENT, FRONTEND, ACK))), PASS, Outcome::AllowedNew, (a, CLIENT), to_outside);
    });
}

#[test]
fn a_flow_goes_where_the_table_says() {
    each_family(|world, family| {
        let b = world.b.address(family);
        let numbers: Vec<u32> = (1..=64).collect();
        for number in &numbers {
            backend(world, *number, (b, 1000 + *number as u16), ALIVE);
        }
        table(world, TABLE, &numbers);
        frontend(world, family, protocol::UDP, ServiceEntry { table: TABLE, ..ServiceEntry::default() });
        let mut reached = std::collections::BTreeMap::new();
        for port in 2000..2640 {
            let seen = world.a_sends(summed(to_vip(world, family).udp(port, FRONTEND)));
            let [_, (_, to)] = ends(&seen.packet);
            *reached.entry(to).or_insert(0) += 1;
        }
        assert!(reached.len() == 64 && reached.values().all(|flows| *flows < 40), "{reached:?}");
    });
}

#[test]
fn a_client_with_affinity_stays_with_its_backend_until_its_time_is_over() {
    each_family(|world, family| {
        let a = world.a.address(family);
        let (b, elsewhere) = ((world.b.address(family), TARGET), (outside(family), TARGET));
        let with = |table| ServiceEntry { table, affinity: 100, ..ServiceEntry::default() };
        for (index, protocol) in [protocol::TCP, protocol::UDP, protocol::SCTP].into_iter().enumerate() {
            let opens = |world: &mut World, port| {
                let (_, frame) = packets(to_vip(world, family), port, FRONTEND)[index].clone();
                world.a_sends(frame)
            };
            two(world, family, protocol);
            frontend(world, family, protocol, with(TABLE));
            became(&opens(world, 1), REDIRECT, Outcome::AllowedNew, (a, 1), b);
            // The table says otherwise now, but the backend takes new flows still.
            frontend(world, family, protocol, with(TABLE + 1));
            world.let_affinity_pass(80);
            became(&opens(world, 2), REDIRECT, Outcome::AllowedNew, (a, 2), b);
            world.let_affinity_pass(80);
            became(&opens(world, 3), REDIRECT, Outcome::AllowedNew, (a, 3), b);
            world.let_affinity_pass(101);
            became(&opens(world, 4), PASS, Outcome::AllowedNew, (a, 4), elsewhere);
            // One that takes no new flows loses its clients.
            world.let_affinity_pass(101);
            frontend(world, family, protocol, with(TABLE));
            became(&opens(world, 5), REDIRECT, Outcome::AllowedNew, (a, 5), b);
            backend(world, 1, b, backend_flag::SERVING);
            frontend(world, family, protocol, with(TABLE + 1));
            became(&opens(world, 6), PASS, Outcome::AllowedNew, (a, 6), elsewhere);
            // The next protocol's port is the same service's.
            world.let_affinity_pass(101);
        }
    });
}

#[test]
fn a_connection_goes_on_without_the_row_of_its_frontend_as_long_as_its_backend_has_one() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let way = to_vip(world, family);
        let (a, b) = (world.a.address(family), world.b.address(family));
        let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
        world.datapath.services.remove((vip(family), FRONTEND, protocol::TCP)).unwrap();
        let seen = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, ACK)));
        became(&seen, REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), (b, TARGET));
        world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN))).passed(Outcome::AllowedNew);
    });
}

/// A datagram in two fragments. Its checksum is over the whole.
pub fn halves(way: Way, from: u16, to: u16) -> [Vec<u8>; 2] {
    let whole = summed(way.packet(protocol::UDP, &packet::udp(from, to, &[7; 56])));
    let datagram = &whole[way.transport()..];
    [(0, true, &datagram[..32]), (32, false, &datagram[32..])].map(|(at, more, part)| way.fragment(9, at, more, protocol::UDP, part))
}

#[test]
fn fragments_of_a_datagram_all_go_to_one_backend_and_back() {
    each_family(|world, family| {
        serve_b(world, family, protocol::UDP);
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        let rejoined = |way: Way, frames: [Vec<u8>; 2]| {
            let header = if family == Family::V4 { 34 } else { 62 };
            let payload: Vec<u8> = frames.iter().flat_map(|frame| frame[header..].to_vec()).collect();
            ends(&way.packet(protocol::UDP, &payload))
        };
        let sent = halves(to_vip(world, family), CLIENT, FRONTEND).map(|frame| world.a_sends(frame));
        assert_eq!(sent.each_ref().map(|seen| seen.outcome), [Outcome::AllowedNew, Outcome::AllowedEstablished]);
        let addresses = |frame: &[u8]| match family {
            Family::V4 => frame[26..34].to_vec(),
            Family::V6 => frame[22..54].to_vec(),
        };
        let expected = addresses(&world.a_to_b(family).udp(1, 1));
        assert!(sent.iter().all(|seen| addresses(&seen.packet) == expected), "both go to the backend");
        assert_eq!(rejoined(world.a_to_b(family), sent.map(|seen| seen.packet)), [(a, CLIENT), (b, TARGET)]);
        let back = halves(world.b_to_a(family), TARGET, CLIENT).map(|frame| world.b_sends(frame));
        assert_eq!(rejoined(world.a.to(a).from(vip), back.map(|seen| seen.packet)), [(vip, FRONTEND), (a, CLIENT)]);
        // A later fragment without a first.
        let [_, later] = halves(to_vip(world, family), CLIENT + 1, FRONTEND);
        world.let_fragments_pass(family, 61);
        assert_eq!(world.a_sends(later).outcome, Outcome::FragmentUnknown);
    });
}

/// The addresses and ports of the packet that an ICMP error quotes. The checksum of a quoted IPv4 header must be right.
#[track_caller]
pub fn quote(frame: &[u8], family: Family) -> [(IpAddr, u16); 2] {
    let _ = ends(frame);
    let error = SlicedPacket::from_ethernet(frame).expect("a frame that can be read");
    let quoted = match error.transport.as_ref() {
        Some(TransportSlice::Icmpv4(icmp)) => icmp.payload(),
        Some(TransportSlice::Icmpv6(icmp)) => icmp.payload(),
        other => panic!("no ICMP: {other:?}"),
    };
    let (source, destination) = addresses(quoted);
    let transport = match family {
        Family::V4 => &quoted[Ipv4HeaderSlice::from_slice(quoted).expect("a quoted header").slice().len()..],
        Family::V6 => Ipv6Slice::from_slice_lax(quoted).expect("a quoted packet").payload().payload,
    };
    let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    [(source, port(0)), (destination, port(2))]
}

#[test]
fn an_error_of_the_backend_comes_from_the_frontend_and_quotes_what_the_client_sent() {
    each_family(|world, family| {
        serve_b(world, family, protocol::UDP);
        let (a, vip) = (world.a.address(family), vip(family));
        let _ = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        let quoted = summed(world.a_to_b(family).udp(CLIENT, TARGET))[14..].to_vec();
        let seen = world.b_sends(summed(world.b_to_a(family).port_unreachable(&quoted)));
        became(&seen, REDIRECT, Outcome::AllowedRelated, (vip, 0), (a, 0));
        assert_eq!(quote(&seen.packet, family), [(a, CLIENT), (vip, FRONTEND)]);
    });
}

#[test]
fn an_error_of_a_router_keeps_its_source_and_quotes_what_the_client_sent() {
    each_family(|world, family| {
        serve(world, family, protocol::UDP, (outside(family), TARGET));
        let (b, vip) = (world.b.address(family), vip(family));
        let _ = world.b_sends(summed(world.b.to(vip).udp(CLIENT, FRONTEND)));
        let quoted = summed(world.b.to(outside(family)).udp(CLIENT, TARGET))[14..].to_vec();
        for source in [node(family), outside(family)] {
            let seen = world.network_sends(summed(world.b.from(source).port_unreachable(&quoted)));
            let shown = if source == outside(family) { vip } else { source };
            became(&seen, PASS, Outcome::AllowedRelated, (shown, 0), (b, 0));
            assert_eq!(quote(&seen.packet, family), [(b, CLIENT), (vip, FRONTEND)]);
        }
    });
}

#[test]
fn an_error_of_the_client_reaches_the_backend_and_quotes_what_that_sent() {
    each_family(|world, family| {
        serve_b(world, family, protocol::UDP);
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        let _ = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        let reply = world.b_sends(summed(world.b_to_a(family).udp(TARGET, CLIENT)));
        let seen = world.a_sends(summed(to_vip(world, family).port_unreachable(&reply.packet[14..])));
        became(&seen, REDIRECT, Outcome::AllowedRelated, (a, 0), (b, 0));
        assert_eq!(quote(&seen.packet, family), [(b, TARGET), (a, CLIENT)]);
        // One about a flow that nobody has is unrelated.
        let quoted = summed(world.a.to(a).from(vip).udp(FRONTEND, CLIENT + 1))[14..].to_vec();
        assert_eq!(world.a_sends(summed(to_vip(world, family).port_unreachable(&quoted))).action, DROP);
    });
}

#[test]
fn other_ports_and_protocols_of_a_frontend_are_no_service() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let way = to_vip(world, family);
        world.a_sends(summed(way.tcp(CLIENT, FRONTEND + 1, SYN))).passed(Outcome::AllowedNew);
        world.a_sends(summed(way.udp(CLIENT, FRONTEND))).passed(Outcome::AllowedNew);
        world.a_sends(summed(way.echo_request(7))).passed(Outcome::AllowedNew);
    });
}

#[test]
fn a_closed_flow_to_a_frontend_is_forgotten_soon() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let way = to_vip(world, family);
        for is_judged_again in [false, true] {
            let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
            let _ = world.b_sends(summed(world.b_to_a(family).tcp(TARGET, CLIENT, SYN | ACK)));
            assert_eq!(world.connections(family).len(), 2, "one to the frontend, one to the backend");
            world.let_pass(family, 3_600);
            assert_eq!(world.sweep(), 0);
            if is_judged_again {
                world.datapath.bump_epoch().unwrap();
            }
            let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, FIN | ACK)));
            let _ = world.b_sends(summed(world.b_to_a(family).tcp(TARGET, CLIENT, FIN | ACK)));
            world.let_pass(family, 120);
            assert_eq!(world.sweep(), 2, "judged again: {is_judged_again}");
        }
    });
}
