//! The agent with maps that are too small for its policies: they grow as far as they may, and what is larger is held back.

mod node;

use node::{Node, POLICY, SHOP, SIZES, node};
use palisade_protocol::{Call, Explained, Family, FlowEnd, FlowQuery, Reply, Status, VerdictName};
use palisade_runtime::{AgentConfig, Limits, Sizes};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const WEB: (&str, &str) = ("shop", "web");
const FRIEND: (&str, &str) = ("shop", "client");
const STRANGER: (&str, &str) = ("other", "client");
const LATE: (&str, &str) = ("shop", "late");

/// The list of networks that the issue names.
const NETWORKS: u32 = 10_000;

const METRICS: &str = "127.0.0.1:9964";

/// A policy that lets pods of `shop` with a label take TCP 80 from many networks, none next to another.
fn listing(name: &str, app: &str, networks: u32) -> String {
    let network = |number: u32| format!("\n    - ipBlock: {{cidr: {}/24}}", Ipv4Addr::from(0x2000_0000 + 512 * number));
    let networks: String = (0..networks).map(network).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: {app}}}}}\n  ingress:\n  - ports: [{{port: 80}}]\n    from:{networks}\n"
    )
}

/// What an address outside the cluster gets of a pod.
fn from_outside(node: &Node<'_>, address: &str, pod: &str) -> Explained {
    let (from, to) = (FlowEnd::Address(address.parse().unwrap()), FlowEnd::Pod(pod.to_owned()));
    match node.call(Call::Explain(FlowQuery {
        from,
        to,
        protocol: "TCP".to_owned(),
        port: 80,
        family: Family::Ipv4,
        service: false,
        whole: false,
    })) {
        Ok(Reply::Explained(explained)) => explained,
        other => panic!("not explained: {other:?}"),
    }
}

/// The value of a series.
fn metric(series: &str) -> u64 {
    let mut stream = TcpStream::connect(METRICS).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series} in\n{answer}"));
    line.trim().parse().unwrap()
}

fn room(map: &str) -> u64 {
    metric(&format!("palisade_map_room{{map=\"{map}\"}}"))
}

fn start(node: &Node<'_>, config: &AgentConfig) -> Status {
    node.start_with(config.clone());
    node.wait("the agent is ready", |status| status.ready)
}

fn config(node: &Node<'_>, sizes: Sizes) -> AgentConfig {
    AgentConfig { sizes, metrics: Some(METRICS.parse().unwrap()), ..node.config() }
}

#[test]
fn maps_grow_for_policies_that_need_more_and_connections_live_on() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        let tiny = Sizes { policy: 2, ports: 2, addresses: 2, prefixes: 2, endpoints: 1, ..SIZES };
        let config = config(node, tiny);
        start(node, &config);
        let at = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        node.add(FRIEND.0, FRIEND.1);
        node.add(STRANGER.0, STRANGER.1);
        let web = node.listen(WEB, at);
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        assert!(room("ENDPOINTS") >= 3 && room("LOCAL_V6") >= 3, "each pod needs a row");
        let mut sent = node.namespace(FRIEND.0, FRIEND.1).enter(|| TcpStream::connect(at)).unwrap().unwrap();
        let mut received =
            std::iter::repeat_with(|| web.accept().unwrap()).find(|(_, from)| *from == sent.local_addr().unwrap()).unwrap().0;

        node.write("networks.yaml", &listing("networks", "web", NETWORKS));
        let status = node.wait("both policies are known", |status| status.counts.policies == 2);
        assert!(status.ready && status.refused.is_empty(), "{status:?}");
        assert!(room("PREFIX_V4") >= u64::from(NETWORKS), "{}", room("PREFIX_V4"));
        assert_eq!(metric("palisade_map_rows{map=\"PREFIX_V4\"}"), u64::from(NETWORKS));
        assert_eq!(metric("palisade_map_limit{map=\"PREFIX_V4\"}"), u64::from(Limits::DEFAULT.prefixes));
        assert!(metric("palisade_map_growths_total{map=\"PREFIX_V4\"}") >= 1);
        sent.write_all(b"a").unwrap();
        received.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        received.read_exact(&mut [0]).unwrap();
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        let last = Ipv4Addr::from(0x2000_0000 + 512 * (NETWORKS - 1) + 9).to_string();
        assert_eq!(from_outside(node, &last, "shop/web").ingress.verdict, VerdictName::Allow);
        assert_eq!(from_outside(node, "32.0.1.9", "shop/web").ingress.verdict, VerdictName::DefaultDeny);

        // The next agent finds the larger maps, and all rows in them.
        node.stop();
        let rows = node.rows();
        assert_eq!(rows.text.iter().filter(|row| row.starts_with("prefix")).count(), NETWORKS as usize);
        let status = start(node, &config);
        assert!(status.refused.is_empty(), "{status:?}");
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        node.stop();
        assert_eq!(node.rows(), rows);
        start(node, &config);
        for (namespace, pod) in [WEB, FRIEND, STRANGER] {
            node.remove(namespace, pod);
        }
    });
}

#[test]
fn a_policy_beyond_a_limit_is_held_back_by_name_and_its_new_pods_are_denied_before_and_after_a_restart() {
    let late = "{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: shop, labels: {app: client}}, \
                spec: {containers: [{name: late, image: late}]}}";
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY), ("late.yaml", late)], |node| {
        let limits = Limits { prefixes: 64, ..Limits::DEFAULT };
        let config = config(node, Sizes { prefixes: 2, limits, ..SIZES });
        start(node, &config);
        let at = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        node.add(STRANGER.0, STRANGER.1);
        let _web = node.listen(WEB, at);
        node.write("large.yaml", &listing("large", "client", NETWORKS));
        let held = |status: &Status| {
            assert!(status.ready, "{status:?}");
            let [refused] = &status.refused[..] else { panic!("one policy is held back: {status:?}") };
            assert_eq!((refused.kind.as_str(), refused.object.as_str()), ("NetworkPolicy", "shop/large"));
            let expected = "PREFIX_V4 has room for 64 rows at most and the change needs 10000, 9936 too many";
            assert!(refused.reason.contains(expected) && refused.reason.contains("allows nothing"), "{refused:?}");
            assert_eq!(metric("palisade_refused_objects"), 1);
            let labels = "{map=\"PREFIX_V4\",kind=\"NetworkPolicy\",object=\"shop/large\"}";
            assert_eq!(metric(&format!("palisade_rows_too_many{labels}")), 9936);
        };
        // It needs no room before one of its pods is here.
        let status = node.wait("the policy is known", |status| status.counts.policies == 2);
        assert!(status.ready && status.refused.is_empty(), "{status:?}");
        // A new pod of the policy: nobody gets in, and the policy of others is as it was.
        let denied = |pod: (&str, &str)| {
            let here = SocketAddr::new(node.add(pod.0, pod.1)[0], 80);
            let listener = node.listen(pod, here);
            assert!(!node.reaches(WEB, here) && !node.reaches(STRANGER, here), "{pod:?}");
            assert_eq!(from_outside(node, "32.0.0.9", &format!("{}/{}", pod.0, pod.1)).ingress.verdict, VerdictName::DefaultDeny);
            assert!(node.reaches(pod, at), "{pod:?} may send, and the web server's policy is in force");
            assert!(!node.reaches(STRANGER, at));
            (here, listener)
        };
        let (here, _listener) = denied(FRIEND);
        held(&node.status());

        node.stop();
        assert!(!node.reaches(WEB, here) && node.reaches(FRIEND, at), "without an agent");
        held(&start(node, &config));
        assert!(!node.reaches(WEB, here) && node.reaches(FRIEND, at) && !node.reaches(STRANGER, at), "with the next agent");
        let (late, _late) = denied(LATE);

        // With as many networks as fit, the map grows to its limit and the policy is in force.
        node.write("large.yaml", &listing("large", "client", 64));
        let status = node.wait("nothing is held back any more", |status| status.refused.is_empty());
        assert!(status.ready, "{status:?}");
        assert_eq!(room("PREFIX_V4"), 64);
        assert_eq!(from_outside(node, "32.0.0.9", "shop/late").ingress.verdict, VerdictName::Allow);
        node.delete("large.yaml");
        node.wait_for_reach(WEB, here, true);
        node.wait_for_reach(STRANGER, late, true);
        for (namespace, pod) in [WEB, FRIEND, STRANGER, LATE] {
            node.remove(namespace, pod);
        }
    });
}

#[test]
fn an_edit_that_does_not_fit_and_selects_other_pods_opens_neither_the_old_ones_nor_the_new_ones() {
    node(&[("shop.yaml", SHOP), ("large.yaml", &listing("large", "web", 10))], |node| {
        let limits = Limits { prefixes: 64, ..Limits::DEFAULT };
        start(node, &config(node, Sizes { prefixes: 2, limits, ..SIZES }));
        let web = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        let friend = SocketAddr::new(node.add(FRIEND.0, FRIEND.1)[0], 80);
        let (_web, _friend) = (node.listen(WEB, web), node.listen(FRIEND, friend));
        assert!(!node.reaches(FRIEND, web) && node.reaches(WEB, friend));
        node.write("large.yaml", &listing("large", "client", NETWORKS));
        let status = node.wait("the edit is held back", |status| !status.refused.is_empty());
        assert_eq!(status.refused.len(), 1, "{status:?}");
        assert!(status.refused[0].reason.contains("its last good version stays in force, and to the pods"), "{status:?}");
        assert!(!node.reaches(FRIEND, web), "of the last good version");
        node.wait_for_reach(WEB, friend, false);
        assert_eq!(from_outside(node, "32.0.0.9", "shop/web").ingress.verdict, VerdictName::Allow);
        node.write("large.yaml", &listing("large", "client", 20));
        node.wait("it fits", |status| status.refused.is_empty());
        node.wait_for_reach(FRIEND, web, true);
        for (namespace, pod) in [WEB, FRIEND] {
            node.remove(namespace, pod);
        }
    });
}

#[test]
fn the_last_good_version_of_a_policy_that_is_held_back_stays_after_a_restart() {
    node(&[("shop.yaml", SHOP), ("large.yaml", &listing("large", "web", 10)), ("policy.yaml", POLICY)], |node| {
        let limits = Limits { prefixes: 64, ..Limits::DEFAULT };
        let config = config(node, Sizes { prefixes: 2, limits, ..SIZES });
        let file = node.host.run_dir().join("last-good.json");
        start(node, &config);
        node.add(WEB.0, WEB.1);
        node.add(FRIEND.0, FRIEND.1);
        assert!(!file.exists());
        node.write("large.yaml", &listing("large", "web", NETWORKS));
        node.wait("the edit is held back", |status| !status.refused.is_empty());
        let first = || from_outside(node, "32.0.0.9", "shop/web").ingress.verdict;
        let stays = |status: &Status| {
            let [refused] = &status.refused[..] else { panic!("one policy is held back: {status:?}") };
            assert!(refused.reason.contains("its last good version stays in force"), "{refused:?}");
            assert_eq!(first(), VerdictName::Allow);
        };
        stays(&node.status());
        // From agent to agent, without a row being written.
        for _ in 0..2 {
            node.stop();
            let rows = node.rows();
            stays(&start(node, &config));
            node.stop();
            assert_eq!(node.rows(), rows);
            stays(&start(node, &config));
        }
        // What comes later is still put in force beside it.
        node.write("policy.yaml", &POLICY.replace("port: 80", "port: 81"));
        node.wait("it is there", |_| node.explain("shop/client", "shop/web", 81, Family::Ipv4).ingress.verdict == VerdictName::Allow);
        stays(&node.status());

        // A version that nobody has seen held back has no last good one, nor has any where the file is damaged.
        let closed = |status: &Status| {
            let [refused] = &status.refused[..] else { panic!("one policy is held back: {status:?}") };
            assert!(refused.reason.contains("it allows nothing"), "{refused:?}");
            assert_eq!(first(), VerdictName::DefaultDeny);
        };
        let kept = std::fs::read(&file).unwrap();
        node.stop();
        std::fs::write(&file, &kept[..kept.len() - 9]).unwrap();
        closed(&start(node, &config));
        node.stop();
        assert!(!file.exists(), "nothing good is held back");
        std::fs::write(&file, &kept).unwrap();
        node.write("large.yaml", &listing("large", "web", NETWORKS + 1));
        closed(&start(node, &config));

        node.write("large.yaml", &listing("large", "web", 10));
        node.wait("it fits", |status| status.refused.is_empty());
        assert!(first() == VerdictName::Allow && !file.exists());
        for (namespace, pod) in [WEB, FRIEND] {
            node.remove(namespace, pod);
        }
    });
}

#[test]
fn a_policy_that_is_in_force_is_not_taken_back_for_a_new_pod_s_nor_after_a_restart() {
    // The one in force is the larger.
    let elsewhere = |networks: u32| listing("of-client", "client", networks).replace("cidr: 32.", "cidr: 40.");
    let policies = [("web.yaml", listing("of-web", "web", 45)), ("client.yaml", elsewhere(40))];
    node(&[("shop.yaml", SHOP), (policies[0].0, &policies[0].1), (policies[1].0, &policies[1].1)], |node| {
        let limits = Limits { prefixes: 64, ..Limits::DEFAULT };
        let config = config(node, Sizes { limits, ..SIZES });
        let other = |number: u32| Ipv4Addr::from(0x2000_0000 + 512 * number + 9).to_string();
        let check = |status: &Status| {
            let [refused] = &status.refused[..] else { panic!("one policy is held back: {status:?}") };
            assert_eq!(refused.object, "shop/of-client");
            assert_eq!(from_outside(node, &other(44), "shop/web").ingress.verdict, VerdictName::Allow);
            assert_eq!(from_outside(node, "40.0.0.9", "shop/client").ingress.verdict, VerdictName::DefaultDeny);
        };
        // Many more of the same networks, which take no more room.
        const MORE: usize = 20;
        let more = |number: usize| format!("more-{number}");
        (0..MORE).for_each(|number| node.write(&format!("{}.yaml", more(number)), &listing(&more(number), "web", 45)));
        start(node, &config);
        node.add(WEB.0, WEB.1);
        assert_eq!(node.status().refused, []);
        node.add(FRIEND.0, FRIEND.1);
        check(&node.status());
        // What comes later is put into the kernel beside it.
        node.write("policy.yaml", POLICY);
        check(&node.wait("it is there", |status| status.counts.policies == MORE + 3));
        node.stop();
        check(&start(node, &config));
        // Once the others make room it is in force.
        (0..MORE).for_each(|number| node.delete(&format!("{}.yaml", more(number))));
        node.write(policies[0].0, &listing("of-web", "web", 20));
        node.wait("nothing is held back", |status| status.refused.is_empty());
        assert_eq!(from_outside(node, "40.0.0.9", "shop/client").ingress.verdict, VerdictName::Allow);
        for (namespace, pod) in [WEB, FRIEND] {
            node.remove(namespace, pod);
        }
    });
}

/// An identity of many networks, none next to another, and a policy that lets it come to the web server.
fn identity(networks: u32) -> String {
    let network = |number: u32| format!("\n  - {{cidr: {}/24}}", Ipv4Addr::from(0x2000_0000 + 512 * number));
    let networks: String = (0..networks).map(network).collect();
    format!("apiVersion: palisade.dev/v1alpha1\nkind: Identity\nmetadata: {{name: partners}}\nspec:\n  networks:{networks}\n")
}

const PARTNERS: &str = "{apiVersion: palisade.dev/v1alpha1, kind: IdentityPolicy, metadata: {name: partners, namespace: shop}, \
    spec: {subject: {pods: {matchLabels: {app: web}}}, ingress: [{action: Allow, peers: [{identity: partners}], ports: [{port: 80}]}]}}";

/// The change that does not fit is of no policy.
#[test]
fn where_an_identity_grows_beyond_a_limit_its_policies_allow_nothing_and_all_else_goes_on_changing() {
    let files = [("shop.yaml", SHOP), ("policy.yaml", POLICY), ("identity.yaml", &identity(10)), ("partners.yaml", PARTNERS)];
    node(&files, |node| {
        let limits = Limits { prefixes: 64, ..Limits::DEFAULT };
        let config = config(node, Sizes { limits, ..SIZES });
        start(node, &config);
        let at = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        node.add(FRIEND.0, FRIEND.1);
        let _web = node.listen(WEB, at);
        let first = || from_outside(node, "32.0.0.9", "shop/web").ingress.verdict;
        assert!(first() == VerdictName::Allow && node.reaches(FRIEND, at));
        let held = |status: &Status| {
            let [refused] = &status.refused[..] else { panic!("one policy is held back: {status:?}") };
            assert_eq!((refused.kind.as_str(), refused.object.as_str()), ("IdentityPolicy", "shop/partners"), "{status:?}");
            assert!(refused.reason.contains("PREFIX_V4") && refused.reason.contains("it allows nothing"), "{refused:?}");
            assert!(status.ready, "{status:?}");
            assert_eq!(first(), VerdictName::DefaultDeny);
        };
        node.write("identity.yaml", &identity(100));
        held(&node.wait("the identity does not fit", |status| !status.refused.is_empty()));
        assert!(node.reaches(FRIEND, at), "of another policy");
        // What takes a right away is not lost.
        node.write("policy.yaml", &POLICY.replace("port: 80", "port: 81"));
        node.wait_for_reach(FRIEND, at, false);
        held(&node.status());
        node.stop();
        held(&start(node, &config));
        node.write("identity.yaml", &identity(20));
        node.wait("it fits", |status| status.refused.is_empty());
        assert_eq!(first(), VerdictName::Allow);
        for (namespace, pod) in [WEB, FRIEND] {
            node.remove(namespace, pod);
        }
    });
}

#[test]
fn a_pod_beyond_the_limit_of_endpoints_is_refused_with_the_map_and_the_others_go_on() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        let limits = Limits { endpoints: 2, ..Limits::DEFAULT };
        let config = config(node, Sizes { endpoints: 1, limits, ..SIZES });
        start(node, &config);
        let at = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        node.add(FRIEND.0, FRIEND.1);
        let _web = node.listen(WEB, at);
        let error = node.add_in_vain(STRANGER.0, STRANGER.1);
        let text = error.to_string();
        assert!(text.contains("LOCAL_V4 has room for 2 rows at most and the change needs 3, 1 too many"), "{text}");
        assert!(node.reaches(FRIEND, at));
        assert_eq!(node.status().counts.endpoints, 2);
        node.remove(FRIEND.0, FRIEND.1);
        node.add(STRANGER.0, STRANGER.1);
        assert!(!node.reaches(STRANGER, at));
        node.remove(WEB.0, WEB.1);
        node.remove(STRANGER.0, STRANGER.1);
    });
}

/// A service of `shop/web`, and one with that many backends.
fn services(backends: u32) -> String {
    let service = |name: &str, ip: &str, selector: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: {ip}, {selector}ports: [{{port: 80}}]}}\n"
        )
    };
    let endpoint = |number: u32| format!("\n- addresses: [{}]", Ipv4Addr::from(0x0a58_0000 + number));
    let endpoints: String = (1..=backends).map(endpoint).collect();
    format!(
        "{}{}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: large, namespace: shop, labels: {{kubernetes.io/service-name: large}}}}\n\
         addressType: IPv4\nports: [{{port: 80}}]\nendpoints:{endpoints}\n",
        service("web", "10.96.0.10", "selector: {app: web}, "),
        service("large", "10.96.0.11", "")
    )
}

#[test]
fn a_service_beyond_a_limit_is_held_back_by_name_and_the_others_go_on_before_and_after_a_restart() {
    node(&[("shop.yaml", SHOP), ("services.yaml", &services(3))], |node| {
        let limits = Limits { backends: 8, ..Limits::DEFAULT };
        let config = config(node, Sizes { backends: 2, limits, ..SIZES });
        start(node, &config);
        let at = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        node.add(FRIEND.0, FRIEND.1);
        let _web = node.listen(WEB, at);
        let (web, late) = ("10.96.0.10:80".parse().unwrap(), "10.96.0.12:80".parse().unwrap());
        node.wait_for_reach(FRIEND, web, true);
        let backends = |name: &str| match node.call(Call::Services {
            namespaces: Vec::new(),
            object: Some(format!("shop/{name}")),
            backends: false,
        }) {
            Ok(Reply::Services(services)) => services[0].backends_known,
            other => panic!("no services: {other:?}"),
        };
        let held = |status: &Status| {
            assert!(status.ready, "{status:?}");
            let [refused] = &status.refused[..] else { panic!("one service is held back: {status:?}") };
            assert_eq!((refused.kind.as_str(), refused.object.as_str()), ("Service", "shop/large"));
            assert!(refused.reason.contains("BACKENDS has room for 8 rows at most"), "{refused:?}");
            assert_eq!(metric("palisade_refused_objects"), 1);
            assert!(metric("palisade_rows_too_many{map=\"BACKENDS\",kind=\"Service\",object=\"shop/large\"}") > 0);
            assert_eq!(backends("large"), 3, "its last good state stays");
        };
        node.write("services.yaml", &services(100));
        held(&node.wait("the service is held back", |status| !status.refused.is_empty()));
        // One that comes later is served.
        let more = services(0).replace("name: web", "name: late").replace("10.96.0.10", "10.96.0.12");
        node.write("late.yaml", more.split("---").nth(1).unwrap());
        node.wait_for_reach(FRIEND, late, true);
        held(&node.status());
        node.stop();
        held(&start(node, &config));
        assert!(node.reaches(FRIEND, web) && node.reaches(FRIEND, late));
        node.write("services.yaml", &services(4));
        node.wait("nothing is held back any more", |status| status.refused.is_empty());
        assert_eq!(backends("large"), 4);
        for (namespace, pod) in [WEB, FRIEND] {
            node.remove(namespace, pod);
        }
    });
}

#[test]
fn a_growth_that_was_made_only_in_part_is_shown_and_the_datapath_is_opened_anew() {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        let config = config(node, Sizes { prefixes: 2, ..SIZES });
        start(node, &config);
        let at = SocketAddr::new(node.add(WEB.0, WEB.1)[0], 80);
        node.add(FRIEND.0, FRIEND.1);
        node.add(STRANGER.0, STRANGER.1);
        let _web = node.listen(WEB, at);
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        // A program cannot take the name of a directory: the endpoints have the new ones by then, and the maps their names.
        let program = palisade_loader::PinDir::new(node.pin_dir()).programs_dir().join("from_pod");
        std::fs::remove_file(&program).unwrap();
        std::fs::create_dir(&program).unwrap();
        node.write("networks.yaml", &listing("networks", "web", 100));
        let status = node.wait("it is shown", |status| status.problems.iter().any(|problem| problem.contains("only in part")));
        assert!(!status.ready && status.problems.iter().any(|problem| problem.contains("PREFIX_V4")), "{status:?}");
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        std::fs::remove_dir(&program).unwrap();
        let status = node.wait("it is opened anew", |status| status.ready);
        assert_eq!((status.counts.policies, status.refused.len()), (2, 0), "{status:?}");
        assert!(node.reaches(FRIEND, at) && !node.reaches(STRANGER, at));
        assert_eq!(from_outside(node, "32.0.0.9", "shop/web").ingress.verdict, VerdictName::Allow);
        for (namespace, pod) in [WEB, FRIEND, STRANGER] {
            node.remove(namespace, pod);
        }
    });
}
