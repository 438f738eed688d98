//! What Palisade costs, as ratios: the same traffic through a direct veth pair, through plain kernel routing and
//! through Palisade, there directly and through a service, and the time of one run of its program. See the README for
//! how the numbers come about.
#![forbid(unsafe_code)]

mod across;
mod churn;
mod kube_proxy;
mod palisade;
mod path;
mod plan;
mod policy;
mod program;
mod report;
mod service;
mod statistics;
mod traffic;

pub use churn::{Churn, ChurnRow};
pub use path::Family;
pub use plan::{Part, Plan};
pub use policy::PolicyRow;
pub use report::{Report, Row};

use across::Across;
use anyhow::{Context, Result, bail};
use kube_proxy::KubeProxy;
use palisade::Palisade;
use palisade_loader::PinDir;
use palisade_test_support::{Host, private_host};
use path::{Path, PathKind};
use statistics::Samples;
use std::collections::BTreeMap;
use traffic::Traffic;

/// Measures everything, in namespaces that end with it. Progress goes to standard error. Needs root.
///
/// # Errors
/// A namespace, a link or a program is refused by the kernel, or the traffic does not flow as it should.
pub fn run(plan: &Plan) -> Result<Report> {
    let mut outcome = None;
    private_host(|host| outcome = Some(measure(host, plan)));
    let Some(report) = outcome else { bail!("namespaces and BPF programs need root: run it with sudo") };
    let mut report = report?;
    if let Some(churn) = plan.churn.as_ref().filter(|_| plan.includes(Part::Churn)) {
        eprintln!("churn: {} pods", churn.pods);
        report.churn = churn.run();
    }
    Ok(report)
}

fn measure(host: &Host, plan: &Plan) -> Result<Report> {
    let mut report = Report::new(plan);
    if plan.includes(Part::Datapath) || plan.includes(Part::Services) {
        measure_datapath(host, plan, &mut report)?;
    }
    if plan.includes(Part::Nodes) {
        for &family in &plan.across {
            measure_across(host, plan, family, &mut report)?;
        }
    }
    if plan.includes(Part::Policy) {
        report.policy = policy::measure(plan, &host.bpffs())?;
    }
    Ok(report)
}

fn measure_datapath(host: &Host, plan: &Plan, report: &mut Report) -> Result<()> {
    let pin = PinDir::new(host.bpffs());
    let mut palisade = Palisade::start(&pin, &service::roomy(plan.services))?;
    let measured = measure_with(host, plan, &pin, &mut palisade, report);
    drop(palisade);
    // Also after an error: what is left would hide its cause behind a complaint about leaks.
    std::fs::remove_dir_all(pin.root()).with_context(|| format!("remove {}", pin.root().display()))?;
    measured
}

fn measure_with(host: &Host, plan: &Plan, pin: &PinDir, palisade: &mut Palisade, report: &mut Report) -> Result<()> {
    let kinds: &[PathKind] = if plan.includes(Part::Datapath) { PathKind::ON_A_NODE } else { &[PathKind::Palisade] };
    let mut paths = kinds.iter().map(|&kind| Path::set_up(host, kind, plan.family, palisade)).collect::<Result<Vec<_>>>()?;
    if plan.includes(Part::Services) && plan.kube_proxy.is_some() {
        paths.push(Path::set_up(host, PathKind::KubeProxy, plan.family, palisade)?);
    }
    let measured = measure_paths(host, plan, &paths, palisade, report);
    for path in paths {
        path.tear_down(host, pin)?;
    }
    measured?;
    if plan.includes(Part::Datapath) {
        eprintln!("program runs: {} rounds", plan.program_rounds);
        report.add_programs(&program::measure(plan, palisade)?);
    }
    Ok(())
}

/// All traffic between two nodes.
fn measure_across(host: &Host, plan: &Plan, family: Family, report: &mut Report) -> Result<()> {
    eprintln!("between nodes: {family}");
    let across = PathKind::ACROSS.iter().map(|&kind| Across::set_up(host, kind, family)).collect::<Result<Vec<_>>>()?;
    let paths: Vec<&Path> = across.iter().map(|across| &across.path).collect();
    let measured = measure_traffic(plan, &paths);
    let policed = across.iter().try_for_each(Across::check_policed);
    for across in across {
        across.tear_down(host)?;
    }
    report.add_across(family, &measured?);
    policed
}

/// All traffic, over all paths and then through services.
fn measure_paths(host: &Host, plan: &Plan, paths: &[Path], palisade: &mut Palisade, report: &mut Report) -> Result<()> {
    let policed = through(paths, PathKind::Palisade).context("there is no path through Palisade")?;
    if plan.includes(Part::Datapath) {
        report.add_traffic(&measure_traffic(plan, &paths.iter().filter(|path| path.kind != PathKind::KubeProxy).collect::<Vec<_>>())?);
    }
    if plan.includes(Part::Services) {
        measure_services(host, plan, (paths, policed), palisade, report)?;
    }
    palisade.check_policed(policed)
}

/// All traffic through services.
fn measure_services(
    host: &Host,
    plan: &Plan,
    (paths, policed): (&[Path], &Path),
    palisade: &mut Palisade,
    report: &mut Report,
) -> Result<()> {
    let peer = plan.kube_proxy.as_ref().zip(through(paths, PathKind::KubeProxy));
    let mut proxy = peer.map(|(program, path)| KubeProxy::new(program.clone(), host, path)).transpose()?;
    let measured = service::measure(plan, policed, palisade, peer.map(|(_, path)| path).zip(proxy.as_mut()));
    proxy.map_or(Ok(()), KubeProxy::end)?;
    report.add_services(plan.services, &measured?);
    Ok(())
}

fn through(paths: &[Path], kind: PathKind) -> Option<&Path> {
    paths.iter().find(|path| path.kind == kind)
}

/// All rates, by traffic and path, a sample per round. Within a round the paths follow each other at once, and every
/// other round runs backwards, so that a machine that slows down or heats up does not favour one of them.
fn measure_traffic(plan: &Plan, paths: &[&Path]) -> Result<BTreeMap<(Traffic, PathKind), Samples>> {
    let mut rates: BTreeMap<(Traffic, PathKind), Samples> = BTreeMap::new();
    for round in 0..plan.rounds {
        eprintln!("traffic: round {} of {}", round + 1, plan.rounds);
        for &traffic in Traffic::ALL {
            let mut order: Vec<&Path> = paths.to_vec();
            if round % 2 == 1 {
                order.reverse();
            }
            for path in order {
                let rate = traffic.run(path, plan.duration(traffic)).with_context(|| format!("{traffic} over {}", path.kind))?;
                rates.entry((traffic, path.kind)).or_default().push(rate);
            }
        }
    }
    Ok(rates)
}
