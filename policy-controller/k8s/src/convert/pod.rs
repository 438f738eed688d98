//! Pod to what policy may depend on.

use super::labels::labels;
use super::{port_name, port_number, protocol};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use k8s_openapi::api::core::v1::{ContainerPort as ApiContainerPort, Pod as ApiPod};
use palisade_identity::{Labels, Protocol};
use palisade_policy::model::{NamedPort, Pod};
use std::net::IpAddr;

/// Whether a pod is a subject and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Participation {
    /// It has a network of its own and its containers may run; a terminating pod too, until they have stopped.
    Participates,
    /// It shares the node's network: no pod selector matches it.
    HostNetwork,
    /// It has succeeded or failed: no selector matches it any more, though its status still shows addresses.
    Finished,
}

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodParts {
    /// Whether it is in the model at all.
    pub participation: Participation,
    /// What the model holds of it.
    pub pod: Pod,
}

/// A port that a container declares, with or without a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPort {
    /// Its name.
    pub name: Option<String>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// Whether a pod is a subject and a peer.
pub fn participation(pod: &ApiPod) -> Participation {
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Participation::HostNetwork;
    }
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Succeeded" | "Failed") => Participation::Finished,
        _ => Participation::Participates,
    }
}

/// The node that a pod is on, once it is on one.
pub fn node_of(pod: &ApiPod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// A pod: its labels, all of its addresses, and the ports that its containers name.
///
/// # Errors
/// A label, port or address that is not valid. In its place stand the labels as they are, and the addresses and port names that can
/// be read: rules that deny by such a name go on to match.
pub fn pod(pod: &ApiPod) -> Result<PodParts, Refusal<PodParts>> {
    let (addresses, bad_address) = addresses(pod);
    let (ports, bad_port) = read_ports(pod);
    let parts = |labels: Labels| PodParts {
        participation: participation(pod),
        pod: Pod { labels, service_account: service_account(pod), addresses, ports: named(ports) },
    };
    match (labels(pod.metadata.labels.as_ref(), &FieldPath::of("metadata.labels")), bad_port.or(bad_address)) {
        (Ok(labels), None) => Ok(parts(labels)),
        (Err(error), _) | (Ok(_), Some(error)) => {
            Err(Refusal { error, closed: Box::new(parts(pod.metadata.labels.clone().unwrap_or_default())) })
        }
    }
}

/// The pod's service account; the API server fills in the default one.
fn service_account(pod: &ApiPod) -> String {
    let spec = pod.spec.as_ref();
    let named = spec.and_then(|spec| spec.service_account_name.as_ref().or(spec.service_account.as_ref()));
    named.filter(|name| !name.is_empty()).map_or_else(|| "default".to_owned(), Clone::clone)
}

/// The ports that the containers of a pod declare, in the order in which a name is looked up: containers, then
/// init containers that keep running (`restartPolicy: Always`). Other init containers are gone when the pod serves.
///
/// # Errors
/// A number, name or protocol that is not valid.
pub fn container_ports(pod: &ApiPod) -> Result<Vec<ContainerPort>, FieldError> {
    let (ports, unreadable) = read_ports(pod);
    unreadable.map_or(Ok(ports), Err)
}

/// The ports that can be read, and what is wrong with the first that cannot.
fn read_ports(pod: &ApiPod) -> (Vec<ContainerPort>, Option<FieldError>) {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| &spec.containers).enumerate();
    let sidecars = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten()).enumerate();
    let containers = containers.map(|(index, container)| ("containers", index, container));
    let sidecars = sidecars
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(index, container)| ("initContainers", index, container));
    let (mut ports, mut unreadable) = (Vec::new(), None);
    for (list, index, container) in containers.chain(sidecars) {
        for (number, port) in container.ports.iter().flatten().enumerate() {
            match container_port(port, &FieldPath::of("spec").key(list).index(index).key("ports").index(number)) {
                Ok(port) => ports.push(port),
                Err(error) => drop(unreadable.get_or_insert(error)),
            }
        }
    }
    (ports, unreadable)
}

fn container_port(port: &ApiContainerPort, field: &FieldPath) -> Result<ContainerPort, FieldError> {
    Ok(ContainerPort {
        name: port.name.as_deref().filter(|name| !name.is_empty()).map(|name| port_name(name, || field.key("name"))).transpose()?,
        // Here, unlike in a policy, the API server takes an empty string for absent.
        protocol: protocol(port.protocol.as_deref().filter(|name| !name.is_empty()), || field.key("protocol"))?,
        port: port_number(port.container_port, || field.key("containerPort"))?,
    })
}

/// The named ports. A name that several containers give means every number that they give it: who denies it means all of them.
fn named(ports: Vec<ContainerPort>) -> Vec<NamedPort> {
    let mut named: Vec<NamedPort> = Vec::new();
    for ContainerPort { name, protocol, port } in ports {
        let Some(name) = name else { continue };
        let port = NamedPort { name, protocol, port };
        if !named.contains(&port) {
            named.push(port);
        }
    }
    named
}

/// The addresses of the status, one per family, and the first one that cannot be read.
fn addresses(pod: &ApiPod) -> (Vec<IpAddr>, Option<FieldError>) {
    let status = pod.status.as_ref();
    let plural = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten()).enumerate();
    let plural = plural.map(|(index, ip)| (FieldPath::of("status.podIPs").index(index).key("ip"), &ip.ip));
    let singular = status.and_then(|status| status.pod_ip.as_ref()).map(|ip| (FieldPath::of("status.podIP"), ip));
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut unreadable = None;
    for (field, text) in plural.chain(singular).filter(|(_, text)| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) if addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) => {}
            Ok(address) => addresses.push(address),
            Err(_) => {
                unreadable.get_or_insert(FieldError::new(field, Problem::InvalidAddress(text.clone())));
            }
        }
    }
    (addresses, unreadable)
}
