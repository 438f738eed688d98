//! What others have told: the reports of all nodes, for who asks this agent; and what the statuses say.

use super::{To, answered, now, read_report, report};
use crate::agent::Agent;
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
    /// The reports of all nodes; of this one, what is true now. Without an API server, or where it does not answer, of this one alone.
    pub async fn reports(&self, agent: &Agent) -> Reports {
        let mut reports = Reports::default();
        if let (Some(namespace), Some(reader)) = (&agent.state.config.status_namespace, agent.reader.get()) {
            let to = To { client: reader.client(), namespace: namespace.clone(), node: agent.state.config.node.clone() };
            let mut listed = self.0.lock().await;
            if listed.as_ref().is_none_or(|(at, _)| at.elapsed() > SERVES) {
                match list(&to).await {
                    Ok(found) => *listed = Some((Instant::now(), found)),
                    Err(error) => tracing::warn!(%error, "the reports of other nodes cannot be listed"),
                }
            }
            for (node, report, until) in listed.iter().flat_map(|(_, found)| found) {
                reports.take(node, report.clone(), *until);
            }
        }
        add_own(&agent.state, &mut reports);
        reports
    }
}

/// Adds what is true of this node now.
fn add_own(state: &State, reports: &mut Reports) {
    if let Some(own) = report::own(state) {
        reports.take(&state.config.node, own, now() + i64::from(super::OLD));
    }
    let index = state.index();
    let own = [state.config.node.clone()];
    // Of the other nodes, only where they can be asked.
    let silent = if state.config.status_namespace.is_some() { index.node_names().cloned().collect() } else { own.to_vec() };
    reports.compare(index.versions(), &silent, now());
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
