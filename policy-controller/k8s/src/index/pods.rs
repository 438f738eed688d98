//! Pods: who is called what, and whose an address is.

use super::{Index, Record};
use crate::convert::{self, Participation, PodParts};
use crate::endpoints::Candidate;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use palisade_policy::model::{ObjectName, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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
    pub participation: Participation,
    /// The node that it is on, once it is on one.
    pub node: Option<String>,
    /// As its status tells it.
    pod: Arc<Pod>,
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
    /// The pod is on another node.
    OtherNode {
        /// Its name.
        node: String,
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
            participation: parts.participation,
            node: convert::node_of(pod).map(str::to_owned),
            pod: Arc::new(parts.pod),
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

/// The pods that claim an address: more than one while it changes hands.
pub(super) type Claims = BTreeMap<IpAddr, Vec<Arc<ObjectName>>>;

/// How good a pod's claim to an address is; the greatest wins: an endpoint of this node before others, one that stays before one that
/// terminates, then the younger one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Claim<'a> {
    realised_here: bool,
    stays: bool,
    created: i64,
    uid: Option<&'a str>,
    name: &'a ObjectName,
}

impl Index {
    /// Changes what is known of a pod, and brings the model up to it: the pod, and those that claim its addresses.
    pub(super) fn change_pod<R>(&mut self, name: &ObjectName, change: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.claimed(name).to_vec();
        let result = change(self);
        let after = self.claimed(name).to_vec();
        let own = Arc::new(name.clone());
        let mut concerned: BTreeSet<Arc<ObjectName>> = BTreeSet::from([Arc::clone(&own)]);
        for address in before.iter().filter(|address| !after.contains(address)) {
            let claimants = self.claims.entry(*address).or_default();
            claimants.retain(|claimant| claimant != &own);
            concerned.extend(claimants.iter().cloned());
            if claimants.is_empty() {
                self.claims.remove(address);
            }
        }
        for address in after {
            let claimants = self.claims.entry(address).or_default();
            concerned.extend(claimants.iter().cloned());
            if !claimants.contains(&own) {
                claimants.push(Arc::clone(&own));
            }
        }
        for name in concerned {
            match self.in_model(&name) {
                Some(pod) if self.model.pods.get(&name) == Some(&pod) => {}
                Some(pod) => drop(self.model.pods.insert(ObjectName::clone(&name), pod)),
                None => drop(self.model.pods.remove(&name)),
            }
        }
        result
    }

    /// A pod as the model has it: with those of its addresses that no other pod claims with more right.
    fn in_model(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        let record = self.participant(name)?;
        let owns = |address: &&IpAddr| self.claims.get(address).is_some_and(|claimants| self.owner(claimants) == Some(name));
        let addresses: Vec<IpAddr> = self.claimed(name).iter().filter(owns).copied().collect();
        if addresses == record.pod.addresses {
            return Some(Arc::clone(&record.pod));
        }
        Some(Arc::new(Pod { addresses, ..Pod::clone(&record.pod) }))
    }

    /// Which of some pods has an address.
    fn owner<'a>(&'a self, claimants: &'a [Arc<ObjectName>]) -> Option<&'a ObjectName> {
        let claim = |name: &'a Arc<ObjectName>| {
            let record = self.participant(name)?;
            Some(Claim {
                realised_here: self.realised_here(name, record).is_some(),
                stays: !record.terminating,
                created: record.created,
                uid: record.uid.as_deref(),
                name,
            })
        };
        claimants.iter().filter_map(claim).max().map(|claim| claim.name)
    }

    /// The addresses that a pod claims.
    fn claimed(&self, name: &ObjectName) -> &[IpAddr] {
        let addresses = self.participant(name).map(|record| self.realised_here(name, record).unwrap_or(&record.pod.addresses));
        addresses.unwrap_or_default()
    }

    /// The addresses that an endpoint of this node has, where there is one of this pod.
    fn realised_here(&self, name: &ObjectName, record: &PodRecord) -> Option<&[IpAddr]> {
        self.local.get(name).filter(|local| record.is_called(local.uid.as_deref())).map(|local| local.addresses.as_slice())
    }

    /// The pods of a namespace that may stand behind a service, in the order of their names. The node of a
    /// pod that says none is known where it is this one.
    pub(super) fn candidates(&self, namespace: &str) -> impl Iterator<Item = Candidate<'_>> {
        let in_it = self.pods.range(ObjectName::new(namespace, "")..).take_while(move |(name, _)| name.namespace == namespace);
        let running = in_it.filter(|(_, record)| record.value.participation != Participation::Finished);
        running.map(|(name, Record { value: record, .. })| {
            // Of a pod with a network of its own those count that no other pod has with more right.
            let known = self.model.pods.get(name).unwrap_or(&record.pod);
            let realised_here = self.participant(name).is_some_and(|record| self.realised_here(name, record).is_some());
            let host = realised_here.then_some(self.model.host.as_str()).filter(|host| !host.is_empty());
            Candidate {
                labels: &record.pod.labels,
                ports: &record.pod.ports,
                addresses: &known.addresses,
                node: record.node.as_deref().or(host),
                terminating: record.terminating,
            }
        })
    }

    fn participant(&self, name: &ObjectName) -> Option<&PodRecord> {
        self.pods.get(name).map(|record| &record.value).filter(|record| record.participation == Participation::Participates)
    }
}
