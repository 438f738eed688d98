//! The address store against what runs: after a boot, after DELs that never came, after it was lost.

use crate::node::{DUAL, Node, node};
use nix::fcntl::{Flock, FlockArg};
use palisade_cni::link::Netlink;
use serde_json::{Value, json};
use std::fs::File;

/// Takes a pod's interface away, and its namespace, as a boot does: no DEL is sent.
pub fn vanish(node: &Node<'_>, pod: &str, result: &Value) {
    assert!(Netlink::open().unwrap().delete_link(node.host_link(result).index).unwrap());
    node.host.remove_pod(pod).unwrap();
}

/// Has the next ADD be the first of a boot.
pub fn boot(node: &Node<'_>) {
    std::fs::write(node.host.state_dir().join("ipam/reconciled"), "an earlier one").unwrap();
}

/// Removes what else a pod has left that vanished.
fn forget(node: &Node<'_>, pod: &str) {
    node.call("DEL", pod).run().silent();
}

#[test]
fn after_a_boot_addresses_whose_interface_is_gone_are_free_and_those_of_others_stay() {
    node(DUAL, |node| {
        let (gone, busy) = (node.add("gone"), node.add("busy"));
        node.add("kept");
        vanish(node, "gone", &gone);
        vanish(node, "busy", &busy);
        // Another call is at work on this one: it may be about to make its interface.
        let lock = File::create(node.host.state_dir().join("locks").join(busy["interfaces"][0]["name"].as_str().unwrap())).unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        node.add("a");
        assert_eq!(node.leases(), 4, "in the same boot nothing is looked at");
        boot(node);
        node.add("b");
        assert_eq!(node.leases(), 4, "kept, busy, a and b");
        drop(lock);
        for pod in ["gone", "busy"] {
            forget(node, pod);
        }
        for pod in ["kept", "a", "b"] {
            node.remove(pod);
        }
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn a_full_range_has_room_again_for_an_address_whose_interface_is_gone() {
    node(&["10.77.0.0/30"], |node| {
        let first = node.add("first");
        vanish(node, "first", &first);
        node.host.create_pod("second").unwrap();
        // Free, and not given before it has rested.
        assert!(node.call("ADD", "second").run().failure(11).contains("try again in"));
        assert_eq!(node.leases(), 0);
        node.host.remove_pod("second").unwrap();
        forget(node, "first");
        assert_eq!(node.left(), "");
    });
}

#[test]
fn a_store_that_was_lost_learns_the_addresses_of_what_runs() {
    node(DUAL, |node| {
        let result = node.add("a");
        std::fs::remove_file(node.store()).unwrap();
        let other = node.add("b");
        assert_eq!((&result["ips"][0]["address"], &other["ips"][0]["address"]), (&json!("10.77.0.2/32"), &json!("10.77.0.3/32")));
        assert_eq!(node.leases(), 2);
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
        node.remove("b");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}
