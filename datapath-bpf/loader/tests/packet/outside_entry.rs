//! Flows from outside: how long their rows speak for them, whose they are not, and ICMP errors about them.

use std::net::IpAddr;

use palisade_datapath_core::abi::{MARK_MASQUERADE, Outcome};
use palisade_test_support::packet::{Way, protocol, summed, tcp_flag::*};

use crate::outside::{PORT, answering, asking, became, remote, serve, serve_b};
use crate::service::{CLIENT, TARGET, ends, quote};
use crate::world::{Family, World, each_family, node, outside};

/// Opens a connection to pod B; both ends are heard.
fn connect(world: &mut World, family: Family) -> (Way, Way) {
    serve_b(world, family, protocol::TCP);
    let (ask, answer) = (asking(world, family), answering(world, world.b.address(family), family));
    let _ = world.arrives(summed(ask.tcp(CLIENT, PORT, SYN)));
    let _ = world.leaves(summed(answer.tcp(TARGET, CLIENT, SYN | ACK)));
    (ask, answer)
}

#[test]
fn an_idle_connection_is_still_the_one_that_it_was_until_its_rows_are_swept() {
    each_family(|world, family| {
        let (ask, answer) = connect(world, family);
        world.let_outside_pass(family, 23 * 3600);
        assert_eq!(world.sweep(), 0);
        world.let_outside_pass(family, 2 * 3600);
        became(&world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))), 0, (node(family), PORT), (outside(family), CLIENT));
        assert_eq!(world.sweep(), 0, "either end's packet keeps both legs");
        world.let_outside_pass(family, 25 * 3600);
        became(&world.arrives(summed(ask.tcp(CLIENT, PORT, ACK))), 0, (outside(family), CLIENT), (world.b.address(family), TARGET));
        assert_eq!(world.sweep(), 0);
        world.let_outside_pass(family, 25 * 3600);
        assert_eq!(world.sweep(), 2);
        world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))).untouched();
    });
}

#[test]
fn a_connection_that_has_ended_leaves_its_ports_to_others() {
    each_family(|world, family| {
        for end in [FIN | ACK, RST] {
            let (ask, answer) = connect(world, family);
            let _ = world.arrives(summed(ask.tcp(CLIENT, PORT, end)));
            if end != RST {
                let _ = world.leaves(summed(answer.tcp(TARGET, CLIENT, end)));
            }
            // The last packets of it still find it.
            world.let_outside_pass(family, 5);
            became(&world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))), 0, (node(family), PORT), (outside(family), CLIENT));
            world.let_outside_pass(family, 11);
            world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))).untouched();
            world.let_outside_pass(family, 20);
            assert_eq!(world.sweep(), 2);
        }
    });
}

#[test]
fn what_a_backend_opens_itself_comes_from_itself() {
    each_family(|world, family| {
        let (_, answer) = connect(world, family);
        world.leaves(summed(answer.tcp(TARGET, CLIENT, SYN))).untouched();
        world.leaves(summed(answer.tcp(TARGET, CLIENT + 1, ACK))).untouched();
        world.leaves(summed(answer.tcp(TARGET + 1, CLIENT, ACK))).untouched();
        serve_b(world, family, protocol::UDP);
        let _ = world.arrives(summed(asking(world, family).udp(CLIENT, PORT)));
        let datagram = summed(answer.udp(TARGET, CLIENT));
        became(&world.leaves(datagram.clone()), 0, (node(family), PORT), (outside(family), CLIENT));
        world.let_outside_pass(family, 181);
        world.leaves(datagram).untouched();
    });
}

#[test]
fn datagrams_of_either_end_keep_a_flow() {
    each_family(|world, family| {
        serve_b(world, family, protocol::UDP);
        let (ask, answer) = (asking(world, family), answering(world, world.b.address(family), family));
        let (request, reply) = (summed(ask.udp(CLIENT, PORT)), summed(answer.udp(TARGET, CLIENT)));
        let _ = world.arrives(request.clone());
        // Nobody has answered yet.
        for _ in 0..3 {
            world.let_outside_pass(family, 20);
            let _ = world.arrives(request.clone());
        }
        became(&world.leaves(reply.clone()), 0, (node(family), PORT), (outside(family), CLIENT));
        for _ in 0..3 {
            world.let_outside_pass(family, 170);
            became(&world.leaves(reply.clone()), 0, (node(family), PORT), (outside(family), CLIENT));
        }
        // The client has been silent for long, and still has its backend, though the service has another one now.
        serve(world, family, protocol::UDP, (world.b.address(family), TARGET));
        became(&world.arrives(request), 0, (outside(family), CLIENT), (world.b.address(family), TARGET));
    });
}

#[test]
fn a_connection_that_was_opened_from_a_frontend_s_port_is_not_taken_for_a_client_s() {
    each_family(|world, family| {
        serve_b(world, family, protocol::TCP);
        let ask = asking(world, family);
        // The node, or a pod behind its address, asked from there.
        world.arrives(summed(ask.tcp(443, PORT, SYN | ACK))).untouched();
        world.arrives(summed(ask.tcp(443, PORT, ACK | PSH))).untouched();
        world.let_outside_pass(family, 3600);
        world.arrives(summed(ask.tcp(443, PORT, ACK))).untouched();
        let error = ask.unreachable(&summed(world.leaving(node(family), outside(family)).tcp(PORT, 443, ACK))[14..]);
        world.arrives(summed(error)).untouched();
        world.arrives(summed(ask.tcp(443, PORT, FIN | ACK))).untouched();
        world.let_outside_pass(family, 80);
        assert_eq!(world.sweep(), 1);
        // Who opens a connection is a client.
        world.arrives(summed(ask.tcp(443, PORT, SYN | ACK))).untouched();
        became(&world.arrives(summed(ask.tcp(443, PORT, SYN))), 0, (outside(family), 443), (world.b.address(family), TARGET));
        became(&world.arrives(summed(ask.tcp(443, PORT, ACK))), 0, (outside(family), 443), (world.b.address(family), TARGET));
    });
}

/// A router on the way.
fn router(family: Family) -> IpAddr {
    match family {
        Family::V4 => "198.51.100.1".parse().unwrap(),
        Family::V6 => "2001:db8:ffff::1".parse().unwrap(),
    }
}

/// "Too big", with the MTU of the next link.
fn too_big(way: Way, quoted: &[u8]) -> Vec<u8> {
    let mtu = [0, 0, 0x05, 0x14];
    if way.source.is_ipv4() { way.icmp(3, 4, mtu, quoted) } else { way.icmp(2, 0, mtu, quoted) }
}

#[test]
fn an_error_about_an_answer_goes_to_the_backend_and_quotes_what_that_sent() {
    each_family(|world, family| {
        let (client, node) = (outside(family), node(family));
        for (backend, mark) in [(world.b.address(family), 0), (remote(family), MARK_MASQUERADE)] {
            serve(world, family, protocol::TCP, (backend, TARGET));
            let _ = world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, SYN)));
            let sent = world.leaves(summed(answering(world, backend, family).tcp(TARGET, CLIENT, ACK)));
            became(&sent, 0, (node, PORT), (client, CLIENT));
            for source in [router(family), client] {
                let crossed = world.arrives(summed(too_big(world.arriving(source, node), &sent.packet[14..])));
                became(&crossed, mark, (source, 0), (backend, 0));
                assert_eq!(quote(&crossed.packet, family), [(backend, TARGET), (client, CLIENT)]);
                let at = asking(world, family).transport();
                assert_eq!(crossed.packet[at + 4..at + 8], [0, 0, 0x05, 0x14], "the MTU is what it was");
            }
            // About another flow, or of one who was not asked.
            let quoted = summed(world.leaving(node, client).tcp(PORT, CLIENT + 1, ACK))[14..].to_vec();
            world.arrives(summed(too_big(world.arriving(client, node), &quoted))).untouched();
            let elsewhere = world.arriving(client, router(family));
            world.arrives(summed(too_big(elsewhere, &sent.packet[14..]))).untouched();
        }
    });
}

#[test]
fn an_error_about_a_question_comes_from_the_frontend_or_its_router_and_quotes_what_the_client_sent() {
    each_family(|world, family| {
        let (client, node, b) = (outside(family), node(family), world.b.address(family));
        serve_b(world, family, protocol::UDP);
        let at_pod = world.arrives(summed(asking(world, family).udp(CLIENT, PORT)));
        for (source, shown) in [(b, node), (router(family), router(family)), (node, node)] {
            let crossed = world.leaves(summed(world.leaving(source, client).port_unreachable(&at_pod.packet[14..])));
            became(&crossed, 0, (shown, 0), (client, 0));
            assert_eq!(quote(&crossed.packet, family), [(client, CLIENT), (node, PORT)]);
        }
        let quoted = summed(world.leaving(client, b).udp(CLIENT + 1, TARGET))[14..].to_vec();
        world.leaves(summed(world.leaving(b, client).port_unreachable(&quoted))).untouched();
    });
}

#[test]
fn a_pod_takes_an_error_about_its_answer_to_a_client_outside() {
    each_family(|world, family| {
        let (client, b) = (outside(family), world.b.address(family));
        serve_b(world, family, protocol::TCP);
        let _ = world.arrives(summed(asking(world, family).tcp(CLIENT, PORT, SYN)));
        world.network_sends(summed(world.b.from(client).tcp(CLIENT, TARGET, SYN))).passed(Outcome::AllowedNew);
        let sent = world.leaves(summed(answering(world, b, family).tcp(TARGET, CLIENT, SYN | ACK)));
        let error = world.arrives(summed(too_big(world.arriving(router(family), node(family)), &sent.packet[14..])));
        assert_eq!(ends(&error.packet)[1], (b, 0));
        // As the stack hands it to the pod.
        let mut frame = world.b.from(router(family)).tcp(0, 0, 0)[..14].to_vec();
        frame.extend(&error.packet[14..]);
        world.network_sends(frame).passed(Outcome::AllowedRelated);
    });
}
