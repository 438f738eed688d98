//! What a truth table should be, in sentences. They know nothing of policies.
//!
//! Everything is reached but for what a line takes away; a pod always reaches itself. The lines are
//!
//! * `to WHOM only from WHO [on PORTS] [by FAMILY] [or from WHO ...]`
//! * `from WHO only to WHOM [on PORTS] [by FAMILY] [or to WHOM ...]`
//! * `never from WHO to WHOM [on PORTS] [by FAMILY]`
//!
//! with pods as `x/a`, `x/*`, `*/a`, `*/*`, `nobody`, several with commas; ports as `tcp/80,echo`, without `on` every
//! port and echo; `v4` or `v6`, without `by` both.

use crate::table::{Name, Port, Question};
use anyhow::{Context, Result, bail, ensure};

/// What should be reached.
#[derive(Clone, Debug, Default)]
pub struct Claims(Vec<Claim>);

#[derive(Clone, Debug)]
enum Claim {
    /// To these pods, only what one of the alternatives says.
    OnlyFrom(Pods, Vec<Way>),
    /// From these pods, only what one of the alternatives says.
    OnlyTo(Pods, Vec<Way>),
    /// From these pods, nothing of this.
    Never(Pods, Way),
}

#[derive(Clone, Debug)]
struct Pods(Vec<Name>);

/// Pods at the other end, by some ports and families.
#[derive(Clone, Debug)]
struct Way {
    pods: Pods,
    ports: Vec<Port>,
    families: Vec<bool>,
}

impl Claims {
    /// Reads the sentences, one a line; none: all is reached.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(|line| Claim::parse(line).with_context(|| format!("in `{line}`"))).collect::<Result<_>>().map(Self)
    }

    /// Whether the cell should say "reached".
    pub fn reached(&self, question: Question) -> bool {
        question.from == question.to
            || self.0.iter().all(|claim| match claim {
                Claim::OnlyFrom(to, ways) => !to.has(question.to) || ways.iter().any(|way| way.covers(question.from, question)),
                Claim::OnlyTo(from, ways) => !from.has(question.from) || ways.iter().any(|way| way.covers(question.to, question)),
                Claim::Never(from, way) => !(from.has(question.from) && way.covers(question.to, question)),
            })
    }
}

impl Claim {
    fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words.as_slice() {
            ["to", whom, "only", ways @ ..] => Self::OnlyFrom(Pods::parse(whom)?, Way::alternatives("from", ways)?),
            ["from", who, "only", ways @ ..] => Self::OnlyTo(Pods::parse(who)?, Way::alternatives("to", ways)?),
            ["never", "from", who, way @ ..] => Self::Never(Pods::parse(who)?, Way::parse("to", way)?),
            _ => bail!("not one of the three sentences"),
        })
    }
}

impl Pods {
    fn parse(text: &str) -> Result<Self> {
        if text == "nobody" {
            return Ok(Self(Vec::new()));
        }
        let mut pods = Vec::new();
        for part in text.split(',') {
            let (namespace, pod) = part.split_once('/').with_context(|| format!("`{part}` names no pods"))?;
            let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
            let before = pods.len();
            pods.extend(Name::all().filter(|name| fits(namespace, name.namespace) && fits(pod, name.pod)));
            ensure!(pods.len() > before, "there is no pod `{part}`");
        }
        Ok(Self(pods))
    }

    fn has(&self, name: Name) -> bool {
        self.0.contains(&name)
    }
}

impl Way {
    /// `DIRECTION PODS ... or DIRECTION PODS ...`
    fn alternatives(direction: &str, words: &[&str]) -> Result<Vec<Self>> {
        words.split(|word| *word == "or").map(|words| Self::parse(direction, words)).collect()
    }

    fn parse(direction: &str, words: &[&str]) -> Result<Self> {
        let [first, pods, rest @ ..] = words else { bail!("`{direction} PODS` is missing") };
        ensure!(*first == direction, "`{first}` stands where `{direction}` should");
        let mut way = Self { pods: Pods::parse(pods)?, ports: Port::ALL.to_vec(), families: vec![false, true] };
        let (pairs, []) = rest.as_chunks::<2>() else { bail!("a word too many or too few") };
        for [word, value] in pairs {
            match *word {
                "on" => {
                    let port = |name: &str| Port::ALL.into_iter().find(|port| port.name() == name);
                    way.ports =
                        value.split(',').map(|name| port(name).with_context(|| format!("no port `{name}`"))).collect::<Result<_>>()?;
                }
                "by" if *value == "v4" => way.families = vec![false],
                "by" if *value == "v6" => way.families = vec![true],
                _ => bail!("`{word} {value}` is not understood"),
            }
        }
        Ok(way)
    }

    fn covers(&self, other_end: Name, question: Question) -> bool {
        self.pods.has(other_end) && self.ports.contains(&question.port) && self.families.contains(&question.ipv6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(claims: &str, from: &str, to: &str, port: Port, ipv6: bool) -> bool {
        let question = Question { from: Name::parse(from).unwrap(), to: Name::parse(to).unwrap(), port, ipv6 };
        Claims::parse(claims).unwrap().reached(question)
    }

    #[test]
    fn without_a_claim_everybody_reaches_everybody_and_a_pod_itself_always() {
        assert!(Question::all().all(|question| Claims::default().reached(question)));
        assert!(says("to */* only from nobody", "x/a", "x/a", Port::Tcp80, false));
        assert!(!says("to */* only from nobody", "x/a", "x/b", Port::Tcp80, false));
    }

    #[test]
    fn only_from_restricts_whom_it_names_to_the_alternatives() {
        let claims = "to x/a,x/b only from y/* on tcp/80 or from z/c by v6";
        assert!(says(claims, "y/b", "x/a", Port::Tcp80, false));
        assert!(!says(claims, "y/b", "x/a", Port::Tcp81, false));
        assert!(!says(claims, "y/b", "x/a", Port::Sctp80, false));
        assert!(says(claims, "z/c", "x/b", Port::Echo, true));
        assert!(!says(claims, "z/c", "x/b", Port::Echo, false));
        assert!(!says(claims, "x/c", "x/b", Port::Tcp80, false));
        assert!(says(claims, "x/b", "x/c", Port::Tcp80, false));
    }

    #[test]
    fn all_lines_hold_at_once() {
        let claims = "from x/a only to y/*\nto y/a only from x/b\nnever from z/* to z/c on udp/80";
        assert!(says(claims, "x/a", "y/b", Port::Tcp80, false));
        assert!(!says(claims, "x/a", "y/a", Port::Tcp80, false));
        assert!(!says(claims, "x/a", "z/a", Port::Tcp80, false));
        assert!(says(claims, "x/b", "y/a", Port::Tcp80, false));
        assert!(!says(claims, "z/a", "z/c", Port::Udp80, false));
        assert!(says(claims, "z/a", "z/c", Port::Tcp80, false));
        assert!(says(claims, "z/a", "z/c", Port::Sctp80, false), "what is said of UDP says nothing of SCTP");
        assert!(!says(claims, "x/a", "z/a", Port::Sctp80, true), "without `on` it is said of every port");
    }

    #[test]
    fn what_is_not_one_of_the_sentences_is_refused() {
        for wrong in
            ["x/a only from y/a", "to x/d only from y/a", "to x/a only to y/a", "to x/a only from y/a on tcp/82", "to x/a only from y/a by"]
        {
            assert!(Claims::parse(wrong).is_err(), "{wrong}");
        }
    }
}
