/// The program that saw the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// Host side of a pod's veth, packets that the pod sent.
    FromPod = 0,
    /// Host side of a pod's veth, packets that go to the pod.
    ToPod = 1,
}

/// One verdict, as the ring buffer carries it.
///
/// IPv4 addresses stand in the first four bytes, the rest zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct DatapathEvent {
    /// Nanoseconds since boot (CLOCK_MONOTONIC).
    pub time: u64,
    /// Events of this CPU that the rate limit has swallowed since the last one that was sent.
    pub suppressed: u64,
    /// Source address of the packet.
    pub source: [u8; 16],
    /// Destination address of the packet.
    pub destination: [u8; 16],
    /// Index of the pod's host-side interface.
    pub ifindex: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Reason number of the egress verdict.
    pub egress_reason: u32,
    /// Reason number of the ingress verdict.
    pub ingress_reason: u32,
    /// Source port, or the echo id; network byte order.
    pub source_port: [u8; 2],
    /// Destination port; network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// 4, 6, or 0 where the packet could not be read as IP.
    pub version: u8,
    /// An [`Outcome`](super::Outcome).
    pub outcome: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// A [`Decision`](crate::verdict::Decision) of the egress side.
    pub egress: u8,
    /// A [`Decision`](crate::verdict::Decision) of the ingress side.
    pub ingress: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

const _: () = assert!(size_of::<DatapathEvent>() == 80 && align_of::<DatapathEvent>() == 8);
