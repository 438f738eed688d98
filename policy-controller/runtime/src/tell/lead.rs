//! The agent that sums up: what all nodes report, into the status of each object.

use super::election::Term;
use super::{Complaint, To, list, now, pause, read_report, write};
use crate::metrics::Told;
use crate::reconcile::Backoff;
use crate::state::State;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::watcher::{self, Event};
use palisade_k8s::index::{Digests, Kind};
use palisade_k8s::report::Reports;
use palisade_k8s::status::Counts;
use palisade_k8s::sum::{Key, Snapshot, Sum, Write};
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
/// What is said where a status is not there to be written.
const NO_STATUS: &str =
    "; definitions of an older release have no status, and Helm does not renew them: kubectl apply --server-side -f charts/palisade/crds";
/// How long one watch of the reports lasts, in seconds.
const WATCH_SECONDS: u32 = 60;
/// How often it is read what the statuses say: somebody else may have changed one.
const REREAD: Duration = Duration::from_secs(600);

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
    /// What was logged of writes that fail, by kind of object and the code of the answer.
    logged: BTreeSet<(Told, Kind, Option<u16>)>,
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
    let (mut counted, mut read, mut rests_until) = (Instant::now(), Instant::now(), Instant::now());
    let (mut backoff, mut watched) = (Backoff::new(), Backoff::new());
    let (mut complaint, mut blind) = (Complaint::default(), Complaint::default());
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
                    if is_refused(&error) {
                        let reason = format!("{error}; the agent's service account needs get, list and watch of leases: the chart's Role");
                        blind.make("the reports of the nodes cannot be read, so that no status is brought up to date", reason);
                    } else {
                        tracing::debug!(%error, "the watch of the reports broke off");
                    }
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
                if read.elapsed() > REREAD {
                    read = Instant::now();
                    match list::told(to).await {
                        Ok(told) => {
                            work.sum.reread(told);
                            news = true;
                        }
                        Err(error) => tracing::debug!(%error, "what the statuses say cannot be read again"),
                    }
                }
                let digests = state.index().versions().digests();
                if news || count || work.of.as_ref() != Some(&digests) || work.reports.aged(now()) {
                    work = compute(state, work).await?;
                    news = false;
                }
                if Instant::now() < rests_until {
                    continue;
                }
                match write_due(state, to, &mut work).await {
                    Ok(false) => {}
                    Ok(true) => {
                        backoff.reset();
                        complaint.clear();
                    }
                    Err(error) => {
                        complaint.make("the API server takes no status now", error);
                        rests_until = Instant::now() + backoff.pause();
                    }
                }
            }
        }
    }
}

/// Whether it is not that a watch broke off, as they do, but that we may not watch.
fn is_refused(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => matches!(status.code, 401 | 403),
        _ => false,
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

/// Makes the writes that are due. Tells whether the API server took any; or why it takes none now, whatever they say.
async fn write_due(state: &State, to: &To, work: &mut Work) -> Result<bool, String> {
    if work.sum.is_settled() {
        return Ok(false);
    }
    let settle = 1 + 2 * i64::try_from(pause(state.nodes_known()).as_secs()).unwrap_or_default();
    let due = work.sum.due(now(), settle, WRITES.0, WRITES.1);
    let mut made = futures::stream::iter(due)
        .map(|what| async move {
            let made = write::write(to, &what).await;
            (what, made)
        })
        .buffer_unordered(AT_ONCE);
    let (mut taken, mut busy, mut away) = (false, None, None);
    while let Some((what, made)) = made.next().await {
        match made {
            Ok(told) => {
                taken = true;
                state.metrics.told(told);
                work.sum.done(&what, now());
            }
            // Nothing more is to be said of it: the watch tells what has its name now.
            Err(error) if error.is_about_another() => work.sum.done(&what, now()),
            Err(error) => {
                let count = work.sum.failed(&what, now());
                let (told, (kind, name)) = match &what {
                    Write::Status { key, .. } => (Told::Status, key),
                    Write::Event { key, .. } => (Told::Event, key),
                };
                state.metrics.not_told(told);
                if error.code() == Some(429) {
                    busy = Some(error.to_string());
                } else if error.is_of_the_server() {
                    away = Some(error.to_string());
                } else if error.code() == Some(404) && count < 2 {
                    // It is just gone, and the watch has not told yet.
                } else if work.logged.insert((told, *kind, error.code())) {
                    let hint = if error.code() == Some(404) { NO_STATUS } else { "" };
                    tracing::warn!(%kind, %name, %error, "what there is to say of an object cannot be written; it is tried again{hint}");
                }
            }
        }
    }
    // One that fails is tried again by itself; where some were taken, others go on.
    match busy.or(away.filter(|_| !taken)) {
        Some(reason) => Err(reason),
        None => Ok(taken),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{failure, server};
    use super::*;
    use crate::config::{AgentConfig, Source};
    use palisade_k8s::api::IdentityPolicy;
    use palisade_policy::model::ObjectName;
    use serde_json::{Value, json};

    fn policy(name: &str) -> Value {
        json!({
            "apiVersion": "palisade.dev/v1alpha1",
            "kind": "IdentityPolicy",
            "metadata": { "name": name, "namespace": "shop", "uid": name, "generation": 1 },
            "spec": { "subject": {} },
        })
    }

    /// What comes of a round of writes: policies that cannot be used, of which each has a status and an event to be written.
    async fn round(
        names: &[&str],
        answer: impl Fn(&str, &str) -> (u16, Value) + Clone + Send + Sync + 'static,
    ) -> (Result<bool, String>, Work) {
        let state = Arc::new(State::new(AgentConfig::new("me", Source::Kubernetes { server: None })));
        for name in names {
            let policy: IdentityPolicy = serde_json::from_value(policy(name)).unwrap();
            state.change(|index| index.upsert(&policy));
        }
        let mut work = compute(&state, Work::default()).await.unwrap();
        let to = server(answer).await;
        (write_due(&state, &to, &mut work).await, work)
    }

    /// The status that the API server was asked to write is that of the last part but one of the path.
    fn is_of(path: &str, name: &str) -> bool {
        path.ends_with(&format!("/{name}/status"))
    }

    fn waits(work: &Work, name: &str) -> bool {
        let later = work.sum.due(now() + 3600, 0, 20, 0);
        later.iter().any(|write| matches!(write, Write::Status { key, .. } if key.1 == ObjectName::new("shop", name)))
    }

    #[tokio::test]
    async fn a_status_that_the_api_server_does_not_know_is_not_written_and_keeps_nobody_from_writing() {
        for code in [404, 409, 500] {
            let answer = move |_: &str, path: &str| match path {
                path if is_of(path, "a") => failure(code, "", "no"),
                path if path.contains("/events") => failure(409, "AlreadyExists", "it was told before"),
                _ => (200, policy("b")),
            };
            let (outcome, work) = round(&["a", "b"], answer).await;
            assert_eq!(outcome, Ok(true), "{code}");
            assert!(waits(&work, "a") && !waits(&work, "b"), "{code}");
            assert!(work.sum.due(now(), 0, 20, 0).is_empty(), "not at once");
        }
    }

    #[tokio::test]
    async fn of_an_object_that_has_gone_nothing_is_to_be_said_any_more() {
        let gone = "uid mismatch: the provided object specified uid a, and no existing object was found";
        let (outcome, work) = round(&["a"], move |_, path| match path {
            path if is_of(path, "a") => failure(409, "Conflict", gone),
            _ => failure(409, "AlreadyExists", "it was told before"),
        })
        .await;
        assert_eq!(outcome, Ok(true));
        assert!(work.sum.is_settled());
    }

    #[tokio::test]
    async fn an_api_server_that_takes_nothing_or_is_too_busy_is_left_alone() {
        let (outcome, _) = round(&["a"], |_, _| failure(503, "", "away")).await;
        assert!(outcome.unwrap_err().contains("away"));
        let (outcome, _) = round(&["a", "b"], |_, path| match path {
            path if is_of(path, "a") => failure(429, "", "busy"),
            _ => (200, policy("b")),
        })
        .await;
        assert!(outcome.unwrap_err().contains("busy"));
        let (outcome, _) = round(&["a"], |_, _| failure(422, "Invalid", "no")).await;
        assert_eq!(outcome, Ok(false), "others may be taken");
    }
}
