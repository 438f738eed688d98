//! CustomResourceDefinitions of our own objects, made from their types.

use super::{GROUP, IdentityPolicySpec, IdentityPolicyStatus, IdentitySpec, IdentityStatus, VERSION};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// The definitions, as the API server takes them: file name and object.
pub fn definitions() -> Vec<(&'static str, Value)> {
    let column = |name: &str, of: &str, path: &str| json!({"name": name, "type": of, "jsonPath": path});
    let condition = |name: &str| column(name, "string", &format!(".status.conditions[?(@.type==\"{name}\")].status"));
    let (accepted, enforced) = (condition("Accepted"), condition("Enforced"));
    let age = column("Age", "date", ".metadata.creationTimestamp");
    let identity = Names { kind: "Identity", plural: "identities", short: "pid", scope: "Cluster" };
    let (pods, addresses) = (column("Pods", "integer", ".status.pods"), column("Addresses", "integer", ".status.addresses"));
    let of_identity = [accepted.clone(), enforced.clone(), pods, addresses, age.clone()];
    let policy = Names { kind: "IdentityPolicy", plural: "identitypolicies", short: "idpol", scope: "Namespaced" };
    let mode = column("Mode", "string", ".spec.mode");
    let (pods, nodes) = (column("Pods", "integer", ".status.podsSelected"), column("Nodes", "integer", ".status.nodesEnforcing"));
    let of_policy = [mode, accepted, enforced, pods, nodes, age];
    vec![
        ("identities.yaml", definition::<IdentitySpec, IdentityStatus>(&identity, &of_identity)),
        ("identitypolicies.yaml", definition::<IdentityPolicySpec, IdentityPolicyStatus>(&policy, &of_policy)),
    ]
}

/// What a kind is called.
struct Names {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    scope: &'static str,
}

fn definition<Spec: JsonSchema, Status: JsonSchema>(names: &Names, columns: &[Value]) -> Value {
    let Names { kind, plural, short, scope } = names;
    let spec = schema::<Spec>();
    let description = spec["description"].clone();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_lowercase(),
                "shortNames": [short],
                "categories": ["palisade"]
            },
            "scope": scope,
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "description": description,
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": spec,
                        "status": schema::<Status>()
                    }
                }}
            }]
        }
    })
}

/// The schema of a type as a structural schema of Kubernetes: no references, no null, no formats that it does not know.
fn schema<S: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<S>().to_value();
    structural(&mut schema);
    schema
}

fn structural(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("title");
            fields.remove("nullable");
            fields.values_mut().for_each(structural);
        }
        Value::Array(items) => items.iter_mut().for_each(structural),
        _ => {}
    }
}

/// meta/v1 LabelSelector.
pub(super) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {"type": "object", "maxProperties": 32, "additionalProperties": {"type": "string", "maxLength": 63}},
            "matchExpressions": {
                "type": "array",
                "maxItems": 32,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string", "maxLength": 317},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 63}}
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                        "message": "In and NotIn need values, Exists and DoesNotExist take none"
                    }]
                }
            }
        }
    })
}
