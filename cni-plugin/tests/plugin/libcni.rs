//! Every verb as a container runtime sends it, by the library that runtimes are built with.

use crate::node::{Behaviour, DUAL};
use crate::runtime::{Reply, Runtime, with_runtime};
use palisade_cni::link::Route;
use palisade_protocol::ErrorKind;
use serde_json::{Value, json};

/// What the specification calls them, oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The addresses of a result.
fn addresses(result: &Value) -> Vec<&str> {
    result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect()
}

/// The library read every key of what we printed: what it has no field for is not in what it writes.
fn assert_all_read(added: &Reply) {
    let (mut printed, own) = (added.printed(0), &added.result["own"]);
    // An empty one it leaves out, since 1.0.0.
    if own.get("dns").is_none() {
        assert_eq!(printed.as_object_mut().unwrap().remove("dns"), Some(json!({})));
    }
    assert_eq!(*own, printed);
}

/// Nothing is left of any pod, on the node, in its address store, with its agent and with the library.
fn assert_nothing_left(runtime: &Runtime<'_>) {
    let node = runtime.node;
    assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
}

#[test]
fn the_library_reads_every_key_of_the_result_in_every_version() {
    with_runtime(DUAL, |runtime| {
        for version in VERSIONS {
            let runtime = runtime.version(version);
            runtime.of_network("VALIDATE").success();
            let added = runtime.add("a");
            assert_eq!(added.order(), ["ADD palisade-cni"]);
            assert_all_read(&added);
            assert_eq!(added.result["own"]["cniVersion"], version);
            let own = addresses(&added.result["own"]);
            assert_eq!(own.len(), 2);
            for other in VERSIONS {
                assert_eq!(addresses(&added.result[other]), own, "{version} as {other}");
            }
            runtime.remove("a");
            assert_nothing_left(&runtime);
        }
    });
}

#[test]
fn a_configuration_of_one_plugin_is_a_network_too() {
    with_runtime(DUAL, |runtime| {
        let runtime = runtime.of_one();
        let added = runtime.add("a");
        assert_eq!(added.calls[0].input["name"], "palisade");
        assert_all_read(&added);
        runtime.call("CHECK", "a").success();
        runtime.remove("a");
        assert_nothing_left(&runtime);
    });
}

#[test]
fn what_the_runtime_says_of_the_pod_reaches_the_agent() {
    with_runtime(DUAL, |runtime| {
        runtime.add("a");
        let endpoint = runtime.node.agent.endpoints().remove(0);
        assert_eq!((endpoint.namespace.as_str(), endpoint.pod.as_str(), endpoint.uid.as_deref()), ("shop", "a", Some("uid-a")));
        assert_eq!((endpoint.attachment.container_id.as_str(), endpoint.attachment.interface.as_str()), ("a", "eth0"));
        runtime.remove("a");
    });
}

#[test]
fn check_passes_after_add_and_fails_when_an_address_or_a_route_was_taken_away() {
    with_runtime(DUAL, |runtime| {
        let v4 = || {
            let (pod, index) = runtime.node.inside("a");
            let address = pod.addresses_of(index).unwrap().into_iter().find(|address| address.address.addr().is_ipv4()).unwrap();
            assert!(pod.delete_address(index, address.address).unwrap());
        };
        let v6 = || {
            let (pod, index) = runtime.node.inside("a");
            assert!(pod.delete_route(&Route::default_via("fe80::1".parse().unwrap(), index)).unwrap());
        };
        let spoil: [(&str, &dyn Fn()); 2] = [("lost its address", &v4), ("no default route", &v6)];
        for version in ["0.4.0", "1.0.0", "1.1.0"] {
            let runtime = runtime.version(version);
            for (said, spoil) in spoil {
                runtime.add("a");
                runtime.call("CHECK", "a").success();
                spoil();
                let message = runtime.call("CHECK", "a").failure(104);
                assert!(message.contains(said), "{message}");
                runtime.remove("a");
            }
        }
        assert_nothing_left(runtime);
    });
}

#[test]
fn check_is_not_asked_of_a_version_that_has_none() {
    with_runtime(DUAL, |runtime| {
        let runtime = runtime.version("0.3.1");
        runtime.add("a");
        let checked = runtime.call("CHECK", "a");
        assert_eq!(checked.order(), [""; 0]);
        checked.failure(0);
        runtime.remove("a");
    });
}

#[test]
fn check_and_del_are_handed_the_result_that_the_library_kept() {
    with_runtime(DUAL, |runtime| {
        for version in VERSIONS {
            let runtime = runtime.version(version);
            let added = runtime.add("a").result["own"].clone();
            assert!(runtime.cached("a").exists());
            assert_eq!(runtime.call("CACHED", "a").success().result["own"], added);
            if version != "0.3.1" {
                assert_eq!(runtime.call("CHECK", "a").success().calls[0].input["prevResult"], added, "{version}");
            }
            let removed = runtime.call("DEL", "a").success();
            // Since 0.4.0 DEL is handed it, too.
            let handed = removed.calls[0].input.get("prevResult");
            assert_eq!(handed, (version != "0.3.1").then_some(&added), "{version}");
            assert!(!runtime.cached("a").exists());
            assert_eq!(runtime.call("CACHED", "a").success().result, Value::Null);
            runtime.node.host.remove_pod("a").unwrap();
        }
        assert_nothing_left(runtime);
    });
}

#[test]
fn without_the_kept_result_check_is_code_7_and_del_succeeds() {
    with_runtime(DUAL, |runtime| {
        runtime.add("a");
        std::fs::remove_file(runtime.cached("a")).unwrap();
        assert!(runtime.call("CHECK", "a").failure(7).contains("prevResult"));
        runtime.remove("a");
        assert_nothing_left(runtime);
    });
}

#[test]
fn del_succeeds_again_without_a_namespace_and_without_an_agent() {
    with_runtime(DUAL, |runtime| {
        let host = runtime.node.host;
        runtime.call("DEL", "never-there").success();

        runtime.add("twice");
        runtime.call("DEL", "twice").success();
        runtime.remove("twice");

        runtime.add("gone");
        host.remove_pod("gone").unwrap();
        runtime.call("DEL", "gone").success();

        runtime.add("empty");
        host.remove_pod("empty").unwrap();
        runtime.call_in("DEL", "empty", "").success();

        runtime.add("alone");
        runtime.node.agent.stop();
        runtime.remove("alone");
        assert_eq!((runtime.node.left().as_str(), runtime.node.leases()), ("", 0));
    });
}

#[test]
fn an_add_that_fails_has_its_code_and_the_del_that_follows_finds_nothing() {
    with_runtime(DUAL, |runtime| {
        let node = runtime.node;
        node.host.create_pod("a").unwrap();
        for (kind, code) in [(ErrorKind::TryAgain, 11), (ErrorKind::Internal, 103)] {
            node.agent.behave("realise", Behaviour::Refuses(kind));
            assert!(runtime.call("ADD", "a").failure(code).contains("refuses to realise"));
            assert!(!runtime.cached("a").exists());
            runtime.call("DEL", "a").success();
        }
        node.agent.behave("realise", Behaviour::Works);
        let own_namespace = runtime.call_in("ADD", "a", "/proc/thread-self/ns/net").failure(8);
        assert!(own_namespace.contains("the node itself"), "{own_namespace}");
        node.host.remove_pod("a").unwrap();
        assert!(runtime.call("ADD", "a").failure(3).contains("the container is gone"));
        assert_nothing_left(runtime);
    });
}

#[test]
fn gc_removes_what_is_not_valid_whether_the_library_knows_of_it_or_not() {
    with_runtime(DUAL, |runtime| {
        for pod in ["kept", "stale", "forgotten", "gone"] {
            runtime.add(pod);
        }
        // Of these two the library sends no DEL.
        for pod in ["forgotten", "gone"] {
            std::fs::remove_file(runtime.cached(pod)).unwrap();
        }
        runtime.node.host.remove_pod("gone").unwrap();
        let collected = runtime.gc(Some(&["kept", "foreign"])).success();
        assert_eq!(collected.order(), ["DEL palisade-cni", "GC palisade-cni"]);
        assert_eq!((runtime.node.leases(), runtime.node.agent.endpoints().len()), (1, 1));
        runtime.call("CHECK", "kept").success();
        runtime.gc(Some(&["kept"])).success();
        for pod in ["stale", "forgotten"] {
            runtime.node.host.remove_pod(pod).unwrap();
        }
        runtime.remove("kept");
        assert_nothing_left(runtime);
    });
}

#[test]
fn gc_keeps_everything_without_a_list_and_nothing_with_an_empty_one_or_null() {
    with_runtime(DUAL, |runtime| {
        type Collect = fn(&Runtime<'_>) -> Reply;
        let empty: [Collect; 2] = [|runtime| runtime.gc(Some(&[])), |runtime| runtime.gc_with_nil()];
        for collect in empty {
            runtime.add("a");
            std::fs::remove_file(runtime.cached("a")).unwrap();
            assert!(runtime.gc(None).failure(7).contains("cni.dev/valid-attachments"));
            assert_eq!(runtime.node.leases(), 1);
            collect(runtime).success();
            runtime.node.host.remove_pod("a").unwrap();
            assert_nothing_left(runtime);
        }
    });
}

#[test]
fn gc_is_not_asked_of_a_version_that_has_none_and_what_is_not_valid_is_deleted() {
    with_runtime(DUAL, |runtime| {
        let runtime = runtime.version("1.0.0");
        runtime.add("kept");
        runtime.add("stale");
        assert_eq!(runtime.gc(Some(&["kept"])).success().order(), ["DEL palisade-cni"]);
        runtime.call("CHECK", "kept").success();
        runtime.node.host.remove_pod("stale").unwrap();
        runtime.remove("kept");
        assert_nothing_left(&runtime);
    });
}

#[test]
fn status_is_code_50_while_the_agent_is_not_ready_or_does_not_run() {
    with_runtime(DUAL, |runtime| {
        assert_eq!(runtime.of_network("STATUS").success().order(), ["STATUS palisade-cni"]);
        assert_eq!(runtime.version("1.0.0").of_network("STATUS").success().order(), [""; 0], "1.0.0 has no STATUS");
        runtime.node.agent.behave("status", Behaviour::Refuses(ErrorKind::TryAgain));
        assert!(runtime.of_network("STATUS").failure(50).contains("refuses"));
        runtime.node.agent.stop();
        assert!(runtime.of_network("STATUS").failure(50).contains("running"));
    });
}

#[test]
fn version_says_what_validate_accepts() {
    with_runtime(DUAL, |runtime| {
        assert_eq!(runtime.versions("palisade-cni"), VERSIONS);
        for version in VERSIONS {
            runtime.version(version).of_network("VALIDATE").success();
        }
        let message = runtime.version("0.2.0").of_network("VALIDATE").failure(0);
        assert!(message.contains("does not support config version"), "{message}");
        runtime.node.host.create_pod("a").unwrap();
        assert!(runtime.version("0.2.0").call("ADD", "a").failure(1).contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"));
        runtime.node.host.remove_pod("a").unwrap();
    });
}
