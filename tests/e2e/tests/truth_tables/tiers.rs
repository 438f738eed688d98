//! ClusterNetworkPolicy.

use palisade_e2e::scenario::Scenario;

crate::scenarios![
    an_admin_that_denies_beats_a_network_policy_that_allows,
    an_admin_that_accepts_beats_a_network_policy_that_closes,
    an_admin_that_passes_leaves_it_to_the_network_policy,
    the_lowest_priority_number_decides_within_a_tier,
    the_first_rule_that_matches_decides_within_a_policy,
    a_baseline_decides_only_where_no_network_policy_isolates,
    pass_over_every_tier_is_allowed_in_the_end,
    rules_of_the_cluster_isolate_nobody,
    egress_to_networks_is_denied_for_pods_of_those_addresses,
    protocols_by_number_range_and_name,
    a_longer_network_does_not_beat_an_earlier_rule,
    a_cluster_policy_that_is_deleted_is_over,
];

/// A policy of all pods of x in this direction.
fn policy(scenario: Scenario, name: &str, tier: &str, priority: u16, direction: &str, rules: &str) -> Scenario {
    scenario.cluster_policy(
        name,
        &format!("{{tier: {tier}, priority: {priority}, subject: {{namespaces: {{matchLabels: {{ns: x, kubernetes.io/metadata.name: $ns(x)}}}}}}, {direction}: {rules}}}"),
    )
}

fn admin(scenario: Scenario, name: &str, priority: u16, rules: &str) -> Scenario {
    policy(scenario, name, "Admin", priority, "ingress", rules)
}

const FROM_Y: &str = "from: [{namespaces: {matchLabels: {ns: y}}}]";
const FROM_ALL: &str = "from: [{namespaces: {}}]";

fn an_admin_that_denies_beats_a_network_policy_that_allows() -> Scenario {
    let scenario = Scenario::default().policy("x/open", "{podSelector: {}, ingress: [{}]}");
    admin(scenario, "deny", 10, &format!("[{{action: Deny, {FROM_Y}}}]")).gives("never from y/* to x/*")
}

fn an_admin_that_accepts_beats_a_network_policy_that_closes() -> Scenario {
    let scenario = Scenario::default().policy("x/closed", "{podSelector: {}}");
    admin(scenario, "accept", 10, &format!("[{{action: Accept, {FROM_Y}}}]")).gives("to x/* only from y/*")
}

fn an_admin_that_passes_leaves_it_to_the_network_policy() -> Scenario {
    let scenario = Scenario::default().policy(
        "x/from-y-a",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]}]}",
    );
    admin(scenario, "pass", 10, &format!("[{{action: Pass, {FROM_Y}}}, {{action: Accept, {FROM_ALL}}}]"))
        .gives("to x/* only from x/*,z/*,y/a")
}

fn the_lowest_priority_number_decides_within_a_tier() -> Scenario {
    let scenario = admin(Scenario::default(), "deny", 20, &format!("[{{action: Deny, {FROM_ALL}}}]")).gives("to x/* only from nobody");
    admin(scenario, "accept", 10, &format!("[{{action: Accept, {FROM_Y}}}]")).gives("to x/* only from y/*")
}

fn the_first_rule_that_matches_decides_within_a_policy() -> Scenario {
    let pod = "from: [{pods: {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}}]";
    admin(
        Scenario::default(),
        "order",
        10,
        &format!("[{{action: Accept, {pod}}}, {{action: Deny, {FROM_Y}}}, {{action: Accept, {FROM_ALL}}}]"),
    )
    .gives("never from y/a,y/c to x/*")
}

fn a_baseline_decides_only_where_no_network_policy_isolates() -> Scenario {
    let scenario = Scenario::default()
        .policy("x/a", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}");
    policy(scenario, "baseline", "Baseline", 10, "ingress", &format!("[{{action: Deny, {FROM_Y}}}]"))
        .gives("to x/a only from y/*\n never from y/* to x/b,x/c")
}

fn pass_over_every_tier_is_allowed_in_the_end() -> Scenario {
    let scenario = admin(Scenario::default(), "pass", 10, &format!("[{{action: Pass, {FROM_Y}}}, {{action: Deny, {FROM_ALL}}}]"));
    let scenario = scenario.gives("to x/* only from y/*");
    policy(
        scenario,
        "baseline",
        "Baseline",
        10,
        "ingress",
        &format!("[{{action: Deny, {FROM_Y}, protocols: [{{udp: {{destinationPort: {{number: 80}}}}}}]}}]"),
    )
    .gives("to x/* only from y/* on tcp/80,tcp/81,sctp/80,echo")
}

fn rules_of_the_cluster_isolate_nobody() -> Scenario {
    let one = "from: [{pods: {namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: c}}}}]";
    admin(Scenario::default(), "accept", 10, &format!("[{{action: Accept, {FROM_Y}}}, {{action: Deny, {one}}}]"))
        .gives("never from z/c to x/*")
}

fn egress_to_networks_is_denied_for_pods_of_those_addresses() -> Scenario {
    let rules = "[{action: Deny, to: [{networks: [$4(y/a)/32, '$6(y/b)/128']}]}]";
    policy(Scenario::default(), "networks", "Admin", 10, "egress", rules).gives("never from x/* to y/a by v4\n never from x/* to y/b by v6")
}

fn protocols_by_number_range_and_name() -> Scenario {
    let rules = "[{action: Deny, to: [{namespaces: {matchLabels: {ns: y}}}], protocols: [{tcp: {destinationPort: {range: {start: 81, end: 90}}}}, {sctp: {destinationPort: {number: 80}}}]},
        {action: Deny, to: [{namespaces: {matchLabels: {ns: z}}}], protocols: [{udp: {destinationPort: {number: 80}}}, {destinationNamedPort: web}]}]";
    policy(Scenario::default(), "protocols", "Admin", 10, "egress", rules).gives(
        "never from x/* to y/* on tcp/81,sctp/80\n never from x/* to z/a,z/b on tcp/80,udp/80\n never from x/* to z/c on tcp/81,udp/80",
    )
}

fn a_longer_network_does_not_beat_an_earlier_rule() -> Scenario {
    let rules = "[{action: Deny, to: [{networks: [0.0.0.0/0]}]}, {action: Accept, to: [{networks: [$4(y/a)/32, '$6(y/a)/128']}]}, {action: Deny, to: [{networks: ['::/0']}]}]";
    policy(Scenario::default(), "length", "Admin", 10, "egress", rules).gives("from x/* only to y/a by v6")
}

fn a_cluster_policy_that_is_deleted_is_over() -> Scenario {
    admin(Scenario::default(), "deny", 0, &format!("[{{action: Deny, {FROM_Y}}}]"))
        .gives("never from y/* to x/*")
        .delete("clusternetworkpolicy", "deny")
        .gives("")
}
