//! Services in few words.

use super::kernel::{Client, Kernel};
use palisade_identity::Protocol;
use palisade_policy::model::ObjectName;
use palisade_service::model::{
    Endpoint, HostPort, HostPorts, Owner, Place, PodInterface, Service, ServiceKind, ServicePort, Services, Slice, SlicePort, TrafficPolicy,
};
use palisade_service::oracle::Answer;
use palisade_service::{Compiled, Frontend, Numbers, compile};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// An address.
pub fn address(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// `address port`, TCP.
pub fn at(address: &str, port: u16) -> Frontend {
    Frontend { address: self::address(address), protocol: Protocol::Tcp, port }
}

/// A service's name: `shop/NAME`.
pub fn named(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

/// The service `shop/NAME`, as an owner of frontends.
pub fn owner(name: &str) -> Owner {
    Owner::Service(named(name))
}

/// The one interface of the pod `shop/NAME`.
pub fn interface(name: &str) -> PodInterface {
    PodInterface { pod: named(name), interface: "eth0".to_owned() }
}

/// A service with these cluster IPs and a TCP port 80 without a name.
pub fn service(cluster_ips: &[&str]) -> Service {
    Service {
        uid: None,
        created: Some("2026-01-01T00:00:00Z".to_owned()),
        kind: ServiceKind::Addressed,
        cluster_ips: cluster_ips.iter().map(|ip| address(ip)).collect(),
        external: BTreeSet::new(),
        ports: vec![port("", 80)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
    }
}

/// A TCP port.
pub fn port(name: &str, number: u16) -> ServicePort {
    ServicePort { name: name.to_owned(), protocol: Protocol::Tcp, port: number, node_port: None }
}

/// A slice whose port without a name is TCP 8080.
pub fn slice(endpoints: impl IntoIterator<Item = Endpoint>) -> Slice {
    Slice { ports: vec![slice_port("", 8080)], endpoints: endpoints.into_iter().collect() }
}

/// A TCP port of a slice.
pub fn slice_port(name: &str, number: u16) -> SlicePort {
    SlicePort { name: name.to_owned(), protocol: Protocol::Tcp, port: number }
}

/// An endpoint that is ready, on another node.
pub fn ready(address: &str) -> Endpoint {
    Endpoint {
        address: self::address(address),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("elsewhere".to_owned()),
        zones: BTreeSet::new(),
        nodes: BTreeSet::new(),
    }
}

/// One that is about to end and answers.
pub fn draining(address: &str) -> Endpoint {
    Endpoint { ready: false, terminating: true, ..ready(address) }
}

/// One that does not answer yet.
pub fn starting(address: &str) -> Endpoint {
    Endpoint { ready: false, serving: false, ..ready(address) }
}

/// The same on this node.
pub fn here(endpoint: Endpoint) -> Endpoint {
    Endpoint { node: Some("here".to_owned()), ..endpoint }
}

/// The same, meant for zones.
pub fn for_zones(zones: &[&str], endpoint: Endpoint) -> Endpoint {
    Endpoint { zones: zones.iter().map(|&zone| zone.to_owned()).collect(), ..endpoint }
}

/// The same, meant for nodes.
pub fn for_nodes(nodes: &[&str], endpoint: Endpoint) -> Endpoint {
    Endpoint { nodes: nodes.iter().map(|&node| node.to_owned()).collect(), ..endpoint }
}

/// These backends.
pub fn one_of<const N: usize>(targets: [(&str, u16); N]) -> Answer {
    Answer::OneOf(targets.into_iter().map(|(address, port)| (self::address(address), port)).collect())
}

/// Services on the node `here` in the zone `east`.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub services: Services,
}

impl World {
    /// A world with one service, `shop/web`, and its slices.
    pub fn of(service: Service, slices: impl IntoIterator<Item = Slice>) -> Self {
        let place =
            Place { node: "here".to_owned(), zone: Some("east".to_owned()), addresses: ["192.168.0.1", "fd00:c::1"].map(address).into() };
        Self { services: Services { place, ..Services::default() } }.with("web", service, slices)
    }

    /// And another service.
    pub fn with(mut self, name: &str, service: Service, slices: impl IntoIterator<Item = Slice>) -> Self {
        let slices: BTreeMap<String, Slice> =
            slices.into_iter().enumerate().map(|(index, slice)| (format!("{name}-{index}"), slice)).collect();
        self.services.services.insert(named(name), Arc::new(service));
        self.services.slices.insert(named(name), Arc::new(slices));
        self
    }

    /// And a pod, `shop/NAME`, with host ports.
    pub fn with_pod(mut self, name: &str, created: &str, addresses: &[&str], ports: &[HostPort]) -> Self {
        let addresses = addresses.iter().map(|address| self::address(address)).collect();
        let ports = HostPorts { created: Some(created.to_owned()), addresses, ports: ports.to_vec() };
        self.services.host_ports.insert(interface(name), Arc::new(ports));
        self
    }

    /// The rows, compiled from nothing.
    pub fn compiled(&self) -> (Compiled, Numbers) {
        let mut numbers = Numbers::default();
        let compiled = compile(&self.services, &Compiled::default(), &mut numbers);
        (compiled, numbers)
    }

    /// What becomes of new flows of the cluster to a frontend, as rows and oracle say.
    #[track_caller]
    pub fn answer(&self, frontend: Frontend) -> Answer {
        self.answer_to(Client::Inside, frontend)
    }

    /// The same of flows from outside the cluster.
    #[track_caller]
    pub fn answer_outside(&self, frontend: Frontend) -> Answer {
        self.answer_to(Client::Outside, frontend)
    }

    #[track_caller]
    fn answer_to(&self, client: Client, frontend: Frontend) -> Answer {
        let (compiled, numbers) = self.compiled();
        let answer = Kernel::holding(&compiled, &numbers).answer(client, &frontend);
        assert_eq!(answer, client.oracle(&self.services, &frontend), "rows and oracle");
        answer
    }
}
