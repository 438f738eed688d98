//! Policies in audit mode: they decide nothing, and say what they would have decided.

use palisade_datapath_core::abi::{DatapathEvent, Direction, Endpoint, IDENTITY_ANY, Outcome, RowVerdict};
use palisade_datapath_core::verdict::Decision;
use palisade_test_support::packet::tcp_flag::{ACK, SYN};

use crate::seen::decisions;
use crate::stage;
use crate::world::{Family, IDENTITY_A, Pod, REDIRECT, World, each_family};

/// Number of what the audited policies would make of pod B.
const AUDIT: u32 = 7;

/// Gives pod B rows of policies in audit mode; they allow everything at first.
fn audit(world: &mut World) -> Pod {
    let audited = Pod { subject: AUDIT, ..world.b };
    stage::allow(&mut world.datapath, AUDIT);
    world.datapath.endpoints.insert(&world.b.ifindex, &Endpoint { audit: AUDIT, ..world.b.endpoint() }).unwrap();
    audited
}

fn audited(event: &DatapathEvent) -> [(Decision, u32); 2] {
    let decision = |byte| Decision::from_byte(byte).unwrap();
    [(decision(event.audit_egress), event.audit_egress_reason), (decision(event.audit_ingress), event.audit_ingress_reason)]
}

#[test]
fn a_flow_that_an_audited_policy_would_deny_passes_and_is_told_of_once() {
    each_family(|world, family: Family| {
        let audited_b = audit(world);
        world.isolate(audited_b, Direction::Ingress, 61);
        let seen = world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN));
        assert_eq!((seen.action, seen.outcome), (REDIRECT, Outcome::AllowedAudited));
        let event = seen.event.expect("told without being asked");
        assert_eq!(decisions(&event), [(Decision::Allow, 0), (Decision::Allow, 0)], "what decided");
        assert_eq!(audited(&event), [(Decision::Allow, 0), (Decision::DefaultDeny, 61)], "what would have decided");
        let seen = world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK));
        assert_eq!(seen.event, None, "the entry of the flow lets it pass");
        seen.redirected_to(world.b, Outcome::AllowedEstablished);
    });
}

#[test]
fn a_rule_that_would_deny_names_itself_and_the_sender_s_policies_are_audited_too() {
    each_family(|world, family| {
        let audited_b = audit(world);
        world.rule(audited_b, Direction::Ingress, IDENTITY_A, RowVerdict::Deny, 62);
        let event = world.a_sends(world.a_to_b(family).udp(40000, 53)).event.expect("told");
        assert_eq!(audited(&event)[1], (Decision::Deny, 62));
        // The same from the other end: pod B opens.
        world.rule(audited_b, Direction::Egress, IDENTITY_ANY, RowVerdict::DefaultDeny, 63);
        let seen = world.b_sends(world.b_to_a(family).udp(40001, 53));
        assert_eq!(audited(&seen.event.expect("told")), [(Decision::DefaultDeny, 63), (Decision::NotJudged, 0)]);
        seen.redirected_to(world.a, Outcome::AllowedAudited);
    });
}

#[test]
fn a_flow_that_fares_the_same_is_not_told_of() {
    each_family(|world, family| {
        let audited_b = audit(world);
        world.rule(audited_b, Direction::Ingress, IDENTITY_A, RowVerdict::Allow, 64);
        let seen = world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN));
        assert_eq!(seen.event, None);
        seen.redirected_to(world.b, Outcome::AllowedNew);
        // Denied either way: the event is that of the denial.
        world.isolate(world.b, Direction::Ingress, 65);
        world.isolate(audited_b, Direction::Ingress, 66);
        world.rule(audited_b, Direction::Ingress, IDENTITY_A, RowVerdict::Deny, 67);
        let event = world.a_sends(world.a_to_b(family).tcp(40001, 80, SYN)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(audited(&event), [(Decision::NotJudged, 0); 2]);
    });
}

#[test]
fn a_denied_flow_that_an_audited_policy_would_allow_says_so() {
    each_family(|world, family| {
        let audited_b = audit(world);
        world.isolate(world.b, Direction::Ingress, 68);
        world.isolate(audited_b, Direction::Ingress, 69);
        world.rule(audited_b, Direction::Ingress, IDENTITY_A, RowVerdict::Allow, 70);
        let event = world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(audited(&event), [(Decision::Allow, 0), (Decision::Allow, 70)]);
        assert!(world.connections(family).is_empty(), "what was never allowed leaves no trace");
    });
}

#[test]
fn turning_audit_off_enforces_at_the_next_packet() {
    each_family(|world, family| {
        let audited_b = audit(world);
        world.isolate(audited_b, Direction::Ingress, 71);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedAudited);
        // One map write, and the epoch.
        world.datapath.endpoints.insert(&world.b.ifindex, &Endpoint { subject: AUDIT, ..world.b.endpoint() }).unwrap();
        world.datapath.bump_epoch().unwrap();
        let event = world.a_sends(world.a_to_b(family).tcp(40000, 80, ACK)).dropped(Outcome::IngressDefaultDenied);
        assert_eq!(decisions(&event)[1], (Decision::DefaultDeny, 71));
    });
}

#[test]
fn while_rows_of_an_audit_are_missing_nothing_is_said() {
    each_family(|world, family| {
        world.datapath.endpoints.insert(&world.b.ifindex, &Endpoint { audit: 999, ..world.b.endpoint() }).unwrap();
        let seen = world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN));
        assert_eq!(seen.event, None);
        seen.redirected_to(world.b, Outcome::AllowedNew);
    });
}
