//! The order of a change: single writes between which every verdict is the old one or the new one.

use crate::compile::Compiled;
use crate::compiler::Compiler;
use crate::model::{Model, ObjectName};
use crate::numbers::Numbers;
use ipnet::IpNet;
use palisade_datapath_core::abi::{PolicyEntry, PolicyKey, PortEntry, PortKey};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// One write. Those of a plan are made one by one, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a row of a port table.
    WritePort {
        /// The key.
        key: PortKey,
        /// Length of the port's prefix in bits, 0 to 16.
        length: u8,
        /// The row.
        entry: PortEntry,
    },
    /// Write a row of the policy table.
    WritePolicy {
        /// The key.
        key: PolicyKey,
        /// The row.
        entry: PolicyEntry,
    },
    /// Give a prefix an identity.
    WritePrefix {
        /// The prefix, host bits zero.
        prefix: IpNet,
        /// Its identity.
        identity: u32,
    },
    /// Give an address an identity.
    WriteAddress {
        /// The address.
        address: IpAddr,
        /// Its identity.
        identity: u32,
    },
    /// Give every endpoint of a pod another subject number; nothing to do where the pod has none yet.
    Flip {
        /// The pod.
        pod: ObjectName,
        /// The subject number; `SUBJECT_NONE` where the pod is no subject any more.
        subject: u32,
        /// The number of what policies in audit mode would make of it; `SUBJECT_NONE` where none selects the pod.
        audit: u32,
    },
    /// Wait until every program has ended that runs now: it may have read what the steps so far have altered, and goes on to read what the
    /// next ones alter.
    AwaitPrograms,
    /// Leave the policy epoch: until the next one every packet is judged by itself, those of established flows too.
    UnsettleEpoch,
    /// Move to the next policy epoch: flows that are judged already are judged again.
    BumpEpoch,
    /// Remove an address.
    RemoveAddress(IpAddr),
    /// Remove a prefix.
    RemovePrefix(IpNet),
    /// Remove a row of the policy table.
    RemovePolicy(PolicyKey),
    /// Remove a row of a port table: key and length of the port's prefix in bits.
    RemovePort(PortKey, u8),
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The writes, in order. None where nothing changes.
    pub steps: Vec<Step>,
    /// What the maps hold after the last step.
    pub next: Arc<Compiled>,
}

/// Plans one change after the other with the same [`Numbers`]. A change costs as much as it touches.
#[derive(Debug, Default)]
pub struct Planner {
    compiler: Compiler,
}

impl Planner {
    /// A planner that has planned nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The writes that lead from what the maps hold to what `model` wants, in the safe order.
    ///
    /// `numbers` gives out and takes back numbers; write it down before the first step is made. When the steps could
    /// not all be made, read the maps back into a [`Compiled`] and plan from that.
    pub fn plan(&mut self, old: &Compiled, model: &Model, local: &BTreeSet<ObjectName>, numbers: &mut Numbers) -> Plan {
        // What was planned last is in use already.
        let known = self.compiler.made(old);
        if !known {
            numbers.hold(&old.used());
        }
        numbers.begin_generation();
        let next = self.compiler.compile(model, local, numbers);
        let extent = self.compiler.extent().filter(|_| known);
        let steps = crate::order::steps(old, &next, extent, numbers);
        numbers.release_except(&self.compiler.used());
        Plan { steps, next }
    }
}

/// As [`Planner::plan`], for a change that comes alone.
pub fn plan(old: &Compiled, model: &Model, local: &BTreeSet<ObjectName>, numbers: &mut Numbers) -> Plan {
    Planner::new().plan(old, model, local, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{self, Random};
    use palisade_datapath_core::abi::IDENTITY_ANY;

    #[test]
    fn what_a_change_may_concern_is_what_a_look_through_all_rows_finds() {
        let mut told = 0;
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let mut model = generate::model(&mut random);
            let (mut planner, mut numbers, mut compiled) = (Planner::new(), Numbers::default(), Arc::<Compiled>::default());
            for _ in 0..12 {
                let local = generate::local(&mut random, &model);
                let next = planner.plan(&compiled, &model, &local, &mut numbers).next;
                if let Some(extent) = planner.compiler.extent() {
                    let found = |rows: &Compiled| rows.identities().into_iter().filter(|&identity| identity != IDENTITY_ANY).collect();
                    assert_eq!(extent.identities, [&compiled, &next].map(|rows| found(rows)), "seed {seed}");
                    told += 1;
                }
                compiled = next;
                generate::change(&mut random, &mut model);
            }
        }
        assert!(told > 300, "{told}");
    }
}
