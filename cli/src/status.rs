//! `palisade status`.

use crate::agent;
use crate::arguments::Asking;
use crate::error::CliError;
use crate::print;
use crate::table::{Cell, Paint, Table, Tone};
use palisade_protocol::{Call, Reply, Status};
use std::fmt::Write;

/// Asks the agent for its state and prints it; an agent that is not ready is an answer, not a failure.
pub fn run(arguments: &Asking) -> Result<(), CliError> {
    let status = match agent::connect(&arguments.agent)?.call(Call::Status)? {
        Reply::Status(status) => status,
        other => return Err(agent::unexpected(&other)),
    };
    print::answer(arguments.output, &status, |paint| rendered(&status, paint))
}

fn rendered(status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    let ready = if status.ready { paint.text(Tone::Good, "ready") } else { paint.text(Tone::Bad, "not ready") };
    let mut facts = Table::new(["NODE", "SOURCE", "VERSION", "ATTACH", "ABI", "EPOCH"]);
    facts.row([
        status.node.as_str().into(),
        status.source.as_str().into(),
        status.version.as_str().into(),
        status.attach.as_str().into(),
        status.abi.to_string().into(),
        status.epoch.to_string().into(),
    ]);
    let _ = writeln!(text, "Agent: {ready}");
    for problem in &status.problems {
        let _ = writeln!(text, "  {}", paint.text(Tone::Bad, problem));
    }
    let _ = write!(text, "\n{}", facts.render(paint));

    let counts = &status.counts;
    let mut numbers = Table::new(["ENDPOINTS", "PODS", "NAMESPACES", "POLICIES", "IDENTITIES", "SUBJECTS", "POLICY ROWS", "PORT ROWS"]);
    numbers.row(
        [
            counts.endpoints,
            counts.pods,
            counts.namespaces,
            counts.policies,
            counts.identities,
            counts.subjects,
            counts.policy_rows,
            counts.port_rows,
        ]
        .map(|number| number.to_string().into()),
    );
    let _ = write!(text, "\n{}", numbers.render(paint));

    let mut services = Table::new(["SERVICES", "FRONTENDS", "BACKENDS"]);
    services.row([counts.services, counts.frontends, counts.backends].map(|number| number.to_string().into()));
    let _ = write!(text, "\n{}", services.render(paint));

    if status.outcomes.iter().any(|count| count.packets > 0) {
        let mut outcomes = Table::new(["OUTCOME", "PASSES", "PACKETS", "BYTES"]);
        for count in status.outcomes.iter().filter(|count| count.packets > 0) {
            let tone = if count.passes { Tone::Good } else { Tone::Bad };
            outcomes.row([
                Cell::toned(count.outcome.as_str(), tone),
                if count.passes { "yes" } else { "no" }.into(),
                count.packets.to_string().into(),
                count.bytes.to_string().into(),
            ]);
        }
        let _ = write!(text, "\n{}", outcomes.render(paint));
    }
    if !status.refused.is_empty() {
        let mut refused = Table::new(["REFUSED", "OBJECT", "WHY"]);
        for object in &status.refused {
            refused.row([Cell::toned(object.kind.as_str(), Tone::Bad), object.object.as_str().into(), object.reason.as_str().into()]);
        }
        let _ = write!(text, "\n{}", refused.render(paint));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::{Counts, OutcomeCount, Refused};

    #[test]
    fn a_status_shows_problems_refused_objects_and_outcomes() {
        let status = Status {
            version: "0.1.0".into(),
            node: "n1".into(),
            source: "kubernetes".into(),
            ready: false,
            problems: vec!["the API server cannot be reached".into()],
            attach: "tcx".into(),
            abi: 1,
            epoch: 7,
            counts: Counts { endpoints: 2, services: 4, frontends: 7, backends: 9, ..Counts::default() },
            outcomes: vec![
                OutcomeCount { outcome: "ingress-denied".into(), passes: false, packets: 3, bytes: 180 },
                OutcomeCount { outcome: "truncated".into(), passes: false, packets: 0, bytes: 0 },
            ],
            refused: vec![Refused { kind: "NetworkPolicy".into(), object: "a/b".into(), reason: "spec.ingress[0]: no".into() }],
        };
        let text = rendered(&status, Paint::none());
        for part in [
            "Agent: not ready\n  the API server cannot be reached\n",
            "SERVICES  FRONTENDS  BACKENDS\n4         7          9\n",
            "ingress-denied  no      3        180",
            "NetworkPolicy  a/b     spec",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("truncated"), "outcomes that never happened are left out:\n{text}");
    }
}
