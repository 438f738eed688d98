//! The rows of one view of a service, and the numbers that it has already.

use crate::choice::{Choice, Choices, Listed};
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
    /// Its tables, each once; after a change that was cut short there may be more than two.
    pub tables: Vec<(u32, Arc<[u32]>)>,
}

impl Known {
    /// Those of a view's frontends whose rows are there, and its own.
    pub(crate) fn own(&self, frontends: Vec<Frontend>, old: &Compiled) -> Vec<Frontend> {
        let is_own = |frontend: &Frontend| old.frontends.get(frontend).is_some_and(|entry| self.service == Some(entry.service));
        frontends.into_iter().filter(is_own).collect()
    }
}

impl Rows {
    /// Makes the rows of a view, and writes them.
    pub(crate) fn write(
        frontends: Vec<Frontend>,
        (listed, choices): (&Listed<'_>, Choices),
        affinity: u32,
        known: &Known,
        numbers: &mut Numbers,
        compiled: &mut Compiled,
    ) -> Self {
        let service = known.service.unwrap_or_else(|| numbers.give());
        let number = |&target: &Target| (target, known.backends.get(&target).copied().unwrap_or_else(|| numbers.give()));
        let backends: BTreeMap<Target, u32> = listed.keys().map(number).collect();
        for (&target, &number) in &backends {
            let is_serving = listed.get(&target).is_some_and(|endpoint| endpoint.ready || endpoint.serving);
            let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
            let flags = flag(choices.inside.is_of(&target), backend_flag::CHOSEN)
                | flag(choices.outside.as_ref().is_some_and(|outside| outside.is_of(&target)), backend_flag::CHOSEN_OUTSIDE)
                | flag(is_serving, backend_flag::SERVING);
            compiled.backends.insert(Number(number), backend(target, service, flags));
        }
        // Two choices of the same backends share their table.
        let mut tables = known.tables.clone();
        let mut table = |chosen: &[Target]| {
            let slots: Arc<[u32]> = maglev::table(chosen).into_iter().map(|index| backends[&chosen[index]]).collect();
            if slots.is_empty() {
                return (TABLE_NONE, 0);
            }
            let same = tables.iter().find(|(_, known)| *known == slots).map(|(table, _)| *table);
            let table = same.unwrap_or_else(|| numbers.give());
            if same.is_none() {
                tables.push((table, slots.clone()));
            }
            compiled.tables.insert(Number(table), slots);
            (table, maglev::bits(chosen.len()))
        };
        let (table_inside, bits) = table(choices.inside.targets());
        let (outside_table, outside_bits) = choices.outside.as_ref().map_or((TABLE_NONE, 0), |outside| table(outside.targets()));
        let drop = |choice: &Choice, flag: u8| if *choice == Choice::Drop { flag } else { 0 };
        let flags = drop(&choices.inside, service_flag::DROP)
            | choices.outside.as_ref().map_or(0, |outside| service_flag::OUTSIDE | drop(outside, service_flag::OUTSIDE_DROP));
        let entry = ServiceEntry { service, table: table_inside, affinity, outside_table, bits, flags, outside_bits, reserved: 0 };
        for &frontend in &frontends {
            compiled.frontends.insert(frontend, entry);
        }
        Self { frontends, entry, backends }
    }

    /// Leaves the rows of a view as they are, at these of its frontends, which have them. None where there are none.
    pub(crate) fn keep(frontends: Vec<Frontend>, known: Known, old: &Compiled, compiled: &mut Compiled) -> Option<Self> {
        let Known { backends, tables, .. } = known;
        let is_whole = |table: u32| table == TABLE_NONE || tables.iter().any(|(known, _)| *known == table);
        let mut entries = frontends.iter().filter_map(|frontend| old.frontends.get(frontend));
        // A change that was cut short may have left several, each of which was right at its time.
        let entry = *entries.find(|entry| is_whole(entry.table) && is_whole(entry.outside_table))?;
        for &frontend in &frontends {
            compiled.frontends.insert(frontend, entry);
        }
        for number in backends.values().map(|number| Number(*number)) {
            compiled.backends.extend(old.backends.get(&number).map(|backend| (number, *backend)));
        }
        let rows = Self { frontends, entry, backends };
        for (table, slots) in tables.into_iter().filter(|(table, _)| rows.tables().contains(table)) {
            compiled.tables.insert(Number(table), slots);
        }
        Some(rows)
    }

    /// Removes the rows.
    pub(crate) fn remove(&self, compiled: &mut Compiled) {
        for frontend in &self.frontends {
            compiled.frontends.remove(frontend);
        }
        for &number in self.backends.values() {
            compiled.backends.remove(&Number(number));
        }
        for table in self.tables() {
            compiled.tables.remove(&Number(table));
        }
    }

    /// What is there of the view, in the maps that hold its rows.
    pub(crate) fn known(&self, compiled: &Compiled) -> Known {
        let tables = self.tables().into_iter().filter_map(|table| Some((table, compiled.tables.get(&Number(table))?.clone())));
        Known { service: Some(self.entry.service), backends: self.backends.clone(), tables: tables.collect() }
    }

    /// The numbers of its tables: of both where there are two.
    pub(crate) fn tables(&self) -> BTreeSet<u32> {
        [self.entry.table, self.entry.outside_table].into()
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
        let tables: BTreeSet<u32> = entries.iter().flat_map(|entry| [entry.table, entry.outside_table]).collect();
        let tables = tables.into_iter().filter_map(|table| Some((table, self.rows.tables.get(&Number(table))?.clone())));
        Known { service, backends, tables: tables.collect() }
    }
}
