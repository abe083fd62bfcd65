//! The controller: CSI Identity and Controller. It makes volumes, snapshots and clones in the databases, and never talks to a node:
//! what a mounted volume's holder has to do, it finds in the database.
//!
//! ```text
//! cli ─ serve ─ csi (convert, turn) ─┬─ volume (make, delete, expand, list)
//!                                    └─ snapshot (seal, delete, list) ─ databases ─ store
//!       └─ background (layers that go, deleted volumes, what nothing refers to)
//! ```
//!
//! Each operation may be repeated, and cut off anywhere: records in the database say what was begun.

mod background;
pub mod cli;
mod csi;
mod databases;
pub mod failure;
mod monitoring;
mod serve;
pub mod settings;
mod snapshot;
mod volume;

pub use serve::serve;
