//! What an object means, and what is refused of it.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use palisade_identity::{LabelSelector, Operator, Protocol, Requirement};
use palisade_k8s::convert::{self, Participation};
use palisade_k8s::{Problem, Refusal};
use palisade_policy::model::{Mode, NamedPort, Peer, Peers, PodSet, Policy, Port, Ports, Rule, Tier};
use serde_json::{Value, json};

fn policy(spec: Value) -> Result<Policy, Refusal<Policy>> {
    let object =
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "n", "name": "p"}, "spec": spec});
    convert::network_policy(&serde_json::from_value::<NetworkPolicy>(object).expect("a decodable policy"))
}

fn pod(object: Value) -> Pod {
    let Value::Object(mut object) = object else { panic!("an object") };
    object.insert("apiVersion".into(), "v1".into());
    object.insert("kind".into(), "Pod".into());
    serde_json::from_value(Value::Object(object)).expect("a decodable pod")
}

fn one(key: &str, value: &str) -> LabelSelector {
    LabelSelector { requirements: [Requirement { key: key.into(), operator: Operator::In([value.into()].into()) }].into() }
}

/// A NetworkPolicy of the model.
fn isolating(pods: LabelSelector, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Policy {
    Policy { tier: Tier::Workload, mode: Mode::Enforce, subject: PodSet { pods, ..PodSet::default() }, ingress, egress }
}

/// The ingress rule of a policy with one rule.
fn rule(rule: Value) -> Rule {
    let ingress = policy(json!({"podSelector": {}, "ingress": [rule]})).expect("a good policy").ingress;
    ingress.expect("isolated").remove(0)
}

#[track_caller]
fn refused(spec: Value, field: &str, message: &str) -> Policy {
    let refusal = policy(spec).expect_err("refused");
    assert_eq!(refusal.error.field.to_string(), field);
    assert!(refusal.error.problem.to_string().contains(message), "{}", refusal.error);
    *refusal.closed
}

#[track_caller]
fn refused_port(port: Value, field: &str, message: &str) {
    let closed = refused(
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}, port]}]}),
        &format!("spec.ingress[0].ports[1].{field}"),
        message,
    );
    assert_eq!(closed, isolating(LabelSelector::everything(), Some(vec![]), None));
}

#[track_caller]
fn refused_selector(expression: Value, field: &str, message: &str) {
    let field = format!("matchExpressions[0].{field}");
    let selector = json!({"matchExpressions": [expression]});
    refused(json!({"podSelector": selector}), &format!("spec.podSelector.{field}"), message);
    refused(
        json!({"podSelector": {}, "egress": [{"to": [{"namespaceSelector": selector}]}]}),
        &format!("spec.egress[0].to[0].namespaceSelector.{field}"),
        message,
    );
}

#[test]
fn policy_types_absent_mean_ingress_always_and_egress_only_with_egress_rules() {
    let isolates = |spec: Value| policy(spec).map(|policy| (policy.ingress, policy.egress)).expect("a good policy");
    let all = || vec![Rule::allow(Peers::Any, Ports::Any)];
    assert_eq!(isolates(json!({"podSelector": {}})), (Some(vec![]), None));
    assert_eq!(isolates(json!({"podSelector": {}, "policyTypes": []})), (Some(vec![]), None));
    assert_eq!(isolates(json!({"podSelector": {}, "egress": []})), (Some(vec![]), None));
    assert_eq!(isolates(json!({"podSelector": {}, "egress": [{}]})), (Some(vec![]), Some(all())));
    assert_eq!(isolates(json!({"podSelector": {}, "ingress": [{}]})), (Some(all()), None));
    assert_eq!(isolates(json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]})), (None, Some(vec![])));
    assert_eq!(isolates(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})), (Some(vec![]), Some(vec![])));
}

#[test]
fn empty_peers_and_ports_mean_all() {
    assert_eq!(rule(json!({"from": [], "ports": []})), Rule::allow(Peers::Any, Ports::Any));
    assert_eq!(rule(json!({})), Rule::allow(Peers::Any, Ports::Any));
}

#[test]
fn a_peer_keeps_which_of_its_selectors_were_there() {
    let peers = |peer: Value| rule(json!({"from": [peer]})).peers;
    let everything = LabelSelector::everything;
    let pods = |namespaces, pods| Peers::Of(vec![Peer::Pods(PodSet { namespaces, pods, accounts: None })]);
    assert_eq!(peers(json!({"podSelector": {}})), pods(None, everything()));
    assert_eq!(peers(json!({"namespaceSelector": {}})), pods(Some(everything()), everything()));
    let both = json!({"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {"matchLabels": {"c": "d"}}});
    assert_eq!(peers(both), pods(Some(one("c", "d")), one("a", "b")));
}

#[test]
fn match_labels_and_expressions_add_up_in_one_selector() {
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
        {"key": "c", "operator": "NotIn", "values": ["x", "y"]},
        {"key": "d", "operator": "Exists"},
        {"key": "e", "operator": "DoesNotExist", "values": []},
    ]});
    let subject = policy(json!({"podSelector": selector})).expect("a good policy").subject;
    let expect = [
        ("a", Operator::In(["b".into()].into())),
        ("c", Operator::NotIn(["x".into(), "y".into()].into())),
        ("d", Operator::Exists),
        ("e", Operator::DoesNotExist),
    ];
    assert_eq!(subject.pods.requirements, expect.map(|(key, operator)| Requirement { key: key.into(), operator }).into());
}

#[test]
fn the_protocol_of_a_port_defaults_to_tcp_and_a_range_includes_its_end() {
    let ports = [
        (json!({}), Port::All(Protocol::Tcp)),
        (json!({"protocol": "UDP"}), Port::All(Protocol::Udp)),
        (json!({"port": 80}), Port::Range(Protocol::Tcp, 80, 80)),
        (json!({"port": 65535, "protocol": "SCTP"}), Port::Range(Protocol::Sctp, 65535, 65535)),
        (json!({"port": 80, "endPort": 90, "protocol": "UDP"}), Port::Range(Protocol::Udp, 80, 90)),
        (json!({"port": 80, "endPort": 80}), Port::Range(Protocol::Tcp, 80, 80)),
        (json!({"port": "http"}), Port::Named(Protocol::Tcp, "http".into())),
    ];
    for (port, expected) in ports {
        assert_eq!(rule(json!({"ports": [port]})).ports, Ports::Of(vec![expected]));
    }
}

#[test]
fn host_bits_of_a_block_are_masked() {
    let block = |block: Value| rule(json!({"from": [{"ipBlock": block}]})).peers;
    let net = |text: &str| text.parse().expect("a block");
    assert_eq!(
        block(json!({"cidr": "10.1.2.3/8", "except": ["10.1.2.3/16", "10.9.0.0/32"]})),
        Peers::Of(vec![Peer::Block { block: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16"), net("10.9.0.0/32")] }])
    );
    assert_eq!(block(json!({"cidr": "fd00::1/0"})), Peers::Of(vec![Peer::Block { block: net("::/0"), except: vec![] }]));
}

#[test]
fn a_selector_that_means_nothing_is_refused() {
    refused_selector(json!({"key": "a", "operator": "Near", "values": ["b"]}), "operator", "no operator \"Near\"");
    refused_selector(json!({"key": "a", "operator": "in", "values": ["b"]}), "operator", "no operator \"in\"");
    refused_selector(json!({"key": "a", "operator": "In"}), "values", "In needs at least one value");
    refused_selector(json!({"key": "a", "operator": "NotIn", "values": []}), "values", "NotIn needs at least one value");
    refused_selector(json!({"key": "a", "operator": "Exists", "values": ["b"]}), "values", "Exists takes no values");
    refused_selector(json!({"key": "a", "operator": "DoesNotExist", "values": ["b"]}), "values", "DoesNotExist takes no values");
    refused_selector(json!({"key": "a b", "operator": "Exists"}), "key", "no valid label key");
    refused_selector(json!({"key": "/a", "operator": "Exists"}), "key", "no valid label key");
    refused_selector(json!({"key": "a", "operator": "In", "values": ["ok", "not ok"]}), "values[1]", "no valid label value");
    refused(json!({"podSelector": {"matchLabels": {"x.y/a": "-"}}}), "spec.podSelector.matchLabels[\"x.y/a\"]", "no valid label value");
    refused(json!({"podSelector": {"matchLabels": {"a": "b".repeat(64)}}}), "spec.podSelector.matchLabels.a", "no valid label value");
}

#[test]
fn a_port_that_means_nothing_is_refused() {
    refused_port(json!({"port": 70000}), "port", "70000 is no port");
    refused_port(json!({"port": 0}), "port", "0 is no port");
    refused_port(json!({"port": -1}), "port", "-1 is no port");
    refused_port(json!({"port": 90, "endPort": 80}), "endPort", "ends at 80, before its first port 90");
    refused_port(json!({"port": 90, "endPort": 70000}), "endPort", "70000 is no port");
    refused_port(json!({"port": "http", "endPort": 80}), "endPort", "needs its first port as a number");
    refused_port(json!({"endPort": 80}), "endPort", "needs its first port as a number");
    refused_port(json!({"port": "80"}), "port", "no port name");
    refused_port(json!({"port": "a-name-of-16-cha"}), "port", "no port name");
    refused_port(json!({"port": "a--b"}), "port", "no port name");
    refused_port(json!({"protocol": "ICMP"}), "protocol", "no protocol \"ICMP\"");
    refused_port(json!({"protocol": "tcp"}), "protocol", "no protocol \"tcp\"");
}

#[test]
fn a_peer_that_means_nothing_is_refused_and_never_taken_for_everybody() {
    let peer = |peer: Value, field: &str, message: &str| {
        let closed = refused(json!({"podSelector": {}, "egress": [{"to": [peer]}]}), &format!("spec.egress[0].to[0]{field}"), message);
        assert_eq!((closed.ingress, closed.egress), (Some(vec![]), Some(vec![])));
    };
    peer(json!({}), "", "names nothing");
    peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}), "", "cannot stand beside");
    for cidr in [
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0/8",
        "fd00::/129",
        "::ffff:10.0.0.0/104",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "010.0.0.0/8",
    ] {
        peer(json!({"ipBlock": {"cidr": cidr}}), ".ipBlock.cidr", "no CIDR block");
    }
    for except in ["11.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "fd00::/64"] {
        peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": [except]}}), ".ipBlock.except[0]", "not a part of 10.0.0.0/8");
    }
    peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/16", "x"]}}), ".ipBlock.except[1]", "no CIDR block");
}

#[test]
fn a_refused_policy_isolates_the_pods_that_it_selects_in_the_directions_that_it_names() {
    let bad = json!([{"ports": [{"port": 0}]}]);
    let closed = refused(
        json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Egress"], "egress": bad}),
        "spec.egress[0].ports[0].port",
        "no port",
    );
    assert_eq!(closed, isolating(one("a", "b"), None, Some(vec![])));
    let closed = refused(
        json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress", "Both"]}),
        "spec.policyTypes[1]",
        "no policy type \"Both\"",
    );
    assert_eq!(closed, isolating(one("a", "b"), Some(vec![]), Some(vec![])));
}

#[test]
fn a_refused_policy_whose_selector_cannot_be_read_isolates_its_namespace_in_both_directions() {
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Gt", "values": ["1"]}]});
    let closed =
        refused(json!({"podSelector": selector, "policyTypes": ["Ingress"]}), "spec.podSelector.matchExpressions[0].operator", "Gt");
    assert_eq!(closed, isolating(LabelSelector::everything(), Some(vec![]), Some(vec![])));
}

#[test]
fn an_annotation_puts_a_policy_in_audit_mode_and_an_unknown_mode_isolates() {
    let annotated = |mode: &str| {
        let metadata = json!({"namespace": "n", "name": "p", "annotations": {"palisade.dev/mode": mode}});
        let object = json!({"metadata": metadata, "spec": {"podSelector": {}, "ingress": [{}]}});
        convert::network_policy(&serde_json::from_value::<NetworkPolicy>(object).expect("a decodable policy"))
    };
    assert_eq!(annotated("Audit").expect("a good policy").mode, Mode::Audit);
    assert_eq!(annotated("Enforce").expect("a good policy").mode, Mode::Enforce);
    let refusal = annotated("audit").expect_err("refused");
    assert_eq!(refusal.error.to_string(), "metadata.annotations[\"palisade.dev/mode\"]: there is no mode \"audit\": Enforce and Audit are");
    assert_eq!(*refusal.closed, isolating(LabelSelector::everything(), Some(vec![]), None));
}

#[test]
fn rules_of_a_direction_that_is_not_isolated_must_be_right_all_the_same() {
    let closed = refused(json!({"policyTypes": ["Egress"], "ingress": [{"from": [{}]}]}), "spec.ingress[0].from[0]", "names nothing");
    assert_eq!((closed.ingress, closed.egress), (None, Some(vec![])));
}

#[test]
fn named_ports_come_from_containers_and_from_init_containers_that_keep_running() {
    let parts = convert::pod(&pod(json!({"metadata": {}, "spec": {
        "containers": [
            {"name": "a", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]},
            {"name": "b", "ports": [{"name": "http", "containerPort": 82}, {"name": "http", "protocol": "UDP", "containerPort": 83}]},
        ],
        "initContainers": [
            {"name": "c", "ports": [{"name": "early", "containerPort": 84}]},
            {"name": "d", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 85, "protocol": "SCTP"}]},
        ],
    }})));
    let named = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    let expected = [
        named("http", Protocol::Tcp, 80),
        named("http", Protocol::Tcp, 82),
        named("http", Protocol::Udp, 83),
        named("side", Protocol::Sctp, 85),
    ];
    assert_eq!(parts.expect("a good pod").pod.ports, expected);
}

#[test]
fn both_addresses_of_a_dual_stack_pod_are_taken() {
    let addresses = |status: Value| convert::pod(&pod(json!({"metadata": {}, "status": status}))).expect("a good pod").pod.addresses;
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<std::net::IpAddr>>();
    let both = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
    assert_eq!(addresses(both), parse(&["10.0.0.1", "fd00::1"]));
    assert_eq!(addresses(json!({"podIP": "fd00::1"})), parse(&["fd00::1"]));
    assert_eq!(addresses(json!({"podIP": ""})), parse(&[]));
}

#[test]
fn host_network_and_finished_pods_do_not_participate_and_terminating_ones_do() {
    let participation = |object: Value| convert::pod(&pod(object)).expect("a good pod").participation;
    assert_eq!(participation(json!({"metadata": {}, "spec": {"hostNetwork": true, "containers": []}})), Participation::HostNetwork);
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(participation(json!({"metadata": {}, "status": {"phase": phase}})), Participation::Finished);
    }
    for phase in ["Pending", "Running", "Unknown"] {
        assert_eq!(participation(json!({"metadata": {}, "status": {"phase": phase}})), Participation::Participates);
    }
    let terminating = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
    assert_eq!(participation(terminating), Participation::Participates);
}

#[test]
fn a_refused_pod_keeps_its_labels_and_what_can_be_read_of_addresses_and_names() {
    let refusal = convert::pod(&pod(json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "ok", "containerPort": 80}, {"name": "bad", "containerPort": 70000}]}]},
        "status": {"podIPs": [{"ip": "10.0.0.1"}]},
    })))
    .expect_err("refused");
    assert_eq!(refusal.error.to_string(), "spec.containers[0].ports[1].containerPort: 70000 is no port: ports are 1 to 65535");
    assert_eq!(refusal.closed.pod.labels, [("a".to_owned(), "b".to_owned())].into());
    assert_eq!(refusal.closed.pod.addresses.len(), 1);
    let ok = NamedPort { name: "ok".into(), protocol: Protocol::Tcp, port: 80 };
    assert_eq!(refusal.closed.pod.ports, [ok], "a rule that denies it goes on to match");
    let refusal = convert::pod(&pod(json!({"metadata": {}, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "nowhere"}]}})));
    assert_eq!(refusal.expect_err("refused").error.field.to_string(), "status.podIPs[1].ip");
}

#[test]
fn every_namespace_has_the_label_of_its_name_whatever_it_says_itself() {
    let object =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "other"}}});
    let labels = convert::namespace(&serde_json::from_value::<Namespace>(object).expect("a namespace")).expect("good");
    assert_eq!(labels, [("kubernetes.io/metadata.name".to_owned(), "n".to_owned())].into());
}

#[test]
fn a_node_has_its_addresses_internal_first_and_one_range_per_family() {
    let node = |object: Value| convert::node(&serde_json::from_value::<Node>(object).expect("a node"));
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {"addresses": [{"type": "ExternalIP", "address": "9.9.9.9"}, {"type": "Hostname", "address": "n"},
            {"type": "InternalIP", "address": "172.18.0.2"}, {"type": "InternalIP", "address": "fc00::2"}]}});
    let good = node(object.clone()).expect("a good node");
    assert_eq!(good.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.18.0.2", "fc00::2", "9.9.9.9"]);
    assert_eq!(good.pod_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.0/24", "fd00:1::/64"]);
    let mut bad = object;
    bad["spec"]["podCIDRs"][1] = "fd00:1::".into();
    let refusal = node(bad).expect_err("refused");
    assert_eq!(refusal.error.field.to_string(), "spec.podCIDRs[1]");
    assert_eq!(refusal.error.problem, Problem::InvalidCidr("fd00:1::".into()));
    assert_eq!(refusal.closed.pod_ranges.len(), 1);
}
