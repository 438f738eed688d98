//! ADD that fails leaves nothing, whatever fails: the real binary against an agent and a kernel that are in its way.

use crate::node::{Behaviour, DUAL, Node, node};
use palisade_cni::ipam::COOL_DOWN;
use palisade_cni::link::{MacAddress, Namespace, Netlink, Route, Veth};
use palisade_protocol::ErrorKind;
use std::time::Duration;

/// Tries ADD of a new pod, which must fail with this code and leave nothing; the message.
fn fails(node: &Node<'_>, code: u64) -> String {
    fails_within(node, code, 20)
}

/// As [`fails`], where the agent is given so many seconds.
fn fails_within(node: &Node<'_>, code: u64, seconds: u64) -> String {
    node.host.create_pod("a").unwrap();
    let before = node.host.snapshot().unwrap();
    let message = node.call("ADD", "a").key("agentTimeoutSeconds", seconds.into()).run().failure(code);
    assert_eq!(before.difference(&node.host.snapshot().unwrap()), "");
    assert_eq!(node.leases(), 0);
    let pod = Netlink::open_in(&Namespace::open(&node.host.pod_path("a")).unwrap()).unwrap();
    assert!(pod.link("eth0").unwrap().is_none());
    // The DEL that the runtime sends now finds nothing to do.
    node.call("DEL", "a").key("agentTimeoutSeconds", seconds.into()).run().silent();
    node.host.remove_pod("a").unwrap();
    assert_eq!(node.left(), "");
    message
}

#[test]
fn without_an_agent_add_is_code_11() {
    node(DUAL, |node| {
        node.agent.stop();
        assert!(fails(node, 11).contains("is the agent of this node running?"));
    });
}

#[test]
fn an_agent_that_is_not_ready_is_code_11() {
    node(DUAL, |node| {
        node.agent.behave("node", Behaviour::Refuses(ErrorKind::TryAgain));
        assert!(fails(node, 11).contains("refuses to node"));
        assert_eq!(node.agent.calls(), ["node", "release"], "nothing was begun");
    });
}

#[test]
fn a_pod_that_the_agent_does_not_know_yet_is_code_11() {
    node(DUAL, |node| {
        node.agent.behave("realise", Behaviour::Refuses(ErrorKind::TryAgain));
        assert!(fails(node, 11).contains("refuses to realise"));
        assert_eq!(node.agent.calls()[..3], ["node", "realise", "release"], "the agent is told to forget");
    });
}

#[test]
fn an_address_whose_pod_never_came_up_is_free_at_once() {
    // As many addresses as attempts would take if each had one rest.
    node(&["10.77.0.0/29"], |node| {
        node.host.create_pod("a").unwrap();
        node.agent.behave("realise", Behaviour::Refuses(ErrorKind::TryAgain));
        for attempt in 0..12 {
            let message = node.call("ADD", "a").run().failure(11);
            assert!(message.contains("refuses to realise"), "attempt {attempt}: {message}");
            node.call("DEL", "a").run().silent();
        }
        node.agent.behave("realise", Behaviour::Works);
        node.call("ADD", "a").run().success();
        // One whose links were up rests.
        node.remove("a");
        let store: serde_json::Value = serde_json::from_slice(&std::fs::read(node.store()).unwrap()).unwrap();
        let freed: Vec<u64> = store["freed"].as_object().unwrap().values().map(|second| second.as_u64().unwrap()).collect();
        let last = freed.iter().max().unwrap();
        assert_eq!(freed.iter().filter(|second| **second + COOL_DOWN.as_secs() > *last).count(), 1, "{store}");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn an_agent_that_hangs_is_code_11_in_time() {
    node(DUAL, |node| {
        for call in ["node", "realise"] {
            node.agent.behave(call, Behaviour::Hangs);
            node.agent.behave("release", Behaviour::Hangs);
            let begin = std::time::Instant::now();
            assert!(fails_within(node, 11, 1).contains("did not answer within 1 s"));
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
            node.agent.behave(call, Behaviour::Works);
        }
    });
}

#[test]
fn an_agent_that_dies_in_the_middle_is_code_11() {
    node(DUAL, |node| {
        node.agent.behave("realise", Behaviour::HangsUp);
        assert!(fails(node, 11).contains("hung up"));
    });
}

#[test]
fn an_agent_of_another_version_is_code_11() {
    node(DUAL, |node| {
        node.agent.behave("node", Behaviour::Refuses(ErrorKind::Version));
        fails(node, 11);
    });
}

#[test]
fn an_agent_that_refuses_for_good_is_code_103() {
    node(DUAL, |node| {
        node.agent.behave("realise", Behaviour::Refuses(ErrorKind::Internal));
        fails(node, 103);
    });
}

#[test]
fn without_pinned_programs_add_is_code_11() {
    node(DUAL, |node| {
        let (programs, aside) = (node.host.bpffs().join("palisade/v1/programs"), node.host.bpffs().join("palisade/v1/aside"));
        std::fs::rename(&programs, &aside).unwrap();
        node.host.create_pod("a").unwrap();
        let message = node.call("ADD", "a").run().failure(11);
        assert!(message.contains("no programs are pinned"), "{message}");
        assert_eq!(node.agent.calls(), ["node"], "the agent was not asked to realise what cannot be policed");
        node.host.remove_pod("a").unwrap();
        std::fs::rename(&aside, &programs).unwrap();
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn a_node_without_a_range_is_code_11() {
    node(&[], |node| assert!(fails(node, 11).contains("podCIDRs")));
}

#[test]
fn a_full_range_is_code_100_and_one_that_rests_is_code_11() {
    node(&["10.77.0.0/30"], |node| {
        node.add("first");
        node.host.create_pod("second").unwrap();
        let message = node.call("ADD", "second").run().failure(100);
        assert!(message.contains("10.77.0.0/30 is full, with 1 taken"), "{message}");
        node.remove("first");
        let message = node.call("ADD", "second").run().failure(11);
        assert!(message.contains("try again in"), "{message}");
        node.host.remove_pod("second").unwrap();
        assert_eq!(node.left(), "");
    });
}

#[test]
fn an_interface_that_exists_is_code_4_and_left_alone() {
    node(DUAL, |node| {
        let pod = node.host.create_pod("a").unwrap();
        let inside = Netlink::open_in(&pod).unwrap();
        let (mac, peer_mac) = (MacAddress([2, 0, 0, 0, 0, 1]), MacAddress([2, 0, 0, 0, 0, 2]));
        inside.create_veth(&Veth { name: "eth0", mac, peer_name: "other", peer_mac, peer_namespace: None, mtu: 1500 }).unwrap();
        let message = node.call("ADD", "a").run().failure(4);
        assert!(message.contains("already has an interface eth0") && message.contains("DEL"), "{message}");
        assert_eq!(node.leases(), 0);
        node.call("DEL", "a").run().silent();
        assert!(inside.link("eth0").unwrap().is_some(), "it is not ours to remove");
        node.host.remove_pod("a").unwrap();
    });
}

#[test]
fn a_second_add_does_not_disturb_the_first() {
    node(DUAL, |node| {
        let result = node.add("a");
        assert!(node.call("ADD", "a").run().failure(4).contains("DEL"));
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
    });
}

#[test]
fn a_foreign_route_to_the_address_is_not_taken_away() {
    node(DUAL, |node| {
        let host = Netlink::open().unwrap();
        let foreign = Route::direct("10.77.0.2/32".parse().unwrap(), 1);
        host.add_route(&foreign).unwrap();
        node.host.create_pod("a").unwrap();
        let message = node.call("ADD", "a").run().failure(101);
        assert!(message.contains("10.77.0.2") && message.contains("another interface"), "{message}");
        assert_eq!(node.leases(), 0);
        // The address rests now, and the next try gets another.
        let result = node.call("ADD", "a").run().success();
        assert_eq!(result["ips"][0]["address"], "10.77.0.3/32");
        node.remove("a");
        assert!(host.delete_route(&foreign).unwrap());
        assert_eq!(node.left(), "");
    });
}

#[test]
fn what_an_add_that_was_killed_left_is_removed_by_del() {
    node(DUAL, |node| {
        node.host.create_pod("a").unwrap();
        node.agent.behave("realise", Behaviour::Hangs);
        let mut add = node.call("ADD", "a").start();
        while !node.agent.calls().contains(&"realise") {
            std::thread::sleep(Duration::from_millis(5));
        }
        add.kill().unwrap();
        add.wait().unwrap();
        assert_eq!(node.leases(), 1);
        node.agent.behave("realise", Behaviour::Works);
        assert!(node.call("ADD", "a").run().failure(4).contains("DEL"));
        node.call("DEL", "a").run().silent();
        assert_eq!(node.leases(), 0);
        node.call("ADD", "a").run().success();
        node.remove("a");
        assert_eq!(node.left(), "");
    });
}

#[test]
fn a_damaged_store_refuses_add_and_lets_del_pass() {
    node(DUAL, |node| {
        node.add("a");
        std::fs::write(node.store(), "{\"version\": 1, \"lea").unwrap();
        node.host.create_pod("b").unwrap();
        let message = node.call("ADD", "b").run().failure(5);
        assert!(message.contains("damaged") && message.contains("drain this node"), "{message}");
        node.host.remove_pod("b").unwrap();
        node.remove("a");
        assert_eq!(node.left(), "");
        assert_eq!(std::fs::read_to_string(node.store()).unwrap(), "{\"version\": 1, \"lea", "left untouched");
    });
}

#[test]
fn a_state_directory_that_cannot_be_written_is_code_5() {
    node(DUAL, |node| {
        node.host.create_pod("a").unwrap();
        let message = node.call("ADD", "a").key("stateDir", "/proc/nonexistent".into()).run().failure(5);
        assert!(message.contains("/proc/nonexistent"), "{message}");
        node.host.remove_pod("a").unwrap();
        assert_eq!(node.left(), "");
    });
}
