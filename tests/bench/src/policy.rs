//! What policy costs: compiling a whole cluster, and each kind of change, up to the written maps.

use crate::plan::Plan;
use crate::statistics::Samples;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use palisade_datapath_core::abi::{PolicyEntry, PolicyKey, PortEntry, PortKey};
use palisade_k8s::index::{Index, Indexed};
use palisade_loader::{Datapath, PinDir, Sizes};
use palisade_policy::model::ObjectName;
use palisade_policy::{Compiled, Numbers, Planner, Step};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pods of one namespace, and of one node.
const PODS_OF_NAMESPACE: usize = 30;
const PODS_OF_NODE: usize = 110;
/// Values of the label that policies select by.
const APPS: usize = 10;

/// What a number of policies costs. Times are medians, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyRow {
    /// NetworkPolicies in the cluster.
    pub policies: usize,
    /// Pods in the cluster, each with an address of either family.
    pub pods: usize,
    /// Compiling all of it, from nothing.
    pub full: f64,
    /// Planning one change: the peers of a policy that selects a pod of this node.
    pub policy_changed: f64,
    /// Planning one change: a pod of the cluster comes.
    pub pod_added: f64,
    /// Planning one change: a pod of the cluster gets other labels.
    pub pod_relabelled: f64,
    /// Planning one change: a namespace gets other labels.
    pub namespace_relabelled: f64,
    /// From the changed policy, as the API server sends it, to the last write of a map.
    pub object_to_map: f64,
    /// Of that, third minus first quartile.
    pub object_to_map_spread: f64,
    /// Rows of the maps that policy fills, and their keys and values in bytes.
    pub rows: usize,
    /// Their keys and values, in bytes.
    pub bytes: usize,
    /// Identities and subjects.
    pub identities: usize,
    /// Subjects.
    pub subjects: usize,
    /// What the process grew by while it took and compiled all objects, in MiB.
    pub memory: f64,
}

/// Every number of policies that is measured.
pub fn measure(plan: &Plan, pin: &Path) -> Result<Vec<PolicyRow>> {
    let mut rows = Vec::new();
    for &policies in plan.policies {
        eprintln!("policy: {policies} policies, {} pods", plan.pods);
        let directory = PinDir::new(pin.join(format!("policies-{policies}")));
        let row = measure_one(plan, policies, &directory);
        if let Some(base) = directory.root().parent() {
            std::fs::remove_dir_all(base).with_context(|| format!("remove {}", base.display()))?;
        }
        rows.push(row?);
    }
    Ok(rows)
}

fn measure_one(plan: &Plan, policies: usize, pin: &PinDir) -> Result<PolicyRow> {
    let before = resident()?;
    let mut index = filled(plan.pods, policies)?;
    let mut node = PolicyNode {
        planner: Planner::new(),
        numbers: Numbers::default(),
        compiled: Arc::default(),
        local: (0..PODS_OF_NODE.min(plan.pods)).map(|number| pod_name(number * (plan.pods / PODS_OF_NODE).max(1))).collect(),
        datapath: Datapath::open(pin, &roomy(plan.pods)).context("load the datapath")?,
    };
    let began = Instant::now();
    let steps = node.plan(&index);
    let full = began.elapsed();
    node.write(&steps)?;
    drop(steps);
    let memory = (resident()? - before) as f64 / f64::from(1 << 20);
    let [mut policy, mut added, mut relabelled, mut namespace, mut to_map] = [const { Samples::new() }; 5];
    for round in 0..plan.policy_rounds {
        // A policy of a namespace of which a pod is here.
        let number = round % PODS_OF_NODE * (plan.pods / PODS_OF_NODE).max(1) / PODS_OF_NAMESPACE;
        let number = number % policies;
        let changed = network_policy(number, plan.pods, Some(round));
        let began = Instant::now();
        let object: NetworkPolicy = serde_json::from_value(changed)?;
        index.upsert(&object);
        let planned = Instant::now();
        let steps = node.plan(&index);
        policy.push(milliseconds(planned.elapsed()));
        node.write(&steps)?;
        to_map.push(milliseconds(began.elapsed()));
        let other = number_of_other(round, plan.pods);
        added.push(milliseconds(node.change(&mut index, &object_of::<Pod>(pod(plan.pods + round, 0))?)?));
        relabelled.push(milliseconds(node.change(&mut index, &object_of::<Pod>(pod(other, 1 + round))?)?));
        namespace.push(milliseconds(
            node.change(&mut index, &object_of::<Namespace>(cluster_namespace(other / PODS_OF_NAMESPACE, round + 1))?)?,
        ));
    }
    let used = node.compiled.used();
    let compiled = &node.compiled;
    let sizes = [
        (compiled.policy.len(), size_of::<PolicyKey>() + size_of::<PolicyEntry>()),
        (compiled.ports.len(), size_of::<PortKey>() + size_of::<u32>() + size_of::<PortEntry>()),
        (compiled.addresses.len_of_groups(|address| address.is_ipv4()), 4 + size_of::<u32>()),
        (compiled.addresses.len_of_groups(|address| address.is_ipv6()), 16 + size_of::<u32>()),
        (compiled.prefixes.len(), 16 + 2 * size_of::<u32>()),
    ];
    Ok(PolicyRow {
        policies,
        pods: plan.pods,
        full: milliseconds(full),
        policy_changed: policy.median(),
        pod_added: added.median(),
        pod_relabelled: relabelled.median(),
        namespace_relabelled: namespace.median(),
        object_to_map: to_map.median(),
        object_to_map_spread: to_map.spread(),
        rows: sizes.iter().map(|(rows, _)| rows).sum(),
        bytes: sizes.iter().map(|(rows, size)| rows * size).sum(),
        identities: used.identities.len(),
        subjects: used.subjects.len(),
        memory,
    })
}

/// Maps that need not grow: what that costs is not what is measured here.
fn roomy(pods: usize) -> Sizes {
    let addresses = (2 * pods).next_power_of_two() as u32;
    Sizes { policy: 1 << 18, ports: 1 << 18, addresses, prefixes: 1 << 16, ..Sizes::default() }
}

/// One node: what the agent does with an index, without the agent.
struct PolicyNode {
    planner: Planner,
    numbers: Numbers,
    compiled: Arc<Compiled>,
    local: BTreeSet<ObjectName>,
    datapath: Datapath,
}

impl PolicyNode {
    fn plan(&mut self, index: &Index) -> Vec<Step> {
        let planned = self.planner.plan(&self.compiled, &index.model(), &self.local, &mut self.numbers);
        self.compiled = planned.next;
        planned.steps
    }

    /// Takes an object, and writes what it changes. Returns how long the plan took.
    fn change<K: Indexed>(&mut self, index: &mut Index, object: &K) -> Result<Duration> {
        index.upsert(object);
        let began = Instant::now();
        let steps = self.plan(index);
        let took = began.elapsed();
        self.write(&steps)?;
        Ok(took)
    }

    fn write(&mut self, steps: &[Step]) -> Result<()> {
        let datapath = &mut self.datapath;
        for step in steps {
            match step {
                Step::WritePort { key, length, entry } => datapath.ports.insert(&(*key, *length), entry)?,
                Step::WritePolicy { key, entry } => datapath.policy.insert(key, entry)?,
                Step::WritePrefix { prefix, identity } => datapath.prefixes.insert(prefix, identity)?,
                Step::WriteAddress { address, identity } => datapath.addresses.insert(address, identity)?,
                Step::AwaitPrograms => datapath.await_programs(),
                Step::UnsettleEpoch => datapath.unsettle_epoch()?,
                Step::BumpEpoch => drop(datapath.bump_epoch()?),
                Step::RemoveAddress(address) => drop(datapath.addresses.remove(address)?),
                Step::RemovePrefix(prefix) => drop(datapath.prefixes.remove(prefix)?),
                Step::RemovePolicy(key) => drop(datapath.policy.remove(key)?),
                Step::RemovePort(key, length) => drop(datapath.ports.remove(&(*key, *length))?),
                // Its endpoints are not here: one write for each.
                Step::Flip { .. } => {}
            }
        }
        Ok(())
    }
}

fn filled(pods: usize, policies: usize) -> Result<Index> {
    let mut index = Index::new();
    index.set_host("node-0", &[]);
    for number in 0..pods.div_ceil(PODS_OF_NAMESPACE) {
        index.upsert(&object_of::<Namespace>(cluster_namespace(number, 0))?);
    }
    for number in 0..pods.div_ceil(PODS_OF_NODE) {
        let address = format!("192.168.{}.{}", number / 250, 1 + number % 250);
        let node =
            json!({"metadata": {"name": format!("node-{number}")}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        index.upsert(&object_of::<Node>(node)?);
    }
    for number in 0..pods {
        index.upsert(&object_of::<Pod>(pod(number, 0))?);
    }
    for number in 0..policies {
        index.upsert(&object_of::<NetworkPolicy>(network_policy(number, pods, None))?);
    }
    Ok(index)
}

fn object_of<K: DeserializeOwned>(object: serde_json::Value) -> Result<K> {
    Ok(serde_json::from_value(object)?)
}

/// A pod that is not of this node.
fn number_of_other(round: usize, pods: usize) -> usize {
    (round * 7919 + 1) % pods
}

fn pod_name(number: usize) -> ObjectName {
    ObjectName::new(format!("team-{}", number / PODS_OF_NAMESPACE), format!("web-7d9c5b6f4-{number:05}"))
}

fn cluster_namespace(number: usize, version: usize) -> serde_json::Value {
    let labels = json!({"kubernetes.io/metadata.name": format!("team-{number}"), "department": format!("d{}", number % 20), "version": version.to_string()});
    json!({"metadata": {"name": format!("team-{number}"), "labels": labels}})
}

/// A pod with the labels that a Deployment's have, one of them its own.
fn pod(number: usize, version: usize) -> serde_json::Value {
    let ObjectName { namespace, name } = pod_name(number);
    let v4 = std::net::Ipv4Addr::from(0x0a00_0000 + number as u32);
    let v6 = std::net::Ipv6Addr::from((0xfd00_u128 << 112) + number as u128);
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{number}"), "labels": {
            "app.kubernetes.io/name": format!("app-{}", (number + version) % APPS), "app.kubernetes.io/part-of": "shop",
            "pod-template-hash": format!("{number:x}"), "tier": if number.is_multiple_of(2) { "front" } else { "back" },
        }},
        "spec": {"nodeName": format!("node-{}", number / PODS_OF_NODE), "serviceAccountName": "default", "containers": [
            {"name": "web", "ports": [{"name": "http", "containerPort": 8080 + number % 3, "protocol": "TCP"}]},
        ]},
        "status": {"phase": "Running", "podIP": v4.to_string(), "podIPs": [{"ip": v4.to_string()}, {"ip": v6.to_string()}]},
    })
}

/// The policies of a namespace differ in whom they select and whom they let in; a fifth names networks, too.
fn network_policy(number: usize, pods: usize, version: Option<usize>) -> serde_json::Value {
    let name = format!("policy-{number}");
    let namespace = format!("team-{}", number % pods.div_ceil(PODS_OF_NAMESPACE));
    // Those of one namespace differ, too.
    let number = number + number / pods.div_ceil(PODS_OF_NAMESPACE);
    let app = |number: usize| json!({"app.kubernetes.io/name": format!("app-{}", number % APPS)});
    let mut from = vec![
        json!({"podSelector": {"matchLabels": app(number + 1)}}),
        json!({"namespaceSelector": {"matchLabels": {"department": format!("d{}", number % 20)}}, "podSelector": {"matchLabels": app(number + 2)}}),
    ];
    if number.is_multiple_of(5) {
        from.push(
            json!({"ipBlock": {"cidr": format!("172.16.{}.0/24", number % 256), "except": [format!("172.16.{}.128/25", number % 256)]}}),
        );
    }
    if let Some(version) = version {
        from.push(json!({"podSelector": {"matchLabels": app(number + 3), "matchExpressions": [{"key": "version", "operator": "NotIn", "values": [version.to_string()]}]}}));
    }
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": app(number)}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": from, "ports": [{"protocol": "TCP", "port": "http"}, {"protocol": "TCP", "port": 9000, "endPort": 9100}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": app(number + 4)}}], "ports": [{"protocol": "TCP", "port": "http"}]},
                {"ports": [{"protocol": "UDP", "port": 53}]}]},
    })
}

/// Memory of this process that is resident, in bytes.
fn resident() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/self/status has no VmRSS")?;
    let kilobytes: i64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kilobytes * 1024)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
