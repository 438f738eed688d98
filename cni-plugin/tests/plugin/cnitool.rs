//! Every verb as who sets up a node by hand sends it: by `cnitool`, the program that comes with the library.

use crate::node::{Behaviour, DUAL};
use crate::runtime::with_runtime;
use palisade_protocol::ErrorKind;
use serde_json::{Value, json};

#[test]
fn the_tool_adds_checks_and_removes_pods_in_every_version() {
    with_runtime(DUAL, |runtime| {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let tool = runtime.version(version).tool();
            runtime.node.host.create_pod("a").unwrap();
            let result: Value = serde_json::from_str(&tool.done("add", "a")).unwrap();
            assert_eq!((result["cniVersion"].as_str(), result["ips"].as_array().map(Vec::len)), (Some(version), Some(2)), "{result}");
            let endpoint = runtime.node.agent.endpoints().remove(0);
            assert_eq!((endpoint.namespace.as_str(), endpoint.pod.as_str(), endpoint.uid.as_deref()), ("shop", "a", Some("uid-a")));
            assert!(endpoint.attachment.container_id.starts_with("cnitool-"), "{endpoint:?}");
            if version == "0.3.1" {
                let said = tool.refused("check", "a");
                assert!(said.contains("does not support the CHECK command"), "{said}");
            } else {
                assert_eq!(tool.done("check", "a"), "");
            }
            assert_eq!(tool.done("del", "a"), "");
            // Once more, as a runtime may that did not hear of the end of it.
            assert_eq!(tool.done("del", "a"), "");
            runtime.node.host.remove_pod("a").unwrap();
            assert_eq!((runtime.node.left().as_str(), runtime.node.leases(), runtime.node.agent.endpoints().len()), ("", 0, 0));
        }
    });
}

#[test]
fn the_tool_hears_that_the_node_is_not_ready() {
    with_runtime(DUAL, |runtime| {
        let tool = runtime.tool();
        runtime.node.host.create_pod("a").unwrap();
        assert_eq!(tool.done("status", "a"), "");
        runtime.node.agent.behave("status", Behaviour::Refuses(ErrorKind::TryAgain));
        assert!(tool.refused("status", "a").contains("refuses"));
        runtime.node.host.remove_pod("a").unwrap();
    });
}

#[test]
fn a_collection_by_the_tool_takes_away_every_pod_that_it_knows() {
    with_runtime(DUAL, |runtime| {
        let tool = runtime.tool();
        for pod in ["a", "b"] {
            runtime.node.host.create_pod(pod).unwrap();
            tool.done("add", pod);
        }
        assert_eq!(runtime.node.leases(), 2);
        // The library deletes each by itself. Then the tool hands no list of what is valid, and nothing is collected by that.
        assert!(tool.refused("gc", "a").contains("cni.dev/valid-attachments"));
        for pod in ["a", "b"] {
            runtime.node.host.remove_pod(pod).unwrap();
        }
        assert_eq!((runtime.node.left().as_str(), runtime.node.leases(), runtime.node.agent.endpoints().len()), ("", 0, 0));
    });
}

#[test]
fn the_tool_hands_on_what_a_runtime_asks_for_a_pod() {
    with_runtime(DUAL, |runtime| {
        let asks = json!(["10.77.0.9/24", "fd77::9"]);
        let tool = runtime.key("capabilities", &json!({"ips": true})).capability("ips", asks).tool();
        runtime.node.host.create_pod("a").unwrap();
        let result: Value = serde_json::from_str(&tool.done("add", "a")).unwrap();
        let given: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
        assert_eq!(given, ["10.77.0.9/32", "fd77::9/128"]);
        tool.done("del", "a");
        runtime.node.host.remove_pod("a").unwrap();
    });
}
