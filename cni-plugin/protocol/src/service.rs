//! What the agent of a node makes of services.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A service, as it is in the kernel of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ServiceKind,
    /// Its ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Where it is reached. A frontend that another service has is among the problems instead.
    pub frontends: Vec<ServiceFrontend>,
    /// Backends of all its frontends, each address and port once.
    pub backends_known: usize,
    /// Those of them that take new flows.
    pub backends_chosen: usize,
    /// What keeps it from being served as it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Why it could not be used as it was written, and what is done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceKind {
    /// It has addresses of its own.
    Addressed,
    /// Its name stands for the addresses of its endpoints: nothing to translate.
    Headless,
    /// Its name stands for another name: nothing to translate.
    ExternalName,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port at the service's addresses.
    pub port: u16,
    /// The port at the nodes' addresses, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFrontend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Whose address it is.
    pub view: FrontendView,
    /// What becomes of new flows of the cluster: of pods, and of processes of the node.
    pub state: FrontendState,
    /// What becomes of new flows from outside the cluster; absent where they find no service there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<FrontendState>,
    /// Seconds for which a client stays with its backend; absent where it need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
    /// What stands behind it, where one service was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<ServiceBackend>,
}

/// Whose address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendView {
    /// A cluster IP of the service.
    Cluster,
    /// One that the world outside reaches, too: an external one, or one of the node.
    External,
}

/// What becomes of new flows to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendState {
    /// They go to a backend.
    Served,
    /// There is no endpoint: they are refused.
    Refused,
    /// There are endpoints, but none for who asks on this node: they are dropped.
    Dropped,
}

/// What stands behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceBackend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// `namespace/name` of the pod, `node`, or empty.
    pub name: String,
    /// It takes new flows of the cluster.
    pub chosen: bool,
    /// It takes new flows from outside the cluster.
    #[serde(default)]
    pub chosen_outside: bool,
    /// It answers: the flows that it has go on. Where it does not, its connections stay, and flows of datagrams go elsewhere.
    pub serving: bool,
}
