//! The cluster, by way of `kubectl`.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Label of the namespaces that the scenarios make.
const OWN_LABEL: &str = "palisade.dev/scenario";

/// The nodes that scenarios spread their pods over. With the routing mode `auto` of the tests' clusters the far one is reached by the overlay, from both
/// others; these reach each other natively.
#[derive(Clone, Debug)]
pub struct Places {
    /// The first node.
    pub near: String,
    /// The last one.
    pub far: String,
    /// The second of three or more.
    pub beside: Option<String>,
}

impl Places {
    /// All of them, with their names.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let beside = self.beside.as_deref().map(|node| ("beside", node));
        [("near", self.near.as_str()), ("far", self.far.as_str())].into_iter().chain(beside)
    }
}

/// A cluster that a `KUBECONFIG` names.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: OsString,
}

impl Cluster {
    /// The cluster of `KUBECONFIG`, spoken to by `$KUBECTL` or the `kubectl` of the path.
    ///
    /// # Panics
    /// With one sentence that says what is missing: a test cannot pass without a cluster.
    pub fn connect() -> Self {
        match Self::try_connect() {
            Ok(cluster) => cluster,
            Err(error) => panic!("no cluster to test: {error:#}"),
        }
    }

    /// As [`Cluster::connect`]; the error says what is missing.
    pub fn try_connect() -> Result<Self> {
        if std::env::var_os("KUBECONFIG").is_none_or(|path| path.is_empty()) {
            bail!("KUBECONFIG is not set; `make cluster` makes a cluster and says what to set");
        }
        let cluster = Self { kubectl: std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()) };
        cluster.run(&["get", "--raw", "/readyz"]).context("the API server of KUBECONFIG does not answer")?;
        Ok(cluster)
    }

    /// Runs `kubectl` to its end; its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "")
    }

    /// Runs `kubectl` and reads what it prints as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }

    /// Creates or changes objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.run_with_input(&["apply", "--filename", "-"], &list.to_string()).map(drop)
    }

    /// Deletes objects, and does not mind those that are gone.
    pub fn delete(&self, objects: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.run_with_input(&["delete", "--filename", "-", "--ignore-not-found", "--timeout=60s"], &list.to_string()).map(drop)
    }

    /// `kubectl` with these arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        // What runs in a pod is heard by SPDY: by WebSockets, kubectl (1.32) sometimes hears it before it listens, on a machine that is busy, and drops it.
        command.args(arguments).env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
        command
    }

    /// Names of the nodes that take pods, at least two.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.json(&["get", "nodes"])?;
        let names: Vec<String> = items(&nodes)
            .filter(|node| {
                !node["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|taint| taint["effect"] == "NoSchedule"))
            })
            .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        if names.len() < 2 {
            bail!("the scenarios need two nodes that take pods; this cluster has {names:?}");
        }
        Ok(names)
    }

    /// Those of the nodes that scenarios place their pods on.
    pub fn places(&self) -> Result<Places> {
        let nodes = self.nodes()?;
        let [near, between @ .., far] = nodes.as_slice() else { bail!("the scenarios need two nodes") };
        Ok(Places { near: near.clone(), far: far.clone(), beside: between.first().cloned() })
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output(arguments, input, Duration::from_secs(180))?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `kubectl` and returns what came of it; ended after `limit`.
    pub fn output(&self, arguments: &[&str], input: &str, limit: Duration) -> Result<Output> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}: is kubectl installed? (KUBECTL names another)", self.kubectl.to_string_lossy()))?;
        // Absent only if taken before. A child that does not read its input may have ended already.
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(input.as_bytes());
        }
        let stdout = child.stdout.take().map(read_to_end);
        let stderr = child.stderr.take().map(read_to_end);
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("kubectl {} did not end within {} s", arguments.join(" "), limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let collect = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        Ok(Output { status, stdout: collect(stdout), stderr: collect(stderr) })
    }
}

fn read_to_end(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output like its end does.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// The objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// A namespace of a scenario's own, deleted with all that is in it when the scenario ends, also by a panic.
#[derive(Debug)]
pub struct Namespace {
    cluster: Cluster,
    /// Its name; unlike that of any other run.
    pub name: String,
}

impl Namespace {
    /// Makes a namespace with the labels.
    pub fn create(cluster: &Cluster, purpose: &str, labels: &[(&str, &str)]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{purpose}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { OWN_LABEL: purpose } } });
        for (key, value) in labels {
            object["metadata"]["labels"][*key] = json!(value);
        }
        cluster.apply(&[object])?;
        let namespace = Self { cluster: cluster.clone(), name };
        // Made by a controller a moment later; pods are refused until then.
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = namespace.run(&["get", "serviceaccount", "default"]) {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(namespace)
    }

    /// Runs `kubectl` in this namespace.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.run(&[&["--namespace", &self.name], arguments].concat())
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = self.cluster.run(&["delete", "namespace", &self.name, "--ignore-not-found", "--timeout=90s"]);
        if let Err(error) = deleted {
            eprintln!("namespace {} could not be deleted: {error:#}", self.name);
        }
    }
}
