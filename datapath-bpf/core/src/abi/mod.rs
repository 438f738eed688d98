//! The types that the kernel and user space share: the keys and values of the maps.
//!
//! Integers only, no padding, no `bool`, no `Option`. All integers are in host byte order unless their type is
//! an array of bytes, which is in network byte order. A change of any layout or of a map's kind takes a new
//! [`ABI_VERSION`]: pinned state lives in a directory that carries it.

mod connection;
mod counter;
mod endpoint;
mod event;
mod outside;
mod policy;
mod service;
mod socket;
mod tunnel;

pub use connection::{Connection, ConnectionKey, FragmentKey, FragmentPorts, connection_flag, connection_mark};
pub use counter::{Counter, Outcome};
pub use endpoint::{Endpoint, LocalPod};
pub use event::{DatapathEvent, EventBudget, EventKey, Hook};
pub use outside::{Outside, OutsideKey, outside_leg};
pub use policy::{Direction, PolicyEntry, PolicyKey, PortEntry, PortKey, RowVerdict};
pub use service::{Affinity, AffinityKey, Backend, ChunkKey, ServiceEntry, ServiceKey, backend_flag, service_flag};
pub use socket::{SocketEntry, SocketKey, socket_end};
pub use tunnel::{NODE_SELF, Node, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Tunnel, tunnel_way};

/// Version of every layout in this module; part of the name of the pin directory.
pub const ABI_VERSION: u32 = 1;

/// An address as it stands in a packet, in network byte order.
pub trait Address: Copy + Eq + Ord {
    /// The IP version: 4 or 6.
    const VERSION: u8;
    /// The protocol number of this family's ICMP.
    const ICMP: u8;
    /// The node's end of every pod's link: where a pod's packets go first. No pod may talk to it, for no policy speaks of it.
    const GATEWAY: Self;
    /// Whether this address compares higher, as a number, than another.
    fn above(&self, other: &Self) -> bool;
    /// Whether the address is one of the node itself that nobody beyond it may use (127.0.0.0/8, ::1).
    fn is_loopback(&self) -> bool;
    /// Whether the address can be that of one host, so that an answer may go there: neither a group's, nor a loopback one, nor none.
    fn is_one_host(&self) -> bool;
    /// A number of 32 bits to which every bit of the address contributes.
    fn folded(&self) -> u32;
}

/// An IPv4 address in network byte order.
pub type V4 = [u8; 4];
/// An IPv6 address in network byte order.
pub type V6 = [u8; 16];

impl Address for V4 {
    const VERSION: u8 = 4;
    const ICMP: u8 = 1;
    const GATEWAY: Self = [169, 254, 1, 1];

    #[inline(always)]
    fn above(&self, other: &Self) -> bool {
        u32::from_be_bytes(*self) > u32::from_be_bytes(*other)
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self[0] == 127
    }

    #[inline(always)]
    fn is_one_host(&self) -> bool {
        !matches!(self[0], 0 | 127 | 224..)
    }

    #[inline(always)]
    fn folded(&self) -> u32 {
        u32::from_be_bytes(*self)
    }
}

impl Address for V6 {
    const VERSION: u8 = 6;
    const ICMP: u8 = 58;
    const GATEWAY: Self = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[inline(always)]
    fn above(&self, other: &Self) -> bool {
        u128::from_be_bytes(*self) > u128::from_be_bytes(*other)
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        u128::from_be_bytes(*self) == 1
    }

    #[inline(always)]
    fn is_one_host(&self) -> bool {
        self[0] != 0xff && u128::from_be_bytes(*self) > 1
    }

    #[inline(always)]
    fn folded(&self) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        // Each word turned by another amount: equal words do not cancel.
        u32::from_be_bytes([a, b, c, d])
            ^ u32::from_be_bytes([e, f, g, h]).rotate_left(7)
            ^ u32::from_be_bytes([i, j, k, l]).rotate_left(13)
            ^ u32::from_be_bytes([m, n, o, p]).rotate_left(19)
    }
}

/// The identity of an address that no selector matches, and, in a [`PolicyKey`], "any peer".
pub const IDENTITY_ANY: u32 = 0;
/// The subject number that stands for "no pod of this node, or not to be judged".
pub const SUBJECT_NONE: u32 = 0;
/// The reason number of a verdict that no policy made.
pub const REASON_NONE: u32 = 0;
/// The port table number of a row that has none.
pub const PORTS_NONE: u32 = 0;
/// The table number of a service that has no backend.
pub const TABLE_NONE: u32 = 0;
/// The number of no backend.
pub const BACKEND_NONE: u32 = 0;
/// Bits of a slot's number that tell its place in its part of the table.
pub const CHUNK_BITS: u8 = 6;
/// Slots of a part of a table of backends.
pub const CHUNK: usize = 1 << CHUNK_BITS;

/// The bit of a packet's mark (`skb->mark`) that says: it leaves under this node's own address, whoever sent it, so that its answers
/// come back through here. Set by `from_net`, read by our nftables table; other bits are left alone.
pub const MARK_MASQUERADE: u32 = 1 << 22;

/// The names of the maps, at most 15 characters each, as the kernel shows them.
pub mod map {
    /// Interface index (`u32`) to [`Endpoint`](super::Endpoint).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// IPv4 address to [`LocalPod`](super::LocalPod).
    pub const LOCAL_V4: &str = "LOCAL_V4";
    /// IPv6 address to [`LocalPod`](super::LocalPod).
    pub const LOCAL_V6: &str = "LOCAL_V6";
    /// Whole IPv4 address (pods, nodes) to identity (`u32`).
    pub const ADDRESS_V4: &str = "ADDRESS_V4";
    /// Whole IPv6 address (pods, nodes) to identity (`u32`).
    pub const ADDRESS_V6: &str = "ADDRESS_V6";
    /// IPv4 prefix to identity (`u32`).
    pub const PREFIX_V4: &str = "PREFIX_V4";
    /// IPv6 prefix to identity (`u32`).
    pub const PREFIX_V6: &str = "PREFIX_V6";
    /// [`PolicyKey`](super::PolicyKey) to [`PolicyEntry`](super::PolicyEntry).
    pub const POLICY: &str = "POLICY";
    /// [`PortKey`](super::PortKey) (prefixes) to [`PortEntry`](super::PortEntry).
    pub const PORTS: &str = "PORTS";
    /// [`ConnectionKey`](super::ConnectionKey) to [`Connection`](super::Connection), IPv4.
    pub const CONNECTIONS_V4: &str = "CONNECTIONS_V4";
    /// [`ConnectionKey`](super::ConnectionKey) to [`Connection`](super::Connection), IPv6.
    pub const CONNECTIONS_V6: &str = "CONNECTIONS_V6";
    /// [`FragmentKey`](super::FragmentKey) to [`FragmentPorts`](super::FragmentPorts), IPv4.
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    /// [`FragmentKey`](super::FragmentKey) to [`FragmentPorts`](super::FragmentPorts), IPv6.
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    /// [`ServiceKey`](super::ServiceKey) to [`ServiceEntry`](super::ServiceEntry), IPv4.
    pub const SERVICES_V4: &str = "SERVICES_V4";
    /// [`ServiceKey`](super::ServiceKey) to [`ServiceEntry`](super::ServiceEntry), IPv6.
    pub const SERVICES_V6: &str = "SERVICES_V6";
    /// [`ChunkKey`](super::ChunkKey) to [`CHUNK`](super::CHUNK) numbers of backends (`u32`).
    pub const CHUNKS: &str = "CHUNKS";
    /// Number of a backend (`u32`) to [`Backend`](super::Backend).
    pub const BACKENDS: &str = "BACKENDS";
    /// [`AffinityKey`](super::AffinityKey) to [`Affinity`](super::Affinity).
    pub const AFFINITY: &str = "AFFINITY";
    /// [`OutsideKey`](super::OutsideKey) to [`Outside`](super::Outside), IPv4.
    pub const OUTSIDE_V4: &str = "OUTSIDE_V4";
    /// [`OutsideKey`](super::OutsideKey) to [`Outside`](super::Outside), IPv6.
    pub const OUTSIDE_V6: &str = "OUTSIDE_V6";
    /// IPv4 prefix of the pods of another node to [`Tunnel`](super::Tunnel).
    pub const TUNNELS_V4: &str = "TUNNELS_V4";
    /// IPv6 prefix of the pods of another node to [`Tunnel`](super::Tunnel).
    pub const TUNNELS_V6: &str = "TUNNELS_V6";
    /// IPv4 address of a node to [`Node`](super::Node).
    pub const NODES_V4: &str = "NODES_V4";
    /// IPv6 address of a node to [`Node`](super::Node).
    pub const NODES_V6: &str = "NODES_V6";
    /// [`SocketKey`](super::SocketKey) to [`SocketEntry`](super::SocketEntry).
    pub const SOCKETS: &str = "SOCKETS";
    /// One `u32` per [`cell`](super::cell).
    pub const CONFIG: &str = "CONFIG";
    /// [`Outcome`](super::Outcome) to [`Counter`](super::Counter), per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring of [`DatapathEvent`](super::DatapathEvent).
    pub const EVENTS: &str = "EVENTS";
    /// [`EventKey`](super::EventKey) to the jiffies (`u64`) of the last event of its flow.
    pub const EVENT_FLOWS: &str = "EVENT_FLOWS";
    /// One [`EventBudget`](super::EventBudget), per CPU.
    pub const EVENT_BUDGET: &str = "EVENT_BUDGET";
    /// What a program knows of an IPv4 packet while it runs, per CPU. Of the programs alone: never pinned.
    pub const SCRATCH_V4: &str = "SCRATCH_V4";
    /// What a program knows of an IPv6 packet while it runs, per CPU. Of the programs alone: never pinned.
    pub const SCRATCH_V6: &str = "SCRATCH_V6";
}

/// Indices of the `CONFIG` map.
pub mod cell {
    /// The policy [epoch](crate::epoch): moves with every change that could alter a verdict.
    pub const EPOCH: u32 = 0;
    /// Not zero: new flows that are allowed make events too.
    pub const OBSERVE_ALLOWED: u32 = 1;
    /// Jiffies in a second, which only user space can know: 10^9 over the resolution of CLOCK_MONOTONIC_COARSE in
    /// nanoseconds. Written when the programs are loaded; while it is zero, every entry of a connection counts as expired.
    pub const HERTZ: u32 = 2;
    /// The highest number that was given to a service's port, a table of backends or a backend, or a higher one.
    pub const SERVICE_NUMBER: u32 = 3;
    /// UDP port of the overlay in host byte order; zero while there is none.
    pub const OVERLAY_PORT: u32 = 4;
    /// VXLAN network identifier of the overlay.
    pub const OVERLAY_NETWORK: u32 = 5;
    /// The lower half of the cookie of the node's network namespace, whose sockets are served; both halves are zero while none are.
    pub const NETNS_LOW: u32 = 6;
    /// Its upper half.
    pub const NETNS_HIGH: u32 = 7;
    /// Not zero: a client outside the cluster has reached a frontend since the node booted, so that what leaves the node may be an
    /// answer to one. Written by `from_net`.
    pub const OUTSIDE: u32 = 8;
    /// Index of the overlay's device, by which pods' packets go past the stack; zero while they do not.
    pub const OVERLAY_DEVICE: u32 = 9;
    /// Moves with every ICMP error about an outer packet of this node's, which the kernel may have learned a smaller path MTU from. Written by
    /// `from_net`.
    pub const OUTER_ERRORS: u32 = 10;
    /// Cells of the map: more than have a meaning, so that a later version finds a map of the same size.
    pub const ROWS: u32 = 32;
}
