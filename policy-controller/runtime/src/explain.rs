//! `Call::Explain`: what the compiled policies say of one flow.

use crate::state::State;
use palisade_datapath_core::verdict::Decision;
use palisade_identity::Protocol;
use palisade_policy::model::{Action, Model, ObjectName, Tier};
use palisade_policy::{self as policy, Answer, Compiled, Considered, End, Fate, Numbers, Question, SideAnswer, evaluate};
use palisade_protocol::{
    ErrorKind, Explained, Failure, Family, FlowEnd, FlowQuery, RuleAction, RuleFate, RuleSaid, SideVerdict, Unjudged, VerdictName,
};
use std::net::IpAddr;

/// What the rows in the kernel say of a flow.
///
/// # Errors
/// As [`explained`]; [`ErrorKind::TryAgain`] before anything is in the kernel.
pub fn explain(state: &State, query: &FlowQuery) -> Result<Explained, Failure> {
    let published = state.published();
    if !published.reconciled {
        return Err(Failure { kind: ErrorKind::TryAgain, message: format!("the agent is not ready: {}", state.not_ready().join("; ")) });
    }
    explained(&published.compiled, &published.numbers, &published.model, query)
}

/// What compiled rows say of a flow, wherever they were compiled.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a question that makes no sense, [`ErrorKind::NotFound`] for ends that are not known.
pub fn explained(compiled: &Compiled, numbers: &Numbers, model: &Model, query: &FlowQuery) -> Result<Explained, Failure> {
    let question = question(query, model)?;
    let Answer { egress, ingress } =
        evaluate(compiled, numbers, model, &question).map_err(|error| Failure { kind: ErrorKind::NotFound, message: error.to_string() })?;
    let rules = |side: &SideAnswer| side.rules.iter().map(rule).collect();
    Ok(Explained {
        egress_rules: rules(&egress),
        ingress_rules: rules(&ingress),
        egress_unjudged: egress.unjudged.clone().map(unjudged),
        ingress_unjudged: ingress.unjudged.clone().map(unjudged),
        egress: side(egress),
        ingress: side(ingress),
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
    // What has an address of this node opened is a process of this node, whatever name it is asked by.
    let from = match &query.from {
        FlowEnd::Address(address) if is_own(model, *address) => FlowEnd::Node,
        from => from.clone(),
    };
    let node = &model.host;
    Ok(Question { from: end(&from, node)?, to: end(&query.to, node)?, protocol, port: query.port, ipv6, rules: query.rules })
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

fn side(side: SideAnswer) -> SideVerdict {
    let verdict = match side.decision {
        Decision::NotJudged => VerdictName::None,
        Decision::Allow => VerdictName::Allow,
        Decision::Deny => VerdictName::Deny,
        Decision::DefaultDeny => VerdictName::DefaultDeny,
        Decision::Missing => VerdictName::Error,
    };
    let reason = match verdict {
        VerdictName::Allow if side.reason.is_empty() => "not isolated".to_owned(),
        VerdictName::Error if side.reason.is_empty() => "the policy rows are missing".to_owned(),
        _ => side.reason,
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
    let Considered { tier, policy, rule, name, action, fate } = considered.clone();
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
        fate: match fate {
            Fate::Decides => RuleFate::Decides,
            Fate::Passes => RuleFate::Passes,
            Fate::PeerDiffers => RuleFate::PeerDiffers,
            Fate::PortDiffers => RuleFate::PortDiffers,
            Fate::NotAsked => RuleFate::NotAsked,
        },
    }
}

fn invalid(message: String) -> Failure {
    Failure { kind: ErrorKind::Invalid, message }
}
