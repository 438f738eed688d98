//! The agent goes away and comes back while pods talk.

use anyhow::{Result, ensure};
use palisade_e2e::cluster::{Cluster, Namespace, items};
use palisade_e2e::pod::{self, Pod, named};
use palisade_e2e::scene::policy;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Seconds between two lines of a transfer, or two echoes.
const PACE: &str = "0.1";
const STREAM_PORT: u16 = 9000;
const AGENTS: &str = "app.kubernetes.io/name=palisade";
/// While this file is not in a pod, the pod goes on.
const STOP: &str = "/tmp/stop";

#[test]
fn an_agents_restart_during_a_transfer_loses_nothing_and_opens_nothing() -> Result<()> {
    let cluster = Cluster::connect();
    let places = cluster.places()?;
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
    let servers: Vec<Value> = places.all().map(|(at, node)| server(&format!("server-{at}"), node)).collect();
    let servers = pod::start(&namespace, &servers)?;

    let mut talkers: Vec<Value> = Vec::new();
    for server in &servers {
        let addresses: Vec<String> = server.addresses.iter().map(ToString::to_string).collect();
        let lines = format!("i=0; while [ ! -e {STOP} ]; do i=$((i+1)); echo line-$i; sleep {PACE}; done; echo the-end");
        let stream = format!("({lines}) | nc {} {STREAM_PORT} & ", addresses[0]);
        // Interrupted, ping says how many it sent.
        let begin: String = addresses.iter().map(|address| format!("ping -i {PACE} {address} & all=\"$all $!\"; ")).collect();
        let echoes = format!("{begin}while [ ! -e {STOP} ]; do sleep 0.2; done; kill -INT $all; wait $all; echo finished");
        let talker =
            |who: &str, app: &str, script: &str| pod::shell(&format!("{who}-{}", server.name), &places.near, &[("app", app)], script);
        // Other nodes hear of a new pod a moment later: only then do the streams begin.
        let known = format!("for a in {}; do until ping -c 1 -w 1 $a >/dev/null; do sleep 0.2; done; done; ", addresses.join(" "));
        talkers.push(talker("client-of", "client", &format!("{known}{stream}{echoes}")));
        talkers.push(talker("stranger-to", "stranger", &echoes));
    }
    let pods = pod::start(&namespace, &talkers)?;
    for server in &servers {
        wait_for(&cluster, server, "line-3\n")?;
    }
    restart_agents(&cluster)?;
    // What was broken by the successors shows a moment later.
    std::thread::sleep(Duration::from_secs(2));
    for talker in pods.iter().filter(|pod| !servers.contains(pod)) {
        talker.shell(&cluster, &format!("touch {STOP}"))?;
    }

    for server in &servers {
        wait_for(&cluster, server, "the-end\n")?;
        let log = server.log(&cluster)?;
        let received: Vec<&str> = log.lines().filter(|line| line.starts_with("line-")).collect();
        let sent: Vec<String> = (1..=received.len()).map(|line| format!("line-{line}")).collect();
        assert_eq!(received, sent, "what {} received", server.name);

        let client = named(&pods, &format!("client-of-{}", server.name))?;
        wait_for(&cluster, client, "finished")?;
        assert_echoes(&client.log(&cluster)?, true, client);
        let stranger = named(&pods, &format!("stranger-to-{}", server.name))?;
        wait_for(&cluster, stranger, "finished")?;
        assert_echoes(&stranger.log(&cluster)?, false, stranger);
    }
    Ok(())
}

/// Of the echoes of each family that a pod has, all were answered, or none.
fn assert_echoes(log: &str, all: bool, pod: &Pod) {
    let (who, families) = (&pod.name, pod.addresses.len());
    for ipv6 in pod.addresses.iter().map(IpAddr::is_ipv6) {
        let of_family = |line: &&str| line.split_whitespace().nth(3).is_some_and(|address| address.matches(':').count() > 1) == ipv6;
        // 64 bytes from ADDRESS: seq=NUMBER ttl=...
        let replies = log.lines().filter(|line| line.contains(" bytes from ")).filter(of_family);
        let numbers: Vec<usize> = replies.filter_map(|line| line.split("seq=").nth(1)?.split(' ').next()?.parse().ok()).collect();
        let expected: Vec<usize> = (0..numbers.len()).collect();
        assert_eq!(numbers, expected, "{who}: the answered echoes, IPv6: {ipv6}");
        assert_eq!(!numbers.is_empty(), all, "{who}: answers, IPv6: {ipv6}");
    }
    let sent: Vec<usize> = log.lines().filter_map(|line| line.split(" packets transmitted").next()?.parse().ok()).collect();
    let answered = log.matches(" bytes from ").count();
    assert!(sent.len() == families && sent.iter().all(|count| *count > 20), "{who} did not send: {sent:?}");
    // The last of each family may be on its way.
    assert!(!all || sent.iter().sum::<usize>() <= answered + families, "{who}: {answered} answers to {sent:?}");
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
