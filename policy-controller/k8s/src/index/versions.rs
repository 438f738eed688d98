//! Which version of each policy and identity is known, and one number for all of a kind.
//!
//! Nodes tell what they enforce by that number, so what they tell does not grow with the objects, and a change that is none of the
//! object's own (its status, a label of it) does not alter it.

use super::Kind;
use crate::convert::MODE_ANNOTATION;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_policy::model::ObjectName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How many of the last changes of a kind are remembered.
const REMEMBERED: usize = 4096;

/// One number for a set of versions: equal sets have equal numbers, whatever the order in which they were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(u128);

impl Digest {
    /// The digest of a content: 128 bits of its SHA-256.
    pub fn of(content: &[u8]) -> Self {
        let hash: [u8; 32] = Sha256::digest(content).into();
        Self(u128::from_be_bytes(std::array::from_fn(|index| hash[index])))
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

/// The digests of all kinds that are told of.
pub type Digests = BTreeMap<Kind, Digest>;

/// A version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The object's UID, where the source gives it.
    pub uid: Option<String>,
    /// Its generation: the API server counts changes of what it says.
    pub generation: Option<i64>,
    /// Its resource version when this version of it became known: another each time, also where the annotation goes back and forth.
    pub revision: Option<String>,
    /// The change of its kind by which it became known: see [`Versions::step`].
    pub step: u64,
    digest: u128,
}

impl Version {
    /// A number for it: another for each change that policy may depend on.
    pub(super) const fn digest(&self) -> u128 {
        self.digest
    }
}

/// The versions of the objects of all kinds that are told of.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    kinds: BTreeMap<Kind, Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    objects: BTreeMap<ObjectName, Version>,
    /// Over all of `objects`.
    digest: Digest,
    /// Number of changes so far.
    step: u64,
    /// The last change after which the digest was this one.
    steps: HashMap<Digest, u64>,
    /// The same in their order, the oldest first.
    order: VecDeque<(Digest, u64)>,
}

impl Versions {
    /// The kinds that are told of: policies, and the identities that they name.
    pub const KINDS: [Kind; 4] = [Kind::Identity, Kind::NetworkPolicy, Kind::IdentityPolicy, Kind::ClusterNetworkPolicy];

    /// Notes an object. Tells whether this version of it is new.
    pub(super) fn upsert(&mut self, kind: Kind, metadata: &ObjectMeta) -> bool {
        let Some(name) = name(kind, metadata) else { return false };
        let digest = digest(kind, metadata);
        let known = self.kinds.entry(kind).or_default();
        let before = known.objects.get(&name).map(|version| version.digest);
        if before == Some(digest) {
            return false;
        }
        known.change(before, Some(digest));
        let (uid, revision) = (metadata.uid.clone(), metadata.resource_version.clone());
        let version = Version { uid, generation: metadata.generation, revision, step: known.step, digest };
        known.objects.insert(name, version);
        true
    }

    /// Forgets an object; one of another UID than is known is an older one of that name.
    pub(super) fn delete(&mut self, kind: Kind, metadata: &ObjectMeta) {
        let Some(name) = name(kind, metadata) else { return };
        let known = self.of(kind, &name).and_then(|version| version.uid.as_deref());
        if !super::differ(known, metadata.uid.as_deref()) {
            self.forget(kind, &name);
        }
    }

    /// Forgets objects by their names as they are shown.
    pub(super) fn delete_named<'a>(&mut self, kind: Kind, names: impl Iterator<Item = &'a String>) {
        for shown in names {
            let (namespace, name) = shown.split_once('/').unwrap_or(("", shown));
            self.forget(kind, &ObjectName::new(namespace, name));
        }
    }

    fn forget(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(known) = self.kinds.get_mut(&kind)
            && let Some(version) = known.objects.remove(name)
        {
            known.change(Some(version.digest), None);
        }
    }

    /// The digest of each kind, over all objects that are known.
    pub fn digests(&self) -> Digests {
        Self::KINDS.into_iter().map(|kind| (kind, self.kinds.get(&kind).map(|known| known.digest).unwrap_or_default())).collect()
    }

    /// The change of a kind after which its digest was `digest`: everything that became known by it or before is in there, as it is now or
    /// as it was then. `None`: it never was, or too long ago.
    pub fn step(&self, kind: Kind, digest: Digest) -> Option<u64> {
        match self.kinds.get(&kind) {
            None => (digest == Digest::default()).then_some(0),
            Some(known) if known.digest == digest => Some(known.step),
            Some(known) => known.steps.get(&digest).copied(),
        }
    }

    /// The objects of all kinds, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &ObjectName, &Version)> {
        self.kinds.iter().flat_map(|(kind, known)| known.objects.iter().map(|(name, version)| (*kind, name, version)))
    }

    /// The version of an object.
    pub fn of(&self, kind: Kind, name: &ObjectName) -> Option<&Version> {
        self.kinds.get(&kind)?.objects.get(name)
    }
}

impl Known {
    fn change(&mut self, before: Option<u128>, after: Option<u128>) {
        let sum = self.digest.0.wrapping_sub(before.unwrap_or_default()).wrapping_add(after.unwrap_or_default());
        self.steps.insert(self.digest, self.step);
        self.order.push_back((self.digest, self.step));
        if self.order.len() > REMEMBERED
            && let Some((digest, step)) = self.order.pop_front()
            && self.steps.get(&digest) == Some(&step)
        {
            self.steps.remove(&digest);
        }
        self.step += 1;
        self.digest = Digest(sum);
    }
}

fn name(kind: Kind, metadata: &ObjectMeta) -> Option<ObjectName> {
    let name = metadata.name.clone().filter(|_| Versions::KINDS.contains(&kind))?;
    Some(ObjectName { namespace: metadata.namespace.clone().unwrap_or_default(), name })
}

/// A number for one version of one object. The generation counts what the specification says, and the annotation is the one thing beside it
/// that policy depends on.
fn digest(kind: Kind, metadata: &ObjectMeta) -> u128 {
    let mode = metadata.annotations.as_ref().and_then(|annotations| annotations.get(MODE_ANNOTATION));
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut hash = Sha256::new();
    // No name, UID or annotation holds a zero byte.
    let parts = [kind.to_string(), optional(&metadata.namespace), optional(&metadata.name), optional(&metadata.uid)];
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update(metadata.generation.unwrap_or_default().to_be_bytes());
    hash.update(mode.map_or(&b""[..], |mode| mode.as_bytes()));
    let bytes = hash.finalize();
    bytes[..16].iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, generation: i64) -> ObjectMeta {
        ObjectMeta {
            namespace: Some("shop".into()),
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            generation: Some(generation),
            ..ObjectMeta::default()
        }
    }

    const KIND: Kind = Kind::NetworkPolicy;

    fn now(versions: &Versions) -> Digest {
        versions.digests()[&KIND]
    }

    #[test]
    fn the_digest_depends_on_the_versions_and_not_on_their_order() {
        let (mut one, mut other) = (Versions::default(), Versions::default());
        for (name, generation) in [("a", 1), ("b", 1), ("a", 2)] {
            one.upsert(KIND, &policy(name, generation));
        }
        for (name, generation) in [("c", 1), ("a", 2), ("b", 1)] {
            other.upsert(KIND, &policy(name, generation));
        }
        assert_ne!(now(&one), now(&other));
        other.delete(KIND, &policy("c", 0));
        assert_eq!(now(&one), now(&other));
        one.delete_named(KIND, ["shop/a".to_owned(), "shop/b".to_owned()].iter());
        assert_eq!(now(&one), Digest::default());
    }

    #[test]
    fn what_is_no_change_of_the_object_s_own_alters_nothing_and_its_mode_does() {
        let mut versions = Versions::default();
        let mut object = policy("a", 1);
        assert!(versions.upsert(KIND, &object));
        let before = now(&versions);
        object.resource_version = Some("7".into());
        object.labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert!(!versions.upsert(KIND, &object));
        assert_eq!(now(&versions), before);
        object.annotations = Some([(MODE_ANNOTATION.to_owned(), "Audit".to_owned())].into());
        assert!(versions.upsert(KIND, &object));
        assert_ne!(now(&versions), before);
        object.uid = Some("another".into());
        assert!(versions.upsert(KIND, &object), "one that was made anew under the name");
        assert!(!versions.upsert(Kind::Pod, &object), "no kind that is told of");
    }

    #[test]
    fn a_digest_of_before_says_how_far_somebody_is() {
        let mut versions = Versions::default();
        versions.upsert(KIND, &policy("a", 1));
        let first = now(&versions);
        versions.upsert(KIND, &policy("b", 1));
        versions.upsert(KIND, &policy("a", 2));
        let step = |digest| versions.step(KIND, digest);
        assert_eq!((step(Digest::default()), step(first), step(now(&versions))), (Some(0), Some(1), Some(3)));
        assert_eq!(versions.of(KIND, &ObjectName::new("shop", "b")).unwrap().step, 2);
        assert_eq!(versions.of(KIND, &ObjectName::new("shop", "a")).unwrap().step, 3);
        assert_eq!(step(Digest(7)), None);
        assert_eq!(versions.step(Kind::Identity, Digest::default()), Some(0), "nobody has seen one");
    }

    #[test]
    fn a_state_that_comes_again_counts_as_the_later_one_also_when_the_earlier_is_forgotten() {
        let mut versions = Versions::default();
        versions.upsert(KIND, &policy("a", 1));
        let state = now(&versions);
        let mut audited = policy("a", 1);
        audited.annotations = Some([(MODE_ANNOTATION.to_owned(), "Audit".to_owned())].into());
        versions.upsert(KIND, &audited);
        versions.upsert(KIND, &policy("a", 1));
        versions.upsert(KIND, &policy("b", 1));
        assert_eq!(versions.step(KIND, state), Some(3));
        for generation in 2..REMEMBERED as i64 - 2 {
            versions.upsert(KIND, &policy("b", generation));
        }
        assert_eq!(versions.step(KIND, Digest::default()), Some(0));
        versions.upsert(KIND, &policy("b", 1 << 40));
        versions.upsert(KIND, &policy("b", 1 << 41));
        versions.upsert(KIND, &policy("b", 1 << 42));
        assert_eq!((versions.step(KIND, Digest::default()), versions.step(KIND, state)), (None, Some(3)));
    }

    #[test]
    fn a_digest_is_read_back_as_it_was_written() {
        let mut versions = Versions::default();
        versions.upsert(KIND, &policy("a", 1));
        let text = serde_json::to_string(&versions.digests()).unwrap();
        assert_eq!(serde_json::from_str::<Digests>(&text).unwrap(), versions.digests());
    }
}
