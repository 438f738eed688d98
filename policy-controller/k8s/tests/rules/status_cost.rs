//! What status costs at 1 000 nodes and 30 000 policies: writes, counted, and time, printed (`--nocapture`); docs/design/status.md has both.

use crate::status::{Cluster, identity_policy};
use palisade_k8s::report::Report;
use serde_json::json;
use std::time::Instant;

const NODES: usize = 1000;
const POLICIES: usize = 30_000;
/// Each node writes at most once in this many seconds.
const PAUSE: i64 = 20;

#[test]
fn each_policy_costs_one_write_and_each_node_one_report_a_pause() {
    let mut cluster = Cluster::new(NODES);
    for policy in 0..POLICIES {
        cluster.index.upsert(&policy_of(policy, 1));
    }

    // All at once. Each node reports in its turn within a pause; each second some do.
    let mut statuses = 0;
    let per_second = NODES / usize::try_from(PAUSE).unwrap();
    let (mut longest, mut seconds) = (0, 0);
    for second in 0..PAUSE {
        let first = usize::try_from(second).unwrap() * per_second;
        (first..first + per_second).for_each(|node| cluster.report(node));
        let began = Instant::now();
        cluster.compute();
        longest = longest.max(began.elapsed().as_millis());
        // Until all have reported that a version is on its way is no news.
        if second == PAUSE - 1 {
            break;
        }
        cluster.now += 1;
    }
    while !cluster.sum.is_settled() {
        statuses += cluster.tick().len();
        seconds += 1;
        assert!(seconds < POLICIES, "it comes to rest");
    }
    println!("{POLICIES} policies at once: {NODES} reports, {statuses} statuses in {seconds} s; one sum at most {longest} ms");
    assert_eq!(statuses, POLICIES);

    // At rest: heartbeats say nothing new.
    let digests = cluster.digests();
    let same = Report::new(digests, [], None);
    for node in 0..NODES {
        assert!(!cluster.reports.take(&format!("n{node:04}"), same.clone(), cluster.now + 300), "nothing new");
    }
    cluster.compute();
    assert!(cluster.sum.is_settled());

    // One changes.
    cluster.index.upsert(&policy_of(7, 2));
    (0..NODES).for_each(|node| cluster.report(node));
    let began = Instant::now();
    cluster.compute();
    let took = began.elapsed();
    let writes: usize = (0..60).map(|_| cluster.tick().len()).sum();
    println!("one policy changes: {NODES} reports, {writes} status; one sum {} ms", took.as_millis());
    assert_eq!(writes, 1);

    // A node restarts: the same report again.
    cluster.report(3);
    cluster.compute();
    let writes: usize = (0..60).map(|_| cluster.tick().len()).sum();
    println!("a node restarts: 1 report, {writes} statuses");
    assert_eq!(writes, 0);
}

fn policy_of(policy: usize, generation: i64) -> palisade_k8s::api::IdentityPolicy {
    identity_policy(&format!("p{policy}"), generation, &json!({"subject": {}, "ingress": []}))
}
