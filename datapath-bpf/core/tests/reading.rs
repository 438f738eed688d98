//! Reading packets: what is found, and what is refused with which outcome.

use palisade_datapath_core::abi::{Outcome, V4, V6};
use palisade_datapath_core::packet::icmp::{self, Quoting};
use palisade_datapath_core::packet::{Fragment, Packet, Segment, arp, ending, ethernet, ipv4, ipv6, neighbour};

const A4: V4 = [10, 0, 0, 1];
const B4: V4 = [10, 0, 0, 2];
const A6: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

const TCP: [u8; 20] = [0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0];

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (20 + payload.len() as u16).to_be_bytes();
    [&[0; 12][..], &[8, 0], &[0x45, 0, l0, l1, 0, 7, 0, 0, 64, protocol, 0, 0], &A4, &B4, payload].concat()
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (payload.len() as u16).to_be_bytes();
    [&[0; 12][..], &[0x86, 0xdd], &[0x60, 0, 0, 0, l0, l1, next, 64], &A6, &B6, payload].concat()
}

fn read4(frame: &[u8]) -> Result<Packet<V4>, Outcome> {
    let mut packet = Packet::default();
    ipv4::read(frame, &mut packet).map(|()| packet)
}

fn read6(frame: &[u8]) -> Result<Packet<V6>, Outcome> {
    let mut packet = Packet::default();
    ipv6::read(frame, &mut packet).map(|()| packet)
}

fn set(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..][..bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn addresses_ports_and_flags_are_found() {
    let packet = read4(&v4(6, &TCP)).unwrap();
    assert_eq!((packet.source, packet.destination, packet.protocol, packet.hop_limit), (A4, B4, 6, 64));
    assert_eq!((packet.source_port, packet.destination_port), (40000u16.to_be_bytes(), [0, 80]));
    assert_eq!((packet.segment, packet.fragment(), packet.ending), (Segment::Opening, Fragment::Whole, 0));
    let packet = read6(&v6(6, &TCP)).unwrap();
    assert_eq!((packet.source, packet.destination, packet.protocol, packet.hop_limit), (A6, B6, 6, 64));
    assert_eq!((packet.source_port, packet.destination_port), (40000u16.to_be_bytes(), [0, 80]));
}

#[test]
fn only_syn_without_ack_opens() {
    let segment = |flags: u8| {
        let packet = read4(&set(v4(6, &TCP), 34 + 13, &[flags])).unwrap();
        (packet.segment, packet.ending)
    };
    assert_eq!(segment(0x02), (Segment::Opening, 0));
    assert_eq!(segment(0x12), (Segment::MidStream, 0));
    assert_eq!(segment(0x10), (Segment::MidStream, 0));
    assert_eq!(segment(0x11), (Segment::MidStream, ending::FIN));
    assert_eq!(segment(0x14), (Segment::MidStream, ending::RESET));
    assert_eq!(segment(0x04), (Segment::Bare, ending::RESET));
    assert_eq!(segment(0x00), (Segment::Bare, 0));
}

#[test]
fn a_frame_cut_anywhere_before_the_end_of_its_headers_is_refused() {
    for (frame, headers) in [(v4(6, &TCP), 54), (v4(17, &[0, 1, 0, 2, 0, 8, 0, 0]), 42), (v4(1, &[8, 0, 0, 0, 0, 1, 0, 1]), 42)] {
        for length in 0..headers {
            assert!(read4(&frame[..length]).is_err(), "{length} of {headers} bytes");
        }
        assert!(read4(&frame).is_ok());
    }
    let frame = v6(0, &[&[60, 0, 1, 4, 0, 0, 0, 0][..], &[6, 0, 1, 4, 0, 0, 0, 0], &TCP].concat());
    for length in 0..frame.len() {
        assert!(read6(&frame[..length]).is_err(), "{length} of {} bytes", frame.len());
    }
    assert!(read6(&frame).is_ok());
}

#[test]
fn the_transport_header_must_lie_in_the_packet_and_not_in_the_padding() {
    let frame = set(v4(6, &TCP), 16, &39u16.to_be_bytes());
    assert_eq!(read4(&frame), Err(Outcome::Truncated));
    let frame = set(v6(6, &TCP), 18, &19u16.to_be_bytes());
    assert_eq!(read6(&frame), Err(Outcome::Truncated));
}

#[test]
fn padding_behind_the_packet_is_allowed() {
    let mut frame = v4(17, &[0, 1, 0, 2, 0, 8, 0, 0]);
    frame.resize(60, 0);
    assert!(read4(&frame).is_ok());
}

#[test]
fn a_version_or_length_that_contradicts_the_packet_is_invalid() {
    for (offset, bytes) in [(14, vec![0x65]), (14, vec![0x44]), (16, vec![0xff, 0xff]), (16, vec![0, 19])] {
        assert_eq!(read4(&set(v4(6, &TCP), offset, &bytes)), Err(Outcome::HeaderInvalid), "{bytes:?} at {offset}");
    }
    // A header length beyond the packet.
    assert_eq!(read4(&set(v4(17, &[0, 1, 0, 2, 0, 8, 0, 0]), 14, &[0x4f])), Err(Outcome::HeaderInvalid));
    assert_eq!(read6(&set(v6(6, &TCP), 14, &[0x45])), Err(Outcome::HeaderInvalid));
    assert_eq!(read6(&set(v6(6, &TCP), 18, &[0xff, 0xff])), Err(Outcome::HeaderInvalid));
}

#[test]
fn transport_lengths_that_contradict_the_packet_are_invalid() {
    assert_eq!(read4(&set(v4(6, &TCP), 46, &[0x40])), Err(Outcome::HeaderInvalid), "TCP header of 16 bytes");
    assert_eq!(read4(&set(v4(6, &TCP), 46, &[0x60])), Err(Outcome::HeaderInvalid), "TCP header longer than the packet");
    assert_eq!(read4(&v4(17, &[0, 1, 0, 2, 0, 7, 0, 0])), Err(Outcome::HeaderInvalid), "UDP length below its header");
    assert_eq!(read4(&v4(17, &[0, 1, 0, 2, 0, 9, 0, 0])), Err(Outcome::HeaderInvalid), "UDP length beyond the packet");
}

#[test]
fn options_move_the_transport_header() {
    let mut frame = v4(6, &[&[1u8, 1, 1, 1][..], &TCP].concat());
    frame[14] = 0x46;
    let packet = read4(&frame).unwrap();
    assert_eq!((packet.transport, packet.destination_port), (38, [0, 80]));
}

#[test]
fn each_extension_header_moves_the_transport_header() {
    let authentication = [&[6u8, 4][..], &[0; 22]].concat();
    for (next, header) in [
        (0, vec![6, 0, 1, 4, 0, 0, 0, 0]),
        (60, vec![6, 0, 1, 4, 0, 0, 0, 0]),
        (60, [&[6u8, 1][..], &[0; 14]].concat()),
        (43, vec![6, 0, 0, 0, 0, 0, 0, 0]),
        (44, vec![6, 0, 0, 0, 0, 0, 0, 9]),
        (51, authentication),
    ] {
        let packet = read6(&v6(next, &[&header[..], &TCP].concat())).unwrap();
        assert_eq!((packet.transport as usize, packet.protocol, packet.destination_port), (54 + header.len(), 6, [0, 80]), "{next}");
        assert_eq!(packet.fragment(), Fragment::Whole);
    }
}

#[test]
fn six_extension_headers_are_walked_and_not_a_seventh() {
    let chain = |count: usize| {
        let mut headers = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count - 1);
        headers.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        v6(60, &[&headers[..], &TCP].concat())
    };
    assert!(read6(&chain(6)).is_ok());
    assert_eq!(read6(&chain(7)), Err(Outcome::ExtensionHeaders));
}

#[test]
fn extension_headers_that_hide_something_are_invalid() {
    let hop_by_hop_second = [&[0, 0, 1, 4, 0, 0, 0, 0][..], &[6, 0, 1, 4, 0, 0, 0, 0], &TCP].concat();
    assert_eq!(read6(&v6(60, &hop_by_hop_second)), Err(Outcome::HeaderInvalid));
    let route_to_go = [&[6, 0, 0, 1, 0, 0, 0, 0][..], &TCP].concat();
    assert_eq!(read6(&v6(43, &route_to_go)), Err(Outcome::HeaderInvalid));
    let beyond_the_end = [&[6, 200, 0, 0, 0, 0, 0, 0][..], &TCP].concat();
    assert_eq!(read6(&v6(60, &beyond_the_end)), Err(Outcome::Truncated));
}

#[test]
fn protocols_that_policy_cannot_judge_are_unknown() {
    for protocol in [0, 2, 4, 47, 50, 58, 136] {
        assert_eq!(read4(&v4(protocol, &[0; 20])), Err(Outcome::ProtocolUnknown), "{protocol}");
    }
    for protocol in [1, 4, 41, 47, 50, 59, 135] {
        assert_eq!(read6(&v6(protocol, &[0; 20])), Err(Outcome::ProtocolUnknown), "{protocol}");
    }
}

#[test]
fn fragments_are_told_apart() {
    let with = |field: u16| set(v4(6, &TCP), 20, &field.to_be_bytes());
    assert_eq!(read4(&with(0x4000)).unwrap().fragment(), Fragment::Whole, "do not fragment");
    let first = read4(&with(0x2000)).unwrap();
    assert_eq!((first.fragment(), first.destination_port), (Fragment::First, [0, 80]));
    let later = read4(&with(0x2003)).unwrap();
    assert_eq!((later.fragment(), later.segment, later.destination_port), (Fragment::Later, Segment::Later, [0, 0]));
    assert_eq!(first.fragment_key(), later.fragment_key());
    assert_eq!(read4(&set(v4(6, &TCP[..8]), 20, &[0x20, 0])), Err(Outcome::FragmentShort));
}

#[test]
fn fragments_of_ipv6_share_a_key_whatever_header_comes_next() {
    let fragment = |offset: u16, rest: &[u8]| {
        let [f0, f1] = offset.to_be_bytes();
        v6(44, &[&[60, 0, f0, f1, 1, 2, 3, 4][..], rest].concat())
    };
    let first = read6(&fragment(1, &[&[6, 0, 1, 4, 0, 0, 0, 0][..], &TCP].concat())).unwrap();
    assert_eq!((first.fragment(), first.protocol, first.destination_port), (Fragment::First, 6, [0, 80]));
    let later = read6(&fragment(64, &[60; 16])).unwrap();
    assert_eq!(later.fragment(), Fragment::Later);
    assert_eq!(first.fragment_key(), later.fragment_key());
    assert_eq!(read6(&fragment(1, &[60, 0, 1, 4, 0, 0, 0, 0])), Err(Outcome::FragmentShort));
}

#[test]
fn an_echo_id_is_the_port_of_the_end_that_asks() {
    let request = read4(&v4(1, &[8, 0, 0, 0, 0, 80, 0, 1])).unwrap();
    assert_eq!((request.segment, request.source_port, request.destination_port), (Segment::EchoRequest, [0, 80], [0, 0]));
    let reply = read6(&v6(58, &[129, 0, 0, 0, 0, 80, 0, 1])).unwrap();
    assert_eq!((reply.segment, reply.source_port, reply.destination_port), (Segment::EchoReply, [0, 0], [0, 80]));
}

#[test]
fn icmp_types_are_classified_per_family() {
    for (version, kind, expected) in [
        (4, 8, Segment::EchoRequest),
        (4, 0, Segment::EchoReply),
        (4, 3, Segment::Error),
        (4, 11, Segment::Error),
        (4, 12, Segment::Error),
        (4, 5, Segment::Unknown),
        (4, 13, Segment::Unknown),
        (4, 128, Segment::Unknown),
        (6, 8, Segment::Unknown),
        (6, 0, Segment::Unknown),
        (6, 5, Segment::Unknown),
        (6, 1, Segment::Error),
        (6, 2, Segment::Error),
        (6, 4, Segment::Error),
        (6, 130, Segment::Listener),
        (6, 143, Segment::Listener),
        (6, 133, Segment::Neighbour),
        (6, 137, Segment::Neighbour),
        (6, 138, Segment::Unknown),
    ] {
        assert_eq!(icmp::classify(version, kind), expected, "type {kind} of version {version}");
    }
}

fn quote<A: Quoting>(frame: &[u8], outer: &Packet<A>) -> Result<Packet<A>, Outcome> {
    let mut packet = Packet::default();
    icmp::quoted(frame, outer, &mut packet).map(|()| packet)
}

#[test]
fn an_error_quotes_addresses_ports_and_protocol() {
    let frame = v4(1, &[&[3u8, 1, 0, 0, 0, 0, 0, 0][..], &v4(6, &TCP)[14..42]].concat());
    let quoted = quote(&frame, &read4(&frame).unwrap()).unwrap();
    assert_eq!((quoted.source, quoted.destination, quoted.protocol, quoted.destination_port), (A4, B4, 6, [0, 80]));
    let inner = v6(60, &[&[17u8, 0, 1, 4, 0, 0, 0, 0][..], &[0, 1, 0, 53, 0, 8, 0, 0]].concat());
    let frame = v6(58, &[&[1u8, 1, 0, 0, 0, 0, 0, 0][..], &inner[14..]].concat());
    let quoted = quote(&frame, &read6(&frame).unwrap()).unwrap();
    assert_eq!((quoted.protocol, quoted.source_port, quoted.destination_port), (17, [0, 1], [0, 53]));
}

#[test]
fn an_error_that_quotes_too_little_or_no_flow_is_refused() {
    let error = |quoted: &[u8]| {
        let frame = v4(1, &[&[3u8, 1, 0, 0, 0, 0, 0, 0][..], quoted].concat());
        quote(&frame, &read4(&frame).unwrap()).map(|_| ())
    };
    let inner = v4(6, &TCP)[14..].to_vec();
    assert_eq!(error(&inner[..27]), Err(Outcome::Truncated));
    assert_eq!(error(&inner[..10]), Err(Outcome::Truncated));
    assert_eq!(error(&set(inner.clone(), 6, &[0, 5])), Err(Outcome::IcmpUnrelated), "a later fragment");
    assert_eq!(error(&set(inner.clone(), 9, &[47])), Err(Outcome::IcmpUnrelated), "GRE");
    assert_eq!(error(&v4(1, &[3, 1, 0, 0, 0, 0, 0, 0])[14..]), Err(Outcome::IcmpUnrelated), "an error about an error");
}

#[test]
fn arp_speaks_for_the_pod_alone() {
    let mac = [2, 0, 0, 0, 0, 1];
    let packet = |operation: u8, sender: [u8; 6], address: V4| -> [u8; 28] {
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &sender, &address, &[0; 6], &B4].concat().try_into().unwrap()
    };
    assert_eq!(arp::check(&packet(1, mac, A4), &mac, &A4), Ok(()));
    assert_eq!(arp::check(&packet(2, mac, A4), &mac, &A4), Ok(()));
    assert_eq!(arp::check(&packet(1, mac, [0; 4]), &mac, &A4), Ok(()), "a probe");
    for (bad, why) in [
        (packet(2, mac, [0; 4]), "an answer from nobody"),
        (packet(1, mac, B4), "a foreign address"),
        (packet(1, [9; 6], A4), "a foreign hardware address"),
        (packet(3, mac, A4), "an unknown operation"),
    ] {
        assert_eq!(arp::check(&bad, &mac, &A4), Err(Outcome::ArpInvalid), "{why}");
    }
    for offset in 0..7 {
        let mut bad = packet(1, mac, A4);
        bad[offset] ^= 0x10;
        assert_eq!(arp::check(&bad, &mac, &A4), Err(Outcome::ArpInvalid), "byte {offset}");
    }
}

#[test]
fn a_link_local_address_comes_from_the_hardware_address() {
    let expected = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x36, 0x56, 0x78, 0xff, 0xfe, 0x9a, 0xbc, 0xde];
    assert_eq!(neighbour::eui64(&[0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]), expected);
}

#[test]
fn the_ttl_is_lowered_and_the_checksum_follows() {
    let sum = |bytes: &[u8]| -> u16 {
        let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    };
    for id in 0..=u16::MAX {
        let [i0, i1] = id.to_be_bytes();
        let mut header = [0x45, 0, 0, 40, i0, i1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        let lowered = ipv4::lower_ttl(header[8..12].try_into().unwrap());
        header[8..12].copy_from_slice(&lowered);
        assert_eq!((header[8], header[9], sum(&header)), (63, 6, 0xffff), "id {id}");
    }
}

#[test]
fn the_ethernet_header_is_read() {
    let header = ethernet::Header::read(&[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x86, 0xdd]);
    assert_eq!((header.destination, header.source, header.ether_type), ([1; 6], [2; 6], 0x86dd));
}
