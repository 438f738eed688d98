//! Where services are reached, and how it is written in rows.

use palisade_datapath_core::abi::Backend;
use palisade_identity::Protocol;
use palisade_policy::shared::Grouped;
use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Frontends of which the addresses differ in their last eight bits.
impl Grouped for Frontend {
    fn compare_groups(&self, other: &Self) -> Ordering {
        self.address.compare_groups(&other.address)
    }
}

/// `10.96.0.1:80/TCP`, `[fd00::1]:80/TCP`.
impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", std::net::SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// Who is behind a service: an address and a port.
pub(crate) type Target = (IpAddr, u16);

/// The row of a backend that is no more than known.
pub(crate) fn backend((address, port): Target, service: u32, flags: u8) -> Backend {
    let (version, octets) = match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            (4, octets)
        }
        IpAddr::V6(address) => (6, address.octets()),
    };
    Backend { address: octets, service, port: port.to_be_bytes(), version, flags }
}

/// Address and port in a backend's row; `None` where its version is none.
pub fn target(backend: &Backend) -> Option<(IpAddr, u16)> {
    let address = match backend.version {
        4 => IpAddr::V4(Ipv4Addr::from(*backend.address.first_chunk()?)),
        6 => IpAddr::V6(Ipv6Addr::from(backend.address)),
        _ => return None,
    };
    Some((address, u16::from_be_bytes(backend.port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_is_written_as_an_address_with_a_port_and_a_backend_is_read_as_it_was_written() {
        for (address, written) in [("10.96.0.1", "10.96.0.1:80/SCTP"), ("fd00::1", "[fd00::1]:80/SCTP")] {
            let frontend = Frontend { address: address.parse().expect("an address"), protocol: Protocol::Sctp, port: 80 };
            assert_eq!(frontend.to_string(), written);
            assert_eq!(target(&backend((frontend.address, 80), 1, 0)), Some((frontend.address, 80)));
        }
    }
}
