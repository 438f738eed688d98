//! That the comparison with the oracle can fail: the compiler's sources once more, with deliberate faults in them, of
//! which each is caught.
//!
//! The sources lie at the root of this crate as they lie at that of theirs; `faulty!` takes the faulty side here.
#![allow(
    clippy::enum_variant_names,
    dead_code,
    unused_imports,
    missing_docs,
    reason = "sources of another crate, of which this one uses a part"
)]

mod fault;

macro_rules! faulty {
    ($sound:expr, $fault:ident => $faulty:expr) => {
        if crate::fault::is(crate::fault::Fault::$fault) { $faulty } else { $sound }
    };
}

#[path = "../../src/classes.rs"]
mod classes;
#[path = "../../src/compile.rs"]
mod compile;
#[path = "../../src/compiler.rs"]
mod compiler;
#[path = "../../src/consider.rs"]
mod consider;
#[path = "../../src/entries.rs"]
mod entries;
#[path = "../../src/explain.rs"]
mod explain;
#[path = "../../src/generate.rs"]
mod generate;
#[path = "../../src/layer.rs"]
mod layer;
#[path = "../../src/model.rs"]
mod model;
#[path = "../../src/narrower.rs"]
mod narrower;
#[path = "../../src/numbers.rs"]
mod numbers;
#[path = "../../src/oracle.rs"]
mod oracle;
#[path = "../../src/order.rs"]
mod order;
#[path = "../../src/plan.rs"]
mod plan;
#[path = "../../src/ports.rs"]
mod ports;
#[path = "../../src/reason.rs"]
mod reason;
#[path = "../../src/rows.rs"]
mod rows;
#[path = "../../src/rules.rs"]
mod rules;
#[path = "../../src/selected.rs"]
mod selected;
#[path = "../../src/shared.rs"]
mod shared;
#[path = "../../src/signatures.rs"]
mod signatures;
#[path = "../../src/universe.rs"]
mod universe;

use compile::{Compiled, compile};
use explain::{End, Question, evaluate};
use fault::Fault;
use generate::Random;
use model::{Model, ObjectName};
use numbers::Numbers;
use oracle::Flow;
use palisade_datapath_core::abi::Direction;
use std::net::IpAddr;

/// A fault that so many models do not show is not caught.
const MODELS: u64 = 4_000;
const FLOWS: u64 = 60;

/// The first model with a flow of which rows and oracle do not say the same, as it is or as it were with audit enforced.
fn caught(models: u64) -> Option<u64> {
    (1..=models).find(|&seed| {
        let mut random = Random::new(seed);
        let model = generate::model(&mut random);
        let local = model.pods.keys().cloned().collect();
        let mut numbers = Numbers::default();
        let compiled = compile(&model, &local, &mut numbers);
        let number = |(pod, own): (&ObjectName, &u32)| (pod.clone(), *compiled.audits.get(pod).unwrap_or(own));
        let audited = Compiled { subjects: compiled.subjects.iter().map(number).collect(), ..compiled.clone() };
        (0..FLOWS).any(|_| {
            let flow = generate::flow(&mut random, &model);
            let expected = expected(&model, &flow);
            passes(&compiled, &numbers, &model, &flow) != (expected.egress.passes(), expected.ingress.passes())
                || passes(&audited, &numbers, &model, &flow) != would_pass(&model, &flow)
        })
    })
}

/// What the oracle says of a flow; of a pod to itself, as it is through a service.
fn expected(model: &Model, flow: &Flow) -> oracle::Verdict {
    match owner(model, flow.opener).filter(|_| flow.opener == flow.responder) {
        Some(pod) => oracle::itself(model, pod, flow.responder, flow.protocol, flow.port),
        None => oracle::verdict(model, flow),
    }
}

fn owner(model: &Model, address: IpAddr) -> Option<&ObjectName> {
    model.pods.iter().find(|(_, pod)| pod.addresses.contains(&address)).map(|(name, _)| name)
}

/// Whether the rows let a flow pass: egress and ingress.
fn passes(rows: &Compiled, numbers: &Numbers, model: &Model, flow: &Flow) -> (bool, bool) {
    let (from, to) = (End::Address(flow.opener), End::Address(flow.responder));
    let question =
        Question { from, to, protocol: flow.protocol, port: flow.port, ipv6: flow.opener.is_ipv6(), service: true, rules: false };
    let answer = evaluate(rows, numbers, model, &question).expect("both ends are addresses");
    (answer.egress.decision.passes(), answer.ingress.decision.passes())
}

/// Whether the oracle would let it pass were the policies in audit mode enforced.
fn would_pass(model: &Model, flow: &Flow) -> (bool, bool) {
    if flow.opener == flow.responder {
        let itself = |pod| oracle::audited_itself(model, pod, flow.responder, flow.protocol, flow.port);
        return owner(model, flow.opener).map(itself).map_or((true, true), |said| (said.egress.passes(), said.ingress.passes()));
    }
    let side = |address: IpAddr, direction, peer| {
        let pod = owner(model, address);
        pod.is_none_or(|name| oracle::audited_side(model, name, direction, peer, flow.protocol, flow.port).passes())
    };
    (side(flow.opener, Direction::Egress, flow.responder), side(flow.responder, Direction::Ingress, flow.opener))
}

#[test]
fn the_sound_compiler_is_never_caught() {
    assert_eq!(caught(300), None);
}

#[test]
fn each_of_the_deliberate_faults_is_caught() {
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        fault::set(Some(*fault));
        match caught(MODELS) {
            Some(seed) => println!("{fault:?}: caught by model {seed}"),
            None => missed.push(*fault),
        }
        fault::set(None);
    }
    assert!(Fault::ALL.len() >= 20, "{} faults", Fault::ALL.len());
    assert_eq!(missed, [], "not caught within {MODELS} models of {FLOWS} flows");
}
