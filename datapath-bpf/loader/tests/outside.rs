//! Clients outside the cluster, with the stacks of real kernels: a client behind a router, the node, a pod on it, and a backend elsewhere.
//!
//! ```text
//! client --(narrow link)-- router -- node -- pod
//!                                      \---- elsewhere, which has no route but to the node
//! ```

mod stage;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::mpsc,
    time::Duration,
};

use nix::libc;
use palisade_cni::link::Masquerade;
use palisade_datapath_core::abi::{
    Backend, CHUNK, ChunkKey, Endpoint, LocalPod, MARK_MASQUERADE, Outcome, ServiceEntry, TABLE_NONE, backend_flag, service_flag,
};
use palisade_loader::{Datapath, Role, attach};
use palisade_test_support::at_once;
use stage::narrow::{assert_learnt, comes_in_fragments, forget_ways, put_behind};
use stage::talk::{socket, stream_through};
use stage::{Pod, allow, alone, answers, mac, open, run, soon};

const PORT: u16 = 30_080;
const TARGET: u16 = 8080;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// How long something may take that is expected.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

/// The address of one end of the link with a number.
fn address(family: Family, link: u8, end: u8) -> IpAddr {
    match family {
        V4 => Ipv4Addr::new(10, 9, link, end).into(),
        V6 => Ipv6Addr::new(0xfd09, link.into(), 0, 0, 0, 0, 0, end.into()).into(),
    }
}

const ROUTER: u8 = 1;
const POD: u8 = 2;
const ELSEWHERE: u8 = 3;
const SPARE: u8 = 4;
const CLIENT: u8 = 100;

/// Everybody, and what the node has of it.
struct Scene {
    datapath: Datapath,
    router: Pod,
    client: Pod,
    pod: Pod,
    elsewhere: Pod,
}

impl Scene {
    fn new(base: &Path) -> Self {
        let mut datapath = open(base);
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            std::fs::write(Path::new("/proc/sys").join(setting), "1").unwrap();
        }
        let [router, pod, elsewhere, client] = [ROUTER, POD, ELSEWHERE, SPARE].map(|number| {
            let pod = Pod::new(number);
            run(&format!("ip address add {}/64 dev {} nodad", address(V6, number, 1), pod.host));
            pod.inside(move || run(&format!("ip address add {}/64 dev eth0 nodad", address(V6, number, 2))));
            pod
        });
        // The client is behind the router alone.
        client.inside(|| drop(run("ip link delete eth0")));
        put_behind(&router.space, &client.space, &[V4, V6].map(|family| [1, 2].map(|end| address(family, CLIENT, end))));
        for (at, node) in [(&router, ROUTER), (&pod, POD)] {
            at.inside(move || {
                for family in [V4, V6] {
                    run(&format!("ip route add default via {}", address(family, node, 1)));
                }
            });
        }
        for (network, family) in [("10.9.100.0/24", V4), ("fd09:64::/64", V6)] {
            run(&format!("ip route add {network} via {}", address(family, ROUTER, 2)));
        }
        allow(&mut datapath, 1);
        let IpAddr::V6(ipv6) = address(V6, POD, 2) else { unreachable!() };
        let endpoint = Endpoint { ipv6: ipv6.octets(), ..pod.endpoint(1) };
        let local = LocalPod { ifindex: pod.index, pod_mac: endpoint.pod_mac, host_mac: mac(&pod.host), since: 0 };
        for family in [V4, V6] {
            datapath.local.insert(&address(family, POD, 2), &local).unwrap();
            // A pod's link knows both its ends without being asked; here ARP and neighbour discovery would need a gateway of that name.
            let (at, from) = (address(family, POD, 2), address(family, POD, 1));
            run(&format!("ip neighbour replace {at} lladdr {} dev {} nud permanent", text(endpoint.pod_mac), pod.host));
            let host = text(endpoint.host_mac);
            pod.inside(move || run(&format!("ip neighbour replace {from} lladdr {host} dev eth0 nud permanent")));
        }
        datapath.endpoints.insert(&pod.index, &endpoint).unwrap();
        attach(datapath.pin_dir(), Role::Endpoint, &pod.host, pod.index).unwrap();
        for uplink in [&router, &elsewhere] {
            attach(datapath.pin_dir(), Role::Uplink, &uplink.host, uplink.index).unwrap();
        }
        let scene = Self { datapath, router, client, pod, elsewhere };
        // A link takes packets a while after both its ends are up.
        for family in [V4, V6] {
            for (who, node) in [(&scene.client, ROUTER), (&scene.pod, POD), (&scene.elsewhere, ELSEWHERE)] {
                let node = address(family, node, 1);
                soon("everybody reaches the node", || who.inside(move || answers(node)));
            }
        }
        scene
    }

    /// Where a client reaches the node port.
    fn frontend(family: Family) -> SocketAddr {
        (address(family, ROUTER, 1), PORT).into()
    }

    /// Lets the node port lead to a backend.
    fn serve(&mut self, family: Family, protocol: u8, backend: IpAddr) {
        let mut wide = [0; 16];
        match backend {
            IpAddr::V4(address) => wide[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => wide = address.octets(),
        }
        let version = if family == V4 { 4 } else { 6 };
        let flags = backend_flag::CHOSEN_OUTSIDE | backend_flag::SERVING;
        // A number is never given twice.
        let number = u32::try_from(self.datapath.backends.rows().unwrap().len()).unwrap() + 1;
        let row = Backend { address: wide, service: 1, port: TARGET.to_be_bytes(), version, flags };
        self.datapath.backends.insert(&number, &row).unwrap();
        self.datapath.chunks.insert(&ChunkKey { table: number, chunk: 0 }, &[number; CHUNK]).unwrap();
        self.node_port(family, protocol, number);
    }

    fn node_port(&mut self, family: Family, protocol: u8, outside_table: u32) {
        let entry = ServiceEntry { service: 1, outside_table, outside_bits: 6, flags: service_flag::OUTSIDE, ..ServiceEntry::default() };
        self.datapath.services.insert((address(family, ROUTER, 1), PORT, protocol), &entry).unwrap();
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.datapath.counters().unwrap().iter().find(|(of, _)| *of == outcome).unwrap().1.packets
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Makes the node's own address the source of what is marked, and of what pods send out.
fn masquerade() {
    let sources = ["10.9.2.0/24", "fd09:2::/64"].map(|block| block.parse().unwrap()).into();
    Masquerade { sources, mark: MARK_MASQUERADE, ..Masquerade::default() }.apply().unwrap();
}

fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// What a stream carries: more than many packets hold.
const MUCH: usize = 300_000;

/// Takes one connection, tells who made it, sends much, and reads until the other end has closed.
///
/// An address is bound once in a test: a program that another test starts meanwhile may still hold what is closed here.
fn serve_stream(at: &Pod, address: IpAddr) -> mpsc::Receiver<IpAddr> {
    let (tell, told) = mpsc::channel();
    let listener = at.inside(move || TcpListener::bind((address, TARGET)).unwrap());
    at.start(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        tell.send(peer.ip()).unwrap();
        stream.write_all(&[7; MUCH]).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    told
}

/// Connects to the node port and reads much.
fn read_much(client: &Pod, family: Family) {
    client.inside(move || {
        let mut stream = TcpStream::connect_timeout(&Scene::frontend(family), PATIENCE).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), Scene::frontend(family));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut much = vec![0; MUCH];
        stream.read_exact(&mut much).expect("what the server sent comes through the narrow link");
        assert_eq!(much, [7; MUCH]);
    });
}

/// Lengths of datagrams: one that is a packet, and one that goes in fragments.
const LENGTHS: [usize; 2] = [5, 3000];

/// Echoes some datagrams, and tells of each who sent it. Its address is bound once, as that of a stream.
fn serve_datagrams(at: &Pod, address: IpAddr, count: usize) -> mpsc::Receiver<IpAddr> {
    let (tell, told) = mpsc::channel();
    let socket = at.inside(move || UdpSocket::bind((address, TARGET)).unwrap());
    at.start(move || {
        let mut buffer = [0; 4096];
        for _ in 0..count {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..length], peer).unwrap();
            tell.send(peer.ip()).unwrap();
        }
    });
    told
}

/// Sends a datagram of some bytes to the node port from a connected socket, and gives what comes of it.
fn ask(client: &Pod, family: Family, length: usize) -> std::io::Result<Vec<u8>> {
    client.inside(move || {
        let socket = UdpSocket::bind(any(family, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(Scene::frontend(family)).unwrap();
        socket.send(&vec![9; length])?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })
}

#[test]
fn a_pod_sees_the_client_itself_and_learns_the_width_of_the_way_to_it() {
    alone(|base| {
        let mut scene = Scene::new(base);
        masquerade();
        for family in [V4, V6] {
            let backend = address(family, POD, 2);
            scene.serve(family, TCP, backend);
            let peer = serve_stream(&scene.pod, backend);
            read_much(&scene.client, family);
            assert_eq!(peer.recv_timeout(PATIENCE).unwrap(), address(family, CLIENT, 2), "{family:?}");
            assert_learnt(&scene.pod.space, address(family, CLIENT, 2));
            scene.serve(family, UDP, backend);
            let peer = serve_datagrams(&scene.pod, backend, LENGTHS.len());
            for length in LENGTHS {
                assert_eq!(ask(&scene.client, family, length).unwrap(), vec![9; length], "{family:?}");
                assert_eq!(peer.recv_timeout(PATIENCE).unwrap(), address(family, CLIENT, 2), "{family:?}");
            }
        }
        // What the pod sends of its own is masqueraded: the table is in force.
        let peer = serve_datagrams(&scene.client, address(V4, CLIENT, 2), 1);
        scene.pod.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"own", (address(V4, CLIENT, 2), TARGET)).unwrap();
        });
        assert_eq!(peer.recv_timeout(PATIENCE).unwrap(), address(V4, ROUTER, 1));
    });
}

#[test]
fn a_backend_elsewhere_sees_the_node_and_learns_the_width_of_the_way_to_the_client() {
    alone(|base| {
        let mut scene = Scene::new(base);
        masquerade();
        for family in [V4, V6] {
            let backend = address(family, ELSEWHERE, 2);
            scene.serve(family, TCP, backend);
            let peer = serve_stream(&scene.elsewhere, backend);
            read_much(&scene.client, family);
            assert_eq!(peer.recv_timeout(PATIENCE).unwrap(), address(family, ELSEWHERE, 1), "{family:?}");
            assert_learnt(&scene.elsewhere.space, address(family, ELSEWHERE, 1));
            scene.serve(family, UDP, backend);
            let peer = serve_datagrams(&scene.elsewhere, backend, LENGTHS.len());
            for length in LENGTHS {
                assert_eq!(ask(&scene.client, family, length).unwrap(), vec![9; length], "{family:?}");
                assert_eq!(peer.recv_timeout(PATIENCE).unwrap(), address(family, ELSEWHERE, 1), "{family:?}");
            }
        }
    });
}

#[test]
fn a_masqueraded_flow_learns_of_a_narrow_link_beyond_the_uplink() {
    alone(|base| {
        let scene = Scene::new(base);
        masquerade();
        for family in [V4, V6] {
            // Whoever complains on the way knows the node's address alone, and one of its ports.
            let (there, node) = (SocketAddr::from((address(family, CLIENT, 2), TARGET)), address(family, ROUTER, 1));
            let (in_pod, server) = (socket(&scene.pod.space, any(family, 0)), socket(&scene.client.space, there));
            assert_eq!(comes_in_fragments(&in_pod, there, &server).ip(), node, "{family:?}");
            assert_learnt(&scene.pod.space, there.ip());
            // What a datagram has taught, a connection has to learn itself.
            scene.pod.inside(forget_ways);
            let listener = scene.client.inside(move || TcpListener::bind(there).unwrap());
            assert_eq!(stream_through(there, &scene.pod.space, &listener), node, "{family:?}");
            assert_learnt(&scene.pod.space, there.ip());
        }
    });
}

#[test]
fn a_client_is_told_at_once_that_nobody_listens_on_a_backend() {
    alone(|base| {
        let mut scene = Scene::new(base);
        masquerade();
        for family in [V4, V6] {
            for backend in [POD, ELSEWHERE] {
                scene.serve(family, UDP, address(family, backend, 2));
                let error = ask(&scene.client, family, 5).expect_err("nobody answers");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?} {backend}");
                scene.serve(family, TCP, address(family, backend, 2));
                assert_eq!(refused(&scene.client, family), ErrorKind::ConnectionRefused, "{family:?} {backend}");
            }
        }
    });
}

/// How an attempt to connect to the node port fails, which it has to do at once.
fn refused(client: &Pod, family: Family) -> ErrorKind {
    client.inside(move || at_once(|| TcpStream::connect_timeout(&Scene::frontend(family), PATIENCE).expect_err("nobody listens").kind()))
}

#[test]
fn a_client_is_told_at_once_that_there_is_no_backend_whoever_makes_the_checksums() {
    alone(|base| {
        let mut scene = Scene::new(base);
        for offload in [true, false] {
            if !offload {
                // What the client leaves to the link to complete, the kernel of the node completes when it sends the answer, and the
                // client's verifies it.
                leave_no_checksum_to(&scene.router.host);
            }
            for family in [V4, V6] {
                for protocol in [TCP, UDP] {
                    scene.node_port(family, protocol, TABLE_NONE);
                }
                assert_eq!(refused(&scene.client, family), ErrorKind::ConnectionRefused, "{family:?} {offload}");
                let error = ask(&scene.client, family, 50).expect_err("nobody answers");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?} {offload}");
            }
        }
        assert!(scene.count(Outcome::ServiceRefused) >= 8);
    });
}

/// Switches off that a device completes checksums of what it sends.
fn leave_no_checksum_to(interface: &str) {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
    // SAFETY: all zero is an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an interface and points to a command of the size that the kernel reads.
    let answer = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL as _, &mut request) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}
