//! A client and servers, one on its node and one on each other place: every verdict is asked for on every path.

use crate::agent::Agent;
use crate::cluster::{Cluster, Namespace};
use crate::pod::{self, Pod, TCP_PORT, UDP_PORT, named};
use crate::probe::{Outcome, Probe, run_all};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a change may take to be enforced: "a few seconds", on a machine that is busy.
const SOON: Duration = Duration::from_secs(5);

/// How long the agents may take to tell of what the policies in audit mode would have done, once flows come.
const TOLD: Duration = Duration::from_secs(30);

/// A client and servers. Servers carry `app=server`, clients `app=client`.
#[derive(Debug)]
pub struct Scene {
    /// Where the servers are.
    pub servers_in: Namespace,
    /// Where the client is.
    pub clients_in: Namespace,
    servers: Vec<Pod>,
    client: Pod,
}

impl Scene {
    /// Starts the pods, each of the two sides in a namespace of its own; no policy yet.
    pub fn start(purpose: &str) -> Result<Self> {
        let cluster = Cluster::connect();
        let places = cluster.places()?;
        let servers_in = Namespace::create(&cluster, &format!("{purpose}-servers"), &[])?;
        let clients_in = Namespace::create(&cluster, &format!("{purpose}-clients"), &[("team", "frontend")])?;
        let servers: Vec<Value> = places.all().map(|(at, node)| pod::server(at, node, &[("app", "server")])).collect();
        let servers = pod::start(&servers_in, &servers)?;
        let clients = pod::start(&clients_in, &[pod::server("client", &places.near, &[("app", "client")])])?;
        let client = named(&clients, "client")?.clone();
        Ok(Self { servers_in, clients_in, servers, client })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        self.servers_in.cluster()
    }

    /// The servers, called as their [places](crate::cluster::Places); `near` is on the client's node.
    pub fn servers(&self) -> &[Pod] {
        &self.servers
    }

    /// The name of the client's pod.
    pub fn client(&self) -> &Pod {
        &self.client
    }

    /// Begins to send echoes from the client to every address of the servers, one flow each, ten a second for as long as the client lives.
    pub fn send_echoes(&self) -> Result<()> {
        for (number, address) in self.addresses().enumerate() {
            self.client.shell(self.cluster(), &format!("ping -i 0.1 {address} >/tmp/echoes-{number} 2>&1 &"))?;
        }
        Ok(())
    }

    /// Asserts that every flow of these echoes is answered, or that none is.
    ///
    /// # Panics
    /// With how many were answered within a second.
    pub fn expect_echoes(&self, when: &str, answered: bool) -> Result<()> {
        let count = || -> Result<Vec<usize>> {
            let counts = self.client.shell(self.cluster(), "grep -c 'bytes from' /tmp/echoes-* | sed 's/.*://'")?;
            counts.lines().map(|count| Ok(count.trim().parse()?)).collect()
        };
        let before = count()?;
        std::thread::sleep(Duration::from_secs(1));
        let more: Vec<usize> = count()?.iter().zip(&before).map(|(after, before)| after - before).collect();
        assert_eq!(more.len(), self.addresses().count(), "{when}: {more:?}");
        assert!(more.iter().all(|more| (*more > 0) == answered), "{when}: answers within a second: {more:?}");
        Ok(())
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.servers.iter().flat_map(|server| server.addresses.iter().copied())
    }

    /// Makes a NetworkPolicy of this `spec` in the servers' namespace.
    pub fn policy(&self, name: &str, spec: &Value) -> Result<()> {
        policy(&self.servers_in, name, spec)
    }

    /// Every path from the client to the servers' port.
    fn probes(&self, protocol: &str) -> Vec<Probe> {
        let port = if protocol == "UDP" { UDP_PORT } else { TCP_PORT };
        let mut probes = Vec::new();
        for server in &self.servers {
            for &address in &server.addresses {
                probes.push(Probe { from: self.client.clone(), to: server.name.clone(), address, port, protocol: protocol.to_owned() });
            }
        }
        probes
    }

    /// Asserts that TCP and UDP come to this on every path, soon, and then stay so.
    ///
    /// # Panics
    /// With the paths that came to something else.
    pub fn expect(&self, when: &str, tcp: &Outcome, udp: &Outcome) {
        let deadline = Instant::now() + SOON;
        loop {
            // Probes that begin in time count, however long they take.
            let begun = Instant::now();
            let wrong = self.wrong(tcp, udp);
            if wrong.is_empty() {
                break;
            }
            assert!(begun < deadline, "{when}, after {} s:\n{}", SOON.as_secs(), wrong.join("\n"));
        }
        let wrong = self.wrong(tcp, udp);
        assert!(wrong.is_empty(), "{when}, it was right and did not stay so:\n{}", wrong.join("\n"));
    }

    /// Asserts that all flows are let through, and that the agent of each server's node tells that `policy` would have denied one at its ingress.
    ///
    /// # Panics
    /// Where a flow is not let through, or with what an agent tells.
    pub fn expect_audited(&self, when: &str, policy: &str) -> Result<()> {
        let agents = Agent::all(self.cluster())?;
        let told = std::thread::scope(|scope| {
            let mut asked = Vec::new();
            for server in &self.servers {
                let agent = agents.iter().find(|agent| agent.node == server.node).context("the server's node has no agent")?;
                let pod = format!("{}/{}", server.namespace, server.name);
                asked.push(scope.spawn(move || agent.event(&["--verdict", "audited", "--pod", &pod], TOLD)));
            }
            // Flows come until both have told: nobody says when they have begun to look.
            while asked.iter().any(|agent| !agent.is_finished()) {
                self.expect(when, &Outcome::Reached, &Outcome::Reached);
            }
            asked.into_iter().map(|agent| agent.join().unwrap_or_else(|_| bail!("it panicked"))).collect::<Result<Vec<Value>>>()
        })?;
        for event in told {
            let ingress = &event["audit"]["ingress"];
            let reason = ingress["reason"].as_str().unwrap_or_default();
            let denied = ingress["verdict"] == "deny" || ingress["verdict"] == "default-deny";
            assert!(event["action"] == "audited" && denied && reason.contains(policy), "{when}: {event}");
        }
        Ok(())
    }

    fn wrong(&self, tcp: &Outcome, udp: &Outcome) -> Vec<String> {
        let probes = ["TCP", "UDP"].into_iter().flat_map(|protocol| self.probes(protocol)).collect();
        let results = run_all(self.cluster(), probes);
        let wrong = results.into_iter().filter_map(|(probe, outcome)| {
            let expected = if probe.protocol == "UDP" { udp } else { tcp };
            (outcome != *expected).then(|| format!("{probe}: {outcome}, expected: {expected}"))
        });
        wrong.collect()
    }
}

/// Makes or changes a NetworkPolicy.
pub fn policy(namespace: &Namespace, name: &str, spec: &Value) -> Result<()> {
    namespace.cluster().apply(&[json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": namespace.name },
        "spec": spec,
    })])
}

/// Makes or changes the NetworkPolicy `clients`: what pods that carry `app=client` may send, by these rules.
pub fn clients_send(namespace: &Namespace, rules: &Value) -> Result<()> {
    let clients = json!({ "matchLabels": { "app": "client" } });
    policy(namespace, "clients", &json!({ "podSelector": clients, "policyTypes": ["Egress"], "egress": rules }))
}

/// The `spec` of a NetworkPolicy: what pods that carry `app=backend` take, by these rules.
pub fn to_backends(rules: &Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "backend" } }, "policyTypes": ["Ingress"], "ingress": rules })
}

/// Peers of a policy: exactly these addresses.
pub fn blocks(addresses: &[IpAddr]) -> Value {
    let block = |address: &IpAddr| json!({ "ipBlock": { "cidr": format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 }) } });
    addresses.iter().map(block).collect()
}
