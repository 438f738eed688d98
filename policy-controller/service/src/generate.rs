//! Generated services and changes, for property tests; no binary refers to it.
//!
//! Everything comes from one seed, so that a case that failed can be made again. The pools are small on purpose: addresses, ports
//! and names meet often.

use crate::frontend::Frontend;
use crate::model::{
    Endpoint, HostPort, HostPorts, Place, PodInterface, Service, ServiceKind, ServicePort, Services, Slice, SlicePort, TrafficPolicy,
};
use palisade_identity::Protocol;
use palisade_policy::generate::Random;
use palisade_policy::model::ObjectName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

const NAMESPACES: [&str; 2] = ["blue", "green"];
const PORT_NAMES: [&str; 2] = ["", "web"];
const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORTS: [u16; 3] = [53, 80, 443];
const NODE_PORTS: [u16; 3] = [30_053, 30_080, 80];
const TARGET_PORTS: [u16; 2] = [8_080, 80];
const NODES: [&str; 3] = ["node-0", "node-1", "node-2"];
const ZONES: [&str; 2] = ["east", "west"];
const SLICES: [&str; 3] = ["a", "b", "c"];
const DATES: [&str; 3] = ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"];

/// Some services, and what is behind them.
pub fn services(random: &mut Random) -> Services {
    let mut services = Services { place: place(random), ..Services::default() };
    for _ in 0..2 + random.below(6) {
        let name = name(random);
        services.services.insert(name.clone(), service(random));
        services.slices.insert(name, slices(random));
    }
    for _ in 0..random.below(3) {
        services.host_ports.insert(interface(random), host_ports(random));
    }
    services
}

/// Changes services a little: one to three edits of any kind.
pub fn change(random: &mut Random, services: &mut Services) {
    for _ in 0..1 + random.below(3) {
        edit(random, services);
    }
}

/// All frontends that generated services may have.
pub fn frontends() -> impl Iterator<Item = Frontend> {
    let addresses =
        || (0..2).flat_map(|family| (0..4).flat_map(move |index| [cluster_ip(index, family), external(index, family), node(family)]));
    let addresses: BTreeSet<IpAddr> = addresses().collect();
    let ports: BTreeSet<u16> = PORTS.into_iter().chain(NODE_PORTS).collect();
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let of_address = move |address| {
        let ports = ports.clone();
        protocols.into_iter().flat_map(move |protocol| ports.clone().into_iter().map(move |port| Frontend { address, protocol, port }))
    };
    addresses.into_iter().flat_map(of_address)
}

fn edit(random: &mut Random, services: &mut Services) {
    let names: Vec<ObjectName> = services.services.keys().cloned().collect();
    let slices_of: Vec<ObjectName> = services.slices.keys().cloned().collect();
    match random.below(14) {
        0 => drop(services.services.insert(name(random), service(random))),
        1 if !names.is_empty() => drop(services.services.remove(random.pick(&names))),
        2 if !names.is_empty() => {
            // Addresses change hands.
            let (one, other) = (random.pick(&names), random.pick(&names));
            let of = |name| services.services.get(name).map(|service: &Arc<Service>| service.cluster_ips.clone());
            for (name, addresses) in [(one, of(other)), (other, of(one))] {
                services.services.edit(name).into_iter().for_each(|service| service.cluster_ips = addresses.clone().unwrap_or_default());
            }
        }
        3 if !names.is_empty() => {
            let changed = service(random);
            if let Some(service) = services.services.edit(random.pick(&names)) {
                match random.below(5) {
                    0 => service.ports = changed.ports,
                    1 => service.internal_policy = changed.internal_policy,
                    2 => service.affinity = changed.affinity,
                    3 => service.external_policy = changed.external_policy,
                    _ => service.external = changed.external,
                }
            }
        }
        4 => drop(services.slices.insert(name(random), slices(random))),
        5 if !slices_of.is_empty() => drop(services.slices.remove(random.pick(&slices_of))),
        6 if random.chance(30) => services.place = place(random),
        7 => drop(services.host_ports.insert(interface(random), host_ports(random))),
        8 => drop(services.host_ports.remove(&interface(random))),
        _ if !slices_of.is_empty() => {
            let Some(slices) = services.slices.edit(random.pick(&slices_of)) else { return };
            let name = (*random.pick(&SLICES)).to_owned();
            let slice = slices.entry(name).or_insert_with(|| slice(random));
            let is_ipv6 = slice.endpoints.first().is_some_and(|first| first.address.is_ipv6());
            if slice.endpoints.is_empty() || random.chance(40) {
                slice.endpoints.push(endpoint(random, is_ipv6));
            } else if random.chance(50) {
                let index = random.below(slice.endpoints.len());
                let address = slice.endpoints[index].address;
                slice.endpoints[index] = Endpoint { address, ..endpoint(random, is_ipv6) };
            } else {
                slice.endpoints.remove(random.below(slice.endpoints.len()));
            }
        }
        _ => {}
    }
}

fn place(random: &mut Random) -> Place {
    Place {
        node: NODES[0].to_owned(),
        zone: random.chance(70).then(|| ZONES[0].to_owned()),
        addresses: (0..2).filter(|_| random.chance(80)).map(node).collect(),
    }
}

fn name(random: &mut Random) -> ObjectName {
    ObjectName::new(*random.pick(&NAMESPACES), format!("service-{}", random.below(4)))
}

/// The first family is IPv4.
fn of_family(family: usize, ipv4: [u8; 4], last: usize) -> IpAddr {
    if family == 0 { IpAddr::from(ipv4) } else { IpAddr::from([0xfd00, u16::from(ipv4[0]), 0, 0, 0, 0, 0, last as u16]) }
}

fn cluster_ip(index: usize, family: usize) -> IpAddr {
    of_family(family, [10, 96, 0, index as u8], index)
}

fn external(index: usize, family: usize) -> IpAddr {
    of_family(family, [203, 0, 113, index as u8], index)
}

fn node(family: usize) -> IpAddr {
    of_family(family, [192, 168, 0, 1], 1)
}

fn service(random: &mut Random) -> Service {
    let kind = *random.pick(&[
        ServiceKind::Addressed,
        ServiceKind::Addressed,
        ServiceKind::Addressed,
        ServiceKind::Addressed,
        ServiceKind::Addressed,
        ServiceKind::Headless,
        ServiceKind::ExternalName,
    ]);
    let families = *random.pick(&[&[0][..], &[1][..], &[0, 1][..], &[0, 1][..], &[][..]]);
    let index = random.below(4);
    let mut external_addresses = BTreeSet::new();
    while random.chance(35) {
        // Now and then an address that is another's cluster IP.
        let (index, family) = (random.below(4), random.below(2));
        external_addresses.insert(if random.chance(85) { external(index, family) } else { cluster_ip(index, family) });
    }
    Service {
        uid: None,
        created: random.chance(80).then(|| (*random.pick(&DATES)).to_owned()),
        kind,
        cluster_ips: families.iter().map(|&family| cluster_ip(index, family)).collect(),
        external: external_addresses,
        ports: ports(random),
        internal_policy: policy(random, 35),
        external_policy: policy(random, 50),
        affinity: random.chance(30).then_some(10_800),
        health_check_node_port: None,
    }
}

fn policy(random: &mut Random, local: usize) -> TrafficPolicy {
    if random.chance(local) { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn ports(random: &mut Random) -> Vec<ServicePort> {
    let one = |random: &mut Random| ServicePort {
        name: (*random.pick(&PORT_NAMES)).to_owned(),
        protocol: *random.pick(&PROTOCOLS),
        port: *random.pick(&PORTS),
        node_port: random.chance(40).then(|| *random.pick(&NODE_PORTS)),
    };
    (0..1 + random.below(3)).map(|_| one(random)).collect()
}

/// Of a pod, or of another one of the same name.
fn interface(random: &mut Random) -> PodInterface {
    let pod = ObjectName::new(*random.pick(&NAMESPACES), format!("pod-{}", random.below(2)));
    PodInterface { pod, interface: format!("container-{}/eth0", random.below(2)) }
}

fn host_ports(random: &mut Random) -> HostPorts {
    let index = random.below(12);
    let families = *random.pick(&[&[0][..], &[1][..], &[0, 1][..], &[0, 1][..]]);
    let mut port = || {
        let family = random.below(2);
        let address = match random.below(5) {
            0 => Some(node(family)),
            1 => Some(if family == 0 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }),
            2 => Some(external(1, family)),
            _ => None,
        };
        let (protocol, port) = (*random.pick(&PROTOCOLS), *random.pick(&NODE_PORTS));
        HostPort { address, protocol, port, target: *random.pick(&TARGET_PORTS) }
    };
    let ports = vec![port(), port()];
    HostPorts {
        created: random.chance(90).then(|| (*random.pick(&DATES)).to_owned()),
        addresses: families.iter().map(|&family| of_family(family, [10, 1, 0, index as u8], index)).collect(),
        ports,
    }
}

fn slices(random: &mut Random) -> BTreeMap<String, Slice> {
    let kept: Vec<&str> = SLICES.into_iter().filter(|_| random.chance(50)).collect();
    kept.into_iter().map(|name| (name.to_owned(), slice(random))).collect()
}

fn slice(random: &mut Random) -> Slice {
    let is_ipv6 = random.chance(50);
    let all = PORT_NAMES.into_iter().flat_map(|name| PROTOCOLS[1..].iter().map(move |&protocol| (name, protocol)));
    let kept: Vec<(&str, Protocol)> = all.filter(|(_, protocol)| random.chance(if *protocol == Protocol::Tcp { 85 } else { 50 })).collect();
    let one = |(name, protocol): (&str, Protocol)| SlicePort { name: name.to_owned(), protocol, port: *random.pick(&TARGET_PORTS) };
    let ports = kept.into_iter().map(one).collect();
    // Seldom enough for a table of more than one part.
    let count = if random.chance(15) { 4 + random.below(6) } else { random.below(4) };
    let mut endpoints: Vec<Endpoint> = (0..count).map(|_| endpoint(random, is_ipv6)).collect();
    if random.chance(10) {
        endpoints.push(endpoint(random, !is_ipv6));
    }
    Slice { ports, endpoints }
}

fn endpoint(random: &mut Random, is_ipv6: bool) -> Endpoint {
    let index = random.below(12);
    let terminating = random.chance(30);
    let ready = if terminating { random.chance(5) } else { random.chance(75) };
    let mut hints = |percent: usize, names: &[&str]| -> BTreeSet<String> {
        let is_hinted = random.chance(percent);
        names.iter().filter(|_| is_hinted && random.chance(50)).map(|name| (*name).to_owned()).collect()
    };
    let (zones, nodes) = (hints(85, &ZONES), hints(70, &NODES));
    Endpoint {
        address: of_family(usize::from(is_ipv6), [10, 1, 0, index as u8], index),
        ready,
        serving: ready || random.chance(50),
        terminating,
        node: random.chance(95).then(|| (*random.pick(&NODES)).to_owned()),
        zones,
        nodes,
    }
}
