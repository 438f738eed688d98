//! The verdict: what the policies of both ends say of a flow.

use crate::abi::{
    Address, Direction, IDENTITY_ANY, Outcome, PORTS_NONE, PolicyEntry, PolicyKey, PortEntry, REASON_NONE, RowVerdict, SUBJECT_NONE,
};

/// The tables that a verdict is read from: BPF maps in the kernel, ordinary maps in tests.
pub trait Tables<A: Address> {
    /// The identity of an address: its own row, else that of the longest prefix that contains it, else
    /// [`IDENTITY_ANY`].
    fn identity(&self, address: &A) -> u32;
    /// A row of the policy table.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry>;
    /// The row of the longest prefix that contains `port` (host byte order) in a port table.
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<PortEntry>;
}

/// A flow as policy sees it: who opened it towards whom, whatever the direction of the packet at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// Address of the end that opened the flow.
    pub opener: A,
    /// Address of the other end.
    pub responder: A,
    /// IP protocol number.
    pub protocol: u8,
    /// The responder's port in host byte order; 0 for protocols without ports.
    pub port: u16,
    /// The opener's subject number, or [`SUBJECT_NONE`] where it is no pod of this node.
    pub egress_subject: u32,
    /// The responder's subject number, or [`SUBJECT_NONE`] where it is no pod of this node or the node itself opened the flow.
    pub ingress_subject: u32,
}

/// What one side's policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Decision {
    /// This side is not judged here.
    NotJudged = 0,
    /// The flow passes.
    Allow = 1,
    /// A rule denies it.
    Deny = 2,
    /// No rule allows it and policies isolate the subject.
    DefaultDeny = 3,
    /// The subject has no rows, or a row has no meaning; closed.
    Missing = 4,
}

impl Decision {
    /// Whether this side lets the flow pass.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        matches!(self, Self::NotJudged | Self::Allow)
    }

    /// The decision of a byte in an event.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::NotJudged),
            1 => Some(Self::Allow),
            2 => Some(Self::Deny),
            3 => Some(Self::DefaultDeny),
            4 => Some(Self::Missing),
            _ => None,
        }
    }
}

/// The decision of one side, and the number of its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// What was decided.
    pub decision: Decision,
    /// Number of the reason.
    pub reason: u32,
}

impl Side {
    /// A side that is not judged here.
    pub const NOT_JUDGED: Self = Self { decision: Decision::NotJudged, reason: REASON_NONE };
    const MISSING: Self = Self { decision: Decision::Missing, reason: REASON_NONE };
    const UNMENTIONED: Self = Self { decision: Decision::Allow, reason: REASON_NONE };
}

/// The decisions of both sides. A flow passes when both pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The opener's policy about the responder.
    pub egress: Side,
    /// The responder's policy about the opener; not judged where the egress side already denies.
    pub ingress: Side,
}

impl Verdict {
    /// No policy was asked.
    pub const NOT_JUDGED: Self = Self { egress: Side::NOT_JUDGED, ingress: Side::NOT_JUDGED };

    /// Whether both sides let the flow pass.
    #[inline(always)]
    pub const fn passes(&self) -> bool {
        self.egress.decision.passes() && self.ingress.decision.passes()
    }

    /// What becomes of the packet that asked.
    #[inline(always)]
    pub const fn outcome(&self) -> Outcome {
        match (self.egress.decision, self.ingress.decision) {
            (Decision::Missing, _) | (_, Decision::Missing) => Outcome::PolicyMissing,
            (Decision::Deny, _) => Outcome::EgressDenied,
            (Decision::DefaultDeny, _) => Outcome::EgressDefaultDenied,
            (_, Decision::Deny) => Outcome::IngressDenied,
            (_, Decision::DefaultDeny) => Outcome::IngressDefaultDenied,
            _ => Outcome::AllowedNew,
        }
    }
}

/// What the enforced policies say of a flow, and what it would be if those in audit mode were enforced, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What decides.
    pub enforced: Verdict,
    /// What would decide; not judged where no policy in audit mode selects either end.
    pub audit: Verdict,
}

impl Judgement {
    /// No policy was asked.
    pub const NOT_JUDGED: Self = Self { enforced: Verdict::NOT_JUDGED, audit: Verdict::NOT_JUDGED };

    /// Whether the flow would have fared otherwise with the policies in audit mode.
    #[inline(always)]
    pub const fn audit_differs(&self) -> bool {
        let Verdict { egress, ingress } = &self.audit;
        match (egress.decision, ingress.decision) {
            // While a change lasts their rows may not be there.
            (Decision::NotJudged, Decision::NotJudged) | (Decision::Missing, _) | (_, Decision::Missing) => false,
            _ => self.audit.passes() != self.enforced.passes(),
        }
    }
}

/// What the policies of both ends say of a flow.
#[inline(always)]
pub fn verdict<A: Address, T: Tables<A>>(tables: &T, flow: &Flow<A>) -> Verdict {
    let egress = side(tables, Direction::Egress, flow.egress_subject, &flow.responder, flow.protocol, flow.port);
    let ingress = if egress.decision.passes() {
        side(tables, Direction::Ingress, flow.ingress_subject, &flow.opener, flow.protocol, flow.port)
    } else {
        Side::NOT_JUDGED
    };
    Verdict { egress, ingress }
}

/// What a pod's policies say of a flow by which it reaches itself through a service: `address` is its own, `port` that of the backend in
/// host byte order.
///
/// Only ClusterNetworkPolicies speak of such a flow, and only what they say has rows ([`Direction::SelfEgress`] and
/// [`Direction::SelfIngress`]): where there is none, it is allowed. No change of rows opens anything by that, for the rows of a subject are
/// there before any endpoint has its number, and go after the last has lost it.
#[inline(always)]
pub fn verdict_of_itself<A: Address, T: Tables<A>>(tables: &T, subject: u32, address: &A, protocol: u8, port: u16) -> Verdict {
    if subject == SUBJECT_NONE {
        return Verdict::NOT_JUDGED;
    }
    // Once for both sides: between two looks the address could have got another one.
    let identity = tables.identity(address);
    let egress = said(tables, Direction::SelfEgress, subject, identity, protocol, port);
    let ingress =
        if egress.decision.passes() { said(tables, Direction::SelfIngress, subject, identity, protocol, port) } else { Side::NOT_JUDGED };
    Verdict { egress, ingress }
}

/// What one subject's policy says of a peer.
#[inline(always)]
pub fn side<A: Address, T: Tables<A>>(tables: &T, direction: Direction, subject: u32, peer: &A, protocol: u8, port: u16) -> Side {
    if subject == SUBJECT_NONE {
        return Side::NOT_JUDGED;
    }
    said(tables, direction, subject, tables.identity(peer), protocol, port)
}

/// What it says of an identity.
#[inline(always)]
fn said<A: Address, T: Tables<A>>(tables: &T, direction: Direction, subject: u32, identity: u32, protocol: u8, port: u16) -> Side {
    let exact = if identity == IDENTITY_ANY { None } else { tables.policy(&PolicyKey::new(subject, direction, identity)) };
    let row = match exact {
        Some(row) => row,
        // An exact row already contains what rules without peers say; without one, only those speak.
        None => match tables.policy(&PolicyKey::new(subject, direction, IDENTITY_ANY)) {
            Some(row) => row,
            None => return if direction.is_self() { Side::UNMENTIONED } else { Side::MISSING },
        },
    };
    if row.ports != PORTS_NONE
        && let Some(entry) = tables.port(row.ports, protocol, port)
    {
        return decided(entry.verdict, entry.reason);
    }
    decided(row.verdict, row.reason)
}

#[inline(always)]
fn decided(byte: u8, reason: u32) -> Side {
    let decision = match RowVerdict::from_byte(byte) {
        Some(RowVerdict::Allow) => Decision::Allow,
        Some(RowVerdict::Deny) => Decision::Deny,
        Some(RowVerdict::DefaultDeny) => Decision::DefaultDeny,
        None => return Side::MISSING,
    };
    Side { decision, reason }
}
