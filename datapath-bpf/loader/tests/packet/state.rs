//! The connection table: who opened a flow, replies, time-outs, and changes of policy.

use palisade_datapath_core::abi::{Direction, IDENTITY_ANY, Outcome, RowVerdict, connection_mark as mark};
use palisade_datapath_core::verdict::Decision;
use palisade_test_support::packet::{sctp_chunk, tcp_flag::*};

use crate::seen::decisions;
use crate::world::{Family, IDENTITY_A, World, each_family, outside};

/// Opens a TCP flow from A to B, both ends heard.
fn connect(world: &mut World, family: Family) {
    let (there, back) = (world.a_to_b(family), world.b_to_a(family));
    world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
    world.b_sends(back.tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
    world.a_sends(there.tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
}

fn marks(world: &World, family: Family) -> u8 {
    let [entry] = world.connections(family)[..] else { panic!("there is one entry") };
    entry.marks
}

#[test]
fn replies_pass_whatever_the_other_direction_says() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        world.isolate(world.a, Direction::Ingress, 42);
        connect(world, family);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.udp(53, 40000)).redirected_to(world.a, Outcome::AllowedReply);
        world.a_sends(there.sctp(40000, 3868, sctp_chunk::INIT)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.sctp(3868, 40000, sctp_chunk::INIT_ACK)).redirected_to(world.a, Outcome::AllowedReply);
    });
}

#[test]
fn a_reply_from_the_network_passes() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        world.b_sends(world.b.to(outside(family)).tcp(40000, 443, SYN)).passed(Outcome::AllowedNew);
        world.network_sends(world.b.from(outside(family)).tcp(443, 40000, SYN | ACK)).passed(Outcome::AllowedReply);
    });
}

#[test]
fn an_entry_keeps_the_reasons_and_the_epoch() {
    each_family(|world, family| {
        world.rule(world.a, Direction::Egress, IDENTITY_ANY, RowVerdict::Allow, 50);
        world.rule(world.b, Direction::Ingress, IDENTITY_A, RowVerdict::Allow, 51);
        let epoch = world.datapath.bump_epoch().unwrap();
        world.a_sends(world.a_to_b(family).udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        let [entry] = world.connections(family)[..] else { panic!("there is one entry") };
        assert_eq!((entry.egress_reason, entry.ingress_reason, entry.epoch), (50, 51, epoch));
    });
}

#[test]
fn an_opening_in_the_reply_direction_is_judged_as_its_sender_s() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        connect(world, family);
        let event = world.b_sends(world.b_to_a(family).tcp(80, 40000, SYN)).dropped(Outcome::EgressDefaultDenied);
        assert_eq!(decisions(&event)[0], (Decision::DefaultDeny, 42));
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.a_sends(world.a_to_b(family).sctp(40000, 80, sctp_chunk::INIT)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).sctp(80, 40000, sctp_chunk::INIT)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn mid_stream_without_an_entry_is_judged_as_opened_by_its_sender() {
    each_family(|world, family| {
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK | PSH)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
    });
}

#[test]
fn mid_stream_without_an_entry_of_an_end_that_may_not_open_waits_for_the_other() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).dropped(Outcome::EgressDefaultDenied);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.b_sends(world.b_to_a(family).tcp(81, 40000, PSH)).dropped(Outcome::EgressDefaultDenied);
        world.b_sends(world.b_to_a(family).udp(53, 40000)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn mid_stream_that_neither_end_may_open_is_denied_for_its_sender_s_reason() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        world.isolate(world.b, Direction::Ingress, 43);
        let event = world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).dropped(Outcome::EgressDefaultDenied);
        assert_eq!(decisions(&event), [(Decision::DefaultDeny, 42), (Decision::NotJudged, 0)]);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn a_denied_packet_leaves_nothing_that_admits_the_other_direction() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 43);
        world.isolate(world.b, Direction::Egress, 44);
        world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped(Outcome::IngressDefaultDenied);
        world.b_sends(world.b_to_a(family).udp(53, 40000)).dropped(Outcome::EgressDefaultDenied);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn fin_of_both_ends_and_rst_close_a_flow() {
    each_family(|world, family| {
        connect(world, family);
        assert_eq!(marks(world, family), mark::REPLIED);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, FIN | ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
        assert_eq!(marks(world, family), mark::REPLIED | mark::FIN_OPENER);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, FIN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        assert_eq!(marks(world, family), mark::REPLIED | mark::FIN_OPENER | mark::FIN_OTHER);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
        world.let_pass(family, 11);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, RST)).redirected_to(world.a, Outcome::AllowedReply);
        assert_ne!(marks(world, family) & mark::RESET, 0);
    });
}

/// What may end a flow before its ports are used again: a packet of A, or of B, each.
const ENDS: [&[(bool, u8)]; 5] =
    [&[(true, FIN | ACK)], &[(false, FIN | ACK)], &[(true, FIN | ACK), (false, FIN | ACK)], &[(true, RST)], &[(false, RST | ACK)]];

fn end(world: &mut World, family: Family, packets: &[(bool, u8)]) {
    for (of_a, flags) in packets {
        match of_a {
            true => world.a_sends(world.a_to_b(family).tcp(40000, 80, *flags)).redirected_to(world.b, Outcome::AllowedEstablished),
            false => world.b_sends(world.b_to_a(family).tcp(80, 40000, *flags)).redirected_to(world.a, Outcome::AllowedReply),
        }
    }
}

#[test]
fn a_new_opening_on_the_ports_of_a_closed_or_closing_flow_starts_afresh() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        for packets in ENDS {
            connect(world, family);
            end(world, family, packets);
            world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
            assert_eq!(marks(world, family), 0, "after {packets:?}");
            world.b_sends(world.b_to_a(family).tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
            world.let_pass(family, 3600);
            world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
        }
    });
}

#[test]
fn a_new_opening_on_the_ports_of_a_closed_or_closing_flow_is_judged_as_any_other() {
    each_family(|world, family| {
        for packets in ENDS {
            world.open(world.b, Direction::Ingress);
            connect(world, family);
            end(world, family, packets);
            let before = marks(world, family);
            // Without a new epoch: what is left of the flow goes on.
            world.isolate(world.b, Direction::Ingress, 43);
            world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN)).dropped_silently(Outcome::IngressDefaultDenied);
            assert_eq!(marks(world, family), before, "after {packets:?}");
            world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
        }
    });
}

#[test]
fn the_ports_of_a_closed_or_closing_flow_may_be_used_by_the_other_end_which_opens_then() {
    each_family(|world, family| {
        for packets in ENDS {
            world.open(world.a, Direction::Egress);
            connect(world, family);
            end(world, family, packets);
            world.b_sends(world.b_to_a(family).tcp(80, 40000, SYN)).redirected_to(world.a, Outcome::AllowedNew);
            // A's packets are answers now: its own egress is not asked about them.
            world.isolate(world.a, Direction::Egress, 44);
            world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN | ACK)).redirected_to(world.b, Outcome::AllowedReply);
            world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedEstablished);
        }
    });
}

#[test]
fn a_simultaneous_open_is_one_flow_that_either_end_may_have_opened() {
    each_family(|world, family| {
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 40000, SYN)).redirected_to(world.a, Outcome::AllowedNew);
        world.a_sends(there.tcp(40000, 80, SYN | ACK)).redirected_to(world.b, Outcome::AllowedReply);
        world.b_sends(back.tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedEstablished);
        assert_eq!(marks(world, family), mark::REPLIED);
        world.let_pass(family, 3600);
        world.b_sends(back.tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedEstablished);
        world.a_sends(there.tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedReply);
    });
}

#[test]
fn a_simultaneous_open_by_an_end_that_may_not_open_leaves_the_flow_to_the_other() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 40000, SYN)).dropped(Outcome::EgressDefaultDenied);
        // A's SYN has reached B all the same, and B answers it.
        world.b_sends(back.tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.a_sends(there.tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
        assert_eq!(marks(world, family), mark::REPLIED);
    });
}

#[test]
fn no_flow_of_a_pod_is_taken_for_one_of_the_next_that_has_its_address() {
    each_family(|world, family| {
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        connect(world, family);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.udp(53, 40000)).redirected_to(world.a, Outcome::AllowedReply);
        world.replace(world.a);
        // The new A may open to B, but not B to it: what B goes on saying to the old one does not come in as its answers.
        world.isolate(world.a, Direction::Ingress, 42);
        world.b_sends(back.udp(53, 40000)).dropped(Outcome::IngressDefaultDenied);
        world.b_sends(back.tcp(80, 40000, ACK)).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.udp(53, 40000)).redirected_to(world.a, Outcome::AllowedReply);
    });
}

#[test]
fn no_flow_from_the_network_to_a_pod_is_taken_for_one_of_the_next_that_has_its_address() {
    each_family(|world, family| {
        let (there, back) = (world.b.to(outside(family)), world.b.from(outside(family)));
        world.b_sends(there.udp(40000, 53)).passed(Outcome::AllowedNew);
        world.network_sends(back.udp(53, 40000)).passed(Outcome::AllowedReply);
        world.replace(world.b);
        world.isolate(world.b, Direction::Ingress, 42);
        world.network_sends(back.udp(53, 40000)).dropped(Outcome::IngressDefaultDenied);
        world.b_sends(there.udp(40000, 53)).passed(Outcome::AllowedNew);
        world.network_sends(back.udp(53, 40000)).passed(Outcome::AllowedReply);
    });
}

#[test]
fn an_idle_flow_is_judged_again_when_its_time_is_over() {
    each_family(|world, family| {
        connect(world, family);
        world.let_pass(family, 24 * 3600 - 2);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
        world.let_pass(family, 24 * 3600 + 1);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedNew);
    });
}

#[test]
fn an_idle_flow_is_judged_in_its_opener_s_direction_though_the_other_end_speaks_first() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        connect(world, family);
        world.let_pass(family, 24 * 3600 + 1);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedNew);
        world.let_pass(family, 24 * 3600 + 1);
        world.isolate(world.b, Direction::Ingress, 43);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).dropped(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn udp_lives_30_seconds_and_180_once_it_was_answered() {
    each_family(|world, family| {
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.let_pass(family, 28);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedEstablished);
        world.let_pass(family, 31);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.udp(53, 40000)).redirected_to(world.a, Outcome::AllowedReply);
        world.let_pass(family, 178);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedEstablished);
        world.let_pass(family, 181);
        world.isolate(world.b, Direction::Egress, 42);
        world.b_sends(back.udp(53, 40000)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn a_change_of_policy_ends_an_established_flow_in_both_directions() {
    each_family(|world, family| {
        connect(world, family);
        world.isolate(world.b, Direction::Ingress, 43);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
        world.datapath.bump_epoch().unwrap();
        let event = world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(decisions(&event)[1], (Decision::DefaultDeny, 43));
        // Retransmissions of both ends: B may open towards A; but A opened this flow.
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK | PSH)).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).dropped_silently(Outcome::IngressDefaultDenied);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK | PSH)).dropped_silently(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn a_flow_that_a_change_denied_does_not_come_back_when_its_entry_is_evicted() {
    each_family(|world, family| {
        connect(world, family);
        world.isolate(world.b, Direction::Ingress, 43);
        world.datapath.bump_epoch().unwrap();
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).dropped(Outcome::IngressDefaultDenied);
        world.forget_connections(family);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK | PSH)).dropped_silently(Outcome::IngressDefaultDenied);
        assert!(world.connections(family).is_empty());
    });
}

#[test]
fn a_change_of_policy_that_a_reply_meets_first_ends_the_flow_too() {
    each_family(|world, family| {
        connect(world, family);
        world.isolate(world.a, Direction::Egress, 43);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).dropped(Outcome::EgressDefaultDenied);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn a_flow_that_was_ended_goes_on_when_the_policy_comes_back() {
    each_family(|world, family| {
        connect(world, family);
        world.isolate(world.b, Direction::Ingress, 43);
        world.datapath.bump_epoch().unwrap();
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).dropped(Outcome::IngressDefaultDenied);
        world.open(world.b, Direction::Ingress);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedNew);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
    });
}

#[test]
fn a_change_that_alters_nothing_costs_a_flow_one_look_at_the_policies() {
    each_family(|world, family| {
        connect(world, family);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedEstablished);
    });
}

#[test]
fn a_flow_of_udp_that_a_change_denies_is_not_reopened_by_the_other_end() {
    each_family(|world, family| {
        world.a_sends(world.a_to_b(family).udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.isolate(world.b, Direction::Ingress, 43);
        world.datapath.bump_epoch().unwrap();
        world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped(Outcome::IngressDefaultDenied);
        world.b_sends(world.b_to_a(family).udp(53, 40000)).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(world.a_to_b(family).udp(40000, 53)).dropped_silently(Outcome::IngressDefaultDenied);
        // When the flow is forgotten, either end may open one as its policy says.
        world.let_pass(family, 31);
        world.b_sends(world.b_to_a(family).udp(53, 40000)).redirected_to(world.a, Outcome::AllowedNew);
    });
}

#[test]
fn a_flow_from_the_network_is_judged_again_too() {
    each_family(|world, family| {
        let way = world.b.from(outside(family));
        world.network_sends(way.tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(world.b.to(outside(family)).tcp(80, 50000, SYN | ACK)).passed(Outcome::AllowedReply);
        world.isolate(world.b, Direction::Ingress, 43);
        world.datapath.bump_epoch().unwrap();
        world.b_sends(world.b.to(outside(family)).tcp(80, 50000, ACK)).dropped(Outcome::IngressDefaultDenied);
        world.network_sends(way.tcp(50000, 80, ACK)).dropped(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn an_echo_is_a_flow_of_its_own_and_its_reply_passes() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.echo_request(7)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.echo_reply(7)).redirected_to(world.a, Outcome::AllowedReply);
        world.a_sends(there.echo_request(7)).redirected_to(world.b, Outcome::AllowedEstablished);
        let event = world.b_sends(back.echo_request(7)).dropped(Outcome::EgressDefaultDenied);
        assert_eq!(event.source_port, 7u16.to_be_bytes(), "the id stands for the port of the end that asks");
    });
}

#[test]
fn an_echo_reply_that_nobody_asked_for_is_dropped() {
    each_family(|world, family| {
        let back = world.b_to_a(family);
        world.b_sends(back.echo_reply(7)).dropped(Outcome::IcmpUnrelated);
        world.a_sends(world.a_to_b(family).echo_request(7)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.echo_reply(8)).dropped(Outcome::IcmpUnrelated);
        world.a_sends(world.a_to_b(family).echo_reply(7)).dropped(Outcome::IcmpUnrelated);
        world.network_sends(world.b.from(outside(family)).echo_reply(7)).dropped(Outcome::IcmpUnrelated);
        world.let_pass(family, 31);
        world.b_sends(back.echo_reply(7)).dropped_silently(Outcome::IcmpUnrelated);
    });
}

#[test]
fn an_echo_id_that_equals_a_port_admits_nothing() {
    each_family(|world, family| {
        connect(world, family);
        for id in [80, 40000] {
            world.b_sends(world.b_to_a(family).echo_reply(id)).dropped(Outcome::IcmpUnrelated);
            world.a_sends(world.a_to_b(family).echo_reply(id)).dropped(Outcome::IcmpUnrelated);
        }
        world.isolate(world.b, Direction::Ingress, 43);
        world.a_sends(world.a_to_b(family).echo_request(40000)).dropped(Outcome::IngressDefaultDenied);
        world.a_sends(world.a_to_b(family).udp(40000, 80)).dropped(Outcome::IngressDefaultDenied);
    });
}
