//! The index: its model is a function of the present objects.

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_k8s::api::{ClusterNetworkPolicy, Identity, IdentityPolicy};
use palisade_k8s::index::{Index, Instead, Kind, Realisable, Refused};
use palisade_k8s::survey::Fault;
use palisade_policy::model::{self, Model, ObjectName, PolicyKind};
use palisade_service::model::Services;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

pub fn object<T: serde::de::DeserializeOwned>(version: &str, kind: &str, mut object: Value) -> T {
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    serde_json::from_value(object).expect("a decodable object")
}

pub fn namespace(name: &str, label: &str) -> Namespace {
    object("v1", "Namespace", json!({"metadata": {"name": name, "labels": {"l": label}}}))
}

pub fn node(name: &str, address: &str) -> Node {
    object("v1", "Node", json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}))
}

/// A running pod `n/NAME`.
pub fn pod(name: &str, uid: &str, created: &str, address: &str) -> Pod {
    let metadata = json!({"namespace": "n", "name": name, "uid": uid, "creationTimestamp": created, "labels": {"uid": uid}});
    object("v1", "Pod", json!({"metadata": metadata, "status": {"phase": "Running", "podIPs": [{"ip": address}]}}))
}

/// The policy `n/NAME` that lets `port` in to the pods that are labelled `a: subject`.
pub fn policy(name: &str, subject: &str, port: i32) -> NetworkPolicy {
    let spec = json!({"podSelector": {"matchLabels": {"a": subject}}, "ingress": [{"ports": [{"port": port}]}]});
    object("networking.k8s.io/v1", "NetworkPolicy", json!({"metadata": {"namespace": "n", "name": name}, "spec": spec}))
}

/// The addresses of the API server.
fn api_server(name: &str, address: &str) -> EndpointSlice {
    let metadata = json!({"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "kubernetes"}});
    object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        json!({"metadata": metadata, "addressType": "IPv4", "endpoints": [{"addresses": [address]}]}),
    )
}

/// The slice `n/NAME` with one endpoint of the service `n/SERVICE`.
pub fn slice(name: &str, service: &str, address: &str) -> EndpointSlice {
    let metadata = json!({"namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": service}});
    let slice = json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": [address]}]});
    object("discovery.k8s.io/v1", "EndpointSlice", slice)
}

/// The service `n/NAME` of the pods whose label `uid` is `selected`; without a cluster IP where that is empty.
pub fn service(name: &str, cluster_ip: &str, selected: &str) -> Service {
    let spec = json!({"clusterIP": cluster_ip, "selector": {"uid": selected}, "ports": [{"port": 80, "targetPort": 8080}]});
    object("v1", "Service", json!({"metadata": {"namespace": "n", "name": name}, "spec": spec}))
}

pub fn identity(name: &str, entity: &str) -> Identity {
    object("palisade.dev/v1alpha1", "Identity", json!({"metadata": {"name": name}, "spec": {"entities": [entity]}}))
}

pub fn identity_policy(name: &str, subject: &str, port: i32) -> IdentityPolicy {
    let rule = json!({"action": "Allow", "ports": [{"port": port}]});
    let spec = json!({"subject": {"pods": {"matchLabels": {"a": subject}}}, "ingress": [rule]});
    object("palisade.dev/v1alpha1", "IdentityPolicy", json!({"metadata": {"namespace": "n", "name": name}, "spec": spec}))
}

pub fn cluster_policy(name: &str, priority: i32, action: &str) -> ClusterNetworkPolicy {
    let rule = json!({"action": action, "from": [{"namespaces": {}}]});
    let spec = json!({"tier": "Admin", "priority": priority, "subject": {"namespaces": {}}, "ingress": [rule]});
    object("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", json!({"metadata": {"name": name}, "spec": spec}))
}

/// The object under a UID, or under none.
pub fn with_uid<K: Metadata<Ty = ObjectMeta>>(mut object: K, uid: Option<&str>) -> K {
    object.metadata_mut().uid = uid.map(str::to_owned);
    object
}

pub fn n(name: &str) -> ObjectName {
    ObjectName::new("n", name)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn addresses(index: &Index, name: &str) -> Vec<IpAddr> {
    index.model().pods.get(&n(name)).map(|pod| pod.addresses.clone()).unwrap_or_default()
}

pub const EARLY: &str = "2026-01-01T00:00:00Z";
pub const LATE: &str = "2026-01-02T00:00:00Z";

#[test]
fn it_is_synced_when_every_kind_has_been_seen_whole_once() {
    let mut index = Index::new();
    assert_eq!(index.not_synced(), Kind::ALL);
    index.upsert(&namespace("n", "x"));
    assert!(!index.resync_end::<Namespace>(), "an end without a beginning");
    assert_eq!(index.not_synced(), Kind::ALL);
    assert!(index.resync::<Namespace>(&[]), "the first time counts, also when it is empty");
    assert!(!index.resync::<Namespace>(&[]));
    index.resync::<Pod>(&[]);
    index.resync::<Service>(&[]);
    index.resync::<EndpointSlice>(&[]);
    index.resync::<Identity>(&[]);
    index.resync::<NetworkPolicy>(&[]);
    index.resync::<IdentityPolicy>(&[]);
    index.resync::<ClusterNetworkPolicy>(&[]);
    assert_eq!(index.not_synced(), [Kind::Node]);
    index.set_nodes([("a".to_owned(), model::Node::default())].into());
    assert!(index.synced());
}

#[test]
fn a_resync_forgets_what_is_gone_and_nothing_before_it_ends() {
    let mut index = Index::new();
    index.resync(&[pod("a", "1", EARLY, "10.0.0.1"), pod("b", "2", EARLY, "10.0.0.2")]);
    index.resync_begin::<Pod>();
    index.upsert(&pod("c", "3", EARLY, "10.0.0.3"));
    assert_eq!(index.model().pods.len(), 3);
    // The watch breaks off and begins again.
    index.resync_begin::<Pod>();
    index.upsert(&pod("b", "2", EARLY, "10.0.0.2"));
    assert!(index.resync_end::<Pod>());
    assert_eq!(index.model().pods.keys().collect::<Vec<_>>(), [&n("b")]);
    assert!(!index.resync(&[pod("b", "2", EARLY, "10.0.0.2")]), "nothing is different");
}

#[test]
fn an_upsert_that_changes_nothing_that_policy_needs_says_so() {
    let mut index = Index::new();
    let mut first = pod("a", "1", EARLY, "10.0.0.1");
    assert!(index.upsert(&first));
    first.metadata.resource_version = Some("2".to_owned());
    assert!(!index.upsert(&first));
    first.metadata.labels = None;
    assert!(index.upsert(&first));
    assert!(index.delete(&first));
    assert!(!index.delete(&first));
}

#[test]
fn a_late_delete_of_an_older_pod_of_the_same_name_never_strips_the_new_one() {
    let mut index = Index::new();
    let old = pod("a", "1", EARLY, "10.0.0.1");
    index.upsert(&old);
    index.upsert(&pod("a", "2", LATE, "10.0.0.1"));
    assert!(!index.delete(&old));
    assert_eq!(addresses(&index, "a"), [ip("10.0.0.1")]);
    assert_eq!(index.pod_uid(&n("a")), Some("2"));
    assert!(index.delete(&pod("a", "2", LATE, "10.0.0.1")));
}

#[test]
fn an_address_that_changed_hands_belongs_to_the_new_pod_whatever_comes_of_the_old_one() {
    let old = pod("old", "1", EARLY, "10.0.0.1");
    let new = pod("new", "2", LATE, "10.0.0.1");
    for order in [[&old, &new], [&new, &old]] {
        let mut index = Index::new();
        for pod in order {
            index.upsert(pod);
        }
        assert_eq!((addresses(&index, "old"), addresses(&index, "new")), (vec![], vec![ip("10.0.0.1")]));
        index.delete(&old);
        assert_eq!(addresses(&index, "new"), [ip("10.0.0.1")]);
    }
    // One that terminates gives way even to an older one.
    let mut terminating = new.clone();
    terminating.metadata.deletion_timestamp = terminating.metadata.creation_timestamp.clone();
    let mut index = Index::new();
    index.upsert(&old);
    index.upsert(&terminating);
    assert_eq!((addresses(&index, "old"), addresses(&index, "new")), (vec![ip("10.0.0.1")], vec![]));
    // A terminating pod that nobody contests keeps its address.
    index.delete(&old);
    assert_eq!(addresses(&index, "new"), [ip("10.0.0.1")]);
}

#[test]
fn addresses_of_realised_endpoints_win_over_status_and_over_other_pods() {
    let mut index = Index::new();
    index.upsert(&pod("a", "1", EARLY, "10.0.0.1"));
    index.upsert(&pod("b", "2", LATE, "10.0.0.7"));
    assert!(index.set_local_addresses(&n("a"), Some("1"), vec![ip("10.0.0.7"), ip("fd00::7")]));
    assert!(!index.set_local_addresses(&n("a"), Some("1"), vec![ip("10.0.0.7"), ip("fd00::7")]));
    assert_eq!((addresses(&index, "a"), addresses(&index, "b")), (vec![ip("10.0.0.7"), ip("fd00::7")], vec![]));
    assert!(index.clear_local_addresses(&n("a"), Some("1")));
    assert_eq!((addresses(&index, "a"), addresses(&index, "b")), (vec![ip("10.0.0.1")], vec![ip("10.0.0.7")]));
}

#[test]
fn addresses_of_an_endpoint_hold_only_for_the_pod_of_its_uid() {
    let mut index = Index::new();
    index.set_local_addresses(&n("a"), Some("1"), vec![ip("10.0.0.7")]);
    index.upsert(&pod("a", "2", LATE, "10.0.0.2"));
    assert_eq!(addresses(&index, "a"), [ip("10.0.0.2")]);
    // The new pod's endpoint is realised; then the old one's is released, late.
    index.set_local_addresses(&n("a"), Some("2"), vec![ip("10.0.0.8")]);
    assert!(!index.clear_local_addresses(&n("a"), Some("1")));
    assert_eq!(addresses(&index, "a"), [ip("10.0.0.8")]);
    // Who gives no UID means the pod by its name.
    assert!(index.set_local_addresses(&n("a"), None, vec![ip("10.0.0.9")]));
    assert_eq!(addresses(&index, "a"), [ip("10.0.0.9")]);
    assert!(index.clear_local_addresses(&n("a"), Some("2")));
}

#[test]
fn a_pod_can_be_realised_when_it_and_its_namespace_are_known() {
    let mut index = Index::new();
    let ready = |index: &Index, uid| index.pod_ready_to_realise(&n("a"), uid);
    assert_eq!(ready(&index, None), Realisable::Unknown);
    index.upsert(&pod("a", "1", EARLY, "10.0.0.1"));
    assert_eq!(ready(&index, Some("1")), Realisable::NamespaceUnknown);
    index.upsert(&namespace("n", "x"));
    assert_eq!((ready(&index, Some("1")), ready(&index, None)), (Realisable::Ready, Realisable::Ready));
    assert_eq!(ready(&index, Some("2")), Realisable::OtherUid { known: "1".to_owned() });
    let mut mirror = pod("a", "1", EARLY, "10.0.0.1");
    mirror.metadata.annotations = Some([("kubernetes.io/config.mirror".to_owned(), "2".to_owned())].into());
    index.upsert(&mirror);
    assert_eq!(ready(&index, Some("2")), Realisable::Ready, "a kubelet starts a pod from a file under another UID");
    let mut finished = mirror.clone();
    finished.status.as_mut().expect("a status").phase = Some("Failed".to_owned());
    index.upsert(&finished);
    assert_eq!(ready(&index, Some("1")), Realisable::Finished);
    let mut host = mirror;
    host.spec.get_or_insert_default().host_network = Some(true);
    index.upsert(&host);
    assert_eq!(ready(&index, Some("1")), Realisable::HostNetwork);
}

#[test]
fn host_network_and_finished_pods_drop_out_of_the_model_and_claim_no_address() {
    let mut index = Index::new();
    let mut done = pod("done", "9", LATE, "10.0.0.1");
    done.status.as_mut().expect("a status").phase = Some("Succeeded".to_owned());
    let mut host = pod("host", "8", LATE, "10.0.0.1");
    host.spec.get_or_insert_default().host_network = Some(true);
    index.resync(&[done, host, pod("a", "1", EARLY, "10.0.0.1")]);
    assert_eq!(index.model().pods.keys().collect::<Vec<_>>(), [&n("a")]);
    assert_eq!(addresses(&index, "a"), [ip("10.0.0.1")]);
}

#[test]
fn pod_ranges_that_an_agent_is_told_are_this_nodes_whatever_its_node_says() {
    let with_range = |name: &str| {
        let mut node = node(name, "192.168.0.1");
        node.spec = serde_json::from_value(json!({"podCIDRs": ["10.1.0.0/24"]})).expect("a spec");
        node
    };
    let ranges = |index: &Index, node: &str| index.model().nodes[&node.to_owned()].pod_ranges.clone();
    let [own, of_node] = ["10.2.0.0/24", "10.1.0.0/24"].map(|range| vec![range.parse().expect("a range")]);
    let mut index = Index::new();
    index.set_host("here", &own);
    index.resync(&[with_range("here"), with_range("there"), node("there-too", "192.168.0.3")]);
    assert_eq!((ranges(&index, "here"), ranges(&index, "there")), (own.clone(), of_node.clone()));
    index.upsert(&node("here", "192.168.0.2"));
    assert_eq!(ranges(&index, "here"), own, "also where its Node has none");
    let mut index = Index::new();
    index.set_host("here", &[]);
    index.upsert(&with_range("here"));
    assert_eq!(ranges(&index, "here"), of_node);
}

#[test]
fn a_resync_of_one_kind_of_policy_leaves_the_others() {
    let mut index = Index::new();
    index.upsert(&policy("p", "x", 80));
    index.upsert(&identity_policy("p", "x", 80));
    index.upsert(&cluster_policy("p", 1, "Deny"));
    assert!(index.resync::<IdentityPolicy>([]));
    let kinds: Vec<_> = index.model().policies.keys().map(|name| name.kind).collect();
    assert_eq!(kinds, [PolicyKind::NetworkPolicy, PolicyKind::ClusterNetworkPolicy]);
    assert_eq!(index.policies_of(PolicyKind::ClusterNetworkPolicy, ""), [ObjectName::cluster("p")]);
    assert_eq!(index.policies_of(PolicyKind::NetworkPolicy, "n"), [n("p")]);
}

#[test]
fn the_endpoints_of_the_kubernetes_service_are_the_api_server_and_no_others() {
    let mut index = Index::new();
    index.upsert(&api_server("a", "192.0.2.1"));
    let mut other = api_server("b", "192.0.2.2");
    other.metadata.namespace = Some("elsewhere".to_owned());
    index.upsert(&other);
    assert_eq!(index.model().api_servers, [ip("192.0.2.1")].into());
    index.upsert(&api_server("a", "192.0.2.3"));
    assert_eq!(index.model().api_servers, [ip("192.0.2.3")].into());
}

#[test]
fn an_object_whose_name_cannot_be_read_is_reported() {
    let mut index = Index::new();
    let mut bad = namespace("Not A Name", "x");
    index.upsert(&bad);
    assert_eq!((index.refused()[0].instead, index.model().namespaces.len()), (Instead::Nothing, 0));
    bad.metadata.name = Some("n".to_owned());
    index.resync(&[bad]);
    assert_eq!(index.refused(), []);
}

/// Something that a source may tell of an object: number of its name, and what it says. What cannot be read or is no port is refused.
#[derive(Clone, Debug)]
enum Told {
    Namespace(u8, u8),
    /// Address, pod range.
    Node(u8, u8, u8),
    /// Address, version of the UID, whether it was created later, the node that it is on.
    Pod(u8, u8, u8, bool, u8),
    /// Subject, port, version of the UID.
    Policy(u8, u8, i32, u8),
    /// Address, version of the UID.
    Service(u8, u8, u8),
    /// Service, address, version of the UID.
    Slice(u8, u8, u8, u8),
    ApiServer(u8, u8),
    /// Entity, version of the UID.
    Identity(u8, usize, u8),
    /// As of a policy.
    IdentityPolicy(u8, u8, i32, u8),
    ClusterPolicy(u8, i32),
    /// Whatever has the name, or only the object of this version of the UID: then it may come late.
    Gone(Kind, u8, Option<u8>),
    /// As of any other object, of a slice that is not the API server's.
    SliceGone(u8, Option<u8>),
    Local(u8, u8),
}

const ENTITIES: [&str; 4] = ["Host", "Nodes", "World", "Moon"];
const MOON: usize = 3;
const RANGES: [&[&str]; 3] = [&[], &["10.0.0.0/31"], &["10.0.0.0/30"]];
/// Where a pod can be.
const NODES: [Option<&str>; 3] = [None, Some("n0"), Some("n1")];
/// The number of an address, and of a label, that is none.
const UNREADABLE: u8 = 3;
/// The number of an address that is not there.
const NOWHERE: u8 = 4;
const NO_PORT: i32 = 70000;

fn told() -> impl Strategy<Value = Told> {
    let port = || prop_oneof![Just(80), Just(81), Just(NO_PORT)];
    prop_oneof![
        (0..3u8, 0..4u8).prop_map(|(name, label)| Told::Namespace(name, label)),
        (0..2u8, 0..4u8, 0..3u8).prop_map(|(name, address, range)| Told::Node(name, address, range)),
        (0..4u8, 0..4u8, 0..3u8, any::<bool>(), 0..3u8)
            .prop_map(|(name, address, uid, late, node)| Told::Pod(name, address, uid, late, node)),
        (0..3u8, 0..2u8, port(), 0..2u8).prop_map(|(name, subject, port, uid)| Told::Policy(name, subject, port, uid)),
        (0..3u8, 0..5u8, 0..2u8).prop_map(|(name, address, uid)| Told::Service(name, address, uid)),
        (0..3u8, 0..3u8, 0..4u8, 0..2u8).prop_map(|(name, service, address, uid)| Told::Slice(name, service, address, uid)),
        (0..3u8, prop::option::of(0..2u8)).prop_map(|(name, uid)| Told::SliceGone(name, uid)),
        (0..2u8, 0..4u8).prop_map(|(name, address)| Told::ApiServer(name, address)),
        (0..3u8, 0..4usize, 0..2u8).prop_map(|(name, entity, uid)| Told::Identity(name, entity, uid)),
        (0..3u8, 0..2u8, port(), 0..2u8).prop_map(|(name, subject, port, uid)| Told::IdentityPolicy(name, subject, port, uid)),
        (0..3u8, prop_oneof![0..3i32, Just(1001)]).prop_map(|(name, priority)| Told::ClusterPolicy(name, priority)),
        (prop::sample::select(Kind::ALL), 0..3u8, prop::option::of(0..3u8)).prop_map(|(kind, name, uid)| Told::Gone(kind, name, uid)),
        (0..4u8, 0..3u8).prop_map(|(name, address)| Told::Local(name, address)),
    ]
}

impl Told {
    /// Which object it is about: what is told of one object comes in order, what is told of several need not.
    fn about(&self) -> (u8, u8) {
        match self {
            Told::Namespace(name, _) => (Kind::Namespace as u8, *name),
            Told::Pod(name, ..) => (Kind::Pod as u8, *name),
            Told::Node(name, ..) => (Kind::Node as u8, *name),
            Told::Policy(name, ..) => (Kind::NetworkPolicy as u8, *name),
            Told::Service(name, ..) => (Kind::Service as u8, *name),
            Told::Slice(name, ..) | Told::SliceGone(name, _) => (98, *name),
            Told::ApiServer(name, _) => (Kind::EndpointSlice as u8, *name),
            Told::Identity(name, ..) => (Kind::Identity as u8, *name),
            Told::IdentityPolicy(name, ..) => (Kind::IdentityPolicy as u8, *name),
            Told::ClusterPolicy(name, _) => (Kind::ClusterNetworkPolicy as u8, *name),
            Told::Gone(kind, name, _) => (*kind as u8, *name),
            Told::Local(name, _) => (99, *name),
        }
    }

    /// The version of the UID, of the kinds of which the index minds it.
    fn uid(&self) -> Option<u8> {
        match self {
            Told::Pod(_, _, uid, ..) | Told::Policy(_, _, _, uid) | Told::Identity(_, _, uid) | Told::IdentityPolicy(_, _, _, uid) => {
                Some(*uid)
            }
            Told::Service(_, _, uid) | Told::Slice(_, _, _, uid) => Some(*uid),
            Told::Gone(_, _, uid) | Told::SliceGone(_, uid) => *uid,
            _ => None,
        }
    }

    /// Whether the last good version stays in its place.
    fn is_held_back(&self) -> bool {
        match self {
            Told::Policy(_, _, port, _) | Told::IdentityPolicy(_, _, port, _) => *port == NO_PORT,
            Told::Identity(_, entity, _) => *entity == MOON,
            _ => false,
        }
    }

    fn tell(&self, index: &mut Index) {
        let address = |number: &u8| if *number == UNREADABLE { "nowhere".to_owned() } else { format!("10.0.0.{number}") };
        let label = |number: &u8| if *number == UNREADABLE { "no label!".to_owned() } else { format!("l{number}") };
        let (_, number) = self.about();
        let [p, i, c, s, e] = ["p", "i", "c", "s", "e"].map(|letter| format!("{letter}{number}"));
        let uid = self.uid().map(|version| format!("{number}-{version}"));
        let uid = uid.as_deref();
        let subject = |number: &u8| format!("s{number}");
        match self {
            Told::Namespace(name, of) => index.upsert(&namespace(&format!("n{name}"), &label(of))),
            Told::Node(name, at, range) => {
                let mut node = node(&format!("n{name}"), &address(at));
                let ranges = RANGES[usize::from(*range)];
                node.spec = serde_json::from_value(json!({ "podCIDRs": ranges })).expect("a spec");
                index.upsert(&node)
            }
            Told::Pod(_, at, _, late, node) => {
                let mut pod = pod(&p, uid.unwrap_or_default(), if *late { LATE } else { EARLY }, &address(at));
                pod.spec.get_or_insert_default().node_name = NODES[usize::from(*node)].map(str::to_owned);
                index.upsert(&pod)
            }
            Told::Policy(_, of, port, _) => index.upsert(&with_uid(policy(&p, &subject(of), *port), uid)),
            Told::Service(_, at, _) => {
                let cluster_ip = if *at == NOWHERE { String::new() } else { address(at) };
                index.upsert(&with_uid(service(&s, &cluster_ip, &format!("{number}-0")), uid))
            }
            Told::Slice(_, of, at, _) => index.upsert(&with_uid(slice(&e, &format!("s{of}"), &address(at)), uid)),
            Told::SliceGone(..) => index.delete(&with_uid(slice(&e, "", "10.0.0.1"), uid)),
            Told::ApiServer(_, at) => index.upsert(&api_server(&s, &address(at))),
            Told::Identity(_, entity, _) => index.upsert(&with_uid(identity(&i, ENTITIES[*entity]), uid)),
            Told::IdentityPolicy(_, of, port, _) => index.upsert(&with_uid(identity_policy(&p, &subject(of), *port), uid)),
            Told::ClusterPolicy(_, priority) => index.upsert(&cluster_policy(&c, *priority, "Deny")),
            Told::Local(_, at) => index.set_local_addresses(&n(&p), None, vec![ip(&address(at))]),
            Told::Gone(Kind::Namespace, name, _) => index.delete(&namespace(&format!("n{name}"), "")),
            Told::Gone(Kind::Node, name, _) => index.delete(&node(&format!("n{name}"), "10.0.0.1")),
            Told::Gone(Kind::Pod, ..) => index.delete(&with_uid(pod(&p, "", EARLY, "10.0.0.1"), uid)),
            Told::Gone(Kind::NetworkPolicy, ..) => index.delete(&with_uid(policy(&p, "s", 80), uid)),
            Told::Gone(Kind::Service, ..) => index.delete(&with_uid(service(&s, "", "x"), uid)),
            Told::Gone(Kind::EndpointSlice, ..) => index.delete(&api_server(&s, "10.0.0.1")),
            Told::Gone(Kind::Identity, ..) => index.delete(&with_uid(identity(&i, "World"), uid)),
            Told::Gone(Kind::IdentityPolicy, ..) => index.delete(&with_uid(identity_policy(&p, "s", 80), uid)),
            Told::Gone(Kind::ClusterNetworkPolicy, ..) => index.delete(&cluster_policy(&c, 1, "Deny")),
        };
    }
}

/// What is there of each object in the end. One thing of the past counts, by design: a policy or an identity that is refused is the second of two,
/// after the last good version under its UID.
fn left(story: &[Told]) -> Vec<Vec<&Told>> {
    let mut left: BTreeMap<_, Vec<&Told>> = BTreeMap::new();
    for told in story {
        let left = left.entry(told.about()).or_default();
        let known = left.last().map(|known| known.uid());
        if let Told::Gone(_, _, uid) | Told::SliceGone(_, uid) = told {
            // One of another UID comes late.
            if known.flatten().zip(*uid).is_none_or(|(known, uid)| known == uid) {
                left.clear();
            }
            continue;
        }
        if known.is_some_and(|known| known != told.uid()) || !told.is_held_back() {
            left.clear();
        }
        left.retain(|known| !known.is_held_back());
        left.push(told);
    }
    left.into_values().collect()
}

type Held = (Model, [Services; 2], Vec<Refused>, BTreeSet<Fault>);

/// What an index holds of a story, and what it has refused; the second of the services are those with what files do not say of them.
fn seen<'a>(story: impl IntoIterator<Item = &'a Told>) -> Held {
    let mut index = Index::new();
    index.set_host("n0", &[]);
    story.into_iter().for_each(|told| told.tell(&mut index));
    held(index)
}

/// Makes up what files do not say.
fn made_up(index: &mut Index) {
    index.derive_endpoints();
    index.assign_cluster_ips(&["10.0.0.0/28".parse().expect("a range")]);
}

fn held(mut index: Index) -> Held {
    let (model, services) = (index.model(), index.services());
    made_up(&mut index);
    assert_eq!(index.model(), model, "nothing of services is in the model of policy");
    (model, [services, index.services()], index.refused(), index.misplaced())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_model_does_not_depend_on_the_order_in_which_objects_were_seen(
        story in prop::collection::vec(told(), 0..30),
        shuffle in prop::collection::vec(any::<u32>(), 30),
        repeat in prop::collection::vec(any::<bool>(), 30),
    ) {
        let expected = seen(&story);
        // Another interleaving of the objects: each object's own story stays in order.
        let mut lanes: BTreeMap<_, VecDeque<&Told>> = BTreeMap::new();
        story.iter().for_each(|told| lanes.entry(told.about()).or_default().push_back(told));
        let mut shuffled = Vec::new();
        for (&pick, &twice) in shuffle.iter().zip(&repeat) {
            let Some(&about) = lanes.keys().nth(pick as usize % lanes.len().max(1)) else { break };
            let lane = lanes.get_mut(&about).expect("a lane");
            let told = lane.pop_front().expect("lanes are not empty");
            shuffled.extend(std::iter::repeat_n(told, 1 + usize::from(twice)));
            lanes.retain(|_, lane| !lane.is_empty());
        }
        prop_assert_eq!(&expected, &seen(shuffled));
        // Only what is left, in the order of a list.
        let left = left(&story);
        prop_assert_eq!(&expected, &seen(left.iter().flatten().copied()));
        // A full resync on top changes nothing.
        let mut index = Index::new();
        index.set_host("n0", &[]);
        story.iter().for_each(|told| told.tell(&mut index));
        index.resync_begin::<Namespace>();
        index.resync_begin::<Pod>();
        index.resync_begin::<Node>();
        index.resync_begin::<NetworkPolicy>();
        index.resync_begin::<IdentityPolicy>();
        index.resync_begin::<ClusterNetworkPolicy>();
        index.resync_begin::<Identity>();
        index.resync_begin::<Service>();
        index.resync_begin::<EndpointSlice>();
        left.iter().rev().filter_map(|of_one| of_one.last()).for_each(|told| told.tell(&mut index));
        index.resync_end::<Namespace>();
        index.resync_end::<Pod>();
        index.resync_end::<Node>();
        index.resync_end::<NetworkPolicy>();
        index.resync_end::<IdentityPolicy>();
        index.resync_end::<ClusterNetworkPolicy>();
        index.resync_end::<Identity>();
        index.resync_end::<Service>();
        index.resync_end::<EndpointSlice>();
        prop_assert_eq!(&expected, &held(index));
        // Endpoints that were made up for files on the way leave no trace. (Addresses do: a service keeps its own.)
        let mut index = Index::new();
        index.set_host("n0", &[]);
        for told in &story {
            told.tell(&mut index);
            index.derive_endpoints();
        }
        made_up(&mut index);
        prop_assert_eq!(&expected.1[1], &index.services());
    }
}
