//! Counters and events.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use palisade_datapath_core::abi::{DatapathEvent, EventKey, Hook, Outcome, cell};
use palisade_datapath_core::packet::{Bytes, Packet};
use palisade_datapath_core::verdict::{Judgement, Verdict};

use crate::frame::{Frame, action};
use crate::maps::{self, COUNTERS, EVENT_BUDGET, EVENT_FLOWS, EVENTS, Family};

/// Events that one CPU sends in a second at most.
const BUDGET: u64 = 2000;

/// Counts a packet under its outcome.
#[inline(always)]
pub fn count(frame: &Frame, outcome: Outcome) {
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the row belongs to this CPU, and no other program runs on it meanwhile.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += frame.length() as u64;
        }
    }
}

/// Drops a frame that could not be read as IP.
#[inline(never)]
pub fn drop_frame(frame: &Frame, hook: Hook, outcome: Outcome) -> i32 {
    count(frame, outcome);
    let key = EventKey { ifindex: frame.ifindex(), outcome: outcome as u8, hook: hook as u8, ..EventKey::default() };
    if due(&key) {
        send(frame, &key, 0, &Verdict::NOT_JUDGED, &Verdict::NOT_JUDGED);
    }
    action::DROP
}

/// Drops a packet.
#[inline(never)]
pub fn drop_packet<A: Family>(frame: &Frame, hook: Hook, outcome: Outcome, packet: &Packet<A>, judgement: &Judgement) -> i32 {
    count(frame, outcome);
    report(frame, hook, outcome, packet, judgement);
    action::DROP
}

/// Counts a packet of a flow that was judged and allowed, and tells of it where that was asked for.
#[inline(always)]
pub fn allowed<A: Family>(frame: &Frame, hook: Hook, packet: &Packet<A>, judgement: &Judgement) {
    let audited = judgement.audit_differs();
    let outcome = if audited { Outcome::AllowedAudited } else { Outcome::AllowedNew };
    count(frame, outcome);
    if audited || maps::config(cell::OBSERVE_ALLOWED) != 0 {
        observe(frame, hook, packet, judgement);
    }
}

#[inline(never)]
fn observe<A: Family>(frame: &Frame, hook: Hook, packet: &Packet<A>, judgement: &Judgement) -> i32 {
    let outcome = if judgement.audit_differs() { Outcome::AllowedAudited } else { Outcome::AllowedNew };
    report(frame, hook, outcome, packet, judgement);
    0
}

#[inline(always)]
fn report<A: Family>(frame: &Frame, hook: Hook, outcome: Outcome, packet: &Packet<A>, judgement: &Judgement) {
    let key = EventKey {
        source: packet.source.wide(),
        destination: packet.destination.wide(),
        ifindex: frame.ifindex(),
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        protocol: packet.protocol,
        outcome: outcome as u8,
        hook: hook as u8,
        reserved: 0,
    };
    if due(&key) {
        let audit = if judgement.audit_differs() { judgement.audit } else { Verdict::NOT_JUDGED };
        send(frame, &key, packet.version, &judgement.enforced, &audit);
    }
}

/// Whether an event may be sent: about one a second for what has the same key, and a budget for each CPU.
#[inline(always)]
fn due(key: &EventKey) -> bool {
    let jiffies = maps::jiffies();
    let second = maps::config(cell::HERTZ) as u64;
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: the row belongs to this CPU.
    let budget = unsafe { &mut *budget };
    if jiffies.saturating_sub(budget.since) >= second {
        budget.since = jiffies;
        budget.sent = 0;
    }
    // The budget first: a flood of ever new flows must not even look at the table.
    // SAFETY: a number is copied.
    if budget.sent >= BUDGET || matches!(unsafe { EVENT_FLOWS.get(key) }, Some(last) if jiffies.saturating_sub(*last) < second) {
        budget.suppressed += 1;
        budget.suppressed_total += 1;
        return false;
    }
    budget.sent += 1;
    // Where it fails, the next event of this flow comes early.
    let _ = EVENT_FLOWS.insert(key, jiffies, 0);
    true
}

#[inline(always)]
fn send(frame: &Frame, key: &EventKey, version: u8, enforced: &Verdict, audit: &Verdict) {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else { return };
    let Some(mut entry) = EVENTS.reserve_untyped::<DatapathEvent>(0) else {
        // The reader is too slow.
        // SAFETY: the row belongs to this CPU.
        unsafe {
            (*budget).suppressed += 1;
            (*budget).suppressed_total += 1;
        }
        return;
    };
    let event = entry.as_mut_ptr();
    // Field by field: a whole event does not fit on the stack beside what its callers keep there.
    // SAFETY: the row belongs to this CPU; `event` is memory of the ring, of the right size and alignment, and every
    // field of it is written; the helper takes nothing and gives a number.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).suppressed = (*budget).suppressed;
        (*budget).suppressed = 0;
        (*event).source = key.source;
        (*event).destination = key.destination;
        (*event).ifindex = key.ifindex;
        (*event).length = frame.length();
        (*event).egress_reason = enforced.egress.reason;
        (*event).ingress_reason = enforced.ingress.reason;
        (*event).audit_egress_reason = audit.egress.reason;
        (*event).audit_ingress_reason = audit.ingress.reason;
        (*event).source_port = key.source_port;
        (*event).destination_port = key.destination_port;
        (*event).protocol = key.protocol;
        (*event).version = version;
        (*event).outcome = key.outcome;
        (*event).hook = key.hook;
        (*event).egress = enforced.egress.decision as u8;
        (*event).ingress = enforced.ingress.decision as u8;
        (*event).audit_egress = audit.egress.decision as u8;
        (*event).audit_ingress = audit.ingress.decision as u8;
        (*event).reserved = [0; 4];
    }
    entry.submit(0);
}
