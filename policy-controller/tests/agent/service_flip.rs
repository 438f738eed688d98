//! A service whose backends change while pods ask it: each flow finds the old backends or the new ones, whole.

use crate::node::{Agent, add, clear, remove};
use crate::service::{Backend, FRONTENDS, OBJECTS, PATIENCE, TWO, ask_datagram, connect, socket, try_ask, until, write};
use palisade_test_support::{Host, private_host};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

const CHANGES: usize = 60;
/// Where datagrams come from at first.
const FIRST_PORT: u16 = 1_024;

/// What a client may ask: a frontend, by TCP or by UDP.
#[derive(Clone, Copy)]
enum Way {
    Connection(SocketAddr),
    Datagram(SocketAddr),
}

/// The service has this backend alone from now on.
fn choose(directory: &Path, backend: &str) {
    let other = |name: &str| if name == backend { "web" } else { "old" };
    let one = OBJECTS.replacen("{app: web}", &format!("{{app: {}}}", other("one")), 1);
    let two = TWO.replacen("{app: web}", &format!("{{app: {}}}", other("two")), 1);
    write(directory, &[&one, &two]);
}

/// Who answers a new flow; `None`: its backend took the connection, and was taken away before it answered. Datagrams from a port that has been used may
/// be of a flow that is known still.
fn answerer(host: &Host, way: Way, port: &mut u16) -> Option<String> {
    let (to, said) = match way {
        Way::Connection(to) => (to, try_ask(&mut connect(host, "client", to).unwrap(), 1)),
        Way::Datagram(to) => {
            *port = port.checked_add(1).unwrap_or(FIRST_PORT);
            (to, ask_datagram(&socket(host, "client", *port, to), 1))
        }
    };
    match said {
        Ok(said) => Some(said.split(' ').next().unwrap().to_owned()),
        Err(error) if matches!(way, Way::Connection(_)) && error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{to} does not answer: {error}"),
    }
}

#[test]
fn every_new_flow_finds_the_old_backends_or_the_new_and_none_the_old_once_one_has_found_the_new() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        choose(directory.path(), "one");
        let agent = Agent::on_directory(host, directory.path());
        // Their ports differ, too: an address with the port of the other would not answer.
        let backends = [Backend::start(host, "one", 8080, 5353), Backend::start(host, "two", 9090, 5354)];
        add(host, "shop", "client");
        let ways: Vec<Way> = FRONTENDS
            .iter()
            .map(|address| address.parse::<IpAddr>().unwrap())
            .flat_map(|address| [Way::Connection((address, 80).into()), Way::Datagram((address, 53).into())])
            .collect();
        for way in &ways {
            let (Way::Connection(to) | Way::Datagram(to)) = *way;
            // A datagram that nobody waits for is refused before.
            until("the service has a backend", || match way {
                Way::Connection(_) => crate::service::connect(host, "client", to).is_ok(),
                Way::Datagram(_) => ask_datagram(&socket(host, "client", 0, to), 1).is_ok(),
            });
        }
        let mut ports = vec![FIRST_PORT; ways.len()];
        for change in 1..=CHANGES {
            let [old, new] = [&backends[(change + 1) % 2], &backends[change % 2]].map(|backend| backend.name);
            choose(directory.path(), new);
            let mut has_changed = vec![false; ways.len()];
            // One flow after the other, so that some begin in the middle of the change; so many that the client would run out of ports, without a pause.
            let since = Instant::now();
            while has_changed.contains(&false) {
                assert!(since.elapsed() < PATIENCE, "change {change} to {new} is not seen: {has_changed:?}");
                for ((way, has_changed), port) in ways.iter().zip(&mut has_changed).zip(&mut ports) {
                    match answerer(host, *way, port) {
                        Some(name) => {
                            assert!(name == new || (name == old && !*has_changed), "change {change} to {new}: {name} answers");
                            *has_changed = name == new;
                        }
                        None => assert!(!*has_changed, "change {change} to {new}: the new backend ends a connection"),
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        agent.kill();
        for pod in ["one", "two", "client"] {
            remove(host, "shop", pod);
        }
        clear(host);
    });
}
