//! `--watch`: edits are applied live.

use crate::runner::{Manifests, Running, labs_run_here, namespace, pod, policy};
use nix::sys::signal::Signal;

const CLOSED: &str = "{podSelector: {matchLabels: {app: x2}}, policyTypes: [Ingress]}";
const OPEN: &str = "{podSelector: {matchLabels: {app: x2}}, ingress: [{from: [{podSelector: {}}]}]}";

fn pods() -> String {
    namespace("a") + &pod("a", "x", "{containerPort: 80}") + &pod("a", "x2", "{containerPort: 80}")
}

#[test]
fn edits_flip_verdicts_add_and_remove_pods_and_broken_ones_change_nothing() {
    if !labs_run_here() {
        return;
    }
    let manifests = Manifests::new(&pods());
    manifests.write("policy.yaml", &policy("a", "p", CLOSED));
    let mut lab = Running::lab(manifests.path(), &["--watch"]);
    lab.wait_for_errors("watching for edits");
    lab.wait_for_output("default deny of ingress by NetworkPolicy a/p");

    manifests.write("policy.yaml", &policy("a", "p", OPEN));
    lab.wait_for_output("now reached\n    a/x -> a/x2: TCP 80, ICMP\n");

    manifests.write("policy.yaml", "kind: [NetworkPolicy\n");
    lab.wait_for_errors("policy.yaml:");
    lab.wait_for_errors("nothing is changed");
    assert_eq!(lab.output().matches("Applied:").count(), 1, "{}", lab.output());

    manifests.write("policy.yaml", &policy("a", "p", OPEN));
    manifests.write("more.yaml", &pod("a", "z", "{containerPort: 81}"));
    lab.wait_for_output("Applied: pods added: a/z\n");
    lab.wait_for_output("a/x -> a/z: TCP 81, ICMP\n");
    lab.wait_for_output("a/x -> node, outside: TCP 81\n");

    std::fs::remove_file(manifests.path().join("more.yaml")).unwrap();
    lab.wait_for_output("Applied: pods removed: a/z\n  no longer there\n");

    // Only pods of the namespace may reach a/x2, so without the policy the outside host does, too.
    std::fs::remove_file(manifests.path().join("policy.yaml")).unwrap();
    lab.wait_for_output("now reached\n    outside -> a/x2: TCP 80, ICMP\n");
    assert!(!lab.output().contains("DISAGREE"), "{}", lab.output());
    lab.signal(Signal::SIGINT);
    assert_eq!(lab.wait_for_end().code(), Some(0));
}

#[test]
fn json_of_an_edit_has_only_what_changed() {
    if !labs_run_here() {
        return;
    }
    let manifests = Manifests::new(&pods());
    let lab = Running::lab(manifests.path(), &["--watch", "--output", "json"]);
    lab.wait_for_errors("watching for edits");
    manifests.write("policy.yaml", &policy("a", "p", CLOSED));
    lab.wait_for_output("\"removed\":[]}\n");
    let output = lab.output();
    assert_eq!(output.lines().last().and_then(|line| line.chars().next()), Some('{'), "one line: {output}");
    // The table comes first; nothing says when all of it was read here.
    let mut documents = serde_json::Deserializer::from_str(&output).into_iter::<serde_json::Value>();
    let changes = documents.nth(1).expect("two documents").expect("JSON");
    assert!(documents.next().is_none(), "{output}");
    let probes = changes["probes"].as_array().unwrap();
    assert!(probes.iter().all(|probe| probe["to"] == "a/x2" && probe["reached"] == false), "{changes}");
    assert_eq!(probes.len(), 8, "a/x and outside by TCP and echo over both families; the node always reaches it: {changes}");
}

#[test]
fn backends_follow_the_files_and_a_service_keeps_its_address_while_others_come() {
    if !labs_run_here() {
        return;
    }
    let service = |name: &str| {
        let metadata = format!("{{name: {name}, namespace: a}}");
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {metadata}\nspec: {{selector: {{app: z}}, ports: [{{port: 80}}]}}\n")
    };
    let manifests = Manifests::new(&(namespace("a") + &pod("a", "x", "{containerPort: 80}") + &service("m")));
    let lab = Running::lab(manifests.path(), &["--watch", "--output", "json"]);
    lab.wait_for_errors("watching for edits");
    manifests.write("more.yaml", &(service("b") + &pod("a", "z", "{containerPort: 80}")));
    lab.wait_for_output("\"removed\":[]}\n");
    let output = lab.output();
    let documents: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&output).into_iter().collect::<Result<_, _>>().expect("JSON");
    let [before, changes] = &documents[..] else { panic!("two documents: {output}") };
    let shown = |document: &serde_json::Value, to: &str| {
        let probe = document["probes"].as_array().unwrap().iter().find(|probe| probe["from"] == "a/x" && probe["to"] == to);
        probe.map(|probe| (probe["verdict"].as_str().unwrap().to_owned(), probe["address"].as_str().unwrap().to_owned()))
    };
    let expected = |verdict: &str, address: &str| Some((verdict.to_owned(), address.to_owned()));
    assert_eq!(shown(before, "svc/a/m"), expected("refused", "10.96.0.1"));
    assert_eq!(shown(changes, "svc/a/m"), expected("reached", "10.96.0.1"));
    assert_eq!(shown(changes, "svc/a/b"), expected("reached", "10.96.0.2"));
    assert!(!lab.errors().contains("does not serve"), "{}", lab.errors());
}
