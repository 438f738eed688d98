//! The agent with a directory as its source: real programs, real interfaces, real sockets.

mod node;

use node::{Node, POLICY, SHOP, node};
use palisade_cni::link::Netlink;
use palisade_datapath_core::epoch;
use palisade_loader::{PinDir, Role, pinned_links};
use palisade_protocol::{
    Attachment, Call, ClientError, EndpointSpec, EndpointStatus, ErrorKind, Family, HostPort, Release, Reply, Status, Transport,
    VerdictName,
};
use palisade_runtime::AgentError;
use palisade_test_support::container_id;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const WEB: (&str, &str) = ("shop", "web");
const FRIEND: (&str, &str) = ("shop", "client");
const STRANGER: (&str, &str) = ("other", "client");

/// Wires the three pods; where the web server is reached, one address per family.
fn wire(node: &Node<'_>) -> Vec<SocketAddr> {
    let web = node.add(WEB.0, WEB.1);
    node.add(FRIEND.0, FRIEND.1);
    node.add(STRANGER.0, STRANGER.1);
    web.into_iter().map(|address| SocketAddr::new(address, 80)).collect()
}

fn unwire(node: &Node<'_>) {
    for (namespace, pod) in [WEB, FRIEND, STRANGER] {
        node.remove(namespace, pod);
    }
}

fn attachment((namespace, pod): (&str, &str)) -> Attachment {
    Attachment { container_id: container_id(namespace, pod), interface: "eth0".to_owned() }
}

#[test]
fn a_realised_pod_is_reached_by_those_whom_its_policy_allows_and_by_nobody_else() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        for at in wire(node) {
            let _web = node.listen(WEB, at);
            assert!(node.reaches(FRIEND, at), "{at}");
            assert!(!node.reaches(STRANGER, at), "{at}");
        }
        let allowed = node.explain("shop/client", "shop/web", 80, Family::Ipv6);
        assert_eq!(
            (allowed.ingress.verdict, allowed.ingress.reason.as_str()),
            (VerdictName::Allow, "NetworkPolicy shop/from-shop ingress rule 0")
        );
        let refused = node.explain("other/client", "shop/web", 80, Family::Ipv4);
        assert_eq!(refused.ingress.verdict, VerdictName::DefaultDeny);
        assert!(refused.ingress.reason.contains("shop/from-shop"), "{refused:?}");
        for pod in [WEB, FRIEND, STRANGER] {
            assert!(matches!(node.call(Call::Check(attachment(pod))), Ok(Reply::Done)));
        }
        unwire(node);
        assert_eq!(node.status().counts.endpoints, 0);
    });
}

#[test]
fn an_edit_of_the_directory_flips_the_verdict_of_established_connections_too() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let at = wire(node)[0];
        let web = node.listen(WEB, at);
        let mut sent = node.namespace(FRIEND.0, FRIEND.1).enter(|| TcpStream::connect(at)).unwrap().unwrap();
        let mut received = web.accept().unwrap().0;
        received.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut byte = [0];
        sent.write_all(b"a").unwrap();
        received.read_exact(&mut byte).unwrap();

        node.write(
            "policy.yaml",
            &POLICY.replace("{podSelector: {}}", "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}"),
        );
        node.wait_for_reach(STRANGER, at, true);
        assert!(!node.reaches(FRIEND, at));
        sent.write_all(b"b").unwrap();
        assert!(received.read_exact(&mut byte).is_err(), "an established connection outlived the rule that allowed it");

        node.delete("policy.yaml");
        node.wait_for_reach(FRIEND, at, true);
        // Nothing of the stalled connection was reset: it goes on.
        received.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        received.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        unwire(node);
    });
}

#[test]
fn a_broken_file_keeps_the_last_good_state_and_is_named_in_the_status() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let at = wire(node)[0];
        let _web = node.listen(WEB, at);
        node.write("policy.yaml", &POLICY.replace("port: 80", "port: 70000"));
        let status = node.wait("the problem is shown", |status| !status.ready);
        let problem = status.problems.join("\n");
        assert!(problem.contains("policy.yaml:9") && problem.contains("port") && problem.contains("70000"), "{problem}");
        assert!(status.refuses_pods.is_empty(), "pods are connected under what was read: {status:?}");
        assert_eq!(node.host.cni("STATUS", WEB.0, WEB.1).0, 0);
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        node.write("policy.yaml", POLICY);
        node.wait("the problem is gone", |status| status.ready);
        unwire(node);
    });
}

#[test]
fn a_policy_in_audit_mode_is_told_of_for_pods_that_come_after_it_and_after_a_restart() {
    let audited =
        POLICY.replace("{name: from-shop, namespace: shop}", "{name: from-shop, namespace: shop, annotations: {palisade.dev/mode: Audit}}");
    assert_ne!(audited, POLICY);
    node(&[("shop.yaml", SHOP), ("policy.yaml", &audited)], |node| {
        node.start();
        let at = wire(node)[0];
        let _web = node.listen(WEB, at);
        for restarted in [false, true] {
            if restarted {
                node.stop();
                node.start();
            }
            let mut observer = node.client();
            observer.stream(Call::Observe { allowed: false }).unwrap();
            assert!(matches!(observer.next_reply().unwrap(), Some(Reply::Done)));
            assert!(node.reaches(STRANGER, at), "it decides nothing");
            let event = loop {
                match observer.next_reply().unwrap() {
                    Some(Reply::Event(event)) if event.action == "audited" => break event,
                    Some(_) => {}
                    None => panic!("the agent hung up"),
                }
            };
            let would = event.audit.expect("what it would have decided").ingress;
            assert_eq!(would.verdict, VerdictName::DefaultDeny);
            assert!(would.reason.contains("shop/from-shop"), "{would:?}");
        }
        unwire(node);
    });
}

#[test]
fn a_restart_with_an_unchanged_model_changes_no_row() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let at = wire(node)[0];
        let _web = node.listen(WEB, at);
        // A history, so that the numbers are not those of a first compilation.
        node.write("policy.yaml", &POLICY.replace("port: 80", "port: 81"));
        node.wait_for_reach(FRIEND, at, false);
        node.write("policy.yaml", POLICY);
        node.wait_for_reach(FRIEND, at, true);
        node.stop();
        let before = node.rows();
        assert!(before.text.iter().any(|row| row.starts_with("policy")), "{before:?}");
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at), "without an agent");
        node.start();
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at), "with the next agent");
        node.stop();
        assert_eq!(node.rows(), before);
        node.start();
        unwire(node);
    });
}

/// While the epoch is that of a change under way no entry speaks, and each packet costs a verdict.
#[test]
fn a_change_that_the_last_agent_left_in_the_middle_is_over_once_the_next_one_is_ready() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        wire(node);
        node.stop();
        let left = node.rows();
        node.leave_in_the_middle_of_a_change();
        node.start();
        node.stop();
        let next = node.rows();
        assert_eq!((next.epoch, next.text), (epoch::next(left.epoch), left.text));
        node.start();
        unwire(node);
    });
}

#[test]
fn an_agent_without_its_numbers_writes_all_rows_anew_and_verdicts_stay() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let at = wire(node)[0];
        let _web = node.listen(WEB, at);
        node.stop();
        std::fs::write(node.host.run_dir().join("numbers.json"), "{ nonsense").unwrap();
        node.start();
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        let refused = node.explain("other/client", "shop/web", 80, Family::Ipv4);
        assert!(refused.ingress.reason.contains("shop/from-shop"), "{refused:?}");
        unwire(node);
    });
}

/// The plugin gives a link these addresses, the datapath refuses them: each has its own constant, which must agree.
#[test]
fn a_pod_does_not_reach_its_node_by_the_address_of_its_link() {
    node(&[("shop.yaml", SHOP)], |node| {
        node.start();
        wire(node);
        let _host = TcpListener::bind("0.0.0.0:8080").unwrap();
        let refused = |status: &Status| status.outcomes.iter().find(|it| it.outcome == "destination-foreign").unwrap().packets;
        assert_eq!(refused(&node.status()), 0);
        assert!(!node.reaches(FRIEND, "169.254.1.1:8080".parse().unwrap()));
        assert!(refused(&node.status()) > 0);
        unwire(node);
    });
}

#[test]
fn while_no_agent_runs_add_fails_with_11_and_del_works_and_the_next_agent_sweeps() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let at = wire(node)[0];
        node.stop();
        assert_eq!(node.add_in_vain("shop", "late")["code"], 11);
        node.remove(FRIEND.0, FRIEND.1);
        // An interface that vanishes without a DEL.
        node.host.remove_pod(&container_id(STRANGER.0, STRANGER.1)).unwrap();
        let names = |node: &Node<'_>| {
            Netlink::open().unwrap().links().unwrap().into_iter().filter(|link| link.name.starts_with("pal")).count() == 1
                && node.host.run_dir().exists()
        };
        for _ in 0..100 {
            if names(node) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        node.start();
        let status = node.status();
        assert_eq!(status.counts.endpoints, 1, "{status:?}");
        node.stop();
        let rows = node.rows();
        let count = |kind: &str| rows.text.iter().filter(|row| row.starts_with(kind)).count();
        assert_eq!((count("endpoint"), count("local")), (1, 2), "{rows:?}");
        assert_eq!(pinned_links(&PinDir::new(node.pin_dir()), Role::Endpoint).unwrap().len(), 1);
        node.start();
        let _web = node.listen(WEB, at);
        let (code, error) = node.host.cni("DEL", STRANGER.0, STRANGER.1);
        assert_eq!(code, 0, "{error}");
        node.remove(WEB.0, WEB.1);
    });
}

#[test]
fn a_pod_that_the_directory_does_not_know_is_refused_for_now() {
    node(&[("shop.yaml", SHOP)], |node| {
        node.start();
        let error = node.add_in_vain("shop", "nobody");
        assert_eq!(error["code"], 11, "{error}");
        assert!(error["msg"].as_str().unwrap().contains("shop/nobody"), "{error}");
    });
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused_and_the_first_lives_on() {
    node(&[("shop.yaml", SHOP)], |node| {
        node.start();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let refused = runtime.block_on(palisade_runtime::run(node.config(), std::future::pending()));
        assert!(matches!(refused, Err(AgentError::Running(_))), "{refused:?}");
        assert!(node.status().ready);
    });
}

#[test]
fn without_a_bpf_file_system_the_agent_says_so_and_refuses_pods() {
    node(&[("shop.yaml", SHOP)], |node| {
        let mut config = node.config();
        config.pin_dir = node.host.directory().join("plain");
        node.start_with(config);
        let status = node.wait("the problem is shown", |status| status.problems.iter().any(|problem| problem.contains("BPF file system")));
        assert!(!status.ready, "{status:?}");
        assert!(status.refuses_pods.iter().any(|problem| problem.contains("BPF file system")), "{status:?}");
        match node.call(Call::Node) {
            Err(ClientError::Refused(failure)) => assert_eq!(failure.kind, ErrorKind::TryAgain, "{failure}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(node.add_in_vain("shop", "web")["code"], 11);
    });
}

#[test]
fn a_policy_that_does_not_fit_is_refused_whole_and_others_go_on_changing() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        let mut config = node.config();
        (config.sizes.ports, config.sizes.limits.ports) = (4, 4);
        node.start_with(config);
        node.wait("ready", |status| status.ready);
        let at = wire(node)[0];
        let _web = node.listen(WEB, at);
        let many: String = (0..8).map(|index| format!("{{port: {}}},", 1000 + 2 * index)).collect();
        node.write("policy.yaml", &POLICY.replace("{port: 80}", &format!("{many}{{port: 81}}")));
        let status = node.wait("it is shown", |status| !status.refused.is_empty());
        assert!(status.ready, "{status:?}");
        let reason = &status.refused[0].reason;
        assert!(reason.contains("PORTS has room for 4 rows") && reason.contains("last good version"), "{status:?}");
        assert_eq!(status.refused[0].object, "shop/from-shop");
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        assert_eq!(node.explain("shop/client", "shop/web", 80, Family::Ipv4).ingress.verdict, VerdictName::Allow);
        // Other policies go on changing.
        let closing = |pods: &str| {
            format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: closing, namespace: shop}}, \
                 spec: {{podSelector: {pods}, policyTypes: [Egress]}}}}"
            )
        };
        node.write("closing.yaml", &closing("{}"));
        let status = node.wait("the other policy is known", |status| status.counts.policies == 2);
        assert_eq!(status.refused.len(), 1, "{status:?}");
        assert!(!node.reaches(FRIEND, at), "the other policy is in force");
        node.write("closing.yaml", &closing("{matchLabels: {app: none}}"));
        // A policy that is new and too large allows nothing to the pods that it selects.
        let large: String = (0..8).map(|index| format!("{{port: {}}},", 2000 + 2 * index)).collect();
        let large = POLICY.replace("from-shop", "large").replace("app: web", "app: client").replace("{port: 80}", &large);
        node.write("large.yaml", &large);
        let status = node.wait("the new one is refused too", |status| status.refused.len() == 2);
        assert!(
            status.refused.iter().any(|refused| refused.object == "shop/large" && refused.reason.contains("allows nothing")),
            "{status:?}"
        );
        assert_eq!(node.explain("shop/web", "shop/client", 2000, Family::Ipv4).ingress.verdict, VerdictName::DefaultDeny);
        node.write("large.yaml", &closing("{matchLabels: {app: none}}").replace("closing", "other"));
        node.write("policy.yaml", POLICY);
        node.wait("nothing is refused any more", |status| status.refused.is_empty() && status.ready);
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        unwire(node);
    });
}

#[test]
fn observers_see_refused_flows_with_names_and_the_rule() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let at = wire(node)[0];
        let mut observer = node.client();
        observer.stream(Call::Observe { allowed: true }).unwrap();
        assert!(matches!(observer.next_reply().unwrap(), Some(Reply::Done)));
        assert!(!node.reaches(STRANGER, at));
        let event = loop {
            match observer.next_reply().unwrap() {
                Some(Reply::Event(event)) if event.action == "dropped" => break event,
                Some(_) => {}
                None => panic!("the agent hung up"),
            }
        };
        assert_eq!((event.source.name.as_str(), event.destination.name.as_str()), ("other/client", "shop/web"));
        assert_eq!((event.destination.port, event.protocol.as_str()), (80, "TCP"));
        assert!(event.ingress.reason.contains("shop/from-shop"), "{event:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - event.time).abs() < 30.0, "{event:?}");
        drop(observer);
        unwire(node);
    });
}

/// Asks the agent's metrics server.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_and_readiness_are_served() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        let mut config = node.config();
        let address: SocketAddr = "127.0.0.1:9964".parse().unwrap();
        config.metrics = Some(address);
        node.start_with(config);
        node.wait("ready", |status| status.ready);
        let get = |path: &str| get(address, path);
        assert!(get("/readyz").starts_with("HTTP/1.1 200"), "{}", get("/readyz"));
        assert!(get("/healthz").starts_with("HTTP/1.1 200"));
        let metrics = get("/metrics");
        for line in [
            "palisade_ready 1",
            "palisade_map_room{map=\"POLICY\"} 256",
            "palisade_map_limit{map=\"POLICY\"} 1048576",
            "palisade_map_growths_total{map=\"POLICY\"} 0",
            "palisade_packets_total{outcome=\"ingress-default-denied\",passes=\"false\"} 0",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
        node.delete("shop.yaml");
        node.wait("not ready", |status| !status.ready);
        let readiness = get("/readyz");
        assert!(readiness.starts_with("HTTP/1.1 503") && readiness.contains("policy.yaml"), "{readiness}");
    });
}

#[test]
fn an_address_that_another_endpoint_has_is_refused() {
    node(&[("shop.yaml", SHOP)], |node| {
        node.start();
        let web: IpAddr = node.add(WEB.0, WEB.1)[0];
        node.add(FRIEND.0, FRIEND.1);
        let Ok(Reply::Endpoints(endpoints)) = node.call(Call::Endpoints) else { panic!("no endpoints") };
        let mut spec = endpoints.into_iter().find(|endpoint| endpoint.spec.pod == FRIEND.1).unwrap().spec;
        spec.addresses = vec![web];
        match node.call(Call::Realise(spec)) {
            Err(ClientError::Refused(failure)) => assert_eq!(failure.kind, ErrorKind::Invalid, "{failure}"),
            other => panic!("{other:?}"),
        }
        node.remove(WEB.0, WEB.1);
        node.remove(FRIEND.0, FRIEND.1);
    });
}

#[test]
fn an_attachment_to_another_network_by_the_same_container_and_interface_takes_nothing_from_the_first() {
    node(&[("shop.yaml", SHOP)], |node| {
        node.start();
        node.add(WEB.0, WEB.1);
        node.add(FRIEND.0, FRIEND.1);
        let (first, other) = (endpoint(node, WEB).spec, endpoint(node, FRIEND).spec);
        let release = |attachment: &Attachment, host_interface: &str| {
            let release = Release { attachment: attachment.clone(), host_interface: host_interface.to_owned() };
            assert!(matches!(node.call(Call::Release(release)), Ok(Reply::Done)));
        };
        // The interface of the other pod stands for one that a second network would have.
        release(&other.attachment, &other.host_interface);
        match node.call(Call::Realise(EndpointSpec { attachment: first.attachment.clone(), ..other.clone() })) {
            Err(ClientError::Refused(failure)) => assert!(failure.message.contains("another network"), "{failure}"),
            answer => panic!("{answer:?}"),
        }
        release(&first.attachment, &other.host_interface);
        assert!(matches!(node.call(Call::Check(attachment(WEB))), Ok(Reply::Done)));
        assert_eq!(endpoint(node, WEB).spec, first);
        node.remove(WEB.0, WEB.1);
        node.remove(FRIEND.0, FRIEND.1);
        assert_eq!(node.status().counts.endpoints, 0);
    });
}

#[test]
fn an_address_that_a_node_has_is_no_pods() {
    node(&[("shop.yaml", SHOP)], |node| {
        let mut config = node.config();
        config.ranges = vec!["10.77.0.0/30".parse().unwrap()];
        config.node_addresses = ["10.77.0.1", "10.77.0.2"].map(|address| address.parse().unwrap()).to_vec();
        let metrics: SocketAddr = "127.0.0.1:9964".parse().unwrap();
        config.metrics = Some(metrics);
        node.start_with(config);
        node.wait("the agent is ready", |status| status.ready);
        let error = node.add_in_vain(WEB.0, WEB.1);
        assert!(error["msg"].as_str().unwrap().contains("is an address of node node"), "{error}");
        assert_eq!(node.status().counts.endpoints, 0);
        let counted = get(metrics, "/metrics");
        assert!(counted.contains("palisade_addresses_refused_total{of=\"node\"} 1"), "{counted}");
    });
}

/// Asks for an endpoint once more, with TCP 8080 of the node for its port 80.
fn ask_for_host_port(node: &Node<'_>, (namespace, pod): (&str, &str)) {
    let port = |number: u16| number.try_into().unwrap();
    let host_port = HostPort { host_port: port(8080), container_port: port(80), protocol: Transport::Tcp, host_ip: None };
    let spec = endpoint(node, (namespace, pod)).spec;
    assert!(matches!(node.call(Call::Realise(EndpointSpec { host_ports: vec![host_port], ..spec })), Ok(Reply::Done)));
}

fn endpoint(node: &Node<'_>, (namespace, pod): (&str, &str)) -> EndpointStatus {
    let Ok(Reply::Endpoints(endpoints)) = node.call(Call::Endpoints) else { panic!("no endpoints") };
    endpoints.into_iter().find(|endpoint| endpoint.spec.namespace == namespace && endpoint.spec.pod == pod).unwrap()
}

#[test]
fn a_host_port_leads_to_the_pod_that_had_it_first_and_outlives_the_agent_but_not_the_pod() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        let web = wire(node);
        let _web: Vec<TcpListener> = web.iter().map(|at| node.listen(WEB, *at)).collect();
        let at_node: SocketAddr = "192.0.2.1:8080".parse().unwrap();
        assert!(!node.reaches(FRIEND, at_node));
        ask_for_host_port(node, WEB);
        node.wait_for_reach(FRIEND, at_node, true);
        assert!(!node.reaches(STRANGER, at_node), "it is no way round policy");
        node.wait("it is counted", |status| status.counts.frontends == 1);
        // A directory says nothing of clients outside, so nobody serves them.
        let closed = endpoint(node, WEB).problems;
        assert!(closed[0].starts_with("pod shop/web is not reached from outside by its host ports (8080/TCP)"), "{closed:?}");
        assert!(endpoint(node, FRIEND).problems.is_empty());

        ask_for_host_port(node, STRANGER);
        let lost = || {
            let problems = endpoint(node, STRANGER).problems.into_iter();
            problems.filter(|problem| problem.contains("is not reached at")).collect::<Vec<_>>()
        };
        let began = Instant::now();
        while lost().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(20), "nothing is told of two who want one port");
            std::thread::sleep(Duration::from_millis(20));
        }
        let told = lost();
        assert!(told[0].starts_with("pod other/client is not reached at 192.0.2.1:8080/TCP, which pod shop/web has"), "{told:?}");
        assert!(node.reaches(FRIEND, at_node), "who has it keeps it");

        node.stop();
        assert!(node.reaches(FRIEND, at_node), "while no agent runs");
        node.start();
        assert!(node.reaches(FRIEND, at_node) && !node.reaches(STRANGER, at_node));
        assert_eq!(lost(), told);
        node.remove(WEB.0, WEB.1);
        node.wait("the next one has it", |_| lost().is_empty());
        for (namespace, pod) in [FRIEND, STRANGER] {
            node.remove(namespace, pod);
        }
        node.wait("nobody has it", |status| status.counts.frontends == 0);
    });
}
