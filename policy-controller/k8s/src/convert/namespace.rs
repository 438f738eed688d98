//! Namespace to its labels.

use super::labels::labels;
use crate::field::FieldPath;
use crate::problem::Refusal;
use k8s_openapi::api::core::v1::Namespace;
use palisade_identity::Labels;

/// The label that every namespace has, with its name as value.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The labels of a namespace, [`NAMESPACE_NAME_LABEL`] included: the API server sets it, whatever the object says.
///
/// # Errors
/// A label that is not valid; the labels as they are stand in its place.
pub fn namespace(namespace: &Namespace) -> Result<Labels, Refusal<Labels>> {
    let named = |mut labels: Labels| {
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), namespace.metadata.name.clone().unwrap_or_default());
        labels
    };
    match labels(namespace.metadata.labels.as_ref(), &FieldPath::of("metadata.labels")) {
        Ok(labels) => Ok(named(labels)),
        Err(error) => Err(Refusal { error, closed: Box::new(named(namespace.metadata.labels.clone().unwrap_or_default())) }),
    }
}
