/// Where a service is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct ServiceKey<A> {
    /// Address of the frontend.
    pub address: A,
    /// Port of the frontend, network byte order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// What stands behind a frontend.
///
/// Changing `table` (and `outside_table` with it) is the one map write by which a change of a service's backends becomes effective.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct ServiceEntry {
    /// Number of the service's port: what client affinity is kept by. All frontends of the port share it.
    pub service: u32,
    /// Number of the table of backends; [`TABLE_NONE`](super::TABLE_NONE) where there is none to choose: new flows are refused, or
    /// dropped with [`DROP`](service_flag::DROP).
    pub table: u32,
    /// Seconds for which a client stays with its backend; 0 where it need not.
    pub affinity: u32,
    /// As `table`, for clients outside the cluster, where the frontend is open to them ([`OUTSIDE`](service_flag::OUTSIDE)).
    pub outside_table: u32,
    /// The table has two to the power of `bits` slots, at least [`CHUNK_BITS`](super::CHUNK_BITS).
    pub bits: u8,
    /// Bits of [`service_flag`].
    pub flags: u8,
    /// As `bits`, of `outside_table`.
    pub outside_bits: u8,
    /// Zero.
    pub reserved: u8,
}

/// Bits of [`ServiceEntry::flags`].
pub mod service_flag {
    /// There are backends, but not for who asks here: what finds no table is dropped without an answer.
    pub const DROP: u8 = 1 << 0;
    /// Clients outside the cluster are served too: node ports, external addresses and host ports, not cluster IPs.
    pub const OUTSIDE: u8 = 1 << 1;
    /// As [`DROP`], for clients outside the cluster.
    pub const OUTSIDE_DROP: u8 = 1 << 2;
}

/// A part of a table of backends: [`CHUNK`](super::CHUNK) slots, each the number of a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct ChunkKey {
    /// Number of the table.
    pub table: u32,
    /// Number of the part: of a slot, all but its lowest [`CHUNK_BITS`](super::CHUNK_BITS) bits.
    pub chunk: u32,
}

/// One backend of a service's port, by its number. A number is given once and never again, so that the flows of a backend that
/// is gone find no other one behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Backend {
    /// The address; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
    /// Number of the service's port.
    pub service: u32,
    /// The port, network byte order.
    pub port: [u8; 2],
    /// 4 or 6.
    pub version: u8,
    /// Bits of [`backend_flag`].
    pub flags: u8,
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// It stands in the service's table: new flows go there, and clients with affinity stay.
    pub const CHOSEN: u8 = 1 << 0;
    /// It answers, though new flows may go elsewhere. Flows of datagrams leave a backend that does not; connections never leave one.
    pub const SERVING: u8 = 1 << 1;
    /// As [`CHOSEN`], of the table for clients outside the cluster.
    pub const CHOSEN_OUTSIDE: u8 = 1 << 2;
}

/// Who stays with a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct AffinityKey {
    /// The client's address; IPv4 in the first four bytes, the rest zero.
    pub client: [u8; 16],
    /// Number of the service's port.
    pub service: u32,
}

/// The backend that a client stays with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Affinity {
    /// When the client's last flow began, in the kernel's jiffies.
    pub seen: u64,
    /// Number of the backend.
    pub backend: u32,
    /// Zero.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<ServiceKey<super::V4>>() == 8);
const _: () = assert!(size_of::<ServiceKey<super::V6>>() == 20);
const _: () = assert!(size_of::<ServiceEntry>() == 20 && align_of::<ServiceEntry>() == 4);
const _: () = assert!(size_of::<ChunkKey>() == 8);
const _: () = assert!(size_of::<Backend>() == 24 && align_of::<Backend>() == 4);
const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<Affinity>() == 16 && align_of::<Affinity>() == 8);
