//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// A time limit on this machine: so many times as long as `TESTS_PATIENCE` says, where a machine is emulated.
///
/// # Panics
/// If that is no whole number.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    std::env::var("TESTS_PATIENCE")
        .map_or(limit, |factor| limit * factor.parse().expect("TESTS_PATIENCE is a whole number"))
}

/// Asks `condition` until it gives a value.
///
/// # Errors
/// When `limit` ([`patient`]) has passed: an error that names `what` was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let (begin, limit) = (Instant::now(), patient(limit));
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        anyhow::ensure!(begin.elapsed() < limit, "waited {limit:?} for: {what}");
        // The pause between two looks, not a wait for a time to pass.
        thread::sleep(Duration::from_millis(5));
    }
}
