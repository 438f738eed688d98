//! The status of policies and identities, the events about them, and who writes both.

use anyhow::{Context, Result, bail};
use palisade_e2e::agent::{Agent, SYSTEM};
use palisade_e2e::cluster::{Cluster, Namespace, items};
use palisade_e2e::definition::Installed;
use palisade_e2e::pod;
use palisade_e2e::scene;
use serde_json::{Value, json};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

const VERSION: &str = "palisade.dev/v1alpha1";
/// How long it may take until a status is written: reports, the sum, and a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
/// How long it may take until another agent writes: the Lease must run out first.
const TAKEN_OVER: Duration = Duration::from_secs(120);
/// Held to write while agents are taken away: others ask them, and wait for what they write.
static AGENTS: RwLock<()> = RwLock::new(());
const LEASE: &str = "palisade-status";

/// As long as it is held the agents stay.
fn steady_agents() -> RwLockReadGuard<'static, ()> {
    AGENTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Looks again and again until `look` finds what is expected.
fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("{what}, after {} s", limit.as_secs()))),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// Waits until the conditions Accepted and Enforced of an object are as expected, about its present generation.
fn conditions(cluster: &Cluster, object: &[&str], expected: [(&str, &str); 2]) -> Result<Value> {
    until(&object.join(" "), SOON, || {
        let read = cluster.json(&[&["get"], object].concat())?;
        for (of, (status, reason)) in ["Accepted", "Enforced"].into_iter().zip(expected) {
            let conditions = read["status"]["conditions"].as_array().context("no conditions yet")?;
            let condition = conditions.iter().find(|condition| condition["type"] == of).with_context(|| format!("no condition {of}"))?;
            let found = (&condition["status"], &condition["reason"], &condition["observedGeneration"]);
            if found != (&json!(status), &json!(reason), &read["metadata"]["generation"]) {
                bail!("{of} {status} {reason} expected: {condition}");
            }
        }
        Ok(read)
    })
}

fn message<'v>(object: &'v Value, of: &str) -> &'v str {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|condition| condition["type"] == of).find_map(|condition| condition["message"].as_str()).unwrap_or_default()
}

fn identity_policy(namespace: &Namespace, name: &str, annotations: Value, spec: &Value) -> Result<()> {
    let metadata = json!({ "name": name, "namespace": namespace.name, "annotations": annotations });
    namespace.cluster().apply(&[json!({ "apiVersion": VERSION, "kind": "IdentityPolicy", "metadata": metadata, "spec": spec })])
}

/// The reasons and notes of the events about an object, once there is one of `reason`.
fn event(namespace: &str, cluster: &Cluster, name: &str, reason: &str) -> Result<String> {
    until(&format!("an event {reason} about {name}"), SOON, || {
        let list = cluster.json(&["get", "events.events.k8s.io", "--namespace", namespace])?;
        let about = items(&list).find(|event| event["regarding"]["name"] == name && event["reason"] == reason);
        let note = about.and_then(|event| event["note"].as_str());
        note.map(str::to_owned).with_context(|| format!("{} events", items(&list).count()))
    })
}

fn holder(cluster: &Cluster) -> Result<(String, u64)> {
    let lease = cluster.json(&["get", "lease", LEASE, "--namespace", SYSTEM])?;
    let renewed = lease["spec"]["holderIdentity"].as_str().context("nobody holds the lease")?;
    Ok((renewed.to_owned(), lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default()))
}

#[test]
fn a_policy_says_that_it_is_accepted_and_that_every_node_enforces_its_generation() -> Result<()> {
    let _steady = steady_agents();
    let cluster = Cluster::connect();
    let agents = Agent::all(&cluster)?;
    let namespace = Namespace::create(&cluster, "status", &[])?;
    pod::start(&namespace, &[pod::server("one", &agents[0].node, &[("app", "one")])])?;
    identity_policy(&namespace, "good", json!({}), &json!({ "subject": {}, "ingress": [{ "action": "Allow" }] }))?;
    let good = ["--namespace", namespace.name.as_str(), "idpol", "good"];
    let all = [("True", "Accepted"), ("True", "AllNodes")];
    let read = conditions(&cluster, &good, all)?;
    assert_eq!((&read["status"]["nodes"], &read["status"]["nodesEnforcing"]), (&json!(agents.len()), &json!(agents.len())), "{read}");
    let enforced = format!("{0} of {0} nodes enforce generation 1; 1 pod selected", agents.len());
    assert_eq!(message(&read, "Enforced"), enforced);
    let columns = cluster.run(&[&["get"], &good[..]].concat())?;
    for column in ["ACCEPTED", "ENFORCED", "PODS", "NODES"] {
        assert!(columns.contains(column), "{columns}");
    }

    // A new generation, and what the command line of a node says of it.
    namespace.run(&["patch", "idpol", "good", "--type=merge", "--patch", r#"{"spec":{"egress":[]}}"#])?;
    let read = conditions(&cluster, &good, all)?;
    assert_eq!(read["metadata"]["generation"], 2);
    let name = format!("{}/good", namespace.name);
    let listed = agents[0].ask(&["policy", "get", &name])?;
    let policy = &listed[0];
    assert_eq!(
        (&policy["nodesEnforcing"], &policy["nodes"], &policy["generation"]),
        (&json!(agents.len()), &json!(agents.len()), &json!(2))
    );
    assert_eq!((&policy["conditions"][1]["reason"], &policy["pods"]), (&json!("AllNodes"), &json!(1)), "{policy}");
    assert!(policy["peers"]["pods"].as_u64() > Some(0), "a rule about everybody: {policy}");

    namespace.run(&["patch", "idpol", "good", "--type=merge", "--patch", r#"{"spec":{"mode":"Audit"}}"#])?;
    conditions(&cluster, &good, [("True", "Accepted"), ("False", "Audit")])?;

    // It comes to rest: nothing is written to it any more.
    let version = |read: Value| read["metadata"]["resourceVersion"].clone();
    let before = version(cluster.json(&[&["get"], &good[..]].concat())?);
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(version(cluster.json(&[&["get"], &good[..]].concat())?), before);
    Ok(())
}

#[test]
fn an_identity_says_what_it_matches() -> Result<()> {
    let _steady = steady_agents();
    let cluster = Cluster::connect();
    let agents = Agent::all(&cluster)?;
    let namespace = Namespace::create(&cluster, "identity-status", &[])?;
    pod::start(&namespace, &[pod::server("one", &agents[0].node, &[]), pod::server("two", &agents[1].node, &[])])?;
    let of = json!({ "matchLabels": { "kubernetes.io/metadata.name": namespace.name } });
    // It lives in no namespace, and goes with none.
    let metadata = json!({ "name": namespace.name });
    cluster
        .apply(&[json!({ "apiVersion": VERSION, "kind": "Identity", "metadata": metadata, "spec": { "pods": [{ "namespaces": of }] } })])?;
    let read = conditions(&cluster, &["pid", &namespace.name], [("True", "Accepted"), ("True", "AllNodes")]);
    cluster.run(&["delete", "pid", &namespace.name])?;
    let read = read?;
    assert_eq!((&read["status"]["pods"], &read["status"]["addresses"]), (&json!(2), &json!(4)), "{read}");
    Ok(())
}

#[test]
fn what_the_api_server_takes_and_cannot_be_used_is_refused_with_field_and_reason() -> Result<()> {
    let _steady = steady_agents();
    let cluster = Cluster::connect();
    let namespace = Namespace::create(&cluster, "refused-status", &[])?;
    // No schema says how many parts the key of a label may have.
    let selector = json!({ "pods": { "matchLabels": { "not/a/key": "x" } } });
    identity_policy(&namespace, "bad", json!({}), &json!({ "subject": selector, "ingress": [] }))?;
    let bad = ["--namespace", namespace.name.as_str(), "idpol", "bad"];
    let read = conditions(&cluster, &bad, [("False", "InvalidField"), ("False", "NotAccepted")])?;
    let said = message(&read, "Accepted");
    assert!(said.starts_with("spec.subject.pods.matchLabels.not/a/key: ") && said.contains("isolated"), "{said}");
    assert_eq!(event(&namespace.name, &cluster, "bad", "NotAccepted")?, said);

    // A NetworkPolicy has no status: events say it.
    scene::policy(&namespace, "plain", &json!({ "podSelector": {} }))?;
    let note = event(&namespace.name, &cluster, "plain", "Enforced")?;
    assert!(note.contains("nodes enforce generation 1"), "{note}");
    namespace.run(&["annotate", "networkpolicy", "plain", "palisade.dev/mode=Foo"])?;
    let note = event(&namespace.name, &cluster, "plain", "NotAccepted")?;
    assert!(note.contains("palisade.dev/mode") && note.contains("there is no mode \"Foo\""), "{note}");
    let agents = Agent::all(&cluster)?;
    let listed = agents[1].ask(&["policy", "get", &format!("{}/plain", namespace.name)])?;
    assert_eq!(listed[0]["conditions"][0]["message"], json!(note), "{listed}");
    Ok(())
}

#[test]
fn a_cluster_network_policy_gets_its_conditions_and_those_of_others_stay() -> Result<()> {
    let _steady = steady_agents();
    let cluster = Cluster::connect();
    let _installed = Installed::channel(&cluster, "standard")?;
    let name = format!("e2e-status-{}", std::process::id());
    let policy = |action: &str| {
        let nobody = json!({ "namespaces": { "matchLabels": { "palisade.dev/none": "none" } } });
        let rule = json!({ "action": action, "from": [nobody] });
        let spec = json!({ "tier": "Baseline", "priority": 900, "subject": nobody, "ingress": [rule] });
        let metadata = json!({ "name": name });
        cluster.apply(&[json!({ "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": metadata, "spec": spec })])
    };
    let checked = || -> Result<()> {
        policy("Deny")?;
        let object = ["clusternetworkpolicy", name.as_str()];
        let all = [("True", "Accepted"), ("True", "AllNodes")];
        conditions(&cluster, &object, all)?;
        let other = json!({ "type": "Reviewed", "status": "True", "reason": "ByHand", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let patch = json!([{ "op": "add", "path": "/status/conditions/-", "value": other }]);
        cluster.run(&["patch", object[0], object[1], "--subresource=status", "--type=json", "--patch", &patch.to_string()])?;
        policy("Accept")?;
        let read = conditions(&cluster, &object, all)?;
        assert_eq!(read["metadata"]["generation"], 2);
        let reviewed = read["status"]["conditions"].as_array().into_iter().flatten().any(|condition| condition["type"] == "Reviewed");
        assert!(reviewed, "{read}");
        Ok(())
    };
    let checked = checked();
    cluster.run(&["delete", "clusternetworkpolicy", &name, "--ignore-not-found"])?;
    checked
}

#[test]
fn another_agent_takes_over_where_the_one_that_writes_is_gone() -> Result<()> {
    let _alone = AGENTS.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::connect();
    let namespace = Namespace::create(&cluster, "takeover", &[])?;
    let (node, _) = until("somebody holds the lease", TAKEN_OVER, || holder(&cluster))?;
    let agents = Agent::all(&cluster)?;
    let writer = agents.iter().find(|agent| agent.node == node).context("the holder is no node")?;
    cluster.run(&["delete", "pod", "--namespace", SYSTEM, &writer.pod])?;
    identity_policy(&namespace, "after", json!({}), &json!({ "subject": {}, "ingress": [] }))?;
    let after = ["--namespace", namespace.name.as_str(), "idpol", "after"];
    until("the status is written without the agent that wrote it", TAKEN_OVER, || {
        conditions(&cluster, &after, [("True", "Accepted"), ("True", "AllNodes")])
    })?;

    // A holder that never renews.
    let (_, before) = holder(&cluster)?;
    cluster.run(&["patch", "lease", LEASE, "--namespace", SYSTEM, "--type=merge", "--patch", r#"{"spec":{"holderIdentity":"gone"}}"#])?;
    let (taken_by, transitions) = until("the lease of one that is gone is taken over", TAKEN_OVER, || match holder(&cluster)? {
        (holder, _) if holder == "gone" => bail!("nobody has taken it over"),
        taken => Ok(taken),
    })?;
    assert!(agents.iter().any(|agent| agent.node == taken_by) && transitions > before, "{taken_by}, {transitions}");
    namespace.run(&["patch", "idpol", "after", "--type=merge", "--patch", r#"{"spec":{"egress":[]}}"#])?;
    conditions(&cluster, &after, [("True", "Accepted"), ("True", "AllNodes")])?;
    Ok(())
}
