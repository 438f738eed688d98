//! Names of objects.

use crate::field::FieldPath;
use crate::problem::{FieldError, NameRule, Problem};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_policy::model::ObjectName;

/// The name of an object that lives in no namespace.
///
/// # Errors
/// The name is missing or does not follow `rule`.
pub fn cluster_name(metadata: &ObjectMeta, rule: NameRule) -> Result<String, FieldError> {
    checked(metadata.name.as_deref(), "metadata.name", rule)
}

/// The namespace and name of an object that lives in a namespace.
///
/// # Errors
/// One of them is missing or is no valid name.
pub fn namespaced_name(metadata: &ObjectMeta) -> Result<ObjectName, FieldError> {
    let namespace = checked(metadata.namespace.as_deref(), "metadata.namespace", NameRule::DnsLabel)?;
    Ok(ObjectName { namespace, name: checked(metadata.name.as_deref(), "metadata.name", NameRule::DnsName)? })
}

fn checked(name: Option<&str>, field: &str, rule: NameRule) -> Result<String, FieldError> {
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| FieldError::new(FieldPath::of(field), Problem::Missing))?;
    let valid = match rule {
        NameRule::DnsLabel => is_dns_label(name),
        NameRule::DnsName => is_dns_name(name),
    };
    if valid { Ok(name.to_owned()) } else { Err(FieldError::new(FieldPath::of(field), Problem::InvalidName(name.to_owned(), rule))) }
}

/// Whether `name` is a label of RFC 1123.
pub(super) fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether `name` is a DNS name of RFC 1123. Kubernetes bounds the whole of it, not its parts.
pub(super) fn is_dns_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let part = |part: &str| !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    name.len() <= 253 && name.split('.').all(part)
}
