//! The truth table: who reaches whom on which port, and why not.

use super::flow::{ECHO, Party, Port, Probe, ProbeResult, Report, family_name, port_name};
use super::service::Fate;
use crate::table::{Cell, Paint, Table, Tone, count};
use palisade_protocol::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

/// Wider tables number their columns.
const WIDEST: usize = 110;

/// The whole result: a table per port and one of the echoes, then the refusals by their reason, then what is wrong.
pub fn rendered(report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    let ports: BTreeSet<Port> = report.probes.iter().map(|result| result.probe.tried()).collect();
    for port in &ports {
        let results: Vec<&ProbeResult> = report.probes.iter().filter(|result| result.probe.tried() == *port).collect();
        let _ = writeln!(text, "{}\n{}", paint.text(Tone::Heading, &port_name(*port)), matrix(&results, paint));
    }
    if ports.iter().all(|port| *port == ECHO) {
        text.push_str("No pod declares a port, so only echoes are tried: give containers `ports:`.\n\n");
    }
    addresses(&mut text, report, paint);
    refusals(&mut text, report, paint);
    disagreements(&mut text, report, paint);
    let _ = writeln!(text, "{}", summary(report));
    text
}

/// One line: how many probes, and how they ended.
pub fn summary(report: &Report) -> String {
    let reached = report.probes.iter().filter(|result| result.reached).count();
    let mixed = report.probes.iter().filter(|result| result.fate() == Some(Fate::Mixed)).count();
    let disagreements = report.disagreements().count();
    let wrong = match disagreements {
        0 => String::new(),
        number => format!(", {} with the policy", count(number, "DISAGREES", "DISAGREE")),
    };
    let probes = report.probes.len();
    let at_some = if mixed == 0 { String::new() } else { format!(", {mixed} mixed") };
    format!("{}: {reached} reached, {} refused{at_some}{wrong}", count(probes, "probe", "probes"), probes - reached - mixed)
}

fn matrix(results: &[&ProbeResult], paint: Paint) -> String {
    let rows: BTreeSet<&Party> = results.iter().map(|result| &result.probe.from).collect();
    let columns: BTreeSet<&Party> = results.iter().map(|result| &result.probe.to).collect();
    let named = table(results, &rows, |party| party.to_string(), |party| party.to_string(), &columns);
    if named.width() <= WIDEST {
        return named.render(paint);
    }
    let numbers: BTreeMap<&Party, usize> = rows.iter().chain(&columns).copied().collect::<BTreeSet<_>>().into_iter().zip(1..).collect();
    table(results, &rows, |party| format!("{:>2} {party}", numbers[party]), |party| numbers[party].to_string(), &columns).render(paint)
}

fn table(
    results: &[&ProbeResult],
    rows: &BTreeSet<&Party>,
    row_name: impl Fn(&Party) -> String,
    column_name: impl Fn(&Party) -> String,
    columns: &BTreeSet<&Party>,
) -> Table {
    let mut cells: BTreeMap<(&Party, &Party), Vec<&ProbeResult>> = BTreeMap::new();
    for result in results {
        cells.entry((&result.probe.from, &result.probe.to)).or_default().push(result);
    }
    let mut table = Table::new(std::iter::once("from \\ to".to_owned()).chain(columns.iter().map(|party| column_name(party))));
    for row in rows {
        let line = columns.iter().map(|column| cells.get(&(*row, *column)).map_or_else(|| Cell::from("."), |results| cell(results)));
        table.row(std::iter::once(Cell::from(row_name(row))).chain(line));
    }
    table
}

/// `yes` or `no`, or what else becomes of flows to a service; where the families differ, which one passes; with `!` where packets and
/// policy disagree.
fn cell(results: &[&ProbeResult]) -> Cell {
    let words: BTreeSet<&str> = results.iter().map(|result| word(result)).collect();
    let (text, tone) = match &words.iter().copied().collect::<Vec<_>>()[..] {
        [] => (".".to_owned(), Tone::Plain),
        ["yes"] => ("yes".to_owned(), Tone::Good),
        [other] => ((*other).to_owned(), Tone::Bad),
        ["no", "yes"] => {
            let reached: Vec<&str> =
                results.iter().filter(|result| result.reached).map(|result| family_name(result.probe.family)).collect();
            (format!("{} only", reached.join(" ")), Tone::Bad)
        }
        _ => {
            let each: Vec<String> = results.iter().map(|result| format!("{} {}", family_name(result.probe.family), word(result))).collect();
            (each.join(", "), Tone::Bad)
        }
    };
    if results.iter().any(|result| result.disagreement.is_some()) { Cell::toned(text + " !", Tone::Alarm) } else { Cell::toned(text, tone) }
}

/// What became of a probe, in a word.
fn word(result: &ProbeResult) -> &'static str {
    match result.fate() {
        _ if result.reached => "yes",
        Some(Fate::Mixed) => "mixed",
        Some(Fate::Refused) => "refused",
        Some(Fate::Dropped) => "dropped",
        Some(Fate::Reached | Fate::Denied) | None => "no",
    }
}

/// Where each service is reached.
fn addresses(text: &mut String, report: &Report, paint: Paint) {
    let mut services: BTreeMap<&Party, BTreeSet<IpAddr>> = BTreeMap::new();
    for result in &report.probes {
        if let Some(behind) = &result.service {
            services.entry(&result.probe.to).or_default().insert(behind.address);
        }
    }
    if services.is_empty() {
        return;
    }
    let _ = writeln!(text, "{}", paint.text(Tone::Heading, "Services"));
    for (service, addresses) in services {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  {service}: {}", addresses.join(", "));
    }
    text.push('\n');
}

/// A group of refusals: the direction, and the reason.
type Cause<'a> = (&'a str, &'a str);

fn refusals(text: &mut String, report: &Report, paint: Paint) {
    let mut causes: BTreeMap<Cause<'_>, Vec<&Probe>> = BTreeMap::new();
    for result in report.probes.iter().filter(|result| !result.reached) {
        for cause in result.causes() {
            causes.entry(cause).or_default().push(&result.probe);
        }
    }
    if causes.is_empty() {
        return;
    }
    let _ = writeln!(text, "{}", paint.text(Tone::Heading, "Refused"));
    for ((direction, reason), probes) in causes {
        let _ = writeln!(text, "  {} {}", paint.text(Tone::Faint, direction), paint.text(Tone::Bad, reason));
        for line in flows(&probes) {
            let _ = writeln!(text, "    {line}");
        }
    }
    text.push('\n');
}

/// One line per opener and set of ports, with all whom it goes towards; the family only where it is not both.
pub fn flows(probes: &[&Probe]) -> Vec<String> {
    let mut pairs: BTreeMap<(&Party, &Party), BTreeMap<Port, BTreeSet<Family>>> = BTreeMap::new();
    for probe in probes {
        let ports = pairs.entry((&probe.from, &probe.to)).or_default();
        ports.entry(probe.tried()).or_default().insert(probe.family);
    }
    let mut lines: BTreeMap<(&Party, String), Vec<String>> = BTreeMap::new();
    for ((from, to), ports) in pairs {
        let ports: Vec<String> = ports.into_iter().map(port_text).collect();
        lines.entry((from, ports.join(", "))).or_default().push(to.to_string());
    }
    lines.into_iter().map(|((from, ports), to)| format!("{from} -> {}: {ports}", to.join(", "))).collect()
}

fn port_text((port, families): (Port, BTreeSet<Family>)) -> String {
    match families.iter().collect::<Vec<_>>()[..] {
        [family] => format!("{} ({})", port_name(port), family_name(*family)),
        _ => port_name(port),
    }
}

fn disagreements(text: &mut String, report: &Report, paint: Paint) {
    if report.disagreements().next().is_none() {
        return;
    }
    let _ = writeln!(text, "{}", paint.text(Tone::Alarm, "PACKETS AND POLICY DISAGREE (a defect of palisade, or of this kernel)"));
    for result in report.disagreements() {
        let _ = writeln!(text, "  {}: {}", result.probe, result.disagreement.as_deref().unwrap_or_default());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::flow::tests::result;
    use super::*;
    use Family::{Ipv4, Ipv6};
    use palisade_protocol::Explained;

    const REASON: &str = "default deny of ingress by NetworkPolicy backend/allow-frontend";

    fn shop() -> Report {
        let mut probes = Vec::new();
        for family in [Ipv4, Ipv6] {
            probes.push(result("frontend/web", "backend/api", family, None));
            probes.push(result("guest/visitor", "backend/api", family, Some(REASON)));
            probes.push(result("node", "backend/api", family, None));
        }
        probes.sort_by(|a, b| a.probe.cmp(&b.probe));
        Report { probes }
    }

    #[test]
    fn the_table_shows_who_reaches_whom_and_why_not() {
        assert_eq!(
            rendered(&shop(), Paint::none()),
            "TCP 80
from \\ to      backend/api
frontend/web   yes
guest/visitor  no
node           yes

Refused
  ingress default deny of ingress by NetworkPolicy backend/allow-frontend
    guest/visitor -> backend/api: TCP 80

6 probes: 4 reached, 2 refused
"
        );
    }

    #[test]
    fn families_that_differ_are_told_apart() {
        let mut report = shop();
        report.probes.retain(|result| result.probe.from.to_string() == "guest/visitor");
        report.probes[0] = result("guest/visitor", "backend/api", Ipv4, None);
        let text = rendered(&report, Paint::none());
        assert!(text.contains("guest/visitor  ipv4 only\n"), "{text}");
        assert!(text.contains("guest/visitor -> backend/api: TCP 80 (ipv6)\n"), "{text}");
    }

    #[test]
    fn flows_of_one_opener_to_the_same_ports_share_a_line() {
        let results = ["b/x", "b/y"].map(|to| [Ipv4, Ipv6].map(|family| result("a/a", to, family, Some(REASON))));
        let probes: Vec<&Probe> = results.iter().flatten().map(|result| &result.probe).collect();
        assert_eq!(flows(&probes), ["a/a -> b/x, b/y: TCP 80"]);
    }

    #[test]
    fn a_disagreement_is_marked_in_its_cell_and_listed() {
        let mut report = shop();
        let denied = report.probes.iter_mut().find(|result| !result.reached).unwrap();
        let explained = Explained::new(denied.egress.clone(), denied.ingress.clone());
        *denied = ProbeResult::new(denied.probe.clone(), Ok(()), explained, false);
        let text = rendered(&report, Paint::none());
        assert!(text.contains("guest/visitor  ipv4 only !\n"), "{text}");
        assert!(text.contains("guest/visitor -> backend/api TCP 80 (ipv4): reached, although policy denies it"), "{text}");
        assert!(text.ends_with("6 probes: 5 reached, 1 refused, 1 DISAGREES with the policy\n"), "{text}");
    }

    #[test]
    fn a_table_too_wide_for_names_numbers_its_columns() {
        let names: Vec<String> = (0..12).map(|number| format!("namespace/with-a-long-name-{number:02}")).collect();
        let mut probes = Vec::new();
        for (from, to) in names.iter().flat_map(|from| names.iter().map(move |to| (from, to))).filter(|(from, to)| from != to) {
            probes.push(result(from, to, Ipv4, None));
        }
        let text = rendered(&Report { probes }, Paint::none());
        assert!(text.lines().all(|line| line.len() <= WIDEST), "{text}");
        assert!(text.contains("\n12 namespace/with-a-long-name-11  yes"), "{text}");
    }

    #[test]
    fn echoes_have_a_table_of_their_own_after_all_ports() {
        let mut report = shop();
        for mut echo in shop().probes {
            (echo.probe.protocol, echo.probe.port) = ECHO;
            report.probes.push(echo);
        }
        let text = rendered(&report, Paint::none());
        assert!(text.starts_with("TCP 80\n") && text.contains("\n\nICMP\nfrom \\ to      backend/api\n"), "{text}");
        assert!(text.contains("    guest/visitor -> backend/api: TCP 80, ICMP\n"), "{text}");
        assert!(!text.contains("No pod declares a port"), "{text}");
        report.probes.retain(|result| result.probe.tried() == ECHO);
        assert!(rendered(&report, Paint::none()).contains("No pod declares a port, so only echoes are tried"));
    }

    #[test]
    fn services_have_columns_after_pods_and_say_what_becomes_of_their_flows() {
        use super::super::flow::tests::party;
        use super::super::service::tests::result as of_service;
        let mut report = Report { probes: vec![result("a/x", "a/y", Ipv4, None), of_service(&[("10.0.0.2", true), ("10.0.0.3", false)])] };
        let mut empty = of_service(&[]);
        empty.probe.to = party("svc/a/t");
        report.probes.push(empty);
        assert_eq!(
            rendered(&report, Paint::none()),
            "TCP 80
from \\ to  a/y  svc/a/s  svc/a/t
a/x        yes  mixed    refused

Services
  svc/a/s: 10.96.0.1
  svc/a/t: 10.96.0.1

Refused
  ingress why
    a/x -> svc/a/s: TCP 80 (ipv4)
  service has no endpoints
    a/x -> svc/a/t: TCP 80 (ipv4)

3 probes: 1 reached, 1 refused, 1 mixed
"
        );
    }
}
