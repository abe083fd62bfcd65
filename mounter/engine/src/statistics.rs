//! Counters per operation, cheap enough to stay on: relaxed atomics, one histogram of powers of two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::opcode;

/// Number of classes of [`OperationStatistics::latencies`].
pub const LATENCY_CLASSES: usize = 24;

#[derive(Debug, Default)]
struct Counters {
    count: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    latencies: [AtomicU64; LATENCY_CLASSES],
}

/// What a session counts.
#[derive(Debug)]
pub(crate) struct Statistics {
    operations: [Counters; opcode::COUNT],
}

impl Default for Statistics {
    fn default() -> Self {
        Self { operations: std::array::from_fn(|_| Counters::default()) }
    }
}

impl Statistics {
    pub(crate) fn record(&self, opcode: u32, took: Duration, failed: bool) {
        // Number 0 is no operation: it takes what has an unknown number.
        let counters = self.operations.get(opcode as usize).unwrap_or(&self.operations[0]);
        counters.count.fetch_add(1, Ordering::Relaxed);
        counters.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        counters.latencies[class_of(took)].fetch_add(1, Ordering::Relaxed);
        if failed {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<OperationStatistics> {
        let all = self.operations.iter().enumerate().map(|(opcode, counters)| OperationStatistics {
            name: opcode::name_of(opcode as u32),
            count: counters.count.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            total: Duration::from_nanos(counters.nanos.load(Ordering::Relaxed)),
            latencies: std::array::from_fn(|class| counters.latencies[class].load(Ordering::Relaxed)),
        });
        all.filter(|operation| operation.count > 0).collect()
    }
}

/// Class 0: below 1 µs; class n: from 2^(n−1) µs to below 2^n µs; the last one is open.
fn class_of(took: Duration) -> usize {
    let micros = took.as_micros() as u64;
    (64 - micros.leading_zeros() as usize).min(LATENCY_CLASSES - 1)
}

/// What happened of one operation since the session began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationStatistics {
    /// The operation, as in `enum fuse_opcode`, lower case.
    pub name: &'static str,
    /// How many were answered.
    pub count: u64,
    /// How many of them with an error.
    pub errors: u64,
    /// Time from reading the request to the reply, summed up.
    pub total: Duration,
    /// How many took below 1 µs, below 2 µs, below 4 µs …; the last class is open.
    pub latencies: [u64; LATENCY_CLASSES],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two_microseconds() {
        let class = |nanos| class_of(Duration::from_nanos(nanos));
        assert_eq!([class(0), class(999), class(1_000), class(1_999), class(2_000)], [0, 0, 1, 1, 2]);
        assert_eq!(class_of(Duration::from_secs(3600)), LATENCY_CLASSES - 1);
    }
}
