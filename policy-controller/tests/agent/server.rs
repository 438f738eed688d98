//! A server in the place of the API server, for what a real one cannot be brought to do.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The nodes that there may be, with the addresses and the pod ranges that each has in the beginning.
const ALL_NODES: [(&str, [&str; 2], [&str; 2]); 3] = [
    ("node", ["192.0.2.1", "2001:db8::1"], ["10.77.0.0/24", "fd77::/64"]),
    ("peer", ["192.0.2.2", "2001:db8::2"], ["10.78.0.0/24", "fd78::/64"]),
    ("third", ["192.0.2.3", "2001:db8::3"], ["10.80.0.0/24", "fd80::/64"]),
];
const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/pods";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// What the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 401 to everything.
    Unauthorised,
    /// 403 to everything.
    Forbidden,
    /// The objects of one node; watches on which nothing happens. Kinds that users install are not known.
    Objects,
    /// ClusterNetworkPolicy is known, and there is one that denies everything.
    Installed,
    /// As [`Objects`](Self::Objects), but ClusterNetworkPolicy is known in another version.
    Moved,
    /// `shop/web` is another pod, on another node, which no policy selects and that has these addresses.
    Heir([IpAddr; 2]),
    /// There is a second node.
    Two,
}

/// A server on loopback; it ends when it goes out of scope.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    answer: Mutex<Answer>,
    /// What the watch of each kind has told or is to tell, in order, with the version of each.
    told: Mutex<BTreeMap<&'static str, Vec<(u64, String)>>>,
    /// The pod ranges of nodes that do not have those of the beginning any more.
    ranges: Mutex<BTreeMap<String, Vec<String>>>,
    /// The addresses of nodes that do not have those of the beginning any more.
    addresses: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    /// The nodes that have come or gone since the beginning, and whether they are there.
    came: Mutex<BTreeMap<String, bool>>,
    /// The pod `other/far`, where there is one.
    far: Mutex<Option<Value>>,
    requests: AtomicUsize,
    ended: AtomicBool,
}

impl Server {
    pub fn start(address: SocketAddr, answer: Answer) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            answer: Mutex::new(answer),
            told: Mutex::default(),
            ranges: Mutex::default(),
            addresses: Mutex::default(),
            came: Mutex::default(),
            far: Mutex::default(),
            requests: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepted = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepted.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepted);
                std::thread::spawn(move || drop(serve(&shared, stream.unwrap())));
            }
        });
        Self { shared, address, accepting: Some(accepting) }
    }

    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// Tells by the watch of NetworkPolicies that `shop/from-shop` takes everything from the pods of its namespace with one
    /// of these roles, and nothing from others. Here as in all that is told by watches `version` grows from one to the next, and begins above 7.
    pub fn admit(&self, roles: &[&str], version: u64) {
        let role = json!({ "key": "role", "operator": "In", "values": roles });
        let metadata = json!({ "name": "from-shop", "namespace": "shop", "resourceVersion": version.to_string() });
        let spec = json!({
            "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": { "matchExpressions": [role] } }] }],
        });
        let object = json!({ "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": metadata, "spec": spec });
        self.tell(POLICIES, "MODIFIED", &object, version);
    }

    /// Gives a node other pod ranges, and tells so by the watch of Nodes.
    pub fn give_ranges(&self, node: &str, ranges: &[&str], version: u64) {
        let ranges: Vec<String> = ranges.iter().map(|range| (*range).to_owned()).collect();
        self.shared.ranges.lock().unwrap().insert(node.to_owned(), ranges);
        self.tell_of_node(node, "MODIFIED", version);
    }

    /// The same of other addresses.
    pub fn give_addresses(&self, node: &str, addresses: &[IpAddr], version: u64) {
        self.shared.addresses.lock().unwrap().insert(node.to_owned(), addresses.to_vec());
        self.tell_of_node(node, "MODIFIED", version);
    }

    /// Has a node come or go, as it is by then, and tells so by the watch of Nodes.
    pub fn change_node(&self, node: &str, is_there: bool, version: u64) {
        self.shared.came.lock().unwrap().insert(node.to_owned(), is_there);
        self.tell_of_node(node, if is_there { "ADDED" } else { "DELETED" }, version);
    }

    fn tell_of_node(&self, name: &str, what: &str, version: u64) {
        let mut told = node(&self.shared, name);
        told["metadata"]["resourceVersion"] = version.to_string().into();
        self.tell(NODES, what, &told, version);
    }

    /// Tells by the watch of pods of another `shop/web`, which no policy selects.
    pub fn replace_web(&self, version: u64) {
        self.tell(PODS, "MODIFIED", &pod("shop", "web", "newer", json!({}), &version.to_string()), version);
    }

    /// Makes a pod `other/far` on the node `peer`, with these addresses, or removes it, and tells so by the watch of pods.
    pub fn change_far(&self, addresses: &[IpAddr], is_there: bool, version: u64) {
        let mut far = pod("other", "far", "uid-other-far", json!({}), &version.to_string());
        far["spec"]["nodeName"] = "peer".into();
        far["status"]["podIPs"] = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        *self.shared.far.lock().unwrap() = is_there.then(|| far.clone());
        self.tell(PODS, if is_there { "ADDED" } else { "DELETED" }, &far, version);
    }

    /// Tells by their watches of the service `shop/web`, whose port 80 at these addresses leads to port 80 of its endpoints, and of an EndpointSlice for
    /// those of IPv4 and one for those of IPv6, whatever they are. Takes two versions.
    pub fn offer_web(&self, frontends: [&str; 2], endpoints: [&[IpAddr]; 2], version: u64) {
        let metadata = |name: &str, version: u64| {
            let labels = json!({ "kubernetes.io/service-name": "web" });
            json!({ "name": name, "namespace": "shop", "labels": labels, "resourceVersion": version.to_string() })
        };
        let (families, ports) = (["IPv4", "IPv6"], json!([{ "port": 80, "protocol": "TCP" }]));
        let spec = json!({ "clusterIPs": frontends, "ipFamilies": families, "ipFamilyPolicy": "RequireDualStack", "ports": ports });
        let service = json!({ "kind": "Service", "apiVersion": "v1", "metadata": metadata("web", version), "spec": spec });
        self.tell(SERVICES, "MODIFIED", &service, version);
        for (version, (family, addresses)) in (version..).zip(families.into_iter().zip(endpoints)) {
            let endpoints: Vec<Value> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
            let metadata = metadata(&format!("web-{}", family.to_lowercase()), version);
            let slice = json!({
                "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata,
                "addressType": family, "ports": ports, "endpoints": endpoints,
            });
            self.tell(SLICES, "MODIFIED", &slice, version);
        }
    }

    fn tell(&self, path: &'static str, what: &str, object: &Value, version: u64) {
        let event = format!("{}\n", json!({ "type": what, "object": object }));
        self.shared.told.lock().unwrap().entry(path).or_default().push((version, event));
    }

    /// How many requests came so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Answers one request.
fn serve(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let answer = *shared.answer.lock().unwrap();
    let path = request.split(['?', ' ']).nth(1).unwrap_or_default();
    let (code, body) = match answer {
        Answer::Unauthorised => (401, status(401, "Unauthorized")),
        Answer::Forbidden => (403, status(403, "Forbidden")),
        _ if request.contains("watch=true") => return watch(shared, stream, path, since(&request)),
        Answer::Installed if path.ends_with("/clusternetworkpolicies") => (200, cluster_policies()),
        Answer::Moved if path == "/apis" => {
            let version = json!({ "groupVersion": "policy.networking.k8s.io/v1beta1", "version": "v1beta1" });
            let group = json!({ "name": "policy.networking.k8s.io", "versions": [version], "preferredVersion": version });
            (200, json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group] }))
        }
        Answer::Moved if path == "/apis/policy.networking.k8s.io/v1beta1" => {
            let kind = json!({
                "name": "clusternetworkpolicies", "singularName": "clusternetworkpolicy", "namespaced": false, "kind": "ClusterNetworkPolicy", "verbs": ["list"],
            });
            (
                200,
                json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "policy.networking.k8s.io/v1beta1", "resources": [kind] }),
            )
        }
        _ if path == "/apis" => (200, json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        _ if path.starts_with("/apis/palisade.dev/") || path.starts_with("/apis/policy.networking.k8s.io/") => {
            (404, status(404, "NotFound"))
        }
        _ => (200, list(shared, path, answer)),
    };
    let body = body.to_string();
    let length = body.len();
    write!(stream, "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// The version that a watch is to go on from: an agent begins anew now and then, and hears nothing twice.
fn since(request: &str) -> u64 {
    let version = request.split(['?', '&', ' ']).find_map(|parameter| parameter.strip_prefix("resourceVersion="));
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// A watch, which tells once what it is given.
fn watch(shared: &Shared, mut stream: TcpStream, path: &str, since: u64) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    stream.set_nodelay(true)?;
    let mut since = since;
    while !shared.ended.load(Ordering::Relaxed) {
        let events: Vec<(u64, String)> = {
            let told = shared.told.lock().unwrap();
            told.get(path).into_iter().flatten().filter(|(version, _)| *version > since).cloned().collect()
        };
        for (version, event) in events {
            write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
            since = version;
        }
        std::thread::sleep(Duration::from_millis(if path == POLICIES { 1 } else { 50 }));
    }
    Ok(())
}

fn pod(namespace: &str, name: &str, uid: &str, labels: Value, version: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": namespace, "labels": labels, "uid": uid, "resourceVersion": version },
        "spec": { "nodeName": "node", "containers": [{ "name": "c", "image": "c" }] },
        "status": { "phase": "Running" },
    })
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "so it is", "reason": reason, "code": code })
}

fn cluster_policies() -> Value {
    let rule = json!({ "action": "Deny", "from": [{ "namespaces": {} }] });
    let spec = json!({ "tier": "Admin", "priority": 0, "subject": { "namespaces": {} }, "ingress": [rule] });
    let policy = json!({ "metadata": { "name": "nobody", "resourceVersion": "8" }, "spec": spec });
    let version = "policy.networking.k8s.io/v1alpha2";
    json!({ "kind": "ClusterNetworkPolicyList", "apiVersion": version, "metadata": { "resourceVersion": "8" }, "items": [policy] })
}

/// A node, with the addresses and the pod ranges that it has now.
fn node(shared: &Shared, name: &str) -> Value {
    let (_, addresses, ranges) = ALL_NODES.into_iter().find(|(known, ..)| *known == name).expect("a node of that name");
    let addresses = shared.addresses.lock().unwrap().get(name).map_or_else(|| json!(addresses), |given| json!(given));
    let addresses = addresses.as_array().into_iter().flatten();
    let addresses: Vec<Value> = addresses.map(|address| json!({ "type": "InternalIP", "address": address })).collect();
    let ranges = shared.ranges.lock().unwrap().get(name).map_or_else(|| json!(ranges), |given| json!(given));
    json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": name, "resourceVersion": "7" },
        "spec": { "podCIDRs": ranges }, "status": { "addresses": addresses },
    })
}

/// The nodes that are there.
fn nodes(shared: &Shared, answer: Answer) -> Vec<Value> {
    let came = shared.came.lock().unwrap().clone();
    let was_there = |name: &str| name == "node" || (name == "peer" && answer == Answer::Two);
    let is_there = |name: &str| came.get(name).copied().unwrap_or_else(|| was_there(name));
    ALL_NODES.iter().map(|(name, ..)| *name).filter(|name| is_there(name)).map(|name| node(shared, name)).collect()
}

/// The same objects as in the directory, the node, and a pod of each role.
fn list(shared: &Shared, path: &str, answer: Answer) -> Value {
    let pod = |namespace: &str, name: &str, labels: Value| pod(namespace, name, &format!("uid-{namespace}-{name}"), labels, "7");
    // What an agent asks for about a pod before it realises it: the objects of its namespace alone.
    let namespace = path.split_once("namespaces/").and_then(|(_, rest)| Some(rest.split_once('/')?.0));
    let (kind, version, mut items) =
        match namespace.map_or_else(|| path.to_owned(), |name| path.replace(&format!("namespaces/{name}/"), "")).as_str() {
            "/api/v1/namespaces" => {
                let namespace = |name: &str| json!({ "metadata": { "name": name, "resourceVersion": "7" } });
                ("NamespaceList", "v1", json!([namespace("shop"), namespace("other")]))
            }
            PODS => {
                let mut pods =
                    vec![pod("shop", "web", json!({ "app": "web" })), pod("shop", "client", json!({})), pod("other", "client", json!({}))];
                pods.extend(["a", "b", "c"].map(|role| pod("shop", role, json!({ "role": role }))));
                pods.extend(shared.far.lock().unwrap().clone());
                if let Answer::Heir(addresses) = answer {
                    pods[0]["metadata"]["uid"] = json!("newer");
                    pods[0]["metadata"]["labels"] = json!({});
                    pods[0]["spec"]["nodeName"] = json!("elsewhere");
                    pods[0]["status"]["podIPs"] = addresses.map(|ip| json!({ "ip": ip })).into();
                }
                ("PodList", "v1", json!(pods))
            }
            NODES => ("NodeList", "v1", json!(nodes(shared, answer))),
            POLICIES => {
                let spec = json!({
                    "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress"],
                    "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": 80, "protocol": "TCP" }] }],
                });
                let metadata = json!({ "name": "from-shop", "namespace": "shop", "resourceVersion": "7" });
                ("NetworkPolicyList", "networking.k8s.io/v1", json!([{ "metadata": metadata, "spec": spec }]))
            }
            SERVICES => ("ServiceList", "v1", json!([])),
            SLICES => ("EndpointSliceList", "discovery.k8s.io/v1", json!([])),
            other => panic!("nobody should ask for {other}"),
        };
    if let (Some(namespace), Some(items)) = (namespace, items.as_array_mut()) {
        items.retain(|object| object["metadata"]["namespace"] == namespace);
    }
    json!({ "kind": kind, "apiVersion": version, "metadata": { "resourceVersion": "7" }, "items": items })
}
