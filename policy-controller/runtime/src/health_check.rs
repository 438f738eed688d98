//! `healthCheckNodePort`: tells load balancers which nodes have endpoints of a service, so that they send to those alone.

use crate::problem::Part;
use crate::state::State;
use axum::http::StatusCode;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use palisade_policy::model::ObjectName;
use palisade_service::model::{Service, Services, TrafficPolicy};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// How often a port that was taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// Connections to a port, of one family, that are open at once: for another one the oldest is cut off. Whoever asks is answered at once, so that one is
/// the least likely to be waiting for us.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection lives at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of a request, in bytes.
const LONGEST_HEAD: usize = 8 * 1024;
/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// The ports that are open, each until its value is dropped.
#[derive(Default)]
struct Open {
    ports: BTreeMap<(ObjectName, u16), watch::Sender<()>>,
    servers: JoinSet<()>,
}

/// Keeps a port open for each service in the kernel that has one, for ever. One that cannot be had is a problem of its service.
pub async fn follow(state: Arc<State>) -> Infallible {
    let mut publications = state.publications();
    let mut open = Open::default();
    loop {
        publications.borrow_and_update();
        let wanted = if state.config.serves_outside() { wanted(&state.published().services) } else { BTreeSet::new() };
        let taken = open.keep(&wanted, &state);
        let again = if taken.is_empty() { Duration::MAX } else { AGAIN };
        state.set_health_checks(taken);
        tokio::select! {
            _ = publications.changed() => {}
            () = tokio::time::sleep(again) => {}
            // Only what is awaited is cleared away.
            Some(_) = open.servers.join_next() => {}
        }
    }
}

/// The services that have a port, and which.
fn wanted(services: &Services) -> BTreeSet<(ObjectName, u16)> {
    let port = |(name, service): (&ObjectName, &Arc<Service>)| Some((name.clone(), health_port(service)?));
    services.services.iter().filter_map(port).collect()
}

fn health_port(service: &Service) -> Option<u16> {
    service.health_check_node_port.filter(|_| service.external_policy == TrafficPolicy::Local)
}

impl Open {
    /// Opens and closes ports. Tells of each service whose port cannot be had, why.
    fn keep(&mut self, wanted: &BTreeSet<(ObjectName, u16)>, state: &Arc<State>) -> BTreeMap<ObjectName, String> {
        self.ports.retain(|port, _| wanted.contains(port));
        let mut taken = BTreeMap::new();
        for (name, port) in wanted {
            if self.ports.contains_key(&(name.clone(), *port)) {
                continue;
            }
            let listeners = match listen(*port) {
                Ok(listeners) => listeners,
                Err(error) => {
                    taken.insert(
                        name.clone(),
                        format!("healthCheckNodePort {port} cannot be opened on this node: {error}; load balancers do not send to it"),
                    );
                    continue;
                }
            };
            let (open, closed) = watch::channel(());
            for listener in listeners {
                self.servers.spawn(serve(listener, Arc::clone(state), name.clone(), closed.clone()));
            }
            self.ports.insert((name.clone(), *port), open);
            tracing::info!(service = %name, port, "load balancers are told whether this node has endpoints");
        }
        taken
    }
}

/// Listens at all addresses of the node, of both families as far as it has them.
fn listen(port: u16) -> io::Result<Vec<TcpListener>> {
    let bind = |address: IpAddr| {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        if address.is_ipv6() {
            setsockopt(&socket, Ipv6V6Only, &true)?;
        }
        // A port that was closed a moment ago can be had again.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(address, port))?;
        socket.listen(BACKLOG)
    };
    let mut listeners = vec![bind(Ipv4Addr::UNSPECIFIED.into())?];
    match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Ok(listener) => listeners.push(listener),
        // IPv6 is switched off.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

/// The connections to a port, each until its value is dropped.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// From the oldest to the youngest.
    order: VecDeque<AbortHandle>,
}

impl Connections {
    /// Answers one more, and cuts off the oldest where there are too many.
    fn add(&mut self, answered: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|connection| !connection.is_finished());
        while self.order.len() >= MOST_CONNECTIONS {
            self.order.pop_front().iter().for_each(AbortHandle::abort);
        }
        self.order.push_back(self.tasks.spawn(answered));
    }
}

/// Answers until the port is to be closed; connections that are open end with it. Anybody who reaches the node can ask, and none of them may
/// keep others from it, or the agent busy.
async fn serve(listener: TcpListener, state: Arc<State>, name: ObjectName, mut closed: watch::Receiver<()>) {
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Err(_) = closed.changed() => return,
        };
        let Ok((stream, _)) = accepted else {
            // It broke off already, or there are no file descriptors left: later there may be.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (state, name) = (Arc::clone(&state), name.clone());
        connections.add(async move {
            // Who is too slow, or breaks off, gets no answer.
            let _ = tokio::time::timeout(PATIENCE, converse(stream, &state, &name)).await;
        });
    }
}

/// Reads a request and answers it. The connection ends with the answer.
async fn converse(mut stream: TcpStream, state: &State, name: &ObjectName) -> io::Result<()> {
    let mut head = Vec::new();
    let text = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
        if head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            break match line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
                true => answer(state, name, !line.starts_with(b"HEAD ")),
                false => refuse(StatusCode::BAD_REQUEST),
            };
        }
        if head.len() >= LONGEST_HEAD {
            break refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
    };
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// The answer to what is no request, or too long for one.
fn refuse(code: StatusCode) -> String {
    format!("HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// What kube-proxy would say; to who asks for the head, without the body.
fn answer(state: &State, name: &ObjectName, with_body: bool) -> String {
    let local = local_endpoints(&state.published().services, name);
    let healthy = [Part::Datapath, Part::Services, Part::Uplinks].iter().all(|part| state.problems.of(*part).is_none());
    let code = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": name.namespace, "name": name.name },
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    })
    .to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {local}\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{}",
        if with_body { &body } else { "" }
    )
}

/// How many endpoints of this node a service has that are ready. A pod with an address of each family is one.
fn local_endpoints(services: &Services, name: &ObjectName) -> usize {
    // One that is gone has none, though somebody may ask until its port is closed.
    if services.services.get(name).is_none_or(|service| health_port(service).is_none()) {
        return 0;
    }
    let endpoints = services.slices.get(name).into_iter().flat_map(|slices| slices.values()).flat_map(|slice| &slice.endpoints);
    let is_here = |node: &Option<String>| node.as_ref() == Some(&services.place.node);
    let here: BTreeSet<IpAddr> =
        endpoints.filter(|endpoint| endpoint.ready && is_here(&endpoint.node)).map(|endpoint| endpoint.address).collect();
    let of_ipv4 = here.iter().filter(|address| address.is_ipv4()).count();
    of_ipv4.max(here.len() - of_ipv4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source, Switch};
    use crate::state::Published;
    use palisade_cni::link::Namespace;
    use palisade_service::model::{Endpoint, Place, ServiceKind, Slice};
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    fn service(external_policy: TrafficPolicy, port: Option<u16>) -> Service {
        Service {
            uid: None,
            created: None,
            kind: ServiceKind::Addressed,
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            external: BTreeSet::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy,
            affinity: None,
            health_check_node_port: port,
        }
    }

    fn endpoint(address: &str, node: &str, ready: bool) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            ready,
            serving: true,
            terminating: !ready,
            node: Some(node.to_owned()),
            zones: BTreeSet::new(),
            nodes: BTreeSet::new(),
        }
    }

    fn services(with: impl IntoIterator<Item = (&'static str, u16)>, endpoints: &[Endpoint]) -> Services {
        let mut services = Services { place: Place { node: "here".to_owned(), ..Place::default() }, ..Services::default() };
        for (name, port) in with {
            let name = ObjectName::new("shop", name);
            let slice = Slice { ports: Vec::new(), endpoints: endpoints.to_vec() };
            services.slices.insert(name.clone(), BTreeMap::from([("slice".to_owned(), slice)]));
            services.services.insert(name, service(TrafficPolicy::Local, Some(port)));
        }
        services
    }

    #[test]
    fn endpoints_of_this_node_that_are_ready_are_counted_once() {
        // The first two are addresses of one pod.
        let (first, other_family) = (endpoint("10.1.0.1", "here", true), endpoint("fd00::1", "here", true));
        let endpoints = [first, other_family, endpoint("10.1.0.2", "here", false), endpoint("10.1.0.3", "there", true)];
        let mut services = services([("web", 30_100)], &endpoints);
        let name = ObjectName::new("shop", "web");
        let twice = Slice { ports: Vec::new(), endpoints: endpoints[..1].to_vec() };
        services.slices.edit(&name).unwrap().insert("other".to_owned(), twice);
        assert_eq!(local_endpoints(&services, &name), 1);
        assert_eq!(local_endpoints(&services, &ObjectName::new("shop", "unknown")), 0);
    }

    #[test]
    fn only_where_the_policy_is_local_there_is_a_port() {
        let mut services = services([("web", 30_100)], &[]);
        services.services.insert(ObjectName::new("shop", "cluster"), service(TrafficPolicy::Cluster, Some(30_101)));
        services.services.insert(ObjectName::new("shop", "none"), service(TrafficPolicy::Local, None));
        assert_eq!(wanted(&services), BTreeSet::from([(ObjectName::new("shop", "web"), 30_100)]));
    }

    /// The status line and the body of what a port says, by one address of the node; nothing where nobody listens.
    fn ask(address: &str, port: u16) -> Option<(String, String)> {
        let mut stream = TcpStream::connect((address.parse::<IpAddr>().unwrap(), port)).ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.to_owned()))
    }

    #[track_caller]
    fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn a_port_is_open_as_long_as_its_service_is_there_and_one_that_is_taken_is_a_problem_of_its_service() {
        let namespace = Namespace::create().unwrap();
        namespace
            .enter(|| {
                let netlink = palisade_cni::link::Netlink::open().unwrap();
                netlink.set_up(netlink.link("lo").unwrap().unwrap().index).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let state = Arc::new(State::new(AgentConfig {
                    services_outside: Switch::On,
                    ..AgentConfig::new("here", Source::Directory("/nowhere".into()))
                }));
                [Part::Datapath, Part::Services].into_iter().for_each(|part| state.problems.clear(part));
                let following = Arc::clone(&state);
                std::thread::scope(|scope| {
                    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
                    scope.spawn(move || {
                        runtime.block_on(async {
                            tokio::select! { _ = follow(following) => {}, _ = stopped => {} }
                        })
                    });
                    exercise(&state);
                    drop(stop);
                });
            })
            .unwrap();
    }

    fn exercise(state: &State) {
        let publish = |services: Services| state.publish(Published { services, ..Published::default() });
        let here = [endpoint("10.1.0.1", "here", true)];
        let (ok, unavailable) = ("HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable");
        publish(services([("web", 30_100)], &here));
        for address in ["127.0.0.1", "::1"] {
            soon("the port opens", || ask(address, 30_100).is_some());
            let (code, body) = ask(address, 30_100).unwrap();
            assert_eq!(code, ok);
            let expected = json!({ "service": { "namespace": "shop", "name": "web" }, "localEndpoints": 1, "serviceProxyHealthy": true });
            assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap(), expected);
        }
        publish(services([("web", 30_100)], &[endpoint("10.1.0.1", "there", true)]));
        let (code, body) = ask("127.0.0.1", 30_100).unwrap();
        assert_eq!((code.as_str(), body.contains("\"localEndpoints\":0")), (unavailable, true), "{body}");
        publish(services([("web", 30_100)], &here));
        state.problems.set(Part::Services, "broken");
        let (code, body) = ask("127.0.0.1", 30_100).unwrap();
        assert_eq!((code.as_str(), body.contains("\"serviceProxyHealthy\":false")), (unavailable, true), "{body}");
        state.problems.clear(Part::Services);

        // Somebody else has the port of another service.
        let taken = std::net::TcpListener::bind("127.0.0.1:30101").unwrap();
        publish(services([("web", 30_100), ("other", 30_101)], &here));
        let other = ObjectName::new("shop", "other");
        soon("the port is taken", || state.health_check(&other).is_some_and(|problem| problem.contains("30101")));
        assert_eq!(ask("127.0.0.1", 30_100).unwrap().0, ok, "the first service does not mind");
        assert!(state.problems.list().iter().all(|problem| !problem.contains("30101")), "nor does the agent");
        drop(taken);
        publish(services([("web", 30_100), ("other", 30_101)], &here));
        soon("the port opens when it is free", || ask("127.0.0.1", 30_101).is_some_and(|(code, _)| code == ok));
        assert_eq!(state.health_check(&other), None);

        bound(ok);

        // A connection does not outlive its service. One of another, opened before, does.
        let mut other = TcpStream::connect("127.0.0.1:30101").unwrap();
        let mut kept = connect();
        publish(services([("other", 30_101)], &here));
        soon("the port closes", || ask("127.0.0.1", 30_100).is_none() && ask("::1", 30_100).is_none());
        let end = kept.read(&mut [0; 16]);
        // Reset where the server had not come to accept it yet.
        let is_closed = matches!(&end, Ok(0)) || end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
        assert!(is_closed, "it is closed: {end:?}");
        other.set_nonblocking(true).unwrap();
        assert_eq!(other.read(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "not for its age");
        publish(services([("other", 30_100)], &here));
        soon("the port changes", || ask("127.0.0.1", 30_100).is_some() && ask("127.0.0.1", 30_101).is_none());
    }

    /// A connection that has sent nothing yet.
    fn connect() -> TcpStream {
        let stream = TcpStream::connect("127.0.0.1:30100").unwrap();
        stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        stream
    }

    /// No client takes anything from others, whatever it sends or does not send.
    fn bound(ok: &str) {
        let began = Instant::now();
        let mut idle: Vec<TcpStream> = (0..MOST_CONNECTIONS + 5).map(|_| connect()).collect();
        assert_eq!(ask("127.0.0.1", 30_100).unwrap().0, ok, "others do not wait for those that send nothing");
        let cut_off = |stream: &mut TcpStream| !matches!(stream.read(&mut [0; 16]), Ok(1..));
        assert!(idle[..5].iter_mut().all(cut_off), "the oldest make room");
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        // One that goes on sending lives no longer.
        let last = idle.last_mut().unwrap();
        while began.elapsed() < PATIENCE * 2 && last.write_all(b"G").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(idle.iter_mut().all(cut_off) && began.elapsed() < PATIENCE * 2, "each is cut off in time: {:?}", began.elapsed());

        let refused = |request: &[u8]| {
            let mut stream = connect();
            // What is too long is not read to its end.
            let _ = stream.write_all(request);
            let mut start = [0; 12];
            stream.read_exact(&mut start).map(|()| String::from_utf8_lossy(&start).into_owned())
        };
        assert_eq!(refused(b"nonsense\r\n\r\n").unwrap(), "HTTP/1.1 400");
        assert_eq!(refused(&[b'a'; LONGEST_HEAD]).unwrap(), "HTTP/1.1 431");
        assert!(!refused(&vec![b'a'; 4 << 20]).is_ok_and(|start| start.contains("200")));
        let mut head = connect();
        head.write_all(b"HEAD / HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
        let mut text = String::new();
        head.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(ok) && text.ends_with("\r\n\r\n"), "{text}");
    }
}
