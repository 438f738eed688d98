//! A kube-proxy that runs beside Palisade on every node. It has rules for all services and all their addresses, and none of them is ever met:
//! what goes to a service has gone to a backend before the node's own tables look at it.

use anyhow::{Context, Result, ensure};
use palisade_e2e::administrator::{NODE, ON_NODE, administrator};
use palisade_e2e::cluster::{Cluster, items};
use palisade_e2e::pod::{self, Pod};
use palisade_e2e::request::Answer::{self, Refused, Silent};
use palisade_e2e::request::{Target, Way};
use palisade_e2e::requirement::{requires_root, skipped};
use palisade_e2e::route::Route;
use palisade_e2e::scene::{policy, to_backends};
use palisade_e2e::service::{
    SERVICE_SCTP, SERVICE_TCP, SERVICE_UDP, Served, associations, each, expect_outside, from, node_addresses, soon, targets,
};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many requests show who is behind a service: with two backends, one is missed by chance once in half a thousand million times.
const MANY: u32 = 30;
/// The program on each node; with an ending, how it reaches the API server.
const PROGRAM: &str = "/var/lib/palisade-e2e-kube-proxy";
/// Rules for services, and what they have counted.
const RULES: &str = "sh -c 'iptables-save -c; ip6tables-save -c'";
/// Says `yes` for each family of which the kernel has what rules about SCTP need.
const SCTP: &str = "sh -c 'for tables in iptables ip6tables; do \
    $tables -w -t nat -N E2E-SCTP && $tables -w -t nat -A E2E-SCTP -p sctp -m sctp --dport 9 -j RETURN && echo yes; \
    $tables -w -t nat -F E2E-SCTP; $tables -w -t nat -X E2E-SCTP; done; true'";
/// By TCP, UDP and SCTP.
const HOST_PORTS: [u16; 3] = [18_082, 18_055, 18_134];

/// A service with an address of every kind.
struct Reached {
    name: &'static str,
    /// Those that are no node's, and that lead there from outside, too.
    beyond: Vec<IpAddr>,
    /// What is asked of these, and of the cluster IPs.
    everywhere: Vec<Target>,
    /// What is asked of each node.
    at_nodes: Vec<(String, Vec<Target>)>,
}

impl Reached {
    /// Makes the service; `number` is that of [`Served::balanced`], `asked` what an address is asked.
    fn serve(
        served: &Served,
        (name, number): (&'static str, u8),
        changes: &Value,
        asked: impl Fn(&[IpAddr]) -> Vec<Target>,
    ) -> Result<Self> {
        let beyond = served.balanced(name, number, changes)?;
        let everywhere = asked(&[served.cluster_ips(name)?, beyond.clone()].concat());
        Ok(Self { name, beyond, everywhere, at_nodes: served.at_nodes(name)? })
    }

    /// What is asked of its own addresses, and of some nodes.
    fn by(&self, is_asked: impl Fn(&str) -> bool) -> Vec<Target> {
        let at_nodes = self.at_nodes.iter().filter(|(node, _)| is_asked(node)).flat_map(|(_, targets)| targets);
        self.everywhere.iter().chain(at_nodes).copied().collect()
    }

    /// What it is asked that none of a node's rules is about.
    fn missing_in(&self, rules: &[String]) -> Vec<String> {
        let is_ruled = |address: &str, target: &Target| {
            let words = [format!("/{}:", self.name), address.to_owned(), format!(" --dport {} ", target.to.port())];
            rules.iter().any(|rule| words.iter().all(|word| rule.contains(word)))
        };
        let addresses = self.everywhere.iter().filter(|target| !is_ruled(&format!(" -d {}/", target.to.ip()), target));
        let ports = self.at_nodes.iter().flat_map(|(_, targets)| targets).filter(|target| !is_ruled("", target));
        addresses.chain(ports).map(|target| format!("{}: {target}", self.name)).collect()
    }
}

/// What is asked beside kube-proxy, and who asks beside pods.
struct Asked<'a> {
    served: &'a Served,
    /// On the clients' nodes; `None` where services are not served to them.
    processes: Option<Vec<Pod>>,
    /// Whether this machine may ask by addresses that are no node's, and by SCTP.
    is_root: bool,
    /// In front of both backends.
    services: Vec<Reached>,
    /// In front of nobody.
    nobody: Reached,
    /// The ports of a node that lead to a pod; those of SCTP apart.
    host_ports: [Vec<Target>; 2],
}

impl<'a> Asked<'a> {
    fn start(served: &'a Served, prober: &Path) -> Result<Self> {
        let plain = |addresses: &[IpAddr]| targets(addresses, SERVICE_TCP, SERVICE_UDP);
        Ok(Self {
            served,
            processes: served.served_processes(prober)?,
            is_root: requires_root("a route to a node, or an association from outside,"),
            services: vec![Reached::serve(served, ("both", 60), &json!({}), plain)?],
            nobody: Reached::serve(served, ("nobody", 70), &json!({ "selector": { "app": "nobody" } }), plain)?,
            host_ports: served.host(&served.clients[1].node, HOST_PORTS, prober)?,
        })
    }

    /// Asserts that pods, processes of nodes and this machine are answered by every service at every address, and by the pod with host ports.
    fn expect(&self, when: &str) -> Result<()> {
        let (served, all, hosted) = (self.served, from(&["near", "far"]), from(&["hosted"]));
        let expect = |when: &str, count: u32, targets: &[Target], answers: &[Answer]| -> Result<()> {
            let askers = served.askers().chain(self.processes.iter().flatten());
            served.expect_each(when, count, &each(askers, answers, |_| Ok(targets.to_vec()))?)
        };
        for service in &self.services {
            expect(&format!("{when}, {}", service.name), MANY, &service.by(|_| true), &all)?;
        }
        expect(&format!("{when}, by host ports"), 3, &self.host_ports.concat(), &hosted)?;
        let without = format!("{when}, without endpoints");
        served.expect_all(&without, &self.nobody.by(|_| true), 3, &[Refused])?;
        for process in self.processes.iter().flatten() {
            let [nobody, _] = served.refusals(&process.node)?;
            served.expect(&without, process, &self.nobody.by(|node| node == process.node), 3, &[nobody])?;
        }
        for service in &self.services {
            self.expect_outside(when, service, MANY, &all)?;
        }
        self.expect_outside(&without, &self.nobody, 3, &[Refused])?;
        let by_host_ports = if self.is_root { self.host_ports.concat() } else { self.host_ports[0].clone() };
        expect_outside(&format!("{when}, from outside by host ports"), &by_host_ports, 3, &hosted)
    }

    fn expect_outside(&self, when: &str, service: &Reached, count: u32, answers: &[Answer]) -> Result<()> {
        for (node, at_node) in &service.at_nodes {
            let is_beyond = |target: &&Target| service.beyond.contains(&target.to.ip());
            let (asked, _routes): (Vec<Target>, Vec<Route>) = if self.is_root {
                let by = node_addresses(self.served.cluster(), node, &self.served.clients[0])?;
                let asked = at_node.iter().chain(service.everywhere.iter().filter(is_beyond)).copied();
                (asked.collect(), Route::to_all(&service.beyond, &by)?)
            } else {
                (at_node.iter().filter(|target| target.way != Way::Sctp).copied().collect(), Vec::new())
            };
            expect_outside(&format!("{when}, {} from outside by {node}", service.name), &asked, count, answers)?;
        }
        Ok(())
    }
}

/// kube-proxy on each node that takes pods, in a pod of its own.
struct Proxies<'a> {
    served: &'a Served,
    pods: Vec<Pod>,
    /// What lets it watch services.
    role: Value,
}

impl<'a> Proxies<'a> {
    /// What it takes, on each node; it does not run yet.
    fn prepare(served: &'a Served) -> Result<Self> {
        let (cluster, namespace) = (served.cluster(), &served.namespace.name);
        let program = program()?;
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": namespace },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier" },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": namespace }],
        });
        cluster.apply(std::slice::from_ref(&role))?;
        let mut proxies = Self { served, pods: Vec::new(), role };
        let administrators: Vec<Value> = cluster.nodes()?.iter().map(|node| administrator(&format!("proxy-{node}"), node)).collect();
        let pods = pod::start(&served.namespace, &administrators)?;
        proxies.pods = pods.into_iter().filter(|pod| pod.name.starts_with("proxy-")).collect();
        let (access, authority) = access(cluster, namespace)?;
        for pod in &proxies.pods {
            pod.put(cluster, &program, &format!("{NODE}{PROGRAM}"))?;
            for (name, content) in [("conf", access.to_string()), ("crt", authority.clone())] {
                pod.shell(cluster, &format!("cat >{NODE}{PROGRAM}.{name} <<'END'\n{content}\nEND"))?;
            }
        }
        Ok(proxies)
    }

    /// Whether it may have a service of SCTP: where a kernel lacks what its rules need it writes none at all, of no service.
    fn may_know_sctp(&self) -> Result<bool> {
        let mut may = true;
        for pod in &self.pods {
            let said = pod.shell(self.served.cluster(), &format!("{ON_NODE} {SCTP}"))?;
            may &= said.lines().filter(|line| *line == "yes").count() == 2;
        }
        Ok(may)
    }

    fn run(&self) -> Result<()> {
        for pod in &self.pods {
            // It is to leave alone what is the whole kernel's.
            let kernel = "--conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0s \
                --conntrack-tcp-timeout-close-wait=0s --iptables-localhost-nodeports=false";
            let run = format!("{PROGRAM} --kubeconfig={PROGRAM}.conf --hostname-override={} --proxy-mode=iptables {kernel}", pod.node);
            pod.shell(self.served.cluster(), &format!("{ON_NODE} {run} >/tmp/log 2>&1 & echo $! >/tmp/process"))?;
        }
        Ok(())
    }

    /// The rules of each node about services of the test. Each begins with what it has met: `[PACKETS:BYTES]`.
    fn rules(&self) -> Result<Vec<Vec<String>>> {
        let of_test = format!("\"{}/", self.served.namespace.name);
        let rules = |pod: &Pod| -> Result<Vec<String>> {
            let saved = pod.shell(self.served.cluster(), &format!("{ON_NODE} {RULES}"))?;
            Ok(saved.lines().filter(|line| line.contains(&of_test)).map(str::to_owned).collect())
        };
        self.pods.iter().map(rules).collect()
    }

    /// What went wrong, as far as it says itself.
    fn logs(&self) -> String {
        self.pods.iter().map(|pod| pod.shell(self.served.cluster(), "tail -n 5 /tmp/log").unwrap_or_default()).collect()
    }

    /// Ends it on every node and takes its rules away. What could not be.
    fn end(&mut self) -> Vec<String> {
        let end = format!("kill $(cat /tmp/process); sleep 1; {ON_NODE} {PROGRAM} --cleanup; rm -f {NODE}{PROGRAM} {NODE}{PROGRAM}.*");
        let ended: Vec<_> = self.pods.iter().map(|pod| pod.shell(self.served.cluster(), &end)).collect();
        let mut faults: Vec<String> = ended.into_iter().filter_map(|ended| Some(format!("{:#}", ended.err()?))).collect();
        match self.rules() {
            Ok(rules) if rules.iter().all(Vec::is_empty) => self.pods.clear(),
            left => faults.push(format!("rules that are left: {left:?}")),
        }
        faults
    }
}

impl Drop for Proxies<'_> {
    fn drop(&mut self) {
        for fault in self.end() {
            eprintln!("kube-proxy may be left on the nodes: {fault}");
        }
        if let Err(error) = self.served.cluster().delete(std::slice::from_ref(&self.role)) {
            eprintln!("the role of kube-proxy could not be deleted: {error:#}");
        }
    }
}

/// kube-proxy of the version that the cluster is of, built where it is missing.
fn program() -> Result<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("kind/build");
    let built = Command::new(&build).arg("kube-proxy").stderr(Stdio::inherit()).output().context("starting kind/build")?;
    ensure!(built.status.success(), "kube-proxy does not build; is the Go module proxy reachable?");
    Ok(String::from_utf8(built.stdout)?.trim().into())
}

/// How a program on a node reaches the API server as the account of the namespace, and the certificate by which it knows it.
fn access(cluster: &Cluster, namespace: &str) -> Result<(Value, String)> {
    let slices = ["get", "endpointslices", "--namespace", "default", "--selector", "kubernetes.io/service-name=kubernetes"];
    let slices = cluster.json(&slices)?;
    let slice = items(&slices).next().context("the API server's service has no endpoints")?;
    let address = slice["endpoints"][0]["addresses"][0].as_str().context("an endpoint without an address")?;
    let port = slice["ports"][0]["port"].as_u64().context("an endpoint without a port")?;
    let server = if address.contains(':') { format!("https://[{address}]:{port}") } else { format!("https://{address}:{port}") };
    let roots = cluster.json(&["get", "configmap", "--namespace", namespace, "kube-root-ca.crt"])?;
    let token = cluster.run(&["create", "token", "--namespace", namespace, "default"])?;
    let authority = roots["data"]["ca.crt"].as_str().context("a namespace without the cluster's certificate")?;
    let access = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority": format!("{PROGRAM}.crt") } }],
        "users": [{ "name": "u", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "c",
    });
    Ok((access, authority.to_owned()))
}

#[test]
fn services_stay_ours_beside_a_kube_proxy_that_has_rules_for_them() -> Result<()> {
    let prober = Path::new(env!("CARGO_BIN_EXE_prober"));
    let served = Served::start("kube-proxy", prober)?;
    let mut asked = Asked::start(&served, prober)?;
    let mut proxies = Proxies::prepare(&served)?;
    if proxies.may_know_sctp()? {
        let changes = json!({ "ports": served.take_associations()? });
        asked.services.push(Reached::serve(&served, ("sctp", 80), &changes, |addresses| associations(addresses, SERVICE_SCTP))?);
    } else {
        skipped("a kernel of the nodes has no rules about SCTP, which kube-proxy would write");
    }
    // Whoever is asked before we serve it is asked by its rules.
    asked.expect("before kube-proxy")?;
    proxies.run()?;
    soon("kube-proxy has rules for the services on every node", || {
        let mut missing = Vec::new();
        for rules in proxies.rules()? {
            for service in asked.services.iter().chain([&asked.nobody]) {
                missing.extend(service.missing_in(&rules));
            }
        }
        if !missing.is_empty() {
            missing.push(proxies.logs());
        }
        Ok(missing)
    })?;
    asked.expect("beside kube-proxy")?;

    // The source of a flow is what its policy sees: nobody has translated it.
    let near = json!({ "podSelector": { "matchLabels": { "app": "client", "at": "near" } } });
    policy(&served.namespace, "near", &to_backends(&json!([{ "from": [near] }])))?;
    let [client, other] = &served.clients;
    for service in &asked.services {
        let (own, others) = (service.by(|node| node == client.node), service.by(|node| node == other.node));
        served.expect("beside kube-proxy, whom the policy lets in", client, &own, MANY, &from(&["near", "far"]))?;
        served.expect("beside kube-proxy, whom the policy keeps out", other, &others, 3, &[Silent])?;
    }

    for rules in proxies.rules()? {
        let met: Vec<&String> = rules.iter().filter(|rule| !rule.starts_with("[0:")).collect();
        assert!(!rules.is_empty() && met.is_empty(), "of {} rules of kube-proxy, packets met these: {met:#?}", rules.len());
    }
    assert_eq!(proxies.end(), [""; 0]);
    Ok(())
}
