//! ClusterNetworkPolicy's definition as upstream publishes it, by its Go module.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const DEFINITION: &str = "clusternetworkpolicies.policy.networking.k8s.io";
/// How long until every agent has noticed that the kind came or went: they look every 5 seconds.
pub const NOTICED: Duration = Duration::from_secs(12);

/// The definition of a channel as a file; what fetches it says why it cannot.
fn upstream(channel: &str) -> Result<PathBuf> {
    let mut fetch = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kind/upstream-definitions"));
    let output = fetch.output().with_context(|| format!("starting {fetch:?}: is bash installed?"))?;
    if !output.status.success() {
        bail!("{fetch:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let directory = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    Ok(directory.join(channel).join("policy.networking.k8s.io_clusternetworkpolicies.yaml"))
}

/// The definition, installed; taken away at the end where it was not there before.
#[derive(Debug)]
pub struct Installed {
    cluster: Cluster,
    ours: bool,
}

impl Installed {
    /// Installs the definition of a channel, `standard` or `experimental`.
    pub fn channel(cluster: &Cluster, channel: &str) -> Result<Self> {
        let ours =
            cluster.run(&["get", "customresourcedefinition", DEFINITION, "--ignore-not-found", "--output", "name"])?.trim().is_empty();
        let file = upstream(channel)?;
        cluster.run(&["apply", "--server-side", "--force-conflicts", "--filename", file.to_str().context("a path that is no text")?])?;
        let installed = Self { cluster: cluster.clone(), ours };
        // Until the API server has looked at it, it has no conditions, and kubectl takes that for an error.
        for what in ["--for=jsonpath={.status.acceptedNames.kind}=ClusterNetworkPolicy", "--for=condition=Established"] {
            cluster.run(&["wait", what, "customresourcedefinition", DEFINITION, "--timeout=60s"])?;
        }
        Ok(installed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.cluster.run(&["delete", "customresourcedefinition", DEFINITION, "--timeout=60s"])
        {
            eprintln!("the definition could not be deleted: {error:#}");
        }
    }
}
