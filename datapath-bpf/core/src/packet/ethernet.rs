//! The Ethernet header.

/// Length of the header in bytes: the offset of what it carries.
pub const LENGTH: usize = 14;

/// Ether types, in host byte order.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Hardware address of the receiver.
    pub destination: [u8; 6],
    /// Hardware address of the sender.
    pub source: [u8; 6],
    /// What the frame carries, in host byte order.
    pub ether_type: u16,
}

impl Header {
    /// Reads a header.
    #[inline(always)]
    pub const fn read(bytes: &[u8; LENGTH]) -> Self {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *bytes;
        Self { destination: [d0, d1, d2, d3, d4, d5], source: [s0, s1, s2, s3, s4, s5], ether_type: u16::from_be_bytes([t0, t1]) }
    }
}
