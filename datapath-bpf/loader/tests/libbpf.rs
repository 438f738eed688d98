//! The second opinion: libbpf opens and loads the same object, and reads what aya has written.

mod stage;

use std::collections::BTreeMap;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, ObjectBuilder, ProgramType};
use palisade_datapath_core::abi::{
    Affinity, AffinityKey, Backend, CHUNK, ChunkKey, Connection, ConnectionKey, Counter, Direction, Endpoint, FragmentKey, FragmentPorts,
    LocalPod, Node, Outcome, Outside, OutsideKey, PolicyEntry, PolicyKey, PortEntry, PortKey, RowVerdict, ServiceEntry, ServiceKey,
    SocketEntry, SocketKey, Tunnel, V4, V6, cell, map,
};
use palisade_loader::{PinDir, object};
use stage::{alone, open, programs, sizes};
use zerocopy::IntoBytes;

/// Type, bytes of a key, bytes of a value, as the shared types say.
fn expected() -> BTreeMap<&'static str, (MapType, usize, usize)> {
    let length = size_of::<u32>();
    BTreeMap::from([
        (map::ENDPOINTS, (MapType::Hash, size_of::<u32>(), size_of::<Endpoint>())),
        (map::LOCAL_V4, (MapType::Hash, size_of::<V4>(), size_of::<LocalPod>())),
        (map::LOCAL_V6, (MapType::Hash, size_of::<V6>(), size_of::<LocalPod>())),
        (map::ADDRESS_V4, (MapType::Hash, size_of::<V4>(), size_of::<u32>())),
        (map::ADDRESS_V6, (MapType::Hash, size_of::<V6>(), size_of::<u32>())),
        (map::PREFIX_V4, (MapType::LpmTrie, length + size_of::<V4>(), size_of::<u32>())),
        (map::PREFIX_V6, (MapType::LpmTrie, length + size_of::<V6>(), size_of::<u32>())),
        (map::POLICY, (MapType::Hash, size_of::<PolicyKey>(), size_of::<PolicyEntry>())),
        (map::PORTS, (MapType::LpmTrie, length + size_of::<PortKey>(), size_of::<PortEntry>())),
        (map::SERVICES_V4, (MapType::Hash, size_of::<ServiceKey<V4>>(), size_of::<ServiceEntry>())),
        (map::SERVICES_V6, (MapType::Hash, size_of::<ServiceKey<V6>>(), size_of::<ServiceEntry>())),
        (map::CHUNKS, (MapType::Hash, size_of::<ChunkKey>(), size_of::<[u32; CHUNK]>())),
        (map::BACKENDS, (MapType::Hash, size_of::<u32>(), size_of::<Backend>())),
        (map::TUNNELS_V4, (MapType::LpmTrie, length + size_of::<V4>(), size_of::<Tunnel>())),
        (map::TUNNELS_V6, (MapType::LpmTrie, length + size_of::<V6>(), size_of::<Tunnel>())),
        (map::NODES_V4, (MapType::Hash, size_of::<V4>(), size_of::<Node>())),
        (map::NODES_V6, (MapType::Hash, size_of::<V6>(), size_of::<Node>())),
        (map::AFFINITY, (MapType::LruHash, size_of::<AffinityKey>(), size_of::<Affinity>())),
        (map::SOCKETS, (MapType::LruHash, size_of::<SocketKey>(), size_of::<SocketEntry>())),
        (map::CONNECTIONS_V4, (MapType::LruHash, size_of::<ConnectionKey<V4>>(), size_of::<Connection>())),
        (map::CONNECTIONS_V6, (MapType::LruHash, size_of::<ConnectionKey<V6>>(), size_of::<Connection>())),
        (map::OUTSIDE_V4, (MapType::LruHash, size_of::<OutsideKey<V4>>(), size_of::<Outside>())),
        (map::OUTSIDE_V6, (MapType::LruHash, size_of::<OutsideKey<V6>>(), size_of::<Outside>())),
        (map::FRAGMENTS_V4, (MapType::LruHash, size_of::<FragmentKey<V4>>(), size_of::<FragmentPorts>())),
        (map::FRAGMENTS_V6, (MapType::LruHash, size_of::<FragmentKey<V6>>(), size_of::<FragmentPorts>())),
        (map::CONFIG, (MapType::Array, size_of::<u32>(), size_of::<u32>())),
        (map::COUNTERS, (MapType::PercpuArray, size_of::<u32>(), size_of::<Counter>())),
        (map::EVENTS, (MapType::RingBuf, 0, 0)),
    ])
}

fn pinned(pin: &PinDir, name: &str) -> MapHandle {
    MapHandle::from_pinned_path(pin.maps_dir().join(name)).unwrap()
}

#[test]
fn libbpf_opens_the_object_and_sees_the_maps_and_programs() {
    let mut builder = ObjectBuilder::default();
    let opened = builder.open_memory(object()).unwrap();
    let found: BTreeMap<String, (MapType, usize, usize)> = opened
        .maps()
        .map(|map| (map.name().to_string_lossy().into_owned(), (map.map_type(), map.key_size() as usize, map.value_size() as usize)))
        .collect();
    for (name, layout) in expected() {
        assert_eq!(found.get(name), Some(&layout), "{name}");
    }
    let mut found: Vec<(String, ProgramType)> =
        opened.progs().map(|program| (program.name().to_string_lossy().into_owned(), program.prog_type())).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let at_sockets = ["connect4", "connect6", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6"];
    let mut expected: Vec<(String, ProgramType)> = at_sockets.map(|name| (name.to_owned(), ProgramType::CgroupSockAddr)).into();
    expected.extend(programs().into_iter().map(|name| (name, ProgramType::SchedCls)));
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, expected);
}

#[test]
fn libbpf_loads_the_object() {
    alone(|_| {
        let loaded = ObjectBuilder::default().open_memory(object()).unwrap().load().unwrap();
        let names: Vec<String> = loaded.progs().map(|program| program.name().to_string_lossy().into_owned()).collect();
        assert!(programs().iter().all(|program| names.iter().any(|name| name == program)), "{names:?}");
    });
}

#[test]
fn what_aya_pins_has_the_shared_types_layout_for_libbpf_too() {
    alone(|base| {
        drop(open(base));
        let pin = PinDir::new(base);
        for (name, layout) in expected() {
            let map = pinned(&pin, name);
            assert_eq!((map.map_type(), map.key_size() as usize, map.value_size() as usize), layout, "{name}");
        }
        assert_eq!(pinned(&pin, map::POLICY).max_entries(), sizes().policy);
        assert_eq!(pinned(&pin, map::EVENTS).max_entries(), sizes().events_bytes);
        assert_eq!(pinned(&pin, map::CONFIG).max_entries(), cell::ROWS);
        assert_eq!(pinned(&pin, map::COUNTERS).max_entries(), Outcome::ROWS);
    });
}

#[test]
fn rows_that_aya_has_written_read_the_same_through_libbpf() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        let read =
            |name: &str, key: &[u8]| pinned(&pin, name).lookup(key, MapFlags::ANY).unwrap().unwrap_or_else(|| panic!("{name}: no row"));

        let endpoint = Endpoint {
            ifindex: 12,
            subject: 5,
            audit: 6,
            ipv4: [10, 0, 0, 7],
            ipv6: [0xfd; 16],
            pod_mac: [1, 2, 3, 4, 5, 6],
            host_mac: [6, 5, 4, 3, 2, 1],
            since: 9,
        };
        datapath.endpoints.insert(&12, &endpoint).unwrap();
        assert_eq!(read(map::ENDPOINTS, &12_u32.to_ne_bytes()), endpoint.as_bytes());

        let key = PolicyKey::new(5, Direction::Egress, 77);
        let entry = PolicyEntry { ports: 2, reason: 3, verdict: RowVerdict::DefaultDeny as u8, ..PolicyEntry::default() };
        datapath.policy.insert(&key, &entry).unwrap();
        assert_eq!(read(map::POLICY, key.as_bytes()), entry.as_bytes());

        datapath.addresses.insert(&"192.0.2.9".parse().unwrap(), &41).unwrap();
        assert_eq!(read(map::ADDRESS_V4, &[192, 0, 2, 9]), 41_u32.to_ne_bytes());
        datapath.addresses.insert(&"2001:db8::9".parse().unwrap(), &42).unwrap();
        assert_eq!(read(map::ADDRESS_V6, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]), 42_u32.to_ne_bytes());

        datapath.prefixes.insert(&"198.51.100.0/24".parse().unwrap(), &43).unwrap();
        let address = [&32_u32.to_ne_bytes()[..], &[198, 51, 100, 200]].concat();
        assert_eq!(read(map::PREFIX_V4, &address), 43_u32.to_ne_bytes());

        let range = (PortKey::new(2, 6, 8000), 13);
        let port = PortEntry { reason: 8, verdict: RowVerdict::Allow as u8, ..PortEntry::default() };
        datapath.ports.insert(&range, &port).unwrap();
        let asked = [&64_u32.to_ne_bytes()[..], PortKey::new(2, 6, 8007).as_bytes()].concat();
        assert_eq!(read(map::PORTS, &asked), port.as_bytes());

        let epoch = datapath.bump_epoch().unwrap();
        assert_eq!(read(map::CONFIG, &cell::EPOCH.to_ne_bytes()), epoch.to_ne_bytes());
    });
}
