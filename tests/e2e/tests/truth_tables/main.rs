//! Truth tables: three namespaces with three pods, TCP 80 and 81, UDP 80, SCTP 80 and ICMP echo, over the families that the cluster has.
//! Each scenario is a rule of `docs/design/semantics.md` as a user would write it, and the table that should come of it.
//!
//! All scenarios share the pods, one after the other; each takes back what it did.

mod blocks;
mod changes;
mod identities;
mod isolation;
mod peers;
mod ports;
mod tiers;

use libtest_mimic::{Arguments, Failed, Trial};
use palisade_e2e::definition::{Installed, NOTICED};
use palisade_e2e::requirement::skipped_of;
use palisade_e2e::scenario::Scenario;
use palisade_e2e::world::World;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
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

/// What the scenarios share: made by the first one that needs it, or why it could not be.
#[derive(Default)]
struct Shared {
    world: Option<Result<World, String>>,
    definition: Option<Result<(Installed, Instant), String>>,
}

impl Shared {
    fn world(&mut self) -> Result<&mut World, Failed> {
        let world =
            self.world.get_or_insert_with(|| World::start(env!("CARGO_BIN_EXE_prober").as_ref()).map_err(|error| format!("{error:#}")));
        world.as_mut().map_err(|error| Failed::from(format!("the pods of the tables did not start: {error}")))
    }

    /// Installs ClusterNetworkPolicy and waits until the agents have noticed.
    fn define(&mut self) -> Result<(), Failed> {
        let cluster = self.world()?.cluster().clone();
        let definition = self.definition.get_or_insert_with(|| {
            let installed = Installed::channel(&cluster, "standard");
            installed.map(|installed| (installed, Instant::now())).map_err(|error| format!("{error:#}"))
        });
        let (_, since) = definition.as_ref().map_err(|error| Failed::from(format!("ClusterNetworkPolicy was not installed: {error}")))?;
        std::thread::sleep(NOTICED.saturating_sub(since.elapsed()));
        Ok(())
    }
}

/// As many there must be.
const LEAST: usize = 100;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They change what the others look at.
    arguments.test_threads = Some(1);
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
    let shared = Arc::new(Mutex::new(Shared::default()));
    let mut trials = vec![no_step_leaves_the_table_as_it_was(scenarios.clone())];
    for (name, scenario) in scenarios {
        let shared = shared.clone();
        let needs_definition = name.starts_with("tiers::");
        trials.push(Trial::test(name.clone(), move || {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let world = shared.world()?;
            // One that shows nothing anywhere is not skipped: it fails.
            if scenario.check().is_ok() && scenario.shows(world.families()).is_err() {
                skipped_of(&name, "it is about the family of addresses that pods do not have here");
                return Ok(());
            }
            if needs_definition {
                shared.define()?;
            }
            scenario.run(shared.world()?).map_err(|error| Failed::from(format!("{error:#}")))
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Deletes the namespaces and the definition.
    drop(std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner)));
    conclusion.exit_code()
}

/// A change that never arrives must not pass: needs no cluster.
fn no_step_leaves_the_table_as_it_was(scenarios: Vec<(String, Scenario)>) -> Trial {
    Trial::test("no_step_leaves_the_table_as_it_was", move || {
        let faults: Vec<String> =
            scenarios.iter().filter_map(|(name, scenario)| Some(format!("{name}: {:#}", scenario.check().err()?))).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
    })
}
