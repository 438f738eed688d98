//! `Call::Policies` and `Call::Identities`: what the agent makes of each object.

use crate::explain::tier_name;
use crate::state::State;
use crate::status::refused;
use palisade_policy::model::{Mode, PolicyName};
use palisade_policy::selected::{matched, naming, selected};
use palisade_protocol::{IdentityStatus, PolicyStatus, Refused};
use std::collections::{BTreeMap, BTreeSet};

/// The kind of an identity, as its refusal names it.
const IDENTITY: &str = "Identity";

/// The policies that are known, or those of one name.
pub fn policies(state: &State, object: Option<&str>) -> Vec<PolicyStatus> {
    let (model, published) = (state.index().model(), state.published());
    let refused = refused(state, &published);
    let status = |name: &PolicyName| {
        let policy = model.policies.get(name)?;
        let pods = selected(&model, name);
        let here = pods.iter().filter(|pod| published.compiled.subjects.contains_key(**pod)).count();
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
            enforced: published.reconciled && (published.held.contains_key(name) || published.model.policies.get(name) == Some(policy)),
            refused: reason(&refused, &name.kind.to_string(), &name.object.to_string()),
            selected: if object.is_some() { pods.iter().map(ToString::to_string).collect() } else { Vec::new() },
        })
    };
    let wanted = |name: &&PolicyName| object.is_none_or(|object| name.object.to_string() == object);
    model.policies.keys().filter(wanted).filter_map(status).collect()
}

/// The identities that are known, or the one of a name; those that were refused and have no version to use among them.
pub fn identities(state: &State, object: Option<&str>) -> Vec<IdentityStatus> {
    let model = state.index().model();
    let refused = refused(state, &state.published());
    let refused_names = refused.iter().filter(|refused| refused.kind == IDENTITY).map(|refused| refused.object.as_str());
    let names: BTreeSet<&str> = model.identities.keys().map(String::as_str).chain(refused_names).collect();
    let owners: BTreeMap<_, _> =
        model.pods.iter().flat_map(|(name, pod)| pod.addresses.iter().map(move |address| (*address, name))).collect();
    let status = |name: &str| {
        let matched = matched(&model, name);
        let others = matched.addresses.iter().filter(|address| !owners.contains_key(address)).map(ToString::to_string);
        let shown = matched.pods.iter().map(ToString::to_string).chain(others);
        IdentityStatus {
            name: name.to_owned(),
            pods: matched.pods.len(),
            addresses: matched.addresses.len(),
            policies: naming(&model, name).into_iter().map(ToString::to_string).collect(),
            refused: reason(&refused, IDENTITY, name),
            matched: if object.is_some() { shown.collect() } else { Vec::new() },
        }
    };
    names.into_iter().filter(|name| object.is_none_or(|object| *name == object)).map(status).collect()
}

fn reason(refused: &[Refused], kind: &str, object: &str) -> Option<String> {
    refused.iter().find(|refused| refused.kind == kind && refused.object == object).map(|refused| refused.reason.clone())
}
