//! A directory of manifests, read as `kubectl apply -f DIRECTORY` reads it.
//!
//! All or nothing: one error anywhere, and nothing of the directory is taken. See the crate's README for what is
//! read and what is refused.

mod collect;
mod decode;
mod error;
mod written;
mod yaml;

pub use error::{ManifestError, ManifestErrors, ManifestProblem, Place};

use crate::api::{ClusterNetworkPolicy, Identity, IdentityPolicy};
use crate::convert::{self, ContainerPort, Participation};
use crate::index::Index;
use collect::Collected;
use decode::decode;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use palisade_policy::model::ObjectName;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a directory of manifests declares. Every object in it converts without error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// The namespaces by name: those declared, and of those that every cluster has the ones that something lives in.
    pub namespaces: Vec<Namespace>,
    /// The nodes by name, with nothing but metadata, pod ranges and addresses. Where there are none, all pods are on one node.
    pub nodes: Vec<Node>,
    /// The pods by name, those of Deployments included. Of what a cluster would have set (node, status, UID) nothing is left but, where
    /// there are nodes, a pod's own node and its addresses.
    pub pods: Vec<Pod>,
    /// The NetworkPolicies by name.
    pub policies: Vec<NetworkPolicy>,
    /// The IdentityPolicies by name.
    pub identity_policies: Vec<IdentityPolicy>,
    /// The ClusterNetworkPolicies by name.
    pub cluster_policies: Vec<ClusterNetworkPolicy>,
    /// The Identities by name.
    pub identities: Vec<Identity>,
    /// The Services by name, without what a cluster would have set (status, UID). A cluster IP is kept where one is written.
    pub services: Vec<Service>,
    /// The EndpointSlices by name.
    pub endpoint_slices: Vec<EndpointSlice>,
    /// Objects of kinds that mean nothing here, and sub-directories.
    pub ignored: Vec<Note>,
    /// Where each object stands, by its kind and name; the pods of a Deployment where that one does.
    pub places: BTreeMap<(&'static str, ObjectName), Place>,
}

/// Something that was seen and not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Its kind, or `directory`.
    pub kind: String,
    /// `namespace/name`, or the name alone.
    pub object: String,
    /// Where it stands.
    pub place: Place,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&error::tame(&match self.kind.as_str() {
            "directory" => format!("{}: a directory, and only files are read", self.place),
            kind => format!("{}: {kind} {}", self.place, self.object),
        }))
    }
}

/// A pod as whoever runs it must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredPod {
    /// Its name.
    pub name: ObjectName,
    /// Whether it shares the node's network: then there is nothing to wire.
    pub host_network: bool,
    /// The node that it is on, where there are nodes.
    pub node: Option<String>,
    /// The ports that its containers declare, in their order.
    pub ports: Vec<ContainerPort>,
}

/// Reads a directory, or one file.
///
/// # Errors
/// Everything that is wrong with it, each with file, line and field.
pub fn read(path: &Path) -> Result<Manifest, ManifestErrors> {
    let mut collected = Collected::default();
    for file in files(path, &mut collected) {
        match text_of(&file) {
            Ok(text) => collected.take_file(&file, &text),
            Err(problem) => collected.fail(Place::file(&file), problem),
        }
    }
    collected.finish()
}

fn text_of(file: &Path) -> Result<String, ManifestProblem> {
    let unreadable = |error: std::io::Error| ManifestProblem::Unreadable(error.to_string());
    // Links are followed: a mounted ConfigMap is made of them. A pipe would keep us waiting for who writes, a device may never end.
    if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(ManifestProblem::NotAFile);
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|_| ManifestProblem::NotUtf8)
}

/// Reads a file with one document that is no Kubernetes object, with the same strictness; `what` names it in errors.
///
/// # Errors
/// What is wrong with it, with file, line and field.
pub fn read_document<T: DeserializeOwned>(file: &Path, text: &str, what: &str) -> Result<T, ManifestErrors> {
    let fail = |line, problem| ManifestError { place: Place::line(file, line), object: None, problem };
    let documents =
        yaml::documents(text).map_err(|error| ManifestErrors(vec![fail(error.line, ManifestProblem::Syntax(error.message))]))?;
    let [document] = &documents[..] else {
        return Err(ManifestErrors(vec![fail(1, ManifestProblem::NotOneDocument(documents.len()))]));
    };
    decode(document, what).map_err(|errors| {
        ManifestErrors(errors.into_iter().map(|error| fail(document.line_of(&error.field), ManifestProblem::Field(error))).collect())
    })
}

/// The manifest files of a directory, in the order of their names. Sub-directories are not entered, as in
/// `kubectl apply -f`: what the lab shows is what the cluster does.
fn files(path: &Path, collected: &mut Collected) -> Vec<PathBuf> {
    let mut fail = |error: std::io::Error| collected.fail(Place::file(path), ManifestProblem::Unreadable(error.to_string()));
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = match std::fs::read_dir(path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()) {
        Ok(entries) => entries,
        Err(error) => {
            fail(error);
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    // Hidden names are editors' and volume mounts' own business.
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    let (directories, mut files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    files.retain(|file| file.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known)));
    if files.is_empty() {
        collected.fail(Place::file(path), ManifestProblem::NoFiles);
    }
    for directory in directories {
        let object = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        collected.ignore(Note { kind: "directory".to_owned(), object, place: Place::file(&directory) });
    }
    files
}

impl Manifest {
    /// Makes the index hold what the manifest declares, and nothing else but, where it declares none, the nodes that are known. Tells
    /// whether anything that policy or services need is different now.
    ///
    /// Services have no endpoints but those of written EndpointSlices, and no cluster IPs but written ones: see
    /// [`Index::derive_endpoints`] and [`Index::assign_cluster_ips`].
    pub fn feed(&self, index: &mut Index) -> bool {
        let nodes = !self.nodes.is_empty() && index.resync(&self.nodes);
        let namespaces = index.resync(&self.namespaces);
        let pods = index.resync(&self.pods);
        let services = index.resync(&self.services) | index.resync(&self.endpoint_slices);
        let others = services | index.resync(&self.identities);
        let policies = index.resync(&self.identity_policies) | index.resync(&self.cluster_policies) | index.resync(&self.policies);
        policies | others | pods | namespaces | nodes
    }

    /// Where an object stands; an empty text where it does not stand anywhere.
    pub fn place(&self, kind: &'static str, name: &ObjectName) -> String {
        self.places.get(&(kind, name.clone())).map(ToString::to_string).unwrap_or_default()
    }

    /// The pods with what it takes to run them.
    pub fn declared_pods(&self) -> Vec<DeclaredPod> {
        let declared = |pod: &Pod| {
            Some(DeclaredPod {
                name: convert::namespaced_name(&pod.metadata).ok()?,
                host_network: convert::participation(pod) == Participation::HostNetwork,
                node: convert::node_of(pod).map(str::to_owned),
                ports: convert::container_ports(pod).ok()?,
            })
        };
        // Nothing is lost here: a pod that does not convert never gets into a manifest.
        self.pods.iter().filter_map(declared).collect()
    }
}
