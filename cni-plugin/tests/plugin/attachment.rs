//! The verbs where all goes well: the real binary, real namespaces, the real programs, an agent that works.

use crate::node::{Answer, Behaviour, DUAL, Node, node};
use palisade_cni::link::{MacAddress, Namespace, Netlink, ROUTE_PROTOCOL, Route, sysctl};
use palisade_protocol::{ErrorKind, record_name};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The IPv6 link-local address that an interface with this Ethernet address gives itself (modified EUI-64).
fn own_link_local(MacAddress([a, b, c, d, e, f]): MacAddress) -> Ipv6Addr {
    let pair = u16::from_be_bytes;
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair([a ^ 0x02, b]), pair([c, 0xff]), pair([0xfe, d]), pair([e, f]))
}

#[test]
fn add_wires_the_pod_and_del_leaves_nothing() {
    node(DUAL, |node| {
        let result = node.add("a");
        let host_link = node.host_link(&result);
        let (pod, index) = node.inside("a");
        let pod_link = pod.link("eth0").unwrap().unwrap();
        assert!(host_link.up && pod_link.up);
        assert_eq!((host_link.mtu, pod_link.mtu), (1450, 1450));
        assert_eq!(host_link.peer, Some(index));

        let link_local = format!("{}/64", own_link_local(pod_link.mac.unwrap()));
        let list = || pod.addresses_of(index).unwrap().iter().map(|address| address.address.to_string()).collect::<Vec<_>>();
        // The kernel makes its own address when it notices, a moment later, that the link works.
        while !list().contains(&link_local) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let addresses = list();
        for address in ["10.77.0.2/32", "fd77::2/128", &link_local] {
            assert!(addresses.iter().any(|present| present == address), "{address} in {addresses:?}");
        }
        let routes = pod.routes().unwrap();
        for gateway in ["169.254.1.1", "fe80::1"] {
            assert!(routes.iter().any(|route| route.destination.prefix_len() == 0 && route.gateway == Some(ip(gateway))), "{routes:?}");
            let neighbours = pod.neighbours().unwrap();
            let known = neighbours.iter().find(|neighbour| neighbour.address == ip(gateway)).unwrap();
            assert!(known.permanent && known.mac == host_link.mac);
        }
        let host = Netlink::open().unwrap();
        for address in ["10.77.0.2", "fd77::2"] {
            let route = host.routes().unwrap().into_iter().find(|route| route.destination == ip(address).into()).unwrap();
            assert_eq!((route.link, route.protocol), (Some(host_link.index), ROUTE_PROTOCOL));
            let known = host.neighbours().unwrap().into_iter().find(|neighbour| neighbour.address == ip(address)).unwrap();
            assert!(known.permanent && known.mac == pod_link.mac);
        }
        let setting = |name: &str| sysctl::read(&format!("net/{name}").replace("IF", &host_link.name)).unwrap();
        assert_eq!((setting("ipv4/conf/IF/forwarding"), setting("ipv4/conf/IF/rp_filter")), ("1".into(), "1".into()));
        assert_eq!((setting("ipv6/conf/IF/forwarding"), setting("ipv6/conf/IF/accept_ra")), ("1".into(), "0".into()));

        node.remove("a");
        assert_eq!(node.left(), "");
        assert_eq!((node.leases(), node.agent.endpoints().len()), (0, 0));
    });
}

#[test]
fn the_policy_is_asked_for_when_the_programs_are_attached_and_before_any_link_is_up() {
    node(DUAL, |node| {
        let result = node.add("a");
        assert_eq!(node.agent.faults(), Vec::<String>::new());
        assert_eq!(node.agent.calls(), ["node", "realise"]);
        let endpoint = node.agent.endpoints().remove(0);
        assert_eq!((endpoint.namespace.as_str(), endpoint.pod.as_str(), endpoint.uid.as_deref()), ("shop", "a", Some("uid-a")));
        assert_eq!((endpoint.attachment.container_id.as_str(), endpoint.attachment.interface.as_str()), ("a", "eth0"));
        assert_eq!(endpoint.addresses, [ip("10.77.0.2"), ip("fd77::2")]);
        assert_eq!(endpoint.host_interface, result["interfaces"][0]["name"].as_str().unwrap());
        assert_eq!(endpoint.host_mac, result["interfaces"][0]["mac"].as_str().unwrap());
        assert_eq!(endpoint.pod_mac, result["interfaces"][1]["mac"].as_str().unwrap());
        assert_eq!(endpoint.host_index, node.host_link(&result).index);
        node.remove("a");
    });
}

#[test]
fn the_result_has_the_form_of_the_version_asked_for() {
    node(DUAL, |node| {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            node.host.create_pod("a").unwrap();
            let result = node.call("ADD", "a").version(version).run().success();
            assert_eq!(result["cniVersion"], version);
            let sandbox = node.host.pod_path("a");
            assert_eq!(result["interfaces"][1]["name"], "eth0");
            assert_eq!(result["interfaces"][1]["sandbox"], sandbox.to_str().unwrap());
            assert!(result["interfaces"][0].get("sandbox").is_none());
            let old = version < "1.0.0";
            for (place, family, length, gateway) in [(0, "4", "/32", "169.254.1.1"), (1, "6", "/128", "fe80::1")] {
                let address = &result["ips"][place];
                assert!(address["address"].as_str().unwrap().ends_with(length), "{result}");
                assert_eq!((&address["gateway"], &address["interface"]), (&json!(gateway), &json!(1)));
                assert_eq!(address.get("version"), old.then_some(&json!(family)), "{result}");
            }
            assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]));
            assert_eq!(result["interfaces"][1].get("mtu").is_some(), version == "1.1.0", "{result}");
            node.call("DEL", "a").version(version).key("prevResult", result).run().silent();
            node.host.remove_pod("a").unwrap();
        }
        assert_eq!(node.left(), "");
    });
}

#[test]
fn in_a_chain_the_result_of_the_plugin_before_is_amended() {
    node(DUAL, |node| {
        node.host.create_pod("a").unwrap();
        let previous = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "lo", "sandbox": node.host.pod_path("a")}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let result = node.call("ADD", "a").version("1.0.0").key("prevResult", previous).run().success();
        assert_eq!((&result["interfaces"][0]["name"], &result["ips"][0]["address"]), (&json!("lo"), &json!("127.0.0.1/8")));
        assert_eq!((&result["interfaces"][2]["name"], &result["ips"][1]["interface"]), (&json!("eth0"), &json!(2)));
        assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]));
        node.call("CHECK", "a").version("1.0.0").key("prevResult", result).run().silent();
        node.remove("a");
    });
}

#[test]
fn one_family_is_enough() {
    for (range, own, other) in [("10.77.0.0/24", "10.77.0.2/32", "fd77::"), ("fd77::/64", "fd77::2/128", "10.77.")] {
        node(&[range], |node| {
            let result = node.add("a");
            assert_eq!(result["ips"].as_array().unwrap().len(), 1);
            assert_eq!(result["ips"][0]["address"], own);
            assert!(!result.to_string().contains(other));
            node.call("CHECK", "a").key("prevResult", result).run().silent();
            node.remove("a");
            assert_eq!(node.left(), "");
        });
    }
}

#[test]
fn a_node_without_ipv6_wires_ipv4() {
    node(DUAL, |node| {
        sysctl::write("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let result = node.add("a");
        assert_eq!(result["ips"].as_array().unwrap().len(), 1, "{result}");
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");

        node.agent.set_ranges(&["fd77::/64"]);
        node.host.create_pod("b").unwrap();
        let message = node.call("ADD", "b").run().failure(101);
        assert!(message.contains("disable_ipv6"), "{message}");
        node.host.remove_pod("b").unwrap();
        sysctl::write("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
        Netlink::open().unwrap().set_down(1).unwrap();
        Netlink::open().unwrap().set_up(1).unwrap();
        assert_eq!(node.left(), "");
    });
}

#[test]
fn a_pod_whose_namespace_has_ipv6_turned_off_gets_it_on_its_interface() {
    node(DUAL, |node| {
        let namespace = node.host.create_pod("a").unwrap();
        namespace
            .enter(|| ["all", "default"].map(|scope| sysctl::write(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap()))
            .unwrap();
        let result = node.call("ADD", "a").run().success();
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
    });
}

#[test]
fn del_succeeds_with_anything_missing() {
    node(DUAL, |node| {
        node.call("DEL", "never-there").run().silent();

        node.add("twice");
        node.call("DEL", "twice").run().silent();
        node.remove("twice");

        node.add("no-netns");
        node.host.remove_pod("no-netns").unwrap();
        node.call("DEL", "no-netns").run().silent();

        node.add("empty-netns");
        node.call("DEL", "empty-netns").env("CNI_NETNS", "").run().silent();
        node.remove("empty-netns");

        let result = node.add("no-link");
        let link = node.host_link(&result);
        Netlink::open().unwrap().delete_link(link.index).unwrap();
        node.remove("no-link");

        node.add("no-records");
        for name in ["attachments", "endpoints"] {
            std::fs::remove_dir_all(node.host.run_dir().join(name)).unwrap();
            std::fs::create_dir(node.host.run_dir().join(name)).unwrap();
        }
        node.remove("no-records");
        // Without the record nobody knows where the programs were pinned; their interface is gone, the agent sweeps.
        let left = node.left();
        assert!(left.lines().all(|line| line.starts_with("+ file") && line.contains("/links/")), "{left}");
        assert_eq!(node.leases(), 0);
    });
}

#[test]
fn del_works_while_the_agent_is_down_or_hangs() {
    node(DUAL, |node| {
        node.add("a");
        node.add("b");
        node.agent.behave("release", Behaviour::Hangs);
        node.remove("a");
        node.agent.stop();
        node.remove("b");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

/// Gives a pod's `eth0` another Ethernet address.
fn set_mac(node: &Node<'_>, pod: &str, mac: &str) {
    let namespace = Namespace::open(&node.host.pod_path(pod)).unwrap();
    let status = namespace.enter(|| Command::new("ip").args(["link", "set", "eth0", "address", mac]).status()).unwrap().unwrap();
    assert!(status.success());
}

#[test]
fn check_finds_whatever_is_not_as_add_left_it() {
    node(DUAL, |node| {
        /// What CHECK must say, and what makes it say so.
        type Spoil<'a> = (&'a str, &'a dyn Fn(&Value));
        let spoil: &[Spoil<'_>] = &[
            ("is down", &|result| Netlink::open().unwrap().set_down(node.host_link(result).index).unwrap()),
            ("lost its address", &|_| {
                let (pod, index) = node.inside("a");
                assert!(pod.delete_address(index, "10.77.0.2/32".parse().unwrap()).unwrap());
            }),
            ("no default route", &|_| {
                let (pod, index) = node.inside("a");
                assert!(pod.delete_route(&Route::default_via(ip("fe80::1"), index)).unwrap());
            }),
            ("no route to", &|result| {
                let route = Route::direct("fd77::2/128".parse().unwrap(), node.host_link(result).index);
                assert!(Netlink::open().unwrap().delete_route(&route).unwrap());
            }),
            ("Ethernet address", &|_| {
                set_mac(node, "a", "02:00:00:00:00:77");
            }),
            ("programs are not attached", &|result| {
                let pins = node.host.bpffs().join("palisade/v1/links");
                std::fs::remove_file(pins.join(format!("{}-to_pod", node.host_link(result).index))).unwrap();
            }),
            ("no address in the store", &|_| std::fs::remove_file(node.store()).unwrap()),
            ("is gone", &|result| assert!(Netlink::open().unwrap().delete_link(node.host_link(result).index).unwrap())),
            ("refuses to check", &|_| node.agent.behave("check", Behaviour::Refuses(ErrorKind::Differs))),
        ];
        for (said, spoil) in spoil {
            // Always the same address: the store is new each time.
            let _ = std::fs::remove_file(node.store());
            let result = node.add("a");
            node.call("CHECK", "a").key("prevResult", result.clone()).run().silent();
            spoil(&result);
            let message = node.call("CHECK", "a").key("prevResult", result).run().failure(104);
            assert!(message.contains(said), "{message}");
            node.remove("a");
            assert_eq!(node.left(), "", "{said}");
        }
    });
}

#[test]
fn check_tolerates_what_later_plugins_changed() {
    node(DUAL, |node| {
        let mut result = node.add("a");
        let (pod, index) = node.inside("a");
        pod.add_address(index, "192.0.2.7/32".parse().unwrap()).unwrap();
        pod.add_route(&Route::via("198.51.100.0/24".parse().unwrap(), ip("169.254.1.1"), index)).unwrap();
        pod.set_mtu(index, 1300).unwrap();
        result["interfaces"].as_array_mut().unwrap().push(json!({"name": "ifb0"}));
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
    });
}

#[test]
fn check_finds_an_ethernet_address_that_a_later_plugin_changed_though_its_result_says_so() {
    node(DUAL, |node| {
        let mut result = node.add("a");
        set_mac(node, "a", "02:00:00:00:00:77");
        let own = result["interfaces"][1]["mac"].clone();
        result["interfaces"][1]["mac"] = "02:00:00:00:00:77".into();
        let message = node.call("CHECK", "a").key("prevResult", result.clone()).run().failure(104);
        assert!(message.contains("02:00:00:00:00:77") && message.contains(own.as_str().unwrap()), "{message}");
        assert!(message.contains("capability \"mac\""), "{message}");
        // It is the address that counts, and not what the result says of it.
        set_mac(node, "a", own.as_str().unwrap());
        result["interfaces"][1].as_object_mut().unwrap().remove("mac");
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
    });
}

#[test]
fn host_ports_go_to_the_agent_and_check_compares_them_with_what_it_keeps() {
    node(DUAL, |node| {
        let mapping = |port: u16| json!({"HostPort": port, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""});
        let with = |verb: &str, mappings: Value| node.call(verb, "a").key("runtimeConfig", json!({"portMappings": mappings}));
        node.host.create_pod("a").unwrap();
        let result = with("ADD", json!([mapping(8080), mapping(8081)])).run().success();
        let ports: Vec<String> = node.agent.endpoints()[0].host_ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["8080/TCP to 80", "8081/TCP to 80"]);
        let check = |mappings: Value| with("CHECK", mappings).key("prevResult", result.clone()).run();
        check(json!([mapping(8081), mapping(8080)])).silent();
        assert!(check(json!([mapping(8080), mapping(8081), mapping(8082)])).failure(104).contains("8082/TCP to 80"));
        assert!(check(json!([mapping(8080)])).failure(104).contains("8081/TCP to 80"));
        node.remove("a");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn addresses_and_mac_that_are_asked_for_are_the_pods() {
    node(DUAL, |node| {
        let asks = json!({"ips": ["10.77.0.9/24", "fd77::9"], "mac": "02:00:5e:10:0a:ff"});
        let call = |verb: &str| node.call(verb, "a").key("runtimeConfig", asks.clone());
        node.host.create_pod("a").unwrap();
        let result = call("ADD").run().success();
        assert_eq!((&result["ips"][0]["address"], &result["ips"][1]["address"]), (&json!("10.77.0.9/32"), &json!("fd77::9/128")));
        assert_eq!(result["interfaces"][1]["mac"], "02:00:5e:10:0a:ff");
        let (pod, _) = node.inside("a");
        assert_eq!(pod.link("eth0").unwrap().unwrap().mac, Some("02:00:5e:10:0a:ff".parse().unwrap()));
        let endpoint = node.agent.endpoints().remove(0);
        assert_eq!((endpoint.pod_mac.as_str(), &endpoint.addresses[..]), ("02:00:5e:10:0a:ff", &[ip("10.77.0.9"), ip("fd77::9")][..]));
        let host = Netlink::open().unwrap().neighbours().unwrap();
        assert!(host.iter().any(|neighbour| neighbour.address == ip("fd77::9") && neighbour.mac == "02:00:5e:10:0a:ff".parse().ok()));
        call("CHECK").key("prevResult", result).run().silent();
        node.host.create_pod("b").unwrap();
        let message = node.call("ADD", "b").key("args", json!({"cni": {"ips": ["10.77.0.9"]}})).run().failure(106);
        assert!(message.contains("container a"), "{message}");
        let other = node.call("ADD", "b").env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=b;IP=10.78.0.9").run().failure(7);
        assert!(other.contains("10.77.0.0/24, fd77::/64"), "{other}");
        node.host.remove_pod("b").unwrap();
        node.remove("a");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn thirty_pods_at_once_each_get_addresses_of_their_own() {
    const PODS: usize = 30;
    node(DUAL, |node| {
        let names: Vec<String> = (0..PODS).map(|number| format!("pod{number}")).collect();
        for name in &names {
            node.host.create_pod(name).unwrap();
        }
        let all = |verb: &str| -> Vec<Answer> {
            let children: Vec<_> = names.iter().map(|name| node.call(verb, name).start()).collect();
            children.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect()
        };
        let results: Vec<Value> = all("ADD").into_iter().map(Answer::success).collect();
        for place in [0, 1] {
            let addresses: BTreeSet<&str> = results.iter().map(|result| result["ips"][place]["address"].as_str().unwrap()).collect();
            assert_eq!(addresses.len(), PODS);
        }
        assert_eq!((node.leases(), node.agent.endpoints().len()), (PODS, PODS));
        assert_eq!(node.agent.faults(), Vec::<String>::new());
        all("DEL").into_iter().for_each(Answer::silent);
        for name in &names {
            node.host.remove_pod(name).unwrap();
        }
        assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
    });
}

#[test]
fn two_adds_at_once_for_one_container_are_one_attachment_and_one_error() {
    node(DUAL, |node| {
        node.host.create_pod("a").unwrap();
        let children = [node.call("ADD", "a").start(), node.call("ADD", "a").start()];
        let (good, bad): (Vec<Answer>, Vec<Answer>) =
            children.into_iter().map(|child| child.wait_with_output().unwrap().into()).partition(|answer: &Answer| answer.exit == Some(0));
        assert_eq!((good.len(), bad.len()), (1, 1));
        for answer in bad {
            assert!(answer.failure(4).contains("already has an interface eth0"));
        }
        let result = good.into_iter().next().unwrap().success();
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn two_dels_at_once_for_one_container_both_succeed_and_leave_nothing() {
    node(DUAL, |node| {
        for _ in 0..5 {
            node.add("a");
            let children = [node.call("DEL", "a").start(), node.call("DEL", "a").start()];
            children.into_iter().for_each(|child| Answer::from(child.wait_with_output().unwrap()).silent());
            node.host.remove_pod("a").unwrap();
            assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
        }
    });
}

#[test]
fn del_waits_for_an_add_of_the_same_container_and_undoes_it() {
    node(DUAL, |node| {
        node.host.create_pod("a").unwrap();
        let add = node.call("ADD", "a").start();
        while !node.agent.calls().contains(&"node") {
            std::thread::yield_now();
        }
        node.call("DEL", "a").run().silent();
        Answer::from(add.wait_with_output().unwrap()).success();
        node.host.remove_pod("a").unwrap();
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn a_container_s_attachment_to_another_network_by_the_same_name_is_refused_and_its_del_takes_nothing_from_the_first() {
    node(DUAL, |node| {
        let result = node.add("a");
        let another = |verb: &str| node.call(verb, "a").key("name", "another".into());
        assert!(another("ADD").run().failure(4).contains("already has an interface eth0"));
        // As the runtime does after an ADD that failed.
        another("DEL").run().silent();
        another("GC").key("cni.dev/valid-attachments", json!([])).run().silent();
        assert_eq!((node.agent.endpoints().len(), node.leases()), (1, 1));
        node.call("CHECK", "a").key("prevResult", result).run().silent();
        node.remove("a");
        assert_eq!((node.left().as_str(), node.leases(), node.agent.endpoints().len()), ("", 0, 0));
    });
}

#[test]
fn containers_and_interfaces_whose_names_run_together_are_two_attachments() {
    node(DUAL, |node| {
        let result = node.add("a-b");
        node.host.create_pod("a").unwrap();
        let other = |verb: &str| node.call(verb, "a").env("CNI_IFNAME", "b-eth0");
        other("ADD").run().success();
        other("DEL").run().silent();
        node.call("CHECK", "a-b").key("prevResult", result).run().silent();
        node.host.remove_pod("a").unwrap();
        node.remove("a-b");
        assert_eq!((node.left().as_str(), node.leases()), ("", 0));
    });
}

#[test]
fn gc_removes_what_is_not_valid_and_goes_on_after_an_error() {
    node(DUAL, |node| {
        let kept = node.add("kept");
        for name in ["stale", "gone"] {
            node.add(name);
        }
        let stuck = node.host_link(&node.add("stuck"));
        node.host.remove_pod("gone").unwrap();
        // One whose record cannot be removed: a directory stands in its place.
        let record = node.host.run_dir().join("endpoints").join(record_name(&stuck.name));
        std::fs::remove_file(&record).unwrap();
        std::fs::create_dir(&record).unwrap();
        let valid = json!([{"containerID": "kept", "ifname": "eth0"}, {"containerID": "foreign", "ifname": "eth0"}]);
        let gc = || node.call("GC", "x").key("cni.dev/valid-attachments", valid.clone()).run();
        let answer = gc();
        assert_eq!(answer.exit, Some(1), "{answer:?}");
        assert!(
            answer.stdout.contains("\"code\":105") && answer.stdout.contains("stuck") && !answer.stdout.contains("stale"),
            "{answer:?}"
        );
        assert_eq!(node.leases(), 1);
        std::fs::remove_dir(&record).unwrap();
        gc().silent();
        node.call("CHECK", "kept").key("prevResult", kept).run().silent();
        for name in ["stale", "stuck"] {
            node.host.remove_pod(name).unwrap();
        }
        node.call("GC", "x").key("cni.dev/attachments", valid).run().silent();
        assert_eq!(node.leases(), 1, "as libraries of before wrote the list");
        node.call("GC", "x").key("name", "another".into()).key("cni.dev/valid-attachments", json!([])).run().silent();
        assert_eq!(node.leases(), 1, "another network's GC does not touch it");
        node.remove("kept");
        assert_eq!(node.left(), "");
    });
}

#[test]
fn status_says_whether_add_can_be_served() {
    node(DUAL, |node| {
        let status = || node.call("STATUS", "x").run();
        status().silent();
        // With pods that run, which are as well connected as ever.
        node.add("a");
        node.agent.set_problems(&["watch of pods: the API server is away"], &["routes: one is missing"]);
        let message = status().failure(50);
        assert!(message.contains("the API server is away") && !message.contains("routes"), "{message}");
        node.agent.set_problems(&[], &[]);
        for call in ["status", "node"] {
            node.agent.behave(call, Behaviour::Refuses(ErrorKind::TryAgain));
            assert!(status().failure(50).contains(&format!("refuses to {call}")));
            node.agent.behave(call, Behaviour::Works);
        }
        node.agent.set_ranges(&[]);
        assert!(status().failure(50).contains("podCIDRs"));
        node.agent.set_ranges(DUAL);
        let (programs, aside) = (node.host.bpffs().join("palisade/v1/programs"), node.host.bpffs().join("palisade/v1/aside"));
        std::fs::rename(&programs, &aside).unwrap();
        assert!(status().failure(50).contains("no programs are pinned"), "the pods have theirs");
        std::fs::rename(&aside, &programs).unwrap();
        status().silent();
        node.agent.stop();
        assert!(status().failure(50).contains("running"));
        node.remove("a");
        assert_eq!(node.left(), "");
    });
}

#[test]
fn a_problem_that_keeps_no_pod_waiting_is_logged_and_fails_neither_status_nor_add() {
    node(DUAL, |node| {
        node.agent.set_problems(&[], &["routes: the way to pods of other nodes", "uplinks: clients outside"]);
        let answer = node.call("STATUS", "x").run();
        for problem in ["routes: the way to pods of other nodes", "uplinks: clients outside"] {
            assert!(answer.stderr.contains(problem), "{answer:?}");
        }
        answer.silent();
        node.add("a");
        node.remove("a");
    });
}

#[test]
fn status_is_code_51_where_pods_that_run_have_lost_their_programs() {
    node(DUAL, |node| {
        node.add("whole");
        let result = node.add("a");
        let pins = node.host.bpffs().join("palisade/v1/links");
        std::fs::remove_file(pins.join(format!("{}-to_pod", node.host_link(&result).index))).unwrap();
        node.call("STATUS", "x").run().silent();
        node.agent.behave("status", Behaviour::Refuses(ErrorKind::TryAgain));
        let message = node.call("STATUS", "x").run().failure(51);
        assert!(message.contains("refuses to status") && message.contains("container a"), "{message}");
        node.call("STATUS", "x").key("name", "another".into()).run().failure(50);
        // A pod that is gone suffers nothing.
        node.remove("a");
        node.call("STATUS", "x").run().failure(50);
        node.remove("whole");
        assert_eq!(node.left(), "");
    });
}
