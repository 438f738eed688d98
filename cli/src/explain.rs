//! `palisade explain`.

use crate::agent;
use crate::arguments::{ExplainArguments, Output};
use crate::error::CliError;
use crate::lab::outside;
use crate::print;
use crate::table::{Cell, Paint, Table, Tone};
use palisade_protocol::{Call, Client, ClientError, ErrorKind, Explained, Family, FlowEnd, FlowQuery, Reply, SideVerdict, VerdictName};
use std::net::IpAddr;

/// One answer, as `--output json` prints it.
#[derive(serde::Serialize)]
struct Answer {
    #[serde(flatten)]
    query: FlowQuery,
    passes: bool,
    #[serde(flatten)]
    explained: Explained,
}

/// Asks what the compiled policies say of a flow, for each family that both ends have.
pub fn run(arguments: &ExplainArguments) -> Result<(), CliError> {
    let in_lab = arguments.asking.agent.lab.is_some();
    let families = families(arguments, in_lab)?;
    let mut client = agent::connect(&arguments.asking.agent)?;
    let mut answers = Vec::new();
    let mut problem = None;
    for family in families {
        let query = FlowQuery {
            from: end(&arguments.from, family, in_lab)?,
            to: end(&arguments.to, family, in_lab)?,
            protocol: arguments.protocol(),
            port: arguments.port.unwrap_or(0),
            family,
        };
        match client.call(Call::Explain(query.clone())) {
            Ok(Reply::Explained(explained)) => {
                let passes = passes(&explained.egress) && passes(&explained.ingress);
                answers.push(Answer { query, passes, explained });
            }
            Ok(other) => return Err(agent::unexpected(&other)),
            // An end without an address of one family is no failure as long as the other family answers.
            Err(ClientError::Refused(failure)) => problem = Some(failure),
            Err(other) => return Err(other.into()),
        }
    }
    if let (true, Some(failure)) = (answers.is_empty(), problem) {
        return Err(match failure.kind {
            ErrorKind::NotFound => CliError::Input(format!("{}; pods of this node: {}", failure.message, pods(&mut client)?)),
            ErrorKind::Invalid => CliError::Input(failure.message),
            _ => CliError::Failed(failure.message),
        });
    }
    match arguments.asking.output {
        Output::Json => print::json(&answers)?,
        Output::Table => print::text(&rendered(arguments, &answers, Paint::for_stdout()))?,
    }
    Ok(())
}

/// The pods that the agent has wired, as a list of names.
fn pods(client: &mut Client) -> Result<String, CliError> {
    let endpoints = match client.call(Call::Endpoints)? {
        Reply::Endpoints(endpoints) => endpoints,
        other => return Err(agent::unexpected(&other)),
    };
    let names: Vec<String> = endpoints.iter().map(|endpoint| format!("{}/{}", endpoint.spec.namespace, endpoint.spec.pod)).collect();
    Ok(if names.is_empty() { "none".into() } else { names.join(", ") })
}

fn families(arguments: &ExplainArguments, in_lab: bool) -> Result<Vec<Family>, CliError> {
    let mut families = match arguments.family {
        Some(family) => vec![family],
        None => vec![Family::Ipv4, Family::Ipv6],
    };
    for text in [&arguments.from, &arguments.to] {
        if !(in_lab && text == "outside")
            && let Ok(address) = text.parse::<IpAddr>()
        {
            families.retain(|family| *family == family_of(address));
        }
    }
    if families.is_empty() {
        return Err(CliError::Input("the two ends and --family are not of one address family".into()));
    }
    Ok(families)
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

fn end(text: &str, family: Family, in_lab: bool) -> Result<FlowEnd, CliError> {
    if text == "node" {
        return Ok(FlowEnd::Node);
    }
    if text == "outside" && in_lab {
        return Ok(FlowEnd::Address(outside::address(family)));
    }
    if let Ok(address) = text.parse() {
        return Ok(FlowEnd::Address(address));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(FlowEnd::Pod(text.into())),
        _ => Err(CliError::Input(format!("{text}: write namespace/pod, node or an address{}", if in_lab { ", or outside" } else { "" }))),
    }
}

fn passes(side: &SideVerdict) -> bool {
    matches!(side.verdict, VerdictName::Allow | VerdictName::None)
}

/// A verdict as users read it.
pub fn verdict_text(verdict: VerdictName) -> &'static str {
    match verdict {
        VerdictName::Allow => "allow",
        VerdictName::Deny => "deny",
        VerdictName::DefaultDeny => "default-deny",
        VerdictName::None => "none",
        VerdictName::Error => "error",
    }
}

fn rendered(arguments: &ExplainArguments, answers: &[Answer], paint: Paint) -> String {
    let mut table = Table::new(["FAMILY", "FLOW", "SIDE", "VERDICT", "REASON"]);
    let port = arguments.port.map(|port| format!(" {port}")).unwrap_or_default();
    let flow = format!("{} -> {} {}{port}", arguments.from, arguments.to, arguments.protocol());
    for answer in answers {
        let family = if answer.query.family == Family::Ipv4 { "ipv4" } else { "ipv6" };
        for (side, said) in [("egress", &answer.explained.egress), ("ingress", &answer.explained.ingress)] {
            let tone = if passes(said) { Tone::Good } else { Tone::Bad };
            let reason = match (said.verdict, said.reason.is_empty()) {
                (VerdictName::None, true) => "not judged on this side",
                (VerdictName::Allow, true) => "no policy isolates this side",
                _ => &said.reason,
            };
            table.row([family.into(), flow.as_str().into(), side.into(), Cell::toned(verdict_text(said.verdict), tone), reason.into()]);
        }
    }
    table.render(paint)
}
