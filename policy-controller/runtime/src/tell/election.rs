//! Which agent sums up: the one that holds a Lease.
//!
//! Expiry is measured by how long nobody has renewed the Lease, on the clock of who looks, so that clocks need not agree.

use super::{Complaint, To, answered, between, pause};
use crate::metrics::Told;
use crate::state::State;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The Lease.
const NAME: &str = "palisade-status";
/// How long it lasts without renewal.
const LASTS: Duration = Duration::from_secs(20);
/// How often its holder renews it.
const RENEWED: Duration = Duration::from_secs(5);
/// For how long its holder relies on it after a renewal: not as long as it lasts, for what was begun has to come to an end.
const RELIED_ON: Duration = Duration::from_secs(12);

/// Until when this agent is the one that sums up.
pub type Term = Option<Instant>;

/// Takes part in the election, for ever, once this node enforces what is known.
pub async fn follow(state: &State, to: &To, term: watch::Sender<Term>) -> Infallible {
    let mut complaint = Complaint::default();
    let mut seen = Seen::default();
    loop {
        if !state.published().reconciled {
            tokio::time::sleep(RENEWED).await;
            continue;
        }
        // Before it is asked: what counts is when the API server may have counted from.
        let asked = Instant::now();
        let wait = match turn(to, &mut seen).await {
            Ok(Turn::Mine) => {
                complaint.clear();
                state.metrics.told(Told::Lease);
                let began = term.borrow().is_none_or(|until| until < asked);
                if began {
                    tracing::info!("this agent writes the status of policies now");
                }
                term.send_replace(Some(asked + RELIED_ON));
                RENEWED
            }
            Ok(Turn::Other(wait)) => {
                complaint.clear();
                if term.send_replace(None).is_some() {
                    tracing::info!("another agent writes the status of policies now");
                }
                wait.unwrap_or_else(|| at_leisure(state))
            }
            Err(error) => {
                state.metrics.not_told(Told::Lease);
                complaint.make("the election of the agent that writes status does not work", error.to_string());
                RENEWED
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// When to look again while another agent holds the Lease: of many agents, one looks soon enough.
fn at_leisure(state: &State) -> Duration {
    let pause = pause(state.nodes_known());
    between(5 * pause, 10 * pause)
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Mine,
    /// Another's; when to look again, where that is known.
    Other(Option<Duration>),
}

/// What is to be done about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Make,
    Renew,
    TakeOver,
    /// Look again after this time, or at leisure.
    Wait(Option<Duration>),
}

/// Since when the Lease has been as it is.
#[derive(Debug, Default)]
struct Seen {
    version: Option<String>,
    since: Option<Instant>,
}

impl Seen {
    /// For how long the Lease has not changed, as far as was seen.
    fn unchanged(&mut self, lease: &Lease, now: Instant) -> Duration {
        if self.version != lease.metadata.resource_version || self.since.is_none() {
            self.version.clone_from(&lease.metadata.resource_version);
            self.since = Some(now);
        }
        self.since.map_or(Duration::ZERO, |since| now - since)
    }
}

async fn turn(to: &To, seen: &mut Seen) -> Result<Turn, super::Failed> {
    match attempt(to, seen).await {
        // Somebody wrote to the Lease since it was read: it need not be another holder.
        Err(error) if error.code() == Some(409) => attempt(to, seen).await,
        turn => turn,
    }
}

async fn attempt(to: &To, seen: &mut Seen) -> Result<Turn, super::Failed> {
    let leases = to.leases();
    let found = answered(leases.get_opt(NAME)).await?;
    let unchanged = found.as_ref().map_or(Duration::ZERO, |lease| seen.unchanged(lease, Instant::now()));
    let next = decide(found.as_ref(), &to.node, unchanged, Timestamp::now());
    if let Move::Wait(wait) = next {
        return Ok(Turn::Other(wait));
    }
    let lease = held(found, next, &to.node);
    let post = PostParams::default();
    let written = match next {
        Move::Make => answered(leases.create(&post, &lease)).await,
        // With the version that was read: of two that try one fails.
        _ => answered(leases.replace(NAME, &post, &lease)).await,
    };
    written.map(|_| Turn::Mine)
}

fn decide(found: Option<&Lease>, me: &str, unchanged: Duration, now: Timestamp) -> Move {
    let Some(lease) = found else { return Move::Make };
    let spec = lease.spec.clone().unwrap_or_default();
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == me => Move::Renew,
        None | Some("") => Move::TakeOver,
        Some(_) => {
            let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(LASTS, Duration::from_secs);
            if unchanged >= lasts {
                return Move::TakeOver;
            }
            let renewed = spec.renew_time.map_or(0, |time| time.0.as_second());
            let looks_old = renewed.saturating_add(lasts.as_secs().try_into().unwrap_or(i64::MAX)) < now.as_second();
            // Its holder's clock may be wrong: it is old once it has not changed for as long.
            Move::Wait(looks_old.then(|| lasts - unchanged))
        }
    }
}

/// The Lease, held by this agent.
fn held(found: Option<Lease>, next: Move, me: &str) -> Lease {
    let mut lease = found.unwrap_or_else(|| Lease {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec::default()),
    });
    let now = MicroTime(Timestamp::now());
    let spec = lease.spec.get_or_insert_default();
    if next != Move::Renew {
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |transitions| transitions.saturating_add(1)));
        spec.acquire_time = Some(now.clone());
    }
    spec.holder_identity = Some(me.to_owned());
    spec.lease_duration_seconds = i32::try_from(LASTS.as_secs()).ok();
    spec.renew_time = Some(now);
    lease
}

#[cfg(test)]
mod tests {
    use super::super::tests::{failure, server};
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn lease(holder: &str, renewed: i64) -> Lease {
        let mut lease = held(None, Move::Make, holder);
        lease.spec.as_mut().unwrap().renew_time = Some(MicroTime(Timestamp::from_second(renewed).unwrap()));
        lease
    }

    const NONE: Duration = Duration::ZERO;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_and_one_s_own_renewed() {
        assert_eq!(decide(None, "me", NONE, at(0)), Move::Make);
        assert_eq!(decide(Some(&lease("", 0)), "me", NONE, at(0)), Move::TakeOver);
        assert_eq!(decide(Some(&lease("me", 0)), "me", NONE, at(1000)), Move::Renew);
    }

    #[test]
    fn another_s_lease_is_taken_over_only_after_nobody_was_seen_to_renew_it_for_as_long_as_it_lasts() {
        let other = lease("other", 1000);
        assert_eq!(decide(Some(&other), "me", NONE, at(1001)), Move::Wait(None));
        // Whatever the clocks say.
        assert_eq!(decide(Some(&other), "me", Duration::from_secs(3), at(5000)), Move::Wait(Some(LASTS - Duration::from_secs(3))));
        assert_eq!(decide(Some(&other), "me", LASTS, at(1001)), Move::TakeOver);
    }

    #[test]
    fn who_does_not_hold_the_lease_looks_again_at_leisure() {
        let state = State::new(crate::config::AgentConfig::new("node", crate::config::Source::Kubernetes { server: None }));
        let wait = at_leisure(&state);
        assert!(Duration::from_secs(10) <= wait && wait <= Duration::from_secs(20), "{wait:?}");
    }

    #[test]
    fn a_change_of_the_lease_begins_the_wait_anew() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut lease = lease("other", 0);
        lease.metadata.resource_version = Some("1".to_owned());
        let unchanged = |seen: &mut Seen, lease: &Lease, seconds| seen.unchanged(lease, start + Duration::from_secs(seconds));
        assert_eq!(unchanged(&mut seen, &lease, 0), NONE);
        assert_eq!(unchanged(&mut seen, &lease, 19), Duration::from_secs(19));
        lease.metadata.resource_version = Some("2".to_owned());
        assert_eq!(unchanged(&mut seen, &lease, 25), NONE);
    }

    #[test]
    fn a_holder_stops_before_its_lease_runs_out() {
        assert!(RELIED_ON + super::super::PATIENCE < LASTS && RENEWED + super::super::PATIENCE < RELIED_ON);
        let taken = held(Some(lease("other", 0)), Move::TakeOver, "me");
        let spec = taken.spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.holder_identity.as_deref()), (Some(1), Some("me")));
    }

    #[tokio::test]
    async fn a_conflict_on_renewal_does_not_end_the_term_of_who_still_holds_the_lease() {
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&writes);
        let to = server(move |method, _| match method {
            "PUT" if counted.fetch_add(1, Ordering::SeqCst) == 0 => failure(409, "Conflict", "the object has been modified"),
            _ => (200, serde_json::to_value(held(None, Move::Make, "me")).unwrap()),
        });
        assert_eq!(turn(&to.await, &mut Seen::default()).await.unwrap(), Turn::Mine);
        assert_eq!(writes.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn who_loses_a_race_for_a_lease_reads_who_has_won_it() {
        let asked = Arc::new(AtomicUsize::new(0));
        let to = server(move |method, _| {
            let holder = if asked.fetch_add(1, Ordering::SeqCst) == 0 { "" } else { "other" };
            match method {
                "GET" => (200, serde_json::to_value(held(None, Move::Make, holder)).unwrap()),
                _ => failure(409, "Conflict", "the object has been modified"),
            }
        });
        assert_eq!(turn(&to.await, &mut Seen::default()).await.unwrap(), Turn::Other(None));
    }
}
