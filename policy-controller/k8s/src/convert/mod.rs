//! Kubernetes objects to parts of the model, one file per kind.
//!
//! A conversion applies the defaults of the API server, so that an object from a file means what it would mean
//! after `kubectl apply`. What cannot be converted is refused with the field and the reason, together with what is
//! to stand in its place: never nothing, where nothing would open something.

mod cluster_network_policy;
mod endpoint_slice;
mod identity;
mod identity_policy;
mod labels;
mod names;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod service;

pub use cluster_network_policy::cluster_network_policy;
pub use endpoint_slice::{SliceParts, endpoint_slice};
pub use identity::identity;
pub use identity_policy::identity_policy;
pub use labels::{labels, selector};
pub use names::{cluster_name, namespaced_name};
pub use namespace::{NAMESPACE_NAME_LABEL, namespace};
pub use network_policy::{MODE_ANNOTATION, network_policy, unreadable_policy};
pub use node::node;
pub use pod::{ContainerPort, Participation, PodParts, container_ports, node_of, participation, pod};
pub use service::{Family, ServiceParts, Target, is_served_by_others, service};

use identity_policy::mode;

use crate::api::Unknown;
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use ipnet::IpNet;
use palisade_identity::Protocol;
use palisade_policy::model::Port;
use std::net::{IpAddr, Ipv4Addr};

/// That nothing of a later version stands beside what is known: the whole could mean less, or something else.
fn all_known(unknown: &Unknown, kind: &str, field: &FieldPath) -> Result<(), FieldError> {
    match unknown.keys().next() {
        None => Ok(()),
        Some(name) => Err(FieldError::new(field.key(name), Problem::UnknownField(kind.to_owned()))),
    }
}

/// A protocol by its name; absent means TCP.
fn protocol(name: Option<&str>, field: impl FnOnce() -> FieldPath) -> Result<Protocol, FieldError> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(FieldError::new(field(), Problem::UnknownProtocol(other.to_owned()))),
    }
}

/// A port by its number.
fn port_number(number: i32, field: impl FnOnce() -> FieldPath) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(field(), Problem::InvalidPort(number))),
    }
}

/// A range of ports, both ends included.
fn port_range(
    protocol: Protocol,
    first: i32,
    end: i32,
    first_field: impl FnOnce() -> FieldPath,
    end_field: impl Fn() -> FieldPath,
) -> Result<Port, FieldError> {
    let first = port_number(first, first_field)?;
    let end = port_number(end, &end_field)?;
    if end < first {
        return Err(FieldError::new(end_field(), Problem::EndBeforeFirst { first, end }));
    }
    Ok(Port::Range(protocol, first, end))
}

/// A port by its name, as IANA_SVC_NAME has it.
fn port_name(name: &str, field: impl FnOnce() -> FieldPath) -> Result<String, FieldError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let letter = name.bytes().any(|byte| byte.is_ascii_lowercase());
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if plain && letter && !hyphens && name.len() <= 15 {
        Ok(name.to_owned())
    } else {
        Err(FieldError::new(field(), Problem::InvalidPortName(name.to_owned())))
    }
}

/// A block of addresses. The parser of `ipnet` takes leading zeros, which are octal to some and decimal to others;
/// the API server takes none.
fn block(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    IpNet::new(address.parse::<IpAddr>().ok()?, length.parse().ok().filter(|_| plain)?).ok()
}

/// An address that others can send to.
fn reachable(text: &str, field: impl FnOnce() -> FieldPath) -> Result<IpAddr, FieldError> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(FieldError::new(field(), Problem::InvalidAddress(text.to_owned())));
    };
    let reaches = match address {
        IpAddr::V4(v4) => !v4.is_link_local() && v4 != Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    };
    if !reaches || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(FieldError::new(field(), Problem::UnreachableAddress(address)));
    }
    Ok(address)
}

/// What can be read of an object, and what is wrong with the first part of it that cannot.
#[derive(Default)]
struct Readable {
    error: Option<FieldError>,
}

impl Readable {
    /// What was read, unless it could not be.
    fn take<T>(&mut self, read: Result<T, FieldError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// Notes something that is wrong.
    fn refuse(&mut self, field: FieldPath, problem: Problem) {
        self.error.get_or_insert(FieldError::new(field, problem));
    }

    /// `value`, made of what could be read.
    fn finish<T>(self, value: T) -> Result<T, Refusal<T>> {
        match self.error {
            None => Ok(value),
            Some(error) => Err(Refusal { error, closed: Box::new(value) }),
        }
    }
}
