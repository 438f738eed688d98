//! Services, as pods use them, and clients outside: over both families, TCP and UDP, from pods of two nodes and from this machine to backends on both nodes.

use anyhow::{Context, Result};
use palisade_e2e::cluster::items;
use palisade_e2e::pod::{IMAGE, Pod, TCP_PORT, UDP_PORT};
use palisade_e2e::probe::{Outcome, Probe, run_all};
use palisade_e2e::request::Answer::{self, From, Refused, Silent};
use palisade_e2e::request::{Said, Target, Way, page};
use palisade_e2e::scene::policy;
use palisade_e2e::service::{
    SERVICE_TCP, SERVICE_UDP, Served, backend, by, cluster_ips, expect_outside, from, named_ports, node_addresses, soon, targets,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// How many requests show who is behind a service: with two backends, one is missed by chance once in half a thousand million times.
const MANY: u32 = 30;
/// Longer than an answer takes on a machine that is busy, and shorter than any time after which somebody tries again: a second.
const AT_ONCE: Duration = Duration::from_millis(900);
/// For how long a pod of the rolling update serves after it was told to end.
const DRAIN: Duration = Duration::from_secs(8);
/// How long the cluster's DNS may take to start.
const DNS_STARTS: &str = "--timeout=120s";

fn start(purpose: &str) -> Result<Served> {
    Served::start(purpose, env!("CARGO_BIN_EXE_prober").as_ref())
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
    Ok(())
}

#[test]
fn every_node_serves_node_ports_to_the_outside_and_policy_is_judged_on_the_backend() -> Result<()> {
    let served = start("from-outside")?;
    served.serve("open", json!({ "type": "NodePort" }))?;
    let by_nodes: Vec<Target> = served.at_nodes("open")?.into_iter().flat_map(|(_, targets)| targets).collect();
    expect_outside("by the ports of every node", &by_nodes, MANY, &from(&["near", "far"]))?;
    let isolated = json!({ "podSelector": { "matchLabels": { "app": "backend" } }, "policyTypes": ["Ingress"] });
    policy(&served.namespace, "isolated", &isolated)?;
    expect_outside("with backends that nobody may reach", &by_nodes, 1, &[Silent])?;
    served.namespace.run(&["delete", "networkpolicy", "isolated"])?;
    expect_outside("without the policy", &by_nodes, MANY, &from(&["near", "far"]))?;
    served.serve("open", json!({ "type": "NodePort", "selector": { "chosen": "yes" } }))?;
    expect_outside("without endpoints", &by_nodes, 3, &[Refused])?;
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
        for client in &served.clients {
            if client.node == *node {
                served.expect(&format!("pods of {node}, which come from inside"), client, targets, 3, &from(&["far"]))?;
            }
        }
    }
    let (_, of_backend) = by_nodes.iter().find(|(node, _)| *node == backend.node).context("the backend's node")?;
    for target in by(of_backend, Way::Tcp) {
        let said = page(target.to, "/clientip", AT_ONCE)?;
        assert_eq!(said.body, said.from.to_string(), "by {target} the backend sees another client");
    }

    // What a load balancer asks.
    let service = served.cluster().json(&["get", "service", "--namespace", &served.namespace.name, "local"])?;
    let port = u16::try_from(service["spec"]["healthCheckNodePort"].as_u64().context("no healthCheckNodePort")?)?;
    let healthy = |node: &str| -> Result<Vec<(u16, Value)>> {
        let addresses = node_addresses(served.cluster(), node, &served.clients[0])?;
        let pages = addresses.into_iter().map(|address| page((address, port).into(), "/healthz", AT_ONCE));
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
fn a_host_port_leads_to_its_pod_from_outside_and_from_pods() -> Result<()> {
    const HOST_PORTS: [u16; 2] = [18_080, 18_053];
    let served = start("host-port")?;
    let node = &served.clients[1].node;
    let mut pod = backend("hosted", node, 8080);
    for (index, port) in HOST_PORTS.into_iter().enumerate() {
        pod["spec"]["containers"][0]["ports"][index]["hostPort"] = json!(port);
    }
    palisade_e2e::pod::start(&served.namespace, &[pod])?;
    let targets = targets(&node_addresses(served.cluster(), node, &served.clients[0])?, HOST_PORTS[0], HOST_PORTS[1]);
    expect_outside("by the host ports", &targets, 3, &from(&["hosted"]))?;
    // A pod's own node is where the host port is; what other nodes' pods send comes from outside of that node.
    for client in &served.clients {
        served.expect("by the host ports", client, &targets, 3, &from(&["hosted"]))?;
    }
    served.namespace.run(&["delete", "pod", "hosted"])?;
    expect_outside("after the pod went", &targets, 1, &[Refused])
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let served = start("nobody")?;
    let service = served.serve("nobody", json!({ "selector": { "chosen": "yes" } }))?;
    let refused_at_once = |when: &str| -> Result<()> {
        for client in &served.clients {
            served.expect(when, client, &service, 3, &[Refused])?;
            for said in served.ask(client, &service, 3)? {
                assert!(said.after < AT_ONCE, "{when}, {}: {said}", client.name);
            }
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
    let own = |at: &str| served.serve(at, json!({ "selector": { "app": "backend", "at": at } }));
    let services = [own("near")?, own("far")?];
    policy(&served.namespace, "isolated", &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))?;
    for (index, backend) in served.backends.iter().enumerate() {
        served.expect("what is isolated reaches itself", backend, &services[index], 3, &from(&[&backend.name]))?;
        served.expect("and no other, through the other's service", backend, &services[1 - index], 1, &[Silent])?;
        served.expect("and nobody else reaches it", &served.clients[index], &services[index], 1, &[Silent])?;
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

#[test]
fn session_affinity_keeps_a_client_with_its_backend() -> Result<()> {
    let served = start("affinity")?;
    let service = served.serve("kept", json!({}))?;
    let client = &served.clients[0];
    served.expect("without affinity", client, &service, MANY, &from(&["near", "far"]))?;
    served.serve("kept", json!({ "sessionAffinity": "ClientIP" }))?;
    // Each frontend remembers for itself.
    let kept_by = |target: &Target| -> Result<String> {
        let mut kept: Option<String> = None;
        soon("with affinity", || {
            let said = served.ask(client, &[*target], MANY)?;
            let came: BTreeSet<&Answer> = said.iter().map(|said| &said.answer).collect();
            match came.iter().collect::<Vec<_>>()[..] {
                [From(name)] if kept.as_ref().is_none_or(|kept| kept == name) => kept = Some(name.clone()),
                _ => {
                    kept = None;
                    return Ok(vec![format!("{target}: {came:?}")]);
                }
            }
            Ok(vec![])
        })?;
        kept.context("nobody answered")
    };
    let kept: Vec<(Target, String)> = service.iter().map(|target| kept_by(target).map(|name| (*target, name))).collect::<Result<_>>()?;

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
    let service = served.serve("rolling", json!({ "selector": { "app": "rolling" } }))?;
    let names_now = || -> Result<Vec<String>> {
        let list = cluster.json(&["get", "pods", "--namespace", &served.namespace.name, "--selector", "app=rolling"])?;
        Ok(items(&list).filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
    };
    let mut names: BTreeSet<String> = names_now()?.into_iter().collect();
    let first: Vec<Answer> = names.iter().cloned().map(From).collect();
    for client in &served.clients {
        served.expect("before the update", client, &service, MANY, &first)?;
        served.begin_load(client, &service)?;
    }
    for _ in 0..2 {
        served.namespace.run(&["rollout", "restart", "deployment", "rolling"])?;
        rolled_out()?;
        names.extend(names_now()?);
    }
    // What ends last has ended by then.
    std::thread::sleep(DRAIN + Duration::from_secs(4));
    let mut answered_by = BTreeSet::new();
    for client in &served.clients {
        let said = served.end_load(client)?;
        let failed: Vec<String> = said.iter().filter(|said| !matches!(said.answer, From(_))).map(Said::to_string).collect();
        assert!(failed.is_empty(), "{} of {} requests of {} failed:\n{}", failed.len(), said.len(), client.name, failed.join("\n"));
        for target in &service {
            let count = said.iter().filter(|said| said.target == *target).count();
            assert!(count > 100, "{} asked {target} only {count} times: that shows nothing", client.name);
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

#[test]
fn names_are_resolved_by_the_clusters_dns_where_policy_lets_them() -> Result<()> {
    let served = start("dns")?;
    served.cluster().run(&["rollout", "status", "--namespace", "kube-system", "deployment", "coredns", DNS_STARTS])?;
    served.serve("named", json!({}))?;
    let expect = |when: &str, wanted: bool| {
        soon(when, || {
            let mut wrong = Vec::new();
            for client in &served.clients {
                // Go's own resolver, by what kubelet wrote into /etc/resolv.conf.
                let name = format!("named.{}.svc:{SERVICE_TCP}", served.namespace.name);
                let script = format!("timeout 8 /agnhost connect --timeout=2s {name} 2>&1 && echo REACHED || echo failed");
                let said = client.shell(served.cluster(), &script)?;
                if said.contains("REACHED") != wanted {
                    wrong.push(format!("{} -> {name}: {said}", client.name));
                }
            }
            Ok(wrong)
        })
    };
    expect("without a policy", true)?;
    let to_backends = json!({ "to": [pods("backend", "near"), pods("backend", "far")] });
    let egress =
        |rules: Value| json!({ "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"], "egress": rules });
    policy(&served.namespace, "clients", &egress(json!([to_backends])))?;
    expect("with the backends allowed, and DNS not", false)?;
    let dns = json!({
        "to": [{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
            "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
        }],
        "ports": [{ "port": 53 }, { "port": 53, "protocol": "UDP" }],
    });
    policy(&served.namespace, "clients", &egress(json!([to_backends, dns])))?;
    expect("with DNS allowed, by its pods", true)?;
    policy(&served.namespace, "clients", &egress(json!([dns])))?;
    expect("with DNS allowed, and the backends not", false)
}
