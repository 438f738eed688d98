use super::{StrictSelector, Unknown, resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy, as far as policy depends on it. Its schema is upstream's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkPolicy {
    /// Group and version, as the object states them.
    #[serde(default)]
    pub api_version: String,
    /// Its kind, as it states it.
    #[serde(default)]
    pub kind: String,
    /// Standard metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: ClusterNetworkPolicySpec,
}

resource!(
    ClusterNetworkPolicy,
    ClusterNetworkPolicySpec,
    "policy.networking.k8s.io",
    "v1alpha2",
    "clusternetworkpolicies",
    ClusterResourceScope
);

/// What a ClusterNetworkPolicy says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` or `Baseline`.
    #[serde(default)]
    pub tier: String,
    /// 0 to 1000; the lowest is asked first.
    #[serde(default)]
    pub priority: i32,
    /// The pods whose policy this is.
    #[serde(default, deserialize_with = "subject")]
    pub subject: ClusterSubject,
    /// About flows towards the subject.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "rules")]
    pub ingress: Option<Vec<ClusterRule>>,
    /// About flows away from the subject.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "rules")]
    pub egress: Option<Vec<ClusterRule>>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A rule whose known fields have another form than this version knows is not understood, as one with an unknown field is: the others of the policy
/// still hold.
fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ClusterRule>>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => None,
        Value::Array(rules) => Some(rules.into_iter().map(understood).collect()),
        other => Some(vec![understood(other)]),
    })
}

fn subject<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ClusterSubject, D::Error> {
    Ok(understood(Value::deserialize(deserializer)?))
}

/// What can be read of an object; of its fields that cannot, each counts as unknown.
fn understood<T: DeserializeOwned + Default + Unread>(value: Value) -> T {
    if let Ok(read) = T::deserialize(&value) {
        return read;
    }
    let Value::Object(fields) = value else { return T::default() };
    let (mut readable, mut unread) = (Map::new(), Unknown::new());
    for (name, value) in fields {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        match T::deserialize(alone) {
            Ok(_) => drop(readable.insert(name, value)),
            Err(_) => drop(unread.insert(name, value)),
        }
    }
    let mut read = T::deserialize(Value::Object(readable)).unwrap_or_default();
    read.unknown().extend(unread);
    read
}

/// What keeps the fields of a later version.
trait Unread {
    fn unknown(&mut self) -> &mut Unknown;
}

impl Unread for ClusterRule {
    fn unknown(&mut self) -> &mut Unknown {
        &mut self.unknown
    }
}

impl Unread for ClusterSubject {
    fn unknown(&mut self) -> &mut Unknown {
        &mut self.unknown
    }
}

/// Exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSubject {
    /// All pods of the namespaces with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<StrictSelector>,
    /// Pods by namespace and pod labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Pods by namespace and pod labels; an empty selector matches all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedPod {
    /// The namespace's labels.
    #[serde(default)]
    pub namespace_selector: StrictSelector,
    /// The pod's labels.
    #[serde(default)]
    pub pod_selector: StrictSelector,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A rule of either direction: `from` stands in rules of ingress, `to` in those of egress.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRule {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    #[serde(default)]
    pub action: String,
    /// Sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<ClusterPeer>>,
    /// Destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<ClusterPeer>>,
    /// Protocols and ports; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Exactly one of these; `nodes`, `networks` and `domainNames` only in egress.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPeer {
    /// All pods of the namespaces with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<StrictSelector>,
    /// Pods by namespace and pod labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// The addresses of nodes with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<StrictSelector>,
    /// Blocks of addresses; they match pods too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Domain names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<DestinationPort>,
    /// UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<DestinationPort>,
    /// SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sctp: Option<DestinationPort>,
    /// The port that the destination pod names so, whatever its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What must hold of a packet of the protocol.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationPort {
    /// Its destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPort>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPort {
    /// One port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// A range, both ends included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<ClusterPortRange>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A range of ports, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPortRange {
    /// The first.
    pub start: i32,
    /// The last.
    pub end: i32,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}
