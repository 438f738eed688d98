//! Whether a change has room in the maps, and what is put into them where it has none.

use super::{Kernel, KernelError};
use palisade_datapath_core::abi::map;
use palisade_loader::{Datapath, Room};
use palisade_policy::model::{Mode, Model, ObjectName, Peer, Peers, Policy, PolicyName, Ports, Rule};
use palisade_policy::selected::selected;
use palisade_policy::{Compiled, Step, plan};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

/// How many policies are held back at most; where more would have to be, nothing is changed.
const HELD: usize = 16;

/// The maps that must have more room than they have while a change is made, each with the rows that it then holds.
///
/// # Errors
/// [`KernelError::TooLarge`] names the first that would pass its limit.
pub(super) fn check(datapath: &Datapath, old: &Compiled, steps: &[Step]) -> Result<Vec<(&'static str, usize)>, KernelError> {
    let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
    let family = |ipv6: bool, v4, v6| if ipv6 { v6 } else { v4 };
    rows.insert(map::ADDRESS_V4, old.addresses.len_of_groups(IpAddr::is_ipv4));
    rows.insert(map::ADDRESS_V6, old.addresses.len_of_groups(IpAddr::is_ipv6));
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
    let mut grow = Vec::new();
    for Room { map, rows: room, limit } in datapath.room() {
        let rows = peak.get(map).copied().unwrap_or_default();
        if rows > limit as usize {
            return Err(KernelError::TooLarge { map, rows, limit });
        }
        if rows > room as usize {
            grow.push((map, rows));
        }
    }
    Ok(grow)
}

/// A policy whose present version does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// What is in force instead.
    pub instead: Policy,
    /// Whether that is a version that was in force before, and not one that allows nothing.
    pub last_good: bool,
    /// Why, for people.
    pub reason: String,
}

impl Kernel {
    /// A model that fits where `model` does not: as few policies as possible are held back, those that changed since the last good
    /// model before others, and of these the largest first. With those that are held; `None` where it is not for policies
    /// that the change does not fit, or for too many of them.
    pub(super) fn fitting(
        &self,
        model: &Model,
        local: &BTreeSet<ObjectName>,
        error: &KernelError,
    ) -> Option<(Model, BTreeMap<PolicyName, Held>)> {
        let (datapath, old) = (self.datapath.as_ref()?, self.applied.as_ref()?);
        let fits = |model: &Model| {
            let mut numbers = self.numbering.numbers.clone();
            check(datapath, old, &plan(old, model, local, &mut numbers).steps).is_ok()
        };
        let good = self.good.as_ref().map(|good| &good.model);
        let changed = |name: &PolicyName| good.and_then(|good| good.policies.get(name)) != model.policies.get(name);
        // What selects no pod of this node takes no room here.
        let selects = |name: &&PolicyName| selected(model, name).into_iter().any(|pod| local.contains(pod));
        let mut candidates: Vec<&PolicyName> = model.policies.keys().filter(selects).collect();
        candidates.sort_by_key(|name| std::cmp::Reverse((changed(name), weight(&model.policies[*name]))));
        let mut fitting = model.clone();
        let mut held = BTreeMap::new();
        for name in candidates.into_iter().take(HELD) {
            let hold = self.instead(name, &model.policies[name], error);
            fitting.policies.insert(name.clone(), hold.instead.clone());
            held.insert(name.clone(), hold);
            if fits(&fitting) {
                break;
            }
        }
        if !fits(&fitting) {
            return None;
        }
        // The last one made it fit: those before it may have been held in vain.
        for name in held.keys().cloned().collect::<Vec<_>>() {
            let mut with = fitting.clone();
            with.policies.insert(name.clone(), model.policies[&name].clone());
            if fits(&with) {
                fitting = with;
                held.remove(&name);
            }
        }
        Some((fitting, held))
    }

    /// What stands for a policy that does not fit: the last version that was in force, where the new one isolates no more and
    /// selects the same pods; else one that allows nothing.
    fn instead(&self, name: &PolicyName, policy: &Policy, error: &KernelError) -> Held {
        let before = match self.held.get(name) {
            Some(held) => held.last_good.then_some(&held.instead),
            None => self.good.as_ref().and_then(|good| good.model.policies.get(name)).map(|policy| &**policy),
        };
        let covers = |good: &&Policy| {
            *good != policy
                && good.subject == policy.subject
                && good.tier == policy.tier
                && (good.mode == Mode::Enforce || policy.mode == Mode::Audit)
                && (good.ingress.is_some() || policy.ingress.is_none())
                && (good.egress.is_some() || policy.egress.is_none())
        };
        let last_good = before.filter(covers).cloned();
        let (what, last) = if last_good.is_some() { ("its last good version stays in force", true) } else { ("it allows nothing", false) };
        Held { instead: last_good.unwrap_or_else(|| policy.closed()), last_good: last, reason: format!("{error} ({what})") }
    }
}

/// About how many rows the rules of a policy make, next to those of others.
fn weight(policy: &Policy) -> usize {
    let rule = |rule: &Rule| {
        let peers = match &rule.peers {
            Peers::Any => 1,
            Peers::Of(peers) => peers.iter().map(|peer| if let Peer::Block { except, .. } = peer { 1 + except.len() } else { 1 }).sum(),
        };
        let ports = match &rule.ports {
            Ports::Any => 1,
            Ports::Of(ports) => ports.len(),
        };
        peers + ports
    };
    [&policy.ingress, &policy.egress].into_iter().flatten().flatten().map(rule).sum()
}
