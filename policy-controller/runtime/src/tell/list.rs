//! What others have told: the reports of all nodes, for who asks this agent; and what the statuses say.

use super::{To, answered, now, read_report, report};
use crate::agent::Agent;
use crate::config::Source;
use crate::state::State;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Resource};
use palisade_k8s::api::{ClusterNetworkPolicy, Identity, IdentityPolicy};
use palisade_k8s::index::{Indexed, Kind};
use palisade_k8s::report::{Report, Reports};
use palisade_k8s::sum::{Key, Told};
use palisade_policy::model::ObjectName;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// For how long a list of reports serves.
const SERVES: Duration = Duration::from_secs(3);
/// How many objects are listed at a time.
const PAGE: u32 = 500;

/// The reports of the other nodes, listed when somebody asks.
#[derive(Debug, Default)]
pub struct Listed(Mutex<Option<(Instant, Vec<NodeReport>)>>);

/// The report of a node, and when it gets old, in seconds since the Unix epoch.
type NodeReport = (String, Report, i64);

impl Listed {
    /// The reports of all nodes; of this one, what is true now. Without an API server of this one alone. Where other nodes have not been
    /// heard of, or the API server does not answer, it is in doubt what all of them enforce.
    pub async fn reports(&self, agent: &Agent) -> Reports {
        let mut reports = Reports::default();
        let mut away = None;
        if let (Some(namespace), Some(reader)) = (&agent.state.config.status_namespace, agent.reader.get()) {
            let to = To { client: reader.client(), namespace: namespace.clone(), node: agent.state.config.node.clone() };
            let mut listed = self.0.lock().await;
            if listed.as_ref().is_none_or(|(at, _)| at.elapsed() > SERVES) {
                match list(&to).await {
                    Ok(found) => *listed = Some((Instant::now(), found)),
                    Err(error) => {
                        tracing::warn!(%error, "the reports of other nodes cannot be listed");
                        away = Some(format!("the reports of other nodes cannot be listed: {error}"));
                    }
                }
            }
            for (node, report, until) in listed.iter().flat_map(|(_, found)| found) {
                reports.take(node, report.clone(), *until);
            }
        }
        finish(&agent.state, &mut reports, away);
        reports
    }
}

/// Adds what is true of this node now, and what is not known of others; `away` says why they could not be asked.
fn finish(state: &State, reports: &mut Reports, away: Option<String>) {
    if let Some(own) = report::own(state) {
        reports.take(&state.config.node, own, now() + i64::from(super::OLD));
    }
    let index = state.index();
    let nodes: Vec<String> = match state.config.source {
        Source::Kubernetes { .. } => index.node_names().cloned().collect(),
        Source::Directory(_) => vec![state.config.node.clone()],
    };
    reports.compare(index.versions(), &nodes, now());
    let silent = || (!reports.silent().is_empty()).then(|| "what the others enforce is not known".to_owned());
    if let Some(doubt) = away.or_else(silent) {
        reports.doubt(doubt);
    }
}

async fn list(to: &To) -> Result<Vec<NodeReport>, super::Failed> {
    let (label, value) = super::REPORT_LABEL;
    let parameters = ListParams::default().labels(&format!("{label}={value}"));
    let leases = answered(to.leases().list(&parameters)).await?;
    Ok(leases.iter().filter_map(read_report).collect())
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

/// What the statuses of all objects say.
pub async fn told(to: &To) -> Result<Vec<(Key, Told)>, super::Failed> {
    let mut told = Vec::new();
    told_of::<Identity>(to, &mut told).await?;
    told_of::<IdentityPolicy>(to, &mut told).await?;
    told_of::<ClusterNetworkPolicy>(to, &mut told).await?;
    Ok(told)
}

async fn told_of<K: Indexed + Resource<DynamicType = ()>>(to: &To, told: &mut Vec<(Key, Told)>) -> Result<(), super::Failed> {
    let kind: Kind = <K as Indexed>::KIND;
    let api = Api::<DynamicObject>::all_with(to.client.clone(), &ApiResource::erase::<K>(&()));
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = match answered(api.list(&parameters)).await {
            Ok(page) => page,
            // The API server does not know the kind: there are none.
            Err(error) if error.code() == Some(404) => return Ok(()),
            Err(error) => return Err(error),
        };
        for object in &page.items {
            let status: Status = object.data.get("status").and_then(|status| Status::deserialize(status).ok()).unwrap_or_default();
            let metadata = &object.metadata;
            let name = ObjectName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
            told.extend(Told::read(metadata.uid.clone(), &status.conditions).map(|told| ((kind, name), told)));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AgentConfig;
    use crate::state::Published;
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use palisade_k8s::status::Reason;
    use palisade_k8s::sum::Snapshot;
    use palisade_policy::model::Node;

    /// The reason and the message of the condition Enforced of a policy that this node enforces, among these nodes, of which those of
    /// `reporting` have reported the same.
    fn enforced(source: Source, nodes: &[&str], reporting: &[&str], away: Option<&str>) -> (&'static str, Reason, String) {
        let state = State::new(AgentConfig::new("here", source));
        let mut policy = NetworkPolicy::default();
        policy.metadata.name = Some("p".to_owned());
        policy.metadata.namespace = Some("shop".to_owned());
        policy.metadata.generation = Some(1);
        state.change(|index| {
            index.set_nodes(nodes.iter().map(|node| ((*node).to_owned(), Node::default())).collect());
            index.upsert(&policy)
        });
        let digests = state.index().versions().digests();
        state.publish(Published { reconciled: true, digests: digests.clone(), ..Published::default() });
        let mut reports = Reports::default();
        for node in reporting {
            reports.take(node, Report::new(digests.clone(), [], None), i64::MAX);
        }
        finish(&state, &mut reports, away.map(str::to_owned));
        let index = state.index();
        let key = (Kind::NetworkPolicy, ObjectName::new("shop", "p"));
        let version = index.versions().of(key.0, &key.1).unwrap();
        let [_, enforced] = Snapshot::of(&index).standing(&key, version, Default::default(), &reports, false).conditions;
        (enforced.status(), enforced.reason, enforced.message)
    }

    #[test]
    fn what_other_nodes_enforce_is_unknown_where_they_are_silent_or_nobody_can_be_asked() {
        let kubernetes = || Source::Kubernetes { server: None };
        let all = enforced(kubernetes(), &["here", "there"], &["there"], None);
        assert_eq!(all, ("True", Reason::AllNodes, "2 of 2 nodes enforce generation 1; 0 pods selected".to_owned()));
        let silent = enforced(kubernetes(), &["here", "there"], &[], None);
        let text = "1 of 1 node enforces generation 1; 0 pods selected; what the others enforce is not known; no report from: there";
        assert_eq!(silent, ("Unknown", Reason::Unknown, text.to_owned()));
        // What was listed before may be old.
        let away = enforced(kubernetes(), &["here", "there"], &["there"], Some("no answer"));
        assert_eq!(away, ("Unknown", Reason::Unknown, "2 of 2 nodes enforce generation 1; 0 pods selected; no answer".to_owned()));
        let alone = enforced(Source::Directory("/nowhere".into()), &["here"], &[], None);
        assert_eq!(alone.0, "True");
    }
}
