//! What a lab of several nodes has in place of an API server: the objects of the files, with what a cluster adds to them. Each node's agent reads
//! it as it would read any directory.

use super::manifests::Cluster;
use super::paths;
use super::topology::NodePlan;
use crate::error::CliError;
use palisade_k8s::index::Index;
use palisade_k8s::manifest;
use palisade_policy::model::ObjectName;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// Writes the record.
#[derive(Debug, Default)]
pub struct Record {
    /// Which cluster IPs services were given: each keeps what it has.
    services: Index,
}

impl Record {
    /// Writes what is the case now: `addresses` are those of the pods that are up. Gives an index of what was written; it knows no node
    /// to be its own.
    pub fn write(&mut self, cluster: &Cluster, addresses: &BTreeMap<ObjectName, Vec<IpAddr>>) -> Result<Index, CliError> {
        cluster.manifest.feed(&mut self.services);
        self.services.assign_cluster_ips(&super::outside::service_ranges());
        let failed = |error: String| CliError::Failed(format!("cannot write the lab's record: {error}"));
        let text = objects(cluster, addresses, &self.services).map_err(|error| failed(error.to_string()))?;
        let (directory, new) = (paths::record(), Path::new(paths::ROOT).join("record.new"));
        let written = std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&new, text))
            .and_then(|()| std::fs::rename(&new, directory.join("objects.json")));
        written.map_err(|error| failed(error.to_string()))?;
        let read = manifest::read(&directory).map_err(|errors| failed(errors.to_string()))?;
        let mut index = Index::new();
        read.feed(&mut index);
        Ok(index)
    }
}

/// The record's text: a list of objects.
fn objects(cluster: &Cluster, addresses: &BTreeMap<ObjectName, Vec<IpAddr>>, given: &Index) -> serde_json::Result<String> {
    let manifest = &cluster.manifest;
    let mut items = Vec::new();
    add(&mut items, ("v1", "Namespace"), &manifest.namespaces, |_| {})?;
    add(&mut items, ("v1", "Node"), &manifest.nodes, |node| {
        let plan = node["metadata"]["name"].as_str().and_then(|name| cluster.topology.0.get(name));
        if let Some(NodePlan { addresses, ranges, .. }) = plan {
            node["spec"] = json!({ "podCIDRs": ranges });
            let internal = |address: &IpAddr| json!({"type": "InternalIP", "address": address});
            node["status"] = json!({"addresses": addresses.iter().map(internal).collect::<Vec<_>>()});
        }
    })?;
    add(&mut items, ("v1", "Pod"), &manifest.pods, |pod| {
        let name = name(pod);
        if let Some(node) = cluster.places.get(&name) {
            pod["spec"]["nodeName"] = node.as_str().into();
        }
        let addresses = addresses.get(&name).into_iter().flatten();
        pod["status"] = json!({"podIPs": addresses.map(|address| json!({ "ip": address })).collect::<Vec<_>>()});
    })?;
    let services = given.services();
    add(&mut items, ("v1", "Service"), &manifest.services, |service| {
        // One without addresses has none to tell, and says so itself.
        if let Some(model) = services.services.get(&name(service)).filter(|model| !model.cluster_ips.is_empty()) {
            service["spec"]["clusterIPs"] = json!(model.cluster_ips);
            service["spec"]["clusterIP"] = json!(model.cluster_ips[0]);
        }
    })?;
    add(&mut items, ("discovery.k8s.io/v1", "EndpointSlice"), &manifest.endpoint_slices, |_| {})?;
    add(&mut items, ("networking.k8s.io/v1", "NetworkPolicy"), &manifest.policies, |_| {})?;
    add(&mut items, ("palisade.dev/v1alpha1", "IdentityPolicy"), &manifest.identity_policies, |_| {})?;
    add(&mut items, ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"), &manifest.cluster_policies, |_| {})?;
    add(&mut items, ("palisade.dev/v1alpha1", "Identity"), &manifest.identities, |_| {})?;
    serde_json::to_string(&json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

fn add<K: Serialize>(
    items: &mut Vec<Value>,
    (version, kind): (&str, &str),
    objects: &[K],
    complete: impl Fn(&mut Value),
) -> serde_json::Result<()> {
    for object in objects {
        let mut object = serde_json::to_value(object)?;
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        complete(&mut object);
        items.push(object);
    }
    Ok(())
}

fn name(object: &Value) -> ObjectName {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    ObjectName::new(text("namespace"), text("name"))
}

#[cfg(test)]
mod tests {
    use super::super::manifests;
    use super::*;

    const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left, labels: {topology.kubernetes.io/zone: z}}
---
apiVersion: v1
kind: Pod
metadata: {name: x, labels: {app: x}}
spec: {containers: [{name: c, image: i, ports: [{containerPort: 80, name: web}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: x}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: x}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: web}, {port: 1, endPort: 9}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: c}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: x}}}}]}]
---
apiVersion: palisade.dev/v1alpha1
kind: Identity
metadata: {name: i}
spec: {pods: [{pods: {matchLabels: {app: x}}}]}
---
apiVersion: palisade.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: ip}
spec: {subject: {}, egress: [{action: Allow, peers: [{identity: i}], ports: [{port: 80}]}]}
"#;

    #[test]
    fn the_record_says_what_the_files_say_and_where_everybody_is() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("all.yaml"), OBJECTS).unwrap();
        let found = manifests::read(directory.path(), None, None).unwrap();
        let cluster = found.cluster.unwrap();
        let pod = ObjectName::new("default", "x");
        let mut given = Index::new();
        cluster.manifest.feed(&mut given);
        given.assign_cluster_ips(&super::super::outside::service_ranges());
        let address: IpAddr = "10.244.1.7".parse().unwrap();
        let text = objects(&cluster, &[(pod.clone(), vec![address])].into(), &given).unwrap();
        let record = tempfile::tempdir().unwrap();
        std::fs::write(record.path().join("objects.json"), text).unwrap();
        let mut index = Index::new();
        manifest::read(record.path()).unwrap_or_else(|errors| panic!("{errors}")).feed(&mut index);
        let (model, files) = (index.model(), given.model());
        assert_eq!((&model.policies, &model.identities, &model.namespaces), (&files.policies, &files.identities, &files.namespaces));
        assert_eq!((model.policies.len(), model.identities.len()), (3, 1));
        assert_eq!(model.pods[&pod].addresses, [address]);
        let node = &model.nodes[&"left".to_owned()];
        assert_eq!((node.addresses.len(), node.pod_ranges.len(), node.labels.len()), (2, 2, 1));
        index.derive_endpoints();
        let services = index.services();
        assert_eq!(services.services[&ObjectName::new("default", "s")].cluster_ips.len(), 2);
        assert!(services.services[&ObjectName::new("default", "headless")].cluster_ips.is_empty());
        let endpoint = services.slices[&ObjectName::new("default", "s")].values().flat_map(|slice| &slice.endpoints).next().unwrap();
        assert_eq!(endpoint.node.as_deref(), Some("left"));
    }
}
