//! The objects that Kubernetes itself does not have: our own, and ClusterNetworkPolicy.
//!
//! Choices are texts here and are checked by the conversion: one object with an unknown word must not break the watch of all.
//!
//! In a specification the fields that this version does not know are kept, for the conversion to find: what else is said there may be narrower
//! than it looks. They come where the API server's definition is newer than this; it drops those that it does not know itself.

mod cluster_network_policy;
mod definition;
mod identity;
mod identity_policy;
mod selector;
mod status;

pub use cluster_network_policy::{
    ClusterNetworkPolicy, ClusterNetworkPolicySpec, ClusterPeer, ClusterPort, ClusterPortRange, ClusterProtocol, ClusterRule,
    ClusterSubject, DestinationPort, NamespacedPod,
};
pub use definition::definitions;
pub use identity::{Identity, IdentitySpec, Network, PodSelection, ServiceAccountName};
pub use identity_policy::{IdentityPeer, IdentityPolicy, IdentityPolicySpec, IdentityPort, IdentityRule, IdentitySubject};
pub use selector::{StrictRequirement, StrictSelector};
pub use status::{IdentityPolicyStatus, IdentityStatus, status};

use serde_json::Value;
use std::collections::BTreeMap;

/// Fields that this version does not know, by name.
pub type Unknown = BTreeMap<String, Value>;

/// The API group of our own objects.
pub const GROUP: &str = "palisade.dev";
/// Its version.
pub const VERSION: &str = "v1alpha1";

/// Tells Kubernetes' libraries what a kind is called.
macro_rules! resource {
    ($kind:ident, $spec:ty, $group:literal, $version:literal, $plural:literal, $scope:ident) => {
        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::$scope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
}
use resource;
