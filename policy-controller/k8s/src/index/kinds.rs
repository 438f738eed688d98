//! The kinds of object that the index takes.

use super::{Index, Record};
use crate::api::{ClusterNetworkPolicy, Identity, IdentityPolicy};
use crate::convert;
use crate::problem::{FieldError, NameRule};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_policy::model::{ObjectName, PolicyKind, PolicyName};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Namespace and name of the service whose endpoints are the API server.
pub const API_SERVER_SERVICE: (&str, &str) = ("default", "kubernetes");

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Namespace.
    Namespace,
    /// Pod.
    Pod,
    /// Node.
    Node,
    /// Service.
    Service,
    /// EndpointSlice.
    EndpointSlice,
    /// Identity.
    Identity,
    /// NetworkPolicy.
    NetworkPolicy,
    /// IdentityPolicy.
    IdentityPolicy,
    /// ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Kind] = &[
        Kind::Namespace,
        Kind::Pod,
        Kind::Node,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Identity,
        Kind::NetworkPolicy,
        Kind::IdentityPolicy,
        Kind::ClusterNetworkPolicy,
    ];
}

impl From<PolicyKind> for Kind {
    fn from(kind: PolicyKind) -> Self {
        match kind {
            PolicyKind::NetworkPolicy => Self::NetworkPolicy,
            PolicyKind::IdentityPolicy => Self::IdentityPolicy,
            PolicyKind::ClusterNetworkPolicy => Self::ClusterNetworkPolicy,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Identity => "Identity",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::IdentityPolicy => "IdentityPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        })
    }
}

/// An object that the index takes; [`Kind`] lists them.
pub trait Indexed: sealed::Sealed {
    /// Its kind.
    const KIND: Kind;
    #[doc(hidden)]
    fn upsert(index: &mut Index, object: &Self) -> bool;
    /// Takes note of an object of which nothing but its metadata can be read; gives the error back where that is not possible.
    #[doc(hidden)]
    fn upsert_unreadable(_index: &mut Index, _metadata: &ObjectMeta, error: FieldError) -> Result<bool, FieldError> {
        Err(error)
    }
    #[doc(hidden)]
    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool;
}

pub(super) mod sealed {
    use super::ObjectMeta;

    /// Keeps [`Indexed`](super::Indexed) to the kinds that the index has a place for.
    pub trait Sealed {
        /// Whose object this is.
        fn head(&self) -> &ObjectMeta;
    }

    macro_rules! sealed {
        ($($kind:ident)*) => {
            $(impl Sealed for super::$kind {
                fn head(&self) -> &ObjectMeta {
                    &self.metadata
                }
            })*
        };
    }
    sealed!(Namespace Pod Node Service EndpointSlice Identity NetworkPolicy IdentityPolicy ClusterNetworkPolicy);
}

impl Indexed for Namespace {
    const KIND: Kind = Kind::Namespace;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::cluster_name(&object.metadata, NameRule::DnsLabel);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        index.set_namespace(name, Record::from(convert::namespace(object)))
    }

    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
        metadata.name.as_ref().is_some_and(|name| index.remove_namespace(name))
    }
}

impl Indexed for Pod {
    const KIND: Kind = Kind::Pod;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::namespaced_name(&object.metadata);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        index.upsert_pod(name, object)
    }

    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
        let Ok(name) = convert::namespaced_name(metadata) else { return false };
        index.delete_pod(&name, metadata.uid.as_deref())
    }
}

impl Indexed for Node {
    const KIND: Kind = Kind::Node;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::cluster_name(&object.metadata, NameRule::DnsName);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        index.set_node(name, Record::from(convert::node(object)))
    }

    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
        metadata.name.as_ref().is_some_and(|name| index.remove_node(name))
    }
}

impl Indexed for Service {
    const KIND: Kind = Kind::Service;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::namespaced_name(&object.metadata);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        if convert::is_served_by_others(&object.metadata) {
            return index.remove_service(&name);
        }
        index.set_service(name, Record::from(convert::service(object)))
    }

    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
        convert::namespaced_name(metadata).is_ok_and(|name| index.delete_service(&name, metadata.uid.as_deref()))
    }
}

impl Indexed for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::namespaced_name(&object.metadata);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        let converted = Record::from(convert::endpoint_slice(object));
        let (namespace, service) = API_SERVER_SERVICE;
        let is_api_server = converted.value.service == Some(ObjectName::new(namespace, service));
        // An address that cannot be read is none that a packet has. Unlike a service, policy means all of them.
        let addresses = object.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse::<IpAddr>().ok());
        let of_api_server = index.set_api_servers(name.clone(), is_api_server.then(|| addresses.collect()));
        index.set_slice(name, object.metadata.uid.clone(), converted) | of_api_server
    }

    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
        convert::namespaced_name(metadata).is_ok_and(|name| index.delete_slice(&name, metadata.uid.as_deref()))
    }
}

impl Indexed for Identity {
    const KIND: Kind = Kind::Identity;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::cluster_name(&object.metadata, NameRule::DnsName);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        index.upsert_identity(name, object.metadata.uid.clone(), convert::identity(object))
    }

    fn upsert_unreadable(index: &mut Index, metadata: &ObjectMeta, error: FieldError) -> Result<bool, FieldError> {
        let name = convert::cluster_name(metadata, NameRule::DnsName);
        let Some(name) = index.named(Self::KIND, name, metadata) else { return Ok(true) };
        Ok(index.upsert_identity(name, metadata.uid.clone(), Err(error)))
    }

    fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
        let ObjectMeta { name, uid, .. } = metadata;
        name.as_ref().is_some_and(|name| index.delete_identity(name, uid.as_deref()))
    }
}

/// A kind of policy.
macro_rules! policy {
    ($kind:ident, $name:expr, $convert:path) => {
        impl Indexed for $kind {
            const KIND: Kind = Kind::$kind;

            fn upsert(index: &mut Index, object: &Self) -> bool {
                let name = $name(&object.metadata);
                let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
                index.upsert_policy(PolicyName::new(PolicyKind::$kind, name), object.metadata.uid.clone(), $convert(object))
            }

            fn upsert_unreadable(index: &mut Index, metadata: &ObjectMeta, error: FieldError) -> Result<bool, FieldError> {
                let Some(name) = index.named(Self::KIND, $name(metadata), metadata) else { return Ok(true) };
                let closed = convert::unreadable_policy(PolicyKind::$kind, metadata);
                Ok(index.upsert_unreadable_policy(PolicyName::new(PolicyKind::$kind, name), metadata.uid.clone(), error, closed))
            }

            fn delete(index: &mut Index, metadata: &ObjectMeta) -> bool {
                let name = $name(metadata).map(|name| PolicyName::new(PolicyKind::$kind, name));
                name.is_ok_and(|name| index.delete_policy(&name, metadata.uid.as_deref()))
            }
        }
    };
}

policy!(NetworkPolicy, convert::namespaced_name, convert::network_policy);
policy!(IdentityPolicy, convert::namespaced_name, convert::identity_policy);
policy!(ClusterNetworkPolicy, cluster_object, convert::cluster_network_policy);

fn cluster_object(metadata: &ObjectMeta) -> Result<ObjectName, FieldError> {
    convert::cluster_name(metadata, NameRule::DnsName).map(ObjectName::cluster)
}

impl Index {
    /// The name of an object that was seen, or a note that it has none.
    fn named<N: ToString>(&mut self, kind: Kind, name: Result<N, FieldError>, metadata: &ObjectMeta) -> Option<N> {
        match name {
            Ok(name) => {
                self.seen(kind, &name);
                Some(name)
            }
            Err(error) => {
                let part = |part: &Option<String>| part.clone().unwrap_or_default();
                let shown = ObjectName { namespace: part(&metadata.namespace), name: part(&metadata.name) };
                self.nameless.insert((kind, shown.to_string()), error);
                None
            }
        }
    }
}
