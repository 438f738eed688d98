//! Who is meant: the numbered lines of the rules about subjects and peers, each of the rows and of the oracle alike.

use crate::judge::world::{self, World, block, doing, everything, expression, from, network_policy, object, own, pods, rule, tcp};
use palisade_identity::Operator;
use palisade_policy::model::{Action, Peer, Peers, PodSet, Ports, Rule, Tier};
use palisade_policy::oracle::Side;
use std::collections::BTreeSet;

/// Two pods in each of two namespaces.
fn world() -> World {
    World::new()
        .pod("shop/web", "app=web", 1)
        .pod("shop/db", "app=db", 2)
        .pod("bank/web", "app=web", 3)
        .pod("bank/db", "app=db", 4)
        .node("node-0", "192.168.0.1")
}

const OUTSIDE: &str = "203.0.113.9";

// Line 1.
#[test]
fn an_empty_subject_selector_selects_every_pod_of_the_namespace_and_no_other() {
    let world = world().ingress("shop/deny", "", []);
    world.denies("bank/web", "shop/web", "TCP/80");
    world.denies("bank/web", "shop/db", "TCP/80");
    world.allows("shop/web", "bank/db", "TCP/80");
}

// Line 1.
#[test]
fn an_empty_peer_selector_means_every_pod_of_the_policys_own_namespace() {
    let world = world().ingress("shop/own", "", [from([own("")])]);
    world.allows("shop/web", "shop/db", "TCP/80");
    world.denies("bank/web", "shop/db", "TCP/80");
    world.denies(OUTSIDE, "shop/db", "TCP/80");
}

// Line 2.
#[test]
fn an_empty_list_of_rules_isolates_and_an_empty_rule_allows_all() {
    let isolated = world().ingress("shop/deny", "app=db", []);
    isolated.denies("shop/web", "shop/db", "TCP/80");
    isolated.denies(OUTSIDE, "shop/db", "ICMP");
    isolated.allows("shop/db", "bank/db", "TCP/80");
    let open = world().ingress("shop/open", "app=db", [everything()]);
    open.allows("shop/web", "shop/db", "TCP/80");
    open.allows(OUTSIDE, "shop/db", "ICMP");
}

// Line 2.
#[test]
fn a_policy_of_one_type_isolates_one_direction() {
    let world = world().egress("shop/deny", "app=web", []);
    world.denies("shop/web", "shop/db", "TCP/80");
    world.denies("shop/web", OUTSIDE, "UDP/53");
    world.allows("shop/db", "shop/web", "TCP/80");
}

// Line 3.
#[test]
fn a_pod_selector_alone_means_the_policys_namespace() {
    let world = world().ingress("shop/web-only", "app=db", [from([own("app=web")])]);
    world.allows("shop/web", "shop/db", "TCP/80");
    world.denies("bank/web", "shop/db", "TCP/80");
}

// Line 3.
#[test]
fn an_empty_namespace_selector_means_all_pods_and_never_the_outside() {
    let world = world().ingress("shop/pods", "app=db", [from([pods("", "")])]);
    world.allows("shop/web", "shop/db", "TCP/80");
    world.allows("bank/web", "shop/db", "TCP/80");
    world.denies(OUTSIDE, "shop/db", "TCP/80");
    world.denies("192.168.0.1", "shop/db", "TCP/80");
}

// Line 3.
#[test]
fn namespace_and_pod_selector_in_one_peer_must_both_match() {
    let world = world().ingress("shop/and", "app=db", [from([pods("team=bank", "app=web")])]);
    world.allows("bank/web", "shop/db", "TCP/80");
    world.denies("bank/db", "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "TCP/80");
}

// Line 3.
#[test]
fn two_peers_of_a_rule_are_alternatives() {
    let world = world().ingress("shop/or", "app=db", [from([pods("team=bank", ""), own("app=web")])]);
    world.allows("bank/web", "shop/db", "TCP/80");
    world.allows("bank/db", "shop/db", "TCP/80");
    world.allows("shop/web", "shop/db", "TCP/80");
}

// Line 3: the namespace's name is a label like any other.
#[test]
fn a_namespace_is_selected_by_its_name_label() {
    let world = world().ingress("shop/named", "app=db", [from([pods("kubernetes.io/metadata.name=bank", "")])]);
    world.allows("bank/web", "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "TCP/80");
}

// Line 3: nothing is said of labels that are not known.
#[test]
fn a_namespace_that_is_not_known_matches_no_selector_of_labels() {
    let absent = expression("team", Operator::DoesNotExist);
    let peer = Peer::Pods(PodSet { namespaces: Some(absent), ..PodSet::default() });
    let world = world().pod("lost/web", "app=web", 9).ingress("shop/absent", "app=db", [from([peer])]);
    world.denies("lost/web", "shop/db", "TCP/80");
    // Its own policies still mean it, by name.
    let world = world.pod("lost/db", "app=db", 10).ingress("lost/own", "app=db", [from([own("app=web")])]);
    world.allows("lost/web", "lost/db", "TCP/80");
    world.denies("shop/web", "lost/db", "TCP/80");
}

// Line 3: whatever its labels are, they break no requirement.
#[test]
fn an_empty_namespace_selector_matches_a_namespace_that_was_not_seen_yet() {
    let world = world().pod("lost/web", "app=web", 9).ingress("shop/pods", "app=db", [from([pods("", "app=web")])]);
    world.allows("lost/web", "shop/db", "TCP/80");
    world.denies("192.168.0.1", "shop/db", "TCP/80");
    // As a subject, too.
    let denying = vec![doing(Action::Deny, from([pods("", "app=db")]))];
    let world = world.cluster("deny", Tier::Admin(0), "", denying, vec![]);
    world.denies("shop/db", "lost/web", "TCP/80");
    world.allows("bank/web", "lost/web", "TCP/80");
}

// Line 3.
#[test]
fn each_operator_of_a_label_expression_means_what_the_api_says() {
    let values = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect::<BTreeSet<_>>();
    let base = World::new().pod("shop/db", "app=db", 1).pod("shop/a", "tier=a", 2).pod("shop/b", "tier=b", 3).pod("shop/none", "", 4);
    let cases = [
        (Operator::In(values(&["a", "c"])), [true, false, false]),
        (Operator::NotIn(values(&["a", "c"])), [false, true, true]),
        (Operator::Exists, [true, true, false]),
        (Operator::DoesNotExist, [false, false, true]),
    ];
    for (operator, expected) in cases {
        let peer = Peer::Pods(PodSet { pods: expression("tier", operator.clone()), ..PodSet::default() });
        let world = base.clone().ingress("shop/policy", "app=db", [from([peer])]);
        let found = ["shop/a", "shop/b", "shop/none"].map(|pod| world.passes(pod, "shop/db", "TCP/80"));
        assert_eq!(found, expected, "{operator:?}");
    }
}

// Lines 4 and 45.
#[test]
fn a_list_of_peers_that_came_out_empty_matches_nobody() {
    let nobody = Rule::allow(Peers::Of(Vec::new()), Ports::Any);
    let world = world().ingress("shop/nobody", "app=db", [nobody]);
    world.denies("shop/web", "shop/db", "TCP/80");
    world.denies(OUTSIDE, "shop/db", "TCP/80");
}

// Line 45.
#[test]
fn a_list_of_ports_that_came_out_empty_matches_nothing() {
    let nothing = Rule::allow(Peers::Any, Ports::Of(Vec::new()));
    let world = world().ingress("shop/nothing", "app=db", [nothing]);
    world.denies("shop/web", "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "ICMP");
}

// Line 45: a value set without values holds for nobody, and its opposite for everybody.
#[test]
fn an_expression_without_values_is_not_all() {
    let peer = |operator| Peer::Pods(PodSet { pods: expression("app", operator), ..PodSet::default() });
    let none = world().ingress("shop/in", "app=db", [from([peer(Operator::In(BTreeSet::new()))])]);
    none.denies("shop/web", "shop/db", "TCP/80");
    let all = world().ingress("shop/not-in", "app=db", [from([peer(Operator::NotIn(BTreeSet::new()))])]);
    all.allows("shop/web", "shop/db", "TCP/80");
}

// Line 4.
#[test]
fn a_peer_that_is_a_block_is_not_a_selector_of_all_pods() {
    let world = world().ingress("shop/block", "app=db", [from([block("203.0.113.0/24", &[])])]);
    world.allows(OUTSIDE, "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "TCP/80");
    world.denies("203.0.114.1", "shop/db", "TCP/80");
}

// Line 5.
#[test]
fn missing_peers_mean_every_address_and_missing_ports_every_port() {
    let world = world().ingress("shop/ports", "app=db", [world::on([tcp(80)])]).egress("shop/peers", "app=web", [from([own("app=db")])]);
    for peer in ["shop/web", "bank/db", OUTSIDE, "192.168.0.1"] {
        world.allows(peer, "shop/db", "TCP/80");
        world.denies(peer, "shop/db", "TCP/81");
    }
    world.denies("shop/web", "bank/db", "TCP/80");
    let open = world.ingress("shop/ports", "app=db", [everything()]);
    for port in ["TCP/1", "UDP/65535", "SCTP/9", "ICMP"] {
        open.allows("shop/web", "shop/db", port);
    }
}

// Line 5.
#[test]
fn a_further_rule_or_policy_can_only_widen() {
    let narrow = world().ingress("shop/one", "app=db", [rule([own("app=web")], [tcp(80)])]);
    narrow.denies("bank/web", "shop/db", "TCP/80");
    let wide = narrow.ingress("shop/two", "app=db", [rule([pods("team=bank", "")], [tcp(80)])]);
    wide.allows("bank/web", "shop/db", "TCP/80");
    wide.allows("shop/web", "shop/db", "TCP/80");
    let still = wide.ingress("shop/zero", "app=db", []);
    still.allows("bank/web", "shop/db", "TCP/80");
    still.allows("shop/web", "shop/db", "TCP/80");
}

// Line 7: pods on the host's network are not in the model; their address is their node's.
#[test]
fn a_node_address_is_matched_by_no_pod_selector_but_by_blocks() {
    let selected = world().ingress("shop/pods", "app=db", [from([pods("", ""), own("")])]);
    selected.denies("192.168.0.1", "shop/db", "TCP/80");
    let by_block = world().ingress("shop/block", "app=db", [from([block("192.168.0.0/16", &[])])]);
    by_block.allows("192.168.0.1", "shop/db", "TCP/80");
    let elsewhere = world().egress("shop/deny", "", []);
    elsewhere.allows("192.168.0.1", "shop/db", "TCP/80");
}

// Line 8: what has finished is not in the model, whatever address it once had.
#[test]
fn an_address_without_a_pod_matches_no_pod_selector() {
    let with = world().ingress("shop/web-only", "app=db", [from([own("app=web")])]);
    with.allows("10.1.0.1", "shop/db", "TCP/80");
    let mut without = with;
    without.model.pods.remove(&object("shop/web"));
    without.denies("10.1.0.1", "shop/db", "TCP/80");
}

// Line 9.
#[test]
fn an_address_that_two_pods_claim_matches_only_what_both_match() {
    let world = world().pod("shop/other", "app=other", 1).ingress("shop/web-only", "app=db", [from([own("app=web")])]);
    world.denies("10.1.0.1", "shop/db", "TCP/80");
    let both = world.ingress("shop/own", "app=db", [from([own("")])]);
    both.allows("10.1.0.1", "shop/db", "TCP/80");
}

// Line 12.
#[test]
fn both_ends_must_allow() {
    let world = world().egress("shop/out", "app=web", [rule([own("app=db")], [tcp(80), tcp(81)])]).ingress(
        "shop/in",
        "app=db",
        [rule([own("app=web")], [tcp(80), tcp(82)])],
    );
    world.allows("shop/web", "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "TCP/81");
    world.denies("shop/web", "shop/db", "TCP/82");
}

// Line 18.
#[test]
fn a_block_matches_pod_addresses_too() {
    let world = world().ingress(
        "shop/block",
        "app=db",
        [from([block("10.1.0.0/30", &["10.1.0.1/32"]), block("fd00:1::/126", &["fd00:1::1/128"])])],
    );
    world.allows("bank/web", "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "TCP/80");
    world.denies("bank/db", "shop/db", "TCP/80");
}

// Line 18.
#[test]
fn except_is_not_by_this_rule_and_never_a_denial() {
    let first = from([block("10.0.0.0/8", &["10.1.0.0/16"])]);
    let excepted = world().ingress("shop/block", "app=db", [first.clone()]);
    excepted.denies("10.1.0.1", "shop/db", "TCP/80");
    let another = excepted.clone().ingress("shop/block", "app=db", [first.clone(), from([own("app=web")])]);
    another.allows("10.1.0.1", "shop/db", "TCP/80");
    another.denies("10.1.0.3", "shop/db", "TCP/80");
    let policy = excepted.ingress("shop/more", "app=db", [from([block("10.1.0.1/32", &[])])]);
    policy.allows("10.1.0.1", "shop/db", "TCP/80");
}

// Line 18.
#[test]
fn an_except_belongs_to_its_own_block() {
    let peers = from([block("203.0.113.0/24", &["203.0.113.128/25"]), block("203.0.0.0/16", &[])]);
    let world = world().ingress("shop/blocks", "app=db", [peers]);
    world.allows("203.0.113.200", "shop/db", "TCP/80");
    world.allows("203.0.113.1", "shop/db", "TCP/80");
}

// Line 19.
#[test]
fn host_bits_of_a_block_are_masked() {
    let world = world().ingress("shop/bits", "app=db", [from([block("203.0.113.77/24", &["203.0.113.200/25"])])]);
    world.allows("203.0.113.1", "shop/db", "TCP/80");
    world.denies("203.0.113.129", "shop/db", "TCP/80");
}

// Line 19.
#[test]
fn a_block_of_length_0_means_its_own_family() {
    let four = world().ingress("shop/four", "app=db", [from([block("0.0.0.0/0", &[])])]);
    four.allows("203.0.113.9", "shop/db", "TCP/80");
    four.denies("2001:db8::9", "shop/db", "TCP/80");
    let six = world().ingress("shop/six", "app=db", [from([block("::/0", &[])])]);
    six.denies("203.0.113.9", "shop/db", "TCP/80");
    six.allows("2001:db8::9", "shop/db", "TCP/80");
    let pods: Vec<bool> = six.verdicts("shop/web", "shop/db", "TCP/80").iter().map(|verdict| verdict.passes()).collect();
    assert_eq!(pods, [false, true], "both addresses of a pod are enforced, each by its own family's blocks");
}

// Lines 20 and 44.
#[test]
fn a_longer_prefix_hides_no_allow_of_a_shorter_one() {
    let world = world().ingress("shop/short", "app=db", [rule([block("203.0.0.0/16", &[])], [tcp(80)])]).ingress(
        "shop/long",
        "app=db",
        [rule([block("203.0.113.0/24", &[])], [tcp(81)])],
    );
    world.allows(OUTSIDE, "shop/db", "TCP/80");
    world.allows(OUTSIDE, "shop/db", "TCP/81");
    world.allows("203.0.114.1", "shop/db", "TCP/80");
    world.denies("203.0.114.1", "shop/db", "TCP/81");
}

// Line 44: a CIDR that one rule leaves out and another allows more narrowly, and the reverse.
#[test]
fn prefix_length_decides_nothing() {
    let narrow_allow = from([block("10.0.0.0/8", &["10.1.0.0/16"]), block("10.1.0.1/32", &[])]);
    let world = world().ingress("shop/narrow", "app=db", [narrow_allow]);
    world.allows("10.1.0.1", "shop/db", "TCP/80");
    world.denies("10.1.0.3", "shop/db", "TCP/80");
    let narrow_except = from([block("10.0.0.0/8", &["10.1.0.1/32"])]);
    let world = world.ingress("shop/narrow", "app=db", [narrow_except]);
    world.denies("10.1.0.1", "shop/db", "TCP/80");
    world.allows("10.1.0.3", "shop/db", "TCP/80");
}

// Attribution.
#[test]
fn an_allow_names_the_first_rule_and_a_default_deny_all_policies_that_isolate() {
    let world = world()
        .ingress("shop/b", "app=db", [from([own("app=nobody")]), from([own("app=web")])])
        .ingress("shop/a", "", [])
        .ingress("shop/c", "", [everything()])
        .egress("shop/d", "", [everything()]);
    for verdict in world.verdicts("shop/web", "shop/db", "TCP/80") {
        assert_eq!(verdict.ingress, Side::Allowed { policy: network_policy("shop/b"), rule: 1 });
        assert_eq!(verdict.egress, Side::Allowed { policy: network_policy("shop/d"), rule: 0 });
    }
    let mut closed = world;
    closed.model.policies.remove(&network_policy("shop/c"));
    for verdict in closed.verdicts("bank/web", "shop/db", "TCP/80") {
        assert_eq!(verdict.ingress, Side::DefaultDenied(vec![network_policy("shop/a"), network_policy("shop/b")]));
    }
}
