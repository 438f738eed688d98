//! Addresses that others choose: the IPAM plugin that the configuration names (Debian's host-local and static), and who asks for some of a pod's own
//! (`ips`, `mac`). Real packets find the pod there, and policy knows whose they are.

use crate::node::{
    Agent, MANIFESTS, add, add_by, add_refused, addresses, clear, inside, listen, reaches, reaches_in_time, remove, remove_by, wait,
};
use crate::outside::Outside;
use crate::service::{PATIENCE, until};
use palisade_cni::link::Netlink;
use palisade_test_support::debian::{DEBIAN, missing};
use palisade_test_support::{CniCall, Host, private_host, skipped};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

const WEB: (&str, &str) = ("shop", "web");
const FRIEND: (&str, &str) = ("shop", "client");
const STRANGER: (&str, &str) = ("other", "client");

/// Runs a test on a node with an agent, and with addresses of its own to send from.
fn node(test: impl FnOnce(&Host) + Send) {
    private_host(|host| {
        let _outside = Outside::join();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("shop.yaml"), MANIFESTS).unwrap();
        let agent = Agent::on_directory(host, directory.path());
        test(host);
        agent.kill();
        clear(host);
    });
}

/// As [`node`], with one of Debian's plugins; without it the test is skipped, visibly.
fn with_debian(plugin: &str, test: impl FnOnce(&Host) + Send) {
    match missing(plugin) {
        Some(reason) => skipped(&reason),
        None => node(test),
    }
}

/// A call for a pod whose addresses another plugin gives. Debian's speak no newer version.
fn delegated(host: &Host, (namespace, pod): (&str, &str), ipam: &Value) -> CniCall {
    host.cni_call(namespace, pod).key("cniVersion", "1.0.0".into()).key("ipam", ipam.clone()).folder(DEBIAN)
}

fn parsed(addresses: [&str; 2]) -> Vec<IpAddr> {
    addresses.map(|address| address.parse().unwrap()).to_vec()
}

/// `shop/web` is at these addresses under its policy, which knows who comes: it takes port 80 from pods of its namespace, and from its node as any pod.
fn judged_as_web(host: &Host, addresses: &[IpAddr]) {
    for address in addresses {
        let at = SocketAddr::new(*address, 80);
        let _listener = listen(host, WEB, at);
        assert!(reaches_in_time(host, FRIEND, at), "{at}: what policy allows passes");
        assert!(!reaches(host, STRANGER, at), "{at}: what policy refuses does not");
        assert!(TcpStream::connect_timeout(&at, PATIENCE).is_ok(), "{at}: the node reaches its pods always");
    }
}

/// Whether an address answers an echo request of this thread's network namespace.
pub fn answers_echo(address: IpAddr) -> bool {
    let output = Command::new("ping").args(["-n", "-c", "1", "-W", "5"]).arg(address.to_string()).output().unwrap();
    output.status.success()
}

#[test]
fn addresses_of_host_local_are_the_pods_whom_policy_knows_and_are_taken_back_by_del() {
    with_debian("host-local", |host| {
        let store = tempfile::tempdir().unwrap();
        let ipam = json!({
            "type": "host-local", "dataDir": store.path(),
            "ranges": [[{ "subnet": "10.77.0.0/24", "rangeStart": "10.77.0.100" }], [{ "subnet": "fd77::/64", "rangeStart": "fd77::100" }]],
        });
        let held = || -> BTreeSet<IpAddr> {
            let names = std::fs::read_dir(store.path().join("palisade")).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter_map(|name| name.to_str()?.parse().ok()).collect()
        };
        let pods = [WEB, FRIEND, STRANGER].map(|pod| delegated(host, pod, &ipam));
        let given: Vec<Vec<IpAddr>> = pods.iter().map(|pod| addresses(&add_by(host, pod))).collect();
        let expected = [["10.77.0.100", "fd77::100"], ["10.77.0.101", "fd77::101"], ["10.77.0.102", "fd77::102"]].map(parsed);
        assert_eq!(given, expected);
        let all: BTreeSet<IpAddr> = given.concat().into_iter().collect();
        assert_eq!(held(), all);
        judged_as_web(host, &given[0]);

        // The pod's next container has other addresses, as host-local goes on after the last ones.
        let [web, friend, stranger] = &pods;
        remove_by(host, web);
        let others: BTreeSet<IpAddr> = given[1..].concat().into_iter().collect();
        assert_eq!(held(), others, "DEL takes back the pod's, and nobody else's");
        let next = addresses(&add_by(host, web));
        assert_eq!(next, parsed(["10.77.0.103", "fd77::103"]));
        judged_as_web(host, &next);
        for pod in [web, friend, stranger] {
            remove_by(host, pod);
        }
        assert_eq!(held(), BTreeSet::new());
    });
}

#[test]
fn addresses_of_static_are_the_pods_whom_policy_knows_and_nobody_elses_until_del() {
    with_debian("static", |host| {
        let ipam = json!({ "type": "static", "addresses": [{ "address": "10.77.0.9/24" }, { "address": "fd77::9/64" }] });
        let (web, friend) = (delegated(host, WEB, &ipam), delegated(host, FRIEND, &ipam));
        let given = addresses(&add_by(host, &web));
        assert_eq!(given, parsed(["10.77.0.9", "fd77::9"]));
        // It gives the same to everybody; we do not.
        let error = add_refused(host, &friend, 106);
        assert!(error["msg"].as_str().unwrap().contains("container pod-shop-web"), "{error}");
        add(host, FRIEND.0, FRIEND.1);
        add(host, STRANGER.0, STRANGER.1);
        judged_as_web(host, &given);

        remove_by(host, &web);
        remove(host, FRIEND.0, FRIEND.1);
        assert_eq!(addresses(&add_by(host, &friend)), given);
        for address in given {
            let at = SocketAddr::new(address, 80);
            let _listener = listen(host, FRIEND, at);
            assert!(reaches_in_time(host, STRANGER, at), "{at}: the policy of who had the address is gone with it");
        }
        remove_by(host, &friend);
        remove(host, STRANGER.0, STRANGER.1);
    });
}

#[test]
fn a_pod_has_the_addresses_and_the_ethernet_address_that_are_asked_for_and_packets_find_it_there() {
    node(|host| {
        let [web_mac, friend_mac] = ["02:00:5e:10:0a:ff", "02:00:5e:10:0a:fe"];
        let web = host.cni_call(WEB.0, WEB.1).key("runtimeConfig", json!({ "ips": ["10.77.0.9/24", "fd77::9"], "mac": web_mac }));
        let friend = host.cni_call(FRIEND.0, FRIEND.1).argument("IP", "10.77.0.10").argument("MAC", friend_mac);
        let stranger = host.cni_call(STRANGER.0, STRANGER.1).key("args", json!({ "cni": { "ips": ["fd77::b"] } }));
        let [at_web, at_friend, at_stranger] = [&web, &friend, &stranger].map(|pod| addresses(&add_by(host, pod)));
        assert_eq!(at_web, parsed(["10.77.0.9", "fd77::9"]));
        // The address of the family of which none is asked for is chosen.
        assert_eq!((at_friend.len(), at_friend[0].to_string().as_str()), (2, "10.77.0.10"));
        assert_eq!((at_stranger.len(), at_stranger[1].to_string().as_str()), (2, "fd77::b"));
        for ((namespace, pod), mac) in [(WEB, web_mac), (FRIEND, friend_mac)] {
            let link = Netlink::open_in(&inside(host, namespace, pod)).unwrap().link("eth0").unwrap().unwrap();
            assert_eq!(link.mac, Some(mac.parse().unwrap()), "{pod}");
        }
        judged_as_web(host, &at_web);
        // Not to the first one: its policy names ports.
        for address in [at_friend, at_stranger].concat() {
            until("the node hears the pod's answer", || answers_echo(address));
            for (namespace, pod) in [WEB, FRIEND, STRANGER] {
                until("a pod hears the pod's answer", || inside(host, namespace, pod).enter(|| answers_echo(address)).unwrap());
            }
        }
        for pod in [&web, &friend, &stranger] {
            remove_by(host, pod);
        }
    });
}

#[test]
fn an_address_that_is_in_use_or_that_no_pod_of_the_node_can_have_is_refused_and_nothing_comes_of_the_pod() {
    node(|host| {
        let asks =
            |(namespace, pod): (&str, &str), address: &str| host.cni_call(namespace, pod).key("runtimeConfig", json!({ "ips": [address] }));
        let web = asks(WEB, "10.77.0.9");
        let at_web = addresses(&add_by(host, &web));
        let ranges = "its ranges are 10.77.0.0/24, fd77::/64";
        for (address, code, said) in [
            ("10.77.0.9", 106, "container pod-shop-web"),
            ("10.78.0.9", 7, ranges),
            ("fd78::9", 7, ranges),
            // The range's first address is no pod's.
            ("fd77::1", 7, ranges),
        ] {
            let by_argument = host.cni_call(FRIEND.0, FRIEND.1).argument("IP", address);
            for call in [asks(FRIEND, address), by_argument] {
                let error = add_refused(host, &call, code);
                assert!(error["msg"].as_str().unwrap().contains(said), "{address}: {error}");
            }
        }
        assert_eq!(wait(host, "the agent is ready", |status| status.ready).counts.endpoints, 1);
        add(host, FRIEND.0, FRIEND.1);
        add(host, STRANGER.0, STRANGER.1);
        judged_as_web(host, &at_web);
        remove_by(host, &web);
        for (namespace, pod) in [FRIEND, STRANGER] {
            remove(host, namespace, pod);
        }
    });
}
