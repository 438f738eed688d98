//! Identity (palisade.dev/v1alpha1) to the members of an identity of the model.

use super::all_known;
use super::labels::strict_selector;
use super::network_policy::{cidr, except};
use crate::api::{Identity, Network, PodSelection, ServiceAccountName};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem};
use k8s_openapi::Resource;
use palisade_identity::{LabelSelector, ServiceAccount};
use palisade_policy::model::{Entity, Peer, PodSet};
use std::collections::BTreeSet;

/// The members of an identity.
///
/// # Errors
/// Anything that the schema would refuse, or that this version does not know. Nothing can stand in its place: a rule that allows
/// matches nobody by a name that is not known, and a rule that denies matches everybody.
pub fn identity(identity: &Identity) -> Result<Vec<Peer>, FieldError> {
    let (spec, field) = (&identity.spec, FieldPath::of("spec"));
    let kind = Identity::KIND;
    all_known(&spec.unknown, kind, &field)?;
    let mut members = Vec::new();
    for (index, pods) in spec.pods.iter().flatten().enumerate() {
        members.push(Peer::Pods(pod_selection(pods, Some(LabelSelector::everything()), kind, &field.key("pods").index(index))?));
    }
    for (index, block) in spec.networks.iter().flatten().enumerate() {
        members.push(network(block, kind, &field.key("networks").index(index))?);
    }
    for (index, name) in spec.entities.iter().flatten().enumerate() {
        members.push(Peer::Entity(entity(name, || field.key("entities").index(index))?));
    }
    if members.is_empty() {
        return Err(FieldError::new(field, Problem::EmptyIdentity));
    }
    Ok(members)
}

/// Pods by namespace, labels and service account, in an object of `kind`. `otherwise` are the namespaces where none are named.
pub(super) fn pod_selection(
    selection: &PodSelection,
    otherwise: Option<LabelSelector>,
    kind: &str,
    field: &FieldPath,
) -> Result<PodSet, FieldError> {
    let PodSelection { namespaces, pods, service_accounts, unknown } = selection;
    all_known(unknown, kind, field)?;
    if namespaces.is_none() && pods.is_none() && service_accounts.is_none() {
        return Err(FieldError::new(field.clone(), Problem::EmptySelection));
    }
    let accounts = service_accounts.as_ref().map(|accounts| {
        let field = field.key("serviceAccounts");
        for (index, ServiceAccountName { unknown, .. }) in accounts.iter().enumerate() {
            all_known(unknown, kind, &field.index(index))?;
        }
        let accounts = accounts.iter().map(|account| (account.namespace.as_str(), account.name.as_str()));
        service_accounts_of(accounts, &field)
    });
    let accounts = accounts.transpose()?;
    let namespaces = match namespaces {
        Some(namespaces) => Some(strict_selector(namespaces, kind, &field.key("namespaces"))?),
        // A service account says its namespace itself.
        None if accounts.is_some() => Some(LabelSelector::everything()),
        None => otherwise,
    };
    let pods = pods.as_ref().map(|pods| strict_selector(pods, kind, &field.key("pods"))).transpose()?.unwrap_or_default();
    Ok(PodSet { namespaces, pods, accounts })
}

/// Service accounts by namespace and name; an empty list would match nobody, and is refused.
pub(super) fn service_accounts_of<'a>(
    accounts: impl Iterator<Item = (&'a str, &'a str)>,
    field: &FieldPath,
) -> Result<BTreeSet<ServiceAccount>, FieldError> {
    let mut set = BTreeSet::new();
    for (index, (namespace, name)) in accounts.enumerate() {
        for (part, key) in [(namespace, "namespace"), (name, "name")] {
            if part.is_empty() {
                return Err(FieldError::new(field.index(index).key(key), Problem::Missing));
            }
        }
        set.insert(ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() });
    }
    if set.is_empty() { Err(FieldError::new(field.clone(), Problem::EmptyList)) } else { Ok(set) }
}

/// A block without others, in an object of `kind`.
pub(super) fn network(network: &Network, kind: &str, field: &FieldPath) -> Result<Peer, FieldError> {
    all_known(&network.unknown, kind, field)?;
    let block = cidr(&network.cidr, || field.key("cidr"))?;
    let except = except(block, &network.cidr, network.except.iter().flatten(), &field.key("except"))?;
    Ok(Peer::Block { block, except })
}

pub(super) fn entity(name: &str, field: impl FnOnce() -> FieldPath) -> Result<Entity, FieldError> {
    match name {
        "Host" => Ok(Entity::Host),
        "Nodes" => Ok(Entity::Nodes),
        "World" => Ok(Entity::World),
        "ApiServer" => Ok(Entity::ApiServer),
        other => Err(FieldError::new(field(), Problem::UnknownEntity(other.to_owned()))),
    }
}
