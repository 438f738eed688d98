//! What grows with what.

use crate::judge::world::{World, from, own, pods, rule, tcp};
use palisade_policy::model::{Model, ObjectName, Pod, Policy};
use palisade_policy::{Compiled, Numbers, Step, compile, plan};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

/// `pods` pods over 10 namespaces, each with a label value of its own, and `policies` policies.
fn cluster(pods_count: u32, policies: u32) -> Model {
    let mut world = World::default();
    for index in 0..10 {
        world = world.namespace(&format!("team-{index}"), &format!("team=t{index}"));
    }
    for index in 0..policies {
        let name = format!("team-{}/policy-{index}", index % 10);
        let subject = format!("app=a{}", index % 20);
        let peer = pods(&format!("team=t{}", index % 7), &format!("app=a{}", index % 13));
        world = world.ingress(&name, &subject, [rule([peer], [tcp(80), tcp(443)]), from([own(&format!("app=a{}", index % 5))])]);
    }
    for index in 0..pods_count {
        let labels = [("app", format!("a{}", index % 20)), ("pod-template-hash", format!("hash-{index}"))];
        let labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
        let addresses =
            vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index)), IpAddr::V6(Ipv6Addr::from((0xfd00u128 << 112) + u128::from(index)))];
        let name = ObjectName::new(format!("team-{}", index % 10), format!("pod-{index}"));
        world.model.pods.insert(name, Pod { labels, addresses, ..Pod::default() });
    }
    world.model
}

#[test]
fn identities_grow_with_what_policies_tell_apart_and_not_with_labels() {
    let model = cluster(20_000, 50);
    let local: BTreeSet<ObjectName> = model.pods.keys().step_by(200).cloned().collect();
    let mut numbers = Numbers::default();
    let started = Instant::now();
    let compiled = compile(&model, &local, &mut numbers);
    let took = started.elapsed();
    let identities = compiled.used().identities.len();
    println!(
        "20 000 pods, 20 000 label values, 50 policies, 100 pods here: {identities} identities, {} subjects, {} policy rows, {took:?}",
        compiled.used().subjects.len(),
        compiled.policy.len()
    );
    assert!(identities <= 200, "{identities} identities");
    assert_eq!(compiled.addresses.len(), 40_000);
}

#[test]
fn a_change_of_one_policy_writes_what_it_touches_and_not_the_cluster() {
    let mut model = cluster(5_000, 50);
    let local: BTreeSet<ObjectName> = model.pods.keys().step_by(50).cloned().collect();
    let mut numbers = Numbers::default();
    let begin = plan(&Compiled::default(), &model, &local, &mut numbers);
    let (name, policy) = model.policies.iter().next().map(|(name, policy)| (name.clone(), policy.clone())).expect("a policy");
    let mut changed = Policy::clone(&policy);
    changed.ingress = Some(vec![rule([pods("team=t3", "app=a3")], [tcp(8080)])]);
    model.policies.insert(name, changed);
    let started = Instant::now();
    let planned = plan(&begin.next, &model, &local, &mut numbers);
    println!("one of 50 policies changed, 5 000 pods, 100 of them here: {} writes, {:?}", planned.steps.len(), started.elapsed());
    let moves = planned.steps.iter().filter(|step| matches!(step, Step::WriteAddress { .. })).count();
    assert!(moves <= 2_000, "{moves} addresses moved");
    assert!(planned.steps.iter().any(|step| matches!(step, Step::Flip { .. })));
}
