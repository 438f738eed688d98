//! The effective rules of one pod: what all the policies that select it say together.

use crate::model::{Model, ObjectName, Peer, Peers, Pod, Policy, Port, Ports, Rule};
use ipnet::IpNet;
use palisade_datapath_core::abi::Direction;
use palisade_identity::{NamespaceMatch, Protocol, Selector};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that the policies say of a subject. Pods of equal rule sets share one subject number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleSet {
    /// About flows towards the subject.
    pub ingress: DirectionRules,
    /// About flows away from the subject.
    pub egress: DirectionRules,
}

/// What the policies say of a subject in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DirectionRules {
    /// The policies that isolate the subject, in order of their names. None: everything is allowed.
    pub isolated_by: Vec<ObjectName>,
    /// The rules of those policies, in order of policy name and rule index: the first that matches names the verdict.
    pub rules: Vec<EffectiveRule>,
}

/// A rule in terms of selectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectiveRule {
    /// The policy that it stands in.
    pub policy: ObjectName,
    /// Its index there.
    pub rule: usize,
    /// Who the other side may be; `None` is every address. An empty set matches nobody.
    pub peers: Option<BTreeSet<EffectivePeer>>,
    /// On which ports; `None` is every port of every protocol, ICMP included. An empty set matches nothing.
    pub ports: Option<BTreeSet<EffectivePort>>,
}

/// One peer in terms of selectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectivePeer {
    /// What the address must match: pods or a block.
    pub selector: Selector,
    /// Blocks that the address must not be in.
    pub except: BTreeSet<IpNet>,
}

/// One port of a rule, names of the subject's own ports resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EffectivePort {
    /// First and last port, both included, in host byte order.
    Range(Protocol, u16, u16),
    /// The port that the peer names so: part of the peer's identity.
    PeerNamed(Protocol, String),
}

impl RuleSet {
    /// The rules of one direction.
    pub fn direction(&self, direction: Direction) -> &DirectionRules {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// The policies of each namespace, in order of their names.
pub struct PoliciesByNamespace<'m>(BTreeMap<&'m str, Vec<(&'m ObjectName, &'m Policy)>>);

impl<'m> PoliciesByNamespace<'m> {
    /// Sorts the policies of `model` by namespace.
    pub fn new(model: &'m Model) -> Self {
        let mut policies: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (name, policy) in &model.policies {
            policies.entry(&name.namespace).or_default().push((name, policy));
        }
        Self(policies)
    }

    /// What all the policies that select `pod` say together.
    pub fn rule_set(&self, name: &ObjectName, pod: &Pod) -> RuleSet {
        let mut set = RuleSet::default();
        for (policy_name, policy) in self.0.get(name.namespace.as_str()).into_iter().flatten() {
            if !policy.subject.matches(&pod.labels) {
                continue;
            }
            if let Some(rules) = &policy.ingress {
                set.ingress.add(policy_name, rules, |port| ingress_ports(port, pod));
            }
            if let Some(rules) = &policy.egress {
                set.egress.add(policy_name, rules, |port| vec![egress_port(port)]);
            }
        }
        set
    }
}

impl DirectionRules {
    fn add(&mut self, policy: &ObjectName, rules: &[Rule], resolve: impl Fn(&Port) -> Vec<EffectivePort>) {
        self.isolated_by.push(policy.clone());
        for (index, rule) in rules.iter().enumerate() {
            self.rules.push(EffectiveRule {
                policy: policy.clone(),
                rule: index,
                peers: match &rule.peers {
                    Peers::Any => None,
                    Peers::Of(peers) => Some(peers.iter().map(|peer| effective_peer(peer, &policy.namespace)).collect()),
                },
                ports: match &rule.ports {
                    Ports::Any => None,
                    Ports::Of(ports) => Some(ports.iter().flat_map(&resolve).collect()),
                },
            });
        }
    }
}

fn effective_peer(peer: &Peer, own_namespace: &str) -> EffectivePeer {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let namespaces = match namespaces {
                Some(selector) => NamespaceMatch::Labels(selector.clone()),
                None => NamespaceMatch::Name(own_namespace.to_owned()),
            };
            EffectivePeer { selector: Selector::Pods { namespaces, pods: pods.clone() }, except: BTreeSet::new() }
        }
        Peer::Block { block, except } => {
            EffectivePeer { selector: Selector::Block(block.trunc()), except: except.iter().map(IpNet::trunc).collect() }
        }
    }
}

/// The destination of ingress is the subject: its own names are known here.
fn ingress_ports(port: &Port, subject: &Pod) -> Vec<EffectivePort> {
    match port {
        Port::All(protocol) => vec![EffectivePort::Range(*protocol, 0, u16::MAX)],
        Port::Range(protocol, first, last) => vec![EffectivePort::Range(*protocol, *first, *last)],
        Port::Named(protocol, name) => subject
            .ports
            .iter()
            .filter(|named| named.protocol == *protocol && named.name == *name)
            .map(|named| EffectivePort::Range(*protocol, named.port, named.port))
            .collect(),
    }
}

/// The destination of egress is the peer: a name is resolved by the peer's identity.
fn egress_port(port: &Port) -> EffectivePort {
    match port {
        Port::All(protocol) => EffectivePort::Range(*protocol, 0, u16::MAX),
        Port::Range(protocol, first, last) => EffectivePort::Range(*protocol, *first, *last),
        Port::Named(protocol, name) => EffectivePort::PeerNamed(*protocol, name.clone()),
    }
}
