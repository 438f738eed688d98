use super::LinkError;
use super::socket::{HEADER, NLMSG_ERROR};
use netlink_packet_core::{NLM_F_REQUEST, NlasIterator};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// From `linux/xfrm.h`.
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRMA_SPD_INFO: u16 = 1;
/// Where `struct xfrmu_spdinfo` has the number of policies for what is sent.
const OUTBOUND: std::ops::Range<usize> = 4..8;

/// Number of IPsec policies (xfrm) about what the calling thread's namespace sends, but for those of single sockets. 0 where the kernel has no IPsec.
///
/// # Errors
/// The kernel does not answer, or with something else.
pub fn outbound_policies() -> Result<u32, LinkError> {
    const ACTION: &str = "count IPsec policies";
    let failed = |action| move |errno| LinkError::Socket { action, errno };
    // SAFETY: the call takes numbers; a descriptor that it returns is open, and nobody else has it.
    let socket = match Errno::result(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_XFRM) }) {
        // SAFETY: as above.
        Ok(descriptor) => unsafe { OwnedFd::from_raw_fd(descriptor) },
        Err(Errno::EPROTONOSUPPORT) => return Ok(0),
        Err(errno) => return Err(failed("open")(errno)),
    };
    // The header, and flags of which none is known.
    const REQUEST: usize = HEADER + 4;
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&XFRM_MSG_GETSPDINFO.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).map_err(failed("send"))?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(failed("receive"))?;
    read(&answer[..length])
        .ok_or_else(|| LinkError::Malformed { action: ACTION.to_owned(), reason: "no numbers of policies".into() })?
        .map_err(|errno| LinkError::Refused { action: ACTION.to_owned(), errno, detail: None })
}

/// The number that an answer holds, or its error.
fn read(answer: &[u8]) -> Option<Result<u32, Errno>> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_ne_bytes);
    let payload = answer.get(HEADER + 4..)?;
    if answer[4..6] == NLMSG_ERROR.to_ne_bytes() {
        let code = number(answer.get(HEADER..HEADER + 4)?)?.cast_signed();
        return Some(Err(Errno::from_raw(-code)));
    }
    let information = NlasIterator::new(payload).filter_map(Result::ok).find(|attribute| attribute.kind() == XFRMA_SPD_INFO)?;
    Some(Ok(number(information.value().get(OUTBOUND)?)?))
}
