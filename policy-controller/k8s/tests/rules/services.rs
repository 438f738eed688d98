//! The index of services: which there are, what stands behind them, and what is made up for files.

use super::index::{ip, n, namespace, object, pod, service, slice, with_uid};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use palisade_k8s::index::{Index, Instead, Kind};
use palisade_service::model::{Place, Slice};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

const EARLY: &str = "2026-01-01T00:00:00Z";

/// The slices of the service `n/NAME`.
fn slices(index: &Index, name: &str) -> BTreeMap<String, Slice> {
    index.services().slices.get(&n(name)).map(|slices| BTreeMap::clone(slices)).unwrap_or_default()
}

fn slice_names(index: &Index, name: &str) -> Vec<String> {
    slices(index, name).into_keys().collect()
}

fn endpoints(slice: &Slice) -> Vec<IpAddr> {
    slice.endpoints.iter().map(|endpoint| endpoint.address).collect()
}

fn cluster_ips(index: &Index, name: &str) -> Vec<IpAddr> {
    index.services().services.get(&n(name)).map(|service| service.cluster_ips.clone()).unwrap_or_default()
}

#[test]
fn a_service_and_its_slices_are_objects_of_their_own_that_come_and_go_in_any_order() {
    let mut index = Index::new();
    assert!(index.upsert(&slice("e", "s", "10.0.0.1")), "a slice waits for its service");
    assert!(index.upsert(&service("s", "10.96.0.1", "x")));
    assert!(!index.upsert(&service("s", "10.96.0.1", "x")) && !index.upsert(&slice("e", "s", "10.0.0.1")), "nothing is different");
    assert!(index.delete(&service("s", "10.96.0.1", "x")));
    assert_eq!((cluster_ips(&index, "s"), slice_names(&index, "s")), (vec![], vec!["e".to_owned()]));
    assert!(index.delete(&slice("e", "s", "10.0.0.1")));
    assert!(!index.delete(&slice("e", "s", "10.0.0.1")));
    assert_eq!(index.services(), Index::new().services());
}

#[test]
fn a_slice_that_is_another_services_now_is_none_of_the_first() {
    let mut index = Index::new();
    index.upsert(&slice("e", "s", "10.0.0.1"));
    index.upsert(&slice("f", "s", "10.0.0.2"));
    assert!(index.upsert(&slice("e", "t", "10.0.0.1")));
    assert_eq!((slice_names(&index, "s"), slice_names(&index, "t")), (vec!["f".to_owned()], vec!["e".to_owned()]));
}

#[test]
fn a_late_delete_of_an_older_object_of_the_same_name_changes_nothing() {
    let mut index = Index::new();
    let new = Some("2");
    index.upsert(&with_uid(service("s", "10.96.0.1", "x"), new));
    index.upsert(&with_uid(slice("e", "s", "10.0.0.1"), new));
    assert!(!index.delete(&with_uid(service("s", "10.96.0.1", "x"), Some("1"))));
    assert!(!index.delete(&with_uid(slice("e", "s", "10.0.0.1"), Some("1"))));
    assert_eq!((cluster_ips(&index, "s").len(), slices(&index, "s").len()), (1, 1));
    assert!(index.delete(&with_uid(service("s", "10.96.0.1", "x"), new)) && index.delete(&with_uid(slice("e", "s", "10.0.0.1"), new)));
}

#[test]
fn a_resync_forgets_services_and_slices_that_are_gone() {
    let mut index = Index::new();
    index.resync(&[service("s", "10.96.0.1", "x"), service("t", "10.96.0.2", "x")]);
    index.resync(&[slice("e", "s", "10.0.0.1"), slice("f", "s", "10.0.0.2")]);
    assert!(index.holds(Kind::Service) && index.holds(Kind::EndpointSlice));
    assert!(index.resync(&[service("t", "10.96.0.2", "x")]) && index.resync(&[slice("f", "s", "10.0.0.2")]));
    assert_eq!(index.services().services.keys().collect::<Vec<_>>(), [&n("t")]);
    assert_eq!(slice_names(&index, "s"), ["f"]);
    assert!(index.resync::<Service>([]) && index.resync::<EndpointSlice>([]));
    assert!(!index.holds(Kind::Service) && !index.holds(Kind::EndpointSlice));
}

#[test]
fn the_rest_of_a_refused_service_or_slice_is_used_and_it_is_listed() {
    let mut index = Index::new();
    index.upsert(&service("s", "127.0.0.1", "x"));
    index.upsert(&slice("e", "s", "127.0.0.1"));
    let refused: Vec<_> = index.refused().into_iter().map(|refused| (refused.kind, refused.object, refused.instead)).collect();
    let readable = |kind, name: &str| (kind, name.to_owned(), Instead::Readable);
    assert_eq!(refused, [readable(Kind::Service, "n/s"), readable(Kind::EndpointSlice, "n/e")]);
    assert_eq!((index.services().services[&n("s")].ports.len(), slices(&index, "s")["e"].ports.len()), (1, 1));
    index.upsert(&service("s", "10.96.0.1", "x"));
    index.upsert(&slice("e", "s", "10.0.0.1"));
    assert_eq!(index.refused(), []);
}

#[test]
fn a_service_that_another_proxy_serves_is_not_there() {
    for label in ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"] {
        let mut index = Index::new();
        let mut other = service("s", "10.96.0.1", "x");
        other.metadata.labels = Some([(label.to_owned(), String::new())].into());
        assert!(!index.upsert(&other));
        assert!(index.upsert(&service("s", "10.96.0.1", "x")));
        assert!(index.upsert(&other));
        assert!(index.services().services.is_empty(), "also where it was not so before");
    }
}

#[test]
fn services_change_nothing_of_the_model_and_tell_the_api_servers_addresses_all_the_same() {
    let mut index = Index::new();
    index.upsert(&namespace("n", "x"));
    let before = index.model();
    index.upsert(&service("s", "10.96.0.1", "x"));
    index.upsert(&slice("e", "s", "10.0.0.1"));
    assert_eq!(index.model(), before);
    let mut kubernetes = slice("kubernetes", "kubernetes", "192.0.2.1");
    kubernetes.metadata.namespace = Some("default".to_owned());
    assert!(index.upsert(&kubernetes));
    assert_eq!(index.model().api_servers, [ip("192.0.2.1")].into());
    assert_eq!(index.services().slices.len(), 2, "it is a service like any other, too");
    assert!(index.resync(&[slice("e", "s", "10.0.0.1")]));
    assert_eq!((index.model(), index.services().slices.len()), (before, 1));
}

#[test]
fn the_place_is_this_nodes_name_zone_and_addresses() {
    let node = |name: &str, zone: &str| -> Node {
        let metadata = json!({"name": name, "labels": {"topology.kubernetes.io/zone": zone}});
        let addresses = json!([{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "x"}, {"type": "ExternalIP", "address": "2001:db8::1"}]);
        object("v1", "Node", json!({"metadata": metadata, "status": {"addresses": addresses}}))
    };
    let mut index = Index::new();
    index.set_host("here", &[]);
    let bare = Place { node: "here".to_owned(), ..Place::default() };
    assert_eq!(index.services().place, bare);
    index.upsert(&node("there", "z2"));
    assert_eq!(index.services().place, bare);
    index.upsert(&node("here", "z1"));
    let place = Place { node: "here".to_owned(), zone: Some("z1".to_owned()), addresses: [ip("192.0.2.1"), ip("2001:db8::1")].into() };
    assert_eq!(index.services().place, place);
    index.upsert(&node("here", ""));
    assert_eq!(index.services().place, Place { zone: None, ..place });
    index.delete(&node("here", ""));
    assert_eq!(index.services().place, bare);
    let own = palisade_policy::model::Node { addresses: vec![ip("192.0.2.9")], ..Default::default() };
    index.set_nodes([("here".to_owned(), own)].into());
    assert_eq!(index.services().place, Place { addresses: [ip("192.0.2.9")].into(), ..bare }, "a source without Node objects");
}

/// A pod `n/NAME` with the label `app: APP`, these addresses, and a port `web` of this number, where it has one.
fn pod_of(app: &str, name: &str, addresses: &[&str], web: Option<i32>) -> Pod {
    let ports: Vec<Value> = web.iter().map(|number| json!({"name": "web", "containerPort": number})).collect();
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let metadata = json!({"namespace": "n", "name": name, "labels": {"app": app, "more": "labels"}});
    let spec = json!({"containers": [{"name": "c", "ports": ports}]});
    object("v1", "Pod", json!({"metadata": metadata, "spec": spec, "status": {"phase": "Running", "podIPs": addresses}}))
}

#[test]
fn a_derived_endpoint_is_on_the_node_that_its_pod_says() {
    let mut index = Index::new();
    index.set_host("here", &[]);
    index.upsert(&namespace("n", "x"));
    let mut elsewhere = pod_of("s", "a", &["10.0.0.1"], None);
    elsewhere.spec.get_or_insert_default().node_name = Some("there".to_owned());
    index.upsert(&elsewhere);
    index.upsert(&pod_of("s", "b", &[], None));
    index.set_local_addresses(&palisade_policy::model::ObjectName::new("n", "b"), None, vec![ip("10.0.0.2")]);
    index.upsert(&pod_of("s", "c", &["10.0.0.3"], None));
    index.upsert(&selecting("s", json!({})));
    index.derive_endpoints();
    let services = index.services();
    let endpoints = services.slices.values().flat_map(|slices| slices.values()).flat_map(|slice| &slice.endpoints);
    let nodes: Vec<(String, Option<&str>)> = endpoints.map(|endpoint| (endpoint.address.to_string(), endpoint.node.as_deref())).collect();
    assert_eq!(nodes, [("10.0.0.1".to_owned(), Some("there")), ("10.0.0.2".to_owned(), Some("here")), ("10.0.0.3".to_owned(), None)]);
}

/// The service `n/NAME` with a selector and these other fields.
fn selecting(name: &str, fields: Value) -> Service {
    let mut spec = json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]});
    for (key, value) in fields.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    object("v1", "Service", json!({"metadata": {"namespace": "n", "name": name}, "spec": spec}))
}

#[test]
fn the_endpoints_of_a_service_of_files_are_the_pods_that_its_selector_matches() {
    let mut index = Index::new();
    index.upsert(&selecting("a", json!({})));
    assert!(!index.derive_endpoints());
    index.resync(&[
        pod_of("a", "p2", &["10.0.0.2"], None),
        pod_of("a", "p1", &["10.0.0.1", "fd00::1"], None),
        pod_of("b", "q", &["10.0.0.3"], None),
    ]);
    let mut elsewhere = pod_of("a", "p3", &["10.0.0.4"], None);
    elsewhere.metadata.namespace = Some("other".to_owned());
    index.upsert(&elsewhere);
    let model = index.model();
    assert!(index.derive_endpoints());
    assert!(!index.derive_endpoints(), "nothing is different");
    assert_eq!(index.model(), model);
    let derived = slices(&index, "a");
    assert_eq!(derived.keys().collect::<Vec<_>>(), ["a-derived-v4-0"]);
    let slice = &derived["a-derived-v4-0"];
    assert_eq!((endpoints(slice), slice.ports[0].port, slice.ports[0].name.as_str()), (vec![ip("10.0.0.1"), ip("10.0.0.2")], 8080, ""));
    assert!(slice.endpoints.iter().all(|endpoint| endpoint.ready && endpoint.serving && !endpoint.terminating && endpoint.node.is_none()));
    // With the pods, the service or its selector gone, so are they.
    index.resync::<Pod>([]);
    assert!(index.derive_endpoints());
    assert_eq!(slice_names(&index, "a"), [""; 0]);
    index.upsert(&pod_of("a", "p1", &["10.0.0.1"], None));
    index.derive_endpoints();
    index.upsert(&selecting("a", json!({"selector": {}})));
    assert!(index.derive_endpoints(), "a service without a selector has none but written ones");
    index.upsert(&selecting("a", json!({})));
    index.derive_endpoints();
    index.delete(&selecting("a", json!({})));
    assert!(!index.derive_endpoints());
    assert!(index.services().slices.is_empty());
}

#[test]
fn a_pod_is_an_endpoint_when_its_address_is_known_until_it_has_finished() {
    let mut index = Index::new();
    index.set_host("here", &[]);
    index.upsert(&selecting("a", json!({})));
    index.upsert(&pod_of("a", "p", &[], None));
    assert!(!index.derive_endpoints());
    index.set_local_addresses(&n("p"), None, vec![ip("10.0.0.7")]);
    assert!(index.derive_endpoints());
    let endpoint = slices(&index, "a")["a-derived-v4-0"].endpoints[0].clone();
    assert_eq!((endpoint.address, endpoint.node.as_deref()), (ip("10.0.0.7"), Some("here")), "it is realised here");
    let mut host = pod_of("a", "h", &["192.0.2.1"], None);
    host.spec.get_or_insert_default().host_network = Some(true);
    index.upsert(&host);
    let mut done = pod_of("a", "done", &["10.0.0.9"], None);
    done.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    index.upsert(&done);
    let mut ending = pod_of("a", "z", &["10.0.0.8"], None);
    ending.metadata.deletion_timestamp = pod("x", "", EARLY, "").metadata.creation_timestamp;
    index.upsert(&ending);
    assert!(index.derive_endpoints());
    let slice = slices(&index, "a").remove("a-derived-v4-0").expect("a slice");
    assert_eq!(endpoints(&slice), [ip("192.0.2.1"), ip("10.0.0.7"), ip("10.0.0.8")], "one of the node's network too");
    let last = &slice.endpoints[2];
    assert_eq!((last.ready, last.serving, last.terminating), (false, true, true));
    index.clear_local_addresses(&n("p"), None);
    assert!(index.derive_endpoints());
}

#[test]
fn a_named_port_is_resolved_in_each_pod_and_pods_that_have_it_elsewhere_are_in_another_slice() {
    let mut index = Index::new();
    let ports = json!([{"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 81}]);
    index.upsert(&selecting("a", json!({"ports": ports})));
    let pods = [("p1", "10.0.0.1", Some(8080)), ("p2", "10.0.0.2", Some(9090)), ("p3", "10.0.0.3", Some(8080)), ("p4", "10.0.0.4", None)];
    for (name, address, web) in pods {
        index.upsert(&pod_of("a", name, &[address], web));
    }
    index.derive_endpoints();
    let shown: Vec<_> = slices(&index, "a")
        .into_iter()
        .map(|(name, slice)| {
            let ports: Vec<_> = slice.ports.iter().map(|port| (port.name.clone(), port.port)).collect();
            (name, ports, endpoints(&slice))
        })
        .collect();
    let slice = |number: u8, http: Option<u16>, addresses: &[&str]| {
        let http = http.map(|port| ("http".to_owned(), port));
        let ports: Vec<_> = http.into_iter().chain([("admin".to_owned(), 81)]).collect();
        (format!("a-derived-v4-{number}"), ports, addresses.iter().map(|address| ip(address)).collect::<Vec<_>>())
    };
    let expected = [slice(0, None, &["10.0.0.4"]), slice(1, Some(8080), &["10.0.0.1", "10.0.0.3"]), slice(2, Some(9090), &["10.0.0.2"])];
    assert_eq!(shown, expected);
    // A name that is another protocol's, or nobody's.
    index.upsert(&selecting("a", json!({"ports": [{"port": 80, "protocol": "UDP", "targetPort": "web"}]})));
    index.derive_endpoints();
    assert_eq!(slice_names(&index, "a"), [""; 0]);
}

#[test]
fn each_family_of_a_service_has_slices_of_its_own() {
    let mut index = Index::new();
    index.upsert(&pod_of("a", "p", &["10.0.0.1", "fd00::1"], None));
    index.upsert(&selecting("a", json!({"ipFamilyPolicy": "RequireDualStack"})));
    index.derive_endpoints();
    assert_eq!(slice_names(&index, "a"), ["a-derived-v4-0", "a-derived-v6-0"]);
    assert_eq!(endpoints(&slices(&index, "a")["a-derived-v6-0"]), [ip("fd00::1")]);
    index.upsert(&selecting("a", json!({"ipFamilies": ["IPv6"]})));
    index.derive_endpoints();
    assert_eq!(slice_names(&index, "a"), ["a-derived-v6-0"]);
}

#[test]
fn a_written_slice_takes_the_place_of_derived_ones() {
    let mut index = Index::new();
    index.upsert(&pod_of("a", "p", &["10.0.0.1"], None));
    index.upsert(&selecting("a", json!({})));
    index.derive_endpoints();
    index.upsert(&slice("e", "a", "10.0.0.2"));
    assert_eq!(slice_names(&index, "a"), ["e"]);
    assert!(!index.derive_endpoints());
    index.delete(&slice("e", "a", "10.0.0.2"));
    assert_eq!(slice_names(&index, "a"), [""; 0]);
    assert!(index.derive_endpoints());
    assert_eq!(slice_names(&index, "a"), ["a-derived-v4-0"]);
}

fn assign(index: &mut Index, ranges: &[&str]) -> bool {
    let ranges: Vec<_> = ranges.iter().map(|range| range.parse().expect("a range")).collect();
    index.assign_cluster_ips(&ranges)
}

#[test]
fn services_without_an_address_get_one_by_the_order_of_their_names() {
    let mut index = Index::new();
    index.upsert(&selecting("b", json!({})));
    index.upsert(&selecting("a", json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]})));
    index.upsert(&selecting("c", json!({"clusterIP": "10.96.0.2"})));
    index.upsert(&selecting("d", json!({"clusterIP": "None"})));
    index.upsert(&selecting("e", json!({"type": "ExternalName", "externalName": "x"})));
    index.upsert(&selecting("f", json!({"type": "NodePort", "externalIPs": ["10.96.0.4"]})));
    let model = index.model();
    assert!(assign(&mut index, &["10.96.0.0/24", "fd00:96::/112"]));
    assert!(!assign(&mut index, &["10.96.0.0/24", "fd00:96::/112"]), "nothing is different");
    assert_eq!(index.model(), model);
    assert_eq!(cluster_ips(&index, "a"), [ip("fd00:96::1"), ip("10.96.0.1")], "in the order of its families");
    assert_eq!(cluster_ips(&index, "b"), [ip("10.96.0.3")], "what is taken is passed over");
    assert_eq!(cluster_ips(&index, "c"), [ip("10.96.0.2")]);
    assert_eq!((cluster_ips(&index, "d"), cluster_ips(&index, "e")), (vec![], vec![]));
    assert_eq!(cluster_ips(&index, "f"), [ip("10.96.0.5")]);
    // Its own from now on.
    index.upsert(&selecting("b", json!({"clusterIP": "10.96.0.9"})));
    assert_eq!(cluster_ips(&index, "b"), [ip("10.96.0.9")]);
}

#[test]
fn a_service_keeps_its_address_whatever_comes_and_goes_and_a_new_one_gets_the_first_free() {
    let ranges = ["10.96.0.0/24", "fd00:96::/112"];
    let mut index = Index::new();
    for name in ["b", "c"] {
        index.upsert(&selecting(name, json!({})));
    }
    assign(&mut index, &ranges);
    index.upsert(&selecting("a", json!({})));
    assert!(assign(&mut index, &ranges));
    let three = ["a", "b", "c"].map(|name| cluster_ips(&index, name));
    assert_eq!(three, [[ip("10.96.0.3")], [ip("10.96.0.1")], [ip("10.96.0.2")]], "one that sorts early shifts nobody");
    index.delete(&selecting("b", json!({})));
    assert!(!assign(&mut index, &ranges), "nobody moves into what is free");
    index.upsert(&selecting("d", json!({})));
    assign(&mut index, &ranges);
    assert_eq!((cluster_ips(&index, "d"), cluster_ips(&index, "c")), (vec![ip("10.96.0.1")], vec![ip("10.96.0.2")]));
    // An edit of other fields, and one that asks for more.
    index.upsert(&selecting("c", json!({"ports": [{"port": 81}]})));
    assert_eq!(cluster_ips(&index, "c"), [ip("10.96.0.2")], "also before the next assignment");
    index.upsert(&selecting("c", json!({"ipFamilyPolicy": "PreferDualStack"})));
    assign(&mut index, &ranges);
    assert_eq!(cluster_ips(&index, "c"), [ip("10.96.0.2"), ip("fd00:96::1")]);
    // What is written goes before what was given.
    index.upsert(&selecting("e", json!({"clusterIP": "10.96.0.2"})));
    assert!(assign(&mut index, &ranges));
    assert_eq!((cluster_ips(&index, "c"), cluster_ips(&index, "e")), (vec![ip("10.96.0.4"), ip("fd00:96::1")], vec![ip("10.96.0.2")]));
    // Who wants none has none, and then the first free one.
    index.upsert(&selecting("a", json!({"clusterIP": "None"})));
    assert_eq!(cluster_ips(&index, "a"), [] as [IpAddr; 0]);
    assign(&mut index, &ranges);
    index.upsert(&selecting("a0", json!({})));
    assign(&mut index, &ranges);
    assert_eq!(cluster_ips(&index, "a0"), [ip("10.96.0.3")]);
}

#[test]
fn where_the_ranges_are_used_up_a_service_goes_without_an_address() {
    let mut index = Index::new();
    for name in ["a", "b", "c"] {
        index.upsert(&selecting(name, json!({})));
    }
    assert!(assign(&mut index, &["10.96.0.0/30"]));
    assert_eq!(["a", "b", "c"].map(|name| cluster_ips(&index, name)), [vec![ip("10.96.0.1")], vec![ip("10.96.0.2")], vec![]]);
    assert!(assign(&mut index, &["10.96.0.0/30", "10.97.0.0/30"]));
    assert_eq!(cluster_ips(&index, "c"), [ip("10.97.0.1")]);
    assert!(assign(&mut index, &["fd00:96::/112"]));
    assert!(cluster_ips(&index, "a").is_empty());
    let own = palisade_policy::model::Node { addresses: vec![ip("10.96.0.1")], ..Default::default() };
    index.set_nodes([("here".to_owned(), own)].into());
    assign(&mut index, &["10.96.0.0/30"]);
    assert_eq!(cluster_ips(&index, "a"), [ip("10.96.0.2")], "nor has it a node's");
}
