//! The connection table with the TCP of real kernels: two pods of a node, over both families.

mod stage;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc::linger,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket,
        sockopt::{Linger, ReuseAddr},
    },
};
use palisade_datapath_core::abi::{Direction, Endpoint, IDENTITY_ANY, LocalPod, Outcome, PolicyEntry, PolicyKey, RowVerdict};
use palisade_loader::{Datapath, Lifetimes, PinDir, Role, attach};
use stage::{Pod, allow, alone, mac, open, run, sizes, soon};

/// How long something may take that is expected.
const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT: u16 = 7001;
const SERVER: u16 = 7002;
/// The numbers of the pods, which are those of their links and of their subjects.
const A: u8 = 1;
const B: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

/// The address of one end of a pod's link: 1 is the node's, 2 the pod's.
fn address(family: Family, pod: u8, end: u8) -> IpAddr {
    match family {
        V4 => Ipv4Addr::new(10, 9, pod, end).into(),
        V6 => Ipv6Addr::new(0xfd09, pod.into(), 0, 0, 0, 0, 0, end.into()).into(),
    }
}

/// Two pods that may do everything, without programs.
struct Scene {
    datapath: Datapath,
    a: Pod,
    b: Pod,
}

impl Scene {
    fn new(base: &Path) -> Self {
        let mut datapath = open(base);
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            std::fs::write(Path::new("/proc/sys").join(setting), "1").unwrap();
        }
        let [a, b] = [A, B].map(|number| {
            let pod = Pod::new(number);
            allow(&mut datapath, number.into());
            run(&format!("ip address add {}/64 dev {} nodad", address(V6, number, 1), pod.host));
            pod.inside(move || run(&format!("ip address add {}/64 dev eth0 nodad", address(V6, number, 2))));
            let IpAddr::V6(ipv6) = address(V6, number, 2) else { unreachable!() };
            let endpoint = Endpoint { ipv6: ipv6.octets(), ..pod.endpoint(number.into()) };
            let local = LocalPod { ifindex: pod.index, pod_mac: endpoint.pod_mac, host_mac: mac(&pod.host), since: 0 };
            for family in [V4, V6] {
                let (at, from) = (address(family, number, 2), address(family, number, 1));
                datapath.local.insert(&at, &local).unwrap();
                // Both ends know each other without asking: for programs, the node's end has another address than here.
                run(&format!("ip neighbour replace {at} lladdr {} dev {} nud permanent", text(endpoint.pod_mac), pod.host));
                let host = text(endpoint.host_mac);
                pod.inside(move || {
                    run(&format!("ip neighbour replace {from} lladdr {host} dev eth0 nud permanent"));
                    run(&format!("ip route add default via {from}"));
                });
            }
            datapath.endpoints.insert(&pod.index, &endpoint).unwrap();
            pod
        });
        Self { datapath, a, b }
    }

    /// As the agent does it, whatever flows there are.
    fn attach(&self) {
        for pod in [&self.a, &self.b] {
            attach(self.datapath.pin_dir(), Role::Endpoint, &pod.host, pod.index).unwrap();
        }
    }

    /// Lets a pod open nothing, or lets nobody open anything to it.
    fn isolate(&mut self, pod: u8, direction: Direction) {
        let entry = PolicyEntry { verdict: RowVerdict::DefaultDeny as u8, ..PolicyEntry::default() };
        self.datapath.policy.insert(&PolicyKey::new(pod.into(), direction, IDENTITY_ANY), &entry).unwrap();
        self.datapath.bump_epoch().unwrap();
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.datapath.counters().unwrap()[outcome as usize].1.packets
    }

    /// Waits for a packet that comes to this.
    fn sees(&self, outcome: Outcome, cause: impl FnOnce()) {
        let before = self.count(outcome);
        cause();
        soon(outcome.name(), || self.count(outcome) > before);
    }

    /// A listens nowhere, B at its port. Returns both ends of a connection that A opens.
    fn connect(&self, family: Family) -> (TcpStream, TcpStream) {
        let server = self.b.inside(move || listening(family));
        let client = self.a.inside(move || opened(family));
        let (accepted, _) = server.accept().unwrap();
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        (client, accepted)
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A socket at a port of a pod, also where the one before has just left it.
fn bound(family: Family, pod: u8, port: u16, flags: SockFlag) -> OwnedFd {
    let of = if family == V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(of, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address(family, pod, 2), port))).unwrap();
    socket
}

fn listening(family: Family) -> TcpListener {
    let socket = bound(family, B, SERVER, SockFlag::empty());
    listen(&socket, Backlog::new(8).unwrap()).unwrap();
    socket.into()
}

/// A connection from A's port to B's.
fn opened(family: Family) -> TcpStream {
    stream(bound(family, A, CLIENT, SockFlag::empty()), address(family, B, 2), SERVER)
}

fn stream(socket: OwnedFd, to: IpAddr, port: u16) -> TcpStream {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, port))).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[track_caller]
fn says(from: &mut TcpStream, to: &mut TcpStream, what: &[u8; 4]) {
    from.write_all(what).unwrap();
    hears(to, what);
}

#[track_caller]
fn hears(stream: &mut TcpStream, what: &[u8; 4]) {
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, what);
}

/// Each end says something that the other one hears.
#[track_caller]
fn converse(one: &mut TcpStream, other: &mut TcpStream) {
    says(one, other, b"ping");
    says(other, one, b"pong");
}

fn each_family(test: impl Fn(Scene, Family) + Sync) {
    for family in [V4, V6] {
        alone(|base| test(Scene::new(base), family));
    }
}

/// A's SYN gets lost behind the programs, and B sends its own, from the port that A's goes to.
fn simultaneous_open(scene: &Scene, family: Family, judged: Outcome) {
    // What A sends finds no way back, so it is as if it had never come.
    let a = address(family, A, 2);
    let bits = if family == V4 { 32 } else { 128 };
    scene.b.inside(move || run(&format!("ip route add blackhole {a}/{bits}")));
    let mut first = None;
    scene.sees(Outcome::AllowedNew, || {
        first = Some(scene.a.inside(move || {
            let socket = bound(family, A, CLIENT, SockFlag::SOCK_NONBLOCK);
            let to = SockaddrStorage::from(SocketAddr::new(address(family, B, 2), SERVER));
            assert_eq!(connect(socket.as_raw_fd(), &to), Err(Errno::EINPROGRESS));
            socket
        }));
    });
    scene.b.inside(move || run(&format!("ip route del blackhole {a}/{bits}")));
    let mut other = None;
    // Nobody listens: there is no other way for either of them to be connected.
    scene.sees(judged, || {
        other = Some(scene.b.inside(move || stream(bound(family, B, SERVER, SockFlag::empty()), a, CLIENT)));
    });
    let mut first = TcpStream::from(first.unwrap());
    first.set_nonblocking(false).unwrap();
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    converse(&mut other.unwrap(), &mut first);
}

#[test]
fn two_pods_that_open_at_once_are_connected() {
    each_family(|scene, family| {
        scene.attach();
        simultaneous_open(&scene, family, Outcome::AllowedNew);
    });
}

#[test]
fn two_pods_that_open_at_once_are_connected_though_one_of_them_may_not_open() {
    each_family(|mut scene, family| {
        scene.isolate(B, Direction::Egress);
        scene.attach();
        simultaneous_open(&scene, family, Outcome::EgressDefaultDenied);
    });
}

#[test]
fn the_ports_of_a_connection_that_has_ended_are_used_again_at_once() {
    each_family(|mut scene, family| {
        // B may open nothing: all that it sends has to be an answer to the connection at hand.
        scene.isolate(B, Direction::Egress);
        scene.attach();
        for reset in [false, true, false, true] {
            let mut ends = None;
            scene.sees(Outcome::AllowedNew, || ends = Some(scene.connect(family)));
            let (mut client, mut server) = ends.unwrap();
            converse(&mut client, &mut server);
            if reset {
                setsockopt(&client, Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
                drop(client);
                assert!(server.read(&mut [0; 4]).is_err(), "the reset has come");
            } else {
                // Who ends first keeps the ports for a while (TIME_WAIT): the server, which the next connection comes to.
                drop(server);
                assert_eq!(client.read(&mut [0; 4]).unwrap(), 0);
                drop(client);
            }
        }
    });
}

#[test]
fn a_connection_that_is_older_than_the_programs_goes_on_with_the_end_that_may_open_it() {
    each_family(|mut scene, family| {
        let (mut client, mut server) = scene.connect(family);
        converse(&mut client, &mut server);
        scene.isolate(B, Direction::Egress);
        scene.attach();
        // Whether A opened it nobody knows, before A says something.
        scene.sees(Outcome::EgressDefaultDenied, || server.write_all(b"late").unwrap());
        scene.sees(Outcome::AllowedNew, || client.write_all(b"ping").unwrap());
        hears(&mut server, b"ping");
        hears(&mut client, b"late");
        converse(&mut server, &mut client);
    });
}

#[test]
fn a_connection_that_is_older_than_the_programs_ends_where_no_end_may_open_it() {
    each_family(|mut scene, family| {
        let (mut client, mut server) = scene.connect(family);
        converse(&mut client, &mut server);
        scene.isolate(B, Direction::Egress);
        scene.isolate(B, Direction::Ingress);
        scene.attach();
        scene.sees(Outcome::IngressDefaultDenied, || client.write_all(b"ping").unwrap());
        scene.sees(Outcome::EgressDefaultDenied, || server.write_all(b"pong").unwrap());
        for end in [&mut client, &mut server] {
            end.set_nonblocking(true).unwrap();
            assert!(end.read(&mut [0; 4]).is_err(), "nothing has come through");
        }
    });
}

#[test]
fn a_connection_lives_on_over_an_upgrade_of_the_programs() {
    each_family(|mut scene, family| {
        scene.isolate(B, Direction::Egress);
        scene.attach();
        let (mut client, mut server) = scene.connect(family);
        converse(&mut client, &mut server);
        let opened = scene.count(Outcome::AllowedNew);
        for seconds in 1000..1003 {
            let lifetimes = Lifetimes { datagram: seconds, ..Lifetimes::DEFAULT };
            let pin: PinDir = scene.datapath.pin_dir().clone();
            scene.datapath = Datapath::open_timed(&pin, &sizes(), &lifetimes).unwrap();
            // The end that may not open speaks first: without the entry it would be denied.
            converse(&mut server, &mut client);
        }
        assert_eq!((scene.count(Outcome::EgressDefaultDenied), scene.count(Outcome::AllowedNew)), (0, opened), "nobody was judged again");
    });
}
