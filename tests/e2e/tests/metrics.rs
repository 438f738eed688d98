//! What the agents tell Prometheus, and the alerts of the chart that ask for it.

use anyhow::{Context, Result, ensure};
use palisade_e2e::agent::Agent;
use palisade_e2e::chart;
use palisade_e2e::cluster::{Cluster, Namespace};
use palisade_e2e::pod;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Sums are told after the first sweep of the tables.
const SWEPT: Duration = Duration::from_secs(60);

/// The series of an agent: of each name, the sets of labels.
fn series(metrics: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut series: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, _) = line.rsplit_once(' ').unwrap_or((line, ""));
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        series.entry(name).or_default().insert(labels.trim_end_matches('}'));
    }
    series
}

#[test]
fn the_alert_of_full_tables_asks_for_series_that_every_agent_has() -> Result<()> {
    let rule = chart::rendered("templates/rules.yaml", &["metrics.rules.enabled=true", "metrics.rules.labels.release=prometheus"])?;
    ensure!(rule["kind"] == "PrometheusRule" && rule["metadata"]["labels"]["release"] == "prometheus", "{rule}");
    let alerts = rule["spec"]["groups"][0]["rules"].as_array().context("no rules")?;
    let expressions: Vec<&str> = alerts.iter().filter_map(|alert| alert["expr"].as_str()).collect();
    ensure!(expressions == [r#"palisade_map_rows{map=~"(CONNECTIONS|OUTSIDE)_V[46]"} / palisade_map_room > 0.8"#], "{expressions:?}");

    let cluster = Cluster::connect();
    let namespace = Namespace::create(&cluster, "metrics", &[])?;
    for agent in Agent::all(&cluster)? {
        let name = format!("on-{}", agent.node);
        let mut pod = pod::shell(&name, &agent.node, &[], "");
        pod["spec"]["hostNetwork"] = json!(true);
        let pods = pod::start(&namespace, &[pod])?;
        let pod = pod::named(&pods, &name)?;
        let begun = std::time::Instant::now();
        loop {
            let metrics = pod.shell(&cluster, "wget -q -O - http://127.0.0.1:9964/metrics")?;
            let series = series(&metrics);
            let of = |name: &str| series.get(name).cloned().unwrap_or_default();
            let (rows, room) = (of("palisade_map_rows"), of("palisade_map_room"));
            let tables: BTreeSet<&str> =
                [r#"map="CONNECTIONS_V4""#, r#"map="CONNECTIONS_V6""#, r#"map="OUTSIDE_V4""#, r#"map="OUTSIDE_V6""#].into();
            // A quotient is of two series with the same labels.
            if tables.is_subset(&rows) && tables.is_subset(&room) {
                break;
            }
            ensure!(begun.elapsed() < SWEPT, "{}: rows {rows:?}, room {room:?}", agent.node);
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    Ok(())
}
