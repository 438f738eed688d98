//! A kube-proxy that runs beside Palisade on every node. It has rules for all services, and none of them is ever met: what goes to a
//! service has gone to a backend before the node's own tables look at it.

use anyhow::{Context, Result, ensure};
use palisade_e2e::administrator::{NODE, ON_NODE, administrator};
use palisade_e2e::cluster::{Cluster, items};
use palisade_e2e::pod::{self, Pod};
use palisade_e2e::request::Answer::{Refused, Silent};
use palisade_e2e::scene::policy;
use palisade_e2e::service::{Served, expect_outside, from, soon};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many requests show who is behind a service: with two backends, one is missed by chance once in half a thousand million times.
const MANY: u32 = 30;
/// The program on each node; with an ending, how it reaches the API server.
const PROGRAM: &str = "/var/lib/palisade-e2e-kube-proxy";
/// Rules for services, and what they have counted.
const RULES: &str = "sh -c 'iptables-save -c; ip6tables-save -c'";

/// kube-proxy on each node that takes pods, in a pod of its own.
struct Proxies<'a> {
    served: &'a Served,
    pods: Vec<Pod>,
    /// What lets it watch services.
    role: Value,
}

impl<'a> Proxies<'a> {
    fn start(served: &'a Served) -> Result<Self> {
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
            // It is to leave alone what is the whole kernel's.
            let kernel = "--conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0s \
                --conntrack-tcp-timeout-close-wait=0s --iptables-localhost-nodeports=false";
            let run = format!("{PROGRAM} --kubeconfig={PROGRAM}.conf --hostname-override={} --proxy-mode=iptables {kernel}", pod.node);
            pod.shell(cluster, &format!("{ON_NODE} {run} >/tmp/log 2>&1 & echo $! >/tmp/process"))?;
        }
        Ok(proxies)
    }

    /// Of the rules about a service of the test, or about all of them where it is "": how many there are on each node, and how many
    /// packets they have met.
    fn rules(&self, service: &str) -> Result<Vec<(usize, u64)>> {
        let of_service = format!("\"{}/{service}", self.served.namespace.name);
        let count = |pod: &Pod| -> Result<(usize, u64)> {
            let saved = pod.shell(self.served.cluster(), &format!("{ON_NODE} {RULES}"))?;
            let rules: Vec<&str> = saved.lines().filter(|line| line.contains(&of_service)).collect();
            let packets = rules.iter().map(|rule| rule.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok());
            Ok((rules.len(), packets.collect::<Option<Vec<u64>>>().context("a rule without its count")?.iter().sum()))
        };
        self.pods.iter().map(count).collect()
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
        match self.rules("") {
            Ok(rules) if rules.iter().all(|(rules, _)| *rules == 0) => self.pods.clear(),
            left => faults.push(format!("rules and packets that are left: {left:?}")),
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
    let processes = served.processes(prober)?;
    let inside = served.serve("both", json!({ "type": "NodePort" }))?;
    let nobody = served.serve("nobody", json!({ "selector": { "app": "nobody" } }))?;
    let at_nodes = served.at_nodes("both")?;
    let mut proxies = Proxies::start(&served)?;
    // For each of its two ports a service has a rule at least, in each family.
    let least = 2 * served.clients[0].addresses.len();
    soon("kube-proxy has rules for the services on every node", || {
        let rules = [proxies.rules("both")?, proxies.rules("nobody")?].concat();
        let complete = rules.iter().all(|(rules, _)| *rules >= least);
        Ok(if complete { Vec::new() } else { vec![format!("rules and packets: {rules:?}\n{}", proxies.logs())] })
    })?;

    let all = from(&["near", "far"]);
    for client in &served.clients {
        served.expect("beside kube-proxy, from a pod", client, &inside, MANY, &all)?;
        served.expect("beside kube-proxy, without endpoints", client, &nobody, 3, &[Refused])?;
        for (node, targets) in &at_nodes {
            served.expect(&format!("beside kube-proxy, from a pod by the ports of {node}"), client, targets, MANY, &all)?;
        }
    }
    for process in &processes {
        served.expect("beside kube-proxy, from a process of a node", process, &inside, MANY, &all)?;
    }
    for (node, targets) in &at_nodes {
        expect_outside(&format!("beside kube-proxy, from outside by the ports of {node}"), targets, MANY, &all)?;
    }

    // The source of a flow is what its policy sees: nobody has translated it.
    let near = json!({ "podSelector": { "matchLabels": { "app": "client", "at": "near" } } });
    let spec =
        json!({ "podSelector": { "matchLabels": { "app": "backend" } }, "policyTypes": ["Ingress"], "ingress": [{ "from": [near] }] });
    policy(&served.namespace, "near", &spec)?;
    let [client, other] = &served.clients;
    served.expect("beside kube-proxy, whom the policy lets in", client, &inside, MANY, &all)?;
    served.expect("beside kube-proxy, whom the policy keeps out", other, &inside, 3, &[Silent])?;

    let rules = proxies.rules("")?;
    assert!(rules.iter().all(|(rules, packets)| *rules > 0 && *packets == 0), "rules of kube-proxy, and packets that met them: {rules:?}");
    assert_eq!(proxies.end(), [""; 0]);
    Ok(())
}
