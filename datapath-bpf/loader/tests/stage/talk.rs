//! What is said between two sockets, and that it arrives as it was said.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use super::{PATIENCE, Space};

/// A socket that waits for a while.
pub fn socket(space: &Space, address: SocketAddr) -> UdpSocket {
    let socket = space.inside(move || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The kernel interrupts a receiver with a time-out by any signal (signal(7)).
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            received => return received,
        }
    }
}

/// A datagram of so many bytes and its answer.
pub fn talk(from: &UdpSocket, to: &UdpSocket, length: usize) {
    let seen = talk_through(to.local_addr().unwrap(), from, to, length);
    assert_eq!(seen, from.local_addr().unwrap());
}

/// As [`talk`], through a frontend: under which address the server sees the client.
pub fn talk_through(frontend: SocketAddr, from: &UdpSocket, to: &UdpSocket, length: usize) -> SocketAddr {
    let question: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
    from.send_to(&question, frontend).unwrap();
    let mut buffer = vec![0; 65_536];
    let (read, seen) = receive(to, &mut buffer).expect("the question arrives");
    assert_eq!(&buffer[..read], &question[..]);
    to.send_to(&question, seen).unwrap();
    let (read, source) = receive(from, &mut buffer).expect("the answer arrives");
    assert_eq!((&buffer[..read], source), (&question[..], frontend));
    seen
}

/// Sends a megabyte through a connection.
pub fn stream(from: &Space, to: &Space, address: IpAddr) {
    let listener = to.inside(move || TcpListener::bind((address, 0)).unwrap());
    stream_through(listener.local_addr().unwrap(), from, &listener);
}

/// Sends a megabyte each way through a connection to a frontend: under which address the server sees the client.
pub fn stream_through(frontend: SocketAddr, from: &Space, listener: &TcpListener) -> IpAddr {
    let data: Vec<u8> = (0..1_u32 << 20).map(|byte| (byte % 251) as u8).collect();
    let client = from.inside(move || TcpStream::connect_timeout(&frontend, PATIENCE).unwrap());
    let (server, seen) = listener.accept().unwrap();
    for (mut sender, mut receiver) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = data.clone();
        let writer = thread::spawn(move || {
            sender.write_all(&sent).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut read = Vec::new();
        receiver.read_to_end(&mut read).unwrap();
        writer.join().unwrap();
        assert!(read == data, "{} of {} bytes arrive, or others", read.len(), data.len());
    }
    seen.ip()
}
