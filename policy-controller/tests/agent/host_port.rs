//! Ports of the node that lead to a pod, used by a client outside: those that our plugin is asked for, and those that Debian's portmap maps after it.

use crate::mtu::ip;
use crate::node::{Agent, MANIFESTS, add_by, addresses, clear, command_with_kubeconfig, reaches_in_time, remove_by, wait};
use crate::outside::{NODE, OTHER, Outside, UPLINK, at};
use crate::server::{Answer, Server};
use crate::service::{Backend, PATIENCE, ask, until};
use palisade_test_support::debian::{DEBIAN, SYSTEM, missing};
use palisade_test_support::{CniCall, Host, private_host, skipped};
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// A pod that no policy selects.
const OPEN: (&str, &str) = ("shop", "client");
/// One that takes connections from pods of its namespace alone.
const GUARDED: (&str, &str) = ("shop", "web");
/// The ports of the node that lead to port 80 of them.
const TO_OPEN: u16 = 8080;
const TO_GUARDED: u16 = 8081;
/// What Debian's plugins speak.
const VERSION: &str = "1.0.0";

/// An agent that serves clients outside, ready to.
fn agent(host: &Host, directory: &Path) -> Agent {
    std::fs::write(directory.join("shop.yaml"), MANIFESTS).unwrap();
    let mut command = Agent::command(host);
    command.args(["--services-outside", "on"]);
    let agent = Agent::from_directory(command, directory);
    wait(host, "the agent serves clients outside", |status| status.ready && status.uplinks == [UPLINK]);
    agent
}

/// What a runtime says of a port of the node, at one of its addresses, or at all where that is empty.
fn mapping(port: u16, host_ip: &str) -> Value {
    json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip })
}

/// Has portmap do something for a pod, as a runtime does with a plugin after ours.
fn portmap(host: &Host, verb: &str, pod: &CniCall, config: &Value) {
    let mut command = Command::new(Path::new(DEBIAN).join("portmap"));
    command.env_clear().env("PATH", SYSTEM).env("CNI_PATH", DEBIAN).env("CNI_COMMAND", verb).env("CNI_IFNAME", "eth0");
    command.env("CNI_CONTAINERID", pod.container()).env("CNI_NETNS", host.pod_path(pod.container()));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "portmap: {verb}: {output:?}");
}

/// The pod that no policy selects answers at a port of the node, and sees who comes as it is.
fn expect_open(outside: &Outside, port: SocketAddr) {
    until("the port leads to the pod", || outside.connect(port).is_ok());
    let mut stream = outside.connect(port).unwrap();
    let client = stream.local_addr().unwrap();
    assert_eq!(ask(&mut stream, 1), format!("{} {client} 1;", OPEN.1), "{port}");
    // Large segments, whose checksums the kernel leaves to the device.
    ask(&mut stream, 400_000);
}

/// Whether a port is nobody's: the node's kernel says so.
fn is_nobodys(outside: &Outside, port: SocketAddr) -> bool {
    outside.connect(port).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_port_that_portmap_maps_leads_from_outside_to_the_pod_and_is_no_way_round_policy() {
    private_host(|host| {
        if let Some(reason) = missing("portmap") {
            return skipped(&reason);
        }
        let outside = Outside::join();
        let directory = tempfile::tempdir().unwrap();
        let agent = agent(host, directory.path());
        let pods = [(OPEN, TO_OPEN), (GUARDED, TO_GUARDED)].map(|((namespace, pod), port)| {
            // Ours is not told of the port.
            let call = host.cni_call(namespace, pod).key("cniVersion", VERSION.into());
            let result = add_by(host, &call);
            Backend::of(host, pod, addresses(&result), 80, 53);
            let mappings = json!({ "portMappings": [mapping(port, "")] });
            let config =
                json!({ "cniVersion": VERSION, "name": "palisade", "type": "portmap", "prevResult": result, "runtimeConfig": mappings });
            portmap(host, "ADD", &call, &config);
            (call, config)
        });
        for node in NODE {
            expect_open(&outside, at(node, TO_OPEN));
            let guarded = at(node, TO_GUARDED);
            assert!(outside.hears_nothing(guarded), "{guarded} is no way round policy");
            assert!(reaches_in_time(host, OPEN, guarded), "{guarded}: a pod of the node, whom policy lets in");
            assert!(TcpStream::connect_timeout(&guarded, PATIENCE).is_ok(), "{guarded}: the node itself reaches its pods always");
        }
        for (call, config) in &pods {
            portmap(host, "DEL", call, config);
        }
        for node in NODE {
            assert!(is_nobodys(&outside, at(node, TO_OPEN)), "{node}");
        }
        for (call, _) in &pods {
            remove_by(host, call);
        }
        agent.kill();
        clear(host);
    });
}

/// Wires a pod with ports of the node, and has it answer.
fn wire(host: &Host, (namespace, pod): (&'static str, &'static str), mappings: Value) -> CniCall {
    let call = host.cni_call(namespace, pod).key("runtimeConfig", json!({ "portMappings": mappings }));
    Backend::of(host, pod, addresses(&add_by(host, &call)), 80, 53);
    call
}

#[test]
fn a_host_port_leads_from_outside_to_the_pod_at_the_address_that_it_names_alone_and_is_no_way_round_policy() {
    private_host(|host| {
        let outside = Outside::join();
        let directory = tempfile::tempdir().unwrap();
        let agent = agent(host, directory.path());
        let open = wire(host, OPEN, NODE.map(|address| mapping(TO_OPEN, address)).into());
        let guarded = wire(host, GUARDED, [mapping(TO_GUARDED, "")].into());
        for (node, other) in NODE.into_iter().zip(OTHER) {
            expect_open(&outside, at(node, TO_OPEN));
            assert!(is_nobodys(&outside, at(other, TO_OPEN)), "{other} is not named");
            // The other pod's port names no address.
            for port in [node, other].map(|address| at(address, TO_GUARDED)) {
                until("whom policy lets in comes by the port", || reaches_in_time(host, OPEN, port));
                assert!(outside.hears_nothing(port), "{port} is no way round policy");
            }
        }
        remove_by(host, &open);
        for node in NODE {
            until("the port is nobody's again", || is_nobodys(&outside, at(node, TO_OPEN)));
        }
        remove_by(host, &guarded);
        agent.kill();
        clear(host);
    });
}

#[test]
fn a_host_port_follows_the_node_s_own_addresses() {
    private_host(|host| {
        let outside = Outside::join();
        let directory = tempfile::tempdir().unwrap();
        let api_server: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let server = Server::start(api_server, Answer::Objects);
        server.give_addresses("node", &NODE.map(ip), 8);
        let mut command = command_with_kubeconfig(host, directory.path(), api_server);
        command.args(["--services-outside", "on"]);
        let agent = Agent::spawn(command);
        wait(host, "the agent serves clients outside", |status| status.ready && status.uplinks == [UPLINK]);
        let open = wire(host, OPEN, [mapping(TO_OPEN, "")].into());
        for (node, other) in NODE.into_iter().zip(OTHER) {
            expect_open(&outside, at(node, TO_OPEN));
            assert!(is_nobodys(&outside, at(other, TO_OPEN)), "{other} is no address of the Node");
        }
        server.give_addresses("node", &OTHER.map(ip), 9);
        for (node, other) in NODE.into_iter().zip(OTHER) {
            expect_open(&outside, at(other, TO_OPEN));
            until("the port of the old address is nobody's", || is_nobodys(&outside, at(node, TO_OPEN)));
        }
        remove_by(host, &open);
        agent.kill();
        clear(host);
    });
}
