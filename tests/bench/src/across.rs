//! Pods of two nodes, by native routes and through VXLAN: each by the kernel alone and with Palisade.

use crate::palisade::Palisade;
use crate::path::{End, Family, Path, PathKind, wire};
use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use palisade_cni::link::{MacAddress, Namespace, Netlink, Route, Veth, Vxlan, sysctl};
use palisade_datapath_core::abi::{NODE_SELF, OVERLAY_MAC, Tunnel, tunnel_way};
use palisade_loader::{Overlay, PinDir, Role, Sizes, attach, attach_endpoint};
use palisade_test_support::Host;
use palisade_test_support::packet::wide;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

/// MTU of what joins the nodes, in bytes.
const MTU: u32 = 1500;
/// What VXLAN takes of it, over IPv4 and over IPv6.
const VXLAN: (u32, u32) = (50, 70);
/// The interface that joins a node to the other.
const UPLINK: &str = "uplink";
/// The device of the overlay, the kernel's as well as Palisade's.
const DEVICE: &str = "overlay";
/// UDP port and network identifier of the overlay.
const PORT: u16 = 4789;
const NETWORK: u32 = 1;
/// How another node is numbered.
const OTHER: u32 = NODE_SELF + 1;

/// One of two nodes.
struct Node {
    namespace: Namespace,
    address: IpAddr,
    mac: MacAddress,
    /// Where its programs are pinned, with Palisade.
    pin: Option<PinDir>,
}

/// Two nodes and a pod on each, joined as the kind says.
pub struct Across {
    /// From the pod on the first node to the one on the second.
    pub path: Path,
    names: [String; 4],
    nodes: [Node; 2],
}

fn underlay(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(192, 0, 2, number).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

impl Across {
    /// Makes the nodes and the pods. No path asks for a neighbour: all are set by hand.
    pub fn set_up(host: &Host, kind: PathKind, family: Family) -> Result<Self> {
        let number = kind as u8 + 1;
        let ends = [End::new(number, 1, family), End::new(number, 2, family)];
        let names = ["node-1", "node-2", "client", "server"].map(|role| format!("{kind:?}-{role}").to_lowercase());
        let mut nodes = Vec::new();
        for (index, name) in (1..=2).zip(&names) {
            let pin = kind.is_palisade().then(|| PinDir::new(host.bpffs().join(name)));
            let (address, mac) = (underlay(family, index), MacAddress::local(u64::from(number) << 16 | 0xff << 8 | u64::from(index)));
            nodes.push(Node { namespace: host.create_pod(name)?, address, mac, pin });
        }
        let nodes: [Node; 2] = nodes.try_into().ok().context("two nodes")?;
        let path = Path::between(kind, host.create_pod(&names[2])?, host.create_pod(&names[3])?, ends[1].address);
        let across = Self { path, names, nodes };
        across.join(ends).with_context(|| format!("set up the path {kind}"))?;
        Ok(across)
    }

    fn join(&self, ends: [End; 2]) -> Result<()> {
        let [first, second] = &self.nodes;
        Netlink::open_in(&first.namespace)?.create_veth(&Veth {
            name: UPLINK,
            mac: first.mac,
            peer_name: UPLINK,
            peer_mac: second.mac,
            peer_namespace: Some(&second.namespace),
            mtu: MTU,
        })?;
        let pods = [&self.path.client, &self.path.server];
        for (number, (own, other)) in [(first, second), (second, first)].into_iter().enumerate() {
            own.namespace
                .enter(|| prepare(self.path.kind, own, other, pods[number], ends[number], ends[1 - number]))?
                .with_context(|| format!("node {}", number + 1))?;
        }
        Ok(())
    }

    /// Makes sure that Palisade policed what was measured: a port that no rule names is closed.
    pub fn check_policed(&self) -> Result<()> {
        let closed = std::net::SocketAddr::new(self.path.server_address, 9);
        let patience = std::time::Duration::from_millis(200);
        let error = self.path.client.enter(|| std::net::TcpStream::connect_timeout(&closed, patience))?.err();
        let silent = error.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut);
        ensure!(silent == self.path.kind.is_palisade(), "a port that no rule names: silent where Palisade polices, refused else");
        Ok(())
    }

    /// Takes away what was made.
    pub fn tear_down(self, host: &Host) -> Result<()> {
        for pin in self.nodes.iter().filter_map(|node| node.pin.as_ref()) {
            let directory = pin.root().parent().context("a pin directory has a parent")?;
            std::fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
        }
        let names = self.names;
        drop(self.nodes);
        names.iter().try_for_each(|name| host.remove_pod(name))
    }
}

/// Makes one node of two, in its namespace.
fn prepare(kind: PathKind, own: &Node, other: &Node, pod: &Namespace, end: End, far: End) -> Result<()> {
    let netlink = Netlink::open()?;
    let is_ipv4 = own.address.is_ipv4();
    sysctl::write(if is_ipv4 { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" }, "1")?;
    let uplink = netlink.link(UPLINK)?.context("the uplink is gone")?.index;
    netlink.set_up(uplink)?;
    netlink.add_address(uplink, IpNet::new(own.address, if is_ipv4 { 24 } else { 64 })?)?;
    netlink.set_neighbour(uplink, other.address, other.mac)?;
    let cost = if is_ipv4 { VXLAN.0 } else { VXLAN.1 };
    let mtu = if kind.is_vxlan() { MTU - cost } else { MTU };
    let (interface, index) = wire(&netlink, pod, end, mtu)?;
    let palisade = own.pin.as_ref().map(|pin| -> Result<Palisade> {
        let mut palisade = Palisade::start(pin, &Sizes::default())?;
        attach_endpoint(pin, &interface, index)?;
        palisade.realise(end, index)?;
        palisade.name(far)?;
        Ok(palisade)
    });
    let mut palisade = palisade.transpose()?;
    let tunnel = Tunnel {
        node: OTHER,
        address: wide(other.address),
        source: if kind.is_vxlan() { wide(own.address) } else { [0; 16] },
        ifindex: uplink,
        mtu: mtu as u16,
        version: if is_ipv4 { 4 } else { 6 },
        way: if kind.is_vxlan() { tunnel_way::OVERLAY_LINK } else { tunnel_way::LINK },
    };
    if let (Some(palisade), Some(pin)) = (&mut palisade, &own.pin) {
        palisade.tunnel(own.address, (far.address, other.address), &tunnel)?;
        attach(pin, Role::Uplink, UPLINK, uplink)?;
    }
    if !kind.is_vxlan() {
        netlink.add_route(&Route::via(far.address.into(), other.address, uplink))?;
        return Ok(());
    }
    let device = match (&mut palisade, &own.pin) {
        (Some(palisade), Some(pin)) => {
            let device = netlink.create_vxlan(&Vxlan { name: DEVICE, mac: MacAddress(OVERLAY_MAC), port: PORT, mtu })?.index;
            attach(pin, Role::Overlay, DEVICE, device)?;
            netlink.set_up(device)?;
            palisade.overlay(Overlay::new(PORT, NETWORK).context("the overlay")?, device)?;
            device
        }
        _ => plain_vxlan(&netlink, own, other, mtu)?,
    };
    netlink.set_up(device)?;
    netlink.add_route(&Route::direct(far.address.into(), device))?;
    if palisade.is_none() {
        netlink.set_neighbour(device, far.address, other.mac)?;
    }
    Ok(())
}

/// The kernel's own device, with one peer and nothing to learn.
fn plain_vxlan(netlink: &Netlink, own: &Node, other: &Node, mtu: u32) -> Result<u32> {
    let (network, port, mtu) = (NETWORK.to_string(), PORT.to_string(), mtu.to_string());
    let (local, remote, mac) = (own.address.to_string(), other.address.to_string(), own.mac.to_string());
    let link = ["link", "add", DEVICE, "mtu", &mtu, "address", &mac, "type", "vxlan", "id", &network, "dstport", &port];
    let peer = ["local", &local, "remote", &remote, "dev", UPLINK, "nolearning"];
    let made = Command::new("ip").args(link).args(peer).output().context("starting ip (of iproute2)")?;
    ensure!(made.status.success(), "ip link add {DEVICE}: {}", String::from_utf8_lossy(&made.stderr).trim());
    Ok(netlink.link(DEVICE)?.context("the device is gone")?.index)
}
