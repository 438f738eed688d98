//! The agent goes away and comes back while pods talk.

use anyhow::{Result, ensure};
use palisade_e2e::cluster::{Cluster, Namespace, items};
use palisade_e2e::pod::{self, Pod, named};
use palisade_e2e::scene::policy;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Lines of a transfer, and packets of a stream.
const LENGTH: usize = 200;
/// One each tenth of a second: the transfer outlasts the restart.
const PACE: &str = "0.1";
const STREAM_PORT: u16 = 9000;
const AGENTS: &str = "app.kubernetes.io/name=palisade";

#[test]
fn an_agents_restart_during_a_transfer_loses_nothing_and_opens_nothing() -> Result<()> {
    let cluster = Cluster::connect();
    let nodes = cluster.nodes()?;
    let namespace = Namespace::create(&cluster, "restart", &[])?;
    policy(
        &namespace,
        "servers",
        &json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }],
        }),
    )?;
    // Its input stays open: at the end of its input nc would hang up.
    let listen = format!("sleep 3600 | nc -l -p {STREAM_PORT}");
    let server = |name: &str, node: &str| pod::shell(name, node, &[("app", "server")], &listen);
    let servers = pod::start(&namespace, &[server("server-near", &nodes[0]), server("server-far", &nodes[1])])?;

    let mut talkers: Vec<Value> = Vec::new();
    for server in &servers {
        let (ipv4, ipv6) = (server.address(false)?, server.address(true)?);
        let stream = format!("(for i in $(seq 1 {LENGTH}); do echo line-$i; sleep {PACE}; done) | nc {ipv4} {STREAM_PORT} & ");
        let echoes = format!("for a in {ipv4} {ipv6}; do ping -q -c {LENGTH} -i {PACE} -w 60 $a & done; wait; echo finished");
        talkers.push(pod::shell(&format!("client-of-{}", server.name), &nodes[0], &[("app", "client")], &format!("{stream}{echoes}")));
        talkers.push(pod::shell(
            &format!("stranger-to-{}", server.name),
            &nodes[0],
            &[("app", "stranger")],
            &echoes.replace("-w 60", "-w 15"),
        ));
    }
    let pods = pod::start(&namespace, &talkers)?;
    for server in &servers {
        wait_for(&cluster, server, "line-3\n")?;
    }
    restart_agents(&cluster)?;
    let lines = servers.iter().map(|server| Ok(server.log(&cluster)?.lines().count())).collect::<Result<Vec<usize>>>()?;
    ensure!(lines.iter().all(|count| *count < LENGTH), "the transfer ended before the restart did: {lines:?} lines");

    for server in &servers {
        wait_for(&cluster, server, &format!("line-{LENGTH}\n"))?;
        let log = server.log(&cluster)?;
        let received: Vec<&str> = log.lines().filter(|line| line.starts_with("line-")).collect();
        let sent: Vec<String> = (1..=LENGTH).map(|line| format!("line-{line}")).collect();
        assert_eq!(received, sent, "what {} received", server.name);

        let client = named(&pods, &format!("client-of-{}", server.name))?;
        wait_for(&cluster, client, "finished")?;
        assert_losses(&client.log(&cluster)?, "0%", &client.name);
        let stranger = named(&pods, &format!("stranger-to-{}", server.name))?;
        wait_for(&cluster, stranger, "finished")?;
        assert_losses(&stranger.log(&cluster)?, "100%", &stranger.name);
    }
    Ok(())
}

/// Both families' echoes were lost to this share.
fn assert_losses(log: &str, share: &str, who: &str) {
    let losses: Vec<&str> = log.lines().filter(|line| line.contains("packet loss")).collect();
    let expected = format!(" {share} packet loss");
    assert!(losses.len() == 2 && losses.iter().all(|line| line.contains(&expected)), "{who}, expected {share}:\n{log}");
}

/// Deletes the agents' pods at once and waits until their successors are ready; meanwhile a pod is born.
fn restart_agents(cluster: &Cluster) -> Result<()> {
    let list = cluster.json(&["get", "pods", "--all-namespaces", "--selector", AGENTS])?;
    let agents: Vec<(String, String)> = items(&list)
        .filter_map(|pod| Some((pod["metadata"]["namespace"].as_str()?.to_owned(), pod["metadata"]["uid"].as_str()?.to_owned())))
        .collect();
    ensure!(!agents.is_empty(), "no pods with {AGENTS}: is Palisade installed?");
    let namespace = &agents[0].0;
    cluster.run(&["delete", "pods", "--namespace", namespace, "--selector", AGENTS, "--grace-period=0", "--force"])?;
    let born = Namespace::create(cluster, "restart-birth", &[])?;
    // Kubelet tries again while there is no agent to wire the pod.
    pod::start(&born, &[pod::server("born", &cluster.nodes()?[0], &[])])?;
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let list = cluster.json(&["get", "pods", "--namespace", namespace, "--selector", AGENTS])?;
        let ready = items(&list).filter(|pod| {
            let fresh = agents.iter().all(|(_, uid)| pod["metadata"]["uid"] != uid.as_str());
            fresh
                && pod["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        });
        if ready.count() == agents.len() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the agents do not come back: {list:#}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn wait_for(cluster: &Cluster, pod: &Pod, text: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !pod.log(cluster)?.contains(text) {
        ensure!(Instant::now() < deadline, "{} never said {text:?}:\n{}", pod.name, pod.log(cluster)?);
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}
