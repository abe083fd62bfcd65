//! The file system: tree, journal, flusher.

pub mod acl;
pub mod audit;
mod auditing;
pub mod block_cache;
mod cache_share;
mod compose;
pub mod config;
pub mod effect;
pub mod effect_codec;
mod errno;
pub mod error;
mod flush;
mod fold;
mod fuse;
mod health;
pub mod journal;
mod leb128;
mod open;
mod plan;
pub mod range_map;
mod read_ahead;
mod reading;
mod restoring;
mod sealed_view;
mod sealing;
mod shell;
mod small_map;
#[cfg(test)]
mod tests;
mod told;
mod tree;
pub mod xattr;

pub use audit::{AuditConfig, Audited, PodNames};
pub use config::{FsConfig, SyncMode};
pub use error::FsError;
pub use flush::FlushError;
pub use fuse::FileSystem;
pub use open::{FsOpenError, FsStatus, Recovery};
pub use restoring::RestoreError;
pub use sealed_view::Sealed;
