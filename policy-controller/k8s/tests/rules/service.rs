//! Services: what they mean, and what is refused of them.

use super::index::{ip, object};
use palisade_identity::Protocol;
use palisade_k8s::Refusal;
use palisade_k8s::convert::{self, Family, ServiceParts, Target};
use palisade_service::model::{Service, ServiceKind, ServicePort, TrafficPolicy};
use serde_json::{Value, json};

fn convert(metadata: Value, spec: Value, status: Value) -> Result<ServiceParts, Refusal<ServiceParts>> {
    convert::service(&object("v1", "Service", json!({"metadata": metadata, "spec": spec, "status": status})))
}

/// A service with these fields beside one port.
fn with(fields: Value) -> Result<ServiceParts, Refusal<ServiceParts>> {
    let mut spec = json!({"ports": [{"port": 80}]});
    for (key, value) in fields.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    convert(json!({"namespace": "n", "name": "s"}), spec, Value::Null)
}

#[track_caller]
fn good(fields: Value) -> Service {
    with(fields).expect("a good service").service
}

/// What stands in the place of a service that is refused for `field`.
#[track_caller]
fn refused(fields: Value, field: &str, message: &str) -> ServiceParts {
    let refusal = with(fields).expect_err("refused");
    assert_eq!(refusal.error.field.to_string(), field, "{}", refusal.error);
    assert!(refusal.error.problem.to_string().contains(message), "{}", refusal.error);
    *refusal.closed
}

fn port(name: &str, protocol: Protocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.to_owned(), protocol, port, node_port }
}

#[test]
fn a_service_has_the_defaults_of_the_api_server() {
    let parts = with(json!({})).expect("a good service");
    let plain = Service {
        uid: None,
        created: None,
        kind: ServiceKind::Addressed,
        cluster_ips: vec![],
        external: [].into(),
        ports: vec![port("", Protocol::Tcp, 80, None)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
    };
    assert_eq!(parts.service, plain);
    assert_eq!((parts.targets, parts.families, parts.selector.len()), (vec![Target::Number(80)], vec![Family::V4], 0));
    // An empty text is none.
    let empty = json!({"type": "", "sessionAffinity": "", "clusterIP": "", "externalTrafficPolicy": "", "internalTrafficPolicy": ""});
    assert_eq!(good(empty), plain);
}

#[test]
fn a_service_knows_its_uid_and_when_it_was_made() {
    let metadata = json!({"namespace": "n", "name": "s", "uid": "u", "creationTimestamp": "2026-01-01T02:00:00+01:00"});
    let service = convert(metadata, json!({"ports": [{"port": 80}]}), Value::Null).expect("a good service").service;
    assert_eq!((service.uid.as_deref(), service.created.as_deref()), (Some("u"), Some("2026-01-01T01:00:00Z")));
}

#[test]
fn a_service_without_an_address_or_of_another_name_has_nothing_to_reach() {
    for headless in [json!({"clusterIP": "None"}), json!({"clusterIPs": ["None"]}), json!({"clusterIP": "None", "ports": []})] {
        let service = good(headless);
        assert_eq!((service.kind, service.cluster_ips.len()), (ServiceKind::Headless, 0));
    }
    let parts = with(json!({"type": "ExternalName", "externalName": "example.com.", "externalIPs": ["192.0.2.1"], "selector": {"a": "b"}}));
    let parts = parts.expect("a good service");
    assert_eq!((parts.service.kind, parts.service.external.len()), (ServiceKind::ExternalName, 0));
    assert_eq!((parts.selector.len(), parts.families.len()), (0, 0), "it has no endpoints either");
    refused(json!({"type": "ExternalName"}), "spec.externalName", "is missing");
    refused(json!({"type": "ExternalName", "externalName": "not a name"}), "spec.externalName", "no valid name");
    let rest = refused(json!({"type": "NodePort", "clusterIP": "None"}), "spec.type", "clusterIP is None");
    assert_eq!(rest.service.kind, ServiceKind::Headless);
}

#[test]
fn cluster_ips_are_the_list_or_else_the_one() {
    assert_eq!(good(json!({"clusterIP": "10.96.0.1"})).cluster_ips, [ip("10.96.0.1")]);
    let both = good(json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"]}));
    assert_eq!(both.cluster_ips, [ip("fd00::1"), ip("10.96.0.1")]);
    assert_eq!(good(json!({"clusterIP": "10.96.0.1", "clusterIPs": []})).cluster_ips, [ip("10.96.0.1")]);
    let rest = refused(json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}), "spec.clusterIPs[1]", "stands here already");
    assert_eq!(rest.service.cluster_ips, [ip("10.96.0.1")]);
    refused(json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2"]}), "spec.clusterIPs[0]", "must be what spec.clusterIP says");
}

#[test]
fn addresses_that_nobody_else_can_send_to_are_no_frontends() {
    let others =
        ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "fe80::1", "ff02::1", "::", "::ffff:10.0.0.1"];
    for other in others {
        let rest = refused(json!({"clusterIP": other}), "spec.clusterIP", "cannot be reached by others");
        assert!(rest.service.cluster_ips.is_empty());
        let rest = refused(json!({"externalIPs": [other, "192.0.2.1"]}), "spec.externalIPs[0]", "cannot be reached by others");
        assert_eq!(rest.service.external, [ip("192.0.2.1")].into());
    }
    for other in ["nowhere", "10.0.0.01", "10.0.0.0/8"] {
        refused(json!({"clusterIP": other}), "spec.clusterIP", "is no IP address");
    }
}

#[test]
fn a_load_balancers_addresses_count_unless_its_packets_come_by_the_nodes() {
    let external = |type_: &str, ingress: Value| {
        let spec = json!({"type": type_, "ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]});
        convert(json!({"namespace": "n", "name": "s"}), spec, json!({"loadBalancer": {"ingress": ingress}}))
    };
    let ingress =
        || json!([{"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "VIP"}, {"ip": "192.0.2.4", "ipMode": "Proxy"}, {"hostname": "h"}]);
    let all = external("LoadBalancer", ingress()).expect("a good service").service.external;
    assert_eq!(all, ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(ip).into());
    assert_eq!(external("NodePort", ingress()).expect("a good service").service.external, [ip("192.0.2.1")].into(), "not its own any more");
    let refusal = external("LoadBalancer", json!([{"ip": "192.0.2.2", "ipMode": "Else"}, {"ip": "::1"}])).expect_err("refused");
    assert_eq!(refusal.error.field.to_string(), "status.loadBalancer.ingress[0].ipMode");
    assert_eq!(refusal.closed.service.external, [ip("192.0.2.1")].into());
}

#[test]
fn ports_of_the_nodes_are_taken_where_the_type_has_them() {
    let ports = json!([{"port": 80, "nodePort": 30080}]);
    for type_ in ["NodePort", "LoadBalancer"] {
        assert_eq!(good(json!({"type": type_, "ports": ports})).ports, [port("", Protocol::Tcp, 80, Some(30080))]);
    }
    assert_eq!(good(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 0}]})).ports, [port("", Protocol::Tcp, 80, None)]);
    let rest = refused(json!({"ports": ports}), "spec.ports[0].nodePort", "type: NodePort or LoadBalancer");
    assert_eq!(rest.service.ports, [port("", Protocol::Tcp, 80, None)]);
    let twice = json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30080}]);
    let rest = refused(json!({"type": "NodePort", "ports": twice}), "spec.ports[1].nodePort", "30080/TCP stands here already");
    assert_eq!(rest.service.ports, [port("a", Protocol::Tcp, 80, Some(30080)), port("b", Protocol::Tcp, 81, None)]);
}

#[test]
fn a_port_leads_to_itself_or_to_the_number_or_name_that_it_says() {
    let ports = json!([
        {"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": 8081}, {"name": "c", "port": 82, "targetPort": "web"},
        {"name": "d", "port": 82, "protocol": "UDP", "targetPort": 0}, {"name": "e", "port": 83, "targetPort": ""},
    ]);
    let parts = with(json!({"ports": ports})).expect("a good service");
    let number = Target::Number;
    assert_eq!(parts.targets, [number(80), number(8081), Target::Name("web".to_owned()), number(82), number(83)]);
    assert_eq!(parts.service.ports[3], port("d", Protocol::Udp, 82, None));
}

#[test]
fn a_port_that_cannot_be_read_is_left_out() {
    let bad = [
        (json!({"name": "x", "port": 0}), "port", "is no port"),
        (json!({"name": "x", "port": 70000}), "port", "is no port"),
        (json!({"name": "x", "port": 1, "protocol": "ICMP"}), "protocol", "no protocol"),
        (json!({"name": "x", "port": 1, "targetPort": 70000}), "targetPort", "is no port"),
        (json!({"name": "x", "port": 1, "targetPort": "8080"}), "targetPort", "is no port name"),
        (json!({"name": "x", "port": 1, "nodePort": -1}), "nodePort", "is no port"),
        (json!({"port": 1}), "name", "is missing"),
        (json!({"name": "A b", "port": 1}), "name", "is no valid name"),
        (json!({"name": "a", "port": 1}), "name", "the name \"a\" stands here already"),
        (json!({"name": "x", "port": 80}), "port", "80/TCP stands here already"),
    ];
    for (one, field, message) in bad {
        let rest = refused(json!({"ports": [{"name": "a", "port": 80}, one]}), &format!("spec.ports[1].{field}"), message);
        assert_eq!(rest.service.ports, [port("a", Protocol::Tcp, 80, None)], "{message}");
        assert_eq!(rest.targets.len(), 1);
    }
    for none in [json!([]), Value::Null] {
        refused(json!({"ports": none}), "spec.ports", "is missing");
    }
}

#[test]
fn a_choice_that_does_not_exist_is_refused_and_its_default_stands() {
    let plain = good(json!({}));
    let bad = [
        ("type", "External", "ClusterIP, NodePort, LoadBalancer and ExternalName are"),
        ("internalTrafficPolicy", "local", "Cluster and Local are"),
        ("sessionAffinity", "Cookie", "None and ClientIP are"),
        ("ipFamilyPolicy", "Both", "SingleStack, PreferDualStack and RequireDualStack are"),
    ];
    for (field, value, message) in bad {
        assert_eq!(refused(json!({field: value}), &format!("spec.{field}"), message).service, plain);
    }
    let rest =
        refused(json!({"type": "NodePort", "externalTrafficPolicy": "Nearby"}), "spec.externalTrafficPolicy", "Cluster and Local are");
    assert_eq!(rest.service.external_policy, TrafficPolicy::Cluster);
    let rest = refused(json!({"selector": {"a b": "c"}}), "spec.selector.a b", "no valid label key");
    assert_eq!((rest.service, rest.selector.len()), (plain, 0));
}

#[test]
fn traffic_policies_are_cluster_or_local() {
    let local = good(json!({"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}));
    assert_eq!((local.internal_policy, local.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!(good(json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"})).external_policy, TrafficPolicy::Local);
    let rest = refused(json!({"externalTrafficPolicy": "Local"}), "spec.externalTrafficPolicy", "or externalIPs");
    assert_eq!(rest.service.external_policy, TrafficPolicy::Cluster, "nobody outside reaches it");
}

#[test]
fn a_client_stays_for_three_hours_unless_the_service_says_how_long() {
    let affinity =
        |seconds: Value| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    assert_eq!(good(json!({"sessionAffinity": "ClientIP"})).affinity, Some(10_800));
    assert_eq!(good(json!({"sessionAffinity": "None"})).affinity, None);
    for seconds in [1, 86_400] {
        assert_eq!(good(affinity(seconds.into())).affinity, u32::try_from(seconds).ok());
    }
    for seconds in [0, -1, 86_401] {
        let rest = refused(affinity(seconds.into()), "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "1 to 86400 seconds are");
        assert_eq!(rest.service.affinity, Some(10_800));
    }
}

#[test]
fn a_health_check_is_of_a_load_balancer_that_keeps_to_its_node() {
    let service =
        |type_: &str, policy: &str, port: i32| json!({"type": type_, "externalTrafficPolicy": policy, "healthCheckNodePort": port});
    assert_eq!(good(service("LoadBalancer", "Local", 32000)).health_check_node_port, Some(32000));
    assert_eq!(good(service("LoadBalancer", "Cluster", 0)).health_check_node_port, None);
    for (type_, policy) in [("LoadBalancer", "Cluster"), ("NodePort", "Local")] {
        let rest = refused(service(type_, policy, 32000), "spec.healthCheckNodePort", "externalTrafficPolicy: Local");
        assert_eq!(rest.service.health_check_node_port, None);
    }
    refused(service("LoadBalancer", "Local", 70000), "spec.healthCheckNodePort", "is no port");
}

#[test]
fn families_are_those_that_are_listed_or_written_and_both_where_both_are_wanted() {
    let families = |fields: Value| with(fields).expect("a good service").families;
    let [v4, v6] = [Family::V4, Family::V6];
    assert_eq!(families(json!({})), [v4]);
    assert_eq!(families(json!({"ipFamilies": ["IPv6"]})), [v6]);
    assert_eq!(families(json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"})), [v6]);
    assert_eq!(families(json!({"ipFamilies": ["IPv6", "IPv4"]})), [v6, v4]);
    for both in ["PreferDualStack", "RequireDualStack"] {
        assert_eq!(families(json!({"ipFamilyPolicy": both})), [v4, v6]);
        assert_eq!(families(json!({"ipFamilyPolicy": both, "ipFamilies": ["IPv6"]})), [v6, v4]);
    }
    assert_eq!(families(json!({"clusterIP": "fd00::1"})), [v6], "that of the address");
    refused(json!({"ipFamilies": ["IPv5"]}), "spec.ipFamilies[0]", "IPv4 and IPv6 are");
    refused(json!({"ipFamilies": ["IPv4", "IPv4"]}), "spec.ipFamilies[1]", "stands here already");
    refused(json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}), "spec.ipFamilyPolicy", "one family");
    refused(json!({"ipFamilies": ["IPv4"], "clusterIP": "fd00::1"}), "spec.ipFamilies", "fd00::1 is of another family");
}
