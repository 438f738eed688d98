//! What the status of an object says: its conditions, from the facts.

use crate::index::{Kind, Refused};
use crate::problem::Problem;
use crate::report::Enforcement;
use std::fmt::Write;

/// What is said of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// It can be used as it is written.
    Accepted,
    /// Every node enforces its present version as it is written.
    Enforced,
}

/// Why a condition is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Accepted: yes.
    Accepted,
    /// Not accepted: a field is wrong.
    InvalidField,
    /// Not accepted: a field asks for what this version cannot do.
    Unsupported,
    /// Enforced: by every node that reports.
    AllNodes,
    /// Not enforced: not every node has come to it.
    Pending,
    /// Not enforced: the maps of a node have no room for it.
    DoesNotFit,
    /// Not enforced: it was not accepted; something else stands in its place.
    NotAccepted,
    /// Not enforced: it is in audit mode, and only says what it would do.
    Audit,
    /// Nobody knows whether it is enforced: not every node was heard of, and none that was lacks it. No status says so, for there a
    /// node that never reported does not count; who asks an agent is told.
    Unknown,
}

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is said.
    pub of: ConditionType,
    /// Whether it holds, as far as is known.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// The same for people.
    pub message: String,
}

/// What the conditions of an object depend on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The generation that all of this is about, where the object has one.
    pub generation: Option<i64>,
    /// Why it cannot be used as it is written.
    pub refused: Option<&'a Refused>,
    /// Whether it is in audit mode.
    pub audit: bool,
    /// What the nodes say of it.
    pub enforcement: &'a Enforcement,
    /// How many pods and addresses it is about.
    pub counts: Counts,
}

/// How many pods and addresses an object is about, as they were last counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Pods that a policy selects, or an identity matches.
    pub pods: usize,
    /// Addresses that an identity matches.
    pub addresses: usize,
}

impl ConditionType {
    /// Its name in a status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Enforced => "Enforced",
        }
    }
}

impl Condition {
    /// `True`, `False` or `Unknown`.
    pub fn status(&self) -> &'static str {
        match self.reason {
            Reason::Unknown => "Unknown",
            _ if self.holds => "True",
            _ => "False",
        }
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 9] = [
        Self::Accepted,
        Self::InvalidField,
        Self::Unsupported,
        Self::AllNodes,
        Self::Pending,
        Self::DoesNotFit,
        Self::NotAccepted,
        Self::Audit,
        Self::Unknown,
    ];

    /// Its name in a status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::InvalidField => "InvalidField",
            Self::Unsupported => "Unsupported",
            Self::AllNodes => "AllNodes",
            Self::Pending => "Pending",
            Self::DoesNotFit => "DoesNotFit",
            Self::NotAccepted => "NotAccepted",
            Self::Audit => "Audit",
            Self::Unknown => "Unknown",
        }
    }

    /// The reason of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// The two conditions of an object: whether it is accepted, and whether it is enforced.
pub fn conditions(facts: &Facts<'_>) -> [Condition; 2] {
    [accepted(facts), enforced(facts)]
}

fn accepted(facts: &Facts<'_>) -> Condition {
    let of = ConditionType::Accepted;
    match facts.refused {
        None => Condition { of, holds: true, reason: Reason::Accepted, message: "it can be used as it is written".to_owned() },
        Some(refused) => {
            let reason = if matches!(refused.error.problem, Problem::DomainNames) { Reason::Unsupported } else { Reason::InvalidField };
            Condition { of, holds: false, reason, message: format!("{} ({})", refused.error, instead(facts, refused)) }
        }
    }
}

fn enforced(facts: &Facts<'_>) -> Condition {
    let told = facts.enforcement;
    let (reason, message) = if let Some(refused) = facts.refused {
        (Reason::NotAccepted, format!("not as it is written: {}; {}", instead(facts, refused), nodes(facts)))
    } else if told.exception_count > 0 {
        let named = told.exceptions.iter().map(|(node, reason)| format!("{node}: {reason}"));
        (Reason::DoesNotFit, format!("{}; {}", nodes(facts), few(named, told.exception_count, "; ")))
    } else if told.nodes == 0 {
        (Reason::Pending, "no node has reported yet".to_owned())
    } else if told.behind_count > 0 {
        (Reason::Pending, format!("{}; not yet: {}", nodes(facts), few(told.behind.iter().cloned(), told.behind_count, ", ")))
    } else if facts.audit {
        (Reason::Audit, format!("in audit mode verdicts are as if it were absent; {}", nodes(facts)))
    } else if let Some(doubt) = &told.doubt {
        (Reason::Unknown, format!("{}; {doubt}", nodes(facts)))
    } else {
        (Reason::AllNodes, nodes(facts))
    };
    let mut message = message;
    if told.silent_count > 0 {
        // Writing to a text cannot fail.
        let _ = write!(message, "; no report from: {}", few(told.silent.iter().cloned(), told.silent_count, ", "));
    }
    Condition { of: ConditionType::Enforced, holds: reason == Reason::AllNodes, reason, message }
}

/// What is done about an object that cannot be used as it is written.
fn instead(facts: &Facts<'_>, refused: &Refused) -> String {
    // Whatever stands in its place, verdicts do not depend on it.
    if facts.audit { "it is in audit mode: verdicts are as if it were absent".to_owned() } else { refused.instead.to_string() }
}

/// How many nodes have it, and how many pods it is about.
fn nodes(facts: &Facts<'_>) -> String {
    let told = facts.enforcement;
    let verb = match (facts.refused.is_some() || facts.audit, told.enforcing) {
        (true, 1) => "knows",
        (true, _) => "know",
        (false, 1) => "enforces",
        (false, _) => "enforce",
    };
    let version = facts.generation.map_or_else(|| "this version".to_owned(), |generation| format!("generation {generation}"));
    let Counts { pods, addresses } = facts.counts;
    let plural = |count: usize, one: &'static str, many: &'static str| if count == 1 { one } else { many };
    let about = match facts.kind {
        Kind::Identity => {
            format!("{pods} {} and {addresses} {} matched", plural(pods, "pod", "pods"), plural(addresses, "address", "addresses"))
        }
        _ => format!("{pods} {} selected", plural(pods, "pod", "pods")),
    };
    format!("{} of {} {} {verb} {version}; {about}", told.enforcing, told.nodes, plural(told.nodes, "node", "nodes"))
}

/// Texts in one line, with how many more there are.
fn few(named: impl ExactSizeIterator<Item = String>, count: usize, between: &str) -> String {
    let more = count - named.len();
    let mut text = named.collect::<Vec<_>>().join(between);
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}
