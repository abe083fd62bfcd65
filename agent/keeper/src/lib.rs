//! The tiny parent of the mounters: holds their descriptors, starts them, and restarts them while nobody attends.
//!
//! ```text
//! server: one thread, one poll(2) ── clients: sockets, peers' credentials
//!    └── keeper: what is asked, what is done ── page: listings
//!          ├── tenants: entries, tickets ── ticket: when to restart (pure)
//!          ├── children ── spawn ── exec: between fork and exec (the only unsafe code beside the clone)
//!          └── responder: EIO to whatever the kernel asks ── clone
//! ```
//!
//! It holds no file, directory or statfs in any volume, never mounts or unmounts, and waits for nothing but the start of
//! a process. What it forgets when it dies, agent and mounters have duplicates of.

mod children;
mod clients;
mod clone;
mod error;
mod exec;
mod keeper;
mod page;
mod responder;
mod server;
mod spawn;
mod tenants;
mod ticket;

pub use children::reap;
pub use error::KeeperError;
pub use keeper::{Keeper, Report};
pub use responder::{Answered, Responder};
pub use server::Server;
pub use spawn::{Started, spawn};
