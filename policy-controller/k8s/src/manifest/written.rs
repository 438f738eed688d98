//! Nodes, pods and Deployments as files have them.
//!
//! Only what the network needs, or whoever runs the pod, is read: metadata, addresses, ranges, the pod's node, the host's network, the ports.
//! That is read strictly. The many other fields of a container mean nothing to a network, and a newer Kubernetes may have more.

use super::decode::decode;
use super::yaml::{Node, Shape};
use crate::convert;
use crate::field::FieldPath;
use crate::problem::{FieldError, Problem};
use k8s_openapi::api::core::v1::{Container, Node as ApiNode, NodeAddress, NodeSpec, NodeStatus, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

/// The most replicas that are read: each is a pod of its own on this machine.
const MOST_REPLICAS: i32 = 1000;
/// The fields of every object.
const OBJECT: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// A Deployment, and a pod as its template has it.
pub(super) struct WrittenDeployment {
    pub metadata: ObjectMeta,
    pub replicas: i32,
    /// Without a name.
    pub template: Pod,
}

/// A pod.
///
/// # Errors
/// Fields that do not exist, or have a wrong type.
pub(super) fn pod(document: &Node) -> Result<Pod, Vec<FieldError>> {
    pod_at(&At { node: Some(document), field: FieldPath::root(), kind: "Pod" }, OBJECT)
}

/// A node.
///
/// # Errors
/// Fields that do not exist, or have a wrong type.
pub(super) fn node(document: &Node) -> Result<ApiNode, Vec<FieldError>> {
    let top = At { node: Some(document), field: FieldPath::root(), kind: "Node" };
    top.has_only(OBJECT)?;
    let (spec, addresses) = (top.key("spec")?, top.key("status")?.key("addresses")?);
    let address = |at: &At| Ok(NodeAddress { type_: at.key("type")?.value()?, address: at.key("address")?.value()? });
    let addresses = addresses.items()?.iter().map(address).collect::<Result<Vec<_>, Vec<FieldError>>>()?;
    let spec = NodeSpec { pod_cidr: spec.key("podCIDR")?.value()?, pod_cidrs: spec.key("podCIDRs")?.value()?, ..NodeSpec::default() };
    let status = NodeStatus { addresses: Some(addresses), ..NodeStatus::default() };
    Ok(ApiNode { metadata: top.key("metadata")?.value()?, spec: Some(spec), status: Some(status) })
}

/// A Deployment.
///
/// # Errors
/// Fields that do not exist, or have a wrong type; a selector that is missing, or that the template's labels do not
/// match; a number of replicas that is negative or beyond reason.
pub(super) fn deployment(document: &Node) -> Result<WrittenDeployment, Vec<FieldError>> {
    let top = At { node: Some(document), field: FieldPath::root(), kind: "Deployment" };
    top.has_only(OBJECT)?;
    let spec = top.key("spec")?;
    let (at_selector, at_replicas) = (spec.key("selector")?, spec.key("replicas")?);
    let written: LabelSelector = at_selector.value()?;
    let selector = convert::selector(&written, &at_selector.field).map_err(|error| vec![error])?;
    let template = pod_at(&spec.key("template")?, &["metadata", "spec"])?;
    if selector.requirements.is_empty() {
        return at_selector.fail(Problem::Missing);
    }
    if !selector.matches(&template.metadata.labels.clone().unwrap_or_default()) {
        return at_selector.fail(Problem::SelectorMissesTemplate);
    }
    let replicas = at_replicas.value::<Option<i32>>()?.unwrap_or(1);
    if !(0..=MOST_REPLICAS).contains(&replicas) {
        return at_replicas.fail(Problem::Replicas { replicas, most: MOST_REPLICAS });
    }
    Ok(WrittenDeployment { metadata: top.key("metadata")?.value()?, replicas, template })
}

/// Where the template stands in a Deployment: the path of a pod's field begins there.
pub(super) fn template_field() -> FieldPath {
    FieldPath::of("spec.template")
}

fn pod_at(at: &At, fields: &[&str]) -> Result<Pod, Vec<FieldError>> {
    at.has_only(fields)?;
    let spec = at.key("spec")?;
    let containers = |list: &str| spec.key(list)?.items()?.iter().map(container).collect::<Result<Vec<_>, _>>();
    let read = PodSpec {
        host_network: spec.key("hostNetwork")?.value()?,
        node_name: spec.key("nodeName")?.value()?,
        service_account_name: spec.key("serviceAccountName")?.value()?,
        containers: containers("containers")?,
        init_containers: Some(containers("initContainers")?).filter(|containers| !containers.is_empty()),
        ..PodSpec::default()
    };
    let status = at.key("status")?;
    let address = |at: &At| Ok(PodIP { ip: at.key("ip")?.value()? });
    let addresses = status.key("podIPs")?.items()?.iter().map(address).collect::<Result<Vec<_>, Vec<FieldError>>>()?;
    let status = PodStatus { pod_ip: status.key("podIP")?.value()?, pod_ips: Some(addresses), ..PodStatus::default() };
    Ok(Pod { metadata: at.key("metadata")?.value()?, spec: Some(read), status: Some(status) })
}

fn container(at: &At) -> Result<Container, Vec<FieldError>> {
    Ok(Container {
        name: at.key("name")?.value()?,
        ports: at.key("ports")?.value()?,
        restart_policy: at.key("restartPolicy")?.value()?,
        ..Container::default()
    })
}

/// A place in a document, where something may stand or not.
struct At<'a> {
    node: Option<&'a Node>,
    field: FieldPath,
    kind: &'static str,
}

impl<'a> At<'a> {
    fn fail<T>(&self, problem: Problem) -> Result<T, Vec<FieldError>> {
        Err(vec![FieldError::new(self.field.clone(), problem)])
    }

    /// The node, unless nothing or null stands here: that is the same in Kubernetes.
    fn present(&self) -> Option<&'a Node> {
        self.node.filter(|node| *node.shape() != Shape::Scalar(Json::Null))
    }

    /// A field of the object that stands here.
    fn key(&self, name: &str) -> Result<At<'a>, Vec<FieldError>> {
        match self.present().map(|node| (node, node.shape())) {
            None | Some((_, Shape::Map(_))) => {
                Ok(At { node: self.present().and_then(|node| node.get(name)), field: self.field.key(name), kind: self.kind })
            }
            Some(_) => self.fail(Problem::WrongType("an object with fields belongs here".to_owned())),
        }
    }

    /// The elements of the list that stands here.
    fn items(&self) -> Result<Vec<At<'a>>, Vec<FieldError>> {
        let item = |(index, node): (usize, &'a Node)| At { node: Some(node), field: self.field.index(index), kind: self.kind };
        match self.present().map(Node::shape) {
            None => Ok(Vec::new()),
            Some(Shape::List(items)) => Ok(items.iter().enumerate().map(item).collect()),
            Some(_) => self.fail(Problem::WrongType("a list belongs here".to_owned())),
        }
    }

    /// What stands here as a value; its default where nothing does.
    fn value<T: DeserializeOwned + Default>(&self) -> Result<T, Vec<FieldError>> {
        let Some(node) = self.present() else { return Ok(T::default()) };
        let below = |error: FieldError| FieldError::new(self.field.join(&error.field), error.problem);
        decode(node, self.kind).map_err(|errors| errors.into_iter().map(below).collect())
    }

    /// That the object which stands here has no other fields.
    fn has_only(&self, names: &[&str]) -> Result<(), Vec<FieldError>> {
        let Some(Shape::Map(entries)) = self.present().map(Node::shape) else { return Ok(()) };
        let unknown = entries.iter().filter(|entry| !names.contains(&entry.key.as_str()));
        let errors: Vec<_> =
            unknown.map(|entry| FieldError::new(self.field.key(&entry.key), Problem::UnknownField(self.kind.to_owned()))).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}
