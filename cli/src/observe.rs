//! `palisade observe`.

use crate::agent;
use crate::arguments::{ObserveArguments, Output};
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, Tone};
use palisade_protocol::{Call, ClientError, Event, EventEnd, Reply, SideVerdict, VerdictName};

/// Prints verdicts as they are made, until the reader or the agent hangs up.
pub fn run(arguments: &ObserveArguments) -> Result<(), CliError> {
    let filter = Filter::new(arguments)?;
    let mut client = agent::connect(&arguments.asking.agent)?;
    client.stream(Call::Observe { allowed: filter.wants_allowed })?;
    let paint = Paint::for_stdout();
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = match client.next_reply()? {
            Some(Reply::Event(event)) => event,
            // A word that the stream has begun.
            Some(Reply::Done) => continue,
            Some(other) => return Err(agent::unexpected(&other)),
            None if arguments.asking.agent.lab.is_some() => return Err(CliError::Environment("the lab has ended".into())),
            None => return Err(ClientError::HungUp.into()),
        };
        if filter.passes(&event) {
            left -= 1;
            match arguments.asking.output {
                Output::Json => print::json_line(&event)?,
                Output::Table => print::text(&(line(&event, paint) + "\n"))?,
            }
        }
    }
    Ok(())
}

/// What `--verdict` takes beside the names of outcomes.
pub const VERDICTS: &[&str] = &["allowed", "dropped", "audited", "deny", "default-deny"];

/// Which events are shown: those that fit each kind of filter that was given.
#[derive(Debug, Default)]
struct Filter {
    wants_allowed: bool,
    pods: Vec<String>,
    namespaces: Vec<String>,
    verdicts: Vec<String>,
}

impl Filter {
    fn new(arguments: &ObserveArguments) -> Result<Self, CliError> {
        if let Some(pod) = arguments.pod.iter().find(|pod| pod.split('/').filter(|part| !part.is_empty()).count() != 2) {
            return Err(CliError::Input(format!("--pod {pod}: write namespace/name")));
        }
        let verdicts: Vec<String> = arguments.verdict.iter().map(|verdict| verdict.to_lowercase()).collect();
        let known = || VERDICTS.iter().copied().chain(palisade_runtime::outcome_names());
        if let Some(verdict) = verdicts.iter().find(|verdict| known().all(|name| name != **verdict)) {
            let names: Vec<&str> = known().collect();
            return Err(CliError::Input(format!("--verdict {verdict}: there is no such verdict; there are {}", names.join(", "))));
        }
        Ok(Self {
            wants_allowed: arguments.allowed || verdicts.iter().any(|verdict| verdict.starts_with("allowed")),
            pods: arguments.pod.clone(),
            namespaces: arguments.namespace.clone(),
            verdicts,
        })
    }

    fn passes(&self, event: &Event) -> bool {
        let ends = [&event.source, &event.destination];
        let pod = self.pods.is_empty() || ends.iter().any(|end| self.pods.contains(&end.name));
        let namespace = self.namespaces.is_empty()
            || ends
                .iter()
                .any(|end| end.name.split_once('/').is_some_and(|(namespace, _)| self.namespaces.iter().any(|one| one == namespace)));
        let sides = [event.egress.verdict, event.ingress.verdict];
        let verdict = self.verdicts.is_empty()
            || self.verdicts.iter().any(|wanted| {
                *wanted == event.action
                    || *wanted == event.outcome
                    || wanted == "deny" && sides.contains(&VerdictName::Deny)
                    || wanted == "default-deny" && sides.contains(&VerdictName::DefaultDeny)
            });
        pod && namespace && verdict
    }
}

/// One event as a line: time, action, protocol, both ends, and the reason.
fn line(event: &Event, paint: Paint) -> String {
    let tone = match event.action.as_str() {
        "allowed" => Tone::Good,
        "audited" => Tone::Alarm,
        _ => Tone::Bad,
    };
    let suppressed = match event.suppressed {
        0 => String::new(),
        number => paint.text(Tone::Faint, &format!(" (+{number} not shown)")),
    };
    format!(
        "{} {} {} {} -> {}: {}{suppressed}",
        time_of_day(event.time),
        paint.text(tone, &format!("{:7}", event.action)),
        event.protocol,
        end(&event.source),
        end(&event.destination),
        reason(event),
    )
}

fn end(end: &EventEnd) -> String {
    let address = match end.address {
        Some(std::net::IpAddr::V4(address)) => format!("{address}:{}", end.port),
        Some(std::net::IpAddr::V6(address)) => format!("[{address}]:{}", end.port),
        None => "unread".into(),
    };
    if end.name.is_empty() { address } else { format!("{} ({address})", end.name) }
}

fn reason(event: &Event) -> String {
    let mut said = sides(event.action != "dropped" && event.audit.is_none(), &event.egress, &event.ingress);
    if let Some(audit) = &event.audit {
        let allows = event.action == "dropped";
        let would = sides(allows, &audit.egress, &audit.ingress).join("; ");
        said.push(format!("audit would {}: {would}", if allows { "allow" } else { "deny" }));
    }
    if said.is_empty() { event.outcome.clone() } else { said.join("; ") }
}

/// What the sides say: those that deny, and where asked for those that allow.
fn sides(with_allows: bool, egress: &SideVerdict, ingress: &SideVerdict) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for (direction, SideVerdict { verdict, reason }) in [("egress", egress), ("ingress", ingress)] {
        match verdict {
            VerdictName::None => {}
            VerdictName::Allow if !with_allows => {}
            VerdictName::Allow => said.push(format!("{direction} {}", if reason.is_empty() { "not isolated" } else { reason })),
            _ => said.push(reason.clone()),
        }
    }
    said
}

/// Time of the day (UTC) with milliseconds.
fn time_of_day(seconds: f64) -> String {
    let milliseconds = (seconds.max(0.0) * 1000.0) as u64;
    let (second, fraction) = (milliseconds / 1000 % 86_400, milliseconds % 1000);
    format!("{:02}:{:02}:{:02}.{fraction:03}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::Audit;

    fn event() -> Event {
        let side = |verdict, reason: &str| SideVerdict { verdict, reason: reason.into() };
        Event {
            time: 3_723.5,
            action: "dropped".into(),
            outcome: "ingress-default-denied".into(),
            hook: "from-pod".into(),
            source: EventEnd { address: Some("10.244.0.9".parse().unwrap()), port: 40000, name: "guest/visitor".into() },
            destination: EventEnd { address: Some("fd00::2".parse().unwrap()), port: 80, name: "backend/api".into() },
            protocol: "TCP".into(),
            egress: side(VerdictName::Allow, ""),
            ingress: side(VerdictName::DefaultDeny, "default deny of ingress by NetworkPolicy backend/allow-frontend"),
            audit: None,
            length: 60,
            suppressed: 4,
        }
    }

    #[test]
    fn a_line_names_both_ends_and_the_reason_of_the_side_that_denies() {
        assert_eq!(
            line(&event(), Paint::none()),
            "01:02:03.500 dropped TCP guest/visitor (10.244.0.9:40000) -> backend/api ([fd00::2]:80): \
             default deny of ingress by NetworkPolicy backend/allow-frontend (+4 not shown)"
        );
    }

    #[test]
    fn an_allowed_flow_says_why_for_both_sides() {
        let side = |reason: &str| SideVerdict { verdict: VerdictName::Allow, reason: reason.into() };
        let egress = side("not isolated");
        let event = Event { action: "allowed".into(), egress, ingress: side("b/p ingress rule 0"), suppressed: 0, ..event() };
        assert!(line(&event, Paint::none()).ends_with(": egress not isolated; ingress b/p ingress rule 0"));
    }

    #[test]
    fn a_policy_in_audit_mode_says_what_it_would_have_done() {
        let side = |verdict, reason: &str| SideVerdict { verdict, reason: reason.into() };
        let audit = |verdict, reason: &str| Some(Audit { egress: side(VerdictName::None, ""), ingress: side(verdict, reason) });
        let allowed = side(VerdictName::Allow, "not isolated");
        let event = Event { action: "audited".into(), ingress: allowed, suppressed: 0, ..event() };
        let would_deny = Event { audit: audit(VerdictName::Deny, "b/p ingress rule 0"), ..event.clone() };
        assert!(line(&would_deny, Paint::none()).ends_with("([fd00::2]:80): audit would deny: b/p ingress rule 0"));
        let would_allow = Event {
            action: "dropped".into(),
            ingress: side(VerdictName::DefaultDeny, "default deny of ingress by b/q"),
            audit: audit(VerdictName::Allow, "b/p ingress rule 1"),
            ..event
        };
        let expected = ": default deny of ingress by b/q; audit would allow: ingress b/p ingress rule 1";
        assert!(line(&would_allow, Paint::none()).ends_with(expected));
    }

    #[test]
    fn a_packet_that_no_policy_judged_names_its_outcome() {
        let none = SideVerdict { verdict: VerdictName::None, reason: String::new() };
        let event = Event { egress: none.clone(), ingress: none, outcome: "source-mac-foreign".into(), suppressed: 0, ..event() };
        assert!(line(&event, Paint::none()).ends_with(": source-mac-foreign"));
    }

    #[test]
    fn filters_of_different_kinds_must_all_fit_and_those_of_one_kind_are_alternatives() {
        let filter = |pods: &[&str], namespaces: &[&str], verdicts: &[&str]| Filter {
            wants_allowed: false,
            pods: pods.iter().map(ToString::to_string).collect(),
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            verdicts: verdicts.iter().map(ToString::to_string).collect(),
        };
        for (passes, filter) in [
            (true, filter(&[], &[], &[])),
            (true, filter(&["backend/api"], &[], &[])),
            (true, filter(&["x/y", "guest/visitor"], &["guest"], &["default-deny"])),
            (true, filter(&[], &[], &["ingress-default-denied"])),
            (true, filter(&[], &[], &["dropped"])),
            (false, filter(&["backend/api"], &["frontend"], &[])),
            (false, filter(&[], &[], &["allowed"])),
            (false, filter(&[], &[], &["deny"])),
            (false, filter(&["backend"], &[], &[])),
        ] {
            assert_eq!(filter.passes(&event()), passes, "{filter:?}");
        }
    }
}
