//! The examples that users start with: what `palisade lab` says of them holds in a cluster, too.

use anyhow::{Context, Result, bail};
use palisade_e2e::cluster::{Cluster, items};
use palisade_e2e::expectation::{Expectations, Verdict};
use palisade_e2e::pod::{self, Pod};
use palisade_e2e::probe::{Probe, run_all};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn example(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    path.canonicalize().with_context(|| format!("the example {}", path.display()))
}

/// The example, applied; taken away at the end where it was not there before.
struct Applied {
    cluster: Cluster,
    directory: String,
    namespaces: Vec<String>,
    ours: bool,
}

impl Applied {
    fn new(cluster: Cluster, directory: &Path) -> Result<Self> {
        let directory = directory.to_str().context("a path that is no text")?.to_owned();
        let before = cluster.run(&["get", "--filename", &directory, "--ignore-not-found", "--output", "name"]).unwrap_or_default();
        cluster.run(&["apply", "--filename", &directory])?;
        let objects = cluster.json(&["get", "--filename", &directory])?;
        let namespaces = items(&objects).filter(|object| object["kind"] == "Namespace");
        let namespaces = namespaces.filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned)).collect();
        Ok(Self { ours: before.trim().is_empty(), cluster, directory, namespaces })
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.cluster.run(&["delete", "--filename", &self.directory, "--ignore-not-found", "--timeout=90s"])
        {
            eprintln!("the example could not be deleted: {error:#}");
        }
    }
}

/// The pods of the namespaces by the names that the lab gives them: a Deployment's are its name and a number.
fn pods(applied: &Applied) -> Result<BTreeMap<String, Pod>> {
    let cluster = &applied.cluster;
    let mut found = BTreeMap::new();
    for namespace in &applied.namespaces {
        let deployments = cluster.json(&["get", "deployments", "--namespace", namespace])?;
        for deployment in items(&deployments) {
            let name = deployment["metadata"]["name"].as_str().context("a Deployment without a name")?;
            cluster.run(&["rollout", "status", "--namespace", namespace, "deployment", name, "--timeout=120s"])?;
        }
        let mut replicas: BTreeMap<String, usize> = BTreeMap::new();
        let ready = pod::ready(cluster, namespace)?;
        let list = cluster.json(&["get", "pods", "--namespace", namespace])?;
        let owners: BTreeMap<&str, &str> = items(&list)
            .filter_map(|pod| Some((pod["metadata"]["name"].as_str()?, pod["metadata"]["ownerReferences"][0]["name"].as_str()?)))
            .collect();
        for pod in ready {
            // The owner is a ReplicaSet: the Deployment's name, a dash, a hash.
            let name = match owners.get(pod.name.as_str()).and_then(|owner| owner.rsplit_once('-')) {
                Some((deployment, _)) => {
                    let count = replicas.entry(deployment.to_owned()).or_default();
                    *count += 1;
                    format!("{deployment}-{}", *count - 1)
                }
                None => pod.name.clone(),
            };
            found.insert(format!("{namespace}/{name}"), pod);
        }
    }
    Ok(found)
}

#[test]
fn the_example_shop_gives_the_truth_table_of_the_lab() -> Result<()> {
    gives_the_truth_table_of_the_lab("shop")
}

#[test]
fn the_example_egress_by_identity_gives_the_truth_table_of_the_lab() -> Result<()> {
    gives_the_truth_table_of_the_lab("egress-by-identity")
}

fn gives_the_truth_table_of_the_lab(example: &str) -> Result<()> {
    let directory = self::example(example)?;
    let expectations = Expectations::read(&directory.join("expect/reach.yaml"))?;
    let applied = Applied::new(Cluster::connect(), &directory)?;
    let pods = pods(&applied)?;
    if pods.len() < 2 {
        bail!("the example has {} pods", pods.len());
    }
    let mut probes = Vec::new();
    let mut expected = Vec::new();
    for (from_name, from) in &pods {
        for (to_name, to) in pods.iter().filter(|(to_name, _)| *to_name != from_name) {
            for ((port, protocol), address) in to.ports.iter().flat_map(|port| to.addresses.iter().map(move |address| (port, address))) {
                let probe = Probe { from: from.clone(), to: to_name.clone(), address: *address, port: *port, protocol: protocol.clone() };
                if let Some(verdict) = expectations.of(from_name, to_name, &probe) {
                    expected.push(verdict);
                    probes.push(probe);
                }
            }
        }
    }
    for verdict in [Verdict::Allow, Verdict::Deny] {
        assert!(expected.contains(&verdict), "the expectations have no {verdict:?}: the table would show nothing");
    }
    let results = run_all(&applied.cluster, probes);
    let wrong: Vec<String> = results
        .iter()
        .zip(&expected)
        .filter(|((_, outcome), verdict)| !verdict.holds(outcome))
        .map(|((probe, outcome), verdict)| format!("{probe}: {outcome}, expected: {verdict:?}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {} probes differ:\n{}", wrong.len(), results.len(), wrong.join("\n"));
    Ok(())
}
