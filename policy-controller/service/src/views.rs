//! The rows of one view of a service, and the numbers that it has already.

use crate::choice::{Choice, Listed};
use crate::compile::Compiled;
use crate::frontend::{Frontend, Target, backend, target};
use crate::maglev;
use crate::numbers::{Number, Numbers};
use palisade_datapath_core::abi::{ServiceEntry, TABLE_NONE, backend_flag, service_flag};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a view has in the maps.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Where it is reached; never empty.
    pub frontends: Vec<Frontend>,
    /// The row of each of them.
    pub entry: ServiceEntry,
    /// The numbers of its backends.
    pub backends: BTreeMap<Target, u32>,
}

/// What is there of a view before a change.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Its number.
    pub service: Option<u32>,
    /// The numbers of its backends.
    pub backends: BTreeMap<Target, u32>,
    /// Its table; after a change that was cut short there may be two.
    pub tables: Vec<(u32, Arc<[u32]>)>,
}

impl Rows {
    /// Makes the rows of a view, and writes them.
    pub(crate) fn write(
        frontends: Vec<Frontend>,
        (listed, choice): (&Listed<'_>, Choice),
        affinity: u32,
        known: &Known,
        numbers: &mut Numbers,
        compiled: &mut Compiled,
    ) -> Self {
        let service = known.service.unwrap_or_else(|| numbers.give());
        let (chosen, flags) = match choice {
            Choice::OneOf(chosen) => (chosen, 0),
            Choice::Refuse => (Vec::new(), 0),
            Choice::Drop => (Vec::new(), service_flag::DROP),
        };
        let number = |&target: &Target| (target, known.backends.get(&target).copied().unwrap_or_else(|| numbers.give()));
        let backends: BTreeMap<Target, u32> = listed.keys().map(number).collect();
        for (&target, &number) in &backends {
            let is_chosen = chosen.binary_search(&target).is_ok();
            let is_serving = listed.get(&target).is_some_and(|endpoint| endpoint.ready || endpoint.serving);
            let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
            let flags = flag(is_chosen, backend_flag::CHOSEN) | flag(is_serving, backend_flag::SERVING);
            compiled.backends.insert(Number(number), backend(target, service, flags));
        }
        let slots: Arc<[u32]> = maglev::table(&chosen).into_iter().map(|index| backends[&chosen[index]]).collect();
        let (table, bits) = if slots.is_empty() {
            (TABLE_NONE, 0)
        } else {
            let same = known.tables.iter().find(|(_, known)| *known == slots);
            let (table, slots) = same.cloned().unwrap_or_else(|| (numbers.give(), slots));
            compiled.tables.insert(Number(table), slots);
            (table, maglev::bits(chosen.len()))
        };
        let entry = ServiceEntry { service, table, affinity, bits, flags, reserved: [0; 2] };
        for &frontend in &frontends {
            compiled.frontends.insert(frontend, entry);
        }
        Self { frontends, entry, backends }
    }

    /// Removes the rows.
    pub(crate) fn remove(&self, compiled: &mut Compiled) {
        for frontend in &self.frontends {
            compiled.frontends.remove(frontend);
        }
        for &number in self.backends.values() {
            compiled.backends.remove(&Number(number));
        }
        compiled.tables.remove(&Number(self.entry.table));
    }

    /// What is there of the view, in the maps that hold its rows.
    pub(crate) fn known(&self, compiled: &Compiled) -> Known {
        let table = compiled.tables.get(&Number(self.entry.table)).map(|slots| (self.entry.table, slots.clone()));
        Known { service: Some(self.entry.service), backends: self.backends.clone(), tables: table.into_iter().collect() }
    }
}

/// The numbers of which only the rows are known: they belong to whom the frontend belongs to now that has them.
pub(crate) struct Recovered<'a> {
    rows: &'a Compiled,
    taken: BTreeSet<u32>,
    backends: HashMap<u32, BTreeMap<Target, u32>>,
}

impl<'a> Recovered<'a> {
    /// From what the maps hold.
    pub(crate) fn new(rows: &'a Compiled) -> Self {
        let mut backends = HashMap::<u32, BTreeMap<Target, u32>>::new();
        for (number, row) in &rows.backends {
            if let Some(target) = target(row) {
                backends.entry(row.service).or_default().entry(target).or_insert(number.0);
            }
        }
        Self { rows, taken: BTreeSet::from([0]), backends }
    }

    /// What is there of the view that has these frontends.
    pub(crate) fn known(&mut self, frontends: &[Frontend]) -> Known {
        let entries: Vec<&ServiceEntry> = frontends.iter().filter_map(|frontend| self.rows.frontends.get(frontend)).collect();
        // Two views of one number would share their clients' affinity.
        let service = entries.iter().map(|entry| entry.service).find(|&service| self.taken.insert(service));
        let backends = service.and_then(|service| self.backends.remove(&service)).unwrap_or_default();
        let tables: BTreeSet<u32> = entries.iter().map(|entry| entry.table).collect();
        let tables = tables.into_iter().filter_map(|table| Some((table, self.rows.tables.get(&Number(table))?.clone())));
        Known { service, backends, tables: tables.collect() }
    }
}
