//! ClusterNetworkPolicy v1alpha2: what it means, and what fails closed (semantics 33 to 37).

use palisade_identity::{LabelSelector, Protocol};
use palisade_k8s::api::ClusterNetworkPolicy;
use palisade_k8s::convert;
use palisade_policy::model::{Action, Mode, Peer, Peers, PodSet, Policy, Port, Ports, Rule, Tier};
use serde_json::{Value, json};

/// The policy that is held, and what is wrong with it.
fn policy(spec: Value) -> (Policy, Option<String>) {
    let object = json!({"metadata": {"name": "c"}, "spec": spec});
    match convert::cluster_network_policy(&serde_json::from_value::<ClusterNetworkPolicy>(object).expect("a decodable policy")) {
        Ok(policy) => (policy, None),
        Err(refusal) => (*refusal.closed, Some(refusal.error.to_string())),
    }
}

fn everything() -> LabelSelector {
    LabelSelector::everything()
}

fn all_pods() -> PodSet {
    PodSet { namespaces: Some(everything()), ..PodSet::default() }
}

/// The one egress rule of a policy, and what is wrong with it.
fn egress(rule: Value) -> (Rule, Option<String>) {
    let (policy, error) = policy(json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}, "egress": [rule]}));
    (policy.egress.expect("a rule").remove(0), error)
}

#[test]
fn tiers_priorities_actions_peers_and_protocols_are_read() {
    let (converted, error) = policy(json!({
        "tier": "Baseline", "priority": 1000,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}},
        "ingress": [{"name": "one", "action": "Pass", "from": [{"namespaces": {}}]}],
        "egress": [
            {"action": "Accept", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}], "protocols": [
                {"tcp": {"destinationPort": {"number": 80}}}, {"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}},
                {"sctp": {"destinationPort": {"number": 7}}}]},
            {"action": "Deny", "to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "web"}]},
        ],
    }));
    assert_eq!((error, converted.tier, converted.mode), (None, Tier::Baseline(1000), Mode::Enforce));
    assert_eq!(converted.subject.namespaces, Some(everything()));
    let ingress = converted.ingress.expect("rules");
    assert_eq!((ingress[0].name.as_deref(), ingress[0].action), (Some("one"), Action::Pass));
    assert_eq!((&ingress[0].peers, &ingress[0].ports), (&Peers::Of(vec![Peer::Pods(all_pods())]), &Ports::Any));
    let egress = converted.egress.expect("rules");
    let block = |text: &str| Peer::Block { block: text.parse().unwrap(), except: Vec::new() };
    assert_eq!(egress[0].peers, Peers::Of(vec![block("10.0.0.0/8"), block("fd00::/8"), Peer::Nodes(everything())]));
    let ports = [Port::Range(Protocol::Tcp, 80, 80), Port::Range(Protocol::Udp, 1, 9), Port::Range(Protocol::Sctp, 7, 7)];
    assert_eq!(egress[0].ports, Ports::Of(ports.into()));
    let named = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Port::Named(protocol, "web".into()));
    assert_eq!(egress[1].ports, Ports::Of(named.into()));
}

#[test]
fn a_policy_without_rules_for_a_direction_says_nothing_of_it() {
    let (converted, error) = policy(json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "ingress": []}));
    assert_eq!((error, converted.ingress, converted.egress), (None, None, None));
}

/// That a rule of egress accepts nothing, or denies all, for what stands at `field`.
#[track_caller]
fn fails_closed(rule: &Value, field: &str) {
    for action in ["Accept", "Deny", "Pass"] {
        let mut rule = rule.clone();
        rule["action"] = action.into();
        let (closed, error) = egress(rule.clone());
        assert!(error.as_ref().is_some_and(|error| error.starts_with(&format!("{field}: "))), "{rule}: {error:?}");
        let expected = match action {
            "Accept" => (Action::Allow, Peers::Of(vec![]), Ports::Any),
            _ => (Action::Deny, Peers::Any, Ports::Any),
        };
        assert_eq!((closed.action, closed.peers, closed.ports), expected, "{rule}");
    }
}

#[test]
fn an_unknown_field_beside_known_ones_fails_closed() {
    let known = json!({"namespaces": {}});
    for (peer, field) in [
        (json!({"namespaces": {}, "future": {}}), "future"),
        (json!({"networks": ["10.0.0.0/8"], "future": ["10.1.0.0/16"]}), "future"),
        (json!({"pods": {"namespaceSelector": {}, "podSelector": {}, "future": {}}}), "pods.future"),
        (json!({"pods": {"namespaceSelector": {"future": 1}, "podSelector": {}}}), "pods.namespaceSelector.future"),
        (json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {}, "future": 1}}}), "pods.podSelector.future"),
        (json!({"namespaces": {"matchLabels": {"a": "b"}, "future": 1}}), "namespaces.future"),
        (json!({"nodes": {"future": 1}}), "nodes.future"),
        (json!({"nodes": {"matchExpressions": [{"key": "a", "operator": "Exists", "future": 1}]}}), "nodes.matchExpressions[0].future"),
    ] {
        fails_closed(&json!({"to": [known, peer]}), &format!("spec.egress[0].to[1].{field}"));
    }
    fails_closed(&json!({"to": [known], "future": {}}), "spec.egress[0].future");
    for (protocol, field) in [
        (json!({"tcp": {"destinationPort": {"number": 80}}, "future": {}}), "future"),
        (json!({"destinationNamedPort": "web", "future": {}}), "future"),
        (json!({"tcp": {"destinationPort": {"number": 80}, "future": 1}}), "tcp.future"),
        (json!({"udp": {"destinationPort": {"number": 80, "future": 1}}}), "udp.destinationPort.future"),
        (json!({"sctp": {"destinationPort": {"range": {"start": 1, "end": 9, "future": 1}}}}), "sctp.destinationPort.range.future"),
    ] {
        fails_closed(&json!({"to": [known], "protocols": [protocol]}), &format!("spec.egress[0].protocols[0].{field}"));
    }
}

#[test]
fn where_a_policy_has_an_unknown_field_nothing_is_accepted_and_what_passes_denies() {
    let rule = |action: &str| json!({"action": action, "from": [{"namespaces": {"matchLabels": {"a": "b"}}}]});
    let rules = json!([rule("Accept"), rule("Pass"), rule("Deny")]);
    let subject = json!({"namespaces": {"matchLabels": {"c": "d"}}});
    let spec = json!({"tier": "Baseline", "priority": 7, "subject": subject, "ingress": rules});
    let good = policy(spec.clone()).0;
    let mut later = spec;
    later["future"] = json!({});
    let (closed, error) = policy(later);
    assert_eq!(error.as_deref(), Some("spec.future: there is no such field in ClusterNetworkPolicy"));
    assert_eq!((closed.tier, closed.subject, closed.egress), (good.tier, good.subject, None), "they can be read");
    let (rules, good) = (closed.ingress.expect("rules"), good.ingress.expect("rules"));
    assert_eq!((rules[0].action, &rules[0].peers), (Action::Allow, &Peers::Of(vec![])), "it accepts nobody");
    assert_eq!((rules[1].action, &rules[1].peers, &rules[1].ports), (Action::Deny, &Peers::Any, &Ports::Any), "the one that passed");
    assert_eq!(rules[2], good[2], "the one that denies");
}

#[test]
fn an_unknown_peer_or_protocol_fails_closed() {
    let unknown_peer = json!({"futurePeer": {"x": 1}});
    let known = json!({"namespaces": {}});
    let unknown_protocol = json!({"quic": {}});
    for (rule, field) in [
        (json!({"to": [known, unknown_peer]}), "spec.egress[0].to[1].futurePeer"),
        (json!({"to": [{}]}), "spec.egress[0].to[0]"),
        (
            json!({"to": [known], "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, unknown_protocol]}),
            "spec.egress[0].protocols[1].quic",
        ),
        (json!({"to": [known], "protocols": [{}]}), "spec.egress[0].protocols[0]"),
        (json!({"to": [known], "protocols": [{"tcp": {"futureMatch": 1}}]}), "spec.egress[0].protocols[0].tcp.futureMatch"),
        (json!({"to": [known], "protocols": [{"tcp": {}}]}), "spec.egress[0].protocols[0].tcp.destinationPort"),
        (json!({"to": [known], "protocols": [{"tcp": {"destinationPort": {}}}]}), "spec.egress[0].protocols[0].tcp.destinationPort"),
        (json!({"to": [{"networks": ["10.0.0.0/99"]}]}), "spec.egress[0].to[0].networks[0]"),
        (json!({"to": [{"domainNames": ["example.org"]}]}), "spec.egress[0].to[0].domainNames"),
        (json!({"to": []}), "spec.egress[0].to"),
        (json!({}), "spec.egress[0].to"),
    ] {
        fails_closed(&rule, field);
    }
    let (closed, error) = egress(json!({"action": "Log", "to": [known]}));
    assert_eq!((closed.action, closed.peers), (Action::Deny, Peers::Any));
    assert_eq!(error.unwrap(), "spec.egress[0].action: there is no action \"Log\": Accept, Deny and Pass are");
}

#[test]
fn a_range_of_one_port_and_a_named_port_of_addresses_fail_closed() {
    let known = json!({"namespaces": {}});
    let range = json!({"tcp": {"destinationPort": {"range": {"start": 80, "end": 80}}}});
    fails_closed(&json!({"to": [known], "protocols": [range]}), "spec.egress[0].protocols[0].tcp.destinationPort.range.end");
    let (number, named) = (json!({"tcp": {"destinationPort": {"number": 80}}}), json!({"destinationNamedPort": "web"}));
    for peer in [json!({"networks": ["10.0.0.0/8"]}), json!({"nodes": {}})] {
        let rule = json!({"to": [known, peer], "protocols": [number, named]});
        fails_closed(&rule, "spec.egress[0].protocols[1].destinationNamedPort");
    }
}

#[test]
fn ingress_has_no_peers_by_address() {
    for peer in [json!({"networks": ["10.0.0.0/8"]}), json!({"nodes": {}})] {
        let rule = json!({"action": "Accept", "from": [peer]});
        let (closed, error) = policy(json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "ingress": [rule]}));
        assert!(error.unwrap().starts_with("spec.ingress[0].from[0]: "));
        assert_eq!(closed.ingress.unwrap()[0].peers, Peers::Of(vec![]));
    }
}

#[test]
fn where_the_subject_cannot_be_read_what_denies_holds_for_every_pod_and_nothing_is_accepted() {
    let rules = json!([{"action": "Accept", "from": [{"namespaces": {}}]}, {"action": "Deny", "from": [{"namespaces": {}}]}]);
    for subject in [
        json!({}),
        json!({"futureSubject": 1}),
        json!({"namespaces": {}, "future": 1}),
        json!({"pods": {"namespaceSelector": {}, "podSelector": {}, "future": 1}}),
        json!({"namespaces": {"matchLabels": {"a": "b"}, "future": 1}}),
        json!({"namespaces": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}),
    ] {
        let (closed, error) = policy(json!({"tier": "Admin", "priority": 0, "subject": subject, "ingress": rules}));
        assert!(error.unwrap().starts_with("spec.subject"), "{subject}");
        let rules = closed.ingress.unwrap();
        let actions: Vec<Action> = rules.iter().map(|rule| rule.action).collect();
        assert_eq!((closed.subject, actions), (all_pods(), vec![Action::Allow, Action::Deny]), "{subject}");
        assert_eq!(rules[0].peers, Peers::Of(vec![]), "it accepts nobody, and the next keeps its index: {subject}");
    }
}

#[test]
fn where_tier_priority_or_mode_cannot_be_read_nothing_is_accepted_and_what_passes_denies() {
    let rule = |action: &str| json!({"action": action, "from": [{"namespaces": {}}]});
    let rules = json!([rule("Accept"), rule("Pass"), rule("Deny")]);
    let spec = |tier: &str, priority: i32| json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}}, "ingress": rules});
    let annotated = |mode: &str, spec: Value| {
        let metadata = json!({"name": "c", "annotations": {"palisade.dev/mode": mode}});
        let object = json!({"metadata": metadata, "spec": spec});
        *convert::cluster_network_policy(&serde_json::from_value(object).expect("a decodable policy")).expect_err("refused").closed
    };
    for closed in [policy(spec("Middle", 1)).0, policy(spec("Admin", 9999)).0, annotated("audit", spec("Admin", 1))] {
        let rules = closed.ingress.expect("rules");
        assert_eq!(rules.iter().map(|rule| rule.action).collect::<Vec<_>>(), [Action::Allow, Action::Deny, Action::Deny]);
        assert_eq!(rules[0].peers, Peers::Of(vec![]), "it accepts nobody");
        assert_eq!((&rules[1].peers, &rules[1].ports), (&Peers::Any, &Ports::Any), "the one that passed");
    }
}

#[test]
fn an_unknown_tier_or_priority_is_reported_and_comes_first() {
    let (closed, error) = policy(json!({"tier": "Middle", "priority": 7, "subject": {"namespaces": {}}}));
    assert_eq!((closed.tier, error.unwrap().as_str()), (Tier::Admin(7), "spec.tier: there is no tier \"Middle\": Admin and Baseline are"));
    let (closed, error) = policy(json!({"tier": "Admin", "priority": 1001, "subject": {"namespaces": {}}}));
    assert_eq!((closed.tier, error.unwrap().as_str()), (Tier::Admin(0), "spec.priority: 1001 is no priority: priorities are 0 to 1000"));
}
