//! Which slot of a service's table of backends a flow gets.

use crate::abi::{Address, CHUNK_BITS, ChunkKey, ServiceKey};
use crate::packet::Packet;

/// The slot of a flow whose opener sent `packet` to a frontend, in a table of two to the power of `bits` slots.
///
/// Each node gives the same flow the same slot, so that one which is routed anew stays with its backend.
#[inline(always)]
pub fn slot<A: Address>(packet: &Packet<A>, bits: u8) -> u32 {
    let ports = u32::from_be_bytes([packet.source_port[0], packet.source_port[1], packet.destination_port[0], packet.destination_port[1]]);
    let hash = mix(mix(mix(packet.protocol as u32, packet.source.folded()), packet.destination.folded()), ports);
    within(hash, bits)
}

/// The slot of a socket, known by its cookie, that talks to a frontend. Its own port may not have been given yet.
#[inline(always)]
pub fn slot_of_socket<A: Address>(cookie: u64, frontend: &ServiceKey<A>, bits: u8) -> u32 {
    let port = u32::from_be_bytes([0, frontend.protocol, frontend.port[0], frontend.port[1]]);
    within(mix(mix(mix(port, frontend.address.folded()), cookie as u32), (cookie >> 32) as u32), bits)
}

#[inline(always)]
const fn within(hash: u32, bits: u8) -> u32 {
    finish(hash) & !(u32::MAX << (bits & 31))
}

/// Where a slot stands: its part of the table, and its place there.
#[inline(always)]
pub const fn place(table: u32, slot: u32) -> (ChunkKey, usize) {
    (ChunkKey { table, chunk: slot >> CHUNK_BITS }, (slot & !(u32::MAX << CHUNK_BITS)) as usize)
}

/// A round of MurmurHash3 (32 bit).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    (hash ^ word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593))
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

/// The end of MurmurHash3: every bit of the input moves every bit of the output.
#[inline(always)]
const fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}
