//! A node for the tests of the agent: a host of its own, a directory of manifests, the agent's code in a thread, the
//! CNI plugin's code for wiring, and real sockets.

#![allow(dead_code, reason = "each test binary uses its part")]

use palisade_cni::link::Namespace;
use palisade_loader::{Datapath, PinDir};
use palisade_protocol::{Call, Client, ClientError, Explained, Family, FlowEnd, FlowQuery, Reply, SOCKET_NAME, Status};
use palisade_runtime::{AgentConfig, AgentError, Limits, Sizes, Source};
use palisade_test_support::{Host, container_id, private_host};
use serde_json::Value;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long something may take that should happen soon.
const SOON: Duration = Duration::from_secs(20);
/// How long a client waits for a connection that policy may forbid.
const ATTEMPT: Duration = Duration::from_millis(300);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Small tables: many nodes live at once.
pub const SIZES: Sizes = Sizes {
    policy: 256,
    ports: 256,
    addresses: 256,
    prefixes: 64,
    endpoints: 64,
    services: 64,
    backends: 64,
    chunks: 64,
    nodes: 64,
    affinity: 64,
    sockets: 64,
    connections: 1024,
    outside: 64,
    fragments: 64,
    events_bytes: 65_536,
    limits: Limits::DEFAULT,
};

/// Two pods that anybody may reach, and one that only some may: `shop/web` from `shop/client`, not from `other/client`.
pub const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: web, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {containers: [{name: client, image: client}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other, labels: {app: client}}
spec: {containers: [{name: client, image: client}]}
";

/// `shop/web` takes TCP 80 from pods of its own namespace.
pub const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-shop, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {}}]
    ports: [{port: 80}]
";

/// A node on which an agent can run.
pub struct Node<'a> {
    pub host: &'a Host,
    manifests: tempfile::TempDir,
    agent: RefCell<Option<RunningAgent>>,
}

struct RunningAgent {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), AgentError>>,
}

/// What the tables hold, whoever wrote it.
#[derive(Debug, PartialEq)]
pub struct Rows {
    pub epoch: u32,
    pub text: Vec<String>,
}

/// Runs a test on a node whose directory holds these files.
pub fn node(files: &[(&str, &str)], test: impl FnOnce(&Node<'_>) + Send) {
    private_host(|host| {
        let node = Node { host, manifests: tempfile::tempdir().unwrap(), agent: RefCell::default() };
        for (name, text) in files {
            node.write(name, text);
        }
        test(&node);
        node.stop();
        let _ = std::fs::remove_dir_all(host.bpffs().join("palisade"));
        for file in ["agent.lock", "numbers.json"] {
            let _ = std::fs::remove_file(host.run_dir().join(file));
        }
    });
}

impl Node<'_> {
    /// Writes a file of the directory, in one step as editors do.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.manifests.path().join(format!(".{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.manifests.path().join(name)).unwrap();
    }

    /// Removes a file of the directory.
    pub fn delete(&self, name: &str) {
        std::fs::remove_file(self.manifests.path().join(name)).unwrap();
    }

    /// What an agent of this node is told.
    pub fn config(&self) -> AgentConfig {
        let mut config = AgentConfig::new("node", Source::Directory(self.manifests.path().to_owned()));
        config.pin_dir = self.pin_dir();
        config.run_dir = self.host.run_dir();
        config.ranges = vec!["10.77.0.0/24".parse().unwrap(), "fd77::/64".parse().unwrap()];
        config.node_addresses = vec!["192.0.2.1".parse().unwrap()];
        config.sizes = SIZES;
        config
    }

    pub fn pin_dir(&self) -> PathBuf {
        self.host.bpffs().join("palisade")
    }

    /// Starts an agent and waits until it is ready.
    pub fn start(&self) {
        self.start_with(self.config());
        self.wait("the agent is ready", |status| status.ready);
    }

    /// Starts an agent.
    pub fn start_with(&self, config: AgentConfig) {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(palisade_runtime::run(config, async { drop(stopped.await) }))
        });
        assert!(self.agent.replace(Some(RunningAgent { stop, thread })).is_none(), "one agent at a time");
        let began = Instant::now();
        while Client::connect(&self.socket(), SOON).is_err() {
            assert!(began.elapsed() < SOON, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the agent, if one runs.
    pub fn stop(&self) {
        if let Some(agent) = self.agent.take() {
            drop(agent.stop);
            agent.thread.join().unwrap().unwrap();
        }
    }

    fn socket(&self) -> PathBuf {
        self.host.run_dir().join(SOCKET_NAME)
    }

    /// Asks the agent.
    pub fn call(&self, call: Call) -> Result<Reply, ClientError> {
        Client::connect(&self.socket(), SOON)?.call(call)
    }

    /// A connection to the agent.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket(), SOON).unwrap()
    }

    pub fn status(&self) -> Status {
        match self.call(Call::Status) {
            Ok(Reply::Status(status)) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Waits until the status is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let began = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(began.elapsed() < SOON, "not in time: {what}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Wires a pod; its addresses, IPv4 first.
    pub fn add(&self, namespace: &str, pod: &str) -> Vec<IpAddr> {
        self.host.create_pod(&container_id(namespace, pod)).unwrap();
        let (code, result) = self.host.cni("ADD", namespace, pod);
        assert_eq!(code, 0, "{result}");
        addresses(&result)
    }

    /// Wires a pod in vain, and removes its namespace; the error object.
    pub fn add_in_vain(&self, namespace: &str, pod: &str) -> Value {
        self.host.create_pod(&container_id(namespace, pod)).unwrap();
        let (code, error) = self.host.cni("ADD", namespace, pod);
        assert_eq!(code, 1, "{error}");
        self.host.remove_pod(&container_id(namespace, pod)).unwrap();
        error
    }

    /// Unwires a pod and removes its namespace.
    pub fn remove(&self, namespace: &str, pod: &str) {
        let (code, error) = self.host.cni("DEL", namespace, pod);
        assert_eq!(code, 0, "{error}");
        self.host.remove_pod(&container_id(namespace, pod)).unwrap();
    }

    pub fn namespace(&self, namespace: &str, pod: &str) -> Namespace {
        Namespace::open(&self.host.pod_path(&container_id(namespace, pod))).unwrap()
    }

    /// Whether a pod can open a TCP connection.
    pub fn reaches(&self, (namespace, pod): (&str, &str), to: SocketAddr) -> bool {
        self.namespace(namespace, pod).enter(|| TcpStream::connect_timeout(&to, ATTEMPT).is_ok()).unwrap()
    }

    /// Waits until a pod can open a TCP connection, or no more.
    pub fn wait_for_reach(&self, from: (&str, &str), to: SocketAddr, wanted: bool) {
        let began = Instant::now();
        while self.reaches(from, to) != wanted {
            assert!(began.elapsed() < SOON, "{from:?} to {to}: should be {wanted}; {:?}", self.status());
            // Nobody accepts: a listener's backlog of 128 is not to be filled while an edit is awaited.
            std::thread::sleep(PAUSE);
        }
    }

    /// A listener in a pod. Connections wait in its backlog and need no accept.
    pub fn listen(&self, (namespace, pod): (&str, &str), at: SocketAddr) -> TcpListener {
        self.namespace(namespace, pod).enter(|| TcpListener::bind(at)).unwrap().unwrap()
    }

    pub fn explain(&self, from: &str, to: &str, port: u16, family: Family) -> Explained {
        let (from, to) = (FlowEnd::Pod(from.to_owned()), FlowEnd::Pod(to.to_owned()));
        match self.call(Call::Explain(FlowQuery { from, to, protocol: "TCP".to_owned(), port, family, service: false, whole: false })) {
            Ok(Reply::Explained(explained)) => explained,
            other => panic!("not explained: {other:?}"),
        }
    }

    /// Does what an agent does before the first write of a change, and no more.
    pub fn leave_in_the_middle_of_a_change(&self) {
        assert!(self.agent.borrow().is_none());
        Datapath::open(&PinDir::new(self.pin_dir()), &SIZES).unwrap().unsettle_epoch().unwrap();
    }

    /// What the pinned tables hold. Only while no agent runs: opening them loads the programs again.
    pub fn rows(&self) -> Rows {
        assert!(self.agent.borrow().is_none());
        let datapath = Datapath::open(&PinDir::new(self.pin_dir()), &SIZES).unwrap();
        let mut text = Vec::new();
        text.extend(datapath.endpoints.rows().unwrap().iter().map(|row| format!("endpoint {row:?}")));
        text.extend(datapath.local.rows().unwrap().iter().map(|row| format!("local {row:?}")));
        text.extend(datapath.addresses.rows().unwrap().iter().map(|row| format!("address {row:?}")));
        text.extend(datapath.prefixes.rows().unwrap().iter().map(|row| format!("prefix {row:?}")));
        text.extend(datapath.policy.rows().unwrap().iter().map(|row| format!("policy {row:?}")));
        text.extend(datapath.ports.rows().unwrap().iter().map(|row| format!("port {row:?}")));
        Rows { epoch: datapath.epoch().unwrap(), text }
    }
}

/// The addresses of a CNI result.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let entries = result["ips"].as_array().unwrap().iter();
    let mut addresses: Vec<IpAddr> =
        entries.map(|entry| entry["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect();
    addresses.sort();
    addresses
}
