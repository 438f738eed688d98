//! Bad input: each case has its specified code and a message that says what to do. None of these calls touches anything.

use crate::node::{Call, least_config};
use serde_json::{Value, json};

/// A call about a container that would be in order if its namespace and the agent were there.
fn add() -> Call {
    Call::bare(Some("ADD"))
        .env("CNI_CONTAINERID", "a")
        .env("CNI_NETNS", "/nonexistent/netns")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a")
        .key("runDir", "/nonexistent/run".into())
        .key("stateDir", "/nonexistent/state".into())
}

#[test]
fn without_a_verb_it_says_what_it_is_on_standard_error() {
    let answer = Call::bare(None).run();
    assert_eq!((answer.exit, answer.stdout.as_str()), (Some(0), ""));
    assert!(answer.stderr.contains("Palisade") && answer.stderr.contains("1.1.0"), "{answer:?}");
}

#[test]
fn version_does_not_look_at_its_input() {
    for input in [&b""[..], b"nonsense", least_config().to_string().as_bytes()] {
        let answer = Call::bare(Some("VERSION")).run_with(input).success();
        assert_eq!(answer, json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}));
    }
}

#[test]
fn an_unknown_verb_is_code_4() {
    let message = add().env("CNI_COMMAND", "UPDATE").run().failure(4);
    assert!(message.contains("UPDATE") && message.contains("ADD, DEL, CHECK"), "{message}");
}

#[test]
fn missing_variables_are_code_4_and_all_named() {
    let message = Call::bare(Some("ADD")).run().failure(4);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert!(message.contains(name), "{message}");
    }
    let message = Call::bare(Some("DEL")).run().failure(4);
    assert!(message.contains("CNI_CONTAINERID") && !message.contains("CNI_NETNS"), "{message}");
    let message = add().env("CNI_ARGS", "").run().failure(4);
    assert!(message.contains("K8S_POD_NAME"), "{message}");
}

#[test]
fn a_container_id_with_a_slash_is_code_4() {
    for verb in ["ADD", "DEL", "CHECK"] {
        let message = add().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "../a").run().failure(4);
        assert!(message.contains("'../a'"), "{message}");
    }
}

#[test]
fn an_impossible_interface_name_is_code_4() {
    for name in ["a/b", "sixteen--letters", "..", "a b", "a:b"] {
        let message = add().env("CNI_IFNAME", name).run().failure(4);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn malformed_json_is_code_6() {
    for input in [&b""[..], b"{", b"[]", b"{\"cniVersion\":\"1.0.0\",\"name\":{}}"] {
        let message = add().run_with(input).failure(6);
        assert!(message.contains("line 1"), "{message}");
    }
}

#[test]
fn an_unknown_version_is_code_1_and_says_which_are_known() {
    for version in [json!("0.2.0"), json!("2.0.0"), Value::Null] {
        let message = add().key("cniVersion", version).run().failure(1);
        assert!(message.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{message}");
    }
}

#[test]
fn a_verb_that_came_after_the_version_is_code_1() {
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let message = add().env("CNI_COMMAND", verb).version(version).run().failure(1);
        assert!(message.contains(verb) && message.contains(version), "{message}");
    }
}

#[test]
fn an_error_is_answered_in_the_version_asked_for() {
    let answer = add().version("0.4.0").run();
    assert!(answer.stdout.contains("\"cniVersion\":\"0.4.0\""), "{answer:?}");
}

#[test]
fn a_configuration_that_makes_no_sense_is_code_7() {
    assert!(add().key("name", Value::Null).run().failure(7).contains("name"));
    assert!(add().key("name", "a/b".into()).run().failure(7).contains("a/b"));
    assert!(add().key("runDir", "run".into()).run().failure(7).contains("runDir"));
    assert!(add().env("CNI_COMMAND", "GC").run().failure(7).contains("cni.dev/valid-attachments"));
    assert!(add().env("CNI_COMMAND", "CHECK").run().failure(7).contains("prevResult"));
}

#[test]
fn an_ipam_that_names_no_other_plugin_is_code_7() {
    for (ipam, said) in [
        (json!({"subnet": "10.0.0.0/24"}), "no type"),
        (json!({"type": "palisade-cni"}), "itself"),
        (json!({"type": "/bin/sh"}), "'/bin/sh'"),
    ] {
        let message = add().key("ipam", ipam).run().failure(7);
        assert!(message.contains("ipam") && message.contains(said), "{message}");
    }
}

#[test]
fn a_capability_that_makes_no_sense_is_code_7_and_bandwidth_is_code_2() {
    let with = |key: &str, value: Value| add().key("runtimeConfig", json!({key: value})).run();
    assert!(with("portMappings", json!([{"hostPort": 0, "containerPort": 80}])).failure(7).contains("portMappings[0]"));
    assert!(with("ips", json!(["10.0.0.300"])).failure(7).contains("10.0.0.300"));
    assert!(with("mac", json!("01:00:5e:00:00:01")).failure(7).contains("01:00:5e:00:00:01"));
    let message = with("bandwidth", json!({"ingressRate": 8000})).failure(2);
    assert!(message.contains("bandwidth") && message.contains("8000"), "{message}");
}

#[test]
fn a_namespace_that_is_gone_is_code_3() {
    for path in ["/nonexistent/netns", "/dev/null", "/proc/self/ns/mnt"] {
        let message = add().env("CNI_NETNS", path).run().failure(3);
        assert!(message.contains(path), "{message}");
    }
}

#[test]
fn the_nodes_own_namespace_is_code_8() {
    let message = add().env("CNI_NETNS", "/proc/self/ns/net").run().failure(8);
    assert!(message.contains("/proc/self/ns/net"), "{message}");
}

#[test]
fn status_without_an_agent_is_code_50() {
    let message = add().env("CNI_COMMAND", "STATUS").run().failure(50);
    assert!(message.contains("/nonexistent/run/agent.sock") && message.contains("running"), "{message}");
}
