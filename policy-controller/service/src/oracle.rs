//! The plain reading of services, one frontend at a time. Tests hold the compiler against it.
//!
//! Written to be compared with the API's words, not to be quick; shares no code with the compiler.

use crate::frontend::Frontend;
use crate::model::{Endpoint, HostPort, HostPorts, Owner, Service, ServiceKind, ServicePort, Services, TrafficPolicy};
use palisade_policy::model::ObjectName;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What becomes of a new flow to a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No service has the frontend: the flow goes where it would go anyway.
    NoService,
    /// There is no endpoint: the flow is refused.
    Refused,
    /// There are endpoints, none of them on this node, and no others are allowed: the flow is dropped.
    Dropped,
    /// The flow goes to one of these, addresses and ports.
    OneOf(BTreeSet<(IpAddr, u16)>),
}

/// An endpoint of a port, and where it is reached.
type Reached<'a> = ((IpAddr, u16), &'a Endpoint);

/// What becomes of a new flow that a pod or a process of this node opens to a frontend. It does not come from outside, also where it
/// names an address of the outside: then all endpoints are as good.
pub fn backends(services: &Services, frontend: &Frontend) -> Answer {
    match first(services, frontend) {
        None => Answer::NoService,
        Some(Claim { behind: Behind::Pod(target), .. }) => Answer::OneOf([target].into()),
        Some(Claim { behind: Behind::Port(name, service, port), is_outside, .. }) => {
            let policy = if is_outside { TrafficPolicy::Cluster } else { service.internal_policy };
            answer(services, &reached(services, name, port, frontend), policy)
        }
    }
}

/// What becomes of a new flow that a client outside the cluster opens to a frontend by this node. Cluster IPs are nothing to it.
pub fn backends_outside(services: &Services, frontend: &Frontend) -> Answer {
    match first(services, frontend).filter(|claim| claim.is_outside) {
        None => Answer::NoService,
        Some(Claim { behind: Behind::Pod(target), .. }) => Answer::OneOf([target].into()),
        Some(Claim { behind: Behind::Port(name, service, port), .. }) => {
            answer(services, &reached(services, name, port, frontend), service.external_policy)
        }
    }
}

/// That somebody wants a frontend.
struct Claim<'a> {
    owner: Owner,
    created: Option<&'a String>,
    /// By an address of the outside, or only by a cluster IP.
    is_outside: bool,
    behind: Behind<'a>,
}

/// What would be behind it.
enum Behind<'a> {
    Port(&'a ObjectName, &'a Service, &'a ServicePort),
    Pod((IpAddr, u16)),
}

/// The claim of who has a frontend: the oldest one. Nobody takes a cluster IP by writing it among external addresses, however old.
fn first<'a>(services: &'a Services, frontend: &Frontend) -> Option<Claim<'a>> {
    let mut claims = Vec::new();
    for (name, service) in &services.services {
        for port in &service.ports {
            if let Some(is_outside) = claim(services, service, port, frontend) {
                let (owner, created) = (Owner::Service(name.clone()), service.created.as_ref());
                claims.push(Claim { owner, created, is_outside, behind: Behind::Port(name, service, port) });
            }
        }
    }
    for (interface, pod) in &services.host_ports {
        for port in &pod.ports {
            if let Some(target) = leads_to(services, pod, port, frontend) {
                let (owner, created) = (Owner::Pod(interface.clone()), pod.created.as_ref());
                claims.push(Claim { owner, created, is_outside: true, behind: Behind::Pod(target) });
            }
        }
    }
    claims.into_iter().min_by_key(|claim| {
        let of_owner = match claim.behind {
            Behind::Port(_, _, port) => (port.name.clone(), 0),
            Behind::Pod((_, port)) => (String::new(), port),
        };
        (claim.is_outside, claim.created.is_none(), claim.created, claim.owner.clone(), of_owner)
    })
}

/// Where a host port leads to from a frontend.
fn leads_to(services: &Services, pod: &HostPorts, port: &HostPort, frontend: &Frontend) -> Option<(IpAddr, u16)> {
    let is_meant = match port.address {
        None => true,
        Some(IpAddr::V4(address)) if address.is_unspecified() => frontend.address.is_ipv4(),
        Some(IpAddr::V6(address)) if address.is_unspecified() => frontend.address.is_ipv6(),
        Some(address) => address == frontend.address,
    };
    let is_node = services.place.addresses.contains(&frontend.address);
    if !is_meant || !is_node || (port.protocol, port.port) != (frontend.protocol, frontend.port) {
        return None;
    }
    let own = pod.addresses.iter().find(|address| address.is_ipv6() == frontend.address.is_ipv6())?;
    Some((*own, port.target))
}

/// Whether a port of a service is reached at a frontend: by an address of the outside, or only by a cluster IP.
fn claim(services: &Services, service: &Service, port: &ServicePort, frontend: &Frontend) -> Option<bool> {
    let is_same_family = |address: &IpAddr| address.is_ipv6() == frontend.address.is_ipv6();
    if service.kind != ServiceKind::Addressed || !service.cluster_ips.iter().any(is_same_family) || port.protocol != frontend.protocol {
        return None;
    }
    if port.port == frontend.port && service.cluster_ips.contains(&frontend.address) {
        return Some(false);
    }
    let is_external = port.port == frontend.port && service.external.contains(&frontend.address);
    let is_node_port = port.node_port == Some(frontend.port) && services.place.addresses.contains(&frontend.address);
    (is_external || is_node_port).then_some(true)
}

/// The endpoints of a port, of the frontend's family, each once.
fn reached<'a>(services: &'a Services, name: &ObjectName, port: &ServicePort, frontend: &Frontend) -> Vec<Reached<'a>> {
    let mut all: Vec<Reached<'a>> = Vec::new();
    for slice in services.slices.get(name).into_iter().flat_map(|slices| slices.values()) {
        for number in &slice.ports {
            if (&number.name, number.protocol) != (&port.name, port.protocol) {
                continue;
            }
            for endpoint in &slice.endpoints {
                let is_ipv6 = endpoint.address.is_ipv6();
                if is_ipv6 == frontend.address.is_ipv6() && is_ipv6 == slice.endpoints[0].address.is_ipv6() {
                    all.push(((endpoint.address, number.port), endpoint));
                }
            }
        }
    }
    let targets: BTreeSet<(IpAddr, u16)> = all.iter().map(|(target, _)| *target).collect();
    let best = |target: (IpAddr, u16)| {
        let listings = all.iter().filter(|(other, _)| *other == target);
        listings.min_by_key(|(_, it)| Reverse((it.ready, it.serving && it.terminating, it.serving))).copied()
    };
    targets.into_iter().filter_map(best).collect()
}

fn answer(services: &Services, all: &[Reached<'_>], policy: TrafficPolicy) -> Answer {
    let place = &services.place;
    let set = |keep: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<(IpAddr, u16)> {
        all.iter().filter(|(_, endpoint)| keep(endpoint)).map(|(target, _)| *target).collect()
    };
    let ready = set(&|endpoint| endpoint.ready);
    let ending = set(&|endpoint| endpoint.serving && endpoint.terminating);
    let here = set(&|endpoint| endpoint.node.as_deref() == Some(place.node.as_str()));
    let both = |one: &BTreeSet<_>, other: &BTreeSet<_>| one.intersection(other).copied().collect::<BTreeSet<_>>();
    if ready.is_empty() && ending.is_empty() {
        return Answer::Refused;
    }
    if policy == TrafficPolicy::Local {
        return match (both(&ready, &here), both(&ending, &here)) {
            (ready, _) if !ready.is_empty() => Answer::OneOf(ready),
            (_, ending) if !ending.is_empty() => Answer::OneOf(ending),
            _ => Answer::Dropped,
        };
    }
    if ready.is_empty() {
        return Answer::OneOf(ending);
    }
    let for_node = both(&ready, &set(&|endpoint| endpoint.nodes.contains(&place.node)));
    if !place.node.is_empty() && !for_node.is_empty() && both(&ready, &set(&|endpoint| endpoint.nodes.is_empty())).is_empty() {
        return Answer::OneOf(for_node);
    }
    let for_zone = both(&ready, &set(&|endpoint| place.zone.as_ref().is_some_and(|zone| endpoint.zones.contains(zone))));
    if !for_zone.is_empty() && both(&ready, &set(&|endpoint| endpoint.zones.is_empty())).is_empty() {
        return Answer::OneOf(for_zone);
    }
    Answer::OneOf(ready)
}
