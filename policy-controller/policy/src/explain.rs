//! What the compiled rows say of one flow, with names.

use crate::compile::{Compiled, compile};
use crate::consider::{Considered, Seen, consider};
use crate::model::{Model, ObjectName};
use crate::numbers::Numbers;
use palisade_datapath_core::abi::{Address, Direction, SUBJECT_NONE, V4, V6};
use palisade_datapath_core::verdict::{Decision, Side, side};
use std::collections::BTreeSet;
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
    /// Whether the flow goes to a service behind which `to` stands. It makes a difference where a pod reaches itself: at its own address no
    /// policy is asked, through a service those of the cluster are.
    pub service: bool,
    /// Whether the rules that were considered are wanted: they cost a walk over the whole model.
    pub rules: bool,
}

/// What both sides say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The opener's policy.
    pub egress: SideAnswer,
    /// The responder's policy; judged even where the opener's side denies.
    pub ingress: SideAnswer,
    /// What becomes of the flow whatever policies say; then neither side is judged.
    pub settled: Option<Settled>,
}

impl Answer {
    /// Whether no side refuses the flow; what a side that is [`Unjudged`] says is known only after [`foretell`].
    pub fn passes(&self) -> bool {
        self.settled != Some(Settled::Link) && self.egress.decision.passes() && self.ingress.decision.passes()
    }
}

/// What becomes of a flow that no policy is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It passes: a pod always reaches itself at its own address.
    Itself,
    /// It passes: a node always reaches its own pods.
    OwnNode,
    /// It is dropped: it goes to the node's end of the pod's link, which no policy can name.
    Link,
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideAnswer {
    /// The decision; `NotJudged` where the end is no pod of this node, and where no policy can speak.
    pub decision: Decision,
    /// Why these rows do not know what a policy says that may speak: the end is a pod, and not one that they are for. All else of the answer is
    /// then [foretold](foretell), or empty.
    pub unjudged: Option<Unjudged>,
    /// The rule or the policies that isolate; empty where no policy made the decision.
    pub reason: String,
    /// Decision and reason as they would be, were the policies in audit mode enforced; `None` where none of these selects the pod.
    pub audit: Option<(Decision, String)>,
    /// The rules that were considered, in the order in which they are asked; none where this side is not judged, or nobody asked.
    pub rules: Vec<Considered>,
}

impl SideAnswer {
    /// The answer where no policy speaks.
    const NOT_JUDGED: Self = Self { decision: Decision::NotJudged, unjudged: None, reason: String::new(), audit: None, rules: Vec::new() };
}

/// Why the rows do not judge an end that is a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unjudged {
    /// It is on the node of this name, whose rows judge it.
    OtherNode(String),
    /// It is on the node that the rows are for, and not wired yet.
    NotWired,
    /// No node is known to have its address.
    UnknownNode,
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
    /// The node's end of a link is asked for by somebody who is not on it.
    #[error("{0} is the node's end of each pod's link, and only a pod comes there: ask with a pod as the opener")]
    NotOnLink(IpAddr),
}

/// Whether an address is the node's end of every pod's link, which belongs to the link and to nothing else.
pub fn is_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets() == V4::GATEWAY,
        IpAddr::V6(address) => address.octets() == V6::GATEWAY,
    }
}

/// What the compiled rows say of a flow.
pub fn evaluate(compiled: &Compiled, numbers: &Numbers, model: &Model, question: &Question) -> Result<Answer, ExplainError> {
    let opener = resolve(&question.from, model, question.ipv6)?;
    let responder = resolve(&question.to, model, question.ipv6)?;
    if let Some(settled) = settled(compiled, model, question, opener, responder)? {
        return Ok(Answer { egress: SideAnswer::NOT_JUDGED, ingress: SideAnswer::NOT_JUDGED, settled: Some(settled) });
    }
    let judged = |end, address| match pod(model, end, address).map(|name| (name, compiled.subjects.get(name))) {
        Some((name, Some(number))) => (Some((name, *number)), None),
        Some((_, None)) => (None, Some(unjudged(model, address))),
        None => (None, None),
    };
    let (from, from_unjudged) = judged(&question.from, opener);
    let (to, to_unjudged) = judged(&question.to, responder);
    let itself = opener == responder && question.service && to.is_some();
    // Each side for itself, so that a denial by the opener does not hide what the responder says.
    let answer = |subject: Option<(&ObjectName, u32)>, unjudged, direction, peer| {
        let said = |number| {
            let side = side_of(compiled, direction, number, peer, question.protocol, question.port);
            (side.decision, numbers.reason(side.reason).map(ToString::to_string).unwrap_or_default())
        };
        let (decision, reason) = said(subject.map_or(SUBJECT_NONE, |(_, number)| number));
        let audit = subject.and_then(|(name, _)| compiled.audits.get(name)).map(|&number| said(number));
        let seen = Seen { direction, peer, protocol: question.protocol, port: question.port };
        let asked = subject.filter(|_| question.rules).and_then(|(name, _)| model.pods.get_key_value(name));
        let rules = asked.map_or_else(Vec::new, |(name, pod)| consider(model, name, pod, seen));
        SideAnswer { decision, unjudged, reason, audit, rules }
    };
    let (egress, ingress) = match itself {
        true => (Direction::SelfEgress, Direction::SelfIngress),
        false => (Direction::Egress, Direction::Ingress),
    };
    Ok(Answer { egress: answer(from, from_unjudged, egress, responder), ingress: answer(to, to_unjudged, ingress, opener), settled: None })
}

/// Adds to the answer of a node's rows what those of other nodes say of the ends that they judge, if they know the same objects.
///
/// # Errors
/// As [`evaluate`]'s, which has given `answer`.
pub fn foretell(model: &Model, question: &Question, mut answer: Answer) -> Result<Answer, ExplainError> {
    let there = |unjudged: &Unjudged, end: &End| {
        let host = match unjudged {
            Unjudged::OtherNode(node) => node.clone(),
            Unjudged::NotWired => model.host.clone(),
            Unjudged::UnknownNode => String::new(),
        };
        let opener = resolve(&question.from, model, question.ipv6)?;
        let is_node = model.nodes.get(&host).is_some_and(|node| node.addresses.contains(&opener));
        let from = match &question.from {
            End::Pod(_) => question.from.clone(),
            _ if is_node => End::Node(host.clone()),
            _ => End::Address(opener),
        };
        let question = &Question { from, ..question.clone() };
        let model = Model { host, ..model.clone() };
        let address = resolve(end, &model, question.ipv6)?;
        let judged = pod(&model, end, address).cloned();
        let mut numbers = Numbers::default();
        let compiled = compile(&model, &judged.into_iter().collect::<BTreeSet<_>>(), &mut numbers);
        evaluate(&compiled, &numbers, &model, question)
    };
    if let Some(unjudged) = answer.egress.unjudged.take() {
        let Answer { egress, .. } = there(&unjudged, &question.from)?;
        answer.egress = SideAnswer { unjudged: Some(unjudged), ..egress };
    }
    if let Some(unjudged) = answer.ingress.unjudged.take() {
        let Answer { ingress, settled, .. } = there(&unjudged, &question.to)?;
        match settled {
            // A node reaches its own pods whatever its policies say.
            Some(_) => return Ok(Answer { egress: SideAnswer::NOT_JUDGED, ingress: SideAnswer::NOT_JUDGED, settled }),
            None => answer.ingress = SideAnswer { unjudged: Some(unjudged), ..ingress },
        }
    }
    Ok(answer)
}

/// What the datapath does with a flow that it asks no policy about.
fn settled(
    compiled: &Compiled,
    model: &Model,
    question: &Question,
    opener: IpAddr,
    responder: IpAddr,
) -> Result<Option<Settled>, ExplainError> {
    let from = pod(model, &question.from, opener);
    let to = pod(model, &question.to, responder);
    if is_link(responder) {
        return if from.is_some() { Ok(Some(Settled::Link)) } else { Err(ExplainError::NotOnLink(responder)) };
    }
    if opener == responder && !question.service && (from.is_some() || to.is_some()) {
        return Ok(Some(Settled::Itself));
    }
    let own_pod = to.is_some_and(|name| compiled.subjects.contains_key(name));
    Ok((own_pod && matches!(question.from, End::Node(_))).then_some(Settled::OwnNode))
}

/// What a subject's policy says of a peer.
fn side_of(compiled: &Compiled, direction: Direction, subject: u32, peer: IpAddr, protocol: u8, port: u16) -> Side {
    match peer {
        IpAddr::V4(peer) => side(compiled, direction, subject, &peer.octets(), protocol, port),
        IpAddr::V6(peer) => side(compiled, direction, subject, &peer.octets(), protocol, port),
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

/// The pod that an end is. Where several pods claim an address, the first in order of names is meant.
fn pod<'a>(model: &'a Model, end: &'a End, address: IpAddr) -> Option<&'a ObjectName> {
    match end {
        End::Pod(name) => Some(name),
        End::Address(_) => model.pods.iter().find(|(_, pod)| pod.addresses.contains(&address)).map(|(name, _)| name),
        End::Node(_) => None,
    }
}

/// Whose pod range an address is in tells who judges it.
fn unjudged(model: &Model, address: IpAddr) -> Unjudged {
    match model.nodes.iter().find(|(_, node)| node.pod_ranges.iter().any(|range| range.contains(&address))) {
        Some((name, _)) if *name == model.host => Unjudged::NotWired,
        Some((name, _)) => Unjudged::OtherNode(name.clone()),
        None => Unjudged::UnknownNode,
    }
}
