//! What a lab takes from the manifests: its pods, and what the user should know about the rest.

use super::flow::{Port, Protocol};
use super::outside;
use crate::error::CliError;
use crate::files;
use palisade_k8s::index::Index;
use palisade_k8s::manifest;
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
}

/// What a lab takes from the manifests.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// The pods, by name.
    pub pods: Vec<PodSpec>,
    /// A sentence for each object that is there and has no effect.
    pub notes: Vec<String>,
    /// All objects, on the lab's node; no pod has an address there.
    pub index: Index,
}

/// Reads the manifests of a directory; the error names file, line and field of everything that is wrong.
pub fn read(directory: &Path, expect: Option<&Path>) -> Result<Manifests, CliError> {
    let manifest = manifest::read(directory).map_err(|errors| CliError::Input(errors.to_string()))?;
    let mut found = Manifests { pods: Vec::new(), notes: files::notes(&manifest, expect), index: index(&manifest) };
    let wired = || manifest.declared_pods().into_iter().filter(|pod| !pod.host_network);
    let mut targets = targets(&found.index, wired().map(|pod| pod.name));
    for pod in wired() {
        let mut ports = targets.remove(&pod.name).unwrap_or_default();
        ports.extend(pod.ports.iter().map(|port| (Protocol::from(port.protocol), port.port)));
        found.pods.push(PodSpec { name: pod.name, ports });
    }
    if found.pods.is_empty() {
        return Err(CliError::Input(format!("{}: no pod is declared there, so there is nobody to connect", directory.display())));
    }
    Ok(found)
}

/// The objects on the lab's node.
fn index(manifest: &manifest::Manifest) -> Index {
    let mut index = Index::new();
    index.set_host(outside::NODE, &outside::pod_ranges());
    let node = Node { addresses: outside::node_addresses().to_vec(), pod_ranges: outside::pod_ranges(), ..Node::default() };
    index.set_nodes([(outside::NODE.to_owned(), node)].into());
    manifest.feed(&mut index);
    index
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
        let found = read(directory.path(), None).unwrap();
        let ports = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
        assert_eq!(found.pods, [PodSpec { name: ObjectName::new("a", "x"), ports }]);
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
        assert_eq!(read(directory.path(), None).unwrap().pods, [PodSpec { name: ObjectName::new("a", "x"), ports }]);
    }

    #[test]
    fn a_directory_without_pods_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
        assert!(read(directory.path(), None).unwrap_err().to_string().contains("no pod"));
    }
}
