//! The selectors that the rules of this node's subjects name, and which of them each address matches.

use crate::model::{Model, Node, ObjectName, Pod};
use crate::rules::{EffectivePort, RuleSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use palisade_identity::{NamespaceMatch, Operator, Protocol, Selector, ServiceAccount};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Index of a selector in its universe.
pub(crate) type SelectorIndex = u32;

/// A signature by the indices of its selectors, in ascending order.
pub(crate) type IndexedSignature = Vec<SelectorIndex>;

/// All selectors that the rules of this node's subjects name.
///
/// What only policies of other nodes' pods name is not here: it cannot alter a verdict of this node, and leaving
/// it out keeps the number of identities down.
pub(crate) struct Universe {
    /// In order; the position is the index.
    selectors: Vec<Selector>,
    indices: HashMap<Selector, SelectorIndex>,
    /// The blocks and their indices.
    blocks: HashMap<IpNet, SelectorIndex>,
    /// The prefix lengths that occur among the blocks: IPv4, IPv6.
    lengths: [BTreeSet<u8>; 2],
    /// Indices of the selectors of nodes.
    nodes: Vec<SelectorIndex>,
    /// The named ports by protocol and name.
    named: BTreeMap<(Protocol, String), Vec<SelectorIndex>>,
}

impl Universe {
    /// Collects what `rule_sets` name, with the numbers that the model's pods give to named ports.
    pub fn new<'r>(rule_sets: impl IntoIterator<Item = &'r RuleSet>, model: &Model) -> Self {
        let mut selectors = BTreeSet::new();
        let mut names: BTreeSet<(Protocol, &str)> = BTreeSet::new();
        for rule in rule_sets.into_iter().flat_map(|set| set.ingress.rules.iter().chain(&set.egress.rules)) {
            for peer in rule.peers.iter().flatten() {
                selectors.insert(peer.selector.clone());
                selectors.extend(peer.except.iter().map(|block| Selector::Block(*block)));
            }
            for port in rule.ports.iter().flatten() {
                if let EffectivePort::PeerNamed(protocol, name) = port {
                    names.insert((*protocol, name));
                }
            }
        }
        if !names.is_empty() {
            for port in model.pods.values().flat_map(|pod| &pod.ports) {
                if names.contains(&(port.protocol, port.name.as_str())) {
                    selectors.insert(Selector::NamedPort { name: port.name.clone(), protocol: port.protocol, port: port.port });
                }
            }
        }
        Self::of(selectors)
    }

    fn of(selectors: BTreeSet<Selector>) -> Self {
        let selectors: Vec<_> = selectors.into_iter().collect();
        let mut universe = Self {
            indices: HashMap::new(),
            blocks: HashMap::new(),
            lengths: Default::default(),
            nodes: Vec::new(),
            named: BTreeMap::new(),
            selectors: Vec::new(),
        };
        for (index, selector) in (0..).zip(&selectors) {
            universe.indices.insert(selector.clone(), index);
            match selector {
                Selector::Block(block) => {
                    universe.blocks.insert(*block, index);
                    universe.lengths[usize::from(block.addr().is_ipv6())].insert(block.prefix_len());
                }
                Selector::NamedPort { name, protocol, .. } => {
                    universe.named.entry((*protocol, name.clone())).or_default().push(index);
                }
                Selector::Nodes(_) => universe.nodes.push(index),
                Selector::Pods { .. } | Selector::World | Selector::ApiServer => {}
            }
        }
        Self { selectors, ..universe }
    }

    /// The selectors, in the order of their indices.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// The index of a selector that the rules name.
    pub fn index(&self, selector: &Selector) -> Option<SelectorIndex> {
        self.indices.get(selector).copied()
    }

    /// The numbers that pods give to a named port: index and number.
    pub fn named(&self, protocol: Protocol, name: &str) -> impl Iterator<Item = (SelectorIndex, u16)> {
        self.named.get(&(protocol, name.to_owned())).into_iter().flatten().filter_map(|&index| match self.selectors[index as usize] {
            Selector::NamedPort { port, .. } => Some((index, port)),
            _ => None,
        })
    }

    /// The blocks that contain all of `inner`, itself included.
    fn blocks_around(&self, inner: IpNet) -> IndexedSignature {
        let lengths = &self.lengths[usize::from(inner.addr().is_ipv6())];
        let mut around: IndexedSignature = lengths
            .range(faulty!(0, ShortPrefixesForgotten => inner.prefix_len().min(9))..=inner.prefix_len())
            .filter_map(|&length| IpNet::new(inner.addr(), length).ok())
            .filter_map(|outer| self.blocks.get(&outer.trunc()).copied())
            .collect();
        around.sort_unstable();
        around
    }

    /// What addresses match that nobody of the cluster is known to have, by the longest of these prefixes that contains them:
    /// the blocks that the rules name, `except` included, and where they name the world, both families and what is not of it.
    pub fn prefixes(&self, model: &Model) -> BTreeMap<IpNet, IndexedSignature> {
        let mut prefixes: BTreeSet<IpNet> = self.blocks.keys().copied().collect();
        let world = self.index(&Selector::World);
        let inside: Vec<IpNet> = model.nodes.values().flat_map(|node| &node.pod_ranges).map(IpNet::trunc).collect();
        if world.is_some() {
            prefixes.extend([IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())]);
            prefixes.extend(&inside);
        }
        let signature = |prefix: IpNet| {
            let world = world.filter(|_| faulty!(!inside.iter().any(|range| range.contains(&prefix)), PodRangesAreTheWorld => true));
            ordered(self.blocks_around(prefix).into_iter().chain(world))
        };
        prefixes.into_iter().map(|prefix| (prefix, signature(prefix))).collect()
    }

    /// What each address of the cluster's pods and nodes, and of the API server, matches.
    pub fn signatures(&self, model: &Model) -> BTreeMap<IpAddr, IndexedSignature> {
        let mut facts: BTreeMap<IpAddr, IndexedSignature> = BTreeMap::new();
        // An address that several pods, or several nodes, claim matches only what all of them match: while one of them takes it
        // over from another, nobody is taken for the other.
        let claim = |facts: &mut BTreeMap<IpAddr, IndexedSignature>, address, matched: &IndexedSignature| {
            facts
                .entry(address)
                .and_modify(|shared| shared.retain(|index| faulty!(matched.contains(index), ClaimedByTheFirst => true)))
                .or_insert_with(|| matched.clone());
        };
        let mut matcher = None;
        for (name, pod) in &model.pods {
            // Pods come sorted by namespace: one index of candidates at a time.
            let matcher = match &mut matcher {
                Some(matcher) if NamespaceMatcher::is_for(matcher, &name.namespace) => matcher,
                other => other.insert(NamespaceMatcher::new(self, model, &name.namespace)),
            };
            let matched = self.pod_signature(matcher, pod);
            pod.addresses.iter().for_each(|&address| claim(&mut facts, address, &matched));
        }
        let mut nodes: BTreeMap<IpAddr, IndexedSignature> = BTreeMap::new();
        for (name, node) in &model.nodes {
            let matched = self.node_signature(name, node);
            node.addresses.iter().for_each(|&address| claim(&mut nodes, address, &matched));
        }
        for (address, matched) in nodes {
            facts.entry(address).or_default().extend(matched);
        }
        if let Some(api_server) = self.index(&Selector::ApiServer) {
            let world = self.index(&Selector::World);
            let inside = |address| model.nodes.values().flat_map(|node| &node.pod_ranges).any(|range| range.contains(address));
            for address in &model.api_servers {
                let own = || world.filter(|_| !inside(address)).into_iter().collect();
                facts.entry(*address).or_insert_with(own).extend(faulty!(Some(api_server), ApiServerForgotten => None));
            }
        }
        for (address, signature) in &mut facts {
            *signature = ordered(signature.drain(..).chain(self.blocks_around(IpNet::from(*address))));
        }
        facts
    }

    /// What one address matches.
    pub fn signature_of(&self, model: &Model, address: IpAddr) -> IndexedSignature {
        if let Some(signature) = self.signatures(model).remove(&address) {
            return signature;
        }
        let mut prefixes = self.prefixes(model);
        let mut around = Some(IpNet::from(address));
        while let Some(prefix) = around {
            if let Some(signature) = prefixes.remove(&prefix) {
                return signature;
            }
            around = prefix.supernet();
        }
        Vec::new()
    }

    fn node_signature(&self, name: &str, node: &Node) -> IndexedSignature {
        let matches = |index: &SelectorIndex| match &self.selectors[*index as usize] {
            Selector::Nodes(meant) => faulty!(meant.matches(name, &node.labels), NodeLabelsIgnored => true),
            _ => false,
        };
        self.nodes.iter().copied().filter(matches).collect()
    }

    fn pod_signature(&self, matcher: &NamespaceMatcher, pod: &Pod) -> IndexedSignature {
        let named = pod
            .ports
            .iter()
            .filter_map(|port| self.index(&Selector::NamedPort { name: port.name.clone(), protocol: port.protocol, port: port.port }));
        ordered(matcher.matches(self, pod).into_iter().chain(named))
    }
}

/// The pod selectors that pods of one namespace may match, by a label that each of them wants.
struct NamespaceMatcher<'m> {
    namespace: &'m str,
    /// Selectors that want one of some values of a key, under each of these labels.
    by_label: HashMap<(String, String), Vec<SelectorIndex>>,
    /// Selectors that want no particular value.
    others: Vec<SelectorIndex>,
}

impl<'m> NamespaceMatcher<'m> {
    fn new(universe: &Universe, model: &Model, namespace: &'m str) -> Self {
        let labels = model.namespaces.get(namespace);
        let mut meant: HashMap<&NamespaceMatch, bool> = HashMap::new();
        let mut matcher = Self { namespace, by_label: HashMap::new(), others: Vec::new() };
        for (index, selector) in (0..).zip(&universe.selectors) {
            let Selector::Pods { namespaces, pods, .. } = selector else { continue };
            if !*meant.entry(namespaces).or_insert_with(|| namespaces.matches(namespace, labels)) {
                continue;
            }
            let wanted = pods.requirements.iter().find_map(|requirement| match &requirement.operator {
                Operator::In(values) => Some((&requirement.key, values)),
                _ => None,
            });
            match wanted {
                Some((key, values)) => {
                    for value in values {
                        matcher.by_label.entry((key.clone(), value.clone())).or_default().push(index);
                    }
                }
                None => matcher.others.push(index),
            }
        }
        matcher
    }

    fn is_for(&self, namespace: &str) -> bool {
        self.namespace == namespace
    }

    fn matches(&self, universe: &Universe, pod: &Pod) -> IndexedSignature {
        let labelled = pod.labels.iter().filter_map(|(key, value)| self.by_label.get(&(key.clone(), value.clone()))).flatten();
        labelled
            .chain(&self.others)
            .copied()
            .filter(|&index| match &universe.selectors[index as usize] {
                Selector::Pods { pods, accounts, .. } => {
                    let own = |account: &ServiceAccount| account.namespace == self.namespace && account.name == pod.service_account;
                    faulty!(pods.matches(&pod.labels), PeerLabelsIgnored => true)
                        && accounts.as_ref().is_none_or(|accounts| accounts.iter().any(own))
                }
                _ => false,
            })
            .collect()
    }
}

/// A signature of these selectors.
fn ordered(indices: impl Iterator<Item = SelectorIndex>) -> IndexedSignature {
    let mut signature: IndexedSignature = indices.collect();
    signature.sort_unstable();
    signature.dedup();
    signature
}

/// The pods of `local` that the model knows, with their effective rules.
pub(crate) fn local_pods<'m>(model: &'m Model, local: &'m BTreeSet<ObjectName>) -> impl Iterator<Item = (&'m ObjectName, &'m Pod)> {
    local.iter().filter_map(|name| model.pods.get_key_value(name))
}
