//! Pods: who is called what, and whose an address is.

use super::{Index, Record};
use crate::convert::{self, Participation, PodParts};
use crate::endpoints::Candidate;
use crate::survey::{Fault, Ranges, Wrong};
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

/// Which pods claim which address, and what decides between them.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// The claimants of an address: more than one while it changes hands.
    of: BTreeMap<IpAddr, Vec<Arc<ObjectName>>>,
    /// Whose an address can be: who has which pod range.
    ranges: Ranges<String>,
    /// The pods that claim an address which can only be a pod's of another node, and the node that each is on.
    misplaced: BTreeMap<ObjectName, String>,
}

/// A pod of another node, to whom an address belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere<'a> {
    /// Its name.
    pub pod: &'a ObjectName,
    /// The node that it is on.
    pub node: &'a str,
}

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
            let claimants = self.claims.of.entry(*address).or_default();
            claimants.retain(|claimant| claimant != &own);
            concerned.extend(claimants.iter().cloned());
            if claimants.is_empty() {
                self.claims.of.remove(address);
            }
        }
        for address in after {
            let claimants = self.claims.of.entry(address).or_default();
            concerned.extend(claimants.iter().cloned());
            if !claimants.contains(&own) {
                claimants.push(Arc::clone(&own));
            }
        }
        concerned.iter().for_each(|name| self.bring_up_pod(name));
        result
    }

    /// Takes who has which pod range now, and brings the model's pods up to it.
    pub(super) fn set_ranges(&mut self, ranges: Ranges<String>) {
        let others = self.claims.ranges.differences(&ranges);
        self.claims.ranges = ranges;
        let claimed = others.iter().flat_map(|range| self.claims.of.range(range.network()..=range.broadcast()));
        let concerned: BTreeSet<Arc<ObjectName>> = claimed.flat_map(|(_, claimants)| claimants.iter().cloned()).collect();
        concerned.iter().for_each(|name| self.bring_up_pod(name));
    }

    /// The pods that claim addresses which can only be pods' of other nodes, as faults of their own nodes.
    pub fn misplaced(&self) -> BTreeSet<Fault> {
        let mut pods: BTreeMap<&String, usize> = BTreeMap::new();
        self.claims.misplaced.values().for_each(|node| *pods.entry(node).or_default() += 1);
        pods.into_iter().map(|(node, pods)| Fault { node: node.clone(), what: Wrong::Misplaced { pods } }).collect()
    }

    /// The pod of another node that has an address by right: one that is on the node in whose pod range the address lies. In the eyes of all other
    /// nodes, what comes from the address comes from that pod.
    pub fn elsewhere(&self, address: IpAddr) -> Option<Elsewhere<'_>> {
        let node = self.holder(address).filter(|holder| *holder != self.model.host)?;
        let has = |name: &&Arc<ObjectName>| self.participant(name).is_some_and(|record| self.node_of(name, record) == Some(node));
        self.claims.of.get(&address)?.iter().find(has).map(|pod| Elsewhere { pod, node })
    }

    fn bring_up_pod(&mut self, name: &ObjectName) {
        match self.in_model(name) {
            Some(pod) if self.model.pods.get(name) == Some(&pod) => {}
            Some(pod) => drop(self.model.pods.insert(name.clone(), pod)),
            None => drop(self.model.pods.remove(name)),
        }
        match self.misplaced_on(name).map(str::to_owned) {
            Some(node) => drop(self.claims.misplaced.insert(name.clone(), node)),
            None => drop(self.claims.misplaced.remove(name)),
        }
    }

    /// The node of a pod that claims an address which can only be a pod's of another node. An endpoint of this node is not meant as long as no such
    /// pod is known: packets to it are delivered here.
    fn misplaced_on(&self, name: &ObjectName) -> Option<&str> {
        let record = self.participant(name)?;
        let is_here = self.realised_here(name, record).is_some();
        let lost = |address: &IpAddr| if is_here { self.elsewhere(*address).is_some() } else { self.is_void(name, record, *address) };
        self.node_of(name, record).filter(|_| self.claimed(name).iter().any(lost))
    }

    /// Whether a claim to an address counts for nothing: the address lies in the pod range of another node than the pod's, and packets to it go there.
    /// Where nobody says which node a pod is on, as in files, its claim counts.
    fn is_void(&self, name: &ObjectName, record: &PodRecord, address: IpAddr) -> bool {
        self.holder(address).zip(self.node_of(name, record)).is_some_and(|(holder, node)| holder != node)
    }

    /// The node in whose pod range an address lies.
    fn holder(&self, address: IpAddr) -> Option<&str> {
        self.claims.ranges.around(address).map(|(_, node)| node.as_str())
    }

    /// The node that a pod is on, where that is known.
    fn node_of<'a>(&'a self, name: &ObjectName, record: &'a PodRecord) -> Option<&'a str> {
        let here = self.realised_here(name, record).map(|_| self.model.host.as_str()).filter(|host| !host.is_empty());
        here.or(record.node.as_deref())
    }

    /// A pod as the model has it: with those of its addresses that no other pod claims with more right.
    fn in_model(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        let record = self.participant(name)?;
        let owns = |address: &&IpAddr| self.owner(**address) == Some(name);
        let addresses: Vec<IpAddr> = self.claimed(name).iter().filter(owns).copied().collect();
        if addresses == record.pod.addresses {
            return Some(Arc::clone(&record.pod));
        }
        Some(Arc::new(Pod { addresses, ..Pod::clone(&record.pod) }))
    }

    /// Which of the pods that claim an address has it.
    fn owner<'a>(&'a self, address: IpAddr) -> Option<&'a ObjectName> {
        let claim = |name: &'a Arc<ObjectName>| {
            let record = self.participant(name)?;
            let realised_here = self.realised_here(name, record).is_some();
            if !realised_here && self.is_void(name, record, address) {
                return None;
            }
            Some(Claim { realised_here, stays: !record.terminating, created: record.created, uid: record.uid.as_deref(), name })
        };
        self.claims.of.get(&address)?.iter().filter_map(claim).max().map(|claim| claim.name)
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
            let here = || self.participant(name).and_then(|record| self.node_of(name, record));
            Candidate {
                labels: &record.pod.labels,
                ports: &record.pod.ports,
                addresses: &known.addresses,
                node: record.node.as_deref().or_else(here),
                terminating: record.terminating,
            }
        })
    }

    fn participant(&self, name: &ObjectName) -> Option<&PodRecord> {
        self.pods.get(name).map(|record| &record.value).filter(|record| record.participation == Participation::Participates)
    }
}
