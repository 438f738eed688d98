//! The plugin that is installed on a node, called by the library that container runtimes are built with, beside the runtime that the node has:
//! under a network of the test's own, so that a collection has nothing to say about others.

use anyhow::{Context, Result, bail, ensure};
use palisade_e2e::administrator::{NODE, ON_NODE, administrator};
use palisade_e2e::agent::Agent;
use palisade_e2e::cluster::{Cluster, Namespace, items};
use palisade_e2e::pod::{self, Pod, TCP_PORT};
use palisade_e2e::requirement::skipped;
use palisade_e2e::scene::{Scene, policy};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The program around the library, on the node.
const PROGRAM: &str = "/var/lib/palisade-e2e-libcni";
/// Where nodes have their plugins, and the configuration that ours is called by.
const PLUGINS: &str = "/opt/cni/bin";
const CONFIGURATION: &str = "/etc/cni/net.d/10-palisade.conflist";
/// How long a change may take to be enforced.
const SOON: Duration = Duration::from_secs(5);

/// A node's runtime of a network of its own.
struct Runtime {
    cluster: Cluster,
    administrator: Pod,
    network: Value,
    name: String,
}

impl Runtime {
    fn start(scene: &Scene, program: &Path) -> Result<Self> {
        let cluster = scene.cluster().clone();
        // Pods of this namespace are what the test says they are: one that is gated is never started by the node itself.
        let pods = pod::start(&scene.clients_in, &[administrator("administrator", &scene.client().node)])?;
        let administrator = pod::named(&pods, "administrator")?.clone();
        administrator.put(&cluster, program, &format!("{NODE}{PROGRAM}"))?;
        let mut network: Value = serde_json::from_str(&administrator.shell(&cluster, &format!("cat {NODE}{CONFIGURATION}"))?)?;
        let name = scene.clients_in.name.clone();
        network["name"] = json!(name);
        Ok(Self { cluster, administrator, network, name })
    }

    fn on_node(&self, command: &str) -> Result<String> {
        self.administrator.shell(&self.cluster, &format!("{ON_NODE} {command}"))
    }

    /// The name of a container's network namespace; containers are `1`, `2`, ….
    fn namespace(&self, container: u32) -> String {
        format!("{}-{container}", self.name)
    }

    /// Asks the library for a verb. What came of it: its result, or its error.
    fn ask(&self, verb: &str, more: &Value) -> Result<Value> {
        let mut request = json!({
            "verb": verb, "network": self.network, "path": [PLUGINS], "cacheDir": format!("{PROGRAM}.cache"), "plugin": "palisade-cni",
        });
        request.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
        let answer = self.administrator.shell(&self.cluster, &format!("{ON_NODE} {PROGRAM} <<'END'\n{request}\nEND"))?;
        serde_json::from_str(&answer).with_context(|| format!("{verb}: {answer}"))
    }

    /// The result of a verb that must succeed.
    fn done(&self, verb: &str, more: &Value) -> Result<Value> {
        let answer = self.ask(verb, more)?;
        ensure!(answer["error"].is_null(), "{verb}: {answer}");
        Ok(answer["result"].clone())
    }

    /// What the library is told of a container, which is the pod of this name and uid.
    fn attachment(&self, container: u32, pod: &str, uid: &str) -> Value {
        let args = [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", &self.name],
            ["K8S_POD_NAME", pod],
            ["K8S_POD_INFRA_CONTAINER_ID", &self.namespace(container)],
            ["K8S_POD_UID", uid],
        ];
        let namespace = self.namespace(container);
        json!({ "attachment": { "containerId": namespace, "namespace": format!("/run/netns/{namespace}"), "interface": "eth0", "args": args } })
    }

    /// Whom the node's agent knows, by container: who is of this network, and all others. The node starts others while a test runs.
    fn endpoints(&self) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let agents = Agent::all(&self.cluster)?;
        let agent = agents.iter().find(|agent| agent.node == self.administrator.node).context("the node has an agent")?;
        let endpoints = agent.ask(&["endpoint", "list"])?;
        let endpoints = endpoints.as_array().context("a list of endpoints")?;
        let containers = endpoints.iter().map(|endpoint| endpoint["containerId"].as_str().unwrap_or_default().to_owned());
        Ok(containers.partition(|container| container.starts_with(&self.name)))
    }

    /// Asks for the name of who is at an address, as a container; the way that `curl` ended, where nobody answers.
    fn asks(&self, container: u32, address: IpAddr) -> Result<String> {
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let curl = format!("curl --silent --max-time 1 http://{host}:{TCP_PORT}/hostname");
        Ok(self.on_node(&format!("ip netns exec {} {curl}", self.namespace(container))).unwrap_or_default())
    }

    fn expect(&self, when: &str, container: u32, address: IpAddr, wanted: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let late = begun.elapsed() > SOON;
            let answer = self.asks(container, address)?;
            if answer == wanted {
                return Ok(());
            }
            ensure!(!late, "{when}: {address} says {answer:?}, not {wanted:?}");
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let names = [self.namespace(1), self.namespace(2)];
        let gc = self.ask("GC", &json!({ "valid": { "attachments": [] } }));
        let left = self.administrator.shell(
            &self.cluster,
            &format!(
                "for name in {}; do {ON_NODE} ip netns del $name; done; rm -rf {NODE}{PROGRAM} {NODE}{PROGRAM}.cache",
                names.join(" ")
            ),
        );
        for error in [gc.map(drop), left.map(drop)].into_iter().filter_map(Result::err) {
            eprintln!("on {} something may be left of {}: {error:#}", self.administrator.node, self.name);
        }
    }
}

/// The program around the library; `None` without Go.
fn program() -> Result<Option<PathBuf>> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("libcni/build")).arg(&folder).output()?;
    match output.status.code() {
        Some(0) => Ok(Some(folder.join("bin/libcni"))),
        Some(3) => Ok(None),
        _ => bail!("libcni does not build; is the Go module proxy reachable?\n{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// A pod that stays an object: it is never given to a node.
fn gated(name: &str, label: &str) -> Value {
    let mut pod = pod::shell(name, "", &[("app", label)], "");
    let spec = pod["spec"].as_object_mut().expect("a pod has a spec");
    spec.remove("nodeSelector");
    spec.insert("schedulingGates".to_owned(), json!([{ "name": "palisade.dev/e2e" }]));
    pod
}

#[test]
fn the_library_of_runtimes_does_every_verb_on_a_node_of_the_cluster() -> Result<()> {
    let Some(program) = program()? else {
        skipped("needs Go 1.21 or later, in PATH or in /usr/local/go");
        return Ok(());
    };
    let scene = Scene::start("cni")?;
    let runtime = Runtime::start(&scene, &program)?;
    let (cluster, namespace) = (scene.cluster(), &scene.clients_in.name);
    let mut uids = Vec::new();
    for (name, label) in [("one", "wanted"), ("two", "other")] {
        let mut pod = gated(name, label);
        pod["metadata"]["namespace"] = json!(namespace);
        cluster.apply(&[pod])?;
        let uid = cluster.run(&["get", "pod", name, "--namespace", namespace, "--output", "jsonpath={.metadata.uid}"])?;
        uids.push(uid);
    }
    let [one, two] = [(1, "one", &uids[0]), (2, "two", &uids[1])].map(|(container, pod, uid)| runtime.attachment(container, pod, uid));

    let versions = runtime.done("VERSION", &json!({}))?;
    assert!(
        ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].iter().all(|version| versions.as_array().is_some_and(|all| all.contains(&json!(version)))),
        "{versions}"
    );
    runtime.done("STATUS", &json!({}))?;
    assert_eq!(runtime.done("VALIDATE", &json!({}))?, json!(["bandwidth", "portMappings"]));
    let (ours, others) = runtime.endpoints()?;
    assert!(ours.is_empty() && !others.is_empty(), "{ours:?} {others:?}");

    // Both get addresses of the node's ranges, of each family one, and reach others.
    let node = cluster.json(&["get", "node", &scene.client().node])?;
    let families = node["spec"]["podCIDRs"].as_array().context("a node with pod ranges")?.len();
    let mut addresses = Vec::new();
    for (container, attachment) in [(1, &one), (2, &two)] {
        runtime.on_node(&format!("ip netns add {}", runtime.namespace(container)))?;
        let result = runtime.done("ADD", attachment)?;
        let result = &result["1.1.0"];
        let given =
            result["ips"].as_array().context("addresses")?.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
        let given: Vec<IpAddr> = given.collect();
        assert_eq!(given.len(), families, "{result}");
        assert!(result["interfaces"].as_array().is_some_and(|all| all.iter().any(|interface| interface["name"] == "eth0")), "{result}");
        assert_eq!(&runtime.done("CACHED", attachment)?["1.1.0"], result);
        runtime.done("CHECK", attachment)?;
        addresses.push(given);
    }
    assert!(addresses[0].iter().all(|address| !addresses[1].contains(address)), "{addresses:?}");
    for server in scene.servers() {
        for &address in &server.addresses {
            for container in [1, 2] {
                runtime.expect("without a policy", container, address, &server.name)?;
            }
        }
    }
    // Each is the pod that the runtime says.
    let wanted = json!([{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "wanted" } } }]);
    policy(&scene.clients_in, "out", &json!({ "podSelector": { "matchLabels": { "app": "other" } }, "policyTypes": ["Egress"] }))?;
    scene.policy("wanted", &json!({ "podSelector": {}, "ingress": [{ "from": wanted }] }))?;
    for server in scene.servers() {
        for &address in &server.addresses {
            // Elsewhere nobody knows yet whose the address is: no kubelet has said so of this pod.
            let known = server.node == runtime.administrator.node;
            runtime.expect("whom the policy names", 1, address, if known { &server.name } else { "" })?;
            runtime.expect("whose policy lets nothing out", 2, address, "")?;
        }
    }

    // A collection takes the second, which is not named, and nobody of another network.
    let container = runtime.namespace(1);
    runtime.done("GC", &json!({ "valid": { "attachments": [{ "containerID": container, "ifname": "eth0" }] } }))?;
    let (ours, after) = runtime.endpoints()?;
    assert_eq!(ours, BTreeSet::from([container]));
    assert!(after.is_superset(&others), "of {others:?} are left {after:?}");
    runtime.done("CHECK", &one)?;
    assert!(!runtime.ask("CHECK", &two)?["error"].is_null());
    assert!(!runtime.on_node(&format!("ip -n {} link show", runtime.namespace(2)))?.contains("eth0"));

    // What was changed since is found.
    runtime.on_node(&format!("ip -n {} route del default", runtime.namespace(1)))?;
    let said = runtime.ask("CHECK", &one)?;
    assert!(said["error"]["message"].as_str().is_some_and(|message| message.contains("route")), "{said}");
    for _ in 0..2 {
        runtime.done("DEL", &one)?;
    }
    let (ours, after) = runtime.endpoints()?;
    assert!(ours.is_empty() && after.is_superset(&others), "{ours:?}, and of {others:?} {after:?}");
    let stray = addresses.concat().into_iter().filter(|address| {
        let family = if address.is_ipv6() { "-6" } else { "-4" };
        runtime.on_node(&format!("ip {family} route show {address}")).is_ok_and(|found| !found.trim().is_empty())
    });
    assert_eq!(stray.collect::<Vec<_>>(), [] as [IpAddr; 0]);
    Ok(())
}

#[test]
fn a_pod_with_a_limit_that_nobody_would_keep_does_not_start_and_its_event_says_why() -> Result<()> {
    let cluster = Cluster::connect();
    let namespace = Namespace::create(&cluster, "limited", &[])?;
    let node = cluster.nodes()?.into_iter().next().context("a node")?;
    let mut pod = pod::shell("limited", &node, &[], "");
    pod["metadata"]["namespace"] = json!(namespace.name);
    pod["metadata"]["annotations"] = json!({ "kubernetes.io/ingress-bandwidth": "1M" });
    cluster.apply(&[pod])?;
    let begun = Instant::now();
    loop {
        let events =
            cluster.json(&["get", "events", "--namespace", &namespace.name, "--field-selector", "reason=FailedCreatePodSandBox"])?;
        let messages: Vec<&str> = items(&events).filter_map(|event| event["message"].as_str()).collect();
        if messages.iter().any(|message| message.contains("kubernetes.io/ingress-bandwidth")) {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "no event says so: {messages:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
