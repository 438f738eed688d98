//! Several nodes, or clients, behind one address: what tells their flows apart is their ports, and those may be given to another of them.

use palisade_datapath_core::abi::{Direction, Outcome, ServiceEntry, connection_mark as mark};
use palisade_test_support::packet::{protocol, summed, tcp_flag::*};

use crate::outside::{PORT, answering, asking, became, node_port};
use crate::service::{ALIVE, TABLE, TARGET, backend, ends, table};
use crate::world::{World, each_family, node, outside};

#[test]
fn one_that_ends_its_flow_ends_no_other_s() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (from, to) = (world.b.from(outside(family)), world.b.to(outside(family)));
        for port in [50000, 50001] {
            world.network_sends(from.tcp(port, 80, SYN)).passed(Outcome::AllowedNew);
            world.b_sends(to.tcp(80, port, SYN | ACK)).passed(Outcome::AllowedReply);
        }
        world.network_sends(from.tcp(50000, 80, RST)).passed(Outcome::AllowedEstablished);
        world.let_pass(family, 60);
        assert_eq!(world.sweep(), 1);
        world.b_sends(to.tcp(80, 50000, ACK)).dropped(Outcome::EgressDefaultDenied);
        world.b_sends(to.tcp(80, 50001, ACK)).passed(Outcome::AllowedReply);
    });
}

#[test]
fn an_answer_goes_to_nobody_but_who_has_asked() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (from, to) = (world.b.from(outside(family)), world.b.to(outside(family)));
        world.network_sends(from.udp(50000, 53)).passed(Outcome::AllowedNew);
        world.network_sends(from.echo_request(7)).passed(Outcome::AllowedNew);
        world.b_sends(to.udp(53, 50000)).passed(Outcome::AllowedReply);
        world.b_sends(to.echo_reply(7)).passed(Outcome::AllowedReply);
        world.b_sends(to.udp(53, 50001)).dropped(Outcome::EgressDefaultDenied);
        world.b_sends(to.echo_reply(8)).dropped(Outcome::IcmpUnrelated);
    });
}

/// A gateway gives the port of one that has gone silently to the next.
#[test]
fn one_that_gets_the_port_of_another_opens_a_flow_of_its_own_which_is_judged() {
    each_family(|world, family| {
        let (from, to) = (world.b.from(outside(family)), world.b.to(outside(family)));
        let marks = |world: &World| world.connections(family).iter().map(|entry| entry.marks).collect::<Vec<_>>();
        world.network_sends(from.tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        world.b_sends(to.tcp(80, 50000, SYN | ACK)).passed(Outcome::AllowedReply);
        assert_eq!(marks(world), [mark::REPLIED]);
        world.network_sends(from.tcp(50000, 80, SYN)).passed(Outcome::AllowedNew);
        assert_eq!(marks(world), [0], "of the next, the pod was not heard yet");
        // Without a new epoch: the flow itself would go on.
        world.isolate(world.b, Direction::Ingress, 43);
        world.network_sends(from.tcp(50000, 80, SYN)).dropped(Outcome::IngressDefaultDenied);
        world.network_sends(from.tcp(50000, 80, ACK)).passed(Outcome::AllowedEstablished);
    });
}

#[test]
fn clients_outside_behind_one_address_have_backends_and_answers_of_their_own() {
    each_family(|world, family| {
        let (b, client, node) = (world.b.address(family), outside(family), node(family));
        let other = world.a.address(family);
        backend(world, 1, (b, TARGET), ALIVE);
        backend(world, 2, (other, TARGET), ALIVE);
        table(world, TABLE, &[1, 2]);
        node_port(world, family, protocol::TCP, ServiceEntry { outside_table: TABLE, ..ServiceEntry::default() });
        let ask = asking(world, family);
        // Ports of which some lead to the one, and some to the other.
        let ports: Vec<u16> = (50_000..50_016).collect();
        let backends: Vec<_> = ports.iter().map(|port| ends(&world.arrives(summed(ask.tcp(*port, PORT, SYN))).packet)[1]).collect();
        assert!(backends.contains(&(b, TARGET)) && backends.contains(&(other, TARGET)), "{backends:?}");
        let first = *backends.first().unwrap();
        let ended = ports[0];
        let _ = world.arrives(summed(ask.tcp(ended, PORT, RST)));
        world.let_outside_pass(family, 59);
        let answer =
            |world: &World, backend: (std::net::IpAddr, u16), port| summed(answering(world, backend.0, family).tcp(TARGET, port, ACK));
        world.leaves(answer(world, first, ended)).untouched();
        for (port, backend) in ports.iter().zip(&backends).skip(1) {
            became(&world.leaves(answer(world, *backend, *port)), 0, (node, PORT), (client, *port));
            became(&world.arrives(summed(ask.tcp(*port, PORT, ACK))), 0, (client, *port), *backend);
        }
    });
}
