//! Pods of the scenarios.

use crate::cluster::{Cluster, Namespace, items};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The image of all pods; `make cluster` loads it into the nodes.
pub const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
/// TCP port of [`server`] pods.
pub const TCP_PORT: u16 = 80;
/// UDP port of [`server`] pods.
pub const UDP_PORT: u16 = 53;

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it is on.
    pub node: String,
    /// Its addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// The ports that its containers declare, with `TCP`, `UDP` or `SCTP`.
    pub ports: Vec<(u16, String)>,
}

impl Pod {
    /// Reads a pod that has its addresses.
    pub fn read(object: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let name = text(&object["metadata"]["name"]).context("a pod without a name")?;
        let addresses = object["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses: Vec<IpAddr> = addresses.filter_map(|address| address["ip"].as_str()?.parse().ok()).collect();
        if addresses.is_empty() {
            bail!("the pod {name} has no address yet");
        }
        let containers = object["spec"]["containers"].as_array().into_iter().flatten();
        let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port["containerPort"].as_u64()?).ok()?;
            Some((number, port["protocol"].as_str().unwrap_or("TCP").to_owned()))
        });
        Ok(Self {
            namespace: text(&object["metadata"]["namespace"]).context("a pod without a namespace")?,
            node: text(&object["spec"]["nodeName"]).context("a pod without a node")?,
            ports: ports.collect(),
            name,
            addresses,
        })
    }

    /// The pod's address of a family.
    pub fn address(&self, ipv6: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| address.is_ipv6() == ipv6).copied();
        found.with_context(|| format!("the pod {} lacks an address of one family: {:?}", self.name, self.addresses))
    }

    /// Runs a shell's script in the pod; what it prints.
    pub fn shell(&self, cluster: &Cluster, script: &str) -> Result<String> {
        let arguments = ["exec", "--namespace", &self.namespace, &self.name, "--", "sh", "-c", script];
        cluster.run(&arguments)
    }

    /// Copies a program into the pod, under this path.
    pub fn put(&self, cluster: &Cluster, program: &Path, path: &str) -> Result<()> {
        let script = format!("cat > {path} && chmod +x {path}");
        let mut child = cluster
            .command(&["exec", "--stdin", "--namespace", &self.namespace, &self.name, "--", "sh", "-c", &script])
            .stdin(File::open(program).with_context(|| format!("reading {}", program.display()))?)
            .stdout(Stdio::null())
            .spawn()?;
        ensure!(child.wait()?.success(), "{} could not be copied into {}", program.display(), self.name);
        Ok(())
    }

    /// What its first container has printed.
    pub fn log(&self, cluster: &Cluster) -> Result<String> {
        cluster.run(&["logs", "--namespace", &self.namespace, &self.name])
    }
}

/// A pod that serves HTTP on [`TCP_PORT`] and answers datagrams on [`UDP_PORT`]; kubelet finds it ready by HTTP.
pub fn server(name: &str, node: &str, labels: &[(&str, &str)]) -> Value {
    let container = json!({
        "name": "server",
        "image": IMAGE,
        "args": ["netexec", format!("--http-port={TCP_PORT}"), format!("--udp-port={UDP_PORT}")],
        "ports": [{ "containerPort": TCP_PORT }, { "containerPort": UDP_PORT, "protocol": "UDP" }],
        "readinessProbe": { "httpGet": { "path": "/hostname", "port": TCP_PORT }, "periodSeconds": 1 },
    });
    pod(name, node, labels, &[container])
}

/// A pod that runs a shell's script, and stays when it ends.
pub fn shell(name: &str, node: &str, labels: &[(&str, &str)], script: &str) -> Value {
    let script = format!("{script}\nexec sleep 3600");
    pod(name, node, labels, &[json!({ "name": "shell", "image": IMAGE, "command": ["sh", "-c", script] })])
}

fn pod(name: &str, node: &str, labels: &[(&str, &str)], containers: &[Value]) -> Value {
    let labels: serde_json::Map<String, Value> = labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "tolerations": [{ "operator": "Exists" }],
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "restartPolicy": "Never",
            "containers": containers,
        },
    })
}

/// Makes the objects in the namespace and waits until all of its pods are ready.
pub fn start(namespace: &Namespace, objects: &[Value]) -> Result<Vec<Pod>> {
    let objects: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut object = object.clone();
            object["metadata"]["namespace"] = json!(namespace.name);
            object
        })
        .collect();
    namespace.cluster().apply(&objects)?;
    ready(namespace.cluster(), &namespace.name)
}

/// Waits until all pods of the namespace are ready; in the order of their names.
pub fn ready(cluster: &Cluster, namespace: &str) -> Result<Vec<Pod>> {
    let wait = ["wait", "--namespace", namespace, "--for=condition=Ready", "pods", "--all", "--timeout=120s"];
    if let Err(error) = cluster.run(&wait) {
        let state = cluster.run(&["describe", "pods", "--namespace", namespace]).unwrap_or_default();
        bail!("pods do not become ready: {error:#}\n{state}");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let list = cluster.json(&["get", "pods", "--namespace", namespace])?;
        let pods: Result<Vec<Pod>> = items(&list).map(Pod::read).collect();
        match pods {
            Ok(mut pods) => {
                pods.sort_by(|left, right| left.name.cmp(&right.name));
                return Ok(pods);
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The pod of a name.
pub fn named<'a>(pods: &'a [Pod], name: &str) -> Result<&'a Pod> {
    pods.iter().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
}
