use super::definition::label_selector;
use super::{StrictSelector, Unknown, resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A name for a set of workloads and addresses, by which policies refer to it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Group and version, as the object states them.
    #[serde(default)]
    pub api_version: String,
    /// Its kind, as it states it.
    #[serde(default)]
    pub kind: String,
    /// Standard metadata. Identities live in no namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What belongs to it.
    #[serde(default)]
    pub spec: IdentitySpec,
}

resource!(Identity, IdentitySpec, "palisade.dev", "v1alpha1", "identities", ClusterResourceScope);

/// What belongs to an identity: everything that one of these matches.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.pods) || has(self.networks) || has(self.entities)",
    "message": "an identity needs pods, networks or entities"
}]))]
pub struct IdentitySpec {
    /// Pods, by namespace labels, pod labels and service accounts. Pods on a node's own network are never matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub pods: Option<Vec<PodSelection>>,
    /// Blocks of addresses, whoever owns them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub networks: Option<Vec<Network>>,
    /// What needs no selector. Host is the node of the pod whose policy is asked, Nodes every node, World every address that is
    /// no pod's and no node's, ApiServer the addresses of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "entities")]
    pub entities: Option<Vec<String>>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Pods for which all of these hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.namespaces) || has(self.pods) || has(self.serviceAccounts)",
    "message": "namespaces, pods or serviceAccounts is needed; an empty selector ({}) means all"
}]))]
pub struct PodSelection {
    /// Which namespaces, by their labels. Absent: the policy's own; in an Identity, and beside serviceAccounts, every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label_selector")]
    pub namespaces: Option<StrictSelector>,
    /// Which pods, by their labels. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label_selector")]
    pub pods: Option<StrictSelector>,
    /// The pod runs as one of these. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub service_accounts: Option<Vec<ServiceAccountName>>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A service account.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountName {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A block of addresses.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "a block with its field cidr, such as {cidr: 10.0.0.0/8}")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "isCIDR(self.cidr)", "message": "cidr is no CIDR block: write an address and a prefix length, such as 10.0.0.0/8"},
    {
        "rule": "!has(self.except) || !isCIDR(self.cidr) || self.except.all(inner, isCIDR(inner) && \
            cidr(self.cidr).containsIP(cidr(inner).ip()) && cidr(inner).prefixLength() > cidr(self.cidr).prefixLength())",
        "message": "each except must be a block inside of cidr, and smaller"
    }
]))]
pub struct Network {
    /// The block, e.g. 10.0.0.0/8 or fd00::/8.
    #[schemars(length(max = 43))]
    pub cidr: String,
    /// Blocks inside of it that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 43)))]
    pub except: Option<Vec<String>>,
    /// Fields of a later version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

fn entities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 4,
        "items": {"type": "string", "enum": ["Host", "Nodes", "World", "ApiServer"]}
    })
}
