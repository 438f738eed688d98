//! Where new flows go, as the rows say it.

use crate::compile::Compiled;
use crate::frontend::{Frontend, target};
use crate::numbers::Number;
use palisade_datapath_core::abi::{TABLE_NONE, service_flag};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Where new flows of this node's pods and processes to a frontend go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// Each to one of these, addresses and ports.
    Backends(BTreeSet<(IpAddr, u16)>),
    /// Nowhere, and who opens one is told: there is no endpoint.
    Refused,
    /// Nowhere: there are endpoints, but none that may answer here.
    Dropped,
}

impl Compiled {
    /// Where new flows of this node's pods and processes to a frontend go; `None` where nobody has it.
    pub fn leads(&self, frontend: &Frontend) -> Option<Leads> {
        let entry = self.frontends.get(frontend)?;
        let backends: BTreeSet<_> = self.chosen(entry.table).collect();
        Some(match entry.table {
            _ if !backends.is_empty() => Leads::Backends(backends),
            TABLE_NONE if entry.flags & service_flag::DROP == 0 => Leads::Refused,
            _ => Leads::Dropped,
        })
    }

    /// The backends in the slots of a table, addresses and ports.
    pub fn chosen(&self, table: u32) -> impl Iterator<Item = (IpAddr, u16)> {
        let slots = self.tables.get(&Number(table)).map(|slots| &slots[..]).unwrap_or_default();
        slots.iter().filter_map(|number| self.backends.get(&Number(*number)).and_then(target))
    }
}
