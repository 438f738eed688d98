//! Packets that a pod sends.

use palisade_datapath_core::abi::{Endpoint, Hook, LocalPod, Outcome, SUBJECT_NONE, V4, V6};
use palisade_datapath_core::packet::ethernet::{self, ether_type};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Packet, Segment, arp, neighbour};
use palisade_datapath_core::verdict::Judgement;

use crate::event::{count, drop_frame, drop_packet};
use crate::flow::{self, Pod};
use crate::forward;
use crate::frame::{Frame, action};
use crate::maps::{self, Family, Scratch};
use crate::overlay;
use crate::refuse;
use crate::service::{self, NO_SERVICE, TRANSLATED, Via, way};

const HOOK: Hook = Hook::FromPod;

/// Runs the program.
#[inline(always)]
pub fn run(frame: &Frame) -> i32 {
    let endpoint = match maps::endpoint(frame.ifindex()) {
        Some(endpoint) if endpoint.subject != SUBJECT_NONE => endpoint,
        _ => return drop_frame(frame, HOOK, Outcome::EndpointMissing),
    };
    frame.gather();
    let Some(header) = frame.head::<0, { ethernet::LENGTH }>() else { return drop_frame(frame, HOOK, Outcome::Truncated) };
    let header = ethernet::Header::read(&header);
    if header.source != endpoint.pod_mac {
        return drop_frame(frame, HOOK, Outcome::SourceMacForeign);
    }
    if frame.vlan() {
        return drop_frame(frame, HOOK, Outcome::EtherTypeUnknown);
    }
    match header.ether_type {
        ether_type::IPV4 => v4(frame, endpoint),
        ether_type::IPV6 => v6(frame, endpoint),
        ether_type::ARP => arp(frame, endpoint),
        _ => drop_frame(frame, HOOK, Outcome::EtherTypeUnknown),
    }
}

#[inline(never)]
fn arp(frame: &Frame, endpoint: &Endpoint) -> i32 {
    let Some(packet) = frame.head::<{ ethernet::LENGTH }, { arp::LENGTH }>() else {
        return drop_frame(frame, HOOK, Outcome::Truncated);
    };
    match arp::check(&packet, &endpoint.pod_mac, &endpoint.ipv4) {
        Ok(()) => {
            count(frame, Outcome::Arp);
            action::PASS
        }
        Err(outcome) => drop_frame(frame, HOOK, outcome),
    }
}

// Subprograms, so that the packets of both families do not add up on the stack.
#[inline(never)]
fn v4(frame: &Frame, endpoint: &Endpoint) -> i32 {
    let Some(Scratch { packet, quoted, judgement, via }) = V4::scratch() else {
        return drop_frame(frame, HOOK, Outcome::PolicyMissing);
    };
    let judged = flow::read_v4(frame, packet).and_then(|()| judge(frame, endpoint, packet, quoted, via, judgement));
    match judged.and_then(|to| forward(frame, packet, to, via)) {
        Ok(action) => action,
        Err(outcome) => {
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            match told(packet, outcome) {
                Some(mtu) => refuse::v4(frame, packet, Some(endpoint), mtu),
                None => dropped,
            }
        }
    }
}

#[inline(never)]
fn v6(frame: &Frame, endpoint: &Endpoint) -> i32 {
    let Some(Scratch { packet, quoted, judgement, via }) = V6::scratch() else {
        return drop_frame(frame, HOOK, Outcome::PolicyMissing);
    };
    let read = flow::read_v6(frame, packet);
    if read.is_ok() && matches!(packet.segment, Segment::Neighbour | Segment::Listener) {
        return match flow::refusal(neighbour(frame, packet, endpoint)) {
            Ok(()) => {
                count(frame, Outcome::NeighbourDiscovery);
                action::PASS
            }
            Err(outcome) => drop_packet(frame, HOOK, outcome, packet, judgement),
        };
    }
    let judged = read.and_then(|()| judge(frame, endpoint, packet, quoted, via, judgement));
    match judged.and_then(|to| forward(frame, packet, to, via)) {
        Ok(action) => action,
        Err(outcome) => {
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            match told(packet, outcome) {
                Some(mtu) => refuse::v6(frame, packet, Some(endpoint), mtu),
                None => dropped,
            }
        }
    }
}

/// What a pod is told whose packet is dropped: that nobody listens, or how long packets may be.
#[inline(always)]
fn told<A: Family>(packet: &Packet<A>, outcome: Outcome) -> Option<u32> {
    match outcome {
        Outcome::ServiceRefused => Some(refuse::NOBODY),
        // The row may be another by now.
        Outcome::PacketTooLong => Some(packet.destination.node().mtu as u32).filter(|mtu| *mtu != refuse::NOBODY),
        _ => None,
    }
}

#[inline(never)]
fn neighbour(frame: &Frame, packet: &Packet<V6>, endpoint: &Endpoint) -> i32 {
    let target = frame.at(packet.transport + neighbour::TARGET);
    flow::number(neighbour::check(packet, target, &endpoint.pod_mac, &endpoint.ipv6))
}

/// Whether the packet may pass, and the pod of this node that it is for.
#[inline(always)]
fn judge<A: Family + Quoting>(
    frame: &Frame,
    endpoint: &Endpoint,
    packet: &mut Packet<A>,
    quoted: &mut Packet<A>,
    via: &mut Via<A>,
    judgement: &mut Judgement,
) -> Result<Option<LocalPod>, Outcome> {
    let own = A::own(endpoint);
    if packet.source != *own || *own == A::default() {
        return Err(Outcome::SourceAddressForeign);
    }
    let mut to = packet.destination.local();
    let mut pod = Pod::of(endpoint, to, HOOK);
    // The pod may be gone by now, or its policy another: a subject of another row is no policy of this pod.
    if !maps::is_still(endpoint, frame.ifindex()) {
        return Err(Outcome::EndpointMissing);
    }
    if matches!(packet.segment, Segment::Error) {
        flow::related(frame, packet, quoted, pod, via)?;
        to = if via.hairpin != 0 { packet.source.local() } else { packet.destination.local() };
    } else {
        flow::find_first(packet)?;
        let mut how = flow::established(frame, packet, pod.since, via);
        // A flow that the pod opened before there was a service goes there as soon as it is judged again.
        if how == flow::OPEN || how == flow::FRONTEND || how == flow::AGAIN {
            match service::translate(packet, via, how == flow::FRONTEND, pod.since) {
                NO_SERVICE => {}
                TRANSLATED => {
                    to = packet.destination.local();
                    pod = Pod::of(endpoint, to, HOOK);
                    if !maps::is_still(endpoint, frame.ifindex()) {
                        return Err(Outcome::EndpointMissing);
                    }
                    how = flow::established(frame, packet, pod.since, via);
                }
                outcome => return Err(Outcome::from_byte(outcome as u8).unwrap_or(Outcome::ServiceMissing)),
            }
        }
        // Here, where the destination is that of the packet that leaves. An established flow was asked about it when it was judged.
        if how < 0 && overlay::is_for(packet) {
            return Err(Outcome::OverlayPort);
        }
        // Before it counts as one that passes.
        if via.way != way::NONE && service::is_sealed(packet, via) {
            return Err(Outcome::RewriteFailed);
        }
        flow::admit(frame, pod, packet, how, via, judgement)?;
        flow::remember_first(packet, via);
        // While it is as the pod has sent it, which knows nothing of a backend.
        if to.is_none() && via.stack == 0 && forward::is_too_long(frame, packet) != 0 {
            return Err(Outcome::PacketTooLong);
        }
        if via.way == way::FROM && via.hairpin != 0 {
            to = packet.source.local();
        }
    }
    if via.way != way::NONE && service::rewrite(frame, packet, via) == 0 {
        return Err(Outcome::RewriteFailed);
    }
    Ok(to)
}

/// Takes a packet past the stack, to a pod of this node or to another node; leaves any other to the stack.
#[inline(always)]
fn forward<A: Family>(frame: &Frame, packet: &Packet<A>, to: Option<LocalPod>, via: &Via<A>) -> Result<i32, Outcome> {
    match to {
        // The stack may have changed the addresses of what is answered: a port of the node that something else maps leads here from pods of it, too.
        _ if via.stack != 0 || !forward::may_go_on(packet) => Ok(action::PASS),
        Some(local) => forward::into_pod(frame, packet, &local),
        None => forward::to_node(frame, packet),
    }
}
