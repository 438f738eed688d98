/// A flow in a normal order, so that both directions find one entry: the end that compares lower stands first.
///
/// For ICMP echo the asking end's port is the echo id and the answering end's is 0, so that an echo of one end
/// is another flow than an echo of the other end, and no id can be taken for a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct ConnectionKey<A> {
    /// Address of the lower end.
    pub low: A,
    /// Address of the higher end.
    pub high: A,
    /// Port of the lower end, network byte order.
    pub low_port: [u8; 2],
    /// Port of the higher end, network byte order.
    pub high_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What is known of an allowed flow, or of what a client sends to a service's frontend. A flow that was never allowed has no
/// entry, and to which backend a client's packets go says nothing of whether they may.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Connection {
    /// When the last packet passed, in the kernel's jiffies.
    pub seen: u64,
    /// The policy epoch under which the flow was judged.
    pub epoch: u32,
    /// Bits of [`connection_mark`]. The one field, beside `seen`, that changes in place: where the row is another flow's by
    /// then, that flow only looks further on than it is.
    pub marks: u8,
    /// Bits of [`connection_flag`].
    pub flags: u8,
    /// Port of the service's frontend that the opener talks to, network byte order; zero where it talks to none.
    pub frontend_port: [u8; 2],
    /// Reason number of the egress verdict.
    pub egress_reason: u32,
    /// Reason number of the ingress verdict.
    pub ingress_reason: u32,
    /// In an entry with [`TO_FRONTEND`](connection_flag::TO_FRONTEND), the number of the backend; else zero.
    pub backend: u32,
    /// Address of the frontend that the opener talks to, IPv4 in the first four bytes; zero where it talks to none.
    pub frontend: [u8; 16],
    /// Zero.
    pub reserved: [u8; 4],
}

/// Bits of [`Connection::marks`]: what was seen of a flow.
pub mod connection_mark {
    /// A packet of the other end.
    pub const REPLIED: u8 = 1 << 0;
    /// A FIN of the opening end.
    pub const FIN_OPENER: u8 = 1 << 1;
    /// A FIN of the other end.
    pub const FIN_OTHER: u8 = 1 << 2;
    /// A RST of one end.
    pub const RESET: u8 = 1 << 3;
}

/// Bits of [`Connection::flags`]: what was made of a flow.
pub mod connection_flag {
    /// The higher end of the key opened the flow; otherwise the lower end did.
    pub const OPENED_BY_HIGH: u8 = 1 << 0;
    /// The node's own processes opened the flow: its ingress is not judged.
    pub const FROM_HOST: u8 = 1 << 1;
    /// The flow was judged again and denied; it passes nothing. Kept so that who opened it is not forgotten.
    pub const DENIED: u8 = 1 << 2;
    /// What the opener sends to a frontend: names the backend, and lets nothing pass.
    pub const TO_FRONTEND: u8 = 1 << 3;
    /// The opener is the backend itself, and seen by it under the frontend's address. Only ClusterNetworkPolicies judge it.
    pub const HAIRPIN: u8 = 1 << 4;
    /// The opener's packets come through the node's stack, which may have changed their addresses: answers go back through it.
    pub const BY_STACK: u8 = 1 << 5;
}

/// What the fragments of one datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct FragmentKey<A> {
    /// Source address of the packet.
    pub source: A,
    /// Destination address of the packet.
    pub destination: A,
    /// Identification, network byte order; IPv4 uses the last two bytes.
    pub id: [u8; 4],
    /// IP protocol number; for IPv6 that in the fragment header, maybe of an extension header.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The ports that the first fragment carried.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct FragmentPorts {
    /// When the first fragment passed, in the kernel's jiffies.
    pub seen: u64,
    /// Source port, network byte order.
    pub source: [u8; 2],
    /// Destination port, network byte order.
    pub destination: [u8; 2],
    /// Number of the transport protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<ConnectionKey<super::V4>>() == 16);
const _: () = assert!(size_of::<ConnectionKey<super::V6>>() == 40);
const _: () = assert!(size_of::<Connection>() == 48 && align_of::<Connection>() == 8);
const _: () = assert!(size_of::<FragmentKey<super::V4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<super::V6>>() == 40);
const _: () = assert!(size_of::<FragmentPorts>() == 16 && align_of::<FragmentPorts>() == 8);
