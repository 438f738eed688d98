//! The agent's state, as `palisade status`, `palisade endpoint list` and a lab show it.

use crate::kernel::KernelHandle;
use crate::services::host_port_problems;
use crate::state::{Published, State};
use palisade_datapath_core::abi::{ABI_VERSION, Direction};
use palisade_protocol::{Counts, EndpointStatus, OutcomeCount, Refused, Status};
use palisade_service::Trouble;
use palisade_service::model::Owner;
use std::collections::BTreeSet;

/// The agent's state.
pub async fn status(state: &State, kernel: &KernelHandle) -> Status {
    let counters = kernel.run(|kernel| kernel.counters()).await;
    let published = state.published();
    let problems = state.not_ready();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: state.config.node.clone(),
        source: state.config.source.to_string(),
        ready: problems.is_empty(),
        problems,
        refuses_pods: state.refuses_pods(),
        attach: published.attach.map(|kind| kind.to_string()).unwrap_or_default(),
        node_services: state.node_services(),
        abi: ABI_VERSION,
        epoch: published.epoch,
        counts: counts(&published),
        outcomes: counters
            .into_iter()
            .map(|(outcome, counter)| OutcomeCount {
                outcome: outcome.name().to_owned(),
                passes: outcome.passes(),
                packets: counter.packets,
                bytes: counter.bytes,
            })
            .collect(),
        refused: refused(state, &published),
        routing: crate::route::status(state),
        uplinks: state.uplinks(),
        uplinks_missing: state.uplinks_missing(),
    }
}

/// The objects that are not in force as they are written: what cannot be used, and what does not fit.
pub fn refused(state: &State, published: &Published) -> Vec<Refused> {
    let unusable = state.index().refused().into_iter().map(|refused| Refused {
        kind: refused.kind.to_string(),
        object: refused.object,
        reason: format!("{} ({})", refused.error, refused.instead),
    });
    let held = published.held.iter().map(|(name, reason)| Refused {
        kind: name.kind.to_string(),
        object: name.object.to_string(),
        reason: reason.clone(),
    });
    unusable.chain(held).chain(without_room(published)).collect()
}

/// The services, and pods by their host ports, that do not fit into the maps.
pub fn without_room(published: &Published) -> Vec<Refused> {
    let lacking = published.served.problems().filter(|problem| matches!(problem.what, Trouble::NoRoom { .. }));
    let refused = lacking.map(|problem| {
        let (kind, object) = kind_and_name(&problem.owner);
        Refused { kind: kind.to_owned(), object, reason: problem.what.to_string() }
    });
    refused.collect()
}

/// The object that somebody is who has frontends.
pub fn kind_and_name(owner: &Owner) -> (&'static str, String) {
    match owner {
        Owner::Service(name) => ("Service", name.to_string()),
        Owner::Pod(interface) => ("Pod", interface.pod.to_string()),
    }
}

/// Numbers of things that the agent holds.
pub fn counts(published: &Published) -> Counts {
    let used = published.compiled.used();
    let without_zero = |numbers: &BTreeSet<u32>| numbers.iter().filter(|number| **number != 0).count();
    Counts {
        endpoints: published.endpoints.len(),
        pods: published.model.pods.len(),
        namespaces: published.model.namespaces.len(),
        policies: published.model.policies.len(),
        identities: without_zero(&used.identities),
        subjects: without_zero(&used.subjects),
        policy_rows: published.compiled.policy.len(),
        port_rows: published.compiled.ports.len(),
        services: published.services.services.len(),
        frontends: published.served.frontends.len(),
        backends: published.served.backends.len(),
    }
}

/// The endpoints of this node.
pub fn endpoints(state: &State) -> Vec<EndpointStatus> {
    let published = state.published();
    let isolated_by = |subject: u32, direction: Direction| -> Vec<String> {
        let rules = published.numbers.subject(subject);
        rules.map(|rules| rules.direction(direction).isolated_by.iter().map(ToString::to_string).collect()).unwrap_or_default()
    };
    let endpoints = published.endpoints.values();
    endpoints
        .map(|endpoint| EndpointStatus {
            spec: endpoint.spec.clone(),
            subject: endpoint.subject,
            ingress_isolated_by: isolated_by(endpoint.subject, Direction::Ingress),
            egress_isolated_by: isolated_by(endpoint.subject, Direction::Egress),
            problems: host_port_problems(state, &published, &endpoint.spec),
        })
        .collect()
}
