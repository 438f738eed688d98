//! What the connection table says of a packet, and what the packet does to its entry.

use super::{Packet, Segment, ending, protocol};
use crate::abi::{
    Address, BACKEND_NONE, Connection, ConnectionKey, Outcome, SUBJECT_NONE, connection_flag as flag, connection_mark as mark,
};
use crate::epoch;
use crate::verdict::{Flow, Verdict};

/// Seconds for which a datagram's later fragments find its first: what IPv6 grants a datagram to be put together.
pub const FRAGMENT_LIFETIME: u64 = 60;

/// Seconds after which an entry no longer speaks for its flow, by what was seen of the flow. The loader writes them into the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// TCP and SCTP, once both ends were heard, until both have finished.
    pub established: u32,
    /// TCP and SCTP, before the other end was heard.
    pub half_open: u32,
    /// TCP and SCTP, after a reset or after both ends have finished.
    pub closed: u32,
    /// UDP, once both ends were heard.
    pub datagram_answered: u32,
    /// UDP, before the other end was heard.
    pub datagram: u32,
    /// ICMP echo.
    pub echo: u32,
}

impl Lifetimes {
    /// Those of a node that is told none.
    pub const DEFAULT: Self = Self {
        // As kube-proxy has it in the kernel's connection tracking. A backend of a service that speaks after a longer silence is not known any more.
        established: 24 * 60 * 60,
        half_open: 60,
        closed: 10,
        // As Linux's connection tracking has them by default.
        datagram_answered: 180,
        datagram: 30,
        echo: 30,
    };
    /// How many there are.
    pub const COUNT: usize = 6;

    /// As the programs hold them.
    #[inline(always)]
    pub const fn from_array([established, half_open, closed, datagram_answered, datagram, echo]: [u32; Self::COUNT]) -> Self {
        Self { established, half_open, closed, datagram_answered, datagram, echo }
    }

    /// The inverse of [`from_array`](Self::from_array).
    pub const fn to_array(self) -> [u32; Self::COUNT] {
        [self.established, self.half_open, self.closed, self.datagram_answered, self.datagram, self.echo]
    }
}

/// The kernel's clock and the policy epoch, as a packet finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The kernel's jiffies.
    pub jiffies: u64,
    /// Jiffies in a second.
    pub hertz: u32,
    /// The policy epoch.
    pub epoch: u32,
    /// The epoch since which both ends of the packet have been who they are. An older entry is of another pod.
    pub since: u32,
    /// How long flows may be silent.
    pub lifetimes: Lifetimes,
}

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// Who sent the packet at hand.
    Source = 0,
    /// Whom it goes to.
    Destination = 1,
}

/// What the connection table says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The flow was judged under the current epoch, and allowed. The packet comes from the end that opened it, or not.
    Pass {
        /// The packet comes from the end that opened the flow.
        from_opener: bool,
    },
    /// The entry is to be judged again: this end opened the flow.
    Again(End),
    /// The packet goes to a service's frontend, and the entry names the backend that its flow has. The packet that goes there is
    /// another one, with an entry of its own.
    Frontend,
    /// Nobody knows the flow: the packet is judged as opened by its source.
    Open,
    /// The packet opens no flow and belongs to none.
    Refuse(Outcome),
}

/// The key of a packet's flow, and whether the packet's source is its higher end.
#[inline(always)]
pub fn key<A: Address>(packet: &Packet<A>) -> (ConnectionKey<A>, bool) {
    let source_is_high = source_is_high(packet);
    let (low, low_port, high, high_port) = if source_is_high {
        (packet.destination, packet.destination_port, packet.source, packet.source_port)
    } else {
        (packet.source, packet.source_port, packet.destination, packet.destination_port)
    };
    (ConnectionKey { low, high, low_port, high_port, protocol: packet.protocol, reserved: [0; 3] }, source_is_high)
}

/// Whether the source of a packet is the higher end of its flow's key.
#[inline(always)]
pub fn source_is_high<A: Address>(packet: &Packet<A>) -> bool {
    packet.source.above(&packet.destination)
        || (packet.source == packet.destination && u16::from_be_bytes(packet.source_port) > u16::from_be_bytes(packet.destination_port))
}

/// Whether both ends of a connection have finished, or one has reset it.
#[inline(always)]
pub const fn closed(marks: u8) -> bool {
    const FINISHED: u8 = mark::FIN_OPENER | mark::FIN_OTHER;
    marks & mark::RESET != 0 || marks & FINISHED == FINISHED
}

/// Seconds that an entry lives after its last packet.
#[inline(always)]
pub const fn lifetime_of(protocol: u8, marks: u8, lifetimes: &Lifetimes) -> u32 {
    let answered = marks & mark::REPLIED != 0;
    match protocol {
        protocol::TCP | protocol::SCTP if closed(marks) => lifetimes.closed,
        protocol::TCP | protocol::SCTP if answered => lifetimes.established,
        protocol::TCP | protocol::SCTP => lifetimes.half_open,
        protocol::UDP if answered => lifetimes.datagram_answered,
        protocol::UDP => lifetimes.datagram,
        _ => lifetimes.echo,
    }
}

/// Whether an entry is too old to speak for its flow.
#[inline(always)]
pub const fn expired(protocol: u8, entry: &Connection, jiffies: u64, hertz: u32, lifetimes: &Lifetimes) -> bool {
    silent(protocol, entry.marks, entry.seen, jiffies, hertz, lifetimes)
}

/// Whether a flow with these marks has been silent for longer than it lives.
#[inline(always)]
pub const fn silent(protocol: u8, marks: u8, seen: u64, jiffies: u64, hertz: u32, lifetimes: &Lifetimes) -> bool {
    // Another CPU may have seen a later jiffy than this one.
    jiffies.saturating_sub(seen) > lifetime_of(protocol, marks, lifetimes) as u64 * hertz as u64
}

/// Whether the protocol marks the packet that opens a flow, so that no other packet can be taken for one.
#[inline(always)]
pub(crate) const fn marks_opening(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::SCTP)
}

/// Which end of a packet opened the flow of its entry.
#[inline(always)]
pub const fn opener(entry: &Connection, source_is_high: bool) -> End {
    if (entry.flags & flag::OPENED_BY_HIGH != 0) == source_is_high { End::Source } else { End::Destination }
}

/// What the table says of a packet whose flow has this entry, or none.
#[inline(always)]
pub fn look_up(entry: Option<&Connection>, protocol: u8, segment: Segment, source_is_high: bool, now: &Now) -> Lookup {
    if let Some(entry) = entry
        && !matches!(segment, Segment::Opening)
        && !epoch::before(entry.epoch, now.since)
    {
        let opener = opener(entry, source_is_high);
        let old = expired(protocol, entry, now.jiffies, now.hertz, &now.lifetimes);
        // Where openings are marked, even an old entry still knows who opened the flow.
        let speaks = !old || marks_opening(protocol);
        // A packet that claims to come from the frontend itself is nobody's reply.
        if speaks && entry.flags & flag::TO_FRONTEND != 0 && matches!(opener, End::Source) {
            return Lookup::Frontend;
        }
        if speaks && entry.flags & flag::TO_FRONTEND == 0 {
            let valid = !old && entry.epoch == now.epoch && epoch::settled(now.epoch) && entry.flags & flag::DENIED == 0;
            // No policy is asked about what the node itself opened.
            return if valid || entry.flags & flag::FROM_HOST != 0 {
                Lookup::Pass { from_opener: matches!(opener, End::Source) }
            } else {
                Lookup::Again(opener)
            };
        }
    }
    match segment {
        Segment::Opening | Segment::Datagram | Segment::EchoRequest | Segment::Bare | Segment::MidStream => Lookup::Open,
        Segment::Later => Lookup::Refuse(Outcome::FragmentUnknown),
        Segment::EchoReply | Segment::Error | Segment::Unknown => Lookup::Refuse(Outcome::IcmpUnrelated),
        Segment::Neighbour | Segment::Listener => Lookup::Refuse(Outcome::NeighbourDiscoveryInvalid),
    }
}

/// The subject numbers of both ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subjects {
    /// Of its source.
    pub source: u32,
    /// Of its destination.
    pub destination: u32,
}

/// The flow of a packet as policy sees it, if `opener` opened it.
#[inline(always)]
pub fn flow<A: Address>(packet: &Packet<A>, subjects: Subjects, opener: End) -> Flow<A> {
    // A pod always reaches itself.
    let subjects =
        if packet.source == packet.destination { Subjects { source: SUBJECT_NONE, destination: SUBJECT_NONE } } else { subjects };
    // For ICMP the ports are ids, which rules cannot name.
    let port = |port: [u8; 2]| if packet.protocol == A::ICMP { 0 } else { u16::from_be_bytes(port) };
    match opener {
        End::Source => Flow {
            opener: packet.source,
            responder: packet.destination,
            protocol: packet.protocol,
            port: port(packet.destination_port),
            egress_subject: subjects.source,
            ingress_subject: subjects.destination,
        },
        End::Destination => Flow {
            opener: packet.destination,
            responder: packet.source,
            protocol: packet.protocol,
            port: port(packet.source_port),
            egress_subject: subjects.destination,
            ingress_subject: subjects.source,
        },
    }
}

/// The entry of a flow after a packet of it that was judged and allowed. `before` is its entry, where it had one and
/// the packet did not open the flow anew.
#[inline(always)]
pub fn judged(
    before: Option<&Connection>,
    segment_ending: u8,
    source_is_high: bool,
    opener: End,
    verdict: &Verdict,
    now: &Now,
) -> Connection {
    let from_opener = matches!(opener, End::Source);
    let opened_by_high = if source_is_high == from_opener { flag::OPENED_BY_HIGH } else { 0 };
    let (marks, kept, frontend, frontend_port) = match before {
        Some(before) => (before.marks, before.flags & (flag::FROM_HOST | flag::BY_STACK), before.frontend, before.frontend_port),
        None => (0, 0, [0; 16], [0; 2]),
    };
    Connection {
        seen: now.jiffies,
        epoch: now.epoch,
        marks: advance(marks, segment_ending, from_opener),
        flags: kept | opened_by_high,
        frontend_port,
        egress_reason: verdict.egress.reason,
        ingress_reason: verdict.ingress.reason,
        backend: BACKEND_NONE,
        frontend,
        reserved: [0; 4],
    }
}

/// The entry of what a client sends to a frontend, after a packet of it that goes to `backend`.
#[inline(always)]
pub fn to_frontend(backend: u32, segment_ending: u8, source_is_high: bool, now: &Now) -> Connection {
    let mut connection = judged(None, 0, source_is_high, End::Source, &Verdict::NOT_JUDGED, now);
    connection.flags |= flag::TO_FRONTEND;
    connection.backend = backend;
    // The backend's replies do not come by here. So the flow counts as answered until its opener has finished.
    connection.marks = advance_to_frontend(mark::REPLIED, segment_ending);
    connection
}

/// The marks of an entry of what a client sends to a frontend, after a packet of it.
#[inline(always)]
pub const fn advance_to_frontend(marks: u8, segment_ending: u8) -> u8 {
    match (segment_ending & ending::RESET != 0, segment_ending & ending::FIN != 0) {
        (true, _) => mark::RESET,
        (false, true) => mark::FIN_OPENER,
        (false, false) => marks,
    }
}

/// The entry that a packet of the node's own processes makes, or `None`.
///
/// Nothing is made of a packet that opens no flow: the flow may be the pod's own, of which policy must be asked.
#[inline(always)]
pub fn from_host(segment: Segment, source_is_high: bool, now: &Now) -> Option<Connection> {
    if !matches!(segment, Segment::Opening | Segment::Datagram | Segment::EchoRequest) {
        return None;
    }
    let mut connection = judged(None, 0, source_is_high, End::Source, &Verdict::NOT_JUDGED, now);
    connection.flags |= flag::FROM_HOST;
    Some(connection)
}

/// The marks of an entry after a packet of its flow has passed.
#[inline(always)]
pub const fn advance(marks: u8, segment_ending: u8, from_opener: bool) -> u8 {
    let heard = if from_opener { 0 } else { mark::REPLIED };
    let finished = match (segment_ending & ending::FIN != 0, from_opener) {
        (false, _) => 0,
        (true, true) => mark::FIN_OPENER,
        (true, false) => mark::FIN_OTHER,
    };
    let reset = if segment_ending & ending::RESET != 0 { mark::RESET } else { 0 };
    marks | heard | finished | reset
}

/// The entry of a flow that was judged again and denied.
///
/// It is kept so that the opener is not forgotten: what the other end goes on sending would else open a flow in the other
/// direction, of which the opener's packets were the replies. The entry admits nothing, and grows old as if its opener were silent.
#[inline(always)]
pub const fn denied(entry: &Connection, now: &Now) -> Connection {
    Connection { epoch: now.epoch, flags: entry.flags | flag::DENIED, egress_reason: 0, ingress_reason: 0, ..*entry }
}

/// The jiffies of a moment, for a sweep in user space, which cannot read them: within seconds of the kernel's.
///
/// `monotonic` is CLOCK_MONOTONIC in nanoseconds; `tick` is the length of a jiffy in nanoseconds, the resolution of
/// CLOCK_MONOTONIC_COARSE. The kernel starts to count five minutes before the low 32 bits overflow.
pub const fn jiffies_at(monotonic: u64, tick: u64) -> u64 {
    let hertz = 1_000_000_000 / tick;
    (1 << 32) - 300 * hertz + monotonic / tick
}
