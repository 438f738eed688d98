use super::{InterfaceAddress, Link, LinkError, Route, address, device, route};
use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const HEADER: usize = 16;
const BUFFER: usize = 64 * 1024;

/// What somebody has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link is new, or is not as it was.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// A route of the main table is new, or another than it was.
    Route(Route),
    /// A route of the main table is gone.
    RouteGone(Route),
    /// An address of an interface is new, gone, or no longer tentative, for example.
    Address(InterfaceAddress),
    /// More has changed than the kernel kept for this socket: anything may be different.
    Anything,
}

/// Tells of changes of links, addresses and routes of the namespace in which it was opened, whoever makes them. Not to be asked: wait until its descriptor
/// can be read.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
}

impl Watch {
    /// Begins to watch the calling thread's namespace.
    pub fn open() -> Result<Self, LinkError> {
        let failed = |action| move |errno| LinkError::Socket { action, errno };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute).map_err(failed("open"))?;
        let addresses = libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let groups = libc::RTMGRP_LINK | addresses | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32)).map_err(failed("bind"))?;
        Ok(Self { socket })
    }

    /// What has changed since it was asked last; empty when nothing has. Does not wait.
    pub fn changes(&self) -> Result<Vec<Change>, LinkError> {
        let mut changes = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return Ok(changes),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    changes.push(Change::Anything);
                    continue;
                }
                other => other.map_err(|errno| LinkError::Socket { action: "receive", errno })?,
            };
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                // What cannot be read is something that is different, all the same.
                let Ok(message) = NetlinkBuffer::new_checked(rest) else {
                    changes.push(Change::Anything);
                    break;
                };
                changes.extend(change(message.message_type(), message.payload()));
                rest = &rest[(message.length() as usize).next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The change that a message tells of; `None` for one of another table, for example.
fn change(kind: u16, payload: &[u8]) -> Option<Change> {
    let link = || device::read(payload).map_err(|_| Change::Anything);
    let route = || route::read(payload).map_err(|_| Change::Anything);
    Some(match kind {
        libc::RTM_NEWLINK => link().map_or_else(|anything| anything, Change::Link),
        libc::RTM_DELLINK => link().map_or_else(|anything| anything, Change::LinkGone),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => address::read(payload).map_or(Some(Change::Anything), |read| read.map(Change::Address))?,
        libc::RTM_NEWROUTE => route().map_or_else(Some, |route| route.map(Change::Route))?,
        libc::RTM_DELROUTE => route().map_or_else(Some, |route| route.map(Change::RouteGone))?,
        _ => return None,
    })
}
