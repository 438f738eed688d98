//! What is told to the API server: each agent's report of what its node enforces, and, by one of them, the status of policies and
//! identities and the events about them.
//!
//! A report is a Lease, because each node has one and renews it; what it says is an annotation.

mod election;
mod lead;
mod list;
mod report;
mod write;

pub use list::Listed;

use crate::agent::Agent;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use palisade_k8s::report::Report;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// The annotation of a Lease that holds a node's report.
const REPORT_ANNOTATION: &str = "palisade.dev/report";
/// The label, key and value, of the Leases that are reports.
const REPORT_LABEL: (&str, &str) = ("palisade.dev/lease", "report");
/// How often a node renews a report that says nothing new.
const HEARTBEAT: Duration = Duration::from_secs(120);
/// After which time without a renewal a report is old, in seconds.
const OLD: i32 = 300;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells the API server, for ever. Where it may not, or cannot, packets fare no different: it is logged, and tried again.
pub async fn follow(agent: Arc<Agent>, namespace: String) -> Infallible {
    let client = loop {
        match agent.reader.get() {
            Some(reader) => break reader.client(),
            None => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    let to = To { client, namespace, node: agent.state.config.node.clone() };
    let (term, terms) = tokio::sync::watch::channel(None);
    tokio::select! {
        never = report::follow(&agent.state, &to) => never,
        never = election::follow(&agent.state, &to, term) => never,
        never = lead::follow(&agent.state, &to, terms) => never,
    }
}

/// To whom is told, and by whom.
#[derive(Clone)]
struct To {
    client: Client,
    namespace: String,
    node: String,
}

impl To {
    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// The least pause between two reports of a node, among so many nodes: all together they write no more than 50 times a second.
fn pause(nodes: usize) -> Duration {
    Duration::from_millis(20 * nodes as u64).max(Duration::from_secs(2))
}

/// A time between `from` and `to`, so that the agents do not do the same at the same time.
fn between(from: Duration, to: Duration) -> Duration {
    from + (to.saturating_sub(from)).mul_f64(fastrand::f64())
}

/// The node that a Lease is the report of, what it says, and when it gets old.
fn read_report(lease: &Lease) -> Option<(String, Report, i64)> {
    let text = lease.metadata.annotations.as_ref()?.get(REPORT_ANNOTATION)?;
    let spec = lease.spec.as_ref()?;
    let node = spec.holder_identity.clone()?;
    let report = serde_json::from_str(text).inspect_err(|error| tracing::debug!(node, %error, "a report cannot be read")).ok()?;
    let renewed = spec.renew_time.as_ref()?.0.as_second();
    Some((node, report, renewed + i64::from(spec.lease_duration_seconds.unwrap_or(OLD))))
}

/// Now, in seconds since the Unix epoch.
fn now() -> i64 {
    Timestamp::now().as_second()
}

/// What is logged when something cannot be told: once for each new reason.
#[derive(Debug, Default)]
struct Complaint(Option<String>);

impl Complaint {
    fn make(&mut self, what: &str, reason: String) {
        if self.0.as_ref() != Some(&reason) {
            tracing::warn!(reason, "{what}");
            self.0 = Some(reason);
        }
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}

/// Waits for an answer of the API server, but not for ever.
async fn answered<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(Failed::Refused),
        Err(_) => Err(Failed::Silent),
    }
}

/// Why something could not be told.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}; the agent's service account needs the permissions of the chart's Role and ClusterRole for status")]
    Refused(kube::Error),
    #[error("the API server does not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

impl Failed {
    /// The code of the answer, where there was one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_together_report_at_most_fifty_times_a_second() {
        assert_eq!(pause(2), Duration::from_secs(2));
        assert_eq!(pause(1000), Duration::from_secs(20));
        for _ in 0..100 {
            let pause = between(Duration::from_secs(1), Duration::from_secs(2));
            assert!(Duration::from_secs(1) <= pause && pause <= Duration::from_secs(2));
        }
    }
}
