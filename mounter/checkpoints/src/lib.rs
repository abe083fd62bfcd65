//! Checkpoints of a tenant: sealed layers that somebody wants kept. A snapshot of CSI is one, what the command line makes is
//! another, and both are made, found and deleted here.
//!
//! Each is noted in a record before it is sealed, so that whoever holds the tenant learns of it, and whoever is killed
//! between is found by it. Nothing here knows SQL.

mod base;
mod create;
mod delete;
pub mod diff;
mod error;
mod list;
mod name;
mod orphans;
mod sealing;
mod squash;

pub use base::base;
pub use create::{allowed, check_number, create, history_quota};
pub use delete::{clear, clear_dropped, delete};
pub use error::{CheckpointError, Result};
pub use list::{Checkpoint, Kind, beginning_at, find, list};
pub use name::{HEAD, check_name};
pub use orphans::{Orphan, orphans, remove};
pub use sealing::{ByHeartbeat, Reach, seal};
pub use squash::between;
