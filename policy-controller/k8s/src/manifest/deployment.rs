//! The pods of a Deployment.

use crate::convert;
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The most replicas that are read: each is a pod of its own on this machine.
const MOST_REPLICAS: i32 = 1000;

/// The pods `NAME-0` to `NAME-n` of a Deployment, made from its template.
///
/// # Errors
/// A selector that is missing, or that the template's labels do not match; a number of replicas that is negative or
/// beyond reason.
pub(super) fn pods(deployment: &Deployment) -> Result<Vec<Pod>, FieldError> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let field = FieldPath::of("spec.selector");
    let selector = convert::selector(&spec.selector, &field)?;
    let template = spec.template.metadata.unwrap_or_default();
    if selector.requirements.is_empty() {
        return Err(FieldError::new(field, Problem::Missing));
    }
    if !selector.matches(&template.labels.clone().unwrap_or_default()) {
        return Err(FieldError::new(field, Problem::SelectorMissesTemplate));
    }
    let replicas = spec.replicas.unwrap_or(1);
    if !(0..=MOST_REPLICAS).contains(&replicas) {
        return Err(FieldError::new(FieldPath::of("spec.replicas"), Problem::Replicas { replicas, most: MOST_REPLICAS }));
    }
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let pod = |number: i32| Pod {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{number}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.labels.clone(),
            annotations: template.annotations.clone(),
            ..ObjectMeta::default()
        },
        spec: spec.template.spec.clone(),
        status: None,
    };
    Ok((0..replicas).map(pod).collect())
}

/// Where the template stands in a Deployment: the path of a pod's field begins there.
pub(super) fn template_field() -> FieldPath {
    FieldPath::of("spec.template")
}
