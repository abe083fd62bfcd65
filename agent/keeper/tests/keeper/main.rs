//! The keeper as its clients see it: the real program, real processes, a real `/dev/fuse`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod keeping;
mod manners;
mod place;
mod responding;
mod starting;
mod tickets;
