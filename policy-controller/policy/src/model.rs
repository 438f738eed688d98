//! What is known of the cluster, in the words of policy.

use crate::shared::SharedMap;
use ipnet::IpNet;
use palisade_identity::{LabelSelector, Labels, Protocol, ServiceAccount};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl ObjectName {
    /// The name of an object that lives in no namespace.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A kind of policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum PolicyKind {
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// palisade.dev/v1alpha1 IdentityPolicy.
    IdentityPolicy,
    /// policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    /// Every kind, in order.
    pub const ALL: &[Self] = &[Self::NetworkPolicy, Self::IdentityPolicy, Self::ClusterNetworkPolicy];
}

impl std::fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::IdentityPolicy => "IdentityPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        })
    }
}

/// Kind and name of a policy. Policies are listed in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PolicyName {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its name.
    pub object: ObjectName,
}

impl PolicyName {
    /// The policy of a kind and name.
    pub const fn new(kind: PolicyKind, object: ObjectName) -> Self {
        Self { kind, object }
    }

    /// Under which name a model holds what isolates the pods of a version that is not in force, beside the last good version that is: a name that
    /// no object has, and that says to people what it is.
    pub fn refused_version(&self) -> Self {
        self.stand_in("refused version")
    }

    /// The same of a version that has no room in the maps: while it is held back a later one may be refused, and both isolate.
    pub fn held_version(&self) -> Self {
        self.stand_in("version without room")
    }

    fn stand_in(&self, of: &str) -> Self {
        let ObjectName { namespace, name } = &self.object;
        Self::new(self.kind, ObjectName::new(namespace.clone(), format!("{name} ({of})")))
    }

    /// Whether it is such a name. No object has a space in its name.
    pub fn is_stand_in(&self) -> bool {
        self.object.name.contains(' ')
    }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.object)
    }
}

/// Everything that a verdict may depend on. A copy shares what it has in common with the original.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Name of the node whose pods are judged: [`Entity::Host`].
    pub host: String,
    /// Labels of each namespace, by name.
    pub namespaces: SharedMap<String, Labels>,
    /// The pods of the cluster that have a network of their own and whose containers may run.
    ///
    /// Pods on the host's network, and those that have succeeded or failed, are not here.
    pub pods: SharedMap<ObjectName, Arc<Pod>>,
    /// The nodes, by name.
    pub nodes: SharedMap<String, Node>,
    /// The addresses of the API server.
    pub api_servers: BTreeSet<IpAddr>,
    /// The identities that policies name: each is everything that one of its members matches.
    pub identities: SharedMap<String, Vec<Peer>>,
    /// The policies.
    pub policies: SharedMap<PolicyName, Arc<Policy>>,
}

/// A pod that is a subject or a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Name of its service account, which lives in its namespace.
    pub service_account: String,
    /// Its addresses, at most one per family; empty until they are known.
    pub addresses: Vec<IpAddr>,
    /// The ports that its containers name.
    pub ports: Vec<NamedPort>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses; in a model, without those that a pod may have.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges, at most one per family; in a model, those that nobody else's claim goes before. What is in them is not the world.
    pub pod_ranges: Vec<IpNet>,
    /// When its object was made, in seconds since the Unix epoch; 0 where nobody said. Of two nodes that claim the same, the older has it.
    pub created: i64,
}

/// A policy of any kind, defaults applied.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// When it is asked.
    pub tier: Tier,
    /// Whether it decides or only says what it would decide.
    pub mode: Mode,
    /// The pods whose policy this is.
    pub subject: PodSet,
    /// The rules about flows towards the subject; `None` where the policy says nothing of ingress. In [`Tier::Workload`] rules,
    /// even none, isolate the subject.
    pub ingress: Option<Vec<Rule>>,
    /// The rules about flows away from the subject; likewise.
    pub egress: Option<Vec<Rule>>,
}

/// When a policy is asked: in this order, until one decides. What nobody decides is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// By priority, the lowest number first, then by name, then in the order of the rules: the first rule that matches decides.
    Admin(u16),
    /// A rule that denies beats all that allow. What no rule allows is denied to a subject that is isolated.
    Workload,
    /// As [`Tier::Admin`], for what the tiers before have left open.
    Baseline(u16),
}

/// Whether a policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// Verdicts are as if it were absent; what it would have decided is reported.
    Audit,
}

/// A set of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSet {
    /// Which namespaces, by their labels; `None` is the policy's own.
    pub namespaces: Option<LabelSelector>,
    /// Which pods, by their labels.
    pub pods: LabelSelector,
    /// Which pods, by their service accounts; `None` is any.
    pub accounts: Option<BTreeSet<ServiceAccount>>,
}

/// One rule: what is done with a flow that matches a peer and a port.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// What is done.
    pub action: Action,
    /// Who the other side may be.
    pub peers: Peers,
    /// On which ports of the destination.
    pub ports: Ports,
}

impl Policy {
    /// The names of the identities that its rules name.
    pub fn identities(&self) -> impl Iterator<Item = &String> {
        [&self.ingress, &self.egress].into_iter().flatten().flatten().flat_map(Rule::identities)
    }

    /// What stands for the policy where it cannot be put into force: it allows nothing, and denies all that it could have denied.
    pub fn closed(&self) -> Self {
        let rules = |rules: &Option<Vec<Rule>>| {
            let rules = rules.as_ref()?;
            Some(if rules.iter().any(|rule| rule.action != Action::Allow) { vec![Rule::deny_all()] } else { Vec::new() })
        };
        Self { ingress: rules(&self.ingress), egress: rules(&self.egress), ..self.clone() }
    }
}

impl Rule {
    /// The names of the identities that it names.
    pub fn identities(&self) -> impl Iterator<Item = &String> {
        let peers = if let Peers::Of(peers) = &self.peers { peers.as_slice() } else { &[] };
        peers.iter().filter_map(|peer| if let Peer::Identity(name) = peer { Some(name) } else { None })
    }

    /// The rule that denies everything, in place of rules that cannot be used; its name says so in verdicts.
    pub fn deny_all() -> Self {
        Self { name: Some("in place of what cannot be used".to_owned()), action: Action::Deny, peers: Peers::Any, ports: Ports::Any }
    }

    /// A rule without a name that allows.
    pub const fn allow(peers: Peers, ports: Ports) -> Self {
        Self { name: None, action: Action::Allow, peers, ports }
    }
}

/// What a rule does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The flow passes; no later tier is asked.
    Allow,
    /// The flow is refused; no later tier is asked.
    Deny,
    /// The next tier decides. Only in [`Tier::Admin`] and [`Tier::Baseline`].
    Pass,
}

/// The peers of a rule. `Of` an empty list matches nobody: it is never the same as `Any`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peers {
    /// Every address, pods or not.
    Any,
    /// What one of these matches.
    Of(Vec<Peer>),
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Pods.
    Pods(PodSet),
    /// Addresses in `block` and in none of `except`.
    Block {
        /// The block, host bits masked.
        block: IpNet,
        /// Blocks that this peer does not match.
        except: Vec<IpNet>,
    },
    /// The addresses of nodes, by the nodes' labels.
    Nodes(LabelSelector),
    /// What everybody knows by name.
    Entity(Entity),
    /// What the identity of this name matches. Where there is none of this name, a rule that allows matches nobody by it, and
    /// a rule that denies matches everybody: a name that is gone must not open anything.
    Identity(String),
}

/// Something that needs no selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// The node that the subject runs on.
    Host,
    /// Every node.
    Nodes,
    /// Every address that is no pod's and no node's, and in no node's pod range.
    World,
    /// The addresses of the API server.
    ApiServer,
}

/// The ports of a rule. `Of` an empty list matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// Every port of every protocol, ICMP included.
    Any,
    /// What one of these matches.
    Of(Vec<Port>),
}

/// One port of a rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Port {
    /// Every port of a protocol.
    All(Protocol),
    /// First and last port, both included.
    Range(Protocol, u16, u16),
    /// The port that the destination pod names so, for this protocol.
    Named(Protocol, String),
}
