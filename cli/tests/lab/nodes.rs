//! Labs of several nodes.

use crate::runner::{Ended, Manifests, Running, lab, labs_run_here, namespace, palisade, pod, policy, probes, run, shop};
use palisade_test_support::Snapshot;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

const NEAR: &str = "192.0.2.0/24,2001:db8:1::/64";
const FAR: &str = "198.18.0.0/24,2001:db8:2::/64";
const STAYS: &str = "the lab stays";

/// A node on the link of these subnets, with further annotations in flow style, and these pod ranges.
fn node(name: &str, subnet: &str, annotations: &str, ranges: &str) -> String {
    let annotations = format!("{{lab.palisade.dev/subnet: '{subnet}'{annotations}}}");
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {annotations}}}\nspec: {{podCIDRs: [{ranges}]}}\n")
}

/// A pod of namespace `a` on a node.
fn on(node: &str, name: &str) -> String {
    pod("a", name, "{containerPort: 80}").replace("spec:\n", &format!("spec:\n  nodeName: {node}\n"))
}

fn service(name: &str, app: &str, more: &str) -> String {
    let spec = format!("{{ipFamilyPolicy: PreferDualStack, selector: {{app: {app}}}, ports: [{{port: 80}}]{more}}}");
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {spec}\n")
}

fn two_subnets() -> PathBuf {
    shop().with_file_name("two-subnets")
}

/// The words of all probes between two, each once: `true` and `false`, or those of a service.
fn words(report: &Value, from: &str, to: &str) -> BTreeSet<String> {
    let fit = probes(report).filter(|probe| probe["from"] == from && probe["to"] == to);
    let words: BTreeSet<String> =
        fit.map(|probe| probe["verdict"].as_str().map_or_else(|| probe["reached"].to_string(), str::to_owned)).collect();
    assert!(!words.is_empty(), "{from} -> {to} in {report}");
    words
}

fn only(word: &str) -> BTreeSet<String> {
    [word.to_owned()].into()
}

/// `palisade lab exec` in the lab of a directory.
fn exec(directory: &Manifests, target: &str, command: &[&str]) -> Ended {
    let arguments = ["lab", "exec", "--lab", directory.path().to_str().unwrap(), target, "--"];
    run(palisade(arguments.iter().chain(command)))
}

fn order(lab: &Running, what: &str, node: &str) -> Ended {
    run(palisade(["lab", "node", what, "--lab", &lab.pid().to_string(), node]))
}

#[test]
fn pods_of_two_nodes_on_one_subnet_reach_each_other_by_routes_and_policy_is_that_of_each_end() {
    if !labs_run_here() {
        return;
    }
    let local = ", internalTrafficPolicy: Local";
    let manifests = Manifests::new(
        &(namespace("a")
            + &node("left", NEAR, "", "")
            + &node("right", NEAR, "", "")
            + &on("left", "x")
            + &on("right", "w")
            + &on("right", "z")
            + &policy(
                "a",
                "only-x",
                "{podSelector: {matchLabels: {app: w}}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}",
            )
            + &policy("a", "z-stays", "{podSelector: {matchLabels: {app: z}}, policyTypes: [Egress]}")
            + &service("w", "w", "")
            + &service("here", "w", local)),
    );
    let report = lab(manifests.path(), &["--mode", "native", "--output", "json"]).expect_code(0).json();
    for (from, to, word) in [
        ("a/x", "a/w", "true"),
        ("a/w", "a/x", "true"),
        ("a/x", "a/z", "true"),
        ("a/z", "a/x", "false"),
        ("a/z", "a/w", "false"),
        // A pod's own node always reaches it; another node is somebody like any other.
        ("node:right", "a/w", "true"),
        ("node:left", "a/w", "false"),
        ("node:left", "a/z", "true"),
        ("outside", "a/w", "false"),
        ("outside", "a/x", "true"),
        ("a/x", "node:right", "true"),
        ("a/x", "outside", "true"),
        ("a/x", "svc/a/w", "reached"),
        ("a/z", "svc/a/w", "denied"),
        ("a/x", "svc/a/here", "dropped"),
    ] {
        assert_eq!(words(&report, from, to), only(word), "{from} -> {to}");
    }
    assert!(probes(&report).all(|probe| probe["unrouted"] == Value::Null), "{report}");
}

#[test]
fn the_example_two_subnets_is_not_routed_across_the_router_in_native_mode() {
    if !labs_run_here() {
        return;
    }
    let expect = two_subnets().join("expect/native.yaml");
    let ended = lab(&two_subnets(), &["--mode", "native", "--expect", expect.to_str().unwrap()]).expect_code(0);
    for part in
        ["all as expected", "network pods are not routed from one link to another", "shop/web-left -> shop/web-right: TCP 8080, ICMP"]
    {
        assert!(ended.output.contains(part), "{part:?} is missing in\n{}", ended.output);
    }
}

/// Needs the overlay.
fn is_as_on_one_node(mode: &str) {
    if !labs_run_here() {
        return;
    }
    let expect = two_subnets().join("expect/reach.yaml");
    let ended = lab(&two_subnets(), &["--mode", mode, "--expect", expect.to_str().unwrap()]).expect_code(0);
    assert!(ended.output.contains("all as expected") && !ended.output.contains("not routed"), "{}", ended.output);
}

#[test]
fn the_example_two_subnets_is_as_on_one_node_with_vxlan_where_it_is_needed() {
    is_as_on_one_node("auto");
}

#[test]
fn the_example_two_subnets_is_as_on_one_node_with_vxlan_everywhere() {
    is_as_on_one_node("vxlan");
}

/// Sends an echo of `size` bytes, headers included, that must not be fragmented.
fn ping(directory: &Manifests, from: &str, to: &str, size: u32) -> Ended {
    let headers = if to.contains(':') { 48 } else { 28 };
    let payload = (size - headers).to_string();
    exec(directory, from, &["ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", &payload, to])
}

/// The addresses of a pod, IPv4's first.
fn addresses(directory: &Manifests, on: &str, pod: &str) -> Vec<String> {
    let lab = format!("--lab={}", directory.path().display());
    let list = run(palisade(["endpoint", "list", &lab, "--node", on, "--output", "json"])).expect_code(0).json();
    let found = list.as_array().unwrap().iter().find(|endpoint| endpoint["pod"] == pod).unwrap_or_else(|| panic!("{pod}: {list}"));
    let mut addresses: Vec<String> = found["addresses"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect();
    addresses.sort_by_key(|address| address.contains(':'));
    addresses
}

/// The MTU of a pod's interface.
fn mtu_of(directory: &Manifests, pod: &str) -> u32 {
    exec(directory, pod, &["cat", "/sys/class/net/eth0/mtu"]).expect_code(0).output.trim().parse().unwrap()
}

#[test]
fn on_a_link_with_a_smaller_mtu_the_largest_packet_passes_and_one_byte_more_is_told_of() {
    if !labs_run_here() {
        return;
    }
    let nodes = node("near", NEAR, "", "") + &node("far", FAR, ", lab.palisade.dev/mtu: '1400'", "");
    let manifests = Manifests::new(&(namespace("a") + &nodes + &on("near", "x") + &on("far", "w")));
    let lab = Running::lab(manifests.path(), &["--keep", "--mode", "native"]);
    lab.wait_for_errors(STAYS);
    assert_eq!((mtu_of(&manifests, "a/x"), mtu_of(&manifests, "a/w")), (1500, 1400), "that of their nodes' links");
    let y = addresses(&manifests, "far", "w");
    let (outside, told) = (["203.0.113.2", "2001:db8:ffff::2"], ["Frag needed", "Packet too big"]);
    for (family, y) in y.iter().enumerate() {
        ping(&manifests, "outside", y, 1400).expect_code(0);
        let error = ping(&manifests, "outside", y, 1401);
        assert!(
            error.code != Some(0) && error.output.contains(told[family]) && error.output.contains("1400"),
            "{}{}",
            error.output,
            error.errors
        );
        ping(&manifests, "a/w", outside[family], 1400).expect_code(0);
        let error = ping(&manifests, "a/w", outside[family], 1401);
        assert!(error.code != Some(0) && error.errors.to_lowercase().contains("message too long"), "{}{}", error.output, error.errors);
        // The other link has the larger one.
        ping(&manifests, "a/x", outside[family], 1500).expect_code(0);
    }
}

/// Needs the overlay.
#[test]
fn through_vxlan_the_largest_packet_of_a_pod_arrives_on_the_other_side_of_the_router() {
    if !labs_run_here() {
        return;
    }
    let mtu = ", lab.palisade.dev/mtu: '1400'";
    let nodes = node("near", NEAR, mtu, "") + &node("far", FAR, mtu, "");
    let manifests = Manifests::new(&(namespace("a") + &nodes + &on("near", "x") + &on("far", "w")));
    let lab = Running::lab(manifests.path(), &["--keep", "--mode", "vxlan"]);
    lab.wait_for_errors(STAYS);
    let mtu = mtu_of(&manifests, "a/x");
    assert!((1280..1400).contains(&mtu), "what the overlay costs is taken off: {mtu}");
    assert_eq!(mtu_of(&manifests, "a/w"), mtu);
    for y in addresses(&manifests, "far", "w") {
        ping(&manifests, "a/x", &y, mtu).expect_code(0);
        let error = ping(&manifests, "a/x", &y, mtu + 1);
        assert!(error.code != Some(0) && error.errors.to_lowercase().contains("message too long"), "{}{}", error.output, error.errors);
    }
}

/// Needs the overlay.
#[test]
fn through_vxlan_a_pod_is_told_how_long_packets_may_be_behind_a_narrower_link() {
    if !labs_run_here() {
        return;
    }
    let nodes = node("near", NEAR, "", "") + &node("far", FAR, ", lab.palisade.dev/mtu: '1400'", "");
    let manifests = Manifests::new(&(namespace("a") + &nodes + &on("near", "x") + &on("far", "w")));
    let lab = Running::lab(manifests.path(), &["--keep", "--mode", "vxlan"]);
    lab.wait_for_errors(STAYS);
    let longest = mtu_of(&manifests, "a/x");
    assert!(longest > 1400, "its node knows nothing of the other link: {longest}");
    let told = ["Frag needed", "Packet too big", "Message too long", "message too long"];
    for y in addresses(&manifests, "far", "w") {
        // The first are lost. The error about them is one of the node's, which learns from it what to tell the pod.
        let began = Instant::now();
        loop {
            let ended = ping(&manifests, "a/x", &y, longest);
            assert_ne!(ended.code, Some(0), "{y}: what is too long for the other link got there");
            if told.iter().any(|told| ended.output.contains(told) || ended.errors.contains(told)) {
                break;
            }
            assert!(began.elapsed() < crate::runner::LONG, "{y}: {}{}", ended.output, ended.errors);
        }
        ping(&manifests, "a/x", &y, 1400 - (1500 - longest)).expect_code(0);
    }
}

/// Needs the overlay.
#[test]
fn in_auto_a_node_on_the_link_is_reached_natively_and_one_behind_a_router_by_the_overlay() {
    if !labs_run_here() {
        return;
    }
    let nodes = node("left", NEAR, "", "") + &node("middle", NEAR, "", "") + &node("right", FAR, "", "");
    let manifests = Manifests::new(&(namespace("a") + &nodes + &on("left", "x") + &on("right", "w")));
    let lab = Running::lab(manifests.path(), &["--keep", "--mode", "auto"]);
    lab.wait_for_errors(STAYS);
    let status = run(palisade(["status", &format!("--lab={}", lab.pid()), "--node", "left", "-o", "json"])).expect_code(0).json();
    let ranges = status["routing"]["ranges"].as_array().unwrap();
    let ways: BTreeSet<(&str, &str)> =
        ranges.iter().map(|range| (range["node"].as_str().unwrap(), range["way"].as_str().unwrap())).collect();
    assert_eq!(ways, BTreeSet::from([("middle", "native"), ("right", "vxlan")]), "{status}");
    assert_eq!(ranges.len(), 4, "of both families: {status}");
}

/// Two nodes on a link and a third one behind a router, all of one family.
#[test]
fn a_network_of_one_family_is_as_one_of_both() {
    if !labs_run_here() {
        return;
    }
    for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let of_family = |both: &str| both.split(',').nth(family).unwrap().to_owned();
        let node = |name: &str, subnets: &str, ranges: &str| node(name, &of_family(subnets), "", &format!("'{}'", of_family(ranges)));
        let manifests = Manifests::new(
            &(namespace("a")
                + &node("left", NEAR, "10.1.0.0/24,fd00:1::/64")
                + &node("right", NEAR, "10.2.0.0/24,fd00:2::/64")
                + &node("far", FAR, "10.3.0.0/24,fd00:3::/64")
                + &on("left", "x")
                + &on("right", "w")
                + &on("far", "v")
                + &on("far", "z")
                + &policy(
                    "a",
                    "z-is-for-w",
                    "{podSelector: {matchLabels: {app: z}}, ingress: [{from: [{podSelector: {matchLabels: {app: w}}}]}]}",
                )
                + &service("w", "w", "")
                + &service("v", "v", "")
                + &service("z", "z", ""))
                .replace("ipFamilyPolicy: PreferDualStack", &format!("ipFamilies: [{name}]")),
        );
        let report = lab(manifests.path(), &["--mode", "auto", "--output", "json"]).expect_code(0).json();
        for (from, to, word) in [
            ("a/x", "a/w", "true"),
            ("a/x", "a/v", "true"),
            ("a/v", "a/x", "true"),
            ("a/x", "a/z", "false"),
            ("a/w", "a/z", "true"),
            ("node:far", "a/z", "true"),
            ("node:left", "a/z", "false"),
            ("node:left", "a/v", "true"),
            ("outside", "a/z", "false"),
            ("outside", "a/v", "true"),
            ("a/v", "node:left", "true"),
            ("a/v", "outside", "true"),
            ("a/x", "svc/a/w", "reached"),
            ("a/x", "svc/a/v", "reached"),
            ("a/x", "svc/a/z", "denied"),
            ("a/w", "svc/a/z", "reached"),
        ] {
            assert_eq!(words(&report, from, to), only(word), "{from} -> {to} in {report}");
        }
        let families: BTreeSet<&str> = probes(&report).filter_map(|probe| probe["family"].as_str()).collect();
        assert_eq!(families, [name.to_lowercase().as_str()].into(), "{report}");
    }
}

#[test]
fn a_node_that_goes_takes_its_pods_out_of_services_and_brings_them_back() {
    lose_a_node("native", NEAR);
}

#[test]
fn a_node_that_goes_takes_its_pods_out_of_services_and_brings_them_back_through_the_overlay() {
    lose_a_node("vxlan", NEAR);
}

#[test]
fn a_node_behind_a_router_that_goes_takes_its_pods_out_of_services_and_brings_them_back_in_auto_mode() {
    lose_a_node("auto", FAR);
}

/// Loses a node that is at this place and gets it back; the two others share a link.
fn lose_a_node(mode: &str, place: &str) {
    if !labs_run_here() {
        return;
    }
    let nodes = [("left", NEAR), ("middle", NEAR), ("right", place)].map(|(name, place)| node(name, place, "", "")).concat();
    let web = |node: &str, name: &str| on(node, name).replace("labels: {app: ", "labels: {app: web, own: ");
    let manifests = Manifests::new(
        &(namespace("a")
            + &nodes
            + &on("left", "x")
            + &web("middle", "w1")
            + &web("right", "w2")
            + &service("web", "web", "")
            + &policy("a", "p", "{podSelector: {matchLabels: {app: x}}, ingress: []}")),
    );
    let expect = manifests.beside(
        "reach.yaml",
        "default: allow\nprobes: [{from: 'node:left', to: a/x, verdict: allow}, {from: '*', to: a/x, verdict: deny}]",
    );
    let lab = Running::lab(manifests.path(), &["--keep", "--mode", mode, "--expect", &expect]);
    lab.wait_for_errors(STAYS);
    lab.wait_for_output("all as expected");
    let before = addresses(&manifests, "right", "w2");

    order(&lab, "stop", "right").expect_code(0);
    lab.wait_for_output("Applied: node right is away\n");
    lab.wait_for_output("no longer there\n");
    lab.wait_for_output("a/x -> a/w2, node:right: TCP 80, ICMP");
    lab.wait_for_errors("all as expected");
    let named = format!("--lab={}", lab.pid());
    run(palisade(["status", &named, "--node", "right"])).expect_code(3);
    let backends = |node: &str| {
        let told = run(palisade(["service", "get", "a/web", &named, "--node", node, "-o", "json"])).expect_code(0).output;
        before.iter().filter(|address| told.contains(&format!("\"{address}\""))).count()
    };
    assert_eq!(backends("left"), 0, "its pods are no endpoints");
    // What cannot be is refused, and changes nothing.
    for (what, node, why) in
        [("stop", "right", "is stopped already"), ("start", "left", "runs already"), ("stop", "nobody", "left, middle, right")]
    {
        let refused = order(&lab, what, node).expect_code(2);
        assert!(refused.errors.contains(why), "{}", refused.errors);
    }

    order(&lab, "start", "right").expect_code(0);
    lab.wait_for_output("Applied: node right is back\n");
    // It was said when the node went, too.
    let began = Instant::now();
    while lab.errors().matches("all as expected").count() < 2 {
        assert!(began.elapsed() < crate::runner::LONG, "{}", lab.errors());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!lab.output().contains("DISAGREE") && !lab.errors().contains("not as expected"), "{}{}", lab.output(), lab.errors());
    assert_eq!(addresses(&manifests, "right", "w2"), before, "with the state that was pinned");
    assert_eq!(backends("left"), 2);
}

#[test]
fn nodes_and_pod_ranges_follow_the_files() {
    if !labs_run_here() {
        return;
    }
    let manifests = Manifests::new(&(namespace("a") + &on("left", "x") + &pod("a", "w", "{containerPort: 80}") + &on("right", "z")));
    manifests.write("left.yaml", &node("left", NEAR, "", "10.1.0.0/24, 'fd01::/64'"));
    manifests.write("right.yaml", &node("right", NEAR, "", "10.2.0.0/24, 'fd02::/64'"));
    let mut lab = Running::lab(manifests.path(), &["--watch", "--mode", "native"]);
    lab.wait_for_errors("watching for edits");
    assert!(lab.output().starts_with("Routing mode: native\n"), "{}", lab.output());
    assert!(addresses(&manifests, "right", "z")[0].starts_with("10.2.0."));
    let routes = |node: &str| {
        let of = |family| exec(&manifests, &format!("node:{node}"), &["ip", family, "route", "show", "proto", "80"]).expect_code(0).output;
        of("-4") + &of("-6")
    };
    let leads_to = |node: &str, ranges: [&str; 2]| {
        let [v4, v6] = ranges.map(str::to_owned);
        routes(node).contains(&(v4 + " via 192.0.2.")) && routes(node).contains(&(v6 + " via 2001:db8:1:"))
    };
    assert!(leads_to("left", ["10.2.0.0/24", "fd02::/64"]), "{}", routes("left"));

    // Pods of a node whose range is another are made anew.
    manifests.write("right.yaml", &node("right", NEAR, "", "10.3.0.0/24, 'fd03::/64'"));
    lab.wait_for_output("Applied: no flow changed");
    let z = addresses(&manifests, "right", "z");
    assert!(z[0].starts_with("10.3.0.") && z[1].starts_with("fd03::"), "{z:?}");
    assert!(leads_to("left", ["10.3.0.0/24", "fd03::/64"]), "{}", routes("left"));
    assert!(!["10.2.0.0/24", "fd02::/64"].iter().any(|range| routes("left").contains(range)), "{}", routes("left"));

    // A range of another node, or a node that cannot be: nothing changes.
    manifests.write("right.yaml", &node("right", NEAR, "", "10.1.0.0/16"));
    lab.wait_for_errors("right.yaml:4: the pod range of Node left, 10.1.0.0/24 and the pod range of Node right, 10.1.0.0/16 overlap");
    lab.wait_for_errors("nothing is changed");

    std::fs::remove_file(manifests.path().join("right.yaml")).unwrap();
    lab.wait_for_output("Applied: nodes removed: right; pods removed: a/z\n");
    lab.wait_for_output("pod a/z is on Node right, which is not there\n");
    assert!(!exec(&manifests, "node:right", &["true"]).errors.is_empty(), "its namespace is gone");
    assert!(!routes("left").contains("via"), "{}", routes("left"));

    manifests.write("right.yaml", &node("right", NEAR, "", "10.4.0.0/24, 'fd04::/64'"));
    lab.wait_for_output("Applied: nodes added: right; pods added: a/z\n");
    lab.wait_for_output("a/z -> a/w, a/x, node:left, node:right, outside: TCP 80, ICMP\n");
    assert!(!lab.output().contains("DISAGREE"), "{}", lab.output());
    lab.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(lab.wait_for_end().code(), Some(0));
}

#[test]
fn commands_name_the_node_whose_agent_they_ask() {
    if !labs_run_here() {
        return;
    }
    let manifests = Manifests::new(
        &(namespace("a") + &node("left", NEAR, "", "") + &node("right", NEAR, "", "") + &on("left", "x") + &on("right", "w")),
    );
    let lab = Running::lab(manifests.path(), &["--keep", "--mode", "native"]);
    lab.wait_for_errors(STAYS);
    let named = format!("--lab={}", lab.pid());
    for node in ["left", "right"] {
        let status = run(palisade(["status", &named, "--node", node, "-o", "json"])).expect_code(0).json();
        assert_eq!(
            (&status["node"], &status["ready"], &status["counts"]["endpoints"]),
            (&node.into(), &true.into(), &1.into()),
            "{status}"
        );
        let explain = run(palisade(["explain", &named, "--node", node, "--from", "outside", "--to", "a/x", "--port", "80", "-o", "json"]))
            .expect_code(0)
            .json();
        assert_eq!(explain[0]["from"], serde_json::json!({"address": "203.0.113.2"}), "{explain}");
    }
    let unclear = run(palisade(["status", &named])).expect_code(2);
    assert!(unclear.errors.contains("--node NAME: left, right"), "{}", unclear.errors);
    let unknown = run(palisade(["status", &named, "--node", "middle"])).expect_code(2);
    assert!(unknown.errors.contains("no node middle"), "{}", unknown.errors);
    let unclear = exec(&manifests, "node", &["true"]).expect_code(2);
    assert!(unclear.errors.contains("node:NAME"), "{}", unclear.errors);
    let address = exec(&manifests, "node:right", &["ip", "-4", "-o", "address", "show", "uplink"]).expect_code(0).output;
    assert!(address.contains("192.0.2.12/24"), "{address}");
}

#[test]
fn a_lab_whose_pods_cannot_be_wired_leaves_nothing_of_its_nodes() {
    if !labs_run_here() {
        return;
    }
    let nothing = tempfile::tempdir().unwrap();
    let before = Snapshot::take(nothing.path()).unwrap();
    let manifests = Manifests::new(&(namespace("a") + &node("left", NEAR, "", "") + &on("left", "x")));
    let began = Instant::now();
    let mut ended = palisade(["lab"]);
    // A plugin that wires nobody.
    ended.arg(manifests.path()).args(["--cni", "/bin/false"]);
    let ended = run(ended).expect_code(5);
    assert!(ended.errors.contains("palisade-cni ADD for a/x"), "{}", ended.errors);
    assert!(began.elapsed() < crate::runner::LONG);
    assert_eq!(before.difference(&Snapshot::take(nothing.path()).unwrap()), "");
}
