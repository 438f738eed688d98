//! Services for the node's own processes, which here are the threads of the test: with the kernel's own TCP and UDP at both ends.

use crate::node::{Agent, add, clear, inside, remove, wait};
use crate::service::{Backend, EMPTY, FRONTENDS, OBJECTS, TWO, ask, ask_datagram, run, until, write};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_cni::link::{MacAddress, Namespace, Netlink, Veth};
use palisade_test_support::{Host, at_once, private_host, skipped};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A service whose one endpoint is on another node, and that wants none but those of this one; and one whose clients stay.
const MORE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: shop}
spec: {clusterIP: 10.96.0.12, internalTrafficPolicy: Local, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local-1, namespace: shop, labels: {kubernetes.io/service-name: local}}
addressType: IPv4
ports: [{name: http, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: [10.9.9.9], nodeName: elsewhere, conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: shop}
spec: {clusterIP: 10.96.0.13, selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: http}]}
";
const STICKY: &str = "10.96.0.13:80";

/// A node with addresses of its own, which it sends from, and the cgroups of the machine mounted: as long as the test runs.
pub struct Node {
    cgroup: PathBuf,
    /// A host outside, at the other end of the link by which the node is reached.
    pub outside: Namespace,
}

/// The node's end of that link, and its addresses.
pub const UPLINK: &str = "uplink";
pub const ADDRESSES: [&str; 2] = ["192.0.2.77", "2001:db8::77"];

impl Node {
    pub fn new(host: &Host) -> Self {
        let cgroup = host.directory().join("cgroup");
        std::fs::create_dir(&cgroup).unwrap();
        mount(None::<&str>, &cgroup, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        let outside = Namespace::create().unwrap();
        let [mac, peer_mac] = [1, 2].map(MacAddress::local);
        let link = Veth { name: UPLINK, mac, peer_name: "beyond", peer_mac, peer_namespace: Some(&outside), mtu: 1500 };
        Netlink::open().unwrap().create_veth(&link).unwrap();
        let set_up = |link: &str, addresses: [&str; 2]| {
            run(&format!("ip link set {link} up"));
            run(&format!("ip address add {}/24 dev {link}", addresses[0]));
            run(&format!("ip address add {}/64 dev {link} nodad", addresses[1]));
        };
        set_up(UPLINK, ADDRESSES);
        outside.enter(|| set_up("beyond", ["192.0.2.99", "2001:db8::99"])).unwrap();
        Self { cgroup, outside }
    }

    /// An agent that serves the node, ready; `None` where this kernel cannot, which is said.
    pub fn agent(&self, host: &Host, directory: &Path, more: &[&str]) -> Option<Agent> {
        let mut command = Agent::command(host);
        command.args(["--node-services", "on"]).arg("--cgroup").arg(&self.cgroup).args(more);
        let agent = Agent::from_directory(command, directory);
        let status = wait(host, "the agent is ready", |status| status.ready);
        if status.node_services.contains("Linux 5.14") {
            skipped("this kernel does not tell the cookie of a network namespace");
            agent.kill();
            return None;
        }
        assert_eq!(status.node_services, "served");
        Some(agent)
    }

    /// Takes away what is left when the agent and the pods are gone.
    pub fn leave(self, host: &Host) {
        drop(self);
        clear(host);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        run(&format!("ip link delete {UPLINK}"));
        let _ = umount2(&self.cgroup, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

fn address(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}

/// As a socket of IPv6 names an IPv4 address.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Ok(stream)
}

/// A socket for datagrams that is not connected yet.
fn datagrams(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn connected(to: SocketAddr) -> Result<UdpSocket> {
    let socket = datagrams(to);
    socket.connect(to).map(|()| socket)
}

/// Sends one datagram without connecting: what comes back, and whence.
pub fn exchange(socket: &UdpSocket, to: SocketAddr) -> Result<(String, SocketAddr)> {
    socket.send_to(b"x", to)?;
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
}

fn backend_of(said: &str) -> String {
    said.split(' ').next().unwrap().to_owned()
}

/// Who answers new connections, each of a socket of its own.
fn answers(to: SocketAddr, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| backend_of(&ask(&mut connect(to).unwrap(), 1))).collect()
}

/// The peers of the open connections of this thread's network namespace, as the kernel has them: IPv4 alone, as it writes them.
fn peers() -> String {
    std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap()
}

/// How that file writes an address.
fn written(address: SocketAddr) -> String {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address} is not of IPv4") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())
}

#[test]
fn processes_of_the_node_reach_services_and_see_the_frontend() {
    private_host(|host| {
        let node = Node::new(host);
        let directory = tempfile::tempdir().unwrap();
        // The maps are too small for the services that come: they are replaced under the programs.
        write(directory.path(), &["{apiVersion: v1, kind: Namespace, metadata: {name: shop}}"]);
        let small = ["--map-size", "services=1,backends=1,chunks=1"];
        let Some(agent) = node.agent(host, directory.path(), &small) else { return node.leave(host) };
        write(directory.path(), &[OBJECTS, MORE]);
        let one = Backend::start(host, "one", 8080, 5353);
        let addresses = FRONTENDS.map(|frontend| (address(frontend, 80), address(frontend, 53)));
        let as_ipv6 = (mapped(addresses[0].0), mapped(addresses[0].1));
        for (http, dns) in [addresses[0], addresses[1], as_ipv6] {
            until("the backend stands behind the service", || connect(http).is_ok());
            let mut stream = connect(http).unwrap();
            assert!(ask(&mut stream, 400_000).starts_with("one "));
            assert_eq!(stream.peer_addr().unwrap(), http);
            let socket = connected(dns).unwrap();
            assert!(ask_datagram(&socket, 5).unwrap().starts_with("one "));
            assert_eq!(socket.peer_addr().unwrap(), dns);
            let mut buffer = [0; 64];
            socket.send(b"x").unwrap();
            assert_eq!(socket.recv_from(&mut buffer).unwrap().1, dns, "of a connected one, too");
            let (said, from) = exchange(&datagrams(dns), dns).unwrap();
            assert!(said.starts_with("one "), "{said}");
            assert_eq!(from, dns);
        }
        // The same socket through the service and around it: it sees whom it named last.
        let (direct, frontend) = (SocketAddr::new(one.addresses[0], 5353), addresses[0].1);
        let socket = datagrams(direct);
        for to in [direct, frontend, direct, frontend] {
            assert_eq!(exchange(&socket, to).unwrap().1, to);
        }
        // The packets go to the backend: no packet of the node is translated, so the kernel knows the backend as the peer.
        let kept = connect(addresses[0].0).unwrap();
        let backend = written(SocketAddr::new(one.addresses[0], 8080));
        assert!(peers().contains(&backend), "{}", peers());
        // A pod's socket is not touched: its packets are translated instead.
        add(host, "shop", "client");
        let (frontend, of_pod) = (written(addresses[0].0), || {
            let stream = connect(addresses[0].0).unwrap();
            (stream, peers())
        });
        let (stream, peers) = inside(host, "shop", "client").enter(of_pod).unwrap();
        assert!(peers.contains(&frontend) && !peers.contains(&backend), "{peers}");
        drop((stream, kept));

        let refused = |to: &str, kind: ErrorKind| {
            let (http, dns) = (address(to, 80), address(to, 53));
            let mut ways = vec![(http, dns)];
            if http.is_ipv4() {
                ways.push((mapped(http), mapped(dns)));
            }
            for (http, dns) in ways {
                at_once(|| {
                    assert_eq!(connect(http).unwrap_err().kind(), kind, "{http}");
                    assert_eq!(connected(dns).unwrap_err().kind(), kind, "{dns}");
                    assert_eq!(datagrams(dns).send_to(b"x", dns).unwrap_err().kind(), kind, "{dns}");
                });
            }
        };
        EMPTY.iter().for_each(|to| refused(to, ErrorKind::ConnectionRefused));
        refused("10.96.0.12", ErrorKind::HostUnreachable);
        // A port that no service has is left as it is: this node has no route there.
        assert_eq!(connect(address(FRONTENDS[0], 81)).unwrap_err().kind(), ErrorKind::NetworkUnreachable);

        agent.kill();
        remove(host, "shop", "one");
        remove(host, "shop", "client");
        node.leave(host);
    });
}

#[test]
fn sockets_of_the_node_follow_their_services_and_outlive_the_agent_until_it_is_told_to_stop() {
    private_host(|host| {
        let node = Node::new(host);
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[OBJECTS, MORE, TWO]);
        let Some(agent) = node.agent(host, directory.path(), &[]) else { return node.leave(host) };
        let (one, two) = (Backend::start(host, "one", 8080, 5353), Backend::start(host, "two", 9090, 5354));
        let both = BTreeSet::from([one.name.to_owned(), two.name.to_owned()]);
        for frontend in FRONTENDS {
            let http = address(frontend, 80);
            until("both backends answer", || (0..40).map(|_| connect(http)).all(|stream| stream.is_ok()) && answers(http, 40) == both);
        }
        let sticky: SocketAddr = STICKY.parse().unwrap();
        let stays = answers(sticky, 20);
        assert_eq!(stays.len(), 1, "the node is one client, and stays: {stays:?}");

        // A socket that is not connected stays with its backend; others go elsewhere.
        let dns = address(FRONTENDS[0], 53);
        let with = |name: &str| {
            let found = (0..100).map(|_| datagrams(dns)).find(|socket| backend_of(&exchange(socket, dns).unwrap().0) == name);
            found.expect("some socket comes to each")
        };
        let to_one = with("one");
        with("two");
        assert!((0..10).all(|_| exchange(&to_one, dns).unwrap().0.starts_with("one ")));
        let connected_to = |name: &str, to: SocketAddr| {
            let found = (0..100).map(|_| connected(to).unwrap()).find(|socket| backend_of(&ask_datagram(socket, 1).unwrap()) == name);
            found.expect("some socket comes to each")
        };
        let ended = [connected_to("one", dns), connected_to("one", mapped(dns)), connected_to("one", address(FRONTENDS[1], 53))];
        let goes_on = connected_to("two", dns);
        // To the same backend, and by no service: nobody's business.
        let direct = connected(SocketAddr::new(one.addresses[0], 5353)).unwrap();
        let mut stream = loop {
            let mut stream = connect(address(FRONTENDS[0], 80)).unwrap();
            if ask(&mut stream, 1).starts_with("one ") {
                break stream;
            }
        };

        agent.kill();
        assert!(exchange(&to_one, dns).unwrap().0.starts_with("one "), "without an agent");
        assert_eq!(answers(address(FRONTENDS[1], 80), 40), both, "without an agent");
        let agent = node.agent(host, directory.path(), &[]).unwrap();
        assert!(exchange(&to_one, dns).unwrap().0.starts_with("one "), "with the next one");

        // The first one serves no more.
        write(directory.path(), &[&OBJECTS.replacen("labels: {app: web}", "labels: {app: old}", 1), MORE, TWO]);
        for to in [address(FRONTENDS[0], 80), address(FRONTENDS[1], 80), sticky] {
            until("the second one answers alone", || answers(to, 20) == BTreeSet::from(["two".to_owned()]));
        }
        assert!(exchange(&to_one, dns).unwrap().0.starts_with("two "), "datagrams leave it");
        for socket in &ended {
            until("what is connected for datagrams is told", || ask_datagram(socket, 1).is_err());
        }
        assert!(ask_datagram(&goes_on, 1).unwrap().starts_with("two "));
        assert!(ask_datagram(&direct, 1).unwrap().starts_with("one "), "by no service");
        assert!(ask(&mut stream, 1).starts_with("one "), "a connection goes on");

        // Told to stop: a service's address is nothing to the node any more.
        agent.kill();
        let mut command = Agent::command(host);
        command.args(["--node-services", "off"]);
        let agent = Agent::from_directory(command, directory.path());
        assert_eq!(wait(host, "the agent is ready", |status| status.ready).node_services, "off");
        assert_eq!(connect(address(FRONTENDS[0], 80)).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
        assert!(!host.bpffs().join("palisade/v1/sockets").exists());
        agent.kill();
        drop(stream);
        remove(host, "shop", "one");
        remove(host, "shop", "two");
        node.leave(host);
    });
}

#[test]
fn a_program_of_sockets_that_was_lost_is_attached_anew_when_maps_grow() {
    private_host(|host| {
        let node = Node::new(host);
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[OBJECTS]);
        let Some(agent) = node.agent(host, directory.path(), &["--map-size", "services=1,backends=1,chunks=1"]) else {
            return node.leave(host);
        };
        Backend::start(host, "one", 8080, 5353);
        let http = address(FRONTENDS[0], 80);
        until("the backend stands behind the service", || connect(http).is_ok());
        // What a growth leaves of a program that it could not replace.
        std::fs::remove_file(host.bpffs().join("palisade/v1/sockets/connect4")).unwrap();
        until("its link ends", || connect(http).is_err_and(|error| error.kind() == ErrorKind::NetworkUnreachable));
        let further = |number| {
            format!(
                "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: further-{number}, namespace: shop}}\nspec: {{clusterIP: 10.96.1.{number}, ports: [{{port: 80}}]}}"
            )
        };
        let further: String = (1..50).map(further).collect();
        write(directory.path(), &[OBJECTS, &further]);
        until("the service is reached again", || connect(http).is_ok());
        assert_eq!(wait(host, "the agent is ready", |status| status.ready).node_services, "served");
        agent.kill();
        remove(host, "shop", "one");
        node.leave(host);
    });
}

#[test]
fn an_agent_that_finds_no_cgroup_is_ready_and_says_why_the_node_is_not_served() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[OBJECTS]);
        let mut command = Agent::command(host);
        command.args(["--node-services", "on", "--cgroup", "/proc"]);
        let agent = Agent::from_directory(command, directory.path());
        let status = wait(host, "the agent is ready", |status| status.ready);
        assert!(status.node_services.contains("/proc is not in a file system of cgroups"), "{}", status.node_services);
        agent.kill();
        clear(host);
    });
}
