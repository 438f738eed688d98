use super::add::refused;
use super::call::Call;
use super::record::{self, Record};
use super::wire;
use crate::ipam::Owner;
use crate::link::{Link, Netlink, everything};
use crate::spec::{CniResult, Code, Demand, Error, Interface};
use ipnet::IpNet;
use palisade_loader::{PinDir, endpoint_attached};
use palisade_protocol::{EndpointSpec, HostPort};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// CHECK: whether all is as ADD left it. What later plugins of the chain have added or changed is theirs: the result
/// of the whole chain says what to expect, and more addresses or routes are no fault.
pub(super) fn check(call: &Call, demand: &Demand) -> Result<(), Error> {
    let previous =
        call.config.previous.clone().ok_or_else(|| {
            Error::new(Code::InvalidConfig, "CHECK needs the result of ADD: the network configuration has no \"prevResult\"")
        })?;
    let result = CniResult::parse(previous)?;
    let (namespace, path) = call.open_namespace()?;
    let _lock = call.lock()?;
    let owner = call.owner();
    let interface = &call.attachment.interface;
    let host_interface = super::host_interface(&owner);

    let expected = |name: &str, sandbox: Option<&str>| {
        let fits =
            |interface: &&Interface| interface.name == name && interface.sandbox.as_deref().filter(|path| !path.is_empty()) == sandbox;
        let found = result.interfaces.iter().position(|interface| fits(&interface));
        found.ok_or_else(|| differs(format!("prevResult names no interface {name}: it is not the result of this attachment")))
    };
    let pod_place = expected(interface, path.to_str())?;
    let host_place = expected(&host_interface, None)?;

    let (host, pod) = (Netlink::open()?, Netlink::open_in(&namespace)?);
    let pod_link = compare_link(&pod, &result.interfaces[pod_place], "in the container")?;
    let host_link = compare_link(&host, &result.interfaces[host_place], "on the node")?;
    if host_link.peer != Some(pod_link.index) {
        return Err(differs(format!("{interface} is not the other end of {host_interface}")));
    }
    let endpoint = record::endpoint(&call.config, &owner).ok_or_else(|| differs(format!("the agent's record of {owner} is gone")))?;
    // Before addresses and routes, which a plugin that changes it may have lost on the way.
    compare_mac(&endpoint, &pod_link)?;

    let addresses = call.store().addresses(&owner)?;
    if addresses.is_empty() {
        return Err(differs(format!("{owner} has no address in the store")));
    }
    let told: Vec<IpAddr> = result.ips.iter().filter(|ip| ip.interface == Some(pod_place)).map(|ip| ip.address.addr()).collect();
    if let Some(missing) = addresses.iter().find(|address| !told.contains(address)) {
        return Err(differs(format!("{missing} is {owner}'s in the store, but not in prevResult")));
    }
    compare_addresses(&pod, &pod_link, &addresses)?;
    compare_routes((&host, &host_link), (&pod, &pod_link), &addresses, &expected_routes(call, &result, &addresses))?;

    let record = Record::read(&call.config, &owner).ok_or_else(|| differs(format!("the record of {owner} is gone")))?;
    let pins = PinDir::from_abi_dir(record.pin_dir);
    if !endpoint_attached(&pins, &host_interface, host_link.index).map_err(refused)? {
        return Err(differs(format!("the programs are not attached to {host_interface}")));
    }
    compare_host_ports(&endpoint, &owner, demand)?;
    call.agent().check(&call.attachment)?;
    call.delegate.as_ref().map_or(Ok(()), |delegate| delegate.tell("CHECK"))
}

/// What later plugins change is theirs, but for the Ethernet address, whatever the result of the whole chain says of it: the pod's packets
/// are let pass from the one that ADD gave it.
fn compare_mac(endpoint: &EndpointSpec, link: &Link) -> Result<(), Error> {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if endpoint.pod_mac.eq_ignore_ascii_case(&mac) {
        return Ok(());
    }
    Err(differs(format!(
        "the interface {} in the container has the Ethernet address {mac}, but its packets are let pass from {} alone, which ADD gave it, \
         and dropped now: if a later plugin of the chain changes it (\"mac\" of tuning), have palisade-cni do so, by the capability \"mac\" \
         or \"args.cni.mac\"",
        link.name, endpoint.pod_mac
    )))
}

/// What the agent keeps, so that one that starts anew serves the same.
fn compare_host_ports(endpoint: &EndpointSpec, owner: &Owner, demand: &Demand) -> Result<(), Error> {
    let set = |ports: &[HostPort]| ports.iter().copied().collect::<BTreeSet<HostPort>>();
    let (kept, asked) = (set(&endpoint.host_ports), set(&demand.host_ports));
    match (asked.difference(&kept).next(), kept.difference(&asked).next()) {
        (Some(port), _) => Err(differs(format!("the host port {port} is not {owner}'s"))),
        (None, Some(port)) => Err(differs(format!("the host port {port} is {owner}'s, but it is not asked for"))),
        (None, None) => Ok(()),
    }
}

fn compare_link(netlink: &Netlink, expected: &Interface, place: &str) -> Result<Link, Error> {
    let name = &expected.name;
    let link = netlink.link(name)?.ok_or_else(|| differs(format!("the interface {name} {place} is gone")))?;
    if !link.up {
        return Err(differs(format!("the interface {name} {place} is down")));
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    match &expected.mac {
        Some(expected) if !expected.is_empty() && !expected.eq_ignore_ascii_case(&mac) => {
            Err(differs(format!("the interface {name} {place} has the Ethernet address {mac} instead of {expected}")))
        }
        _ => Ok(link),
    }
}

fn compare_addresses(pod: &Netlink, link: &Link, expected: &[IpAddr]) -> Result<(), Error> {
    let present: Vec<IpAddr> = pod.addresses_of(link.index)?.iter().map(|address| address.address.addr()).collect();
    let missing = expected.iter().find(|address| !present.contains(address));
    missing.map_or(Ok(()), |missing| Err(differs(format!("{} has lost its address {missing}", link.name))))
}

/// The pod's routes through us: the default ones, or those that the IPAM plugin gave.
fn expected_routes(call: &Call, result: &CniResult, addresses: &[IpAddr]) -> Vec<IpNet> {
    if call.delegate.is_none() {
        return addresses.iter().map(|address| everything(address.is_ipv6())).collect();
    }
    result.routes.iter().filter(|route| route.gw == Some(wire::gateway(route.dst.addr()))).map(|route| route.dst).collect()
}

fn compare_routes(
    (host, host_link): (&Netlink, &Link),
    (pod, pod_link): (&Netlink, &Link),
    addresses: &[IpAddr],
    routes: &[IpNet],
) -> Result<(), Error> {
    let (on_host, in_pod) = (host.routes()?, pod.routes()?);
    for address in addresses {
        let own = IpNet::from(*address);
        if !on_host.iter().any(|route| route.destination == own && route.link == Some(host_link.index)) {
            return Err(differs(format!("the node has no route to {address} through {}", host_link.name)));
        }
    }
    for destination in routes {
        let gateway = wire::gateway(destination.addr());
        let expected = |route: &crate::link::Route| {
            route.destination == *destination && route.gateway == Some(gateway) && route.link == Some(pod_link.index)
        };
        if !in_pod.iter().any(expected) {
            let which = if destination.prefix_len() == 0 { "default route".to_owned() } else { format!("route to {destination}") };
            return Err(differs(format!("the container has no {which} through {gateway}")));
        }
    }
    Ok(())
}

fn differs(message: String) -> Error {
    Error::new(Code::Differs, message)
}
