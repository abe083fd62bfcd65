//! The node's agent: CSI Identity and Node, the mounts, and the supervision of one mounter per staged tenant.
//!
//! ```text
//! cli ─ serve ─┬─ csi (convert, turn) ─ operations (stage, publish, stats …) ─┐
//!              └─ service (operator) ─ upgrades ──────────────────────────────┴─ node ─ tenant (shell of the state machine)
//!                                                                                        └─ keeper ─ launcher;  builds;  host
//! ```

pub mod builds;
pub mod cli;
pub mod csi;
pub mod events;
pub mod failure;
pub mod host;
pub mod keeper;
pub mod launcher;
mod logins;
mod monitoring;
pub mod node;
mod operations;
mod serve;
mod service;
pub mod settings;
mod tenant;
mod upgrades;

pub use serve::serve;
