//! What joins several nodes: a bridge for each link, one router between the links, and the way to the outside host.
//!
//! The router knows the links and nothing of pods, so that packets with pods' own addresses stay on one link. The outside host's router, the
//! border, has a leg on each link and is told where pods are: it is what lets the outside host try them.

use super::flow::Party;
use super::outside::{self, BORDER, MTU, OUTSIDE_LINK, TRANSIT, UPLINK, forwards, joined, up};
use super::paths;
use super::topology::{Link, NodePlan};
use ipnet::IpNet;
use palisade_cni::link::{LinkError, MacAddress, Namespace, Netlink, Route, Veth, sysctl};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The router's end of the wire to the border; the other end is called the same.
const TRANSIT_LINK: &str = "transit";
/// Who made the routes of a lab's machines: the administrator (RTPROT_STATIC), whose routes an agent leaves alone.
const STATIC: u8 = 4;

/// What joins the nodes. The router is the namespace of the lab itself.
pub struct World {
    router: Netlink,
    border: Netlink,
    segments: BTreeMap<Link, Segment>,
    ports: BTreeMap<String, Port>,
    /// The hardware addresses of uplinks, by the nodes' addresses.
    cards: BTreeMap<Vec<IpAddr>, MacAddress>,
    /// How many links were made so far: each has a name and an address of its own.
    made: u32,
}

/// A link that nodes share.
struct Segment {
    /// The bridge, which is the router's end, too.
    bridge: u32,
    /// The border's end.
    leg: u32,
}

/// Where a node is plugged in.
struct Port {
    index: u32,
    plan: NodePlan,
}

/// The pin of the border's namespace, beside those of parties: no party is called so.
fn border_pin() -> PathBuf {
    paths::namespaces().join("border")
}

impl World {
    /// Makes the routers and the outside host, in the network namespace of the calling process.
    pub fn create() -> Result<Self, LinkError> {
        routes_any_way()?;
        let border_namespace = Namespace::create_at(&border_pin())?;
        border_namespace.enter(routes_any_way)??;
        let outside_namespace = Namespace::create_at(&paths::namespace(&Party::Outside))?;
        outside_namespace.enter(|| sysctl::write("net/ipv6/conf/default/accept_dad", "0"))??;
        let (router, border) = (Netlink::open()?, Netlink::open_in(&border_namespace)?);
        let far = Netlink::open_in(&outside_namespace)?;
        for machine in [&router, &border, &far] {
            up(machine, "lo")?;
        }
        let mut world = Self { router, border, segments: BTreeMap::new(), ports: BTreeMap::new(), cards: BTreeMap::new(), made: 0 };
        let (here, there) = (world.fresh_mac(), world.fresh_mac());
        world.router.create_veth(&veth(TRANSIT_LINK, here, TRANSIT_LINK, there, &border_namespace, MTU))?;
        let (here, there) = (world.fresh_mac(), world.fresh_mac());
        world.border.create_veth(&veth(OUTSIDE_LINK, here, OUTSIDE_LINK, there, &outside_namespace, MTU))?;
        // The router is the other host of its wire, and that is all there is to say of its own address there.
        let routers = TRANSIT.map(previous);
        join(&world.router, up(&world.router, TRANSIT_LINK)?, routers.map(joined))?;
        join(&world.border, up(&world.border, TRANSIT_LINK)?, TRANSIT.map(joined))?;
        join(&world.border, up(&world.border, OUTSIDE_LINK)?, BORDER.map(joined))?;
        let outside_link = up(&far, OUTSIDE_LINK)?;
        join(&far, outside_link, outside::addresses(outside::Nodes::Several).map(joined))?;
        let transit = up(&world.router, TRANSIT_LINK)?;
        for (gateway, border) in BORDER.into_iter().zip(TRANSIT) {
            far.add_route(&Route::default_via(gateway, outside_link))?;
            world.router.add_route(&Route::via(joined(gateway), border, transit))?;
        }
        Ok(world)
    }

    /// Makes a node's namespace and plugs it in.
    pub fn add(&mut self, name: &str, plan: &NodePlan) -> Result<(), LinkError> {
        let namespace = Namespace::create_at(&paths::namespace(&Party::Node(name.to_owned())))?;
        namespace.enter(forwards)??;
        let node = Netlink::open_in(&namespace)?;
        up(&node, "lo")?;
        let bridge = self.segment(&plan.link)?;
        let (port, here) = (self.fresh_name("port"), self.fresh_mac());
        let there = self.card(plan);
        let index = self.router.create_veth(&veth(&port, here, UPLINK, there, &namespace, plan.link.mtu))?.index;
        self.router.set_bridge(index, bridge)?;
        self.router.set_up(index)?;
        let uplink = up(&node, UPLINK)?;
        join(&node, uplink, plan.joined())?;
        for gateway in plan.link.router() {
            node.add_route(&Route { protocol: STATIC, ..Route::default_via(gateway.addr(), uplink) })?;
        }
        self.ports.insert(name.to_owned(), Port { index, plan: NodePlan { ranges: Vec::new(), ..plan.clone() } });
        self.route(name, &plan.ranges)
    }

    /// Unplugs a node for good, and removes its namespace once nobody is in it.
    pub fn remove(&mut self, name: &str) -> Result<(), LinkError> {
        self.route(name, &[])?;
        if let Some(port) = self.ports.remove(name) {
            self.router.delete_link(port.index)?;
            if !self.ports.values().any(|other| other.plan.link == port.plan.link)
                && let Some(segment) = self.segments.remove(&port.plan.link)
            {
                self.border.delete_link(segment.leg)?;
                self.router.delete_link(segment.bridge)?;
            }
        }
        Namespace::unpin(&paths::namespace(&Party::Node(name.to_owned()))).map(drop)
    }

    /// Tells the border which pods are on a node.
    pub fn route(&mut self, name: &str, ranges: &[IpNet]) -> Result<(), LinkError> {
        let Some(port) = self.ports.get_mut(name) else { return Ok(()) };
        let Some(segment) = self.segments.get(&port.plan.link) else { return Ok(()) };
        let plan = &port.plan;
        let way = |range: &IpNet| Some(Route::via(*range, plan.address_like(range.addr())?, segment.leg));
        for stale in plan.ranges.iter().filter(|range| !ranges.contains(range)).filter_map(way) {
            self.border.delete_route(&stale)?;
        }
        for new in ranges.iter().filter_map(way) {
            self.border.replace_route(&new)?;
        }
        port.plan.ranges = ranges.to_vec();
        Ok(())
    }

    /// Pulls a node's cable, or puts it in again: routes and addresses of the node stay, as they do then.
    pub fn plug(&self, name: &str, plugged: bool) -> Result<(), LinkError> {
        match self.ports.get(name) {
            Some(port) if plugged => self.router.set_up(port.index),
            Some(port) => self.router.set_down(port.index),
            None => Ok(()),
        }
    }

    /// The bridge of a link, made where it is not there yet.
    fn segment(&mut self, link: &Link) -> Result<u32, LinkError> {
        if let Some(segment) = self.segments.get(link) {
            return Ok(segment.bridge);
        }
        let (name, mac) = (self.fresh_name("link"), self.fresh_mac());
        let bridge = self.router.create_bridge(&name, mac, link.mtu)?.index;
        let border_namespace = Namespace::open(&border_pin())?;
        let (name, here, there) = (self.fresh_name("leg"), self.fresh_mac(), self.fresh_mac());
        let port = self.router.create_veth(&veth(&name, here, &name, there, &border_namespace, link.mtu))?.index;
        self.router.set_bridge(port, bridge)?;
        self.router.set_up(bridge)?;
        self.router.set_up(port)?;
        let leg = up(&self.border, &name)?;
        join(&self.router, bridge, link.router())?;
        join(&self.border, leg, link.border())?;
        self.segments.insert(link.clone(), Segment { bridge, leg });
        Ok(bridge)
    }

    fn fresh_name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}{}", self.made)
    }

    /// The hardware address of a node's uplink. Who comes back at an address has the one that its neighbours still know.
    fn card(&mut self, plan: &NodePlan) -> MacAddress {
        let fresh = self.fresh_mac();
        let addresses: Vec<IpAddr> = plan.joined().map(|joined| joined.addr()).collect();
        *self.cards.entry(addresses).or_insert(fresh)
    }

    fn fresh_mac(&mut self) -> MacAddress {
        self.made += 1;
        MacAddress::local(0x1000_0000 + u64::from(self.made))
    }
}

fn veth<'a>(name: &'a str, mac: MacAddress, peer_name: &'a str, peer_mac: MacAddress, peer: &'a Namespace, mtu: u32) -> Veth<'a> {
    Veth { name, mac, peer_name, peer_mac, peer_namespace: Some(peer), mtu }
}

fn join(link: &Netlink, index: u32, addresses: impl IntoIterator<Item = IpNet>) -> Result<(), LinkError> {
    addresses.into_iter().try_for_each(|address| link.add_address(index, address))
}

fn previous(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => std::net::Ipv4Addr::from(u32::from(address) - 1).into(),
        IpAddr::V6(address) => std::net::Ipv6Addr::from(u128::from(address) - 1).into(),
    }
}

/// Makes the calling thread's network namespace a router through which packets may go one way, and their answers another.
fn routes_any_way() -> Result<(), LinkError> {
    forwards()?;
    ["all", "default"].into_iter().try_for_each(|name| sysctl::write(&format!("net/ipv4/conf/{name}/rp_filter"), "0"))
}
