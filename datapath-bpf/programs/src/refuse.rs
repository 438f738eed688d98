//! Answers to packets that go nowhere: to those for services that no backend stands behind, that nobody listens; to those of a pod that are longer
//! than the way to another node takes, how long they may be.

use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use palisade_datapath_core::abi::{Address, Endpoint, V4, V6};
use palisade_datapath_core::packet::{Bytes, Fragment, Packet, ethernet, icmp, ipv4, ipv6, protocol};

use crate::frame::{Frame, action};
use crate::maps::Family;

/// Bytes that an answer quotes at most; a multiple of four.
const QUOTED: u32 = 120;
/// What is quoted of the transport header, where there is as much: enough for the checksum that the kernel may still have to make.
const TRANSPORT: u32 = 20;
/// TTL or hop limit of an answer.
const HOPS: u8 = 64;
/// Type and code, of IPv4's and of IPv6's ICMP, for a port at which nobody listens (RFC 792, RFC 4443 section 3.1).
const V4_HEAD: [u8; 2] = [3, 3];
const V6_HEAD: [u8; 2] = [1, 4];
/// The same for a packet that is too long (RFC 1191 section 4, RFC 4443 section 3.2).
const V4_TOO_LONG: [u8; 2] = [3, 4];
const V6_TOO_LONG: [u8; 2] = [2, 0];

/// What is answered that nobody listens, in place of an MTU.
pub const NOBODY: u32 = 0;

/// Turns an IPv4 packet into an answer to its sender, and sends it: to a pod, or out of the interface that it came in by. It says [`NOBODY`] listens, or
/// how many bytes packets may have.
#[inline(never)]
pub fn v4(frame: &Frame, packet: &Packet<V4>, endpoint: Option<&Endpoint>, mtu: u32) -> i32 {
    const ADDED: u32 = (ipv4::LENGTH + icmp::LENGTH) as u32;
    if packet.protocol == protocol::TCP && mtu == NOBODY {
        return reset(frame, packet, endpoint);
    }
    let Some((quoted, completed)) = quoted(frame, packet) else { return action::DROP };
    if !frame.cut(ethernet::LENGTH as u32 + quoted) || !frame.open_before_network(ADDED) {
        return action::DROP;
    }
    let length = ((ADDED + quoted) as u16).to_be_bytes();
    let (s, d) = (packet.destination, packet.source);
    let mut header = [0x45, 0, length[0], length[1], 0, 0, 0, 0, HOPS, 1, 0, 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]];
    let checksum = fold(sum(&header)).to_be_bytes();
    (header[10], header[11]) = (checksum[0], checksum[1]);
    let Some(below) = sum_of_quote(frame, packet, ADDED, quoted, completed) else { return action::DROP };
    let message = message(if mtu == NOBODY { V4_HEAD } else { V4_TOO_LONG }, mtu, below);
    if !frame.store(ethernet::LENGTH as u32, &header) || !frame.store((ethernet::LENGTH + ipv4::LENGTH) as u32, &message) {
        return action::DROP;
    }
    back(frame, endpoint)
}

/// As [`v4`], of an IPv6 packet.
#[inline(never)]
pub fn v6(frame: &Frame, packet: &Packet<V6>, endpoint: Option<&Endpoint>, mtu: u32) -> i32 {
    const ADDED: u32 = (ipv6::LENGTH + icmp::LENGTH) as u32;
    if packet.protocol == protocol::TCP && mtu == NOBODY {
        return reset(frame, packet, endpoint);
    }
    let Some((quoted, completed)) = quoted(frame, packet) else { return action::DROP };
    if !frame.cut(ethernet::LENGTH as u32 + quoted) || !frame.open_before_network(ADDED) {
        return action::DROP;
    }
    let payload = icmp::LENGTH as u32 + quoted;
    let length = (payload as u16).to_be_bytes();
    let mut header = [0; ipv6::LENGTH];
    header[0] = 0x60;
    (header[4], header[5], header[6], header[7]) = (length[0], length[1], V6::ICMP, HOPS);
    header[8..24].copy_from_slice(&packet.destination);
    header[24..40].copy_from_slice(&packet.source);
    let Some(below) = sum_of_quote(frame, packet, ADDED, quoted, completed) else { return action::DROP };
    let mut addresses = [0; 32];
    addresses.copy_from_slice(&header[8..]);
    let message = message(if mtu == NOBODY { V6_HEAD } else { V6_TOO_LONG }, mtu, below + sum(&addresses) + payload + V6::ICMP as u32);
    if !frame.store(ethernet::LENGTH as u32, &header) || !frame.store((ethernet::LENGTH + ipv6::LENGTH) as u32, &message) {
        return action::DROP;
    }
    back(frame, endpoint)
}

/// Flags of TCP.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Length in bytes of a TCP header without options.
const TCP: u32 = 20;

/// Turns a TCP segment into a reset (RFC 9293, section 3.10.7.1), and sends it to its sender. An ICMP error would not do: it comes back
/// while the sender is still inside connect(2), where Linux only takes note of it (`tcp_v4_err`), and tries again after a second.
#[inline(always)]
fn reset<A: Family>(frame: &Frame, packet: &Packet<A>, endpoint: Option<&Endpoint>) -> i32 {
    let Some(asked) = frame.at::<{ TCP as usize }>(packet.transport) else { return action::DROP };
    let flags = asked[13];
    if flags & RST != 0 || !matches!(packet.fragment(), Fragment::Whole) {
        return action::DROP;
    }
    let data = (packet.end - packet.transport).saturating_sub((asked[12] >> 4) as u32 * 4);
    let length = data + (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
    let next = u32::from_be_bytes([asked[4], asked[5], asked[6], asked[7]]).wrapping_add(length).to_be_bytes();
    let mut header = [0; TCP as usize];
    (header[0], header[1], header[2], header[3]) = (asked[2], asked[3], asked[0], asked[1]);
    if flags & ACK != 0 {
        (header[4], header[5], header[6], header[7]) = (asked[8], asked[9], asked[10], asked[11]);
        header[13] = RST;
    } else {
        (header[8], header[9], header[10], header[11]) = (next[0], next[1], next[2], next[3]);
        header[13] = RST | ACK;
    }
    header[12] = 0x50;
    let pseudo = sum(&packet.source.wide()) + sum(&packet.destination.wide()) + protocol::TCP as u32 + TCP;
    let checksum = match is_incomplete(frame, packet.transport, TCP_CHECKSUM) {
        true => !fold(pseudo),
        false => fold(sum(&header) + pseudo),
    };
    [header[16], header[17]] = checksum.to_be_bytes();
    let written = frame.cut(packet.transport + TCP)
        && A::shorten(frame, packet.end, packet.transport + TCP)
        && A::store(frame, A::SOURCE, &packet.destination)
        && A::store(frame, A::DESTINATION, &packet.source)
        && frame.store(packet.transport, &header);
    if written { back(frame, endpoint) } else { action::DROP }
}

/// The part of a UDP header up to its checksum, and all of it.
const UDP: u32 = 8;
const UDP_CHECKSUM: u32 = 6;
const TCP_CHECKSUM: u32 = 16;

/// Whether a device or the kernel is still to complete the checksum of the packet, at `offset` of its transport header, when it is sent: the
/// kernel then lets it not be cut before its end. Where not, the packet is cut off there.
#[inline(always)]
fn is_incomplete(frame: &Frame, transport: u32, offset: u32) -> bool {
    !frame.cut(transport + offset)
}

/// How much of a packet is quoted, a multiple of four bytes, and whether its checksum will be completed on the way out. Cuts the packet off
/// after that, but not before.
#[inline(always)]
fn quoted<A: Family>(frame: &Frame, packet: &Packet<A>) -> Option<(u32, bool)> {
    let wanted = packet.transport + TRANSPORT - ethernet::LENGTH as u32;
    let there = packet.end - ethernet::LENGTH as u32;
    let mut quoted = (if wanted < there { wanted } else { there }) & !3;
    let length = if packet.protocol == protocol::TCP { TCP } else { UDP };
    let headers = packet.transport + length - ethernet::LENGTH as u32;
    quoted = if quoted < QUOTED { quoted } else { QUOTED };
    let has_checksum = packet.protocol == protocol::UDP || packet.protocol == protocol::TCP;
    // Behind the first fragment there is none.
    if !has_checksum || headers > QUOTED || matches!(packet.fragment(), Fragment::Later) {
        return Some((quoted, false));
    }
    let incomplete = if packet.protocol == protocol::TCP {
        keep::<{ TCP as usize }, A>(frame, packet)
    } else {
        keep::<{ UDP as usize }, A>(frame, packet)
    };
    let incomplete = incomplete?;
    Some((if incomplete { quoted } else { headers & !3 }, incomplete))
}

/// Cuts a packet off behind its transport header, whose length is `N`, unless its checksum is still to be completed, which is what it answers.
#[inline(always)]
fn keep<const N: usize, A: Family>(frame: &Frame, packet: &Packet<A>) -> Option<bool> {
    let header = frame.at::<N>(packet.transport)?;
    let incomplete = is_incomplete(frame, packet.transport, checksum_of(packet.protocol));
    (incomplete || (frame.cut(packet.transport + N as u32) && frame.store(packet.transport, &header))).then_some(incomplete)
}

/// Where a transport header has its checksum.
#[inline(always)]
const fn checksum_of(protocol: u8) -> u32 {
    if protocol == protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
}

/// The sum of the quoted bytes, as words of 16 bits, as they will be sent; `moved` is how far they stand behind where they were.
#[inline(always)]
fn sum_of_quote<A: Family>(frame: &Frame, packet: &Packet<A>, moved: u32, length: u32, completed: bool) -> Option<u32> {
    // What is completed adds up with its checksum to the complement of what stands there before.
    let (length, mut total) = if completed {
        let [high, low] = frame.at::<2>(packet.transport + moved + checksum_of(packet.protocol))?;
        (packet.transport - ethernet::LENGTH as u32, !u16::from_be_bytes([high, low]) as u32)
    } else {
        (length, 0)
    };
    let mut at = 0;
    while at < QUOTED {
        if at >= length {
            break;
        }
        total += sum(&frame.at::<4>(ethernet::LENGTH as u32 + moved + at)?);
        at += 4;
    }
    Some(total)
}

/// The sum of words of 16 bits.
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut total = 0;
    let mut at = 0;
    while at + 1 < N {
        total += u16::from_be_bytes([bytes[at], bytes[at + 1]]) as u32;
        at += 2;
    }
    total
}

/// The Internet checksum of a sum.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The head of an ICMP message, its checksum over what has the sum `below` too.
#[inline(always)]
fn message([kind, code]: [u8; 2], mtu: u32, below: u32) -> [u8; icmp::LENGTH] {
    let mtu = mtu as u16;
    let checksum = fold(below + u16::from_be_bytes([kind, code]) as u32 + mtu as u32).to_be_bytes();
    let [high, low] = mtu.to_be_bytes();
    [kind, code, checksum[0], checksum[1], 0, 0, high, low]
}

/// Sends the frame to where it came from: to the pod, or back out of the interface.
#[inline(always)]
fn back(frame: &Frame, endpoint: Option<&Endpoint>) -> i32 {
    let mut addresses = [0; 12];
    match endpoint {
        Some(endpoint) => {
            addresses[..6].copy_from_slice(&endpoint.pod_mac);
            addresses[6..].copy_from_slice(&endpoint.host_mac);
        }
        None => {
            let Some(came) = frame.at::<12>(0) else { return action::DROP };
            addresses[..6].copy_from_slice(&came[6..]);
            addresses[6..].copy_from_slice(&came[..6]);
        }
    }
    if !frame.store(0, &addresses) {
        return action::DROP;
    }
    // SAFETY: the helpers take numbers only.
    let action = unsafe { if endpoint.is_some() { bpf_redirect_peer(frame.ifindex(), 0) } else { bpf_redirect(frame.ifindex(), 0) } };
    action as i32
}
