//! Addresses of another plugin (`ipam.type`): Debian's host-local and static, called by the library that runtimes are built with,
//! and one that does as it is told and writes down how it was called.

use crate::node::{Answer, Behaviour, Call, DUAL, Node, node};
use crate::reconcile::{boot, vanish};
use crate::runtime::{Runtime, with_runtime};
use palisade_cni::link::Netlink;
use palisade_protocol::ErrorKind;
use palisade_test_support::debian::DEBIAN;
use palisade_test_support::skipped;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The versions that Debian's plugins speak as we do.
const VERSIONS: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];

/// Runs a test with one of Debian's plugins; without it the test is skipped, visibly.
fn with_debian(plugin: &str, test: impl FnOnce(&Runtime<'_>) + Send) {
    if !Path::new(DEBIAN).join(plugin).exists() {
        return skipped(&format!("there is no {DEBIAN}/{plugin} (Debian's containernetworking-plugins)"));
    }
    with_runtime(DUAL, |runtime| test(&runtime.folder(DEBIAN)));
}

fn addresses(result: &Value) -> Vec<&str> {
    result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect()
}

fn assert_nothing_left(runtime: &Runtime<'_>) {
    let node = runtime.node;
    assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
}

#[test]
fn host_local_gives_and_takes_back_the_addresses_in_every_version_that_it_speaks() {
    with_debian("host-local", |runtime| {
        let data = tempfile::tempdir().unwrap();
        let held = || {
            let names = std::fs::read_dir(data.path().join("palisade")).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_str().unwrap().starts_with(|first: char| first.is_ascii_digit() || first == 'f')).count()
        };
        let ipam = json!({
            "type": "host-local", "dataDir": data.path(), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "2001:db8::/32"}],
            "ranges": [[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.100"}], [{"subnet": "fd77::/64", "rangeStart": "fd77::100"}]],
        });
        for (round, version) in VERSIONS.into_iter().enumerate() {
            let runtime = runtime.key("ipam", &ipam).version(version);
            let added = runtime.add("a");
            let own = &added.result["own"];
            // host-local goes on after the address that it gave last.
            assert_eq!(addresses(own), [format!("10.77.0.{}/32", 100 + round), format!("fd77::{}/128", 100 + round)]);
            assert_eq!(own["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "2001:db8::/32", "gw": "fe80::1"}]));
            let (pod, _) = runtime.node.inside("a");
            assert!(pod.routes().unwrap().iter().any(|route| route.destination == "2001:db8::/32".parse().unwrap()));
            assert_eq!((held(), runtime.node.leases()), (2, 1));
            let endpoint = runtime.node.agent.endpoints().remove(0);
            assert_eq!(endpoint.addresses[0].to_string(), format!("10.77.0.{}", 100 + round));
            if version != "0.3.1" {
                runtime.call("CHECK", "a").success();
            }
            runtime.remove("a");
            assert_eq!(held(), 0);
            assert_nothing_left(&runtime);
        }
    });
}

#[test]
fn an_address_that_host_local_does_not_know_any_more_fails_check_with_its_words() {
    with_debian("host-local", |runtime| {
        let data = tempfile::tempdir().unwrap();
        let ipam = json!({"type": "host-local", "dataDir": data.path(), "subnet": "10.77.0.0/24"});
        let runtime = runtime.key("ipam", &ipam).version("1.0.0");
        runtime.add("a");
        std::fs::remove_dir_all(data.path().join("palisade")).unwrap();
        let checked = runtime.call("CHECK", "a");
        assert!(checked.message().is_some_and(|message| message.contains("the IPAM plugin host-local: CHECK: ")), "{checked:?}");
        runtime.remove("a");
        assert_nothing_left(&runtime);
    });
}

#[test]
fn a_full_range_of_host_local_leaves_nothing_and_is_said_in_its_words() {
    with_debian("host-local", |runtime| {
        let data = tempfile::tempdir().unwrap();
        let range = json!([[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9", "rangeEnd": "10.77.0.9"}]]);
        let runtime = runtime.key("ipam", &json!({"type": "host-local", "dataDir": data.path(), "ranges": range})).version("1.0.0");
        runtime.add("a");
        runtime.node.host.create_pod("b").unwrap();
        let refused = runtime.call("ADD", "b");
        assert!(refused.message().is_some_and(|message| message.contains("the IPAM plugin host-local: ADD: ")), "{refused:?}");
        assert_eq!(runtime.node.leases(), 1);
        runtime.remove("b");
        runtime.remove("a");
        assert_nothing_left(&runtime);
    });
}

#[test]
fn what_the_runtime_asks_for_reaches_static() {
    with_debian("static", |runtime| {
        let asks = json!(["10.77.0.9/24", "fd77::9/64"]);
        let runtime = runtime.key("ipam", &json!({"type": "static"})).key("capabilities", &json!({"ips": true}));
        let runtime = runtime.version("1.0.0").capability("ips", asks);
        let added = runtime.add("a");
        assert_eq!(addresses(&added.result["own"]), ["10.77.0.9/32", "fd77::9/128"]);
        runtime.call("CHECK", "a").success();
        // It gives the same to everybody; we do not.
        runtime.node.host.create_pod("b").unwrap();
        let refused = runtime.call("ADD", "b").failure(106);
        assert!(refused.contains("10.77.0.9") && refused.contains("container a"), "{refused}");
        runtime.remove("b");
        runtime.call("CHECK", "a").success();
        runtime.remove("a");
        assert_nothing_left(&runtime);
    });
}

/// An IPAM plugin that answers as it is told, and writes down how it was called.
struct Told {
    folder: tempfile::TempDir,
}

const SCRIPT: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 9
cat > "$CNI_COMMAND.input"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS" >> calls
echo "$CNI_ARGS" > "$CNI_COMMAND.args"
[ -e "$CNI_COMMAND.hangs" ] && { sleep 1000 & echo $! > sleeper; wait; }
[ -e "$CNI_COMMAND.fails" ] && { cat "$CNI_COMMAND.fails"; exit 1; }
[ "$CNI_COMMAND" = ADD ] && cat result
exit 0
"#;

impl Told {
    /// One that gives this address, and then these keys.
    fn new(address: &str) -> Self {
        let told = Self { folder: tempfile::tempdir().unwrap() };
        let script = told.path("told");
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        told.give(&json!({"cniVersion": "1.1.0", "ips": [{"address": address}], "dns": {"nameservers": ["192.0.2.53"]}}));
        told
    }

    fn give(&self, result: &Value) {
        std::fs::write(self.path("result"), result.to_string()).unwrap();
    }

    /// Has it fail a verb, saying this on standard output.
    fn fail(&self, verb: &str, says: &str) {
        std::fs::write(self.path(&format!("{verb}.fails")), says).unwrap();
    }

    /// Has it never answer a verb.
    fn hang(&self, verb: &str) {
        std::fs::write(self.path(&format!("{verb}.hangs")), "").unwrap();
    }

    /// Has it serve all verbs again.
    fn work(&self) {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            for how in ["fails", "hangs"] {
                let _ = std::fs::remove_file(self.path(&format!("{verb}.{how}")));
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The calls since this was asked last: verb, container, interface, namespace.
    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("calls"));
        calls.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// What it was handed with a verb.
    fn input(&self, verb: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(&format!("{verb}.input"))).unwrap()).unwrap()
    }

    fn call(&self, node: &Node<'_>, verb: &str, pod: &str) -> Call {
        let folders = format!("/nonexistent:{}", self.folder.path().display());
        node.call(verb, pod).key("ipam", json!({"type": "told", "its own": 1})).env("CNI_PATH", &folders)
    }

    fn add(&self, node: &Node<'_>, pod: &str) -> Answer {
        node.host.create_pod(pod).unwrap();
        self.call(node, "ADD", pod).run()
    }

    fn remove(&self, node: &Node<'_>, pod: &str) {
        self.call(node, "DEL", pod).run().silent();
        node.host.remove_pod(pod).unwrap();
    }
}

fn assert_clean(node: &Node<'_>) {
    assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
}

#[test]
fn the_ipam_plugin_is_handed_the_whole_configuration_and_all_variables_with_every_verb() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        let result = told.add(node, "a").success();
        assert_eq!((&result["ips"][0]["address"], &result["dns"]["nameservers"]), (&json!("10.77.0.9/32"), &json!(["192.0.2.53"])));
        told.call(node, "CHECK", "a").key("prevResult", result.clone()).run().silent();
        told.call(node, "STATUS", "a").run().silent();
        told.call(node, "GC", "a").key("cni.dev/valid-attachments", json!([{"containerID": "a", "ifname": "eth0"}])).run().silent();
        told.remove(node, "a");
        let namespace = node.host.pod_path("a").display().to_string();
        let of_a = |verb: &str| format!("{verb} a eth0 {namespace}");
        assert_eq!(told.calls(), ["ADD", "CHECK", "STATUS", "GC", "DEL"].map(of_a));
        for verb in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
            let input = told.input(verb);
            assert_eq!((&input["ipam"]["its own"], &input["name"], &input["cniVersion"]), (&json!(1), &json!("palisade"), &json!("1.1.0")));
            let arguments = std::fs::read_to_string(told.path(&format!("{verb}.args"))).unwrap();
            assert!(arguments.contains("K8S_POD_NAME=a"), "{arguments}");
        }
        assert_eq!(told.input("CHECK")["prevResult"], result);
        assert_clean(node);
    });
}

#[test]
fn an_error_of_the_ipam_plugin_keeps_its_code_and_add_asks_it_to_del() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        let error = json!({"cniVersion": "1.1.0", "code": 117, "msg": "the pool is dry"}).to_string();
        for (says, code, said) in
            [(error.as_str(), 117, "the IPAM plugin told: ADD: the pool is dry"), ("no json", 107, "without a CNI error: 'no json'")]
        {
            told.fail("ADD", says);
            let message = told.add(node, "a").failure(code);
            assert!(message.contains(said), "{message}");
            let verbs: Vec<String> = told.calls().iter().map(|call| call[..3].to_owned()).collect();
            assert_eq!(verbs, ["ADD", "DEL"]);
            told.work();
            told.remove(node, "a");
            told.calls();
            assert_clean(node);
        }
    });
}

#[test]
fn an_add_that_fails_after_the_ipam_plugin_gave_takes_it_back() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        let verbs = || told.calls().iter().map(|call| call[..3].to_owned()).collect::<Vec<_>>();
        node.agent.behave("realise", Behaviour::Refuses(ErrorKind::TryAgain));
        told.add(node, "a").failure(11);
        assert_eq!(verbs(), ["ADD", "DEL"]);
        node.agent.behave("realise", Behaviour::Works);
        for (address, said) in [("10.9.0.9/24", "10.77.0.0/24, fd77::/64"), ("fd78::9/64", "no other node would send here")] {
            told.give(&json!({"cniVersion": "1.1.0", "ips": [{"address": address}]}));
            let message = told.call(node, "ADD", "a").run().failure(7);
            assert!(message.contains(said) && message.contains("told"), "{message}");
            assert_eq!((verbs(), node.leases()), (vec!["ADD".to_owned(), "DEL".to_owned()], 0));
        }
        told.give(&json!("nothing"));
        assert!(told.call(node, "ADD", "a").run().failure(107).contains("no result"));
        told.remove(node, "a");
        assert_clean(node);
    });
}

#[test]
fn an_address_that_is_asked_for_and_that_the_ipam_plugin_does_not_give_is_refused_and_given_back() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        node.host.create_pod("a").unwrap();
        let asks = |ips: Value| told.call(node, "ADD", "a").key("runtimeConfig", json!({"ips": ips})).run();
        for (ips, said) in
            [(json!(["10.77.0.10/24"]), "10.77.0.10 is asked for"), (json!(["10.77.0.9", "fd77::9"]), "fd77::9 is asked for")]
        {
            let message = asks(ips).failure(7);
            assert!(message.contains(said) && message.contains("it gave 10.77.0.9") && message.contains("told"), "{message}");
            let verbs: Vec<String> = told.calls().iter().map(|call| call[..3].to_owned()).collect();
            assert_eq!((verbs, node.leases()), (vec!["ADD".to_owned(), "DEL".to_owned()], 0));
        }
        asks(json!(["10.77.0.9"])).success();
        told.remove(node, "a");
        assert_clean(node);
    });
}

#[test]
fn del_that_the_ipam_plugin_fails_removes_all_else_and_finds_the_attachment_again() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        told.add(node, "a").success();
        told.fail("DEL", r#"{"code": 11, "msg": "its server is away"}"#);
        assert!(told.call(node, "DEL", "a").run().failure(11).contains("its server is away"));
        assert_eq!((node.leases(), node.agent.endpoints().len()), (1, 0));
        let links = Netlink::open().unwrap().links().unwrap();
        assert!(!links.iter().any(|link| link.name.starts_with("pal")), "{links:?}");
        told.calls();
        // GC remembers, and names the container though its own call is about none.
        told.work();
        told.call(node, "GC", "x").env("CNI_CONTAINERID", "").key("cni.dev/valid-attachments", json!([])).run().silent();
        let calls = told.calls();
        assert!(calls[0].starts_with("DEL a eth0") && calls[1].starts_with("GC"), "{calls:?}");
        node.host.remove_pod("a").unwrap();
        assert_clean(node);
    });
}

#[test]
fn an_ipam_plugin_that_never_answers_is_ended_and_keeps_nobody_waiting() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        let sleeps = || {
            let id = std::fs::read_to_string(told.path("sleeper")).unwrap();
            let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        let soon = |what: &str, is: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is() {
                assert!(began.elapsed() < Duration::from_secs(10), "{what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        node.host.create_pod("a").unwrap();
        let call = |verb: &str| told.call(node, verb, "a").key("agentTimeoutSeconds", 1.into());
        told.hang("ADD");
        let add = call("ADD").run();
        assert_eq!(add.exit, Some(1), "{add:?}");
        let error: Value = serde_json::from_str(&add.stdout).unwrap();
        let message = error["msg"].as_str().unwrap();
        assert!(error["code"] == 11 && message.contains("ADD was not answered within 3 s") && message.contains("told"), "{error}");
        assert!(error["details"].as_str().unwrap().contains("DEL was not asked of it"), "the runtime's DEL does: {error}");
        let verbs = || told.calls().iter().map(|call| call[..3].to_owned()).collect::<Vec<_>>();
        assert_eq!((verbs(), node.leases()), (vec!["ADD".to_owned()], 0));
        soon("what it had started runs on", &|| !sleeps());
        // The attachment's lock is free, and the DEL that follows takes back what the plugin may have given.
        call("DEL").run().silent();
        assert_eq!(verbs(), ["DEL"]);

        told.work();
        let result = call("ADD").run().success();
        for (verb, code) in [("CHECK", 11), ("GC", 11), ("STATUS", 50), ("DEL", 11)] {
            told.hang(verb);
            let valid = json!([{"containerID": "a", "ifname": "eth0"}]);
            let message = call(verb).key("prevResult", result.clone()).key("cni.dev/valid-attachments", valid).run().failure(code);
            assert!(message.contains("was not answered within 3 s"), "{message}");
        }
        assert_eq!(node.leases(), 1, "GC is to find it");
        told.work();
        told.remove(node, "a");
        assert_clean(node);
    });
}

#[test]
fn status_gc_and_check_that_the_ipam_plugin_fails_fail_with_its_code() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        let result = told.add(node, "a").success();
        for (verb, code) in [("STATUS", 51), ("GC", 50), ("CHECK", 113)] {
            told.fail(verb, &json!({"code": code, "msg": "not today"}).to_string());
            let valid = json!([{"containerID": "a", "ifname": "eth0"}]);
            let call = told.call(node, verb, "a").key("prevResult", result.clone()).key("cni.dev/valid-attachments", valid);
            let message = call.run().failure(code);
            assert_eq!(message, format!("the IPAM plugin told: {verb}: not today"));
        }
        told.remove(node, "a");
        assert_clean(node);
    });
}

#[test]
fn an_ipam_plugin_that_is_not_there_is_code_7_and_says_where_it_was_looked_for() {
    node(DUAL, |node| {
        node.host.create_pod("a").unwrap();
        let add = || node.call("ADD", "a").key("ipam", json!({"type": "absent"}));
        let message = add().env("CNI_PATH", "/nonexistent:/usr").run().failure(7);
        assert!(message.contains("absent") && message.contains("/nonexistent, /usr"), "{message}");
        assert!(add().env("CNI_PATH", "").run().failure(4).contains("CNI_PATH"));
        node.host.remove_pod("a").unwrap();
        assert_clean(node);
    });
}

/// ADD with Debian's host-local, whose range has one address.
fn add_the_one(node: &Node<'_>, data: &Path, pod: &str) -> Answer {
    node.host.create_pod(pod).unwrap();
    let range = json!([[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9", "rangeEnd": "10.77.0.9"}]]);
    let ipam = json!({"type": "host-local", "dataDir": data, "ranges": range});
    node.call("ADD", pod).version("1.0.0").key("ipam", ipam).env("CNI_PATH", DEBIAN).run()
}

/// Runs a test on a node, of which it has host-local's files, after a pod that had host-local's one address and went without a DEL.
fn with_one_gone(test: impl FnOnce(&Node<'_>, &Path) + Send) {
    if !Path::new(DEBIAN).join("host-local").exists() {
        return skipped(&format!("there is no {DEBIAN}/host-local (Debian's containernetworking-plugins)"));
    }
    node(DUAL, |node| {
        let data = tempfile::tempdir().unwrap();
        let gone = add_the_one(node, data.path(), "gone").success();
        vanish(node, "gone", &gone);
        test(node, data.path());
        // Late, and nobody else's.
        node.call("DEL", "gone").run().silent();
        assert_eq!(node.leases(), 1);
        node.remove("next");
        assert_clean(node);
    });
}

#[test]
fn an_address_that_host_local_has_forgotten_and_gives_anew_is_kept_for_nobody_who_is_gone() {
    with_one_gone(|node, data| {
        std::fs::remove_dir_all(data.join("palisade")).unwrap();
        let result = add_the_one(node, data, "next").success();
        assert_eq!((&result["ips"][0]["address"], node.leases()), (&json!("10.77.0.9/32"), 1));
        assert!(std::fs::read_to_string(data.join("palisade/10.77.0.9")).unwrap().starts_with("next"));
    });
}

#[test]
fn a_full_range_of_host_local_has_room_again_for_an_address_whose_interface_is_gone() {
    with_one_gone(|node, data| {
        let result = add_the_one(node, data, "next").success();
        assert_eq!((&result["ips"][0]["address"], node.leases()), (&json!("10.77.0.9/32"), 1));
    });
}

#[test]
fn after_a_boot_the_ipam_plugin_is_asked_to_take_back_what_is_gone_and_told_nothing_of_who_comes() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        let gone = told.add(node, "gone").success();
        vanish(node, "gone", &gone);
        told.calls();
        told.fail("DEL", r#"{"code": 11, "msg": "its server is away"}"#);
        boot(node);
        told.give(&json!({"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.10/24"}]}));
        told.add(node, "one").success();
        assert_eq!((told.calls()[0].as_str(), node.leases()), ("DEL gone eth0", 2), "only the plugin takes back what it gave");
        assert_eq!(std::fs::read_to_string(told.path("DEL.args")).unwrap().trim(), "");
        told.work();
        boot(node);
        node.host.create_pod("two").unwrap();
        told.give(&json!({"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.11/24"}]}));
        let asks = json!({"ips": ["10.77.0.11"]});
        told.call(node, "ADD", "two").key("runtimeConfig", asks.clone()).run().success();
        let calls = told.calls();
        assert!(calls[0] == "DEL gone eth0" && calls[1].starts_with("ADD two"), "{calls:?}");
        assert_eq!((&told.input("ADD")["runtimeConfig"], told.input("DEL").get("runtimeConfig")), (&asks, None));
        assert_eq!(node.leases(), 2);
        for pod in ["one", "two"] {
            told.remove(node, pod);
        }
        told.call(node, "DEL", "gone").run().silent();
        assert_clean(node);
    });
}

#[test]
fn what_the_ipam_plugin_gives_away_is_taken_from_all_who_are_gone_of_another_network_too_and_from_nobody_else() {
    node(DUAL, |node| {
        let told = Told::new("10.77.0.9/24");
        node.host.create_pod("old").unwrap();
        let old = told.call(node, "ADD", "old").key("name", json!("old")).run().success();
        told.give(&json!({"cniVersion": "1.1.0", "ips": [{"address": "fd77::9/64"}]}));
        let gone = told.add(node, "gone").success();
        told.give(&json!({"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24"}, {"address": "fd77::9/64"}]}));
        vanish(node, "gone", &gone);
        let refused = told.add(node, "next").failure(106);
        assert!(refused.contains("10.77.0.9") && refused.contains("container old"), "{refused}");
        vanish(node, "old", &old);
        // The plugin has forgotten both; that it says no to DEL is nothing to the one whom it gave the addresses.
        told.fail("DEL", r#"{"code": 11, "msg": "its server is away"}"#);
        told.calls();
        told.call(node, "ADD", "next").run().success();
        let calls = told.calls();
        assert!(calls[0].starts_with("ADD next") && calls[1..] == ["DEL gone eth0"], "another network's is not asked about: {calls:?}");
        assert_eq!(node.leases(), 1);
        told.work();
        told.remove(node, "next");
        told.call(node, "DEL", "old").key("name", json!("old")).run().silent();
        told.call(node, "DEL", "gone").run().silent();
        assert_clean(node);
    });
}
