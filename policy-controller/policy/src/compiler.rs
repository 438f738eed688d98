//! From the model to the rows of the maps, and from a change of the model to a change of the rows.
//!
//! There is one way to compile: as the change from what was compiled before, which at first is nothing. Each part of it looks at
//! what may be different: pods whose policies may say another thing, addresses that may match other selectors, subjects
//! about whose peers something is new.

use crate::classes::Classes;
use crate::compile::Compiled;
use crate::model::{Model, ObjectName, Pod};
use crate::numbers::{Numbers, Used};
use crate::ports::prefixes;
use crate::rows::SubjectRows;
use crate::rules::{Policies, RuleSet};
use crate::shared::Difference;
use crate::signatures::{Owners, matches_pod};
use crate::universe::{Named, SelectorIndex, Universe, decrement};
use ipnet::IpNet;
use palisade_datapath_core::abi::{Direction, PORTS_NONE, PolicyKey, PortKey};
use palisade_identity::{NamespaceMatch, Protocol, Selector};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Where more selectors of the same namespaces than this come or go at once, all pods there are looked at: the signature of a pod finds all its
/// selectors by their labels, and costs about as much as comparing the pod with a few dozen of them one by one.
const MANY_SELECTORS: usize = 32;

/// Compiles one model after the other with the same [`Numbers`].
#[derive(Default)]
pub struct Compiler {
    /// The model that was compiled last, and its rows.
    model: Model,
    compiled: Arc<Compiled>,
    begun: bool,
    universe: Universe,
    classes: Classes,
    owners: Owners,
    /// How many pods give a port this name, by protocol and name.
    ports: HashMap<(Protocol, String), BTreeMap<u16, usize>>,
    subjects: BTreeMap<u32, Subject>,
    /// How many subjects name a selector, and a port by name.
    named: BTreeMap<Selector, usize>,
    named_ports: BTreeMap<(Protocol, String), usize>,
    /// The port tables that rows refer to.
    tables: BTreeSet<u32>,
    /// What is known of the last change; `None` where there was none before.
    extent: Option<Extent>,
}

/// What a change may concern, known from compiling it: nobody has to look through all rows for it.
pub(crate) struct Extent {
    /// The addresses that pods of this node have before or after.
    pub near: BTreeSet<IpAddr>,
    /// The identities that addresses and prefixes have before, and after.
    pub identities: [BTreeSet<u32>; 2],
}

/// A subject number in use.
struct Subject {
    rules: Arc<RuleSet>,
    named: Named,
    /// The identities that its pods have: about which it is asked of itself.
    own: BTreeSet<u32>,
}

/// What is different in a model.
struct Changes<'a> {
    pods: Vec<Difference<'a, ObjectName, Arc<Pod>>>,
    /// Namespaces of which labels differ.
    namespaces: BTreeSet<&'a str>,
    /// Namespaces whose policies differ.
    policies: BTreeSet<&'a str>,
    /// Whether any pod's policies may say another thing.
    everywhere: bool,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("subjects", &self.subjects.len()).finish_non_exhaustive()
    }
}

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rows for `model` on a node whose pods are `local`.
    ///
    /// `numbers` must be those of all calls before, with nothing released that the last rows refer to. See
    /// [`compile`](crate::compile::compile).
    pub fn compile(&mut self, model: &Model, local: &BTreeSet<ObjectName>, numbers: &mut Numbers) -> Arc<Compiled> {
        if !self.begun || self.model.host != model.host || self.model.nodes != model.nodes || self.model.api_servers != model.api_servers {
            // Nodes seldom change, and when they do, it may concern every address.
            *self = Self { begun: true, owners: Owners::new(model, None), ..Self::default() };
            self.model.host.clone_from(&model.host);
            self.model.nodes.clone_from(&model.nodes);
            self.model.api_servers.clone_from(&model.api_servers);
            let first = self.take(model, local, numbers, true);
            return first;
        }
        self.take(model, local, numbers, false)
    }

    /// Whether `rows` are those that were compiled last.
    pub fn made(&self, rows: &Compiled) -> bool {
        std::ptr::eq(&*self.compiled, rows)
    }

    /// What the change from the model before the last to the last may concern; `None` where that is not known.
    pub(crate) fn extent(&self) -> Option<&Extent> {
        self.extent.as_ref()
    }

    /// The numbers that the last rows refer to.
    pub(crate) fn used(&self) -> Used {
        let mut used = Used::default();
        used.identities.extend(self.classes.identities());
        used.subjects.extend(self.subjects.keys());
        used.add_rows(&self.compiled);
        used
    }

    fn take(&mut self, model: &Model, local: &BTreeSet<ObjectName>, numbers: &mut Numbers, first: bool) -> Arc<Compiled> {
        let before = std::mem::replace(&mut self.model, model.clone());
        let changes = Changes::between(&before, model);
        let identities_before = self.classes.identities().collect();
        let mut next = Compiled::clone(&self.compiled);
        self.subjects_of(&changes, local, &mut next, numbers);
        let live: BTreeSet<u32> = next.subjects.values().chain(next.audits.values()).copied().collect();
        let dead: Vec<u32> = self.subjects.keys().filter(|subject| !live.contains(subject)).copied().collect();
        let fresh: Vec<u32> = live.into_iter().filter(|subject| !self.subjects.contains_key(subject)).collect();
        let altered = self.name(&fresh, &dead, &changes, numbers);
        self.move_addresses(&altered, &changes, first, &mut next, numbers);
        self.move_prefixes(&altered, first, &mut next, numbers);
        self.classes.forget_unused();
        self.universe.reuse();
        self.write_rows(&fresh, &dead, &altered, &mut next, numbers);
        self.write_ports(&mut next, numbers);
        let pods = || self.compiled.subjects.keys().chain(next.subjects.keys());
        let of = |model: &Model| -> Vec<IpAddr> { pods().flat_map(|pod| addresses(model.pods.get(pod)).to_vec()).collect() };
        self.extent = (!first).then(|| Extent {
            near: of(&before).into_iter().chain(of(model)).collect(),
            identities: [identities_before, self.classes.identities().collect()],
        });
        self.compiled = Arc::new(next);
        Arc::clone(&self.compiled)
    }

    /// Gives each pod of this node the number of what its policies say.
    fn subjects_of(&self, changes: &Changes, local: &BTreeSet<ObjectName>, next: &mut Compiled, numbers: &mut Numbers) {
        let policies = Policies::new(&self.model);
        let changed: BTreeSet<&ObjectName> = changes.pods.iter().map(|pod| pod.key).collect();
        let gone = |name: &ObjectName| !local.contains(name) || !self.model.pods.contains_key(name);
        next.subjects.retain(|name, _| !gone(name));
        next.audits.retain(|name, _| !gone(name));
        for (name, pod) in local.iter().filter_map(|name| self.model.pods.get_key_value(name)) {
            let namespace = name.namespace.as_str();
            let same = !changes.everywhere && !changes.namespaces.contains(namespace) && !changes.policies.contains(namespace);
            if same && next.subjects.contains_key(name) && !changed.contains(name) {
                continue;
            }
            next.subjects.insert(name.clone(), numbers.subjects.intern(policies.rule_set(name, pod)));
            match policies.audited_rule_set(name, pod) {
                Some(audited) => {
                    let rules = faulty!(audited, AuditLeftOut => RuleSet { audit: true, ..policies.rule_set(name, pod) });
                    next.audits.insert(name.clone(), numbers.subjects.intern(rules))
                }
                None => next.audits.remove(name),
            };
        }
    }

    /// Counts what subjects name. Returns the selectors that are new, and those that nobody names any more.
    fn name(&mut self, fresh: &[u32], dead: &[u32], changes: &Changes, numbers: &Numbers) -> Vec<Selector> {
        let mut altered = Vec::new();
        // Names whose numbers may be others.
        let mut names: BTreeSet<(Protocol, String)> = BTreeSet::new();
        for Difference { before, after, .. } in &changes.pods {
            for port in before.iter().flat_map(|pod| &pod.ports) {
                let key = (port.protocol, port.name.clone());
                let Some(ports) = self.ports.get_mut(&key) else { continue };
                let last = decrement(ports, &port.port);
                if ports.is_empty() {
                    self.ports.remove(&key);
                }
                if last {
                    names.insert(key);
                }
            }
            for port in after.iter().flat_map(|pod| &pod.ports) {
                let key = (port.protocol, port.name.clone());
                let count = self.ports.entry(key.clone()).or_default().entry(port.port).or_default();
                *count += 1;
                if *count == 1 {
                    names.insert(key);
                }
            }
        }
        for &subject in fresh {
            let Some(rules) = numbers.subjects.shared(subject) else { continue };
            let named = Named::by(&rules);
            for selector in &named.selectors {
                match self.named.get_mut(selector) {
                    Some(count) => *count += 1,
                    None => {
                        self.named.insert(selector.clone(), 1);
                        self.universe.add(selector.clone());
                        altered.push(selector.clone());
                    }
                }
            }
            for port in &named.ports {
                *self.named_ports.entry(port.clone()).or_default() += 1;
                names.insert(port.clone());
            }
            self.subjects.insert(subject, Subject { rules, named, own: BTreeSet::new() });
        }
        for subject in dead {
            let Some(Subject { named, .. }) = self.subjects.remove(subject) else { continue };
            for selector in named.selectors {
                if decrement(&mut self.named, &selector) {
                    self.universe.remove(&selector);
                    altered.push(selector);
                }
            }
            for port in named.ports {
                decrement(&mut self.named_ports, &port);
                names.insert(port);
            }
        }
        for (protocol, name) in names {
            let key = (protocol, name);
            let wanted = self.ports.get(&key).filter(|_| self.named_ports.contains_key(&key));
            let wanted: BTreeSet<u16> = wanted.into_iter().flat_map(BTreeMap::keys).copied().collect();
            let known: BTreeSet<u16> = self.universe.named(protocol, &key.1).map(|(_, port)| port).collect();
            for &port in wanted.symmetric_difference(&known) {
                let selector = Selector::NamedPort { name: key.1.clone(), protocol, port };
                if wanted.contains(&port) {
                    self.universe.add(selector.clone());
                } else {
                    self.universe.remove(&selector);
                }
                altered.push(selector);
            }
        }
        altered
    }

    /// Brings each address to the identity of what it matches now.
    fn move_addresses(&mut self, altered: &[Selector], changes: &Changes, first: bool, next: &mut Compiled, numbers: &mut Numbers) {
        let mut dirty: BTreeSet<IpAddr> = BTreeSet::new();
        for Difference { key, before, after } in &changes.pods {
            let (old, new) = (addresses(*before), addresses(*after));
            dirty.extend(old.iter().chain(new));
            if !first && old != new {
                self.owners.remove_pod(key, old);
                self.owners.add_pod(key, new);
            }
        }
        if first {
            dirty.extend(self.owners.addresses().chain(self.model.api_servers.iter().copied()));
        } else {
            for namespace in &changes.namespaces {
                dirty.extend(pods_of(&self.model, namespace).flat_map(|(_, pod)| &pod.addresses));
            }
            self.matched_by(altered, &mut dirty, next);
        }
        let signatures = self.universe.signatures(&self.model, &self.owners, &dirty);
        for (address, signature) in signatures {
            let identity = signature.map(|signature| self.classes.hold(signature, &self.universe, numbers));
            let before = next.addresses.get(&address).copied();
            before.into_iter().for_each(|identity| self.classes.release(identity));
            match identity {
                // A group that is written to is copied.
                Some(identity) if before == Some(identity) => {}
                Some(identity) => drop(next.addresses.insert(address, identity)),
                None => drop(next.addresses.remove(&address)),
            }
        }
    }

    /// The addresses that match these selectors, or did.
    fn matched_by(&self, selectors: &[Selector], dirty: &mut BTreeSet<IpAddr>, next: &Compiled) {
        let mut named: BTreeSet<(Protocol, &str, u16)> = BTreeSet::new();
        let mut of_pods: BTreeMap<&NamespaceMatch, Vec<&Selector>> = BTreeMap::new();
        for selector in selectors {
            match selector {
                Selector::Pods { namespaces, .. } => of_pods.entry(namespaces).or_default().push(selector),
                Selector::Nodes(_) => dirty.extend(self.owners.of_nodes()),
                Selector::World | Selector::ApiServer => dirty.extend(&self.model.api_servers),
                Selector::Block(block) => {
                    dirty.extend(next.addresses.between(&block.network(), &block.broadcast()).map(|(address, _)| *address));
                }
                Selector::NamedPort { name, protocol, port } => {
                    named.insert((*protocol, name, *port));
                }
            }
        }
        for (namespaces, selectors) in of_pods {
            let many = selectors.len() > MANY_SELECTORS;
            let is_matched = |(name, pod): &(&ObjectName, &Arc<Pod>)| {
                many || selectors.iter().any(|selector| matches_pod(selector, &name.namespace, pod))
            };
            let pods = pods_in(&self.model, namespaces).filter(is_matched);
            dirty.extend(pods.flat_map(|(_, pod)| &pod.addresses));
        }
        if !named.is_empty() {
            let has = |pod: &&Arc<Pod>| pod.ports.iter().any(|port| named.contains(&(port.protocol, port.name.as_str(), port.port)));
            dirty.extend(self.model.pods.values().filter(has).flat_map(|pod| &pod.addresses));
        }
    }

    /// Brings each prefix to the identity of what the addresses in it match now.
    fn move_prefixes(&mut self, altered: &[Selector], first: bool, next: &mut Compiled, numbers: &mut Numbers) {
        let mut dirty: BTreeSet<IpNet> = BTreeSet::new();
        if first || altered.contains(&Selector::World) {
            dirty.extend(next.prefixes.keys());
            dirty.extend(self.universe.prefixes(&self.model));
        }
        for selector in altered {
            if let Selector::Block(block) = selector {
                dirty.insert(*block);
                // Those in it: prefixes are in the order of their first addresses.
                let from = next.prefixes.range(*block..).map(|(prefix, _)| *prefix);
                dirty.extend(from.take_while(|prefix| block.contains(prefix)));
                dirty.extend(self.universe.blocks.range(*block..).map(|(prefix, _)| *prefix).take_while(|prefix| block.contains(prefix)));
            }
        }
        for (prefix, signature) in self.universe.prefix_signatures(&self.model, &dirty) {
            let identity = signature.map(|signature| self.classes.hold(signature, &self.universe, numbers));
            let before = match identity {
                Some(identity) => next.prefixes.insert(prefix, identity),
                None => next.prefixes.remove(&prefix),
            };
            before.into_iter().for_each(|identity| self.classes.release(identity));
        }
    }

    /// Writes the rows of subjects that are new, and of those about whose peers something is new.
    fn write_rows(&mut self, fresh: &[u32], dead: &[u32], altered: &[Selector], next: &mut Compiled, numbers: &mut Numbers) {
        for &subject in dead {
            remove_rows(next, subject);
        }
        let moved = self.own_identities(next);
        let touched = self.classes.take_touched();
        // A name that lost a number has no selector for it any more.
        let renumbered: BTreeSet<(Protocol, &str)> = altered
            .iter()
            .filter_map(|selector| match selector {
                Selector::NamedPort { name, protocol, .. } => Some((*protocol, name.as_str())),
                _ => None,
            })
            .collect();
        let is_touched = |subject: &Subject| {
            let indices = subject.named.selectors.iter().filter_map(|selector| self.universe.index(selector));
            let named = subject.named.ports.iter().flat_map(|(protocol, name)| self.universe.named(*protocol, name));
            let mut indices = indices.chain(named.map(|(index, _)| index));
            (!touched.is_empty() && indices.any(|index: SelectorIndex| touched.contains(&index)))
                || subject.named.ports.iter().any(|(protocol, name)| renumbered.contains(&(*protocol, name.as_str())))
        };
        for (&number, subject) in &self.subjects {
            if !fresh.contains(&number) {
                if !is_touched(subject) && !moved.contains(&number) {
                    continue;
                }
                remove_rows(next, number);
            }
            for direction in Direction::ALL {
                let rules = subject.rules.direction(direction);
                let rows = SubjectRows::new(&self.universe, &self.classes, &rules, direction);
                rows.write(number, &subject.own, numbers, &mut next.policy);
            }
        }
    }

    /// Finds the identities that the pods of each subject have. Returns the subjects whose rows about themselves may be others.
    fn own_identities(&mut self, next: &Compiled) -> BTreeSet<u32> {
        let mut own: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (pod, &subject) in next.subjects.iter().chain(&next.audits) {
            let identities = addresses(self.model.pods.get(pod)).iter().filter_map(|address| next.addresses.get(address));
            own.entry(subject).or_default().extend(identities);
        }
        let mut moved = BTreeSet::new();
        for (&number, subject) in &mut self.subjects {
            let own = own.remove(&number).unwrap_or_default();
            if subject.own != own {
                subject.own = own;
                if subject.rules.is_of_cluster() {
                    moved.insert(number);
                }
            }
        }
        moved
    }

    /// Writes the port tables that rows refer to.
    fn write_ports(&mut self, next: &mut Compiled, numbers: &Numbers) {
        let tables: BTreeSet<u32> = next.policy.values().map(|row| row.ports).filter(|&table| table != PORTS_NONE).collect();
        for &table in self.tables.difference(&tables) {
            let first = PortKey { table, ..PortKey::default() };
            let rows: Vec<_> = next.ports.range((first, 0)..).map(|(key, _)| *key).take_while(|(key, _)| key.table == table).collect();
            for key in &rows {
                next.ports.remove(key);
            }
        }
        for &table in tables.difference(&self.tables) {
            for range in numbers.ports.content(table).map(|table| table.0.as_slice()).unwrap_or_default() {
                for (port, length) in prefixes(range.first, range.last) {
                    next.ports.insert((PortKey::new(table, range.protocol, port), length), range.entry());
                }
            }
        }
        self.tables = tables;
    }
}

impl<'a> Changes<'a> {
    fn between(before: &'a Model, after: &'a Model) -> Self {
        let policies: BTreeSet<&str> =
            before.policies.differences(&after.policies).into_iter().map(|policy| policy.key.object.namespace.as_str()).collect();
        let namespaces = before.namespaces.differences(&after.namespaces);
        Self {
            pods: before.pods.differences(&after.pods),
            namespaces: namespaces.into_iter().map(|namespace| namespace.key.as_str()).collect(),
            // Policies that live in no namespace may select any pod; identities may stand in any policy.
            everywhere: policies.contains("") || before.identities != after.identities,
            policies,
        }
    }
}

/// The addresses of a pod that may not be there.
fn addresses(pod: Option<&Arc<Pod>>) -> &[IpAddr] {
    pod.map(|pod| pod.addresses.as_slice()).unwrap_or_default()
}

/// The pods of a namespace.
fn pods_of<'m>(model: &'m Model, namespace: &str) -> impl Iterator<Item = (&'m ObjectName, &'m Arc<Pod>)> + use<'m> {
    model.pods.group(&ObjectName::new(namespace, ""))
}

/// The pods of the namespaces that are meant.
fn pods_in<'m>(model: &'m Model, namespaces: &'m NamespaceMatch) -> Box<dyn Iterator<Item = (&'m ObjectName, &'m Arc<Pod>)> + 'm> {
    match namespaces {
        NamespaceMatch::Name(namespace) => Box::new(pods_of(model, namespace)),
        // Also those of namespaces that are not known yet.
        NamespaceMatch::Labels(labels) if labels.requirements.is_empty() => Box::new(model.pods.iter()),
        NamespaceMatch::Labels(labels) => {
            let meant = model.namespaces.iter().filter(move |(_, of_namespace)| labels.matches(of_namespace));
            Box::new(meant.flat_map(move |(namespace, _)| pods_of(model, namespace)))
        }
    }
}

/// Removes the rows of a subject.
fn remove_rows(compiled: &mut Compiled, subject: u32) {
    let first = PolicyKey { subject, ..PolicyKey::default() };
    let keys: Vec<PolicyKey> = compiled.policy.range(first..).map(|(key, _)| *key).take_while(|key| key.subject == subject).collect();
    for key in &keys {
        compiled.policy.remove(key);
    }
}
