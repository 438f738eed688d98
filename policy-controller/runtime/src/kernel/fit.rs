//! Whether a change has room in the maps, and what is put into them where it has none.

use super::{Kernel, KernelError};
use palisade_datapath_core::abi::map;
use palisade_loader::{Datapath, Room};
use palisade_policy::model::{Mode, Model, ObjectName, Peer, Peers, Policy, PolicyName, Ports, Rule, Tier};
use palisade_policy::selected::selected;
use palisade_policy::{Compiled, Step, plan};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many policies are tried once more, one by one, whether they must really be held back: each try compiles the whole model.
const TRIES: usize = 16;
/// How long policies are held back at least before it is tried without a reason whether they still must be.
const AGAIN: Duration = Duration::from_secs(30);

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
    /// The version that does not fit.
    pub refused: Arc<Policy>,
    /// What is in force instead.
    pub instead: Policy,
    /// What isolates the pods that the version selects, beside a last good version that does not isolate them all.
    pub beside: Option<Policy>,
    /// Whether that is a version that was in force before, and not one that allows nothing.
    pub last_good: bool,
    /// Why, for people.
    pub reason: String,
    /// The map that has no room, and how many rows are too many for it.
    pub too_many: Option<(&'static str, usize)>,
}

/// What a change without room is made into.
pub(super) struct Fitting {
    /// The model without what does not fit.
    pub model: Model,
    /// The policies that are held back.
    pub held: BTreeMap<PolicyName, Held>,
}

/// The maps of policy.
const TAKEN: [&str; 6] = [map::ADDRESS_V4, map::ADDRESS_V6, map::PREFIX_V4, map::PREFIX_V6, map::POLICY, map::PORTS];
/// How many rows each of them has, to be compared.
type Taken = [usize; TAKEN.len()];

/// The last time that it was tried which policies have to be held back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    /// How full the maps were after it.
    taken: Taken,
    /// When it ended.
    at: Instant,
    /// How long it took.
    took: Duration,
}

impl Kernel {
    /// A model that fits where `model` does not: as few policies as possible are held back. `None` where it is not for policies
    /// that may be held back that the change does not fit.
    ///
    /// What this agent has put in force and has not changed is held back for no new policy and no new pod: these are what does not fit. It is where
    /// nothing else helps, since labels, addresses and identities are others now: what stays as it is would open to the next owner of an address
    /// what its last one had, and no policy could be changed any more.
    pub(super) fn fitting(&self, model: &Model, local: &BTreeSet<ObjectName>, error: &KernelError) -> Option<Fitting> {
        let (datapath, old) = (self.datapath.as_ref()?, self.applied.as_ref()?);
        let fits = |model: &Model| {
            let mut numbers = self.numbering.numbers.clone();
            check(datapath, old, &plan(old, model, local, &mut numbers).steps).is_ok()
        };
        let mut candidates = self.candidates(model, local, error);
        let all = |candidates: &[(PolicyName, Held)]| stand_in(model, &candidates.iter().cloned().collect());
        if !fits(&all(&candidates)) {
            let is_new_pod = self.good.as_ref().is_none_or(|good| !local.is_subset(&good.local));
            if is_new_pod {
                return None;
            }
            candidates.extend(self.in_force(model, local, error, &candidates));
            if !fits(&all(&candidates)) {
                return None;
            }
        }
        let without = |range: std::ops::Range<usize>| {
            let held: BTreeMap<_, _> = candidates[range].iter().cloned().collect();
            Fitting { model: stand_in(model, &held), held }
        };
        // The fewest in their order, by halves: each try compiles the whole model.
        let (mut too_few, mut enough) = (0, candidates.len());
        while enough - too_few > 1 {
            let count = too_few.midpoint(enough);
            if fits(&without(0..count).model) {
                enough = count;
            } else {
                too_few = count;
            }
        }
        // The last one made it fit: those before it may have been held in vain.
        let (mut needed, mut too_late) = (0, enough);
        while too_late - needed > 1 {
            let from = needed.midpoint(too_late);
            if fits(&without(from..enough).model) {
                needed = from;
            } else {
                too_late = from;
            }
        }
        let mut fitting = without(needed..enough);
        for (name, _) in candidates[needed..enough].iter().rev().skip(1).take(TRIES) {
            let mut with = fitting.model.clone();
            with.policies.insert(name.clone(), model.policies[name].clone());
            with.policies.remove(&name.held_version());
            if fits(&with) {
                fitting.model = with;
                fitting.held.remove(name);
            }
        }
        Some(fitting)
    }

    /// The policies that may be held back, those first whose absence cuts nobody off: new ones, and those whose last good
    /// version can stay; among them such that are only in audit mode; then the largest.
    fn candidates(&self, model: &Model, local: &BTreeSet<ObjectName>, error: &KernelError) -> Vec<(PolicyName, Held)> {
        let selects = |model: &Model, name: &PolicyName, local: &BTreeSet<ObjectName>| {
            selected(model, name).into_iter().any(|pod| local.contains(pod))
        };
        // An agent that has just started knows no last good model. The rows tell whose rules are in force, by the numbers that
        // were written down before them: those in memory are the present plan's already.
        let numbers = self.numbering.shared();
        let applied = self.applied.iter().filter(|_| self.good.is_none()).flat_map(|applied| applied.subjects.values());
        let subjects = applied.filter_map(|subject| numbers.subject(*subject));
        let enforced: BTreeSet<&PolicyName> =
            subjects.flat_map(|set| [&set.ingress.rules, &set.egress.rules]).flatten().map(|rule| &rule.policy).collect();
        let mut candidates = Vec::new();
        // What selects no pod of this node takes no room here.
        for (name, policy) in model.policies.iter().filter(|(name, _)| selects(model, name, local)) {
            let (in_force, changed) = match &self.good {
                Some(good) => (selects(&good.model, name, &good.local), good.model.policies.get(name) != Some(policy)),
                None => (enforced.contains(name), true),
            };
            if changed || !in_force {
                let hold = self.instead(name, policy, error);
                let cuts_off = in_force && !hold.last_good && !self.held.contains_key(name);
                let order = (cuts_off, policy.mode == Mode::Enforce, std::cmp::Reverse(weight(policy)));
                candidates.push((order, name.clone(), hold));
            }
        }
        candidates.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
        candidates.into_iter().map(|(_, name, hold)| (name, hold)).collect()
    }

    /// The policies that are in force and did not change, each with what allows nothing in its place: those in audit mode first, then
    /// those that name an identity which did, of the rest those of workloads, then the largest.
    fn in_force(
        &self,
        model: &Model,
        local: &BTreeSet<ObjectName>,
        error: &KernelError,
        candidates: &[(PolicyName, Held)],
    ) -> Vec<(PolicyName, Held)> {
        let known: BTreeSet<&PolicyName> = candidates.iter().map(|(name, _)| name).collect();
        let altered = |policy: &Policy| {
            let is_same =
                |name: &String| self.good.as_ref().is_some_and(|good| good.model.identities.get(name) == model.identities.get(name));
            !policy.identities().all(is_same)
        };
        let is_here = |name: &PolicyName| selected(model, name).into_iter().any(|pod| local.contains(pod));
        let rest = model.policies.iter().filter(|(name, _)| !known.contains(name) && !name.is_stand_in() && is_here(name));
        let mut rest: Vec<_> = rest
            .map(|(name, policy)| {
                let order =
                    (policy.mode == Mode::Enforce, !altered(policy), policy.tier != Tier::Workload, std::cmp::Reverse(weight(policy)));
                (order, name, policy)
            })
            .collect();
        rest.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
        rest.into_iter().map(|(_, name, policy)| (name.clone(), self.instead(name, policy, error))).collect()
    }

    /// The model with the stand-ins of the policies that are held back already, where nothing has come since that could make
    /// room for them: to find that out anew costs several compilations from nothing.
    pub(super) fn still_held(&self, model: &Model) -> Option<Fitting> {
        let Tried { taken: before, at, took } = self.without_room?;
        // What others say may have changed how many rows it needs: now and then it is tried, and all the rarer the longer a try takes.
        if at.elapsed() >= AGAIN.max(took * 20) {
            return None;
        }
        let lacks = |map: &str| self.held.values().any(|held| held.too_many.is_none_or(|(of, _)| of == map));
        let freed = TAKEN.iter().zip(taken(self.applied.as_ref()?)).zip(before).any(|((map, now), before)| now < before && lacks(map));
        let good = self.good.as_ref()?;
        let is_same = |identity: &String| good.model.identities.get(identity) == model.identities.get(identity);
        let same =
            |(name, held): (&PolicyName, &Held)| model.policies.get(name) == Some(&held.refused) && held.refused.identities().all(is_same);
        (!self.held.is_empty() && !freed && self.held.iter().all(same))
            .then(|| Fitting { model: stand_in(model, &self.held), held: self.held.clone() })
    }

    /// Remembers how full the maps are while policies are held back, as it was found in a try that began then.
    pub(super) fn note_room(&mut self, began: Instant) {
        let applied = self.applied.as_ref().filter(|_| !self.held.is_empty());
        self.without_room = applied.map(|applied| Tried { taken: taken(applied), at: Instant::now(), took: began.elapsed() });
    }

    /// What stands for a policy that does not fit: the last version that was in force, and where the new one isolates more, or
    /// selects other pods, one that allows nothing beside it; that one alone where there is no such version.
    fn instead(&self, name: &PolicyName, policy: &Arc<Policy>, error: &KernelError) -> Held {
        let before = match self.held.get(name) {
            Some(held) => held.last_good.then_some(&held.instead),
            None => match &self.good {
                Some(good) => good.model.policies.get(name).map(|policy| &**policy),
                None => self.last_good.of(name, policy),
            },
        };
        let covers = |good: &Policy| {
            good.subject == policy.subject
                && good.tier == policy.tier
                && (good.mode == Mode::Enforce || policy.mode == Mode::Audit)
                && (good.ingress.is_some() || policy.ingress.is_none())
                && (good.egress.is_some() || policy.egress.is_none())
        };
        let last_good = before.filter(|good| **good != **policy).cloned();
        let beside = last_good.as_ref().filter(|good| !covers(good)).map(|_| policy.closed());
        let what = match (&last_good, &beside) {
            (Some(_), Some(beside)) if beside.mode == Mode::Enforce => {
                "its last good version stays in force, and to the pods that this one selects it allows nothing"
            }
            (Some(_), _) => "its last good version stays in force",
            (None, _) if policy.mode == Mode::Audit => "it says nothing of any flow",
            (None, _) => "it allows nothing",
        };
        Held {
            refused: Arc::clone(policy),
            last_good: last_good.is_some(),
            instead: last_good.unwrap_or_else(|| policy.closed()),
            beside,
            reason: format!("{error} ({what})"),
            too_many: match error {
                KernelError::TooLarge { map, rows, limit } => Some((map, rows.saturating_sub(*limit as usize))),
                _ => None,
            },
        }
    }
}

/// The model with what stands for policies that are held back.
fn stand_in(model: &Model, held: &BTreeMap<PolicyName, Held>) -> Model {
    let mut model = model.clone();
    for (name, held) in held {
        model.policies.insert(name.clone(), held.instead.clone());
        if let Some(beside) = &held.beside {
            model.policies.insert(name.held_version(), beside.clone());
        }
    }
    model
}

fn taken(compiled: &Compiled) -> Taken {
    let addresses = compiled.addresses.len_of_groups(IpAddr::is_ipv4);
    let prefixes = compiled.prefixes.keys().filter(|prefix| prefix.addr().is_ipv4()).count();
    [
        addresses,
        compiled.addresses.len() - addresses,
        prefixes,
        compiled.prefixes.len() - prefixes,
        compiled.policy.len(),
        compiled.ports.len(),
    ]
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

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_policy::model::{PodSet, PolicyKind};

    #[test]
    fn a_version_without_room_and_a_later_one_that_is_refused_both_isolate_their_pods() {
        let name = PolicyName::new(PolicyKind::NetworkPolicy, ObjectName::new("shop", "p"));
        // The priority tells one version from another.
        let of = |priority| Policy {
            tier: Tier::Admin(priority),
            mode: Mode::Enforce,
            subject: PodSet::default(),
            ingress: Some(Vec::new()),
            egress: None,
        };
        let [good, wide, refused] = [1, 2, 3].map(of);
        let model = Model {
            policies: [(name.clone(), Arc::new(wide.clone())), (name.refused_version(), Arc::new(refused.clone()))].into_iter().collect(),
            ..Model::default()
        };
        let held = Held {
            refused: Arc::new(wide.clone()),
            instead: good.clone(),
            beside: Some(wide.closed()),
            last_good: true,
            reason: String::new(),
            too_many: None,
        };
        let model = stand_in(&model, &BTreeMap::from([(name.clone(), held)]));
        let versions = [name.clone(), name.held_version(), name.refused_version()].map(|name| (*model.policies[&name]).clone());
        assert_eq!(versions, [good, wide.closed(), refused]);
        assert!([name.held_version(), name.refused_version()].iter().all(PolicyName::is_stand_in) && !name.is_stand_in());
    }
}
