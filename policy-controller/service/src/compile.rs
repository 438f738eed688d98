//! The rows of the maps.

use crate::compiler::Compiler;
use crate::fit::Limits;
use crate::frontend::Frontend;
use crate::maglev::MOST_BITS;
use crate::model::{Owner, Services};
use crate::numbers::{Number, Numbers};
use crate::problem::{Problem, Trouble};
use palisade_datapath_core::abi::{Backend, CHUNK, CHUNK_BITS, ChunkKey, ServiceEntry, TABLE_NONE};
use palisade_policy::shared::SharedMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The rows that one node's maps should hold, or do hold. Copies share what they have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// What stands behind each frontend.
    pub frontends: SharedMap<Frontend, ServiceEntry>,
    /// The backends, by their numbers.
    pub backends: SharedMap<Number, Backend>,
    /// The tables that frontends name, by their numbers: of each slot the number of its backend. There are two to the power of
    /// [`ServiceEntry::bits`] slots, or [`ServiceEntry::outside_bits`].
    pub tables: SharedMap<Number, Arc<[u32]>>,
    /// Parts of tables that no frontend names, or that are not whole: what a change left behind that was cut short.
    pub remnants: BTreeSet<ChunkKey>,
    /// What is wrong with services and host ports, by their owners; no rows.
    pub troubles: SharedMap<Owner, Vec<Trouble>>,
}

impl Compiled {
    /// What the maps hold: their rows, in any order.
    pub fn read(
        frontends: impl IntoIterator<Item = (Frontend, ServiceEntry)>,
        backends: impl IntoIterator<Item = (u32, Backend)>,
        chunks: impl IntoIterator<Item = (ChunkKey, [u32; CHUNK])>,
    ) -> Self {
        let frontends: SharedMap<Frontend, ServiceEntry> = frontends.into_iter().collect();
        let mut parts: BTreeMap<ChunkKey, [u32; CHUNK]> = chunks.into_iter().collect();
        let is_table = |(table, bits): &(u32, u8)| *table != TABLE_NONE && (CHUNK_BITS..=MOST_BITS).contains(bits);
        let both = |entry: &ServiceEntry| [(entry.table, entry.bits), (entry.outside_table, entry.outside_bits)];
        let named: BTreeMap<u32, u8> = frontends.values().flat_map(both).filter(is_table).collect();
        let mut tables = SharedMap::default();
        for (table, bits) in named {
            let keys = (0..1 << (bits - CHUNK_BITS)).map(|chunk| ChunkKey { table, chunk });
            if keys.clone().all(|key| parts.contains_key(&key)) {
                let slots: Arc<[u32]> = keys.filter_map(|key| parts.remove(&key)).flatten().collect();
                tables.insert(Number(table), slots);
            }
        }
        let backends = backends.into_iter().map(|(number, backend)| (Number(number), backend)).collect();
        Self { frontends, backends, tables, remnants: parts.into_keys().collect(), troubles: SharedMap::default() }
    }

    /// The parts of the tables.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkKey, [u32; CHUNK])> {
        self.tables.iter().flat_map(|(table, slots)| chunks(*table, slots))
    }

    /// What is wrong with services and host ports, in the order of their owners.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let of = |(owner, troubles): (&Owner, &Vec<Trouble>)| -> Vec<Problem> {
            troubles.iter().map(|what| Problem { owner: owner.clone(), what: what.clone() }).collect()
        };
        self.troubles.iter().flat_map(of)
    }

    /// The highest number that a row carries.
    pub(crate) fn highest(&self) -> u32 {
        let entries = self.frontends.values().flat_map(|entry| [entry.service, entry.table, entry.outside_table]);
        let backends = self.backends.iter().flat_map(|(number, backend)| [number.0, backend.service]);
        let tables = self.tables.iter().flat_map(|(number, slots)| slots.iter().copied().chain([number.0]));
        let remnants = self.remnants.iter().map(|key| key.table);
        entries.chain(backends).chain(tables).chain(remnants).max().unwrap_or_default()
    }
}

/// The parts of a table.
pub(crate) fn chunks(table: Number, slots: &[u32]) -> impl Iterator<Item = (ChunkKey, [u32; CHUNK])> {
    let (parts, _) = slots.as_chunks::<CHUNK>();
    (0_u32..).zip(parts).map(move |(chunk, part)| (ChunkKey { table: table.0, chunk }, *part))
}

/// The rows for `services` on a node whose maps hold `old`, from which numbers are taken over.
pub fn compile(services: &Services, old: &Compiled, numbers: &mut Numbers) -> Compiled {
    Arc::unwrap_or_clone(Compiler::default().compile(services, old, numbers, &Limits::new()))
}
