//! A node on which the real binary runs.

use palisade_cni::link::{Namespace, Netlink, ROUTE_PROTOCOL};
use palisade_protocol::{Call, Client, Reply, SOCKET_NAME, Status};
use palisade_test_support::{CniCall, Host, container_id};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `shop/web` takes port 80 from pods of its own namespace: from `shop/client`, not from `other/client`.
pub const MANIFESTS: &str = "
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
spec: {containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: client, image: client}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other}
spec: {containers: [{name: client, image: client}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-shop, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {}}]
    ports: [{port: 80}, {port: 80, protocol: UDP}]
";

/// The real binary.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade-agent");

/// The agent's process; killed when it goes out of scope.
pub struct Agent(Child);

impl Agent {
    /// A command that starts an agent of this node, its source still to be said.
    pub fn command(host: &Host) -> Command {
        Self::command_of(Path::new(PROGRAM), host, &host.bpffs().join("palisade"))
    }

    /// As [`command`](Self::command), with another file of the program and another place for pins.
    pub fn command_of(program: &Path, host: &Host, pin_dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().args(["--node", "node"]).stderr(Stdio::inherit());
        command.arg("--run-dir").arg(host.run_dir()).arg("--pin-dir").arg(pin_dir);
        command
    }

    /// Starts an agent with a directory as its source.
    pub fn from_directory(mut command: Command, directory: &Path) -> Self {
        command.args(["--ranges", "10.77.0.0/24,fd77::/64"]).arg("--directory").arg(directory);
        Self::spawn(command)
    }

    /// Starts an agent.
    pub fn spawn(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Starts an agent with a directory as its source and waits until it is ready.
    pub fn on_directory(host: &Host, directory: &Path) -> Self {
        let agent = Self::from_directory(Self::command(host), directory);
        wait(host, "the agent is ready", |status| status.ready);
        agent
    }

    /// SIGKILL: no handler runs.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an agent whose source is an API server.
pub fn with_kubeconfig(host: &Host, directory: &Path, server: SocketAddr) -> Agent {
    Agent::spawn(command_with_kubeconfig(host, directory, server))
}

/// A command that starts an agent whose source is an API server.
pub fn command_with_kubeconfig(host: &Host, directory: &Path, server: SocketAddr) -> Command {
    let kubeconfig = directory.join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
         clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}], users: [{{name: u, user: {{token: t}}}}]}}"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let mut command = Agent::command(host);
    command.env("KUBECONFIG", kubeconfig);
    command
}

/// Has an agent write its log into a file in a directory; what it has written so far.
pub fn log_of(command: &mut Command, directory: &Path) -> impl Fn() -> String + use<> {
    let log = directory.join("log");
    command.stderr(File::create(&log).unwrap());
    move || std::fs::read_to_string(&log).unwrap()
}

/// Where an agent shows its metrics that is told to.
pub const METRICS: &str = "127.0.0.1:9964";

/// The value of a series of the agent at [`METRICS`].
pub fn counted(series: &str) -> u64 {
    let mut stream = TcpStream::connect(METRICS).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let value = answer.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |count| count.trim().parse().unwrap())
}

/// Waits until the agent's status is as wanted.
pub fn wait(host: &Host, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let began = Instant::now();
    loop {
        let client = Client::connect(&host.run_dir().join(SOCKET_NAME), Duration::from_secs(10));
        let reply = client.and_then(|mut client| client.call(Call::Status));
        match &reply {
            Ok(Reply::Status(status)) if wanted(status) => return status.clone(),
            _ => assert!(began.elapsed() < Duration::from_secs(30), "not in time: {what}: {reply:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Wires a pod; its addresses, IPv4 first.
pub fn add(host: &Host, namespace: &str, pod: &str) -> Vec<IpAddr> {
    addresses(&add_by(host, &host.cni_call(namespace, pod)))
}

/// Wires a pod by a call of the test's own; the result.
pub fn add_by(host: &Host, call: &CniCall) -> Value {
    host.create_pod(call.container()).unwrap();
    let (code, result) = call.run("ADD");
    assert_eq!(code, 0, "{result}");
    result
}

/// The addresses of a result, in its order.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let entries = result["ips"].as_array().unwrap().iter();
    entries.map(|entry| entry["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

/// Tries to wire a pod, which must fail with "try again later" and leave nothing; the error object.
pub fn add_in_vain(host: &Host, namespace: &str, pod: &str) -> Value {
    add_refused(host, &host.cni_call(namespace, pod), 11)
}

/// Tries to wire a pod by a call of the test's own, which must fail with this code; the error object.
pub fn add_refused(host: &Host, call: &CniCall, code: u32) -> Value {
    host.create_pod(call.container()).unwrap();
    let (exit, error) = call.run("ADD");
    assert_eq!((exit, &error["code"]), (1, &code.into()), "{error}");
    host.remove_pod(call.container()).unwrap();
    error
}

/// Unwires a pod and removes its namespace.
pub fn remove(host: &Host, namespace: &str, pod: &str) {
    remove_by(host, &host.cni_call(namespace, pod));
}

/// The same by a call of the test's own.
pub fn remove_by(host: &Host, call: &CniCall) {
    assert_eq!(call.run("DEL"), (0, Value::Null));
    host.remove_pod(call.container()).unwrap();
}

/// A pod's network namespace.
pub fn inside(host: &Host, namespace: &str, pod: &str) -> Namespace {
    Namespace::open(&host.pod_path(&container_id(namespace, pod))).unwrap()
}

/// A listener in a pod. Connections wait in its backlog and need no accept.
pub fn listen(host: &Host, (namespace, pod): (&str, &str), at: SocketAddr) -> TcpListener {
    inside(host, namespace, pod).enter(|| TcpListener::bind(at)).unwrap().unwrap()
}

/// Whether a pod can open a TCP connection, at once: what says that it cannot.
pub fn reaches(host: &Host, from: (&str, &str), at: SocketAddr) -> bool {
    reaches_within(host, from, at, Duration::from_millis(300))
}

/// The same, with time for more than one SYN: what says that it can.
pub fn reaches_in_time(host: &Host, from: (&str, &str), at: SocketAddr) -> bool {
    reaches_within(host, from, at, Duration::from_secs(5))
}

fn reaches_within(host: &Host, (namespace, pod): (&str, &str), at: SocketAddr, patience: Duration) -> bool {
    inside(host, namespace, pod).enter(|| TcpStream::connect_timeout(&at, patience).is_ok()).unwrap()
}

/// Removes what agents leave for their successors.
pub fn clear(host: &Host) {
    let netlink = Netlink::open().unwrap();
    for route in netlink.routes().unwrap().into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL) {
        netlink.delete_route(&route).unwrap();
    }
    std::fs::remove_dir_all(host.bpffs().join("palisade")).unwrap();
    for file in [SOCKET_NAME, "agent.lock", "numbers.json"] {
        std::fs::remove_file(host.run_dir().join(file)).unwrap();
    }
}
