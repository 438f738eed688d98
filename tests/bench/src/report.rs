//! The results: a table for people, JSON for machines.

use crate::churn::ChurnRow;
use crate::path::{Family, PathKind};
use crate::plan::Plan;
use crate::policy::PolicyRow;
use crate::program::{Case, Times};
use crate::service::{self, Destination, Rates};
use crate::statistics::Samples;
use crate::traffic::Traffic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Kernel, CPUs and family within a node, for whoever compares two reports.
    pub machine: String,
    /// Rounds of traffic.
    pub rounds: u32,
    /// The ratios.
    pub rows: Vec<Row>,
    /// What policy costs.
    pub policy: Vec<PolicyRow>,
    /// What adding and deleting pods costs.
    pub churn: Option<ChurnRow>,
}

/// One ratio.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `TRAFFIC PATH/REFERENCE`, `nodes FAMILY TRAFFIC MODE PATH/REFERENCE`, `service [kube-proxy ]TRAFFIC/direct at SERVICES`,
    /// `service [kube-proxy ]TRAFFIC at SERVICES/at FIRST`, `service TRAFFIC palisade/kube-proxy at SERVICES` or `program CASE/redirect-only`.
    pub name: String,
    /// Median over the rounds of the ratio to the reference. Of rates, more is better; of program times, less.
    pub ratio: f64,
    /// Third minus first quartile of that ratio.
    pub spread: f64,
    /// Median of the measured value itself.
    pub median: f64,
    /// Median of the reference.
    pub reference: f64,
    /// What both count.
    pub unit: &'static str,
}

impl Row {
    fn new(name: String, measured: &Samples, reference: &Samples, unit: &'static str) -> Self {
        let ratio = measured.ratio(reference);
        Self { name, ratio: ratio.median(), spread: ratio.spread(), median: measured.median(), reference: reference.median(), unit }
    }
}

impl Report {
    /// A report of nothing yet.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { machine: machine(plan), rounds: plan.rounds, rows: Vec::new(), policy: Vec::new(), churn: None }
    }

    /// Adds the rates of traffic over paths.
    pub(crate) fn add_traffic(&mut self, traffic: &BTreeMap<(Traffic, PathKind), Samples>) {
        let none = Samples::default();
        let rates = |kind, path| traffic.get(&(kind, path)).unwrap_or(&none);
        for &kind in Traffic::ALL {
            let pairs = [
                ("palisade/direct", PathKind::Palisade, PathKind::Direct),
                ("routing/direct", PathKind::Routing, PathKind::Direct),
                ("palisade/routing", PathKind::Palisade, PathKind::Routing),
            ];
            for (name, path, reference) in pairs {
                self.rows.push(Row::new(format!("{kind} {name}"), rates(kind, path), rates(kind, reference), kind.unit()));
            }
        }
    }

    /// Adds the rates of traffic of a family between two nodes.
    pub(crate) fn add_across(&mut self, family: Family, traffic: &BTreeMap<(Traffic, PathKind), Samples>) {
        let none = Samples::default();
        let rates = |kind, path| traffic.get(&(kind, path)).unwrap_or(&none);
        for &kind in Traffic::ALL {
            let pairs = [
                ("native palisade/kernel", PathKind::NativePalisade, PathKind::NativeKernel),
                ("vxlan palisade/kernel", PathKind::VxlanPalisade, PathKind::VxlanKernel),
            ];
            for (name, path, reference) in pairs {
                let name = format!("nodes {family} {kind} {name}");
                self.rows.push(Row::new(name, rates(kind, path), rates(kind, reference), kind.unit()));
            }
        }
    }

    /// Adds the rates of traffic to a server and to its service's frontend: at each number of services the one as a ratio to the other,
    /// and those of the frontend as a ratio to those at the first number. The same of kube-proxy, where it was measured, and the ratio of both.
    pub(crate) fn add_services(&mut self, counts: &[u32], measured: &Rates) {
        let none = Samples::default();
        let rates = |path, count, kind, destination| measured.get(&(path, count, kind, destination)).unwrap_or(&none);
        let Some((&first, later)) = counts.split_first() else { return };
        let served = |path| measured.keys().any(|(of, ..)| *of == path);
        for (path, who) in [(PathKind::Palisade, ""), (PathKind::KubeProxy, "kube-proxy ")].into_iter().filter(|(path, _)| served(*path)) {
            for (name, kind) in service::TRAFFIC {
                let frontend = |count| rates(path, count, kind, Destination::Frontend);
                for &count in counts {
                    let server = rates(path, count, kind, Destination::Server);
                    self.rows.push(Row::new(format!("service {who}{name}/direct at {count}"), frontend(count), server, kind.unit()));
                }
                for &count in later {
                    self.rows.push(Row::new(
                        format!("service {who}{name} at {count}/at {first}"),
                        frontend(count),
                        frontend(first),
                        kind.unit(),
                    ));
                }
            }
        }
        if !served(PathKind::KubeProxy) {
            return;
        }
        for ((name, kind), &count) in service::TRAFFIC.into_iter().flat_map(|traffic| counts.iter().map(move |count| (traffic, count))) {
            let frontend = |path| rates(path, count, kind, Destination::Frontend);
            let (own, peer) = (frontend(PathKind::Palisade), frontend(PathKind::KubeProxy));
            self.rows.push(Row::new(format!("service {name} palisade/kube-proxy at {count}"), own, peer, kind.unit()));
        }
    }

    /// Adds the times of program runs.
    pub(crate) fn add_programs(&mut self, programs: &Times) {
        let none = Samples::default();
        let times = |case| programs.get(&case).unwrap_or(&none);
        for &case in Case::ALL.iter().filter(|case| **case != Case::RedirectOnly) {
            self.rows.push(Row::new(format!("program {}/redirect-only", case.name()), times(case), times(Case::RedirectOnly), "ns"));
        }
    }
}

fn machine(plan: &Plan) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("Linux {}, {cpus} CPUs, load {load} at the beginning, {}", kernel.trim_end(), plan.family)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(f, "Medians of {} interleaved rounds; spread: third minus first quartile of the ratio.", self.rounds)?;
        writeln!(f, "Rates: more is better. Program times (ns): less is better.\n")?;
        writeln!(f, "{:<44} {:>7} {:>7} {:>14} {:>14}  unit", "", "ratio", "spread", "median", "reference")?;
        for row in &self.rows {
            let digits = if row.median < 100.0 { 2 } else { 0 };
            let (median, reference) = (row.median, row.reference);
            writeln!(
                f,
                "{:<44} {:>7.3} {:>7.3} {median:>14.digits$} {reference:>14.digits$}  {}",
                row.name, row.ratio, row.spread, row.unit
            )?;
        }
        writeln!(f, "\nPolicy: times in ms, medians of single changes; 110 pods of this node.\n")?;
        writeln!(
            f,
            "{:>8} {:>7} {:>9} {:>8} {:>9} {:>10} {:>10} {:>14} {:>8} {:>9} {:>6} {:>9} {:>8}",
            "policies",
            "pods",
            "full",
            "policy",
            "pod added",
            "relabelled",
            "namespace",
            "object to map",
            "rows",
            "bytes",
            "ids",
            "subjects",
            "MiB"
        )?;
        for row in &self.policy {
            let PolicyRow { policies, pods, full, policy_changed, pod_added, pod_relabelled, namespace_relabelled, .. } = row;
            let PolicyRow { object_to_map, object_to_map_spread, rows, bytes, identities, subjects, memory, .. } = row;
            writeln!(
                f,
                "{policies:>8} {pods:>7} {full:>9.1} {policy_changed:>8.2} {pod_added:>9.2} {pod_relabelled:>10.2} {namespace_relabelled:>10.2} \
                 {object_to_map:>7.2} ±{object_to_map_spread:>5.2} {rows:>8} {bytes:>9} {identities:>6} {subjects:>9} {memory:>8.0}"
            )?;
        }
        if let Some(ChurnRow { pods, at_once, restarts, tried_again, add_median, add_p99, del_median, del_p99, seconds }) = &self.churn {
            writeln!(
                f,
                "\nChurn: {pods} pods added and deleted, {at_once} at once, in {seconds:.1} s; the agent restarted {restarts} times, {tried_again} ADDs were told \
                 to try again; nothing is left.\nms of a call: ADD median {add_median:.1}, p99 {add_p99:.1}; DEL median {del_median:.1}, p99 {del_p99:.1}"
            )?;
        }
        Ok(())
    }
}
