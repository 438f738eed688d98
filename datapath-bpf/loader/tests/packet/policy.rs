//! The verdict of both ends, and the reason that the event gives.

use palisade_datapath_core::abi::{Direction, Hook, IDENTITY_ANY, Outcome, PolicyEntry, PolicyKey, RowVerdict};
use palisade_datapath_core::verdict::Decision;
use palisade_test_support::packet::{Way, protocol, sctp_chunk, tcp_flag};

use crate::seen::decisions;
use crate::world::{Family, IDENTITY_A, IDENTITY_B, IDENTITY_OUTSIDE, each_family, outside, wide};

/// The first packet of a flow, for each protocol that policy can judge.
fn openings(way: Way) -> [(&'static str, Vec<u8>); 4] {
    [
        ("TCP", way.tcp(40000, 80, tcp_flag::SYN)),
        ("UDP", way.udp(40000, 53)),
        ("SCTP", way.sctp(40000, 3868, sctp_chunk::INIT)),
        ("echo", way.echo_request(7)),
    ]
}

#[test]
fn what_no_policy_isolates_is_allowed_and_goes_straight_to_the_pod() {
    each_family(|world, family| {
        for (_, packet) in openings(world.a_to_b(family)) {
            let seen = world.a_sends(packet);
            assert_eq!(seen.event, None, "nobody asked for events of allowed flows");
            seen.redirected_to(world.b, Outcome::AllowedNew);
        }
    });
}

#[test]
fn a_rule_of_the_sender_denies() {
    each_family(|world, family| {
        world.rule(world.a, Direction::Egress, IDENTITY_B, RowVerdict::Deny, 41);
        for (name, packet) in openings(world.a_to_b(family)) {
            let event = world.a_sends(packet).dropped(Outcome::EgressDenied);
            assert_eq!(decisions(&event), [(Decision::Deny, 41), (Decision::NotJudged, 0)], "{name}");
        }
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn the_sender_s_isolation_denies_by_default() {
    each_family(|world, family| {
        world.isolate(world.a, Direction::Egress, 42);
        for (name, packet) in openings(world.a_to_b(family)) {
            let event = world.a_sends(packet).dropped(Outcome::EgressDefaultDenied);
            assert_eq!(decisions(&event), [(Decision::DefaultDeny, 42), (Decision::NotJudged, 0)], "{name}");
        }
    });
}

#[test]
fn a_rule_of_the_receiver_denies() {
    each_family(|world, family| {
        world.rule(world.a, Direction::Egress, IDENTITY_B, RowVerdict::Allow, 50);
        world.rule(world.b, Direction::Ingress, IDENTITY_A, RowVerdict::Deny, 43);
        for (name, packet) in openings(world.a_to_b(family)) {
            let event = world.a_sends(packet).dropped(Outcome::IngressDenied);
            assert_eq!(decisions(&event), [(Decision::Allow, 50), (Decision::Deny, 43)], "{name}");
        }
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn the_receiver_s_isolation_denies_by_default() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 44);
        for (name, packet) in openings(world.a_to_b(family)) {
            let event = world.a_sends(packet).dropped(Outcome::IngressDefaultDenied);
            assert_eq!(decisions(&event), [(Decision::Allow, 0), (Decision::DefaultDeny, 44)], "{name}");
        }
    });
}

#[test]
fn an_event_names_the_flow() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 44);
        let way = world.a_to_b(family);
        let event = world.a_sends(way.tcp(40000, 80, tcp_flag::SYN)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!((event.source, event.destination), (wide(way.source), wide(way.destination)));
        assert_eq!((event.source_port, event.destination_port), (40000u16.to_be_bytes(), 80u16.to_be_bytes()));
        assert_eq!((event.protocol, event.version), (protocol::TCP, if family == Family::V4 { 4 } else { 6 }));
        assert_eq!((event.suppressed, event.reserved), (0, [0; 4]));
    });
}

#[test]
fn a_row_for_the_peer_goes_before_the_one_for_any() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 44);
        world.rule(world.b, Direction::Ingress, IDENTITY_A, RowVerdict::Allow, 45);
        world.a_sends(world.a_to_b(family).udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.open(world.b, Direction::Ingress);
        world.rule(world.b, Direction::Ingress, IDENTITY_A, RowVerdict::DefaultDeny, 46);
        let event = world.a_sends(world.a_to_b(family).udp(40001, 53)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(decisions(&event)[1], (Decision::DefaultDeny, 46));
    });
}

#[test]
fn a_subject_without_rows_is_closed() {
    each_family(|world, family| {
        assert!(world.datapath.policy.remove(&PolicyKey::new(world.b.subject, Direction::Ingress, IDENTITY_ANY)).unwrap());
        let event = world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped(Outcome::PolicyMissing);
        assert_eq!(decisions(&event), [(Decision::Allow, 0), (Decision::Missing, 0)]);
        assert!(world.datapath.policy.remove(&PolicyKey::new(world.a.subject, Direction::Egress, IDENTITY_ANY)).unwrap());
        let event = world.a_sends(world.a_to_b(family).udp(40001, 53)).dropped(Outcome::PolicyMissing);
        assert_eq!(decisions(&event), [(Decision::Missing, 0), (Decision::NotJudged, 0)]);
    });
}

#[test]
fn a_row_without_meaning_is_closed() {
    each_family(|world, family| {
        for (verdict, port) in [(0, 1), (4, 2), (255, 3)] {
            let entry = PolicyEntry { verdict, ..PolicyEntry::default() };
            world.datapath.policy.insert(&PolicyKey::new(world.b.subject, Direction::Ingress, IDENTITY_ANY), &entry).unwrap();
            world.a_sends(world.a_to_b(family).udp(40000, port)).dropped(Outcome::PolicyMissing);
        }
    });
}

#[test]
fn an_address_of_its_own_goes_before_its_prefix() {
    each_family(|world, family| {
        world.rule(world.a, Direction::Egress, IDENTITY_OUTSIDE, RowVerdict::Deny, 47);
        let way = world.a.to(outside(family));
        let event = world.a_sends(way.udp(40000, 53)).dropped(Outcome::EgressDenied);
        assert_eq!(decisions(&event)[0], (Decision::Deny, 47));
        world.datapath.addresses.insert(&outside(family), &99).unwrap();
        world.a_sends(way.udp(40001, 53)).passed(Outcome::AllowedNew);
    });
}

#[test]
fn the_longest_prefix_names_the_peer() {
    each_family(|world, family| {
        let narrow = match family {
            Family::V4 => "192.0.2.8/29",
            Family::V6 => "2001:db8::8/125",
        };
        world.datapath.prefixes.insert(&narrow.parse().unwrap(), &21).unwrap();
        world.isolate(world.a, Direction::Egress, 48);
        world.rule(world.a, Direction::Egress, IDENTITY_OUTSIDE, RowVerdict::Allow, 49);
        let way = world.a.to(outside(family));
        world.a_sends(way.udp(40000, 53)).dropped(Outcome::EgressDefaultDenied);
        world.rule(world.a, Direction::Egress, 21, RowVerdict::Allow, 49);
        world.a_sends(way.udp(40001, 53)).passed(Outcome::AllowedNew);
    });
}

#[test]
fn what_is_for_no_pod_of_this_node_goes_to_the_stack_after_the_sender_s_verdict() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 44);
        for (_, packet) in openings(world.a.to(outside(family))) {
            world.a_sends(packet).passed(Outcome::AllowedNew);
        }
    });
}

#[test]
fn a_port_prefix_ends_exactly_at_its_last_port() {
    each_family(|world, family| {
        world.row(world.b, Direction::Ingress, IDENTITY_A, 5, RowVerdict::DefaultDeny, 60);
        // 8000 to 8015, and 0, and 65535.
        world.port(5, protocol::UDP, 8000, 12, RowVerdict::Allow, 61);
        world.port(5, protocol::UDP, 0, 16, RowVerdict::Allow, 62);
        world.port(5, protocol::UDP, 65535, 16, RowVerdict::Allow, 63);
        let way = world.a_to_b(family);
        for port in [0, 8000, 8007, 8015, 65535] {
            world.a_sends(way.udp(40000, port)).redirected_to(world.b, Outcome::AllowedNew);
        }
        for port in [1, 7999, 8016, 65534] {
            let event = world.a_sends(way.udp(40000, port)).dropped(Outcome::IngressDefaultDenied);
            assert_eq!(decisions(&event)[1], (Decision::DefaultDeny, 60), "port {port}");
        }
    });
}

#[test]
fn the_longest_port_prefix_decides_and_gives_its_reason() {
    each_family(|world, family| {
        world.row(world.b, Direction::Ingress, IDENTITY_A, 5, RowVerdict::DefaultDeny, 60);
        world.port(5, protocol::TCP, 0, 0, RowVerdict::Allow, 61);
        world.port(5, protocol::TCP, 22, 16, RowVerdict::Deny, 62);
        let way = world.a_to_b(family);
        world.a_sends(way.tcp(40000, 80, tcp_flag::SYN)).redirected_to(world.b, Outcome::AllowedNew);
        let event = world.a_sends(way.tcp(40000, 22, tcp_flag::SYN)).dropped(Outcome::IngressDenied);
        assert_eq!(decisions(&event)[1], (Decision::Deny, 62));
    });
}

#[test]
fn a_port_of_one_protocol_opens_nothing_of_another() {
    each_family(|world, family| {
        world.row(world.b, Direction::Ingress, IDENTITY_A, 5, RowVerdict::DefaultDeny, 60);
        world.port(5, protocol::SCTP, 80, 16, RowVerdict::Allow, 61);
        let way = world.a_to_b(family);
        world.a_sends(way.sctp(40000, 80, sctp_chunk::INIT)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(way.tcp(40000, 80, tcp_flag::SYN)).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(way.udp(40000, 80)).dropped(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn an_echo_passes_a_rule_without_ports_and_no_rule_that_names_ports() {
    each_family(|world, family| {
        world.row(world.b, Direction::Ingress, IDENTITY_A, 5, RowVerdict::DefaultDeny, 60);
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            world.port(5, protocol, 0, 0, RowVerdict::Allow, 61);
        }
        let way = world.a_to_b(family);
        world.a_sends(way.echo_request(80)).dropped(Outcome::IngressDefaultDenied);
        world.row(world.b, Direction::Ingress, IDENTITY_A, 0, RowVerdict::Allow, 62);
        world.a_sends(way.echo_request(81)).redirected_to(world.b, Outcome::AllowedNew);
    });
}

#[test]
fn a_flow_from_the_network_takes_the_receiver_s_verdict() {
    each_family(|world, family| {
        let way = world.b.from(outside(family));
        for (_, packet) in openings(way) {
            world.network_sends(packet).passed(Outcome::AllowedNew);
        }
        world.isolate(world.b, Direction::Ingress, 44);
        let event = world.network_sends(way.udp(40001, 53)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(decisions(&event), [(Decision::NotJudged, 0), (Decision::DefaultDeny, 44)]);
        world.rule(world.b, Direction::Ingress, IDENTITY_OUTSIDE, RowVerdict::Allow, 45);
        world.network_sends(way.udp(40002, 53)).passed(Outcome::AllowedNew);
        world.rule(world.b, Direction::Ingress, IDENTITY_OUTSIDE, RowVerdict::Deny, 46);
        world.network_sends(way.udp(40003, 53)).dropped(Outcome::IngressDenied);
    });
}

#[test]
fn a_local_pod_that_comes_by_the_stack_takes_both_verdicts() {
    each_family(|world, family| {
        world.isolate(world.a, Direction::Egress, 42);
        let way = world.b.from(world.a.address(family));
        world.run(Hook::ToPod, world.b.ifindex, world.a.ifindex, way.udp(40000, 53)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn allowed_flows_make_events_where_somebody_asked() {
    each_family(|world, family| {
        world.datapath.observe_allowed(true).unwrap();
        world.rule(world.a, Direction::Egress, IDENTITY_B, RowVerdict::Allow, 50);
        world.rule(world.b, Direction::Ingress, IDENTITY_A, RowVerdict::Allow, 51);
        let seen = world.a_sends(world.a_to_b(family).udp(40000, 53));
        assert_eq!(decisions(&seen.event.unwrap()), [(Decision::Allow, 50), (Decision::Allow, 51)]);
        seen.redirected_to(world.b, Outcome::AllowedNew);
        let again = world.a_sends(world.a_to_b(family).udp(40000, 53));
        assert_eq!(again.event, None, "an established flow makes none");
        again.redirected_to(world.b, Outcome::AllowedEstablished);
    });
}

#[test]
fn a_pod_reaches_itself() {
    each_family(|world, family| {
        for direction in [Direction::Egress, Direction::Ingress] {
            world.isolate(world.a, direction, 42);
        }
        world.a_sends(world.a.to(world.a.address(family)).udp(40000, 53)).redirected_to(world.a, Outcome::AllowedNew);
    });
}

#[test]
fn an_event_of_a_flow_is_sent_about_once_a_second_and_the_rest_is_counted() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 44);
        let way = world.a_to_b(family);
        world.a_sends(way.udp(40000, 53)).dropped(Outcome::IngressDefaultDenied);
        for _ in 0..3 {
            let seen = world.a_sends(way.udp(40000, 53));
            seen.dropped_silently(Outcome::IngressDefaultDenied);
            assert_eq!(seen.event, None);
        }
        let event = world.a_sends(way.udp(40001, 53)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(event.suppressed, 3);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        world.a_sends(way.udp(40000, 53)).dropped(Outcome::IngressDefaultDenied);
    });
}
