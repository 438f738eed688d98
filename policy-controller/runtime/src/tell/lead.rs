//! The agent that sums up: what all nodes report, into the status of each object.

use super::election::Term;
use super::{Complaint, To, list, now, pause, read_report, write};
use crate::reconcile::Backoff;
use crate::state::State;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::watcher::{self, Event};
use palisade_k8s::index::{Digests, Kind};
use palisade_k8s::report::Reports;
use palisade_k8s::status::Counts;
use palisade_k8s::sum::{Key, Snapshot, Sum};
use palisade_policy::model::{Model, PolicyKind, PolicyName};
use palisade_policy::selected::{matched_each, selected};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often it is looked whether something is to be written.
const TICK: Duration = Duration::from_secs(1);
/// How many writes are made in that time; and how many of those that only bring numbers up to date.
const WRITES: (usize, usize) = (20, 1);
/// How many of them are under way at once.
const AT_ONCE: usize = 4;
/// How often pods and addresses are counted anew, where they changed.
const COUNTED: Duration = Duration::from_secs(30);
/// How long one watch of the reports lasts, in seconds.
const WATCH_SECONDS: u32 = 60;

/// Sums up while this agent is the one that does, for ever.
pub async fn follow(state: &Arc<State>, to: &To, terms: watch::Receiver<Term>) -> Infallible {
    let mut complaint = Complaint::default();
    let mut backoff = Backoff::new();
    let mut coming = terms.clone();
    loop {
        if !lasts(&terms) {
            backoff.reset();
            let _ = coming.changed().await;
            continue;
        }
        let mut ends = terms.clone();
        let failed = tokio::select! {
            // Whatever is under way is given up.
            () = end(&mut ends) => continue,
            Err(failed) = lead(state, to) => failed,
        };
        complaint.make("the status of policies cannot be written", failed);
        tokio::time::sleep(backoff.pause()).await;
    }
}

fn lasts(terms: &watch::Receiver<Term>) -> bool {
    terms.borrow().is_some_and(|until| Instant::now() < until)
}

/// Ready when the term is over.
async fn end(terms: &mut watch::Receiver<Term>) {
    loop {
        let until = *terms.borrow_and_update();
        let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            _ = terms.changed() => {}
        }
    }
}

/// What is known while this agent sums up.
#[derive(Debug, Default)]
struct Work {
    sum: Sum,
    reports: Reports,
    counts: BTreeMap<Key, Counts>,
    /// What the sum was made of.
    of: Option<Digests>,
    /// By kind, the last version that was looked at.
    upto: BTreeMap<Kind, u64>,
    /// Objects of later versions than those that were counted.
    stale: BTreeSet<Key>,
    /// The model in which all pods were counted last; those of objects that came later, in later ones.
    counted: Option<Arc<Model>>,
}

async fn lead(state: &Arc<State>, to: &To) -> Result<Infallible, String> {
    let told = list::told(to).await.map_err(|error| error.to_string())?;
    let mut work = Work { sum: Sum::new(told), ..Work::default() };
    let (label, value) = super::REPORT_LABEL;
    let config = watcher::Config::default().labels(&format!("{label}={value}")).timeout(WATCH_SECONDS);
    let mut events = pin!(watcher::watcher(to.leases(), config));
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut listing, mut listed, mut news) = (BTreeSet::new(), false, false);
    let mut counted = Instant::now();
    let (mut backoff, mut watched) = (Backoff::new(), Backoff::new());
    let mut complaint = Complaint::default();
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(Event::Init)) => listing.clear(),
                Ok(Some(Event::InitApply(lease))) => {
                    listing.extend(read_report(&lease).map(|(node, ..)| node));
                    news |= take(&mut work.reports, &lease);
                }
                Ok(Some(Event::Apply(lease))) => news |= take(&mut work.reports, &lease),
                Ok(Some(Event::Delete(lease))) => {
                    news |= read_report(&lease).is_some_and(|(node, ..)| work.reports.forget(&node));
                }
                Ok(Some(Event::InitDone)) => {
                    news |= work.reports.retain(&listing);
                    listed = true;
                    watched.reset();
                }
                Ok(None) => return Err("the watch of the reports ended".to_owned()),
                // It goes on from where it was, or lists anew.
                Err(error) => {
                    tracing::debug!(%error, "the watch of the reports broke off");
                    tokio::time::sleep(watched.pause()).await;
                    continue;
                }
            },
            _ = ticks.tick() => {
                if !listed {
                    continue;
                }
                let count = counted.elapsed() > COUNTED && work.counted.as_ref().is_none_or(|model| !Arc::ptr_eq(model, &state.published().model));
                if count {
                    work.counts.clear();
                    work.counted = None;
                    counted = Instant::now();
                }
                let digests = state.index().versions().digests();
                if news || count || work.of.as_ref() != Some(&digests) || work.reports.aged(now()) {
                    work = compute(state, work).await?;
                    news = false;
                }
                match write_due(state, to, &mut work).await {
                    Ok(()) => {
                        backoff.reset();
                        complaint.clear();
                    }
                    Err(error) => {
                        complaint.make("a status cannot be written", error);
                        tokio::time::sleep(backoff.pause()).await;
                    }
                }
            }
        }
    }
}

/// Takes a report; tells whether it says anything new.
fn take(reports: &mut Reports, lease: &Lease) -> bool {
    read_report(lease).is_some_and(|(node, report, until)| reports.take(&node, report, until))
}

impl Work {
    /// Forgets the counts of objects that have a new version, once it is in the model in which they are counted.
    fn forget_stale_counts(&mut self, snapshot: &Snapshot, in_model: &Digests) {
        let before = self.upto.clone();
        for (kind, name, version) in snapshot.objects() {
            if version.step > before.get(&kind).copied().unwrap_or_default() {
                self.stale.insert((kind, name.clone()));
                let upto = self.upto.entry(kind).or_default();
                *upto = version.step.max(*upto);
            }
        }
        let there = |kind: &Kind| self.of.as_ref().is_some_and(|of| of.get(kind) == in_model.get(kind));
        let counts = &mut self.counts;
        self.stale.retain(|key| {
            let there = there(&key.0);
            if there {
                counts.remove(key);
            }
            !there
        });
    }
}

/// Finds out what is to be said, on a thread that may be busy with it.
async fn compute(state: &Arc<State>, mut work: Work) -> Result<Work, String> {
    let state = Arc::clone(state);
    let computed = tokio::task::spawn_blocking(move || {
        let snapshot = {
            let index = state.index();
            work.of = Some(index.versions().digests());
            work.reports.compare(index.versions(), index.node_names(), now());
            Snapshot::of(&index)
        };
        let published = state.published();
        work.forget_stale_counts(&snapshot, &published.digests);
        count(&published.model, &snapshot, &mut work.counts);
        work.counted.get_or_insert_with(|| Arc::clone(&published.model));
        work.sum.compute(&snapshot, &work.reports, &work.counts, now());
        work
    });
    computed.await.map_err(|error| error.to_string())
}

/// Counts the pods and addresses of the objects that have not been counted yet.
fn count(model: &Model, snapshot: &Snapshot, counts: &mut BTreeMap<Key, Counts>) {
    let mut identities = None;
    for (kind, name, _) in snapshot.objects() {
        let key = (kind, name.clone());
        if counts.contains_key(&key) {
            continue;
        }
        let policy = |kind| PolicyName::new(kind, name.clone());
        let policy = match kind {
            Kind::NetworkPolicy => policy(PolicyKind::NetworkPolicy),
            Kind::IdentityPolicy => policy(PolicyKind::IdentityPolicy),
            Kind::ClusterNetworkPolicy => policy(PolicyKind::ClusterNetworkPolicy),
            _ => {
                let matched = identities.get_or_insert_with(|| matched_each(model)).get(name.name.as_str());
                if model.identities.contains_key(&name.name) {
                    let counted = matched
                        .map_or_else(Counts::default, |matched| Counts { pods: matched.pods.len(), addresses: matched.addresses.len() });
                    counts.insert(key, counted);
                }
                continue;
            }
        };
        // What is not in the kernel yet is counted when it is.
        if model.policies.contains_key(&policy) {
            counts.insert(key, Counts { pods: selected(model, &policy).len(), addresses: 0 });
        }
    }
}

/// Makes the writes that are due.
async fn write_due(state: &State, to: &To, work: &mut Work) -> Result<(), String> {
    if work.sum.is_settled() {
        return Ok(());
    }
    let settle = 1 + 2 * i64::try_from(pause(state.nodes_known()).as_secs()).unwrap_or_default();
    let due = work.sum.due(now(), settle, WRITES.0, WRITES.1);
    let mut made = futures::stream::iter(due)
        .map(|what| async move {
            let made = write::write(to, &what).await;
            (what, made)
        })
        .buffer_unordered(AT_ONCE);
    let mut failed = None;
    while let Some((what, made)) = made.next().await {
        match made {
            Ok(told) => {
                state.metrics.told(told);
                work.sum.done(&what, now());
            }
            Err(error) => failed = Some(error.to_string()),
        }
    }
    failed.map_or(Ok(()), Err)
}
