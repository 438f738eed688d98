//! ClusterNetworkPolicy's definition as upstream publishes it, by its Go module.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The Go module that upstream publishes the definition in.
const MODULE: &str = "sigs.k8s.io/network-policy-api";
const MODULE_VERSION: &str = "v0.2.0";
const DEFINITION: &str = "clusternetworkpolicies.policy.networking.k8s.io";
/// How long until every agent has noticed that the kind came or went: they look every 5 seconds.
pub const NOTICED: Duration = Duration::from_secs(12);

/// The definition of a channel, as a file in the directory, which keeps what was downloaded.
fn upstream(channel: &str, directory: &Path) -> Result<PathBuf> {
    let archive = directory.join(format!("network-policy-api-{MODULE_VERSION}.zip"));
    let run = |command: &mut Command| -> Result<Vec<u8>> {
        let output = command.output().with_context(|| format!("starting {command:?}: is it installed?"))?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    };
    if !archive.exists() {
        let part = archive.with_extension("part");
        let url = format!("https://proxy.golang.org/{MODULE}/@v/{MODULE_VERSION}.zip");
        run(Command::new("curl").args(["-fsSL", "-o"]).arg(&part).arg(url))?;
        std::fs::rename(&part, &archive)?;
    }
    let inside = format!("{MODULE}@{MODULE_VERSION}/config/crd/{channel}/policy.networking.k8s.io_clusternetworkpolicies.yaml");
    let text = run(Command::new("unzip").arg("-p").arg(&archive).arg(inside))?;
    let file = directory.join(format!("clusternetworkpolicies-{channel}.yaml"));
    std::fs::write(&file, text)?;
    Ok(file)
}

/// The definition, installed; taken away at the end where it was not there before.
#[derive(Debug)]
pub struct Installed {
    cluster: Cluster,
    ours: bool,
}

impl Installed {
    /// Installs the definition of a channel, `standard` or `experimental`; `directory` keeps what was downloaded.
    pub fn channel(cluster: &Cluster, channel: &str, directory: &Path) -> Result<Self> {
        let ours =
            cluster.run(&["get", "customresourcedefinition", DEFINITION, "--ignore-not-found", "--output", "name"])?.trim().is_empty();
        let file = upstream(channel, directory)?;
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
