//! The selectors that rules name, by number.

use crate::model::Model;
use crate::rules::{EffectivePort, RuleSet};
use ipnet::IpNet;
use palisade_identity::{NamespaceMatch, Protocol, Selector};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Number of a selector in its universe. It stays as long as some rule names the selector.
pub(crate) type SelectorIndex = u32;

/// A signature by the numbers of its selectors, in ascending order.
pub(crate) type IndexedSignature = Vec<SelectorIndex>;

/// All selectors that the rules of this node's subjects name.
///
/// What only policies of other nodes' pods name is not here: it cannot alter a verdict of this node, and leaving
/// it out keeps the number of identities down.
#[derive(Default)]
pub(crate) struct Universe {
    /// By number; a number that nothing has now keeps its place until it is given to another.
    selectors: Vec<Option<Selector>>,
    indices: HashMap<Selector, SelectorIndex>,
    /// Numbers that may be given to others.
    free: Vec<SelectorIndex>,
    /// Numbers that were taken back, and that signatures may still hold.
    retired: Vec<SelectorIndex>,
    /// The blocks and their numbers.
    pub(crate) blocks: BTreeMap<IpNet, SelectorIndex>,
    /// How many blocks there are of each prefix length: IPv4, IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    /// The selectors of nodes.
    pub(crate) nodes: BTreeSet<SelectorIndex>,
    /// The selectors of pods by the name of the namespace that they mean, and those that mean namespaces by their labels.
    pub(crate) of_namespace: HashMap<String, BTreeSet<SelectorIndex>>,
    pub(crate) of_namespaces: BTreeSet<SelectorIndex>,
    /// The named ports by protocol and name: port and number.
    named: BTreeMap<(Protocol, String), BTreeMap<u16, SelectorIndex>>,
}

/// What a rule set names.
#[derive(Default)]
pub(crate) struct Named {
    /// Selectors, the blocks of `except` among them.
    pub selectors: BTreeSet<Selector>,
    /// Ports that the peer names.
    pub ports: BTreeSet<(Protocol, String)>,
}

impl Named {
    /// What a rule set names.
    pub fn by(rule_set: &RuleSet) -> Self {
        let mut named = Self::default();
        for rule in rule_set.ingress.rules.iter().chain(&rule_set.egress.rules) {
            for peer in rule.peers.iter().flatten() {
                if !named.selectors.contains(&peer.selector) {
                    named.selectors.insert(peer.selector.clone());
                }
                named.selectors.extend(peer.except.iter().map(|block| Selector::Block(*block)));
            }
            for port in rule.ports.iter().flatten() {
                if let EffectivePort::PeerNamed(protocol, name) = port {
                    named.ports.insert((*protocol, name.clone()));
                }
            }
        }
        named
    }
}

impl Universe {
    /// What rule sets name, with the numbers that the model's pods give to named ports.
    pub fn of<'r>(rule_sets: impl IntoIterator<Item = &'r RuleSet>, model: &Model) -> Self {
        let mut universe = Self::default();
        let mut ports = BTreeSet::new();
        for named in rule_sets.into_iter().map(Named::by) {
            named.selectors.into_iter().for_each(|selector| universe.add(selector));
            ports.extend(named.ports);
        }
        if !ports.is_empty() {
            for port in model.pods.values().flat_map(|pod| &pod.ports) {
                if ports.contains(&(port.protocol, port.name.clone())) {
                    universe.add(Selector::NamedPort { name: port.name.clone(), protocol: port.protocol, port: port.port });
                }
            }
        }
        universe
    }

    /// Gives a selector a number, if it has none.
    pub fn add(&mut self, selector: Selector) {
        if self.indices.contains_key(&selector) {
            return;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.selectors.push(None);
            (self.selectors.len() - 1) as SelectorIndex
        });
        match &selector {
            Selector::Block(block) => {
                self.blocks.insert(*block, index);
                *self.lengths[usize::from(block.addr().is_ipv6())].entry(block.prefix_len()).or_default() += 1;
            }
            Selector::NamedPort { name, protocol, port } => {
                self.named.entry((*protocol, name.clone())).or_default().insert(*port, index);
            }
            Selector::Nodes(_) => drop(self.nodes.insert(index)),
            Selector::Pods { namespaces: NamespaceMatch::Name(name), .. } => {
                self.of_namespace.entry(name.clone()).or_default().insert(index);
            }
            Selector::Pods { .. } => drop(self.of_namespaces.insert(index)),
            Selector::World | Selector::ApiServer => {}
        }
        self.indices.insert(selector.clone(), index);
        self.selectors[index as usize] = Some(selector);
    }

    /// Takes the number of a selector back. It is given to another only after [`reuse`](Self::reuse).
    pub fn remove(&mut self, selector: &Selector) {
        let Some(index) = self.indices.remove(selector) else { return };
        match selector {
            Selector::Block(block) => {
                self.blocks.remove(block);
                decrement(&mut self.lengths[usize::from(block.addr().is_ipv6())], &block.prefix_len());
            }
            Selector::NamedPort { name, protocol, port } => {
                let key = (*protocol, name.clone());
                if let Some(ports) = self.named.get_mut(&key) {
                    ports.remove(port);
                    if ports.is_empty() {
                        self.named.remove(&key);
                    }
                }
            }
            Selector::Nodes(_) => drop(self.nodes.remove(&index)),
            Selector::Pods { namespaces: NamespaceMatch::Name(name), .. } => {
                if let Some(own) = self.of_namespace.get_mut(name) {
                    own.remove(&index);
                    if own.is_empty() {
                        self.of_namespace.remove(name);
                    }
                }
            }
            Selector::Pods { .. } => drop(self.of_namespaces.remove(&index)),
            Selector::World | Selector::ApiServer => {}
        }
        self.selectors[index as usize] = None;
        self.retired.push(index);
    }

    /// No signature holds a number any more that was taken back.
    pub fn reuse(&mut self) {
        self.free.append(&mut self.retired);
    }

    /// The selector of a number; `None` where it was taken back.
    pub fn selector(&self, index: SelectorIndex) -> Option<&Selector> {
        self.selectors.get(index as usize)?.as_ref()
    }

    /// The number of a selector that the rules name.
    pub fn index(&self, selector: &Selector) -> Option<SelectorIndex> {
        self.indices.get(selector).copied()
    }

    /// The numbers that pods give to a named port: number of the selector, and port.
    pub fn named(&self, protocol: Protocol, name: &str) -> impl Iterator<Item = (SelectorIndex, u16)> + use<'_> {
        self.named.get(&(protocol, name.to_owned())).into_iter().flatten().map(|(&port, &index)| (index, port))
    }

    /// The blocks that contain all of `inner`, itself included.
    pub fn blocks_around(&self, inner: IpNet) -> impl Iterator<Item = SelectorIndex> + use<'_> {
        let lengths = &self.lengths[usize::from(inner.addr().is_ipv6())];
        lengths
            .range(faulty!(0, ShortPrefixesForgotten => inner.prefix_len().min(9))..=inner.prefix_len())
            .filter_map(move |(&length, _)| IpNet::new(inner.addr(), length).ok())
            .filter_map(|outer| self.blocks.get(&outer.trunc()).copied())
    }
}

/// One less of `key`; the last goes. Tells whether it was the last.
pub(crate) fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(key);
    }
    last
}
