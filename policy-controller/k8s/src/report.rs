//! What each node tells of what it enforces, and what all of them say of one object.
//!
//! A report names no object but those that are not in force as they are written, so it does not grow with the number of policies.

use crate::index::{Digests, Kind, Versions};
use palisade_policy::model::{ObjectName, PolicyName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many policies a report names at most: with the longest names they fill most of what the annotations of an object may hold (256 KiB).
const MOST_EXCEPTIONS: usize = 400;
/// How many of them with the reason.
const MOST_REASONS: usize = 16;
/// What is said of the others.
const NO_REASON: &str = "held back; the log of its agent says why";
/// How long a text of a report may be, in characters.
const LONGEST_TEXT: usize = 300;
/// How many nodes are named where many could be.
const NAMED: usize = 3;

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Which versions of all objects of each kind are compiled into the kernel of the node.
    pub in_force: Digests,
    /// Policies among them that are not in force as they are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
    /// How many more of these there are: where there are any, nobody can tell of a policy that it is in force there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_exceptions: usize,
    /// Why the node does not enforce what came after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A policy that is not in force as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exception {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub object: ObjectName,
    /// Why, and what is in force instead.
    pub reason: String,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Report {
    /// The report of a node that has `in_force` in its kernel, with the policies that do not fit.
    pub fn new<'a>(in_force: Digests, held: impl IntoIterator<Item = (&'a PolicyName, &'a String)>, problem: Option<&str>) -> Self {
        let mut exceptions: Vec<Exception> = held
            .into_iter()
            .enumerate()
            .map(|(number, (name, reason))| {
                let reason = if number < MOST_REASONS { cut(reason) } else { NO_REASON.to_owned() };
                Exception { kind: name.kind.into(), object: name.object.clone(), reason }
            })
            .collect();
        let more_exceptions = exceptions.len().saturating_sub(MOST_EXCEPTIONS);
        exceptions.truncate(MOST_EXCEPTIONS);
        Self { in_force, exceptions, more_exceptions, problem: problem.map(cut) }
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST_TEXT {
        return text.to_owned();
    }
    text.chars().take(LONGEST_TEXT - 1).chain(['…']).collect()
}

/// The reports of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    nodes: BTreeMap<String, Told>,
    /// How many of them are nodes that are known.
    counting: usize,
    /// Nodes that are known and have not reported.
    silent: BTreeSet<String>,
    /// By kind, how far the nodes are, in ascending order; those of which that is not known are left out.
    ranks: BTreeMap<Kind, Vec<u64>>,
    /// By object, the nodes on which it is not in force as it is written.
    exceptions: BTreeMap<(Kind, ObjectName), Vec<(String, String)>>,
    /// The nodes that have more of them than they name.
    unnamed: BTreeSet<String>,
    doubt: Option<String>,
}

#[derive(Clone, Debug)]
struct Told {
    report: Report,
    /// When the report counts as old, in seconds since the Unix epoch.
    until: i64,
    /// How far the node is with each kind: [`Versions::step`]. Absent: not known.
    steps: BTreeMap<Kind, u64>,
    /// Whether the node is known, and the report recent.
    counts: bool,
    late: bool,
}

/// What the nodes say of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// Nodes that enforce the present version as it is written.
    pub enforcing: usize,
    /// Nodes that report.
    pub nodes: usize,
    /// Of those that have not come to the present version, a few, with what is known of why.
    pub behind: Vec<String>,
    /// How many these are.
    pub behind_count: usize,
    /// Of those on which it is not in force as it is written, a few, each with the reason.
    pub exceptions: Vec<(String, String)>,
    /// How many these are.
    pub exception_count: usize,
    /// Of the nodes that have never reported, a few.
    pub silent: Vec<String>,
    /// How many these are.
    pub silent_count: usize,
    /// Why nobody knows of all nodes what they enforce.
    pub doubt: Option<String>,
}

impl Reports {
    /// Takes the report of a node; it counts as old after `until`, in seconds since the Unix epoch. Tells whether it says anything new.
    pub fn take(&mut self, node: &str, report: Report, until: i64) -> bool {
        match self.nodes.get_mut(node) {
            Some(told) => {
                told.until = until;
                std::mem::replace(&mut told.report, report) != told.report
            }
            None => {
                let told = Told { report, until, steps: BTreeMap::new(), counts: false, late: false };
                self.nodes.insert(node.to_owned(), told);
                true
            }
        }
    }

    /// Forgets the reports of all nodes but these. Tells whether there were any.
    pub fn retain(&mut self, nodes: &BTreeSet<String>) -> bool {
        let before = self.nodes.len();
        self.nodes.retain(|node, _| nodes.contains(node));
        before != self.nodes.len()
    }

    /// Forgets the report of a node.
    pub fn forget(&mut self, node: &str) -> bool {
        self.nodes.remove(node).is_some()
    }

    /// Whether the report of a node is old now that was not, or is not any more.
    pub fn aged(&self, now: i64) -> bool {
        self.nodes.values().any(|told| told.late != (told.until < now))
    }

    /// Compares the reports with the versions that are known here. `nodes` are the nodes of the cluster: the report of one that is gone says
    /// nothing. A node of which it cannot be told any more how far it is (it is ahead, or far behind) is where it was.
    pub fn compare<'a>(&mut self, versions: &Versions, nodes: impl IntoIterator<Item = &'a String>, now: i64) {
        let mut silent: BTreeSet<String> = nodes.into_iter().cloned().collect();
        self.ranks = Versions::KINDS.into_iter().map(|kind| (kind, Vec::new())).collect();
        self.exceptions.clear();
        self.unnamed.clear();
        for (node, told) in &mut self.nodes {
            told.counts = silent.remove(node);
            told.late = told.until < now;
            if !told.counts {
                continue;
            }
            for (kind, ranks) in &mut self.ranks {
                let digest = told.report.in_force.get(kind).copied().unwrap_or_default();
                if let Some(step) = versions.step(*kind, digest) {
                    told.steps.insert(*kind, step);
                }
                ranks.extend(told.steps.get(kind));
            }
            if told.report.more_exceptions > 0 {
                self.unnamed.insert(node.clone());
            }
            for Exception { kind, object, reason } in &told.report.exceptions {
                // A report of an older version says nothing of this one.
                let present =
                    versions.of(*kind, object).is_some_and(|version| told.steps.get(kind).is_some_and(|step| *step >= version.step));
                if present {
                    self.exceptions.entry((*kind, object.clone())).or_default().push((node.clone(), reason.clone()));
                }
            }
        }
        self.ranks.values_mut().for_each(|ranks| ranks.sort_unstable());
        self.counting = self.nodes.values().filter(|told| told.counts).count();
        self.silent = silent;
    }

    /// The nodes that are known and have not reported.
    pub fn silent(&self) -> &BTreeSet<String> {
        &self.silent
    }

    /// Nobody knows of all nodes what they enforce: then nothing counts as enforced by all of them.
    pub fn doubt(&mut self, why: impl Into<String>) {
        self.doubt = Some(why.into());
    }

    /// What the nodes say of the version of an object that became known by the change `step` of its kind. `vouched`: somebody has made
    /// sure before that all nodes enforce it; then those count of which it is not known how far they are.
    pub fn of(&self, kind: Kind, object: &ObjectName, step: u64, vouched: bool) -> Enforcement {
        let ranks = self.ranks.get(&kind).map(Vec::as_slice).unwrap_or_default();
        let nodes = self.counting;
        let exceptions = self.exceptions.get(&(kind, object.clone())).map(Vec::as_slice).unwrap_or_default();
        let unknown = nodes - ranks.len();
        let there = ranks.len() - ranks.partition_point(|rank| *rank < step) + if vouched { unknown } else { 0 };
        let behind = self.nodes.iter().filter(|(_, told)| told.counts && told.steps.get(&kind).map_or(!vouched, |rank| *rank < step)).map(
            |(node, told)| match (told.late, &told.report.problem) {
                (true, _) => format!("{node} (does not report)"),
                (false, Some(problem)) => format!("{node} ({problem})"),
                (false, None) => node.clone(),
            },
        );
        // It may be one of those that a node does not name.
        let unnamed: Vec<&str> =
            self.unnamed.iter().filter(|node| !exceptions.iter().any(|(named, _)| named == *node)).map(String::as_str).collect();
        let perhaps = || {
            format!(
                "more policies than they can name are held back by: {}",
                unnamed.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ")
            )
        };
        Enforcement {
            enforcing: there.saturating_sub(exceptions.len() + unnamed.len()),
            nodes,
            behind: if there < nodes { behind.take(NAMED).collect() } else { Vec::new() },
            behind_count: nodes - there,
            exceptions: exceptions.iter().take(NAMED).cloned().collect(),
            exception_count: exceptions.len(),
            silent: self.silent.iter().take(NAMED).cloned().collect(),
            silent_count: self.silent.len(),
            doubt: self.doubt.clone().or_else(|| (!unnamed.is_empty()).then(perhaps)),
        }
    }
}
