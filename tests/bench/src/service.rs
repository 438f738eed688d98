//! What a service costs: the same pod reaches the same server directly and through a frontend, with few and with many services in the maps.

use crate::kube_proxy::KubeProxy;
use crate::palisade::Palisade;
use crate::path::{Family, Path, PathKind};
use crate::plan::Plan;
use crate::statistics::Samples;
use crate::traffic::Traffic;
use anyhow::{Context, Result, bail, ensure};
use palisade_datapath_core::abi::Outcome;
use palisade_identity::Protocol;
use palisade_loader::Sizes;
use palisade_policy::model::ObjectName;
use palisade_service::model::{Endpoint, Service, ServiceKind, ServicePort, Services, Slice, SlicePort, TrafficPolicy};
use palisade_service::{Compiled, Numbers, Planner};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// The traffic that is measured, with its names in results: one kind opens flows, two send packets of a flow that is known.
pub const TRAFFIC: [(&str, Traffic); 3] =
    [("connect", Traffic::ConnectRequestClose), ("stream", Traffic::Stream), ("datagrams", Traffic::Datagrams)];

/// The number of the service that is measured.
const MEASURED: u32 = 0;
/// A frontend's port is the server's and this much: ports are translated, too.
const PORT_DISTANCE: u16 = 1_000;
/// Endpoints of each of the other services.
const ENDPOINTS: u32 = 3;
/// Namespaces that the services are in.
const NAMESPACES: u32 = 100;
/// Before the first address of a service.
const CLUSTER_IPS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 96, 0, 0), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0));
/// Before the first address of an endpoint of another service. Nobody is there.
const PODS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 128, 0, 0), Ipv6Addr::new(0xfd97, 0, 0, 0, 0, 0, 0, 0));

/// What the client sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// The server itself.
    Server,
    /// The frontend of a service whose only backend the server is.
    Frontend,
}

/// Rates by who serves, the number of services, the traffic and its destination, a sample per round.
pub type Rates = BTreeMap<(PathKind, u32, Traffic, Destination), Samples>;

/// Maps that need not grow, for the largest of these numbers of services: what that costs is not what is measured here.
pub fn roomy(counts: &[u32]) -> Sizes {
    let usual = Sizes::default();
    let most = counts.iter().copied().max().unwrap_or_default();
    // Each port of the measured service has a frontend, a table and a backend of its own.
    let ports = (most + TRAFFIC.len() as u32).next_power_of_two();
    let (services, chunks, backends) = (usual.services.max(ports), usual.chunks.max(ports), usual.backends.max(ENDPOINTS * ports));
    Sizes { services, chunks, backends, ..usual }
}

/// Measures all traffic to both destinations with each number of services, and the same beside it with kube-proxy where that is given. They
/// follow each other within a round, and every other round runs backwards. Leaves no service behind.
pub fn measure(plan: &Plan, path: &Path, palisade: &mut Palisade, mut peer: Option<(&Path, &mut KubeProxy)>) -> Result<Rates> {
    let mut cluster = Cluster::new(plan.family, path.server_address);
    let mut rates = Rates::new();
    for round in 0..plan.rounds {
        eprintln!("services: round {} of {}", round + 1, plan.rounds);
        let mut counts = plan.services.to_vec();
        let mut destinations = [Destination::Server, Destination::Frontend];
        if round % 2 == 1 {
            counts.reverse();
            destinations.reverse();
        }
        for count in counts {
            cluster.serve(count, palisade)?;
            if let Some((path, proxy)) = &mut peer {
                proxy.serve(&services(plan.family, path.server_address, count))?;
            }
            let mut paths: Vec<&Path> = [Some(path), peer.as_ref().map(|(path, _)| *path)].into_iter().flatten().collect();
            if round % 2 == 1 {
                paths.reverse();
            }
            for (_, traffic) in TRAFFIC {
                for (path, destination) in paths.iter().flat_map(|path| destinations.map(|destination| (path, destination))) {
                    let to = match destination {
                        Destination::Server => traffic.server(path),
                        Destination::Frontend => frontend(plan.family, traffic),
                    };
                    let run = traffic.run_to(path, to, plan.duration(traffic));
                    let rate = run.with_context(|| format!("{traffic} to {to} with {count} services of {}", path.kind))?;
                    rates.entry((path.kind, count, traffic, destination)).or_default().push(rate);
                }
            }
        }
    }
    cluster.serve(0, palisade)?;
    let gone = frontend(plan.family, Traffic::Stream);
    let denied = palisade.packets(Outcome::EgressDefaultDenied)?;
    let reached = path.client.enter(|| TcpStream::connect_timeout(&gone, Duration::from_millis(200)))?;
    let is_denied = palisade.packets(Outcome::EgressDefaultDenied)? > denied;
    ensure!(reached.is_err() && is_denied, "{gone} is not refused after its service was removed: not the service led to the server");
    Ok(rates)
}

/// Where the measured service is reached.
fn frontend(family: Family, traffic: Traffic) -> SocketAddr {
    SocketAddr::new(address(CLUSTER_IPS, family, MEASURED), traffic.port() + PORT_DISTANCE)
}

/// One node's knowledge of the cluster's services, and what it has written of them.
struct Cluster {
    family: Family,
    server: IpAddr,
    planner: Planner,
    numbers: Numbers,
    compiled: Arc<Compiled>,
}

impl Cluster {
    fn new(family: Family, server: IpAddr) -> Self {
        Self { family, server, planner: Planner::new(), numbers: Numbers::default(), compiled: Arc::default() }
    }

    /// Makes the maps hold so many services; the first of them is the measured one, whose rows stay as they are.
    fn serve(&mut self, count: u32, palisade: &mut Palisade) -> Result<()> {
        let planned = self.planner.plan(&self.compiled, &services(self.family, self.server, count), &mut self.numbers);
        if let Some(problem) = planned.next.problems().next() {
            bail!("{} is not served as it is written: {}", problem.owner, problem.what);
        }
        for step in &planned.steps {
            palisade.serve(step).with_context(|| format!("write {count} services"))?;
        }
        self.compiled = planned.next;
        Ok(())
    }
}

/// A port of a service.
#[derive(Clone, Copy)]
struct Port {
    name: &'static str,
    protocol: Protocol,
    /// At the service's address.
    frontend: u16,
    /// At the endpoints'.
    target: u16,
}

/// So many services, the measured one first.
fn services(family: Family, server: IpAddr, count: u32) -> Services {
    let mut services = Services::default();
    for number in 0..count {
        let (ports, endpoints) = if number == MEASURED { measured(server) } else { other(family, number) };
        let name = ObjectName::new(format!("team-{}", number % NAMESPACES), format!("service-{number}"));
        services.services.insert(name.clone(), service(address(CLUSTER_IPS, family, number), &ports));
        services.slices.insert(name, BTreeMap::from([("slice".to_owned(), slice(&ports, &endpoints))]));
    }
    services
}

/// Ports and endpoints of the measured service.
fn measured(server: IpAddr) -> (Vec<Port>, Vec<IpAddr>) {
    let port = |(name, traffic): (&'static str, Traffic)| {
        let target = traffic.port();
        Port { name, protocol: traffic.protocol(), frontend: target + PORT_DISTANCE, target }
    };
    (TRAFFIC.map(port).to_vec(), vec![server])
}

/// Ports and endpoints of another service.
fn other(family: Family, number: u32) -> (Vec<Port>, Vec<IpAddr>) {
    let port = Port { name: "", protocol: Protocol::Tcp, frontend: 80, target: 8080 };
    (vec![port], (0..ENDPOINTS).map(|endpoint| address(PODS, family, number * ENDPOINTS + endpoint)).collect())
}

fn service(cluster_ip: IpAddr, ports: &[Port]) -> Service {
    let port = |port: &Port| ServicePort { name: port.name.to_owned(), protocol: port.protocol, port: port.frontend, node_port: None };
    Service {
        uid: None,
        created: None,
        kind: ServiceKind::Addressed,
        cluster_ips: vec![cluster_ip],
        external: BTreeSet::new(),
        ports: ports.iter().map(port).collect(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
    }
}

fn slice(ports: &[Port], endpoints: &[IpAddr]) -> Slice {
    let port = |port: &Port| SlicePort { name: port.name.to_owned(), protocol: port.protocol, port: port.target };
    let endpoint = |&address: &IpAddr| Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zones: BTreeSet::new(),
        nodes: BTreeSet::new(),
    };
    Slice { ports: ports.iter().map(port).collect(), endpoints: endpoints.iter().map(endpoint).collect() }
}

/// An address of a range, by its number.
fn address((v4, v6): (Ipv4Addr, Ipv6Addr), family: Family, number: u32) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::from_bits(v4.to_bits() + 1 + number).into(),
        Family::Ipv6 => Ipv6Addr::from_bits(v6.to_bits() + 1 + u128::from(number)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_rows_and_the_measured_one_keeps_its_own() {
        for (family, server) in [(Family::Ipv4, "10.77.3.2"), (Family::Ipv6, "fd77:3::2")] {
            let server = server.parse::<IpAddr>().expect("an address");
            let (mut planner, mut numbers) = (Planner::new(), Numbers::default());
            let few = planner.plan(&Compiled::default(), &services(family, server, 1), &mut numbers).next;
            let many = planner.plan(&few, &services(family, server, 100), &mut numbers).next;
            let ports = TRAFFIC.len();
            assert_eq!((few.frontends.len(), few.backends.len(), few.chunks().count()), (ports, ports, ports));
            assert_eq!((many.frontends.len(), many.backends.len(), many.chunks().count()), (ports + 99, ports + 3 * 99, ports + 99));
            assert!(few.frontends.iter().all(|(frontend, entry)| many.frontends.get(frontend) == Some(entry)));
            assert_eq!(many.problems().count(), 0);
        }
    }

    #[test]
    fn maps_have_room_for_the_largest_number_of_services() {
        let sizes = roomy(&[1, 100, 10_000]);
        assert!(sizes.services >= 10_002 && sizes.chunks >= 10_002 && sizes.backends >= 30_000, "{sizes:?}");
        assert_eq!(roomy(&[1]), Sizes::default());
    }
}
