use super::{LinkError, Netlink};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use nix::errno::Errno;
use nix::libc;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
/// The metric of a route that is its MTU.
const RTAX_MTU: u16 = 2;
/// Where `struct rta_cacheinfo` has the time in which a cached route expires; zero for one that does not.
const EXPIRES: std::ops::Range<usize> = 8..12;

/// The protocol number of routes that Palisade makes (`ip route` shows it as `proto 80`): what carries it is ours to
/// remove.
pub const ROUTE_PROTOCOL: u8 = 80;

/// What becomes of packets that a route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// They are sent on.
    Unicast,
    /// They are dropped in silence.
    Blackhole,
    /// They are answered with "unreachable".
    Unreachable,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The addresses it is for; prefix length 0 for a default route.
    pub destination: IpNet,
    /// What becomes of the packets.
    pub kind: RouteKind,
    /// The next router; `None` where the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Index of the interface; `None` only for routes that need none, and for those with several next hops.
    pub link: Option<u32>,
    /// The gateway is on the link although no route says so.
    pub onlink: bool,
    /// The source address that the node's own packets prefer.
    pub source: Option<IpAddr>,
    /// Preference, the lower the better; `None` for the kernel's default (0 for IPv4, 1024 for IPv6).
    pub metric: Option<u32>,
    /// Longest packet in bytes that it takes, where that is not the interface's.
    pub mtu: Option<u32>,
    /// Longest packet in bytes that gets to the destination, as an ICMP error has told; the kernel forgets it after a while. It is told of single
    /// destinations, each a route of its own where it is listed.
    pub path_mtu: Option<u32>,
    /// Who made it (`RTPROT_*`); [`ROUTE_PROTOCOL`] for ours.
    pub protocol: u8,
}

impl Route {
    /// A route of ours to addresses on a link.
    pub fn direct(destination: IpNet, link: u32) -> Self {
        Self { link: Some(link), ..Self::ours(destination, RouteKind::Unicast) }
    }

    /// A route of ours through a gateway that is on the link, whether or not another route says so.
    pub fn via(destination: IpNet, gateway: IpAddr, link: u32) -> Self {
        Self { gateway: Some(gateway), link: Some(link), onlink: true, ..Self::ours(destination, RouteKind::Unicast) }
    }

    /// A default route of ours, of the gateway's family.
    pub fn default_via(gateway: IpAddr, link: u32) -> Self {
        Self::via(everything(gateway.is_ipv6()), gateway, link)
    }

    /// A route of ours that answers "unreachable": for addresses of a range that nobody has.
    pub fn unreachable(destination: IpNet) -> Self {
        Self::ours(destination, RouteKind::Unreachable)
    }

    fn ours(destination: IpNet, kind: RouteKind) -> Self {
        let destination = destination.trunc();
        Self {
            destination,
            kind,
            gateway: None,
            link: None,
            onlink: false,
            source: None,
            metric: None,
            mtu: None,
            path_mtu: None,
            protocol: ROUTE_PROTOCOL,
        }
    }
}

impl Netlink {
    /// Adds a route; [`LinkError::is_exists`] when there is one to the same destination with the same metric.
    /// Routes need their interface up.
    pub fn add_route(&self, route: &Route) -> Result<(), LinkError> {
        self.change(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_EXCL, || format!("add {}", describe(route)))
    }

    /// Adds a route or puts it in the place of the one to the same destination with the same metric.
    pub fn replace_route(&self, route: &Route) -> Result<(), LinkError> {
        self.change(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_REPLACE, || format!("replace {}", describe(route)))
    }

    /// Removes a route that fits all that is given. False: there was none.
    pub fn delete_route(&self, route: &Route) -> Result<bool, LinkError> {
        match self.change(RouteNetlinkMessage::DelRoute(message(route)), 0, || format!("delete {}", describe(route))) {
            Err(error) if error.is_missing() => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The routes of the main table, both families.
    pub fn routes(&self) -> Result<Vec<Route>, LinkError> {
        self.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()), || "list routes".into(), read)
    }

    /// The route that the kernel would take to `destination`, with the source address it would choose. The route's
    /// destination is the address asked for. `None`: unreachable.
    pub fn route_to(&self, destination: IpAddr) -> Result<Option<Route>, LinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = super::family(destination);
        message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let found = self.get(RouteNetlinkMessage::GetRoute(message), || format!("find the route to {destination}"), read);
        match found {
            // The last two: the route to it drops or prohibits.
            Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL | Errno::EACCES)) => {
                Ok(None)
            }
            other => other.map(Option::flatten),
        }
    }
}

/// All addresses of a family.
pub fn everything(ipv6: bool) -> IpNet {
    let unspecified = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    IpNet::new_assert(unspecified, 0)
}

fn describe(route: &Route) -> String {
    let gateway = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let link = route.link.map(|link| format!(" on link number {link}")).unwrap_or_default();
    format!("route to {}{gateway}{link}", route.destination)
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = super::family(route.destination.addr());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
    };
    // The kernel would take a gateway as "on this host" with a narrower scope.
    let on_the_link = route.kind == RouteKind::Unicast && route.gateway.is_none() && route.destination.addr().is_ipv4();
    message.header.scope = if on_the_link { RouteScope::Link } else { RouteScope::Universe };
    if route.onlink {
        message.header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.addr())));
    }
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

pub(super) fn read(payload: &[u8]) -> Result<Option<Route>, String> {
    let header = RouteHeader::parse(payload).map_err(|error| error.to_string())?;
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => return Ok(None),
    };
    let mut table = u32::from(header.table);
    let mut destination = None;
    let mut route = Route { kind, ..Route::ours(everything(header.address_family == super::family(Ipv6Addr::UNSPECIFIED.into())), kind) };
    route.protocol = header.protocol.into();
    route.onlink = header.flags.contains(RouteFlags::Onlink);
    let mut expires = false;
    for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_DST => destination = super::ip(value),
            libc::RTA_GATEWAY => route.gateway = super::ip(value),
            // Of the other family: after its number.
            libc::RTA_VIA => route.gateway = value.get(2..).and_then(super::ip),
            libc::RTA_OIF => route.link = super::device::number(value),
            libc::RTA_PREFSRC => route.source = super::ip(value),
            libc::RTA_PRIORITY => route.metric = super::device::number(value),
            libc::RTA_METRICS => {
                let metrics = NlasIterator::new(value).filter_map(Result::ok);
                route.mtu = metrics.filter(|metric| metric.kind() == RTAX_MTU).find_map(|metric| super::device::number(metric.value()));
            }
            libc::RTA_CACHEINFO => expires = value.get(EXPIRES).is_some_and(|expires| expires != [0; 4]),
            libc::RTA_TABLE => table = super::device::number(value).unwrap_or(table),
            _ => {}
        }
    }
    // What an ICMP error taught of one destination is no property of the route.
    if expires {
        route.path_mtu = route.mtu.take();
    }
    // An answer about a cached IPv6 route is of the main table too; tables of others are not shown.
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return Ok(None);
    }
    if let Some(address) = destination {
        route.destination = IpNet::new(address, header.destination_prefix_length).map_err(|error| error.to_string())?;
    }
    Ok(Some(route))
}
