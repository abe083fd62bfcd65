//! Descriptors that are waited for.

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that is waited for until it can be read.
///
/// # Errors
/// Where it cannot be polled.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may change their descriptor: ours do not"
)]
pub fn readable<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, Interest::READABLE)
}
