//! Palisade's datapath with rows as the agent writes them.

use crate::path::{End, Path};
use crate::traffic::Traffic;
use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use palisade_datapath_core::abi::{
    Direction, Endpoint, IDENTITY_ANY, LocalPod, NODE_SELF, Node, Outcome, PORTS_NONE, PolicyEntry, PolicyKey, PortEntry, PortKey,
    RowVerdict, Tunnel,
};
use palisade_loader::{Datapath, Overlay, PinDir, Sizes};
use palisade_service::Step;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Rows of other policies, so that the tables are not empty: prefixes in each family, and policy rows.
const OTHER_ROWS: u32 = 1000;
/// Numbers that are used for nothing else begin here.
const OTHERS: u32 = 1000;
/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The datapath, pinned in the benchmark's own bpffs.
pub struct Palisade {
    datapath: Datapath,
    pin: PinDir,
}

impl Palisade {
    /// Loads the programs and writes the rows that do not depend on an endpoint.
    ///
    /// Client pods are isolated for egress, server pods for ingress. Each has an exact row for the other with a port
    /// table: a new flow takes the longest way that an allowed one can take.
    pub fn start(pin: &PinDir, sizes: &Sizes) -> Result<Self> {
        let mut datapath = Datapath::open(pin, sizes).context("load the datapath")?;
        let row = |ports, verdict: RowVerdict| PolicyEntry { ports, reason: 1, verdict: verdict as u8, reserved: [0; 3] };
        let isolated = [(1, Direction::Egress, 2), (2, Direction::Ingress, 1)];
        for (subject, direction, peer) in isolated {
            datapath.policy.insert(&PolicyKey::new(subject, direction, IDENTITY_ANY), &row(PORTS_NONE, RowVerdict::DefaultDeny))?;
            datapath.policy.insert(&PolicyKey::new(subject, direction, peer), &row(subject, RowVerdict::DefaultDeny))?;
            for port in Traffic::ALL.iter().map(|traffic| traffic.port()) {
                for protocol in [TCP, UDP] {
                    let entry = PortEntry { reason: 1, verdict: RowVerdict::Allow as u8, reserved: [0; 3] };
                    datapath.ports.insert(&(PortKey::new(subject, protocol, port), 16), &entry)?;
                }
            }
        }
        for (subject, direction) in [(1, Direction::Ingress), (2, Direction::Egress)] {
            datapath.policy.insert(&PolicyKey::new(subject, direction, IDENTITY_ANY), &row(PORTS_NONE, RowVerdict::Allow))?;
        }
        for number in 0..OTHER_ROWS {
            let key = PolicyKey::new(OTHERS + number, Direction::Ingress, OTHERS + number);
            datapath.policy.insert(&key, &row(PORTS_NONE, RowVerdict::Allow))?;
            let [_, _, high, low] = number.to_be_bytes();
            let v4 = IpNet::new(Ipv4Addr::new(172, 16 + high, low, 0).into(), 24)?;
            let v6 = IpNet::new(Ipv6Addr::new(0xfd99, 0, 0, number as u16, 0, 0, 0, 0).into(), 64)?;
            for prefix in [v4, v6] {
                datapath.prefixes.insert(&prefix, &(OTHERS + number))?;
            }
        }
        Ok(Self { datapath, pin: pin.clone() })
    }

    /// Where it is pinned.
    pub fn pin(&self) -> &PinDir {
        &self.pin
    }

    /// The loaded datapath.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Writes the rows of a pod. Its number is that of its subject and of its identity.
    pub fn realise(&mut self, end: End, ifindex: u32) -> Result<()> {
        let (pod_mac, host_mac) = (end.pod_mac.0, end.host_mac.0);
        let mut endpoint = Endpoint { ifindex, subject: end.number.into(), pod_mac, host_mac, ..Endpoint::default() };
        match end.address {
            IpAddr::V4(address) => endpoint.ipv4 = address.octets(),
            IpAddr::V6(address) => endpoint.ipv6 = address.octets(),
        }
        self.datapath.addresses.insert(&end.address, &end.number.into())?;
        self.datapath.local.insert(&end.address, &LocalPod { ifindex, pod_mac, host_mac, since: 0 })?;
        self.datapath.endpoints.insert(&ifindex, &endpoint)?;
        Ok(())
    }

    /// Writes the row of a pod of another node.
    pub fn name(&mut self, end: End) -> Result<()> {
        self.datapath.addresses.insert(&end.address, &end.number.into()).map_err(Into::into)
    }

    /// Writes what the overlay goes by: this node's address, a pod of another node with that node's address, and where it is.
    pub fn tunnel(&mut self, own: IpAddr, (pod, node): (IpAddr, IpAddr), tunnel: &Tunnel) -> Result<()> {
        self.datapath.nodes.insert(&own, &Node::routed(NODE_SELF))?;
        self.datapath.nodes.insert(&node, &Node::routed(tunnel.node))?;
        self.datapath.tunnels.insert(&IpNet::from(pod), tunnel).map_err(Into::into)
    }

    /// Lets the overlay be.
    pub fn overlay(&mut self, overlay: Overlay, device: u32) -> Result<()> {
        self.datapath.set_overlay(Some(overlay))?;
        self.datapath.set_overlay_device(Some(device)).map_err(Into::into)
    }

    /// Makes one write of a change of services, as the agent does.
    pub fn serve(&mut self, step: &Step) -> Result<()> {
        let datapath = &mut self.datapath;
        match step {
            Step::RaiseNumber(highest) => datapath.raise_service_number(*highest)?,
            Step::WriteBackend(number, backend) => datapath.backends.insert(number, backend)?,
            Step::WriteChunk(key, slots) => datapath.chunks.insert(key, slots)?,
            Step::WriteFrontend(frontend, entry) => {
                datapath.services.insert((frontend.address, frontend.port, frontend.protocol.number()), entry)?;
            }
            Step::RemoveFrontend(frontend) => {
                datapath.services.remove((frontend.address, frontend.port, frontend.protocol.number()))?;
            }
            Step::AwaitPrograms => datapath.await_programs(),
            Step::RemoveChunk(key) => drop(datapath.chunks.remove(key)?),
            Step::RemoveBackend(number) => drop(datapath.backends.remove(number)?),
        }
        Ok(())
    }

    /// Packets with an outcome so far.
    pub fn packets(&self, outcome: Outcome) -> Result<u64> {
        let counters = self.datapath.counters()?;
        Ok(counters.iter().find(|(counted, _)| *counted == outcome).map_or(0, |(_, counter)| counter.packets))
    }

    /// Makes sure that what was measured was policed: flows were judged, replies were recognised, and a port that no
    /// rule names is closed.
    pub fn check_policed(&self, path: &Path) -> Result<()> {
        let closed = SocketAddr::new(path.server_address, 9);
        let before = self.packets(Outcome::EgressDefaultDenied)?;
        let reached = path.client.enter(|| TcpStream::connect_timeout(&closed, Duration::from_millis(200)))?;
        ensure!(reached.is_err(), "a port that no rule names was reached: nothing was policed");
        ensure!(self.packets(Outcome::EgressDefaultDenied)? > before, "the refused packet was not counted");
        for outcome in [Outcome::AllowedNew, Outcome::AllowedEstablished, Outcome::AllowedReply] {
            ensure!(self.packets(outcome)? > 0, "no packet was {}: the traffic did not pass the program", outcome.name());
        }
        Ok(())
    }
}
