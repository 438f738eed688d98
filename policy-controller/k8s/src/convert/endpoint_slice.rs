//! EndpointSlice to the endpoints of a service.

use super::{Family, Readable, port_number, protocol, reachable};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointPort, EndpointSlice};
use palisade_policy::model::ObjectName;
use palisade_service::model::{Endpoint, Slice, SlicePort};
use std::net::IpAddr;

/// The label by which a slice says whose it is.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What is kept of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceParts {
    /// The service whose endpoints it has; `None`: it says of none.
    pub service: Option<ObjectName>,
    /// What it says of them.
    pub slice: Slice,
}

/// An EndpointSlice: the service that its label names, its ports and its endpoints.
///
/// # Errors
/// An `addressType` other than IPv4 and IPv6: nothing of it is used. A port or an endpoint that cannot be read, or that has an address
/// of another family or one that nobody else can send to: the others are used.
pub fn endpoint_slice(object: &EndpointSlice) -> Result<SliceParts, Refusal<SliceParts>> {
    let mut readable = Readable::default();
    let name = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL)).filter(|name| !name.is_empty());
    let service = name.map(|name| ObjectName::new(object.metadata.namespace.clone().unwrap_or_default(), name));
    let Some(family) = readable.take(address_type(&object.address_type)) else {
        return readable.finish(SliceParts { service, slice: Slice::default() });
    };
    let ports = object.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(index, written)| readable.take(port(written, &FieldPath::of("ports").index(index)))?).collect();
    let endpoints = object.endpoints.iter().enumerate();
    let endpoints = endpoints
        .filter_map(|(index, written)| readable.take(endpoint(written, family, &FieldPath::of("endpoints").index(index))))
        .collect();
    readable.finish(SliceParts { service, slice: Slice { ports, endpoints } })
}

fn address_type(name: &str) -> Result<Family, FieldError> {
    let fail = |problem| Err(FieldError::new(FieldPath::of("addressType"), problem));
    match name {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        "FQDN" => fail(Problem::DomainNameEndpoints),
        other => fail(Problem::UnknownChoice(other.to_owned(), "IPv4 and IPv6")),
    }
}

/// A port; `None` where it has no number, which means any.
fn port(written: &EndpointPort, field: &FieldPath) -> Result<Option<SlicePort>, FieldError> {
    let Some(number) = written.port else { return Ok(None) };
    Ok(Some(SlicePort {
        name: written.name.clone().unwrap_or_default(),
        protocol: protocol(written.protocol.as_deref().filter(|name| !name.is_empty()), || field.key("protocol"))?,
        port: port_number(number, || field.key("port"))?,
    }))
}

fn endpoint(written: &ApiEndpoint, family: Family, field: &FieldPath) -> Result<Endpoint, FieldError> {
    let addresses = field.key("addresses");
    let Some(text) = written.addresses.first() else { return Err(FieldError::new(addresses, Problem::Missing)) };
    let address: IpAddr = reachable(text, || addresses.index(0))?;
    if Family::of(address) != family {
        return Err(FieldError::new(addresses.index(0), Problem::OtherFamily(address, "addressType")));
    }
    let conditions = written.conditions.as_ref();
    // What is not said of an endpoint is taken for the better, as its API wants.
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let hints = written.hints.as_ref();
    Ok(Endpoint {
        address,
        ready,
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: written.node_name.clone().filter(|name| !name.is_empty()),
        zones: hints.iter().flat_map(|hints| hints.for_zones.iter().flatten()).map(|zone| zone.name.clone()).collect(),
        nodes: hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten()).map(|node| node.name.clone()).collect(),
    })
}
