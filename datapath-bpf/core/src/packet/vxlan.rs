//! What stands around a packet in the overlay: IP, UDP, VXLAN (RFC 7348) and the inner packet's Ethernet header.

use super::{ethernet, ipv4, ipv6, protocol};
use crate::abi::{OVERLAY_MAC, OVERLAY_SOURCE_MAC, V4, V6};

/// Length in bytes of UDP, VXLAN and the inner Ethernet header.
const AFTER_IP: usize = 8 + 8 + ethernet::LENGTH;
/// Length in bytes of what stands around a packet, over IPv4.
pub const LENGTH_V4: usize = ipv4::LENGTH + AFTER_IP;
/// Length in bytes of what stands around a packet, over IPv6.
pub const LENGTH_V6: usize = ipv6::LENGTH + AFTER_IP;

/// Hops that an outer packet may take.
pub const HOP_LIMIT: u8 = 64;
/// Of the ports from which VXLAN is sent the lowest (RFC 7348, section 5); there are 2^14.
const SOURCE_PORTS: u16 = 0xc000;

/// What is to stand around a packet.
#[derive(Clone, Copy, Debug)]
pub struct Outer<A> {
    /// The address of the sending node.
    pub source: A,
    /// The address of the receiving node.
    pub destination: A,
    /// The UDP port of the overlay, in host byte order.
    pub port: u16,
    /// The VXLAN network identifier.
    pub network: u32,
    /// Length in bytes of the inner packet, from its IP header on. With what stands around it, it has at most 65535.
    pub inner: u16,
    /// Whether the inner packet is one of IPv4; else it is one of IPv6.
    pub inner_is_v4: bool,
    /// What the inner packet's header says of congestion: the lower two bits (RFC 6040, 4.1: the outer one says the same).
    pub congestion: u8,
    /// The same for all packets of a flow, and hardly for those of others: by the source port, networks spread packets over their ways.
    pub hash: u32,
}

impl<A> Outer<A> {
    /// Neither family has a UDP checksum: the inner packet's checksums cover all that matters, and over IPv6 a tunnel may go without
    /// (RFC 6935).
    #[inline(always)]
    fn after_ip(&self) -> [u8; AFTER_IP] {
        let mut bytes = [0; AFTER_IP];
        bytes[..2].copy_from_slice(&(SOURCE_PORTS | (self.hash >> 18) as u16).to_be_bytes());
        bytes[2..4].copy_from_slice(&self.port.to_be_bytes());
        bytes[4..6].copy_from_slice(&(self.inner + AFTER_IP as u16).to_be_bytes());
        // There is a network identifier.
        bytes[8] = 0x08;
        bytes[12..16].copy_from_slice(&(self.network << 8).to_be_bytes());
        bytes[16..22].copy_from_slice(&OVERLAY_MAC);
        bytes[22..28].copy_from_slice(&OVERLAY_SOURCE_MAC);
        let inner = if self.inner_is_v4 { ethernet::ether_type::IPV4 } else { ethernet::ether_type::IPV6 };
        bytes[28..].copy_from_slice(&inner.to_be_bytes());
        bytes
    }
}

impl Outer<V4> {
    /// The bytes between the outer Ethernet header and the inner packet. The outer packet does not fragment.
    #[inline(always)]
    pub fn headers(&self) -> [u8; LENGTH_V4] {
        let mut bytes = [0; LENGTH_V4];
        let length = self.inner + LENGTH_V4 as u16;
        bytes[0] = 0x45;
        bytes[1] = self.congestion & 3;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[6] = 0x40;
        bytes[8] = HOP_LIMIT;
        bytes[9] = protocol::UDP;
        bytes[10..12].copy_from_slice(&self.checksum(length).to_be_bytes());
        bytes[12..16].copy_from_slice(&self.source);
        bytes[16..20].copy_from_slice(&self.destination);
        bytes[ipv4::LENGTH..].copy_from_slice(&self.after_ip());
        bytes
    }

    /// The checksum of the IP header (RFC 791, 3.1).
    #[inline(always)]
    fn checksum(&self, length: u16) -> u16 {
        let halves = |address: V4| {
            let word = u32::from_be_bytes(address);
            (word >> 16) + (word & 0xffff)
        };
        let constant = 0x4500 + 0x4000 + ((HOP_LIMIT as u32) << 8) + protocol::UDP as u32;
        let sum = constant + (self.congestion & 3) as u32 + length as u32 + halves(self.source) + halves(self.destination);
        // Of so few numbers the carries of the first folding make at most one more.
        let sum = (sum >> 16) + (sum & 0xffff);
        !((sum >> 16) + sum) as u16
    }
}

impl Outer<V6> {
    /// As [`Outer::<V4>::headers`].
    #[inline(always)]
    pub fn headers(&self) -> [u8; LENGTH_V6] {
        let mut bytes = [0; LENGTH_V6];
        bytes[0] = 0x60;
        bytes[1] = (self.congestion & 3) << 4;
        bytes[4..6].copy_from_slice(&(self.inner + AFTER_IP as u16).to_be_bytes());
        bytes[6] = protocol::UDP;
        bytes[7] = HOP_LIMIT;
        bytes[8..24].copy_from_slice(&self.source);
        bytes[24..40].copy_from_slice(&self.destination);
        bytes[ipv6::LENGTH..].copy_from_slice(&self.after_ip());
        bytes
    }
}

/// The receiving node of what may be an outer packet, and its UDP port, by its first headers: IPv4 without options, not a later fragment.
#[inline(always)]
pub fn receiver_v4(headers: &[u8; ipv4::LENGTH + 4]) -> Option<(V4, u16)> {
    let [first, _, _, _, _, _, f0, f1, _, protocol, _, _, _, _, _, _, a, b, c, d, _, _, p0, p1] = *headers;
    let is_later = u16::from_be_bytes([f0, f1]) & super::fragment_field::OFFSET != 0;
    (first == 0x45 && protocol == protocol::UDP && !is_later).then_some(([a, b, c, d], u16::from_be_bytes([p0, p1])))
}

/// As [`receiver_v4`]: IPv6 without extension headers.
#[inline(always)]
pub fn receiver_v6(headers: &[u8; ipv6::LENGTH + 4]) -> Option<(V6, u16)> {
    let (fixed, udp) = headers.split_at(ipv6::LENGTH);
    let mut address = [0; 16];
    address.copy_from_slice(&fixed[24..]);
    (fixed[0] >> 4 == 6 && fixed[6] == protocol::UDP).then_some((address, u16::from_be_bytes([udp[2], udp[3]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Bytes;

    const OUTER: Outer<V4> = Outer {
        source: [192, 0, 2, 1],
        destination: [198, 51, 100, 255],
        port: 4789,
        network: 0x0012_3456,
        inner: 1400,
        inner_is_v4: true,
        congestion: 3,
        hash: u32::MAX,
    };

    const OVER_V6: Outer<V6> =
        Outer { source: [1; 16], destination: [2; 16], port: 4789, network: 1, inner: 1400, inner_is_v4: false, congestion: 3, hash: 0 };

    fn sum_up(bytes: &[u8]) -> u16 {
        let sum: u32 = bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
        let sum = (sum >> 16) + (sum & 0xffff);
        ((sum >> 16) + (sum & 0xffff)) as u16
    }

    #[test]
    fn the_header_of_an_outer_packet_has_the_right_checksum_whatever_is_in_it() {
        for inner in [0, 1, 1400, 40_000, u16::MAX - LENGTH_V4 as u16] {
            for (source, destination) in
                [([0; 4], [0; 4]), ([255; 4], [255; 4]), (OUTER.source, OUTER.destination), ([10, 255, 254, 1], [172, 31, 255, 2])]
            {
                for congestion in 0..4 {
                    let headers = Outer { source, destination, inner, congestion, ..OUTER }.headers();
                    assert_eq!(sum_up(&headers[..ipv4::LENGTH]), 0xffff, "{inner} {source:?} {destination:?}");
                }
            }
        }
    }

    #[test]
    fn an_outer_packet_says_how_long_it_is_whose_it_is_and_what_is_in_it() {
        let headers = OUTER.headers();
        assert_eq!(headers.at::<2>(2), Some(1450u16.to_be_bytes()), "length of the packet");
        assert_eq!((headers[1], headers[6], headers[8]), (3, 0x40, HOP_LIMIT), "congestion, no fragments, hops");
        assert_eq!(headers.at::<2>(24), Some(1430u16.to_be_bytes()), "length of the datagram");
        assert_eq!(headers.at::<8>(28), Some([8, 0, 0, 0, 0x12, 0x34, 0x56, 0]), "VXLAN");
        assert_eq!((headers.at::<6>(36), headers.at::<6>(42)), (Some(OVERLAY_MAC), Some(OVERLAY_SOURCE_MAC)));
        assert_eq!(headers.at::<2>(48), Some([8, 0]));
        let headers = OVER_V6.headers();
        assert_eq!(headers.at::<8>(0), Some([0x60, 0x30, 0, 0, 5, 0x96, 17, HOP_LIMIT]));
        assert_eq!((headers.at::<16>(8), headers.at::<16>(24)), (Some([1; 16]), Some([2; 16])));
        assert_eq!(headers.at::<2>(68), Some([0x86, 0xdd]));
    }

    #[test]
    fn flows_come_from_dynamic_ports_each_from_its_own() {
        for (hash, port) in [(0, 49_152), (u32::MAX, 65_535), (1 << 18, 49_153)] {
            assert_eq!(Outer { hash, ..OUTER }.headers().at::<2>(20), Some(u16::to_be_bytes(port)));
        }
    }

    #[test]
    fn the_receiver_is_read_of_what_stands_at_the_beginning_alone() {
        let headers = OUTER.headers();
        let first = |change: &dyn Fn(&mut [u8; 24])| {
            let mut first = *headers.first_chunk().unwrap();
            change(&mut first);
            receiver_v4(&first)
        };
        assert_eq!(first(&|_| {}), Some((OUTER.destination, 4789)));
        assert_eq!(first(&|bytes| bytes[6] = 0x20), Some((OUTER.destination, 4789)), "a first fragment");
        assert_eq!(first(&|bytes| bytes[7] = 1), None, "a later fragment");
        assert_eq!(first(&|bytes| bytes[0] = 0x46), None, "options");
        assert_eq!(first(&|bytes| bytes[9] = protocol::TCP), None);
        let mut first = *OVER_V6.headers().first_chunk().unwrap();
        assert_eq!(receiver_v6(&first), Some(([2; 16], 4789)));
        first[6] = 44;
        assert_eq!(receiver_v6(&first), None, "a fragment");
    }
}
