//! Control of a running mounter over its socket: what it serves, a flush barrier, new limits.

pub mod client;
pub mod service;
