//! Expectations: who should reach whom.

use super::flow::{Party, Probe, ProbeResult, Protocol, family_name, port_name};
use super::service::Fate;
use crate::error::CliError;
use crate::table::{Cell, Paint, Table, Tone};
use palisade_k8s::manifest;
use palisade_protocol::Family;
use serde::Deserialize;
use std::path::Path;

/// What is expected of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It is reached.
    Allow,
    /// It is not.
    Deny,
    /// Of a service: some of its backends are reached, and others are not.
    Mixed,
    /// Of a service: the client is told at once that no endpoint stands behind it.
    Refused,
}

impl Expected {
    fn is_met_by(self, result: &ProbeResult) -> bool {
        match self {
            Self::Allow => result.reached,
            Self::Deny => !result.reached && result.fate() != Some(Fate::Mixed),
            Self::Mixed => result.fate() == Some(Fate::Mixed),
            Self::Refused => !result.reached && result.fate() == Some(Fate::Refused),
        }
    }
}

/// A file of expectations.
#[derive(Clone, Debug, Deserialize)]
pub struct Expectations {
    /// What holds of probes that no line names; absent: nothing is expected of them.
    #[serde(default)]
    default: Option<Expected>,
    /// The first line that matches a probe decides.
    #[serde(default)]
    probes: Vec<Line>,
}

/// One line.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    from: Pattern,
    to: Pattern,
    #[serde(default)]
    port: Option<Number>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    family: Option<Family>,
    verdict: Expected,
}

/// `namespace/name`, `namespace/*`, `*/*` (every pod), the same after `svc/` (services), `node` (every node), `node:NAME`, `outside`, or `*`
/// (everybody).
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Pattern(String);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_node = text.strip_prefix("node:").is_some_and(|name| !name.is_empty() && !name.contains('/'));
        if object(&text).is_some() || is_node || ["*", "node", "outside"].contains(&text.as_str()) {
            return Ok(Self(text));
        }
        Err(format!("{text:?} is neither namespace/pod, svc/namespace/service, node, node:NAME, outside nor *"))
    }
}

/// Whether a pattern means services, and its namespace and name, where it means objects.
fn object(text: &str) -> Option<(bool, &str, &str)> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Some((false, namespace, name)),
        ["svc", namespace, name] if !namespace.is_empty() && !name.is_empty() => Some((true, namespace, name)),
        _ => None,
    }
}

impl Pattern {
    fn matches(&self, party: &Party) -> bool {
        let (is_service, found) = match party {
            _ if self.0 == "*" => return true,
            Party::Pod(name) => (false, name),
            Party::Service(name) => (true, name),
            Party::Node(_) if self.0 == "node" => return true,
            Party::Node(_) | Party::Outside => return self.0 == party.to_string(),
        };
        let fits = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        object(&self.0).is_some_and(|(services, namespace, name)| {
            services == is_service && fits(namespace, &found.namespace) && fits(name, &found.name)
        })
    }
}

/// The number of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
struct Number(u16);

impl TryFrom<i64> for Number {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u16::try_from(number).ok().filter(|port| *port != 0).map(Self).ok_or_else(|| format!("{number} is no port: ports are 1 to 65535"))
    }
}

impl Line {
    fn matches(&self, probe: &Probe) -> bool {
        self.from.matches(&probe.from)
            && self.to.matches(&probe.to)
            && self.port.is_none_or(|Number(port)| port == probe.port)
            && self.protocol.is_none_or(|protocol| protocol == probe.protocol)
            && self.family.is_none_or(|family| family == probe.family)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.from.0, self.to.0)?;
        self.protocol.map_or(Ok(()), |protocol| write!(f, " {protocol}"))?;
        self.port.map_or(Ok(()), |Number(port)| write!(f, " {port}"))?;
        self.family.map_or(Ok(()), |family| write!(f, " {}", family_name(family)))
    }
}

/// What is not as expected.
#[derive(Debug)]
pub enum Difference {
    /// A probe came out the other way.
    Result {
        /// The probe.
        result: Box<ProbeResult>,
        /// What was expected.
        expected: Expected,
    },
    /// A line names what was never tried, so nothing shows that it holds.
    Untried(String),
}

impl Expectations {
    /// Reads a file; the error names file, line and field of everything that is wrong.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| CliError::Input(format!("cannot read the expectations {}: {error}", path.display())))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, CliError> {
        let read = manifest::read_document::<Self>(path, text, "expectations");
        let expectations = read.map_err(|errors| CliError::Input(errors.to_string()))?;
        if expectations.default.is_none() && expectations.probes.is_empty() {
            let why = "nothing is expected: give `default:` or lines under `probes:`";
            return Err(CliError::Input(format!("{}: {why}", path.display())));
        }
        Ok(expectations)
    }

    /// What is not as expected, in the order of the results; lines that match no probe come last.
    pub fn differences(&self, results: &[ProbeResult]) -> Vec<Difference> {
        let mut differences = Vec::new();
        for result in results {
            let line = self.probes.iter().find(|line| line.matches(&result.probe));
            let Some(expected) = line.map(|line| line.verdict).or(self.default) else { continue };
            if !expected.is_met_by(result) {
                differences.push(Difference::Result { result: Box::new(result.clone()), expected });
            }
        }
        let untried = self.probes.iter().filter(|line| !results.iter().any(|result| line.matches(&result.probe)));
        differences.extend(untried.map(|line| Difference::Untried(line.to_string())));
        differences
    }
}

/// The table of differences.
pub fn rendered(differences: &[Difference], paint: Paint) -> String {
    let mut table = Table::new(["FROM", "TO", "PORT", "FAMILY", "EXPECTED", "SEEN", "WHY"]);
    for difference in differences {
        match difference {
            Difference::Result { result, expected } => {
                let probe = &result.probe;
                let expected = match expected {
                    Expected::Allow => "allow",
                    Expected::Deny => "deny",
                    Expected::Mixed => "mixed",
                    Expected::Refused => "refused",
                };
                let seen = match result.fate() {
                    _ if result.reached => "reached",
                    Some(Fate::Mixed) => "mixed",
                    Some(Fate::Refused) => "refused",
                    _ => "not reached",
                };
                let reasons: Vec<String> = match &result.disagreement {
                    Some(how) => vec![how.clone()],
                    None if result.reached => [("egress", &result.egress), ("ingress", &result.ingress)]
                        .into_iter()
                        .filter(|(_, side)| !side.reason.is_empty())
                        .map(|(direction, side)| format!("{direction}: {}", side.reason))
                        .collect(),
                    None => result.causes().into_iter().map(|(direction, reason)| format!("{direction}: {reason}")).collect(),
                };
                let why = if reasons.is_empty() { "no policy isolates either end".to_owned() } else { reasons.join("; ") };
                table.row([
                    probe.from.to_string().into(),
                    probe.to.to_string().into(),
                    port_name(probe.tried()).into(),
                    family_name(probe.family).into(),
                    expected.into(),
                    Cell::toned(seen, Tone::Alarm),
                    why.into(),
                ]);
            }
            Difference::Untried(line) => {
                let empty = Cell::default;
                table.row([line.as_str().into(), empty(), empty(), empty(), empty(), Cell::toned("never tried", Tone::Alarm), {
                    "nobody of this name, or there is no such port there".into()
                }]);
            }
        }
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::super::flow::tests::result;
    use super::*;
    use Family::{Ipv4, Ipv6};

    const FILE: &str = "
default: deny
probes:
  - {from: frontend/*, to: backend/api, port: 80, protocol: TCP, verdict: allow}
  - {from: node, to: '*', verdict: allow}
";

    fn differences(file: &str, results: &[ProbeResult]) -> Vec<Difference> {
        Expectations::parse(Path::new("expect.yaml"), file).unwrap().differences(results)
    }

    #[test]
    fn results_as_expected_differ_in_nothing() {
        let results = [
            result("frontend/web", "backend/api", Ipv4, None),
            result("frontend/web", "backend/api", Ipv6, None),
            result("guest/visitor", "backend/api", Ipv4, Some("default deny")),
            result("node", "backend/api", Ipv4, None),
        ];
        assert!(differences(FILE, &results).is_empty());
    }

    #[test]
    fn one_family_alone_can_differ() {
        let results = [
            result("frontend/web", "backend/api", Ipv4, None),
            result("frontend/web", "backend/api", Ipv6, Some("default deny")),
            result("node", "backend/api", Ipv4, None),
        ];
        let found = differences(FILE, &results);
        let text = rendered(&found, Paint::none());
        assert_eq!(found.len(), 1);
        assert!(text.contains("frontend/web  backend/api  TCP 80  ipv6    allow     not reached  ingress: default deny"), "{text}");
    }

    #[test]
    fn the_default_holds_for_probes_that_no_line_names() {
        let results = [result("guest/visitor", "backend/api", Ipv4, None)];
        assert!(matches!(&differences("default: deny", &results)[..], [Difference::Result { expected: Expected::Deny, .. }]));
        assert!(differences("default: allow", &results).is_empty());
    }

    #[test]
    fn without_a_default_nothing_is_expected_of_other_probes() {
        let file = "probes: [{from: a/x, to: b/y, verdict: allow}]";
        assert!(differences(file, &[result("a/x", "b/y", Ipv4, None), result("c/z", "b/y", Ipv4, None)]).is_empty());
    }

    #[test]
    fn an_echo_is_named_by_its_protocol_and_fits_lines_without_a_port() {
        let mut echo = result("a/x", "b/y", Ipv4, None);
        (echo.probe.protocol, echo.probe.port) = super::super::flow::ECHO;
        let results = [echo];
        for line in ["protocol: ICMP, verdict: allow", "verdict: allow"] {
            assert!(differences(&format!("probes: [{{from: a/x, to: b/y, {line}}}]"), &results).is_empty(), "{line}");
        }
        let found = differences("default: deny\nprobes: [{from: a/x, to: b/y, port: 80, verdict: allow}]", &results);
        let text = rendered(&found, Paint::none());
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words[..6], ["a/x", "b/y", "ICMP", "ipv4", "deny", "reached"]);
        assert!(text.contains("a/x -> b/y 80"), "a line with a port fits no echo: {text}");
    }

    #[test]
    fn the_first_line_that_matches_decides() {
        let file = "probes: [{from: a/x, to: b/y, verdict: deny}, {from: '*', to: b/y, verdict: allow}]";
        assert!(differences(file, &[result("a/x", "b/y", Ipv4, Some("r")), result("c/z", "b/y", Ipv4, None)]).is_empty());
    }

    #[test]
    fn a_line_that_matches_no_probe_is_a_difference() {
        let found = differences("probes: [{from: a/typo, to: b/y, port: 80, verdict: deny}]", &[result("a/x", "b/y", Ipv4, None)]);
        assert!(rendered(&found, Paint::none()).contains("a/typo -> b/y 80"));
    }

    #[test]
    fn of_a_service_it_can_be_expected_that_it_is_mixed_or_refused() {
        use super::super::service::tests::result as of_service;
        let (some, none) = ([("10.0.0.2", true), ("10.0.0.3", false)], []);
        for (targets, met, not_met) in
            [(&some[..], "mixed", ["allow", "deny", "refused"]), (&none[..], "refused", ["allow", "mixed", "mixed"])]
        {
            let differs = |word: &str| {
                let file = format!("probes: [{{from: a/x, to: svc/a/s, verdict: {word}}}]");
                !differences(&file, &[of_service(targets)]).is_empty()
            };
            assert!(!differs(met) && not_met.into_iter().all(differs), "{met}");
        }
        assert!(differences("default: deny", &[of_service(&[])]).is_empty(), "what is refused is not reached");
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_the_place() {
        for (file, message) in [
            ("default: maybe", "expect.yaml:1: default: unknown variant `maybe`, expected one of `allow`, `deny`, `mixed`, `refused`"),
            (
                "probes:\n  - {from: a/x, to: b/y, port: 70000, verdict: allow}",
                "expect.yaml:2: probes[0].port: 70000 is no port: ports are 1 to 65535",
            ),
            (
                "probes:\n  - {from: a/x, to: b/y, prot: 80, verdict: allow}",
                "expect.yaml:2: probes[0].prot: there is no such field in expectations",
            ),
            (
                "probes: [{from: a, to: b/y, verdict: allow}]",
                "expect.yaml:1: probes[0].from: \"a\" is neither namespace/pod, svc/namespace/service, node, node:NAME, outside nor *",
            ),
            (
                "probes: [{from: a/x, to: b/y/z, verdict: allow}]",
                "expect.yaml:1: probes[0].to: \"b/y/z\" is neither namespace/pod, svc/namespace/service, node, node:NAME, outside nor *",
            ),
            ("probes: [{from: a/x, to: b/y}]", "expect.yaml:1: probes[0]: missing field `verdict`"),
            ("{}", "expect.yaml: nothing is expected: give `default:` or lines under `probes:`"),
            ("", "expect.yaml:1: holds 0 documents where one is needed"),
            ("probes: {", "expect.yaml:2: no valid YAML"),
        ] {
            let problem =
                Expectations::parse(Path::new("expect.yaml"), file).err().unwrap_or_else(|| panic!("accepted: {file}")).to_string();
            assert!(problem.starts_with(message), "{file}: {problem}");
        }
    }

    #[test]
    fn patterns_match_as_documented() {
        use super::super::flow::tests::party;
        for (pattern, name, expected) in [
            ("*", "node", true),
            ("*", "a/b", true),
            ("*/*", "a/b", true),
            ("*/*", "outside", false),
            ("a/*", "a/b", true),
            ("a/*", "ab/b", false),
            ("a/b", "a/b", true),
            ("outside", "outside", true),
            ("outside", "node", false),
            ("node", "node:left", true),
            ("node:left", "node:left", true),
            ("node:left", "node:right", false),
            ("*", "node:left", true),
            ("*", "svc/a/b", true),
            ("*/*", "svc/a/b", false),
            ("a/b", "svc/a/b", false),
            ("svc/a/b", "svc/a/b", true),
            ("svc/*/*", "svc/a/b", true),
            ("svc/a/*", "svc/b/b", false),
            ("svc/a/b", "a/b", false),
            ("svc/b", "svc/b", true),
        ] {
            let matches = Pattern::try_from(pattern.to_owned()).unwrap().matches(&party(name));
            assert_eq!(matches, expected, "{pattern} {name}");
        }
    }
}
