//! Packets that go to a pod: through the node's stack, or past it from another node. What `from_pod` redirects never comes here.

use palisade_datapath_core::abi::{Endpoint, Hook, LocalPod, Outcome, SUBJECT_NONE, V4, V6, connection_flag as flag};
use palisade_datapath_core::packet::connection::{self, End, Lookup};
use palisade_datapath_core::packet::ethernet::{self, ether_type};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Fragment, Packet, Segment};
use palisade_datapath_core::verdict::Judgement;

use crate::event::{count, drop_frame, drop_packet};
use crate::flow::{self, Pod};
use crate::forward;
use crate::frame::{Frame, action};
use crate::maps::{self, Family, Scratch};
use crate::service::{self, Via, way};

const HOOK: Hook = Hook::ToPod;

/// Runs the program.
#[inline(always)]
pub fn run(frame: &Frame) -> i32 {
    let endpoint = match maps::endpoint(frame.ifindex()) {
        Some(endpoint) if endpoint.subject != SUBJECT_NONE => endpoint,
        _ => return drop_frame(frame, HOOK, Outcome::EndpointMissing),
    };
    frame.gather();
    let Some(header) = frame.head::<0, { ethernet::LENGTH }>() else { return drop_frame(frame, HOOK, Outcome::Truncated) };
    if frame.vlan() {
        return drop_frame(frame, HOOK, Outcome::EtherTypeUnknown);
    }
    match ethernet::Header::read(&header).ether_type {
        ether_type::IPV4 => v4(frame, endpoint),
        ether_type::IPV6 => v6(frame, endpoint),
        ether_type::ARP => arp(frame),
        _ => drop_frame(frame, HOOK, Outcome::EtherTypeUnknown),
    }
}

/// Whether a process, or the kernel, of this node made the frame. A source address proves nothing; that the frame
/// came in through no interface does.
#[inline(always)]
fn from_host(frame: &Frame) -> bool {
    frame.ingress_ifindex() == 0
}

/// As [`from_host`]. But of a fragment of IPv6 nobody knows: where the kernel has put a datagram together that it
/// forwards (connection tracking does), the fragments that it makes of it anew have forgotten their interface
/// (`ip6_copy_metadata`, as of 6.18; IPv4's copies keep it).
#[inline(always)]
fn made_by_host<A: Family>(frame: &Frame, packet: &Packet<A>) -> bool {
    from_host(frame) && (A::VERSION == 4 || matches!(packet.fragment(), Fragment::Whole))
}

/// Whether a packet that was forwarded can have the source that it states: not the receiver's own address, nor that of its link's
/// other end, and that of another pod of this node only from that pod's interface.
#[inline(always)]
fn source_can_be<A: Family>(frame: &Frame, packet: &Packet<A>, local: Option<LocalPod>) -> bool {
    packet.source != packet.destination && packet.source != A::GATEWAY && local.is_none_or(|local| local.ifindex == frame.ingress_ifindex())
}

#[inline(always)]
fn arp(frame: &Frame) -> i32 {
    if !from_host(frame) {
        return drop_frame(frame, HOOK, Outcome::ArpInvalid);
    }
    count(frame, Outcome::Arp);
    action::PASS
}

// Subprograms, so that the packets of both families do not add up on the stack.
#[inline(never)]
fn v4(frame: &Frame, endpoint: &Endpoint) -> i32 {
    let Some(Scratch { packet, quoted, judgement, via }) = V4::scratch() else {
        return drop_frame(frame, HOOK, Outcome::PolicyMissing);
    };
    via.stack = 1;
    match flow::read_v4(frame, packet).and_then(|()| judge(frame, endpoint, frame.ifindex(), packet, quoted, via, judgement)) {
        Ok(()) => action::PASS,
        Err(outcome) => drop_packet(frame, HOOK, outcome, packet, judgement),
    }
}

#[inline(never)]
fn v6(frame: &Frame, endpoint: &Endpoint) -> i32 {
    let Some(Scratch { packet, quoted, judgement, via }) = V6::scratch() else {
        return drop_frame(frame, HOOK, Outcome::PolicyMissing);
    };
    via.stack = 1;
    match flow::read_v6(frame, packet).and_then(|()| judge(frame, endpoint, frame.ifindex(), packet, quoted, via, judgement)) {
        Ok(()) => action::PASS,
        Err(outcome) => drop_packet(frame, HOOK, outcome, packet, judgement),
    }
}

/// Judges a packet that was read, and takes it past the stack into the pod. The stack tells the sender of one that is longer than `mtu`, as pods'
/// interfaces are no wider.
#[inline(never)]
pub fn deliver<A: Family + Quoting>(frame: &Frame, local: &LocalPod, mtu: u16, scratch: &mut Scratch<A>) -> i32 {
    let Scratch { packet, quoted, judgement, via } = scratch;
    if !forward::may_go_on(packet) || !forward::fits(frame, packet, mtu) {
        return action::PASS;
    }
    let judged = match maps::endpoint(local.ifindex) {
        Some(endpoint) if endpoint.subject != SUBJECT_NONE => judge(frame, endpoint, local.ifindex, packet, quoted, via, judgement),
        _ => Err(Outcome::EndpointMissing),
    };
    match judged.and_then(|()| forward::into_pod(frame, packet, local)) {
        Ok(action) => action,
        Err(outcome) => drop_packet(frame, HOOK, outcome, packet, judgement),
    }
}

#[inline(always)]
fn judge<A: Family + Quoting>(
    frame: &Frame,
    endpoint: &Endpoint,
    ifindex: u32,
    packet: &mut Packet<A>,
    quoted: &mut Packet<A>,
    via: &mut Via<A>,
    judgement: &mut Judgement,
) -> Result<(), Outcome> {
    let host = made_by_host(frame, packet);
    if matches!(packet.segment, Segment::Neighbour | Segment::Listener) {
        // They are never forwarded: from elsewhere they are forged.
        if !host {
            return Err(Outcome::NeighbourDiscoveryInvalid);
        }
        count(frame, Outcome::NeighbourDiscovery);
        return Ok(());
    }
    let own = A::own(endpoint);
    if packet.destination != *own || *own == A::default() {
        return Err(Outcome::DestinationForeign);
    }
    let since = endpoint.since;
    if host {
        // The row may be another endpoint's by now, and so `since`.
        if !maps::is_still(endpoint, ifindex) {
            return Err(Outcome::EndpointMissing);
        }
        if matches!(packet.segment, Segment::Error) {
            flow::refusal(flow::quote_of_host(frame, packet, quoted, since, via))?;
            count(frame, Outcome::AllowedRelated);
            return answer(frame, packet, via);
        }
        // Later fragments of an answer get the address that their first gets. Where it is unknown they pass all the same.
        let _ = flow::find_first(packet);
        pass_host(frame, packet, since, via);
        flow::remember_first(packet, via);
        return answer(frame, packet, via);
    }
    let other = packet.source.local();
    if !source_can_be(frame, packet, other) {
        return Err(Outcome::SourceAddressForeign);
    }
    let pod = Pod::of(endpoint, other, HOOK);
    // The pod may be gone by now, or its policy another: a subject of another row is no policy of this pod.
    if !maps::is_still(endpoint, ifindex) {
        return Err(Outcome::EndpointMissing);
    }
    if matches!(packet.segment, Segment::Error) {
        flow::related(frame, packet, quoted, pod, via)?;
        return answer(frame, packet, via);
    }
    flow::find_first(packet)?;
    let how = match flow::established(frame, packet, pod.since, via) {
        // A packet to a pod goes to no frontend.
        flow::FRONTEND => flow::OPEN,
        how => how,
    };
    flow::admit(frame, pod, packet, how, via, judgement)?;
    flow::remember_first(packet, via);
    answer(frame, packet, via)
}

/// Gives an answer of a backend the address that was asked.
#[inline(always)]
fn answer<A: Family>(frame: &Frame, packet: &Packet<A>, via: &Via<A>) -> Result<(), Outcome> {
    if via.way != way::NONE && service::rewrite(frame, packet, via) == 0 {
        return Err(Outcome::RewriteFailed);
    }
    Ok(())
}

/// Passes a packet of the node's own, and sees to it that the pod can answer.
#[inline(never)]
fn pass_host<A: Family>(frame: &Frame, packet: &Packet<A>, since: u32, via: &mut Via<A>) -> i32 {
    let now = maps::now(since);
    let (key, source_is_high) = connection::key(packet);
    let entry = A::connection(&key);
    // SAFETY: a plain copy of a row; see `flow::touch` for what a reuse meanwhile can do.
    let known = entry.map(|entry| unsafe { *entry });
    match (connection::look_up(known.as_ref(), packet.protocol, packet.segment, source_is_high, &now), entry) {
        (Lookup::Pass { from_opener }, Some(entry)) => {
            if !from_opener && let Some(known) = &known {
                via.answering(known);
            }
            flow::touch(frame, packet, entry, from_opener, now.jiffies);
        }
        (Lookup::Open, _) => match connection::from_host(packet.segment, source_is_high, &now) {
            Some(connection) => {
                A::remember(&key, &connection);
                count(frame, Outcome::AllowedNew);
            }
            None => count(frame, Outcome::AllowedReply),
        },
        // The flow may be the pod's own, whose policy the pod's next packet will be asked about. That it was denied is not
        // forgotten as long as the node talks: what it says would else open a flow, and the pod's packets be its replies.
        (Lookup::Again(opener), Some(entry)) => {
            if matches!(opener, End::Destination)
                && let Some(known) = &known
            {
                via.answering(known);
            }
            if known.is_some_and(|known| known.flags & flag::DENIED != 0) {
                // SAFETY: see `flow::touch`.
                unsafe { (*entry).seen = now.jiffies };
            }
            count(frame, Outcome::AllowedReply);
        }
        (Lookup::Again(_) | Lookup::Pass { .. } | Lookup::Frontend, _) => count(frame, Outcome::AllowedReply),
        (Lookup::Refuse(_), _) => count(frame, Outcome::AllowedRelated),
    }
    action::PASS
}
