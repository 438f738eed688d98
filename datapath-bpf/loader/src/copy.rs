//! The rows of a map, copied into the larger one that takes its place.

use std::path::Path;

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use palisade_datapath_core::abi::{
    Backend, CHUNK, ChunkKey, Endpoint, LocalPod, Node, PolicyEntry, PolicyKey, PortEntry, PortKey, ServiceEntry, ServiceKey, Tunnel, V4,
    V6, map,
};

use crate::{
    LoaderError, PinDir,
    error::{Cause, cannot_open, refuse},
    row::Row,
    table::Cell,
};

/// The maps that grow: those whose rows only the agent writes.
pub(crate) const GROWING: [&str; 17] = [
    map::POLICY,
    map::PORTS,
    map::ADDRESS_V4,
    map::ADDRESS_V6,
    map::PREFIX_V4,
    map::PREFIX_V6,
    map::ENDPOINTS,
    map::LOCAL_V4,
    map::LOCAL_V6,
    map::SERVICES_V4,
    map::SERVICES_V6,
    map::CHUNKS,
    map::BACKENDS,
    map::TUNNELS_V4,
    map::TUNNELS_V6,
    map::NODES_V4,
    map::NODES_V6,
];

/// Copies the rows of a pinned map into the one that waits to take its place. Nobody else may write to either. Returns how many there were.
pub(crate) fn copy(pin: &PinDir, name: &'static str) -> Result<usize, LoaderError> {
    let copied = match name {
        map::POLICY => hash::<PolicyKey, PolicyEntry>,
        map::PORTS => trie::<PortKey, PortEntry>,
        map::ADDRESS_V4 => hash::<V4, u32>,
        map::ADDRESS_V6 => hash::<V6, u32>,
        map::PREFIX_V4 => trie::<V4, u32>,
        map::PREFIX_V6 => trie::<V6, u32>,
        map::ENDPOINTS => hash::<u32, Endpoint>,
        map::LOCAL_V4 => hash::<V4, LocalPod>,
        map::LOCAL_V6 => hash::<V6, LocalPod>,
        map::SERVICES_V4 => hash::<ServiceKey<V4>, ServiceEntry>,
        map::SERVICES_V6 => hash::<ServiceKey<V6>, ServiceEntry>,
        map::CHUNKS => hash::<ChunkKey, [u32; CHUNK]>,
        map::BACKENDS => hash::<u32, Backend>,
        map::TUNNELS_V4 => trie::<V4, Tunnel>,
        map::TUNNELS_V6 => trie::<V6, Tunnel>,
        map::NODES_V4 => hash::<V4, Node>,
        map::NODES_V6 => hash::<V6, Node>,
        other => return Err(LoaderError::Object { what: format!("its map {other} does not grow") }),
    };
    let (from, to) = (open(&pin.map(name))?, open(&pin.next_map(name))?);
    copied(from, to).map_err(|error| {
        refuse(
            error,
            || format!("to copy the rows of {name}"),
            |source: Cause| LoaderError::Table { map: name, operation: "copy", key: "(all)".to_owned(), source },
        )
    })
}

fn open(path: &Path) -> Result<Map, LoaderError> {
    MapData::from_pin(path).and_then(Map::from_map_data).map_err(|error| cannot_open(path, error))
}

fn hash<K: Cell, V: Cell>(from: Map, to: Map) -> Result<usize, MapError> {
    let from: HashMap<MapData, Row<K>, Row<V>> = from.try_into()?;
    let mut to: HashMap<MapData, Row<K>, Row<V>> = to.try_into()?;
    let mut rows = 0;
    for row in from.iter() {
        let (key, value) = row?;
        to.insert(key, value, 0)?;
        rows += 1;
    }
    Ok(rows)
}

fn trie<K: Cell, V: Cell>(from: Map, to: Map) -> Result<usize, MapError> {
    let from: LpmTrie<MapData, Row<K>, Row<V>> = from.try_into()?;
    let mut to: LpmTrie<MapData, Row<K>, Row<V>> = to.try_into()?;
    let mut rows = 0;
    for row in from.iter() {
        let (key, value) = row?;
        to.insert(&key, value, 0)?;
        rows += 1;
    }
    Ok(rows)
}
