//! The real binary, killed and started again under traffic.

use crate::node::{Agent, MANIFESTS, PROGRAM, add, add_in_vain, clear, inside, remove};
use palisade_test_support::private_host;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A datagram every millisecond; the number of each.
fn send_datagrams(socket: &UdpSocket, done: &AtomicBool) -> u64 {
    let mut sent = 0_u64;
    while !done.load(Ordering::Relaxed) {
        socket.send(&sent.to_be_bytes()).unwrap();
        sent += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Datagrams that arrived, until none comes for a second.
fn count_datagrams(socket: &UdpSocket) -> u64 {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 8];
    let mut received = 0;
    while socket.recv(&mut buffer).is_ok() {
        received += 1;
    }
    received
}

/// Sends a known pattern until it is told to end; how many bytes.
fn send_bytes(mut stream: TcpStream, done: &AtomicBool) -> u64 {
    let block: Vec<u8> = (0..=250).cycle().take(251 * 256).collect();
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        stream.write_all(&block).unwrap();
        sent += block.len() as u64;
    }
    sent
}

/// Bytes that arrived until the sender ended; all of them must be the pattern.
fn count_bytes(mut stream: TcpStream) -> u64 {
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0_u64;
    loop {
        let length = stream.read(&mut buffer).unwrap();
        if length == 0 {
            return received;
        }
        for (index, byte) in buffer[..length].iter().enumerate() {
            assert_eq!(u64::from(*byte), (received + index as u64) % 251, "at byte {received}");
        }
        received += length as u64;
    }
}

#[test]
fn established_flow_survives_agent_restart() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("shop.yaml"), MANIFESTS).unwrap();
        let mut agent = Agent::on_directory(host, directory.path());
        let web = add(host, "shop", "web");
        add(host, "shop", "client");
        add(host, "other", "client");
        let (server, client) = (inside(host, "shop", "web"), inside(host, "shop", "client"));
        let (tcp_at, udp_at) = (SocketAddr::new(web[0], 80), SocketAddr::new(web[web.len() - 1], 80));
        let listener = server.enter(|| TcpListener::bind(tcp_at)).unwrap().unwrap();
        let datagrams = server.enter(|| UdpSocket::bind(udp_at)).unwrap().unwrap();
        let stream = client.enter(|| TcpStream::connect(tcp_at)).unwrap().unwrap();
        let accepted = listener.accept().unwrap().0;
        let anywhere: SocketAddr = if udp_at.is_ipv6() { "[::]:0".parse().unwrap() } else { "0.0.0.0:0".parse().unwrap() };
        let sender = client.enter(|| UdpSocket::bind(anywhere)).unwrap().unwrap();
        sender.connect(udp_at).unwrap();
        let stranger = inside(host, "other", "client");
        let refused = |at: &SocketAddr| stranger.enter(|| TcpStream::connect_timeout(at, Duration::from_millis(200)).is_err()).unwrap();

        let done = AtomicBool::new(false);
        let agent = std::thread::scope(|scope| {
            let sent_bytes = scope.spawn(|| send_bytes(stream, &done));
            let received_bytes = scope.spawn(|| count_bytes(accepted));
            let sent_datagrams = scope.spawn(|| send_datagrams(&sender, &done));
            let received_datagrams = scope.spawn(|| count_datagrams(&datagrams));
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(300));
                agent.kill();
                // Nothing opens while no agent runs; no pod comes up, and nothing of it is left.
                assert!(refused(&tcp_at));
                add_in_vain(host, "shop", "late");
                agent = Agent::on_directory(host, directory.path());
                assert!(refused(&tcp_at));
            }
            done.store(true, Ordering::Relaxed);
            let (sent, received) = (sent_bytes.join().unwrap(), received_bytes.join().unwrap());
            assert_eq!(sent, received, "bytes of the TCP transfer");
            assert!(sent > 1_000_000, "{sent} bytes only");
            let (sent, received) = (sent_datagrams.join().unwrap(), received_datagrams.join().unwrap());
            assert_eq!(sent, received, "datagrams of the UDP stream");
            assert!(sent > 500, "{sent} datagrams only");
            agent
        });
        drop((server, client, stranger));
        remove(host, "shop", "web");
        // DEL works while no agent runs, too.
        agent.kill();
        remove(host, "shop", "client");
        remove(host, "other", "client");
        clear(host);
    });
}

#[test]
fn a_second_agent_ends_with_its_own_exit_code() {
    private_host(|host| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("shop.yaml"), MANIFESTS).unwrap();
        let agent = Agent::on_directory(host, directory.path());
        let second = |arguments: &[&str]| {
            let mut command = Command::new(PROGRAM);
            command.env_clear().args(arguments).arg("--run-dir").arg(host.run_dir()).output().unwrap()
        };
        let directory = directory.path().to_str().unwrap();
        let output = second(&["--directory", directory, "--node", "node", "--ranges", "10.77.0.0/24"]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("another palisade-agent"), "{output:?}");
        assert_eq!(second(&["--directory", directory]).status.code(), Some(2));
        agent.kill();
        clear(host);
    });
}
