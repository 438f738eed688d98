//! EndpointSlices: what they mean, and what is refused of them.

use super::index::{ip, object};
use palisade_identity::Protocol;
use palisade_k8s::convert::{SliceParts, endpoint_slice};
use palisade_k8s::{Problem, Refusal};
use palisade_policy::model::ObjectName;
use palisade_service::model::{Endpoint, SlicePort};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The slice `n/e` of the service `n/s` with these ports and endpoints.
fn slice(family: &str, ports: Value, endpoints: Value) -> Result<SliceParts, Refusal<SliceParts>> {
    let metadata = json!({"namespace": "n", "name": "e", "labels": {"kubernetes.io/service-name": "s"}});
    let slice = json!({"metadata": metadata, "addressType": family, "ports": ports, "endpoints": endpoints});
    endpoint_slice(&object("discovery.k8s.io/v1", "EndpointSlice", slice))
}

#[track_caller]
fn endpoint(written: Value) -> Endpoint {
    slice("IPv4", json!([]), json!([written])).expect("a good slice").slice.endpoints.remove(0)
}

fn addresses(parts: &SliceParts) -> Vec<IpAddr> {
    parts.slice.endpoints.iter().map(|endpoint| endpoint.address).collect()
}

#[test]
fn a_slice_belongs_to_the_service_that_its_label_names_in_its_namespace() {
    assert_eq!(slice("IPv4", json!([]), json!([])).expect("a good slice").service, Some(ObjectName::new("n", "s")));
    for labels in [json!({}), json!({"kubernetes.io/service-name": ""}), json!({"app": "s"})] {
        let slice = json!({"metadata": {"namespace": "n", "name": "e", "labels": labels}, "addressType": "IPv4", "endpoints": []});
        let parts = endpoint_slice(&object("discovery.k8s.io/v1", "EndpointSlice", slice));
        assert_eq!(parts.expect("a good slice").service, None);
    }
}

#[test]
fn a_condition_that_is_not_told_is_taken_for_the_better() {
    let conditions = |conditions: Value| {
        let endpoint = endpoint(json!({"addresses": ["10.0.0.1"], "conditions": conditions}));
        (endpoint.ready, endpoint.serving, endpoint.terminating)
    };
    assert_eq!(conditions(Value::Null), (true, true, false));
    assert_eq!(conditions(json!({})), (true, true, false));
    assert_eq!(conditions(json!({"ready": false})), (false, false, false), "serving is what ready is");
    assert_eq!(conditions(json!({"ready": false, "serving": true, "terminating": true})), (false, true, true));
    assert_eq!(conditions(json!({"serving": false})), (true, false, false));
}

#[test]
fn an_endpoint_is_its_first_address_with_its_node_and_hints() {
    let whole = json!({
        "addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": "a",
        "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "a"}]},
    });
    let endpoint_of = endpoint(whole);
    assert_eq!((endpoint_of.address, endpoint_of.node.as_deref()), (ip("10.0.0.1"), Some("a")));
    assert_eq!(endpoint_of.zones, ["z1".to_owned(), "z2".to_owned()].into());
    assert_eq!(endpoint_of.nodes, ["a".to_owned()].into());
    let bare = endpoint(json!({"addresses": ["10.0.0.1"], "nodeName": ""}));
    assert_eq!((bare.node, bare.zones.len(), bare.nodes.len()), (None, 0, 0));
}

#[test]
fn a_port_has_no_name_and_is_tcp_unless_it_says_so_and_without_a_number_it_is_none() {
    let ports = json!([{"port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}, {"name": "any"}]);
    let port = |name: &str, protocol, port| SlicePort { name: name.to_owned(), protocol, port };
    let parts = slice("IPv4", ports, json!([])).expect("a good slice");
    assert_eq!(parts.slice.ports, [port("", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)]);
    assert_eq!(slice("IPv4", Value::Null, json!([])).expect("a good slice").slice.ports, []);
}

#[test]
fn what_cannot_be_read_of_a_slice_is_left_out_and_reported() {
    #[track_caller]
    fn refused(ports: Value, endpoints: Value, field: &str) -> SliceParts {
        let refusal = slice("IPv4", ports, endpoints).expect_err("refused");
        assert_eq!(refusal.error.field.to_string(), field);
        *refusal.closed
    }
    let ports = [(json!({"port": 0}), "port"), (json!({"port": 70000}), "port"), (json!({"port": 1, "protocol": "ICMP"}), "protocol")];
    for (port, field) in ports {
        let rest = refused(json!([port, {"port": 80}]), json!([]), &format!("ports[0].{field}"));
        assert_eq!(rest.slice.ports.len(), 1);
    }
    let others = ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "10.0.0.01", "nowhere", ""];
    for other in others {
        let endpoints = json!([{"addresses": [other]}, {"addresses": ["10.0.0.1"]}]);
        let rest = refused(json!([{"port": 80}]), endpoints, "endpoints[0].addresses[0]");
        assert_eq!((rest.slice.ports.len(), addresses(&rest)), (1, vec![ip("10.0.0.1")]), "{other}");
    }
    assert_eq!(addresses(&refused(json!([]), json!([{"addresses": []}, {"addresses": ["10.0.0.1"]}]), "endpoints[0].addresses")).len(), 1);
    for other in ["::1", "fe80::1", "ff02::1", "::", "::ffff:10.0.0.1", "10.0.0.1"] {
        let refusal = slice("IPv6", json!([]), json!([{"addresses": ["fd00::1"]}, {"addresses": [other]}])).expect_err("refused");
        assert_eq!(addresses(&refusal.closed), [ip("fd00::1")], "{other}");
    }
}

#[test]
fn endpoints_by_domain_name_are_none_and_reported() {
    let endpoints = || json!([{"addresses": ["example.com"]}]);
    let refusal = slice("FQDN", json!([{"port": 80}]), endpoints()).expect_err("refused");
    assert_eq!((refusal.error.field.to_string().as_str(), &refusal.error.problem), ("addressType", &Problem::DomainNameEndpoints));
    assert_eq!((refusal.closed.service, refusal.closed.slice), (Some(ObjectName::new("n", "s")), Default::default()));
    assert!(slice("ipv4", json!([]), endpoints()).expect_err("refused").error.to_string().contains("IPv4 and IPv6 are"));
}
