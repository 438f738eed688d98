use std::{
    collections::BTreeMap,
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use ipnet::IpNet;
use nix::libc::{E2BIG, ENOENT, ENOSPC};
use palisade_datapath_core::abi::{PortEntry, PortKey, V4, V6};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    LoaderError, PinDir,
    error::{Cause, cannot_open, os_error, refuse},
    row::Row,
};

/// The bounds of keys and values.
pub trait Cell: Copy + Debug + FromBytes + IntoBytes + Immutable + Send + Sync + 'static {}
impl<T: Copy + Debug + FromBytes + IntoBytes + Immutable + Send + Sync + 'static> Cell for T {}

/// What a table needs to word its errors.
#[derive(Debug)]
struct Identity {
    map: &'static str,
    max_entries: u32,
}

impl Identity {
    fn room(&self) -> (&'static str, u32) {
        (self.map, self.max_entries)
    }

    fn error(&self, operation: &'static str, key: &dyn Debug, error: MapError) -> LoaderError {
        // A hash map answers E2BIG, a trie ENOSPC.
        if operation == "write" && matches!(os_error(&error), Some(E2BIG | ENOSPC)) {
            return LoaderError::TableFull { map: self.map, max_entries: self.max_entries, key: format!("{key:?}") };
        }
        refuse(
            error,
            || format!("to {operation} a row of {}", self.map),
            |source: Cause| LoaderError::Table { map: self.map, operation, key: format!("{key:?}"), source },
        )
    }
}

fn open_map(pin: &PinDir, map: &'static str) -> Result<(Identity, Map), LoaderError> {
    let path = pin.map(map);
    let failed = |error: MapError| cannot_open(&path, error);
    let data = MapData::from_pin(&path).map_err(failed)?;
    let max_entries = data.info().map_err(failed)?.max_entries();
    let opened = Map::from_map_data(data).map_err(failed)?;
    Ok((Identity { map, max_entries }, opened))
}

fn unfit(map: &'static str, error: &MapError) -> LoaderError {
    LoaderError::Object { what: format!("its map {map} does not have the shared types' layout: {error}") }
}

/// Whether the answer says that there is no such row.
fn absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound) || os_error(error) == Some(ENOENT)
}

/// Reads all rows. The kernel goes back to the first row when the one that it stands at was removed, so rows can
/// come twice, and while others write without pause for ever: a bound ends that.
fn collect<K: Ord, V>(identity: &Identity, rows: impl Iterator<Item = Result<(K, V), MapError>>) -> Result<BTreeMap<K, V>, LoaderError> {
    let mut found = BTreeMap::new();
    let bound = (identity.max_entries as usize).saturating_mul(4).saturating_add(1024);
    for row in rows.take(bound) {
        let (key, value) = row.map_err(|error| identity.error("read", &"(all)", error))?;
        found.insert(key, value);
    }
    Ok(found)
}

/// A hash map with typed keys and values.
#[derive(Debug)]
pub struct Table<K: Cell, V: Cell> {
    identity: Identity,
    map: HashMap<MapData, Row<K>, Row<V>>,
}

impl<K: Cell + Ord, V: Cell> Table<K, V> {
    pub(crate) fn open(pin: &PinDir, map: &'static str) -> Result<Self, LoaderError> {
        let (identity, opened) = open_map(pin, map)?;
        Ok(Self { identity, map: opened.try_into().map_err(|error| unfit(map, &error))? })
    }

    /// The name of the map.
    pub fn name(&self) -> &'static str {
        self.identity.map
    }

    /// Number of rows that it has room for.
    pub fn max_entries(&self) -> u32 {
        self.identity.max_entries
    }

    /// A row, if there is one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn get(&self, key: &K) -> Result<Option<V>, LoaderError> {
        match self.map.get(&Row(*key), 0) {
            Ok(Row(value)) => Ok(Some(value)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(self.identity.error("read", key, error)),
        }
    }

    /// Writes a row, over an older one of the same key if there is one, in one step.
    ///
    /// # Errors
    /// [`LoaderError::TableFull`], [`LoaderError::Table`].
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), LoaderError> {
        self.map.insert(Row(*key), Row(*value), 0).map_err(|error| self.identity.error("write", key, error))
    }

    /// Removes a row. Says whether there was one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn remove(&mut self, key: &K) -> Result<bool, LoaderError> {
        match self.map.remove(&Row(*key)) {
            Ok(()) => Ok(true),
            Err(error) if absent(&error) => Ok(false),
            Err(error) => Err(self.identity.error("remove", key, error)),
        }
    }

    /// All rows. Those that are written or removed meanwhile may be among them or not.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn rows(&self) -> Result<BTreeMap<K, V>, LoaderError> {
        collect(&self.identity, self.map.iter().map(|row| row.map(|(Row(key), Row(value))| (key, value))))
    }
}

/// Two tables of whole addresses, one per family.
#[derive(Debug)]
pub struct AddressTable<V: Cell> {
    v4: Table<V4, V>,
    v6: Table<V6, V>,
}

impl<V: Cell> AddressTable<V> {
    pub(crate) fn open(pin: &PinDir, v4: &'static str, v6: &'static str) -> Result<Self, LoaderError> {
        Ok(Self { v4: Table::open(pin, v4)?, v6: Table::open(pin, v6)? })
    }

    /// The names of both maps, and how many rows each has room for.
    pub fn room(&self) -> [(&'static str, u32); 2] {
        [self.v4.identity.room(), self.v6.identity.room()]
    }

    /// The row of an address, if there is one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn get(&self, address: &IpAddr) -> Result<Option<V>, LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address.octets()),
            IpAddr::V6(address) => self.v6.get(&address.octets()),
        }
    }

    /// Writes the row of an address, over an older one if there is one, in one step.
    ///
    /// # Errors
    /// [`LoaderError::TableFull`], [`LoaderError::Table`].
    pub fn insert(&mut self, address: &IpAddr, value: &V) -> Result<(), LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.insert(&address.octets(), value),
            IpAddr::V6(address) => self.v6.insert(&address.octets(), value),
        }
    }

    /// Removes the row of an address. Says whether there was one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn remove(&mut self, address: &IpAddr) -> Result<bool, LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.remove(&address.octets()),
            IpAddr::V6(address) => self.v6.remove(&address.octets()),
        }
    }

    /// All rows of both families.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn rows(&self) -> Result<BTreeMap<IpAddr, V>, LoaderError> {
        let v4 = self.v4.rows()?.into_iter().map(|(address, value)| (IpAddr::from(Ipv4Addr::from(address)), value));
        let v6 = self.v6.rows()?.into_iter().map(|(address, value)| (IpAddr::from(Ipv6Addr::from(address)), value));
        Ok(v4.chain(v6).collect())
    }
}

/// A longest-prefix map with typed keys and values. Its keys are (length in bits, data).
#[derive(Debug)]
struct Trie<K: Cell, V: Cell> {
    identity: Identity,
    map: LpmTrie<MapData, Row<K>, Row<V>>,
}

impl<K: Cell + Ord, V: Cell> Trie<K, V> {
    fn open(pin: &PinDir, map: &'static str) -> Result<Self, LoaderError> {
        let (identity, opened) = open_map(pin, map)?;
        Ok(Self { identity, map: opened.try_into().map_err(|error| unfit(map, &error))? })
    }

    /// The row of the longest prefix that contains the given one.
    fn lookup(&self, length: u32, data: K) -> Result<Option<V>, LoaderError> {
        match self.map.get(&Key::new(length, Row(data)), 0) {
            Ok(Row(value)) => Ok(Some(value)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(self.identity.error("read", &(data, length), error)),
        }
    }

    fn insert(&mut self, length: u32, data: K, value: &V) -> Result<(), LoaderError> {
        self.map.insert(&Key::new(length, Row(data)), Row(*value), 0).map_err(|error| self.identity.error("write", &(data, length), error))
    }

    fn remove(&mut self, length: u32, data: K) -> Result<bool, LoaderError> {
        match self.map.remove(&Key::new(length, Row(data))) {
            Ok(()) => Ok(true),
            Err(error) if absent(&error) => Ok(false),
            Err(error) => Err(self.identity.error("remove", &(data, length), error)),
        }
    }

    fn rows(&self) -> Result<BTreeMap<(K, u32), V>, LoaderError> {
        let rows = self.map.iter().map(|row| {
            row.map(|(key, Row(value))| {
                let Row(data) = key.data();
                ((data, key.prefix_len()), value)
            })
        });
        collect(&self.identity, rows)
    }
}

/// A prefix as a map has it. By itself: where it is made in one with reading the rows, rustc 1.95 makes 0.0.0.0/0 of IPv4's for some types of rows.
#[inline(never)]
fn prefix(address: IpAddr, length: u32) -> Option<IpNet> {
    IpNet::new(address, u8::try_from(length).ok()?).ok()
}

/// Two tables of prefixes, one per family. Host bits of a prefix do not count.
#[derive(Debug)]
pub struct PrefixTable<V: Cell = u32> {
    v4: Trie<V4, V>,
    v6: Trie<V6, V>,
}

impl<V: Cell> PrefixTable<V> {
    pub(crate) fn open(pin: &PinDir, v4: &'static str, v6: &'static str) -> Result<Self, LoaderError> {
        Ok(Self { v4: Trie::open(pin, v4)?, v6: Trie::open(pin, v6)? })
    }

    /// The names of both maps, and how many rows each has room for.
    pub fn room(&self) -> [(&'static str, u32); 2] {
        [self.v4.identity.room(), self.v6.identity.room()]
    }

    /// The row of exactly this prefix, if there is one. Reads the whole table: the kernel answers only with the
    /// longest prefix that contains one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn get(&self, prefix: &IpNet) -> Result<Option<V>, LoaderError> {
        Ok(self.rows()?.get(&prefix.trunc()).copied())
    }

    /// The row of the longest prefix that contains an address: what a packet of that address meets.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn lookup(&self, address: &IpAddr) -> Result<Option<V>, LoaderError> {
        match address {
            IpAddr::V4(address) => self.v4.lookup(32, address.octets()),
            IpAddr::V6(address) => self.v6.lookup(128, address.octets()),
        }
    }

    /// Writes the row of a prefix, over an older one if there is one, in one step.
    ///
    /// # Errors
    /// [`LoaderError::TableFull`], [`LoaderError::Table`].
    pub fn insert(&mut self, prefix: &IpNet, value: &V) -> Result<(), LoaderError> {
        match prefix.trunc() {
            IpNet::V4(prefix) => self.v4.insert(prefix.prefix_len().into(), prefix.addr().octets(), value),
            IpNet::V6(prefix) => self.v6.insert(prefix.prefix_len().into(), prefix.addr().octets(), value),
        }
    }

    /// Removes the row of exactly this prefix. Says whether there was one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn remove(&mut self, prefix: &IpNet) -> Result<bool, LoaderError> {
        match prefix.trunc() {
            IpNet::V4(prefix) => self.v4.remove(prefix.prefix_len().into(), prefix.addr().octets()),
            IpNet::V6(prefix) => self.v6.remove(prefix.prefix_len().into(), prefix.addr().octets()),
        }
    }

    /// All rows of both families.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn rows(&self) -> Result<BTreeMap<IpNet, V>, LoaderError> {
        let v4 = self.v4.rows()?.into_iter().filter_map(|((address, length), value)| Some((prefix(IpAddr::from(address), length)?, value)));
        let v6 = self.v6.rows()?.into_iter().filter_map(|((address, length), value)| Some((prefix(IpAddr::from(address), length)?, value)));
        Ok(v4.chain(v6).collect())
    }
}

/// All port tables: rows are keyed by (table, protocol, port) and the number of leading bits of the port that count, 0 to 16.
#[derive(Debug)]
pub struct PortTable {
    trie: Trie<PortKey, PortEntry>,
}

impl PortTable {
    pub(crate) fn open(pin: &PinDir, map: &'static str) -> Result<Self, LoaderError> {
        Ok(Self { trie: Trie::open(pin, map)? })
    }

    /// The name of the map, and how many rows it has room for.
    pub fn room(&self) -> (&'static str, u32) {
        self.trie.identity.room()
    }

    /// The row of exactly this prefix, if there is one. Reads the whole map: the kernel answers only with the
    /// longest prefix that contains one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn get(&self, key: &(PortKey, u8)) -> Result<Option<PortEntry>, LoaderError> {
        Ok(self.rows()?.get(&masked(key)).copied())
    }

    /// The row of the longest prefix that contains a port: what a packet to that port meets.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn lookup(&self, key: &PortKey) -> Result<Option<PortEntry>, LoaderError> {
        self.trie.lookup(PortKey::FIXED_BITS + 16, *key)
    }

    /// Writes a row, over an older one if there is one, in one step. Bits of the port beyond the prefix do not count.
    ///
    /// # Errors
    /// [`LoaderError::TableFull`], [`LoaderError::Table`] (also for a prefix of more than 16 bits).
    pub fn insert(&mut self, key: &(PortKey, u8), entry: &PortEntry) -> Result<(), LoaderError> {
        let (key, length) = masked(key);
        self.trie.insert(PortKey::FIXED_BITS + u32::from(length), key, entry)
    }

    /// Removes a row. Says whether there was one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn remove(&mut self, key: &(PortKey, u8)) -> Result<bool, LoaderError> {
        let (key, length) = masked(key);
        self.trie.remove(PortKey::FIXED_BITS + u32::from(length), key)
    }

    /// All rows.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn rows(&self) -> Result<BTreeMap<(PortKey, u8), PortEntry>, LoaderError> {
        let rows = self.trie.rows()?.into_iter().filter_map(|((key, length), entry)| {
            let length = u8::try_from(length.checked_sub(PortKey::FIXED_BITS)?).ok()?;
            Some(((key, length), entry))
        });
        Ok(rows.collect())
    }
}

/// The key with the bits of the port that do not count set to zero.
fn masked(&(key, length): &(PortKey, u8)) -> (PortKey, u8) {
    let mask = u16::MAX.checked_shl(16_u32.saturating_sub(length.into())).unwrap_or(0);
    let port = u16::from_be_bytes(key.port) & mask;
    (PortKey { port: port.to_be_bytes(), ..key }, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_port_beyond_the_prefix_do_not_count() {
        let key = PortKey::new(3, 6, 0xabcd);
        for (length, port) in [(0, 0), (4, 0xa000), (15, 0xabcc), (16, 0xabcd)] {
            assert_eq!(masked(&(key, length)), (PortKey::new(3, 6, port), length));
        }
    }

    #[test]
    fn rows_that_come_twice_count_once_and_an_endless_map_ends() {
        let identity = Identity { map: "M", max_entries: 2 };
        let rows = collect(&identity, std::iter::repeat_with(|| Ok((1_u32, 2_u32)))).unwrap();
        assert_eq!(rows, BTreeMap::from([(1, 2)]));
    }
}
