//! Pods: who is called what, and whose an address is.

use super::Record;
use crate::convert::{Participation, PodParts};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use palisade_policy::model::{ObjectName, Pod};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The annotation by which a pod of the API server says that it mirrors one that a kubelet read from a file. Its
/// value is the UID under which the kubelet starts it, another than the API server's.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodRecord {
    pub uid: Option<String>,
    mirrored_uid: Option<String>,
    terminating: bool,
    /// When it was created, in seconds since the Unix epoch.
    created: i64,
    pub parts: PodParts,
}

/// The addresses of a realised endpoint of this node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LocalAddresses {
    pub uid: Option<String>,
    pub addresses: Vec<IpAddr>,
}

/// Whether a pod can be realised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Realisable {
    /// Yes.
    Ready,
    /// No pod of this name is known (yet).
    Unknown,
    /// The pod is known, its namespace is not (yet): no rule about its namespace's labels would be right.
    NamespaceUnknown,
    /// A pod of this name is known, but it is another one: the one asked for is not known yet, or gone.
    OtherUid {
        /// The UID of the one that is known.
        known: String,
    },
    /// The pod shares the node's network: there is nothing to realise.
    HostNetwork,
    /// The pod has succeeded or failed: it gets no network any more.
    Finished,
}

impl PodRecord {
    pub fn new(pod: &ApiPod, parts: PodParts) -> Self {
        let metadata = &pod.metadata;
        Self {
            uid: metadata.uid.clone().filter(|uid| !uid.is_empty()),
            mirrored_uid: metadata.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR_ANNOTATION)).cloned(),
            terminating: metadata.deletion_timestamp.is_some(),
            created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            parts,
        }
    }

    /// Whether a container runtime that says `uid` means this pod. Who gives no UID means the pod by its name.
    pub fn is_called(&self, uid: Option<&str>) -> bool {
        match (uid, self.uid.as_deref()) {
            (None, _) | (_, None) => true,
            (Some(uid), Some(known)) => uid == known || Some(uid) == self.mirrored_uid.as_deref(),
        }
    }
}

/// How good a pod's claim to an address is; the greatest wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Claim<'a> {
    realised_here: bool,
    stays: bool,
    created: i64,
    uid: Option<&'a str>,
    name: &'a ObjectName,
}

/// The pods of the model. An address that several claim belongs to one of them: to an endpoint of this node before
/// others, to one that stays before one that terminates, then to the younger one.
pub(super) fn model(
    pods: &BTreeMap<ObjectName, Record<PodRecord>>,
    local: &BTreeMap<ObjectName, LocalAddresses>,
) -> BTreeMap<ObjectName, Pod> {
    let mut owners: BTreeMap<IpAddr, Claim> = BTreeMap::new();
    let participants = || {
        let records = pods.iter().map(|(name, record)| (name, &record.value));
        records.filter(|(_, record)| record.parts.participation == Participation::Participates)
    };
    for (name, record) in participants() {
        let (addresses, realised_here) = addresses(name, record, local);
        for &address in addresses {
            let claim = Claim { realised_here, stays: !record.terminating, created: record.created, uid: record.uid.as_deref(), name };
            if owners.get(&address).is_none_or(|best| *best < claim) {
                owners.insert(address, claim);
            }
        }
    }
    let owned = |name: &ObjectName, address: &IpAddr| owners.get(address).is_some_and(|owner| owner.name == name);
    participants()
        .map(|(name, record)| {
            let addresses = addresses(name, record, local).0;
            let addresses = addresses.iter().filter(|address| owned(name, address)).copied().collect();
            (name.clone(), Pod { addresses, ..record.parts.pod.clone() })
        })
        .collect()
}

/// The addresses that a pod claims, and whether an endpoint of this node has them.
fn addresses<'a>(name: &ObjectName, record: &'a PodRecord, local: &'a BTreeMap<ObjectName, LocalAddresses>) -> (&'a [IpAddr], bool) {
    match local.get(name) {
        Some(local) if record.is_called(local.uid.as_deref()) => (&local.addresses, true),
        _ => (&record.parts.pod.addresses, false),
    }
}
