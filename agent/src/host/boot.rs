//! Which boot this is, and how long ago it began.

use std::{fs, io, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// The id of this boot: what is on disk from another one speaks of processes and mounts that are gone.
///
/// # Errors
/// Where /proc is not there.
pub fn id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Time since boot, time asleep included: comparable between two lives of the agent.
#[must_use]
pub fn now() -> Duration {
    // The clock is there in every kernel that we run on; zero would only make everything due.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
