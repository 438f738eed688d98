//! An ordered map whose copies share what they have in common.
//!
//! A cluster has tens of thousands of pods and policies and changes one at a time. The state before and the state after a change
//! are both needed, and where they differ; neither may cost as much as the cluster is large. So entries lie in groups (a
//! namespace, a range of addresses): a copy shares every group, a change copies one, and two maps are compared where
//! they do not share.

use crate::model::{ObjectName, PolicyName};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

/// A key that belongs to a group. The order of groups must agree with the order of keys: all keys of a group stand together.
pub trait Grouped: Ord + Clone {
    /// How the group of this key stands to that of another.
    fn compare_groups(&self, other: &Self) -> Ordering;
}

/// All names of one namespace.
impl Grouped for ObjectName {
    fn compare_groups(&self, other: &Self) -> Ordering {
        self.namespace.cmp(&other.namespace)
    }
}

/// All policies of one kind and namespace.
impl Grouped for PolicyName {
    fn compare_groups(&self, other: &Self) -> Ordering {
        self.kind.cmp(&other.kind).then_with(|| self.object.compare_groups(&other.object))
    }
}

/// Names of few objects that seldom change: one group.
impl Grouped for String {
    fn compare_groups(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// Addresses that differ in their last eight bits.
impl Grouped for IpAddr {
    fn compare_groups(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::V4(own), Self::V4(other)) => (own.to_bits() >> 8).cmp(&(other.to_bits() >> 8)),
            (Self::V6(own), Self::V6(other)) => (own.to_bits() >> 8).cmp(&(other.to_bits() >> 8)),
            _ => self.cmp(other),
        }
    }
}

/// An ordered map whose copies share what they have in common. A copy costs as much as there are groups, a change as much as its
/// group is large.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedMap<K, V> {
    /// In order; none is empty.
    groups: Vec<Arc<BTreeMap<K, V>>>,
}

/// A key under which two maps differ.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// What the older map holds.
    pub before: Option<&'a V>,
    /// What the newer map holds.
    pub after: Option<&'a V>,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { groups: Vec::new() }
    }
}

impl<K: Grouped, V> SharedMap<K, V> {
    /// Number of entries. Costs as much as there are groups.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.len()).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Number of entries in the groups of which the first key is such a one.
    pub fn len_of_groups(&self, is_meant: impl Fn(&K) -> bool) -> usize {
        let meant = |group: &&Arc<BTreeMap<K, V>>| group.keys().next().is_some_and(&is_meant);
        self.groups.iter().filter(meant).map(|group| group.len()).sum()
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// The entry of a key.
    pub fn get_key_value(&self, key: &K) -> Option<(&K, &V)> {
        self.groups[self.position(key).ok()?].get_key_value(key)
    }

    /// Whether there is an entry of this key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The entries, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.groups.iter().flat_map(|group| group.iter())
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The entries of one group: that of `key`, which itself need not be there.
    pub fn group(&self, key: &K) -> impl DoubleEndedIterator<Item = (&K, &V)> + use<'_, K, V> {
        self.position(key).ok().map(|position| &self.groups[position]).into_iter().flat_map(|group| group.iter())
    }

    /// The entries between two keys, both included.
    pub fn between(&self, first: &K, last: &K) -> impl Iterator<Item = (&K, &V)> {
        let from = self.position(first).unwrap_or_else(|position| position);
        let to = self.position(last).map_or_else(|position| position, |position| position + 1);
        self.groups[from..to.max(from)].iter().flat_map(move |group| group.range(first..=last))
    }

    /// Where this map, the older one, and a newer one differ, in the order of the keys. Costs as much as there are groups, and as the groups
    /// are large that they do not share.
    pub fn differences<'a>(&'a self, newer: &'a Self) -> Vec<Difference<'a, K, V>>
    where
        V: PartialEq,
    {
        let mut differences = Vec::new();
        let (mut old, mut new) = (self.groups.as_slice(), newer.groups.as_slice());
        loop {
            let order = match (old.first(), new.first()) {
                (Some(own), Some(other)) => match (own.keys().next(), other.keys().next()) {
                    (Some(own), Some(other)) => own.compare_groups(other),
                    _ => Ordering::Equal,
                },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return differences,
            };
            let before = if order == Ordering::Greater { None } else { old.split_off_first() };
            let after = if order == Ordering::Less { None } else { new.split_off_first() };
            // What is shared is equal.
            if let (Some(before), Some(after)) = (before, after)
                && Arc::ptr_eq(before, after)
            {
                continue;
            }
            let of = |group: Option<&'a Arc<BTreeMap<K, V>>>| group.map(|group| &**group);
            compare(of(before), of(after), &mut differences);
        }
    }

    /// The group of a key, or where it would be.
    fn position(&self, key: &K) -> Result<usize, usize> {
        self.groups.binary_search_by(|group| group.keys().next().map_or(Ordering::Less, |first| first.compare_groups(key)))
    }
}

/// The differences of two groups.
fn compare<'a, K: Ord, V: PartialEq>(
    before: Option<&'a BTreeMap<K, V>>,
    after: Option<&'a BTreeMap<K, V>>,
    differences: &mut Vec<Difference<'a, K, V>>,
) {
    let mut old = before.into_iter().flatten().peekable();
    let mut new = after.into_iter().flatten().peekable();
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((own, _)), Some((other, _))) => own.cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let before = if order == Ordering::Greater { None } else { old.next() };
        let after = if order == Ordering::Less { None } else { new.next() };
        let value = |entry: Option<(&'a K, &'a V)>| entry.map(|(_, value)| value);
        if let Some((key, _)) = before.or(after)
            && value(before) != value(after)
        {
            differences.push(Difference { key, before: value(before), after: value(after) });
        }
    }
}

impl<K: Grouped, V: Clone> SharedMap<K, V> {
    /// Writes an entry. Returns what was there before.
    pub fn insert(&mut self, key: K, value: impl Into<V>) -> Option<V> {
        match self.position(&key) {
            Ok(position) => Arc::make_mut(&mut self.groups[position]).insert(key, value.into()),
            Err(position) => {
                self.groups.insert(position, Arc::new(BTreeMap::from([(key, value.into())])));
                None
            }
        }
    }

    /// Removes an entry. Returns what was there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let position = self.position(key).ok()?;
        if !self.groups[position].contains_key(key) {
            return None;
        }
        let group = Arc::make_mut(&mut self.groups[position]);
        let removed = group.remove(key);
        if group.is_empty() {
            self.groups.remove(position);
        }
        removed
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let position = self.position(key).ok()?;
        if !self.groups[position].contains_key(key) {
            return None;
        }
        Arc::make_mut(&mut self.groups[position]).get_mut(key)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.groups.clear();
    }
}

impl<K: Grouped, T: Clone> SharedMap<K, Arc<T>> {
    /// The value of a key, to be changed; copied first where it is shared.
    pub fn edit(&mut self, key: &K) -> Option<&mut T> {
        self.get_mut(key).map(Arc::make_mut)
    }
}

impl<K: Grouped, V> std::ops::Index<&K> for SharedMap<K, V> {
    type Output = V;

    /// The value of a key. Panics where there is none.
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

impl<K: Grouped, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Grouped, V: Clone, W: Into<V>, const N: usize> From<[(K, W); N]> for SharedMap<K, V> {
    fn from(entries: [(K, W); N]) -> Self {
        entries.into_iter().map(|(key, value)| (key, value.into())).collect()
    }
}

impl<K: Grouped, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        entries.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
    }
}

impl<'a, K: Grouped, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Box<dyn DoubleEndedIterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<K: Grouped + Debug, V: Debug> Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Random;

    fn name(number: usize) -> ObjectName {
        ObjectName::new(format!("team-{}", number % 5), format!("pod-{}", number / 5))
    }

    #[test]
    fn it_is_the_ordered_map_that_it_stands_for_whatever_was_copied_on_the_way() {
        let mut random = Random::new(7);
        let (mut map, mut plain) = (SharedMap::<ObjectName, u32>::default(), BTreeMap::new());
        let mut copies = vec![(map.clone(), plain.clone())];
        for step in 0..2_000_u32 {
            let key = name(random.below(40));
            if random.chance(40) {
                assert_eq!(map.remove(&key), plain.remove(&key));
            } else {
                assert_eq!(map.insert(key.clone(), step % 7), plain.insert(key, step % 7));
            }
            if random.chance(5) {
                copies.push((map.clone(), plain.clone()));
            }
        }
        copies.push((map, plain));
        for (map, plain) in &copies {
            assert!(map.iter().eq(plain), "{map:?} {plain:?}");
            assert_eq!(map.len(), plain.len());
            assert_eq!(*map, plain.clone().into_iter().collect(), "the way to the entries does not matter");
            let (first, last) = (name(random.below(40)), name(random.below(40)));
            if first <= last {
                assert!(map.between(&first, &last).eq(plain.range(&first..=&last)));
            }
            let group: Vec<_> = plain.iter().filter(|(key, _)| key.namespace == first.namespace).collect();
            assert!(map.group(&first).eq(group));
        }
        for ((old, plain_old), (new, plain_new)) in copies.iter().zip(copies.iter().skip(3)) {
            let keys: std::collections::BTreeSet<_> = plain_old.keys().chain(plain_new.keys()).collect();
            let plain = keys.into_iter().map(|key| (key, plain_old.get(key), plain_new.get(key)));
            let plain: Vec<_> = plain.filter(|(_, before, after)| before != after).collect();
            let found: Vec<_> = old.differences(new).into_iter().map(|found| (found.key, found.before, found.after)).collect();
            assert_eq!(found, plain);
        }
    }

    #[test]
    fn addresses_of_one_group_differ_in_their_last_eight_bits() {
        let group = |own: &str, other: &str| {
            let [own, other] = [own, other].map(|address| address.parse::<IpAddr>().expect("an address"));
            own.compare_groups(&other)
        };
        assert_eq!(group("10.0.0.1", "10.0.0.255"), Ordering::Equal);
        assert_eq!(group("10.0.0.1", "10.0.1.0"), Ordering::Less);
        assert_eq!(group("fd00::1:ff", "fd00::1:1"), Ordering::Equal);
        assert_eq!(group("fd00::1", "10.0.0.1"), Ordering::Greater);
    }
}
