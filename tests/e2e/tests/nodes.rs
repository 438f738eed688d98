//! Nodes as peers, and pods on their network: processes of a node are no pods, and only those of a pod's own node are let in.

use anyhow::Result;
use palisade_e2e::cluster::{Cluster, Namespace};
use palisade_e2e::definition::{Installed, NOTICED};
use palisade_e2e::pod::{self, Pod, TCP_PORT, named};
use palisade_e2e::probe::Outcome::{self, Reached, Silent};
use palisade_e2e::probe::{Probe, run_all};
use palisade_e2e::scene;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a change may take to be enforced.
const SOON: Duration = Duration::from_secs(5);
/// Where servers on a node's network listen.
const HOST_PORT: u16 = 18_083;
const NETWORKING: &str = "networking.k8s.io/v1";
const OURS: &str = "palisade.dev/v1alpha1";

/// A pod and its node's other inhabitant: a server on the network of each of two nodes.
struct Nodes {
    namespace: Namespace,
    /// On the first node.
    pod: Pod,
    /// On the network of the first node.
    own: Pod,
    /// On the network of the second.
    other: Pod,
}

/// A server on its node's network. It carries labels as others do; no selector may match it.
fn on_the_network_of(node: &str, name: &str) -> Value {
    let mut pod = pod::server(name, node, &[("app", "host")]);
    pod["spec"]["hostNetwork"] = json!(true);
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["netexec", format!("--http-port={HOST_PORT}"), "--udp-port=18056"]);
    container["ports"] = json!([{ "containerPort": HOST_PORT, "hostPort": HOST_PORT }]);
    container["readinessProbe"]["httpGet"]["port"] = json!(HOST_PORT);
    pod
}

impl Nodes {
    fn start(cluster: &Cluster, nodes: &[String]) -> Result<Self> {
        let namespace = Namespace::create(cluster, "nodes", &[])?;
        let objects =
            [on_the_network_of(&nodes[0], "own"), on_the_network_of(&nodes[1], "other"), pod::server("pod", &nodes[0], &[("app", "pod")])];
        let pods = pod::start(&namespace, &objects)?;
        let pod = |name| named(&pods, name).cloned();
        Ok(Self { pod: pod("pod")?, own: pod("own")?, other: pod("other")?, namespace })
    }

    fn apply(&self, version: &str, kind: &str, name: &str, spec: &Value) -> Result<()> {
        let mut metadata = json!({ "name": name });
        if kind != "ClusterNetworkPolicy" {
            metadata["namespace"] = json!(self.namespace.name);
        }
        self.namespace.cluster().apply(&[json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec })])
    }

    fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.namespace.run(&["delete", kind, name]).map(drop)
    }

    /// Asserts that this comes, soon, of what the pod sends to either node, and either node to the pod, over every family.
    #[track_caller]
    fn expect(&self, when: &str, to_own: &Outcome, to_other: &Outcome, from_own: &Outcome, from_other: &Outcome) -> Result<()> {
        let flows = [
            (&self.pod, &self.own, HOST_PORT, to_own),
            (&self.pod, &self.other, HOST_PORT, to_other),
            (&self.own, &self.pod, TCP_PORT, from_own),
            (&self.other, &self.pod, TCP_PORT, from_other),
        ];
        let begun = Instant::now();
        loop {
            let (mut probes, mut outcomes) = (Vec::new(), Vec::new());
            for (from, to, port, wanted) in flows {
                for &address in &to.addresses {
                    probes.push(Probe { from: from.clone(), to: to.name.clone(), address, port, protocol: "TCP".to_owned() });
                    outcomes.push(wanted);
                }
            }
            let late = begun.elapsed() > SOON;
            let came = run_all(self.namespace.cluster(), probes);
            let wrong: Vec<String> = came
                .iter()
                .zip(outcomes)
                .filter(|((_, outcome), wanted)| outcome != *wanted)
                .map(|((probe, outcome), wanted)| format!("{probe}: {outcome}, not {wanted}"))
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            assert!(!late, "{when}:\n{}", wrong.join("\n"));
        }
    }
}

// One test: the definition belongs to the whole cluster, and the ports to the nodes.
#[test]
fn nodes_are_peers_by_entity_block_and_label_and_never_by_a_pod_s_labels() -> Result<()> {
    let cluster = Cluster::connect();
    let names = cluster.nodes()?;
    let nodes = Nodes::start(&cluster, &names)?;
    nodes.expect("without a policy", &Reached, &Reached, &Reached, &Reached)?;

    // Towards the pod: its own node's processes always, another node's by its addresses and not by labels.
    nodes.apply(NETWORKING, "NetworkPolicy", "closed", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] }))?;
    nodes.expect("closed for what comes in", &Reached, &Reached, &Reached, &Silent)?;
    let everybody = json!({ "podSelector": {}, "ingress": [{ "from": [{ "namespaceSelector": {} }, { "podSelector": { "matchLabels": { "app": "host" } } }] }] });
    nodes.apply(NETWORKING, "NetworkPolicy", "closed", &everybody)?;
    nodes.expect("open for all pods", &Reached, &Reached, &Reached, &Silent)?;
    let blocks = scene::blocks(&nodes.other.addresses);
    nodes.apply(NETWORKING, "NetworkPolicy", "closed", &json!({ "podSelector": {}, "ingress": [{ "from": blocks }] }))?;
    nodes.expect("open for a block of the other node", &Reached, &Reached, &Reached, &Reached)?;

    // From the pod: both nodes are judged.
    let egress = json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": blocks }] });
    nodes.apply(NETWORKING, "NetworkPolicy", "closed", &egress)?;
    nodes.expect("out to a block of the other node", &Silent, &Reached, &Reached, &Reached)?;
    nodes.delete("networkpolicy", "closed")?;
    let to = |entity: &str| json!({ "subject": {}, "egress": [{ "action": "Allow", "peers": [{ "entity": entity }] }] });
    nodes.apply(OURS, "IdentityPolicy", "entity", &to("Host"))?;
    nodes.expect("out to the pod's own node", &Reached, &Silent, &Reached, &Reached)?;
    nodes.apply(OURS, "IdentityPolicy", "entity", &to("Nodes"))?;
    nodes.expect("out to nodes", &Reached, &Reached, &Reached, &Reached)?;
    nodes.apply(OURS, "IdentityPolicy", "entity", &to("World"))?;
    nodes.expect("out to the world, of which nodes are no part", &Silent, &Silent, &Reached, &Reached)?;
    nodes.delete("identitypolicy", "entity")?;

    // By label, which upstream's experimental channel has.
    let _installed = Installed::channel(&cluster, "experimental")?;
    std::thread::sleep(NOTICED);
    let labelled = json!([{ "nodes": { "matchLabels": { "kubernetes.io/hostname": names[1] } } }]);
    let subject = json!({ "namespaces": { "matchLabels": { "kubernetes.io/metadata.name": nodes.namespace.name } } });
    let spec = json!({ "tier": "Admin", "priority": 0, "subject": subject, "egress": [{ "action": "Deny", "to": labelled }] });
    nodes.apply("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "e2e-nodes", &spec)?;
    nodes.expect("with the other node denied by its label", &Reached, &Silent, &Reached, &Reached)?;
    cluster.run(&["delete", "cnp", "e2e-nodes"])?;
    nodes.expect("after it", &Reached, &Reached, &Reached, &Reached)
}
