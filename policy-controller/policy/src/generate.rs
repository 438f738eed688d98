//! Generated models, flows and changes, for property tests; no binary refers to it.
//!
//! Everything comes from one seed, so that a case that failed can be made again. The pools are small on purpose:
//! selectors, blocks and ports meet often.

use crate::model::{
    Action, Entity, Mode, Model, NamedPort, Node, ObjectName, Peer, Peers, Pod, PodSet, Policy, PolicyKind, PolicyName, Port, Ports, Rule,
    Tier,
};
use crate::oracle::Flow;
use ipnet::IpNet;
use palisade_identity::{LabelSelector, Labels, Operator, Protocol, Requirement, ServiceAccount};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A sequence of numbers that looks random and is given by its seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub const fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub const fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of some things, of which there is at least one.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }
}

const NAMESPACES: [&str; 4] = ["blue", "green", "red", "unlabelled"];
const KEYS: [&str; 3] = ["app", "tier", "track"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const ACCOUNTS: [&str; 2] = ["default", "robot"];
const IDENTITIES: [&str; 3] = ["payments", "dns", "gone"];
const ENTITIES: [Entity; 4] = [Entity::Host, Entity::Nodes, Entity::World, Entity::ApiServer];
const PORT_NAMES: [&str; 3] = ["web", "dns", "db"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORT_NUMBERS: [u16; 12] = [0, 1, 53, 79, 80, 81, 443, 1023, 1024, 5432, 8080, 65535];
/// Blocks around and beside the addresses below; some have host bits set, as the API admits.
const BLOCKS: [&str; 24] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/24",
    "10.1.0.0/30",
    "10.1.0.4/30",
    "10.1.0.7/29",
    "10.1.0.3/32",
    "10.2.0.0/16",
    "192.168.0.0/16",
    "192.168.0.1/32",
    "203.0.113.0/24",
    "203.0.113.129/25",
    "203.0.113.200/32",
    "::/0",
    "fd00::/8",
    "fd00:1::/32",
    "fd00:1::/64",
    "fd00:1::/125",
    "fd00:1::3/128",
    "fd00:a::1/64",
    "2001:db8::/32",
    "2001:db8::ff/121",
];
const OUTSIDE: [&str; 9] =
    ["203.0.113.1", "203.0.113.200", "203.0.113.255", "8.8.8.8", "10.1.0.200", "10.2.0.9", "2001:db8::1", "2001:db8::80", "2606::1"];

/// A model of a few namespaces, pods, nodes and policies.
pub fn model(random: &mut Random) -> Model {
    let mut model = Model { host: "node-0".to_owned(), ..Model::default() };
    for namespace in NAMESPACES {
        // The last one is not known: only a selector that wants no label matches it.
        if namespace != "unlabelled" {
            model.namespaces.insert(namespace.to_owned(), namespace_labels(random, namespace));
        }
    }
    for index in 0..2 + random.below(7) {
        let (name, pod) = pod(random, index);
        model.pods.insert(name, pod);
    }
    for index in 0..1 + random.below(2) as u8 {
        let addresses = vec![IpAddr::from([192, 168, 0, 1 + index]), IpAddr::from([0xfd00, 0xa, 0, 0, 0, 0, 0, 1 + u16::from(index)])];
        // The pods' addresses below lie in the first node's ranges; not every node tells its ranges.
        let pod_ranges = node_ranges(random, 1 + index);
        model.nodes.insert(format!("node-{index}"), Node { labels: labels(random), addresses, pod_ranges, created: 0 });
    }
    model.api_servers = api_servers(random);
    for name in &IDENTITIES[..2] {
        model.identities.insert((*name).to_owned(), members(random));
    }
    for _ in 0..random.below(11) {
        let (name, policy) = policy(random);
        model.policies.insert(name, policy);
    }
    model
}

fn node_ranges(random: &mut Random, number: u8) -> Vec<IpNet> {
    let ranges = [format!("10.{number}.0.0/24"), format!("fd00:{number:x}::/64")];
    ranges.iter().filter(|_| random.chance(70)).filter_map(|range| range.parse().ok()).collect()
}

fn api_servers(random: &mut Random) -> BTreeSet<IpAddr> {
    let addresses = ["192.168.0.1", "203.0.113.1", "10.1.0.2", "2001:db8::1"];
    addresses.iter().filter(|_| random.chance(40)).filter_map(|address| address.parse().ok()).collect()
}

/// Pods of `model` that are said to run on this node: most of them.
pub fn local(random: &mut Random, model: &Model) -> BTreeSet<ObjectName> {
    model.pods.keys().filter(|_| random.chance(75)).cloned().collect()
}

/// A flow of one family between addresses of pods, of nodes and of the outside.
pub fn flow(random: &mut Random, model: &Model) -> Flow {
    let pods = model.pods.values().flat_map(|pod| pod.addresses.iter().copied());
    let nodes = model.nodes.values().flat_map(|node| node.addresses.iter().copied());
    let outside = OUTSIDE.iter().filter_map(|address| address.parse().ok());
    // Pods more often than others: only they are judged.
    let all: Vec<IpAddr> = pods.clone().chain(pods.clone()).chain(pods).chain(nodes).chain(outside).collect();
    let opener = *random.pick(&all);
    let family: Vec<IpAddr> = all.into_iter().filter(|address| address.is_ipv6() == opener.is_ipv6()).collect();
    let responder = *random.pick(&family);
    let icmp = if opener.is_ipv6() { 58 } else { 1 };
    let protocol = *random.pick(&[6, 6, 6, 17, 17, 132, icmp, 47]);
    let port = match protocol {
        6 | 17 | 132 if random.chance(20) => random.number() as u16,
        6 | 17 | 132 => *random.pick(&PORT_NUMBERS),
        _ => 0,
    };
    Flow { opener, responder, protocol, port }
}

/// Changes a model a little: one to four edits of any kind.
pub fn change(random: &mut Random, model: &mut Model) {
    for _ in 0..1 + random.below(4) {
        edit(random, model);
    }
}

fn edit(random: &mut Random, model: &mut Model) {
    let pods: Vec<ObjectName> = model.pods.keys().cloned().collect();
    let policies: Vec<PolicyName> = model.policies.keys().cloned().collect();
    match random.below(13) {
        0 if !pods.is_empty() => {
            if let Some(pod) = model.pods.edit(random.pick(&pods)) {
                pod.labels = labels(random);
            }
        }
        1 => {
            // Pods stay in the model while their namespace is not known.
            let namespace = (*random.pick(&NAMESPACES)).to_owned();
            if random.chance(20) {
                model.namespaces.remove(&namespace)
            } else {
                let labels = namespace_labels(random, &namespace);
                model.namespaces.insert(namespace, labels)
            };
        }
        2 => {
            let index = random.below(12);
            let (name, pod) = pod(random, index);
            model.pods.insert(name, pod);
        }
        3 if !pods.is_empty() => {
            model.pods.remove(random.pick(&pods));
        }
        4 if !pods.is_empty() => {
            // An address changes hands.
            let (first, second) = (random.pick(&pods).clone(), random.pick(&pods).clone());
            let of = |model: &Model, name: &ObjectName| model.pods.get(name).map(|pod| pod.addresses.clone()).unwrap_or_default();
            let (one, other) = (of(model, &first), of(model, &second));
            for (name, addresses) in [(first, other), (second, one)] {
                model.pods.edit(&name).into_iter().for_each(|pod| pod.addresses.clone_from(&addresses));
            }
        }
        5 if !pods.is_empty() => {
            if let Some(pod) = model.pods.edit(random.pick(&pods)) {
                pod.ports = named_ports(random);
            }
        }
        6 if !policies.is_empty() => {
            model.policies.remove(random.pick(&policies));
        }
        7 if !policies.is_empty() => {
            let name = random.pick(&policies).clone();
            let changed = policy_of(random, name.kind);
            model.policies.insert(name, changed);
        }
        8 if !policies.is_empty() => {
            let mode = if random.chance(50) { Mode::Audit } else { Mode::Enforce };
            model.policies.edit(random.pick(&policies)).into_iter().for_each(|policy| policy.mode = mode);
        }
        9 => {
            let name = (*random.pick(&IDENTITIES)).to_owned();
            if random.chance(25) {
                model.identities.remove(&name)
            } else {
                model.identities.insert(name, members(random))
            };
        }
        11 => {
            // A node says more or less of itself, or the API server moves.
            let names: Vec<String> = model.nodes.keys().cloned().collect();
            if let Some(node) = model.nodes.get_mut(random.pick(&names)) {
                node.labels = labels(random);
                node.pod_ranges = node_ranges(random, 1);
            }
            model.api_servers = api_servers(random);
        }
        10 if !pods.is_empty() => {
            if let Some(pod) = model.pods.edit(random.pick(&pods)) {
                pod.service_account = account(random);
            }
        }
        _ => {
            let (name, policy) = policy(random);
            model.policies.insert(name, policy);
        }
    }
}

fn namespace_labels(random: &mut Random, namespace: &str) -> Labels {
    let mut labels = labels(random);
    labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
    labels
}

fn labels(random: &mut Random) -> Labels {
    let mut labels = BTreeMap::new();
    for key in KEYS {
        if random.chance(60) {
            labels.insert(key.to_owned(), (*random.pick(&VALUES)).to_owned());
        }
    }
    labels
}

fn pod(random: &mut Random, index: usize) -> (ObjectName, Pod) {
    let namespace = if random.chance(5) { "unlabelled" } else { *random.pick(&NAMESPACES[..3]) };
    let ipv4 = IpAddr::V4(Ipv4Addr::new(10, 1, 0, index as u8 + 1));
    let ipv6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, index as u16 + 1));
    let addresses = match random.below(10) {
        0 => vec![ipv4],
        1 => vec![ipv6],
        2 => Vec::new(),
        // Two pods claim one address while it changes hands.
        3 => vec![IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), ipv6],
        _ => vec![ipv4, ipv6],
    };
    (
        ObjectName::new(namespace, format!("pod-{index}")),
        Pod { labels: labels(random), service_account: account(random), addresses, ports: named_ports(random) },
    )
}

fn named_ports(random: &mut Random) -> Vec<NamedPort> {
    let one = |random: &mut Random| NamedPort {
        name: (*random.pick(&PORT_NAMES)).to_owned(),
        protocol: *random.pick(&PROTOCOLS),
        port: *random.pick(&PORT_NUMBERS),
    };
    (0..random.below(4)).map(|_| one(random)).collect()
}

fn account(random: &mut Random) -> String {
    (*random.pick(&ACCOUNTS)).to_owned()
}

fn policy(random: &mut Random) -> (PolicyName, Policy) {
    let kind = match random.below(10) {
        0..5 => PolicyKind::NetworkPolicy,
        5..8 => PolicyKind::ClusterNetworkPolicy,
        _ => PolicyKind::IdentityPolicy,
    };
    let object = match kind {
        PolicyKind::ClusterNetworkPolicy => ObjectName::cluster(format!("cluster-{}", random.below(5))),
        _ => ObjectName::new(*random.pick(&NAMESPACES[..3]), format!("policy-{}", random.below(6))),
    };
    (PolicyName::new(kind, object), policy_of(random, kind))
}

fn policy_of(random: &mut Random, kind: PolicyKind) -> Policy {
    let (ingress, egress) = match random.below(4) {
        0 => (true, false),
        1 => (false, true),
        _ => (true, true),
    };
    let tier = match kind {
        PolicyKind::ClusterNetworkPolicy if random.chance(60) => Tier::Admin(random.below(3) as u16),
        PolicyKind::ClusterNetworkPolicy => Tier::Baseline(random.below(3) as u16),
        _ => Tier::Workload,
    };
    let subject = match kind {
        PolicyKind::NetworkPolicy => PodSet { pods: selector(random), ..PodSet::default() },
        PolicyKind::IdentityPolicy => PodSet { pods: selector(random), accounts: accounts(random), namespaces: None },
        PolicyKind::ClusterNetworkPolicy => PodSet { namespaces: Some(namespace_selector(random)), pods: selector(random), accounts: None },
    };
    let ingress = ingress.then(|| rules(random, kind));
    let egress = egress.then(|| rules(random, kind));
    let mode = if random.chance(15) { Mode::Audit } else { Mode::Enforce };
    Policy { tier, mode, subject, ingress, egress }
}

fn accounts(random: &mut Random) -> Option<BTreeSet<ServiceAccount>> {
    let one = |random: &mut Random| ServiceAccount { namespace: (*random.pick(&NAMESPACES)).to_owned(), name: account(random) };
    random.chance(30).then(|| (0..1 + random.below(3)).map(|_| one(random)).collect())
}

fn rules(random: &mut Random, kind: PolicyKind) -> Vec<Rule> {
    let actions: &[Action] = match kind {
        PolicyKind::NetworkPolicy => &[Action::Allow],
        PolicyKind::IdentityPolicy => &[Action::Allow, Action::Allow, Action::Deny],
        PolicyKind::ClusterNetworkPolicy => &[Action::Allow, Action::Deny, Action::Pass],
    };
    let rule = |random: &mut Random| Rule { name: None, action: *random.pick(actions), peers: peers(random, kind), ports: ports(random) };
    (0..random.below(4)).map(|_| rule(random)).collect()
}

fn selector(random: &mut Random) -> LabelSelector {
    let count = *random.pick(&[0, 0, 1, 1, 2]);
    LabelSelector { requirements: (0..count).map(|_| requirement(random)).collect() }
}

fn requirement(random: &mut Random) -> Requirement {
    let values =
        |random: &mut Random| -> BTreeSet<String> { (0..1 + random.below(2)).map(|_| (*random.pick(&VALUES)).to_owned()).collect() };
    let operator = match random.below(5) {
        0 => Operator::NotIn(values(random)),
        1 => Operator::Exists,
        2 => Operator::DoesNotExist,
        _ => Operator::In(values(random)),
    };
    Requirement { key: (*random.pick(&KEYS)).to_owned(), operator }
}

fn namespace_selector(random: &mut Random) -> LabelSelector {
    if random.chance(30) {
        let name = (*random.pick(&NAMESPACES)).to_owned();
        let named = Requirement { key: "kubernetes.io/metadata.name".to_owned(), operator: Operator::In(BTreeSet::from([name])) };
        return LabelSelector { requirements: BTreeSet::from([named]) };
    }
    selector(random)
}

fn peers(random: &mut Random, kind: PolicyKind) -> Peers {
    if random.chance(20) {
        return Peers::Any;
    }
    // An empty list among them.
    let count = if random.chance(10) { 0 } else { 1 + random.below(3) };
    Peers::Of((0..count).map(|_| peer(random, kind)).collect())
}

fn peer(random: &mut Random, kind: PolicyKind) -> Peer {
    match (kind, random.below(8)) {
        (PolicyKind::ClusterNetworkPolicy, 0) => Peer::Nodes(selector(random)),
        (PolicyKind::IdentityPolicy, 0 | 1) => Peer::Entity(*random.pick(&ENTITIES)),
        (PolicyKind::IdentityPolicy, 2 | 3) => Peer::Identity((*random.pick(&IDENTITIES)).to_owned()),
        (PolicyKind::IdentityPolicy, 4) => Peer::Pods(PodSet { namespaces: None, pods: selector(random), accounts: accounts(random) }),
        (PolicyKind::ClusterNetworkPolicy, 1 | 2) | (_, 5) => {
            Peer::Pods(PodSet { namespaces: Some(namespace_selector(random)), pods: selector(random), accounts: None })
        }
        (PolicyKind::NetworkPolicy, 0 | 1) => Peer::Pods(PodSet { pods: selector(random), ..PodSet::default() }),
        _ => block_peer(random),
    }
}

fn block_peer(random: &mut Random) -> Peer {
    let block = block(random);
    // Mostly inside, as the API wants it, and sometimes anywhere.
    let inside: Vec<IpNet> = blocks().filter(|other| block.contains(other)).collect();
    let except = (0..random.below(3)).map(|_| if random.chance(80) { *random.pick(&inside) } else { self::block(random) }).collect();
    Peer::Block { block, except }
}

/// The members of an identity: everything but identities.
fn members(random: &mut Random) -> Vec<Peer> {
    let member = |random: &mut Random| match random.below(3) {
        0 => Peer::Entity(*random.pick(&ENTITIES)),
        1 => {
            let namespaces = Some(namespace_selector(random));
            Peer::Pods(PodSet { namespaces, pods: selector(random), accounts: accounts(random) })
        }
        _ => block_peer(random),
    };
    (0..random.below(4)).map(|_| member(random)).collect()
}

fn blocks() -> impl Iterator<Item = IpNet> {
    BLOCKS.iter().filter_map(|block| block.parse().ok())
}

fn block(random: &mut Random) -> IpNet {
    let all: Vec<IpNet> = blocks().collect();
    *random.pick(&all)
}

fn ports(random: &mut Random) -> Ports {
    if random.chance(35) {
        return Ports::Any;
    }
    let count = if random.chance(5) { 0 } else { 1 + random.below(3) };
    Ports::Of((0..count).map(|_| port(random)).collect())
}

fn port(random: &mut Random) -> Port {
    let protocol = *random.pick(&PROTOCOLS);
    match random.below(8) {
        0 => Port::All(protocol),
        1 | 2 => {
            let (one, other) = (*random.pick(&PORT_NUMBERS), *random.pick(&PORT_NUMBERS));
            Port::Range(protocol, one.min(other), one.max(other))
        }
        3 => {
            let (one, other) = (random.number() as u16, random.number() as u16);
            Port::Range(protocol, one.min(other), one.max(other))
        }
        4 | 5 => Port::Named(protocol, (*random.pick(&PORT_NAMES)).to_owned()),
        _ => {
            let number = *random.pick(&PORT_NUMBERS);
            Port::Range(protocol, number, number)
        }
    }
}
