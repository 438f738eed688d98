//! Chains: Debian's plugins after ours, called by the library that runtimes are built with. What those need and is not here,
//! a plugin or something of the kernel, is left out of the chain, visibly.

use crate::node::DUAL;
use crate::runtime::{Reply, Runtime, with_runtime};
use palisade_cni::link::{Namespace, sysctl};
use palisade_loader::{AttachKind, supported_kind};
use palisade_test_support::debian::{DEBIAN, SYSTEM, missing, said};
use palisade_test_support::skipped;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A port of the node that leads to the pod.
const HOST_PORT: u16 = 8080;

/// A runtime whose network has Debian's plugins after ours: their names beside it, in order.
fn chain<'a>(runtime: &Runtime<'a>) -> (Runtime<'a>, Vec<&'static str>) {
    let backups = runtime.node.host.directory().join("tuning");
    let mut plugins = [
        json!({"type": "tuning", "dataDir": backups, "mtu": 1400, "sysctl": {"net.ipv4.tcp_syncookies": "0"}}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000}),
    ];
    if limits_egress() {
        plugins[2]["egressRate"] = 8_000_000.into();
        plugins[2]["egressBurst"] = 800_000.into();
    }
    let mapping = json!([{"hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp"}]);
    let mut chain = runtime.folder(DEBIAN).path(SYSTEM).capability("portMappings", mapping);
    let mut names = Vec::new();
    for (name, plugin) in ["tuning", "portmap", "bandwidth"].into_iter().zip(&plugins) {
        match missing(name) {
            None => {
                names.push(name);
                chain = chain.then(plugin);
            }
            Some(reason) => skipped(&format!("the chain is without {name}: {reason}")),
        }
    }
    if names.contains(&"bandwidth") && !limits_egress() {
        skipped("bandwidth limits one direction only: before Linux 6.6 our programs hang where its other queue would");
    }
    (chain, names)
}

/// Whether bandwidth can limit what a pod sends: it needs an ingress qdisc, which cannot be beside the clsact qdisc that our
/// programs need on kernels without TCX.
fn limits_egress() -> bool {
    supported_kind().unwrap() == AttachKind::Tcx
}

/// The rules of both families, without comments and counters; none where there is no such command.
fn rules() -> Vec<String> {
    let all = ["iptables-save", "ip6tables-save"].map(|command| said(command).unwrap_or_default()).join("\n");
    all.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect()
}

/// Those of the versions that every plugin of the chain speaks, as a runtime finds them out.
fn common_versions(chain: &Runtime<'_>, names: &[&str]) -> Vec<String> {
    let mut common = chain.versions("palisade-cni");
    for name in names {
        let spoken = chain.versions(name);
        common.retain(|version| spoken.contains(version));
    }
    common
}

/// The whole list was asked to add, and what we printed is in the result still: interfaces, addresses, routes.
fn assert_ours_survives(added: &Reply, names: &[&str]) {
    let order: Vec<String> = ["palisade-cni"].iter().chain(names).map(|name| format!("ADD {name}")).collect();
    assert_eq!(added.order(), order);
    let (ours, last) = (added.printed(0), &added.result["own"]);
    let interface = |interface: &Value| ["name", "mac", "sandbox"].map(|key| interface[key].clone());
    for place in [0, 1] {
        assert_eq!(interface(&last["interfaces"][place]), interface(&ours["interfaces"][place]), "{last}");
    }
    assert_eq!((&last["ips"], &last["routes"]), (&ours["ips"], &ours["routes"]));
}

/// Each plugin of the chain did to a pod what it is for.
fn assert_all_did(chain: &Runtime<'_>, names: &[&str], pod: &str, added: &Reply) {
    let host = added.result["own"]["interfaces"][0]["name"].as_str().unwrap();
    if names.contains(&"tuning") {
        let (netlink, _) = chain.node.inside(pod);
        assert_eq!(netlink.link("eth0").unwrap().unwrap().mtu, 1400);
        let namespace = Namespace::open(&chain.node.host.pod_path(pod)).unwrap();
        assert_eq!(namespace.enter(|| sysctl::read("net/ipv4/tcp_syncookies")).unwrap().unwrap(), "0");
    }
    if names.contains(&"portmap") {
        for ip in added.result["own"]["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap().split('/').next().unwrap();
            assert!(rules().iter().any(|rule| rule.contains(&format!("--dport {HOST_PORT}")) && rule.contains(address)), "{:#?}", rules());
        }
    }
    if names.contains(&"bandwidth") {
        assert!(said(&format!("tc qdisc show dev {host}")).unwrap().contains("tbf"));
        // For what the pod sends, a device of its own.
        assert_eq!(added.result["own"]["interfaces"].as_array().unwrap().len(), 2 + usize::from(limits_egress()));
    }
}

/// Nothing is left of any pod but the chains that portmap makes once for all pods; the rules that are left.
fn assert_nothing_left(chain: &Runtime<'_>) -> Vec<String> {
    let node = chain.node;
    assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
    let left = rules();
    let of_a_pod = |rule: &&String| rule.contains("CNI-DN-") || rule.contains("10.77.0.") || rule.contains("fd77:");
    assert_eq!(left.iter().find(of_a_pod), None);
    left
}

/// A folder with `iptables` and nothing else. It is not on the node: there it would count as left.
fn without_ip6tables() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let places = SYSTEM.split(':').map(|folder| PathBuf::from(folder).join("iptables"));
    if let Some(iptables) = places.into_iter().find(|place| place.exists()) {
        std::os::unix::fs::symlink(iptables, folder.path().join("iptables")).unwrap();
    }
    let path = folder.path().to_str().unwrap().to_owned();
    (folder, path)
}

/// CHECK of the whole chain. Before its version 1.3 portmap looks for the IPv4 rules in IPv6's table, too
/// (containernetworking/plugins issue 819), and fails where both are there: then the others are asked without it.
fn check(chain: &Runtime<'_>, pod: &str) {
    let checked = chain.call("CHECK", pod);
    if checked.message().is_some_and(|message| message.contains("could not check ipv6 dnat")) {
        assert_eq!(checked.order()[0], "CHECK palisade-cni", "ours was content");
        skipped("CHECK is without portmap: this version of it finds no rules where there is ip6tables");
        chain.without("portmap").call("CHECK", pod).success();
    } else {
        checked.success();
    }
}

#[test]
fn a_chain_adds_checks_and_deletes_in_every_version_that_all_its_plugins_speak() {
    // One family, so that CHECK of every plugin can succeed.
    with_runtime(&["10.77.0.0/24"], |runtime| {
        let (chain, names) = chain(runtime);
        if names.is_empty() {
            return;
        }
        let (_folder, path) = without_ip6tables();
        let chain = chain.path(&path);
        let versions = common_versions(&chain, &names);
        assert!(versions.len() >= 3, "{versions:?}");
        let mut left = None;
        for version in &versions {
            let chain = chain.version(version);
            assert_eq!(
                chain.of_network("VALIDATE").success().result,
                json!(if names.contains(&"portmap") { &["portMappings"][..] } else { &[] })
            );
            let added = chain.add("a");
            assert_ours_survives(&added, &names);
            assert_all_did(&chain, &names, "a", &added);
            if version != "0.3.1" {
                let checked = chain.call("CHECK", "a").success();
                assert!(checked.calls.iter().all(|call| call.input["prevResult"] == added.result["own"]), "{checked:?}");
                assert_eq!(checked.calls.len(), names.len() + 1);
            }
            let removed = chain.call("DEL", "a").success();
            assert_eq!(removed.order().last().map(String::as_str), Some("DEL palisade-cni"), "ours is the last to go");
            chain.node.host.remove_pod("a").unwrap();
            // What the first pod left is portmap's for all pods; no further pod adds to it.
            let rules = assert_nothing_left(&chain);
            assert_eq!(left.get_or_insert_with(|| rules.clone()), &rules, "{version}");
        }
    });
}

#[test]
fn a_chain_carries_both_families() {
    with_runtime(DUAL, |runtime| {
        let (chain, names) = chain(runtime);
        let Some(version) = common_versions(&chain, &names).pop().filter(|_| !names.is_empty()) else { return };
        let chain = chain.version(&version);
        let added = chain.add("a");
        assert_ours_survives(&added, &names);
        assert_all_did(&chain, &names, "a", &added);
        check(&chain, "a");
        chain.remove("a");
        assert_nothing_left(&chain);
    });
}

#[test]
fn pods_that_come_and_go_at_once_through_a_chain_each_have_their_own() {
    const PODS: usize = 6;
    with_runtime(DUAL, |runtime| {
        let (chain, names) = chain(runtime);
        let Some(version) = common_versions(&chain, &names).pop().filter(|_| !names.is_empty()) else { return };
        let chain = chain.version(&version);
        // What portmap makes once for all pods it does not make for two at once.
        chain.add("first");
        let pods: Vec<String> = (0..PODS).map(|number| format!("pod{number}")).collect();
        for pod in &pods {
            chain.node.host.create_pod(pod).unwrap();
        }
        let all = |verb: &str| -> Vec<Reply> {
            let call = |number: usize| {
                let mapping = json!([{"hostPort": usize::from(HOST_PORT) + 1 + number, "containerPort": 80, "protocol": "tcp"}]);
                chain.capability("portMappings", mapping).call(verb, &pods[number]).success()
            };
            std::thread::scope(|scope| {
                let calls: Vec<_> = (0..PODS)
                    .map(|number| {
                        scope.spawn({
                            let call = &call;
                            move || call(number)
                        })
                    })
                    .collect();
                calls.into_iter().map(|call| call.join().unwrap()).collect()
            })
        };
        let added = all("ADD");
        let addresses: BTreeSet<&str> = added.iter().map(|reply| reply.result["own"]["ips"][0]["address"].as_str().unwrap()).collect();
        assert_eq!((addresses.len(), chain.node.leases(), chain.node.agent.endpoints().len()), (PODS, PODS + 1, PODS + 1));
        for (number, reply) in added.iter().enumerate() {
            assert_ours_survives(reply, &names);
            let port = format!("--dport {}", usize::from(HOST_PORT) + 1 + number);
            assert!(!names.contains(&"portmap") || rules().iter().any(|rule| rule.contains(&port)), "{port}: {:#?}", rules());
        }
        all("DEL");
        for pod in &pods {
            chain.node.host.remove_pod(pod).unwrap();
        }
        chain.remove("first");
        assert_nothing_left(&chain);
    });
}

#[test]
fn check_of_a_chain_finds_what_was_taken_from_us() {
    with_runtime(DUAL, |runtime| {
        let (chain, names) = chain(runtime);
        let Some(version) = common_versions(&chain, &names).pop().filter(|_| !names.is_empty()) else { return };
        let chain = chain.version(&version);
        chain.add("a");
        let (pod, index) = chain.node.inside("a");
        assert!(pod.delete_address(index, "10.77.0.2/32".parse().unwrap()).unwrap());
        assert!(chain.call("CHECK", "a").failure(104).contains("lost its address"));
        chain.remove("a");
        assert_nothing_left(&chain);
    });
}

#[test]
fn check_of_a_chain_finds_an_ethernet_address_that_tuning_changed_and_not_one_that_was_asked_of_us() {
    with_runtime(DUAL, |runtime| {
        if let Some(reason) = missing("tuning") {
            return skipped(&format!("the chain is without tuning: {reason}"));
        }
        let tuning = json!({"type": "tuning", "dataDir": runtime.node.host.directory().join("tuning"), "mac": "02:00:5e:10:0a:ff"});
        let runtime = runtime.folder(DEBIAN).path(SYSTEM).version("1.0.0");
        let changed = runtime.then(&tuning);
        assert_eq!(changed.add("a").result["own"]["interfaces"][1]["mac"], "02:00:5e:10:0a:ff");
        let message = changed.call("CHECK", "a").failure(104);
        assert!(message.contains("02:00:5e:10:0a:ff") && message.contains("capability \"mac\""), "{message}");
        changed.remove("a");
        let asked = runtime.key("capabilities", &json!({"mac": true})).capability("mac", json!("02:00:5e:10:0a:ff"));
        assert_eq!(asked.add("a").result["own"]["interfaces"][1]["mac"], "02:00:5e:10:0a:ff");
        asked.call("CHECK", "a").success();
        asked.remove("a");
        assert_nothing_left(&asked);
    });
}

#[test]
fn a_chain_whose_later_plugin_fails_is_undone_by_the_del_that_follows() {
    with_runtime(DUAL, |runtime| {
        let (chain, names) = chain(runtime);
        if !names.contains(&"tuning") {
            return;
        }
        let fails = json!({"type": "tuning", "dataDir": runtime.node.host.directory().join("tuning"), "sysctl": {"net.nonexistent": "1"}});
        let chain = chain.version("1.0.0").then(&fails);
        chain.node.host.create_pod("a").unwrap();
        let added = chain.call("ADD", "a");
        assert_eq!(added.calls.len(), names.len() + 2, "all were called: {added:?}");
        assert!(added.message().is_some_and(|message| message.contains("nonexistent")), "{added:?}");
        assert!(!chain.cached("a").exists());
        chain.remove("a");
        assert_nothing_left(&chain);
    });
}

#[test]
fn gc_of_a_chain_leaves_the_valid_pods_whole() {
    with_runtime(DUAL, |runtime| {
        let (chain, names) = chain(runtime);
        let Some(version) = common_versions(&chain, &names).pop().filter(|_| !names.is_empty()) else { return };
        let chain = chain.version(&version);
        // Without portmap: see `check`.
        let kept = chain.without("portmap");
        let added = kept.add("kept");
        chain.add("stale");
        chain.gc(Some(&["kept"])).success();
        assert_eq!((chain.node.leases(), chain.node.agent.endpoints().len()), (1, 1));
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != "portmap").collect();
        assert_all_did(&kept, &others, "kept", &added);
        kept.call("CHECK", "kept").success();
        chain.node.host.remove_pod("stale").unwrap();
        kept.remove("kept");
        assert_nothing_left(&chain);
    });
}
