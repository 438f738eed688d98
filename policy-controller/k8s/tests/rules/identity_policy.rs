//! Identity and IdentityPolicy: what they mean, and what is refused.

use palisade_identity::{LabelSelector, Operator, Protocol, Requirement, ServiceAccount};
use palisade_k8s::Refusal;
use palisade_k8s::api::{Identity, IdentityPolicy};
use palisade_k8s::convert;
use palisade_policy::model::{Action, Entity, Mode, Peer, Peers, PodSet, Policy, Port, Ports, Rule};
use serde_json::{Value, json};

fn policy(spec: Value) -> Result<Policy, Refusal<Policy>> {
    let object = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
    convert::identity_policy(&serde_json::from_value::<IdentityPolicy>(object).expect("a decodable policy"))
}

fn members(spec: Value) -> Result<Vec<Peer>, String> {
    let object = json!({"metadata": {"name": "i"}, "spec": spec});
    convert::identity(&serde_json::from_value::<Identity>(object).expect("a decodable identity")).map_err(|error| error.to_string())
}

fn app(value: &str) -> LabelSelector {
    LabelSelector { requirements: [Requirement { key: "app".into(), operator: Operator::In([value.into()].into()) }].into() }
}

fn account(namespace: &str, name: &str) -> ServiceAccount {
    ServiceAccount { namespace: namespace.into(), name: name.into() }
}

#[test]
fn a_policy_says_who_may_reach_whom_by_identity() {
    let converted = policy(json!({
        "subject": {"pods": {"matchLabels": {"app": "checkout"}}, "serviceAccounts": ["checkout"]},
        "mode": "Audit",
        "ingress": [],
        "egress": [
            {"action": "Allow", "name": "db", "peers": [{"identity": "payments-db"}], "ports": [{"port": 5432}]},
            {"action": "Deny", "peers": [{"entity": "World"}, {"network": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]},
            {"action": "Allow", "ports": [{"protocol": "UDP", "port": 53, "endPort": 54}, {"name": "web"}, {"protocol": "SCTP"}]},
        ],
    }))
    .expect("a good policy");
    assert_eq!(converted.mode, Mode::Audit);
    let subject = PodSet { namespaces: None, pods: app("checkout"), accounts: Some([account("shop", "checkout")].into()) };
    assert_eq!((converted.subject, converted.ingress), (subject, Some(vec![])));
    let rules = converted.egress.expect("rules");
    assert_eq!((rules[0].name.as_deref(), rules[0].action), (Some("db"), Action::Allow));
    assert_eq!(rules[0].peers, Peers::Of(vec![Peer::Identity("payments-db".into())]));
    assert_eq!(rules[0].ports, Ports::Of(vec![Port::Range(Protocol::Tcp, 5432, 5432)]));
    let block = Peer::Block { block: "10.0.0.0/8".parse().unwrap(), except: vec!["10.1.0.0/16".parse().unwrap()] };
    assert_eq!((rules[1].action, &rules[1].ports), (Action::Deny, &Ports::Any));
    assert_eq!(rules[1].peers, Peers::Of(vec![Peer::Entity(Entity::World), block]));
    let ports = vec![Port::Range(Protocol::Udp, 53, 54), Port::Named(Protocol::Tcp, "web".into()), Port::All(Protocol::Sctp)];
    assert_eq!((&rules[2].peers, &rules[2].ports), (&Peers::Any, &Ports::Of(ports)));
}

#[test]
fn pods_without_namespaces_are_those_of_the_policy_and_of_an_identity_those_of_all() {
    let everything = LabelSelector::everything;
    let peer = |pods: Value| {
        let rule = json!({"action": "Allow", "peers": [{"pods": pods}]});
        let rules = policy(json!({"subject": {}, "ingress": [rule]})).expect("a good policy").ingress.expect("rules");
        rules[0].peers.clone()
    };
    let set = |namespaces, pods, accounts| Peers::Of(vec![Peer::Pods(PodSet { namespaces, pods, accounts })]);
    assert_eq!(peer(json!({"pods": {"matchLabels": {"app": "a"}}})), set(None, app("a"), None));
    assert_eq!(peer(json!({"namespaces": {}})), set(Some(everything()), everything(), None));
    let named = json!({"serviceAccounts": [{"namespace": "bank", "name": "teller"}]});
    assert_eq!(peer(named), set(Some(everything()), everything(), Some([account("bank", "teller")].into())));
    let pods = members(json!({"pods": [{"pods": {"matchLabels": {"app": "a"}}}]})).expect("a good identity");
    assert_eq!(pods, [Peer::Pods(PodSet { namespaces: Some(everything()), pods: app("a"), accounts: None })]);
}

#[test]
fn what_a_schema_would_refuse_is_refused_with_the_field_and_isolates() {
    let rule = |rule: Value| json!({"subject": {"pods": {"matchLabels": {"app": "a"}}}, "egress": [rule]});
    for (spec, message) in [
        (rule(json!({"action": "Log"})), "spec.egress[0].action: there is no action \"Log\": Allow and Deny are"),
        (rule(json!({"action": "Allow", "peers": []})), "spec.egress[0].peers: is an empty list"),
        (
            rule(json!({"action": "Allow", "peers": [{}]})),
            "spec.egress[0].peers[0]: needs exactly one of identity, pods, network and entity",
        ),
        (rule(json!({"action": "Allow", "peers": [{"identity": "a", "entity": "Host"}]})), "spec.egress[0].peers[0]: needs exactly one"),
        (rule(json!({"action": "Allow", "peers": [{"pods": {}}]})), "spec.egress[0].peers[0].pods: namespaces, pods or serviceAccounts"),
        (rule(json!({"action": "Allow", "peers": [{"entity": "Moon"}]})), "spec.egress[0].peers[0].entity: there is no entity \"Moon\""),
        (rule(json!({"action": "Allow", "peers": [{"network": {"cidr": "10.0.0.0/99"}}]})), "spec.egress[0].peers[0].network.cidr: "),
        (
            rule(json!({"action": "Allow", "peers": [{"network": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]})),
            "spec.egress[0].peers[0].network.except[0]: 11.0.0.0/16 is not a part of 10.0.0.0/8",
        ),
        (
            rule(json!({"action": "Allow", "peers": [{"network": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]})),
            "spec.egress[0].peers[0].network.except[0]: 10.0.0.0/8 is not a part of 10.0.0.0/8: an exception must be smaller",
        ),
        (rule(json!({"action": "Allow", "ports": []})), "spec.egress[0].ports: is an empty list"),
        (rule(json!({"action": "Allow", "ports": [{"port": 90, "endPort": 80}]})), "spec.egress[0].ports[0].endPort: the range ends at 80"),
        (rule(json!({"action": "Allow", "ports": [{"endPort": 80}]})), "spec.egress[0].ports[0].endPort: a range needs its first port"),
        (rule(json!({"action": "Allow", "ports": [{"port": 80, "name": "web"}]})), "spec.egress[0].ports[0].name: a port has a number or"),
        (rule(json!({"action": "Allow", "ports": [{"protocol": "ICMP"}]})), "spec.egress[0].ports[0].protocol: there is no protocol"),
    ] {
        let refusal = policy(spec.clone()).expect_err(&spec.to_string());
        assert!(refusal.error.to_string().starts_with(message), "{spec}: {}", refusal.error);
        assert_eq!((refusal.closed.subject.pods.clone(), refusal.closed.ingress.clone()), (app("a"), None), "{spec}");
        let allows = spec["egress"][0]["action"] == "Allow";
        // What does something that is not known could have denied.
        assert_eq!(refusal.closed.egress, Some(if allows { vec![] } else { vec![Rule::deny_all()] }), "{spec}");
    }
    let refusal = policy(json!({"subject": {}})).expect_err("no direction");
    assert_eq!(refusal.error.to_string(), "spec: ingress or egress is needed; an empty list isolates");
    let refusal = policy(json!({"subject": {"serviceAccounts": []}, "ingress": []})).expect_err("an empty list is not all");
    assert_eq!(refusal.closed.subject, PodSet::default(), "nobody knows whom it selects: all pods of the namespace");
}

#[test]
fn a_refused_policy_that_denies_denies_everything_and_one_in_audit_mode_stays_in_it() {
    let rules = json!([{"action": "Deny", "peers": [{"identity": "bad"}]}, {"action": "Allow", "ports": [{"name": "HTTP"}]}]);
    let closed = |mode: &str| *policy(json!({"subject": {}, "mode": mode, "ingress": rules})).expect_err("a port name in capitals").closed;
    assert_eq!((closed("Enforce").mode, closed("Enforce").ingress), (Mode::Enforce, Some(vec![Rule::deny_all()])));
    assert_eq!(closed("Audit").mode, Mode::Audit);
    assert_eq!(closed("audit").mode, Mode::Enforce, "a mode that does not exist");
}

/// The object with a field of a later version in it.
fn later(mut object: Value) -> Value {
    object["future"] = json!({"x": 1});
    object
}

/// Selections of pods that hold a field of a later version, and where.
fn later_pods() -> [(Value, &'static str); 5] {
    [
        (later(json!({"namespaces": {}})), "future"),
        (json!({"namespaces": later(json!({}))}), "namespaces.future"),
        (json!({"pods": later(json!({"matchLabels": {"app": "a"}}))}), "pods.future"),
        (json!({"pods": {"matchExpressions": [later(json!({"key": "a", "operator": "Exists"}))]}}), "pods.matchExpressions[0].future"),
        (json!({"serviceAccounts": [later(json!({"namespace": "n", "name": "a"}))]}), "serviceAccounts[0].future"),
    ]
}

#[test]
fn an_unknown_field_anywhere_in_a_policy_refuses_it_and_it_allows_nothing() {
    let rule = |rule: Value| json!({"subject": {"pods": {"matchLabels": {"app": "a"}}}, "egress": [rule]});
    let peer = |peer: Value| rule(json!({"action": "Allow", "peers": [{"entity": "Host"}, peer]}));
    let mut cases = vec![
        (later(rule(json!({"action": "Allow"}))), "spec.future".to_owned()),
        (rule(later(json!({"action": "Allow"}))), "spec.egress[0].future".to_owned()),
        (rule(json!({"action": "Allow", "ports": [later(json!({"port": 80}))]})), "spec.egress[0].ports[0].future".to_owned()),
        (peer(later(json!({"identity": "a"}))), "spec.egress[0].peers[1].future".to_owned()),
        (peer(json!({"network": later(json!({"cidr": "10.0.0.0/8"}))})), "spec.egress[0].peers[1].network.future".to_owned()),
    ];
    cases.extend(later_pods().map(|(pods, field)| (peer(json!({"pods": pods})), format!("spec.egress[0].peers[1].pods.{field}"))));
    for (spec, field) in cases {
        let refusal = policy(spec.clone()).expect_err(&spec.to_string());
        assert_eq!(refusal.error.to_string(), format!("{field}: there is no such field in IdentityPolicy"));
        let closed = *refusal.closed;
        assert_eq!((closed.subject.pods, closed.ingress, closed.egress), (app("a"), None, Some(vec![])), "{spec}");
    }
    let refusal = policy(rule(later(json!({"action": "Deny", "peers": [{"entity": "Host"}]})))).expect_err("a later rule");
    assert_eq!(refusal.closed.egress, Some(vec![Rule::deny_all()]), "it could have denied anything");
}

#[test]
fn where_a_subject_has_an_unknown_field_it_is_every_pod_and_where_no_direction_is_known_it_is_both() {
    for (subject, field) in [
        (later(json!({})), "spec.subject.future"),
        (json!({"pods": later(json!({"matchLabels": {"app": "a"}}))}), "spec.subject.pods.future"),
    ] {
        let refusal = policy(json!({"subject": subject, "ingress": []})).expect_err("a later subject");
        assert_eq!(refusal.error.to_string(), format!("{field}: there is no such field in IdentityPolicy"));
        let closed = *refusal.closed;
        assert_eq!((closed.subject, closed.ingress, closed.egress), (PodSet::default(), Some(vec![]), None));
    }
    let closed = *policy(later(json!({"subject": {}}))).expect_err("a later direction").closed;
    assert_eq!((closed.ingress, closed.egress), (Some(vec![]), Some(vec![])));
}

#[test]
fn an_unknown_field_anywhere_in_an_identity_refuses_it() {
    let mut cases = vec![
        (later(json!({"entities": ["World"]})), "spec.future".to_owned()),
        (json!({"networks": [later(json!({"cidr": "10.0.0.0/8"}))]}), "spec.networks[0].future".to_owned()),
    ];
    cases.extend(later_pods().map(|(pods, field)| (json!({"pods": [pods]}), format!("spec.pods[0].{field}"))));
    for (spec, field) in cases {
        assert_eq!(members(spec).unwrap_err(), format!("{field}: there is no such field in Identity"));
    }
}

#[test]
fn an_identity_to_which_nothing_belongs_is_refused() {
    for spec in [json!({}), json!({"pods": []}), json!({"entities": []}), json!({"networks": []})] {
        assert_eq!(members(spec).unwrap_err(), "spec: an identity needs pods, networks or entities");
    }
    let error = members(json!({"pods": [{"serviceAccounts": [{"namespace": "", "name": "x"}]}]})).unwrap_err();
    assert_eq!(error, "spec.pods[0].serviceAccounts[0].namespace: is missing");
}
