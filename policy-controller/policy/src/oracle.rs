//! The plain reading of the rules of Kubernetes, of ClusterNetworkPolicy and of our own policies: what every other answer is held against.
//!
//! Linear in everything and never optimised. It shares no matching code with the compiler: labels, blocks and ports
//! are compared here once more, written out from the API's documentation.

use crate::model::{
    Action, Entity, Mode, Model, ObjectName, Peer, Peers, Pod, PodSet, Policy, PolicyKind, PolicyName, Port, Ports, Rule, Tier,
};
use ipnet::IpNet;
use palisade_datapath_core::abi::Direction;
use palisade_identity::{LabelSelector, Labels, Operator, Protocol};
use std::net::IpAddr;

/// A flow by what its first packet shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Address of the end that opens the flow.
    pub opener: IpAddr,
    /// Address of the other end.
    pub responder: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The responder's port; 0 where the protocol has none.
    pub port: u16,
}

/// What the policies of one pod say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end is no pod, or it is the other end as well.
    NotJudged,
    /// No policy says anything of the flow, and none isolates the pod in this direction.
    NotIsolated,
    /// A rule allows the flow.
    Allowed {
        /// The policy.
        policy: PolicyName,
        /// Index of the rule.
        rule: usize,
    },
    /// A rule denies the flow.
    Denied {
        /// The policy.
        policy: PolicyName,
        /// Index of the rule.
        rule: usize,
    },
    /// These policies isolate the pod, and no rule allows the flow.
    DefaultDenied(Vec<PolicyName>),
}

impl Side {
    /// Whether this side lets the flow pass.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Denied { .. } | Self::DefaultDenied(_))
    }
}

/// What the policies of both ends say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The opener's policies about the responder.
    pub egress: Side,
    /// The responder's policies about the opener.
    pub ingress: Side,
}

impl Verdict {
    /// Whether both sides let the flow pass.
    pub fn passes(&self) -> bool {
        self.egress.passes() && self.ingress.passes()
    }
}

/// What the policies of both ends say of a flow between two addresses. Where several pods claim an address, the
/// first in order of names is the one that is judged.
pub fn verdict(model: &Model, flow: &Flow) -> Verdict {
    if flow.opener == flow.responder {
        return Verdict { egress: Side::NotJudged, ingress: Side::NotJudged };
    }
    let judged = |address, direction, peer| match claimants(model, address).first() {
        Some((pod, _)) => side(model, pod, direction, peer, flow.protocol, flow.port),
        None => Side::NotJudged,
    };
    Verdict {
        egress: judged(flow.opener, Direction::Egress, flow.responder),
        ingress: judged(flow.responder, Direction::Ingress, flow.opener),
    }
}

/// What the enforced policies of `subject` say of a flow that it opens to itself through a service: `address` is the one of its own that
/// stands behind the service, `port` the port there.
///
/// "NetworkPolicy never applies to a pod's traffic to itself; ClusterNetworkPolicy does." Both of the pod's ends are asked.
pub fn itself(model: &Model, subject: &ObjectName, address: IpAddr, protocol: u8, port: u16) -> Verdict {
    of_cluster(model, subject, address, protocol, port, |policy| policy.mode == Mode::Enforce)
}

/// What they would say if those in audit mode were enforced, too.
pub fn audited_itself(model: &Model, subject: &ObjectName, address: IpAddr, protocol: u8, port: u16) -> Verdict {
    of_cluster(model, subject, address, protocol, port, |_| true)
}

fn of_cluster(
    model: &Model,
    subject: &ObjectName,
    address: IpAddr,
    protocol: u8,
    port: u16,
    in_force: impl Fn(&Policy) -> bool,
) -> Verdict {
    let end = |direction| {
        let applies = |name: &PolicyName, policy: &Policy| name.kind == PolicyKind::ClusterNetworkPolicy && in_force(policy);
        judged(model, subject, direction, address, protocol, port, applies)
    };
    Verdict { egress: end(Direction::Egress), ingress: end(Direction::Ingress) }
}

/// What the enforced policies of `subject` say of a flow from or towards `peer`. `port` is that of the flow's destination.
pub fn side(model: &Model, subject: &ObjectName, direction: Direction, peer: IpAddr, protocol: u8, port: u16) -> Side {
    judged(model, subject, direction, peer, protocol, port, |_, policy| policy.mode == Mode::Enforce)
}

/// What they would say if those in audit mode were enforced, too.
pub fn audited_side(model: &Model, subject: &ObjectName, direction: Direction, peer: IpAddr, protocol: u8, port: u16) -> Side {
    judged(model, subject, direction, peer, protocol, port, |_, _| true)
}

fn judged(
    model: &Model,
    subject: &ObjectName,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
    applies: impl Fn(&PolicyName, &Policy) -> bool,
) -> Side {
    let Some(pod) = model.pods.get(subject) else { return Side::NotJudged };
    let meant: Vec<(&PolicyName, &Policy)> = model
        .policies
        .iter()
        .map(|(name, policy)| (name, &**policy))
        .filter(|(name, policy)| applies(name, policy) && in_pod_set(model, &policy.subject, &name.object.namespace, subject, pod))
        .collect();
    let matching = |name: &PolicyName, policy: &Policy, action: Option<Action>| {
        let rules = rules_of(policy, direction).map(Vec::as_slice).unwrap_or_default();
        let namespace = &name.object.namespace;
        rules.iter().position(|rule| {
            action.is_none_or(|action| rule.action == action)
                && peer_matches(model, namespace, rule, peer)
                && port_matches(model, rule, direction, pod, peer, protocol, port)
        })
    };
    // One tier of ClusterNetworkPolicies: the first rule that matches decides, or passes.
    let first_match = |priority_in_tier: fn(Tier) -> Option<u16>| {
        let mut of_tier: Vec<(u16, &PolicyName, &Policy)> =
            meant.iter().filter_map(|(name, policy)| Some((priority_in_tier(policy.tier)?, *name, *policy))).collect();
        of_tier.sort_by_key(|(priority, name, _)| (*priority, *name));
        for (_, name, policy) in of_tier {
            let Some(rule) = matching(name, policy, None) else { continue };
            return match rules_of(policy, direction).map(|rules| rules[rule].action) {
                Some(Action::Allow) => Some(Side::Allowed { policy: name.clone(), rule }),
                Some(Action::Deny) => Some(Side::Denied { policy: name.clone(), rule }),
                _ => None,
            };
        }
        None
    };
    let admin = first_match(|tier| if let Tier::Admin(priority) = tier { Some(priority) } else { None });
    if let Some(decided) = admin {
        return decided;
    }
    let isolating: Vec<(&PolicyName, &Policy)> =
        meant.iter().filter(|(_, policy)| policy.tier == Tier::Workload && rules_of(policy, direction).is_some()).copied().collect();
    for (name, policy) in &isolating {
        if let Some(rule) = matching(name, policy, Some(Action::Deny)) {
            return Side::Denied { policy: (*name).clone(), rule };
        }
    }
    for (name, policy) in &isolating {
        if let Some(rule) = matching(name, policy, Some(Action::Allow)) {
            return Side::Allowed { policy: (*name).clone(), rule };
        }
    }
    if !isolating.is_empty() {
        return Side::DefaultDenied(isolating.into_iter().map(|(name, _)| name.clone()).collect());
    }
    let baseline = first_match(|tier| if let Tier::Baseline(priority) = tier { Some(priority) } else { None });
    baseline.unwrap_or(Side::NotIsolated)
}

fn rules_of(policy: &Policy, direction: Direction) -> Option<&Vec<Rule>> {
    if direction.way() == Direction::Ingress { policy.ingress.as_ref() } else { policy.egress.as_ref() }
}

/// The pods that have an address.
fn claimants(model: &Model, address: IpAddr) -> Vec<(&ObjectName, &Pod)> {
    model.pods.iter().map(|(name, pod)| (name, &**pod)).filter(|(_, pod)| pod.addresses.contains(&address)).collect()
}

fn in_pod_set(model: &Model, set: &PodSet, own_namespace: &str, name: &ObjectName, pod: &Pod) -> bool {
    let namespace_meant = match &set.namespaces {
        None => name.namespace == own_namespace,
        Some(selector) => match model.namespaces.get(&name.namespace) {
            Some(labels) => labels_match(selector, labels),
            // It was not seen yet. Whatever its labels are, no requirement is broken where there is none.
            None => selector.requirements.is_empty(),
        },
    };
    let account_meant = match &set.accounts {
        None => true,
        Some(accounts) => accounts.iter().any(|account| account.namespace == name.namespace && account.name == pod.service_account),
    };
    namespace_meant && account_meant && labels_match(&set.pods, &pod.labels)
}

fn peer_matches(model: &Model, own_namespace: &str, rule: &Rule, address: IpAddr) -> bool {
    let peers = match &rule.peers {
        Peers::Any => return true,
        Peers::Of(peers) => peers,
    };
    peers.iter().any(|peer| match peer {
        Peer::Identity(name) => match model.identities.get(name) {
            Some(members) => members.iter().any(|member| is_peer(model, own_namespace, member, address)),
            None => rule.action != Action::Allow,
        },
        other => is_peer(model, own_namespace, other, address),
    })
}

/// Whether an address is meant by a peer that is no identity.
fn is_peer(model: &Model, own_namespace: &str, peer: &Peer, address: IpAddr) -> bool {
    let nodes: Vec<_> = model.nodes.iter().filter(|(_, node)| node.addresses.contains(&address)).collect();
    match peer {
        Peer::Block { block, except } => in_block(block, address) && !except.iter().any(|block| in_block(block, address)),
        Peer::Pods(set) => {
            let claimants = claimants(model, address);
            !claimants.is_empty() && claimants.iter().all(|(name, pod)| in_pod_set(model, set, own_namespace, name, pod))
        }
        Peer::Nodes(selector) => !nodes.is_empty() && nodes.iter().all(|(_, node)| labels_match(selector, &node.labels)),
        Peer::Entity(Entity::Nodes) => !nodes.is_empty(),
        Peer::Entity(Entity::Host) => !nodes.is_empty() && nodes.iter().all(|(name, _)| **name == model.host),
        Peer::Entity(Entity::ApiServer) => model.api_servers.contains(&address),
        Peer::Entity(Entity::World) => {
            let in_pod_range = model.nodes.values().any(|node| node.pod_ranges.iter().any(|range| in_block(range, address)));
            nodes.is_empty() && claimants(model, address).is_empty() && !in_pod_range
        }
        Peer::Identity(_) => false,
    }
}

/// Whether one of the rule's ports is that of the flow. Names are those of the destination's pod.
fn port_matches(model: &Model, rule: &Rule, direction: Direction, subject: &Pod, peer: IpAddr, protocol: u8, port: u16) -> bool {
    let ports = match &rule.ports {
        Ports::Any => return true,
        Ports::Of(ports) => ports,
    };
    let destinations = match direction.way() {
        Direction::Ingress => vec![subject],
        _ => claimants(model, peer).into_iter().map(|(_, pod)| pod).collect(),
    };
    for wanted in ports {
        let matched = match wanted {
            Port::All(of) => protocol == protocol_number(*of),
            Port::Range(of, first, last) => protocol == protocol_number(*of) && port >= *first && port <= *last,
            Port::Named(of, name) => {
                let serves = |pod: &&Pod| pod.ports.iter().any(|named| named.name == *name && named.protocol == *of && named.port == port);
                protocol == protocol_number(*of) && !destinations.is_empty() && destinations.iter().all(serves)
            }
        };
        if matched {
            return true;
        }
    }
    false
}

/// Protocol numbers as IANA assigns them.
fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// meta/v1 LabelSelector: all requirements hold.
fn labels_match(selector: &LabelSelector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let mut value = None;
        for (key, found) in labels {
            if *key == requirement.key {
                value = Some(found);
            }
        }
        let holds = match (&requirement.operator, value) {
            (Operator::In(values), Some(value)) => values.iter().any(|wanted| wanted == value),
            (Operator::In(_), None) => false,
            (Operator::NotIn(values), Some(value)) => values.iter().all(|unwanted| unwanted != value),
            (Operator::NotIn(_), None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
        };
        if !holds {
            return false;
        }
    }
    true
}

/// Whether the first bits of both, as many as the prefix is long, are the same, in the same family.
fn in_block(block: &IpNet, address: IpAddr) -> bool {
    let (block_bits, address_bits, width) = match (block.addr(), address) {
        (IpAddr::V4(block), IpAddr::V4(address)) => (u128::from(u32::from(block)), u128::from(u32::from(address)), 32),
        (IpAddr::V6(block), IpAddr::V6(address)) => (u128::from(block), u128::from(address), 128),
        _ => return false,
    };
    let differing = block_bits ^ address_bits;
    let ignored = width - u32::from(block.prefix_len());
    // A shift by the whole width is "nothing is compared".
    differing.checked_shr(ignored).unwrap_or(0) == 0
}
