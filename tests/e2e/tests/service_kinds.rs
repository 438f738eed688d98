//! Services by the ways and of the kinds that `services` does not show: from processes of nodes, from outside by addresses that are no
//! node's, of one family and of both, by SCTP; near first, on the node alone, and where the last endpoint ends.

use anyhow::{Context, Result};
use palisade_e2e::cluster::{Cluster, items};
use palisade_e2e::keep::Kept;
use palisade_e2e::pod::{self, Pod};
use palisade_e2e::request::Answer::{self, Refused, Silent};
use palisade_e2e::request::{Target, Way, page};
use palisade_e2e::requirement::{requires_root, skipped};
use palisade_e2e::route::Route;
use palisade_e2e::scene::{blocks, clients_send, policy, to_backends};
use palisade_e2e::service::{
    BACKEND_SCTP, LONG_PATIENCE, SERVICE_SCTP, SERVICE_TCP, SERVICE_UDP, Served, associations, backend, by, each, expect_outside, from,
    node_addresses, soon, targets,
};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many requests show who is behind a service: with two backends, one is missed by chance once in half a thousand million times.
const MANY: u32 = 30;

fn start(purpose: &str) -> Result<Served> {
    Served::start(purpose, prober())
}

fn prober() -> &'static std::path::Path {
    env!("CARGO_BIN_EXE_prober").as_ref()
}

/// Pods on the networks of the clients' nodes; `None`, which is said, where services are not served to them.
fn processes(served: &Served) -> Result<Option<Vec<Pod>>> {
    served.served_processes(prober())
}

fn at(at: &str) -> Value {
    json!({ "selector": { "app": "backend", "at": at } })
}

/// A pod on a node's network is in the same network namespace as all that runs on the node itself, kubelet among it: what it is answered,
/// they are answered. Towards pods of other nodes it is their policies that count; its own node's pods it always reaches
/// (docs/user/policy.md), by whatever address.
#[test]
fn a_process_of_a_node_reaches_services_by_every_address_and_other_nodes_policies_judge_it() -> Result<()> {
    const HOST_PORTS: [u16; 3] = [18_081, 18_054, 18_133];
    let served = start("processes")?;
    let Some(processes) = processes(&served)? else { return Ok(()) };
    let (near, far) = (&processes[0], &processes[1]);
    let [host_ports, _] = served.host(&far.node, HOST_PORTS, prober())?;

    // All that leads to a service from a process: the cluster IPs, the other addresses, the ports of its own node.
    let make = |name: &str, number: u8, changes: &Value| -> Result<Vec<Vec<Target>>> {
        let others = targets(&served.balanced(name, number, changes)?, SERVICE_TCP, SERVICE_UDP);
        let inside = targets(&served.cluster_ips(name)?, SERVICE_TCP, SERVICE_UDP);
        let of =
            |process: &Pod| -> Result<Vec<Target>> { Ok([inside.clone(), others.clone(), served.at_node(name, &process.node)?].concat()) };
        processes.iter().map(of).collect()
    };
    let to_near = make("near", 10, &at("near"))?;
    let to_far = make("far", 20, &at("far"))?;
    let to_nobody = make("nobody", 30, &json!({ "selector": { "chosen": "yes" } }))?;
    let to_both = served.serve("both", json!({}))?;
    let expect = |when: &str, count: u32, all: &dyn Fn(usize) -> Vec<Target>, names: &[&str]| {
        let asked: Vec<_> = processes.iter().enumerate().map(|(index, process)| (process, all(index), from(names))).collect();
        served.expect_each(when, count, &asked)
    };
    expect("with a backend on the near node", 3, &|index| to_near[index].clone(), &["near"])?;
    expect("with a backend on the far node", 3, &|index| to_far[index].clone(), &["far"])?;
    expect("with both backends", MANY, &|_| to_both.clone(), &["near", "far"])?;
    expect("by the host ports of a pod on the far node", 3, &|_| host_ports.clone(), &["hosted"])?;
    for (index, process) in processes.iter().enumerate() {
        let [nobody, _] = served.refusals(&process.node)?;
        served.expect_at_once("without endpoints", process, &to_nobody[index], &nobody)?;
    }

    policy(&served.namespace, "isolated", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] }))?;
    let of_far = [to_far[0].as_slice(), &host_ports].concat();
    served.expect("isolated, from another node", near, &of_far, 1, &[Silent])?;
    for (process, to_near) in processes.iter().zip(&to_near).skip(1) {
        served.expect("isolated, from another node", process, to_near, 1, &[Silent])?;
    }
    served.expect("isolated, from the backend's own node", near, &to_near[0], 3, &from(&["near"]))?;
    served.expect("isolated, from the backend's own node", far, &to_far[1], 3, &from(&["far"]))?;
    served.expect("isolated, from the pod's own node", far, &host_ports, 3, &from(&["hosted"]))?;
    let near_addresses = node_addresses(served.cluster(), &near.node, &served.clients[0])?;
    let from_near = json!([{ "from": blocks(&near_addresses), "ports": [{ "port": "web" }] }]);
    policy(&served.namespace, "near-node", &to_backends(&from_near))?;
    served.expect("with the near node let in", near, &by(&to_far[0], Way::Tcp), 3, &from(&["far"]))?;
    served.expect("by one port", near, &by(&to_far[0], Way::Udp), 1, &[Silent])?;
    served.expect("and by no other node", far, &to_near[1], 1, &[Silent])
}

/// The internal policy is about cluster IPs. A pod hears nothing where no endpoint is on its node, as what it sends is dropped; a process of
/// the node is told at once, as what it sends would go to whoever has the address beyond the node (docs/user/agent.md).
#[test]
fn where_the_internal_policy_is_local_clients_reach_endpoints_of_their_own_node_alone() -> Result<()> {
    let served = start("internal")?;
    let processes = processes(&served)?;
    let clients: Vec<(&Pod, bool)> = {
        // Of the nodes with a backend.
        let processes = processes.iter().flatten().take(2).map(|process| (process, true));
        served.clients.iter().map(|client| (client, false)).chain(processes).collect()
    };
    let local =
        |selector: Value| served.serve("local", json!({ "type": "NodePort", "internalTrafficPolicy": "Local", "selector": selector }));
    let service = local(json!({ "app": "backend" }))?;
    let is_near = |client: &Pod| client.node == served.clients[0].node;
    for (client, _) in &clients {
        let own = if is_near(client) { "near" } else { "far" };
        served.expect("with a backend on each node", client, &service, MANY, &from(&[own]))?;
    }
    policy(&served.namespace, "isolated", &to_backends(&json!([])))?;
    for (client, is_process) in &clients {
        let own = if is_near(client) { "near" } else { "far" };
        // What runs on a node reaches its pods whatever their policies say.
        let (count, answers) = if *is_process { (3, from(&[own])) } else { (1, vec![Silent]) };
        served.expect("with backends that nobody may reach", client, &service, count, &answers)?;
    }
    served.namespace.run(&["delete", "networkpolicy", "isolated"])?;
    local(json!({ "app": "backend", "at": "far" }))?;
    for (client, is_process) in &clients {
        let when = "with a backend on the far node alone";
        match (is_near(client), is_process) {
            (false, _) => served.expect(when, client, &service, 3, &from(&["far"]))?,
            (true, false) => served.expect(when, client, &service, 1, &[Silent])?,
            (true, true) => {
                let [_, none_here] = served.refusals(&client.node)?;
                served.expect_at_once(when, client, &service, &none_here)?;
            }
        }
        let node_ports = served.at_node("local", &client.node)?;
        served.expect("by the ports of the client's node, which the policy is not about", client, &node_ports, 3, &from(&["far"]))?;
    }
    local(json!({ "chosen": "yes" }))?;
    for (client, is_process) in &clients {
        let [nobody, _] = if *is_process { served.refusals(&client.node)? } else { [Refused, Silent] };
        served.expect_at_once("with a backend on no node", client, &service, &nobody)?;
    }
    Ok(())
}

/// This machine gets a route to the addresses by one node after the other, as a router of a load balancer has them.
#[test]
fn every_node_serves_external_and_balanced_addresses_to_the_outside_and_policy_is_judged_on_the_backend() -> Result<()> {
    if !requires_root("a route to a node") {
        return Ok(());
    }
    let served = start("external")?;
    let nodes = served.cluster().nodes()?;
    let far_node = served.backends[1].node.as_str();
    let addresses = served.balanced("external", 40, &json!({}))?;
    let service = targets(&addresses, SERVICE_TCP, SERVICE_UDP);
    // Asserts what comes by each node: by that of the far backend, and by the others.
    let expect = |when: &str, count: u32, by_far: &[Answer], by_others: &[Answer]| -> Result<()> {
        for node in &nodes {
            let _routes = Route::to_all(&addresses, &node_addresses(served.cluster(), node, &served.clients[0])?)?;
            expect_outside(&format!("{when}, by {node}"), &service, count, if node == far_node { by_far } else { by_others })?;
        }
        Ok(())
    };
    let both = from(&["near", "far"]);
    expect("without a policy", MANY, &both, &both)?;
    policy(&served.namespace, "backends", &to_backends(&json!([])))?;
    expect("with backends that nobody may reach", 1, &[Silent], &[Silent])?;

    // By the backend's own node it sees who asks, by any other that node.
    let by_far = || Route::to_all(&addresses, &node_addresses(served.cluster(), far_node, &served.clients[0])?);
    let asked_from = |target: &Target| page(target.to, "/clientip", LONG_PATIENCE).with_context(|| format!("asking {target} who asks"));
    served.namespace.run(&["delete", "networkpolicy", "backends"])?;
    served.balanced("external", 40, &at("far"))?;
    let mut outside: Vec<IpAddr> = Vec::new();
    {
        let _routes = by_far()?;
        expect_outside("by the backend's own node", &service, 3, &from(&["far"]))?;
        for target in by(&service, Way::Tcp) {
            let said = asked_from(&target)?;
            assert_eq!(said.body, said.from.to_string(), "by {target} the backend sees another client");
            outside.push(said.from.ip());
        }
    }
    outside.sort();
    outside.dedup();
    policy(&served.namespace, "backends", &to_backends(&json!([{ "from": blocks(&outside) }])))?;
    expect("with this machine let in, which other nodes stand for", 1, &from(&["far"]), &[Silent])?;

    let local = json!({ "externalTrafficPolicy": "Local", "selector": at("far")["selector"] });
    served.balanced("external", 40, &local)?;
    expect("with this machine let in, and the policy Local", 1, &from(&["far"]), &[Silent])?;
    served.namespace.run(&["delete", "networkpolicy", "backends"])?;
    expect("with the policy Local", 1, &from(&["far"]), &[Silent])?;
    let _routes = by_far()?;
    for target in by(&service, Way::Tcp) {
        let said = asked_from(&target)?;
        assert_eq!(said.body, said.from.to_string(), "by {target} and the policy Local the backend sees another client");
    }
    Ok(())
}

#[test]
fn a_service_is_served_by_the_families_that_it_asks_for() -> Result<()> {
    let served = start("families")?;
    let required = |first: &str, second: &str| {
        let mut spec = at("near");
        (spec["ipFamilyPolicy"], spec["ipFamilies"]) = (json!("RequireDualStack"), json!([first, second]));
        spec
    };
    let has = |ipv6: bool| served.clients[0].addresses.iter().any(|address| address.is_ipv6() == ipv6);
    let is_dual = has(false) && has(true);
    if is_dual {
        let addresses = served.make("both", required("IPv6", "IPv4"))?;
        assert_eq!(addresses.iter().map(IpAddr::is_ipv6).collect::<Vec<_>>(), [true, false], "{addresses:?}");
        served.expect_all("of both families", &targets(&addresses, SERVICE_TCP, SERVICE_UDP), 3, &from(&["near"]))?;
    } else {
        skipped("a cluster of one family has no service of both");
        let error = served.make("both", required("IPv6", "IPv4")).expect_err("the API server takes a service of two families");
        assert!(format!("{error:#}").contains("ipFamil"), "{error:#}");
    }

    for (family, ipv6) in [("IPv4", false), ("IPv6", true)].into_iter().filter(|(_, ipv6)| has(*ipv6)) {
        let name = family.to_lowercase();
        let mut spec = at("near");
        (spec["ipFamilyPolicy"], spec["ipFamilies"], spec["type"]) = (json!("SingleStack"), json!([family]), json!("NodePort"));
        let addresses = served.make(&name, spec)?;
        assert_eq!(addresses.iter().map(IpAddr::is_ipv6).collect::<Vec<_>>(), [ipv6], "{addresses:?}");
        served.expect_all(&format!("of {family} alone"), &targets(&addresses, SERVICE_TCP, SERVICE_UDP), 3, &from(&["near"]))?;
        for client in &served.clients {
            let (own, other): (Vec<_>, Vec<_>) =
                served.at_node(&name, &client.node)?.into_iter().partition(|target| target.to.is_ipv6() == ipv6);
            served.expect(&format!("of {family} alone, by the node"), client, &own, 3, &from(&["near"]))?;
            // By the kernel of the node: nobody listens there.
            let other = by(&other, Way::Tcp);
            served.expect(&format!("of {family} alone, by the node's other family"), client, &other, 3, &[Refused])?;
        }
        if is_dual {
            let mut spec = required(family, if ipv6 { "IPv4" } else { "IPv6" });
            spec["type"] = json!("NodePort");
            let addresses = served.make(&name, spec)?;
            assert_eq!(addresses.len(), 2, "{addresses:?}");
            let client = &served.clients[1];
            let service = [targets(&addresses, SERVICE_TCP, SERVICE_UDP), served.at_node(&name, &client.node)?].concat();
            served.expect(&format!("of {family}, and then of both"), client, &service, 3, &from(&["near"]))?;
        }
    }
    Ok(())
}

#[test]
fn associations_reach_a_service_by_sctp_where_policy_lets_them() -> Result<()> {
    let served = start("sctp")?;
    let ports = served.take_associations()?;
    let serve = |selector: Value| served.make("sctp", json!({ "type": "NodePort", "ports": ports, "selector": selector }));
    let by_cluster_ips = associations(&serve(json!({ "app": "backend" }))?, SERVICE_SCTP);
    let at_node = |node: &str| served.at_node("sctp", node);
    let by_nodes: Vec<Target> = served.at_nodes("sctp")?.into_iter().flat_map(|(_, targets)| targets).collect();
    let may_ask_from_here = requires_root("an association from outside");
    let processes = processes(&served)?;
    let asked = |pod: &Pod| -> Result<Vec<Target>> { Ok([by_cluster_ips.clone(), at_node(&pod.node)?].concat()) };
    let by_clients = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        served.expect_each(when, count, &each(served.askers(), answers, asked)?)
    };
    let by_processes = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        served.expect_each(when, count, &each(processes.iter().flatten(), answers, asked)?)
    };
    let expect = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        by_clients(when, count, answers)?;
        if may_ask_from_here {
            expect_outside(when, &by_nodes, count, answers)?;
        }
        Ok(())
    };
    let both = from(&["near", "far"]);
    expect("without a policy", MANY, &both)?;
    by_processes("by a process, without a policy", MANY, &both)?;
    policy(&served.namespace, "backends", &to_backends(&json!([{ "ports": [{ "port": BACKEND_SCTP, "protocol": "TCP" }] }])))?;
    expect("with the port open for TCP", 1, &[Silent])?;
    policy(&served.namespace, "backends", &to_backends(&json!([{ "ports": [{ "port": SERVICE_SCTP, "protocol": "SCTP" }] }])))?;
    expect("with the service's port open, where no backend listens", 1, &[Silent])?;
    policy(&served.namespace, "backends", &to_backends(&json!([{ "ports": [{ "port": BACKEND_SCTP, "protocol": "SCTP" }] }])))?;
    expect("with the backends' port open", MANY, &both)?;
    by_processes("by a process, with the backends' port open", MANY, &both)?;
    for (port, count, answers) in [(SERVICE_SCTP, 1, vec![Silent]), (BACKEND_SCTP, MANY, both.clone())] {
        let backends = json!({ "podSelector": { "matchLabels": { "app": "backend" } } });
        clients_send(&served.namespace, &json!([{ "to": [backends], "ports": [{ "port": port, "protocol": "SCTP" }] }]))?;
        by_clients(&format!("out to the backends' port {port}"), count, &answers)?;
    }
    served.namespace.run(&["delete", "networkpolicy", "clients"])?;
    serve(json!({ "chosen": "yes" }))?;
    by_processes("by a process, without endpoints", 3, &[Refused])?;
    expect("without endpoints", 3, &[Refused])?;

    // By addresses that are no node's.
    let to_far = json!({ "ports": ports, "selector": at("far")["selector"] });
    let addresses = served.balanced("sctp-balanced", 50, &to_far)?;
    let service = associations(&addresses, SERVICE_SCTP);
    let expect_balanced = |when: &str, count: u32, answers: &[Answer], by_far_process: &[Answer]| -> Result<()> {
        served.expect_all(when, &service, count, answers)?;
        for process in processes.iter().flatten() {
            let answers = if process.node == served.backends[1].node { by_far_process } else { answers };
            served.expect(when, process, &service, count, answers)?;
        }
        for node in served.cluster().nodes()?.iter().filter(|_| may_ask_from_here) {
            let _routes = Route::to_all(&addresses, &node_addresses(served.cluster(), node, &served.clients[0])?)?;
            expect_outside(&format!("{when}, by {node}"), &service, count, answers)?;
        }
        Ok(())
    };
    expect_balanced("by external and balanced addresses", 3, &from(&["far"]), &from(&["far"]))?;
    policy(&served.namespace, "backends", &to_backends(&json!([])))?;
    expect_balanced("by those, with a backend that nobody may reach", 1, &[Silent], &from(&["far"]))
}

/// Waits until each of the two backends, of each family, is meant for where it is, which Kubernetes has to say first.
fn until_hinted(served: &Served, service: &str, hint: &str, place: &str) -> Result<()> {
    soon(&format!("the hints of {service}"), || {
        let selector = format!("kubernetes.io/service-name={service}");
        let slices = served.cluster().json(&["get", "endpointslices", "--namespace", &served.namespace.name, "--selector", &selector])?;
        let endpoints: Vec<&Value> = items(&slices).flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten()).collect();
        let is_hinted = |endpoint: &&&Value| endpoint["hints"][hint] == json!([{ "name": endpoint[place] }]);
        let (count, hinted) = (endpoints.len(), endpoints.iter().filter(is_hinted).count());
        let wanted = 2 * served.clients[0].addresses.len();
        Ok(if (count, hinted) == (wanted, wanted) { vec![] } else { vec![format!("{endpoints:?}")] })
    })
}

/// The zones of nodes, which are one test's at a time; what they were before is put back when this is dropped.
struct Zones<'a> {
    cluster: &'a Cluster,
    before: Vec<(&'a str, Option<String>)>,
    _alone: MutexGuard<'static, ()>,
}

impl<'a> Zones<'a> {
    /// Nobody gives nodes other zones as long as this is held.
    fn keep(cluster: &'a Cluster) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        Self { cluster, before: Vec::new(), _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn give(&mut self, node: &'a str, zone: &str) -> Result<()> {
        let before = self.cluster.json(&["get", "node", node])?["metadata"]["labels"][ZONE].as_str().map(str::to_owned);
        self.before.push((node, before));
        self.set(node, Some(zone))
    }

    fn set(&self, node: &str, zone: Option<&str>) -> Result<()> {
        let label = zone.map_or_else(|| format!("{ZONE}-"), |zone| format!("{ZONE}={zone}"));
        self.cluster.run(&["label", "--overwrite", "node", node, &label]).map(drop)
    }
}

const ZONE: &str = "topology.kubernetes.io/zone";

impl Drop for Zones<'_> {
    fn drop(&mut self) {
        for (node, before) in &self.before {
            if let Err(error) = self.set(node, before.as_deref()) {
                eprintln!("the node {node} may have another zone than {before:?}: {error:#}");
            }
        }
    }
}

#[test]
fn a_service_that_prefers_the_same_zone_is_answered_there() -> Result<()> {
    let served = start("same-zone")?;
    let nodes = served.cluster().nodes()?;
    // The near node is alone in its zone.
    let near = served.backends[0].node.as_str();
    let zone_of = |node: &str| if node == near { "near" } else { "far" };
    let mut zones = Zones::keep(served.cluster());
    for node in &nodes {
        zones.give(node, zone_of(node))?;
    }
    let service = served.serve("zonal", json!({ "type": "NodePort", "trafficDistribution": "PreferSameZone" }))?;
    until_hinted(&served, "zonal", "forZones", "zone")?;
    let processes = processes(&served)?;
    let asked = served.askers().chain(processes.iter().flatten()).map(|asker| (asker, service.clone(), from(&[zone_of(&asker.node)])));
    served.expect_each("with a backend in each zone", MANY, &asked.collect::<Vec<_>>())?;
    for (node, targets) in served.at_nodes("zonal")? {
        expect_outside(&format!("with a backend in each zone, by {node}"), &targets, MANY, &from(&[zone_of(&node)]))?;
    }
    served.namespace.run(&["label", "--overwrite", "pod", "near", "app=none"])?;
    served.expect_all("after the zone's backend went", &service, 3, &from(&["far"]))
}

#[test]
fn a_service_that_prefers_the_same_node_is_answered_there_as_long_as_somebody_is() -> Result<()> {
    let served = start("same-node")?;
    let _zones = Zones::keep(served.cluster());
    let processes = processes(&served)?;
    let [near, far] = &served.clients;
    let service = served.serve("preferring", json!({ "type": "NodePort" }))?;
    let at_nodes = served.at_nodes("preferring")?;
    served.expect("without a preference", near, &service, MANY, &from(&["near", "far"]))?;
    served.serve("preferring", json!({ "type": "NodePort", "trafficDistribution": "PreferSameNode" }))?;
    let own = |when: &str| -> Result<()> {
        until_hinted(&served, "preferring", "forNodes", "nodeName")?;
        let of_node = |node: &str| {
            let own: Vec<&str> =
                served.backends.iter().filter(|backend| backend.node == node).map(|backend| backend.name.as_str()).collect();
            // For a node without a backend no hint is meant.
            from(if own.is_empty() { &["near", "far"] } else { &own })
        };
        let asked = served.askers().chain(processes.iter().flatten()).map(|asker| (asker, service.clone(), of_node(&asker.node)));
        served.expect_each(when, MANY, &asked.collect::<Vec<_>>())?;
        for (node, targets) in &at_nodes {
            expect_outside(&format!("{when}, by {node}"), targets, MANY, &of_node(node))?;
        }
        Ok(())
    };
    own("with a backend on each node")?;
    // Nearness is no reason to go elsewhere where policy says no.
    let isolated = json!({ "podSelector": { "matchLabels": { "at": "near", "app": "backend" } }, "policyTypes": ["Ingress"] });
    policy(&served.namespace, "near", &isolated)?;
    served.expect("with a near backend that nobody may reach", near, &service, 1, &[Silent])?;
    served.expect("with a near backend that nobody may reach", far, &service, 3, &from(&["far"]))?;
    served.namespace.run(&["delete", "networkpolicy", "near"])?;
    served.namespace.run(&["label", "--overwrite", "pod", "near", "app=none"])?;
    served.expect_all("after the near backend went", &service, 3, &from(&["far"]))?;
    served.namespace.run(&["label", "--overwrite", "pod", "near", "app=backend"])?;
    own("after it came back")
}

/// A pod that has been told to end serves until it is let go (`/tmp/go`), and says that it does unless it is to say otherwise (`/tmp/busy`).
fn leaving(node: &str) -> Value {
    let mut pod = backend("leaving", node, 8080);
    pod["metadata"]["labels"] = json!({ "app": "leaving", "chosen": "yes" });
    pod["spec"]["terminationGracePeriodSeconds"] = json!(300);
    let container = &mut pod["spec"]["containers"][0];
    let wait = json!(["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.2; done"]);
    container["lifecycle"]["preStop"]["exec"]["command"] = wait;
    // Not by HTTP: it goes on to answer. Nor within a second, on a machine that is busy.
    let ready = json!(["sh", "-c", "[ ! -e /tmp/busy ]"]);
    container["readinessProbe"] = json!({ "exec": { "command": ready }, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2 });
    pod
}

#[test]
fn an_endpoint_that_ends_keeps_its_connections_and_is_asked_anew_as_long_as_no_other_is_left() -> Result<()> {
    let served = start("ending")?;
    let processes = processes(&served)?;
    let [near, far] = &served.clients;
    let pods = pod::start(&served.namespace, &[leaving(&near.node)])?;
    let leaving = pod::named(&pods, "leaving")?;
    let service = served.serve("ending", json!({ "type": "NodePort", "selector": { "chosen": "yes" } }))?;
    let by_nodes: Vec<Target> = served.at_nodes("ending")?.into_iter().flat_map(|(_, targets)| targets).collect();
    let expect = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        served.expect_all(when, &service, count, answers)?;
        expect_outside(&format!("{when}, by the ports of every node"), &by_nodes, count, answers)
    };
    // Where the policy is Local, each node looks at its own endpoints.
    let local = json!({ "type": "NodePort", "externalTrafficPolicy": "Local", "selector": { "chosen": "yes" } });
    served.serve("local", local)?;
    let local_by_nodes = served.at_nodes("local")?;
    let expect_local = |when: &str, by_near: &[Answer], by_far: &[Answer]| -> Result<()> {
        for (node, targets) in &local_by_nodes {
            let silent = [Silent];
            let answers = match node {
                node if *node == near.node => by_near,
                node if *node == far.node => by_far,
                _ => &silent,
            };
            expect_outside(&format!("{when}, with the policy Local, by {node}"), targets, 1, answers)?;
        }
        Ok(())
    };
    expect("before it ends", 3, &from(&["leaving"]))?;
    expect_local("before it ends", &from(&["leaving"]), &[Silent])?;
    // Of processes the connections alone: a socket of theirs for datagrams is ended when its backend serves no more (docs/user/agent.md).
    let of_pods = served.askers().map(|client| (client, service.clone()));
    let of_processes = processes.iter().flatten().map(|process| (process, by(&service, Way::Tcp)));
    let kept = Kept::begin(&served, &of_pods.chain(of_processes).collect::<Vec<_>>(), &by(&by_nodes, Way::Tcp))?;
    kept.expect("before it ends", "leaving", "leaving")?;
    served.namespace.run(&["delete", "pod", "leaving", "--wait=false"])?;
    let endpoints = || -> Result<Vec<Value>> {
        let selector = "kubernetes.io/service-name=ending";
        let slices = served.cluster().json(&["get", "endpointslices", "--namespace", &served.namespace.name, "--selector", selector])?;
        let endpoints = items(&slices).flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        Ok(endpoints.filter(|endpoint| endpoint["targetRef"]["name"] == "leaving").cloned().collect())
    };
    let ends = |when: &str, is_serving: bool| {
        soon(when, || {
            let of_leaving = endpoints()?;
            let ends = json!({ "ready": false, "serving": is_serving, "terminating": true });
            let wrong = of_leaving.is_empty() || of_leaving.iter().any(|endpoint| endpoint["conditions"] != ends);
            Ok(if wrong { vec![format!("{of_leaving:?}")] } else { vec![] })
        })
    };
    ends("the endpoint ends", true)?;
    expect("while it ends, alone", 3, &from(&["leaving"]))?;
    expect_local("while it ends, alone", &from(&["leaving"]), &[Silent])?;
    served.namespace.run(&["label", "pod", "far", "chosen=yes"])?;
    expect("while it ends, with another that is ready", MANY, &from(&["far"]))?;
    expect_local("while it ends, with another that is ready", &from(&["leaving"]), &from(&["far"]))?;
    kept.expect("while it ends, with another that is ready", "leaving", "leaving")?;
    leaving.shell(served.cluster(), "touch /tmp/busy")?;
    ends("the endpoint ends, and serves no more", false)?;
    kept.expect("when it serves no more", "leaving", "far")?;
    for course in kept.end()? {
        let expected = if course.target.way == Way::Tcp { from(&["leaving"]) } else { from(&["leaving", "far"]) };
        assert_eq!(course.turns(), expected, "all that {} was answered by {}", course.of, course.target);
    }
    leaving.shell(served.cluster(), "rm /tmp/busy")?;
    ends("the endpoint ends, and serves again", true)?;
    served.namespace.run(&["label", "pod", "far", "chosen-"])?;
    expect("while it ends, alone again", 3, &from(&["leaving"]))?;
    ends("the endpoint ends still", true)?;
    leaving.shell(served.cluster(), "touch /tmp/go")?;
    // Before, first the pod refuses, then its node.
    soon("the endpoint is gone", || {
        let left = endpoints()?;
        Ok(if left.is_empty() { vec![] } else { vec![format!("{left:?}")] })
    })?;
    served.expect_all("after it", &service, 3, &[Refused])
}
