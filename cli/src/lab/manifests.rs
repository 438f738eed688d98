//! What a lab takes from the manifests: its pods, and what the user should know about the rest.

use super::flow::{Port, Protocol};
use super::outside;
use super::topology::Topology;
use crate::error::CliError;
use crate::files;
use palisade_k8s::index::Index;
use palisade_k8s::manifest::{self, DeclaredPod, Manifest};
use palisade_policy::model::{Node, ObjectName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Made-up addresses, to find out which pods stand behind services.
const MADE_UP_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const MADE_UP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);

/// A pod of the manifests that gets a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Its name.
    pub name: ObjectName,
    /// The ports that its containers declare, and those to which services lead.
    pub ports: BTreeSet<Port>,
    /// The node that it is on.
    pub node: String,
}

/// What a lab takes from the manifests.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// The pods, by name.
    pub pods: Vec<PodSpec>,
    /// A sentence for each object that has no effect, or hardly the one that is meant.
    pub notes: Vec<String>,
    /// All objects; no pod has an address there. Without Node objects they are on the lab's node.
    pub index: Index,
    /// Where there are Node objects: what a cluster adds to them.
    pub cluster: Option<Cluster>,
}

/// The objects of a lab of several nodes, and who is where.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The objects as they are written.
    pub manifest: Manifest,
    /// The nodes and their links.
    pub topology: Topology,
    /// The node of each pod, also of one that is not there.
    pub places: BTreeMap<ObjectName, String>,
}

/// Reads the manifests of a directory; the error names file, line and field of everything that is wrong. What nodes and pods were given
/// `before`, when the directory was read last, they keep.
pub fn read(directory: &Path, expect: Option<&Path>, before: Option<&Manifests>) -> Result<Manifests, CliError> {
    let manifest = manifest::read(directory).map_err(|errors| CliError::Input(errors.to_string()))?;
    let topology = Topology::read(&manifest, before.and_then(|before| Some(&before.cluster.as_ref()?.topology))).map_err(|error| {
        let place = error.node().map(|node| manifest.place("Node", &ObjectName::cluster(node)));
        CliError::Input(format!("{}: {error}", place.unwrap_or_else(|| directory.display().to_string())))
    })?;
    if before.is_some_and(|before| before.cluster.is_some() != topology.is_some()) {
        let why = "a lab that runs cannot get its first Node object, or lose its last one: start it anew";
        return Err(CliError::Input(format!("{}: {why}", directory.display())));
    }
    let places = topology.as_ref().map(|topology| places(&manifest.declared_pods(), topology, before));
    let index = index(&manifest);
    let mut notes = files::notes(&manifest, &index, expect);
    let mut found = Manifests { notes: Vec::new(), index, ..Manifests::default() };
    let wired = || manifest.declared_pods().into_iter().filter(|pod| !pod.host_network);
    let mut targets = targets(&found.index, wired().map(|pod| pod.name));
    for pod in wired() {
        let mut ports = targets.remove(&pod.name).unwrap_or_default();
        ports.extend(pod.ports.iter().map(|port| (Protocol::from(port.protocol), port.port)));
        let node = places.as_ref().map_or_else(|| outside::NODE.to_owned(), |places| places.get(&pod.name).cloned().unwrap_or_default());
        if topology.as_ref().is_some_and(|topology| !topology.0.contains_key(&node)) {
            let place = manifest.place("Pod", &pod.name);
            notes.push(format!("Not wired: {place}: pod {} is on Node {node}, which is not there", pod.name));
            continue;
        }
        found.pods.push(PodSpec { name: pod.name, ports, node });
    }
    found.notes = notes;
    found.cluster = topology.zip(places).map(|(topology, places)| Cluster { manifest: manifest.clone(), topology, places });
    if found.pods.is_empty() {
        return Err(CliError::Input(format!("{}: no pod is declared there, so there is nobody to connect", directory.display())));
    }
    Ok(found)
}

/// The objects, on the lab's node where there are no others.
fn index(manifest: &Manifest) -> Index {
    let mut index = Index::new();
    if manifest.nodes.is_empty() {
        index.set_host(outside::NODE, &outside::pod_ranges());
        let node = Node { addresses: outside::node_addresses().to_vec(), pod_ranges: outside::pod_ranges(), ..Node::default() };
        index.set_nodes([(outside::NODE.to_owned(), node)].into());
    }
    manifest.feed(&mut index);
    index
}

/// Which pod is on which node. One that says none stays where it was `before`, as long as that node is there; else it goes to the node with the
/// fewest pods, of several the first by name, pods in the order of their names.
fn places(pods: &[DeclaredPod], topology: &Topology, before: Option<&Manifests>) -> BTreeMap<ObjectName, String> {
    let before = before.and_then(|before| before.cluster.as_ref());
    let stays =
        |name: &ObjectName| before.and_then(|before| before.places.get(name)).filter(|node| topology.0.contains_key(*node)).cloned();
    let mut places: BTreeMap<ObjectName, String> =
        pods.iter().filter_map(|pod| Some((pod.name.clone(), pod.node.clone().or_else(|| stays(&pod.name))?))).collect();
    let mut counts: BTreeMap<&String, usize> = topology.0.keys().map(|node| (node, 0)).collect();
    for node in places.values() {
        counts.entry(node).and_modify(|count| *count += 1);
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().map(|(node, count)| (node.clone(), count)).collect();
    for pod in pods {
        if places.contains_key(&pod.name) {
            continue;
        }
        if let Some((node, count)) = counts.iter_mut().min_by_key(|(_, count)| *count) {
            *count += 1;
            places.insert(pod.name.clone(), node.clone());
        }
    }
    places
}

/// The ports of pods to which services lead by their selectors, declared or not.
fn targets(index: &Index, pods: impl Iterator<Item = ObjectName>) -> BTreeMap<ObjectName, BTreeSet<Port>> {
    let mut index = index.clone();
    let mut pod_of: BTreeMap<IpAddr, ObjectName> = BTreeMap::new();
    for (number, name) in (1_u32..).zip(pods) {
        let v4 = IpAddr::from(Ipv4Addr::from(u32::from(MADE_UP_V4) + number));
        let v6 = IpAddr::from(Ipv6Addr::from(u128::from(MADE_UP_V6) + u128::from(number)));
        index.set_local_addresses(&name, None, vec![v4, v6]);
        pod_of.extend([(v4, name.clone()), (v6, name)]);
    }
    index.derive_endpoints();
    let mut targets: BTreeMap<ObjectName, BTreeSet<Port>> = BTreeMap::new();
    for slice in index.services().slices.values().flat_map(|slices| slices.values()) {
        for pod in slice.endpoints.iter().filter_map(|endpoint| pod_of.get(&endpoint.address)) {
            let ports = slice.ports.iter().map(|port| (Protocol::from(port.protocol), port.port));
            targets.entry(pod.clone()).or_default().extend(ports);
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: x, namespace: a}
spec:
  containers:
  - {name: c, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: a}
spec:
  hostNetwork: true
  containers: [{name: c, image: i}]
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: a}
spec: {selector: {}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m, namespace: a}
"#;

    #[test]
    fn pods_with_a_network_are_taken_and_the_rest_is_told() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("all.yaml"), MANIFESTS).unwrap();
        let found = read(directory.path(), None, None).unwrap();
        let ports = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
        assert_eq!(found.pods, [PodSpec { name: ObjectName::new("a", "x"), ports, node: outside::NODE.to_owned() }]);
        assert_eq!(found.notes.len(), 2);
        for part in ["ConfigMap", "a/host"] {
            assert!(found.notes.iter().any(|note| note.contains(part)), "{part}: {:?}", found.notes);
        }
    }

    #[test]
    fn a_pod_listens_where_a_service_leads_also_where_it_does_not_say_so() {
        let directory = tempfile::tempdir().unwrap();
        let service = "
---
apiVersion: v1
kind: Service
metadata: {name: t, namespace: a}
spec: {selector: {app: x}, ports: [{name: web, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]}
";
        let labelled = MANIFESTS.replace("metadata: {name: x, namespace: a}", "metadata: {name: x, namespace: a, labels: {app: x}}");
        std::fs::write(directory.path().join("all.yaml"), labelled + service).unwrap();
        let ports = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Tcp, 8080), (Protocol::Udp, 53)]);
        let expected = PodSpec { name: ObjectName::new("a", "x"), ports, node: outside::NODE.to_owned() };
        assert_eq!(read(directory.path(), None, None).unwrap().pods, [expected]);
    }

    #[test]
    fn a_pod_is_where_it_says_or_where_there_are_fewest_and_stays_there() {
        let directory = tempfile::tempdir().unwrap();
        let write = |nodes: &[&str], pods: &[(&str, &str)]| {
            let nodes = nodes.iter().map(|name| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"));
            let pods = pods.iter().map(|(name, place)| {
                format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{place} containers: [{{name: c}}]}}\n")
            });
            std::fs::write(directory.path().join("all.yaml"), nodes.chain(pods).collect::<String>()).unwrap();
        };
        let shown = |found: &Manifests| found.pods.iter().map(|pod| format!("{}:{}", pod.name.name, pod.node)).collect::<Vec<_>>();
        write(&["a", "b"], &[("p1", ""), ("p2", "nodeName: a,"), ("p3", ""), ("p4", "nodeName: z,"), ("p5", "")]);
        let first = read(directory.path(), None, None).unwrap();
        assert_eq!(shown(&first), ["p1:b", "p2:a", "p3:a", "p5:b"]);
        assert!(
            first.notes.iter().any(|note| note.ends_with("all.yaml:27: pod default/p4 is on Node z, which is not there")),
            "{:?}",
            first.notes
        );
        write(&["a", "b", "c"], &[("p0", ""), ("p1", ""), ("p3", "")]);
        let second = read(directory.path(), None, Some(&first)).unwrap();
        assert_eq!(shown(&second), ["p0:c", "p1:b", "p3:a"]);
        write(&["b", "c"], &[("p0", ""), ("p1", ""), ("p3", "")]);
        assert_eq!(shown(&read(directory.path(), None, Some(&second)).unwrap()), ["p0:c", "p1:b", "p3:b"]);
        write(&[], &[("p0", "")]);
        assert!(read(directory.path(), None, Some(&second)).unwrap_err().to_string().contains("start it anew"));
    }

    #[test]
    fn what_is_wrong_with_a_node_names_its_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let node = |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec: {{podCIDRs: [10.1.0.0/24]}}\n");
        std::fs::write(directory.path().join("nodes.yaml"), node("a") + &node("b")).unwrap();
        let error = read(directory.path(), None, None).unwrap_err().to_string();
        let line = format!("{}:11: the pod range of Node a, ", directory.path().join("nodes.yaml").display());
        assert!(error.starts_with(&line), "{line}: {error}");
    }

    #[test]
    fn a_service_that_leads_to_nobody_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let service = |name: &str, app: &str, target: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {{selector: {{app: {app}}}, ports: [{{port: 80, targetPort: {target}}}]}}\n"
            )
        };
        let labelled = MANIFESTS
            .replace("metadata: {name: x, namespace: a}", "metadata: {name: x, namespace: a, labels: {app: x}}")
            .replace("{containerPort: 80}", "{name: web, containerPort: 80}");
        let services = [("good", "x", "web"), ("number", "x", "9999"), ("other", "x", "wbe"), ("nobody", "z", "web")];
        let text: String = services.map(|(name, app, target)| service(name, app, target)).concat();
        std::fs::write(directory.path().join("all.yaml"), labelled + &text).unwrap();
        let notes = read(directory.path(), None, None).unwrap().notes;
        let file = directory.path().join("all.yaml").display().to_string();
        let told: Vec<&str> = notes.iter().filter_map(|note| note.strip_prefix("Leads to nobody: ")?.strip_prefix(&file)).collect();
        assert_eq!(
            told,
            [
                ":46: service a/nobody selects no pod: is a label of its selector misspelt, or has its Deployment no replicas?",
                ":41: service a/other: no pod that it selects names a TCP port \"wbe\", as its targetPort does",
            ]
        );
    }

    #[test]
    fn a_directory_without_pods_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
        assert!(read(directory.path(), None, None).unwrap_err().to_string().contains("no pod"));
    }
}
