use super::definition::label_selector;
use super::identity::{Network, PodSelection};
use super::{StrictSelector, Unknown, resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// A policy by identities. It stands beside NetworkPolicy: what either allows is allowed, and a rule that denies beats all that allow.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityPolicy {
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
    pub spec: IdentityPolicySpec,
}

resource!(IdentityPolicy, IdentityPolicySpec, "palisade.dev", "v1alpha1", "identitypolicies", NamespaceResourceScope);

/// What an IdentityPolicy says. A direction that is there isolates the subject: what no rule of any policy allows is denied.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.ingress) || has(self.egress)",
    "message": "a policy needs ingress or egress; an empty list isolates"
}]))]
pub struct IdentityPolicySpec {
    /// The pods of the policy's namespace whose policy this is.
    pub subject: IdentitySubject,
    /// Enforce decides. Audit computes the verdict, reports it and changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Enforce", "Audit"], "default" = "Enforce"))]
    pub mode: Option<String>,
    /// Rules about flows towards the subject. Absent: the policy says nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub ingress: Option<Vec<IdentityRule>>,
    /// Rules about flows away from the subject. Absent: the policy says nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub egress: Option<Vec<IdentityRule>>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// The pods for which all of these hold; none: every pod of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentitySubject {
    /// Which pods, by their labels. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label_selector")]
    pub pods: Option<StrictSelector>,
    /// The pod runs as one of these service accounts of the namespace. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    pub service_accounts: Option<Vec<String>>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// What is done with flows that match one of the peers and one of the ports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityRule {
    /// A name that verdicts show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub name: Option<String>,
    /// Allow or Deny. A rule that denies beats all that allow.
    #[schemars(extend("enum" = ["Allow", "Deny"]))]
    pub action: String,
    /// Who the other side may be. Absent: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub peers: Option<Vec<IdentityPeer>>,
    /// On which ports of the destination. Absent: every port of every protocol, ICMP included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub ports: Option<Vec<IdentityPort>>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// One peer: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.identity), has(self.pods), has(self.network), has(self.entity)].filter(there, there).size() == 1",
    "message": "a peer is exactly one of identity, pods, network and entity"
}]))]
pub struct IdentityPeer {
    /// The Identity of this name. While there is none, a rule that allows matches nobody by it, and one that denies everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub identity: Option<String>,
    /// Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelection>,
    /// A block of addresses, whoever owns them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What needs no selector; see Identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Host", "Nodes", "World", "ApiServer"]))]
    pub entity: Option<String>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Ports of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.endPort) || has(self.port)", "message": "a range needs its first port in the field port"},
    {"rule": "!has(self.endPort) || !has(self.port) || self.endPort >= self.port", "message": "the range ends before its first port"},
    {"rule": "!has(self.name) || !has(self.port)", "message": "a port has a number or a name, not both"}
]))]
pub struct IdentityPort {
    /// TCP, UDP or SCTP; TCP where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["TCP", "UDP", "SCTP"]))]
    pub protocol: Option<String>,
    /// The port, or the first of a range. Absent, and no name: every port of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The last port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
    /// The port that the destination pod names so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub name: Option<String>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// The number of a port. In a NetworkPolicy its name may stand here, too, so whoever writes one is told where it belongs.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    match Option::<IntOrString>::deserialize(deserializer)? {
        None => Ok(None),
        Some(IntOrString::Int(number)) => Ok(Some(number)),
        Some(IntOrString::String(text)) if text.parse::<i32>().is_ok() => {
            Err(D::Error::custom(format!("a port is a number, which is written without quotes: {text}")))
        }
        Some(IntOrString::String(text)) => Err(D::Error::custom(format!("a port is a number; a named port is written name: {text}"))),
    }
}
