//! Rows of the tables that the programs write, as bytes.

use aya::maps::{HashMap, MapData};
use palisade_datapath_core::abi::Connection;

/// Takes every row away.
pub fn empty<const KEY: usize, const VALUE: usize>(map: HashMap<MapData, [u8; KEY], [u8; VALUE]>) {
    remove(map, |_, _| true);
}

/// Takes some rows away.
pub fn remove<const KEY: usize, const VALUE: usize>(
    mut map: HashMap<MapData, [u8; KEY], [u8; VALUE]>,
    which: impl Fn(&[u8; KEY], &[u8; VALUE]) -> bool,
) {
    let rows: Vec<_> = map.iter().map(Result::unwrap).filter(|(key, value)| which(key, value)).collect();
    for (key, _) in rows {
        map.remove(&key).unwrap();
    }
}

/// Makes every row so many jiffies older: every value begins with those at which it was seen last.
pub fn age<const KEY: usize, const VALUE: usize>(mut map: HashMap<MapData, [u8; KEY], [u8; VALUE]>, jiffies: u64) {
    let entries: Vec<_> = map.iter().map(Result::unwrap).collect();
    assert!(!entries.is_empty(), "there is nothing to age");
    for (key, mut value) in entries {
        let seen = u64::from_ne_bytes(value[..8].try_into().unwrap());
        value[..8].copy_from_slice(&(seen - jiffies).to_ne_bytes());
        map.insert(key, value, 0).unwrap();
    }
}

/// An entry of the connection table.
pub fn connection(bytes: [u8; 48]) -> Connection {
    let word = |offset: usize| u32::from_ne_bytes(bytes[offset..][..4].try_into().unwrap());
    Connection {
        seen: u64::from_ne_bytes(bytes[..8].try_into().unwrap()),
        epoch: word(8),
        marks: bytes[12],
        flags: bytes[13],
        frontend_port: [bytes[14], bytes[15]],
        egress_reason: word(16),
        ingress_reason: word(20),
        backend: word(24),
        frontend: bytes[28..44].try_into().unwrap(),
        reserved: [0; 4],
    }
}
