//! Packets that come to the node by one of its own interfaces: what a client outside the cluster sends to a frontend goes to a backend.
//!
//! An address translation before the stack, which takes the packet to the backend, where `to_pod` judges it. What a pod of another node has sent to
//! one of this node is judged here, as `to_pod` does, and goes past the stack. All else that goes to no frontend which is open to the outside passes
//! untouched, uncounted, whatever it is.

use palisade_datapath_core::abi::{Address, Hook, MARK_MASQUERADE, Outcome, V4, V6, service_flag, tunnel_way};
use palisade_datapath_core::packet::ethernet::{self, ether_type};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Packet, Segment};

use crate::event::drop_packet;
use crate::flow;
use crate::frame::{Frame, action};
use crate::maps::{Family, Scratch};
use crate::outside;
use crate::overlay;
use crate::refuse;
use crate::service::{self, NO_SERVICE, TRANSLATED, Via, way};
use crate::to_pod;

const HOOK: Hook = Hook::FromNet;

/// Runs the program.
#[inline(always)]
pub fn run(frame: &Frame) -> i32 {
    // A VLAN's own interface sees its packets again, without the tag.
    if !frame.is_for_host() || frame.vlan() {
        return action::PASS;
    }
    frame.gather();
    let Some(header) = frame.head::<0, { ethernet::LENGTH }>() else { return action::PASS };
    // A device without Ethernet headers, to which the agent attaches nothing, would hardly ever say the same twice.
    let ether_type = ethernet::Header::read(&header).ether_type;
    if ether_type != frame.protocol() {
        return action::PASS;
    }
    match ether_type {
        ether_type::IPV4 if overlay::is_outer(frame, 4) => action::PASS,
        ether_type::IPV6 if overlay::is_outer(frame, 6) => action::PASS,
        ether_type::IPV4 => v4(frame),
        ether_type::IPV6 => v6(frame),
        _ => action::PASS,
    }
}

// Subprograms, so that the packets of both families do not add up on the stack.
#[inline(never)]
fn v4(frame: &Frame) -> i32 {
    let Some(scratch) = V4::scratch() else { return action::PASS };
    let Scratch { packet, quoted, judgement, via } = &mut *scratch;
    // What cannot be read is the stack's.
    if flow::read_v4(frame, packet).is_err() {
        return action::PASS;
    }
    match translate(frame, packet, quoted, via) {
        Ok(()) => go_on(frame, scratch),
        Err(outcome) => {
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            if matches!(outcome, Outcome::ServiceRefused) && packet.source.is_one_host() {
                refuse::v4(frame, packet, None, refuse::NOBODY)
            } else {
                dropped
            }
        }
    }
}

#[inline(never)]
fn v6(frame: &Frame) -> i32 {
    let Some(scratch) = V6::scratch() else { return action::PASS };
    let Scratch { packet, quoted, judgement, via } = &mut *scratch;
    if flow::read_v6(frame, packet).is_err() {
        return action::PASS;
    }
    match translate(frame, packet, quoted, via) {
        Ok(()) => go_on(frame, scratch),
        Err(outcome) => {
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            if matches!(outcome, Outcome::ServiceRefused) && packet.source.is_one_host() {
                refuse::v6(frame, packet, None, refuse::NOBODY)
            } else {
                dropped
            }
        }
    }
}

/// Takes what a pod of another node has sent to one of this node past the stack; leaves any other to it, and what was translated.
#[inline(always)]
fn go_on<A: Family + Quoting>(frame: &Frame, scratch: &mut Scratch<A>) -> i32 {
    if scratch.via.way != way::NONE {
        return action::PASS;
    }
    let Some(local) = scratch.packet.destination.local() else { return action::PASS };
    match scratch.packet.source.tunnel() {
        // What claims to be such a pod and comes by another way is the stack's, which has its own mind about that (`rp_filter`).
        Some(tunnel) if tunnel.way == tunnel_way::LINK && tunnel.ifindex == frame.ifindex() => {
            to_pod::deliver(frame, &local, tunnel.mtu, scratch)
        }
        _ => action::PASS,
    }
}

/// Gives a packet for a frontend the address of a backend; leaves any other as it is.
#[inline(always)]
pub fn translate<A: Family + Quoting>(
    frame: &Frame,
    packet: &mut Packet<A>,
    quoted: &mut Packet<A>,
    via: &mut Via<A>,
) -> Result<(), Outcome> {
    match packet.segment {
        Segment::Error => flow::refusal(outside::error_to_backend(frame, packet, quoted, via))?,
        Segment::Datagram | Segment::Opening | Segment::MidStream | Segment::Bare => to_backend(frame, packet, via)?,
        // Where nobody knows its first, its ports are unknown, and whether it goes to a frontend.
        Segment::Later => {
            if flow::find_first(packet).is_ok() {
                to_backend(frame, packet, via)?;
            }
        }
        _ => {}
    }
    if via.way == way::NONE {
        return Ok(());
    }
    // It would leave under this node's address, which the overlay of the other one believes. Asked of each: what was once to go to a backend at that
    // port may be older than the overlay.
    if overlay::is_for(packet) {
        return Err(Outcome::OverlayPort);
    }
    flow::remember_first(packet, via);
    if packet.destination.local().is_none() {
        // The backend's answers have to come back by here.
        frame.mark(MARK_MASQUERADE);
    }
    if service::rewrite(frame, packet, via) == 0 {
        return Err(Outcome::RewriteFailed);
    }
    Ok(())
}

#[inline(always)]
fn to_backend<A: Family>(frame: &Frame, packet: &mut Packet<A>, via: &mut Via<A>) -> Result<(), Outcome> {
    let Some(service) = A::service(&service::frontend(packet)) else {
        outside::open_to_backend(packet);
        return Ok(());
    };
    if service.flags & service_flag::OUTSIDE == 0 {
        return Ok(());
    }
    let how = match outside::go_on(packet, via, service.service) {
        outside::UNKNOWN => outside::begin(frame, packet, via, &service),
        how => how,
    };
    match how {
        NO_SERVICE | TRANSLATED => Ok(()),
        outcome => flow::refusal(outcome),
    }
}
