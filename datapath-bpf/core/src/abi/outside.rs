/// One leg of a flow by which a client outside the cluster reaches a backend: between the client and the frontend, or between the
/// client and the backend. Both directions of a leg have one key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct OutsideKey<A> {
    /// Address of the client.
    pub client: A,
    /// Address of the frontend or the backend, whichever the leg leads to.
    pub other: A,
    /// Port of the client, network byte order.
    pub client_port: [u8; 2],
    /// Port of the frontend or the backend, network byte order.
    pub other_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// A number of [`outside_leg`].
    pub leg: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Numbers of [`OutsideKey::leg`]. A backend on the node itself may have the address and port of another service's frontend, so the
/// addresses do not tell the legs apart.
pub mod outside_leg {
    /// As the client sees the flow.
    pub const FRONTEND: u8 = 0;
    /// As the backend sees it.
    pub const BACKEND: u8 = 1;
}

/// What is known of a leg: where the other one leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Outside {
    /// When the last packet of the flow passed, in the kernel's jiffies.
    pub seen: u64,
    /// Number of the backend; [`BACKEND_NONE`](super::BACKEND_NONE) where the flow is the node's own, whose port only happens to be
    /// that of a frontend.
    pub backend: u32,
    /// Port at the end of the other leg, network byte order.
    pub port: [u8; 2],
    /// Bits of [`connection_mark`](super::connection_mark); the client is the opener.
    pub marks: u8,
    /// Zero.
    pub reserved: u8,
    /// Address at the end of the other leg, of the backend or the frontend; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<OutsideKey<super::V4>>() == 16);
const _: () = assert!(size_of::<OutsideKey<super::V6>>() == 40);
const _: () = assert!(size_of::<Outside>() == 32 && align_of::<Outside>() == 8);
