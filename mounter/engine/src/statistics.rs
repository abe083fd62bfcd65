//! Counters per operation, cheap enough to stay on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tarbox_types::latency::{Counted, Latencies};

use crate::opcode;

#[derive(Debug, Default)]
struct Counters {
    errors: AtomicU64,
    latencies: Latencies,
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
        counters.latencies.record(took);
        if failed {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<OperationStatistics> {
        let all = self.operations.iter().enumerate().map(|(opcode, counters)| OperationStatistics {
            name: opcode::name_of(opcode as u32),
            errors: counters.errors.load(Ordering::Relaxed),
            latencies: counters.latencies.counted(),
        });
        all.filter(|operation| operation.latencies.count > 0).collect()
    }
}

/// What happened of one operation since the session began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationStatistics {
    /// The operation, as in `enum fuse_opcode`, lower case.
    pub name: &'static str,
    /// How many were answered with an error.
    pub errors: u64,
    /// How many were answered, and their times from reading the request to the reply.
    pub latencies: Counted,
}
