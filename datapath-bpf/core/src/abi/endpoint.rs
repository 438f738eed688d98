/// One pod interface on this node, by the index of its host-side interface.
///
/// Changing `subject` (and `audit` with it) is the one map write by which a policy change becomes effective.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Endpoint {
    /// The key once more. It stands first: whoever has read a row and then finds another number here may have read the row of
    /// another endpoint, which the kernel put into the same memory meanwhile.
    pub ifindex: u32,
    /// Number of the effective policy; [`SUBJECT_NONE`](super::SUBJECT_NONE) denies everything.
    pub subject: u32,
    /// Number of what the policies in audit mode would make of it; [`SUBJECT_NONE`](super::SUBJECT_NONE) where none selects the pod.
    /// It decides nothing.
    pub audit: u32,
    /// The pod's IPv4 address, or all zero.
    pub ipv4: [u8; 4],
    /// The pod's IPv6 address, or all zero.
    pub ipv6: [u8; 16],
    /// Hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// The policy epoch that began when the endpoint was made. What the connection table holds of an older one is of
    /// another pod that had the address.
    pub since: u32,
}

/// Where a pod of this node is reached, by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct LocalPod {
    /// Index of the host-side interface.
    pub ifindex: u32,
    /// Hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// As [`Endpoint::since`].
    pub since: u32,
}

const _: () = assert!(size_of::<Endpoint>() == 48 && align_of::<Endpoint>() == 4);
const _: () = assert!(size_of::<LocalPod>() == 20 && align_of::<LocalPod>() == 4);
