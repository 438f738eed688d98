//! What the agent is told at its start.

use ipnet::IpNet;
use palisade_loader::Sizes;
use palisade_protocol::{DEFAULT_PIN_DIR, DEFAULT_RUN_DIR, RECORDS_NAME, SOCKET_NAME};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// MTU of pod interfaces in bytes where neither the configuration nor an uplink names one.
pub const DEFAULT_MTU: u32 = 1500;

/// Where `palisade-cni` keeps its address records on a node, unless its configuration says otherwise. The agent only
/// hands the path on.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/palisade";

/// What the agent is told at its start. Nothing in it is global: many agents can run in one process, each with
/// directories of its own.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of this node; with [`Source::Kubernetes`] that of its Node object.
    pub node: String,
    /// Where the objects come from.
    pub source: Source,
    /// The bpffs directory below which the directory of the ABI lies.
    pub pin_dir: PathBuf,
    /// Where the node socket, the endpoint records and `numbers.json` lie.
    pub run_dir: PathBuf,
    /// The node's pod ranges, at most one per family. Empty with [`Source::Kubernetes`]: `spec.podCIDRs` of the node.
    pub ranges: Vec<IpNet>,
    /// Where services without a cluster IP get one, for [`Source::Directory`]; empty: nowhere.
    pub service_ranges: Vec<IpNet>,
    /// The node's own addresses, for [`Source::Directory`]; empty: those of the network namespace's interfaces.
    pub node_addresses: Vec<IpAddr>,
    /// MTU of pod interfaces in bytes; `None`: that of the interface with the default route.
    pub mtu: Option<u32>,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The namespace in which agents report what their nodes enforce and elect the one that writes the status of policies; `None`:
    /// nothing is told to the API server.
    pub status_namespace: Option<String>,
    /// Which pods' packets leave for the outside under the node's own address.
    pub masquerade: Masquerading,
    /// First sizes of the maps, and how far those that grow may grow.
    pub sizes: Sizes,
}

impl AgentConfig {
    /// The configuration of a node with all defaults.
    pub fn new(node: impl Into<String>, source: Source) -> Self {
        Self {
            node: node.into(),
            source,
            pin_dir: PathBuf::from(DEFAULT_PIN_DIR),
            run_dir: PathBuf::from(DEFAULT_RUN_DIR),
            ranges: Vec::new(),
            service_ranges: Vec::new(),
            node_addresses: Vec::new(),
            mtu: None,
            metrics: None,
            status_namespace: None,
            masquerade: Masquerading::default(),
            sizes: Sizes::default(),
        }
    }

    /// Path of the node socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_NAME)
    }

    /// The directory of the endpoint records.
    pub fn records(&self) -> PathBuf {
        self.run_dir.join(RECORDS_NAME)
    }

    /// Path of the persisted numbering.
    pub fn numbers(&self) -> PathBuf {
        self.run_dir.join("numbers.json")
    }
}

/// Which packets of pods leave for the outside under the node's own address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerading {
    /// Those of IPv4.
    pub ipv4: Switch,
    /// Those of IPv6.
    pub ipv6: Switch,
    /// Destinations beside the cluster's that see the pods' own addresses.
    pub exclude: Vec<IpNet>,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// Where it is sensible; what has it says when that is.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Where the objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The API server.
    Kubernetes {
        /// `host:port` or a URL of the API server, spoken to with the service account of the pod; `None`: the
        /// service account's environment, else what `KUBECONFIG` names.
        server: Option<String>,
    },
    /// A directory of manifests; all pods in it are on this node.
    Directory(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kubernetes { .. } => f.write_str("kubernetes"),
            Self::Directory(directory) => write!(f, "{}", directory.display()),
        }
    }
}
