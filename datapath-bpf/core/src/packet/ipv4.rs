//! The IPv4 header.

use super::{Bytes, Packet, ethernet, fragment_field, transport};
use crate::abi::{Outcome, V4};

/// Length in bytes of a header without options.
pub const LENGTH: usize = 20;
/// Offset in the frame of the transport header of a packet without options.
pub const TRANSPORT: usize = ethernet::LENGTH + LENGTH;

/// Reads the IPv4 packet of a frame, transport header included.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<V4>) -> Result<(), Outcome> {
    let Some(header) = bytes.head::<{ ethernet::LENGTH }, LENGTH>() else { return Err(Outcome::Truncated) };
    read_header(&header, ethernet::LENGTH as u32, packet)?;
    if packet.end > bytes.length() || packet.transport > packet.end {
        return Err(Outcome::HeaderInvalid);
    }
    transport::read::<V4, B, TRANSPORT>(bytes, packet)
}

/// Reads a header that stands at `offset` of the frame. Whether the packet lies inside the frame is the caller's to check.
#[inline(always)]
pub(super) fn read_header(header: &[u8; LENGTH], offset: u32, packet: &mut Packet<V4>) -> Result<(), Outcome> {
    let [first, _, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let length = (first & 0x0f) as u32 * 4;
    if first >> 4 != 4 || length < LENGTH as u32 {
        return Err(Outcome::HeaderInvalid);
    }
    packet.version = 4;
    packet.source = [s0, s1, s2, s3];
    packet.destination = [d0, d1, d2, d3];
    packet.protocol = protocol;
    packet.hop_limit = ttl;
    packet.transport = offset + length;
    packet.end = offset + u16::from_be_bytes([l0, l1]) as u32;
    packet.fragment_id = [0, 0, i0, i1];
    packet.fragment_protocol = protocol;
    packet.fragment_field = u16::from_be_bytes([f0, f1]) & (fragment_field::MORE | fragment_field::OFFSET);
    Ok(())
}

/// Lowers the TTL by one: takes and gives the four bytes TTL, protocol and header checksum (RFC 1624).
#[inline(always)]
pub const fn lower_ttl(bytes: [u8; 4]) -> [u8; 4] {
    let [ttl, protocol, c0, c1] = bytes;
    let sum = u16::from_be_bytes([c0, c1]) as u32 + 0x0100;
    // One's complement: the carry comes back at the low end; 0xffff and 0 are the same number.
    let [c0, c1] = ((sum + (sum >= 0xffff) as u32) as u16).to_be_bytes();
    [ttl - 1, protocol, c0, c1]
}
