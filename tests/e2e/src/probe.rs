//! One attempt of a pod to reach an address.

use crate::cluster::Cluster;
use crate::pod::Pod;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

/// How long a pod waits for an answer: long enough for one repeated SYN.
const PATIENCE: &str = "--timeout=2s";

/// An attempt.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Who tries.
    pub from: Pod,
    /// Whom, for messages.
    pub to: String,
    /// Where.
    pub address: IpAddr,
    /// On which port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came.
    Reached,
    /// Nothing came back: what a refusal by policy looks like.
    Silent,
    /// Something else, which no policy explains.
    Other(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached => f.write_str("reached"),
            Self::Silent => f.write_str("no answer"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = SocketAddr::new(self.address, self.port);
        write!(f, "{}/{} -> {} {} {target}", self.from.namespace, self.from.name, self.to, self.protocol)
    }
}

impl Probe {
    /// Makes the attempt, from inside the pod.
    pub fn run(&self, cluster: &Cluster) -> Outcome {
        let target = SocketAddr::new(self.address, self.port).to_string();
        let protocol = format!("--protocol={}", self.protocol.to_lowercase());
        let pod = ["exec", "--namespace", &self.from.namespace, &self.from.name, "--"];
        let command = ["/agnhost", "connect", PATIENCE, &protocol, &target];
        let output = match cluster.output(&[&pod[..], &command[..]].concat(), "", Duration::from_secs(60)) {
            Ok(output) => output,
            Err(error) => return Outcome::Other(format!("{error:#}")),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Outcome::Reached,
            false if said.starts_with("TIMEOUT") => Outcome::Silent,
            false => Outcome::Other(said.lines().next().unwrap_or("failed without a word").to_owned()),
        }
    }
}

/// Makes all attempts, several at a time, and returns them with what came of each, in their order.
pub fn run_all(cluster: &Cluster, probes: Vec<Probe>) -> Vec<(Probe, Outcome)> {
    let waiting = Mutex::new(probes.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    // More would only make the API server's machine slow: each attempt is a process here and one there.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    // The guard must not live through the attempt.
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
                    let Some((index, probe)) = next else { return };
                    let outcome = probe.run(cluster);
                    if let Ok(mut done) = done.lock() {
                        done.push((index, probe, outcome));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, _, _)| *index);
    done.into_iter().map(|(_, probe, outcome)| (probe, outcome)).collect()
}
