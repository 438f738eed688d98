//! Sockets inside a network namespace. A socket stays in the namespace where it was opened, so all are driven from
//! one place.

use super::flow::Party;
use super::paths;
use palisade_cni::link::{LinkError, Namespace};
use palisade_identity::Protocol;
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr};

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
        Party::Node => Ok(work()),
        _ => Ok(Namespace::open(&paths::namespace(party))?.enter(work)?),
    }
}

/// Whether this kernel has sockets of a protocol. TCP and UDP always; SCTP is a module that many do not have.
pub fn supported(protocol: Protocol) -> bool {
    protocol != Protocol::Sctp || open(protocol, false).is_ok()
}

/// A socket of a protocol and family, not bound, that does not block.
fn open(protocol: Protocol, ipv6: bool) -> std::io::Result<Socket> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let kind = if protocol == Protocol::Udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(domain, kind, Some(i32::from(protocol.number()).into()))?;
    socket.set_nonblocking(true)?;
    if ipv6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A socket in the calling thread's namespace, bound to `address` (port 0: any free one).
pub fn bound(party: &Party, protocol: Protocol, address: SocketAddr) -> Result<Socket, SocketsError> {
    let bind = || {
        let socket = open(protocol, address.is_ipv6())?;
        if address.port() != 0 {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            if protocol != Protocol::Udp {
                socket.listen(1024)?;
            }
        } else if protocol == Protocol::Udp {
            socket.bind(&address.into())?;
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
