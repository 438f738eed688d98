//! The index: what was seen of the cluster, trimmed to what policy and services need.
//!
//! Both sources feed it, a watch and a directory. Its model depends only on the present objects, never on the order
//! in which different objects were seen; two things depend on what was before, see
//! [`Index::refused`] and [`Index::assign_cluster_ips`].

mod kinds;
mod nodes;
mod pods;
mod services;
mod versions;

pub use kinds::{API_SERVER_SERVICE, Indexed, Kind};
pub use pods::{Elsewhere, Realisable};
pub use versions::{Digest, Digests, Version, Versions};

use crate::convert::{self, Participation};
use crate::problem::{FieldError, Refusal};
use crate::survey::Survey;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_identity::Labels;
use palisade_policy::model::{Mode, Model, Node, ObjectName, Peer, Policy, PolicyKind, PolicyName};
use pods::{Claims, LocalAddresses, PodRecord};
use services::ServiceRecords;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What was seen of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<String, Record<Labels>>,
    pods: BTreeMap<ObjectName, Record<PodRecord>>,
    nodes: BTreeMap<String, Record<Node>>,
    /// What holds of their claims.
    survey: Arc<Survey>,
    /// This node's pod ranges, where they are not those of its Node.
    host_ranges: Vec<IpNet>,
    policies: BTreeMap<PolicyName, PolicyRecord>,
    identities: BTreeMap<String, IdentityRecord>,
    /// Addresses of the API server, by the object that tells them.
    api_servers: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    services: ServiceRecords,
    /// Which pods claim an address, and which of them can have it.
    claims: Claims,
    /// What is known now, in the words of policy: kept with each change of the above, so that to ask for it costs nothing.
    model: Model,
    /// Addresses of realised endpoints of this node.
    local: BTreeMap<ObjectName, LocalAddresses>,
    /// Objects whose name cannot be read, by kind and what was there instead.
    nameless: BTreeMap<(Kind, String), FieldError>,
    synced: BTreeSet<Kind>,
    /// What an earlier agent knew of policies that were refused, until all objects were seen once.
    recalled: BTreeMap<PolicyName, LastGood>,
    /// What a resync under way has not seen again, by kind.
    unseen: BTreeMap<Kind, BTreeSet<String>>,
    versions: Versions,
}

/// A converted object, and why it is not quite what was written.
#[derive(Clone, Debug, PartialEq)]
struct Record<T> {
    value: T,
    refused: Option<FieldError>,
}

impl<T> From<Result<T, Refusal<T>>> for Record<T> {
    fn from(converted: Result<T, Refusal<T>>) -> Self {
        match converted {
            Ok(value) => Self { value, refused: None },
            Err(refusal) => Self { value: *refusal.closed, refused: Some(refusal.error) },
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct PolicyRecord {
    uid: Option<String>,
    /// What is enforced.
    policy: Arc<Policy>,
    /// What isolates the pods that a refused version selects, beside a last good version that does not isolate them all.
    beside: Option<Arc<Policy>>,
    /// The last version of this UID that could be converted.
    last_good: Option<Arc<Policy>>,
    refused: Option<FieldError>,
}

/// The last version of a policy that could be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGood {
    /// Of the object; none of what is read from files.
    pub uid: Option<String>,
    /// Of the version that is refused, and why.
    pub refused: Digest,
    /// The version.
    pub policy: Arc<Policy>,
}

#[derive(Clone, Debug, PartialEq)]
struct IdentityRecord {
    uid: Option<String>,
    /// The last version of this UID that could be converted; none, and no policy finds the identity.
    members: Option<Vec<Peer>>,
    refused: Option<FieldError>,
}

/// An object that could not be taken as it is, and what stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its kind.
    pub kind: Kind,
    /// `namespace/name`, or the name alone.
    pub object: String,
    /// What is wrong with it.
    pub error: FieldError,
    /// What is done about it.
    pub instead: Instead,
}

/// What stands in the place of an object that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// The last version of the policy that could be used.
    LastGood,
    /// The same, and beside it the pods that the refused version selects are isolated.
    LastGoodAndIsolated,
    /// The pods that the policy selects are isolated; all pods of the namespace where that cannot be read.
    Isolated,
    /// Of its rules, those that cannot be read accept nothing or deny everything.
    RuleByRule,
    /// What would be enforced in its place, in audit mode: nothing is dropped for it.
    Audited,
    /// Rules that allow by it match nobody, and rules that deny by it match everybody.
    Unknown,
    /// What could be read of the object.
    Readable,
    /// Nothing: not even the name could be read.
    Nothing,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {} ({})", self.kind, self.object, self.error, self.instead)
    }
}

impl std::fmt::Display for Instead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LastGood => "its last good version stays in force",
            Self::LastGoodAndIsolated => "its last good version stays in force, and the pods that this one selects are isolated",
            Self::Isolated => "the pods that it selects are isolated",
            Self::RuleByRule => "a rule that cannot be read accepts nothing, or denies everything",
            Self::Audited => "it is in audit mode: nothing is dropped for it, and events tell what would be",
            Self::Unknown => "rules that allow by it match nobody, rules that deny by it match everybody",
            Self::Readable => "the rest of it is used",
            Self::Nothing => "it is not used",
        })
    }
}

impl Index {
    /// An index that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a new or changed object. Tells whether anything that policy or services need is different now.
    pub fn upsert<K: Indexed>(&mut self, object: &K) -> bool {
        let version = self.versions.upsert(K::KIND, object.head());
        K::upsert(self, object) | version
    }

    /// Takes an object of which its metadata alone can be read. Tells whether anything that policy or services need is different now.
    ///
    /// # Errors
    /// What is wrong with it, where nothing can stand in the place of such an object: of kinds of which every version is read.
    pub fn upsert_unreadable<K: Indexed>(&mut self, metadata: &ObjectMeta, error: FieldError) -> Result<bool, FieldError> {
        let version = self.versions.upsert(K::KIND, metadata);
        Ok(K::upsert_unreadable(self, metadata, error)? | version)
    }

    /// Forgets an object. One with another UID than the one that is known is an older one of that name: it changes
    /// nothing. (A namespace or a node is not asked for its UID.) Tells whether anything that policy or services need is different now.
    pub fn delete<K: Indexed>(&mut self, object: &K) -> bool {
        self.delete_of::<K>(object.head())
    }

    /// As [`delete`](Self::delete), by the object's metadata.
    pub fn delete_of<K: Indexed>(&mut self, metadata: &ObjectMeta) -> bool {
        self.versions.delete(K::KIND, metadata);
        K::delete(self, metadata)
    }

    /// Takes all objects of a kind: what is not among them is gone.
    pub fn resync<'a, K: Indexed + 'a>(&mut self, all: impl IntoIterator<Item = &'a K>) -> bool {
        self.resync_begin::<K>();
        let mut changed = false;
        for object in all {
            changed |= self.upsert(object);
        }
        self.resync_end::<K>() | changed
    }

    /// Begins to take all objects of a kind, one [`upsert`](Self::upsert) each, so that no list of whole objects
    /// has to be held. May begin again before it ended, when a watch broke off.
    pub fn resync_begin<K: Indexed>(&mut self) {
        let names: BTreeSet<String> = match K::KIND {
            Kind::Namespace => self.namespaces.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().map(ToString::to_string).collect(),
            Kind::Node => self.nodes.keys().cloned().collect(),
            Kind::Identity => self.identities.keys().cloned().collect(),
            Kind::Service => self.service_names().map(ToString::to_string).collect(),
            Kind::EndpointSlice => self.slice_names().map(ToString::to_string).collect(),
            Kind::NetworkPolicy | Kind::IdentityPolicy | Kind::ClusterNetworkPolicy => {
                self.policies.keys().filter(|name| Kind::from(name.kind) == K::KIND).map(|name| name.object.to_string()).collect()
            }
        };
        self.nameless.retain(|(kind, _), _| *kind != K::KIND);
        self.unseen.insert(K::KIND, names);
    }

    /// Ends what [`resync_begin`](Self::resync_begin) began: forgets what was not seen since, and counts the kind as
    /// synced. Without a beginning it does nothing.
    pub fn resync_end<K: Indexed>(&mut self) -> bool {
        let Some(unseen) = self.unseen.get_mut(&K::KIND).map(std::mem::take) else { return false };
        self.versions.delete_named(K::KIND, unseen.iter());
        for gone in &unseen {
            self.forget(K::KIND, gone);
        }
        self.unseen.remove(&K::KIND);
        if K::KIND == Kind::Node {
            self.bring_up_nodes();
        }
        // A kind that is synced for the first time counts as a change even when it is empty.
        let changed = self.synced.insert(K::KIND) | !unseen.is_empty();
        if self.synced() {
            // What was not seen by now is gone; what comes under its name is another object.
            self.recalled.clear();
        }
        changed
    }

    /// Whether any object of a kind is known.
    pub fn holds(&self, kind: Kind) -> bool {
        match kind {
            Kind::Namespace => !self.namespaces.is_empty(),
            Kind::Pod => !self.pods.is_empty(),
            Kind::Node => !self.nodes.is_empty(),
            Kind::Service => self.service_names().next().is_some(),
            Kind::EndpointSlice => self.slice_names().next().is_some(),
            Kind::Identity => !self.identities.is_empty(),
            Kind::NetworkPolicy | Kind::IdentityPolicy | Kind::ClusterNetworkPolicy => {
                self.policies.keys().any(|name| Kind::from(name.kind) == kind)
            }
        }
    }

    /// Tells which node this is, by its name, before any node is known. Its pods have addresses of `ranges`, whatever its Node says;
    /// where there are none, of those that its Node says.
    pub fn set_host(&mut self, name: &str, ranges: &[IpNet]) {
        name.clone_into(&mut self.model.host);
        ranges.clone_into(&mut self.host_ranges);
        self.bring_up_nodes();
    }

    /// Tells the last versions that could be used of policies that an earlier agent saw refused, before any policy is known.
    pub fn recall(&mut self, last_good: BTreeMap<PolicyName, LastGood>) {
        self.recalled = last_good;
    }

    /// The last versions that could be used of policies that are refused, as [`recall`](Self::recall) takes them. A ClusterNetworkPolicy has one only
    /// where nothing of its present version can be read: in place of a rule that is not understood stands at once what the API wants.
    pub fn last_good(&self) -> BTreeMap<PolicyName, LastGood> {
        let last_good = |(name, record): (&PolicyName, &PolicyRecord)| {
            let refused = self.refused_digest(name, record.refused.as_ref()?);
            let policy = Arc::clone(record.last_good.as_ref()?);
            Some((name.clone(), LastGood { uid: record.uid.clone(), refused, policy }))
        };
        self.policies.iter().filter_map(last_good).collect()
    }

    /// Whether all objects of every kind have been seen once.
    pub fn synced(&self) -> bool {
        self.not_synced().is_empty()
    }

    /// The kinds of which not all objects have been seen yet.
    pub fn not_synced(&self) -> Vec<Kind> {
        Kind::ALL.iter().filter(|kind| !self.synced.contains(kind)).copied().collect()
    }

    /// Tells the addresses of a realised endpoint of this node. They win over the pod's status, and over every other
    /// pod that claims one of them: packets to them are delivered here. With a UID they hold only for the pod of that UID. Tells whether anything changed.
    pub fn set_local_addresses(&mut self, pod: &ObjectName, uid: Option<&str>, addresses: Vec<IpAddr>) -> bool {
        let local = LocalAddresses { uid: uid.map(str::to_owned), addresses };
        let before = self.change_pod(pod, |index| index.local.insert(pod.clone(), local.clone()));
        let changed = before.as_ref() != Some(&local);
        if changed {
            self.bring_up_nodes_of(&before.into_iter().chain([local]).flat_map(|local| local.addresses).collect::<Vec<_>>());
        }
        changed
    }

    /// Forgets the addresses of an endpoint that was released. Where both UIDs are known and differ, the endpoint of
    /// an older pod of that name was released: the new one's addresses stay. Tells whether anything changed.
    pub fn clear_local_addresses(&mut self, pod: &ObjectName, uid: Option<&str>) -> bool {
        let other = self.local.get(pod).is_some_and(|local| differ(local.uid.as_deref(), uid));
        let removed = if other { None } else { self.change_pod(pod, |index| index.local.remove(pod)) };
        if let Some(local) = &removed {
            self.bring_up_nodes_of(&local.addresses);
        }
        removed.is_some()
    }

    /// Whether a pod can be realised: it is known, with this UID where one is given, and so is its namespace; and it is on no other node.
    pub fn pod_ready_to_realise(&self, pod: &ObjectName, uid: Option<&str>) -> Realisable {
        let Some(record) = self.pods.get(pod).map(|record| &record.value) else { return Realisable::Unknown };
        if !record.is_called(uid) {
            return Realisable::OtherUid { known: record.uid.clone().unwrap_or_default() };
        }
        if let Some(node) = record.node.as_ref().filter(|node| **node != self.model.host) {
            return Realisable::OtherNode { node: node.clone() };
        }
        match record.participation {
            Participation::HostNetwork => Realisable::HostNetwork,
            Participation::Finished => Realisable::Finished,
            Participation::Participates if !self.namespaces.contains_key(&pod.namespace) => Realisable::NamespaceUnknown,
            Participation::Participates => Realisable::Ready,
        }
    }

    /// Whether the pod that is known by this name is another one than that of `uid`.
    pub fn is_another_pod(&self, pod: &ObjectName, uid: Option<&str>) -> bool {
        self.pods.get(pod).is_some_and(|record| !record.value.is_called(uid))
    }

    /// The UID of a pod that is known, where its source gives UIDs.
    pub fn pod_uid(&self, pod: &ObjectName) -> Option<&str> {
        self.pods.get(pod)?.value.uid.as_deref()
    }

    /// The names of the policies of a kind in a namespace; `""` for those that live in none.
    pub fn policies_of(&self, kind: PolicyKind, namespace: &str) -> Vec<ObjectName> {
        let first = PolicyName::new(kind, ObjectName::new(namespace, ""));
        let in_it = |name: &&PolicyName| name.kind == kind && name.object.namespace == namespace;
        self.policies.range(first..).map(|(name, _)| name).take_while(in_it).map(|name| name.object.clone()).collect()
    }

    /// Which version of each policy and identity is known.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The policies that are known, each as it is enforced.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyName, &Policy)> {
        self.policies.iter().map(|(name, record)| (name, &*record.policy))
    }

    /// The model of what is known now. It shares what it has in common with those that were asked for before.
    pub fn model(&self) -> Model {
        self.model.clone()
    }

    /// The objects that could not be taken as they are, in order of kind and name.
    ///
    /// A policy that is refused keeps its last good version; where the new one selects other pods, or isolates
    /// what the old one did not, it isolates what it selects beside that. An identity that is refused keeps its last good version. This is
    /// the one thing in the model that depends on the past: an agent that starts with a refused policy has no last good version of it, and
    /// neither has a policy that was made anew under the name.
    pub fn refused(&self) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut add = |kind, object: String, error: &Option<FieldError>, instead| {
            refused.extend(error.clone().map(|error| Refused { kind, object, error, instead }));
        };
        for (name, record) in &self.namespaces {
            add(Kind::Namespace, name.clone(), &record.refused, Instead::Readable);
        }
        for (name, record) in &self.pods {
            add(Kind::Pod, name.to_string(), &record.refused, Instead::Readable);
        }
        for (name, record) in &self.nodes {
            add(Kind::Node, name.clone(), &record.refused, Instead::Readable);
        }
        self.refused_services().for_each(|(name, refused)| add(Kind::Service, name.to_string(), refused, Instead::Readable));
        self.refused_slices().for_each(|(name, refused)| add(Kind::EndpointSlice, name.to_string(), refused, Instead::Readable));
        for (name, record) in &self.identities {
            add(Kind::Identity, name.clone(), &record.refused, if record.members.is_some() { Instead::LastGood } else { Instead::Unknown });
        }
        for (name, record) in &self.policies {
            let instead = match name.kind {
                _ if record.beside.as_ref().is_some_and(|beside| beside.mode == Mode::Enforce) => Instead::LastGoodAndIsolated,
                _ if record.last_good.as_ref() == Some(&record.policy) => Instead::LastGood,
                _ if record.policy.ingress.is_none() && record.policy.egress.is_none() => Instead::Nothing,
                _ if record.policy.mode == Mode::Audit => Instead::Audited,
                PolicyKind::ClusterNetworkPolicy => Instead::RuleByRule,
                PolicyKind::NetworkPolicy | PolicyKind::IdentityPolicy => Instead::Isolated,
            };
            add(name.kind.into(), name.object.to_string(), &record.refused, instead);
        }
        for ((kind, object), error) in &self.nameless {
            add(*kind, object.clone(), &Some(error.clone()), Instead::Nothing);
        }
        refused.sort_by(|a, b| (a.kind, &a.object).cmp(&(b.kind, &b.object)));
        refused
    }

    fn seen(&mut self, kind: Kind, name: &dyn ToString) {
        if let Some(unseen) = self.unseen.get_mut(&kind) {
            unseen.remove(&name.to_string());
        }
    }

    /// Forgets an object, which a resync has not seen again, by its name as it is shown.
    fn forget(&mut self, kind: Kind, shown: &str) {
        let name = shown.split_once('/').map_or_else(|| ObjectName::cluster(shown), |(namespace, name)| ObjectName::new(namespace, name));
        match kind {
            Kind::Namespace => drop(self.remove_namespace(shown)),
            Kind::Pod => drop(self.remove_pod(&name)),
            Kind::Node => drop(self.remove_node(shown)),
            Kind::Identity => drop(self.remove_identity(shown)),
            Kind::Service => drop(self.remove_service(&name)),
            Kind::EndpointSlice => drop(self.remove_slice(&name)),
            Kind::NetworkPolicy => drop(self.remove_policy(&PolicyName::new(PolicyKind::NetworkPolicy, name))),
            Kind::IdentityPolicy => drop(self.remove_policy(&PolicyName::new(PolicyKind::IdentityPolicy, name))),
            Kind::ClusterNetworkPolicy => drop(self.remove_policy(&PolicyName::new(PolicyKind::ClusterNetworkPolicy, name))),
        }
    }

    fn set_namespace(&mut self, name: String, record: Record<Labels>) -> bool {
        let changed = self.namespaces.get(&name) != Some(&record);
        if changed {
            self.model.namespaces.insert(name.clone(), record.value.clone());
            self.namespaces.insert(name, record);
        }
        changed
    }

    fn remove_namespace(&mut self, name: &str) -> bool {
        self.model.namespaces.remove(&name.to_owned());
        self.namespaces.remove(name).is_some()
    }

    /// Takes what one object says of the API server's addresses.
    fn set_api_servers(&mut self, name: ObjectName, addresses: Option<BTreeSet<IpAddr>>) -> bool {
        let before = match addresses.clone() {
            Some(addresses) => self.api_servers.insert(name, addresses),
            None => self.api_servers.remove(&name),
        };
        let changed = before != addresses;
        if changed {
            self.model.api_servers = self.api_servers.values().flatten().copied().collect();
        }
        changed
    }

    fn upsert_pod(&mut self, name: ObjectName, pod: &ApiPod) -> bool {
        let parts = convert::pod(pod);
        let record = Record {
            value: PodRecord::new(pod, parts.as_ref().unwrap_or_else(|refusal| &*refusal.closed).clone()),
            refused: parts.err().map(|refusal| refusal.error),
        };
        let changed = self.pods.get(&name) != Some(&record);
        if changed {
            self.change_pod(&name, |index| index.pods.insert(name.clone(), record));
        }
        changed
    }

    fn delete_pod(&mut self, name: &ObjectName, uid: Option<&str>) -> bool {
        !differ(self.pod_uid(name), uid) && self.remove_pod(name)
    }

    fn remove_pod(&mut self, name: &ObjectName) -> bool {
        self.change_pod(name, |index| index.pods.remove(name).is_some())
    }

    fn upsert_identity(&mut self, name: String, uid: Option<String>, converted: Result<Vec<Peer>, FieldError>) -> bool {
        let record = match converted {
            Ok(members) => IdentityRecord { uid, members: Some(members), refused: None },
            Err(error) => {
                let same = self.identities.get(&name).filter(|known| known.uid == uid);
                IdentityRecord { members: same.and_then(|known| known.members.clone()), uid, refused: Some(error) }
            }
        };
        let changed = self.identities.get(&name) != Some(&record);
        if changed {
            match &record.members {
                Some(members) => drop(self.model.identities.insert(name.clone(), members.clone())),
                None => drop(self.model.identities.remove(&name)),
            }
            self.identities.insert(name, record);
        }
        changed
    }

    fn delete_identity(&mut self, name: &str, uid: Option<&str>) -> bool {
        let older = self.identities.get(name).is_some_and(|known| differ(known.uid.as_deref(), uid));
        !older && self.remove_identity(name)
    }

    fn remove_identity(&mut self, name: &str) -> bool {
        self.model.identities.remove(&name.to_owned());
        self.identities.remove(name).is_some()
    }

    fn upsert_policy(&mut self, name: PolicyName, uid: Option<String>, converted: Result<Policy, Refusal<Policy>>) -> bool {
        let record = match converted {
            Ok(policy) => {
                let policy = Arc::new(policy);
                PolicyRecord { uid, policy: Arc::clone(&policy), beside: None, last_good: Some(policy), refused: None }
            }
            Err(Refusal { error, closed }) => {
                // Where a list shows another object of the name, nobody has seen the old one go.
                let last_good = match self.policies.get(&name) {
                    Some(known) => known.last_good.clone().filter(|_| known.uid == uid),
                    None => self.recalled(&name, uid.as_deref(), &error),
                };
                // What the API wants in place of a rule that is not understood, it wants at once.
                let last_good = last_good.filter(|_| name.kind != PolicyKind::ClusterNetworkPolicy);
                let covered = |good: &Arc<Policy>| {
                    (good.mode == Mode::Enforce || closed.mode == Mode::Audit)
                        && good.subject == closed.subject
                        && (good.ingress.is_some() || closed.ingress.is_none())
                        && (good.egress.is_some() || closed.egress.is_none())
                };
                let (policy, beside) = match last_good.clone() {
                    Some(good) if covered(&good) => (good, None),
                    // It must not open the pods of the old version, nor leave those of the new one open.
                    Some(good) => (good, Some(Arc::from(closed))),
                    None => (Arc::from(closed), None),
                };
                PolicyRecord { uid, policy, beside, last_good, refused: Some(error) }
            }
        };
        self.set_policy(name, record)
    }

    /// Of a policy whose new version cannot be read at all, what is in force stays.
    fn upsert_unreadable_policy(&mut self, name: PolicyName, uid: Option<String>, error: FieldError, closed: Policy) -> bool {
        let same = self.policies.get(&name).filter(|known| known.uid == uid);
        let record = match same {
            Some(known) => PolicyRecord { refused: Some(error), ..known.clone() },
            None => {
                let recalled = if self.policies.contains_key(&name) { None } else { self.recalled(&name, uid.as_deref(), &error) };
                let policy = recalled.clone().unwrap_or_else(|| Arc::new(closed));
                PolicyRecord { uid, policy, beside: None, last_good: recalled, refused: Some(error) }
            }
        };
        self.set_policy(name, record)
    }

    /// What an earlier agent knew as the last good version of a policy that is refused. Where the object has changed since, a version may have been
    /// in force that nobody here has seen: then what the last known one isolates stays isolated, and it allows nothing.
    fn recalled(&self, name: &PolicyName, uid: Option<&str>, error: &FieldError) -> Option<Arc<Policy>> {
        let known = self.recalled.get(name).filter(|known| known.uid.as_deref() == uid)?;
        let same = known.refused == self.refused_digest(name, error);
        Some(if same { Arc::clone(&known.policy) } else { Arc::new(known.policy.closed()) })
    }

    fn refused_digest(&self, name: &PolicyName, error: &FieldError) -> Digest {
        let version = self.versions.of(name.kind.into(), &name.object).map(Version::digest);
        Digest::of(format!("{version:?} {error}").as_bytes())
    }

    fn set_policy(&mut self, name: PolicyName, record: PolicyRecord) -> bool {
        let changed = self.policies.get(&name) != Some(&record);
        if changed {
            self.model.policies.insert(name.clone(), Arc::clone(&record.policy));
            match &record.beside {
                Some(beside) => drop(self.model.policies.insert(name.refused_version(), Arc::clone(beside))),
                None => drop(self.model.policies.remove(&name.refused_version())),
            }
            self.policies.insert(name, record);
        }
        changed
    }

    fn delete_policy(&mut self, name: &PolicyName, uid: Option<&str>) -> bool {
        let older = self.policies.get(name).is_some_and(|known| differ(known.uid.as_deref(), uid));
        !older && self.remove_policy(name)
    }

    fn remove_policy(&mut self, name: &PolicyName) -> bool {
        self.model.policies.remove(name);
        self.model.policies.remove(&name.refused_version());
        self.policies.remove(name).is_some()
    }
}

/// Whether two UIDs are both given, and are those of two objects.
fn differ(known: Option<&str>, uid: Option<&str>) -> bool {
    known.zip(uid).is_some_and(|(known, uid)| known != uid)
}
