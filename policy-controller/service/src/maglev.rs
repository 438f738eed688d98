//! Tables of backends that each node makes alike (Maglev, Eisenbud et al., NSDI 2016).
//!
//! Each backend has an order of preference over all slots, made of its address and port alone. In turn, each takes the slot that it
//! likes best of those that are free. So all get the same share, and where one goes, few slots of the others change hands.

use crate::frontend::Target;
use palisade_datapath_core::abi::CHUNK_BITS;
use std::net::IpAddr;

/// The largest table has two to the power of this many slots.
pub(crate) const MOST_BITS: u8 = 14;

/// Slots for each backend, where the table is not at its largest: a share is then off by a sixteenth at most.
const SHARE: usize = 16;

/// How many slots a table of so many backends has: two to the power of this.
pub(crate) fn bits(backends: usize) -> u8 {
    let slots = backends.saturating_mul(SHARE).min(1 << MOST_BITS).next_power_of_two();
    (slots.trailing_zeros() as u8).max(CHUNK_BITS)
}

/// Which backend each slot has, as its place in `backends`, which are in order, each there once. No slot where there is no backend.
pub(crate) fn table(backends: &[Target]) -> Vec<usize> {
    if backends.is_empty() {
        return Vec::new();
    }
    let slots = 1_usize << bits(backends.len());
    let mut preferences: Vec<Preference> = backends.iter().map(|&backend| Preference::new(backend, slots)).collect();
    let mut table = vec![None; slots];
    let mut free = slots;
    loop {
        for (index, preference) in preferences.iter_mut().enumerate() {
            if free == 0 {
                return table.into_iter().flatten().collect();
            }
            // Ends: the order of preference goes through all slots, and one is free.
            while table[preference.slot].is_some() {
                preference.advance();
            }
            table[preference.slot] = Some(index);
            free -= 1;
        }
    }
}

/// An order of preference over slots of which the number is a power of two.
struct Preference {
    /// The slot that comes next.
    slot: usize,
    /// From one slot to the next: odd, so that the way leads through all of them.
    skip: usize,
    mask: usize,
}

impl Preference {
    fn new(backend: Target, slots: usize) -> Self {
        let (first, second) = digests(backend);
        let mask = slots - 1;
        Self { slot: first as usize & mask, skip: (second as usize | 1) & mask, mask }
    }

    const fn advance(&mut self) {
        self.slot = (self.slot + self.skip) & self.mask;
    }
}

/// Two numbers of 64 bits to which every bit of a backend contributes, the same on every node.
fn digests((address, port): Target) -> (u64, u64) {
    let (version, high, low) = match address {
        IpAddr::V4(address) => (4, 0, u64::from(address.to_bits())),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64, address.to_bits() as u64),
    };
    let first = [version, high, low, u64::from(port)].into_iter().fold(0, |hash, word| mix(hash ^ word));
    (first, mix(first))
}

/// The next number of the sequence SplitMix64.
const fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_policy::generate::Random;
    use std::collections::{BTreeMap, BTreeSet};

    fn some(random: &mut Random, count: usize) -> Vec<Target> {
        let mut backends = BTreeSet::new();
        while backends.len() < count {
            let address = match random.chance(50) {
                true => IpAddr::from((0x0a00_0000 | random.below(0x1_0000) as u32).to_be_bytes()),
                false => IpAddr::from(((0xfd00_u128 << 112) | random.below(0x1_0000) as u128).to_be_bytes()),
            };
            backends.insert((address, 8080 + random.below(3) as u16));
        }
        backends.into_iter().collect()
    }

    fn shares(table: &[usize]) -> BTreeMap<usize, usize> {
        table.iter().fold(BTreeMap::new(), |mut shares, &backend| {
            *shares.entry(backend).or_default() += 1;
            shares
        })
    }

    #[test]
    fn a_table_has_sixteen_slots_for_each_backend_but_at_least_a_chunk_and_at_most_its_limit() {
        let expected = [(1, 6), (4, 6), (5, 7), (8, 7), (9, 8), (100, 11), (1_024, 14), (1_025, 14), (50_000, 14)];
        assert_eq!(expected.map(|(backends, _)| bits(backends)), expected.map(|(_, bits)| bits));
        assert_eq!(table(&[]), Vec::<usize>::new());
    }

    #[test]
    fn each_slot_is_filled_and_the_shares_are_equal_but_for_one_slot() {
        let mut random = Random::new(1);
        for count in (1..70).chain([100, 333, 1_000, 1_024, 2_000, 17_000]) {
            let table = table(&some(&mut random, count));
            assert_eq!(table.len(), 1 << bits(count));
            let shares = shares(&table);
            assert_eq!(shares.len(), count.min(1 << MOST_BITS));
            let (least, most) = (shares.values().min(), shares.values().max());
            assert!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{count}: {least:?} {most:?}");
        }
    }

    #[test]
    fn few_flows_of_the_others_move_when_a_backend_leaves() {
        let mut random = Random::new(2);
        for count in [3, 6, 12, 24, 60, 100, 200] {
            let (mut moved, mut all) = (0, 0);
            for _ in 0..20 {
                let backends = some(&mut random, count);
                let before = table(&backends);
                let gone = random.below(count);
                let mut fewer = backends.clone();
                fewer.remove(gone);
                let after = table(&fewer);
                assert_eq!(before.len(), after.len(), "of one size, or all would move");
                for (&old, &new) in before.iter().zip(&after).filter(|&(&old, _)| old != gone) {
                    all += 1;
                    moved += usize::from(backends[old] != fewer[new]);
                }
            }
            println!("one of {count} leaves: {} of 1000 slots of the others move", moved * 1_000 / all);
            assert!(moved * 100 < all * 15, "one of {count} leaves: {moved} of {all} slots move");
        }
    }

    #[test]
    fn a_table_is_the_same_on_every_node() {
        let backends = [([10, 0, 0, 1], 80), ([10, 0, 0, 2], 80), ([10, 0, 0, 3], 80)].map(|(address, port)| (IpAddr::from(address), port));
        let table: Vec<String> = table(&backends).into_iter().map(|index| index.to_string()).collect();
        // Another digest would move flows between nodes of different versions.
        assert_eq!(table.concat(), "1011202002120211010011122210202211021202012020101000110122210202");
    }
}
