//! The nine pods of the truth tables, each with a prober that stays, and what scenarios do to them.

use crate::cluster::{Cluster, Namespace};
use crate::pod::{self, IMAGE, Pod, named};
use crate::table::{Found, NAMESPACES, Name, PODS, Question};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the node keeps its addresses: `paths.state` of the chart, and the plugin's own folder in it.
pub const ADDRESS_STORE: &str = "/var/lib/palisade/ipam";
/// How long a pod of another test may keep addresses that are wanted.
const RECREATED: Duration = Duration::from_secs(240);
/// What the program is called in a pod.
const PROBER: &str = "/tmp/prober";
/// A label value of 63 characters, each kind that may stand in one.
pub const LONGEST_VALUE: &str = "A-_.-_.a0__..--z9._-A.B_C-D...e___f---0_0-1.2A-_.-_.a0__..--z9Z";

/// Three namespaces with three pods each.
#[derive(Debug)]
pub struct World {
    cluster: Cluster,
    prober: PathBuf,
    nodes: Vec<String>,
    families: Vec<bool>,
    // Before the namespaces: dropped in this order.
    sessions: BTreeMap<Name, Session>,
    namespaces: BTreeMap<&'static str, Namespace>,
}

impl World {
    /// Makes the namespaces and the pods, and starts in each pod the prober that the path names.
    pub fn start(prober: &Path) -> Result<Self> {
        let cluster = Cluster::try_connect()?;
        let nodes = cluster.places()?.all().map(|(_, node)| node.to_owned()).collect();
        let mut namespaces = BTreeMap::new();
        for name in NAMESPACES {
            namespaces.insert(name, Namespace::create(&cluster, &format!("table-{name}"), &[("ns", name)])?);
        }
        let mut world = Self { cluster, prober: prober.to_owned(), nodes, families: Vec::new(), namespaces, sessions: BTreeMap::new() };
        let pods: Result<Vec<Value>> = Name::all().map(|name| world.pod(name, &base_labels(name))).collect();
        world.cluster.apply(&pods?)?;
        let mut started = Vec::new();
        for (name, namespace) in &world.namespaces {
            started.extend(pod::ready(&world.cluster, &namespace.name)?.into_iter().map(|pod| (*name, pod)));
        }
        for name in Name::all() {
            let pod = started.iter().find(|(namespace, pod)| *namespace == name.namespace && pod.name == name.pod);
            let (_, pod) = pod.with_context(|| format!("the pod {name} did not start"))?;
            world.families = pod.addresses.iter().map(IpAddr::is_ipv6).collect();
            world.sessions.insert(name, Session::start(&world.cluster, pod.clone(), &world.prober, name)?);
        }
        Ok(world)
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The name that a namespace of the tables has in the cluster.
    pub fn namespace(&self, name: &str) -> Result<&str> {
        self.namespaces.get(name).map(|namespace| namespace.name.as_str()).with_context(|| format!("no namespace {name}"))
    }

    /// The families of the addresses that every pod has: whether each is IPv6.
    pub fn families(&self) -> &[bool] {
        &self.families
    }

    /// The address of a pod.
    pub fn address(&self, name: Name, ipv6: bool) -> Result<IpAddr> {
        self.sessions.get(&name).with_context(|| format!("no pod {name}"))?.pod.address(ipv6)
    }

    /// Asks the questions, all at once; each is given up after `patience`.
    pub fn ask(&mut self, questions: impl Iterator<Item = Question>, patience: Duration) -> Result<BTreeMap<Question, Found>> {
        let mut of_pod: BTreeMap<Name, Vec<Question>> = BTreeMap::new();
        for question in questions {
            of_pod.entry(question.from).or_default().push(question);
        }
        for (from, questions) in &of_pod {
            let mut line = patience.as_millis().to_string();
            for question in questions {
                line += &format!(" {},{},{}", question.port.name(), self.address(question.to, question.ipv6)?, question.to);
            }
            let session = self.sessions.get_mut(from).with_context(|| format!("no pod {from}"))?;
            writeln!(session.input, "{line}").with_context(|| format!("the prober in {from} has ended"))?;
        }
        let mut found = BTreeMap::new();
        for (from, questions) in of_pod {
            let line = self.sessions.get_mut(&from).with_context(|| format!("no pod {from}"))?.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            ensure!(words.len() == questions.len(), "the prober in {from} answered {} questions with `{line}`", questions.len());
            found.extend(questions.into_iter().zip(words.iter().map(|word| match *word {
                "reached" => Ok(true),
                "silent" => Ok(false),
                other => Err(other.to_owned()),
            })));
        }
        Ok(found)
    }

    /// Sets a label of a pod (`KEY=VALUE`) or takes it away (`KEY-`).
    pub fn label_pod(&self, name: Name, label: &str) -> Result<()> {
        let arguments = ["label", "--overwrite", "--namespace", self.namespace(name.namespace)?, "pod", name.pod, label];
        self.cluster.run(&arguments).map(drop)
    }

    /// Sets a label of a namespace or takes it away.
    pub fn label_namespace(&self, name: &str, label: &str) -> Result<()> {
        self.cluster.run(&["label", "--overwrite", "namespace", self.namespace(name)?, label]).map(drop)
    }

    /// Gives every pod the labels that it began with, and no others.
    pub fn restore_labels(&self) -> Result<()> {
        // Replaces all labels: a merge would leave what was added.
        let patch = |labels: Value| json!([{ "op": "replace", "path": "/metadata/labels", "value": labels }]).to_string();
        for name in Name::all() {
            let labels = patch(json!(base_labels(name)));
            self.cluster.run(&[
                "patch",
                "--namespace",
                self.namespace(name.namespace)?,
                "pod",
                name.pod,
                "--type=json",
                "--patch",
                &labels,
            ])?;
        }
        Ok(())
    }

    /// Deletes a pod and makes one of the same name, with these labels, under the same addresses.
    ///
    /// An address rests for half a minute after it was given back, and the node gives out all others before: both are
    /// cut short in the node's store, the rest is what always happens. Another test's pod may come between and take the addresses: then it
    /// is tried again, until that pod has gone.
    pub fn recreate(&mut self, name: Name, labels: &BTreeMap<String, String>) -> Result<()> {
        // Not in two worlds at once: each counts on what it has told the node's store.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.sessions.remove(&name).with_context(|| format!("no pod {name}"))?.pod.clone();
        let keeper = self.keeper(&old.node)?;
        let addresses: Vec<String> = old.addresses.iter().map(IpAddr::to_string).collect();
        let deadline = Instant::now() + RECREATED;
        let fresh = loop {
            self.cluster.run(&["delete", "--namespace", &old.namespace, "pod", &old.name, "--timeout=60s"])?;
            keeper.shell(&self.cluster, &format!("{PROBER} end-rest {ADDRESS_STORE} {}", addresses.join(" ")))?;
            self.cluster.apply(&[self.pod(name, labels)?])?;
            let pods = pod::ready(&self.cluster, &old.namespace)?;
            let fresh = named(&pods, name.pod)?.clone();
            if fresh.addresses == old.addresses {
                break fresh;
            }
            ensure!(Instant::now() < deadline, "{name} came back as {:?}, it was {:?}", fresh.addresses, old.addresses);
            std::thread::sleep(Duration::from_secs(5));
        };
        self.sessions.insert(name, Session::start(&self.cluster, fresh, &self.prober, name)?);
        Ok(())
    }

    /// A pod on the node's own network that reaches the node's address store.
    fn keeper(&self, node: &str) -> Result<Pod> {
        let mut keeper = pod::shell("keeper", node, &[], "");
        keeper["metadata"]["namespace"] = json!(self.namespace("x")?);
        keeper["metadata"]["name"] = json!(format!("keeper-{node}"));
        keeper["spec"]["hostNetwork"] = json!(true);
        keeper["spec"]["volumes"] = json!([{ "name": "store", "hostPath": { "path": ADDRESS_STORE, "type": "Directory" } }]);
        keeper["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "store", "mountPath": ADDRESS_STORE }]);
        self.cluster.apply(&[keeper])?;
        let pods = pod::ready(&self.cluster, self.namespace("x")?)?;
        let keeper = named(&pods, &format!("keeper-{node}"))?.clone();
        keeper.put(&self.cluster, &self.prober, PROBER)?;
        Ok(keeper)
    }

    fn pod(&self, name: Name, labels: &BTreeMap<String, String>) -> Result<Value> {
        let index = Name::all().position(|other| other == name).unwrap_or_default();
        // In pairs: each namespace has pods that share a node and pods that do not, and every way between nodes is one between pods.
        let mut pod = pod::shell(name.pod, &self.nodes[index / 2 % self.nodes.len()], &[], "");
        pod["metadata"]["namespace"] = json!(self.namespace(name.namespace)?);
        pod["metadata"]["labels"] = json!(labels);
        // One name is another number on one pod, and one pod has one name for two numbers.
        let web = if name == Name::parse("z/c").context("z/c")? { 81 } else { 80 };
        let port = |name: &str, port: u16, protocol: &str| json!({ "name": name, "containerPort": port, "protocol": protocol });
        let mut ports = vec![port("web", web, "TCP"), port("dgram", 80, "UDP"), port("assoc", 80, "SCTP")];
        if name == Name::parse("y/c").context("y/c")? {
            ports.push(port("twice", 80, "TCP"));
            let second = json!({ "name": "second", "image": IMAGE, "command": ["sleep", "3600"], "ports": [port("twice", 81, "TCP")] });
            pod["spec"]["containers"].as_array_mut().context("no containers")?.push(second);
        }
        pod["spec"]["containers"][0]["ports"] = json!(ports);
        pod["spec"]["containers"][0]["command"] = json!(["sleep", "3600"]);
        Ok(pod)
    }
}

/// The labels that a pod begins with.
pub fn base_labels(name: Name) -> BTreeMap<String, String> {
    let mut labels =
        BTreeMap::from([("pod".to_owned(), name.pod.to_owned()), ("at".to_owned(), format!("{}-{}", name.namespace, name.pod))]);
    if name.pod == PODS[0] {
        labels.insert("first".into(), String::new());
    }
    if name.to_string() == "y/b" {
        labels.insert("odd.example.org/a_B-c.D".into(), LONGEST_VALUE.into());
    }
    labels
}

/// A prober that runs in a pod; it ends when this is dropped.
#[derive(Debug)]
struct Session {
    pod: Pod,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn start(cluster: &Cluster, pod: Pod, prober: &Path, name: Name) -> Result<Self> {
        pod.put(cluster, prober, PROBER)?;
        let arguments =
            ["exec", "--stdin", "--namespace", &pod.namespace, &pod.name, "--container", "shell", "--", PROBER, &name.to_string()];
        let mut child = cluster.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("kubectl has no pipes") };
        let mut session = Self { pod, child, input, output: BufReader::new(output) };
        let ready = session.line()?;
        ensure!(ready == "ready", "the prober in {name} began with `{ready}`");
        Ok(session)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the prober in {}/{} has ended", self.pod.namespace, self.pod.name);
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its own child; that it has ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
