//! Peers by pods and namespaces, in both directions.

use palisade_e2e::scenario::Scenario;
use palisade_e2e::world::LONGEST_VALUE;

crate::scenarios![
    an_empty_pod_selector_as_peer_is_every_pod_of_the_policys_namespace,
    a_pod_selector_alone_is_of_the_policys_namespace,
    a_namespace_selector_alone_is_every_pod_of_those_namespaces_and_not_of_its_own,
    an_empty_namespace_selector_is_every_pod_of_all_namespaces,
    namespace_and_pod_selector_in_one_peer_must_both_match,
    two_peers_of_a_rule_are_alternatives,
    a_namespace_is_known_by_its_name_label,
    peers_by_expressions_of_namespaces_and_pods,
    not_in_and_does_not_exist_take_those_without_the_label,
    an_empty_value_is_a_value,
    a_label_of_63_unusual_characters_selects_and_one_that_differs_at_its_end_does_not,
    an_empty_list_of_peers_is_everybody,
    a_selector_that_nobody_fits_lets_nobody_in,
    egress_to_an_empty_pod_selector_stays_in_the_namespace,
    egress_to_namespaces_and_pods,
    egress_rules_add_up,
    egress_to_a_selector_that_nobody_fits_goes_nowhere,
];

/// A policy of all pods of x, with these peers.
fn from(peers: &str) -> Scenario {
    Scenario::default().policy("x/p", &format!("{{podSelector: {{}}, ingress: [{{from: {peers}}}]}}"))
}

fn to(peers: &str) -> Scenario {
    Scenario::default().policy("x/p", &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: {peers}}}]}}"))
}

fn an_empty_pod_selector_as_peer_is_every_pod_of_the_policys_namespace() -> Scenario {
    from("[{podSelector: {}}]").gives("to x/* only from x/*")
}

fn a_pod_selector_alone_is_of_the_policys_namespace() -> Scenario {
    from("[{podSelector: {matchLabels: {pod: b}}}]").gives("to x/* only from x/b")
}

fn a_namespace_selector_alone_is_every_pod_of_those_namespaces_and_not_of_its_own() -> Scenario {
    from("[{namespaceSelector: {matchLabels: {ns: z}}}]").gives("to x/* only from z/*")
}

fn an_empty_namespace_selector_is_every_pod_of_all_namespaces() -> Scenario {
    from("[{namespaceSelector: {matchLabels: {ns: none}}}]")
        .gives("to x/* only from nobody")
        .policy("x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")
        .gives("")
}

fn namespace_and_pod_selector_in_one_peer_must_both_match() -> Scenario {
    from("[{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]").gives("to x/* only from y/a")
}

fn two_peers_of_a_rule_are_alternatives() -> Scenario {
    from("[{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: a}}}]").gives("to x/* only from y/*,x/a")
}

fn a_namespace_is_known_by_its_name_label() -> Scenario {
    from("[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: $ns(y)}}}]").gives("to x/* only from y/*")
}

fn peers_by_expressions_of_namespaces_and_pods() -> Scenario {
    from(
        "[{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, z]}]}, podSelector: {matchExpressions: [{key: first, operator: Exists}]}},
          {namespaceSelector: {matchExpressions: [{key: ns, operator: Exists}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [c]}, {key: at, operator: NotIn, values: [z-c]}]}}]",
    )
    .gives("to x/* only from y/a,z/a,x/c,y/c")
}

fn not_in_and_does_not_exist_take_those_without_the_label() -> Scenario {
    from(
        "[{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x, y]}]}, podSelector: {matchExpressions: [{key: first, operator: DoesNotExist}]}},
          {podSelector: {matchExpressions: [{key: first, operator: NotIn, values: ['']}, {key: pod, operator: NotIn, values: [b]}]}}]",
    )
    .gives("to x/* only from z/b,z/c,x/c")
}

fn an_empty_value_is_a_value() -> Scenario {
    from("[{namespaceSelector: {}, podSelector: {matchLabels: {first: ''}}}]").gives("to x/* only from */a")
}

fn a_label_of_63_unusual_characters_selects_and_one_that_differs_at_its_end_does_not() -> Scenario {
    let peer = |value: &str| format!("[{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{odd.example.org/a_B-c.D: '{value}'}}}}}}]");
    let other = format!("{}z", &LONGEST_VALUE[..LONGEST_VALUE.len() - 1]);
    from(&peer(LONGEST_VALUE))
        .gives("to x/* only from y/b")
        .policy("x/p", &format!("{{podSelector: {{}}, ingress: [{{from: {}}}]}}", peer(&other)))
        .gives("to x/* only from nobody")
        .label_pod("z/a", "odd.example.org/a_B-c.D=A-_.-_.a0__..--z9._-A.B_C-D...e___f---0_0-1.2A-_.-_.a0__..--z9z")
        .gives("to x/* only from z/a")
}

fn an_empty_list_of_peers_is_everybody() -> Scenario {
    Scenario::default()
        .policy("x/p", "{podSelector: {}, ingress: [{from: [], ports: [{port: 81}]}]}")
        .policy("y/p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [], ports: [{port: 81}]}]}")
        .gives("to x/* only from */* on tcp/81\n from y/* only to */* on tcp/81")
}

fn a_selector_that_nobody_fits_lets_nobody_in() -> Scenario {
    from("[{podSelector: {matchLabels: {pod: none}}}, {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {at: z-a}}}]")
        .gives("to x/* only from nobody")
}

fn egress_to_an_empty_pod_selector_stays_in_the_namespace() -> Scenario {
    to("[{podSelector: {}}]").gives("from x/* only to x/*")
}

fn egress_to_namespaces_and_pods() -> Scenario {
    to("[{namespaceSelector: {matchLabels: {ns: y}}}, {namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: c}}}]")
        .gives("from x/* only to y/*,z/c")
}

fn egress_rules_add_up() -> Scenario {
    Scenario::default()
        .policy(
            "x/p",
            "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [
                {to: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]},
                {to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80, protocol: UDP}]},
                {to: [{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: a}}}]}]}",
        )
        .gives("from x/a only to x/b on tcp/80 or to z/* on udp/80 or to z/a")
}

fn egress_to_a_selector_that_nobody_fits_goes_nowhere() -> Scenario {
    to("[{podSelector: {matchLabels: {pod: none}}}]").gives("from x/* only to nobody")
}
