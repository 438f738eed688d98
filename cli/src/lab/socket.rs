//! Sockets inside a network namespace. A socket stays in the namespace where it was opened, so all are driven from
//! one place.

use super::flow::{Party, Protocol, family_of};
use super::{node, paths};
use nix::libc;
use palisade_cni::link::{LinkError, Namespace};
use palisade_protocol::Family;
use socket2::{Domain, Socket, Type};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

/// Why sockets could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] LinkError),
    /// A socket could not be opened or bound.
    #[error("cannot open a {protocol} socket for {party} on {address}: {source}")]
    Open {
        /// In whose namespace.
        party: Party,
        /// Its protocol.
        protocol: Protocol,
        /// To what it should be bound.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs `work` in the network namespace of `party`.
pub fn within<T: Send>(party: &Party, work: impl FnOnce() -> T + Send) -> Result<T, SocketsError> {
    match party {
        Party::Node(name) => Ok(node::within(name, work)?),
        _ => Ok(Namespace::open(&paths::namespace(party))?.enter(work)?),
    }
}

/// How a protocol is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the kernel's connections.
    Connection,
    /// By the kernel's datagrams.
    Datagram,
    /// By packets of our own, as far as an SCTP association's first answer.
    Association,
    /// By packets of our own, which the other end's kernel answers.
    Echo,
}

/// How a protocol is spoken here: SCTP is a module that many kernels do not have.
pub fn way(protocol: Protocol) -> Way {
    match protocol {
        Protocol::Tcp => Way::Connection,
        Protocol::Udp => Way::Datagram,
        Protocol::Sctp if kernel_speaks_sctp() => Way::Connection,
        Protocol::Sctp => Way::Association,
        Protocol::Icmp => Way::Echo,
    }
}

fn kernel_speaks_sctp() -> bool {
    // Kept: a kernel without it looks for the module each time.
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let number = i32::from(Protocol::Sctp.number(Family::Ipv4));
        Socket::new(Domain::IPV4, Type::STREAM, Some(number.into())).is_ok()
    })
}

/// A socket of a protocol and family, not bound, that does not block.
fn open(protocol: Protocol, family: Family) -> std::io::Result<Socket> {
    let domain = match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    };
    let (kind, raw) = match way(protocol) {
        Way::Connection => (Type::STREAM, false),
        Way::Datagram => (Type::DGRAM, false),
        Way::Association | Way::Echo => (Type::from(libc::SOCK_RAW), true),
    };
    let socket = Socket::new(domain, kind, Some(i32::from(protocol.number(family)).into()))?;
    socket.set_nonblocking(true)?;
    // A raw socket is of one family anyway, and refuses the option.
    if family == Family::Ipv6 && !raw {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A socket in the calling thread's namespace, bound to `address` (port 0: any free one). A raw one has no port and gets
/// all of its protocol.
pub fn bound(party: &Party, protocol: Protocol, address: SocketAddr) -> Result<Socket, SocketsError> {
    let bind = || {
        let socket = open(protocol, family_of(address.ip()))?;
        match way(protocol) {
            Way::Association | Way::Echo => socket.bind(&SocketAddr::new(address.ip(), 0).into())?,
            // So that no two sockets have one port: the kernel chooses that of a connection for its destination, and what goes to a backend by two frontends
            // from one port is one flow (ADR 10).
            spoken @ (Way::Datagram | Way::Connection) if address.port() == 0 => match socket.bind(&address.into()) {
                // None is free: the connections of a moment ago wait for what may be on its way still.
                Err(error) if error.kind() == ErrorKind::AddrInUse && spoken == Way::Connection => {}
                bound => bound?,
            },
            spoken => {
                socket.set_reuse_address(true)?;
                socket.bind(&address.into())?;
                if spoken == Way::Connection {
                    socket.listen(1024)?;
                }
            }
        }
        Ok(socket)
    };
    bind().map_err(|source| SocketsError::Open { party: party.clone(), protocol, address, source })
}

/// "Any address" of the family of `address`.
pub fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Raises the limit of open files to what is allowed, and returns it.
pub fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_sockets_of_a_party_have_one_port() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let open = || bound(&Party::Outside, protocol, SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 0)).unwrap();
            let sockets: Vec<Socket> = (0..50).map(|_| open()).collect();
            let ports = sockets.iter().map(|socket| socket.local_addr().unwrap().as_socket().unwrap().port());
            let ports: BTreeSet<u16> = ports.filter(|port| *port != 0).collect();
            assert_eq!(ports.len(), sockets.len(), "{protocol}: {ports:?}");
        }
    }
}
