//! The project's most important property: the rows say what the plain reading of the rules says.
//!
//! `PALISADE_MODELS=N` runs N models (of 100 flows each), `PALISADE_SEED=S` begins with seed S.

use crate::judge::{compiled_verdict, expected_verdict, from_environment};
use palisade_policy::generate::{self, Random};
use palisade_policy::oracle::Side;
use palisade_policy::{End, Fate, Numbers, Question, compile, evaluate};

const FLOWS: u64 = 100;

#[test]
fn the_compiled_rows_say_what_the_rules_say() {
    let first = from_environment("PALISADE_SEED", 1);
    let models = from_environment("PALISADE_MODELS", 2_000);
    let (mut pairs, mut allowed, mut denied, mut denied_by_rule) = (0u64, 0u64, 0u64, 0u64);
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
                rules: true,
            };
            let explained = evaluate(&compiled, &numbers, &model, &question).expect("both ends are addresses");
            if flow.opener == flow.responder {
                // A pod reaches itself always: its packets never come to a hook.
                assert!(explained.passes(), "seed {seed}: {flow:?}");
                continue;
            }
            let expected = expected_verdict(&compiled, &model, &flow);
            let found = compiled_verdict(&compiled, &numbers, &model, &flow);
            assert_eq!(found, expected, "seed {seed}: {flow:?}\nlocal: {local:?}\n{model:#?}");
            assert_eq!(explained.passes(), expected.passes(), "seed {seed}: {flow:?}");
            for (answer, side) in [(&explained.egress, &expected.egress), (&explained.ingress, &expected.ingress)] {
                let deciding = answer.rules.iter().find(|rule| rule.fate == Fate::Decides).map(|rule| (&rule.policy, rule.rule));
                let expected = match side {
                    Side::Allowed { policy, rule } | Side::Denied { policy, rule } => Some((policy, *rule)),
                    _ => None,
                };
                assert_eq!(deciding, expected, "seed {seed}: {flow:?}: the rule that decides among those considered\n{model:#?}");
            }
            pairs += 1;
            for side in [&expected.egress, &expected.ingress] {
                match side {
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
         one, {denied} by default",
        first + models - 1
    );
    if std::env::var_os("PALISADE_MODELS").is_none() {
        assert!(pairs >= 10_000, "only {pairs} pairs ran");
        let few = allowed < pairs / 20 || denied < pairs / 20 || denied_by_rule < pairs / 100;
        assert!(!few, "the generator no longer reaches every verdict: {allowed}, {denied}, {denied_by_rule}");
    }
}
