//! The IPv6 header and its extension headers.

use super::{Bytes, Fragment, Packet, ethernet, fragment_field, transport};
use crate::abi::{Outcome, V6};

/// Length in bytes of the fixed header.
pub const LENGTH: usize = 40;
/// Offset in the frame of the transport header of a packet without extension headers.
pub const TRANSPORT: usize = ethernet::LENGTH + LENGTH;
/// At most so many extension headers are walked.
pub const EXTENSION_HEADERS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

const MORE_FRAGMENTS: u16 = 1;

/// Reads the IPv6 packet of a frame, transport header included.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<V6>) -> Result<(), Outcome> {
    let Some(header) = bytes.head::<{ ethernet::LENGTH }, LENGTH>() else { return Err(Outcome::Truncated) };
    read_header(&header, ethernet::LENGTH as u32, packet)?;
    if packet.end > bytes.length() {
        return Err(Outcome::HeaderInvalid);
    }
    if is_extension(packet.protocol) {
        walk(bytes, packet)?;
    }
    transport::read::<V6, B, TRANSPORT>(bytes, packet)
}

/// Reads a fixed header that stands at `offset` of the frame. Whether the packet lies inside the frame is the caller's to check.
#[inline(always)]
pub(super) fn read_header(header: &[u8; LENGTH], offset: u32, packet: &mut Packet<V6>) -> Result<(), Outcome> {
    if header[0] >> 4 != 6 {
        return Err(Outcome::HeaderInvalid);
    }
    packet.version = 6;
    packet.source.copy_from_slice(&header[8..24]);
    packet.destination.copy_from_slice(&header[24..40]);
    packet.protocol = header[6];
    packet.hop_limit = header[7];
    packet.transport = offset + LENGTH as u32;
    packet.end = packet.transport + u16::from_be_bytes([header[4], header[5]]) as u32;
    Ok(())
}

/// Whether a next-header number is that of an extension header that is walked.
#[inline(always)]
pub(super) const fn is_extension(number: u8) -> bool {
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Walks the extension headers: moves `transport` and `protocol` behind them and learns of a fragment.
// Its own subprogram: it is rare, and the loop would lie on the stack and in the instruction budget of every caller.
#[inline(never)]
pub(super) fn walk<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<V6>) -> Result<(), Outcome> {
    let end = packet.end;
    let mut offset = packet.transport;
    let mut next = packet.protocol;
    for count in 0..EXTENSION_HEADERS {
        // A header behind the packet's own end is padding of the frame.
        if offset + 8 > end {
            return Err(packet.short());
        }
        let Some(header) = bytes.at::<8>(offset) else { return Err(packet.short()) };
        let [following, length, f0, f1, i0, i1, i2, i3] = header;
        let size = match next {
            // Only the first may be of this kind: routers look nowhere else for it.
            HOP_BY_HOP if count != 0 => return Err(Outcome::HeaderInvalid),
            // The address of the header would not be where the packet ends up, so no policy could be asked about it.
            ROUTING if f1 != 0 => return Err(Outcome::HeaderInvalid),
            FRAGMENT => {
                let field = u16::from_be_bytes([f0, f1]);
                packet.fragment_id = [i0, i1, i2, i3];
                packet.fragment_protocol = following;
                packet.fragment_field = (field >> 3) | ((field & MORE_FRAGMENTS) * fragment_field::MORE);
                8
            }
            AUTHENTICATION => (length as u32 + 2) * 4,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (length as u32 + 1) * 8,
            _ => return Ok(()),
        };
        offset += size;
        next = following;
        if offset > end {
            return Err(packet.short());
        }
        packet.transport = offset;
        packet.protocol = next;
        // What a later fragment holds begins in the middle of something.
        if packet.fragment() == Fragment::Later {
            return Ok(());
        }
        if !is_extension(next) {
            return Ok(());
        }
    }
    Err(Outcome::ExtensionHeaders)
}
