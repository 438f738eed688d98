//! What a lab takes from the manifests: its pods, and what the user should know about the rest.

use super::flow::{Protocol, Service};
use crate::error::CliError;
use crate::files;
use palisade_k8s::manifest;
use palisade_policy::model::ObjectName;
use std::collections::BTreeSet;
use std::path::Path;

/// A pod of the manifests that gets a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Its name.
    pub name: ObjectName,
    /// The ports that its containers declare.
    pub services: BTreeSet<Service>,
}

/// What a lab takes from the manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// The pods, by name.
    pub pods: Vec<PodSpec>,
    /// A sentence for each object that is there and has no effect.
    pub notes: Vec<String>,
}

/// Reads the manifests of a directory; the error names file, line and field of everything that is wrong.
pub fn read(directory: &Path, expect: Option<&Path>) -> Result<Manifests, CliError> {
    let manifest = manifest::read(directory).map_err(|errors| CliError::Input(errors.to_string()))?;
    let mut found = Manifests { pods: Vec::new(), notes: files::notes(&manifest, expect) };
    for pod in manifest.declared_pods().into_iter().filter(|pod| !pod.host_network) {
        let services = pod.ports.iter().map(|port| (Protocol::from(port.protocol), port.port)).collect();
        found.pods.push(PodSpec { name: pod.name, services });
    }
    if found.pods.is_empty() {
        return Err(CliError::Input(format!("{}: no pod is declared there, so there is nobody to connect", directory.display())));
    }
    Ok(found)
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
spec: {ports: [{port: 80}]}
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
        let services = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
        assert_eq!(found.pods, [PodSpec { name: ObjectName::new("a", "x"), services }]);
        assert_eq!(found.notes.len(), 3);
        for part in ["ConfigMap", "Service", "a/host"] {
            assert!(found.notes.iter().any(|note| note.contains(part)), "{part}: {:?}", found.notes);
        }
    }

    #[test]
    fn a_directory_without_pods_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
        assert!(read(directory.path(), None).unwrap_err().to_string().contains("no pod"));
    }
}
