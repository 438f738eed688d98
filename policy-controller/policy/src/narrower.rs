//! The row that allows what two rows both allow.

use crate::compile::Compiled;
use crate::entries::port_entry;
use crate::numbers::Numbers;
use crate::ports::{Flattener, PortTable};
use palisade_datapath_core::abi::{PORTS_NONE, PolicyEntry, PortEntry, PortKey, RowVerdict};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Makes rows that allow what an old and a new row both allow, and deny for the reason of the one that denies.
pub(crate) struct Narrower<'a> {
    old: &'a Compiled,
    new: &'a Compiled,
    made: HashMap<(PolicyEntry, PolicyEntry), PolicyEntry>,
}

impl<'a> Narrower<'a> {
    pub fn new(old: &'a Compiled, new: &'a Compiled) -> Self {
        Self { old, new, made: HashMap::new() }
    }

    /// The row for `old` and `new`. Its port table, if it needs one of its own, is numbered; the rows of all such
    /// tables are those of [`Narrower::tables`].
    pub fn row(&mut self, old: PolicyEntry, new: PolicyEntry, numbers: &mut Numbers) -> PolicyEntry {
        if old == new {
            return new;
        }
        if let Some(row) = self.made.get(&(old, new)) {
            return *row;
        }
        let otherwise = denying(otherwise(old), otherwise(new));
        let table = self.table(old, new, otherwise);
        let ports = if table.0.is_empty() { PORTS_NONE } else { numbers.ports.intern(table) };
        let row = PolicyEntry { ports, reason: otherwise.reason, verdict: otherwise.verdict, reserved: [0; 3] };
        self.made.insert((old, new), row);
        row
    }

    /// The numbers of the port tables that rows made here refer to.
    pub fn tables(&self) -> BTreeSet<u32> {
        self.made.values().map(|row| row.ports).filter(|&table| table != PORTS_NONE).collect()
    }

    fn table(&self, old: PolicyEntry, new: PolicyEntry, otherwise: PortEntry) -> PortTable {
        // Where what either table says may change: the first ports of ranges, and those behind their last.
        let mut starts: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
        for (rows, row) in [(self.old, old), (self.new, new)] {
            let first = PortKey { table: row.ports, ..PortKey::default() };
            let rows = rows.ports.range((first, 0)..).take_while(|((key, _), _)| key.table == row.ports && row.ports != PORTS_NONE);
            for ((key, length), _) in rows {
                let port = u32::from(u16::from_be_bytes(key.port));
                starts.entry(key.protocol).or_insert_with(|| BTreeSet::from([0])).extend([port, port + (1 << (16 - length))]);
            }
        }
        let mut flattener = Flattener::default();
        for (protocol, starts) in starts {
            let starts: Vec<u32> = starts.into_iter().filter(|&start| start <= u32::from(u16::MAX)).chain([1 << 16]).collect();
            for range in starts.windows(2) {
                let (first, last) = (range[0] as u16, (range[1] - 1) as u16);
                let said = |rows: &Compiled, row: PolicyEntry| {
                    let entry = (row.ports != PORTS_NONE).then(|| port_entry(&rows.ports, row.ports, protocol, first)).flatten();
                    entry.unwrap_or(self::otherwise(row))
                };
                let entry = denying(said(self.old, old), said(self.new, new));
                if entry != otherwise {
                    flattener.add(protocol, first, last, entry);
                }
            }
        }
        flattener.finish()
    }
}

/// What a row says of ports that its table does not name.
fn otherwise(row: PolicyEntry) -> PortEntry {
    PortEntry { reason: row.reason, verdict: row.verdict, reserved: [0; 3] }
}

/// The one that denies; the new one where both do, or neither.
fn denying(old: PortEntry, new: PortEntry) -> PortEntry {
    let allows = |entry: PortEntry| entry.verdict == RowVerdict::Allow as u8;
    if allows(new) && !allows(old) { old } else { new }
}
