//! `palisade status`.

use crate::agent;
use crate::arguments::Asking;
use crate::error::CliError;
use crate::print;
use crate::table::{Cell, Paint, Table, Tone};
use palisade_protocol::{Call, NODE_SERVED, Reply, RoutingStatus, Status, WayName};
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

    let mut services = Table::new(["SERVICES", "FRONTENDS", "BACKENDS", "FOR THE NODE"]);
    // Of a reason, the line below.
    let (for_node, failed) = match status.node_services.as_str() {
        NODE_SERVED => ("yes", None),
        "off" => ("no", None),
        reason => ("no", Some(reason)),
    };
    let [known, frontends, backends] = [counts.services, counts.frontends, counts.backends].map(|number| number.to_string().into());
    services.row([known, frontends, backends, for_node.into()]);
    let _ = write!(text, "\n{}", services.render(paint));
    if let Some(reason) = failed {
        let _ = writeln!(text, "{}", paint.text(Tone::Bad, &format!("not for the node's own processes: {reason}")));
    }
    if !status.uplinks.is_empty() {
        let _ = writeln!(text, "\nServices are reached from outside by {}", status.uplinks.join(", "));
    }
    for missing in &status.uplinks_missing {
        let _ = writeln!(text, "{}", paint.text(Tone::Bad, &format!("not from outside by {missing}")));
    }

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
    if let Some(routing) = &status.routing {
        text.push_str(&routed(routing, paint));
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

/// How the pods of other nodes are reached.
fn routed(routing: &RoutingStatus, paint: Paint) -> String {
    let mut facts = Table::new(["ROUTING", "POD MTU", "OVERLAY", "PORT", "NETWORK", "OVERLAY MTU"]);
    let [device, port, network, mtu] = match &routing.overlay {
        Some(overlay) => [overlay.device.clone(), overlay.port.to_string(), overlay.network.to_string(), overlay.mtu.to_string()],
        None => ["-"; 4].map(str::to_owned),
    };
    facts.row([routing.mode.as_str().into(), routing.mtu.to_string().into(), device.into(), port.into(), network.into(), mtu.into()]);
    let mut text = format!("\n{}", facts.render(paint));
    if !routing.ranges.is_empty() {
        let mut ranges = Table::new(["NODE", "PODS", "WAY", "ADDRESS", "WHY"]);
        for range in &routing.ranges {
            let tone = if range.way == WayName::Nowhere { Tone::Bad } else { Tone::Good };
            ranges.row([
                range.node.as_str().into(),
                range.range.to_string().into(),
                Cell::toned(range.way.to_string(), tone),
                range.address.map_or_else(|| "-".to_owned(), |address| address.to_string()).into(),
                range.reason.as_deref().unwrap_or("-").into(),
            ]);
        }
        let _ = write!(text, "\n{}", ranges.render(paint));
    }
    if !routing.faults.is_empty() {
        let mut faults = Table::new(["NODE", "FAULT"]);
        for fault in &routing.faults {
            faults.row([Cell::toned(fault.node.as_str(), Tone::Bad), fault.fault.as_str().into()]);
        }
        let _ = write!(text, "\n{}", faults.render(paint));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::{Counts, NodeFault, OutcomeCount, OverlayStatus, RangeStatus, Refused};

    #[test]
    fn a_status_shows_problems_refused_objects_and_outcomes() {
        let status = Status {
            version: "0.1.0".into(),
            node: "n1".into(),
            source: "kubernetes".into(),
            ready: false,
            problems: vec!["the API server cannot be reached".into()],
            refuses_pods: vec!["the API server cannot be reached".into()],
            attach: "tcx".into(),
            node_services: "served".into(),
            abi: 1,
            epoch: 7,
            counts: Counts { endpoints: 2, services: 4, frontends: 7, backends: 9, ..Counts::default() },
            outcomes: vec![
                OutcomeCount { outcome: "ingress-denied".into(), passes: false, packets: 3, bytes: 180 },
                OutcomeCount { outcome: "truncated".into(), passes: false, packets: 0, bytes: 0 },
            ],
            refused: vec![Refused { kind: "NetworkPolicy".into(), object: "a/b".into(), reason: "spec.ingress[0]: no".into() }],
            routing: Some(RoutingStatus {
                mode: "auto".into(),
                mtu: 1450,
                overlay: Some(OverlayStatus { device: "palisade_vxlan".into(), port: 4789, network: 1, mtu: 1450 }),
                ranges: vec![
                    RangeStatus {
                        node: "n2".into(),
                        range: "10.2.0.0/24".parse().unwrap(),
                        way: WayName::Vxlan,
                        address: Some("192.0.2.2".parse().unwrap()),
                        reason: None,
                    },
                    RangeStatus {
                        node: "n3".into(),
                        range: "10.3.0.0/24".parse().unwrap(),
                        way: WayName::Nowhere,
                        address: None,
                        reason: Some("no address".into()),
                    },
                ],
                faults: vec![NodeFault { node: "n4".into(), fault: "it has no pod range".into() }],
            }),
            uplinks: vec!["eth0".into(), "eth1".into()],
            uplinks_missing: vec!["eth2: no such program".into()],
        };
        let text = rendered(&status, Paint::none());
        for part in [
            "Agent: not ready\n  the API server cannot be reached\n",
            "SERVICES  FRONTENDS  BACKENDS  FOR THE NODE\n4         7          9         yes\n",
            "Services are reached from outside by eth0, eth1\nnot from outside by eth2: no such program\n",
            "ingress-denied  no      3        180",
            "NetworkPolicy  a/b     spec",
            "auto     1450     palisade_vxlan  4789  1        1450\n",
            "n2    10.2.0.0/24  vxlan    192.0.2.2  -\n",
            "n3    10.3.0.0/24  nowhere  -          no address\n",
            "n4    it has no pod range\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("truncated"), "outcomes that never happened are left out:\n{text}");
    }
}
