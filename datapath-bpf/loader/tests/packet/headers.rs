//! Services' packets whose transport header does not follow the IP header at once: options of IPv4, extension headers of IPv6, fragments with them.
//! Nothing that is rewritten moves, in packets, in answers and in what ICMP errors quote; what stands between stays as it is.

use std::net::IpAddr;

use palisade_datapath_core::abi::{Outcome, ServiceEntry, TABLE_NONE};
use palisade_test_support::packet::{
    self, ETHERNET, IPV4, IPV6, Way, extension, protocol, sctp, sctp_chunk, set, summed, tcp_flag::*, udp,
};

use crate::hairpin::serve_itself;
use crate::outside::{PORT as NODE_PORT, answering, asking, became as crossed_as, serve_b as open_b};
use crate::service::{
    CLIENT, FRONTEND, TARGET, addresses, became, ends, frontend, halves, packet_of, packets, quote, serve, serve_b, to_vip, vip,
};
use crate::world::{Family, PASS, REDIRECT, each_family, node, outside, world};

/// The type of a routing header that lists segments (RFC 8754).
const SEGMENTS: u8 = 4;

/// What stands between the IP header and the transport header.
#[derive(Clone, Copy, Debug)]
enum Between {
    /// Options of IPv4.
    Options(&'static [u8]),
    /// Extension headers of IPv6, by their numbers.
    Extensions(&'static [u8]),
}

use Between::{Extensions, Options};

impl Between {
    /// All that is tried of a family.
    fn all(family: Family) -> &'static [Self] {
        match family {
            // A route to be recorded, a router alert, and as much as there may be.
            Family::V4 => &[Options(&[7, 7, 4, 0, 0, 0, 0, 0]), Options(&[0x94, 4, 0, 0]), Options(&[1; 40])],
            Family::V6 => &[
                Extensions(&[extension::HOP_BY_HOP]),
                Extensions(&[extension::DESTINATION_OPTIONS]),
                Extensions(&[extension::ROUTING]),
                // Of a packet that is whole.
                Extensions(&[extension::FRAGMENT]),
                Extensions(&[
                    extension::HOP_BY_HOP,
                    extension::DESTINATION_OPTIONS,
                    extension::ROUTING,
                    extension::FRAGMENT,
                    extension::DESTINATION_OPTIONS,
                ]),
            ],
        }
    }

    /// What is tried of a family in fragments: before the fragment header, and extension headers behind it.
    fn of_fragments(family: Family) -> &'static [(Self, &'static [u8])] {
        match family {
            // There it is the IP header itself that says so.
            Family::V4 => &[(Options(&[7, 7, 4, 0, 0, 0, 0, 0]), &[]), (Options(&[1; 40]), &[])],
            Family::V6 => &[
                (Extensions(&[extension::HOP_BY_HOP]), &[]),
                (Extensions(&[extension::ROUTING]), &[]),
                (Extensions(&[]), &[extension::DESTINATION_OPTIONS]),
                (Extensions(&[extension::HOP_BY_HOP, extension::ROUTING]), &[extension::DESTINATION_OPTIONS]),
            ],
        }
    }

    fn length(self) -> usize {
        match self {
            Options(options) => options.len(),
            // Each is made of eight bytes.
            Extensions(kinds) => kinds.len() * 8,
        }
    }

    /// A frame with this between its headers, that has nothing there as it is. Transport checksums are not over it.
    fn put(self, way: Way, plain: &[u8]) -> Vec<u8> {
        let (headers, transport) = plain.split_at(way.transport());
        match self {
            Options(options) => way.with_options(options, headers[ETHERNET + 9], transport),
            Extensions(kinds) => {
                let (first, between) = extensions(kinds, headers[ETHERNET + 6]);
                way.packet(first, &[&between[..], transport].concat())
            }
        }
    }

    /// That it is as it was.
    #[track_caller]
    fn stayed(self, sent: &[u8], packet: &[u8]) {
        let at = ETHERNET + if matches!(self, Options(_)) { IPV4 } else { IPV6 };
        assert_eq!(packet[at..at + self.length()], sent[at..at + self.length()], "{self:?}");
    }

    /// Of each protocol its number, what a client opens a flow with at a port, and what a backend answers.
    fn exchanges(self, ask: Way, port: u16, answer: Way) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
        let answers =
            [answer.tcp(TARGET, CLIENT, SYN | ACK), answer.udp(TARGET, CLIENT), answer.sctp(TARGET, CLIENT, sctp_chunk::INIT_ACK)];
        let exchanges = packets(ask, CLIENT, port).into_iter().zip(answers.map(summed));
        exchanges.map(|((protocol, opening), reply)| (protocol, self.put(ask, &opening), self.put(answer, &reply))).collect()
    }

    /// A datagram in two fragments, with this and with what is `behind`.
    fn fragments(self, behind: &[u8], way: Way, from: u16, to: u16) -> [Vec<u8>; 2] {
        const FIRST: u16 = 40;
        let whole = summed(way.packet(protocol::UDP, &udp(from, to, &[7; 56])));
        let (inner, mut datagram) = extensions(behind, protocol::UDP);
        datagram.extend(&whole[way.transport()..]);
        let (first, later) = datagram.split_at(usize::from(FIRST));
        [(0, true, first), (FIRST, false, later)].map(|(at, more, part)| match (self, way.source, way.destination) {
            (Options(options), IpAddr::V4(source), IpAddr::V4(destination)) => {
                let field = (at / 8) | if more { 0x2000 } else { 0 };
                way.frame(&packet::ipv4(source, destination, way.hop_limit, protocol::UDP, 9, field, options, part))
            }
            (Extensions(kinds), ..) => {
                let (next, mut headers) = extensions(kinds, extension::FRAGMENT);
                headers.extend(extension::fragment(inner, 9, at, more));
                way.packet(next, &[&headers[..], part].concat())
            }
            other => panic!("{other:?}"),
        })
    }

    /// Who a datagram in such fragments is from and to, once it is whole again. Each of them must be on this way.
    #[track_caller]
    fn joined(self, behind: &[u8], way: Way, fragments: [Vec<u8>; 2]) -> [(IpAddr, u16); 2] {
        let header = way.transport() + self.length() + if way.source.is_ipv4() { 0 } else { 8 };
        let mut datagram = Vec::new();
        for fragment in fragments {
            assert_eq!(addresses(&fragment[ETHERNET..]), (way.source, way.destination), "{self:?}");
            datagram.extend(&fragment[header..]);
        }
        let (inner, _) = extensions(behind, protocol::UDP);
        ends(&way.packet(inner, &datagram))
    }
}

/// Extension headers in a row before a protocol, and the number of the first.
fn extensions(kinds: &[u8], protocol: u8) -> (u8, Vec<u8>) {
    kinds.iter().rev().fold((protocol, Vec::new()), |(next, behind), kind| {
        let header = match *kind {
            // Its way is at its end.
            extension::ROUTING => set(extension::routing(next, 0).to_vec(), 2, &[SEGMENTS]),
            extension::FRAGMENT => extension::fragment(next, 9, 0, false).to_vec(),
            _ => extension::options(next).to_vec(),
        };
        (*kind, [header, behind].concat())
    })
}

#[test]
fn what_stands_between_the_headers_moves_nothing_that_is_rewritten_either_way() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        for between in Between::all(family) {
            for (protocol, request, answer) in between.exchanges(to_vip(world, family), FRONTEND, world.b_to_a(family)) {
                serve_b(world, family, protocol);
                let seen = world.a_sends(request);
                became(&seen, REDIRECT, Outcome::AllowedNew, (a, CLIENT), (b, TARGET));
                between.stayed(&seen.sent, &seen.packet);
                let seen = world.b_sends(answer);
                became(&seen, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
                between.stayed(&seen.sent, &seen.packet);
            }
            world.forget_connections(family);
        }
    });
}

#[test]
fn nor_does_it_where_the_backend_is_no_pod_of_the_node() {
    each_family(|world, family| {
        let (b, vip) = (world.b.address(family), vip(family));
        for (backend, is_node) in [(outside(family), false), (node(family), true)] {
            for between in Between::all(family) {
                for (protocol, request, answer) in between.exchanges(world.b.to(vip), FRONTEND, world.b.from(backend)) {
                    serve(world, family, protocol, (backend, TARGET));
                    became(&world.b_sends(request), PASS, Outcome::AllowedNew, (b, CLIENT), (backend, TARGET));
                    let seen = if is_node { world.host_sends(answer) } else { world.network_sends(answer) };
                    became(&seen, PASS, Outcome::AllowedReply, (vip, FRONTEND), (b, CLIENT));
                    between.stayed(&seen.sent, &seen.packet);
                }
                world.forget_connections(family);
            }
        }
    });
}

#[test]
fn nor_does_it_where_a_pod_reaches_itself() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        for between in Between::all(family) {
            for (protocol, request, answer) in between.exchanges(to_vip(world, family), FRONTEND, world.a.to(vip)) {
                serve_itself(world, family, protocol);
                let seen = world.a_sends(request);
                became(&seen, REDIRECT, Outcome::AllowedNew, (vip, CLIENT), (a, TARGET));
                between.stayed(&seen.sent, &seen.packet);
                let seen = world.a_sends(answer);
                became(&seen, REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
                between.stayed(&seen.sent, &seen.packet);
            }
            world.forget_connections(family);
        }
    });
}

#[test]
fn nor_does_it_where_the_client_is_outside() {
    each_family(|world, family| {
        let (client, b, node) = (outside(family), world.b.address(family), node(family));
        for between in Between::all(family) {
            for (protocol, request, answer) in between.exchanges(asking(world, family), NODE_PORT, answering(world, b, family)) {
                open_b(world, family, protocol);
                let crossed = world.arrives(request);
                crossed_as(&crossed, 0, (client, CLIENT), (b, TARGET));
                between.stayed(&crossed.sent, &crossed.packet);
                let crossed = world.leaves(answer);
                crossed_as(&crossed, 0, (node, NODE_PORT), (client, CLIENT));
                between.stayed(&crossed.sent, &crossed.packet);
            }
        }
    });
}

#[test]
fn what_finds_no_backend_is_refused_whatever_stands_between_its_headers() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        let way = to_vip(world, family);
        for between in Between::all(family) {
            for (protocol, request) in packets(way, CLIENT, FRONTEND) {
                frontend(world, family, protocol, ServiceEntry { table: TABLE_NONE, ..ServiceEntry::default() });
                let seen = world.a_sends(between.put(way, &request));
                assert_eq!((seen.outcome, seen.action), (Outcome::ServiceRefused, REDIRECT), "{between:?}");
                if protocol == protocol::TCP {
                    assert_eq!(ends(&seen.packet), [(vip, FRONTEND), (a, CLIENT)], "a reset");
                } else {
                    assert_eq!(ends(&seen.packet), [(vip, 0), (a, 0)], "an ICMP error");
                    assert_eq!(quote(&seen.packet, family), [(a, CLIENT), (vip, FRONTEND)]);
                }
            }
        }
    });
}

#[test]
fn fragments_all_take_one_way_and_back_whatever_stands_before_and_behind_their_headers() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        for (between, behind) in Between::of_fragments(family) {
            serve_b(world, family, protocol::UDP);
            let sent = between.fragments(behind, to_vip(world, family), CLIENT, FRONTEND).map(|frame| world.a_sends(frame));
            assert_eq!(sent.each_ref().map(|seen| seen.outcome), [Outcome::AllowedNew, Outcome::AllowedEstablished]);
            let sent = sent.map(|seen| seen.packet);
            assert_eq!(between.joined(behind, world.a_to_b(family), sent), [(a, CLIENT), (b, TARGET)]);
            let back = between.fragments(behind, world.b_to_a(family), TARGET, CLIENT).map(|frame| world.b_sends(frame));
            assert_eq!(back.each_ref().map(|seen| seen.outcome), [Outcome::AllowedReply; 2]);
            let back = back.map(|seen| seen.packet);
            assert_eq!(between.joined(behind, world.a.to(a).from(vip), back), [(vip, FRONTEND), (a, CLIENT)]);
            world.forget_connections(family);
        }
        let (client, node) = (outside(family), node(family));
        for (between, behind) in Between::of_fragments(family) {
            open_b(world, family, protocol::UDP);
            let sent = between.fragments(behind, asking(world, family), CLIENT, NODE_PORT).map(|frame| world.arrives(frame).packet);
            assert_eq!(between.joined(behind, world.arriving(client, b), sent), [(client, CLIENT), (b, TARGET)]);
            let back = between.fragments(behind, answering(world, b, family), TARGET, CLIENT).map(|frame| world.leaves(frame).packet);
            assert_eq!(between.joined(behind, world.leaving(node, client), back), [(node, NODE_PORT), (client, CLIENT)]);
        }
    });
}

#[test]
fn fragments_of_a_pod_to_itself_do_so_too() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        let shown = world.a.to(a).from(vip);
        for (between, behind) in Between::of_fragments(family) {
            serve_itself(world, family, protocol::UDP);
            let sent = between.fragments(behind, to_vip(world, family), CLIENT, FRONTEND).map(|frame| world.a_sends(frame).packet);
            assert_eq!(between.joined(behind, shown, sent), [(vip, CLIENT), (a, TARGET)]);
            let back = between.fragments(behind, world.a.to(vip), TARGET, CLIENT).map(|frame| world.a_sends(frame).packet);
            assert_eq!(between.joined(behind, shown, back), [(vip, FRONTEND), (a, CLIENT)]);
            world.forget_connections(family);
        }
    });
}

/// The checksum of SCTP is over all fragments, and nobody can make up for another port in one.
#[test]
fn a_first_fragment_of_sctp_is_not_translated() {
    each_family(|world, family| {
        let (ask, answer) = (asking(world, family), answering(world, world.b.address(family), family));
        let first = |way: Way, from: u16, to: u16, chunk: u8| {
            way.fragment(9, 0, true, protocol::SCTP, &[sctp(from, to, chunk), vec![7; 16]].concat())
        };
        open_b(world, family, protocol::SCTP);
        world.arrives(first(ask, CLIENT, NODE_PORT, sctp_chunk::INIT)).dropped(Outcome::RewriteFailed);
        world.arrives(summed(ask.sctp(CLIENT, NODE_PORT, sctp_chunk::INIT))).passed(0);
        world.leaves(first(answer, TARGET, CLIENT, sctp_chunk::INIT_ACK)).dropped(Outcome::RewriteFailed);
        serve_b(world, family, protocol::SCTP);
        world.a_sends(first(to_vip(world, family), CLIENT, FRONTEND, sctp_chunk::INIT)).dropped(Outcome::RewriteFailed);
        let whole = world.a_sends(summed(to_vip(world, family).sctp(CLIENT, FRONTEND, sctp_chunk::INIT)));
        // Nothing of the fragment is remembered.
        became(&whole, REDIRECT, Outcome::AllowedNew, (world.a.address(family), CLIENT), (world.b.address(family), TARGET));
    });
}

/// A packet of a protocol as errors quote it: no more of it than each has to quote, and all, with everything between its headers; of a datagram the first of
/// its fragments, too.
fn quotes(family: Family, protocol: u8, way: Way, from: u16, to: u16) -> Vec<Vec<u8>> {
    let plain = packet_of(protocol, way, from, to);
    let mut quotes = Vec::new();
    for between in Between::all(family) {
        let whole = between.put(way, &plain)[ETHERNET..].to_vec();
        let least = way.transport() - ETHERNET + between.length() + 8;
        quotes.extend([whole[..least].to_vec(), whole]);
    }
    if protocol == protocol::UDP {
        let [first, _] = halves(way, from, to);
        quotes.push(first[ETHERNET..].to_vec());
    }
    quotes
}

/// Errors along a way about a packet along another: with each of its quotes, and with everything between their own headers.
fn errors(family: Family, protocol: u8, way: Way, about: Way, from: u16, to: u16) -> Vec<Vec<u8>> {
    let plain: Vec<_> = quotes(family, protocol, about, from, to).iter().map(|quoted| summed(way.port_unreachable(quoted))).collect();
    let behind: Vec<_> = Between::all(family).iter().map(|between| between.put(way, &plain[0])).collect();
    [plain, behind].concat()
}

#[test]
fn errors_of_pods_are_translated_whatever_stands_between_their_headers_and_those_that_they_quote() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        for (protocol, request) in packets(to_vip(world, family), CLIENT, FRONTEND) {
            serve_b(world, family, protocol);
            let _ = world.a_sends(request);
            for error in errors(family, protocol, world.b_to_a(family), world.a_to_b(family), CLIENT, TARGET) {
                let seen = world.b_sends(error);
                became(&seen, REDIRECT, Outcome::AllowedRelated, (vip, 0), (a, 0));
                assert_eq!(quote(&seen.packet, family), [(a, CLIENT), (vip, FRONTEND)]);
            }
            // Of the client, about an answer.
            for error in errors(family, protocol, to_vip(world, family), world.a.to(a).from(vip), FRONTEND, CLIENT) {
                let seen = world.a_sends(error);
                became(&seen, REDIRECT, Outcome::AllowedRelated, (a, 0), (b, 0));
                assert_eq!(quote(&seen.packet, family), [(b, TARGET), (a, CLIENT)]);
            }
        }
    });
}

#[test]
fn so_are_those_of_routers_and_of_the_node_itself() {
    each_family(|world, family| {
        let (b, node, vip) = (world.b.address(family), node(family), vip(family));
        for (protocol, request) in packets(world.b.to(vip), CLIENT, FRONTEND) {
            serve(world, family, protocol, (outside(family), TARGET));
            let _ = world.b_sends(request);
            for error in errors(family, protocol, world.b.from(node), world.b.to(outside(family)), CLIENT, TARGET) {
                for seen in [world.network_sends(error.clone()), world.host_sends(error)] {
                    became(&seen, PASS, Outcome::AllowedRelated, (node, 0), (b, 0));
                    assert_eq!(quote(&seen.packet, family), [(b, CLIENT), (vip, FRONTEND)]);
                }
            }
        }
    });
}

#[test]
fn so_are_those_of_a_pod_that_reaches_itself() {
    each_family(|world, family| {
        let (a, vip) = (world.a.address(family), vip(family));
        for (protocol, request) in packets(to_vip(world, family), CLIENT, FRONTEND) {
            serve_itself(world, family, protocol);
            let _ = world.a_sends(request);
            for error in errors(family, protocol, world.a.to(vip), world.a.to(a).from(vip), CLIENT, TARGET) {
                let seen = world.a_sends(error);
                became(&seen, REDIRECT, Outcome::AllowedRelated, (vip, 0), (a, 0));
                assert_eq!(quote(&seen.packet, family), [(a, CLIENT), (vip, FRONTEND)]);
            }
        }
    });
}

#[test]
fn so_are_those_from_and_to_clients_outside() {
    each_family(|world, family| {
        let (client, b, node) = (outside(family), world.b.address(family), node(family));
        for (protocol, request) in packets(asking(world, family), CLIENT, NODE_PORT) {
            open_b(world, family, protocol);
            let _ = world.arrives(request);
            for error in errors(family, protocol, asking(world, family), world.leaving(node, client), NODE_PORT, CLIENT) {
                let crossed = world.arrives(error);
                crossed_as(&crossed, 0, (client, 0), (b, 0));
                assert_eq!(quote(&crossed.packet, family), [(b, TARGET), (client, CLIENT)]);
            }
            for error in errors(family, protocol, answering(world, b, family), world.arriving(client, b), CLIENT, TARGET) {
                let crossed = world.leaves(error);
                crossed_as(&crossed, 0, (node, 0), (client, 0));
                assert_eq!(quote(&crossed.packet, family), [(client, CLIENT), (node, NODE_PORT)]);
            }
        }
    });
}

#[test]
fn an_error_about_a_later_fragment_which_has_no_ports_is_about_no_flow() {
    each_family(|world, family| {
        let (client, b, node) = (outside(family), world.b.address(family), node(family));
        let later = |way: Way, from: u16, to: u16| halves(way, from, to)[1][ETHERNET..].to_vec();
        serve_b(world, family, protocol::UDP);
        // Though both have passed.
        let sent = halves(to_vip(world, family), CLIENT, FRONTEND).map(|frame| world.a_sends(frame).outcome);
        assert_eq!(sent, [Outcome::AllowedNew, Outcome::AllowedEstablished]);
        let quoted = later(world.a_to_b(family), CLIENT, TARGET);
        world.b_sends(summed(world.b_to_a(family).port_unreachable(&quoted))).dropped_silently(Outcome::IcmpUnrelated);
        serve(world, family, protocol::UDP, (client, TARGET));
        let _ = world.b_sends(summed(world.b.to(vip(family)).udp(CLIENT, FRONTEND)));
        let error = summed(world.b.from(node).port_unreachable(&later(world.b.to(client), CLIENT, TARGET)));
        world.network_sends(error.clone()).dropped_silently(Outcome::IcmpUnrelated);
        // What the node itself says passes, as it says it.
        world.host_sends(error).passed(Outcome::AllowedRelated);
        open_b(world, family, protocol::UDP);
        let _ = world.arrives(summed(asking(world, family).udp(CLIENT, NODE_PORT)));
        let quoted = later(world.leaving(node, client), NODE_PORT, CLIENT);
        world.arrives(summed(asking(world, family).port_unreachable(&quoted))).untouched();
        let quoted = later(world.arriving(client, b), CLIENT, TARGET);
        world.leaves(summed(answering(world, b, family).port_unreachable(&quoted))).untouched();
    });
}

#[test]
fn an_answer_or_a_quote_that_cannot_be_read_is_not_translated() {
    world(|world| {
        let family = Family::V6;
        let answer = answering(world, world.b.address(family), family);
        serve_b(world, family, protocol::UDP);
        open_b(world, family, protocol::UDP);
        let _ = world.a_sends(summed(to_vip(world, family).udp(CLIENT, FRONTEND)));
        let _ = world.arrives(summed(asking(world, family).udp(CLIENT, NODE_PORT)));
        let way_to_go = set(extension::routing(protocol::UDP, 1).to_vec(), 2, &[SEGMENTS]);
        let late_hop_by_hop = [extension::options(extension::HOP_BY_HOP), extension::options(protocol::UDP)].concat();
        let (_, too_many) = extensions(&[extension::DESTINATION_OPTIONS; 7], protocol::UDP);
        for (outcome, first, headers) in [
            (Outcome::HeaderInvalid, extension::ROUTING, way_to_go),
            (Outcome::HeaderInvalid, extension::DESTINATION_OPTIONS, late_hop_by_hop),
            (Outcome::ExtensionHeaders, extension::DESTINATION_OPTIONS, too_many),
        ] {
            let behind = |way: Way, from: u16, to: u16| way.packet(first, &[&headers[..], &udp(from, to, b"hello")].concat());
            world.b_sends(behind(world.b_to_a(family), TARGET, CLIENT)).dropped_silently(outcome);
            let quoted = &behind(world.a_to_b(family), CLIENT, TARGET)[ETHERNET..];
            world.b_sends(summed(world.b_to_a(family).port_unreachable(quoted))).dropped_silently(outcome);
            // No pod gets it out.
            world.leaves(behind(answer, TARGET, CLIENT)).untouched();
        }
    });
}
