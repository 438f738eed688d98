//! The project's most important property: the rows say what the plain reading of the rules says.
//!
//! `PALISADE_MODELS=N` runs N models (of 100 flows each), `PALISADE_SEED=S` begins with seed S.

use crate::judge::{compiled_audit, compiled_verdict, expected_audit, expected_verdict, from_environment};
use palisade_policy::generate::{self, Random};
use palisade_policy::model::{Mode, PolicyName};
use palisade_policy::oracle::Side;
use palisade_policy::{End, Fate, Numbers, Question, compile, evaluate};

const FLOWS: u64 = 100;

/// How many models `make test` and `make soak` run, and how many pairs of model and flow that must come to.
const RUNS: [(u64, u64); 2] = [(2_000, 100_000), (150_000, 10_000_000)];
/// Fewer models make a failure again, and say nothing of how the generator spreads its cases.
const SPREAD: u64 = 1_000;

#[test]
fn the_compiled_rows_say_what_the_rules_say() {
    let first = from_environment("PALISADE_SEED", 1);
    let models = from_environment("PALISADE_MODELS", RUNS[0].0);
    let (mut pairs, mut allowed, mut denied, mut denied_by_rule, mut audited) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let (mut by_itself, mut audit_decides) = (0u64, 0u64);
    // One set of numbers for all, as an agent keeps it: what earlier models left must not matter.
    let mut numbers = Numbers::default();
    for seed in first..first + models {
        let mut random = Random::new(seed);
        let model = generate::model(&mut random);
        let local = generate::local(&mut random, &model);
        if seed % 16 == 0 {
            numbers = Numbers::default();
        }
        let compiled = compile(&model, &local, &mut numbers);
        for _ in 0..FLOWS {
            let flow = generate::flow(&mut random, &model);
            let question = Question {
                from: End::Address(flow.opener),
                to: End::Address(flow.responder),
                protocol: flow.protocol,
                port: flow.port,
                ipv6: flow.opener.is_ipv6(),
                service: true,
                rules: true,
            };
            let explained = evaluate(&compiled, &numbers, &model, &question).expect("both ends are addresses");
            let itself = flow.opener == flow.responder;
            if itself {
                // At its own address a pod reaches itself always: its packets never come to a hook. What follows is about a service.
                let question = Question { service: false, ..question };
                let direct = evaluate(&compiled, &numbers, &model, &question).expect("both ends are addresses");
                assert!(direct.passes(), "seed {seed}: {flow:?}");
            }
            let expected = expected_verdict(&compiled, &model, &flow);
            let found = compiled_verdict(&compiled, &numbers, &model, &flow);
            assert_eq!(found, expected, "seed {seed}: {flow:?}\nlocal: {local:?}\n{model:#?}");
            let would = expected_audit(&compiled, &model, &flow);
            let found = compiled_audit(&compiled, &numbers, &model, &flow);
            assert_eq!(found, would, "seed {seed}: {flow:?}: were audit enforced\nlocal: {local:?}\n{model:#?}");
            audited += u64::from(would != expected);
            assert_eq!(explained.passes(), expected.passes(), "seed {seed}: {flow:?}");
            for (answer, side) in [(&explained.egress, &expected.egress), (&explained.ingress, &expected.ingress)] {
                let deciding = answer.rules.iter().find(|rule| !rule.audit && rule.fate == Fate::Decides);
                let deciding = deciding.map(|rule| (&rule.policy, rule.rule));
                assert_eq!(deciding, rule_of(side), "seed {seed}: {flow:?}: the rule that decides among those considered\n{model:#?}");
            }
            for (answer, side) in [(&explained.egress, &would.egress), (&explained.ingress, &would.ingress)] {
                let Some((decision, _)) = &answer.audit else { continue };
                assert_eq!(decision.passes(), side.passes(), "seed {seed}: {flow:?}: were audit enforced\n{model:#?}");
                let deciding = answer.rules.iter().find(|rule| rule.audit && rule.fate == Fate::Decides);
                let is_audit = |(policy, _): &(&PolicyName, usize)| model.policies.get(policy).is_some_and(|body| body.mode == Mode::Audit);
                let expected = rule_of(side).filter(is_audit);
                let deciding = deciding.map(|rule| (&rule.policy, rule.rule));
                assert_eq!(deciding, expected, "seed {seed}: {flow:?}: the rule in audit that would decide\n{model:#?}");
                audit_decides += u64::from(deciding.is_some());
            }
            pairs += 1;
            for side in [&expected.egress, &expected.ingress] {
                match side {
                    Side::Allowed { .. } | Side::Denied { .. } if itself => by_itself += 1,
                    Side::Allowed { .. } => allowed += 1,
                    Side::Denied { .. } => denied_by_rule += 1,
                    Side::DefaultDenied(_) => denied += 1,
                    Side::NotIsolated | Side::NotJudged => {}
                }
            }
        }
    }
    println!(
        "{pairs} pairs of model and flow, seeds {first} to {}: {allowed} sides allowed by a rule, {denied_by_rule} denied by \
         one, {denied} by default, {by_itself} of pods to themselves by a rule; {audited} pairs fare otherwise where audit is enforced, \
         {audit_decides} sides by a rule in audit",
        first + models - 1
    );
    for (of, least) in RUNS {
        assert!(models < of || pairs >= least, "only {pairs} pairs of {models} models");
    }
    if models >= SPREAD {
        assert!(pairs >= models * 80, "only {pairs} pairs of {models} models");
        let few = allowed < pairs / 20 || denied < pairs / 20 || denied_by_rule < pairs / 100 || audited < pairs / 100;
        let rare = by_itself < pairs / 200 || audit_decides < pairs / 100;
        assert!(
            !few && !rare,
            "the generator no longer reaches every verdict: {allowed}, {denied}, {denied_by_rule}, {audited}, {by_itself}, {audit_decides}"
        );
    }
}

/// The rule that decided a side, where one did.
const fn rule_of(side: &Side) -> Option<(&PolicyName, usize)> {
    match side {
        Side::Allowed { policy, rule } | Side::Denied { policy, rule } => Some((policy, *rule)),
        Side::NotJudged | Side::NotIsolated | Side::DefaultDenied(_) => None,
    }
}
