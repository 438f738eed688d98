//! Another agent takes over with other programs: what flows there are, it knows.

use palisade_datapath_core::abi::{Direction, Outcome};
use palisade_loader::Lifetimes;
use palisade_test_support::packet::{protocol, summed, tcp_flag::*};

use crate::outside::{PORT, answering, asking, became as crossed_as};
use crate::service::{ALIVE, CLIENT, FRONTEND, TABLE, TARGET, backend, became, serve_b, table, to_vip, vip};
use crate::world::{REDIRECT, each_family, node, outside};

/// Whatever else is new of the programs, this is.
const NEXT: Lifetimes = Lifetimes { datagram: 90, ..Lifetimes::DEFAULT };

#[test]
fn entries_are_carried_over_an_upgrade_of_the_programs() {
    each_family(|world, family| {
        // B may open nothing: what it sends passes as an answer alone.
        world.isolate(world.b, Direction::Egress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.a_sends(there.echo_request(7)).redirected_to(world.b, Outcome::AllowedNew);
        let before = world.connections(family);
        world.upgrade(NEXT);
        assert_eq!(world.connections(family), before);
        world.b_sends(back.tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.b_sends(back.udp(53, 40000)).redirected_to(world.a, Outcome::AllowedReply);
        world.b_sends(back.echo_reply(7)).redirected_to(world.a, Outcome::AllowedReply);
        world.b_sends(back.tcp(81, 40000, SYN | ACK)).dropped(Outcome::EgressDefaultDenied);
    });
}

#[test]
fn a_flow_that_a_change_denied_stays_denied_over_an_upgrade_for_the_end_that_opened_it() {
    each_family(|world, family| {
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.isolate(world.b, Direction::Ingress, 43);
        world.datapath.bump_epoch().unwrap();
        world.a_sends(there.tcp(40000, 80, ACK)).dropped(Outcome::IngressDefaultDenied);
        world.upgrade(NEXT);
        // B may open towards A, but A opened this flow.
        world.b_sends(back.tcp(80, 40000, ACK)).dropped(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn a_flow_through_a_service_keeps_its_backend_and_its_frontend_over_an_upgrade() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let (a, b) = (world.a.address(family), world.b.address(family));
        let _ = world.a_sends(summed(to_vip(world, family).tcp(CLIENT, FRONTEND, SYN)));
        backend(world, 2, (outside(family), TARGET), ALIVE);
        table(world, TABLE, &[2]);
        world.upgrade(NEXT);
        let reply = world.b_sends(summed(world.b_to_a(family).tcp(TARGET, CLIENT, SYN | ACK)));
        became(&reply, REDIRECT, Outcome::AllowedReply, (vip(family), FRONTEND), (a, CLIENT));
        let next = world.a_sends(summed(to_vip(world, family).tcp(CLIENT, FRONTEND, ACK)));
        became(&next, REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), (b, TARGET));
    });
}

#[test]
fn a_flow_from_outside_keeps_its_backend_and_its_frontend_over_an_upgrade() {
    each_family(|world, family| {
        crate::outside::serve_b(world, family, protocol::TCP);
        let (b, client) = (world.b.address(family), outside(family));
        let _ = world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, SYN)));
        backend(world, 2, (world.a.address(family), TARGET), ALIVE);
        table(world, TABLE, &[2]);
        world.upgrade(NEXT);
        let answer = world.leaves(summed(answering(world, b, family).tcp(TARGET, CLIENT, SYN | ACK)));
        crossed_as(&answer, 0, (node(family), PORT), (client, CLIENT));
        let next = world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, ACK)));
        crossed_as(&next, 0, (client, CLIENT), (b, TARGET));
    });
}

#[test]
fn an_entry_is_measured_by_the_time_outs_of_the_programs_that_find_it() {
    each_family(|world, family| {
        let there = world.a_to_b(family);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
        world.let_pass(family, 60);
        world.upgrade(NEXT);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedEstablished);
        world.let_pass(family, 60);
        world.upgrade(Lifetimes::DEFAULT);
        world.a_sends(there.udp(40000, 53)).redirected_to(world.b, Outcome::AllowedNew);
    });
}
