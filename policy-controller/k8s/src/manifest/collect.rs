//! Gathers the objects of all files, and everything that is wrong with them.

use super::decode::decode;
use super::error::{ManifestError, ManifestErrors, ManifestProblem, Place};
use super::written;
use super::yaml::{self, Node};
use super::{Manifest, Note};
use crate::api::Identity;
use crate::convert;
use crate::field::FieldPath;
use crate::problem::{FieldError, NameRule, Problem, Refusal};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use palisade_policy::model::ObjectName;
use serde::de::DeserializeOwned;
use std::path::Path;

/// The kinds that are read, and the version of each.
const READ: &[(&str, &str)] = &[
    ("Namespace", "v1"),
    ("Node", "v1"),
    ("Pod", "v1"),
    ("Service", "v1"),
    ("EndpointSlice", "discovery.k8s.io/v1"),
    ("Deployment", "apps/v1"),
    ("NetworkPolicy", "networking.k8s.io/v1"),
    ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
    ("Identity", "palisade.dev/v1alpha1"),
    ("IdentityPolicy", "palisade.dev/v1alpha1"),
];
/// The namespace of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";
/// The namespaces that every cluster has.
const ALWAYS_THERE: &[&str] = &[DEFAULT_NAMESPACE, "kube-node-lease", "kube-public", "kube-system"];

/// Whether objects of a kind live in namespaces.
trait Scope {
    const NAMESPACED: bool;
}

impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

/// What was gathered so far.
#[derive(Default)]
pub(super) struct Collected {
    manifest: Manifest,
    errors: Vec<ManifestError>,
    /// Where objects live, to be checked once all files are read.
    lives_in: Vec<(String, Place, String)>,
}

/// One document of a file.
struct Document<'a> {
    file: &'a Path,
    node: &'a Node,
    /// Kind and name, for errors.
    shown: String,
}

impl Document<'_> {
    fn place(&self, field: &FieldPath) -> Place {
        Place::line(self.file, self.node.line_of(field))
    }
}

impl Collected {
    /// Notes something that is wrong with no object in particular.
    pub fn fail(&mut self, place: Place, problem: ManifestProblem) {
        self.errors.push(ManifestError { place, object: None, problem });
    }

    /// Notes something that means nothing here.
    pub fn ignore(&mut self, note: Note) {
        self.manifest.ignored.push(note);
    }

    /// Takes the documents of a file.
    pub fn take_file(&mut self, file: &Path, text: &str) {
        // JSON may be indented with tabs, which YAML may not; inside of its texts a tab never stands for itself.
        let json = file.extension().is_some_and(|extension| extension == "json");
        let text = if json { text.replace('\t', " ") } else { text.to_owned() };
        match yaml::documents(text.trim_start_matches('\u{feff}')) {
            Ok(documents) => documents.iter().for_each(|node| self.take(file, node)),
            Err(error) => self.fail(Place::line(file, error.line), ManifestProblem::Syntax(error.message)),
        }
    }

    fn take(&mut self, file: &Path, node: &Node) {
        let field = |name: &str| node.get(name).and_then(Node::text).filter(|text| !text.is_empty());
        let (Some(version), Some(kind)) = (field("apiVersion"), field("kind")) else {
            let missing = if field("kind").is_none() { "kind" } else { "apiVersion" };
            return self.fail(Place::line(file, node.line), ManifestProblem::NotAnObject(missing));
        };
        if let Some(of) = kind.strip_suffix("List")
            && (of.is_empty() || READ.iter().any(|(kind, _)| *kind == of))
        {
            return self.take_list(file, node, version, of);
        }
        let metadata = |name: &str| node.get("metadata").and_then(|metadata| metadata.get(name)).and_then(Node::text);
        let object = match (metadata("namespace"), metadata("name").unwrap_or("without a name")) {
            (Some(namespace), name) => format!("{namespace}/{name}"),
            (None, name) => name.to_owned(),
        };
        let document = Document { file, node, shown: format!("{kind} {object}") };
        let Some((_, expected)) = READ.iter().find(|(known, _)| *known == kind) else {
            return self.ignore(Note { kind: kind.to_owned(), object, place: Place::line(file, node.line) });
        };
        // A Service of another group (Knative's) is another kind. A NetworkPolicy of another group would be one that
        // is not enforced: never passed over in silence.
        if version != *expected && kind == "Service" {
            return self.ignore(Note { kind: format!("{kind} ({version})"), object, place: Place::line(file, node.line) });
        }
        if version != *expected {
            let problem = ManifestProblem::UnknownVersion { found: version.to_owned(), expected };
            return self.fail_in(&document, &FieldPath::of("apiVersion"), problem);
        }
        match kind {
            "Namespace" => self.take_namespace(&document),
            "Node" => self.take_node(&document),
            "Pod" => self.take_pod(&document),
            "Deployment" => self.take_deployment(&document),
            "NetworkPolicy" => self.take_object(&document, |it| checked(convert::network_policy(it)), |it| &mut it.policies),
            "IdentityPolicy" => self.take_object(&document, |it| checked(convert::identity_policy(it)), |it| &mut it.identity_policies),
            "ClusterNetworkPolicy" => {
                self.take_object(&document, |it| checked(convert::cluster_network_policy(it)), |it| &mut it.cluster_policies)
            }
            "Service" => self.take_object(&document, |it| checked(convert::service(it)), |it| &mut it.services),
            "Identity" => self.take_identity(&document),
            _ => self.take_object::<EndpointSlice>(&document, |it| checked(convert::endpoint_slice(it)), |it| &mut it.endpoint_slices),
        }
    }

    /// A list holds whole objects; in a list of one kind they need not say which.
    fn take_list(&mut self, file: &Path, list: &Node, version: &str, of: &str) {
        let Some(items) = list.get("items").and_then(Node::items) else {
            return self.fail(Place::line(file, list.line), ManifestProblem::NotAnObject("items"));
        };
        for item in items {
            match of {
                "" => self.take(file, item),
                kind => self.take(file, &item.with_default("kind", kind).with_default("apiVersion", version)),
            }
        }
    }

    fn take_namespace(&mut self, document: &Document) {
        let Some(mut namespace) = self.decoded::<Namespace>(document, decode(document.node, "Namespace")) else { return };
        namespace.metadata = kept(namespace.metadata, None);
        namespace.status = None;
        let checked = convert::cluster_name(&namespace.metadata, NameRule::DnsLabel)
            .and_then(|name| convert::namespace(&namespace).map(|_| name).map_err(|refusal| refusal.error));
        if let Some(name) = self.checked(document, checked)
            && self.takes("Namespace", ObjectName::new("", name), document)
        {
            self.manifest.namespaces.push(namespace);
        }
    }

    fn take_node(&mut self, document: &Document) {
        let Some(mut node) = self.decoded(document, written::node(document.node)) else { return };
        node.metadata = kept(node.metadata, None);
        let checked = convert::cluster_name(&node.metadata, NameRule::DnsName)
            .and_then(|name| convert::node(&node).map(|_| name).map_err(|refusal| refusal.error));
        if let Some(name) = self.checked(document, checked)
            && self.takes("Node", ObjectName::cluster(name), document)
        {
            self.manifest.nodes.push(node);
        }
    }

    fn take_pod(&mut self, document: &Document) {
        let Some(mut pod) = self.decoded(document, written::pod(document.node)) else { return };
        pod.metadata = kept(pod.metadata, Some(DEFAULT_NAMESPACE));
        if let Some(name) = self.checked(document, check_pod(&pod)) {
            self.lives(&name, document);
            if self.takes("Pod", name, document) {
                self.manifest.pods.push(pod);
            }
        }
    }

    fn take_deployment(&mut self, document: &Document) {
        let Some(deployment) = self.decoded(document, written::deployment(document.node)) else { return };
        let metadata = kept(deployment.metadata, Some(DEFAULT_NAMESPACE));
        let Some(name) = self.checked(document, convert::namespaced_name(&metadata)) else { return };
        self.lives(&name, document);
        if !self.takes("Deployment", name.clone(), document) {
            return;
        }
        for number in 0..deployment.replicas {
            let mut pod = deployment.template.clone();
            pod.metadata = ObjectMeta {
                name: Some(format!("{}-{number}", name.name)),
                namespace: Some(name.namespace.clone()),
                ..kept(pod.metadata, None)
            };
            let in_template = |error: FieldError| FieldError::new(written::template_field().join(&error.field), error.problem);
            // What is wrong with one pod of a template is wrong with all of them.
            let Some(name) = self.checked(document, check_pod(&pod).map_err(in_template)) else { return };
            if self.takes("Pod", name, document) {
                self.manifest.pods.push(pod);
            }
        }
    }

    /// Takes an object that is read as a whole but for its status, which a cluster writes.
    fn take_object<K: DeserializeOwned + Metadata<Ty = ObjectMeta> + Resource>(
        &mut self,
        document: &Document,
        check: impl Fn(&K) -> Result<(), FieldError>,
        list: impl Fn(&mut Manifest) -> &mut Vec<K>,
    ) where
        K::Scope: Scope,
    {
        let Some(mut object) = self.decoded::<K>(document, decode(&document.node.without("status"), K::KIND)) else { return };
        *object.metadata_mut() = kept(object.metadata().clone(), K::Scope::NAMESPACED.then_some(DEFAULT_NAMESPACE));
        let name = if K::Scope::NAMESPACED {
            convert::namespaced_name(object.metadata())
        } else {
            convert::cluster_name(object.metadata(), NameRule::DnsName).map(ObjectName::cluster)
        };
        let checked = name.and_then(|name| check(&object).map(|()| name));
        if let Some(name) = self.checked(document, checked) {
            if K::Scope::NAMESPACED {
                self.lives(&name, document);
            }
            if self.takes(K::KIND, name, document) {
                list(&mut self.manifest).push(object);
            }
        }
    }

    fn take_identity(&mut self, document: &Document) {
        let Some(mut identity) = self.decoded::<Identity>(document, decode(&document.node.without("status"), "Identity")) else { return };
        identity.metadata = kept(identity.metadata, None);
        let checked = convert::cluster_name(&identity.metadata, NameRule::DnsName)
            .and_then(|name| convert::identity(&identity).map(|_| ObjectName::cluster(name)));
        if let Some(name) = self.checked(document, checked)
            && self.takes("Identity", name, document)
        {
            self.manifest.identities.push(identity);
        }
    }

    fn decoded<T>(&mut self, document: &Document, decoded: Result<T, Vec<FieldError>>) -> Option<T> {
        for error in decoded.as_ref().err().into_iter().flatten() {
            self.fail_in(document, &error.field, error.clone().into());
        }
        decoded.ok()
    }

    fn checked<T>(&mut self, document: &Document, checked: Result<T, FieldError>) -> Option<T> {
        checked.map_err(|error| self.fail_in(document, &error.field.clone(), error.into())).ok()
    }

    fn fail_in(&mut self, document: &Document, field: &FieldPath, problem: ManifestProblem) {
        self.errors.push(ManifestError { place: document.place(field), object: Some(document.shown.clone()), problem });
    }

    /// Claims a name for a kind.
    fn takes(&mut self, kind: &'static str, name: ObjectName, document: &Document) -> bool {
        let place = document.place(&FieldPath::of("metadata.name"));
        if let Some(first) = self.manifest.places.get(&(kind, name.clone())) {
            let first = first.clone();
            self.errors.push(ManifestError {
                place,
                object: Some(format!("{kind} {name}")),
                problem: ManifestProblem::Duplicate { first },
            });
            return false;
        }
        self.manifest.places.insert((kind, name), place);
        true
    }

    fn lives(&mut self, name: &ObjectName, document: &Document) {
        self.lives_in.push((name.namespace.clone(), document.place(&FieldPath::of("metadata.namespace")), document.shown.clone()));
    }

    /// The manifest, if nothing is wrong.
    pub fn finish(mut self) -> Result<Manifest, ManifestErrors> {
        let known = |manifest: &Manifest, name: &str| manifest.namespaces.iter().any(|it| it.metadata.name.as_deref() == Some(name));
        for (namespace, place, object) in std::mem::take(&mut self.lives_in) {
            if known(&self.manifest, &namespace) {
                continue;
            }
            if ALWAYS_THERE.contains(&namespace.as_str()) {
                let metadata = ObjectMeta { name: Some(namespace), ..ObjectMeta::default() };
                self.manifest.namespaces.push(Namespace { metadata, ..Namespace::default() });
            } else {
                self.errors.push(ManifestError { place, object: Some(object), problem: ManifestProblem::NoNamespace(namespace) });
            }
        }
        if !self.errors.is_empty() {
            self.errors.sort_by(|a, b| a.place.cmp(&b.place));
            return Err(ManifestErrors(self.errors));
        }
        let Manifest {
            namespaces,
            nodes,
            pods,
            policies,
            identity_policies,
            cluster_policies,
            identities,
            services,
            endpoint_slices,
            ignored: _,
            places: _,
        } = &mut self.manifest;
        if nodes.is_empty() {
            pods.iter_mut().for_each(belongs_nowhere);
        }
        nodes.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        services.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        endpoint_slices.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        identity_policies.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        cluster_policies.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        identities.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        namespaces.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        pods.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        policies.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        Ok(self.manifest)
    }
}

fn order(metadata: &ObjectMeta) -> (&Option<String>, &Option<String>) {
    (&metadata.namespace, &metadata.name)
}

/// Without nodes, a pod is not somewhere, and has no address from there: what a manifest says of it was dumped from a cluster.
fn belongs_nowhere(pod: &mut Pod) {
    pod.status = None;
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
    }
}

/// What a person writes of metadata. The rest is the API server's to set: a manifest that was dumped from a cluster
/// means what it would mean when applied.
fn kept(metadata: ObjectMeta, namespace: Option<&str>) -> ObjectMeta {
    let ObjectMeta { name, namespace: named, labels, annotations, .. } = metadata;
    let namespace = namespace.map(|default| named.filter(|name| !name.is_empty()).unwrap_or_else(|| default.to_owned()));
    ObjectMeta { name, namespace, labels, annotations, ..ObjectMeta::default() }
}

/// What is wrong with an object that was converted.
fn checked<T>(converted: Result<T, Refusal<T>>) -> Result<(), FieldError> {
    converted.map(drop).map_err(|refusal| refusal.error)
}

fn check_pod(pod: &Pod) -> Result<ObjectName, FieldError> {
    let name = convert::namespaced_name(&pod.metadata)?;
    if pod.spec.as_ref().is_none_or(|spec| spec.containers.is_empty()) {
        return Err(FieldError::new(FieldPath::of("spec.containers"), Problem::Missing));
    }
    convert::pod(pod).map(|_| name).map_err(|refusal| refusal.error)
}
