//! Floods: what a full table forgets is judged again, and nothing that it forgets opens anything.

use palisade_datapath_core::abi::{Direction, Hook, Outcome, connection_flag as flag};
use palisade_loader::PacketContext;
use palisade_test_support::packet::{protocol, summed, tcp_flag::*, udp};

use crate::service::{CLIENT, FRONTEND, TARGET, became, serve_b, to_vip, vip};
use crate::world::{DROP, Pod, REDIRECT, World, each_family, outside, sizes};

/// How many times as many as there is room for.
pub const TIMES: u32 = 10;
/// Of what has come last, so many rows are surely left.
pub const NEWEST: usize = 64;
/// So many frontends lead to one backend.
pub const FRONTENDS: u16 = 4;

/// Runs a program over packets that come in by an interface, without looking at each; how many of them passed.
pub fn run_all(world: &World, hook: Hook, ifindex: u32, packets: impl Iterator<Item = Vec<u8>>) -> u32 {
    let context = PacketContext { ifindex, ingress_ifindex: ifindex, mark: 0, repeat: 1 };
    let passed = |packet: Vec<u8>| world.datapath.test_run(hook, &packet, &context).unwrap().action != DROP;
    packets.map(passed).map(u32::from).sum()
}

/// Sends packets of a pod.
fn send_all(world: &World, pod: Pod, packets: impl Iterator<Item = Vec<u8>>) -> u32 {
    run_all(world, Hook::FromPod, pod.ifindex, packets)
}

/// The ports of as many flows as fill the connection table so many times, and then some.
fn ports() -> impl Iterator<Item = (u16, u16)> {
    (0..TIMES * sizes().connections).map(|number| ((number % 50_000) as u16 + 10_000, (number / 50_000) as u16 + 1000))
}

/// What policy says, as rows.
fn policy(world: &World) -> String {
    let datapath = &world.datapath;
    format!("{:?} {:?} {:?}", datapath.policy.rows().unwrap(), datapath.ports.rows().unwrap(), datapath.endpoints.rows().unwrap())
}

#[test]
fn a_flood_of_new_flows_changes_no_policy_and_opens_nothing() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.b_sends(back.tcp(40000, 80, SYN)).redirected_to(world.a, Outcome::AllowedNew);
        world.a_sends(there.tcp(80, 40000, SYN | ACK)).redirected_to(world.b, Outcome::AllowedReply);
        let (before, way, flows) = (policy(world), world.a.to(outside(family)), TIMES * sizes().connections);
        assert_eq!(send_all(world, world.a, ports().map(|(from, to)| way.udp(from, to))), flows, "all of them are allowed");
        assert_eq!(policy(world), before);
        let entries = world.connections(family).len();
        assert!(entries as u32 <= sizes().connections, "{entries}");
        // Whether or not its entry was among the forgotten, the end that may open goes on, and then the other.
        let seen = world.b_sends(back.tcp(40000, 80, ACK));
        assert!(matches!(seen.outcome, Outcome::AllowedNew | Outcome::AllowedEstablished), "{seen:?}");
        world.a_sends(there.tcp(80, 40000, ACK)).redirected_to(world.b, Outcome::AllowedReply);
        world.a_sends(there.tcp(40000, 81, SYN)).dropped(Outcome::IngressDefaultDenied);
    });
}

#[test]
fn in_a_full_table_the_newest_flows_win_and_who_lost_is_judged_afresh() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        let flows = TIMES * sizes().connections;
        assert_eq!(send_all(world, world.a, ports().map(|(from, to)| there.udp(from, to))), flows);
        let newest: Vec<_> = ports().skip(flows as usize - NEWEST).collect();
        for (from, to) in newest {
            world.b_sends(back.udp(to, from)).redirected_to(world.a, Outcome::AllowedReply);
        }
        // Of the oldest nobody knows any more that A opened them: B, who may open none, gets nothing through.
        for (from, to) in ports().take(NEWEST) {
            world.b_sends(back.udp(to, from)).dropped_silently(Outcome::EgressDefaultDenied);
        }
        let (from, to) = ports().next().unwrap();
        world.a_sends(there.udp(from, to)).redirected_to(world.b, Outcome::AllowedNew);
        world.b_sends(back.udp(to, from)).redirected_to(world.a, Outcome::AllowedReply);
    });
}

#[test]
fn a_flow_that_goes_on_keeps_its_entry_in_a_table_that_others_overflow() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Egress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.a_sends(there.tcp(40000, 80, SYN)).redirected_to(world.b, Outcome::AllowedNew);
        let flood: Vec<_> = ports().map(|(from, to)| there.udp(from, to)).collect();
        for some in flood.chunks(32) {
            assert_eq!(send_all(world, world.a, some.iter().cloned()), some.len() as u32);
            world.b_sends(back.tcp(80, 40000, ACK)).redirected_to(world.a, Outcome::AllowedReply);
        }
    });
}

/// Ports of clients of as many flows of two rows each as fill a table so many times.
pub fn clients(room: u32) -> Vec<u16> {
    (10_000..).take((TIMES * room / 2) as usize).collect()
}

#[test]
fn in_a_full_table_answers_through_services_come_from_their_own_frontend_or_not_at_all() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        serve_b(world, family, protocol::TCP);
        let entry = world.datapath.services.get((vip, FRONTEND, protocol::TCP)).unwrap().unwrap();
        for number in 1..FRONTENDS {
            world.datapath.services.insert((vip, FRONTEND + number, protocol::TCP), &entry).unwrap();
        }
        // What B sends passes as an answer alone.
        world.isolate(world.b, Direction::Egress, 42);
        let (way, back, flows) = (to_vip(world, family), world.b_to_a(family), clients(sizes().connections));
        let asked = |client: u16| FRONTEND + client % FRONTENDS;
        let requests = flows.iter().map(|client| summed(way.tcp(*client, asked(*client), SYN)));
        assert_eq!(send_all(world, world.a, requests), flows.len() as u32);
        for (age, client) in flows.iter().rev().enumerate() {
            let seen = world.b_sends(summed(back.tcp(TARGET, *client, SYN | ACK)));
            if seen.outcome == Outcome::EgressDefaultDenied {
                seen.dropped_silently(Outcome::EgressDefaultDenied);
                assert!(age >= NEWEST / 2, "{age} flows came later");
            } else {
                became(&seen, REDIRECT, Outcome::AllowedReply, (vip, asked(*client)), (a, *client));
                assert!(age < flows.len() - NEWEST / 2, "{age} flows came later");
            }
        }
        // Who lost goes on with what the client says next.
        let lost = flows[0];
        let seen = world.a_sends(summed(way.tcp(lost, asked(lost), ACK)));
        became(&seen, REDIRECT, Outcome::AllowedNew, (a, lost), (b, TARGET));
        let seen = world.b_sends(summed(back.tcp(TARGET, lost, ACK)));
        became(&seen, REDIRECT, Outcome::AllowedReply, (vip, asked(lost)), (a, lost));
    });
}

#[test]
fn a_client_that_only_listens_hears_its_frontend_in_a_table_that_others_overflow() {
    each_family(|world, family| {
        let (a, b, vip) = (world.a.address(family), world.b.address(family), vip(family));
        serve_b(world, family, protocol::UDP);
        world.isolate(world.b, Direction::Egress, 42);
        let (way, there) = (to_vip(world, family), world.a_to_b(family));
        let (request, answer) = (summed(way.udp(CLIENT, FRONTEND)), summed(world.b_to_a(family).udp(TARGET, CLIENT)));
        let _ = world.a_sends(request.clone());
        let flood: Vec<_> = ports().map(|(from, to)| there.udp(from, to)).collect();
        for some in flood.chunks(32) {
            assert_eq!(send_all(world, world.a, some.iter().cloned()), some.len() as u32);
            became(&world.b_sends(answer.clone()), REDIRECT, Outcome::AllowedReply, (vip, FRONTEND), (a, CLIENT));
        }
        // Its own entry, which names its backend, was not used: it is gone, and comes back.
        let to_frontend = |world: &World| world.connections(family).iter().filter(|entry| entry.flags & flag::TO_FRONTEND != 0).count();
        assert_eq!(to_frontend(world), 0);
        let shown = summed(way.to(a).from(vip).udp(FRONTEND, CLIENT));
        world.a_sends(summed(way.port_unreachable(&shown[14..]))).dropped_silently(Outcome::IcmpUnrelated);
        became(&world.a_sends(request), REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), (b, TARGET));
        assert_eq!(to_frontend(world), 1);
    });
}

#[test]
fn a_flood_of_denied_packets_takes_no_room_and_what_events_hold_back_is_counted() {
    each_family(|world, family| {
        world.isolate(world.b, Direction::Ingress, 42);
        let (there, back) = (world.a_to_b(family), world.b_to_a(family));
        world.b_sends(back.udp(40000, 53)).redirected_to(world.a, Outcome::AllowedNew);
        let before = policy(world);
        assert_eq!(send_all(world, world.a, ports().map(|(from, to)| there.udp(from, to))), 0);
        assert_eq!((policy(world), world.connections(family).len()), (before, 1), "the one flow that was allowed");
        let counted = world.datapath.counters().unwrap();
        let denied =
            counted.iter().find(|(outcome, _)| *outcome == Outcome::IngressDefaultDenied).map_or(0, |(_, counter)| counter.packets);
        assert!(denied >= u64::from(TIMES * sizes().connections));
        let told = world.drain_events();
        // What is held back is told with the next event that is not.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let next = world.a_sends(there.udp(9, 9)).dropped(Outcome::IngressDefaultDenied);
        let suppressed: u64 = told.iter().map(|event| event.suppressed).sum::<u64>() + next.suppressed;
        assert!((told.len() as u64) < u64::from(sizes().connections) && suppressed > 0, "{} events, {suppressed} held back", told.len());
        world.b_sends(back.udp(40000, 53)).redirected_to(world.a, Outcome::AllowedEstablished);
        world.a_sends(there.udp(53, 40000)).redirected_to(world.b, Outcome::AllowedReply);
    });
}

#[test]
fn a_flood_of_first_fragments_lets_no_later_one_pass_without_its_first() {
    each_family(|world, family| {
        let (way, first) = (world.a_to_b(family), udp(40000, 53, &[7; 24]));
        world.a_sends(way.fragment(1, 0, true, protocol::UDP, &first)).redirected_to(world.b, Outcome::AllowedNew);
        let floods = TIMES * sizes().fragments;
        let firsts = (0..floods).map(|id| way.fragment(id as u16 + 2, 0, true, protocol::UDP, &first));
        assert_eq!(send_all(world, world.a, firsts), floods);
        world.a_sends(way.fragment(1, 40, false, protocol::UDP, &[7; 8])).dropped(Outcome::FragmentUnknown);
        world.isolate(world.b, Direction::Ingress, 42);
        world.datapath.bump_epoch().unwrap();
        world.a_sends(way.fragment(floods as u16 + 1, 32, false, protocol::UDP, &[7; 8])).dropped(Outcome::IngressDefaultDenied);
    });
}
