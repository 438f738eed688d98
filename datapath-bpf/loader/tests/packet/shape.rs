//! What a packet looks like: truncated, malformed, foreign, unknown. Each has its own outcome, and fails closed.

use palisade_datapath_core::abi::{Direction, Endpoint, Hook, Outcome, RowVerdict, SUBJECT_NONE};
use palisade_test_support::packet::{ethernet, extension, protocol, sctp, set, tcp, tcp_flag, udp};

use crate::world::{DROP, Family, IDENTITY_A, UPLINK, each_family, node, outside, world};

#[test]
fn a_packet_cut_anywhere_in_its_headers_is_truncated() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let icmp = [if family == Family::V4 { 8 } else { 128 }, 0, 0, 0, 0, 7, 0, 1];
        for (protocol, header) in [
            (protocol::TCP, tcp(40000, 80, tcp_flag::SYN)),
            (protocol::UDP, udp(40000, 53, b"")),
            (protocol::SCTP, sctp(40000, 80, 1)),
            (way.icmp_protocol(), icmp.to_vec()),
        ] {
            // Cut inside the transport header, with lengths that say so.
            for length in [0, 1, header.len() / 2, header.len() - 1] {
                world.a_sends(way.packet(protocol, &header[..length])).dropped_silently(Outcome::Truncated);
            }
            // The kernel refuses to run a program over a frame that is cut inside its network header; the tests of
            // `core` cut there.
            let whole = way.packet(protocol, &header);
            // The header says more than there is.
            world.a_sends(whole[..whole.len() - 1].to_vec()).dropped_silently(Outcome::HeaderInvalid);
        }
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn the_padding_of_a_short_frame_is_no_header() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let mut padded = way.packet(protocol::TCP, &tcp(40000, 80, tcp_flag::SYN)[..8]);
        padded.extend([0; 40]);
        world.a_sends(padded).dropped(Outcome::Truncated);
        let mut padded = way.udp(40000, 53);
        padded.extend([0; 10]);
        world.a_sends(padded).redirected_to(world.b, Outcome::AllowedNew);
    });
}

#[test]
fn a_version_or_length_that_contradicts_the_packet_is_invalid() {
    each_family(|world, family| {
        let frame = world.a_to_b(family).tcp(40000, 80, tcp_flag::SYN);
        let wrong: &[(usize, &[u8])] = match family {
            Family::V4 => &[(14, &[0x55]), (14, &[0x65]), (14, &[0x44]), (14, &[0x4f]), (16, &[0, 19]), (16, &[0, 41]), (16, &[0, 0])],
            Family::V6 => &[(14, &[0x40]), (14, &[0x50]), (18, &[0, 21]), (18, &[0xff, 0xff])],
        };
        for (offset, bytes) in wrong {
            world.a_sends(set(frame.clone(), *offset, bytes)).dropped_silently(Outcome::HeaderInvalid);
            let to_pod = world.b.from(outside(family)).tcp(40000, 80, tcp_flag::SYN);
            world.network_sends(set(to_pod, *offset, bytes)).dropped_silently(Outcome::HeaderInvalid);
        }
    });
}

#[test]
fn transport_lengths_that_contradict_the_packet_are_invalid() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let tcp = way.tcp(40000, 80, tcp_flag::SYN);
        for words in [0x40, 0x60, 0xf0] {
            world.a_sends(set(tcp.clone(), way.transport() + 12, &[words])).dropped_silently(Outcome::HeaderInvalid);
        }
        for length in [[0, 0], [0, 7], [0, 14], [0xff, 0xff]] {
            world.a_sends(set(way.udp(40000, 53), way.transport() + 4, &length)).dropped_silently(Outcome::HeaderInvalid);
        }
    });
}

#[test]
fn a_packet_with_ipv4_options_is_judged_by_the_ports_behind_them() {
    world(|world| {
        world.port(5, protocol::UDP, 53, 16, RowVerdict::Allow, 61);
        world.row(world.b, Direction::Ingress, IDENTITY_A, 5, RowVerdict::DefaultDeny, 60);
        let way = world.a_to_b(Family::V4);
        for words in [1, 5, 10] {
            // The bytes of the options read as ports of the allowed kind.
            let options = [0, 53].repeat(words * 2);
            world.a_sends(way.with_options(&options, protocol::UDP, &udp(40000, 54, b""))).dropped_silently(Outcome::IngressDefaultDenied);
            let source = 40000 + words as u16;
            let good = way.with_options(&options, protocol::UDP, &udp(source, 53, b""));
            world.a_sends(good).redirected_to(world.b, Outcome::AllowedNew);
        }
        let cut = way.with_options(&[1; 8], protocol::TCP, &tcp(40000, 53, tcp_flag::SYN)[..12]);
        world.a_sends(cut).dropped(Outcome::Truncated);
    });
}

#[test]
fn each_extension_header_is_walked_to_the_transport_header() {
    world(|world| {
        let way = world.a_to_b(Family::V6);
        let long = [&[protocol::UDP, 3, 1, 28][..], &[0; 28]].concat();
        for (port, next, header) in [
            (1, extension::HOP_BY_HOP, extension::options(protocol::UDP).to_vec()),
            (2, extension::DESTINATION_OPTIONS, extension::options(protocol::UDP).to_vec()),
            (3, extension::DESTINATION_OPTIONS, long),
            (4, extension::ROUTING, extension::routing(protocol::UDP, 0).to_vec()),
            (5, extension::AUTHENTICATION, extension::authentication(protocol::UDP).to_vec()),
            (6, extension::FRAGMENT, extension::fragment(protocol::UDP, 9, 0, false).to_vec()),
        ] {
            let packet = way.packet(next, &[&header[..], &udp(40000, port, b"")].concat());
            world.a_sends(packet.clone()).redirected_to(world.b, Outcome::AllowedNew);
            world.isolate(world.b, Direction::Ingress, 42);
            let other = way.packet(next, &[&header[..], &udp(40001, port, b"")].concat());
            let event = world.a_sends(other).dropped(Outcome::IngressDefaultDenied);
            assert_eq!((event.protocol, event.destination_port), (protocol::UDP, port.to_be_bytes()));
            world.open(world.b, Direction::Ingress);
        }
        let all = [
            &extension::options(extension::DESTINATION_OPTIONS)[..],
            &extension::options(extension::ROUTING),
            &extension::routing(extension::FRAGMENT, 0),
            &extension::fragment(extension::AUTHENTICATION, 9, 0, false),
            &extension::authentication(extension::DESTINATION_OPTIONS),
            &extension::options(protocol::TCP),
            &tcp(40000, 80, tcp_flag::SYN),
        ];
        world.a_sends(way.packet(extension::HOP_BY_HOP, &all.concat())).redirected_to(world.b, Outcome::AllowedNew);
    });
}

#[test]
fn a_seventh_extension_header_is_too_many() {
    world(|world| {
        let chain = |count: usize| {
            let mut headers = extension::options(extension::DESTINATION_OPTIONS).repeat(count - 1);
            headers.extend(extension::options(protocol::UDP));
            headers.extend(udp(40000, 53, b""));
            headers
        };
        let way = world.a_to_b(Family::V6);
        world.a_sends(way.packet(extension::DESTINATION_OPTIONS, &chain(6))).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(way.packet(extension::DESTINATION_OPTIONS, &chain(7))).dropped(Outcome::ExtensionHeaders);
    });
}

#[test]
fn extension_headers_that_are_cut_or_hide_something_are_dropped() {
    world(|world| {
        let way = world.a_to_b(Family::V6);
        let udp = udp(40000, 53, b"");
        let second_hop_by_hop = [&extension::options(extension::HOP_BY_HOP)[..], &extension::options(protocol::UDP), &udp].concat();
        world.a_sends(way.packet(extension::DESTINATION_OPTIONS, &second_hop_by_hop)).dropped(Outcome::HeaderInvalid);
        let route_to_go = [&extension::routing(protocol::UDP, 1)[..], &udp].concat();
        world.a_sends(way.packet(extension::ROUTING, &route_to_go)).dropped_silently(Outcome::HeaderInvalid);
        for cut in [0, 1, 7] {
            let header = &extension::options(protocol::UDP)[..cut];
            world.a_sends(way.packet(extension::DESTINATION_OPTIONS, header)).dropped_silently(Outcome::Truncated);
        }
        let beyond_the_end = [&[protocol::UDP, 200, 0, 0, 0, 0, 0, 0][..], &udp].concat();
        world.a_sends(way.packet(extension::DESTINATION_OPTIONS, &beyond_the_end)).dropped_silently(Outcome::Truncated);
    });
}

#[test]
fn a_foreign_source_address_is_dropped() {
    each_family(|world, family| {
        for source in [world.b.address(family), outside(family), node(family)] {
            let frame = world.a_to_b(family).from(source).udp(40000, 53);
            world.a_sends(frame).dropped(Outcome::SourceAddressForeign);
        }
    });
}

#[test]
fn a_pod_without_an_address_of_a_family_sends_nothing_of_it() {
    each_family(|world, family| {
        let endpoint = Endpoint { ipv4: [0; 4], ipv6: [0; 16], ..world.a.endpoint() };
        world.datapath.endpoints.insert(&world.a.ifindex, &endpoint).unwrap();
        world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped(Outcome::SourceAddressForeign);
        let unspecified = match family {
            Family::V4 => "0.0.0.0",
            Family::V6 => "::",
        };
        let frame = world.a_to_b(family).from(unspecified.parse().unwrap()).udp(40000, 53);
        world.a_sends(frame).dropped(Outcome::SourceAddressForeign);
    });
}

#[test]
fn a_foreign_source_hardware_address_is_dropped() {
    each_family(|world, family| {
        for mac in [world.b.mac, world.a.host_mac, [0xff; 6]] {
            let frame = set(world.a_to_b(family).udp(40000, 53), 6, &mac);
            world.a_sends(frame).dropped_silently(Outcome::SourceMacForeign);
        }
    });
}

#[test]
fn a_frame_that_is_neither_ip_nor_arp_is_dropped() {
    world(|world| {
        // VLAN, Q-in-Q, MPLS, LLDP, PPPoE, and a length of IEEE 802.3.
        for ether_type in [0x8100, 0x88a8, 0x8847, 0x88cc, 0x8864, 0x0100] {
            let frame = ethernet(world.a.host_mac, world.a.mac, ether_type, &[0; 50]);
            let event = world.a_sends(frame);
            event.dropped_silently(Outcome::EtherTypeUnknown);
            let frame = ethernet(world.b.mac, world.b.host_mac, ether_type, &[0; 50]);
            world.host_sends(frame).dropped_silently(Outcome::EtherTypeUnknown);
        }
        let inner = world.a_to_b(Family::V4).udp(40000, 53);
        let tagged = [&inner[..12], &[0x81, 0, 0, 5], &inner[12..]].concat();
        world.a_sends(tagged).dropped_silently(Outcome::EtherTypeUnknown);
    });
}

#[test]
fn a_protocol_that_policy_cannot_judge_is_dropped() {
    each_family(|world, family| {
        let way = world.a_to_b(family);
        let foreign_icmp = if family == Family::V4 { protocol::ICMPV6 } else { protocol::ICMP };
        for number in [2, 4, 41, protocol::GRE, 50, 59, 136, foreign_icmp] {
            let event = world.a_sends(way.packet(number, &[0; 40])).dropped(Outcome::ProtocolUnknown);
            assert_eq!(event.protocol, number);
        }
    });
}

#[test]
fn an_interface_without_endpoint_is_closed() {
    each_family(|world, family| {
        assert!(world.datapath.endpoints.remove(&world.a.ifindex).unwrap());
        let seen = world.a_sends(world.a_to_b(family).udp(40000, 53));
        let event = seen.dropped(Outcome::EndpointMissing);
        assert_eq!(event.version, 0, "it was not even read");
        let back = world.a.from(outside(family)).udp(53, 40000);
        world.run(Hook::ToPod, world.a.ifindex, UPLINK, back).dropped(Outcome::EndpointMissing);
    });
}

#[test]
fn an_endpoint_without_subject_is_closed_both_ways() {
    each_family(|world, family| {
        let closed = Endpoint { subject: SUBJECT_NONE, ..world.b.endpoint() };
        world.datapath.endpoints.insert(&world.b.ifindex, &closed).unwrap();
        world.b_sends(world.b_to_a(family).udp(40000, 53)).dropped(Outcome::EndpointMissing);
        world.network_sends(world.b.from(outside(family)).udp(40000, 53)).dropped(Outcome::EndpointMissing);
        world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped(Outcome::EndpointMissing);
    });
}

#[test]
fn a_pod_that_has_an_address_but_no_endpoint_gets_nothing() {
    each_family(|world, family| {
        assert!(world.datapath.endpoints.remove(&world.b.ifindex).unwrap());
        world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped(Outcome::EndpointMissing);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn a_packet_at_its_last_hop_goes_to_the_stack_which_answers_it() {
    each_family(|world, family| {
        for hop_limit in [0, 1] {
            let seen = world.a_sends(world.a_to_b(family).hop_limit(hop_limit).udp(40000 + u16::from(hop_limit), 53));
            seen.passed(Outcome::AllowedNew);
        }
        world.a_sends(world.a_to_b(family).hop_limit(2).udp(40002, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(world.a_to_b(family).hop_limit(255).udp(40003, 53)).redirected_to(world.b, Outcome::AllowedNew);
    });
}

#[test]
fn a_packet_to_a_pod_s_interface_for_another_address_is_dropped() {
    each_family(|world, family| {
        for destination in [world.a.address(family), outside(family)] {
            let frame = world.b.from(outside(family)).to(destination).udp(40000, 53);
            world.network_sends(frame.clone()).dropped(Outcome::DestinationForeign);
            world.host_sends(frame).dropped_silently(Outcome::DestinationForeign);
        }
    });
}

/// A generator without a dependency (xorshift); the seed makes every run the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn damaged_packets_always_come_to_one_outcome_and_never_change_where_they_are_dropped() {
    each_family(|world, family| {
        let mut random = Random(0x5eed_0000_0000_0001);
        let way = world.a_to_b(family);
        let back = world.b.from(outside(family));
        for round in 0..1500 {
            let mut frame = match round % 4 {
                0 => way.tcp(40000, 80, tcp_flag::SYN),
                1 => way.echo_request(7),
                2 => way.unreachable(&way.ip(protocol::UDP, &udp(40000, 53, b""))),
                _ => way.fragment(9, 0, true, protocol::UDP, &udp(40000, 53, &[7; 24])),
            };
            for _ in 0..=random.next() % 3 {
                let offset = 14 + random.next() as usize % (frame.len() - 14);
                frame[offset] = random.next() as u8;
            }
            if random.next().is_multiple_of(4) {
                // Shorter ones the kernel refuses to run a program over.
                let shortest = way.transport();
                frame.truncate(shortest + random.next() as usize % (frame.len() - shortest));
            }
            // `run` itself checks that one counter moves and that outcome, action and event agree.
            let seen = world.a_sends(frame);
            if seen.action == DROP {
                seen.dropped_silently(seen.outcome);
            }
            let mut frame = back.tcp(443, 40000, tcp_flag::ACK);
            let offset = 14 + random.next() as usize % (frame.len() - 14);
            frame[offset] = random.next() as u8;
            let seen = world.network_sends(frame);
            if seen.action == DROP {
                seen.dropped_silently(seen.outcome);
            }
        }
    });
}
