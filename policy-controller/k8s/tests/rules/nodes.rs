//! What nodes claim, and what the model has of it.

use super::index::{EARLY, addresses, ip, n, namespace, node, pod};
use palisade_k8s::index::Index;
use serde_json::json;

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
