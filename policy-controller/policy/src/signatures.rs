//! Which selectors an address or a prefix matches.

use crate::model::{Model, Node, ObjectName, Pod};
use crate::universe::{IndexedSignature, SelectorIndex, Universe};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use palisade_identity::{NamespaceMatch, Operator, Selector, ServiceAccount};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Whose an address is.
#[derive(Default)]
pub(crate) struct Owners {
    pods: BTreeMap<IpAddr, Vec<Arc<ObjectName>>>,
    nodes: BTreeMap<IpAddr, Vec<String>>,
}

impl Owners {
    /// Those of the model; where `only` is given, of that address alone.
    pub fn new(model: &Model, only: Option<IpAddr>) -> Self {
        let mut owners = Self::default();
        let meant = |address: &&IpAddr| only.is_none_or(|only| **address == only);
        for (name, pod) in &model.pods {
            owners.add_pod(name, pod.addresses.iter().filter(meant));
        }
        for (name, node) in &model.nodes {
            for address in node.addresses.iter().filter(meant) {
                owners.nodes.entry(*address).or_default().push(name.clone());
            }
        }
        owners
    }

    /// A pod has these addresses.
    pub fn add_pod<'a>(&mut self, name: &ObjectName, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        let name = Arc::new(name.clone());
        for address in addresses {
            self.pods.entry(*address).or_default().push(Arc::clone(&name));
        }
    }

    /// A pod has these addresses no more.
    pub fn remove_pod(&mut self, name: &ObjectName, addresses: &[IpAddr]) {
        for address in addresses {
            if let Some(pods) = self.pods.get_mut(address) {
                pods.retain(|pod| **pod != *name);
                if pods.is_empty() {
                    self.pods.remove(address);
                }
            }
        }
    }

    /// The addresses of pods and nodes, with and without repetitions.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pods.keys().chain(self.nodes.keys()).copied()
    }

    /// The pods that have an address.
    pub fn pods(&self, address: &IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.pods.get(address).into_iter().flatten().map(|name| &**name)
    }

    /// The addresses of nodes.
    pub fn of_nodes(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.keys().copied()
    }

    fn has(&self, address: &IpAddr) -> bool {
        self.pods.contains_key(address) || self.nodes.contains_key(address)
    }
}

impl Universe {
    /// What each of `addresses` matches, in their order; `None` for one that nobody has.
    ///
    /// An address that several pods, or several nodes, claim matches only what all of them match: while one of them takes it
    /// over from another, nobody is taken for the other.
    pub fn signatures<'a>(
        &self,
        model: &Model,
        owners: &Owners,
        addresses: &'a BTreeSet<IpAddr>,
    ) -> impl Iterator<Item = (IpAddr, Option<IndexedSignature>)> + use<'_, 'a> {
        let pods = self.pod_signatures(model, owners, addresses);
        let api_server = self.index(&Selector::ApiServer);
        let world = self.index(&Selector::World);
        let inside = pod_ranges(model);
        let signature = |address: &IpAddr| {
            let by_pods =
                owners.pods.get(address).map(|names| shared(names.iter().map(|name| pods.get(&**name).cloned().unwrap_or_default())));
            let by_nodes = owners
                .nodes
                .get(address)
                .map(|names| shared(names.iter().filter_map(|name| Some(self.node_signature(name, model.nodes.get(name)?)))));
            let of_api_server = api_server.filter(|_| model.api_servers.contains(address));
            // Where rules do not name the API server, its address is one like others.
            if !owners.has(address) && of_api_server.is_none() {
                return None;
            }
            let of_world = world.filter(|_| !owners.has(address) && !inside.iter().any(|range| range.contains(address)));
            let named = by_pods.into_iter().chain(by_nodes).flatten();
            let told = faulty!(of_api_server, ApiServerForgotten => None);
            Some(ordered(named.chain(told).chain(of_world).chain(self.blocks_around(IpNet::from(*address)))))
        };
        let signatures: Vec<_> = addresses.iter().map(|address| (*address, signature(address))).collect();
        signatures.into_iter()
    }

    /// What the addresses match in each of `prefixes` of which no longer prefix is known: the blocks around it, and the world. `None` for one
    /// with which neither a block nor the world begins or ends.
    pub fn prefix_signatures(&self, model: &Model, prefixes: &BTreeSet<IpNet>) -> Vec<(IpNet, Option<IndexedSignature>)> {
        let world = self.index(&Selector::World);
        let inside = pod_ranges(model);
        let ends = if world.is_some() { world_prefixes(model) } else { BTreeSet::new() };
        let signature = |prefix: &IpNet| {
            let of_world = || world.filter(|_| faulty!(!inside.iter().any(|range| range.contains(prefix)), PodRangesAreTheWorld => true));
            let known = self.blocks.contains_key(prefix) || ends.contains(prefix);
            known.then(|| ordered(self.blocks_around(*prefix).chain(of_world())))
        };
        prefixes.iter().map(|prefix| (*prefix, signature(prefix))).collect()
    }

    /// The prefixes that have a signature of their own.
    pub fn prefixes(&self, model: &Model) -> BTreeSet<IpNet> {
        let world = if self.index(&Selector::World).is_some() { world_prefixes(model) } else { BTreeSet::new() };
        self.blocks.keys().copied().chain(world).collect()
    }

    /// What one address matches.
    pub fn signature_of(&self, model: &Model, address: IpAddr) -> IndexedSignature {
        let addresses = BTreeSet::from([address]);
        let owned = self.signatures(model, &Owners::new(model, Some(address)), &addresses).find_map(|(_, signature)| signature);
        owned.unwrap_or_else(|| {
            let around = std::iter::successors(Some(IpNet::from(address)), IpNet::supernet).map(|prefix| prefix.trunc()).collect();
            let longest = self
                .prefix_signatures(model, &around)
                .into_iter()
                .rev()
                .find_map(|(prefix, signature)| Some((prefix.prefix_len(), signature?)));
            longest.map(|(_, signature)| signature).unwrap_or_default()
        })
    }

    /// What the pods match that have one of `addresses`, blocks aside.
    fn pod_signatures<'o>(
        &self,
        model: &Model,
        owners: &'o Owners,
        addresses: &BTreeSet<IpAddr>,
    ) -> HashMap<&'o ObjectName, IndexedSignature> {
        let names: HashSet<&ObjectName> =
            addresses.iter().filter_map(|address| owners.pods.get(address)).flatten().map(|name| &**name).collect();
        let mut names: Vec<&ObjectName> = names.into_iter().collect();
        // By namespace: one index of candidates at a time.
        names.sort_unstable();
        let mut matcher: Option<NamespaceMatcher> = None;
        let mut signatures = HashMap::with_capacity(names.len());
        for name in names {
            let Some(pod) = model.pods.get(name) else { continue };
            let matcher = match &mut matcher {
                Some(matcher) if matcher.namespace == name.namespace => matcher,
                other => other.insert(NamespaceMatcher::new(self, model, &name.namespace)),
            };
            let named = pod
                .ports
                .iter()
                .filter_map(|port| self.index(&Selector::NamedPort { name: port.name.clone(), protocol: port.protocol, port: port.port }));
            signatures.insert(name, ordered(matcher.matches(self, pod).into_iter().chain(named)));
        }
        signatures
    }

    fn node_signature(&self, name: &str, node: &Node) -> IndexedSignature {
        let matches = |index: &SelectorIndex| match self.selector(*index) {
            Some(Selector::Nodes(meant)) => faulty!(meant.matches(name, &node.labels), NodeLabelsIgnored => true),
            _ => false,
        };
        self.nodes.iter().copied().filter(matches).collect()
    }
}

/// Whether a pod matches a selector of pods.
pub(crate) fn matches_pod(selector: &Selector, namespace: &str, pod: &Pod) -> bool {
    let Selector::Pods { pods, accounts, .. } = selector else { return false };
    let own = |account: &ServiceAccount| account.namespace == namespace && account.name == pod.service_account;
    faulty!(pods.matches(&pod.labels), PeerLabelsIgnored => true) && accounts.as_ref().is_none_or(|accounts| accounts.iter().any(own))
}

/// The pod ranges of the nodes: no address in them is of the world.
fn pod_ranges(model: &Model) -> Vec<IpNet> {
    model.nodes.values().flat_map(|node| &node.pod_ranges).map(IpNet::trunc).collect()
}

/// Where the world begins and ends.
fn world_prefixes(model: &Model) -> BTreeSet<IpNet> {
    let families = [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
    families.into_iter().chain(pod_ranges(model)).collect()
}

/// What all of several owners match.
fn shared(mut of_owners: impl Iterator<Item = IndexedSignature>) -> IndexedSignature {
    let mut shared = of_owners.next().unwrap_or_default();
    for matched in of_owners {
        shared.retain(|index| faulty!(matched.contains(index), ClaimedByTheFirst => true));
    }
    shared
}

/// The pod selectors that pods of one namespace may match, by a label that each of them wants.
struct NamespaceMatcher<'m> {
    namespace: &'m str,
    /// Selectors that want one of some values of a key, by key and value.
    by_label: HashMap<&'m str, HashMap<&'m str, Vec<SelectorIndex>>>,
    /// Selectors that want no particular value.
    others: Vec<SelectorIndex>,
}

impl<'m> NamespaceMatcher<'m> {
    fn new(universe: &'m Universe, model: &Model, namespace: &'m str) -> Self {
        let labels = model.namespaces.get(&namespace.to_owned());
        let mut meant: HashMap<&NamespaceMatch, bool> = HashMap::new();
        let mut matcher = Self { namespace, by_label: HashMap::new(), others: Vec::new() };
        let own = universe.of_namespace.get(namespace).into_iter().flatten();
        for &index in own.chain(&universe.of_namespaces) {
            let Some(Selector::Pods { namespaces, pods, .. }) = universe.selector(index) else { continue };
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
                        matcher.by_label.entry(key).or_default().entry(value).or_default().push(index);
                    }
                }
                None => matcher.others.push(index),
            }
        }
        matcher
    }

    fn matches(&self, universe: &Universe, pod: &Pod) -> IndexedSignature {
        let labelled = pod.labels.iter().filter_map(|(key, value)| self.by_label.get(key.as_str())?.get(value.as_str())).flatten();
        let meant = |index: &SelectorIndex| universe.selector(*index).is_some_and(|selector| matches_pod(selector, self.namespace, pod));
        labelled.chain(&self.others).copied().filter(meant).collect()
    }
}

/// A signature of these selectors.
fn ordered(indices: impl Iterator<Item = SelectorIndex>) -> IndexedSignature {
    let mut signature: IndexedSignature = indices.collect();
    signature.sort_unstable();
    signature.dedup();
    signature
}
