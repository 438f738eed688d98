//! Medians and spreads.

/// Measurements of one thing, one per round.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds the next round's.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// The middle one; of an even number, the mean of the two in the middle. Not a number where there are none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
        }
    }

    /// What a part of the samples is not above, the next higher one where that falls between two. Not a number where there are none.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The range in which the middle half lies (third minus first quartile), so that one disturbed round does not
    /// make the figure.
    pub fn spread(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let quartile = |part: f64| {
            let position = part * sorted.len().saturating_sub(1) as f64;
            let (below, above) = (sorted.get(position.floor() as usize), sorted.get(position.ceil() as usize));
            let (Some(below), Some(above)) = (below, above) else { return f64::NAN };
            below + (above - below) * position.fract()
        };
        quartile(0.75) - quartile(0.25)
    }

    /// This divided by another, round by round: what disturbs a whole round disturbs both.
    pub fn ratio(&self, to: &Samples) -> Samples {
        Samples(self.0.iter().zip(&to.0).map(|(sample, to)| sample / to).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn the_median_is_the_middle_and_one_disturbed_round_does_not_move_it() {
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Samples(vec![1.0, 1.1, 1.2, 900.0, 1.15]).median(), 1.15);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn of_a_hundred_samples_the_last_but_one_is_the_99th_quantile() {
        let hundred = Samples((1..=100).map(f64::from).collect());
        assert_eq!((hundred.quantile(0.99), hundred.quantile(0.5), hundred.quantile(1.0)), (99.0, 50.0, 100.0));
        assert_eq!(Samples(vec![7.0]).quantile(0.99), 7.0);
        assert!(Samples::default().quantile(0.99).is_nan());
    }

    #[test]
    fn the_spread_is_that_of_the_middle_half() {
        assert_eq!(Samples(vec![1.0, 2.0, 3.0, 4.0, 5.0]).spread(), 2.0);
        assert_eq!(Samples(vec![7.0]).spread(), 0.0);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ratio = Samples(vec![10.0, 5.0]).ratio(&Samples(vec![20.0, 10.0]));
        assert_eq!((ratio.median(), ratio.spread()), (0.5, 0.0));
    }
}
