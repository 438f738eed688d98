//! What a lab finds, and how it says so.

use crate::runner::{Manifests, lab, labs_run_here, namespace, pod, policy, probes, reached, shop};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const ALLOW_FRONTEND: &str = "default deny of ingress by NetworkPolicy backend/allow-frontend";

#[test]
fn the_example_shop_is_as_expected_and_shows_who_is_refused_and_why() {
    if !labs_run_here() {
        return;
    }
    let expect = shop().join("expect/reach.yaml");
    let ended = lab(&shop(), &["--expect", expect.to_str().unwrap()]).expect_code(0);
    for part in [
        "TCP 80\n",
        "UDP 8125\n",
        "ICMP\n",
        "\nRefused\n",
        ALLOW_FRONTEND,
        "guest/visitor -> backend/api: TCP 80, UDP 8125, ICMP",
        "all as expected",
    ] {
        assert!(ended.output.contains(part), "{part:?} is missing in\n{}", ended.output);
    }
    assert!(!ended.output.contains("DISAGREE"), "{}", ended.output);
    assert!(!ended.output.contains('\x1b'), "no colours where no terminal is: {}", ended.output);
}

#[test]
fn the_example_egress_by_identity_is_as_expected_and_names_the_policy() {
    if !labs_run_here() {
        return;
    }
    let directory = shop().with_file_name("egress-by-identity");
    let expect = directory.join("expect/reach.yaml");
    let ended = lab(&directory, &["--expect", expect.to_str().unwrap()]).expect_code(0);
    for part in [
        "default deny of egress by IdentityPolicy store/checkout",
        "store/checkout -> payments/backup, payments/copy: TCP 5432, ICMP",
        "all as expected",
    ] {
        assert!(ended.output.contains(part), "{part:?} is missing in\n{}", ended.output);
    }
}

/// The probes of a service from a pod, over whatever family.
fn to_service<'r>(report: &'r Value, from: &str, to: &str) -> Vec<&'r Value> {
    let found: Vec<&Value> = probes(report).filter(|probe| probe["from"] == from && probe["to"] == to).collect();
    assert!(!found.is_empty(), "{from} -> {to} in {report}");
    found
}

#[test]
fn the_example_services_is_as_expected_and_policy_is_judged_on_the_backend() {
    if !labs_run_here() {
        return;
    }
    let directory = shop().with_file_name("services");
    let expect = directory.join("expect/reach.yaml");
    let ended = lab(&directory, &["--expect", expect.to_str().unwrap()]).expect_code(0);
    for part in [
        "TCP 5432\nfrom \\ to     svc/data/db\n",
        "\nServices\n  svc/data/db: 10.96.0.1, fd96::1\n",
        "default deny of ingress by NetworkPolicy data/from-web",
        "shop/browser -> svc/data/db: TCP 5432",
        "  service has no endpoints\n",
        "all as expected",
    ] {
        assert!(ended.output.contains(part), "{part:?} is missing in\n{}", ended.output);
    }
    assert!(!ended.output.contains("DISAGREE") && !ended.output.contains("svc/data/replicas"), "{}", ended.output);

    let report = lab(&directory, &["--output", "json"]).expect_code(0).json();
    for (from, to, verdict, parties) in [
        ("shop/browser", "svc/shop/web", "reached", &["shop/web-0", "shop/web-1"][..]),
        ("shop/web-0", "svc/shop/web", "reached", &["shop/web-0", "shop/web-1"][..]),
        ("shop/web-0", "svc/data/db", "reached", &["data/db"][..]),
        ("data/db", "svc/data/db", "reached", &["data/db"][..]),
        ("shop/browser", "svc/data/db", "denied", &["data/db"][..]),
        ("shop/browser", "svc/shop/soon", "refused", &[][..]),
    ] {
        let found = to_service(&report, from, to);
        assert_eq!(found.len(), 2, "both families: {found:?}");
        for probe in found {
            let backends = probe["backends"].as_array().unwrap();
            let named: BTreeSet<&str> = backends.iter().map(|backend| backend["party"].as_str().unwrap()).collect();
            assert_eq!((probe["verdict"].as_str().unwrap(), named), (verdict, parties.iter().copied().collect()), "{probe}");
            let answered: u64 = backends.iter().map(|backend| backend["answered"].as_u64().unwrap()).sum();
            assert_eq!((probe["reached"] == true, answered > 0), (verdict == "reached", verdict == "reached"), "{probe}");
        }
    }
}

#[test]
fn a_service_is_mixed_where_policy_allows_some_of_its_backends_by_each_protocol() {
    if !labs_run_here() {
        return;
    }
    let ports = "{containerPort: 8080}, {containerPort: 53, protocol: UDP}, {containerPort: 9, protocol: SCTP}";
    let pods: String = ["x", "v", "z"].map(|name| pod("a", name, ports).replace("labels: {app", "labels: {set: all, app")).concat();
    let closed = policy("a", "closed", "{podSelector: {matchLabels: {app: z}}, ingress: []}");
    let service = "---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: a}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {set: all}
  ports:
  - {name: web, port: 80, targetPort: 8080}
  - {name: dns, port: 5353, protocol: UDP, targetPort: 53}
  - {name: assoc, port: 99, protocol: SCTP, targetPort: 9}
";
    let manifests = Manifests::new(&(namespace("a") + &pods + &closed + service));
    let expect =
        manifests.beside("reach.yaml", "probes: [{from: a/x, to: svc/a/all, verdict: mixed}, {from: a/z, to: svc/a/*, verdict: allow}]");
    let ended = lab(manifests.path(), &["--expect", &expect, "--output", "json"]).expect_code(0);
    let report = ended.json();
    let found = to_service(&report, "a/x", "svc/a/all");
    assert_eq!(found.len(), 6, "three protocols, both families: {found:?}");
    for probe in found {
        assert_eq!((&probe["verdict"], &probe["reached"]), (&"mixed".into(), &false.into()), "{probe}");
        for backend in probe["backends"].as_array().unwrap() {
            let denied = backend["party"] == "a/z";
            assert_eq!(backend["ingress"]["verdict"] == "default-deny", denied, "{probe}");
            assert!(!denied || backend["answered"] == 0, "{probe}");
        }
    }
}

// Line 37.
#[test]
fn a_pod_behind_its_own_service_reaches_itself_unless_a_cluster_policy_denies_it() {
    if !labs_run_here() {
        return;
    }
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec:\n  ipFamilyPolicy: PreferDualStack\n  \
             selector: {{app: {name}}}\n  ports:\n  - {{name: web, port: 80, targetPort: 8080}}\n  - {{name: dns, port: 53, protocol: UDP, targetPort: 5353}}\n"
        )
    };
    let ports = "{containerPort: 8080}, {containerPort: 5353, protocol: UDP}";
    let pods: String = ["x", "z"].map(|name| pod("a", name, ports) + &service(name)).concat();
    let closed = policy("a", "closed", "{podSelector: {}, ingress: [], egress: [], policyTypes: [Ingress, Egress]}");
    let cluster = "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: not-itself}
spec:
  tier: Admin
  priority: 4
  subject: {namespaces: {}}
  egress:
  - action: Deny
    to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: x}}}}]
    protocols: [{tcp: {destinationPort: {number: 8080}}}]
";
    let manifests = Manifests::new(&(namespace("a") + &pods + &closed + cluster));
    let report = lab(manifests.path(), &["--output", "json"]).expect_code(0).json();
    for (pod, service, protocol, verdict) in [
        ("a/x", "svc/a/x", "TCP", "denied"),
        ("a/x", "svc/a/x", "UDP", "reached"),
        ("a/z", "svc/a/z", "TCP", "reached"),
        ("a/z", "svc/a/z", "UDP", "reached"),
        ("a/x", "svc/a/z", "UDP", "denied"),
    ] {
        let found: Vec<&Value> = to_service(&report, pod, service).into_iter().filter(|probe| probe["protocol"] == protocol).collect();
        assert_eq!(found.len(), 2, "both families: {found:?}");
        for probe in found {
            assert_eq!((&probe["verdict"], &probe["disagreement"]), (&verdict.into(), &Value::Null), "{probe}");
            let by_cluster = probe["egress"]["reason"].as_str().unwrap().contains("not-itself (Admin tier, priority 4)");
            assert_eq!(by_cluster, (pod, service, protocol) == ("a/x", "svc/a/x", "TCP"), "{probe}");
        }
    }
}

#[test]
fn tiers_of_the_cluster_and_audit_hold_in_a_lab() {
    if !labs_run_here() {
        return;
    }
    let ports = "{containerPort: 80}, {containerPort: 53, protocol: UDP}";
    let manifests = Manifests::new(&(namespace("a") + &pod("a", "x", ports) + &pod("a", "z", ports)));
    manifests.write(
        "cluster.yaml",
        "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: nobody-but-tcp}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
    - {name: tcp, action: Pass, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}
    - {name: rest, action: Deny, from: [{namespaces: {}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: a, annotations: {palisade.dev/mode: Audit}}
spec: {podSelector: {}}
",
    );
    let report = lab(manifests.path(), &["--output", "json"]).expect_code(0).json();
    let between: Vec<_> =
        probes(&report).filter(|probe| [&probe["from"], &probe["to"]].iter().all(|end| end.as_str().unwrap().contains('/'))).collect();
    assert!(!between.is_empty(), "{report}");
    for probe in between {
        let tcp = probe["protocol"] == "TCP" && probe["port"] == 80;
        assert_eq!(probe["reached"], tcp, "{probe}");
        if !tcp {
            let reason = "ClusterNetworkPolicy nobody-but-tcp (Admin tier, priority 1) ingress rule 1 \"rest\"";
            assert_eq!((&probe["ingress"]["verdict"], &probe["ingress"]["reason"]), (&"deny".into(), &reason.into()), "{probe}");
        }
    }
}

#[test]
fn json_has_the_documented_shape_and_words() {
    if !labs_run_here() {
        return;
    }
    let report = lab(&shop(), &["--output", "json"]).expect_code(0).json();
    assert_eq!(keys(&report), ["probes"]);
    let pods = ["backend/api", "frontend/web-0", "frontend/web-1", "guest/visitor"];
    for probe in probes(&report) {
        assert_eq!(keys(probe), ["egress", "family", "from", "ingress", "port", "protocol", "reached", "to"], "{probe}");
        for end in ["from", "to"] {
            let name = probe[end].as_str().unwrap();
            assert!(pods.contains(&name) || ["node", "outside"].contains(&name), "{probe}");
        }
        assert!(["ipv4", "ipv6"].contains(&probe["family"].as_str().unwrap()), "{probe}");
        assert!(["TCP", "UDP", "ICMP"].contains(&probe["protocol"].as_str().unwrap()), "{probe}");
        assert!(probe["reached"].is_boolean() && probe["port"].is_u64(), "{probe}");
        assert_eq!(probe["port"] == 0, probe["protocol"] == "ICMP", "an echo has no port: {probe}");
        for side in ["egress", "ingress"] {
            assert_eq!(keys(&probe[side]), ["reason", "verdict"], "{probe}");
            assert!(["allow", "deny", "default-deny", "none"].contains(&probe[side]["verdict"].as_str().unwrap()), "{probe}");
        }
        let denied = ["egress", "ingress"].iter().any(|side| ["deny", "default-deny"].contains(&probe[side]["verdict"].as_str().unwrap()));
        assert_eq!(probe["reached"] == false, denied, "{probe}");
    }
    let pairs: BTreeSet<(&str, &str)> =
        probes(&report).map(|probe| (probe["from"].as_str().unwrap(), probe["to"].as_str().unwrap())).collect();
    for from in pods {
        for to in pods.into_iter().filter(|to| *to != from).chain(["node", "outside"]) {
            assert!(pairs.contains(&(from, to)) && (to != "outside" || pairs.contains(&(to, from))), "{from} -> {to}");
        }
        assert!(pairs.contains(&("node", from)) && pairs.contains(&("outside", from)), "node and outside -> {from}");
    }
    let refused = probes(&report).find(|probe| probe["from"] == "guest/visitor" && probe["to"] == "backend/api").unwrap();
    assert_eq!((&refused["ingress"]["verdict"], &refused["ingress"]["reason"]), (&"default-deny".into(), &ALLOW_FRONTEND.into()));
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn an_expectation_that_differs_ends_with_1_and_a_table_of_differences() {
    if !labs_run_here() {
        return;
    }
    let manifests = Manifests::new(&(namespace("a") + &pod("a", "x", "{containerPort: 80}") + &pod("a", "z", "{containerPort: 80}")));
    let expect = manifests.beside(
        "reach.yaml",
        "default: allow\nprobes: [{from: a/x, to: a/z, port: 80, protocol: TCP, verdict: deny}, {from: a/typo, to: a/z, verdict: allow}]\n",
    );
    let ended = lab(manifests.path(), &["--expect", &expect]).expect_code(1);
    let (_, differences) = ended.output.split_once("Not as expected\n").expect("a table of differences");
    let lines: Vec<Vec<&str>> = differences.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "{differences}");
    assert_eq!(lines[1][..7], ["a/x", "a/z", "TCP", "80", "ipv4", "deny", "reached"]);
    assert_eq!(lines[2][..7], ["a/x", "a/z", "TCP", "80", "ipv6", "deny", "reached"]);
    assert!(lines[3].join(" ").contains("a/typo -> a/z never tried"), "{differences}");

    let ended = lab(manifests.path(), &["--expect", &expect, "--output", "json"]).expect_code(1);
    assert!(probes(&ended.json()).count() > 0, "the report is whole beside the differences");
    assert!(ended.errors.contains("not as expected") && ended.errors.contains("a/typo"), "{}", ended.errors);
}

#[test]
fn nine_pods_with_three_ports_over_two_families_take_less_than_15_seconds() {
    if !labs_run_here() {
        return;
    }
    let mut text = String::new();
    for name in ["a", "b", "c"] {
        text += &namespace(name);
        for number in 0..3 {
            let ports = "{name: http, containerPort: 80}, {containerPort: 8080}, {containerPort: 53, protocol: UDP}";
            text += &pod(name, &format!("p{number}"), ports);
        }
    }
    text += &policy("a", "closed", "{podSelector: {}, policyTypes: [Ingress]}");
    text += &policy(
        "b",
        "named",
        "{podSelector: {matchLabels: {app: p0}}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: c}}}], ports: [{port: http}]}]}",
    );
    text += &policy(
        "c",
        "egress",
        "{podSelector: {matchExpressions: [{key: app, operator: In, values: [p1, p2]}]}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}",
    );
    let manifests = Manifests::new(&text);
    let start = Instant::now();
    let report = lab(manifests.path(), &["--output", "json"]).expect_code(0).json();
    let taken = start.elapsed();
    let among_pods = probes(&report).filter(|probe| probe["to"].as_str().unwrap().contains('/') && probe["from"] != "outside").count();
    assert_eq!(among_pods, 9 * 9 * 4 * 2, "three ports and an echo");
    assert!(probes(&report).filter(|probe| probe["reached"] == false).count() > 200, "many are refused");
    assert!(!reached(&report, "b/p0", "a/p1", "TCP", 80), "a is closed");
    assert!(reached(&report, "c/p0", "b/p0", "TCP", 80), "the named port is open for c");
    assert!(!reached(&report, "c/p0", "b/p0", "TCP", 8080), "the other port is not");
    assert!(reached(&report, "c/p1", "b/p1", "UDP", 53) && !reached(&report, "c/p1", "b/p1", "TCP", 80), "egress of c/p1");
    assert!(!reached(&report, "c/p1", "outside", "TCP", 80) && reached(&report, "c/p0", "outside", "TCP", 80), "egress to the outside");
    assert!(reached(&report, "node", "a/p0", "TCP", 80), "a pod's own node always reaches it");
    assert!(reached(&report, "node", "a/p0", "ICMP", 0) && !reached(&report, "c/p0", "a/p0", "ICMP", 0), "by echo it alone does");
    assert!(taken < Duration::from_secs(15), "it took {taken:?}");
}

#[test]
fn an_address_block_opens_the_outside_host_and_its_exception_does_not() {
    if !labs_run_here() {
        return;
    }
    let block = |except: &str| {
        format!(
            "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 192.0.2.0/24{except}}}}}, {{ipBlock: {{cidr: '2001:db8::/32'}}}}]}}]}}"
        )
    };
    let pods = namespace("a") + &namespace("b") + &pod("a", "x", "{containerPort: 80}") + &pod("b", "z", "{containerPort: 80}");
    let manifests = Manifests::new(&(pods + &policy("a", "open", &block("")) + &policy("b", "shut", &block(", except: [192.0.2.2/32]"))));
    let report = lab(manifests.path(), &["--output", "json"]).expect_code(0).json();
    assert!(reached(&report, "a/x", "outside", "TCP", 80));
    for (family, expected) in [("ipv4", false), ("ipv6", true)] {
        let probe = probes(&report).find(|probe| probe["from"] == "b/z" && probe["to"] == "outside" && probe["family"] == family).unwrap();
        assert_eq!(probe["reached"], expected, "{probe}");
    }
    assert!(!reached(&report, "a/x", "b/z", "TCP", 80), "no pod is in the blocks");
}

/// A policy of the pod of its name.
fn of_pod(name: &str, rules: &str) -> String {
    policy("a", name, &format!("{{podSelector: {{matchLabels: {{app: {name}}}}}, {rules}}}"))
}

#[test]
fn echo_follows_rules_without_ports() {
    if !labs_run_here() {
        return;
    }
    // Pods without a port of their own are probed all the same.
    let pods: String = ["free", "named", "open", "shut", "mute", "x"].iter().map(|name| pod("a", name, "")).collect();
    let policies = [
        ("named", "ingress: [{ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}, {port: 1, endPort: 65535}]}]"),
        ("open", "ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]"),
        ("shut", "ingress: []"),
        ("mute", "policyTypes: [Egress], egress: [{ports: [{protocol: TCP}]}, {to: [{podSelector: {matchLabels: {app: free}}}]}]"),
    ];
    let policies: String = policies.iter().map(|(name, rules)| of_pod(name, rules)).collect();
    let manifests = Manifests::new(&(namespace("a") + &pods + &policies));
    let expect = manifests.beside(
        "reach.yaml",
        "default: allow
probes:
  - {from: node, to: '*', protocol: ICMP, verdict: allow}
  - {from: a/mute, to: a/free, verdict: allow}
  - {from: a/mute, to: '*', verdict: deny}
  - {from: a/x, to: a/open, verdict: allow}
  - {from: '*', to: a/open, verdict: deny}
  - {from: '*', to: a/named, verdict: deny}
  - {from: '*', to: a/shut, protocol: ICMP, verdict: deny}
",
    );
    let ended = lab(manifests.path(), &["--expect", &expect]).expect_code(0);
    assert!(
        ended.output.starts_with("ICMP\n") && ended.output.contains("No pod declares a port, so only echoes are tried"),
        "{}",
        ended.output
    );
    // Six pods with five others, the node and the outside host, both ways: all of them over both families.
    assert!(ended.output.contains(&format!("\n{} probes: ", (6 * 5 + 2 * 6 * 2) * 2)), "{}", ended.output);
    assert!(ended.output.contains("    a/x -> a/named: ICMP\n"), "{}", ended.output);
}

#[test]
fn an_sctp_rule_opens_its_port_and_nothing_else() {
    if !labs_run_here() {
        return;
    }
    let ports = "{name: assoc, containerPort: 9, protocol: SCTP}, {containerPort: 10, protocol: SCTP}, {name: web, containerPort: 10}, {containerPort: 9, protocol: UDP}";
    let pods: String = ["free", "one", "all", "name", "tcp", "shut", "out", "x"].iter().map(|name| pod("a", name, ports)).collect();
    let policies = [
        ("one", "ingress: [{ports: [{port: 9, protocol: SCTP}]}]"),
        ("all", "ingress: [{ports: [{protocol: SCTP}]}]"),
        // The name of a TCP port is none of SCTP.
        ("name", "ingress: [{ports: [{port: assoc, protocol: SCTP}, {port: web, protocol: SCTP}]}]"),
        ("tcp", "ingress: [{ports: [{protocol: TCP}]}]"),
        ("shut", "ingress: []"),
        (
            "out",
            "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: free}}}], ports: [{port: 10, endPort: 11, protocol: SCTP}]}]",
        ),
    ];
    let policies: String = policies.iter().map(|(name, rules)| of_pod(name, rules)).collect();
    let manifests = Manifests::new(&(namespace("a") + &pods + &policies));
    let report = lab(manifests.path(), &["--output", "json"]).expect_code(0).json();
    let tried = [("SCTP", 9), ("SCTP", 10), ("TCP", 10), ("UDP", 9), ("ICMP", 0)];
    for (from, to, open) in [
        ("a/x", "a/free", &tried[..]),
        ("a/x", "a/one", &tried[..1]),
        ("outside", "a/one", &tried[..1]),
        ("a/x", "a/all", &tried[..2]),
        ("a/x", "a/name", &tried[..1]),
        ("a/x", "a/tcp", &tried[2..3]),
        ("a/x", "a/shut", &tried[..0]),
        ("node", "a/shut", &tried[..]),
        ("a/out", "a/free", &tried[1..2]),
        ("a/out", "outside", &tried[..0]),
        ("a/x", "outside", &tried[..]),
        ("a/x", "node", &tried[..]),
    ] {
        let found: Vec<(&str, u16)> = tried.into_iter().filter(|(protocol, port)| reached(&report, from, to, protocol, *port)).collect();
        assert_eq!(found, open, "{from} -> {to}");
    }
    let refused = |probe: &&Value| probe["from"] == "a/x" && probe["to"] == "a/one" && probe["protocol"] == "SCTP" && probe["port"] == 10;
    assert_eq!(probes(&report).find(refused).unwrap()["ingress"]["verdict"], "default-deny");
}

#[test]
fn what_has_no_effect_is_listed() {
    if !labs_run_here() {
        return;
    }
    let other = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: a}\n";
    let manifests = Manifests::new(&(namespace("a") + &pod("a", "x", "{containerPort: 80}") + other));
    let ended = lab(manifests.path(), &["--mode", "vxlan"]).expect_code(0);
    for part in ["ConfigMap", "--mode vxlan: without Node objects"] {
        assert!(ended.output.lines().any(|line| line.starts_with("Ignored: ") && line.contains(part)), "{part}: {}", ended.output);
    }
}
