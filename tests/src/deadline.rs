//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Asks `condition` until it gives a value.
///
/// # Errors
/// When `limit` has passed: an error that names `what` was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        anyhow::ensure!(begin.elapsed() < limit, "waited {limit:?} for: {what}");
        // The pause between two looks, not a wait for a time to pass.
        thread::sleep(Duration::from_millis(5));
    }
}
