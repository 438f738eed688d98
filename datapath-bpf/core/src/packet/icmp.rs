//! ICMP of both families: what a message is, and the packet that an error quotes.

use core::marker::PhantomData;

use super::{Bytes, Fragment, Packet, Segment, ipv4, ipv6, protocol};
use crate::abi::{Address, Outcome, V4, V6};

/// Length in bytes of the part that every message has.
pub const LENGTH: usize = 8;

/// What a message is, by its type.
#[inline(always)]
pub const fn classify(version: u8, kind: u8) -> Segment {
    match (version, kind) {
        (4, 8) | (6, 128) => Segment::EchoRequest,
        (4, 0) | (6, 129) => Segment::EchoReply,
        // Destination unreachable, time exceeded, parameter problem; for IPv6 also packet too big. Not redirect:
        // it would let a peer steer the routes of a pod.
        (4, 3 | 11 | 12) | (6, 1..=4) => Segment::Error,
        (6, 133..=137) => Segment::Neighbour,
        (6, 130..=132 | 143) => Segment::Listener,
        _ => Segment::Unknown,
    }
}

struct Classes<A>(PhantomData<A>);

impl<A: Address> Classes<A> {
    /// [`classify`] as a table.
    const OF_TYPE: &'static [Segment; 256] = &{
        let mut classes = [Segment::Unknown; 256];
        let mut kind = 0;
        while kind < 256 {
            classes[kind] = classify(A::VERSION, kind as u8);
            kind += 1;
        }
        classes
    };
}

/// Reads the start of a message.
#[inline(always)]
pub fn read<A: Address>(header: [u8; LENGTH], packet: &mut Packet<A>) -> Result<(), Outcome> {
    let [kind, _, _, _, i0, i1, _, _] = header;
    packet.icmp_type = kind;
    packet.segment = Classes::<A>::OF_TYPE[kind as usize];
    if matches!(packet.segment, Segment::Unknown) {
        return Err(Outcome::IcmpTypeUnknown);
    }
    echo_ports([i0, i1], packet);
    Ok(())
}

/// The id of an echo stands for the port of the end that asks; the end that answers has port 0.
#[inline(always)]
fn echo_ports<A>(id: [u8; 2], packet: &mut Packet<A>) {
    match packet.segment {
        Segment::EchoRequest => (packet.source_port, packet.destination_port) = (id, [0; 2]),
        Segment::EchoReply => (packet.source_port, packet.destination_port) = ([0; 2], id),
        _ => {}
    }
}

/// A family whose ICMP errors can be read.
pub trait Quoting: Address + Default {
    /// Reads the IP header that stands at `offset` of the frame, up to its transport header.
    fn quoted_header<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet<Self>) -> Result<(), Outcome>;
}

impl Quoting for V4 {
    #[inline(always)]
    fn quoted_header<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet<Self>) -> Result<(), Outcome> {
        let Some(header) = bytes.at::<{ ipv4::LENGTH }>(offset) else { return Err(Outcome::Truncated) };
        ipv4::read_header(&header, offset, packet)
    }
}

impl Quoting for V6 {
    #[inline(always)]
    fn quoted_header<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet<Self>) -> Result<(), Outcome> {
        let Some(header) = bytes.at::<{ ipv6::LENGTH }>(offset) else { return Err(Outcome::Truncated) };
        ipv6::read_header(&header, offset, packet)?;
        if ipv6::is_extension(packet.protocol) {
            ipv6::walk(bytes, packet)?;
        }
        Ok(())
    }
}

/// Reads the packet that the ICMP error `outer` quotes: its addresses, ports and protocol.
///
/// A quote is cut short, so the lengths that it states are not looked at; the eight bytes of transport header
/// that every error has to quote must be there. An error that quotes what belongs to no flow is unrelated.
#[inline(always)]
pub fn quoted<A: Quoting, B: Bytes + ?Sized>(bytes: &B, outer: &Packet<A>, quoted: &mut Packet<A>) -> Result<(), Outcome> {
    A::quoted_header(bytes, outer.transport + LENGTH as u32, quoted)?;
    if matches!(quoted.fragment(), Fragment::Later) {
        return Err(Outcome::IcmpUnrelated);
    }
    if quoted.transport + LENGTH as u32 > outer.end {
        return Err(Outcome::Truncated);
    }
    let Some(header) = bytes.at::<LENGTH>(quoted.transport) else { return Err(Outcome::Truncated) };
    let [h0, h1, h2, h3, i0, i1, _, _] = header;
    if matches!(quoted.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        (quoted.source_port, quoted.destination_port) = ([h0, h1], [h2, h3]);
        quoted.segment = Segment::Datagram;
        return Ok(());
    }
    if quoted.protocol != A::ICMP {
        return Err(Outcome::IcmpUnrelated);
    }
    match classify(A::VERSION, h0) {
        segment @ (Segment::EchoRequest | Segment::EchoReply) => quoted.segment = segment,
        _ => return Err(Outcome::IcmpUnrelated),
    }
    echo_ports([i0, i1], quoted);
    Ok(())
}
