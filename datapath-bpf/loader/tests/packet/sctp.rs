//! Associations of SCTP through a frontend with another port than the backend's, from their opening to their end: all that either end sends passes, and
//! nothing of it changes but addresses, the port and the checksum, which is over all of it.

use palisade_datapath_core::abi::{Outcome, connection_flag as flag};
use palisade_test_support::packet::{Way, protocol, sctp_bundle, sctp_chunk, sctp_chunk::*, summed};

use crate::outside::{PORT as NODE_PORT, answering, asking, became as crossed_as, serve_b as open_b};
use crate::service::{CLIENT, FRONTEND, TARGET, became, serve_b, to_vip, vip};
use crate::world::{Family, REDIRECT, World, each_family, node, outside};

/// Who sends a packet.
#[derive(Clone, Copy, Debug)]
enum By {
    Client,
    Backend,
}

use By::{Backend, Client};

/// A packet: its sender, and its chunks, of each the type and the bytes of its value.
type Sent = (By, &'static [(u8, usize)]);

const OPENING: &[Sent] = &[
    (Client, &[(INIT, 16)]),
    (Backend, &[(INIT_ACK, 276)]),
    (Client, &[(COOKIE_ECHO, 256), (DATA, 12 + 5)]),
    (Backend, &[(COOKIE_ACK, 0), (SACK, 12)]),
];

const TALK: &[Sent] = &[
    (Backend, &[(DATA, 12 + 1)]),
    (Client, &[(SACK, 12), (DATA, 12 + 2), (DATA, 12 + 3), (DATA, 12 + 4)]),
    // Of these one has not come.
    (Backend, &[(SACK, 16), (DATA, 12 + 1400)]),
    (Client, &[(DATA, 12 + 1400)]),
    (Client, &[(SACK, 12)]),
    (Client, &[(HEARTBEAT, 44)]),
    (Backend, &[(HEARTBEAT_ACK, 44)]),
    (Backend, &[(HEARTBEAT, 28)]),
    (Client, &[(HEARTBEAT_ACK, 28)]),
];

/// Either end ends it when all is said, or at once, without and with a cause.
const ENDINGS: &[&[Sent]] = &[
    &[(Client, &[(SHUTDOWN, 4)]), (Backend, &[(SHUTDOWN_ACK, 0)]), (Client, &[(SHUTDOWN_COMPLETE, 0)])],
    &[(Backend, &[(SHUTDOWN, 4)]), (Client, &[(SHUTDOWN_ACK, 0)]), (Backend, &[(SHUTDOWN_COMPLETE, 0)])],
    &[(Client, &[(ABORT, 0)])],
    &[(Backend, &[(ABORT, 12)])],
];

/// The frame of a packet. Nobody looks at what is in its chunks.
fn frame(way: Way, from: u16, to: u16, chunks: &[(u8, usize)]) -> Vec<u8> {
    let value = |length: usize| (1..=u8::MAX).cycle().take(length).collect::<Vec<_>>();
    let bundle: Vec<u8> = chunks.iter().flat_map(|(kind, length)| sctp_chunk::of(*kind, &value(*length))).collect();
    // Who opens an association knows no tag of the other end's yet.
    let tag = if chunks[0].0 == INIT { 0 } else { 0x5eed_f00d };
    summed(way.packet(protocol::SCTP, &sctp_bundle(from, to, tag, &bundle)))
}

/// That the tag and the chunks of a packet are as they were.
#[track_caller]
fn stayed(way: Way, sent: &[u8], packet: &[u8]) {
    let [tag, checksum, chunks] = [4, 8, 12].map(|at| way.transport() + at);
    assert_eq!((&packet[tag..checksum], &packet[chunks..]), (&sent[tag..checksum], &sent[chunks..]));
}

/// A packet of pod A to the frontend, or of pod B, its backend, to pod A.
#[track_caller]
fn through_frontend(world: &mut World, family: Family, (by, chunks): Sent) {
    let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
    let (way, seen) = match by {
        Client => {
            let way = to_vip(world, family);
            let seen = world.a_sends(frame(way, CLIENT, FRONTEND, chunks));
            let outcome = if chunks[0].0 == INIT { Outcome::AllowedNew } else { Outcome::AllowedEstablished };
            became(&seen, REDIRECT, outcome, (a, CLIENT), (b, TARGET));
            (way, seen)
        }
        Backend => {
            let way = world.b_to_a(family);
            let seen = world.b_sends(frame(way, TARGET, CLIENT, chunks));
            became(&seen, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
            (way, seen)
        }
    };
    stayed(way, &seen.sent, &seen.packet);
}

/// A packet of a client outside to the node port, or of pod B, its backend, to that client.
#[track_caller]
fn through_node_port(world: &mut World, family: Family, (by, chunks): Sent) {
    let (client, b, node) = (outside(family), world.b.address(family), node(family));
    let (way, crossed) = match by {
        Client => {
            let way = asking(world, family);
            let crossed = world.arrives(frame(way, CLIENT, NODE_PORT, chunks));
            crossed_as(&crossed, 0, (client, CLIENT), (b, TARGET));
            (way, crossed)
        }
        Backend => {
            let way = answering(world, b, family);
            let crossed = world.leaves(frame(way, TARGET, CLIENT, chunks));
            crossed_as(&crossed, 0, (node, NODE_PORT), (client, CLIENT));
            (way, crossed)
        }
    };
    stayed(way, &crossed.sent, &crossed.packet);
}

#[test]
fn an_association_through_a_frontend_passes_either_way_until_either_end_ends_it() {
    each_family(|world, family| {
        for ending in ENDINGS {
            serve_b(world, family, protocol::SCTP);
            OPENING.iter().chain(TALK).for_each(|sent| through_frontend(world, family, *sent));
            world.let_pass(family, 3_600);
            assert_eq!(world.sweep(), 0, "it is open");
            ending.iter().for_each(|sent| through_frontend(world, family, *sent));
            world.let_pass(family, 120);
            world.sweep();
            // What the client sends to the frontend has an entry of its own, which nothing of the backend's comes by.
            let is_there = world.connections(family).iter().any(|entry| entry.flags & flag::TO_FRONTEND == 0);
            assert!(!is_there, "{ending:?}");
            world.forget_connections(family);
        }
    });
}

#[test]
fn so_does_one_of_a_client_outside() {
    each_family(|world, family| {
        for ending in ENDINGS {
            open_b(world, family, protocol::SCTP);
            OPENING.iter().chain(TALK).for_each(|sent| through_node_port(world, family, *sent));
            world.let_outside_pass(family, 3_600);
            assert_eq!(world.sweep(), 0, "it is open");
            ending.iter().for_each(|sent| through_node_port(world, family, *sent));
            world.let_outside_pass(family, 120);
            assert_eq!(world.sweep(), 2, "{ending:?}");
        }
    });
}
