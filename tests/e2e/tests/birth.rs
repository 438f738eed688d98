//! A new pod that a policy selects never gets a packet out or in that its policy refuses, from its first instant on.
//!
//! What counts is what arrived, as the kernel of the receiving pod counts it. Each test shows first, with pods that no policy selects, that it would see such a packet.

use anyhow::{Result, ensure};
use palisade_e2e::arrived::{Arrived, hammer, next_addresses};
use palisade_e2e::cluster::{Cluster, Namespace};
use palisade_e2e::pod::{self, Pod, named};
use palisade_e2e::scene::policy;
use serde_json::{Value, json};
use std::time::Duration;

/// How many pods of each kind are born on each node: one may be lucky.
const BIRTHS: usize = 4;

/// A pod that does nothing and listens nowhere: all that arrives was sent by somebody else.
fn quiet(name: &str, node: &str, labels: &[(&str, &str)]) -> Value {
    pod::shell(name, node, labels, "")
}

#[test]
fn a_new_pod_never_sends_what_its_policy_refuses() -> Result<()> {
    let cluster = Cluster::connect();
    let nodes = cluster.nodes()?;
    let namespace = Namespace::create(&cluster, "birth-egress", &[])?;
    policy(&namespace, "mute", &json!({ "podSelector": { "matchLabels": { "kind": "mute" } }, "policyTypes": ["Egress"] }))?;
    // Nobody but the pods of this test: another test may hammer the addresses that the sinks happen to have.
    let own = json!({ "podSelector": { "matchLabels": { "kind": "sink" } }, "ingress": [{ "from": [{ "podSelector": {} }] }] });
    policy(&namespace, "sinks", &own)?;
    let sink = |name: &str, node: &str| quiet(name, node, &[("kind", "sink")]);
    let sinks = pod::start(&namespace, &[sink("sink-0", &nodes[0]), sink("sink-1", &nodes[1])])?;

    // Sends at once, over every family and in every way, and goes on for three seconds.
    let mut script = String::new();
    for address in sinks.iter().flat_map(|sink| &sink.addresses) {
        let datagram = std::net::SocketAddr::new(*address, 9);
        script += &format!("ping -q -i 0.02 -w 3 {address} & nc -w 3 {address} 9 </dev/null & ");
        script += &format!("/agnhost connect --protocol=udp --timeout=1s {datagram} & ");
    }
    script += "wait; echo sent";
    let born = |kind: &str| -> Vec<Value> {
        let on = |node: &String| {
            (0..BIRTHS).map(|count| pod::shell(&format!("{kind}-{node}-{count}"), node, &[("kind", kind)], &script)).collect::<Vec<_>>()
        };
        nodes[..2].iter().flat_map(on).collect()
    };
    let sent = |kind: &str| -> Result<()> {
        for pod in pod::start(&namespace, &born(kind))?.iter().filter(|pod| pod.name.starts_with(kind)) {
            until(|| Ok(pod.log(&cluster)?.contains("sent")), &format!("{} has sent", pod.name))?;
        }
        Ok(())
    };

    sent("mute")?;
    for sink in &sinks {
        assert_eq!(Arrived::at(&cluster, sink)?, Arrived::NOTHING, "at {} from pods that may send nothing", sink.name);
    }
    sent("free")?;
    for sink in &sinks {
        let arrived = Arrived::at(&cluster, sink)?;
        let by_families = sink.addresses.iter().flat_map(|address| arrived.of(address.is_ipv6()));
        assert!(by_families.chain([arrived.tcp]).all(|count| count > 0), "the test would not have seen it: {arrived:?}");
    }
    Ok(())
}

#[test]
fn a_new_pod_never_receives_what_its_policy_refuses() -> Result<()> {
    let cluster = Cluster::connect();
    let nodes = cluster.nodes()?;
    let namespace = Namespace::create(&cluster, "birth-ingress", &[])?;
    policy(&namespace, "deaf", &json!({ "podSelector": { "matchLabels": { "kind": "deaf" } }, "policyTypes": ["Ingress"] }))?;

    // Where the next pods of the first node will be.
    let scouts = pod::start(&namespace, &[quiet("scout", &nodes[0], &[])])?;
    let hammered = next_addresses(named(&scouts, "scout")?);
    pod::start(&namespace, &[hammer("hammer-near", &nodes[0], &hammered), hammer("hammer-far", &nodes[1], &hammered)])?;

    let born = |kind: &str| -> Result<Vec<Pod>> {
        let pods: Vec<Value> = (0..BIRTHS).map(|count| quiet(&format!("{kind}-{count}"), &nodes[0], &[("kind", kind)])).collect();
        let mut pods = pod::start(&namespace, &pods)?;
        pods.retain(|pod| pod.name.starts_with(kind));
        for address in pods.iter().flat_map(|pod| &pod.addresses) {
            ensure!(hammered.contains(address), "{address} is not among the hammered addresses: the test would show nothing");
        }
        // Some thirty packets for each address from each side.
        std::thread::sleep(Duration::from_secs(3));
        Ok(pods)
    };
    for pod in born("deaf")? {
        assert_eq!(Arrived::at(&cluster, &pod)?, Arrived::NOTHING, "at {}, which may receive nothing", pod.name);
    }
    for pod in born("open")? {
        let arrived = Arrived::at(&cluster, &pod)?;
        assert!(arrived.has_echoes_of(&pod), "the test would not have seen it at {}: {arrived:?}", pod.name);
    }
    Ok(())
}

/// Waits until it is so.
fn until(mut so: impl FnMut() -> Result<bool>, what: &str) -> Result<()> {
    for _ in 0..150 {
        if so()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    anyhow::bail!("in vain: waited until {what}")
}
