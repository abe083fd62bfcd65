//! How long things took: counters cheap enough to stay on, in classes of powers of two.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Number of classes.
pub const CLASSES: usize = 24;

/// Counts durations; relaxed atomics.
#[derive(Debug, Default)]
pub struct Latencies {
    count: AtomicU64,
    nanos: AtomicU64,
    classes: [AtomicU64; CLASSES],
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// All of them together.
    pub total: Duration,
    /// How many took below 1 µs, below 2 µs, below 4 µs …; the last class is open.
    pub classes: [u64; CLASSES],
}

impl Counted {
    /// What somebody else has counted, `total_ns` nanoseconds together: classes that it does not have are empty.
    #[must_use]
    pub fn of(count: u64, total_ns: u64, classes: &[u64]) -> Self {
        let total = Duration::from_nanos(total_ns);
        Self { count, total, classes: std::array::from_fn(|class| classes.get(class).copied().unwrap_or(0)) }
    }
}

impl Latencies {
    /// One more.
    pub fn record(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.classes[class_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted until now.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted {
            count: self.count.load(Ordering::Relaxed),
            total: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
            classes: std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed)),
        }
    }
}

/// What a class lies below; the last one is open all the same.
#[must_use]
pub fn bound(class: usize) -> Duration {
    Duration::from_micros(1 << class.min(CLASSES - 1))
}

/// Class 0: below 1 µs; class n: from 2^(n−1) µs to below 2^n µs; the last one is open.
fn class_of(took: Duration) -> usize {
    let micros = took.as_micros() as u64;
    (64 - micros.leading_zeros() as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two_microseconds() {
        let class = |nanos| class_of(Duration::from_nanos(nanos));
        assert_eq!([class(0), class(999), class(1_000), class(1_999), class(2_000)], [0, 0, 1, 1, 2]);
        assert_eq!(class_of(Duration::from_secs(3600)), CLASSES - 1);
        for class in 0..CLASSES - 1 {
            assert_eq!(class_of(bound(class)), class + 1, "what a class lies below is in the next one");
            assert_eq!(class_of(bound(class) - Duration::from_nanos(1)), class);
        }
    }

    #[test]
    fn what_is_recorded_is_counted() {
        let latencies = Latencies::default();
        for micros in [0, 1, 1, 5_000_000] {
            latencies.record(Duration::from_micros(micros));
        }
        let counted = latencies.counted();
        assert_eq!((counted.count, counted.total), (4, Duration::from_micros(5_000_002)));
        assert_eq!((counted.classes[0], counted.classes[1], counted.classes[CLASSES - 1]), (1, 2, 1));
    }
}
