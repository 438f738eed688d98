//! Clients outside the cluster: this machine, and for each node the pods and processes of the others. Node ports and host ports by which they
//! come in, and whom the outside sees where pods go out.

use crate::{MANY, prober, start};
use anyhow::{Context, Result};
use palisade_e2e::listener::{self, Listener};
use palisade_e2e::pod::Pod;
use palisade_e2e::request::Answer::{Refused, Silent};
use palisade_e2e::request::{Answer, Target, Way, page};
use palisade_e2e::requirement::requires_root;
use palisade_e2e::route::own_address;
use palisade_e2e::scene::{blocks, clients_send, policy, to_backends};
use palisade_e2e::service::{BACKEND_SCTP, LONG_PATIENCE, by, each, expect_outside, from, node_addresses, soon};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// To each node the pods and the processes of the others are clients outside, too.
#[test]
fn every_node_serves_node_ports_to_the_outside_and_policy_is_judged_on_the_backend() -> Result<()> {
    let served = start("from-outside")?;
    let processes = served.processes(prober())?;
    let askers: Vec<&Pod> = served.askers().chain(&processes).collect();
    served.serve("open", json!({ "type": "NodePort" }))?;
    let at_nodes = served.at_nodes("open")?;
    let ports_of = |of: &dyn Fn(&str) -> bool| -> Vec<Target> {
        at_nodes.iter().filter(|(node, _)| of(node)).flat_map(|(_, targets)| targets.clone()).collect()
    };
    let by_nodes = ports_of(&|_| true);
    let expect = |when: &str, count: u32, answers: &[Answer]| -> Result<()> {
        expect_outside(&format!("{when}, by the ports of every node"), &by_nodes, count, answers)?;
        let asked = each(askers.iter().copied(), answers, |asker| Ok(ports_of(&|node| node != asker.node)))?;
        served.expect_each(&format!("{when}, by the ports of other nodes"), count, &asked)
    };
    expect("without a policy", MANY, &from(&["near", "far"]))?;
    policy(&served.namespace, "isolated", &to_backends(&json!([])))?;
    expect("with backends that nobody may reach", 1, &[Silent])?;
    served.namespace.run(&["delete", "networkpolicy", "isolated"])?;
    expect("without the policy", MANY, &from(&["near", "far"]))?;

    // At the node that it asks a pod is itself, and a process its node; what is sent on to a third node comes from the one that sends it on.
    let [near_node, far_node] = [0, 1].map(|index| served.backends[index].node.as_str());
    served.serve("open", json!({ "type": "NodePort", "selector": { "app": "backend", "at": "far" } }))?;
    let expect_let_in = |when: &str, is_let_in: &dyn Fn(&Pod, &str) -> bool| -> Result<()> {
        let mut asked = Vec::new();
        for asker in &askers {
            for (open, answers) in [(true, from(&["far"])), (false, vec![Silent])] {
                let targets = ports_of(&|node| node != asker.node && is_let_in(asker, node) == open);
                if !targets.is_empty() {
                    asked.push((*asker, targets, answers));
                }
            }
        }
        served.expect_each(when, 1, &asked)
    };
    let is_pod = |asker: &Pod| served.askers().any(|client| client == asker);
    policy(&served.namespace, "chosen", &to_backends(&json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }])))?;
    expect_let_in("with the clients' pods let in", &|asker, asked| is_pod(asker) && asked == far_node)?;
    let near_addresses = node_addresses(served.cluster(), near_node, &served.clients[0])?;
    policy(&served.namespace, "chosen", &to_backends(&json!([{ "from": blocks(&near_addresses) }])))?;
    expect_let_in("with the near node let in", &|asker, asked| {
        let seen = if asked == far_node { (!is_pod(asker)).then_some(asker.node.as_str()) } else { Some(asked) };
        seen == Some(near_node)
    })?;
    served.namespace.run(&["delete", "networkpolicy", "chosen"])?;

    // The node that is asked chooses the backend: what a pod may send is judged by that node's address.
    clients_send(&served.namespace, &json!([{ "to": [{ "podSelector": { "matchLabels": { "app": "backend" } } }] }]))?;
    expect_let_in("out to the backends, of clients", &|asker, _| !is_pod(asker))?;
    let far_addresses = node_addresses(served.cluster(), far_node, &served.clients[0])?;
    clients_send(&served.namespace, &json!([{ "to": blocks(&far_addresses) }]))?;
    expect_let_in("out to the far node, of clients", &|asker, asked| !is_pod(asker) || asked == far_node)?;
    served.namespace.run(&["delete", "networkpolicy", "clients"])?;

    served.serve("open", json!({ "type": "NodePort", "selector": { "chosen": "yes" } }))?;
    expect("without endpoints", 3, &[Refused])?;
    served.serve("open", json!({ "type": "ClusterIP" }))?;
    // By the kernels of the nodes, which tell of datagrams now and then only (`icmp_ratelimit`).
    expect_outside("where they are no node ports any more", &by(&by_nodes, Way::Tcp), 1, &[Refused])
}

#[test]
fn where_the_external_policy_is_local_the_nodes_with_backends_serve_the_outside_and_backends_see_who_asks() -> Result<()> {
    let served = start("local")?;
    let far = json!({ "app": "backend", "at": "far" });
    served.serve("local", json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": far }))?;
    let [_, backend] = &served.backends;
    let by_nodes = served.at_nodes("local")?;
    for (node, targets) in &by_nodes {
        let expected = if *node == backend.node { from(&["far"]) } else { vec![Silent] };
        expect_outside(&format!("by {node}"), targets, 3, &expected)?;
        for client in served.askers() {
            if client.node == *node {
                served.expect(&format!("pods of {node}, which come from inside"), client, targets, 3, &from(&["far"]))?;
            }
        }
    }
    let (_, of_backend) = by_nodes.iter().find(|(node, _)| *node == backend.node).context("the backend's node")?;
    for target in by(of_backend, Way::Tcp) {
        let said = page(target.to, "/clientip", LONG_PATIENCE)?;
        assert_eq!(said.body, said.from.to_string(), "by {target} the backend sees another client");
    }

    // What a load balancer asks.
    let service = served.cluster().json(&["get", "service", "--namespace", &served.namespace.name, "local"])?;
    let port = u16::try_from(service["spec"]["healthCheckNodePort"].as_u64().context("no healthCheckNodePort")?)?;
    let healthy = |node: &str| -> Result<Vec<(u16, Value)>> {
        let addresses = node_addresses(served.cluster(), node, &served.clients[0])?;
        let pages = addresses.into_iter().map(|address| page((address, port).into(), "/healthz", LONG_PATIENCE));
        pages.map(|page| page.map_err(Into::into).and_then(|page| Ok((page.code, serde_json::from_str(&page.body)?)))).collect()
    };
    let expect = |when: &str, here: usize| {
        soon(when, || {
            let mut wrong = Vec::new();
            for (node, _) in &by_nodes {
                let count = if *node == backend.node { here } else { 0 };
                let expected = json!({
                    "service": { "namespace": served.namespace.name, "name": "local" },
                    "localEndpoints": count,
                    "serviceProxyHealthy": true,
                });
                let code = if count > 0 { 200 } else { 503 };
                match healthy(node) {
                    Ok(said) if said.iter().all(|said| *said == (code, expected.clone())) => {}
                    said => wrong.push(format!("{node}: {said:?}, not {code} and {expected}")),
                }
            }
            Ok(wrong)
        })
    };
    expect("with a backend on one node", 1)?;
    served.serve("local", json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": { "chosen": "yes" } }))?;
    expect("without backends", 0)
}

#[test]
fn a_host_port_leads_to_its_pod_from_outside_and_from_pods_where_policy_lets_them() -> Result<()> {
    /// By TCP, UDP and SCTP.
    const HOST_PORTS: [u16; 3] = [18_080, 18_053, 18_132];
    let served = start("host-port")?;
    let [own, other] = &served.clients;
    let [plain, by_sctp] = served.host(&own.node, HOST_PORTS, prober())?;
    let all = [plain.as_slice(), &by_sctp].concat();
    let from_here = if requires_root("an association from outside") { &all } else { &plain };
    let hosted = from(&["hosted"]);
    expect_outside("by the host ports", from_here, 3, &hosted)?;
    // A pod's own node is where the host port is; what other nodes' pods send comes from outside of that node.
    served.expect_all("by the host ports", &all, 3, &hosted)?;

    // The pod sees who asks, and its own ports are what is open.
    let rule = |from: &Value, ports: &Value| {
        let rules = if from.is_null() { json!([]) } else { json!([{ "from": from, "ports": ports }]) };
        policy(
            &served.namespace,
            "hosted",
            &json!({ "podSelector": { "matchLabels": { "at": "hosted" } }, "policyTypes": ["Ingress"], "ingress": rules }),
        )
    };
    let expect_clients = |when: &str, [of_own, of_other]: [&[Answer]; 2], targets: &[Target]| {
        let asked = [(own, targets.to_vec(), of_own.to_vec()), (other, targets.to_vec(), of_other.to_vec())];
        served.expect_each(when, 1, &asked)
    };
    rule(&Value::Null, &Value::Null)?;
    expect_clients("with a pod that nobody may reach", [&[Silent]; 2], &all)?;
    expect_outside("with a pod that nobody may reach", from_here, 1, &[Silent])?;
    let of_pod = json!([{ "port": "web" }, { "port": BACKEND_SCTP, "protocol": "SCTP" }]);
    rule(&json!([{ "podSelector": { "matchLabels": { "app": "client", "at": "far" } } }]), &of_pod)?;
    let open: Vec<Target> = [by(&all, Way::Tcp), by_sctp.clone()].concat();
    expect_clients("with the other node's client let in", [&[Silent], &hosted], &open)?;
    expect_clients("with the other node's client let in, by a port that is not open", [&[Silent]; 2], &by(&all, Way::Udp))?;
    expect_outside("with the other node's client let in", from_here, 1, &[Silent])?;
    let addresses = node_addresses(served.cluster(), &own.node, other)?;
    let here: Vec<IpAddr> = addresses.iter().map(|address| own_address(*address)).collect::<Result<_>>()?;
    rule(&blocks(&here), &of_pod)?;
    let (open, shut): (Vec<Target>, Vec<Target>) = from_here.iter().partition(|target| open.contains(target));
    expect_outside("with this machine let in", &open, 3, &hosted)?;
    expect_outside("with this machine let in, by a port that is not open", &shut, 1, &[Silent])?;
    expect_clients("with this machine let in", [&[Silent]; 2], &all)?;

    served.namespace.run(&["delete", "pod", "hosted"])?;
    // By the kernel of the node, which tells of datagrams now and then only (`icmp_ratelimit`).
    expect_outside("after the pod went", &by(&plain, Way::Tcp), 1, &[Refused])
}

/// What the chart's `masquerade.exclude` names sees pods themselves; clusters of these tests name nothing.
#[test]
fn the_outside_sees_the_node_of_a_pod() -> Result<()> {
    let served = start("masquerade")?;
    for client in &served.clients {
        let of_node = node_addresses(served.cluster(), &client.node, client)?;
        for address in &of_node {
            let outside = Listener::start(own_address(*address)?)?;
            served.expect("outside", client, outside.targets(), 3, &from(&[listener::NAME]))?;
            let seen = outside.seen();
            let ways: BTreeSet<&str> = seen.iter().map(|(way, _)| *way).collect();
            assert_eq!(ways, BTreeSet::from(["tcp", "udp"]));
            assert!(seen.iter().all(|(_, from)| of_node.contains(from)), "{} of {of_node:?} was seen as {seen:?}", client.name);
        }
    }
    Ok(())
}
