//! Control of a running mounter over its socket: what it serves and how it does, a flush barrier, new limits, credentials,
//! log level, the order to make room for a successor.

pub mod client;
pub mod service;
pub mod subject;
