//! How long and how often.

use crate::churn::Churn;
use crate::path::Family;
use crate::traffic::Traffic;
use std::path::PathBuf;
use std::time::Duration;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Traffic over all paths, and program runs.
    Datapath,
    /// Traffic between two nodes.
    Nodes,
    /// Traffic through services.
    Services,
    /// Compiling and changing policy.
    Policy,
    /// Pods that come and go while the agent restarts.
    Churn,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses of which family the traffic within a node has.
    pub family: Family,
    /// Addresses of which families the traffic between nodes has.
    pub across: Vec<Family>,
    /// The only part that is measured; `None`: all.
    pub only: Option<Part>,
    /// Rounds of all traffic over all paths, and through services.
    pub rounds: u32,
    /// Numbers of services that are in the maps while one of them is measured; the later ones are compared with the first. At least 1.
    pub services: &'static [u32],
    /// Rounds of program runs.
    pub program_rounds: u32,
    /// Flows that each round of program runs opens.
    pub new_flows: u32,
    /// Numbers of policies that are compiled, and the pods of the cluster that they are for.
    pub policies: &'static [usize],
    /// Pods of that cluster.
    pub pods: usize,
    /// Changes of each kind to it.
    pub policy_rounds: usize,
    /// The program kube-proxy, whose services are measured beside ours; `None`: they are not.
    pub kube_proxy: Option<PathBuf>,
    /// Pods that come and go; `None`: none do, for it takes the programs of a release.
    pub churn: Option<Churn>,
    /// What the usual duration of a measurement is multiplied by.
    pub scale: f64,
}

impl Plan {
    /// What `make bench` measures: about nine minutes, and more with kube-proxy. Without a family: IPv4, and both between nodes.
    pub fn full(family: Option<Family>) -> Self {
        Self {
            family: family.unwrap_or(Family::Ipv4),
            across: family.map_or_else(|| vec![Family::Ipv4, Family::Ipv6], |family| vec![family]),
            only: None,
            rounds: 6,
            services: &[1, 100, 10_000],
            program_rounds: 40,
            new_flows: 500,
            policies: &[100, 1_000, 10_000, 30_000],
            pods: 30_000,
            policy_rounds: 50,
            kube_proxy: None,
            churn: None,
            scale: 1.0,
        }
    }

    /// Whether everything works, in a few seconds; the numbers mean nothing.
    pub fn quick(family: Option<Family>) -> Self {
        Self {
            rounds: 2,
            services: &[1, 100],
            program_rounds: 2,
            new_flows: 20,
            policies: &[10, 50],
            pods: 300,
            policy_rounds: 3,
            scale: 0.05,
            ..Self::full(family)
        }
    }

    /// Whether a part is measured.
    pub(crate) fn includes(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
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
