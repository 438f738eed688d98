//! What the agents are asked of policies: each end of a flow is judged by the agent of its own node.

use super::flow::{Member, Party};
use super::node::LabNode;
use super::outside;
use crate::error::CliError;
use palisade_policy::model::ObjectName;
use palisade_protocol::{Explained, Family, FlowEnd, FlowQuery, SideVerdict};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A flow about which the policies at both ends are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who opens it, and from which address.
    pub from: (Party, IpAddr),
    /// Whom it goes to, where anybody of the lab has the address.
    pub to: (Option<Party>, IpAddr),
    /// The protocol, as agents name it.
    pub protocol: String,
    /// At the responder.
    pub port: u16,
    /// The family.
    pub family: Family,
    /// Whether it goes through a service.
    pub service: bool,
}

/// Who is asked for which sides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sides {
    Both,
    Egress,
    Ingress,
}

/// Asks about flows; the answers are in their order. Each pod is on one of `nodes` whose agent runs.
pub async fn sides(
    nodes: &BTreeMap<String, LabNode>,
    pods: &BTreeMap<&ObjectName, &str>,
    questions: &[Question],
) -> Result<Vec<Explained>, CliError> {
    let node_of = |party: &Party| if let Party::Pod(name) = party { pods.get(name).copied() } else { None };
    let mut asked: BTreeMap<&str, Vec<(usize, Sides)>> = BTreeMap::new();
    for (index, question) in questions.iter().enumerate() {
        match (node_of(&question.from.0), question.to.0.as_ref().and_then(node_of)) {
            (Some(one), Some(other)) if one != other => {
                asked.entry(one).or_default().push((index, Sides::Egress));
                asked.entry(other).or_default().push((index, Sides::Ingress));
            }
            (Some(node), _) | (None, Some(node)) => asked.entry(node).or_default().push((index, Sides::Both)),
            // No pod takes part, so no policy does; whoever is asked says so.
            (None, None) => asked.entry(nodes.keys().next().map_or("", String::as_str)).or_default().push((index, Sides::Both)),
        }
    }
    let mut answers: Vec<(Option<SideVerdict>, Option<SideVerdict>)> = vec![(None, None); questions.len()];
    for (name, asked) in asked {
        let Some(node) = nodes.get(name) else { continue };
        let queries = asked.iter().map(|(index, _)| query(node, pods, &questions[*index])).collect();
        for ((index, sides), Explained { egress, ingress, .. }) in asked.into_iter().zip(node.explain(queries).await?) {
            if sides != Sides::Ingress {
                answers[index].0 = Some(egress);
            }
            if sides != Sides::Egress {
                answers[index].1 = Some(ingress);
            }
        }
    }
    let whole = |(egress, ingress): (Option<SideVerdict>, Option<SideVerdict>)| Some(Explained::new(egress?, ingress?));
    let answers: Option<Vec<Explained>> = answers.into_iter().map(whole).collect();
    answers.ok_or_else(|| CliError::Failed("an agent did not answer all that it was asked".into()))
}

fn query(node: &LabNode, pods: &BTreeMap<&ObjectName, &str>, question: &Question) -> FlowQuery {
    let end = |party: Option<&Party>, address: IpAddr| match party {
        Some(Party::Pod(name)) if pods.get(name).is_some_and(|on| *on == node.name()) => FlowEnd::Pod(name.to_string()),
        Some(Party::Node(name)) if name == node.name() => FlowEnd::Node,
        _ => FlowEnd::Address(address),
    };
    FlowQuery {
        from: end(Some(&question.from.0), question.from.1),
        to: end(question.to.0.as_ref(), question.to.1),
        protocol: question.protocol.clone(),
        port: question.port,
        family: question.family,
        service: question.service,
        whole: false,
    }
}

/// Whether a node's kernel knows the address of each of some pods: those that have one there have it everywhere.
pub async fn knows(node: &LabNode, pods: &[&Member]) -> Result<Vec<bool>, CliError> {
    let about = |member: &&Member| {
        let family = if member.addresses.iter().any(IpAddr::is_ipv4) { Family::Ipv4 } else { Family::Ipv6 };
        FlowQuery {
            from: FlowEnd::Pod(member.party.to_string()),
            to: FlowEnd::Address(outside::address(outside::Nodes::Several, family)),
            protocol: "ICMP".to_owned(),
            port: 0,
            family,
            service: false,
            whole: false,
        }
    };
    node.knows(pods.iter().map(about).collect()).await
}
