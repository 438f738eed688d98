//! The order of a change: no verdict between two writes is a mixture, and the end depends on the model alone.
//!
//! `PALISADE_CHANGES=N` runs N sequences of changes, `PALISADE_SEED=S` begins with seed S.

use crate::judge::from_environment;
use crate::judge::kernel::{Ask, Kernel, SlowProgram, resolved, side};
use crate::judge::world::{World, own, pods};
use palisade_datapath_core::abi::{Direction, SUBJECT_NONE};
use palisade_datapath_core::epoch;
use palisade_datapath_core::verdict::Side;
use palisade_policy::generate::{self, Random};
use palisade_policy::model::{Model, ObjectName, Peers, Ports, Rule};
use palisade_policy::{Compiled, Numbers, Planner, Step, compile, plan};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Questions to the pods that are subjects before and after, about addresses of either model.
fn asks(random: &mut Random, before: &Compiled, after: &Compiled, models: [&Model; 2], count: usize) -> Vec<Ask> {
    let pods: Vec<&ObjectName> = before.subjects.keys().filter(|pod| after.subjects.contains_key(pod)).collect();
    if pods.is_empty() {
        return Vec::new();
    }
    let ask = |random: &mut Random| {
        let model = *random.pick(&models);
        let flow = generate::flow(random, model);
        let pod = (*random.pick(&pods)).clone();
        let mut direction = *random.pick(&Direction::ALL);
        let mut peer = flow.opener;
        if direction.is_self() {
            match own_addresses(&pod, models)[..] {
                [] => direction = direction.way(),
                ref own => peer = *random.pick(own),
            }
        }
        Ask { pod, direction, peer, protocol: flow.protocol, port: flow.port }
    };
    (0..count).map(|_| ask(random)).collect()
}

/// The addresses that a pod has before and after.
fn own_addresses(pod: &ObjectName, models: [&Model; 2]) -> Vec<IpAddr> {
    let [before, after] = models.map(|model| model.pods.get(pod).map(|pod| pod.addresses.as_slice()).unwrap_or_default());
    before.iter().copied().filter(|address| after.contains(address)).collect()
}

fn sides(kernel: &Kernel, asks: &[Ask]) -> Vec<Side> {
    asks.iter().map(|ask| kernel.side(ask)).collect()
}

/// A flow between two pods of the node, or of one to itself through a service, by the two sides that judge it.
struct Pair {
    egress: Ask,
    ingress: Ask,
}

/// Flows between pods that are subjects before and after, by the addresses that they have before or after.
fn pairs(random: &mut Random, before: &Compiled, after: &Compiled, models: [&Model; 2], count: usize) -> Vec<Pair> {
    let pods: Vec<&ObjectName> = before.subjects.keys().filter(|pod| after.subjects.contains_key(pod)).collect();
    let mut pairs = Vec::new();
    for _ in 0..count {
        let model = *random.pick(&models);
        let flow = generate::flow(random, model);
        let pod = |address| pods.iter().find(|pod| model.pods.get(pod).is_some_and(|pod| pod.addresses.contains(&address)));
        let (Some(opener), Some(responder)) = (pod(flow.opener), pod(flow.responder)) else { continue };
        let ask = |pod: &ObjectName, direction, peer| Ask { pod: pod.clone(), direction, peer, protocol: flow.protocol, port: flow.port };
        if opener != responder {
            let egress = ask(opener, Direction::Egress, flow.responder);
            pairs.push(Pair { egress, ingress: ask(responder, Direction::Ingress, flow.opener) });
        } else if own_addresses(opener, models).contains(&flow.responder) {
            let egress = ask(opener, Direction::SelfEgress, flow.responder);
            pairs.push(Pair { egress, ingress: ask(opener, Direction::SelfIngress, flow.responder) });
        }
    }
    pairs
}

/// Whether both sides let each flow pass.
fn pass(kernel: &Kernel, pairs: &[Pair]) -> Vec<bool> {
    pairs.iter().map(|pair| kernel.side(&pair.egress).decision.passes() && kernel.side(&pair.ingress).decision.passes()).collect()
}

/// Applies the steps one by one. At no point a flow passes that neither state lets pass, or the reverse.
fn follow_flows(kernel: &Kernel, steps: &[Step], next: &Compiled, pairs: &[Pair], what: &str) {
    let mut kernel = kernel.clone();
    let end = Kernel { rows: next.clone(), endpoints: next.subjects.clone(), epoch: 0 };
    let (before, after) = (pass(&kernel, pairs), pass(&end, pairs));
    for (index, step) in steps.iter().enumerate() {
        kernel.apply(step);
        for (position, passes) in pass(&kernel, pairs).into_iter().enumerate() {
            let (old, new) = (before[position], after[position]);
            let pair = &pairs[position];
            assert!(
                passes == old || passes == new,
                "{what}: after step {index} {step:?}: passes: {passes}, before {old}, after {new}: {:?} {:?}\n{steps:#?}",
                pair.egress,
                pair.ingress
            );
        }
    }
}

/// Applies the steps one by one, while programs run that are slow: each says of a flow what it was before the change or what it is after. One
/// that is waited for has ended.
fn follow_slowly(random: &mut Random, kernel: &Kernel, steps: &[Step], next: &Compiled, asks: &[Ask], pairs: &[Pair], what: &str) {
    let end = Kernel { rows: next.clone(), endpoints: next.subjects.clone(), epoch: 0 };
    let (passed, passes) = (pass(kernel, pairs), pass(&end, pairs));
    let before = sides(kernel, asks);
    let after: Vec<Side> = asks.iter().map(|ask| side(next, next.subjects[&ask.pod], ask)).collect();
    let mut moments = vec![kernel.clone()];
    for (index, step) in steps.iter().enumerate() {
        let mut now = moments[moments.len() - 1].clone();
        now.apply(step);
        if *step == Step::AwaitPrograms {
            moments.clear();
        }
        moments.push(now);
        for (position, ask) in asks.iter().enumerate() {
            let said = SlowProgram::new(&moments, random).side(ask);
            assert!(
                [before[position], after[position]].contains(&said),
                "{what}: at step {index} {step:?}: {ask:?} is {said:?}, before {:?}, after {:?}\n{steps:#?}",
                before[position],
                after[position]
            );
        }
        for (position, pair) in pairs.iter().enumerate() {
            // One program judges both ends.
            let program = SlowProgram::new(&moments, random);
            let said = if pair.egress.direction.is_self() {
                program.itself(&pair.egress).passes()
            } else {
                program.side(&pair.egress).decision.passes() && program.side(&pair.ingress).decision.passes()
            };
            assert!(
                said == passed[position] || said == passes[position],
                "{what}: at step {index} {step:?}: passes: {said}, neither before nor after: {:?} {:?}\n{steps:#?}",
                pair.egress,
                pair.ingress
            );
        }
    }
}

/// Applies the steps one by one, and asks at every point. Returns how many points there were.
fn follow(kernel: &mut Kernel, steps: &[Step], next: &Compiled, asks: &[Ask], what: &str) -> usize {
    let before = sides(kernel, asks);
    let after: Vec<Side> = asks.iter().map(|ask| side(next, next.subjects[&ask.pod], ask)).collect();
    let mut last = before.clone();
    // Whether a program may still run that has read what was before the last verdict changed.
    let mut one_runs = false;
    for (index, step) in steps.iter().enumerate() {
        let epoch = kernel.epoch;
        kernel.apply(step);
        let now = sides(kernel, asks);
        for (position, ask) in asks.iter().enumerate() {
            let allowed = [before[position], after[position]];
            assert!(
                allowed.contains(&now[position]),
                "{what}: after step {index} {step:?}: {ask:?} is {:?}, neither of {allowed:?}\n{steps:#?}",
                now[position]
            );
        }
        // Else what the connection table holds of a flow that is judged already would be another verdict than that of a new one.
        one_runs = (one_runs || now != last) && *step != Step::AwaitPrograms;
        assert!(!one_runs || *step != Step::BumpEpoch, "{what}: step {index}: what a program says of before would speak\n{steps:#?}");
        let holds = epoch::settled(epoch) && kernel.epoch == epoch;
        assert!(!holds || now == last, "{what}: after step {index} {step:?}: a verdict changed in a settled epoch\n{steps:#?}");
        last = now;
    }
    assert!(epoch::settled(kernel.epoch), "{what}: flows would be judged packet by packet from here on\n{steps:#?}");
    assert_eq!(last, after, "{what}: the last step leads elsewhere");
    assert!(steps.iter().filter(|step| **step == Step::BumpEpoch).count() <= 1, "{what}: the epoch moves more than once");
    steps.len()
}

/// That the kernel holds what the model wants, and nothing else.
fn arrived(kernel: &Kernel, next: &Compiled, model: &Model, local: &BTreeSet<ObjectName>, numbers: &Numbers, what: &str) {
    assert_eq!(kernel.rows.policy, next.policy, "{what}");
    assert_eq!(kernel.rows.ports, next.ports, "{what}");
    assert_eq!(kernel.rows.addresses, next.addresses, "{what}");
    assert_eq!(kernel.rows.prefixes, next.prefixes, "{what}");
    assert_eq!(kernel.read_back().subjects, next.subjects, "{what}");
    assert_eq!(kernel.rows.audits, next.audits, "{what}");
    let mut fresh = Numbers::default();
    let scratch = compile(model, local, &mut fresh);
    assert_eq!(resolved(next, numbers), resolved(&scratch, &fresh), "{what}: differs from a compilation from scratch");
}

// More selectors of one namespace than are asked one by one: whoever matches one of them is found all the same.
#[test]
fn many_selectors_that_come_or_go_at_once_alter_what_a_compilation_from_nothing_does() {
    let base = World::new().pod("shop/web", "app=a7", 1).pod("shop/none", "app=none", 2).pod("bank/web", "app=a9", 3);
    let peers = (0..100).flat_map(|number| [own(&format!("app=a{number}")), pods("team=bank", &format!("app=a{number}"))]);
    let rule = Rule::allow(Peers::Of(peers.collect()), Ports::Any);
    let (few, many) = (base.model.clone(), base.ingress("shop/many", "", [rule]).model);
    let local: BTreeSet<ObjectName> = few.pods.keys().cloned().collect();
    let (mut kernel, mut numbers, mut old) = (Kernel::default(), Numbers::default(), Arc::<Compiled>::default());
    let mut planner = Planner::new();
    for model in [&few, &many, &few, &many] {
        let planned = planner.plan(&old, model, &local, &mut numbers);
        apply(&mut kernel, &planned.steps);
        arrived(&kernel, &planned.next, model, &local, &numbers, "many selectors");
        old = planned.next;
    }
}

/// The pods of this node after a change: mostly those of before.
fn still_local(random: &mut Random, local: &BTreeSet<ObjectName>, model: &Model) -> BTreeSet<ObjectName> {
    model.pods.keys().filter(|pod| if random.chance(10) { random.chance(50) } else { local.contains(pod) }).cloned().collect()
}

/// Makes all steps of a plan.
fn apply(kernel: &mut Kernel, steps: &[Step]) {
    steps.iter().for_each(|step| kernel.apply(step));
}

#[test]
fn every_point_of_a_change_gives_each_side_and_each_flow_the_old_or_the_new_verdict() {
    let first = from_environment("PALISADE_SEED", 1);
    let sequences = from_environment("PALISADE_CHANGES", 300);
    let (mut changes, mut points) = (0, 0);
    for seed in first..first + sequences {
        let mut random = Random::new(seed);
        let (mut kernel, mut numbers) = (Kernel::default(), Numbers::default());
        let mut model = generate::model(&mut random);
        let mut local = generate::local(&mut random, &model);
        let mut planner = Planner::new();
        let begin = planner.plan(&Compiled::default(), &model, &local, &mut numbers);
        apply(&mut kernel, &begin.steps);
        arrived(&kernel, &begin.next, &model, &local, &numbers, &format!("seed {seed}, begin"));
        let mut old = begin.next;
        for change in 0..6 {
            let what = format!("seed {seed}, change {change}");
            let before = model.clone();
            generate::change(&mut random, &mut model);
            local = still_local(&mut random, &local, &model);
            let planned = planner.plan(&old, &model, &local, &mut numbers);
            let asks = asks(&mut random, &old, &planned.next, [&before, &model], 60);
            let pairs = pairs(&mut random, &old, &planned.next, [&before, &model], 60);
            follow_flows(&kernel, &planned.steps, &planned.next, &pairs, &what);
            follow_slowly(&mut random, &kernel, &planned.steps, &planned.next, &asks, &pairs, &what);
            points += follow(&mut kernel, &planned.steps, &planned.next, &asks, &what);
            arrived(&kernel, &planned.next, &model, &local, &numbers, &what);
            old = planned.next;
            changes += 1;
        }
    }
    println!("{changes} changes with {points} points between writes, seeds {first} to {}", first + sequences - 1);
}

#[test]
fn an_unchanged_model_needs_no_write_also_after_a_restart() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let model = generate::model(&mut random);
        let local = generate::local(&mut random, &model);
        let mut numbers = Numbers::default();
        let (mut kernel, mut old) = (Kernel::default(), Arc::<Compiled>::default());
        // The numbers have a history.
        for _ in 0..3 {
            let mut other = model.clone();
            generate::change(&mut random, &mut other);
            let planned = plan(&old, &other, &local, &mut numbers);
            apply(&mut kernel, &planned.steps);
            old = planned.next;
        }
        let planned = plan(&old, &model, &local, &mut numbers);
        apply(&mut kernel, &planned.steps);
        let before = numbers.clone();
        let again = plan(&planned.next, &model, &local, &mut numbers);
        assert_eq!(again.steps, [], "seed {seed}");
        assert_eq!(again.next, planned.next, "seed {seed}");
        let written = serde_json::to_string(&before).unwrap();
        let mut restored: Numbers = serde_json::from_str(&written).unwrap();
        assert_eq!(restored, before, "seed {seed}");
        let restarted = plan(&kernel.read_back(), &model, &local, &mut restored);
        assert_eq!(restarted.steps, [], "seed {seed}");
    }
}

#[test]
fn the_end_depends_on_the_objects_and_not_on_the_way_to_them() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let wanted = generate::model(&mut random);
        let local = generate::local(&mut random, &wanted);
        let other = generate::model(&mut random);
        let (mut kernel, mut numbers, mut old) = (Kernel::default(), Numbers::default(), Arc::<Compiled>::default());
        let mut planner = Planner::new();
        let mut model = other.clone();
        // Events: upserts in any order, some of them twice, some of older versions first, and deletes.
        let mut events: Vec<(usize, usize)> = Vec::new();
        let (namespaces, pods, policies) = (wanted.namespaces.len(), wanted.pods.len(), wanted.policies.len());
        let counts = [namespaces, pods, policies, wanted.nodes.len(), wanted.identities.len(), wanted.api_servers.len()];
        for (kind, count) in counts.into_iter().enumerate() {
            events.extend((0..count).map(|index| (kind, index)));
        }
        for _ in 0..events.len() / 2 {
            let again = *random.pick(&events);
            events.push(again);
        }
        for index in (1..events.len()).rev() {
            events.swap(index, random.below(index + 1));
        }
        for (kind, index) in events {
            if random.chance(20) {
                generate::change(&mut random, &mut model);
            }
            take(&wanted, &mut model, kind, index);
            let planned = planner.plan(&old, &model, &local, &mut numbers);
            apply(&mut kernel, &planned.steps);
            old = planned.next;
        }
        let planned = planner.plan(&old, &wanted, &local, &mut numbers);
        apply(&mut kernel, &planned.steps);
        arrived(&kernel, &planned.next, &wanted, &local, &numbers, &format!("seed {seed}"));
    }
}

/// One object as the wanted model has it.
fn take(wanted: &Model, model: &mut Model, kind: usize, index: usize) {
    match kind {
        0 => model.namespaces.extend(wanted.namespaces.iter().nth(index).map(|(name, labels)| (name.clone(), labels.clone()))),
        1 => model.pods.extend(wanted.pods.iter().nth(index).map(|(name, pod)| (name.clone(), pod.clone()))),
        2 => model.policies.extend(wanted.policies.iter().nth(index).map(|(name, policy)| (name.clone(), policy.clone()))),
        3 => model.nodes.extend(wanted.nodes.iter().nth(index).map(|(name, node)| (name.clone(), node.clone()))),
        4 => model.identities.extend(wanted.identities.iter().nth(index).map(|(name, members)| (name.clone(), members.clone()))),
        _ => model.api_servers.extend(wanted.api_servers.iter().nth(index)),
    }
}

#[test]
fn a_change_that_was_interrupted_is_finished_from_what_the_kernel_holds() {
    let mut points = 0;
    for seed in 1..=300 {
        let mut random = Random::new(seed);
        let (mut kernel, mut numbers) = (Kernel::default(), Numbers::default());
        let mut model = generate::model(&mut random);
        let local = generate::local(&mut random, &model);
        let mut planner = Planner::new();
        let begin = planner.plan(&Compiled::default(), &model, &local, &mut numbers);
        apply(&mut kernel, &begin.steps);
        for change in 0..6 {
            let what = format!("seed {seed}, change {change}");
            let before = model.clone();
            generate::change(&mut random, &mut model);
            let old = kernel.read_back();
            let interrupted = planner.plan(&old, &model, &local, &mut numbers);
            let asks = asks(&mut random, &old, &interrupted.next, [&before, &model], 40);
            let made = random.below(interrupted.steps.len() + 1);
            apply(&mut kernel, &interrupted.steps[..made]);
            if random.chance(50) {
                // Killed. The numbers were written down before the first step.
                numbers = serde_json::from_str(&serde_json::to_string(&numbers).unwrap()).unwrap();
                planner = Planner::new();
            } else if random.chance(50) {
                // A write failed, and what was there is put back.
                let put_back = planner.plan(&kernel.take_over(), &before, &local, &mut numbers);
                apply(&mut kernel, &put_back.steps);
                arrived(&kernel, &put_back.next, &before, &local, &numbers, &what);
            }
            let finished = planner.plan(&kernel.take_over(), &model, &local, &mut numbers);
            points += follow(&mut kernel, &finished.steps, &finished.next, &asks, &what);
            arrived(&kernel, &finished.next, &model, &local, &numbers, &what);
        }
    }
    println!("{points} points between writes");
}

#[test]
fn with_its_numbers_lost_an_agent_takes_the_rows_over_and_no_verdict_changes() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let model = generate::model(&mut random);
        let local = generate::local(&mut random, &model);
        let (mut kernel, mut numbers) = (Kernel::default(), Numbers::default());
        let planned = plan(&Compiled::default(), &model, &local, &mut numbers);
        apply(&mut kernel, &planned.steps);
        let found = kernel.read_back();
        let used = found.used();
        let max = |numbers: &BTreeSet<u32>| numbers.last().copied().unwrap_or(SUBJECT_NONE);
        let mut numbers = Numbers::starting_after(max(&used.subjects), max(&used.identities), max(&used.ports), max(&used.reasons));
        let planned = plan(&found, &model, &local, &mut numbers);
        let asks = asks(&mut random, &found, &planned.next, [&model, &model], 60);
        let before = sides(&kernel, &asks);
        for step in &planned.steps {
            kernel.apply(step);
            for (ask, (before, now)) in asks.iter().zip(before.iter().zip(sides(&kernel, &asks))) {
                assert_eq!(before.decision, now.decision, "seed {seed}: {ask:?} after {step:?}");
            }
        }
        arrived(&kernel, &planned.next, &model, &local, &numbers, &format!("seed {seed}"));
    }
}

#[test]
fn a_number_that_rows_refer_to_is_never_given_another_content() {
    for seed in 1..=100 {
        let mut random = Random::new(seed);
        let mut model = generate::model(&mut random);
        let local = generate::local(&mut random, &model);
        let (mut numbers, mut old, mut planner) = (Numbers::default(), Arc::<Compiled>::default(), Planner::new());
        for change in 0..20 {
            generate::change(&mut random, &mut model);
            let before = numbers.clone();
            let planned = planner.plan(&old, &model, &local, &mut numbers);
            let used = old.used();
            for number in used.identities {
                assert_eq!(before.identity(number), numbers.identity(number), "seed {seed}, change {change}: identity {number}");
            }
            for number in used.subjects {
                assert_eq!(before.subject(number), numbers.subject(number), "seed {seed}, change {change}: subject {number}");
            }
            for number in used.reasons {
                assert_eq!(before.reason(number), numbers.reason(number), "seed {seed}, change {change}: reason {number}");
            }
            for number in used.ports {
                assert_eq!(before.ports.content(number), numbers.ports.content(number), "seed {seed}, change {change}: table {number}");
            }
            old = planned.next;
        }
        let used = old.used();
        for (kind, held, used) in [
            ("identities", numbers.identities.len(), used.identities),
            ("subjects", numbers.subjects.len(), used.subjects),
            ("port tables", numbers.ports.len(), used.ports),
            ("reasons", numbers.reasons.len(), used.reasons),
        ] {
            // 0 stands for nothing.
            let used = used.iter().filter(|&&number| number != 0).count();
            assert!(held <= used, "seed {seed}: {held} {kind} are held, {used} are in use: a leak");
        }
    }
}
