//! The ways from one namespace to another.

use crate::palisade::Palisade;
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use palisade_cni::link::{MacAddress, Namespace, Netlink, Route, Veth, sysctl};
use palisade_loader::{PinDir, attach_endpoint, detach_endpoint};
use palisade_test_support::Host;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// MTU of every interface, in bytes.
const MTU: u32 = 1500;
/// The interface in a pod.
const INSIDE: &str = "eth0";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// What lies between two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// One veth pair that joins them.
    Direct,
    /// A namespace between them that routes, with a veth pair to each and no rules.
    Routing,
    /// As `Routing`, with kube-proxy and its rules.
    KubeProxy,
    /// A veth pair to each from the node, with Palisade's programs and rows.
    Palisade,
    /// Two nodes that route, on one link.
    NativeKernel,
    /// As `NativeKernel`, with Palisade's programs and rows on each node.
    NativePalisade,
    /// Two nodes, joined by the kernel's own VXLAN devices.
    VxlanKernel,
    /// Two nodes, joined by Palisade's overlay, with its programs and rows on each node.
    VxlanPalisade,
}

impl PathKind {
    /// Those within one node.
    pub const ON_A_NODE: &[PathKind] = &[PathKind::Direct, PathKind::Routing, PathKind::Palisade];
    /// Those between two nodes.
    pub const ACROSS: &[PathKind] = &[PathKind::NativeKernel, PathKind::NativePalisade, PathKind::VxlanKernel, PathKind::VxlanPalisade];

    /// Whether Palisade's programs run on it.
    pub const fn is_palisade(self) -> bool {
        matches!(self, Self::Palisade | Self::NativePalisade | Self::VxlanPalisade)
    }

    /// Whether it goes through VXLAN.
    pub const fn is_vxlan(self) -> bool {
        matches!(self, Self::VxlanKernel | Self::VxlanPalisade)
    }
}

impl std::fmt::Display for PathKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct veth",
            Self::Routing => "kernel routing",
            Self::KubeProxy => "kube-proxy",
            Self::Palisade => "Palisade",
            Self::NativeKernel => "kernel routing between nodes",
            Self::NativePalisade => "Palisade between nodes",
            Self::VxlanKernel => "kernel VXLAN between nodes",
            Self::VxlanPalisade => "Palisade's VXLAN between nodes",
        })
    }
}

/// Two namespaces and what joins them.
pub struct Path {
    /// What joins them.
    pub kind: PathKind,
    /// Where the client runs.
    pub client: Namespace,
    /// Where the server runs.
    pub server: Namespace,
    /// The server's address.
    pub server_address: IpAddr,
    /// The host-side interfaces in the node's namespace.
    host_side: Vec<u32>,
}

/// One end of a path.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// 1 for the client, 2 for the server.
    pub number: u8,
    /// Its address.
    pub address: IpAddr,
    /// Hardware address of its interface.
    pub pod_mac: MacAddress,
    /// Hardware address of what it is connected to.
    pub host_mac: MacAddress,
}

impl End {
    /// An end of a path, by the numbers of both.
    pub fn new(path: u8, number: u8, family: Family) -> Self {
        let address = match family {
            Family::Ipv4 => Ipv4Addr::new(10, 77, path, number).into(),
            Family::Ipv6 => Ipv6Addr::new(0xfd77, path.into(), 0, 0, 0, 0, 0, number.into()).into(),
        };
        let mac = |side: u64| MacAddress::local(u64::from(path) << 16 | u64::from(number) << 8 | side);
        Self { number, address, pod_mac: mac(1), host_mac: mac(2) }
    }

    /// The next hop of a pod, as the CNI plugin sets it.
    fn gateway(&self) -> IpAddr {
        if self.address.is_ipv4() { Ipv4Addr::new(169, 254, 1, 1).into() } else { Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into() }
    }
}

impl Path {
    /// Makes the namespaces and joins them. No path asks for a neighbour: all are set by hand.
    pub fn set_up(host: &Host, kind: PathKind, family: Family, palisade: &mut Palisade) -> Result<Self> {
        let number = kind as u8 + 1;
        let ends = [End::new(number, 1, family), End::new(number, 2, family)];
        let client = host.create_pod(&name(kind, "client"))?;
        let server = host.create_pod(&name(kind, "server"))?;
        let mut path = Self { kind, client, server, server_address: ends[1].address, host_side: Vec::new() };
        path.join(host, ends, palisade).with_context(|| format!("set up the path {kind}"))?;
        Ok(path)
    }

    /// Between two pods that are joined by others.
    pub(crate) fn between(kind: PathKind, client: Namespace, server: Namespace, server_address: IpAddr) -> Self {
        Self { kind, client, server, server_address, host_side: Vec::new() }
    }

    fn join(&mut self, host: &Host, ends: [End; 2], palisade: &mut Palisade) -> Result<()> {
        match self.kind {
            PathKind::Direct => {
                let [client, server] = ends;
                let inside = Netlink::open_in(&self.client)?;
                inside.create_veth(&Veth {
                    name: INSIDE,
                    mac: client.pod_mac,
                    peer_name: INSIDE,
                    peer_mac: server.pod_mac,
                    peer_namespace: Some(&self.server),
                    mtu: MTU,
                })?;
                for (namespace, own, other) in [(&self.client, client, server), (&self.server, server, client)] {
                    let (netlink, link) = open_inside(namespace, own)?;
                    netlink.add_route(&Route::direct(other.address.into(), link))?;
                    netlink.set_neighbour(link, other.address, other.pod_mac)?;
                }
            }
            PathKind::Routing | PathKind::KubeProxy => {
                let router = host.create_pod(&name(self.kind, "router"))?;
                let family = if ends[0].address.is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
                router.enter(|| sysctl::write(&format!("net/{family}"), "1"))??;
                let outside = Netlink::open_in(&router)?;
                for (namespace, end) in [(&self.client, ends[0]), (&self.server, ends[1])] {
                    wire(&outside, namespace, end, MTU)?;
                }
            }
            PathKind::Palisade => {
                let outside = Netlink::open()?;
                for (namespace, end) in [(&self.client, ends[0]), (&self.server, ends[1])] {
                    let (interface, index) = wire(&outside, namespace, end, MTU)?;
                    self.host_side.push(index);
                    attach_endpoint(palisade.pin(), &interface, index)?;
                    palisade.realise(end, index)?;
                }
            }
            PathKind::NativeKernel | PathKind::NativePalisade | PathKind::VxlanKernel | PathKind::VxlanPalisade => {
                bail!("between nodes: see the module across")
            }
        }
        Ok(())
    }

    const fn has_router(&self) -> bool {
        matches!(self.kind, PathKind::Routing | PathKind::KubeProxy)
    }

    /// The namespace in the middle, where there is one.
    pub fn router(&self, host: &Host) -> Result<Option<Namespace>> {
        let open = || Namespace::open(&host.pod_path(&name(self.kind, "router")));
        self.has_router().then(open).transpose().map_err(Into::into)
    }

    /// Takes away what was made.
    pub fn tear_down(self, host: &Host, pin: &PinDir) -> Result<()> {
        let netlink = Netlink::open()?;
        for index in &self.host_side {
            detach_endpoint(pin, *index)?;
            netlink.delete_link(*index)?;
        }
        let mut roles = vec!["client", "server"];
        if self.has_router() {
            roles.push("router");
        }
        roles.into_iter().try_for_each(|role| host.remove_pod(&name(self.kind, role)))
    }
}

fn name(kind: PathKind, role: &str) -> String {
    format!("{kind:?}-{role}").to_lowercase()
}

/// Joins a pod to whatever `outside` speaks of: a veth pair, the pod's address, its default route, its route back.
pub(crate) fn wire(outside: &Netlink, pod: &Namespace, end: End, mtu: u32) -> Result<(String, u32)> {
    let interface = format!("pod{}", end.number);
    let link = outside.create_veth(&Veth {
        name: &interface,
        mac: end.host_mac,
        peer_name: INSIDE,
        peer_mac: end.pod_mac,
        peer_namespace: Some(pod),
        mtu,
    })?;
    outside.set_up(link.index)?;
    outside.add_route(&Route::direct(end.address.into(), link.index))?;
    outside.set_neighbour(link.index, end.address, end.pod_mac)?;
    let (inside, eth0) = open_inside(pod, end)?;
    inside.set_neighbour(eth0, end.gateway(), end.host_mac)?;
    inside.add_route(&Route::default_via(end.gateway(), eth0))?;
    Ok((interface, link.index))
}

/// Sets a pod's interface up and gives it its address.
fn open_inside(pod: &Namespace, end: End) -> Result<(Netlink, u32)> {
    let inside = Netlink::open_in(pod)?;
    let link = inside.link(INSIDE)?.context("the pod's interface is gone")?.index;
    inside.set_up(link)?;
    inside.add_address(link, IpNet::from(end.address))?;
    Ok((inside, link))
}
