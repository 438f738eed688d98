/// Whom a socket of the node's own talks to through a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct SocketKey {
    /// The socket's cookie, which the kernel gives once.
    pub cookie: u64,
    /// Address of the frontend or of the backend; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
    /// Its port, network byte order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    /// Whose address it is: a number of [`socket_end`].
    pub end: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Whose address stands in a [`SocketKey`].
pub mod socket_end {
    /// The frontend's: where the socket's datagrams are sent. Names the backend that they go to.
    pub const FRONTEND: u8 = 0;
    /// A backend's: where they, or its connection, really go. Names the frontend that the socket is to see there.
    pub const BACKEND: u8 = 1;
}

/// The other end's other name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct SocketEntry {
    /// Address of the frontend, IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Number of the backend.
    pub backend: u32,
    /// Port of the frontend, network byte order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<SocketKey>() == 32 && align_of::<SocketKey>() == 8);
const _: () = assert!(size_of::<SocketEntry>() == 24 && align_of::<SocketEntry>() == 4);
