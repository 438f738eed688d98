use crate::index::Kind;
use crate::sum::Standing;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the agents make of the policy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityPolicyStatus {
    /// Accepted: it can be used as it is written. Enforced: every node that reports enforces it.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// Pods that it selects.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub pods_selected: i64,
    /// Nodes that enforce this generation of it as it is written.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub nodes_enforcing: i64,
    /// Nodes that report.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub nodes: i64,
}

/// What the agents make of the identity.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// Accepted: it can be used as it is written. Enforced: every node that reports knows it.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// Pods that it matches.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub pods: i64,
    /// Addresses of pods, nodes and the API server that it matches.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub addresses: i64,
}

/// The status of an object, as its API has it. `since` is when each condition came to be as it is, in seconds since the Unix epoch.
pub fn status(kind: Kind, standing: &Standing, since: [i64; 2]) -> Value {
    let conditions: Vec<Condition> = standing
        .conditions
        .iter()
        .zip(since)
        .map(|(condition, since)| Condition {
            type_: condition.of.name().to_owned(),
            status: if condition.holds { "True" } else { "False" }.to_owned(),
            observed_generation: standing.generation,
            last_transition_time: Time(Timestamp::from_second(since).unwrap_or_default()),
            reason: condition.reason.name().to_owned(),
            message: condition.message.clone(),
        })
        .collect();
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let (counts, told) = (standing.counts, &standing.enforcement);
    match kind {
        Kind::Identity => json!(IdentityStatus { conditions, pods: number(counts.pods), addresses: number(counts.addresses) }),
        Kind::IdentityPolicy => json!(IdentityPolicyStatus {
            conditions,
            pods_selected: number(counts.pods),
            nodes_enforcing: number(told.enforcing),
            nodes: number(told.nodes),
        }),
        _ => json!({ "conditions": conditions }),
    }
}

/// A list of meta/v1 Condition.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 316},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                "message": {"type": "string", "maxLength": 32768}
            }
        }
    })
}
