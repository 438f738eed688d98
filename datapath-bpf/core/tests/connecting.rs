//! What the connection table says of a packet, and what packets do to its entries.

use palisade_datapath_core::abi::{Connection, Outcome, SUBJECT_NONE, V4, V6, connection_flag as flag, connection_mark as mark};
use palisade_datapath_core::epoch;
use palisade_datapath_core::packet::connection::{
    End, Lifetimes, Lookup, Now, Subjects, advance, denied, expired, flow, from_host, jiffies_at, judged, key, look_up,
};
use palisade_datapath_core::packet::{Packet, Segment, ending, neighbour};
use palisade_datapath_core::verdict::Verdict;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;

const HERTZ: u32 = 250;
const NOW: Now = Now { jiffies: 1_000_000_000, hertz: HERTZ, epoch: 6, since: 3, lifetimes: Lifetimes::DEFAULT };

fn packet(source: u8, source_port: u16, destination: u8, destination_port: u16, protocol: u8) -> Packet<V4> {
    Packet {
        source: [10, 0, 0, source],
        destination: [10, 0, 0, destination],
        source_port: source_port.to_be_bytes(),
        destination_port: destination_port.to_be_bytes(),
        protocol,
        ..Packet::default()
    }
}

/// An entry last seen so many seconds ago, opened by the higher end where `flags` say so.
fn entry(seconds: u64, marks: u8, flags: u8) -> Connection {
    Connection { seen: NOW.jiffies - seconds * u64::from(HERTZ), epoch: NOW.epoch, marks, flags, ..Connection::default() }
}

#[test]
fn both_directions_of_a_flow_have_one_key() {
    for (a, b) in [((1, 40000), (2, 80)), ((2, 80), (1, 40000)), ((1, 5), (1, 9)), ((9, 1), (200, 2))] {
        let there = key(&packet(a.0, a.1, b.0, b.1, TCP));
        let back = key(&packet(b.0, b.1, a.0, a.1, TCP));
        assert_eq!(there.0, back.0);
        assert_ne!(there.1, back.1, "one end is the higher");
        assert!((there.0.low, there.0.low_port) < (there.0.high, there.0.high_port));
    }
    assert_ne!(key(&packet(1, 1, 2, 2, TCP)).0, key(&packet(1, 1, 2, 2, UDP)).0);
    assert_ne!(key(&packet(1, 1, 2, 2, TCP)).0, key(&packet(1, 2, 2, 1, TCP)).0);
}

#[test]
fn ipv6_addresses_compare_as_numbers() {
    let address = |first: u8, last: u8| -> V6 {
        let mut address = [0; 16];
        (address[0], address[15]) = (first, last);
        address
    };
    for (low, high) in [(address(1, 9), address(2, 1)), (address(0xfd, 1), address(0xfd, 2)), (address(0x7f, 0), address(0x80, 0))] {
        let packet = Packet::<V6> { source: high, destination: low, ..Packet::default() };
        let (key, source_is_high) = key(&packet);
        assert_eq!((key.low, key.high, source_is_high), (low, high, true));
    }
}

#[test]
fn an_echo_of_one_end_is_another_flow_than_an_echo_of_the_other() {
    let of_a = packet(1, 7, 2, 0, ICMP);
    let reply_to_a = packet(2, 0, 1, 7, ICMP);
    let of_b = packet(2, 7, 1, 0, ICMP);
    assert_eq!(key(&of_a).0, key(&reply_to_a).0);
    assert_ne!(key(&of_a).0, key(&of_b).0);
}

#[test]
fn a_packet_of_a_known_flow_passes_from_either_end() {
    for protocol in [TCP, UDP, SCTP, ICMP] {
        let known = entry(1, 0, flag::OPENED_BY_HIGH);
        for (source_is_high, from_opener) in [(true, true), (false, false)] {
            let lookup = look_up(Some(&known), protocol, Segment::MidStream, source_is_high, &NOW);
            assert_eq!(lookup, Lookup::Pass { from_opener }, "protocol {protocol}");
        }
    }
}

#[test]
fn an_opening_never_rides_on_an_entry() {
    for source_is_high in [true, false] {
        assert_eq!(look_up(Some(&entry(1, mark::REPLIED, 0)), TCP, Segment::Opening, source_is_high, &NOW), Lookup::Open);
    }
}

#[test]
fn an_entry_of_another_epoch_is_judged_again_as_its_opener_s() {
    let known = Connection { epoch: NOW.epoch - 1, ..entry(1, 0, flag::OPENED_BY_HIGH) };
    for protocol in [TCP, UDP, SCTP, ICMP] {
        assert_eq!(look_up(Some(&known), protocol, Segment::MidStream, true, &NOW), Lookup::Again(End::Source));
        assert_eq!(look_up(Some(&known), protocol, Segment::MidStream, false, &NOW), Lookup::Again(End::Destination));
    }
}

#[test]
fn an_entry_that_was_denied_is_judged_again_though_its_epoch_is_current() {
    let known = entry(1, mark::REPLIED, flag::DENIED);
    assert_eq!(look_up(Some(&known), TCP, Segment::MidStream, false, &NOW), Lookup::Again(End::Source));
}

#[test]
fn while_a_change_is_under_way_no_entry_speaks_for_its_flow() {
    let now = Now { epoch: epoch::unsettled(NOW.epoch), ..NOW };
    for judged in [NOW.epoch, now.epoch] {
        let known = Connection { epoch: judged, ..entry(1, mark::REPLIED, 0) };
        assert_eq!(look_up(Some(&known), TCP, Segment::MidStream, false, &now), Lookup::Again(End::Source));
    }
}

#[test]
fn what_the_node_opened_passes_in_every_epoch() {
    let known = Connection { epoch: NOW.epoch - 1, ..entry(1, 0, flag::FROM_HOST) };
    for protocol in [TCP, UDP, ICMP] {
        assert_eq!(look_up(Some(&known), protocol, Segment::Datagram, true, &NOW), Lookup::Pass { from_opener: false });
    }
}

#[test]
fn an_entry_from_before_an_end_was_made_is_none() {
    let current = |entry: Connection, now: Now| look_up(Some(&entry), UDP, Segment::Datagram, true, &now) != Lookup::Open;
    for flags in [0, flag::FROM_HOST, flag::DENIED] {
        for (epoch, since, speaks) in [(3, 3, true), (2, 3, false), (u32::MAX, 0, false), (1, u32::MAX, true)] {
            let now = Now { since, epoch: epoch.max(since), ..NOW };
            assert_eq!(current(Connection { epoch, ..entry(1, 0, flags) }, now), speaks, "{flags} of {epoch}, since {since}");
        }
    }
}

#[test]
fn an_old_entry_of_udp_is_none_and_one_of_tcp_still_knows_who_opened() {
    let old = entry(u64::from(NOW.lifetimes.established) + 1, mark::REPLIED, flag::OPENED_BY_HIGH);
    assert_eq!(look_up(Some(&old), UDP, Segment::Datagram, false, &NOW), Lookup::Open);
    assert_eq!(look_up(Some(&old), TCP, Segment::MidStream, false, &NOW), Lookup::Again(End::Destination));
    assert_eq!(look_up(Some(&old), ICMP, Segment::EchoReply, false, &NOW), Lookup::Refuse(Outcome::IcmpUnrelated));
}

#[test]
fn without_an_entry_each_segment_has_its_answer() {
    for (segment, expected) in [
        (Segment::Opening, Lookup::Open),
        (Segment::Datagram, Lookup::Open),
        (Segment::EchoRequest, Lookup::Open),
        (Segment::Bare, Lookup::Open),
        (Segment::MidStream, Lookup::Open),
        (Segment::Later, Lookup::Refuse(Outcome::FragmentUnknown)),
        (Segment::EchoReply, Lookup::Refuse(Outcome::IcmpUnrelated)),
        (Segment::Error, Lookup::Refuse(Outcome::IcmpUnrelated)),
        (Segment::Neighbour, Lookup::Refuse(Outcome::NeighbourDiscoveryInvalid)),
        (Segment::Listener, Lookup::Refuse(Outcome::NeighbourDiscoveryInvalid)),
    ] {
        assert_eq!(look_up(None, TCP, segment, false, &NOW), expected, "{segment:?}");
    }
}

#[test]
fn each_state_has_its_lifetime() {
    let finished = mark::REPLIED | mark::FIN_OPENER | mark::FIN_OTHER;
    let other = Lifetimes { established: 1, half_open: 2, closed: 3, datagram_answered: 4, datagram: 5, echo: 6 };
    for (protocol, marks, seconds, of_other) in [
        (TCP, 0, 60, 2),
        (TCP, mark::REPLIED, 24 * 3600, 1),
        (TCP, mark::REPLIED | mark::FIN_OPENER, 24 * 3600, 1),
        (TCP, mark::REPLIED | mark::FIN_OTHER, 24 * 3600, 1),
        (TCP, finished, 10, 3),
        (TCP, mark::RESET, 10, 3),
        (SCTP, 0, 60, 2),
        (SCTP, mark::REPLIED, 24 * 3600, 1),
        (SCTP, mark::REPLIED | mark::RESET, 10, 3),
        (UDP, 0, 30, 5),
        (UDP, mark::REPLIED, 180, 4),
        (ICMP, mark::REPLIED, 30, 6),
        (58, 0, 30, 6),
    ] {
        for (seconds, lifetimes) in [(seconds, NOW.lifetimes), (of_other, other)] {
            let expired = |seconds| expired(protocol, &entry(seconds, marks, 0), NOW.jiffies, HERTZ, &lifetimes);
            assert!(!expired(seconds), "{protocol} {marks:#x} at {seconds} s");
            assert!(expired(seconds + 1), "{protocol} {marks:#x} after {seconds} s");
        }
    }
}

#[test]
fn lifetimes_come_out_of_the_programs_as_they_went_in() {
    let array = [1, 2, 3, 4, 5, 6];
    assert_eq!(Lifetimes::from_array(array).to_array(), array);
}

#[test]
fn a_clock_of_another_cpu_that_is_ahead_expires_nothing() {
    let ahead = Connection { seen: NOW.jiffies + 1, ..entry(0, 0, 0) };
    assert!(!expired(UDP, &ahead, NOW.jiffies, HERTZ, &NOW.lifetimes));
}

#[test]
fn packets_move_the_marks_forward_only() {
    assert_eq!(advance(0, 0, true), 0);
    assert_eq!(advance(0, 0, false), mark::REPLIED);
    assert_eq!(advance(0, ending::FIN, true), mark::FIN_OPENER);
    assert_eq!(advance(mark::FIN_OPENER, ending::FIN, false), mark::FIN_OPENER | mark::FIN_OTHER | mark::REPLIED);
    assert_eq!(advance(mark::REPLIED, ending::RESET, true), mark::REPLIED | mark::RESET);
}

#[test]
fn an_entry_remembers_who_opened_whichever_end_the_packet_came_from() {
    for (source_is_high, opener, expected) in [
        (true, End::Source, (0, flag::OPENED_BY_HIGH)),
        (false, End::Source, (0, 0)),
        (true, End::Destination, (mark::REPLIED, 0)),
        (false, End::Destination, (mark::REPLIED, flag::OPENED_BY_HIGH)),
    ] {
        let made = judged(None, 0, source_is_high, opener, &Verdict::NOT_JUDGED, &NOW);
        assert_eq!(((made.marks, made.flags), made.seen, made.epoch), (expected, NOW.jiffies, NOW.epoch));
        let again = look_up(Some(&made), TCP, Segment::MidStream, source_is_high, &NOW);
        assert_eq!(again, Lookup::Pass { from_opener: opener == End::Source });
    }
}

#[test]
fn judging_again_keeps_the_state_and_clears_the_denial() {
    let before = entry(5, mark::REPLIED | mark::FIN_OTHER, flag::DENIED);
    let after = judged(Some(&before), 0, false, End::Source, &Verdict::NOT_JUDGED, &NOW);
    assert_eq!((after.marks, after.flags), (mark::REPLIED | mark::FIN_OTHER, 0));
}

#[test]
fn a_denied_flow_is_kept_as_denied_and_its_opener_with_it() {
    let before = entry(5, mark::REPLIED, flag::OPENED_BY_HIGH);
    let kept = denied(&before, &NOW);
    assert_eq!((kept.marks, kept.flags, kept.seen), (before.marks, before.flags | flag::DENIED, before.seen));
    for (protocol, segment) in [(TCP, Segment::MidStream), (SCTP, Segment::MidStream), (UDP, Segment::Datagram)] {
        assert_eq!(look_up(Some(&kept), protocol, segment, false, &NOW), Lookup::Again(End::Destination));
    }
}

#[test]
fn only_what_opens_a_flow_makes_an_entry_of_the_node() {
    for segment in [Segment::Opening, Segment::Datagram, Segment::EchoRequest] {
        assert_eq!(from_host(segment, true, &NOW).unwrap().flags, flag::FROM_HOST | flag::OPENED_BY_HIGH);
    }
    for segment in [Segment::MidStream, Segment::Bare, Segment::EchoReply, Segment::Error, Segment::Later] {
        assert_eq!(from_host(segment, true, &NOW), None);
    }
}

#[test]
fn a_flow_is_named_from_its_opener_s_side() {
    let packet = packet(1, 40000, 2, 80, TCP);
    let subjects = Subjects { source: 11, destination: 22 };
    let there = flow(&packet, subjects, End::Source);
    assert_eq!((there.opener, there.responder, there.port), ([10, 0, 0, 1], [10, 0, 0, 2], 80));
    assert_eq!((there.egress_subject, there.ingress_subject), (11, 22));
    let back = flow(&packet, subjects, End::Destination);
    assert_eq!((back.opener, back.responder, back.port), ([10, 0, 0, 2], [10, 0, 0, 1], 40000));
    assert_eq!((back.egress_subject, back.ingress_subject), (22, 11));
}

#[test]
fn an_echo_has_no_port_and_a_pod_s_flow_to_itself_no_judge() {
    let subjects = Subjects { source: 11, destination: 22 };
    assert_eq!(flow(&packet(1, 0, 2, 80, ICMP), subjects, End::Source).port, 0);
    let own = flow(&packet(1, 40000, 1, 80, TCP), subjects, End::Source);
    assert_eq!((own.egress_subject, own.ingress_subject), (SUBJECT_NONE, SUBJECT_NONE));
}

#[test]
fn jiffies_follow_the_monotonic_clock() {
    let tick = 4_000_000;
    let start = (1 << 32) - 300 * 250;
    assert_eq!(jiffies_at(0, tick), start);
    assert_eq!(jiffies_at(300_000_000_000, tick), 1 << 32);
}

const MAC: [u8; 6] = [0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
const POD: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const OTHER: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const ALL_ROUTERS: V6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn message(kind: u8, segment: Segment, hop_limit: u8, source: V6) -> Packet<V6> {
    Packet { source, destination: ALL_ROUTERS, icmp_type: kind, segment, hop_limit, ..Packet::default() }
}

#[test]
fn neighbour_messages_of_a_host_are_let_to_its_link() {
    let link_local = neighbour::eui64(&MAC);
    let check = |kind, source, target| neighbour::check(&message(kind, Segment::Neighbour, 255, source), Some(target), &MAC, &POD);
    for source in [POD, link_local, [0; 16]] {
        assert_eq!(check(133, source, OTHER), Ok(()), "router solicitation");
    }
    assert_eq!(check(135, POD, OTHER), Ok(()));
    assert_eq!(check(135, [0; 16], POD), Ok(()), "duplicate address detection");
    assert_eq!(check(135, [0; 16], link_local), Ok(()));
    assert_eq!(check(136, POD, POD), Ok(()));
    assert_eq!(check(136, link_local, link_local), Ok(()));
    for kind in [130, 131, 132, 143] {
        assert_eq!(neighbour::check(&message(kind, Segment::Listener, 1, link_local), None, &MAC, &POD), Ok(()));
    }
}

#[test]
fn neighbour_messages_that_a_host_may_not_send_are_refused() {
    let invalid = Err(Outcome::NeighbourDiscoveryInvalid);
    let check = |packet: &Packet<V6>, target| neighbour::check(packet, target, &MAC, &POD);
    let good = message(135, Segment::Neighbour, 255, POD);
    assert_eq!(check(&Packet { hop_limit: 254, ..good }, Some(OTHER)), invalid, "it may have been forwarded");
    assert_eq!(check(&Packet { source: OTHER, ..good }, Some(OTHER)), invalid, "a foreign source");
    assert_eq!(check(&Packet { destination: OTHER, ..good }, Some(OTHER)), invalid, "a destination beyond the link");
    assert_eq!(check(&Packet { source: [0; 16], ..good }, Some(OTHER)), invalid, "it claims a foreign address");
    assert_eq!(check(&good, None), invalid, "truncated");
    assert_eq!(check(&message(136, Segment::Neighbour, 255, POD), Some(OTHER)), invalid, "it speaks for another");
    assert_eq!(check(&message(136, Segment::Neighbour, 255, [0; 16]), Some(POD)), invalid, "an answer from nobody");
    assert_eq!(check(&message(134, Segment::Neighbour, 255, POD), Some(POD)), invalid, "a pod is no router");
    assert_eq!(check(&message(137, Segment::Neighbour, 255, POD), Some(POD)), invalid, "a redirect");
    assert_eq!(check(&message(143, Segment::Listener, 2, POD), None), invalid, "hop limit 2");
    assert_eq!(check(&Packet { destination: OTHER, ..message(143, Segment::Listener, 1, POD) }, None), invalid, "a report to one host");
    let fragment = Packet { fragment_field: 0x2000, ..good };
    assert_eq!(check(&fragment, Some(OTHER)), invalid, "a fragment");
    let no_address = neighbour::check(&message(135, Segment::Neighbour, 255, [0; 16]), Some([0; 16]), &MAC, &[0; 16]);
    assert_eq!(no_address, invalid, "a pod without an address does not own the unspecified one");
}
