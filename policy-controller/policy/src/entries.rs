//! Rows as a verdict reads them.

use crate::compile::Compiled;
use crate::numbers::Used;
use crate::rows::NOT_ISOLATED;
use ipnet::IpNet;
use palisade_datapath_core::abi::{Direction, IDENTITY_ANY, PolicyEntry, PolicyKey, PortEntry, PortKey, V4, V6};
use palisade_datapath_core::verdict::Tables;
use std::collections::BTreeMap;
use std::net::IpAddr;

impl Compiled {
    /// The identity of an address: its own row, else that of the longest prefix that contains it, else
    /// [`IDENTITY_ANY`].
    pub fn identity(&self, address: IpAddr) -> u32 {
        match self.addresses.get(&address) {
            Some(&identity) => identity,
            None => longest_prefix(&self.prefixes, IpNet::from(address)).unwrap_or(IDENTITY_ANY),
        }
    }

    /// The row that answers for a subject and a peer: its own, else that of any peer. Where policies say nothing of a subject itself, none
    /// is there, and what none says answers.
    pub fn row(&self, subject: u32, direction: Direction, identity: u32) -> Option<PolicyEntry> {
        let exact = self.policy.get(&PolicyKey::new(subject, direction, identity));
        let row = exact.or_else(|| self.policy.get(&PolicyKey::new(subject, direction, IDENTITY_ANY))).copied();
        row.or_else(|| direction.is_self().then_some(NOT_ISOLATED))
    }

    /// As [`row`](Self::row), for a key.
    pub(crate) fn row_of(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.row(key.subject, Direction::from_byte(key.direction)?, key.peer)
    }

    /// The numbers that these rows refer to.
    pub fn used(&self) -> Used {
        let mut used = Used::default();
        used.identities.extend(self.identities());
        used.subjects.extend(self.subjects.values().chain(self.audits.values()));
        used.add_rows(self);
        used
    }

    /// The identities that addresses and prefixes have, each once, in order.
    pub fn identities(&self) -> Vec<u32> {
        // Far fewer than there are addresses, which come in runs of one identity.
        let mut identities: Vec<u32> = self.addresses.values().chain(self.prefixes.values()).copied().collect();
        identities.sort_unstable();
        identities.dedup();
        identities
    }
}

impl Used {
    /// The numbers that the rows of the policy table and of the port tables refer to.
    pub(crate) fn add_rows(&mut self, rows: &Compiled) {
        for (key, entry) in &rows.policy {
            self.subjects.insert(key.subject);
            self.identities.insert(key.peer);
            self.ports.insert(entry.ports);
            self.reasons.insert(entry.reason);
        }
        for ((key, _), entry) in &rows.ports {
            self.ports.insert(key.table);
            self.reasons.insert(entry.reason);
        }
    }
}

/// The value of the longest of `prefixes` that contains all of `inner`, `inner` itself included.
pub(crate) fn longest_prefix(prefixes: &BTreeMap<IpNet, u32>, inner: IpNet) -> Option<u32> {
    if prefixes.is_empty() {
        return None;
    }
    let mut candidate = Some(inner.trunc());
    while let Some(prefix) = candidate {
        if let Some(&identity) = prefixes.get(&prefix) {
            return Some(identity);
        }
        candidate = prefix.supernet();
    }
    None
}

/// The row of the longest prefix that contains `port`.
pub(crate) fn port_entry(ports: &BTreeMap<(PortKey, u8), PortEntry>, table: u32, protocol: u8, port: u16) -> Option<PortEntry> {
    (0..=16).rev().find_map(|length: u8| {
        let masked = if length == 0 { 0 } else { port & (u16::MAX << (16 - length)) };
        ports.get(&(PortKey::new(table, protocol, masked), length)).copied()
    })
}

impl Tables<V4> for Compiled {
    fn identity(&self, address: &V4) -> u32 {
        Self::identity(self, IpAddr::from(*address))
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.policy.get(key).copied()
    }

    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<PortEntry> {
        port_entry(&self.ports, table, protocol, port)
    }
}

impl Tables<V6> for Compiled {
    fn identity(&self, address: &V6) -> u32 {
        Self::identity(self, IpAddr::from(*address))
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.policy.get(key).copied()
    }

    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<PortEntry> {
        port_entry(&self.ports, table, protocol, port)
    }
}
