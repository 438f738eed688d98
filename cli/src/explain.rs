//! `palisade explain`.

use crate::agent;
use crate::arguments::ExplainArguments;
use crate::error::CliError;
use crate::files::Files;
use crate::lab::outside::{self, Nodes};
use crate::print;
use crate::table::{Cell, Paint, Table, Tone};
use palisade_protocol::{
    BackendExplained, Call, Client, ClientError, ErrorKind, Explained, Family, FlowEnd, FlowQuery, Reply, RuleAction, RuleFate, RuleSaid,
    Settled, SideVerdict, Unjudged, VerdictName,
};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

/// One answer, as `--output json` prints it.
#[derive(serde::Serialize)]
struct Answer {
    #[serde(flatten)]
    query: FlowQuery,
    passes: Option<bool>,
    #[serde(flatten)]
    explained: Explained,
}

/// Asks what the compiled policies say of a flow, for each family that both ends have.
pub fn run(arguments: &ExplainArguments) -> Result<(), CliError> {
    let answers = match &arguments.file {
        Some(directory) => {
            let files = Files::read(directory)?;
            files.notes().iter().for_each(|note| print::aside(note));
            let ask = |query: &FlowQuery| files.ask(query).map_err(ClientError::Refused);
            answers(arguments, ask, || Ok(files.pods()))?
        }
        None => {
            let client = RefCell::new(agent::connect(&arguments.asking.agent)?);
            let ask = |query: &FlowQuery| client.borrow_mut().call(Call::Explain(query.clone())).and_then(explained);
            answers(arguments, ask, || pods(&mut client.borrow_mut()))?
        }
    };
    print::answer(arguments.asking.output, &answers, |paint| rendered(arguments, &answers, paint))
}

fn explained(reply: Reply) -> Result<Explained, ClientError> {
    match reply {
        Reply::Explained(explained) => Ok(explained),
        other => Err(ClientError::Malformed(format!("an answer of another kind: {other:?}"))),
    }
}

/// Asks `ask` for each family; `pods` names those that there are, for an end that is none of them.
fn answers(
    arguments: &ExplainArguments,
    ask: impl Fn(&FlowQuery) -> Result<Explained, ClientError>,
    pods: impl Fn() -> Result<String, CliError>,
) -> Result<Vec<Answer>, CliError> {
    let lab = agent::lab_nodes(&arguments.asking.agent)?;
    let mut answers = Vec::new();
    let mut problem = None;
    for family in families(arguments, lab.is_some())? {
        let query = FlowQuery {
            from: end(&arguments.from, family, lab)?,
            to: end(&arguments.to, family, lab)?,
            protocol: arguments.port.protocol.clone(),
            port: arguments.port.port,
            family,
            service: arguments.service,
            whole: true,
        };
        match ask(&query) {
            Ok(explained) => {
                let query = FlowQuery { whole: false, ..query };
                answers.push(Answer { query, passes: explained.passes(), explained });
            }
            // An end without an address of one family is no failure as long as the other family answers.
            Err(ClientError::Refused(failure)) => problem = Some(failure),
            Err(other) => return Err(other.into()),
        }
    }
    match problem {
        Some(failure) if answers.is_empty() => Err(match failure.kind {
            ErrorKind::NotFound => CliError::Input(format!("{}; the pods here: {}", failure.message, pods()?)),
            ErrorKind::Invalid => CliError::Input(failure.message),
            _ => CliError::Failed(failure.message),
        }),
        _ => Ok(answers),
    }
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

fn end(text: &str, family: Family, lab: Option<Nodes>) -> Result<FlowEnd, CliError> {
    if text == "node" {
        return Ok(FlowEnd::Node);
    }
    if let ("outside", Some(nodes)) = (text, lab) {
        return Ok(FlowEnd::Address(outside::address(nodes, family)));
    }
    if let Ok(address) = text.parse() {
        return Ok(FlowEnd::Address(address));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(FlowEnd::Pod(text.into())),
        _ => Err(CliError::Input(format!(
            "{text}: write namespace/pod, node or an address{}",
            if lab.is_some() { ", or outside" } else { "" }
        ))),
    }
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

/// One flow of which both sides are shown: that of an answer, or to one backend of a service.
struct Shown<'a> {
    family: &'static str,
    flow: String,
    explained: &'a Explained,
}

fn shown<'a>(arguments: &ExplainArguments, answer: &'a Answer) -> Vec<Shown<'a>> {
    let family = family_name(answer.query.family);
    let ExplainArguments { from, to, port, .. } = arguments;
    match &answer.explained.behind {
        None => vec![Shown { family, flow: format!("{from} -> {to} {port}"), explained: &answer.explained }],
        Some(behind) => {
            let of = |backend: &'a BackendExplained| {
                let number = backend.port;
                let to = match &backend.to {
                    FlowEnd::Pod(name) => format!("{name} {number}"),
                    FlowEnd::Address(address) => SocketAddr::new(*address, number).to_string(),
                    FlowEnd::Node => format!("node {number}"),
                };
                Shown { family, flow: format!("{from} -> {to}/{}", port.protocol), explained: &backend.explained }
            };
            behind.backends.iter().map(of).collect()
        }
    }
}

fn rendered(arguments: &ExplainArguments, answers: &[Answer], paint: Paint) -> String {
    let mut text = services(arguments, answers);
    let flows: Vec<Shown<'_>> = answers.iter().flat_map(|answer| shown(arguments, answer)).collect();
    let mut table = Table::new(["FAMILY", "FLOW", "SIDE", "VERDICT", "REASON"]);
    for Shown { family, flow, explained } in &flows {
        let Explained { egress, ingress, egress_unjudged, ingress_unjudged, settled, .. } = explained;
        for (side, said, unjudged) in [("egress", egress, egress_unjudged), ("ingress", ingress, ingress_unjudged)] {
            let tone = if said.passes() && *settled != Some(Settled::Link) { Tone::Good } else { Tone::Bad };
            let reason = reason(said, unjudged.as_ref(), *settled);
            let verdict = Cell::toned(verdict_text(said.verdict), tone);
            table.row([(*family).into(), flow.as_str().into(), side.into(), verdict, reason.into()]);
        }
    }
    if !flows.is_empty() {
        text.push_str(&table.render(paint));
    }
    text.push_str(&overall(answers, paint));
    text.push_str(&audits(&flows));
    text.push_str(&foretold(&flows));
    let considered: Vec<_> = flows.iter().map(|shown| (&shown.explained.egress_rules, &shown.explained.ingress_rules)).collect();
    // Most rules fare the same in both families, and with every backend.
    let same = considered.windows(2).all(|pair| pair[0] == pair[1]);
    for (shown, (egress, ingress)) in flows.iter().zip(considered).take(if same { 1 } else { flows.len() }) {
        if egress.is_empty() && ingress.is_empty() {
            continue;
        }
        let of = if same { String::new() } else { format!(" ({}, {})", shown.family, shown.flow) };
        text.push_str(&paint.text(Tone::Heading, &format!("\nConsidered in this order{of}\n")));
        let mut table = Table::new(["SIDE", "TIER", "POLICY", "RULE", "ACTION", "WHAT CAME OF IT"]);
        for (side, rule) in egress.iter().map(|rule| ("egress", rule)).chain(ingress.iter().map(|rule| ("ingress", rule))) {
            let number = rule.name.as_ref().map_or_else(|| rule.rule.to_string(), |name| format!("{} {name:?}", rule.rule));
            let (action, fate, tone) = said(rule);
            let fate = match &rule.missing_identities[..] {
                [] => fate.to_owned(),
                names => format!("{fate}; there is no identity {}", names.join(", ")),
            };
            let policy = if rule.audit { format!("{} (audit)", rule.policy) } else { rule.policy.clone() };
            table.row([
                side.into(),
                rule.tier.as_str().into(),
                policy.as_str().into(),
                number.as_str().into(),
                action.into(),
                Cell::toned(fate, tone),
            ]);
        }
        text.push_str(&table.render(paint));
    }
    text
}

/// Whose the address is, where it is a service's or a host port's; one line for what is the same in both families.
fn services(arguments: &ExplainArguments, answers: &[Answer]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for behind in answers.iter().filter_map(|answer| answer.explained.behind.as_ref()) {
        let to = match behind.backends.len() {
            0 => "nobody stands behind it for who asks here: a flow is refused or dropped".to_owned(),
            1 => "policy is asked about its backend".to_owned(),
            count => format!("policy is asked about each of its {} backends", count + behind.left_out),
        };
        let to = if behind.left_out > 0 { format!("{to}, of which {} are not shown", behind.left_out) } else { to };
        let line = format!("{} {} is where {} is reached: {to}\n", arguments.to, arguments.port, behind.of);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

/// Why one side says what it says.
fn reason(said: &SideVerdict, unjudged: Option<&Unjudged>, settled: Option<Settled>) -> String {
    let reason = match (said.verdict, said.reason.is_empty(), settled) {
        (VerdictName::None, _, Some(settled)) => regardless(settled),
        (VerdictName::None, true, _) => "not judged on this side",
        (VerdictName::Allow, true, _) => "no policy isolates this side",
        _ => &said.reason,
    };
    if unjudged.is_some() { format!("{reason} (expected)") } else { reason.to_owned() }
}

/// Why no policy is asked.
const fn regardless(settled: Settled) -> &'static str {
    match settled {
        Settled::Itself => "a pod always reaches itself at its own address",
        Settled::OwnNode => "the node always reaches its own pods",
        Settled::Link => "no pod reaches the node's end of its link: no policy can name it",
    }
}

/// A line that says what comes of both sides; one for each family where they differ.
fn overall(answers: &[Answer], paint: Paint) -> String {
    let mut lines: Vec<(String, Tone, Vec<&str>)> = Vec::new();
    for answer in answers {
        let (line, tone) = outcome(&answer.explained);
        let family = family_name(answer.query.family);
        match lines.iter_mut().find(|(known, ..)| *known == line) {
            Some((.., families)) => families.push(family),
            None => lines.push((line, tone, vec![family])),
        }
    }
    let several = lines.len() > 1;
    let of = |families: Vec<&str>| if several { format!("{}: ", families.join(", ")) } else { String::new() };
    lines.into_iter().map(|(line, tone, families)| format!("{}{}\n", of(families), paint.text(tone, &line))).collect()
}

/// What each side would say, were the policies in audit mode enforced; one line for what is the same in both families.
fn audits(flows: &[Shown<'_>]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for Shown { explained, .. } in flows {
        for (side, would) in [("egress", &explained.egress_audit), ("ingress", &explained.ingress_audit)] {
            let Some(would) = would else { continue };
            let line =
                format!("were the policies in audit mode enforced, {side} would say {}: {}\n", verdict_text(would.verdict), would.reason);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines.concat()
}

/// What comes of both sides together.
fn outcome(explained: &Explained) -> (String, Tone) {
    match explained.passes() {
        Some(true) => ("passes".to_owned(), Tone::Good),
        Some(false) => ("does not pass".to_owned(), Tone::Bad),
        None => match &explained.behind {
            Some(behind) => {
                let passing = behind.backends.iter().filter(|backend| backend.explained.passes() == Some(true)).count();
                let count = behind.backends.len();
                let line = match behind.left_out {
                    0 => format!("passes to {passing} of {count} backends: new flows fare one way or the other"),
                    more => format!("passes to {passing} of {count} backends; there are {more} more"),
                };
                (line, Tone::Heading)
            }
            None => ("whether it passes is not known here".to_owned(), Tone::Heading),
        },
    }
}

/// Which sides this node does not judge; one line for what is the same in both families.
fn foretold(flows: &[Shown<'_>]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for Shown { explained, .. } in flows {
        for (side, unjudged) in [("egress", &explained.egress_unjudged), ("ingress", &explained.ingress_unjudged)] {
            let Some(unjudged) = unjudged else { continue };
            let line = format!("{side} is what this node expects by the objects that it knows: {}\n", who_judges(unjudged));
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines.concat()
}

/// Who judges a pod that this node does not.
fn who_judges(unjudged: &Unjudged) -> String {
    match unjudged {
        Unjudged::OtherNode(node) => format!("the pod is on {node}, whose agent says what is in force"),
        Unjudged::NotWired => "the pod is not wired yet".to_owned(),
        Unjudged::UnknownNode => "the pod's node is not known here, and rules about that node match nobody".to_owned(),
    }
}

fn said(rule: &RuleSaid) -> (&'static str, &'static str, Tone) {
    let action = match rule.action {
        RuleAction::Allow => "allow",
        RuleAction::Deny => "deny",
        RuleAction::Pass => "pass",
    };
    let (fate, tone) = match rule.fate {
        RuleFate::Decides if rule.audit => ("would decide", Tone::Heading),
        RuleFate::Passes if rule.audit => ("would match: the next tier would decide", Tone::Heading),
        RuleFate::NotAsked if rule.audit => ("would not be asked", Tone::Faint),
        RuleFate::Decides if rule.action == RuleAction::Allow => ("decides", Tone::Good),
        RuleFate::Decides => ("decides", Tone::Bad),
        RuleFate::Passes => ("matches: the next tier decides", Tone::Heading),
        RuleFate::PeerDiffers => ("other peers", Tone::Faint),
        RuleFate::PortDiffers => ("other ports", Tone::Faint),
        RuleFate::NotAsked => ("not asked", Tone::Faint),
    };
    (action, fate, tone)
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::Behind;

    fn side(verdict: VerdictName) -> SideVerdict {
        SideVerdict { verdict, reason: String::new() }
    }

    fn elsewhere(egress: VerdictName, ingress: VerdictName) -> Explained {
        Explained { ingress_unjudged: Some(Unjudged::OtherNode("n2".into())), ..Explained::new(side(egress), side(ingress)) }
    }

    fn answer(family: Family, explained: Explained) -> Answer {
        let end = || FlowEnd::Pod("a/b".into());
        let query = FlowQuery { from: end(), to: end(), protocol: "TCP".into(), port: 80, family, service: false, whole: false };
        Answer { query, passes: explained.passes(), explained }
    }

    #[test]
    fn a_flow_passes_where_no_side_refuses_it_whoever_judges_that() {
        for (explained, passes) in [
            (elsewhere(VerdictName::Allow, VerdictName::Allow), Some(true)),
            (elsewhere(VerdictName::None, VerdictName::DefaultDeny), Some(false)),
            (elsewhere(VerdictName::DefaultDeny, VerdictName::Allow), Some(false)),
            (elsewhere(VerdictName::Error, VerdictName::None), Some(false)),
            (elsewhere(VerdictName::Allow, VerdictName::None), None),
            (Explained::new(side(VerdictName::Allow), side(VerdictName::None)), Some(true)),
            (Explained::new(side(VerdictName::None), side(VerdictName::Deny)), Some(false)),
        ] {
            let json = serde_json::to_value(answer(Family::Ipv4, explained)).unwrap();
            assert_eq!(json["passes"], serde_json::json!(passes), "{json}");
        }
    }

    #[test]
    fn the_lines_below_the_sides_say_what_comes_of_both_and_what_another_node_judges() {
        let passing = || Explained::new(side(VerdictName::Allow), side(VerdictName::None));
        let both = |ipv4, ipv6| [answer(Family::Ipv4, ipv4), answer(Family::Ipv6, ipv6)];
        let foretold = |answers: &[Answer]| {
            let flows: Vec<Shown<'_>> =
                answers.iter().map(|answer| Shown { family: "", flow: String::new(), explained: &answer.explained }).collect();
            foretold(&flows)
        };
        let answers = both(passing(), passing());
        assert_eq!((overall(&answers, Paint::none()).as_str(), foretold(&answers).as_str()), ("passes\n", ""));
        let expected = |ingress| elsewhere(VerdictName::Allow, ingress);
        let answers = both(expected(VerdictName::Allow), expected(VerdictName::Deny));
        assert_eq!(overall(&answers, Paint::none()), "ipv4: passes\nipv6: does not pass\n");
        let said = foretold(&answers);
        assert!(said.starts_with("ingress is what this node expects") && said.contains("the pod is on n2") && said.lines().count() == 1);
        assert!(reason(&answers[0].explained.ingress, Some(&Unjudged::NotWired), None).ends_with("(expected)"));
    }

    #[test]
    fn a_flow_to_a_service_passes_where_it_passes_to_every_backend() {
        let backend = |verdict| BackendExplained {
            to: FlowEnd::Pod("a/b".into()),
            port: 80,
            explained: Explained::new(side(VerdictName::Allow), side(verdict)),
        };
        let behind = |verdicts: &[VerdictName]| Explained {
            behind: Some(Behind { of: "service a/s".into(), backends: verdicts.iter().copied().map(backend).collect(), left_out: 0 }),
            ..Explained::new(side(VerdictName::None), side(VerdictName::None))
        };
        let (allow, deny) = (VerdictName::Allow, VerdictName::Deny);
        for (verdicts, passes, line) in [
            (&[][..], Some(false), "does not pass"),
            (&[allow, allow], Some(true), "passes"),
            (&[deny, deny], Some(false), "does not pass"),
            (&[allow, deny, allow], None, "passes to 2 of 3 backends: new flows fare one way or the other"),
        ] {
            let explained = behind(verdicts);
            assert_eq!((explained.passes(), outcome(&explained).0.as_str()), (passes, line));
        }
    }

    #[test]
    fn a_flow_that_no_policy_is_asked_about_says_why_it_passes_or_does_not() {
        for (settled, passes, why) in [
            (Settled::Itself, true, "a pod always reaches itself"),
            (Settled::OwnNode, true, "the node always reaches its own pods"),
            (Settled::Link, false, "no policy can name it"),
        ] {
            let none = || side(VerdictName::None);
            let explained = Explained { settled: Some(settled), ..Explained::new(none(), none()) };
            assert!(reason(&explained.egress, None, explained.settled).contains(why));
            assert_eq!(outcome(&explained).0, if passes { "passes" } else { "does not pass" });
        }
        assert_eq!(reason(&side(VerdictName::None), None, None), "not judged on this side");
    }
}
