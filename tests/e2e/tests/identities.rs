//! Policies by identity, and audit, as users meet them on a cluster.

use anyhow::{Context, Result};
use palisade_e2e::cluster::{Cluster, Namespace};
use palisade_e2e::pod::{self, Pod};
use palisade_e2e::probe::Outcome::{Reached, Silent};
use palisade_e2e::scene::Scene;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const VERSION: &str = "palisade.dev/v1alpha1";

/// An Identity, deleted when the scenario ends.
struct Identity<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Identity<'a> {
    fn apply(cluster: &'a Cluster, name: &str, spec: &Value) -> Result<Self> {
        cluster.apply(&[json!({ "apiVersion": VERSION, "kind": "Identity", "metadata": { "name": name }, "spec": spec })])?;
        Ok(Self { cluster, name: name.to_owned() })
    }
}

impl Drop for Identity<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.run(&["delete", "identity", &self.name, "--ignore-not-found"]) {
            eprintln!("identity {} could not be deleted: {error:#}", self.name);
        }
    }
}

fn identity_policy(namespace: &Namespace, name: &str, spec: &Value) -> Result<()> {
    let metadata = json!({ "name": name, "namespace": namespace.name });
    namespace.cluster().apply(&[json!({ "apiVersion": VERSION, "kind": "IdentityPolicy", "metadata": metadata, "spec": spec })])
}

#[test]
fn an_identity_gains_and_loses_pods_while_traffic_flows_and_the_verdict_follows() -> Result<()> {
    let scene = Scene::start("identity")?;
    // Unlike that of any other run: identities live in no namespace.
    let name = scene.servers_in.name.clone();
    let allow = json!([{ "action": "Allow", "peers": [{ "identity": name }] }]);
    identity_policy(&scene.clients_in, "only-known", &json!({ "subject": {}, "egress": allow }))?;
    scene.expect("while there is no identity of the name", &Silent, &Silent);
    let namespaces = json!({ "matchLabels": { "kubernetes.io/metadata.name": scene.servers_in.name } });
    let spec = json!({ "pods": [{ "namespaces": namespaces, "pods": { "matchLabels": { "known": "yes" } } }] });
    let identity = Identity::apply(scene.cluster(), &name, &spec)?;
    scene.expect("while no server belongs to it", &Silent, &Silent);
    scene.send_echoes()?;
    scene.expect_echoes("while no server belongs to it", false)?;
    scene.servers_in.run(&["label", "pods", "--all", "known=yes"])?;
    scene.expect("once the servers belong to it", &Reached, &Reached);
    scene.expect_echoes("once the servers belong to it", true)?;
    scene.servers_in.run(&["label", "pods", "--all", "known-"])?;
    scene.expect("once they belong to it no more", &Silent, &Silent);
    scene.expect_echoes("once they belong to it no more", false)?;
    let account = json!({ "namespace": scene.servers_in.name, "name": "default" });
    let _by_account = Identity::apply(scene.cluster(), &name, &json!({ "pods": [{ "serviceAccounts": [account] }] }))?;
    scene.expect("by their service account", &Reached, &Reached);
    drop(identity);
    scene.expect("once the identity is gone", &Silent, &Silent);
    Ok(())
}

/// Where the servers of the streams listen.
const STREAM_PORT: u16 = 9000;
/// How long an established stream may take to stop, or to go on: TCP sends again after as long a pause as it has waited already.
const STREAM_SOON: Duration = Duration::from_secs(20);

/// Two servers, one on the client's node and one on another, and a client that sends a line each tenth of a second over one connection to each.
struct Streams {
    namespace: Namespace,
    servers: Vec<Pod>,
}

impl Streams {
    /// The client begins each stream once its server answers an echo.
    fn start(cluster: &Cluster) -> Result<Self> {
        let nodes = cluster.nodes()?;
        let namespace = Namespace::create(cluster, "streams", &[])?;
        // Its input stays open: at the end of its input nc would hang up. It takes one connection and then no other.
        let listen = format!("sleep 3600 | nc -l -p {STREAM_PORT}");
        let server = |name: &str, node: &str| pod::shell(name, node, &[("app", "server")], &listen);
        let servers = pod::start(&namespace, &[server("far", &nodes[1]), server("near", &nodes[0])])?;
        let mut script = String::new();
        for server in &servers {
            let address = server.addresses[0];
            let lines = "i=0; while true; do i=$((i+1)); echo line-$i; sleep 0.1; done";
            script +=
                &format!("(until ping -c 1 -w 1 {address} >/dev/null; do sleep 0.2; done; ({lines}) | nc {address} {STREAM_PORT}) & ");
        }
        pod::start(&namespace, &[pod::shell("client", &nodes[0], &[("app", "client")], &script)])?;
        Ok(Self { namespace, servers })
    }

    /// How many lines a server has received. None was lost and none came twice: it is one connection still.
    fn received(&self, server: &Pod) -> Result<usize> {
        let log = server.log(self.namespace.cluster())?;
        // The last line may not be whole.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let received: Vec<&str> = whole.lines().filter(|line| line.starts_with("line-")).collect();
        let sent: Vec<String> = (1..=received.len()).map(|line| format!("line-{line}")).collect();
        assert_eq!(received, sent, "what {} received", server.name);
        Ok(received.len())
    }

    /// Whether lines come to each server, within a second.
    fn flowing(&self) -> Result<Vec<bool>> {
        let count = || self.servers.iter().map(|server| self.received(server)).collect::<Result<Vec<usize>>>();
        let before = count()?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(count()?.iter().zip(before).map(|(after, before)| *after > before).collect())
    }

    /// Asserts that lines come to the servers that these names name and to no others, soon, and then stay so.
    ///
    /// # Panics
    /// With the servers to which lines come.
    fn expect(&self, when: &str, flowing: &[&str]) -> Result<()> {
        let expected: Vec<bool> = self.servers.iter().map(|server| flowing.contains(&server.name.as_str())).collect();
        let deadline = Instant::now() + STREAM_SOON;
        while self.flowing()? != expected {
            assert!(
                Instant::now() < deadline,
                "{when}: lines should come to {flowing:?}; of {:?} it is so: {:?}",
                self.names(),
                self.flowing()?
            );
        }
        for _ in 0..2 {
            assert_eq!(self.flowing()?, expected, "{when}, it was right and did not stay so: {:?}", self.names());
        }
        Ok(())
    }

    fn names(&self) -> Vec<&str> {
        self.servers.iter().map(|server| server.name.as_str()).collect()
    }

    fn label(&self, server: &str, label: &str) -> Result<()> {
        self.namespace.run(&["label", "pod", server, label]).map(drop)
    }
}

#[test]
fn a_stream_goes_on_over_its_connection_while_the_server_belongs_to_the_identity_and_stops_while_it_does_not() -> Result<()> {
    let cluster = Cluster::connect();
    let streams = Streams::start(&cluster)?;
    let name = streams.namespace.name.clone();
    let subject = json!({ "pods": { "matchLabels": { "app": "client" } } });
    let allow = json!([{ "action": "Allow", "peers": [{ "identity": name }] }]);
    streams.expect("without a policy", &["far", "near"])?;
    let namespaces = json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
    let account = json!({ "namespace": name, "name": "default" });
    let spec =
        json!({ "pods": [{ "namespaces": namespaces, "pods": { "matchLabels": { "known": "yes" } }, "serviceAccounts": [account] }] });
    streams.label("near", "known=yes")?;
    let _identity = Identity::apply(&cluster, &name, &spec)?;
    identity_policy(&streams.namespace, "only-known", &json!({ "subject": subject, "egress": allow }))?;
    streams.expect("while one of them belongs to the identity", &["near"])?;
    streams.label("far", "known=yes")?;
    streams.expect("once the other belongs to it, too", &["far", "near"])?;
    streams.label("near", "known-")?;
    streams.expect("once the first belongs to it no more", &["far"])?;
    streams.label("near", "known=yes")?;
    streams.label("far", "known-")?;
    streams.expect("once they have changed places", &["near"])
}

#[test]
fn a_rule_that_denies_beats_what_a_network_policy_allows() -> Result<()> {
    let scene = Scene::start("deny")?;
    scene.policy("open", &json!({ "podSelector": {}, "ingress": [{}] }))?;
    let deny = json!([{ "name": "no-udp", "action": "Deny", "ports": [{ "protocol": "UDP" }] }]);
    identity_policy(&scene.servers_in, "no-udp", &json!({ "subject": {}, "ingress": deny }))?;
    scene.expect("with UDP denied", &Reached, &Silent);
    scene.servers_in.run(&["delete", "identitypolicy", "no-udp"])?;
    scene.expect("without the rule", &Reached, &Reached);
    Ok(())
}

#[test]
fn a_policy_in_audit_mode_changes_nothing_and_tells_what_it_would_have_done_until_it_is_enforced() -> Result<()> {
    let scene = Scene::start("audit")?;
    identity_policy(&scene.servers_in, "closed", &json!({ "subject": {}, "mode": "Audit", "ingress": [] }))?;
    scene.expect_audited("in audit mode", &format!("IdentityPolicy {}/closed", scene.servers_in.name))?;
    scene.servers_in.run(&["patch", "idpol", "closed", "--type=merge", "--patch", r#"{"spec":{"mode":"Enforce"}}"#])?;
    scene.expect("enforced", &Silent, &Silent);
    scene.servers_in.run(&["delete", "idpol", "closed"])?;
    scene.policy("annotated", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] }))?;
    scene.expect("a NetworkPolicy that is enforced", &Silent, &Silent);
    scene.servers_in.run(&["annotate", "networkpolicy", "annotated", "palisade.dev/mode=Audit"])?;
    scene.expect("a NetworkPolicy in audit mode", &Reached, &Reached);
    scene.expect_audited("a NetworkPolicy in audit mode", &format!("NetworkPolicy {}/annotated", scene.servers_in.name))
}

/// No schema says how many parts the key of a label may have, so the API server lets it through.
#[test]
fn a_policy_that_cannot_be_used_opens_nothing_until_it_can() -> Result<()> {
    let scene = Scene::start("unusable")?;
    let of = |key: &str| json!({ "pods": { "matchLabels": { key: "server" } } });
    let allow = json!([{ "action": "Allow" }]);
    scene.expect("without a policy", &Reached, &Reached);
    identity_policy(&scene.servers_in, "open", &json!({ "subject": of("not/a/key"), "ingress": allow }))?;
    scene.expect("with a subject that nobody can read", &Silent, &Silent);
    identity_policy(&scene.servers_in, "open", &json!({ "subject": of("app"), "ingress": allow }))?;
    scene.expect("with one that can be read", &Reached, &Reached);
    identity_policy(&scene.servers_in, "open", &json!({ "subject": of("app"), "ingress": [] }))?;
    scene.expect("closed", &Silent, &Silent);
    identity_policy(&scene.servers_in, "open", &json!({ "subject": of("not/a/key"), "ingress": allow }))?;
    std::thread::sleep(Duration::from_secs(3));
    scene.expect("closed, and edited into something that nobody can read", &Silent, &Silent);
    Ok(())
}

#[test]
fn the_api_server_refuses_what_makes_no_sense_and_says_why() -> Result<()> {
    let cluster = Cluster::connect();
    let policy = |rule: Value| json!({ "kind": "IdentityPolicy", "spec": { "subject": {}, "egress": [rule] } });
    let identity = |spec: Value| json!({ "kind": "Identity", "spec": spec });
    let allow = |rest: Value| {
        let mut rule = rest;
        rule["action"] = json!("Allow");
        policy(rule)
    };
    for (mut object, why) in [
        (allow(json!({ "ports": [{ "port": 90, "endPort": 80 }] })), "the range ends before its first port"),
        (allow(json!({ "ports": [{ "endPort": 80 }] })), "a range needs its first port"),
        (allow(json!({ "ports": [{ "port": 70000 }] })), "65535"),
        (allow(json!({ "ports": [] })), "should have at least 1 items"),
        (allow(json!({ "peers": [] })), "should have at least 1 items"),
        (allow(json!({ "peers": [{}] })), "exactly one of identity, pods, network and entity"),
        (allow(json!({ "peers": [{ "identity": "a", "entity": "World" }] })), "exactly one of identity, pods, network and entity"),
        (allow(json!({ "peers": [{ "pods": {} }] })), "namespaces, pods or serviceAccounts is needed"),
        (allow(json!({ "peers": [{ "entity": "Moon" }] })), "Unsupported value"),
        (allow(json!({ "peers": [{ "network": { "cidr": "10.0.0.0/40" } }] })), "cidr is no CIDR block"),
        (
            allow(json!({ "peers": [{ "network": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"] } }] })),
            "each except must be a block inside of cidr",
        ),
        (
            allow(json!({ "peers": [{ "network": { "cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"] } }] })),
            "each except must be a block inside of cidr, and smaller",
        ),
        (identity(json!({ "networks": [{ "cidr": "fd00::/8", "except": ["fd00::/8"] }] })), "each except must be a block inside of cidr"),
        (
            allow(json!({ "peers": [{ "pods": { "pods": { "matchExpressions": [{ "key": "a", "operator": "In" }] } } }] })),
            "In and NotIn need values",
        ),
        (policy(json!({ "action": "Log" })), "Unsupported value"),
        (json!({ "kind": "IdentityPolicy", "spec": { "subject": {} } }), "a policy needs ingress or egress"),
        (identity(json!({})), "an identity needs pods, networks or entities"),
        (identity(json!({ "pods": [] })), "should have at least 1 items"),
        (identity(json!({ "entities": ["Moon"] })), "Unsupported value"),
    ] {
        object["apiVersion"] = json!(VERSION);
        object["metadata"] = json!({ "name": "refused" });
        let arguments = ["create", "--dry-run=server", "--filename", "-"];
        let output = cluster.output(&arguments, &object.to_string(), Duration::from_secs(30))?;
        let said = String::from_utf8(output.stderr).context("text")?;
        assert!(!output.status.success() && said.contains(why), "{object}\n{said}");
    }
    let mut object = identity(json!({ "networks": [{ "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] }] }));
    object["apiVersion"] = json!(VERSION);
    object["metadata"] = json!({ "name": "taken" });
    let output = cluster.output(&["create", "--dry-run=server", "--filename", "-"], &object.to_string(), Duration::from_secs(30))?;
    assert!(output.status.success(), "a block inside of another is taken: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
