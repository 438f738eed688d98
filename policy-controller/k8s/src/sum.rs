//! What the one agent that sums up has to write: the statuses and events that differ from what was said before, at a pace.
//!
//! Nothing here writes, or knows what time it is.

use crate::index::{Index, Kind, Refused, Version};
use crate::report::{Enforcement, Reports};
use crate::status::{Condition, ConditionType, Counts, Facts, Reason, conditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition as ApiCondition;
use palisade_policy::model::{Mode, ObjectName, PolicyKind, PolicyName};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How many events may wait that tell of nothing wrong with a policy; of more nobody is told.
const MOST_COMMON_NEWS: usize = 1000;
/// After which time a write that failed is tried again, the first time and at most, in seconds.
const AGAIN: (i64, i64) = (2, 300);

/// Kind and name of an object.
pub type Key = (Kind, ObjectName);

/// What is known of the objects at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    objects: Vec<(Kind, ObjectName, Version)>,
    refused: BTreeMap<Key, Refused>,
    audited: BTreeSet<PolicyName>,
}

impl Snapshot {
    /// What the index knows now.
    pub fn of(index: &Index) -> Self {
        let key = |refused: &Refused| {
            let (namespace, name) = refused.object.split_once('/').unwrap_or(("", &refused.object));
            (refused.kind, ObjectName::new(namespace, name))
        };
        Self {
            objects: index.versions().iter().map(|(kind, name, version)| (kind, name.clone(), version.clone())).collect(),
            refused: index.refused().into_iter().map(|refused| (key(&refused), refused)).collect(),
            audited: index.policies().filter(|(_, policy)| policy.mode == Mode::Audit).map(|(name, _)| name.clone()).collect(),
        }
    }

    /// The objects, each with its version.
    pub fn objects(&self) -> impl Iterator<Item = (Kind, &ObjectName, &Version)> {
        self.objects.iter().map(|(kind, name, version)| (*kind, name, version))
    }

    /// What the nodes say of an object, and what its conditions are.
    pub fn standing(&self, key: &Key, version: &Version, counts: Counts, reports: &Reports, vouched: bool) -> Standing {
        let (kind, name) = key;
        let enforcement = reports.of(*kind, name, version.step, vouched);
        let policy = match kind {
            Kind::NetworkPolicy => Some(PolicyKind::NetworkPolicy),
            Kind::IdentityPolicy => Some(PolicyKind::IdentityPolicy),
            Kind::ClusterNetworkPolicy => Some(PolicyKind::ClusterNetworkPolicy),
            _ => None,
        };
        let facts = Facts {
            kind: *kind,
            generation: version.generation,
            refused: self.refused.get(key),
            audit: policy.is_some_and(|kind| self.audited.contains(&PolicyName::new(kind, name.clone()))),
            enforcement: &enforcement,
            counts,
        };
        Standing { generation: version.generation, conditions: conditions(&facts), counts, enforcement }
    }
}

/// What there is to say of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The generation that it is about.
    pub generation: Option<i64>,
    /// Accepted, and Enforced.
    pub conditions: [Condition; 2],
    /// How many pods and addresses it is about.
    pub counts: Counts,
    /// What the nodes say of it.
    pub enforcement: Enforcement,
}

impl Standing {
    /// Messages and numbers: what may change without being news.
    fn small_print(&self) -> u64 {
        let [accepted, enforced] = &self.conditions;
        small_print([&accepted.message, &enforced.message])
    }

    fn said(&self) -> [(bool, Reason); 2] {
        self.conditions.each_ref().map(|condition| (condition.holds, condition.reason))
    }
}

/// The same number for the same messages. They hold all numbers that a status shows beside them.
fn small_print(messages: [&str; 2]) -> u64 {
    let mut hash = DefaultHasher::new();
    messages.hash(&mut hash);
    hash.finish()
}

/// What the status of an object said when it was last read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    uid: Option<String>,
    generation: Option<i64>,
    /// Whether each condition holds, why, and since when, in seconds since the Unix epoch.
    conditions: [(bool, Reason, i64); 2],
    small_print: u64,
    /// When it was written, as far as that is known.
    at: i64,
}

impl Told {
    /// What a status says; `None` where it is not one that was written here.
    pub fn read(uid: Option<String>, read: &[ApiCondition]) -> Option<Self> {
        let find = |of: ConditionType| {
            let read = read.iter().find(|read| read.type_ == of.name())?;
            Some((read, (read.status == "True", Reason::named(&read.reason)?, read.last_transition_time.0.as_second())))
        };
        let ((accepted, first), (enforced, second)) = (find(ConditionType::Accepted)?, find(ConditionType::Enforced)?);
        Some(Self {
            uid,
            generation: accepted.observed_generation.filter(|generation| enforced.observed_generation == Some(*generation)),
            conditions: [first, second],
            small_print: small_print([&accepted.message, &enforced.message]),
            at: 0,
        })
    }

    fn is_of(&self, version: &Version) -> bool {
        self.uid == version.uid && self.generation == version.generation
    }
}

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The status of an object.
    Status {
        /// Which object.
        key: Key,
        /// Its UID: nothing may be written to another object of the name.
        uid: Option<String>,
        /// What there is to say.
        standing: Standing,
        /// Since when each condition is as it is, in seconds since the Unix epoch.
        since: [i64; 2],
    },
    /// An event about an object.
    Event {
        /// Which object.
        key: Key,
        /// Its UID.
        uid: Option<String>,
        /// The generation that it is about.
        generation: Option<i64>,
        /// And the revision: in audit mode or not is no part of the generation of a NetworkPolicy.
        revision: Option<String>,
        /// What it tells.
        news: News,
        /// For people.
        message: String,
    },
}

/// What an event tells of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum News {
    /// It cannot be used as it is written.
    NotAccepted,
    /// A node does not enforce it as it is written.
    NotEnforced,
    /// Nodes have not come to it in the time that it should take.
    Pending,
    /// Every node enforces it.
    Enforced,
    /// It is in audit mode.
    Audit,
}

impl News {
    /// Its name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAccepted => "NotAccepted",
            Self::NotEnforced => "NotEnforced",
            Self::Pending => "Pending",
            Self::Enforced => "Enforced",
            Self::Audit => "Audit",
        }
    }

    /// Whether it is a warning.
    pub const fn warns(self) -> bool {
        !matches!(self, Self::Enforced | Self::Audit)
    }

    /// Whether it tells of nothing that is wrong with the object itself, so that it is no news of an object that was there before.
    const fn is_common(self) -> bool {
        matches!(self, Self::Pending | Self::Enforced | Self::Audit)
    }
}

/// What has been said of all objects, and what is still to be said.
#[derive(Debug, Default)]
pub struct Sum {
    told: BTreeMap<Key, Told>,
    /// What differs from what was told.
    due: BTreeMap<Key, Due>,
    announced: BTreeMap<Key, Announced>,
    /// Events that are still to be made.
    news: BTreeMap<Key, Waiting>,
    begun: bool,
}

#[derive(Debug)]
struct Due {
    uid: Option<String>,
    standing: Standing,
    /// Whether more than messages and numbers differ.
    matters: bool,
    /// Since when it differs.
    since: i64,
    failures: Failures,
}

/// An event that is still to be made.
#[derive(Debug)]
struct Waiting {
    news: News,
    write: Write,
    since: i64,
    failures: Failures,
}

/// How often a write has failed, and before which time it is not tried again.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    next: i64,
}

impl Failures {
    fn add(&mut self, now: i64) -> u32 {
        let doubled = AGAIN.0.saturating_mul(1 << self.count.min(16));
        self.next = now + doubled.min(AGAIN.1);
        self.count = self.count.saturating_add(1);
        self.count
    }
}

/// What events have told of an object.
#[derive(Debug)]
struct Announced {
    uid: Option<String>,
    generation: Option<i64>,
    revision: Option<String>,
    news: Option<News>,
    /// Whether it was there when the sum began: it is no news that it is enforced.
    old: bool,
}

impl Sum {
    /// Nothing is known to have been said but `told`: what the statuses of the objects say.
    pub fn new(told: impl IntoIterator<Item = (Key, Told)>) -> Self {
        Self { told: told.into_iter().collect(), ..Self::default() }
    }

    /// What the statuses of the objects say was read anew: somebody else may have changed one, or taken it away.
    pub fn reread(&mut self, told: impl IntoIterator<Item = (Key, Told)>) {
        self.told = told.into_iter().collect();
    }

    /// Finds out what is to be said now, in seconds since the Unix epoch.
    pub fn compute(&mut self, snapshot: &Snapshot, reports: &Reports, counts: &BTreeMap<Key, Counts>, now: i64) {
        let mut due = BTreeMap::new();
        let mut present = BTreeSet::new();
        for (kind, name, version) in snapshot.objects() {
            let key = (kind, name.clone());
            let told = self.told.get(&key).filter(|told| told.uid == version.uid);
            let vouched = told.is_some_and(|told| told.is_of(version) && told.conditions[1].0);
            let counts = counts.get(&key).copied().unwrap_or_default();
            let standing = snapshot.standing(&key, version, counts, reports, vouched);
            let matters = told.is_none_or(|told| !told.is_of(version) || said(told) != standing.said());
            let differs = matters || told.is_some_and(|told| told.small_print != standing.small_print());
            self.announce(&key, version, &standing, now);
            // A NetworkPolicy has no status.
            if kind != Kind::NetworkPolicy && differs {
                let before = self.due.get(&key).filter(|due| due.uid == version.uid && due.standing.generation == version.generation);
                let since = before.filter(|due| due.matters == matters).map_or(now, |due| due.since);
                let failures = before.map(|due| due.failures).unwrap_or_default();
                due.insert(key.clone(), Due { uid: version.uid.clone(), standing, matters, since, failures });
            }
            present.insert(key);
        }
        self.due = due;
        self.told.retain(|key, _| present.contains(key));
        self.announced.retain(|key, _| present.contains(key));
        self.news.retain(|key, _| present.contains(key));
        if self.news.values().filter(|waiting| waiting.news.is_common()).count() > MOST_COMMON_NEWS {
            self.news.retain(|_, waiting| !waiting.news.is_common());
        }
        self.begun = true;
    }

    fn announce(&mut self, key: &Key, version: &Version, standing: &Standing, now: i64) {
        let [accepted, enforced] = &standing.conditions;
        // The others have a status that says the rest.
        let without_status = key.0 == Kind::NetworkPolicy;
        let news = match enforced.reason {
            _ if !accepted.holds => Some((News::NotAccepted, &accepted.message)),
            Reason::DoesNotFit => Some((News::NotEnforced, &enforced.message)),
            Reason::AllNodes if without_status => Some((News::Enforced, &enforced.message)),
            Reason::Pending if without_status => Some((News::Pending, &enforced.message)),
            Reason::Audit if without_status => Some((News::Audit, &enforced.message)),
            _ => None,
        };
        let is_same =
            |known: &&Announced| known.uid == version.uid && known.generation == version.generation && known.revision == version.revision;
        let known = self.announced.get(key).filter(is_same);
        let old = known.map_or(!self.begun, |known| known.old);
        let which = news.map(|(news, _)| news);
        if known.is_some_and(|known| known.news == which) {
            // What waits tells how it is when it is told.
            if let (Some((_, latest)), Some(Waiting { write: Write::Event { message, .. }, .. })) = (news, self.news.get_mut(key)) {
                message.clone_from(latest);
            }
            return;
        }
        // That a node lacks a version of which more was told is not told again: a node that has just come may be one.
        if known.is_some_and(|known| which.is_none() || (which == Some(News::Pending) && known.news.is_some())) {
            return;
        }
        let (uid, generation, revision) = (version.uid.clone(), version.generation, version.revision.clone());
        self.announced.insert(key.clone(), Announced { uid: uid.clone(), generation, revision: revision.clone(), news: which, old });
        self.news.remove(key);
        // A status that says the same was written together with its event.
        let said_before = !self.begun && self.told.get(key).is_some_and(|told| told.is_of(version) && said(told) == standing.said());
        if let Some((news, message)) = news
            && !said_before
            && !(old && news.is_common())
        {
            let write = Write::Event { key: key.clone(), uid, generation, revision, news, message: message.clone() };
            self.news.insert(key.clone(), Waiting { news, write, since: now, failures: Failures::default() });
        }
    }

    /// What to write now: at most `most` writes that matter, the oldest first, and `few` of those that only bring numbers up to date.
    /// That nodes have not come to a version yet is not written before `settle` seconds have passed. What has failed comes after what
    /// was due before its next time, and of events and statuses neither keeps the other from half of the writes.
    pub fn due(&self, now: i64, settle: i64, most: usize, few: usize) -> Vec<Write> {
        let settled = |pending: bool, since: i64| !pending || now - since >= settle;
        let events = self.news.iter().filter_map(|(key, waiting)| {
            let Waiting { news, since, failures, .. } = waiting;
            let ready = failures.next <= now && settled(*news == News::Pending, *since);
            ready.then(|| (failures.next.max(*since), key, waiting))
        });
        let ready = || self.due.iter().filter(move |(_, due)| due.failures.next <= now);
        let ripe = |due: &Due| settled(due.standing.conditions[1].reason == Reason::Pending, due.since);
        let matter = ready().filter(|(_, due)| due.matters && ripe(due)).map(|(key, due)| (due.failures.next.max(due.since), key, due));
        let at = |key: &Key| self.told.get(key).map_or(0, |told| told.at);
        let numbers = ready().filter(|(_, due)| !due.matters).map(|(key, due)| (due.failures.next.max(at(key)), key, due));
        let (mut events, mut statuses) = (first(events, most), first(matter, most));
        events.truncate(most - statuses.len().min(most / 2));
        statuses.truncate(most - events.len());
        let statuses = statuses.into_iter().chain(first(numbers, few)).map(|(_, key, due)| self.write(key, due, now));
        events.into_iter().map(|(_, _, waiting)| waiting.write.clone()).chain(statuses).collect()
    }

    /// Whether anything is still to be written.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty() && self.news.is_empty()
    }

    fn write(&self, key: &Key, due: &Due, now: i64) -> Write {
        let told = self.told.get(key).filter(|told| told.uid == due.uid);
        let since = |index: usize| {
            let before = told.map(|told| told.conditions[index]);
            before.filter(|(holds, _, _)| *holds == due.standing.conditions[index].holds).map_or(now, |(_, _, since)| since)
        };
        Write::Status { key: key.clone(), uid: due.uid.clone(), standing: due.standing.clone(), since: [since(0), since(1)] }
    }

    /// A write failed: it is tried again later, and each time later than before. Tells how often it has failed.
    pub fn failed(&mut self, write: &Write, now: i64) -> u32 {
        let failures = match write {
            Write::Event { key, .. } => {
                self.news.get_mut(key).filter(|waiting| waiting.write == *write).map(|waiting| &mut waiting.failures)
            }
            Write::Status { key, uid, .. } => self.due.get_mut(key).filter(|due| due.uid == *uid).map(|due| &mut due.failures),
        };
        failures.map_or(0, |failures| failures.add(now))
    }

    /// Something was written, or there is nothing any more to write it to.
    pub fn done(&mut self, write: &Write, now: i64) {
        match write {
            Write::Event { key, .. } => {
                if self.news.get(key).is_some_and(|waiting| waiting.write == *write) {
                    self.news.remove(key);
                }
            }
            Write::Status { key, uid, standing, since } => {
                let conditions = [0, 1].map(|index| {
                    let condition = &standing.conditions[index];
                    (condition.holds, condition.reason, since[index])
                });
                let generation = standing.generation;
                let told = Told { uid: uid.clone(), generation, conditions, small_print: standing.small_print(), at: now };
                self.told.insert(key.clone(), told);
                if self.due.get(key).is_some_and(|due| due.uid == *uid && due.standing == *standing) {
                    self.due.remove(key);
                }
            }
        }
    }
}

fn said(told: &Told) -> [(bool, Reason); 2] {
    told.conditions.map(|(holds, reason, _)| (holds, reason))
}

/// The first of these by time and name.
fn first<'a, T>(due: impl Iterator<Item = (i64, &'a Key, &'a T)>, most: usize) -> Vec<(i64, &'a Key, &'a T)> {
    let mut due: Vec<_> = due.collect();
    if most < due.len() {
        due.select_nth_unstable_by_key(most, |(time, key, _)| (*time, *key));
        due.truncate(most);
    }
    due.sort_unstable_by_key(|(time, key, _)| (*time, *key));
    due
}
