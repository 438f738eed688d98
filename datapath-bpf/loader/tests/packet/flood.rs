//! Floods: what a full table forgets is judged again, and nothing that it forgets opens anything.

use palisade_datapath_core::abi::{Direction, Hook, Outcome};
use palisade_loader::PacketContext;
use palisade_test_support::packet::{protocol, tcp_flag::*, udp};

use crate::stage::sizes;
use crate::world::{Pod, World, each_family, outside};

/// How many times as many as there is room for.
const TIMES: u32 = 10;

/// Sends packets of a pod without looking at each; how many of them passed.
fn send_all(world: &mut World, pod: Pod, packets: impl Iterator<Item = Vec<u8>>) -> u32 {
    let context = PacketContext { ifindex: pod.ifindex, ingress_ifindex: pod.ifindex, mark: 0, repeat: 1 };
    let passed = |packet: Vec<u8>| world.datapath.test_run(Hook::FromPod, &packet, &context).unwrap().action != crate::world::DROP;
    packets.map(passed).map(u32::from).sum()
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
        let newest: Vec<_> = ports().skip(flows as usize - 64).collect();
        for (from, to) in newest {
            world.b_sends(back.udp(to, from)).redirected_to(world.a, Outcome::AllowedReply);
        }
        // Of the oldest nobody knows any more that A opened them: B, who may open none, gets nothing through.
        for (from, to) in ports().take(64) {
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
