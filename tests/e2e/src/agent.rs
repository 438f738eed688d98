//! The agents of the nodes, asked by the command line that is in their pods.

use crate::cluster::{Cluster, items};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;

/// The namespace of the agents' pods, and of what they keep in the cluster.
pub const SYSTEM: &str = "kube-system";

/// The agent of a node.
#[derive(Clone, Debug)]
pub struct Agent {
    cluster: Cluster,
    /// The name of its node.
    pub node: String,
    /// The name of its pod.
    pub pod: String,
}

impl Agent {
    /// The agents of all nodes.
    pub fn all(cluster: &Cluster) -> Result<Vec<Self>> {
        let list = cluster.json(&["get", "pods", "--namespace", SYSTEM, "--selector", "app.kubernetes.io/name=palisade"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let agent =
            |pod: &Value| Self { cluster: cluster.clone(), node: text(&pod["spec"]["nodeName"]), pod: text(&pod["metadata"]["name"]) };
        Ok(items(&list).map(agent).collect())
    }

    /// What `palisade` says there, as JSON.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        self.answer(arguments, Duration::from_secs(60))
    }

    /// The first event that `palisade observe` shows of those that `filters` let through.
    ///
    /// # Errors
    /// Where there is none within `limit`.
    pub fn event(&self, filters: &[&str], limit: Duration) -> Result<Value> {
        self.answer(&[&["observe", "--count", "1"], filters].concat(), limit)
    }

    fn answer(&self, arguments: &[&str], limit: Duration) -> Result<Value> {
        let exec = ["exec", "--namespace", SYSTEM, &self.pod, "--container", "agent", "--", "palisade"];
        let output = self.cluster.output(&[&exec, arguments, &["--output", "json"]].concat(), "", limit)?;
        if !output.status.success() {
            bail!("palisade {} on {}: {}", arguments.join(" "), self.node, String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("palisade {} on {} printed no JSON", arguments.join(" "), self.node))
    }
}
