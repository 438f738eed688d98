//! Directories of manifests: what is read, and what is refused with file, line and field.

use palisade_k8s::convert::ContainerPort;
use palisade_k8s::index::{Index, Realisable};
use palisade_k8s::manifest::{Manifest, ManifestErrors, read};
use palisade_policy::model::ObjectName;
use std::collections::BTreeMap;
use std::path::Path;

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  namespace: shop
  name: p
spec:
  podSelector: {}
  ingress:
  - from:
    - podSelector:
        matchLabels: {a: b}
    ports:
    - port: 80
";

const WRITTEN_BY_A_CLUSTER: &str = "\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress:
  - {action: Accept, to: [{namespaces: {}}]}
status: {conditions: [{type: Accepted, status: 'True'}]}
---
apiVersion: palisade.dev/v1alpha1
kind: Identity
metadata: {name: db}
spec: {pods: [{pods: {matchLabels: {app: db}}}]}
status: {pods: 3}
---
apiVersion: palisade.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: p, namespace: shop}
spec: {subject: {}, ingress: []}
status: {podsSelected: 3, nodes: 2}
";

struct Directory(tempfile::TempDir);

impl Directory {
    fn of(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a sub-directory");
            std::fs::write(path, text).expect("a file");
        }
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn read(&self) -> Result<Manifest, ManifestErrors> {
        read(self.path())
    }

    #[track_caller]
    fn good(&self) -> Manifest {
        self.read().unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The errors, one a line, without the directory's own path.
    #[track_caller]
    fn errors(&self) -> Vec<String> {
        let errors = self.read().expect_err("refused").to_string();
        errors.lines().map(|line| line.replace(&format!("{}/", self.path().display()), "")).collect()
    }
}

/// The errors of one file `f.yaml` that follows a namespace `shop` declared elsewhere.
#[track_caller]
fn errors(text: &str) -> Vec<String> {
    Directory::of(&[("a.yaml", NAMESPACE), ("f.yaml", text)]).errors()
}

/// The error of the policy with `from` replaced by `to`.
#[track_caller]
fn error_of_policy(from: &str, to: &str) -> String {
    assert!(POLICY.contains(from), "{from:?} is in the policy");
    let errors = errors(&POLICY.replacen(from, to, 1));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].strip_prefix("f.yaml:").expect("the file").to_owned()
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{containers: [{{name: c}}]}}\n")
}

fn names(manifest: &Manifest) -> Vec<String> {
    manifest.declared_pods().iter().map(|pod| pod.name.to_string()).collect()
}

#[test]
fn documents_lists_and_json_are_read_and_files_come_in_the_order_of_their_names() {
    let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"j\", \"namespace\": \"shop\"},\n\t\"spec\": {\"containers\": [{\"name\": \"c\"}]}\n}";
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: l, namespace: shop}, spec: {containers: [{name: c}]}}\n";
    let pods = "apiVersion: v1\nkind: PodList\nitems:\n- {metadata: {name: k, namespace: shop}, spec: {containers: [{name: c}]}}\n";
    let documents = format!("# first\n---\n{}---\n---\n{}...\n---\n{POLICY}", pod("b"), pod("a"));
    let directory = Directory::of(&[
        ("z.yml", NAMESPACE),
        ("a.yaml", &documents),
        ("b.json", json),
        ("c.yaml", list),
        ("d.yaml", pods),
        ("readme.md", "# none"),
        (".hidden.yaml", "]["),
    ]);
    let manifest = directory.good();
    assert_eq!(names(&manifest), ["shop/a", "shop/b", "shop/j", "shop/k", "shop/l"]);
    assert_eq!((manifest.namespaces.len(), manifest.policies.len(), manifest.ignored.len()), (1, 1, 0));
    assert_eq!(read(&directory.path().join("z.yml")).expect("one file").namespaces.len(), 1);
}

#[test]
fn sub_directories_are_listed_and_not_entered_as_kubectl_does() {
    let directory = Directory::of(&[("a.yaml", NAMESPACE), ("more/b.yaml", "][")]);
    let ignored: Vec<String> = directory.good().ignored.iter().map(|note| format!("{} {}", note.kind, note.object)).collect();
    assert_eq!(ignored, ["directory more"]);
}

#[test]
fn the_pods_of_a_deployment_are_named_by_number_and_labelled_by_its_template() {
    let deployment = |replicas: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: shop, labels: {{of: deployment}}}}\nspec:\n  {replicas}\n  \
             selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web, tier: front}}}}\n    spec:\n      \
             containers:\n      - name: c\n        ports: [{{containerPort: 8080, name: http}}]\n"
        )
    };
    let pods = |replicas: &str| Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &deployment(replicas))]).good();
    assert_eq!(names(&pods("replicas: 3")), ["shop/web-0", "shop/web-1", "shop/web-2"]);
    assert_eq!(names(&pods("replicas: 0")), [""; 0]);
    let one = pods("paused: false");
    assert_eq!(names(&one), ["shop/web-0"], "replicas default to one");
    let labels: BTreeMap<_, _> = [("app", "web"), ("tier", "front")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(one.pods[0].metadata.labels, Some(labels));
    let text = deployment("replicas: 1");
    let refused = |from: &str, to: &str| errors(&text.replace(from, to)).join("\n");
    assert_eq!(
        refused("app: web, tier", "tier"),
        "f.yaml:6: Deployment shop/web: spec.selector: the selector does not match the labels of the template"
    );
    assert_eq!(
        refused("replicas: 1", "replicas: -1"),
        "f.yaml:5: Deployment shop/web: spec.replicas: -1 replicas: 0 to 1000 can be read from a file"
    );
    assert_eq!(
        refused("8080", "70000"),
        "f.yaml:12: Deployment shop/web: spec.template.spec.containers[0].ports[0].containerPort: 70000 is no port: ports are 1 to 65535"
    );
}

#[test]
fn a_pod_is_declared_with_its_ports_and_whether_it_shares_the_nodes_network() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec:\n  hostNetwork: true\n  containers:\n  - name: c\n    ports:\n    \
                - {containerPort: 53, protocol: UDP, name: dns}\n    - {containerPort: 80}\n";
    let declared = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", text)]).good().declared_pods().remove(0);
    let port = |name: Option<&str>, protocol, port| ContainerPort { name: name.map(str::to_owned), protocol, port };
    assert_eq!((declared.name, declared.host_network), (ObjectName::new("shop", "a"), true));
    assert_eq!(declared.ports, [port(Some("dns"), palisade_identity::Protocol::Udp, 53), port(None, palisade_identity::Protocol::Tcp, 80)]);
}

#[test]
fn unknown_kinds_are_listed_with_their_place() {
    let other = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once}\nspec: {anything: [goes]}\n";
    let knative = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n";
    let directory = Directory::of(&[("a.yaml", &format!("{other}---\n{knative}"))]);
    let manifest = directory.good();
    let shown = |note: &palisade_k8s::manifest::Note| note.to_string().replace(&format!("{}/", directory.path().display()), "");
    assert_eq!(
        manifest.ignored.iter().map(shown).collect::<Vec<_>>(),
        ["a.yaml:1: Job once", "a.yaml:6: Service (serving.knative.dev/v1) k"]
    );
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, uid: u, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{port: 80}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.7}]}}
";
const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
";

#[test]
fn services_and_endpoint_slices_are_taken_without_what_a_cluster_has_set() {
    let manifest = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &format!("{SLICE}---\n{SERVICE}"))]).good();
    let mut index = Index::new();
    assert!(manifest.feed(&mut index));
    let (name, services) = (ObjectName::new("shop", "web"), index.services());
    let service = &services.services[&name];
    assert_eq!((&service.uid, &service.created, service.external.len()), (&None, &None, 0));
    assert_eq!(service.cluster_ips, ["10.96.0.1".parse::<std::net::IpAddr>().expect("an address")]);
    assert_eq!(services.slices[&name].keys().collect::<Vec<_>>(), ["web-1"]);
    assert!(!manifest.feed(&mut index), "nothing is different");
    assert!(Directory::of(&[("a.yaml", NAMESPACE)]).good().feed(&mut index));
    assert_eq!(index.services(), palisade_service::model::Services::default());
}

#[test]
fn a_service_or_a_slice_that_cannot_be_read_is_an_error_with_its_line() {
    let replaced = |text: &str, from: &str, to: &str| errors(&text.replace(from, to));
    assert_eq!(
        replaced(SERVICE, "port: 80", "port: 0"),
        ["f.yaml:8: Service shop/web: spec.ports[0].port: 0 is no port: ports are 1 to 65535"]
    );
    assert_eq!(
        replaced(SLICE, "10.0.0.1", "fd00::1"),
        ["f.yaml:6: EndpointSlice shop/web-1: endpoints[0].addresses[0]: fd00::1 is of another family than addressType says"]
    );
    assert_eq!(
        replaced(SERVICE, "selector", "selectors"),
        ["f.yaml:7: Service shop/web: spec.selectors: there is no such field in Service"]
    );
    assert_eq!(errors(&format!("{SERVICE}---\n{SERVICE}")).len(), 1, "one name, one service");
}

#[test]
fn what_would_steer_a_terminal_is_escaped_in_notes_and_errors() {
    let object = |kind: &str, name: &str| format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n");
    let text = object(r#""\e[31mred""#, r#""two\nlines""#) + "---\n" + &object("Secret", r#""\u202eback \u00e9""#);
    let directory = Directory::of(&[("a.yaml", &text), ("sub\x1b[2J/b.yaml", "")]);
    let manifest = directory.good();
    let notes: Vec<String> = manifest.ignored.iter().map(ToString::to_string).collect();
    assert!(notes.iter().all(|note| !note.contains(|c: char| c.is_control() || c == '\u{202e}')), "{notes:?}");
    for part in [r"\u{1b}[31mred two\nlines", r"\u{202e}back é", r"sub\u{1b}[2J: a directory"] {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:?}");
    }
    let errors = errors(&object("Pod", r#""\e[31mred""#));
    assert!(errors[0].contains(r"Pod \u{1b}[31mred: "), "{errors:?}");
    assert!(errors.iter().all(|error| !error.contains('\x1b')), "{errors:?}");
}

#[test]
fn a_namespace_must_be_declared_unless_every_cluster_has_it() {
    let text = pod("a").replace(", namespace: shop", "") + "---\n" + &pod("b").replace("shop", "kube-system");
    let manifest = Directory::of(&[("a.yaml", &text)]).good();
    assert_eq!(names(&manifest), ["default/a", "kube-system/b"]);
    let mut index = Index::new();
    assert!(manifest.feed(&mut index));
    let label = |name: &str| [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
    assert_eq!(index.model().namespaces, ["default", "kube-system"].map(|name| (name.to_owned(), label(name))).into_iter().collect());
    assert_eq!(
        Directory::of(&[("f.yaml", &pod("a"))]).errors(),
        ["f.yaml:3: Pod shop/a: metadata.namespace: there is no namespace \"shop\": declare it with kind: Namespace"]
    );
}

#[test]
fn a_directory_feeds_the_index_whole() {
    let directory = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &pod("a")), ("c.yaml", POLICY)]);
    let mut index = Index::new();
    directory.good().feed(&mut index);
    index.set_nodes(BTreeMap::new());
    assert!(index.synced());
    assert_eq!((index.model().pods.len(), index.model().policies.len()), (1, 1));
    assert!(!directory.good().feed(&mut index), "nothing is different");
    std::fs::remove_file(directory.path().join("c.yaml")).expect("the file is there");
    assert!(directory.good().feed(&mut index));
    assert_eq!((index.model().pods.len(), index.model().policies.len()), (1, 0));
}

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: left, uid: u, labels: {zone: z}, annotations: {a: b}}
spec: {podCIDRs: [10.1.0.0/24, 'fd01::/64'], unschedulable: false}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}, {type: Hostname, address: left}], nodeInfo: {kernelVersion: x}}
";

#[test]
fn with_nodes_a_pod_is_where_it_says_and_has_the_addresses_of_its_status() {
    let text = pod("a")
        .replace("spec:", "status: {podIP: 10.1.0.7, podIPs: [{ip: 10.1.0.7}, {ip: 'fd01::7'}]}\nspec:")
        .replace("containers", "nodeName: left, containers");
    let name = ObjectName::new("shop", "a");
    let alone = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &text)]).good();
    assert_eq!((alone.declared_pods()[0].node.as_deref(), &alone.pods[0].status), (None, &None), "without nodes, all pods are on one");
    let manifest = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &text), ("c.yaml", NODE)]).good();
    assert_eq!(manifest.nodes[0].metadata.uid, None);
    assert_eq!(manifest.declared_pods()[0].node.as_deref(), Some("left"));
    let mut index = Index::new();
    index.set_host("right", &[]);
    assert!(manifest.feed(&mut index) && !manifest.feed(&mut index));
    let model = index.model();
    let shown = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&model.pods[&name].addresses), ["10.1.0.7", "fd01::7"]);
    let node = &model.nodes[&"left".to_owned()];
    assert_eq!((shown(&node.addresses), node.pod_ranges.len(), node.labels.len()), (vec!["192.0.2.11".to_owned()], 2, 1));
    assert_eq!(index.pod_ready_to_realise(&name, None), Realisable::OtherNode { node: "left".to_owned() });
    index.set_host("left", &[]);
    assert_eq!(index.pod_ready_to_realise(&name, None), Realisable::Ready);
}

#[test]
fn a_node_that_cannot_be_read_is_an_error_with_its_line() {
    let replaced = |from: &str, to: &str| errors(&NODE.replace(from, to));
    let wrong = replaced("10.1.0.0/24", "10.1.0.0/33");
    assert!(wrong.len() == 1 && wrong[0].starts_with("f.yaml:4: Node left: spec.podCIDRs[0]: "), "{wrong:?}");
    let wrong = replaced("192.0.2.11", "192.0.2.x");
    assert!(wrong.len() == 1 && wrong[0].starts_with("f.yaml:5: Node left: status.addresses[0].address: "), "{wrong:?}");
    assert_eq!(errors(&format!("{NODE}---\n{NODE}")).len(), 1, "one name, one node");
}

#[test]
fn what_the_api_server_sets_is_dropped() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: u, resourceVersion: '1', deletionTimestamp: '2026-01-01T00:00:00Z'}\n\
                spec: {containers: [{name: c}]}\nstatus: {phase: Succeeded, podIPs: [{ip: 10.0.0.1}]}\n";
    let mut index = Index::new();
    Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", text)]).good().feed(&mut index);
    assert!(index.model().pods[&ObjectName::new("shop", "a")].addresses.is_empty());
    assert_eq!(index.pod_uid(&ObjectName::new("shop", "a")), None);
}

#[test]
fn one_error_anywhere_and_nothing_is_taken_and_every_error_is_told() {
    let bad = POLICY.replace("port: 80", "port: 70000");
    let directory = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &bad), ("c.yaml", "a: [b"), ("d.yaml", &pod("ok"))]);
    let errors = directory.errors();
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0], "b.yaml:13: NetworkPolicy shop/p: spec.ingress[0].ports[0].port: 70000 is no port: ports are 1 to 65535");
    assert!(errors[1].starts_with("c.yaml:") && errors[1].contains("no valid YAML"), "{}", errors[1]);
}

#[test]
fn a_syntax_error_names_file_and_line() {
    let starts = |text: &str, place: &str| {
        let errors = errors(text);
        assert!(errors[0].starts_with(place), "{errors:?}");
    };
    starts("apiVersion: v1\nkind: Pod\n\tmetadata: {}\n", "f.yaml:2: no valid YAML");
    starts("apiVersion: v1\nkind: Pod\nmetadata: {name: a\nspec: b\n", "f.yaml:4: no valid YAML");
    starts("apiVersion: v1\nkind: \"Pod\n", "f.yaml:");
    starts("- just\n- a list\n", "f.yaml:1: the document is no Kubernetes object: kind is missing");
    starts("kind: Pod\n", "f.yaml:1: the document is no Kubernetes object: apiVersion is missing");
    starts("apiVersion: v1\nkind: List\n", "f.yaml:1: the document is no Kubernetes object: items is missing");
}

#[test]
fn two_objects_of_one_kind_and_name_are_refused_with_both_places() {
    let twice = |text: &str| errors(&format!("{text}---\n{text}")).join("\n");
    let directory = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &pod("a")), ("c.yaml", &pod("a"))]);
    assert_eq!(directory.errors(), ["c.yaml:3: Pod shop/a: this name is taken already, at b.yaml:3"]);
    assert!(twice(POLICY).starts_with("f.yaml:19: NetworkPolicy shop/p: this name is taken already, at f.yaml:5"), "{}", twice(POLICY));
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: shop}\nspec:\n  selector: {matchLabels: {a: b}}\n  \
                      template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}\n";
    let directory = Directory::of(&[("a.yaml", NAMESPACE), ("b.yaml", &pod("a-0")), ("c.yaml", deployment)]);
    assert_eq!(directory.errors(), ["c.yaml:3: Pod shop/a-0: this name is taken already, at b.yaml:3"]);
}

#[test]
fn a_value_that_means_nothing_is_refused_with_its_line_and_field() {
    let policy = |from: &str, to: &str, place: &str, message: &str| {
        let error = error_of_policy(from, to);
        let (line, field) = place.split_once(' ').expect("line and field");
        assert!(error.starts_with(&format!("{line}: NetworkPolicy shop/p: {field}: ")) && error.contains(message), "{error}");
    };
    policy("port: 80", "port: 0", "13 spec.ingress[0].ports[0].port", "0 is no port");
    policy("port: 80", "{port: 80, endPort: 79}", "13 spec.ingress[0].ports[0].endPort", "before its first port");
    policy("port: 80", "protocol: TPC", "13 spec.ingress[0].ports[0].protocol", "no protocol \"TPC\"");
    policy("port: 80", "port: '80'", "13 spec.ingress[0].ports[0].port", "a number is written without quotes");
    policy("port: 80", "port: 80.5", "13 spec.ingress[0].ports[0].port", "invalid type");
    policy("port: 80", "port: 99999999999", "13 spec.ingress[0].ports[0].port", "32-bit");
    policy(
        "    - podSelector:\n        matchLabels: {a: b}",
        "    - ipBlock:\n        cidr: 10.0.0.0/40",
        "11 spec.ingress[0].from[0].ipBlock.cidr",
        "no CIDR",
    );
    policy(
        "    - podSelector:\n        matchLabels: {a: b}",
        "    - ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}",
        "10 spec.ingress[0].from[0].ipBlock.except[0]",
        "not a part of",
    );
    policy(
        "matchLabels: {a: b}",
        "matchExpressions:\n        - key: a\n          operator: Near\n",
        "13 spec.ingress[0].from[0].podSelector.matchExpressions[0].operator",
        "no operator \"Near\"",
    );
    policy(
        "matchLabels: {a: b}",
        "matchExpressions:\n        - {key: a, operator: In}\n",
        "12 spec.ingress[0].from[0].podSelector.matchExpressions[0].values",
        "In needs at least one value",
    );
    policy("    - podSelector:\n        matchLabels: {a: b}", "    - podSelector:", "10 spec.ingress[0].from[0]", "names nothing");
    assert!(error_of_policy("name: p", "name: P_").starts_with("5: NetworkPolicy shop/P_: metadata.name: \"P_\" is no valid name"));
    assert_eq!(error_of_policy("  name: p\n", ""), "3: NetworkPolicy shop/without a name: metadata.name: is missing");
}

#[test]
fn an_unknown_field_is_refused_because_a_typo_would_widen_the_policy() {
    assert_eq!(error_of_policy("from:", "form:"), "9: NetworkPolicy shop/p: spec.ingress[0].form: there is no such field in NetworkPolicy");
    assert_eq!(
        error_of_policy("matchLabels", "matchLabel"),
        "11: NetworkPolicy shop/p: spec.ingress[0].from[0].podSelector.matchLabel: there is no such field in NetworkPolicy"
    );
    let pod = pod("a").replace("namespace: shop", "namespace: shop, label: {a: b}");
    assert_eq!(errors(&pod), ["f.yaml:3: Pod shop/a: metadata.label: there is no such field in Pod"]);
}

#[test]
fn an_unknown_field_of_our_own_kinds_is_refused_with_its_line_too() {
    let policy = "apiVersion: palisade.dev/v1alpha1\nkind: IdentityPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  subject: {}\n  \
                  egress:\n  - action: Allow\n    peer: [{entity: Host}]\n";
    assert_eq!(errors(policy), ["f.yaml:8: IdentityPolicy shop/p: spec.egress[0].peer: there is no such field in IdentityPolicy"]);
    let identity = "apiVersion: palisade.dev/v1alpha1\nkind: Identity\nmetadata: {name: i}\nspec:\n  pods:\n  - pods:\n      \
                    matchLabel: {a: b}\n";
    assert_eq!(errors(identity), ["f.yaml:7: Identity i: spec.pods[0].pods.matchLabel: there is no such field in Identity"]);
}

#[test]
fn a_named_port_or_a_bare_block_is_refused_with_how_it_is_written() {
    let policy = |rule: &str| {
        errors(&format!(
            "apiVersion: palisade.dev/v1alpha1\nkind: IdentityPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  subject: {{}}\n  \
             egress:\n  - {rule}\n"
        ))
    };
    assert_eq!(
        policy("{action: Allow, ports: [{port: http}]}"),
        ["f.yaml:7: IdentityPolicy shop/p: spec.egress[0].ports[0].port: a port is a number; a named port is written name: http"]
    );
    assert_eq!(
        policy("{action: Allow, ports: [{port: '80'}]}"),
        ["f.yaml:7: IdentityPolicy shop/p: spec.egress[0].ports[0].port: a port is a number, which is written without quotes: 80"]
    );
    let block = "invalid type: string \"10.0.0.0/8\", expected a block with its field cidr, such as {cidr: 10.0.0.0/8}";
    assert_eq!(
        policy("{action: Allow, peers: [{network: 10.0.0.0/8}]}"),
        [format!("f.yaml:7: IdentityPolicy shop/p: spec.egress[0].peers[0].network: {block}")]
    );
    let identity = "apiVersion: palisade.dev/v1alpha1\nkind: Identity\nmetadata: {name: i}\nspec: {networks: [10.0.0.0/8]}\n";
    assert_eq!(errors(identity), [format!("f.yaml:4: Identity i: spec.networks[0]: {block}")]);
}

#[test]
fn a_key_that_stands_twice_is_refused_because_one_would_replace_the_other() {
    assert_eq!(
        error_of_policy("matchLabels: {a: b}", "matchLabels: {a: b}\n        matchLabels: {c: d}"),
        "12: \"matchLabels\" stands here a second time; the first is in line 11"
    );
}

#[test]
fn a_known_kind_of_another_version_is_refused_and_never_passed_over() {
    assert_eq!(
        error_of_policy("networking.k8s.io/v1", "extensions/v1beta1"),
        "1: NetworkPolicy shop/p: apiVersion \"extensions/v1beta1\" of this kind is not known: write networking.k8s.io/v1"
    );
}

#[test]
fn plain_scalars_are_read_as_kubectl_reads_them() {
    let label = |value: &str| error_of_policy("{a: b}", &format!("{{a: {value}}}"));
    for value in ["yes", "On", "n", "true", "80", "1.5", "0x10", "1_000", "~"] {
        assert!(
            label(value).starts_with("11: NetworkPolicy shop/p: spec.ingress[0].from[0].podSelector.matchLabels.a: invalid type"),
            "{value}"
        );
    }
    for value in ["'yes'", "\"80\"", "!!str 80", "1.2.3", "v1", "0b", "2026-01-01"] {
        let text = POLICY.replacen("{a: b}", &format!("{{a: {value}}}"), 1);
        Directory::of(&[("a.yaml", NAMESPACE), ("f.yaml", &text)]).good();
    }
}

#[test]
fn anchors_are_read_and_cannot_blow_a_file_up() {
    let text = POLICY
        .replace("podSelector: {}", "podSelector: &x {matchLabels: {a: b}}")
        .replace("    - podSelector:\n        matchLabels: {a: b}", "    - podSelector: *x");
    let policy = Directory::of(&[("a.yaml", NAMESPACE), ("f.yaml", &text)]).good().policies.remove(0);
    let spec = policy.spec.expect("a spec");
    let from = spec.ingress.expect("rules")[0].from.clone().expect("peers");
    assert_eq!(from[0].pod_selector, spec.pod_selector);
    let mut bomb = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let alias = format!("*a{}", level - 1);
        bomb += &format!("b{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", "));
    }
    assert!(errors(&bomb)[0].contains("too large"), "{:?}", errors(&bomb));
    assert!(errors(&("a: ".to_owned() + &"[".repeat(500)))[0].contains("f.yaml:1"), "too deep");
    assert!(error_of_policy("matchLabels: {a: b}", "<<: {}").contains("merge keys"), "merge keys are not read");
}

#[test]
fn a_directory_without_manifests_or_that_is_not_there_says_so() {
    let directory = Directory::of(&[("notes.txt", "none")]);
    assert!(directory.read().expect_err("refused").to_string().contains("holds no manifest"));
    let missing = directory.path().join("missing");
    assert!(read(&missing).expect_err("refused").to_string().contains("cannot be read: No such file"));
    std::fs::write(directory.path().join("a.yaml"), [0xff, 0xfe, 0x00]).expect("a file");
    assert_eq!(directory.errors(), ["a.yaml: is not UTF-8 text"]);
}

#[test]
fn only_regular_files_are_read_and_links_to_them() {
    let directory = Directory::of(&[("a.yaml", NAMESPACE), ("elsewhere", &pod("a"))]);
    let beside = |name: &str| directory.path().join(name);
    std::os::unix::fs::symlink(beside("elsewhere"), beside("b.yaml")).expect("a link");
    assert_eq!(names(&directory.good()), ["shop/a"]);
    std::os::unix::fs::symlink("/dev/null", beside("c.yaml")).expect("a link");
    let _socket = std::os::unix::net::UnixListener::bind(beside("d.json")).expect("a socket");
    let refused = "is no regular file: it is named as a manifest is, and cannot be read as one";
    assert_eq!(directory.errors(), [format!("c.yaml: {refused}"), format!("d.json: {refused}")]);
}

#[test]
fn a_pod_needs_a_container() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {containers: []}\n";
    assert_eq!(errors(text), ["f.yaml:4: Pod shop/a: spec.containers: is missing"]);
}

#[test]
fn what_a_cluster_has_written_into_a_status_is_passed_over() {
    let manifest = Directory::of(&[("shop.yaml", NAMESPACE), ("dumped.yaml", WRITTEN_BY_A_CLUSTER)]).good();
    assert_eq!((manifest.cluster_policies.len(), manifest.identities.len(), manifest.identity_policies.len()), (1, 1, 1));
}
