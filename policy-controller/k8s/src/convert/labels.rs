//! Labels and label selectors.

use super::all_known;
use super::names::is_dns_name;
use crate::api::{StrictRequirement, StrictSelector};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;
use palisade_identity::{LabelSelector, Labels, Operator, Requirement};
use std::collections::{BTreeMap, BTreeSet};

/// The labels of an object.
///
/// # Errors
/// A key or a value that the API server would not take.
pub fn labels(labels: Option<&BTreeMap<String, String>>, field: &FieldPath) -> Result<Labels, FieldError> {
    for (key, value) in labels.into_iter().flatten() {
        check_key(key, || field.key(key))?;
        check_value(value, || field.key(key))?;
    }
    Ok(labels.cloned().unwrap_or_default())
}

/// A label selector.
///
/// # Errors
/// An operator that does not exist, values where none may be or none where some must be, a bad key or value.
pub fn selector(selector: &ApiSelector, field: &FieldPath) -> Result<LabelSelector, FieldError> {
    read(&StrictSelector::from(selector), field)
}

/// A label selector of an object of `kind` whose unknown fields were kept: there may be none.
pub(super) fn strict_selector(selector: &StrictSelector, kind: &str, field: &FieldPath) -> Result<LabelSelector, FieldError> {
    all_known(&selector.unknown, kind, field)?;
    for (index, it) in selector.match_expressions.iter().flatten().enumerate() {
        all_known(&it.unknown, kind, &field.key("matchExpressions").index(index))?;
    }
    read(selector, field)
}

fn read(selector: &StrictSelector, field: &FieldPath) -> Result<LabelSelector, FieldError> {
    let mut requirements = BTreeSet::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        let field = || field.key("matchLabels").key(key);
        check_key(key, field)?;
        check_value(value, field)?;
        requirements.insert(Requirement { key: key.clone(), operator: Operator::In([value.clone()].into()) });
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        requirements.insert(requirement(expression, &field.key("matchExpressions").index(index))?);
    }
    Ok(LabelSelector { requirements })
}

fn requirement(expression: &StrictRequirement, field: &FieldPath) -> Result<Requirement, FieldError> {
    check_key(&expression.key, || field.key("key"))?;
    let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
    let operator = match expression.operator.as_str() {
        "In" if values.is_empty() => return Err(without_values("In", field)),
        "NotIn" if values.is_empty() => return Err(without_values("NotIn", field)),
        "Exists" if !values.is_empty() => return Err(with_values("Exists", field)),
        "DoesNotExist" if !values.is_empty() => return Err(with_values("DoesNotExist", field)),
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(FieldError::new(field.key("operator"), Problem::UnknownOperator(other.to_owned()))),
    };
    for (index, value) in expression.values.iter().flatten().enumerate() {
        check_value(value, || field.key("values").index(index))?;
    }
    Ok(Requirement { key: expression.key.clone(), operator })
}

fn without_values(operator: &'static str, field: &FieldPath) -> FieldError {
    FieldError::new(field.key("values"), Problem::OperatorWithoutValues(operator))
}

fn with_values(operator: &'static str, field: &FieldPath) -> FieldError {
    FieldError::new(field.key("values"), Problem::OperatorWithValues(operator))
}

fn check_key(key: &str, field: impl FnOnce() -> FieldPath) -> Result<(), FieldError> {
    let valid = match key.split_once('/') {
        Some((prefix, name)) => is_dns_name(prefix) && is_qualified(name),
        None => is_qualified(key),
    };
    if valid { Ok(()) } else { Err(FieldError::new(field(), Problem::InvalidLabelKey(key.to_owned()))) }
}

fn check_value(value: &str, field: impl FnOnce() -> FieldPath) -> Result<(), FieldError> {
    if value.is_empty() || is_qualified(value) {
        Ok(())
    } else {
        Err(FieldError::new(field(), Problem::InvalidLabelValue(value.to_owned())))
    }
}

fn is_qualified(name: &str) -> bool {
    let ends = |end: Option<u8>| end.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= 63 && ends(name.bytes().next()) && ends(name.bytes().last()) && name.bytes().all(inner)
}
