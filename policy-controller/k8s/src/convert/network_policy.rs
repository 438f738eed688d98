//! NetworkPolicy (networking.k8s.io/v1) to a policy of the model.

use super::labels::selector;
use super::{mode, port_name, port_number, port_range, protocol};
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem, Refusal};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use palisade_identity::LabelSelector;
use palisade_policy::model::{Mode, Peer, Peers, PodSet, Policy, PolicyKind, Port, Ports, Rule, Tier};

/// The annotation that puts a NetworkPolicy or a ClusterNetworkPolicy in audit mode.
pub const MODE_ANNOTATION: &str = "palisade.dev/mode";

/// The directions that a policy isolates.
#[derive(Clone, Copy)]
struct Types {
    ingress: bool,
    egress: bool,
}

/// A policy, the defaults of the API server applied.
///
/// # Errors
/// Anything that the API server would refuse, or that this version does not know. In its place stands a policy
/// without rules: the pods that the policy selects are isolated in the directions that it names; where these cannot
/// be read, in both; where the selector cannot be read, all pods of the namespace are, in both.
pub fn network_policy(policy: &NetworkPolicy) -> Result<Policy, Refusal<Policy>> {
    let default = NetworkPolicySpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&default);
    let field = FieldPath::of("spec");
    let both = Types { ingress: true, egress: true };
    let mode = mode_of(&policy.metadata);
    let refuse = |error, subject, types| {
        let mode = mode_of(&policy.metadata).unwrap_or_default();
        Err(Refusal { error, closed: Box::new(Policy { mode, ..isolating(subject, types) }) })
    };

    let subject = match spec.pod_selector.as_ref().map(|pods| selector(pods, &field.key("podSelector"))).transpose() {
        Ok(subject) => subject.unwrap_or_default(),
        Err(error) => return refuse(error, LabelSelector::everything(), both),
    };
    let types = match types(spec, &field) {
        Ok(types) => types,
        Err(error) => return refuse(error, subject, both),
    };
    let mode = match mode {
        Ok(mode) => mode,
        Err(error) => return refuse(error, subject, types),
    };
    // Rules of a direction that the policy does not isolate mean nothing, but must be right all the same.
    match (ingress(spec, &field), egress(spec, &field)) {
        (Ok(ingress), Ok(egress)) => Ok(Policy {
            mode,
            ingress: types.ingress.then_some(ingress),
            egress: types.egress.then_some(egress),
            ..isolating(subject, types)
        }),
        (Err(error), _) | (_, Err(error)) => refuse(error, subject, types),
    }
}

/// What the annotation says.
pub(super) fn mode_of(metadata: &ObjectMeta) -> Result<Mode, FieldError> {
    let annotation = metadata.annotations.iter().flatten().find(|(key, _)| *key == MODE_ANNOTATION);
    mode(annotation.map(|(_, value)| value.as_str()), || FieldPath::of("metadata.annotations").key(MODE_ANNOTATION))
}

/// What stands for a policy of which its metadata alone can be read, and that has no last good version: it isolates its namespace. One of the
/// cluster says nothing: it would have to close the cluster.
pub fn unreadable_policy(kind: PolicyKind, metadata: &ObjectMeta) -> Policy {
    let isolates = kind != PolicyKind::ClusterNetworkPolicy;
    let closed = isolating(LabelSelector::everything(), Types { ingress: isolates, egress: isolates });
    // An IdentityPolicy says it in its spec.
    let mode = if kind == PolicyKind::NetworkPolicy { mode_of(metadata).unwrap_or_default() } else { Mode::Enforce };
    Policy { mode, tier: if isolates { Tier::Workload } else { Tier::Admin(0) }, ..closed }
}

/// A policy that isolates `subject` and allows nothing.
fn isolating(subject: LabelSelector, types: Types) -> Policy {
    Policy {
        tier: Tier::Workload,
        mode: Mode::Enforce,
        subject: PodSet { pods: subject, ..PodSet::default() },
        ingress: types.ingress.then(Vec::new),
        egress: types.egress.then(Vec::new),
    }
}

fn types(spec: &NetworkPolicySpec, field: &FieldPath) -> Result<Types, FieldError> {
    let named = spec.policy_types.as_deref().unwrap_or_default();
    if named.is_empty() {
        return Ok(Types { ingress: true, egress: spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) });
    }
    let mut types = Types { ingress: false, egress: false };
    for (index, name) in named.iter().enumerate() {
        match name.as_str() {
            "Ingress" => types.ingress = true,
            "Egress" => types.egress = true,
            other => return Err(FieldError::new(field.key("policyTypes").index(index), Problem::UnknownPolicyType(other.to_owned()))),
        }
    }
    Ok(types)
}

fn ingress(spec: &NetworkPolicySpec, field: &FieldPath) -> Result<Vec<Rule>, FieldError> {
    let field = field.key("ingress");
    let rules = spec.ingress.iter().flatten().enumerate();
    rules.map(|(index, it)| rule(it.from.as_deref(), "from", it.ports.as_deref(), &field.index(index))).collect()
}

fn egress(spec: &NetworkPolicySpec, field: &FieldPath) -> Result<Vec<Rule>, FieldError> {
    let field = field.key("egress");
    let rules = spec.egress.iter().flatten().enumerate();
    rules.map(|(index, it)| rule(it.to.as_deref(), "to", it.ports.as_deref(), &field.index(index))).collect()
}

fn rule(
    peers: Option<&[NetworkPolicyPeer]>,
    peers_name: &str,
    ports: Option<&[NetworkPolicyPort]>,
    field: &FieldPath,
) -> Result<Rule, FieldError> {
    let peers = match peers.unwrap_or_default() {
        [] => Peers::Any,
        peers => {
            let field = field.key(peers_name);
            Peers::Of(peers.iter().enumerate().map(|(index, it)| peer(it, &field.index(index))).collect::<Result<_, _>>()?)
        }
    };
    let ports = match ports.unwrap_or_default() {
        [] => Ports::Any,
        ports => {
            let field = field.key("ports");
            Ports::Of(ports.iter().enumerate().map(|(index, it)| port(it, &field.index(index))).collect::<Result<_, _>>()?)
        }
    };
    Ok(Rule::allow(peers, ports))
}

fn peer(peer: &NetworkPolicyPeer, field: &FieldPath) -> Result<Peer, FieldError> {
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        // A peer that came out empty matches nobody. Taken for "everybody" it would open the pod.
        (None, None, None) => Err(FieldError::new(field.clone(), Problem::EmptyPeer)),
        (Some(block), None, None) => block_peer(block, &field.key("ipBlock")),
        (Some(_), _, _) => Err(FieldError::new(field.clone(), Problem::BlockWithSelector)),
        (None, namespaces, pods) => Ok(Peer::Pods(PodSet {
            namespaces: namespaces.as_ref().map(|it| selector(it, &field.key("namespaceSelector"))).transpose()?,
            pods: pods.as_ref().map(|it| selector(it, &field.key("podSelector"))).transpose()?.unwrap_or_default(),
            accounts: None,
        })),
    }
}

fn block_peer(block: &IPBlock, field: &FieldPath) -> Result<Peer, FieldError> {
    let outer = cidr(&block.cidr, || field.key("cidr"))?;
    let except = except(outer, &block.cidr, block.except.iter().flatten(), &field.key("except"))?;
    Ok(Peer::Block { block: outer, except })
}

/// The blocks of `texts`, each a smaller part of `outer`, which was written as `written`.
pub(super) fn except<'a>(
    outer: IpNet,
    written: &str,
    texts: impl Iterator<Item = &'a String>,
    field: &FieldPath,
) -> Result<Vec<IpNet>, FieldError> {
    let inner = |(index, text): (usize, &String)| {
        let inner = cidr(text, || field.index(index))?;
        if !outer.contains(&inner) || inner.prefix_len() <= outer.prefix_len() {
            let problem = Problem::ExceptOutside { except: text.clone(), block: written.to_owned() };
            return Err(FieldError::new(field.index(index), problem));
        }
        Ok(inner)
    };
    texts.enumerate().map(inner).collect()
}

/// A block, host bits masked. A block of IPv4 addresses in IPv6 clothes is refused: no packet ever carries one.
pub(super) fn cidr(text: &str, field: impl FnOnce() -> FieldPath) -> Result<IpNet, FieldError> {
    match super::block(text) {
        Some(IpNet::V6(block)) if block.addr().to_ipv4_mapped().is_some() => {}
        Some(block) => return Ok(block.trunc()),
        None => {}
    }
    Err(FieldError::new(field(), Problem::InvalidCidr(text.to_owned())))
}

fn port(port: &NetworkPolicyPort, field: &FieldPath) -> Result<Port, FieldError> {
    let protocol = protocol(port.protocol.as_deref(), || field.key("protocol"))?;
    let end_field = || field.key("endPort");
    match (&port.port, port.end_port) {
        (None, None) => Ok(Port::All(protocol)),
        (Some(IntOrString::String(name)), None) => Ok(Port::Named(protocol, port_name(name, || field.key("port"))?)),
        (None | Some(IntOrString::String(_)), Some(_)) => Err(FieldError::new(end_field(), Problem::EndWithoutFirst)),
        (Some(IntOrString::Int(number)), None) => {
            let number = port_number(*number, || field.key("port"))?;
            Ok(Port::Range(protocol, number, number))
        }
        (Some(IntOrString::Int(first)), Some(end)) => port_range(protocol, *first, end, || field.key("port"), end_field),
    }
}
