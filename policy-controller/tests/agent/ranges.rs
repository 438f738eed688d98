//! The node's pod range: none yet, another one, and one that another node has by now.

use crate::mtu::stage;
use crate::node::{
    Agent, METRICS, add, add_in_vain, add_refused, clear, command_with_kubeconfig, counted, listen, log_of, reaches, reaches_in_time,
    remove, wait, with_kubeconfig,
};
use crate::server::{Answer, Server};
use ipnet::IpNet;
use palisade_cni::link::{Netlink, Route, RouteKind};
use palisade_test_support::{Host, private_host};
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

const API_SERVER: &str = "127.0.0.1:6443";
const WEB: (&str, &str) = ("shop", "web");
const FRIEND: (&str, &str) = ("shop", "client");
const STRANGER: (&str, &str) = ("other", "client");
const FIRST: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];
const SECOND: [&str; 2] = ["10.79.0.0/24", "fd79::/64"];
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until it is so, as what follows from a Node object may take.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How many nodes have a fault, as the agent counts them.
fn faults(kind: &str) -> u64 {
    counted(&format!("palisade_node_faults{{fault=\"{kind}\"}}"))
}

/// Whether each address is in the range of its family.
fn are_of(addresses: &[IpAddr], ranges: [&str; 2]) -> bool {
    addresses.len() == 2 && addresses.iter().zip(ranges).all(|(address, range)| range.parse::<IpNet>().unwrap().contains(address))
}

/// A node with an agent that is served by a server, its metrics shown; what it has logged so far.
fn agent(host: &Host, directory: &Path) -> (Agent, impl Fn() -> String + use<>) {
    let mut command = command_with_kubeconfig(host, directory, API_SERVER.parse().unwrap());
    command.args(["--metrics", METRICS, "--routing-mode", "native", "--mtu", "1400"]);
    let log = log_of(&mut command, directory);
    let agent = Agent::spawn(command);
    wait(host, "the agent is ready", |status| status.ready);
    (agent, log)
}

#[test]
fn when_the_pod_range_changes_under_running_pods_their_policy_holds_and_new_pods_get_addresses_of_the_new_one() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(API_SERVER.parse().unwrap(), Answer::Objects);
        let (agent, log) = agent(host, directory.path());
        let web = add(host, WEB.0, WEB.1);
        assert!(are_of(&web, FIRST), "{web:?}");
        add(host, FRIEND.0, FRIEND.1);
        add(host, STRANGER.0, STRANGER.1);
        let _listeners = [web[0], web[1]].map(|address| listen(host, WEB, SocketAddr::new(address, 80)));
        let policy_holds = || {
            for family in [0, 1] {
                let at = SocketAddr::new(web[family], 80);
                assert!(reaches_in_time(host, FRIEND, at), "{at}: what policy allows passes");
                assert!(!reaches(host, STRANGER, at), "{at}: what policy refuses does not");
            }
        };
        policy_holds();
        assert_eq!(faults("pods-outside-range"), 0);

        server.give_ranges("node", &SECOND, 8);
        until("the pods that run are outside of the range", || faults("pods-outside-range") == 1);
        until("it is logged", || log().contains("are outside of its pod ranges") && log().contains("the node's pod range is another"));
        policy_holds();
        // The first ADD may come before the agent has told of the range.
        let mut late = Vec::new();
        until("a new pod gets an address of the new range", || {
            late = add(host, "shop", "a");
            if !are_of(&late, SECOND) {
                remove(host, "shop", "a");
            }
            are_of(&late, SECOND)
        });
        assert!(reaches_in_time(host, ("shop", "a"), SocketAddr::new(web[0], 80)), "pods of both ranges reach each other");
        policy_holds();

        for (namespace, pod) in [WEB, FRIEND, STRANGER, ("shop", "a")] {
            remove(host, namespace, pod);
        }
        agent.kill();
        clear(host);
    });
}

#[test]
fn a_pod_is_closed_as_long_as_a_pod_of_the_node_that_has_its_range_by_now_has_its_address() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(API_SERVER.parse().unwrap(), Answer::Two);
        let (agent, log) = agent(host, directory.path());
        let web = add(host, WEB.0, WEB.1);
        let friend = add(host, FRIEND.0, FRIEND.1);
        add(host, STRANGER.0, STRANGER.1);
        let [to_web, to_friend] = [SocketAddr::new(web[0], 80), SocketAddr::new(friend[1], 8080)];
        let _listeners = [(WEB, to_web), (FRIEND, to_friend)].map(|(pod, at)| listen(host, pod, at));
        let open = |reaches: fn(&Host, (&str, &str), SocketAddr) -> bool| (reaches(host, FRIEND, to_web), reaches(host, WEB, to_friend));
        assert_eq!(open(reaches_in_time), (true, true));

        // The range passes to the other node, under the pods that run.
        server.give_ranges("node", &SECOND, 8);
        server.give_ranges("peer", &FIRST, 9);
        until("the pods that run are outside of the range", || faults("pods-outside-range") == 1);
        assert_eq!(open(reaches_in_time), (true, true), "as long as nobody has the addresses there");
        // One family will do: other nodes take one pod for the other.
        server.change_far(&web[1..], true, 10);
        until("the pod is closed both ways", || open(reaches) == (false, false));
        until("it is logged", || log().contains("a pod of another node has the endpoint's address: closed"));
        assert!(!reaches(host, STRANGER, to_web));
        assert!(reaches_in_time(host, STRANGER, to_friend), "others are open");
        // The next agent finds it as it is.
        agent.kill();
        let (agent, log) = self::agent(host, directory.path());
        assert_eq!(open(reaches), (false, false));
        until("it is told", || faults("pods-in-other-range") == 1);
        until("it is logged", || log().contains("of its pods claim addresses in pod ranges of other nodes"));

        server.change_far(&web[1..], false, 11);
        until("it is opened again", || open(reaches_in_time) == (true, true));
        assert!(!reaches(host, STRANGER, to_web), "under its policy");

        for (namespace, pod) in [WEB, FRIEND, STRANGER] {
            remove(host, namespace, pod);
        }
        agent.kill();
        clear(host);
    });
}

#[test]
fn a_node_that_claims_nothing_or_what_others_have_takes_nothing_from_them_and_is_told_of() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(API_SERVER.parse().unwrap(), Answer::Two);
        let (agent, log) = agent(host, directory.path());
        let web = add(host, WEB.0, WEB.1);
        add(host, FRIEND.0, FRIEND.1);
        add(host, STRANGER.0, STRANGER.1);
        let _listeners = [web[0], web[1]].map(|address| listen(host, WEB, SocketAddr::new(address, 80)));
        let versions = Cell::new(7);
        let next = || {
            versions.set(versions.get() + 1);
            versions.get()
        };
        let expect = |what: &str, ranges: &[&str], addresses: &[IpAddr], fault: &str, said: &str| {
            server.give_ranges("peer", ranges, next());
            server.give_addresses("peer", addresses, next());
            until(what, || faults(fault) > 0);
            wait(host, what, |status| {
                let faults = status.routing.iter().flat_map(|routing| &routing.faults);
                faults.filter(|fault| fault.node == "peer").any(|fault| fault.fault.contains(said))
            });
            until("it is logged", || log().contains(said));
            for address in &web {
                let at = SocketAddr::new(*address, 80);
                assert!(reaches_in_time(host, FRIEND, at), "{what}, {at}: what policy allows passes");
                assert!(!reaches(host, STRANGER, at), "{what}, {at}: what policy refuses does not");
            }
        };
        let own = ["192.0.2.2", "2001:db8::2"].map(|address| address.parse().unwrap());
        let third = ["10.78.0.0/24", "fd78::/64"];
        expect("another node has no pod range", &[], &own, "no-pod-range", "it has no pod range");
        expect("another node has this one's range", &FIRST, &own, "overlapping-pod-range", "of the older node node, which keeps it");
        expect("another node has a pod's address", &third, &web, "address-among-pods", "it is taken for a pod's");
        let of_this_node = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap());
        expect("another node has this one's address", &third, &of_this_node, "shared-address", "is that of the older node node");
        expect(
            "another node's range has this one's address in it",
            &["192.0.2.0/25"],
            &own,
            "covering-pod-range",
            "has 192.0.2.1 of node node in it",
        );
        server.give_ranges("node", &SECOND, next());
        until("the pods that run are in no range", || faults("pods-outside-range") == 1);
        expect("another node has the address of a pod in no range", &third, &web, "address-of-pod", "is that of a pod that runs here");
        server.give_ranges("node", &FIRST, next());
        server.give_addresses("peer", &own, next());
        until("nothing is wrong any more", || {
            let of_nodes = ["no-pod-range", "overlapping-pod-range", "covering-pod-range"];
            let of_addresses = ["address-among-pods", "shared-address", "address-of-pod", "pods-outside-range"];
            of_nodes.into_iter().chain(of_addresses).all(|fault| faults(fault) == 0)
        });
        for (namespace, pod) in [WEB, FRIEND, STRANGER] {
            remove(host, namespace, pod);
        }
        agent.kill();
        clear(host);
    });
}

#[test]
fn a_pod_range_of_one_address_has_room_for_one_pod() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(API_SERVER.parse().unwrap(), Answer::Objects);
        server.give_ranges("node", &["10.79.0.7/32", "fd79::7/128"], 8);
        let (agent, _log) = agent(host, directory.path());
        let web = add(host, WEB.0, WEB.1);
        assert_eq!(web, ["10.79.0.7", "fd79::7"].map(|address| address.parse::<IpAddr>().unwrap()));
        let _listeners = [web[0], web[1]].map(|address| listen(host, WEB, SocketAddr::new(address, 80)));
        let has_ways = || {
            let netlink = Netlink::open().unwrap();
            web.iter().all(|address| netlink.route_to(*address).unwrap().is_some_and(|route| route.kind == RouteKind::Unicast))
        };
        assert!(has_ways(), "the pod's own routes are before those that say that nobody has the addresses");
        let error = add_refused(host, &host.cni_call(FRIEND.0, FRIEND.1), 100);
        assert!(error.to_string().contains("10.79.0.7/32"), "{error}");
        // When the range goes, the pod's own routes stay.
        server.give_ranges("node", &FIRST, 9);
        until("the pod that runs is outside of the range", || faults("pods-outside-range") == 1);
        assert!(has_ways());
        add(host, FRIEND.0, FRIEND.1);
        for address in &web {
            assert!(reaches_in_time(host, FRIEND, SocketAddr::new(*address, 80)), "{address}");
        }
        remove(host, FRIEND.0, FRIEND.1);
        remove(host, WEB.0, WEB.1);
        agent.kill();
        clear(host);
    });
}

#[test]
fn a_range_of_one_address_that_passes_to_another_node_leaves_its_routes_to_the_pod_that_runs() {
    for mode in ["native", "vxlan"] {
        stage(mode, |stage| {
            let netlink = Netlink::open().unwrap();
            let links =
                || stage.pod.iter().map(|address| netlink.route_to(*address).unwrap().and_then(|route| route.link)).collect::<Vec<_>>();
            let before = links();
            assert!(before.iter().all(Option::is_some), "{before:?}");
            stage.server.give_ranges("node", &SECOND, 8);
            let passed: Vec<String> = stage.pod.iter().map(|address| IpNet::from(*address).to_string()).collect();
            stage.server.give_ranges("peer", &passed.iter().map(String::as_str).collect::<Vec<_>>(), 9);
            wait(stage.host, "the ranges are the other node's", |status| {
                status.routing.iter().flat_map(|routing| &routing.ranges).filter(|range| passed.contains(&range.range.to_string())).count()
                    == 2
            });
            let is_there = |passed: &&String| {
                let of = |route: &Route| route.destination.to_string() == **passed && route.metric == Some(u32::MAX);
                netlink.routes().unwrap().iter().any(of)
            };
            until("there are routes to the other node", || passed.iter().filter(is_there).count() == 2);
            assert_eq!(links(), before, "{mode}: the pod's own are before them");
        });
    }
}

#[test]
fn a_node_without_a_pod_range_refuses_pods_for_now_and_names_what_is_missing() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(API_SERVER.parse().unwrap(), Answer::Objects);
        server.give_ranges("node", &[], 8);
        let agent = with_kubeconfig(host, directory.path(), API_SERVER.parse().unwrap());
        let missing = "Node node has no spec.podCIDRs";
        let status = wait(host, "only the range is missing", |status| matches!(&status.problems[..], [one] if one.contains(missing)));
        assert!(!status.ready, "{status:?}");
        let error = add_in_vain(host, WEB.0, WEB.1);
        assert!(error.to_string().contains(missing), "{error}");

        server.give_ranges("node", &FIRST, 9);
        wait(host, "the agent is ready", |status| status.ready);
        let web = add(host, WEB.0, WEB.1);
        assert!(are_of(&web, FIRST), "{web:?}");
        remove(host, WEB.0, WEB.1);
        agent.kill();
        clear(host);
    });
}
