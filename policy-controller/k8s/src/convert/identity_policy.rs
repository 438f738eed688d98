//! IdentityPolicy (palisade.dev/v1alpha1) to a policy of the model.

use super::identity::{entity, network, pod_selection, service_accounts_of};
use super::labels::strict_selector;
use super::network_policy::MODE_ANNOTATION;
use super::{all_known, port_name, port_number, port_range, protocol};
use crate::api::{IdentityPeer, IdentityPolicy, IdentityPort, IdentityRule, IdentitySubject};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use k8s_openapi::Resource;
use palisade_policy::model::{Action, Mode, Peer, Peers, PodSet, Policy, Port, Ports, Rule, Tier};

/// What errors call the kind.
const KIND: &str = IdentityPolicy::KIND;
/// The action of a rule that allows.
const ALLOW: &str = "Allow";

/// A policy.
///
/// # Errors
/// Anything that the schema would refuse, or that this version does not know. In its place stands a policy that
/// allows nothing: the pods that it selects are isolated in the directions that are there, and everything is denied to them in those in which a rule
/// denies; to all pods of the namespace where the subject cannot be read; in both directions where there is none but a field that is not
/// known. It stays in audit mode where that can be read.
pub fn identity_policy(policy: &IdentityPolicy) -> Result<Policy, Refusal<Policy>> {
    let (spec, field) = (&policy.spec, FieldPath::of("spec"));
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let no_direction = spec.ingress.is_none() && spec.egress.is_none();
    // What denies, or does what is not known, could have denied anything.
    let closed = |rules: &Option<Vec<IdentityRule>>| {
        let Some(rules) = rules else { return (no_direction && !spec.unknown.is_empty()).then(Vec::new) };
        Some(if rules.iter().any(|rule| rule.action != ALLOW) { vec![Rule::deny_all()] } else { Vec::new() })
    };
    let mode = mode(spec.mode.as_deref(), || field.key("mode"));
    let isolating = |subject| Policy {
        tier: Tier::Workload,
        mode: mode.clone().unwrap_or_default(),
        subject,
        ingress: closed(&spec.ingress),
        egress: closed(&spec.egress),
    };
    let subject = match subject(&spec.subject, namespace, &field.key("subject")) {
        Ok(subject) => subject,
        Err(error) => return Err(Refusal { error, closed: Box::new(isolating(PodSet::default())) }),
    };
    let read = || {
        all_known(&spec.unknown, KIND, &field)?;
        if policy.metadata.annotations.iter().flatten().any(|(key, _)| key == MODE_ANNOTATION) {
            return Err(FieldError::new(FieldPath::of("metadata.annotations").key(MODE_ANNOTATION), Problem::ModeByAnnotation));
        }
        let mode = mode.clone()?;
        if no_direction {
            return Err(FieldError::new(field.clone(), Problem::NoDirection));
        }
        let ingress = spec.ingress.as_ref().map(|list| rules(list, &field.key("ingress"))).transpose()?;
        let egress = spec.egress.as_ref().map(|list| rules(list, &field.key("egress"))).transpose()?;
        Ok(Policy { tier: Tier::Workload, mode, subject: subject.clone(), ingress, egress })
    };
    read().map_err(|error| Refusal { error, closed: Box::new(isolating(subject.clone())) })
}

/// `Enforce` or `Audit`; absent means Enforce.
pub(super) fn mode(name: Option<&str>, field: impl FnOnce() -> FieldPath) -> Result<Mode, FieldError> {
    match name {
        None | Some("Enforce") => Ok(Mode::Enforce),
        Some("Audit") => Ok(Mode::Audit),
        Some(other) => Err(FieldError::new(field(), Problem::UnknownMode(other.to_owned()))),
    }
}

fn subject(subject: &IdentitySubject, namespace: &str, field: &FieldPath) -> Result<PodSet, FieldError> {
    all_known(&subject.unknown, KIND, field)?;
    let pods = subject.pods.as_ref().map(|pods| strict_selector(pods, KIND, &field.key("pods"))).transpose()?.unwrap_or_default();
    let accounts = subject
        .service_accounts
        .as_ref()
        .map(|names| service_accounts_of(names.iter().map(|name| (namespace, name.as_str())), &field.key("serviceAccounts")));
    Ok(PodSet { namespaces: None, pods, accounts: accounts.transpose()? })
}

fn rules(list: &[IdentityRule], field: &FieldPath) -> Result<Vec<Rule>, FieldError> {
    list.iter().enumerate().map(|(index, it)| rule(it, &field.index(index))).collect()
}

fn rule(rule: &IdentityRule, field: &FieldPath) -> Result<Rule, FieldError> {
    all_known(&rule.unknown, KIND, field)?;
    let action = match rule.action.as_str() {
        ALLOW => Action::Allow,
        "Deny" => Action::Deny,
        other => return Err(FieldError::new(field.key("action"), Problem::UnknownAction(other.to_owned(), "Allow and Deny"))),
    };
    let peers = match &rule.peers {
        None => Peers::Any,
        Some(peers) => Peers::Of(each(peers, &field.key("peers"), peer)?),
    };
    let ports = match &rule.ports {
        None => Ports::Any,
        Some(ports) => Ports::Of(each(ports, &field.key("ports"), port)?),
    };
    Ok(Rule { name: rule.name.clone().filter(|name| !name.is_empty()), action, peers, ports })
}

/// The items of a list that is there: an empty one must never be taken for "all".
fn each<T, U>(list: &[T], field: &FieldPath, convert: impl Fn(&T, &FieldPath) -> Result<U, FieldError>) -> Result<Vec<U>, FieldError> {
    if list.is_empty() {
        return Err(FieldError::new(field.clone(), Problem::EmptyList));
    }
    list.iter().enumerate().map(|(index, it)| convert(it, &field.index(index))).collect()
}

fn peer(peer: &IdentityPeer, field: &FieldPath) -> Result<Peer, FieldError> {
    all_known(&peer.unknown, KIND, field)?;
    match (&peer.identity, &peer.pods, &peer.network, &peer.entity) {
        (Some(name), None, None, None) if !name.is_empty() => Ok(Peer::Identity(name.clone())),
        (None, Some(pods), None, None) => Ok(Peer::Pods(pod_selection(pods, None, KIND, &field.key("pods"))?)),
        (None, None, Some(block), None) => network(block, KIND, &field.key("network")),
        (None, None, None, Some(name)) => Ok(Peer::Entity(entity(name, || field.key("entity"))?)),
        _ => Err(FieldError::new(field.clone(), Problem::NotOnePeer("identity, pods, network and entity"))),
    }
}

fn port(port: &IdentityPort, field: &FieldPath) -> Result<Port, FieldError> {
    all_known(&port.unknown, KIND, field)?;
    let protocol = protocol(port.protocol.as_deref(), || field.key("protocol"))?;
    match (port.port, port.end_port, &port.name) {
        (None, None, None) => Ok(Port::All(protocol)),
        (None, None, Some(name)) => Ok(Port::Named(protocol, port_name(name, || field.key("name"))?)),
        (Some(number), None, None) => {
            let number = port_number(number, || field.key("port"))?;
            Ok(Port::Range(protocol, number, number))
        }
        (Some(first), Some(end), None) => port_range(protocol, first, end, || field.key("port"), || field.key("endPort")),
        (None, Some(_), _) => Err(FieldError::new(field.key("endPort"), Problem::EndWithoutFirst)),
        (Some(_), _, Some(_)) => Err(FieldError::new(field.key("name"), Problem::NumberAndName)),
    }
}
