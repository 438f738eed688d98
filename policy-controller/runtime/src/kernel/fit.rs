//! Whether a change has room in the maps, and what is put into them where it has none.

use super::{Good, Kernel, KernelError};
use palisade_datapath_core::abi::map;
use palisade_loader::Datapath;
use palisade_policy::model::{Action, Model, ObjectName, Peers, Policy, PolicyName, Ports, Rule, Tier};
use palisade_policy::{Compiled, Step, plan};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How many changed policies are tried one by one; those beyond wait with the one that does not fit.
const TRIED: usize = 16;

/// The first map that a change has no room in while it is made.
pub(super) fn check(datapath: &Datapath, old: &Compiled, steps: &[Step]) -> Result<(), KernelError> {
    let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
    let family = |ipv6: bool, v4, v6| if ipv6 { v6 } else { v4 };
    for address in old.addresses.keys() {
        *rows.entry(family(address.is_ipv6(), map::ADDRESS_V4, map::ADDRESS_V6)).or_default() += 1;
    }
    for prefix in old.prefixes.keys() {
        *rows.entry(family(prefix.addr().is_ipv6(), map::PREFIX_V4, map::PREFIX_V6)).or_default() += 1;
    }
    rows.insert(map::POLICY, old.policy.len());
    rows.insert(map::PORTS, old.ports.len());
    let mut peak = rows.clone();
    let (mut policy, mut ports, mut addresses, mut prefixes) = (HashSet::new(), HashSet::new(), HashSet::new(), HashSet::new());
    for step in steps {
        // Rows that are written over take no more room.
        let (map, grows) = match step {
            Step::WritePolicy { key, .. } => (map::POLICY, !old.policy.contains_key(key) && policy.insert(*key)),
            Step::WritePort { key, length, .. } => (map::PORTS, !old.ports.contains_key(&(*key, *length)) && ports.insert((*key, *length))),
            Step::WriteAddress { address, .. } => (
                family(address.is_ipv6(), map::ADDRESS_V4, map::ADDRESS_V6),
                !old.addresses.contains_key(address) && addresses.insert(*address),
            ),
            Step::WritePrefix { prefix, .. } => (
                family(prefix.addr().is_ipv6(), map::PREFIX_V4, map::PREFIX_V6),
                !old.prefixes.contains_key(prefix) && prefixes.insert(*prefix),
            ),
            Step::RemovePolicy(_) => {
                rows.entry(map::POLICY).and_modify(|rows| *rows -= 1);
                continue;
            }
            _ => continue,
        };
        if grows {
            let now = rows.entry(map).or_default();
            *now += 1;
            let most = peak.entry(map).or_default();
            *most = (*most).max(*now);
        }
    }
    let over = datapath.limits().into_iter().find_map(|(map, limit)| {
        let rows = peak.get(map).copied().unwrap_or_default();
        (rows > limit as usize).then_some(KernelError::TooLarge { map, rows, limit })
    });
    over.map_or(Ok(()), Err)
}

impl Kernel {
    /// A model that fits where `model` does not: of the policies that changed since the last good one, as many as there is room
    /// for, and for the others what they said before, or where they are new what their rules say when they are closed. With the
    /// others' names and the reason; `None` where it is not for the policies that the change does not fit.
    pub(super) fn fitting(&self, model: &Model, local: &BTreeSet<ObjectName>) -> Option<(Model, BTreeMap<PolicyName, String>)> {
        let (datapath, Good { model: good, .. }) = (self.datapath.as_ref()?, self.good.as_ref()?);
        let old = self.applied.as_ref()?;
        let fits = |model: &Model| {
            let mut numbers = self.numbering.numbers.clone();
            check(datapath, old, &plan(old, model, local, &mut numbers).steps)
        };
        let changed: Vec<&PolicyName> =
            model.policies.iter().filter(|(name, policy)| good.policies.get(*name) != Some(*policy)).map(|(name, _)| name).collect();
        let mut fitting = model.clone();
        for name in &changed {
            let instead = good.policies.get(*name).cloned().unwrap_or_else(|| closed(&model.policies[*name]));
            fitting.policies.insert((*name).clone(), instead);
        }
        fits(&fitting).ok()?;
        let mut held = BTreeMap::new();
        for (number, name) in changed.into_iter().enumerate() {
            let mut with = fitting.clone();
            with.policies.insert(name.clone(), model.policies[name].clone());
            let tried = if number < TRIED { fits(&with).map_err(|error| error.to_string()) } else { Err("not tried yet".to_owned()) };
            match tried {
                Ok(()) => fitting = with,
                Err(error) => {
                    let instead =
                        if good.policies.contains_key(name) { "its last good version stays in force" } else { "it allows nothing" };
                    held.insert(name.clone(), format!("{error} ({instead})"));
                }
            }
        }
        Some((fitting, held))
    }
}

/// A policy that allows nothing and denies what it could have denied.
fn closed(policy: &Policy) -> Policy {
    let rule = |rule: &Rule| match rule.action {
        Action::Allow => Rule { peers: Peers::Of(Vec::new()), ..rule.clone() },
        Action::Deny | Action::Pass => Rule { action: Action::Deny, peers: Peers::Any, ports: Ports::Any, ..rule.clone() },
    };
    let rules = |rules: &Option<Vec<Rule>>| {
        rules.as_ref().map(|rules| if policy.tier == Tier::Workload { Vec::new() } else { rules.iter().map(rule).collect() })
    };
    Policy { ingress: rules(&policy.ingress), egress: rules(&policy.egress), ..policy.clone() }
}
