//! The rows of one subject.

use crate::classes::Classes;
use crate::layer::{Layer, Said, Settled};
use crate::model::{Action, Tier};
use crate::numbers::Numbers;
use crate::reason::Reason;
use crate::rules::{DirectionRules, EffectivePort, EffectiveRule};
use crate::universe::{SelectorIndex, Universe};
use palisade_datapath_core::abi::{Direction, IDENTITY_ANY, PORTS_NONE, PolicyEntry, PolicyKey, PortEntry, REASON_NONE, RowVerdict};
use palisade_identity::Selector;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The row of a peer about whom the policies say nothing.
pub(crate) const NOT_ISOLATED: PolicyEntry =
    PolicyEntry { ports: PORTS_NONE, reason: REASON_NONE, verdict: RowVerdict::Allow as u8, reserved: [0; 3] };

/// What decides a row: the rules whose peers match, and the peer's numbers of the ports that those rules name.
#[derive(PartialEq, Eq, Hash)]
struct Matched {
    rules: Vec<usize>,
    named: Vec<SelectorIndex>,
}

/// The rows of one subject in one direction.
pub(crate) struct SubjectRows<'a> {
    universe: &'a Universe,
    classes: &'a Classes,
    rules: &'a DirectionRules,
    direction: Direction,
    rows: HashMap<Matched, PolicyEntry>,
}

impl<'a> SubjectRows<'a> {
    /// Rows for `rules`, which are about flows of `direction`.
    pub fn new(universe: &'a Universe, classes: &'a Classes, rules: &'a DirectionRules, direction: Direction) -> Self {
        Self { universe, classes, rules, direction, rows: HashMap::new() }
    }

    /// Writes the any-peer row, and a row for each identity about whom more is said.
    ///
    /// Of the subject itself there are rows only where something is said of it, and only about the identities `own` that it has: about those
    /// also where nothing more is said than about everybody, so that what rows are there does not depend on what other subjects have.
    pub fn write(mut self, subject: u32, own: &BTreeSet<u32>, numbers: &mut Numbers, policy: &mut BTreeMap<PolicyKey, PolicyEntry>) {
        let itself = self.direction.is_self();
        let any_key = PolicyKey::new(subject, self.direction, IDENTITY_ANY);
        if self.rules.is_silent() {
            if !itself {
                policy.insert(any_key, NOT_ISOLATED);
            }
            return;
        }
        let for_all: Vec<usize> = self.positions(|rule| rule.peers.is_none());
        let any = self.row(Matched { rules: for_all.clone(), named: Vec::new() }, numbers);
        policy.insert(any_key, any);
        let mut candidates = self.candidates();
        if itself {
            let of = |&identity: &u32| (identity, faulty!(candidates.remove(&identity), ItselfIsNoPeer => None).unwrap_or_default());
            candidates = own.iter().filter(|&&identity| identity != IDENTITY_ANY).map(of).collect();
        }
        for (identity, mut rules) in candidates {
            let signature = self.classes.signature(identity);
            rules.extend(faulty!(&for_all[..], RulesForEverybodyForgotten => &for_all[..0]));
            let rules: Vec<usize> = rules.into_iter().collect();
            let named = faulty!(self.named(&rules, signature), PeersNamesForgotten => Vec::new());
            let row = self.row(Matched { rules, named }, numbers);
            let differs =
                faulty!(row != any, DenialsForEverybodyEnough => row.verdict == RowVerdict::Allow as u8 || row.ports != PORTS_NONE);
            if differs || itself {
                policy.insert(PolicyKey::new(subject, self.direction, identity), row);
            }
        }
    }

    fn positions(&self, is_meant: impl Fn(&EffectiveRule) -> bool) -> Vec<usize> {
        self.rules.rules.iter().enumerate().filter(|(_, rule)| is_meant(rule)).map(|(position, _)| position).collect()
    }

    /// The identities about which a rule says more than about everybody, with the rules whose peers they match.
    fn candidates(&self) -> BTreeMap<u32, BTreeSet<usize>> {
        let mut candidates: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
        for (position, rule) in self.rules.rules.iter().enumerate() {
            for peer in rule.peers.iter().flatten() {
                let Some(selector) = self.universe.index(&peer.selector) else { continue };
                let except: Vec<_> = peer.except.iter().filter_map(|block| self.universe.index(&Selector::Block(*block))).collect();
                for identity in self.classes.members(selector) {
                    let signature = self.classes.signature(identity);
                    if faulty!(!except.iter().any(|index| signature.binary_search(index).is_ok()), ExceptIgnoredInRows => true) {
                        candidates.entry(identity).or_default().insert(position);
                    }
                }
            }
            if rule.peers.is_none() {
                for (index, _) in self.peer_named(rule) {
                    for identity in self.classes.members(index) {
                        candidates.entry(identity).or_default();
                    }
                }
            }
        }
        candidates
    }

    /// The numbers that pods give to the ports that a rule names.
    fn peer_named(&self, rule: &EffectiveRule) -> impl Iterator<Item = (SelectorIndex, u16)> {
        rule.ports.iter().flatten().flat_map(|port| match port {
            EffectivePort::PeerNamed(protocol, name) => self.universe.named(*protocol, name).collect(),
            EffectivePort::Range(..) => Vec::new(),
        })
    }

    /// Those of them that the peer has.
    fn named(&self, rules: &[usize], signature: &[SelectorIndex]) -> Vec<SelectorIndex> {
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
            let reason = Reason::Default { policies: self.rules.isolated_by.clone(), direction: self.direction.way() };
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
                    let (policy, name) = (rule.policy.clone(), rule.name.clone());
                    let reason = Reason::Rule { policy, tier: rule.tier, rule: rule.rule, name, direction: self.direction.way() };
                    let reason = numbers.reasons.intern(reason);
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
