//! The node socket: one JSON request per line, one JSON response per line (`Observe`: a line per event until
//! the client hangs up). Spoken between `palisade-cni`, `palisade-agent` and `palisade`.

mod client;
mod explain;
mod host_port;
mod routing;
mod service;

pub use client::{Client, ClientError};
pub use explain::{
    BackendExplained, Behind, Explained, Family, FlowEnd, FlowQuery, RuleAction, RuleFate, RuleSaid, Settled, SideVerdict, Unjudged,
    VerdictName,
};
pub use host_port::{HostPort, Transport};
pub use routing::{NodeFault, OverlayStatus, RangeStatus, RoutingStatus, WayName};
pub use service::{FrontendState, FrontendView, ServiceBackend, ServiceFrontend, ServiceKind, ServicePort, ServiceStatus};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Version of this protocol; a request of another version is refused with [`ErrorKind::Version`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Path of the node socket, relative to the run directory.
pub const SOCKET_NAME: &str = "agent.sock";
/// Directory of the endpoint records, relative to the run directory.
pub const RECORDS_NAME: &str = "endpoints";
/// The run directory on a node; a lab has its own.
pub const DEFAULT_RUN_DIR: &str = "/run/palisade";
/// Where maps, programs and links are pinned on a node; a lab mounts its own bpffs.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/palisade";

/// A request line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub call: Call,
}

/// What can be asked of the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// What `palisade-cni` needs to know to wire a pod: answered by [`Reply::Node`].
    Node,
    /// Put the endpoint's policy into the kernel; answered by [`Reply::Done`] when every packet of the pod is policed.
    Realise(EndpointSpec),
    /// Forget the endpoint; succeeds when it is unknown.
    Release(Release),
    /// Compare what the kernel holds for the endpoint with what should be there.
    Check(Attachment),
    /// The agent's state: answered by [`Reply::Status`].
    Status,
    /// The endpoints of this node: answered by [`Reply::Endpoints`].
    Endpoints,
    /// The policies that the agent knows, as it sees them: answered by [`Reply::Policies`].
    Policies {
        /// Only those of this name (`namespace/name`, or the name alone), with their pods.
        #[serde(default)]
        object: Option<String>,
    },
    /// The identities that the agent knows, as it sees them: answered by [`Reply::Identities`].
    Identities {
        /// Only the one of this name, with what it matches.
        #[serde(default)]
        object: Option<String>,
    },
    /// The services that are in the kernel of this node: answered by [`Reply::Services`].
    Services {
        /// Only those of these namespaces; none: of all.
        #[serde(default)]
        namespaces: Vec<String>,
        /// Only the one of this name (`namespace/name`).
        #[serde(default)]
        object: Option<String>,
        /// With what stands behind each frontend.
        #[serde(default)]
        backends: bool,
    },
    /// What the compiled policies say of one flow: answered by [`Reply::Explained`].
    Explain(FlowQuery),
    /// Live verdicts: answered by [`Reply::Event`] lines.
    Observe {
        /// New flows that are allowed, too.
        allowed: bool,
    },
}

/// A response line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", content = "value", rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to [`Call::Node`].
    Node(NodeConfig),
    /// Answer to [`Call::Status`].
    Status(Status),
    /// Answer to [`Call::Endpoints`].
    Endpoints(Vec<EndpointStatus>),
    /// Answer to [`Call::Policies`].
    Policies(Vec<PolicyStatus>),
    /// Answer to [`Call::Identities`].
    Identities(Vec<IdentityStatus>),
    /// Answer to [`Call::Services`].
    Services(Vec<ServiceStatus>),
    /// Answer to [`Call::Explain`].
    Explained(Explained),
    /// One verdict, for [`Call::Observe`].
    Event(Event),
    /// The request failed.
    Error(Failure),
}

/// One attachment of a container to the network, as CNI names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl Attachment {
    /// Whether both names are what CNI allows: the container id matches `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`, the interface is
    /// [one](is_interface_name).
    pub fn is_valid(&self) -> bool {
        let mut id = self.container_id.chars();
        id.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && id.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
            && is_interface_name(&self.interface)
    }
}

/// Whether an interface can have this name, which can stand in a file name then: 1 to 15 characters, no `/`, `:` or space, and no `.` or `..`.
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        && name != "."
        && name != ".."
}

/// File name of an endpoint's record in [`RECORDS_NAME`], by the name of its host-side interface: attachments to two networks may have
/// container and interface in common, and that name they have not. The agent writes it; DEL removes it, so that an agent that was down
/// finds no endpoint that is gone. Only for a name that [can be one](is_interface_name).
pub fn record_name(host_interface: &str) -> String {
    format!("{host_interface}.json")
}

/// An endpoint that is to be forgotten. One of the attachment with another host-side interface is another network's, and stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Which attachment it is.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Name of its host-side interface.
    pub host_interface: String,
}

/// A wired pod interface that waits for its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSpec {
    /// Which attachment this is.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Namespace of the pod (`K8S_POD_NAMESPACE`).
    pub namespace: String,
    /// Name of the pod (`K8S_POD_NAME`).
    pub pod: String,
    /// UID of the pod (`K8S_POD_UID`), where the runtime gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Name of the host-side interface.
    pub host_interface: String,
    /// Index of the host-side interface.
    pub host_index: u32,
    /// Hardware address of the pod's end, `aa:bb:cc:dd:ee:ff`.
    pub pod_mac: String,
    /// Hardware address of the host's end.
    pub host_mac: String,
    /// The pod's addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that lead to the pod (`runtimeConfig.portMappings`), of which no two clash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// What `palisade-cni` needs to know to wire a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Name of the node.
    pub node: String,
    /// The node's pod ranges, at most one per family.
    pub ranges: Vec<IpNet>,
    /// MTU of pod interfaces in bytes.
    pub mtu: u32,
    /// The directory of this ABI below which programs and links are pinned.
    pub pin_dir: String,
}

/// What [`Status::node_services`] says where the node's own processes are served.
pub const NODE_SERVED: &str = "served";

/// The agent's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Where the objects come from: `kubernetes` or the directory.
    pub source: String,
    /// Whether everything was read once and is in the kernel.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub problems: Vec<String>,
    /// Why no pod can be connected now; empty where one can, whatever else is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refuses_pods: Vec<String>,
    /// Attach mechanism: `tcx` or `clsact`.
    pub attach: String,
    /// Whether services are served to the node's own processes: [`NODE_SERVED`], `off`, or why not.
    pub node_services: String,
    /// Version of the kernel-shared layouts.
    pub abi: u32,
    /// The policy epoch.
    pub epoch: u32,
    /// Numbers of things.
    pub counts: Counts,
    /// Packets by outcome.
    pub outcomes: Vec<OutcomeCount>,
    /// Policies that could not be compiled, with the reason.
    pub refused: Vec<Refused>,
    /// How the pods of other nodes are reached; absent where nobody looks: in a directory without Node objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingStatus>,
    /// Names of the interfaces by which clients outside the cluster reach services; none: they are not served.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// Those by which they should and do not, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks_missing: Vec<String>,
}

/// Numbers of things that the agent holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Endpoints on this node.
    pub endpoints: usize,
    /// Pods known.
    pub pods: usize,
    /// Namespaces known.
    pub namespaces: usize,
    /// Policies known.
    pub policies: usize,
    /// Identities in use on this node.
    pub identities: usize,
    /// Distinct effective policies (subjects) on this node.
    pub subjects: usize,
    /// Rows of the policy map.
    pub policy_rows: usize,
    /// Rows of the port tables.
    pub port_rows: usize,
    /// Services in the kernel of this node, those of which there is nothing to translate among them.
    #[serde(default)]
    pub services: usize,
    /// Addresses and ports where they are reached.
    #[serde(default)]
    pub frontends: usize,
    /// Backends of their ports. Each family, and each side of a port that is reached from outside too, has backends of its own.
    #[serde(default)]
    pub backends: usize,
}

/// Packets with one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCount {
    /// Name of the outcome.
    pub outcome: String,
    /// Whether these packets passed.
    pub passes: bool,
    /// Number of packets.
    pub packets: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// An object that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Kind of the object.
    pub kind: String,
    /// `namespace/name`.
    pub object: String,
    /// Why, with the field.
    pub reason: String,
}

/// One endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// What was realised.
    #[serde(flatten)]
    pub spec: EndpointSpec,
    /// Number of its effective policy.
    pub subject: u32,
    /// The policies that isolate its ingress, `namespace/name`; empty: not isolated.
    pub ingress_isolated_by: Vec<String>,
    /// The policies that isolate its egress.
    pub egress_isolated_by: Vec<String>,
    /// Which of its host ports do not lead to it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A policy, as the agent of this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `NetworkPolicy`, `IdentityPolicy` or `ClusterNetworkPolicy`.
    pub kind: String,
    /// `namespace/name`, or the name alone.
    pub object: String,
    /// `Admin` or `Baseline` and the priority, or `Workload`.
    pub tier: String,
    /// `Enforce` or `Audit`.
    pub mode: String,
    /// Number of its ingress rules; absent where it says nothing of ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rules: Option<usize>,
    /// Number of its egress rules; absent where it says nothing of egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rules: Option<usize>,
    /// Pods of the cluster that it selects.
    pub pods: usize,
    /// Those of them that are on this node.
    pub pods_here: usize,
    /// Whether this version of it is what the kernel of this node enforces; false in audit mode, in which it enforces nothing.
    pub enforced: bool,
    /// Identities that its rules name and that do not exist: who allows by one allows nobody, who denies by one denies everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_identities: Vec<String>,
    /// Why it could not be used as it was written, and what is done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What all nodes make of it.
    #[serde(flatten)]
    pub standing: Standing,
    /// The names of the pods that it selects, where one policy was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selected: Vec<String>,
    /// What the peers of its rules match, where one policy was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersMatched>,
}

/// What all nodes that report make of an object; where the objects come from a directory, this node alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The generation that this is about, where the API server counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Nodes that enforce this version as it is written.
    #[serde(default)]
    pub nodes_enforcing: usize,
    /// Nodes that report.
    #[serde(default)]
    pub nodes: usize,
    /// `Accepted` and `Enforced`, as the status of the object has them, or would if it had one.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `Accepted` or `Enforced`.
    #[serde(rename = "type")]
    pub of: String,
    /// `True`, `False`, or `Unknown`: where not every node was heard of, and none that was lacks it.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// What the peers of a policy match of what is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersMatched {
    /// Pods.
    pub pods: usize,
    /// Addresses of pods, nodes and the API server.
    pub addresses: usize,
}

/// An identity, as the agent of this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// Its name.
    pub name: String,
    /// Pods that it matches.
    pub pods: usize,
    /// Addresses of pods, nodes and the API server that it matches.
    pub addresses: usize,
    /// The policies that name it.
    pub policies: Vec<String>,
    /// Why it could not be used as it was written, and what is done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What all nodes make of it.
    #[serde(flatten)]
    pub standing: Standing,
    /// What it matches, where one identity was asked for: pods by name, other addresses as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matched: Vec<String>,
}

/// One verdict of the datapath, with names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Seconds since the Unix epoch, with fraction.
    pub time: f64,
    /// `allowed`, `dropped`, or `audited`: allowed, and policies in audit mode would have denied it.
    pub action: String,
    /// Name of the outcome.
    pub outcome: String,
    /// `from-pod` or `to-pod`.
    pub hook: String,
    /// Source of the packet.
    pub source: EventEnd,
    /// Destination of the packet.
    pub destination: EventEnd,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6` or the number.
    pub protocol: String,
    /// The opener's side.
    pub egress: SideVerdict,
    /// The responder's side.
    pub ingress: SideVerdict,
    /// What the verdict would be if the policies in audit mode were enforced; absent where the flow would fare the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Events that the rate limit swallowed before this one.
    pub suppressed: u64,
}

/// What the verdict of both sides would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// The opener's side.
    pub egress: SideVerdict,
    /// The responder's side.
    pub ingress: SideVerdict,
}

/// An end of the packet in an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEnd {
    /// Its address; absent where the packet could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its port, or the echo id.
    pub port: u16,
    /// `namespace/name` of the pod, `node`, or empty.
    pub name: String,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, and what to do.
    pub message: String,
}

/// Kinds of failure that a caller treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Not ready yet, or the pod is not known yet: try again later.
    TryAgain,
    /// The request makes no sense.
    Invalid,
    /// What was asked about is not there.
    NotFound,
    /// What the kernel holds differs from what should be there.
    Differs,
    /// The protocol version is not spoken.
    Version,
    /// Anything else.
    Internal,
}
