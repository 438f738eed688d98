//! The deliberate faults, and which one is in force in this thread.

use std::cell::Cell;

macro_rules! faults {
    ($($name:ident,)*) => {
        /// A deliberate fault; where it lies, `faulty!` says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($name,)* }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];
        }
    };
}

faults! {
    AllPortsButZero,
    ApiServerForgotten,
    AuditEnforced,
    AuditLeftOut,
    ClaimedByTheFirst,
    DefaultDenyForgotten,
    DenialsForEverybodyEnough,
    DenyInItsPlace,
    ExceptDropped,
    ExceptIgnoredInRows,
    GapsClosed,
    HostIsEveryNode,
    ItselfByItsNamespace,
    ItselfIsNoPeer,
    ItselfIsolated,
    LastPortForgotten,
    LaterRulesOverrule,
    MissingIdentityDeniesNobody,
    NamedPortOfAnyProtocol,
    NodeLabelsIgnored,
    OwnNamespaceIsEvery,
    PassAllows,
    PassedPortsFallThrough,
    PeerLabelsIgnored,
    PeersNamesForgotten,
    PodRangesAreTheWorld,
    PrioritiesIgnored,
    RulesForEverybodyForgotten,
    ShortPrefixesForgotten,
    SubjectAccountIgnored,
    SubjectLabelsIgnored,
    SubjectNamespaceIgnored,
    TiersDecideNothing,
}

thread_local! {
    static CURRENT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Puts a fault in force, or none.
pub fn set(fault: Option<Fault>) {
    CURRENT.set(fault);
}

/// Whether this fault is in force.
pub fn is(fault: Fault) -> bool {
    CURRENT.get() == Some(fault)
}
