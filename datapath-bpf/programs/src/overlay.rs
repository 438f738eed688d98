//! The overlay's device: what other nodes send through it, and what goes to them.

use palisade_datapath_core::abi::{Hook, MARK_MASQUERADE, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Outcome, Tunnel, V4, V6, cell, tunnel_way};
use palisade_datapath_core::overlay;
use palisade_datapath_core::packet::ethernet::{self, ether_type};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Packet, Segment, protocol};
use palisade_datapath_core::verdict::Judgement;

use crate::event::{drop_frame, drop_packet};
use crate::flow;
use crate::frame::{Frame, Outer, Source, action};
use crate::maps::{self, Family, Kernel, Scratch};
use crate::outside;
use crate::service::Via;
use crate::to_pod;

/// Whether a pod's packet would come to the overlay of a node.
#[inline(always)]
pub fn is_for<A: Family>(packet: &Packet<A>) -> bool {
    packet.protocol == protocol::UDP && comes_to(packet) != 0
}

#[inline(never)]
fn comes_to<A: Family>(packet: &Packet<A>) -> i32 {
    overlay::is_for_overlay(&Kernel, maps::config(cell::OVERLAY_PORT), packet) as i32
}

/// Takes a packet that another node has sent to a pod of this node, or passes it to the stack as the node's own.
#[inline(always)]
pub fn receive(frame: &Frame) -> i32 {
    const HOOK: Hook = Hook::FromOverlay;
    frame.gather();
    let Some(header) = frame.head::<0, { ethernet::LENGTH }>() else { return drop_frame(frame, HOOK, Outcome::Truncated) };
    if frame.vlan() {
        return drop_frame(frame, HOOK, Outcome::EtherTypeUnknown);
    }
    match ethernet::Header::read(&header).ether_type {
        ether_type::IPV4 => receive_v4(frame),
        ether_type::IPV6 => receive_v6(frame),
        // Nobody asks for neighbours here.
        ether_type::ARP => drop_frame(frame, HOOK, Outcome::ArpInvalid),
        _ => drop_frame(frame, HOOK, Outcome::EtherTypeUnknown),
    }
}

#[inline(never)]
fn receive_v4(frame: &Frame) -> i32 {
    let Some(scratch) = V4::scratch() else {
        return drop_frame(frame, Hook::FromOverlay, Outcome::PolicyMissing);
    };
    let read = flow::read_v4(frame, &mut scratch.packet);
    arrive(frame, read, scratch)
}

#[inline(never)]
fn receive_v6(frame: &Frame) -> i32 {
    let Some(scratch) = V6::scratch() else {
        return drop_frame(frame, Hook::FromOverlay, Outcome::PolicyMissing);
    };
    let read = flow::read_v6(frame, &mut scratch.packet);
    arrive(frame, read, scratch)
}

#[inline(always)]
fn arrive<A: Family + Quoting>(frame: &Frame, read: Result<(), Outcome>, scratch: &mut Scratch<A>) -> i32 {
    match read.and_then(|()| flow::refusal(arrives(frame, &scratch.packet))) {
        Ok(()) => go_on(frame, scratch),
        Err(outcome) => drop_packet(frame, Hook::FromOverlay, outcome, &scratch.packet, &scratch.judgement),
    }
}

/// Takes what a pod of another node has sent to one of this node past the stack, where the answer goes past it, too; leaves any other to it: what
/// a node has sent, for itself or for somebody else under its address, is answered through the stack.
#[inline(always)]
fn go_on<A: Family + Quoting>(frame: &Frame, scratch: &mut Scratch<A>) -> i32 {
    let Some(local) = scratch.packet.destination.local() else { return action::PASS };
    match scratch.packet.source.tunnel() {
        Some(tunnel) if tunnel.way == tunnel_way::OVERLAY && maps::config(cell::OVERLAY_DEVICE) != 0 => {
            to_pod::deliver(frame, &local, tunnel.mtu, scratch)
        }
        _ => action::PASS,
    }
}

#[inline(never)]
fn arrives<A: Family>(frame: &Frame, packet: &Packet<A>) -> i32 {
    if matches!(packet.segment, Segment::Neighbour | Segment::Listener) {
        return Outcome::NeighbourDiscoveryInvalid as i32;
    }
    flow::number(overlay::arrives(&Kernel, sender(frame), packet))
}

/// The number of the node that has sent a frame through the overlay; 0 where none has.
#[inline(always)]
fn sender(frame: &Frame) -> u32 {
    match frame.outer() {
        Some(Outer { network, source }) if Some(network) == network_here() => match source {
            Source::V4(address) => address.node(),
            Source::V6(address) => address.node(),
        },
        _ => 0,
    }
}

/// The network identifier of the overlay; none while there is no overlay.
#[inline(always)]
fn network_here() -> Option<u32> {
    if maps::config(cell::OVERLAY_PORT) == 0 { None } else { Some(maps::config(cell::OVERLAY_NETWORK)) }
}

/// Sends a packet to the node whose pods' range holds its destination.
#[inline(always)]
pub fn send(frame: &Frame) -> i32 {
    const HOOK: Hook = Hook::ToOverlay;
    frame.gather();
    let Some(header) = frame.head::<0, { ethernet::LENGTH }>() else { return drop_frame(frame, HOOK, Outcome::Truncated) };
    match ethernet::Header::read(&header).ether_type {
        ether_type::IPV4 => send_v4(frame),
        ether_type::IPV6 => send_v6(frame),
        ether_type::ARP => drop_frame(frame, HOOK, Outcome::ArpInvalid),
        _ => drop_frame(frame, HOOK, Outcome::EtherTypeUnknown),
    }
}

// Subprograms, so that the packets of both families do not add up on the stack.
#[inline(never)]
fn send_v4(frame: &Frame) -> i32 {
    const DESTINATION: usize = V4::DESTINATION as usize;
    let tunnel = frame.head::<DESTINATION, 4>().and_then(|destination| destination.tunnel());
    if let Some(tunnel) = &tunnel
        && maps::config(cell::OUTSIDE) == 0
    {
        return leave(frame, tunnel);
    }
    let Some(Scratch { packet, quoted, judgement, via }) = V4::scratch() else {
        return drop_frame(frame, Hook::ToOverlay, Outcome::PolicyMissing);
    };
    let read = flow::read_v4(frame, packet);
    send_to(frame, tunnel, read, packet, quoted, via, judgement)
}

#[inline(never)]
fn send_v6(frame: &Frame) -> i32 {
    const DESTINATION: usize = V6::DESTINATION as usize;
    let tunnel = frame.head::<DESTINATION, 16>().and_then(|destination| destination.tunnel());
    if let Some(tunnel) = &tunnel
        && maps::config(cell::OUTSIDE) == 0
    {
        return leave(frame, tunnel);
    }
    let Some(Scratch { packet, quoted, judgement, via }) = V6::scratch() else {
        return drop_frame(frame, Hook::ToOverlay, Outcome::PolicyMissing);
    };
    let read = flow::read_v6(frame, packet);
    send_to(frame, tunnel, read, packet, quoted, via, judgement)
}

/// Sends a packet by its tunnel. A pod of another node that asked a frontend of this one is a client from outside: see `to_net`.
#[inline(always)]
fn send_to<A: Family + Quoting>(
    frame: &Frame,
    tunnel: Option<Tunnel>,
    read: Result<(), Outcome>,
    packet: &mut Packet<A>,
    quoted: &mut Packet<A>,
    via: &mut Via<A>,
    judgement: &Judgement,
) -> i32 {
    let outcome = match (tunnel, read) {
        (Some(tunnel), Ok(())) => match outside::answer_as_frontend(frame, packet, quoted, via) {
            Ok(()) => return leave(frame, &tunnel),
            Err(outcome) => outcome,
        },
        // What cannot be read answers nobody, and is the receiver's to judge.
        (Some(tunnel), Err(_)) => return leave(frame, &tunnel),
        // What cannot be read has no destination that is known.
        (None, read) => read.err().unwrap_or(Outcome::TunnelMissing),
    };
    drop_packet(frame, Hook::ToOverlay, outcome, packet, judgement)
}

/// Puts a packet in an outer one to a node.
#[inline(never)]
fn leave(frame: &Frame, tunnel: &Tunnel) -> i32 {
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&OVERLAY_MAC);
    addresses[6..].copy_from_slice(&OVERLAY_SOURCE_MAC);
    // The outer packet inherits the mark, and comes from this node's address already.
    frame.unmark(MARK_MASQUERADE);
    match network_here() {
        Some(network) if frame.write::<0, 12>(&addresses) && frame.wrap(network, tunnel) => action::PASS,
        Some(_) => drop_frame(frame, Hook::ToOverlay, Outcome::RewriteFailed),
        None => drop_frame(frame, Hook::ToOverlay, Outcome::TunnelMissing),
    }
}
