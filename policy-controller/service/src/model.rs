//! What is known of services and of what stands behind them.

use palisade_identity::Protocol;
use palisade_policy::model::ObjectName;
use palisade_policy::shared::{Grouped, SharedMap};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What is known of services, on one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Services {
    /// The services, by name.
    pub services: SharedMap<ObjectName, Arc<Service>>,
    /// The EndpointSlices of each service, by the service's name and then by their own.
    pub slices: SharedMap<ObjectName, Arc<BTreeMap<String, Slice>>>,
    /// The ports of this node that lead to its pods.
    pub host_ports: SharedMap<PodInterface, Arc<HostPorts>>,
    /// Where the services are asked for.
    pub place: Place,
}

/// A node, as far as services ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub node: String,
    /// Its zone (the label `topology.kubernetes.io/zone`), where it has one.
    pub zone: Option<String>,
    /// Its addresses, where NodePorts are reached.
    pub addresses: BTreeSet<IpAddr>,
}

/// Who has frontends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A service.
    Service(ObjectName),
    /// A pod of this node, by its host ports.
    Pod(PodInterface),
}

/// An interface of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodInterface {
    /// The pod.
    pub pod: ObjectName,
    /// What tells the interface from others of the pod, or of an earlier pod of that name.
    pub interface: String,
}

/// All of one namespace.
impl Grouped for PodInterface {
    fn compare_groups(&self, other: &Self) -> Ordering {
        self.pod.compare_groups(&other.pod)
    }
}

/// All services of one namespace, all pods of one.
impl Grouped for Owner {
    fn compare_groups(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Service(own), Self::Service(other)) => own.compare_groups(other),
            (Self::Pod(own), Self::Pod(other)) => own.compare_groups(other),
            _ => self.cmp(other),
        }
    }
}

/// `service shop/web`, `pod shop/web-0`.
impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Pod(interface) => write!(f, "pod {}", interface.pod),
        }
    }
}

/// The ports of this node that lead to an interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// Since when they do, as [`Service::created`].
    pub created: Option<String>,
    /// The addresses of the interface, at most one per family.
    pub addresses: BTreeSet<IpAddr>,
    /// The ports.
    pub ports: Vec<HostPort>,
}

/// A port of this node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address of the node at which it is; an unspecified one: all of its family. `None`: all of both.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port there, not zero.
    pub port: u16,
    /// The pod's own port, not zero.
    pub target: u16,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The UID of the object, where its source gives any.
    pub uid: Option<String>,
    /// When it was made, as RFC 3339 in UTC writes it. Of two owners that claim one frontend the older one has it.
    pub created: Option<String>,
    /// What it is.
    pub kind: ServiceKind,
    /// Addresses inside the cluster.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs` and the addresses that a load balancer has given.
    pub external: BTreeSet<IpAddr>,
    /// Its ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Which endpoints clients of the cluster reach by the cluster IPs.
    pub internal_policy: TrafficPolicy,
    /// Which endpoints clients outside the cluster reach.
    pub external_policy: TrafficPolicy,
    /// Seconds for which a client stays with its backend (`sessionAffinity: ClientIP`), 1 to 86 400.
    pub affinity: Option<u32>,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
}

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// It has addresses of its own.
    Addressed,
    /// `clusterIP: None`: its name stands for the addresses of its endpoints. Nothing to translate.
    Headless,
    /// `type: ExternalName`: its name stands for another name. Nothing to translate.
    ExternalName,
}

/// Which endpoints are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Those of the node that is asked.
    Local,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it is the only one and has none. EndpointSlices name their ports so.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the service's addresses, not zero.
    pub port: u16,
    /// The port at the nodes' addresses.
    pub node_port: Option<u16>,
}

/// An EndpointSlice: some of a service's endpoints, all of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Name, protocol and number of each port. A port without a number (any port) is left out.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// As [`ServicePort::name`].
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// Somebody behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is reached: the first of the addresses that the object lists, which are interchangeable.
    pub address: IpAddr,
    /// It takes new flows.
    pub ready: bool,
    /// It answers, though it may be about to end.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
    /// The node that it runs on.
    pub node: Option<String>,
    /// The zones that it is meant for (`hints.forZones`); none: for all.
    pub zones: BTreeSet<String>,
    /// The nodes that it is meant for (`hints.forNodes`); none: for all.
    pub nodes: BTreeSet<String>,
}
