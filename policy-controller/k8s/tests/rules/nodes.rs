//! What nodes claim, and what the model has of it.

use super::index::{EARLY, LATE, addresses, ip, n, namespace, node, pod};
use k8s_openapi::api::core::v1::{Node, Pod};
use palisade_k8s::index::{Elsewhere, Index};
use palisade_k8s::survey::{Fault, Wrong};
use serde_json::json;

/// A node that was made at a time and has pod ranges of both families.
fn with_ranges(name: &str, created: &str, address: &str, ranges: [&str; 2]) -> Node {
    let mut node = node(name, address);
    node.metadata.creation_timestamp = serde_json::from_value(json!(created)).expect("a time");
    node.spec = serde_json::from_value(json!({ "podCIDRs": ranges })).expect("a spec");
    node
}

/// The pod `n/NAME` of a node.
fn on(node: &str, name: &str, created: &str, address: &str) -> Pod {
    let mut pod = pod(name, name, created, address);
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
    pod
}

/// An index of the node `a`, which has seen these nodes, and pods, either first.
fn seen_by_a(nodes: &[Node], pods: &[Pod], nodes_first: bool) -> Index {
    let mut index = Index::new();
    index.set_host("a", &[]);
    if nodes_first {
        index.resync(nodes);
    }
    index.resync(pods);
    if !nodes_first {
        index.resync(nodes);
    }
    index
}

const OLD: &str = "2025-01-01T00:00:00Z";
const OF_A: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];
const SHARED: [&str; 2] = ["10.2.0.0/24", "fd00:2::/64"];
const ADDRESSES: [&str; 2] = ["10.2.0.5", "fd00:2::5"];

fn misplaced(node: &str, pods: usize) -> Vec<Fault> {
    vec![Fault { node: node.to_owned(), what: Wrong::Misplaced { pods } }]
}

#[test]
fn an_address_in_a_pod_range_is_that_of_a_pod_of_the_ranges_node_whichever_pod_is_younger() {
    let nodes = [
        with_ranges("a", LATE, "192.0.2.1", OF_A),
        with_ranges("b", LATE, "192.0.2.2", SHARED),
        with_ranges("c", EARLY, "192.0.2.3", SHARED),
    ];
    for address in ADDRESSES {
        for ([of_b, of_c], nodes_first) in [([EARLY, LATE], true), ([LATE, EARLY], true), ([EARLY, LATE], false), ([LATE, EARLY], false)] {
            let pods = [on("b", "x", of_b, address), on("c", "y", of_c, address)];
            let mut index = seen_by_a(&nodes, &pods, nodes_first);
            // Routes lead to `c`, the older of both.
            assert_eq!((addresses(&index, "x"), addresses(&index, "y")), (vec![], vec![ip(address)]));
            assert_eq!(Vec::from_iter(index.misplaced()), misplaced("b", 1));
            // Nobody takes the address for that of the other one, though there is no pod of the range's node any more.
            index.delete(&pods[1]);
            assert!(addresses(&index, "x").is_empty());
            index.upsert(&pods[1]);
            index.delete(&nodes[2]);
            assert_eq!((addresses(&index, "x"), addresses(&index, "y")), (vec![ip(address)], vec![]), "the range is `b`'s by now");
            assert_eq!(Vec::from_iter(index.misplaced()), misplaced("c", 1));
            index.delete(&pods[1]);
            assert!(index.misplaced().is_empty());
        }
    }
}

#[test]
fn when_a_range_passes_to_another_node_under_running_pods_no_address_in_it_is_theirs_any_more() {
    let own = with_ranges("a", OLD, "192.0.2.1", OF_A);
    let b = |range| with_ranges("b", EARLY, "192.0.2.2", range);
    let c = |range| with_ranges("c", LATE, "192.0.2.3", range);
    let others = ["10.3.0.0/24", "fd00:3::/64"];
    for address in ADDRESSES {
        let x = on("b", "x", EARLY, address);
        let mut index = seen_by_a(&[own.clone(), b(SHARED)], std::slice::from_ref(&x), true);
        assert_eq!(addresses(&index, "x"), [ip(address)]);
        let before = index.model().pods;
        // `b` gets another range, and then a new node that of before.
        index.upsert(&b(others));
        assert_eq!(index.model().pods, before, "as long as the range is nobody's");
        assert!(index.upsert(&c(SHARED)));
        assert!(addresses(&index, "x").is_empty());
        assert_eq!(Vec::from_iter(index.misplaced()), misplaced("b", 1));
        index.upsert(&on("c", "y", EARLY, address));
        assert_eq!((addresses(&index, "x"), addresses(&index, "y")), (vec![], vec![ip(address)]));
        // An older pod of the range's own node, which terminates, has it too.
        let mut ends = on("c", "y", OLD, address);
        ends.metadata.deletion_timestamp = ends.metadata.creation_timestamp.clone();
        index.upsert(&ends);
        assert_eq!(addresses(&index, "y"), [ip(address)]);
        index.delete(&x);
        assert!(index.misplaced().is_empty());
    }
}

#[test]
fn an_endpoint_of_this_node_keeps_its_address_here_and_it_is_known_which_pod_has_it_elsewhere() {
    let own = |range| with_ranges("a", LATE, "192.0.2.1", range);
    let c = |created| with_ranges("c", created, "192.0.2.3", SHARED);
    for address in ADDRESSES {
        let is_elsewhere = |index: &Index| index.elsewhere(ip(address)).map(|Elsewhere { pod, node }| (pod.clone(), node.to_owned()));
        let x = on("a", "x", EARLY, address);
        let mut index = seen_by_a(&[own(SHARED)], std::slice::from_ref(&x), true);
        index.set_local_addresses(&n("x"), Some("x"), vec![ip(address)]);
        let y = on("c", "y", LATE, address);
        index.upsert(&y);
        assert_eq!((is_elsewhere(&index), addresses(&index, "x")), (None, vec![ip(address)]), "the range is this node's");
        // Either the range has passed to another node, or an older one claims it as well: all others think that it is that one's.
        let given_away: [Vec<Node>; 2] = [vec![own(OF_A), c(LATE)], vec![own(SHARED), c(EARLY)]];
        for nodes in given_away {
            index.resync(&nodes);
            assert_eq!((addresses(&index, "x"), addresses(&index, "y")), (vec![ip(address)], vec![]), "packets to it are delivered here");
            assert_eq!(is_elsewhere(&index), Some((n("y"), "c".to_owned())));
            assert_eq!(Vec::from_iter(index.misplaced()), misplaced("a", 1));
            index.delete(&y);
            assert_eq!((is_elsewhere(&index), index.misplaced().len()), (None, 0), "nobody has it there");
            index.upsert(&y);
        }
        // Without the endpoint it is no address of this node's pod, whatever its status says.
        index.clear_local_addresses(&n("x"), Some("x"));
        assert_eq!((addresses(&index, "x"), addresses(&index, "y")), (vec![], vec![ip(address)]));
        index.resync(&[own(SHARED), with_ranges("c", "2026-02-01T00:00:00Z", "192.0.2.3", SHARED)]);
        assert_eq!((is_elsewhere(&index), addresses(&index, "x"), addresses(&index, "y")), (None, vec![ip(address)], vec![]));
    }
}

#[test]
fn an_address_in_no_nodes_pod_range_and_one_of_a_pod_that_names_no_node_are_claimed_as_ever() {
    let nodes = [with_ranges("a", EARLY, "192.0.2.1", OF_A), with_ranges("b", EARLY, "192.0.2.2", SHARED)];
    for address in ["10.9.0.5", "fd00:9::5"] {
        let index = seen_by_a(&nodes, &[on("b", "x", EARLY, address), on("c", "y", LATE, address)], true);
        assert_eq!((addresses(&index, "x"), addresses(&index, "y")), (vec![], vec![ip(address)]));
        assert!(index.misplaced().is_empty());
    }
    let index = seen_by_a(&nodes, &[pod("x", "1", EARLY, ADDRESSES[0])], true);
    assert_eq!((addresses(&index, "x"), index.misplaced().len()), (vec![ip(ADDRESSES[0])], 0));
}

#[test]
fn what_nodes_claim_that_does_not_hold_is_no_part_of_the_model() {
    let claims = |name: &str, address: &str, range: &str| {
        let mut node = node(name, address);
        node.spec = serde_json::from_value(json!({"podCIDRs": [range]})).expect("a spec");
        node
    };
    let shown = |index: &Index, name: &str| {
        let node = index.model().nodes[&name.to_owned()].clone();
        (node.addresses, node.pod_ranges.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let mut index = Index::new();
    index.set_host("here", &[]);
    let older = [claims("here", "192.0.2.1", "10.1.0.0/24"), claims("b", "192.0.2.2", "10.2.0.0/24")];
    let younger = [claims("c", "192.0.2.2", "10.0.0.0/8"), claims("d", "10.2.0.7", "192.0.0.0/8")];
    index.resync(older.iter().chain(&younger));
    assert_eq!(shown(&index, "here"), (vec![ip("192.0.2.1")], vec!["10.1.0.0/24".to_owned()]));
    assert_eq!(shown(&index, "b"), (vec![ip("192.0.2.2")], vec!["10.2.0.0/24".to_owned()]));
    assert_eq!(shown(&index, "c"), (vec![ip("192.0.2.2")], vec![]), "an address of two nodes is neither's alone");
    assert_eq!(shown(&index, "d"), (vec![], vec![]), "an address that a pod may have is no node's");
    assert_eq!(index.survey().faults.len(), 4);
    // Claims hold once what was before them is gone, by a change or by a list.
    index.delete(&older[1]);
    assert_eq!(shown(&index, "d"), (vec![ip("10.2.0.7")], vec![]));
    index.resync(&younger);
    assert_eq!(shown(&index, "c").1, ["10.0.0.0/8"]);
    assert!(!index.model().nodes.contains_key(&"here".to_owned()));
    // What this node says it has stays its own: no pod gets it.
    index.resync(&[claims("here", "10.1.0.1", "10.1.0.0/24")]);
    assert_eq!(shown(&index, "here"), (vec![ip("10.1.0.1")], vec!["10.1.0.0/24".to_owned()]));
}

#[test]
fn an_address_that_a_node_claims_after_a_pod_of_this_node_has_it_stays_the_pods_until_the_pod_is_gone() {
    let shown = |index: &Index, name: &str| index.model().nodes[&name.to_owned()].addresses.clone();
    for late in ["here", "there"] {
        let mut index = Index::new();
        index.set_host("here", &[]);
        index.upsert(&namespace("n", "x"));
        index.upsert(&pod("a", "1", EARLY, "192.0.2.9"));
        index.set_local_addresses(&n("a"), Some("1"), vec![ip("192.0.2.9")]);
        index.resync(&[node("here", "192.0.2.1"), node("there", "192.0.2.2")]);
        let before = index.model();
        assert!(index.upsert(&node(late, "192.0.2.9")));
        assert_eq!((shown(&index, late), addresses(&index, "a")), (vec![], vec![ip("192.0.2.9")]), "{late}");
        assert!(!index.services().place.addresses.contains(&ip("192.0.2.9")), "no port of the node is there");
        let faults: Vec<_> = index.survey().faults.iter().filter(|fault| fault.what.kind() == "address-of-pod").cloned().collect();
        assert!(faults.len() == 1 && faults[0].node == late, "{faults:?}");
        // The claim holds once the pod is gone, and no more when there is another.
        assert!(index.clear_local_addresses(&n("a"), Some("1")));
        assert_eq!(shown(&index, late), [ip("192.0.2.9")]);
        index.set_local_addresses(&n("a"), Some("1"), vec![ip("192.0.2.9")]);
        assert!(shown(&index, late).is_empty());
        index.upsert(&node(late, if late == "here" { "192.0.2.1" } else { "192.0.2.2" }));
        assert_eq!(index.model(), before, "{late}");
    }
}
