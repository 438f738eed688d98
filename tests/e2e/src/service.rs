//! A client and a backend on each of two nodes, a client on a third one, and services in front of the backends.

use crate::agent::Agent;
use crate::cluster::{Cluster, Namespace, Places};
use crate::names;
use crate::pod::{self, Pod, UDP_PORT, named};
use crate::request::{Answer, DONE, Load, STOP, Said, Target, Way, ask_from_here};
use crate::requirement::skipped;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a change may take to come by the EndpointSlices to all agents.
const SOON: Duration = Duration::from_secs(10);
/// How long a pod waits for an answer: long enough for one repeated SYN.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The same where no request may fail, on a machine that is busy.
pub const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// Longer than an answer takes on a machine that is busy, and shorter than any time after which somebody tries again: a second.
const AT_ONCE: Duration = Duration::from_millis(900);
/// From one request of a steady load to the next, of each target.
const PACE: Duration = Duration::from_millis(50);
/// Where backends serve HTTP, under the name `web`: on each node elsewhere.
const WEB_PORTS: [u16; 2] = [80, 8080];
/// The ports of the services: no backend listens there.
pub const SERVICE_TCP: u16 = 8000;
/// See [`SERVICE_TCP`].
pub const SERVICE_UDP: u16 = 8053;
/// Where services take associations; see [`SERVICE_TCP`].
pub const SERVICE_SCTP: u16 = 8132;
/// Where backends take associations.
pub const BACKEND_SCTP: u16 = 9000;
/// What the program is called in a pod.
const PROBER: &str = "/tmp/prober";
/// Where the lines of a steady load go, in a pod.
const LINES: &str = "/tmp/requests";

/// The pods: a client and a backend on the near node, the same on the far one, and a client on the one beside them, where there is one
/// ([`Places`](crate::cluster::Places)).
///
/// Clients carry `app=client`, backends `app=backend`; all carry `at=near`, `at=far` or `at=beside`. The backends are called so.
#[derive(Debug)]
pub struct Served {
    /// Where all of it is.
    pub namespace: Namespace,
    /// Near and far.
    pub clients: [Pod; 2],
    /// The client on a node without a backend.
    pub beside: Option<Pod>,
    /// Near and far.
    pub backends: [Pod; 2],
}

impl Served {
    /// Starts the pods, each with the prober that the path names; no service yet.
    pub fn start(purpose: &str, prober: &Path) -> Result<Self> {
        Self::start_at(purpose, prober, &Cluster::connect().places()?)
    }

    /// As [`Served::start`], at these places.
    pub fn start_at(purpose: &str, prober: &Path, places: &Places) -> Result<Self> {
        let cluster = Cluster::connect();
        let namespace = Namespace::create(&cluster, purpose, &[])?;
        let client = |(at, node): (&str, &str)| pod::shell(&format!("client-{at}"), node, &[("app", "client"), ("at", at)], "");
        let mut objects: Vec<Value> = places.all().map(client).collect();
        objects.extend([backend("near", &places.near, WEB_PORTS[0]), backend("far", &places.far, WEB_PORTS[1])]);
        let pods = pod::start(&namespace, &objects)?;
        for pod in &pods {
            pod.put(&cluster, prober, PROBER)?;
        }
        let pod = |name: &str| named(&pods, name).cloned();
        Ok(Self {
            clients: [pod("client-near")?, pod("client-far")?],
            beside: places.beside.as_ref().map(|_| pod("client-beside")).transpose()?,
            backends: [pod("near")?, pod("far")?],
            namespace,
        })
    }

    /// The clients on all nodes: near, far, beside.
    pub fn askers(&self) -> impl Iterator<Item = &Pod> {
        self.clients.iter().chain(&self.beside)
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        self.namespace.cluster()
    }

    /// Those of the addresses that are of a family that pods have.
    pub fn of_families(&self, addresses: &[&str]) -> Result<Vec<IpAddr>> {
        let addresses: Result<Vec<IpAddr>, _> = addresses.iter().map(|address| address.parse()).collect();
        let has = |address: &IpAddr| self.clients[0].addresses.iter().any(|own| own.is_ipv6() == address.is_ipv6());
        Ok(addresses?.into_iter().filter(has).collect())
    }

    /// Makes or changes a service of all families in front of all backends; `changes` are fields of its `spec`. What it is
    /// reached by.
    pub fn serve(&self, name: &str, changes: Value) -> Result<Vec<Target>> {
        let addresses = self.make(name, changes)?;
        let families = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::is_ipv6).collect::<BTreeSet<_>>();
        let (of_pods, of_service) = (families(&self.clients[0].addresses), families(&addresses));
        ensure!(of_service == of_pods, "the service {name} lacks an address of one family: {addresses:?}");
        Ok(targets(&addresses, SERVICE_TCP, SERVICE_UDP))
    }

    /// As [`Served::serve`], with whatever families `changes` name; its cluster IPs.
    pub fn make(&self, name: &str, changes: Value) -> Result<Vec<IpAddr>> {
        self.apply(name, changes)?;
        self.cluster_ips(name)
    }

    /// As [`Served::serve`], of any kind, also of one without cluster IPs.
    pub fn apply(&self, name: &str, changes: Value) -> Result<()> {
        let mut spec = json!({
            "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": "backend" },
            "ports": [
                { "name": "http", "port": SERVICE_TCP, "targetPort": "web" },
                { "name": "names", "port": SERVICE_UDP, "targetPort": "answers", "protocol": "UDP" },
            ],
        });
        if let Value::Object(changes) = changes {
            for (field, value) in changes {
                spec[field] = value;
            }
        }
        let metadata = json!({ "name": name, "namespace": self.namespace.name });
        self.cluster().apply(&[json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec })])
    }

    /// The cluster IPs of a service.
    pub fn cluster_ips(&self, name: &str) -> Result<Vec<IpAddr>> {
        cluster_ips(self.cluster(), &self.namespace.name, name)
    }

    /// Makes a service of `type: LoadBalancer` with an external address and one that a load balancer gave, of each family: `number` and the one
    /// after it, of the ranges for documentation, which nobody has. These addresses.
    pub fn balanced(&self, name: &str, number: u8, changes: &Value) -> Result<Vec<IpAddr>> {
        let addresses = |number: u8| self.of_families(&[&format!("198.51.100.{number}"), &format!("2001:db8:51::{number}")]);
        let (external, given) = (addresses(number)?, addresses(number + 1)?);
        let mut spec = json!({ "type": "LoadBalancer", "externalIPs": external });
        for (field, value) in changes.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        self.serve(name, spec)?;
        let ingress: Vec<Value> = given.iter().map(|address| json!({ "ip": address })).collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
        self.namespace.run(&["patch", "service", name, "--subresource=status", "--type=merge", "--patch", &status])?;
        Ok([external, given].concat())
    }

    /// The node ports of a service at one node, each asked by its protocol.
    pub fn at_node(&self, name: &str, node: &str) -> Result<Vec<Target>> {
        let service = self.cluster().json(&["get", "service", "--namespace", &self.namespace.name, name])?;
        let port = |port: &Value| -> Result<(Way, u16)> {
            let way = match port["protocol"].as_str() {
                Some("UDP") => Way::Udp,
                Some("SCTP") => Way::Sctp,
                _ => Way::Tcp,
            };
            Ok((way, u16::try_from(port["nodePort"].as_u64().context("a port without a nodePort")?)?))
        };
        let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(port).collect::<Result<Vec<_>>>()?;
        let addresses = node_addresses(self.cluster(), node, &self.clients[0])?;
        let of = |address: IpAddr| ports.iter().map(move |&(way, port)| Target { way, to: SocketAddr::new(address, port) });
        Ok(addresses.into_iter().flat_map(of).collect())
    }

    /// As [`Served::at_node`], at each node that takes pods.
    pub fn at_nodes(&self, name: &str) -> Result<Vec<(String, Vec<Target>)>> {
        let nodes = self.cluster().nodes()?;
        nodes.into_iter().map(|node| Ok((node.clone(), self.at_node(name, &node)?))).collect()
    }

    /// Starts a pod with the prober on the network of each client's node: what it does, a process of its node does. They carry
    /// `app=process`. In the order of the clients.
    pub fn processes(&self, prober: &Path) -> Result<Vec<Pod>> {
        let name = |client: &Pod| client.name.replace("client", "process");
        let process = |client: &Pod| {
            let mut pod = pod::shell(&name(client), &client.node, &[("app", "process")], "");
            pod["spec"]["hostNetwork"] = json!(true);
            pod
        };
        let pods = pod::start(&self.namespace, &self.askers().map(process).collect::<Vec<_>>())?;
        self.askers().map(|client| self.with_prober(&pods, &name(client), prober)).collect()
    }

    /// As [`Served::processes`], where the agents serve services to them; `None`, which is said, where one was told to leave that to others
    /// or cannot have what it takes. Any other reason that it gives is a fault.
    pub fn served_processes(&self, prober: &Path) -> Result<Option<Vec<Pod>>> {
        let agents = Agent::all(self.cluster())?;
        for client in self.askers() {
            let agent = agents.iter().find(|agent| agent.node == client.node).with_context(|| format!("no agent on {}", client.node))?;
            let status = agent.ask(&["status"])?;
            let services = status["nodeServices"].as_str().context("an agent that says nothing of its node's processes")?;
            if services == "off" || ["Linux 5.14", "file system of cgroups"].iter().any(|lacking| services.contains(lacking)) {
                skipped(&format!("services are not served to the processes of {}: {services}", client.node));
                return Ok(None);
            }
            ensure!(services == "served", "services for the processes of {}: {services}", client.node);
        }
        self.processes(prober).map(Some)
    }

    /// What a process of a node is told where a service has no endpoint, and where it has none that it may use: before Linux 6.1 a program
    /// at a socket cannot say which.
    pub fn refusals(&self, node: &str) -> Result<[Answer; 2]> {
        let object = self.cluster().json(&["get", "node", node])?;
        let version = object["status"]["nodeInfo"]["kernelVersion"].as_str().context("a node without a kernel")?;
        let mut numbers =
            version.split(|character: char| !character.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or_default());
        let forbidden = Answer::Other("Operation-not-permitted-(os-error-1)".into());
        let tells = (numbers.next(), numbers.next()) >= (Some(6), Some(1));
        Ok(if tells { [Answer::Refused, Answer::Unreachable] } else { [forbidden.clone(), forbidden] })
    }

    /// The pod of a name, with the prober that the path names in it.
    pub fn with_prober(&self, pods: &[Pod], name: &str, prober: &Path) -> Result<Pod> {
        let pod = named(pods, name)?.clone();
        pod.put(self.cluster(), prober, PROBER)?;
        Ok(pod)
    }

    /// Lets a pod answer whoever opens an association by SCTP at a port, with its name.
    pub fn answer_associations(&self, pod: &Pod, port: u16) -> Result<()> {
        pod.shell(self.cluster(), &format!("{PROBER} associations {} {port} >/dev/null 2>&1 &", pod.name)).map(drop)
    }

    /// Lets both backends take associations; the `ports` of a service that leads there.
    pub fn take_associations(&self) -> Result<Value> {
        for backend in &self.backends {
            self.answer_associations(backend, BACKEND_SCTP)?;
        }
        Ok(json!([{ "name": "associations", "port": SERVICE_SCTP, "targetPort": BACKEND_SCTP, "protocol": "SCTP" }]))
    }

    /// Starts the pod `hosted` on a node, to which ports of the node lead, by TCP, UDP and SCTP; it carries `app=hosted`. What is asked of the node by the
    /// first two, and by SCTP.
    pub fn host(&self, node: &str, host_ports: [u16; 3], prober: &Path) -> Result<[Vec<Target>; 2]> {
        let mut pod = backend("hosted", node, WEB_PORTS[1]);
        pod["metadata"]["labels"]["app"] = json!("hosted");
        let ports = &mut pod["spec"]["containers"][0]["ports"];
        ports.as_array_mut().context("no ports")?.push(json!({ "containerPort": BACKEND_SCTP, "protocol": "SCTP" }));
        for (index, port) in host_ports.into_iter().enumerate() {
            ports[index]["hostPort"] = json!(port);
        }
        let pods = pod::start(&self.namespace, &[pod])?;
        self.answer_associations(&self.with_prober(&pods, "hosted", prober)?, BACKEND_SCTP)?;
        let (addresses, [tcp, udp, sctp]) = (node_addresses(self.cluster(), node, &self.clients[0])?, host_ports);
        Ok([targets(&addresses, tcp, udp), associations(&addresses, sctp)])
    }

    /// Lets a pod ask each target `count` times.
    pub fn ask(&self, from: &Pod, targets: &[Target], count: u32) -> Result<Vec<Said>> {
        self.ask_for(PATIENCE, from, targets, count)
    }

    /// As [`Served::ask`], where nobody is to be silent.
    pub fn ask_patiently(&self, from: &Pod, targets: &[Target], count: u32) -> Result<Vec<Said>> {
        self.ask_for(LONG_PATIENCE, from, targets, count)
    }

    fn ask_for(&self, patience: Duration, from: &Pod, targets: &[Target], count: u32) -> Result<Vec<Said>> {
        let [count, pace, patience] = [count.to_string(), "0".to_owned(), patience.as_millis().to_string()];
        let targets: Vec<String> = targets.iter().map(Target::to_string).collect();
        let mut arguments = vec!["exec", "--namespace", &from.namespace, &from.name, "--", PROBER, "requests", &count, &pace, &patience];
        arguments.extend(targets.iter().map(String::as_str));
        read(&self.cluster().run(&arguments)?)
    }

    /// Asserts that exactly these answers come, of each target, soon, when each is asked `count` times; and then again.
    ///
    /// # Panics
    /// With what came instead.
    pub fn expect(&self, when: &str, from: &Pod, targets: &[Target], count: u32, answers: &[Answer]) -> Result<()> {
        let look = |patience| Ok(others(&from.name, targets, &self.ask_for(patience, from, targets, count)?, answers));
        answered_soon(when, answers.contains(&Answer::Silent), look)
    }

    /// As [`Served::expect`], of the clients on all nodes.
    ///
    /// # Panics
    /// With what came instead.
    pub fn expect_all(&self, when: &str, targets: &[Target], count: u32, answers: &[Answer]) -> Result<()> {
        self.expect_each(when, count, &each(self.askers(), answers, |_| Ok(targets.to_vec()))?)
    }

    /// As [`Served::expect`], of one answer that comes at once, to one of three requests at least: this machine may be busy.
    ///
    /// # Panics
    /// With what came instead, or how late.
    pub fn expect_at_once(&self, when: &str, from: &Pod, targets: &[Target], answer: &Answer) -> Result<()> {
        self.expect(when, from, targets, 3, std::slice::from_ref(answer))?;
        let said = self.ask(from, targets, 3)?;
        for target in targets {
            let quickest = said.iter().filter(|said| said.target == *target).map(|said| said.after).min();
            let quickest = quickest.with_context(|| format!("{target} was not asked"))?;
            assert!(quickest < AT_ONCE, "{when}, {}: {target} answers after {quickest:?}", from.name);
        }
        Ok(())
    }

    /// As [`Served::expect`], of several pods at the same time.
    ///
    /// # Panics
    /// With what came instead.
    pub fn expect_each(&self, when: &str, count: u32, asked: &[Asked<'_>]) -> Result<()> {
        let is_silent = asked.iter().any(|(_, _, answers)| answers.contains(&Answer::Silent));
        answered_soon(when, is_silent, |patience| {
            std::thread::scope(|scope| {
                let ask = |(from, targets, answers): &Asked<'_>| -> Result<Vec<String>> {
                    Ok(others(&from.name, targets, &self.ask_for(patience, from, targets, count)?, answers))
                };
                let pods: Vec<_> = asked.iter().map(|one| scope.spawn(move || ask(one))).collect();
                let wrong = pods.into_iter().map(|pod| pod.join().unwrap_or_else(|_| bail!("it panicked")));
                Ok(wrong.collect::<Result<Vec<_>>>()?.concat())
            })
        })
    }

    /// Lets a pod ask a name server for the addresses of a name: these, or why it got none.
    pub fn look_up(&self, from: &Pod, server: Target, name: &str) -> Result<Result<BTreeSet<IpAddr>, Answer>> {
        let [patience, server] = [LONG_PATIENCE.as_millis().to_string(), server.to_string()];
        let exec = ["exec", "--namespace", &from.namespace, &from.name, "--", PROBER, "names", &patience, &server, name];
        names::read(&self.cluster().run(&exec)?)
    }

    /// Lets a pod begin to ask the targets, each for itself, and go on until [`Served::end_load`].
    pub fn begin_load(&self, from: &Pod, targets: &[Target]) -> Result<()> {
        self.begin(from, &format!("requests 0 {} {}", PACE.as_millis(), LONG_PATIENCE.as_millis()), targets)
    }

    /// Lets a pod open a connection to each of the targets and ask on it until [`Served::end_load`].
    pub fn begin_keeping(&self, from: &Pod, targets: &[Target]) -> Result<()> {
        self.begin(from, "keep", targets)
    }

    fn begin(&self, from: &Pod, what: &str, targets: &[Target]) -> Result<()> {
        // Quoted: brackets stand for other things in a shell.
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        from.shell(self.cluster(), &format!("rm -f {STOP}; {PROBER} {what} {} >{LINES} 2>&1 &", targets.join(" "))).map(drop)
    }

    /// What was asked up to now of what [`Served::begin_load`] or [`Served::begin_keeping`] began.
    pub fn said_so_far(&self, from: &Pod) -> Result<Vec<Said>> {
        let lines = from.shell(self.cluster(), &format!("cat {LINES}"))?;
        // The last line may be half written, or say that there is no more to come.
        let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
        said(whole.strip_suffix(DONE).unwrap_or(whole))
    }

    /// Ends what [`Served::begin_load`] or [`Served::begin_keeping`] began; all that was asked.
    pub fn end_load(&self, from: &Pod) -> Result<Vec<Said>> {
        from.shell(self.cluster(), &format!("touch {STOP}"))?;
        let deadline = Instant::now() + 2 * LONG_PATIENCE + SOON;
        loop {
            let lines = from.shell(self.cluster(), &format!("cat {LINES}"))?;
            if lines.lines().last() == Some(DONE) {
                return read(&lines);
            }
            ensure!(Instant::now() < deadline, "the requests of {} do not end:\n{lines}", from.name);
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// As [`Served::begin_load`], where this machine asks, which is outside the cluster.
pub fn begin_load_outside(targets: &[Target]) -> Load {
    Load::begin(targets, PACE, LONG_PATIENCE)
}

/// As [`Served::expect`], where this machine asks, which is outside the cluster.
///
/// # Panics
/// With what came instead.
pub fn expect_outside(when: &str, targets: &[Target], count: u32, answers: &[Answer]) -> Result<()> {
    let look = |patience| Ok(others("outside", targets, &ask_from_here(targets, count, patience), answers));
    answered_soon(when, answers.contains(&Answer::Silent), look)
}

/// A pod, what it asks, and what comes of that.
pub type Asked<'a> = (&'a Pod, Vec<Target>, Vec<Answer>);

/// For [`Served::expect_each`]: each of the pods asks targets of its own, and these answers come.
pub fn each<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    answers: &[Answer],
    targets: impl Fn(&Pod) -> Result<Vec<Target>>,
) -> Result<Vec<Asked<'a>>> {
    pods.into_iter().map(|pod| Ok((pod, targets(pod)?, answers.to_vec()))).collect()
}

/// The targets of which other answers came than these.
fn others(from: &str, targets: &[Target], said: &[Said], answers: &[Answer]) -> Vec<String> {
    let expected: BTreeSet<&Answer> = answers.iter().collect();
    let of =
        |target: &Target| -> BTreeSet<&Answer> { said.iter().filter(|said| said.target == *target).map(|said| &said.answer).collect() };
    let wrong = targets.iter().map(|target| (target, of(target))).filter(|(_, came)| *came != expected);
    wrong.map(|(target, came)| format!("{from} -> {target}: {}, expected: {}", list(&came), list(&expected))).collect()
}

/// A pod that serves its name, by HTTP on a port `web` and by datagrams on `answers`.
pub fn backend(name: &str, node: &str, web: u16) -> Value {
    let mut pod = pod::server(name, node, &[("app", "backend"), ("at", name)]);
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["netexec", format!("--http-port={web}"), format!("--udp-port={UDP_PORT}")]);
    container["ports"] = named_ports(web);
    container["readinessProbe"]["httpGet"]["port"] = json!(web);
    pod
}

/// The ports of a backend, by the names that services name.
pub fn named_ports(web: u16) -> Value {
    json!([{ "name": "web", "containerPort": web }, { "name": "answers", "containerPort": UDP_PORT, "protocol": "UDP" }])
}

/// The addresses of a node of the families that pods have, by which it is reached from outside.
pub fn node_addresses(cluster: &Cluster, node: &str, of: &Pod) -> Result<Vec<IpAddr>> {
    let object = cluster.json(&["get", "node", node])?;
    let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
    let internal =
        addresses.filter(|address| address["type"] == "InternalIP").filter_map(|address| address["address"].as_str()?.parse().ok());
    let has = |address: &IpAddr| of.addresses.iter().any(|own| own.is_ipv6() == address.is_ipv6());
    let internal: Vec<IpAddr> = internal.filter(has).collect();
    ensure!(!internal.is_empty(), "the node {node} has no address: {object:#}");
    Ok(internal)
}

/// The pods that may answer.
pub fn from(names: &[&str]) -> Vec<Answer> {
    names.iter().map(|name| Answer::From((*name).to_owned())).collect()
}

/// Those of the targets that are asked in this way.
pub fn by(targets: &[Target], way: Way) -> Vec<Target> {
    targets.iter().filter(|target| target.way == way).copied().collect()
}

/// What of the addresses is asked: each by TCP and by UDP.
pub fn targets(addresses: &[IpAddr], tcp: u16, udp: u16) -> Vec<Target> {
    let of = |address: &IpAddr| {
        let address = *address;
        [Target { way: Way::Tcp, to: SocketAddr::new(address, tcp) }, Target { way: Way::Udp, to: SocketAddr::new(address, udp) }]
    };
    addresses.iter().flat_map(of).collect()
}

/// What of the addresses is asked by SCTP.
pub fn associations(addresses: &[IpAddr], port: u16) -> Vec<Target> {
    addresses.iter().map(|address| Target { way: Way::Sctp, to: SocketAddr::new(*address, port) }).collect()
}

/// The cluster IPs of a service.
pub fn cluster_ips(cluster: &Cluster, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
    let service = cluster.json(&["get", "service", "--namespace", namespace, name])?;
    let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    let addresses: Vec<IpAddr> = addresses.filter_map(|address| address.as_str()?.parse().ok()).collect();
    ensure!(!addresses.is_empty(), "the service {namespace}/{name} has no cluster IP");
    Ok(addresses)
}

/// As [`soon`], of what is asked for so long. Where nobody is to be silent, answers may take longer once they were right: a busy machine keeps its clients waiting.
fn answered_soon(when: &str, is_silent: bool, mut wrong: impl FnMut(Duration) -> Result<Vec<String>>) -> Result<()> {
    let mut patience = PATIENCE;
    soon(when, || {
        let found = wrong(patience)?;
        if found.is_empty() && !is_silent {
            patience = LONG_PATIENCE;
        }
        Ok(found)
    })
}

/// Asserts that nothing is wrong, soon, and then again; `wrong` says what is.
///
/// # Panics
/// With what is wrong.
pub fn soon(when: &str, mut wrong: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let begun = Instant::now();
        let found = wrong()?;
        if found.is_empty() {
            break;
        }
        assert!(begun < deadline, "{when}, after {} s:\n{}", SOON.as_secs(), found.join("\n"));
        std::thread::sleep(Duration::from_millis(100));
    }
    let found = wrong()?;
    assert!(found.is_empty(), "{when}, it was right and did not stay so:\n{}", found.join("\n"));
    Ok(())
}

/// The lines of a prober that has ended.
fn read(lines: &str) -> Result<Vec<Said>> {
    let Some(requests) = lines.trim_end().strip_suffix(DONE) else { bail!("the prober was cut short:\n{lines}") };
    said(requests)
}

fn said(lines: &str) -> Result<Vec<Said>> {
    lines.lines().map(|line| Said::parse(line).with_context(|| format!("the prober said `{line}`"))).collect()
}

fn list(answers: &BTreeSet<&Answer>) -> String {
    let answers: Vec<String> = answers.iter().map(|answer| answer.to_string()).collect();
    answers.join(", ")
}
