//! What the agent is told at its start.

use ipnet::IpNet;
use palisade_loader::{Lifetimes, Overlay, Sizes};
use palisade_protocol::{DEFAULT_PIN_DIR, DEFAULT_RUN_DIR, RECORDS_NAME, SOCKET_NAME};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// MTU of pod interfaces in bytes where neither the configuration nor an uplink names one.
pub const DEFAULT_MTU: u32 = 1500;

/// The UDP port that IANA gave VXLAN.
pub const DEFAULT_OVERLAY_PORT: u16 = 4789;
/// The network identifier of the overlay.
pub const DEFAULT_OVERLAY_NETWORK: u32 = 1;

/// Where `palisade-cni` keeps its address records on a node, unless its configuration says otherwise. The agent only
/// hands the path on.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/palisade";

/// What the agent is told at its start. Nothing in it is global: many agents can run in one process, each with
/// directories of its own.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of this node: that of its Node object, where the source has those.
    pub node: String,
    /// Where the objects come from.
    pub source: Source,
    /// The bpffs directory below which the directory of the ABI lies.
    pub pin_dir: PathBuf,
    /// Where the node socket, the endpoint records, `numbers.json` and `last-good.json` lie.
    pub run_dir: PathBuf,
    /// The node's pod ranges, at most one per family. Empty: `spec.podCIDRs` of its Node object.
    pub ranges: Vec<IpNet>,
    /// Where services without a cluster IP get one, for [`Source::Directory`]; empty: nowhere.
    pub service_ranges: Vec<IpNet>,
    /// The node's own addresses, for a [`Source::Directory`] without Node objects; empty: those of the network namespace's interfaces.
    pub node_addresses: Vec<IpAddr>,
    /// MTU of pod interfaces in bytes; `None`: that of the ways to the other nodes and out, less what the overlay costs.
    pub mtu: Option<u32>,
    /// How pods of other nodes are reached.
    pub routing: Routing,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The namespace in which agents report what their nodes enforce and elect the one that writes the status of policies; `None`:
    /// nothing is told to the API server.
    pub status_namespace: Option<String>,
    /// Which pods' packets leave for the outside under the node's own address.
    pub masquerade: Masquerading,
    /// Whether the node's own processes are served services; [`Switch::Auto`]: with [`Source::Kubernetes`].
    pub node_services: Switch,
    /// The cgroup of those processes; `None`: the root of the mounted file system of cgroups, version 2.
    pub cgroup: Option<PathBuf>,
    /// Whether clients outside the cluster reach services by this node; `Auto`: with the API server.
    pub services_outside: Switch,
    /// Names of the interfaces by which they come, `*` for any characters; empty: those that have an address of the node or a default route.
    pub uplinks: Vec<String>,
    /// First sizes of the maps, and how far those that grow may grow.
    pub sizes: Sizes,
    /// How long flows may be silent before they are judged afresh.
    pub lifetimes: Lifetimes,
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
            routing: Routing::default(),
            metrics: None,
            status_namespace: None,
            masquerade: Masquerading::default(),
            node_services: Switch::default(),
            cgroup: None,
            services_outside: Switch::default(),
            uplinks: Vec::new(),
            sizes: Sizes::default(),
            lifetimes: Lifetimes::DEFAULT,
        }
    }

    /// Whether clients outside the cluster reach services by this node.
    pub fn serves_outside(&self) -> bool {
        match self.services_outside {
            Switch::On => true,
            Switch::Off => false,
            Switch::Auto => matches!(self.source, Source::Kubernetes { .. }),
        }
    }

    /// Whether the node's own processes reach services.
    pub fn serves_node(&self) -> bool {
        match self.node_services {
            Switch::On => true,
            Switch::Off => false,
            Switch::Auto => matches!(self.source, Source::Kubernetes { .. }),
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

    /// Path of the last good versions of policies that do not fit.
    pub fn last_good(&self) -> PathBuf {
        self.run_dir.join("last-good.json")
    }

    /// Path of the persisted numbering.
    pub fn numbers(&self) -> PathBuf {
        self.run_dir.join("numbers.json")
    }
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// By which way.
    pub mode: RoutingMode,
    /// Whether their packets pass the stacks of nodes.
    pub forwarding: Forwarding,
    overlay: Overlay,
}

/// Whether packets between pods of two nodes pass the stacks of the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// They do not, where the way allows it.
    #[default]
    Direct,
    /// They do: its rules (netfilter, IPsec, traffic control) see them.
    Stack,
}

/// By which way pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoutingMode {
    /// By routes: those of ours to nodes on a link of this one, else those that the network between the nodes has.
    Native,
    /// Through the overlay, VXLAN.
    Vxlan,
    /// Each family of each node by a route where the node is on a link of this one, else through the overlay.
    #[default]
    Auto,
}

impl RoutingMode {
    /// Its name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vxlan => "vxlan",
            Self::Auto => "auto",
        }
    }
}

impl Routing {
    /// Of a mode, with the overlay's UDP port and network identifier, which must be the same on all nodes. `None` for port 0 and for an
    /// identifier of more than 24 bits.
    pub fn new(mode: RoutingMode, port: u16, network: u32) -> Option<Self> {
        Overlay::new(port, network).map(|overlay| Self { mode, forwarding: Forwarding::default(), overlay })
    }

    /// The overlay, where the mode has one.
    pub fn overlay(&self) -> Option<Overlay> {
        (self.mode != RoutingMode::Native).then_some(self.overlay)
    }

    /// The overlay's UDP port.
    pub fn port(&self) -> u16 {
        self.overlay.port()
    }
}

impl Default for Routing {
    fn default() -> Self {
        let overlay = const { Overlay::new(DEFAULT_OVERLAY_PORT, DEFAULT_OVERLAY_NETWORK).expect("a port, and an identifier of 24 bits") };
        Self { mode: RoutingMode::default(), forwarding: Forwarding::default(), overlay }
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
    /// A directory of manifests. With Node objects it is the record of a whole cluster, as the API server's would be: pods are where
    /// `spec.nodeName` says and have the addresses of their status. Without, all pods in it are on this node.
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
