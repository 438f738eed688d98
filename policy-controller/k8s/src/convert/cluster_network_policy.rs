//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) to a policy of the model.

use super::labels::strict_selector;
use super::network_policy::{cidr, mode_of};
use super::{all_known, port_name, port_number, port_range};
use crate::api::{
    ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, ClusterSubject, DestinationPort, NamespacedPod, StrictSelector,
    Unknown,
};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use k8s_openapi::Resource;
use palisade_identity::{LabelSelector, Protocol};
use palisade_policy::model::{Action, Peer, Peers, PodSet, Policy, Port, Ports, Rule, Tier};

/// What errors call the kind.
const KIND: &str = ClusterNetworkPolicy::KIND;

/// A policy.
///
/// # Errors
/// Anything that the schema would refuse, or that this version does not know. In its place stands what the API wants for a
/// field of a later version: a rule that accepts matches nothing; one that denies, passes, or does what is not known denies all.
/// Where tier, priority, mode or subject cannot be read, or something beside them and the rules is not known, no rule accepts, and one that
/// passes denies all; for every pod where it is the subject, and before all others where it is tier or priority.
pub fn cluster_network_policy(policy: &ClusterNetworkPolicy) -> Result<Policy, Refusal<Policy>> {
    let (spec, field) = (&policy.spec, FieldPath::of("spec"));
    // Of several that are not understood, one that denies is told of: it cuts off whom the policy selects.
    let (mut first, mut first_that_denies) = (None, None);
    let mut keep = |error: FieldError, denies: bool| {
        let kept = if denies { &mut first_that_denies } else { &mut first };
        kept.get_or_insert(error);
    };

    let priority = u16::try_from(spec.priority).ok().filter(|priority| *priority <= 1000);
    let priority = priority.ok_or_else(|| FieldError::new(field.key("priority"), Problem::InvalidPriority(spec.priority)));
    let tier = match spec.tier.as_str() {
        "Admin" => Ok(Tier::Admin as fn(u16) -> Tier),
        "Baseline" => Ok(Tier::Baseline as fn(u16) -> Tier),
        other => Err(FieldError::new(field.key("tier"), Problem::UnknownTier(other.to_owned()))),
    };
    let mode = mode_of(&policy.metadata);
    let subject = subject(&spec.subject, &field.key("subject"));
    let known = all_known(&spec.unknown, KIND, &field);
    // Who does not know when, for whom or whether rules hold lets none of them open anything.
    let readable = priority.is_ok() && tier.is_ok() && mode.is_ok() && subject.is_ok() && known.is_ok();
    let mut rules = |list: &Option<Vec<ClusterRule>>, name: &str, egress: bool| {
        let field = field.key(name);
        let list = list.as_ref().filter(|list| !list.is_empty())?;
        let mut rules = Vec::new();
        for (index, it) in list.iter().enumerate() {
            let (rule, error) = rule(it, egress, &field.index(index));
            if let Some(error) = error {
                keep(error, rule.action != Action::Allow);
            }
            match rule.action {
                // It stays, and matches nobody: reasons count the rules.
                Action::Allow if !readable => rules.push(Rule { peers: Peers::Of(Vec::new()), ..rule }),
                Action::Pass if !readable => rules.push(Rule { name: rule.name, ..Rule::deny_all() }),
                _ => rules.push(rule),
            }
        }
        Some(rules)
    };
    let ingress = rules(&spec.ingress, "ingress", false);
    let egress = rules(&spec.egress, "egress", true);
    let every_pod = PodSet { namespaces: Some(LabelSelector::everything()), ..PodSet::default() };
    let converted = Policy {
        tier: tier.clone().unwrap_or(Tier::Admin)(priority.clone().unwrap_or_default()),
        mode: mode.clone().unwrap_or_default(),
        subject: subject.clone().unwrap_or(every_pod),
        ingress,
        egress,
    };
    let of_policy = [priority.err(), tier.err(), mode.err(), subject.err(), known.err()].into_iter().flatten().next();
    match of_policy.or(first_that_denies).or(first) {
        None => Ok(converted),
        Some(error) => Err(Refusal { error, closed: Box::new(converted) }),
    }
}

fn subject(subject: &ClusterSubject, field: &FieldPath) -> Result<PodSet, FieldError> {
    forms_known(&subject.unknown, &["namespaces", "pods"], field)?;
    all_known(&subject.unknown, KIND, field)?;
    match (&subject.namespaces, &subject.pods) {
        (Some(namespaces), None) => of_namespaces(namespaces, &field.key("namespaces")),
        (None, Some(pods)) => of_pods(pods, &field.key("pods")),
        _ => Err(FieldError::new(field.clone(), Problem::NotOnePeer("namespaces and pods"))),
    }
}

fn of_namespaces(namespaces: &StrictSelector, field: &FieldPath) -> Result<PodSet, FieldError> {
    Ok(PodSet { namespaces: Some(strict_selector(namespaces, KIND, field)?), ..PodSet::default() })
}

fn of_pods(pods: &NamespacedPod, field: &FieldPath) -> Result<PodSet, FieldError> {
    all_known(&pods.unknown, KIND, field)?;
    let namespaces = Some(strict_selector(&pods.namespace_selector, KIND, &field.key("namespaceSelector"))?);
    Ok(PodSet { namespaces, pods: strict_selector(&pods.pod_selector, KIND, &field.key("podSelector"))?, accounts: None })
}

/// Of the fields that could not be read, those that this version knows by name.
fn forms_known(unknown: &Unknown, names: &[&str], field: &FieldPath) -> Result<(), FieldError> {
    match names.iter().find(|name| unknown.contains_key(**name)) {
        None => Ok(()),
        Some(name) => Err(FieldError::new(field.key(*name), Problem::UnknownForm)),
    }
}

/// A rule, closed where it is not understood; then with the reason.
fn rule(rule: &ClusterRule, egress: bool, field: &FieldPath) -> (Rule, Option<FieldError>) {
    let name = rule.name.clone().filter(|name| !name.is_empty());
    let action = match rule.action.as_str() {
        "Accept" => Ok(Action::Allow),
        "Deny" => Ok(Action::Deny),
        "Pass" => Ok(Action::Pass),
        other => Err(FieldError::new(field.key("action"), Problem::UnknownAction(other.to_owned(), "Accept, Deny and Pass"))),
    };
    let read = || {
        forms_known(&rule.unknown, &["name", "action", "from", "to", "protocols"], field)?;
        all_known(&rule.unknown, KIND, field)?;
        let (listed, key) = if egress { (&rule.to, "to") } else { (&rule.from, "from") };
        let field_of_peers = field.key(key);
        let listed = listed.as_ref().filter(|list| !list.is_empty());
        let listed = listed.ok_or_else(|| FieldError::new(field_of_peers.clone(), Problem::EmptyList))?;
        let by_address = listed.iter().any(|peer| peer.networks.is_some() || peer.nodes.is_some());
        let mut peers = Vec::new();
        for (index, it) in listed.iter().enumerate() {
            peers.extend(peer(it, egress, &field_of_peers.index(index))?);
        }
        let ports = match &rule.protocols {
            None => Ports::Any,
            Some(protocols) if protocols.is_empty() => return Err(FieldError::new(field.key("protocols"), Problem::EmptyList)),
            Some(protocols) => {
                let mut ports = Vec::new();
                for (index, it) in protocols.iter().enumerate() {
                    let field = field.key("protocols").index(index);
                    if by_address && it.destination_named_port.is_some() {
                        return Err(FieldError::new(field.key("destinationNamedPort"), Problem::NamedPortOfAddresses));
                    }
                    ports.extend(port(it, &field)?);
                }
                Ports::Of(ports)
            }
        };
        Ok((Peers::Of(peers), ports))
    };
    match (action, read()) {
        (Ok(action), Ok((peers, ports))) => (Rule { name, action, peers, ports }, None),
        (Ok(Action::Allow), Err(error)) => {
            (Rule { name, action: Action::Allow, peers: Peers::Of(Vec::new()), ports: Ports::Any }, Some(error))
        }
        (Ok(_), Err(error)) | (Err(error), _) => (Rule { name, action: Action::Deny, peers: Peers::Any, ports: Ports::Any }, Some(error)),
    }
}

fn peer(peer: &ClusterPeer, egress: bool, field: &FieldPath) -> Result<Vec<Peer>, FieldError> {
    let ClusterPeer { namespaces, pods, nodes, networks, domain_names, unknown } = peer;
    all_known(unknown, KIND, field)?;
    if domain_names.is_some() {
        return Err(FieldError::new(field.key("domainNames"), Problem::DomainNames));
    }
    if !egress && (nodes.is_some() || networks.is_some()) {
        return Err(FieldError::new(field.clone(), Problem::NotOnePeer("namespaces and pods")));
    }
    match (namespaces, pods, nodes, networks) {
        (Some(namespaces), None, None, None) => Ok(vec![Peer::Pods(of_namespaces(namespaces, &field.key("namespaces"))?)]),
        (None, Some(pods), None, None) => Ok(vec![Peer::Pods(of_pods(pods, &field.key("pods"))?)]),
        (None, None, Some(nodes), None) => Ok(vec![Peer::Nodes(strict_selector(nodes, KIND, &field.key("nodes"))?)]),
        (None, None, None, Some(networks)) if !networks.is_empty() => networks
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let block = cidr(text, || field.key("networks").index(index))?;
                Ok(Peer::Block { block, except: Vec::new() })
            })
            .collect(),
        _ => Err(FieldError::new(field.clone(), Problem::NotOnePeer("namespaces, pods, nodes and networks"))),
    }
}

fn port(protocol: &ClusterProtocol, field: &FieldPath) -> Result<Vec<Port>, FieldError> {
    let ClusterProtocol { tcp, udp, sctp, destination_named_port, unknown } = protocol;
    all_known(unknown, KIND, field)?;
    let by_number = |protocol, of: &DestinationPort, key: &str| {
        let field = field.key(key);
        all_known(&of.unknown, KIND, &field)?;
        let field = field.key("destinationPort");
        // The API wants one: every port of the protocol could be more than was meant.
        let port = of.destination_port.as_ref().ok_or_else(|| FieldError::new(field.clone(), Problem::Missing))?;
        all_known(&port.unknown, KIND, &field)?;
        match (port.number, &port.range) {
            (Some(number), None) => {
                let number = port_number(number, || field.key("number"))?;
                Ok(vec![Port::Range(protocol, number, number)])
            }
            (None, Some(range)) => {
                all_known(&range.unknown, KIND, &field.key("range"))?;
                let (start, end) = (|| field.key("range").key("start"), || field.key("range").key("end"));
                let ports = port_range(protocol, range.start, range.end, start, end)?;
                if range.start == range.end {
                    return Err(FieldError::new(end(), Problem::RangeOfOne(range.end)));
                }
                Ok(vec![ports])
            }
            _ => Err(FieldError::new(field, Problem::NotOnePeer("number and range"))),
        }
    };
    match (tcp, udp, sctp, destination_named_port) {
        (Some(port), None, None, None) => by_number(Protocol::Tcp, port, "tcp"),
        (None, Some(port), None, None) => by_number(Protocol::Udp, port, "udp"),
        (None, None, Some(port), None) => by_number(Protocol::Sctp, port, "sctp"),
        (None, None, None, Some(name)) => {
            let name = port_name(name, || field.key("destinationNamedPort"))?;
            Ok([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Port::Named(protocol, name.clone())).into())
        }
        _ => Err(FieldError::new(field.clone(), Problem::NotOnePeer("tcp, udp, sctp and destinationNamedPort"))),
    }
}
