//! Semantics B: tiers, priorities and actions of ClusterNetworkPolicy, and how they meet the policies of namespaces.

use crate::judge::world::{World, block, doing, everything, from, named, object, own, pods, rule, tcp};
use palisade_identity::{LabelSelector, Operator, Protocol, Requirement};
use palisade_policy::model::{Action, ObjectName, Peer, PolicyKind, PolicyName, Rule, Tier};
use palisade_policy::oracle::{Side, Verdict};

/// `shop/web` and `bank/web`, and who asks them: `shop/client`.
fn world() -> World {
    World::new().pod("shop/web", "app=web", 1).pod("bank/web", "app=web", 2).pod("shop/client", "app=client", 3)
}

fn shop() -> Peer {
    pods("team=shop", "")
}

fn deny(rule: Rule) -> Rule {
    doing(Action::Deny, rule)
}

fn pass(rule: Rule) -> Rule {
    doing(Action::Pass, rule)
}

#[test]
fn s33_tiers_are_asked_in_order_and_the_first_that_decides_wins() {
    let open = world();
    open.allows("shop/client", "bank/web", "TCP/80");
    // Baseline alone decides.
    let baseline = open.cluster("base", Tier::Baseline(0), "", vec![deny(from([shop()]))], vec![]);
    baseline.denies("shop/client", "bank/web", "TCP/80");
    // A namespace's policy goes before it, whichever way it decides.
    let namespaced = baseline.ingress("bank/allow", "app=web", [rule([shop()], [tcp(80)])]);
    namespaced.allows("shop/client", "bank/web", "TCP/80");
    namespaced.denies("shop/client", "bank/web", "TCP/81");
    // Admin goes before both.
    let admin = namespaced.cluster("admin", Tier::Admin(5), "team=bank", vec![deny(rule([shop()], [tcp(80)]))], vec![]);
    admin.denies("shop/client", "bank/web", "TCP/80");
    let accepts = admin.cluster("first", Tier::Admin(0), "team=bank", vec![from([shop()])], vec![]);
    accepts.allows("shop/client", "bank/web", "TCP/80");
    accepts.allows("shop/client", "bank/web", "TCP/81");
}

#[test]
fn s33_within_a_tier_the_lowest_priority_number_and_then_the_first_rule_decide() {
    let rules = vec![from([shop()]), deny(from([shop()]))];
    let world = world().cluster("a-later", Tier::Admin(20), "team=bank", vec![deny(from([shop()]))], vec![]).cluster(
        "z-earlier",
        Tier::Admin(10),
        "team=bank",
        rules,
        vec![],
    );
    let name = PolicyName::new(PolicyKind::ClusterNetworkPolicy, ObjectName::cluster("z-earlier"));
    for verdict in world.verdicts("shop/client", "bank/web", "TCP/80") {
        assert_eq!(verdict.ingress, Side::Allowed { policy: name.clone(), rule: 0 });
    }
}

#[test]
fn s33_pass_goes_on_to_the_next_tier_past_the_rest_of_its_own() {
    let admin = vec![pass(rule([shop()], [tcp(80)])), deny(from([shop()]))];
    let passed = world().cluster("admin", Tier::Admin(0), "team=bank", admin, vec![]);
    passed.allows("shop/client", "bank/web", "TCP/80");
    passed.denies("shop/client", "bank/web", "TCP/81");
    passed.denies("shop/client", "bank/web", "ICMP");
    passed.clone().ingress("bank/closed", "", []).denies("shop/client", "bank/web", "TCP/80");
    passed.cluster("base", Tier::Baseline(0), "", vec![deny(from([shop()]))], vec![]).denies("shop/client", "bank/web", "TCP/80");
    // Pass in the last tier leaves it to nobody: allowed.
    let base = vec![pass(from([shop()])), deny(from([shop()]))];
    world().cluster("base", Tier::Baseline(0), "", base, vec![]).allows("shop/client", "bank/web", "TCP/80");
}

#[test]
fn s33_network_policy_always_decides_for_pods_that_it_isolates() {
    let base = vec![from([shop()])];
    let world = world().cluster("base", Tier::Baseline(0), "", base, vec![]).ingress("bank/closed", "app=web", []);
    world.denies("shop/client", "bank/web", "TCP/80");
    world.allows("shop/client", "shop/web", "TCP/80");
}

#[test]
fn s34_rules_of_the_cluster_isolate_nobody() {
    let world = world().cluster("admin", Tier::Admin(0), "", vec![rule([shop()], [tcp(80)])], vec![]);
    world.allows("bank/web", "shop/web", "TCP/9999");
    world.allows("shop/client", "shop/web", "ICMP");
}

#[test]
fn s35_networks_match_pods_too_and_nodes_match_by_their_labels() {
    let labels = |key: &str| [(key.to_owned(), "yes".to_owned())].into();
    let mut world = world().node("edge", "192.168.0.1").node("inner", "192.168.0.2").cluster(
        "net",
        Tier::Admin(0),
        "team=shop",
        vec![],
        vec![deny(rule([block("10.1.0.2/32", &[]), block("fd00:1::2/128", &[])], [tcp(80)]))],
    );
    world.denies("shop/client", "bank/web", "TCP/80");
    world.model.nodes.get_mut(&"edge".to_owned()).expect("a node").labels = labels("edge");
    let edge = LabelSelector { requirements: [Requirement { key: "edge".into(), operator: Operator::Exists }].into() };
    let world = world.cluster("node", Tier::Admin(1), "team=shop", vec![], vec![deny(from([Peer::Nodes(edge)]))]);
    world.denies("shop/client", "192.168.0.1", "TCP/10250");
    world.allows("shop/client", "192.168.0.2", "TCP/10250");
}

// `World` holds flows of a pod to itself for what they are through a service; at its own address no policy is asked.
#[test]
fn s37_a_pod_that_reaches_itself_through_a_service_is_subject_to_cluster_policies_only() {
    let both = |peers: fn() -> Peer| (vec![deny(rule([peers()], [tcp(80)]))], vec![deny(rule([peers()], [tcp(81)]))]);
    // A namespace's policies never are about that.
    let isolated = world().policy("shop/closed", "", Some(vec![]), Some(vec![]));
    isolated.allows("shop/web", "shop/web", "TCP/80");
    // Either end of the pod is asked, of the port behind the service.
    let (ingress, egress) = both(shop);
    let denied = isolated.cluster("admin", Tier::Admin(5), "team=shop", ingress, egress);
    denied.denies("shop/web", "shop/web", "TCP/80");
    denied.denies("shop/web", "shop/web", "TCP/81");
    denied.allows("shop/web", "shop/web", "TCP/82");
    denied.allows("bank/web", "bank/web", "TCP/80");
    // The tiers in their order, without the one between them.
    let accepts = denied.clone().cluster("first", Tier::Admin(0), "", vec![from([own("")]), from([shop()])], vec![]);
    accepts.allows("shop/web", "shop/web", "TCP/80");
    accepts.denies("shop/web", "shop/web", "TCP/81");
    let passes = denied.cluster("first", Tier::Admin(0), "", vec![pass(from([shop()]))], vec![pass(from([shop()]))]);
    passes.allows("shop/web", "shop/web", "TCP/80");
    let (ingress, egress) = both(|| pods("team=bank", ""));
    let base = passes.cluster("base", Tier::Baseline(0), "team=bank", ingress, egress);
    base.allows("shop/web", "shop/web", "TCP/80");
    base.denies("bank/web", "bank/web", "TCP/80");
    base.denies("bank/web", "bank/web", "TCP/81");
    // Pods of the same policies, of which one alone is its own peer.
    let web = vec![deny(from([pods("", "app=web")]))];
    let one = world().cluster("one", Tier::Admin(0), "team=shop", web, vec![]);
    one.denies("shop/web", "shop/web", "TCP/80");
    one.allows("shop/client", "shop/client", "TCP/80");
}

#[test]
fn s37_what_is_said_of_a_pod_itself_follows_its_labels_and_names_its_rule() {
    let rules = vec![deny(rule([pods("team=shop", "app=web")], [named("web"), tcp(443)]))];
    let world = world().port("shop/web", "web", Protocol::Tcp, 8080).cluster("out", Tier::Baseline(3), "", vec![], rules);
    let name = PolicyName::new(PolicyKind::ClusterNetworkPolicy, ObjectName::cluster("out"));
    for port in ["TCP/8080", "TCP/443"] {
        for verdict in world.verdicts("shop/web", "shop/web", port) {
            let expected = Verdict { egress: Side::Denied { policy: name.clone(), rule: 0 }, ingress: Side::NotIsolated };
            assert_eq!(verdict, expected, "{port}");
        }
    }
    world.allows("shop/web", "shop/web", "TCP/80");
    let mut relabelled = world;
    relabelled.model.pods.edit(&object("shop/web")).expect("the pod is there").labels.clear();
    relabelled.allows("shop/web", "shop/web", "TCP/8080");
}

#[test]
fn s44_action_and_tier_decide_and_not_the_length_of_a_prefix() {
    let (wide, narrow) = (|| block("203.0.113.0/24", &[]), || block("203.0.113.7/32", &[]));
    let denied = world().cluster("a", Tier::Admin(0), "", vec![], vec![deny(from([wide()])), from([narrow()])]);
    denied.denies("shop/client", "203.0.113.7", "TCP/80");
    let allowed = world().cluster("a", Tier::Admin(0), "", vec![], vec![from([narrow()]), deny(from([wide()]))]);
    allowed.allows("shop/client", "203.0.113.7", "TCP/80");
    allowed.denies("shop/client", "203.0.113.8", "TCP/80");
    let reverse = world().cluster("a", Tier::Admin(0), "", vec![], vec![deny(from([narrow()])), from([wide()])]);
    reverse.denies("shop/client", "203.0.113.7", "TCP/80");
    reverse.allows("shop/client", "203.0.113.8", "TCP/80");
}

#[test]
fn ports_of_three_tiers_are_told_apart_one_by_one() {
    let world = world()
        .cluster("admin", Tier::Admin(0), "team=bank", vec![deny(rule([shop()], [tcp(22)])), pass(rule([shop()], [tcp(80)]))], vec![])
        .cluster("later", Tier::Admin(1), "team=bank", vec![deny(rule([shop()], [tcp(80)])), from([pods("team=bank", "")])], vec![])
        .ingress("bank/web", "", [rule([shop()], [tcp(22), tcp(80)])])
        .cluster("base", Tier::Baseline(0), "", vec![everything()], vec![]);
    world.denies("shop/client", "bank/web", "TCP/22");
    world.allows("shop/client", "bank/web", "TCP/80");
    world.denies("shop/client", "bank/web", "TCP/443");
    let own_namespace = world.ingress("shop/own", "", [from([own("")])]);
    own_namespace.allows("shop/client", "shop/web", "TCP/22");
}
