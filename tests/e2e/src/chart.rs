//! The chart, as Helm makes objects of it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;

/// What the chart makes with these values.
pub fn rendered(template: &str, values: &[&str]) -> Result<Value> {
    let mut helm = Command::new("helm");
    helm.args(["template", "palisade", concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/palisade"), "--show-only", template]);
    helm.args(values.iter().flat_map(|value| ["--set", value]));
    let output = helm.output().with_context(|| format!("starting {helm:?}"))?;
    ensure!(output.status.success(), "{helm:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).context("what helm printed")
}
