//! Services, as pods use them, and clients outside: over both families, TCP and UDP, from pods of every node and from this machine to backends on two nodes.

mod names;
mod outside;

use anyhow::{Context, Result};
use palisade_e2e::cluster::items;
use palisade_e2e::pod::{IMAGE, Pod, TCP_PORT, UDP_PORT};
use palisade_e2e::probe::{Outcome, Probe, run_all};
use palisade_e2e::request::Answer::{self, From, Refused, Silent};
use palisade_e2e::request::{Said, Target, Way, ask_from_here};
use palisade_e2e::scene::{blocks, clients_send, policy, to_backends};
use palisade_e2e::service::{
    LONG_PATIENCE, SERVICE_TCP, SERVICE_UDP, Served, begin_load_outside, by, cluster_ips, each, expect_outside, from, named_ports,
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
fn a_service_reaches_its_backends_on_both_nodes_from_pods_of_every_node() -> Result<()> {
    let served = start("service")?;
    let service = served.serve("both", json!({}))?;
    served.expect_all("with both backends", &service, MANY, &from(&["near", "far"]))?;
    served.serve("both", json!({ "selector": { "at": "far", "app": "backend" } }))?;
    served.expect_all("with the far backend alone", &service, MANY, &from(&["far"]))
}

#[test]
fn the_ports_of_a_pods_node_and_external_addresses_reach_a_service_and_are_no_way_round_policy() -> Result<()> {
    let served = start("outside")?;
    let mut addresses = served.balanced("outside", 10, &json!({}))?;
    let by_addresses = targets(&addresses, SERVICE_TCP, SERVICE_UDP);
    let expect = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        let asked = each(served.askers(), answers, |client| Ok([by_addresses.clone(), served.at_node("outside", &client.node)?].concat()))?;
        served.expect_each(&format!("{when}, by external addresses and the ports of the client's node"), count, &asked)
    };
    expect("without a policy", MANY, &from(&["near", "far"]))?;
    policy(&served.namespace, "isolated", &to_backends(&json!([])))?;
    expect("isolated", 1, &[Silent])?;
    served.namespace.run(&["delete", "networkpolicy", "isolated"])?;

    // Nor do they lead out: whom a client may ask is a matter of backends, not of addresses.
    for client in served.askers() {
        addresses.extend(node_addresses(served.cluster(), &client.node, client)?);
    }
    clients_send(&served.namespace, &json!([{ "to": blocks(&addresses) }]))?;
    expect("out to the addresses, behind which are backends", 1, &[Silent])?;
    clients_send(&served.namespace, &json!([{ "to": [pods("backend", "near"), pods("backend", "far")] }]))?;
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
    served.expect_all("after a pod was chosen", &service, 3, &from(&["far"]))?;
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
    let expect = |when: &str, who: &dyn Fn(&Pod) -> bool, to_near: [bool; 2], to_far: [bool; 2]| -> Result<()> {
        for (service, name, [tcp, udp]) in [(&near, "near", to_near), (&far, "far", to_far)] {
            for (way, is_open) in [(Way::Tcp, tcp), (Way::Udp, udp)] {
                let (open, shut): (Vec<&Pod>, Vec<&Pod>) = served.askers().partition(|client| is_open && who(client));
                for (clients, count, answers) in [(open, 3, from(&[name])), (shut, 1, vec![Silent])] {
                    served.expect_each(when, count, &each(clients, &answers, |_| Ok(by(service, way)))?)?;
                }
            }
        }
        Ok(())
    };
    let all = [true, true];
    let none = [false, false];
    let every = |_: &Pod| true;
    expect("without a policy", &every, all, all)?;

    let out = |to: &Value, ports: &Value| clients_send(&served.namespace, &json!([{ "to": to, "ports": ports }]));
    let backends = json!([pods("backend", "near"), pods("backend", "far")]);
    let ports = |tcp: u16, udp: u16| json!([{ "port": tcp }, { "port": udp, "protocol": "UDP" }]);
    out(&json!([pods("backend", "near")]), &ports(TCP_PORT, UDP_PORT))?;
    expect("out to the near backend's ports", &every, all, none)?;
    out(&backends, &ports(SERVICE_TCP, SERVICE_UDP))?;
    expect("out to the service's ports, where no backend listens", &every, none, none)?;
    // Port 80 of the one, port 8080 of the other.
    out(&backends, &json!([{ "port": "web" }]))?;
    expect("out to a port by the name that it has at each backend", &every, [true, false], [true, false])?;
    let addresses: Vec<IpAddr> = near.iter().chain(&far).map(|target| target.to.ip()).collect();
    clients_send(&served.namespace, &json!([{ "to": blocks(&addresses) }]))?;
    expect("out to blocks of the cluster IPs", &every, none, none)?;
    served.namespace.run(&["delete", "networkpolicy", "clients"])?;

    // The backends see who asks.
    policy(&served.namespace, "backends", &to_backends(&json!([{ "from": [pods("client", "far")] }])))?;
    expect("in from the far client", &|client| *client == served.clients[1], all, all)
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
    policy(&served.namespace, "isolated", &to_backends(&json!([])))?;
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
            let probes = served.askers().flat_map(|client| addresses.iter().map(move |address| probe(client, address))).collect();
            let came = run_all(served.cluster(), probes).into_iter().filter(|(_, outcome)| *outcome != wanted);
            Ok(came.map(|(probe, outcome)| format!("{probe}: {outcome}, not {wanted}")).collect())
        })
    };
    expect("without a policy", Outcome::Reached)?;

    clients_send(&served.namespace, &json!([]))?;
    expect("with nothing allowed", Outcome::Silent)?;
    // Its endpoints are processes of nodes.
    let selector = "kubernetes.io/service-name=kubernetes";
    let slices = served.cluster().json(&["get", "endpointslices", "--namespace", "default", "--selector", selector])?;
    let mut rules = Vec::new();
    for slice in items(&slices) {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let addresses: Vec<IpAddr> = endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok()).collect();
        rules.push(json!({ "to": blocks(&addresses), "ports": [{ "port": slice["ports"][0]["port"] }] }));
    }
    clients_send(&served.namespace, &json!(rules))?;
    expect("with its nodes' addresses and their port allowed", Outcome::Reached)
}
