//! The overlay: what other nodes send through it, and what goes to them, by its device or past it.

use palisade_datapath_core::abi::{
    Hook, MARK_MASQUERADE, NODE_SELF, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Outcome, Tunnel, V4, V6, cell, outside_leg, tunnel_way,
};
use palisade_datapath_core::outside::of_answer;
use palisade_datapath_core::overlay;
use palisade_datapath_core::packet::ethernet::{self, ether_type};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Packet, Segment, protocol, vxlan};
use palisade_datapath_core::verdict::Judgement;

use crate::event::{drop_frame, drop_packet};
use crate::flow;
use crate::forward;
use crate::frame::{Frame, Outer, Source, action};
use crate::from_net;
use crate::maps::{self, Family, Kernel, Scratch};
use crate::outside;
use crate::refuse;
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

/// Whether a packet is one that this node has sent to the overlay of another.
#[inline(always)]
pub fn is_outer_of_this_node<A: Family>(packet: &Packet<A>) -> bool {
    let port = maps::config(cell::OVERLAY_PORT);
    packet.protocol == protocol::UDP
        && port != 0
        && u16::from_be_bytes(packet.destination_port) as u32 == port
        && packet.source.node().number == NODE_SELF
}

/// Whether a frame of one of the node's own interfaces comes to the overlay's device. While there is one, no frontend at a node's address has its
/// port.
#[inline(always)]
pub fn is_outer(frame: &Frame, version: u8) -> bool {
    let port = maps::config(cell::OVERLAY_PORT);
    if port == 0 || maps::config(cell::OVERLAY_DEVICE) == 0 {
        return false;
    }
    let node = if version == 4 {
        frame.head::<{ ethernet::LENGTH }, 24>().and_then(|headers| vxlan::receiver_v4(&headers)).map(|(to, at)| (at, to.node().number))
    } else {
        frame.head::<{ ethernet::LENGTH }, 44>().and_then(|headers| vxlan::receiver_v6(&headers)).map(|(to, at)| (at, to.node().number))
    };
    node.is_some_and(|(at, node)| at as u32 == port && node == NODE_SELF)
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
    const HOOK: Hook = Hook::FromOverlay;
    let Some(scratch) = V4::scratch() else { return drop_frame(frame, HOOK, Outcome::PolicyMissing) };
    let read = flow::read_v4(frame, &mut scratch.packet);
    match arrive(frame, read, scratch) {
        Ok(action) => action,
        Err(outcome) => {
            let Scratch { packet, judgement, .. } = scratch;
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            if matches!(outcome, Outcome::ServiceRefused) { refuse::v4(frame, packet, None, refuse::NOBODY) } else { dropped }
        }
    }
}

#[inline(never)]
fn receive_v6(frame: &Frame) -> i32 {
    const HOOK: Hook = Hook::FromOverlay;
    let Some(scratch) = V6::scratch() else { return drop_frame(frame, HOOK, Outcome::PolicyMissing) };
    let read = flow::read_v6(frame, &mut scratch.packet);
    match arrive(frame, read, scratch) {
        Ok(action) => action,
        Err(outcome) => {
            let Scratch { packet, judgement, .. } = scratch;
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            if matches!(outcome, Outcome::ServiceRefused) { refuse::v6(frame, packet, None, refuse::NOBODY) } else { dropped }
        }
    }
}

#[inline(always)]
fn arrive<A: Family + Quoting>(frame: &Frame, read: Result<(), Outcome>, scratch: &mut Scratch<A>) -> Result<i32, Outcome> {
    read?;
    match arrives(frame, &scratch.packet) {
        BY_STACK => flow::refusal(to_frontend(frame, scratch)).map(|()| action::PASS),
        mtu if mtu > BY_STACK => match scratch.packet.destination.local() {
            Some(local) => {
                outside::open_to_backend(&scratch.packet);
                Ok(to_pod::deliver(frame, &local, mtu as u16, scratch))
            }
            // It had one a moment ago.
            None => Ok(action::PASS),
        },
        outcome => Err(Outcome::from_byte(-outcome as u8).unwrap_or(Outcome::OverlayForged)),
    }
}

/// Gives what another node or a pod of it sends to a frontend at this node's address a backend, as `from_net` does. Zero, or the number of an
/// outcome. A function of its own, for the stack of the others.
#[inline(never)]
fn to_frontend<A: Family + Quoting>(frame: &Frame, scratch: &mut Scratch<A>) -> i32 {
    let Scratch { packet, quoted, via, .. } = scratch;
    flow::number(from_net::translate(frame, packet, quoted, via))
}

/// It may come out of the overlay, and is left to the stack.
const BY_STACK: i32 = 0;

/// Whether a packet may come out of the overlay: [`BY_STACK`]; the longest packet that goes on to its pod past the stack; or an outcome, negative.
///
/// Past the stack goes what a pod of another node has sent to one of this node, and what that node itself has sent there, where the answer does. Any
/// other is left to it.
#[inline(never)]
fn arrives<A: Family>(frame: &Frame, packet: &Packet<A>) -> i32 {
    if matches!(packet.segment, Segment::Neighbour | Segment::Listener) {
        return -(Outcome::NeighbourDiscoveryInvalid as i32);
    }
    let node = packet.source.node();
    // Each question about a range is a dear one.
    let (pods_of, of_pods) = match packet.source.tunnel() {
        Some(tunnel) => (tunnel.node, if tunnel.is_overlay() { tunnel.mtu } else { 0 }),
        None => (0, 0),
    };
    let mtu = if node.number == 0 { of_pods } else { node.mtu };
    let is_local = packet.destination.local().is_some();
    let for_here = is_local || packet.destination.node().number == NODE_SELF;
    match overlay::arrives(sender(frame), overlay::Source { node: node.number, pods_of }, for_here) {
        Ok(()) if is_local && maps::config(cell::OVERLAY_DEVICE) != 0 => mtu as i32,
        Ok(()) => BY_STACK,
        Err(outcome) => -(outcome as i32),
    }
}

/// The number of the node that has sent a frame through the overlay; 0 where none has.
#[inline(always)]
fn sender(frame: &Frame) -> u32 {
    match frame.outer() {
        Some(Outer { network, source }) if Some(network) == network_here() => match source {
            Source::V4(address) => address.node().number,
            Source::V6(address) => address.node().number,
        },
        _ => 0,
    }
}

/// The network identifier of the overlay; none while there is no overlay.
#[inline(always)]
fn network_here() -> Option<u32> {
    if maps::config(cell::OVERLAY_PORT) == 0 { None } else { Some(maps::config(cell::OVERLAY_NETWORK)) }
}

/// Sends a pod's packet that it has let pass to the node of a tunnel: in an outer one that is made here where the row says how that gets there, else
/// by the overlay's `device`, which asks for the route of each.
#[inline(always)]
pub fn enter<A: Family>(frame: &Frame, packet: &Packet<A>, tunnel: &Tunnel, device: u32) -> i32 {
    if tunnel.ifindex == 0 || may_answer_outside(packet) != 0 {
        return forward::to_device(device);
    }
    let wrapped = if tunnel.version == 4 { surround_v4::<A>(frame, tunnel) } else { surround_v6::<A>(frame, tunnel) };
    match wrapped {
        SURROUNDED if tunnel.way == tunnel_way::OVERLAY_LINK => forward::to_neighbour(tunnel.ifindex, tunnel),
        SURROUNDED => forward::to_router(tunnel.ifindex),
        UNCHANGED => forward::to_device(device),
        _ => forward::FAILED,
    }
}

/// Whether a packet may answer a client from outside as a frontend: `to_overlay` knows, to which the device leads.
#[inline(never)]
fn may_answer_outside<A: Family>(packet: &Packet<A>) -> i32 {
    if maps::config(cell::OUTSIDE) == 0 {
        return 0;
    }
    match packet.segment {
        Segment::Error | Segment::Later => 1,
        _ => A::outside(&of_answer(packet, outside_leg::BACKEND)).is_some() as i32,
    }
}

/// The packet has become an outer one.
const SURROUNDED: i32 = 0;
/// It is as it was.
const UNCHANGED: i32 = 1;
/// It is spoiled.
const SPOILED: i32 = 2;

/// What is to stand around a packet, where its length can be told.
#[inline(always)]
fn around<A: Family, O>(frame: &Frame, source: O, destination: O, longest: u32) -> Option<vxlan::Outer<O>> {
    let network = network_here()?;
    let inner = frame.length() - ethernet::LENGTH as u32;
    let [_, second] = frame.head::<{ ethernet::LENGTH }, 2>()?;
    let inner_is_v4 = A::VERSION == 4;
    let congestion = if inner_is_v4 { second } else { second >> 4 };
    let port = maps::config(cell::OVERLAY_PORT) as u16;
    let outer = vxlan::Outer { source, destination, port, network, inner: inner as u16, inner_is_v4, congestion, hash: frame.hash() };
    (inner <= longest).then_some(outer)
}

// Subprograms, so that the headers of both families do not add up on the stack.
#[inline(never)]
fn surround_v4<A: Family>(frame: &Frame, tunnel: &Tunnel) -> i32 {
    const LENGTH: u32 = vxlan::LENGTH_V4 as u32;
    let (source, destination) = (V4::narrow(&tunnel.source), V4::narrow(&tunnel.address));
    let Some(outer) = around::<A, V4>(frame, source, destination, u16::MAX as u32 - LENGTH) else { return UNCHANGED };
    if !frame.open_for_overlay(LENGTH, 4) {
        return UNCHANGED;
    }
    if frame.store(ethernet::LENGTH as u32, &outer.headers()) { SURROUNDED } else { SPOILED }
}

#[inline(never)]
fn surround_v6<A: Family>(frame: &Frame, tunnel: &Tunnel) -> i32 {
    const LENGTH: u32 = vxlan::LENGTH_V6 as u32;
    let Some(outer) = around::<A, V6>(frame, tunnel.source, tunnel.address, u16::MAX as u32 - LENGTH) else { return UNCHANGED };
    if !frame.open_for_overlay(LENGTH, 6) {
        return UNCHANGED;
    }
    if frame.store(ethernet::LENGTH as u32, &outer.headers()) { SURROUNDED } else { SPOILED }
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
    if maps::config(cell::OUTSIDE) == 0
        && let Some(action) = taken(leave::<V4>(frame))
    {
        return action;
    }
    let Some(Scratch { packet, quoted, judgement, via }) = V4::scratch() else {
        return drop_frame(frame, Hook::ToOverlay, Outcome::PolicyMissing);
    };
    let read = flow::read_v4(frame, packet);
    send_to(frame, read, packet, quoted, via, judgement)
}

#[inline(never)]
fn send_v6(frame: &Frame) -> i32 {
    if maps::config(cell::OUTSIDE) == 0
        && let Some(action) = taken(leave::<V6>(frame))
    {
        return action;
    }
    let Some(Scratch { packet, quoted, judgement, via }) = V6::scratch() else {
        return drop_frame(frame, Hook::ToOverlay, Outcome::PolicyMissing);
    };
    let read = flow::read_v6(frame, packet);
    send_to(frame, read, packet, quoted, via, judgement)
}

/// Sends a packet by its tunnel. A pod of another node that asked a frontend of this one is a client from outside: see `to_net`.
#[inline(always)]
fn send_to<A: Family + Quoting>(
    frame: &Frame,
    read: Result<(), Outcome>,
    packet: &mut Packet<A>,
    quoted: &mut Packet<A>,
    via: &mut Via<A>,
    judgement: &Judgement,
) -> i32 {
    // What cannot be read answers nobody, and is the receiver's to judge.
    let answered = match read {
        Ok(()) if maps::config(cell::OUTSIDE) != 0 => outside::answer_as_frontend(frame, packet, quoted, via),
        _ => Ok(()),
    };
    let outcome = match answered {
        Ok(()) => match taken(leave::<A>(frame)) {
            Some(action) => return action,
            // What cannot be read has no destination that is known.
            None => read.err().unwrap_or(Outcome::TunnelMissing),
        },
        Err(outcome) => outcome,
    };
    drop_packet(frame, Hook::ToOverlay, outcome, packet, judgement)
}

/// What is no action: no node has the packet's destination.
const NOWHERE: i32 = i32::MIN;

#[inline(always)]
fn taken(action: i32) -> Option<i32> {
    if action == NOWHERE { None } else { Some(action) }
}

/// Has the device put a packet in an outer one to the node whose pods' range holds its destination. A function of its own, as little of the row as
/// there may be on the stack: Linux 5.10 counts that of each call in steps of 32 bytes, and all calls together have 512.
#[inline(never)]
fn leave<A: Family>(frame: &Frame) -> i32 {
    let Some(destination) = A::load(frame, A::DESTINATION) else { return NOWHERE };
    let (address, version) = match destination.tunnel() {
        // To a node itself, by the address that is asked for.
        _ if destination.node().mtu != 0 => (destination.wide(), A::VERSION),
        Some(tunnel) => (tunnel.address, tunnel.version),
        None => return NOWHERE,
    };
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&OVERLAY_MAC);
    addresses[6..].copy_from_slice(&OVERLAY_SOURCE_MAC);
    // The outer packet inherits the mark, and comes from this node's address already.
    frame.unmark(MARK_MASQUERADE);
    match network_here() {
        Some(network) if frame.write::<0, 12>(&addresses) && frame.wrap(network, &address, version) => action::PASS,
        Some(_) => drop_frame(frame, Hook::ToOverlay, Outcome::RewriteFailed),
        None => drop_frame(frame, Hook::ToOverlay, Outcome::TunnelMissing),
    }
}
