//! Flows by which clients outside the cluster reach a frontend: which rows speak of a packet, and for how long.

use crate::abi::{Address, Outside, OutsideKey};
use crate::packet::Packet;
use crate::packet::connection::{Lifetimes, closed, marks_opening, silent};

/// The key of the leg that a packet of the client goes along.
#[inline(always)]
pub fn of_client<A: Address>(packet: &Packet<A>, leg: u8) -> OutsideKey<A> {
    OutsideKey {
        client: packet.source,
        other: packet.destination,
        client_port: packet.source_port,
        other_port: packet.destination_port,
        protocol: packet.protocol,
        leg,
        reserved: [0; 2],
    }
}

/// The key of the leg that a packet to the client goes along.
#[inline(always)]
pub fn of_answer<A: Address>(packet: &Packet<A>, leg: u8) -> OutsideKey<A> {
    OutsideKey {
        client: packet.destination,
        other: packet.source,
        client_port: packet.destination_port,
        other_port: packet.source_port,
        protocol: packet.protocol,
        leg,
        reserved: [0; 2],
    }
}

/// Whether a row is too old for its flow.
#[inline(always)]
pub const fn expired(protocol: u8, row: &Outside, jiffies: u64, hertz: u32, lifetimes: &Lifetimes) -> bool {
    silent(protocol, row.marks, row.seen, jiffies, hertz, lifetimes)
}

/// Whether a row speaks for a packet that opens no connection. A connection that was idle for long is still the one that it was, but
/// one that has ended may have left its ports to another.
#[inline(always)]
pub const fn speaks(protocol: u8, row: &Outside, jiffies: u64, hertz: u32, lifetimes: &Lifetimes) -> bool {
    (marks_opening(protocol) && !closed(row.marks)) || !expired(protocol, row, jiffies, hertz, lifetimes)
}
