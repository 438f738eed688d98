//! Tables of flows that make room for new ones: how full they look to the agent.

mod stage;

use aya::maps::{HashMap, MapData};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use palisade_datapath_core::abi::{Endpoint, Hook, map};
use palisade_loader::{PacketContext, PinDir, Sizes, Swept};
use palisade_test_support::packet::Way;
use stage::{allow, alone, open_with, run, table};

const SHOT: i32 = 2;
const POD: u32 = 321;
/// Rows that a table must have room for, for each CPU, so that the alert is sure to come (docs/user/agent.md).
const ROWS: u32 = 640;

/// The part of its room above which the chart's alert takes a table for full.
fn alert() -> f64 {
    let rules = include_str!("../../../charts/palisade/templates/rules.yaml");
    let (_, behind) = rules.split_once("palisade_map_room > ").expect("rows are compared with room");
    behind.split_whitespace().next().unwrap().parse().unwrap()
}

/// Writes a row of its own for a number.
fn write<const KEY: usize, const VALUE: usize>(table: &mut HashMap<MapData, [u8; KEY], [u8; VALUE]>, number: u32) {
    let mut key = [0_u8; KEY];
    key[..4].copy_from_slice(&number.to_ne_bytes());
    table.insert(key, [0_u8; VALUE], 0).unwrap();
}

/// The kernel takes rows from old flows before all are in use: each CPU takes 128 at once (`LOCAL_FREE_TARGET` in kernel/bpf/bpf_lru_list.c), and
/// keeps those that it has no flow for yet.
#[test]
fn a_table_that_makes_room_for_new_flows_is_full_enough_for_the_alert() {
    alone(|base| {
        run(&format!("ip link add pod index {POD} type veth peer name peer"));
        let here = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| here.is_set(*cpu).unwrap()).collect();
        let room = ROWS * u32::try_from(cpus.len()).unwrap();
        let mut datapath = open_with(base, &Sizes { connections: room, outside: room, ..stage::sizes() });
        let pod = Endpoint { ifindex: POD, subject: 1, ipv4: [10, 1, 0, 1], pod_mac: [2; 6], host_mac: [4; 6], ..Endpoint::default() };
        datapath.endpoints.insert(&POD, &pod).unwrap();
        allow(&mut datapath, pod.subject);
        let way = Way::new(pod.pod_mac, pod.ipv4.into(), pod.host_mac, "192.0.2.9".parse().unwrap());
        let context = PacketContext { ifindex: POD, ..PacketContext::default() };
        let pin = PinDir::new(base);
        let mut connections_v6 = table::<40, 48>(&pin, map::CONNECTIONS_V6);
        let mut outside_v4 = table::<16, 32>(&pin, map::OUTSIDE_V4);
        let mut outside_v6 = table::<40, 32>(&pin, map::OUTSIDE_V6);
        // Of one table by packets; of the others at once, with rows that are over already: until they are swept they have their places.
        let mut flow = |number: u32| {
            let (from, to) = ((number % 50_000) as u16 + 10_000, (number / 50_000) as u16 + 1_000);
            assert_ne!(datapath.test_run(Hook::FromPod, &way.udp(from, to), &context).unwrap().action, SHOT);
            write(&mut connections_v6, number);
            write(&mut outside_v4, number);
            write(&mut outside_v6, number);
        };
        (0..2 * room).for_each(&mut flow);
        // At the worst each CPU has just taken its rows.
        for (cpu, number) in cpus.into_iter().zip(2 * room..) {
            let mut one = CpuSet::new();
            one.set(cpu).unwrap();
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            flow(number);
        }
        for swept in datapath.sweep_connections() {
            let Swept { map, found, room, .. } = swept.unwrap();
            assert!(found <= room as usize && found as f64 / f64::from(room) > alert(), "{map}: {found} of {room}");
        }
    });
}
