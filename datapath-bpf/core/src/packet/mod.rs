//! Reading packets: pure functions over bytes, and what the connection table says of a packet.
//!
//! The programs give a frame through [`Bytes`]; the tests give a slice. Nothing here trusts a length that a
//! packet states: every header must lie inside its packet, and its packet inside the frame.

pub mod arp;
pub mod connection;
pub mod crc32c;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod neighbour;
pub mod transport;
pub mod vxlan;

use crate::abi::{Address, FragmentKey, Outcome};

/// The bytes of a frame, from its first link-layer byte.
pub trait Bytes {
    /// Length of the frame in bytes.
    fn length(&self) -> u32;
    /// `N` bytes at an offset that is known when the program is compiled: the quick way.
    fn head<const OFFSET: usize, const N: usize>(&self) -> Option<[u8; N]>;
    /// `N` bytes at any offset.
    fn at<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn length(&self) -> u32 {
        self.len() as u32
    }

    fn head<const OFFSET: usize, const N: usize>(&self) -> Option<[u8; N]> {
        self.get(OFFSET..)?.first_chunk().copied()
    }

    fn at<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk().copied()
    }
}

/// Which part of its datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// All of it.
    Whole = 0,
    /// The first part, which holds the ports; more follow.
    First = 1,
    /// A later part, without ports.
    Later = 2,
}

/// What a packet is to the connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Segment {
    /// A later fragment: it never opens a flow.
    #[default]
    Later = 0,
    /// A datagram: it may open a flow.
    Datagram = 1,
    /// TCP SYN without ACK, SCTP INIT: it opens a flow and never rides as a reply.
    Opening = 2,
    /// TCP with ACK, SCTP other than INIT: of a flow that may be older than the table's entry.
    MidStream = 3,
    /// TCP without SYN and ACK.
    Bare = 4,
    /// ICMP echo request: it may open a flow; its key tells it from a reply.
    EchoRequest = 5,
    /// ICMP echo reply: it never opens a flow.
    EchoReply = 6,
    /// ICMP error: it quotes a packet of a flow.
    Error = 7,
    /// IPv6 neighbour or router discovery.
    Neighbour = 8,
    /// IPv6 multicast listener discovery.
    Listener = 9,
    /// ICMP of another kind: refused.
    Unknown = 10,
}

/// What a packet's end-of-flow marks are: bits of [`Packet::ending`]. They are TCP's own.
pub mod ending {
    /// TCP FIN.
    pub const FIN: u8 = 0x01;
    /// TCP RST, SCTP ABORT or SHUTDOWN COMPLETE.
    pub const RESET: u8 = 0x04;
}

/// The fragment field of a packet, as IPv4 has it: bits of [`Packet::fragment_field`].
pub mod fragment_field {
    /// More fragments follow.
    pub const MORE: u16 = 0x2000;
    /// The offset in units of eight bytes.
    pub const OFFSET: u16 = 0x1fff;
}

/// What the datapath needs to know of an IP packet.
///
/// It is filled from the outside in, so that a packet that is refused half way still shows its addresses. Where a value
/// can be a number of the packet, or of a table, it is: each constant that a branch stores doubles what the kernel's
/// verifier has to walk behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, or the id of an echo request; network byte order; zero where there is none.
    pub source_port: [u8; 2],
    /// Destination port, or the id of an echo reply; network byte order; zero where there is none.
    pub destination_port: [u8; 2],
    /// Identification of a fragment, as in [`FragmentKey::id`].
    pub fragment_id: [u8; 4],
    /// Offset in the frame of the transport header.
    pub transport: u32,
    /// Offset in the frame of the first byte after the IP packet.
    pub end: u32,
    /// 4 or 6 once the addresses are known, else 0.
    pub version: u8,
    /// Protocol number of the transport header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bits of [`fragment_field`].
    pub fragment_field: u16,
    /// The protocol number that all fragments of the datagram state; for IPv6 maybe that of an extension header.
    pub fragment_protocol: u8,
    /// What the packet is to the connection table.
    pub segment: Segment,
    /// Bits of [`ending`].
    pub ending: u8,
    /// Type of an ICMP message, else zero.
    pub icmp_type: u8,
}

impl<A: Address> Packet<A> {
    /// The key of the record that the fragments of this datagram share.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey<A> {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            id: self.fragment_id,
            protocol: self.fragment_protocol,
            reserved: [0; 3],
        }
    }

    /// Which part of its datagram this is.
    #[inline(always)]
    pub const fn fragment(&self) -> Fragment {
        if self.fragment_field & fragment_field::OFFSET != 0 {
            Fragment::Later
        } else if self.fragment_field & fragment_field::MORE != 0 {
            Fragment::First
        } else {
            Fragment::Whole
        }
    }

    /// The refusal of a packet that ends before `length` bytes of its transport header.
    #[inline(always)]
    const fn short(&self) -> Outcome {
        match self.fragment() {
            Fragment::Whole => Outcome::Truncated,
            Fragment::First | Fragment::Later => Outcome::FragmentShort,
        }
    }
}

/// The protocol numbers that policy can judge, besides each family's ICMP.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
