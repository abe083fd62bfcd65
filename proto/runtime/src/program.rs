//! How our programs end, and what they run on.

use std::io;

/// Wrong use of the command line (EX_USAGE of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The configuration is wrong (EX_CONFIG).
pub const EXIT_CONFIGURATION: u8 = 78;
/// Anything else.
pub const EXIT_FAILED: u8 = 1;

/// Runs a service's work to its end.
///
/// # Errors
/// Where the runtime cannot be started.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(work);
    // A thread that hangs in a system call on a foreign mount must not keep the process.
    runtime.shutdown_background();
    Ok(outcome)
}
