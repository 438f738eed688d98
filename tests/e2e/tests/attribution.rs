//! Who may reach whom and why, asked of the agents of a cluster.

use anyhow::{Context, Result, ensure};
use palisade_e2e::agent::Agent;
use palisade_e2e::pod::{Pod, TCP_PORT, UDP_PORT};
use palisade_e2e::probe::Outcome::{Reached, Silent};
use palisade_e2e::scene::{Scene, policy};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long an agent may take to learn of a pod of another node.
const SOON: Duration = Duration::from_secs(10);

/// Both sides of one flow, as an agent explains them in each family.
struct Expected<'a> {
    port: &'a str,
    passes: bool,
    egress: (&'a str, &'a str),
    ingress: (&'a str, &'a str),
}

#[test]
fn every_agent_explains_both_ends_of_a_flow_and_says_which_of_them_it_does_not_judge() -> Result<()> {
    let scene = Scene::start("explain")?;
    let (servers, clients) = (&scene.servers_in.name, &scene.clients_in.name);
    let from = json!([{ "namespaceSelector": { "matchLabels": { "team": "frontend" } } }]);
    let web = json!([{ "from": from, "ports": [{ "port": TCP_PORT }] }]);
    scene.policy("web", &json!({ "podSelector": { "matchLabels": { "app": "server" } }, "ingress": web }))?;
    let out = json!([{ "ports": [{ "protocol": "UDP", "port": UDP_PORT }] }, { "ports": [{ "port": TCP_PORT }] }]);
    policy(&scene.clients_in, "out", &json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": out }))?;
    // What is said is what packets meet.
    scene.expect("with web alone let in", &Reached, &Silent);

    let [tcp, udp] = [format!("{TCP_PORT}"), format!("{UDP_PORT}/UDP")];
    let allowed = |namespace: &str, rest: &str| format!("NetworkPolicy {namespace}/{rest}");
    let (out_tcp, out_udp) = (allowed(clients, "out egress rule 1"), allowed(clients, "out egress rule 0"));
    let (in_tcp, in_udp) = (allowed(servers, "web ingress rule 0"), format!("default deny of ingress by NetworkPolicy {servers}/web"));
    let flows = [
        Expected { port: &tcp, passes: true, egress: ("allow", &out_tcp), ingress: ("allow", &in_tcp) },
        Expected { port: &udp, passes: false, egress: ("allow", &out_udp), ingress: ("default-deny", &in_udp) },
    ];
    for agent in Agent::all(scene.cluster())? {
        for server in scene.servers() {
            for flow in &flows {
                let deadline = Instant::now() + SOON;
                while let Err(error) = explains(&agent, scene.client(), server, flow) {
                    ensure!(Instant::now() < deadline, "{error:#}");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }
    Ok(())
}

/// Where policy is asked about a service's backends, it says so of each.
#[test]
fn a_flow_to_a_service_is_explained_by_its_backends() -> Result<()> {
    let scene = Scene::start("explain-service")?;
    let namespace = &scene.servers_in.name;
    let ports = json!([{ "name": "web", "port": 8080, "targetPort": TCP_PORT }, { "name": "dns", "port": 8053, "targetPort": UDP_PORT, "protocol": "UDP" }]);
    let spec = json!({ "selector": { "app": "server" }, "ports": ports, "ipFamilyPolicy": "PreferDualStack" });
    let metadata = json!({ "name": "both", "namespace": namespace });
    scene.cluster().apply(&[json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec })])?;
    let web = json!([{ "ports": [{ "port": TCP_PORT }] }]);
    scene.policy("web", &json!({ "podSelector": {}, "ingress": web }))?;
    scene.expect("with web alone let in", &Reached, &Silent);
    let service = scene.cluster().json(&["get", "service", "both", "--namespace", namespace])?;
    let address = service["spec"]["clusterIPs"][0].as_str().context("a cluster IP")?;
    let client = scene.client();
    let agents = Agent::all(scene.cluster())?;
    let agent = agents.iter().find(|agent| agent.node == client.node).context("the client's node has an agent")?;
    let from = format!("{}/{}", client.namespace, client.name);
    for (port, passes, number) in [("8080", true, TCP_PORT), ("8053/UDP", false, UDP_PORT)] {
        let explains = || -> Result<()> {
            let answers = agent.ask(&["explain", "--from", &from, "--to", address, "--port", port])?;
            let answer = &answers[0];
            ensure!(answer["passes"] == passes && answer["behind"]["of"] == format!("service {namespace}/both"), "{answers}");
            let backends = answer["behind"]["backends"].as_array().context("no backends")?;
            let found: Vec<(&Value, &Value, bool)> = backends
                .iter()
                .map(|backend| (&backend["to"]["pod"], &backend["port"], backend["ingress"]["verdict"] == "allow"))
                .collect();
            let servers: Vec<Value> = scene.servers().iter().map(|server| json!(format!("{namespace}/{}", server.name))).collect();
            let number = json!(number);
            let mut expected: Vec<_> = servers.iter().map(|server| (server, &number, passes)).collect();
            expected.sort_by_key(|(to, ..)| found.iter().position(|(pod, ..)| pod == to));
            ensure!(found == expected, "{answers}");
            Ok(())
        };
        let deadline = Instant::now() + SOON;
        while let Err(error) = explains() {
            ensure!(Instant::now() < deadline, "{error:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}

fn explains(agent: &Agent, client: &Pod, server: &Pod, flow: &Expected) -> Result<()> {
    let [from, to] = [client, server].map(|pod| format!("{}/{}", pod.namespace, pod.name));
    let answers = agent.ask(&["explain", "--from", &from, "--to", &to, "--port", flow.port])?;
    let answers = answers.as_array().context("no list of answers")?;
    ensure!(answers.len() == server.addresses.len(), "{}: an answer for each family: {answers:?}", agent.node);
    for answer in answers {
        ensure!(answer["passes"] == flow.passes, "{}: {answer}", agent.node);
        for (side, pod, (verdict, reason)) in [("egress", client, flow.egress), ("ingress", server, flow.ingress)] {
            ensure!(answer[side] == json!({ "verdict": verdict, "reason": reason }), "{}: {side}: {answer}", agent.node);
            let elsewhere = if pod.node == agent.node { Value::Null } else { json!({ "other-node": pod.node }) };
            ensure!(answer[format!("{side}Unjudged")] == elsewhere, "{}: {side}: {answer}", agent.node);
            let decides = answer[format!("{side}Rules")].as_array().is_some_and(|rules| rules.iter().any(|rule| rule["fate"] == "decides"));
            ensure!(decides == (verdict == "allow"), "{}: {side}: {answer}", agent.node);
        }
    }
    Ok(())
}
