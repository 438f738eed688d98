//! Live verdicts: read from the kernel's ring, given names, sent to everybody who observes.

use crate::kernel::KernelHandle;
use crate::state::{Published, State};
use nix::time::{ClockId, clock_gettime};
use palisade_datapath_core::abi::{DatapathEvent, Hook, Outcome};
use palisade_datapath_core::verdict::Decision;
use palisade_loader::EventRing;
use palisade_protocol::{Audit, Event, EventEnd, SideVerdict, VerdictName};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};

/// How many events wait for a slow observer before the oldest are lost (and counted).
const BACKLOG: usize = 4096;
/// How many events are taken from the ring before other tasks get a turn.
const BATCH: usize = 256;

/// Sends events to everybody who observes.
#[derive(Debug)]
pub struct Hub {
    sender: broadcast::Sender<Arc<Event>>,
    /// How many observers want allowed flows, too.
    wanting_allowed: watch::Sender<usize>,
}

/// One observer's end of the [`Hub`].
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Event>>,
    /// Counts this observer as one who wants allowed flows, as long as it lives.
    allowed: Option<AllowedGuard>,
    lost: u64,
}

struct AllowedGuard(watch::Sender<usize>);

impl Drop for AllowedGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Hub {
    /// A hub without observers.
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), wanting_allowed: watch::Sender::new(0) }
    }

    /// A new observer; `allowed`: of new flows that are allowed, too.
    pub fn subscribe(&self, allowed: bool) -> Subscription {
        let receiver = self.sender.subscribe();
        let allowed = allowed.then(|| {
            self.wanting_allowed.send_modify(|count| *count += 1);
            AllowedGuard(self.wanting_allowed.clone())
        });
        Subscription { receiver, allowed, lost: 0 }
    }

    /// Tells how many observers want allowed flows.
    pub fn wanting_allowed(&self) -> watch::Receiver<usize> {
        self.wanting_allowed.subscribe()
    }

    fn send(&self, event: Event) {
        // Nobody listening is no error.
        let _ = self.sender.send(Arc::new(event));
    }

    fn has_observers(&self) -> bool {
        self.sender.receiver_count() > 0
    }
}

impl Subscription {
    /// The next event. What this observer was too slow for is added to the event's `suppressed`, and told to `lost`.
    /// `None` when the agent ends.
    pub async fn next(&mut self, lost: impl Fn(u64)) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) if self.allowed.is_none() && event.action == ALLOWED => {}
                Ok(event) => {
                    let mut event = Event::clone(&event);
                    event.suppressed += std::mem::take(&mut self.lost);
                    return Some(event);
                }
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    self.lost += count;
                    lost(count);
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

const ALLOWED: &str = "allowed";
const AUDITED: &str = "audited";
const DROPPED: &str = "dropped";

/// Reads the ring for ever. Read without observers too, so that none sees the past and what was suppressed is counted.
pub async fn read(state: Arc<State>, ring: EventRing) -> io::Result<Infallible> {
    // What replaces it is `unsafe`: its caller vouches that the descriptor stays the same. An `EventRing` owns its own.
    #[expect(deprecated, reason = "sound here, and `unsafe` has no place in this crate")]
    let mut ring = AsyncFd::new(ring)?;
    let mut suppressed = 0_u64;
    loop {
        let mut ready = ring.readable_mut().await?;
        let now = Clocks::now();
        let mut taken = 0;
        while taken < BATCH {
            match ready.get_inner_mut().next() {
                Ok(Some(event)) => {
                    suppressed += event.suppressed;
                    state.metrics.events_suppressed(event.suppressed);
                    if state.events.has_observers() {
                        // Asked for each: what the numbers of a change stand for is known before its rows are there.
                        let mut event = named(&event, &state.published(), now);
                        event.suppressed = std::mem::take(&mut suppressed);
                        state.events.send(event);
                    } else {
                        suppressed = 0;
                    }
                }
                Ok(None) => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => tracing::error!(%error, "an event could not be read"),
            }
            taken += 1;
        }
        tokio::task::yield_now().await;
    }
}

/// Turns events of allowed flows on while somebody wants them, for ever.
pub async fn follow_observers(state: Arc<State>, kernel: KernelHandle) -> Infallible {
    let mut wanting = state.events.wanting_allowed();
    loop {
        let on = *wanting.borrow_and_update() > 0;
        if let Err(error) = kernel.run(move |kernel| kernel.observe_allowed(on)).await {
            tracing::error!(%error, "cannot switch events of allowed flows");
        }
        let unchanged = |count: &usize| (*count > 0) != on;
        if wanting.wait_for(unchanged).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Both clocks at one moment: the kernel stamps events with the monotonic one.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    monotonic: Duration,
    real: Duration,
}

impl Clocks {
    fn now() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { monotonic, real }
    }

    /// Seconds since the Unix epoch of a moment in nanoseconds since boot.
    fn seconds(&self, time: u64) -> f64 {
        let age = self.monotonic.saturating_sub(Duration::from_nanos(time));
        self.real.saturating_sub(age).as_secs_f64()
    }
}

/// The names that [`Event::outcome`] can have.
pub fn outcome_names() -> impl Iterator<Item = &'static str> {
    Outcome::ALL.iter().map(|outcome| outcome.name())
}

/// The event with names in place of numbers.
fn named(event: &DatapathEvent, published: &Published, now: Clocks) -> Event {
    let outcome = Outcome::from_byte(event.outcome);
    let side = |decision, reason| side(decision, reason, published);
    let audited = event.audit_egress != Decision::NotJudged as u8 || event.audit_ingress != Decision::NotJudged as u8;
    Event {
        time: now.seconds(event.time),
        action: match outcome {
            Some(Outcome::AllowedAudited) => AUDITED,
            Some(outcome) if outcome.passes() => ALLOWED,
            _ => DROPPED,
        }
        .to_owned(),
        outcome: outcome.map_or("unknown", Outcome::name).to_owned(),
        hook: Hook::from_byte(event.hook).map_or("unknown", Hook::name).to_owned(),
        source: end(event.version, event.source, event.source_port, published),
        destination: end(event.version, event.destination, event.destination_port, published),
        protocol: protocol_name(event.protocol),
        egress: side(event.egress, event.egress_reason),
        ingress: side(event.ingress, event.ingress_reason),
        audit: audited.then(|| Audit {
            egress: side(event.audit_egress, event.audit_egress_reason),
            ingress: side(event.audit_ingress, event.audit_ingress_reason),
        }),
        length: event.length,
        suppressed: 0,
    }
}

fn end(version: u8, address: [u8; 16], port: [u8; 2], published: &Published) -> EventEnd {
    let address = match version {
        4 => Some(IpAddr::from([address[0], address[1], address[2], address[3]])),
        6 => Some(IpAddr::from(address)),
        _ => None,
    };
    let name = address.and_then(|address| published.names.get(&address)).map(|name| name.to_string()).unwrap_or_default();
    EventEnd { address, port: u16::from_be_bytes(port), name }
}

fn side(decision: u8, reason: u32, published: &Published) -> SideVerdict {
    let verdict = match Decision::from_byte(decision) {
        Some(Decision::NotJudged) => VerdictName::None,
        Some(Decision::Allow) => VerdictName::Allow,
        Some(Decision::Deny) => VerdictName::Deny,
        Some(Decision::DefaultDeny) => VerdictName::DefaultDeny,
        Some(Decision::Missing) | None => VerdictName::Error,
    };
    SideVerdict { verdict, reason: reason_text(verdict, reason, published) }
}

/// The words for a reason number.
fn reason_text(verdict: VerdictName, reason: u32, published: &Published) -> String {
    match (published.numbers.reason(reason), verdict) {
        (Some(reason), _) => reason.to_string(),
        (None, VerdictName::Allow) => "not isolated".to_owned(),
        (None, VerdictName::None) => String::new(),
        (None, VerdictName::Error) => "the policy rows are missing".to_owned(),
        (None, VerdictName::Deny | VerdictName::DefaultDeny) => format!("reason {reason}, whose policy is gone"),
    }
}

/// The name of an IP protocol.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped() -> DatapathEvent {
        DatapathEvent {
            time: 5_000_000_000,
            source: [10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            destination: [10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            destination_port: 80_u16.to_be_bytes(),
            protocol: 6,
            version: 4,
            outcome: Outcome::IngressDefaultDenied as u8,
            egress: Decision::Allow as u8,
            ingress: Decision::DefaultDeny as u8,
            ..DatapathEvent::default()
        }
    }

    fn event(action: &str) -> Event {
        let now = Clocks { monotonic: Duration::ZERO, real: Duration::ZERO };
        Event { action: action.to_owned(), ..named(&dropped(), &Published::default(), now) }
    }

    #[test]
    fn addresses_get_the_names_of_their_pods() {
        let names = [("10.0.0.2".parse().unwrap(), Arc::from("shop/web"))].into_iter().collect();
        let published = Published { names, ..Published::default() };
        let now = Clocks { monotonic: Duration::from_secs(6), real: Duration::from_secs(1000) };
        let event = named(&dropped(), &published, now);
        assert_eq!((event.source.name.as_str(), event.destination.name.as_str()), ("shop/web", ""));
        assert_eq!((event.destination.port, event.protocol.as_str(), event.action.as_str()), (80, "TCP", DROPPED));
        assert_eq!((event.egress.verdict, event.ingress.verdict), (VerdictName::Allow, VerdictName::DefaultDeny));
        assert!((event.time - 999.0).abs() < 1e-6, "{}", event.time);
    }

    #[test]
    fn a_packet_that_could_not_be_read_has_no_addresses() {
        let now = Clocks { monotonic: Duration::ZERO, real: Duration::ZERO };
        let event = named(&DatapathEvent { version: 0, ..dropped() }, &Published::default(), now);
        assert_eq!((event.source.address, event.destination.address), (None, None));
    }

    #[tokio::test]
    async fn an_observer_of_drops_sees_no_allowed_flow() {
        let hub = Hub::new();
        let mut observer = hub.subscribe(false);
        hub.send(event(ALLOWED));
        hub.send(event(DROPPED));
        assert_eq!(observer.next(|_| {}).await.unwrap().action, DROPPED);
    }

    #[tokio::test]
    async fn what_a_slow_observer_missed_is_counted() {
        let hub = Hub::new();
        let mut observer = hub.subscribe(false);
        for _ in 0..BACKLOG + 3 {
            hub.send(event(DROPPED));
        }
        let lost = std::cell::Cell::new(0);
        let first = observer.next(|count| lost.set(count)).await.unwrap();
        assert_eq!((first.suppressed, lost.get()), (3, 3));
    }

    #[tokio::test]
    async fn allowed_flows_are_wanted_only_while_somebody_observes_them() {
        let hub = Hub::new();
        let wanting = hub.wanting_allowed();
        let (drops, all) = (hub.subscribe(false), hub.subscribe(true));
        assert_eq!(*wanting.borrow(), 1);
        drop(all);
        assert_eq!(*wanting.borrow(), 0);
        drop(drops);
    }
}
