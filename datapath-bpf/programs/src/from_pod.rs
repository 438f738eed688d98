//! Packets that a pod sends.

use aya_ebpf::helpers::generated::bpf_redirect_peer;
use palisade_datapath_core::abi::{Endpoint, Hook, LocalPod, Outcome, SUBJECT_NONE, V4, V6};
use palisade_datapath_core::packet::ethernet::{self, ether_type};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Packet, Segment, arp, ipv4, neighbour};
use palisade_datapath_core::verdict::Judgement;

use crate::event::{count, drop_frame, drop_packet};
use crate::flow::{self, Pod};
use crate::frame::{Frame, action};
use crate::maps::{self, Family, Scratch};
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
    let forward = flow::read_v4(frame, packet).and_then(|()| judge(frame, endpoint, packet, quoted, via, judgement)).and_then(|to| {
        forward(frame, packet, to, || match frame.head::<TTL, 4>() {
            Some(bytes) => frame.write::<TTL, 4>(&ipv4::lower_ttl(bytes)),
            None => false,
        })
    });
    match forward {
        Ok(action) => action,
        Err(outcome) => {
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            if matches!(outcome, Outcome::ServiceRefused) { refuse::v4(frame, packet, endpoint) } else { dropped }
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
    let forward = read
        .and_then(|()| judge(frame, endpoint, packet, quoted, via, judgement))
        .and_then(|to| forward(frame, packet, to, || frame.write::<HOP_LIMIT, 1>(&[packet.hop_limit - 1])));
    match forward {
        Ok(action) => action,
        Err(outcome) => {
            let dropped = drop_packet(frame, HOOK, outcome, packet, judgement);
            if matches!(outcome, Outcome::ServiceRefused) { refuse::v6(frame, packet, endpoint) } else { dropped }
        }
    }
}

#[inline(never)]
fn neighbour(frame: &Frame, packet: &Packet<V6>, endpoint: &Endpoint) -> i32 {
    let target = frame.at(packet.transport + neighbour::TARGET);
    flow::number(neighbour::check(packet, target, &endpoint.pod_mac, &endpoint.ipv6))
}

/// Offset in the frame of the TTL, the protocol and the checksum.
const TTL: usize = ethernet::LENGTH + 8;
/// Offset in the frame of the hop limit.
const HOP_LIMIT: usize = ethernet::LENGTH + 7;

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
        to = packet.destination.local();
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
        flow::admit(frame, pod, packet, how, via, judgement)?;
        flow::remember_first(packet, via);
        if via.way == way::FROM && via.hairpin != 0 {
            to = packet.source.local();
        }
    }
    if via.way != way::NONE && service::rewrite(frame, packet, via) == 0 {
        return Err(Outcome::RewriteFailed);
    }
    Ok(to)
}

/// Takes a packet for a pod of this node straight into the pod's namespace; leaves any other to the stack.
#[inline(always)]
fn forward<A: Family>(frame: &Frame, packet: &Packet<A>, to: Option<LocalPod>, lower_hop_limit: impl Fn() -> bool) -> Result<i32, Outcome> {
    let Some(LocalPod { ifindex, pod_mac, host_mac, .. }) = to else { return Ok(action::PASS) };
    // The stack tells the sender that the packet has come to its end.
    if packet.hop_limit <= 1 {
        return Ok(action::PASS);
    }
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&pod_mac);
    addresses[6..].copy_from_slice(&host_mac);
    if !frame.write::<0, 12>(&addresses) || !lower_hop_limit() {
        return Err(Outcome::RewriteFailed);
    }
    // SAFETY: the helper takes numbers only.
    Ok(unsafe { bpf_redirect_peer(ifindex, 0) } as i32)
}
