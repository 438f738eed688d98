//! What is known of the cluster, in the words of policy.

use ipnet::IpNet;
use palisade_identity::{LabelSelector, Labels, Protocol};
use std::collections::BTreeMap;
use std::net::IpAddr;

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

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that a verdict may depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Labels of each namespace, by name.
    pub namespaces: BTreeMap<String, Labels>,
    /// The pods of the cluster that have a network of their own and whose containers may run.
    ///
    /// Pods on the host's network, and those that have succeeded or failed, are not here.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// The nodes, by name.
    pub nodes: BTreeMap<String, Node>,
    /// The policies.
    pub policies: BTreeMap<ObjectName, Policy>,
}

/// A pod that is a subject or a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
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
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges, at most one per family.
    pub pod_ranges: Vec<IpNet>,
}

/// A NetworkPolicy (networking.k8s.io/v1), defaults applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The pods of the policy's namespace whose policy this is.
    pub subject: LabelSelector,
    /// The rules about flows towards the subject; `None` where the policy does not isolate ingress.
    pub ingress: Option<Vec<Rule>>,
    /// The rules about flows away from the subject; `None` where the policy does not isolate egress.
    pub egress: Option<Vec<Rule>>,
}

/// One rule: a flow that matches a peer and a port is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who the other side may be.
    pub peers: Peers,
    /// On which ports of the destination.
    pub ports: Ports,
}

/// The peers of a rule. `Of` an empty list matches nobody: it is never the same as `Any`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every address, pods or not.
    Any,
    /// What one of these matches.
    Of(Vec<Peer>),
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods. Without `namespaces`, those of the policy's own namespace.
    Pods {
        /// Which namespaces, by their labels.
        namespaces: Option<LabelSelector>,
        /// Which pods, by their labels.
        pods: LabelSelector,
    },
    /// Addresses in `block` and in none of `except`.
    Block {
        /// The block, host bits masked.
        block: IpNet,
        /// Blocks that this peer does not match.
        except: Vec<IpNet>,
    },
}

/// The ports of a rule. `Of` an empty list matches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every port of every protocol, ICMP included.
    Any,
    /// What one of these matches.
    Of(Vec<Port>),
}

/// One port of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Every port of a protocol.
    All(Protocol),
    /// First and last port, both included.
    Range(Protocol, u16, u16),
    /// The port that the destination pod names so, for this protocol.
    Named(Protocol, String),
}
