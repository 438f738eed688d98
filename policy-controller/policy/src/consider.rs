//! The rules that one pod's policies ask about a flow, in their order, and what comes of each.

use crate::model::{Action, Mode, Model, ObjectName, Pod, PolicyName, Rule, Tier};
use crate::rules::{EffectivePort, EffectiveRule, Policies, RuleSet};
use crate::universe::Universe;
use palisade_datapath_core::abi::Direction;
use palisade_identity::Selector;
use std::net::IpAddr;

/// A rule that was considered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// When its policy is asked.
    pub tier: Tier,
    /// The policy that it stands in.
    pub policy: PolicyName,
    /// Its index there.
    pub rule: usize,
    /// Its name there, where it has one.
    pub name: Option<String>,
    /// What it does with a flow that matches.
    pub action: Action,
    /// Whether its policy is in audit mode. Then nothing came of it, and `fate` is what would have, were all such policies enforced.
    pub audit: bool,
    /// What came of it.
    pub fate: Fate,
    /// The identities that it names and that there are none of: by them a rule that allows matches nobody, and one that denies everybody.
    pub missing: Vec<String>,
}

/// What came of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It matches and decides.
    Decides,
    /// It matches, and leaves the flow to the next tier.
    Passes,
    /// The other end is none of its peers.
    PeerDiffers,
    /// The peer matches; protocol and port do not.
    PortDiffers,
    /// It was not asked: an earlier rule decided or passed, or a policy that isolates the pod decides before its tier.
    NotAsked,
}

/// A part of a flow, as one side sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub direction: Direction,
    pub peer: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

/// The rules of the policies of a pod, in the order in which they are asked; those in audit mode where they would stand.
pub(crate) fn consider(model: &Model, name: &ObjectName, pod: &Pod, seen: Seen) -> Vec<Considered> {
    let policies = Policies::new(model);
    let enforced = fates(model, &policies.rule_set(name, pod), seen);
    let Some(all) = policies.audited_rule_set(name, pod) else { return enforced };
    let is_audit = |policy: &PolicyName| model.policies.get(policy).is_some_and(|policy| policy.mode == Mode::Audit);
    // The same in the same order, with others between.
    let mut enforced = enforced.into_iter();
    let merged = fates(model, &all, seen).into_iter().filter_map(|rule| match is_audit(&rule.policy) {
        true => Some(Considered { audit: true, ..rule }),
        false => enforced.next(),
    });
    merged.collect()
}

/// The rules of a set, and what comes of each.
fn fates(model: &Model, set: &RuleSet, seen: Seen) -> Vec<Considered> {
    let rules = set.direction(seen.direction);
    let universe = Universe::of([set], model);
    let signature: Vec<&Selector> =
        universe.signature_of(model, seen.peer).into_iter().filter_map(|index| universe.selector(index)).collect();
    let (mut decided, mut passed) = (false, None);
    let fate = |rule: &EffectiveRule| {
        let isolated_before = stage(rule.tier) == Stage::Baseline && !rules.isolated_by.is_empty();
        if decided || isolated_before || passed == Some(stage(rule.tier)) {
            return Fate::NotAsked;
        }
        if !peer_matches(rule, &signature) {
            return Fate::PeerDiffers;
        }
        if !port_matches(rule, &signature, seen) {
            return Fate::PortDiffers;
        }
        if rule.action == Action::Pass {
            passed = Some(stage(rule.tier));
            return Fate::Passes;
        }
        decided = true;
        Fate::Decides
    };
    let fates: Vec<Fate> = rules.rules.iter().map(fate).collect();
    let considered = |(rule, fate): (&EffectiveRule, Fate)| {
        let EffectiveRule { tier, policy, rule, name, action, .. } = rule.clone();
        let missing = missing(model, &policy, rule, seen.direction);
        Considered { tier, policy, rule, name, action, audit: false, fate, missing }
    };
    rules.rules.iter().zip(fates).map(considered).collect()
}

/// The identities that a rule names and that there are none of.
fn missing(model: &Model, policy: &PolicyName, rule: usize, direction: Direction) -> Vec<String> {
    let Some(policy) = model.policies.get(policy) else { return Vec::new() };
    let rules = match direction {
        Direction::Egress | Direction::SelfEgress => &policy.egress,
        Direction::Ingress | Direction::SelfIngress => &policy.ingress,
    };
    let named = rules.as_ref().and_then(|rules| rules.get(rule)).into_iter().flat_map(Rule::identities);
    named.filter(|name| !model.identities.contains_key(name)).cloned().collect()
}

/// A tier without its priorities.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Admin,
    Workload,
    Baseline,
}

const fn stage(tier: Tier) -> Stage {
    match tier {
        Tier::Admin(_) => Stage::Admin,
        Tier::Workload => Stage::Workload,
        Tier::Baseline(_) => Stage::Baseline,
    }
}

fn peer_matches(rule: &EffectiveRule, signature: &[&Selector]) -> bool {
    let Some(peers) = &rule.peers else { return true };
    peers
        .iter()
        .any(|peer| signature.contains(&&peer.selector) && !peer.except.iter().any(|block| signature.contains(&&Selector::Block(*block))))
}

fn port_matches(rule: &EffectiveRule, signature: &[&Selector], seen: Seen) -> bool {
    let Some(ports) = &rule.ports else { return true };
    ports.iter().any(|port| match port {
        EffectivePort::Range(protocol, first, last) => protocol.number() == seen.protocol && (*first..=*last).contains(&seen.port),
        EffectivePort::PeerNamed(protocol, name) => {
            let named = Selector::NamedPort { name: name.clone(), protocol: *protocol, port: seen.port };
            protocol.number() == seen.protocol && signature.contains(&&named)
        }
    })
}
