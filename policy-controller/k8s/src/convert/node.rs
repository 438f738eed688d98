//! Node to its addresses and pod ranges.

use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use k8s_openapi::api::core::v1::Node as ApiNode;
use palisade_policy::model::Node;
use std::net::IpAddr;

/// A node: its addresses (internal ones first, then external ones) and its pod ranges, at most one per family.
///
/// # Errors
/// An address or a range that cannot be read; what can be read stands in its place.
pub fn node(node: &ApiNode) -> Result<Node, Refusal<Node>> {
    let mut first_error = None;
    // Labels that the API server would not take cannot be there; were they, no selector could mean them.
    let created = node.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let mut closed = Node { labels: node.metadata.labels.clone().unwrap_or_default(), created, ..Node::default() };
    for kind in ["InternalIP", "ExternalIP"] {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
        for (index, entry) in addresses.filter(|(_, entry)| entry.type_ == kind) {
            match entry.address.parse::<IpAddr>() {
                Ok(address) if closed.addresses.contains(&address) => {}
                Ok(address) => closed.addresses.push(address),
                Err(_) => {
                    let field = FieldPath::of("status.addresses").index(index).key("address");
                    first_error.get_or_insert(FieldError::new(field, Problem::InvalidAddress(entry.address.clone())));
                }
            }
        }
    }
    let spec = node.spec.as_ref();
    let plural = spec.and_then(|spec| spec.pod_cidrs.as_ref()).filter(|ranges| !ranges.is_empty());
    let ranges: Vec<(FieldPath, &String)> = match (plural, spec.and_then(|spec| spec.pod_cidr.as_ref())) {
        (Some(ranges), _) => ranges.iter().enumerate().map(|(index, range)| (FieldPath::of("spec.podCIDRs").index(index), range)).collect(),
        (None, Some(range)) => vec![(FieldPath::of("spec.podCIDR"), range)],
        (None, None) => Vec::new(),
    };
    for (field, range) in ranges {
        match super::block(range) {
            Some(range) => {
                let range = range.trunc();
                if !closed.pod_ranges.iter().any(|other| other.addr().is_ipv4() == range.addr().is_ipv4()) {
                    closed.pod_ranges.push(range);
                }
            }
            None => {
                first_error.get_or_insert(FieldError::new(field, Problem::InvalidCidr(range.clone())));
            }
        }
    }
    match first_error {
        None => Ok(closed),
        Some(error) => Err(Refusal { error, closed: Box::new(closed) }),
    }
}
