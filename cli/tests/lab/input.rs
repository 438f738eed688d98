//! What a lab refuses, and in which words. Nothing here gets as far as a namespace.

use crate::runner::{Manifests, PALISADE, lab, namespace, palisade, pod, policy, run, shop};
use palisade_test_support::for_every_user;
use std::os::unix::process::CommandExt;
use std::path::Path;

fn base() -> String {
    namespace("a") + &pod("a", "x", "{containerPort: 80}")
}

#[test]
fn manifests_that_are_wrong_are_refused_with_file_line_and_field() {
    let line = base().lines().count() + 1;
    let cases = [
        ("syntax", "---\nkind: [Pod\n".to_owned(), vec!["all.yaml:"]),
        ("two pods of one name", pod("a", "x", ""), vec!["a/x", "taken already"]),
        (
            "an invalid CIDR",
            policy("a", "p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}"),
            vec!["cidr", "10.0.0.0/33"],
        ),
        ("a port of 70000", pod("a", "z", "{containerPort: 70000}"), vec!["containerPort", "70000"]),
        ("a policy port of 70000", policy("a", "p", "{podSelector: {}, ingress: [{ports: [{port: 70000}]}]}"), vec!["port", "70000"]),
        (
            "an unknown operator",
            policy("a", "p", "{podSelector: {matchExpressions: [{key: k, operator: Near, values: [v]}]}}"),
            vec!["operator", "Near"],
        ),
    ];
    for (what, text, parts) in cases {
        let manifests = Manifests::new(&(base() + &text));
        let ended = lab(manifests.path(), &[]).expect_code(2);
        assert!(ended.output.is_empty(), "{what}: {}", ended.output);
        for part in parts {
            assert!(ended.errors.contains(part), "{what}: {part:?} is missing in {}", ended.errors);
        }
        let named =
            ended.errors.split("all.yaml:").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok());
        assert!(named.is_some_and(|named| named >= line - 1), "{what}: a line in what is wrong: {}", ended.errors);
    }
}

#[test]
fn nodes_that_cannot_be_a_network_are_refused_by_name() {
    let node = |name: &str, subnet: &str, range: &str| {
        let metadata = format!("{{name: {name}, annotations: {{lab.palisade.dev/subnet: '{subnet}'}}}}");
        format!("---\napiVersion: v1\nkind: Node\nmetadata: {metadata}\nspec: {{podCIDRs: [{range}]}}\n")
    };
    let link = "192.0.2.0/24";
    for (nodes, reason) in [
        (node("left", link, "10.1.0.0/16") + &node("right", link, "10.1.2.0/24"), "pod range of Node right, 10.1.2.0/24 overlap"),
        (node("left", "192.0.2.7/24", ""), "Node left: annotation lab.palisade.dev/subnet: \"192.0.2.7/24\""),
        (node("left", link, "10.1.0.0/40"), "podCIDRs"),
        (node("node", link, ""), "cannot be called node"),
    ] {
        let manifests = Manifests::new(&(base() + &nodes));
        let ended = lab(manifests.path(), &[]).expect_code(2);
        assert!(ended.output.is_empty() && ended.errors.contains(reason), "{reason}: {}", ended.errors);
    }
}

#[test]
fn a_pipe_among_the_manifests_is_refused_and_not_waited_for() {
    let manifests = Manifests::new(&base());
    nix::unistd::mkfifo(&manifests.path().join("more.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let directory = manifests.path().to_str().unwrap();
    let explain = run(palisade(["explain", "--from", "a/x", "--to", "a/x", "--port", "80", "--file", directory]));
    for ended in [explain, lab(manifests.path(), &[])] {
        let ended = ended.expect_code(2);
        assert!(ended.errors.contains("more.yaml: is no regular file"), "{}", ended.errors);
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let ended = lab(Path::new("/nonexistent/manifests"), &[]).expect_code(2);
    assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
    assert!(ended.errors.contains("/nonexistent/manifests"), "{}", ended.errors);
}

#[test]
fn expectations_that_are_wrong_are_refused_with_the_place() {
    let manifests = Manifests::new(&base());
    let expect = manifests.beside("reach.yaml", "default: deny\nprobes:\n  - {from: a/x, to: a/x, port: 70000, verdict: allow}\n");
    let ended = lab(manifests.path(), &["--expect", &expect]).expect_code(2);
    assert!(ended.errors.contains("reach.yaml:3: probes[0].port: 70000 is no port"), "{}", ended.errors);
}

#[test]
fn a_cni_binary_that_is_not_there_is_named() {
    let ended = lab(&shop(), &["--cni", "/nonexistent/palisade-cni"]).expect_code(3);
    assert!(ended.errors.contains("/nonexistent/palisade-cni") && ended.errors.contains("--cni"), "{}", ended.errors);
}

#[test]
fn a_command_line_that_is_wrong_ends_with_2() {
    for arguments in [
        &["lab"][..],
        &["lab", "exec", "a/b"],
        &["frobnicate"],
        &["explain", "--from", "a/b", "--to", "c/d"],
        &["status", "--output", "xml"],
    ] {
        run(palisade(arguments)).expect_code(2);
    }
}

#[test]
fn a_verdict_that_does_not_exist_is_refused_before_anybody_is_asked() {
    let ended = run(palisade(["observe", "--verdict", "nonsense"])).expect_code(2);
    assert!(ended.errors.contains("nonsense") && ended.errors.contains("default-deny, allowed-new"), "{}", ended.errors);
}

#[test]
fn explain_answers_from_files_with_no_agent_and_no_privileges() {
    let example = crate::runner::shop().with_file_name("egress-by-identity");
    // Somebody who is not root.
    let (directory, binary) = for_every_user(PALISADE.as_ref());
    for file in ["namespaces.yaml", "identities.yaml", "pods.yaml", "policy.yaml"] {
        std::fs::copy(example.join(file), directory.path().join(file)).unwrap();
    }
    let explain = |to: &str, port: &str, output: &str| {
        let mut command = std::process::Command::new(&binary);
        command.args(["explain", "--from", "store/checkout", "--to", to, "--port", port, "--output", output, "--file"]);
        command.arg(directory.path()).current_dir("/");
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        run(command)
    };
    let reached = explain("payments/db", "5432", "json").expect_code(0).json();
    assert_eq!(reached.as_array().unwrap().len(), 2, "both families");
    assert_eq!((&reached[0]["passes"], &reached[0]["egressRules"][0]["fate"]), (&true.into(), &"decides".into()), "{reached}");
    assert_eq!(reached[0]["egressRules"][0]["policy"], "IdentityPolicy store/checkout");
    let refused = explain("payments/backup", "5432", "json").expect_code(0).json();
    assert_eq!((&refused[0]["passes"], &refused[0]["egress"]["verdict"]), (&false.into(), &"default-deny".into()), "{refused}");
    let fates: Vec<_> = refused[0]["egressRules"].as_array().unwrap().iter().map(|rule| rule["fate"].as_str().unwrap()).collect();
    assert_eq!(fates, ["peer-differs", "peer-differs"]);
    let port = explain("payments/db", "80", "table").expect_code(0).output;
    assert!(port.contains("Considered in this order\n") && port.contains("other ports"), "{port}");
    let outside = explain("203.0.113.1", "443", "json").expect_code(0).json();
    assert_eq!((outside.as_array().unwrap().len(), &outside[0]["passes"]), (1, &false.into()), "{outside}");
    let unknown = explain("payments/nobody", "5432", "table").expect_code(2);
    assert!(unknown.errors.contains("payments/nobody") && unknown.errors.contains("the pods here: names/resolver"), "{}", unknown.errors);
}

#[test]
fn explain_knows_a_label_of_63_unusual_characters_and_both_ports_of_one_name() {
    let value = "A-_.-_.a0__..--z9._-A.B_C-D...e___f---0_0-1.2A-_.-_.a0__..--z9Z";
    assert_eq!(value.len(), 63);
    let labelled = |name: &str, value: &str| {
        let containers = "[{name: one, image: i, ports: [{name: twice, containerPort: 80}]}, {name: two, image: i, ports: [{name: twice, containerPort: 81}]}]";
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{odd.example.org/a_B-c.D: '{value}'}}}}\nspec: {{containers: {containers}}}\n"
        )
    };
    let other = format!("{}z", &value[..62]);
    let rule = format!("{{from: [{{podSelector: {{matchLabels: {{odd.example.org/a_B-c.D: '{value}'}}}}}}], ports: [{{port: twice}}]}}");
    let text = namespace("a")
        + &labelled("same", value)
        + &labelled("other", &other)
        + &policy("a", "p", &format!("{{podSelector: {{}}, ingress: [{rule}]}}"));
    let manifests = Manifests::new(&text);
    for (from, to, port, passes) in
        [("a/same", "a/other", "80", true), ("a/same", "a/other", "81", true), ("a/other", "a/same", "80", false)]
    {
        let directory = manifests.path().to_str().unwrap();
        let arguments = ["explain", "--from", from, "--to", to, "--port", port, "--output", "json", "--file", directory];
        let explained = run(palisade(arguments)).expect_code(0).json();
        assert!(explained.as_array().unwrap().iter().all(|family| family["passes"] == passes), "{from} {to} {port}: {explained}");
    }
}

#[test]
fn explain_takes_an_address_of_its_node_for_the_node_which_reaches_its_pods_always() {
    let manifests = Manifests::new(&(base() + &policy("a", "p", "{podSelector: {}, ingress: []}")));
    let passes = |from: &str, output: &str| {
        let directory = manifests.path().to_str().unwrap();
        run(palisade(["explain", "--from", from, "--to", "a/x", "--port", "80", "--output", output, "--file", directory])).expect_code(0)
    };
    for (from, expected) in [("198.19.255.254", true), ("2001:2:0:ffff::1", true), ("node", true), ("203.0.113.1", false)] {
        let explained = passes(from, "json").json();
        assert!(explained.as_array().unwrap().iter().all(|family| family["passes"] == expected), "{from}: {explained}");
        let line = if expected { "\npasses\n" } else { "\ndoes not pass\n" };
        assert!(passes(from, "table").output.contains(line), "{from}");
    }
}

#[test]
fn a_run_directory_in_the_environment_is_no_option_that_files_conflict_with() {
    let manifests = Manifests::new(&(base() + &pod("a", "z", "")));
    let explain = |further: &[&str]| {
        let mut command = palisade(["explain", "--from", "a/x", "--to", "a/z", "--port", "80", "--output", "json"]);
        command.args(further).env("PALISADE_RUN_DIR", "/nonexistent/run");
        run(command)
    };
    let directory = manifests.path().to_str().unwrap();
    assert_eq!(explain(&["--file", directory]).expect_code(0).json()[0]["passes"], true);
    explain(&["--file", directory, "--run-dir", "/nonexistent/run"]).expect_code(2);
    let asked = explain(&[]).expect_code(3);
    assert!(asked.errors.contains("/nonexistent/run/agent.sock"), "{}", asked.errors);
}

#[test]
fn explain_lists_what_of_the_files_has_no_effect_beside_its_answer() {
    let other = "---\napiVersion: networking.k8s.io/v1\nkind: networkpolicy\nmetadata: {name: p, namespace: a}\n";
    let host = pod("a", "host", "").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let service =
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {selector: {app: nobody}, ports: [{port: 80}]}\n";
    let manifests = Manifests::new(&(base() + &pod("a", "z", "") + &host + other + service));
    let directory = manifests.path().to_str().unwrap();
    for output in ["json", "table"] {
        let arguments = ["explain", "--from", "a/x", "--to", "a/z", "--port", "80", "--output", output, "--file", directory];
        let ended = run(palisade(arguments)).expect_code(0);
        for (start, part) in
            [("Ignored: ", "networkpolicy a/p"), ("Not wired: ", "a/host"), ("Leads to nobody: ", "service a/s selects no pod")]
        {
            assert!(ended.errors.lines().any(|line| line.starts_with(start) && line.contains(part)), "{start}{part}: {}", ended.errors);
            assert!(!ended.output.contains(start), "{}", ended.output);
        }
        if output == "json" {
            assert_eq!(ended.json().as_array().unwrap().len(), 2, "both families");
        }
    }
}

#[test]
fn explain_says_what_no_policy_is_asked_about_and_refuses_ends_that_no_packet_has() {
    let manifests =
        Manifests::new(&(base() + &policy("a", "p", "{podSelector: {}, ingress: [], egress: [], policyTypes: [Ingress, Egress]}")));
    let explain = |from: &str, to: &str, output: &str| {
        let directory = manifests.path().to_str().unwrap();
        run(palisade(["explain", "--from", from, "--to", to, "--port", "80", "--output", output, "--file", directory]))
    };
    for (from, to, settled, passes, why) in [
        ("a/x", "169.254.1.1", "link", false, "no policy can name it"),
        ("a/x", "fe80::1", "link", false, "no policy can name it"),
        ("a/x", "a/x", "itself", true, "a pod always reaches itself at its own address"),
        ("node", "a/x", "own-node", true, "the node always reaches its own pods"),
    ] {
        let explained = explain(from, to, "json").expect_code(0).json();
        for family in explained.as_array().unwrap() {
            assert_eq!((&family["settled"], &family["passes"]), (&settled.into(), &passes.into()), "{from} -> {to}: {family}");
        }
        let table = explain(from, to, "table").expect_code(0).output;
        let line = if passes { "\npasses\n" } else { "\ndoes not pass\n" };
        assert!(table.contains(why) && table.contains(line), "{table}");
    }
    for (from, to, why) in [
        ("169.254.1.1", "a/x", "the node's end of each pod's link"),
        ("127.0.0.1", "a/x", "loopback"),
        ("a/x", "::1", "loopback"),
        ("a/x", "0.0.0.0", "unspecified"),
        ("ff02::1", "a/x", "group"),
        ("203.0.113.1", "169.254.1.1", "only a pod comes there"),
    ] {
        let ended = explain(from, to, "table").expect_code(2);
        assert!(ended.output.is_empty() && ended.errors.contains(why), "{from} -> {to}: {}", ended.errors);
    }
}

#[test]
fn explain_says_what_cluster_policies_say_of_a_pod_that_reaches_itself_through_a_service() {
    let cluster = concat!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: own}\n",
        "spec: {tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}\n"
    );
    let closed = policy("a", "p", "{podSelector: {}, ingress: [], egress: [], policyTypes: [Ingress, Egress]}");
    let manifests = Manifests::new(&(base() + &closed + cluster));
    let directory = manifests.path().to_str().unwrap();
    let arguments = ["explain", "--from", "a/x", "--to", "a/x", "--port", "80", "--service", "--output", "json", "--file", directory];
    for family in run(palisade(arguments)).expect_code(0).json().as_array().unwrap() {
        assert_eq!(
            (&family["passes"], &family["egress"]["verdict"], &family["ingress"]["verdict"]),
            (&false.into(), &"allow".into(), &"deny".into())
        );
        assert!(family["ingress"]["reason"].as_str().unwrap().contains("own (Admin tier, priority 7)"), "{family}");
    }
}

#[test]
fn explain_lists_policies_in_audit_mode_with_what_they_would_have_done() {
    let policy = policy("a", "watch", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {none: here}}}]}]}");
    let audited = policy.replace("name: watch", "name: watch, annotations: {palisade.dev/mode: Audit}");
    assert_ne!(policy, audited);
    let manifests = Manifests::new(&(base() + &audited));
    let directory = manifests.path().to_str().unwrap();
    let table = run(palisade(["explain", "--from", "node", "--to", "a/x", "--port", "80", "--file", directory])).expect_code(0).output;
    assert!(!table.contains("watch"), "the node is not judged: {table}");
    let table =
        run(palisade(["explain", "--from", "203.0.113.1", "--to", "a/x", "--port", "80", "--file", directory])).expect_code(0).output;
    let would =
        "were the policies in audit mode enforced, ingress would say default-deny: default deny of ingress by NetworkPolicy a/watch";
    for part in ["\npasses\n", would, "NetworkPolicy a/watch (audit)", "other peers"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn an_agent_that_is_not_there_is_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    for command in [&["status"][..], &["observe"], &["endpoint", "list"], &["explain", "--from", "a/b", "--to", "c/d", "--port", "80"]] {
        let mut command = palisade(command);
        command.arg("--run-dir").arg(directory.path());
        let ended = run(command).expect_code(3);
        assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
        assert!(ended.errors.contains("agent.sock") && ended.errors.contains("running?"), "{}", ended.errors);
    }
}

#[test]
fn without_root_a_lab_is_one_sentence() {
    // Somebody who is not root must be able to reach the files.
    let (directory, binary) = for_every_user(PALISADE.as_ref());
    std::fs::write(directory.path().join("palisade-cni"), "").unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("all.yaml"), base()).unwrap();
    let mut command = std::process::Command::new(binary);
    command.arg("lab").arg(manifests).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let ended = run(command).expect_code(3);
    assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
    assert!(ended.errors.contains("root"), "{}", ended.errors);
}
