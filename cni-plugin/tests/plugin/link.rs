//! The link code against the real kernel, in namespaces of its own.

use palisade_cni::link::{
    InterfaceAddress, LinkError, MacAddress, Namespace, Netlink, ROUTE_PROTOCOL, Route, RouteKind, Veth, outbound_policies, sysctl,
};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const HOST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const POD_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

fn root() -> bool {
    palisade_test_support::requires_root()
}

/// Two namespaces with a veth between them: `host0` here, `eth0` there.
struct Pair {
    host: Netlink,
    pod: Netlink,
    host_namespace: Namespace,
    pod_namespace: Namespace,
    host_index: u32,
    pod_index: u32,
}

fn pair() -> Pair {
    let host_namespace = Namespace::create().unwrap();
    let pod_namespace = Namespace::create().unwrap();
    let host = Netlink::open_in(&host_namespace).unwrap();
    let pod = Netlink::open_in(&pod_namespace).unwrap();
    let link = host.create_veth(&veth("host0", "eth0", Some(&pod_namespace))).unwrap();
    let pod_index = pod.link("eth0").unwrap().unwrap().index;
    Pair { host, pod, host_namespace, pod_namespace, host_index: link.index, pod_index }
}

fn veth<'a>(name: &'a str, peer_name: &'a str, peer_namespace: Option<&'a Namespace>) -> Veth<'a> {
    Veth { name, mac: HOST_MAC, peer_name, peer_mac: POD_MAC, peer_namespace, mtu: 1400 }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_veth_is_made_down_with_its_peer_in_the_other_namespace() {
    if !root() {
        return;
    }
    let pair = pair();
    let host = pair.host.link("host0").unwrap().unwrap();
    let pod = pair.pod.link("eth0").unwrap().unwrap();
    assert_eq!((host.up, pod.up), (false, false));
    assert_eq!((host.mac, pod.mac), (Some(HOST_MAC), Some(POD_MAC)));
    assert_eq!((host.mtu, pod.mtu), (1400, 1400));
    assert_eq!((host.kind.as_deref(), pod.kind.as_deref()), (Some("veth"), Some("veth")));
    assert_eq!(host.peer, Some(pod.index));
    assert!(pair.host.link("eth0").unwrap().is_none());
    assert!(pair.pod.link("host0").unwrap().is_none());
    assert_eq!(pair.host.links().unwrap().iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo", "host0"]);
}

#[test]
fn a_taken_name_is_an_error_on_either_side() {
    if !root() {
        return;
    }
    let pair = pair();
    let same_here = pair.host.create_veth(&veth("host0", "eth1", Some(&pair.pod_namespace))).unwrap_err();
    let same_there = pair.host.create_veth(&veth("host1", "eth0", Some(&pair.pod_namespace))).unwrap_err();
    assert!(same_here.is_exists() && same_there.is_exists(), "{same_here}; {same_there}");
    assert!(same_here.to_string().contains("host0"), "{same_here}");
    assert_eq!(pair.host.links().unwrap().len(), 2, "the failed ones left nothing");
}

#[test]
fn a_link_is_changed_and_deleted() {
    if !root() {
        return;
    }
    let pair = pair();
    pair.host.set_mtu(pair.host_index, 1300).unwrap();
    pair.host.set_up(pair.host_index).unwrap();
    let link = pair.host.link_by_index(pair.host_index).unwrap().unwrap();
    assert_eq!((link.name.as_str(), link.mtu, link.up, link.mac), ("host0", 1300, true, Some(HOST_MAC)));
    pair.host.set_down(pair.host_index).unwrap();
    assert!(!pair.host.link("host0").unwrap().unwrap().up);
    assert!(pair.host.delete_link(pair.host_index).unwrap());
    assert!(!pair.host.delete_link(pair.host_index).unwrap(), "the second time there is none");
    assert!(pair.pod.link("eth0").unwrap().is_none(), "the peer goes with it");
}

#[test]
fn ports_of_a_bridge_share_a_link_with_it() {
    if !root() {
        return;
    }
    let pair = pair();
    let bridge = pair.host.create_bridge("br0", MacAddress([2, 0, 0, 0, 0, 3]), 1400).unwrap();
    assert_eq!((bridge.kind.as_deref(), bridge.up, bridge.mtu), (Some("bridge"), false, 1400));
    assert!(pair.host.create_bridge("br0", HOST_MAC, 1500).unwrap_err().is_exists());
    pair.host.set_bridge(pair.host_index, bridge.index).unwrap();
    for index in [bridge.index, pair.host_index] {
        pair.host.set_up(index).unwrap();
    }
    pair.host.add_address(bridge.index, "192.0.2.1/24".parse().unwrap()).unwrap();
    pair.pod.add_address(pair.pod_index, "192.0.2.2/24".parse().unwrap()).unwrap();
    pair.pod.set_up(pair.pod_index).unwrap();
    let listener = pair.host_namespace.enter(|| TcpListener::bind("192.0.2.1:0")).unwrap().unwrap();
    let at = listener.local_addr().unwrap();
    pair.pod_namespace.enter(|| TcpStream::connect(at)).unwrap().unwrap();
}

#[test]
fn addresses_of_both_families_are_usable_at_once() {
    if !root() {
        return;
    }
    let pair = pair();
    for address in ["10.0.0.7/32", "fd00::7/128"] {
        pair.pod.add_address(pair.pod_index, address.parse().unwrap()).unwrap();
        pair.pod.add_address(pair.pod_index, address.parse().unwrap()).unwrap();
    }
    pair.host.set_up(pair.host_index).unwrap();
    pair.pod.set_up(pair.pod_index).unwrap();
    let addresses = pair.pod.addresses_of(pair.pod_index).unwrap();
    for expected in ["10.0.0.7/32", "fd00::7/128"] {
        let address = InterfaceAddress { link: pair.pod_index, address: expected.parse().unwrap(), tentative: false };
        assert!(addresses.contains(&address), "{addresses:?}");
    }
    pair.pod_namespace.enter(|| TcpListener::bind("[fd00::7]:0")).unwrap().unwrap();
    assert!(pair.pod.delete_address(pair.pod_index, "10.0.0.7/32".parse().unwrap()).unwrap());
    assert!(!pair.pod.delete_address(pair.pod_index, "10.0.0.7/32".parse().unwrap()).unwrap());
}

#[test]
fn routes_carry_our_number_and_are_listed_replaced_and_deleted() {
    if !root() {
        return;
    }
    let pair = pair();
    pair.host.set_up(pair.host_index).unwrap();
    pair.pod.set_up(pair.pod_index).unwrap();
    pair.pod.add_address(pair.pod_index, "10.0.0.7/32".parse().unwrap()).unwrap();
    pair.pod.add_address(pair.pod_index, "fd00::7/128".parse().unwrap()).unwrap();
    let defaults = [Route::default_via(ip("169.254.1.1"), pair.pod_index), Route::default_via(ip("fe80::1"), pair.pod_index)];
    for route in &defaults {
        pair.pod.add_route(route).unwrap();
        assert!(pair.pod.add_route(route).unwrap_err().is_exists());
        pair.pod.replace_route(route).unwrap();
    }
    let ours: Vec<_> = pair.pod.routes().unwrap().into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL).collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    for (listed, route) in ours.iter().zip(&defaults) {
        assert_eq!((listed.destination, listed.gateway, listed.link), (route.destination, route.gateway, route.link));
    }
    let chosen = pair.pod.route_to(ip("192.0.2.1")).unwrap().unwrap();
    assert_eq!((chosen.gateway, chosen.source), (Some(ip("169.254.1.1")), Some(ip("10.0.0.7"))));
    for route in &defaults {
        assert!(pair.pod.delete_route(route).unwrap());
        assert!(!pair.pod.delete_route(route).unwrap());
    }
    assert!(pair.pod.route_to(ip("192.0.2.1")).unwrap().is_none());

    let refused = Route::unreachable("10.9.0.0/16".parse().unwrap());
    pair.host.add_route(&refused).unwrap();
    pair.host.add_route(&Route::direct("10.9.0.7/32".parse().unwrap(), pair.host_index)).unwrap();
    let routes = pair.host.routes().unwrap();
    assert!(routes.iter().any(|route| route.kind == RouteKind::Unreachable && route.destination == refused.destination), "{routes:?}");
    assert!(
        routes.iter().any(|route| route.link == Some(pair.host_index) && route.destination == "10.9.0.7/32".parse().unwrap()),
        "{routes:?}"
    );
}

fn run(namespace: &Namespace, line: &str) {
    let output = namespace.enter(|| Command::new("ip").args(line.split(' ')).output().unwrap()).unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_route_by_a_router_of_the_other_family_is_not_on_the_link() {
    if !root() {
        return;
    }
    let pair = pair();
    run(&pair.host_namespace, "link set host0 up");
    run(&pair.host_namespace, "address add 192.0.2.1/32 dev host0");
    run(&pair.host_namespace, "address add fe80::1/64 dev host0 nodad");
    run(&pair.host_namespace, "route add 198.51.100.0/24 via inet6 fe80::2 dev host0");
    let route = pair.host.route_to(ip("198.51.100.7")).unwrap().unwrap();
    assert_eq!((route.link, route.gateway, route.source), (Some(pair.host_index), Some(ip("fe80::2")), Some(ip("192.0.2.1"))));
}

#[test]
fn what_an_error_told_of_one_destination_is_shown_beside_the_route() {
    if !root() {
        return;
    }
    // The pod is the router, and beyond it the way is narrower.
    let pair = pair();
    let beyond = Namespace::create().unwrap();
    let (host, router) = (&pair.host_namespace, &pair.pod_namespace);
    pair.pod.create_veth(&Veth { mtu: 1300, ..veth("far0", "eth0", Some(&beyond)) }).unwrap();
    router.enter(|| sysctl::write("net/ipv4/ip_forward", "1").unwrap()).unwrap();
    for (namespace, name, address) in
        [(host, "host0", "192.0.2.1"), (router, "eth0", "192.0.2.2"), (router, "far0", "198.51.100.1"), (&beyond, "eth0", "198.51.100.2")]
    {
        run(namespace, &format!("address add {address}/24 dev {name}"));
        run(namespace, &format!("link set {name} up"));
    }
    run(host, "route add 198.51.100.0/24 via 192.0.2.2");
    let far = ip("198.51.100.2");
    let told = || pair.host.route_to(far).unwrap().map(|route| (route.mtu, route.path_mtu)).unwrap();
    assert_eq!(told(), (None, None));
    let began = Instant::now();
    while told() != (None, Some(1300)) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", told());
        // Linux sends TCP's segments as ones that do not fragment; so does `ping -M do`.
        host.enter(|| drop(Command::new("ping").args(["-M", "do", "-s", "1320", "-c", "1", "-W", "1", "198.51.100.2"]).output().unwrap()))
            .unwrap();
    }
    let routes = pair.host.routes().unwrap();
    let route = routes.iter().find(|route| route.destination == "198.51.100.0/24".parse().unwrap()).unwrap();
    assert_eq!((route.mtu, route.path_mtu), (None, None), "of one destination alone");
}

#[test]
fn ipsec_policies_about_what_is_sent_are_counted() {
    if !root() {
        return;
    }
    let namespace = Namespace::create().unwrap();
    let count = || namespace.enter(|| outbound_policies().unwrap()).unwrap();
    assert_eq!(count(), 0);
    for (direction, counted) in [("in", 0), ("fwd", 0), ("out", 1)] {
        run(&namespace, &format!("xfrm policy add src 192.0.2.1 dst 192.0.2.2 proto udp dport 4789 dir {direction} action block"));
        assert_eq!(count(), counted, "{direction}");
    }
}

#[test]
fn a_host_route_and_permanent_neighbours_carry_traffic_of_both_families() {
    if !root() {
        return;
    }
    let pair = pair();
    let ends = [("169.254.1.1/32", "10.0.0.7/32", "10.0.0.7:0"), ("fe80::1/64", "fd00::7/128", "[fd00::7]:0")];
    for (host, pod, _) in ends {
        pair.host.add_address(pair.host_index, host.parse().unwrap()).unwrap();
        pair.pod.add_address(pair.pod_index, pod.parse().unwrap()).unwrap();
    }
    pair.host.add_address(1, "192.0.2.1/32".parse().unwrap()).unwrap();
    pair.host.add_address(1, "2001:db8::1/128".parse().unwrap()).unwrap();
    pair.host.set_up(1).unwrap();
    pair.host.set_up(pair.host_index).unwrap();
    pair.pod.set_up(pair.pod_index).unwrap();
    for (host, pod, _) in ends {
        let (host, pod) = (host.split('/').next().unwrap(), pod.parse::<ipnet::IpNet>().unwrap());
        pair.host.add_route(&Route::direct(pod, pair.host_index)).unwrap();
        pair.host.set_neighbour(pair.host_index, pod.addr(), POD_MAC).unwrap();
        pair.pod.set_neighbour(pair.pod_index, ip(host), HOST_MAC).unwrap();
        pair.pod.add_route(&Route::default_via(ip(host), pair.pod_index)).unwrap();
    }
    let known = pair.host.neighbours().unwrap();
    assert!(known.iter().any(|n| n.address == ip("fd00::7") && n.mac == Some(POD_MAC) && n.permanent), "{known:?}");
    for (_, _, listen) in ends {
        let listener = pair.pod_namespace.enter(|| TcpListener::bind(listen)).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        pair.host_namespace.enter(|| TcpStream::connect(address)).unwrap().unwrap();
    }
}

#[test]
fn a_sysctl_is_of_the_namespace_that_was_entered() {
    if !root() {
        return;
    }
    let (one, other) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    one.enter(|| sysctl::write("net/ipv4/ip_forward", "1")).unwrap().unwrap();
    other.enter(|| sysctl::write("net/ipv4/ip_forward", "0")).unwrap().unwrap();
    assert_eq!(one.enter(|| sysctl::read("net/ipv4/ip_forward")).unwrap().unwrap(), "1");
    assert_eq!(other.enter(|| sysctl::read("net/ipv4/ip_forward")).unwrap().unwrap(), "0");
    assert_eq!(one.enter(|| sysctl::read_if_any("net/ipv4/conf/none0/rp_filter")).unwrap().unwrap(), None);
    assert!(sysctl::write("net/../kernel/hostname", "x").is_err());
}

#[test]
fn a_pinned_namespace_lives_until_it_is_unpinned() {
    if !root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("below/pod");
    let id = Namespace::create_at(&path).unwrap().id().unwrap();
    assert_eq!(Namespace::open(&path).unwrap().id().unwrap(), id);
    assert_ne!(Namespace::current().unwrap().id().unwrap(), id);
    let twice = Namespace::create_at(&path).unwrap_err();
    assert!(twice.is_exists(), "{twice}");
    assert!(Namespace::unpin(&path).unwrap());
    assert!(!Namespace::unpin(&path).unwrap());
    assert!(!path.exists());
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [directory.path().join("gone"), file, directory.path().to_owned(), PathBuf::from("/proc/self/ns/mnt")] {
        let error = Namespace::open(&path).unwrap_err();
        assert!(matches!(error, LinkError::NoNamespace { .. }) && error.is_missing(), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(Namespace::open(Path::new("/proc/self/ns/net")).is_ok());
}

#[test]
#[should_panic(expected = "inside")]
fn a_panic_inside_a_namespace_goes_on_outside() {
    Namespace::current().unwrap().enter(|| panic!("inside")).unwrap_or_else(|error| {
        // Entering one's own namespace needs root, too.
        assert!(!root());
        panic!("inside: {error}")
    })
}
