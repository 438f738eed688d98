//! Ending sockets of this network namespace, by the kernel's list of them (`sock_diag`).

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use palisade_datapath_core::abi::{SocketEntry, SocketKey, socket_end};

use crate::{LoaderError, Table, error::refuse};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// Bytes of `inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// The state of a socket of datagrams that is connected (`TCP_ESTABLISHED`).
const CONNECTED: u32 = 1 << 1;
const UDP: u8 = nix::libc::IPPROTO_UDP as u8;
const FAMILIES: [u8; 2] = [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8];
/// The addresses of IPv6 that stand for those of IPv4.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// A socket, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    family: u8,
    id: [u8; ID],
}

impl Socket {
    /// Under which key the programs know to whom it is connected.
    fn key(&self) -> SocketKey {
        let mut address = [0; 16];
        let peer = &self.id[20..36];
        let version = match peer.strip_prefix(&MAPPED) {
            _ if self.family == FAMILIES[0] => 4,
            Some(_) => 4,
            None => 6,
        };
        match (version, self.family == FAMILIES[0]) {
            (4, true) => address[..4].copy_from_slice(&peer[..4]),
            (4, false) => address[..4].copy_from_slice(&peer[12..]),
            _ => address.copy_from_slice(peer),
        }
        let word = |at: usize| u64::from(u32::from_ne_bytes([self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]]));
        SocketKey {
            cookie: word(40) | word(44) << 32,
            address,
            port: [self.id[2], self.id[3]],
            protocol: UDP,
            version,
            end: socket_end::BACKEND,
            reserved: [0; 3],
        }
    }
}

/// Ends the sockets that are connected through a service to a backend that does not serve. Returns how many there were.
pub(crate) fn end_datagrams(known: &Table<SocketKey, SocketEntry>, serves: impl Fn(u32) -> bool) -> Result<usize, LoaderError> {
    let failed = |action: &'static str| {
        move |error: io::Error| refuse(error, || format!("to {action}"), |source| LoaderError::Sockets { action, source })
    };
    let mut ended = 0;
    for family in FAMILIES {
        for socket in list(family).map_err(failed("list the sockets of UDP"))? {
            let is_gone = known.get(&socket.key())?.is_some_and(|entry| !serves(entry.backend));
            if is_gone && end(&socket).map_err(failed("end a socket"))? {
                ended += 1;
            }
        }
    }
    Ok(ended)
}

/// The connected sockets of a family.
fn list(family: u8) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    ask(&request(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &Socket { family, id: [0; ID] }), &mut sockets)?;
    Ok(sockets)
}

/// Ends a socket; false where it has gone by itself.
fn end(socket: &Socket) -> io::Result<bool> {
    match ask(&request(SOCK_DESTROY, REQUEST | ACKNOWLEDGE, socket), &mut Vec::new()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn ask(request: &[u8], sockets: &mut Vec<Socket>) -> io::Result<()> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(netlink.as_raw_fd(), request, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || read(&buffer[..length], sockets)? {
            return Ok(());
        }
    }
}

fn request(kind: u16, flags: u16, socket: &Socket) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 8 + ID);
    bytes.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes()); // sequence
    bytes.extend(0_u32.to_ne_bytes()); // port: the kernel chooses
    bytes.extend([socket.family, UDP, 0, 0]);
    bytes.extend(CONNECTED.to_ne_bytes());
    bytes.extend(socket.id);
    bytes
}

/// Reads the messages of one datagram; true at the end of the answer.
fn read(mut datagram: &[u8], sockets: &mut Vec<Socket>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message ends before its last byte");
    while !datagram.is_empty() {
        let length = number(datagram, 0).ok_or_else(cut)? as usize;
        let kind = datagram.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]])).ok_or_else(cut)?;
        let body = datagram.get(HEADER..length).ok_or_else(cut)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = number(body, 0).ok_or_else(cut)? as i32;
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            SOCK_DIAG_BY_FAMILY => {
                let id = body.get(4..4 + ID).and_then(|id| id.try_into().ok()).ok_or_else(cut)?;
                sockets.push(Socket { family: body[0], id });
            }
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket_to(family: i32, peer: &[u8]) -> Socket {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&53_u16.to_be_bytes());
        id[20..20 + peer.len()].copy_from_slice(peer);
        id[40..44].copy_from_slice(&7_u32.to_ne_bytes());
        id[44..48].copy_from_slice(&1_u32.to_ne_bytes());
        Socket { family: family as u8, id }
    }

    #[test]
    fn a_socket_has_the_key_under_which_the_programs_know_it() {
        let four = socket_to(nix::libc::AF_INET, &[10, 0, 0, 7]).key();
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[10, 0, 0, 7]);
        assert_eq!((four.cookie, four.address, four.port, four.version), (7 | 1 << 32, address, [0, 53], 4));
        let mapped = [&MAPPED[..], &[10, 0, 0, 7]].concat();
        assert_eq!(socket_to(nix::libc::AF_INET6, &mapped).key(), four, "of a socket of both families");
        let six = socket_to(nix::libc::AF_INET6, &[0xfd; 16]).key();
        assert_eq!((six.address, six.version), ([0xfd; 16], 6));
    }

    #[test]
    fn a_list_is_read_to_its_end_and_what_is_cut_is_an_error() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(HEADER, 0);
            bytes.extend(body);
            bytes
        };
        let listed = socket_to(nix::libc::AF_INET, &[10, 0, 0, 7]);
        let body = [&[listed.family, 1, 0, 0][..], &listed.id, &[0; 20]].concat();
        let mut sockets = Vec::new();
        let one = message(SOCK_DIAG_BY_FAMILY, &body);
        assert!(read(&[one.clone(), message(NLMSG_DONE, &[0; 4])].concat(), &mut sockets).unwrap());
        assert_eq!(sockets, [listed]);
        for length in 1..one.len() {
            assert!(read(&one[..length], &mut Vec::new()).is_err(), "{length} bytes");
        }
    }
}
