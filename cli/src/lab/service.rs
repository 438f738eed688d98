//! Probes of services: who has to answer, by the rules, and what of that packets contradict.

use super::flow::{Member, Party, Probe, Protocol, family_of, side_passes};
use super::probe::{Seen, Unanswered};
use super::witness::Arrival;
use palisade_k8s::index::Index;
use palisade_policy::model::ObjectName;
use palisade_protocol::{self as protocol, Explained, FrontendView, ServiceFrontend, ServiceStatus, SideVerdict, VerdictName};
use palisade_service::Frontend;
use palisade_service::model::{ServiceKind, Services};
use palisade_service::oracle::{self, Answer};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Flows that are tried for each backend of a service that has several: each flow goes to one of them.
const FLOWS_PER_BACKEND: usize = 4;
/// The most flows that are tried of one probe.
const MOST_FLOWS: usize = 16;

/// What becomes of flows to a service, by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Each of its backends is reached.
    Reached,
    /// None of its backends is.
    Denied,
    /// Some of its backends are, and it depends on the flow which one it goes to.
    Mixed,
    /// No endpoint stands behind it, which the client is told at once.
    Refused,
    /// It has endpoints, none of them on this node, and wants no others.
    Dropped,
}

/// Somebody behind a service, and what the rules say of flows there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Who has this address, where somebody of the lab has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub party: Option<Party>,
    /// Whether somebody listens there.
    pub listens: bool,
    /// The opener's side.
    pub egress: SideVerdict,
    /// The responder's side.
    pub ingress: SideVerdict,
    /// Whether no route leads there, or back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unrouted: bool,
    /// How many of the flows it got.
    pub answered: usize,
}

impl Backend {
    /// Whether flows to it are answered, by the rules.
    fn answers(&self) -> bool {
        self.listens && self.passes() && !self.unrouted
    }

    fn passes(&self) -> bool {
        side_passes(&self.egress) && side_passes(&self.ingress)
    }
}

/// What the rules say of flows to a service, and who answered them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// Its cluster IP.
    pub address: IpAddr,
    /// What becomes of the flows, by the rules.
    #[serde(rename = "verdict")]
    pub fate: Fate,
    /// Those to whom a flow may go.
    pub backends: Vec<Backend>,
    /// The address of the opener, which backends see.
    #[serde(skip)]
    pub client: IpAddr,
}

/// A probe of a service, and what the oracle says of where its flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceProbe {
    /// The probe.
    pub probe: Probe,
    /// Where the service is reached.
    pub target: IpAddr,
    /// Address of the opener.
    pub client: IpAddr,
    /// What becomes of a flow.
    pub answer: Answer,
}

impl ServiceProbe {
    /// Those to whom a flow may go.
    pub fn targets(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let targets = match &self.answer {
            Answer::OneOf(targets) => Some(targets),
            Answer::NoService | Answer::Refused | Answer::Dropped => None,
        };
        targets.into_iter().flatten().copied()
    }

    /// With what the policies say of flows to each of the targets, in their order.
    pub fn behind(&self, members: &[Member], explained: impl IntoIterator<Item = Explained>) -> Behind {
        let from = members.iter().find(|member| member.party == self.probe.from);
        let backends: Vec<Backend> = self
            .targets()
            .zip(explained)
            .map(|((address, port), Explained { egress, ingress, .. })| {
                let member = members.iter().find(|member| member.addresses.contains(&address));
                let listens = member.is_some_and(|member| member.ports.contains(&(self.probe.protocol, port)));
                let party = member.map(|member| member.party.clone());
                let unrouted = from.zip(member).is_some_and(|(from, to)| from.is_apart_from(to));
                Backend { address: SocketAddr::new(address, port), party, listens, egress, ingress, unrouted, answered: 0 }
            })
            .collect();
        let answering = backends.iter().filter(|backend| backend.answers()).count();
        let fate = match &self.answer {
            Answer::Dropped => Fate::Dropped,
            Answer::NoService | Answer::Refused => Fate::Refused,
            Answer::OneOf(_) if answering == backends.len() => Fate::Reached,
            Answer::OneOf(_) if answering == 0 => Fate::Denied,
            Answer::OneOf(_) => Fate::Mixed,
        };
        Behind { address: self.target, fate, backends, client: self.client }
    }
}

impl Behind {
    /// How many flows show what becomes of them.
    pub fn flows(&self) -> usize {
        match self.backends.len() {
            0 | 1 => 1,
            several => (several * FLOWS_PER_BACKEND).min(MOST_FLOWS),
        }
    }

    /// Both sides of the flow, in one: of the first backend that does not answer, else of the first.
    pub fn sides(&self) -> (SideVerdict, SideVerdict) {
        let telling = self.backends.iter().find(|backend| !backend.answers()).or(self.backends.first());
        let nothing = || SideVerdict { verdict: VerdictName::None, reason: String::new() };
        telling.map_or_else(|| (nothing(), nothing()), |backend| (backend.egress.clone(), backend.ingress.clone()))
    }

    /// Why flows are not answered that no policy denies.
    pub fn why(&self) -> Option<&'static str> {
        match self.fate {
            Fate::Refused => Some("has no endpoints"),
            Fate::Dropped => Some("has no endpoints on this node, and its internalTrafficPolicy is Local"),
            Fate::Reached | Fate::Denied | Fate::Mixed => self
                .backends
                .iter()
                .any(|backend| backend.passes() && !backend.listens)
                .then_some("has a backend at which nobody of the lab listens"),
        }
    }

    /// Counts who got a flow. What packets contradict of the rules, where they do.
    pub fn judge(&mut self, probe: &Probe, seen: &Seen, arrival: Option<&Arrival>) -> Option<String> {
        if let Some(Arrival { party, port, peer }) = arrival {
            let got = |backend: &&mut Backend| backend.party.as_ref() == Some(party) && backend.address.port() == *port;
            let Some(backend) = self.backends.iter_mut().find(got) else {
                return Some(format!("came to {party} at port {port}, which is none of its backends"));
            };
            backend.answered += 1;
            if !backend.passes() {
                return Some(format!("came to {party}, although policy denies it"));
            }
            if backend.unrouted {
                return Some(format!("came to {party}, although no route leads there"));
            }
            // A pod that is behind its own service sees the service there.
            let as_it_should = *peer == if *party == probe.from { self.address } else { self.client };
            if !as_it_should {
                return Some(format!("came to {party} from {peer}, which is not the address of {}", probe.from));
            }
        }
        match (self.fate, seen) {
            (_, Ok(())) if arrival.is_none() => Some("answered by nobody of the lab".to_owned()),
            (Fate::Reached, Err(how)) => Some(format!("{how}, although each of its backends is allowed")),
            // Nobody is told of SCTP's refusals by every kernel.
            (Fate::Refused, Err(how)) if *how != Unanswered::Refused && probe.protocol != Protocol::Sctp => {
                Some(format!("{how}, although a service without endpoints refuses at once"))
            }
            (Fate::Dropped, Err(Unanswered::Refused)) => Some("refused at once, although it has endpoints elsewhere".to_owned()),
            _ => None,
        }
    }
}

/// What the files say of services, with the addresses that the lab's pods have and the cluster IPs that the agent tells.
pub fn services(files: &Index, members: &[Member], told: &[ServiceStatus]) -> Services {
    let mut index = files.clone();
    for member in members {
        if let Party::Pod(name) = &member.party {
            index.set_local_addresses(name, None, member.addresses.clone());
        }
    }
    index.derive_endpoints();
    let mut services = index.services();
    let told: BTreeMap<ObjectName, &ServiceStatus> = told.iter().map(|status| (name_of(status), status)).collect();
    let given: Vec<_> = services.services.iter().map(|(name, service)| (name.clone(), Arc::clone(service))).collect();
    for (name, service) in given {
        let mut service = Arc::unwrap_or_clone(service);
        service.cluster_ips = told.get(&name).map(|status| cluster_ips(status)).unwrap_or_default();
        services.services.insert(name, Arc::new(service));
    }
    services
}

/// Probes of every service by its cluster IPs, from each of these members that is a pod or a node. They are of the node that `services`
/// are asked for on.
pub fn probes<'m>(services: &Services, members: impl Iterator<Item = &'m Member> + Clone) -> Vec<ServiceProbe> {
    let mut probes = Vec::new();
    for (name, frontend) in frontends(services) {
        let answer = oracle::backends(services, &frontend);
        let family = family_of(frontend.address);
        let asks = |member: &&Member| match member.party {
            Party::Pod(_) => true,
            // The node's associations are led by a table that is written a moment after the services are: there is nothing to wait for.
            Party::Node(_) => frontend.protocol != palisade_identity::Protocol::Sctp,
            Party::Service(_) | Party::Outside => false,
        };
        for member in members.clone().filter(asks) {
            let Some(client) = member.address(family) else { continue };
            let (from, to) = (member.party.clone(), Party::Service(name.clone()));
            let probe = Probe { from, to, family, protocol: frontend.protocol.into(), port: frontend.port };
            probes.push(ServiceProbe { probe, target: frontend.address, client, answer: answer.clone() });
        }
    }
    probes
}

/// Where services are reached by their cluster IPs.
fn frontends(services: &Services) -> Vec<(ObjectName, Frontend)> {
    let mut frontends = Vec::new();
    for (name, service) in services.services.iter().filter(|(_, service)| service.kind == ServiceKind::Addressed) {
        for &address in &service.cluster_ips {
            let at = service.ports.iter().map(|port| Frontend { address, protocol: port.protocol, port: port.port });
            frontends.extend(at.map(|frontend| (name.clone(), frontend)));
        }
    }
    frontends
}

fn name_of(status: &ServiceStatus) -> ObjectName {
    ObjectName::new(&status.namespace, &status.name)
}

/// The cluster IPs at which the kernel serves a service.
fn cluster_ips(status: &ServiceStatus) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for frontend in status.frontends.iter().filter(|frontend| frontend.view == FrontendView::Cluster) {
        if !addresses.contains(&frontend.address) {
            addresses.push(frontend.address);
        }
    }
    addresses
}

/// The backends that take new flows.
fn chosen(frontend: &ServiceFrontend) -> BTreeSet<(IpAddr, u16)> {
    let chosen = frontend.backends.iter().filter(|backend| backend.chosen);
    chosen.map(|backend| (backend.address, backend.port)).collect()
}

/// What the kernel does not serve yet as the files say; `None` where it does all of it.
pub fn missing(services: &Services, told: &[ServiceStatus]) -> Option<String> {
    let addressed = services.services.iter().filter(|(_, service)| service.kind == ServiceKind::Addressed);
    let names: BTreeSet<ObjectName> = addressed.map(|(name, _)| name.clone()).collect();
    let told: Vec<&ServiceStatus> = told.iter().filter(|status| status.kind == protocol::ServiceKind::Addressed).collect();
    let told_names: BTreeSet<ObjectName> = told.iter().map(|status| name_of(status)).collect();
    if let Some(name) = names.symmetric_difference(&told_names).next() {
        return Some(format!("service {name}"));
    }
    let mut served: BTreeMap<(IpAddr, u16, &str), &ServiceFrontend> = BTreeMap::new();
    for frontend in told.iter().flat_map(|status| &status.frontends) {
        served.insert((frontend.address, frontend.port, frontend.protocol.as_str()), frontend);
    }
    for (name, frontend) in frontends(services) {
        let expected = match oracle::backends(services, &frontend) {
            Answer::OneOf(targets) => targets,
            Answer::NoService | Answer::Refused | Answer::Dropped => BTreeSet::new(),
        };
        let protocol = frontend.protocol.to_string();
        let found = served.get(&(frontend.address, frontend.port, protocol.as_str()));
        let backends = found.map(|found| chosen(found));
        if backends != Some(expected) {
            return Some(format!("service {name} at {frontend}"));
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::flow::tests::party;
    use super::super::flow::{Asked, ProbeResult};
    use super::*;
    use palisade_identity::Protocol as IdentityProtocol;
    use palisade_protocol::Family;
    use palisade_protocol::{FrontendState, ServiceBackend};
    use palisade_service::model::{Endpoint, Service, ServicePort, Slice, SlicePort, TrafficPolicy};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn member(name: &str, address: &str) -> Member {
        Member { party: party(name), addresses: vec![ip(address)], ports: [(Protocol::Tcp, 8080)].into(), confined: None }
    }

    fn members() -> Vec<Member> {
        vec![member("a/x", "10.0.0.1"), member("a/y", "10.0.0.2"), member("a/z", "10.0.0.3")]
    }

    fn side(verdict: VerdictName) -> SideVerdict {
        let reason = if verdict == VerdictName::Allow { String::new() } else { "why".to_owned() };
        SideVerdict { verdict, reason }
    }

    /// What is asked of a probe from `a/x`, where a flow goes to one of these addresses, each with whether its ingress allows.
    fn asked(targets: &[(&str, bool)]) -> Asked {
        let probe = Probe { from: party("a/x"), to: party("svc/a/s"), family: Family::Ipv4, protocol: Protocol::Tcp, port: 80 };
        let set: BTreeSet<(IpAddr, u16)> = targets.iter().map(|(address, _)| (ip(address), 8080)).collect();
        let answer = if set.is_empty() { Answer::Refused } else { Answer::OneOf(set) };
        let of_service = ServiceProbe { probe: probe.clone(), target: ip("10.96.0.1"), client: ip("10.0.0.1"), answer };
        let ingress = |allows: bool| side(if allows { VerdictName::Allow } else { VerdictName::Deny });
        let explained = targets.iter().map(|(_, allows)| Explained::new(side(VerdictName::Allow), ingress(*allows)));
        let behind = of_service.behind(&members(), explained);
        let (egress, ingress) = behind.sides();
        Asked { probe, target: of_service.target, egress, ingress, service: Some(behind), unrouted: false }
    }

    /// A result of TCP 80 of a service, with nothing seen that the rules do not say.
    pub(crate) fn result(targets: &[(&str, bool)]) -> ProbeResult {
        let unanswered = if targets.is_empty() { Unanswered::Refused } else { Unanswered::Silence(std::time::Duration::from_secs(1)) };
        let flow = |(address, allows): &(&str, bool)| {
            let to = members().into_iter().find(|member| member.addresses.contains(&ip(address))).unwrap().party;
            if *allows { (Ok(()), Some(came(&to, "10.0.0.1"))) } else { (Err(unanswered.clone()), None) }
        };
        let mut flows: Vec<_> = targets.iter().map(flow).collect();
        if flows.is_empty() {
            flows.push((Err(unanswered.clone()), None));
        }
        asked(targets).result(flows)
    }

    fn came(party: &Party, peer: &str) -> Arrival {
        Arrival { party: party.clone(), port: 8080, peer: ip(peer) }
    }

    #[test]
    fn a_service_is_reached_as_far_as_its_backends_are() {
        let (y, z) = ("10.0.0.2", "10.0.0.3");
        for (targets, fate, reached) in [
            (&[(y, true), (z, true)][..], Fate::Reached, true),
            (&[(y, false), (z, false)][..], Fate::Denied, false),
            (&[(y, true), (z, false)][..], Fate::Mixed, false),
            (&[][..], Fate::Refused, false),
        ] {
            let result = result(targets);
            assert_eq!((result.fate(), result.reached, &result.disagreement), (Some(fate), reached, &None), "{targets:?}");
        }
        assert_eq!(result(&[(y, true), (z, false)]).causes(), [("ingress", "why")].into());
        assert_eq!(result(&[]).causes(), [("service", "has no endpoints")].into());
    }

    #[test]
    fn what_packets_contradict_is_told() {
        let silence = || Err(Unanswered::Silence(std::time::Duration::from_secs(5)));
        let both = [("10.0.0.2", true), ("10.0.0.3", false)];
        let contradiction = |targets: &[(&str, bool)], seen: Seen, arrival: Option<Arrival>| {
            asked(targets).result([(seen, arrival)]).disagreement.unwrap_or_default()
        };
        let (x, y, z) = (party("a/x"), party("a/y"), party("a/z"));
        assert!(contradiction(&both, Ok(()), Some(came(&z, "10.0.0.1"))).contains("a/z, although policy denies it"));
        assert!(contradiction(&both, Ok(()), Some(came(&x, "10.0.0.1"))).contains("none of its backends"));
        assert!(contradiction(&both, Ok(()), Some(came(&y, "10.96.0.1"))).contains("not the address of a/x"));
        assert!(contradiction(&both, Ok(()), None).contains("nobody of the lab"));
        assert_eq!(contradiction(&both, silence(), None), "", "it may have been the one that is denied");
        assert!(contradiction(&both[..1], silence(), None).contains("each of its backends is allowed"));
        assert!(contradiction(&[], silence(), None).contains("refuses at once"));
        assert!(contradiction(&[], Ok(()), Some(came(&y, "10.0.0.1"))).contains("none of its backends"));
    }

    #[test]
    fn a_pod_behind_its_own_service_sees_the_service() {
        let own = [("10.0.0.1", true)];
        let seen_from = |peer: &str| asked(&own).result([(Ok(()), Some(came(&party("a/x"), peer)))]).disagreement;
        assert_eq!(seen_from("10.96.0.1"), None);
        assert!(seen_from("10.0.0.1").is_some());
    }

    #[test]
    fn several_backends_take_several_flows_and_who_got_them_is_counted() {
        let result = asked(&[("10.0.0.2", true), ("10.0.0.3", true)]);
        assert_eq!((result.flows(), asked(&[]).flows(), asked(&[("10.0.0.2", true)]).flows()), (8, 1, 1));
        let flows = ["a/y", "a/z", "a/y"].map(|name| (Ok(()), Some(came(&party(name), "10.0.0.1"))));
        let behind = result.result(flows).service.unwrap();
        assert_eq!(behind.backends.iter().map(|backend| backend.answered).collect::<Vec<_>>(), [2, 1]);
        let json = serde_json::to_value(&behind).unwrap();
        assert_eq!(
            (&json["verdict"], &json["address"], &json["backends"][0]["party"]),
            (&"reached".into(), &"10.96.0.1".into(), &"a/y".into())
        );
    }

    #[test]
    fn every_pod_and_the_node_where_it_is_served_probe_every_cluster_ip_of_their_families() {
        let port = ServicePort { name: String::new(), protocol: IdentityProtocol::Tcp, port: 80, node_port: None };
        let service = Service {
            uid: None,
            created: None,
            kind: ServiceKind::Addressed,
            cluster_ips: vec![ip("10.96.0.1"), ip("fd96::1")],
            external: BTreeSet::new(),
            ports: vec![port],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
        };
        let endpoint = Endpoint {
            address: ip("10.0.0.2"),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zones: BTreeSet::new(),
            nodes: BTreeSet::new(),
        };
        let number = SlicePort { name: String::new(), protocol: IdentityProtocol::Tcp, port: 8080 };
        let slice = Slice { ports: vec![number], endpoints: vec![endpoint] };
        let mut services = Services::default();
        let name = ObjectName::new("a", "s");
        services.services.insert(name.clone(), Arc::new(service));
        services.slices.insert(name, Arc::new(BTreeMap::from([("e".to_owned(), slice)])));
        let mut members = members();
        members.push(member("node", "192.0.2.1"));
        let pods = members.iter().filter(|member| matches!(member.party, Party::Pod(_)));
        let from_pods = probes(&services, pods).len();
        let probes = probes(&services, members.iter());
        assert_eq!((from_pods, probes.len()), (3, 4), "three pods, and the node; nobody has IPv6");
        assert!(probes.iter().all(|it| it.answer == Answer::OneOf([(ip("10.0.0.2"), 8080)].into()) && it.target == ip("10.96.0.1")));

        let backends = vec![ServiceBackend {
            address: ip("10.0.0.2"),
            port: 8080,
            name: "a/x".to_owned(),
            chosen: true,
            chosen_outside: false,
            serving: true,
        }];
        let at = |address: &str, backends: &[ServiceBackend]| ServiceFrontend {
            address: ip(address),
            port: 80,
            protocol: "TCP".to_owned(),
            view: FrontendView::Cluster,
            state: FrontendState::Served,
            outside: None,
            affinity: None,
            backends: backends.to_vec(),
        };
        let told = |frontends: Vec<ServiceFrontend>| ServiceStatus {
            namespace: "a".to_owned(),
            name: "s".to_owned(),
            kind: protocol::ServiceKind::Addressed,
            ports: Vec::new(),
            frontends,
            backends_known: 1,
            backends_chosen: 1,
            problems: Vec::new(),
            refused: None,
        };
        assert_eq!(missing(&services, &[]).as_deref(), Some("service a/s"));
        let empty = told(vec![at("10.96.0.1", &[]), at("fd96::1", &[])]);
        assert_eq!(missing(&services, &[empty]).as_deref(), Some("service a/s at 10.96.0.1:80/TCP"));
        assert_eq!(missing(&services, &[told(vec![at("10.96.0.1", &backends), at("fd96::1", &[])])]), None);
    }
}
