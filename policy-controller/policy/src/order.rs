//! The order of the writes between two states of the maps.
//!
//! A verdict of one side reads: the subject in the endpoint's row, the peer's identity, the row of both. A change
//! may alter all three, for many endpoints and addresses, and they can only be written one by one. So every
//! address that moves is first brought to an identity under which the subjects that endpoints leave still find
//! their old rows, and the subjects that they enter find their new ones; then the endpoints flip; then the
//! addresses go where they belong. This needs no knowledge of what the numbers stand for: it works on rows alone,
//! also from rows that were left by an interrupted change or by an agent whose numbers are lost.
//!
//! A flow between two pods of the node has two sides, which change at two instants. Where a change alters what some
//! endpoint may send and what another may receive, a denial could move from one side to the other and the flow
//! slip through between. Then every endpoint first goes to rows that allow what the old and the new rows both
//! allow, and only when all are there, on to the new ones. (A pod that reaches itself through a service is both sides under one subject.)
//!
//! A program reads one after the other, too, and the writes go on meanwhile. Between those that it must not meet together it is waited
//! for: what it began with stays until it has ended.
//!
//! What policies in audit mode would say is not kept to this order: while a change lasts it may be asked about an
//! identity between, and then say what the policies say of any peer. It decides nothing.

use crate::compile::Compiled;
use crate::compiler::Extent;
use crate::entries::longest_prefix;
use crate::model::ObjectName;
use crate::narrower::Narrower;
use crate::numbers::Numbers;
use crate::plan::Step;
use crate::ports::prefixes;
use crate::shared::Difference;
use ipnet::IpNet;
use palisade_datapath_core::abi::{Direction, IDENTITY_ANY, PolicyEntry, PolicyKey, PortEntry, PortKey, SUBJECT_NONE};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// What a list of subjects finds about one identity: the rows of each, by direction.
type Effect = Vec<[Option<PolicyEntry>; 4]>;

/// The steps from `old` to `next`, with what is known of the change between them.
pub(crate) fn steps(old: &Compiled, next: &Compiled, extent: Option<&Extent>, numbers: &mut Numbers) -> Vec<Step> {
    let same_rows = old.policy == next.policy && old.ports == next.ports;
    let same_pods = old.subjects == next.subjects && old.audits == next.audits;
    if same_rows && same_pods && old.addresses == next.addresses && old.prefixes == next.prefixes {
        return Vec::new();
    }
    let mut change = Change::new(old, next, extent);
    let two_sided = change.alters_both_sides(extent.map(|extent| &extent.near));
    if two_sided {
        change.flip_altered();
    }
    change.find_detours(numbers);
    change.classify(numbers);
    if two_sided {
        change.narrow(numbers);
    }
    change.complete_rows();
    change.steps()
}

/// What moves: a row of the addresses or of the prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Address(IpAddr),
    Prefix(IpNet),
}

/// One row of the addresses or prefixes that changes.
struct Move {
    place: Place,
    /// The identity that addresses find there before.
    from: u32,
    /// The identity that they find there after.
    to: u32,
    /// Whether a row is there before; without one, the longest prefix around answers.
    was: bool,
    /// Whether a row is there after.
    stays: bool,
    /// The identity between; see [`Change::classify`].
    between: u32,
}

/// An endpoint that goes from one subject to another.
struct Flip<'a> {
    pod: &'a ObjectName,
    /// The subject that it leaves.
    from: u32,
    /// The subject that allows what old and new both allow, where the endpoint goes there first.
    narrowed: Option<u32>,
    /// The subject that it enters while addresses are between.
    through: u32,
    /// The subject where it ends.
    to: u32,
}

struct Change<'a> {
    old: &'a Compiled,
    next: &'a Compiled,
    /// Subjects that endpoints have before, and after.
    old_subjects: BTreeSet<u32>,
    next_subjects: BTreeSet<u32>,
    /// The identities that addresses have before, and after, that of none included.
    old_identities: BTreeSet<u32>,
    next_identities: BTreeSet<u32>,
    flips: Vec<Flip<'a>>,
    /// Pods that are subjects no more, and pods that become one.
    gone: Vec<&'a ObjectName>,
    arrived: Vec<(&'a ObjectName, u32)>,
    moves: Vec<Move>,
    /// Rows while the change lasts.
    rows: BTreeMap<PolicyKey, PolicyEntry>,
    ports: BTreeMap<(PortKey, u8), PortEntry>,
}

impl<'a> Change<'a> {
    fn new(old: &'a Compiled, next: &'a Compiled, extent: Option<&Extent>) -> Self {
        let [old_identities, next_identities] = match extent {
            Some(extent) => extent.identities.clone(),
            None => [old, next].map(|rows| rows.identities().into_iter().collect()),
        }
        .map(|mut identities| {
            identities.insert(IDENTITY_ANY);
            identities
        });
        let subject = |rows: &Compiled, pod: &ObjectName| rows.subjects.get(pod).copied().unwrap_or(SUBJECT_NONE);
        let (mut flips, mut gone, mut arrived) = (Vec::new(), Vec::new(), Vec::new());
        for pod in old.subjects.keys().chain(next.subjects.keys().filter(|pod| !old.subjects.contains_key(pod))) {
            match (subject(old, pod), subject(next, pod)) {
                (from, to) if from == to && audit(old, pod) == audit(next, pod) => {}
                (_, SUBJECT_NONE) => gone.push(pod),
                (SUBJECT_NONE, to) => arrived.push((pod, to)),
                (from, to) => flips.push(Flip::new(pod, from, to)),
            }
        }
        let subjects = |rows: &Compiled| rows.subjects.values().copied().filter(|&subject| subject != SUBJECT_NONE).collect();
        Self {
            old,
            next,
            old_subjects: subjects(old),
            next_subjects: subjects(next),
            old_identities,
            next_identities,
            flips,
            gone,
            arrived,
            moves: moves(old, next),
            rows: next.policy.clone(),
            ports: next.ports.clone(),
        }
    }

    /// The identities of addresses before and after, each pair once; those that stay, and any peer, among them. Of the addresses that
    /// move, only those that endpoints of this node may have.
    fn identities(&self, near: Option<&BTreeSet<IpAddr>>) -> BTreeSet<(u32, u32)> {
        let is_near = |place: Place| match place {
            Place::Address(address) => near.is_none_or(|near| near.contains(&address)),
            Place::Prefix(_) => true,
        };
        let moved = self.moves.iter().filter(|entry| is_near(entry.place)).map(|entry| (entry.from, entry.to));
        moved.chain(self.staying_identities().map(|identity| (identity, identity))).collect()
    }

    /// Whether what one endpoint may send changes, and what another may receive. Of a flow to or from elsewhere one side is judged here: an address
    /// that no endpoint of this node has, such as that of a new pod of another node, makes no change of both.
    fn alters_both_sides(&self, near: Option<&BTreeSet<IpAddr>>) -> bool {
        let all = self.identities(near);
        // A subject that stays says the same of an identity that stays, for their numbers mean the same.
        let moved: BTreeSet<(u32, u32)> = all.iter().filter(|(before, after)| before != after).copied().collect();
        let mut altered: HashMap<(u32, u32), [bool; 2]> = HashMap::new();
        let (mut ingress, mut egress) = (BTreeSet::new(), BTreeSet::new());
        for (pod, &from) in &self.old.subjects {
            let Some(&to) = self.next.subjects.get(pod) else { continue };
            let [into, out] = *altered.entry((from, to)).or_insert_with(|| {
                let pairs = if from == to { &moved } else { &all };
                [Direction::Ingress, Direction::Egress].map(|direction| {
                    pairs.iter().any(|&(before, after)| self.old.row(from, direction, before) != self.next.row(to, direction, after))
                })
            });
            if into {
                ingress.insert(pod);
            }
            if out {
                egress.insert(pod);
            }
        }
        !ingress.is_empty() && !egress.is_empty() && ingress.union(&egress).count() > 1
    }

    /// Lets every endpoint about which something changes flip, also where its subject stays and only peers move.
    fn flip_altered(&mut self) {
        let pairs: BTreeSet<(u32, u32)> = self.moves.iter().map(|entry| (entry.from, entry.to)).collect();
        let stay = self.next_subjects.intersection(&self.old_subjects).copied();
        let alters =
            |subject: &u32| pairs.iter().any(|&(from, to)| effect(self.old, &[*subject], from) != effect(self.next, &[*subject], to));
        let altered: BTreeSet<u32> = stay.filter(alters).collect();
        for (pod, subject) in &self.next.subjects {
            if altered.contains(subject) && self.old.subjects.get(pod) == Some(subject) {
                self.flips.push(Flip::new(pod, *subject, *subject));
            }
        }
    }

    /// A subject that endpoints of others hold already cannot say the old about a moving address to them and the new
    /// to those who enter. Where that matters, who enters goes through a copy of the subject.
    fn find_detours(&mut self, numbers: &mut Numbers) {
        let shared: BTreeSet<u32> = self.flips.iter().map(|flip| flip.to).filter(|to| self.old_subjects.contains(to)).collect();
        let pairs: BTreeSet<(u32, u32)> = self.moves.iter().map(|entry| (entry.from, entry.to)).collect();
        for subject in shared {
            let alters = |&(from, to): &(u32, u32)| effect(self.old, &[subject], from) != effect(self.next, &[subject], to);
            if !pairs.iter().any(alters) {
                continue;
            }
            let copy = numbers.subjects.reserve();
            for (key, row) in rows_of(self.next, subject) {
                self.rows.insert(PolicyKey { subject: copy, ..*key }, *row);
            }
            self.flips.iter_mut().filter(|flip| flip.to == subject).for_each(|flip| flip.through = copy);
        }
    }

    /// Chooses where each address is while endpoints flip.
    ///
    /// *Early*: already at its new identity, if the rows that the left subjects need there are free. *Late*: still
    /// at its old one, if the rows that the entered subjects need there are free. Else at a number of its own.
    fn classify(&mut self, numbers: &mut Numbers) {
        let left: BTreeSet<u32> = self.flips.iter().map(|flip| flip.from).collect();
        let (left_for_good, left_by_some): (Vec<u32>, Vec<u32>) =
            left.into_iter().partition(|subject| !self.next_subjects.contains(subject));
        // Where the rows of an entered subject come from: (its number during the change, its number after it).
        let entered: BTreeSet<(u32, u32)> = self.flips.iter().map(|flip| (flip.through, flip.to)).collect();
        let (fresh, ends): (Vec<u32>, Vec<u32>) = entered.into_iter().filter(|(through, _)| !self.old_subjects.contains(through)).unzip();
        let mut early = Claims::new(self.old, &left_for_good, &self.old_identities);
        let mut late = Claims::new(self.next, &ends, &self.next_identities);
        let mut own: HashMap<(u32, u32), u32> = HashMap::new();
        for index in 0..self.moves.len() {
            let Move { from, to, stays, .. } = self.moves[index];
            let keeps = |subject: &u32| effect(self.old, &[*subject], from) == effect(self.next, &[*subject], to);
            // A row that goes is removed after the flips in any case, for the prefix around it may not be where it
            // belongs before: then it may as well stay as it is until then.
            let between = if stays && left_by_some.iter().all(keeps) && early.claim(to, from) {
                to
            } else if late.claim(from, to) {
                from
            } else {
                *own.entry((from, to)).or_insert_with(|| numbers.identities.reserve())
            };
            self.moves[index].between = between;
        }
        let pairs: BTreeSet<(u32, u32, u32)> = self.moves.iter().map(|entry| (entry.from, entry.to, entry.between)).collect();
        for (from, to, between) in pairs {
            if between == to && from != to {
                left_for_good.iter().for_each(|&subject| self.copy(self.old, subject, from, subject, between));
            } else if between == from && from != to {
                fresh.iter().zip(&ends).for_each(|(&through, &end)| self.copy(self.next, end, to, through, between));
            } else if between != from {
                for subject in self.old_subjects.clone() {
                    self.copy(self.old, subject, from, subject, between);
                }
                fresh.iter().zip(&ends).for_each(|(&through, &end)| self.copy(self.next, end, to, through, between));
            }
        }
    }

    /// Makes `subject` find about identity `here` what `original` finds about `there` in `rows`.
    fn copy(&mut self, rows: &Compiled, original: u32, there: u32, subject: u32, here: u32) {
        for direction in Direction::ALL {
            let Some(row) = rows.row(original, direction, there) else { continue };
            let key = PolicyKey::new(subject, direction, here);
            let any = rows.row(original, direction, IDENTITY_ANY);
            if here == IDENTITY_ANY || (any == Some(row) && !self.rows.contains_key(&key) && !self.old.policy.contains_key(&key)) {
                continue;
            }
            self.rows.insert(key, row);
        }
    }

    /// Gives each flip the subject that allows what old and new both allow.
    fn narrow(&mut self, numbers: &mut Numbers) {
        // Where addresses are while endpoints flip, with what they had and what they get.
        let mut between: BTreeMap<u32, (u32, u32)> = BTreeMap::from([(IDENTITY_ANY, (IDENTITY_ANY, IDENTITY_ANY))]);
        between.extend(self.staying_identities().map(|identity| (identity, (identity, identity))));
        between
            .extend(self.moves.iter().filter(|entry| entry.between != IDENTITY_ANY).map(|entry| (entry.between, (entry.from, entry.to))));
        let mut narrower = Narrower::new(self.old, self.next);
        let mut subjects: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for flip in &mut self.flips {
            let subject = *subjects.entry((flip.from, flip.to)).or_insert_with(|| numbers.subjects.reserve());
            flip.narrowed = Some(subject);
        }
        for ((from, to), subject) in subjects {
            for direction in Direction::ALL {
                let mut any = None;
                // Any peer comes first.
                for (&here, &(before, after)) in &between {
                    let (Some(old), Some(new)) = (self.old.row(from, direction, before), self.next.row(to, direction, after)) else {
                        continue;
                    };
                    let row = narrower.row(old, new, numbers);
                    if here == IDENTITY_ANY || any != Some(row) {
                        self.rows.insert(PolicyKey::new(subject, direction, here), row);
                    }
                    if here == IDENTITY_ANY {
                        any = Some(row);
                    }
                }
            }
        }
        for table in narrower.tables() {
            for range in numbers.ports.content(table).map(|table| table.0.as_slice()).unwrap_or_default() {
                for (port, length) in prefixes(range.first, range.last) {
                    self.ports.insert((PortKey::new(table, range.protocol, port), length), range.entry());
                }
            }
        }
    }

    /// The identities that addresses have before and after.
    fn staying_identities(&self) -> impl Iterator<Item = u32> {
        self.old_identities.intersection(&self.next_identities).copied()
    }

    /// Overrides rows of an interrupted change that would answer where the new state has no row of its own. (Where something is said of a subject
    /// itself, all its identities have rows.)
    fn complete_rows(&mut self) {
        for (key, row) in &self.old.policy {
            let any = PolicyKey { peer: IDENTITY_ANY, ..*key };
            if self.next_identities.contains(&key.peer)
                && self.next_subjects.contains(&key.subject)
                && !self.rows.contains_key(key)
                && let Some(wanted) = self.next.row_of(&any)
                && wanted != *row
                && !(key.is_self() && self.next.policy.contains_key(&any))
            {
                self.rows.insert(*key, wanted);
            }
        }
    }

    fn steps(self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        // Pods that have left, and rows that nobody reads: what an interrupted change left behind.
        let flip = |pod: &ObjectName, subject| Step::Flip { pod: pod.clone(), subject, audit: audit(self.next, pod) };
        steps.extend(self.gone.iter().map(|&pod| flip(pod, SUBJECT_NONE)));
        let audits: BTreeSet<u32> = self.old.audits.values().copied().collect();
        let read = |subject: &u32| self.old_subjects.contains(subject) || audits.contains(subject);
        let unread = |key: &PolicyKey| !read(&key.subject) && !self.rows.contains_key(key);
        steps.extend(self.old.policy.keys().filter(|key| unread(key)).map(|key| Step::RemovePolicy(*key)));
        // Rows, before anything refers to them.
        for ((key, length), entry) in &self.ports {
            if self.old.ports.get(&(*key, *length)) != Some(entry) {
                steps.push(Step::WritePort { key: *key, length: *length, entry: *entry });
            }
        }
        for (key, entry) in &self.rows {
            if self.old.policy.get(key) != Some(entry) {
                steps.push(Step::WritePolicy { key: *key, entry: *entry });
            }
        }
        // Addresses to the identities between.
        for entry in self.moves.iter().filter(|entry| !entry.was || entry.between != entry.from) {
            steps.push(entry.write(entry.between));
        }
        // Endpoints.
        let narrowed: Vec<Step> = self.flips.iter().filter_map(|change| Some(flip(change.pod, change.narrowed?))).collect();
        if !narrowed.is_empty() {
            steps.extend(narrowed);
            // A program may have read the old subject of one end, and not yet that of the other.
            steps.push(Step::AwaitPrograms);
        }
        steps.extend(self.flips.iter().map(|change| flip(change.pod, change.through)));
        let flipped = steps.len();
        // From here on new flows are judged anew; those that are judged already must not be long behind.
        let at_once = !self.flips.is_empty() && !self.alters_after_flips();
        // Addresses to where they belong; rows that go, last: addresses before the prefixes around them.
        for entry in self.moves.iter().filter(|entry| entry.stays && entry.between != entry.to) {
            steps.push(entry.write(entry.to));
        }
        for entry in self.moves.iter().rev().filter(|entry| !entry.stays) {
            steps.push(match entry.place {
                Place::Address(address) => Step::RemoveAddress(address),
                Place::Prefix(prefix) => Step::RemovePrefix(prefix),
            });
        }
        if steps.len() > flipped && !self.flips.is_empty() {
            // Who has read a subject that endpoints left finds its rows only where addresses were until now; and what it says by them
            // must not be written down in the epoch that follows.
            steps.insert(flipped, Step::AwaitPrograms);
            if at_once {
                steps.insert(flipped + 1, Step::BumpEpoch);
            }
        }
        steps.extend(self.flips.iter().filter(|change| change.through != change.to).map(|change| flip(change.pod, change.to)));
        steps.extend(self.arrived.iter().map(|&(pod, subject)| flip(pod, subject)));
        // Nothing refers to these any more.
        let mut removals: Vec<Step> = Vec::new();
        let dead =
            self.old.policy.keys().filter(|key| !unread(key)).chain(self.rows.keys().filter(|key| !self.old.policy.contains_key(key)));
        removals.extend(dead.filter(|key| !self.next.policy.contains_key(key)).map(|key| Step::RemovePolicy(*key)));
        let ports = self.old.ports.keys().chain(self.ports.keys().filter(|key| !self.old.ports.contains_key(key)));
        removals.extend(ports.filter(|key| !self.next.ports.contains_key(key)).map(|(key, length)| Step::RemovePort(*key, *length)));
        // From before the first write that alters a verdict until after the last one every packet is judged by itself: else a flow of
        // old would pass still where a new one does that the old policy refused. Rows to be removed may be all that is left of a change
        // that was interrupted before it came to this.
        let alters = self.alters(&steps);
        let bumped = steps.contains(&Step::BumpEpoch);
        // Who reads what goes has to end before it goes; and who has read what was altered, before an epoch begins in which its verdict
        // would speak.
        if !removals.is_empty() || (alters && !bumped) {
            steps.push(Step::AwaitPrograms);
        }
        if !bumped && (alters || !removals.is_empty()) {
            steps.push(Step::BumpEpoch);
        }
        if alters && let Some(first) = steps.iter().position(|step| self.is_met(step)) {
            steps.insert(first, Step::UnsettleEpoch);
        }
        steps.extend(removals);
        steps
    }

    /// Whether a verdict changes after endpoints have flipped: that of one that does not flip, about an address that moves late; or of
    /// a pod that becomes a subject, whose address may have been another's.
    fn alters_after_flips(&self) -> bool {
        let flipped: BTreeSet<&ObjectName> = self.flips.iter().map(|change| change.pod).collect();
        let stays = |(pod, subject): (&ObjectName, &u32)| (!flipped.contains(pod)).then_some(*subject);
        let staying: Vec<u32> = self.next.subjects.iter().filter_map(stays).collect::<BTreeSet<_>>().into_iter().collect();
        let late = self.moves.iter().filter(|entry| !entry.stays || entry.between != entry.to);
        let pairs: BTreeSet<(u32, u32)> = late.map(|entry| (entry.from, entry.to)).collect();
        !self.arrived.is_empty() || pairs.into_iter().any(|(from, to)| effect(self.old, &staying, from) != effect(self.next, &staying, to))
    }

    /// Whether a packet may meet what a step writes, unlike rows to which nothing refers yet, or no more.
    fn is_met(&self, step: &Step) -> bool {
        match step {
            Step::WritePolicy { key, entry } => {
                self.old_identities.contains(&key.peer)
                    && self.old_subjects.contains(&key.subject)
                    && self.old.row_of(key).is_some_and(|row| row != *entry)
            }
            Step::WritePort { key, length, .. } => self.old.ports.contains_key(&(*key, *length)),
            Step::RemovePolicy(_) | Step::RemovePort(..) | Step::AwaitPrograms | Step::UnsettleEpoch | Step::BumpEpoch => false,
            Step::Flip { .. } | Step::WritePrefix { .. } | Step::WriteAddress { .. } | Step::RemoveAddress(_) | Step::RemovePrefix(_) => {
                true
            }
        }
    }

    /// Whether the change may alter a verdict.
    fn alters(&self, steps: &[Step]) -> bool {
        if steps.iter().any(|step| matches!(step, Step::Flip { .. } | Step::RemovePolicy(_))) {
            return true;
        }
        let subjects: Vec<u32> = self.next_subjects.iter().copied().collect();
        let pairs: BTreeSet<(u32, u32)> = self.moves.iter().map(|entry| (entry.from, entry.to)).collect();
        pairs.iter().any(|&(from, to)| effect(self.old, &subjects, from) != effect(self.next, &subjects, to))
            || steps.iter().any(|step| matches!(step, Step::WritePolicy { .. } | Step::WritePort { .. }) && self.is_met(step))
    }
}

impl<'a> Flip<'a> {
    fn new(pod: &'a ObjectName, from: u32, to: u32) -> Self {
        Self { pod, from, narrowed: None, through: to, to }
    }
}

impl Move {
    fn write(&self, identity: u32) -> Step {
        match self.place {
            Place::Address(address) => Step::WriteAddress { address, identity },
            Place::Prefix(prefix) => Step::WritePrefix { prefix, identity },
        }
    }
}

/// What policies in audit mode would make of a pod.
fn audit(rows: &Compiled, pod: &ObjectName) -> u32 {
    rows.audits.get(pod).copied().unwrap_or(SUBJECT_NONE)
}

/// The rows of prefixes, then of addresses, that differ between two states.
fn moves(old: &Compiled, next: &Compiled) -> Vec<Move> {
    let mut moves = Vec::new();
    let mut add = |place, before: Option<u32>, after: Option<u32>, around: IpNet| {
        if before == after {
            return;
        }
        let found = |row: Option<u32>, rows: &Compiled| row.or_else(|| longest_prefix(&rows.prefixes, around)).unwrap_or(IDENTITY_ANY);
        let (from, to) = (found(before, old), found(after, next));
        moves.push(Move { place, from, to, was: before.is_some(), stays: after.is_some(), between: to });
    };
    for prefix in old.prefixes.keys().chain(next.prefixes.keys().filter(|prefix| !old.prefixes.contains_key(prefix))) {
        add(Place::Prefix(*prefix), old.prefixes.get(prefix).copied(), next.prefixes.get(prefix).copied(), *prefix);
    }
    for Difference { key, before, after } in old.addresses.differences(&next.addresses) {
        add(Place::Address(*key), before.copied(), after.copied(), IpNet::from(*key));
    }
    moves
}

/// What `subjects` find about `identity`.
fn effect(rows: &Compiled, subjects: &[u32], identity: u32) -> Effect {
    let find = |&subject: &u32| Direction::ALL.map(|direction| rows.row(subject, direction, identity));
    subjects.iter().map(find).collect()
}

/// The rows of one subject.
fn rows_of(rows: &Compiled, subject: u32) -> impl Iterator<Item = (&PolicyKey, &PolicyEntry)> {
    let first = PolicyKey { subject, ..PolicyKey::default() };
    rows.policy.range(first..).take_while(move |(key, _)| key.subject == subject)
}

/// Which effect each identity must have while endpoints flip.
struct Claims<'a> {
    rows: &'a Compiled,
    subjects: &'a [u32],
    /// Effects by number, and the effect that each identity has in `rows`.
    effects: HashMap<Effect, usize>,
    found: HashMap<u32, usize>,
    /// The effect that an identity must have.
    claimed: HashMap<u32, usize>,
}

impl<'a> Claims<'a> {
    /// `identities`, which addresses of `rows` have, are taken for the effect that they have there.
    fn new(rows: &'a Compiled, subjects: &'a [u32], identities: &BTreeSet<u32>) -> Self {
        let mut claims = Self { rows, subjects, effects: HashMap::new(), found: HashMap::new(), claimed: HashMap::new() };
        for &identity in identities {
            claims.claim(identity, identity);
        }
        claims
    }

    /// Claims that `identity` has the effect that `model` has; false where it must have another.
    fn claim(&mut self, identity: u32, model: u32) -> bool {
        let wanted = match self.found.get(&model) {
            Some(&effect) => effect,
            None => {
                let count = self.effects.len();
                let number = *self.effects.entry(effect(self.rows, self.subjects, model)).or_insert(count);
                self.found.insert(model, number);
                number
            }
        };
        *self.claimed.entry(identity).or_insert(wanted) == wanted
    }
}
