//! A pod that reaches itself through a service: of this ClusterNetworkPolicies speak, and no other policy.

use std::net::IpAddr;

use palisade_datapath_core::abi::{
    DatapathEvent, Direction, Endpoint, IDENTITY_ANY, Outcome, PORTS_NONE, PolicyKey, RowVerdict, connection_flag as flag,
};
use palisade_datapath_core::verdict::Decision;
use palisade_test_support::packet::{protocol, summed, tcp_flag::*};

use crate::seen::{Seen, decisions};
use crate::service::{CLIENT, FRONTEND, TARGET, became, halves, packets, quote, serve, to_vip, vip};
use crate::stage;
use crate::world::{Family, IDENTITY_A, IDENTITY_B, Pod, REDIRECT, World, each_family, wide};

/// Pod A behind its own service, with its namespace's policies closed on both sides.
pub fn serve_itself(world: &mut World, family: Family, protocol: u8) {
    serve(world, family, protocol, (world.a.address(family), TARGET));
    world.isolate(world.a, Direction::Ingress, 42);
    world.isolate(world.a, Direction::Egress, 43);
}

/// What the pod as a client sends to the frontend.
fn asks(world: &mut World, family: Family, flags: u8) -> Seen {
    world.a_sends(summed(to_vip(world, family).tcp(CLIENT, FRONTEND, flags)))
}

/// What the pod as a backend sends to whom it takes for its client.
fn answers(world: &mut World, family: Family, flags: u8) -> Seen {
    world.a_sends(summed(world.a.to(vip(family)).tcp(TARGET, CLIENT, flags)))
}

/// That an event names the pod as both ends, by the ports that it has as client and as backend.
#[track_caller]
fn tells_of_itself(world: &World, family: Family, event: &DatapathEvent, [from, to]: [u16; 2]) {
    let own = wide(world.a.address(family));
    assert_eq!((event.source, event.destination), (own, own));
    assert_eq!((event.source_port, event.destination_port), (from.to_be_bytes(), to.to_be_bytes()));
}

#[test]
fn a_pod_reaches_itself_through_a_service_whatever_the_policies_of_its_namespace_say() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        serve_itself(world, family, protocol::TCP);
        let seen = asks(world, family, SYN);
        became(&seen, REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
        assert_eq!(seen.packet[..12], [world.a.mac, world.a.host_mac].concat());
        let seen = answers(world, family, SYN | ACK);
        became(&seen, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        assert_eq!(seen.packet[..12], [world.a.mac, world.a.host_mac].concat());
        // Each end also is the first to be judged again.
        world.datapath.bump_epoch().unwrap();
        became(&asks(world, family, ACK), REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
        became(&answers(world, family, ACK), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        world.datapath.bump_epoch().unwrap();
        became(&answers(world, family, ACK), REDIRECT, Outcome::AllowedNew, (vip, FRONTEND), (a, CLIENT));
        became(&asks(world, family, ACK), REDIRECT, Outcome::AllowedEstablished, (vip, CLIENT), (a, TARGET));
    });
}

#[test]
fn a_pod_that_reaches_itself_where_nobody_listens_is_told_so_by_the_frontend() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        serve_itself(world, family, protocol::UDP);
        let received = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        became(&received, REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
        let complaint = summed(world.a.to(vip).unreachable(&received.packet[14..]));
        let seen = world.a_sends(complaint.clone());
        became(&seen, REDIRECT, Outcome::AllowedRelated, (vip, 0), (a, 0));
        assert_eq!(quote(&seen.packet, family), [(a, CLIENT), (vip, FRONTEND)]);
        assert_eq!(seen.packet[..12], [world.a.mac, world.a.host_mac].concat());
        // After a change the flow is judged first.
        world.datapath.bump_epoch().unwrap();
        world.a_sends(complaint).dropped_silently(Outcome::IcmpUnrelated);
    });
}

#[test]
fn a_pod_that_reaches_itself_and_does_not_want_an_answer_is_told_so_as_the_backend() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        serve_itself(world, family, protocol::UDP);
        let _ = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        let answer = world.a_sends(summed(world.a.to(vip).udp(TARGET, CLIENT)));
        became(&answer, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        let seen = world.a_sends(summed(world.a.to(vip).port_unreachable(&answer.packet[14..])));
        became(&seen, REDIRECT, Outcome::AllowedRelated, (vip, 0), (a, 0));
        assert_eq!(quote(&seen.packet, family), [(a, TARGET), (vip, CLIENT)]);
    });
}

#[test]
fn a_pod_that_reaches_itself_goes_on_where_either_of_its_entries_was_evicted() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        serve_itself(world, family, protocol::TCP);
        became(&asks(world, family, SYN), REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
        world.forget_entries(family, |flags| flags & flag::TO_FRONTEND != 0);
        became(&answers(world, family, ACK), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        became(&asks(world, family, ACK), REDIRECT, Outcome::AllowedEstablished, (vip, CLIENT), (a, TARGET));
        assert_eq!(world.connections(family).len(), 2);
        world.forget_entries(family, |flags| flags & flag::TO_FRONTEND == 0);
        // Nobody knows that it is an answer, and the pod may send nothing else.
        answers(world, family, ACK).dropped_silently(Outcome::EgressDefaultDenied);
        became(&asks(world, family, ACK), REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
        became(&answers(world, family, ACK), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
    });
}

#[test]
fn nobody_else_is_taken_for_a_pod_that_reaches_itself() {
    each_family(|world, family| {
        let vip = vip(family);
        serve(world, family, protocol::TCP, (world.b.address(family), TARGET));
        world.isolate(world.b, Direction::Ingress, 42);
        let _ = world.b_sends(summed(world.b.to(vip).tcp(CLIENT, FRONTEND, SYN)));
        // Where the pod is isolated, a packet that claims to come from the frontend is denied: also when the entry is to be judged again.
        world.network_sends(world.b.from(vip).tcp(CLIENT, TARGET, ACK)).dropped(Outcome::IngressDefaultDenied);
        world.datapath.bump_epoch().unwrap();
        world.network_sends(world.b.from(vip).tcp(CLIENT, TARGET, ACK)).dropped_silently(Outcome::IngressDefaultDenied);
        let _ = world.b_sends(summed(world.b.to(vip).tcp(CLIENT, FRONTEND, ACK)));
        world.network_sends(world.b.from(vip).tcp(CLIENT, TARGET, ACK)).dropped_silently(Outcome::IngressDefaultDenied);
    });
}

// Line 37.
#[test]
fn a_pod_that_reaches_itself_through_a_service_is_denied_by_what_its_cluster_policies_say() {
    each_family(|world, family| {
        for (direction, outcome) in [(Direction::SelfEgress, Outcome::EgressDenied), (Direction::SelfIngress, Outcome::IngressDenied)] {
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                serve_itself(world, family, protocol);
                let request = packets(to_vip(world, family), CLIENT, FRONTEND).into_iter().find(|(of, _)| *of == protocol).unwrap().1;
                // By its own identity, and by what is said of everybody; never by what is said of others.
                world.rule(world.a, direction, IDENTITY_B, RowVerdict::Deny, 50);
                assert_eq!(world.a_sends(request.clone()).action, REDIRECT);
                world.forget_connections(family);
                world.rule(world.a, direction, IDENTITY_ANY, RowVerdict::Deny, 51);
                let event = world.a_sends(request.clone()).dropped(outcome);
                tells_of_itself(world, family, &event, [CLIENT, TARGET]);
                let passed = (Decision::Allow, 0);
                let [egress, ingress] = decisions(&event);
                match direction {
                    Direction::SelfEgress => assert_eq!([egress, ingress], [(Decision::Deny, 51), (Decision::NotJudged, 0)]),
                    _ => assert_eq!([egress, ingress], [passed, (Decision::Deny, 51)]),
                }
                assert!(world.connections(family).is_empty(), "what was never allowed leaves no entry");
                world.rule(world.a, direction, IDENTITY_A, RowVerdict::Allow, 52);
                assert_eq!(world.a_sends(request).action, REDIRECT, "an exact row goes before that of everybody");
                world.forget_connections(family);
                for peer in [IDENTITY_ANY, IDENTITY_A] {
                    world.datapath.policy.remove(&PolicyKey::new(world.a.subject, direction, peer)).unwrap();
                }
            }
        }
    });
}

#[test]
fn the_port_that_is_judged_is_the_backend_s() {
    each_family(|world, family| {
        serve_itself(world, family, protocol::TCP);
        for (port, passes) in [(FRONTEND, true), (CLIENT, true), (TARGET, false)] {
            world.port(9, protocol::TCP, port, 16, RowVerdict::Deny, 60);
            world.row(world.a, Direction::SelfIngress, IDENTITY_A, 9, RowVerdict::Allow, 0);
            let seen = asks(world, family, SYN);
            assert_eq!(seen.action == REDIRECT, passes, "{port}: {:?}", seen.outcome);
            world.row(world.a, Direction::SelfIngress, IDENTITY_A, PORTS_NONE, RowVerdict::Allow, 0);
        }
    });
}

#[test]
fn a_flow_of_a_pod_to_itself_is_judged_again_from_either_end_after_a_change() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        serve_itself(world, family, protocol::TCP);
        became(&asks(world, family, SYN), REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
        became(&answers(world, family, SYN | ACK), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        world.rule(world.a, Direction::SelfIngress, IDENTITY_A, RowVerdict::Deny, 61);
        // Until the epoch moves the entry speaks.
        became(&asks(world, family, ACK), REDIRECT, Outcome::AllowedEstablished, (vip, CLIENT), (a, TARGET));
        world.datapath.bump_epoch().unwrap();
        let event = answers(world, family, ACK).dropped(Outcome::IngressDenied);
        tells_of_itself(world, family, &event, [TARGET, CLIENT]);
        assert_eq!(decisions(&event), [(Decision::Allow, 0), (Decision::Deny, 61)]);
        asks(world, family, ACK).dropped(Outcome::IngressDenied);
        answers(world, family, ACK).dropped_silently(Outcome::IngressDenied);
        // And goes on where it is allowed again.
        world.rule(world.a, Direction::SelfIngress, IDENTITY_A, RowVerdict::Allow, 62);
        world.datapath.bump_epoch().unwrap();
        became(&answers(world, family, ACK), REDIRECT, Outcome::AllowedNew, (vip, FRONTEND), (a, CLIENT));
        became(&asks(world, family, ACK), REDIRECT, Outcome::AllowedEstablished, (vip, CLIENT), (a, TARGET));
    });
}

#[test]
fn cluster_policies_in_audit_mode_tell_of_a_pod_that_reaches_itself() {
    each_family(|world, family| {
        let audited = Pod { subject: 7, ..world.a };
        stage::allow(&mut world.datapath, audited.subject);
        serve_itself(world, family, protocol::TCP);
        world.datapath.endpoints.insert(&world.a.ifindex, &Endpoint { audit: audited.subject, ..world.a.endpoint() }).unwrap();
        world.rule(audited, Direction::SelfEgress, IDENTITY_A, RowVerdict::Deny, 63);
        let seen = asks(world, family, SYN);
        assert_eq!((seen.outcome, seen.action), (Outcome::AllowedAudited, REDIRECT));
        let event = seen.event.expect("told without being asked");
        tells_of_itself(world, family, &event, [CLIENT, TARGET]);
        assert_eq!((Decision::from_byte(event.audit_egress), event.audit_egress_reason), (Some(Decision::Deny), 63));
    });
}

#[test]
fn the_later_fragments_of_a_pod_to_itself_follow_the_verdict_of_their_first() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        serve_itself(world, family, protocol::UDP);
        let addresses = |seen: &Seen| match family {
            Family::V4 => seen.packet[26..34].to_vec(),
            Family::V6 => seen.packet[22..54].to_vec(),
        };
        let between = |source: IpAddr, destination: IpAddr| match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            _ => unreachable!(),
        };
        let sent = halves(to_vip(world, family), CLIENT, FRONTEND).map(|frame| world.a_sends(frame));
        assert_eq!(sent.each_ref().map(|seen| seen.outcome), [Outcome::AllowedNew, Outcome::AllowedEstablished]);
        assert!(sent.iter().all(|seen| addresses(seen) == between(vip, a)), "{sent:?}");
        // Of the answer too, which is judged again here.
        world.datapath.bump_epoch().unwrap();
        let back = halves(world.a.to(vip), TARGET, CLIENT).map(|frame| world.a_sends(frame));
        assert_eq!(back.each_ref().map(|seen| seen.outcome), [Outcome::AllowedNew, Outcome::AllowedReply]);
        assert!(back.iter().all(|seen| addresses(seen) == between(vip, a)), "{back:?}");
        world.rule(world.a, Direction::SelfIngress, IDENTITY_ANY, RowVerdict::Deny, 64);
        world.datapath.bump_epoch().unwrap();
        let denied = halves(to_vip(world, family), CLIENT, FRONTEND).map(|frame| world.a_sends(frame));
        denied.iter().for_each(|seen| seen.dropped_silently(Outcome::IngressDenied));
    });
}
