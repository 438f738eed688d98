//! Service to its frontends, and to what its endpoints are derived from.

use super::names::is_dns_name;
use super::{Readable, labels, port_name, port_number, protocol, reachable};
use crate::field::FieldPath;
use crate::problem::{FieldError, NameRule, Problem, Refusal};
use k8s_openapi::api::core::v1::{Service as ApiService, ServicePort as ApiPort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use palisade_identity::Labels;
use palisade_service::model::{Service, ServiceKind, ServicePort, TrafficPolicy};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The labels, whatever their values, by which a service says that another proxy than the cluster's serves it.
const OTHER_PROXY_LABELS: [&str; 2] = ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"];
/// Seconds for which a client stays with its backend, where the service does not say.
const AFFINITY_SECONDS: i32 = 10_800;
/// The most of them.
const MOST_AFFINITY_SECONDS: i32 = 86_400;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where a port of a service leads to in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The same port of every pod.
    Number(u16),
    /// The port of that name, whatever its number is in a pod.
    Name(String),
}

/// What is kept of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceParts {
    /// What the model holds of it.
    pub service: Service,
    /// The labels that its pods have. Empty: somebody else tells its endpoints.
    pub selector: Labels,
    /// Where each of the service's ports leads to, in their order.
    pub targets: Vec<Target>,
    /// The families of its cluster IPs, the first one first; none where it can have no endpoints.
    pub families: Vec<Family>,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// A `type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// Whether a service says by a label that it is not the cluster's own proxy that serves it.
pub fn is_served_by_others(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| OTHER_PROXY_LABELS.iter().any(|label| labels.contains_key(*label)))
}

/// A service: its addresses, its ports and what endpoints it wants. Of one that is headless or of the type `ExternalName` there is nothing
/// to reach, and nothing of the kind is kept.
///
/// # Errors
/// A field that cannot be read, or that the API server would not take. In its place stands the rest: the ports and addresses that can be
/// read, and the default for a choice that cannot.
pub fn service(object: &ApiService) -> Result<ServiceParts, Refusal<ServiceParts>> {
    let mut readable = Readable::default();
    let default = ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let type_ = readable.take(type_of(spec)).unwrap_or(Type::ClusterIp);
    let kind = kind_of(spec, type_, &mut readable);
    let addressed = kind == ServiceKind::Addressed;
    let with_nodes = matches!(type_, Type::NodePort | Type::LoadBalancer);
    let cluster_ips = if addressed { cluster_ips(spec, &mut readable) } else { Vec::new() };
    let external = external(object, spec, type_, &mut readable);
    let (ports, targets) = ports(spec, with_nodes, &mut readable);
    if addressed && spec.ports.as_ref().is_none_or(Vec::is_empty) {
        readable.refuse(FieldPath::of("spec.ports"), Problem::Missing);
    }
    let families = readable.take(families(spec, &cluster_ips)).unwrap_or_else(|| vec![Family::V4]);
    let internal_policy = traffic_policy(spec.internal_traffic_policy.as_deref(), "internalTrafficPolicy", &mut readable);
    let mut external_policy = traffic_policy(spec.external_traffic_policy.as_deref(), "externalTrafficPolicy", &mut readable);
    let reached_from_outside = with_nodes || spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty());
    if written(spec.external_traffic_policy.as_ref()).is_some() && !reached_from_outside {
        readable.refuse(at("externalTrafficPolicy"), Problem::OnlyWith("type: NodePort or LoadBalancer, or externalIPs"));
        external_policy = TrafficPolicy::Cluster;
    }
    let local_balancer = type_ == Type::LoadBalancer && external_policy == TrafficPolicy::Local;
    let service = Service {
        uid: object.metadata.uid.clone().filter(|uid| !uid.is_empty()),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        kind,
        cluster_ips,
        external: if addressed { external } else { BTreeSet::new() },
        ports,
        internal_policy,
        external_policy,
        affinity: affinity(spec, &mut readable),
        health_check_node_port: readable.take(health_check(spec, local_balancer)).flatten().filter(|_| addressed),
    };
    let selector = readable.take(labels::labels(spec.selector.as_ref(), &FieldPath::of("spec.selector"))).unwrap_or_default();
    let parts = match kind {
        ServiceKind::ExternalName => ServiceParts { service, selector: Labels::new(), targets, families: Vec::new() },
        ServiceKind::Addressed | ServiceKind::Headless => ServiceParts { service, selector, targets, families },
    };
    readable.finish(parts)
}

/// A field of the specification.
fn at(name: &str) -> FieldPath {
    FieldPath::of("spec").key(name)
}

/// An empty text is the same as none.
fn written(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

fn type_of(spec: &ServiceSpec) -> Result<Type, FieldError> {
    match written(spec.type_.as_ref()) {
        None | Some("ClusterIP") => Ok(Type::ClusterIp),
        Some("NodePort") => Ok(Type::NodePort),
        Some("LoadBalancer") => Ok(Type::LoadBalancer),
        Some("ExternalName") => Ok(Type::ExternalName),
        Some(other) => {
            let known = "ClusterIP, NodePort, LoadBalancer and ExternalName";
            Err(FieldError::new(at("type"), Problem::UnknownChoice(other.to_owned(), known)))
        }
    }
}

fn kind_of(spec: &ServiceSpec, type_: Type, readable: &mut Readable) -> ServiceKind {
    let plural = spec.cluster_ips.as_ref().and_then(|addresses| addresses.first());
    if type_ == Type::ExternalName {
        match written(spec.external_name.as_ref()) {
            None => readable.refuse(at("externalName"), Problem::Missing),
            // The root may be written out.
            Some(name) if !is_dns_name(name.strip_suffix('.').unwrap_or(name)) => {
                readable.refuse(at("externalName"), Problem::InvalidName(name.to_owned(), NameRule::DnsName));
            }
            Some(_) => {}
        }
        return ServiceKind::ExternalName;
    }
    if written(spec.cluster_ip.as_ref()).or(written(plural)) != Some("None") {
        return ServiceKind::Addressed;
    }
    if type_ != Type::ClusterIp {
        readable.refuse(at("type"), Problem::OnlyWith("an address, and clusterIP is None"));
    }
    ServiceKind::Headless
}

/// The cluster IPs, at most one per family.
fn cluster_ips(spec: &ServiceSpec, readable: &mut Readable) -> Vec<IpAddr> {
    let plural = spec.cluster_ips.iter().flatten().enumerate().map(|(index, text)| (at("clusterIPs").index(index), text.as_str()));
    let mut listed: Vec<(FieldPath, &str)> = plural.filter(|(_, text)| !text.is_empty()).collect();
    match (written(spec.cluster_ip.as_ref()), listed.first()) {
        (Some(first), Some((field, text))) if first != *text => {
            readable.refuse(field.clone(), Problem::Differs((*text).to_owned(), "spec.clusterIP"));
        }
        (Some(first), None) => listed.push((at("clusterIP"), first)),
        _ => {}
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (field, text) in listed {
        let Some(address) = readable.take(reachable(text, || field.clone())) else { continue };
        if addresses.iter().any(|known| Family::of(*known) == Family::of(address)) {
            readable.refuse(field, Problem::Repeated(format!("an {} address", Family::of(address).name())));
        } else {
            addresses.push(address);
        }
    }
    addresses
}

/// `externalIPs`, and what a load balancer has given. With the mode `Proxy` packets come to the nodes' own addresses, and whoever sends to the
/// balancer's must pass by it.
fn external(object: &ApiService, spec: &ServiceSpec, type_: Type, readable: &mut Readable) -> BTreeSet<IpAddr> {
    let mut external = BTreeSet::new();
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        external.extend(readable.take(reachable(text, || at("externalIPs").index(index))));
    }
    if type_ != Type::LoadBalancer {
        return external;
    }
    if spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty()) {
        readable.refuse(at("loadBalancerSourceRanges"), Problem::SourceRanges);
        return external;
    }
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    for (index, ingress) in balancer.iter().flat_map(|balancer| balancer.ingress.iter().flatten()).enumerate() {
        let field = |name: &str| FieldPath::of("status.loadBalancer.ingress").index(index).key(name);
        let Some(text) = written(ingress.ip.as_ref()) else { continue };
        match written(ingress.ip_mode.as_ref()) {
            None | Some("VIP") => external.extend(readable.take(reachable(text, || field("ip")))),
            Some("Proxy") => {}
            Some(other) => readable.refuse(field("ipMode"), Problem::UnknownChoice(other.to_owned(), "VIP and Proxy")),
        }
    }
    external
}

/// The ports that can be read, and where each leads to.
fn ports(spec: &ServiceSpec, with_nodes: bool, readable: &mut Readable) -> (Vec<ServicePort>, Vec<Target>) {
    let written = spec.ports.as_deref().unwrap_or_default();
    let (mut ports, mut targets): (Vec<ServicePort>, _) = (Vec::new(), Vec::new());
    for (index, one) in written.iter().enumerate() {
        let field = at("ports").index(index);
        let Some((mut port, target)) = readable.take(port(one, written.len() > 1, &field)) else { continue };
        if ports.iter().any(|known| known.name == port.name) {
            readable.refuse(field.key("name"), Problem::Repeated(format!("the name {:?}", port.name)));
            continue;
        }
        if ports.iter().any(|known| (known.protocol, known.port) == (port.protocol, port.port)) {
            readable.refuse(field.key("port"), Problem::Repeated(format!("{}/{}", port.port, port.protocol)));
            continue;
        }
        if let Some(number) = port.node_port {
            let known = |known: &ServicePort| (known.protocol, known.node_port) == (port.protocol, Some(number));
            if !with_nodes {
                readable.refuse(field.key("nodePort"), Problem::OnlyWith("type: NodePort or LoadBalancer"));
                port.node_port = None;
            } else if ports.iter().any(known) {
                readable.refuse(field.key("nodePort"), Problem::Repeated(format!("{number}/{}", port.protocol)));
                port.node_port = None;
            }
        }
        ports.push(port);
        targets.push(target);
    }
    (ports, targets)
}

fn port(port: &ApiPort, of_several: bool, field: &FieldPath) -> Result<(ServicePort, Target), FieldError> {
    let name = written(port.name.as_ref()).unwrap_or_default();
    if name.is_empty() && of_several {
        return Err(FieldError::new(field.key("name"), Problem::Missing));
    }
    if !name.is_empty() && !super::names::is_dns_label(name) {
        return Err(FieldError::new(field.key("name"), Problem::InvalidName(name.to_owned(), NameRule::DnsLabel)));
    }
    let number = port_number(port.port, || field.key("port"))?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => Target::Number(number),
        Some(IntOrString::String(name)) if name.is_empty() => Target::Number(number),
        Some(IntOrString::Int(target)) => Target::Number(port_number(*target, || field.key("targetPort"))?),
        Some(IntOrString::String(name)) => Target::Name(port_name(name, || field.key("targetPort"))?),
    };
    let node_port = port.node_port.filter(|number| *number != 0);
    let port = ServicePort {
        name: name.to_owned(),
        protocol: protocol(written(port.protocol.as_ref()), || field.key("protocol"))?,
        port: number,
        node_port: node_port.map(|number| port_number(number, || field.key("nodePort"))).transpose()?,
    };
    Ok((port, target))
}

/// The families that the service has or is to get addresses of.
fn families(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> Result<Vec<Family>, FieldError> {
    let mut listed = Vec::new();
    for (index, name) in spec.ip_families.iter().flatten().enumerate() {
        let fail = |problem| Err(FieldError::new(at("ipFamilies").index(index), problem));
        match [Family::V4, Family::V6].into_iter().find(|family| family.name() == name) {
            Some(family) if listed.contains(&family) => return fail(Problem::Repeated(name.clone())),
            Some(family) => listed.push(family),
            None => return fail(Problem::UnknownChoice(name.clone(), "IPv4 and IPv6")),
        }
    }
    let others = cluster_ips.iter().find(|address| !listed.is_empty() && !listed.contains(&Family::of(**address)));
    if let Some(other) = others {
        return Err(FieldError::new(at("ipFamilies"), Problem::OtherFamily(*other, "ipFamilies")));
    }
    if listed.is_empty() {
        listed.extend(cluster_ips.iter().map(|address| Family::of(*address)));
    }
    if listed.is_empty() {
        listed.push(Family::V4);
    }
    match written(spec.ip_family_policy.as_ref()) {
        None => {}
        Some("SingleStack") if listed.len() > 1 => {
            return Err(FieldError::new(at("ipFamilyPolicy"), Problem::OnlyWith("one family of addresses")));
        }
        Some("SingleStack") => {}
        Some("PreferDualStack" | "RequireDualStack") => {
            if let [only] = listed[..] {
                listed.push(only.other());
            }
        }
        Some(other) => {
            let known = "SingleStack, PreferDualStack and RequireDualStack";
            return Err(FieldError::new(at("ipFamilyPolicy"), Problem::UnknownChoice(other.to_owned(), known)));
        }
    }
    Ok(listed)
}

fn traffic_policy(name: Option<&str>, field: &str, readable: &mut Readable) -> TrafficPolicy {
    match name.filter(|name| !name.is_empty()) {
        None | Some("Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            readable.refuse(at(field), Problem::UnknownChoice(other.to_owned(), "Cluster and Local"));
            TrafficPolicy::Cluster
        }
    }
}

/// Seconds for which a client stays with its backend; `None`: for no time.
fn affinity(spec: &ServiceSpec, readable: &mut Readable) -> Option<u32> {
    match written(spec.session_affinity.as_ref()) {
        None | Some("None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            readable.refuse(at("sessionAffinity"), Problem::UnknownChoice(other.to_owned(), "None and ClientIP"));
            return None;
        }
    }
    let configured = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = configured.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    let bounded = Some(seconds).filter(|seconds| (1..=MOST_AFFINITY_SECONDS).contains(seconds));
    if bounded.is_none() {
        let field = at("sessionAffinityConfig").key("clientIP").key("timeoutSeconds");
        readable.refuse(field, Problem::InvalidAffinityTime(seconds));
    }
    u32::try_from(bounded.unwrap_or(AFFINITY_SECONDS)).ok()
}

fn health_check(spec: &ServiceSpec, taken: bool) -> Result<Option<u16>, FieldError> {
    let field = || at("healthCheckNodePort");
    match spec.health_check_node_port.filter(|number| *number != 0) {
        None => Ok(None),
        Some(_) if !taken => Err(FieldError::new(field(), Problem::OnlyWith("type: LoadBalancer and externalTrafficPolicy: Local"))),
        Some(number) => port_number(number, field).map(Some),
    }
}
