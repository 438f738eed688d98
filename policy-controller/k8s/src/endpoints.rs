//! The endpoints of a service by its selector, where there is no API server whose controller keeps EndpointSlices: a directory of files.

use crate::convert::{Family, ServiceParts, Target};
use palisade_identity::{Labels, Protocol};
use palisade_policy::model::{NamedPort, ObjectName};
use palisade_service::model::{Endpoint, Slice, SlicePort};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A pod that may stand behind a service: one of the service's namespace that has not ended.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its labels.
    pub labels: &'a Labels,
    /// The ports that its containers name, in the order in which a name is looked up.
    pub ports: &'a [NamedPort],
    /// Its addresses; none while they are not known, and then it is no endpoint.
    pub addresses: &'a [IpAddr],
    /// The node that it runs on, where that is known.
    pub node: Option<&'a str>,
    /// Whether it is about to end.
    pub terminating: bool,
}

/// Why a service with a selector leads to nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Astray {
    /// No pod has its labels.
    #[error("service {service} selects no pod: is a label of its selector misspelt, or has its Deployment no replicas?")]
    NoPod {
        /// The service.
        service: ObjectName,
    },
    /// No pod that it selects has a port of a name.
    #[error("service {service}: no pod that it selects names a {protocol} port {target:?}, as its targetPort does")]
    NoPort {
        /// The service.
        service: ObjectName,
        /// The transport protocol.
        protocol: Protocol,
        /// The name.
        target: String,
    },
}

impl Astray {
    /// The service that leads to nobody.
    pub fn service(&self) -> &ObjectName {
        match self {
            Self::NoPod { service } | Self::NoPort { service, .. } => service,
        }
    }
}

/// What of a service with a selector leads to nobody, whatever the addresses of pods.
pub fn astray<'a>(service: &ObjectName, parts: &ServiceParts, pods: impl Iterator<Item = Candidate<'a>>) -> Vec<Astray> {
    if parts.selector.is_empty() {
        return Vec::new();
    }
    let pods: Vec<Candidate> = pods.filter(|pod| selects(parts, pod)).collect();
    if pods.is_empty() {
        return vec![Astray::NoPod { service: service.clone() }];
    }
    let numbers: Vec<Vec<Option<u16>>> = pods.iter().map(|pod| resolved(parts, pod).collect()).collect();
    let ports = parts.service.ports.iter().zip(&parts.targets).enumerate();
    ports
        .filter_map(|(index, (port, target))| match target {
            Target::Name(name) if numbers.iter().all(|of_pod| of_pod[index].is_none()) => {
                Some(Astray::NoPort { service: service.clone(), protocol: port.protocol, target: name.clone() })
            }
            _ => None,
        })
        .collect()
}

fn selects(service: &ServiceParts, pod: &Candidate) -> bool {
    !service.selector.is_empty() && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// The EndpointSlices of the service called `name`, by name: the pods that its selector matches, in the order of `pods`. A selector without
/// labels matches nobody.
///
/// Pods that give a named port different numbers are in different slices; one that has none of the ports is in none.
pub fn derive<'a>(name: &str, service: &ServiceParts, pods: impl Iterator<Item = Candidate<'a>>) -> BTreeMap<String, Slice> {
    let pods: Vec<Candidate> = pods.filter(|pod| selects(service, pod)).collect();
    let mut slices = BTreeMap::new();
    for family in &service.families {
        let mut groups: BTreeMap<Vec<Option<u16>>, Vec<Endpoint>> = BTreeMap::new();
        for pod in &pods {
            let Some(address) = pod.addresses.iter().find(|address| Family::of(**address) == *family) else { continue };
            let numbers: Vec<Option<u16>> = resolved(service, pod).collect();
            if numbers.iter().any(Option::is_some) {
                groups.entry(numbers).or_default().push(endpoint(pod, *address));
            }
        }
        let version = match family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        for (index, (numbers, endpoints)) in groups.into_iter().enumerate() {
            let named = service.service.ports.iter().zip(numbers);
            let port = |(port, number): (&palisade_service::model::ServicePort, Option<u16>)| {
                Some(SlicePort { name: port.name.clone(), protocol: port.protocol, port: number? })
            };
            slices.insert(format!("{name}-derived-{version}-{index}"), Slice { ports: named.filter_map(port).collect(), endpoints });
        }
    }
    slices
}

/// The number that each port of the service has in a pod.
fn resolved<'a>(service: &'a ServiceParts, pod: &'a Candidate) -> impl Iterator<Item = Option<u16>> + 'a {
    service.service.ports.iter().zip(&service.targets).map(|(port, target)| match target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => {
            let named = |known: &&NamedPort| known.name == *name && known.protocol == port.protocol;
            pod.ports.iter().find(named).map(|known| known.port)
        }
    })
}

/// Nothing probes the pods of files: all that stay are ready.
fn endpoint(pod: &Candidate, address: IpAddr) -> Endpoint {
    Endpoint {
        address,
        ready: !pod.terminating,
        serving: true,
        terminating: pod.terminating,
        node: pod.node.map(str::to_owned),
        zones: BTreeSet::new(),
        nodes: BTreeSet::new(),
    }
}
