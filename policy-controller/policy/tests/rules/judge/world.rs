//! Small worlds, spelled out.

use crate::judge::{compiled_audit, compiled_verdict, expected_audit, expected_verdict};
use palisade_identity::{LabelSelector, Labels, Operator, Protocol, Requirement};
use palisade_policy::model::{
    Action, Mode, Model, NamedPort, Node, ObjectName, Peer, Peers, Pod, PodSet, Policy, PolicyKind, PolicyName, Port, Ports, Rule, Tier,
};
use palisade_policy::oracle::{Flow, Verdict};
use palisade_policy::{Numbers, compile};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A model in the making. Every answer is asked of the rows and of the oracle, in every family that both ends have.
#[derive(Clone, Default)]
pub struct World {
    pub model: Model,
}

impl World {
    /// Namespaces `shop` and `bank`, each labelled `team` with its own name.
    pub fn new() -> Self {
        Self::default().namespace("shop", "team=shop").namespace("bank", "team=bank")
    }

    /// A namespace, with the label that the API server gives it.
    pub fn namespace(mut self, name: &str, labels: &str) -> Self {
        let mut labels = parse_labels(labels);
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        self.model.namespaces.insert(name.to_owned(), labels);
        self
    }

    /// A pod `namespace/name` with addresses 10.1.0.`host` and fd00:1::`host` (in hexadecimal).
    pub fn pod(mut self, name: &str, labels: &str, host: u8) -> Self {
        let addresses = vec![IpAddr::from([10, 1, 0, host]), IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, u16::from(host)])];
        self.model.pods.insert(object(name), Pod { labels: parse_labels(labels), addresses, ..Pod::default() });
        self
    }

    /// A named port of a pod.
    pub fn port(mut self, pod: &str, name: &str, protocol: Protocol, port: u16) -> Self {
        let pod = self.model.pods.edit(&object(pod)).expect("the pod is there");
        pod.ports.push(NamedPort { name: name.to_owned(), protocol, port });
        self
    }

    /// A node with one address.
    pub fn node(mut self, name: &str, address: &str) -> Self {
        let addresses = vec![address.parse().expect("an address")];
        self.model.nodes.insert(name.to_owned(), Node { addresses, ..Node::default() });
        self
    }

    /// A policy that isolates ingress.
    pub fn ingress(self, name: &str, subject: &str, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.policy(name, subject, Some(rules.into_iter().collect()), None)
    }

    /// A policy that isolates egress.
    pub fn egress(self, name: &str, subject: &str, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.policy(name, subject, None, Some(rules.into_iter().collect()))
    }

    /// A NetworkPolicy.
    pub fn policy(mut self, name: &str, subject: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Self {
        let subject = PodSet { pods: select(subject), ..PodSet::default() };
        let policy = Policy { tier: Tier::Workload, mode: Mode::Enforce, subject, ingress, egress };
        self.model.policies.insert(network_policy(name), policy);
        self
    }

    /// A ClusterNetworkPolicy for the pods of namespaces with these labels.
    pub fn cluster(mut self, name: &str, tier: Tier, namespaces: &str, ingress: Vec<Rule>, egress: Vec<Rule>) -> Self {
        let subject = PodSet { namespaces: Some(select(namespaces)), ..PodSet::default() };
        let rules = |rules: Vec<Rule>| Some(rules).filter(|rules| !rules.is_empty());
        let policy = Policy { tier, mode: Mode::Enforce, subject, ingress: rules(ingress), egress: rules(egress) };
        self.model.policies.insert(PolicyName::new(PolicyKind::ClusterNetworkPolicy, ObjectName::cluster(name)), policy);
        self
    }

    /// An IdentityPolicy.
    pub fn identity_policy(mut self, name: &str, subject: PodSet, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Self {
        let policy = Policy { tier: Tier::Workload, mode: Mode::Enforce, subject, ingress, egress };
        self.model.policies.insert(PolicyName::new(PolicyKind::IdentityPolicy, object(name)), policy);
        self
    }

    /// An identity.
    pub fn identity(mut self, name: &str, members: impl IntoIterator<Item = Peer>) -> Self {
        self.model.identities.insert(name.to_owned(), members.into_iter().collect::<Vec<_>>());
        self
    }

    /// Puts a policy in audit mode.
    pub fn audited(mut self, name: &PolicyName) -> Self {
        self.model.policies.edit(name).expect("the policy is there").mode = Mode::Audit;
        self
    }

    /// The verdict of both sides of a flow; pods by name, anything else by address; `port` as `TCP/80` or `ICMP`. A pod reaches itself through
    /// a service.
    pub fn verdicts(&self, from: &str, to: &str, port: &str) -> Vec<Verdict> {
        let local: BTreeSet<ObjectName> = self.model.pods.keys().cloned().collect();
        let mut numbers = Numbers::default();
        let compiled = compile(&self.model, &local, &mut numbers);
        let mut verdicts = Vec::new();
        for opener in self.addresses(from) {
            for responder in self.addresses(to).into_iter().filter(|address| address.is_ipv6() == opener.is_ipv6()) {
                let (protocol, port) = parse_port(port, opener.is_ipv6());
                let flow = Flow { opener, responder, protocol, port };
                let found = compiled_verdict(&compiled, &numbers, &self.model, &flow);
                assert_eq!(found, expected_verdict(&compiled, &self.model, &flow), "rows and oracle differ for {from} -> {to}: {flow:?}");
                let audited = compiled_audit(&compiled, &numbers, &self.model, &flow);
                assert_eq!(audited, expected_audit(&compiled, &self.model, &flow), "of audit, for {from} -> {to}: {flow:?}");
                verdicts.push(found);
            }
        }
        assert!(!verdicts.is_empty(), "{from} and {to} have no family in common");
        verdicts
    }

    /// Whether a flow passes, in all families alike.
    pub fn passes(&self, from: &str, to: &str, port: &str) -> bool {
        let passes: BTreeSet<bool> = self.verdicts(from, to, port).iter().map(Verdict::passes).collect();
        assert_eq!(passes.len(), 1, "the families differ for {from} -> {to} {port}");
        passes.contains(&true)
    }

    /// That a flow passes.
    #[track_caller]
    pub fn allows(&self, from: &str, to: &str, port: &str) {
        assert!(self.passes(from, to, port), "{from} -> {to} {port} is denied");
    }

    /// That a flow does not pass.
    #[track_caller]
    pub fn denies(&self, from: &str, to: &str, port: &str) {
        assert!(!self.passes(from, to, port), "{from} -> {to} {port} is allowed");
    }

    fn addresses(&self, end: &str) -> Vec<IpAddr> {
        match end.parse() {
            Ok(address) => vec![address],
            Err(_) => self.model.pods.get(&object(end)).expect("the pod is there").addresses.clone(),
        }
    }
}

/// `namespace/name`.
pub fn object(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

/// The NetworkPolicy `namespace/name`.
pub fn network_policy(name: &str) -> PolicyName {
    PolicyName::new(PolicyKind::NetworkPolicy, object(name))
}

/// `key=value,key=value` as a selector; empty matches everything.
pub fn select(labels: &str) -> LabelSelector {
    let equal = |(key, value): (String, String)| Requirement { key, operator: Operator::In(BTreeSet::from([value])) };
    LabelSelector { requirements: parse_labels(labels).into_iter().map(equal).collect() }
}

/// A selector of one requirement.
pub fn expression(key: &str, operator: Operator) -> LabelSelector {
    LabelSelector { requirements: BTreeSet::from([Requirement { key: key.to_owned(), operator }]) }
}

/// Pods of the policy's own namespace.
pub fn own(pods: &str) -> Peer {
    Peer::Pods(PodSet { pods: select(pods), ..PodSet::default() })
}

/// Pods of namespaces with these labels.
pub fn pods(namespaces: &str, pods: &str) -> Peer {
    Peer::Pods(PodSet { namespaces: Some(select(namespaces)), pods: select(pods), accounts: None })
}

/// A block without some others.
pub fn block(block: &str, except: &[&str]) -> Peer {
    let parse = |block: &str| block.parse().expect("a block");
    Peer::Block { block: parse(block), except: except.iter().map(|block| parse(block)).collect() }
}

/// A rule for every port.
pub fn from<const N: usize>(peers: [Peer; N]) -> Rule {
    Rule::allow(Peers::Of(peers.into()), Ports::Any)
}

/// A rule for every peer.
pub fn on<const N: usize>(ports: [Port; N]) -> Rule {
    Rule::allow(Peers::Any, Ports::Of(ports.into()))
}

/// A rule.
pub fn rule<const N: usize, const M: usize>(peers: [Peer; N], ports: [Port; M]) -> Rule {
    Rule::allow(Peers::Of(peers.into()), Ports::Of(ports.into()))
}

/// The rule that says everything.
pub fn everything() -> Rule {
    Rule::allow(Peers::Any, Ports::Any)
}

/// A rule that does something else than allow.
pub fn doing(action: Action, rule: Rule) -> Rule {
    Rule { action, ..rule }
}

/// One TCP port.
pub fn tcp(port: u16) -> Port {
    Port::Range(Protocol::Tcp, port, port)
}

/// A named TCP port.
pub fn named(name: &str) -> Port {
    Port::Named(Protocol::Tcp, name.to_owned())
}

fn parse_labels(labels: &str) -> Labels {
    let pairs = labels.split(',').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').expect("key=value")).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn parse_port(port: &str, ipv6: bool) -> (u8, u16) {
    let number = |port: &str| port.parse().expect("a port");
    match port.split_once('/') {
        Some(("TCP", port)) => (6, number(port)),
        Some(("UDP", port)) => (17, number(port)),
        Some(("SCTP", port)) => (132, number(port)),
        None if port == "ICMP" => (if ipv6 { 58 } else { 1 }, 0),
        _ => panic!("no port: {port}"),
    }
}
