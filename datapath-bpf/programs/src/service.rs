//! Services: to which backend a packet for a frontend goes, and under which address its replies come back.

use palisade_datapath_core::abi::{
    AffinityKey, BACKEND_NONE, Backend, ConnectionKey, ServiceEntry, ServiceKey, TABLE_NONE, backend_flag, connection_flag as flag,
    service_flag,
};
use palisade_datapath_core::abi::{Connection, Outcome, cell};
use palisade_datapath_core::epoch;
use palisade_datapath_core::packet::connection::{self, End, Lookup, Now};
use palisade_datapath_core::packet::{Fragment, Packet, Segment, protocol};
use palisade_datapath_core::service;

use crate::frame::Frame;
use crate::maps::{self, Family};

/// Which way a packet goes through a frontend.
pub mod way {
    /// Through none.
    pub const NONE: u8 = 0;
    /// From the client to a backend: the frontend's address was its destination.
    pub const TO: u8 = 1;
    /// From a backend to the client: the frontend's address will be its source.
    pub const FROM: u8 = 2;
}

/// The frontend that a packet goes through.
#[derive(Clone, Copy, Default)]
pub struct Via<A> {
    /// Its address.
    pub address: A,
    /// Its port, network byte order.
    pub port: [u8; 2],
    /// A number of [`way`].
    pub way: u8,
    /// Not zero: client and backend are one pod, which as a backend sees its client under the frontend's address.
    pub hairpin: u8,
    /// Not zero: the packet came through the node's stack, or answers what did.
    pub stack: u8,
    /// Number of the backend, where it was chosen for this packet and is to be written down once policy lets the packet pass.
    pub chosen: u32,
    /// Number of the service's port, where its client is to stay with that backend; else zero.
    pub stays: u32,
}

impl<A: Family> Via<A> {
    /// The frontend of an entry whose flow the packet answers; none where it has none. And whether it goes back through the stack.
    #[inline(always)]
    pub fn answering(&mut self, entry: &Connection) {
        self.stack = entry.flags & flag::BY_STACK;
        if entry.frontend_port != [0; 2] {
            self.address = A::narrow(&entry.frontend);
            self.port = entry.frontend_port;
            self.way = way::FROM;
            self.hairpin = entry.flags & flag::HAIRPIN;
        }
    }

    /// Whether an entry is of the flow that goes through this frontend.
    #[inline(always)]
    pub fn is_of(&self, entry: &Connection) -> bool {
        entry.frontend_port == self.port && A::narrow(&entry.frontend) == self.address
    }
}

/// No frontend is at the packet's destination.
pub const NO_SERVICE: i32 = 0;
/// The packet goes to a backend now.
pub const TRANSLATED: i32 = -1;

/// Gives a packet for a frontend the backend of its flow as its destination, and tells the frontend in `via`. The frame stays
/// as it is. `known`: its flow has an entry that names a backend. [`NO_SERVICE`], [`TRANSLATED`] or the number of an outcome.
#[inline(always)]
pub fn translate<A: Family>(packet: &mut Packet<A>, via: &mut Via<A>, known: bool, since: u32) -> i32 {
    if known && go_on(packet, via, since) == TRANSLATED {
        return TRANSLATED;
    }
    match begin(packet, via) {
        // Its connection ends with the frontend. What is in it was meant for nobody else who may be reached at that address.
        NO_SERVICE if known && matches!(packet.segment, Segment::MidStream) => Outcome::ServiceRefused as i32,
        begun => begun,
    }
}

/// To the backend that the flow of a packet has already.
#[inline(never)]
fn go_on<A: Family>(packet: &mut Packet<A>, via: &mut Via<A>, since: u32) -> i32 {
    match known(packet, &maps::now(since)) {
        Some(backend) => go(packet, via, &backend),
        None => NO_SERVICE,
    }
}

/// To a backend that is chosen for the flow.
#[inline(never)]
fn begin<A: Family>(packet: &mut Packet<A>, via: &mut Via<A>) -> i32 {
    let Some(service) = A::service(&frontend(packet)) else { return NO_SERVICE };
    match choose(packet, via, &service, backend_flag::CHOSEN, maps::jiffies()) {
        Ok(backend) => go(packet, via, &backend),
        Err(outcome) => outcome as i32,
    }
}

#[inline(always)]
fn go<A: Family>(packet: &mut Packet<A>, via: &mut Via<A>, backend: &Backend) -> i32 {
    via.address = packet.destination;
    via.port = packet.destination_port;
    via.way = way::TO;
    packet.destination = A::narrow(&backend.address);
    packet.destination_port = backend.port;
    if packet.destination == packet.source {
        via.hairpin = 1;
        // Of the same scope as the pod's own address: to an address of the link, a server that listens on all of its addresses
        // would answer from its link-local one.
        packet.source = via.address;
    }
    TRANSLATED
}

/// The backend that the flow of a packet has already.
#[inline(always)]
fn known<A: Family>(packet: &Packet<A>, now: &Now) -> Option<Backend> {
    let (key, source_is_high) = connection::key(packet);
    let entry = A::connection(&key)?;
    // SAFETY: the pointer is to a row of the connection table; see `flow::touch` for what a reuse meanwhile can do.
    let known = unsafe { &*entry };
    if !matches!(connection::look_up(Some(known), packet.protocol, packet.segment, source_is_high, now), Lookup::Frontend) {
        return None;
    }
    let (number, epoch, marks) = (known.backend, known.epoch, known.marks);
    let backend = maps::backend(number)?;
    // A connection stays with its backend as long as there is one; datagrams go elsewhere as soon as it does not answer.
    if backend.version != A::VERSION || (packet.protocol == protocol::UDP && backend.flags & backend_flag::SERVING == 0) {
        return None;
    }
    // Since it was looked at last, the frontend may have become another service's, or nobody's.
    if epoch != now.epoch {
        if A::service(&frontend(packet))?.service != backend.service {
            return None;
        }
        // With what this packet ends: what is written below may be a row that is no one's any more.
        look_again(&key, number, source_is_high, connection::advance_to_frontend(marks, packet.ending), now);
    }
    // SAFETY: as above.
    unsafe {
        if (*entry).seen != now.jiffies {
            (*entry).seen = now.jiffies;
        }
        if packet.ending != 0 {
            (*entry).marks = connection::advance_to_frontend((*entry).marks, packet.ending);
        }
    }
    Some(backend)
}

/// Writes down that the frontend of an entry is still of the service of its backend. Not in place: the row may be another flow's by now.
#[inline(always)]
fn look_again<A: Family>(key: &ConnectionKey<A>, backend: u32, source_is_high: bool, marks: u8, now: &Now) {
    if epoch::settled(now.epoch) {
        A::remember(key, &Connection { marks, ..connection::to_frontend(backend, 0, source_is_high, now) });
    }
}

/// The frontend that a packet goes to, if there is one.
#[inline(always)]
pub fn frontend<A: Family>(packet: &Packet<A>) -> ServiceKey<A> {
    ServiceKey { address: packet.destination, port: packet.destination_port, protocol: packet.protocol, reserved: 0 }
}

/// Chooses the backend of a flow. `chosen`: the flag of the backends that clients like this one may stay with.
#[inline(always)]
pub fn choose<A: Family>(
    packet: &Packet<A>,
    via: &mut Via<A>,
    service: &ServiceEntry,
    chosen: u8,
    jiffies: u64,
) -> Result<Backend, Outcome> {
    // A later fragment has the choice of its first.
    if matches!(packet.segment, Segment::Later) {
        return Err(Outcome::FragmentUnknown);
    }
    if service.table == TABLE_NONE {
        return Err(if service.flags & service_flag::DROP != 0 { Outcome::ServiceDropped } else { Outcome::ServiceRefused });
    }
    let slot = service::slot(packet, service.bits);
    let Some((number, backend)) = pick::<A>(service, chosen, packet.source.wide(), slot, jiffies) else {
        return Err(Outcome::ServiceMissing);
    };
    via.chosen = number;
    via.stays = if service.affinity != 0 { service.service } else { 0 };
    Ok(backend)
}

/// The backend of a new flow to a service that has a table, with its number: that of its client, else that of its slot. None where the
/// rows are not there, or are another service's by now: see `maps::SHARED`.
#[inline(always)]
pub fn pick<A: Family>(service: &ServiceEntry, chosen: u8, client: [u8; 16], slot: u32, jiffies: u64) -> Option<(u32, Backend)> {
    let mut number = if service.affinity != 0 { stays_with(client, service, chosen, jiffies) } else { BACKEND_NONE };
    if number == BACKEND_NONE {
        let (key, at) = service::place(service.table, slot);
        number = maps::slot(&key, at);
    }
    let backend = maps::backend(number)?;
    (backend.version == A::VERSION && backend.service == service.service).then_some((number, backend))
}

/// Writes down the backend that was chosen for a packet, now that policy lets it pass: what is denied takes no room.
#[inline(never)]
pub fn remember_choice<A: Family>(packet: &Packet<A>, via: &Via<A>, since: u32) -> i32 {
    let now = maps::now(since);
    let mut sent = *packet;
    if via.hairpin != 0 {
        sent.source = packet.destination;
    }
    sent.destination = via.address;
    sent.destination_port = via.port;
    let (key, source_is_high) = connection::key(&sent);
    A::remember(&key, &connection::to_frontend(via.chosen, sent.ending, source_is_high, &now));
    if via.stays != 0 {
        maps::stay(&AffinityKey { client: sent.source.wide(), service: via.stays }, via.chosen, now.jiffies);
    }
    0
}

/// The backend that a client stays with, or [`BACKEND_NONE`].
#[inline(always)]
fn stays_with(client: [u8; 16], service: &ServiceEntry, chosen: u8, jiffies: u64) -> u32 {
    let Some(affinity) = maps::stays(&AffinityKey { client, service: service.service }) else { return BACKEND_NONE };
    if jiffies.saturating_sub(affinity.seen) > service.affinity as u64 * maps::config(cell::HERTZ) as u64 {
        return BACKEND_NONE;
    }
    match maps::backend(affinity.backend) {
        Some(backend) if backend.flags & chosen != 0 => affinity.backend,
        _ => BACKEND_NONE,
    }
}

/// Of an ICMP error that quotes what a frontend sent: the flow is that of its backend, which becomes the quote's source. Whether it
/// was one.
#[inline(never)]
pub fn translate_quoted<A: Family>(quoted: &mut Packet<A>, via: &mut Via<A>, since: u32) -> i32 {
    let now = maps::now(since);
    let (key, source_is_high) = connection::key(quoted);
    // SAFETY: as in `known`.
    let Some(entry) = A::connection(&key).map(|entry| unsafe { &*entry }) else { return NO_SERVICE };
    // The frontend answered who opened the flow to it.
    if entry.flags & flag::TO_FRONTEND == 0
        || matches!(connection::opener(entry, source_is_high), End::Source)
        || connection::expired(quoted.protocol, entry, now.jiffies, now.hertz, &now.lifetimes)
    {
        return NO_SERVICE;
    }
    let Some(backend) = maps::backend(entry.backend) else { return NO_SERVICE };
    if backend.version != A::VERSION {
        return NO_SERVICE;
    }
    via.address = quoted.source;
    via.port = quoted.source_port;
    via.way = way::TO;
    quoted.source = A::narrow(&backend.address);
    quoted.source_port = backend.port;
    // As the backend, the pod sees itself as the client under the frontend's address.
    if quoted.source == quoted.destination {
        via.hairpin = 1;
        quoted.destination = via.address;
    }
    TRANSLATED
}

/// Whether the checksum of a packet that goes through a frontend could not be made up for: SCTP's is over all fragments of a datagram.
#[inline(always)]
pub fn is_sealed<A: Family>(packet: &Packet<A>, via: &Via<A>) -> bool {
    let port = if via.way == way::TO { packet.destination_port } else { packet.source_port };
    packet.protocol == protocol::SCTP && matches!(packet.fragment(), Fragment::First) && port != via.port
}

/// Writes into the frame what became of a packet that goes through a frontend. Whether it could.
#[inline(never)]
pub fn rewrite<A: Family>(frame: &Frame, packet: &Packet<A>, via: &Via<A>) -> i32 {
    let to = via.way == way::TO;
    // The backend, which for a hairpin is the pod itself, is the end that policy sees; the frontend is what the client sees there.
    let (at, backend, other_at) = match to {
        true => (A::DESTINATION, &packet.destination, A::SOURCE),
        false => (A::SOURCE, &packet.source, A::DESTINATION),
    };
    let (old, new) = if to { (&via.address, backend) } else { (backend, &via.address) };
    let (old_port, new_port) = if to { (via.port, packet.destination_port) } else { (packet.source_port, via.port) };
    if via.hairpin != 0 {
        // The client's end is the pod itself where the client stands, and the frontend where the backend does.
        let (old, new) = if to { (backend, &via.address) } else { (&via.address, backend) };
        if !address(frame, packet, other_at, old, new) {
            return 0;
        }
    }
    let written = address(frame, packet, at, old, new) && port(frame, packet, via, if to { 2 } else { 0 }, old_port, new_port);
    written as i32
}

/// Offset in the transport header of the checksum that counts the addresses too; none in SCTP and in IPv4's ICMP.
#[inline(always)]
fn checksum_of<A: Family>(protocol: u8) -> Option<u32> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        other if A::VERSION == 6 && other == A::ICMP => Some(2),
        _ => None,
    }
}

/// Replaces an address of the frame's IP header.
#[inline(always)]
fn address<A: Family>(frame: &Frame, packet: &Packet<A>, at: u32, old: &A, new: &A) -> bool {
    let change = A::checksum_change(old, new);
    if !A::repair_header(frame, A::HEADER, change) {
        return false;
    }
    if !matches!(packet.fragment(), Fragment::Later)
        && let Some(checksum) = checksum_of::<A>(packet.protocol)
        && !frame.repair_pseudo(packet.transport + checksum, change, packet.protocol == protocol::UDP)
    {
        return false;
    }
    if A::VERSION == 6 {
        frame.sum_up(change);
    }
    A::store(frame, at, new)
}

/// Makes up for the changed port of an SCTP packet.
// Once, for it is long.
#[inline(never)]
fn repair_crc<A: Family>(frame: &Frame, packet: &Packet<A>, via: &Via<A>) -> i32 {
    // Of a datagram in fragments, the checksum is over what comes later too.
    if !matches!(packet.fragment(), Fragment::Whole) {
        return 0;
    }
    let (source, destination) = (packet.source_port, packet.destination_port);
    let now = [source[0], source[1], destination[0], destination[1]];
    let through = match via.way == way::TO {
        true => [source[0], source[1], via.port[0], via.port[1]],
        false => [via.port[0], via.port[1], destination[0], destination[1]],
    };
    let (old, new) = if via.way == way::TO { (through, now) } else { (now, through) };
    frame.repair_crc(packet.transport, packet.end - packet.transport, old, new) as i32
}

/// Replaces a port of the frame, at an offset in its transport header.
#[inline(always)]
fn port<A: Family>(frame: &Frame, packet: &Packet<A>, via: &Via<A>, at: u32, old: [u8; 2], new: [u8; 2]) -> bool {
    if old == new || matches!(packet.fragment(), Fragment::Later) {
        return true;
    }
    let repaired = match packet.protocol {
        protocol::TCP => frame.repair(packet.transport + 16, old, new, false),
        protocol::UDP => frame.repair(packet.transport + 6, old, new, true),
        protocol::SCTP => repair_crc(frame, packet, via) != 0,
        // An ICMP error has none of its own.
        _ => return true,
    };
    repaired && frame.store(packet.transport + at, &new)
}

/// Replaces the frontend's or the backend's address and port in the packet that an ICMP error quotes. The checksum of the quote's
/// transport stays as it is: it may be cut off, and nobody looks at it.
///
/// `quoted` is the packet as policy sees it, between client and backend.
#[inline(never)]
pub fn rewrite_quote<A: Family>(frame: &Frame, outer: &Packet<A>, quoted: &Packet<A>, via: &Via<A>) -> i32 {
    let header = outer.transport + 8;
    // What went to a frontend is quoted as it went to the backend, and what a backend sent as the frontend sent it.
    let to = via.way == way::TO;
    let (at, old, new) = match to {
        true => (A::SOURCE, &via.address, &quoted.source),
        false => (A::DESTINATION, &quoted.destination, &via.address),
    };
    let (port_at, old_port, new_port) = match to {
        true => (quoted.transport, via.port, quoted.source_port),
        false => (quoted.transport + 2, quoted.destination_port, via.port),
    };
    let change = A::checksum_change(old, new);
    let checksum = outer.transport + 2;
    // In IPv4 the quoted header's own checksum makes up for the address, so that the message's need not.
    let written = A::repair_header(frame, header, change)
        && (A::VERSION == 4 || frame.repair_by(checksum, change))
        && A::store(frame, header + at - A::HEADER, new)
        && (via.hairpin == 0 || quoted_client(frame, outer, quoted, via) != 0)
        && frame.repair(checksum, old_port, new_port, false)
        && frame.store(port_at, &new_port);
    written as i32
}

/// In the packet that an ICMP error quotes, gives a pod that reaches itself the address under which it stands as the client where the error goes: its own
/// before itself as the client, and the frontend's as the backend. Whether it could.
#[inline(never)]
fn quoted_client<A: Family>(frame: &Frame, outer: &Packet<A>, quoted: &Packet<A>, via: &Via<A>) -> i32 {
    let header = outer.transport + 8;
    let (at, old, new) = match via.way == way::TO {
        true => (A::DESTINATION, &quoted.source, &via.address),
        false => (A::SOURCE, &via.address, &quoted.destination),
    };
    let change = A::checksum_change(old, new);
    let written = A::repair_header(frame, header, change)
        && (A::VERSION == 4 || frame.repair_by(outer.transport + 2, change))
        && A::store(frame, header + at - A::HEADER, new);
    written as i32
}
