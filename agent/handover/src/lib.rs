//! What agent, keeper and mounter say to each other: messages and descriptors over unix sockets.
//!
//! ```text
//! link (supervisor ↔ mounter) ── message ─┐
//! client (anybody → keeper) ── protocol ──┼── packet: one message, its descriptors     format: see `format.rs`
//! kept, spec: what is handed over         ┘
//! memfd, process: what the descriptors are
//! ```
//!
//! Nothing here is asynchronous: [`Link`] and [`Client`] own a socket and have blocking calls; [`Link`] has others that
//! never block, and lends its descriptor to whoever polls.

mod client;
mod error;
pub mod format;
mod inherited;
mod kept;
mod link;
mod memfd;
pub mod message;
mod packet;
pub mod pods;
pub mod process;
pub mod protocol;
mod spec;

pub use client::{Child, Client, Entry, Spawned};
pub use error::HandoverError;
pub use kept::Kept;
pub use link::{CONTROL_FD, Link, MounterLink, Received, SupervisorLink};
pub use memfd::{read_sealed, sealed, sealed_executable};
pub use message::{FromMounter, ToMounter};
pub use packet::{MOST_BYTES, MOST_DESCRIPTORS, Packet, receive_packet, send_packet};
pub use process::{Identity, ProcessId};
pub use spec::{FEW_ARENAS, Limit, SpawnSpec};
