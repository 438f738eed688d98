//! What must leave under the node's own address: what pods send to the outside, and what the datapath marks. One table of nf_tables, of up to
//! five rules and four sets, replaced as a whole.
//!
//! The messages are those of `linux/netfilter/nf_tables.h`; all numbers in them are in network byte order.

use super::LinkError;
use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
    sockopt::SndBufForce,
};
use nix::sys::time::TimeVal;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};

/// The name of the table; its family is `inet`.
pub const TABLE: &str = "palisade";
/// Its one chain.
const CHAIN: &str = "postrouting";
/// Where source addresses are translated: `NF_IP_PRI_NAT_SRC`.
const PRIORITY: u32 = 100;
/// Elements of a set in one message; an attribute holds at most 64 KiB.
const ELEMENTS: usize = 500;
/// Bytes that may be on their way to the kernel.
const SEND_BUFFER: usize = 8 << 20;
/// How long the kernel may take to answer, in seconds.
const PATIENCE: i64 = 10;

/// Which packets leave under the node's address: those from the pods of this node to the outside, and those that are marked.
///
/// They leave from one of [`PORTS`]. Where a packet has one already, and nobody else uses it, it keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The pods' addresses.
    pub sources: BTreeSet<IpNet>,
    /// Destinations that see the pods' own addresses. Multicast and link-local ones always do.
    pub inside: BTreeSet<IpNet>,
    /// The bits of a packet's mark of which each says that it is to be masqueraded, wherever it goes; zero: none does.
    pub mark: u32,
    /// Under which address what is marked leaves by which device, where the kernel's choice is not right: one of a family at most.
    pub by_device: BTreeSet<(String, IpAddr)>,
}

/// The ports from which masqueraded packets leave. An answer to one comes to the node's address, where the datapath looks for services before
/// the kernel looks for the connection: so none of them is among those that Kubernetes gives out as node ports, 30000 to 32767.
pub const PORTS: RangeInclusive<u16> = 32_768..=u16::MAX;

impl Masquerade {
    /// Makes the table of the calling thread's network namespace say this, in one step; where nothing is to be masqueraded there is none. Connections that are
    /// translated already go on as they are.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or the caller may not.
    pub fn apply(&self) -> Result<(), LinkError> {
        let socket = open()?;
        let mut batch = Batch::new();
        // Made if it is not there, so that it can be removed in any case.
        batch.message(NEW_TABLE, NLM_F_CREATE, table);
        batch.message(DELETE_TABLE, 0, table);
        if !self.is_empty() {
            batch.message(NEW_TABLE, NLM_F_CREATE, table);
            batch.message(NEW_CHAIN, NLM_F_CREATE, chain);
            if self.mark != 0 {
                for (device, address) in &self.by_device {
                    batch.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |message| device_rule(message, self.mark, device, *address));
                }
                // First: a destination inside the cluster is no reason to leave what is marked alone.
                batch.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |message| marked_rule(message, self.mark));
            }
            for ipv6 in [false, true] {
                self.write_family(&mut batch, ipv6);
            }
        }
        batch.send(&socket, "replace the nf_tables table `inet palisade`")
    }

    /// Whether no packet is masqueraded.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.mark == 0
    }

    fn write_family(&self, batch: &mut Batch, ipv6: bool) {
        let of_family =
            |blocks: &BTreeSet<IpNet>| -> Vec<IpNet> { blocks.iter().filter(|block| is_ipv6(block) == ipv6).copied().collect() };
        let sources = of_family(&self.sources);
        if sources.is_empty() {
            return;
        }
        let mut inside = of_family(&self.inside);
        let always: &[&str] = if ipv6 { &["ff00::/8", "fe80::/10"] } else { &["224.0.0.0/4", "169.254.0.0/16", "255.255.255.255/32"] };
        inside.extend(always.iter().filter_map(|block| block.parse::<IpNet>().ok()));
        let (pods, other) = if ipv6 { ("pods6", "inside6") } else { ("pods4", "inside4") };
        for (id, (name, blocks)) in (1 + 2 * u32::from(ipv6)..).zip([(pods, sources), (other, inside)]) {
            batch.message(NEW_SET, NLM_F_CREATE, |message| set(message, name, id, ipv6));
            for elements in ranges(&blocks).chunks(ELEMENTS) {
                batch.message(NEW_ELEMENTS, NLM_F_CREATE, |message| write_elements(message, name, id, elements));
            }
        }
        batch.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |message| rule(message, pods, other, ipv6));
    }
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
const NLM_F_CREATE: u16 = 0x400;
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
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const GET_GENERATION: u16 = 16;

const FAMILY_NONE: u8 = 0;
/// Both families in one table.
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
/// `NF_INET_POST_ROUTING`.
const HOOK_POSTROUTING: u32 = 4;
/// `NFT_REG_1`.
const REGISTER: u32 = 1;
/// `NFT_REG_2`.
const SECOND_REGISTER: u32 = 2;
/// `NFT_REG_3`.
const THIRD_REGISTER: u32 = 3;
const NESTED: u16 = 0x8000;

fn is_ipv6(block: &IpNet) -> bool {
    block.addr().is_ipv6()
}

fn table(message: &mut Message) {
    message.text(1, TABLE);
}

fn chain(message: &mut Message) {
    message.text(1, TABLE);
    message.text(3, CHAIN);
    message.nested(4, |hook| {
        hook.number(1, HOOK_POSTROUTING);
        hook.number(2, PRIORITY);
    });
    message.text(7, "nat");
}

/// A set of intervals of addresses.
fn set(message: &mut Message, name: &str, id: u32, ipv6: bool) {
    const INTERVAL: u32 = 4;
    message.text(1, TABLE);
    message.text(2, name);
    message.number(3, INTERVAL);
    // The type is what `nft` shows elements by.
    message.number(4, if ipv6 { 8 } else { 7 });
    message.number(5, if ipv6 { 16 } else { 4 });
    message.number(10, id);
}

fn write_elements(message: &mut Message, name: &str, id: u32, elements: &[(IpAddr, Option<IpAddr>)]) {
    const INTERVAL_END: u32 = 1;
    message.text(1, TABLE);
    message.text(2, name);
    message.number(4, id);
    message.nested(3, |list| {
        let mut element = |address: &IpAddr, flags: u32| {
            list.nested(1, |element| {
                element.nested(1, |key| key.attribute(1, &octets(address)));
                if flags != 0 {
                    element.number(3, flags);
                }
            });
        };
        for (first, after) in elements {
            element(first, 0);
            // The last address of all has none after it.
            after.iter().for_each(|after| element(after, INTERVAL_END));
        }
    });
}

/// `meta mark and MARK != 0 masquerade to :PORTS fully-random`.
fn marked_rule(message: &mut Message, mark: u32) {
    message.text(1, TABLE);
    message.text(2, CHAIN);
    message.nested(4, |list| {
        is_marked(list, mark);
        // Clients behind many ports meet at few backends: two packets that look for a free port at once should not find the same.
        masquerade(list, RANDOM_FULLY);
    });
}

/// `meta mark and MARK != 0 meta oifname DEVICE snat to ADDRESS:PORTS fully-random`. A packet of the other family passes it by.
fn device_rule(message: &mut Message, mark: u32, device: &str, address: IpAddr) {
    const OUT_INTERFACE_NAME: u32 = 7;
    const NAME_LENGTH: usize = 16;
    const SOURCE: u32 = 0;
    message.text(1, TABLE);
    message.text(2, CHAIN);
    message.nested(4, |list| {
        is_marked(list, mark);
        expression(list, "meta", |meta| {
            meta.number(1, REGISTER);
            meta.number(2, OUT_INTERFACE_NAME);
        });
        let mut name = device.as_bytes().to_vec();
        name.resize(NAME_LENGTH, 0);
        expression(list, "cmp", |compare| {
            compare.number(1, REGISTER);
            compare.number(2, 0);
            compare.nested(3, |value| value.attribute(1, &name));
        });
        ports(list, SECOND_REGISTER, THIRD_REGISTER);
        immediate(list, REGISTER, &octets(&address));
        expression(list, "nat", |nat| {
            nat.number(1, SOURCE);
            nat.number(2, if address.is_ipv6() { FAMILY_IPV6 } else { FAMILY_IPV4 }.into());
            nat.number(3, REGISTER);
            nat.number(5, SECOND_REGISTER);
            nat.number(6, THIRD_REGISTER);
            nat.number(7, RANDOM_FULLY);
        });
    });
}

/// `meta mark and MARK != 0`.
fn is_marked(list: &mut Message, mark: u32) {
    const MARK: u32 = 3;
    const NOT_EQUAL: u32 = 1;
    expression(list, "meta", |meta| {
        meta.number(1, REGISTER);
        meta.number(2, MARK);
    });
    // The mark of a packet is in the machine's byte order.
    expression(list, "bitwise", |bitwise| {
        bitwise.number(1, REGISTER);
        bitwise.number(2, REGISTER);
        bitwise.number(3, size_of_val(&mark) as u32);
        bitwise.nested(4, |mask| mask.attribute(1, &mark.to_ne_bytes()));
        bitwise.nested(5, |xor| xor.attribute(1, &0_u32.to_ne_bytes()));
    });
    expression(list, "cmp", |compare| {
        compare.number(1, REGISTER);
        compare.number(2, NOT_EQUAL);
        compare.nested(3, |value| value.attribute(1, &0_u32.to_ne_bytes()));
    });
}

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const RANDOM_FULLY: u32 = 1 << 4;

/// Puts the bounds of [`PORTS`] into registers.
fn ports(list: &mut Message, first: u32, last: u32) {
    immediate(list, first, &PORTS.start().to_be_bytes());
    immediate(list, last, &PORTS.end().to_be_bytes());
}

/// Puts a value into a register.
fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    expression(list, "immediate", |immediate| {
        immediate.number(1, register);
        immediate.nested(2, |data| data.attribute(1, value));
    });
}

/// `masquerade to :PORTS`.
fn masquerade(list: &mut Message, flags: u32) {
    const PORTS_SPECIFIED: u32 = 1 << 1;
    ports(list, REGISTER, SECOND_REGISTER);
    expression(list, "masq", |masq| {
        masq.number(1, PORTS_SPECIFIED | flags);
        masq.number(2, REGISTER);
        masq.number(3, SECOND_REGISTER);
    });
}

/// One expression of a rule.
fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nested(1, |expression| {
        expression.text(1, name);
        expression.nested(2, data);
    });
}

/// `meta nfproto FAMILY saddr @pods daddr != @inside masquerade to :PORTS`.
fn rule(message: &mut Message, pods: &str, inside: &str, ipv6: bool) {
    const PROTOCOL_FAMILY: u32 = 15;
    const NETWORK_HEADER: u32 = 1;
    const INVERTED: u32 = 1;
    let (family, source, destination, length) = if ipv6 { (FAMILY_IPV6, 8, 24, 16) } else { (FAMILY_IPV4, 12, 16, 4) };
    message.text(1, TABLE);
    message.text(2, CHAIN);
    message.nested(4, |list| {
        expression(list, "meta", |meta| {
            meta.number(1, REGISTER);
            meta.number(2, PROTOCOL_FAMILY);
        });
        expression(list, "cmp", |compare| {
            compare.number(1, REGISTER);
            compare.number(2, 0);
            compare.nested(3, |value| value.attribute(1, &[family]));
        });
        for (set, offset, flags) in [(pods, source, 0), (inside, destination, INVERTED)] {
            expression(list, "payload", |payload| {
                payload.number(1, REGISTER);
                payload.number(2, NETWORK_HEADER);
                payload.number(3, offset);
                payload.number(4, length);
            });
            expression(list, "lookup", |lookup| {
                lookup.text(1, set);
                lookup.number(2, REGISTER);
                lookup.number(5, flags);
            });
        }
        masquerade(list, 0);
    });
}

/// The addresses of blocks as intervals that neither overlap nor touch: the first of each, and the one after its last.
fn ranges(blocks: &[IpNet]) -> Vec<(IpAddr, Option<IpAddr>)> {
    let bounds = |block: &IpNet| (number(&block.network()), number(&block.broadcast()));
    let mut bounds: Vec<(u128, u128)> = blocks.iter().map(bounds).collect();
    bounds.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in bounds {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let ipv6 = blocks.iter().any(is_ipv6);
    let most = if ipv6 { u128::MAX } else { u128::from(u32::MAX) };
    let address = |number: u128| if ipv6 { IpAddr::from(Ipv6Addr::from(number)) } else { IpAddr::from((number as u32).to_be_bytes()) };
    merged.into_iter().map(|(first, last)| (address(first), (last < most).then(|| address(last + 1)))).collect()
}

fn number(address: &IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(*address).into(),
        IpAddr::V6(address) => u128::from(*address),
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A message of netlink while it is written.
struct Message(Vec<u8>);

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

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.align();
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
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
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn new() -> Self {
        let mut begin = Message::new(BATCH_BEGIN, NLM_F_REQUEST, 0);
        begin.family(FAMILY_NONE, SUBSYSTEM);
        Self { bytes: begin.finish(), sequence: 0 }
    }

    fn message(&mut self, kind: u16, flags: u16, content: impl FnOnce(&mut Message)) {
        self.sequence += 1;
        let mut message = Message::new(SUBSYSTEM << 8 | kind, NLM_F_REQUEST | NLM_F_ACK | flags, self.sequence);
        message.family(FAMILY_INET, 0);
        content(&mut message);
        self.bytes.extend(message.finish());
    }

    /// Sends it and waits until all of it is made.
    fn send(mut self, socket: &OwnedFd, action: &str) -> Result<(), LinkError> {
        let mut end = Message::new(BATCH_END, NLM_F_REQUEST, self.sequence + 1);
        end.family(FAMILY_NONE, SUBSYSTEM);
        self.bytes.extend(end.finish());
        transmit(socket, &self.bytes)?;
        let mut buffer = vec![0; 64 * 1024];
        let mut acknowledged = 0;
        while acknowledged < self.sequence {
            let length = receive(socket, &mut buffer)?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                if let Some(errno) = error_of(rest) {
                    return Err(refused(action, errno));
                }
                acknowledged += 1;
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                rest = rest.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Ok(())
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
    let detail = lacks.then(|| "the kernel lacks nf_tables or its masquerading (modules nf_tables, nft_masq)".to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn intervals_neither_overlap_nor_touch() {
        let shown = |texts: &[&str]| -> Vec<String> {
            let shown =
                |(first, after): (IpAddr, Option<IpAddr>)| format!("{first} {}", after.map(|it| it.to_string()).unwrap_or_default());
            ranges(&blocks(texts)).into_iter().map(shown).collect()
        };
        assert_eq!(shown(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32", "10.0.3.0/24"]), ["10.0.0.0 10.0.2.0", "10.0.3.0 10.0.4.0"]);
        assert_eq!(shown(&["255.255.255.255/32"]), ["255.255.255.255 "]);
        assert_eq!(shown(&["0.0.0.0/0", "10.0.0.0/8"]), ["0.0.0.0 "]);
        assert_eq!(shown(&["fd00::/64", "ff00::/8"]), ["fd00:: fd00:0:0:1::", "ff00:: "]);
        assert!(ranges(&[]).is_empty());
    }
}
