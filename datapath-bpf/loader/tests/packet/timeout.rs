//! How long a flow may be silent in each of its states: as long as the node is told, and then it is judged afresh.

use palisade_datapath_core::abi::{Direction, Outcome};
use palisade_loader::Lifetimes;
use palisade_test_support::packet::{Way, protocol, summed, tcp_flag::*};

use crate::outside::{PORT, answering, asking, became, serve_b};
use crate::service::{CLIENT, TARGET};
use crate::world::{Family, World, each_family, node, outside};

/// None of them as it is by default, nor as another one of them.
const OTHER: Lifetimes = Lifetimes { established: 1000, half_open: 400, closed: 100, datagram_answered: 60, datagram: 90, echo: 200 };

/// A packet of A, or of B.
type Sent = (bool, Vec<u8>);

fn sends(world: &mut World, (of_a, packet): &Sent) -> Outcome {
    let seen = if *of_a { world.a_sends(packet.clone()) } else { world.b_sends(packet.clone()) };
    seen.outcome
}

/// Each state: how a flow comes to it, a packet of its opener that changes nothing, and how many seconds it may last.
fn states(there: Way, back: Way, lifetimes: Lifetimes) -> Vec<(&'static str, Vec<Sent>, Sent, u32)> {
    let a = |flags| (true, there.tcp(40000, 80, flags));
    let b = |flags| (false, back.tcp(80, 40000, flags));
    let (ask, answer) = ((true, there.udp(40000, 53)), (false, back.udp(53, 40000)));
    let (request, reply) = ((true, there.echo_request(7)), (false, back.echo_reply(7)));
    vec![
        ("half-open", vec![a(SYN)], a(ACK), lifetimes.half_open),
        ("established", vec![a(SYN), b(SYN | ACK)], a(ACK), lifetimes.established),
        ("closing by its opener", vec![a(SYN), b(SYN | ACK), a(FIN | ACK)], a(ACK), lifetimes.established),
        ("closing by the other end", vec![a(SYN), b(SYN | ACK), b(FIN | ACK)], a(ACK), lifetimes.established),
        ("closed", vec![a(SYN), b(SYN | ACK), a(FIN | ACK), b(FIN | ACK)], a(ACK), lifetimes.closed),
        ("reset by its opener", vec![a(SYN), b(SYN | ACK), a(RST)], a(ACK), lifetimes.closed),
        ("reset by the other end", vec![a(SYN), b(RST | ACK)], a(ACK), lifetimes.closed),
        ("UDP", vec![ask.clone()], ask.clone(), lifetimes.datagram),
        ("UDP, answered", vec![ask.clone(), answer], ask, lifetimes.datagram_answered),
        ("an echo", vec![request.clone()], request.clone(), lifetimes.echo),
        ("an echo, answered", vec![request.clone(), reply], request, lifetimes.echo),
    ]
}

fn each_state_lasts(world: &mut World, family: Family, lifetimes: Lifetimes) {
    for (state, before, next, seconds) in states(world.a_to_b(family), world.b_to_a(family), lifetimes) {
        world.forget_connections(family);
        for packet in &before {
            let outcome = sends(world, packet);
            assert!(outcome.passes(), "{state}: {outcome:?}");
        }
        world.let_pass(family, u64::from(seconds / 2));
        assert_eq!(sends(world, &next), Outcome::AllowedEstablished, "{state} after half of {seconds} s");
        world.let_pass(family, u64::from(seconds) + 1);
        assert_eq!(sends(world, &next), Outcome::AllowedNew, "{state} after more than {seconds} s");
    }
}

#[test]
fn a_flow_is_judged_afresh_when_it_was_silent_for_longer_than_its_state_lasts() {
    each_family(|world, family| each_state_lasts(world, family, Lifetimes::DEFAULT));
}

#[test]
fn each_state_lasts_as_long_as_the_node_is_told() {
    each_family(|world, family| {
        world.upgrade(OTHER);
        each_state_lasts(world, family, OTHER);
    });
}

/// Whoever is judged afresh may be denied: that is what a time-out is for.
#[test]
fn a_flow_that_was_silent_for_too_long_is_denied_where_policy_says_so_by_now() {
    each_family(|world, family| {
        for (state, before, next, seconds) in states(world.a_to_b(family), world.b_to_a(family), Lifetimes::DEFAULT) {
            world.forget_connections(family);
            world.open(world.b, Direction::Ingress);
            for packet in &before {
                assert!(sends(world, packet).passes(), "{state}");
            }
            // Without a new epoch: the flow is asked for no other reason than its age.
            world.isolate(world.b, Direction::Ingress, 42);
            assert_eq!(sends(world, &next), Outcome::AllowedEstablished, "{state}");
            world.let_pass(family, u64::from(seconds) + 1);
            assert_eq!(sends(world, &next), Outcome::IngressDefaultDenied, "{state} after more than {seconds} s");
        }
    });
}

#[test]
fn the_sweep_removes_no_flow_sooner_than_the_node_is_told() {
    each_family(|world, family| {
        world.upgrade(OTHER);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.let_pass(family, 200);
        assert_eq!(world.sweep(), 0, "it would be gone by default");
        world.let_pass(family, 300);
        assert_eq!(world.sweep(), 1);
        world.a_sends(world.a_to_b(family).tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(world.b_to_a(family).tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.let_pass(family, 1100);
        assert_eq!(world.sweep(), 1, "it would be there by default");
    });
}

#[test]
fn a_flow_from_outside_lasts_as_long_as_the_node_is_told() {
    each_family(|world, family| {
        world.upgrade(OTHER);
        serve_b(world, family, protocol::UDP);
        let answer = summed(answering(world, world.b.address(family), family).udp(TARGET, CLIENT));
        let _ = world.arrives(summed(asking(world, family).udp(CLIENT, PORT)));
        world.let_outside_pass(family, 60);
        became(&world.leaves(answer.clone()), 0, (node(family), PORT), (outside(family), CLIENT));
        world.let_outside_pass(family, 61);
        world.leaves(answer).untouched();
    });
}

#[test]
fn an_idle_flow_that_was_swept_goes_on_with_the_end_that_may_open_it() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 40000, SYN | ACK)).redirected_to(world.a, Outcome::AllowedReply);
        world.let_pass(family, 25 * 3600);
        assert_eq!(world.sweep(), 1);
        world.b_sends(back.tcp(80, 40000, ACK)).dropped(Outcome::EgressDefaultDenied);
        world.a_sends(there.tcp(40000, 80, ACK)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
    });
}
