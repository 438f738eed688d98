/// The program that saw the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// Host side of a pod's veth, packets that the pod sent.
    FromPod = 0,
    /// Host side of a pod's veth, packets that go to the pod.
    ToPod = 1,
    /// An interface of the node itself, packets that come to the node.
    FromNet = 2,
    /// An interface of the node itself, packets that leave it.
    ToNet = 3,
    /// The overlay's device, packets that come from other nodes.
    FromOverlay = 4,
    /// The overlay's device, packets that go to other nodes.
    ToOverlay = 5,
}

impl Hook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::FromPod, Self::ToPod, Self::FromNet, Self::ToNet, Self::FromOverlay, Self::ToOverlay];

    /// The name of its program in the object and among the pins.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNet => "from_net",
            Self::ToNet => "to_net",
            Self::FromOverlay => "from_overlay",
            Self::ToOverlay => "to_overlay",
        }
    }

    /// The name that events and the CLI show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from-pod",
            Self::ToPod => "to-pod",
            Self::FromNet => "from-net",
            Self::ToNet => "to-net",
            Self::FromOverlay => "from-overlay",
            Self::ToOverlay => "to-overlay",
        }
    }

    /// The hook of a byte in an event.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::FromPod),
            1 => Some(Self::ToPod),
            2 => Some(Self::FromNet),
            3 => Some(Self::ToNet),
            4 => Some(Self::FromOverlay),
            5 => Some(Self::ToOverlay),
            _ => None,
        }
    }
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
    /// Index of the interface that the program ran at: of a pod, the host's end.
    pub ifindex: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Reason number of the egress verdict.
    pub egress_reason: u32,
    /// Reason number of the ingress verdict.
    pub ingress_reason: u32,
    /// Reason number of the egress verdict that policies in audit mode would have made.
    pub audit_egress_reason: u32,
    /// Reason number of the ingress verdict that they would have made.
    pub audit_ingress_reason: u32,
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
    /// A [`Decision`](crate::verdict::Decision) of the egress side that policies in audit mode would have made, where the flow
    /// would have fared otherwise; else 0.
    pub audit_egress: u8,
    /// As `audit_egress`, of the ingress side.
    pub audit_ingress: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// What events must have in common for all but about one a second to be swallowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct EventKey {
    /// As in [`DatapathEvent`].
    pub source: [u8; 16],
    /// As in [`DatapathEvent`].
    pub destination: [u8; 16],
    /// As in [`DatapathEvent`].
    pub ifindex: u32,
    /// As in [`DatapathEvent`].
    pub source_port: [u8; 2],
    /// As in [`DatapathEvent`].
    pub destination_port: [u8; 2],
    /// As in [`DatapathEvent`].
    pub protocol: u8,
    /// As in [`DatapathEvent`].
    pub outcome: u8,
    /// As in [`DatapathEvent`].
    pub hook: u8,
    /// Zero.
    pub reserved: u8,
}

/// How many events one CPU may still send, and how many were swallowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct EventBudget {
    /// The jiffies at which the current second began.
    pub since: u64,
    /// Events sent in that second.
    pub sent: u64,
    /// Events swallowed since the last one that was sent.
    pub suppressed: u64,
    /// Events swallowed since the map was made.
    pub suppressed_total: u64,
}

const _: () = assert!(size_of::<EventKey>() == 44 && align_of::<EventKey>() == 4);
const _: () = assert!(size_of::<EventBudget>() == 32 && align_of::<EventBudget>() == 8);
const _: () = assert!(size_of::<DatapathEvent>() == 88 && align_of::<DatapathEvent>() == 8);
