//! A node that starts anew: what its kernel and its run directory held is gone, and its pods come back.

use anyhow::{Context, Result, ensure};
use palisade_e2e::administrator::{NODE, ON_NODE, administrator};
use palisade_e2e::agent::{Agent, SYSTEM};
use palisade_e2e::arrived::{Arrived, hammer, next_addresses};
use palisade_e2e::cluster::{Cluster, Places, items};
use palisade_e2e::pod::{self, Pod, UDP_PORT, named};
use palisade_e2e::request::Answer::{self, From, Silent};
use palisade_e2e::request::Target;
use palisade_e2e::requirement::skipped;
use palisade_e2e::scene::policy;
use palisade_e2e::service::{Served, backend, from, node_addresses, targets};
use palisade_e2e::world::ADDRESS_STORE;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a node may take to start, and its pods to be back, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(240);
/// How many requests show who is behind a service of three: one is missed by chance once in ten thousand million times.
const MANY: u32 = 60;
/// Where the pods of the node serve HTTP.
const WEB: u16 = 80;

/// Whether the node is a container of the engine that `docker` speaks to, which may start it anew.
fn is_container(node: &str, addresses: &[IpAddr]) -> bool {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}} {{end}}";
    let Ok(output) = Command::new("docker").args(["inspect", "--format", format, node]).output() else { return false };
    let said = String::from_utf8_lossy(&output.stdout);
    said.split_whitespace().filter_map(|address| address.parse().ok()).any(|address: IpAddr| addresses.contains(&address))
}

/// Ends all that runs on the node at once, as when it loses its power, and starts it.
fn start_anew(node: &str) -> Result<()> {
    let output = Command::new("docker").args(["restart", "-t", "0", node]).output().context("starting docker")?;
    ensure!(output.status.success(), "{node} does not start: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The pod, as one whose containers kubelet starts again and again.
fn lasting(mut pod: Value) -> Value {
    pod["spec"]["restartPolicy"] = json!("Always");
    pod
}

/// A pod of the node that serves its name.
fn serving(name: &str, node: &str) -> Value {
    let mut pod = lasting(backend(name, node, WEB));
    pod["metadata"]["labels"]["app"] = json!("serving");
    pod
}

/// What makes such a pod and keeps it.
fn controller(kind: &str, name: &str, node: &str, namespace: &str) -> Value {
    let pod = serving(name, node);
    let labels = &pod["metadata"]["labels"];
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod["spec"] } },
    })
}

/// The pods of a namespace that are ready on the node, with the container that each has now.
fn ready_on(cluster: &Cluster, node: &str, namespace: &str) -> Result<BTreeMap<String, String>> {
    let list = cluster.json(&["get", "pods", "--namespace", namespace, "--field-selector", &format!("spec.nodeName={node}")])?;
    let ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let container = |pod: &Value| Some((text(&pod["metadata"]["name"])?, text(&pod["status"]["containerStatuses"][0]["containerID"])?));
    Ok(items(&list).filter(ready).filter_map(container).collect())
}

/// What an agent says of itself and of the ways to others.
fn standing(agent: &Agent) -> Result<Value> {
    let status = agent.ask(&["status"])?;
    let parts = ["ready", "routing", "nodeServices", "uplinks"];
    Ok(parts.iter().map(|part| ((*part).to_owned(), status[*part].clone())).collect())
}

/// The containers that an agent has connected, with the interface of each.
fn endpoints(agent: &Agent) -> Result<BTreeMap<String, String>> {
    let endpoints = agent.ask(&["endpoint", "list"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let endpoints = endpoints.as_array().context("a list of endpoints")?.iter();
    Ok(endpoints.map(|endpoint| (text(&endpoint["containerId"]), text(&endpoint["hostInterface"]))).collect())
}

/// Which agents take which of the addresses for that of a pod of another node.
fn known(agents: &[&Agent], client: &Pod, addresses: &[IpAddr]) -> Result<Vec<String>> {
    let from = format!("{}/{}", client.namespace, client.name);
    let mut known = Vec::new();
    for agent in agents {
        for address in addresses.iter().map(IpAddr::to_string) {
            let answers = agent.ask(&["explain", "--from", &from, "--to", &address, "--port", &WEB.to_string()])?;
            if !answers[0]["ingressUnjudged"].is_null() {
                known.push(format!("{} knows {address}", agent.node));
            }
        }
    }
    Ok(known)
}

/// Waits until nothing is wrong; `wrong` says what is.
fn until(what: &str, mut wrong: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let late = Instant::now() > deadline;
        let found = wrong()?;
        if found.is_empty() {
            return Ok(());
        }
        ensure!(!late, "in vain: waited until {what}:\n{}", found.join("\n"));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What is on the node, and what was said of it.
struct Node<'a> {
    served: &'a Served,
    name: &'a str,
    agents: Vec<Agent>,
    /// Where its next pods are hammered, from another node.
    hammered: Vec<IpAddr>,
    /// In front of the pods that serve.
    service: Vec<Target>,
    /// Who is behind it.
    names: Vec<Answer>,
}

impl<'a> Node<'a> {
    /// Starts pods of every kind that come back with their node: those that serve let in the near client alone, `closed` nobody, `open` everybody.
    fn start(served: &'a Served, name: &'a str) -> Result<Self> {
        let namespace = &served.namespace;
        let near = json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "client", "at": "near" } } }] }]);
        for (app, rules) in [("serving", near), ("closed", json!([]))] {
            let subject = json!({ "matchLabels": { "app": app } });
            policy(namespace, app, &json!({ "podSelector": subject, "policyTypes": ["Ingress"], "ingress": rules }))?;
        }
        let controllers = [("Deployment", "deployed"), ("DaemonSet", "daemon")];
        served.cluster().apply(&controllers.map(|(kind, of)| controller(kind, of, name, &namespace.name)))?;
        for (kind, of) in controllers {
            namespace.run(&["rollout", "status", kind, of, "--timeout=150s"])?;
        }
        let quiet = |of: &str| lasting(pod::shell(of, name, &[("app", of)], ""));
        pod::start(namespace, &[quiet("closed"), quiet("open")])?;
        // The node's last one: what is next comes behind its addresses.
        let pods = pod::start(namespace, &[serving("alone", name)])?;
        let hammered = next_addresses(named(&pods, "alone")?);
        pod::start(namespace, &[hammer("hammer", &served.clients[0].node, &hammered)])?;
        let service = served.serve("serving", json!({ "selector": { "app": "serving" } }))?;
        let mut node = Self { served, name, agents: Agent::all(served.cluster())?, hammered, service, names: Vec::new() };
        node.names = node.serving(&pods).map(|pod| From(pod.name.clone())).collect();
        Ok(node)
    }

    /// Those of its pods that serve.
    fn serving<'b>(&self, pods: &'b [Pod]) -> impl Iterator<Item = &'b Pod> {
        pods.iter().filter(move |pod| pod.node == self.name && !pod.ports.is_empty())
    }

    fn agent(&self) -> Result<&Agent> {
        self.agents.iter().find(|agent| agent.node == self.name).context("a node without an agent")
    }

    /// Asserts that the pods answer whom their policy names, by their service and by their own addresses, and nobody else.
    fn expect(&self, when: &str, pods: &[Pod]) -> Result<()> {
        let (served, [near, far]) = (self.served, &self.served.clients);
        served.expect(&format!("{when}, by the service"), near, &self.service, MANY, &self.names)?;
        served.expect(&format!("{when}, by the service, whom the policy refuses"), far, &self.service, 1, &[Silent])?;
        for pod in self.serving(pods) {
            let own = targets(&pod.addresses, WEB, UDP_PORT);
            served.expect(&format!("{when}, by its own addresses"), near, &own, 3, &[From(pod.name.clone())])?;
            served.expect(&format!("{when}, by its own addresses, whom the policy refuses"), far, &own, 1, &[Silent])?;
        }
        Ok(())
    }

    /// Waits until each of the pods is ready with another container; meanwhile nobody answers whom the policy refuses.
    fn until_back(&self, containers: &[(&str, BTreeMap<String, String>)]) -> Result<()> {
        let (served, far) = (self.served, &self.served.clients[1]);
        until("the pods are back", || {
            let answered: Vec<_> = served.ask(far, &self.service, 1)?.into_iter().filter(|said| matches!(said.answer, From(_))).collect();
            assert!(answered.is_empty(), "whom the policy refuses was answered meanwhile: {answered:?}");
            let mut missing = Vec::new();
            for (namespace, before) in containers {
                let now = ready_on(served.cluster(), self.name, namespace)?;
                let is_missing = |(pod, container): &(&String, &String)| now.get(*pod).is_none_or(|now| now == *container);
                missing.extend(before.iter().filter(is_missing).map(|(pod, _)| format!("{namespace}/{pod}")));
            }
            Ok(missing)
        })
    }

    /// Asserts what has arrived, since they were made, at the pod that nobody may reach, and at the other.
    fn expect_arrived(&self, pods: &[Pod]) -> Result<()> {
        let (closed, open) = (named(pods, "closed")?, named(pods, "open")?);
        for address in closed.addresses.iter().chain(&open.addresses) {
            ensure!(self.hammered.contains(address), "{address} is not among the hammered addresses: the test would show nothing");
        }
        let arrived = Arrived::at(self.served.cluster(), open)?;
        assert!(arrived.has_echoes_of(open), "the test would not have seen it: {arrived:?}");
        assert_eq!(Arrived::at(self.served.cluster(), closed)?, Arrived::NOTHING, "at the pod that nobody may reach");
        Ok(())
    }

    /// Waits until addresses and interfaces are those of the containers that there are: none of these that were `before`.
    fn until_forgotten(&self, before: &BTreeMap<String, String>) -> Result<()> {
        let cluster = self.served.cluster();
        let pods = pod::start(&self.served.namespace, &[administrator("administrator", self.name)])?;
        let administrator = named(&pods, "administrator")?;
        until("nothing is left of the pods before", || {
            let now = endpoints(self.agent()?)?;
            let store: Value = serde_json::from_str(&administrator.shell(cluster, &format!("cat {NODE}{ADDRESS_STORE}/addresses.json"))?)?;
            let leases = store["leases"].as_array().context("a store without leases")?.iter();
            let leases: BTreeSet<&str> = leases.filter_map(|lease| lease["containerId"].as_str()).collect();
            let links = administrator.shell(cluster, &format!("{ON_NODE} ip -o link show type veth"))?;
            // NUMBER: NAME@PEER: ...
            let links = links.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(str::trim);
            let links: BTreeSet<&str> = links.filter(|link| link.starts_with("pal")).collect();
            let (containers, interfaces): (BTreeSet<&str>, BTreeSet<&str>) =
                now.iter().map(|(container, interface)| (container.as_str(), interface.as_str())).unzip();
            let mut left: Vec<String> = before.keys().filter(|old| now.contains_key(*old)).map(|old| format!("endpoint {old}")).collect();
            if leases != containers || links != interfaces {
                left.push(format!("leases of {leases:?} and links {links:?}, while there are {now:?}"));
            }
            Ok(left)
        })
    }
}

#[test]
fn a_node_that_starts_anew_has_its_pods_back_under_their_policies_and_nothing_of_those_before() -> Result<()> {
    let cluster = Cluster::connect();
    let nodes = cluster.nodes()?;
    let (last, others) = nodes.split_last().context("no nodes")?;
    let prober = Path::new(env!("CARGO_BIN_EXE_prober"));
    // On nodes that stay.
    let places = Places { near: others[0].clone(), far: others[others.len() - 1].clone(), beside: None };
    let served = Served::start_at("reboot", prober, &places)?;
    let addresses = node_addresses(&cluster, last, &served.clients[0])?;
    if !is_container(last, &addresses) {
        skipped(&format!("{last} is no container that `docker` knows here: nobody can start it anew"));
        return Ok(());
    }
    let node = Node::start(&served, last)?;
    let pods = pod::ready(&cluster, &served.namespace.name)?;
    node.expect("before", &pods)?;
    let said: Vec<Value> = node.agents.iter().map(standing).collect::<Result<_>>()?;
    let connected = endpoints(node.agent()?)?;
    let old = &named(&pods, "alone")?.addresses;
    let client = &served.clients[0];
    let of_others: Vec<&Agent> = node.agents.iter().filter(|agent| agent.node != *last).collect();
    assert_eq!(known(&of_others, client, old)?.len(), of_others.len() * old.len(), "whom the agents of other nodes know at {old:?}");
    let mut containers = Vec::new();
    for namespace in [served.namespace.name.as_str(), SYSTEM] {
        containers.push((namespace, ready_on(&cluster, last, namespace)?));
    }

    let begun = Instant::now();
    start_anew(last)?;
    ensure!(is_container(last, &addresses), "the engine gave {last} other addresses than {addresses:?}");
    node.until_back(&containers)?;
    println!("{last}: its pods were back {} s after it ended", begun.elapsed().as_secs());
    cluster.run(&["wait", "--for=condition=Ready", "node", last, "--timeout=150s"])?;

    let pods = pod::ready(&cluster, &served.namespace.name)?;
    node.expect("after it started anew", &pods)?;
    let to_others = served.serve("others", json!({}))?;
    let alone = served.with_prober(&pods, "alone", prober)?;
    served.expect("others, by a pod that is back", &alone, &to_others, MANY, &from(&["near", "far"]))?;
    node.expect_arrived(&pods)?;
    until("every agent says what it said before", || {
        let mut wrong = Vec::new();
        for (agent, before) in node.agents.iter().zip(&said) {
            let now = standing(agent)?;
            if now != *before {
                wrong.push(format!("{}: {now}, it was {before}", agent.node));
            }
        }
        Ok(wrong)
    })?;
    node.until_forgotten(&connected)?;
    until("other nodes know nobody at the addresses before", || known(&of_others, client, old))
}
