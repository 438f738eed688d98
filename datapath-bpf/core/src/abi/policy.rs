/// Which way a flow runs, from the subject's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Towards the subject.
    Ingress = 0,
    /// Away from the subject.
    Egress = 1,
    /// Towards the subject, which opened the flow itself and reaches itself through a service.
    SelfIngress = 2,
    /// The other side of the same flow.
    SelfEgress = 3,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::SelfIngress, Self::SelfEgress];

    /// The direction that a byte of a map stands for; `None` for a byte that no compiler of this ABI writes.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|direction| *direction as u8 == byte)
    }

    /// Whether the subject is both ends of the flow.
    #[inline(always)]
    pub const fn is_self(self) -> bool {
        matches!(self, Self::SelfIngress | Self::SelfEgress)
    }

    /// [`Ingress`](Self::Ingress) or [`Egress`](Self::Egress): in which of a policy's lists the rules stand.
    pub const fn way(self) -> Self {
        match self {
            Self::Ingress | Self::SelfIngress => Self::Ingress,
            Self::Egress | Self::SelfEgress => Self::Egress,
        }
    }
}

/// What a row of `POLICY` or `PORTS` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RowVerdict {
    /// The flow passes.
    Allow = 1,
    /// A rule denies the flow.
    Deny = 2,
    /// No rule allows the flow and policies isolate the subject.
    DefaultDeny = 3,
}

impl RowVerdict {
    /// The verdict that a byte of a map stands for; `None` for a byte that no compiler of this ABI writes.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Allow),
            2 => Some(Self::Deny),
            3 => Some(Self::DefaultDeny),
            _ => None,
        }
    }
}

/// Whose policy is asked about whom.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct PolicyKey {
    /// The subject's number.
    pub subject: u32,
    /// The peer's identity, or [`IDENTITY_ANY`](super::IDENTITY_ANY).
    pub peer: u32,
    /// A [`Direction`].
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl PolicyKey {
    /// The key of a row.
    #[inline(always)]
    pub const fn new(subject: u32, direction: Direction, peer: u32) -> Self {
        Self { subject, peer, direction: direction as u8, reserved: [0; 3] }
    }

    /// Whether the subject is asked about itself.
    pub fn is_self(&self) -> bool {
        Direction::from_byte(self.direction).is_some_and(Direction::is_self)
    }
}

/// What a subject's policy says of a peer.
///
/// With a port table, a flow whose protocol and port have no row there gets `verdict` and `reason`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct PolicyEntry {
    /// Number of the port table, or [`PORTS_NONE`](super::PORTS_NONE).
    pub ports: u32,
    /// Number of the reason.
    pub reason: u32,
    /// A [`RowVerdict`].
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A port prefix in a port table: the data of an LPM key, most significant bit first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct PortKey {
    /// Number of the port table; matched whole.
    pub table: u32,
    /// IP protocol number; matched whole.
    pub protocol: u8,
    /// Zero; matched whole.
    pub reserved: u8,
    /// Port in network byte order; the prefix ends in it.
    pub port: [u8; 2],
}

impl PortKey {
    /// Length in bits of the part that is always matched whole; the prefix of a port adds 0 to 16.
    pub const FIXED_BITS: u32 = 48;

    /// The key of `port` (host byte order) in `table`.
    #[inline(always)]
    pub const fn new(table: u32, protocol: u8, port: u16) -> Self {
        Self { table, protocol, reserved: 0, port: port.to_be_bytes() }
    }
}

/// What a port table says of a protocol and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct PortEntry {
    /// Number of the reason.
    pub reason: u32,
    /// A [`RowVerdict`].
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<PolicyKey>() == 12 && align_of::<PolicyKey>() == 4);
const _: () = assert!(size_of::<PolicyEntry>() == 12 && align_of::<PolicyEntry>() == 4);
const _: () = assert!(size_of::<PortKey>() == 8 && align_of::<PortKey>() == 4);
const _: () = assert!(size_of::<PortEntry>() == 8 && align_of::<PortEntry>() == 4);
