//! `Call::Explain`: what the compiled policies say of one flow.

use crate::state::State;
use palisade_datapath_core::verdict::Decision;
use palisade_identity::Protocol;
use palisade_policy::model::ObjectName;
use palisade_policy::{Answer, End, Question, SideAnswer, evaluate};
use palisade_protocol::{ErrorKind, Explained, Failure, Family, FlowEnd, FlowQuery, SideVerdict, VerdictName};

/// What the rows in the kernel say of a flow.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a question that makes no sense, [`ErrorKind::NotFound`] for ends that are not known,
/// [`ErrorKind::TryAgain`] before anything is in the kernel.
pub fn explain(state: &State, query: &FlowQuery) -> Result<Explained, Failure> {
    let published = state.published();
    if !published.reconciled {
        return Err(Failure { kind: ErrorKind::TryAgain, message: format!("the agent is not ready: {}", state.not_ready().join("; ")) });
    }
    let question = question(query, &state.config.node)?;
    let Answer { egress, ingress } = evaluate(&published.compiled, &published.numbers, &published.model, &question)
        .map_err(|error| Failure { kind: ErrorKind::NotFound, message: error.to_string() })?;
    Ok(Explained { egress: side(egress), ingress: side(ingress) })
}

fn question(query: &FlowQuery, node: &str) -> Result<Question, Failure> {
    let ipv6 = query.family == Family::Ipv6;
    let protocol = match query.protocol.to_ascii_uppercase().as_str() {
        "TCP" => Protocol::Tcp.number(),
        "UDP" => Protocol::Udp.number(),
        "SCTP" => Protocol::Sctp.number(),
        "ICMP" | "ICMPV6" if ipv6 => 58,
        "ICMP" => 1,
        other => return Err(invalid(format!("{other:?} is no protocol: TCP, UDP, SCTP and ICMP are"))),
    };
    Ok(Question { from: end(&query.from, node)?, to: end(&query.to, node)?, protocol, port: query.port, ipv6 })
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

fn invalid(message: String) -> Failure {
    Failure { kind: ErrorKind::Invalid, message }
}
