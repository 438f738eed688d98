//! Tables of nf_tables, replaced as a whole, by messages of netlink.
//!
//! They are those of `linux/netfilter/nf_tables.h`; all numbers in them are in network byte order.

use super::LinkError;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
    sockopt::SndBufForce,
};
use nix::sys::time::TimeVal;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes that may be on their way to the kernel.
const SEND_BUFFER: usize = 8 << 20;
/// How long the kernel may take to answer, in seconds.
const PATIENCE: i64 = 10;

/// A table of both families.
pub(super) trait Table {
    /// Its name.
    const NAME: &'static str;

    /// Whether it says nothing, and so is not there.
    fn is_empty(&self) -> bool;

    /// Writes all that is in it.
    fn write(&self, batch: &mut Batch);
}

/// Makes the table of the calling thread's network namespace say this, in one step; where it says nothing there is none. Connections that are
/// translated already go on as they are.
pub(super) fn replace<T: Table>(table: &T) -> Result<(), LinkError> {
    let named = |message: &mut Message| message.text(1, T::NAME);
    let mut batch = Batch::new();
    // Made if it is not there, so that it can be removed in any case.
    batch.message(NEW_TABLE, NLM_F_CREATE, named);
    batch.message(DELETE_TABLE, 0, named);
    if !table.is_empty() {
        batch.message(NEW_TABLE, NLM_F_CREATE, named);
        table.write(&mut batch);
    }
    batch.send(&open()?, &format!("replace the nf_tables table `inet {}`", T::NAME))
}

/// Whether an error says that this kernel has no nf_tables: then no table of ours is there, either.
pub fn is_unsupported(error: &LinkError) -> bool {
    // Of a socket for netfilter, and of a message for nf_tables.
    matches!(error.errno(), Some(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP))
}

/// Number of the rule set's generation, which moves with every change that anybody makes.
///
/// # Errors
/// As of [`Masquerade::apply`].
pub fn generation() -> Result<u32, LinkError> {
    let action = "ask for the generation of nf_tables";
    let socket = open()?;
    let mut request = Message::new(SUBSYSTEM << 8 | GET_GENERATION, NLM_F_REQUEST, 1);
    request.family(FAMILY_NONE, 0);
    transmit(&socket, &request.finish())?;
    let mut buffer = vec![0; 4096];
    let length = receive(&socket, &mut buffer)?;
    let malformed = || LinkError::Malformed { action: action.into(), reason: "no generation in it".into() };
    let answer = buffer.get(..length).unwrap_or_default();
    if let Some(errno) = error_of(answer) {
        return Err(refused(action, errno));
    }
    // After the header of netlink and that of netfilter: the first attribute is the number.
    let number = answer.get(24..28).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
    Ok(u32::from_be_bytes(number))
}

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
pub(super) const NEW_SET: u16 = 9;
pub(super) const NEW_ELEMENTS: u16 = 12;
const GET_GENERATION: u16 = 16;

const FAMILY_NONE: u8 = 0;
/// Both families in one table.
const FAMILY_INET: u8 = 1;
pub(super) const FAMILY_IPV4: u8 = 2;
pub(super) const FAMILY_IPV6: u8 = 10;
/// `NFT_REG_1`.
pub(super) const REGISTER: u32 = 1;
/// `NFT_REG_2`.
pub(super) const SECOND_REGISTER: u32 = 2;
/// `NFT_REG_3`.
pub(super) const THIRD_REGISTER: u32 = 3;
const NESTED: u16 = 0x8000;
/// `NFT_CMP_EQ`.
pub(super) const EQUAL: u32 = 0;
/// `NFT_CMP_NEQ`.
pub(super) const NOT_EQUAL: u32 = 1;
/// `NFT_META_NFPROTO`: the family of a packet.
pub(super) const META_FAMILY: u32 = 15;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
pub(super) const NETWORK_HEADER: u32 = 1;

/// `meta KEY == VALUE`.
pub(super) fn meta_is(list: &mut Message, key: u32, value: &[u8]) {
    expression(list, "meta", |meta| {
        meta.number(1, REGISTER);
        meta.number(2, key);
    });
    compare(list, EQUAL, value);
}

/// Compares the first register.
pub(super) fn compare(list: &mut Message, how: u32, value: &[u8]) {
    expression(list, "cmp", |compare| {
        compare.number(1, REGISTER);
        compare.number(2, how);
        compare.nested(3, |data| data.attribute(1, value));
    });
}

/// Reads bytes of a packet into the first register.
pub(super) fn payload(list: &mut Message, header: u32, offset: u32, length: u32) {
    expression(list, "payload", |payload| {
        payload.number(1, REGISTER);
        payload.number(2, header);
        payload.number(3, offset);
        payload.number(4, length);
    });
}

/// Gives a packet another source or destination, which the first register holds; its port lies between those of the second and third. A packet of
/// the other family passes it by.
pub(super) fn translate(list: &mut Message, kind: u32, address: IpAddr, flags: u32) {
    immediate(list, REGISTER, &octets(&address));
    expression(list, "nat", |nat| {
        nat.number(1, kind);
        nat.number(2, family_of(address).into());
        nat.number(3, REGISTER);
        nat.number(5, SECOND_REGISTER);
        nat.number(6, THIRD_REGISTER);
        nat.number(7, flags);
    });
}

/// The number of an address' family.
pub(super) const fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv6() { FAMILY_IPV6 } else { FAMILY_IPV4 }
}

/// Puts a value into a register.
pub(super) fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    expression(list, "immediate", |immediate| {
        immediate.number(1, register);
        immediate.nested(2, |data| data.attribute(1, value));
    });
}

/// One expression of a rule.
pub(super) fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nested(1, |expression| {
        expression.text(1, name);
        expression.nested(2, data);
    });
}

pub(super) fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A message of netlink while it is written.
pub(super) struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, sequence: u32) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Self(bytes)
    }

    /// The header of netfilter.
    fn family(&mut self, family: u8, resource: u16) {
        self.0.extend([family, 0]);
        self.0.extend(resource.to_be_bytes());
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.align();
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        content(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Changes that are made together or not at all.
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where its last message begins.
    last: usize,
}

impl Batch {
    fn new() -> Self {
        let mut begin = Message::new(BATCH_BEGIN, NLM_F_REQUEST, 0);
        begin.family(FAMILY_NONE, SUBSYSTEM);
        Self { bytes: begin.finish(), sequence: 0, last: 0 }
    }

    /// A chain that translates addresses, at a hook.
    pub(super) fn nat_chain<T: Table>(&mut self, name: &str, hook: u32, priority: i32) {
        self.message(NEW_CHAIN, NLM_F_CREATE, |message| {
            message.text(1, T::NAME);
            message.text(3, name);
            message.nested(4, |at| {
                at.number(1, hook);
                at.attribute(2, &priority.to_be_bytes());
            });
            message.text(7, "nat");
        });
    }

    /// The next rule of a chain: its expressions.
    pub(super) fn rule<T: Table>(&mut self, chain: &str, expressions: impl FnOnce(&mut Message)) {
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
            message.text(1, T::NAME);
            message.text(2, chain);
            message.nested(4, expressions);
        });
    }

    pub(super) fn message(&mut self, kind: u16, flags: u16, content: impl FnOnce(&mut Message)) {
        self.sequence += 1;
        let mut message = Message::new(SUBSYSTEM << 8 | kind, NLM_F_REQUEST | flags, self.sequence);
        message.family(FAMILY_INET, 0);
        content(&mut message);
        self.last = self.bytes.len();
        self.bytes.extend(message.finish());
    }

    /// Sends it and waits until all of it is made. An error is told of whichever message it is; that all went well, by an answer to the last one alone:
    /// the kernel puts the answers into the socket while it takes the messages, and has not room for thousands.
    fn send(mut self, socket: &OwnedFd, action: &str) -> Result<(), LinkError> {
        let mut end = Message::new(BATCH_END, NLM_F_REQUEST, self.sequence + 1);
        end.family(FAMILY_NONE, SUBSYSTEM);
        self.bytes.extend(end.finish());
        for (byte, ack) in self.bytes[self.last + 6..].iter_mut().zip(NLM_F_ACK.to_ne_bytes()) {
            *byte |= ack;
        }
        transmit(socket, &self.bytes)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = receive(socket, &mut buffer)?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                if let Some(errno) = error_of(rest) {
                    return Err(refused(action, errno));
                }
                let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
                if word(8) == self.sequence {
                    return Ok(());
                }
                let length = word(0) as usize;
                rest = rest.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The error that a message carries, if it carries one.
fn error_of(message: &[u8]) -> Option<Errno> {
    let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    code.filter(|code| kind == Some(NLMSG_ERROR) && *code != 0).map(|code| Errno::from_raw(-code))
}

fn refused(action: &str, errno: Errno) -> LinkError {
    let lacks = matches!(errno, Errno::EOPNOTSUPP | Errno::ENOENT);
    let detail = lacks.then(|| "the kernel lacks nf_tables or what it translates addresses with (modules nf_tables, nft_nat, nft_masq, nft_numgen, nft_reject_inet)".to_owned());
    LinkError::Refused { action: action.to_owned(), errno, detail }
}

fn open() -> Result<OwnedFd, LinkError> {
    let failed = |action| move |errno| LinkError::Socket { action, errno };
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter).map_err(failed("open"))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("bind"))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE, 0)).map_err(failed("set a time limit"))?;
    // A batch is one message to the socket. Where this is not allowed, the ranges of some thousand nodes fit all the same.
    let _ = setsockopt(&socket, SndBufForce, &SEND_BUFFER);
    Ok(socket)
}

fn transmit(socket: &OwnedFd, bytes: &[u8]) -> Result<(), LinkError> {
    send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(|errno| LinkError::Socket { action: "send", errno })
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, LinkError> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            other => return other.map_err(|errno| LinkError::Socket { action: "receive", errno }),
        }
    }
}
