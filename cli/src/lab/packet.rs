//! Packets that no socket of the kernel writes for us: ICMP echoes, and the two that begin an SCTP association, for
//! kernels that speak no SCTP. Policy judges the packet that opens a flow, and its answer shows that both ways are open.

use super::witness::Question;
use palisade_protocol::Family;
use std::sync::atomic::{AtomicU16, Ordering};

/// What a raw socket handed out, without the header of IP: IPv4 hands it out, too.
pub fn message(packet: &[u8], family: Family) -> &[u8] {
    let header = match (family, packet.first()) {
        (Family::Ipv4, Some(first)) => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    packet.get(header..).unwrap_or_default()
}

/// A number that no packet has had for a while, so that a late answer is not taken for another one.
fn fresh_number() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An ICMP echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    family: Family,
    id: u16,
}

impl Echo {
    /// One that is unlike the ones before.
    pub fn fresh(family: Family) -> Self {
        Self { family, id: fresh_number() }
    }

    /// Its message.
    pub fn message(self) -> Vec<u8> {
        let kind = match self.family {
            Family::Ipv4 => 8,
            Family::Ipv6 => 128,
        };
        let [high, low] = self.id.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, high, low, 0, 1];
        if self.family == Family::Ipv4 {
            // The kernel writes that of IPv6.
            let sum = internet_checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        message
    }

    /// Whether a message is its reply.
    pub fn is_answered_by(self, message: &[u8]) -> bool {
        let kind = match self.family {
            Family::Ipv4 => 0,
            Family::Ipv6 => 129,
        };
        message.first() == Some(&kind) && part(message, 4) == Some(self.id.to_be_bytes())
    }
}

/// An SCTP INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    source: u16,
    destination: u16,
    /// What the answer has to carry; not 0.
    tag: u32,
}

impl Init {
    /// Length of the header that all chunks of a packet share.
    const HEADER: usize = 12;
    /// Length of an INIT and of an INIT ACK without their parameters.
    const CHUNK: u16 = 20;
    const KIND: u8 = 1;
    const KIND_OF_ANSWER: u8 = 2;
    /// The parameter that every INIT ACK has, and its length: its content is the answering end's own business.
    const STATE_COOKIE: [u8; 8] = [0, 7, 0, 8, b'l', b'a', b'b', b'!'];

    /// One to this port that asks a question.
    pub const fn asking(destination: u16, question: Question) -> Self {
        let [_, _, high, low] = question.bytes();
        // From the ports that are nobody's (RFC 6335).
        Self { source: 0xc000 | u16::from_be_bytes([high, low]), destination, tag: question.0 }
    }

    /// Reads the message of one.
    pub fn read(message: &[u8]) -> Option<Self> {
        let init = Self {
            source: u16::from_be_bytes(part(message, 0)?),
            destination: u16::from_be_bytes(part(message, 2)?),
            tag: u32::from_be_bytes(part(message, Self::HEADER + 4)?),
        };
        (message[Self::HEADER] == Self::KIND).then_some(init)
    }

    /// What it asks.
    pub const fn question(self) -> Question {
        Question(self.tag)
    }

    /// The port that it asks.
    pub fn destination(self) -> u16 {
        self.destination
    }

    /// Its message.
    pub fn message(self) -> Vec<u8> {
        // Who opens does not know the other end's tag yet.
        Self::written(self.source, self.destination, 0, Self::KIND, self.tag, &[])
    }

    /// The message of an INIT ACK to it.
    pub fn answer(self) -> Vec<u8> {
        Self::written(self.destination, self.source, self.tag, Self::KIND_OF_ANSWER, !self.tag, &Self::STATE_COOKIE)
    }

    /// Whether a message is an INIT ACK to it.
    pub fn is_answered_by(self, message: &[u8]) -> bool {
        part(message, 0) == Some(self.destination.to_be_bytes())
            && part(message, 2) == Some(self.source.to_be_bytes())
            && part(message, 4) == Some(self.tag.to_be_bytes())
            && message.get(Self::HEADER) == Some(&Self::KIND_OF_ANSWER)
    }

    fn written(source: u16, destination: u16, verification_tag: u32, kind: u8, tag: u32, parameter: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(source.to_be_bytes());
        message.extend(destination.to_be_bytes());
        message.extend(verification_tag.to_be_bytes());
        message.extend([0; 4]);
        message.extend([kind, 0]);
        message.extend((Self::CHUNK + u16::try_from(parameter.len()).unwrap_or_default()).to_be_bytes());
        message.extend(tag.to_be_bytes());
        // The window, one stream out and one in, the first sequence number.
        message.extend(0x0001_0000_u32.to_be_bytes());
        message.extend([0, 1, 0, 1]);
        message.extend(tag.to_be_bytes());
        message.extend(parameter);
        // The one number of the message whose lowest byte is the first (RFC 9260, appendix A).
        let sum = crc32c(&message).to_le_bytes();
        message[8..Self::HEADER].copy_from_slice(&sum);
        message
    }
}

fn part<const LENGTH: usize>(message: &[u8], at: usize) -> Option<[u8; LENGTH]> {
    message.get(at..)?.first_chunk().copied()
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let bit = |sum: u32| (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| bit(sum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_ipv4_is_taken_off_whatever_its_length() {
        let mut packet = vec![0_u8; 24];
        packet[0] = 0x46;
        packet.push(7);
        assert_eq!(message(&packet, Family::Ipv4), [7]);
        assert_eq!(message(&packet, Family::Ipv6), packet);
        assert_eq!((message(&packet[..3], Family::Ipv4), message(&[], Family::Ipv4)), (&[][..], &[][..]));
    }

    #[test]
    fn only_the_reply_to_an_echo_answers_it() {
        for (family, reply) in [(Family::Ipv4, 0), (Family::Ipv6, 129)] {
            let (echo, other) = (Echo { family, id: 0x1234 }, Echo { family, id: 0x1235 });
            let mut message = echo.message();
            assert!(!echo.is_answered_by(&message), "a request is no reply");
            message[0] = reply;
            assert!(echo.is_answered_by(&message) && !other.is_answered_by(&message));
            assert!(!echo.is_answered_by(&message[..5]));
        }
    }

    #[test]
    fn an_echo_of_ipv4_has_the_checksum_of_the_specification() {
        let message = Echo { family: Family::Ipv4, id: 0x1234 }.message();
        assert_eq!(internet_checksum(&message), 0, "with its checksum in it, the sum is all ones");
        assert_eq!(message[2..4], (!(0x0800_u16 + 0x1234 + 1)).to_be_bytes());
    }

    #[test]
    fn only_the_answer_to_an_init_answers_it() {
        let init = Init { source: 50_000, destination: 9, tag: 7 };
        assert_eq!(Init::read(&init.message()), Some(init));
        let answer = init.answer();
        assert!(init.is_answered_by(&answer) && Init::read(&answer).is_none());
        assert!(!init.is_answered_by(&init.message()), "a question is no answer");
        for other in [Init { source: 50_001, ..init }, Init { destination: 10, ..init }, Init { tag: 8, ..init }] {
            assert!(!other.is_answered_by(&answer), "{other:?}");
        }
        for length in 0..=Init::HEADER {
            assert!(!init.is_answered_by(&answer[..length]) && Init::read(&init.message()[..length]).is_none());
        }
    }

    #[test]
    fn an_init_has_the_checksum_of_the_specification() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut message = Init::asking(9, Question(7)).message();
        let sum: [u8; 4] = message[8..12].try_into().unwrap();
        message[8..12].fill(0);
        assert_eq!(crc32c(&message), u32::from_le_bytes(sum));
        assert_eq!((message.len(), &message[12..16]), (32, &[1, 0, 0, 20][..]));
    }

    #[test]
    fn no_two_questions_are_alike() {
        assert_ne!(Init::asking(9, Question(7)), Init::asking(9, Question(8)));
        assert_eq!(Init::read(&Init::asking(9, Question(7)).message()).map(Init::question), Some(Question(7)));
        assert_ne!(Echo::fresh(Family::Ipv4), Echo::fresh(Family::Ipv4));
    }
}
