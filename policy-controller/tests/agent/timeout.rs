//! How long a flow may be silent, by the agent's flag.

use crate::node::{Agent, MANIFESTS, add, clear, inside, remove, wait};
use palisade_test_support::{Host, bound, private_host};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Lets nothing be opened by the pod that others may ask.
const ISOLATED: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: opens-nothing, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
";
const CLIENT: (&str, &str) = ("shop", "client");
const SERVER: (&str, &str) = ("shop", "web");
/// For how long both are silent: longer than the flag says, and shorter than what holds without it.
const SILENCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what should not come is waited for.
const DOUBT: Duration = Duration::from_secs(1);

/// Whether a server that may open nothing is heard once more after a silence, in a flow that its client has opened.
fn is_heard_after_the_silence(host: &Host, client: IpAddr, server: IpAddr) -> bool {
    let open = |(namespace, pod): (&str, &str), at: SocketAddr| {
        inside(host, namespace, pod).enter(|| bound(|| UdpSocket::bind(at))).unwrap().unwrap()
    };
    let (client, server) = (open(CLIENT, (client, 0).into()), open(SERVER, (server, 80).into()));
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.connect(server.local_addr().unwrap()).unwrap();
    client.send(b"asks").unwrap();
    let mut buffer = [0; 16];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"answers", from).unwrap();
    client.recv(&mut buffer).expect("an answer at once is heard");
    std::thread::sleep(SILENCE);
    client.set_read_timeout(Some(DOUBT)).unwrap();
    // The programs' drop is no error of the sender's.
    let _ = server.send_to(b"more", from);
    client.recv(&mut buffer).is_ok()
}

#[test]
fn a_flow_lasts_as_long_as_the_agent_is_told() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("shop.yaml"), MANIFESTS.to_owned() + ISOLATED).unwrap();
        let mut pods = None;
        for (flags, heard) in [(&[][..], true), (&["--connection-timeout", "udp-answered=1"][..], false)] {
            let mut command = Agent::command(host);
            command.args(flags);
            let agent = Agent::from_directory(command, directory.path());
            wait(host, "the agent is ready", |status| status.ready);
            let (client, server) = pods.get_or_insert_with(|| (add(host, CLIENT.0, CLIENT.1), add(host, SERVER.0, SERVER.1)));
            for (client, server) in client.iter().zip(server.iter()) {
                assert_eq!(is_heard_after_the_silence(host, *client, *server), heard, "{flags:?}: {client} {server}");
            }
            agent.kill();
        }
        let agent = Agent::on_directory(host, directory.path());
        for (namespace, pod) in [CLIENT, SERVER] {
            remove(host, namespace, pod);
        }
        agent.kill();
        clear(host);
    });
}
