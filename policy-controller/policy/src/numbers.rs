//! The numbers that rows are made of, and what they stand for.

use crate::ports::PortTable;
use crate::reason::Reason;
use crate::rules::RuleSet;
use palisade_identity::{Interner, Signature};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// All numbers of one node. Its owner writes it down (serde) before it writes rows, and reads it back when it
/// starts again: then an unchanged model makes no write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// Identities: what selectors match.
    pub identities: Interner<Signature>,
    /// Subjects: what policies say.
    pub subjects: Interner<RuleSet>,
    /// Port tables.
    pub ports: Interner<PortTable>,
    /// Reasons.
    pub reasons: Interner<Reason>,
}

/// The numbers of each kind that rows refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Identities.
    pub identities: BTreeSet<u32>,
    /// Subjects.
    pub subjects: BTreeSet<u32>,
    /// Port tables.
    pub ports: BTreeSet<u32>,
    /// Reasons.
    pub reasons: BTreeSet<u32>,
}

impl Numbers {
    /// Numbers for a node whose kernel holds rows that use numbers up to these, while what they stand for is lost.
    pub fn starting_after(subject: u32, identity: u32, ports: u32, reason: u32) -> Self {
        Self {
            identities: Interner::starting_after(identity),
            subjects: Interner::starting_after(subject),
            ports: Interner::starting_after(ports),
            reasons: Interner::starting_after(reason),
        }
    }

    /// What a reason number stands for; `None` for 0 and for numbers that are not known.
    pub fn reason(&self, number: u32) -> Option<&Reason> {
        self.reasons.content(number)
    }

    /// What the policies say of a subject.
    pub fn subject(&self, number: u32) -> Option<&RuleSet> {
        self.subjects.content(number)
    }

    /// The selectors that the addresses of an identity match.
    pub fn identity(&self, number: u32) -> Option<&Signature> {
        self.identities.content(number)
    }

    /// Marks everything that is used as in use.
    pub(crate) fn hold(&mut self, used: &Used) {
        used.identities.iter().for_each(|&number| self.identities.hold(number));
        used.subjects.iter().for_each(|&number| self.subjects.hold(number));
        used.ports.iter().for_each(|&number| self.ports.hold(number));
        used.reasons.iter().for_each(|&number| self.reasons.hold(number));
    }

    /// Begins the next generation: what an earlier change released may be given to others now.
    pub(crate) fn begin_generation(&mut self) {
        self.identities.begin_generation();
        self.subjects.begin_generation();
        self.ports.begin_generation();
        self.reasons.begin_generation();
    }

    /// Releases everything that is not used.
    pub(crate) fn release_except(&mut self, used: &Used) {
        self.identities.release_except(&used.identities);
        self.subjects.release_except(&used.subjects);
        self.ports.release_except(&used.ports);
        self.reasons.release_except(&used.reasons);
    }
}
