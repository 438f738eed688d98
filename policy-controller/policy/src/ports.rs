//! Ports of several rules, flattened into disjoint ranges and then into prefixes.

use palisade_datapath_core::abi::PortEntry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The content of a port table: disjoint, maximal ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortTable(pub Vec<PortRange>);

/// A range of ports of one protocol, and what is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// IP protocol number.
    pub protocol: u8,
    /// First port, in host byte order.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// A [`RowVerdict`](palisade_datapath_core::abi::RowVerdict).
    pub verdict: u8,
    /// Number of the reason.
    pub reason: u32,
}

impl PortRange {
    /// The row that its prefixes get.
    pub const fn entry(&self) -> PortEntry {
        PortEntry { reason: self.reason, verdict: self.verdict, reserved: [0; 3] }
    }
}

/// Ranges of ports, and what is said of each; where two overlap, the one that came first keeps the ports.
#[derive(Clone, Debug)]
pub struct Flattener<T> {
    /// By protocol: first port -> (last port, what is said of them); disjoint.
    taken: BTreeMap<u8, BTreeMap<u16, (u16, T)>>,
}

impl<T> Default for Flattener<T> {
    fn default() -> Self {
        Self { taken: BTreeMap::new() }
    }
}

impl<T: Copy> Flattener<T> {
    /// Adds the ports `first..=last` that nobody has taken yet. A range that runs backwards is empty.
    pub fn add(&mut self, protocol: u8, first: u16, last: u16, said: T) {
        let taken = self.taken.entry(protocol).or_default();
        // The ranges that touch first..=last, in order: at most one begins before `first`.
        let before = taken.range(..first).next_back().map(|(&start, &(end, _))| (start, end)).filter(|&(_, end)| end >= first);
        let within = if first <= last { taken.range(first..=last).map(|(&start, &(end, _))| (start, end)).collect() } else { Vec::new() };
        let mut free = u32::from(first);
        let mut gaps = Vec::new();
        for (start, end) in before.into_iter().chain(within) {
            if u32::from(start) > free {
                gaps.push((free as u16, start - 1));
            }
            free = free.max(u32::from(end) + 1);
        }
        if free <= u32::from(last) {
            gaps.push((free as u16, last));
        }
        taken.extend(gaps.into_iter().map(|(start, end)| (start, (end, said))));
    }

    /// The ranges in order: protocol, first and last port, what is said.
    pub fn ranges(&self) -> impl Iterator<Item = (u8, u16, u16, T)> + '_ {
        self.taken.iter().flat_map(|(&protocol, taken)| taken.iter().map(move |(&first, &(last, said))| (protocol, first, last, said)))
    }

    /// What is said of the ports `first..=last` of a protocol, in order.
    pub fn within(&self, protocol: u8, first: u16, last: u16) -> impl Iterator<Item = (u16, u16, T)> + '_ {
        let taken = self.taken.get(&protocol).into_iter().flatten();
        let meeting = taken.filter(move |&(&start, &(end, _))| start <= last && end >= first);
        meeting.map(move |(&start, &(end, said))| (start.max(first), end.min(last), said))
    }
}

impl Flattener<PortEntry> {
    /// The table; neighbours of which the same is said are joined.
    pub fn finish(self) -> PortTable {
        let mut ranges: Vec<PortRange> = Vec::new();
        for (protocol, first, last, entry) in self.ranges() {
            let continues = |before: &&mut PortRange| {
                before.protocol == protocol
                    && before.entry() == entry
                    && faulty!(u32::from(before.last) + 1 == u32::from(first), GapsClosed => true)
            };
            match ranges.last_mut().filter(continues) {
                Some(before) => before.last = last,
                None => ranges.push(PortRange { protocol, first, last, verdict: entry.verdict, reason: entry.reason }),
            }
        }
        PortTable(ranges)
    }
}

/// The fewest prefixes that cover `first..=last` and nothing else: (first port, prefix length 0 to 16).
pub fn prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
    let mut prefixes = Vec::new();
    let (mut start, end) = (u32::from(first), u32::from(last) + faulty!(1, LastPortForgotten => u32::from(last == first)));
    while start < end {
        // The largest block that begins here: limited by alignment and by what is left.
        let aligned = if start == 0 { 16 } else { start.trailing_zeros() };
        let left = (end - start).ilog2();
        let bits = aligned.min(left);
        prefixes.push((start as u16, (16 - bits) as u8));
        start += 1 << bits;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(reason: u32) -> PortEntry {
        PortEntry { reason, verdict: 1, reserved: [0; 3] }
    }

    fn covered(first: u16, last: u16) -> Vec<u32> {
        let mut ports = Vec::new();
        for (start, length) in prefixes(first, last) {
            ports.extend((0..1u32 << (16 - length)).map(|offset| u32::from(start) + offset));
        }
        ports
    }

    #[test]
    fn prefixes_cover_every_port_of_the_range_once_and_no_other() {
        for (first, last) in [(0, 0), (0, 65535), (1, 65535), (0, 65534), (80, 80), (1000, 2000), (32768, 65535), (1, 2), (65535, 65535)] {
            assert_eq!(covered(first, last), (u32::from(first)..=u32::from(last)).collect::<Vec<_>>(), "{first}-{last}");
        }
        assert_eq!(prefixes(0, 65535), [(0, 0)]);
        assert_eq!(prefixes(32768, 65535), [(32768, 1)]);
        assert!(prefixes(2, 1).is_empty(), "a range that runs backwards is empty");
    }

    #[test]
    fn where_ranges_overlap_the_first_keeps_the_ports() {
        let mut flattener = Flattener::default();
        for (first, last, reason) in [(10, 20, 1), (15, 30, 2), (5, 40, 3), (0, 65535, 4), (7, 3, 5)] {
            flattener.add(6, first, last, allow(reason));
        }
        flattener.add(17, 1, 1, allow(6));
        let ranges: Vec<_> = flattener.finish().0.iter().map(|range| (range.protocol, range.first, range.last, range.reason)).collect();
        let expected = [(6, 0, 4, 4), (6, 5, 9, 3), (6, 10, 20, 1), (6, 21, 30, 2), (6, 31, 40, 3), (6, 41, 65535, 4), (17, 1, 1, 6)];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn neighbours_of_one_reason_are_joined() {
        let mut flattener = Flattener::default();
        flattener.add(6, 10, 20, allow(1));
        flattener.add(6, 21, 30, allow(1));
        flattener.add(6, 31, 31, allow(2));
        assert_eq!(flattener.finish().0.len(), 2);
    }
}
