//! Who is isolated, and in which direction.

use palisade_e2e::scenario::Scenario;

crate::scenarios![
    default_deny_of_ingress_closes_the_namespace_to_everybody,
    default_deny_of_egress_shuts_the_namespace_in,
    default_deny_of_both_directions_closes_both,
    without_policy_types_and_rules_ingress_is_isolated,
    without_policy_types_egress_rules_isolate_egress_too,
    rules_of_a_direction_that_the_types_leave_out_count_for_nothing,
    an_empty_list_of_ingress_rules_isolates_and_an_empty_rule_allows_all,
    an_empty_list_of_egress_rules_isolates_and_an_empty_rule_allows_all,
    a_policy_isolates_only_the_pods_that_its_labels_select,
    a_policy_selects_its_pods_by_in,
    a_policy_selects_its_pods_by_not_in,
    a_policy_selects_its_pods_by_exists,
    a_policy_selects_its_pods_by_does_not_exist,
    policies_of_one_name_in_two_namespaces_are_two_policies,
    answers_of_an_allowed_flow_pass_a_direction_that_is_closed,
    both_ends_must_allow,
    several_policies_of_a_pod_add_up,
    policies_of_different_pods_do_not_mix,
];

fn default_deny_of_ingress_closes_the_namespace_to_everybody() -> Scenario {
    Scenario::default().policy("x/closed", "{podSelector: {}, policyTypes: [Ingress]}").gives("to x/* only from nobody")
}

fn default_deny_of_egress_shuts_the_namespace_in() -> Scenario {
    Scenario::default().policy("x/closed", "{podSelector: {}, policyTypes: [Egress]}").gives("from x/* only to nobody")
}

fn default_deny_of_both_directions_closes_both() -> Scenario {
    Scenario::default()
        .policy("y/closed", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
        .gives("to y/* only from nobody\n from y/* only to nobody")
}

fn without_policy_types_and_rules_ingress_is_isolated() -> Scenario {
    Scenario::default().policy("x/closed", "{podSelector: {}}").gives("to x/* only from nobody")
}

fn without_policy_types_egress_rules_isolate_egress_too() -> Scenario {
    Scenario::default()
        .policy("x/out", "{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}")
        .gives("to x/* only from nobody\n from x/* only to y/*")
}

fn rules_of_a_direction_that_the_types_leave_out_count_for_nothing() -> Scenario {
    Scenario::default()
        .policy("x/out", "{podSelector: {}, policyTypes: [Egress], ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}")
        .gives("from x/* only to nobody")
}

fn an_empty_list_of_ingress_rules_isolates_and_an_empty_rule_allows_all() -> Scenario {
    Scenario::default()
        .policy("z/p", "{podSelector: {}, policyTypes: [Ingress], ingress: []}")
        .gives("to z/* only from nobody")
        .policy("z/p", "{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}")
        .gives("")
}

fn an_empty_list_of_egress_rules_isolates_and_an_empty_rule_allows_all() -> Scenario {
    Scenario::default()
        .policy("z/p", "{podSelector: {}, policyTypes: [Egress], egress: []}")
        .gives("from z/* only to nobody")
        .policy("z/p", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")
        .gives("")
}

fn a_policy_isolates_only_the_pods_that_its_labels_select() -> Scenario {
    Scenario::default()
        .policy("x/closed", "{podSelector: {matchLabels: {pod: a, at: x-a}}}")
        .policy("y/closed", "{podSelector: {matchLabels: {pod: a, at: x-a}}}")
        .gives("to x/a only from nobody")
}

fn a_policy_selects_its_pods_by_in() -> Scenario {
    Scenario::default()
        .policy("x/closed", "{podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b, z]}]}}")
        .gives("to x/a,x/b only from nobody")
}

fn a_policy_selects_its_pods_by_not_in() -> Scenario {
    Scenario::default()
        .policy("x/closed", "{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a, b]}]}}")
        .policy("y/closed", "{podSelector: {matchExpressions: [{key: first, operator: NotIn, values: ['']}]}}")
        .gives("to x/c,y/b,y/c only from nobody")
}

fn a_policy_selects_its_pods_by_exists() -> Scenario {
    Scenario::default()
        .policy("x/closed", "{podSelector: {matchExpressions: [{key: first, operator: Exists}]}}")
        .gives("to x/a only from nobody")
}

fn a_policy_selects_its_pods_by_does_not_exist() -> Scenario {
    Scenario::default()
        .policy("x/closed", "{podSelector: {matchExpressions: [{key: first, operator: DoesNotExist}]}}")
        .gives("to x/b,x/c only from nobody")
}

fn policies_of_one_name_in_two_namespaces_are_two_policies() -> Scenario {
    Scenario::default()
        .policy("x/same", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")
        .policy("y/same", "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress]}")
        .gives("to x/* only from x/*\n from y/b only to nobody")
        .delete_policy("x/same")
        .gives("from y/b only to nobody")
}

fn answers_of_an_allowed_flow_pass_a_direction_that_is_closed() -> Scenario {
    Scenario::default()
        .policy("x/mute", "{podSelector: {}, policyTypes: [Egress]}")
        .policy("y/deaf", "{podSelector: {}, policyTypes: [Ingress]}")
        .gives("from x/* only to nobody\n to y/* only from nobody")
}

fn both_ends_must_allow() -> Scenario {
    Scenario::default()
        .policy(
            "x/out",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]}]}",
        )
        .policy(
            "y/in",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: b}}}]}]}",
        )
        .gives("from x/* only to y/a\n to y/* only from x/b")
}

fn several_policies_of_a_pod_add_up() -> Scenario {
    Scenario::default()
        .policy("x/closed", "{podSelector: {}}")
        .policy("x/from-y", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]}")
        .policy("x/from-z", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}")
        .gives("to x/a only from y/* on tcp/80 or from z/*\n to x/b,x/c only from y/* on tcp/80")
}

fn policies_of_different_pods_do_not_mix() -> Scenario {
    Scenario::default()
        .policy("x/a", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}")
        .policy("x/b", "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}")
        .gives("to x/a only from y/*\n to x/b only from z/*")
}
