//! A policy that flips between two contents while pods send: no packet is judged by a mixture of them.
//!
//! The pod `web` takes packets from the pods `a` and `b`, or from `b` and `c`. An agent follows a thousand changes.

use crate::node::{Agent, MANIFESTS, add, clear, inside, remove, wait, with_kubeconfig};
use crate::server::{Answer, Server};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use palisade_test_support::{Host, private_host};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CHANGES: u64 = 1_000;
/// How long a packet that must arrive, or a change, may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 53;
/// The source port of the established flows.
const ESTABLISHED: u16 = 1_023;
/// The source ports of new flows: each is used once per port of the one that is sent to. A port that comes again would
/// belong to a flow that is known still.
const FRESH: std::ops::Range<u64> = 1_024..65_024;
/// The version that the server's list of policies has.
const LISTED: u64 = 7;

/// What is sent: each packet says which pod it is from, whether its flow is established, and its number.
type Packet = (Role, bool, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    A,
    B,
    C,
}

impl Role {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    fn name(self) -> &'static str {
        ["a", "b", "c"][self as usize]
    }
}

/// Three pods that send to one, over one family, one packet after the other.
struct Traffic<'a> {
    host: &'a Host,
    from: [IpAddr; 3],
    to: SocketAddr,
    web: UdpSocket,
    established: [UdpSocket; 3],
    number: u64,
    arrived: BTreeSet<Packet>,
}

impl<'a> Traffic<'a> {
    fn new(host: &'a Host, from: [IpAddr; 3], at: IpAddr) -> Self {
        let to = SocketAddr::new(at, PORT);
        let web = inside(host, "shop", "web").enter(|| UdpSocket::bind(to)).unwrap().unwrap();
        let established = Role::ALL.map(|role| flow(host, role, (from[role as usize], ESTABLISHED).into(), to));
        Self { host, from, to, web, established, number: 0, arrived: BTreeSet::new() }
    }

    /// The next number. Where all source ports have been used, everything goes to another port from now on.
    fn next(&mut self) -> u64 {
        self.number += 1;
        if self.number.is_multiple_of(FRESH.end - FRESH.start) {
            self.to.set_port(self.to.port() + 1);
            self.web = inside(self.host, "shop", "web").enter(|| UdpSocket::bind(self.to)).unwrap().unwrap();
            for established in &self.established {
                established.connect(self.to).unwrap();
            }
        }
        self.number
    }

    /// Sends a packet of a new flow, and one of the pod's established flow. Both are judged before the next ones are: all
    /// packets of a CPU wait in one queue.
    fn send(&mut self, role: Role) -> u64 {
        let fresh_port = u16::try_from(FRESH.start + self.next() % (FRESH.end - FRESH.start)).unwrap();
        for established in [false, true] {
            let fresh;
            let socket = if established {
                &self.established[role as usize]
            } else {
                fresh = flow(self.host, role, (self.from[role as usize], fresh_port).into(), self.to);
                &fresh
            };
            let mut bytes = [0; 10];
            bytes[0] = role as u8;
            bytes[1] = u8::from(established);
            bytes[2..].copy_from_slice(&self.number.to_be_bytes());
            socket.send(&bytes).unwrap();
        }
        self.number
    }

    /// Waits until the first content is in force: until `a` and `b` get through.
    fn until_open(&mut self) {
        let since = Instant::now();
        for role in [Role::A, Role::B] {
            self.web.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            while self.web.recv(&mut [0; 10]).is_err() {
                assert!(since.elapsed() < PATIENCE, "{role:?} is not let in");
                self.send(role);
            }
            // What else has arrived.
            while self.web.recv(&mut [0; 10]).is_ok() {}
        }
    }

    /// Reads what has arrived until the packet has. It was sent after all others, so these have arrived by then, or never will.
    fn await_packet(&mut self, wanted: Packet) {
        self.web.set_read_timeout(Some(PATIENCE)).unwrap();
        self.arrived.clear();
        while !self.arrived.contains(&wanted) {
            let mut bytes = [0; 10];
            let length =
                self.web.recv(&mut bytes).unwrap_or_else(|error| panic!("{wanted:?} was lost: {error}; arrived: {:?}", self.arrived));
            assert_eq!(length, bytes.len());
            let number = u64::from_be_bytes(bytes[2..].try_into().unwrap());
            self.arrived.insert((Role::ALL[usize::from(bytes[0])], bytes[1] == 1, number));
        }
    }
}

/// The manifest of a pod.
fn role_of(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{role: {name}}}}}\nspec: {{containers: [{{name: c, image: c}}]}}\n"
    )
}

/// A socket of a pod.
fn flow(host: &Host, role: Role, from: SocketAddr, to: SocketAddr) -> UdpSocket {
    inside(host, "shop", role.name())
        .enter(|| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            Ok::<_, std::io::Error>(socket)
        })
        .unwrap()
        .unwrap()
}

/// One CPU's queue keeps the order of what this thread sends.
fn stay_on_this_cpu() {
    let mut one = CpuSet::new();
    one.set(nix::sched::sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// What the watcher has seen.
#[derive(Debug, Default)]
struct Seen {
    rounds: u64,
    /// Rounds that lie within one change, so that a mixture would have been recognised.
    conclusive: u64,
    /// Of these, rounds in which the change was not in force yet.
    before: u64,
}

#[test]
fn no_packet_of_pods_sees_a_mixture_while_a_policy_flips_a_thousand_times() {
    private_host(|host| {
        // The server answers no question about one pod, so another agent has wired them. It looks at its directory five times
        // a second; a server tells at once.
        let directory = tempfile::tempdir().unwrap();
        let roles = Role::ALL.map(|role| role_of(role.name()));
        std::fs::write(directory.path().join("shop.yaml"), [MANIFESTS, &roles.concat()].concat()).unwrap();
        let wiring = Agent::on_directory(host, directory.path());
        let at = add(host, "shop", "web");
        let from = Role::ALL.map(|role| add(host, "shop", role.name()));
        wiring.kill();
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(address, Answer::Objects);
        let agent = with_kubeconfig(host, directory.path(), address);
        wait(host, "the agent is ready", |status| status.ready);

        // The number of the change that was told last, and of the last one that was seen in force over every family. Odd
        // ones lead from `a`, `b` to `b`, `c`.
        let (begun, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        let in_force = [AtomicU64::new(0), AtomicU64::new(0)];
        server.admit(&["a", "b"], LISTED + 1);
        let mut traffic: Vec<Traffic<'_>> = at
            .iter()
            .map(|at| {
                let from = from.each_ref().map(|of_pod| *of_pod.iter().find(|from| from.is_ipv4() == at.is_ipv4()).unwrap());
                Traffic::new(host, from, *at)
            })
            .collect();
        traffic.iter_mut().for_each(Traffic::until_open);
        let seen = std::thread::scope(|scope| {
            let watchers: Vec<_> = traffic
                .iter_mut()
                .zip(&in_force)
                .map(|(traffic, in_force)| scope.spawn(|| watch(traffic, &begun, in_force, &ended)))
                .collect();
            for change in 1..=CHANGES {
                let roles = if change % 2 == 1 { ["b", "c"] } else { ["a", "b"] };
                begun.store(change, Ordering::SeqCst);
                server.admit(&roles, LISTED + 1 + change);
                let since = Instant::now();
                while in_force.iter().any(|seen| seen.load(Ordering::SeqCst) < change)
                    && !watchers.iter().any(|watcher| watcher.is_finished())
                {
                    assert!(since.elapsed() < PATIENCE, "change {change} is not in force");
                    std::thread::sleep(Duration::from_micros(200));
                }
                if watchers.iter().any(|watcher| watcher.is_finished()) {
                    break;
                }
            }
            ended.store(true, Ordering::SeqCst);
            watchers.into_iter().map(|watcher| watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect::<Vec<_>>()
        });
        println!("{seen:?}");
        for seen in seen {
            assert!(seen.conclusive >= CHANGES && seen.before >= CHANGES / 4, "the test would have seen little: {seen:?}");
        }
        drop(traffic);
        agent.kill();
        for pod in ["web", "a", "b", "c"] {
            remove(host, "shop", pod);
        }
        clear(host);
    });
}

/// Sends, as long as changes come: first from whom a change lets in, then from whom it shuts out, then from `b`.
fn watch(traffic: &mut Traffic<'_>, begun: &AtomicU64, in_force: &AtomicU64, ended: &AtomicBool) -> Seen {
    stay_on_this_cpu();
    let mut seen = Seen::default();
    while !ended.load(Ordering::SeqCst) {
        let change = begun.load(Ordering::SeqCst);
        let (entering, leaving) = if change % 2 == 1 { (Role::C, Role::A) } else { (Role::A, Role::C) };
        let entered = traffic.send(entering);
        let left = traffic.send(leaving);
        let stayed = traffic.send(Role::B);
        // Allowed by both contents: neither flow may lose a packet.
        traffic.await_packet((Role::B, true, stayed));
        assert!(traffic.arrived.contains(&(Role::B, false, stayed)), "change {change}: a new flow of b was refused");
        let passed = |role, established, number| traffic.arrived.contains(&(role, established, number));
        seen.rounds += 1;
        // Else the packets may belong to two changes.
        if begun.load(Ordering::SeqCst) == change {
            seen.conclusive += 1;
            let open = passed(entering, false, entered);
            assert!(
                !(open && passed(leaving, false, left)),
                "change {change}: {entering:?} and then {leaving:?} passed, one of each content"
            );
            // An established flow is judged again once the change has ended: a moment later.
            if !open {
                seen.before += 1;
            } else if passed(entering, true, entered) && !passed(leaving, true, left) {
                in_force.store(change, Ordering::SeqCst);
            }
        }
    }
    seen
}
