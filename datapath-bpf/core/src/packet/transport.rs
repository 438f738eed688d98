//! The transport headers: ports, and what a packet means for its flow.

use super::{Bytes, Fragment, Packet, Segment, ending, icmp, protocol};
use crate::abi::{Address, Outcome};

const TCP_LENGTH: usize = 20;
const UDP_LENGTH: usize = 8;
/// The common header and the header of the first chunk.
const SCTP_LENGTH: usize = 16;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

const FLAGS: u8 = 0x1f;

/// What a TCP packet is to the connection table, by its flags.
static SEGMENTS: [Segment; FLAGS as usize + 1] = {
    let mut segments = [Segment::Bare; FLAGS as usize + 1];
    let mut flags = 0;
    while flags <= FLAGS {
        if flags & TCP_ACK != 0 {
            segments[flags as usize] = Segment::MidStream;
        } else if flags & TCP_SYN != 0 {
            segments[flags as usize] = Segment::Opening;
        }
        flags += 1;
    }
    segments
};

const _: () = assert!(TCP_FIN == ending::FIN && TCP_RST == ending::RESET);

const SCTP_INIT: u8 = 1;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

/// Reads the transport header. `FIXED` is its offset in a packet without options and extension headers.
#[inline(always)]
pub fn read<A: Address, B: Bytes + ?Sized, const FIXED: usize>(bytes: &B, packet: &mut Packet<A>) -> Result<(), Outcome> {
    if packet.transport == FIXED as u32 { read_at::<A, B, FIXED>(bytes, packet) } else { read_moved(bytes, packet) }
}

/// The rare case, in a subprogram: the header stands behind options or extension headers.
#[inline(never)]
fn read_moved<A: Address, B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet<A>) -> Result<(), Outcome> {
    read_at::<A, B, ANYWHERE>(bytes, packet)
}

const ANYWHERE: usize = 0;

#[inline(always)]
fn read_at<A: Address, B: Bytes + ?Sized, const OFFSET: usize>(bytes: &B, packet: &mut Packet<A>) -> Result<(), Outcome> {
    if matches!(packet.fragment(), Fragment::Later) {
        packet.segment = Segment::Later;
        return Ok(());
    }
    if packet.protocol == protocol::TCP {
        tcp(load::<A, B, OFFSET, TCP_LENGTH>(bytes, packet)?, packet)
    } else if packet.protocol == protocol::UDP {
        udp(load::<A, B, OFFSET, UDP_LENGTH>(bytes, packet)?, packet)
    } else if packet.protocol == A::ICMP {
        icmp::read(load::<A, B, OFFSET, { icmp::LENGTH }>(bytes, packet)?, packet)
    } else if packet.protocol == protocol::SCTP {
        sctp(load::<A, B, OFFSET, SCTP_LENGTH>(bytes, packet)?, packet)
    } else {
        Err(Outcome::ProtocolUnknown)
    }
}

#[inline(always)]
fn load<A: Address, B: Bytes + ?Sized, const OFFSET: usize, const N: usize>(bytes: &B, packet: &Packet<A>) -> Result<[u8; N], Outcome> {
    // Bytes behind the packet's own end are padding of the frame, not the header.
    if packet.transport + N as u32 > packet.end {
        return Err(packet.short());
    }
    let header = if OFFSET == ANYWHERE { bytes.at::<N>(packet.transport) } else { bytes.head::<OFFSET, N>() };
    match header {
        Some(header) => Ok(header),
        None => Err(packet.short()),
    }
}

#[inline(always)]
fn tcp<A: Address>(header: [u8; TCP_LENGTH], packet: &mut Packet<A>) -> Result<(), Outcome> {
    let length = (header[12] >> 4) as u32 * 4;
    if length < TCP_LENGTH as u32 || (matches!(packet.fragment(), Fragment::Whole) && packet.transport + length > packet.end) {
        return Err(Outcome::HeaderInvalid);
    }
    ports(header[0], header[1], header[2], header[3], packet);
    let flags = header[13];
    packet.segment = SEGMENTS[(flags & FLAGS) as usize];
    packet.ending = flags & (TCP_FIN | TCP_RST);
    Ok(())
}

#[inline(always)]
fn udp<A: Address>(header: [u8; UDP_LENGTH], packet: &mut Packet<A>) -> Result<(), Outcome> {
    let length = u16::from_be_bytes([header[4], header[5]]) as u32;
    if length < UDP_LENGTH as u32 || (matches!(packet.fragment(), Fragment::Whole) && packet.transport + length > packet.end) {
        return Err(Outcome::HeaderInvalid);
    }
    ports(header[0], header[1], header[2], header[3], packet);
    packet.segment = Segment::Datagram;
    Ok(())
}

#[inline(always)]
fn sctp<A: Address>(header: [u8; SCTP_LENGTH], packet: &mut Packet<A>) -> Result<(), Outcome> {
    ports(header[0], header[1], header[2], header[3], packet);
    let chunk = header[12];
    packet.segment = if chunk == SCTP_INIT { Segment::Opening } else { Segment::MidStream };
    packet.ending = if chunk == SCTP_ABORT || chunk == SCTP_SHUTDOWN_COMPLETE { ending::RESET } else { 0 };
    Ok(())
}

#[inline(always)]
fn ports<A: Address>(s0: u8, s1: u8, d0: u8, d1: u8, packet: &mut Packet<A>) {
    packet.source_port = [s0, s1];
    packet.destination_port = [d0, d1];
}
