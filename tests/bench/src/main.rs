//! `cargo run --release -p palisade-bench`: measures, prints a table, writes `target/bench.json`.

use anyhow::{Context, Result};
use clap::Parser;
use palisade_bench::{Churn, Family, Part, Plan, run};
use std::path::PathBuf;

/// What Palisade costs: ratios to a direct veth pair, to plain kernel routing and to a program that only redirects.
/// Nothing passes or fails by time.
#[derive(Parser)]
struct Arguments {
    /// Measure for moments only, to see that everything works; the numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// Rounds of traffic
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Address family of the traffic; without it IPv4, and between nodes both
    #[arg(long, value_enum)]
    family: Option<Family>,
    /// Measure this part only
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// The program kube-proxy, to measure its services beside ours
    #[arg(long, value_name = "FILE")]
    kube_proxy: Option<PathBuf>,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut plan = if arguments.quick { Plan::quick(arguments.family) } else { Plan::full(arguments.family) };
    plan.rounds = arguments.rounds.unwrap_or(plan.rounds);
    plan.only = arguments.only;
    plan.kube_proxy = arguments.kube_proxy;
    if arguments.only.map_or(!arguments.quick, |part| part == Part::Churn) {
        let programs = std::env::current_exe()?;
        let pods = if arguments.quick { 20 } else { 1_000 };
        plan.churn = Some(Churn::with_programs_in(programs.parent().context("where is this program?")?, pods, 50, 2)?);
    }
    let report = run(&plan)?;
    print!("{report}");
    let json = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(&arguments.output, json).with_context(|| format!("write {}", arguments.output.display()))?;
    eprintln!("written: {}", arguments.output.display());
    Ok(())
}
