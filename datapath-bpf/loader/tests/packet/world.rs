//! Two pods on a node, and what is beyond it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{OnceLock, mpsc};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare};
use nix::unistd::Pid;
use palisade_datapath_core::abi::{
    Connection, DatapathEvent, Direction, Endpoint, Hook, IDENTITY_ANY, LocalPod, Outcome, PORTS_NONE, PolicyEntry, PolicyKey, PortEntry,
    PortKey, RowVerdict, SUBJECT_NONE, map,
};
use palisade_datapath_core::verdict::Decision;
use palisade_loader::{Datapath, EventRing, PacketContext, Sizes};
use palisade_test_support::packet::{Mac, Way, checksum};
use palisade_test_support::requires_root;

use crate::stage;

pub const PASS: i32 = -1;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

/// The identities that the addresses of a [`World`] have.
pub const IDENTITY_A: u32 = 11;
pub const IDENTITY_B: u32 = 12;
pub const IDENTITY_OUTSIDE: u32 = 20;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

#[derive(Clone, Copy, Debug)]
pub struct Pod {
    pub ifindex: u32,
    pub subject: u32,
    pub mac: Mac,
    pub host_mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pod {
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            V4 => self.v4.into(),
            V6 => self.v6.into(),
        }
    }

    /// The way of a packet from this pod's interface.
    pub fn to(&self, destination: IpAddr) -> Way {
        let family = if destination.is_ipv4() { V4 } else { V6 };
        Way::new(self.mac, self.address(family), self.host_mac, destination)
    }

    /// The way of a packet that the stack hands to this pod's interface.
    pub fn from(&self, source: IpAddr) -> Way {
        let family = if source.is_ipv4() { V4 } else { V6 };
        Way::new(self.host_mac, source, self.mac, self.address(family))
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            ifindex: self.ifindex,
            subject: self.subject,
            audit: SUBJECT_NONE,
            ipv4: self.v4.octets(),
            ipv6: self.v6.octets(),
            pod_mac: self.mac,
            host_mac: self.host_mac,
            since: 0,
        }
    }

    pub fn local(&self) -> LocalPod {
        LocalPod { ifindex: self.ifindex, pod_mac: self.mac, host_mac: self.host_mac, since: 0 }
    }
}

/// An address outside the node, in a prefix with an identity.
pub fn outside(family: Family) -> IpAddr {
    match family {
        V4 => Ipv4Addr::new(192, 0, 2, 9).into(),
        V6 => "2001:db8::9".parse().unwrap(),
    }
}

/// An address of the node itself.
pub fn node(family: Family) -> IpAddr {
    match family {
        V4 => Ipv4Addr::new(172, 16, 0, 1).into(),
        V6 => "fd16::1".parse().unwrap(),
    }
}

/// The index of an interface that a packet from the network came in by.
pub const UPLINK: u32 = 77;

pub struct World {
    pub datapath: Datapath,
    pub a: Pod,
    pub b: Pod,
    events: EventRing,
}

/// What became of a packet.
#[derive(Debug)]
#[must_use = "say what should have become of the packet"]
pub struct Seen {
    sent: Vec<u8>,
    pub action: i32,
    pub packet: Vec<u8>,
    pub outcome: Outcome,
    pub event: Option<DatapathEvent>,
}

type Job = Box<dyn FnOnce(&mut World) + Send>;

/// Runs a test in the world, as it is at first. The programs are loaded once; one test runs at a time.
pub fn world(test: impl FnOnce(&mut World) + Send + 'static) {
    if !requires_root() {
        return;
    }
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("world".into()).spawn(move || live(queue)).unwrap();
        jobs
    });
    let (answer, outcome) = mpsc::channel();
    let job: Job = Box::new(move |world| drop(answer.send(catch_unwind(AssertUnwindSafe(|| test(world))))));
    jobs.send(job).expect("the world could not be made: its thread says why");
    if let Err(panic) = outcome.recv().expect("the world could not be made: its thread says why") {
        resume_unwind(panic);
    }
}

/// Runs a test for both families, each in the world as it is at first.
pub fn each_family(test: impl Fn(&mut World, Family) + Send + Copy + 'static) {
    for family in [V4, V6] {
        world(move |world| test(world, family));
    }
}

/// The thread that the tests run on, with mounts and interfaces of its own, which end with the process.
fn live(queue: mpsc::Receiver<Job>) {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("a mount and a network namespace can be made");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("mounts can be made private");
    let directory = "/sys/fs/bpf";
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a BPF file system can be mounted");
    // Events are limited and counted per CPU: all tests stay on one.
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    stage::run("ip link add palt0 type veth peer name palt1");
    let sizes = Sizes { policy: 4096, ports: 16_384, addresses: 256, prefixes: 256, endpoints: 64, ..stage::sizes() };
    let mut world = World::new(stage::open_with(Path::new(directory).join("palisade").as_path(), &sizes));
    for job in queue {
        world.reset();
        job(&mut world);
    }
}

impl World {
    fn new(mut datapath: Datapath) -> Self {
        let index = |name: &str| if_nametoindex(name).unwrap();
        let pod = |name: &str, subject: u32, last: u8| Pod {
            ifindex: index(name),
            subject,
            mac: [2, 0, 0, 0, 1, last],
            host_mac: [2, 0, 0, 0, 2, last],
            v4: [10, 1, 0, last].into(),
            v6: format!("fd01::{last}").parse().unwrap(),
        };
        let (a, b) = (pod("palt0", 1, 1), pod("palt1", 2, 2));
        let events = datapath.events().unwrap();
        Self { datapath, a, b, events }
    }

    /// Takes every row away and writes those of two pods that no policy isolates.
    fn reset(&mut self) {
        self.clear();
        let datapath = &mut self.datapath;
        for (pod, identity) in [(&self.a, IDENTITY_A), (&self.b, IDENTITY_B)] {
            datapath.endpoints.insert(&pod.ifindex, &pod.endpoint()).unwrap();
            for family in [V4, V6] {
                datapath.local.insert(&pod.address(family), &pod.local()).unwrap();
                datapath.addresses.insert(&pod.address(family), &identity).unwrap();
            }
            stage::allow(datapath, pod.subject);
        }
        for prefix in ["192.0.2.0/24", "2001:db8::/32"] {
            datapath.prefixes.insert(&prefix.parse().unwrap(), &IDENTITY_OUTSIDE).unwrap();
        }
    }

    /// Another pod gets the addresses of `pod` and the same policy, as the agent does it.
    pub fn replace(&mut self, pod: Pod) {
        let datapath = &mut self.datapath;
        datapath.endpoints.remove(&pod.ifindex).unwrap();
        let since = datapath.bump_epoch().unwrap() + 1;
        for family in [V4, V6] {
            datapath.local.insert(&pod.address(family), &LocalPod { since, ..pod.local() }).unwrap();
        }
        assert_eq!(datapath.bump_epoch().unwrap(), since);
        datapath.endpoints.insert(&pod.ifindex, &Endpoint { since, ..pod.endpoint() }).unwrap();
    }

    /// Takes every row away.
    pub fn clear(&mut self) {
        let datapath = &mut self.datapath;
        datapath.observe_allowed(false).unwrap();
        for key in datapath.endpoints.rows().unwrap().keys() {
            datapath.endpoints.remove(key).unwrap();
        }
        for address in datapath.local.rows().unwrap().keys() {
            datapath.local.remove(address).unwrap();
        }
        for address in datapath.addresses.rows().unwrap().keys() {
            datapath.addresses.remove(address).unwrap();
        }
        for prefix in datapath.prefixes.rows().unwrap().keys() {
            datapath.prefixes.remove(prefix).unwrap();
        }
        for key in datapath.policy.rows().unwrap().keys() {
            datapath.policy.remove(key).unwrap();
        }
        for key in datapath.ports.rows().unwrap().keys() {
            datapath.ports.remove(key).unwrap();
        }
        for key in datapath.services.rows().unwrap().keys() {
            datapath.services.remove(*key).unwrap();
        }
        for key in datapath.chunks.rows().unwrap().keys() {
            datapath.chunks.remove(key).unwrap();
        }
        for key in datapath.backends.rows().unwrap().keys() {
            datapath.backends.remove(key).unwrap();
        }
        empty(self.map::<20, 16>(map::AFFINITY));
        self.forget_connections(V4);
        self.forget_connections(V6);
        empty(self.map::<16, 16>(map::FRAGMENTS_V4));
        empty(self.map::<40, 16>(map::FRAGMENTS_V6));
        empty(self.map::<44, 8>(map::EVENT_FLOWS));
        let path = self.datapath.pin_dir().maps_dir().join(map::EVENT_BUDGET);
        let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
        let mut budget: PerCpuArray<MapData, [u8; 32]> = PerCpuArray::try_from(map).unwrap();
        budget.set(0, PerCpuValues::try_from(vec![[0; 32]; nr_cpus().unwrap()]).unwrap(), 0).unwrap();
        while self.events.next().unwrap().is_some() {}
    }

    /// From pod A to pod B.
    pub fn a_to_b(&self, family: Family) -> Way {
        self.a.to(self.b.address(family))
    }

    /// From pod B to pod A.
    pub fn b_to_a(&self, family: Family) -> Way {
        self.b.to(self.a.address(family))
    }

    /// A packet that pod A sends.
    pub fn a_sends(&mut self, packet: Vec<u8>) -> Seen {
        self.run(Hook::FromPod, self.a.ifindex, self.a.ifindex, packet)
    }

    /// A packet that pod B sends.
    pub fn b_sends(&mut self, packet: Vec<u8>) -> Seen {
        self.run(Hook::FromPod, self.b.ifindex, self.b.ifindex, packet)
    }

    /// A packet from the network that the stack hands to pod B's interface.
    pub fn network_sends(&mut self, packet: Vec<u8>) -> Seen {
        self.run(Hook::ToPod, self.b.ifindex, UPLINK, packet)
    }

    /// A packet of the node's own that the stack hands to pod B's interface.
    pub fn host_sends(&mut self, packet: Vec<u8>) -> Seen {
        self.run(Hook::ToPod, self.b.ifindex, 0, packet)
    }

    /// The events that nobody has read yet.
    pub fn drain_events(&mut self) -> Vec<DatapathEvent> {
        std::iter::from_fn(|| self.events.next().unwrap()).collect()
    }

    /// Runs a program over a packet; exactly one counter must move, and an event must say the same as it.
    pub fn run(&mut self, hook: Hook, ifindex: u32, ingress_ifindex: u32, packet: Vec<u8>) -> Seen {
        let before = self.datapath.counters().unwrap();
        let run = self.datapath.test_run(hook, &packet, &PacketContext { ifindex, ingress_ifindex, repeat: 1 }).unwrap();
        let after = self.datapath.counters().unwrap();
        let moved: Vec<(Outcome, u64, u64)> = before
            .iter()
            .zip(&after)
            .map(|((outcome, before), (_, after))| (*outcome, after.packets - before.packets, after.bytes - before.bytes))
            .filter(|(_, packets, bytes)| (*packets, *bytes) != (0, 0))
            .collect();
        let [(outcome, 1, bytes)] = moved[..] else { panic!("one packet moved {moved:?}") };
        assert_eq!(bytes, packet.len() as u64, "bytes of {outcome:?}");
        // To be refused is to be answered.
        let answered = outcome == Outcome::ServiceRefused;
        assert_eq!(outcome.passes() || answered, run.action != DROP, "{outcome:?} with action {}", run.action);
        let event = self.events.next().unwrap();
        assert_eq!(self.events.next().unwrap(), None, "one packet makes one event at most");
        if let Some(event) = event {
            assert_eq!((event.outcome, event.hook), (outcome as u8, hook as u8), "the event of {outcome:?}");
            assert_eq!((event.ifindex, event.length as usize), (ifindex, packet.len()));
            assert_ne!(event.time, 0);
        }
        Seen { sent: packet, action: run.action, packet: run.packet, outcome, event }
    }

    /// Writes what a subject's policy says of a peer.
    pub fn rule(&mut self, pod: Pod, direction: Direction, peer: u32, verdict: RowVerdict, reason: u32) {
        self.row(pod, direction, peer, PORTS_NONE, verdict, reason);
    }

    /// Writes what a subject's policy says of a peer, with a port table before it.
    pub fn row(&mut self, pod: Pod, direction: Direction, peer: u32, ports: u32, verdict: RowVerdict, reason: u32) {
        let entry = PolicyEntry { ports, reason, verdict: verdict as u8, reserved: [0; 3] };
        self.datapath.policy.insert(&PolicyKey::new(pod.subject, direction, peer), &entry).unwrap();
    }

    /// Isolates a subject in a direction: whatever no other row allows.
    pub fn isolate(&mut self, pod: Pod, direction: Direction, reason: u32) {
        self.rule(pod, direction, IDENTITY_ANY, RowVerdict::DefaultDeny, reason);
    }

    /// Lifts [`isolate`](Self::isolate).
    pub fn open(&mut self, pod: Pod, direction: Direction) {
        self.rule(pod, direction, IDENTITY_ANY, RowVerdict::Allow, 0);
    }

    /// Writes a row of a port table for the ports that share the first `bits` bits with `port`.
    pub fn port(&mut self, table: u32, protocol: u8, port: u16, bits: u8, verdict: RowVerdict, reason: u32) {
        let entry = PortEntry { reason, verdict: verdict as u8, reserved: [0; 3] };
        self.datapath.ports.insert(&(PortKey::new(table, protocol, port), bits), &entry).unwrap();
    }

    /// The entries of the connection table of a family.
    pub fn connections(&self, family: Family) -> Vec<Connection> {
        match family {
            V4 => self.map::<16, 48>(map::CONNECTIONS_V4).iter().map(|entry| connection(entry.unwrap().1)).collect(),
            V6 => self.map::<40, 48>(map::CONNECTIONS_V6).iter().map(|entry| connection(entry.unwrap().1)).collect(),
        }
    }

    /// Removes every entry of a family, as evictions do.
    pub fn forget_connections(&self, family: Family) {
        match family {
            V4 => empty(self.map::<16, 48>(map::CONNECTIONS_V4)),
            V6 => empty(self.map::<40, 48>(map::CONNECTIONS_V6)),
        }
    }

    /// Makes every entry of a family so many seconds older.
    pub fn let_pass(&mut self, family: Family, seconds: u64) {
        let hertz = hertz();
        match family {
            V4 => age(self.map::<16, 48>(map::CONNECTIONS_V4), seconds * hertz),
            V6 => age(self.map::<40, 48>(map::CONNECTIONS_V6), seconds * hertz),
        }
    }

    /// Makes every record of a first fragment so many seconds older.
    pub fn let_fragments_pass(&mut self, family: Family, seconds: u64) {
        match family {
            V4 => age(self.map::<16, 16>(map::FRAGMENTS_V4), seconds * hertz()),
            V6 => age(self.map::<40, 16>(map::FRAGMENTS_V6), seconds * hertz()),
        }
    }

    /// Makes every client's stay with its backend so many seconds older.
    pub fn let_affinity_pass(&mut self, seconds: u64) {
        age(self.map::<20, 16>(map::AFFINITY), seconds * hertz());
    }

    fn map<const KEY: usize, const VALUE: usize>(&self, name: &str) -> HashMap<MapData, [u8; KEY], [u8; VALUE]> {
        let path = self.datapath.pin_dir().maps_dir().join(name);
        HashMap::try_from(Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap()).unwrap()
    }
}

fn hertz() -> u64 {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap().tv_nsec() as u64;
    (1_000_000_000 + tick / 2) / tick
}

fn empty<const KEY: usize, const VALUE: usize>(mut map: HashMap<MapData, [u8; KEY], [u8; VALUE]>) {
    let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

/// Every value begins with the jiffies at which it was seen last.
fn age<const KEY: usize, const VALUE: usize>(mut map: HashMap<MapData, [u8; KEY], [u8; VALUE]>, jiffies: u64) {
    let entries: Vec<_> = map.iter().map(Result::unwrap).collect();
    assert!(!entries.is_empty(), "there is nothing to age");
    for (key, mut value) in entries {
        let seen = u64::from_ne_bytes(value[..8].try_into().unwrap());
        value[..8].copy_from_slice(&(seen - jiffies).to_ne_bytes());
        map.insert(key, value, 0).unwrap();
    }
}

fn connection(bytes: [u8; 48]) -> Connection {
    let word = |offset: usize| u32::from_ne_bytes(bytes[offset..][..4].try_into().unwrap());
    Connection {
        seen: u64::from_ne_bytes(bytes[..8].try_into().unwrap()),
        epoch: word(8),
        marks: bytes[12],
        flags: bytes[13],
        frontend_port: [bytes[14], bytes[15]],
        egress_reason: word(16),
        ingress_reason: word(20),
        backend: word(24),
        frontend: bytes[28..44].try_into().unwrap(),
        reserved: [0; 4],
    }
}

impl Seen {
    /// It was dropped, and an event told of it.
    #[track_caller]
    pub fn dropped(self, outcome: Outcome) -> DatapathEvent {
        self.dropped_silently(outcome);
        self.event.unwrap_or_else(|| panic!("no event tells of {outcome:?}"))
    }

    /// It was dropped; the event may have been swallowed by the limit of its flow.
    #[track_caller]
    pub fn dropped_silently(&self, outcome: Outcome) {
        assert_eq!(self.outcome, outcome);
        assert_eq!(self.action, DROP);
        assert_eq!(self.packet, self.sent, "a packet that is dropped is not changed");
    }

    /// It goes on through the stack, as it was.
    #[track_caller]
    pub fn passed(self, outcome: Outcome) {
        assert_eq!((self.outcome, self.action), (outcome, PASS));
        assert_eq!(self.packet, self.sent, "the stack gets the packet as it was");
    }

    /// It goes straight to a pod: both hardware addresses are rewritten and the hop limit is one lower, nothing else.
    #[track_caller]
    pub fn redirected_to(self, pod: Pod, outcome: Outcome) {
        assert_eq!((self.outcome, self.action), (outcome, REDIRECT));
        let mut expected = self.sent;
        expected[..6].copy_from_slice(&pod.mac);
        expected[6..12].copy_from_slice(&pod.host_mac);
        if expected[12..14] == [8, 0] {
            expected[22] -= 1;
            expected[24..26].fill(0);
            let header = 14 + usize::from(expected[14] & 0x0f) * 4;
            let sum = checksum(&expected[14..header]).to_be_bytes();
            expected[24..26].copy_from_slice(&sum);
        } else {
            expected[21] -= 1;
        }
        assert_eq!(self.packet, expected);
    }
}

/// The decisions of an event, each with its reason.
pub fn decisions(event: &DatapathEvent) -> [(Decision, u32); 2] {
    let decision = |byte| Decision::from_byte(byte).unwrap();
    [(decision(event.egress), event.egress_reason), (decision(event.ingress), event.ingress_reason)]
}

/// An address as an event shows it.
pub fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&address.octets());
            wide
        }
        IpAddr::V6(address) => address.octets(),
    }
}
