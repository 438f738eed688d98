//! What pods send to the outside leaves under the node's own address, for the outside knows no way back to a pod's.

use crate::config::{Masquerading, Source, Switch};
use crate::problem::Part;
use crate::state::State;
use ipnet::IpNet;
use palisade_cni::link::masquerade::{generation, is_unsupported};
use palisade_cni::link::{LinkError, Masquerade};
use palisade_policy::model::Node;
use palisade_policy::shared::SharedMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the table is looked at, changes or not.
const INTERVAL: Duration = Duration::from_secs(30);

/// A table that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    what: Masquerade,
    /// The generation of all tables right after; `None` where the kernel has no tables, and none is needed.
    generation: Option<u32>,
}

/// Keeps the table as the configuration and the Node objects say, for ever. What was written stays when the agent ends.
pub async fn follow(state: Arc<State>) -> Infallible {
    let mut changes = state.changes();
    let mut written: Option<Written> = None;
    let mut looked = Instant::now();
    loop {
        changes.borrow_and_update();
        // Before everything was read, a node that is not there may only not have been listed yet.
        if state.index().synced() {
            let from_api = matches!(state.config.source, Source::Kubernetes { .. });
            let wanted = wanted(&state.config.masquerade, from_api, &state.config.node, &state.index().model().nodes);
            // Most changes are of pods and policies; the kernel is asked now and then alone.
            if written.as_ref().is_none_or(|written| written.what != wanted) || looked.elapsed() >= INTERVAL {
                looked = Instant::now();
                let before = written.take();
                match tokio::task::spawn_blocking(move || write(wanted, before)).await.map_err(|error| error.to_string()) {
                    Ok(Ok(now)) => {
                        written = Some(now);
                        state.problems.clear(Part::Masquerade);
                    }
                    Ok(Err(error)) => {
                        state.problems.set(Part::Masquerade, format!("what pods send to the outside finds no way back: {error}"))
                    }
                    Err(error) => state.problems.set(Part::Masquerade, error),
                }
            }
        }
        let _ = tokio::time::timeout(INTERVAL, changes.changed()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes the table where it is another than before, or where somebody has changed any table meanwhile: it may have been ours. An agent that
/// has written none yet writes it in any case: an earlier one may have left another.
fn write(wanted: Masquerade, before: Option<Written>) -> Result<Written, LinkError> {
    let same = before.as_ref().is_some_and(|written| written.what == wanted);
    if let Some(written) = before
        && same
        && let Some(since) = written.generation
        && generation()? == since
    {
        return Ok(written);
    }
    let masquerades = !wanted.sources.is_empty();
    match wanted.apply() {
        // Nothing of ours is there, and nothing should be.
        Err(error) if !masquerades && is_unsupported(&error) => return Ok(Written { what: wanted, generation: None }),
        result => result?,
    }
    if masquerades && !same {
        tracing::info!(sources = wanted.sources.len(), inside = wanted.inside.len(), "wrote the table that masquerades");
    }
    Ok(Written { what: wanted, generation: Some(generation()?) })
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
    Masquerade { sources, inside: of_nodes.chain(config.exclude.iter().copied()).map(|block| block.trunc()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::node;
    use palisade_cni::link::{MacAddress, Namespace, Netlink, Route, Veth, sysctl};
    use std::net::{IpAddr, SocketAddr, UdpSocket};

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
            let to: IpAddr = to.parse().unwrap();
            let socket = |namespace: &Namespace, at: &str| {
                let socket = namespace.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                socket
            };
            let [any, port] = if to.is_ipv6() { ["[::]:0", "[::]:7000"] } else { ["0.0.0.0:0", "0.0.0.0:7000"] };
            let (server, client) = (socket(&self.outside, port), socket(&self.pod, any));
            client.connect(SocketAddr::new(to, 7000)).unwrap();
            // Addresses of IPv6 are looked for on the link before they are used: for a second or two nothing leaves.
            let mut buffer = [0; 8];
            let from = (0..10).find_map(|_| {
                client.send(b"ping").ok();
                server.recv_from(&mut buffer).ok()
            });
            let (_, from) = from.expect("the outside gets it");
            server.connect(from).ok();
            let answered = server.send(b"pong").is_ok() && client.recv(&mut buffer).is_ok();
            (from.ip().to_string(), answered)
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
        let apply = |wanted: &Masquerade, before: Option<Written>| stage.node.enter(|| write(wanted.clone(), before)).unwrap().unwrap();
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
}
