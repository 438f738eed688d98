//! `Call::Explain`: what the compiled policies say of one flow.

use crate::services::owner_of;
use crate::state::State;
use palisade_datapath_core::verdict::Decision;
use palisade_identity::Protocol;
use palisade_policy::model::{Action, Model, ObjectName, Tier};
use palisade_policy::{self as policy, Answer, Compiled, Considered, End, Fate, Numbers, Question, SideAnswer, evaluate, foretell};
use palisade_protocol::{
    BackendExplained, Behind, ErrorKind, Explained, Failure, Family, FlowEnd, FlowQuery, RuleAction, RuleFate, RuleSaid, Settled,
    SideVerdict, Unjudged, VerdictName,
};
use palisade_service::model::Services;
use palisade_service::{Frontend, Leads};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// What answers are made from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The rows.
    pub compiled: &'a Compiled,
    /// What the numbers in them stand for.
    pub numbers: &'a Numbers,
    /// What they were compiled from.
    pub model: &'a Model,
    /// What other nodes compile theirs from.
    pub known: &'a Model,
    /// The services.
    pub services: &'a Services,
    /// Their rows.
    pub served: &'a palisade_service::Compiled,
}

/// What the rows in the kernel say of a flow.
///
/// # Errors
/// As [`explained`]; [`ErrorKind::TryAgain`] before anything is in the kernel.
pub fn explain(state: &State, query: &FlowQuery) -> Result<Explained, Failure> {
    let published = state.published();
    if !published.reconciled {
        return Err(Failure { kind: ErrorKind::TryAgain, message: format!("the agent is not ready: {}", state.not_ready().join("; ")) });
    }
    // Another node compiles what is known, not what this one has made fit.
    let known = if query.whole { state.index().model() } else { Model::default() };
    let view = View {
        compiled: &published.compiled,
        numbers: &published.numbers,
        model: &published.model,
        known: &known,
        services: &published.services,
        served: &published.served,
    };
    explained(view, query)
}

/// What compiled rows say of a flow, wherever they were compiled.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a question that makes no sense, [`ErrorKind::NotFound`] for ends that are not known.
pub fn explained(view: View<'_>, query: &FlowQuery) -> Result<Explained, Failure> {
    let question = question(query, view.model)?;
    match frontend(&question).and_then(|frontend| Some((frontend, view.served.leads(&frontend)?))) {
        Some((frontend, leads)) if query.whole && !query.service => behind(view, query, &frontend, leads),
        _ => direct(view, query, &question),
    }
}

/// The frontend that a question may go to.
fn frontend(question: &Question) -> Option<Frontend> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == question.protocol)?;
    match question.to {
        End::Address(address) => Some(Frontend { address, protocol, port: question.port }),
        End::Pod(_) | End::Node(_) => None,
    }
}

/// The most backends that are asked about: of one elsewhere each answer is a compilation.
const MOST_BACKENDS: usize = 16;

/// What is said of each backend that a flow to a service may come to.
fn behind(view: View<'_>, query: &FlowQuery, frontend: &Frontend, leads: Leads) -> Result<Explained, Failure> {
    let of = owner_of(view.services, frontend);
    let is_here = match &question(query, view.model)?.from {
        End::Node(_) => true,
        End::Pod(name) => view.compiled.subjects.contains_key(name),
        End::Address(address) => view.compiled.subjects.keys().any(|name| has_address(view.model, name, *address)),
    };
    if !is_here {
        // The tables of its own node lead it; from outside the cluster there are others still, and a backend elsewhere sees the node.
        return Err(invalid(format!(
            "{frontend} is where {of} is reached, and where that leads its opener's own node knows: ask there, or about one of its backends with --service"
        )));
    }
    let backends = if let Leads::Backends(backends) = leads { backends } else { BTreeSet::new() };
    let left_out = backends.len().saturating_sub(MOST_BACKENDS);
    let mut each = Vec::new();
    for (address, port) in backends.into_iter().take(MOST_BACKENDS) {
        let pod = view.model.pods.iter().find(|(_, pod)| pod.addresses.contains(&address)).map(|(name, _)| name.to_string());
        let to = pod.map_or(FlowEnd::Address(address), FlowEnd::Pod);
        let query = FlowQuery { to: FlowEnd::Address(address), port, service: true, ..query.clone() };
        each.push(BackendExplained { to, port, explained: direct(view, &query, &question(&query, view.model)?)? });
    }
    let nothing = || SideVerdict { verdict: VerdictName::None, reason: String::new() };
    Ok(Explained { behind: Some(Behind { of, backends: each, left_out }), ..Explained::new(nothing(), nothing()) })
}

fn direct(view: View<'_>, query: &FlowQuery, question: &Question) -> Result<Explained, Failure> {
    let answer = evaluate(view.compiled, view.numbers, view.model, question);
    let answer = if query.whole { answer.and_then(|answer| foretell(view.known, question, answer)) } else { answer };
    let Answer { egress, ingress, settled } = answer.map_err(|error| Failure { kind: ErrorKind::NotFound, message: error.to_string() })?;
    let rules = |side: &SideAnswer| side.rules.iter().map(rule).collect();
    Ok(Explained {
        egress_rules: rules(&egress),
        ingress_rules: rules(&ingress),
        egress_unjudged: egress.unjudged.clone().map(unjudged),
        ingress_unjudged: ingress.unjudged.clone().map(unjudged),
        egress_audit: egress.audit.clone().map(|(decision, reason)| side(decision, reason)),
        ingress_audit: ingress.audit.clone().map(|(decision, reason)| side(decision, reason)),
        settled: settled.map(|why| match why {
            policy::Settled::Itself => Settled::Itself,
            policy::Settled::OwnNode => Settled::OwnNode,
            policy::Settled::Link => Settled::Link,
        }),
        behind: None,
        egress: side(egress.decision, egress.reason),
        ingress: side(ingress.decision, ingress.reason),
    })
}

fn unjudged(why: policy::Unjudged) -> Unjudged {
    match why {
        policy::Unjudged::OtherNode(node) => Unjudged::OtherNode(node),
        policy::Unjudged::NotWired => Unjudged::NotWired,
        policy::Unjudged::UnknownNode => Unjudged::UnknownNode,
    }
}

fn question(query: &FlowQuery, model: &Model) -> Result<Question, Failure> {
    let ipv6 = query.family == Family::Ipv6;
    let protocol = match query.protocol.to_ascii_uppercase().as_str() {
        "TCP" => Protocol::Tcp.number(),
        "UDP" => Protocol::Udp.number(),
        "SCTP" => Protocol::Sctp.number(),
        "ICMP" | "ICMPV6" if ipv6 => 58,
        "ICMP" => 1,
        other => return Err(invalid(format!("{other:?} is no protocol: TCP, UDP, SCTP and ICMP are"))),
    };
    if let Some(why) = address(&query.from).and_then(no_source) {
        return Err(invalid(format!("{why}, so no flow is opened from there: ask with another opener")));
    }
    if let Some(why) = address(&query.to).and_then(no_single_end) {
        return Err(invalid(format!("{why}, so no flow goes there: ask about another destination")));
    }
    // What has an address of this node opened is a process of this node, whatever name it is asked by.
    let from = match &query.from {
        FlowEnd::Address(address) if is_own(model, *address) => FlowEnd::Node,
        from => from.clone(),
    };
    let node = &model.host;
    let (from, to) = (end(&from, node)?, end(&query.to, node)?);
    Ok(Question { from, to, protocol, port: query.port, ipv6, service: query.service, rules: query.whole })
}

fn address(end: &FlowEnd) -> Option<IpAddr> {
    if let FlowEnd::Address(address) = end { Some(*address) } else { None }
}

/// Why an address cannot be the source of a flow's packets, where it cannot.
fn no_source(address: IpAddr) -> Option<String> {
    if policy::is_link(address) {
        return Some(format!("{address} is the node's end of each pod's link, and not where the node's processes send from"));
    }
    if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some(format!("{address} is everybody on a link, and no sender"));
    }
    no_single_end(address)
}

/// Why an address is nobody whom a packet on a pod's link comes from or goes to, where it is nobody.
fn no_single_end(address: IpAddr) -> Option<String> {
    let why = if address.is_loopback() {
        "is a loopback address, whose packets never leave the pod or the node"
    } else if address.is_unspecified() {
        "is the unspecified address, which nobody has"
    } else if address.is_multicast() {
        "is a group of receivers, and no single end of a flow"
    } else {
        return None;
    };
    Some(format!("{address} {why}"))
}

fn has_address(model: &Model, pod: &ObjectName, address: IpAddr) -> bool {
    model.pods.get(pod).is_some_and(|pod| pod.addresses.contains(&address))
}

fn is_own(model: &Model, address: IpAddr) -> bool {
    model.nodes.get(&model.host).is_some_and(|node| node.addresses.contains(&address))
}

fn end(end: &FlowEnd, node: &str) -> Result<End, Failure> {
    Ok(match end {
        FlowEnd::Pod(name) => match name.split_once('/') {
            Some((namespace, name)) => End::Pod(ObjectName::new(namespace, name)),
            None => return Err(invalid(format!("{name:?} is no pod: write namespace/name"))),
        },
        FlowEnd::Address(address) => End::Address(*address),
        FlowEnd::Node => End::Node(node.to_owned()),
    })
}

fn side(decision: Decision, reason: String) -> SideVerdict {
    let verdict = match decision {
        Decision::NotJudged => VerdictName::None,
        Decision::Allow => VerdictName::Allow,
        Decision::Deny => VerdictName::Deny,
        Decision::DefaultDeny => VerdictName::DefaultDeny,
        Decision::Missing => VerdictName::Error,
    };
    let reason = match verdict {
        VerdictName::Allow if reason.is_empty() => "not isolated".to_owned(),
        VerdictName::Error if reason.is_empty() => "the policy rows are missing".to_owned(),
        _ => reason,
    };
    SideVerdict { verdict, reason }
}

/// A tier as users read it.
pub fn tier_name(tier: Tier) -> String {
    match tier {
        Tier::Admin(priority) => format!("Admin {priority}"),
        Tier::Workload => "Workload".to_owned(),
        Tier::Baseline(priority) => format!("Baseline {priority}"),
    }
}

fn rule(considered: &Considered) -> RuleSaid {
    let Considered { tier, policy, rule, name, action, audit, fate, missing } = considered.clone();
    RuleSaid {
        tier: tier_name(tier),
        policy: policy.to_string(),
        rule,
        name,
        action: match action {
            Action::Allow => RuleAction::Allow,
            Action::Deny => RuleAction::Deny,
            Action::Pass => RuleAction::Pass,
        },
        audit,
        fate: match fate {
            Fate::Decides => RuleFate::Decides,
            Fate::Passes => RuleFate::Passes,
            Fate::PeerDiffers => RuleFate::PeerDiffers,
            Fate::PortDiffers => RuleFate::PortDiffers,
            Fate::NotAsked => RuleFate::NotAsked,
        },
        missing_identities: missing,
    }
}

fn invalid(message: String) -> Failure {
    Failure { kind: ErrorKind::Invalid, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_policy::compile;
    use palisade_policy::model::{Node, Pod};

    fn asked(from: &str, to: &str) -> Result<Explained, Failure> {
        let mut model = Model { host: "node".to_owned(), ..Model::default() };
        let addresses = |v4: [u8; 4], host: u16| vec![IpAddr::from(v4), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host])];
        model.pods.insert(ObjectName::new("a", "x"), Pod { addresses: addresses([10, 0, 0, 1], 1), ..Pod::default() });
        model.nodes.insert("node".to_owned(), Node { addresses: addresses([192, 0, 2, 1], 2), ..Node::default() });
        let mut numbers = Numbers::default();
        let compiled = compile(&model, &model.pods.keys().cloned().collect(), &mut numbers);
        let end = |text: &str| text.parse::<IpAddr>().map_or_else(|_| FlowEnd::Pod(text.to_owned()), FlowEnd::Address);
        let family = if from.contains(':') || to.contains(':') { Family::Ipv6 } else { Family::Ipv4 };
        let query = FlowQuery { from: end(from), to: end(to), protocol: "TCP".to_owned(), port: 80, family, service: false, whole: false };
        let (services, served) = (Services::default(), palisade_service::Compiled::default());
        explained(
            View { compiled: &compiled, numbers: &numbers, model: &model, known: &model, services: &services, served: &served },
            &query,
        )
    }

    #[test]
    fn an_address_that_no_packet_can_come_from_or_go_to_is_refused_with_the_reason() {
        for (address, part) in [
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("224.0.0.251", "group"),
            ("ff02::fb", "group"),
        ] {
            for failure in [asked(address, "a/x").unwrap_err(), asked("a/x", address).unwrap_err()] {
                assert_eq!(failure.kind, ErrorKind::Invalid);
                assert!(failure.message.contains(address) && failure.message.contains(part), "{}", failure.message);
            }
        }
        for (address, part) in [("169.254.1.1", "link"), ("fe80::1", "link"), ("255.255.255.255", "everybody")] {
            let failure = asked(address, "a/x").unwrap_err();
            assert!(failure.kind == ErrorKind::Invalid && failure.message.contains(part), "{}", failure.message);
        }
        assert_eq!(asked("203.0.113.1", "a/x").unwrap().passes(), Some(true));
    }

    #[test]
    fn what_no_policy_is_asked_about_is_said_with_what_becomes_of_it() {
        for (from, to, settled, passes) in [
            ("a/x", "169.254.1.1", Some(Settled::Link), false),
            ("a/x", "fe80::1", Some(Settled::Link), false),
            ("a/x", "a/x", Some(Settled::Itself), true),
            ("192.0.2.1", "a/x", Some(Settled::OwnNode), true),
            ("a/x", "192.0.2.1", None, true),
        ] {
            let explained = asked(from, to).unwrap();
            assert_eq!((explained.settled, explained.passes()), (settled, Some(passes)), "{from} -> {to}");
        }
        let failure = asked("203.0.113.1", "169.254.1.1").unwrap_err();
        assert!(failure.message.contains("only a pod comes there"), "{}", failure.message);
    }
}
