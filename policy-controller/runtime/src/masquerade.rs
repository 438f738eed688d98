//! What pods send to the outside leaves under the node's own address, for the outside knows no way back to a pod's; so does what the datapath marks: what
//! a client outside sent to a service by this node, whose backend is on another, and has to answer by this one.

use crate::config::{Masquerading, Source, Switch};
use crate::route::DEVICE;
use crate::state::State;
use ipnet::IpNet;
use palisade_cni::link::Masquerade;
use palisade_datapath_core::abi::MARK_MASQUERADE;
use palisade_policy::model::Node;
use palisade_policy::shared::SharedMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What is to be masqueraded now.
pub fn of(state: &State) -> Masquerade {
    let config = &state.config;
    let from_api = matches!(config.source, Source::Kubernetes { .. });
    let index = state.index();
    let nodes = &index.model().nodes;
    let mut wanted = wanted(&config.masquerade, from_api, &config.node, nodes);
    wanted.mark = if config.serves_outside() { MARK_MASQUERADE } else { 0 };
    if config.serves_outside() && config.routing.overlay().is_some() {
        wanted.by_device = by_overlay(nodes.get(&config.node));
    }
    wanted
}

/// Which packets leave under the address of node `own`. By itself it is done in a cluster, for IPv4 and for such IPv6 ranges as nobody outside routes.
fn wanted(config: &Masquerading, from_api: bool, own: &str, nodes: &SharedMap<String, Node>) -> Masquerade {
    let switched_on = |range: &&IpNet| match (range, if range.addr().is_ipv6() { config.ipv6 } else { config.ipv4 }) {
        (_, Switch::On) => true,
        (_, Switch::Off) => false,
        (IpNet::V4(_), Switch::Auto) => from_api,
        // Unique local addresses, RFC 4193.
        (IpNet::V6(range), Switch::Auto) => from_api && range.addr().octets()[0] & 0xfe == 0xfc,
    };
    let own = nodes.get(&own.to_owned());
    let sources = own.into_iter().flat_map(|node| &node.pod_ranges).filter(switched_on).map(IpNet::trunc).collect();
    let of_nodes = nodes.values().flat_map(|node| node.pod_ranges.iter().copied().chain(node.addresses.iter().copied().map(IpNet::from)));
    let inside = of_nodes.chain(config.exclude.iter().copied()).map(|block| block.trunc()).collect();
    Masquerade { sources, inside, ..Masquerade::default() }
}

/// Under which addresses a node sends by the overlay what is marked: its device has none, and the kernel would take any of the node's, also one that the
/// others do not believe.
fn by_overlay(own: Option<&Node>) -> BTreeSet<(String, IpAddr)> {
    let first = |ipv6: bool| own?.addresses.iter().find(|address| address.is_ipv6() == ipv6).copied();
    [first(false), first(true)].into_iter().flatten().map(|address| (DEVICE.to_owned(), address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::node;
    use crate::tables::{Wanted, Written, write};
    use nix::sys::socket::{setsockopt, sockopt::Mark};
    use palisade_cni::link::masquerade::PORTS;
    use palisade_cni::link::{MacAddress, Namespace, Netlink, Route, Veth, sysctl};
    use palisade_k8s::index::Index;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::time::Duration;

    fn two_nodes() -> SharedMap<String, Node> {
        SharedMap::from([
            ("a".to_owned(), node(&["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"])),
            ("b".to_owned(), node(&["192.0.2.2"], &["10.2.0.0/24", "2001:db8:2::/64"])),
        ])
    }

    #[test]
    fn by_itself_it_is_done_in_a_cluster_for_ipv4_and_for_ranges_of_ipv6_that_nobody_routes() {
        let shown = |config: &Masquerading, from_api, own| -> Vec<String> {
            wanted(config, from_api, own, &two_nodes()).sources.iter().map(ToString::to_string).collect()
        };
        let auto = Masquerading::default();
        assert_eq!(shown(&auto, true, "a"), ["10.1.0.0/24", "fd00:1::/64"]);
        assert_eq!(shown(&auto, true, "b"), ["10.2.0.0/24"], "2001:db8:2::/64 is routed");
        assert_eq!(shown(&auto, false, "a"), [""; 0]);
        assert_eq!(shown(&auto, true, "unknown"), [""; 0]);
        let on = Masquerading { ipv6: Switch::On, ipv4: Switch::Off, ..auto };
        assert_eq!(shown(&on, false, "b"), ["2001:db8:2::/64"]);
    }

    #[test]
    fn by_the_overlay_a_node_sends_under_its_first_address_of_each_family() {
        let shown = |addresses: &[&str]| -> Vec<String> {
            by_overlay(Some(&node(addresses, &[]))).into_iter().map(|(device, address)| format!("{device} {address}")).collect()
        };
        assert_eq!(shown(&["192.0.2.1", "2001:db8::1", "198.51.100.1"]), ["palisade_vxlan 192.0.2.1", "palisade_vxlan 2001:db8::1"]);
        assert_eq!(shown(&["2001:db8::1"]), ["palisade_vxlan 2001:db8::1"]);
        assert!(by_overlay(None).is_empty());
    }

    #[test]
    fn what_a_pod_range_that_is_refused_claims_is_outside() {
        let mut index = Index::new();
        index.set_host("a", &[]);
        let young = |ranges: &[&str]| Node { created: 9, ..node(&["192.0.2.3"], ranges) };
        let nodes = two_nodes()
            .iter()
            .map(|(name, node)| (name.clone(), node.clone()))
            .chain([("c".to_owned(), young(&["10.0.0.0/8", "fd00:3::/64"]))])
            .collect();
        index.set_nodes(nodes);
        let inside = wanted(&Masquerading::default(), true, "a", &index.model().nodes).inside;
        let has = |block: &str| inside.contains(&block.parse().unwrap());
        assert!(!has("10.0.0.0/8") && has("10.1.0.0/24") && has("fd00:3::/64") && has("192.0.2.3/32"), "{inside:?}");
    }

    #[test]
    fn pods_nodes_and_what_is_excluded_see_the_pods_own_addresses() {
        let config = Masquerading { exclude: vec!["172.16.5.1/12".parse().unwrap()], ..Masquerading::default() };
        let inside: Vec<String> = wanted(&config, true, "a", &two_nodes()).inside.iter().map(ToString::to_string).collect();
        let expected = [
            "10.1.0.0/24",
            "10.2.0.0/24",
            "172.16.0.0/12",
            "192.0.2.1/32",
            "192.0.2.2/32",
            "2001:db8::1/128",
            "2001:db8:2::/64",
            "fd00:1::/64",
        ];
        assert_eq!(inside, expected);
    }

    /// A pod, its node, and a host that knows no way to the pod; one link for each pair.
    struct Stage {
        pod: Namespace,
        node: Namespace,
        outside: Namespace,
    }

    /// What the outside saw of a datagram.
    struct Seen {
        address: String,
        port: u16,
        answered: bool,
    }

    impl Stage {
        fn new() -> Self {
            let [pod, node, outside] = [(); 3].map(|()| Namespace::create().unwrap());
            let up = |namespace: &Namespace, index: u32, addresses: &[&str]| {
                let netlink = Netlink::open_in(namespace).unwrap();
                for address in addresses {
                    netlink.add_address(index, address.parse().unwrap()).unwrap();
                }
                netlink.set_up(index).unwrap();
            };
            let link = |number: u8, other: &Namespace, own: &[&str], others: &[&str]| {
                let netlink = Netlink::open_in(&node).unwrap();
                let name = format!("to{number}");
                let veth = Veth {
                    name: &name,
                    mac: MacAddress::local(number.into()),
                    peer_name: "eth0",
                    peer_mac: MacAddress::local(u64::from(number) + 100),
                    peer_namespace: Some(other),
                    mtu: 1500,
                };
                let index = netlink.create_veth(&veth).unwrap().index;
                up(&node, index, own);
                up(other, Netlink::open_in(other).unwrap().link("eth0").unwrap().unwrap().index, others);
            };
            link(1, &pod, &["10.1.0.1/24", "fd00:1::1/64"], &["10.1.0.2/24", "fd00:1::2/64"]);
            link(2, &outside, &["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.9/24", "192.0.2.8/24", "2001:db8::9/64"]);
            node.enter(|| {
                sysctl::write("net/ipv4/ip_forward", "1").unwrap();
                sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
            })
            .unwrap();
            let inside = Netlink::open_in(&pod).unwrap();
            let index = inside.link("eth0").unwrap().unwrap().index;
            for gateway in ["10.1.0.1", "fd00:1::1"] {
                inside.add_route(&Route::default_via(gateway.parse().unwrap(), index)).unwrap();
            }
            Self { pod, node, outside }
        }

        /// The address under which the outside sees a datagram of the pod to one of its addresses, and whether its answer arrives.
        fn seen(&self, to: &str) -> (String, bool) {
            let any = if to.contains(':') { "::" } else { "0.0.0.0" };
            let seen = self.seen_of(&self.pod, any, 0, 0, to);
            (seen.address, seen.answered)
        }

        /// What the outside sees of a datagram with a mark, from an address and port of a namespace.
        fn seen_of(&self, of: &Namespace, from: &str, port: u16, mark: u32, to: &str) -> Seen {
            let [from, to]: [IpAddr; 2] = [from, to].map(|address| address.parse().unwrap());
            let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let socket = |namespace: &Namespace, at: SocketAddr| {
                // Addresses of IPv6 are looked for on the link before they are used: for a second or two.
                let bound = (0..30).find_map(|_| {
                    let bound = namespace.enter(|| UdpSocket::bind(at)).unwrap().ok();
                    bound.or_else(|| {
                        std::thread::sleep(Duration::from_millis(100));
                        None
                    })
                });
                let socket = bound.expect("the address can be used");
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                socket
            };
            let (server, client) = (socket(&self.outside, (any, 7000).into()), socket(of, (from, port).into()));
            setsockopt(&client, Mark, &mark).unwrap();
            client.connect(SocketAddr::new(to, 7000)).unwrap();
            // For as long nothing leaves, either.
            let mut buffer = [0; 8];
            let from = (0..10).find_map(|_| {
                client.send(b"ping").ok();
                server.recv_from(&mut buffer).ok()
            });
            let (_, from) = from.expect("the outside gets it");
            server.connect(from).ok();
            let answered = server.send(b"pong").is_ok() && client.recv(&mut buffer).is_ok();
            Seen { address: from.ip().to_string(), port: from.port(), answered }
        }
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn the_outside_sees_the_node_and_answers_and_what_is_inside_sees_the_pod() {
        let stage = Stage::new();
        assert_eq!(stage.seen("192.0.2.9"), ("10.1.0.2".to_owned(), false), "there is no way back");
        let config = Masquerading { exclude: vec!["192.0.2.8/32".parse().unwrap()], ..Masquerading::default() };
        let nodes = SharedMap::from([("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24", "fd00:1::/64"]))]);
        let on = wanted(&config, true, "a", &nodes);
        let apply = |masquerade: &Masquerade, before: Option<Written>| {
            let wanted = Wanted { masquerade: masquerade.clone(), associations: None };
            let (written, problem, _) = stage.node.enter(|| write(wanted, before)).unwrap();
            assert_eq!(problem, None);
            written
        };
        let written = apply(&on, None);
        assert_eq!(stage.seen("192.0.2.9"), ("192.0.2.1".to_owned(), true));
        assert_eq!(stage.seen("2001:db8::9"), ("2001:db8::1".to_owned(), true));
        assert_eq!(stage.seen("192.0.2.8"), ("10.1.0.2".to_owned(), false), "it is excluded");
        assert_eq!(apply(&on, Some(written.clone())), written, "nothing is written where nothing is different");
        // Somebody takes it away: it is made again.
        stage.node.enter(|| Masquerade::default().apply()).unwrap().unwrap();
        assert_eq!(stage.seen("192.0.2.9"), ("10.1.0.2".to_owned(), false));
        let again = apply(&on, Some(written.clone()));
        assert_ne!(again.generation, written.generation);
        assert_eq!(stage.seen("192.0.2.9"), ("192.0.2.1".to_owned(), true));
        // Off for one family.
        let config = Masquerading { ipv4: Switch::Off, ..config };
        apply(&wanted(&config, true, "a", &nodes), Some(again));
        assert_eq!(stage.seen("192.0.2.9"), ("10.1.0.2".to_owned(), false));
        assert_eq!(stage.seen("2001:db8::9"), ("2001:db8::1".to_owned(), true));
        // The next agent is told to masquerade nothing: it takes away what this one leaves.
        apply(&wanted(&Masquerading { ipv6: Switch::Off, ..config }, true, "a", &nodes), None);
        assert_eq!(stage.seen("2001:db8::9"), ("fd00:1::2".to_owned(), false));
    }

    #[test]
    fn what_is_marked_leaves_under_the_nodes_address_wherever_it_goes_and_from_no_node_port() {
        let stage = Stage::new();
        let nodes = SharedMap::from([("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24", "fd00:1::/64"]))]);
        // The outside is inside: nothing but the mark speaks for masquerading.
        let exclude = ["192.0.2.0/24", "2001:db8::/64"].map(|block| block.parse().unwrap()).to_vec();
        let off = Masquerading { ipv4: Switch::Off, ipv6: Switch::Off, exclude };
        let on = Masquerading { ipv4: Switch::On, ipv6: Switch::On, ..off.clone() };
        let apply = |wanted: Masquerade| stage.node.enter(|| wanted.apply()).unwrap().unwrap();
        for config in [&off, &on] {
            apply(Masquerade { mark: MARK_MASQUERADE, ..wanted(config, true, "a", &nodes) });
            for (to, own, other) in [("192.0.2.9", "192.0.2.1", "10.1.0.1"), ("2001:db8::9", "2001:db8::1", "fd00:1::1")] {
                for port in [0, 7001, 30_080, 50_000] {
                    let seen = stage.seen_of(&stage.node, other, port, MARK_MASQUERADE | 1, to);
                    assert_eq!((seen.address.as_str(), seen.answered), (own, true), "from {port}");
                    assert!(PORTS.contains(&seen.port), "from {port}: {}", seen.port);
                }
                let seen = stage.seen_of(&stage.node, other, 0, 1, to);
                assert_eq!((seen.address.as_str(), seen.answered), (other, false), "another bit of the mark");
            }
        }
        // Switched off: nothing is left.
        apply(Masquerade::default());
        assert_eq!(stage.seen_of(&stage.node, "10.1.0.1", 0, MARK_MASQUERADE, "192.0.2.9").address, "10.1.0.1");
    }

    #[test]
    fn what_pods_send_keeps_its_port_unless_that_could_be_a_node_port() {
        let stage = Stage::new();
        let nodes = SharedMap::from([("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"]))]);
        stage.node.enter(|| wanted(&Masquerading::default(), true, "a", &nodes).apply()).unwrap().unwrap();
        let seen = |port| stage.seen_of(&stage.pod, "10.1.0.2", port, 0, "192.0.2.9");
        assert_eq!(seen(40_000).port, 40_000);
        assert!(PORTS.contains(&seen(30_080).port));
    }
}
