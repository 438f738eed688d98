//! The results: a table for people, JSON for machines.

use crate::path::PathKind;
use crate::plan::Plan;
use crate::program::{Case, Times};
use crate::statistics::Samples;
use crate::traffic::Traffic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Kernel, CPUs and family, for whoever compares two reports.
    pub machine: String,
    /// Rounds of traffic.
    pub rounds: u32,
    /// The ratios.
    pub rows: Vec<Row>,
}

/// One ratio.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `TRAFFIC PATH/REFERENCE`, or `program CASE/redirect-only`.
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
    /// The report of measured rates and program times.
    pub(crate) fn new(plan: &Plan, traffic: &BTreeMap<(Traffic, PathKind), Samples>, programs: &Times) -> Self {
        let none = Samples::default();
        let rates = |kind, path| traffic.get(&(kind, path)).unwrap_or(&none);
        let times = |case| programs.get(&case).unwrap_or(&none);
        let mut rows = Vec::new();
        for &kind in Traffic::ALL {
            let pairs = [
                ("palisade/direct", PathKind::Palisade, PathKind::Direct),
                ("routing/direct", PathKind::Routing, PathKind::Direct),
                ("palisade/routing", PathKind::Palisade, PathKind::Routing),
            ];
            for (name, path, reference) in pairs {
                rows.push(Row::new(format!("{kind} {name}"), rates(kind, path), rates(kind, reference), kind.unit()));
            }
        }
        for &case in Case::ALL.iter().filter(|case| **case != Case::RedirectOnly) {
            rows.push(Row::new(format!("program {}/redirect-only", case.name()), times(case), times(Case::RedirectOnly), "ns"));
        }
        Self { machine: machine(plan), rounds: plan.rounds, rows }
    }
}

fn machine(plan: &Plan) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("Linux {}, {cpus} CPUs, load {load} at the end, {:?}", kernel.trim_end(), plan.family)
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
        Ok(())
    }
}
