//! The signatures that addresses have, each with its identity.

use crate::numbers::Numbers;
use crate::universe::{IndexedSignature, SelectorIndex, Universe};
use palisade_datapath_core::abi::IDENTITY_ANY;
use palisade_identity::Signature;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The signatures that addresses and prefixes have, and which of them hold a selector.
#[derive(Default)]
pub(crate) struct Classes {
    identities: HashMap<IndexedSignature, u32>,
    /// By identity.
    classes: BTreeMap<u32, Class>,
    /// The identities whose signatures hold a selector.
    members: HashMap<SelectorIndex, BTreeSet<u32>>,
    /// Selectors of signatures that came or went since somebody asked.
    touched: BTreeSet<SelectorIndex>,
}

struct Class {
    signature: IndexedSignature,
    /// How many addresses and prefixes have it.
    users: usize,
}

impl Classes {
    /// One more address or prefix has this signature. Returns its identity: an empty one needs none, for only rules without
    /// peers speak of it.
    pub fn hold(&mut self, signature: IndexedSignature, universe: &Universe, numbers: &mut Numbers) -> u32 {
        if signature.is_empty() {
            return IDENTITY_ANY;
        }
        if let Some(&identity) = self.identities.get(&signature) {
            self.classes.entry(identity).and_modify(|class| class.users += 1);
            return identity;
        }
        let content: Signature = signature.iter().filter_map(|&index| universe.selector(index).cloned()).collect();
        let identity = numbers.identities.intern(content);
        for &index in &signature {
            self.members.entry(index).or_default().insert(identity);
        }
        self.touched.extend(&signature);
        self.identities.insert(signature.clone(), identity);
        self.classes.insert(identity, Class { signature, users: 1 });
        identity
    }

    /// One less. A class that nobody is in any more is forgotten by [`forget_unused`](Self::forget_unused).
    pub fn release(&mut self, identity: u32) {
        self.classes.entry(identity).and_modify(|class| class.users -= 1);
    }

    /// Forgets signatures that nobody has.
    pub fn forget_unused(&mut self) {
        let unused: Vec<u32> = self.classes.iter().filter(|(_, class)| class.users == 0).map(|(identity, _)| *identity).collect();
        for identity in unused {
            let Some(Class { signature, .. }) = self.classes.remove(&identity) else { continue };
            for index in &signature {
                if let Some(members) = self.members.get_mut(index) {
                    members.remove(&identity);
                    if members.is_empty() {
                        self.members.remove(index);
                    }
                }
            }
            self.identities.remove(&signature);
            self.touched.extend(signature);
        }
    }

    /// The selectors of signatures that came or went since this was called before.
    pub fn take_touched(&mut self) -> BTreeSet<SelectorIndex> {
        std::mem::take(&mut self.touched)
    }

    /// The signature of an identity.
    pub fn signature(&self, identity: u32) -> &[SelectorIndex] {
        self.classes.get(&identity).map(|class| class.signature.as_slice()).unwrap_or_default()
    }

    /// The identities whose signatures hold a selector.
    pub fn members(&self, selector: SelectorIndex) -> impl Iterator<Item = u32> {
        self.members.get(&selector).into_iter().flatten().copied()
    }

    /// The identities.
    pub fn identities(&self) -> impl Iterator<Item = u32> {
        self.classes.keys().copied()
    }
}
