use nix::time::{ClockId, clock_getres, clock_gettime};
use palisade_datapath_core::{
    abi::{Connection, ConnectionKey, Outside, OutsideKey, V4, V6, map},
    outside,
    packet::connection::{Lifetimes, expired, jiffies_at},
};

use crate::{LoaderError, PinDir, Table, table::Cell};

/// User space cannot read the kernel's jiffies; what it computes from the clock may be some seconds off. An entry
/// is taken for expired this much later than the programs do, so that the sweep never ends a flow that they keep.
const MARGIN_SECONDS: u64 = 10;

/// The kernel's clock as user space knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Jiffies in a second.
    pub(crate) hertz: u32,
    /// Jiffies that have certainly passed.
    pub(crate) jiffies: u64,
}

/// The length of a jiffy in nanoseconds: the resolution of the coarse clocks, which move with it.
pub(crate) fn tick() -> u64 {
    match clock_getres(ClockId::CLOCK_MONOTONIC_COARSE) {
        Ok(resolution) if resolution.tv_sec() == 0 && resolution.tv_nsec() > 0 => resolution.tv_nsec().unsigned_abs(),
        // The clock exists on every kernel that these programs load on.
        _ => 4_000_000,
    }
}

impl Clock {
    fn now() -> Self {
        let tick = tick();
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |time| time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs());
        let hertz = hertz(tick);
        Self { hertz, jiffies: jiffies_at(monotonic, tick).saturating_sub(MARGIN_SECONDS * u64::from(hertz)) }
    }
}

/// Jiffies in a second, from the length of one in nanoseconds.
pub(crate) fn hertz(tick: u64) -> u32 {
    // HZ=300 has a tick of 3333333 ns.
    u32::try_from((1_000_000_000 + tick / 2) / tick).unwrap_or(u32::MAX)
}

/// The tables of flows, of both families.
#[derive(Debug)]
pub(crate) struct Connections {
    v4: Table<ConnectionKey<V4>, Connection>,
    v6: Table<ConnectionKey<V6>, Connection>,
    outside_v4: Table<OutsideKey<V4>, Outside>,
    outside_v6: Table<OutsideKey<V6>, Outside>,
}

impl Connections {
    pub(crate) fn open(pin: &PinDir) -> Result<Self, LoaderError> {
        Ok(Self {
            v4: Table::open(pin, map::CONNECTIONS_V4)?,
            v6: Table::open(pin, map::CONNECTIONS_V6)?,
            outside_v4: Table::open(pin, map::OUTSIDE_V4)?,
            outside_v6: Table::open(pin, map::OUTSIDE_V6)?,
        })
    }

    /// Removes what has expired. A table where that fails keeps no other from it.
    pub(crate) fn sweep(&mut self, lifetimes: &Lifetimes) -> [Result<Swept, LoaderError>; 4] {
        let Clock { hertz, jiffies } = Clock::now();
        [
            sweep(&mut self.v4, |key, row| expired(key.protocol, row, jiffies, hertz, lifetimes)),
            sweep(&mut self.v6, |key, row| expired(key.protocol, row, jiffies, hertz, lifetimes)),
            sweep(&mut self.outside_v4, |key, row| outside::expired(key.protocol, row, jiffies, hertz, lifetimes)),
            sweep(&mut self.outside_v6, |key, row| outside::expired(key.protocol, row, jiffies, hertz, lifetimes)),
        ]
    }
}

/// What a sweep found in a table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// The table.
    pub map: &'static str,
    /// How many rows there were. What had expired is among them: until it is removed it takes room that others are evicted for.
    pub found: usize,
    /// How many of them had expired, and were removed.
    pub removed: usize,
    /// How many it has room for.
    pub room: u32,
}

fn sweep<K: Cell + Ord, V: Cell>(table: &mut Table<K, V>, gone: impl Fn(&K, &V) -> bool) -> Result<Swept, LoaderError> {
    let rows = table.rows()?;
    let (found, mut removed) = (rows.len(), 0);
    for (key, row) in rows {
        // Asked again: the flow may have been opened anew since the table was read.
        if gone(&key, &row) && table.get(&key)?.is_some_and(|row| gone(&key, &row)) && table.remove(&key)? {
            removed += 1;
        }
    }
    Ok(Swept { map: table.name(), found, removed, room: table.max_entries() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hertz_is_a_value_that_kernels_are_built_with() {
        for (tick, expected) in [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)] {
            assert_eq!(hertz(tick), expected);
        }
        assert!([100, 250, 300, 1000].contains(&hertz(tick())), "{}", tick());
    }

    #[test]
    fn computed_jiffies_are_behind_the_kernels_by_the_margin_at_most_twice() {
        let list = std::fs::read_to_string("/proc/timer_list").expect("the kernel's own value: only root may read it");
        let kernel: u64 = list.lines().find_map(|line| line.strip_prefix("jiffies: ")).unwrap().parse().unwrap();
        let Clock { hertz, jiffies } = Clock::now();
        let behind = kernel.checked_sub(jiffies).expect("never ahead of the kernel");
        assert!(behind <= 2 * MARGIN_SECONDS * u64::from(hertz), "{behind} jiffies behind");
    }
}
