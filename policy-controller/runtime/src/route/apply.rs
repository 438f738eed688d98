//! What the kernel says of the ways to other nodes, and what is put into it.

use super::RouteError;
use super::device::{self, Programs};
use super::mtu::{self, IPV6_LEAST};
use super::survey::{Fault, Local, Peer, Survey, Wrong};
use super::way::{Blocked, Hop, Reach, Way, reaches};
use crate::config::{DEFAULT_MTU, RoutingMode};
use ipnet::IpNet;
use palisade_cni::command::is_host_interface;
use palisade_cni::link::{InterfaceAddress, Link, LinkError, Netlink, ROUTE_PROTOCOL, Route, RouteKind, outbound_policies, sysctl};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// The ways to the pod ranges of the other nodes.
    pub reaches: Vec<Reach>,
    /// How this machine reaches the addresses of the other nodes.
    pub hops: BTreeMap<IpAddr, Hop>,
    /// The MTU of pods.
    pub mtu: u32,
    /// The overlay's device, where something goes by it: its port is not decided here.
    pub device: Option<Device>,
    /// Pod ranges, of this node and of others, to which no route is set.
    pub omitted: BTreeSet<IpNet>,
    /// Those in whose way something of this machine stands.
    pub faults: BTreeSet<Fault>,
    /// Whether some are omitted for want of IPv6.
    pub without_ipv6: bool,
    /// Whether this machine has IPsec policies about what it sends, or may have.
    pub ipsec: bool,
    /// Addresses of this node that its interfaces have, the first of each family: what its own processes' packets to pods of others come from.
    pub sources: Vec<IpAddr>,
}

impl Looked {
    /// What keeps pods of IPv6 from being reached where this node has or reaches any: no IPv6, or an MTU below the 1280 bytes that it needs (RFC 8200).
    pub fn troubles(&self, own: &Peer) -> impl Iterator<Item = String> + use<> {
        let without = self.without_ipv6.then(|| {
            "this node has no IPv6 (net.ipv6.conf.all.disable_ipv6, or ipv6.disable of the kernel): pods of IPv6 are not reached from here".to_owned()
        });
        let ipv6 = own.ranges.iter().any(|range| range.addr().is_ipv6() && !self.omitted.contains(range));
        let too_small = (ipv6 && self.mtu < IPV6_LEAST).then(|| {
            format!("the ways to other nodes take {} bytes at most, and IPv6 needs {IPV6_LEAST}: pods have no IPv6 until the links between the nodes have a larger MTU", self.mtu)
        });
        without.into_iter().chain(too_small)
    }
}

/// What the overlay's device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its MTU.
    pub mtu: u32,
    /// Whether pods of IPv6 are behind it.
    pub ipv6: bool,
}

/// What is to be put into the kernel.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The overlay's UDP port.
    pub port: u16,
    /// Whether the overlay knows where to; else what goes by it already goes on, and nothing new does.
    pub overlay: bool,
    /// This node.
    pub own: Peer,
    /// The ways.
    pub looked: Looked,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What settings of this node keep from getting through.
    pub troubles: BTreeSet<String>,
    /// Index of the overlay's device, where something goes by it.
    pub device: Option<u32>,
}

/// Asks the kernel for the ways to the other nodes. Changes nothing.
///
/// # Errors
/// The kernel does not answer.
pub fn look(survey: &Survey, mode: RoutingMode) -> Result<Looked, RouteError> {
    let netlink = Netlink::open()?;
    let links: BTreeMap<u32, Link> = netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
    let ipv6 = sysctl::ipv6_is_on()?;
    let speaks = |address: &IpAddr| ipv6 || address.is_ipv4();
    let mut peers = survey.peers.clone();
    peers.iter_mut().for_each(|peer| peer.addresses.retain(speaks));
    let mut hops = BTreeMap::new();
    for &address in peers.iter().flat_map(|peer| &peer.addresses) {
        if let Some(hop) = hop(&netlink, &links, address)? {
            hops.insert(address, hop);
        }
    }
    let mut reaches: Vec<Reach> = peers.iter().flat_map(|peer| reaches(peer, mode, &hops)).collect();
    let all_ranges = survey.own.ranges.iter().copied().chain(reaches.iter().map(|reach| reach.range));
    let mut omitted: BTreeSet<IpNet> = all_ranges.filter(|range| !speaks(&range.addr())).collect();
    let without_ipv6 = !omitted.is_empty();
    for reach in reaches.iter_mut().filter(|reach| omitted.contains(&reach.range)) {
        (reach.way, reach.mtu) = (Way::Nowhere(Blocked::NoIpv6), None);
    }
    let (routes, addresses) = (netlink.routes()?, netlink.addresses()?);
    let taken = Taken { routes: &routes, addresses: &addresses, links: &links };
    let faults: BTreeSet<Fault> = survey.peers.iter().chain([&survey.own]).flat_map(|peer| taken.faults(peer)).collect();
    omitted.extend(faults.iter().filter_map(|fault| fault.what.in_use()));
    for reach in reaches.iter_mut().filter(|reach| omitted.contains(&reach.range) && speaks(&reach.range.addr())) {
        (reach.way, reach.mtu) = (Way::Nowhere(Blocked::InUse), None);
    }
    let uplink = mtu_of_uplink(&routes, &links);
    let by_overlay = |reach: &&Reach| matches!(reach.way, Way::Vxlan(_));
    let ipv6 = reaches.iter().filter(by_overlay).any(|reach| reach.range.addr().is_ipv6());
    // As long as duplicates are looked for, no route may name it.
    let usable = addresses.iter().filter(|address| !address.tentative);
    let present: Vec<IpAddr> = usable.map(|address| address.address.addr()).collect();
    let first = |ipv6: bool| survey.own.addresses.iter().find(|address| address.is_ipv6() == ipv6 && present.contains(address)).copied();
    Ok(Looked {
        mtu: mtu::of_pods(uplink, &reaches),
        device: mtu::of_overlay(uplink, &reaches).map(|mtu| Device { mtu, ipv6 }),
        reaches,
        hops,
        without_ipv6,
        omitted,
        faults,
        ipsec: has_ipsec(),
        sources: [first(false), first(true)].into_iter().flatten().collect(),
    })
}

/// Whether this machine has IPsec policies about what it sends. Where it does not say (its agent may not ask), it may have some: packets that pass the
/// stack all get there.
fn has_ipsec() -> bool {
    let policies = outbound_policies().inspect_err(|error| tracing::debug!(%error, "whether there are IPsec policies is not known"));
    policies.map_or(true, |policies| policies > 0)
}

/// What this machine has besides pods and what is set here.
struct Taken<'a> {
    routes: &'a [Route],
    addresses: &'a [InterfaceAddress],
    links: &'a BTreeMap<u32, Link>,
}

impl Taken<'_> {
    /// The ranges of a node to which a route would take away what this machine has: its connected network, or what somebody else has set.
    fn faults(&self, peer: &Peer) -> Vec<Fault> {
        let fault = |range: &IpNet| Some(Fault { node: peer.name.clone(), what: Wrong::InUse { range: *range, by: self.by(range)? } });
        peer.ranges.iter().filter_map(fault).collect()
    }

    fn by(&self, range: &IpNet) -> Option<Local> {
        let not_ours = |index: u32| self.links.get(&index).is_none_or(|link| link.name != device::DEVICE && !is_host_interface(&link.name));
        let addresses = self.addresses.iter().filter(|address| not_ours(address.link)).map(|address| address.address.addr());
        let mut routes = self.routes.iter().filter(|route| route.protocol != ROUTE_PROTOCOL);
        addresses
            .filter(|address| range.contains(address))
            .min()
            .map(Local::Address)
            .or_else(|| routes.any(|route| route.destination == *range).then_some(Local::Route))
    }
}

/// How an address of another node is reached. Not through a pod, and not through the overlay itself.
fn hop(netlink: &Netlink, links: &BTreeMap<u32, Link>, address: IpAddr) -> Result<Option<Hop>, LinkError> {
    let Some(Route { kind: RouteKind::Unicast, link: Some(index), gateway, mtu, path_mtu, source, .. }) = netlink.route_to(address)? else {
        return Ok(None);
    };
    let link = links.get(&index).filter(|link| link.name != device::DEVICE && !is_host_interface(&link.name));
    Ok(link.map(|link| Hop { link: index, on_link: gateway.is_none(), mtu: mtu.unwrap_or(link.mtu).min(link.mtu), path_mtu, source }))
}

/// The MTU of the best default route, where there is no other node; [`DEFAULT_MTU`] without one.
///
/// # Errors
/// The kernel does not answer.
pub fn uplink_mtu() -> Result<u32, LinkError> {
    let netlink = Netlink::open()?;
    let links = netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
    Ok(mtu_of_uplink(&netlink.routes()?, &links))
}

/// The MTU of the best default route; [`DEFAULT_MTU`] without one.
fn mtu_of_uplink(routes: &[Route], links: &BTreeMap<u32, Link>) -> u32 {
    let of = |route: &Route| links.get(&route.link?).map(|link| route.mtu.unwrap_or(link.mtu).min(link.mtu));
    uplink(routes).and_then(of).unwrap_or(DEFAULT_MTU)
}

/// The best default route; IPv4's before IPv6's.
fn uplink(routes: &[Route]) -> Option<&Route> {
    let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0 && route.link.is_some());
    defaults.min_by_key(|route| (route.destination.addr().is_ipv6(), route.metric.unwrap_or(0), route.link))
}

/// Makes the overlay's device where something goes by it, sets routes, and removes those that lead nowhere any more, and last the device.
///
/// # Errors
/// The kernel refuses; of several errors, the first. What one route or the device is refused keeps nothing else waiting.
pub fn apply(asked: &Asked, programs: &dyn Programs) -> Result<Applied, RouteError> {
    let netlink = Netlink::open()?;
    let Asked { looked, .. } = asked;
    let wanted = looked.device.map(|Device { mtu, ipv6 }| device::Wanted { port: asked.port, mtu, ipv6 });
    let device = match &wanted {
        Some(wanted) if asked.overlay => device::ensure(&netlink, wanted, programs).map(Some),
        _ => Ok(device::find(&netlink).ok().flatten().map(|link| link.index)),
    };
    let index = device.as_ref().ok().copied().flatten();
    let set = set_routes(&netlink, asked, index);
    let settled = match (&wanted, &device) {
        // It goes last: a route that could not be replaced may still lead into it.
        (None, _) if set.is_ok() => device::remove(&netlink, programs),
        (Some(_), Ok(index)) => programs.sweep(*index).map_err(RouteError::from),
        _ => Ok(()),
    };
    device?;
    set?;
    settled?;
    let Some(wanted) = wanted else { return Ok(Applied::default()) };
    let without_ipv6 = if wanted.ipv6 { device::without_ipv6()? } else { None };
    Ok(Applied { troubles: device::reverse_path()?.into_iter().chain(without_ipv6).collect(), device: index })
}

/// Sets the routes that are missing, and removes those that lead nowhere any more; `device` is the index of the overlay's device.
fn set_routes(netlink: &Netlink, asked: &Asked, device: Option<u32>) -> Result<(), RouteError> {
    let (mut by_overlay, others): (Vec<Route>, Vec<Route>) =
        routes(asked, device).into_iter().partition(|route| device.is_some() && route.link == device);
    // The kernel would refuse each of them, again and again.
    if by_overlay.iter().any(|route| route.destination.addr().is_ipv6()) && device::without_ipv6()?.is_some() {
        by_overlay.retain(|route| route.destination.addr().is_ipv4());
    }
    let ours = || Ok::<Vec<Route>, LinkError>(netlink.routes()?.into_iter().filter(|route| is_node_route(route, device)).collect());
    let present = ours()?;
    let mut outcome = Ok(());
    let mut refused: BTreeSet<IpNet> = BTreeSet::new();
    let missing = |route: &&Route| !present.iter().any(|present| same(route, present));
    for route in others.iter().chain(by_overlay.iter().filter(|_| asked.overlay)).filter(missing) {
        // In the place of one of ours alone: what somebody else sets meanwhile, or what is not shown, stays.
        let takes_place = present.iter().any(|present| present.destination == route.destination && metric(present) == metric(route));
        if let Err(error) = if takes_place { netlink.replace_route(route) } else { netlink.add_route(route) } {
            refused.insert(route.destination);
            outcome = outcome.and(Err(error.into()));
            continue;
        }
        tracing::info!(destination = %route.destination, gateway = ?route.gateway, link = ?route.link, "set a route");
    }
    let stale = |route: &&Route| !others.iter().chain(&by_overlay).any(|wanted| same(wanted, route));
    // Of those that are left: told to remove a route without an MTU or a source, the kernel takes one that has them by now.
    // The old one stays where the new one is refused: without any, packets to pods would leave by the default route.
    for route in ours()?.iter().filter(stale).filter(|route| !refused.contains(&route.destination)) {
        match netlink.delete_route(route) {
            // It has gone with its link meanwhile.
            Ok(false) => {}
            Ok(true) => tracing::info!(destination = %route.destination, "removed a route"),
            Err(error) => outcome = outcome.and(Err(error.into())),
        }
    }
    outcome
}

/// The routes that should be there; `device` is the index of the overlay's device.
fn routes(asked: &Asked, device: Option<u32>) -> Vec<Route> {
    // Addresses of this node's ranges are unreachable but for those of its pods.
    let own = asked.own.ranges.iter().filter(|range| !asked.looked.omitted.contains(*range));
    let mut routes: Vec<Route> = own.map(|range| Route::unreachable(*range)).collect();
    let widest = asked.looked.device.map_or(0, |device| device.mtu);
    for reach in &asked.looked.reaches {
        let Reach { range, way, .. } = reach;
        match way {
            Way::Native { gateway, link } => routes.push(Route::via(*range, *gateway, *link)),
            Way::Vxlan(_) => routes.extend(device.map(|device| Route {
                // By it the other node knows that it is this one who sends.
                source: asked.looked.sources.iter().find(|source| source.is_ipv6() == range.addr().is_ipv6()).copied(),
                // A packet that came past the route to the outer address does not learn from it; the sender is told by this one.
                mtu: reach.told().filter(|told| *told < widest),
                ..Route::direct(*range, device)
            })),
            Way::Network | Way::Nowhere(_) => {}
        }
    }
    // A pod's route leads to the same destination as that of a range that is one address, which may pass to another node under the pod that runs: of two
    // routes with one metric the kernel takes but one.
    for route in routes.iter_mut().filter(|route| route.destination.prefix_len() == route.destination.max_prefix_len()) {
        route.metric = Some(u32::MAX);
    }
    routes
}

/// The metric that a route has in the kernel.
fn metric(route: &Route) -> u32 {
    const OF_IPV6: u32 = 1024;
    route.metric.unwrap_or(if route.destination.addr().is_ipv6() { OF_IPV6 } else { 0 })
}

/// Whether a route is one of those made here: those to single pods, which palisade-cni makes, have no gateway.
fn is_node_route(route: &Route, device: Option<u32>) -> bool {
    let ours = route.gateway.is_some() || route.kind == RouteKind::Unreachable || (device.is_some() && route.link == device);
    route.protocol == ROUTE_PROTOCOL && ours
}

/// Whether a route does what a wanted one does. Where that one has no metric, the kernel adds one of its own.
fn same(wanted: &Route, route: &Route) -> bool {
    let of = |route: &Route| (route.destination, route.kind, route.gateway, route.source, route.mtu);
    let metric = wanted.metric.is_none() || wanted.metric == route.metric;
    of(wanted) == of(route) && metric && (wanted.kind != RouteKind::Unicast || wanted.link == route.link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_cni::link::{MacAddress, Namespace, Veth};

    #[test]
    fn an_mtu_that_is_too_small_for_ipv6_is_named_where_there_are_such_pods() {
        let own = |range: &str| Peer { ranges: vec![range.parse().unwrap()], ..Peer::default() };
        let troubles = |mtu, range| Looked { mtu, ..Looked::default() }.troubles(&own(range)).collect::<Vec<_>>();
        assert!(troubles(1279, "fd00:1::/64").iter().any(|text| text.contains("1279")));
        assert!(troubles(1280, "fd00:1::/64").is_empty() && troubles(1279, "10.1.0.0/24").is_empty());
    }

    #[test]
    fn a_route_into_the_overlay_is_as_narrow_as_an_error_has_told_of_the_way() {
        let outer = "192.0.2.2".parse().unwrap();
        let hop = |path_mtu| Some(crate::route::Hop { link: 2, on_link: false, mtu: 1500, path_mtu, source: None });
        let of = |path_mtu| {
            let range = "10.2.0.0/24".parse().unwrap();
            let reach =
                Reach { node: "b".to_owned(), range, way: Way::Vxlan(outer), outer: Some(outer), hop: hop(path_mtu), mtu: Some(1450) };
            let looked = Looked { reaches: vec![reach], device: Some(Device { mtu: 1450, ipv6: false }), ..Looked::default() };
            routes(&Asked { port: 4789, overlay: true, own: Peer::default(), looked }, Some(7))[0].mtu
        };
        assert_eq!((of(None), of(Some(1400)), of(Some(1500)), of(Some(9000))), (None, Some(1350), None, None));
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn a_route_that_becomes_narrower_or_gets_a_source_takes_the_place_of_the_old_one_and_stays() {
        let (node, other) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        node.enter(|| {
            let netlink = Netlink::open().unwrap();
            let [mac, peer_mac] = [MacAddress::local(1), MacAddress::local(2)];
            let name = crate::route::DEVICE;
            netlink.create_veth(&Veth { name, mac, peer_name: name, peer_mac, peer_namespace: Some(&other), mtu: 1450 }).unwrap();
            let device = netlink.link(name).unwrap().unwrap().index;
            let ends = ["10.1.0.1", "fd00:1::1"].map(|end| end.parse::<IpAddr>().unwrap());
            ends.iter().for_each(|end| netlink.add_address(device, (*end).into()).unwrap());
            netlink.set_up(device).unwrap();
            let asked = |path_mtu: Option<u32>, sources: &[IpAddr]| {
                let reach = |(range, outer): (&str, &str)| {
                    let (range, outer) = (range.parse().unwrap(), outer.parse().unwrap());
                    let hop = Some(Hop { link: 1, on_link: false, mtu: 1500, path_mtu, source: None });
                    Reach { node: "b".to_owned(), range, way: Way::Vxlan(outer), outer: Some(outer), hop, mtu: Some(1450) }
                };
                let reaches = [("10.2.0.0/24", "192.0.2.2"), ("fd00:2::/64", "192.0.2.2")].map(reach).into();
                let device = Some(Device { mtu: 1450, ipv6: false });
                Asked {
                    port: 4789,
                    overlay: true,
                    own: Peer::default(),
                    looked: Looked { reaches, device, sources: sources.to_vec(), ..Looked::default() },
                }
            };
            let (narrow, none, both) = (Some(1400), &ends[..0], &ends[..]);
            for (path_mtu, sources) in [(None, none), (narrow, none), (narrow, both), (None, both), (None, none), (None, both)] {
                set_routes(&netlink, &asked(path_mtu, sources), Some(device)).unwrap();
                let mut found: Vec<_> = netlink.routes().unwrap().into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL).collect();
                found.sort_by_key(|route| route.destination);
                let found: Vec<_> = found.iter().map(|route| (route.mtu, route.source)).collect();
                let mtu = path_mtu.map(|mtu| mtu - 50);
                let expected = [0, 1].map(|family| (mtu, sources.get(family).copied()));
                assert_eq!(found, expected, "{path_mtu:?} {sources:?}");
            }
        })
        .unwrap();
    }

    /// As earlier agents have left it.
    #[test]
    fn the_route_of_a_range_of_one_address_that_has_the_kernel_s_metric_gives_way_to_one_with_the_last() {
        Namespace::create()
            .unwrap()
            .enter(|| {
                let netlink = Netlink::open().unwrap();
                netlink.set_up(1).unwrap();
                let ranges: Vec<IpNet> = ["10.1.0.7/32", "fd00:1::7/128"].map(|range| range.parse().unwrap()).into();
                ranges.iter().for_each(|range| netlink.add_route(&Route::unreachable(*range)).unwrap());
                let own = Peer { ranges: ranges.clone(), ..Peer::default() };
                let asked = Asked { port: 4789, overlay: false, own, looked: Looked::default() };
                for _ in 0..2 {
                    set_routes(&netlink, &asked, None).unwrap();
                    let ours = netlink.routes().unwrap().into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
                    let found: Vec<_> = ours.map(|route| (route.destination, route.kind, route.metric)).collect();
                    assert_eq!(found, [0, 1].map(|family| (ranges[family], RouteKind::Unreachable, Some(u32::MAX))));
                }
            })
            .unwrap();
    }

    #[test]
    fn the_uplink_has_the_best_default_route() {
        let default = |gateway: &str, link, metric| Route { metric, ..Route::default_via(gateway.parse().unwrap(), link) };
        let routes = [
            Route::direct("10.0.0.0/24".parse().unwrap(), 9),
            default("fd00::1", 2, Some(1)),
            default("10.0.0.1", 3, Some(100)),
            default("10.0.1.1", 4, None),
        ];
        let link = |routes: &[Route]| uplink(routes).and_then(|route| route.link);
        assert_eq!(link(&routes), Some(4));
        assert_eq!(link(&routes[..2]), Some(2));
        assert_eq!(link(&routes[..1]), None);
    }
}
