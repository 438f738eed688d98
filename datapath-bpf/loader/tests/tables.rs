//! The typed tables, the counters, the event ring and runs over packets.

mod stage;

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use aya::maps::{Array, Map, MapData};
use ipnet::IpNet;
use libbpf_rs::MapHandle;
use palisade_datapath_core::abi::{
    Connection, ConnectionKey, Direction, Endpoint, Hook, LocalPod, Outcome, PolicyEntry, PolicyKey, PortEntry, PortKey, RowVerdict,
    Tunnel, V4, cell, map,
};
use palisade_datapath_core::epoch;
use palisade_loader::{LoaderError, PacketContext, PinDir, Swept};
use stage::{alone, open};
use zerocopy::IntoBytes;

const SHOT: i32 = 2;

#[test]
fn rows_are_written_read_and_removed() {
    alone(|base| {
        let mut datapath = open(base);
        let endpoint = Endpoint { ifindex: 5, subject: 9, ipv4: [10, 0, 0, 1], pod_mac: [1; 6], ..Endpoint::default() };
        assert_eq!(datapath.endpoints.get(&5).unwrap(), None);
        datapath.endpoints.insert(&5, &endpoint).unwrap();
        assert_eq!(datapath.endpoints.get(&5).unwrap(), Some(endpoint));
        let flipped = Endpoint { subject: 10, ..endpoint };
        datapath.endpoints.insert(&5, &flipped).unwrap();
        assert_eq!(datapath.endpoints.rows().unwrap(), BTreeMap::from([(5, flipped)]));
        assert!(datapath.endpoints.remove(&5).unwrap());
        assert!(!datapath.endpoints.remove(&5).unwrap(), "no row any more");

        let key = PolicyKey::new(1, Direction::Egress, 2);
        let entry = PolicyEntry { ports: 3, reason: 4, verdict: RowVerdict::Deny as u8, ..PolicyEntry::default() };
        datapath.policy.insert(&key, &entry).unwrap();
        assert_eq!(datapath.policy.rows().unwrap(), BTreeMap::from([(key, entry)]));
    });
}

#[test]
fn addresses_of_both_families_live_in_one_table() {
    alone(|base| {
        let mut datapath = open(base);
        let rows: BTreeMap<IpAddr, u32> = [("10.0.0.1", 1), ("fd00::1", 2), ("10.0.0.2", 3)].map(|(a, i)| (a.parse().unwrap(), i)).into();
        for (address, identity) in &rows {
            datapath.addresses.insert(address, identity).unwrap();
        }
        assert_eq!(datapath.addresses.rows().unwrap(), rows);
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(datapath.addresses.get(&v6).unwrap(), Some(2));
        assert!(datapath.addresses.remove(&v6).unwrap());
        assert_eq!(datapath.addresses.get(&v6).unwrap(), None);
        let pod = LocalPod { ifindex: 3, pod_mac: [1; 6], host_mac: [2; 6], since: 0 };
        datapath.local.insert(&v6, &pod).unwrap();
        assert_eq!(datapath.local.rows().unwrap(), BTreeMap::from([(v6, pod)]));
    });
}

#[test]
fn prefixes_are_kept_by_length_and_looked_up_by_the_longest() {
    alone(|base| {
        let mut datapath = open(base);
        let rows: BTreeMap<IpNet, u32> =
            [("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.1.0.0/16", 3), ("10.0.0.0/16", 6), ("::/0", 4), ("fd00:1::/32", 5)]
                .map(|(prefix, identity)| (prefix.parse().unwrap(), identity))
                .into();
        for (prefix, identity) in &rows {
            datapath.prefixes.insert(prefix, identity).unwrap();
        }
        assert_eq!(datapath.prefixes.rows().unwrap(), rows);
        for (address, identity) in [("192.0.2.1", 1), ("10.9.9.9", 2), ("10.1.2.3", 3), ("2001:db8::1", 4), ("fd00:1:2::3", 5)] {
            assert_eq!(datapath.prefixes.lookup(&address.parse().unwrap()).unwrap(), Some(identity), "{address}");
        }
        let wide: IpNet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(datapath.prefixes.get(&wide).unwrap(), Some(2));
        assert_eq!(datapath.prefixes.get(&"10.1.2.0/24".parse().unwrap()).unwrap(), None, "only exactly this prefix counts");
        assert!(datapath.prefixes.remove(&"10.255.255.255/8".parse().unwrap()).unwrap(), "host bits do not count");
        assert!(!datapath.prefixes.remove(&wide).unwrap());
        assert_eq!(datapath.prefixes.lookup(&"10.9.9.9".parse().unwrap()).unwrap(), Some(1));
    });
}

#[test]
fn a_row_of_a_prefix_that_is_written_again_is_still_one_row() {
    alone(|base| {
        let mut datapath = open(base);
        let ranges = ["10.2.0.0/24", "10.3.0.0/24", "fd02::/64", "fd03::/64"].map(|range| range.parse().unwrap());
        for way in [0, 1] {
            let rows: BTreeMap<IpNet, Tunnel> = ranges.iter().map(|range| (*range, Tunnel { node: way, ..Tunnel::default() })).collect();
            for (range, tunnel) in &rows {
                datapath.tunnels.insert(range, tunnel).unwrap();
            }
            assert_eq!(datapath.tunnels.rows().unwrap(), rows);
        }
    });
}

#[test]
fn ports_are_looked_up_by_the_longest_prefix_in_their_table_and_protocol() {
    alone(|base| {
        let mut datapath = open(base);
        let entry = |reason| PortEntry { reason, verdict: RowVerdict::Allow as u8, ..PortEntry::default() };
        let rows = BTreeMap::from([
            ((PortKey::new(1, 6, 0), 0), entry(1)),
            ((PortKey::new(1, 6, 8000), 14), entry(2)),
            ((PortKey::new(1, 6, 8001), 16), entry(3)),
            ((PortKey::new(1, 17, 53), 16), entry(4)),
            ((PortKey::new(2, 6, 0), 0), entry(5)),
        ]);
        for (key, entry) in &rows {
            datapath.ports.insert(key, entry).unwrap();
        }
        assert_eq!(datapath.ports.rows().unwrap(), rows);
        for (table, protocol, port, reason) in [
            (1, 6, 80, Some(1)),
            (1, 6, 8003, Some(2)),
            (1, 6, 8001, Some(3)),
            (1, 17, 53, Some(4)),
            (1, 17, 54, None),
            (2, 6, 8001, Some(5)),
            (3, 6, 1, None),
        ] {
            let found = datapath.ports.lookup(&PortKey::new(table, protocol, port)).unwrap();
            assert_eq!(found.map(|entry| entry.reason), reason, "{table} {protocol} {port}");
        }
        assert!(datapath.ports.remove(&(PortKey::new(1, 6, 8003), 14)).unwrap(), "bits beyond the prefix do not count");
        assert_eq!(datapath.ports.get(&(PortKey::new(1, 6, 8000), 14)).unwrap(), None);
        let error = datapath.ports.insert(&(PortKey::new(1, 6, 1), 17), &entry(1)).unwrap_err();
        assert!(matches!(error, LoaderError::Table { map: map::PORTS, operation: "write", .. }), "{error}");
    });
}

#[test]
fn a_full_table_is_named_with_its_size_and_keeps_its_rows() {
    alone(|base| {
        let mut datapath = open(base);
        for number in 0..64 {
            datapath.policy.insert(&PolicyKey::new(number, Direction::Ingress, 0), &PolicyEntry::default()).unwrap();
            datapath.prefixes.insert(&format!("10.{number}.0.0/16").parse().unwrap(), &number).unwrap();
        }
        let full = datapath.policy.insert(&PolicyKey::new(64, Direction::Ingress, 0), &PolicyEntry::default()).unwrap_err();
        assert!(matches!(full, LoaderError::TableFull { map: map::POLICY, max_entries: 64, .. }), "{full}");
        let full = datapath.prefixes.insert(&"10.64.0.0/16".parse().unwrap(), &64).unwrap_err();
        assert!(matches!(full, LoaderError::TableFull { map: map::PREFIX_V4, max_entries: 64, .. }), "{full}");
        assert_eq!(datapath.policy.rows().unwrap().len(), 64);
        let over = PolicyEntry { reason: 1, ..PolicyEntry::default() };
        datapath.policy.insert(&PolicyKey::new(63, Direction::Ingress, 0), &over).expect("a row that is there can be replaced");
    });
}

/// The cell, as the programs read it.
fn observes_allowed(base: &Path) -> u32 {
    let config = MapData::from_pin(PinDir::new(base).maps_dir().join(map::CONFIG)).unwrap();
    Array::<_, u32>::try_from(Map::from_map_data(config).unwrap()).unwrap().get(&cell::OBSERVE_ALLOWED, 0).unwrap()
}

#[test]
fn the_epoch_moves_and_cells_keep_apart() {
    alone(|base| {
        let mut datapath = open(base);
        let start = datapath.epoch().unwrap();
        datapath.observe_allowed(true).unwrap();
        assert_eq!(datapath.bump_epoch().unwrap(), epoch::next(start));
        assert_eq!(datapath.epoch().unwrap(), epoch::next(start));
        datapath.unsettle_epoch().unwrap();
        assert!(!epoch::settled(datapath.epoch().unwrap()));
        datapath.settle_epoch(false).unwrap();
        assert_eq!(datapath.epoch().unwrap(), epoch::next(epoch::next(start)));
        datapath.settle_epoch(false).unwrap();
        assert_eq!(datapath.epoch().unwrap(), epoch::next(epoch::next(start)), "it was settled");
        assert_eq!(observes_allowed(base), 1);
        datapath.observe_allowed(false).unwrap();
        assert_eq!(observes_allowed(base), 0);
        assert_eq!(datapath.epoch().unwrap(), epoch::next(epoch::next(start)));
    });
}

#[test]
fn a_dropped_packet_is_counted_and_reported() {
    alone(|base| {
        let mut datapath = open(base);
        let mut events = datapath.events().unwrap();
        assert_eq!(events.next().unwrap(), None);
        let context = PacketContext { ifindex: 1, ..PacketContext::default() };
        let run = datapath.test_run(Hook::FromPod, &[0; 60], &context).unwrap();
        assert_eq!(run.action, SHOT);
        assert_eq!(run.packet.len(), 60);
        let counters = datapath.counters().unwrap();
        assert_eq!(counters.len(), Outcome::ALL.len());
        for (outcome, counter) in counters {
            let expected = u64::from(outcome == Outcome::EndpointMissing);
            assert_eq!((counter.packets, counter.bytes), (expected, expected * 60), "{outcome:?}");
        }
        let event = events.next().unwrap().expect("an event");
        assert_eq!(
            (Outcome::from_byte(event.outcome), event.hook, event.ifindex),
            (Some(Outcome::EndpointMissing), Hook::FromPod as u8, 1)
        );
        assert_eq!(events.next().unwrap(), None);
    });
}

#[test]
fn a_run_sees_the_interface_that_it_is_given() {
    alone(|base| {
        stage::run("ip link add pod index 321 type veth peer name peer");
        let mut datapath = open(base);
        datapath.endpoints.insert(&321, &Endpoint { ifindex: 321, subject: 1, pod_mac: [1; 6], ..Endpoint::default() }).unwrap();
        let mut events = datapath.events().unwrap();
        datapath.test_run(Hook::FromPod, &[0; 60], &PacketContext { ifindex: 321, ..PacketContext::default() }).unwrap();
        let event = events.next().unwrap().expect("an event");
        let found = (event.ifindex, Outcome::from_byte(event.outcome));
        assert_eq!(found, (321, Some(Outcome::SourceMacForeign)), "the row of its interface was found");
        let error = datapath.test_run(Hook::FromPod, &[0; 60], &PacketContext { ifindex: 4711, ..PacketContext::default() }).unwrap_err();
        assert!(matches!(error, LoaderError::TestRun { ifindex: 4711, .. }), "{error}");
    });
}

#[test]
fn a_run_is_repeated_and_timed() {
    alone(|base| {
        let datapath = open(base);
        let run = datapath.test_run(Hook::ToPod, &[0; 60], &PacketContext { repeat: 1000, ..PacketContext::default() }).unwrap();
        assert!(!run.duration.is_zero());
        let (_, counter) = datapath.counters().unwrap()[Outcome::EndpointMissing as usize];
        assert_eq!(counter.packets, 1000);
    });
}

#[test]
fn the_sweep_removes_what_has_expired_and_nothing_else() {
    alone(|base| {
        let mut datapath = open(base);
        let mut table = stage::table::<16, 48>(&PinDir::new(base), map::CONNECTIONS_V4);
        let mut write = |low_port: u16, protocol: u8, seen: u64| {
            let key = ConnectionKey::<V4> {
                low: [10, 0, 0, 1],
                high: [10, 0, 0, 2],
                low_port: low_port.to_be_bytes(),
                high_port: [0; 2],
                protocol,
                reserved: [0; 3],
            };
            let entry = Connection { seen, ..Connection::default() };
            let key: [u8; 16] = key.as_bytes().try_into().unwrap();
            let entry: [u8; 48] = entry.as_bytes().try_into().unwrap();
            table.insert(key, entry, 0).unwrap();
            key
        };
        let now = kernel_jiffies();
        write(1, 6, 1);
        write(2, 17, 1);
        let kept = [write(3, 6, now), write(4, 17, now)];
        let swept = datapath.sweep_connections().map(Result::unwrap);
        let of = |map| swept.iter().find(|swept| swept.map == map).copied();
        assert_eq!(of(map::CONNECTIONS_V4), Some(Swept { map: map::CONNECTIONS_V4, found: 4, removed: 2, room: 256 }));
        for map in [map::CONNECTIONS_V6, map::OUTSIDE_V4, map::OUTSIDE_V6] {
            assert_eq!(of(map), Some(Swept { map, found: 0, removed: 0, room: 256 }));
        }
        let mut left: Vec<[u8; 16]> = table.keys().map(Result::unwrap).collect();
        left.sort_unstable();
        assert_eq!(left, kept);
    });
}

#[test]
fn a_table_that_cannot_be_swept_keeps_no_other_from_it() {
    alone(|base| {
        let mut datapath = open(base);
        let pin = PinDir::new(base);
        // Seen last before the kernel began to count.
        stage::table::<16, 48>(&pin, map::CONNECTIONS_V4).insert([0_u8; 16], [0_u8; 48], 0).unwrap();
        stage::table::<40, 32>(&pin, map::OUTSIDE_V6).insert([0_u8; 40], [0_u8; 32], 0).unwrap();
        // From here on no system call removes a row of it.
        MapHandle::from_pinned_path(pin.maps_dir().join(map::CONNECTIONS_V4)).unwrap().freeze().unwrap();
        let [frozen, others @ ..] = datapath.sweep_connections();
        assert!(frozen.is_err(), "{frozen:?}");
        let removed = others.map(Result::unwrap).map(|swept| (swept.map, swept.removed));
        assert_eq!(removed, [(map::CONNECTIONS_V6, 0), (map::OUTSIDE_V4, 0), (map::OUTSIDE_V6, 1)]);
    });
}

/// The kernel's own count.
fn kernel_jiffies() -> u64 {
    let list = std::fs::read_to_string("/proc/timer_list").expect("root can read it");
    list.lines().find_map(|line| line.strip_prefix("jiffies: ")).unwrap().parse().unwrap()
}
