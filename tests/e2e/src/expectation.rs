//! The expectations of an example: the file that `palisade lab --expect` reads, read here on its own.

use crate::probe::{Outcome, Probe};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// Who should reach whom.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    #[serde(default)]
    default: Option<Verdict>,
    #[serde(default)]
    probes: Vec<Line>,
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is reached.
    Allow,
    /// It is not.
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    from: String,
    to: String,
    port: Option<u16>,
    protocol: Option<String>,
    family: Option<String>,
    verdict: Verdict,
}

impl Expectations {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// What is expected of a probe between the pods that the example calls `from` and `to` (`namespace/name`): the
    /// first line that matches decides.
    pub fn of(&self, from: &str, to: &str, probe: &Probe) -> Option<Verdict> {
        let family = if probe.address.is_ipv6() { "ipv6" } else { "ipv4" };
        let line = self.probes.iter().find(|line| {
            matches(&line.from, from)
                && matches(&line.to, to)
                && line.port.is_none_or(|port| port == probe.port)
                && line.protocol.as_deref().is_none_or(|protocol| protocol.eq_ignore_ascii_case(&probe.protocol))
                && line.family.as_deref().is_none_or(|named| named.eq_ignore_ascii_case(family))
        });
        line.map(|line| line.verdict).or(self.default)
    }
}

impl Verdict {
    /// Whether this is what came of it. A refusal is silent; anything else is a fault of another kind.
    pub fn holds(self, outcome: &Outcome) -> bool {
        match self {
            Self::Allow => *outcome == Outcome::Reached,
            Self::Deny => *outcome == Outcome::Silent,
        }
    }
}

/// `namespace/name`, `namespace/*`, `*/*`, or `*`.
fn matches(pattern: &str, name: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let (Some((namespace, pod)), Some((own_namespace, own_pod))) = (pattern.split_once('/'), name.split_once('/')) else { return false };
    (namespace == "*" || namespace == own_namespace) && (pod == "*" || pod == own_pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Pod;

    fn probe(port: u16, protocol: &str) -> Probe {
        let from = Pod { namespace: "a".into(), name: "x".into(), node: "n".into(), addresses: vec![], ports: vec![] };
        Probe { from, to: "b/y".into(), address: "10.0.0.1".parse().unwrap(), port, protocol: protocol.into() }
    }

    #[test]
    fn the_first_line_that_matches_decides_and_the_default_holds_for_the_rest() {
        let text = "default: deny\nprobes:\n- {from: a/*, to: b/y, port: 80, protocol: TCP, verdict: allow}\n- {from: '*', to: b/*, port: 80, verdict: deny}\n- {from: a/x, to: '*/*', port: 53, family: ipv4, verdict: allow}\n";
        let expectations: Expectations = serde_saphyr::from_str(text).unwrap();
        assert_eq!(expectations.of("a/x", "b/y", &probe(80, "TCP")), Some(Verdict::Allow));
        assert_eq!(expectations.of("a/x", "b/y", &probe(80, "UDP")), Some(Verdict::Deny));
        assert_eq!(expectations.of("a/x", "c/y", &probe(53, "UDP")), Some(Verdict::Allow));
        assert_eq!(expectations.of("a/x", "c/y", &probe(54, "UDP")), Some(Verdict::Deny));
    }
}
