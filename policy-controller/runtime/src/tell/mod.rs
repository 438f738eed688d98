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

/// The same number for the same text, in every release (FNV-1a): names that the API server knows are made of it.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
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
    #[error("{}", refused(.0))]
    Refused(kube::Error),
    #[error("the API server does not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

fn refused(error: &kube::Error) -> String {
    let forbidden = matches!(error, kube::Error::Api(status) if status.code == 403);
    let hint =
        if forbidden { "; the agent's service account needs the permissions of the chart's Role and ClusterRole for status" } else { "" };
    format!("{error}{hint}")
}

impl Failed {
    /// The code of the answer, where there was one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Whether it is the API server that takes no writes now, and not this one write that it does not take.
    fn is_of_the_server(&self) -> bool {
        match self {
            Self::Refused(kube::Error::Api(status)) => status.code == 429 || status.code >= 500,
            Self::Refused(kube::Error::SerdeError(_) | kube::Error::BuildRequest(_)) => false,
            Self::Refused(_) | Self::Silent => true,
        }
    }

    /// Whether the object with the UID that was meant is gone: there is none of its name, or another one.
    fn is_about_another(&self) -> bool {
        // In these words the API server says it, with 409 or 422.
        let words = ["uid mismatch", "UID in precondition", "metadata.uid"];
        matches!(self.code(), Some(409 | 422)) && words.iter().any(|words| self.says(words))
    }

    /// Whether the answer has these words.
    fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.message.contains(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::Request;
    use axum::http::StatusCode;
    use serde_json::{Value, json};

    /// The way to an API server that answers a method and a path as `answer` does.
    pub(super) async fn server(answer: impl Fn(&str, &str) -> (u16, Value) + Clone + Send + Sync + 'static) -> To {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().fallback(move |request: Request| {
            let (code, body) = answer(request.method().as_str(), request.uri().path());
            std::future::ready((StatusCode::from_u16(code).unwrap(), body.to_string()))
        });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
        config.root_cert = Some(Vec::new());
        config.default_retry = false;
        To { client: Client::try_from(config).unwrap(), namespace: "system".to_owned(), node: "me".to_owned() }
    }

    /// The answer that a request failed.
    pub(super) fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
        (code, json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message }))
    }

    fn failed(code: u16, message: &str) -> Failed {
        Failed::Refused(kube::Error::Api(serde_json::from_value(failure(code, "", message).1).unwrap()))
    }

    #[test]
    fn an_answer_about_one_write_is_told_from_one_about_all() {
        for (code, of_the_server) in [(403, false), (404, false), (409, false), (422, false), (429, true), (500, true), (503, true)] {
            assert_eq!(failed(code, "").is_of_the_server(), of_the_server, "{code}");
        }
        assert!(Failed::Silent.is_of_the_server());
    }

    #[test]
    fn an_object_that_is_gone_is_told_from_other_conflicts() {
        let gone = "Operation cannot be fulfilled on identities.palisade.dev \"a\": uid mismatch: the provided object specified uid 1, and no existing object was found";
        assert!(failed(409, gone).is_about_another());
        assert!(failed(422, "Identity \"a\" is invalid: metadata.uid: Invalid value: \"1\": field is immutable").is_about_another());
        let changed = "Operation cannot be fulfilled on identities.palisade.dev \"fluid\": the object has been modified";
        assert!(!failed(409, changed).is_about_another());
        assert!(!failed(404, "identities.palisade.dev \"a\" not found").is_about_another());
    }

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
