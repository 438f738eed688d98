//! One flow, explained.

use crate::judge::world::{World, doing, everything, from, network_policy, object, own, pods, rule, tcp};
use palisade_datapath_core::verdict::Decision;
use palisade_policy::generate::{self, Random};
use palisade_policy::model::{Action, Model, Node, ObjectName, PolicyKind, PolicyName, Tier};
use palisade_policy::{Answer, End, ExplainError, Fate, Numbers, Question, Settled, SideAnswer, Unjudged, compile, evaluate, foretell};
use std::collections::BTreeSet;

fn world() -> World {
    let mut world = World::new()
        .pod("shop/web", "app=web", 1)
        .pod("shop/db", "app=db", 2)
        .pod("bank/web", "app=web", 3)
        .node("node-0", "192.168.0.1")
        .ingress("shop/allow-web", "app=db", [from([pods("team=none", "")]), from([own("app=web")])])
        .ingress("shop/deny", "", [])
        .egress("bank/closed", "", []);
    world.model.pods.edit(&object("bank/web")).expect("the pod is there").addresses.truncate(1);
    world
}

fn ask(from: End, to: End, ipv6: bool) -> Result<Answer, ExplainError> {
    let model = world().model;
    // `shop/web` runs on another node.
    let local: BTreeSet<ObjectName> = ["shop/db", "bank/web"].map(object).into();
    let mut numbers = Numbers::default();
    let compiled = compile(&model, &local, &mut numbers);
    evaluate(&compiled, &numbers, &model, &Question { from, to, protocol: 6, port: 80, ipv6, service: false, rules: false })
}

fn pod(name: &str) -> End {
    End::Pod(object(name))
}

#[test]
fn an_allow_names_its_rule_and_a_pod_of_another_node_is_not_judged_here() {
    for ipv6 in [false, true] {
        let answer = ask(pod("shop/web"), pod("shop/db"), ipv6).unwrap();
        assert_eq!((answer.egress.decision, answer.egress.reason.as_str()), (Decision::NotJudged, ""));
        assert_eq!(
            (answer.ingress.decision, answer.ingress.reason.as_str()),
            (Decision::Allow, "NetworkPolicy shop/allow-web ingress rule 1")
        );
        assert!(answer.passes());
    }
}

#[test]
fn of_a_pod_that_is_not_judged_here_it_is_said_whose_rows_judge_it() {
    let unjudged = |host: &str, ranges: &[&str], from: End, to: End| {
        let mut model = world().model;
        model.host = host.to_owned();
        let pod_ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        model.nodes.insert("node-1".to_owned(), Node { pod_ranges, ..Node::default() });
        let local: BTreeSet<ObjectName> = ["shop/db", "bank/web"].map(object).into();
        let mut numbers = Numbers::default();
        let compiled = compile(&model, &local, &mut numbers);
        let question = Question { from, to, protocol: 6, port: 80, ipv6: false, service: false, rules: false };
        let answer = evaluate(&compiled, &numbers, &model, &question).unwrap();
        (answer.egress.unjudged, answer.ingress.unjudged)
    };
    let ranges = ["10.1.0.0/24"];
    let other = || Some(Unjudged::OtherNode("node-1".to_owned()));
    assert_eq!(unjudged("node-0", &ranges, pod("shop/web"), pod("shop/db")), (other(), None));
    assert_eq!(unjudged("node-0", &ranges, End::Address("10.1.0.1".parse().unwrap()), pod("shop/db")), (other(), None));
    assert_eq!(unjudged("node-1", &ranges, pod("shop/web"), pod("shop/db")), (Some(Unjudged::NotWired), None));
    assert_eq!(unjudged("node-0", &[], pod("shop/web"), pod("shop/db")), (Some(Unjudged::UnknownNode), None));
    // The node reaches its own pods always, and those of others by their policy.
    assert_eq!(unjudged("node-0", &ranges, End::Node("node-0".to_owned()), pod("shop/web")), (None, other()));
    assert_eq!(unjudged("node-0", &ranges, End::Node("node-0".to_owned()), pod("shop/db")), (None, None));
    // A pod reaches itself wherever it is.
    assert_eq!(unjudged("node-0", &ranges, pod("shop/web"), pod("shop/web")), (None, None));
    assert_eq!(unjudged("node-0", &ranges, pod("shop/db"), End::Address("203.0.113.9".parse().unwrap())), (None, None));
}

#[test]
fn what_is_expected_of_a_pod_of_another_node_is_what_the_rows_there_say() {
    let (mut asked, mut allowed, mut denied, mut own) = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut model = generate::model(&mut random);
        let local = generate::local(&mut random, &model);
        let Some(there) = model.nodes.keys().find(|name| **name != model.host).cloned() else { continue };
        // All pods that are not here are there.
        let elsewhere: BTreeSet<ObjectName> = model.pods.keys().filter(|name| !local.contains(name)).cloned().collect();
        let of_them = model.pods.iter().filter(|(name, _)| elsewhere.contains(*name)).flat_map(|(_, pod)| &pod.addresses);
        let ranges = of_them.map(|&address| address.into()).collect();
        let names: Vec<String> = model.nodes.keys().cloned().collect();
        names.iter().for_each(|name| model.nodes.get_mut(name).expect("it has the name").pod_ranges.clear());
        model.nodes.get_mut(&there).expect("it was found").pod_ranges = ranges;
        let (mut numbers_here, mut numbers_there) = (Numbers::default(), Numbers::default());
        let here = compile(&model, &local, &mut numbers_here);
        let model_there = Model { host: there.clone(), ..model.clone() };
        let rows_there = compile(&model_there, &elsewhere, &mut numbers_there);
        for _ in 0..20 {
            let flow = generate::flow(&mut random, &model);
            let ends = (End::Address(flow.opener), End::Address(flow.responder));
            let (protocol, port, ipv6) = (flow.protocol, flow.port, flow.opener.is_ipv6());
            let question = Question { from: ends.0, to: ends.1, protocol, port, ipv6, service: false, rules: true };
            let answer = evaluate(&here, &numbers_here, &model, &question).unwrap();
            let whole = foretell(&model, &question, answer.clone()).unwrap();
            // Its own processes are asked about as such.
            let is_there = model.nodes[&there].addresses.contains(&flow.opener);
            let from = if is_there { End::Node(there.clone()) } else { question.from.clone() };
            let said_there = evaluate(&rows_there, &numbers_there, &model_there, &Question { from, ..question }).unwrap();
            if whole.settled != answer.settled {
                assert_eq!((whole.settled, said_there.settled), (Some(Settled::OwnNode), Some(Settled::OwnNode)), "seed {seed}: {flow:?}");
                own += 1;
                continue;
            }
            let said = |side: &SideAnswer| SideAnswer { unjudged: Some(Unjudged::OtherNode(there.clone())), ..side.clone() };
            for (before, after, there) in
                [(&answer.egress, &whole.egress, &said_there.egress), (&answer.ingress, &whole.ingress, &said_there.ingress)]
            {
                if before.unjudged.is_none() {
                    assert_eq!(before, after, "seed {seed}: {flow:?}: what is judged here stays");
                    continue;
                }
                assert_eq!(*after, said(there), "seed {seed}: {flow:?}");
                asked += 1;
                allowed += u64::from(after.decision == Decision::Allow);
                denied += u64::from(!after.decision.passes());
            }
        }
    }
    assert!(
        asked > 500 && allowed > 50 && denied > 50 && own > 5,
        "the generator no longer reaches every case: {asked}, {allowed}, {denied}, {own}"
    );
}

#[test]
fn a_default_deny_names_all_policies_that_isolate_and_both_sides_are_shown() {
    let answer = ask(pod("bank/web"), pod("shop/db"), false).unwrap();
    assert_eq!(answer.egress.decision, Decision::DefaultDeny);
    assert_eq!(answer.egress.reason, "default deny of egress by NetworkPolicy bank/closed");
    assert_eq!(answer.ingress.decision, Decision::DefaultDeny);
    assert_eq!(answer.ingress.reason, "default deny of ingress by NetworkPolicy shop/allow-web, NetworkPolicy shop/deny");
    assert!(!answer.passes());
}

#[test]
fn a_pod_that_is_not_isolated_is_allowed_for_no_reason() {
    let answer = ask(pod("shop/db"), End::Address("203.0.113.9".parse().unwrap()), false).unwrap();
    assert_eq!((answer.egress.decision, answer.egress.reason.as_str()), (Decision::Allow, ""));
    assert_eq!(answer.ingress.decision, Decision::NotJudged);
}

#[test]
fn the_rules_that_were_considered_are_listed_with_what_came_of_each() {
    let world = World::new()
        .pod("shop/web", "app=web", 1)
        .pod("bank/client", "", 2)
        .cluster(
            "admin",
            Tier::Admin(3),
            "team=shop",
            vec![doing(Action::Pass, rule([pods("team=bank", "")], [tcp(80)])), everything()],
            vec![],
        )
        .cluster("base", Tier::Baseline(0), "", vec![everything()], vec![])
        .ingress("shop/a", "", [from([own("")]), rule([pods("team=bank", "")], [tcp(81)]), rule([pods("team=bank", "")], [tcp(80)])])
        .ingress("shop/b", "", [everything()]);
    let answer = explained(&world, pod("bank/client"), pod("shop/web"), false);
    let fates: Vec<(String, usize, Fate)> =
        answer.ingress.rules.iter().map(|rule| (rule.policy.object.to_string(), rule.rule, rule.fate)).collect();
    let expected = [
        ("admin", 0, Fate::Passes),
        ("admin", 1, Fate::NotAsked),
        ("shop/a", 0, Fate::PeerDiffers),
        ("shop/a", 1, Fate::PortDiffers),
        ("shop/a", 2, Fate::Decides),
        ("shop/b", 0, Fate::NotAsked),
        ("base", 0, Fate::NotAsked),
    ];
    assert_eq!(fates, expected.map(|(policy, rule, fate)| (policy.to_owned(), rule, fate)));
    assert_eq!(answer.egress.rules, []);
}

#[test]
fn rules_in_audit_mode_are_listed_where_they_would_stand_with_what_would_have_come_of_them() {
    let audited = network_policy("shop/b");
    let world = World::new()
        .pod("shop/web", "app=web", 1)
        .pod("bank/client", "", 2)
        .ingress("shop/a", "", [rule([pods("team=bank", "")], [tcp(80)])])
        .ingress("shop/b", "", [from([own("")]), rule([pods("team=bank", "")], [tcp(80)])])
        .cluster("watch", Tier::Admin(1), "team=shop", vec![doing(Action::Deny, rule([pods("team=bank", "")], [tcp(80)]))], vec![])
        .audited(&PolicyName::new(PolicyKind::ClusterNetworkPolicy, ObjectName::cluster("watch")))
        .audited(&audited);
    let answer = explained(&world, pod("bank/client"), pod("shop/web"), false);
    let listed: Vec<(String, usize, bool, Fate)> =
        answer.ingress.rules.iter().map(|rule| (rule.policy.object.to_string(), rule.rule, rule.audit, rule.fate)).collect();
    let expected = [
        ("watch", 0, true, Fate::Decides),
        ("shop/a", 0, false, Fate::Decides),
        ("shop/b", 0, true, Fate::NotAsked),
        ("shop/b", 1, true, Fate::NotAsked),
    ];
    assert_eq!(listed, expected.map(|(policy, rule, audit, fate)| (policy.to_owned(), rule, audit, fate)));
    let would = "ClusterNetworkPolicy watch (Admin tier, priority 1) ingress rule 0".to_owned();
    assert_eq!((answer.passes(), answer.ingress.audit), (true, Some((Decision::Deny, would))));
    assert_eq!(answer.egress.audit, None, "no policy in audit mode selects the client");
    // What would deny by isolating has no rule to show, and says so all the same.
    let isolating = World::new().pod("shop/web", "", 1).pod("bank/client", "", 2).ingress("shop/b", "", []).audited(&audited);
    let answer = explained(&isolating, pod("bank/client"), pod("shop/web"), false);
    assert_eq!(answer.ingress.audit, Some((Decision::DefaultDeny, "default deny of ingress by NetworkPolicy shop/b".to_owned())));
    assert!(answer.passes() && answer.ingress.rules.is_empty());
}

// Line 37.
#[test]
fn a_pod_that_reaches_itself_through_a_service_is_judged_by_cluster_policies() {
    let world = World::new().pod("shop/web", "app=web", 1).policy("shop/closed", "", Some(vec![]), Some(vec![])).cluster(
        "base",
        Tier::Baseline(0),
        "",
        vec![doing(Action::Deny, rule([pods("team=shop", "")], [tcp(80)]))],
        vec![],
    );
    let answer = explained(&world, pod("shop/web"), pod("shop/web"), true);
    assert_eq!(answer.settled, None);
    assert_eq!((answer.egress.decision, answer.egress.reason.as_str()), (Decision::Allow, ""));
    assert_eq!(answer.ingress.reason, "ClusterNetworkPolicy base (Baseline tier, priority 0) ingress rule 0");
    let policies: Vec<String> = answer.ingress.rules.iter().map(|rule| rule.policy.to_string()).collect();
    assert_eq!(policies, ["ClusterNetworkPolicy base"], "the namespace's policies are not asked");
    assert_eq!(explained(&world, pod("shop/web"), pod("shop/web"), false).settled, Some(Settled::Itself));
}

/// What the rows say of TCP 80, with the rules; whether through a service.
fn explained(world: &World, from: End, to: End, service: bool) -> Answer {
    let local = world.model.pods.keys().cloned().collect();
    let mut numbers = Numbers::default();
    let compiled = compile(&world.model, &local, &mut numbers);
    let question = Question { from, to, protocol: 6, port: 80, ipv6: false, service, rules: true };
    evaluate(&compiled, &numbers, &world.model, &question).unwrap()
}

// Lines 25 and 26.
#[test]
fn the_node_reaches_its_pods_always_and_pods_reach_it_by_their_policy() {
    let answer = ask(End::Node("node-0".to_owned()), pod("shop/db"), false).unwrap();
    assert_eq!((answer.ingress.decision, answer.settled), (Decision::NotJudged, Some(Settled::OwnNode)));
    // Of another node's pod its own node knows.
    assert_eq!(ask(End::Node("node-0".to_owned()), pod("shop/web"), false).unwrap().settled, None);
    let answer = ask(pod("bank/web"), End::Node("node-0".to_owned()), false).unwrap();
    assert_eq!(answer.egress.decision, Decision::DefaultDeny);
}

// Line 27.
#[test]
fn a_pod_reaches_itself_always() {
    let answer = ask(pod("bank/web"), pod("bank/web"), false).unwrap();
    assert!(answer.passes() && answer.settled == Some(Settled::Itself), "{answer:?}");
    let by_address = ask(pod("bank/web"), End::Address("10.1.0.3".parse().unwrap()), false).unwrap();
    assert_eq!(by_address.settled, Some(Settled::Itself));
    let outside = || End::Address("203.0.113.9".parse().unwrap());
    assert_eq!(ask(outside(), outside(), false).unwrap().settled, None, "that is no pod");
}

#[test]
fn no_pod_reaches_the_nodes_end_of_its_link_whatever_its_policy_and_nobody_else_comes_there() {
    for (link, ipv6) in [("169.254.1.1", false), ("fe80::1", true)] {
        let link = || End::Address(link.parse().unwrap());
        // Not isolated, and of another node.
        for from in [pod("shop/db"), pod("shop/web")] {
            let answer = ask(from, link(), ipv6).unwrap();
            assert!(!answer.passes() && answer.settled == Some(Settled::Link), "{answer:?}");
            assert_eq!((answer.egress.decision, answer.egress.unjudged), (Decision::NotJudged, None));
        }
    }
    let link = || End::Address("169.254.1.1".parse().unwrap());
    for from in [End::Node("node-0".to_owned()), End::Address("203.0.113.9".parse().unwrap())] {
        assert_eq!(ask(from, link(), false).unwrap_err(), ExplainError::NotOnLink("169.254.1.1".parse().unwrap()));
    }
    let beside = ask(pod("shop/db"), End::Address("169.254.1.2".parse().unwrap()), false).unwrap();
    assert!(beside.passes() && beside.settled.is_none(), "{beside:?}");
}

#[test]
fn what_is_not_known_is_named() {
    let unknown = ask(pod("shop/nobody"), pod("shop/db"), false).unwrap_err();
    assert!(unknown.to_string().contains("shop/nobody"), "{unknown}");
    let family = ask(pod("bank/web"), pod("shop/db"), true).unwrap_err();
    assert_eq!(family, ExplainError::NoAddress { end: "pod bank/web".to_owned(), family: "IPv6" });
    let node = ask(pod("bank/web"), End::Node("node-9".to_owned()), false).unwrap_err();
    assert_eq!(node, ExplainError::UnknownNode("node-9".to_owned()));
}
