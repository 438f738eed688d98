//! The policy epoch: a number that every entry of the connection table carries, counted round.
//!
//! An entry speaks for its flow in the epoch in which the flow was judged. The epoch is even as long as the policy stays; while a change
//! alters verdicts it is odd, and no entry speaks: every packet is judged by itself, those of established flows by the same rows as all
//! others. So a flow that the change ends and one that it allows never pass together.

/// Whether entries of an epoch speak for their flows.
#[inline(always)]
pub const fn settled(epoch: u32) -> bool {
    epoch & 1 == 0
}

/// The epoch of a change that begins in this one.
pub const fn unsettled(epoch: u32) -> u32 {
    epoch | 1
}

/// The next epoch in which entries speak; none of them is of this one.
pub const fn next(epoch: u32) -> u32 {
    unsettled(epoch).wrapping_add(1)
}

/// The later one of two epochs.
#[inline(always)]
pub const fn later(one: u32, other: u32) -> u32 {
    if before(one, other) { other } else { one }
}

/// Whether an epoch is before another one.
#[inline(always)]
pub const fn before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_counted_round() {
        assert_eq!((later(4, 9), later(9, 4), later(u32::MAX, 2)), (9, 9, 2));
        assert_eq!([next(u32::MAX - 1), next(u32::MAX)], [0, 0]);
        assert!(before(u32::MAX, next(u32::MAX)));
    }

    #[test]
    fn a_change_begins_an_epoch_of_its_own_and_ends_in_another() {
        for epoch in [0, 8, u32::MAX - 1] {
            let change = unsettled(epoch);
            assert!(settled(epoch) && !settled(change) && settled(next(change)));
            assert!(before(epoch, change) && before(change, next(change)));
            // One that is interrupted and begins again.
            assert_eq!((unsettled(change), next(change)), (change, next(epoch)));
        }
    }
}
