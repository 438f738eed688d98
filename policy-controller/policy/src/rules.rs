//! The effective rules of one pod: what all the policies that select it say together.

use crate::model::{
    Action, Entity, Mode, Model, ObjectName, Peer, Peers, Pod, PodSet, Policy, PolicyKind, PolicyName, Port, Ports, Rule, Tier,
};
use ipnet::IpNet;
use palisade_datapath_core::abi::Direction;
use palisade_identity::{LabelSelector, Labels, NamespaceMatch, NodeMatch, Protocol, Selector};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Everything that the policies say of a subject. Pods of equal rule sets share one subject number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleSet {
    /// Whether policies in audit mode are among them: then it decides nothing, and no endpoint has its number as its own. Were
    /// the numbers shared, a change could not keep the old rows of one and write the new ones of the other.
    pub audit: bool,
    /// About flows towards the subject.
    pub ingress: DirectionRules,
    /// About flows away from the subject.
    pub egress: DirectionRules,
}

/// What the policies say of a subject in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DirectionRules {
    /// The policies that isolate the subject, in order of their names. None: what no rule decides is allowed.
    pub isolated_by: Vec<PolicyName>,
    /// The rules of all policies in the order in which they are asked: by tier; within [`Tier::Workload`] those that deny first;
    /// then by policy and index. The first of a tier that matches decides for it.
    pub rules: Vec<EffectiveRule>,
}

/// A rule in terms of selectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectiveRule {
    /// When it is asked.
    pub tier: Tier,
    /// The policy that it stands in.
    pub policy: PolicyName,
    /// Its index there.
    pub rule: usize,
    /// Its name there, where it has one.
    pub name: Option<String>,
    /// What is done with a flow that matches.
    pub action: Action,
    /// Who the other side may be; `None` is every address. An empty set matches nobody.
    pub peers: Option<BTreeSet<EffectivePeer>>,
    /// On which ports; `None` is every port of every protocol, ICMP included. An empty set matches nothing.
    pub ports: Option<BTreeSet<EffectivePort>>,
}

/// One peer in terms of selectors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectivePeer {
    /// What the address must match.
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
    /// Whether ClusterNetworkPolicies have rules for the subject.
    pub(crate) fn is_of_cluster(&self) -> bool {
        self.ingress.rules.iter().chain(&self.egress.rules).any(|rule| rule.tier != Tier::Workload)
    }

    /// The rules of one direction. Of what a pod sends to itself only ClusterNetworkPolicies speak.
    pub fn direction(&self, direction: Direction) -> Cow<'_, DirectionRules> {
        let rules = if direction.way() == Direction::Ingress { &self.ingress } else { &self.egress };
        if direction.is_self() { Cow::Owned(rules.of_cluster()) } else { Cow::Borrowed(rules) }
    }
}

impl DirectionRules {
    /// What is left of them without the policies of namespaces.
    fn of_cluster(&self) -> Self {
        let rules = self.rules.iter().filter(|rule| faulty!(rule.tier != Tier::Workload, ItselfByItsNamespace => true)).cloned().collect();
        Self { isolated_by: faulty!(Vec::new(), ItselfIsolated => self.isolated_by.clone()), rules }
    }

    /// Whether the policies say nothing at all.
    pub fn is_silent(&self) -> bool {
        self.isolated_by.is_empty() && self.rules.is_empty()
    }
}

/// The policies of a model, as pods ask them.
pub struct Policies<'m> {
    model: &'m Model,
}

impl<'m> Policies<'m> {
    /// The policies of `model`.
    pub fn new(model: &'m Model) -> Self {
        Self { model }
    }

    /// What one rule about egress would say alone, for whoever wants to know whom its peers match.
    pub(crate) fn rule_set_of(model: &Model, policy: &PolicyName, rule: &Rule) -> RuleSet {
        let mut set = RuleSet::default();
        set.egress.add(model, policy, Tier::Workload, std::slice::from_ref(rule), |port| vec![egress_port(port)]);
        set
    }

    /// What all the enforced policies that select a pod say together.
    pub fn rule_set(&self, name: &ObjectName, pod: &Pod) -> RuleSet {
        self.together(name, pod, false)
    }

    /// What they would say if those in audit mode were enforced, too; `None` where none of these selects the pod.
    pub fn audited_rule_set(&self, name: &ObjectName, pod: &Pod) -> Option<RuleSet> {
        let audited = self.selecting(name, pod).any(|(_, policy)| policy.mode == Mode::Audit);
        audited.then(|| self.together(name, pod, true))
    }

    fn selecting<'s>(&'s self, name: &'s ObjectName, pod: &'s Pod) -> impl Iterator<Item = (&'m PolicyName, &'m Policy)> + 's {
        let labels = self.model.namespaces.get(&name.namespace);
        // Those of the pod's namespace, and those that live in none.
        let of = |kind, namespace: &str| self.model.policies.group(&PolicyName::new(kind, ObjectName::new(namespace, "")));
        let candidates = PolicyKind::ALL.iter().flat_map(move |&kind| of(kind, &name.namespace).chain(of(kind, "")));
        candidates.map(|(policy, body)| (policy, &**body)).filter(move |(policy, body)| selects(&body.subject, policy, name, labels, pod))
    }

    fn together(&self, name: &ObjectName, pod: &Pod, with_audit: bool) -> RuleSet {
        let mut set = RuleSet { audit: with_audit, ..RuleSet::default() };
        let in_force = |policy: &Policy| faulty!(with_audit || policy.mode == Mode::Enforce, AuditEnforced => true);
        // In order of their names, those of the namespace and those of the cluster each for themselves: they share no tier.
        for (policy_name, policy) in self.selecting(name, pod).filter(|(_, policy)| in_force(policy)) {
            if let Some(rules) = &policy.ingress {
                set.ingress.add(self.model, policy_name, policy.tier, rules, |port| ingress_ports(port, pod));
            }
            if let Some(rules) = &policy.egress {
                set.egress.add(self.model, policy_name, policy.tier, rules, |port| vec![egress_port(port)]);
            }
        }
        for direction in [&mut set.ingress, &mut set.egress] {
            // Stable: among equals the order of names and indices stays.
            direction.rules.sort_by_key(|rule| {
                let tier = faulty!(rule.tier, PrioritiesIgnored => if let Tier::Admin(_) = rule.tier { Tier::Admin(0) } else { rule.tier });
                (tier, faulty!(rule.tier == Tier::Workload && rule.action != Action::Deny, DenyInItsPlace => false))
            });
        }
        set
    }
}

pub(crate) fn selects(subject: &PodSet, policy: &PolicyName, name: &ObjectName, labels: Option<&Labels>, pod: &Pod) -> bool {
    let namespace = match &subject.namespaces {
        None => policy.object.namespace == name.namespace,
        // Of a namespace that is not known, nothing can be said of its labels: only who wants none of them selects its pods.
        Some(selector) => labels.map_or(selector.requirements.is_empty(), |labels| selector.matches(labels)),
    };
    let account = subject
        .accounts
        .as_ref()
        .is_none_or(|accounts| accounts.iter().any(|account| account.namespace == name.namespace && account.name == pod.service_account));
    faulty!(namespace, SubjectNamespaceIgnored => true)
        && faulty!(account, SubjectAccountIgnored => true)
        && faulty!(subject.pods.matches(&pod.labels), SubjectLabelsIgnored => true)
}

impl DirectionRules {
    fn add(&mut self, model: &Model, policy: &PolicyName, tier: Tier, rules: &[Rule], resolve: impl Fn(&Port) -> Vec<EffectivePort>) {
        if tier == Tier::Workload {
            self.isolated_by.push(policy.clone());
        }
        for (index, rule) in rules.iter().enumerate() {
            self.rules.push(EffectiveRule {
                tier,
                policy: policy.clone(),
                rule: index,
                name: rule.name.clone(),
                action: rule.action,
                peers: match &rule.peers {
                    Peers::Any => None,
                    Peers::Of(peers) => effective_peers(model, peers, rule.action, &policy.object.namespace),
                },
                ports: match &rule.ports {
                    Ports::Any => None,
                    Ports::Of(ports) => Some(ports.iter().flat_map(&resolve).collect()),
                },
            });
        }
    }
}

/// The peers of a rule, identities replaced by what they are; `None` is everybody.
fn effective_peers(model: &Model, peers: &[Peer], action: Action, own_namespace: &str) -> Option<BTreeSet<EffectivePeer>> {
    let mut effective = BTreeSet::new();
    for peer in peers {
        match peer {
            Peer::Identity(name) => match model.identities.get(name) {
                Some(members) => effective.extend(members.iter().filter_map(|member| effective_peer(model, member, own_namespace))),
                None if action == Action::Allow => {}
                None => return faulty!(None, MissingIdentityDeniesNobody => Some(effective)),
            },
            other => effective.extend(effective_peer(model, other, own_namespace)),
        }
    }
    Some(effective)
}

fn effective_peer(model: &Model, peer: &Peer, own_namespace: &str) -> Option<EffectivePeer> {
    let selector = match peer {
        Peer::Pods(PodSet { namespaces, pods, accounts }) => {
            let namespaces = match namespaces {
                Some(selector) => NamespaceMatch::Labels(selector.clone()),
                None => faulty!(
                    NamespaceMatch::Name(own_namespace.to_owned()),
                    OwnNamespaceIsEvery => NamespaceMatch::Labels(LabelSelector::everything())
                ),
            };
            Selector::Pods { namespaces, pods: pods.clone(), accounts: accounts.clone() }
        }
        Peer::Block { block, except } => {
            let except = faulty!(except.iter().map(IpNet::trunc).collect(), ExceptDropped => BTreeSet::new());
            return Some(EffectivePeer { selector: Selector::Block(block.trunc()), except });
        }
        Peer::Nodes(labels) => Selector::Nodes(NodeMatch::Labels(labels.clone())),
        Peer::Entity(Entity::Host) => faulty!(
            Selector::Nodes(NodeMatch::Name(model.host.clone())),
            HostIsEveryNode => Selector::Nodes(NodeMatch::Labels(LabelSelector::everything()))
        ),
        Peer::Entity(Entity::Nodes) => Selector::Nodes(NodeMatch::Labels(LabelSelector::everything())),
        Peer::Entity(Entity::World) => Selector::World,
        Peer::Entity(Entity::ApiServer) => Selector::ApiServer,
        // An identity is made of other members.
        Peer::Identity(_) => return None,
    };
    Some(EffectivePeer { selector, except: BTreeSet::new() })
}

/// The destination of ingress is the subject: its own names are known here.
fn ingress_ports(port: &Port, subject: &Pod) -> Vec<EffectivePort> {
    match port {
        Port::All(protocol) => vec![EffectivePort::Range(*protocol, 0, u16::MAX)],
        Port::Range(protocol, first, last) => vec![EffectivePort::Range(*protocol, *first, *last)],
        Port::Named(protocol, name) => subject
            .ports
            .iter()
            .filter(|named| faulty!(named.protocol == *protocol, NamedPortOfAnyProtocol => true) && named.name == *name)
            .map(|named| EffectivePort::Range(*protocol, named.port, named.port))
            .collect(),
    }
}

/// The destination of egress is the peer: a name is resolved by the peer's identity.
fn egress_port(port: &Port) -> EffectivePort {
    match port {
        Port::All(protocol) => EffectivePort::Range(*protocol, faulty!(0, AllPortsButZero => 1), u16::MAX),
        Port::Range(protocol, first, last) => EffectivePort::Range(*protocol, *first, *last),
        Port::Named(protocol, name) => EffectivePort::PeerNamed(*protocol, name.clone()),
    }
}
