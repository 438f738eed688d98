//! The packets that begin an SCTP association. Policy judges the first of them, so no kernel has to speak SCTP: the
//! probers send and answer these themselves.

use crate::raw;
use crate::request::next_port;
use socket2::Protocol;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// The protocol's number (IANA).
const PROTOCOL: i32 = 132;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Length of the header that all chunks of a packet share.
const HEADER: usize = 12;
/// Length of both chunks without their parameters.
const CHUNK: usize = 20;
/// The parameter that every INIT ACK has. Here it says who answers.
const STATE_COOKIE: u16 = 7;

/// An INIT: somebody opens an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// The port of who opens.
    pub source: u16,
    /// The port that is asked.
    pub destination: u16,
    /// What tells the answer from those to others; not 0.
    pub tag: u32,
}

impl Init {
    /// Its packet.
    pub fn packet(self) -> Vec<u8> {
        // Who opens does not know the other end's tag yet.
        packet(self.source, self.destination, 0, INIT, self.tag, &[])
    }

    /// The INIT that a packet is.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let init = Self {
            source: u16::from_be_bytes(part(packet, 0)?),
            destination: u16::from_be_bytes(part(packet, 2)?),
            tag: u32::from_be_bytes(part(packet, HEADER + 4)?),
        };
        (packet[HEADER] == INIT).then_some(init)
    }

    /// The packet of an INIT ACK to it, by which the other end says its name.
    pub fn answer(self, name: &str) -> Vec<u8> {
        let mut cookie = STATE_COOKIE.to_be_bytes().to_vec();
        cookie.extend(u16::try_from(4 + name.len()).unwrap_or(u16::MAX).to_be_bytes());
        cookie.extend(name.as_bytes());
        packet(self.destination, self.source, self.tag, INIT_ACK, !self.tag, &cookie)
    }

    /// The name that a packet says, if it is an INIT ACK to this one.
    pub fn answered_by(self, packet: &[u8]) -> Option<String> {
        let to_this = u16::from_be_bytes(part(packet, 0)?) == self.destination
            && u16::from_be_bytes(part(packet, 2)?) == self.source
            && u32::from_be_bytes(part(packet, 4)?) == self.tag
            && *packet.get(HEADER)? == INIT_ACK
            && u16::from_be_bytes(part(packet, HEADER + CHUNK)?) == STATE_COOKIE;
        let cookie = HEADER + CHUNK..HEADER + CHUNK + usize::from(u16::from_be_bytes(part(packet, HEADER + CHUNK + 2)?));
        let name = to_this.then(|| packet.get(cookie)?.get(4..))??;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// Answers every INIT to the port, over both families, from now on; the answers say the name.
pub fn serve(name: &str, port: u16) -> std::io::Result<()> {
    for ipv6 in [false, true] {
        let socket = raw::open(ipv6, Protocol::from(PROTOCOL))?;
        let name = name.to_owned();
        std::thread::spawn(move || answer_openings(&socket, ipv6, &name, port));
    }
    Ok(())
}

/// The socket gets all of the protocol: also what is for other ports, and the answers to what is asked from here.
fn answer_openings(socket: &UdpSocket, ipv6: bool, name: &str, port: u16) {
    let mut buffer = [0; 256];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && let Some(opening) = Init::read(raw::message(&buffer[..length], ipv6))
            && opening.destination == port
        {
            let _ = socket.send_to(&opening.answer(name), from);
        }
    }
}

/// Sends one INIT, from a new port; the name of who answers it within the time.
pub fn ask(to: SocketAddr, time: Duration) -> std::io::Result<String> {
    let source = next_port();
    let opening = Init { source, destination: to.port(), tag: u32::from(source) };
    let socket = raw::open(to.is_ipv6(), Protocol::from(PROTOCOL))?;
    // From now on it gets what comes from there only, and hears when it is refused.
    socket.connect(SocketAddr::new(to.ip(), 0))?;
    match socket.send(&opening.packet()) {
        // Its own node refuses it, and says so by ICMP, as a kernel that speaks SCTP would hear.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    raw::answer(&socket, to.is_ipv6(), time, |message| opening.answered_by(message))
}

/// A packet with one chunk, which is an INIT or an INIT ACK.
fn packet(source: u16, destination: u16, verification_tag: u32, chunk: u8, tag: u32, parameter: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(verification_tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0]);
    packet.extend(u16::try_from(CHUNK + parameter.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend(tag.to_be_bytes());
    // The window, one stream out and one in, the first sequence number.
    packet.extend(0x0001_0000_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(tag.to_be_bytes());
    packet.extend(parameter);
    packet.resize(packet.len().next_multiple_of(4), 0);
    // The one number of the packet whose lowest byte is the first (RFC 9260, appendix A).
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..HEADER].copy_from_slice(&sum);
    packet
}

fn part<const LENGTH: usize>(packet: &[u8], at: usize) -> Option<[u8; LENGTH]> {
    packet.get(at..)?.first_chunk().copied()
}

fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let bit = |sum: u32| (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| bit(sum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Init = Init { source: 50_000, destination: 80, tag: 7 };

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut packet = ASKED.packet();
        assert_eq!((packet.len(), &packet[12..16]), (32, &[1, 0, 0, 20][..]));
        let sum: [u8; 4] = packet[8..12].try_into().unwrap();
        packet[8..12].fill(0);
        assert_eq!(crc32c(&packet), u32::from_le_bytes(sum));
    }

    #[test]
    fn an_answer_says_who_gives_it_and_fits_no_other_question() {
        assert_eq!(Init::read(&ASKED.packet()), Some(ASKED));
        let answer = ASKED.answer("y/c");
        assert_eq!((answer.len(), &answer[12..16]), (40, &[2, 0, 0, 27][..]), "the padding is not counted");
        assert_eq!(ASKED.answered_by(&answer).as_deref(), Some("y/c"));
        for other in [Init { source: 50_001, ..ASKED }, Init { destination: 81, ..ASKED }, Init { tag: 8, ..ASKED }] {
            assert_eq!(other.answered_by(&answer), None, "{other:?}");
        }
    }

    #[test]
    fn neither_is_taken_for_the_other_and_what_is_cut_short_for_nothing() {
        let (opening, answer) = (ASKED.packet(), ASKED.answer("y/c"));
        assert_eq!((ASKED.answered_by(&opening), Init::read(&answer)), (None, None));
        for length in 0..HEADER + CHUNK + 7 {
            assert_eq!(ASKED.answered_by(&answer[..length]), None, "{length}");
        }
        for length in 0..HEADER + 8 {
            assert_eq!(Init::read(&opening[..length]), None, "{length}");
        }
    }
}
