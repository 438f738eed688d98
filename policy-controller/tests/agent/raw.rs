//! Sockets for whole packets.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind, recvfrom, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use palisade_cni::link::Namespace;
use palisade_test_support::packet::{ETHERNET, IPV4, IPV6};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// A raw socket: of `Raw` to send whole IP packets, else to receive those of a protocol.
pub struct Raw {
    socket: OwnedFd,
    ipv6: bool,
}

impl Raw {
    pub fn open(namespace: &Namespace, ipv6: bool, protocol: SockProtocol) -> Self {
        let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let socket = namespace.enter(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)).unwrap().unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        Self { socket, ipv6 }
    }

    /// One that receives what comes to an address, and nothing else.
    pub fn at(namespace: &Namespace, address: IpAddr, protocol: SockProtocol) -> Self {
        let raw = Self::open(namespace, address.is_ipv6(), protocol);
        let fd = raw.socket.as_raw_fd();
        let bound = match SocketAddr::new(address, 0) {
            SocketAddr::V4(address) => bind(fd, &SockaddrIn::from(address)),
            SocketAddr::V6(address) => bind(fd, &SockaddrIn6::from(address)),
        };
        bound.unwrap();
        raw
    }

    pub fn send(&self, frame: &[u8], destination: IpAddr) -> Result<usize, Errno> {
        let (fd, packet) = (self.socket.as_raw_fd(), &frame[ETHERNET..]);
        match SocketAddr::new(destination, 0) {
            SocketAddr::V4(address) => sendto(fd, packet, &SockaddrIn::from(address), MsgFlags::empty()),
            SocketAddr::V6(address) => sendto(fd, packet, &SockaddrIn6::from(address), MsgFlags::empty()),
        }
    }

    /// Of the packets that have come the next one, from its transport header on, and whom it is from.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Option<(IpAddr, &'b [u8])> {
        let fd = self.socket.as_raw_fd();
        // IPv6 comes without its header.
        let (from, start, end): (IpAddr, usize, usize) = if self.ipv6 {
            let (length, from) = recvfrom::<SockaddrIn6>(fd, buffer).ok()?;
            (from?.ip().into(), 0, length)
        } else {
            let (length, from) = recvfrom::<SockaddrIn>(fd, buffer).ok()?;
            (from?.ip().into(), IPV4, length)
        };
        Some((from, &buffer[start..end]))
    }

    /// What of the packets that have come is wanted.
    pub fn find<T>(&self, wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let mut buffer = [0; 2000];
        while let Some((_, packet)) = self.receive(&mut buffer) {
            match wanted(packet) {
                None => {}
                found => return found,
            }
        }
        None
    }

    /// Whether a datagram comes whose IP packet is so long.
    pub fn gets(&self, length: usize) -> bool {
        let header = if self.ipv6 { IPV6 } else { IPV4 };
        self.find(|payload| (payload.len() + header == length).then_some(())).is_some()
    }
}
