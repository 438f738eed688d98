//! A node that nobody reaches for a while, and that comes back.

use anyhow::{Context, Result};
use palisade_e2e::administrator::{ON_NODE, administrator};
use palisade_e2e::cluster::Cluster;
use palisade_e2e::pod;
use palisade_e2e::request::Answer::Silent;
use palisade_e2e::requirement::skipped;
use palisade_e2e::scene::policy;
use palisade_e2e::service::{Served, from};
use serde_json::json;
use std::time::{Duration, Instant};

/// How many requests show who is behind a service.
const MANY: u32 = 30;
/// How long the node is away: until well after Kubernetes has noticed, which takes it 50 seconds.
const AWAY: Duration = Duration::from_secs(80);
/// How long all may take to be as it was: kubelet reports every ten seconds, and routes are looked at every thirty.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Takes the node's uplink down and, by and by, up again, with the routes and addresses that the kernel forgets meanwhile: those of the
/// administrator, not ours. It goes on when nobody listens to it any more.
fn away() -> String {
    let seconds = AWAY.as_secs();
    format!(
        r#"
        link=$(ip -o route get 192.0.2.1 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p'); link=${{link:-eth0}}
        ip -4 route show proto boot >/run/e2e-routes-4; ip -6 route show proto boot >/run/e2e-routes-6
        echo 1 >/proc/sys/net/ipv6/conf/$link/keep_addr_on_down
        # The order itself came by this link, and is to be answered.
        sleep 3
        ip link set $link down; sleep {seconds}; ip link set $link up; sleep 1
        while read -r route; do ip -4 route replace $route; done </run/e2e-routes-4
        while read -r route; do ip -6 route replace $route; done </run/e2e-routes-6
        rm /run/e2e-routes-4 /run/e2e-routes-6
        "#
    )
}

fn is_ready(cluster: &Cluster, node: &str) -> Result<bool> {
    let node = cluster.json(&["get", "node", node])?;
    let conditions = node["status"]["conditions"].as_array().context("a node without conditions")?;
    Ok(conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
}

/// Waits until Kubernetes says of the node what is wanted.
fn until_ready(cluster: &Cluster, node: &str, wanted: bool, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    while is_ready(cluster, node)? != wanted {
        assert!(
            Instant::now() < deadline,
            "the node {node} is not {} after {} s",
            if wanted { "back" } else { "given up" },
            within.as_secs()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[test]
fn a_node_that_goes_takes_no_request_with_it_and_is_served_again_when_it_comes_back() -> Result<()> {
    let cluster = Cluster::connect();
    let last = &cluster.places()?.far;
    let count = cluster.nodes()?.len();
    if count < 3 {
        skipped(&format!("the node that goes may be none that other scenarios need, which takes three nodes; there are {count}"));
        return Ok(());
    }
    let served = Served::start("loss", env!("CARGO_BIN_EXE_prober").as_ref())?;
    let service = served.serve("both", json!({}))?;
    let [near, far] = &served.clients;
    served.expect("while both nodes are there", near, &service, MANY, &from(&["near", "far"]))?;
    served.expect("while both nodes are there", far, &service, MANY, &from(&["near", "far"]))?;
    let administrator = pod::start(&served.namespace, &[administrator("administrator", last)])?;
    let administrator = pod::named(&administrator, "administrator")?;
    let script = away().replace('\'', r"'\''");
    administrator.shell(&cluster, &format!("{ON_NODE} setsid sh -c '{script}' >/dev/null 2>&1 </dev/null &"))?;

    until_ready(&cluster, last, false, AWAY)?;
    served.expect("without the node", near, &service, MANY, &from(&["near"]))?;
    // What changes meanwhile it hears of when it is back.
    let own = json!({ "podSelector": { "matchLabels": { "at": "far", "app": "backend" } }, "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "at": "near" } } }] }] });
    policy(&served.namespace, "meanwhile", &own)?;
    until_ready(&cluster, last, true, AWAY + BACK_WITHIN)?;

    // `expect` waits as long as a change of policy takes; a node takes longer.
    let deadline = Instant::now() + BACK_WITHIN;
    while !served.ask(near, &service, MANY)?.iter().any(|said| from(&["far"]).contains(&said.answer)) {
        assert!(Instant::now() < deadline, "the pods of {last} do not answer {} s after it came back", BACK_WITHIN.as_secs());
    }
    served.expect("with the node back, from another node", near, &service, MANY, &from(&["near", "far"]))?;
    let others = served.serve("far", json!({ "selector": { "app": "backend", "at": "far" } }))?;
    served.expect("what came to be meanwhile lets in whom it names", near, &others, 3, &from(&["far"]))?;
    served.expect("and nobody else", far, &others, 1, &[Silent])?;
    served.serve("both", json!({ "selector": { "app": "backend", "at": "near" } }))?;
    served.expect("and the node's own pods reach others again", far, &service, 3, &from(&["near"]))
}
