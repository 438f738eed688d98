//! Reading the clsact filters of an interface: aya attaches and removes them, but cannot list them.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Parents of the two hooks of a clsact qdisc.
pub(crate) const INGRESS: u32 = 0xffff_fff2;
pub(crate) const EGRESS: u32 = 0xffff_fff3;

const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// One filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Lower runs first.
    pub(crate) priority: u16,
    /// Which of its priority.
    pub(crate) handle: u32,
}

/// The filters of one hook of an interface, in this thread's network namespace. An interface without the qdisc
/// has none.
pub(crate) fn list(index: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &request(index, parent), MsgFlags::empty())?;
    let mut filters = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || read(&buffer[..length], &mut filters)? {
            return Ok(filters);
        }
    }
}

fn request(index: u32, parent: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + TCMSG);
    bytes.extend(((HEADER + TCMSG) as u32).to_ne_bytes());
    bytes.extend(RTM_GETTFILTER.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes()); // sequence
    bytes.extend(0_u32.to_ne_bytes()); // port: the kernel chooses
    bytes.extend(0_u32.to_ne_bytes()); // family and padding
    bytes.extend(index.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes()); // every handle
    bytes.extend(parent.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes()); // every priority and protocol
    bytes
}

/// Reads the messages of one datagram; true at the end of the list.
fn read(mut datagram: &[u8], filters: &mut Vec<Filter>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message ends before its last byte");
    while !datagram.is_empty() {
        let length = u32_at(datagram, 0).ok_or_else(cut)? as usize;
        let kind = datagram.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]])).ok_or_else(cut)?;
        let body = datagram.get(HEADER..length).ok_or_else(cut)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).ok_or_else(cut)? as i32;
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            RTM_NEWTFILTER => {
                let handle = u32_at(body, 8).ok_or_else(cut)?;
                let info = u32_at(body, 16).ok_or_else(cut)?;
                // The list has a line without handle for each priority too.
                if handle != 0 {
                    filters.push(Filter { priority: (info >> 16) as u16, handle });
                }
            }
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn filters_are_read_with_priority_and_handle() {
        let mut body = vec![0; TCMSG];
        body[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        body[16..20].copy_from_slice(&(3_u32 << 16).to_ne_bytes());
        let mut datagram = message(RTM_NEWTFILTER, &body);
        datagram.extend(message(NLMSG_DONE, &[0; 4]));
        let mut filters = Vec::new();
        assert!(read(&datagram, &mut filters).unwrap());
        assert_eq!(filters, [Filter { priority: 3, handle: 7 }]);
    }

    #[test]
    fn a_message_that_is_cut_is_an_error() {
        let datagram = message(RTM_NEWTFILTER, &[0; TCMSG]);
        for length in 1..datagram.len() {
            assert!(read(&datagram[..length], &mut Vec::new()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_message_with_a_length_below_its_header_is_an_error() {
        let mut datagram = message(RTM_NEWTFILTER, &[0; TCMSG]);
        datagram[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert!(read(&datagram, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_refusal_is_the_kernels_error() {
        let datagram = message(NLMSG_ERROR, &(-nix::libc::ENODEV).to_ne_bytes());
        assert_eq!(read(&datagram, &mut Vec::new()).unwrap_err().raw_os_error(), Some(nix::libc::ENODEV));
    }
}
