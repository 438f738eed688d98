//! Routes to the pods of other nodes, and forwarding: plain kernel routes by the other node's own address.

use crate::problem::Part;
use crate::state::State;
use ipnet::IpNet;
use palisade_cni::link::{LinkError, Netlink, ROUTE_PROTOCOL, Route, RouteKind, sysctl};
use palisade_policy::model::Node;
use palisade_policy::shared::SharedMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often the kernel's routes are compared with what they should be, changes or not.
const INTERVAL: Duration = Duration::from_secs(30);

/// A route to some pods of another node: where they are, and by which address of their node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    range: IpNet,
    /// `None`: a range of this node, whose addresses are unreachable but for those of its pods.
    gateway: Option<IpAddr>,
}

/// Lets this node forward packets, as every node with pods must.
///
/// # Errors
/// A setting that cannot be read or written, for example in a container whose `/proc/sys` is read-only.
pub fn enable_forwarding() -> Result<(), LinkError> {
    sysctl::write("net/ipv4/ip_forward", "1")?;
    if sysctl::read_if_any("net/ipv6/conf/all/forwarding")?.as_deref() != Some("0") {
        return Ok(());
    }
    // A router ignores router advertisements, by which the node may have its own default route, unless told otherwise.
    for link in Netlink::open()?.links()? {
        let name = format!("net/ipv6/conf/{}/accept_ra", link.name);
        if sysctl::read_if_any(&name)?.as_deref() == Some("1") {
            sysctl::write(&name, "2")?;
        }
    }
    sysctl::write("net/ipv6/conf/all/forwarding", "1")
}

/// Keeps the routes to the pods of all other nodes as the Node objects say, for ever.
pub async fn follow(state: Arc<State>) -> Infallible {
    let mut changes = state.changes();
    loop {
        changes.borrow_and_update();
        // Before everything was read, a node that is not there may only not have been listed yet.
        if state.index().synced() {
            let wanted = wanted(&state.config.node, &state.index().model().nodes);
            let result = tokio::task::spawn_blocking(move || apply(&wanted)).await;
            match result.map_err(|error| error.to_string()).and_then(|result| result.map_err(|error| error.to_string())) {
                Ok(()) => state.problems.clear(Part::Routes),
                Err(error) => state.problems.set(Part::Routes, format!("routes to the pods of other nodes: {error}")),
            }
        }
        let _ = tokio::time::timeout(INTERVAL, changes.changed()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The routes that node `own` needs.
fn wanted(own: &str, nodes: &SharedMap<String, Node>) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for (name, node) in nodes {
        for &range in &node.pod_ranges {
            if name == own {
                wanted.push(Wanted { range, gateway: None });
                continue;
            }
            // Internal addresses come first.
            match node.addresses.iter().find(|address| address.is_ipv4() == range.addr().is_ipv4()) {
                Some(&gateway) => wanted.push(Wanted { range, gateway: Some(gateway) }),
                None => tracing::warn!(node = name, %range, "the node has no address of this family: its pods are not reachable from here"),
            }
        }
    }
    wanted.sort();
    // Two nodes with one range are an error of the cluster; the first one's route stays, instead of a fight.
    wanted.dedup_by_key(|wanted| wanted.range);
    wanted
}

fn apply(wanted: &[Wanted]) -> Result<(), LinkError> {
    let netlink = Netlink::open()?;
    let mut routes = Vec::new();
    for Wanted { range, gateway } in wanted {
        match gateway {
            None => routes.push(Route::unreachable(*range)),
            Some(gateway) => match netlink.route_to(*gateway)? {
                Some(Route { link: Some(link), gateway: None, .. }) => routes.push(Route::via(*range, *gateway, link)),
                _ => {
                    tracing::warn!(%range, %gateway, "the node is on no link of this one: the network between them must route its pod range")
                }
            },
        }
    }
    let present: Vec<Route> = netlink.routes()?.into_iter().filter(is_node_route).collect();
    for stale in present.iter().filter(|route| !routes.iter().any(|wanted| same(wanted, route))) {
        netlink.delete_route(stale)?;
        tracing::info!(destination = %stale.destination, "removed a route");
    }
    for missing in routes.iter().filter(|route| !present.iter().any(|present| same(present, route))) {
        netlink.replace_route(missing)?;
        tracing::info!(destination = %missing.destination, gateway = ?missing.gateway, "set a route");
    }
    Ok(())
}

/// Whether a route is one of those made here: those to single pods, which palisade-cni makes, have no gateway.
fn is_node_route(route: &Route) -> bool {
    route.protocol == ROUTE_PROTOCOL && (route.gateway.is_some() || route.kind == RouteKind::Unreachable)
}

/// Whether two routes do the same. The kernel adds a metric of its own.
fn same(a: &Route, b: &Route) -> bool {
    (a.destination, a.kind, a.gateway) == (b.destination, b.kind, b.gateway) && (a.kind != RouteKind::Unicast || a.link == b.link)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use palisade_cni::link::{MacAddress, Namespace, Veth};

    /// A node with these addresses and pod ranges.
    pub(crate) fn node(addresses: &[&str], ranges: &[&str]) -> Node {
        Node {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    #[test]
    fn each_range_of_another_node_goes_by_its_address_of_that_family() {
        let nodes = SharedMap::from([
            ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
            ("b".to_owned(), node(&["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"])),
            ("c".to_owned(), node(&["192.0.2.3"], &["fd00:3::/64"])),
        ]);
        let wanted: Vec<_> = wanted("a", &nodes)
            .into_iter()
            .map(|wanted| (wanted.range.to_string(), wanted.gateway.map(|gateway| gateway.to_string())))
            .collect();
        let via = |range: &str, gateway: &str| (range.to_owned(), Some(gateway.to_owned()));
        assert_eq!(wanted, [("10.1.0.0/24".to_owned(), None), via("10.2.0.0/24", "192.0.2.2"), via("fd00:2::/64", "2001:db8::2")]);
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn routes_follow_the_nodes_and_leave_those_of_others_alone() {
        let namespace = Namespace::create().unwrap();
        namespace.enter(follow_the_nodes).unwrap();
    }

    fn follow_the_nodes() {
        let netlink = Netlink::open().unwrap();
        let veth = Veth {
            name: "up",
            mac: MacAddress::local(1),
            peer_name: "down",
            peer_mac: MacAddress::local(2),
            peer_namespace: None,
            mtu: 1500,
        };
        let link = netlink.create_veth(&veth).unwrap().index;
        netlink.add_address(link, "192.0.2.1/24".parse().unwrap()).unwrap();
        netlink.add_address(link, "2001:db8::1/64".parse().unwrap()).unwrap();
        netlink.set_up(link).unwrap();
        netlink.set_up(netlink.link("down").unwrap().unwrap().index).unwrap();
        // What is not ours to touch: a route of the administrator and one to a pod.
        let foreign = Route { protocol: 4, ..Route::via("10.9.0.0/24".parse().unwrap(), "192.0.2.9".parse().unwrap(), link) };
        netlink.add_route(&foreign).unwrap();
        netlink.add_route(&Route::direct("10.1.0.5/32".parse().unwrap(), link)).unwrap();

        let mut nodes = SharedMap::from([
            ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
            ("b".to_owned(), node(&["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"])),
        ]);
        let destinations = || {
            let ours = netlink.routes().unwrap().into_iter().filter(is_node_route);
            let mut shown: Vec<_> =
                ours.map(|route| (route.destination.to_string(), route.gateway.map(|gateway| gateway.to_string()))).collect();
            shown.sort();
            shown
        };
        let via = |range: &str, gateway: &str| (range.to_owned(), Some(gateway.to_owned()));
        let own = ("10.1.0.0/24".to_owned(), None);
        apply(&wanted("a", &nodes)).unwrap();
        assert_eq!(destinations(), [own.clone(), via("10.2.0.0/24", "192.0.2.2"), via("fd00:2::/64", "2001:db8::2")]);

        nodes.insert("b".to_owned(), node(&["192.0.2.7"], &["10.2.0.0/24"]));
        apply(&wanted("a", &nodes)).unwrap();
        assert_eq!(destinations(), [own.clone(), via("10.2.0.0/24", "192.0.2.7")]);

        nodes.remove(&"b".to_owned());
        apply(&wanted("a", &nodes)).unwrap();
        assert_eq!(destinations(), [own]);
        let left: Vec<_> = netlink.routes().unwrap().into_iter().map(|route| route.destination.to_string()).collect();
        assert!(left.contains(&"10.9.0.0/24".to_owned()) && left.contains(&"10.1.0.5/32".to_owned()), "{left:?}");
    }
}
