use super::{LinkError, Namespace};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};
use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};

pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The error carries only the header of the request, not the request (`NETLINK_CAP_ACK`).
const FLAG_CAPPED: u16 = 0x100;
/// Attributes follow the error (`NETLINK_EXT_ACK`).
const FLAG_ACK_ATTRIBUTES: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Length in bytes of the header of a message.
pub(super) const HEADER: usize = 16;
/// The kernel sends parts of a list in at most 32 KiB.
const BUFFER: usize = 64 * 1024;

/// A conversation with the kernel about one network namespace: links, addresses, routes, neighbours.
///
/// The namespace is the one in which the socket was opened, whichever thread uses it afterwards. Every method
/// waits for the kernel's answer.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl Netlink {
    /// Opens a conversation about the calling thread's namespace.
    pub fn open() -> Result<Self, LinkError> {
        let failed = |action| move |errno| LinkError::Socket { action, errno };
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).map_err(failed("open"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("bind"))?;
        // Both options only make errors say more; a kernel without them is none the worse.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            turn_on(&socket, option);
        }
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// Opens a conversation about `namespace`.
    pub fn open_in(namespace: &Namespace) -> Result<Self, LinkError> {
        namespace.enter(Self::open)?
    }

    /// Sends a change and waits until the kernel has made it. `flags` are the `NLM_F_*` besides request and
    /// acknowledgement, `action` is what an error says.
    pub(super) fn change(&self, message: RouteNetlinkMessage, flags: u16, action: impl Fn() -> String) -> Result<(), LinkError> {
        self.exchange(message, flags | NLM_F_ACK, &action, |_| Ok(())).map(|_| ())
    }

    /// Asks for one thing and hands the kernel's answer, without the netlink header, to `read`.
    pub(super) fn get<T>(
        &self,
        message: RouteNetlinkMessage,
        action: impl Fn() -> String,
        mut read: impl FnMut(&[u8]) -> Result<T, String>,
    ) -> Result<Option<T>, LinkError> {
        let mut answer = None;
        self.exchange(message, NLM_F_ACK, &action, |payload| {
            answer = Some(read(payload)?);
            Ok(())
        })?;
        Ok(answer)
    }

    /// Asks for a list and hands every element, without the netlink header, to `read`, which says what is of
    /// interest. A list that changed while it was read is read again.
    pub(super) fn list<T>(
        &self,
        message: RouteNetlinkMessage,
        action: impl Fn() -> String,
        mut read: impl FnMut(&[u8]) -> Result<Option<T>, String>,
    ) -> Result<Vec<T>, LinkError> {
        // On a node where links come and go all the time, a list with a slip is better than none.
        const ATTEMPTS: usize = 5;
        let mut elements = Vec::new();
        for _ in 0..ATTEMPTS {
            elements.clear();
            let whole = self.exchange(message.clone(), NLM_F_DUMP, &action, |payload| {
                elements.extend(read(payload)?);
                Ok(())
            })?;
            if whole {
                break;
            }
        }
        Ok(elements)
    }

    /// Sends a request and reads to the end of the answer. False: the list changed while it was read.
    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &impl Fn() -> String,
        mut each: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<bool, LinkError> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(|errno| LinkError::Socket { action: "send", errno })?;

        let malformed = |reason: String| LinkError::Malformed { action: action(), reason };
        let mut whole = true;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(|errno| LinkError::Socket { action: "receive", errno })?,
            };
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let message = NetlinkBuffer::new_checked(rest).map_err(|error| malformed(error.to_string()))?;
                let payload = message.payload();
                let end = (message.length() as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[end..];
                if message.sequence_number() != sequence {
                    // The end of an answer that an earlier error cut short.
                    continue;
                }
                whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                match message.message_type() {
                    NLMSG_ERROR => return acknowledged(payload, message.flags(), action).map(|()| whole),
                    NLMSG_DONE => return done(payload, action).map(|()| whole),
                    _ => each(payload).map_err(malformed)?,
                }
            }
        }
    }
}

/// Reads an acknowledgement: an error number, of which 0 is none.
fn acknowledged(payload: &[u8], flags: u16, action: &impl Fn() -> String) -> Result<(), LinkError> {
    let code = error_code(payload, action)?;
    if code == 0 {
        return Ok(());
    }
    let request = if flags & FLAG_CAPPED != 0 {
        HEADER
    } else {
        payload.get(4..8).map_or(0, |length| u32::from_ne_bytes([length[0], length[1], length[2], length[3]]) as usize).next_multiple_of(4)
    };
    let detail = (flags & FLAG_ACK_ATTRIBUTES != 0).then(|| kernel_sentence(payload.get(4 + request..).unwrap_or_default())).flatten();
    Err(LinkError::Refused { action: action(), errno: Errno::from_raw(-code), detail })
}

/// Reads the end of a list, which may carry an error too.
fn done(payload: &[u8], action: &impl Fn() -> String) -> Result<(), LinkError> {
    match if payload.is_empty() { 0 } else { error_code(payload, action)? } {
        code if code < 0 => Err(LinkError::Refused { action: action(), errno: Errno::from_raw(-code), detail: None }),
        _ => Ok(()),
    }
}

fn error_code(payload: &[u8], action: &impl Fn() -> String) -> Result<i32, LinkError> {
    let bytes = payload.get(..4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(i32::from_ne_bytes).ok_or_else(|| LinkError::Malformed { action: action(), reason: "an error without a number".into() })
}

fn kernel_sentence(attributes: &[u8]) -> Option<String> {
    let attribute = NlasIterator::new(attributes).filter_map(Result::ok).find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned();
    (!text.is_empty()).then_some(text)
}

fn turn_on(socket: &OwnedFd, option: libc::c_int) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads exactly the four bytes of `on`.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t)
    };
}
