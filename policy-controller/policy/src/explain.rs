//! What the compiled rows say of one flow, with names.

use crate::compile::Compiled;
use crate::model::{Model, ObjectName};
use crate::numbers::Numbers;
use palisade_datapath_core::abi::{SUBJECT_NONE, V4, V6};
use palisade_datapath_core::verdict::{Decision, Flow, Side, Verdict, verdict};
use std::net::IpAddr;

/// An end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod of the model.
    Pod(ObjectName),
    /// An address, whoever owns it.
    Address(IpAddr),
    /// The processes of the node of this name. As the opener it must be the node that the rows are for: what that
    /// node sends to its own pods is always allowed.
    Node(String),
}

/// A flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who opens the flow.
    pub from: End,
    /// Towards whom.
    pub to: End,
    /// IP protocol number.
    pub protocol: u8,
    /// Port at the destination, in host byte order; 0 where the protocol has none.
    pub port: u16,
    /// IPv6 rather than IPv4: picks the addresses of pods and nodes.
    pub ipv6: bool,
}

/// What both sides say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The opener's policy.
    pub egress: SideAnswer,
    /// The responder's policy; judged even where the opener's side denies.
    pub ingress: SideAnswer,
}

impl Answer {
    /// Whether both sides let the flow pass.
    pub fn passes(&self) -> bool {
        self.egress.decision.passes() && self.ingress.decision.passes()
    }
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideAnswer {
    /// The decision; `NotJudged` where the end is no pod of this node, and where no policy can speak.
    pub decision: Decision,
    /// The rule or the policies that isolate; empty where no policy made the decision.
    pub reason: String,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The pod is not in the model.
    #[error(
        "no pod {0} with a network of its own is known here: check namespace and name, and whether it has finished or uses the host's network"
    )]
    UnknownPod(ObjectName),
    /// The node is not in the model.
    #[error("no node {0} is known here")]
    UnknownNode(String),
    /// The end has no address of the family.
    #[error("{end} has no {family} address: ask about the other family, or wait until it has one")]
    NoAddress {
        /// The end.
        end: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
}

/// What the compiled rows say of a flow.
pub fn evaluate(compiled: &Compiled, numbers: &Numbers, model: &Model, question: &Question) -> Result<Answer, ExplainError> {
    let opener = resolve(&question.from, model, question.ipv6)?;
    let responder = resolve(&question.to, model, question.ipv6)?;
    let own_node = matches!(question.from, End::Node(_));
    // A pod reaches itself always, and the node its own pods.
    let judged = opener != responder && !own_node;
    let subject = |end, address| if judged { subject(compiled, model, end, address) } else { SUBJECT_NONE };
    let egress = (subject(&question.from, opener), SUBJECT_NONE);
    let ingress = (SUBJECT_NONE, subject(&question.to, responder));
    let answer = |side: Side| SideAnswer {
        decision: side.decision,
        reason: numbers.reason(side.reason).map(ToString::to_string).unwrap_or_default(),
    };
    // Each side for itself, so that a denial by the opener does not hide what the responder says.
    let ask = |(egress_subject, ingress_subject)| judge(compiled, opener, responder, question, egress_subject, ingress_subject);
    Ok(Answer { egress: answer(ask(egress).egress), ingress: answer(ask(ingress).ingress) })
}

fn judge(
    compiled: &Compiled,
    opener: IpAddr,
    responder: IpAddr,
    question: &Question,
    egress_subject: u32,
    ingress_subject: u32,
) -> Verdict {
    let (protocol, port) = (question.protocol, question.port);
    match (opener, responder) {
        (IpAddr::V4(opener), IpAddr::V4(responder)) => {
            let (opener, responder): (V4, V4) = (opener.octets(), responder.octets());
            verdict(compiled, &Flow { opener, responder, protocol, port, egress_subject, ingress_subject })
        }
        (IpAddr::V6(opener), IpAddr::V6(responder)) => {
            let (opener, responder): (V6, V6) = (opener.octets(), responder.octets());
            verdict(compiled, &Flow { opener, responder, protocol, port, egress_subject, ingress_subject })
        }
        // `resolve` gives addresses of the question's family only.
        _ => Verdict { egress: Side::NOT_JUDGED, ingress: Side::NOT_JUDGED },
    }
}

/// The address of an end in the question's family.
fn resolve(end: &End, model: &Model, ipv6: bool) -> Result<IpAddr, ExplainError> {
    let (addresses, name) = match end {
        End::Pod(name) => {
            let pod = model.pods.get(name).ok_or_else(|| ExplainError::UnknownPod(name.clone()))?;
            (pod.addresses.clone(), format!("pod {name}"))
        }
        End::Address(address) => (vec![*address], format!("address {address}")),
        End::Node(name) => {
            let node = model.nodes.get(name).ok_or_else(|| ExplainError::UnknownNode(name.clone()))?;
            (node.addresses.clone(), format!("node {name}"))
        }
    };
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    addresses.into_iter().find(|address| address.is_ipv6() == ipv6).ok_or(ExplainError::NoAddress { end: name, family })
}

/// The subject number of an end, where it is a pod of this node. Where several pods claim an address, the first in
/// order of names is meant.
fn subject(compiled: &Compiled, model: &Model, end: &End, address: IpAddr) -> u32 {
    let pod = match end {
        End::Pod(name) => Some(name),
        End::Address(_) => model.pods.iter().find(|(_, pod)| pod.addresses.contains(&address)).map(|(name, _)| name),
        End::Node(_) => None,
    };
    pod.and_then(|name| compiled.subjects.get(name)).copied().unwrap_or(SUBJECT_NONE)
}
