//! Network namespaces and netlink: the only place of the project that talks to the kernel about links, addresses,
//! routes and neighbours, or that changes a thread's namespace. Synchronous; asynchronous callers wrap it in
//! `spawn_blocking`.
//!
//! ```no_run
//! use palisade_cni::link::{Namespace, Netlink, Route};
//! # fn main() -> Result<(), palisade_cni::link::LinkError> {
//! let pod = Namespace::open("/run/netns/pod".as_ref())?;
//! let inside = Netlink::open_in(&pod)?; // stays in the pod's namespace, whoever uses it
//! if let Some(link) = inside.link("eth0")? {
//!     inside.add_address(link.index, "10.0.0.7/32".parse().unwrap())?;
//!     inside.set_up(link.index)?;
//!     inside.add_route(&Route::default_via("169.254.1.1".parse().unwrap(), link.index))?;
//! }
//! let listener = pod.enter(|| std::net::TcpListener::bind("10.0.0.7:80"))?; // and so do sockets and processes
//! # Ok(())
//! # }
//! ```

mod address;
pub mod associations;
mod device;
mod error;
mod mac;
pub mod masquerade;
mod namespace;
mod neighbour;
pub mod nftables;
mod route;
mod socket;
pub mod sysctl;
mod vxlan;
mod watch;
mod xfrm;

pub use address::InterfaceAddress;
pub use associations::{Associations, Lead};
pub use device::{Link, Veth};
pub use error::LinkError;
pub use mac::{MacAddress, MacAddressError};
pub use masquerade::Masquerade;
pub use namespace::{Namespace, NamespaceId};
pub use neighbour::Neighbour;
pub use route::{ROUTE_PROTOCOL, Route, RouteKind, everything};
pub use socket::Netlink;
pub use vxlan::{Vxlan, VxlanMode};
pub use watch::{Change, Watch};
pub use xfrm::outbound_policies;

use netlink_packet_route::AddressFamily;
use std::net::IpAddr;

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// An address in network byte order, of either family.
fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}
