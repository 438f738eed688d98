//! What all nodes make of an object, in tables.

use crate::table::{Cell, Tone};
use palisade_protocol::{Condition, Standing};

/// Accepted and Enforced: `True`, or why not, in one word.
pub fn cells(standing: &Standing) -> [Cell; 2] {
    ["Accepted", "Enforced"].map(|of| {
        let Some(condition) = condition(standing, of) else { return "-".into() };
        if condition.status == "True" {
            return Cell::toned("True", Tone::Good);
        }
        // What is on its way, what only watches, and what is not known, is no fault.
        let tone = if matches!(condition.reason.as_str(), "Pending" | "Audit" | "Unknown") { Tone::Faint } else { Tone::Alarm };
        Cell::toned(condition.reason.as_str(), tone)
    })
}

/// How many nodes enforce it, of how many that report.
pub fn nodes(standing: &Standing) -> String {
    format!("{}/{}", standing.nodes_enforcing, standing.nodes)
}

/// A line for each condition that does not hold.
pub fn notes(name: &str, standing: &Standing) -> String {
    standing.conditions.iter().filter(|condition| condition.status != "True").map(|it| format!("{name}: {}\n", it.message)).collect()
}

fn condition<'s>(standing: &'s Standing, of: &str) -> Option<&'s Condition> {
    standing.conditions.iter().find(|condition| condition.of == of)
}
