//! The order of a change: single writes between which every service has its old backends or its new ones.

use crate::compile::{Compiled, chunks};
use crate::compiler::Compiler;
use crate::fit::Limits;
use crate::frontend::Frontend;
use crate::model::Services;
use crate::numbers::Numbers;
use palisade_datapath_core::abi::{Backend, CHUNK, ChunkKey, ServiceEntry};
use std::sync::Arc;

/// One write. Those of a plan are made one by one, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Count the numbers up to this one as given (`CONFIG`, cell `SERVICE_NUMBER`). Comes before the first row that carries one of them.
    RaiseNumber(u32),
    /// Write the row of a backend.
    WriteBackend(u32, Backend),
    /// Write a part of a table.
    WriteChunk(ChunkKey, Box<[u32; CHUNK]>),
    /// Write what stands behind a frontend.
    WriteFrontend(Frontend, ServiceEntry),
    /// Remove a frontend: what is sent there is no service's any more.
    RemoveFrontend(Frontend),
    /// Wait until every program has ended that runs now: it may have read the row of a frontend that the steps so far have altered, and goes
    /// on to read what that names, which the next ones alter.
    AwaitPrograms,
    /// Remove a part of a table.
    RemoveChunk(ChunkKey),
    /// Remove the row of a backend.
    RemoveBackend(u32),
}

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The writes, in order. None where nothing changes.
    pub steps: Vec<Step>,
    /// What the maps hold after the last step, and what is wrong with services.
    pub next: Arc<Compiled>,
    /// The frontends that nobody has any more, though the service or the pod that had them is still there.
    pub given_up: Vec<Frontend>,
}

/// Plans one change after the other with the same [`Numbers`]. A change costs as much as it touches.
#[derive(Debug, Default)]
pub struct Planner {
    compiler: Compiler,
}

impl Planner {
    /// A planner that has planned nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The writes that lead from what the maps hold to what `services` want, in the safe order.
    ///
    /// `old` is [`Plan::next`] of the last plan, where all its steps were made. Where not, or where there was none, read the maps
    /// ([`Compiled::read`]) and plan from that: then all services are looked at. `numbers` must be those of all calls before, or
    /// [`Numbers::after`] what the kernel's cell says.
    pub fn plan(&mut self, old: &Compiled, services: &Services, numbers: &mut Numbers) -> Plan {
        self.plan_within(old, services, numbers, &Limits::new())
    }

    /// The same where maps may hold only so many rows, at any time of the change. As few as possible are held back: those go on with
    /// the backends that they have and that are still listed, where the frontends are theirs still, and [`Trouble::NoRoom`](crate::Trouble::NoRoom) tells of each. What the plan removes
    /// may make room for them: then plan again.
    pub fn plan_within(&mut self, old: &Compiled, services: &Services, numbers: &mut Numbers, limits: &Limits) -> Plan {
        let given = numbers.highest();
        let next = self.compiler.compile(services, old, numbers, limits);
        let mut steps = Vec::new();
        if numbers.highest() > given {
            steps.push(Step::RaiseNumber(numbers.highest()));
        }
        write(old, &next, &mut steps);
        Plan { steps, next, given_up: self.compiler.given_up().to_vec() }
    }
}

/// As [`Planner::plan`], for a change that comes alone.
pub fn plan(old: &Compiled, services: &Services, numbers: &mut Numbers) -> Plan {
    Planner::new().plan(old, services, numbers)
}

/// The writes from one state of the maps to another. A table's number is never given again, so that no table is altered.
fn write(old: &Compiled, next: &Compiled, steps: &mut Vec<Step>) {
    let mut last = Vec::new();
    let mut dead = Vec::new();
    for backend in old.backends.differences(&next.backends) {
        let number = backend.key.0;
        match (backend.before, backend.after) {
            (Some(before), Some(after)) => {
                // Whoever reads the old table finds the flags that it was made with, until nobody does.
                let both = Backend { flags: before.flags | after.flags, ..*after };
                if both != *before {
                    steps.push(Step::WriteBackend(number, both));
                }
                if both != *after {
                    last.push(Step::WriteBackend(number, *after));
                }
            }
            (None, Some(after)) => steps.push(Step::WriteBackend(number, *after)),
            (_, None) => dead.push(Step::RemoveBackend(number)),
        }
    }
    let tables = old.tables.differences(&next.tables);
    for table in &tables {
        let parts = table.after.into_iter().flat_map(|slots| chunks(*table.key, slots));
        steps.extend(parts.map(|(key, part)| Step::WriteChunk(key, Box::new(part))));
    }
    let frontends = old.frontends.differences(&next.frontends);
    steps.extend(frontends.iter().filter_map(|frontend| Some(Step::WriteFrontend(*frontend.key, *frontend.after?))));
    let gone = frontends.iter().filter(|frontend| frontend.after.is_none());
    steps.extend(gone.map(|frontend| Step::RemoveFrontend(*frontend.key)));
    for table in tables.iter().filter(|table| table.after.is_none()) {
        let parts = table.before.into_iter().flat_map(|slots| chunks(*table.key, slots));
        last.extend(parts.map(|(key, _)| Step::RemoveChunk(key)));
    }
    last.extend(old.remnants.iter().map(|&key| Step::RemoveChunk(key)));
    last.extend(dead);
    if !last.is_empty() {
        steps.push(Step::AwaitPrograms);
        steps.extend(last);
    }
}
