//! What users do to policies and labels, and how the verdict follows: on one node and between two, over both families.

use anyhow::Result;
use palisade_e2e::cluster::{Cluster, Namespace};
use palisade_e2e::pod;
use palisade_e2e::probe::Outcome::{Reached, Silent};
use palisade_e2e::scene::{Scene, policy};
use serde_json::json;

#[test]
fn a_policy_refuses_what_it_does_not_name_until_it_is_deleted() -> Result<()> {
    let scene = Scene::start("policy")?;
    scene.expect("without a policy", &Reached, &Reached);
    scene.policy("closed", &json!({ "podSelector": { "matchLabels": { "app": "server" } }, "policyTypes": ["Ingress"] }))?;
    scene.expect("under default deny of ingress", &Silent, &Silent);
    scene.servers_in.run(&["delete", "networkpolicy", "closed"])?;
    scene.expect("after the policy was deleted", &Reached, &Reached);
    Ok(())
}

#[test]
fn a_changed_policy_flips_the_verdict() -> Result<()> {
    let scene = Scene::start("changed")?;
    let allow = |port: u16, protocol: &str| {
        json!({
            "podSelector": {},
            "ingress": [{
                "from": [{ "namespaceSelector": {} }],
                "ports": [{ "port": port, "protocol": protocol }],
            }],
        })
    };
    scene.policy("ports", &allow(pod::TCP_PORT, "TCP"))?;
    scene.expect("with TCP allowed", &Reached, &Silent);
    scene.policy("ports", &allow(pod::UDP_PORT, "UDP"))?;
    scene.expect("with UDP allowed instead", &Silent, &Reached);
    scene.policy("ports", &allow(pod::TCP_PORT + 1, "TCP"))?;
    scene.expect("with another port allowed", &Silent, &Silent);
    Ok(())
}

#[test]
fn a_relabelled_pod_flips_the_verdict() -> Result<()> {
    let scene = Scene::start("pod")?;
    scene.policy(
        "from-trusted",
        &json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "ingress": [{ "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "trusted": "yes" } } }] }],
        }),
    )?;
    scene.expect("while the client lacks the label", &Silent, &Silent);
    scene.clients_in.run(&["label", "pod", &scene.client().name, "trusted=yes"])?;
    scene.expect("after the client was labelled", &Reached, &Reached);
    scene.clients_in.run(&["label", "pod", &scene.client().name, "trusted-"])?;
    scene.expect("after the label was taken away", &Silent, &Silent);
    scene.servers_in.run(&["label", "pods", "--all", "--overwrite", "app=open"])?;
    scene.expect("after the policy lost its subjects by a label", &Reached, &Reached);
    Ok(())
}

#[test]
fn a_relabelled_namespace_flips_the_verdict() -> Result<()> {
    let scene = Scene::start("namespace")?;
    scene.policy(
        "from-frontend",
        &json!({
            "podSelector": {},
            "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "frontend" } } }] }],
        }),
    )?;
    scene.expect("from the namespace that the policy names", &Reached, &Reached);
    let namespace = scene.clients_in.name.clone();
    scene.cluster().run(&["label", "namespace", &namespace, "--overwrite", "team=other"])?;
    scene.expect("after the namespace was relabelled", &Silent, &Silent);
    scene.cluster().run(&["label", "namespace", &namespace, "--overwrite", "team=frontend"])?;
    scene.expect("after its label came back", &Reached, &Reached);
    Ok(())
}

#[test]
fn an_egress_policy_refuses_at_the_side_that_opens() -> Result<()> {
    let scene = Scene::start("egress")?;
    policy(
        &scene.clients_in,
        "only-tcp",
        &json!({
            "podSelector": {},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": scene.servers_in.name } } }],
                "ports": [{ "port": pod::TCP_PORT, "protocol": "TCP" }],
            }],
        }),
    )?;
    scene.expect("with TCP to the servers allowed", &Reached, &Silent);
    policy(&scene.clients_in, "only-tcp", &json!({ "podSelector": {}, "policyTypes": ["Egress"] }))?;
    scene.expect("under default deny of egress", &Silent, &Silent);
    Ok(())
}

#[test]
fn kubelet_reaches_the_probes_of_pods_under_default_deny() -> Result<()> {
    let cluster = Cluster::connect();
    let namespace = Namespace::create(&cluster, "kubelet", &[])?;
    policy(&namespace, "closed", &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))?;
    let nodes = cluster.nodes()?;
    // Ready only by an HTTP probe that kubelet makes; `start` waits for that.
    let pods = pod::start(&namespace, &[pod::server("one", &nodes[0], &[]), pod::server("two", &nodes[1], &[])])?;
    assert_eq!(pods.len(), 2);
    Ok(())
}
