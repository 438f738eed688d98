//! One attempt of a pod to reach an address.

use crate::cluster::Cluster;
use crate::pod::Pod;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

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
    /// The call of this probe in a pod's shell; `p` is defined by [`ask`].
    fn call(&self, index: usize) -> String {
        let target = SocketAddr::new(self.address, self.port);
        format!("p {index} --protocol={} {target} &", self.protocol.to_lowercase())
    }
}

/// Makes all attempts at once, those of a pod by one shell in it, and returns them with what came of each, in their order.
pub fn run_all(cluster: &Cluster, probes: Vec<Probe>) -> Vec<(Probe, Outcome)> {
    let mut of_pod: BTreeMap<(&str, &str), Vec<(usize, &Probe)>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        of_pod.entry((&probe.from.namespace, &probe.from.name)).or_default().push((index, probe));
    }
    let mut outcomes = BTreeMap::new();
    std::thread::scope(|scope| {
        let asked: Vec<_> = of_pod.into_values().map(|probes| scope.spawn(move || ask(cluster, &probes))).collect();
        for pod in asked {
            // A thread that panicked leaves its probes without an outcome, which is said below.
            outcomes.extend(pod.join().unwrap_or_default());
        }
    });
    let unknown = || Outcome::Other("the pod did not say".into());
    probes.into_iter().enumerate().map(|(index, probe)| (probe, outcomes.remove(&index).unwrap_or_else(unknown))).collect()
}

/// Makes the attempts of one pod.
fn ask(cluster: &Cluster, probes: &[(usize, &Probe)]) -> BTreeMap<usize, Outcome> {
    let Some((_, first)) = probes.first() else { return BTreeMap::new() };
    let calls: Vec<String> = probes.iter().map(|(index, probe)| probe.call(*index)).collect();
    // A line for each: its number, and what agnhost said.
    let script = format!(
        "p() {{ i=$1; shift; if e=$(/agnhost connect {PATIENCE} \"$@\" 2>&1); then echo $i REACHED; else echo $i $e; fi; }}\n{}\nwait",
        calls.join("\n")
    );
    match first.from.shell(cluster, &script) {
        Ok(said) => said.lines().filter_map(read_outcome).collect(),
        Err(error) => probes.iter().map(|(index, _)| (*index, Outcome::Other(format!("{error:#}")))).collect(),
    }
}

fn read_outcome(line: &str) -> Option<(usize, Outcome)> {
    let (index, said) = line.split_once(' ').unwrap_or((line, "failed without a word"));
    let outcome = match said.split([' ', ':']).next() {
        Some("REACHED") => Outcome::Reached,
        Some("TIMEOUT") => Outcome::Silent,
        _ => Outcome::Other(said.to_owned()),
    };
    Some((index.parse().ok()?, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agnhost_says_is_told_apart() {
        assert_eq!(read_outcome("3 REACHED"), Some((3, Outcome::Reached)));
        assert_eq!(read_outcome("0 TIMEOUT"), Some((0, Outcome::Silent)));
        assert_eq!(read_outcome("4 TIMEOUT: read udp 10.0.0.1:1->10.0.0.2:53: i/o timeout"), Some((4, Outcome::Silent)));
        assert_eq!(read_outcome("12 REFUSED"), Some((12, Outcome::Other("REFUSED".into()))));
        assert_eq!(read_outcome("sh: not found"), None);
    }
}
