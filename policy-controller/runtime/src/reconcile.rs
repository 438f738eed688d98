//! When something is written: after changes, again after failures, and the sweep.

use crate::event;
use crate::kernel::{KernelHandle, chain};
use crate::problem::Part;
use crate::state::State;
use palisade_loader::EventRing;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long a burst of changes may grow before it is put into the kernel.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// The first and the longest pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// After a failure a change is put into the kernel at once, but not sooner than this.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often what has expired is swept.
const SWEEP: Duration = Duration::from_secs(30);

/// A pause that doubles with each failure.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Before any failure.
    pub fn new() -> Self {
        Self { next: BACKOFF.0 }
    }

    /// The pause after one more failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(BACKOFF.1);
        pause
    }

    /// It worked again.
    pub fn reset(&mut self) {
        self.next = BACKOFF.0;
    }
}

/// Opens the datapath, again and again until it works; then keeps the kernel as the model says, reads events and
/// sweeps, for ever. Until it is open, what is pinned goes on enforcing.
pub async fn datapath(state: Arc<State>, kernel: KernelHandle) -> std::io::Result<Infallible> {
    let ring = open(&state, &kernel).await;
    tokio::select! {
        read = event::read(Arc::clone(&state), ring) => read,
        never = event::follow_observers(Arc::clone(&state), kernel.clone()) => Ok(never),
        never = reconcile(&state, &kernel) => Ok(never),
        never = sweep(&kernel) => Ok(never),
    }
}

async fn open(state: &State, kernel: &KernelHandle) -> EventRing {
    let mut backoff = Backoff::new();
    loop {
        match kernel.run(|kernel| kernel.open()).await {
            Ok(ring) => {
                state.problems.clear(Part::Datapath);
                return ring;
            }
            Err(error) => state.problems.set(Part::Datapath, chain(&error)),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// How often a change is looked for that policies which are held back may need.
const HELD: Duration = Duration::from_secs(30);

async fn reconcile(state: &State, kernel: &KernelHandle) -> Infallible {
    let mut changes = state.changes();
    let mut backoff = Backoff::new();
    loop {
        changes.borrow_and_update();
        // A view that is not whole is never put into the kernel: what is there stays in force.
        let synced = state.index().synced();
        let failed = if synced { kernel.run(|kernel| kernel.reconcile()).await.err() } else { None };
        match &failed {
            None => state.problems.clear(Part::Reconcile),
            Some(error) => state.problems.set(Part::Reconcile, format!("the last good state stays in force: {}", chain(error))),
        }
        // Whether or not: neither waits for the other.
        let unserved = if synced { kernel.run(|kernel| kernel.serve()).await.err() } else { None };
        match &unserved {
            None if synced => state.problems.clear(Part::Services),
            None => {}
            Some(error) => state.problems.set(Part::Services, format!("services have the backends that they had: {}", chain(error))),
        }
        match failed.or(unserved) {
            None => {
                backoff.reset();
                if state.published().held.is_empty() {
                    let _ = changes.changed().await;
                } else {
                    // What is held back may fit by now, though nothing that changed has freed a row.
                    let _ = tokio::time::timeout(HELD, changes.changed()).await;
                }
            }
            Some(_) => {
                let pause = backoff.pause();
                tokio::time::sleep(pause.min(AFTER_FAILURE)).await;
                let _ = tokio::time::timeout(pause.saturating_sub(AFTER_FAILURE), changes.changed()).await;
            }
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

async fn sweep(kernel: &KernelHandle) -> Infallible {
    loop {
        tokio::time::sleep(SWEEP).await;
        for error in kernel.run(|kernel| kernel.sweep()).await {
            tracing::warn!(error = chain(&error), "something could not be swept; it is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_start_anew_after_success() {
        let mut backoff = Backoff::new();
        let pauses: Vec<u64> = (0..7).map(|_| backoff.pause().as_millis() as u64).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.pause(), BACKOFF.0);
    }
}
