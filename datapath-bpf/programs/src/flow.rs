//! What both programs do with a packet of a flow.

use palisade_datapath_core::abi::{
    Connection, Endpoint, FragmentPorts, Hook, LocalPod, Outcome, SUBJECT_NONE, V4, V6, cell, connection_flag as flag,
};
use palisade_datapath_core::epoch;
use palisade_datapath_core::packet::connection::{self, End, FRAGMENT_LIFETIME, Lookup, Subjects};
use palisade_datapath_core::packet::icmp::{self, Quoting};
use palisade_datapath_core::packet::{Fragment, Packet, ipv4, ipv6};
use palisade_datapath_core::verdict::{Judgement, Verdict, verdict, verdict_of_itself};

use crate::event;
use crate::frame::Frame;
use crate::maps::{self, Family, Kernel};
use crate::service::{self, Via, way};

/// The policy numbers of one end of a flow.
#[derive(Clone, Copy)]
pub struct Policies {
    /// The subject number: [`SUBJECT_NONE`] where it is no pod of this node.
    pub subject: u32,
    /// The same where no policy in audit mode selects the pod, else what those would make of it.
    pub audit: u32,
}

impl Policies {
    /// Those of an endpoint.
    #[inline(always)]
    pub fn of(endpoint: &Endpoint) -> Self {
        let (subject, audit) = (endpoint.subject, endpoint.audit);
        Self { subject, audit: if audit == SUBJECT_NONE { subject } else { audit } }
    }
}

/// The policy numbers of an address.
#[inline(always)]
pub fn policies_of<A: Family>(address: &A) -> Result<Policies, Outcome> {
    let Some(local) = address.local() else { return Ok(Policies { subject: SUBJECT_NONE, audit: SUBJECT_NONE }) };
    // A pod that is not realised yet, or no more, gets nothing.
    let Some(endpoint) = maps::endpoint(local.ifindex) else { return Err(Outcome::EndpointMissing) };
    let policies = Policies::of(endpoint);
    if policies.subject == SUBJECT_NONE || !maps::is_still(endpoint, local.ifindex) {
        return Err(Outcome::EndpointMissing);
    }
    Ok(policies)
}

/// Asks the policies of both ends; whether the flow passes.
#[inline(never)]
fn judge<A: Family>(packet: &Packet<A>, source: u32, destination: u32, opener: End, result: &mut Verdict) -> i32 {
    *result = verdict(&Kernel, &connection::flow(packet, Subjects { source, destination }, opener));
    result.passes() as i32
}

/// Asks the policies of a pod that reaches itself through a service; whether the flow passes.
#[inline(never)]
fn judge_itself<A: Family>(packet: &Packet<A>, subject: u32, opener: End, result: &mut Verdict) -> i32 {
    // The end that did not open the flow stands under the pod's own address, the other one under the frontend's.
    let flow = connection::flow(packet, Subjects { source: SUBJECT_NONE, destination: SUBJECT_NONE }, opener);
    *result = verdict_of_itself(&Kernel, subject, &flow.responder, flow.protocol, flow.port);
    result.passes() as i32
}

/// Reads the IPv4 packet of a frame.
#[inline(always)]
pub fn read_v4(frame: &Frame, packet: &mut Packet<V4>) -> Result<(), Outcome> {
    refusal(parse_v4(frame, packet))
}

/// Reads the IPv6 packet of a frame.
#[inline(always)]
pub fn read_v6(frame: &Frame, packet: &mut Packet<V6>) -> Result<(), Outcome> {
    refusal(parse_v6(frame, packet))
}

/// The number of an outcome that a subprogram gives, 0 where there is no refusal. (0 is no refusal's number.)
#[inline(always)]
pub fn number(result: Result<(), Outcome>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(outcome) => outcome as i32,
    }
}

#[inline(always)]
pub fn refusal(number: i32) -> Result<(), Outcome> {
    match number {
        0 => Ok(()),
        _ => Err(Outcome::from_byte(number as u8).unwrap_or(Outcome::HeaderInvalid)),
    }
}

#[inline(never)]
fn parse_v4(frame: &Frame, packet: &mut Packet<V4>) -> i32 {
    number(ipv4::read(frame, packet))
}

#[inline(never)]
fn parse_v6(frame: &Frame, packet: &mut Packet<V6>) -> i32 {
    number(ipv6::read(frame, packet))
}

/// Gives a later fragment the ports and the protocol of its first.
#[inline(always)]
pub fn find_first<A: Family>(packet: &mut Packet<A>) -> Result<(), Outcome> {
    if matches!(packet.fragment(), Fragment::Later) { refusal(first_of(packet)) } else { Ok(()) }
}

#[inline(never)]
fn first_of<A: Family>(packet: &mut Packet<A>) -> i32 {
    number(try_first_of(packet))
}

#[inline(always)]
fn try_first_of<A: Family>(packet: &mut Packet<A>) -> Result<(), Outcome> {
    let Some(first) = A::fragment(&packet.fragment_key()) else { return Err(Outcome::FragmentUnknown) };
    let age = maps::jiffies().saturating_sub(first.seen);
    if age > FRAGMENT_LIFETIME * maps::config(cell::HERTZ) as u64 {
        return Err(Outcome::FragmentUnknown);
    }
    packet.source_port = first.source;
    packet.destination_port = first.destination;
    packet.protocol = first.protocol;
    Ok(())
}

/// Records what the later fragments of a datagram need, once its first has passed: as they come.
#[inline(always)]
pub fn remember_first<A: Family>(packet: &Packet<A>, via: &Via<A>) {
    if matches!(packet.fragment(), Fragment::First) {
        record_first(packet, via);
    }
}

#[inline(never)]
fn record_first<A: Family>(packet: &Packet<A>, via: &Via<A>) -> i32 {
    let mut ports = FragmentPorts {
        seen: maps::jiffies(),
        source: packet.source_port,
        destination: packet.destination_port,
        protocol: packet.protocol,
        reserved: [0; 3],
    };
    let mut key = packet.fragment_key();
    if via.way == way::TO {
        if via.hairpin != 0 {
            key.source = packet.destination;
        }
        key.destination = via.address;
        ports.destination = via.port;
    } else if via.hairpin != 0 {
        key.destination = via.address;
    }
    A::remember_fragment(&key, &ports);
    0
}

/// Counts a packet that passes by the entry of its flow, and brings the entry up to date.
#[inline(always)]
pub fn touch<A: Family>(frame: &Frame, packet: &Packet<A>, entry: *mut Connection, from_opener: bool, jiffies: u64) {
    // SAFETY: the pointer is to a row of the connection table, whose memory lasts while the program runs. Should
    // another CPU reuse the row for another flow meanwhile, that flow only looks younger, or heard, than it is.
    unsafe {
        if (*entry).seen != jiffies {
            (*entry).seen = jiffies;
        }
        let marks = (*entry).marks;
        let advanced = connection::advance(marks, packet.ending, from_opener);
        if advanced != marks {
            (*entry).marks = advanced;
        }
    }
    event::count(frame, if from_opener { Outcome::AllowedEstablished } else { Outcome::AllowedReply });
}

/// The pod behind the interface at hand.
#[derive(Clone, Copy)]
pub struct Pod {
    /// Its policy numbers.
    pub policies: Policies,
    /// The program that runs, which says what end of a packet the pod is: the source to `from_pod`, the destination to any other.
    pub hook: Hook,
    /// The epoch since which this end, and the other one, have been who they are.
    pub since: u32,
}

impl Pod {
    /// The pod of an endpoint, and who is reached at the other end's address.
    #[inline(always)]
    pub fn of(endpoint: &Endpoint, other: Option<LocalPod>, hook: Hook) -> Self {
        let since = match other {
            Some(other) => epoch::later(endpoint.since, other.since),
            None => endpoint.since,
        };
        Self { policies: Policies::of(endpoint), hook, since }
    }

    /// The policy numbers of both ends of a packet: source and destination.
    #[inline(always)]
    fn ends<A: Family>(self, packet: &Packet<A>) -> Result<(Policies, Policies), Outcome> {
        Ok(match self.hook {
            // The node under an address that no policy can name: what the node opened has an entry and is not asked about.
            // So under an address of its own, which it may take from its links too (`route_localnet`, that the plugin portmap sets).
            Hook::FromPod if packet.destination == A::GATEWAY || packet.destination.is_loopback() => {
                return Err(Outcome::DestinationForeign);
            }
            Hook::FromPod => (self.policies, policies_of(&packet.destination)?),
            _ => (policies_of(&packet.source)?, self.policies),
        })
    }
}

/// Whether a packet may pass, by what [`established`] has said or by the policies of both ends; writes and counts what follows from it.
///
/// On an error the caller drops and counts.
#[inline(always)]
pub fn admit<A: Family>(
    frame: &Frame,
    pod: Pod,
    packet: &mut Packet<A>,
    how: i32,
    via: &mut Via<A>,
    result: &mut Judgement,
) -> Result<(), Outcome> {
    if how >= 0 {
        if how == ESTABLISHED && via.chosen != 0 {
            service::remember_choice(packet, via, pod.since);
        }
        return refusal(how);
    }
    let asked = ask(packet, &pod, how, via, result);
    if via.hairpin != 0 {
        // Events name both ends as what they are.
        match via.way {
            way::TO => packet.source = packet.destination,
            _ => packet.destination = packet.source,
        }
    }
    match asked {
        0 => {
            if via.chosen != 0 {
                service::remember_choice(packet, via, pod.since);
            }
            event::allowed(frame, pod.hook, packet, result);
            Ok(())
        }
        outcome => refusal(outcome),
    }
}

// Subprograms from here on: each has the stack for itself, and gives the number of an outcome.

const ESTABLISHED: i32 = 0;
/// The flow has an entry, but the policies are to be asked: its source opened it.
pub const AGAIN: i32 = -1;
/// As `AGAIN`: its destination opened it.
const AGAIN_BACK: i32 = -4;
/// Nobody knows the flow.
pub const OPEN: i32 = -2;
/// The packet goes to a frontend.
pub const FRONTEND: i32 = -3;

/// Passes a packet by the entry of its flow, and counts it; tells the frontend that it answers for. Zero where it passes, the number
/// of an outcome where it does not, or that policies or services are to be asked.
#[inline(never)]
pub fn established<A: Family>(frame: &Frame, packet: &Packet<A>, since: u32, via: &mut Via<A>) -> i32 {
    let now = maps::now(since);
    let (key, source_is_high) = connection::key(packet);
    let entry = A::connection(&key);
    // SAFETY: the pointer is to a row of the connection table; see `touch` for what a reuse meanwhile can do.
    let known = entry.map(|entry| unsafe { &*entry });
    match (connection::look_up(known, packet.protocol, packet.segment, source_is_high, &now), entry) {
        (Lookup::Pass { from_opener }, Some(entry)) => {
            // SAFETY: as above.
            let known = unsafe { &*entry };
            if from_opener && via.way != way::TO && is_hairpin(Some(known)) {
                // What a pod sends to itself comes by its frontend alone; anybody else only claims to be that.
                return OPEN;
            }
            if via.way == way::TO {
                // What goes to a frontend opens a flow, whoever opened one between the same ends before; and the entry has to
                // say under which address replies go back.
                if !from_opener {
                    return OPEN;
                }
                if !via.is_of(known) {
                    return AGAIN;
                }
            } else if !from_opener {
                via.answering(known);
            } else if known.frontend_port != [0; 2] {
                // From here on the opener talks to the backend itself, from the same port.
                return AGAIN;
            }
            touch(frame, packet, entry, from_opener, now.jiffies);
            ESTABLISHED
        }
        (Lookup::Refuse(outcome), _) => outcome as i32,
        (Lookup::Again(End::Source), _) => {
            if via.way != way::TO && is_hairpin(known) {
                // As above.
                OPEN
            } else {
                AGAIN
            }
        }
        (Lookup::Again(End::Destination), _) => {
            if via.way == way::TO {
                OPEN
            } else {
                if is_hairpin(known)
                    && let Some(known) = known
                {
                    via.answering(known);
                }
                AGAIN_BACK
            }
        }
        (Lookup::Frontend, _) => FRONTEND,
        (Lookup::Open | Lookup::Pass { .. }, _) => OPEN,
    }
}

#[inline(always)]
fn is_hairpin(entry: Option<&Connection>) -> bool {
    matches!(entry, Some(entry) if entry.flags & flag::HAIRPIN != 0)
}

/// Asks the policies about a packet, of which [`established`] has said `how`, and writes the entry of its flow.
#[inline(never)]
fn ask<A: Family>(packet: &Packet<A>, pod: &Pod, how: i32, via: &mut Via<A>, result: &mut Judgement) -> i32 {
    number(try_ask(packet, pod, how, via, result))
}

#[inline(always)]
fn try_ask<A: Family>(packet: &Packet<A>, pod: &Pod, how: i32, via: &mut Via<A>, result: &mut Judgement) -> Result<(), Outcome> {
    let opener = if how == AGAIN_BACK { End::Destination } else { End::Source };
    let again = (how == AGAIN || how == AGAIN_BACK) as u32;
    let passes = if via.hairpin != 0 {
        let Policies { subject, audit } = pod.policies;
        if audit != subject {
            judge_itself(packet, audit, opener, &mut result.audit);
        }
        judge_itself(packet, subject, opener, &mut result.enforced)
    } else {
        let (source, destination) = pod.ends(packet)?;
        if source.audit != source.subject || destination.audit != destination.subject {
            judge(packet, source.audit, destination.audit, opener, &mut result.audit);
        }
        judge(packet, source.subject, destination.subject, opener, &mut result.enforced)
    };
    let about = About { since: pod.since, again, opener };
    if passes != 0 {
        record_allowed(packet, &about, via, &result.enforced);
        return Ok(());
    }
    // What was never allowed leaves no trace.
    if again != 0 {
        record_denied(packet, &about);
    }
    Err(result.enforced.outcome())
}

/// What an entry is written of.
struct About {
    /// The epoch since which both ends have been who they are.
    since: u32,
    /// Not zero: the flow has an entry.
    again: u32,
    /// Who opened the flow.
    opener: End,
}

#[inline(never)]
fn record_allowed<A: Family>(packet: &Packet<A>, about: &About, via: &mut Via<A>, verdict: &Verdict) -> i32 {
    let now = maps::now(about.since);
    let (key, source_is_high) = connection::key(packet);
    // SAFETY: as in `established`.
    let before = if about.again != 0 { A::connection(&key).map(|entry| unsafe { &*entry }) } else { None };
    let mut connection = connection::judged(before, packet.ending, source_is_high, about.opener, verdict, &now);
    if via.hairpin != 0 {
        connection.flags |= flag::HAIRPIN;
    }
    if matches!(about.opener, End::Source) {
        connection.flags &= !flag::BY_STACK;
        if via.stack != 0 {
            connection.flags |= flag::BY_STACK;
        }
    }
    if via.way == way::TO {
        connection.frontend = via.address.wide();
        connection.frontend_port = via.port;
    } else if matches!(about.opener, End::Destination) {
        via.answering(&connection);
    } else {
        (connection.frontend, connection.frontend_port) = ([0; 16], [0; 2]);
    }
    A::remember(&key, &connection);
    0
}

#[inline(never)]
fn record_denied<A: Family>(packet: &Packet<A>, about: &About) -> i32 {
    let (key, _) = connection::key(packet);
    // SAFETY: as in `established`.
    if let Some(before) = A::connection(&key).map(|entry| unsafe { &*entry }) {
        A::remember(&key, &connection::denied(before, &maps::now(about.since)));
    }
    0
}

/// Whether an ICMP error is about a flow that is allowed now; counts it.
#[inline(always)]
pub fn related<A: Family + Quoting>(
    frame: &Frame,
    outer: &mut Packet<A>,
    quoted: &mut Packet<A>,
    pod: Pod,
    via: &mut Via<A>,
) -> Result<(), Outcome> {
    match Outcome::from_byte(quotes_flow(frame, outer, quoted, &pod, via) as u8) {
        Some(Outcome::AllowedRelated) => {
            event::count(frame, Outcome::AllowedRelated);
            Ok(())
        }
        Some(outcome) => Err(outcome),
        None => Err(Outcome::IcmpUnrelated),
    }
}

/// Whether an ICMP error quotes a packet of a flow that is allowed now. Where the flow goes through a frontend, writes into the quote
/// what the receiver of the error knows, and tells what is left to rewrite.
#[inline(never)]
fn quotes_flow<A: Family + Quoting>(frame: &Frame, outer: &mut Packet<A>, quoted: &mut Packet<A>, pod: &Pod, via: &mut Via<A>) -> i32 {
    let mut since = pod.since;
    let outcome = read_quoted(frame, outer, quoted);
    if outcome != 0 {
        return outcome;
    }
    // The error goes to who sent what it quotes; a pod complains only of what was sent to itself.
    if quoted.source != outer.destination || (matches!(pod.hook, Hook::FromPod) && quoted.destination != outer.source) {
        return Outcome::IcmpUnrelated as i32;
    }
    if matches!(pod.hook, Hook::FromPod) && service::translate_quoted(quoted, via, pod.since) == service::TRANSLATED {
        outer.destination = quoted.source;
        if let Some(backend) = outer.destination.local() {
            since = epoch::later(since, backend.since);
        }
    }
    let opener = match opener_of(quoted, since, via) {
        ESTABLISHED => None,
        OPENED_BY_SOURCE => Some(End::Source),
        OPENED_BY_DESTINATION => Some(End::Destination),
        _ => return Outcome::IcmpUnrelated as i32,
    };
    // A pod that reaches itself complains to itself, and what it has sent since a change is judged before any error about it.
    if via.hairpin != 0 && (opener.is_some() || !matches!(pod.hook, Hook::FromPod)) {
        return Outcome::IcmpUnrelated as i32;
    }
    if let Some(opener) = opener {
        let mut result = Verdict::NOT_JUDGED;
        // The quoted packet went the other way.
        let passes = match pod.hook {
            Hook::FromPod => match policies_of(&quoted.source) {
                Ok(source) => judge(quoted, source.subject, pod.policies.subject, opener, &mut result),
                Err(outcome) => return outcome as i32,
            },
            _ => match policies_of(&quoted.destination) {
                Ok(destination) => judge(quoted, pod.policies.subject, destination.subject, opener, &mut result),
                Err(outcome) => return outcome as i32,
            },
        };
        if passes == 0 {
            return Outcome::IcmpUnrelated as i32;
        }
    }
    if via.way != way::NONE {
        if service::rewrite_quote(frame, outer, quoted, via) == 0 {
            return Outcome::RewriteFailed as i32;
        }
        // A router on the way speaks for itself.
        if via.way == way::FROM && outer.source != quoted.destination {
            via.way = way::NONE;
        }
    }
    Outcome::AllowedRelated as i32
}

/// Of an ICMP error that the node itself makes, and that passes whatever it is about: where the quoted flow goes through a frontend,
/// writes what the pod knows into the quote, and tells what is left to rewrite. Not zero where that failed.
#[inline(never)]
pub fn quote_of_host<A: Family + Quoting>(frame: &Frame, outer: &Packet<A>, quoted: &mut Packet<A>, since: u32, via: &mut Via<A>) -> i32 {
    if read_quoted(frame, outer, quoted) != 0 || quoted.source != outer.destination || opener_of(quoted, since, via) == UNKNOWN {
        return 0;
    }
    if via.way == way::NONE || via.hairpin != 0 {
        via.way = way::NONE;
        return 0;
    }
    if service::rewrite_quote(frame, outer, quoted, via) == 0 {
        return Outcome::RewriteFailed as i32;
    }
    if outer.source != quoted.destination {
        via.way = way::NONE;
    }
    0
}

#[inline(never)]
pub fn read_quoted<A: Family + Quoting>(frame: &Frame, outer: &Packet<A>, quoted: &mut Packet<A>) -> i32 {
    number(icmp::quoted(frame, outer, quoted))
}

const OPENED_BY_SOURCE: i32 = 1;
const OPENED_BY_DESTINATION: i32 = 2;
const UNKNOWN: i32 = 3;

/// Whether the entry of a quoted packet's flow lets it stand, or who opened the flow that is to be judged again.
#[inline(never)]
fn opener_of<A: Family>(quoted: &Packet<A>, since: u32, via: &mut Via<A>) -> i32 {
    let now = maps::now(since);
    let (key, source_is_high) = connection::key(quoted);
    // SAFETY: as in `established`.
    let Some(entry) = A::connection(&key).map(|entry| unsafe { &*entry }) else { return UNKNOWN };
    let looked_up = connection::look_up(Some(entry), quoted.protocol, quoted.segment, source_is_high, &now);
    // What the opener sent is quoted as it went to the backend.
    if matches!(looked_up, Lookup::Pass { from_opener: true } | Lookup::Again(End::Source)) && via.way == way::NONE {
        via.answering(entry);
    }
    match looked_up {
        Lookup::Pass { .. } => ESTABLISHED,
        Lookup::Again(End::Source) => OPENED_BY_SOURCE,
        Lookup::Again(End::Destination) => OPENED_BY_DESTINATION,
        Lookup::Open | Lookup::Frontend | Lookup::Refuse(_) => UNKNOWN,
    }
}
