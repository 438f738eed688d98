//! Identities, rules that deny, audit.

use palisade_e2e::scenario::Scenario;

crate::scenarios![
    egress_by_identity_reaches_its_pods_and_nobody_else,
    an_identity_gains_and_loses_pods_by_their_labels,
    an_identity_of_a_service_account_is_every_pod_that_runs_as_it,
    an_identity_of_networks_matches_pods_by_their_addresses,
    a_name_that_is_gone_opens_nothing,
    a_rule_that_denies_beats_a_network_policy_that_allows,
    a_rule_that_denies_an_identity_beats_one_that_allows_its_namespace,
    a_policy_in_audit_closes_nothing_until_it_is_enforced,
    a_network_policy_in_audit_closes_nothing_until_it_is_enforced,
];

fn egress_by_identity_reaches_its_pods_and_nobody_else() -> Scenario {
    Scenario::default()
        .identity("db", "{pods: [{namespaces: {matchLabels: {ns: z}}, pods: {matchLabels: {pod: a}}}]}")
        .identity_policy("x/p", "{subject: {}, egress: [{action: Allow, peers: [{identity: $ns(x)-db}], ports: [{port: 80}]}]}")
        .gives("from x/* only to z/a on tcp/80")
}

fn an_identity_gains_and_loses_pods_by_their_labels() -> Scenario {
    Scenario::default()
        .identity("db", "{pods: [{namespaces: {matchLabels: {ns: z}}, pods: {matchLabels: {known: 'yes'}}}]}")
        .identity_policy("x/p", "{subject: {}, egress: [{action: Allow, peers: [{identity: $ns(x)-db}]}]}")
        .gives("from x/* only to nobody")
        .label_pod("z/b", "known=yes")
        .gives("from x/* only to z/b")
        .label_pod("z/b", "known-")
        .label_pod("z/c", "known=yes")
        .gives("from x/* only to z/c")
}

fn an_identity_of_a_service_account_is_every_pod_that_runs_as_it() -> Scenario {
    Scenario::default()
        .identity("y", "{pods: [{serviceAccounts: [{namespace: $ns(y), name: default}]}]}")
        .identity_policy("x/p", "{subject: {}, ingress: [{action: Allow, peers: [{identity: $ns(x)-y}]}]}")
        .gives("to x/* only from y/*")
}

fn an_identity_of_networks_matches_pods_by_their_addresses() -> Scenario {
    Scenario::default()
        .identity("net", "{networks: [{cidr: $4(z/a)/32}, {cidr: '$6(z/b)/128'}]}")
        .identity_policy("x/p", "{subject: {pods: {matchLabels: {pod: a}}}, egress: [{action: Allow, peers: [{identity: $ns(x)-net}]}]}")
        .gives("from x/a only to z/a by v4 or to z/b by v6")
}

fn a_name_that_is_gone_opens_nothing() -> Scenario {
    Scenario::default()
        .identity("db", "{pods: [{namespaces: {matchLabels: {ns: z}}}]}")
        .identity_policy("x/p", "{subject: {}, egress: [{action: Allow, peers: [{identity: $ns(x)-db}]}]}")
        .gives("from x/* only to z/*")
        .delete("identity", "db")
        .gives("from x/* only to nobody")
}

fn a_rule_that_denies_beats_a_network_policy_that_allows() -> Scenario {
    Scenario::default()
        .policy("x/open", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")
        .identity_policy("x/deny", "{subject: {}, ingress: [{action: Deny, peers: [{pods: {namespaces: {matchLabels: {ns: y}}}}], ports: [{port: 80, protocol: UDP}]}]}")
        .gives("never from y/* to x/* on udp/80")
}

fn a_rule_that_denies_an_identity_beats_one_that_allows_its_namespace() -> Scenario {
    Scenario::default()
        .identity("bad", "{pods: [{namespaces: {matchLabels: {ns: y}}, pods: {matchLabels: {pod: c}}}]}")
        .identity_policy(
            "x/p",
            "{subject: {}, ingress: [
                {action: Allow, peers: [{pods: {namespaces: {matchLabels: {ns: y}}}}]},
                {action: Deny, peers: [{identity: $ns(x)-bad}]}]}",
        )
        .gives("to x/* only from y/a,y/b")
}

fn a_policy_in_audit_closes_nothing_until_it_is_enforced() -> Scenario {
    Scenario::default()
        .identity_policy("x/audit", "{subject: {}, mode: Audit, ingress: []}")
        .identity_policy("y/closed", "{subject: {}, mode: Enforce, ingress: []}")
        .gives("to y/* only from nobody")
        .identity_policy("x/audit", "{subject: {}, mode: Enforce, ingress: []}")
        .gives("to y/*,x/* only from nobody")
}

fn a_network_policy_in_audit_closes_nothing_until_it_is_enforced() -> Scenario {
    let in_mode = |mode: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: audit, namespace: $ns(x), annotations: {{palisade.dev/mode: {mode}}}}}, spec: {{podSelector: {{}}}}}}"
        )
    };
    Scenario::default()
        .objects(&in_mode("Audit"))
        .policy("y/closed", "{podSelector: {}}")
        .gives("to y/* only from nobody")
        .objects(&in_mode("Enforce"))
        .gives("to y/*,x/* only from nobody")
}
