/// The number, in `NODES_*`, of the node that the programs run on. It has no [`Tunnel`].
pub const NODE_SELF: u32 = 1;

/// A node, by one of its addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Node {
    /// Its number, given by the agent of this node; [`NODE_SELF`] for this one, and never zero.
    pub number: u32,
    /// Longest packet in bytes that pods of this node and the node itself send each other through the overlay, past the stack of this node. Zero
    /// where such packets go as the stack routes them.
    pub mtu: u16,
    /// Zero.
    pub reserved: [u8; 2],
}

impl Node {
    /// A node whose own packets from and to pods of this one go as the stack routes them.
    pub const fn routed(number: u32) -> Self {
        Self { number, mtu: 0, reserved: [0; 2] }
    }
}

const _: () = assert!(size_of::<Node>() == 8 && align_of::<Node>() == 4);

/// The hardware address of the overlay's device, on every node the same: a node's next hop has it wherever it is, so that nobody has to be
/// asked for it and no table to be kept.
pub const OVERLAY_MAC: [u8; 6] = [0x02, b'p', b'a', b'l', b'0', b'1'];
/// The hardware address that frames in the overlay come from. It is nobody's: a VXLAN device drops what comes from its own.
pub const OVERLAY_SOURCE_MAC: [u8; 6] = [0x02, b'p', b'a', b'l', b'0', b'0'];

/// The node that a range of pod addresses belongs to: by which way its pods are reached, what the overlay puts such packets in, and whom it
/// believes that they are from.
///
/// Each range of each other node has one, also where packets to it do not go by the overlay: what comes from there while the way
/// changes is believed, and these are the addresses that a pod may send to at the overlay's port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Tunnel {
    /// Number of the node, given by the agent of this node; neither zero nor [`NODE_SELF`].
    pub node: u32,
    /// The node's address that packets are sent to; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
    /// The address of this node that outer packets come from, as `address`; all zero where there are none, or the overlay's device is to choose it.
    pub source: [u8; 16],
    /// Index of the interface by which the address is reached: of that whose link it is on ([`tunnel_way::LINK`], [`tunnel_way::OVERLAY_LINK`]),
    /// or of that by which the route to it goes ([`tunnel_way::OVERLAY`]). Zero where the overlay's device is to find the way.
    pub ifindex: u32,
    /// Longest packet in bytes that gets there past the stack: the stack tells the sender of longer ones.
    pub mtu: u16,
    /// The IP version of the address: 4 or 6.
    pub version: u8,
    /// How pods' packets get there; see [`tunnel_way`].
    pub way: u8,
}

/// How packets between pods of this node and those of another travel.
pub mod tunnel_way {
    /// As the stack routes them.
    pub const STACK: u8 = 0;
    /// Past the stack, through the overlay.
    pub const OVERLAY: u8 = 1;
    /// Past the stack, to an address on one of this node's links.
    pub const LINK: u8 = 2;
    /// Past the stack, through the overlay, to a node on one of this node's links.
    pub const OVERLAY_LINK: u8 = 3;
}

impl Tunnel {
    /// Whether packets go there past the stack through the overlay.
    #[inline(always)]
    pub const fn is_overlay(&self) -> bool {
        matches!(self.way, tunnel_way::OVERLAY | tunnel_way::OVERLAY_LINK)
    }
}

const _: () = assert!(size_of::<Tunnel>() == 44 && align_of::<Tunnel>() == 4);
