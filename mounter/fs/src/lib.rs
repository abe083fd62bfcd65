//! The file system: tree, journal, flusher.

pub mod acl;
pub mod block_cache;
pub mod effect;
pub mod effect_codec;
pub mod journal;
pub mod range_map;
pub mod xattr;
