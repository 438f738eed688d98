use super::Unknown;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// meta/v1 LabelSelector as the kinds of this module hold it. Kubernetes' libraries drop the fields that they do not know, and a selector
/// that has lost a condition matches more than was meant.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StrictSelector {
    /// Labels that must be there with these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Conditions, all of which must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_expressions: Option<Vec<StrictRequirement>>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A condition of a [`StrictSelector`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StrictRequirement {
    /// The label's key.
    #[serde(default)]
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    #[serde(default)]
    pub operator: String,
    /// What `In` and `NotIn` compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<String>>,
    /// Fields of a later version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// As far as Kubernetes' type has kept it.
impl From<&LabelSelector> for StrictSelector {
    fn from(selector: &LabelSelector) -> Self {
        let requirement = |it: &LabelSelectorRequirement| StrictRequirement {
            key: it.key.clone(),
            operator: it.operator.clone(),
            values: it.values.clone(),
            unknown: Unknown::new(),
        };
        Self {
            match_labels: selector.match_labels.clone(),
            match_expressions: selector.match_expressions.as_ref().map(|all| all.iter().map(requirement).collect()),
            unknown: Unknown::new(),
        }
    }
}
