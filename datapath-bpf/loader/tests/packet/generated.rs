//! Generated models, compiled, in the real maps: what the loaded programs do with a flow's first packet is what the plain
//! reading of the rules says. With the property tests of `palisade-policy` beside it, the compiler, the verdict in user
//! space and the verdict in the kernel are held against one oracle.

use std::collections::BTreeMap;
use std::net::IpAddr;

use palisade_datapath_core::abi::{Direction, Endpoint, Hook, LocalPod, Outcome};
use palisade_policy::generate::{self, Random};
use palisade_policy::model::{Model, ObjectName};
use palisade_policy::oracle::{Flow, Side, Verdict, audited_itself, audited_side, itself, side};
use palisade_policy::{Compiled, Numbers, compile};
use palisade_test_support::packet::{Way, protocol, sctp_chunk, tcp_flag};

use crate::service::{FRONTEND, serve, vip};
use crate::world::{Family, UPLINK, World, world};

const MODELS: u64 = 250;
const FLOWS: u64 = 60;
/// Indices of interfaces that nothing is sent from or to: other pods' of the node.
const ELSEWHERE: u32 = 1000;

#[test]
fn the_programs_say_of_generated_flows_what_the_rules_say() {
    world(|world| {
        let (mut judged, mut denied, mut audited, mut denied_itself) = (0, 0, 0, 0);
        let mut numbers = Numbers::default();
        for seed in 1..=MODELS {
            let mut random = Random::new(seed);
            let model = generate::model(&mut random);
            let local = generate::local(&mut random, &model);
            if seed % 16 == 0 {
                numbers = Numbers::default();
            }
            let compiled = compile(&model, &local, &mut numbers);
            let owners = write(world, &model, &compiled);
            for number in 0..FLOWS {
                let flow = generate::flow(&mut random, &model);
                // Whether another protocol is judged at all is no matter of policy; and what a pod sends to its own address is not judged.
                let itself = flow.opener == flow.responder;
                if flow.protocol == 47 || (itself && !has_ports(flow.protocol)) {
                    continue;
                }
                if itself {
                    serve(world, family_of(flow.opener), flow.protocol, (flow.responder, flow.port));
                }
                let Some(found) = send(world, &model, &compiled, &owners, &flow, 40_000 + number as u16) else { continue };
                let expected = expected(&model, &owners, &flow);
                assert_eq!(found, expected, "seed {seed}: {flow:?}\nlocal: {local:?}\n{model:#?}");
                judged += 1;
                if itself {
                    denied_itself += u64::from(!expected.passes());
                    let _ = world.datapath.services.remove((vip(family_of(flow.opener)), FRONTEND, flow.protocol));
                }
                denied += u64::from(!expected.passes());
                audited += u64::from(expected == Outcome::AllowedAudited);
            }
        }
        println!(
            "{judged} first packets, {denied} of them denied, {denied_itself} of pods to themselves; {audited} that an audit would deny"
        );
        assert!(denied_itself >= 30, "{denied_itself} denied of pods to themselves");
        assert!(audited >= 30, "{audited} audited");
        assert!(judged >= 5_000 && denied >= judged / 20 && denied <= judged * 19 / 20, "{judged} packets, {denied} denied");
    });
}

/// Puts a compiled model into the maps. Whose the addresses of this node's pods are: of several that claim one, the first by name.
fn write(world: &mut World, model: &Model, compiled: &Compiled) -> BTreeMap<IpAddr, ObjectName> {
    world.clear();
    let datapath = &mut world.datapath;
    for ((key, length), entry) in &compiled.ports {
        datapath.ports.insert(&(*key, *length), entry).unwrap();
    }
    for (key, entry) in &compiled.policy {
        datapath.policy.insert(key, entry).unwrap();
    }
    for (prefix, identity) in &compiled.prefixes {
        datapath.prefixes.insert(prefix, identity).unwrap();
    }
    for (address, identity) in &compiled.addresses {
        datapath.addresses.insert(address, identity).unwrap();
    }
    let mut owners = BTreeMap::new();
    for (name, pod) in &model.pods {
        for address in &pod.addresses {
            owners.entry(*address).or_insert_with(|| name.clone());
        }
    }
    owners.retain(|_, name| compiled.subjects.contains_key(name));
    for (index, (name, subject)) in compiled.subjects.iter().enumerate() {
        let ifindex = ELSEWHERE + index as u32;
        let audit = compiled.audits.get(name).copied().unwrap_or_default();
        datapath.endpoints.insert(&ifindex, &Endpoint { ifindex, subject: *subject, audit, ..Endpoint::default() }).unwrap();
        let local = LocalPod { ifindex, pod_mac: [2, 0, 0, 0, 3, index as u8], host_mac: [2, 0, 0, 0, 4, index as u8], since: 0 };
        for address in owners.iter().filter(|(_, owner)| *owner == name).map(|(address, _)| address) {
            datapath.local.insert(address, &local).unwrap();
        }
    }
    owners
}

/// Sends the first packet of a flow by the hook that it meets on this node; what became of it. `None` where it meets none.
fn send(
    world: &mut World,
    model: &Model,
    compiled: &Compiled,
    owners: &BTreeMap<IpAddr, ObjectName>,
    flow: &Flow,
    source_port: u16,
) -> Option<Outcome> {
    let (hook, name, ifindex, ingress) = match (owners.get(&flow.opener), owners.get(&flow.responder)) {
        (Some(name), _) => (Hook::FromPod, name, world.a.ifindex, world.a.ifindex),
        (None, Some(name)) => (Hook::ToPod, name, world.b.ifindex, UPLINK),
        (None, None) => return None,
    };
    let (pod_mac, host_mac) = (world.a.mac, world.a.host_mac);
    let audit = compiled.audits.get(name).copied().unwrap_or_default();
    let mut endpoint = Endpoint { ifindex, subject: compiled.subjects[name], audit, pod_mac, host_mac, ..Endpoint::default() };
    for address in model.pods[name].addresses.iter().filter(|address| owners.get(*address) == Some(name)) {
        match address {
            // Of several addresses of a family the one that the packet has.
            IpAddr::V4(own) if *address == flow.opener || *address == flow.responder => endpoint.ipv4 = own.octets(),
            IpAddr::V6(own) if *address == flow.opener || *address == flow.responder => endpoint.ipv6 = own.octets(),
            _ => {}
        }
    }
    world.datapath.endpoints.insert(&ifindex, &endpoint).unwrap();
    let way = match hook {
        // A pod reaches itself through a service.
        Hook::FromPod if flow.opener == flow.responder => Way::new(pod_mac, flow.opener, host_mac, vip(family_of(flow.opener))),
        Hook::FromPod => Way::new(pod_mac, flow.opener, host_mac, flow.responder),
        _ => Way::new(host_mac, flow.opener, pod_mac, flow.responder),
    };
    let port = if flow.opener == flow.responder { FRONTEND } else { flow.port };
    let packet = match flow.protocol {
        protocol::TCP => way.tcp(source_port, port, tcp_flag::SYN),
        protocol::UDP => way.udp(source_port, port),
        protocol::SCTP => way.sctp(source_port, port, sctp_chunk::INIT),
        _ => way.echo_request(source_port),
    };
    Some(world.run(hook, ifindex, ingress, packet).outcome)
}

/// What the rules say: egress of the opener first, then ingress of the responder, of this node's pods alone.
fn expected(model: &Model, owners: &BTreeMap<IpAddr, ObjectName>, flow: &Flow) -> Outcome {
    let judged = |subject: IpAddr, direction, peer, ask: fn(&Model, &ObjectName, Direction, IpAddr, u8, u16) -> Side| {
        owners.get(&subject).map_or(Side::NotJudged, |name| ask(model, name, direction, peer, flow.protocol, flow.port))
    };
    let both = |ask| Verdict {
        egress: judged(flow.opener, Direction::Egress, flow.responder, ask),
        ingress: judged(flow.responder, Direction::Ingress, flow.opener, ask),
    };
    let own = owners.get(&flow.opener).filter(|_| flow.opener == flow.responder);
    let (enforced, audited) = match own {
        Some(pod) => [itself, audited_itself].map(|ask| ask(model, pod, flow.responder, flow.protocol, flow.port)).into(),
        None => (both(side), both(audited_side)),
    };
    match (enforced.egress, enforced.ingress) {
        (Side::Denied { .. }, _) => Outcome::EgressDenied,
        (Side::DefaultDenied(_), _) => Outcome::EgressDefaultDenied,
        (_, Side::Denied { .. }) => Outcome::IngressDenied,
        (_, Side::DefaultDenied(_)) => Outcome::IngressDefaultDenied,
        _ if audited.passes() => Outcome::AllowedNew,
        _ => Outcome::AllowedAudited,
    }
}

const fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}
