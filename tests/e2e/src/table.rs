//! Truth tables: nine pods in three namespaces, who reaches whom, by every port and family.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The namespaces, as the tables call them.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// IPv4, and IPv6.
pub const FAMILIES: [bool; 2] = [false, true];
/// The pods of each namespace.
pub const PODS: [&str; 3] = ["a", "b", "c"];

/// What a pod is asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// TCP 80.
    Tcp80,
    /// TCP 81.
    Tcp81,
    /// UDP 80.
    Udp80,
    /// SCTP 80.
    Sctp80,
    /// An ICMP echo, which has no port.
    Echo,
}

impl Port {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tcp80, Self::Tcp81, Self::Udp80, Self::Sctp80, Self::Echo];

    /// As the claims and the prober call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp80 => "tcp/80",
            Self::Tcp81 => "tcp/81",
            Self::Udp80 => "udp/80",
            Self::Sctp80 => "sctp/80",
            Self::Echo => "echo",
        }
    }
}

/// A pod of the tables, `x/a` to `z/c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its own name.
    pub pod: &'static str,
}

impl Name {
    /// All nine, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMESPACES.into_iter().flat_map(|namespace| PODS.into_iter().map(move |pod| Self { namespace, pod }))
    }

    /// The pod that a text such as `x/a` names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::all().find(|name| name.to_string() == text)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// One cell: does `from` reach `to` so?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Who asks.
    pub from: Name,
    /// Who is asked.
    pub to: Name,
    /// By which port.
    pub port: Port,
    /// At which of its addresses.
    pub ipv6: bool,
}

impl Question {
    /// Every cell of a table of both families.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::of(&FAMILIES)
    }

    /// Every cell of a table of these families.
    pub fn of(families: &[bool]) -> impl Iterator<Item = Self> {
        let ways = move || Port::ALL.into_iter().flat_map(move |port| families.iter().map(move |ipv6| (port, *ipv6)));
        let pairs = || Name::all().flat_map(|from| Name::all().map(move |to| (from, to)));
        pairs().flat_map(move |(from, to)| ways().map(move |(port, ipv6)| Self { from, to, port, ipv6 }))
    }
}

/// What was found: `Ok` whether it is reached, `Err` what else came of it.
pub type Found = Result<bool, String>;

/// The cells of these families in which the two differ; empty when all is as expected.
pub fn differences(families: &[bool], expected: impl Fn(Question) -> bool, observed: &BTreeMap<Question, Found>) -> Vec<Question> {
    Question::of(families).filter(|question| observed.get(question) != Some(&Ok(expected(*question)))).collect()
}

/// The tables of the ports and families in which the two differ.
pub fn print(families: &[bool], expected: impl Fn(Question) -> bool, observed: &BTreeMap<Question, Found>) -> String {
    let mut text = String::from(
        "rows ask, columns are asked; as expected: `.` reached, `X` not; otherwise: `OPEN` reached and should not be, `shut` not reached and should be, `?` see below\n",
    );
    let mut strange = Vec::new();
    for port in Port::ALL {
        for &ipv6 in families {
            let of_table = |question: &Question| question.port == port && question.ipv6 == ipv6;
            if !differences(families, &expected, observed).iter().any(of_table) {
                continue;
            }
            let _ = write!(text, "\n{:<11}", format!("{} {}", port.name(), if ipv6 { "v6" } else { "v4" }));
            Name::all().for_each(|to| {
                let _ = write!(text, "{:>5}", to.to_string());
            });
            for from in Name::all() {
                let _ = write!(text, "\n{:<11}", from.to_string());
                for to in Name::all() {
                    let question = Question { from, to, port, ipv6 };
                    let cell = match (expected(question), observed.get(&question)) {
                        (true, Some(Ok(true))) => ".",
                        (false, Some(Ok(false))) => "X",
                        (false, Some(Ok(true))) => "OPEN",
                        (true, Some(Ok(false))) => "shut",
                        (_, other) => {
                            let said = other.and_then(|found| found.as_ref().err()).map_or("was not asked", String::as_str);
                            strange.push(format!("{from} -> {to} {} {}: {said}", port.name(), if ipv6 { "v6" } else { "v4" }));
                            "?"
                        }
                    };
                    let _ = write!(text, "{cell:>5}");
                }
            }
            text.push('\n');
        }
    }
    for line in strange {
        let _ = write!(text, "\n{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_nine_by_nine_pods_by_five_ports_and_two_families() {
        assert_eq!(Question::all().count(), 9 * 9 * 5 * 2);
        assert!(Question::of(&[true]).all(|question| question.ipv6) && Question::of(&[true]).count() == 9 * 9 * 5);
        assert_eq!(Name::parse("y/c").map(|name| name.to_string()), Some("y/c".into()));
        assert_eq!(Name::parse("y/d"), None);
    }

    #[test]
    fn every_kind_of_difference_is_found_and_printed_and_only_the_tables_that_differ_are() {
        let cell = |from, to, port| Question { from: Name::parse(from).unwrap(), to: Name::parse(to).unwrap(), port, ipv6: false };
        let (open, shut, strange) = (cell("x/a", "y/a", Port::Tcp80), cell("x/b", "y/a", Port::Tcp80), cell("z/c", "y/b", Port::Udp80));
        let expected = |question| question != open;
        let mut observed: BTreeMap<Question, Found> = Question::all().map(|question| (question, Ok(question != open))).collect();
        assert_eq!(differences(&FAMILIES, expected, &observed), []);
        observed.insert(open, Ok(true));
        observed.insert(shut, Ok(false));
        observed.insert(strange, Err("refused".into()));
        assert_eq!(differences(&FAMILIES, expected, &observed), [open, shut, strange]);
        let text = print(&FAMILIES, expected, &observed);
        for part in ["tcp/80 v4", "OPEN", "shut", "udp/80 v4", "z/c -> y/b udp/80 v4: refused"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(!text.contains("v6") && !text.contains("tcp/81"), "{text}");
        observed.remove(&shut);
        assert_eq!(differences(&FAMILIES, expected, &observed), [open, shut, strange], "what was not asked is a difference");
    }
}
