//! How the tests ask the rows and the oracle, and hold one against the other.

pub mod kernel;
pub mod world;

use crate::judge::kernel::Ask;
use palisade_datapath_core::abi::{Direction, SUBJECT_NONE};
use palisade_datapath_core::verdict::{self, Decision, Tables};
use palisade_policy::model::{Model, ObjectName};
use palisade_policy::oracle::{self, Flow};
use palisade_policy::{Compiled, Numbers, Reason};
use std::net::IpAddr;

/// What the datapath's verdict says over `tables`, each side asked for itself. A pod reaches itself through a service.
pub fn sides<T: Tables<[u8; 4]> + Tables<[u8; 16]>>(tables: &T, flow: &Flow, egress: u32, ingress: u32) -> verdict::Verdict {
    if flow.opener == flow.responder {
        let ask = |direction| Ask { pod: ObjectName::cluster(""), direction, peer: flow.opener, protocol: flow.protocol, port: flow.port };
        let (out, into) = (ask(Direction::SelfEgress), ask(Direction::SelfIngress));
        let both = verdict::Verdict { egress: kernel::side(tables, egress, &out), ingress: kernel::side(tables, ingress, &into) };
        assert_eq!(kernel::itself(tables, egress, &out).passes(), both.passes(), "both sides in one run, and each for itself: {flow:?}");
        return both;
    }
    let ask = |egress_subject, ingress_subject| {
        let (protocol, port) = (flow.protocol, flow.port);
        match (flow.opener, flow.responder) {
            (IpAddr::V4(opener), IpAddr::V4(responder)) => verdict::verdict(
                tables,
                &verdict::Flow { opener: opener.octets(), responder: responder.octets(), protocol, port, egress_subject, ingress_subject },
            ),
            (IpAddr::V6(opener), IpAddr::V6(responder)) => verdict::verdict(
                tables,
                &verdict::Flow { opener: opener.octets(), responder: responder.octets(), protocol, port, egress_subject, ingress_subject },
            ),
            _ => panic!("a flow of two families: {flow:?}"),
        }
    };
    verdict::Verdict { egress: ask(egress, SUBJECT_NONE).egress, ingress: ask(SUBJECT_NONE, ingress).ingress }
}

/// The pod that is judged for an address: the first of its claimants.
pub fn owner(model: &Model, address: IpAddr) -> Option<&ObjectName> {
    model.pods.iter().find(|(_, pod)| pod.addresses.contains(&address)).map(|(name, _)| name)
}

/// The pod that a flow leads back to.
fn itself<'m>(model: &'m Model, flow: &Flow) -> Option<&'m ObjectName> {
    owner(model, flow.opener).filter(|_| flow.opener == flow.responder)
}

/// The subject number of the pod that has an address, where it is a pod of this node.
pub fn subject(compiled: &Compiled, model: &Model, address: IpAddr) -> u32 {
    owner(model, address).and_then(|name| compiled.subjects.get(name)).copied().unwrap_or(SUBJECT_NONE)
}

/// The number of what policies in audit mode would make of it; that of its own where none selects it.
fn audit_subject(compiled: &Compiled, model: &Model, address: IpAddr) -> u32 {
    let audit = owner(model, address).and_then(|name| compiled.audits.get(name)).copied();
    audit.unwrap_or_else(|| subject(compiled, model, address))
}

/// A side of the datapath's verdict in the oracle's words.
pub fn named(side: verdict::Side, numbers: &Numbers, direction: Direction) -> oracle::Side {
    match (side.decision, numbers.reason(side.reason)) {
        (Decision::NotJudged, None) => oracle::Side::NotJudged,
        (Decision::Allow, None) => oracle::Side::NotIsolated,
        (Decision::Allow, Some(Reason::Rule { policy, rule, direction: of, .. })) if *of == direction => {
            oracle::Side::Allowed { policy: policy.clone(), rule: *rule }
        }
        (Decision::Deny, Some(Reason::Rule { policy, rule, direction: of, .. })) if *of == direction => {
            oracle::Side::Denied { policy: policy.clone(), rule: *rule }
        }
        (Decision::DefaultDeny, Some(Reason::Default { policies, direction: of })) if *of == direction => {
            oracle::Side::DefaultDenied(policies.clone())
        }
        other => panic!("a side that no compiler may make: {other:?}"),
    }
}

/// What the rows say of a flow, in the oracle's words.
pub fn compiled_verdict(compiled: &Compiled, numbers: &Numbers, model: &Model, flow: &Flow) -> oracle::Verdict {
    of_subjects(compiled, numbers, flow, [flow.opener, flow.responder].map(|address| subject(compiled, model, address)))
}

/// What the rows say of a flow were the policies in audit mode enforced, in the oracle's words.
pub fn compiled_audit(compiled: &Compiled, numbers: &Numbers, model: &Model, flow: &Flow) -> oracle::Verdict {
    of_subjects(compiled, numbers, flow, [flow.opener, flow.responder].map(|address| audit_subject(compiled, model, address)))
}

fn of_subjects(compiled: &Compiled, numbers: &Numbers, flow: &Flow, [egress, ingress]: [u32; 2]) -> oracle::Verdict {
    let both = sides(compiled, flow, egress, ingress);
    oracle::Verdict { egress: named(both.egress, numbers, Direction::Egress), ingress: named(both.ingress, numbers, Direction::Ingress) }
}

/// What the oracle says of a flow on a node whose pods are those of `compiled`.
pub fn expected_verdict(compiled: &Compiled, model: &Model, flow: &Flow) -> oracle::Verdict {
    let mut expected = match itself(model, flow) {
        Some(pod) => oracle::itself(model, pod, flow.responder, flow.protocol, flow.port),
        None => oracle::verdict(model, flow),
    };
    if subject(compiled, model, flow.opener) == SUBJECT_NONE {
        expected.egress = oracle::Side::NotJudged;
    }
    if subject(compiled, model, flow.responder) == SUBJECT_NONE {
        expected.ingress = oracle::Side::NotJudged;
    }
    expected
}

/// What the oracle says of a flow were the policies in audit mode enforced, on a node whose pods are those of `compiled`.
pub fn expected_audit(compiled: &Compiled, model: &Model, flow: &Flow) -> oracle::Verdict {
    let judged = |name: &&ObjectName| compiled.subjects.contains_key(*name);
    if let Some(pod) = itself(model, flow).filter(judged) {
        return oracle::audited_itself(model, pod, flow.responder, flow.protocol, flow.port);
    }
    let side = |address, direction, peer| match owner(model, address).filter(judged) {
        Some(pod) => oracle::audited_side(model, pod, direction, peer, flow.protocol, flow.port),
        None => oracle::Side::NotJudged,
    };
    oracle::Verdict {
        egress: side(flow.opener, Direction::Egress, flow.responder),
        ingress: side(flow.responder, Direction::Ingress, flow.opener),
    }
}

/// A number from the environment, for longer runs and for making a failure again.
pub fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}
