//! `Call::Policies` and `Call::Identities`: what the agent makes of each object.

use crate::explain::tier_name;
use crate::state::State;
use crate::status::refused;
use palisade_k8s::index::{Kind, Version};
use palisade_k8s::report::Reports;
use palisade_k8s::status::Counts;
use palisade_k8s::sum::{Key, Snapshot};
use palisade_policy::model::{Mode, ObjectName, PolicyName};
use palisade_policy::selected::{Matched, matched_each, naming, peers, selected, unknown_identities};
use palisade_protocol::{Condition, IdentityStatus, PeersMatched, PolicyStatus, Refused, Standing};
use std::collections::{BTreeMap, BTreeSet};

/// The kind of an identity, as its refusal names it.
const IDENTITY: &str = "Identity";

/// The policies that are known, or those of one name. `reports` are those of the nodes.
pub fn policies(state: &State, reports: &Reports, object: Option<&str>) -> Vec<PolicyStatus> {
    let (model, snapshot) = {
        let index = state.index();
        (index.model(), Snapshot::of(&index))
    };
    let published = state.published();
    let refused = refused(state, &published);
    let versions = versions(&snapshot, object);
    let status = |name: &PolicyName| {
        let policy = model.policies.get(name)?;
        let pods = selected(&model, name);
        let here = pods.iter().filter(|pod| published.compiled.subjects.contains_key(**pod)).count();
        let held = published.held.contains_key(name);
        let current = published.reconciled && !held && published.model.policies.get(name) == Some(policy);
        let counts = Counts { pods: pods.len(), addresses: 0 };
        // Without an API server nobody counts generations: what this node has tells.
        let nobody = Reports::default();
        let reports = if current || held || state.config.status_namespace.is_some() { reports } else { &nobody };
        Some(PolicyStatus {
            kind: name.kind.to_string(),
            object: name.object.to_string(),
            tier: tier_name(policy.tier),
            mode: match policy.mode {
                Mode::Enforce => "Enforce",
                Mode::Audit => "Audit",
            }
            .to_owned(),
            ingress_rules: policy.ingress.as_ref().map(Vec::len),
            egress_rules: policy.egress.as_ref().map(Vec::len),
            pods: pods.len(),
            pods_here: here,
            enforced: current && policy.mode == Mode::Enforce,
            unknown_identities: unknown_identities(&model, policy).into_iter().map(str::to_owned).collect(),
            refused: reason(&refused, &name.kind.to_string(), &name.object.to_string()),
            standing: standing(&snapshot, &versions, &(name.kind.into(), name.object.clone()), counts, reports),
            selected: if object.is_some() { pods.iter().map(ToString::to_string).collect() } else { Vec::new() },
            peers: object.map(|_| {
                let matched = peers(&model, name);
                PeersMatched { pods: matched.pods.len(), addresses: matched.addresses.len() }
            }),
        })
    };
    let wanted = |name: &&PolicyName| !name.is_stand_in() && object.is_none_or(|object| name.object.to_string() == object);
    model.policies.keys().filter(wanted).filter_map(status).collect()
}

/// The identities that are known, or the one of a name; those that were refused and have no version to use among them.
pub fn identities(state: &State, reports: &Reports, object: Option<&str>) -> Vec<IdentityStatus> {
    let (model, snapshot) = {
        let index = state.index();
        (index.model(), Snapshot::of(&index))
    };
    let refused = refused(state, &state.published());
    let refused_names = refused.iter().filter(|refused| refused.kind == IDENTITY).map(|refused| refused.object.as_str());
    let names: BTreeSet<&str> = model.identities.keys().map(String::as_str).chain(refused_names).collect();
    let owners: BTreeMap<_, _> =
        model.pods.iter().flat_map(|(name, pod)| pod.addresses.iter().map(move |address| (*address, name))).collect();
    let every = matched_each(&model);
    let versions = versions(&snapshot, object);
    let nothing = Matched::default();
    let status = |name: &str| {
        let matched = every.get(name).unwrap_or(&nothing);
        let others = matched.addresses.iter().filter(|address| !owners.contains_key(address)).map(ToString::to_string);
        let shown = matched.pods.iter().map(ToString::to_string).chain(others);
        let counts = Counts { pods: matched.pods.len(), addresses: matched.addresses.len() };
        IdentityStatus {
            name: name.to_owned(),
            pods: matched.pods.len(),
            addresses: matched.addresses.len(),
            policies: naming(&model, name).into_iter().map(ToString::to_string).collect(),
            refused: reason(&refused, IDENTITY, name),
            standing: standing(&snapshot, &versions, &(Kind::Identity, ObjectName::cluster(name)), counts, reports),
            matched: if object.is_some() { shown.collect() } else { Vec::new() },
        }
    };
    names.into_iter().filter(|name| object.is_none_or(|object| *name == object)).map(status).collect()
}

/// The versions of the objects that are asked for.
fn versions<'s>(snapshot: &'s Snapshot, object: Option<&str>) -> BTreeMap<Key, &'s Version> {
    let wanted = snapshot.objects().filter(|(_, name, _)| object.is_none_or(|object| name.to_string() == object));
    wanted.map(|(kind, name, version)| ((kind, name.clone()), version)).collect()
}

/// What the nodes make of an object.
fn standing(snapshot: &Snapshot, versions: &BTreeMap<Key, &Version>, key: &Key, counts: Counts, reports: &Reports) -> Standing {
    let Some(version) = versions.get(key) else { return Standing::default() };
    let standing = snapshot.standing(key, version, counts, reports, false);
    Standing {
        generation: standing.generation,
        nodes_enforcing: standing.enforcement.enforcing,
        nodes: standing.enforcement.nodes,
        conditions: standing
            .conditions
            .into_iter()
            .map(|condition| Condition {
                of: condition.of.name().to_owned(),
                status: condition.status().to_owned(),
                reason: condition.reason.name().to_owned(),
                message: condition.message,
            })
            .collect(),
    }
}

/// Why an object is not in force as it is written, where it is not.
pub fn reason(refused: &[Refused], kind: &str, object: &str) -> Option<String> {
    refused.iter().find(|refused| refused.kind == kind && refused.object == object).map(|refused| refused.reason.clone())
}
