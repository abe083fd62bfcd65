//! How long to wait before the next attempt.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Exponential delays with jitter: the n-th is drawn from the upper half of `base × 2^n`, bounded by `most`.
///
/// The jitter keeps many processes that lost the same database from returning at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    most: Duration,
    attempt: u32,
    random: RandomState,
}

impl Backoff {
    /// Starts at `base` and never exceeds `most`.
    #[must_use]
    pub fn new(base: Duration, most: Duration) -> Self {
        Self { base, most, attempt: 0, random: RandomState::new() }
    }

    /// The delay before the next attempt.
    pub fn delay(&mut self) -> Duration {
        let whole = self.base.saturating_mul(1 << self.attempt.min(30)).min(self.most);
        self.attempt = self.attempt.saturating_add(1);
        let fraction = (self.random.hash_one(self.attempt) % 1024) as f64 / 1024.0;
        whole.mul_f64(0.5 + fraction / 2.0)
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for attempt in 0..40 {
            let whole = Duration::from_millis(100 << attempt.min(5)).min(Duration::from_secs(2));
            let delay = backoff.delay();
            assert!(delay >= whole / 2 && delay <= whole, "attempt {attempt}: {delay:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }
}
