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
use palisade_datapath_core::epoch;
use palisade_loader::{Datapath, EventRing, Lifetimes, PacketContext, Sizes};
pub use palisade_test_support::packet::wide;
use palisade_test_support::packet::{Mac, Way};
use palisade_test_support::{requires_root, skipped};

use crate::rows::{age, connection, empty, remove};
use crate::seen::{Crossed, Seen};
use crate::stage::{self, runs_packets_that_came_by_an_interface};

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
/// The hardware address of the router on the node's link.
const ROUTER: Mac = [2, 0, 0, 0, 3, 1];

pub struct World {
    pub datapath: Datapath,
    pub a: Pod,
    pub b: Pod,
    /// Index and hardware address of an interface by which the node is reached.
    uplink: (u32, Mac),
    pub events: EventRing,
    lifetimes: Lifetimes,
}

type Job = Box<dyn FnOnce(&mut World) + Send>;

/// Runs a test in the world, as it is at first. The programs are loaded once; one test runs at a time.
pub fn world(test: impl FnOnce(&mut World) + Send + 'static) {
    if may_run() {
        run_in_world(test);
    }
}

/// Whether a test may run here. When it may not, says so.
fn may_run() -> bool {
    if !runs_packets_that_came_by_an_interface() {
        skipped("this kernel runs no packet that came by an interface");
        return false;
    }
    requires_root()
}

fn run_in_world(test: impl FnOnce(&mut World) + Send + 'static) {
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
    if may_run() {
        for family in [V4, V6] {
            run_in_world(move |world| test(world, family));
        }
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
    stage::run("ip link add palu0 type veth peer name palu1");
    let mut world = World::new(stage::open_with(Path::new(directory).join("palisade").as_path(), &sizes()));
    for job in queue {
        world.reset();
        job(&mut world);
    }
}

/// The kernel makes room by up to 128 rows at once (`LOCAL_FREE_TARGET`): with more of them it is known which clients still stay after a flood.
pub fn sizes() -> Sizes {
    Sizes { policy: 4096, ports: 16_384, addresses: 256, prefixes: 256, endpoints: 64, affinity: 256, ..stage::sizes() }
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
        Self { datapath, a, b, uplink: (index("palu0"), stage::mac("palu0")), events, lifetimes: Lifetimes::DEFAULT }
    }

    /// Takes every row away and writes those of two pods that no policy isolates.
    fn reset(&mut self) {
        if self.lifetimes != Lifetimes::DEFAULT {
            self.upgrade(Lifetimes::DEFAULT);
        }
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
        let since = epoch::next(datapath.bump_epoch().unwrap());
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
        datapath.set_overlay_device(None).unwrap();
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
        for prefix in datapath.tunnels.rows().unwrap().keys() {
            datapath.tunnels.remove(prefix).unwrap();
        }
        for address in datapath.nodes.rows().unwrap().keys() {
            datapath.nodes.remove(address).unwrap();
        }
        datapath.set_overlay(None).unwrap();
        empty(self.map::<20, 16>(map::AFFINITY));
        self.forget_connections(V4);
        self.forget_connections(V6);
        empty(self.map::<16, 32>(map::OUTSIDE_V4));
        empty(self.map::<40, 32>(map::OUTSIDE_V6));
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

    /// The way of a packet that comes to the node from the network.
    pub fn arriving(&self, source: IpAddr, destination: IpAddr) -> Way {
        Way::new(ROUTER, source, self.uplink.1, destination)
    }

    /// The way of a packet that leaves the node for the network.
    pub fn leaving(&self, source: IpAddr, destination: IpAddr) -> Way {
        Way::new(self.uplink.1, source, ROUTER, destination)
    }

    /// A packet that comes to the node.
    pub fn arrives(&mut self, packet: Vec<u8>) -> Crossed {
        self.cross(Hook::FromNet, self.uplink.0, packet)
    }

    /// A packet that comes to the node, and that the stack does not see.
    pub fn comes(&mut self, packet: Vec<u8>) -> Seen {
        let uplink = self.uplink.0;
        self.run(Hook::FromNet, uplink, uplink, packet)
    }

    /// Index of the interface by which the node is reached.
    pub fn uplink(&self) -> u32 {
        self.uplink.0
    }

    /// A packet that leaves the node.
    pub fn leaves(&mut self, packet: Vec<u8>) -> Crossed {
        self.cross(Hook::ToNet, 0, packet)
    }

    /// Runs a program of the node's own interface; what it drops or refuses is counted, and nothing else.
    fn cross(&mut self, hook: Hook, ingress_ifindex: u32, packet: Vec<u8>) -> Crossed {
        let before = self.datapath.counters().unwrap();
        let context = PacketContext { ifindex: self.uplink.0, ingress_ifindex, mark: 0, repeat: 1 };
        let run = self.datapath.test_run(hook, &packet, &context).unwrap();
        let after = self.datapath.counters().unwrap();
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        let moved: Vec<Outcome> = moved.map(|((outcome, _), _)| *outcome).collect();
        assert!(moved.len() == usize::from(run.action != PASS), "action {} moved {moved:?}", run.action);
        let outcome = moved.first().copied();
        if let Some(event) = self.events.next().unwrap() {
            assert_eq!((Outcome::from_byte(event.outcome), event.hook, event.ifindex), (outcome, hook as u8, self.uplink.0));
        }
        Crossed { sent: packet, action: run.action, packet: run.packet, mark: run.mark, outcome }
    }

    /// Runs a program over a packet; exactly one counter must move, and an event must say the same as it.
    pub fn run(&mut self, hook: Hook, ifindex: u32, ingress_ifindex: u32, packet: Vec<u8>) -> Seen {
        let before = self.datapath.counters().unwrap();
        let run = self.datapath.test_run(hook, &packet, &PacketContext { ifindex, ingress_ifindex, mark: 0, repeat: 1 }).unwrap();
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
            // A pod's policy speaks for the pod, wherever it is asked.
            let speaker = if hook == Hook::FromNet { Hook::ToPod } else { hook };
            assert_eq!((event.outcome, event.hook), (outcome as u8, speaker as u8), "the event of {outcome:?}");
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

    /// Removes the entries of a family with such flags ([`connection_flag`](palisade_datapath_core::abi::connection_flag)), as evictions do.
    pub fn forget_entries(&self, family: Family, which: impl Fn(u8) -> bool) {
        match family {
            V4 => remove(self.map::<16, 48>(map::CONNECTIONS_V4), |_, entry| which(connection(*entry).flags)),
            V6 => remove(self.map::<40, 48>(map::CONNECTIONS_V6), |_, entry| which(connection(*entry).flags)),
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

    /// Removes what has expired, as the agent does; how many rows.
    pub fn sweep(&mut self) -> usize {
        self.datapath.sweep_connections().into_iter().map(|swept| swept.unwrap().removed).sum()
    }

    /// Another agent takes over, whose programs let flows be silent for so long.
    pub fn upgrade(&mut self, lifetimes: Lifetimes) {
        self.datapath = Datapath::open_timed(&self.datapath.pin_dir().clone(), &sizes(), &lifetimes).unwrap();
        self.lifetimes = lifetimes;
    }

    /// Makes every record of a first fragment so many seconds older.
    pub fn let_fragments_pass(&mut self, family: Family, seconds: u64) {
        match family {
            V4 => age(self.map::<16, 16>(map::FRAGMENTS_V4), seconds * hertz()),
            V6 => age(self.map::<40, 16>(map::FRAGMENTS_V6), seconds * hertz()),
        }
    }

    /// Makes every leg of a flow from outside so many seconds older.
    pub fn let_outside_pass(&mut self, family: Family, seconds: u64) {
        match family {
            V4 => age(self.map::<16, 32>(map::OUTSIDE_V4), seconds * hertz()),
            V6 => age(self.map::<40, 32>(map::OUTSIDE_V6), seconds * hertz()),
        }
    }

    /// The legs that flows from outside have: how many.
    pub fn outside_legs(&self, family: Family) -> usize {
        match family {
            V4 => self.map::<16, 32>(map::OUTSIDE_V4).keys().count(),
            V6 => self.map::<40, 32>(map::OUTSIDE_V6).keys().count(),
        }
    }

    /// Removes the rows of one leg ([`outside_leg`](palisade_datapath_core::abi::outside_leg)) of every flow, as evictions do.
    pub fn forget_leg(&mut self, family: Family, leg: u8) {
        match family {
            V4 => remove(self.map::<16, 32>(map::OUTSIDE_V4), |key, _| key[13] == leg),
            V6 => remove(self.map::<40, 32>(map::OUTSIDE_V6), |key, _| key[37] == leg),
        }
    }

    /// Makes every client's stay with its backend so many seconds older.
    pub fn let_affinity_pass(&mut self, seconds: u64) {
        age(self.map::<20, 16>(map::AFFINITY), seconds * hertz());
    }

    fn map<const KEY: usize, const VALUE: usize>(&self, name: &str) -> HashMap<MapData, [u8; KEY], [u8; VALUE]> {
        stage::table(self.datapath.pin_dir(), name)
    }
}

fn hertz() -> u64 {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap().tv_nsec() as u64;
    (1_000_000_000 + tick / 2) / tick
}
