//! Sockets for whole packets of a protocol: for those that no kernel here speaks, and for echoes.

use socket2::{Domain, Protocol, Socket, Type};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Linux' number. `socket2` names it only with a feature that all who use the crate would be built anew for.
const SOCK_RAW: i32 = 3;

/// A socket for whole packets of a protocol. It is driven as one for datagrams, which says where each came from; the
/// port that both state counts for nothing.
pub fn open(ipv6: bool, protocol: Protocol) -> std::io::Result<UdpSocket> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::from(SOCK_RAW), Some(protocol)).map(UdpSocket::from)
}

/// Waits for the message that fits: the socket sees the answers of all others, too.
pub fn answer<T>(socket: &UdpSocket, ipv6: bool, time: Duration, fits: impl Fn(&[u8]) -> Option<T>) -> std::io::Result<T> {
    let deadline = Instant::now() + time;
    let mut buffer = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        if let Some(answer) = fits(message(&buffer[..length], ipv6)) {
            return Ok(answer);
        }
    }
}

/// What a raw socket handed out, without the header of IP: only IPv4 hands it out, too.
pub fn message(packet: &[u8], ipv6: bool) -> &[u8] {
    let header = match packet.first() {
        Some(first) if !ipv6 => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    packet.get(header..).unwrap_or_default()
}
