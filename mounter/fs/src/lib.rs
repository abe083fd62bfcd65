//! The file system: tree, journal, flusher.

pub mod effect;
