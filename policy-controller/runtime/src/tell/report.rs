//! This node's report.

use super::{Complaint, HEARTBEAT, OLD, REPORT_ANNOTATION, REPORT_LABEL, To, answered, between, hash, pause};
use crate::metrics::Told;
use crate::problem::Part;
use crate::state::State;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use palisade_k8s::report::Report;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::Instant;

/// Who the API server notes as the writer.
const WRITER: &str = "palisade-node";

/// Keeps this node's report as it is in the kernel, for ever. It is written when it says something new, and as a sign of life.
pub async fn follow(state: &State, to: &To) -> Infallible {
    let mut publications = state.publications();
    let mut complaint = Complaint::default();
    let (mut written, mut beat): (Option<Report>, _) = (None, Instant::now());
    let mut owner = None;
    loop {
        publications.borrow_and_update();
        let pause = pause(state.nodes_known());
        let told = own(state);
        let due = told.is_some() && (told != written || beat.elapsed() > HEARTBEAT);
        if !due {
            let _ = tokio::time::timeout(between(pause / 2, pause), publications.changed()).await;
            continue;
        }
        // All nodes hear of a change at the same time.
        tokio::time::sleep(between(Duration::ZERO, pause)).await;
        let Some(report) = own(state) else { continue };
        if beat.elapsed() > HEARTBEAT {
            owner = None;
        }
        match write(to, &report, &mut owner).await {
            Ok(()) => {
                state.metrics.told(Told::Report);
                complaint.clear();
                (written, beat) = (Some(report), Instant::now());
                tokio::time::sleep(pause / 2).await;
            }
            Err(error) => {
                state.metrics.not_told(Told::Report);
                complaint.make("this node cannot report what it enforces", error.to_string());
                tokio::time::sleep(between(pause, 2 * pause)).await;
            }
        }
    }
}

/// What this node enforces; `None` until the objects that are known have been put into the kernel once.
pub fn own(state: &State) -> Option<Report> {
    let published = state.published();
    let problem = state.problems.of(Part::Datapath).or_else(|| state.problems.of(Part::Reconcile));
    published.reconciled.then(|| Report::new(published.digests.clone(), &published.held, problem.as_deref()))
}

async fn write(to: &To, report: &Report, owner: &mut Option<OwnerReference>) -> Result<(), super::Failed> {
    // The report goes with its node. Another node of the name may have come meanwhile: it is asked with each sign of life.
    if owner.is_none() {
        let node = answered(Api::<Node>::all(to.client.clone()).get_metadata(&to.node)).await?;
        *owner = node.metadata.uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: to.node.clone(),
            uid,
            ..OwnerReference::default()
        });
    }
    let (label, value) = REPORT_LABEL;
    let text = serde_json::to_string(report).map_err(|error| super::Failed::Refused(kube::Error::SerdeError(error)))?;
    let name = name(&to.node);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some([(label.to_owned(), value.to_owned())].into()),
            annotations: Some([(REPORT_ANNOTATION.to_owned(), text)].into()),
            owner_references: owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(to.node.clone()),
            lease_duration_seconds: Some(OLD),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    answered(to.leases().patch(&name, &PatchParams::apply(WRITER).force(), &Patch::Apply(lease))).await.map(drop)
}

/// The name of a node's report.
fn name(node: &str) -> String {
    let name = format!("palisade-node-{node}");
    if name.len() <= 253 {
        return name;
    }
    // A node's name may be as long as any; its report is told by what the Lease says, not by its name.
    format!("{}-{:016x}", name[..200].trim_end_matches(['.', '-']), hash(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_report_is_one_that_the_api_server_takes() {
        assert_eq!(name("worker-1"), "palisade-node-worker-1");
        let long = |last: char| format!("{}{last}", "a.".repeat(126));
        assert!(name(&long('b')).len() <= 253 && name(&long('b')) != name(&long('c')), "{}", name(&long('b')));
    }
}
