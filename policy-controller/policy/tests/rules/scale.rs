//! What grows with what.

use crate::judge::world::{World, block, expression, from, own, pods, rule, tcp};
use crate::judge::{compiled_verdict, expected_verdict};
use ipnet::{IpNet, Ipv4Net};
use palisade_identity::Operator;
use palisade_policy::model::{Model, ObjectName, Peer, Peers, Pod, PodSet, Policy, Ports, Rule};
use palisade_policy::oracle::Flow;
use palisade_policy::{Compiled, Numbers, Planner, Step, compile, plan};
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

/// What a policy can know of a pod of the next test: the number of its namespace, of its application and of its tier, and whether it is a canary.
type Known = (u32, u32, u32, bool);

// Labels of several keys that go their own ways multiply; what counts is which of the combinations some policy tells from others.
#[test]
fn identities_are_as_many_as_the_combinations_of_labels_that_policies_tell_apart() {
    let mut world = (0..10).fold(World::default(), |world, index| world.namespace(&format!("team-{index}"), &format!("team=t{index}")));
    let mut peers: Vec<Box<dyn Fn(Known) -> bool>> = Vec::new();
    for index in 0..50_u32 {
        let (home, app, other, tier) = (index / 5, index * 7 % 40, (index + 3) % 10, index / 5 % 4);
        let (peer, matches): (Peer, Box<dyn Fn(Known) -> bool>) = match index % 5 {
            0 => (own(&format!("app=a{app}")), Box::new(move |pod| (pod.0, pod.1) == (home, app))),
            1 => (pods(&format!("team=t{other}"), &format!("app=a{app}")), Box::new(move |pod| (pod.0, pod.1) == (other, app))),
            2 => (pods("", &format!("tier=t{tier}")), Box::new(move |pod| pod.2 == tier)),
            3 => (own("track=canary"), Box::new(move |pod| pod.0 == home && pod.3)),
            _ => {
                let others = expression("tier", Operator::NotIn([format!("t{tier}")].into()));
                (Peer::Pods(PodSet { pods: others, ..PodSet::default() }), Box::new(move |pod| pod.0 == home && pod.2 != tier))
            }
        };
        peers.push(matches);
        world = world.ingress(&format!("team-{home}/policy-{index}"), "", [from([peer])]);
    }
    let mut told_apart = BTreeSet::new();
    for index in 0..20_000_u32 {
        let known: Known = (index % 10, index / 10 % 40, index / 10 % 4, index % 97 == 0);
        told_apart.insert(peers.iter().map(|matches| matches(known)).collect::<Vec<_>>());
        let (namespace, app, tier, canary) = known;
        let labels = [
            ("app", format!("a{app}")),
            ("tier", format!("t{tier}")),
            ("track", if canary { "canary" } else { "stable" }.to_owned()),
            ("pod-template-hash", format!("hash-{index}")),
        ];
        let addresses = vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index))];
        let pod = Pod { labels: labels.map(|(key, value)| (key.to_owned(), value)).into(), addresses, ..Pod::default() };
        world.model.pods.insert(ObjectName::new(format!("team-{namespace}"), format!("pod-{index}")), pod);
    }
    let local: BTreeSet<ObjectName> = world.model.pods.keys().step_by(200).cloned().collect();
    let compiled = compile(&world.model, &local, &mut Numbers::default());
    let identities: BTreeSet<u32> = world.model.pods.values().map(|pod| compiled.identity(pod.addresses[0])).collect();
    println!(
        "20 000 pods, 50 policies, 4 keys: {} combinations that policies tell apart, {} identities",
        told_apart.len(),
        identities.len()
    );
    assert!(identities.len() <= told_apart.len() && told_apart.len() < 300, "{} of {}", identities.len(), told_apart.len());
    assert!(identities.len() > 50, "{identities:?}: the policies would tell little apart");
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

#[test]
fn a_pod_that_comes_to_another_node_writes_its_addresses_and_flips_no_endpoint() {
    let mut model = cluster(5_000, 50);
    let local: BTreeSet<ObjectName> = model.pods.keys().step_by(50).cloned().collect();
    let (mut numbers, mut planner) = (Numbers::default(), Planner::new());
    let begin = planner.plan(&Compiled::default(), &model, &local, &mut numbers);
    // Another one of an application that is there, so that policies name it on both sides.
    let twin = model.pods[&ObjectName::new("team-3", "pod-3")].clone();
    let addresses = ["10.200.0.1", "fd00:200::1"].map(|address| address.parse().expect("an address")).to_vec();
    model.pods.insert(ObjectName::new("team-3", "new"), Pod { addresses, ..Pod::clone(&twin) });
    let planned = planner.plan(&begin.next, &model, &local, &mut numbers);
    let addresses = planned.steps.iter().filter(|step| matches!(step, Step::WriteAddress { .. })).count();
    assert_eq!((addresses, planned.steps.last()), (2, Some(&Step::BumpEpoch)), "{:#?}", planned.steps);
    assert_eq!((planned.steps.len(), &planned.steps[0]), (5, &Step::UnsettleEpoch), "{:#?}", planned.steps);
}

/// A policy of `big` for all of its pods.
fn one_policy(pods_count: u32, rules: Vec<Rule>) -> Model {
    let mut world = World::default().namespace("big", "").ingress("big/all", "", rules);
    for index in 0..pods_count {
        let addresses =
            vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index)), IpAddr::V6(Ipv6Addr::from((0xfd00u128 << 112) + u128::from(index)))];
        world.model.pods.insert(ObjectName::new("big", format!("pod-{index}")), Pod { addresses, ..Pod::default() });
    }
    world.model
}

#[test]
fn a_policy_that_selects_thirty_thousand_pods_takes_a_row_for_each_address_and_a_handful_for_its_rules() {
    let model = one_policy(30_000, vec![rule([own("")], [tcp(80)])]);
    let local: BTreeSet<ObjectName> = model.pods.keys().step_by(120).cloned().collect();
    let started = Instant::now();
    let planned = plan(&Compiled::default(), &model, &local, &mut Numbers::default());
    let compiled = planned.next;
    println!("30 000 pods of one policy, {} of them here: {:?}", local.len(), started.elapsed());
    assert_eq!(compiled.addresses.len(), 60_000);
    let subjects: BTreeSet<u32> = compiled.subjects.values().copied().collect();
    assert_eq!((compiled.subjects.len(), subjects.len()), (250, 1), "one subject for all of them");
    assert!(compiled.policy.len() <= 4, "{} policy rows", compiled.policy.len());
    assert!(compiled.ports.len() <= 2, "{} port rows", compiled.ports.len());
    assert!(compiled.used().identities.len() <= 3, "{} identities", compiled.used().identities.len());
}

#[test]
fn a_list_of_ten_thousand_networks_takes_a_row_for_each_of_them() {
    let network = |index: u32| IpNet::from(Ipv4Net::new(Ipv4Addr::from(0x2000_0000 + 512 * index), 24).expect("a length"));
    let blocks = (0..10_000).map(|index| Peer::Block { block: network(index), except: Vec::new() });
    let model = one_policy(1, vec![Rule::allow(Peers::Of(blocks.collect()), Ports::Of([tcp(80)].into()))]);
    let local: BTreeSet<ObjectName> = model.pods.keys().cloned().collect();
    let started = Instant::now();
    let planned = plan(&Compiled::default(), &model, &local, &mut Numbers::default());
    println!("10 000 networks in one rule: {:?}, {} policy rows", started.elapsed(), planned.next.policy.len());
    assert_eq!(planned.next.prefixes.len(), 10_000);
    assert!(planned.next.policy.len() <= 10_010, "{} policy rows", planned.next.policy.len());
    assert!(planned.next.ports.len() <= 2, "{} port rows", planned.next.ports.len());
}

/// Asserts that rows and oracle say the same of TCP flows from each of these addresses to the pod of a name, on an open
/// port and on another one; how many pass.
fn agree(model: &Model, local: &BTreeSet<ObjectName>, openers: &[IpAddr], responder: &ObjectName) -> usize {
    let mut numbers = Numbers::default();
    let compiled = compile(model, local, &mut numbers);
    let mut passed = 0;
    for opener in openers {
        let to = model.pods[responder].addresses.iter().find(|address| address.is_ipv6() == opener.is_ipv6());
        for port in [80, 81] {
            let flow = Flow { opener: *opener, responder: *to.expect("an address of each family"), protocol: 6, port };
            let found = compiled_verdict(&compiled, &numbers, model, &flow);
            assert_eq!(found, expected_verdict(&compiled, model, &flow), "rows and oracle differ: {flow:?}");
            passed += usize::from(found.passes());
        }
    }
    passed
}

#[test]
fn a_policy_that_selects_30_000_pods_says_of_them_what_the_rules_say() {
    let mut model = cluster(30_000, 0);
    // One namespace, so that one policy selects them all.
    let in_one = model.pods.iter().map(|(name, pod)| (ObjectName::new("team-0", &name.name), pod.clone()));
    model.pods = in_one.collect();
    assert_eq!(model.pods.len(), 30_000);
    let world = World { model }.ingress("team-0/all", "", [rule([own("app=a1"), own("pod-template-hash=hash-7")], [tcp(80)])]);
    let model = world.model;
    let local: BTreeSet<ObjectName> = model.pods.keys().step_by(300).cloned().collect();
    let compiled = compile(&model, &local, &mut Numbers::default());
    // All are selected alike: one subject, and no more identities than its rule tells apart.
    assert_eq!(compiled.used().subjects.len(), 1, "{:?}", compiled.used().subjects);
    assert!(compiled.used().identities.len() <= 8, "{} identities", compiled.used().identities.len());
    let named = |index: usize| model.pods[&ObjectName::new("team-0", format!("pod-{index}"))].addresses.clone();
    let openers: Vec<IpAddr> =
        [1, 7, 8, 21, 29_981, 29_999].into_iter().flat_map(named).chain(["203.0.113.1".parse().expect("an address")]).collect();
    let responder = local.last().expect("a pod of this node");
    // pod-1, pod-7, pod-21 and pod-29981, each over both families, by port 80.
    assert_eq!(agree(&model, &local, &openers, responder), 8);
}

#[test]
fn a_list_of_10_000_blocks_with_duplicates_and_overlaps_says_what_the_rules_say() {
    let mut peers = Vec::new();
    for index in 0..10_000_u32 {
        let [_, _, high, low] = index.to_be_bytes();
        peers.push(match index % 5 {
            // Everything of 100.high.low.0/24 but its first quarter, of which other rows let some in again.
            0 | 1 => block(&format!("100.{high}.{low}.0/24"), &[&format!("100.{high}.{low}.0/26")]),
            2 => block(&format!("100.{high}.{}.16/28", low & !3), &[]),
            // The same row two thousand times.
            3 => block("100.200.0.0/16", &["100.200.7.0/24"]),
            _ => block(&format!("fd00:{high:x}:{low:x}::/48"), &[&format!("fd00:{high:x}:{low:x}:1::/64")]),
        });
    }
    let rule = Rule::allow(Peers::Of(peers), Ports::Of(vec![tcp(80)]));
    let world = World::new().pod("shop/web", "app=web", 1).ingress("shop/blocks", "app=web", [rule]);
    let web = ObjectName::new("shop", "web");
    let mut openers: Vec<IpAddr> = Vec::new();
    for index in (0..10_000_u32).step_by(97) {
        let [_, _, high, low] = index.to_be_bytes();
        openers.extend([0, 15, 16, 31, 63, 64, 255].map(|last| IpAddr::from([100, high, low, last])));
        openers.extend([0, 1, 2].map(|third| IpAddr::from([0xfd00, u16::from(high), u16::from(low), third, 0, 0, 0, 1])));
    }
    openers.extend([[100, 200, 0, 1], [100, 200, 7, 1], [100, 201, 0, 0], [99, 0, 0, 0]].map(IpAddr::from));
    let passed = agree(&world.model, &[web.clone()].into(), &openers, &web);
    assert!(passed > 100 && passed < openers.len() / 2, "{passed} of {} pass: the samples tell too little apart", openers.len());
}
