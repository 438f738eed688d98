//! How long and how often.

use crate::path::Family;
use crate::traffic::Traffic;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses of which family the traffic has.
    pub family: Family,
    /// Rounds of all traffic over all paths.
    pub rounds: u32,
    /// Rounds of program runs.
    pub program_rounds: u32,
    /// Flows that each round of program runs opens.
    pub new_flows: u32,
    /// What the usual duration of a measurement is multiplied by.
    pub scale: f64,
}

impl Plan {
    /// What `make bench` measures: about two minutes.
    pub fn full(family: Family) -> Self {
        Self { family, rounds: 6, program_rounds: 40, new_flows: 500, scale: 1.0 }
    }

    /// Whether everything works, in a few seconds; the numbers mean nothing.
    pub fn quick(family: Family) -> Self {
        Self { family, rounds: 2, program_rounds: 2, new_flows: 20, scale: 0.05 }
    }

    /// How long one measurement of this traffic takes.
    pub(crate) fn duration(&self, traffic: Traffic) -> Duration {
        let seconds = match traffic {
            Traffic::Stream => 2.0,
            Traffic::RequestResponse => 1.5,
            Traffic::ConnectRequestClose | Traffic::Datagrams => 1.0,
        };
        Duration::from_secs_f64(seconds * self.scale)
    }
}
