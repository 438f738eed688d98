//! Services, with the kernel's own TCP and UDP at both ends.

use crate::node::{Agent, METRICS, add, clear, command_with_kubeconfig, counted, inside, log_of, reaches, remove, wait};
use crate::server::{Answer, Server};
use palisade_cni::link::Namespace;
use palisade_test_support::{Host, at_once, private_host};
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
        Self::of(host, name, add(host, "shop", name), tcp, udp)
    }

    /// The same of a pod that has been wired.
    pub fn of(host: &Host, name: &'static str, addresses: Vec<IpAddr>, tcp: u16, udp: u16) -> Self {
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

/// An open connection of a pod through a frontend.
pub fn connect(host: &Host, pod: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    connect_from(&inside(host, "shop", pod), to)
}

/// The same of whoever is in a network namespace.
pub fn connect_from(namespace: &Namespace, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = namespace.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap()?;
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

/// A socket of a pod for datagrams to an address.
pub fn socket(host: &Host, pod: &str, to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = inside(host, "shop", pod).enter(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
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
            let datagrams = socket(host, "client", dns);
            assert!(ask_datagram(&datagrams, 5).unwrap().starts_with(one.name));
            // In fragments, both ways of one flow.
            assert!(ask_datagram(&datagrams, 4_000).unwrap().ends_with(" 4000;"));
            // The pod behind the service reaches itself by it.
            let said = ask(&mut connect(host, "one", http).unwrap(), 1);
            assert!(said.starts_with(&format!("one {}", SocketAddr::new(http.ip(), 0)).replace(":0", ":")), "{said}");
            assert!(ask_datagram(&socket(host, "one", dns), 5).unwrap().starts_with("one "));
            kept.push((stream, datagrams));
        }
        for frontend in EMPTY {
            let address: IpAddr = frontend.parse().unwrap();
            at_once(|| {
                let refused = connect(host, "client", (address, 80).into()).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
                let refused = ask_datagram(&socket(host, "client", (address, 53).into()), 5).unwrap_err();
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

/// The pods `one` and `two`, each behind a service that has its name, and a client.
const PODS: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop, labels: {app: one}}
spec: {containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: shop, labels: {app: two}}
spec: {containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: client, image: client}]}
";

/// The service of a pod, at cluster IPs with this number: ten is that of [`FRONTENDS`].
fn service_of(pod: &str, number: u8) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {pod}, namespace: shop}}
spec:
  clusterIPs: [10.96.0.{number}, 'fd96::{number}']
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {pod}}}
  ports:
  - {{name: http, port: 80, targetPort: 8080}}
  - {{name: dns, port: 53, targetPort: 5353, protocol: UDP}}
"
    )
}

#[test]
fn open_connections_end_and_datagrams_go_elsewhere_when_their_cluster_ip_is_another_services_and_that_is_logged() {
    private_host(|host| {
        let (directory, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let rounds = [
            (service_of("one", 10), "one"),
            // The service lives on, at another address.
            (service_of("one", 11) + &service_of("two", 10), "two"),
            // It is gone.
            (service_of("one", 10), "one"),
        ];
        write(directory.path(), &[PODS, &rounds[0].0]);
        let mut command = Agent::command(host);
        command.args(["--metrics", METRICS]);
        let log = log_of(&mut command, logs.path());
        let agent = Agent::from_directory(command, directory.path());
        wait(host, "the agent is ready", |status| status.ready);
        let backends = ["one", "two"].map(|name| Backend::start(host, name, 8080, 5353).name);
        add(host, "shop", "client");
        let mut open: Vec<(TcpStream, UdpSocket)> = Vec::new();
        for (round, (services, answering)) in rounds.iter().enumerate() {
            write(directory.path(), &[PODS, services]);
            // Of each family a port of TCP and one of UDP.
            until("the addresses are another's", || counted("palisade_frontends_passed_on_total") == 4 * round as u64);
            for frontend in FRONTENDS {
                let http = SocketAddr::new(frontend.parse().unwrap(), 80);
                until("who has the address now answers", || connect(host, "client", http).is_ok() && answers(host, http) == *answering);
                let told = log().lines().filter(|line| line.contains("flows of the old one end") && line.contains(frontend)).count();
                assert_eq!(told, 2 * round, "{frontend}: it is logged, each time once for each port");
            }
            for (mut stream, datagrams) in open.drain(..) {
                // The other backend knows nothing of it.
                let over = stream.write_all(b"x").and_then(|()| stream.read(&mut [0; 64]));
                assert!(over.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{answering}: the connection is reset");
                until("who has the address now gets datagrams", || {
                    ask_datagram(&datagrams, 1).is_ok_and(|said| said.starts_with(answering))
                });
            }
            for frontend in FRONTENDS {
                let [http, dns] = [80, 53].map(|port| SocketAddr::new(frontend.parse().unwrap(), port));
                let (mut stream, datagrams) = (connect(host, "client", http).unwrap(), socket(host, "client", dns));
                assert!(ask(&mut stream, 1).starts_with(answering));
                until("datagrams are answered", || ask_datagram(&datagrams, 1).is_ok_and(|said| said.starts_with(answering)));
                open.push((stream, datagrams));
            }
        }
        drop(open);
        agent.kill();
        for pod in backends.into_iter().chain(["client"]) {
            remove(host, "shop", pod);
        }
        clear(host);
    });
}

#[test]
fn open_connections_end_when_their_service_gives_its_cluster_ip_up_and_that_is_logged_and_counted() {
    private_host(|host| {
        let (directory, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(directory.path(), &[PODS, &service_of("one", 10)]);
        let mut command = Agent::command(host);
        command.args(["--metrics", METRICS]);
        let log = log_of(&mut command, logs.path());
        let agent = Agent::from_directory(command, directory.path());
        wait(host, "the agent is ready", |status| status.ready);
        Backend::start(host, "one", 8080, 5353);
        add(host, "shop", "client");
        let mut open = Vec::new();
        for frontend in FRONTENDS {
            let mut stream = connect(host, "client", SocketAddr::new(frontend.parse().unwrap(), 80)).unwrap();
            assert!(ask(&mut stream, 1).starts_with("one "));
            open.push(stream);
        }
        write(directory.path(), &[PODS, &service_of("one", 12)]);
        // Of each family a port of TCP and one of UDP.
        until("the addresses are nobody's", || counted("palisade_frontends_given_up_total") == 4);
        assert_eq!(counted("palisade_frontends_passed_on_total"), 0);
        for (mut stream, frontend) in open.into_iter().zip(FRONTENDS) {
            let told = log().lines().filter(|line| line.contains("its service goes on without it") && line.contains(frontend)).count();
            assert_eq!(told, 2, "{frontend}: it is logged, once for each port");
            let over = stream.write_all(b"x").and_then(|()| stream.read(&mut [0; 64]));
            assert!(over.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{frontend}: the connection is reset");
            assert!(connect(host, "client", SocketAddr::new(frontend.parse().unwrap(), 80)).is_err(), "{frontend} leads nowhere");
        }
        for frontend in ["10.96.0.12", "fd96::12"] {
            assert_eq!(answers(host, SocketAddr::new(frontend.parse().unwrap(), 80)), "one", "{frontend}");
        }
        agent.kill();
        for pod in ["one", "client"] {
            remove(host, "shop", pod);
        }
        clear(host);
    });
}

#[test]
fn an_endpoint_of_another_family_than_its_slice_is_told_of_and_gets_no_flows_and_the_others_are_served() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        let address: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(address, Answer::Objects);
        let mut command = command_with_kubeconfig(host, directory.path(), address);
        command.args(["--metrics", METRICS, "--routing-mode", "native", "--mtu", "1400"]);
        let log = log_of(&mut command, directory.path());
        let agent = Agent::spawn(command);
        wait(host, "the agent is ready", |status| status.ready);
        let stranger = ("other", "client");
        let [web, foreign] = ["web", "a"].map(|name| Backend::of(host, name, add(host, "shop", name), 80, 53).addresses);
        add(host, "shop", "client");
        add(host, stranger.0, stranger.1);

        server.offer_web(FRONTENDS, [&[foreign[1], web[0]], &[foreign[0], web[1]]], 8);
        until("what is wrong is counted", || counted("palisade_refused_objects") == 2);
        for (family, address) in ["ipv4", "ipv6"].into_iter().zip([foreign[1], foreign[0]]) {
            let said = format!("endpoints[0].addresses[0]: {address} is of another family than addressType says");
            wait(host, "status tells of it", |status| {
                let mut refused = status.refused.iter().filter(|refused| refused.kind == "EndpointSlice");
                refused.any(|refused| refused.object == format!("shop/web-{family}") && refused.reason.contains(&said))
            });
            until("it is logged", || log().contains(&said));
        }
        for frontend in FRONTENDS {
            let at = SocketAddr::new(frontend.parse().unwrap(), 80);
            until("the other endpoint is reached", || connect(host, "client", at).is_ok());
            assert!((0..20).all(|_| answers(host, at) == "web"), "{at}: it alone gets flows");
            assert!(!reaches(host, stranger, at), "{at}: whom its policy refuses does not reach it");
        }
        server.offer_web(FRONTENDS, [&web[..1], &web[1..]], 10);
        until("nothing is wrong any more", || counted("palisade_refused_objects") == 0);

        agent.kill();
        for (namespace, pod) in [("shop", "web"), ("shop", "a"), ("shop", "client"), stranger] {
            remove(host, namespace, pod);
        }
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
        let sender = socket(host, "client", node);
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
