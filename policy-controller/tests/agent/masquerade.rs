//! Whom a client outside sees that hears from a pod, by the agent's flags for masquerading.

use crate::address::answers_echo;
use crate::node::{Agent, MANIFESTS, add, clear, inside, remove, wait};
use crate::outside::{CLIENT, NODE, OTHER, Outside, at, give};
use crate::raw::Raw;
use crate::service::{socket, until};
use nix::sys::socket::SockProtocol;
use palisade_cni::link::Netlink;
use palisade_test_support::{Host, bound, private_host};
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

/// A pod that no policy selects.
const POD: (&str, &str) = ("shop", "client");
/// Other addresses of the client, and the ranges that are excluded: they are in those.
const EXCLUDED: [&str; 2] = ["192.0.2.200", "2001:db8::200"];
const RANGES: &str = "192.0.2.192/26,2001:db8::200/120";
const PORT: u16 = 7000;
/// How long a datagram is waited for.
const DOUBT: Duration = Duration::from_secs(2);

/// Who a client outside takes for the sender. It knows no way to pods: whom it does not see as the node it cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Node,
    Pod,
}

struct Stage<'a> {
    host: &'a Host,
    outside: &'a Outside,
    pod: &'a [IpAddr],
}

impl Stage<'_> {
    fn whose(&self, address: IpAddr) -> Seen {
        let is_nodes = [NODE, OTHER].concat().iter().any(|own| own.parse::<IpAddr>() == Ok(address));
        assert!(is_nodes || self.pod.contains(&address), "{address} is nobody's");
        if is_nodes { Seen::Node } else { Seen::Pod }
    }

    /// Whom the client sees by a datagram of the pod, and whether the pod hears its answer; `None`: it has not come in time.
    fn by_datagram(&self, to: &str) -> Option<(Seen, bool)> {
        let to = at(to, PORT);
        let server = self.outside.0.enter(|| bound(|| UdpSocket::bind(to))).unwrap().unwrap();
        server.set_read_timeout(Some(DOUBT)).unwrap();
        let client = socket(self.host, POD.1, to);
        client.send(b"asks").unwrap();
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer).ok()?;
        let is_answered = server.send_to(b"answers", from).is_ok() && client.recv(&mut buffer).is_ok();
        Some((self.whose(from.ip()), is_answered))
    }

    /// The same by an echo request.
    fn by_echo(&self, to: &str) -> Option<(Seen, bool)> {
        let to: IpAddr = to.parse().unwrap();
        let protocol = if to.is_ipv6() { SockProtocol::IcmpV6 } else { SockProtocol::Icmp };
        let requests = Raw::at(&self.outside.0, to, protocol);
        let is_answered = inside(self.host, POD.0, POD.1).enter(|| answers_echo(to)).unwrap();
        let mut buffer = [0; 2000];
        while let Some((from, icmp)) = requests.receive(&mut buffer) {
            if matches!(icmp, [8 | 128, ..]) {
                return Some((self.whose(from), is_answered));
            }
        }
        None
    }

    /// At these addresses of its own the client sees the pod so, by whatever it hears of it.
    fn expect(&self, flags: &str, client: [&str; 2], seen: [Seen; 2]) {
        for (to, seen) in client.into_iter().zip(seen) {
            let expected = Some((seen, seen == Seen::Node));
            until(&format!("{flags}: {to} sees the {seen:?} by a datagram"), || self.by_datagram(to) == expected);
            until(&format!("{flags}: {to} sees the {seen:?} by an echo request"), || self.by_echo(to) == expected);
        }
    }
}

/// Runs agents with flags, one after the other over the same pod: whom the client sees at which of its addresses.
fn client_sees(rounds: &[(&str, [&str; 2], [Seen; 2])]) {
    private_host(|host| {
        let outside = Outside::join();
        let netlink = Netlink::open_in(&outside.0).unwrap();
        EXCLUDED.iter().for_each(|address| give(&netlink, address));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("shop.yaml"), MANIFESTS).unwrap();
        let mut pod = Vec::new();
        for (flags, client, seen) in rounds {
            let mut command = Agent::command(host);
            command.args(flags.split(' '));
            let agent = Agent::from_directory(command, directory.path());
            wait(host, "the agent is ready", |status| status.ready);
            if pod.is_empty() {
                pod = add(host, POD.0, POD.1);
            }
            Stage { host, outside: &outside, pod: &pod }.expect(flags, *client, *seen);
            agent.kill();
        }
        remove(host, POD.0, POD.1);
        clear(host);
    });
}

#[test]
fn a_client_sees_the_node_in_the_place_of_its_pods_and_in_an_excluded_range_the_pod_itself() {
    let flags = format!("--masquerade-ipv4 on --masquerade-ipv6 on --masquerade-exclude {RANGES}");
    client_sees(&[(flags.as_str(), CLIENT, [Seen::Node; 2]), (flags.as_str(), EXCLUDED, [Seen::Pod; 2])]);
}

#[test]
fn a_client_sees_pods_of_a_family_themselves_where_masquerading_is_off_for_it_and_the_node_by_the_other() {
    client_sees(&[
        ("--masquerade-ipv4 on --masquerade-ipv6 off", CLIENT, [Seen::Node, Seen::Pod]),
        ("--masquerade-ipv4 off --masquerade-ipv6 on", CLIENT, [Seen::Pod, Seen::Node]),
        ("--masquerade-ipv4 off --masquerade-ipv6 off", CLIENT, [Seen::Pod, Seen::Pod]),
    ]);
}
