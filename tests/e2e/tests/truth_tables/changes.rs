//! What users change while pods run.

use palisade_e2e::scenario::Scenario;

crate::scenarios![
    a_policy_that_is_updated_to_other_peers,
    a_policy_that_is_updated_to_other_ports,
    a_policy_that_is_updated_to_other_subjects,
    a_policy_that_is_updated_to_the_other_direction,
    a_policy_that_is_deleted_opens_its_pods,
    a_policy_that_is_deleted_leaves_what_the_others_say,
    a_namespace_that_is_relabelled_gains_and_loses_as_peer,
    a_namespace_that_is_relabelled_gains_by_a_negated_expression,
    a_pod_that_is_relabelled_gains_and_loses_as_peer,
    a_pod_that_is_relabelled_gains_and_loses_as_subject,
    a_pod_that_is_relabelled_within_the_selector_of_both,
    a_pod_recreated_under_the_same_address_is_another_peer,
    a_pod_recreated_under_the_same_address_is_another_subject,
];

fn a_policy_that_is_updated_to_other_peers() -> Scenario {
    let from =
        |namespace| format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: {namespace}}}}}}}]}}]}}");
    Scenario::default().policy("x/p", &from("y")).gives("to x/* only from y/*").policy("x/p", &from("z")).gives("to x/* only from z/*")
}

fn a_policy_that_is_updated_to_other_ports() -> Scenario {
    let ports = |ports| format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: {ports}}}]}}");
    Scenario::default()
        .policy("x/p", &ports("[{port: 80}]"))
        .gives("from x/* only to */* on tcp/80")
        .policy("x/p", &ports("[{port: 81}, {protocol: UDP}]"))
        .gives("from x/* only to */* on tcp/81,udp/80")
}

fn a_policy_that_is_updated_to_other_subjects() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {matchLabels: {pod: a}}}")
        .gives("to x/a only from nobody")
        .policy("x/p", "{podSelector: {matchLabels: {pod: b}}}")
        .gives("to x/b only from nobody")
}

fn a_policy_that_is_updated_to_the_other_direction() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {}, policyTypes: [Ingress]}")
        .gives("to x/* only from nobody")
        .policy("x/p", "{podSelector: {}, policyTypes: [Egress]}")
        .gives("from x/* only to nobody")
}

fn a_policy_that_is_deleted_opens_its_pods() -> Scenario {
    Scenario::default()
        .policy("z/p", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
        .gives("to z/* only from nobody\n from z/* only to nobody")
        .delete_policy("z/p")
        .gives("")
}

fn a_policy_that_is_deleted_leaves_what_the_others_say() -> Scenario {
    Scenario::default()
        .policy("x/y", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}")
        .policy("x/z", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}")
        .gives("to x/* only from y/*,z/*")
        .delete_policy("x/y")
        .gives("to x/* only from z/*")
}

fn a_namespace_that_is_relabelled_gains_and_loses_as_peer() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}")
        .gives("to x/* only from nobody")
        .label_namespace("y", "team=blue")
        .gives("to x/* only from y/*")
        .label_namespace("y", "team=red")
        .label_namespace("z", "team=blue")
        .gives("to x/* only from z/*")
}

fn a_namespace_that_is_relabelled_gains_by_a_negated_expression() -> Scenario {
    Scenario::default()
        .label_namespace("y", "team=blue")
        .policy(
            "x/p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [blue]}]}}]}]}",
        )
        .gives("from x/* only to x/*,z/*")
        .label_namespace("y", "team-")
        .gives("")
}

fn a_pod_that_is_relabelled_gains_and_loses_as_peer() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {trusted: 'yes'}}}]}]}")
        .gives("to x/* only from nobody")
        .label_pod("y/b", "trusted=yes")
        .label_pod("x/c", "trusted=yes")
        .gives("to x/* only from y/b,x/c")
        .label_pod("y/b", "trusted-")
        .gives("to x/* only from x/c")
}

fn a_pod_that_is_relabelled_gains_and_loses_as_subject() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {matchLabels: {closed: 'yes'}}}")
        .label_pod("x/b", "closed=yes")
        .gives("to x/b only from nobody")
        .label_pod("x/b", "closed=no")
        .label_pod("x/c", "closed=yes")
        .gives("to x/c only from nobody")
}

fn a_pod_that_is_relabelled_within_the_selector_of_both() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: db}}}]}]}")
        .label_pod("x/a", "role=db")
        .label_pod("x/b", "role=db")
        .gives("to x/a,x/b only from x/a,x/b")
        .label_pod("x/b", "role=web")
        .gives("to x/a only from nobody")
}

fn a_pod_recreated_under_the_same_address_is_another_peer() -> Scenario {
    Scenario::default()
        .policy(
            "y/p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: b}}}]}]}",
        )
        .gives("to y/* only from x/b")
        .recreate("x/b", ("pod", "stranger"))
        .gives("to y/* only from nobody")
}

fn a_pod_recreated_under_the_same_address_is_another_subject() -> Scenario {
    Scenario::default()
        .policy("z/p", "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Ingress, Egress]}")
        .policy("z/q", "{podSelector: {matchLabels: {pod: other}}, ingress: [{from: [{podSelector: {}}]}]}")
        .gives("to z/b only from nobody\n from z/b only to nobody")
        .recreate("z/b", ("pod", "other"))
        .gives("to z/b only from z/*")
}
