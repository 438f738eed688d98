//! The numbers that rows are made of.

use palisade_policy::shared::Grouped;
use std::cmp::Ordering;

/// The number of a service's port, of a table of backends or of a backend. Zero stands for none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u32);

/// Numbers that differ in their last eight bits: those of a service were mostly given together.
impl Grouped for Number {
    fn compare_groups(&self, other: &Self) -> Ordering {
        (self.0 >> 8).cmp(&(other.0 >> 8))
    }
}

/// Gives out numbers, each once: services' ports, tables and backends share one sequence.
///
/// What a number stands for is read from the rows that carry it; only how far the sequence has come is to be kept, by its owner, for a
/// flow may name a backend of which the row is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    highest: u32,
}

impl Numbers {
    /// Numbers of which those up to `highest` were given already.
    pub const fn after(highest: u32) -> Self {
        Self { highest }
    }

    /// The highest number that was given; 0 where none was.
    pub const fn highest(&self) -> u32 {
        self.highest
    }

    /// Counts the numbers up to this one as given.
    pub(crate) fn hold(&mut self, number: u32) {
        self.highest = self.highest.max(number);
    }

    /// A number that was never given before.
    ///
    /// Panics after 2^32: a hundred of them every second last for over a year, and the sequence begins anew with the node.
    pub(crate) const fn give(&mut self) -> u32 {
        self.highest = self.highest.checked_add(1).expect("a node gives out less than 2^32 numbers between two boots");
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_once_and_none_that_rows_carry() {
        let mut numbers = Numbers::after(7);
        assert_eq!([numbers.give(), numbers.give()], [8, 9]);
        numbers.hold(20);
        numbers.hold(3);
        assert_eq!((numbers.give(), numbers.highest()), (21, 21));
    }
}
