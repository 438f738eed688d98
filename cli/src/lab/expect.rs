//! Expectations: who should reach whom.

use super::flow::{Party, Probe, ProbeResult, family_name};
use crate::table::{Cell, Paint, Table, Tone};
use palisade_identity::Protocol;
use palisade_protocol::Family;
use serde::Deserialize;
use std::path::Path;

/// Why a file of expectations cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// It cannot be read.
    #[error("cannot read the expectations {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it should be; line and column are in the problem.
    #[error("{path}: {problem}")]
    Meaning {
        /// The file.
        path: String,
        /// What is wrong, and where.
        problem: String,
    },
}

/// What is expected of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It is reached.
    Allow,
    /// It is not.
    Deny,
}

/// A file of expectations.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
struct Line {
    from: String,
    to: String,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    family: Option<Family>,
    verdict: Expected,
}

impl Line {
    fn matches(&self, probe: &Probe) -> bool {
        matches(&self.from, &probe.from)
            && matches(&self.to, &probe.to)
            && self.port.is_none_or(|port| port == probe.port)
            && self.protocol.is_none_or(|protocol| protocol == probe.protocol)
            && self.family.is_none_or(|family| family == probe.family)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)?;
        self.protocol.map_or(Ok(()), |protocol| write!(f, " {protocol}"))?;
        self.port.map_or(Ok(()), |port| write!(f, " {port}"))?;
        self.family.map_or(Ok(()), |family| write!(f, " {}", family_name(family)))
    }
}

/// `namespace/name`, `namespace/*`, `*/*` (every pod), `node`, `outside`, or `*` (everybody).
fn matches(pattern: &str, party: &Party) -> bool {
    match (pattern, party) {
        ("*", _) => true,
        (_, Party::Pod(name)) => pattern
            .split_once('/')
            .is_some_and(|(namespace, pod)| (namespace == "*" || namespace == name.namespace) && (pod == "*" || pod == name.name)),
        _ => pattern == party.to_string(),
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
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ExpectError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ExpectError::Read { path: name.clone(), source })?;
        Self::parse(&text).map_err(|problem| ExpectError::Meaning { path: name, problem })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let options = serde_saphyr::options! { with_snippet: false };
        let expectations: Self = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        if expectations.default.is_none() && expectations.probes.is_empty() {
            return Err("nothing is expected: give `default:` or lines under `probes:`".into());
        }
        for (index, line) in expectations.probes.iter().enumerate() {
            for (field, pattern) in [("from", &line.from), ("to", &line.to)] {
                let parts = pattern.split('/').count();
                let known =
                    ["*", "node", "outside"].contains(&pattern.as_str()) || parts == 2 && pattern.split('/').all(|part| !part.is_empty());
                if !known {
                    return Err(format!("probes[{index}].{field}: {pattern:?} is neither namespace/pod, node, outside nor *"));
                }
            }
        }
        Ok(expectations)
    }

    /// What is not as expected, in the order of the results; lines that match no probe come last.
    pub fn differences(&self, results: &[ProbeResult]) -> Vec<Difference> {
        let mut differences = Vec::new();
        for result in results {
            let line = self.probes.iter().find(|line| line.matches(&result.probe));
            let Some(expected) = line.map(|line| line.verdict).or(self.default) else { continue };
            if (expected == Expected::Allow) != result.reached {
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
                let (expected, seen) = match expected {
                    Expected::Allow => ("allow", "not reached"),
                    Expected::Deny => ("deny", "reached"),
                };
                let reasons: Vec<String> = match &result.disagreement {
                    Some(how) => vec![how.clone()],
                    None if result.reached => [("egress", &result.egress), ("ingress", &result.ingress)]
                        .into_iter()
                        .filter(|(_, side)| !side.reason.is_empty())
                        .map(|(direction, side)| format!("{direction}: {}", side.reason))
                        .collect(),
                    None => result.denials().map(|(direction, side)| format!("{direction}: {}", side.reason)).collect(),
                };
                let why = if reasons.is_empty() { "no policy isolates either end".to_owned() } else { reasons.join("; ") };
                table.row([
                    probe.from.to_string().into(),
                    probe.to.to_string().into(),
                    format!("{} {}", probe.protocol, probe.port).into(),
                    family_name(probe.family).into(),
                    expected.into(),
                    Cell::toned(seen, Tone::Alarm),
                    why.into(),
                ]);
            }
            Difference::Untried(line) => {
                let empty = Cell::default;
                table.row([line.as_str().into(), empty(), empty(), empty(), empty(), Cell::toned("never tried", Tone::Alarm), {
                    "no pod of this name, or it does not declare this port".into()
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
        Expectations::parse(file).unwrap().differences(results)
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
    fn a_file_that_is_wrong_is_refused_with_the_place() {
        for (file, part) in [
            ("default: maybe", "maybe"),
            ("probes:\n  - {from: a/x, to: b/y, port: 70000, verdict: allow}", "line 2"),
            ("probes:\n  - {from: a/x, to: b/y, prot: 80, verdict: allow}", "prot"),
            ("probes: [{from: a, to: b/y, verdict: allow}]", "probes[0].from"),
            ("probes: [{from: a/x, to: b/y/z, verdict: allow}]", "probes[0].to"),
            ("probes: [{from: a/x, to: b/y}]", "verdict"),
            ("{}", "nothing is expected"),
        ] {
            let problem = Expectations::parse(file).err().unwrap_or_else(|| panic!("accepted: {file}"));
            assert!(problem.contains(part), "{file}: {problem}");
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
        ] {
            assert_eq!(matches(pattern, &party(name)), expected, "{pattern} {name}");
        }
    }
}
