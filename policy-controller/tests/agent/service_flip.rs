//! A service whose backends change while a pod, processes of the node and a client outside ask it: each flow finds the old backends or the new ones,
//! whole.

use crate::node::{Agent, add, inside, remove, wait};
use crate::node_service::{ADDRESSES, Node, UPLINK, exchange};
use crate::service::{Backend, FRONTENDS, OBJECTS, PATIENCE, TWO, connect_from, run, try_ask, until, write};
use palisade_cni::link::Namespace;
use palisade_test_support::{bound, private_host};
use std::io::{ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

const CHANGES: usize = 60;
/// Where datagrams come from at first.
const FIRST_PORT: u16 = 1_024;
/// Where clients outside reach the service.
const EXTERNAL: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];

/// Somebody, and a frontend that is asked by connections or by datagrams.
struct Way<'a> {
    client: &'static str,
    from: &'a Namespace,
    to: SocketAddr,
    by_tcp: bool,
    /// Where its last datagram came from.
    port: u16,
}

impl Way<'_> {
    /// What a new flow is answered. Datagrams from a port that has been used may be of a flow that is known still.
    fn ask(&mut self) -> Result<String> {
        if self.by_tcp {
            return try_ask(&mut connect_from(self.from, self.to)?, 1);
        }
        self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
        let any: IpAddr = if self.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // One that is not connected: the node's are ended with their backends.
        let socket = self.from.enter(|| bound(|| UdpSocket::bind((any, self.port)))).unwrap()?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (said, from) = exchange(&socket, self.to)?;
        assert_eq!(from, self.to, "who answers {}", self.client);
        Ok(said)
    }

    /// Who answers a new flow; `None`: its backend took the connection, and was taken away before it answered.
    fn answerer(&mut self) -> Option<String> {
        match self.ask() {
            Ok(said) => Some(said.split(' ').next().unwrap().to_owned()),
            Err(error) if self.by_tcp && error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{} does not answer {}: {error}", self.to, self.client),
        }
    }
}

/// The service has this backend alone from now on.
fn choose(directory: &Path, backend: &str) {
    let other = |name: &str| if name == backend { "web" } else { "old" };
    let external = format!("externalIPs: ['{}', '{}']\n  selector: {{app: web}}", EXTERNAL[0], EXTERNAL[1]);
    let one = OBJECTS.replacen("selector: {app: web}", &external, 1).replacen("{app: web}", &format!("{{app: {}}}", other("one")), 1);
    let two = TWO.replacen("{app: web}", &format!("{{app: {}}}", other("two")), 1);
    write(directory, &[&one, &two]);
}

#[test]
fn every_new_flow_finds_the_old_backends_or_the_new_and_none_the_old_once_one_has_found_the_new() {
    private_host(|host| {
        let node = Node::new(host);
        let routes = || EXTERNAL.iter().zip(ADDRESSES).for_each(|(to, by)| drop(run(&format!("ip route add {to} via {by}"))));
        node.outside.enter(routes).unwrap();
        let directory = tempfile::tempdir().unwrap();
        choose(directory.path(), "one");
        let outside = ["--services-outside", "on", "--uplinks", UPLINK];
        let mut clients = Vec::new();
        let agent = match node.agent(host, directory.path(), &outside) {
            Some(agent) => {
                clients.push(("a process of the node", Namespace::current().unwrap(), FRONTENDS));
                agent
            }
            // All others are served.
            None => {
                let mut command = Agent::command(host);
                command.args(outside);
                Agent::from_directory(command, directory.path())
            }
        };
        wait(host, "the agent is ready, and serves the uplink", |status| status.ready && status.uplinks == [UPLINK]);
        // Their ports differ, too: an address with the port of the other would not answer.
        let backends = [Backend::start(host, "one", 8080, 5353), Backend::start(host, "two", 9090, 5354)];
        add(host, "shop", "client");
        clients.push(("a pod", inside(host, "shop", "client"), FRONTENDS));
        clients.push(("a client outside", node.outside.try_clone().unwrap(), EXTERNAL));
        let mut ways = Vec::new();
        for &(client, ref from, frontends) in &clients {
            for frontend in frontends {
                let address: IpAddr = frontend.parse().unwrap();
                let way = |port: u16, by_tcp| Way { client, from, to: (address, port).into(), by_tcp, port: FIRST_PORT };
                ways.extend([way(80, true), way(53, false)]);
            }
        }
        for way in &mut ways {
            until("the service has a backend", || way.ask().is_ok());
        }
        for change in 1..=CHANGES {
            let [old, new] = [&backends[(change + 1) % 2], &backends[change % 2]].map(|backend| backend.name);
            choose(directory.path(), new);
            let mut has_changed = vec![false; ways.len()];
            // One flow after the other, so that some begin in the middle of the change; so many that a client would run out of ports, without a pause.
            let since = Instant::now();
            while has_changed.contains(&false) {
                assert!(since.elapsed() < PATIENCE, "change {change} to {new} is not seen: {has_changed:?}");
                for (way, has_changed) in ways.iter_mut().zip(&mut has_changed) {
                    match way.answerer() {
                        Some(name) => {
                            let is_whole = name == new || (name == old && !*has_changed);
                            assert!(is_whole, "change {change} to {new}: {name} answers {} at {}", way.client, way.to);
                            *has_changed = name == new;
                        }
                        None => assert!(!*has_changed, "change {change} to {new}: the new backend ends a connection of {}", way.client),
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        agent.kill();
        for pod in ["one", "two", "client"] {
            remove(host, "shop", pod);
        }
        node.leave(host);
    });
}
