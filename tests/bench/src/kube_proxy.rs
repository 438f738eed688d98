//! The peer of services: kube-proxy in its iptables mode, on a node that routes and has no programs of ours.

use crate::path::Path;
use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_cni::link::Namespace;
use palisade_service::model::Services;
use palisade_test_support::Host;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The node's name.
const NODE: &str = "node";
/// How long it may take to write the rules of all services: of 10 000, more than three minutes on two CPUs that others want, too.
const PATIENCE: Duration = Duration::from_secs(600);

/// kube-proxy, and an API server that knows what kube-proxy asks for and no more.
pub struct KubeProxy {
    program: PathBuf,
    directory: PathBuf,
    router: Namespace,
    is_ipv6: bool,
    lists: Lists,
    api: Option<(oneshot::Sender<()>, JoinHandle<Result<()>>)>,
    running: Option<Child>,
}

/// The objects of a kind, by the path of their list.
type Lists = Arc<Mutex<BTreeMap<&'static str, Value>>>;

impl KubeProxy {
    /// Prepares it on the node in the middle of a path.
    pub fn new(program: PathBuf, host: &Host, path: &Path) -> Result<Self> {
        let router = path.router(host)?.context("a path without a node in the middle")?;
        let directory = host.directory().join("kube-proxy");
        std::fs::create_dir(&directory)?;
        let lists = Lists::default();
        let listener = router.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        let port = listener.local_addr()?.port();
        std::fs::write(directory.join("config.yaml"), config(&directory.join("kubeconfig").display().to_string()))?;
        std::fs::write(directory.join("kubeconfig"), kubeconfig(port))?;
        let api = Some(serve(listener, Arc::clone(&lists))?);
        Ok(Self { program, directory, router, is_ipv6: path.server_address.is_ipv6(), lists, api, running: None })
    }

    /// Has it write the rules of these services, and ends it then: packets need its rules alone, and what it still does would slow down all that is measured.
    pub fn serve(&mut self, services: &Services) -> Result<()> {
        let ports: usize = services.services.iter().map(|(_, service)| service.ports.len()).sum();
        *self.lists.lock().expect("no holder of this lock panics") = lists(services, self.is_ipv6);
        let log = File::create(self.directory.join("log"))?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.directory.join("config.yaml")).stdout(log.try_clone()?).stderr(log);
        let child = self.router.enter(|| command.spawn())?.with_context(|| format!("start {}", self.program.display()))?;
        self.running = Some(child);
        let since = Instant::now();
        while self.rules()? != ports {
            let ended = self.running.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || since.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.directory.join("log"))?;
                let end: Vec<&str> = log.lines().rev().take(10).collect();
                bail!("kube-proxy did not write the rules of {ports} ports: {}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.stop()?;
        ensure!(self.rules()? == ports, "kube-proxy has not left its rules where they were");
        Ok(())
    }

    /// The ports of services that have a rule.
    fn rules(&self) -> Result<usize> {
        let save = if self.is_ipv6 { "ip6tables-save" } else { "iptables-save" };
        let output = self
            .router
            .enter(|| Command::new(save).args(["-t", "nat"]).output())?
            .with_context(|| format!("start {save}: is iptables installed?"))?;
        ensure!(output.status.success(), "{save}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES ") && line.contains("-j KUBE-SVC-")).count())
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.running.take() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        child.wait()?;
        Ok(())
    }

    /// Ends it and its API server; the rules go with the node.
    pub fn end(mut self) -> Result<()> {
        if let Some((end, server)) = self.api.take() {
            // It has ended already only where it failed.
            let _ = end.send(());
            server.join().map_err(|_| anyhow::anyhow!("the API server of kube-proxy panicked"))??;
        }
        std::fs::remove_dir_all(&self.directory).map_err(Into::into)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("kube-proxy could not be ended: {error:#}");
        }
    }
}

fn config(kubeconfig: &str) -> String {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": NODE,
        "clientConnection": { "kubeconfig": kubeconfig, "contentType": "application/json", "acceptContentTypes": "application/json" },
        // The machine's own settings stay as they are.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    });
    config.to_string()
}

fn kubeconfig(port: u16) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "bench", "cluster": { "server": format!("http://127.0.0.1:{port}") } }],
        "users": [{ "name": "bench", "user": {} }],
        "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        "current-context": "bench",
    });
    config.to_string()
}

/// Serves the lists until it is told to end.
fn serve(listener: TcpListener, lists: Lists) -> Result<(oneshot::Sender<()>, JoinHandle<Result<()>>)> {
    listener.set_nonblocking(true)?;
    let (end, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        let outcome = runtime.block_on(async {
            let server = axum::serve(tokio::net::TcpListener::from_std(listener)?, Router::new().fallback(answer).with_state(lists));
            tokio::select! {
                outcome = server => outcome.map_err(anyhow::Error::from),
                _ = ended => Ok(()),
            }
        });
        // Watches never end by themselves.
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    })?;
    Ok((end, server))
}

/// A list; a watch in which nothing ever happens; 404 for anything else.
async fn answer(State(lists): State<Lists>, uri: Uri) -> Response {
    let list = lists.lock().expect("no holder of this lock panics").get(uri.path()).cloned();
    let is = |name: &str| {
        let values =
            uri.query().into_iter().flat_map(|query| query.split('&')).filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        values.into_iter().any(|value| value == "true" || value == "1")
    };
    let object = |code: StatusCode, object: Value| (code, [(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response();
    let refusal = |code: StatusCode, reason: &str| {
        let status = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code.as_u16() });
        object(code, status)
    };
    match list {
        None => refusal(StatusCode::NOT_FOUND, "NotFound"),
        // The client lists instead.
        Some(_) if is("watch") && is("sendInitialEvents") => refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
        Some(_) if is("watch") => std::future::pending().await,
        Some(list) => object(StatusCode::OK, list),
    }
}

/// All that kube-proxy lists.
fn lists(services: &Services, is_ipv6: bool) -> BTreeMap<&'static str, Value> {
    let list = |version: &str, kind: &str, items: Vec<Value>| json!({ "apiVersion": version, "kind": kind, "metadata": { "resourceVersion": "1" }, "items": items });
    let family = if is_ipv6 { "IPv6" } else { "IPv4" };
    let mut objects = Vec::new();
    let mut slices = Vec::new();
    for (name, service) in services.services.iter() {
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|port| json!({ "name": port.name, "protocol": port.protocol.to_string(), "port": port.port, "targetPort": port.port }))
            .collect();
        let addresses: Vec<&IpAddr> = service.cluster_ips.iter().collect();
        objects.push(json!({
            "metadata": { "namespace": name.namespace, "name": name.name, "uid": name.to_string(), "resourceVersion": "1" },
            "spec": {
                "type": "ClusterIP", "clusterIP": addresses.first(), "clusterIPs": addresses, "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
                "ports": ports, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            },
        }));
    }
    for (service, of_service) in services.slices.iter() {
        for (name, slice) in of_service.iter() {
            let endpoints: Vec<Value> = slice
                .endpoints
                .iter()
                .map(|endpoint| json!({ "addresses": [endpoint.address], "conditions": { "ready": true, "serving": true, "terminating": false } }))
                .collect();
            let ports: Vec<Value> = slice
                .ports
                .iter()
                .map(|port| json!({ "name": port.name, "protocol": port.protocol.to_string(), "port": port.port }))
                .collect();
            slices.push(json!({
                "metadata": {
                    "namespace": service.namespace, "name": format!("{}-{name}", service.name), "resourceVersion": "1",
                    "labels": { "kubernetes.io/service-name": service.name },
                },
                "addressType": family, "endpoints": endpoints, "ports": ports,
            }));
        }
    }
    let address = if is_ipv6 { "2001:db8::1" } else { "192.0.2.1" };
    let node = json!({ "metadata": { "name": NODE, "resourceVersion": "1" }, "status": { "addresses": [{ "type": "InternalIP", "address": address }] } });
    BTreeMap::from([
        ("/api/v1/services", list("v1", "ServiceList", objects)),
        ("/api/v1/nodes", list("v1", "NodeList", vec![node])),
        ("/apis/discovery.k8s.io/v1/endpointslices", list("discovery.k8s.io/v1", "EndpointSliceList", slices)),
        ("/apis/networking.k8s.io/v1/servicecidrs", list("networking.k8s.io/v1", "ServiceCIDRList", Vec::new())),
    ])
}
