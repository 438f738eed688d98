//! Truth tables: three namespaces with three pods, TCP 80 and 81, UDP 80, SCTP 80 and ICMP echo, over the families that the cluster has.
//! Each scenario is a rule of `docs/design/semantics.md` as a user would write it, and the table that should come of it.
//!
//! Scenarios share the pods of a few worlds, one after the other in each; each takes back what it did.

mod blocks;
mod changes;
mod identities;
mod isolation;
mod peers;
mod ports;
mod tiers;

use libtest_mimic::{Arguments, Failed, Trial};
use palisade_e2e::cluster::Cluster;
use palisade_e2e::definition::{Installed, NOTICED};
use palisade_e2e::requirement::skipped_of;
use palisade_e2e::scenario::Scenario;
use palisade_e2e::world::World;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// The scenarios of a file, with their names.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident,)*) => {
        /// All scenarios of this file.
        pub fn all() -> Vec<(&'static str, palisade_e2e::scenario::Scenario)> {
            vec![$((stringify!($name), $name())),*]
        }
    };
}

/// So many scenarios run at once, each in a world of its own: they wait more than they work.
const WORLDS: usize = 2;

/// What the scenarios share.
#[derive(Default)]
struct Shared {
    /// The worlds that no scenario is in.
    free: Mutex<Vec<World>>,
    /// Why a world could not be made. No other is tried then.
    failed: OnceLock<String>,
    /// Made by the first scenario that needs it, or why it could not be.
    definition: Mutex<Option<Result<(Installed, Instant), String>>>,
}

impl Shared {
    /// A world that no other scenario is in, to be put back.
    fn take(&self) -> Result<World, Failed> {
        if let Some(world) = locked(&self.free).pop() {
            return Ok(world);
        }
        let start = || World::start(env!("CARGO_BIN_EXE_prober").as_ref()).map_err(|error| format!("{error:#}"));
        let world = match self.failed.get() {
            Some(error) => Err(error.clone()),
            None => start().inspect_err(|error| drop(self.failed.set(error.clone()))),
        };
        world.map_err(|error| Failed::from(format!("the pods of the tables did not start: {error}")))
    }

    /// Installs ClusterNetworkPolicy and waits until the agents have noticed.
    fn define(&self, cluster: &Cluster) -> Result<(), Failed> {
        let mut definition = locked(&self.definition);
        let definition = definition.get_or_insert_with(|| {
            let installed = Installed::channel(cluster, "standard");
            installed.map(|installed| (installed, Instant::now())).map_err(|error| format!("{error:#}"))
        });
        let (_, since) = definition.as_ref().map_err(|error| Failed::from(format!("ClusterNetworkPolicy was not installed: {error}")))?;
        std::thread::sleep(NOTICED.saturating_sub(since.elapsed()));
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As many there must be.
const LEAST: usize = 100;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(WORLDS).min(WORLDS));
    let files = [
        ("isolation", isolation::all()),
        ("peers", peers::all()),
        ("ports", ports::all()),
        ("blocks", blocks::all()),
        ("changes", changes::all()),
        ("identities", identities::all()),
        ("tiers", tiers::all()),
    ];
    let scenarios: Vec<(String, Scenario)> = files
        .into_iter()
        .flat_map(|(file, scenarios)| scenarios.into_iter().map(move |(name, scenario)| (format!("{file}::{name}"), scenario)))
        .collect();

    assert!(scenarios.len() >= LEAST, "{} scenarios, fewer than {LEAST}", scenarios.len());
    let shared = Arc::new(Shared::default());
    let mut trials = vec![no_step_leaves_the_table_as_it_was(scenarios.clone())];
    for (name, scenario) in scenarios {
        let shared = shared.clone();
        trials.push(Trial::test(name.clone(), move || {
            let mut world = shared.take()?;
            let outcome = run(&name, &scenario, &shared, &mut world);
            locked(&shared.free).push(world);
            outcome
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Deletes the namespaces and the definition.
    locked(&shared.free).clear();
    locked(&shared.definition).take();
    conclusion.exit_code()
}

fn run(name: &str, scenario: &Scenario, shared: &Shared, world: &mut World) -> Result<(), Failed> {
    // One that shows nothing anywhere is not skipped: it fails.
    if scenario.check().is_ok() && scenario.shows(world.families()).is_err() {
        skipped_of(name, "it is about the family of addresses that pods do not have here");
        return Ok(());
    }
    if name.starts_with("tiers::") {
        shared.define(world.cluster())?;
    }
    scenario.run(world).map_err(|error| Failed::from(format!("{error:#}")))
}

/// A change that never arrives must not pass: needs no cluster.
fn no_step_leaves_the_table_as_it_was(scenarios: Vec<(String, Scenario)>) -> Trial {
    Trial::test("no_step_leaves_the_table_as_it_was", move || {
        let faults: Vec<String> =
            scenarios.iter().filter_map(|(name, scenario)| Some(format!("{name}: {:#}", scenario.check().err()?))).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
    })
}
