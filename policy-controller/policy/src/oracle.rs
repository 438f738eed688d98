//! The plain reading of the Kubernetes rules: what every other answer is held against.
//!
//! Linear in everything and never optimised. It shares no matching code with the compiler: labels, blocks and ports
//! are compared here once more, written out from the API's documentation.

use crate::model::{Model, ObjectName, Peer, Peers, Pod, Policy, Port, Ports, Rule};
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
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// A rule allows the flow: the first in order of policy name and rule index.
    Allowed {
        /// The policy.
        policy: ObjectName,
        /// Index of the rule.
        rule: usize,
    },
    /// These policies isolate the pod, and no rule of theirs allows the flow.
    Denied(Vec<ObjectName>),
}

impl Side {
    /// Whether this side lets the flow pass.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Denied(_))
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

/// What the policies of `subject` say of a flow from or towards `peer`. `port` is that of the flow's destination.
pub fn side(model: &Model, subject: &ObjectName, direction: Direction, peer: IpAddr, protocol: u8, port: u16) -> Side {
    let Some(pod) = model.pods.get(subject) else { return Side::NotJudged };
    let mut isolating = Vec::new();
    let mut first = None;
    // Policies come in order of their names.
    for (name, policy) in &model.policies {
        if name.namespace != subject.namespace || !labels_match(&policy.subject, &pod.labels) {
            continue;
        }
        let Some(rules) = rules_of(policy, direction) else { continue };
        isolating.push(name.clone());
        for (index, rule) in rules.iter().enumerate() {
            if first.is_none()
                && peer_matches(model, &name.namespace, rule, peer)
                && port_matches(model, rule, direction, pod, peer, protocol, port)
            {
                first = Some(Side::Allowed { policy: name.clone(), rule: index });
            }
        }
    }
    match (isolating.is_empty(), first) {
        (true, _) => Side::NotIsolated,
        (false, Some(allowed)) => allowed,
        (false, None) => Side::Denied(isolating),
    }
}

fn rules_of(policy: &Policy, direction: Direction) -> Option<&Vec<Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

/// The pods that have an address.
fn claimants(model: &Model, address: IpAddr) -> Vec<(&ObjectName, &Pod)> {
    model.pods.iter().filter(|(_, pod)| pod.addresses.contains(&address)).collect()
}

fn peer_matches(model: &Model, own_namespace: &str, rule: &Rule, address: IpAddr) -> bool {
    let peers = match &rule.peers {
        Peers::Any => return true,
        Peers::Of(peers) => peers,
    };
    for peer in peers {
        let matched = match peer {
            Peer::Block { block, except } => in_block(block, address) && !except.iter().any(|block| in_block(block, address)),
            Peer::Pods { namespaces, pods } => {
                let claimants = claimants(model, address);
                !claimants.is_empty()
                    && claimants.iter().all(|(name, pod)| {
                        let namespace_meant = match namespaces {
                            None => name.namespace == own_namespace,
                            Some(selector) => match model.namespaces.get(&name.namespace) {
                                Some(labels) => labels_match(selector, labels),
                                None => false,
                            },
                        };
                        namespace_meant && labels_match(pods, &pod.labels)
                    })
            }
        };
        if matched {
            return true;
        }
    }
    false
}

/// Whether one of the rule's ports is that of the flow. Names are those of the destination's pod.
fn port_matches(model: &Model, rule: &Rule, direction: Direction, subject: &Pod, peer: IpAddr, protocol: u8, port: u16) -> bool {
    let ports = match &rule.ports {
        Ports::Any => return true,
        Ports::Of(ports) => ports,
    };
    let destinations = match direction {
        Direction::Ingress => vec![subject],
        Direction::Egress => claimants(model, peer).into_iter().map(|(_, pod)| pod).collect(),
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
