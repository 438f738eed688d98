//! Names of services, by the cluster's DNS.

use crate::{pods, start};
use anyhow::{Context, Result};
use palisade_e2e::agent::Agent;
use palisade_e2e::pod::{Pod, UDP_PORT};
use palisade_e2e::request::Answer::{Refused, Silent};
use palisade_e2e::request::{Target, Way};
use palisade_e2e::scene::clients_send;
use palisade_e2e::service::{SERVICE_TCP, Served, cluster_ips, from, soon, targets};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// How long the cluster's DNS may take to start.
const DNS_STARTS: &str = "--timeout=120s";
const DNS_PORT: u16 = 53;

/// The cluster's DNS, asked by datagrams or by connections, by each family of its service: kubeadm gives it one, `kind/up` both where the cluster has them.
fn servers(served: &Served, way: Way) -> Result<Vec<Target>> {
    let addresses = cluster_ips(served.cluster(), "kube-system", "kube-dns")?;
    Ok(addresses.into_iter().map(|address| Target { way, to: SocketAddr::new(address, DNS_PORT) }).collect())
}

/// The whole name of a service: with the domain of the cluster, which kubelet has told the pod.
fn whole_name(served: &Served, client: &Pod, service: &str) -> Result<String> {
    let resolv = client.shell(served.cluster(), "cat /etc/resolv.conf")?;
    let search = resolv.lines().find_map(|line| line.strip_prefix("search ")).context("a pod that searches for names nowhere")?;
    let domain = search.split_whitespace().find(|domain| domain.starts_with("svc.")).context("a pod that searches for no services")?;
    Ok(format!("{service}.{}.{domain}", served.namespace.name))
}

/// A headless service is a name and nothing else: it stands for the pods' own addresses, which answer at their own ports.
fn expect_headless(served: &Served) -> Result<()> {
    served.apply("headless", json!({ "clusterIP": "None" }))?;
    let addresses: BTreeSet<IpAddr> = served.backends.iter().flat_map(|backend| backend.addresses.iter().copied()).collect();
    for client in &served.clients {
        let name = whole_name(served, client, "headless")?;
        for server in [servers(served, Way::Udp)?, servers(served, Way::Tcp)?].concat() {
            soon(&format!("{server} about {name}"), || {
                let found = served.look_up(client, server, &name)?;
                Ok(if found.as_ref() == Ok(&addresses) { vec![] } else { vec![format!("{found:?}, not {addresses:?}")] })
            })?;
        }
    }
    for backend in &served.backends {
        let (web, _) = backend.ports[0];
        let own = targets(&backend.addresses, web, UDP_PORT);
        served.expect_all("by the addresses of a headless service", &own, 3, &from(&[&backend.name]))?;
        // Told by the pod itself: nobody listens at the service's port, and nobody leads from there to the pod's.
        let of_service = backend.addresses.iter().map(|address| Target { way: Way::Tcp, to: SocketAddr::new(*address, SERVICE_TCP) });
        served.expect_all("by the port of a headless service", &of_service.collect::<Vec<_>>(), 3, &[Refused])?;
    }
    let object = format!("{}/headless", served.namespace.name);
    for agent in Agent::all(served.cluster())? {
        let known = agent.ask(&["service", "get", &object])?;
        let frontends = known[0]["frontends"].as_array().map_or(0, Vec::len);
        assert!(known[0]["kind"] == "headless" && frontends == 0, "of {object}, {} says {known}", agent.node);
    }
    Ok(())
}

#[test]
fn names_are_resolved_by_the_clusters_dns_where_policy_lets_them_and_headless_services_are_their_pods() -> Result<()> {
    let served = start("dns")?;
    served.cluster().run(&["rollout", "status", "--namespace", "kube-system", "deployment", "coredns", DNS_STARTS])?;
    let of_service: BTreeSet<IpAddr> = served.make("named", json!({}))?.into_iter().collect();
    let expect_reached = |when: &str, wanted: bool| {
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
    let expect_name = |when: &str, ways: [(Way, bool); 2]| -> Result<()> {
        for client in &served.clients {
            let name = whole_name(&served, client, "named")?;
            for (way, open) in ways {
                let expected = if open { Ok(of_service.clone()) } else { Err(Silent) };
                for server in servers(&served, way)? {
                    soon(&format!("{when}, {} -> {server}", client.name), || {
                        let found = served.look_up(client, server, &name)?;
                        Ok(if found == expected { vec![] } else { vec![format!("{found:?}, not {expected:?}")] })
                    })?;
                }
            }
        }
        Ok(())
    };
    expect_reached("without a policy", true)?;
    expect_name("without a policy", [(Way::Udp, true), (Way::Tcp, true)])?;
    expect_headless(&served)?;

    let to_backends = json!({ "to": [pods("backend", "near"), pods("backend", "far")] });
    clients_send(&served.namespace, &json!([to_backends]))?;
    expect_reached("with the backends allowed, and DNS not", false)?;
    let dns = |ports: Value| {
        json!({
            "to": [{
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
                "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
            }],
            "ports": ports,
        })
    };
    let [by_tcp, by_udp] = [json!({ "port": DNS_PORT }), json!({ "port": DNS_PORT, "protocol": "UDP" })];
    clients_send(&served.namespace, &json!([to_backends, dns(json!([by_tcp]))]))?;
    expect_name("with DNS allowed by TCP alone", [(Way::Udp, false), (Way::Tcp, true)])?;
    let dns = dns(json!([by_tcp, by_udp]));
    clients_send(&served.namespace, &json!([to_backends, dns]))?;
    expect_reached("with DNS allowed, by its pods", true)?;
    clients_send(&served.namespace, &json!([dns]))?;
    expect_reached("with DNS allowed, and the backends not", false)?;
    for backend in &served.backends {
        let own = targets(&backend.addresses, backend.ports[0].0, UDP_PORT);
        served.expect_all("by the addresses of a headless service, the backends not allowed", &own, 1, &[Silent])?;
    }
    Ok(())
}
