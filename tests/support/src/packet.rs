//! Frames, byte by byte: what the tests send through the programs.
//!
//! Every builder makes a correct frame; the tests break them on purpose with [`set`] or by cutting them short.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub type Mac = [u8; 6];

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE: a protocol that policy cannot judge.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags.
pub mod tcp_flag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// SCTP chunks: their types.
pub mod sctp_chunk {
    /// User data.
    pub const DATA: u8 = 0;
    /// It opens an association.
    pub const INIT: u8 = 1;
    /// The answer to it.
    pub const INIT_ACK: u8 = 2;
    /// What data have come.
    pub const SACK: u8 = 3;
    /// Whether the other end is there.
    pub const HEARTBEAT: u8 = 4;
    /// The answer to it.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// It ends an association at once.
    pub const ABORT: u8 = 6;
    /// Its sender has nothing more to send.
    pub const SHUTDOWN: u8 = 7;
    /// Nor has the other end.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// The client shows what the answer to its opening gave it.
    pub const COOKIE_ECHO: u8 = 10;
    /// The association is open.
    pub const COOKIE_ACK: u8 = 11;
    /// It is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;

    /// A chunk, with what fills its last word.
    pub fn of(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("a chunk has a length of 16 bits");
        let mut chunk = [&[kind, 0], &length.to_be_bytes()[..], value].concat();
        chunk.resize(chunk.len().next_multiple_of(4), 0);
        chunk
    }
}

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of an IPv6 header.
pub const IPV6: usize = 40;

/// Who sends a frame to whom.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Hardware address of the sender.
    pub source_mac: Mac,
    /// Hardware address of the receiver.
    pub destination_mac: Mac,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

impl Way {
    /// From `source` to `destination`, TTL 64.
    pub fn new(source_mac: Mac, source: IpAddr, destination_mac: Mac, destination: IpAddr) -> Self {
        Self { source_mac, destination_mac, source, destination, hop_limit: 64 }
    }

    /// With another TTL or hop limit.
    pub fn hop_limit(self, hop_limit: u8) -> Self {
        Self { hop_limit, ..self }
    }

    /// To another address.
    pub fn to(self, destination: IpAddr) -> Self {
        Self { destination, ..self }
    }

    /// From another address.
    pub fn from(self, source: IpAddr) -> Self {
        Self { source, ..self }
    }

    /// Length of the headers before the transport header.
    pub fn transport(&self) -> usize {
        ETHERNET + if self.source.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// The number of this family's ICMP.
    pub fn icmp_protocol(&self) -> u8 {
        if self.source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
    }

    /// A frame with an IP packet.
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.frame(&self.ip(protocol, payload))
    }

    /// A frame with the bytes of an IP packet.
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.destination_mac, self.source_mac, if self.source.is_ipv4() { 0x0800 } else { 0x86dd }, packet)
    }

    /// An IP packet without frame.
    pub fn ip(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, self.hop_limit, protocol, 0, 0, &[], payload),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, self.hop_limit, protocol, payload),
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
    }

    /// TCP without data.
    pub fn tcp(&self, source_port: u16, destination_port: u16, flags: u8) -> Vec<u8> {
        self.packet(protocol::TCP, &tcp(source_port, destination_port, flags))
    }

    /// UDP with the data `hello`.
    pub fn udp(&self, source_port: u16, destination_port: u16) -> Vec<u8> {
        self.packet(protocol::UDP, &udp(source_port, destination_port, b"hello"))
    }

    /// SCTP with one chunk.
    pub fn sctp(&self, source_port: u16, destination_port: u16, chunk: u8) -> Vec<u8> {
        self.packet(protocol::SCTP, &sctp(source_port, destination_port, chunk))
    }

    /// An ICMP message of a type, with four bytes of its own and data behind them.
    pub fn icmp(&self, kind: u8, code: u8, own: [u8; 4], data: &[u8]) -> Vec<u8> {
        self.packet(self.icmp_protocol(), &[&[kind, code, 0, 0], &own[..], data].concat())
    }

    /// An echo request.
    pub fn echo_request(&self, id: u16) -> Vec<u8> {
        self.echo(if self.source.is_ipv4() { 8 } else { 128 }, id)
    }

    /// An echo reply.
    pub fn echo_reply(&self, id: u16) -> Vec<u8> {
        self.echo(if self.source.is_ipv4() { 0 } else { 129 }, id)
    }

    fn echo(&self, kind: u8, id: u16) -> Vec<u8> {
        let [i0, i1] = id.to_be_bytes();
        self.icmp(kind, 0, [i0, i1, 0, 1], b"ping")
    }

    /// "Destination unreachable: port", as the kernel says it of a port at which nobody listens, quoting a packet (without its frame).
    pub fn port_unreachable(&self, quoted: &[u8]) -> Vec<u8> {
        let (kind, code) = if self.source.is_ipv4() { (3, 3) } else { (1, 4) };
        self.icmp(kind, code, [0; 4], quoted)
    }

    /// "Destination unreachable", quoting a packet (without its frame).
    pub fn unreachable(&self, quoted: &[u8]) -> Vec<u8> {
        self.icmp(if self.source.is_ipv4() { 3 } else { 1 }, 1, [0; 4], quoted)
    }

    /// An IPv4 packet with options, whose length is a multiple of four.
    pub fn with_options(&self, options: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) else { panic!("options are of IPv4") };
        self.frame(&ipv4(source, destination, self.hop_limit, protocol, 0, 0, options, payload))
    }

    /// A fragment. `offset` is in bytes, a multiple of eight.
    pub fn fragment(&self, id: u16, offset: u16, more: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let field = (offset / 8) | if more { 0x2000 } else { 0 };
                self.frame(&ipv4(source, destination, self.hop_limit, protocol, id, field, &[], payload))
            }
            _ => {
                let header = extension::fragment(protocol, id.into(), offset, more);
                self.packet(extension::FRAGMENT, &[&header[..], payload].concat())
            }
        }
    }
}

/// IPv6 extension headers.
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;

    /// Options (padding) of eight bytes: hop-by-hop or destination.
    pub fn options(next: u8) -> [u8; 8] {
        [next, 0, 1, 4, 0, 0, 0, 0]
    }

    /// A routing header of type 0 without addresses.
    pub fn routing(next: u8, segments_left: u8) -> [u8; 8] {
        [next, 0, 0, segments_left, 0, 0, 0, 0]
    }

    /// An authentication header of 24 bytes.
    pub fn authentication(next: u8) -> [u8; 24] {
        let mut header = [0; 24];
        (header[0], header[1]) = (next, 4);
        header
    }

    /// A fragment header. `offset` is in bytes, a multiple of eight.
    pub fn fragment(next: u8, id: u32, offset: u16, more: bool) -> [u8; 8] {
        let [f0, f1] = (offset | u16::from(more)).to_be_bytes();
        let [i0, i1, i2, i3] = id.to_be_bytes();
        [next, 0, f0, f1, i0, i1, i2, i3]
    }
}

/// An Ethernet frame.
pub fn ethernet(destination: Mac, source: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ether_type.to_be_bytes(), payload].concat()
}

/// An ARP packet for Ethernet and IPv4; operation 1 asks, 2 answers.
pub fn arp(operation: u16, sender_mac: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4], &operation.to_be_bytes()[..], &sender_mac, &sender.octets(), &target_mac, &target.octets()].concat()
}

/// An IPv4 packet. `fragment` is the field of flags and offset.
#[expect(clippy::too_many_arguments, reason = "the header has as many fields")]
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ttl: u8,
    protocol: u8,
    id: u16,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4) && options.len() <= 40, "options are words, ten at most");
    let words = (IPV4 + options.len()) / 4;
    let length = u16::try_from(words * 4 + payload.len()).expect("an IPv4 packet has a length of 16 bits");
    let mut header = vec![0x40 | words as u8, 0];
    header.extend(length.to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([ttl, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    header.extend(options);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

/// An IPv6 packet whose payload begins with the header `next`.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("an IPv6 payload has a length of 16 bits");
    let [l0, l1] = length.to_be_bytes();
    [&[0x60, 0, 0, 0, l0, l1, next, hop_limit], &source.octets()[..], &destination.octets(), payload].concat()
}

/// A TCP header.
pub fn tcp(source_port: u16, destination_port: u16, flags: u8) -> Vec<u8> {
    [&source_port.to_be_bytes()[..], &destination_port.to_be_bytes(), &[0; 8], &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]].concat()
}

/// A UDP header and data.
pub fn udp(source_port: u16, destination_port: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).expect("a datagram has a length of 16 bits");
    [&source_port.to_be_bytes()[..], &destination_port.to_be_bytes(), &length.to_be_bytes(), &[0; 2], data].concat()
}

/// An SCTP header and one chunk without a value.
pub fn sctp(source_port: u16, destination_port: u16, chunk: u8) -> Vec<u8> {
    sctp_bundle(source_port, destination_port, 0, &sctp_chunk::of(chunk, &[]))
}

/// An SCTP header with the receiver's tag, and chunks.
pub fn sctp_bundle(source_port: u16, destination_port: u16, tag: u32, chunks: &[u8]) -> Vec<u8> {
    [&source_port.to_be_bytes()[..], &destination_port.to_be_bytes(), &tag.to_be_bytes(), &[0; 4], chunks].concat()
}

/// The Internet checksum of bytes; zero over a header that carries its own.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The CRC of SCTP (RFC 9260, appendix A) of bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    });
    !crc
}

/// A frame of a whole packet with the checksum of its transport made, as a sender makes it.
pub fn summed(mut frame: Vec<u8>) -> Vec<u8> {
    let v4 = frame[12..14] == [8, 0];
    let (start, protocol, addresses) = if v4 {
        (ETHERNET + usize::from(frame[14] & 0x0f) * 4, frame[ETHERNET + 9], frame[ETHERNET + 12..ETHERNET + 20].to_vec())
    } else {
        (ETHERNET + IPV6, frame[ETHERNET + 6], frame[ETHERNET + 8..ETHERNET + 40].to_vec())
    };
    let (at, pseudo) = match protocol {
        protocol::TCP => (16, true),
        protocol::UDP => (6, true),
        protocol::ICMP => (2, false),
        protocol::ICMPV6 => (2, true),
        protocol::SCTP => {
            frame[start + 8..start + 12].fill(0);
            let crc = crc32c(&frame[start..]).to_le_bytes();
            frame[start + 8..start + 12].copy_from_slice(&crc);
            return frame;
        }
        other => panic!("no checksum is known for protocol {other}"),
    };
    frame[start + at..start + at + 2].fill(0);
    let length = u16::try_from(frame.len() - start).expect("a packet has a length of 16 bits");
    let mut covered = if pseudo { [&addresses[..], &[0, protocol], &length.to_be_bytes()].concat() } else { Vec::new() };
    covered.extend(&frame[start..]);
    let sum = checksum(&covered).to_be_bytes();
    frame[start + at..start + at + 2].copy_from_slice(&sum);
    frame
}

/// A frame with some of its bytes replaced.
pub fn set(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..][..bytes.len()].copy_from_slice(bytes);
    frame
}

/// An address as maps and events have it: IPv4 in the first four bytes, the rest zero.
pub fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&address.octets());
            wide
        }
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_header_that_carries_its_own_is_zero() {
        let packet = ipv4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 64, protocol::UDP, 7, 0, &[1, 1, 1, 0], b"data");
        assert_eq!(checksum(&packet[..24]), 0);
        assert_eq!(packet.len(), 28);
    }

    #[test]
    fn a_header_known_from_rfc_1071_examples_sums_up() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
