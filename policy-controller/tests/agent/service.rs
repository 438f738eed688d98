//! Services, with the kernel's own TCP and UDP at both ends.

use crate::node::{Agent, METRICS, add, clear, counted, inside, remove, wait};
use palisade_test_support::{Host, private_host};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

pub const OBJECTS: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: web, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: client, image: client}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.10, 'fd96::10']
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: dns, port: 53, targetPort: dns, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  clusterIPs: [10.96.0.11, 'fd96::11']
  ipFamilyPolicy: RequireDualStack
  selector: {app: nobody}
  ports:
  - {name: http, port: 80}
  - {name: dns, port: 53, protocol: UDP}
";
/// A second backend.
pub const TWO: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: web, ports: [{name: http, containerPort: 9090}, {name: dns, containerPort: 5354, protocol: UDP}]}]}
";
pub const FRONTENDS: [&str; 2] = ["10.96.0.10", "fd96::10"];
pub const EMPTY: [&str; 2] = ["10.96.0.11", "fd96::11"];
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A backend: answers over both families with its name and with whom it talks to, until the host is gone.
pub struct Backend {
    pub name: &'static str,
    pub addresses: Vec<IpAddr>,
}

impl Backend {
    pub fn start(host: &Host, name: &'static str, tcp: u16, udp: u16) -> Self {
        let addresses = add(host, "shop", name);
        for address in &addresses {
            let address = *address;
            let (listener, socket) = inside(host, "shop", name)
                .enter(|| (TcpListener::bind((address, tcp)).unwrap(), UdpSocket::bind((address, udp)).unwrap()))
                .unwrap();
            // Both threads end with the process, and the sockets are of the pod's namespace.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    std::thread::spawn(move || {
                        let from = stream.peer_addr().unwrap();
                        let mut buffer = vec![0; 65_536];
                        while let Ok(length @ 1..) = stream.read(&mut buffer) {
                            let answer = format!("{name} {from} {length};");
                            if stream.write_all(answer.as_bytes()).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(format!("{name} {from} {length};").as_bytes(), from);
                }
            });
        }
        Self { name, addresses }
    }
}

/// An open connection of the client through a frontend.
pub fn connect(host: &Host, pod: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = inside(host, "shop", pod).enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// Sends so many bytes and reads one answer.
pub fn ask(stream: &mut TcpStream, bytes: usize) -> String {
    try_ask(stream, bytes).unwrap()
}

/// As [`ask`], where the connection may end.
pub fn try_ask(stream: &mut TcpStream, bytes: usize) -> std::io::Result<String> {
    stream.write_all(&vec![7; bytes])?;
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    let mut heard = 0;
    while heard < bytes {
        let length = stream.read(&mut buffer)?;
        assert!(length > 0, "closed after {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        heard = answer.split(';').filter_map(|part| part.split(' ').nth(2)?.parse::<usize>().ok()).sum();
    }
    Ok(answer)
}

/// Asserts that what is refused is refused at once, in one of three attempts at least, as this machine may be busy: with a second SYN each takes a second.
pub fn at_once(mut attempt: impl FnMut()) {
    let mut took = || {
        let began = Instant::now();
        attempt();
        began.elapsed()
    };
    let quickest = (0..3).map(|_| took()).min().unwrap();
    assert!(quickest < Duration::from_millis(900), "the quickest of three attempts took {quickest:?}");
}

/// A socket of a pod at a port, or at any where that is 0, for datagrams to an address.
pub fn socket(host: &Host, pod: &str, port: u16, to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = inside(host, "shop", pod).enter(|| UdpSocket::bind((any, port))).unwrap().unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

pub fn ask_datagram(socket: &UdpSocket, bytes: usize) -> std::io::Result<String> {
    socket.send(&vec![7; bytes])?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Which backend answers a new connection.
pub fn answers(host: &Host, to: SocketAddr) -> String {
    ask(&mut connect(host, "client", to).unwrap(), 1).split(' ').next().unwrap().to_owned()
}

/// The agent never sees half a file.
pub fn write(directory: &Path, parts: &[&str]) {
    let part = directory.join("shop.part");
    std::fs::write(&part, parts.concat()).unwrap();
    std::fs::rename(part, directory.join("shop.yaml")).unwrap();
}

/// Waits until what `seen` says is so.
pub fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let since = Instant::now();
    while !seen() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn pods_reach_services_and_connections_outlive_their_changes_and_the_agent() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[OBJECTS]);
        let agent = Agent::on_directory(host, directory.path());
        let one = Backend::start(host, "one", 8080, 5353);
        let client = add(host, "shop", "client");
        let mut kept = Vec::new();
        for (frontend, from) in FRONTENDS.iter().zip(&client) {
            let (http, dns): (SocketAddr, SocketAddr) =
                ((frontend.parse::<IpAddr>().unwrap(), 80).into(), (frontend.parse::<IpAddr>().unwrap(), 53).into());
            until("the backend stands behind the service", || connect(host, "client", http).is_ok());
            let mut stream = connect(host, "client", http).unwrap();
            let port = stream.local_addr().unwrap().port();
            let said = ask(&mut stream, 1);
            assert_eq!(said, format!("one {} 1;", SocketAddr::new(*from, port)), "the backend sees the client as it is");
            assert_eq!(stream.peer_addr().unwrap(), http);
            // Large segments, whose checksums the kernel leaves to the device.
            ask(&mut stream, 400_000);
            let datagrams = socket(host, "client", 0, dns);
            assert!(ask_datagram(&datagrams, 5).unwrap().starts_with(one.name));
            // In fragments, both ways of one flow.
            assert!(ask_datagram(&datagrams, 4_000).unwrap().ends_with(" 4000;"));
            // The pod behind the service reaches itself by it.
            let said = ask(&mut connect(host, "one", http).unwrap(), 1);
            assert!(said.starts_with(&format!("one {}", SocketAddr::new(http.ip(), 0)).replace(":0", ":")), "{said}");
            assert!(ask_datagram(&socket(host, "one", 0, dns), 5).unwrap().starts_with("one "));
            kept.push((stream, datagrams));
        }
        for frontend in EMPTY {
            let address: IpAddr = frontend.parse().unwrap();
            at_once(|| {
                let refused = connect(host, "client", (address, 80).into()).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
                let refused = ask_datagram(&socket(host, "client", 0, (address, 53).into()), 5).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
            });
        }

        // A second backend takes new connections, too; the old ones stay.
        write(directory.path(), &[OBJECTS, TWO]);
        let two = Backend::start(host, "two", 9090, 5354);
        for frontend in FRONTENDS {
            let http: SocketAddr = (frontend.parse::<IpAddr>().unwrap(), 80).into();
            until("both backends answer", || answers(host, http) == two.name);
            until("both backends answer", || answers(host, http) == one.name);
        }
        agent.kill();
        for (stream, datagrams) in &mut kept {
            assert!(ask(stream, 1).starts_with("one "), "without an agent");
            assert!(ask_datagram(datagrams, 1).unwrap().starts_with("one "), "without an agent");
        }
        let agent = Agent::on_directory(host, directory.path());
        for (stream, _) in &mut kept {
            assert!(ask(stream, 1).starts_with("one "), "with the next agent");
        }

        // The first backend is listed no more: new connections and datagrams go to the other.
        write(directory.path(), &[&OBJECTS.replacen("labels: {app: web}", "labels: {app: old}", 1), TWO]);
        for frontend in FRONTENDS {
            let http: SocketAddr = (frontend.parse::<IpAddr>().unwrap(), 80).into();
            until("the second one answers alone", || (0..20).all(|_| answers(host, http) == two.name));
        }
        for (stream, datagrams) in &mut kept {
            until("the flow of datagrams is released", || ask_datagram(datagrams, 1).is_ok_and(|said| said.starts_with("two ")));
            // No EndpointSlice lists it any more: what comes after tells the client that its connection is over.
            let over = stream.write_all(b"x").and_then(|()| stream.read(&mut [0; 64]));
            assert!(over.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "the connection is reset");
        }
        assert_eq!((one.addresses.len(), two.addresses.len()), (2, 2));
        drop(kept);
        agent.kill();
        for pod in ["one", "two", "client"] {
            remove(host, "shop", pod);
        }
        clear(host);
    });
}

#[test]
fn what_two_services_ask_for_and_what_passes_from_one_to_another_is_counted() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let two = |first: &str, second: &str| {
            let service = |name: &str, address: &str, created: u8| {
                format!(
                    "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-0{created}T00:00:00Z'}}\n\
                     spec: {{clusterIPs: [{address}], externalIPs: [203.0.113.9], selector: {{app: web}}, ports: [{{port: 80}}]}}\n"
                )
            };
            write(
                directory.path(),
                &["---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n", &service("a", first, 1), &service("b", second, 2)],
            );
        };
        two("10.96.0.20", "10.96.0.21");
        let mut command = Agent::command(host);
        command.args(["--metrics", METRICS]);
        let agent = Agent::from_directory(command, directory.path());
        wait(host, "the agent is ready", |status| status.ready);
        // Both ask for the external address; the elder has it.
        until("the younger one's problem is counted", || counted("palisade_service_problems") == 1);
        assert_eq!(counted("palisade_frontends_passed_on_total"), 0);
        two("10.96.0.21", "10.96.0.20");
        until("the addresses are the other's", || counted("palisade_frontends_passed_on_total") == 2);
        agent.kill();
        clear(host);
    });
}

#[test]
fn filters_of_later_plugins_see_what_a_pod_sends_to_the_stack() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[OBJECTS]);
        let agent = Agent::on_directory(host, directory.path());
        let status = wait(host, "the agent is ready", |status| status.ready);
        add(host, "shop", "client");
        let node: SocketAddr = "192.0.2.77:7777".parse().unwrap();
        let device =
            run("ip -o link show type veth").lines().find_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).unwrap();
        run("ip link add uplink type veth peer name beyond");
        run("ip link set uplink up");
        run("ip link set beyond up");
        run("ip address add 192.0.2.77/24 dev uplink");
        let at_node = UdpSocket::bind(node).unwrap();
        at_node.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let sender = socket(host, "client", 0, node);
        sender.send(b"before").unwrap();
        at_node.recv(&mut [0; 16]).expect("the node gets it");
        if status.attach == "tcx" {
            run(&format!("tc qdisc add dev {device} ingress"));
        }
        run(&format!("tc filter add dev {device} ingress prio 100 protocol ip u32 match u32 0 0 action mirred egress redirect dev beyond"));
        sender.send(b"after").unwrap();
        assert!(at_node.recv(&mut [0; 16]).is_err(), "the filter was asked and took it elsewhere");
        run("ip link delete uplink");
        agent.kill();
        remove(host, "shop", "client");
        clear(host);
    });
}

/// Runs a command in this thread's namespaces and gives what it printed.
pub fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = std::process::Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
