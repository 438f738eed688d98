//! From the model to the rows of the maps.

use crate::layer::{Layer, Said, Settled};
use crate::model::{Action, Model, ObjectName, Tier};
use crate::numbers::Numbers;
use crate::ports::prefixes;
use crate::reason::Reason;
use crate::rules::{DirectionRules, EffectivePort, EffectiveRule, PoliciesByNamespace, RuleSet};
use crate::universe::{IndexedSignature, SelectorIndex, Universe, local_pods};
use ipnet::IpNet;
use palisade_datapath_core::abi::{
    Direction, IDENTITY_ANY, PORTS_NONE, PolicyEntry, PolicyKey, PortEntry, PortKey, REASON_NONE, RowVerdict,
};
use palisade_identity::{Selector, Signature};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The rows that one node's maps should hold, or do hold.
///
/// The fields are public so that the owner of the maps can fill one from what the kernel holds (`subjects` from
/// the rows of its endpoints) and plan a change from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// What the rules of this node's subjects name. For people; no row depends on it.
    pub universe: BTreeSet<Selector>,
    /// The subject number of each pod of this node that the model knows.
    pub subjects: BTreeMap<ObjectName, u32>,
    /// The number of what policies in audit mode would make of it, for the pods that such a policy selects.
    pub audits: BTreeMap<ObjectName, u32>,
    /// Whole addresses, of the cluster's pods and nodes, to identities.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Prefixes to identities; host bits are zero.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// Rows of the policy table.
    pub policy: BTreeMap<PolicyKey, PolicyEntry>,
    /// Rows of the port tables, by key and length of the port's prefix in bits (0 to 16).
    pub ports: BTreeMap<(PortKey, u8), PortEntry>,
}

/// The row of a peer about whom the policies say nothing.
const NOT_ISOLATED: PolicyEntry =
    PolicyEntry { ports: PORTS_NONE, reason: REASON_NONE, verdict: RowVerdict::Allow as u8, reserved: [0; 3] };

/// The rows for `model` on a node whose pods are `local`.
///
/// The rows depend on the model alone; which numbers they carry, on what `numbers` has given out before. Nothing
/// is released here: [`plan`](crate::plan::plan) does that, for it knows what the kernel still refers to.
pub fn compile(model: &Model, local: &BTreeSet<ObjectName>, numbers: &mut Numbers) -> Compiled {
    let policies = PoliciesByNamespace::new(model);
    let mut compiled = Compiled::default();
    let mut rule_sets: BTreeMap<u32, RuleSet> = BTreeMap::new();
    for (name, pod) in local_pods(model, local) {
        let mut number = |rule_set: RuleSet| {
            let number = numbers.subjects.intern(rule_set.clone());
            rule_sets.entry(number).or_insert(rule_set);
            number
        };
        compiled.subjects.insert(name.clone(), number(policies.rule_set(name, pod)));
        if let Some(audited) = policies.audited_rule_set(name, pod) {
            compiled.audits.insert(name.clone(), number(audited));
        }
    }
    let universe = Universe::new(rule_sets.values(), model);
    let mut classes = Classes::new(&universe);
    for (address, signature) in universe.signatures(model) {
        compiled.addresses.insert(address, classes.identity(signature, &universe, numbers));
    }
    for (prefix, signature) in universe.prefixes(model) {
        compiled.prefixes.insert(prefix, classes.identity(signature, &universe, numbers));
    }
    for (&subject, rule_set) in &rule_sets {
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = rule_set.direction(direction);
            SubjectRows { universe: &universe, classes: &classes, rules, direction, rows: HashMap::new() }.write(
                subject,
                numbers,
                &mut compiled.policy,
            );
        }
    }
    let tables: BTreeSet<u32> = compiled.policy.values().map(|row| row.ports).filter(|&table| table != PORTS_NONE).collect();
    for table in tables {
        for range in numbers.ports.content(table).map(|table| table.0.as_slice()).unwrap_or_default() {
            for (port, length) in prefixes(range.first, range.last) {
                compiled.ports.insert((PortKey::new(table, range.protocol, port), length), range.entry());
            }
        }
    }
    compiled.universe = universe.selectors().iter().cloned().collect();
    compiled
}

/// The signatures that occur, and which of them hold a selector.
struct Classes {
    identities: HashMap<IndexedSignature, u32>,
    /// Signature and identity.
    list: Vec<(IndexedSignature, u32)>,
    /// By selector: positions in `list`.
    members: Vec<Vec<usize>>,
}

impl Classes {
    fn new(universe: &Universe) -> Self {
        Self { identities: HashMap::new(), list: Vec::new(), members: vec![Vec::new(); universe.selectors().len()] }
    }

    /// The identity of a signature; an empty one needs none, for only rules without peers speak of it.
    fn identity(&mut self, signature: IndexedSignature, universe: &Universe, numbers: &mut Numbers) -> u32 {
        if signature.is_empty() {
            return IDENTITY_ANY;
        }
        if let Some(&identity) = self.identities.get(&signature) {
            return identity;
        }
        let content: Signature = signature.iter().map(|&index| universe.selectors()[index as usize].clone()).collect();
        let identity = numbers.identities.intern(content);
        for &index in &signature {
            self.members[index as usize].push(self.list.len());
        }
        self.list.push((signature.clone(), identity));
        self.identities.insert(signature, identity);
        identity
    }
}

/// What decides a row: the rules whose peers match, and the peer's numbers of the ports that those rules name.
#[derive(PartialEq, Eq, Hash)]
struct Matched {
    rules: Vec<usize>,
    named: Vec<SelectorIndex>,
}

/// The rows of one subject in one direction.
struct SubjectRows<'a> {
    universe: &'a Universe,
    classes: &'a Classes,
    rules: &'a DirectionRules,
    direction: Direction,
    rows: HashMap<Matched, PolicyEntry>,
}

impl SubjectRows<'_> {
    /// Writes the any-peer row, and a row for each identity about whom more is said.
    fn write(mut self, subject: u32, numbers: &mut Numbers, policy: &mut BTreeMap<PolicyKey, PolicyEntry>) {
        if self.rules.is_silent() {
            policy.insert(PolicyKey::new(subject, self.direction, IDENTITY_ANY), NOT_ISOLATED);
            return;
        }
        let for_all: Vec<usize> = self.positions(|rule| rule.peers.is_none());
        let any = self.row(Matched { rules: for_all.clone(), named: Vec::new() }, numbers);
        policy.insert(PolicyKey::new(subject, self.direction, IDENTITY_ANY), any);
        for (class, mut rules) in self.candidates() {
            let (signature, identity) = &self.classes.list[class];
            rules.extend(faulty!(&for_all[..], RulesForEverybodyForgotten => &for_all[..0]));
            let rules: Vec<usize> = rules.into_iter().collect();
            let named = faulty!(self.named(&rules, signature), PeersNamesForgotten => Vec::new());
            let row = self.row(Matched { rules, named }, numbers);
            if faulty!(row != any, DenialsForEverybodyEnough => row.verdict == RowVerdict::Allow as u8 || row.ports != PORTS_NONE) {
                policy.insert(PolicyKey::new(subject, self.direction, *identity), row);
            }
        }
    }

    fn positions(&self, is_meant: impl Fn(&EffectiveRule) -> bool) -> Vec<usize> {
        self.rules.rules.iter().enumerate().filter(|(_, rule)| is_meant(rule)).map(|(position, _)| position).collect()
    }

    /// The classes about which a rule says more than about everybody, with the rules whose peers they match.
    fn candidates(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        let mut candidates: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (position, rule) in self.rules.rules.iter().enumerate() {
            for peer in rule.peers.iter().flatten() {
                let Some(selector) = self.universe.index(&peer.selector) else { continue };
                let except: Vec<_> = peer.except.iter().filter_map(|block| self.universe.index(&Selector::Block(*block))).collect();
                for &class in &self.classes.members[selector as usize] {
                    let (signature, _) = &self.classes.list[class];
                    if faulty!(!except.iter().any(|index| signature.binary_search(index).is_ok()), ExceptIgnoredInRows => true) {
                        candidates.entry(class).or_default().insert(position);
                    }
                }
            }
            if rule.peers.is_none() {
                for (index, _) in self.peer_named(rule) {
                    for &class in &self.classes.members[index as usize] {
                        candidates.entry(class).or_default();
                    }
                }
            }
        }
        candidates
    }

    /// The numbers that pods give to the ports that a rule names.
    fn peer_named<'a>(&'a self, rule: &'a EffectiveRule) -> impl Iterator<Item = (SelectorIndex, u16)> + 'a {
        rule.ports.iter().flatten().flat_map(|port| match port {
            EffectivePort::PeerNamed(protocol, name) => self.universe.named(*protocol, name).collect(),
            EffectivePort::Range(..) => Vec::new(),
        })
    }

    /// Those of them that the peer has.
    fn named(&self, rules: &[usize], signature: &IndexedSignature) -> Vec<SelectorIndex> {
        let named: BTreeSet<_> = rules
            .iter()
            .flat_map(|&position| self.peer_named(&self.rules.rules[position]))
            .filter(|(index, _)| signature.binary_search(index).is_ok())
            .map(|(index, _)| index)
            .collect();
        named.into_iter().collect()
    }

    /// The row for peers that match these rules.
    fn row(&mut self, matched: Matched, numbers: &mut Numbers) -> PolicyEntry {
        if let Some(row) = self.rows.get(&matched) {
            return *row;
        }
        let mut settled = Settled::always(entry(RowVerdict::Allow, REASON_NONE));
        let of_tier = |wanted: fn(Tier) -> bool| {
            let rules = matched.rules.iter().map(|&position| &self.rules.rules[position]);
            rules.filter(move |rule| wanted(rule.tier))
        };
        // The last tier first: each is laid over what comes after it.
        settled = self.layer(of_tier(|tier| matches!(tier, Tier::Baseline(_))), &matched.named, numbers).over(settled);
        let mut workload = self.layer(of_tier(|tier| tier == Tier::Workload), &matched.named, numbers);
        if workload.otherwise.is_none() && faulty!(!self.rules.isolated_by.is_empty(), DefaultDenyForgotten => false) {
            let reason = Reason::Default { policies: self.rules.isolated_by.clone(), direction: self.direction };
            workload.otherwise = Some(Said::Decides(entry(RowVerdict::DefaultDeny, numbers.reasons.intern(reason))));
        }
        settled = workload.over(settled);
        settled = self.layer(of_tier(|tier| matches!(tier, Tier::Admin(_))), &matched.named, numbers).over(settled);
        let Settled { ports, otherwise } = settled;
        let table = ports.finish();
        let ports = if table.0.is_empty() { PORTS_NONE } else { numbers.ports.intern(table) };
        let row = PolicyEntry { ports, reason: otherwise.reason, verdict: otherwise.verdict, reserved: [0; 3] };
        self.rows.insert(matched, row);
        row
    }

    /// What rules of one tier say together.
    fn layer<'r>(&self, rules: impl Iterator<Item = &'r EffectiveRule>, named: &[SelectorIndex], numbers: &mut Numbers) -> Layer {
        let mut layer = Layer::default();
        for rule in rules {
            let said = match rule.action {
                Action::Pass => faulty!(Said::Passes, PassAllows => Said::Decides(entry(RowVerdict::Allow, REASON_NONE))),
                action => {
                    let EffectiveRule { policy, tier, rule, name, .. } = rule.clone();
                    let reason = numbers.reasons.intern(Reason::Rule { policy, tier, rule, name, direction: self.direction });
                    Said::Decides(entry(if action == Action::Allow { RowVerdict::Allow } else { RowVerdict::Deny }, reason))
                }
            };
            let Some(ports) = &rule.ports else {
                // Every port that no rule before this one has taken: later rules have nothing left to say.
                layer.otherwise = Some(said);
                faulty!(break, LaterRulesOverrule => continue);
            };
            for port in ports {
                match port {
                    EffectivePort::Range(protocol, first, last) => layer.ports.add(protocol.number(), *first, *last, said),
                    EffectivePort::PeerNamed(protocol, name) => {
                        for (_, port) in self.universe.named(*protocol, name).filter(|(index, _)| named.contains(index)) {
                            layer.ports.add(protocol.number(), port, port, said);
                        }
                    }
                }
            }
        }
        layer
    }
}

const fn entry(verdict: RowVerdict, reason: u32) -> PortEntry {
    PortEntry { reason, verdict: verdict as u8, reserved: [0; 3] }
}
