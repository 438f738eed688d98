use crate::{LabelSelector, Labels, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Anything that a policy can name and an address can match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// The addresses of pods, by where the pod lives, by its labels and by its service account.
    Pods {
        /// The pod's namespace.
        namespaces: NamespaceMatch,
        /// The pod's labels.
        pods: LabelSelector,
        /// The pod's service account is one of these; `None` is any.
        accounts: Option<BTreeSet<ServiceAccount>>,
    },
    /// The addresses of nodes.
    Nodes(NodeMatch),
    /// The addresses of nobody in the cluster: of no pod and of no node, and in no node's pod range.
    World,
    /// The addresses of the API server.
    ApiServer,
    /// The addresses inside a block, whoever owns them. Host bits are masked.
    Block(IpNet),
    /// The addresses of pods that give a port this name, protocol and number.
    NamedPort {
        /// The name.
        name: String,
        /// The protocol.
        protocol: Protocol,
        /// The number.
        port: u16,
    },
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Which nodes a selector means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMatch {
    /// The node of this name.
    Name(String),
    /// Every node with labels that match.
    Labels(LabelSelector),
}

impl NodeMatch {
    /// Whether the node `name` is meant.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Labels(selector) => selector.matches(labels),
        }
    }
}

/// Which namespaces a selector means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamespaceMatch {
    /// The namespace of this name.
    Name(String),
    /// Every namespace with labels that match.
    Labels(LabelSelector),
}

impl NamespaceMatch {
    /// Whether the namespace `name` is meant. `labels` is `None` where the namespace is not known (yet): then nothing can be said of its labels,
    /// and only a selector that wants none of them matches it.
    pub fn matches(&self, name: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Labels(selector) => labels.map_or(selector.requirements.is_empty(), |labels| selector.matches(labels)),
        }
    }
}

/// The set of selectors that match an address.
///
/// Two addresses of equal signature cannot be told apart by any policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signature(pub BTreeSet<Selector>);

impl Signature {
    /// Whether no selector matches: an address that only rules without peers speak of.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Selector> for Signature {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        Self(selectors.into_iter().collect())
    }
}
