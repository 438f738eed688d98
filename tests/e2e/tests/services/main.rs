//! Services, as pods use them, and clients outside: over both families, TCP and UDP, from pods of two nodes and from this machine to backends on both nodes.

mod names;
mod outside;

use anyhow::{Context, Result};
use palisade_e2e::cluster::items;
use palisade_e2e::pod::{IMAGE, Pod, TCP_PORT, UDP_PORT};
use palisade_e2e::probe::{Outcome, Probe, run_all};
use palisade_e2e::request::Answer::{self, From, Refused, Silent};
use palisade_e2e::request::{Said, Target, Way, ask_from_here};
use palisade_e2e::scene::{blocks, policy};
use palisade_e2e::service::{
    LONG_PATIENCE, SERVICE_TCP, SERVICE_UDP, Served, begin_load_outside, by, cluster_ips, expect_outside, from, named_ports,
    node_addresses, soon, targets,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// How many requests show who is behind a service: with two backends, one is missed by chance once in half a thousand million times.
const MANY: u32 = 30;
/// For how long a pod of the rolling update serves after it was told to end.
const DRAIN: Duration = Duration::from_secs(8);

fn start(purpose: &str) -> Result<Served> {
    Served::start(purpose, prober())
}

fn prober() -> &'static Path {
    env!("CARGO_BIN_EXE_prober").as_ref()
}

/// What a policy names pods by, in its own namespace.
fn pods(app: &str, at: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": app, "at": at } } })
}

#[test]
fn a_service_reaches_its_backends_on_both_nodes_from_pods_of_both_nodes() -> Result<()> {
    let served = start("service")?;
    let service = served.serve("both", json!({}))?;
    for client in &served.clients {
        served.expect("with a backend on each node", client, &service, MANY, &from(&["near", "far"]))?;
    }
    served.serve("both", json!({ "selector": { "at": "far", "app": "backend" } }))?;
    for client in &served.clients {
        served.expect("with the far backend alone", client, &service, MANY, &from(&["far"]))?;
    }
    Ok(())
}

#[test]
fn the_ports_of_a_pods_node_and_external_addresses_reach_a_service_and_are_no_way_round_policy() -> Result<()> {
    let served = start("outside")?;
    // Of the ranges for documentation: nobody has them.
    let external = served.of_families(&["192.0.2.10", "2001:db8::10"])?;
    let given = served.of_families(&["192.0.2.20", "2001:db8::20"])?;
    served.serve("outside", json!({ "type": "LoadBalancer", "externalIPs": external }))?;
    served.balance("outside", &given)?;
    let by_addresses = [targets(&external, SERVICE_TCP, SERVICE_UDP), targets(&given, SERVICE_TCP, SERVICE_UDP)].concat();
    let at_node = |client: &Pod| served.at_node("outside", &client.node);
    for client in &served.clients {
        served.expect("by external addresses", client, &by_addresses, MANY, &from(&["near", "far"]))?;
        served.expect("by the ports of the client's node", client, &at_node(client)?, MANY, &from(&["near", "far"]))?;
    }
    let isolated = json!({ "podSelector": { "matchLabels": { "app": "backend" } }, "policyTypes": ["Ingress"] });
    policy(&served.namespace, "isolated", &isolated)?;
    for client in &served.clients {
        served.expect("isolated, by external addresses", client, &by_addresses, 1, &[Silent])?;
        served.expect("isolated, by the ports of the client's node", client, &at_node(client)?, 1, &[Silent])?;
    }
    served.namespace.run(&["delete", "networkpolicy", "isolated"])?;

    // Nor do they lead out: whom a client may ask is a matter of backends, not of addresses.
    let egress = |to: &Value| {
        let clients = json!({ "matchLabels": { "app": "client" } });
        policy(&served.namespace, "clients", &json!({ "podSelector": clients, "policyTypes": ["Egress"], "egress": [{ "to": to }] }))
    };
    let mut addresses = [external, given].concat();
    for client in &served.clients {
        addresses.extend(node_addresses(served.cluster(), &client.node, client)?);
    }
    let expect = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        for client in &served.clients {
            served.expect(when, client, &[by_addresses.clone(), at_node(client)?].concat(), count, answers)?;
        }
        Ok(())
    };
    egress(&blocks(&addresses))?;
    expect("out to the addresses, behind which are backends", 1, &[Silent])?;
    egress(&json!([pods("backend", "near"), pods("backend", "far")]))?;
    expect("out to the backends", MANY, &from(&["near", "far"]))
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let served = start("nobody")?;
    let service = served.serve("nobody", json!({ "selector": { "chosen": "yes" } }))?;
    let refused_at_once = |when: &str| -> Result<()> {
        for client in &served.clients {
            served.expect_at_once(when, client, &service, &Refused)?;
        }
        Ok(())
    };
    refused_at_once("with a selector that no pod matches")?;
    served.namespace.run(&["label", "pod", "far", "chosen=yes"])?;
    for client in &served.clients {
        served.expect("after a pod was chosen", client, &service, 3, &from(&["far"]))?;
    }
    served.namespace.run(&["label", "pod", "far", "chosen-"])?;
    refused_at_once("after the last endpoint went")
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let served = start("itself")?;
    // By each address that the service has: its own, an external one, the ports of the asking pod's node.
    let own = |at: &str, number: u8| -> Result<Vec<Target>> {
        let external = served.of_families(&[&format!("192.0.2.{number}"), &format!("2001:db8::{number}")])?;
        let changes = json!({ "type": "NodePort", "externalIPs": external, "selector": { "app": "backend", "at": at } });
        Ok([served.serve(at, changes)?, targets(&external, SERVICE_TCP, SERVICE_UDP)].concat())
    };
    let services = [("near", own("near", 30)?), ("far", own("far", 31)?)];
    let ways = |index: usize, asker: &Pod| -> Result<Vec<Target>> {
        let (name, service) = &services[index];
        Ok([service.clone(), served.at_node(name, &asker.node)?].concat())
    };
    policy(&served.namespace, "isolated", &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))?;
    for (index, backend) in served.backends.iter().enumerate() {
        let client = &served.clients[index];
        served.expect("what is isolated reaches itself", backend, &ways(index, backend)?, 3, &from(&[&backend.name]))?;
        served.expect("and no other, through the other's service", backend, &ways(1 - index, backend)?, 1, &[Silent])?;
        served.expect("and nobody else reaches it", client, &ways(index, client)?, 1, &[Silent])?;
    }
    Ok(())
}

#[test]
fn policy_is_judged_on_the_backend() -> Result<()> {
    let served = start("judged")?;
    let own = |at: &str| served.serve(at, json!({ "selector": { "app": "backend", "at": at } }));
    let (near, far) = (own("near")?, own("far")?);
    let expect = |when: &str, from_clients: [bool; 2], to_near: [bool; 2], to_far: [bool; 2]| -> Result<()> {
        for (client, may) in served.clients.iter().zip(from_clients) {
            for (service, name, [tcp, udp]) in [(&near, "near", to_near), (&far, "far", to_far)] {
                for (way, open) in [(Way::Tcp, tcp && may), (Way::Udp, udp && may)] {
                    let (count, answers) = if open { (3, from(&[name])) } else { (1, vec![Silent]) };
                    served.expect(when, client, &by(service, way), count, &answers)?;
                }
            }
        }
        Ok(())
    };
    let all = [true, true];
    let none = [false, false];
    expect("without a policy", all, all, all)?;

    let clients = json!({ "matchLabels": { "app": "client" } });
    let egress =
        |to: Value, ports: Value| json!({ "podSelector": clients, "policyTypes": ["Egress"], "egress": [{ "to": to, "ports": ports }] });
    let backends = json!([pods("backend", "near"), pods("backend", "far")]);
    let ports = |tcp: u16, udp: u16| json!([{ "port": tcp }, { "port": udp, "protocol": "UDP" }]);
    policy(&served.namespace, "clients", &egress(json!([pods("backend", "near")]), ports(TCP_PORT, UDP_PORT)))?;
    expect("out to the near backend's ports", all, all, none)?;
    policy(&served.namespace, "clients", &egress(backends.clone(), ports(SERVICE_TCP, SERVICE_UDP)))?;
    expect("out to the service's ports, where no backend listens", all, none, none)?;
    // Port 80 of the one, port 8080 of the other.
    policy(&served.namespace, "clients", &egress(backends, json!([{ "port": "web" }])))?;
    expect("out to a port by the name that it has at each backend", all, [true, false], [true, false])?;
    let blocks: Vec<Value> = [near.as_slice(), &far]
        .concat()
        .iter()
        .map(|target| json!({ "ipBlock": { "cidr": format!("{}/{}", target.to.ip(), if target.to.is_ipv6() { 128 } else { 32 }) } }))
        .collect();
    policy(&served.namespace, "clients", &json!({ "podSelector": clients, "policyTypes": ["Egress"], "egress": [{ "to": blocks }] }))?;
    expect("out to blocks of the cluster IPs", all, none, none)?;
    served.namespace.run(&["delete", "networkpolicy", "clients"])?;

    // The backends see who asks.
    let ingress = json!({ "podSelector": { "matchLabels": { "app": "backend" } }, "ingress": [{ "from": [pods("client", "far")] }] });
    policy(&served.namespace, "backends", &ingress)?;
    expect("in from the far client", [false, true], all, all)
}

/// Who answers each of the targets: one pod alone, soon, and the same one when it is asked again.
fn kept(when: &str, targets: &[Target], ask: impl Fn() -> Result<Vec<Said>>) -> Result<Vec<(Target, String)>> {
    // Each frontend remembers for itself.
    let mut kept: Vec<Option<String>> = vec![None; targets.len()];
    soon(when, || {
        let said = ask()?;
        let mut wrong = Vec::new();
        for (target, kept) in targets.iter().zip(&mut kept) {
            let came: BTreeSet<&Answer> = said.iter().filter(|said| said.target == *target).map(|said| &said.answer).collect();
            match came.iter().collect::<Vec<_>>()[..] {
                [From(name)] if kept.as_ref().is_none_or(|kept| kept == name) => *kept = Some(name.clone()),
                _ => {
                    *kept = None;
                    wrong.push(format!("{target}: {came:?}"));
                }
            }
        }
        Ok(wrong)
    })?;
    targets.iter().zip(kept).map(|(target, kept)| Ok((*target, kept.context("nobody answered")?))).collect()
}

#[test]
fn session_affinity_keeps_a_client_with_its_backend() -> Result<()> {
    let served = start("affinity")?;
    let service = served.serve("kept", json!({ "type": "NodePort" }))?;
    let by_nodes: Vec<Target> = served.at_nodes("kept")?.into_iter().flat_map(|(_, targets)| targets).collect();
    // All processes of a node are one client.
    let processes = served.served_processes(prober())?;
    let client = &served.clients[0];
    let both = from(&["near", "far"]);
    for inside in processes.iter().flatten().chain([client]) {
        served.expect("without affinity", inside, &service, MANY, &both)?;
    }
    expect_outside("without affinity, by the ports of every node", &by_nodes, MANY, &both)?;
    served.serve("kept", json!({ "type": "NodePort", "sessionAffinity": "ClientIP" }))?;
    for process in processes.iter().flatten() {
        kept(&format!("with affinity, {}", process.name), &service, || served.ask_patiently(process, &service, MANY))?;
    }
    kept("with affinity, outside", &by_nodes, || Ok(ask_from_here(&by_nodes, MANY, LONG_PATIENCE)))?;
    let kept = kept("with affinity", &service, || served.ask_patiently(client, &service, MANY))?;

    // Nor does policy send a client elsewhere.
    policy(&served.namespace, "isolated", &json!({ "podSelector": { "matchLabels": { "app": "backend" } }, "policyTypes": ["Ingress"] }))?;
    served.expect("with affinity to backends that nobody may reach", client, &service, 1, &[Silent])?;
    served.namespace.run(&["delete", "networkpolicy", "isolated"])?;
    for (target, name) in &kept {
        served.expect("with affinity, after the policy went", client, &[*target], MANY, &from(&[name.as_str()]))?;
    }

    // A backend that is none any more keeps nobody.
    let away = &kept[0].1;
    let stays = if away == "near" { "far" } else { "near" };
    let of_away: Vec<Target> = kept.iter().filter(|(_, name)| name == away).map(|(target, _)| *target).collect();
    served.namespace.run(&["label", "--overwrite", "pod", away, "app=none"])?;
    served.expect("after the backend went", client, &of_away, 3, &from(&[stays]))?;
    served.namespace.run(&["label", "--overwrite", "pod", away, "app=backend"])?;
    // That it is back shows at a service that keeps nobody.
    let other = served.serve("other", json!({}))?;
    served.expect("after it came back, without affinity", client, &other, MANY, &from(&["near", "far"]))?;
    served.expect("after it came back, with the one that took its place", client, &of_away, MANY, &from(&[stays]))
}

/// A Deployment whose pods serve for a while after they were told to end.
fn rolling(namespace: &str) -> Value {
    let labels = json!({ "app": "rolling" });
    let container = json!({
        "name": "server",
        "image": IMAGE,
        "args": ["netexec", format!("--http-port={TCP_PORT}"), format!("--udp-port={UDP_PORT}")],
        "ports": named_ports(TCP_PORT),
        "readinessProbe": { "httpGet": { "path": "/hostname", "port": TCP_PORT }, "periodSeconds": 1 },
        "lifecycle": { "preStop": { "exec": { "command": ["sleep", DRAIN.as_secs().to_string()] } } },
    });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "rolling", "namespace": namespace },
        "spec": {
            "replicas": 2,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 30,
                    "automountServiceAccountToken": false,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": { "matchLabels": labels },
                    }],
                    "containers": [container],
                },
            },
        },
    })
}

#[test]
fn a_rolling_update_behind_a_service_fails_no_request() -> Result<()> {
    let served = start("rolling")?;
    let cluster = served.cluster();
    cluster.apply(&[rolling(&served.namespace.name)])?;
    let rolled_out = || served.namespace.run(&["rollout", "status", "deployment", "rolling", "--timeout=150s"]);
    rolled_out()?;
    let service = served.serve("rolling", json!({ "type": "NodePort", "selector": { "app": "rolling" } }))?;
    let by_nodes: Vec<Target> = served.at_nodes("rolling")?.into_iter().flat_map(|(_, targets)| targets).collect();
    let processes = served.served_processes(prober())?;
    let names_now = || -> Result<Vec<String>> {
        let list = cluster.json(&["get", "pods", "--namespace", &served.namespace.name, "--selector", "app=rolling"])?;
        Ok(items(&list).filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
    };
    let mut names: BTreeSet<String> = names_now()?.into_iter().collect();
    let first: Vec<Answer> = names.iter().cloned().map(From).collect();
    let inside = || served.clients.iter().chain(processes.iter().flatten());
    for client in inside() {
        served.expect("before the update", client, &service, MANY, &first)?;
    }
    expect_outside("before the update, by the ports of every node", &by_nodes, MANY, &first)?;
    let load_outside = begin_load_outside(&by_nodes);
    for client in inside() {
        served.begin_load(client, &service)?;
    }
    for _ in 0..2 {
        served.namespace.run(&["rollout", "restart", "deployment", "rolling"])?;
        rolled_out()?;
        names.extend(names_now()?);
    }
    // What ends last has ended by then.
    std::thread::sleep(DRAIN + Duration::from_secs(4));
    let mut courses = vec![("outside", &by_nodes, load_outside.end())];
    for client in inside() {
        courses.push((&client.name, &service, served.end_load(client)?));
    }
    let mut answered_by = BTreeSet::new();
    for (client, targets, said) in courses {
        let failed: Vec<String> = said.iter().filter(|said| !matches!(said.answer, From(_))).map(Said::to_string).collect();
        assert!(failed.is_empty(), "{} of {} requests of {client} failed:\n{}", failed.len(), said.len(), failed.join("\n"));
        for target in targets {
            let count = said.iter().filter(|said| said.target == *target).count();
            assert!(count > 100, "{client} asked {target} only {count} times: that shows nothing");
        }
        answered_by.extend(said.into_iter().filter_map(|said| match said.answer {
            From(name) => Some(name),
            _ => None,
        }));
    }
    assert_eq!(answered_by, names, "who answered: each pod that there was");
    assert!(names.len() >= 6, "two updates of two pods: {names:?}");
    Ok(())
}

#[test]
fn the_api_server_is_reached_by_its_service_from_a_pod() -> Result<()> {
    let served = start("api-server")?;
    let addresses = cluster_ips(served.cluster(), "default", "kubernetes")?;
    let expect = |when: &str, wanted: Outcome| {
        soon(when, || {
            let probe = |from: &Pod, address: &IpAddr| Probe {
                from: from.clone(),
                to: "kubernetes.default".into(),
                address: *address,
                port: 443,
                protocol: "TCP".into(),
            };
            let probes = served.clients.iter().flat_map(|client| addresses.iter().map(move |address| probe(client, address))).collect();
            let came = run_all(served.cluster(), probes).into_iter().filter(|(_, outcome)| *outcome != wanted);
            Ok(came.map(|(probe, outcome)| format!("{probe}: {outcome}, not {wanted}")).collect())
        })
    };
    expect("without a policy", Outcome::Reached)?;

    let egress = |rules: Value| json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": rules });
    policy(&served.namespace, "clients", &egress(json!([])))?;
    expect("with nothing allowed", Outcome::Silent)?;
    // Its endpoints are processes of nodes.
    let selector = "kubernetes.io/service-name=kubernetes";
    let slices = served.cluster().json(&["get", "endpointslices", "--namespace", "default", "--selector", selector])?;
    let mut rules = Vec::new();
    for slice in items(&slices) {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let addresses = endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str());
        let blocks: Vec<Value> = addresses
            .map(|address| json!({ "ipBlock": { "cidr": format!("{address}/{}", if address.contains(':') { 128 } else { 32 }) } }))
            .collect();
        rules.push(json!({ "to": blocks, "ports": [{ "port": slice["ports"][0]["port"] }] }));
    }
    policy(&served.namespace, "clients", &egress(json!(rules)))?;
    expect("with its nodes' addresses and their port allowed", Outcome::Reached)
}
