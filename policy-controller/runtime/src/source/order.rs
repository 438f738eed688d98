//! The order between a watch and a read beside it.
//!
//! A watch tells of changes late; a list tells of the present, but not of what came between. Both feed one index, so each
//! must know when the other was ahead: resource versions of one kind grow with every change of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_k8s::index::Kind;
use std::collections::BTreeMap;

/// How far the watch of each kind is, and which objects were read past it.
#[derive(Debug, Default)]
pub struct Order {
    kinds: BTreeMap<Kind, Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The greatest version that the watch has brought.
    watched: u64,
    /// Whether the watch is listing everything anew.
    listing: bool,
    /// What was read past the watch: scope, and the version of the list.
    read: BTreeMap<String, u64>,
}

/// What can be done with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is the newest that is known: the index must become like it.
    Take,
    /// The watch is past it already.
    Skip,
    /// The watch is listing anew; ask again later.
    Wait,
}

/// The version of an object or list; 0 where it cannot be compared.
pub fn version(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What lists are narrowed to: the namespace for policies (none for those of the cluster), the object for all others.
fn scope(kind: Kind, metadata: &ObjectMeta) -> String {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    match kind {
        Kind::NetworkPolicy | Kind::IdentityPolicy | Kind::ClusterNetworkPolicy => namespace.to_owned(),
        _ => format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()),
    }
}

impl Order {
    /// The watch of a kind begins to list everything. What it lists is newer than all that was read before.
    pub fn begin_listing(&mut self, kind: Kind) {
        let progress = self.kinds.entry(kind).or_default();
        progress.listing = true;
        progress.read.clear();
    }

    /// The watch of a kind has listed everything.
    pub fn end_listing(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default().listing = false;
    }

    /// The watch brings a change of an object. False: a list has told of a later state of it already.
    pub fn watched(&mut self, kind: Kind, metadata: &ObjectMeta) -> bool {
        let progress = self.kinds.entry(kind).or_default();
        let version = version(metadata.resource_version.as_deref());
        progress.watched = progress.watched.max(version);
        let newer = progress.read.get(&scope(kind, metadata)).is_none_or(|read| version > *read);
        let watched = progress.watched;
        progress.read.retain(|_, read| *read > watched);
        newer
    }

    /// A list narrowed to the scope of `of` was read, at `version`.
    pub fn read(&mut self, kind: Kind, of: &ObjectMeta, version: u64) -> Use {
        let progress = self.kinds.entry(kind).or_default();
        if progress.listing {
            return Use::Wait;
        }
        let scope = scope(kind, of);
        let known = progress.read.get(&scope).copied().unwrap_or(0).max(progress.watched);
        if version < known {
            return Use::Skip;
        }
        if version > progress.watched {
            progress.read.insert(scope, version);
        }
        Use::Take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, version: u64) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        }
    }

    const KIND: Kind = Kind::NetworkPolicy;

    #[test]
    fn what_a_list_has_told_is_not_undone_by_a_late_watch() {
        let mut order = Order::default();
        assert!(order.watched(KIND, &policy("a", 10)));
        assert_eq!(order.read(KIND, &policy("a", 0), 20), Use::Take);
        assert!(!order.watched(KIND, &policy("a", 15)), "an older change, or the deletion of an older object of that name");
        assert!(!order.watched(KIND, &policy("b", 20)), "any policy of the namespace that the list was of");
        assert!(order.watched(KIND, &policy("a", 21)));
    }

    #[test]
    fn a_list_that_the_watch_is_past_is_not_taken() {
        let mut order = Order::default();
        order.watched(KIND, &policy("a", 30));
        assert_eq!(order.read(KIND, &policy("a", 0), 20), Use::Skip);
        assert_eq!(order.read(KIND, &policy("a", 0), 30), Use::Take);
    }

    #[test]
    fn an_older_list_does_not_undo_a_newer_one() {
        let mut order = Order::default();
        assert_eq!(order.read(KIND, &policy("a", 0), 20), Use::Take);
        assert_eq!(order.read(KIND, &policy("a", 0), 19), Use::Skip);
    }

    #[test]
    fn lists_of_one_namespace_say_nothing_of_others() {
        let mut order = Order::default();
        assert_eq!(order.read(KIND, &policy("a", 0), 20), Use::Take);
        let other = ObjectMeta { namespace: Some("other".to_owned()), ..policy("a", 15) };
        assert!(order.watched(KIND, &other));
    }

    #[test]
    fn while_the_watch_lists_anew_a_list_beside_it_has_to_wait() {
        let mut order = Order::default();
        order.begin_listing(KIND);
        assert_eq!(order.read(KIND, &policy("a", 0), 20), Use::Wait);
        order.end_listing(KIND);
        assert_eq!(order.read(KIND, &policy("a", 0), 20), Use::Take);
        order.begin_listing(KIND);
        assert!(order.watched(KIND, &policy("a", 15)), "what is listed anew is newer than what was read before");
    }

    #[test]
    fn what_was_read_is_forgotten_once_the_watch_is_past_it() {
        let mut order = Order::default();
        order.read(KIND, &policy("a", 0), 20);
        order.watched(KIND, &ObjectMeta { namespace: Some("other".to_owned()), ..policy("a", 25) });
        assert!(order.kinds[&KIND].read.is_empty());
    }
}
