//! Flows of clients outside the cluster: to which backend a packet for a frontend goes, and under which address it is answered.
//!
//! A flow has two rows, one for each leg: client to frontend names the backend, client to backend names the frontend. Both are written before
//! anybody has asked policy, and kept alike: each packet finds its own leg's row, and brings the other one up to date once a jiffy.

use palisade_datapath_core::abi::{
    AffinityKey, BACKEND_NONE, Outcome, Outside, OutsideKey, ServiceEntry, backend_flag, cell, connection_mark as mark, outside_leg as leg,
    service_flag,
};
use palisade_datapath_core::outside::{expired, of_answer, of_client, speaks};
use palisade_datapath_core::packet::icmp::Quoting;
use palisade_datapath_core::packet::{Bytes, Packet, Segment, connection, protocol};

use crate::flow;
use crate::frame::Frame;
use crate::maps::{self, Family};
use crate::overlay;
use crate::service::{self, NO_SERVICE, TRANSLATED, Via, way};

/// Nobody knows the flow.
pub const UNKNOWN: i32 = -2;

/// Gives a packet for a frontend the backend that its flow has already, if the backend is still one of the service's port `service`.
/// [`TRANSLATED`], [`UNKNOWN`], or [`NO_SERVICE`] where the flow is the node's own.
#[inline(never)]
pub fn go_on<A: Family>(packet: &mut Packet<A>, via: &mut Via<A>, service: u32) -> i32 {
    if matches!(packet.segment, Segment::Opening) {
        return UNKNOWN;
    }
    let Some(row) = A::outside(&of_client(packet, leg::FRONTEND)) else { return UNKNOWN };
    // SAFETY: a plain copy of a row of an LRU table, whose memory lasts while the program runs. Should another CPU make another flow's of
    // it meanwhile, the backend is looked at below, and at the worst one packet goes to another backend of the port.
    let known = unsafe { *row };
    let (jiffies, hertz, lifetimes) = (maps::jiffies(), maps::config(cell::HERTZ), maps::lifetimes());
    if known.backend == BACKEND_NONE {
        if !speaks(packet.protocol, &known, jiffies, hertz, &lifetimes) {
            return UNKNOWN;
        }
        keep(row, connection::advance_to_frontend(known.marks, packet.ending), jiffies);
        return NO_SERVICE;
    }
    let datagrams = packet.protocol == protocol::UDP;
    if datagrams && expired(packet.protocol, &known, jiffies, hertz, &lifetimes) {
        return UNKNOWN;
    }
    let Some(backend) = maps::backend(known.backend) else { return UNKNOWN };
    // A connection stays with its backend as long as there is one; datagrams go elsewhere as soon as it does not answer.
    if backend.version != A::VERSION || backend.service != service || (datagrams && backend.flags & backend_flag::SERVING == 0) {
        return UNKNOWN;
    }
    let marks = connection::advance(known.marks, packet.ending, true);
    via.address = packet.destination;
    via.port = packet.destination_port;
    via.way = way::TO;
    packet.destination = A::narrow(&backend.address);
    packet.destination_port = backend.port;
    if known.seen != jiffies || known.marks != marks {
        keep(row, marks, jiffies);
        keep_leg_of_backend(packet, via, known.backend, marks);
    }
    TRANSLATED
}

/// Gives a packet for a frontend a backend that is chosen for it, and writes both rows of its flow. [`TRANSLATED`], [`NO_SERVICE`] where the
/// packet opens no flow and none is to be made of it, or the number of an outcome.
#[inline(never)]
pub fn begin<A: Family>(frame: &Frame, packet: &mut Packet<A>, via: &mut Via<A>, service: &ServiceEntry) -> i32 {
    if matches!(packet.segment, Segment::Bare) {
        return NO_SERVICE;
    }
    let jiffies = maps::jiffies();
    if answers_opening(frame, packet) {
        // The node, or somebody behind it, has opened a connection from a port that is a frontend's too. What follows must not be taken
        // for a client's.
        let row = Outside { seen: jiffies, marks: mark::REPLIED, ..Outside::default() };
        A::remember_outside(&of_client(packet, leg::FRONTEND), &row);
        return NO_SERVICE;
    }
    // A pod of this node does not come by here.
    if packet.source.local().is_some() {
        return Outcome::SourceAddressForeign as i32;
    }
    let outside = ServiceEntry {
        table: service.outside_table,
        bits: service.outside_bits,
        flags: if service.flags & service_flag::OUTSIDE_DROP != 0 { service_flag::DROP } else { 0 },
        ..*service
    };
    let backend = match service::choose(packet, via, &outside, backend_flag::CHOSEN_OUTSIDE, jiffies) {
        Ok(backend) => backend,
        Err(outcome) => return outcome as i32,
    };
    let row = Outside { seen: jiffies, backend: via.chosen, port: backend.port, address: backend.address, ..Outside::default() };
    A::remember_outside(&of_client(packet, leg::FRONTEND), &row);
    maps::reached_from_outside();
    if via.stays != 0 {
        maps::stay(&AffinityKey { client: packet.source.wide(), service: via.stays }, via.chosen, jiffies);
    }
    via.address = packet.destination;
    via.port = packet.destination_port;
    via.way = way::TO;
    packet.destination = A::narrow(&backend.address);
    packet.destination_port = backend.port;
    remember_leg_of_backend(packet, via, via.chosen, 0)
}

/// Forgets which frontend a backend is to answer for, where a connection to the backend itself is opened from the same address and port: the one
/// that went by the frontend was never answered, or is over. Ports of a node are used by its own sockets and by what it masquerades, which reach the
/// backend of another node's port by different ways. A function of its own, for the stack of the others.
#[inline(never)]
pub fn open_to_backend<A: Family>(packet: &Packet<A>) -> i32 {
    if !matches!(packet.segment, Segment::Opening) {
        return 0;
    }
    let key = of_client(packet, leg::BACKEND);
    let Some(row) = A::outside(&key) else { return 0 };
    // SAFETY: a plain read of a row of an LRU table, whose memory lasts while the program runs.
    let marks = unsafe { (*row).marks };
    if marks & mark::REPLIED == 0 || connection::closed(marks) {
        A::forget_outside(&key);
    }
    0
}

/// Whether a packet can only be the answer to one that opened a connection.
#[inline(always)]
fn answers_opening<A: Family>(frame: &Frame, packet: &Packet<A>) -> bool {
    const SYN_ACK: u8 = 0x12;
    const INIT_ACK: u8 = 2;
    if !matches!(packet.segment, Segment::MidStream) {
        return false;
    }
    match packet.protocol {
        protocol::TCP => frame.at::<1>(packet.transport + 13).is_some_and(|[flags]| flags & SYN_ACK == SYN_ACK),
        _ => frame.at::<1>(packet.transport + 12).is_some_and(|[chunk]| chunk == INIT_ACK),
    }
}

/// Brings a row up to date.
#[inline(always)]
fn keep(row: *mut Outside, marks: u8, jiffies: u64) {
    // SAFETY: the pointer is to a row of a table, whose memory lasts while the program runs. Should another CPU reuse the row for another
    // flow meanwhile, that flow only looks younger, or further on, than it is.
    unsafe {
        if (*row).seen != jiffies {
            (*row).seen = jiffies;
        }
        if (*row).marks != marks {
            (*row).marks = marks;
        }
    }
}

/// Brings the row of the leg to the backend up to date, for a packet that goes there; writes it where it was evicted, or where the client has
/// reached the backend by another frontend before.
#[inline(never)]
fn keep_leg_of_backend<A: Family>(packet: &Packet<A>, via: &Via<A>, backend: u32, marks: u8) -> i32 {
    if let Some(row) = A::outside(&of_client(packet, leg::BACKEND)) {
        // SAFETY: as in `go_on`.
        let known = unsafe { *row };
        if known.port == via.port && A::narrow(&known.address) == via.address {
            keep(row, known.marks | marks, maps::jiffies());
            return TRANSLATED;
        }
    }
    remember_leg_of_backend(packet, via, backend, marks)
}

#[inline(never)]
fn remember_leg_of_backend<A: Family>(packet: &Packet<A>, via: &Via<A>, backend: u32, marks: u8) -> i32 {
    let row = Outside { seen: maps::jiffies(), backend, port: via.port, marks, reserved: 0, address: via.address.wide() };
    A::remember_outside(&of_client(packet, leg::BACKEND), &row);
    TRANSLATED
}

/// Gives what a backend sends to its client the address of the frontend, whichever way it leaves the node; leaves any other packet as it is.
#[inline(always)]
pub fn answer_as_frontend<A: Family + Quoting>(
    frame: &Frame,
    packet: &mut Packet<A>,
    quoted: &mut Packet<A>,
    via: &mut Via<A>,
) -> Result<(), Outcome> {
    match packet.segment {
        Segment::Error => flow::refusal(error_to_client(frame, packet, quoted, via))?,
        // What opens a connection answers none.
        Segment::Datagram | Segment::MidStream | Segment::Bare => {
            answer(packet, via);
        }
        Segment::Later => {
            if flow::find_first(packet).is_ok() {
                answer(packet, via);
            }
        }
        _ => {}
    }
    if via.way == way::NONE {
        return Ok(());
    }
    flow::remember_first(packet, via);
    if service::rewrite(frame, packet, via) == 0 {
        return Err(Outcome::RewriteFailed);
    }
    Ok(())
}

/// Finds the frontend under which a backend answers its client. [`TRANSLATED`] or [`UNKNOWN`].
#[inline(never)]
fn answer<A: Family>(packet: &Packet<A>, via: &mut Via<A>) -> i32 {
    let Some(row) = A::outside(&of_answer(packet, leg::BACKEND)) else { return UNKNOWN };
    // SAFETY: as in `go_on`; at the worst one packet goes out under a wrong address.
    let known = unsafe { *row };
    let jiffies = maps::jiffies();
    if !speaks(packet.protocol, &known, jiffies, maps::config(cell::HERTZ), &maps::lifetimes()) {
        return UNKNOWN;
    }
    via.address = A::narrow(&known.address);
    via.port = known.port;
    via.way = way::FROM;
    let marks = connection::advance(known.marks, packet.ending, false);
    if known.seen != jiffies || known.marks != marks {
        keep(row, marks, jiffies);
        let mut leg = of_answer(packet, leg::FRONTEND);
        (leg.other, leg.other_port) = (via.address, via.port);
        keep_leg_of_frontend(&leg, known.backend, marks);
    }
    TRANSLATED
}

/// Brings the row of the leg to the frontend up to date. Where it is gone, the client's next packet makes it.
#[inline(never)]
fn keep_leg_of_frontend<A: Family>(key: &OutsideKey<A>, backend: u32, marks: u8) -> i32 {
    if let Some(row) = A::outside(key) {
        // SAFETY: as in `go_on`.
        let known = unsafe { *row };
        if known.backend == backend {
            keep(row, known.marks | marks, maps::jiffies());
        }
    }
    0
}

/// Translates an ICMP error about what a frontend sent to a client: it goes to the backend, and quotes what that sent. Zero, with `via` saying
/// what is left to rewrite, or the number of an outcome.
#[inline(never)]
pub fn error_to_backend<A: Family + Quoting>(frame: &Frame, outer: &mut Packet<A>, quoted: &mut Packet<A>, via: &mut Via<A>) -> i32 {
    // An error goes to who sent what it quotes.
    if flow::read_quoted(frame, outer, quoted) != 0 || quoted.source != outer.destination {
        return 0;
    }
    if overlay::is_outer_of_this_node(quoted) {
        maps::outer_packet_failed();
        return 0;
    }
    let Some(known) = leg_of_quoted(&of_answer(quoted, leg::FRONTEND)) else { return 0 };
    if known.backend == BACKEND_NONE {
        return 0;
    }
    via.address = quoted.source;
    via.port = quoted.source_port;
    via.way = way::TO;
    quoted.source = A::narrow(&known.address);
    quoted.source_port = known.port;
    outer.destination = quoted.source;
    rewrite_quote(frame, outer, quoted, via)
}

/// Translates an ICMP error about what a client sent to a frontend: it quotes that, and comes from the frontend where the backend itself
/// complains. As [`error_to_backend`].
#[inline(never)]
fn error_to_client<A: Family + Quoting>(frame: &Frame, outer: &Packet<A>, quoted: &mut Packet<A>, via: &mut Via<A>) -> i32 {
    if flow::read_quoted(frame, outer, quoted) != 0 || quoted.source != outer.destination {
        return 0;
    }
    let Some(known) = leg_of_quoted(&of_client(quoted, leg::BACKEND)) else { return 0 };
    via.address = A::narrow(&known.address);
    via.port = known.port;
    via.way = way::FROM;
    let outcome = rewrite_quote(frame, outer, quoted, via);
    // A router on the way speaks for itself.
    if outer.source != quoted.destination {
        via.way = way::NONE;
    }
    outcome
}

#[inline(always)]
fn leg_of_quoted<A: Family>(key: &OutsideKey<A>) -> Option<Outside> {
    // SAFETY: a plain copy; see `go_on`.
    let known = unsafe { *A::outside(key)? };
    speaks(key.protocol, &known, maps::jiffies(), maps::config(cell::HERTZ), &maps::lifetimes()).then_some(known)
}

#[inline(always)]
fn rewrite_quote<A: Family>(frame: &Frame, outer: &Packet<A>, quoted: &Packet<A>, via: &Via<A>) -> i32 {
    if service::rewrite_quote(frame, outer, quoted, via) != 0 { 0 } else { Outcome::RewriteFailed as i32 }
}
