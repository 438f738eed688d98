//! The kinds of object that the index takes.

use super::{Index, Record};
use crate::convert;
use crate::problem::{FieldError, NameRule};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_policy::model::ObjectName;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespace.
    Namespace,
    /// Pod.
    Pod,
    /// Node.
    Node,
    /// NetworkPolicy.
    NetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Kind] = &[Kind::Namespace, Kind::Pod, Kind::Node, Kind::NetworkPolicy];
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::NetworkPolicy => "NetworkPolicy",
        })
    }
}

/// An object that the index takes: Namespace, Pod, Node and NetworkPolicy.
pub trait Indexed: sealed::Sealed {
    /// Its kind.
    const KIND: Kind;
    #[doc(hidden)]
    fn upsert(index: &mut Index, object: &Self) -> bool;
    #[doc(hidden)]
    fn delete(index: &mut Index, object: &Self) -> bool;
}

mod sealed {
    /// Keeps [`Indexed`](super::Indexed) to the kinds that the index has a place for.
    pub trait Sealed {}
    impl Sealed for super::Namespace {}
    impl Sealed for super::Pod {}
    impl Sealed for super::Node {}
    impl Sealed for super::NetworkPolicy {}
}

impl Indexed for Namespace {
    const KIND: Kind = Kind::Namespace;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::cluster_name(&object.metadata, NameRule::DnsLabel);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        let record = Record::from(convert::namespace(object));
        index.namespaces.insert(name, record.clone()) != Some(record)
    }

    fn delete(index: &mut Index, object: &Self) -> bool {
        object.metadata.name.as_ref().is_some_and(|name| index.namespaces.remove(name).is_some())
    }
}

impl Indexed for Pod {
    const KIND: Kind = Kind::Pod;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::namespaced_name(&object.metadata);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        index.upsert_pod(name, object)
    }

    fn delete(index: &mut Index, object: &Self) -> bool {
        let Ok(name) = convert::namespaced_name(&object.metadata) else { return false };
        index.delete_pod(&name, object.metadata.uid.as_deref())
    }
}

impl Indexed for Node {
    const KIND: Kind = Kind::Node;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::cluster_name(&object.metadata, NameRule::DnsName);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        let record = Record::from(convert::node(object));
        index.nodes.insert(name, record.clone()) != Some(record)
    }

    fn delete(index: &mut Index, object: &Self) -> bool {
        object.metadata.name.as_ref().is_some_and(|name| index.nodes.remove(name).is_some())
    }
}

impl Indexed for NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;

    fn upsert(index: &mut Index, object: &Self) -> bool {
        let name = convert::namespaced_name(&object.metadata);
        let Some(name) = index.named(Self::KIND, name, &object.metadata) else { return true };
        index.upsert_policy(name, object)
    }

    fn delete(index: &mut Index, object: &Self) -> bool {
        convert::namespaced_name(&object.metadata).is_ok_and(|name| index.policies.remove(&name).is_some())
    }
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
